"""Who works in this folder: the locks of a workflow that was killed are found out and removed."""

import sys
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
