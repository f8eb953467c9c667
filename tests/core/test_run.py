"""The strict runner: what papermill lets pass must fail here, before anything is run or written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from wspnb import run
from wspnb.files import read_yaml

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
PARAMETERS = """steps: int = 3  # number
rate: float = 0.1  # rate
name: str = "a"  # name
flag: bool = True  # flag
many: list = []  # list"""
KERNEL = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
HUNG = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has none


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
        assert read_yaml(text, "x") == value
    for text, value in {"1.0e-5": 1e-5, ".inf": float("inf"), "-2.": -2.0, "'010'": "010"}.items():
        assert read_yaml(text, "x") == value


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
        assert f"process {os.getpid()} is at work on it" in (said := capfd.readouterr().err)
        assert (
            f"on {os.uname().nodename}: wait for it, or end it" in said
        )  # several machines, one disk
    assert not list(out.parent.iterdir())
    (out.parent / ".one.ipynb.lock").write_text("999999999")  # of a run that was killed
    assert run.main([str(notebook), str(out)]) == 0
    assert [p.name for p in out.parent.iterdir()] == ["one.ipynb"]


def test_progress_goes_to_a_log_beside_the_output(notebook, tmp_path):
    content = nbformat.read(notebook, as_version=4)
    bar = "from tqdm.auto import tqdm\nfor _ in tqdm(range(3), desc='steps'):\n    pass"
    content.cells.append(new_code_cell(bar))
    nbformat.write(content, notebook)
    run.run(notebook, tmp_path / "out.ipynb", {})
    lines = (tmp_path / "out.log").read_text().splitlines()
    assert " steps 3 of 3, 0 s" in lines[-1]
    assert nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].outputs  # and stays in the notebook


def test_warnings_of_the_notebook_are_said_once_each(notebook, tmp_path, capfd):
    content = nbformat.read(notebook, as_version=4)
    for text in ("two masks are cut", "two masks are cut", "one is of a spleen"):
        content.cells.append(new_code_cell(f"import warnings; warnings.warn('{text}')"))
    nbformat.write(content, notebook)
    assert run.main([str(notebook), str(tmp_path / "out.ipynb")]) == 0
    told = ["  warning: two masks are cut", "  warning: one is of a spleen"]
    lines = [line for line in capfd.readouterr().out.splitlines() if "warning" in line]
    assert lines == told
    content.cells.append(new_code_cell("raise ValueError('no slices')"))  # they may say why
    nbformat.write(content, notebook)
    assert run.main([str(notebook), str(tmp_path / "out.ipynb")]) == 1
    said = capfd.readouterr()
    assert [line for line in said.out.splitlines() if "warning" in line] == told
    assert "FAILED in cell" in said.err and "ValueError: no slices" in said.err


def test_exit_codes_and_files(notebook, tmp_path, capfd):
    out = tmp_path / "out" / "one.ipynb"
    assert run.main([str(notebook), str(out), "-p", "setps", "1"]) == 2
    assert "has no parameter setps" in capfd.readouterr().err
    assert not out.parent.exists()

    assert run.main([str(notebook), str(out), "-p", "steps", "0"]) == 1
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert [p.name for p in out.parent.iterdir()] == ["one.failed.ipynb"]

    assert run.main([str(notebook), str(out), "-p", "steps", "4"]) == 0
    assert run.main([str(notebook), str(out), "-p", "setps=1"]) == 2
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


@pytest.mark.parametrize("module", ["nbformat", "papermill", "pandas", "yaml"])
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
    (inner := tmp_path / "runs" / "laptop" / "notebooks").mkdir(parents=True)
    for folder in (inner, inner.parent):  # an executed notebook that is opened where it lies
        monkeypatch.chdir(folder)
        assert run.project_path("runs/x") == tmp_path / "runs" / "x"
    with pytest.raises(ValueError, match=r"empty .*unset variable"):  # not the project's folder
        run.project_path("")
    with pytest.raises(
        ValueError, match=r"'\$SCRATCH/x': .*write it out"
    ):  # no folder of that name
        run.project_path("$SCRATCH/x")
    for place in ("/scratch/$USER/x", "runs/job${SLURM_JOB_ID}"):
        with pytest.raises(ValueError, match="write it out"):
            run.project_path(place)
    assert run.project_path("/disk$/x$1") == Path("/disk$/x$1")  # of no variable
    monkeypatch.chdir(gone := tmp_path / "runs")
    gone.rename(tmp_path / "other")
    shutil.rmtree(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="working folder is gone: restart the kernel"):
        run.project_path("runs/x")


def test_no_notebook_waits_for_an_output_widget():
    """`interact` and `Output` make the runner write to the kernel's shell channel while it waits
    for the reply there, and now and then it never sees it."""
    for path in NOTEBOOKS.glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        assert "interact" not in text and "Output(" not in text, path.name


def test_a_long_line_is_printed_at_once_and_bars_are_one_line(tmp_path):
    bar = r"print('a\rbb\rccc\nd\re', end='\r\n')"
    book = simple(tmp_path, "print('x' * 10**6)", bar)
    assert run.run(book, tmp_path / "out.ipynb", {}) < 60  # took many minutes
    cells = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    printed = [cell.outputs[0].text for cell in cells if cell.get("outputs")]
    assert [len(printed[0]), printed[1]] == [10**6 + 1, "ccc\ne\r\n"]


def simple(folder, *code) -> Path:
    """A notebook with one parameter and these cells."""
    cells = [new_code_cell("a: int = 1"), *map(new_code_cell, code)]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(new_notebook(cells=cells, metadata=KERNEL), folder / "n.ipynb")
    return folder / "n.ipynb"


def start(notebook, **environment):
    command = [sys.executable, "-m", "wspnb.run", notebook.name, "o.ipynb"]
    given = {"cwd": notebook.parent, "capture_output": True, "text": True}
    return subprocess.run(command, env=os.environ | environment, **given)


@pytest.mark.slow
def test_the_kernel_has_this_interpreter_and_an_environment_of_its_own(tmp_path):
    """One run with all that a user's shell may carry: another kernel, Agg, -O, start-up files."""
    other = tmp_path / "kernels" / "python3"
    other.mkdir(parents=True)
    argv = ["/nowhere/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "x", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(spec))
    begin = tmp_path / "ipython" / "profile_default" / "startup"
    begin.mkdir(parents=True)
    (begin / "00.py").write_text("a_name_from_outside = 1")
    code = ["import sys, matplotlib.pyplot as plt", "plt.plot([1, 2])\nplt.show()"]
    code += [
        "assert 'a_name_from_outside' not in dir()",
        "print(sys.executable, sys.flags.utf8_mode)",
    ]
    shell = {"JUPYTER_PATH": str(tmp_path), "IPYTHONDIR": str(tmp_path / "ipython")}
    shell |= {"MPLBACKEND": "Agg", "PYTHONOPTIMIZE": "1", "LC_ALL": "C", "PYTHONDEVMODE": "1"}
    (begin / "matplotlibrc").write_text("axes.facecolor: black")
    shell |= {"MPLCONFIGDIR": str(begin)}
    last = "print(__debug__, sys.flags.dev_mode, plt.rcParams['axes.facecolor'])"
    notebook = simple(tmp_path, *code, last)
    found = start(notebook, **shell)
    assert found.returncode == 0, found.stderr
    cells = nbformat.read(tmp_path / "o.ipynb", 4).cells
    assert any("image/png" in o.get("data", {}) for o in cells[2].outputs)
    assert cells[4].outputs[0].text == f"{sys.executable} 1\n"
    assert cells[5].outputs[0].text == "True False white\n"


@pytest.mark.slow
def test_the_notebook_uses_the_package_that_runs_it(tmp_path):
    """Also where it was found by a path that means nothing from the notebook's folder; and a file
    beside the notebook called as a module of Python's own ends nothing."""
    source = Path(run.__file__).parents[1]
    (tmp_path / "nb").mkdir()
    (tmp_path / "mine").symlink_to(source)
    notebook = simple(tmp_path / "nb", "import wspnb; print(wspnb.__file__)")
    (tmp_path / "nb" / "types.py").write_text("raise SystemExit")
    command = [sys.executable, "-P", "-m", "wspnb.run", "nb/n.ipynb", "o.ipynb"]
    given = {"cwd": tmp_path, "capture_output": True, "text": True}
    found = subprocess.run(command, env=os.environ | {"PYTHONPATH": "mine"}, **given)
    assert found.returncode == 0, found.stderr
    said = nbformat.read(tmp_path / "o.ipynb", 4).cells[1].outputs[0].text
    assert Path(said.strip()).resolve() == source / "wspnb" / "__init__.py"
    assert notebook.exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux'")
def test_a_line_that_nobody_can_read_ends_nothing(tmp_path):
    notebook = simple(tmp_path, "import warnings; warnings.warn('größe')")
    command = [sys.executable, "-m", "wspnb.run", notebook.name, "o.ipynb"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    found = start(notebook, PYTHONIOENCODING="ascii")
    assert found.returncode == 0 and "gr\\xf6\\xdfe" in found.stdout, found.stderr


def test_a_link_to_itself_is_one_line(tmp_path):
    notebook = simple(tmp_path, "1")
    (tmp_path / "o.ipynb").symlink_to("o.ipynb")
    found = start(notebook)
    assert found.returncode in (1, 2) and "Traceback" not in found.stderr


def test_members_of_a_list_without_default_are_of_one_kind():
    for value in ([False], ["a", 1], [None], [[1]]):
        with pytest.raises(ValueError, match="a list of texts or of whole numbers"):
            run.cast("seeds", "list", value, [])
    assert run.cast("seeds", "list", [0, 1], []) == [0, 1]
    assert run.cast("methods", "list", [], []) == []


@pytest.mark.slow
def test_a_killed_kernel_is_one_line_with_its_cell(tmp_path):
    found = start(simple(tmp_path, "1 + 1", "import os; os.kill(os.getpid(), 9)", "2 + 2"))
    assert found.returncode == 1 and "Traceback" not in found.stderr
    assert "FAILED in cell 2: the kernel was killed" in found.stderr
    assert "batch_size" in found.stderr and "o.failed.ipynb" in found.stderr


@pytest.mark.slow
def test_a_notebook_that_exits_early_has_not_ended_well(tmp_path):
    found = start(simple(tmp_path, "1 + 1", "import sys; sys.exit(0)", "2 + 2"))
    assert found.returncode == 1 and "FAILED in cell 2" in found.stderr
    assert "the cells below did not run" in found.stderr and not (tmp_path / "o.ipynb").exists()


def test_the_source_is_not_overwritten(notebook, capfd, monkeypatch):
    before = notebook.read_bytes()
    monkeypatch.setenv("RANK", "")
    with pytest.raises(SystemExit):
        run.main([str(notebook), str(notebook.parent / ".." / "notebooks" / notebook.name)])
    assert "is the notebook itself" in capfd.readouterr().err and notebook.read_bytes() == before


def test_other_failures_are_one_line_as_well(monkeypatch):
    full = OSError(28, "No space left on device")
    assert run.explain(full, Path("o.ipynb"), None) == (
        "FAILED: o.ipynb: OSError: No space left on device: the disk is full, free some space and"
        " run again"
    )
    error = RuntimeError("two\n  lines")
    assert run.explain(error, Path("o"), None) == "FAILED: o: RuntimeError: two lines"
    error = RuntimeError("Kernel died before replying to kernel_info")
    assert "most often for want of memory" in run.explain(error, Path("o"), None)
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    assert run.explain(error, Path("o"), None).endswith(": install ipykernel into this environment")
    there = FileExistsError(17, "File exists", "/a/b")
    told = "FAILED: b/o.ipynb: FileExistsError: File exists: /a/b: name another place for the"
    assert run.explain(there, Path("b/o.ipynb"), None) == f"{told} executed notebook"


@pytest.mark.parametrize("name, words", [("folder", "is a folder: name"), ("n" * 300, "too long")])
def test_a_place_that_cannot_be_written_is_told_before_the_run(
    notebook, tmp_path, monkeypatch, capfd, name, words
):
    monkeypatch.setenv("RANK", "senior")  # of another system than torchrun
    (tmp_path / "folder").mkdir()
    assert run.main([str(notebook), str(tmp_path / name)]) == 2
    said = capfd.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and not said.out


def test_a_disk_that_fills_while_the_notebook_is_saved(notebook, tmp_path, monkeypatch, capfd):
    def half(source, out, *_, **__):
        Path(out).write_text(notebook.read_text(encoding="utf-8")[:100], encoding="utf-8")
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("RANK", "")
    monkeypatch.setattr("papermill.execute_notebook", half)
    monkeypatch.setattr(run, "_own_kernel", lambda folder: None)  # changes the environment
    assert run.main([str(notebook), str(tmp_path / "out" / "o.ipynb")]) == 1
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "No space left on device: the disk is full, free some" in said
    assert not list((tmp_path / "out").glob("*.ipynb"))


@pytest.mark.parametrize("text", ["[2019]", "[no]", "[1.5]", "[null]", "[[a]]"])
def test_lists_hold_what_their_default_holds(notebook, text):
    source = notebook.read_text(encoding="utf-8")
    notebook.write_text(source.replace("many: list = []", "many: list = ['d1']"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"list of str: parameter many takes str.*put quotes"):
        run.gather(notebook, [], [["many", text]])
    given = run.gather(notebook, [], [["many", '["2019", "no", d1]']])
    assert given == {"many": ["2019", "no", "d1"]}
    assert run.cast("seeds", "list", [1, 2], [0]) == [1, 2]
    assert run.cast("widths", "list", [1, 0.5, "1e-3"], [0.1]) == [1.0, 0.5, 0.001]
    with pytest.raises(ValueError, match=r"takes list, such as \['random', 'wsp'\], not 'wsp'"):
        run.cast("methods", "list", "wsp", ["random", "wsp"])
    with pytest.raises(ValueError, match="takes int"):
        run.cast("seeds", "list", ["a"], [0])


def test_a_negative_number_is_no_option(notebook):
    rest, pairs = run._pairs(["n", "o", "-p", "rate", "-1e-3", "-f", "x", "-p", "steps", "-2"])
    assert rest == ["n", "o", "-f", "x"]
    assert run.gather(notebook, [], pairs) == {"rate": -0.001, "steps": -2}


def test_foreign_notebooks_beside_ours_are_passed_over(notebook, tmp_path):
    for name in ("Untitled.ipynb", "._01_one.ipynb", "03_copy.ipynb", "empty.ipynb", "04_x.ipynb"):
        content = "\0\5" if name.startswith(".") else "" if name < "05" else '{"cells": [{}]}'
        (notebook.parent / name).write_text(content, encoding="utf-8")
    parameters = tmp_path / "p.yaml"
    parameters.write_text("elsewhere: 2\nsteps: 4")
    assert run.gather(notebook, [str(parameters)], []) == {"steps": 4}
    with pytest.raises(ValueError, match=r"empty.ipynb: not a readable notebook"):
        run.gather(notebook.parent / "empty.ipynb", [], [])


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, *[HUNG] * (signal.getsignal(HUNG) == signal.SIG_DFL)]
)
def test_a_stopped_run_lets_its_kernel_save(tmp_path, number):
    """SIGTERM as from Slurm, Ctrl-C, a terminal that is closed: the kernel is told, waited for."""
    code = "import pathlib, signal, time\nstopped = []\n"
    code += "for s in (signal.SIGINT, signal.SIGTERM):\n"
    code += "    signal.signal(s, lambda *_: stopped.append(1))\n"
    code += "pathlib.Path('ready').touch()\nwhile not stopped:\n    time.sleep(0.1)\n"
    code += "pathlib.Path('saved').touch()\n"
    code += "raise KeyboardInterrupt"
    command = [sys.executable, "-m", "wspnb.run", simple(tmp_path, code).name, "o.ipynb"]
    started = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    started.send_signal(number)
    said = started.communicate(timeout=120)[1]
    assert started.returncode == 130 and (tmp_path / "saved").exists()
    assert "Traceback" not in said and "interrupted" in said


def test_a_folder_a_dead_link_and_a_copy_beside_ours_say_nothing(notebook, tmp_path):
    (notebook.parent / "03_folder.ipynb").mkdir()
    (notebook.parent / "04_gone.ipynb").symlink_to(tmp_path / "gone")
    copy = (notebook.parent / "02_two.ipynb").read_text(encoding="utf-8")
    for name in ("02_two-Copy1.ipynb", "02_two (1).ipynb"):
        (notebook.parent / name).write_text(copy.replace("elsewhere", "typo"), encoding="utf-8")
    parameters = tmp_path / "p.yaml"
    parameters.write_text("elsewhere: 2\ntypo: 4")
    with pytest.raises(ValueError, match="has a parameter typo"):
        run.gather(notebook, [str(parameters)], [])


def test_a_run_leaves_what_a_run_beside_it_is_writing(notebook, tmp_path, monkeypatch):
    def execute(source, out, *_, **__):
        raise OSError("far enough")

    monkeypatch.setattr("papermill.execute_notebook", execute)
    monkeypatch.setattr(run, "_own_kernel", lambda folder: None)  # changes the environment
    for name in (".o[1].77.ipynb", ".o[1].2.77.ipynb", ".o1.77.ipynb"):
        (tmp_path / name).touch()
    with pytest.raises(OSError, match="far enough"):
        run.run(notebook, tmp_path / "o[1].ipynb", {})
    assert {p.name for p in tmp_path.glob(".o*")} == {".o[1].2.77.ipynb", ".o1.77.ipynb"}


@pytest.mark.parametrize("text", ["1_0e3", "\u0661", "1,5", "\u22121", "1e", "null", ""])
def test_what_is_a_number_to_a_computer_only_is_none(notebook, text):
    with pytest.raises(ValueError, match="rate"):
        run.gather(notebook, [], [["rate", text]])


@pytest.mark.parametrize("cell", ["[" * 100_000, "self.a: int = 1", None])
def test_a_notebook_of_another_kind_is_one_line(notebook, capfd, cell):
    content = json.loads(notebook.read_text(encoding="utf-8"))
    content["cells"][0]["source"] = cell
    text = cell if cell and cell[0] == "[" else json.dumps(content)
    notebook.write_text(text, encoding="utf-8")
    assert run.main([str(notebook), "o.ipynb", "-p", "a\nb", "1"]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "01_one.ipynb" in said


def test_a_list_of_problems_stays_a_list():
    error = ValueError("c.csv: 2 problems\n  line 3: this\n and that\n  line 4: those")
    told = (
        "FAILED: o.ipynb: ValueError: c.csv: 2 problems\n  line 3: this and that\n  line 4: those"
    )
    assert run.explain(error, Path("o.ipynb"), None) == told


@pytest.mark.skipif(os.name != "posix", reason="Windows has UTF-8")
def test_names_survive_a_locale_without_letters(tmp_path):
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "wspnb.run", "größe.ipynb", "o.ipynb"]
    done = subprocess.run(command, env=environment, capture_output=True, cwd=tmp_path)
    assert done.returncode == 2 and "größe.ipynb" in done.stderr.decode("utf-8")


def test_the_executed_notebook_is_json_under_its_own_name(notebook, tmp_path):
    """Papermill writes Infinity for such a parameter, and the name that the file had meanwhile."""
    for value, out in (("inf", "out.ipynb"), ("nan", "out.ipynb")):
        run.run(notebook, tmp_path / out, {"rate": float(value)})
        text = (tmp_path / out).read_text(encoding="utf-8")
        about = json.loads(text, parse_constant=pytest.fail)["metadata"]["papermill"]
        assert about["parameters"]["rate"] == (value if value == "inf" else None)
        assert about["output_path"] == str(tmp_path / out)
        nbformat.validate(nbformat.reads(text, 4))


def test_a_path_with_braces_is_a_path(notebook, tmp_path):
    folder = tmp_path / "study {steps} a}b"
    notebook.parent.rename(folder)
    assert run.main([str(folder / notebook.name), str(folder / "{rate}.ipynb")]) == 0
    assert (folder / "{rate}.ipynb").exists() and not list(folder.glob(".*.ipynb"))


@pytest.mark.parametrize("about", [{}, {"kernelspec": {"name": "python3", "display_name": "x"}}])
def test_a_notebook_that_names_no_language_is_python(notebook, tmp_path, about):
    content = nbformat.read(notebook, 4)
    content.metadata = about  # as Colab saves it
    nbformat.write(content, notebook)
    assert run.main([str(notebook), str(tmp_path / "out.ipynb")]) == 0


@pytest.mark.parametrize("call", ["quit()", "exit(1)"])
def test_quit_ends_a_notebook_as_sys_exit_does(tmp_path, call):
    found = start(simple(tmp_path, call, "2 + 2"))
    assert found.returncode == 1 and "FAILED in cell 1" in found.stderr


def test_files_called_as_modules_beside_the_caller_are_not_taken(tmp_path):
    notebook = simple(tmp_path, "1 + 1")
    for name in ("yaml", "papermill", "copy", "random"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(7)")
    found = start(notebook)
    assert found.returncode == 0 and found.stderr == "", found.stderr


@pytest.mark.parametrize(
    ("rank", "out"),
    [({"RANK": "1"}, "o.ipynb"), ({"RANK": "1", "WORLD_SIZE": "1"}, "o.ipynb"),
     ({"RANK": "1", "WORLD_SIZE": "2"}, "o-rank1.ipynb")],
)  # fmt: skip
def test_a_rank_counts_among_several(tmp_path, rank, out):
    found = start(simple(tmp_path, "1 + 1"), **{"WORLD_SIZE": ""} | rank)
    assert found.returncode == 0 and (tmp_path / out).exists()


def test_a_call_from_python_leaves_the_environment_as_it_was(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "svg")
    before = dict(os.environ)
    run.run(notebook, tmp_path / "out.ipynb", {})
    with pytest.raises(Exception, match="ZeroDivision"):
        run.run(notebook, tmp_path / "out.ipynb", {"steps": 0})
    assert dict(os.environ) == before


def test_a_letter_that_json_writes_as_two_halves(notebook):
    assert run.gather(notebook, [], [["many", '["d1 \\ud83d\\ude00"]']]) == {
        "many": ["d1 \U0001f600"]
    }
    with pytest.raises(ValueError, match="parameter many"):
        run.gather(notebook, [], [["many", '["d1 \\ud83d"]']])


@pytest.mark.skipif(os.name != "posix", reason="a shell closes them")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_a_daemon_may_have_closed_what_is_standard(tmp_path, closed):
    notebook = simple(tmp_path, "print('here')")
    command = f"exec '{sys.executable}' -m wspnb.run {notebook.name} o.ipynb {closed}"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path).returncode == 0
    assert "here" in (tmp_path / "o.ipynb").read_text()


def test_the_log_of_the_shell_is_kept(tmp_path):
    notebook = simple(tmp_path, "raise ValueError('no such cohort')")
    for old in ("out.log", "of_before.log"):  # python -m wspnb.run n.ipynb out.ipynb > out.log 2>&1
        with open(tmp_path / old, "w") as log:
            command = [sys.executable, "-m", "wspnb.run", notebook, tmp_path / "out.ipynb"]
            assert subprocess.run(command, stdout=log, stderr=log).returncode == 1
        assert "no such cohort" in (tmp_path / old).read_text()
    assert not (tmp_path / "out.log").exists()
