"""What must hold for the house as a whole: the environment and the notebooks' form."""

import ast
import importlib.util
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import nbformat
import pytest

from wspnb.run import declared

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_torchvision_never_enters():
    """Its import breaks CPU builds of torch elsewhere; nothing here needs it."""
    assert importlib.util.find_spec("torchvision") is None
    assert "torchvision" not in (ROOT / "requirements.lock").read_text()


def test_no_network_but_loopback():
    """Tests would else depend on who answers, and tell others that they run."""
    for host in ("192.0.2.1", "example.org"):
        with pytest.raises(PermissionError, match="no network but loopback"):
            socket.create_connection((host, 80), timeout=1)
        with pytest.raises(OSError):  # what a test starts has no way out either
            urllib.request.urlopen(f"http://{host}", timeout=1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


def test_notebooks_are_there():
    """The series is complete; notebooks beside it carry a letter, as in 00b."""
    names = {path.stem.split("_")[0] for path in NOTEBOOKS}
    assert {"00", "00b", "01", "02", "03", "03b", "04", "05", "06", "06b", "07", "08"} <= names
    assert len(names) == len(NOTEBOOKS), "two notebooks of one number"
    for name in names:
        assert re.fullmatch(r"\d\d[b-z]?", name) and name[:2] in names, name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_form_of_a_notebook(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    assert cells[0].cell_type == "markdown"
    for word in ("**Reads**", "**Writes**", "**Cost**", "**Paper**"):
        assert word in cells[0].source
    assert "parameters" in cells[2].metadata.tags
    assert "Recap" in cells[-1].source
    assert any("assert " in cell.source for cell in cells[-6:])  # exercises may follow the check
    assert max(len(source.splitlines()) for source in code if source != cells[2].source) <= 25
    assert len(cells[2].source.splitlines()) <= 25  # one line a parameter
    for word in ("sys.path", "filterwarnings", "!pip", "%pip"):
        assert not any(word in source for source in code)
    for name, (kind, _) in declared(path).items():
        assert kind in ("int", "float", "str", "bool", "list"), name


REFUSED = [  # notebook, what is given, what is said
    ("00_the_loss", {"sigma": 0.0}, "all positive"),
    ("00_the_loss", {"batch_size": 7, "n_labels": 2}, "a multiple of n_labels"),
    ("00b_principle", {"toy_seeds": 1}, "2 seeds"),
    ("00b_principle", {"reader_accuracy": 0.4}, "reader_accuracy=0.4 not in .5-1"),
    ("01_preprocess", {"source": "dicom"}, "source='dicom': choose phantom"),
    ("01b_liver_masks", {"mask_size": 100}, "mask_size=100: a multiple of 16"),
    ("01b_liver_masks", {"masks_dir": "own", "source_dir": "own"}, "is source_dir too"),
    ("02_pretrain", {"log_every": 0}, "log_every=0"),
    ("02_pretrain", {"save_every": float("nan")}, "save_every=nan"),
    ("03_linear_probe", {"methods": []}, r"methods=\[\]"),
    ("03_linear_probe", {"C": 0.0}, "C=0.0: give"),
    ("03b_supervised", {"supervised_steps": 0}, "supervised_steps=0"),
    ("04_representations", {"n_patients": 1}, "n_patients=1"),
    ("05_results", {"suffix": "../a"}, "suffix='../a': letters"),
    ("06_audit", {"suffix": "a b"}, "suffix='a b': letters"),
    ("06_audit", {"reference": "supervised"}, "no features to probe again"),
    ("06_audit", {"n_permutations": 0}, "n_permutations=0, .*: give at least 1"),
    ("06b_when_position_helps", {"study_seeds": [0]}, r"study_seeds=\[0\]: two or more"),
    ("06b_when_position_helps", {"study_seeds": [0, 0]}, "two or more, each once"),
    ("06b_when_position_helps", {"lengths": [5]}, r"lengths=\[5\]"),
    ("07_oct_biomarkers", {"oct_seeds": []}, r"oct_seeds=\[\]"),
    ("07_oct_biomarkers", {"oct_seeds": [1, 1]}, "there twice"),
    ("08_kernels", {"choose_seeds": [0, 1], "judge_seeds": [1, 2]}, "no seed twice"),
    ("08_kernels", {"choose_seeds": [0, 0]}, "no seed twice"),
    ("08_kernels", {"judge_seeds": [5]}, "two or more each"),
]


@pytest.mark.parametrize(("notebook", "given", "said"), REFUSED)
def test_a_setting_that_cannot_be_is_refused_at_once(notebook, given, said, tmp_path, monkeypatch):
    """By the cell below the parameters, before any work; nothing is written."""
    monkeypatch.chdir(tmp_path)
    cells = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", 4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    names = {}
    exec(code[0] + "\n" + code[1], names)
    assert given.keys() <= names.keys(), "no parameters of this notebook"
    names |= given
    with pytest.raises(ValueError, match=said):
        exec(code[2], names)
    assert not list(tmp_path.iterdir())


def test_a_parameter_has_one_meaning_in_the_series():
    """One YAML file serves all notebooks, so a name has one type and one default everywhere."""
    types, defaults = {}, {}
    for path in NOTEBOOKS:
        for name, (kind, default) in declared(path).items():
            assert types.setdefault(name, kind) == kind, name
            if name not in ("methods",):
                assert defaults.setdefault(name, default) == default, name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_folder_that_is_empty_by_default_is_asked_for_before_it_is_used(path):
    """``project_path("")`` is an error: a notebook must run with its own defaults."""
    cells = nbformat.read(path, 4).cells
    code = "\n".join(c.source for c in cells if c.cell_type == "code")
    tree = ast.parse("\n".join("" if x.startswith(("%", "!")) else x for x in code.split("\n")))
    empty = {name for name, (_, value) in declared(path).items() if value == ""}

    def uses(node, asked):
        test = getattr(node, "test", getattr(node, "iter", None))  # of if, or of for
        if test or isinstance(node, ast.BoolOp):
            test = test or node.values[0]
            asked = asked | {n.id for n in ast.walk(test) if isinstance(n, ast.Name)}
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "project_path":
            yield getattr(node.args[0], "id", ""), asked
        for child in ast.iter_child_nodes(node):
            yield from uses(child, asked)

    assert [name for name, asked in uses(tree, set()) if name in empty - asked] == []


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_an_environment_of_another_place_is_made_again(tmp_path):
    """Its scripts name the place where they were made; a project may move."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv" / ".ready").write_text("")

    def told(place):
        script = f"#!{place}/.venv/bin/python\nimport snakemake\n"
        (tmp_path / ".venv" / "bin" / "snakemake").write_text(script)
        done = subprocess.run(
            ["make", "-n", "verify"], cwd=tmp_path, capture_output=True, text=True
        )
        return done.stdout

    assert "rm -rf .venv" in told("/elsewhere") and "-m venv .venv" in told("/elsewhere")
    assert "venv .venv" not in told(tmp_path.resolve())
    (tmp_path / ".venv" / ".ready").unlink()  # an installation that was interrupted goes on
    assert "rm -rf" not in told(tmp_path.resolve())
    told("/elsewhere")
    (tmp_path / ".venv").rename(tmp_path / "shared")
    (tmp_path / ".venv").symlink_to("shared")  # one environment of several checkouts stays
    assert "rm -rf" not in told("/elsewhere")


@pytest.mark.parametrize(("target", "run"), [("book", "runs/my cohort"), ("verify", "runs/it's")])
def test_a_runs_folder_may_have_any_name(tmp_path, target, run):
    said = f'#!/bin/sh\nprintf "%s\\n" "$@" "$PIP_USER" > {tmp_path}/said\n'
    (tmp_path / "python").write_text(said)
    (tmp_path / "python").chmod(0o755)
    given = [f"RUN={run}", f"BIN={tmp_path}", "STAMP=Makefile", "MOVED="]
    subprocess.run(["make", "-s", target, *given], cwd=ROOT, check=True)
    said = (tmp_path / "said").read_text().splitlines()
    assert run in said and said[-1] == "0"  # a pip.conf that installs for the user is not followed


@pytest.mark.parametrize(("given", "cores"), [([], "count_cores"), (["CORES=3"], "--cores 3 ")])
def test_make_takes_as_many_cores_as_it_may(given, cores):
    words = ["make", "-n", "reproduce", "STAMP=Makefile", "MOVED=", *given]
    assert cores in subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout


def test_imports_run_one_way():
    """Core <- data <- sources, phantom <- results <- studies: contracts in pyproject.toml."""
    command = Path(sys.executable).with_name("lint-imports")
    found = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
