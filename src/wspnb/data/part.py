"""A store while it is written: bytes that grow, a journal with a line for each volume done.

``slices.npy.part`` grows volume by volume beside ``journal.jsonl``. A kill at any moment loses at
most the volume that was under way; whoever writes next cuts both back to what is sound.

Images and labels are separate identities: a corrected label changes the tables, not the images.
"""

import json
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from wspnb.data.store import IMAGE_COLUMNS, TABLES, Slices, changes, finish_store, npy_header
from wspnb.files import read_csv

LEFT = ("slices.npy.part", "slices.npy.whole", "journal.jsonl")
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


def append(journal: BinaryIO, entry: dict[str, Any]) -> None:
    """One more line."""
    journal.write(json.dumps(entry).encode() + b"\n")
    journal.flush()


def resume(
    folder: Path, images: BinaryIO, journal: BinaryIO, settings, stamps, overwrite: bool = False
) -> list[dict[str, Any]]:
    """Entries of the volumes that are done and sound; both files are cut back to them. With
    ``overwrite``, what was begun with other settings is thrown away."""
    size, done = settings["image_size"], []
    header = npy_header(0, size)
    journal.seek(0)
    lines = [line for line in journal.readlines() if line.endswith(b"\n")]
    try:
        begun = json.loads(lines[0])["settings"]
    except (ValueError, KeyError, TypeError, IndexError):  # nothing there, or damaged
        begun = None
    if begun is None or (overwrite and begun != settings):
        journal.truncate(0)
        images.truncate(0)
        append(journal, {"settings": settings, "n_volumes": len(stamps)})
        images.write(header)
        images.flush()
        return done
    check_same(folder, begun, settings)
    position, end = len(lines[0]), images.seek(len(header))
    for line, stamp in zip(lines[1:], stamps, strict=False):
        try:
            entry = json.loads(line)
        except ValueError:
            break
        pixels = images.read(len(entry["z"]) * size * size)
        # A volume that was replaced since, or bytes that a crash lost, are done again.
        if entry["stamp"] != stamp or zlib.crc32(pixels) != entry["crc"]:
            break
        done.append(entry)
        position, end = position + len(line), end + len(pixels)
    journal.truncate(position)
    images.truncate(end)
    return done


def close_up(part: Path, counts: list[int], used: list[dict[str, Any]], size: int) -> Path:
    """Complete the header; if volumes are left out that were written, a copy without their gap.

    The part itself keeps all that the journal lists, so that a kill in between loses nothing.
    """
    n, start = sum(len(entry["z"]) for entry in used), len(npy_header(0, size))
    header = npy_header(n, size)
    if len(header) != start or part.stat().st_size != start + sum(counts) * size * size:
        raise RuntimeError(f"{part}: length does not fit {n} slices: delete {part.parent}")
    if n == sum(counts):
        with open(part, "r+b") as file:
            file.write(header)
        return part
    whole = part.with_name("slices.npy.whole")
    with open(part, "rb") as source, open(whole, "wb") as target:
        source.seek(start)
        target.write(header)
        for count, entry in zip(counts, used, strict=True):
            pixels = source.read(count * size * size)
            target.write(pixels if entry["z"] else b"")
    return whole


def remove_left(folder: Path) -> None:
    """What a kill after the last step, or another call's settings, left in a folder."""
    for name in LEFT:
        (folder / name).unlink(missing_ok=True)


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
    inventory["volume"] = cohort.volume.to_numpy()
    failed = inventory[inventory.reason != ""][["volume", "patient", "reason"]]
    images = read_csv(folder / "slices.csv", text=True)
    table = _labelled(images[[*IMAGE_COLUMNS]], cohort, inventory.n_kept.astype(int))
    tables = (table, failed, inventory)
    then = [(folder / name).read_text(encoding="utf-8") for name in TABLES]
    if [content.to_csv(index=False) for content in tables] != then:
        finish_store(folder, folder / "slices.npy", store.settings, *tables)
