"""Volumes: orientation, units, window, kept slices, positions, display, and clear refusals."""

import gzip
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from wspnb.data.volumes import (
    body_slices,
    central_slices,
    load_mask,
    load_volume,
    read_scan,
    resize,
    slice_positions,
    to_image,
    window,
)

AFFINE = np.array([[0.8, 0, 0, -90], [0, 0.7, 0, -120], [0, 0, 3.2, 40], [0, 0, 0, 1.0]])
VOXELS = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6) * 10 - 300
ORIENTATIONS = ["RAS", "LPS", "LAS", "RPI", "PIR", "SRA", "ILP", "AIL"]


def save(path, array, affine=AFFINE, orientation="RAS"):
    """Store an RAS array in another orientation, its place in space unchanged."""
    ornt = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(orientation))
    stored = nib.orientations.apply_orientation(array, ornt)
    nib.save(nib.Nifti1Image(stored, affine @ inv_ornt_aff(ornt, array.shape)), path)
    return path


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_any_stored_orientation_reads_the_same(tmp_path, orientation):
    path = save(tmp_path / "ct.nii.gz", VOXELS, orientation=orientation)
    stored = nib.load(path)
    assert "".join(nib.aff2axcodes(stored.affine)) == orientation
    hu, spacing = load_volume(path)
    assert hu.dtype == np.float32
    np.testing.assert_array_equal(hu, VOXELS)
    np.testing.assert_allclose(spacing, [0.8, 0.7, 3.2], rtol=1e-6)
    mask = load_mask(save(tmp_path / "m.nii.gz", (VOXELS > 0).astype(np.uint8)), path)
    np.testing.assert_array_equal(mask, VOXELS > 0)  # mask in RAS, volume in another


def test_depth_follows_the_affine_and_not_the_file(tmp_path):
    """A stack stored from head to feet comes out from feet to head."""
    height = np.broadcast_to(np.arange(6, dtype=np.int16), (4, 5, 6))
    affine = AFFINE.copy()
    affine[2, 2] = -3.2
    nib.save(nib.Nifti1Image(height, affine), tmp_path / "down.nii")
    hu, _ = load_volume(tmp_path / "down.nii")
    assert hu[0, 0].tolist() == [5, 4, 3, 2, 1, 0]


def test_slope_and_intercept_are_applied(tmp_path):
    image = nib.Nifti1Image(np.arange(60, dtype=np.uint16).reshape(3, 4, 5), AFFINE)
    image.header.set_slope_inter(2, -1024)
    path = tmp_path / "coded.nii.gz"
    nib.save(image, path)
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[352:] = np.arange(60, dtype="<u2").tobytes()  # codes as a scanner stores them
    path.write_bytes(gzip.compress(bytes(raw)))
    hu, _ = load_volume(path)
    np.testing.assert_array_equal(hu.ravel(order="F"), np.arange(60) * 2 - 1024)


def test_oblique_takes_the_closest_axes_and_the_length_of_the_columns(tmp_path):
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    save(tmp_path / "tilted.nii.gz", VOXELS, turn @ AFFINE, "LPI")
    hu, spacing = load_volume(tmp_path / "tilted.nii.gz")
    np.testing.assert_array_equal(hu, VOXELS)
    np.testing.assert_allclose(spacing, [0.8, 0.7, 3.2], rtol=1e-6)


def test_trailing_single_axes_and_a_single_slice_are_volumes(tmp_path):
    save(tmp_path / "one.nii.gz", VOXELS[:, :, :1])
    assert load_volume(tmp_path / "one.nii.gz")[0].shape == (4, 5, 1)
    nib.save(nib.Nifti1Image(VOXELS[..., None, None], AFFINE), tmp_path / "five.nii.gz")
    np.testing.assert_array_equal(load_volume(tmp_path / "five.nii.gz")[0], VOXELS)


def bad_files(folder):
    """Name -> words of the error, one bad file each."""
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5, 2), np.int16), AFFINE), folder / "4d.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((3, 4), np.int16), AFFINE), folder / "2d.nii.gz")
    rgb = np.zeros((3, 4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, AFFINE), folder / "rgb.nii.gz")
    nib.save(nib.Nifti1Image(VOXELS, None), folder / "no_affine.nii.gz")
    flat = AFFINE.copy()
    flat[:3, 2] = 0
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = flat[:3]
    raw = bytearray(image.to_bytes())
    raw[280:328] = flat[:3].astype("<f4").tobytes()
    (folder / "flat.nii").write_bytes(raw)
    raw[280:328] = np.full(12, np.nan, "<f4").tobytes()
    (folder / "nan_affine.nii").write_bytes(raw)
    holes = VOXELS.astype(np.float32)
    holes[0, 0, :2], holes[1, 1, 1] = np.nan, np.inf
    nib.save(nib.Nifti1Image(holes, AFFINE), folder / "nan.nii.gz")
    noise = np.random.default_rng(0).integers(-999, 999, (40, 40, 20)).astype(np.int16)
    whole = gzip.compress(nib.Nifti1Image(noise, AFFINE).to_bytes())
    (folder / "truncated.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "truncated.nii").write_bytes(nib.Nifti1Image(noise, AFFINE).to_bytes()[:9000])
    broken = bytearray(whole)
    broken[len(whole) // 2 : len(whole) // 2 + 200] = bytes(200)
    (folder / "broken.nii.gz").write_bytes(broken)
    (folder / "text.nii.gz").write_text("not an image")
    (folder / "empty.nii").write_bytes(b"")
    return {
        "4d.nii.gz": r"shape \(3, 4, 5, 2\), not one 3-D volume",
        "2d.nii.gz": "not one 3-D volume",
        "rgb.nii.gz": "not plain numbers",
        "no_affine.nii.gz": "no valid affine.*feet and head",
        "flat.nii": "no valid affine",
        "nan_affine.nii": "no valid affine",
        "nan.nii.gz": "3 of 120 voxels are not finite",
        "truncated.nii.gz": "damaged or truncated",
        "truncated.nii": "damaged or truncated",
        "broken.nii.gz": "damaged or truncated",
        "text.nii.gz": "not readable as NIfTI",
        "empty.nii": "not readable as NIfTI",
    }


def test_bad_volumes_are_refused_by_name(tmp_path):
    for name, words in bad_files(tmp_path).items():
        with pytest.raises(ValueError, match=words) as error:
            load_volume(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"gone\.nii"):
        load_volume(tmp_path / "gone.nii")


def test_mask_must_lie_on_the_volume(tmp_path):
    ct = save(tmp_path / "ct.nii.gz", VOXELS)
    organs = np.zeros(VOXELS.shape, np.uint8)
    organs[1, 2, 3], organs[2, 2, 3] = 5, 1
    good = save(tmp_path / "m.nii.gz", organs)
    assert np.argwhere(load_mask(good, ct)).tolist() == [[1, 2, 3], [2, 2, 3]]
    assert np.argwhere(load_mask(good, ct, value=5)).tolist() == [[1, 2, 3]]
    whole = save(tmp_path / "float.nii.gz", organs.astype(np.float32) + 1e-5)
    assert np.argwhere(load_mask(whole, ct)).tolist() == [[1, 2, 3], [2, 2, 3]]
    assert np.argwhere(load_mask(whole, ct, value=1)).tolist() == [[2, 2, 3]]
    for move, accepted in [(0.3, True), (0.4, False), (3.2, False)]:  # half a voxel is 0.35 mm
        near = AFFINE.copy()
        near[1, 3] += move
        path = save(tmp_path / "moved.nii.gz", organs, near)
        if accepted:
            load_mask(path, ct)
        else:
            with pytest.raises(ValueError, match=f"{move:.1f} mm away"):
                load_mask(path, ct)
    with pytest.raises(ValueError, match=r"shape \(4, 5, 5\).*\(4, 5, 6\)"):
        load_mask(save(tmp_path / "short.nii.gz", organs[:, :, 1:]), ct)
    with pytest.raises(ValueError, match="whole numbers"):
        load_mask(save(tmp_path / "soft.nii.gz", organs.astype(np.float32) / 2), ct)


def test_map_of_many_organs_needs_the_livers_label(tmp_path):
    organs = np.zeros(VOXELS.shape, np.uint8)
    organs[1, 1, :4] = 1, 5, 90, 117
    path = save(tmp_path / "total.nii.gz", organs)
    with pytest.raises(ValueError, match=r"4 labels \(1, 5, 90, 117.*which is the liver.*as one"):
        load_mask(path)
    assert np.argwhere(load_mask(path, value=5)).tolist() == [[1, 1, 1]]
    parts = np.where(organs == 117, 0, organs)  # three: a liver with its vessels and tumours
    assert load_mask(save(path, parts)).sum() == 3
    save(path, np.where(organs, 255, 0).astype(np.uint8))
    assert load_mask(path).sum() == 4


@pytest.mark.parametrize(("other", "refused"), [((2, 2, 3), False), ((1, 2, 4), False),
                                                ((1, 3, 3), False), ((3, 2, 3), True)])  # fmt: skip
def test_a_label_that_touches_no_other_is_another_organ(tmp_path, other, refused):
    organs = np.zeros(VOXELS.shape, np.uint8)
    organs[1, 2, 3], organs[other] = 1, 2
    path = save(tmp_path / "m.nii.gz", organs)
    if not refused:
        assert load_mask(path).sum() == 2
        return
    with pytest.raises(ValueError, match=r"m\.nii\.gz: labels that touch no other \(\[1, 2\]\)"):
        load_mask(path)
    assert np.argwhere(load_mask(path, value=1)).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, "slope"])
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_wide_voxels_cost_no_more_than_narrow_ones(tmp_path, kind, ending):
    """Many tools write masks and resampled CT as float64: a mask, then a volume of such a file."""
    path, voxels = tmp_path / f"v.{ending}", np.zeros((64, 60, 1000), np.uint8)
    voxels[10:20, 10:20, 50:60] = 3
    image = nib.Nifti1Image(voxels, AFFINE)
    if kind == "slope":
        image.header.set_slope_inter(1 / 3, 0)  # 0 and 1
    else:
        image = nib.Nifti1Image(voxels[..., None].astype(kind), AFFINE, dtype=kind)
    nib.save(image, path)
    tracemalloc.start()
    mask = load_mask(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mask.sum() == 1000 and mask[10, 10, 50] and peak < 6.5 * voxels.size
    hu, _ = load_volume(path)
    np.testing.assert_array_equal(hu, voxels / (3 if kind == "slope" else 1))
    scan = read_scan(path)
    assert scan.voxels.itemsize <= 4 and scan.dtype == str(image.get_data_dtype())


def test_numbers_beyond_32_bits_are_refused(tmp_path):
    for number, voxel in enumerate((np.int64(2**40), np.float64(1e300))):
        voxels = np.full((3, 4, 5), voxel)
        nib.save(nib.Nifti1Image(voxels, AFFINE, dtype=voxels.dtype), tmp_path / f"{number}.nii")
        with pytest.raises(ValueError, match=rf"{number}\.nii: .*(32 bits|not finite)"):
            load_volume(tmp_path / f"{number}.nii")


def test_window_never_wraps():
    hu = np.array([-3024, -1000, -100, -99, 0, 150, 399, 400, 401, 3071, 32767])
    expected = [0, 0, 0, 1, 51, 128, 254, 255, 255, 255, 255]
    for kind in (np.int16, np.int32, np.float32, np.float64):
        grey = window(hu.astype(kind))
        assert grey.dtype == np.uint8 and grey.tolist() == expected
    assert window(np.array([-np.inf, np.inf])).tolist() == [0, 255]
    every = window(np.arange(-2000, 4000))
    assert (np.diff(every.astype(int)) >= 0).all()  # monotone: no wrap anywhere
    assert window(np.array([50]), 0, 100).tolist() == [128]
    with pytest.raises(ValueError, match="below"):
        window(hu, 400, -100)
    with pytest.raises(ValueError, match="1 values are NaN"):
        window(np.array([0.0, np.nan]))


def organ(first, last, depth=60):
    mask = np.zeros((3, 3, depth), bool)
    mask[1, 1, first : last + 1] = True
    return mask


@pytest.mark.parametrize(
    "n, fraction, kept",
    [
        *[(1, 0.7, 1), (2, 0.7, 2), (3, 0.7, 3), (4, 0.7, 2), (5, 0.7, 3), (6, 0.7, 4)],
        *[(7, 0.7, 5), (10, 0.7, 8), (20, 0.7, 14), (30, 0.7, 22), (43, 0.7, 31), (50, 0.7, 36)],
        *[(10, 1.0, 10), (10, 0.01, 2), (11, 0.01, 1), (11, 0.5, 5), (40, 0.2, 8), (2, 0.1, 2)],
    ],
)
def test_central_slices_closed_cases(n, fraction, kept):
    slices = central_slices(organ(5, 4 + n), fraction)
    assert len(slices) == kept
    assert (np.diff(slices) == 1).all()
    assert slices[0] - 5 == 4 + n - slices[-1]  # as many left out below as above


def test_central_slices_for_every_size_are_symmetric_and_closest():
    for n in range(1, 60):
        for fraction in (0.05, 0.3, 0.5, 0.7, 0.9, 1.0):
            slices = central_slices(organ(0, n - 1), fraction)
            assert slices[0] == n - 1 - slices[-1]
            allowed = np.arange(n, 0, -2)  # what symmetry permits
            best = np.abs(allowed - fraction * n).min()
            assert abs(abs(len(slices) - fraction * n) - best) < 1e-6


def test_central_slices_edges():
    mask = organ(10, 29)
    mask[:, :, 15:20] = False  # a gap in the mask, such as a missed lobe
    assert central_slices(mask).tolist() == list(range(13, 27))
    assert central_slices(organ(7, 7)).tolist() == [7]
    assert central_slices(organ(10, 29).astype(np.uint8) * 3).tolist() == list(range(13, 27))
    with pytest.raises(ValueError, match="empty"):
        central_slices(np.zeros((3, 3, 5)))
    with pytest.raises(ValueError, match="volume"):
        central_slices(np.ones((3, 3)))
    with pytest.raises(ValueError, match="write 0 outside"):  # as SPM and others do
        central_slices(np.where(mask, 1, np.nan))
    for fraction in (0, -0.1, 1.1):
        with pytest.raises(ValueError, match="fraction"):
            central_slices(organ(1, 2), fraction)


def test_body_slices_leave_out_air():
    hu = np.full((20, 20, 9), -1000.0)
    hu[4:16, 4:16, 2:7] = 40
    hu[0, :10, 8] = 500  # a bare table: 2.5 % of the slice
    hu[4:16, 4:16, 4] = -900  # a slice of lung only inside the body is kept
    assert body_slices(hu).tolist() == [2, 3, 4, 5, 6]
    padded = np.concatenate([hu, np.zeros((20, 20, 3))], axis=2)  # zeros are no body
    assert body_slices(padded).tolist() == [2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match="no slice shows a body"):
        body_slices(np.full((4, 4, 3), -1000.0))


def test_positions():
    assert slice_positions(5).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert slice_positions(5, "k/n").tolist() == [0, 0.2, 0.4, 0.6, 0.8]
    assert slice_positions(1).tolist() == [0.5] and slice_positions(1, "k/n").tolist() == [0]
    with pytest.raises(ValueError, match="convention"):
        slice_positions(5, "k")
    with pytest.raises(ValueError, match="0 slices"):
        slice_positions(0)


def test_display_has_front_on_top_and_right_on_the_left():
    plane = np.zeros((4, 6))  # (x, y)
    plane[3, 5] = 1  # right, front
    plane[0, 0] = 2  # left, back
    image = to_image(plane)
    assert image.shape == (6, 4) and image[0, 0] == 1 and image[-1, -1] == 2
    stack = np.stack([plane, plane * 2], axis=2)
    np.testing.assert_array_equal(to_image(stack)[1], to_image(plane * 2))


def test_resize_pads_to_a_square_and_keeps_proportions():
    image = np.full((40, 80), 100, np.float32)
    square = resize(image, 80, air=-1000)
    assert square.shape == (80, 80)
    assert (square[20:60] == 100).all() and (np.delete(square, np.s_[20:60], 0) == -1000).all()
    small = resize(image, 20, air=-100)
    np.testing.assert_allclose(small[6:14], 100, atol=1e-3)
    np.testing.assert_allclose(small[[0, 1, 2, -3, -2, -1]], -100, atol=1e-3)
    tall = resize(image, 80, pixel=(2, 1), air=0)  # 80 mm x 80 mm: fills the square
    assert tall.shape == (80, 80) and (tall == 100).all()
    same = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    np.testing.assert_array_equal(resize(same, 64), same)


@pytest.mark.parametrize("size", [24, 64, 96])
def test_resize_is_the_antialiased_one_of_torch(size):
    image = np.random.default_rng(0).normal(0, 60, (80, 80)).astype(np.float32)
    batch = torch.from_numpy(image)[None, None]
    theirs = torch.nn.functional.interpolate(batch, (size, size), mode="bilinear", antialias=True)
    np.testing.assert_allclose(resize(image, size), theirs[0, 0], atol=0.01)


def test_resize_averages_instead_of_aliasing():
    stripes = np.tile([0, 100], (128, 64)).astype(np.float32)  # finer than the small image shows
    np.testing.assert_allclose(resize(stripes, 32)[:, 2:-2], 50, atol=2)
    ramp = np.broadcast_to(np.arange(128, dtype=np.float32), (128, 128))
    np.testing.assert_allclose(resize(ramp, 32)[5, 3:-3], np.arange(3, 29) * 4 + 1.5, atol=1e-3)


def test_some_organs_of_a_map_are_no_liver(tmp_path):
    """TotalSegmentator's map of two organs that touch: which is the liver nobody has said."""
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[2:5, 2:6, 2:6], labels[5:7, 2:6, 2:6] = 5, 2
    path = tmp_path / "m.nii.gz"
    nib.save(nib.Nifti1Image(labels, np.eye(4) * (2, 2, 2, 1)), path)
    with pytest.raises(ValueError, match=r"labels 2, 5 without a 1.*mask_value"):
        load_mask(path)
    assert load_mask(path, value=5).sum() == 48
