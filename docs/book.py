"""The site from a run: ``python docs/book.py runs/laptop runs/laptop/book``.

Notebooks are not run again. README, docs and notebooks stand in a folder as in the repository, so
that their links to each other hold; the API pages come from the docstrings.
"""

import pkgutil
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from pages import readable
from sphinx.cmd.build import main as sphinx

import wspnb
from wspnb.files import own_files
from wspnb.results import report

ROOT = Path(__file__).resolve().parents[1]
BADGE = re.compile(
    r"\[!\[[^]]*\]\(https?://[^)]*\)\]\([^)]*\)|!\[[^]]*\]\(https?://[^)]*\)|"
    r"\[!\[[^]]*\]\[badge\d\]\](?:\[\w+\]|\([^)]*\)) ?|^\[(?:badge\d|tests|binder)\]: .*$",
    re.MULTILINE,
)


def executed(folder: Path) -> dict[str, Path]:
    """One executed notebook of each step: that of WSP where there are several, lowest seed first;
    copies and failed ones, as papermill alone leaves them, are passed over.

    Raises:
        FileNotFoundError: if the run has none.
    """
    found = {}
    files = own_files(folder, "[0-9]*.ipynb")
    by_number = {p: re.sub(r"\d+$", lambda seed: seed[0].zfill(20), p.stem) for p in files}
    for path in sorted(files, key=lambda p: ("-wsp-" not in p.stem, by_number[p])):
        failed = '"exception": true' in path.read_text(encoding="utf-8", errors="replace")
        if not failed and not report.COPY.search(path.stem):
            found.setdefault(path.stem.split("-")[0], path)
    if not found:
        raise FileNotFoundError(f"{folder}: no executed notebook; `make reproduce` makes them")
    return dict(sorted(found.items()))


def contents(caption: str, pages: list[str]) -> str:
    """A table of contents for the side bar."""
    lines = "\n".join(pages)
    return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{lines}\n```\n"


def lay_out(notebooks: dict[str, Path], source: Path) -> None:
    """Fill the folder that Sphinx reads."""
    skipped = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "_static", "page")
    for name in ["docs", "figures", "params", "src", "workflow", "benchmarks", "tests", "binder"]:
        shutil.copytree(ROOT / name, source / name, ignore=skipped, ignore_dangling_symlinks=True)
    (source / "data").mkdir()
    shutil.copy(ROOT / "data" / "README.md", source / "data")  # not the volumes beside it
    for path in ROOT.glob("[A-Za-z]*.*"):
        if path.is_file():
            shutil.copy(path, source)
    for name in ["LICENSE", "Makefile"]:
        shutil.copy(ROOT / name, source)
    (source / "notebooks").mkdir()
    for step, path in notebooks.items():
        page = readable(nbformat.read(path, as_version=4))
        nbformat.write(page, source / "notebooks" / f"{step}.ipynb")
    if (plan := ROOT / "notebooks" / "README.md").exists():
        shutil.copy(plan, source / "notebooks")
    (source / "api").mkdir()
    modules = [m.name for m in pkgutil.walk_packages(wspnb.__path__, "wspnb.") if not m.ispkg]
    for name in modules:
        page = f"# {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n```\n"
        (source / "api" / f"{name}.md").write_text(page, encoding="utf-8")
    index = "# Functions, by file\n\n" + "".join(f"- [{m}]({m}.md)\n" for m in modules)
    index += contents("Functions", modules)
    (source / "api" / "README.md").write_text(index, encoding="utf-8")
    others = sorted(p.relative_to(source) for p in source.rglob("*.md"))
    apart = ("README.md", "notebooks", "api", "figures")
    others = [str(p) for p in others if p.parts[0] not in apart]
    pages = ["notebooks/README"] * plan.exists() + [f"notebooks/{step}" for step in notebooks]
    readme = BADGE.sub("", (ROOT / "README.md").read_text(encoding="utf-8"))
    readme += contents("Notebooks, as they ran", pages)
    readme += contents("Results and how-to", sorted(others, key=lambda p: not p.startswith("docs")))
    readme += contents("Reference", ["api/README"])
    (source / "README.md").write_text(readme, encoding="utf-8")


def lost_pages(source: Path, pages: Path) -> list[str]:
    """Sources without a page. Sphinx says nothing when one of its workers is gone."""
    given = [
        p.relative_to(source)
        for kind in ("*.md", "*.ipynb")
        for p in own_files(source, f"**/{kind}")
    ]
    return sorted(str(p) for p in given if not (pages / p.with_suffix(".html")).exists())


def main(run: Path, out: Path) -> int:
    """Build the site into a temporary folder, then put it under its name; returns Sphinx's code, 1
    if a page is missing. A folder that holds something else than a site is a ValueError."""
    if out.exists() and any(out.iterdir()) and not (out / "searchindex.js").exists():
        raise ValueError(f"{out} holds something else than a site: name another folder")
    with tempfile.TemporaryDirectory(prefix="wspnb-book-") as folder:
        source, pages = Path(folder) / "source", Path(folder) / "pages"
        source.mkdir()
        lay_out(executed(run / "notebooks"), source)
        code = sphinx(["-q", "-c", str(ROOT / "docs"), str(source), str(pages)])
        lost = lost_pages(source, pages) if code == 0 else []
        if lost:
            print("no page was written of", *lost)
            return 1
        if code == 0:
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(pages, out, ignore=shutil.ignore_patterns(".doctrees", ".buildinfo"))
            shutil.copy(out / "README.html", out / "index.html")
            print(f"site: {out / 'index.html'}")
    return code


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("python docs/book.py RUN OUT: the folder of a run, and that of the site")
    try:
        sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
