"""Liver masks for TCGA-LIHC from DICOM segmentations of the Imaging Data Commons.

    python -m wspnb.sources.lihc_masks runs/lihc/source SEGMENTATIONS

Its `bamf_aimi_annotations` (doi 10.5281/zenodo.8345959, CC BY 4.0) have some of the patients, drawn
by a network and for a few corrected by readers. Needs the extra ``dicom``. Tried on drawn files
only; every patient's fate is in ``masks.csv``.
"""

import argparse
import re
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.processing import resample_from_to

from wspnb.data.dicom_files import index
from wspnb.data.headers import Header, open_header
from wspnb.data.volumes import write_image
from wspnb.files import need, printable, read_csv, write_csv

TAGS = ("Modality", "PatientID", "StudyDate", "SeriesDescription")
INSIDE = 0.95  # of a liver must lie on the volume, else they are not of one scan (paper silent)


def find_segmentations(folder: str | Path) -> pd.DataFrame:
    """DICOM segmentations below a folder: ``file``, ``patient``, ``date`` (YYYY-MM-DD),
    ``description``.

    Raises:
        ValueError: if there is none.
    """
    rows = []
    for file in index(folder):
        kind, patient, date, words = (str(file.tags.get(name, "")) for name in TAGS)
        if kind == "SEG":
            date = re.sub(r"\D", "", date)  # 2001.02.03, as before DICOM
            day = f"{date[:4]}-{date[4:6]}-{date[6:8]}"
            rows.append((Path(file.path), patient, day, words))
        elif file.damaged:
            warnings.warn(f"{printable(file.path)}: {file.reason}: passed over", stacklevel=2)
    if not rows:
        raise ValueError(f"{folder}: no DICOM segmentation below: download them (docs/data.md)")
    return pd.DataFrame(rows, columns=["file", "patient", "date", "description"])


def read_liver(file: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """The segments that are a liver by their type (SCT 10200004), such as its lobes, else by their
    label, as one mask ``(i, j, k)`` bool, and its affine ``(4, 4)``, RAS, mm.

    Raises:
        ImportError: if the extra ``dicom`` is not installed.
        ValueError: if the file is damaged, or no segment is a liver.
    """
    highdicom, sr = need("dicom", "highdicom", "pydicom.sr.codedict")
    try:
        found = highdicom.seg.segread(file)
        numbers = found.get_segment_numbers(segmented_property_type=sr.codes.SCT.Liver)
        if not numbers:  # 3D Slicer's own type is Tissue
            every = found.segment_numbers
            labels = {n: found.get_segment_description(n).segment_label for n in every}
            numbers = [n for n, label in labels.items() if label.strip().lower() == "liver"]
        if not numbers:
            called = ", ".join(labels.values())
            raise ValueError(f"segments {every}, none of them a liver ({called})")
        volume = found.get_volume(segment_numbers=numbers, combine_segments=True, relabel=True)
    except Exception as error:  # of a damaged file, whatever it is
        raise ValueError(f"{file}: {error}") from error
    return volume.array > 0, np.diag([-1, -1, 1, 1]) @ volume.affine  # from DICOM's left and back


def off_grid(affine: np.ndarray, volume: Header) -> float:
    """How far a mask's voxels lie from the volume's, in voxels: 0 for a mask of the same series, 1
    and more where they are larger by whole times."""
    step = np.linalg.inv(volume.stored) @ affine
    larger = abs(np.linalg.det(step[:3, :3].round())) - 1
    return round(float(max(np.abs(step - step.round()).max(), larger)), 3)


def place(mask: np.ndarray, affine: np.ndarray, volume: Header) -> tuple[np.ndarray, float]:
    """The mask on the grid of the volume's file, by the nearest voxel: ``(i, j, k)`` uint8; and the
    share of its millilitres that lie inside the volume."""
    # A margin: files leave empty slices out, and rounding would lose a liver's slice at the edge.
    wide = affine.copy()
    wide[:3, 3] -= affine[:3, :3].sum(1)
    image = nib.Nifti1Image(np.pad(mask, 1).astype(np.uint8), wide)
    placed = resample_from_to(image, (volume.image.shape[:3], volume.stored), order=0)
    placed = np.asarray(placed.dataobj, np.uint8)
    whole = mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000
    return placed, round(float(placed.sum() * volume.voxel_ml / max(whole, 1e-9)), 3)


def make_masks(folder: str | Path, segmentations: str | Path) -> pd.DataFrame:
    """Write ``FOLDER/masks/NAME.nii.gz`` for each used volume that has a segmentation of its study
    date, and ``FOLDER/masks.csv``, which says for whom there is none, and why.

    Where several are of the date, the one on the volume's own grid is taken (that of its series),
    and of those a corrected one before a network's (*paper silent*). ``folder`` is that of
    :func:`wspnb.sources.lihc.make_lihc`; the DICOM files lie anywhere below ``segmentations``.

    Returns:
        One row per used volume: ``name``, ``patient``, ``date``, ``status`` ("placed", "there
        already" or what is wrong), ``segmentation``, ``off_grid``, ``inside``, ``ml``.

    Raises:
        FileNotFoundError: if there is no inventory; says what makes it.
        ValueError: if it is another inventory, or there is no segmentation.
    """
    folder, rows = Path(folder), []
    if not (inventory := folder / "inventory.csv").is_file():
        raise FileNotFoundError(f"{inventory} does not exist: run `make lihc` first")
    files = read_csv(inventory, text=True)
    if missing := {"name", "file", "patient", "date", "status"} - set(files):
        said = f"{inventory} is not the one of `make lihc`, without columns {sorted(missing)}"
        raise ValueError(f"{said}: name its source folder, runs/lihc/source")
    found = find_segmentations(segmentations)
    there = set(files.name[files.status == "mask"])
    for volume in files[files.status == "used"].sort_values("patient").itertuples():
        out = folder / "masks" / f"{volume.name}.nii.gz"
        drawn = found[found.patient == volume.patient]
        own, dates = drawn[drawn.date == volume.date], ", ".join(sorted(set(drawn.date)))
        row = {"status": f"none of this date ({dates})" if dates else "none"}
        if volume.name in there or out.exists():
            row = {"status": "there already"}
        elif len(own):
            try:
                row = _best(own, open_header(folder / volume.file), out)
            except (ValueError, OSError) as error:  # one bad volume must not end the others
                row = {"status": f"the volume cannot be read: {error}"}
        rows.append({"name": volume.name, "patient": volume.patient, "date": volume.date} | row)
    columns = ["name", "patient", "date", "status", "segmentation", "off_grid", "inside", "ml"]
    table = pd.DataFrame(rows, columns=columns)
    write_csv(folder / "masks.csv", table)
    return table


def _best(own: pd.DataFrame, header: Header, out: Path) -> dict:
    """Place the segmentation that fits best; what became of it."""
    able, wrong = [], []
    for one in own.itertuples():
        try:
            mask, affine = read_liver(one.file)
            drawn = "AI segmentation" in one.description  # by the network alone
            able.append((off_grid(affine, header), drawn, one.file, mask, affine))
        except ValueError as error:
            wrong.append(f"cannot be read: {error}")
    if not able:
        return {"status": wrong[0], "segmentation": printable(own.file.iloc[0])}
    off, _, file, mask, affine = min(able, key=lambda row: row[:3])
    placed, inside = place(mask, affine, header)
    row = {"segmentation": printable(file), "off_grid": off, "inside": inside}
    row["ml"] = round(float(placed.sum()) * header.voxel_ml, 1)
    if inside < INSIDE:
        return row | {"status": f"not of this scan: {inside:.0%} of the liver lie on it"}
    out.parent.mkdir(exist_ok=True)
    write_image(out, placed, header.stored)
    return row | {"status": "placed"}


def main(arguments: list[str] | None = None) -> int:
    """Liver masks from DICOM segmentations, and for whom there is none."""
    parser = argparse.ArgumentParser("python -m wspnb.sources.lihc_masks", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="source_dir of make lihc, with inventory.csv")
    parser.add_argument("segmentations", type=Path, help="folder of the DICOM SEG files")
    asked = parser.parse_args(arguments)
    try:
        table = make_masks(asked.folder, asked.segmentations)
    except (OSError, ValueError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
    for status, own in table.groupby("status"):
        print(f"{status}: {len(own)} ({', '.join(own.patient)})")
    print(f"{asked.folder / 'masks.csv'} has a row for each; how to go on: docs/data.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
