"""`make lab`: working copies, which the workflow does not read."""

import contextlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "workflow"))
from lab import prepare  # noqa: E402


@pytest.fixture
def project(tmp_path) -> Path:
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    return tmp_path


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def text(path: Path) -> str:
    return "\n".join("".join(cell["source"]) for cell in read(path)["cells"])


def test_copies_read_and_write_under_runs_lab_and_nothing_else_differs(project, monkeypatch):
    from wspnb.run import declared, project_path

    folder = prepare(project)
    names = sorted(path.name for path in project.glob("notebooks/*.ipynb"))
    assert sorted(path.name for path in folder.iterdir()) == names
    monkeypatch.chdir(folder)  # where JupyterLab starts the kernel
    for name in names:
        there, here = declared(project / "notebooks" / name), declared(folder / name)
        for parameter, (kind, value) in there.items():
            moved = re.sub(r"^runs/laptop(?=/|$)", "runs/lab", value) if kind == "str" else value
            assert here[parameter] == (kind, moved)
        assert project_path(here["run_dir"][1]) == folder
        a, b = text(project / "notebooks" / name), text(folder / name)
        assert a.replace('"runs/laptop', '"runs/lab') == b


def test_an_edited_copy_is_kept_and_the_others_follow(project, capsys):
    folder = prepare(project)
    for name in ("00_the_loss", "02_pretrain"):  # outputs are no edit
        book = read(folder / f"{name}.ipynb")
        next(c for c in book["cells"] if c["cell_type"] == "code")["execution_count"] = 3
        if name == "02_pretrain":
            book["cells"][4]["source"] = ["mine"]
        (folder / f"{name}.ipynb").write_text(json.dumps(book))
    for name in ("00_the_loss", "02_pretrain"):
        path = project / "notebooks" / f"{name}.ipynb"
        book = read(path)
        book["cells"][0]["source"] = ["# newer"]
        path.write_text(json.dumps(book))
    capsys.readouterr()
    prepare(project)
    assert "02_pretrain.ipynb: you changed it" in capsys.readouterr().out
    assert text(folder / "00_the_loss.ipynb").startswith("# newer")
    assert "mine" in text(folder / "02_pretrain.ipynb")


@pytest.mark.slow
def test_lab_shows_the_project_and_starts_as_root(tmp_path):
    """The server of `make lab`: root is told, and the folder's contents are the project's."""
    for name in ("notebooks", "workflow"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "README.md").write_text("read me")
    (tmp_path / "figures").mkdir()
    log = (tmp_path / "log").open("w+")
    server = subprocess.Popen(
        [
            sys.executable,
            tmp_path / "workflow/lab.py",
            "--no-browser",
            "--port=0",
            "--IdentityProvider.token=t",
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | {"JUPYTER_CONFIG_DIR": str(tmp_path / "config")},
    )
    try:
        names, end = set(), time.monotonic() + 120
        while not names and time.monotonic() < end:
            time.sleep(0.5)
            said = (tmp_path / "log").read_text()
            found = re.search(r"http://(127\.0\.0\.1|localhost):(\d+)/lab/tree/(\S+)\?", said)
            if not found:
                continue
            address = f"http://127.0.0.1:{found[2]}/api/contents?token=t"
            with contextlib.suppress(urllib.error.URLError):  # it may say so before it listens
                with urllib.request.urlopen(address, timeout=60) as reply:
                    names = {entry["name"] for entry in json.load(reply)["content"]}
        assert found and found[3] == "runs/lab/00_the_loss.ipynb", said
        assert ("You are root" in said) == (os.geteuid() == 0)
        assert {"README.md", "figures", "notebooks", "runs"} <= names
    finally:
        server.terminate()
        server.wait(60)


@pytest.mark.parametrize("name", ["00_the_loss", "04_representations"])
def test_exercises_tell_right_from_wrong(name, capsys):
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = {cell["id"]: "".join(cell["source"]) for cell in cells}
    numbers = {"plane": ["pca", "pca"], "method": ["random", "wsp"], "depth_r2": [0.6, 0.9]}
    space = {"sigma": 0.1, "numbers": pd.DataFrame(numbers), "by_class": ([1], [2, 3, 4])}
    space |= {"shares": {"random": 0.7, "wsp": 0.4}, "methods": ["random", "wsp"]}
    right = {"00_the_loss": (math.log(63), 0.218, 15), "04_representations": ("wsp", 0.6, 3)}[name]
    exec(sources["imports"], space)
    exec(sources["answers"], space)
    told = {(None, None, None): "no answer yet", right: "right", (0.5, 0.05, 7): "wrong"}
    for given, said in told.items():
        assert list(space["answers"]) == [1, 2, 3]
        space["answers"] = dict(enumerate(given, 1))
        exec(sources["test-of-answers"], space)
        assert capsys.readouterr().out == "".join(f"{k} {said}\n" for k in (1, 2, 3))
    assert "<details><summary>Solutions" in "".join(cells[-1]["source"])


def test_what_is_no_notebook_is_passed_over_and_a_damaged_copy_is_named(project, capsys):
    (project / "notebooks" / "02_pretrain (1).ipynb").write_text("")
    (project / "notebooks" / "9_draft.ipynb").write_text("[]")
    folder = prepare(project)
    said = capsys.readouterr().out
    assert "02_pretrain (1).ipynb: no notebook" in said and "9_draft.ipynb: no notebook" in said
    (folder / "00_the_loss.ipynb").write_text("{")
    prepare(project)
    assert "00_the_loss.ipynb: damaged, left as it is" in capsys.readouterr().out


def test_the_kernels_have_checks_and_pictures(monkeypatch):
    """Whatever the shell sets for programs of another kind."""
    import lab

    seen = {}
    monkeypatch.setattr(lab.os, "execvp", lambda *_: seen.update(os.environ))
    monkeypatch.setattr(lab, "prepare", lambda: lab.PROJECT / "runs" / "lab")
    monkeypatch.chdir(lab.PROJECT)
    for name in ("MPLBACKEND", "PYTHONOPTIMIZE"):
        monkeypatch.setenv(name, "1")
    lab.main([])
    assert seen and not {"MPLBACKEND", "PYTHONOPTIMIZE"} & {*seen}
