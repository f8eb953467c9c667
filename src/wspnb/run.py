"""Strict notebook runner: ``python -m wspnb.run NOTEBOOK OUT -f params.yaml -p name value``.

Papermill only warns about a parameter that the notebook does not know and runs on with the default.
Here that is an error, as is a value of the wrong type; the output appears where all went well only.
"""

import argparse
import ast
import contextlib
import errno
import importlib.util
import json
import logging
import os
import re
import signal
import sys
import time
from pathlib import Path

KEPT = ("PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONUSERBASE")  # of the shell's PYTHON...: places


def project_path(path: str | Path) -> Path:
    """A path of the parameters in full: relative ones start at the project's folder.

    The project's folder is the nearest one at or above the working directory that holds
    ``notebooks`` and is no run of a project (in its ``runs``), else the working directory: a
    notebook finds the same files whoever started it. An empty path is a ValueError."""
    if path == "" or re.search(r"^\$|\$[A-Z_{]", str(path)):  # nothing here fills a variable in
        raise ValueError(f"path {str(path)!r}: empty by an unset variable, or with $: write it out")
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise FileNotFoundError("the working folder is gone: restart the kernel") from None
    roots = [p for p in (here, *here.parents) if (p / "notebooks").is_dir()]
    runs = {root / "runs" for root in roots}
    root = next((p for p in roots if runs.isdisjoint(p.parents)), here)
    return (root / Path(path).expanduser()).resolve()


def declared(notebook: Path) -> dict:
    """Parameters of a notebook: name -> (type, default), read from its cell tagged ``parameters``.

    Raises:
        ValueError: if the notebook has no such cell or a line there is not ``name: type =
            literal``.
    """
    try:
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
        tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{notebook}: not a readable notebook ({_line(error)})") from None
    if len(tagged) != 1:
        raise ValueError(f"{notebook}: {len(tagged)} cells tagged 'parameters', expected one")
    found = {}
    try:
        for node in ast.parse("".join(tagged[0]["source"])).body:
            if not isinstance(node, ast.AnnAssign):
                raise ValueError(f"parameter line {ast.unparse(node)!r} has no type")
            found[node.target.id] = (ast.unparse(node.annotation), ast.literal_eval(node.value))
    except (ValueError, SyntaxError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{notebook}: {_line(error)}") from None
    return found


def cast(name: str, kind: str, value, default=None):
    """The value as the parameter's declared type; an integer may stand for a float, nothing else
    converts. Members of a list are of the type of those of the default.

    Raises:
        ValueError: names the parameter, the type and the value received.
    """
    from wspnb.files import NUMBER

    types = {"int": int, "float": (float, int), "str": str, "bool": bool, "list": list}
    if kind == "float" and re.fullmatch(NUMBER, str(value).lower()):  # YAML reads 1e-3 as text
        with contextlib.suppress(ValueError):
            value = float(str(value))  # as text: a whole number may be too long for it
    if (plain := kind.split("[")[0]) not in types:
        raise ValueError(f"parameter {name} is declared as {kind}: take one of {', '.join(types)}")
    if not isinstance(value, types[plain]) or (isinstance(value, bool) and kind != "bool"):
        like = f"{kind}, such as {default!r}" if default else kind
        raise ValueError(f"parameter {name} takes {like}, not {value!r} ({type(value).__name__})")
    if plain == "list" and not default and {*map(type, value)} not in ({str}, {int}, set()):
        raise ValueError(f"parameter {name} takes a list of texts or of whole numbers, not {value}")
    if plain == "list" and default and all(isinstance(v, (str, int, float)) for v in default):
        inner = type(default[0]).__name__
        try:
            return [cast(name, inner, member) for member in value]
        except ValueError as error:
            advice = """; put quotes around each: '["2019", "no"]'""" if inner == "str" else ""
            raise ValueError(f"list of {inner}: {error}{advice}") from None
    return float(value) if kind == "float" else value


def gather(notebook: Path, files: list[str], pairs: list[list[str]]) -> dict:
    """Checked parameters of one notebook from YAML files, then from ``-p`` pairs; later ones win.

    A file may serve the whole series of notebooks: a name that only a neighbour declares is left
    out here, a name that none of them declares is an error. A pair must belong to this very
    notebook.

    Raises:
        ValueError: unknown name or wrong type, with the file it came from.
    """
    from wspnb.files import read_parameters, read_yaml  # takes a second: not while this is imported

    known = declared(notebook)
    neighbours = set(known)
    for path in notebook.parent.glob("[0-9][0-9]*_*.ipynb"):
        with contextlib.suppress(ValueError, OSError):  # not one of ours: a draft, a folder
            neighbours |= set() if re.search(r"\W", path.stem) else set(declared(path))  # no copy
    given = {}
    for file in files:
        for name, value in read_parameters(file).items():
            if name not in neighbours:
                raise ValueError(f"{file}: no notebook of {notebook.parent} has a parameter {name}")
            if name in known:
                given[name] = cast(f"{name} ({file})", known[name][0], value, known[name][1])
    for name, text in pairs:
        if name not in known:
            raise ValueError(f"{notebook.name} has no parameter {name}; it has {', '.join(known)}")
        kind, default = known[name]
        value = text if kind == "str" else read_yaml(text, f"parameter {name}")
        given[name] = cast(name, kind, value, default)
    return given


def _line(error: BaseException | str) -> str:
    """A message in one line; of a list below it, indented by two, each item in one."""
    parts = [" ".join(part.split()) for part in str(error).strip().split("\n  ")]
    return ("\n  " if len(parts) > 2 else " ").join(parts)


def log_progress(path: str) -> None:
    """Let every progress bar of this process also write a line to ``path``, at most one in 20 s;
    the runner calls it in the kernel before the notebook begins."""
    import tqdm.auto

    class Logged(tqdm.auto.tqdm):  # a bar that is also a log
        last, shown = 0.0, 0

        def display(self, *args, **kwargs):
            now = time.monotonic()
            if self.n != self.shown and (now - self.last > 20 or self.n == self.total):
                self.last, self.shown = now, self.n
                line = f"{time.strftime('%H:%M:%S')} {self.desc or ''} {self.n} of {self.total}"
                with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as file:
                    print(f"{line}, {self.format_dict['elapsed']:.0f} s", file=file)
            return super().display(*args, **kwargs)

    tqdm.auto.tqdm = Logged


def run(notebook: Path, out: Path, parameters: dict) -> float:
    """Execute a notebook in its own folder, print its warnings, and say the seconds taken; ``out``
    appears on success only, on failure ``NAME.failed.ipynb``, the notebook so far."""
    import tempfile  # imports random, of which a file beside the caller may have the name

    import nbclient.client
    import papermill
    from traitlets.config import Config

    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.stem}.{os.getpid()}.ipynb")
    own = re.compile(rf"\.{re.escape(out.stem)}\.\d+\.ipynb")
    for left in [path for path in out.parent.iterdir() if own.fullmatch(path.name)]:
        left.unlink()  # of a run that was killed
    failed = out.with_name(f"{out.stem}.failed.ipynb")
    log = out.with_suffix(".log")
    if os.path.exists(log) and not any(os.path.samestat(os.stat(log), os.fstat(k)) for k in (1, 2)):
        log.unlink()  # else the shell's, as of > out.log 2>&1
    # IPython's own quit() ends no notebook: the cells below it would run.
    begin = "globals().update(dict.fromkeys(('quit', 'exit'), __import__('sys').exit)); "
    begin += f"__import__('wspnb.run').run.log_progress({str(log)!r})"
    # The same matches; its own form takes a minute for a printed line of 300,000 letters.
    nbclient.client._RGX_CARRIAGERETURN = re.compile(r"(?m)^.*\r(?=[^\n])")
    start, environment = time.monotonic(), dict(os.environ)
    try:
        with tempfile.TemporaryDirectory(prefix="wspnb-") as folder:
            # Kernels that start at the same moment may be given the same TCP port; sockets in a
            # folder of their own cannot meet. (Windows has none; a path of theirs has 107 bytes.)
            short = os.name == "posix" and len(os.fsencode(folder)) < 90
            sockets = {"transport": "ipc", "ip": f"{folder}/kernel"} if short else {}
            _own_kernel(Path(folder))
            # Papermill fills braces of paths in: doubled, they stay as they are.
            source, target = (re.sub("[{}]", r"\g<0>\g<0>", str(p)) for p in (notebook, temporary))
            done = papermill.execute_notebook(
                source,
                target,
                parameters,
                cwd=str(notebook.parent),
                progress_bar=False,
                kernel_name="python3",
                language="python",
                start_timeout=600,  # a network drive may be slow
                coalesce_streams=True,
                config=Config(KernelManager=sockets | {"shutdown_wait_time": 20.0}),
                extra_arguments=["--log-level=CRITICAL", f"--IPKernelApp.exec_lines={begin}"],
            )
        code = [cell for cell in done.cells if cell.cell_type == "code"]
        if not all(cell.metadata["papermill"].get("start_time") for cell in code):
            raise RuntimeError("sys.exit ended the notebook: the cells below did not run")
        _finish(temporary, out)
    except BaseException:
        if temporary.exists():
            try:  # a full disk leaves half a notebook
                _finish(temporary, failed)
                temporary.replace(failed)
            except (ValueError, OSError):
                temporary.unlink()
        raise
    finally:  # for who calls this from Python
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
    temporary.replace(out)
    failed.unlink(missing_ok=True)
    return time.monotonic() - start


def _finish(notebook: Path, out: Path) -> None:
    """The executed notebook under the name it will have, and without Infinity and NaN, which
    papermill writes for such a parameter and no browser reads; its warnings are printed.

    Raises:
        ValueError: half a file.
    """
    from wspnb.files import plain_json

    content = json.loads(notebook.read_text(encoding="utf-8"))
    content["metadata"].get("papermill", {})["output_path"] = str(out)
    notebook.write_text(plain_json(content) + "\n", encoding="utf-8")
    outputs = [output for cell in content["cells"] for output in cell.get("outputs", ())]
    texts = ["".join(output.get("text", "")) for output in outputs]
    for text in dict.fromkeys(re.findall("UserWarning: (.*)", "\n".join(texts))):
        _say(f"  warning: {text}")


def _own_kernel(folder: Path) -> None:
    """Let ``python3`` be the interpreter that runs this, in an environment that is always the same:
    found first, without the user's start-up files, with UTF-8."""
    for name in {"MPLBACKEND", *(n for n in os.environ if n.startswith("PYTHON"))} - {*KEPT}:
        os.environ.pop(name, None)
    # -P: a file beside the notebook called as a module of Python's own must not end the kernel.
    spec = {"argv": [sys.executable, "-P", "-m", "ipykernel_launcher", "-f", "{connection_file}"]}
    spec |= {"display_name": "Python 3", "language": "python", "metadata": {"debugger": False}}
    file = folder / "kernels" / "python3" / "kernel.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(spec), encoding="utf-8")
    (folder / "matplotlibrc").touch()  # goes before the user's, and is empty
    os.environ |= dict.fromkeys(("JUPYTER_PATH", "IPYTHONDIR", "MATPLOTLIBRC"), str(folder))
    os.environ["PYTHONUTF8"] = "1"
    # The kernel starts in another folder and must find the package that this is a part of.
    ours = str(Path(__file__).resolve().parents[1])
    paths = [os.path.abspath(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    paths = [ours] * ("site-packages" not in ours) + paths
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))


def explain(error: Exception, out: Path, failed: Path | None) -> str:
    """One line: in which cell of ``out`` a run failed, how, and what to try; ``failed`` is the
    notebook as far as it came, or None."""
    import nbformat

    cell = getattr(error, "cell_index", None)
    if cell is None and failed:
        for number, one in enumerate(nbformat.read(failed, as_version=4).cells):
            if one.cell_type == "code" and one.metadata.get("papermill", {}).get("start_time"):
                cell = number  # the last that began
    where = f"FAILED: {out}" if cell is None else f"FAILED in cell {cell}"
    kind = getattr(error, "ename", type(error).__name__)
    said = _line(getattr(error, "evalue", getattr(error, "strerror", None) or error))
    early = "Kernel died before replying" in said  # killed, or there is no ipykernel to begin
    if kind == "DeadKernelError" or (early and importlib.util.find_spec("ipykernel")):
        return (
            f"{where}: the kernel was killed or crashed, most often for want of memory: free some, "
            "or take smaller batches (batch_size), images or fewer workers"
        )
    if getattr(error, "filename", None):
        said += f": {error.filename}"
    advice = ""
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in said:
        advice = ": the disk is full, free some space and run again"
    elif isinstance(error, (FileExistsError, FileNotFoundError, PermissionError)):
        advice = ": name another place for the executed notebook"
    elif kind == "NoSuchKernel" or "Kernel died before replying" in said:
        advice = ": install ipykernel into this environment"
    return f"{where}: {kind}: {said}{advice}"


def _say(text: str) -> None:
    """Print a line; where nobody can read it (a full disk, a closed pipe) the work goes on."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def interrupt(*_) -> None:
    """Handler of Ctrl-C and SIGTERM (Slurm, containers): the kernel is told at once, as it may want
    to save before it ends, and the run ends with it."""
    import psutil

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm may send it twice
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            child.terminate()
    raise KeyboardInterrupt


def _pairs(arguments: list[str]) -> tuple[list[str], list[list[str]]]:
    """Arguments without ``-p NAME VALUE`` (or ``-p NAME=VALUE``), and those: argparse takes a value
    of -1e-3 for an option."""
    rest, pairs = [], []
    while arguments:
        ours = arguments[0] in ("-p", "--parameter")
        if ours and "=" in "".join(arguments[1:2]):
            pairs, arguments = [*pairs, arguments[1].split("=", 1)], arguments[2:]
        elif ours and len(arguments) > 2:
            pairs, arguments = [*pairs, arguments[1:3]], arguments[3:]
        else:
            rest, arguments = [*rest, arguments[0]], arguments[1:]
    return rest, pairs


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns 0, 1 (notebook failed), 2 (wrong parameter) or 130 (interrupted)."""
    parser = argparse.ArgumentParser(prog="python -m wspnb.run", description=__doc__)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("-f", "--file", action="append", default=[], help="YAML of parameters")
    parser.add_argument(
        "-p", "--parameter", action="append", nargs=2, default=[], metavar=("NAME", "VALUE")
    )
    arguments, pairs = _pairs(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(arguments)
    options.parameter += pairs
    from wspnb.files import alone, plain_output

    plain_output()
    try:
        same = options.out.resolve() == options.notebook.resolve()
    except (OSError, RuntimeError) as error:  # a link to itself
        parser.error(f"{_line(error)}: name a notebook, and another file for the executed one")
    if same:
        parser.error(f"{options.out} is the notebook itself: give the executed one another name")
    rank, others = (os.environ.get(k, "") for k in ("RANK", "WORLD_SIZE"))  # else of another tool
    if rank.isdecimal() and others.isdecimal() and int(others) > int(rank) > 0:  # of torchrun
        options.out = options.out.with_name(f"{options.out.stem}-rank{rank}.ipynb")
    try:
        parameters = gather(options.notebook, options.file, options.parameter)
        if options.out.is_dir():
            raise ValueError(f"{options.out} is a folder: name the executed notebook in it")
        out = options.out.resolve()
        failed = out.with_name(f"{out.stem}.failed.ipynb")
        before = failed.stat().st_mtime_ns if failed.exists() else None
    except (ValueError, OSError) as error:
        print(f"error: {_line(error)}", file=sys.stderr)
        return 2
    for name in ("asyncio", "traitlets", "papermill"):  # said below, in one line
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    label = f"{options.out.stem:<34}"
    _say(f"{label} started")

    try:
        with alone(out):
            seconds = run(options.notebook.resolve(), out, parameters)
    except KeyboardInterrupt:
        print(f"{label} interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        kept = failed.exists() and failed.stat().st_mtime_ns != before
        print(f"{label} {explain(error, options.out, failed if kept else None)}", file=sys.stderr)
        if kept:
            print(f"  see {failed}", file=sys.stderr)
        return 1
    _say(f"{label} done in {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    for number in range(3):  # closed, as where a daemon starts it: the kernel wants them
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    here = os.getcwd()  # a file there called as a module, such as yaml.py, is not the module
    sys.path = [p for p in sys.path if p not in ("", here) or __file__.startswith(f"{p or here}/")]
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    if getattr(signal, "SIGHUP", 0) and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, interrupt)  # the terminal is gone, and nohup was not asked for
    if sys.getfilesystemencoding() != "utf-8":  # LC_ALL=C: names would be lost
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    with contextlib.suppress(KeyboardInterrupt):  # also while it is still importing
        sys.exit(main())
    sys.exit(130)
