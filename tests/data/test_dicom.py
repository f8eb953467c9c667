"""DICOM series written and read back: HU, place, and the refusals."""

import locale

import nibabel as nib
import numpy as np
import pytest

from wspnb.data.dicom import convert_series, find_series, main
from wspnb.data.inventory import load_hu

sitk = pytest.importorskip("SimpleITK", reason="the extra 'dicom' is not installed")
ROOT = "1.2.826.0.1.3680043.2.1125"


def write_series(folder, hu, number=1, heights=None, modality="CT", words="venous", tilt=0.0):
    """``(x, y, z)`` HU in DICOM axes (left, back, head) of 0.7 x 0.8 x 2.5 mm; returns the UID."""
    folder.mkdir(parents=True, exist_ok=True)
    uid = f"{ROOT}.{number}"
    heights = np.arange(hu.shape[2]) * 2.5 - 40 if heights is None else heights
    before, writer = locale.setlocale(locale.LC_CTYPE), sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in np.random.default_rng(0).permutation(hu.shape[2]):  # file names in no order
        image = sitk.GetImageFromArray(np.ascontiguousarray(hu[:, :, k].T[None]))
        image.SetSpacing((0.7, 0.8, 2.5))
        tags = {
            "0008|0060": modality,
            "0008|103e": words,
            "0020|000d": f"{ROOT}.0",
            "0020|000e": uid,
            "0008|0018": f"{uid}.{k + 1}",
            "0020|0013": str(k + 1),
            "0020|0032": f"-100\\{-120 + tilt * k}\\{heights[k]}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{number}-{(k * 7) % 11}-{k}.dcm"))
        writer.Execute(image)
    locale.setlocale(locale.LC_CTYPE, before)  # the writer sets it to C
    return uid


def volume(seed=0, depth=6):
    hu = np.random.default_rng(seed).integers(-1000, 1000, (20, 16, depth)).astype(np.int16)
    hu[5:15, 4:12] = 50
    return hu


def test_hu_and_place_survive(tmp_path):
    hu = volume()
    write_series(tmp_path / "p" / "study" / "CT", hu)
    out = convert_series(tmp_path / "p", tmp_path / "nifti" / "p.nii.gz")
    image = nib.load(out)
    np.testing.assert_allclose(image.affine[:3, 3], [100, 120, -40], atol=1e-4)
    read, spacing, row = load_hu(out)
    np.testing.assert_array_equal(read, hu[::-1, ::-1])  # to the right, to the front
    np.testing.assert_allclose(spacing, [0.7, 0.8, 2.5], rtol=1e-6)
    assert row["coding"] == "HU" and row["axes"] == "LPS"
    assert [p.name for p in (tmp_path / "nifti").iterdir()] == ["p.nii.gz"]


def test_several_series_are_listed_and_chosen(tmp_path):
    uids = [write_series(tmp_path / "p" / str(n), volume(n), n, words=f"phase {n}") for n in (1, 2)]
    assert sorted(find_series(tmp_path / "p")) == uids
    with pytest.raises(ValueError, match="2 series to choose from, one is needed") as error:
        convert_series(tmp_path / "p", tmp_path / "p.nii.gz")
    for number, uid in enumerate(uids, 1):
        assert f"{uid}  6 images, CT, phase {number}" in str(error.value)
    assert "--series UID" in str(error.value) and not (tmp_path / "p.nii.gz").exists()
    convert_series(tmp_path / "p", tmp_path / "p.nii.gz", ("other", uids[1]))
    np.testing.assert_array_equal(load_hu(tmp_path / "p.nii.gz")[0], volume(2)[::-1, ::-1])


@pytest.mark.parametrize(
    "options, words",
    [
        ({"heights": [0, 2.5, 5, 10, 12.5, 15]}, r"gaps of 2\.50 to 5\.00 mm: slices are missing"),
        ({"heights": [0, 0, 2.5, 2.5, 5, 5]}, r"gaps of 0\.00 to 2\.50 mm"),
        ({"heights": [5.0] * 6}, r"gaps of 0\.00 to 0\.00 mm"),
        ({"tilt": 0.4}, "tilted gantry"),
        ({"modality": "MR"}, "is MR, not CT"),
    ],
)
def test_refused(tmp_path, options, words):
    write_series(tmp_path / "p", volume(), **options)
    with pytest.raises(ValueError, match=words):
        convert_series(tmp_path / "p", tmp_path / "p.nii.gz")


def test_a_series_in_two_folders_is_one(tmp_path):
    write_series(tmp_path / "p" / "DISC1", volume())
    (tmp_path / "p" / "DISC2").mkdir()
    for file in sorted((tmp_path / "p" / "DISC1").iterdir())[::2]:
        file.rename(tmp_path / "p" / "DISC2" / file.name)
    convert_series(tmp_path / "p", tmp_path / "p.nii.gz")
    np.testing.assert_array_equal(load_hu(tmp_path / "p.nii.gz")[0], volume()[::-1, ::-1])


def test_the_command_goes_on_and_ends_with_one(tmp_path, capsys):
    write_series(tmp_path / "dicom" / "good", volume())
    (tmp_path / "dicom" / "nothing").mkdir()
    assert main([str(tmp_path / "dicom"), str(tmp_path / "nifti")]) == 1
    said = capsys.readouterr()
    assert said.out.strip().endswith("good.nii.gz") and "no DICOM series" in said.err
    (tmp_path / "dicom" / "nothing").rmdir()
    assert main([str(tmp_path / "dicom"), str(tmp_path / "nifti")]) == 0
    assert "good.nii.gz (there already, not converted again)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(tmp_path / "nothing"), str(tmp_path / "nifti")])
    assert "no such folder" in capsys.readouterr().err
