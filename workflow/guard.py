"""Who works in this folder: the locks of a workflow that was killed are found out and removed, and
what its last notebooks did without it is believed."""

import json
import sys
from base64 import urlsafe_b64encode
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
_mine = []  # open as long as this process lives, and with it the lock


def at_work(lock: Path) -> str:
    """Number of the process that holds a lock, "" if nobody does."""
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read() or "?"
        except OSError:  # a file system that knows no locks
            pass
    return ""


def take_over(root: Path) -> None:
    """Remove snakemake's locks if no other workflow is at work in ``root``; else they stay.

    Raises:
        ValueError: a notebook of the killed workflow is still at work; names it and its process.
    """
    (root / ".snakemake").mkdir(exist_ok=True)
    if fcntl is None:
        return
    file = (root / ".snakemake" / "at_work.lock").open("a")
    _mine.append(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # snakemake's own locks tell whether the two want the same files
        fcntl.flock(file, fcntl.LOCK_SH)
        return
    except OSError:  # a file system that knows no locks: nobody can tell who is at work
        return
    if left := list((root / ".snakemake" / "locks").glob("*")):
        for lock in sorted(root.glob("runs/*/notebooks/.*.lock")):
            if process := at_work(lock):
                name = lock.name.removeprefix(".").removesuffix(".lock")
                raise ValueError(
                    f"the run before was killed, but process {process} still works on {name}: "
                    f"wait for it, or kill {process}"
                )
        for lock in left:
            lock.unlink()
        said = "the run before was killed and nobody works here any more: going on where it stopped"
        print(said, file=sys.stderr)
    fcntl.flock(file, fcntl.LOCK_SH)


def record(file: str, kind: str = "metadata") -> Path:
    """Where snakemake notes how a file was made, or that it was begun (incomplete)."""
    return Path(".snakemake", kind, urlsafe_b64encode(file.encode()).decode())


def settle(stamp: Path, book: str, key: str, look: bool = False) -> bool:
    """Whether a notebook has ended well with this key, by its stamp.

    A notebook that ended after snakemake was killed is unknown to it, or begun and never ended:
    these records go, and its stamp says that it is done. Without them snakemake cannot see that it
    is out of date: then the stamp goes. With ``look`` nothing is changed.
    """
    said = stamp.read_text(encoding="utf-8").strip() if stamp.is_file() else ""
    if look:
        return said == key
    records, begun = (
        [record(file, kind) for file in (stamp.as_posix(), book)]
        for kind in ("metadata", "incomplete")
    )
    try:
        known = json.loads(records[0].read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or an empty one, as a power cut leaves it
        known = {}
    if said == key:
        seen = repr(key) in known.get("params", [])  # perhaps of an earlier run: begun again since
        for note in begun if seen else [*begun, *records]:
            note.unlink(missing_ok=True)
    elif not known:
        stamp.unlink(missing_ok=True)
    return said == key
