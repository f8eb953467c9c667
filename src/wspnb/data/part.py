"""A store while it is written: a file for each volume done, in the folder ``slices.part``.

A kill at any moment loses at most the volumes that were under way; whoever writes next does those
again that are missing, damaged (a zip has checksums) or of files that have changed since.

Images and labels are separate identities: a corrected label changes the tables, not the images.
"""

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wspnb.data.store import IMAGE_COLUMNS, PART, TABLES, Slices, changes, replace_tables
from wspnb.files import read_csv, read_json, whole, write_text

MADE = 5  # changes with what a part holds, such as the hash of the voxels: older are done again
LABELS = ("volume", "cohort", "weak_label", "label")  # joined to the images' columns
OWN_COLUMNS = (*IMAGE_COLUMNS[:7], *LABELS, *IMAGE_COLUMNS[7:])


def check_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise ValueError if what a folder holds was made with other settings than are wanted."""
    words = {"cohort_rows": "the cohort table", "inputs": "the volumes", "format": "the format"}
    if changed := changes(found, wanted, words):
        raise ValueError(
            f"{folder}: holds slices made otherwise ({changed}):"
            " choose another folder, delete this one, or pass overwrite=True"
        )


def begin(folder: Path, settings: dict[str, Any], n_volumes: int, overwrite: bool) -> list[Path]:
    """Files of the volumes, some of which may be there. With ``overwrite``, what was begun with
    other settings is thrown away, else refused."""
    note = folder / PART / "settings.json"
    try:
        begun = read_json(note)["settings"]
    except (OSError, ValueError, KeyError):  # nothing there, or damaged
        begun = None
    if begun is None or (overwrite and begun != settings):
        shutil.rmtree(note.parent, ignore_errors=True)
        write_text(note, json.dumps({"settings": settings, "n_volumes": n_volumes}))
    else:
        check_same(folder, begun, settings)
    return [note.with_name(f"{number:05d}.npz") for number in range(n_volumes)]


def write_part(file: Path, images: np.ndarray, picture: np.ndarray, entry: dict[str, Any]) -> None:
    """A volume's slices, its picture, and what else is known of it."""
    with whole(file, flush=False) as temporary, open(temporary, "wb") as output:  # has checksums
        np.savez(output, images=images, picture=picture, entry=json.dumps(entry | {"made": MADE}))


def read_parts(files: Iterable[Path], name: str) -> Iterator[Any]:
    """Of each volume the ``images``, the ``picture`` or the ``entry``."""
    for file in files:
        with np.load(file) as content:
            yield json.loads(str(content[name])) if name == "entry" else content[name]


def is_done(file: Path, stamp: list) -> bool:
    """Whether a volume's file is there, every byte sound, and of files that have not changed."""
    try:
        _, _, entry = (next(read_parts([file], n)) for n in ("images", "picture", "entry"))
        return entry["stamp"] == stamp and entry.get("made") == MADE
    except Exception:  # whatever a crash has left there
        return False


def slice_table(cohort: pd.DataFrame, used: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per kept slice, in the order of the images."""
    parts = []
    for patient, entry in zip(cohort.patient, used, strict=True):
        if z := entry["z"]:  # slice numbers from the feet in the canonical volume
            x_mm, y_mm, z_mm = entry["spacing"]  # of the source
            height = ((np.array(z) - z[0]) * z_mm).round(4)  # above the lowest kept slice
            own = {"patient": patient, "position": entry["position"], "z": z, "height_mm": height}
            own |= {"spacing_x": x_mm, "spacing_y": y_mm, "spacing_z": z_mm}
            parts.append(pd.DataFrame(own | {"selection": entry["selection"], "n_kept": len(z)}))
    return _labelled(pd.concat(parts, ignore_index=True), cohort, [len(e["z"]) for e in used])


def _labelled(images: pd.DataFrame, cohort: pd.DataFrame, counts) -> pd.DataFrame:
    """Columns of the images, and beside them those that the cohort table says of each slice."""
    rows = cohort.loc[np.repeat(cohort.index, counts)].reset_index(drop=True)
    own = images.assign(**{name: rows[name] for name in LABELS})[[*OWN_COLUMNS]]
    own = own.astype({"weak_label": "Int64", "label": "Int64"})
    extra = [c for c in rows.columns if c not in (*OWN_COLUMNS, "mask", "path", "mask_path")]
    return pd.concat([own, rows[extra]], axis=1)


def join_labels(folder: Path, store: Slices, cohort: pd.DataFrame) -> None:
    """Tables of a finished store with what the cohort table says now; images are not touched."""
    inventory = read_csv(folder / "inventory.csv", text=True)
    named = dict(zip(inventory.volume, cohort.volume, strict=True))
    if inventory.volume.tolist() != cohort.volume.tolist():  # in reasons too, all at once
        old = "|".join(map(re.escape, sorted(named, key=len, reverse=True)))
        old = rf"(?<![\w./-])({old})(?![\w-])"
        inventory["reason"] = inventory.reason.str.replace(old, lambda m: named[m[0]], regex=True)
    inventory["volume"] = cohort.volume.to_numpy()
    failed = inventory[inventory.reason != ""][["volume", "patient", "reason"]]
    images = read_csv(folder / "slices.csv", text=True)
    table = _labelled(images[[*IMAGE_COLUMNS]], cohort, inventory.n_kept.astype(int))
    tables = (table, failed, inventory)
    then = [(folder / name).read_text(encoding="utf-8") for name in TABLES]
    if [content.to_csv(index=False) for content in tables] != then:
        replace_tables(folder, store.settings, *tables)
