"""Cells of the notebooks stopped, run twice, or after a parameter has changed, as in JupyterLab."""

import json
import signal
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch

from wspnb import losses
from wspnb.data.store import write_store
from wspnb.files import read_json

mpl.use("Agg")
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def cells(notebook: str) -> dict[str, str]:
    """Code cells by their names."""
    book = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text(encoding="utf-8"))
    return {c["id"]: "".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project with a store: 16 patients to pretrain on and 16 to judge, three slices each."""
    rows = [
        {
            "patient": f"{cohort}{k}",
            "cohort": cohort,
            "weak_label": k % 2 if cohort == "radio" else None,
            "label": k % 2 if cohort == "d1" else None,
            "position": z / 2,
            "z": z,
            "n_kept": 3,
            "height_mm": 5.0 * z,
            "spacing_z": 5.0,
        }
        for cohort in ("radio", "d1")
        for k in range(16)
        for z in range(3)
    ]
    table = pd.DataFrame(rows).astype({"weak_label": "Int64", "label": "Int64"})
    images = np.random.default_rng(0).integers(0, 255, (len(table), 64, 64), dtype=np.uint8)
    write_store(tmp_path / "cohort", [images], table, 64)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


def begin(notebook: str, **given) -> tuple[dict, dict[str, str]]:
    """Names after the cells of imports and parameters, and the cells that follow."""
    names, after = {"__name__": "__main__"}, cells(notebook)
    for _ in range(2):
        exec(after.pop(next(iter(after))), names)
    assert given.keys() <= names.keys()
    return names | {"cohort_dir": "cohort", "run_dir": "run"} | given, after


FEW = {"batch_size": 8, "n_steps": 6, "warmup_steps": 2, "precision": "no", "log_every": 2}


def test_a_training_that_was_stopped_is_not_saved_as_finished(project):
    names, after = begin("02_pretrain", **FEW)
    plain, seen = losses.contrastive_loss, []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background

    def stopped(*views, **options):
        if len(seen) == 3:
            signal.raise_signal(signal.SIGINT)  # the square button
        seen.append(1)
        return plain(*views, **options)

    names["contrastive_loss"] = stopped
    for name, source in after.items():
        if name == "loop":
            with pytest.raises(KeyboardInterrupt):
                exec(source, names)
        elif name == "log":
            with pytest.raises(ValueError, match="not all of 6 steps are done"):
                exec(source, names)
            break
        else:
            exec(source, names)
    folder = project / "run" / "pretrain" / "wsp-tiny_padded-seed0"
    assert (folder / "checkpoint.pt").exists() and not (folder / "config.json").exists()
    order = [*after]
    for name in order[order.index("resume") :]:  # what the message says
        exec(after[name], names)
    assert read_json(folder / "config.json")["n_steps"] == 6 and len(seen) == 6
    signal.signal(signal.SIGINT, before)


def test_a_finished_training_is_kept(project):
    """Run again it goes on to pictures and checks, without a step and without a file replaced."""
    folder, seen = project / "run" / "pretrain" / "wsp-tiny_padded-seed0", []
    plain, names = losses.contrastive_loss, {}

    def counted(*views, **options):
        seen.append(1)
        return plain(*views, **options)

    def results():
        files = [file for file in folder.iterdir() if file.is_file()]
        return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}

    for existing, steps in (("resume", 6), ("resume", 0), ("restart", 6)):
        before, verdict = results() if folder.exists() else None, names.get("verdict")
        names, after = begin("02_pretrain", **FEW, existing=existing)
        names["contrastive_loss"] = counted
        seen.clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for source in after.values():
                exec(source, names)
        assert len(seen) == steps
        assert (results() == before) is any("nothing to do" in str(w.message) for w in caught)
        assert (results() == before) is (steps == 0) and verdict in (None, names["verdict"])
        assert names["table"].step.tolist() == [0, 2, 4, 5]


@pytest.mark.parametrize("again", [("config",), ("config", "cohort"), ("config", "network")])
def test_a_training_is_of_the_settings_that_its_parts_were_made_with(project, again):
    names, after = begin("02_pretrain", **FEW)
    for name, source in after.items():
        if name == "resume":
            break
        exec(source, names)
    names |= {"seed": 5, "convention": "k/n"}
    for name in again:
        exec(after[name], names)
    with pytest.raises(ValueError, match="run all again from the settings on"):
        exec(after["resume"], names)


@pytest.mark.parametrize("name", ["wsp_sigma0.3", "supcon", "random", "supervised"])
def test_a_name_that_says_something_else_is_refused_before_the_training(project, name):
    names, after = begin("02_pretrain", **FEW, name=name)
    with pytest.raises(ValueError, match=f"called {name} and trained as wsp"):
        exec(after["config"], names)
    for own in ("", "mine", "wsp", "as_released"):
        exec(after["config"], names | {"name": own})
    exec(after["config"], names | {"name": "wsp_sigma0.3", "sigma": 0.3})


def test_public_encoders_are_there_when_their_cell_runs_again(project):
    names, after = begin("03_linear_probe", methods=["random"], evaluate=["d1"], n_folds=2)
    names |= {"public_encoders": "dinov2=/elsewhere"}

    class Public(torch.nn.Module):
        def forward(self, images):
            return images.mean((1, 2, 3))[:, None] * torch.ones(3)

    names["load_frozen"] = lambda *_: Public()
    found = []
    for name, source in after.items():
        exec(source, names)
        if name == "features":
            found.append(names["features"]["dinov2"])
            exec(source, names)
            found.append(names["features"]["dinov2"])
            break
    np.testing.assert_array_equal(*found)


def test_a_probe_says_the_settings_that_it_was_made_with(project):
    few = {"methods": ["random"], "evaluate": ["d1"], "n_folds": 2, "C": 1e-4}
    names, after = begin("03_linear_probe", **few)
    for name, source in after.items():
        if name == "write":
            names |= {"C": 1.0, "fold_seed": 7, "seed": 3, "norm": "none", "backbone": "tiny"}
        exec(source, names)
    said = read_json(project / "run" / "probe" / "random-tiny_padded-seed0" / "results.json")
    found = [said[k] for k in ("C", "fold_seed", "n_folds", "seed", "norm", "backbone")]
    assert found == [1e-4, 0, 2, 0, "batch", "tiny_padded"]


def test_supervised_folds_of_other_code_are_not_taken(project, monkeypatch):
    few = {"evaluate": ["d1"], "n_folds": 2, "batch_size": 8, "supervised_steps": 2}
    names, after = begin("03b_supervised", **few, warmup_steps=1, precision="no")
    found = []
    for code in ({"losses.py": "a"}, {"losses.py": "b"}):
        monkeypatch.setattr("wspnb.pretrain.code", lambda code=code: code)
        for name in [*after][: [*after].index("loop")]:
            exec(after[name], names)
        found.append({*names["parts"].values()})
    assert found[0] and not found[0] & found[1]


@pytest.mark.parametrize(("before", "words"), [("loop", "batch_size"), ("begin", "NoneType")])
def test_supervised_folds_are_of_the_settings_that_were_read(project, before, words):
    few = {"evaluate": ["d1"], "n_folds": 2, "batch_size": 8, "supervised_steps": 2}
    names, after = begin("03b_supervised", **few, warmup_steps=1, precision="no")
    for name, source in after.items():
        if name == before:
            names["batch_size"] = 4
            if before == "begin":  # the settings are read again, the folds are not dealt again
                exec(after["config"], names)
            with pytest.raises((ValueError, TypeError), match=words):
                exec(source, names)
            break
        exec(source, names)
    assert not list(project.glob("run/**/fit-*.csv"))


def test_scores_of_supervised_folds_keep_their_order():
    """Logits from 17 on were all 1 in float32, and patients in perfect order had an AUC of .5."""
    logits = np.array([[17.5], [18], [19], [20], [24], [26]], np.float32)
    source = cells("03b_supervised")["loop"].splitlines()
    lines = [line.strip() for line in source if "logits = " in line or "scores = pd.Data" in line]
    names = {"np": np, "pd": pd, "network": None, "store": pd.Series({"images": None})}
    names |= {"rows": np.arange(6), "held": np.arange(6)}
    names["slices"] = pd.DataFrame({"patient": [*"abcdef"]})
    names["probe"] = type("Probe", (), {"extract_features": lambda *_: logits})
    exec("\n".join(lines), names)
    assert names["scores"].score.is_monotonic_increasing and names["scores"].score.is_unique
