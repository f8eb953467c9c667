"""AdrenalMNIST3D as a cohort: source checked, weak label simulated as stated, same steps as CT."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests

from wspnb.data.cohort import read_cohort
from wspnb.data.slices import open_slices, write_slices
from wspnb.data.volumes import load_mask, load_volume
from wspnb.sources import adrenal
from wspnb.sources.adrenal import (
    GLAND_ML,
    fetch_adrenal,
    make_adrenal,
    simulate_weak_labels,
)

SOURCE = Path(__file__).parents[3] / "shared" / "data" / "adrenal" / "adrenalmnist3d.npz"
needs_source = pytest.mark.skipif(
    not SOURCE.exists(), reason=f"no copy of the public file in {SOURCE.parent}"
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All 1,584 glands."""
    if not SOURCE.exists():
        pytest.skip(f"no copy of the public file in {SOURCE.parent}")
    folder = tmp_path_factory.mktemp("adrenal")
    csv = make_adrenal(folder, SOURCE, progress=False)
    return csv


def test_all_patients_with_the_official_counts(whole):
    csv = whole
    table = read_cohort(csv)
    assert len(table) == table.patient.nunique() == 1584
    assert table.cohort.value_counts().to_dict() == {"train": 1188, "probe": 396}
    assert table.split.value_counts().to_dict() == {"train": 1188, "test": 298, "val": 98}
    train, probe = table[table.cohort == "train"], table[table.cohort == "probe"]
    assert train.true_label.value_counts().to_dict() == {0: 929, 1: 259}
    assert probe.label.value_counts().to_dict() == {0: 76 + 229, 1: 22 + 69}
    assert (probe.label == probe.true_label).all()
    assert train.label.isna().all() and probe.weak_label.isna().all()
    assert (train.weak_label_simulated == 1).all() and (probe.weak_label_simulated == 0).all()


def test_weak_label_has_the_stated_balanced_accuracy(whole):
    train = read_cohort(whole).query("cohort == 'train'")
    right = (train.weak_label == train.true_label).groupby(train.true_label).mean()
    assert right[0] == 1 - 167 / 929 and right[1] == 1 - 47 / 259
    assert abs(right.mean() - 0.82) < 0.001


def test_volume_is_the_published_mask(whole):
    csv = whole
    row = read_cohort(csv).iloc[7]
    with np.load(SOURCE) as source:
        shape = source["train_images"][7] > 0
    stored = nib.load(row.volume)
    assert nib.aff2axcodes(stored.affine) == ("L", "P", "S")
    assert stored.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(stored.dataobj) == 400, shape)
    hu, spacing = load_volume(row.volume)
    np.testing.assert_allclose(spacing, 64 / 28, rtol=1e-6)
    assert np.unique(hu).tolist() == [-100, 400]
    np.testing.assert_array_equal(load_mask(row["mask"], row.volume), hu == 400)
    np.testing.assert_array_equal(hu[::-1, ::-1] == 400, shape)  # LPS to RAS


@needs_source
def test_through_the_same_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(adrenal, "COUNTS", {"train": 6, "val": 4, "test": 2})
    csv = make_adrenal(tmp_path / "source", SOURCE, progress=False)
    table = read_cohort(csv)
    assert table.cohort.tolist() == ["train"] * 6 + ["probe"] * 6
    folder = write_slices(
        csv, tmp_path / "store", image_size=28, organ_ml=GLAND_ML, workers=1, progress=False
    )
    store = open_slices(folder)
    assert store.failed.empty and store.table.patient.nunique() == 12
    with np.load(SOURCE) as source:
        shape = source["train_images"][0] > 0
    inside = np.flatnonzero(shape.any((0, 1)))
    own = store.table[store.table.patient == "train_0000"]
    assert own.z.iloc[0] - inside[0] == inside[-1] - own.z.iloc[-1]  # symmetric
    for row, z in zip(own.index, own.z, strict=True):
        np.testing.assert_array_equal(store.images[row], shape[:, :, z].T * 255)


@needs_source
def test_deterministic_and_repeatable(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(adrenal, "COUNTS", {"train": 5, "val": 5, "test": 0})
    csv = make_adrenal(tmp_path, SOURCE, progress=False)
    first = csv.read_bytes()
    volume = (tmp_path / "volumes" / "train_0003.nii.gz").read_bytes()
    assert volume == (whole.parent / "volumes" / "train_0003.nii.gz").read_bytes()
    shutil.rmtree(tmp_path / "volumes")
    make_adrenal(tmp_path, SOURCE, progress=False)
    assert csv.read_bytes() == first
    assert (tmp_path / "volumes" / "train_0003.nii.gz").read_bytes() == volume
    few, every = read_cohort(csv), read_cohort(whole)
    same = every.set_index("patient").loc[few.patient]
    assert few.weak_label.fillna(-1).tolist() == same.weak_label.fillna(-1).tolist()


def test_simulated_reader():
    labels = np.repeat([0, 1], [50, 20])
    for seed in range(3):
        read = simulate_weak_labels(labels, 0.8, seed)
        assert (read[:50] == 1).sum() == 10 and (read[50:] == 0).sum() == 4
    assert (simulate_weak_labels(labels, 0.8, 0) != simulate_weak_labels(labels, 0.8, 1)).any()
    np.testing.assert_array_equal(simulate_weak_labels(labels, 1.0, 0), labels)
    with pytest.raises(ValueError, match="reader_accuracy"):
        make_adrenal("nowhere", reader_accuracy=1.5)


def test_source_is_verified(tmp_path, monkeypatch):
    wrong = tmp_path / "adrenalmnist3d.npz"
    wrong.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"md5.*not the official"):
        fetch_adrenal(tmp_path, wrong)
    with pytest.raises(FileNotFoundError, match=r"gone\.npz.*zenodo"):
        fetch_adrenal(tmp_path, tmp_path / "gone.npz")
    if SOURCE.exists():
        assert fetch_adrenal(tmp_path, SOURCE) == SOURCE
        shutil.copyfile(SOURCE, wrong)  # already in the folder: nothing is downloaded
        monkeypatch.setattr(requests.Session, "get", None)
        assert fetch_adrenal(tmp_path) == wrong


def test_a_failed_download_is_explained(tmp_path, monkeypatch):
    def refuse(_, url, **__):
        raise requests.ConnectionError(f"429 Too Many Requests {url == adrenal.URL}")

    monkeypatch.setattr(requests.Session, "get", refuse)
    with pytest.raises(ConnectionError, match=r"429 Too Many Requests True.*by hand.*\(local\)"):
        fetch_adrenal(tmp_path)
