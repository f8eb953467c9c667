"""One pool of processes for all: results in order, nobody works on for a parent that is gone."""

import ctypes
import os
import platform
import re
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any


def keep_memory() -> None:
    """Let this process keep what it frees, up to 1 GiB, for its next large block.

    Else the system takes every large block back and fills a new one with zeros, a quarter of a
    training step on a CPU or more; the price is 0.3 GB. Results stay the same. Without glibc
    (macOS, Windows) nothing happens.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap as well
        libc.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD, bytes


def in_order(
    function: Callable, jobs: list[tuple], workers: int | None = None, name: int = 0
) -> Iterator[Any]:
    """Results of ``function(*job)`` in the order of the jobs, at most two per worker under way.

    Args:
        function: of a module, so that a fresh process can import it.
        workers: processes; None is one per core, 1 works in this process.
        name: which argument names a job in an error.

    Raises:
        RuntimeError: if a worker died, for instance for want of memory.
    """
    workers = max(1, min(workers or count_cores(), len(jobs)))
    if workers > 1 and (script := _bare_script()):
        advice = 'what starts the work under `if __name__ == "__main__":`, and all cores work'
        warnings.warn(f"{script}: works in one process; put {advice}", stacklevel=2)
        workers = 1
    if workers == 1:
        yield from (function(*job) for job in jobs)
        return
    # Spawn: a fork of a process with threads (torch, a notebook) can hang.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), start_worker)
    waiting, running = deque(jobs), deque()
    try:
        while waiting or running:
            while waiting and len(running) < 2 * workers:
                job = waiting.popleft()
                with _uninterrupted():  # a worker starts with it, and is deaf from its first moment
                    running.append((job, pool.submit(function, *job)))
            yield running[0][1].result()
            running.popleft()
    except BrokenProcessPool as error:
        names = ", ".join(str(job[name]) for job, _ in running)
        raise RuntimeError(
            f"a worker died, perhaps for want of memory, near one of: {names}. What is done is"
            " kept: call again with workers=1"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _bare_script() -> str:
    """The script that is running, if each worker would run the whole of it again."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if not file or getattr(main, "__spec__", None) or parent_process():
        return ""
    with suppress(OSError):  # -c, a notebook, a frozen program
        text = Path(file).read_text(encoding="utf-8", errors="replace")
        return "" if re.search(r"__name__\s*[!=]=", text) else file
    return ""


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits; processes that are started meanwhile never get it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def count_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use, one at least: what the scheduler gives (Slurm, if it binds
    nothing, says it only), and in a container (Docker, Binder, Kubernetes) or a user's slice no
    more than its share of time, as Linux says it in ``cgroup``, versions 2 and 1 of it, for its own
    group and those above."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    given, text, quotas = os.environ.get("SLURM_CPUS_PER_TASK", ""), "", []
    there = min(there or 1, int(given)) if given.isdecimal() else there or 1
    with suppress(OSError):
        text = Path("/proc/self/cgroup").read_text(encoding="utf-8")
    for own in {"", *re.findall(r"^\d+:(?:|.*\bcpu\b.*):/(.*)", text, re.MULTILINE)}:
        for group in (Path(own), *Path(own).parents):
            quotas.append([cgroup / group / "cpu.max"])
            names = (f"cpu.cfs_{name}_us" for name in ("quota", "period"))
            quotas.append([cgroup / "cpu" / group / name for name in names])
    for files in quotas:
        try:
            text = " ".join(file.read_text(encoding="utf-8") for file in files)
            quota, period = map(int, text.split())
        except (OSError, ValueError):  # not this version, or "max": no share is set
            continue
        if quota > 0:
            there = min(there, quota // period)
    return max(1, there)


def start_worker() -> None:
    """One thread; Ctrl-C is the parent's business; leave when the parent is gone, even killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"  # for torch, if a job loads it
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)

    def leave_with_parent():
        parent_process().join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
