"""The strict runner: what papermill lets pass must fail here, before anything is run or written."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from wspnb import run

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
PARAMETERS = """steps: int = 3  # number
rate: float = 0.1  # rate
name: str = "a"  # name
flag: bool = True  # flag
many: list = []  # list"""
KERNEL = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}


@pytest.fixture
def notebook(tmp_path) -> Path:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    cells = [
        new_code_cell(PARAMETERS),
        new_code_cell("print(steps, rate, name, flag, many)"),
        new_code_cell("1 / steps"),
    ]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(new_notebook(cells=cells, metadata=KERNEL), folder / "01_one.ipynb")
    other = new_code_cell("elsewhere: int = 1  # of the neighbour")
    other.metadata["tags"] = ["parameters"]
    nbformat.write(new_notebook(cells=[other], metadata=KERNEL), folder / "02_two.ipynb")
    return folder / "01_one.ipynb"


def test_values_arrive_with_their_types(notebook):
    pairs = [
        ["steps", "7"],
        ["rate", "1e-3"],
        ["name", "12"],
        ["flag", "false"],
        ["many", "[d1, d2]"],
    ]
    assert run.gather(notebook, [], pairs) == {
        "steps": 7,
        "rate": 0.001,
        "name": "12",
        "flag": False,
        "many": ["d1", "d2"],
    }
    assert run.gather(notebook, [], [["rate", "inf"]])["rate"] == float("inf")
    assert run.gather(notebook, [], [["rate", "2"]])["rate"] == 2.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("setps", "7"),
        ("steps", "7.5"),
        ("steps", "many"),
        ("steps", "true"),
        ("rate", "fast"),
        ("flag", "1"),
        ("many", "d1"),
    ],
)
def test_unknown_or_ill_typed_pair_is_refused(notebook, name, value):
    with pytest.raises(ValueError, match=name):
        run.gather(notebook, [], [[name, value]])


def test_file_serves_the_series_but_not_a_typo(notebook, tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("steps: 5\nelsewhere: 2\n")
    assert run.gather(notebook, [str(file)], []) == {"steps": 5}
    assert run.gather(notebook, [str(file)], [["steps", "6"]]) == {"steps": 6}
    file.write_text("rate: 1e-3\n")
    assert run.gather(notebook, [str(file)], []) == {"rate": 0.001}
    file.write_text("- steps\n")
    with pytest.raises(ValueError, match="found a list"):
        run.gather(notebook, [str(file)], [])
    file.write_text("setps: 5\n")
    with pytest.raises(ValueError, match="setps"):
        run.gather(notebook, [str(file)], [])


def test_exit_codes_and_files(notebook, tmp_path, capfd):
    out = tmp_path / "out" / "one.ipynb"
    assert run.main([str(notebook), str(out), "-p", "setps", "1"]) == 2
    assert "has no parameter setps" in capfd.readouterr().err
    assert not out.parent.exists()

    assert run.main([str(notebook), str(out), "-p", "steps", "0"]) == 1
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert [p.name for p in out.parent.iterdir()] == ["one.failed.ipynb"]

    assert run.main([str(notebook), str(out), "-p", "steps", "4"]) == 0
    assert [p.name for p in out.parent.iterdir()] == ["one.ipynb"]
    text = json.loads(out.read_text(encoding="utf-8"))["cells"][2]["outputs"][0]["text"]
    assert "".join(text).startswith("4 0.1 a True []")


@pytest.mark.skipif(os.name != "posix", reason="Windows has TCP only")
def test_kernels_share_no_port(notebook, tmp_path):
    content = nbformat.read(notebook, as_version=4)
    asked = "from ipykernel.connect import get_connection_info\nprint(get_connection_info())"
    content.cells.append(new_code_cell(asked))
    nbformat.write(content, notebook)
    run.run(notebook, tmp_path / "out.ipynb", {})
    text = nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].outputs[0].text
    connection = json.loads(text)
    assert connection["transport"] == "ipc"
    assert not Path(connection["ip"]).parent.exists()  # the folder of the sockets went with it


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_sigterm_ends_the_kernel_too(notebook, tmp_path):
    """As Slurm and containers end a job: within their grace time, and nothing is left behind."""
    content = nbformat.read(notebook, as_version=4)
    waits = "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\n"
    content.cells.append(new_code_cell(waits + "time.sleep(600)"))
    nbformat.write(content, notebook)
    (tmp_path / "tmp").mkdir()
    runner = subprocess.Popen(
        [sys.executable, "-m", "wspnb.run", notebook, tmp_path / "out.ipynb"],
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp")},
        stderr=subprocess.PIPE,
        text=True,
    )
    pid, end = notebook.parent / "pid", time.monotonic() + 120
    while not (pid.exists() and pid.read_text()) and time.monotonic() < end:
        time.sleep(0.1)
    kernel = int(pid.read_text())
    os.kill(kernel, 0)  # it is there
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(60) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)
    assert "interrupted" in runner.stderr.read()
    assert not list((tmp_path / "tmp").iterdir()) and (tmp_path / "out.failed.ipynb").exists()


@pytest.mark.parametrize("module", ["nbformat", "papermill"])
def test_ctrl_c_while_importing_ends_quietly(notebook, tmp_path, module):
    (tmp_path / f"{module}.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(
        [sys.executable, "-m", "wspnb.run", notebook, tmp_path / "out.ipynb"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out*"))


def test_paths_start_at_the_project(notebook, monkeypatch, tmp_path):
    monkeypatch.chdir(notebook.parent)
    assert run.project_path("runs/x") == tmp_path / "runs" / "x"
    monkeypatch.chdir(tmp_path)
    assert run.project_path("runs/x") == tmp_path / "runs" / "x"
    assert run.project_path("/abs/x") == Path("/abs/x")


def test_no_notebook_waits_for_an_output_widget():
    """`interact` and `Output` make the runner write to the kernel's shell channel while it waits
    for the reply there, and now and then it never sees it."""
    for path in NOTEBOOKS.glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        assert "interact" not in text and "Output(" not in text, path.name
