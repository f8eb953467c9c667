"""Inventory: how intensities are coded, duplicates, and what a row says; on a drawn body."""

import gzip

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from wspnb.data.inventory import (
    CODINGS,
    decide,
    decode,
    describe,
    duplicates,
    open_hu,
    slice_images,
    voxel_hash,
)
from wspnb.data.slices import open_slices, prepare_volume, write_slices
from wspnb.data.volumes import Scan, load_volume, read_scan, window


def body(seed=0, shape=(160, 160, 12)):
    """Air, fat, soft tissue with a brighter liver, water, a spine: HU, whole numbers."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[:2]), indexing="ij")
    hu = np.full(shape, -1000.0)
    hu[np.hypot(x / 0.8, y / 0.6) < 1] = -100
    hu[np.hypot(x / 0.68, y / 0.48) < 1] = 45
    hu[np.hypot((x - 0.3) / 0.3, y / 0.35) < 1] = 100
    hu[np.hypot((x + 0.35) / 0.25, y / 0.25) < 1] = 5
    hu[np.hypot(x / 0.1, (y + 0.35) / 0.1) < 1] = 600
    noise = np.where(hu > -500, 25, 5) * rng.standard_normal(shape)
    return np.rint(hu + noise).astype(np.int16)


def bytes_of(hu, low, high):
    return np.rint((np.clip(hu, low, high) - low) * (255 / (high - low))).astype(np.uint8)


def judge(array):
    return decide(array.astype(np.float32), array.min(), array.max(), str(array.dtype))


HU = body()
CODED = {
    "HU": HU,
    "(HU+100)/2": np.clip((HU + 100) / 2, 0, 250).astype(np.uint8),
    "window": bytes_of(HU, -100, 400),
    "window 0..1": ((np.clip(HU, -100, 400) + 100) / 500).astype(np.float32),
}
EDGE = np.indices(HU.shape)[0] % 97 == 50
WRAPPED = {
    "cast": HU.astype(np.uint8),
    "clipped, then cast": np.clip(HU, -100, 400).astype(np.uint8),
    "int8": HU.astype(np.int8),
}
REFUSED = {
    "shifted": HU + 1024,
    "shifted, padded": np.where(HU < -1010, -2000, HU + 1024).astype(np.int16),
    "intercept twice": HU - 1024,
    "normalised": ((HU - HU.mean()) / HU.std()).astype(np.float32),
    "lowest to highest": bytes_of(HU, HU.min(), HU.max()),
    **{
        f"{low} to {high}": bytes_of(HU, low, high)
        for low, high in [(-100, 300), (-160, 240), (-150, 250), (-1000, 1000), (-200, 300)]
    },
    "a child, shifted, padded": np.where(  # air is at 24, and more than tissue
        np.indices(HU.shape)[0] % 80 < 40, -2000, HU + 1024
    ).astype(np.int16),
    "MRI after strong splines": np.where(HU < -500, 0, HU + 300) - 250 * EDGE,
    "MRI, subtracted": np.where(HU < -500, 0, np.abs(HU)) * np.where(EDGE, -3, 1),
    "MRI after splines": np.clip(HU / 5 + 45, -13, 225).astype(np.int16),
    "noise": np.random.default_rng(0).integers(0, 200, (64, 64, 8)).astype(np.uint8),
}


@pytest.mark.parametrize("coding", CODED)
def test_coding_is_found_and_decoded_to_hu(coding):
    found, evidence = judge(CODED[coding])
    assert found == coding, evidence
    back = decode(CODED[coding], found)
    error = np.abs(back - (HU if coding == "HU" else np.clip(HU, -100, 400)))
    assert error.max() <= {"HU": 0, "(HU+100)/2": 1, "window": 1, "window 0..1": 0.001}[coding]


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_bytes_are_refused(name):
    found, evidence = judge(WRAPPED[name])
    assert found == "wrapped" and "convert from the source again" in evidence


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_clear_is_refused_with_what_to_do(name):
    found, evidence = judge(REFUSED[name])
    assert found == "unknown", evidence
    assert "'coding' of cohort.csv" in evidence or "convert from the source" in evidence


def test_a_drawing_is_no_scan_but_hu():
    """Two values, as in the AdrenalMNIST3D volumes; the same as bytes says nothing."""
    shape = np.where(np.hypot(*np.mgrid[-9:9, -9:9]) < 5, 400, -100)[..., None].repeat(4, 2)
    found, evidence = judge(shape.astype(np.int16))
    assert found == "HU" and "2 values in all" in evidence
    assert judge(np.where(shape > 0, 255, 0).astype(np.uint8))[0] not in CODINGS


def test_the_two_byte_codings_differ_by_two_percent():
    """The numbers of the module's docstring, over every HU of the window."""
    hu = np.arange(-100, 401)
    read = decode(bytes_of(hu, -100, 400), "(HU+100)/2")  # the wrong one of the two
    assert np.abs(read - hu).max() == 10 and read[-1] - hu[-1] == 10
    assert abs(1.02 * (60 + 100) - 100 - 60) == pytest.approx(3.2)
    change = window(read).astype(int) - window(hu)
    assert change.max() == 5 and change.min() >= 0


def test_without_a_comb_the_family_is_one_and_says_so():
    """Bytes shifted by half a voxel: no comb left, both codings read alike."""
    for low, high in [(-100, 400), (-100, 410)]:
        full = bytes_of(HU, low, high).astype(np.float32)
        found, evidence = judge(np.rint(0.7 * full[1:] + 0.3 * full[:-1]).astype(np.uint8))
        assert found == "(HU+100)/2" and "2 % too high" in evidence


def test_a_pixel_that_is_no_square_keeps_its_form(tmp_path):
    """40 x 80 pixels of 2 x 1 mm are a square, without padding; a body of 20 x 40 is one too."""
    hu = np.full((40, 80, 2), 0, np.int16)
    hu[10:30, 20:60] = 400
    path = save(tmp_path / "v.nii.gz", hu, np.diag([2.0, 1, 5, 1]))
    (image,) = slice_images(open_hu(path, "HU"), [1], 40, -100, 400)
    inside = image > 153  # halfway from 0 to 400 HU
    assert (inside.any(0).sum(), inside.any(1).sum()) == (20, 20) and image.min() == 51


def test_a_heap_at_250_with_none_above_is_told():
    """Cut off at 400 HU, which is byte 250 of one member of the family and none of the other's."""
    full = bytes_of(HU, -100, 400).astype(np.float32)
    blurred = np.rint(0.7 * full[1:] + 0.3 * full[:-1]).astype(np.uint8)
    heap = np.where(blurred > 200, 250, blurred)
    above = np.where(blurred == blurred.max(), 252, heap).astype(np.uint8)
    for bytes_, said in [(heap, True), (above, False), (np.minimum(blurred, 200), False)]:
        found, evidence = judge(bytes_.astype(np.uint8))
        assert found == "(HU+100)/2" and ("many are 250" in evidence) is said, evidence


def save(path, array, affine=None, axes="RAS", level=None):
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    stored = nib.orientations.apply_orientation(array, turn)
    affine = np.diag([0.8, 0.8, 5, 1]) if affine is None else affine
    image = nib.Nifti1Image(stored, affine @ inv_ornt_aff(turn, array.shape))
    if level is None:
        nib.save(image, path)
    else:
        path.write_bytes(gzip.compress(image.to_bytes(), level))
    return path


def test_row_of_a_scan(tmp_path):
    array = HU.copy()
    array[:10] = -3024
    turned = np.diag([0.8, 0.8, 5.0, 1])
    c, s = np.cos(np.radians(12)), np.sin(np.radians(12))
    turned[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ turned[:3, :3]
    row = describe(read_scan(save(tmp_path / "a.nii.gz", array, turned, "LPS")))
    assert (row["dtype"], row["slope"], row["intercept"]) == ("int16", 1, 0)
    assert (row["shape"], row["spacing_mm"]) == ("160x160x12", "0.8x0.8x5")
    assert (row["axes"], row["oblique_deg"], row["padding"]) == ("LPS", 12.0, -3024)
    assert (row["minimum"], row["maximum"]) == (-3024, array.max())
    expected = np.percentile(array, [0.5, 50, 99.5])
    np.testing.assert_allclose([row["p0_5"], row["p50"], row["p99_5"]], expected, atol=1e-3)
    assert describe(read_scan(save(tmp_path / "b.nii.gz", HU)))["padding"] is None


def test_slope_and_intercept_come_before_the_decision(tmp_path):
    """Bytes with slope 2 and intercept -100 in the header are HU already, if only to 410."""
    image = nib.Nifti1Image(CODED["(HU+100)/2"], np.diag([1.0, 1, 5, 1]))
    image.header.set_slope_inter(2, -100)
    nib.save(image, tmp_path / "v.nii")
    scan = read_scan(tmp_path / "v.nii")
    row = describe(scan)
    assert (row["slope"], row["intercept"], row["coding"]) == (2, -100, "HU")
    assert scan.voxels.dtype == np.uint8  # not expanded in memory
    hu = open_hu(tmp_path / "v.nii")[...]
    np.testing.assert_array_equal(hu, load_volume(tmp_path / "v.nii")[0])
    assert hu.max() == 400


def test_the_hash_knows_a_scan_in_any_dress(tmp_path):
    same = [
        save(tmp_path / "0.nii.gz", HU, level=1),
        save(tmp_path / "1.nii.gz", HU, level=9),
        save(tmp_path / "2.nii", HU),
        save(tmp_path / "3.nii.gz", HU.astype(np.float32)),
        save(tmp_path / "4.nii.gz", HU.astype(np.int32), axes="PIR"),
    ]
    hashes = [describe(read_scan(path))["voxels"] for path in same]
    assert len(set(hashes)) == 1 and len(hashes[0]) == 64
    other = HU.copy()
    other[0, 0, 0] += 1
    assert describe(read_scan(save(tmp_path / "5.nii.gz", other)))["voxels"] != hashes[0]


@pytest.mark.parametrize("more", [0.25, -0.25, 65536, -65536, 1e9])
def test_the_hash_takes_no_number_for_another(more):
    """Small whole numbers are hashed as 16 bits: none that is not one may become one."""

    def hash_of(voxels, slope=1.0):
        return voxel_hash(Scan(voxels, slope, 0.0, np.ones(3), "RAS", 0.0))

    plane = np.array([[[-0.0], [5]], [[-1024], [32767]]], np.float32)
    whole = hash_of(plane)
    assert whole == hash_of(plane.astype(np.int16)) == hash_of(plane.astype(">i2"))
    assert whole == hash_of(plane.astype(np.float64)) == hash_of(plane / 2, 2.0)
    for place in np.ndindex(plane.shape):
        other = plane.copy()
        other[place] += more
        assert hash_of(other) != whole


def test_duplicates():
    names = ["a", "b", "c", "d", "e", "f"]
    hashes, owners = ["1", "1", "2", "2", "", ""], ["p", "q", "r", "r", "s", "t"]
    found = duplicates(hashes, owners, names)
    assert sorted(found) == [0, 1, 3]
    assert found[0].startswith("a: the same voxels as b") and "patients p, q" in found[0]
    assert found[3].startswith("d: the same voxels as c of the same patient, which is kept")
    three = duplicates(["1"] * 3, ["p", "p", "q"], names[:3])
    assert sorted(three) == [0, 1, 2]  # nobody knows whose it is


def cohort(folder, rows, columns="volume,mask,patient,weak_label,label,cohort,coding"):
    (folder / "cohort.csv").write_text("\n".join([columns, *rows]) + "\n")
    return folder / "cohort.csv"


def test_decoded_volumes_make_the_same_store_to_one_grey(tmp_path):
    """The codings through write_slices: warned, listed, and alike; said: not warned."""
    for number, coding in enumerate(CODED):
        # One voxel each, so that no two are the same scan.
        save(tmp_path / f"v{number}.nii.gz", CODED[coding])
    rows = [f"v{n}.nii.gz,,p{n},0,,radio," for n in range(4)]
    with pytest.warns(UserWarning, match="3 volumes, such as v1.nii.gz, are no HU but bytes"):
        folder = write_slices(cohort(tmp_path, rows), tmp_path / "a", 160, workers=1)
    store = open_slices(folder)
    assert store.settings["not_hu"] == ["v1.nii.gz", "v2.nii.gz", "v3.nii.gz"]
    assert store.table.groupby("patient").size().tolist() == [12] * 4
    images = store.images.reshape(4, 12, 160, 160).astype(int)
    assert [np.abs(images[n] - images[0]).max() for n in (1, 2, 3)] == [1, 0, 0]
    table = pd.read_csv(folder / "inventory.csv", keep_default_na=False)
    assert table.coding.tolist() == list(CODED) and table.n_kept.tolist() == [12] * 4
    assert (table.reason == "").all() and table["shape"].tolist() == ["160x160x12"] * 4

    rows = [f"v{n}.nii.gz,,p{n},0,,radio,{coding}" for n, coding in enumerate(CODED)]
    said = write_slices(cohort(tmp_path, rows), tmp_path / "b", 160, workers=1)
    assert open_slices(said).settings["not_hu"] == []
    assert (said / "slices.npy").read_bytes() == (folder / "slices.npy").read_bytes()
    rows[1] = "v1.nii.gz,,p1,0,,radio,half"
    with pytest.raises(ValueError, match=r"line 3: coding 'half' is none of HU, \(HU\+100\)/2"):
        write_slices(cohort(tmp_path, rows), tmp_path / "c", workers=1)


def test_the_owner_may_say_what_the_voxels_do_not(tmp_path):
    path = save(tmp_path / "v.nii.gz", HU + 1024)
    with pytest.raises(ValueError, match=r"intensities unknown: .*HU \+ 1024\?|nothing below 0"):
        open_hu(path)
    hu = open_hu(path, "HU+1024")
    np.testing.assert_array_equal(hu[...], HU)
    assert hu.row["evidence"].startswith("said in the table; the voxels say unknown")
    images, _ = prepare_volume(path, image_size=160, coding="HU+1024")
    expected, _ = prepare_volume(save(tmp_path / "hu.nii.gz", HU), image_size=160)
    np.testing.assert_array_equal(images, expected)
    assert set(CODINGS) == {*CODED, "HU+1024", "MR"}


@pytest.mark.parametrize("change", ["HU+1024", "clipped", "mirrored", "cut", "rounded"])
def test_one_scan_in_two_forms_is_named(tmp_path, change):
    """LiTS is in other sets, clipped, mirrored or shorter; nothing is left out for it."""
    hu, said = {
        "HU+1024": (HU + 1024, "HU+1024"),
        "clipped": (np.where(HU < -1020, -2048, HU), ""),
        "mirrored": (HU[::-1], ""),
        "cut": (HU[:, :, :-2], ""),
        "rounded": (HU + 0.03 * (HU % 3 - 1), ""),  # as nibabel saves what get_fdata has given
    }[change]
    organ = np.zeros(HU.shape, np.uint8)
    organ[20:100, 30:110, 2:9] = 1
    for name, array in {"a": HU, "b": hu}.items():
        save(tmp_path / f"{name}.nii.gz", array)
        own = organ[::-1] if name == "b" and change == "mirrored" else organ
        save(tmp_path / f"{name}_mask.nii.gz", own[:, :, : array.shape[2]])
    rows = ["a.nii.gz,a_mask.nii.gz,A,0,,radio,", f"b.nii.gz,b_mask.nii.gz,B,,1,d1,{said}"]
    with pytest.warns(
        UserWarning, match=r"a.nii.gz, b.nii.gz \(patients A, B\) have the same kept slices"
    ) as warned:
        write_slices(cohort(tmp_path, rows), tmp_path / "s", 80, workers=1, organ_ml=(0, np.inf))
    assert not any("the masks of A, B" in str(w.message) for w in warned)  # a pair is named once
    assert open_slices(tmp_path / "s").table.patient.nunique() == 2


def test_a_scan_of_two_patients_leaves_no_slice(tmp_path):
    """The first was written before the second was seen: its pixels go, the others stay in place."""
    for number in range(4):
        save(tmp_path / f"v{number}.nii.gz", body(number))
    save(tmp_path / "again.nii.gz", body(1), axes="LPS")
    save(tmp_path / "twin.nii.gz", body(3))
    names = ["v0", "v1", "v2", "again", "v3", "twin"]
    owners = ["p0", "p1", "p2", "p9", "p3", "p3"]
    rows = [f"{n}.nii.gz,,{o},0,,radio," for n, o in zip(names, owners, strict=True)]
    folder = write_slices(cohort(tmp_path, rows), tmp_path / "s", 48, workers=1, progress=False)
    store = open_slices(folder)
    assert store.table.groupby("patient").size().to_dict() == {"p0": 12, "p2": 12, "p3": 12}
    assert store.failed.volume.tolist() == ["v1.nii.gz", "again.nii.gz", "twin.nii.gz"]
    assert "again.nii.gz, but of patients p1, p9" in store.failed.reason[0]
    assert "of the same patient, which is kept" in store.failed.reason[2]
    for number in (0, 2, 3):
        images, _ = prepare_volume(tmp_path / f"v{number}.nii.gz", image_size=48)
        own = store.table.index[store.table.patient == f"p{number}"]
        np.testing.assert_array_equal(store.images[own], images)
    assert not list(folder.glob("*.part")) and not list(folder.glob(".*"))
    rows = [row for row in rows if row[:2] in ("v0", "v2", "v3")]
    clean = write_slices(cohort(tmp_path, rows), tmp_path / "t", 48, workers=1, progress=False)
    assert (clean / "slices.npy").read_bytes() == (folder / "slices.npy").read_bytes()
    assert (clean / "slices.csv").read_bytes() == (folder / "slices.csv").read_bytes()


def test_of_two_copies_the_one_with_a_good_mask_is_kept(tmp_path):
    first, second = save(tmp_path / "a.nii.gz", HU), save(tmp_path / "b.nii.gz", HU, level=1)
    save(tmp_path / "empty.nii.gz", np.zeros(HU.shape, np.uint8))
    save(tmp_path / "liver.nii.gz", (HU > 60).astype(np.uint8))
    rows = [f"{first},empty.nii.gz,p,0,,radio,", f"{second},liver.nii.gz,p,0,,radio,"]
    folder = write_slices(cohort(tmp_path, rows), tmp_path / "s", 32, workers=1, progress=False)
    store = open_slices(folder)
    assert set(store.table.volume) == {"b.nii.gz"}
    assert store.failed.volume.tolist() == ["a.nii.gz"] and "is empty" in store.failed.reason[0]


def test_a_stray_voxel_far_from_the_organ_is_warned_of(tmp_path):
    liver = np.zeros(HU.shape, np.uint8)
    liver[40:90, 60:90, 6:10] = 1
    rows = []
    for number, stray in enumerate((0, 1)):
        liver[80, 80, 1] = stray
        place = np.diag([2.0, 2.0, 15, 1])  # a liver of 360 ml
        save(tmp_path / f"m{number}.nii.gz", liver, place)
        save(tmp_path / f"v{number}.nii.gz", body(number), place)
        rows.append(f"v{number}.nii.gz,m{number}.nii.gz,p{number},0,,radio,")
    with pytest.warns(UserWarning, match=r"1 masks, such as that of v1\.nii\.gz, have slices"):
        folder = write_slices(cohort(tmp_path, rows), tmp_path / "s", 32, workers=1, progress=False)
    assert pd.read_csv(folder / "inventory.csv").mask_gaps.tolist() == [0, 4]


def test_a_mask_on_air_is_refused(tmp_path):
    volume = save(tmp_path / "v.nii.gz", HU)
    mask = np.zeros(HU.shape, np.uint8)
    mask[2:8, 2:8] = 1
    row = {}
    with pytest.raises(ValueError, match=r"-1000 HU under it.*the mask of another scan"):
        prepare_volume(volume, save(tmp_path / "m.nii.gz", mask), row=row, organ_ml=(1, 6000))
    assert row["coding"] == "HU" and abs(row["mask_hu"] + 1000) < 1
    mask = (HU > 60).astype(np.uint8)
    prepare_volume(volume, save(tmp_path / "m.nii.gz", mask), row=row, organ_ml=(1, 6000))
    assert 60 < row["mask_hu"] < 140


def test_hu_times_two_are_warned_of(tmp_path):
    """A slope that was applied twice: air at -2000, and not in one value as padding is."""
    noise = np.random.default_rng(0).normal(0, 20, HU.shape)
    hu = np.where(HU < -900, HU + noise, HU)
    assert "-1300" not in decide(hu[:, :, ::4], hu.min(), hu.max())[1]
    coding, evidence = decide(2 * hu[:, :, ::4], 2 * hu.min(), 2 * hu.max())
    assert coding == "HU" and "below -1300, in many values" in evidence
    save(tmp_path / "v.nii.gz", (2 * hu).astype(np.int16))
    csv = tmp_path / "cohort.csv"
    csv.write_text("volume,mask,patient,weak_label,label,cohort\nv.nii.gz,,A,1,,radio\n")
    with pytest.warns(UserWarning, match=r"1 CT, such as v\.nii\.gz, have much below -1300 HU"):
        write_slices(csv, tmp_path / "store", 32, workers=1, progress=False)
    padded = hu.copy()
    padded[:3] = -3024
    assert "-1300" not in decide(padded[:, :, ::4], -3024, hu.max())[1]


def test_one_column_of_voxels_is_described(tmp_path):
    """A scout that a converter has left among the volumes."""
    row = describe(read_scan(save(tmp_path / "a.nii.gz", HU[4:5])))
    assert row["coding"] == "unknown" and "as of a scout" in row["evidence"]


def test_padding_that_was_read_as_unsigned_is_no_hu():
    padded = HU.astype(np.float32)
    padded[:2] = 62512
    coding, evidence = decide(padded[:, :, ::4], -1000, 62512)
    assert coding == "unknown" and "above 32767, as where padding" in evidence
    padded[:2] = -1000
    padded[0, 0, 0] = 40000  # one voxel at metal
    assert decide(padded[:, :, ::4], -1000, 40000)[0] == "HU"
