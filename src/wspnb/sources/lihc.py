"""TCGA-LIHC as a cohort: 49 public patients, portal-venous CT with a histological score.

Volumes: Zenodo record 8199165, the authors' preprocessed files. What it holds is taken as found:
archives are unpacked, every file is listed with its fate in ``inventory.csv``. Labels: one's own
table, or the ``dataframe_lihc.csv`` of the paper's released code, fetched when it is needed and not
part of this package (the code has no licence at the commit studied). Raw collection: TCIA,
doi 10.7937/K9/TCIA.2016.IMMQW8UQ.
"""

import re
from functools import partial
from pathlib import Path

import pandas as pd

from wspnb.data.cohort import EMPTY
from wspnb.files import own_files, printable, read_csv, relative, separator, write_csv
from wspnb.sources.archives import OTHERS, SUFFIXES, gather, unusable, warn_left
from wspnb.sources.downloads import API, fetch_file, fetch_record

RECORD = "8199165"
COMMIT = "8904203398e2a7d8e9a8fd2c459aa229feb47091"
LABELS_URL = (
    f"https://raw.githubusercontent.com/Guerbet-AI/wsp-contrastive/{COMMIT}/dataframe_lihc.csv"
)
LABELS_SHA256 = "b96d280340ba78fa2c87498d99b6d727063963a3a22e1df89d5835ff3ba8ea4a"
# Ishak's score as TCGA's field `fibrosis_ishak_score` prints it, up to " - ", and its class.
ISHAK = {"0": 0, "1": 1, "2": 1, "1,2": 1, "3": 2, "4": 2, "3,4": 2, "5": 3, "6": 4}
FIRST_POSITIVE = 3  # Ishak 5 and 6 are label 1 (paper)
NIFTI = re.compile(r"\.nii(\.gz)?\Z", re.IGNORECASE)  # a Windows share writes .NII.GZ
BARCODE = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}")
AMERICAN = r"(?<!\d)(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])-(\d{4})(?!\d)"  # of TCIA's own names
DATE = re.compile(rf"\d{{4}}-\d{{2}}-\d{{2}}|{AMERICAN}")
# A mask beside its volume, by its name.
SEGMENTATION = r"(liver|\d*seg|segmentation|mask|label)"
SEGMENTATION = re.compile(rf"[-_.]{SEGMENTATION}$|^{SEGMENTATION}[-_.]", re.IGNORECASE)


def make_lihc(
    folder: str | Path,
    local: str | Path | None = None,
    labels: str | Path | None = None,
    accept_changed: bool = False,
    progress: bool = True,
) -> Path:
    """Write ``cohort.csv``: one row per labelled patient, their oldest scan, cohort "d2".

    Files in a folder called ``masks`` (``FOLDER/masks``, or one in ``local`` or in the record) are
    liver masks of the volumes of the same name (or NAME_part_551, of CADS).

    Args:
        folder: of the download, the unpacked archives, ``cohort.csv`` and ``inventory.csv``.
        local: folder of a copy of the record, archives or NIfTI files, used in place; without a
            ``registry.json`` it cannot be verified. None downloads the record.
        labels: see :func:`read_labels`; None fetches the authors' table.
        accept_changed, progress: see :func:`wspnb.sources.downloads.fetch_record`.

    Raises:
        FileNotFoundError: if ``local`` or ``labels`` is missing.
        ValueError: if files and labels do not fit together; others as
            :func:`wspnb.sources.downloads.fetch_record` and :func:`wspnb.sources.archives.unpack`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    table = read_labels(labels or fetch_labels(folder))  # before gigabytes are fetched
    downloaded = local and (Path(local) / "registry.json").exists()  # can be verified
    fetch = partial(fetch_record, RECORD, local or folder, API, accept_changed, progress)
    found = gather(folder, None if downloaded else local, fetch)
    inventory = join(list_files({*found, *own_files(folder / "masks", "*")}), table)
    root = folder.absolute()  # what is below it is named from there, so that it can be moved
    inventory["file"] = [relative(file, root) for file in inventory.file]
    write_csv(folder / "inventory.csv", inventory)
    used = inventory[inventory.status == "used"].sort_values("patient")
    if used.label.nunique() < 2:
        raise ValueError(
            f"{folder}: {len(used)} patients with file and label, labels {set(used.label)}: both"
            f" are needed; {folder / 'inventory.csv'} says what became of each file and label"
            f" ({', '.join(f'{k}: {n}' for k, n in inventory.status.value_counts().items())})."
            f" Files are called {_some(inventory.file)}, labels are for {_some(table.key)}"
        )
    masks = inventory[inventory.status == "mask"]
    masks = dict(zip(masks.name, masks.file, strict=True))
    cohort = pd.DataFrame({"volume": used.file, "mask": [masks.get(n, "") for n in used.name]})
    cohort = cohort.assign(patient=used.patient, weak_label="", label=used.label, cohort="d2")
    write_csv(folder / "cohort.csv", cohort.assign(**used[["class", "date", "score"]]))
    rest = inventory.status[~inventory.status.isin(["used", "mask", "archive", "no CT"])]
    warn_left(f"{len(used)} patients", rest, folder / "inventory.csv")
    return folder / "cohort.csv"


def fetch_labels(folder: Path) -> Path:
    """The authors' label table, from their public repository at a fixed commit, verified."""
    instead = (
        "give a table of your own (labels_file) with the columns patient (TCGA barcode) and score"
        " (Ishak), or patient and label (0/1); TCGA's clinical field is fibrosis_ishak_score"
    )
    return fetch_file(LABELS_URL, folder, f"sha256:{LABELS_SHA256}", "dataframe_lihc.csv", instead)


def read_labels(path: str | Path) -> pd.DataFrame:
    """A table of labels, checked: each row says who, and the score, the class or the label.

    Args:
        path: CSV file. Column ``subject`` (file name of the scan) or ``patient`` (a text with the
            TCGA barcode), and at least one of ``score`` (Ishak, such as "3,4 - Fibrous Speta"),
            ``class`` (0 to 4) and ``label`` (0/1).

    Returns:
        ``key`` (file name without its ending, or barcode), ``patient``, ``score``, ``class`` (""
        where unknown), ``label`` (0/1) and ``line`` of each row that has a label; ``attrs["by"]``
        says which column was the key.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: with every problem found (the first ten): line, value, what to do.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such table of labels")
    raw = read_csv(path, text=True, foreign=True, skip_blank_lines=False, sep=separator(path))
    raw.columns = raw.columns.str.strip()
    by = next((name for name in ("subject", "patient") if name in raw), None)
    if by is None or not {"score", "class", "label"} & set(raw.columns):
        needed = "subject or patient, and at least one of score, class, label"
        raise ValueError(f"{path}: columns {list(raw.columns)}: needed are {needed}")
    rows, problems, first, labels = [], [], {}, {}
    for line, row in enumerate(raw.to_dict("records"), start=2):  # blank ones count
        if not any(value.strip() for value in row.values()):
            continue
        try:
            own = {"line": line, **_row(row, by)}
        except ValueError as error:
            problems.append(f"line {line}: {error}")
            continue
        key, patient, label = own["key"], own["patient"], own["label"]
        if (other := first.setdefault(key, own)) is not own:
            problems.append(f"line {line}: {key!r} is already in line {other['line']}: delete one")
        elif label != "":
            known = labels.setdefault(patient, own)
            if known["label"] != label:
                here = f"patient {patient} has label {label} here and {known['label']} in line"
                problems.append(f"line {line}: {here} {known['line']}: correct it")
            rows.append(own)
    if problems or not rows:
        shown = "\n  ".join(problems[:10] or ["no row has a label"])
        raise ValueError(f"{path}: {len(problems)} problems in the table of labels\n  {shown}")
    table = pd.DataFrame(rows)
    table.attrs["by"] = by
    return table


def list_files(paths) -> pd.DataFrame:
    """Each file with what its name says: ``file``, ``name`` (without ending), ``patient``, ``date``
    (empty where there is none) and ``status``: "mask", "archive", "no CT" (other), or empty."""
    rows, paths = [], sorted(map(Path, paths))
    stems = {NIFTI.sub("", path.name) for path in paths}
    for path in paths:
        small = path.name.lower()
        name = NIFTI.sub("", path.name) if NIFTI.search(path.name) else ""
        barcode, date = BARCODE.search(name), DATE.search(name)
        kind = "mask" if path.parent.name == "masks" else "" if barcode else "no TCGA name"
        name = name.removesuffix("_part_551") if kind == "mask" else name  # of CADS
        kind = "no CT" if not name or name.startswith(".") else kind
        bare = {name[: m.start()] + name[m.end() :] for m in SEGMENTATION.finditer(name)} & stems
        if kind == "" and bare:
            kind, name = "mask", min(bare)  # beside its volume
        kind = "archive" if small.endswith(SUFFIXES) else kind
        kind = f"an archive that is not unpacked ({path.name})" if small.endswith(OTHERS) else kind
        file, patient = printable(path.absolute()), barcode[0] if barcode else ""
        date = re.sub(AMERICAN, r"\3-\1-\2", date[0]) if date else ""
        rows.append((file, printable(name), patient, date, unusable(path) or kind))
    return pd.DataFrame(rows, columns=["file", "name", "patient", "date", "status"])


def join(files: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Files and labels together; nothing is lost, ``status`` says what became of each.

    Status: as :func:`list_files`, "used", "another scan is used" (of a patient: the oldest one that
    has a label is used) or "no label"; for a row of the labels "no file".

    Raises:
        ValueError: if two volumes, or two masks, have one name.
    """
    files, by = files.copy(), "name" if labels.attrs["by"] == "subject" else "patient"
    volumes = files.status == ""
    images = files[volumes | (files.status == "mask")]
    twice = images[images.duplicated(["status", "name"], keep=False)].sort_values("name")
    if len(twice):
        advice = "give the folder of those that are CT (local_file), masks in one called masks"
        if (twice.status == "mask").all():
            advice = "two masks of one volume, take one away"
        raise ValueError(f"two files of one name: {', '.join(twice.file[:2])}: {advice}")
    known = labels.set_index("key")[["score", "class", "label"]].astype(object)
    files = files.join(known, on=by)
    labelled = files[volumes & files.label.notna()]
    # A scan without a date comes last.
    phase = labelled.name.str.replace(BARCODE, "", regex=True)
    portal = phase.str.contains("VEN|PORTAL|PV", case=False)  # as D2 is
    oldest = labelled.assign(when=labelled.date.replace("", "9999"), other=~portal)
    used = oldest.sort_values(["when", "other", "name"]).drop_duplicates("patient")
    rest = volumes & ~files.index.isin(used.index)
    files.loc[rest, "status"] = "no label"
    files.loc[rest & files.patient.isin(used.patient), "status"] = "another scan is used"
    files.loc[used.index, "status"] = "used"
    absent = labels[~labels.key.isin(files[by][volumes])]
    absent = absent.assign(status="no file", name=absent.key)
    columns = ["file", "name", "patient", "date", "status", "score", "class", "label"]
    return pd.concat([files, absent])[columns].fillna("").reset_index(drop=True)


def _row(row: dict, by: str) -> dict:
    """One row of labels: its three values agree, and are completed."""
    name, barcode = row[by].strip(), BARCODE.search(row[by])
    if not barcode:
        raise ValueError(f"{by} {name!r} holds no TCGA barcode (TCGA-XX-XXXX): correct it")
    key = re.sub(r"\.nii(\.gz)?$", "", name) if by == "subject" else barcode[0]
    given = {column: row.get(column, "").strip() for column in ("score", "class", "label")}
    score, stage, label = ("" if value.lower() in EMPTY else value for value in given.values())
    stage, label = _whole("class", stage, 4), _whole("label", label, 1)
    if score:
        if (graded := ISHAK.get(score.split(" - ")[0].strip())) is None:
            raise ValueError(f"score {score!r} is no Ishak score: one of {', '.join(ISHAK)}")
        if stage not in ("", graded):
            raise ValueError(f"score {score!r} is class {graded}, but class is {stage}: correct it")
        stage = graded
    if stage != "":
        positive = int(stage >= FIRST_POSITIVE)
        if label not in ("", positive):
            why = f"from {FIRST_POSITIVE} on it is 1"
            raise ValueError(f"class {stage} is not label {label}: {why}")
        label = positive
    return {"key": key, "patient": barcode[0], "score": score, "class": stage, "label": label}


def _whole(name: str, value: str, highest: int) -> int | str:
    """A whole number from 0, or "" where nothing is given."""
    if not value:
        return ""
    number = pd.to_numeric(value, errors="coerce")
    if number not in range(highest + 1):
        raise ValueError(f"{name} {value!r} is not one of 0 to {highest}: correct it")
    return int(number)


def _some(names) -> str:
    return ", ".join(repr(Path(name).name) for name in list(names)[:2]) or "nothing"
