"""What a volume's file says of itself, checked before it is believed; the same for every format.

A header can be wrong without being damaged: no orientation, an identity that some tool left there,
metres or micrometres, a sheared grid, two places that differ. Each is refused by name with what to
do, as every position and every millilitre hangs on it.
"""

import gzip
import io
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.brikhead import AFNIImage
from nibabel.openers import Opener
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from wspnb.files import naming

# Formats whose files say where front, right and head are. Analyze and its kin do not.
FORMATS = (nib.Nifti1Pair, nib.MGHImage, AFNIImage, nib.Minc1Image)
UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # NIfTI's xyzt_units in mm; 0, unknown: taken as mm
SPACING = (0.01, 100.0)  # mm, beyond which no voxel of a body scan is
DEFLATE, BZIP2 = 1032, 25_000  # times at most that these make a file smaller
NIFTI = {int.from_bytes(n.to_bytes(4, e), "little") for n in (348, 540) for e in ("little", "big")}
PLACELESS = "which holds no place and spacing known here: write a NIfTI from the source (DICOM)"
OTHERS = {  # how files begin that are no volume, and what to do
    b"PK\3\4": f"a zip archive, not a NIfTI: unpack it (of NumPy, .npz: {PLACELESS})",
    b"version https://git-lfs": "a pointer of Git LFS, not the file: fetch it (git lfs pull)",
    b"<": "a web page or XML, not a NIfTI: download the file again",
    b"NRRD": "a NRRD, which is not read here: convert it to NIfTI (3D Slicer, SimpleITK)",
    b"\xfd7zXZ": "compressed with xz, not with gzip: unpack it",
    b"Rar!": "a RAR archive, not a NIfTI: unpack it",
    b"7z\xbc\xaf": "a 7z archive, not a NIfTI: unpack it",
    b"/annex/": "a pointer of git-annex, not the file: fetch it (git annex get)",
    b"BZh": "compressed with bzip2, not with gzip: unpack it, or let its name end in .bz2",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard, not with gzip: unpack it",
    b"\x1f\x8b": "compressed with gzip twice: unpack it once",
    b"\x93NUMPY": f"a NumPy array, {PLACELESS}",
    b"MATLAB": f"a MATLAB file, {PLACELESS}",
    b"\x89HDF": f"HDF5, {PLACELESS} (a MINC needs h5py)",
}
META = "a MetaImage, not read here: convert it to NIfTI (3D Slicer, SimpleITK)"
OTHERS |= dict.fromkeys((b"ObjectType", b"NDims", b"Comment", b"BinaryData"), META)
ANOTHER = "resample the mask to the volume, unless it is another volume's"
SHEAR = 0.01  # sine of the largest angle by which axes may miss a right one


class Header(NamedTuple):
    """A volume's header, checked."""

    image: nib.spatialimages.SpatialImage
    shape: tuple[int, ...]  # canonical
    affine: np.ndarray  # canonical, (4, 4), mm
    orientation: np.ndarray  # from the file to canonical
    stored: np.ndarray  # affine of the file's own axes, (4, 4), mm

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size, ``(3,)``, mm: the lengths of the affine's columns."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel, ml: the determinant, right for any axes."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000


def open_header(path: str | Path) -> Header:
    """A volume's header; no voxel is read.

    Args:
        path: NIfTI (.nii, .nii.gz, .hdr/.img), AFNI, MGH or MINC.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is unreadable, of a format without orientation, not one 3-D volume of
            plain numbers, or if its place in space is missing, an exact identity, sheared,
            contradictory or of no body's size.
    """
    path = Path(path)
    if path.is_dir():
        advice = "convert its DICOM series (python -m wspnb.data.dicom), or name a file in it"
        raise ValueError(f"{path}: a folder, not a volume: {advice}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file: correct the path")
    try:
        image = nib.load(path)
        shape, kind = tuple(image.shape), image.get_data_dtype()
        affine = np.array(getattr(image, "affine", None), dtype=float)
    except Exception as error:  # whatever nibabel meets in a file that is no image
        found = f"not readable as NIfTI ({_first_line(error)}): convert it again"
        raise ValueError(f"{path}: {_misnamed(path) or found}") from error
    if not isinstance(image, FORMATS):
        found = f"{type(image).__name__} does not say which way is up or right"
        raise ValueError(f"{path}: {found}: convert it to NIfTI from the source (DICOM)")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"{path}: shape {image.shape}, not one 3-D volume: split or convert it")
    if kind.fields is not None or kind.kind not in "iufb":
        raise ValueError(f"{path}: voxels of type {kind}, not plain numbers: convert it to HU")
    if isinstance(image, nib.Nifti1Image):
        if (first := image.dataobj.offset) < image.header.single_vox_offset:
            found = f"its voxels begin at byte {first}, within the header (vox_offset)"
            raise ValueError(f"{path}: {found}: convert it again")
    if problem := _affine_problem(image, affine):
        raise ValueError(f"{path}: {problem}")
    if isinstance(image, nib.Nifti1Pair):  # the others have mm
        affine[:3] *= UNITS.get(int(image.header["xyzt_units"]) & 7, np.nan)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not (SPACING[0] <= spacing.min() and spacing.max() <= SPACING[1]):
        advice = "correct the header's spacing or unit (xyzt_units)"
        raise ValueError(f"{path}: voxels of {spacing} mm, no body scan's: {advice}")
    orientation = io_orientation(affine)
    canonical = affine @ inv_ornt_aff(orientation, shape)
    shape = tuple(int(shape[i]) for i in np.argsort(orientation[:, 0]))
    return Header(image, shape, canonical, orientation, affine)


def read_voxels(path: str | Path, header: Header, raw: bool = False) -> np.ndarray:
    """The voxels of an opened volume, canonical, all finite.

    Args:
        path, header: as given to :func:`open_header`, and what it gave.
        raw: leave slope and intercept of a NIfTI out.

    Raises:
        ValueError: if the file is damaged or truncated, or a voxel is not finite.
    """

    try:
        data = str(header.image.file_map["image"].filename)
        packed = data.lower().endswith((".gz", ".mgz"))
        need, more = _check_size(data, header.image, packed), 0
        nifti = isinstance(header.image, nib.Nifti1Pair)  # others have their notes behind
        with _gunzip(data) if packed else Opener(data) as stream:
            if packed and hasattr(header.image, "from_stream"):  # once, without nibabel's cache
                stream.readinto = lambda buffer: _fill(stream, buffer)
                array = _read(type(header.image).from_stream(stream), raw)
            else:
                array = _read(header.image, raw)
            closed = isinstance(header.image, (nib.Nifti1Pair, nib.MGHImage, AFNIImage))
            if closed:
                stream.seek(header.image.dataobj.offset + need)
            while (packed or closed) and (piece := stream.read(1 << 20)):  # to gzip's checksum
                more += len(piece.strip(b"\0"))
            if more and (nifti or more >= math.prod(header.image.shape[:2])):
                found = f"{more} bytes behind the voxels of shape {header.image.shape}"
                raise ValueError(f"{found}: another volume, or slices that the header leaves out")
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


def _read(image: nib.spatialimages.SpatialImage, raw: bool) -> np.ndarray:
    """All voxels; of a NIfTI that makes 64 bits of each plane by plane, as 32, which are enough."""
    proxy, kind, shape = image.dataobj, image.get_data_dtype(), image.shape
    plain = isinstance(image, nib.Nifti1Pair) and (proxy.slope, proxy.inter) == (1, 0)
    if not isinstance(image, nib.Nifti1Pair) or (kind.itemsize <= 4 if plain else raw):
        return proxy.get_unscaled() if raw else np.asanyarray(proxy)
    voxels = np.empty(shape[:3], np.int32 if plain and kind.kind in "iu" else np.float32, "F")
    for k in range(shape[2]):
        plane = proxy[(slice(None), slice(None), k, *(0 for _ in shape[3:]))]
        with np.errstate(over="ignore"):  # is infinite then, and found
            voxels[:, :, k] = plane
        if voxels.dtype.kind == "i" and (voxels[:, :, k] != plane).any():
            raise ValueError(f"numbers beyond 32 bits in slice {k}")
    return voxels


def _misnamed(path: Path) -> str:
    """What a file is that its name does not say, and what to do; empty where that does not show."""
    with naming(path), path.open("rb") as file:  # no right, a bad disk: this error says it
        begin = file.read(300)
    gz, packed = begin[:2] == b"\x1f\x8b", path.suffix.lower() in (".gz", ".mgz")
    stem, half = path.with_suffix("") if packed else path, {".img": ".hdr", ".hdr": ".img"}
    if other := half.get(stem.suffix.lower()):
        ends = [end + gz for end in (other, other.upper()) for gz in ("", ".gz")]
        if not any(stem.with_suffix(end).exists() for end in ends):
            return f"half of a pair, and {stem.with_suffix(other).name} is missing: copy it beside"
    if gz and not packed:
        return f"compressed with gzip, which its name does not say: rename it to {path.name}.gz"
    if packed and int.from_bytes(begin[:4], "little") in NIFTI:
        return f"not compressed, though its name ends in {path.suffix}: rename it to {path.stem}"
    if gz:
        begin = b""  # of what is damaged, this stays
        with suppress(OSError, EOFError, zlib.error), gzip.open(path) as file:
            begin = file.read(300)
    if begin[257:262] == b"ustar":
        return "a tar archive, not a NIfTI: unpack it"
    if begin[128:132] == b"DICM":
        way = "convert a series with python -m wspnb.data.dicom, a mask (SEG) with 3D Slicer"
        return f"a DICOM file, not a NIfTI: {way}"
    return next((words for start, words in OTHERS.items() if begin.startswith(start)), "")


def check_same_grid(path, mask: Header, volume_path, volume: Header) -> None:
    """Refuse a mask of another shape, or more than half a voxel away at any corner."""
    if mask.shape != volume.shape:
        found = f"mask of shape {mask.shape}, but {volume_path} has {volume.shape}"
        raise ValueError(f"{path}: {found}: {ANOTHER}")
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(volume.shape) - 1)
    homogeneous = np.c_[corners, np.ones(8)].T
    shift = np.linalg.norm(((mask.affine - volume.affine) @ homogeneous)[:3], axis=0).max()
    if shift > 0.5 * volume.spacing.min():
        found = f"the mask's affine puts it {shift:.1f} mm away from {volume_path}"
        raise ValueError(f"{path}: {found}: {ANOTHER}")


def _affine_problem(image: nib.spatialimages.SpatialImage, affine: np.ndarray) -> str:
    """What is wrong with a volume's place in space, and what to do; empty if nothing is."""
    if affine.shape != (4, 4):
        return "no valid affine: write it into the header"
    spacing, nifti = np.linalg.norm(affine[:3, :3], axis=0), isinstance(image, nib.Nifti1Pair)
    codes = [int(image.header[f"{name}_code"]) for name in ("sform", "qform")] if nifti else [1, 0]
    if nifti and not codes[0]:
        spacing = np.where(_raw_zooms(image) > 0, spacing, 0)  # nibabel has made a 0 to 1
    volume = abs(np.linalg.det(affine[:3, :3])) if np.isfinite(affine).all() else np.nan
    if not (spacing > 0).all() or not volume >= 1e-3 * spacing.prod():
        return f"no valid affine (spacing {spacing} mm): write it into the header"
    if not any(codes):
        return (
            "no valid affine (sform and qform are both 'unknown'), so feet and head cannot be told"
            " apart: write the orientation into the header"
        )
    if isinstance(image, nib.MGHImage):
        with _open(image) as file:
            if not file.read(30)[28:].strip(b"\0"):
                return "no valid affine (goodRASFlag is 0): write the orientation into the header"
    if np.allclose(np.abs(affine), np.eye(4), 0, 1e-4):  # ITK's own identity is -1, -1, 1
        return (
            "its affine is the identity, as where an array was saved without its place: voxels of"
            " 1 mm, and feet and head unknown. Write the true affine into the header; if this is"
            " the truth, any other origin says so"
        )
    cosines = affine[:3, :3] / spacing
    skew = np.abs(cosines.T @ cosines - np.eye(3)).max()
    if skew > SHEAR:
        return (
            f"sheared affine, axes {math.degrees(math.asin(min(skew, 1))):.1f} degrees off a right"
            " angle (tilted gantry): resample it to straight axes first"
        )
    found = "the header contradicts itself"
    sizes = _raw_zooms(image)
    if codes[0] and not (np.abs(sizes / spacing - 1) <= 0.01).all():  # also NaN
        names = ("pixdim", "sform") if nifti else ("their size", "their axes")
        sizes = f"voxels of {sizes} by {names[0]}, {spacing} by {names[1]}"
        return f"{found}: {sizes}: correct the wrong one"
    if nifti and all(codes):
        try:
            qform = image.get_qform()
            ways = ["".join(nib.aff2axcodes(a)) for a in (qform, affine)]
        except (ValueError, np.linalg.LinAlgError):
            return f"{found}: its quaternion is none: set qform_code to 0, or correct it"
        if np.abs(qform[:3, :3] / spacing - cosines).max() > 0.05:
            axes = f"axes {ways[0]} by qform, {ways[1]} by sform"
            return f"{found}: {axes}: correct the wrong one, or set its code to 0"
        places = [np.round(a[:3, 3], 2).tolist() for a in (qform, affine)]
        away = np.linalg.norm(np.subtract(*places))
        if codes[0] == codes[1] and away > spacing.max():  # of other codes, of other spaces
            origins = f"origin {places[0]} by qform, {places[1]} by sform"
            return f"{found}: {origins}: correct the wrong one, or set its code to 0"
    return ""


def _open(image: nib.spatialimages.SpatialImage):
    """The file of an image's header, to see it before nibabel fills in what is missing."""
    files = image.file_map
    return files.get("header", files["image"]).get_prepare_fileobj("rb")


def _raw_zooms(image: nib.spatialimages.SpatialImage) -> np.ndarray:
    """Voxel size as the file has it, ``(3,)``, before nibabel corrects it."""
    if isinstance(image, AFNIImage):
        return np.abs(image.header.info["DELTA"])
    if not isinstance(image, nib.Nifti1Pair):
        return np.abs(image.header.get_zooms()[:3])
    with _open(image) as file:
        return np.abs(type(image.header).from_fileobj(file, check=False)["pixdim"][1:4])


def _check_size(data: str, image: nib.spatialimages.SpatialImage, packed: bool) -> int:
    """Bytes of the voxels. A header that asks for more than the file can hold is refused, before
    memory is asked for it."""
    need = math.prod(image.shape) * image.get_data_dtype().itemsize
    blocks = data.lower().endswith(".bz2")
    most = Path(data).stat().st_size * (DEFLATE if packed else BZIP2 if blocks else 1)
    ends = (".gz", ".mgz", ".nii", ".img", ".brik", ".mgh", ".bz2")
    if data.lower().endswith(ends) and need > most:
        raise ValueError(f"shape {image.shape} in the header, which the file is too small for")
    return need


class _Pieces(io.FileIO):
    """A packed file that gives 64 KB where gzip asks for 8, as in Python 3.11: that is quicker."""

    def read(self, size=-1):
        return super().read(1 << 16 if size == io.DEFAULT_BUFFER_SIZE else size)


@contextmanager
def _gunzip(path: str) -> Iterator[gzip.GzipFile]:
    with _Pieces(path) as file, gzip.GzipFile(fileobj=file) as stream:
        yield stream


def _fill(stream: gzip.GzipFile, buffer) -> int:
    """readinto by pieces: GzipFile's own makes a second copy of all that it reads."""
    view, filled = memoryview(buffer).cast("B"), 0
    while piece := stream.read(min(1 << 20, len(view) - filled)):
        view[filled : filled + len(piece)] = piece
        filled += len(piece)
    return filled


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
