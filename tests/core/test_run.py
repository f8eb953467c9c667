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


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("steps: 1\nrate: 2\nsteps: 3\n", "line 3: steps is given twice"),
        ("many: [{a: 1, a: 2}]", "line 1: a is given twice"),
        ("rate: 1\nsteps: 010", "line 2: YAML reads 010 as 8"),
        ("steps: 1:30", "line 1: YAML reads 1:30 as 90"),
        ("steps: 0x10", "YAML reads 0x10 as 16"),
        ("steps: 1_0", "YAML reads 1_0 as 10"),
        ("rate: &a 1\nsteps: *a", "line 1: anchors and aliases"),
        ("steps: [", "line 1: expected the node content"),
        ("steps: 1\n\tname: a", "line 2"),
        ("name: !!python/object/apply:os.system [touch x]", "could not determine a constructor"),
        ("steps: !!bool z", "no YAML (KeyError"),
        ("many: " + "[" * 5000, "no YAML (RecursionError"),
        ("steps: 1\0", "no YAML (ReaderError"),
        ("steps: " + "9" * 5000, "no YAML (ValueError"),
        ("? [a]\n: 1", "line 1: found unhashable key"),
        ("12: 1", "has a parameter 12"),
        ("name: \udcff", "no UTF-8 text"),
    ],
)
def test_a_damaged_or_ambiguous_file_ends_in_one_line(notebook, tmp_path, text, found, capfd):
    file = tmp_path / "p.yaml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert run.main([str(notebook), str(tmp_path / "out.ipynb"), "-f", str(file)]) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: ") and str(file) in said and found in said
    assert len(said.splitlines()) == 1 and not (tmp_path / "out.ipynb").exists()


def test_numbers_as_people_write_them():
    for text, value in {"0": 0, "-3": -3, "+4": 4, "10": 10, "0.10": 0.1, ".5": 0.5}.items():
        assert run.read_yaml(text, "x") == value
    for text, value in {"1.0e-5": 1e-5, ".inf": float("inf"), "-2.": -2.0, "'010'": "010"}.items():
        assert run.read_yaml(text, "x") == value


def test_no_value_becomes_code(notebook, tmp_path):
    """Values meant to break out of the cell that papermill writes arrive as they are."""
    harm = tmp_path / "HARM"
    values = [
        f"'); open({str(harm)!r}, 'w')  # ",
        f'"""\nopen({str(harm)!r}, "w")\n"""',
        f"a\\\nopen({str(harm)!r}, 'w')",
        "{steps} %s {{}} \\ ' \"",
    ]
    content = nbformat.read(notebook, as_version=4)
    content.cells.append(new_code_cell("import json\nprint(json.dumps([name, *many]))"))
    nbformat.write(content, notebook)
    out = tmp_path / "o'ut $(touch HARM)" / "a;b.ipynb"
    run.run(notebook, out, {"name": values[0], "many": values[1:]})
    assert json.loads(nbformat.read(out, 4).cells[-1].outputs[0].text) == values
    assert not list(tmp_path.rglob("HARM"))


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such locks")
def test_one_output_has_one_writer(notebook, tmp_path, capfd):
    from wspnb.files import alone

    out = tmp_path / "out" / "one.ipynb"
    with alone(out):
        assert run.main([str(notebook), str(out)]) == 1
        assert f"process {os.getpid()} is at work on it" in capfd.readouterr().err
    assert not list(out.parent.iterdir())
    (out.parent / ".one.ipynb.lock").write_text("999999999")  # of a run that was killed
    assert run.main([str(notebook), str(out)]) == 0
    assert [p.name for p in out.parent.iterdir()] == ["one.ipynb"]


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
