"""The store: same bytes however it was written, resumable, honest about bad volumes."""

import contextlib
import gzip
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

from wspnb.data import part, quality
from wspnb.data import slices as module
from wspnb.data import store as store_module
from wspnb.data.cohort import file_stamp
from wspnb.data.masks import LIVER_ML
from wspnb.data.slices import (
    WITHOUT_MASK,
    open_slices,
    prepare_volume,
    reader,
    verify_store,
    write_slices,
)
from wspnb.data.store import main as store_main
from wspnb.files import alone

FILES = ("slices.npy", "slices.csv", "failed.csv", "inventory.csv", "store.json", "pictures.npy")
SIZE = 24
PLACE = np.diag([2.0, 2.0, 3.0, 1])
SMALL = {"organ_ml": (0, 6000)}  # the drawn organs have a few ml


def make_cohort(folder, n=6, shape=(20, 16, 12), compress=True):
    """n volumes of noise with a liver in slices 1 to 10; the last has no mask."""
    folder.mkdir(parents=True, exist_ok=True)
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
        csv, folder, **SMALL | {"image_size": SIZE, "workers": 1, "progress": False} | options
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
    assert table.columns.tolist() == [*part.OWN_COLUMNS, "age"]
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
        csv.parent / "v3.nii.gz", csv.parent / "m3.nii.gz", image_size=SIZE, **SMALL
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
        csv.parent / "v0.nii.gz", csv.parent / "m0.nii.gz", SIZE, 1.0, low=0, high=100, **SMALL
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
    (folder / "slices.part" / f"{after:05d}.npz").write_bytes(b"PK\3\4torn")  # by a power cut
    (folder / "slices.part" / f".tmp-{2**22}-{after:05d}.npz").write_bytes(b"being written")
    counted = []
    monkeypatch.setattr(
        module, "prepare_volume", lambda *a, **k: counted.append(a) or real(*a, **k)
    )
    assert contents(write(csv, folder)) == whole
    assert len(counted) == 6 - after  # what was done is not done again
    assert contents(write(csv, folder)) == whole and len(counted) == 6 - after


@pytest.mark.parametrize("line", [b"hello\n", b'{"settings": {\n', b"[]\n", b"\0\0\n"])
def test_what_was_begun_with_settings_that_are_damaged_is_begun_anew(tmp_path, line):
    csv = make_cohort(tmp_path, 2)
    whole = contents(write(csv, tmp_path / "whole"))
    (tmp_path / "store" / "slices.part").mkdir(parents=True)
    (tmp_path / "store" / "slices.part" / "settings.json").write_bytes(line)
    assert contents(write(csv, tmp_path / "store")) == whole


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
    call = f"write_slices({str(csv)!r}, {str(folder)!r}, image_size=96, workers=2, progress=False"
    call += ", organ_ml=(0, 6000))"
    code = f"from wspnb.data.slices import write_slices\nif __name__ == '__main__':\n    {call}"
    (tmp_path / "writer.py").write_text(code)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, tmp_path / "writer.py"], env=environment)
    parts = folder / "slices.part"
    deadline = time.time() + 60
    while time.time() < deadline and process.poll() is None:
        if len(list(parts.glob("[0-9]*.npz"))) > 3:
            break
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "slices.npy").exists() and parts.exists(), "killed too late"
    assert len(children) >= 2
    deadline = time.time() + 60
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
    with open(folder / "slices.part" / "00004.npz", "r+b") as file:
        file.seek(4 * SIZE * SIZE)
        file.write(bytes(100))  # pages that never reached the disk
    assert contents(write(csv, folder)) == whole


def test_parts_of_an_earlier_version_are_done_again(tmp_path, monkeypatch):
    """Hashes of two kinds side by side would not find a scan that is there twice."""
    csv, prepare, done = make_cohort(tmp_path / "source", 4), module.prepare_volume, []

    def watched(volume, *given, **options):
        done.append(Path(volume).name)
        return prepare(volume, *given, **options)

    monkeypatch.setattr(module, "prepare_volume", watched)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write(csv, tmp_path / "store")
        first = tmp_path / "store" / "slices.part" / "00000.npz"
        entry = next(module.part.read_parts([first], "entry"))
        images, picture = (next(module.part.read_parts([first], n)) for n in ("images", "picture"))
        patch.setattr(module.part, "MADE", 1)
        module.part.write_part(first, images, picture, entry)
    done.clear()
    write(csv, tmp_path / "store")
    assert done == ["v0.nii.gz"]


def test_other_settings_or_inputs_are_refused(tmp_path):
    csv = make_cohort(tmp_path / "source", 3)
    folder = write(csv, tmp_path / "store")
    before = contents(folder)
    with pytest.raises(ValueError, match=r"image_size: 24 there, 32 now.*overwrite=True"):
        write(csv, folder, image_size=32)
    assert contents(folder) == before
    os.utime(csv.parent / "v1.nii.gz")  # a copy is the same volume
    assert contents(write(csv, folder)) == before
    shutil.copy(csv.parent / "v2.nii.gz", csv.parent / "v1.nii.gz")
    with pytest.raises(ValueError, match="the volumes changed"):
        write(csv, folder)
    assert contents(write(csv, folder, overwrite=True))["slices.npy"] != before["slices.npy"]
    csv.write_text(csv.read_text().replace(",002,", ",003,"))  # whose it is
    with pytest.raises(ValueError, match="the cohort table changed"):
        write(csv, folder)


def test_a_corrected_label_is_joined_and_no_image_is_made_again(tmp_path, monkeypatch):
    csv = make_cohort(tmp_path / "source", 4)
    (tmp_path / "source" / "v2.nii.gz").write_text("not an image")
    folder = write(csv, tmp_path / "store")
    before = contents(folder)
    monkeypatch.setattr(module, "_prepare", None)  # any volume would fail
    rows = pd.read_csv(csv, dtype=str, keep_default_na=False)
    assert rows.label.tolist() == ["0", "", "1", ""]
    rows.loc[0, ["label", "age"]] = ["1", "99.5"]
    rows.loc[3, ["weak_label", "cohort"]] = ["", "d2"]
    os.rename(csv.parent / "v1.nii.gz", csv.parent / "w1.nii.gz")  # the same content
    rows.loc[1, "volume"] = "w1.nii.gz"
    rows.to_csv(csv, index=False)
    for overwrite in (False, True):
        store = open_slices(write(csv, folder, overwrite=overwrite))
        own = store.table.drop_duplicates("patient").set_index("patient")
        assert own.label.tolist() == [1, pd.NA, pd.NA] and own.age.tolist() == [99.5, 41.5, 43.5]
        assert own.weak_label.tolist()[:2] == [pd.NA, 1] and own.cohort["003"] == "d2"
        assert own.volume["001"] == "w1.nii.gz" and store.failed.volume.tolist() == ["v2.nii.gz"]
    after = contents(folder)
    assert (
        after["slices.npy"] == before["slices.npy"] and after["slices.csv"] != before["slices.csv"]
    )
    old, new = (json.loads(c["store.json"]) for c in (before, after))
    assert old["sha256"] == new["sha256"] and old["tables"] != new["tables"]
    verify_store(folder)
    rows.loc[0, ["label", "age"]] = ["0", "40.5"]
    rows.loc[3, ["weak_label", "cohort"]] = ["0", "radio"]
    os.rename(csv.parent / "w1.nii.gz", csv.parent / "v1.nii.gz")
    rows.loc[1, "volume"] = "v1.nii.gz"
    rows.to_csv(csv, index=False)
    assert contents(write(csv, folder)) == before


def test_livers_of_odd_height_ends_or_tails_are_named(tmp_path):
    """No warning for one that is round, and one each for a stack too tall and a thread."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (30, 30, 26)), indexing="ij")
    ball = (x / 0.7) ** 2 + (y / 0.7) ** 2 + (z / 0.8) ** 2 < 1
    thread = ball.copy()
    thread[:, :, :8] = False
    thread[14, 14, 1:12] = True
    words = {"round": "", "tall": "mask_mm", "thread": "mask_tail_mm"}
    masks_of = {"round": ball, "tall": ball, "thread": thread}
    for name, word in words.items():
        folder = tmp_path / name
        folder.mkdir()
        affine = np.diag([-7.0, -7.0, 16.0 if name == "tall" else 8.0, 1])
        hu = np.random.default_rng(0).normal(60, 10, ball.shape) - 1060 * (abs(x) > 0.9)
        nib.save(nib.Nifti1Image(hu.astype(np.int16), affine), folder / "v.nii")
        nib.save(nib.Nifti1Image(masks_of[name].astype(np.uint8), affine), folder / "m.nii")
        (folder / "cohort.csv").write_text(
            "volume,mask,patient,weak_label,label,cohort\nv.nii,m.nii,p,1,,r\n"
        )
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            write(folder / "cohort.csv", folder / "store", organ_ml=LIVER_ML)
        told = [str(w.message) for w in said if "mask" in str(w.message)]
        assert [word in text for text in told] == ([True] if word else []), (name, told)


def test_an_organ_below_slices_of_padding_is_cut_off(tmp_path):
    csv = make_cohort(tmp_path, 2)
    image = nib.load(tmp_path / "v0.nii.gz")
    hu = np.asanyarray(image.dataobj).copy()
    hu[:, :, 11:] = -1024  # the mask ends in slice 10
    nib.save(nib.Nifti1Image(hu, image.affine), tmp_path / "v0.nii.gz")
    write(csv, tmp_path / "store", organ_ml=(0, LIVER_ML[1]))
    listed = pd.read_csv(tmp_path / "store" / "inventory.csv")
    assert listed.mask_cut.fillna("").tolist() == ["top", ""]


def test_pictures_show_the_mask_and_what_is_kept(tmp_path):
    csv = make_cohort(tmp_path / "source", 4)
    (tmp_path / "source" / "v2.nii.gz").write_text("not an image")
    folder = write(csv, tmp_path / "store")
    pictures = np.load(folder / "pictures.npy")
    assert pictures.shape == (4, 96, 96, 3) and not pictures[2].any()
    orange, blue = ((pictures == colour).all(-1) for colour in (quality.OUTLINE, quality.BAND))
    # 20 x 1.5 mm wide, 12 x 2 mm high in a square of 30 mm, one slice below its upper edge; the
    # liver lies between 2 and 22 mm of the 24.
    rows = np.flatnonzero(orange[0].any(1)) * 30 / 96
    assert abs(rows[0] - 4) < 0.5 and abs(rows[-1] - 24) < 0.5
    columns = np.flatnonzero(orange[0].any(0)) * 30 / 96
    assert abs(columns[0] - 7.5) < 0.7 and abs(columns[-1] - 13.5) < 0.7
    assert blue[0].sum() > 96 and not orange[3].any() and blue[3].any()  # the last has no mask


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
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 3), np.int16), PLACE), source / "v3.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), PLACE), source / "m4.nii.gz")
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
    images, _ = prepare_volume(source / "v6.nii.gz", source / "m6.nii.gz", SIZE, **SMALL)
    np.testing.assert_array_equal(store.images[: len(images)], images)


def test_a_volume_and_a_mask_that_are_both_bad_are_named_at_once(tmp_path):
    csv = make_cohort(tmp_path)
    table = pd.read_csv(csv, dtype=str)
    for column in ("volume", "mask"):
        (tmp_path / f"{column}.nii").write_bytes(b"NRRD0005\n")
        table.loc[0, column] = f"{column}.nii"
    table.to_csv(csv, index=False)
    reason = open_slices(write(csv, tmp_path / "store")).failed.reason[0]
    assert re.search(r"volume\.nii: a NRRD.*; .*mask\.nii: a NRRD", reason)


def test_no_usable_volume_is_an_error(tmp_path):
    csv = make_cohort(tmp_path / "source", 2)
    for n in range(2):
        (csv.parent / f"v{n}.nii.gz").write_bytes(gzip.compress(b"nothing"))
    with pytest.raises(
        ValueError, match=r"none of 2 volumes could be used\n  \S+: .*v0\.nii\.gz: "
    ):
        write(csv, tmp_path / "store")
    make_cohort(tmp_path / "source", 2)  # repaired: the same folder works
    assert len(open_slices(write(csv, tmp_path / "store")).images) == 8 + 12


def test_bytes_of_no_known_coding_are_set_aside(tmp_path):
    csv = make_cohort(tmp_path / "source", 2)
    coded = np.random.default_rng(0).integers(0, 200, (8, 8, 4)).astype(np.uint8)
    nib.save(nib.Nifti1Image(coded, PLACE), csv.parent / "v1.nii.gz")
    store = open_slices(write(csv, tmp_path / "store"))
    assert store.failed.volume.tolist() == ["v1.nii.gz"]
    assert "intensities unknown: values from 0 to 199" in store.failed.reason[0]
    inventory = pd.read_csv(tmp_path / "store" / "inventory.csv")
    assert inventory.coding.tolist() == ["HU", "unknown"] and inventory.n_kept.tolist() == [8, 0]


def test_a_second_writer_is_kept_out(tmp_path):
    pytest.importorskip("fcntl")
    csv = make_cohort(tmp_path / "source", 1)
    with alone(tmp_path / "store" / "slices.npy"):
        with pytest.raises(BlockingIOError, match=f"process {os.getpid()} is at work on it"):
            write(csv, tmp_path / "store")
    assert len(open_slices(write(csv, tmp_path / "store")).images) == 12


def test_a_column_that_would_be_overwritten_is_refused(tmp_path):
    csv = make_cohort(tmp_path / "source", 1)
    csv.write_text(csv.read_text().replace("age", "position"))
    with pytest.raises(ValueError, match=r"\['position'\].*rename"):
        write(csv, tmp_path / "store")


def test_damaged_stores_are_refused(tmp_path):
    folder = write(make_cohort(tmp_path / "source", 2), tmp_path / "store")
    with pytest.raises(FileNotFoundError, match="notebook 01"):
        open_slices(tmp_path)
    kept = {name: (folder / name).read_bytes() for name in FILES}

    def refused(name, content, words):
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=words) as error:
            open_slices(folder)
        assert str(folder) in str(error.value)
        (folder / name).write_bytes(kept[name])
        open_slices(folder)

    lines = kept["slices.csv"].splitlines(keepends=True)
    refused("slices.csv", b"".join(lines[:-1]), "slices.csv: not as it was written")
    refused("slices.csv", kept["slices.csv"].replace(b",d1,", b",d2,"), "not as it was written")
    refused("failed.csv", b"", "failed.csv: not as it was written")
    refused("inventory.csv", kept["inventory.csv"][:-9], "inventory.csv: not as it was written")
    refused("slices.npy", kept["slices.npy"][:-1], "damaged")
    refused("slices.npy", b"", "damaged")
    refused("store.json", kept["store.json"][:-9], "store.json: damaged")
    refused("store.json", b"[1]", "store.json: damaged")
    refused("store.json", kept["store.json"].replace(b"400.0", b"300.0"), "was edited or damaged")
    newer = kept["store.json"].replace(b'"format": 2', b'"format": 9')
    refused("store.json", newer, "a store of format 9, not 2 .*: delete this folder and preprocess")
    (folder / "store.json").unlink()
    with pytest.raises(ValueError, match=r"store\.json"):
        open_slices(folder)


def test_every_byte_is_verified_where_it_is_asked_for(tmp_path, capsys):
    """One pixel: opening looks at sizes and tables only, the rest finds it."""
    csv = make_cohort(tmp_path / "source", 2)
    folder = write(csv, tmp_path / "store")
    assert len(verify_store(folder).images) == 20 and store_main([str(folder)]) == 0
    whole = (folder / "slices.npy").read_bytes()
    (folder / "slices.npy").write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
    open_slices(folder)
    words = "slices.npy: not the bytes that were written"
    with pytest.raises(ValueError, match=words):
        verify_store(folder)
    with pytest.raises(ValueError, match=words):  # not called complete either
        write(csv, folder)
    assert store_main([str(tmp_path), str(folder)]) == 1
    assert words in capsys.readouterr().err
    assert len(verify_store(write(csv, folder, overwrite=True)).images) == 20


def test_content_decides_what_is_unchanged(tmp_path):
    """An uncompressed volume with another voxel: same size, same date."""
    csv = make_cohort(tmp_path / "source", 2, compress=False)
    folder, volume = write(csv, tmp_path / "store"), csv.parent / "v1.nii"
    before, date = volume.read_bytes(), volume.stat().st_mtime_ns
    os.utime(volume)  # another date only
    write(csv, folder)
    volume.write_bytes(before[:400] + bytes([before[400] ^ 1]) + before[401:])
    os.utime(volume, ns=(date, date))
    with pytest.raises(ValueError, match="the volumes changed"):
        write(csv, folder)


def test_stamp_of_packed_files_of_one_and_of_several_members(tmp_path):
    """Blocked gzip ends in an empty member, whose checksum says nothing of the rest."""
    file, parts = tmp_path / "v.nii.gz", [bytes(9000), bytes(8000) + b"x" * 1000]
    whole = [gzip.compress(part, mtime=0) for part in parts]
    end = gzip.compress(b"", mtime=0)
    stamps = []
    for content in (whole[0], whole[1], whole[0] + end, whole[1] + end):
        file.write_bytes(content)
        stamps.append(tuple(file_stamp(str(file))))
    assert len(set(stamps)) == 4
    noise = np.random.default_rng(0).bytes(5 << 18)
    large = gzip.compress(noise + bytes(1 << 20), 1, mtime=0)
    for last in (b"1", b"2"):  # its own checksum, at its end, is enough
        file.write_bytes(large[:-8] + last * 4 + large[-4:])
        stamps.append(tuple(file_stamp(str(file))))
    assert stamps[-1] == (len(large), (b"2" * 4 + large[-4:]).hex()) != stamps[-2]
    assert file_stamp("") == [] and file_stamp(str(tmp_path)) == ["not readable"]
    hidden = set()  # stored as it is, alone or as a header in a member of its own: CRC-32 is equal
    for text in (b"2.5", b"5.0"):
        for rest in (b"", gzip.compress(noise + bytes(2 << 20), 1, mtime=0)):
            file.write_bytes(gzip.compress(text * 100, 0, mtime=0) + rest)
            hidden.add(tuple(file_stamp(str(file))))
    assert len(hidden) == 4


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="stands in for a bad disk")
def test_a_file_that_opens_but_cannot_be_read_is_set_aside(tmp_path):
    csv = make_cohort(tmp_path / "source", 3)
    for name in ("v0.nii.gz", "m1.nii.gz"):
        (csv.parent / name).unlink()
        (csv.parent / name).symlink_to("/proc/self/mem")
    store = open_slices(write(csv, tmp_path / "store"))
    assert store.failed.volume.tolist() == ["v0.nii.gz", "v1.nii.gz"]
    for name, reason in zip(("v0.nii.gz", "m1.nii.gz"), store.failed.reason, strict=True):
        assert name in reason
    assert set(store.table.patient) == {"002"}


def test_an_error_nobody_thought_of_sets_one_volume_aside(tmp_path, monkeypatch):
    csv, real = make_cohort(tmp_path / "source", 3), module.prepare_volume

    def odd(volume, *arguments, **options):
        if "v1" in volume:
            raise KeyError("odd")
        return real(volume, *arguments, **options)

    monkeypatch.setattr(module, "prepare_volume", odd)
    store = open_slices(write(csv, tmp_path / "store"))
    assert store.failed.volume.tolist() == ["v1.nii.gz"]
    assert "v1.nii.gz: cannot be used (KeyError('odd'))" in store.failed.reason[0]

    def full(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(module, "prepare_volume", full)
    with pytest.raises(RuntimeError, match=r"v0.nii.gz: not enough memory: call again"):
        write(csv, tmp_path / "other")


def test_what_a_kill_left_in_a_finished_store_goes(tmp_path):
    csv = make_cohort(tmp_path / "source", 2)
    before = contents(write(csv, tmp_path / "store"))
    (tmp_path / "store" / "slices.part").mkdir()
    for name in ("settings.json", "00000.npz", ".tmp-1-00001.npz"):
        (tmp_path / "store" / "slices.part" / name).write_bytes(b"left")
    assert contents(write(csv, tmp_path / "store")) == before


def test_a_project_can_move_and_its_copy_is_the_same_store(tmp_path):
    """Volumes outside the table's folder, as notebook 01b leaves them."""
    stores = []
    for place in (tmp_path / "here", tmp_path / "there"):
        make_cohort(place / "project" / "data", 2)
        table = (place / "project" / "data" / "cohort.csv").read_text()
        (place / "project" / "runs").mkdir()
        csv = place / "project" / "runs" / "cohort.csv"
        csv.write_text(table.replace("v0", "../data/v0").replace("m0", "../data/m0"))
        shutil.copy(place / "project" / "data" / "v1.nii.gz", place / "project" / "runs")
        stores.append(contents(write(csv, place / "project" / "store")))
    assert stores[0] == stores[1] and b"../data/v0.nii.gz" in stores[0]["slices.csv"]
    (tmp_path / "here").rename(tmp_path / "moved")
    csv = tmp_path / "moved" / "project" / "runs" / "cohort.csv"
    assert contents(write(csv, tmp_path / "moved" / "project" / "store")) == stores[0]


def test_checksum_is_of_the_images_and_not_of_their_labels(tmp_path):
    sums = []
    for number, (label, first) in enumerate([("0", b"\0"), ("1", b"\0"), ("0", b"\1")]):
        csv = make_cohort(tmp_path / f"source{number}", 2)
        table = pd.read_csv(csv, dtype=str, keep_default_na=False)
        table.assign(label=label).to_csv(csv, index=False)
        folder = write(csv, tmp_path / f"store{number}")
        verify_store(folder)
        sums.append(json.loads((folder / "store.json").read_text())["sha256"])
        with (folder / "slices.npy").open("r+b") as images:
            images.seek(-1, os.SEEK_END)
            last = images.read(1)
            images.seek(-1, os.SEEK_END)
            images.write(bytes([last[0] ^ first[0]]))
        if first != b"\0":
            with pytest.raises(ValueError):
                verify_store(folder)
    assert sums[0] == sums[1] == sums[2]


def test_reader_of_a_part_of_a_map_reads_that_part(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (9, 6, 6), dtype=np.uint8)
    np.save(tmp_path / "slices.npy", images)
    mapped = np.load(tmp_path / "slices.npy", mmap_mode="r")
    pairs = [(mapped[2:], images[2:]), (mapped[::2], images[::2]), (mapped, images)]
    for some, whole in pairs:
        for rows in ([0, 3], [-1]):
            found = reader(some, torch.device("cpu"))(np.array(rows))
            assert np.array_equal(found[:, 0].numpy(), whole[rows])
        with pytest.raises(IndexError):
            reader(some, torch.device("cpu"))([len(whole)])


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("value", [np.float32(0.9), np.int16(-100)])
def test_reader_refuses_what_would_be_other_bytes(value, hold):
    with pytest.raises(ValueError, match=f"^images of {value.dtype}: give uint8, 0 to 255"):
        reader(np.full((3, 4, 4), value), torch.device("cpu"), hold)


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
    few = np.resize(rows, len(images)).astype(np.uint8)  # as many as bools would be
    np.testing.assert_array_equal(read(few)[:, 0], store.images[few.astype(int)])
    if mapped and hold is None:
        os.truncate(store.images.filename, 1000)  # cut off behind our back
        with pytest.raises(OSError, match="slice 5 cannot be read"):
            read(rows)


def test_a_volume_that_is_turned_against_the_body_is_named(tmp_path):
    csv = make_cohort(tmp_path)
    tilt = np.deg2rad(30)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    for name in ("v2.nii.gz", "m2.nii.gz"):
        image = nib.load(tmp_path / name)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), turn @ image.affine), tmp_path / name)
    with pytest.warns(
        UserWarning, match=r"1 volumes, such as v2\.nii\.gz, are turned by more than"
    ):
        write(csv, tmp_path / "store")


def test_slices_of_one_value_and_copies_of_a_mask_are_warned_of(tmp_path):
    csv = make_cohort(tmp_path / "source", 4)
    image = nib.load(tmp_path / "source" / "v1.nii.gz")
    hu = np.asarray(image.dataobj).copy()
    hu[:, :, 5] = 40
    nib.save(nib.Nifti1Image(hu, image.affine), tmp_path / "source" / "v1.nii.gz")
    odd = np.asarray(nib.load(tmp_path / "source" / "v3.nii.gz").dataobj).copy()
    odd[:, :8, 5], odd[:, :, 7], odd[:, :, 8] = -1024, odd[:, :, 6], odd[:, :, 8] + 1024
    nib.save(nib.Nifti1Image(odd, image.affine), tmp_path / "source" / "v3.nii.gz")
    table = pd.read_csv(csv, dtype=str)
    for name in ("v0", "m0"):  # patient 2 gets the grid of patient 0, and a copy of the mask
        shutil.copy(tmp_path / "source" / f"{name}.nii.gz", tmp_path / "source" / f"{name}b.nii.gz")
    table.loc[2, ["volume", "mask"]] = "v0b.nii.gz", "m0b.nii.gz"
    rng = np.random.default_rng(9)
    other = nib.load(tmp_path / "source" / "v0b.nii.gz")
    noise = rng.integers(-500, 900, other.shape).astype(np.int16)
    elsewhere = other.affine.copy()  # a loop over patients that forgot to renew the mask
    elsewhere[:3, 3] += (3, -7, 12)
    nib.save(nib.Nifti1Image(noise, elsewhere), tmp_path / "source" / "v0b.nii.gz")
    mask = np.asarray(nib.load(tmp_path / "source" / "m0.nii.gz").dataobj)
    nib.save(nib.Nifti1Image(mask, elsewhere), tmp_path / "source" / "m0b.nii.gz")
    table.to_csv(csv, index=False)
    with pytest.warns(UserWarning) as said:
        write(csv, tmp_path / "store")
    with pytest.warns(UserWarning) as again:  # by the experiment, whose first part is step 5
        write(csv, tmp_path / "store")
    assert [str(w.message) for w in again] == [str(w.message) for w in said]
    said = " ".join(str(warning.message) for warning in said)
    assert "the masks of 000, 001, 002 are the same, voxel by voxel" in said
    assert "2 volumes, such as v1.nii.gz, have kept slices of one value only" in said
    assert "1 volumes, such as v3.nii.gz, have kept slices that are the same as the one bel" in said
    assert "CT, such as v3.nii.gz, change by more than 500 HU from one slice to the next" in said
    found = pd.read_csv(tmp_path / "store" / "inventory.csv").set_index("volume")
    assert found.flat_slices.tolist() == [0, 1, 0, 1]
    assert found.repeated_slices.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("change", "apart", "weave"),
    [("", 0, 0), ("by name", 3, 0), ("appended", 26, 0), ("woven", 0, 60), ("noise", 0, 0)],
)
def test_slices_out_of_order_or_of_two_phases_are_named(tmp_path, change, apart, weave):
    """Sorted by name (1, 10, 11, ..., 2), a phase behind another, or two phases in turn."""
    rng = np.random.default_rng(0)
    hu = 800 * ndimage.gaussian_filter(rng.normal(size=(64, 64, 30)), 4) * 15
    hu[:8] = -1000
    hu += rng.normal(0, 100 if change == "noise" else 5, hu.shape)
    second, step = hu + 60 * (hu > -200), 0.6 if change == "noise" else 5.0
    if change == "by name":
        hu = hu[:, :, [int(k) - 1 for k in sorted(map(str, range(1, 31)))]]
    if change == "appended":
        hu = np.concatenate([hu[:, :, ::2], second[:, :, ::2]], 2)
    if change == "woven":
        hu[:, :, 1::2] = second[:, :, 1::2]
    affine, mask = np.diag([-4, -4, step, 1]), np.zeros(hu.shape, np.uint8)
    mask[16:40, 16:40] = 1
    for name, array in (("v", hu.round().astype(np.int16)), ("m", mask)):
        nib.save(nib.Nifti1Image(array, affine), tmp_path / f"{name}.nii.gz")
    (tmp_path / "c.csv").write_text(
        "volume,mask,patient,weak_label,label,cohort\nv.nii.gz,m.nii.gz,p,0,,radio\n"
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        write_slices(tmp_path / "c.csv", tmp_path / "s", 32, 1.0, workers=1, progress=False)
    found = pd.read_csv(tmp_path / "s" / "inventory.csv").iloc[0]
    assert found.slices_apart == apart and found.slice_weave == pytest.approx(weave, abs=8)
    said = " ".join(str(warning.message) for warning in said)
    assert ("slices_apart" in said) == (apart > 0) and ("slice_weave" in said) == (weave > 0)


@pytest.mark.parametrize(
    ("value", "warned"), [(0, True), (60, True), (-1024, False), (None, False)]
)
@pytest.mark.parametrize("side", ["round", "left", "tilted"])
def test_corners_of_one_value_that_is_no_air_are_warned_of(tmp_path, value, warned, side):
    """Round fields of view, whose outside an export has filled; a side that a shift has left; two
    wedges of some slices, 3 % of what is kept, where a tilted head or body was set upright."""
    csv = make_cohort(tmp_path / "source", 2)
    image = nib.load(tmp_path / "source" / "v1.nii.gz")
    hu = np.asarray(image.dataobj).copy()
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in hu.shape[:2]), indexing="ij")
    outside = np.hypot(x, y)[:, :, None] > 1.1 if side == "round" else (x < -0.8)[:, :, None]
    outside = np.broadcast_to(outside, hu.shape)
    if side == "tilted":
        z = np.linspace(-1, 1, hu.shape[2])
        outside = np.abs(y[:, :, None] + 0.1 * z) > 1.04
    if value is not None:
        hu[outside] = value
        hu[-1, -1, hu.shape[2] // 2] = 3000  # a letter burnt in
    nib.save(nib.Nifti1Image(hu, image.affine), tmp_path / "source" / "v1.nii.gz")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        write(csv, tmp_path / "store")
    words = "1 CT, such as v1.nii.gz, are filled at the corners with one value"
    assert (words in " ".join(str(warning.message) for warning in said)) is warned
    found = pd.read_csv(tmp_path / "store" / "inventory.csv")
    assert (found.corner_hu.tolist()[1] == value) if warned else "corner_hu" not in found


def test_stacks_that_are_not_axial_are_warned_of_by_their_pixels(tmp_path):
    csv = make_cohort(tmp_path / "source", 2)
    for name in ("v1", "m1"):
        image = nib.load(tmp_path / "source" / f"{name}.nii.gz")
        affine = image.affine @ np.diag([1, 4, 1, 1])
        nib.save(nib.Nifti1Image(image.get_fdata().astype(np.int16), affine), image.get_filename())
    with pytest.warns(UserWarning, match=r"1 volumes, such as v1\.nii\.gz, have pixels longer"):
        write(csv, tmp_path / "store")


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ImportError("no pyzstd")])
@pytest.mark.parametrize("stopped", [False, True])
def test_what_the_drive_or_a_package_did_not_give_is_tried_again(
    tmp_path, monkeypatch, error, stopped
):
    csv, prepare = make_cohort(tmp_path / "source", 4), module.prepare_volume

    def away(volume, *given, **options):
        if volume.endswith("v1.nii.gz"):
            raise ValueError(f"{volume}: not readable") from error
        if stopped and volume.endswith("v3.nii.gz"):
            raise KeyboardInterrupt
        return prepare(volume, *given, **options)

    monkeypatch.setattr(module, "prepare_volume", away)
    with contextlib.suppress(KeyboardInterrupt):
        write(csv, tmp_path / "store")
    done = []

    def watched(volume, *given, **options):
        done.append(Path(volume).name)
        return prepare(volume, *given, **options)

    monkeypatch.setattr(module, "prepare_volume", watched)
    write(csv, tmp_path / "store")
    assert done == ["v1.nii.gz"] + ["v3.nii.gz"] * stopped
    assert not len(open_slices(tmp_path / "store").failed)
    write(csv, tmp_path / "plain")
    assert contents(tmp_path / "store") == contents(tmp_path / "plain")
    write(csv, tmp_path / "store")
    assert len(done) == 5 + stopped


def test_ct_that_was_cut_above_is_named(tmp_path):
    csv = make_cohort(tmp_path / "source", 2)
    image = nib.load(file := tmp_path / "source" / "v1.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj).clip(-160, 240), image.affine), file)
    with pytest.warns(UserWarning, match=r"1 CT, such as v1.nii.gz, were cut above .*to 400 HU"):
        write(csv, tmp_path / "store")


def test_reasons_name_files_as_the_table_does_wherever_it_lies(tmp_path):
    csv = make_cohort(tmp_path / "one" / "source")
    (csv.parent / "v3.nii.gz").write_bytes(b"no volume")
    write(csv, tmp_path / "one" / "store")
    shutil.copytree(tmp_path / "one" / "source", tmp_path / "two" / "source")
    write(tmp_path / "two" / "source" / "cohort.csv", tmp_path / "two" / "store")
    one, two = (
        {name: (tmp_path / where / "store" / name).read_text() for name in FILES if "csv" in name}
        for where in ("one", "two")
    )
    assert one == two and "v3.nii.gz" in one["failed.csv"] and str(tmp_path) not in str(one)


@pytest.mark.parametrize("written", range(4))
def test_labels_put_in_place_and_killed_between_two_tables(tmp_path, monkeypatch, written):
    csv, left = make_cohort(tmp_path / "source"), [written]
    write(csv, tmp_path / "store")
    before = (tmp_path / "store" / "slices.npy").stat().st_mtime_ns

    def stop(real):
        def call(*args, **more):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return real(*args, **more)

        return call

    csv.write_text(csv.read_text().replace("radio", "radiology"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        for name in ("write_csv", "write_text"):
            patch.setattr(store_module, name, stop(getattr(store_module, name)))
        write(csv, tmp_path / "store")
    store = open_slices(write(csv, tmp_path / "store"))
    assert set(store.table.cohort) == {"d1", "radiology"}
    assert (tmp_path / "store" / "slices.npy").stat().st_mtime_ns == before
    contents(tmp_path / "store")  # nothing is left that would let an edited table pass


def test_a_store_of_other_settings_is_never_beside_the_images_of_before(tmp_path, monkeypatch):
    table = open_slices(write(make_cohort(tmp_path / "source"), tmp_path / "store")).table
    images = np.zeros((len(table), SIZE, SIZE), np.uint8)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        real = store_module.write_text

        def killed(*args, **more):
            real(*args, **more)
            raise KeyboardInterrupt

        patch.setattr(store_module, "write_text", killed)
        store_module.write_store(tmp_path / "store", [images], table, SIZE, noise=2)
    assert not store_module.holds(tmp_path / "store", {"noise": 2})
    store_module.write_store(tmp_path / "store", [images], table, SIZE, noise=2)
    assert store_module.holds(tmp_path / "store", {"noise": 2})


@pytest.mark.parametrize("low", [-100, -250])
def test_air_of_a_ct_that_is_cut_below_is_air(tmp_path, low):
    """HU from -100 on, as bytes of the window have it too: a bare table is no body, a mask on air
    no liver's, and the middle of the body does not depend on the field."""
    rng = np.random.default_rng(0)
    hu = np.full((60, 40, 16), -1000, np.int16)
    hu[5:35, 5:35, 3:13] = rng.integers(20, 80, (30, 30, 10))
    hu[:, 38:, :] = 200  # the table, 5 %
    hu = np.clip(hu, low, 400)
    liver = np.zeros(hu.shape, np.uint8)
    liver[8:18, 8:28, 4:12] = 1
    air = np.zeros(hu.shape, np.uint8)
    air[40:58, 5:35, 4:12] = 1
    for name, image in (("hu", hu), ("liver", liver), ("air", air)):
        nib.save(nib.Nifti1Image(image, np.diag([-5, -5, 5, 1.0])), tmp_path / f"{name}.nii")
    volume, row = tmp_path / "hu.nii", {}
    _, entry = prepare_volume(volume, "", coding="HU")
    assert entry["z"] == list(range(3, 13))
    prepare_volume(volume, tmp_path / "liver.nii", coding="HU", row=row, organ_ml=(50, 2500))
    assert 30 < row["mask_right_mm"] < 45  # middles 12.5 and some 20.7, 5 mm each
    with pytest.raises(ValueError, match="no organ's"):
        prepare_volume(volume, tmp_path / "air.nii", coding="HU", organ_ml=(50, 2500))


def test_reasons_name_files_as_they_are_called_now(tmp_path):
    csv = make_cohort(tmp_path / "source")
    (csv.parent / "v3.nii.gz").write_bytes(b"x" * 50)
    for kind in "vm":
        shutil.copy(csv.parent / f"{kind}0.nii.gz", csv.parent / f"{kind}1.nii.gz")
    csv.write_text(csv.read_text().replace(",001,", ",000,").replace("radio,41.5", "d1,41.5"))
    write(csv, tmp_path / "store")
    for number in range(6):
        (csv.parent / f"v{number}.nii.gz").rename(csv.parent / f"scan{number}.nii.gz")
    csv.write_text(
        re.sub(r"^v", "scan", csv.read_text(), flags=re.M).replace("scanolume", "volume")
    )
    failed = open_slices(write(csv, tmp_path / "store")).failed.set_index("volume").reason
    assert "scan3.nii.gz" in failed["scan3.nii.gz"] and "scan0.nii.gz" in failed["scan1.nii.gz"]
    assert not failed.str.contains(r"\bv\d\.nii").any()
    for number in (5, 4, 3, 2, 1, 0):  # each gets the name of the next
        (csv.parent / f"scan{number}.nii.gz").rename(csv.parent / f"scan{number + 1}.nii.gz")
    csv.write_text(re.sub(r"scan(\d)", lambda m: f"scan{int(m[1]) + 1}", csv.read_text()))
    failed = open_slices(write(csv, tmp_path / "store")).failed.set_index("volume").reason
    assert "scan4.nii.gz" in failed["scan4.nii.gz"] and "scan1.nii.gz" in failed["scan2.nii.gz"]
