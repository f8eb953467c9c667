"""Real CT through the same code; expected values were confirmed on rendered contact sheets.

Seen there, in all four: liver on the left of the image, spine at its bottom, front on top; towards
position 1 the dome, the lungs and the heart appear. Labels in the cohort tables below are invented.
"""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from sklearn.decomposition import PCA

from wspnb.data.inventory import decide, decode, describe
from wspnb.data.slices import WITHOUT_MASK, open_slices, prepare_volume, write_slices
from wspnb.data.volumes import (
    body_slices,
    central_slices,
    load_mask,
    load_volume,
    read_scan,
    resize,
    to_image,
    window,
)
from wspnb.models import TinyNet
from wspnb.probe import extract_features

CT = Path(__file__).parents[3] / "shared" / "data" / "ct"
pytestmark = pytest.mark.skipif(not CT.is_dir(), reason=f"no real CT in {CT}")

# name: shape, spacing, HU range, slices with liver, kept slices, liver ml, mean HU of the liver
EXPECTED = {
    "ts_example_ct": (
        (122, 101, 112),
        (3, 3, 3),
        (-1207, 3382),
        (69, 111),
        (75, 105),
        1125.7,
        44.5,
    ),
    "ts_dicom20": (
        (512, 512, 20),
        (0.9766, 0.9766, 2),
        (-1024, 1839),
        (0, 19),
        (3, 16),
        699.4,
        89.3,
    ),
    "dcmqi_ct3": ((512, 512, 3), (0.8105, 0.8105, 1), (-3024, 1381), (0, 2), (0, 2), 70.4, 37.3),
    "cptac_pda_C3L-00189": (
        (512, 512, 35),
        (0.8594, 0.8594, 5),
        (-3024, 3071),
        None,
        (0, 34),
        None,
        None,
    ),
}
WITH_MASK = [name for name, row in EXPECTED.items() if row[3]]


def paths(name):
    mask = CT / f"{name}_liver.nii.gz"
    return CT / f"{name}.nii.gz", mask if name in WITH_MASK else ""


def body(hu_image):
    """Mean (row, column) of the body in an image."""
    return np.argwhere(hu_image > -300).mean(axis=0)


@pytest.mark.parametrize("name", EXPECTED)
def test_shape_spacing_and_units(name):
    shape, spacing, hu_range, *_ = EXPECTED[name]
    hu, found = load_volume(paths(name)[0])
    assert hu.shape == shape and (hu.min(), hu.max()) == hu_range
    np.testing.assert_allclose(found, spacing, atol=1e-4)


@pytest.mark.parametrize("name", WITH_MASK)
def test_liver_and_kept_slices(name):
    _, _, _, with_liver, kept, millilitres, mean = EXPECTED[name]
    volume, path = paths(name)
    hu, spacing = load_volume(volume)
    mask = load_mask(path, volume)
    inside = np.flatnonzero(mask.any(axis=(0, 1)))
    assert (inside[0], inside[-1]) == with_liver
    slices = central_slices(mask)
    assert (slices[0], slices[-1]) == kept and (np.diff(slices) == 1).all()
    np.testing.assert_allclose(mask.sum() * spacing.prod() / 1000, millilitres, atol=0.1)
    np.testing.assert_allclose(hu[mask].mean(), mean, atol=0.1)


@pytest.mark.parametrize("name", EXPECTED)
def test_kept_positions_and_selection(name):
    images, entry = prepare_volume(*paths(name), image_size=160)
    first, last = EXPECTED[name][4]
    assert entry["z"] == list(range(first, last + 1)) and images.shape == (
        len(entry["z"]),
        160,
        160,
    )
    assert entry["position"] == [k / (last - first) for k in range(last - first + 1)]
    with_mask = name in WITH_MASK
    assert entry["selection"] == ("central 70 % of the mask" if with_mask else WITHOUT_MASK)


@pytest.mark.parametrize("name", WITH_MASK)
def test_liver_is_on_the_left_of_the_image_at_its_grey(name):
    volume, path = paths(name)
    hu, spacing = load_volume(volume)
    mask = load_mask(path, volume)
    images, entry = prepare_volume(volume, path)
    for image, z in zip(images, entry["z"], strict=True):
        pixel = (spacing[1], spacing[0])
        liver = resize(to_image(mask[:, :, z]).astype(np.float32), 160, pixel, 0) > 0.99
        whole = resize(np.clip(to_image(hu[:, :, z]), -1000, 0), 160, pixel)
        assert np.argwhere(liver).mean(axis=0)[1] < body(whole)[1] - 10
        grey = float(np.median(image[liver]))
        expected = float(window(np.array(np.median(hu[:, :, z][mask[:, :, z]]))))
        assert abs(grey - expected) <= 3  # 6 HU


@pytest.mark.parametrize("name", EXPECTED)
def test_spine_is_at_the_bottom_near_the_midline(name):
    hu, _ = load_volume(paths(name)[0])
    first, last = EXPECTED[name][4]
    for z in range(first, last + 1, 4):
        image = to_image(hu[:, :, z])
        centre = body(image)
        bone = image > 300
        middle = np.zeros_like(bone)
        width = image.shape[1] // 10
        middle[:, int(centre[1]) - width : int(centre[1]) + width] = True
        rows = np.argwhere(bone & middle)[:, 0]
        assert np.median(rows) > centre[0] + 0.03 * image.shape[0]


def test_depth_runs_from_the_kidneys_to_the_heart():
    """cptac: no lung in the lowest slices, lungs on both sides of the heart in the highest."""
    hu, _ = load_volume(paths("cptac_pda_C3L-00189")[0])
    chest = hu[120:400, 180:380]  # inside the body, without the table
    lung = ((chest > -950) & (chest < -650)).mean(axis=(0, 1))
    assert lung[:10].max() < 0.02 and lung[-5:].min() > 0.15
    example = load_mask(*reversed(paths("ts_example_ct")))
    area = example.sum(axis=(0, 1))
    assert area[75] < 0.2 * area[105]  # the tip below, the bulk of the liver above


def test_padding_outside_the_field_of_view_is_air():
    name = "cptac_pda_C3L-00189"
    hu, _ = load_volume(paths(name)[0])
    images, entry = prepare_volume(*paths(name), image_size=512)
    padding = np.stack([to_image(hu[:, :, z]) for z in entry["z"]]) == -3024
    assert padding.mean() > 0.1 and images[padding].max() == 0
    assert images.max() == 255  # bone and contrast clip at the top and do not wrap
    np.testing.assert_array_equal(images[17], window(to_image(hu[:, :, 17])))  # 512: no resampling
    assert body_slices(hu).tolist() == list(range(35))


def reorient(source, target, code):
    """The same scan stored along other axes, voxels as int16."""
    image = nib.load(source)
    turn = ornt_transform(nib.io_orientation(image.affine), axcodes2ornt(code))
    array = apply_orientation(np.asarray(image.dataobj), turn).astype(np.int16)
    turned = nib.Nifti1Image(array, image.affine @ inv_ornt_aff(turn, image.shape))
    assert nib.aff2axcodes(turned.affine) == tuple(code)
    target.write_bytes(gzip.compress(turned.to_bytes(), 1))


def test_stored_orientation_does_not_change_the_store(tmp_path):
    stores = {}
    for code in ("RAS", "LPS", "PIR", "SLA", "LAI"):
        folder = tmp_path / code
        folder.mkdir()
        volume, mask = paths("ts_example_ct")
        reorient(volume, folder / "ct.nii.gz", code)
        reorient(mask, folder / "liver.nii.gz", code[::-1] if code == "PIR" else code)
        (folder / "cohort.csv").write_text(
            "volume,mask,patient,weak_label,label,cohort\nct.nii.gz,liver.nii.gz,one,0,,invented\n"
        )
        with pytest.warns(UserWarning) as said:
            write_slices(folder / "cohort.csv", folder / "store", workers=1, progress=False)
        (words,) = (str(w.message) for w in said)
        assert "1 masks, such as that of ct.nii.gz, reach the first or last slice" in words
        store = open_slices(folder / "store")
        stores[code] = (store.images.tobytes(), (folder / "store" / "slices.csv").read_bytes())
        assert store.images.shape == (31, 160, 160)
    assert all(store == stores["RAS"] for store in stores.values())
    original, _ = prepare_volume(*paths("ts_example_ct"))
    assert stores["PIR"][0] == original.tobytes()


def sample(hu):
    return hu[:, :, np.unique(np.linspace(0, hu.shape[2] - 1, 16).astype(int))]


def judge(array):
    return decide(array.astype(np.float32), array.min(), array.max(), str(array.dtype))


def as_bytes(hu, low, high):
    return np.rint((np.clip(hu, low, high) - low) * (255 / (high - low))).astype(np.uint8)


@pytest.mark.parametrize("name", EXPECTED)
def test_evidence_on_the_real_scans_in_twenty_codings(name):
    hu = sample(load_volume(paths(name)[0])[0])
    whole = hu.astype(np.int64)
    resampled = name == "ts_example_ct"  # 3 mm: no comb left
    right = {
        "HU": [hu, np.clip(hu, -100, 400)],
        "(HU+100)/2": [
            np.clip(np.rint((hu + 100) / 2), 0, 255).astype(np.uint8),
            np.clip((hu + 100) / 2, 0, 250).astype(np.uint8),
        ],
        "(HU+100)/2" if resampled else "window": [as_bytes(hu, -100, 400)],
        "window 0..1": [((np.clip(hu, -100, 400) + 100) / 500)],
    }
    for coding, arrays in right.items():
        for array in arrays:
            found, evidence = judge(array)
            assert found == coding, evidence
            read = decode(array, found)
            assert np.abs(np.clip(read, -100, 400) - np.clip(hu, -100, 400)).max() <= 10
    for array in (whole.astype(np.uint8), np.clip(whole, -100, 400).astype(np.uint8)):
        assert judge(array)[0] == "wrapped"
    windows = [(-100, 300), (-160, 240), (-150, 250), (-50, 350), (-200, 300), (-1000, 1000)]
    windows += [(-1024, 3071), (0, 400), (-200, 400), (-1000, 400), (-75, 175)]
    unclear = [as_bytes(hu, *ends) for ends in [*windows, (hu.min(), hu.max())]]
    unclear += [hu + 1024, hu - 1024, np.where(hu < -1024, -2000, hu + 1024)]
    for array in [*unclear, (hu - hu.mean()) / hu.std()]:
        found, evidence = judge(array)
        assert found == "unknown", evidence


def test_all_of_them_from_inventory_to_features(tmp_path):
    """One cohort, as notebooks 01 and 03 treat it; a random encoder."""
    lines = ["volume,mask,patient,weak_label,label,cohort"]
    for number, name in enumerate(EXPECTED):
        volume, mask = paths(name)
        lines.append(f"{volume},{mask},{name},{number % 2},,invented")
    (tmp_path / "cohort.csv").write_text("\n".join(lines) + "\n")
    with pytest.warns(UserWarning, match="3 masks, .*reach the first or last slice") as said:
        folder = write_slices(tmp_path / "cohort.csv", tmp_path / "store", 160, workers=1)
    assert len(said) == 1  # these three are parts of scans, and nothing else is odd
    store = open_slices(folder)
    assert store.failed.empty and store.settings["not_hu"] == []
    counts = store.table.groupby("patient").size().to_dict()
    assert counts == {
        "ts_example_ct": 31,
        "ts_dicom20": 14,
        "dcmqi_ct3": 3,
        "cptac_pda_C3L-00189": 35,
    }
    found = pd.read_csv(folder / "inventory.csv").set_index("patient")
    assert (found.coding == "HU").all() and (found.slope == 1).all()
    assert found["axes"].to_dict() == {name: "LPS" for name in EXPECTED} | {"ts_example_ct": "RAS"}
    padding = found.padding.fillna(0).to_dict()
    assert padding == {
        "ts_example_ct": 0,
        "ts_dicom20": 0,
        "dcmqi_ct3": -3024,
        "cptac_pda_C3L-00189": -3024,
    }
    assert (found.oblique_deg == 0).all() and found.voxels.nunique() == 4
    cut = found.mask_cut.fillna("").to_dict()
    assert cut == {
        "ts_example_ct": "top",
        "ts_dicom20": "bottom and top",
        "dcmqi_ct3": "bottom and top",
        "cptac_pda_C3L-00189": "",
    }
    for name in WITH_MASK:
        assert found.mask_ml[name] == pytest.approx(EXPECTED[name][5], abs=0.1)
    assert (found.mask_gaps.dropna() == 0).all() and (found.mask_reach.dropna() == 0).all()
    medians = found.mask_hu.dropna().to_dict()  # of the liver in the kept slices
    assert medians == {"ts_example_ct": 44, "ts_dicom20": 93, "dcmqi_ct3": 45}

    torch.manual_seed(0)
    features = extract_features(TinyNet().eval(), store.images, range(83))
    assert features.shape == (83, 256) and np.isfinite(features).all()
    pca = PCA(2, random_state=0).fit(features)
    plane = pca.transform(features)
    scan = store.table.patient.to_numpy()
    within = [plane[scan == name].var(axis=0).sum() for name in EXPECTED]
    assert pca.explained_variance_ratio_.sum() > 0.4  # 0.52
    assert np.mean(within) < 0.4 * plane.var(axis=0).sum()  # scans keep together: 0.16
    whole = scan == "cptac_pda_C3L-00189"  # and run along their height: 0.96
    assert abs(np.corrcoef(store.table.position[whole], plane[whole, 1])[0, 1]) > 0.8
    again = describe(read_scan(paths("ts_dicom20")[0]))
    assert again["voxels"] == found.voxels["ts_dicom20"]
