"""Scans that lie otherwise than their headers say, and masks of a part: named by what is there."""

import warnings

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from wspnb.data.inventory import mr_window
from wspnb.data.slices import write_slices

AFFINE = np.diag([5.0, 5.0, 5.0, 1.0])


def torso() -> tuple[np.ndarray, np.ndarray]:
    """A trunk of 60 x 50 x 60 voxels of 5 mm, HU: spine at the back, lungs above the liver."""
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (60, 50, 60)), indexing="ij")
    ring = np.hypot(x / 0.9, y / 0.8) * (1 + 0.12 * z)
    hu = np.select([ring < 0.85, ring < 1], [45.0, -95.0], -1000.0)
    hu[np.hypot(x / 0.12, (y + 0.45 + 0.12 * z) / 0.15) < 1] = 400
    liver = ((x - 0.33) / 0.32) ** 2 + ((y - 0.1) / 0.35) ** 2 + ((z - 0.2) / 0.5) ** 2 < 1
    hu[(ring < 0.7) & (z > 0.9 - ring) & (y > -0.25) & ~liver] = -800
    hu[liver] = 110
    return np.rint(hu + rng.normal(0, 8, hu.shape)).astype(np.int16), liver


def said_of(folder, hu, liver=None, modality="", store="s") -> tuple[str, pd.Series]:
    """What is warned of, and the inventory's row."""
    nib.save(nib.Nifti1Image(hu, AFFINE), folder / "a.nii.gz")
    if liver is not None:
        nib.save(nib.Nifti1Image(liver.astype(np.uint8), AFFINE), folder / "m.nii.gz")
    line = f"a.nii.gz,{'m.nii.gz' * (liver is not None)},A,0,,radio,{modality}\n"
    head = "volume,mask,patient,weak_label,label,cohort,modality\n"
    (folder / "c.csv").write_text(head + line)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        write_slices(folder / "c.csv", folder / store, 32, workers=1, progress=False)
    row = pd.read_csv(folder / store / "inventory.csv").iloc[0]
    return " ".join(str(warning.message) for warning in said), row


@pytest.mark.parametrize("masked", [True, False])
def test_a_scan_that_lies_as_its_header_says_is_not_named(tmp_path, masked):
    hu, liver = torso()
    said, row = said_of(tmp_path, hu, liver if masked else None)
    assert said == "" and row.bone_front_mm < -20 and abs(row.bone_right_mm) < 10
    if masked:
        assert row.lung_above > 0.1 and row.mask_flat < 0.3


@pytest.mark.parametrize(
    ("kept", "lung"),  # the whole scan; without the liver's dome; a chest
    [(slice(None), 0.3), (slice(44), np.nan), (slice(34, None), 0.1)],
)
def test_upside_down(tmp_path, kept, lung):
    hu, liver = (a[:, :, kept] for a in torso())
    words = "lung below the liver and not above it: upside down?"
    said, row = said_of(tmp_path, hu, liver)
    assert words not in said and (row.lung_above > lung or np.isnan(lung))
    said, row = said_of(tmp_path, hu[:, :, ::-1], liver[:, :, ::-1], store="t")
    assert words in said and row.lung_above < -0.05


@pytest.mark.parametrize(
    ("planes", "masked", "named"),
    [
        (np.r_[0:60], True, False),
        (np.r_[0:60], False, False),
        (np.r_[0:60:2], False, False),  # 10 mm
        (np.r_[0:30, 38:60], True, True),  # 40 mm are missing
        (np.r_[0:30, 38:60], False, True),
        (np.r_[0:30:5, 30:60], False, True),  # every 25 mm, then every 5
    ],
)
def test_slices_that_are_missing(tmp_path, planes, masked, named):
    hu, liver = (a[:, :, planes] for a in torso())
    said, row = said_of(tmp_path, hu, liver if masked else None)
    assert ("have a step from slice to slice that is over 2 times" in said) is named
    assert 1 <= row.slice_jump <= 10


def test_a_page_of_letters_behind_the_slices(tmp_path):
    hu, _ = torso()
    hu[:, :, -1] = np.where(np.random.default_rng(1).random(hu.shape[:2]) < 0.2, 255, -1000)
    said, row = said_of(tmp_path, hu)
    assert "a page of letters is among them" in said and row.slice_jump > 4


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("turn", ["front is back", "half a turn", "a quarter"])
def test_mirrored_or_turned_about_the_long_axis(tmp_path, turn, masked):
    hu, liver = torso()
    turned = {
        "front is back": lambda a: a[:, ::-1],
        "half a turn": lambda a: a[::-1, ::-1],
        "a quarter": lambda a: np.swapaxes(a, 0, 1),
    }[turn]
    if turn == "half a turn" and masked:
        liver = liver[::-1]  # else on the left, which is named as well
    said, _ = said_of(tmp_path, turned(hu), turned(liver) if masked else None)
    assert "have bone in front of the body's middle, or far to a side" in said


def test_a_part_of_a_liver(tmp_path):
    hu, liver = torso()
    middle = np.flatnonzero(liver.any((0, 1))).mean().astype(int)
    liver[:, :, :middle] = False
    said, row = said_of(tmp_path, hu, liver)
    assert "end with half of their largest section or more" in said and row.mask_flat > 0.9


def test_a_short_scan_without_a_mask(tmp_path):
    hu, _ = torso()
    said, _ = said_of(tmp_path, hu[:, :, 20:26])
    assert "have no mask and less than 40 mm of slices kept" in said


def test_padding_that_was_read_as_unsigned(tmp_path):
    hu, liver = torso()
    hu = hu.astype(np.int32)
    hu[0, 0, ::7] = 65535 - 1024
    said, _ = said_of(tmp_path, hu, liver)
    assert "have voxels above 32767 HU" in said


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e3])
def test_an_mri_has_one_window_in_any_unit(unit):
    """A map of diffusion in mm2/s lies below 0.003."""
    sample = np.random.default_rng(0).gamma(2, 200, (40, 40, 4))
    low, high = mr_window(sample)
    np.testing.assert_allclose(mr_window(sample * unit), (low * unit, high * unit), rtol=5e-4)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda hu: np.rint(0.5 * hu), True),  # the slope applied twice
        (lambda hu: hu, False),
        (lambda hu: hu.clip(-500, 500), False),  # a window
    ],
)
def test_air_that_is_no_air(tmp_path, change, named):
    hu, liver = torso()
    said, _ = said_of(tmp_path, change(hu).astype(np.int16), liver)
    assert ("air that is far from -1000 HU" in said) is named


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    "fault",
    ["none", "two phases in turn", "in turn but for fat", "one slice of another scale"],
)
def test_mri_from_slice_to_slice(tmp_path, masked, fault):
    hu, liver = torso()
    grey = np.select([liver, hu > 200, hu > -80, hu > -500], [300.0, 80, 200, 350], 5.0)
    if fault == "two phases in turn":  # in phase and opposed, of one Dixon scan
        grey[:, :, ::2] *= 0.8
    elif fault == "in turn but for fat":
        grey[:, :, ::2] *= np.where((hu > -80) | (hu < -500), 0.8, 1)[:, :, ::2]
    elif fault == "one slice of another scale":
        grey[:, :, 35] *= 2.5
    grey = np.abs(grey + np.random.default_rng(1).normal(0, 5, hu.shape)).astype(np.int16)
    said, _ = said_of(tmp_path, grey, liver if masked else None, "mr")
    assert ("go to and fro by more than" in said) is ("in turn" in fault)
    assert ("MRI, such as a.nii.gz, change by more" in said) is (fault.startswith("one slice"))


@pytest.mark.parametrize("fluid", [1000.0, 200.0])
def test_an_mri_whose_window_leaves_the_liver_black(tmp_path, fluid):
    """Ascites in a T2: the body's limit is a tenth of what is brightest."""
    hu, liver = torso()
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in hu.shape), indexing="ij")
    grey = np.select([liver, hu > 200, hu > -80, hu > -500], [60.0, 80, 40, 250], 5.0)
    ring = np.hypot(x / 0.75, y / 0.65)
    grey[(ring > 0.8) & (ring < 1) & (hu > -80) & ~liver] = fluid
    grey = np.abs(grey + np.random.default_rng(1).normal(0, 4, hu.shape)).astype(np.int16)
    said, _ = said_of(tmp_path, grey, modality="mr")
    assert ("darker than their window, so black" in said) is (fluid == 1000)
