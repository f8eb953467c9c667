"""The Slurm profile on a real Slurm of one node, started here on loopback and stopped afterwards.

`pytest -m slurm`; CONTRIBUTING.md says what to install. The node claims two CPUs and a GPU that is
/dev/null, so that jobs which ask for a GPU find one on any machine.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DAEMONS = {"munged": "munge", "slurmctld": "slurm-wlm", "slurmd": "slurm-wlm"}
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
MISSING = [f"{d} (Debian: {p})" for d, p in DAEMONS.items() if not shutil.which(d, path=PATH)]
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
CONF = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobRequeue=0
MinJobAge=36000
ReturnToService=2
SchedulerParameters=bf_interval=2
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=16000 Gres=gpu:1
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def run(words, environment: dict, **options) -> subprocess.CompletedProcess:
    """A finished command with its output."""
    options |= {"capture_output": True, "text": True, "env": environment}
    return subprocess.run(words, **options)


def command(environment: dict, *words: str, **options) -> str:
    """Output of a command that must succeed."""
    done = run(words, environment, **options)
    assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def wait_for(what: str, condition, seconds: float = 60):
    """First true value of a condition; TimeoutError names what was waited for."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.2)
    return value


def free_ports(n: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Environment in which sbatch and the others speak to a Slurm of this test's own."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
    environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{folder}:{PATH}"}
    # Snakemake's job step hides SLURM_CONF from srun, which then looks in /etc alone.
    wrapper = f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n'
    (folder / "srun").write_text(wrapper)
    (folder / "srun").chmod(0o755)
    user = command(environment, "id", "-un").strip()
    names = dict(zip(("controller", "daemon"), free_ports(2), strict=True), user=user)
    names["host"] = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, **names))
    munge = [f"--{f}-file={folder}/munge.{f}" for f in ("key", "pid", "log", "seed")]
    started = []

    def start(*words):
        log = (folder / f"{words[0]}.out").open("w")
        started.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log))

    try:
        start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge)
        wait_for("munged", (folder / "munge.socket").exists)
        start("slurmctld", "-D")
        start("slurmd", "-D")
        state = ["sinfo", "--noheader", "--format=%T"]
        idle = lambda: run(state, environment).stdout.strip() == "idle"  # noqa: E731
        wait_for(f"idle node (logs in {folder})", idle)
        yield environment
    finally:
        gone = lambda: not run(["squeue", "--noheader"], environment).stdout.strip()  # noqa: E731
        with contextlib.suppress(TimeoutError):  # slurmd does not end before its jobs
            run(["scancel", "--user", user], environment)
            wait_for("empty queue", gone, 180)
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Copy of what the workflow needs, so that nothing is written into this checkout."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("notebooks", "params", "workflow", "figures"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


def flow(cluster: bool, target: str, *options: str) -> list:
    """Command line of the workflow for the smoke run; squeue, as sacct needs a database."""
    here = ["--profile", "workflow/profiles/local", "--cores", "2"]
    there = ["--profile", "workflow/profiles/slurm", "--max-threads", "2"]
    there += ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "2"]
    words = ["snakemake", "--snakefile", "workflow/Snakefile", target, "--config", "profile=smoke"]
    return [*words, *options, *(there if cluster else here)]


def results(folder: Path) -> dict[str, bytes]:
    """The numbers of a run: encoders and scores, as the files' bytes."""
    files = [*folder.glob("pretrain/*/encoder.safetensors"), *folder.glob("probe/*/scores.csv")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def jobs(environment: dict, *columns: str) -> list[list[str]]:
    """Columns of all jobs that Slurm still knows, finished ones too, in order of their number."""
    wide = ",".join(f"{column}:120" for column in columns)
    text = command(environment, "squeue", "--states=all", "--noheader", "--sort=i", "-O", wide)
    return [[r[i : i + 120].strip() for i in range(0, len(r), 120)] for r in text.splitlines() if r]


def test_a_sweep_gives_the_numbers_of_a_local_one(slurm, project):
    target = "runs/smoke/notebooks/06_audit-all-tiny_padded-seed0.ipynb"
    methods = "methods=supervised,random,wsp"
    command(slurm, *flow(True, target, methods), cwd=project)
    table = jobs(slurm, "Comment", "State", "tres-per-job", "TimeLimit")
    assert [state for _, state, _, _ in table] == 6 * ["COMPLETED"]
    asked = {c.split("_wildcards")[0]: [gpus, limit] for c, _, gpus, limit in table}
    training = ["gres:gpu:1", "12:00:00"]
    assert asked.pop("rule_pretrain") == asked.pop("rule_supervised") == training
    assert set(asked) == {"rule_preprocess", "rule_linear_probe", "rule_audit"}
    assert all(job == ["N/A", "1:00:00"] for job in asked.values())
    there = results(project / "runs" / "smoke")
    assert len(there) == 4
    shutil.rmtree(project / "runs")
    command(slurm, *flow(False, target, methods), cwd=project)
    assert results(project / "runs" / "smoke") == there


def test_a_preempted_job_goes_on_from_its_checkpoint(slurm, project):
    name, steps = "wsp_n_steps150", 150
    target = project / f"runs/smoke/notebooks/02_pretrain-{name}-tiny_padded-seed0.ipynb"
    folder = project / f"runs/smoke/pretrain/{name}-tiny_padded-seed0"
    words = [str(target.relative_to(project)), "--set-resources", "pretrain:gpu=0"]
    with (project / "flow.log").open("w") as log:
        running = subprocess.Popen(
            flow(True, *words), cwd=project, env=slurm, stdout=log, stderr=log
        )
    try:
        checkpoint = (folder / "checkpoint.pt").exists
        wait_for("checkpoint", lambda: checkpoint() or running.poll() is not None, 1800)
        (job,) = jobs(slurm, "JobID")[-1]
        listed = command(slurm, "scontrol", "listpids", job).splitlines()[1:]
        command(slurm, "scontrol", "requeue", job)
        processes = [Path("/proc", line.split()[0]) for line in listed]
        assert len(processes) > 3  # Slurm's script, Snakemake, the runner and its kernel
        wait_for("end of the processes", lambda: not any(p.exists() for p in processes))
        assert target.with_suffix(".failed.ipynb").exists()  # ended by itself, not by SIGKILL
        assert running.wait(1800) == 0, (project / "flow.log").read_text()
    finally:
        running.kill()
    shown = command(slurm, "scontrol", "show", "job", job)
    assert "Restarts=1 " in shown and "TimeLimit=12:00:00" in shown
    left = int(re.search(r"(\d+) steps to go", target.read_text())[1])
    assert 0 < left < steps and left % 10 == 0
    cut = (folder / "encoder.safetensors").read_bytes()
    shutil.rmtree(folder)
    target.unlink()
    command(slurm, *flow(False, words[0]), cwd=project)
    assert f"{steps} steps to go" in target.read_text()
    assert (folder / "encoder.safetensors").read_bytes() == cut
