"""Drawings: embeddings on the circle, how data flow, and the network with its sizes."""

import math
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyBboxPatch, Polygon
from torch import nn

from wspnb.plots import PALETTE, scatter

# Key: centre x, centre y, text, kind. Two lines of work: files above, one training step below.
FLOW_BOXES = {
    "ct": (0.0, 1, "CT + masks\ncohort.csv", "file"),
    "01": (1.4, 1, "01\npreprocess", "notebook"),
    "store": (2.8, 1, "slices.npy\nslices.csv", "file"),
    "02": (4.2, 1, "02\npretrain", "notebook"),
    "encoder": (5.6, 1, "encoder\n.safetensors", "file"),
    "03": (7.0, 1, "03\nprobe", "notebook"),
    "scores": (8.4, 1, "features.npy\nscores.csv", "file"),
    "04": (9.8, 1, "04 · 05 · 06\nlook, judge", "notebook"),
    "report": (11.2, 1, "figures,\ntables, report", "file"),
    "batch": (1.4, -0.5, "batch: a slice\nper patient", "step"),
    "views": (2.8, -0.5, "two\nviews", "step"),
    "network": (4.2, -0.5, "encoder\nfeatures", "step"),
    "head": (5.6, -0.5, "head\nembeddings", "step"),
    "loss": (7.0, -0.5, "weighted\nloss", "step"),
    "labels": (1.4, -1.6, "weak label\nand depth", "step"),
    "kernel": (7.0, -1.6, "kernel of\nthe method", "step"),
}
FLOW_ARROWS = ["ct 01", "01 store", "store 02", "02 encoder", "encoder 03", "03 scores"]
FLOW_ARROWS += ["scores 04", "04 report", "batch views", "views network", "network head"]
FLOW_ARROWS += ["head loss", "labels kernel", "kernel loss", "batch labels"]
FLOW_COLOURS = {"file": "white", "notebook": PALETTE["simclr"], "step": "#F4E3C1"}
LAYER_COLOURS = {"image": "#DDDDDD", "block": PALETTE["simclr"], "average": "white"}
LAYER_COLOURS["dense"] = PALETTE["supcon"]
ROUND = "round,pad=0,rounding_size=.1"
BOX = (1.16, 0.66)  # width and height of a box, in the unit of the axis


class Layer(NamedTuple):
    """One row of a network's table; channels and size are those of its output for one image."""

    name: str
    steps: str  # what happens there, in the order of the module, e.g. "5x5 conv, ReLU"
    channels: int
    size: int  # side of the square map, pixels; 0 for a vector
    parameters: int


def layer_table(encoder: nn.Module, head: nn.Sequential, image_size: int) -> list[Layer]:
    """Sizes and numbers of parameters, read from the modules while one empty image runs through.

    Args:
        encoder: TinyNet, or any module with ``blocks`` followed by an average over the map.
        head: its projection head; every dense layer is a row, with what follows it.
        image_size: side of the square image, pixels.

    Returns:
        Rows in the order of the forward pass: the image, the blocks, the average, the dense layers.

    Raises:
        ValueError: if the encoder has no ``blocks`` or the image is too small for it.
    """
    if not hasattr(encoder, "blocks"):
        raise ValueError(f"{type(encoder).__name__} has no blocks: only TinyNet can be drawn")
    groups = [(f"block {number}", [block]) for number, block in enumerate(encoder.blocks, 1)]
    groups += [("average", [encoder])]
    for module in head:
        if isinstance(module, nn.Linear):
            groups.append((f"dense {len(groups) - len(encoder.blocks)}", []))
        groups[-1][1].append(module)
    channels = next(m for m in encoder.modules() if isinstance(m, nn.Conv2d)).in_channels
    image = torch.zeros(1, channels, max(image_size, 0), max(image_size, 0))
    shapes, training = {}, encoder.training
    hooks = [
        modules[0].register_forward_hook(lambda m, _, out: shapes.update({m: out.shape[1:]}))
        for _, modules in groups
    ]
    try:
        with torch.no_grad():
            head(encoder.eval()(image))  # eval: an empty image must not move running averages
    finally:
        encoder.train(training)
        for hook in hooks:
            hook.remove()
    rows = [Layer("image", "", channels, image_size, 0)]
    for name, modules in groups:
        shape = shapes[modules[0]]
        own = [] if name == "average" else modules  # the encoder's layers have their own rows
        leaves = [m for module in own for m in module.modules() if not list(m.children())]
        steps = ", ".join(filter(None, map(step_name, leaves)))
        size = shape[1] if len(shape) > 1 else 0
        rows.append(Layer(name, steps, shape[0], size, sum(map(count_parameters, own))))
    return rows


def step_name(module: nn.Module) -> str:
    """Short name of a single layer, with its kernel; empty for one that does nothing."""
    if isinstance(module, nn.Conv2d):
        return "{}x{} conv".format(*module.kernel_size)
    if isinstance(module, nn.MaxPool2d):
        return f"pool {module.kernel_size}"
    names = {"BatchNorm2d": "norm", "Linear": "", "Identity": ""}
    return names.get(type(module).__name__, type(module).__name__)


def count_parameters(module: nn.Module) -> int:
    """Number of weights and biases."""
    return sum(p.numel() for p in module.parameters())


def draw_network(
    axis: Axes, encoder: nn.Module, head: nn.Sequential, image_size: int
) -> list[Layer]:
    """Encoder and head as slabs: height by the root of the map's side, width by the channels' log.

    Args:
        axis: where to draw, about 12 x 3 inches.
        encoder, head, image_size: see :func:`layer_table`.

    Returns:
        The rows drawn, see :func:`layer_table`.
    """
    rows, end = layer_table(encoder, head, image_size), 0.0
    for place, row in enumerate(rows):
        x, half = 1.5 * place, 0.1 + 0.55 * math.sqrt(row.size / 512)
        width = 0.06 + 0.07 * math.log2(row.channels)
        kind = row.name.split()[0]
        draw_slab(axis, x, width, half, LAYER_COLOURS[kind])
        maps = f"{row.channels} × {row.size}²" if row.size else f"{row.channels}"
        axis.text(x, half + 0.2, maps, ha="center", va="bottom", fontsize=9)
        count = [f"{row.parameters:,}"] if row.parameters else []
        below = "\n".join([row.name, *count, *filter(None, row.steps.split(", "))])
        axis.text(x, -0.8, below, ha="center", va="top", fontsize=8)
        if place:
            arrow(axis, (end + 0.12, 0), (x - width / 2 - 0.04, 0))
        end = x + width / 2 + 0.06
    parts = count_parameters(encoder), count_parameters(head)
    total = "encoder {:,} + head {:,} = {:,} parameters".format(*parts, sum(parts))
    axis.set(xlim=(-0.8, 1.5 * len(rows) - 0.7), ylim=(-1.7, 1.2))
    axis.set_title(f"{image_size} px: {total}", fontsize=10)
    axis.axis("off")
    return rows


def draw_slab(axis: Axes, x: float, width: float, half: float, colour: str) -> None:
    """A box seen from the side, its front face ``width`` wide and ``2 half`` high around (x, 0)."""
    left, right, shift = x - width / 2, x + width / 2, 0.12
    front = [(left, -half), (right, -half), (right, half), (left, half)]
    top = [(left, half), (right, half), (right + shift, half + shift), (left + shift, half + shift)]
    side = [(right, -half), (right + shift, shift - half), (right + shift, half + shift)]
    for corners in (front, top, [*side, (right, half)]):
        axis.add_patch(Polygon(corners, facecolor=colour, edgecolor="black", lw=0.7))


def draw_flow(axis: Axes) -> None:
    """What goes where: files and notebooks in the upper row, one step of training below.

    Args:
        axis: where to draw, about 12 x 4 inches.
    """
    width, height = BOX
    for x, y, text, kind in FLOW_BOXES.values():
        box = FancyBboxPatch((x - width / 2, y - height / 2), *BOX, boxstyle=ROUND, lw=0.8)
        box.set(facecolor=FLOW_COLOURS[kind], edgecolor="black")
        axis.add_patch(box)
        axis.text(x, y, text, ha="center", va="center", fontsize=8)
    for pair in FLOW_ARROWS:
        (x0, y0), (x1, y1) = (FLOW_BOXES[key][:2] for key in pair.split())
        side = math.copysign(width / 2, x1 - x0) if x0 != x1 else 0
        rise = math.copysign(height / 2, y1 - y0) if x0 == x1 else 0
        arrow(axis, (x0 + side, y0 + rise), (x1 - side, y1 - rise))
    frame = {"facecolor": "none", "edgecolor": "grey", "ls": ":", "zorder": 0}
    axis.add_patch(FancyBboxPatch((0.6, -2.1), 7.2, 2.1, boxstyle="round,pad=0", **frame))
    axis.plot([4.2, 4.2], [0, 1 - height / 2], ls=":", color="grey", lw=1)
    note = "one step of notebook 02:\ncontrastive methods differ\nin the kernel alone,\n"
    note += "the head is thrown away"
    axis.text(8.1, -1.05, note, ha="left", va="center", fontsize=8, style="italic")
    axis.set(xlim=(-0.7, 11.9), ylim=(-2.2, 1.5), aspect="equal")
    axis.axis("off")


def arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A thin arrow between two points of the axis."""
    axis.annotate("", end, start, arrowprops={"arrowstyle": "->", "lw": 0.9, "shrinkA": 0})


def draw_circle(axis: Axes, plane, labels, positions, kind: str):
    """Embeddings of length 1, each class on a circle of its own so that nothing is hidden.

    Only the angle means something: class 1 is moved inwards, and both are blurred along the radius.

    Args:
        axis: where to draw, square.
        plane: points on the unit circle, ``(n, 2)``.
        labels: class of each, 0 or 1, ``(n,)``.
        positions: depth of each in [0, 1], ``(n,)``.
        kind: "class" or "depth", what the colour shows.

    Returns:
        The mappable for a colour bar when ``kind`` is "depth", else None.

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
