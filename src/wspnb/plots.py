"""Palette, contact sheet, scatter and figure saving, shared by the notebooks."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wspnb.files import whole

# Okabe-Ito colours: told apart by colour-blind readers (Okabe & Ito 2008).
PALETTE = {
    "supervised": "#000000",
    "random": "#999999",
    "imagenet": "#666666",
    "simclr": "#56B4E9",
    "byol": "#CC79A7",
    "supcon": "#E69F00",
    "depth_aware": "#009E73",
    "wsp": "#D55E00",
    "wsp_floor": "#0072B2",
    "wsp_own": "#F0E442",
}
CLASS_COLOURS = ("#0072B2", "#D55E00")
DEPTH_MAP = "viridis"


def colour(name: str) -> str:
    """Colour of a method, or of the one in ``PALETTE`` with which its name begins."""
    found = [key for key in PALETTE if name == key or re.match(rf"{key}[_.\d]", name)]
    return PALETTE[max(found, key=len)] if found else "#000000"


def as_text(name: str) -> str:
    """A name of the user's for a title or legend: dollars are no formula, and matplotlib leaves out
    what begins with an underscore."""
    return "\u200a" * name.startswith("_") + name.replace("$", r"\$")


def save_figure(fig: Figure, folder: str | Path, name: str) -> Path:
    """Write ``name.png`` and ``name.pdf`` into a folder, without dates, so that equal figures are
    equal files; the path of the PNG. The figure is laid out tightly and left open for the notebook
    to show."""
    folder = Path(folder)
    for ending, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        with whole(folder / f"{name}.{ending}") as temporary:
            fig.savefig(temporary, dpi=150, bbox_inches="tight", metadata=metadata)
    return folder / f"{name}.png"


def contact_sheet(images, titles=None, columns: int = 8, size: float = 1.5) -> Figure:
    """Images side by side in one grey scale.

    Args:
        images: ``(n, h, w)``, uint8 or float in [0, 1].
        titles: n short texts, or None.
        size: width of one image, inches.
    """
    images = np.asarray(images)
    whole_numbers = images.dtype == np.uint8
    if images.ndim != 3 or not len(images) or not (whole_numbers or images.dtype.kind == "f"):
        raise ValueError(f"images {images.dtype} {images.shape}: uint8 or floats, (n, h, w)")
    if not whole_numbers and not -1e-3 < np.nanmin(images) <= np.nanmax(images) < 1 + 1e-3:
        raise ValueError(f"images of {images.min():.4g} to {images.max():.4g}: floats in [0, 1]")
    titles = [] if titles is None else [*titles]
    if titles and len(titles) != len(images):
        raise ValueError(f"{len(titles)} titles of {len(images)} images: give one each")
    rows = -(-len(images) // columns)
    inches = size * columns, (size + 0.2 * bool(titles)) * rows
    fig, axes = plt.subplots(rows, columns, figsize=inches, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for number, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255 if whole_numbers else 1)
        if titles:
            axis.set_title(titles[number], fontsize=7, pad=2, parse_math=False)
    fig.subplots_adjust(wspace=0.03, hspace=0.15 if titles else 0.03)
    return fig


def mosaic(images, words, title: str = "") -> Figure:
    """Many small pictures ``(n, h, w, 3)`` uint8 in one, quicker than a :func:`contact_sheet`, with
    words above each and a title above all."""
    n, height, width, _ = images.shape
    if not n:
        raise ValueError("no picture to draw: nothing was kept")
    columns = min(10, n)
    rows, space = -(-n // columns), height // 4  # for the words
    whole = np.full((rows * (height + space), columns * width, 3), 255, np.uint8)
    fig, axis = plt.subplots(figsize=(1.3 * columns, 1.3 * rows * (1 + space / height) + 0.4))
    for k, (image, text) in enumerate(zip(images, words, strict=True)):
        top, left = k // columns * (height + space) + space, k % columns * width
        whole[top : top + height, left : left + width] = image
        look = {"fontsize": 5, "ha": "center", "va": "bottom", "parse_math": False}
        axis.text(left + width / 2, top - 2, text, **look)
    axis.imshow(whole)
    axis.axis("off")
    axis.set_title(title, fontsize=9, parse_math=False)
    return fig


def draw_outlines(fig: Figure, masks, colour: str) -> None:
    """Draw the outline of a mask ``(h, w)``, above 0 inside, on each picture of a
    :func:`contact_sheet`; empty ones have none."""
    for axis, mask in zip(fig.axes, masks, strict=False):
        if mask.any():
            axis.contour(mask > 0, [0.5], colors=colour, linewidths=0.8)


def scatter(axis: Axes, plane, values, kind: str):
    """Points of a plane coloured by class (0/1) or by depth (0 lowest slice, 1 highest; depths of
    another unit stretch the scale, a missing one is grey).

    Args:
        axis: where to draw; ticks are removed, as the coordinates mean nothing.
        plane: coordinates ``(n, 2)``.
        values, kind: ``(n,)`` and whether they are the "class" or the "depth".

    Returns:
        The mappable for a colour bar when ``kind`` is "depth", else None.
    """
    plane, values = np.asarray(plane), np.asarray(values)
    if kind not in ("class", "depth") or plane.shape != (len(values), 2):
        found = f"kind={kind!r}, {len(values)} values of points {plane.shape}"
        raise ValueError(f"{found}: class or depth, one value of each point (n, 2)")
    axis.set(xticks=[], yticks=[])
    if kind == "depth":
        known = [0, 1, *values[np.isfinite(values)]]
        look = {"cmap": plt.get_cmap(DEPTH_MAP).with_extremes(bad="0.7"), "plotnonfinite": True}
        look |= {"vmin": min(known), "vmax": max(known), "s": 8, "lw": 0}
        return axis.scatter(*plane.T, c=values, **look)
    if len(other := values[~np.isin(values, (0, 1))]):
        raise ValueError(f"{len(other)} points of class {other[0]}: draw 0 and 1, leave others out")
    for label, colour in enumerate(CLASS_COLOURS):
        axis.scatter(*plane[values == label].T, color=colour, s=8, lw=0, label=f"class {label}")
    return None
