"""The broken set: what goes wrong with real cohorts, one file each, and the message it gets."""

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from test_inventory import body, save

from wspnb.data.cohort import read_cohort
from wspnb.data.slices import open_slices, prepare_volume, write_slices
from wspnb.run import main

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SHAPE = (64, 64, 10)
AFFINE = np.diag([5.0, 5.0, 10.0, 1])
SOUND = {"sound 1", "größer, nah é 2", "mask turned", "oblique", "one slice", "no mask"}
REASONS = {  # name of the case: what its message must say
    "truncated": r"truncated\.nii\.gz: damaged or truncated \(.+\): copy it again",
    "text": r"text\.nii\.gz: not readable as NIfTI \(.*not a gzip.*\): convert it again",
    "nan": r"nan\.nii\.gz: 3 of 40960 voxels are not finite: replace them",
    "inf": r"inf\.nii\.gz: 2 of 40960 voxels are not finite: replace them",
    "four dimensions": r"shape \(64, 64, 10, 3\), not one 3-D volume: split or convert it",
    "one image": r"shape \(64, 64\), not one 3-D volume",
    "rgb": r"voxels of type .*'R'.*, not plain numbers: convert it to HU",
    "empty mask": r"empty mask liver\.nii\.gz: no voxel has the value 1, there are 0: correct",
    "other label": r"no voxel has the value 1, there are 0, 5: correct mask_value",
    "mask of another shape": r"mask of shape \(64, 64, 9\), but .* has \(64, 64, 10\): resample",
    "mask elsewhere": r"the mask's affine puts it 30\.0 mm away",
    "mask of another patient": r"a median of -\d+ HU under it in .*the mask of another scan",
    "mask of halves": r"mask values are not whole numbers: threshold",
    "zero spacing": r"no valid affine \(spacing \[5\. +5\. +0\.\] mm\): write it",
    "zero pixdim": r"no valid affine \(spacing \[5\. +5\. +0\.\] mm\): write it",
    "no affine": r"sform and qform are both 'unknown'.*write the orientation",
    "wrapped": r"intensities wrapped: .*HU were cast to bytes.*convert from the source again",
    "narrow window": r"intensities unknown: .*comb of another window|not as in bytes",
    "shifted": r"intensities unknown: .*HU \+ 1024\? If so, say which it is in a column 'coding'",
    "air": r"intensities unknown: .*only 0\.0% at 0 to 100 where soft tissue is|too few for HU",
    "twin of 1": r"the same voxels as twin of 2\.nii\.gz, but of patients",
    "twin of 2": r"the same voxels as twin of 1\.nii\.gz, but of patients",
    "same again": r"the same voxels as sound 1\.nii\.gz of the same patient, which is kept",
    "empty file": r"not readable as NIfTI",
    "huge header": r"huge header\.nii\.gz: damaged .*\(30000, 30000, 30000\).*too small for",
}


def write_broken(folder):
    """One file for each case and the cohort table; returns its path."""
    folder.mkdir()
    mask = np.zeros(SHAPE, np.uint8)
    mask[36:46, 26:40, 1:9] = 1  # inside the drawn liver
    names, owners = [*SOUND, *REASONS], {"twin of 2": "another", "same again": "sound 1"}
    names.sort(key=lambda name: (name == "same again", name))
    table = []
    for number, name in enumerate(names):
        hu, affine = body(number, SHAPE), AFFINE
        if name.startswith("twin"):
            hu = body(99, SHAPE)
        if name == "same again":
            hu = body(names.index("sound 1"), SHAPE)
        if name == "one slice":
            hu = hu[:, :, 5:6]
        if name == "oblique":
            c, s = np.cos(0.3), np.sin(0.3)
            affine = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]) @ AFFINE
        if name in ("nan", "inf"):
            hu = hu.astype(np.float32)
            hu[1, 1, : 3 if name == "nan" else 2] = float(name)
        odd = {
            "four dimensions": lambda hu: np.stack([hu] * 3, axis=3),
            "one image": lambda hu: hu[:, :, 0],
            "wrapped": lambda hu: hu.astype(np.uint8),
            "narrow window": lambda hu: np.rint(np.clip(hu + 160, 0, 400) * 0.6375).astype("u1"),
            "shifted": lambda hu: np.where(hu < -1010, -2000, hu + 1024).astype(np.int16),
            "air": lambda hu: np.minimum(hu, -300),
            "rgb": lambda hu: np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")]),
        }
        hu = odd.get(name, lambda hu: hu)(hu)
        path = folder / f"{name}.nii.gz"
        if name == "text":
            path.write_text("this is no image\n")
        elif name == "empty file":
            path.write_bytes(b"")
        elif name == "huge header":  # 54 TB
            raw = bytearray(nib.Nifti1Image(hu, affine).to_bytes())
            raw[42:48] = np.array([30000] * 3, "<i2").tobytes()
            path.write_bytes(gzip.compress(raw))
        elif name in ("four dimensions", "one image", "rgb", "no affine") or "zero" in name:
            raw = bytearray(nib.Nifti1Image(hu, affine).to_bytes())
            if name == "zero spacing":
                raw[312:328] = bytes(16)  # srow_z
            if name == "zero pixdim":
                raw[252:256], raw[88:92] = bytes([1, 0, 0, 0]), bytes(4)  # qform only, dz 0
            if name == "no affine":
                raw[252:256] = bytes(4)  # qform_code, sform_code
            path.write_bytes(gzip.compress(raw))
        else:
            save(path, hu, affine, "PIR" if name == "twin of 2" else "LPS")
        if name == "truncated":
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) * 2 // 3])
        own, place = mask, affine.copy()
        if name == "one slice":
            own = mask[:, :, 5:6]
        if name in ("empty mask", "other label"):
            own = mask * (5 if name == "other label" else 0)
        if name == "mask of another shape":
            own = mask[:, :, :9]
        if name == "mask elsewhere":
            place[2, 3] += 30
        if name == "mask of another patient":  # same grid, the liver where here is none
            own = np.roll(mask, -34, axis=0)
        if name == "mask of halves":
            own = mask * np.float32(0.5)
        turned = "PIR" if name == "mask turned" else "RAS"
        save(folder / f"{name} liver.nii.gz", own, place, turned)
        given = "" if name == "no mask" else f"{name} liver.nii.gz"
        owner = owners.get(name, name)
        label = names.index(owner) % 2 if owner in names else 0
        table.append((path.name, given, owner, label, "", "radio"))
    columns = ["volume", "mask", "patient", "weak_label", "label", "cohort"]
    pd.DataFrame(table, columns=columns).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """The cohort with all of them through write_slices, in a folder with a blank and an umlaut."""
    folder = tmp_path_factory.mktemp("broken") / "Köhler CT 1"
    csv = write_broken(folder)
    store = write_slices(csv, folder / "store", 32, mask_value=1, workers=1, progress=False)
    return folder, open_slices(store)


@pytest.mark.parametrize("name", REASONS)
def test_message(broken, name):
    _, store = broken
    failed = store.failed.set_index("volume").reason
    found = failed[f"{name}.nii.gz"]
    assert pd.Series([found]).str.contains(REASONS[name])[0], found
    assert f"{name}.nii.gz" in found or f"{name} liver.nii.gz" in found


def test_the_rest_survives(broken):
    folder, store = broken
    assert set(store.table.patient) == SOUND and len(store.failed) == len(REASONS)
    kept = store.table.groupby("patient").size().to_dict()
    assert kept == {name: 6 for name in SOUND} | {"one slice": 1, "no mask": 10}
    assert store.table.position[store.table.patient == "one slice"].tolist() == [0.5]
    for name in SOUND - {"no mask"}:
        paths = folder / f"{name}.nii.gz", folder / f"{name} liver.nii.gz"
        images, _ = prepare_volume(*paths, 32)
        own = store.table.index[store.table.patient == name]
        np.testing.assert_array_equal(store.images[own], images)


def test_inventory_says_all(broken):
    folder, _ = broken
    table = pd.read_csv(folder / "store" / "inventory.csv", keep_default_na=False)
    table.index = table.volume.str.removesuffix(".nii.gz")
    assert set(table.index) == SOUND | set(REASONS)
    assert {name for name in table.index if not table.reason[name]} == SOUND
    assert (table.n_kept[list(REASONS)] == 0).all()
    unread = {"truncated", "text", "nan", "inf", "four dimensions", "one image", "rgb"}
    unread |= {"zero spacing", "zero pixdim", "no affine", "empty file", "huge header"}
    assert {name for name in table.index if not table["shape"][name]} == unread
    coding = table.coding.to_dict()
    assert [coding[n] for n in ("wrapped", "shifted", "sound 1")] == ["wrapped", "unknown", "HU"]
    assert table.oblique_deg["oblique"] == "17.19" and table["axes"]["oblique"] == "LPS"
    assert table["axes"]["twin of 2"] == "PIR" and table["axes"]["twin of 1"] == "LPS"
    assert 60 < float(table.mask_hu["sound 1"]) < 140


def test_a_mask_in_another_orientation_changes_nothing(broken):
    folder, _ = broken
    volume = folder / "mask turned.nii.gz"
    turned, _ = prepare_volume(volume, folder / "mask turned liver.nii.gz", 32)
    straight, _ = prepare_volume(volume, folder / "sound 1 liver.nii.gz", 32)
    np.testing.assert_array_equal(turned, straight)


def test_a_file_without_permission_is_set_aside(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    for number in range(2):
        save(tmp_path / f"{number}.nii.gz", body(number, SHAPE))
    (tmp_path / "1.nii.gz").chmod(0)
    rows = ["volume,mask,patient,weak_label,label,cohort", "0.nii.gz,,a,0,,r", "1.nii.gz,,b,0,,r"]
    (tmp_path / "cohort.csv").write_text("\n".join(rows) + "\n")
    store = open_slices(write_slices(tmp_path / "cohort.csv", tmp_path / "s", 32, workers=1))
    assert set(store.table.patient) == {"a"} and "ermission" in store.failed.reason[0]


@pytest.mark.parametrize(
    "lines, words",
    [
        (["folder,,p,0,,radio"], "line 2: volume '.*folder' is not a file: correct the path"),
        (["a.nii.gz,folder,p,0,,radio"], "line 2: mask '.*folder' is not a file"),
        (
            ["a.nii.gz,,p,0,,radio", "b.nii.gz,,p,,1,d1"],
            "line 3: patient 'p' has cohort 'd1' here and 'radio' in line 2",
        ),
        (
            ["a.nii.gz,,p,,0,d1", "b.nii.gz,,p,,1,d1"],
            "line 3: patient 'p' has label '1' here and '0' in line 2: a patient has one",
        ),
        (["a.nii.gz,,p,F4,,radio"], "line 2: weak_label 'F4' is not an integer from 0"),
    ],
)
def test_tables_are_refused_before_any_volume_is_read(tmp_path, lines, words):
    (tmp_path / "folder").mkdir()
    for name in "ab":
        (tmp_path / f"{name}.nii.gz").write_bytes(b"never read")
    table = "\n".join(["volume,mask,patient,weak_label,label,cohort", *lines])
    (tmp_path / "cohort.csv").write_text(table + "\n")
    with pytest.raises(ValueError, match=words):
        read_cohort(tmp_path / "cohort.csv")


@pytest.mark.slow
def test_notebook_shows_a_volume_that_could_be_used(tmp_path):
    """The first patient's first volume is damaged; the size is none that the phantom allows."""
    for number in range(2):
        save(tmp_path / f"{number}.nii.gz", body(number, SHAPE), AFFINE)
    (tmp_path / "bad.nii.gz").write_bytes((tmp_path / "0.nii.gz").read_bytes()[:5000])
    rows = ["bad.nii.gz,,p,0,,radio", "0.nii.gz,,p,0,,radio", "1.nii.gz,,q,1,,radio"]
    table = "\n".join(["volume,mask,patient,weak_label,label,cohort", *rows])
    (tmp_path / "cohort.csv").write_text(table)
    values = {"source": "csv", "source_dir": tmp_path, "cohort_dir": tmp_path / "store"}
    values |= {"run_dir": tmp_path, "image_size": 24, "workers": 1, "allow_failed": True}
    values |= {"evaluate": "[]"}  # nobody has a label
    options = [word for name, value in values.items() for word in ("-p", name, str(value))]
    out = str(tmp_path / "out.ipynb")
    assert main([str(NOTEBOOKS / "01_preprocess.ipynb"), out, *options]) == 0


def probe_own_cohort(folder, labels, size, *options) -> int:
    """Exit status of notebook 03 on a cohort of one volume for each label."""
    rows = ["volume,mask,patient,weak_label,label,cohort"]
    for number, label in enumerate(labels):
        save(folder / f"{number}.nii.gz", body(number, SHAPE))
        rows.append(f"{number}.nii.gz,,p{number},,{label},ours")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    write_slices(folder / "cohort.csv", folder / "s", size, workers=1, progress=False)
    words = ["-p", "cohort_dir", str(folder / "s"), "-p", "run_dir", str(folder), *options]
    words += ["-p", "evaluate", "[ours]"]
    return main([str(NOTEBOOKS / "03_linear_probe.ipynb"), str(folder / "out.ipynb"), *words])


@pytest.mark.slow
def test_ten_patients_are_judged_although_noise_strays(tmp_path):
    """With seed 1 features of noise reach an AUC of 0.2: luck of ten patients, no leak."""
    labels = [number % 2 for number in range(10)]
    assert (
        probe_own_cohort(tmp_path, labels, 160, "-p", "methods", "[random]", "-p", "seed", "1") == 0
    )


@pytest.mark.slow
def test_a_cohort_of_one_class_is_refused_by_the_probe(tmp_path, capfd):
    """Four patients of class 1 and none of class 0."""
    assert probe_own_cohort(tmp_path, 4 * [1], 32, "-p", "methods", "[random]") == 1
    said = capfd.readouterr().err
    assert "evaluate: ours has 0 patients of class 0 and 4 of class 1, too few for 5 folds" in said
    assert "take more patients, or leave it out of evaluate" in said
