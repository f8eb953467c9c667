"""Reading a store: the kept slices as bytes, memory-mapped, with one table row each.

A store is a folder: ``slices.npy`` (n, size, size) uint8, ``slices.csv`` with a row per slice in
the same order, ``failed.csv`` with the volumes that could not be used, ``inventory.csv`` with what
was found in every file, and ``store.json`` with settings, counts, versions and checksums.

    python -m wspnb.data.store STORE ...      verifies every byte
"""

import argparse
import hashlib
import json
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from wspnb.files import (
    own_files,
    package_version,
    read_csv,
    read_json,
    whole,
    write_csv,
    write_text,
)

if TYPE_CHECKING:
    import torch  # tables and checksums need none, and it takes seconds

FORMAT = 2  # of the store: raise it with every change that alters a stored byte
TABLES = ("slices.csv", "failed.csv", "inventory.csv")
PART = "slices.part"  # folder of what is done of an unfinished store
JOINING = "labels.part"  # there while tables are put in the place of others
# Of slices.csv, what the images are; all other columns, such as labels, may be corrected.
IMAGE_COLUMNS = ("patient", "position", "z", "height_mm", "spacing_x", "spacing_y", "spacing_z")
IMAGE_COLUMNS += ("selection", "n_kept")
AGAIN = "delete this folder and preprocess the cohort again (notebook 01)"
ALL_USED = pd.DataFrame(columns=["volume", "patient", "reason"])  # nothing was left out


@dataclass(frozen=True)
class Slices:
    """An opened store."""

    images: np.ndarray  # (n, size, size) uint8, memory-mapped, read only
    table: pd.DataFrame  # n rows, as slices.csv
    settings: dict[str, Any]  # store.json
    failed: pd.DataFrame  # volume, patient, reason


def open_slices(folder: str | Path) -> Slices:
    """Open a store, its labels as Int64; the images stay on disk until they are read.

    Sizes, and the tables' and settings' checksums, are compared; the images' checksum, which takes
    reading them all, only by :func:`verify_store`.

    Raises:
        FileNotFoundError: if there is no store, or an unfinished one: says how far it is.
        ValueError: if a file is missing, damaged, edited or of another version, or the files do not
            belong together.
    """
    folder = Path(folder)
    if not (folder / "slices.npy").exists():
        if (note := folder / PART / "settings.json").exists():
            done = sum(file.stem.isdigit() for file in own_files(note.parent, "*.npz"))
            raise FileNotFoundError(
                f"{folder}: unfinished, {done} of {read_json(note).get('n_volumes')} volumes are"
                " done: call write_slices again with the same settings (notebook 01) to go on"
            )
        raise FileNotFoundError(f"{folder}: no slices.npy: make it first (notebook 01)")
    needed = ("slices.csv", "failed.csv", "store.json")
    if missing := [name for name in needed if not (folder / name).exists()]:
        raise ValueError(f"{folder}: {missing} missing: {AGAIN}")
    with _reading(folder / "store.json"):
        settings = json.loads((folder / "store.json").read_text(encoding="utf-8-sig"))
        shape = (settings["n_slices"], settings["image_size"], settings["image_size"])
        sums = dict(settings.get("tables", {}))
    if settings.get("format", FORMAT) != FORMAT:
        made = f"a store of format {settings['format']}, not {FORMAT} as in this version"
        raise ValueError(f"{folder}: {made}: {AGAIN}")
    if "seal" in settings and settings["seal"] != _seal(settings):
        raise ValueError(f"{folder / 'store.json'}: was edited or damaged: {AGAIN}")
    for name, sha in sums.items():
        if not (folder / name).exists() or digest_file(folder / name) != sha:
            raise ValueError(f"{folder / name}: not as it was written, edited or damaged: {AGAIN}")
    with _reading(folder / "slices.csv"):
        table = read_csv(folder / "slices.csv")
        table = table.astype({n: "Int64" for n in ("weak_label", "label") if n in table})
        failed = read_csv(folder / "failed.csv", text=True)
    with _reading(folder / "slices.npy"):
        images = np.load(folder / "slices.npy", mmap_mode="r")
    if images.shape != shape or images.dtype != np.uint8 or len(table) != shape[0]:
        raise ValueError(
            f"{folder}: slices.npy is {images.dtype} {images.shape}, slices.csv has {len(table)}"
            f" rows, store.json says {shape}: the files do not belong together; {AGAIN}"
        )
    return Slices(images, table, settings, failed)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Let whatever goes wrong in a damaged or edited file name it, and say what to do."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path}: damaged ({error!r}): {AGAIN}") from error


def holds(folder: str | Path, definition: dict) -> bool:
    """Whether a store is there whose settings say the same, as they are in JSON."""
    note = Path(folder) / "store.json"
    if not note.exists() or not (note.parent / "slices.npy").exists():
        return False
    found, wanted = read_json(note), json.loads(json.dumps(definition))
    return all(found.get(name) == value for name, value in wanted.items())


def verify_store(folder: str | Path) -> Slices:
    """:func:`open_slices`, whose checks it makes, and every byte of images and table against the
    checksum (ValueError)."""
    store, folder = open_slices(folder), Path(folder)
    if _identity(folder / "slices.npy", folder / "slices.csv") != store.settings.get("sha256"):
        raise ValueError(
            f"{folder / 'slices.npy'}: not the bytes that were written, damaged or edited: {AGAIN}"
        )
    return store


def describe_store(folder: Path, images: Path, settings: dict[str, Any], *tables) -> None:
    """Write :data:`TABLES`, the first two at least, and ``store.json``, settings and checksums,
    before the images get their name: ``images`` is, or is to become, ``slices.npy``."""
    for name in TABLES[len(tables) :]:  # of a store that was here
        (folder / name).unlink(missing_ok=True)
    files = [folder / name for name in TABLES[: len(tables)]]
    for file, content in zip(files, tables, strict=True):
        write_csv(file, content)
    sums = {file.name: digest_file(file) for file in files}
    _write_note(folder, settings | {"sha256": _identity(images, files[0]), "tables": sums})


def _write_note(folder: Path, store: dict[str, Any]) -> None:
    """``store.json``, sealed, which ends what :func:`replace_tables` began."""
    store["seal"] = _seal(store)
    write_text(folder / "store.json", json.dumps(store, indent=1, ensure_ascii=False) + "\n")
    (folder / JOINING).unlink(missing_ok=True)


def replace_tables(folder: Path, settings: dict[str, Any], *tables) -> None:
    """Other tables beside the same images, see :func:`describe_store`; killed between two of them,
    :func:`accept_tables` goes before the next call."""
    (folder / JOINING).touch()
    describe_store(folder, folder / "slices.npy", settings, *tables)


def accept_tables(folder: Path) -> None:
    """Where :func:`replace_tables` was killed: each table is whole, of before or of now, and taken
    as it is; the images' checksum, which is over its columns of them too, stays."""
    if (folder / JOINING).exists():
        found = read_json(folder / "store.json")
        sums = {name: digest_file(folder / name) for name in found["tables"]}
        _write_note(folder, found | {"tables": sums})


def write_store(
    folder: str | Path,
    blocks: Iterable[np.ndarray],
    table: pd.DataFrame,
    size: int,
    failed: pd.DataFrame = ALL_USED,
    inventory: pd.DataFrame | None = None,
    **settings,
) -> Path:
    """Write a store; each file appears whole or not at all, ``slices.npy`` last.

    Args:
        folder: made if missing; a store there is replaced. It is returned.
        blocks: images in the order of the table, ``(k, size, size)`` uint8 each.
        table: one row per image, in the columns of notebook 01's store.
        failed: volume, patient and reason of what was left out.
        inventory: what was found in every file, if there were files.
        settings: what the images were made from, kept in ``store.json``.

    Raises:
        ValueError: if the blocks do not fit the table; nothing is written.
    """
    folder, shape, done = Path(folder), (len(table), size, size), 0
    store = {"format": FORMAT, "convention": "k/(n-1)", "image_size": size, "n_slices": len(table)}
    store |= {"n_patients": int(table.patient.nunique()), "n_failed": len(failed)}
    store |= {"versions": {"wspnb": package_version("wspnb")}} | settings
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with whole(folder / "slices.npy") as temporary, open(temporary, "wb") as images:
        np.lib.format.write_array_header_1_0(images, header)
        for block in blocks:
            if block.dtype != np.uint8 or block.shape[1:] != shape[1:]:
                raise ValueError(f"{folder}: images {block.dtype}{block.shape}, expected {shape}")
            images.write(np.ascontiguousarray(block))
            done += len(block)
        if done != len(table):
            raise ValueError(f"{folder}: {done} images for {len(table)} rows")
        images.flush()
        tables = (table, failed) if inventory is None else (table, failed, inventory)
        (folder / "slices.npy").unlink(missing_ok=True)  # of other settings: never beside these
        describe_store(folder, temporary, store, *tables)
    return folder


def _identity(images: Path, table: Path) -> str:
    """sha256 of the images and of what the table says of them, whatever their labels."""
    text = read_csv(table, text=True)
    text = text[[name for name in IMAGE_COLUMNS if name in text]].to_csv(index=False)
    return hashlib.sha256(f"{digest_file(images)}{text}".encode()).hexdigest()


def digest_file(path: str | Path) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changes(then: dict[str, Any], now: dict[str, Any], words: dict[str, str]) -> str:
    """Which settings are not those of an earlier run; ``words`` for those that say nothing."""
    return "; ".join(
        f"{words[name]} changed"
        if name in words
        else f"{name}: {then.get(name)!r} there, {v!r} now"
        for name, v in now.items()
        if then.get(name) != v
    )


def digest(content: Any) -> str:
    """sha256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def reader(
    images: np.ndarray, device: "torch.device", hold: bool | None = None
) -> Callable[[np.ndarray], "torch.Tensor"]:
    """Function from row numbers ``(b,)`` to their images ``(b, 1, h, w)``, uint8 on the device.

    A GPU with room takes the whole store once, so that no later step waits for the disk; otherwise
    the rows are read from the file, not through the map: memory stays flat and a cold page costs
    one call, not dozens of faults.

    Args:
        images: ``(n, h, w)`` uint8, :attr:`Slices.images`.
        hold: whether to put all there; None: if they fill less than half of a GPU's free memory.

    Raises:
        ValueError: images of another type, which as bytes would be others.
    """
    import torch

    if (kind := np.asarray(images[:0]).dtype) != np.uint8:
        raise ValueError(f"images of {kind}: give uint8, 0 to 255, as a store has them")

    def numbers(rows) -> np.ndarray:
        rows = np.asarray(rows)
        if rows.dtype == bool and len(rows) != len(images):
            raise IndexError(f"{len(rows)} bools for {len(images)} slices: give one for each")
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        if rows.dtype.kind not in "iu":
            raise IndexError(f"rows of {rows.dtype}: give whole numbers, or a bool for each slice")
        return rows.astype(np.int64)  # torch takes uint8 for a mask

    if hold is None:
        hold = device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] / 2
    if hold:
        held = torch.empty(images.shape, dtype=torch.uint8, device=device)
        for first in range(0, len(images), 1024):
            held[first : first + 1024] = torch.from_numpy(np.array(images[first : first + 1024]))

        def take(rows: np.ndarray) -> "torch.Tensor":
            return held[torch.from_numpy(numbers(rows)).to(device, non_blocking=True)][:, None]

        return take

    whole_map = isinstance(images.base, mmap.mmap) and images.flags.c_contiguous  # no part of one
    file = open(images.filename, "rb") if whole_map and hasattr(os, "preadv") else None
    size, pinned = images[0].nbytes, device.type == "cuda"

    def read(rows: np.ndarray) -> "torch.Tensor":
        rows = numbers(rows)
        batch = np.empty((len(rows), 1, *images.shape[1:]), dtype=np.uint8)
        for image, row in zip(batch, rows, strict=True):
            row = range(len(images))[int(row)]  # -1 is the last
            if file is None:
                image[0] = images[row]
            elif os.preadv(file.fileno(), [image], images.offset + row * size) != size:
                raise OSError(f"{file.name}: slice {row} cannot be read: is the file cut off?")
        batch = torch.from_numpy(batch)
        return batch.pin_memory().to(device, non_blocking=True) if pinned else batch.to(device)

    return read


def _seal(settings: dict[str, Any]) -> str:
    """Checksum of the settings themselves."""
    return digest({name: value for name, value in settings.items() if name != "seal"})[:16]


def main(arguments: list[str]) -> int:
    """Verify stores; 1 if one is not as it was written."""
    parser = argparse.ArgumentParser("python -m wspnb.data.store", description=__doc__)
    parser.add_argument("store", nargs="+", help="folder that notebook 01 wrote")
    problems = []
    for folder in parser.parse_args(arguments).store:
        try:
            store = verify_store(folder)
            print(f"{folder}: {len(store.images)} slices, every byte as written")
        except (ValueError, OSError) as error:
            problems.append(error)
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
