"""CirrMRI600+ as a cohort: abdominal MRI of 337 patients with cirrhosis, a stage and a liver mask.

Source: Scientific Data 2025, doi 10.1038/s41597-025-05201-7; data osf.io/cuk24, CC BY-NC 4.0 (read
its LICENSE.txt). The stage (mild, moderate, severe) is a radiologist's look at the MRI, no
histology: weak and judged label are of one kind here. Written without access to the archive and
never run on it; everything found is listed with its fate in ``inventory.csv``.
"""

import os
import re
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from wspnb.data.cohort import EMPTY
from wspnb.files import printable, read_csv, relative, separator, write_csv
from wspnb.sources.archives import gather, is_archive, unusable, warn_left
from wspnb.sources.downloads import fetch_record, read_json

API = "https://api.osf.io/v2/nodes/cuk24/files/osfstorage/?page[size]=100"
SHA256 = {
    "Cirrhosis_T1_3D.zip": "36f533f0496ffc6bfb5c243a25a5e3927c682a538660484540e2cf565ce434d1",
    "Cirrhosis_T2_3D.zip": "539f0bc3bd3cdb0bb85b465ace8002bcb15631e8b59b81ca04dec0a7c287fda9",
}
TABLES = {"t1": "T1_age_gender_evaluation.csv", "t2": "T2_age_gender_evaluation.csv"}
SCAN = re.compile(r"Cirrhosis_(T[12])_3D/(train|valid|test)_(images|masks)/(\d+)\.nii(\.gz)?$")
HEALTHY = re.compile(r"(T[12])_W_Healthy/T[12]_(images|masks)/(\d+)\.nii(\.gz)?$")
SHORTCUT = (
    "healthy subjects come from other scanners: a public trial told them from patients with an AUC"
    " of .986 by what lies outside the liver. No result with them speaks of cirrhosis"
)


def make_cirrmri(
    folder: str | Path,
    local: str | Path | None = None,
    take: tuple[str, ...] = ("t1",),
    progress: bool = True,
) -> Path:
    """Write ``cohort.csv``: cohort "train" with the stage (0, 1, 2) as weak label, "judged" (the
    official validation and test patients), in both ``label`` 1 for severe, and ``stage``.

    With T1 and T2 a patient who is judged in one is judged in both (seven change sides in the
    official splits: named in a warning), so no patient is on two sides.

    Args:
        folder: of the download, ``cohort.csv`` and ``inventory.csv``.
        local: folder of a copy, archives or unpacked, used in place. None downloads.
        take: "t1", "t2" or both; "healthy" adds a cohort of that name; one of "fold0" to "fold4"
            judges that fold of five over all patients instead of the official parts.

    Raises:
        FileNotFoundError: if ``local`` is missing.
        ValueError: if ``take`` is unclear, the tables contradict each other, two files are one
            patient's scan, or nothing is left; others as
            :func:`wspnb.sources.downloads.fetch_record`.
    """
    folder, folds = Path(folder), [name for name in take if re.fullmatch("fold[0-4]", name)]
    kinds = [name for name in ("t1", "t2") if name in take]
    if not kinds or set(take) - {*kinds, *folds, "healthy"} or len(folds) > 1:
        raise ValueError(f"take={list(take)}: t1, t2 or both, healthy, and one of fold0 to fold4")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [f"Cirrhosis_{kind.upper()}_3D.zip" for kind in kinds]
    wanted += ["Metadata.zip", "LICENSE.txt"] + ["Healthy_subjects.zip"] * ("healthy" in take)
    lister = partial(list_osf, wanted=wanted)
    fetch = partial(fetch_record, "cuk24", folder, API, progress=progress, lister=lister)
    found = [path for path in gather(folder, local, fetch) if not is_archive(path)]
    inventory = list_scans(found, kinds, "healthy" in take)
    for column in ("volume", "mask"):  # from the table, so that both can be moved together
        inventory[column] = [relative(file, folder.absolute()) for file in inventory[column]]
    found = [path for path in found if os.path.isfile(path)]
    for name in TABLES.values():  # unpacked and packed, they may be there twice
        copies = [path for path in found if path.name == name]
        if len({path.read_bytes() for path in copies}) > 1:
            said = ", ".join(map(str, copies))
            raise ValueError(f"tables of one name that differ: {said}: take the wrong one away")
    stages = read_stages({path.name: path for path in found}, kinds)
    for column in ("stage", "age", "gender"):
        inventory[column] = inventory.patient.map(stages[column])
    sick = inventory.status.eq("") & inventory.split.ne("healthy")
    inventory.loc[sick & inventory.stage.isna(), "status"] = "no stage"
    write_csv(folder / "inventory.csv", inventory)
    used = inventory[inventory.status == ""].copy()
    used["cohort"] = divide(used, folds[0] if folds else "")
    sick = used.cohort != "healthy"
    if not {"train", "judged"} <= set(used.cohort) or used[sick].stage.nunique() < 3:
        raise ValueError(
            f"{folder}: {len(used)} scans with mask and stage, parts {sorted(set(used.cohort))}:"
            " all stages and both parts are needed; inventory.csv says what became of each file"
        )
    used["weak_label"] = (used.stage - 1).where(used.cohort == "train").astype("Int64")
    used["label"] = (used.stage == 3).astype(int)
    used["modality"] = "mr"
    columns = ["volume", "mask", "patient", "weak_label", "label", "cohort", "modality"]
    table = used[[*columns, "stage", "split", "sequence", "age", "gender"]]
    write_csv(folder / "cohort.csv", table.astype({"stage": "Int64"}))
    rest = inventory.status[inventory.status != ""]
    warn_left(f"{len(used)} scans", rest, folder / "inventory.csv")
    if "healthy" in take:
        warnings.warn(SHORTCUT, stacklevel=2)
    return folder / "cohort.csv"


def list_osf(_record: str, api: str, wanted: list[str]) -> dict[str, dict]:
    """As :func:`wspnb.sources.downloads.read_record`, of the wanted files of an OSF project,
    through its folders.

    Raises:
        ConnectionError: if the server cannot be reached or is not OSF.
        ValueError: if a file is not there, or not what it was.
    """
    pages, found = [api], {}
    while pages:
        page = read_json(pages.pop())
        try:
            for entry in page["data"]:
                about = entry["attributes"]
                if about["kind"] == "folder":
                    pages.append(entry["relationships"]["files"]["links"]["related"]["href"])
                elif (name := about["name"]) in wanted:
                    checksum = f"sha256:{about['extra']['hashes']['sha256']}"
                    row = {"key": name, "size": about["size"], "checksum": checksum}
                    found[name] = entry["links"]["download"], row
            pages += [page["links"]["next"]] if page["links"].get("next") else []
        except (KeyError, TypeError) as error:
            raise ConnectionError(f"{api}: not OSF's list of files ({error!r})") from error
    if absent := [name for name in wanted if name not in found]:
        raise ValueError(f"{api}: lists no {', '.join(absent)}: look at the project's page")
    for name in set(SHA256) & set(found):
        if (checksum := found[name][1]["checksum"]) != f"sha256:{SHA256[name]}":
            raise ValueError(
                f"{name} at {api} is not what it was: {checksum}, known is {SHA256[name]}."
                " Results would not compare: look at the project's page"
            )
    return dict(found[name] for name in wanted)


def list_scans(paths, kinds: list[str], healthy: bool) -> pd.DataFrame:
    """Each file with what its path says: ``volume``, ``mask``, ``patient``, ``sequence`` (t1, t2),
    ``split`` and ``status``, empty for what may be used.

    Raises:
        ValueError: if two files are the image, or the mask, of one patient and sequence.
    """
    rows, others = {}, []
    for path in map(Path, paths):
        text = path.as_posix()
        hidden = path.name.startswith(".") or "__MACOSX" in text
        scan, sound = SCAN.search(text), HEALTHY.search(text)
        problem = unusable(path)
        if hidden or problem or not (scan or sound):
            others.append({"volume": printable(path.absolute()), "status": problem or "no scan"})
            continue
        if scan:
            kind, split, what, name = scan.groups()[:4]
        else:  # 33 of their numbers are patients' too
            (kind, what, number), split = sound.groups()[:3], "healthy"
            name = f"healthy-{number}"
        key = (kind.lower(), split, name)
        row = rows.setdefault(key, {"sequence": key[0], "split": split, "patient": name})
        column = "volume" if what == "images" else "mask"
        if column in row:
            raise ValueError(f"two files of one name: {row[column]}, {path}: give one copy")
        row[column] = str(path.absolute())
    columns = ["volume", "mask", "patient", "sequence", "split", "status"]
    table = pd.DataFrame([*rows.values(), *others], columns=columns).fillna("")
    image = table.sequence != ""
    table.loc[image & (table["mask"] == ""), "status"] = "no mask"
    table.loc[image & (table.volume == ""), "status"] = "mask without image"
    table.loc[image & ~table.sequence.isin(kinds), "status"] = "another sequence"
    table.loc[(table.split == "healthy") & (not healthy), "status"] = "healthy"
    return table


def read_stages(files: dict[str, Path], kinds: list[str]) -> pd.DataFrame:
    """Stage (1 mild, 2 moderate, 3 severe) of each patient, and age and gender as text, from the
    tables.

    Raises:
        ValueError: if a table is missing, damaged, or contradicts another one.
    """
    parts, columns = [], {"patient id": "patient", "radiological evaluation": "stage"}
    for name in [TABLES[kind] for kind in kinds]:
        if name not in files:
            raise ValueError(f"{name} is missing: put it, or Metadata.zip, beside the images")
        table = read_csv(files[name], text=True, foreign=True, sep=separator(files[name]))
        if missing := {*columns, "age", "gender"} - {key.strip().lower() for key in table}:
            said = f"{files[name]}: columns {sorted(missing)} are missing, there are {list(table)}"
            raise ValueError(f"{said}: take the set's own table")
        table = table.rename(columns=lambda key: key.strip().lower()).rename(columns=columns)
        for column in ("patient", "stage"):  # of a spreadsheet
            table[column] = table[column].str.strip().str.replace(r"\.0*$", "", regex=True)
        table["patient"] = table.patient.str.replace("^0+(?=.)", "", regex=True)
        table = table[~table.stage.str.lower().isin(EMPTY)]  # is set aside as "no stage"
        if len(odd := table[~table.stage.isin(["1", "2", "3"])]):
            found = dict(zip(odd.patient[:5], odd.stage, strict=False))
            raise ValueError(f"{files[name]}: stages of patients {found} are none of 1, 2, 3")
        parts.append(table[["patient", "stage", "age", "gender"]])
    both = pd.concat(parts).set_index("patient").map(str.strip)
    both = both.mask(both.map(lambda said: said.lower() in EMPTY))
    alike = both.apply(lambda column: column.str.lower().str.replace(r"\.0*$", "", regex=True))
    differ = alike.groupby("patient", sort=False).nunique().gt(1).any(axis=1)
    if twice := differ.index[differ].tolist():
        raise ValueError(f"patients {twice[:5]} have two stages, ages or genders: correct a table")
    both = both.groupby("patient", sort=False).first().fillna("")  # the first that says it
    return both.assign(stage=pd.to_numeric(both.stage))


def divide(used: pd.DataFrame, fold: str = "") -> np.ndarray:
    """Cohort of each scan: "train", "judged" or "healthy"; a patient is in one only.

    Args:
        used: patient, split (of the set) and stage of each scan.
        fold: "fold0" to "fold4", dealt by patients and their three stages; empty for the official
            parts.
    """
    sick = used.split != "healthy"
    if fold:
        people = used[sick].drop_duplicates("patient")
        people = people.sort_values("patient").reset_index(drop=True)
        from sklearn.model_selection import StratifiedKFold  # takes seconds

        splits = StratifiedKFold(5, shuffle=True, random_state=0).split(people, people.stage)
        judged = set(people.patient[[test for _, test in splits][int(fold[-1])]])
    else:
        parts = used[sick].groupby("patient").split.agg(lambda s: sorted(set(s)))
        if moved := [patient for patient, own in parts.items() if len(own) > 1]:
            words = f"{len(moved)} patients change sides between T1 and T2 in the official splits"
            who = ", ".join(sorted(moved, key=int))
            warnings.warn(f"{words} ({who}): judged in both, trained on in none", stacklevel=3)
        judged = {patient for patient, own in parts.items() if own != ["train"]}
    return np.where(~sick, "healthy", np.where(used.patient.isin(judged), "judged", "train"))
