"""The ledger of choices: paper, released code and this package, each with a link to its line."""

import json
import re
from functools import cache
from pathlib import Path

from wspnb.files import own_files

ROOT = Path(__file__).resolve().parents[1]
TAG = re.compile(r"paper silent", re.IGNORECASE)

# What, the paper, its released code (commit f360b62), here, and the line that does it.
DIFFERENCES = [
    ("normalisation of the weights", "over the positives of an anchor (rows)",
     "divides by row sums laid along columns, so that rows no longer sum to 1",
     'rows; `normalise="column"` gives the released one', "def pair_weights("),
    ("sum or mean over the anchors", "sum", "twice the mean", "mean over the 2N rows",
     "def contrastive_loss("),
    ("who stands in the denominator", "printed as j ≠ i, which keeps the anchor's own term",
     "j ≠ t", 'j ≠ t; `denominator="printed"` and `"others"` are there', "def contrastive_loss("),
    ("sigma", "0.1 (from the supplement)", "0.85, 0.5 or 1.0: nearly SupCon", "0.1; "
     "`params/as_released.yaml` has 0.85", "def gaussian("),
    ("kernels", "Gaussian", "others with another meaning of sigma", "Gaussian, by the product "
     "with the label", "def pair_kernel("),
    ("weak label", "four radiological stages", "severe against the rest by default",
     "four stages; `severe_from: 3` gives the released one", "def weak_labels("),
    ("methods compared", "SimCLR, BYOL, SupCon, depth-Aware, WSP", "only WSP can be started",
     "all, from one table of kernels", "def pair_kernel("),
    ("position", "position over the largest position, which reaches 1", "k / n, never 1",
     "k / (n - 1); `convention: k/n` gives the released one", "def slice_positions(n"),
    ("orientation of the volume", "anatomical depth", "none checked: the file's last axis",
     "turned to one orientation by the affine first", "def load_volume("),
    ("slices kept", "central 70 % of the liver", "central 70 % of the file; of one slice none",
     "symmetric about the liver, at least one", "def central_slices("),
    ("window", "[-100, 400] HU", "cast to bytes first: HU wrap around unless the file is coded",
     "explicit; codings are detected, nothing wraps", "def window("),
    ("batches", "class-balanced, one slice per patient; small sets may repeat patients",
     "endless when there are fewer patients than the batch", "implemented, or one clear error",
     "class OneSlicePerPatient"),
    ("translation", "not mentioned", "0.2 with probability .5", "off; `translate: 0.2` gives it",
     "def augment("),
    ("TinyNet", "five convolutions, 1.1 M parameters", "channels that do not fit each other",
     "the same layers, repaired", "class TinyNet"),
    ("latent size", "64 (TinyNet), 128 (ResNet-18)", "always 64", "as the paper",
     "def projection_head("),
    ("optimiser and schedule", "cosine decay", "Adam, no warm-up",
     "Adam, cosine, a linear rise first", "def learning_rate_factor("),
    ("epochs, learning rate, weight decay", "not given", "40 epochs of 156 batches, 1e-5, 1e-5",
     "stated in every parameter cell", "class Config"),
    ("BYOL", "moving average from 0.996 to 1", "absent", "as the paper", "def byol_momentum("),
    ("linear probe", "regularised logistic regression on frozen features, five folds",
     "absent; best epoch taken on the validation AUC", "five folds over patients, no peeking",
     "def cross_validate("),
    ("threshold of the balanced accuracy", "not given", "absent", "Youden's, on inner folds of "
     "the training patients", "def fold_thresholds("),
    ("patient score", "mean slice probability", "absent", "as the paper", "def held_out_scores("),
    ("masks", "manual for one set, U-Net for the others", "absent", "given ones, or a U-Net",
     "def liver_unet("),
]  # fmt: skip


@cache
def sources() -> dict[str, list[str]]:
    """Lines of the package's files, by path from the root."""
    files = own_files(ROOT / "src", "**/*.py")
    read = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8").splitlines() for p in files}
    return dict(sorted(read.items(), key=lambda item: (item[0].count("/"), item[0])))


def link(needle: str) -> str:
    """Markdown link to the first line of the package that begins with the needle.

    Raises:
        LookupError: if no line does: the ledger no longer says what the code does.
    """
    for path, lines in sources().items():
        for number, line in enumerate(lines, 1):
            if line.startswith(needle):
                name = path.removeprefix("src/wspnb/")
                return f"[{name}](../{path}#L{number})"
    raise LookupError(f"no line of src begins with {needle!r}: correct docs/ledger.py")


def ledger() -> str:
    head = ["what", "the paper", "its released code", "here", "where"]
    rows = [[*row[:4], link(row[4])] for row in DIFFERENCES]
    return "\n".join(f"| {' | '.join(r)} |" for r in [head, ["---"] * 5, *rows])


def choices() -> str:
    """Every line of module and notebooks that is tagged *paper silent*."""
    rows = []
    for path, lines in sources().items():
        for number, line in enumerate(lines, 1):
            if TAG.search(line):
                name = path.removeprefix("src/wspnb/")
                rows.append((said(lines, number - 1), f"[{name}](../{path}#L{number})"))
    for file in own_files(ROOT / "notebooks", "[0-9]*.ipynb"):
        if re.search(r"\W", file.stem):  # a copy, a draft
            continue
        for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
            lines = "".join(cell["source"]).splitlines()
            for number, line in enumerate(lines):
                if TAG.search(line):
                    rows.append((said(lines, number), f"[{file.stem}](../notebooks/{file.name})"))
    return "\n".join(["| choice | where |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


def said(lines: list[str], number: int) -> str:
    """A tagged line as text: code with its comment, or the sentence that holds the tag."""
    code, _, comment = lines[number].partition("  # ")
    if comment and code.strip():
        comment = re.sub(r"\(paper silent; ", "(", comment)
        comment = re.sub(r"[;,]? ?\(?paper silent( on which)?\)?", "", comment).strip()
        return f"`{code.strip()}` {comment}".replace("|", "\\|")
    start = end = number
    comment = lines[number].lstrip().startswith("#")  # its neighbours of code are not meant

    def goes_on(line):
        return line.strip(' "#') and line.lstrip().startswith("#") == comment

    while start > max(0, number - 4) and goes_on(lines[start - 1]):
        start -= 1
    while end < min(len(lines), number + 4) and goes_on(lines[end]):
        end += 1
    marked = re.sub(r"\*?paper silent\*?", "@", lines[number], flags=re.IGNORECASE)
    around = [*lines[start:number], marked, *lines[number + 1 : end]]
    text = " ".join(line.strip(' "#') for line in around)
    sentences = re.split(r"(?<=[.;])\s+(?=[A-Z(*`0-9])|\s+(?=\w+: )|\s(?=def |class )", text)
    chosen = next(k for k, sentence in enumerate(sentences) if "@" in sentence)
    # "paper silent." alone belongs to the sentence before it
    words = sentences[max(0, chosen - (len(sentences[chosen]) < 40)) : chosen + 1]
    return " ".join(words).replace("@", "*paper silent*").replace("|", "\\|")
