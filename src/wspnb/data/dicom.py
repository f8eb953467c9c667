"""DICOM series to NIfTI in Hounsfield units, one per patient; needs the extra ``dicom``.

SimpleITK reads and writes; here is only what it does not refuse by itself: several series in a
folder, missing slices, another modality.

    python -m wspnb.data.dicom DICOM_FOLDER NIFTI_FOLDER [--series UID ...]
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np

from wspnb.files import whole


def find_series(folder: str | Path) -> dict[str, list[str]]:
    """Files of each series below a folder; those of one folder in the order of their place.

    Raises:
        ImportError: if SimpleITK is not installed.
    """
    reader = _sitk().ImageSeriesReader
    found: dict[str, list[str]] = {}
    for place, _, files in os.walk(folder):
        for uid in reader.GetGDCMSeriesIDs(place) if files else ():
            found.setdefault(uid, []).extend(reader.GetGDCMSeriesFileNames(place, uid))
    return found


def convert_series(folder: str | Path, out: str | Path, series: tuple[str, ...] = ()) -> Path:
    """One CT series as NIfTI: HU (rescale slope and intercept applied), place and axes kept.

    Args:
        folder: of one patient, with its files anywhere below.
        out: the NIfTI file, ``.nii.gz``.
        series: wanted SeriesInstanceUIDs; may hold those of other patients. Empty where a folder
            holds one series.

    Returns:
        The file.

    Raises:
        ImportError: if SimpleITK is not installed.
        ValueError: if there is no series, or not exactly one that is wanted (all are listed), it is
            no CT, or its slices are not evenly spaced (1 %), as where one is missing.
    """
    sitk, out = _sitk(), Path(out)
    found = find_series(folder)
    wanted = {uid: files for uid, files in found.items() if not series or uid in series}
    if not found:
        raise ValueError(f"{folder}: no DICOM series below: correct the folder")
    if len(wanted) != 1:
        listed = "\n".join(f"  {uid}  {_words(files)}" for uid, files in found.items())
        raise ValueError(
            f"{folder}: {len(wanted)} series to choose from, one is needed: name it with"
            f" --series UID\n{listed}"
        )
    uid, files = next(iter(wanted.items()))
    tags = [_tags(file) for file in files]
    if tags[0]["modality"] != "CT":
        raise ValueError(f"{folder}: series {uid} is {tags[0]['modality'] or 'unknown'}, not CT")
    # A series may lie in several folders, as burnt discs have it.
    order = np.argsort([tag["origin"] @ tags[0]["normal"] for tag in tags], kind="stable")
    files, tags = [files[k] for k in order], [tags[k] for k in order]
    steps = np.diff([tag["origin"] for tag in tags], axis=0)
    gaps = steps @ tags[0]["normal"]
    if len(gaps) < 1 or not np.abs(gaps - np.median(gaps)).max() < 0.01 * abs(np.median(gaps)):
        shown = " to ".join(f"{gap:.2f}" for gap in (gaps.min(), gaps.max())) if len(gaps) else "no"
        raise ValueError(
            f"{folder}: series {uid} of {len(files)} slices with gaps of {shown} mm: slices are"
            " missing, or it is several stacks"
        )
    if np.linalg.norm(steps - np.outer(gaps, tags[0]["normal"]), axis=1).max() > 0.01 * abs(
        gaps[0]
    ):
        raise ValueError(f"{folder}: series {uid} has a tilted gantry: resample it first")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    with whole(out) as temporary:
        sitk.WriteImage(reader.Execute(), str(temporary), useCompression=True)
    return out


def _sitk():
    try:
        import SimpleITK
    except ImportError as error:
        raise ImportError("SimpleITK is missing: pip install 'wspnb[dicom]'") from error
    return SimpleITK


def _tags(file: str) -> dict:
    """Modality, description, and the slice's place: origin in mm, and normal."""
    reader = _sitk().ImageFileReader()
    reader.SetFileName(file)
    reader.ReadImageInformation()

    def tag(key):
        return reader.GetMetaData(key).strip() if reader.HasMetaDataKey(key) else ""

    normal = np.array(reader.GetDirection()).reshape(3, 3)[:, 2]
    return {
        "modality": tag("0008|0060"),
        "words": tag("0008|103e"),
        "normal": normal,
        "origin": np.array(reader.GetOrigin()),
    }


def _words(files: list[str]) -> str:
    first = _tags(files[0])
    return f"{len(files)} images, {first['modality']}, {first['words'] or 'no description'}"


def main(arguments: list[str] | None = None) -> int:
    """Every folder in a folder is a patient; 1 if any could not be converted."""
    parser = argparse.ArgumentParser(prog="python -m wspnb.data.dicom", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="one folder per patient")
    parser.add_argument("out", type=Path, help="gets PATIENT.nii.gz")
    parser.add_argument("--series", nargs="*", default=(), help="SeriesInstanceUIDs to take")
    asked = parser.parse_args(arguments)
    if not asked.folder.is_dir():
        parser.error(f"{asked.folder}: no such folder")
    patients = sorted(p for p in asked.folder.iterdir() if p.is_dir())
    problems = [] if patients else [f"{asked.folder}: no folder of a patient in it"]
    for patient in patients:
        out = asked.out / f"{patient.name}.nii.gz"
        try:
            kept = out.exists()
            if not kept:
                convert_series(patient, out, tuple(asked.series))
            print(out, "(there already, not converted again)" if kept else "")
        except (ValueError, RuntimeError) as error:
            problems.append(str(error))
    print(*problems, sep="\n", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
