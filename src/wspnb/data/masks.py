"""Liver masks as files: given ones read, predicted ones written on their volume's own grid."""

import json
import os
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

from wspnb.data import store
from wspnb.data.cohort import file_stamp, read_cohort
from wspnb.data.headers import open_header
from wspnb.data.organs import LIVER_ML, check_size, keep_largest, largest_component, measure
from wspnb.data.volumes import load_mask, write_image
from wspnb.files import own_files, read_csv, read_json, relative, write_csv, write_text

__all__ = ["LIVER_ML", "check_size", "keep_largest", "largest_component", "measure"]  # of organs.py
__all__ += ["check_drawn", "check_labels", "claim", "compare", "dice", "digest", "hide_masks"]
__all__ += ["named_again", "read_given", "same_scans", "stem", "summarise", "value_of"]
__all__ += ["write_cohort", "write_mask"]

OURS = ["settings.json", "cohort.csv", "failed_masks.csv", "dice.csv", "unet.safetensors"]
OURS += ["source.csv", "unet-loss.csv", "fold-[0-9]*.safetensors"]
OURS += [f"fold-[0-9]*{end}" for end in ("-loss.csv", "-dice.csv")]
OURS += [f"{folder}/{5 * '[0-9]'}-*.nii.gz" for folder in ("predicted", "given")]  # earlier ones
OURS += [f"predicted/{16 * '[0-9a-f]'}-*.nii.gz"]


def read_given(mask, volume, value: int | None = None, header=None) -> np.ndarray:
    """A given mask, ``(x, y, z)`` bool, as :func:`wspnb.data.volumes.load_mask`, never empty."""
    liver = load_mask(mask, volume, value, header)
    if not liver.any():
        raise ValueError(f"{mask}: the mask is empty: leave it out or draw it")
    return liver


def write_mask(path: str | Path, mask: np.ndarray, volume: str | Path) -> None:
    """A mask as NIfTI (uint8) on the grid, orientation and affine of its volume's file.

    Args:
        path: ending in .nii.gz; it appears whole or not at all.
        mask: ``(x, y, z)``, canonical.
        volume: file that the mask belongs to.

    Raises:
        ValueError: if the shapes differ.
    """
    header = open_header(volume)
    if mask.shape != header.shape:
        raise ValueError(f"{path}: mask {mask.shape} for {volume} of {header.shape}: not written")
    affine = header.stored
    turn = ornt_transform(io_orientation(np.eye(4)), io_orientation(affine))
    write_image(Path(path), apply_orientation(np.asarray(mask, np.uint8), turn), affine)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    r"""Overlap of two masks, :math:`2|A \cap B| / (|A| + |B|)`; 1 when both are empty."""
    if a.shape != b.shape:
        raise ValueError(f"masks of shapes {a.shape} and {b.shape}: put them on one grid first")
    total = np.count_nonzero(a) + np.count_nonzero(b)
    both = np.count_nonzero((a != 0) & (b != 0))
    return float(2 * both / total) if total else 1.0


def compare(given: np.ndarray, drawn: np.ndarray, row: dict) -> dict:
    """A line of ``dice.csv``: whose volume, Dice, both livers in ml, and how far their ends lie
    apart.

    Args:
        given, drawn: ``(x, y, z)`` bool, the first not empty.
        row: of the cohort table, with ``volume``, ``patient`` and ``cohort``.

    Returns:
        ``bottom_mm`` and ``top_mm`` are the lowest and the highest slice drawn minus given, mm,
        NaN when nothing is drawn: positions hang on them, whatever Dice says.
    """
    header = open_header(row["volume"])
    who = {name: row[name] for name in ("volume", "patient", "cohort")}
    voxels = {"ml": drawn, "ml_given": given}
    ml = {name: np.count_nonzero(mask) * header.voxel_ml for name, mask in voxels.items()}
    ends = [np.flatnonzero(mask.any((0, 1)))[[0, -1]] for mask in (given, drawn) if mask.any()]
    bottom, top = (ends[1] - ends[0]) * header.spacing[2] if drawn.any() else (np.nan, np.nan)
    return who | {"dice": dice(given, drawn)} | ml | {"bottom_mm": bottom, "top_mm": top}


def summarise(judged: pd.DataFrame, n: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Dice of each kind (held out, hidden): a patient counts once, the 95 % interval resamples
    patients, one fewer than there are (NaN for one, or where all are alike). ``ends_mm`` is how far
    a drawn end of the liver lies from the given one, on average.

    Args:
        judged: lines of :func:`compare` with a column ``kind``.
        n, seed: resamples, and their seed.
    """
    rng, rows = np.random.default_rng(seed), []
    for kind, group in judged.groupby("kind"):
        each = group.groupby("patient").dice.mean()
        draws = rng.choice(each, (n, len(each) - 1)).mean(1) if len(each) > 1 else np.nan
        low, high = np.quantile(draws, [0.025, 0.975])
        low, high = (low, high) if high > low else (np.nan, np.nan)
        row = {"kind": kind, "patients": len(each), "dice": each.mean(), "sd": each.std()}
        ends = float(group[["bottom_mm", "top_mm"]].abs().stack().mean())
        rows.append(row | {"low": low, "high": high, "worst": each.min(), "ends_mm": ends})
    return pd.DataFrame(rows)


def write_cohort(
    folder: Path, cohort: pd.DataFrame, value: int | None = None, source: Path | None = None
) -> pd.DataFrame:
    """The cohort table with a mask in every row, ready for notebook 01.

    Args:
        folder: receives cohort.csv, with paths relative to it, and copies in ``given/``.
        cohort: of :func:`wspnb.data.cohort.read_cohort` with ``mask_source``, given or predicted.
        value: label of the liver in the given masks, which are then copied as 0 and 1, as later
            notebooks take all above zero. None leaves them where they are.
        source: file of that table, for :func:`check_labels`.

    A column ``drawn_from`` is what :func:`check_drawn` compares, ``mask_value`` what
    :func:`value_of`; ``source.csv`` keeps what the source said, for :func:`check_labels`.

    Returns:
        The table as written.
    """
    table = cohort.copy()
    drawn = table.mask_source == "predicted"
    given = table["mask"].mask(drawn | bool(value), "")  # copies do not change
    pairs = zip(table.volume, given, strict=True)
    table["drawn_from"] = [_mark(file_stamp(own) + file_stamp(mask)) for own, mask in pairs]
    for number, row in table[table.mask_source == "given"].iterrows() if value else ():
        file = folder / "given" / f"{number:05d}-{stem(row.volume)}.nii.gz"
        write_mask(file, read_given(row["mask"], row.volume, value), row.volume)
        table.loc[number, "mask"] = str(file)
    for column in ("volume", "mask"):
        table[column] = table[column].map(partial(relative, folder=folder))
    table["mask_value"] = value or 0
    if source:
        table["labels_from"] = relative(str(source), folder)
        now, rows = _as_text(read_cohort(source), folder), _as_text(cohort, folder)
        same = ["volume", "patient", "weak_label", "label", "cohort"]
        if len(other := rows.merge(now, "left", same, indicator=True).query("_merge != 'both'")):
            who = ", ".join(other.patient.unique()[:10])
            raise ValueError(f"{source}: changed meanwhile ({who}): give the command again")
        write_csv(folder / "source.csv", now)
    table = table.convert_dtypes()  # whole numbers stay whole beside empty fields
    write_csv(folder / "cohort.csv", table)
    return table


def _mark(stamp: list) -> str:
    return " ".join(map(str, stamp))


def check_labels(csv: str | Path, made: pd.DataFrame | None = None) -> None:
    """Raise ValueError for a table of :func:`write_cohort` (``made``, where it is read already) if
    that which it was made of says something else by now: other rows, files, labels, anything."""
    made, folder = read_cohort(csv) if made is None else made, Path(csv).parent
    source = folder / made.labels_from.iloc[0] if "labels_from" in made else Path()
    if not source.is_file():
        return
    named, was = os.path.normpath(source), folder / "source.csv"
    again = f"give notebook 01b's command again, with -p source_dir {os.path.dirname(named)}"
    afresh = " -p resume false"
    if not was.exists():
        raise ValueError(f"{csv}: made by an earlier version: {again}{afresh} at its end")
    then, now = read_csv(was, text=True), _as_text(read_cohort(source), folder)
    new = [name for name in now if name not in then and name not in made]
    columns = [*dict.fromkeys([*now, *then])]
    then, now = (table.reindex(columns=columns, fill_value="") for table in (then, now))
    files, own = ["volume", "mask", "coding"], _as_text(made, folder)
    shared = [name for name in now if name in own and name not in files[1:]]
    both = {*map(tuple, own[shared].to_numpy())}  # corrected by hand in both tables, files the same
    same = {*map(tuple, then.reindex(columns=files).fillna("").to_numpy())}
    rows = zip(
        now[shared].to_numpy(), now.reindex(columns=files).fillna("").to_numpy(), strict=True
    )
    right = {file[0] for row, file in rows if tuple(row) in both and tuple(file) in same}
    right = set() if new else right  # a further column is nowhere but in the table
    then, now = (table[~table.volume.isin(right)] for table in (then, now))
    if who := _whose(then.to_numpy().tolist(), now.to_numpy().tolist(), columns.index("patient")):
        learnt = [table[table["mask"] != ""] for table in (then, now)]  # what the network has seen
        scans = [table.reindex(columns=["patient", "coding"]).fillna("") for table in learnt]
        others, renamed = (
            sorted(one.to_numpy().tolist()) != sorted(other.to_numpy().tolist())
            for one, other in (scans, [table[["volume", "mask"]] for table in learnt])
        )
        again += f"{afresh if others else ''} at its end"
        if renamed and not others:
            again += f" (and{afresh} if they are other scans or masks, not renamed ones)"
        raise ValueError(
            f"{named}: says something else than when {csv} was made of it{who}: {again}"
        )


def _as_text(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """A cohort table as its file would be in this folder."""
    own = {name: table[name].map(partial(relative, folder=folder)) for name in ("volume", "mask")}
    table = table.assign(**own).astype(object)
    return table.where(table.notna(), "").astype(str)


def value_of(cohort: pd.DataFrame, value: int | None, csv: str | Path = "") -> int | None:
    """Label of the liver in a cohort's masks, of those that say ``value``: None, all above zero, in
    a table of :func:`write_cohort`, whose masks 01b has read already.

    Raises:
        ValueError: if it has read another value.
    """
    if not {"drawn_from", "mask_value"} <= {*cohort}:
        return value
    if value is not None and (then := int(cohort.mask_value.iloc[0])) != value:
        raise ValueError(
            f"{csv}: mask_value {value}, and notebook 01b took {then or 'all above zero'} for the"
            f" liver: give its command again, with -p mask_value {value} -p resume false at its end"
        )
    return None


def check_drawn(
    cohort: pd.DataFrame, stamps: list[tuple[list, list]], csv: str | Path = "cohort.csv"
) -> str:
    """Refuse drawn masks whose volume is another one since; warn where volumes or masks that the
    network has learnt from are, and return the words.

    Args:
        cohort: table that :func:`write_cohort` wrote, or another, of which nothing is asked.
        stamps: of each row's volume and mask, see :func:`wspnb.data.cohort.file_stamp`.
        csv: where the table lies, to say what to do.
    """
    if "drawn_from" not in cohort:
        return ""
    drawn = (cohort.mask_source == "predicted").to_numpy()
    alone = [_mark(volume) for volume, _ in stamps]
    both = [_mark(volume + mask) for volume, mask in stamps]
    other = ~((cohort.drawn_from == alone) | (~drawn & (cohort.drawn_from == both))).to_numpy()
    source = cohort.get("labels_from", pd.Series("FOLDER_OF_YOUR_TABLE/", cohort.index)).iloc[0]
    source = os.path.normpath(Path(csv).parent / os.path.dirname(source))
    advice = f"draw again, with -p source_dir {source} -p resume false at the end of 01b's command"
    if (those := cohort.patient[other & drawn]).any():
        who = ", ".join(those.unique()[:10])
        raise ValueError(f"the masks of {who} were drawn on volumes that have changed: {advice}")
    if (those := cohort.patient[other & ~drawn]).any():
        who = ", ".join(those.unique()[:10])
        text = f"given masks of {who}, or their volumes, have changed; the drawn masks were learnt"
        text += f" from them as they were: {advice}"
        warnings.warn(text, stacklevel=3)
        return text
    return ""


def named_again(found: pd.DataFrame, cohort: pd.DataFrame) -> pd.DataFrame:
    """Lines of :func:`compare` with the paths that the same volumes have in ``cohort`` now: folders
    may have moved or changed their names, and files too, of a patient in their order."""
    then, now = (table.assign(file=table.volume.map(stem)) for table in (found, cohort))
    paths = pd.Series(np.nan, then.index, object)
    for names in (["patient", "file"], ["patient"]):
        keys = [
            pd.MultiIndex.from_frame(t[names].assign(n=t.groupby(names).cumcount()))
            for t in (now, then)
        ]
        again = pd.Series(now.volume.array, keys[0]).reindex(keys[1])
        paths = paths.fillna(pd.Series(again.array, then.index))
    return found.assign(volume=paths)


def stem(path: str) -> str:
    """Name of a NIfTI file without its endings."""
    return Path(path).name.removesuffix(".gz").removesuffix(".nii")


def hide_masks(table: pd.DataFrame, share: float, seed: int = 0) -> np.ndarray:
    """Which rows with a mask are kept from the network, ``(n,)`` bool: all of a patient or none.

    Args:
        table: of :func:`wspnb.data.cohort.read_cohort`.
        share: of the patients with a mask, in [0, 1], rounded.
        seed: of the draw.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"hide={share}: choose a share from 0 to 1")
    patients = np.sort(table.patient[table["mask"] != ""].unique())
    drawn = np.random.default_rng(seed).permutation(patients)[: round(share * len(patients))]
    return (table.patient.isin(drawn) & (table["mask"] != "")).to_numpy()


def claim(folder: str | Path, settings: dict, resume: bool = True) -> None:
    """Make the folder, keep what the same settings left there, or begin afresh.

    Args:
        folder, settings: of masks and fold results; of this run, in JSON's types.
        resume: False deletes what a run left here (its own files only), unless it is of the same
            settings and did not end: then it goes on.

    Raises:
        ValueError: if the folder holds a run of other settings; says which.
    """
    folder = Path(folder)
    note = folder / "settings.json"
    there = [file for name in OURS for file in own_files(folder, name)]
    begun = note.exists() and not (folder / "cohort.csv").exists()
    if not resume and not (begun and not store.changes(read_json(note), settings, {})):
        for file in there[::-1]:  # the note last: what is left by an interruption has one
            file.unlink()
    elif there and not note.exists():
        raise ValueError(
            f"{folder}: networks or masks without settings.json, so of unknown settings: draw"
            " anew, with -p resume false at the command's end"
        )
    if note.exists():
        then, words = read_json(note), {}
        for k in ("source", "train"):
            rows = isinstance(then.get(k), list)  # else an earlier version's
            who = _whose(then.get(k), settings.get(k)) or " (their order)" * rows
            words[k] = f"volumes, masks or patients of {k}_dir{who}"
        if other := store.changes(then, settings, words):
            way = "repeat the -p of the first command, or " * (not other.startswith("volumes"))
            raise ValueError(
                f"{folder}: what is there was made with other settings ({other}): {way}draw anew,"
                " with -p resume false at the command's end"
            )
    for part in ("predicted", "given"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps(settings, indent=1))


def _whose(then: object, now: object, patient: int = 0) -> str:
    """Patients (column of the rows) of the rows that differ, in brackets; "" if none does."""
    if not isinstance(then, list) or not isinstance(now, list):  # of an earlier version
        return ""
    other = {row[patient] for row in {*map(tuple, then)} ^ {*map(tuple, now)}}
    return f" ({', '.join(sorted(other)[:10])})" if other else ""


def same_scans(table: pd.DataFrame, cohort: pd.DataFrame) -> np.ndarray:
    """Which rows are scans that the cohort holds too, by path or by content, ``(n,)`` bool."""
    known = {str(file_stamp(path)) for path in cohort.volume} if len(table) else set()
    same = [path for path in table.volume if str(file_stamp(path)) in known]
    return table.volume.isin({*cohort.volume, *same}).to_numpy()


def digest(table: pd.DataFrame) -> list[list[str]]:
    """What a resumed run must find again, row by row: the patient, and the content of their files.
    Labels and names are none of a mask's business, and the project may move."""
    codings = table.get("coding", pd.Series("", table.index))
    rows = zip(table.patient, codings, table.volume, table["mask"], strict=True)
    return [
        [who, store.digest([coding, file_stamp(own), file_stamp(mask)])[:16]]
        for who, coding, own, mask in rows
    ]
