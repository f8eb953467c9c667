"""DICOM to NIfTI in Hounsfield units, one volume per patient, and the table that chooses it.

    python -m wspnb.data.dicom DICOM_FOLDER NIFTI_FOLDER [--series UID ...]

``OUT/series.csv`` has a row for every series below the patients' folders. Where one series of a
patient can be a volume, it is taken; where several can, one is chosen by any sign under ``take``
(``x``) but 0, no and the like; other words are asked for. A changed choice converts again, as do
files that have changed (``content``). ``drop`` names a file to leave out, such as one odd slice at
an end; several are parted by semicolons.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from wspnb.data.cohort import EMPTY, file_stamp
from wspnb.data.dicom_files import File, account, find_series, index, index_file, is_ct, leave_out
from wspnb.data.looks import as_respelt
from wspnb.data.series import convert_series, lost_slices
from wspnb.data.store import digest, digest_file
from wspnb.files import (
    alone,
    check_writable,
    plain_output,
    printable,
    read_csv,
    separator,
    write_csv,
)

__all__ = ["account", "convert_series", "find_series", "index", "main", "printable"]

SAID = {"thickness_mm": "SliceThickness", "kernel": "ConvolutionKernel"}  # column: tag
SAID |= {"contrast": "ContrastBolusAgent", "date": "StudyDate", "time": "AcquisitionTime"}
SAID |= {"description": "SeriesDescription", "modality": "Modality"}
COLUMNS = ["take", "drop", "patient", "folder", "images", "plane", "extent_mm", *SAID]
COLUMNS += ["series", "converted", "content"]
INNER = ["id", "slices", "scout", "frames", "slices_of_ct"]  # of rows, and not of the table
INNER += ["name", "birth"]
OWN = " (own)"  # behind the name of such a column where the table's owner has one
NEEDED = ("take", "drop", "patient", "series", "converted", "content")
# Under take, in small letters.
NO = {*EMPTY, "0", "0.0", "n", "no", "nein", "non", "false", "falsch", "faux", "falso", "f", "nej"}
NO |= {"onwaar", "nee", "fałsz", "nie", "ложь", "нет", "falskt", "yanliş", "não", "\u2610", "[ ]"}
YES = {"xx", "xxx", "1.0", "yes", "ja", "oui", "si", "sí", "sim", "tak", "да", "ok", "true", "wahr"}
YES |= {"vrai", "vero", "verdadero", "waar", "prawda", "истина", "sant", "doğru", "[x]", "take"}
SYSTEM = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")  # of no patient
SYSTEM += ("#recycle", "@Recycle", "#snapshot", "lost+found")


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


def choose(rows: pd.DataFrame) -> str:
    """Of the rows of one patient, the series that becomes the volume.

    Returns:
        Its SeriesInstanceUID: the one taken; else the only CT of more than one image (another that
        may be slices is named); else the only one there is, which may be refused later.

    Raises:
        ValueError: if several are taken, several could be, they are of several patients, or a word
            under ``take`` is neither a yes nor a no.
    """
    taken = _taken(rows)
    said = set(taken["take"].str.strip().str.lower()) - YES
    if asked := sorted(word for word in said if len(word) > 1 or word in "\u2717\u2718\u2612"):
        found = f"take is {', '.join(map(repr, asked))} in series.csv, neither a yes nor a no"
        raise ValueError(f"{found}: write x there, or leave it empty")
    if len(taken) > 1:
        raise ValueError(f"{len(taken)} series are taken in series.csv: one is needed")
    several = (rows.images.astype(int) > 1) & (rows.plane != "")
    several |= rows.get("frames", pd.Series(1, rows.index)).astype(int) > 1
    able = rows[(rows.modality == "CT") & several]
    able = able[~able.scout.astype(bool)] if "scout" in able else able
    # Without a number both must differ: a name is spelt in several ways.
    who = ["id"] if (rows.id != "").any() else ["name", "birth"]
    if not len(taken) and all(rows[c][rows[c] != ""].nunique() > 1 for c in who):
        owners = ", ".join(map(str, rows[who[0]].unique()))
        tag = "PatientID" if who == ["id"] else "PatientName"
        raise ValueError(
            f"series of several patients ({tag} {owners}): take what is of another out, or"
            " write x under take in series.csv"
        )
    for found in (taken, able, rows):
        if len(found) == 1:
            rest = rows[rows.get("slices_of_ct", pd.Series(False, rows.index)).astype(bool)]
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


def _taken(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[~rows["take"].str.strip().str.lower().isin(NO)]


def convert_patient(
    patient: Path, out: Path, known: pd.DataFrame, series=()
) -> tuple[pd.DataFrame, str]:
    """One patient's volume, unless it is there and the choice has not changed.

    Args:
        patient, out: folders of the patient and of the volumes.
        known: the table of an earlier call.
        series: UIDs that go before what is taken there.

    Returns:
        The patient's rows, and what is wrong, or "".
    """
    name = printable(patient.name)
    files, file = index(patient), out / f"{name}.nii.gz"
    rows = [describe_series(patient, uid, own) for uid, own in find_series(patient, files).items()]
    rows = pd.DataFrame(rows, columns=[*COLUMNS, *INNER]).set_index("series", drop=False)
    own = known[known.patient == name]  # a spreadsheet makes 7 of 007
    gone = own[~own.series.isin(rows.index)]  # their folder is not there today
    away, before = _taken(gone), own[own.converted != ""]
    known = own if len(own) else known[known.series.isin(rows.index)]
    known = known.sort_values("take", ascending=False).drop_duplicates("series")
    own_columns = [name for name in known if name not in rows]  # of the table's owner
    for column in ("take", "drop", "converted", "content", *own_columns):
        rows[column] = known.set_index("series")[column].reindex(rows.index).fillna("")
    if named := rows.index.intersection(series).tolist():
        rows["take"] = np.where(rows.index.isin(named), "x", "")
    problem, uid, stays, without, said = "", "", "", "", ()
    stamp = digest(file_stamp(str(file)))[:8] if file.is_file() else ""
    ours = not stamp or before.content.str.endswith(f"-{stamp}").any()  # as it was written
    try:
        if len(away) and not named:
            raise ValueError(
                f"series {', '.join(away.series)} is taken in series.csv and not below: bring its"
                " folder back, or take another there"
            )
        if not len(rows):
            convert_series(patient, file, (), files)  # says why there is none
        uid = choose(rows)
        drop = "" if (drop := rows.loc[uid, "drop"]).strip().lower() in EMPTY else drop
        kept = leave_out(files, patient, drop, uid)
        without = f" (without {drop}, as series.csv says: take it back if sound)" * bool(drop)
        had = known[(known.series == uid) & (known.converted != "")].images
        had = int(had.iloc[0]) if len(had) and had.iloc[0].isdecimal() else 0
        if had > (now := rows.loc[uid, "images"]) and not lost_slices(files):  # these are named
            stays, rows.loc[uid, "images"] = f" ({file} stays as it was)", had
            raise ValueError(
                f"series {uid} has {now} images now, and had {had} when it was converted: bring the"
                " others back, or delete its row in series.csv if it is right so"
            )
        own = [digest_file(e.path) for e in kept if e.tags.get("SeriesInstanceUID") == uid]
        own += [[printable(file.path), file.reason] for file in lost_slices(kept)]
        state = [f"yes, without {drop}" if drop else "yes", digest(own)[:16]]

        def made():  # of these files, and as it was written
            return [state[0], f"{state[1]}-{digest(file_stamp(str(file)))[:8]}"]

        if file.is_file() and rows.loc[uid, ["converted", "content"]].tolist() == made():
            said = file, "(there already, not converted again)"
        else:
            new = out / f".{name}.new.nii.gz"  # of no patient, whose folder has no dot before it
            convert_series(patient, file if ours else new, (uid,), kept)
            if not ours:  # the other one is of the folder's owner
                file.replace(former := out / f"{name}.former-{stamp}.nii.gz")
                new.replace(file)
                print(f"{file} from before is not of this command: it is {former} now")
            new.unlink(missing_ok=True)  # left by a call that was killed between the two
            said = file, f"(without {drop})" if drop else ""
        rows[["converted", "content"]] = ""
        rows.loc[uid, ["converted", "content"]] = made()
        if (plane := rows.loc[uid, "plane"]) not in ("", "axial"):
            said = *said, f"({plane} slices; what is axial in it is cut across them)"
        if len(former := before[~before.series.isin(rows.index)]):
            words = f"{file} is of series {uid} now, and was of {', '.join(former.series)}"
            words += ", which is not below any more: is it the same patient's? If not, delete it"
            print(words, file=sys.stderr)
    except (MemoryError, BrokenPipeError):  # the latter of what is said here, as to head
        raise
    except Exception as error:  # one patient must not end the cohort, whatever is wrong
        known_kind = isinstance(error, (ValueError, OSError, RuntimeError))
        problem, uid = str(error) if known_kind else repr(error), ""
        problem = problem if printable(patient) in problem else f"{printable(patient)}: {problem}"
        problem += without + stays
        if not stays and ours and (rows.converted != "").any():  # other choice, or files
            problem += f" (its volume of before is taken away: {file})" * file.exists()
            file.unlink(missing_ok=True)
            rows[["converted", "content"]] = ""
        elif not stays and file.exists() and not len(away):
            rows[["converted", "content"]] = ""
            problem += f" ({file} is there from before, and not of these files)"
    print(*said, end="\n" * bool(said))  # not above: a full log takes no volume away
    listing = account(files, uid, problem.split("\n")[0])
    if uid:
        dropped = ~listing.file.isin([printable(entry.path) for entry in kept])
        listing.loc[dropped, "use"] = "dropped as series.csv says"
    write_csv(listed := out / "files" / f"{name}.csv", listing)
    if left := (listing.use != "used").sum():
        print(f"  {left} of {len(listing)} files not used: {listed} says why")
    noted = gone[["drop", *own_columns]].ne("").any(axis=1) & ~gone.series.isin(away.series)
    kept_rows = pd.concat([away, gone[noted].assign(converted="", content="")])
    kept_rows = kept_rows.set_index("series", drop=False).assign(
        id="", slices="", **dict.fromkeys(INNER[2:], False)
    )
    return pd.concat([rows, kept_rows]).fillna(""), problem


def _shared(rows: pd.DataFrame, folder: Path, out: Path) -> list[str]:
    """Series that lie in the folders of several patients: copies, or a scan in parts, whose volumes
    go."""
    problems, told = [], []
    used = rows[rows.converted != ""].reset_index(drop=True)
    for uid, own in used.groupby("series", sort=False):
        if own.id.nunique() > 1:
            names = ", ".join(own.patient[:5])
            words = f"series {uid} is in the folders {names}, under several PatientID"
            print(f"{folder}: {words}: is it one scan in parts?", file=sys.stderr)
    for (uid, _), own in (
        rows[rows.slices != ""].reset_index(drop=True).groupby(["series", "id"], sort=False)
    ):
        if len(own) < 2 or not (made := own[own.converted != ""].content).size:
            continue
        parts = own.slices.nunique() > 1 or made.str[:16].nunique() > 1
        if len(made) < 2 and not parts:  # a copy beside another series that is taken
            continue
        for name in own.patient[own.converted != ""] if parts else ():
            (out / f"{name}.nii.gz").unlink(missing_ok=True)
        what = "differ, so that each is a part, and no volume is kept" if parts else "are equal"
        problems.append(
            f"{folder}: series {uid} of one PatientID is in the folders {', '.join(own.patient)},"
            f" whose files {what}: put them into one folder, or give two patients a PatientID each"
        )
        told.append({*own.patient})
    for who, own in used[used.id != ""].groupby("id", sort=False):
        if own.patient.nunique() > 1 and {*own.patient} not in told:
            names = ", ".join(own.patient.unique()[:5])
            words = f"the folders {names} have one PatientID, {who}: where they are one patient"
            print(f"{folder}: {words}, write one name in the cohort's table", file=sys.stderr)
    return problems


def main(arguments: list[str] | None = None) -> int:
    """Every folder in a folder is a patient; 1 if any could not be converted."""
    parser = argparse.ArgumentParser(prog="python -m wspnb.data.dicom", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="one folder per patient")
    parser.add_argument("out", type=Path, help="gets PATIENT.nii.gz, series.csv, files/PATIENT.csv")
    parser.add_argument(
        "--series", nargs="*", action="extend", default=[], help="SeriesInstanceUIDs to take"
    )
    asked = parser.parse_args(arguments)
    plain_output()
    if not asked.folder.is_dir():
        found = "unpack this file" if asked.folder.exists() else "no such folder"
        parser.error(f"{asked.folder}: {found}")
    try:
        check_writable(asked.out)
    except OSError as error:
        parser.error(f"{error}: name a folder for the volumes that can be written to")
    ours = [asked.out.resolve(), asked.out.resolve() / "files"]  # where it lies among the patients
    try:
        inside = sorted(path for path in asked.folder.iterdir() if path.name[0] != ".")
    except OSError as error:
        parser.error(f"{error}: give yourself the right to list it")
    # os.path: of an entry that cannot be looked at, pathlib raises.
    patients = [path for path in inside if os.path.isdir(path) and path.name not in SYSTEM]
    patients = [path for path in patients if path.resolve() not in ours]
    problems = [] if patients else [f"{asked.folder}: no folder of a patient in it"]
    loose = [path for path in inside if not os.path.isdir(path)]
    loose = [index_file(str(path)) for path in loose if not path.name.endswith(".nii.gz")]
    if loose := [file for file in loose if file.tags or file.damaged]:
        problems.append(
            f"{asked.folder}: {len(loose)} images, archives or damaged files beside the patients'"
            f" folders, such as {printable(loose[0].path)}, which are of no patient: put them into"
            " folders, or take them away"
        )
    try:
        with alone(asked.out / "series.csv"):
            problems += _convert_all(patients, asked)
    except (OSError, ValueError) as error:  # of the table, whatever is wrong with a patient
        parser.error(f"{error}; when this is mended, give the command again")
    print(*(f"{problem}\n" for problem in problems), sep="", end="", file=sys.stderr)
    volumes = (asked.out / f"{name}.nii.gz" for name in {printable(path.name) for path in patients})
    there = sum(map(os.path.isfile, volumes))
    print(f"{there} of {len(patients)} patients have a volume in {asked.out}", flush=True)
    return 1 if problems else 0


def _choices(table: Path, patients: list[str]) -> pd.DataFrame:
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


def _convert_all(patients: list[Path], asked: argparse.Namespace) -> list[str]:
    """Every patient in turn, the table after each; what is wrong. What its owner writes into it
    meanwhile stays."""
    table, problems, found, keys = asked.out / "series.csv", [], [], ["patient", "series"]
    names, written = [printable(path.name) for path in patients], None
    before = _choices(table, names)
    for patient, name in zip(patients, names, strict=True):
        if len(os.fsencode(name)) > 240:
            problems.append(f"{name}: a folder's name of over 240 bytes: shorten it")
            continue
        if names.count(name) > 1:
            problems.append(f"{patient.parent / name}: several folders print so: rename one")
            continue
        known = _choices(table, names)
        others = known.patient.isin(set(names) - {name})
        rows, problem = convert_patient(patient, asked.out, known[~others], tuple(asked.series))
        found.append(rows)
        problems += [problem] if problem else []
        known, done = _choices(table, names), pd.concat(found)
        if table.exists() and written not in (None, table.read_bytes()):
            new = known.drop_duplicates(keys).set_index(keys)[["take", "drop"]]
            done = done.set_index(keys, drop=False)
            done[["take", "drop"]] = new.reindex(done.index).fillna(done[["take", "drop"]])
        rest = known.patient.isin(names) | ~known.series.isin(done.series)
        rest = known[~known.patient.isin(done.patient) & rest]
        own = [name for name in known if name not in COLUMNS]
        whole = pd.concat([done, rest])[[*COLUMNS, *own]].fillna("")
        whole = whole.rename(columns=lambda name: name.removesuffix(OWN))
        write_csv(table, whole, separator(table) if table.exists() else ",")
        written = table.read_bytes()
    gone = before[~before.patient.isin(names) & (before.converted != "")]
    for row in gone[gone.series.isin(done.series)].itertuples() if found else ():
        where = f"{asked.out / row.patient}.nii.gz"
        if os.path.exists(where):
            words = "is of a folder that has another name now: delete it, or name it as the folder"
            print(f"{where} {words}", file=sys.stderr)
    problems += _shared(done, asked.folder, asked.out) if found else []
    for uid in sorted({*asked.series} - {uid for rows in found for uid in rows.index}):
        problems.append(f"{asked.folder}: no series {uid} (--series) below")
    return problems


if __name__ == "__main__":
    warnings.showwarning = lambda words, *_: print(f"  warning: {words}", file=sys.stderr)
    warnings.simplefilter("always", UserWarning)  # also where PYTHONWARNINGS says ignore
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted: give the command again to go on", file=sys.stderr)
        sys.exit(130)
