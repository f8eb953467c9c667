"""The store: same bytes however it was written, resumable, honest about bad volumes."""

import gzip
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from wspnb.data import slices as module
from wspnb.data.slices import (
    WITHOUT_MASK,
    open_slices,
    prepare_volume,
    reader,
    write_slices,
)

FILES = ("slices.npy", "slices.csv", "failed.csv", "inventory.csv", "store.json")
SIZE = 24


def make_cohort(folder, n=6, shape=(20, 16, 12), compress=True):
    """n volumes of noise with a liver in slices 1 to 10; the last has no mask."""
    folder.mkdir(exist_ok=True)
    rows = []
    for number in range(n):
        rng = np.random.default_rng(number)
        hu = rng.integers(-500, 900, shape).astype(np.int16)
        mask = np.zeros(shape, np.uint8)
        mask[5:9, 5:9, 1:11] = 1
        affine = np.diag([-1.5, -1.5, 2.0 + number, 1])
        suffix = "nii.gz" if compress else "nii"
        nib.save(nib.Nifti1Image(hu, affine), folder / f"v{number}.{suffix}")
        nib.save(nib.Nifti1Image(mask, affine), folder / f"m{number}.{suffix}")
        rows.append(
            {
                "volume": f"v{number}.{suffix}",
                "mask": f"m{number}.{suffix}" if number < n - 1 else "",
                "patient": f"{number:03d}",
                "weak_label": number % 3 if number % 2 else "",
                "label": "" if number % 2 else number // 2 % 2,
                "cohort": "radio" if number % 2 else "d1",
                "age": 40.5 + number,
            }
        )
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


def write(csv, folder, **options):
    return write_slices(
        csv, folder, **{"image_size": SIZE, "workers": 1, "progress": False} | options
    )


def contents(folder):
    assert sorted(os.listdir(folder)) == sorted(FILES)
    return {name: (folder / name).read_bytes() for name in FILES}


def test_rows_images_and_columns(tmp_path):
    csv = make_cohort(tmp_path / "source")
    store = open_slices(write(csv, tmp_path / "store"))
    table = store.table
    assert store.images.shape == (5 * 8 + 12, SIZE, SIZE) and store.images.dtype == np.uint8
    assert isinstance(store.images, np.memmap) and not store.images.flags.writeable
    assert table.columns.tolist() == [*module.OWN_COLUMNS, "age"]
    assert table.groupby("patient").size().tolist() == [8, 8, 8, 8, 8, 12]
    assert table.weak_label.dtype == table.label.dtype == pd.Int64Dtype()
    assert table.volume.unique().tolist() == [f"v{n}.nii.gz" for n in range(6)]
    first = table[table.patient == "000"]
    assert first.z.tolist() == list(range(2, 10))
    assert first.position.tolist() == pytest.approx([k / 7 for k in range(8)], rel=1e-14)
    assert first.height_mm.tolist() == [2.0 * k for k in range(8)]
    assert first.iloc[0][["spacing_x", "spacing_y", "spacing_z"]].tolist() == [1.5, 1.5, 2.0]
    assert first.label.tolist() == [0] * 8 and first.weak_label.isna().all()
    assert first.n_kept.tolist() == [8] * 8 and first.age.tolist() == [40.5] * 8
    assert set(table.selection[table.patient == "005"]) == {WITHOUT_MASK}
    assert set(table.selection[table.patient != "005"]) == {"central 70 % of the mask"}
    images, entry = prepare_volume(
        csv.parent / "v3.nii.gz", csv.parent / "m3.nii.gz", image_size=SIZE
    )
    np.testing.assert_array_equal(store.images[table.index[table.patient == "003"]], images)
    assert entry["z"] == list(range(2, 10)) and entry["spacing"] == [1.5, 1.5, 5.0]
    settings = store.settings
    assert (settings["n_slices"], settings["n_patients"], settings["n_failed"]) == (52, 6, 0)
    assert settings["without_mask"] == 1 and len(settings["sha256"]) == 64
    assert store.failed.empty and store.failed.columns.tolist() == ["volume", "patient", "reason"]


def test_stored_bytes_are_the_windowed_voxels(tmp_path):
    """Native size, no resampling: every byte from the voxel by hand."""
    hu = np.random.default_rng(0).integers(-3024, 3071, (10, 10, 3)).astype(np.int16)
    nib.save(nib.Nifti1Image(hu, np.diag([1.0, 1, 4, 1])), tmp_path / "v.nii.gz")
    images, entry = prepare_volume(tmp_path / "v.nii.gz", image_size=10)
    assert entry["z"] == [0, 1, 2] and entry["position"] == [0, 0.5, 1]
    for z, x, y in np.ndindex(3, 10, 10):
        expected = round((min(max(int(hu[x, y, z]), -100), 400) + 100) / 500 * 255)
        assert images[z, 9 - y, 9 - x] == expected


def test_options_reach_the_volumes(tmp_path):
    csv = make_cohort(tmp_path / "source", 2)
    folder = write(csv, tmp_path / "s", fraction=1.0, convention="k/n", low=0, high=100)
    store = open_slices(folder)
    first = store.table[store.table.patient == "000"]
    assert first.z.tolist() == list(range(1, 11))
    assert first.position.tolist() == [k / 10 for k in range(10)]
    images, _ = prepare_volume(
        csv.parent / "v0.nii.gz", csv.parent / "m0.nii.gz", SIZE, 1.0, low=0, high=100
    )
    np.testing.assert_array_equal(store.images[:10], images)
    for wrong in ({"convention": "n"}, {"low": 400, "high": 0}, {"fraction": 0}, {"image_size": 0}):
        with pytest.raises(ValueError):
            write(csv, tmp_path / "other", **wrong)
    assert not (tmp_path / "other").exists()


def test_two_workers_write_the_same_bytes_as_one(tmp_path):
    csv, others = make_cohort(tmp_path / "source", 7), multiprocessing.active_children()
    one = contents(write(csv, tmp_path / "one"))
    assert contents(write(csv, tmp_path / "two", workers=2)) == one
    assert not set(multiprocessing.active_children()) - set(others)


@pytest.mark.parametrize("after", [0, 1, 4])
def test_interrupted_and_resumed_is_the_same_store(tmp_path, monkeypatch, after):
    csv = make_cohort(tmp_path / "source")
    whole = contents(write(csv, tmp_path / "whole"))
    real, calls = module.prepare_volume, []

    def stop_at(*arguments, **options):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(arguments)
        return real(*arguments, **options)

    folder = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(module, "prepare_volume", stop_at)
        with pytest.raises(KeyboardInterrupt):
            write(csv, folder)
    assert not (folder / "slices.npy").exists()
    with pytest.raises(FileNotFoundError, match=f"unfinished, {after} of 6 volumes"):
        open_slices(folder)
    with open(folder / "slices.npy.part", "ab") as file:
        file.write(b"torn")  # bytes of a volume that was being written
    with open(folder / "journal.jsonl", "ab") as file:
        file.write(b'{"z": [2, 3')
    counted = []
    monkeypatch.setattr(
        module, "prepare_volume", lambda *a, **k: counted.append(a) or real(*a, **k)
    )
    assert contents(write(csv, folder)) == whole
    assert len(counted) == 6 - after  # what was done is not done again
    assert contents(write(csv, folder)) == whole and len(counted) == 6 - after


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="looks at processes in /proc")
def test_killed_and_resumed_is_the_same_store(tmp_path):
    """SIGKILL of the writing process, two workers; they leave too."""
    csv = make_cohort(tmp_path / "source", 40, shape=(128, 128, 40))
    folder = tmp_path / "store"
    call = f"write_slices({str(csv)!r}, {str(folder)!r}, image_size=96, workers=2, progress=False)"
    code = f"from wspnb.data.slices import write_slices\nif __name__ == '__main__':\n    {call}"
    (tmp_path / "writer.py").write_text(code)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, tmp_path / "writer.py"], env=environment)
    journal = folder / "journal.jsonl"
    deadline = time.time() + 60
    while time.time() < deadline and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") > 4:
            break
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "slices.npy").exists() and journal.exists(), "killed too late"
    assert len(children) >= 2
    deadline = time.time() + 20
    while time.time() < deadline and any(map(is_running, children)):
        time.sleep(0.05)
    assert not any(map(is_running, children)), "orphaned workers"
    resumed = contents(write(csv, folder, image_size=96))
    assert resumed == contents(write(csv, tmp_path / "whole", image_size=96))


def test_bytes_lost_in_a_crash_are_done_again(tmp_path, monkeypatch):
    csv = make_cohort(tmp_path / "source")
    whole = contents(write(csv, tmp_path / "whole"))
    folder = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(module, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write(csv, folder)
    with open(folder / "slices.npy.part", "r+b") as file:
        file.seek(-9 * SIZE * SIZE, os.SEEK_END)
        file.write(bytes(100))  # pages that never reached the disk
    assert contents(write(csv, folder)) == whole


def test_other_settings_or_inputs_are_refused(tmp_path):
    csv = make_cohort(tmp_path / "source", 3)
    folder = write(csv, tmp_path / "store")
    before = contents(folder)
    with pytest.raises(ValueError, match=r"image_size 24 there, 32 asked.*overwrite=True"):
        write(csv, folder, image_size=32)
    assert contents(folder) == before
    os.utime(csv.parent / "v1.nii.gz")  # a copy is the same volume
    assert contents(write(csv, folder)) == before
    shutil.copy(csv.parent / "v2.nii.gz", csv.parent / "v1.nii.gz")
    with pytest.raises(ValueError, match="the volumes changed"):
        write(csv, folder)
    assert contents(write(csv, folder, overwrite=True))["slices.npy"] != before["slices.npy"]
    csv.write_text(csv.read_text().replace("42.5", "43.5"))
    with pytest.raises(ValueError, match="the cohort table changed"):
        write(csv, folder)


def test_a_replaced_volume_is_done_again_on_resume(tmp_path, monkeypatch):
    csv = make_cohort(tmp_path / "source", 4, compress=False)
    folder = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(module, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write(csv, folder)
    shutil.copy(csv.parent / "v2.nii", csv.parent / "v1.nii")  # same size, other content
    assert contents(write(csv, folder)) == contents(write(csv, tmp_path / "whole"))


def test_bad_volumes_are_named_and_the_rest_survives(tmp_path):
    csv = make_cohort(tmp_path / "source", 8)
    source = csv.parent
    whole = (source / "v0.nii.gz").read_bytes()
    (source / "v0.nii.gz").write_bytes(whole[: len(whole) // 2])
    (source / "v1.nii.gz").write_text("not an image")
    image = nib.load(source / "v2.nii.gz")
    broken = image.get_fdata(dtype=np.float32)
    broken[0, 0, :3] = np.nan
    nib.save(nib.Nifti1Image(broken, image.affine), source / "v2.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 3), np.int16), np.eye(4)), source / "v3.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), source / "m4.nii.gz")
    affine = nib.load(source / "v5.nii.gz").affine
    nib.save(nib.Nifti1Image(np.zeros((20, 16, 12), np.uint8), affine), source / "m5.nii.gz")
    store = open_slices(write(csv, tmp_path / "store", workers=2))
    assert store.table.patient.unique().tolist() == ["006", "007"]
    assert store.failed.patient.tolist() == [f"{n:03d}" for n in range(6)]
    assert store.failed.volume.tolist() == [f"v{n}.nii.gz" for n in range(6)]
    reasons = ["truncated", "not readable", "3 of 3840 voxels", "one 3-D", "mask of shape", "empty"]
    for reason, words in zip(store.failed.reason, reasons, strict=True):
        assert words in reason
    assert store.settings["n_failed"] == 6 and store.settings["n_volumes"] == 2
    images, _ = prepare_volume(source / "v6.nii.gz", source / "m6.nii.gz", SIZE)
    np.testing.assert_array_equal(store.images[: len(images)], images)


def test_no_usable_volume_is_an_error(tmp_path):
    csv = make_cohort(tmp_path / "source", 2)
    for n in range(2):
        (csv.parent / f"v{n}.nii.gz").write_bytes(gzip.compress(b"nothing"))
    with pytest.raises(ValueError, match=r"none of 2 volumes could be used\n.*v0"):
        write(csv, tmp_path / "store")
    make_cohort(tmp_path / "source", 2)  # repaired: the same folder works
    assert len(open_slices(write(csv, tmp_path / "store")).images) == 8 + 12


def test_bytes_of_no_known_coding_are_set_aside(tmp_path):
    csv = make_cohort(tmp_path / "source", 2)
    coded = np.random.default_rng(0).integers(0, 200, (8, 8, 4)).astype(np.uint8)
    nib.save(nib.Nifti1Image(coded, np.eye(4)), csv.parent / "v1.nii.gz")
    store = open_slices(write(csv, tmp_path / "store"))
    assert store.failed.volume.tolist() == ["v1.nii.gz"]
    assert "intensities unknown: values from 0 to 199" in store.failed.reason[0]
    inventory = pd.read_csv(tmp_path / "store" / "inventory.csv")
    assert inventory.coding.tolist() == ["HU", "unknown"] and inventory.n_kept.tolist() == [8, 0]


def test_a_store_of_an_earlier_version_gets_its_inventory(tmp_path):
    csv = make_cohort(tmp_path / "source", 3)
    folder = write(csv, tmp_path / "store")
    whole = contents(folder)
    (folder / "inventory.csv").unlink()
    assert contents(write(csv, folder)) == whole


def test_a_second_writer_is_kept_out(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    csv = make_cohort(tmp_path / "source", 1)
    (tmp_path / "store").mkdir()
    with open(tmp_path / "store" / "slices.npy.part", "a+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process"):
            write(csv, tmp_path / "store")


def test_a_column_that_would_be_overwritten_is_refused(tmp_path):
    csv = make_cohort(tmp_path / "source", 1)
    csv.write_text(csv.read_text().replace("age", "position"))
    with pytest.raises(ValueError, match=r"\['position'\].*rename"):
        write(csv, tmp_path / "store")


def test_damaged_stores_are_refused(tmp_path):
    folder = write(make_cohort(tmp_path / "source", 2), tmp_path / "store")
    with pytest.raises(FileNotFoundError, match="notebook 01"):
        open_slices(tmp_path)
    lines = (folder / "slices.csv").read_text().splitlines(keepends=True)
    (folder / "slices.csv").write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match="19 rows"):
        open_slices(folder)
    (folder / "slices.csv").write_text("".join(lines))
    open_slices(folder)
    os.truncate(folder / "slices.npy", (folder / "slices.npy").stat().st_size - 1)
    with pytest.raises(ValueError, match="damaged"):
        open_slices(folder)
    (folder / "store.json").unlink()
    with pytest.raises(ValueError, match=r"store\.json"):
        open_slices(folder)


def test_checksum_is_of_images_and_table(tmp_path):
    import hashlib

    folder = write(make_cohort(tmp_path / "source", 2), tmp_path / "store")
    content = (folder / "slices.npy").read_bytes() + (folder / "slices.csv").read_bytes()
    settings = json.loads((folder / "store.json").read_text())
    assert settings["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("hold", [None, True])
@pytest.mark.parametrize("mapped", [True, False])
def test_reader_gives_the_rows_asked_for(tmp_path, hold, mapped):
    store = open_slices(write(make_cohort(tmp_path / "source"), tmp_path / "store"))
    images = store.images if mapped else np.array(store.images)
    read = reader(images, torch.device("cpu"), hold)
    rows = np.array([5, 0, 27, 5, len(images) - 1])
    batch = read(rows)
    assert batch.dtype == torch.uint8 and batch.shape == (5, 1, SIZE, SIZE)
    np.testing.assert_array_equal(batch[:, 0], store.images[rows])
    if mapped and hold is None:
        os.truncate(store.images.filename, 1000)  # cut off behind our back
        with pytest.raises(OSError, match="slice 5 cannot be read"):
            read(rows)
