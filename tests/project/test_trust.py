"""Killed, interrupted, disk full: `pytest -m trust`, not part of the default run.

Three kills in each test; `KILLS=20` for twenty, `SEED=1` at other moments. `TRUST_TABLE=FILE` adds
what was tried, survived and lost to a table (benchmarks/trust.csv is made so).
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch

ROOT = Path(__file__).parents[2]
KILLS, SEED = int(os.environ.get("KILLS", 3)), int(os.environ.get("SEED", 0))
MARK = "WSPNB_TRUST"  # in the environment of all that a test starts
SMALL = {"image_size": 32, "backbone": "tiny_padded", "precision": "'no'", "batch_size": 8}
SMALL |= {"scale": 0.004, "scale_histology": 0.15, "spacing_mm": 20.0, "warmup_steps": 1}
SMALL |= {"n_steps": 60, "log_every": 1, "save_every": 0.3, "evaluate": "[d1]", "n_folds": 2}
SMALL |= {"methods": "[random, wsp]", "population": 0.0}
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
        (self.folder / "tmp").mkdir(exist_ok=True)
        environment = {
            MARK: self.mark,
            # As the workflow's rules give; another number of threads is another training.
            "OMP_NUM_THREADS": "2" if self.name == "02_pretrain" else "1",
            "PYTHONPATH": str(self.folder / "src"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        said = (self.folder / "said.txt").open("w")  # a pipe that nobody reads would fill up
        return subprocess.Popen(
            self.command(),
            cwd=self.folder,
            env=os.environ | environment,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def said(self) -> str:
        return (self.folder / "said.txt").read_text()

    def wait_for_work(self, running: subprocess.Popen) -> None:
        """Until a progress bar of this start moves, or it has ended."""
        start = (self.folder / "said.txt").stat().st_mtime_ns
        while running.poll() is None:
            logs = (self.folder / "runs/trust/notebooks").glob("*.log")
            if any(log.stat().st_mtime_ns > start for log in logs):
                return
            time.sleep(0.05)

    def finish(self) -> None:
        """Run to the end, after the leftovers of a workflow that was killed alone have ended."""
        while (running := self.start()).wait() and "still works on" in self.said():
            assert gone(self.mark, 300), self.said()
        assert running.returncode == 0, self.said()

    def kill(self, running: subprocess.Popen, everything: bool) -> None:
        """The runner alone, or at once all that it has started, as a batch system does."""
        running.kill()
        while everything and (left := processes(self.mark)):
            for process in left:
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        running.wait()

    def bytes(self) -> dict[str, bytes]:
        files = {name: self.folder / name for name in self.results}
        return {name: file.read_bytes() for name, file in files.items() if file.exists()}

    def leftovers(self) -> list[Path]:
        """Files that are no result: half-written, or of a process that was killed."""
        odd = (".tmp-*", "*.part", "*.tmp", ".*.[0-9]*.ipynb", "checkpoint.pt", ".*.lock")
        return [path for pattern in odd for path in (self.folder / "runs").rglob(pattern)]

    def finished(self) -> dict[str, int]:
        """What is done and must not be done again: files with the time they were written, and
        the number of volumes of an unfinished store and of steps in the checkpoint."""
        runs = self.folder / "runs" / "trust"
        kinds = ["source/**/*.nii.gz", "cohort/slices.npy"]
        kinds += ["notebooks/.done/*"] if self.name == "workflow" else []
        found = {str(file): file.stat().st_mtime_ns for kind in kinds for file in runs.glob(kind)}
        if (parts := runs / "cohort" / "slices.part").exists():
            found["volumes"] = len(list(parts.glob("[0-9]*.npz")))
        for checkpoint in runs.glob("pretrain/*/checkpoint.pt"):
            found["steps"] = torch.load(checkpoint, weights_only=True)["step"]
        return found


def check_between(step: Step, expected: dict[str, bytes], before: dict[str, int]) -> dict[str, int]:
    """After a kill: every file under a final name is whole, and nothing done was done again."""
    for name, content in step.bytes().items():
        assert content == expected[name], f"{name}: half-written, or other bytes"
    for book in (step.folder / "runs/trust/notebooks").glob("[0-9]*.ipynb"):
        if not book.name.endswith(".failed.ipynb"):
            assert json.loads(book.read_text())["metadata"]["papermill"]["duration"] > 0, book
    now = step.finished()
    for name, value in before.items():
        if name in ("volumes", "steps"):
            assert now.get(name, value) >= value, f"{name}: {value} were done, then {now[name]}"
        else:
            assert now.get(name) == value, f"{name} was finished, and made again"
    return now


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
SCORES = [
    f"runs/trust/probe/{method}-tiny_padded-seed0/{file}"
    for method in ("random", "wsp")
    for file in ("scores.csv", "features.npy")
]
STEPS = {"01_preprocess": COHORT, "02_pretrain": ENCODER, "03_linear_probe": SCORES}
STEPS["workflow"] = [*COHORT, *ENCODER, *SCORES[2:]]
SECONDS = {"workflow": 5.0}  # of the undisturbed runs


@contextmanager
def counted(fault: str, step: str, tally: dict[str, int]):
    """Writes down how often a fault was tried, and how often nothing was lost by it."""
    start, lost = time.monotonic(), 1
    try:
        yield
        lost = 0
    finally:
        row = {"fault": fault, "step": step, "seed": SEED, **tally}
        row |= {"survived": row["tried"] - lost, "lost": lost}
        row["minutes"] = round((time.monotonic() - start) / 60, 1)
        print("\n" + pd.DataFrame([row]).to_string(index=False), flush=True)
        if table := os.environ.get("TRUST_TABLE"):
            pd.DataFrame([row]).to_csv(
                table, mode="a", header=not Path(table).exists(), index=False
            )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """The three notebooks run one after the other."""
    folder = project(tmp_path_factory.mktemp("undisturbed") / "project")
    for name, results in STEPS.items():
        if name != "workflow":
            start = time.monotonic()
            Step(name, folder, results).finish()
            SECONDS[name] = time.monotonic() - start
            SECONDS["workflow"] += SECONDS[name]
    return folder


@pytest.fixture
def step(request, undisturbed, tmp_path) -> Step:
    """A step with all that comes before it, and nothing of its own."""
    step = Step(request.param, project(tmp_path / "project"), STEPS[request.param])
    prepare(step, undisturbed)
    return step


def prepare(step: Step, undisturbed: Path) -> None:
    """The state before the step's first run."""
    shutil.rmtree(step.folder / "runs", ignore_errors=True)
    for name, results in STEPS.items():
        if step.name in (name, "workflow"):
            break
        for parent in {(undisturbed / result).parent for result in results}:
            place = step.folder / parent.relative_to(undisturbed)
            shutil.copytree(parent, place, dirs_exist_ok=True)


@pytest.mark.parametrize("everything", [True, False], ids=["everything", "runner alone"])
@pytest.mark.parametrize("step", STEPS, indirect=True)
def test_killed_at_random_moments_the_same_bytes(step, undisturbed, everything):
    moments = random.Random(f"{SEED} {step.name} {everything}")
    whole, done = SECONDS[step.name], {}
    expected = Step(step.name, undisturbed, step.results).bytes()
    tally = {"tried": 0}
    fault = "SIGKILL of everything" if everything else "SIGKILL of the runner alone"
    with counted(fault, step.name, tally):
        while tally["tried"] < KILLS:
            running, moment = step.start(), moments.uniform(0.05, 0.95) * whole
            if tally["tried"] % 2:  # every other one once the work has begun
                moment /= 2
                step.wait_for_work(running)
            try:
                assert running.wait(moment) == 0 or "still works on" in step.said(), step.said()
            except subprocess.TimeoutExpired:
                tally["tried"] += 1
                step.kill(running, everything)
                # The notebook of a workflow that was killed alone ends its work.
                alone = 600 if step.name == "workflow" else 60
                assert gone(step.mark, alone), f"at {moment:.1f} s: {processes(step.mark)}"
                print(f"{step.name}: kill {tally['tried']} at {moment:.1f} of {whole:.1f} s")
                done = check_between(step, expected, done)
            else:  # it was faster than the moment drawn: from the beginning
                assert step.bytes() == expected and not step.leftovers()
                prepare(step, undisturbed)
                done = {}
        step.finish()
        check_between(step, expected, {k: v for k, v in done.items() if k != "steps"})
        assert step.bytes() == expected
        assert not step.leftovers() and not processes(step.mark)


BEGUN = {  # a file that tells that the work has begun
    "01_preprocess": "runs/trust/cohort/slices.part/settings.json",
    "02_pretrain": f"{Path(ENCODER[0]).parent}/checkpoint.pt",
    "03_linear_probe": "runs/trust/notebooks/03_linear_probe.log",
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("step", BEGUN, indirect=True)
def test_an_interrupt_ends_cleanly_and_loses_no_step(step, undisturbed, number):
    with counted(signal.Signals(number).name, step.name, {"tried": 1}):
        running, begun = step.start(), step.folder / BEGUN[step.name]
        while not begun.exists() and running.poll() is None:
            time.sleep(0.05)
        running.send_signal(number)
        assert running.wait(120) == 130, step.said()
        assert "interrupted" in step.said() and "Traceback" not in step.said()
        assert gone(step.mark, 30)
        if step.name == "02_pretrain":
            assert begun.exists(), "no checkpoint was saved"
        step.finish()
        assert step.bytes() == Step(step.name, undisturbed, step.results).bytes()
        if step.name == "02_pretrain":
            rows = pd.read_csv(begun.with_name("log.csv"))
            assert rows.step.tolist() == list(range(SMALL["n_steps"]))  # none twice, none lost


@pytest.fixture
def mounted(request, step):
    """A small disk, or one that cannot be written to, in the place of the step's results."""
    place = step.folder / Path(step.results[0]).parents[step.name != "01_preprocess"]
    place.mkdir(parents=True, exist_ok=True)
    size = {"01_preprocess": "32k", "02_pretrain": "300k", "03_linear_probe": "16k"}[step.name]
    options = f"size={size}" if request.param == "full" else "ro,size=1m"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("mounted", ["full", "read-only"], indirect=True)
@pytest.mark.parametrize("step", BEGUN, indirect=True)
def test_a_full_or_read_only_disk_gives_one_message(step, mounted, request):
    kind = "full disk" if "full" in request.node.callspec.id.split("-") else "read-only disk"
    with counted(kind, step.name, {"tried": 1}):
        assert step.start().wait(600) == 1, step.said()
        failed = [line for line in step.said().splitlines() if "FAILED" in line]
        assert len(failed) == 1 and "Traceback" not in step.said(), step.said()
        assert ("No space left" if kind == "full disk" else "Read-only file system") in failed[0]
        assert str(mounted) in failed[0], f"the message names no file: {failed[0]}"
        assert not step.bytes() and gone(step.mark, 30)
