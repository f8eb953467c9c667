"""OLIVES: label tables as the authors publish them, checked, and the user's images into a store.

Images and tables: Zenodo, doi 10.5281/zenodo.7105232 (Prabhushankar et al., NeurIPS 2022). Paths
end in ``folder/visit/side/file``, e.g. ``/Prime_FULL/02-010/W0/OD/0.tif``; the number in the file's
name is the scan, 0 to 48. What is wrong with a table is refused, and repaired only on request.
"""

import hashlib
import io
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from wspnb.data.bscans import BIOMARKERS, prepare_bscan, write_bscans
from wspnb.data.cohort import EMPTY, locate
from wspnb.data.inventory import duplicates
from wspnb.data.store import ALL_USED
from wspnb.files import own_files, read_csv, separator

N_SCANS = 49  # B-scans of a visit
WHO = ("Patient_ID", "Eye_ID")  # numbers without gaps
GREY = ("L", "RGB", "RGBA", "P", "1")  # modes of eight bits at most


def read_labels(csv: str | Path, swapped: str = "refuse") -> pd.DataFrame:
    """One of the authors' image tables with plain names.

    Args:
        csv: table with a column of paths, BCVA, CST and Patient_ID; Eye_ID, biomarkers and Snellen
            where it has them.
        swapped: what to do where BCVA and Snellen carry each other's header: "refuse" or "repair".

    Returns:
        image, patient, eye, side, visit, scan (1..49), position, bcva (letters), cst (um), volume,
        and the biomarkers of ``BIOMARKERS`` that the table has, 0/1.

    Raises:
        ValueError: names file, row and value: missing columns, paths of another form, repeated
            paths, swapped headers, biomarkers that are not 0 or 1, two patients in one visit.
    """
    csv = Path(csv)
    raw = read_csv(csv, foreign=True, sep=separator(csv))
    column = next((c for c in raw if c.startswith(("Path", "File_Path"))), None)
    missing = [c for c in ("BCVA", "CST", "Patient_ID") if c not in raw]
    if column is None or missing:
        raise ValueError(f"{csv}: no column {missing or 'Path or File_Path'}; it has {list(raw)}")
    if headers_swapped(raw):
        if swapped != "repair":
            raise ValueError(
                f"{csv}: BCVA holds Snellen denominators (first {raw.BCVA[0]:g}): headers swapped; "
                "correct them, or read with swapped='repair'"
            )
        if "Snellen" not in raw:
            raise ValueError(f"{csv}: BCVA holds Snellen denominators and no column the letters")
        raw = raw.rename(columns={"BCVA": "Snellen", "Snellen": "BCVA"})
    # File names as Prime's 27.tif and TREX's TREXW_000027.tif.
    form = r"([^/]+)/([^/]+)/(O[DS])/[^/]*?(\d+)\.(?i:tif|tiff|png|jpg)$"
    parts = raw[column].str.extract(form)
    _refuse(csv, raw[column], parts[0].isna(), "is no folder/visit/side/file")
    _refuse(csv, raw[column], raw[column].duplicated(), "a second time")
    beyond = parts[3].astype(int) >= N_SCANS
    _refuse(csv, raw[column], beyond, f"is no scan of 0 to {N_SCANS - 1}, as this protocol has")
    numbers = {}
    for name in [name for name in ("BCVA", "CST", *WHO) if name in raw]:
        found = numbers[name] = pd.to_numeric(raw[name], errors="coerce")
        known = raw[name].notna() & ~raw[name].astype(str).str.lower().isin(EMPTY)
        wrong = found.isna() & (known | (name in WHO)) | (found % 1 > 0) & (name in WHO)
        _refuse(csv, raw[name], wrong, "is no number", f"{name} ")
    scan = parts[3].astype(int) + 1
    table = pd.DataFrame(
        {
            "image": raw[column].str.lstrip("/"),
            "patient": numbers["Patient_ID"].astype(int).astype(str),
            "eye": numbers.get("Eye_ID", numbers["Patient_ID"]).astype(int),
            "side": parts[2],
            "visit": parts[1],
            "scan": scan,
            "position": (scan - 1) / (N_SCANS - 1),
            "bcva": numbers["BCVA"].astype(float),
            "cst": numbers["CST"].astype(float),
            "volume": parts[0] + "/" + parts[1] + "/" + parts[2],
        }
    )
    again = "is the scan of another line, whose name is written otherwise: delete one"
    _refuse(csv, raw[column], _place(table).duplicated(), again)
    for name, header in BIOMARKERS.items():
        if header in raw:
            if not raw[header].isin([0, 1]).all():
                found = sorted(raw[header].unique().tolist())
                raise ValueError(f"{csv}: {header} holds {found[:5]}, expected 0 and 1")
            table[name] = raw[header].astype(float)
    mixed = table.groupby("volume").patient.nunique()
    if (mixed > 1).any():
        raise ValueError(f"{csv}: volume {mixed.idxmax()} has {mixed.max()} patients")
    return table


def _place(table: pd.DataFrame) -> pd.Series:
    """Folder and number of a scan, whatever form its file's name has."""
    return table.image.str.rpartition("/")[0] + "/" + table.scan.astype(str)


def _refuse(csv: Path, values: pd.Series, wrong: pd.Series, why: str, name: str = "") -> None:
    """Raise ValueError for the first of a table's values that is wrong, with its line."""
    if wrong.any():
        row = int(wrong.idxmax())
        raise ValueError(f"{csv}, line {row + 2}: {name}{values[row]!r} {why}")


def headers_swapped(raw: pd.DataFrame) -> bool:
    r"""Whether BCVA (letters) and Snellen (denominator of 20/x) carry each other's header.

    Letters are about :math:`85 - 50 \log_{10}(x / 20)`: the assignment that fits better is taken.
    Without a Snellen column, a BCVA of chart denominators only, most of them under 60, is suspect.
    """
    if "Snellen" in raw:
        both = raw[["BCVA", "Snellen"]].apply(pd.to_numeric, errors="coerce").dropna()
        both = both[(both > 0).all(axis=1)]

        def misfit(letters, denominator):
            return (letters - 85 + 50 * np.log10(denominator / 20)).abs().mean()

        return bool(misfit(both.Snellen, both.BCVA) < misfit(both.BCVA, both.Snellen))
    bcva = pd.to_numeric(raw.BCVA, errors="coerce").dropna()
    chart = {10, 12.5, 13, 16, 20, 25, 32, 40, 50, 63, 80, 100, 125, 160, 200, 250, 320, 400, 800}
    return bool(len(bcva) and bcva.isin(chart).all() and bcva.median() < 60)


def shared_patients(train: pd.DataFrame, test: pd.DataFrame) -> list[str]:
    """Patients that stand on both sides of a split, also with different eyes, sorted."""
    return sorted(set(train.patient) & set(test.patient))


def check_split(
    train: pd.DataFrame, test: pd.DataFrame, repair: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Refuse a split that shares patients; or repair it: they leave the training part.

    Raises:
        ValueError: names the patients on both sides, unless ``repair``; or if nobody is left.
    """
    both = shared_patients(train, test)
    if both and not repair:
        raise ValueError(
            f"patients {', '.join(both)} are in training and test: correct the split, or set repair"
            " to take them out of the training part"
        )
    train = train[~train.patient.isin(both)].reset_index(drop=True)
    if not len(train):
        raise ValueError(f"every training patient is in the test part ({len(both)} patients)")
    return train, test


def drop_copies(images: Path, table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Leave out files that are missing, damaged or not of eight bits, and byte-identical copies
    (SHA-256 of the file), see :func:`wspnb.data.inventory.duplicates`.

    Returns:
        The rows kept, and volume, patient, reason of the others.
    """
    reasons, hashes = {}, {}
    for row in table.itertuples():
        try:
            if getattr(row, "cohort", "") == "train" and np.isnan([row.bcva, row.cst]).any():
                raise ValueError("no BCVA or CST, which training needs")
            content = Path(locate(str(images), row.image)).read_bytes()
            with Image.open(io.BytesIO(content)) as picture:
                picture.load()
            if (pages := getattr(picture, "n_frames", 1)) > 1:
                raise ValueError(f"{pages} pages, not one: write each as a file")
            if picture.mode not in GREY:
                raise ValueError(f"mode {picture.mode}, not 8 bits of grey")
            hashes[row.Index] = hashlib.sha256(content).hexdigest()
        except FileNotFoundError:
            reasons[row.Index] = f"{row.image}: no such file"
        except Exception as error:  # whatever Pillow meets in a damaged file
            reasons[row.Index] = f"{row.image}: cannot be used ({error})"
    sound = table.loc[list(hashes)]
    twice = duplicates(hashes.values(), sound.patient, sound.image, what="bytes")
    reasons |= {sound.index[number]: why for number, why in twice.items()}
    lost = table.loc[sorted(reasons)]
    failed = lost[["volume", "patient"]].assign(reason=[reasons[i] for i in lost.index])
    kept = table.drop(index=list(reasons)).reset_index(drop=True)
    return kept, (failed if len(failed) else ALL_USED).reset_index(drop=True)


def write_olives(
    images: str | Path,
    train_csv: str | Path,
    test_csv: str | Path,
    folder: str | Path,
    pretrain_csv: str | Path | None = None,
    size: int = 64,
    repair: bool = False,
    progress=None,
) -> Path:
    """The user's OLIVES images and tables into a store.

    Args:
        images: folder that the tables' paths start from.
        train_csv, test_csv: biomarker tables of the training and of the test part.
        pretrain_csv: further images with clinical values only, or None.
        repair: take shared patients out of the training part and put swapped headers right, instead
            of refusing them.
        progress: wraps the rows (``tqdm``), or None.

    Raises:
        ValueError: as :func:`read_labels` and :func:`check_split`; or if no image is found.
    """
    swapped = "repair" if repair else "refuse"
    train, test = (read_labels(csv, swapped) for csv in (train_csv, test_csv))
    if missing := [n for n in BIOMARKERS if n not in train or n not in test]:
        raise ValueError(f"{train_csv} or {test_csv}: no biomarker {missing}")
    if pretrain_csv:
        more = read_labels(pretrain_csv, swapped)
        train = pd.concat([train, more[~_place(more).isin([*_place(train), *_place(test)])]])
    train, test = check_split(train, test, repair)
    table = pd.concat([train.assign(cohort="train"), test.assign(cohort="test")], ignore_index=True)
    kept, failed = drop_copies(Path(images), table)
    if not len(kept):
        raise ValueError(f"{images}: none of {len(table)} images found, first {table.image[0]}")

    def read():
        for name in progress(kept.image) if progress else kept.image:
            with Image.open(locate(str(images), name)) as file:
                yield prepare_bscan(np.asarray(file.convert("L")), size)[None]

    return write_bscans(folder, read(), kept, size, failed=failed, source="OLIVES", repaired=repair)


def audit_tables(folder: str | Path) -> pd.DataFrame:
    """What is in the label tables of a folder, and what is wrong with them: table, finding, value.

    Image tables are counted; tables of volumes (paths end in ``.npy``, eyes of the training part)
    are compared with the test table by patient.
    """
    rows, tables, eyes = [], {}, None
    for csv in own_files(folder, "*.csv"):
        try:
            raw, name = read_csv(csv, foreign=True, sep=separator(csv)), csv.stem
        except ValueError:  # somebody else's
            continue
        if not {"BCVA", "CST", "Patient_ID"} <= set(raw):
            continue  # somebody else's
        found = {"rows": len(raw), "headers BCVA and Snellen swapped": headers_swapped(raw)}
        if "File_Path" in raw and raw.File_Path.str.endswith(".npy").all():
            for column in WHO:
                wrong = pd.to_numeric(raw[column], errors="coerce").isna()
                _refuse(csv, raw[column], wrong, "is no number", f"{column} ")
            eyes = raw.assign(patient=raw.Patient_ID.astype(int).astype(str))
            found |= {"eyes": eyes.Eye_ID.nunique(), "patients": eyes.patient.nunique()}
            found["correlation of BCVA and CST"] = f"{raw.BCVA.corr(raw.CST):.2f}"
        else:
            table = tables[name] = read_labels(csv, "repair")
            sevenths = np.clip(table.position * 7, 0, 6.99).astype(int)
            found |= {
                "eyes": table.eye.nunique(),
                "visits of an eye": _kinds(table.groupby("eye").volume.nunique()),
                "scans of a visit": _kinds(table.groupby("volume").size()),
                "patients with both eyes": (table.groupby("patient").eye.nunique() > 1).sum(),
            }
            types = raw[["BCVA", "CST", "Patient_ID"]].dtypes
            found["column types"] = ", ".join(f"{column} {kind}" for column, kind in types.items())
            for marker in (m for m in BIOMARKERS if m in table):
                share = table.groupby(sevenths)[marker].mean().reindex([0, 3, 6])
                what = f"share of {marker}: first, middle, last seventh"
                found[what] = " -> ".join(f"{value:.2f}" for value in share)
        rows += [(name, what, value) for what, value in found.items()]
    for name, table in tables.items():
        for other in [n for n in tables if n > name]:
            both = table.merge(tables[other], on="image", suffixes=("", "_other"))
            same = [c for c in ("bcva", "cst", *BIOMARKERS) if c in both]
            differ = (both[same].to_numpy() != both[[f"{c}_other" for c in same]].to_numpy()).sum()
            found = {"images in both": len(both), "values that differ": differ}
            rows += [(f"{name} and {other}", what, value) for what, value in found.items()]
        if eyes is not None and "test" in name:
            n_eyes = len({*eyes.Eye_ID, *table.eye})
            found = {
                "eyes in both": len({*eyes.Eye_ID} & {*table.eye}),
                "patients in both": " ".join(shared_patients(eyes, table)),
                "eyes together": n_eyes,
                "biomarker rows of all eyes": f"{n_eyes * 2 * N_SCANS} = {n_eyes} x 2 x {N_SCANS}",
            }
            rows += [(f"volumes and {name}", what, value) for what, value in found.items()]
    return pd.DataFrame(rows, columns=["table", "finding", "value"]).astype({"value": str})


def _kinds(counts: pd.Series) -> str:
    return "/".join(map(str, sorted(set(counts))))
