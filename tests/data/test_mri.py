"""MRI through the same door: modality said and never guessed, a window of its own, many-part masks.

The real T1 volume (CirrMRI600+, CC BY-NC 4.0) is read where it is and never shipped.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from wspnb.data.cohort import read_cohort
from wspnb.data.inventory import describe, mr_window, open_hu, slice_images
from wspnb.data.slices import open_slices, prepare_volume, write_slices
from wspnb.data.volumes import load_mask, read_scan, resize, to_image, window

REAL = Path(__file__).parents[3] / "shared" / "data" / "cirrmri" / "Cirrhosis_T1_3D"
T1, T1_MASK = (REAL / f"valid_{kind}" / "5.nii.gz" for kind in ("images", "masks"))
real = pytest.mark.skipif(not T1.is_file(), reason=f"no real MRI in {REAL}")
SHAPE, SIDE = (40, 32, 20), 24


def drawn(seed=0, factor=1.0):
    """An MRI of a body of 100, a liver of 200 and noise around, in any unit; and its mask."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE[:2]), indexing="ij")
    grey = np.full(SHAPE, 3.0)
    grey[np.hypot(x / 0.8, y / 0.8) < 1] = 100
    mask = np.zeros(SHAPE, np.uint16)
    mask[np.hypot((x + 0.35) / 0.3, y / 0.4) < 1, 3:17] = 1  # x runs to the left in the file
    grey[mask > 0] = 200
    grey = (grey * rng.uniform(0.95, 1.05, SHAPE) * factor).round()
    return grey.astype(np.int16), mask


def saved(path, array, zooms=(5.0, 5.0, 6.0)):
    """As in CirrMRI600+: axes left, posterior, superior; qform_code 1, sform_code 0 and zero."""
    affine = np.diag([-zooms[0], -zooms[1], zooms[2], 1.0])
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, 1)
    image.set_sform(np.zeros((4, 4)), 0)
    nib.save(image, path)
    assert nib.load(path).header["sform_code"] == 0 and not nib.load(path).header["srow_x"].any()
    return path


def pair(folder, factor=1.0, change=None):
    grey, mask = drawn(0, factor)
    if change:
        grey, mask = change(grey, mask)
    return saved(folder / "v.nii.gz", grey), saved(folder / "m.nii.gz", mask)


def test_window_is_of_the_body_whatever_the_unit():
    ends = [np.array(mr_window(drawn(0, factor)[0].astype(float))) for factor in (1, 7)]
    np.testing.assert_allclose(ends[1] / ends[0], 7, rtol=0.01)
    assert 94 < ends[0][0] < 97 and 207 < ends[0][1] < 211  # 100 less and 200 more 5 %, not the 3
    with pytest.raises(ValueError, match="no body in the MRI"):
        mr_window(np.zeros((4, 4)))


def test_an_mri_is_not_guessed_and_a_ct_is_not_believed_to_be_one(tmp_path):
    volume, _ = pair(tmp_path, 7.0)
    with pytest.raises(ValueError, match="write mr in a column 'modality'"):
        open_hu(volume)
    scan = open_hu(volume, "MR")
    grey, row = scan[...], scan.row
    assert row["coding"] == "MR" and grey.max() == row["maximum"] > 1400
    assert (row["window_low"], row["window_high"]) == mr_window(
        grey[:, :, np.unique(np.linspace(0, 19, 16).astype(int))]
    )
    hu = np.random.default_rng(0).integers(-1000, 300, SHAPE).astype(np.int16)
    with pytest.raises(ValueError, match="said to be MR, but read as HU"):
        open_hu(saved(tmp_path / "ct.nii.gz", hu), "MR")


def test_bytes_are_the_windowed_voxels_and_do_not_depend_on_the_unit(tmp_path):
    found = []
    for factor in (1.0, 7.0):
        row = {}
        images, entry = prepare_volume(*pair(tmp_path, factor), SIDE, coding="MR", row=row)
        found.append(images)
        assert entry["z"] == list(range(5, 15)) and entry["spacing"] == [5, 5, 6]
        assert 199 * factor <= row["mask_grey"] <= 201 * factor and "mask_hu" not in row
        assert row["axes"] == "LPS" and row["slice_bias"] < 0.02
    assert np.abs(found[0].astype(int) - found[1]).max() <= 2
    scan = read_scan(tmp_path / "v.nii.gz")
    ends = (row["window_low"], row["window_high"])
    plane = np.clip(to_image(scan.voxels[:, :, 5].astype(np.float32)), *ends)
    assert (images[0] == window(resize(plane, SIDE, (5, 5), ends[0]), *ends)).all()
    liver = np.argwhere(images[0] > 200)
    assert liver[:, 1].mean() < SIDE / 2 - 2  # on the left of the picture
    network = slice_images(open_hu(tmp_path / "v.nii.gz", "MR"), [5], SIDE)  # its own window
    assert (network[0] == images[0]).all()


def test_without_a_mask_the_slices_of_the_body_are_kept(tmp_path):
    def ends_empty(grey, mask):
        grey[:, :, :2] = grey[:, :, 18:] = 3
        return grey, mask

    _, entry = prepare_volume(pair(tmp_path, 1.0, ends_empty)[0], image_size=SIDE, coding="MR")
    assert entry["z"] == list(range(2, 18))


def test_largest_part_is_kept_and_the_rest_named(tmp_path):
    def stray(grey, mask):
        mask[2:4, 2:4, 0] = 1  # 4 voxels of 0.15 ml, far below
        return grey, mask

    for change, parts, left in ((None, 1, None), (stray, 2, 0.6)):
        row = {}
        _, entry = prepare_volume(*pair(tmp_path, 1.0, change), SIDE, coding="MR", row=row)
        assert entry["z"] == list(range(5, 15))
        assert (row["mask_parts"], row.get("mask_left_out_ml")) == (parts, left)
        assert row["mask_reach"] == row["mask_gaps"] == 0


def test_store_of_a_table_that_says_mr(tmp_path):
    def dark(grey, mask):
        grey[:, :, 10] //= 2
        return grey, mask

    rows = []
    for number, change in enumerate((None, dark)):
        (tmp_path / str(number)).mkdir()
        volume, mask = pair(tmp_path / str(number), 3.0 + number, change)
        who = {"patient": f"p{number}", "weak_label": number, "label": "", "cohort": "train"}
        rows.append({"volume": volume, "mask": mask, **who, "modality": "MR"})
    table = tmp_path / "cohort.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    assert read_cohort(table).coding.tolist() == ["MR", "MR"]
    with pytest.warns(UserWarning, match="1 MRI, such as 1/v.nii.gz, change by more than 30%"):
        write_slices(table, tmp_path / "store", SIDE, workers=1, progress=False)
    store = open_slices(tmp_path / "store")
    assert len(store.images) == 20 and store.settings["not_hu"] == [] and not len(store.failed)
    assert set(store.table.modality) == {"mr"}
    pd.DataFrame(rows).drop(columns="modality").to_csv(table, index=False)  # another reading
    with pytest.raises(ValueError, match="the cohort table changed"):
        write_slices(table, tmp_path / "store", SIDE, workers=1, progress=False)


@pytest.mark.parametrize(
    ("modality", "coding", "message"),
    [
        ("pet", "", "modality 'pet' is none of ct, mr"),
        ("mr", "HU", "modality 'mr' contradicts coding 'HU'"),
        ("ct", "MR", "modality 'ct' contradicts coding 'MR'"),
    ],
)
def test_modalities_that_are_wrong_are_named(tmp_path, modality, coding, message):
    row = {"volume": saved(tmp_path / "v.nii.gz", drawn()[0]), "mask": "", "patient": "p"}
    row |= {"weak_label": "", "label": "", "cohort": "c", "modality": modality, "coding": coding}
    pd.DataFrame([row]).to_csv(tmp_path / "cohort.csv", index=False)
    with pytest.raises(ValueError, match=f"line 2: {message}"):
        read_cohort(tmp_path / "cohort.csv")


@real
def test_real_t1_is_turned_by_its_qform_and_measured():
    row = {}
    images, entry = prepare_volume(T1, T1_MASK, 160, coding="MR", row=row)
    assert (row["shape"], row["axes"], row["maximum"]) == ("256x176x60", "LPS", 287)
    np.testing.assert_allclose(row["mask_ml"], 2027, rtol=0.01)
    np.testing.assert_allclose(entry["spacing"], [1.7266, 1.7266, 4.3], atol=1e-3)
    mask = load_mask(T1_MASK, T1)
    assert np.flatnonzero(mask.any((0, 1)))[[0, -1]].tolist() == [14, 55]
    assert (entry["z"][0], entry["z"][-1]) == (20, 49)  # 6 of 42 are left out at each end
    for image, z in zip(images, entry["z"], strict=True):
        shown = resize(to_image(mask[:, :, z]).astype(np.float32), 160, (1, 1), 0) > 0.9
        assert np.argwhere(shown)[:, 1].mean() < 75 and np.median(image[shown]) > 60
    # The dome: towards the head the liver's section shrinks at the end, and lung is around it.
    area = mask.sum((0, 1))
    assert area[55] < area[45] and area[14] < area[30]
    with pytest.raises(ValueError, match="mr in a column 'modality'"):
        open_hu(T1)
    assert describe(read_scan(T1), "MR")["coding"] == "MR"


def test_masks_of_cads_are_taken_as_they_are(tmp_path):
    labels = drawn()[1] * 5  # the liver
    labels[:6], liver = np.arange(1, 5).repeat(8)[None, :, None], labels == 5  # other organs
    liver[:6] = False
    path = saved(tmp_path / "scan_part_551.nii.gz", labels)
    assert (load_mask(path) == liver[::-1, ::-1]).all() and liver.any()
    with pytest.raises(ValueError, match="5 labels"):
        load_mask(saved(tmp_path / "scan.nii.gz", labels))
