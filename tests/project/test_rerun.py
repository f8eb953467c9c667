"""What makes a finished notebook run again, what does not, and values that mean harm. The runner is
a stand-in that notes its call, so that the real graph runs in seconds."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from wspnb.data.cohort import read_cohort
from wspnb.data.masks import write_cohort
from wspnb.pretrain import pick_precision

ROOT = Path(__file__).parents[2]
PAGES = """import pathlib, sys
out = pathlib.Path(sys.argv[2])
out.mkdir() if sys.argv[1] == "html" else out.touch()
"""
STUB = """if __name__ == "__main__":
    import json, os, pathlib, sys, time
    notebook, out = map(pathlib.Path, sys.argv[1:3])
    with open("calls.jsonl", "a") as file:
        print(json.dumps(sys.argv[1:]), file=file)
    time.sleep(float(os.environ.get("STUB_SECONDS", 0)))
    out.write_text(json.dumps({"metadata": {"papermill": {"duration": 1}}}))
    sys.exit()
"""
pytestmark = pytest.mark.slow


class Project:
    """A copy of the project in which notebooks only seem to run."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("notebooks", "params", "workflow", "src", "docs"):
            shutil.copytree(ROOT / name, folder / name)
        (folder / "docs" / "pages.py").write_text(PAGES)
        runner = folder / "src" / "wspnb" / "run.py"
        runner.write_text(STUB + runner.read_text(encoding="utf-8"), encoding="utf-8")
        (folder / "bin").mkdir()
        (folder / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")  # the shell's: not ours
        (folder / "bin" / "python").chmod(0o755)

    def start(self, *config: str, seconds=0.0, target=("report",)) -> subprocess.Popen:
        command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile"]
        command += ["--profile", "workflow/profiles/local", "--cores", "2", *target]
        environment = os.environ | {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder / "src"),
            "STUB_SECONDS": str(seconds),
        }
        command += ["--config", *(config or ("profile=smoke", "methods=random,wsp"))]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *config: str, target=("report",), ok: bool = True) -> str:
        workflow = self.start(*config, target=target)
        said = workflow.communicate()[0]
        assert (workflow.returncode == 0) is ok, said
        return said

    def calls(self) -> list[list[str]]:
        """Arguments of the runner since the last look."""
        file = self.folder / "calls.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def ran(self) -> set[str]:
        """Executed notebooks since the last look."""
        return {Path(call[1]).stem for call in self.calls()}

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.folder / file
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{file} has no {old}"
        path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.fixture
def project(tmp_path) -> Project:
    return Project(tmp_path)


ALL = {
    *("00_the_loss", "00b_principle", "01_preprocess", "01b_liver_masks", "05_results"),
    *("02_pretrain-wsp-tiny_padded-seed0", "03_linear_probe-wsp-tiny_padded-seed0"),
    *("03_linear_probe-random-tiny_padded-seed0", "04_representations-all-tiny_padded-seed0"),
    *("05b_population", "06_audit-all-tiny_padded-seed0"),
    *("06b_when_position_helps", "07_oct_biomarkers", "08_kernels"),
}


def test_content_decides_not_dates(project):
    (project.folder / "figures" / "paper").mkdir(parents=True)  # committed tables that are shown
    project.run()
    assert project.ran() == ALL
    # JupyterLab saves on opening: new dates, outputs, execution counts, another layout.
    for path in sorted(project.folder.glob("notebooks/*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell |= {"execution_count": 7, "outputs": []}
        notebook["metadata"]["widgets"] = {}
        path.write_text(json.dumps(notebook), encoding="utf-8")
    for path in [*project.folder.rglob("*.py"), *project.folder.glob("params/*.yaml")]:
        path.touch()
    # An executed notebook that was looked at, comments, docstrings, another's parameter: neither.
    looked = project.folder / "runs/smoke/notebooks/01_preprocess.ipynb"
    looked.write_text(looked.read_text() + " ")
    project.edit("src/wspnb/losses.py", '"""', '"""Another word. ')
    project.edit("src/wspnb/plots.py", "def save_figure", "A_COLOUR = 'red'\n\n\ndef save_figure")
    project.run()
    pictures = ("00_", "00b", "04_", "05_", "05b", "06_", "06b", "08_")
    drawn = {name for name in ALL if name[:3] in pictures}
    assert project.ran() == drawn  # pictures are what these give
    project.run()
    assert project.ran() == set()
    for name, shown in (("kernels_help", "08_kernels"), ("paper/counts", "06_audit-all-tiny_pa")):
        (project.folder / "figures" / f"{name}.csv").write_text("another score")
        project.run()
        assert project.ran() == {n for n in ALL if n.startswith((shown, "05_results"))}

    project.edit("params/smoke.yaml", "n_steps: 4", "n_steps: 5  # a comment")
    project.run()
    trained = {n for n in ALL if n.endswith("seed0")} - {"03_linear_probe-random-tiny_padded-seed0"}
    assert project.ran() == trained | {"05_results"}
    project.edit("notebooks/03_linear_probe.ipynb", "C: float = 0.01", "C: float = 0.02")
    project.run()
    judged = {n for n in ALL if n.startswith(("03_", "04_", "05_", "06_"))}
    assert project.ran() == judged
    project.edit("src/wspnb/losses.py", "import ", "import math as _m\nimport ")
    project.run()
    trained = {"02_pretrain-wsp-tiny_padded-seed0", "03_linear_probe-wsp-tiny_padded-seed0"}
    assert trained <= project.ran()


HOSTILE = {
    "lihc": "/home/O'Brien/`touch HARM`/x.npz",
    "labels": "x' ; touch HARM ; echo 'b",
    "imagenet": 'x" ; touch HARM || echo "$(touch HARM)',
    "publish": "~/{params.key} {{x}} {0}; a * b ? | & touch HARM > HARM \\ !",
}


def test_values_from_the_command_line_stay_values(project):
    few = ("profile=lihc", "backbones=resnet18", "methods=imagenet")
    project.run(*few, *(f"{name}={value}" for name, value in HOSTILE.items()))
    found = {}
    for call in project.calls():
        found |= {call[i + 1]: call[i + 2] for i, word in enumerate(call) if word == "-p"}
    names = ("local_file", "labels_file", "imagenet_file", "publish_dir")
    assert [found[name] for name in names] == list(HOSTILE.values())
    assert not list(project.folder.rglob("HARM"))


def test_folder_of_encoders_stays_a_folder(project):
    value = "en'c $(touch HARM);touch HARM"
    run = project.folder / value / "wsp-tiny-seed0"
    run.mkdir(parents=True)
    (run / "encoder.safetensors").write_bytes(b"weights")
    given = ("profile=lihc_160", "methods=wsp", f"encoders={value}")
    project.run(*given)
    probe = next(call for call in project.calls() if "03_linear_probe" in call[0])
    assert probe[probe.index("pretrain_dir") + 1] == value
    assert not list(project.folder.rglob("HARM"))
    (run / "encoder.safetensors").write_bytes(b"other weights")
    project.run(*given)
    assert "03_linear_probe-wsp-tiny-seed0" in project.ran()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("methods=../../etc/passwd", "run ../../etc/passwd: no method of"),
        ("methods=wsp;touch HARM", "run wsp;touch HARM: no method of"),
        ("profile=../laptop", "small letters, digits and underscores only"),
        ("seeds=0;1", "seeds: whole numbers from 0 up, not '0;1'"),
        ("adrenal={a: b}", "--config adrenal: one path, please"),
    ],
)
def test_names_that_are_none_are_refused(project, config, message):
    workflow = project.start(config)
    assert message in workflow.communicate()[0] and workflow.returncode == 1
    assert not project.calls() and not list(project.folder.rglob("HARM"))


def kill(workflow: subprocess.Popen, project: Project, group: bool) -> None:
    """Kill a workflow, with or without its jobs, once a job has begun."""
    end = time.monotonic() + 60
    while not (project.folder / "calls.jsonl").exists() and time.monotonic() < end:
        time.sleep(0.05)
    (os.killpg if group else os.kill)(workflow.pid, signal.SIGKILL)
    workflow.wait()


def test_a_killed_workflow_leaves_no_lock(project):
    few = ("profile=lihc", "methods=random")
    kill(project.start(*few, seconds=600), project, group=True)
    locks = project.folder / ".snakemake" / "locks"
    assert list(locks.iterdir())
    said = project.run(*few)
    assert "nobody works here any more: going on where it stopped" in said
    assert not list(locks.glob("*"))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_ends_nothing(tmp_path, monkeypatch, number):
    monkeypatch.syspath_prepend(ROOT / "workflow")
    import guard

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(guard.fcntl, "flock", flock)
    guard.take_over(tmp_path)
    (tmp_path / "lock").touch()
    assert guard.at_work(tmp_path / "lock") == ""


def test_two_at_once_and_a_notebook_still_at_work(project):
    few = ("profile=lihc", "methods=random")
    first = project.start(*few, seconds=600)
    while not (project.folder / "calls.jsonl").exists():
        time.sleep(0.05)
    second = project.start(*few)
    assert "cannot be locked" in second.communicate()[0] and second.returncode == 1
    kill(first, project, group=True)
    lock = project.folder / "runs/lihc/notebooks/.01_preprocess.ipynb.lock"
    with lock.open("w") as file:  # as a runner that outlived its workflow
        fcntl.flock(file, fcntl.LOCK_EX)
        print(1234, end="", file=file, flush=True)
        third = project.start(*few)
        said = third.communicate()[0]
        assert third.returncode == 1
        assert "process 1234 still works on 01_preprocess.ipynb" in said
    project.run(*few)


def test_what_ended_after_the_workflow_was_killed_is_done(project):
    few, stamp = ("profile=lihc", "methods=random"), project.folder / "runs/lihc/notebooks/.done"
    project.run(*few)
    shutil.rmtree(project.folder / "runs")  # snakemake still has its records
    assert project.ran()
    kill(project.start(*few, seconds=3), project, group=False)
    end = time.monotonic() + 60
    while not (stamp / "01_preprocess").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert project.ran() == {"01_preprocess"}
    project.run(*few)
    later = {"03_linear_probe-random-tiny-seed0", "04_representations-all-tiny-seed0"}
    assert project.ran() == later | {"05_results"}
    project.run(*few)
    assert not project.ran()
    project.edit("params/lihc.yaml", "source: lihc", "source: lihc\nspacing_mm: 4.0")
    project.run(*few)  # although snakemake may have no record of its end, it runs for its parameter
    assert project.ran() == later | {"05_results", "01_preprocess"}


def test_a_corrected_label_trains_nothing_again(tmp_path):
    project = Project(tmp_path / "project")
    table = project.folder / "data" / "own" / "cohort.csv"
    table.parent.mkdir(parents=True)
    table.write_text(
        "volume,mask,patient,weak_label,label,cohort\na.nii,,A,2,,radio\nb.nii,,B,,1,d1\n"
    )
    for name in ("a.nii", "b.nii"):
        table.with_name(name).write_text(name)
    own = ("profile=own_160", "methods=random,wsp")
    said = project.run(*own)
    assert "7 notebooks" not in said and " h on 2 cores" not in said  # minutes at 160 px
    names = {"02_pretrain-wsp-tiny-seed0", "01_preprocess", "05_results"}
    first = project.ran()
    assert names <= first and "00_the_loss" not in first  # no lessons beside one's own CT
    project.edit("data/own/cohort.csv", "B,,1,d1", "B,,0,d1")
    run = project.folder / "runs" / "own_160"
    project.run(*own, target=["report", "--dry-run"])
    assert (run / "report.html").exists() and not (run / "report.former.html").exists()
    project.edit("params/own_160.yaml", "\nn_folds: ", "\nn_folds: 1  # ")
    said = project.run(*own, ok=False)
    assert "n_folds 1: write 2 or more" in said and "aside as runs/own_160/report.former" in said
    assert not (run / "report.html").exists() and (run / "report.former.html").exists()
    project.edit("params/own_160.yaml", "\nn_folds: 1  # ", "\nn_folds: ")
    project.run(*own)
    assert project.ran() == first - {"02_pretrain-wsp-tiny-seed0"}
    project.edit("data/own/cohort.csv", "A,2,", "A,1,")
    project.run(*own)
    assert project.ran() == first
    project.run(*own)
    assert not project.ran()
    table.with_name("b.nii").write_text("another scan")
    project.run(*own)
    assert project.ran() == first  # the slices are others


def test_the_plan_says_what_is_out_of_date_and_a_dry_run_changes_nothing(project):
    own = ("profile=smoke", "methods=random")
    project.run(*own)
    project.ran()
    books = project.folder / "runs" / "smoke" / "notebooks"
    (books / "01_preprocess.ipynb").write_text('{"metadata": {}}')  # saved without its times
    project.edit("params/smoke.yaml", "scale: 0.015", "scale: 0.02")
    for record in (project.folder / ".snakemake" / "metadata").iterdir():
        record.unlink()  # as where runs/ was copied without it
    stamps = {file: file.read_text() for file in (books / ".done").iterdir()}
    project.run(*own, target=["report", "--dry-run"])
    assert {file: file.read_text() for file in (books / ".done").iterdir()} == stamps
    said = project.run(*own)
    ran = project.ran() - {"05_results"}  # which is not counted
    assert "01_preprocess" in ran and f", {len(ran)} to go" in said


HEAD = "volume,mask,patient,weak_label,label,cohort"


@pytest.mark.parametrize("sign", [",", ";", "\t", " , "])
def test_a_corrected_weak_label_is_seen_whatever_separates_the_columns(tmp_path, sign, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "workflow")
    import content

    (tmp_path / "v").write_text("voxels")
    sums = []
    for number, row in enumerate(
        ("v,,p,2,,a", "v,,p,3,,a", "v,,p,2.0,NA,a", "v,,p,,,a", "v,,p,,,b")
    ):
        file = tmp_path / f"{number}.csv"
        file.write_text(f"{HEAD}\n{row}\n".replace(",", sign), encoding="utf-8")
        sums.append(content.digest_of_cohort(str(file), "a"))
    assert sums[0] == sums[2] and len({*sums}) == 4


def test_a_training_sees_what_files_hold_and_not_how_they_are_called(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "workflow")
    import content

    def both(folder, voxels, extra=",modality\n", end=","):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "v.nii").write_text(voxels)
        table = tmp_path / "cohort.csv"
        table.write_text(f"{HEAD}{extra}{folder}/v.nii,,p,1,,a{end}\n")
        content.digest_of_file.cache_clear()
        content.digest_of_cohort.cache_clear()
        return [content.digest_of_cohort(str(table), training) for training in ("", "a")]

    begin = both("ct", "one")
    assert both("ct", "one") == begin
    renamed, replaced, mr = both("new", "one"), both("ct", "two"), both("ct", "one", end=",mr")
    assert renamed[0] != begin[0] and renamed[1] == begin[1]
    assert not {*begin} & {*replaced} and not {*begin} & {*mr}
    (tmp_path / "cohort.csv").write_bytes(f"{HEAD}\nv,,M\xfcller,1,,a\n".encode("latin-1"))
    content.digest_of_cohort.cache_clear()
    assert content.digest_of_cohort(str(tmp_path / "cohort.csv"), "a")  # notebook 01 refuses it


def test_the_content_of_a_folder_decides(tmp_path, monkeypatch):
    """A stage corrected in a copy's table, a mask replaced in its archive: sizes stay."""
    monkeypatch.syspath_prepend(ROOT / "workflow")
    import content

    sums = set()
    for text in ("1,1", "1,2"):
        (tmp_path / "stages.csv").write_text(text)
        for name in (b"mask", text.encode()):
            with zipfile.ZipFile(tmp_path / "masks.zip", "w") as archive:
                archive.writestr("m", name.ljust(4))
            content.digest_of_file.cache_clear()
            sums.add(content.digest_of_file(str(tmp_path)))
    assert len(sums) == 4
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "patient").symlink_to(tmp_path, target_is_directory=True)
    for text in ("1,1", "1,2"):  # behind a link to a large disk
        (tmp_path / "stages.csv").write_text(text)
        content.digest_of_file.cache_clear()
        sums.add(content.digest_of_file(str(tmp_path / "copy")))
    assert len(sums) == 6


def test_an_empty_note_is_none(tmp_path, monkeypatch):
    """As a power cut leaves it."""
    monkeypatch.syspath_prepend(ROOT / "workflow")
    monkeypatch.chdir(tmp_path)
    import guard

    stamp = Path("runs/x/notebooks/.done/01")
    for file in (stamp, guard.record(stamp.as_posix())):
        file.parent.mkdir(parents=True)
        file.write_text("key" if file == stamp else "")
    assert guard.settle(stamp, "runs/x/notebooks/01.ipynb", "key")


def test_a_folder_that_was_looked_at_is_the_same(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "workflow")
    import content

    (tmp_path / "v.nii.gz").write_text("voxels", encoding="utf-8")
    before = content.digest_of_file(str(tmp_path))
    for name in (".ipynb_checkpoints/v.csv", "._v.nii.gz", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    content.digest_of_file.cache_clear()
    assert content.digest_of_file(str(tmp_path)) == before


@pytest.mark.parametrize(
    ("lines", "file", "old", "new", "same"),
    [
        (
            "%matplotlib inline\nfrom wspnb.losses import (\n    contrastive_loss,\n)",
            "losses",
            "",
            "",
            0,
        ),
        ("from wspnb import contrastive_loss", "losses", "", "", 0),
        ("import wspnb\nwspnb.contrastive_loss(a, b, c)", "losses", "", "", 0),
        ("from wspnb import contrastive_loss", "probe", "", "", 1),
        (
            "from wspnb.files import read_csv",
            "files",
            '"keep_default_na": False',
            '"keep_default_na": True',
            0,
        ),
        ("from wspnb.files import read_csv", "files", "tempfile.TemporaryFile(dir", "open(dir", 1),
    ],
)
def test_a_notebook_knows_all_code_that_its_numbers_come_from(
    tmp_path, monkeypatch, lines, file, old, new, same
):
    monkeypatch.syspath_prepend(ROOT / "workflow")
    import content

    shutil.copytree(ROOT / "src", tmp_path / "src")
    cell = {"cell_type": "code", "metadata": {}, "source": lines}
    (tmp_path / "own.ipynb").write_text(json.dumps({"cells": [cell]}))
    module, found = tmp_path / "src" / "wspnb" / f"{file}.py", []
    for _ in range(2):
        for function in (content.code, content.module):
            function.cache_clear()
        found.append(content.code(str(tmp_path / "own.ipynb"), src=str(tmp_path / "src")))
        text = module.read_text(encoding="utf-8")
        changed = text.replace(old, new) if old else f"{text}\nCHANGED = 1\n"
        assert changed != text or len(found) == 2
        module.write_text(changed, encoding="utf-8")
    assert (found[0] == found[1]) == same


def test_a_file_is_read_again_only_if_it_was_written(tmp_path, monkeypatch):
    """Content decides, and 100 GB are not read for each job: a time of change cannot be set."""
    monkeypatch.syspath_prepend(ROOT / "workflow")
    import content

    from wspnb.data import cohort

    read, stamp = [], cohort.file_stamp
    monkeypatch.setattr(cohort, "file_stamp", lambda path: read.append(path) or stamp(path))
    monkeypatch.setattr(content, "MEMO", tmp_path / ".snakemake" / "stamps.json")
    content.MEMO.parent.mkdir()
    content.memo.cache_clear()
    (file := tmp_path / "mask.nii").write_bytes(b"one")
    first = content.stamp_once(str(file))
    assert content.stamp_once(str(file)) == first and len(read) == 2  # just written: not trusted
    now = time.time_ns()
    monkeypatch.setattr(content.time, "time_ns", lambda: now + 10**10)
    assert [content.stamp_once(str(file)) for _ in range(3)] == [first] * 3 and len(read) == 3
    content.keep(content.memo(), {}, content.MEMO)
    content.memo.cache_clear()
    assert content.stamp_once(str(file)) == first and len(read) == 3  # in the next call too
    date = file.stat().st_mtime_ns
    file.write_bytes(b"two")
    os.utime(file, ns=(date, date))
    assert content.stamp_once(str(file)) != first and len(read) == 4
    content.memo.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card's time is not estimated")
def test_the_plan_knows_float32_and_what_trains_nothing(tmp_path):
    """On a CPU with bf16 instructions float32 takes longer."""
    project = Project(tmp_path)

    def minutes(method):
        config = ("profile=paper", f"methods={method}", "backbones=resnet18")
        found = re.search(r"about ([0-9]+) (min|h) on", project.run(*config, target=["plan"]))
        return int(found[1]) * (60 if found[2] == "h" else 1)

    assert minutes("imagenet") < 60 < minutes("wsp")
    longer = minutes("full_precision") / minutes("wsp")
    assert 3 < longer < 4 if pick_precision("auto") == "bf16" else 0.9 < longer < 1.1


def test_a_label_that_the_table_of_drawn_masks_has_not_puts_the_report_aside(tmp_path):
    """Notebook 01b's table is in use; its labels are those of before."""
    project = Project(tmp_path / "project")
    own, masks = project.folder / "data" / "own", project.folder / "runs" / "own_160" / "masks"
    own.mkdir(parents=True)
    lines = f"{HEAD}\na.nii,a.nii,A,2,,radio\nb.nii,b.nii,B,,1,d1\n"
    (own / "cohort.csv").write_text(lines)
    for name in ("a.nii", "b.nii"):
        (own / name).write_text(name)
    drawn = read_cohort(own / "cohort.csv").assign(mask_source="predicted")
    write_cohort(masks, drawn, None, own / "cohort.csv")
    project.edit("params/own_160.yaml", "source_dir: data/own", "source_dir: runs/own_160/masks")
    config, run = ("profile=own_160", "methods=random"), masks.parent
    project.run(*config)
    (own / "cohort.csv").write_text(lines.replace(",,1,d1", ",,0,d1"))
    assert "no report of own_160 as things are: " in project.run(*config, target=["plan"])
    said = project.run(*config, ok=False)
    assert "says something else than when" in said
    (own / "cohort.csv").write_text(lines)
    project.run(*config)
    (own / "b.nii").write_text("another scan")
    assert "masks of B were drawn on volumes that have" in project.run(*config, target=["plan"])
    assert "masks of B were drawn on volumes that have" in project.run(*config, ok=False)
    assert not (run / "report.html").exists() and (run / "report.former.html").exists()
