"""``series.csv``: the series below the patients' folders, and what their owner chooses there."""

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from wspnb.data.cohort import EMPTY
from wspnb.data.dicom_files import File, find_series, is_ct
from wspnb.data.looks import as_respelt
from wspnb.data.store import digest
from wspnb.files import printable, read_csv, separator

SAID = {"thickness_mm": "SliceThickness", "kernel": "ConvolutionKernel"}  # column: tag
SAID |= {"contrast": "ContrastBolusAgent", "date": "StudyDate", "time": "AcquisitionTime"}
SAID |= {"description": "SeriesDescription", "modality": "Modality"}
COLUMNS = ["take", "drop", "patient", "folder", "images", "plane", "extent_mm", *SAID]
COLUMNS += ["series", "converted", "content"]
INNER = ["id", "slices", "scout", "frames", "slices_of_ct"]  # of rows, and not of the table
INNER += ["name", "birth", "had"]
OWN = " (own)"  # behind the name of such a column where the table's owner has one
NEEDED = ("take", "drop", "patient", "series", "converted", "content")
# Under take, in small letters.
NO = {*EMPTY, "0", "0.0", "n", "no", "nein", "non", "false", "falsch", "faux", "falso", "f", "nej"}
NO |= {"onwaar", "nee", "fałsz", "nie", "ложь", "нет", "falskt", "yanliş", "não", "\u2610", "[ ]"}
YES = {"xx", "xxx", "1.0", "yes", "ja", "oui", "si", "sí", "sim", "tak", "да", "ok", "true", "wahr"}
YES |= {"vrai", "vero", "verdadero", "waar", "prawda", "истина", "sant", "doğru", "[x]", "take"}


def read_choices(table: Path, patients: list[str]) -> pd.DataFrame:
    """``series.csv`` as it is now, also while the command runs; a spreadsheet's 7 is 007 where that
    is the only folder that it can mean."""
    if not table.exists():
        return pd.DataFrame(columns=COLUMNS)
    known = read_csv(table, text=True, sep=separator(table))
    if missing := [name for name in NEEDED if name not in known]:
        raise ValueError(f"{table}: columns {missing} are missing: put them back, or delete it")
    looks = [as_respelt(name) for name in patients]
    means = {
        look: name for look, name in zip(looks, patients, strict=True) if looks.count(look) < 2
    }
    named = known.patient.map(lambda name: means.get(as_respelt(name), name))
    known = known.rename(columns={name: name + OWN for name in INNER})
    return known.assign(patient=known.patient.where(known.patient.isin(patients), named))


def describe_series(patient: Path, uid: str, files: list[File]) -> dict:
    """A series of the patient in this folder as a row of the table.

    Returns:
        ``plane`` (axial, coronal, sagittal, or "" where slices have no place), ``extent_mm`` along
        the normal from the first to the last slice, and the rest as DICOM says it.
    """
    tags = next((file.tags for file in files if not file.damaged), files[0].tags)
    if any(file.tags["Modality"] == "CT" for file in files):  # one header does not decide
        tags = tags | {"Modality": "CT"}
    places = [f.tags["ImagePositionPatient"] for f in files]
    places = np.array([p for p in places if isinstance(p, tuple) and len(p) == 3])
    along = [file.tags["ImageOrientationPatient"] for file in files]
    along = [a for a in along if isinstance(a, tuple) and len(a) == 6 and any(a)]
    plane, extent = "", ""
    if along and len(places):
        normal = np.cross(along[0][:3], along[0][3:])
        plane = ("sagittal", "coronal", "axial")[int(np.abs(normal).argmax())]
        extent = round(float(np.ptp(places @ normal)), 1)
    place = os.path.commonpath([os.path.dirname(file.path) for file in files])
    apart = {(f.tags["SOPInstanceUID"] or f.path, f.tags["ImagePositionPatient"]) for f in files}
    row = {"patient": printable(patient.name), "series": uid, "images": len(apart)}  # no copies
    row |= {"folder": printable(os.path.relpath(place, patient))}
    # These stay out of the table.
    images = sorted(str(file.tags["SOPInstanceUID"] or file.path) for file in files)
    row |= {"id": tags["PatientID"], "slices": digest(images)}
    row |= {"name": tags["PatientName"], "birth": tags["PatientBirthDate"]}
    row["scout"] = all("LOCALIZER" in file.tags["ImageType"].upper() for file in files)
    row["frames"] = max(int(file.tags["NumberOfFrames"] or 1) for file in files)
    row["slices_of_ct"] = not row["scout"] and any(is_ct(file) for file in files)
    row |= {"plane": plane, "extent_mm": extent} | {name: tags[tag] for name, tag in SAID.items()}
    return dict.fromkeys(COLUMNS, "") | row


def with_choices(
    patient: Path, files: list[File], known: pd.DataFrame, series=()
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The patient's series, one a row, with what is chosen there, and the table's rows of him.

    Args:
        patient, files: a folder, and what is below it.
        known: the table, see :func:`read_choices`.
        series: UIDs that go before what is taken there.
    """
    rows = [describe_series(patient, uid, own) for uid, own in find_series(patient, files).items()]
    rows = pd.DataFrame(rows, columns=[*COLUMNS, *INNER]).set_index("series", drop=False)
    own = known[known.patient == printable(patient.name)]  # a spreadsheet makes 7 of 007
    known = own if len(own) else known[known.series.isin(rows.index)]
    known = known.sort_values("take", ascending=False).drop_duplicates("series")
    images = known.get("images", pd.Series("", known.index))
    known = known.assign(had=images.where(known.converted != "", "")).set_index("series")
    chosen = ["take", "drop", "converted", "content", "had"]
    for column in [*chosen, *(name for name in known if name not in rows)]:
        rows[column] = known[column].reindex(rows.index).fillna("")
    if named := rows.index.intersection(series).tolist():
        rows["take"] = np.where(rows.index.isin(named), "x", "")
    return rows, own


def choose(rows: pd.DataFrame) -> str:
    """Of the rows of one patient, the series that becomes the volume.

    Returns:
        Its SeriesInstanceUID: the one taken; else the only CT of more than one image (another that
        may be slices is named); else the only one there is, which may be refused later.

    Raises:
        ValueError: if several are taken, several could be, they are of several patients, or a word
            under ``take`` is neither a yes nor a no.
    """
    chosen = taken(rows)
    said = set(chosen["take"].str.strip().str.lower()) - YES
    if asked := sorted(word for word in said if len(word) > 1 or word in "\u2717\u2718\u2612"):
        found = f"take is {', '.join(map(repr, asked))} in series.csv, neither a yes nor a no"
        raise ValueError(f"{found}: write x there, or leave it empty")
    if len(chosen) > 1:
        raise ValueError(f"{len(chosen)} series are taken in series.csv: one is needed")
    several = (rows.images.astype(int) > 1) & (rows.plane != "")
    several |= rows.frames.astype(int) > 1
    able = rows[(rows.modality == "CT") & several & ~rows.scout.astype(bool)]
    # Without a number both must differ: a name is spelt in several ways.
    who = ["id"] if (rows.id != "").any() else ["name", "birth"]
    if not len(chosen) and all(rows[c][rows[c] != ""].nunique() > 1 for c in who):
        owners = ", ".join(map(str, rows[who[0]].unique()))
        tag = "PatientID" if who == ["id"] else "PatientName"
        raise ValueError(
            f"series of several patients ({tag} {owners}): take what is of another out, or"
            " write x under take in series.csv"
        )
    for found in (chosen, able, rows):
        if len(found) == 1:
            rest = rows[rows.slices_of_ct.astype(bool)]
            for r in rest.drop(found.index, errors="ignore").itertuples() if found is able else ():
                what = f"{r.images} images, {r.description or 'no description'}"
                words = f"series {r.series} ({what}) is not taken but {found.series.iloc[0]}"
                words += ": if it is meant, write x under take in series.csv"
                print(f"{r.patient}: {words}", file=sys.stderr)
            return found.series.iloc[0]
    rows = able if len(able) > 1 else rows  # no scouts
    listed = [
        f"\n  {r.series}  {r.images} images, {r.modality or 'unknown'}, {r.plane or 'no plane'},"
        f" {r.extent_mm} mm, {r.description or 'no description'}"
        for r in rows.itertuples()
    ]
    single = len(rows) > 2 and all(rows.images.astype(int) == 1)
    why = " (each image has a SeriesInstanceUID of its own: give all of a scan the same)" * single
    raise ValueError(
        f"{len(rows)} series to choose from{why}, one is needed: write x under take in"
        f" series.csv, and give the command again{''.join(listed)}"
    )


def taken(rows: pd.DataFrame) -> pd.DataFrame:
    """Those with a sign under ``take`` that is no word for no."""
    return rows[~rows["take"].str.strip().str.lower().isin(NO)]
