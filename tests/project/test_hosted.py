"""Binder, Colab and papermill: what a hosted service needs, checked without one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from papermill.inspection import inspect_notebook

from wspnb.run import declared
from wspnb.workers import count_cores

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What Colab's runtime has of what the package uses, with all that these need.
COLAB = "numpy pandas torch scikit-learn matplotlib ipywidgets ipython tqdm requests pyyaml"
COLAB += " safetensors nibabel accelerate"
# Runs the code cells of a notebook where nothing else can be found.
RUNNER = """
import importlib.metadata as metadata, json, re, sys
import matplotlib
from importlib.util import find_spec
from packaging.requirements import Requirement

def plain(name):
    return re.sub("[-_.]+", "-", name).lower()

there, todo = {"wspnb"}, sys.argv[2].split()
while todo:
    name = plain(todo.pop())
    if name in there:
        continue
    there.add(name)
    needs = [Requirement(text) for text in metadata.requires(name) or []]
    todo += [r.name for r in needs if r.marker is None or r.marker.evaluate({"extra": ""})]
tops = metadata.packages_distributions()
absent = {top for top, names in tops.items() if not there & {plain(n) for n in names}} - {"wspnb"}

class Hiding:  # a finder that does not find what is absent, as Python's own do not
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        hidden = name.split(".")[0] in absent
        return None if hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Hiding, sys.meta_path)
for name in ("umap", "papermill", "pooch", "jupyterlab"):
    assert name in absent and find_spec(name) is None, name
matplotlib.use("Agg")
space = {"__name__": "__main__"}
for number, cell in enumerate(json.load(open(sys.argv[1]))["cells"]):
    if cell["cell_type"] == "code":
        source = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", []):
            source += "\\n" + sys.argv[3]
        exec(compile(source, f"cell {number}", "exec"), space)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["00_the_loss", "06b_when_position_helps"])
def test_colab_cell_brings_what_is_missing(name, tmp_path):
    """The libraries that the cell installs, and what Colab has, are all that these two need."""
    cell = (ROOT / "binder" / "README.md").read_text(encoding="utf-8")
    installed = re.search(r"%pip install -q --no-deps git\+\S+ (.+)", cell)[1]
    few = f"run_dir = {str(tmp_path)!r}; toy_steps = 10; toy_seeds = 2; toy_held_out = 60"
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, f"{name}.ipynb", f"{COLAB} {installed}", few],
        cwd=ROOT / "notebooks",
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "figures").glob("*.png"))


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


def test_workers_are_as_many_as_the_container_gives(tmp_path):
    here = count_cores(tmp_path / "none")
    assert here == len(os.sched_getaffinity(0))
    for text, expected in {"max 100000": here, "150000 100000": 1, "50000 100000": 1}.items():
        (tmp_path / "cpu.max").write_text(text + "\n")
        assert count_cores(tmp_path) == expected
    (tmp_path / "cpu.max").write_text(f"{100000 * here * 4} 100000")
    assert count_cores(tmp_path) == here
    (tmp_path / "cpu.max").unlink()
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
