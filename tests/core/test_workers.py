"""One pool for all: order, a worker that dies, nobody works on for a parent that is gone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wspnb.workers import count_cores, in_order


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(workers):
    jobs = [(n, 3) for n in range(9)]
    assert list(in_order(divmod, jobs, workers)) == [divmod(n, 3) for n in range(9)]
    assert list(in_order(divmod, [], workers)) == [] and count_cores() >= 1


def test_a_worker_that_dies_is_named_by_its_job():
    with pytest.raises(RuntimeError, match=r"a worker died.* near one of: 7.*workers=1"):
        list(in_order(os._exit, [(7,), (7,)], 2))


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows")
def test_a_worker_never_hears_an_interrupt_not_even_while_it_starts():
    jobs = [(signal.SIG_BLOCK, [])] * 2  # the mask as the worker was born with it
    assert all(signal.SIGINT in mask for mask in in_order(signal.pthread_sigmask, jobs, 2))
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="looks at processes in /proc")
def test_workers_leave_when_the_parent_is_killed(tmp_path):
    lines = ["import pathlib, time", "from wspnb.workers import in_order", ""]
    lines += [f"def work(n): pathlib.Path({str(tmp_path)!r}, str(n)).touch(); time.sleep(600)", ""]
    lines += ["if __name__ == '__main__':", "    list(in_order(work, [(0,), (1,)], 2))"]
    (tmp_path / "parent.py").write_text("\n".join(lines))
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"])
    deadline = time.time() + 120
    while time.time() < deadline and not all((tmp_path / name).exists() for name in "01"):
        time.sleep(0.05)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert len(children) >= 2

    def running(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    deadline = time.time() + 60
    while time.time() < deadline and any(map(running, children)):
        time.sleep(0.05)
    assert not any(map(running, children))


@pytest.mark.parametrize("guard", ["", "if __name__ == '__main__':"])
def test_a_script_that_each_worker_would_run_again_works_alone(tmp_path, guard):
    """Each worker imports the script that started it: without the line all of it begins anew."""
    lines = ["from wspnb.workers import in_order", guard or "if True:"]
    lines += ["    print(*in_order(abs, [(-1,), (2,)], 2))"]
    (tmp_path / "script.py").write_text("\n".join(lines))
    found = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "1 2\n"), found.stderr
    assert ("script.py: works in one process" in found.stderr) == (not guard)
