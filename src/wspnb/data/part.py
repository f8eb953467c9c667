"""A store while it is written: bytes that grow, a journal with a line for each volume done.

``slices.npy.part`` grows volume by volume beside ``journal.jsonl``. A kill at any moment loses at
most the volume that was under way; whoever writes next cuts both back to what is sound.
"""

import json
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from wspnb.data.store import npy_header

LEFT = ("slices.npy.part", "slices.npy.whole", "journal.jsonl")


def lock(file: BinaryIO, folder: Path) -> None:
    """Keep a second writer out as long as the file is open, where the system can."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(f"{folder}: another process writes here: wait, or stop it") from error
    except (ImportError, OSError):  # Windows; some network file systems
        pass


def check_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
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


def append(journal: BinaryIO, entry: dict[str, Any]) -> None:
    journal.write(json.dumps(entry).encode() + b"\n")
    journal.flush()


def resume(
    folder, images: BinaryIO, journal: BinaryIO, settings, stamps, overwrite: bool = False
) -> list[dict[str, Any]]:
    """Entries of the volumes that are done and sound; both files are cut back to them. With
    ``overwrite``, what was begun with other settings is thrown away."""
    size = settings["image_size"]
    head = {"settings": settings, "n_volumes": len(stamps)}
    journal.seek(0)
    lines = [line for line in journal.readlines() if line.endswith(b"\n")]
    try:
        begun = json.loads(lines[0])["settings"] if lines else settings
    except (ValueError, KeyError, TypeError):  # damaged
        lines = []
    if lines and overwrite and begun != settings:
        lines = []
    if lines:
        check_same(folder, begun, settings)
    else:
        journal.truncate(0)
        images.truncate(0)
        append(journal, head)
        images.write(npy_header(0, size))
        images.flush()
        return []
    done, position = [], len(lines[0])
    images.seek(len(npy_header(0, size)))
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
