"""Killed, interrupted, disk full: `pytest -m trust`, not part of the default run.

`KILLS=20` kills that often in each test (2), `SEED=1` at other moments. Minutes; with 20, hours.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
KILLS, SEED = int(os.environ.get("KILLS", 2)), int(os.environ.get("SEED", 0))
MARK = "WSPNB_TRUST"  # in the environment of all that a test starts
SMALL = {"image_size": 48, "backbone": "tiny_padded", "precision": "'no'", "batch_size": 8}
SMALL |= {"scale": 0.01, "scale_histology": 0.3, "spacing_mm": 14.0, "warmup_steps": 1}
SMALL |= {"n_steps": 200, "log_every": 1, "evaluate": "[d1]", "methods": "[random, wsp]"}
pytestmark = [pytest.mark.trust, pytest.mark.slow]


def processes(mark: str) -> list[int]:
    """Living processes that a test has started, found by their environment."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in file.read_bytes().split(b"\0"):
                found.append(int(file.parent.name))
        except OSError:  # ended meanwhile
            pass
    return found


def gone(mark: str, seconds: float = 60) -> bool:
    """Whether all of them end by themselves."""
    end = time.monotonic() + seconds
    while processes(mark) and time.monotonic() < end:
        time.sleep(0.2)
    return not processes(mark)


class Step:
    """A notebook, or the workflow, in a folder of its own, and the files it is there for."""

    def __init__(self, name: str, folder: Path, results: list[str]):
        self.name, self.folder, self.results = name, folder, results
        self.mark = str(folder)

    def command(self) -> list[str]:
        if self.name == "workflow":
            words = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile"]
            words += ["--profile", "workflow/profiles/local", "--cores", "2"]
            words += ["runs/trust/notebooks/03_linear_probe-wsp-tiny_padded-seed0.ipynb"]
            return [*words, "--config", "profile=trust", "methods=random,wsp"]
        words = [sys.executable, "-m", "wspnb.run", f"notebooks/{self.name}.ipynb"]
        return [*words, f"runs/trust/notebooks/{self.name}.ipynb", "-f", "params/trust.yaml"]

    def start(self) -> subprocess.Popen:
        environment = {
            MARK: self.mark,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(self.folder / "src"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        return subprocess.Popen(
            self.command(),
            cwd=self.folder,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self) -> str:
        """Run to the end, after the leftovers of a workflow that was killed alone have ended."""
        while True:
            running = self.start()
            said = running.communicate()[0]
            if "still works on" not in said:
                assert running.returncode == 0, said
                return said
            assert gone(self.mark, 300), said

    def bytes(self) -> dict[str, bytes]:
        return {name: (self.folder / name).read_bytes() for name in self.results}

    def leftovers(self) -> list[Path]:
        """Files that are no result: half-written, or of a process that was killed."""
        odd = (".tmp-*", "*.part", "*.tmp", ".*.[0-9]*.ipynb", "checkpoint.pt", ".*.lock")
        return [path for pattern in odd for path in (self.folder / "runs").rglob(pattern)]


def project(folder: Path) -> Path:
    """A copy of the project with a small profile, all of whose folders are below it."""
    for name in ("notebooks", "params", "workflow", "src", "docs"):
        shutil.copytree(ROOT / name, folder / name)
    places = {"run_dir": "", "cohort_dir": "/cohort", "source_dir": "/source"}
    lines = [f"{name}: {value}" for name, value in SMALL.items()]
    lines += [f"{name}: runs/trust{place}" for name, place in places.items()]
    (folder / "params" / "trust.yaml").write_text("\n".join([*lines, "workers: 2"]) + "\n")
    return folder


COHORT = ["runs/trust/cohort/slices.npy", "runs/trust/cohort/slices.csv"]
ENCODER = ["runs/trust/pretrain/wsp-tiny_padded-seed0/encoder.safetensors"]
SCORES = [f"runs/trust/probe/{m}-tiny_padded-seed0/scores.csv" for m in ("random", "wsp")]
STEPS = {"01_preprocess": COHORT, "02_pretrain": ENCODER, "03_linear_probe": SCORES}
STEPS["workflow"] = [*COHORT, *ENCODER, SCORES[1]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The three notebooks run one after the other."""
    folder = project(tmp_path_factory.mktemp("undisturbed") / "project")
    for name, results in STEPS.items():
        if name != "workflow":
            Step(name, folder, results).finish()
    return folder


@pytest.fixture
def step(request, undisturbed, tmp_path) -> Step:
    """A step with all that comes before it, and nothing of its own."""
    folder = project(tmp_path / "project")
    for name, results in STEPS.items():
        if name == request.param or request.param == "workflow":
            break
        parents = {(undisturbed / result).parent for result in results}
        for parent in parents:
            shutil.copytree(parent, folder / parent.relative_to(undisturbed), dirs_exist_ok=True)
    return Step(request.param, folder, STEPS[request.param])


@pytest.mark.parametrize("group", [True, False], ids=["group", "runner alone"])
@pytest.mark.parametrize("step", STEPS, indirect=True)
def test_killed_at_random_moments_the_same_bytes(step, undisturbed, group):
    moments = random.Random(f"{SEED} {step.name} {group}")
    other = Step(step.name, project(step.folder.parent / "timed"), step.results)
    if (step.folder / "runs").exists():
        shutil.copytree(step.folder / "runs", other.folder / "runs")
    start = time.monotonic()
    other.finish()
    whole = time.monotonic() - start
    for kill in range(KILLS):
        running = step.start()
        moment = moments.uniform(0.1, 0.95) * whole
        time.sleep(moment)
        (os.killpg if group else os.kill)(running.pid, signal.SIGKILL)
        running.wait()
        alone = 600 if step.name == "workflow" else 60  # its notebook ends its work
        assert gone(step.mark, alone), f"kill {kill} at {moment:.1f} s: {processes(step.mark)}"
        print(f"{step.name}: kill {kill} at {moment:.1f} of {whole:.1f} s")
    step.finish()
    expected = Step(step.name, undisturbed, step.results).bytes()
    assert step.bytes() == expected == other.bytes()
    assert not step.leftovers() and not processes(step.mark)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("step", ["02_pretrain"], indirect=True)
def test_an_interrupt_ends_cleanly_and_loses_no_step(step, undisturbed, number):
    running = step.start()
    log = step.folder / ENCODER[0]
    checkpoint, end = log.with_name("checkpoint.pt"), time.monotonic() + 300
    while not checkpoint.exists() and time.monotonic() < end:
        time.sleep(0.05)
    running.send_signal(number)
    said = running.communicate(timeout=120)[0]
    assert running.returncode == 130 and "interrupted" in said and "Traceback" not in said
    assert gone(step.mark, 5) and checkpoint.exists()
    step.finish()
    assert step.bytes() == Step(step.name, undisturbed, step.results).bytes()
    rows = pd.read_csv(log.with_name("log.csv"))
    assert rows.step.tolist() == list(range(SMALL["n_steps"]))  # none twice, none lost


@pytest.fixture
def mounted(request, step):
    """A small disk, or one that cannot be written to, in the place of the step's results."""
    place = step.folder / "runs" / "trust" / "pretrain"
    place.mkdir(parents=True, exist_ok=True)
    options = ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", place]
    if os.geteuid() or subprocess.run(options, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("mounted", ["size=300k", "ro,size=1m"], indirect=True)
@pytest.mark.parametrize("step", ["02_pretrain"], indirect=True)
def test_a_full_or_read_only_disk_gives_one_message(step, mounted, request, undisturbed):
    running = step.start()
    said = running.communicate(timeout=600)[0]
    assert running.returncode == 1
    failed = [line for line in said.splitlines() if "FAILED" in line]
    assert len(failed) == 1 and "Traceback" not in said
    assert "No space left" in failed[0] or "Read-only file system" in failed[0], said
    assert str(mounted) in failed[0], "the message names no file"
    assert not (mounted / "wsp-tiny_padded-seed0" / "encoder.safetensors").exists()
