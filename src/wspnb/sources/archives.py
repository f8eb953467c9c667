"""Files from elsewhere; archives (zip, tar, tar.gz) are unpacked without trusting them."""

import glob
import gzip
import lzma
import os
import shutil
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pooch
import psutil

from wspnb.files import files_below, naming, paths_below, printable, suppress_unable

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
OTHERS = (".7z", ".rar", ".zip.001", ".7z.001", ".tar.zst", ".part1.rar")  # not unpacked, named
MAX_BYTES, MAX_MEMBERS = 256 << 30, 100_000  # far above a cohort of CT, far below a bomb
DAMAGED = (zipfile.BadZipFile, tarfile.ReadError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)
DAMAGED += (EOFError, RuntimeError, FileExistsError, NotADirectoryError)  # a name that comes twice


def is_archive(path: Path) -> bool:
    """By its name; what a Mac keeps beside each file (._NAME.zip) is none."""
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def gather(folder: Path, local: str | Path | None, fetch: Callable[[], list[Path]]) -> list[Path]:
    """Files of a source, and below ``folder / "unpacked"`` what its archives hold.

    ``local`` is the folder of a copy, used in place, its dead links listed, too; without one,
    ``fetch`` gives the files.

    Raises:
        FileNotFoundError: if there is no such copy.
    """
    if local and not Path(local).is_dir():
        raise FileNotFoundError(f"{local}: no such folder; give the one that holds the data")
    ours = folder.absolute() / "unpacked"  # perhaps below the copy
    files = sorted(map(Path, paths_below(local))) if local else fetch()
    files = [path for path in files if os.path.isfile(path) or os.path.islink(path)]
    files = [path for path in files if not path.absolute().is_relative_to(ours)]
    for archive in files:  # the list grows: archives may hold archives
        if is_archive(archive) and os.path.isfile(archive):
            with naming(archive):
                name = f"{archive.name}-{pooch.file_hash(str(archive), alg='md5')[:8]}"
            files += files_below(unpack(archive, ours / name))
    return files


def unusable(path: Path) -> str:
    """Why a file cannot be used whatever it holds, or nothing."""
    if os.path.islink(path) and not os.path.exists(path):
        return "a link that leads nowhere: fetch the file"
    odd = printable(path.absolute()) != str(path.absolute())
    return "its name is not UTF-8: rename it" if odd else ""


def warn_left(used: str, status: pd.Series, inventory: Path) -> None:
    """Say how many scans are used and what became of the others, if there are any."""
    if len(status):
        words = ", ".join(f"{kind}: {n}" for kind, n in status.value_counts().items())
        warnings.warn(f"{used} are used; not used: {words}; see {inventory}", stacklevel=3)


def unpack(archive: str | Path, target: str | Path) -> Path:
    """Content of an archive in a folder that appears whole or not at all; kept if it is there. Two
    callers at once do not disturb each other.

    Nothing is written outside the folder: tar entries pass Python's ``data`` filter, which refuses
    devices and names that lead out, and links are refused; zip entries lose what would lead out of
    their names, and links become plain files. At most :data:`MAX_MEMBERS` entries of together
    :data:`MAX_BYTES` are taken.

    Args:
        archive: see :data:`SUFFIXES`.
        target: folder to make, which is returned; ``TARGET.part-...`` meanwhile.

    Raises:
        ValueError: if the archive is damaged, or holds something refused; names it.
        OSError: if the disk is too small.
    """
    archive, target = Path(archive), Path(target)
    if target.is_dir():
        return target
    for left in target.parent.glob(f"{glob.escape(target.name)}.part-*"):
        pid = left.name.rpartition(".part-")[2].split("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):  # of a call that was killed
            shutil.rmtree(left, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{target.name}.part-{os.getpid()}-", dir=target.parent))
    free, total, number = shutil.disk_usage(part).free, 0, 0

    def count(size: int) -> None:
        nonlocal total, number
        total, number = total + size, number + 1
        if number > MAX_MEMBERS or total > MAX_BYTES:
            raise ValueError(
                f"{archive}: more than {MAX_MEMBERS} entries or {MAX_BYTES / 1e9:g} GB when"
                " unpacked: not unpacked; if it is right, unpack it by hand (local_file)"
            )
        if total > free:
            raise OSError(
                f"{target}: {free / 1e9:.1f} GB are free, {archive.name} needs more: make room"
            )

    def keep(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
        count(member.size)
        if member.islnk() or member.issym():
            raise ValueError(f"{archive}: {member.name!r} is a link: not unpacked, the right file?")
        return tarfile.data_filter(member, folder)

    try:
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as file:
                names: dict[str, str] = {}
                for entry in file.infolist():
                    count(entry.file_size)
                    said = entry.filename = entry.filename.replace("\\", "/")  # made by Windows
                    bare = "/".join(p for p in said.split("/") if p not in ("", ".", ".."))
                    if names.setdefault(bare, said) != said:
                        both = f"{names[bare]!r} and {said!r} would be one file"
                        raise ValueError(f"{archive}: {both}: not unpacked, is it the right file?")
                    file.extract(entry, part)
        else:
            with tarfile.open(archive) as file:
                file.extractall(part, filter=keep)
        with suppress_unable():
            part.chmod(0o755)
        try:
            os.replace(part, target)
        except OSError:  # another caller was quicker
            if not target.is_dir():
                raise
    except tarfile.FilterError as error:
        raise ValueError(f"{archive}: {error}: not unpacked, is it the right file?") from error
    except NotImplementedError as error:  # a RuntimeError, of zips
        found = f"packed in a way that is not read here ({error}), as Windows does above 2 GB"
        raise ValueError(f"{archive}: {found}: unpack it by hand (local_file)") from error
    except DAMAGED as error:
        raise ValueError(f"{archive}: damaged or locked ({error}): fetch it again") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target
