"""JupyterLab beside the workflow: ``python workflow/lab.py [options of jupyter lab]``.

It opens the project's folder with working copies of the notebooks in ``runs/lab/``, whose results
go there too. So nothing that is tried, or only opened and saved, changes what the workflow reads.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

from wspnb.files import own_files

PROJECT = Path(__file__).resolve().parents[1]


def sources_hash(notebook: dict) -> str:
    """Hash of what a reader can edit: the cells' text, not their outputs."""
    text = json.dumps(["".join(cell["source"]) for cell in notebook["cells"]])
    return hashlib.sha256(text.encode()).hexdigest()


def working_copy(notebook: dict) -> dict:
    """The notebook with ``runs/lab`` instead of ``runs/laptop`` in its parameters."""
    for cell in notebook["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            text = "".join(cell["source"]).replace('"runs/laptop', '"runs/lab')
            cell["source"] = text.splitlines(keepends=True)
    notebook["metadata"]["wspnb_copy"] = sources_hash(notebook)
    return notebook


def prepare(project: Path = PROJECT) -> Path:
    """Make or renew the working copies; one that was edited is kept, and said to be old if it is.

    Returns:
        Their folder.
    """
    folder = project / "runs" / "lab"
    folder.mkdir(parents=True, exist_ok=True)
    for path in own_files(project / "notebooks", "[0-9]*.ipynb"):
        try:
            new = working_copy(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError):
            print(f"{path}: no notebook, passed over")
            continue
        copy = folder / path.name
        if copy.exists():
            try:
                old = json.loads(copy.read_text(encoding="utf-8"))
                made = old["metadata"].get("wspnb_copy")
            except (ValueError, KeyError, TypeError):
                print(f"{copy}: damaged, left as it is; delete it to get a new one")
                continue
            if made == new["metadata"]["wspnb_copy"]:
                continue
            if made != sources_hash(old):
                print(f"{copy}: you changed it, and {path.name} is newer; delete it to get that")
                continue
        text = json.dumps(new, indent=1, ensure_ascii=False) + "\n"
        copy.with_suffix(".tmp").write_text(text, encoding="utf-8")
        copy.with_suffix(".tmp").replace(copy)
    return folder


def main(options: list[str]) -> None:
    """Prepare, and become JupyterLab."""
    start = prepare().relative_to(PROJECT) / "00_the_loss.ipynb"
    words = ["jupyter", "lab", f"--ServerApp.root_dir={PROJECT}"]
    words += [f"--LabApp.default_url=/lab/tree/{start.as_posix()}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        print("You are root: right in a container of your own; anywhere else, start as a user.")
        words.append("--allow-root")
    print(
        f"working copies: {start.parent}/; every open notebook keeps its kernel, some 0.5 GB each"
    )
    for name in {"MPLBACKEND", "PYTHONOPTIMIZE"} & {*os.environ}:  # no pictures, no checks
        del os.environ[name]
    os.chdir(PROJECT)
    sys.stdout.flush()
    os.execvp(Path(sys.executable).with_name("jupyter"), [*words, *options])


if __name__ == "__main__":
    main(sys.argv[1:])
