"""Files that appear whole or not at all, that one process at a time writes; how they are read."""

import csv
import errno
import glob
import gzip
import json
import os
import platform
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType

import pandas as pd
import psutil
import yaml

TEXT = {"patient", "volume", "mask", "cohort", "name", "method", "backbone", "selection", "run"}
# No number: its zeros or last digits would be lost, or two codes be one (1e5 and 100000, as nobody
# writes a number); and what a spreadsheet writes for True.
CODE = r"\s*[-+]?(0\d|\d{16,}$|\d+[eE]\d+$|Infinity$)|(TRUE|FALSE|true|false)$"


@contextmanager
def whole(path: str | Path, flush: bool = True) -> Iterator[Path]:
    """A temporary name in the same folder to write to; at the end it becomes ``path``.

    The folder is made if missing. What was written is flushed to the disk before it is renamed, so
    that a power cut cannot leave an empty file under a finished name. On any error the temporary
    file goes and an earlier ``path`` stays. What a killed process has left is removed by the next
    writer of the same file.

    Args:
        path: file that is to appear.
        flush: leave it out for what is checked when it is read.

    Yields:
        ``.tmp-PID-NAME`` beside it: each process has its own, and the ending is the file's.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name[-200:]  # a longer one would not fit behind the number
    for left in path.parent.glob(f".tmp-*-{glob.escape(name)}"):
        pid = left.name.split("-")[1]
        if pid.isdigit() and left.is_file() and not psutil.pid_exists(int(pid)):
            left.unlink(missing_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{name}")
    try:
        with naming(path):
            temporary.touch()
            mode = temporary.stat().st_mode & 0o777  # as the folder, or the umask, gives it
            yield temporary
        if flush:
            with temporary.open("rb+") as file, suppress_unable():
                os.fsync(file.fileno())
        with suppress_unable():
            temporary.chmod(mode)  # some libraries write for the owner alone
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def suppress_unable() -> Iterator[None]:
    """Pass over what a drive cannot do: rights (exFAT, network), or flushing."""
    try:
        yield
    except OSError as error:
        unable = errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP
        if error.errno not in unable:
            raise


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let an error of the disk name ``path`` where it names no file, as when the disk is full."""
    try:
        yield
    except OSError as error:  # numpy only says how many bytes it wrote
        number = errno.ENOSPC if "requested and" in str(error) else error.errno
        if error.filename or not number:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def check_writable(folder: Path) -> None:
    """Raise an OSError that names the folder if nothing can be written there, before the work."""
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


@contextmanager
def alone(path: str | Path) -> Iterator[None]:
    """Keep other processes from making ``path`` meanwhile, where the system can (not on Windows).

    The lock is a file ``.NAME.lock`` beside it with the number of the process and its machine. It
    is released with the process, however that ends; what a killed one has left locks nothing.

    Raises:
        BlockingIOError: another process is at work on it; names both.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    while True:
        with lock.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                number, on, node = file.read().partition(" on ")
                said = f"{path}: process {number} is at work on it{on}{node}"
                raise BlockingIOError(f"{said}: wait for it, or end it") from None
            except OSError:  # some network file systems know no locks
                yield
                return
            if not lock.exists() or lock.stat().st_ino != os.fstat(file.fileno()).st_ino:
                continue  # another one ended meanwhile and took the file along
            file.truncate(0)
            print(os.getpid(), "on", platform.node(), end="", file=file, flush=True)
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def relative(path: str, folder: str | Path) -> str:
    """A path as seen from ``folder``, with ``/``, so that both can move together."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix() if path else ""
    except ValueError:  # another drive of Windows
        return path


def own_files(folder: str | Path, pattern: str) -> list[Path]:
    """Files of a folder, sorted, without what others leave there: folders, dead links, and whatever
    is hidden or below something hidden, as macOS, JupyterLab and editors write it."""
    found = [path for path in sorted(Path(folder).glob(pattern)) if os.path.isfile(path)]
    return [path for path in found if "/." not in f"/{path.relative_to(folder).as_posix()}"]


def paths_below(folder: str | Path, lost: Callable | None = None) -> Iterator[str]:
    """Whatever is below a folder and no folder; links to folders are followed, each place is
    entered once. ``lost`` is called with the error of a folder that cannot be read."""
    seen = set()
    for place, folders, names in os.walk(folder, onerror=lost, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link to a folder above, or a second one
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (os.path.join(place, name) for name in sorted(names))


def files_below(folder: str | Path) -> list[Path]:
    """The files of :func:`paths_below`, sorted."""
    return sorted(Path(path) for path in paths_below(folder) if os.path.isfile(path))


def printable(path: str | Path) -> str:
    """A path as text; names that are not UTF-8 (old archives) are taken as Latin-1."""
    try:
        return os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        return os.fsencode(path).decode("latin-1")


def write_text(path: str | Path, text: str) -> None:
    """UTF-8 text with its line ends as they are."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_csv(path: str | Path, table: pd.DataFrame, sep: str = ",") -> None:
    """A table without its index; compressed where the name ends in .gz, the same bytes for the same
    table. With another separator than a comma it is a spreadsheet's, and begins with its mark."""
    form = {"index": False, "lineterminator": "\n", "sep": sep}
    text = table.to_csv(**form)
    if "\r" in text:  # else not quoted, and read as the end of a line
        text = table.to_csv(**form, quoting=csv.QUOTE_NONNUMERIC)
    text = "\ufeff" * (sep != ",") + text
    if Path(path).suffix != ".gz":
        return write_text(path, text)
    with whole(path) as temporary:
        temporary.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def read_csv(
    path: str | Path, text: bool = False, foreign: bool = False, **options
) -> pd.DataFrame:
    """A table of ours, the one way to read one: names and numbers with zeros in front stay text as
    written (NA, nan, 007), an empty field elsewhere is missing.

    Args:
        text: leave every column as written, "" where it is empty.
        foreign: somebody else has written it: a field with a line break in it is refused, as a
            quote that is left open swallows rows.
        options: as for pandas.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: it is no such table; names the file.
    """
    kept = {"keep_default_na": False, "encoding": "utf-8-sig", "index_col": False}
    some = {name: value for name, value in options.items() if name != "dtype"}
    try:
        with naming(path), warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # more fields than names
            written = pd.read_csv(path, dtype=str, **kept, **some)
    except (ValueError, pd.errors.ParserWarning) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{path}: not a CSV table ({said}): save it as CSV UTF-8") from None
    if foreign:
        broken = written.map(lambda field: isinstance(field, str) and "\n" in field).any(axis=1)
        if broken.any():
            row = f"{path}: row {int(broken.argmax()) + 1} below the header"
            raise ValueError(f"{row} holds a line break: is a quote opened there and not closed?")
    if text:
        return written
    codes = {name for name in written if written[name].str.match(CODE).any()}
    names = [name for name in written if name in TEXT | codes]
    empty = {name: [""] for name in written if name not in TEXT}
    options["dtype"] = dict.fromkeys(names, str) | options.get("dtype", {})
    return pd.read_csv(path, na_values=empty, **kept, **options)


def separator(path: str | Path) -> str:
    """What separates the columns of somebody's table, by its header: a comma, or the semicolon or
    tab that spreadsheets write where the comma is a decimal sign."""
    with naming(path), open(path, encoding="utf-8", errors="replace") as file:
        return max(",;\t", key=re.sub('"[^"]*"', "", file.readline()).count)  # none of a name's own


def plain_json(content) -> str:
    """JSON as every language reads it: NaN is null, an infinite number the text inf."""
    odd = {"Infinity": "inf", "-Infinity": "-inf"}
    content = json.loads(json.dumps(content), parse_constant=odd.get)
    return json.dumps(content, indent=1, ensure_ascii=False)


def read_json(path: str | Path) -> dict:
    """An object that was written as JSON.

    Raises:
        ValueError: it is damaged; names the file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))  # as Notepad saves it
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}, not an object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged ({error}): make it again") from None
    return content


NUMBER = r"[-+]?((0|[1-9][0-9]*)?(\.[0-9]*)?(e[-+]?[0-9]+)?|\.?inf)|\.?nan"  # as people write them


class _PlainLoader(yaml.SafeLoader):
    """YAML without what it reads otherwise than people do."""

    def compose_node(self, parent, index):
        event = self.peek_event()
        if getattr(event, "anchor", None):
            problem = "anchors and aliases (& and *) are not taken: write the value out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in names[:number]:
                problem = f"{key.value} is given twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)

    def construct_yaml_str(self, node):
        """Text; JSON writes some letters as two escapes, each of half a letter."""
        value = super().construct_yaml_str(node)
        return value.encode("utf-16", "surrogatepass").decode("utf-16")

    def number(self, node):
        value = getattr(yaml.SafeLoader, f"construct_yaml_{node.tag.split(':')[-1]}")(self, node)
        if not re.fullmatch(NUMBER, node.value.lower()):
            problem = f"YAML reads {node.value} as {value}: write that, or a text in quotes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return value


for _kind in ("int", "float"):
    _PlainLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _PlainLoader.number)
_PlainLoader.add_constructor("tag:yaml.org,2002:str", _PlainLoader.construct_yaml_str)


def read_yaml(text: str, source: str):
    """One YAML document; refuses a name given twice, anchors, and numbers like ``010`` (YAML: 8) or
    ``1:30`` (90).

    Raises:
        ValueError: in one line: ``source``, the file or parameter that it is from, line, what is
            wrong.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{source}{line}: {error.problem}") from None
    except Exception as error:  # of the scalars: ValueError, KeyError, RecursionError ...
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{source}: no YAML ({type(error).__name__}: {reason})") from None


def read_parameters(file: str | Path) -> dict:
    """Parameters of a file, lines of ``name: value``.

    Raises:
        ValueError: the file is no such text; names file and line.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: no UTF-8 text ({error.reason} at byte {error.start})") from None
    content = {} if (found := read_yaml(text, str(file))) is None else found
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected `name: value` lines, found a {type(content).__name__}")
    return content


def plain_output() -> None:
    """Let this process print names that the terminal's encoding lacks as escapes: none ends it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def need(extra: str, *names: str) -> list[ModuleType]:
    """Modules that only an extra of the package installs.

    Raises:
        ModuleNotFoundError: one is missing; says how to install it.
    """
    try:
        return [import_module(name) for name in names]
    except ModuleNotFoundError as error:
        words = f"{error.name} is missing: pip install 'wspnb[{extra}]'"
        raise ModuleNotFoundError(words, name=error.name) from error


def package_version(name: str) -> str:
    """Version of an installed package; "unknown" where it only lies on the path."""
    try:
        return metadata.version(name) or "unknown"
    except metadata.PackageNotFoundError:
        return "unknown"
