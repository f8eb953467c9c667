"""One DICOM series as NIfTI in Hounsfield units; needs the extra ``dicom``.

pydicom reads every header, so that each file below a folder is used or named with its reason, and
slices are compared one by one; SimpleITK decodes the pixels, a file at a time. Nothing is converted
from a part of a series: a file that cannot be read might belong to it.
"""

import filecmp
import os
import re
import tempfile
import warnings
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from wspnb.data.dicom_files import (
    BLOCKS,
    CT,
    PICTURES,
    SAME,
    File,
    doubts,
    find_series,
    index,
    lost_slices,
    printable,
)
from wspnb.data.volumes import write_image
from wspnb.files import need

NUMBERS = {"PixelSpacing": 2, "ImageOrientationPatient": 6, "RescaleSlope": 1}  # how many, needed
NUMBERS |= {"RescaleIntercept": 1}
# RLE, deflated, bytes the other way round: what pydicom itself reads.
UNPACKED = ("1.2.840.10008.1.2.5", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
COUNTS = ("ImagesInAcquisition", "NumberOfSeriesRelatedInstances")
AIR = -500.0  # HU, below which padding may be taken for air (paper silent)
HU = ("", "HU", "US")  # RescaleType; US is unspecified, others are maps of iodine, atoms and so on


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
    lost = lost_slices(files)
    if not found:
        listed = _listed(lost or files)
        raise ValueError(f"{shown}: no DICOM series below: correct the folder{listed}")
    if len(wanted) != 1:
        lines = [f"\n  {uid}  {_words(own)}" for uid, own in found.items()]
        raise ValueError(
            f"{shown}: {len(wanted)} series to choose from, one is needed: name it with"
            f" --series UID{''.join(lines)}"
        )
    ((uid, own),) = wanted.items()
    name = f"{shown}: series {uid}"
    if lost := [file for file in own if file.damaged] + lost:
        raise ValueError(
            f"{name}: files below that cannot be read and may be slices of it ({len(lost)}): copy"
            " them again, delete those that are no slices of it, or write the name of an odd one"
            f" under drop in series.csv{_listed(lost)}"
        )
    own = _without_copies(own, name)
    if problem := _difference(own) or _no_ct(own[0].tags, printable(own[0].path)):
        raise ValueError(f"{name}: {problem}")
    own, affine = _in_order(own, name)
    for words in doubts(own):
        warnings.warn(f"{name}: {words}", stacklevel=2)
    write_image(out, _read_pixels(own, name), affine)
    return out


def _without_copies(files: list[File], name: str) -> list[File]:
    """Of files that are equal, byte by byte or in all that stands behind how they were sent, the
    first; two images of one UID are refused, unless they lie apart, as where an anonymiser gave all
    slices the same."""
    (pydicom,), first = need("dicom", "pydicom"), {}
    for file in files:
        place = file.tags["ImagePositionPatient"]
        other = first.setdefault((file.tags["SOPInstanceUID"] or file.path, place), file)
        if other is file or filecmp.cmp(other.path, file.path, shallow=False):
            continue
        one, two = (pydicom.dcmread(each.path, force=True) for each in (other, file))
        if one != two:
            raise ValueError(
                f"{name}: {printable(other.path)} and {printable(file.path)} have one"
                " SOPInstanceUID and are not the same: delete the wrong one"
            )
    return list(first.values())


def _difference(files: list[File]) -> str:
    """How slices differ in what must be the same, or nothing."""
    for file in files:
        frames, enhanced = file.tags["NumberOfFrames"] or 1, f"{CT[1]}."  # such as ...1.2.1
        if frames not in ("1", 1) or file.tags["SOPClassUID"].startswith(enhanced):
            where = f"{frames} frames in {printable(file.path)}"
            return f"a multi-frame file ({where}), which is not read here: convert it with dcm2niix"
    for tag in SAME:
        common, n = Counter(file.tags[tag] for file in files).most_common(1)[0]
        if odd := [file for file in files if not _alike(file.tags[tag], common)]:
            return (
                f"{tag} differs from slice to slice ({common!r} in {n}, {odd[0].tags[tag]!r}, ...),"
                f" such as in {printable(odd[0].path)}: take what is of another kind out of the"
                " folder"
            )
    for file in files:
        place = file.tags["ImagePositionPatient"]
        if not isinstance(place, tuple) or len(place) != 3 or not np.isfinite(place).all():
            where = printable(file.path)
            return f"no ImagePositionPatient in {where}: get the series from its source again"
    return ""


def _alike(one, other) -> bool:
    """Whether two values of a tag are the same; axes and pixels may jitter."""
    if isinstance(one, float) and isinstance(other, float):
        return bool(np.isclose(one, other, 1e-6, 0))
    numbers = isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other)
    return bool(np.allclose(one, other, 1e-3, 1e-3)) if numbers else one == other


def _no_ct(tags: dict, file: str) -> str:
    """Why slices with these tags are no CT in HU, or nothing."""
    if tags["Modality"] != "CT":
        found = f"Modality is {tags['Modality'] or 'unknown'}, not CT"
        way = "a mask becomes NIfTI in 3D Slicer, another series by dcm2niix"
        return f"{found}: take a series of CT; {way}"
    if tags["SOPClassUID"] not in CT or PICTURES.search(tags["ImageType"].upper()):
        kind = f"{tags['SOPClassUID']}, {tags['ImageType']}"
        return f"no slices of a CT but a scout or pictures, or maps ({kind}): take another series"
    if tags["ModalityLUTSequence"]:
        return f"values by a table (ModalityLUTSequence), such as in {file}: take another series"
    for tag in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"):
        if not isinstance(tags[tag], int):
            why = f"missing or no number ({tags[tag]!r}), such as in {file}"
            return f"{tag} is {why}: get the series from its source again"
    if tags["Rows"] * tags["Columns"] > 1 << 26:
        size = f"{tags['Rows']} x {tags['Columns']} pixels"
        return f"{size} in {file}, which no CT has: a damaged header? Copy it again"
    if tags["RescaleType"].upper() not in HU:
        return f"values in {tags['RescaleType']} (RescaleType), not HU: take another series"
    for tag, n in NUMBERS.items():
        value = np.atleast_1d(tags[tag])
        sound = value.dtype.kind == "f" and len(value) == n and np.isfinite(value).all()
        sound = sound and (tag != "PixelSpacing" or min(value) > 0)
        if not sound or (tag == "RescaleSlope" and not any(value)):
            why = f"missing or no number ({tags[tag]!r}), such as in {file}"
            return f"{tag} is {why}: get the series from its source again"
    if tags["PhotometricInterpretation"] != "MONOCHROME2" or tags["SamplesPerPixel"] != 1:
        kind = f"{tags['PhotometricInterpretation']}, {tags['SamplesPerPixel']} samples"
        return f"pixels are {kind}, not MONOCHROME2, so no plain CT: take another series"
    if tags["HighBit"] != tags["BitsStored"] - 1 or tags["BitsStored"] > tags["BitsAllocated"]:
        found = f"HighBit is {tags['HighBit']} where {tags['BitsStored']} bits are stored"
        return f"{found}, such as in {file}: which bits hold the pixels is not sure; correct it"
    return ""


def _in_order(files: list[File], name: str) -> tuple[list[File], np.ndarray]:
    """Slices along the normal, and the affine ``(4, 4)`` of (column, row, slice), RAS, mm."""
    along = np.reshape(files[0].tags["ImageOrientationPatient"], (2, 3))
    if np.abs(along @ along.T - np.eye(2)).max() > 0.01:
        found = f"ImageOrientationPatient {along.tolist()} is no right angle"
        raise ValueError(f"{name}: {found}: get the series from its source again")
    normal = np.cross(*along)
    origins = np.array([file.tags["ImagePositionPatient"] for file in files])
    order = np.argsort(origins @ normal, kind="stable")
    files, origins = [files[k] for k in order], origins[order]
    steps = np.diff(origins, axis=0)
    gaps = steps @ normal
    if len(gaps) < 1:
        raise ValueError(f"{name} of 1 slice: no gaps of slices, no volume: take another series")
    step = float(np.median(gaps))
    # Places written with few decimals make gaps look uneven: 0.62, 0.63 for 0.625.
    unit = next(10.0**-k for k in range(5) if np.abs(origins - origins.round(k)).max() < 1e-6)
    allowed = max(0.01 * step, min(1.01 * unit, 0.1 * step))
    ideal = np.linspace(*(origins @ normal)[[0, -1]], len(files))
    uneven = max(np.abs(gaps - step).max(), np.abs(origins @ normal - ideal).max())
    if step <= 0 or uneven > allowed:
        at, what = int(np.abs(gaps - step).argmax()), "slices are missing"
        if gaps.min() <= 0.1 * gaps.max():
            at, what = int(gaps.argmin()), "images twice, as copies under other UIDs or times"
        raise ValueError(
            f"{name} of {len(files)} slices with gaps of {gaps.min():.2f} to {gaps.max():.2f} mm:"
            f" {what}, or it is several stacks (look at {printable(files[at].path)} and"
            f" {printable(files[at + 1].path)}): copy those that are missing, keep one stack in the"
            " folder, drop an odd one at an end (in series.csv), or go on without the patient"
        )
    aside = steps - np.outer(gaps, normal)
    off = np.linalg.norm(aside - np.median(aside, 0), axis=1)
    if off.max() > 2 * allowed:
        at = int(off.argmax())
        raise ValueError(
            f"{name}: slices lie {off.max():.1f} mm aside, of two scans or fields of view: take"
            f" those of one out (look at {printable(files[at].path)} and"
            f" {printable(files[at + 1].path)})"
        )
    drift = float(np.linalg.norm(aside.sum(0)))  # steady, where each step could be a rounding
    drift = drift > 2 * allowed and drift > 0.01 * abs(float(gaps.sum()))
    if drift or np.linalg.norm(aside, axis=1).max() > 2 * allowed:
        raise ValueError(f"{name} has a tilted gantry: resample it first, as dcm2niix does")
    for tag in BLOCKS:  # two stacks half a slice apart make one of half the spacing
        values = [file.tags[tag] for file in files]
        if sum(a != b for a, b in pairwise(values)) > len(set(values)) - 1:
            some = ", ".join(map(str, list(dict.fromkeys(values))[:4]))
            raise ValueError(
                f"{name}: acquisitions are interleaved ({tag} goes to and fro between {some}), as"
                " of two phases: put the files of each into a folder of its own"
            )
        if (
            tag in ("SeriesNumber", "SeriesDescription", "ContrastBolusAgent")
            and len({*values}) > 1
        ):
            some = ", ".join(map(repr, dict.fromkeys(values)))
            found = f"{name}: {tag} changes along the slices ({some})"
            warnings.warn(f"{found}: is it one scan? Compare with the source", stacklevel=4)
    for tag in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
        days = {file.tags[tag] for file in files if re.fullmatch(r"\d{8}", str(file.tags[tag]))}
        days = pd.to_datetime(pd.Series(sorted(days)), format="%Y%m%d", errors="coerce").dropna()
        if len(days) > 1 and not (days.iloc[-1] - days.iloc[0]).days <= 1:  # midnight passes once
            found = f"{tag} {days.iloc[0]:%Y-%m-%d} to {days.iloc[-1]:%Y-%m-%d}"
            raise ValueError(
                f"{name}: slices of several days ({found}): put the files of each day into a folder"
                " of its own"
            )
    for tag in ("AcquisitionTime", "ContentTime", "InstanceNumber"):
        found = [str(file.tags[tag]) for file in files]
        numbers = [float(n) for n in found if re.fullmatch(r"[0-9]+(\.[0-9]*)?", n)]
        once = len(set(numbers)) == len(files) or tag == "InstanceNumber"  # many slices a rotation
        if len(numbers) == len(files) and once and _woven(numbers):
            raise ValueError(
                f"{name}: {tag} goes to and fro along the slices ({', '.join(found[:6])}, ...), as"
                " of two acquisitions in one: put the files of each into a folder of its own"
            )
    complete, numbers = len(numbers) == len(files), sorted(set(map(int, numbers)))
    if complete and 1 < len(numbers) < len(files):
        found = f"{name}: {len(files)} slices with {len(numbers)} InstanceNumbers"
        warnings.warn(f"{found}: is it one scan? Compare with the source", stacklevel=4)
    if len(numbers) == len(files) and (numbers[0] > 1 or numbers[-1] - numbers[0] >= len(files)):
        warnings.warn(
            f"{name}: {len(files)} slices with InstanceNumber {numbers[0]} to {numbers[-1]}: are"
            " some missing at an end? Compare with the source",
            stacklevel=4,
        )
    hints = {  # of any slice: when it is wrong, and what it means
        "SliceThickness": (lambda v: 0 < 1.5 * v < step, "{0:g} mm: is every second one lost"),
        "SpacingBetweenSlices": (lambda v: v and not 0.8 < step / abs(v) < 1.25, "{0:g} mm"),
        "GantryDetectorTilt": (lambda v: 0.5 < abs(v) < 90, "{0:g} degrees: were they resampled"),
    }
    hints |= dict.fromkeys(COUNTS, (lambda v: v > len(files), "{0:g}: are some missing"))
    for tag, (wrong, words) in hints.items():
        values = [file.tags[tag] for file in files if isinstance(file.tags[tag], float)]
        if odd := [value for value in values if wrong(value)]:
            found = f"{name}: {len(files)} slices lie straight, {step:g} mm apart; {tag} is"
            words = words.format(odd[0])
            warnings.warn(f"{found} {words}? Compare with the source", stacklevel=4)
    affine = np.eye(4)
    pixel = files[0].tags["PixelSpacing"]  # between rows, between columns
    affine[:3, 0], affine[:3, 1] = along[0] * pixel[1], along[1] * pixel[0]
    affine[:3, 2], affine[:3, 3] = (origins[-1] - origins[0]) / (len(files) - 1), origins[0]
    affine[:2] *= -1  # DICOM's left and back are NIfTI's right and front
    return files, affine


def _woven(numbers: list[int]) -> bool:
    """Whether every second number, or every third or fourth, goes one way, but not all together."""

    def one_way(some):
        steps = np.diff(some)
        return len(steps) > 1 and ((steps > 0).all() or (steps < 0).all())

    turns = ([numbers[k::n] for k in range(n)] for n in (2, 3, 4))
    return not one_way(numbers) and any(all(map(one_way, turn)) for turn in turns)


def _read_pixels(files: list[File], name: str) -> np.ndarray:
    """HU ``(column, row, slice)``: int16 where they are whole and fit, else float32."""
    (sitk,), blank, first, odd = need("dicom", "SimpleITK"), [], {}, {}
    shape = int(files[0].tags["Rows"]), int(files[0].tags["Columns"])
    volume = np.empty((*shape[::-1], len(files)), np.int16, "F")
    with tempfile.TemporaryDirectory() as scratch:
        for number, file in enumerate(files):
            path = file.path
            if printable(path) != path:  # SimpleITK wants UTF-8
                path = os.path.join(scratch, f"{number}.dcm")
                os.symlink(os.path.abspath(file.path), path)
            try:
                plane = sitk.GetArrayFromImage(sitk.ReadImage(path)).reshape(shape)
            except (RuntimeError, ValueError) as error:
                why = f"cannot be decoded ({str(error).strip().splitlines()[-1][:160]})"
                advice = "decompress the series first (gdcmconv --raw), or copy it again"
                raise ValueError(f"{name}: {printable(file.path)} {why}: {advice}") from error
            low, high = plane.min(1), plane.max(1)  # of each row
            if problem := _bits_beyond(file) or _beyond_hu(float(high.max())):
                raise ValueError(f"{name}: {printable(file.path)} has {problem}")
            whole = plane.dtype.kind in "iu" or (plane == np.rint(plane)).all()
            fits = whole and -32768 <= low.min()
            if not fits and volume.dtype != np.float32:
                volume = volume.astype(np.float32)
            volume[:, :, number] = plane.T
            slope, zero = file.tags["RescaleSlope"], file.tags["RescaleIntercept"]
            blank.append(int(((low == high) & (low == zero)).sum()))
            other = first.setdefault(hash(plane[::16].tobytes()), number)
            if other < number and low.min() < high.max():
                if np.array_equal(volume[:, :, other], volume[:, :, number]):
                    both = f"{printable(files[other].path)} and {printable(file.path)}"
                    odd["same"] = f"{both} lie apart and have the same pixels: was one sent twice"
            pad = file.tags["PixelPaddingValue"]
            known = isinstance(pad, int) and (pad := pad * slope + zero) > AIR
            if known and (share := np.mean(plane == pad)) > 0.05:
                found = f"{share:.0%} of {printable(file.path)} are padding (PixelPaddingValue)"
                odd["padding"] = f"{found}, which is read as {pad:g} HU: is it meant to be air"
    beside = np.maximum([blank[1], *blank[:-1]], [*blank[1:], blank[-2]])
    for k in np.flatnonzero(np.array(blank) - beside > 0.1 * shape[0]):
        found = f"{blank[k]} of {shape[0]} rows of {printable(files[k].path)} are 0, and not in the"
        odd["rows"] = f"{found} slices beside it: did a copy not end"
    flat = [printable(f.path) for f, n in zip(files, blank, strict=True) if n == shape[0]]
    if 0 < 2 * len(flat) < len(files):
        raise ValueError(
            f"{name}: all pixels are 0 in {len(flat)} slices, such as {flat[0]}, as where a copy"
            " did not end: copy it again, or write its name under drop in series.csv"
        )
    for words in odd.values():
        warnings.warn(f"{name}: {words}? Compare with the source", stacklevel=3)
    return volume


def _bits_beyond(file: File) -> str:
    """Whether pixels use bits of which the header says that they hold none, or nothing; SimpleITK
    takes these bits away, so that 4096 in 12 bits becomes 0."""
    stored, allocated = file.tags["BitsStored"], file.tags["BitsAllocated"]
    if stored >= allocated or allocated not in (16, 32):
        return ""
    n = file.tags["Rows"] * file.tags["Columns"]
    if file.start:
        raw = np.fromfile(file.path, f"<u{allocated // 8}", n, offset=file.start)
    else:  # packed, or its bytes the other way round
        (pydicom,) = need("dicom", "pydicom")
        header = pydicom.dcmread(file.path, force=True)
        syntax = str(header.file_meta.get("TransferSyntaxUID", ""))
        if syntax not in UNPACKED:
            return ""  # a JPEG holds no such bits
        raw, _ = pydicom.pixels.get_decoder(syntax).as_buffer(header)  # an array would be cut
        raw = np.frombuffer(raw, f"{'>' if syntax == UNPACKED[2] else '<'}u{allocated // 8}", n)
    if raw.max() < 2**stored:
        return ""
    odd = raw >= 2**stored
    if file.tags["PixelRepresentation"]:  # signed: the sign may fill them
        odd &= raw < 2**allocated - 2 ** (stored - 1)
    if not odd.any():
        return ""
    found = f"{odd.sum()} pixels that need more than the {stored} bits of BitsStored"
    return f"{found} (metal, padding, an overlay?): correct it, or take another series"


def _beyond_hu(highest: float) -> str:
    """Whether a value is none of a CT, or nothing."""
    if highest <= 32767:
        return ""
    found = f"values up to {highest:g} HU, as where padding below 0 is read as unsigned"
    return f"{found}: correct PixelRepresentation, or take another series"


def _listed(files: list[File]) -> str:
    """Files with their reasons, a line each, the first ten."""
    lines = [f"\n  {printable(file.path)}: {file.reason}" for file in files[:10]]
    return "".join(lines) + (f"\n  ... and {len(files) - 10} more" if len(files) > 10 else "")


def _words(files: list[File]) -> str:
    first = files[0].tags
    kind, words = first["Modality"] or "unknown", first["SeriesDescription"] or "no description"
    return f"{len(files)} images, {kind}, {words}"
