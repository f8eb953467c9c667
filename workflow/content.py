"""What the result of a notebook depends on: content, never dates."""

import ast
import atexit
import hashlib
import json
import os
import re
import time
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from zipfile import BadZipFile, ZipFile

MEMO = Path(".snakemake", "stamps.json")  # of files that were read before, see below
# No number depends on what draws, starts a notebook or writes a file: that trains nothing again.
# Of wspnb.files what reads does count.
ASIDE = ("plots", "run", "files", "diagrams", "oct_plots", "position_plots")
IMPORT = re.compile(r"^[ \t]*((?:from|import) (?:\\\n|[^(#\n])*(?:\([^)]*\))?)", re.MULTILINE)


def digest(content) -> str:
    """Short hash of anything that JSON can say."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@cache
def digest_of_file(path: str) -> str:
    """Hash of a file's bytes, of names and content of what is in a folder, or "" where nothing
    is."""
    path = Path(path).expanduser()
    if path.is_dir():
        from wspnb.files import files_below  # pandas takes a second

        look = ("Thumbs.db", "desktop.ini")  # as hidden ones, come of having been looked at
        files = [(p.relative_to(path).as_posix(), p) for p in files_below(path)]
        files = [(n, p) for n, p in files if p.name not in look and "/." not in f"/{n}"]
        return digest([(name, _content(file)) for name, file in files])
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _content(file: Path) -> list:
    """What changes with a file's content, quickly: of a zip the checksums that it holds."""
    if file.suffix == ".zip":
        with suppress(OSError, BadZipFile), ZipFile(file) as archive:
            return [(one.filename, one.CRC) for one in archive.infolist()]
    return stamp_once(str(file))


@cache
def memo() -> dict:
    """Stamps of files by path, kept from call to call: a cohort of DICOM is 100 GB, and each job
    of a cluster asks anew."""
    found = {}
    with suppress(OSError, ValueError, TypeError):
        found = dict(json.loads(MEMO.read_text(encoding="utf-8")))
    atexit.register(keep, found, dict(found), MEMO)
    return found


def keep(found: dict, before: dict, file: Path) -> None:
    """Write the memo where snakemake keeps its own notes, whole or not at all."""
    if found != before and file.parent.is_dir():
        part = file.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            part.write_text(json.dumps(found), encoding="utf-8")
            os.replace(part, file)


def stamp_once(path: str) -> list:
    """:func:`wspnb.data.cohort.file_stamp` of a file, read again where its time of change (ctime)
    is another. That is no date that a program could set: whoever writes gets a new one."""
    from wspnb.data.cohort import file_stamp

    try:
        found = os.stat(path)
    except OSError:
        return file_stamp(path)
    if path.removesuffix(".gz").lower().endswith((".hdr", ".img", ".head", ".brik")):
        return file_stamp(path)  # of two files
    seen, known = [found.st_size, found.st_ino, found.st_ctime_ns], memo().get(path)
    if known and known[0] == seen:
        return known[1]
    stamp = file_stamp(path)
    if time.time_ns() - found.st_ctime_ns > 2e9:  # else it may change within a tick of the clock
        memo()[path] = [seen, stamp]
    return stamp


@cache
def digest_of_cohort(path: str, training: str = "") -> str:
    """Hash of a cohort table and of its volumes and masks. With the name of the pretraining cohort
    it leaves out what a pretraining does not see: labels, other cohorts' names and weak labels, how
    files are called, and how the table is written."""
    from wspnb.data.cohort import read_cohort

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notebook 01 warns, and says what is wrong with it
            table = read_cohort(Path(path).expanduser())
    except (ValueError, OSError):
        return digest_of_file(path)
    files = [
        stamp_once(v) + stamp_once(m) for v, m in zip(table.volume, table["mask"], strict=True)
    ]
    if not training:
        return digest([digest_of_file(path), files])
    own = table.cohort == training
    seen = table.reindex(columns=["patient", "coding"], fill_value="")
    seen = seen.assign(own=own, weak_label=table.weak_label.where(own))
    return digest([files, seen.to_csv(index=False)])


def statements(source: str) -> tuple[str, set[str]]:
    """Code without comments, docstrings and layout, and the modules it imports."""
    try:
        tree, imported = ast.parse(source), set()
    except SyntaxError:  # a magic of Jupyter's, or a mistake, which the run will name
        lines = [line for line in IMPORT.findall(source) if line != source]
        return source, {name for line in lines for name in statements(line)[1]}
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            first.value.value = ""
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            imported |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "wspnb":
            imported.add(f"wspnb.{node.attr}")
    return ast.unparse(tree), imported


@cache
def homes(src: str) -> dict[str, str]:
    """Modules of the names that the package loads when they are asked for, as it lists them."""
    if not (file := Path(src, "wspnb", "__init__.py")).is_file():  # no module of it is known
        return {}
    listed = re.search(r"_HOMES = (\{.*?\})", file.read_text(encoding="utf-8"), re.DOTALL)[1]
    listed = ast.literal_eval(listed)
    found = {name: home for home, names in listed.items() for name in names}
    return {f"wspnb.{name}": f"wspnb.{home}" for name, home in found.items()}


@cache
def module(name: str, src: str = "src") -> tuple[str, tuple[str, ...]] | None:
    """Code and imports of a module of the package, or of that which holds a name of the package
    itself (``wspnb.contrastive_loss``); None for any other name."""
    base = Path(src, *homes(src).get(name, name).split("."))
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if name.split(".")[0] == "wspnb" and file.is_file():
            code, imported = statements(file.read_text(encoding="utf-8"))
            return code, tuple(sorted(imported))
    return None


def reading(src: str) -> str:
    """Of wspnb.files what decides how a table or a parameter is read: no function that writes."""
    body = ast.parse(module("wspnb.files", src)[0]).body
    kept = ("read", "separator", "_Plain")
    body = [n for n in body if isinstance(n, ast.Assign) or getattr(n, "name", "").startswith(kept)]
    return ast.unparse(ast.Module(body, []))


@cache
def code(notebook: str, drawn: bool = False, src: str = "src") -> str:
    """Hash of a notebook's code without its parameters, and of the package's modules it uses.

    Args:
        notebook: file.
        drawn: whether its pictures are the result, so that modules set ``ASIDE`` count.
        src: folder of the package.
    """
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    tags = [cell["metadata"].get("tags", []) for cell in cells]
    cells = [
        "".join(cell["source"])
        for cell, own in zip(cells, tags, strict=True)
        if cell["cell_type"] == "code" and "parameters" not in own
    ]
    text, imported = statements("\n".join(cells))
    found, todo = {}, set(imported)
    while todo:
        name = todo.pop()
        aside = name.split(".")[-1] in ASIDE and not drawn
        if name == "wspnb.files" and not drawn and module(name, src):
            found[name] = reading(src)
        elif name not in found and not aside and (known := module(name, src)):
            found[name] = known[0]
            todo |= set(known[1])
    return digest([text, found])
