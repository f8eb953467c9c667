"""Notebooks on data that are not the phantom, interrupted, and with methods that differ."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from wspnb.data.slices import open_slices, write_slices
from wspnb.models import resnet18
from wspnb.phantom.patients import Phantom
from wspnb.phantom.scans import make_phantom
from wspnb.run import main

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four unlabelled volumes without masks, the last of them cut off."""
    folder = tmp_path_factory.mktemp("own ct")
    rng, lines = np.random.default_rng(0), ["volume,mask,patient,weak_label,label,cohort"]
    for number in range(4):
        hu = np.full((48, 48, 6), -1000, np.int16)
        hu[8:40, 12:36] = rng.normal(60, 80, (32, 24, 6))
        affine = np.diag([-4.0, -4.0, 5.0, 1.0])
        nib.save(nib.Nifti1Image(hu, affine), folder / f"ct {number}.nii.gz")
        lines.append(f"ct {number}.nii.gz,,p{number},,,ours")
    broken = folder / "ct 3.nii.gz"
    broken.write_bytes(broken.read_bytes()[:2000])
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    return folder


def run(notebook: str, folder: Path, *pairs: str) -> int:
    where = {"cohort_dir": folder / "cohort", "run_dir": folder / "run"}
    values = [f"{name}={value}" for name, value in where.items()]
    options = [word for pair in [*values, *pairs] for word in ("-p", *pair.split("=", 1))]
    out = folder / "out" / f"{notebook}.ipynb"
    return main([str(NOTEBOOKS / f"{notebook}.ipynb"), str(out), *options])


def test_own_ct_without_masks_and_labels(folder, capfd):
    own = ("source=csv", f"source_dir={folder}", "workers=1", "train_cohort=ours", "evaluate=[]")
    assert run("01_preprocess", folder, *own) == 1  # the broken one is not passed over in silence
    said = capfd.readouterr().err
    assert "ct 3.nii.gz" in said and "allow_failed: true in the settings" in said
    assert run("01_preprocess", folder, *own, "allow_failed=true") == 0
    store = open_slices(folder / "cohort")
    assert sorted(store.table.patient.unique()) == ["p0", "p1", "p2"]
    assert set(store.table.selection) == {"all body slices (no mask)"}

    few = ("train_cohort=ours", "batch_size=3", "n_steps=2", "warmup_steps=1", "log_every=1")
    assert run("02_pretrain", folder, *few, "method=supcon") == 1
    assert "needs two weak labels" in capfd.readouterr().err
    assert run("02_pretrain", folder, *few, "method=depth_aware") == 0
    pretrained = folder / "run" / "pretrain" / "depth_aware-tiny_padded-seed0"
    assert (pretrained / "encoder.safetensors").exists()

    assert run("03_linear_probe", folder, "methods=[depth_aware]", "evaluate=[ours]") == 1
    assert "evaluate: no patient of ours has a label" in capfd.readouterr().err


@pytest.fixture(scope="module")
def small_store(tmp_path_factory) -> Path:
    """A preprocessed phantom of 32 px, 53 labelled patients."""
    folder = tmp_path_factory.mktemp("small")
    phantom = Phantom(image_size=32, spacing_mm=20)
    table = make_phantom(folder / "source", phantom, 0.005, 0.34, workers=1, progress=False)
    write_slices(table, folder / "cohort", image_size=32, workers=1, progress=False)
    return folder


def test_supervised_keeps_finished_folds_when_interrupted(small_store, capfd):
    small = ("backbone=tiny_padded", "supervised_steps=2", "n_folds=2", "evaluate=[d1]")
    probe = small_store / "run" / "probe" / "supervised-tiny_padded-seed0"
    (probe / "scores.csv").mkdir(parents=True)  # in the way of the last cell
    assert run("03b_supervised", small_store, *small) == 1
    parts = sorted(probe.glob("fit-*.csv"))
    assert [part.stem.split("-")[3] for part in parts] == ["0", "1"]
    kept = pd.read_csv(parts[0], dtype={"patient": str})
    kept.assign(score=0.123).to_csv(parts[0], index=False)
    (probe / "scores.csv").rmdir()
    assert run("03b_supervised", small_store, *small) == 0
    scores = pd.read_csv(probe / "scores.csv")
    assert (scores.score[scores.fold == 0] == 0.123).all()  # taken as it was, not trained again
    assert (scores.score[scores.fold == 1] - 0.5).abs().max() < 0.1  # barely trained
    assert not list(probe.glob("fit-*"))
    assert sorted(p.name for p in probe.iterdir()) == ["results.json", "scores.csv"]
    (probe / "fit-2026-11-28-notes.csv").write_text("mine")
    capfd.readouterr()
    assert run("03b_supervised", small_store, *small, "learning_rate=1e30", "resume=false") == 1
    assert "not finite: the training diverged" in capfd.readouterr().err
    assert [p.name for p in probe.glob("fit-*")] == ["fit-2026-11-28-notes.csv"]
    assert run("03b_supervised", small_store, *small) == 0
    assert (probe / "fit-2026-11-28-notes.csv").read_text() == "mine"


def test_supervised_network_depends_on_its_training_patients_alone(small_store, tmp_path):
    shutil.copytree(small_store / "cohort", tmp_path / "cohort")
    small = ("backbone=tiny_padded", "supervised_steps=3", "n_folds=2", "evaluate=[d1]")
    probe, scores = tmp_path / "run" / "probe" / "supervised-tiny_padded-seed0", []
    for _ in range(2):
        assert run("03b_supervised", tmp_path, *small) == 0
        scores.append(pd.read_csv(probe / "scores.csv").set_index("patient"))
        held_out = scores[0].index[scores[0].fold == 0]
        table = open_slices(tmp_path / "cohort").table
        noise = table.patient.isin(held_out[1:]).to_numpy()  # all but one of fold 0
        images = np.load(tmp_path / "cohort" / "slices.npy", mmap_mode="r+")
        images[noise] = np.random.default_rng(0).integers(0, 256, images[noise].shape)
        images.flush()
    before, after = (table.score.loc[scores[0].index] for table in scores)
    assert before[held_out[0]] == after[held_out[0]]  # its network never saw the noise
    assert (before != after)[scores[0].fold == 1].all()  # this network learnt from it
    assert (before != after)[held_out[1:]].all()


@pytest.mark.parametrize("method", ["byol", "imagenet"])
def test_methods_without_a_kernel(small_store, method, tmp_path, capfd):
    weights = resnet18(in_channels=3).state_dict()
    torch.save(weights | {"fc.weight": torch.zeros(1000, 512)}, tmp_path / "resnet18.pth")
    few = ("backbone=resnet18", "batch_size=4", "n_steps=12", "warmup_steps=1", "log_every=1")
    few += (
        "existing=replace",
        f"method={method}",
        f"imagenet_file={tmp_path / 'resnet18.pth'}",
    )
    assert run("02_pretrain", small_store, *few, "name=mine") == 0
    folder = small_store / "run" / "pretrain" / "mine-resnet18-seed0"
    config = json.loads((folder / "config.json").read_text())
    assert (config["verdict"] == "untrained") == (method == "imagenet")
    saved = load_file(folder / "encoder.safetensors")
    if method == "imagenet":
        assert torch.equal(saved["layer4.1.conv2.weight"], weights["layer4.1.conv2.weight"])
    else:
        assert len(pd.read_csv(folder / "log.csv")) == 12


def test_the_log_of_a_narrowing_sigma_is_that_of_its_steps(small_store):
    few = ("backbone=tiny_padded", "batch_size=6", "n_steps=8", "warmup_steps=1", "log_every=1")
    logs = []
    for method in ("wsp", "wsp_narrowing"):
        assert run("02_pretrain", small_store, *few, "existing=replace", f"method={method}") == 0
        folder = small_store / "run" / "pretrain" / f"{method}-tiny_padded-seed0"
        logs.append(pd.read_csv(folder / "log.csv").effective_positives)
    wider = logs[1] / logs[0]  # in the same batches
    assert wider.head(4).mean() > 1.4 and 1 <= wider.iloc[-1] < 1.15, wider
