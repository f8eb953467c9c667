"""DICOM series to NIfTI in Hounsfield units, one per patient; needs the extra ``dicom``.

pydicom reads every header, so that each file below a folder is used or named with its reason, and
slices are compared one by one; SimpleITK decodes the pixels, a file at a time. Nothing is converted
from a part of a series: a file that cannot be read might belong to it.

    python -m wspnb.data.dicom DICOM_FOLDER NIFTI_FOLDER [--series UID ...]
"""

import filecmp
import os
import sys
import tempfile
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from wspnb.data.volumes import write_image

DEFLATED, END = "1.2.840.10008.1.2.1.99", b"\xfe\xff\xdd\xe0\0\0\0\0"  # of packed pixels
# What must be the same in all slices of a series.
SAME = ("PatientID", "Modality", "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient")
SAME += ("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit")
SAME += ("PixelRepresentation", "RescaleSlope", "RescaleIntercept", "RescaleType", "ImageType")
SAME += ("FrameOfReferenceUID", "ConvolutionKernel", "SliceThickness")
# What may change from one block of slices to the next, but not to and fro.
BLOCKS = ("AcquisitionNumber", "AcquisitionUID", "TemporalPositionIdentifier", "AcquisitionTime")
BLOCKS += ("TriggerTime", "NominalPercentageOfCardiacPhase")
RESCALE = ("RescaleSlope", "RescaleIntercept")
TAGS = (*SAME, *BLOCKS, "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "NumberOfFrames")
TAGS += ("ImagePositionPatient", "SeriesDescription", "ContrastBolusAgent")


class File(NamedTuple):
    """A file below a folder: an image, or why it is none."""

    path: str
    tags: dict[str, Any]  # of :data:`TAGS`, numbers as floats; empty where it is no DICOM
    reason: str = ""  # why it cannot be used
    damaged: bool = False  # it may be a slice that is lost


def index(folder: str | Path) -> list[File]:
    """Every file below a folder, whatever its name; links are followed.

    Raises:
        ImportError: if the extra ``dicom`` is not installed.
    """
    _need()
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link that leads to a folder above, or twice to one
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        found += [_read_file(os.path.join(place, name)) for name in sorted(names)]
    return found


def find_series(folder: str | Path, files: list[File] | None = None) -> dict[str, list[File]]:
    """Images of each series below a folder, damaged ones among them."""
    found: dict[str, list[File]] = {}
    for file in index(folder) if files is None else files:
        if uid := file.tags.get("SeriesInstanceUID"):
            found.setdefault(uid, []).append(file)
    return found


def convert_series(
    folder: str | Path,
    out: str | Path,
    series: tuple[str, ...] = (),
    files: list[File] | None = None,
) -> Path:
    """One CT series as NIfTI: HU (rescale slope and intercept applied), place and axes kept.

    Args:
        folder: of one patient, with its files anywhere below.
        out: the NIfTI file, ``.nii.gz``.
        series: wanted SeriesInstanceUIDs; may hold those of other patients. Empty where a folder
            holds one series.
        files: of :func:`index`, to save a second reading.

    Returns:
        The file.

    Raises:
        ImportError: if the extra ``dicom`` is not installed.
        ValueError: if there is no series, or not exactly one that is wanted (all are listed); if a
            file of it is damaged, or one that may be; if slices differ in what must be the same; if
            they are no CT, not evenly spaced, of acquisitions that overlap, or tilted.
    """
    out, shown = Path(out), printable(folder)
    files = index(folder) if files is None else files
    found = find_series(folder, files)
    wanted = {uid: own for uid, own in found.items() if not series or uid in series}
    lost = [file for file in files if file.damaged and not file.tags.get("SeriesInstanceUID")]
    if not found:
        raise ValueError(f"{shown}: no DICOM series below: correct the folder{_listed(lost)}")
    if len(wanted) != 1:
        listed = "\n".join(f"  {uid}  {_words(own)}" for uid, own in found.items())
        raise ValueError(
            f"{shown}: {len(wanted)} series to choose from, one is needed: name it with"
            f" --series UID\n{listed}"
        )
    uid, own = next(iter(wanted.items()))
    name = f"{shown}: series {uid}"
    if lost := [file for file in own if file.damaged] + lost:
        raise ValueError(
            f"{name}: {len(lost)} files below cannot be read and may be slices of it: copy them"
            f" again, or delete them if they are not needed{_listed(lost)}"
        )
    own = _without_copies(own, name)
    _check_alike(own, name)
    own, affine = _in_order(own, name)
    hu = _read_pixels(own, name)
    write_image(out, hu, affine)
    return out


def account(files: list[File], used: str = "") -> pd.DataFrame:
    """What became of each file: ``file``, ``series`` and ``use``.

    Args:
        files: of :func:`index`.
        used: SeriesInstanceUID that was converted, if one was.
    """
    rows = []
    for file in files:
        uid = file.tags.get("SeriesInstanceUID", "")
        use = file.reason or ("used" if uid == used and uid else "image, not converted")
        rows.append({"file": printable(file.path), "series": uid, "use": use})
    return pd.DataFrame(rows, columns=["file", "series", "use"])


def printable(path: str | Path) -> str:
    """A path as text; names that are not UTF-8 (old archives) are taken as Latin-1."""
    try:
        return os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        return os.fsencode(path).decode("latin-1")


def _need():
    try:
        import pydicom
        import SimpleITK
    except ImportError as error:
        raise ImportError(f"{error.name} is missing: pip install 'wspnb[dicom]'") from error
    return pydicom, SimpleITK


def _read_file(path: str) -> File:
    """One file's header, and whether its pixels are all there."""
    pydicom, _ = _need()
    if not os.path.exists(path):
        return File(path, {}, "a link that leads nowhere", True)
    if not os.path.isfile(path):
        return File(path, {}, "no regular file")
    try:
        with open(path, "rb") as stream:
            head, size = stream.read(132), os.fstat(stream.fileno()).st_size
            stream.seek(0)
            if not head.strip(b"\0"):
                return File(path, {}, "empty" if not size else "holds zeros only", True)
            if head[128:] != b"DICM" and head[:2] not in (b"\x08\0", b"\x02\0"):
                return File(path, {}, "no DICOM", path.lower().endswith((".dcm", ".ima")))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of values that are not used, or refused below
                header = pydicom.dcmread(stream, True, True, True, list(TAGS))
                tags = {name: _value(header, name) for name in TAGS}
            if not (tags["Rows"] and tags["Columns"]):
                kind = tags["SOPClassUID"] or header.file_meta.get("MediaStorageSOPClassUID", "")
                if pydicom.uid.UID(kind).name.endswith("Image Storage"):
                    return File(path, {}, "cut off within its header", True)
                return File(path, {}, f"DICOM without an image ({pydicom.uid.UID(kind).name})")
            problem = _pixels_missing(stream, header, tags, size)
    except Exception as error:  # a file cut within its header, unreadable, or no DICOM after all
        return File(path, {}, f"cannot be read ({str(error).splitlines()[0][:100]})", True)
    if not tags["SeriesInstanceUID"]:
        return File(path, {}, "an image of no series (no SeriesInstanceUID)", True)
    return File(path, tags, problem, bool(problem))


def _value(header, name: str):
    """A tag's value: text, or numbers rounded to what a written decimal holds; "" if missing."""
    try:
        value = header.get(name, "")
        if value is None or value == "":
            return ""
        if name in ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"):
            return tuple(round(float(v), 4) for v in value)
        if name in ("RescaleSlope", "RescaleIntercept", "SliceThickness"):
            return float(value)
        return str(value).strip() if not isinstance(value, int) else int(value)
    except (ValueError, TypeError, OverflowError):
        return "not readable"


def _pixels_missing(stream, header, tags, size: int) -> str:
    """Whether the file ends before its pixels do; the stream stands at their tag."""
    syntax = str(header.file_meta.get("TransferSyntaxUID", "")) if header.file_meta else ""
    if syntax == DEFLATED:  # whether all is there shows when it is unpacked
        return ""
    start = stream.tell()
    little, implicit = header.original_encoding[1], header.original_encoding[0]
    begin = stream.read(8 if implicit else 12)
    if len(begin) < (8 if implicit else 12):
        return "cut off before its pixels"
    length = int.from_bytes(begin[-4:], "little" if little else "big")
    if length == 0xFFFFFFFF:
        return "" if END in stream.read() else "cut off within its pixels"
    frames = int(tags["NumberOfFrames"] or 1) * int(tags["SamplesPerPixel"] or 1)
    need = max(length, int(tags["Rows"] * tags["Columns"] * tags["BitsAllocated"] * frames // 8))
    there = size - start - len(begin)
    return f"cut off, {there} of {need} bytes of its pixels" if min(there, length) < need else ""


def _without_copies(files: list[File], name: str) -> list[File]:
    """Of files that are equal byte by byte, the first; two images of one UID are refused."""
    first: dict[str, File] = {}
    kept = []
    for file in files:
        other = first.setdefault(file.tags["SOPInstanceUID"] or file.path, file)
        if other is file:
            kept.append(file)
        elif not filecmp.cmp(other.path, file.path, shallow=False):
            raise ValueError(
                f"{name}: {printable(other.path)} and {printable(file.path)} have one"
                " SOPInstanceUID and are not the same: delete the wrong one"
            )
    return kept


def _check_alike(files: list[File], name: str) -> None:
    """Refuse a series whose slices differ in what must be the same, or lack what is needed."""
    frames = [file for file in files if (file.tags["NumberOfFrames"] or "1") not in ("1", 1)]
    if frames:
        raise ValueError(
            f"{name}: a multi-frame file ({frames[0].tags['NumberOfFrames']} frames in"
            f" {printable(frames[0].path)}), which is not read here: convert it with dcm2niix"
        )
    for tag in SAME:
        values = [file.tags[tag] for file in files]
        if all(isinstance(value, tuple) and len(value) == len(values[0]) for value in values):
            near = np.isclose(values, np.median(values, axis=0), rtol=1e-3, atol=1e-3).all(1)
            values = [
                values[int(near.argmax())] if n else v for n, v in zip(near, values, strict=True)
            ]
        values = pd.Series(values, dtype=object)
        counts = values.value_counts()
        if len(counts) > 1:
            odd = values.index[values == counts.index[-1]]
            shown = [f"{counts.index[k]!r} in {counts.iloc[k]}" for k in range(min(3, len(counts)))]
            raise ValueError(
                f"{name}: {tag} differs from slice to slice ({', '.join(shown)}), such as in"
                f" {printable(files[odd[0]].path)}: take what is of another kind out of the folder"
            )
    tags = files[0].tags
    if tags["Modality"] != "CT":
        raise ValueError(f"{name} is {tags['Modality'] or 'unknown'}, not CT")
    sizes = (2, 6, 1, 1)
    for tag, n in zip(("PixelSpacing", "ImageOrientationPatient", *RESCALE), sizes, strict=True):
        value = np.atleast_1d(tags[tag]) if tags[tag] not in ("", "not readable") else np.array([])
        if len(value) != n or not np.isfinite(value).all() or (n == 2 and min(value) <= 0):
            raise ValueError(
                f"{name}: {tag} is missing or no number ({tags[tag]!r}), such as in"
                f" {printable(files[0].path)}: get the series from its source again"
            )
    if tags["PhotometricInterpretation"] != "MONOCHROME2" or tags["SamplesPerPixel"] != 1:
        kind = f"{tags['PhotometricInterpretation']}, {tags['SamplesPerPixel']} samples"
        raise ValueError(f"{name}: pixels are {kind}, not MONOCHROME2, so no plain CT")
    for file in files:
        place = file.tags["ImagePositionPatient"]
        if not isinstance(place, tuple) or len(place) != 3 or not np.isfinite(place).all():
            raise ValueError(f"{name}: no ImagePositionPatient in {printable(file.path)}")


def _in_order(files: list[File], name: str) -> tuple[list[File], np.ndarray]:
    """Slices along the normal, and the affine ``(4, 4)`` of (column, row, slice), RAS, mm."""
    along = np.reshape(files[0].tags["ImageOrientationPatient"], (2, 3))
    if np.abs(along @ along.T - np.eye(2)).max() > 0.01:
        raise ValueError(f"{name}: ImageOrientationPatient {along.tolist()} is no right angle")
    normal = np.cross(*along)
    origins = np.array([file.tags["ImagePositionPatient"] for file in files])
    order = np.argsort(origins @ normal, kind="stable")
    files, origins = [files[k] for k in order], origins[order]
    steps = np.diff(origins, axis=0)
    gaps = steps @ normal
    if len(gaps) < 1:
        raise ValueError(f"{name} of 1 slice: no gaps of slices, no volume")
    step = float(np.median(gaps))
    # Places written with few decimals make gaps look uneven: 0.62, 0.63 for 0.625.
    unit = next(10.0**-k for k in range(5) if np.abs(origins - origins.round(k)).max() < 1e-6)
    allowed = max(0.01 * step, min(1.01 * unit, 0.1 * step))
    ideal = np.linspace(*(origins @ normal)[[0, -1]], len(files))
    uneven = max(np.abs(gaps - step).max(), np.abs(origins @ normal - ideal).max())
    if step <= 0 or uneven > allowed:
        at = int(np.abs(gaps - step).argmax())
        raise ValueError(
            f"{name} of {len(files)} slices with gaps of {gaps.min():.2f} to {gaps.max():.2f} mm:"
            f" slices are missing, or it is several stacks (look at {printable(files[at].path)} and"
            f" {printable(files[at + 1].path)})"
        )
    if np.linalg.norm(steps - np.outer(gaps, normal), axis=1).max() > 2 * allowed:
        raise ValueError(f"{name} has a tilted gantry: resample it first")
    for tag in BLOCKS:  # two stacks half a slice apart make one of half the spacing
        values = [file.tags[tag] for file in files]
        changes = sum(a != b for a, b in pairwise(values))
        if changes > len(set(values)) - 1:
            raise ValueError(
                f"{name}: acquisitions are interleaved ({tag} goes to and fro between"
                f" {', '.join(map(str, list(dict.fromkeys(values))[:4]))}), as of two phases: put"
                " the files of each into a folder of its own"
            )
    affine = np.eye(4)
    pixel = files[0].tags["PixelSpacing"]  # between rows, between columns
    affine[:3, 0], affine[:3, 1] = along[0] * pixel[1], along[1] * pixel[0]
    affine[:3, 2], affine[:3, 3] = (origins[-1] - origins[0]) / (len(files) - 1), origins[0]
    affine[:2] *= -1  # DICOM's left and back are NIfTI's right and front
    return files, affine


def _read_pixels(files: list[File], name: str) -> np.ndarray:
    """HU ``(column, row, slice)``: int16 where they are whole and fit, else float32."""
    sitk, planes = _need()[1], []
    with tempfile.TemporaryDirectory() as scratch:
        for number, file in enumerate(files):
            path = file.path
            if printable(path) != path:  # SimpleITK wants UTF-8
                path = os.path.join(scratch, f"{number}.dcm")
                os.symlink(os.path.abspath(file.path), path)
            try:
                shape = int(file.tags["Rows"]), int(file.tags["Columns"])
                plane = sitk.GetArrayFromImage(sitk.ReadImage(path)).reshape(shape)
            except (RuntimeError, ValueError) as error:
                why = f"cannot be decoded ({str(error).strip().splitlines()[-1][:160]})"
                raise ValueError(f"{name}: {printable(file.path)} {why}") from error
            whole = plane.dtype.kind in "iu" or (plane == np.rint(plane)).all()
            fits = whole and -32768 <= plane.min() and plane.max() <= 32767
            planes.append(plane.T.astype(np.int16 if fits else np.float32))
    kind = np.result_type(*{plane.dtype for plane in planes})
    return np.stack(planes, axis=2).astype(np.float32 if kind.kind == "f" else np.int16)


def _listed(files: list[File]) -> str:
    """Files with their reasons, a line each, the first ten."""
    lines = [f"\n  {printable(file.path)}: {file.reason}" for file in files[:10]]
    return "".join(lines) + (f"\n  ... and {len(files) - 10} more" if len(files) > 10 else "")


def _words(files: list[File]) -> str:
    first = files[0].tags
    kind, words = first["Modality"] or "unknown", first["SeriesDescription"] or "no description"
    return f"{len(files)} images, {kind}, {words}"


def main(arguments: list[str] | None = None) -> int:
    """See :func:`wspnb.data.series.main`."""
    from wspnb.data import series

    return series.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
