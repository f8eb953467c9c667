"""What the report says in words, and its figure: names and units of people, not of columns."""

import contextlib
import html
import os
import re
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from wspnb import plots
from wspnb.files import own_files, read_json
from wspnb.results import statistics, tables

# Entries of `evaluate`: those of the paper as it prints them, and of patients split in two.
NAMES = {"d1": "D1", "d2": "D2", "d1+d2": "D1+2", "d1>population": "Population"}
OURS = NAMES | {"probe": "Probe patients"}  # in tables that we commit
COPY = re.compile(r"\.failed$|-Copy\d*$|[^\w.+-]")  # in names of notebooks that count for nothing


def people(cohorts) -> dict[str, str]:
    """What to call the columns named after cohorts: "a>b" for a_on_b; without any, of ours."""
    named = {c: NAMES.get(c, c) for c in cohorts} or OURS
    return {tables.short(cohort): name for cohort, name in named.items()}


def plural(n: int, word: str) -> str:
    """A number with its noun: "1 seed", "2 seeds"."""
    return f"{n} {word}{'' if n == 1 else 's'}"


def as_markdown(text: str) -> str:
    """Text as it is: in Markdown, names of the user's may hold what marks up, or a formula."""
    return re.sub(r"([\\`*_\[\]<>$&#|~])", r"\\\1", text)


def as_html(text: str) -> str:
    """Text as it is, in HTML."""
    return html.escape(text)


def shown(table: pd.DataFrame, precision: int | None = None) -> "pd.io.formats.style.Styler":
    """A table to display, without its index, names as they are."""
    table = table.style.hide(axis="index").format(precision=precision, escape="html")
    return table.format_index(escape="html", axis=1)


def commit_of(folder: Path) -> str:
    """Short commit of a checkout, with "(changed)" if a tracked file that is no settings of params/
    differs; "no checkout", also where a repository above it does not hold its files, or "unknown"
    where there is no git, or one that does not tell."""
    status = ["status", "--porcelain", "-uno", "--", ".", ":!params"]
    asked = (["rev-parse", "--short", "HEAD"], status, ["ls-files", "--", "."])
    env = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    env |= {"LC_ALL": "C"}
    options = {"capture_output": True, "text": True, "cwd": folder, "env": env}
    try:
        found = [subprocess.run(["git", *words], **options) for words in asked]
    except OSError:
        return "unknown"
    commit, changed, tracked = (git.stdout.strip() for git in found)
    if any(git.returncode for git in found):
        return "no checkout" if "not a git repository" in found[0].stderr else "unknown"
    return commit + " (changed)" * bool(changed) if tracked else "no checkout"


def what_was_run(runs: list[dict], slices: pd.DataFrame) -> str:
    """Methods, encoders, seeds, steps and patients of the runs of
    :func:`~wspnb.results.tables.read_runs` and their slices, in sentences."""
    methods = list(dict.fromkeys(tables.row_label(run["name"]) for run in runs))
    encoders = list(dict.fromkeys(tables.BACKBONES[run["backbone"]] for run in runs))
    steps = sorted({run["training"]["n_steps"] for run in runs if run.get("training")})
    cohorts = {run["training"].get("train_cohort") for run in runs if run.get("training")}
    if any(run.get("training") and run.get("encoder", "") is None for run in runs):
        cohorts = set()  # of encoders from elsewhere, whose patients are not among these
    known = (slices.weak_label.fillna(-1) >= 0) & slices.cohort.isin(cohorts)
    trained = slices[known].patient.nunique()
    judged = {NAMES.get(c, c): result["n"] for c, result in runs[0]["results"].items()}
    parts = [" · ".join(methods) + f" ({', '.join(encoders)})"]
    parts += [plural(len({run["seed"] for run in runs}), "training seed")]
    if steps:
        of = "" if not trained else f" on {plural(trained, 'patient')} with a weak label"
        parts += [f"pretrained for {' or '.join(f'{n:,}' for n in steps)} steps{of}"]
    parts += ["judged on " + ", ".join(f"{c} ({plural(n, 'patient')})" for c, n in judged.items())]
    return "; ".join(parts) + "."


def main_result(runs: list[dict]) -> str:
    """WSP against the best other pretraining, on the largest cohort, and how sure it is.

    The interval is that of the paired difference, over patients and, from two seeds on, over seeds;
    the other method was picked after looking, which flatters it.
    """
    cohort = max(runs[0]["results"], key=lambda c: runs[0]["results"][c]["n"])
    plain = [run for run in runs if run["name"] in tables.ROWS] or runs  # variants alone, too
    own = [run for run in plain if run["backbone"] == plain[0]["backbone"]]
    groups = {name: group for (_, name), group in tables.grouped(own).items()}
    means = {k: np.mean([r["results"][cohort]["auc"] for r in g]) for k, g in groups.items()}
    where = "the population" if cohort == "d1>population" else NAMES.get(cohort, cohort)
    where = f"On {where} ({plural(runs[0]['results'][cohort]['n'], 'patient')})"
    others = [name for name in means if name not in ("wsp", "supervised")]
    if "wsp" not in means or not others:
        found = ", ".join(f"{tables.row_label(k)} {mean:.2f}" for k, mean in means.items())
        return f"{where} the mean AUC is: {found}. Nothing was compared."
    spoken = tables.ROWS | {"random": "the untrained network"}
    best, here = max(others, key=means.get), spoken["wsp"]
    seeds = {r["seed"] for r in groups["wsp"]} & {r["seed"] for r in groups[best]}
    if not seeds:
        return f"{where} {here} and {spoken[best]} have no training seed in common."
    both = [[r for r in groups[name] if r["seed"] in seeds] for name in ("wsp", best)]
    sides = [[tables.cohort_scores(r, cohort) for r in side] for side in both]
    gap = statistics.paired_difference(*sides)
    low, high = (gap.low, gap.high) if len(seeds) == 1 else (gap.low_both, gap.high_both)
    for name, side in zip(("wsp", best), both, strict=True):  # of the seeds that are compared
        means[name] = np.mean([r["results"][cohort]["auc"] for r in side])
    text = f"{where} {here} has a mean AUC of {means['wsp']:.2f} and {spoken[best]}, "
    alike = sum(f"{means[name]:.2f}" == f"{means[best]:.2f}" for name in others)
    text += "the best of the others" if alike == 1 else f"one of {alike} equally good others"
    text += f", {means[best]:.2f}: a difference of {gap.mean:+z.2f}"
    if not high - low > 1e-9:  # every resample gives the same, or none has a value
        alike = "these patients are too few or too alike for an interval"
        return f"{text}; {alike}, so nothing is decided."
    sure = "it leaves out zero" if low > 0 or high < 0 else "it holds zero: they are not told apart"
    over = "patients alone, as there is one seed" if len(seeds) == 1 else "patients and seeds"
    return f"{text} [{low:+.2f}, {high:+.2f}] (95 % interval over {over}; {sure})."


def auc_figure(table: pd.DataFrame, runs: list[dict], printed: pd.DataFrame | None) -> Figure:
    """Mean AUC of each method with its interval over patients, of
    :func:`~wspnb.results.tables.auc_table`, one panel per cohort; dots are the single seeds, of the
    table's runs, and crosses the paper's Table 1, where it is given."""
    main = table[table.method.isin(tables.ROWS.values())]
    main = (main if len(main) else table).reset_index(drop=True)  # variants alone
    colours = {tables.row_label(run["name"]): plots.colour(run["name"]) for run in runs}
    tags = [name.removeprefix("auc_") for name in table if name.startswith("auc_")]
    names = people(runs[0]["results"])
    judged = {tables.short(entry): entry for entry in runs[0]["results"]}
    beside = main.backbone.map("  {}".format) if main.backbone.nunique() > 1 else ""
    labels = main.method + beside
    size = (max(2, 0.1 * labels.str.len().max() - 1) + 3.2 * len(tags), 1.1 + 0.32 * len(main))
    fig, axes = plt.subplots(1, len(tags), figsize=size, sharey=True, squeeze=False)
    for axis, tag in zip(axes.flat, tags, strict=True):
        for y, row in main.iterrows():
            colour = colours[row.method]
            own = [r["results"][judged[tag]] for r in runs if r["folder"].name in row.run.split()]
            single = [result["auc"] for result in own]
            axis.plot([row[f"low_{tag}"], row[f"high_{tag}"]], [y, y], color=colour, lw=2)
            axis.plot(row[f"auc_{tag}"], y, "o", color=colour, clip_on=False)  # an AUC of 1 whole
            axis.plot(single, [y + 0.22] * len(single), ".", ms=4, color=colour, clip_on=False)
            if printed is not None and f"auc_{tag}" in printed:
                same = printed.backbone == tables.printed_backbone(row.backbone)
                same &= printed.method == row.method
                axis.plot(printed[same][f"auc_{tag}"], [y - 0.22] * same.sum(), "kx", ms=5)
        axis.axvline(0.5, color="gray", lw=0.8, ls=":")
        axis.set(xlim=(0, 1), ylim=(len(main) - 0.5, -0.5), yticks=range(len(main)))
        below = "AUC" if ">" in judged[tag] else "mean AUC of the folds"
        axis.set(title=plots.as_text(names.get(tag, tag)), xlabel=below, yticklabels=labels)
    if printed is not None and any(f"auc_{tag}" in printed for tag in tags):
        fig.text(0.99, 0.01, "x: the paper, real CT", ha="right", fontsize=8)
    fig.tight_layout()
    return fig


def auc_words(
    table: pd.DataFrame, printed: pd.DataFrame | None, key=("backbone", "method"), cohorts=()
) -> pd.DataFrame:
    """A table of AUCs (of :func:`~wspnb.results.tables.auc_table` or ``sigma_table``) to read:
    cells as of :func:`~wspnb.results.tables.in_words`, beside each cohort's the value that the
    paper printed, the encoder where there are several; ``key`` are the columns that name a row,
    ``cohorts`` those judged."""
    names = people(cohorts)
    words = tables.in_words(table, [*key, "n_seeds"])
    tags = [name for name in words if f"auc_{name}" in table]
    glue = {" \\(": "\u00a0(", ", ": ",\u00a0"}  # a line breaks before the interval, not within
    words[tags] = words[tags].replace(glue, regex=True)
    rows = table[list(key)].reset_index(drop=True)
    if "backbone" in rows:
        rows = rows.assign(backbone=rows.backbone.map(tables.printed_backbone))
    for tag in tags:
        if printed is not None and f"auc_{tag}" in printed:
            cells = zip(printed[f"auc_{tag}"], printed[f"sd_{tag}"], strict=True)
            text = printed[list(key)].assign(paper=[f"{a:.2f} ({s:.2f})" for a, s in cells])
            beside = rows.merge(text, how="left").paper.fillna("–").to_numpy()
            words.insert(words.columns.get_loc(tag) + 1, f"{names.get(tag, tag)}, paper", beside)
    if "effective_positives" in table:
        words.insert(len(key), "Positives of an anchor", table.effective_positives.round(1))
    if "backbone" in words and words.backbone.nunique() == 1:
        words = words.drop(columns="backbone")
    columns = {"backbone": "Encoder", "method": "Method", "seeds": "Seeds", "sigma": "Sigma"}
    return words.rename(columns=columns | names)


def accuracy_words(accuracy: pd.DataFrame, paper: pd.Series | None) -> pd.DataFrame:
    """A table of :func:`~wspnb.results.tables.accuracy_table` to read: the accuracy of the better
    encoder with its interval, each one's, and the paper's by method where it is given."""
    words = pd.DataFrame({"Method": accuracy.method})
    words["Balanced accuracy"] = accuracy.bacc.map("{:.2f}".format)
    labels = [c.removeprefix("bacc_") for c in accuracy if c.startswith("bacc_")]
    for label in labels if len(labels) > 1 else []:
        spread = accuracy[f"seed_sd_{label}"].map(" ±{:.2f}".format).replace(" ±nan", "")
        words[label] = accuracy[f"bacc_{label}"].map("{:.2f}".format).replace("nan", "–") + spread
    ends = zip(accuracy.low, accuracy.high, strict=True)
    ends = ["–" if a != a else f"[{a:.2f}, {b:.2f}]" for a, b in ends]
    words.insert(2, "95 % interval over patients", ends)
    if paper is not None:
        words["Paper"] = accuracy.method.map(paper).map("{:.2f}".format).replace("nan", "–")
    return words


def executed(folder: Path) -> dict[str, dict]:
    """What papermill says of each executed notebook of a folder by its name; others that lie there,
    failed ones, copies and those that still run are passed over."""
    found = {}
    for file in own_files(folder, "*.ipynb"):
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
            about = read_json(file)["metadata"]["papermill"]
            if about["duration"] and not about.get("exception") and not COPY.search(file.stem):
                found[file.stem] = about
    return found
