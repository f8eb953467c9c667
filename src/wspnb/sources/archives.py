"""Archives from elsewhere, unpacked without trusting them: zip, tar, tar.gz."""

import gzip
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_BYTES, MAX_MEMBERS = 256 << 30, 100_000  # far above a cohort of CT, far below a bomb
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)


def unpack(
    archive: str | Path,
    target: str | Path,
    max_bytes: int = MAX_BYTES,
    max_members: int = MAX_MEMBERS,
) -> Path:
    """Content of an archive in a folder that appears whole or not at all; kept if it is there.

    Plain files and folders only: a link, a device, a name that leads out of the folder or comes
    twice, or more than the bounds or the disk allow, and nothing is unpacked.

    Args:
        archive: .zip, .tar, .tar.gz or .tgz.
        target: folder to make; ``TARGET.part`` meanwhile.
        max_bytes: of all files together, unpacked.
        max_members: number of entries.

    Returns:
        The folder.

    Raises:
        ValueError: if the archive is damaged, or holds something refused; names it.
        OSError: if the disk is too small.
    """
    archive, target = Path(archive), Path(target)
    if target.is_dir():
        return target
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)  # of a call that was interrupted
    part.mkdir(parents=True)
    free, total = shutil.disk_usage(part).free, 0
    try:
        for number, (name, kind, size, stream) in enumerate(_members(archive), start=1):
            total += size
            path = _inside(part, name)
            if kind == "other" or path is None:
                what = "is a link or a device" if path else "leads out of the folder"
                raise ValueError(f"{archive}: {name!r} {what}: not unpacked, is it the right file?")
            if number > max_members or total > max_bytes:
                raise ValueError(
                    f"{archive}: more than {max_members} entries or {max_bytes / 1e9:g} GB when"
                    " unpacked: not unpacked; if it is right, unpack it by hand (local_file)"
                )
            if total > free:
                raise OSError(
                    f"{target}: {free / 1e9:.1f} GB are free, {archive.name} needs more: make room"
                )
            if kind == "folder":
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb") as output:
                shutil.copyfileobj(stream, output, 1 << 20)
    except (FileExistsError, NotADirectoryError) as error:
        shutil.rmtree(part)
        raise ValueError(f"{archive}: {name!r} comes twice: not unpacked") from error
    except (*DAMAGED, EOFError, RuntimeError) as error:
        shutil.rmtree(part)
        raise ValueError(f"{archive}: damaged or locked ({error}): fetch it again") from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    os.replace(part, target)
    return target


def _inside(folder: Path, name: str) -> Path | None:
    """Where a member goes, or None if that is not below the folder."""
    name = name.encode("utf-8", "backslashreplace").decode()  # what is not text in its name
    parts = PurePosixPath(name).parts
    path = folder.joinpath(*parts)
    out = name.startswith("/") or ".." in parts or "\0" in name
    return None if out or not path.resolve().is_relative_to(folder.resolve()) else path


def _members(archive: Path) -> Iterator[tuple[str, str, int, BinaryIO | None]]:
    """Name, kind (file, folder, other), size and content of each entry, in one pass."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as file:
            for entry in file.infolist():
                mode = entry.external_attr >> 16
                plain = stat.S_IFMT(mode) in (0, stat.S_IFREG, stat.S_IFDIR)
                kind = ("folder" if entry.is_dir() else "file") if plain else "other"
                if kind == "file":
                    with file.open(entry) as stream:
                        yield entry.filename, kind, entry.file_size, stream
                else:
                    yield entry.filename, kind, 0, None
        return
    with tarfile.open(archive) as file:
        for entry in file:
            kind = "file" if entry.isreg() else "folder" if entry.isdir() else "other"
            stream = file.extractfile(entry) if kind == "file" else None
            yield entry.name, kind, entry.size if stream else 0, stream
