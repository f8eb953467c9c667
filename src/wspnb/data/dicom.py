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

import pandas as pd

from wspnb.data.choices import COLUMNS, INNER, OWN, choose, read_choices, taken, with_choices
from wspnb.data.cohort import EMPTY, file_stamp
from wspnb.data.dicom_files import File, account, find_series, index, index_file, leave_out
from wspnb.data.series import convert_series, lost_slices
from wspnb.data.store import digest, digest_file
from wspnb.files import alone, check_writable, plain_output, printable, separator, write_csv

__all__ = ["account", "convert_series", "find_series", "index", "main", "printable"]

SYSTEM = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")  # of no patient
SYSTEM += ("#recycle", "@Recycle", "#snapshot", "lost+found")


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
    name, files = printable(patient.name), index(patient)
    file = out / f"{name}.nii.gz"
    rows, own = with_choices(patient, files, known, series)
    gone = own[~own.series.isin(rows.index)]  # their folder is not there today
    away, before = taken(gone), own[own.converted != ""]
    problem, uid, stays, without, kept, said = "", "", "", "", files, ()
    stamp = digest(file_stamp(str(file)))[:8] if file.is_file() else ""
    ours = not stamp or before.content.str.endswith(f"-{stamp}").any()  # as it was written
    try:
        if len(away) and not rows.index.isin(series).any():
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
        had = int(had) if (had := rows.loc[uid, "had"]).isdecimal() else 0
        if had > (now := rows.loc[uid, "images"]) and not lost_slices(files):  # these are named
            stays, rows.loc[uid, "images"] = f" ({file} stays as it was)", had
            raise ValueError(
                f"series {uid} has {now} images now, and had {had} when it was converted: bring the"
                " others back, or delete its row in series.csv if it is right so"
            )
        used = [digest_file(e.path) for e in kept if e.tags.get("SeriesInstanceUID") == uid]
        used += [[printable(file.path), file.reason] for file in lost_slices(kept)]
        state = [f"yes, without {drop}" if drop else "yes", digest(used)[:16]]

        def made():  # of these files, and as it was written
            return [state[0], f"{state[1]}-{digest(file_stamp(str(file)))[:8]}"]

        if file.is_file() and rows.loc[uid, ["converted", "content"]].tolist() == made():
            said = file, "(there already, not converted again)"
        else:
            _put(patient, file, (uid,), kept, "" if ours else stamp)
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
    _write_account(out / "files" / f"{name}.csv", files, kept, uid, problem)
    owned = [column for column in own if column not in COLUMNS and column not in INNER]
    noted = gone[["drop", *owned]].ne("").any(axis=1) & ~gone.series.isin(away.series)
    stay = pd.concat([away, gone[noted].assign(converted="", content="")])
    stay = stay.set_index("series", drop=False).assign(id="", slices="")
    return pd.concat([rows, stay.assign(**dict.fromkeys(INNER[2:], False))]).fillna(""), problem


def _put(patient: Path, file: Path, series: tuple[str], kept: list[File], other: str) -> None:
    """The volume in its place; ``other`` is the stamp of one there that is the folder's owner's,
    which is kept under another name."""
    new = file.with_name(f".{file.name.removesuffix('.nii.gz')}.new.nii.gz")  # no patient's name
    convert_series(patient, new if other else file, series, kept)
    if other:
        former = file.with_name(f"{file.name.removesuffix('.nii.gz')}.former-{other}.nii.gz")
        file.replace(former)
        new.replace(file)
        print(f"{file} from before is not of this command: it is {former} now")
    new.unlink(missing_ok=True)  # left by a call that was killed between the two


def _write_account(listed: Path, files: list[File], kept: list[File], uid: str, problem: str):
    """What became of each file of a patient, and how many were not used."""
    listing = account(files, uid, problem.split("\n")[0])
    if uid:
        dropped = ~listing.file.isin([printable(entry.path) for entry in kept])
        listing.loc[dropped, "use"] = "dropped as series.csv says"
    write_csv(listed, listing)
    if left := (listing.use != "used").sum():
        print(f"  {left} of {len(listing)} files not used: {listed} says why")


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


def _convert_all(patients: list[Path], asked: argparse.Namespace) -> list[str]:
    """Every patient in turn, the table after each; what is wrong. What its owner writes into it
    meanwhile stays."""
    table, problems, found, keys = asked.out / "series.csv", [], [], ["patient", "series"]
    names, written = [printable(path.name) for path in patients], None
    before = read_choices(table, names)
    for patient, name in zip(patients, names, strict=True):
        if len(os.fsencode(name)) > 240:
            problems.append(f"{name}: a folder's name of over 240 bytes: shorten it")
            continue
        if names.count(name) > 1:
            problems.append(f"{patient.parent / name}: several folders print so: rename one")
            continue
        known = read_choices(table, names)
        others = known.patient.isin(set(names) - {name})
        rows, problem = convert_patient(patient, asked.out, known[~others], tuple(asked.series))
        found.append(rows)
        problems += [problem] if problem else []
        known, done = read_choices(table, names), pd.concat(found)
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
