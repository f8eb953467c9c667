"""Notebooks on data that are not the phantom: no masks, no labels, a broken file."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from wspnb.data.slices import open_slices
from wspnb.run import main

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
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
    own = ("source=csv", f"source_dir={folder}", "workers=1")
    assert run("01_preprocess", folder, *own) == 1  # the broken one is not passed over in silence
    assert "ct 3.nii.gz" in capfd.readouterr().err
    assert run("01_preprocess", folder, *own, "allow_failed=true") == 0
    store = open_slices(folder / "cohort")
    assert sorted(store.table.patient.unique()) == ["p0", "p1", "p2"]
    assert set(store.table.selection) == {"all body slices (no mask)"}

    few = ("train_cohort=ours", "batch_size=3", "n_steps=2", "warmup_steps=1", "log_every=1")
    assert run("02_pretrain", folder, *few, "method=supcon") == 1
    assert "needs two weak labels" in capfd.readouterr().err
    assert run("02_pretrain", folder, *few, "method=depth_aware") == 0
    assert (folder / "run" / "pretrain" / "depth_aware-tiny-seed0" / "encoder.safetensors").exists()

    assert run("03_linear_probe", folder, "methods=[depth_aware]", "evaluate=[ours]") == 1
    assert "no label in cohort ['ours']" in capfd.readouterr().err
