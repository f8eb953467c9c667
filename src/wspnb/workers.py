"""One pool of processes for all: results in order, nobody works on for a parent that is gone."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any

import torch


def in_order(
    function: Callable, jobs: list[tuple], workers: int | None = None, name: int = 0
) -> Iterator[Any]:
    """Results of ``function(*job)`` in the order of the jobs, at most two per worker under way.

    Args:
        function: of a module, so that a fresh process can import it.
        jobs: its arguments.
        workers: processes; None is one per core, 1 works in this process.
        name: which argument names a job in an error.

    Raises:
        RuntimeError: if a worker died, for instance for want of memory.
    """
    workers = max(1, min(workers or count_cores(), len(jobs)))
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


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_worker() -> None:
    """One thread; Ctrl-C is the parent's business; leave when the parent is gone, even killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)

    def leave_with_parent():
        parent_process().join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
