"""CT volumes from NIfTI: orientation, Hounsfield units, window, kept slices, positions.

Everywhere here an array is ``(x, y, z)`` with x to the patient's right, y to the front and z to the
head (RAS+), so that depth always runs from the feet to the head, however the file stores it.
"""

import gzip
import math
import os
import re
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from PIL import Image

from wspnb.data.headers import Header, check_same_grid, open_header, read_voxels
from wspnb.files import whole

# A slice without a mask shows the body where this share of its pixels is denser than fat and air
# (paper silent).
BODY_HU, BODY_SHARE = -300.0, 0.05


class Scan(NamedTuple):
    """A volume with the numbers of its file, on canonical axes; a plane costs memory, not all."""

    voxels: np.ndarray  # (x, y, z), any strides, as stored
    slope: float
    intercept: float
    spacing: np.ndarray  # (3,), mm
    axes: str  # of the file, such as LPS
    oblique: float  # largest angle between an axis and the body's nearest, degrees
    dtype: str = ""  # of the file, if not that of the voxels


def load_volume(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """A CT volume in Hounsfield units and canonical orientation.

    The header's slope and intercept are applied. An oblique volume takes the closest canonical axes
    without resampling; its spacing is the length of the affine's columns.

    Returns:
        ``(x, y, z)`` float32, HU, a view with any strides; and the spacing ``(3,)``, mm.

    Raises:
        FileNotFoundError, ValueError: as :func:`wspnb.data.headers.open_header` and
            :func:`wspnb.data.headers.read_voxels`.
    """
    scan = read_scan(path)
    return scaled(scan.voxels, scan), scan.spacing


def read_scan(path: str | Path, header: Header | None = None) -> Scan:
    """A CT volume as it is stored, turned to canonical axes; :func:`scaled` makes its values.

    Args, Raises: as :func:`load_volume`, which holds all values as float32 at once. ``header``: the
        volume's, where it is open already.
    """
    header = header or open_header(path)
    proxy = header.image.dataobj
    raw = isinstance(header.image, nib.Nifti1Pair)  # other formats scale in ways of their own
    cosines = header.affine[:3, :3] / header.spacing
    return Scan(
        read_voxels(path, header, raw),
        float(proxy.slope) if raw else 1.0,
        float(proxy.inter) if raw else 0.0,
        header.spacing,
        "".join(nib.aff2axcodes(header.stored)),
        round(float(np.degrees(np.arccos(np.clip(np.abs(np.diag(cosines)), 0, 1))).max()), 2),
        str(header.image.get_data_dtype()) if raw else "",
    )


def scaled(voxels: np.ndarray, scan: Scan) -> np.ndarray:
    """Voxels of a scan, any shape, with slope and intercept applied: float32."""
    values = voxels.astype(np.float32)
    if (scan.slope, scan.intercept) != (1, 0):
        values *= np.float32(scan.slope)
        values += np.float32(scan.intercept)
    return values


def load_mask(
    path: str | Path,
    volume: str | Path | None = None,
    value: int | None = None,
    opened: Header | None = None,
) -> np.ndarray:
    """A mask in canonical orientation, checked against the volume that it belongs to.

    Args:
        path: NIfTI file of whole numbers.
        volume: path of the volume; its orientation in the file may differ from the mask's. None
            checks nothing.
        value: label of the organ, such as 5; None takes all that is not zero, such as an organ and
            its lesions, of at most three labels.
        opened: the volume's header, where it is open already.

    Returns:
        ``(x, y, z)`` bool.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: as :func:`load_volume`; if values are not whole numbers, none is ``value``, more
            than three are there and ``value`` is None or one of them touches no other, or shape or
            place in space differ from the volume's (by more than half a voxel at any corner).
    """
    header = open_header(path)
    if volume is not None:
        check_same_grid(path, header, volume, opened or open_header(volume))
    labels = read_voxels(path, header)
    if labels.dtype.kind == "f":
        # Slice by slice and in place: a mask must not cost more memory than its volume.
        if any(np.abs(plane - np.rint(plane)).max() > 1e-3 for plane in labels.T):
            raise ValueError(f"{path}: mask values are not whole numbers: threshold the mask first")
        numbers = labels.view(f"i{labels.itemsize}")
        for plane, number in zip(labels.T, numbers.T, strict=True):
            number[:] = np.rint(plane)
        labels = numbers
    if labels.dtype.kind != "u" and labels.min() < 0:
        raise ValueError(f"{path}: mask values from {labels.min()}: write 0 outside, 1 inside")
    if os.path.basename(path).lower() == "liver.nii.gz" and labels.max() == 1:
        value = None  # TotalSegmentator's file of one organ, whatever the label in its maps
    if re.search(r"_part_551\.nii(\.gz)?$", str(path), re.I):  # of CADS, whose labels are its own
        value = 5
    if value is None:
        most = labels.max()
        if most > 3:  # also 1 and 255, which often says "ignore"
            there = sorted(set().union(*(np.unique(plane).tolist() for plane in labels.T)) - {0})
            if len(there) > 1 and most == 255:
                found = (
                    f"{len(there)} values up to 255, a mask with soft edges, a map of organs, or"
                )
                found += " voxels to ignore"
                advice = "threshold it first, or say which is the liver (mask_value)"
                raise ValueError(f"{path}: {found}: {advice}")
            if len(there) > 1 and there[0] > 1 and most <= 117:  # TotalSegmentator's, of a few
                raise ValueError(
                    f"{path}: labels {', '.join(map(str, there))} without a 1, as of some organs"
                    " of a map: say which is the liver (mask_value)"
                )
            if len(there) > 3:
                raise ValueError(
                    f"{path}: {len(there)} labels ({', '.join(map(str, there[:5]))}, ...), a map of"
                    " several organs: say which is the liver (mask_value); if all are its segments,"
                    " write them as one"
                )
        if most > 1 and (lone := _lone_labels(labels)):
            raise ValueError(
                f"{path}: labels that touch no other ({lone}), as of several organs and not of"
                " lesions: say which is the liver (mask_value)"
            )
        return labels != 0
    found = labels == value
    if not found.any():
        there = ", ".join(map(str, np.unique(labels)[:10]))
        raise ValueError(
            f"{path}: no voxel has the value {value}, there are {there}: correct mask_value"
        )
    return found


def _lone_labels(labels: np.ndarray) -> list[int]:
    """Of several labels, those that have no face in common with another, plane by plane."""
    there, touching, below = set(), set(), np.zeros_like(labels[:, :, 0])
    for plane in np.moveaxis(labels, 2, 0):
        there.update(np.unique(plane).tolist())
        sides = (plane, below), (plane[1:], plane[:-1]), (plane[:, 1:], plane[:, :-1])
        for one, other in sides:
            meet = (one != other) & (one != 0) & (other != 0)
            touching.update(one[meet].tolist(), other[meet].tolist())
        below = plane
    there.discard(0)
    return sorted(there - touching) if len(there) > 1 else []


def window(hu: np.ndarray, low: float = -100.0, high: float = 400.0) -> np.ndarray:
    r"""Hounsfield units to bytes (WSP, section 3: window [-100, 400]).

    :math:`255\,(\mathrm{clip}(h, l, u) - l) / (u - l)`, rounded. Values outside the
    window are clipped first and never wrap; padding such as -3024 becomes 0.

    Args:
        hu: any shape, HU.
        low, high: the window, HU.

    Returns:
        The same shape, uint8.

    Raises:
        ValueError: if ``low`` is not below ``high`` or a value is NaN.
    """
    if not low < high:
        raise ValueError(f"window [{low}, {high}] HU: the first value must be below the second")
    clipped = np.clip(np.asarray(hu, dtype=np.float32), low, high)
    if np.isnan(clipped).any():
        raise ValueError(f"{int(np.isnan(clipped).sum())} values are NaN: no window fits them")
    return np.rint((clipped - low) * (255.0 / (high - low))).astype(np.uint8)


def central_slices(mask: np.ndarray, fraction: float = 0.7) -> np.ndarray:
    r"""Slices in the middle of the masked organ, symmetric about it (WSP, section 3: 70 %).

    Of the n slices between the first and the last that hold mask, as many are left out at the
    bottom as at the top: :math:`n(1-f)/2` each, rounded to the nearest, a half downwards, and never
    all. So n = 1, 2, 3, 5, 10, 20 keep 1, 2, 3, 3, 8, 14 at f = 0.7. Paper silent on the rounding.

    Args:
        mask: ``(x, y, z)``, canonical, not zero inside the organ. Slices without mask inside the
            range count.
        fraction: share f of the slices to keep, in (0, 1].

    Returns:
        Rising slice numbers along z, ``(n_kept,)``, without gaps, at least one.

    Raises:
        ValueError: if the mask is empty, not 3-D or holds NaN, or the fraction is outside (0, 1].
    """
    mask = np.asarray(mask)
    if mask.ndim != 3:
        raise ValueError(f"mask of shape {mask.shape}: give a volume (x, y, z)")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction {fraction}: choose a value in (0, 1]")
    if mask.dtype.kind == "f" and np.isnan(mask).any():
        raise ValueError("mask with NaN, which is not zero: write 0 outside the organ")
    inside = np.flatnonzero(mask.any(axis=(0, 1)))
    if not len(inside):
        raise ValueError("the mask is empty: no slice to keep; leave the mask out or draw it")
    first, last = int(inside[0]), int(inside[-1])
    n = last - first + 1
    # The small number keeps an exact half (n = 10, f = 0.7) on its side of the rounding.
    left_out = min(max(0, math.ceil(n * (1 - fraction) / 2 - 0.5 - 1e-9)), (n - 1) // 2)
    return np.arange(first + left_out, last - left_out + 1)


def body_slices(hu, above: float = BODY_HU) -> np.ndarray:
    """All slices from the first to the last that show the body: for volumes without a mask.

    A slice shows the body if more than 5 % of its pixels are above -300 HU (paper silent): air and
    lung are not, and a bare table is less. Corners of one value, such as a padding of 0, are none.

    Args:
        hu: ``(x, y, z)``, HU; an array or :class:`wspnb.data.inventory.Hu`.
        above: what is brighter is body, HU.

    Returns:
        Rising slice numbers along z, without gaps, at least one.

    Raises:
        ValueError: if no slice shows a body.
    """
    planes = (hu[:, :, z] for z in range(hu.shape[2]))
    shares = [(plane > above).mean() - _filled(plane, above) for plane in planes]
    inside = np.flatnonzero(np.array(shares) > BODY_SHARE)
    if not len(inside):
        raise ValueError(
            f"no slice shows a body ({BODY_SHARE:.0%} above {above:g} HU): are the voxels HU?"
        )
    return np.arange(inside[0], inside[-1] + 1)


def _filled(plane: np.ndarray, above: float) -> float:
    """Share of a plane that has the value of its four corners, where that is above the limit."""
    ends = plane[np.ix_((0, -1), (0, -1))]
    alike = ends[0, 0] > above and (ends == ends[0, 0]).all()
    return float((plane == ends[0, 0]).mean()) if alike else 0.0


def slice_positions(n: int, convention: str = "k/(n-1)") -> np.ndarray:
    """Position of each kept slice between the lowest and the highest (WSP, section 2: d in [0, 1]).

    Args:
        n: number of kept slices.
        convention: "k/(n-1)" reaches 1 (paper: position over maximal position); "k/n" is the
            released code.

    Returns:
        ``(n,)`` float64, rising from 0 = lowest. A single slice is the organ's middle and gets 0.5
        with "k/(n-1)", where the formula is 0/0 (paper silent), and 0 with "k/n".

    Raises:
        ValueError: if n is below 1 or the convention is another.
    """
    if n < 1 or n % 1:
        raise ValueError(f"{n} slices: at least one has a position")
    if convention == "k/n":
        return np.arange(n) / n
    if convention == "k/(n-1)":
        return np.arange(n) / (n - 1) if n > 1 else np.array([0.5])
    raise ValueError(f"convention {convention!r}: choose 'k/(n-1)' or 'k/n'")


def to_image(plane: np.ndarray) -> np.ndarray:
    """An axial plane as radiologists look at it: front on top, the patient's right on the left.

    Args:
        plane: ``(x, y)``, or ``(x, y, n)`` for n planes.

    Returns:
        ``(h, w)`` or ``(n, h, w)``, a view.
    """
    return plane[::-1, ::-1].T if plane.ndim == 2 else plane[::-1, ::-1].transpose(2, 1, 0)


def padding(
    shape: tuple[int, int], pixel: tuple[float, float]
) -> tuple[tuple[int, int], tuple[slice, slice]]:
    """Where :func:`resize` puts an image: pixels of the square in mm around it, and its place."""
    side = max(shape[0] * pixel[0], shape[1] * pixel[1])  # mm
    square = tuple(max(n, round(side / p)) for n, p in zip(shape, pixel, strict=True))
    start = [(s - n) // 2 for s, n in zip(square, shape, strict=True)]
    return square, tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))


def resize(
    image: np.ndarray, size: int, pixel: tuple[float, float] = (1.0, 1.0), air: float = -1000.0
) -> np.ndarray:
    """An image as a square of ``size`` pixels: padded to a square in mm, then interpolated.

    Bilinear with antialiasing (paper silent), so that a fine pixel does not alias in a small image.
    The image keeps its proportions, also with pixels that are not square.

    Args:
        image: ``(h, w)``, HU. Clip it to the window first: else padding of -3024 or metal of 3000
            HU bleeds into its neighbours.
        size: pixels a side.
        pixel: height and width of a pixel, mm.
        air: value of the padding.

    Returns:
        ``(size, size)`` float32.
    """
    square, inside = padding(image.shape, pixel)
    padded = np.full(square, air, dtype=np.float32)
    padded[inside] = image
    if square == (size, size):
        return padded
    return np.array(Image.fromarray(padded).resize((size, size), Image.Resampling.BILINEAR))


def write_image(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """NIfTI in mm, gzipped without name or date: equal images are equal files."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    with whole(path) as temporary, temporary.open("wb") as file:
        with gzip.GzipFile("", "wb", 1, file, mtime=0) as packed:
            image.to_stream(packed)
