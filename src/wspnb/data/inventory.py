"""What is in a CT file, before it is used: numbers, place in space, and how intensities are coded.

The byte codings of the window [-100, 400] are one family. The released code of the paper divides
bytes by 250, which is right if they hold (HU + 100) / 2; the window as 0..255 holds 0.51 of
HU + 100. The two differ by 2 %: 10 HU at 400 HU, 3 HU in a liver of 60 HU, at most 5 of 255 in a
stored slice, less than the noise. Bytes that look like the family are read as (HU + 100) / 2 unless
the histogram proves the other. Bytes of HU that wrapped around (400 becomes 144) and of other
windows are refused: no formula brings them back, or it is not known which. What resampled bytes
cannot show is a window that is a little narrower, such as [-100, 300]: it looks like more contrast.
Who knows the coding says it in a column ``coding`` of cohort.csv, which goes before all evidence.

MRI has no common unit. It is never guessed: a column ``modality`` of cohort.csv says ``mr``, and
the window is then taken from the image itself (:func:`mr_window`).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wspnb.data.volumes import Scan, read_scan, resize, scaled, to_image, window

# Coding: HU = factor x stored value + offset.
CODINGS = {
    "HU": (1.0, 0.0),
    "(HU+100)/2": (2.0, -100.0),
    "window": (500 / 255, -100.0),  # [-100, 400] HU as 0..255
    "window 0..1": (500.0, -100.0),  # [-100, 400] HU as 0..1
    "HU+1024": (1.0, -1024.0),
    "MR": (1.0, 0.0),  # no HU: as stored, with a window of its own
}
SAY = f"say which it is in a column 'coding' of cohort.csv: {', '.join(list(CODINGS)[:-1])}"
THIN = "lies at"
FAR = "below -1300, in many values, where no CT has any"  # as where a slope was applied twice
SAY += "; for MRI write mr in a column 'modality'"

# Paper silent: what is brighter than this share of the 99th percentile is body, and the window of
# an MRI goes from the first to the last of these percentiles of it.
MR_BODY, MR_PERCENTILES = 0.1, (0.5, 99.5)
FAR_SHARE = 0.05  # of the voxels, below -1300 HU and in over 20 values, is named; paper silent
PLANES = 16  # axial planes, evenly spread, that percentiles and evidence are taken from


def decode(array: np.ndarray, coding: str) -> np.ndarray:
    """Stored values as Hounsfield units.

    Args:
        array: any shape, slope and intercept of the header applied.
        coding: one of :data:`CODINGS`.

    Returns:
        The same shape, HU; float32 unless the coding is HU, which changes nothing.

    Raises:
        ValueError: if the coding is another.
    """
    if coding not in CODINGS:
        raise ValueError(f"coding {coding!r}: choose one of {', '.join(CODINGS)}")
    factor, offset = CODINGS[coding]
    if (factor, offset) == (1, 0):
        return array
    return np.asarray(array, dtype=np.float32) * np.float32(factor) + np.float32(offset)


def mr_window(sample: np.ndarray) -> tuple[float, float]:
    """Ends of the window of an MRI: percentiles inside the body, as its numbers have no unit.

    Args:
        sample: voxels, any shape.

    Raises:
        ValueError: if nothing is brighter than the background, or a twentieth is well below 0.
    """
    if (below := float((sample < -MR_BODY * np.percentile(sample, 99)).mean())) > 0.05:
        found = f"{below:.0%} of the MRI are below 0, as where it was normalised or subtracted"
        raise ValueError(f"{found}: give it as it was scanned")
    body = sample[sample > MR_BODY * np.percentile(sample, 99)]
    low, high = np.percentile(body, MR_PERCENTILES).tolist() if len(body) else (0.0, 0.0)
    if not 0 < low < high:
        raise ValueError(f"no body in the MRI: its percentiles are {low:g} and {high:g}")
    digits = max(3, 4 - int(np.floor(np.log10(low))))  # a map may be in mm2/s
    return round(low, digits), round(high, digits)


def window_of(row: dict[str, Any], low: float, high: float) -> tuple[float, float]:
    """Ends of the window of a volume: those of its inventory's row if it is MRI, else as given."""
    if row.get("coding") != "MR":
        return low, high
    return row["window_low"], row["window_high"]


@dataclass(frozen=True)
class Hu:
    """A volume in HU that stays as its file stores it: only what is asked for, such as
    ``hu[:, :, z]``, becomes float, so a plane costs a plane."""

    scan: Scan
    row: dict[str, Any]  # of the inventory

    @property
    def shape(self) -> tuple[int, ...]:
        return self.scan.voxels.shape

    @property
    def spacing(self) -> np.ndarray:
        return self.scan.spacing  # (3,), mm

    def __getitem__(self, index) -> np.ndarray:
        return decode(scaled(self.scan.voxels[index], self.scan), self.row["coding"])


def open_hu(path: str | Path, coding: str = "") -> Hu:
    """A volume whose planes are HU; its place in space as :func:`wspnb.data.volumes.read_scan`.

    Raises:
        FileNotFoundError, ValueError: as there; if the coding is not given and not clear.
    """
    scan = read_scan(path)
    row = describe(scan, coding)
    refuse(path, row)
    return Hu(scan, row)


def slice_images(
    hu: Hu, numbers, size: int, low: float = -100.0, high: float = 400.0
) -> np.ndarray:
    """Axial slices as bytes: clipped to the window, resized, then rounded (WSP, section 3).

    In this order padding and metal do not bleed into their neighbours, and values are rounded once
    only. Paper silent.

    Args:
        hu: the volume; planes become float one at a time.
        numbers: slices along z, ``(n,)``.
        size: pixels a side.
        low, high: window, HU; MRI has its own, of :func:`mr_window`.

    Returns:
        ``(n, size, size)`` uint8, front on top, the patient's right on the left.
    """
    low, high = window_of(hu.row, low, high)
    images = np.empty((len(numbers), size, size), np.uint8)
    for image, z in zip(images, numbers, strict=True):
        plane = np.clip(to_image(hu[:, :, z]), low, high)  # (h, w)
        image[:] = window(resize(plane, size, (hu.spacing[1], hu.spacing[0]), low), low, high)
    return images


def refuse(path: str | Path, row: dict[str, Any]) -> None:
    """Raise ValueError for a scan whose intensities cannot be read as HU."""
    if row["coding"] not in CODINGS:
        raise ValueError(f"{path}: intensities {row['coding']}: {row['evidence']}")


def describe(scan: Scan, said: str = "") -> dict[str, Any]:
    """The inventory's row of one scan.

    Args:
        scan: from :func:`wspnb.data.volumes.read_scan`.
        said: coding as its owner says, or empty to decide by evidence.

    Returns:
        ``dtype, slope, intercept, shape, spacing_mm, axes, oblique_deg``; ``minimum, maximum`` of
        all voxels and ``p0_5, p50, p99_5`` of up to 16 planes, header's scaling applied, not
        decoded; ``at_maximum``, the share of these planes; ``padding`` (a value below -1024 that at
        least 0.1 % of the voxels hold, else None); ``coding`` and ``evidence`` (a sentence);
        ``window_low`` and ``window_high`` of an MRI; ``voxels``, a hash that is the same for the
        same values however they are stored, turned or compressed.

    Raises:
        ValueError: if ``said`` is no coding.
    """
    if said and said not in CODINGS:
        raise ValueError(f"coding {said!r}: choose one of {', '.join(CODINGS)}")
    depth = scan.voxels.shape[2]
    some = np.unique(np.linspace(0, depth - 1, PLANES).astype(int))
    sample = np.empty((*scan.voxels.shape[:2], len(some)), np.float32, "F")
    for plane, z in enumerate(some):
        sample[:, :, plane] = scaled(scan.voxels[:, :, z], scan)
    ends = sorted(float(scaled(np.asarray(f()), scan)) for f in (scan.voxels.min, scan.voxels.max))
    dtype = scan.dtype or str(scan.voxels.dtype)
    coding, evidence = decide(sample, *ends, dtype)
    own, told = {}, "said in the table"
    if said == "MR" and ends[0] < 0 and coding == "HU":
        coding, evidence = "unknown", f"said to be MR, but read as HU: {evidence}; {SAY}"
    elif said == "MR":
        low, high = mr_window(sample)
        own = {"window_low": low, "window_high": high}
        coding, evidence = said, f"{told}; body from {low:g} to {high:g}"
    elif said:
        told += "" if coding == said else f"; the voxels say {coding}: {evidence}"
        coding, evidence = said, told
    low, middle, high = np.percentile(sample.ravel("K"), [0.5, 50, 99.5]).tolist()
    return {
        "dtype": dtype,
        "slope": scan.slope,
        "intercept": scan.intercept,
        "minimum": ends[0],
        "p0_5": round(low, 3),
        "p50": round(middle, 3),
        "p99_5": round(high, 3),
        "maximum": ends[1],
        "at_maximum": round(_share(sample >= ends[1]), 4),
        "shape": "x".join(map(str, scan.voxels.shape)),
        "spacing_mm": "x".join(f"{s:.4g}" for s in scan.spacing),
        "axes": scan.axes,
        "oblique_deg": scan.oblique,
        "padding": _padding(sample) if ends[0] < -1024 else None,
        "coding": coding,
        "evidence": evidence,
        "voxels": voxel_hash(scan),
        **own,
    }


def voxel_hash(scan: Scan) -> str:
    """sha256 of shape and values on canonical axes: the same for the same scan. Planes of small
    whole numbers as int16, others as float32."""
    content = hashlib.sha256(str(scan.voxels.shape).encode())
    plain = scan.voxels.dtype == np.int16 and (scan.slope, scan.intercept) == (1, 0)
    for z in range(scan.voxels.shape[2]):  # turned before it is float, half as much to move
        plane = np.ascontiguousarray(scan.voxels[:, :, z])
        if not plain:
            plane = scaled(plane, scan) + 0.0  # no -0.0
            with np.errstate(invalid="ignore"):
                small = plane.astype(np.int16)
            plane = small if (small == plane).all() else plane
        content.update(plane)
    return content.hexdigest()


def decide(sample: np.ndarray, low: float, high: float, dtype: str = "") -> tuple[str, str]:
    """How intensities are coded, by evidence.

    Soft tissue of the body lies at 0 to 100 HU, so any abdominal CT in HU has many voxels there.

    Args:
        sample: ``(x, y, n)``, some axial planes.
        low, high: of the whole volume.
        dtype: of the file.

    Returns:
        A key of :data:`CODINGS`, ``"wrapped"`` or ``"unknown"``; and why, in a sentence.
    """
    span = f"values from {low:g} to {high:g}"
    if 1 in sample.shape[:2]:
        return "unknown", "one sagittal or coronal plane, as of a scout: take it out of the table"
    if dtype == "int8":
        return "wrapped", "HU do not fit into int8: convert from the source again"
    if low < 0:
        if low > -90:
            found = f"{span}, nothing below, where fat and air are (an MRI that was resampled?)"
            return "unknown", f"{found}: {SAY}"
        if high - low < 200:
            return "unknown", f"{span}, too few for HU (normalised?): convert from the source again"
        if (beyond := _share(sample > 32767) if high > 32767 else 0) > 0.001:
            found = (
                f"{span}, {beyond:.1%} above 32767, as where padding below 0 is read as unsigned"
            )
            return "unknown", f"{found}: convert from the source again"
        padding = _padding(sample) if low < -1024 else None
        if padding and not ((sample > padding) & (sample <= -90)).any():
            found = f"{span}, of which {padding:g} is padding and nothing else below -90"
            return "unknown", f"{found}: HU + 1024? If so, {SAY}"
        edge = float(np.median(sample[np.ix_((0, -1), (0, -1))]))
        if -50 <= edge <= 150 and _share(sample < -90) < 0.02:
            found = (
                f"{span}, few of them below -90, where fat and air are, and {edge:g} at the corners"
            )
            return "unknown", f"{found} (an MRI?): {SAY}"
        shifted = _share((sample >= 950) & (sample <= 1150)) if high >= 950 else 0
        if shifted > 0.05:
            return "unknown", f"{span}, {shifted:.0%} at 950 to 1150: HU + 1024? If so, {SAY}"
        soft = _share((sample >= 0) & (sample <= 100))
        if soft < 0.01 and len(kinds := np.unique(sample)) <= 8:
            return "HU", f"{span}, {len(kinds)} values in all: drawn, not scanned"
        if soft < 0.01:
            return "unknown", f"{span}, only {soft:.1%} at 0 to 100 where soft tissue is: {SAY}"
        found = f"{span}, {soft:.0%} at 0 to 100 where soft tissue is"
        far = sample[(sample < -1300) & (sample != padding)] if low < -1300 else sample[:0]
        if far.size > FAR_SHARE * sample.size and len(np.unique(far)) > 20:
            found += f", but {far.size / sample.size:.0%} {FAR}"
        thin = sample[(sample > -800) & (sample < -300)] if low > -900 else sample[:0]
        if thin.size > 0.2 * sample.size and thin.std() < 60:
            if np.unique(thin, return_counts=True)[1].max() < thin.size / 2:  # no clipped end
                found += f", but air {THIN} {np.median(thin):.0f} HU"
        return "HU", found
    if high <= 1:
        coding, evidence = _bytes(np.rint(sample * 255).astype(np.uint8))
        return ("window 0..1" if coding in CODINGS else coding), f"{span}; {evidence}"
    if high <= 255:
        coding, evidence = _bytes(np.rint(sample).astype(np.uint8))
        return coding, f"{span}; {evidence}"
    return "unknown", f"{span}, nothing below 0 HU, where air and fat are: {SAY}"


def _bytes(sample: np.ndarray) -> tuple[str, str]:
    """Coding of bytes ``(x, y, n)``.

    In the family air and half of the fat are 0, the fat's other half lies at 1 to 15 and soft
    tissue at 55 to 125. Thresholds from four real CT, each coded in twenty ways
    (tests/test_inventory.py).
    """
    share = np.bincount(sample.ravel(), minlength=256) / sample.size
    jumps = float((np.abs(np.diff(sample.astype(np.int16), axis=0)) > 200).mean())
    if jumps > 0.01:
        found = f"{jumps:.1%} of neighbours differ by more than 200, as where HU were cast to bytes"
        return "wrapped", f"{found} and wrapped around: convert from the source again"
    peak = 40 + int(np.argmax(np.convolve(share, np.ones(5) / 5, "same")[40:230]))
    fat = float(share[1:16].sum() / max(share[16:250].sum(), 1e-9))
    words = f"{share[0]:.0%} are 0, soft tissue peaks at {peak}, {fat:.2f} voxels at 1 to 15 for"
    words += " one at 16 to 249"
    if not (0.4 < share[0] < 0.95 and 55 <= peak <= 125 and 0.1 <= fat <= 0.4):
        return "unknown", f"{words}: not as in bytes of the window [-100, 400]; {SAY}"
    comb = _comb(share * sample.size)
    if comb == "other":
        return "unknown", f"{words}, but a comb of another window in the histogram; {SAY}"
    if comb == "window":
        return "window", f"{words}, and the comb of 501 HU on 256 bytes"
    if comb == "half":
        return "(HU+100)/2", f"{words}, and the comb of halved and rounded HU"
    if share[250] > 5 * share[249] and not share[251:].any():
        return "(HU+100)/2", f"{words}, and many are 250 = 400 HU but none above"
    return "(HU+100)/2", f"{words}; if it was the window as 0..255, HU are up to 2 % too high"


def _comb(counts: np.ndarray) -> str:
    """What bytes that no resampling has blurred give away: "window", "half", "other" or "".

    501 HU on 256 bytes leave one HU, not two, to every 25th byte or so; (HU + 100) / 2 rounded
    half to even gives one HU to odd and three to even bytes, and cut off, two to each.
    """
    enough = [k for k in range(41, 120) if counts[k - 1 : k + 2].mean() >= 300]
    rare = {k for k in enough if counts[k] < 0.375 * (counts[k - 1] + counts[k + 1])}
    if len(rare) < 2:
        return ""
    hu = np.arange(501)
    known = [("window", np.rint(hu * 0.51)), ("window", np.floor(hu * 0.51))]
    for name, code in [*known, ("half", np.rint(hu / 2))]:
        n = np.bincount(code.astype(int), minlength=256)
        if rare == {k for k in enough if n[k] < 0.375 * (n[k - 1] + n[k + 1])}:
            return name
    return "other"


def _share(which: np.ndarray) -> float:
    """Of True in an array; ``mean`` takes ten times as long."""
    return float(np.count_nonzero(which) / which.size)


def _padding(sample: np.ndarray) -> float | None:
    """The commonest value below -1024, which neither air nor tissue has."""
    flat = sample.ravel("K")  # as it lies in memory
    values, counts = np.unique(flat[flat < -1024], return_counts=True)
    if not len(values) or counts.max() < 0.001 * sample.size:
        return None
    return float(values[np.argmax(counts)])


def duplicates(hashes, patients, names, usable=None, what: str = "voxels") -> dict[int, str]:
    """Scans or images that are in the table twice: row number and reason.

    Args:
        hashes: of each row's content, empty where unknown.
        patients, names: of each row.
        usable: whether nothing else is wrong with it, such as its mask; None: nothing is.
        what: that is the same, for the reason.

    Returns:
        Of one patient, all rows but the first usable one; of several patients, every row, as nobody
        can tell whose it is (*paper silent*).
    """
    table = pd.DataFrame({"hash": list(hashes), "patient": list(patients), "name": list(names)})
    table["unusable"] = False if usable is None else [not sound for sound in usable]
    found = {}
    for _, rows in table[table.hash != ""].sort_values("unusable", kind="stable").groupby("hash"):
        owners = ", ".join(sorted(rows.patient.unique()))
        several = rows.patient.nunique() > 1
        for row in rows.index if several else rows.index[1:]:
            other = table.name[rows.index[0] if row != rows.index[0] else rows.index[1]]
            found[row] = f"{table.name[row]}: the same {what} as {other}" + (
                f", but of patients {owners}: find out whose it is and delete the other line"
                if several
                else " of the same patient, which is kept: delete this line"
            )
    return found
