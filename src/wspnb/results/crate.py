"""A run that describes itself to machines: ``ro-crate-metadata.json`` (RO-Crate).

``python -m wspnb.results.crate RUN_DIR``, as the workflow calls it after the report: each executed
notebook is an action with its parameters, times and result; beside them the environment, the commit
and the checksums of tables, scores and settings.
"""

import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path

from rocrate.model.contextentity import ContextEntity
from rocrate.rocrate import ROCrate

from wspnb.data.store import digest_file
from wspnb.files import own_files, write_text
from wspnb.results.report import COPY, commit_of, executed
from wspnb.run import project_path

KEPT = ("report.html", "figures/*.csv", "pretrain/*/config.json", "probe/*/results.json")
KEPT += ("pretrain/*/encoder.safetensors", "probe/*/scores.csv", "cohort/store.json")


def describe(run_dir: Path) -> Path:
    """Write the crate's metadata into a run's folder; no file of the run is copied or changed.

    Raises:
        FileNotFoundError: if the folder holds no executed notebook.
    """
    books = executed(run_dir / "notebooks")
    if not books:
        raise FileNotFoundError(f"{run_dir}: no executed notebook in its folder notebooks")
    crate = ROCrate(gen_preview=False)
    crate.name = crate.description = f"wspnb, run {os.path.basename(os.path.abspath(run_dir))}"
    installed = [d for d in importlib.metadata.distributions() if d.name and d.version]
    packages = sorted({f"{d.name}=={d.version}" for d in installed})
    environment = {
        "@type": "SoftwareApplication", "name": f"Python {platform.python_version()}",
        "operatingSystem": platform.platform(), "softwareRequirements": packages,
    }  # fmt: skip
    code = {"@type": "SoftwareSourceCode", "name": "wspnb", "version": commit_of(project_path("."))}
    for name, properties in (("#environment", environment), ("#code", code)):
        crate.add(ContextEntity(crate, name, properties))
    tools = [crate.get("#code"), crate.get("#environment")]

    def file(path: Path):
        about = {"sha256": digest_file(path)}
        return crate.add_file(path, path.relative_to(run_dir).as_posix(), properties=about)

    for name, about in books.items():
        given = []
        for key, value in about.get("parameters", {}).items():
            parameter = {"@type": "PropertyValue", "name": key, "value": str(value)}
            given.append(crate.add(ContextEntity(crate, f"#{name}-{key}", parameter)))
        book = file(run_dir / "notebooks" / f"{name}.ipynb")
        times = {"startTime": about.get("start_time"), "endTime": about.get("end_time")}
        crate.add_action(tools, f"#{name}", given, [book], {"name": f"papermill {name}", **times})
    for path in sorted(path for pattern in KEPT for path in own_files(run_dir, pattern)):
        if not any(map(COPY.search, (path.stem, path.parent.name))):
            file(path)
    text = json.dumps(crate.metadata.generate(), indent=1, ensure_ascii=False)
    write_text(run_dir / "ro-crate-metadata.json", text + "\n")
    return run_dir / "ro-crate-metadata.json"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m wspnb.results.crate RUN_DIR")
    try:
        print(describe(Path(sys.argv[1])))
    except (ValueError, OSError) as error:
        sys.exit(str(error))
