"""Drawings: embeddings on the circle, how data flow, and the network with its sizes."""

from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Circle
from torch import nn

from wspnb.plots import PALETTE, scatter

COLOURS = {"file": "white", "notebook": PALETTE["simclr"], "step": "#F4E3C1"}
# Key: column, row, kind, text. Two lines of work: files above, one training step below.
FLOW_BOXES = {
    "ct": (0, 2, "file", "CT + masks\ncohort.csv"),
    "01": (1, 2, "notebook", "01\npreprocess"),
    "store": (2, 2, "file", "slices.npy\nslices.csv"),
    "02": (3, 2, "notebook", "02\npretrain"),
    "encoder": (4, 2, "file", "encoder\n.safetensors"),
    "03": (5, 2, "notebook", "03\nprobe"),
    "scores": (6, 2, "file", "features.npy\nscores.csv"),
    "04": (7, 2, "notebook", "04 · 05 · 06\nlook, judge"),
    "report": (8, 2, "file", "figures,\ntables, report"),
    "batch": (1, 1, "step", "batch: a slice\nper patient"),
    "views": (2, 1, "step", "two\nviews"),
    "network": (3, 1, "step", "encoder\nfeatures"),
    "head": (4, 1, "step", "head\nembeddings"),
    "loss": (5, 1, "step", "weighted\nloss"),
    "labels": (1, 0, "step", "weak label\nand depth"),
    "kernel": (5, 0, "step", "kernel of\nthe method"),
}
FLOW_ARROWS = ["ct 01", "01 store", "store 02", "02 encoder", "encoder 03", "03 scores"]
FLOW_ARROWS += ["scores 04", "04 report", "batch views", "views network", "network head"]
FLOW_ARROWS += ["head loss", "labels kernel", "kernel loss", "batch labels"]


def draw_boxes(axis: Axes, boxes: dict[str, tuple], arrows: list[str]) -> None:
    """Texts in boxes on a grid and arrows ("KEY KEY" each) between them, on an axis about 12 inches
    wide; column, row, kind (of ``COLOURS``) and text of a box by its key."""
    texts = {}
    for key, (x, y, kind, text) in boxes.items():
        look = {"boxstyle": "round,pad=.4", "facecolor": COLOURS[kind], "lw": 0.8}
        texts[key] = axis.text(x, y, text, ha="center", va="center", fontsize=8, bbox=look)
    columns, rows, *_ = zip(*boxes.values(), strict=True)
    axis.set(xlim=(-0.5, max(columns) + 0.5), ylim=(min(rows) - 0.5, max(rows) + 0.5))
    axis.axis("off")
    axis.figure.canvas.draw()  # now the boxes have their sizes
    for start, end in map(str.split, arrows):
        look = {"arrowstyle": "->", "lw": 0.9, "shrinkA": 2, "shrinkB": 2}
        look |= {"patchA": texts[start].get_bbox_patch(), "patchB": texts[end].get_bbox_patch()}
        axis.annotate("", boxes[end][:2], boxes[start][:2], arrowprops=look)


def layer_table(encoder: nn.Module, head: nn.Sequential, image_size: int) -> pd.DataFrame:
    """Sizes and numbers of parameters of an encoder (TinyNet, or any module with ``blocks`` before
    an average over the map) and its projection head, read from the modules while one empty image of
    ``image_size`` pixels a side runs through.

    Returns:
        Rows image, block 1 .., average, dense 1 ..; channels, size (side of the map, pixels, 0 for
        a vector) and parameters.

    Raises:
        ValueError: if the encoder has no ``blocks`` or the image is too small for it.
    """
    if not hasattr(encoder, "blocks"):
        raise ValueError(f"{type(encoder).__name__} has no blocks: only TinyNet can be drawn")
    dense = [module for module in head if isinstance(module, nn.Linear)]
    parts = {f"block {n}": block for n, block in enumerate(encoder.blocks, 1)}
    parts |= {"average": encoder} | {f"dense {n}": module for n, module in enumerate(dense, 1)}
    maps, training = [torch.zeros(1, 1, max(image_size, 0), max(image_size, 0))], encoder.training
    hooks = [m.register_forward_hook(lambda *seen: maps.append(seen[2])) for m in parts.values()]
    try:
        with torch.no_grad():  # eval: an empty image must not move running averages
            head(encoder.eval()(maps[0]))
    finally:
        encoder.train(training)
        for hook in hooks:
            hook.remove()
    sizes = [(m.shape[1], m.shape[2] if m.ndim == 4 else 0) for m in maps]
    table = pd.DataFrame(sizes, index=["image", *parts], columns=["channels", "size"])
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    return table.assign(parameters=[0, *(counts | {"average": 0}).values()])


def draw_network(
    axis: Axes, encoder: nn.Module, head: nn.Sequential, image_size: int
) -> pd.DataFrame:
    """Encoder and head as a row of boxes on an axis of about 12 x 1.2 inches: what each gives out,
    and its parameters. Returns the rows drawn; see :func:`layer_table`."""
    table, boxes = layer_table(encoder, head, image_size), {}
    kinds = {"block": "notebook", "dense": "step"}
    for column, row in enumerate(table.itertuples()):
        maps = f"{row.channels} × {row.size}²" if row.size else f"{row.channels}"
        count = f"\n{row.parameters:,}" if row.parameters else ""
        kind = kinds.get(row.Index.split()[0], "file")
        boxes[row.Index.replace(" ", "")] = column, 0, kind, f"{row.Index}\n{maps}{count}"
    draw_boxes(axis, boxes, [f"{a} {b}" for a, b in pairwise(boxes)])
    both, dense = table.parameters.sum(), table.parameters.filter(like="dense").sum()
    total = f"encoder {both - dense:,} + head {dense:,} = {both:,} parameters"
    axis.set_title(f"{image_size} px: {total}", fontsize=10)
    return table


def draw_flow(axis: Axes) -> None:
    """What goes where, on an axis of about 12 x 3 inches: files and notebooks in the upper row, one
    step of training below."""
    draw_boxes(axis, FLOW_BOXES, FLOW_ARROWS)
    axis.plot([3, 3], [1.35, 1.7], ls=":", color="grey", lw=1)
    note = "one step of notebook 02:\ncontrastive methods differ\nin the kernel alone,\n"
    axis.text(5.7, 0.5, note + "the head is thrown away", va="center", fontsize=8, style="italic")


def draw_circle(axis: Axes, plane, labels, positions, kind: str):
    """Embeddings of length 1, each class on a circle of its own so that nothing is hidden.

    Only the angle means something: class 1 is moved inwards, and both are blurred along the radius.

    Args:
        axis: where to draw, square.
        plane: points on the unit circle, ``(n, 2)``.
        labels, positions, kind: class, depth, and which of them is shown, see
            :func:`wspnb.plots.scatter`, whose result is returned.

    Raises:
        ValueError: if a point is not on the unit circle.
    """
    plane, labels = np.asarray(plane), np.asarray(labels)
    lengths = np.linalg.norm(plane, axis=1)
    if plane.shape[1] != 2 or not np.allclose(lengths, 1, atol=1e-4):
        found = f"{plane.shape[1]}-D, lengths {lengths.min():.3g} to {lengths.max():.3g}"
        raise ValueError(f"points are {found}: divide 2-D embeddings by their length")
    for radius in (1, 0.72):
        axis.add_patch(Circle((0, 0), radius, fill=False, color="lightgrey", lw=0.6, zorder=0))
    blur = np.random.default_rng(0).uniform(-0.05, 0.05, len(plane))
    points = plane * (1 - 0.28 * labels + blur)[:, None]
    axis.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal")
    return scatter(axis, points, labels if kind == "class" else positions, kind)
