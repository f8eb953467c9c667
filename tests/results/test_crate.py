"""A run's description for machines: complete, and readable by the format's own library."""

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest
from rocrate.rocrate import ROCrate

from wspnb.results.crate import commit_of, describe

TOLD = {"parameters": {"n_steps": 3, "method": "wsp"}, "duration": 2.5}
TOLD |= {"start_time": "2026-01-01T10:00:00+00:00", "end_time": "2026-01-01T10:00:03+00:00"}


def test_a_run_names_its_notebooks_parameters_files_code_and_packages(tmp_path, monkeypatch):
    for name, text in {
        "notebooks/02_pretrain-wsp.ipynb": json.dumps({"metadata": {"papermill": TOLD}}),
        "notebooks/02_pretrain-byol.failed.ipynb": json.dumps({"metadata": {"papermill": TOLD}}),
        "probe/wsp-tiny-seed0/scores.csv": "patient,score\np,0.5\n",
        "cohort/slices.csv": "too large to be hashed each time",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    describe(Path("."))  # from within the folder
    assert ROCrate(tmp_path).name == f"wspnb, run {tmp_path.name}"
    crate = ROCrate(describe(tmp_path).parent)
    (action,) = [e for e in crate.get_entities() if e.type == "CreateAction"]
    assert action["startTime"] == TOLD["start_time"] and action["endTime"] == TOLD["end_time"]
    assert {e["name"]: e["value"] for e in action["object"]} == {"n_steps": "3", "method": "wsp"}
    assert [e.id for e in action["result"]] == ["notebooks/02_pretrain-wsp.ipynb"]
    code, environment = action["instrument"]
    assert re.fullmatch(r"[0-9a-f]{7,}( \(changed\))?|no checkout|unknown", code["version"])
    assert any(name.startswith("torch==") for name in environment["softwareRequirements"])
    scores = crate.get("probe/wsp-tiny-seed0/scores.csv")
    assert scores["sha256"] == hashlib.sha256(b"patient,score\np,0.5\n").hexdigest()
    assert {e.id for e in crate.data_entities} == {
        "notebooks/02_pretrain-wsp.ipynb", "probe/wsp-tiny-seed0/scores.csv"
    }  # fmt: skip


def test_the_commit_is_said_to_be_missing_where_there_is_none(tmp_path, monkeypatch):
    assert commit_of(tmp_path) == "no checkout"
    (tmp_path / "params").mkdir()
    for name in ("code.py", "params/own.yaml"):
        (tmp_path / name).write_text("1", encoding="utf-8")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    (tmp_path / "params/own.yaml").write_text("2", encoding="utf-8")  # settings are no code
    assert re.fullmatch("[0-9a-f]{7,}", commit_of(tmp_path))
    (tmp_path / "code.py").write_text("2", encoding="utf-8")
    assert re.fullmatch(r"[0-9a-f]{7,} \(changed\)", commit_of(tmp_path))
    (tmp_path / "unpacked").mkdir()
    (tmp_path / "unpacked" / "code.py").write_text("3", encoding="utf-8")
    assert commit_of(tmp_path / "unpacked") == "no checkout"  # the repository above is another's
    index = tmp_path / ".git" / "index"
    index.write_bytes(index.read_bytes()[:20])  # whether anything differs cannot be told
    assert commit_of(tmp_path) == "unknown"
    monkeypatch.setenv("PATH", "/nowhere")
    assert commit_of(tmp_path) == "unknown"


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no executed notebook"):
        describe(tmp_path)
    assert not list(tmp_path.iterdir())


def test_copies_are_no_results_and_another_projects_git_is_not_asked(tmp_path, monkeypatch):
    for name, text in {
        "notebooks/02_pretrain-wsp.ipynb": json.dumps({"metadata": {"papermill": TOLD}}),
        "probe/wsp-tiny-seed0/scores.csv": "a\n", "probe/wsp-tiny-seed0 - Copy/scores.csv": "a\n",
        "figures/table1.csv": "a\n", "figures/table1 (1).csv": "a\n",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = {e.id for e in ROCrate(describe(tmp_path).parent).data_entities}
    assert {name for name in found if name.endswith("csv")} == {
        "probe/wsp-tiny-seed0/scores.csv", "figures/table1.csv"
    }  # fmt: skip
    monkeypatch.setenv("GIT_DIR", str(Path(__file__).resolve().parents[2] / ".git"))
    assert commit_of(tmp_path) == "no checkout"


def test_a_checkout_of_somebody_else_is_unknown(tmp_path, monkeypatch):
    """On shared drives and in containers git does not tell what it is."""
    script = tmp_path / "git"
    script.write_text("#!/bin/sh\necho fatal: detected dubious ownership >&2; exit 128\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert commit_of(tmp_path) == "unknown"
