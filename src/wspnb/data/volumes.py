"""CT volumes from NIfTI: orientation, Hounsfield units, window, kept slices, positions.

Everywhere here an array is ``(x, y, z)`` with x to the patient's right, y to the front and z to the
head (RAS+), so that depth always runs from the feet to the head, however the file stores it.
"""

import gzip
import math
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from wspnb.files import whole

# Paper silent on slices without a mask: a slice shows the body where this share of its pixels is
# denser than fat and air.
BODY_HU, BODY_SHARE = -300.0, 0.05
DEFLATE = 1032  # times at most that gzip makes a file smaller


class Scan(NamedTuple):
    """A volume with the numbers of its file, on canonical axes; a plane costs memory, not all."""

    voxels: np.ndarray  # (x, y, z), any strides, as stored
    slope: float
    intercept: float
    spacing: np.ndarray  # (3,), mm
    axes: str  # of the file, such as LPS
    oblique: float  # largest angle between an axis and the body's nearest, degrees


class _Header(NamedTuple):
    image: nib.spatialimages.SpatialImage
    shape: tuple[int, ...]  # canonical
    affine: np.ndarray  # canonical, (4, 4)
    orientation: np.ndarray  # from the file to canonical


def load_volume(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """A CT volume in Hounsfield units and canonical orientation.

    The header's slope and intercept are applied. An oblique volume takes the closest canonical axes
    without resampling; its spacing is the length of the affine's columns.

    Args:
        path: NIfTI file (.nii, .nii.gz) or another format that nibabel reads with an affine.

    Returns:
        ``(x, y, z)`` float32, HU, a view with any strides; and the spacing ``(3,)``, mm.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is unreadable or truncated, not one 3-D volume of plain numbers,
            without a valid affine, or has voxels that are not finite.
    """
    scan = read_scan(path)
    return scaled(scan.voxels, scan), scan.spacing


def read_scan(path: str | Path) -> Scan:
    """A CT volume as it is stored, turned to canonical axes; :func:`scaled` makes its values.

    Args, Raises: as :func:`load_volume`, which holds all values as float32 at once.
    """
    header = _open(path)
    proxy = header.image.dataobj
    raw = hasattr(proxy, "get_unscaled")
    cosines = header.affine[:3, :3] / _spacing(header.affine)
    return Scan(
        _load(path, header, raw=raw),
        float(proxy.slope) if raw else 1.0,
        float(proxy.inter) if raw else 0.0,
        _spacing(header.affine),
        "".join(nib.aff2axcodes(header.image.affine)),
        round(float(np.degrees(np.arccos(np.clip(np.abs(np.diag(cosines)), 0, 1))).max()), 2),
    )


def scaled(voxels: np.ndarray, scan: Scan) -> np.ndarray:
    """Voxels of a scan, any shape, with slope and intercept applied: float32."""
    values = voxels.astype(np.float32)
    if (scan.slope, scan.intercept) != (1, 0):
        values *= np.float32(scan.slope)
        values += np.float32(scan.intercept)
    return values


def load_mask(
    path: str | Path, volume: str | Path | None = None, value: int | None = None
) -> np.ndarray:
    """A mask in canonical orientation, checked against the volume that it belongs to.

    Args:
        path: NIfTI file of whole numbers.
        volume: path of the volume; its orientation in the file may differ from the mask's. None
            checks nothing.
        value: label of the organ, such as 5; None takes all that is not zero, such as an organ and
            its lesions, of at most three labels.

    Returns:
        ``(x, y, z)`` bool.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: as :func:`load_volume`; if values are not whole numbers, none is ``value``, more
            than three are there and ``value`` is None, or shape or place in space differ from the
            volume's (by more than half a voxel at any corner).
    """
    header = _open(path)
    if volume is not None:
        _check_same_grid(path, header, volume, _open(volume))
    labels = _load(path, header)
    if labels.dtype.kind == "f":
        # Slice by slice: a mask must not cost more memory than its volume.
        if any(np.abs(plane - np.rint(plane)).max() > 1e-3 for plane in labels.T):
            raise ValueError(f"{path}: mask values are not whole numbers: threshold the mask first")
        labels = np.rint(labels).astype(np.int32)
    if value is None:
        if labels.max() > 3:
            there = sorted(set().union(*(np.unique(plane).tolist() for plane in labels.T)) - {0})
            if len(there) > 3:
                raise ValueError(
                    f"{path}: {len(there)} labels ({', '.join(map(str, there[:5]))}, ...), a map of"
                    " several organs: say which is the liver (mask_value)"
                )
        return labels != 0
    found = labels == value
    if not found.any():
        there = ", ".join(map(str, np.unique(labels)[:10]))
        raise ValueError(
            f"{path}: no voxel has the value {value}, there are {there}: correct mask_value"
        )
    return found


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
        ValueError: if the mask is empty or not 3-D, or the fraction is outside (0, 1].
    """
    mask = np.asarray(mask)
    if mask.ndim != 3:
        raise ValueError(f"mask of shape {mask.shape}: give a volume (x, y, z)")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction {fraction}: choose a value in (0, 1]")
    inside = np.flatnonzero((mask != 0).any(axis=(0, 1)))
    if not len(inside):
        raise ValueError("the mask is empty: no slice to keep; leave the mask out or draw it")
    first, last = int(inside[0]), int(inside[-1])
    n = last - first + 1
    # The small number keeps an exact half (n = 10, f = 0.7) on its side of the rounding.
    left_out = min(max(0, math.ceil(n * (1 - fraction) / 2 - 0.5 - 1e-9)), (n - 1) // 2)
    return np.arange(first + left_out, last - left_out + 1)


def body_slices(hu: np.ndarray) -> np.ndarray:
    """All slices from the first to the last that show the body: for volumes without a mask.

    Paper silent. A slice shows the body if more than 5 % of its pixels are above -300 HU: air and
    lung are not, and a bare table is less.

    Args:
        hu: ``(x, y, z)``, HU.

    Returns:
        Rising slice numbers along z, without gaps, at least one.

    Raises:
        ValueError: if no slice shows a body.
    """
    return body_range([(hu[:, :, z] > BODY_HU).mean() for z in range(hu.shape[2])])


def body_range(shares: list[float]) -> np.ndarray:
    """:func:`body_slices` from each slice's share of pixels denser than fat and air."""
    inside = np.flatnonzero(np.asarray(shares) > BODY_SHARE)
    if not len(inside):
        raise ValueError(
            f"no slice shows a body ({BODY_SHARE:.0%} above {BODY_HU:g} HU): are the voxels HU?"
        )
    return np.arange(inside[0], inside[-1] + 1)


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
    if n < 1:
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
    batch = torch.from_numpy(padded)[None, None]
    resized = torch.nn.functional.interpolate(
        batch, (size, size), mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0, 0].numpy()


def _open(path: str | Path) -> _Header:
    """A volume's header, checked; no voxel is read."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        image = nib.load(path)
        shape, kind = tuple(image.shape), image.get_data_dtype()
        affine = np.asarray(getattr(image, "affine", None), dtype=float)
    except Exception as error:  # whatever nibabel meets in a file that is no image
        raise ValueError(
            f"{path}: not readable as NIfTI ({_first_line(error)}): convert it again"
        ) from error
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"{path}: shape {image.shape}, not one 3-D volume: split or convert it")
    if kind.fields is not None or kind.kind not in "iufb":
        raise ValueError(f"{path}: voxels of type {kind}, not plain numbers: convert it to HU")
    spacing = _spacing(affine) if affine.shape == (4, 4) else np.array([np.nan])
    if isinstance(image, nib.Nifti1Image) and not image.header["sform_code"]:
        spacing = np.where(_raw_zooms(image) > 0, spacing, 0)  # nibabel has made a 0 to 1 mm
    if (
        not np.isfinite(affine).all()
        or not (spacing > 0).all()
        or abs(np.linalg.det(affine[:3, :3])) < 1e-3 * spacing.prod()
    ):
        raise ValueError(
            f"{path}: no valid affine (spacing {spacing} mm): write it into the header"
        )
    if isinstance(image, nib.Nifti1Image) and not (
        image.header["sform_code"] or image.header["qform_code"]
    ):
        raise ValueError(
            f"{path}: no valid affine (sform and qform are both 'unknown'), so feet and head cannot"
            " be told apart: write the orientation into the header"
        )
    orientation = io_orientation(affine)
    return _Header(
        image,
        tuple(int(shape[i]) for i in np.argsort(orientation[:, 0])),
        affine @ inv_ornt_aff(orientation, shape),
        orientation,
    )


def _load(path: str | Path, header: _Header, raw: bool = False) -> np.ndarray:
    """The voxels of an opened volume, canonical, all finite; raw leaves slope and intercept out."""

    def read(image):
        return image.dataobj.get_unscaled() if raw else np.asanyarray(image.dataobj)

    try:
        _check_size(path, header.image)
        if str(path).endswith(".gz") and hasattr(header.image, "from_stream"):
            with gzip.open(path) as stream:  # once, without nibabel's cache
                stream.readinto = lambda buffer: _fill(stream, buffer)
                array = read(type(header.image).from_stream(stream))
                while stream.read(1 << 20):  # to the end, where gzip verifies its checksum
                    pass
        else:
            array = read(header.image)
    except MemoryError:
        raise
    except Exception as error:  # truncated or damaged in any of several ways
        raise ValueError(
            f"{path}: damaged or truncated ({_first_line(error)}): copy it again"
        ) from error
    if array.dtype.kind == "f":  # plane by plane: a copy of all would double the memory
        bad = sum(plane.size - int(np.count_nonzero(np.isfinite(plane))) for plane in array.T)
        if bad:
            raise ValueError(f"{path}: {bad} of {array.size} voxels are not finite: replace them")
    return apply_orientation(array.reshape(array.shape[:3]), header.orientation)


def _check_size(path: str | Path, image: nib.spatialimages.SpatialImage) -> None:
    """Refuse a header that asks for more than the file can hold, before memory is asked for it."""
    need = math.prod(image.shape) * image.get_data_dtype().itemsize
    most = Path(path).stat().st_size * (DEFLATE if str(path).endswith(".gz") else 1)
    if str(path).endswith((".nii", ".nii.gz")) and need > most:
        raise ValueError(f"shape {image.shape} in the header, which the file is too small for")


def _fill(stream: gzip.GzipFile, buffer) -> int:
    """readinto by pieces: GzipFile's own makes a second copy of all that it reads."""
    view, filled = memoryview(buffer).cast("B"), 0
    while piece := stream.read(min(1 << 20, len(view) - filled)):
        view[filled : filled + len(piece)] = piece
        filled += len(piece)
    return filled


def _spacing(affine: np.ndarray) -> np.ndarray:
    """Voxel size in mm: the lengths of the affine's columns."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def _raw_zooms(image: nib.Nifti1Image) -> np.ndarray:
    """Voxel size as the file has it, ``(3,)``, before nibabel corrects it."""
    with image.file_map["header" if "header" in image.file_map else "image"].get_prepare_fileobj(
        "rb"
    ) as file:
        return np.abs(type(image.header).from_fileobj(file, check=False)["pixdim"][1:4])


def _check_same_grid(path, mask: _Header, volume_path, volume: _Header) -> None:
    if mask.shape != volume.shape:
        raise ValueError(
            f"{path}: mask of shape {mask.shape}, but {volume_path} has {volume.shape}:"
            " resample the mask to the volume"
        )
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(volume.shape) - 1)
    homogeneous = np.c_[corners, np.ones(8)].T
    shift = np.linalg.norm(((mask.affine - volume.affine) @ homogeneous)[:3], axis=0).max()
    if shift > 0.5 * _spacing(volume.affine).min():
        raise ValueError(
            f"{path}: the mask's affine puts it {shift:.1f} mm away from {volume_path}:"
            " resample the mask to the volume"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def write_image(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """NIfTI in mm, gzipped without name or date: equal images are equal files."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    with whole(path) as temporary, temporary.open("wb") as file:
        with gzip.GzipFile("", "wb", 1, file, mtime=0) as packed:
            packed.write(image.to_bytes())
