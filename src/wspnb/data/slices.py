"""The preprocessed cohort on disk: kept slices as bytes, memory-mapped, with one table row each.

A store is a folder: ``slices.npy`` (n, size, size) uint8, ``slices.csv`` with a row per slice in
the same order, ``failed.csv`` with the volumes that could not be used, ``inventory.csv`` with what
was found in every file, and ``store.json`` with settings, counts, versions and a checksum. While it
is written, ``slices.npy.part`` grows volume by volume beside ``journal.jsonl``, one line for each
volume done; ``slices.npy`` appears last, when all is there.
"""

import hashlib
import json
import os
import signal
import threading
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from wspnb.data.cohort import read_cohort
from wspnb.data.inventory import CODINGS, SAY, decode, describe, duplicates, refuse
from wspnb.data.volumes import (
    BODY_HU,
    body_range,
    central_slices,
    load_mask,
    read_scan,
    resize,
    scaled,
    slice_positions,
    to_image,
    window,
)
from wspnb.files import package_version, write_text

FORMAT = 1  # of the store: raise it with every change that alters a stored byte
SLICE_COLUMNS = ("patient", "position", "z", "height_mm", "spacing_x", "spacing_y", "spacing_z")
OWN_COLUMNS = (*SLICE_COLUMNS, "volume", "cohort", "weak_label", "label", "selection", "n_kept")
WITHOUT_MASK = "all body slices (no mask)"
TABLES = ("slices.csv", "failed.csv", "inventory.csv")
ORGAN_HU = (-100.0, 400.0)  # the median under a mask of the liver is well inside, in any phase


@dataclass(frozen=True)
class Slices:
    """An opened store."""

    images: np.ndarray  # (n, size, size) uint8, memory-mapped, read only
    table: pd.DataFrame  # n rows, as slices.csv
    settings: dict[str, Any]  # store.json
    failed: pd.DataFrame  # volume, patient, reason


def prepare_volume(
    volume: str | Path,
    mask: str | Path = "",
    image_size: int = 160,
    fraction: float = 0.7,
    convention: str = "k/(n-1)",
    low: float = -100.0,
    high: float = 400.0,
    mask_value: int | None = None,
    coding: str = "",
    row: dict[str, Any] | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """The kept slices of one CT volume as bytes, lowest first (WSP, section 3).

    Clipped to the window in HU, resized, then rounded to bytes: in this order padding and metal do
    not bleed into their neighbours, and values are rounded once only. Paper silent. The volume
    stays as its file stores it; planes become float one at a time.

    Args:
        volume: NIfTI file of the CT.
        mask: NIfTI file of the liver, or empty: then all slices of the body are kept.
        image_size: pixels a side.
        fraction: central share of the mask's slices.
        convention: of the positions, "k/(n-1)" or "k/n".
        low, high: window, HU.
        mask_value: label of the organ in the mask, None for all that is not zero.
        coding: of the intensities, see :data:`wspnb.data.inventory.CODINGS`; empty to decide by
            evidence.
        row: filled with what :func:`wspnb.data.inventory.describe` finds, also where an error is
            raised after it.

    Returns:
        ``(n_kept, image_size, image_size)`` uint8, and a dict: ``z`` (slice numbers from the feet),
        ``position``, ``spacing`` (mm) and ``selection`` (in words).

    Raises:
        FileNotFoundError, ValueError: as :func:`wspnb.data.volumes.load_volume` and its neighbours;
            if the intensities are no HU and cannot be decoded; if the mask lies on no organ.
    """
    inside, problem = None, None
    if mask:  # before the volume, so that raw labels and volume are not in memory together
        try:
            inside = load_mask(mask, volume, mask_value)
            if not inside.any():
                raise ValueError(f"{mask}: the mask is empty: draw it or leave it out of the table")
            kept = central_slices(inside, fraction)
        except ValueError as error:  # the volume is described all the same
            problem = error
    scan = read_scan(volume)
    row = {} if row is None else row
    row.update(describe(scan, coding))
    if problem:
        raise problem
    refuse(volume, row)

    def plane(z):
        return decode(scaled(scan.voxels[:, :, z], scan), row["coding"])

    if mask:
        shown = np.flatnonzero(inside.any((0, 1)))
        row["mask_gaps"] = int(shown[-1] - shown[0] + 1 - len(shown))
        _check_mask(mask, volume, row, [plane(z)[inside[:, :, z]] for z in kept])
        selection = f"central {100 * fraction:g} % of the mask"
    else:
        # Bytes of the window hold air and fat as their 0, which is -100 HU; -90: paper silent.
        above = -90 if CODINGS[row["coding"]][1] == -100 else BODY_HU
        kept = body_range([(plane(z) > above).mean() for z in range(scan.voxels.shape[2])])
        selection = WITHOUT_MASK
    images = np.empty((len(kept), image_size, image_size), dtype=np.uint8)
    for image, z in zip(images, kept, strict=True):
        clipped = np.clip(to_image(plane(z)), low, high)  # (h, w)
        pixel = (scan.spacing[1], scan.spacing[0])
        image[:] = window(resize(clipped, image_size, pixel, low), low, high)
    return images, {
        "z": kept.tolist(),
        "position": slice_positions(len(kept), convention).tolist(),
        "spacing": [round(float(s), 6) for s in scan.spacing],
        "selection": selection,
    }


def write_slices(
    cohort_csv: str | Path,
    folder: str | Path,
    image_size: int = 160,
    fraction: float = 0.7,
    convention: str = "k/(n-1)",
    low: float = -100.0,
    high: float = 400.0,
    mask_value: int | None = None,
    workers: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> Path:
    """Preprocess a cohort into a store; goes on where an interrupted call stopped.

    Volumes are prepared in parallel and appended in the cohort's order, so the bytes do not depend
    on the number of workers or on interruptions. Each worker holds one volume in memory. A volume
    that cannot be used is left out and listed with its reason in ``failed.csv`` (and
    :attr:`Slices.failed`): look at it. So is a scan that is in the table twice: both rows where
    they are of two patients, the later one where they are of one. What was found in each file is
    in ``inventory.csv``; its decision on the intensities comes before they are used, and a column
    ``coding`` of the table before the evidence. A complete store of the same settings and inputs is
    left as it is.

    Args:
        cohort_csv: see :func:`wspnb.data.cohort.read_cohort`.
        folder: of the store, made if missing.
        image_size, fraction, convention, low, high, mask_value: see :func:`prepare_volume`.
        workers: processes; None is one per core, 1 works in this process.
        progress: show a bar.
        overwrite: throw away what another call with other settings left in the folder.

    Returns:
        The folder.

    Raises:
        FileNotFoundError, ValueError: from the cohort table; if the folder holds a store of other
            settings or inputs; if no volume is usable; if another process writes the same folder.
        RuntimeError: if a worker died, for instance for want of memory; what is done is kept.
    """
    slice_positions(1, convention), window(np.zeros(1), low, high)  # raise before any work
    central_slices(np.ones((1, 1, 1)), fraction)
    if image_size < 1:
        raise ValueError(f"image_size {image_size}: choose a number of pixels")
    cohort = _name_volumes(read_cohort(cohort_csv), Path(cohort_csv))
    settings = {
        "format": FORMAT,
        "image_size": int(image_size),
        "fraction": float(fraction),
        "convention": convention,
        "low": float(low),
        "high": float(high),
        "mask_value": mask_value,
        "cohort_rows": _digest(cohort.drop(columns=["path", "mask_path"]).to_csv(index=False)),
    }
    stamps = [_stamp(row.path) + _stamp(row.mask_path) for row in cohort.itertuples()]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for name in ("slices.npy", *TABLES, "store.json", "journal.jsonl"):
            (folder / name).unlink(missing_ok=True)
    elif (folder / "slices.npy").exists():
        _check_same(folder, open_slices(folder).settings, {**settings, "inputs": _digest(stamps)})
        if (folder / "inventory.csv").exists():  # else of an earlier version: done once more
            (folder / "journal.jsonl").unlink(missing_ok=True)
            return folder

    parts = (folder / "slices.npy.part", folder / "journal.jsonl")
    with open(parts[0], "a+b") as images, open(parts[1], "a+b") as journal:
        _lock(images, folder)
        done = _resume(folder, images, journal, settings, stamps)
        codings = cohort.coding if "coding" in cohort else [""] * len(cohort)
        jobs = [
            (row.path, row.mask_path, settings, coding)
            for row, coding in zip(cohort.itertuples(), codings, strict=True)
        ][len(done) :]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        workers = max(1, min(workers or cores or 1, len(jobs)))
        bar = tqdm(
            desc="volumes",
            total=len(cohort),
            initial=len(done),
            unit="volume",
            disable=not progress,
        )
        with bar, closing(_in_order(jobs, workers)) as results:
            for pixels, entry in results:
                images.write(pixels)
                images.flush()
                entry |= {"crc": zlib.crc32(pixels), "stamp": stamps[len(done)]}
                _append(journal, entry)
                done.append(entry)
                bar.update()
        _finish(folder, images, cohort, done, {**settings, "inputs": _digest(stamps)})
    (folder / "journal.jsonl").unlink()
    return folder


def open_slices(folder: str | Path) -> Slices:
    """Open a store; the images stay on disk until they are read.

    Args:
        folder: as given to :func:`write_slices`.

    Returns:
        Images, table (labels as Int64), settings and the volumes left out.

    Raises:
        FileNotFoundError: if there is no store, or an unfinished one: says how far it is.
        ValueError: if the files do not belong together.
    """
    folder = Path(folder)
    paths = [folder / name for name in ("slices.npy", "slices.csv", "failed.csv", "store.json")]
    if not paths[0].exists():
        journal = folder / "journal.jsonl"
        if journal.exists():
            head, *entries = journal.read_bytes().splitlines() or [b"{}"]
            total = json.loads(head).get("n_volumes", "?")
            raise FileNotFoundError(
                f"{folder}: unfinished, {len(entries)} of {total} volumes are done:"
                " call write_slices again with the same settings (notebook 01) to go on"
            )
        raise FileNotFoundError(f"{folder}: no slices.npy: make it first (notebook 01)")
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise ValueError(f"{folder}: {missing} missing: preprocess the cohort again")
    settings = json.loads(paths[3].read_text(encoding="utf-8"))
    text = {name: str for name in ("patient", "volume", "cohort", "selection")}
    table = pd.read_csv(
        paths[1],
        dtype={**text, "weak_label": "Int64", "label": "Int64"},
        keep_default_na=False,
        na_values=[""],
    )
    failed = pd.read_csv(paths[2], dtype=str, keep_default_na=False)
    try:
        images = np.load(paths[0], mmap_mode="r")
    except ValueError as error:
        raise ValueError(f"{paths[0]}: damaged ({error}): preprocess the cohort again") from error
    shape = (settings["n_slices"], settings["image_size"], settings["image_size"])
    if images.shape != shape or len(table) != shape[0]:
        raise ValueError(
            f"{folder}: slices.npy is {images.shape}, slices.csv has {len(table)} rows, store.json"
            f" says {shape}: the files do not belong together; preprocess the cohort again"
        )
    return Slices(images, table, settings, failed)


def reader(
    images: np.ndarray, device: torch.device, hold: bool | None = None
) -> Callable[[np.ndarray], torch.Tensor]:
    """Function from row numbers ``(b,)`` to their images ``(b, 1, h, w)``, uint8 on the device.

    A GPU with room takes the whole store once, so that no later step waits for the disk; otherwise
    the rows are read from the file, not through the map: memory stays flat and a cold page costs
    one call, not dozens of faults.

    Args:
        images: ``(n, h, w)`` uint8, :attr:`Slices.images`.
        device: where the images are wanted.
        hold: whether to put all there; None: if they fill less than half of a GPU's free memory.
    """
    if hold is None:
        hold = device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] / 2
    if hold:
        held = torch.empty(images.shape, dtype=torch.uint8, device=device)
        for first in range(0, len(images), 1024):
            held[first : first + 1024] = torch.from_numpy(np.array(images[first : first + 1024]))

        def take(rows: np.ndarray) -> torch.Tensor:
            return held[torch.from_numpy(np.asarray(rows)).to(device, non_blocking=True)][:, None]

        return take

    file = getattr(images, "filename", None)
    file = open(file, "rb") if file and hasattr(os, "preadv") else None
    size, pinned = images[0].nbytes, device.type == "cuda"

    def read(rows: np.ndarray) -> torch.Tensor:
        batch = np.empty((len(rows), 1, *images.shape[1:]), dtype=np.uint8)
        for image, row in zip(batch, rows, strict=True):
            if file is None:
                image[0] = images[row]
            elif os.preadv(file.fileno(), [image], images.offset + int(row) * size) != size:
                raise OSError(f"{file.name}: slice {row} cannot be read: is the file cut off?")
        batch = torch.from_numpy(batch)
        return batch.pin_memory().to(device, non_blocking=True) if pinned else batch.to(device)

    return read


# --- parallel work --------------------------------------------------------------------------------


def _prepare(
    volume: str, mask: str, settings: dict[str, Any], coding: str
) -> tuple[bytes, dict[str, Any]]:
    """One job: the slices' bytes and the journal's entry, which is a reason for a bad volume."""
    names = ("image_size", "fraction", "convention", "low", "high", "mask_value")
    options, row = {name: settings[name] for name in names}, {}
    try:
        images, entry = prepare_volume(volume, mask, **options, coding=coding, row=row)
    except (ValueError, OSError) as error:
        return b"", {"z": [], "reason": str(error), "inventory": row}
    return images.tobytes(), entry | {"inventory": row}


def _check_mask(mask, volume, row: dict[str, Any], values: list[np.ndarray]) -> None:
    """Refuse a mask that lies on air or bone: of another scan, or turned over."""
    row["mask_hu"] = round(float(np.median(np.concatenate(values))), 1)
    if not ORGAN_HU[0] <= row["mask_hu"] <= ORGAN_HU[1]:
        raise ValueError(
            f"{mask}: a median of {row['mask_hu']:g} HU under it in {volume}, no organ's: the mask"
            " of another scan, or turned over? Look at both"
        )


def _in_order(jobs: list[tuple], workers: int) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Results in the order of the jobs, with at most two jobs per worker under way."""
    if workers == 1:
        yield from (_prepare(*job) for job in jobs)
        return
    # Spawn: a fork of a process with threads (torch, a notebook) can hang.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
    waiting, running = deque(jobs), deque()
    try:
        while waiting or running:
            while waiting and len(running) < 2 * workers:
                job = waiting.popleft()
                running.append((job, pool.submit(_prepare, *job)))
            yield running[0][1].result()
            running.popleft()
    except BrokenProcessPool as error:
        names = ", ".join(job[0] for job, _ in running)
        raise RuntimeError(
            f"a worker died, perhaps for want of memory, near one of: {names}. What is done is"
            " kept: call again with workers=1"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """One thread; Ctrl-C is the parent's business; leave when the parent is gone, even killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)

    def leave_with_parent():
        parent_process().join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


# --- files ----------------------------------------------------------------------------------------


def _name_volumes(cohort: pd.DataFrame, csv: Path) -> pd.DataFrame:
    """The cohort with paths aside, and volumes named relative to the table where they can be."""
    clash = [name for name in cohort.columns if name in (*OWN_COLUMNS, "path", "mask_path")]
    clash = [n for n in clash if n not in ("patient", "volume", "cohort", "weak_label", "label")]
    if clash:
        raise ValueError(f"{csv}: columns {clash} are names of the slices' table: rename them")
    root = Path(os.path.abspath(csv.parent))

    def name(path):
        inside = path and Path(path).is_relative_to(root)
        return Path(path).relative_to(root).as_posix() if inside else path

    return cohort.assign(
        path=cohort["volume"],
        mask_path=cohort["mask"],
        volume=cohort["volume"].map(name),
        mask=cohort["mask"].map(name),
    )


def _stamp(path: str) -> list:
    """What changes with a file's content: size and, in gzip, its checksum (8 bytes), else time."""
    if not path:
        return []
    if not os.access(path, os.R_OK):  # is set aside with its reason when its turn comes
        return ["not readable"]
    with open(path, "rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
        size = file.seek(0, os.SEEK_END)
        if gzipped and size > 8:
            file.seek(-8, os.SEEK_END)
            return [size, file.read().hex()]
    return [size, os.stat(path).st_mtime_ns]


def _digest(content: Any) -> str:
    text = content if isinstance(content, str) else json.dumps(content)
    return hashlib.sha256(text.encode()).hexdigest()


def _lock(file: BinaryIO, folder: Path) -> None:
    """Keep a second writer out as long as the file is open, where the system can."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(f"{folder}: another process writes here: wait, or stop it") from error
    except (ImportError, OSError):  # Windows; some network file systems
        pass


def _check_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    words = {"cohort_rows": "the cohort table", "inputs": "the volumes", "format": "the format"}
    changed = [
        f"{words[k]} changed" if k in words else f"{k} {found.get(k)!r} there, {v!r} asked"
        for k, v in wanted.items()
        if found.get(k) != v
    ]
    if changed:
        raise ValueError(
            f"{folder}: holds slices made otherwise ({'; '.join(changed)}):"
            " choose another folder, delete this one, or pass overwrite=True"
        )


def _header(n: int, size: int) -> bytes:
    """The .npy header; numpy leaves room for n to grow, so its length does not depend on n."""
    buffer = BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": (n, size, size)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def _append(journal: BinaryIO, entry: dict[str, Any]) -> None:
    journal.write(json.dumps(entry).encode() + b"\n")
    journal.flush()


def _resume(folder, images: BinaryIO, journal: BinaryIO, settings, stamps) -> list[dict[str, Any]]:
    """Entries of the volumes that are done and sound; both files are cut back to them."""
    size = settings["image_size"]
    head = {"settings": settings, "n_volumes": len(stamps)}
    journal.seek(0)
    lines = [line for line in journal.readlines() if line.endswith(b"\n")]
    if lines:
        _check_same(folder, json.loads(lines[0])["settings"], settings)
    else:
        journal.truncate(0)
        images.truncate(0)
        _append(journal, head)
        images.write(_header(0, size))
        images.flush()
        return []
    done, position = [], len(lines[0])
    images.seek(len(_header(0, size)))
    end = images.tell()
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


def _finish(folder: Path, images: BinaryIO, cohort: pd.DataFrame, done, settings) -> None:
    """Write the tables, complete the header and give all files their names, slices.npy last."""
    size = settings["image_size"]
    rows = [entry.get("inventory", {}) for entry in done]
    twice = duplicates(
        [row.get("voxels", "") for row in rows],
        cohort.patient.tolist(),
        cohort.volume.tolist(),
        [bool(entry["z"]) for entry in done],
    )
    counts = [len(entry["z"]) for entry in done]  # in the file
    used = [
        {"z": [], "reason": twice[row]} if row in twice and entry["z"] else entry
        for row, entry in enumerate(done)
    ]
    n = sum(len(entry["z"]) for entry in used)
    failures = [
        (row.volume, row.patient, entry["reason"])
        for row, entry in zip(cohort.itertuples(), used, strict=True)
        if "reason" in entry
    ]
    failed = pd.DataFrame(failures, columns=["volume", "patient", "reason"])
    if not n:
        shown = "\n".join(f"  {reason}" for reason in failed.reason[:10])
        (folder / "journal.jsonl").unlink()
        Path(images.name).unlink()
        raise ValueError(f"{folder}: none of {len(cohort)} volumes could be used\n{shown}")
    table = _table(cohort, used)
    whole = _close_up(Path(images.name), counts, used, size)
    write_text(folder / "slices.csv", table.to_csv(index=False))
    write_text(folder / "failed.csv", failed.to_csv(index=False))
    write_text(folder / "inventory.csv", _inventory(cohort, used, rows).to_csv(index=False))
    content = hashlib.sha256()
    for path in (whole, folder / "slices.csv"):
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                content.update(block)
    suspects = [
        row.volume
        for row, entry, found in zip(cohort.itertuples(), used, rows, strict=True)
        if entry["z"] and found.get("coding") != "HU" and not found["evidence"].startswith("said")
    ]
    if suspects:  # the released code reads files that hold (HU + 100) / 2
        warnings.warn(
            f"{len(suspects)} volumes, such as {suspects[0]}, are no HU but bytes of the window by"
            f" the evidence in {folder / 'inventory.csv'}, and were decoded: read it, and if you"
            f" know better, {SAY}",
            stacklevel=3,
        )
    torn = [
        r.volume
        for r, e, f in zip(cohort.itertuples(), used, rows, strict=True)
        if e["z"] and f.get("mask_gaps")
    ]
    if torn:
        warnings.warn(
            f"{len(torn)} masks, such as that of {torn[0]}, have slices without mask between their"
            " ends, as where a stray voxel lies far from the organ, which moves every position:"
            f" look at mask_gaps in {folder / 'inventory.csv'}, and keep the largest part",
            stacklevel=3,
        )
    store = {
        **settings,
        "n_slices": n,
        "n_patients": int(table.patient.nunique()),
        "n_volumes": len(done) - len(failed),
        "n_failed": len(failed),
        "without_mask": int((table.selection == WITHOUT_MASK).groupby(table.volume).any().sum()),
        "not_hu": suspects,  # decoded by evidence
        "sha256": content.hexdigest(),
        "versions": {
            name: package_version(name) for name in ("wspnb", "numpy", "nibabel", "torch")
        },
    }
    write_text(folder / "store.json", json.dumps(store, indent=1, ensure_ascii=False) + "\n")
    os.replace(whole, folder / "slices.npy")
    Path(images.name).unlink(missing_ok=True)


def _close_up(part: Path, counts: list[int], used: list[dict[str, Any]], size: int) -> Path:
    """Complete the header; if volumes are left out that were written, a copy without their gap.

    The part itself keeps all that the journal lists, so that a kill in between loses nothing.
    """
    n, start = sum(len(entry["z"]) for entry in used), len(_header(0, size))
    header = _header(n, size)
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


def _inventory(cohort: pd.DataFrame, used: list[dict[str, Any]], rows) -> pd.DataFrame:
    """One row per file of the cohort: what was found in it, and whether it is used."""
    own = pd.DataFrame(
        {
            "volume": cohort.volume,
            "patient": cohort.patient,
            "n_kept": [len(entry["z"]) for entry in used],
            "reason": [entry.get("reason", "") for entry in used],  # why it is left out
        }
    )
    return pd.concat([own, pd.DataFrame(rows, index=own.index)], axis=1)


def _table(cohort: pd.DataFrame, done: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per kept slice, in the order of the images."""
    counts = [len(entry["z"]) for entry in done]
    rows = cohort.loc[np.repeat(np.arange(len(cohort)), counts)].reset_index(drop=True)
    used = [entry for entry in done if entry["z"]]
    spacing = np.repeat([e["spacing"] for e in used], [len(e["z"]) for e in used], axis=0)
    z = np.concatenate([e["z"] for e in used])
    own = pd.DataFrame(
        {
            "patient": rows.patient,
            "position": np.concatenate([e["position"] for e in used]),
            "z": z,  # slice number from the feet in the canonical volume
            "height_mm": np.concatenate(
                [(np.array(e["z"]) - e["z"][0]) * e["spacing"][2] for e in used]
            ).round(4),  # above the lowest kept slice
            "spacing_x": spacing[:, 0],  # of the source, mm
            "spacing_y": spacing[:, 1],
            "spacing_z": spacing[:, 2],
            "volume": rows.volume,
            "cohort": rows.cohort,
            "weak_label": rows.weak_label,
            "label": rows.label,
            "selection": np.concatenate([[e["selection"]] * len(e["z"]) for e in used]),
            "n_kept": np.repeat([len(e["z"]) for e in used], [len(e["z"]) for e in used]),
        }
    )
    extra = [c for c in rows.columns if c not in (*OWN_COLUMNS, "mask", "path", "mask_path")]
    return pd.concat([own, rows[extra]], axis=1)
