"""Figures of notebook 07."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from wspnb import plots
from wspnb.data.bscans import BIOMARKERS
from wspnb.files import read_csv
from wspnb.kernels import effective_positives
from wspnb.studies import oct


def biomarker_sheet(images, table: pd.DataFrame, rows) -> Figure:
    """Eight scans with each biomarker, then eight with none, of these row numbers of a store."""
    random, names = np.random.default_rng(0), list(BIOMARKERS)
    own = table.iloc[rows]
    kinds = {name: rows[own[name] == 1] for name in names}
    kinds["none"] = rows[own[names].sum(axis=1) == 0]
    kinds = {name: found for name, found in kinds.items() if len(found)}
    drawn = np.concatenate([random.choice(found, 8) for found in kinds.values()])
    titles = [name if number == 0 else "" for name in kinds for number in range(8)]
    return plots.contact_sheet(images[drawn], titles, columns=8, size=1.2)


def links(table: pd.DataFrame) -> Figure:
    """CST against BCVA of every visit, and share of scans with each biomarker along the volume."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    visits, read = table.drop_duplicates("volume"), table.dropna(subset=list(BIOMARKERS))
    left.scatter(visits.cst, visits.bcva, s=8, color=plots.CLASS_COLOURS[0])
    title = f"{len(visits)} visits, r = {visits.cst.corr(visits.bcva):.2f}"
    left.set(xlabel="CST, um", ylabel="BCVA, letters", title=title)
    part = (np.floor(read.position.clip(0, 0.999) * 7) + 0.5) / 7
    colours = "#D55E00 #E69F00 #CC79A7 #0072B2 #56B4E9 #009E73".split()
    for name, mark, colour in zip(BIOMARKERS, "osv^Dx", colours, strict=True):
        share = read.groupby(part)[name].mean()
        right.plot(share, marker=mark, ms=4, color=colour, label=name)
    right.set(xlabel="position in the volume", ylabel="share of scans", ylim=(0, 0.9))
    right.legend(ncols=3, fontsize=8)
    return fig


def kernels(values: dict[str, Tensor], widths: dict[str, float]) -> Figure:
    """Kernel of each method on one batch (:func:`wspnb.studies.oct.clinical_kernel`); effective
    positives, and share of anchors with no other."""
    fig, axes = plt.subplots(1, len(oct.KERNELS), figsize=(13, 2.7))
    for kind, axis in zip(oct.KERNELS, axes, strict=True):
        kernel = oct.clinical_kernel(kind, values, widths)
        relative = kernel / kernel.diagonal()[:, None]
        alone = float(((relative > 0.01).sum(1) == 1).float().mean())
        axis.imshow(relative, cmap="magma", vmin=0, vmax=1)
        positives = float(effective_positives(kernel).mean())
        title = f"{kind}\n{positives:.1f} positives, {alone:.0%} alone"
        axis.set(xticks=[], yticks=[])
        axis.set_title(title, fontsize=9)
    return fig


def curves(jobs) -> Figure:
    """Loss and spread of the embeddings of trainings, (folder, settings) of each, smoothed."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.2), layout="constrained")
    for folder, settings in jobs:
        if settings.method == "random":
            continue
        log, colour = read_csv(folder / "log.csv"), oct.COLOURS[settings.method]
        smooth = log.rolling(max(1, len(log) // 20), min_periods=1).mean()
        left.plot(log.step, smooth.loss, color=colour, label=oct.ROWS[settings.method])
        right.plot(log.step, smooth.embedding_sd, color=colour)
    left.set(xlabel="step", ylabel="loss")
    right.set(xlabel="step", ylabel="spread of the embeddings", ylim=(0, None))
    fig.legend(loc="outside right center", fontsize=8)
    return fig


def bars(results: pd.DataFrame, methods) -> Figure:
    """Macro AUROC with its interval over patients, that of rounded scores, and each biomarker's:
    from :func:`wspnb.studies.oct.result_table`, whose rows are those of ``methods``."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 3.8), layout="constrained")
    place, colours = np.arange(len(results)), [oct.COLOURS[m] for m in methods]
    left.barh(place, results.macro_auroc, color=colours, alpha=0.8)
    left.hlines(place, results.low, results.high, color="white", lw=4)
    left.hlines(place, results.low, results.high, color="black", lw=1.5)
    look = {"marker": "D", "color": "white", "edgecolor": "black", "s": 22, "zorder": 3}
    left.scatter(results["rounded"], place, **look, label="rounded")
    left.set(yticks=place, yticklabels=results.method, xlim=(0.4, 1), xlabel="macro AUROC")
    left.axvline(0.5, color="#444444", lw=0.8, ls=":")
    left.invert_yaxis()
    left.legend(loc="lower right", title="scores", fontsize=8)
    spread = np.linspace(-0.3, 0.3, len(results))
    for shift, colour, row in zip(spread, colours, results.itertuples(), strict=True):
        heights = [getattr(row, f"auroc_{name}") for name in BIOMARKERS]
        right.scatter(np.arange(len(heights)) + shift, heights, color=colour, s=18)
    right.set(xticks=np.arange(len(BIOMARKERS)), xticklabels=list(BIOMARKERS), ylim=(0.4, 1.02))
    right.set_ylabel("AUROC of each biomarker")
    return fig
