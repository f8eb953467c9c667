"""What one number would hide about the mask of an organ: its size, its parts, where it ends."""

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import pdist, squareform

from wspnb.data.headers import Header
from wspnb.data.inventory import Hu, decode, window_of
from wspnb.data.volumes import BODY_HU

LIVER_ML = (200.0, 6000.0)  # livers of adults are far inside; paper silent
# The median under a mask of the liver is well inside, in any phase. Air of a CT that is cut below,
# such as bytes of the window, is its lowest value, and no organ's: paper silent.
ORGAN_HU, CUT_HU = (-90.0, 400.0), 10.0
ALIKE, FEW = 0.2, 5  # grey values that means and spreads may differ by; slices; paper silent
NOISE = 1.5  # of two squared distances of slices: where one is larger; paper silent
# Of CT, what is brighter than most vessels, and darker than fat by far; paper silent.
BONE_HU, LUNG_HU = 250.0, -500.0
CORNER = 0.01  # share of the pixels that have the corners' one value, to be named; paper silent


def measure(mask: np.ndarray, header: Header) -> dict:
    """What one number would hide about a mask: its size, its parts, and whether it is cut off.

    Args:
        mask: ``(x, y, z)`` bool, canonical, not empty.
        header: of its volume.

    Returns:
        ``mask_ml``; ``mask_mm`` from end to end; ``mask_cut`` ("bottom", "top", "bottom and top" or
        ""): the mask reaches the first or last slice of the scan, so that the organ may go on
        outside; ``mask_voxels``, a hash of where it is; ``mask_gaps``, slices without mask between
        its ends; ``mask_parts`` that hang together by faces, edges or corners, ``mask_share`` of
        the voxels in the largest, and ``mask_reach``, by how many slices the other parts go beyond
        the ends of the largest; ``mask_tail_mm`` of slices at an end with
        less than 1 % of the largest section; ``mask_flat``, the larger share of the largest section
        at an end that is not cut off.
    """
    box, parts, sizes = _parts(mask, np.ones((3, 3, 3)))
    z, n_voxels = box[2], int(sizes.sum())
    ends = {"bottom": z.start == 0, "top": z.stop == mask.shape[2]}
    areas = np.count_nonzero(parts, axis=(0, 1))  # of the sections, voxels
    thick = np.flatnonzero(areas >= 0.01 * areas.max())
    tail = max(thick[0], len(areas) - 1 - thick[-1])
    place = str([(side.start, side.stop) for side in box]).encode()
    flat = [areas[k] for k, cut in zip((0, -1), ends.values(), strict=True) if not cut]
    own = np.flatnonzero((parts == sizes.argmax() + 1).any((0, 1)))
    return {
        "mask_ml": round(n_voxels * header.voxel_ml, 1),
        "mask_mm": round(float((z.stop - z.start) * header.spacing[2]), 1),
        "mask_cut": " and ".join(end for end, cut in ends.items() if cut),
        "mask_voxels": hashlib.sha256(place + np.packbits(parts > 0).tobytes()).hexdigest(),
        "mask_gaps": int((~mask[box].any((0, 1))).sum()),
        "mask_parts": len(sizes),
        "mask_share": round(int(sizes.max()) / n_voxels, 4),
        "mask_reach": int(own[0] + z.stop - z.start - 1 - own[-1]),
        "mask_tail_mm": round(float(tail * header.spacing[2]), 1),
        "mask_flat": round(float(max(flat, default=0) / areas.max()), 2),
    }


def _parts(mask: np.ndarray, touching: np.ndarray | None):
    """The box around a mask that is not empty, its parts numbered from 1, and their voxels; only
    the box, as labelling a whole scan takes as long as reading it."""
    mask = mask.astype(bool, copy=False)
    plane = mask.any(2)  # quicker than scipy's find_objects by a hundred times
    lines = plane.any(1), plane.any(0), mask.any((0, 1))
    ends = [np.flatnonzero(line)[[0, -1]] for line in lines]
    box = tuple(slice(first, last + 1) for first, last in ends)
    parts, n = ndimage.label(mask[box], touching)
    sizes, flat = np.zeros(n + 1, np.int64), parts.ravel()
    for first in range(0, len(flat), 1 << 22):  # all at once is 8 bytes a voxel
        sizes += np.bincount(flat[first : first + (1 << 22)], minlength=n + 1)
    return box, parts, sizes[1:]


def keep_largest(mask: np.ndarray, row: dict, header: Header) -> np.ndarray:
    """The largest part of a mask in several pieces that touch nowhere; ``row`` of :func:`measure`
    then says what is left, and ``mask_left_out_ml`` how much is not."""
    if row["mask_parts"] < 2:
        return mask
    found, parts = largest_component(mask, np.ones((3, 3, 3))), row["mask_parts"]
    row |= {**measure(found, header), "mask_parts": parts, "mask_share": row["mask_share"]}
    left = int(np.count_nonzero(mask)) - int(np.count_nonzero(found))
    row["mask_left_out_ml"] = round(left * header.voxel_ml, 1)
    return found


def is_liver(organ_ml: tuple[float, float]) -> bool:
    """Whether limits of the size, ml, are those of a liver, also of a child's."""
    return organ_ml[0] <= 1500 <= organ_ml[1]


def check_size(mask: str | Path, row: dict, limits: tuple[float, float] = LIVER_ML) -> None:
    """Raise ValueError for a mask that no liver can have.

    Args:
        mask, row: its name, and what :func:`measure` says of it.
        limits: least and most, ml. One that the scan cuts off may have a tenth of the least (paper
            silent), unless it is another part that reaches the end, such as a stray voxel.
    """
    ml, cut = row["mask_ml"], row["mask_cut"] and not row["mask_reach"]
    if not limits[0] / (10 if cut else 1) <= ml <= limits[1]:
        raise ValueError(
            f"{mask}: {ml:g} ml, and a liver has {limits[0]:g} to {limits[1]:g} ml: a mask of"
            " something else, or wrong units in the header? Look at it, and if it is right, as a"
            " child's may be, give write_slices other limits (organ_ml)"
        )


def largest_component(mask: np.ndarray, touching: np.ndarray | None = None) -> np.ndarray:
    """The largest part of a mask that hangs together by faces (or as SciPy's ``structure`` says),
    ``(x, y, z)`` bool; empty if it is."""
    found = np.zeros(mask.shape, bool)
    if mask.any():
        box, parts, sizes = _parts(mask, touching)
        np.equal(parts, sizes.argmax() + 1, out=found[box])
    return found


def body_above(row: dict[str, Any]) -> float:
    """What is brighter is body, HU; of an MRI in its own unit."""
    if row["coding"] == "MR":
        return row["window_low"]
    lowest = float(decode(np.float32(row["minimum"]), row["coding"]))
    return min(max(BODY_HU, lowest + CUT_HU), ORGAN_HU[0])


def look_at_planes(hu: Hu, kept: np.ndarray, row: dict[str, Any]) -> None:
    """Count kept slices that are of one value, all over or in an eighth of the rows that their
    neighbours fill (``flat_slices``), the same as the one below (``repeated_slices``), or most like
    one that is no neighbour (``slices_apart``), and how much larger a step from slice to slice is
    than those beside it (``slice_jump``).

    Of an MRI also :func:`_mr_levels`, and what its body encloses that is brighter than the
    background and darker than the window, as a share of the body (``dim_share``). Of a CT the
    largest change of the 95th percentile from slice to slice, HU (``slice_step``), the one value of
    many corners where it is no air (``corner_hu``), and by how many mm bone lies in front of, or to
    the right of, the body's middle (``bone_front_mm``, ``bone_right_mm``)."""
    near = slice(kept[0], kept[-1] + 1)
    planes, some = np.moveaxis(hu.scan.voxels[:, :, near], 2, 0), hu.scan.voxels[::4, :, near]
    rows = np.count_nonzero(some.min(0) == some.max(0), axis=0)
    whole = rows == hu.shape[1]
    whole[whole] = [np.ptp(plane) == 0 for plane in planes[whole]]
    part = rows[1:-1] - np.maximum(rows[:-2], rows[2:]) > hu.shape[1] / 8
    row["flat_slices"] = int(whole.sum() + (part & ~whole[1:-1]).sum())
    same = [np.array_equal(one, other) for one, other in pairwise(planes)]
    row["repeated_slices"] = int((np.array(same, bool) & ~whole[1:]).sum())
    step = -(-min(hu.shape[:2]) // 64)
    some = hu[::step, ::step, near]
    seen = np.moveaxis(some[::2, ::2], 2, 0).reshape(len(whole), -1)[~whole]
    row["slices_apart"] = _apart(seen, hu.spacing[2])
    more = 3 + (round(row["mask_mm"] / hu.spacing[2]) - len(kept)) // 2 if "mask_mm" in row else 0
    wide = hu[::step, ::step, max(kept[0] - more, 0) : kept[-1] + 1 + more]  # all of the mask
    wide = np.clip(wide[:, :, np.ptp(wide, (0, 1)) > 0], *window_of(row, 2 * LUNG_HU, ORGAN_HU[1]))
    row["slice_jump"] = _jump(np.abs(np.diff(wide)).mean((0, 1)))
    tops = np.percentile(some, 95, axis=(0, 1))[~whole]
    if row["coding"] == "MR":
        low = row["window_low"]  # also where nothing is brighter
        middles = [np.median(np.append(z[z > low], low)) for z in some[:, :, ~whole].T]
        _mr_levels([tops, middles], row)  # those of a mask, if there is one, go before them
        inside = _filled(body := some > low)
        dim = inside & ~body & (some > 2 * np.percentile(some[[0, -1]], 90))
        row["dim_share"] = round(float(dim.sum() / max(body.sum(), 1)), 3)
    else:
        row["slice_step"] = round(float(np.abs(np.diff(tops)).max(initial=0)), 1)
        bone, body = some > BONE_HU, some > body_above(row)
        if bone.sum() > 0.005 * body.sum():
            middles = [ndimage.center_of_mass(kind) for kind in (bone, body)]
            aside = np.subtract(*middles)[:2] * step * hu.spacing[:2]
            row["bone_right_mm"], row["bone_front_mm"] = aside.round(1).tolist()
        ends = hu[[0, 0, -1, -1], [0, -1, 0, -1], near]  # a quarter of them in one value is enough
        values, counts = np.unique(ends[ends > body_above(row)], return_counts=True)
        if counts.max(initial=0) >= max(2, ends.size / 4):
            one = float(values[counts.argmax()])
            if (some == one).mean() > CORNER:
                row["corner_hu"] = round(one, 1)


def lung_above(hu: Hu, ends, row: dict[str, Any]) -> float:
    """Share of lung in the body's sections up to 60 mm above a liver less that below it: well above
    0; below it where a CT lies upside down. Where the scan ends in the liver below, a tenth, and
    above, a fifth, so that 40 mm without lung on the other side, or with much of it, tell as well;
    NaN where that side is shorter, or drawn: the same all along. Paper silent.

    ``ends``: the slices next to the mask, below and above."""
    n, step = int(60 / hu.spacing[2]) + 1, -(-min(hu.shape[:2]) // 64)
    planes = slice(ends[1], ends[1] + n), slice(max(0, ends[0] - n + 1), ends[0] + 1)
    some = [hu[::step, ::step, near][:, :, :: max(1, n // 8)] for near in planes]
    bodies = [_filled(side > body_above(row)) for side in some]
    shares = [
        (body & (side < LUNG_HU)).sum() / body.sum() if body.any() else np.nan
        for side, body in zip(some, bodies, strict=True)
    ]
    for side, other, least in ((0, 1, 0.2), (1, 0, 0.1)):
        areas = bodies[other].sum((0, 1))
        long = len(range(*planes[other].indices(hu.shape[2]))) >= 2 * n // 3
        if not bodies[side].size and long and np.ptp(areas) > 0.02 * areas.max():
            shares[side] = least
    return round(float(shares[0] - shares[1]), 2)


def _filled(body: np.ndarray) -> np.ndarray:
    """Sections ``(x, y, z)`` of a body with what it encloses."""
    return np.stack([ndimage.binary_fill_holes(z) for z in body.T]).T if body.size else body


def _apart(slices: np.ndarray, step_mm: float) -> int:
    """How many of slices ``(n, pixels)`` are more like one that is more than 10 mm away than like
    their neighbours, and not by noise alone: none of a scan whose slices lie in order."""
    if len(slices) < 2:
        return 0
    slices = slices - slices.mean(0)
    products = slices @ slices.T
    distance = np.add.outer(np.diag(products), np.diag(products)) - 2 * products  # squared
    np.fill_diagonal(distance, np.inf)
    away = np.abs(distance.argmin(1) - np.arange(len(slices)))
    beside = np.pad(np.diag(distance, 1), 1, constant_values=np.inf)
    less = np.minimum(beside[1:], beside[:-1]) > NOISE * distance.min(1)
    return int(np.count_nonzero(less & (away > 3) & (away * step_mm > 10)))


def _jump(steps: np.ndarray) -> float:
    """How many times larger a step from slice to slice is than the largest of the three before and
    behind it, or four in a row than the four before or behind them; at most 10, 0 of under eight
    steps."""
    if len(steps) < 8 or not steps.any():
        return 0.0
    steps = np.maximum(steps, steps.max() / 10)
    beside = [
        np.r_[steps[max(k - 3, 0) : k], steps[k + 1 : k + 4]].max() for k in range(len(steps))
    ]
    rows = np.lib.stride_tricks.sliding_window_view(steps, 4)
    least, most = rows.min(1), rows.max(1)
    ratios = steps / beside, least[4:] / most[:-4], least[:-4] / most[4:]
    return round(float(np.concatenate(ratios).max()), 2)


def _weave(levels) -> float:
    """Median step of levels that go to and fro from slice to slice; 0 where they do not."""
    steps = np.diff(levels)
    turns = np.count_nonzero(steps[1:] * steps[:-1] < 0)
    woven = len(steps) > 5 and turns > 0.8 * (len(steps) - 1)
    return round(float(np.median(np.abs(steps))), 1) if woven else 0.0


def _mr_levels(levels, row: dict[str, Any]) -> None:
    """Of an MRI's grey values, in lines of one a slice: the largest step of the first
    (``slice_bias``, of their logarithm), and by how many per cent one goes to and fro
    (``slice_weave``)."""
    levels = np.log(np.clip(levels, row["window_low"], None))
    row["slice_bias"] = round(float(np.abs(np.diff(levels[0])).max(initial=0)), 3)
    row["slice_weave"] = max(map(_weave, 100 * levels))


def look_of(images: np.ndarray) -> list[float]:
    """Mean and spread of each kept slice ``(n, size, size)``, 2n numbers, so that mirrored ones are
    alike; empty where there is none or they are drawn in few values."""
    counts = np.array([np.bincount(image.ravel(), minlength=256) for image in images])
    if not len(counts) or np.count_nonzero(counts, axis=1).min() <= 16:
        return []
    shares, values = counts / images[0].size, np.arange(256)
    means = shares @ values
    spreads = np.sqrt(np.maximum(shares @ values**2 - means**2, 0))
    return np.r_[means, spreads].round(3).tolist()


def same_looks(looks: list[list[float]]) -> list[list[int]]:
    """Numbers of the looks that are within a grey value of one another, in groups of two or more:
    one scan, also clipped, mirrored, or saved again with voxels that are rounded otherwise."""
    lengths, groups = np.array([len(look) for look in looks]), []
    for length in {*lengths[lengths >= 2 * FEW].tolist()}:  # fewer tell nobody from another
        rows = np.flatnonzero(lengths == length)
        alike = squareform(pdist([looks[row] for row in rows], "chebyshev") < ALIKE)
        firsts = (alike | np.eye(len(rows), dtype=bool)).argmax(1)
        numbers, counts = np.unique(firsts, return_counts=True)
        groups += [rows[firsts == first].tolist() for first in numbers[counts > 1]]
    return sorted(groups)


def check_place(mask, volume, row: dict[str, Any], values: list[np.ndarray]) -> None:
    """Refuse a mask that lies on air or bone: of another scan, or turned over."""
    name, unit, (low, high) = "mask_hu", "HU", ORGAN_HU
    if row["coding"] == "MR":  # in units of its own, dark where there is no body
        name, unit, low, high = "mask_grey", "(its own unit)", row["window_low"], np.inf
        _mr_levels([[np.median(v) for v in values if len(v)]], row)
    else:
        row["slice_weave"] = _weave([v.mean() for v in values if len(v)])
    values = np.concatenate(values)
    middle = float(np.median(values))
    row[name] = round(middle, 1) if unit == "HU" else float(f"{middle:.4g}")
    outside = (values < body_above(row)) | (values > high)  # fat at the rim is no fault
    row["mask_outside"] = round(float(outside.mean()), 3)
    if not low <= middle <= high:
        dark = f"; or is the organ darker than a body begins here, {low:g}" * (unit != "HU")
        raise ValueError(
            f"{mask}: a median of {row[name]:g} {unit} under it in {volume}, no organ's: the mask"
            f" of another scan, or turned over? Look at both{dark}"
        )
