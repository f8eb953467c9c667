"""Binder, Colab and papermill: what a hosted service needs, checked without one."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from papermill.inspection import inspect_notebook

from wspnb.run import declared
from wspnb.workers import count_cores

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What Colab's runtime has, with all that these need; the cell of binder/README.md brings the rest.
COLAB = "numpy torch matplotlib scikit-learn pandas ipywidgets ipykernel nbformat"
CELL = "\n".join(
    re.findall("^    (.+)$", (ROOT / "binder" / "README.md").read_text("utf-8"), re.MULTILINE)
)


def needed(names: str) -> set[str]:
    """Packages with all that they need, as installed here."""
    found, todo = set(), names.split()
    while todo:
        name = canonicalize_name(todo.pop())
        if name not in found:
            found.add(name)
            needs = map(Requirement, metadata.requires(name) or [])
            todo += [r.name for r in needs if not r.marker or r.marker.evaluate({"extra": ""})]
    return found


def wheel(name: str, folder: Path) -> None:
    """Pack an installed package as pip wants it, since tests have no network."""
    package = metadata.distribution(name)
    tag = re.search(r"^Tag: (\S+)", package.read_text("WHEEL"), re.MULTILINE)[1]
    file = folder / f"{name.replace('-', '_')}-{package.version}-{tag}.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for part in package.files:
            if ".." not in part.parts and "__pycache__" not in part.parts:
                archive.write(part.locate(), str(part))


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """Name of a kernel in an environment of its own that holds what Colab has, and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    lent, wheels = tmp_path / "lent", tmp_path / "wheels"
    lent.mkdir()
    wheels.mkdir()
    for name in needed(COLAB):
        package = metadata.distribution(name)
        for top in {file.parts[0] for file in package.files} - {"..", "__pycache__"}:
            if not (lent / top).exists():
                (lent / top).symlink_to(package.locate_file(top))
    (brought,) = re.findall(r"%pip install -q (?!-)(.+)", CELL)
    for name in needed(brought) - needed(COLAB) | {"setuptools"}:
        wheel(name, wheels)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (packages / "lent.pth").write_text(f"{lent}\n")
    start = [str(tmp_path / "venv/bin/python"), "-m", "ipykernel_launcher", "-f"]
    spec = {"argv": [*start, "{connection_file}"], "display_name": "Colab", "language": "python"}
    (tmp_path / "kernels" / "colab").mkdir(parents=True)
    (tmp_path / "kernels" / "colab" / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return "colab"


@pytest.mark.slow
def test_colab_cell_installs_what_00_and_06b_need(colab, tmp_path):
    """The cell itself, with a copy of this checkout for the address, then both notebooks."""
    repository, git = tmp_path / "repository", ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    asked = ["git", "ls-files", "-co", "--exclude-standard"]
    files = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(lambda name: (ROOT / name).is_file(), files.splitlines()):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, repository / name)
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "copy"]):
        subprocess.run([*git, *words], cwd=repository, check=True)
    assert CELL.count("https://github.com/OWNER/REPOSITORY") == 1
    cell = CELL.replace("https://github.com/OWNER/REPOSITORY", repository.as_uri())
    look = "from importlib.util import find_spec\n"
    look += "[name for name in ('wspnb', 'kornia', 'umap', 'papermill') if find_spec(name)]"
    lines = [look, cell, "%run 00_the_loss.ipynb", "%run 06b_when_position_helps.ipynb", look]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(line) for line in lines])
    here = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, kernel_name=colab, timeout=600, resources=here).execute()
    before, after = (book.cells[k].outputs[-1].data["text/plain"] for k in (0, -1))
    assert (before, after) == ("[]", "['wspnb', 'kornia']")
    figures = {path.name for path in tmp_path.glob("wspnb/runs/laptop/figures/*.png")}
    assert {"loss_limits.png", "position_help.png"} <= figures


def test_binder_builds_from_the_lock():
    """Binder reads `binder/` alone; the Dockerfile is written without Docker."""
    pytest.importorskip("repo2docker", reason="pip install .[binder], as .ci/run does")
    done = subprocess.run(
        [sys.executable, "-m", "repo2docker", "--no-build", "--debug", ROOT],
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-2000:]
    assert re.search(r"RUN .*postBuild", said) and "binder/start" in said
    assert re.search(r"python.*3\.11", said)
    lines = (ROOT / "binder" / "postBuild").read_text()
    torch = re.search(r"^TORCH\s+\?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    assert f"{torch} --index-url" in lines
    assert "--no-deps --require-hashes -r requirements.lock" in lines
    for script in ("postBuild", "start"):
        assert os.access(ROOT / "binder" / script, os.X_OK)
    address = (ROOT / "binder" / "README.md").read_text(encoding="utf-8")
    opened = [re.search(r"\?urlpath=lab/tree/runs/lab/(\S+?)`", address)[1]]
    opened += re.findall(r"\?labpath=runs/lab/(\S+)", (ROOT / "README.md").read_text("utf-8"))
    assert len(opened) == 2 and all((ROOT / "notebooks" / name).exists() for name in opened)


def test_workers_are_as_many_as_the_container_gives(tmp_path, monkeypatch):
    whole, own = Path.read_text, Path("/proc/self/cgroup")

    def in_slice(path, *given, **named):
        return "0::/slice/own\n" if path == own else whole(path, *given, **named)

    here = count_cores(tmp_path / "none")
    assert here == len(os.sched_getaffinity(0))
    for text, expected in {"max 100000": here, "150000 100000": 1, "50000 100000": 1}.items():
        (tmp_path / "cpu.max").write_text(text + "\n")
        assert count_cores(tmp_path) == expected
    (tmp_path / "cpu.max").write_text(f"{100000 * here * 4} 100000")
    assert count_cores(tmp_path) == here
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "slice" / "own").mkdir(parents=True)
    (tmp_path / "slice" / "cpu.max").write_text("100000 100000")  # of the group above its own
    monkeypatch.setattr(Path, "read_text", in_slice)
    assert count_cores(tmp_path) == 1
    monkeypatch.undo()
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")  # where Slurm binds nothing
    assert count_cores(tmp_path) == 1
    monkeypatch.undo()
    (tmp_path / "cpu").mkdir()
    for quota, expected in {-1: here, 100000: 1}.items():
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(str(quota))
        (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
        assert count_cores(tmp_path) == expected


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_papermill_helps_with_type_default_and_meaning(path):
    """What `papermill --help-notebook` shows of every parameter."""
    shown = inspect_notebook(str(path))
    assert list(shown) == list(declared(path))
    for name, (kind, value) in declared(path).items():
        told = shown[name]
        assert told["inferred_type_name"] == kind, name
        assert json.dumps(value) in (told["default"], told["default"].lower()) or (
            float(told["default"]) == value
        ), name
        assert len(told["help"].split()) >= 2, name


@pytest.mark.slow
def test_papermill_prints_it():
    command = [Path(sys.executable).with_name("papermill"), "--help-notebook", NOTEBOOKS[0]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"sigma: float \(default 0\.1\)\s+kernel width", done.stdout), done.stdout
