"""DICOM series written and read back: HU, place, every file accounted for, and the refusals."""

import io
import os
import re
import shutil
import subprocess
import sys
import warnings
import zipfile

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from wspnb.data import dicom as module
from wspnb.data.dicom import account, convert_series, find_series, index, main
from wspnb.data.inventory import open_hu
from wspnb.files import alone

pydicom = pytest.importorskip("pydicom", reason="the extra 'dicom' is not installed")
pytest.importorskip("SimpleITK", reason="the extra 'dicom' is not installed")
ROOT = "1.2.826.0.1.3680043.2.1125"


def write_series(folder, hu, number=1, heights=None, tilt=0.0, prefix="", change=None, **fields):
    """``(x, y, z)`` HU in DICOM axes (left, back, head) of 0.7 x 0.8 x 2.5 mm; returns the UID.

    ``change`` is a function of the slice's number to fields of it alone; None deletes one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uid = f"{ROOT}.{number}"
    heights = np.arange(hu.shape[2]) * 2.5 - 40 if heights is None else heights
    for k in range(hu.shape[2]):
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"{uid}.{k + 1}"
        image = pydicom.dataset.FileDataset("", {}, preamble=bytes(128), file_meta=meta)
        values = {
            "SOPClassUID": pydicom.uid.CTImageStorage,
            "SOPInstanceUID": f"{uid}.{k + 1}",
            "SeriesInstanceUID": uid,
            "StudyInstanceUID": f"{ROOT}.0",
            "PatientID": "P1",
            "Modality": "CT",
            "SeriesDescription": "venous",
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "AcquisitionNumber": 1,
            "ImagePositionPatient": [-100, round(-120 + tilt * k, 6), round(float(heights[k]), 6)],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [0.8, 0.7],
            "Rows": hu.shape[1],
            "Columns": hu.shape[0],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 0,
            "RescaleSlope": 1,
            "RescaleIntercept": -1024,
        }
        for name, value in (values | fields | (change(k) if change else {})).items():
            if value is not None:
                setattr(image, name, value)
        stored = (hu[: image.Columns, : image.Rows, k].T + 1024).astype("<u2")
        image.PixelData = stored.tobytes()
        name = f"{prefix}{number}-{(k * 7) % 11}-{k}.dcm"  # file names in no order
        image.save_as(folder / name, enforce_file_format=True)
    return uid


def volume(seed=0, depth=6):
    hu = np.random.default_rng(seed).integers(-1000, 1000, (20, 16, depth)).astype(np.int16)
    hu[5:15, 4:12] = 50
    return hu


def as_read(hu):
    return hu[::-1, ::-1]  # to the right, to the front


def test_hu_and_place_survive(tmp_path):
    hu = volume()
    write_series(tmp_path / "p" / "study" / "CT", hu)
    out = convert_series(tmp_path / "p", tmp_path / "nifti" / "p.nii.gz")
    image = nib.load(out)
    np.testing.assert_allclose(image.affine[:3, 3], [100, 120, -40], atol=1e-4)
    hu_read = open_hu(out)
    read, spacing, row = hu_read[...], hu_read.spacing, hu_read.row
    np.testing.assert_array_equal(read, as_read(hu))
    np.testing.assert_allclose(spacing, [0.7, 0.8, 2.5], rtol=1e-6)
    assert row["coding"] == "HU" and row["axes"] == "LPS" and row["dtype"] == "int16"
    assert [p.name for p in (tmp_path / "nifti").iterdir()] == ["p.nii.gz"]


def test_several_series_are_listed_and_chosen(tmp_path):
    uids = [
        write_series(tmp_path / "p" / str(n), volume(n), n, SeriesDescription=f"phase {n}")
        for n in (1, 2)
    ]
    assert sorted(find_series(tmp_path / "p")) == uids
    with pytest.raises(ValueError, match="2 series to choose from, one is needed") as error:
        convert_series(tmp_path / "p", tmp_path / "p.nii.gz")
    for number, uid in enumerate(uids, 1):
        assert f"{uid}  6 images, CT, phase {number}" in str(error.value)
    assert "--series UID" in str(error.value) and not (tmp_path / "p.nii.gz").exists()
    convert_series(tmp_path / "p", tmp_path / "p.nii.gz", ("other", uids[1]))
    np.testing.assert_array_equal(open_hu(tmp_path / "p.nii.gz")[...], as_read(volume(2)))
    uses = account(index(tmp_path / "p"), uids[1]).groupby("use").size().to_dict()
    other = "image, not converted: of another series than the one taken"
    assert uses == {other: 6, "used": 6}
    refused = account(index(tmp_path / "p"), "", "an odd slice").use.unique().tolist()
    assert refused == ["image, not converted: an odd slice"]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"heights": [0, 2.5, 5, 10, 12.5, 15]}, r"gaps of 2\.50 to 5\.00 mm: slices are missing"),
        ({"heights": [0, 0, 2.5, 2.5, 5, 5]}, r"gaps of 0\.00 to 2\.50 mm: .* copies under other"),
        ({"heights": [5.0] * 6}, r"gaps of 0\.00 to 0\.00 mm"),
        ({"heights": [0, 2.5, 5, 7.6, 10.2, 12.8]}, r"gaps of 2\.50 to 2\.60 mm"),
        ({"tilt": 0.4}, "tilted gantry"),
        ({"Modality": "MR"}, "is MR, not CT"),
        ({"NumberOfFrames": 6}, r"multi-frame file \(6 frames in .*dcm\), .*dcm2niix"),
        ({"PixelSpacing": None}, r"PixelSpacing is missing or no number \(''\), such as in .*dcm"),
        ({"RescaleIntercept": None}, "RescaleIntercept is missing"),
        ({"ImageOrientationPatient": None}, "ImageOrientationPatient is missing"),
        ({"ImagePositionPatient": None}, "no ImagePositionPatient in .*dcm"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "MONOCHROME1, 1 samples, not MONOCHROME2"),
        ({"SeriesInstanceUID": None}, "an image of no series"),
    ],
)
def test_refused(tmp_path, options, words):
    options = {"NumberOfFrames": None} | options
    write_series(tmp_path / "p", volume(), **options)
    if options["NumberOfFrames"]:  # with the pixels of all
        for file in (tmp_path / "p").iterdir():
            image = pydicom.dcmread(file)
            image.PixelData *= 6
            image.save_as(file)
    with pytest.raises(ValueError, match=words) as error:
        convert_series(tmp_path / "p", tmp_path / "p.nii.gz")
    assert str(tmp_path / "p") in str(error.value) and not (tmp_path / "p.nii.gz").exists()


@pytest.mark.parametrize(
    "odd",
    [
        {"RescaleSlope": None, "RescaleIntercept": None},
        {"RescaleIntercept": 0},
        {"RescaleSlope": 2},
        {"PixelSpacing": [1, 1]},
        {"PixelSpacing": None},
        {"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]},
        {"Rows": 12},
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"BitsStored": 12, "HighBit": 11},
        {"PixelRepresentation": 1},
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        {"PatientID": "P2"},
        {"PatientName": "Roe^B"},
        {"Modality": "OT"},
        {"FrameOfReferenceUID": ROOT},
        {"ConvolutionKernel": "B70f"},
        {"SliceThickness": 5},
    ],
    ids=lambda odd: "-".join(odd),
)
@pytest.mark.parametrize("at", [0, 3])
def test_one_slice_does_not_speak_for_all(tmp_path, odd, at):
    """Whichever slice it is, it is named."""
    write_series(tmp_path / "p", volume(), change=lambda k: odd if k == at else {})
    with pytest.raises(ValueError, match=f"{next(iter(odd))} differs from slice to slice") as error:
        convert_series(tmp_path / "p", tmp_path / "p.nii.gz")
    assert f"-{at}.dcm" in str(error.value)


def test_rounded_places_and_jitter_of_the_axes_are_no_gaps(tmp_path):
    for decimals in (1, 2, 3):
        heights = np.round(np.arange(20) * 0.625, decimals)
        folder = tmp_path / str(decimals)
        tiny = {"ImageOrientationPatient": [1, 0.00004, 0, -0.00004, 1, 0]}
        write_series(
            folder, volume(depth=20), 1, heights, change=lambda k, t=tiny: t if k % 2 else {}
        )
        if decimals == 1:  # 0.6 and 0.7: too coarse to tell
            with pytest.raises(ValueError, match=r"gaps of 0\.60 to 0\.70 mm"):
                convert_series(folder, tmp_path / "no.nii.gz")
            continue
        spacing = open_hu(convert_series(folder, tmp_path / f"{decimals}.nii.gz")).spacing
        assert spacing[2] == pytest.approx(0.625, rel=2e-3)


@pytest.mark.parametrize(
    "tag", ["AcquisitionNumber", "AcquisitionTime", "AcquisitionDateTime", "SeriesNumber"]
)
def test_two_phases_half_a_slice_apart_are_not_woven_into_one(tmp_path, tag):
    times = {"AcquisitionTime": ("101010.0", "101040.0")}
    values = (times | {"AcquisitionDateTime": ("20200101101010", "20200101101040")}).get(
        tag, (1, 2)
    )
    woven = lambda k: {tag: values[k % 2]}  # noqa: E731
    write_series(tmp_path / "p", volume(depth=8), change=woven)
    with pytest.raises(ValueError, match=f"acquisitions are interleaved \\({tag}"):
        convert_series(tmp_path / "p", tmp_path / "p.nii.gz")
    blocks = lambda k: {tag: values[k // 4]}  # noqa: E731
    write_series(tmp_path / "q", volume(depth=8), change=blocks)  # one slab after the other
    convert_series(tmp_path / "q", tmp_path / "q.nii.gz")
    np.testing.assert_array_equal(open_hu(tmp_path / "q.nii.gz")[...], as_read(volume(depth=8)))


@pytest.mark.parametrize("twice", [False, True])
def test_numbers_of_two_stacks_tell_them_apart(tmp_path, twice):
    """Anonymised: nothing else says that each second slice is of another phase."""
    woven = lambda k: {"InstanceNumber": k // 2 + (0 if twice else 20 * (k % 2)) + 1}  # noqa: E731
    write_series(tmp_path / "p", volume(depth=8), change=woven)
    with pytest.raises(ValueError, match="InstanceNumber goes to and fro along the slices"):
        convert_series(tmp_path / "p", tmp_path / "p.nii.gz")
    for name, numbers in {"down": range(8, 0, -1), "slabs": [5, 6, 7, 8, 1, 2, 3, 4]}.items():
        change = lambda k, n=numbers: {"InstanceNumber": n[k]}  # noqa: E731
        write_series(tmp_path / name, volume(depth=8), change=change)
        convert_series(tmp_path / name, tmp_path / "q.nii.gz")
        np.testing.assert_array_equal(open_hu(tmp_path / "q.nii.gz")[...], as_read(volume(depth=8)))


@pytest.mark.parametrize("below", ["nifti", "."])
def test_volumes_among_the_patients_are_no_patient(tmp_path, below, capsys):
    write_series(tmp_path / "P1", volume())
    for _ in range(2):
        assert main([str(tmp_path), str(tmp_path / below)]) == 0
    assert pd.read_csv(tmp_path / below / "series.csv").patient.tolist() == ["P1"]
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(SystemExit):
        main([str(tmp_path), str(tmp_path / "file")])
    assert f"{tmp_path / 'file'}': name a folder for the volumes" in capsys.readouterr().err


def broken(file, how):
    content = file.read_bytes()
    if how == "dead link":
        file.unlink()
        file.symlink_to("/nowhere")
    elif how == "text":
        file.write_text("an error page instead of an image, as some servers send it")
    else:
        cut = {"cut": content[:-300], "header": content[:400], "empty": b"", "zeros": bytes(900)}
        file.write_bytes(cut[how])


@pytest.mark.parametrize("how", ["cut", "header", "empty", "zeros", "dead link", "text"])
@pytest.mark.parametrize("at", [0, 5])
def test_a_lost_slice_at_an_end_is_not_left_out_in_silence(tmp_path, how, at):
    write_series(tmp_path / "p", volume())
    (file,) = (tmp_path / "p").glob(f"*-{at}.dcm")
    broken(file, how)
    with pytest.raises(
        ValueError, match=r"files below that cannot be read and may be slices of it \(1\)"
    ) as error:
        convert_series(tmp_path / "p", tmp_path / "p.nii.gz")
    assert str(file) in str(error.value) and not (tmp_path / "p.nii.gz").exists()


def test_names_with_a_dot_copies_and_files_of_other_kinds(tmp_path):
    write_series(tmp_path / "p" / "a", volume(), prefix=".")
    (tmp_path / "p" / "b").mkdir()
    for file in (tmp_path / "p" / "a").iterdir():
        (tmp_path / "p" / "b" / file.name).write_bytes(file.read_bytes())  # a disc's second copy
    (tmp_path / "p" / "notes.txt").write_text("seen by Dr A")
    (tmp_path / "p" / "up").symlink_to(tmp_path / "p")  # a link in a circle
    convert_series(tmp_path / "p", tmp_path / "p.nii.gz")
    np.testing.assert_array_equal(open_hu(tmp_path / "p.nii.gz")[...], as_read(volume()))
    listing = account(index(tmp_path / "p"), f"{ROOT}.1").set_index("file").use
    assert len(listing) == 13 and listing[str(tmp_path / "p" / "notes.txt")] == "no DICOM"
    other = next((tmp_path / "p" / "b").iterdir())
    image = pydicom.dcmread(other)
    image.PixelData = bytes(len(image.PixelData))
    image.save_as(other)
    with pytest.raises(ValueError, match="have one SOPInstanceUID and are not the same"):
        convert_series(tmp_path / "p", tmp_path / "no.nii.gz")


def test_a_series_in_two_folders_is_one(tmp_path):
    write_series(tmp_path / "p" / "DISC1", volume())
    (tmp_path / "p" / "DISC2").mkdir()
    for file in sorted((tmp_path / "p" / "DISC1").iterdir())[::2]:
        file.rename(tmp_path / "p" / "DISC2" / file.name)
    convert_series(tmp_path / "p", tmp_path / "p.nii.gz")
    np.testing.assert_array_equal(open_hu(tmp_path / "p.nii.gz")[...], as_read(volume()))


def test_the_command_goes_on_and_ends_with_one(tmp_path, capsys):
    write_series(tmp_path / "dicom" / "good", volume())
    (tmp_path / "dicom" / "good" / "Thumbs.db").write_bytes(b"pictures")
    (tmp_path / "dicom" / "nothing").mkdir()
    assert main([str(tmp_path / "dicom"), str(tmp_path / "nifti")]) == 1
    said = capsys.readouterr()
    assert re.search(r"1 of \d patients have a volume in ", said.out)
    assert "good.nii.gz" in said.out and "no DICOM series" in said.err
    assert f"1 of 7 files not used: {tmp_path / 'nifti' / 'files' / 'good.csv'}" in said.out
    listing = pd.read_csv(tmp_path / "nifti" / "files" / "good.csv")
    assert listing.use.value_counts().to_dict() == {"used": 6, "no DICOM": 1}
    (tmp_path / "dicom" / "nothing").rmdir()
    assert main([str(tmp_path / "dicom"), str(tmp_path / "nifti")]) == 0
    assert "good.nii.gz (there already, not converted again)" in capsys.readouterr().out
    command = [sys.executable, "-m", "wspnb.data.dicom", tmp_path / "dicom", tmp_path / "nifti"]
    ear, mouth = os.pipe()
    os.close(ear)  # as | head leaves it
    done = subprocess.run(command, stdout=mouth, stderr=subprocess.PIPE, text=True)
    os.close(mouth)
    assert done.returncode and "Broken pipe" in done.stderr
    assert (tmp_path / "nifti" / "good.nii.gz").exists()
    with pytest.raises(SystemExit):
        main([str(tmp_path / "nothing"), str(tmp_path / "nifti")])
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="names of bytes")
def test_names_that_are_not_utf8(tmp_path):
    """Folder and files out of an old archive; the others are converted too."""
    for name in ("A", "Z"):
        write_series(tmp_path / "dicom" / name, volume(), PatientID=name)
    os.rename(
        os.fsencode(tmp_path / "dicom" / "A"), os.fsencode(tmp_path / "dicom") + b"/M\xfcller"
    )
    command = [sys.executable, "-m", "wspnb.data.dicom", tmp_path / "dicom", tmp_path / "nifti"]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0, done.stderr
    for name in ("Müller", "Z"):
        read = open_hu(tmp_path / "nifti" / f"{name}.nii.gz")[...]
        np.testing.assert_array_equal(read, as_read(volume()))


def test_a_series_is_chosen_in_a_table_and_a_changed_choice_converts_again(tmp_path, capsys):
    dicom, nifti = tmp_path / "dicom", tmp_path / "nifti"
    abdomen, head = volume(), volume(2)
    venous = write_series(dicom / "P" / "a", abdomen, 1, ContrastBolusAgent="iodine")
    other = write_series(dicom / "P" / "b", head, 2, SeriesDescription="head")
    write_series(dicom / "P" / "c", volume()[:, :, :1], 3, SeriesDescription="scout")
    command = [str(dicom), str(nifti)]
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "write x under take in series.csv" in said and "head" in said and "scout" not in said
    table = pd.read_csv(nifti / "series.csv", dtype=str, keep_default_na=False)
    table = table.set_index("series")
    row = table.loc[venous]
    assert (row.folder, row.plane, row.contrast, row.images) == ("a", "axial", "iodine", "6")
    assert float(row.extent_mm) == 12.5 and not (nifti / "P.nii.gz").exists()
    for uid, hu, sign in ((venous, abdomen, ","), (other, head, ";")):
        table["take"] = ["x" if uid == one else "No" for one in table.index]
        twice = pd.concat([table.assign(take=""), table]).reset_index()  # a block pasted again
        twice.to_csv(nifti / "series.csv", index=False, sep=sign)
        assert main(command) == 0
        np.testing.assert_array_equal(open_hu(nifti / "P.nii.gz")[...], hu[::-1, ::-1])
        table = pd.read_csv(nifti / "series.csv", sep=sign, dtype=str, keep_default_na=False)
        table = table.set_index("series")  # separated as its owner had it
        assert table.converted[uid] == "yes" and (table.converted == "yes").sum() == 1
    capsys.readouterr()
    assert main(command) == 0
    assert "(there already, not converted again)" in capsys.readouterr().out
    table["take"] = "x"
    table.reset_index().to_csv(nifti / "series.csv", index=False)
    assert main(command) == 1
    said = capsys.readouterr().err
    assert "3 series are taken" in said and "its volume of before is taken away" in said
    assert not (nifti / "P.nii.gz").exists()
    assert not (nifti / "P.nii.gz").exists()  # not that of a choice that is gone


def test_a_scout_beside_a_ct_asks_nothing_and_an_odd_end_slice_is_dropped_by_name(tmp_path, capsys):
    dicom, nifti = tmp_path / "dicom", tmp_path / "nifti"
    heights = np.array([-40, -37.5, -35, -32.5, -30, -20])  # the last is further away
    uid = write_series(dicom / "P" / "a", volume(), 1, heights)
    write_series(dicom / "P" / "b", volume()[:, :, :1], 2, SeriesDescription="scout")
    command = [str(dicom), str(nifti)]
    assert main(command) == 1 and "gaps of 2.50 to 10.00 mm" in capsys.readouterr().err
    table = pd.read_csv(nifti / "series.csv", dtype=str, keep_default_na=False)
    last = next((dicom / "P" / "a").glob("*-5.dcm")).name
    table.loc[table.series == uid, "drop"] = last
    table.to_csv(nifti / "series.csv", index=False)
    assert main(command) == 0 and f"(without {last})" in capsys.readouterr().out
    hu = open_hu(nifti / "P.nii.gz")[...]
    np.testing.assert_array_equal(hu, volume()[::-1, ::-1, :5])
    listing = pd.read_csv(nifti / "files" / "P.csv")
    assert (listing.use == "dropped as series.csv says").sum() == 1
    sound = next((dicom / "P" / "a").glob("*-2.dcm")).name
    table.loc[table.series == uid, "drop"] = sound
    table.to_csv(nifti / "series.csv", index=False)
    assert main(command) == 1  # a sound slice is still named there: the gap is of our own making
    assert f"(without {sound}, as series.csv says" in capsys.readouterr().err
    table.loc[table.series == uid, "drop"] = "nothing.dcm"
    table.to_csv(nifti / "series.csv", index=False)
    assert main(command) == 1 and "no file nothing.dcm to drop" in capsys.readouterr().err


def test_a_spreadsheet_makes_7_of_007_and_the_choice_stays(tmp_path, capsys):
    dicom, nifti = tmp_path / "dicom", tmp_path / "nifti"
    uids = [write_series(dicom / "007" / str(n), volume(n), n) for n in (1, 2)]
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):  # of no patient
        (dicom / name).mkdir()
    command = [str(dicom), str(nifti)]
    assert main(command) == 1 and "__MACOSX" not in capsys.readouterr().err
    table = pd.read_csv(nifti / "series.csv", dtype=str, keep_default_na=False)
    table["patient"] = "7"
    table["take"] = [" " if uid == uids[0] else "X" for uid in table.series]
    table.to_csv(nifti / "series.csv", index=False, encoding="utf-8-sig")
    assert main(command) == 0
    np.testing.assert_array_equal(open_hu(nifti / "007.nii.gz")[...], volume(2)[::-1, ::-1])
    again = pd.read_csv(nifti / "series.csv", dtype=str)
    assert again.patient.tolist() == ["007", "007"]
    assert main([*command, "--series", uids[0], "1.2.3"]) == 1
    assert "no series 1.2.3 (--series) below" in capsys.readouterr().err
    table.to_csv(nifti / "series.csv", index=False, encoding="utf-16")
    with pytest.raises(SystemExit):
        main(command)
    assert "series.csv: not a CSV table" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("rest.zip", b"PK\x03\x04" + bytes(200), "an archive"),
        ("7.dcm.gz", b"\x1f\x8b\x08" + bytes(200), "an archive"),
        ("8.dcm.part", bytes(128) + b"DICM", "a download that did not end"),
        ("00099.dcm", b"<html>404</html>" * 20, "no DICOM"),
    ],
)
def test_what_may_hold_lost_slices_is_refused_by_name(tmp_path, name, content, reason):
    write_series(tmp_path / "P1", np.zeros((4, 5, 3), np.int16))
    (tmp_path / "P1" / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: {reason}"):
        convert_series(tmp_path / "P1", tmp_path / "a.nii.gz")


def test_a_note_of_a_mac_is_no_slice_and_a_name_like_the_slices_is(tmp_path):
    write_series(tmp_path / "P1", np.zeros((4, 5, 3), np.int16))
    first = sorted((tmp_path / "P1").iterdir())[0]
    (tmp_path / "P1" / f"._{first.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(90))
    assert nib.load(convert_series(tmp_path / "P1", tmp_path / "a.nii.gz")).shape == (4, 5, 3)
    for file in (tmp_path / "P1").iterdir():  # names without an ending, as on a CD
        file.rename(file.with_suffix(""))
    first.with_name("9999").write_bytes(b"<html>404</html>" * 20)
    names = sorted((tmp_path / "P1").iterdir())
    for k, file in enumerate(n for n in names if n.name not in ("9999",) and n.name[:2] != "._"):
        file.rename(file.with_name(f"IM{k}"))
    first.with_name("9999").rename(first.with_name("IM7"))
    with pytest.raises(ValueError, match="IM7: no DICOM"):
        convert_series(tmp_path / "P1", tmp_path / "b.nii.gz")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"RescaleSlope": 0}, "RescaleSlope is missing or no number"),
        ({"RescaleType": "Z_EFF"}, "values in Z_EFF"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a scout or pictures"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "a scout or pictures"),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "MIP"]}, "a scout or pictures"),
        (
            {"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "CT_SOM7 VPCT", "BF"]},
            "pictures, or maps",
        ),
        (
            {"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "CT_SOM8 PERF", "BV"]},
            "pictures, or maps",
        ),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "PERFUSION"]}, "pictures, or maps"),
        (
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"},
            r"multi-frame file \(1 frames in.*dcm2niix",
        ),
        ({"BitsStored": 32, "HighBit": 31}, "HighBit is 31 where 32 bits are stored"),
        ({"Modality": "PT"}, "Modality is PT, not CT: take a series of CT"),
        ({"ImageOrientationPatient": [0] * 6}, "no right angle: get the series from its source"),
        ({"BitsStored": 12}, "HighBit is 15 where 12 bits are stored, such as in"),
        ({"ImagePositionPatient": None}, "no ImagePositionPatient in .*: get the series"),
    ],
)
def test_series_that_are_no_hu_are_refused(tmp_path, fields, words):
    write_series(tmp_path / "P1", np.zeros((4, 5, 3), np.int16), **fields)
    with pytest.raises(ValueError, match=words):
        convert_series(tmp_path / "P1", tmp_path / "a.nii.gz")


@pytest.mark.parametrize(("tag", "value"), [("KVP", 80), ("StudyInstanceUID", f"{ROOT}.5")])
def test_one_slice_of_another_scan_is_named(tmp_path, tag, value):
    hu = np.zeros((4, 5, 3), np.int16)
    write_series(tmp_path / "P1", hu, change=lambda k: {tag: value} if k == 2 else {})
    with pytest.raises(ValueError, match=f"{tag} differs from slice to slice"):
        convert_series(tmp_path / "P1", tmp_path / "a.nii.gz")


def test_numbers_that_do_not_begin_at_one_are_warned_of(tmp_path):
    hu = np.zeros((4, 5, 3), np.int16)
    write_series(tmp_path / "P1", hu, change=lambda k: {"InstanceNumber": k + 3})
    with pytest.warns(UserWarning, match="3 slices with InstanceNumber 3 to 5"):
        convert_series(tmp_path / "P1", tmp_path / "a.nii.gz")


def test_a_warning_of_the_command_is_one_line_without_code(tmp_path):
    hu = np.zeros((4, 5, 3), np.int16)
    write_series(tmp_path / "in" / "P1", hu, change=lambda k: {"InstanceNumber": k + 3})
    command = [sys.executable, "-m", "wspnb.data.dicom", str(tmp_path / "in"), str(tmp_path / "o")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "o" / "P1.nii.gz").exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith("  warning: ") and "3 slices with InstanceNumber 3 to 5" in line


def test_slices_thinner_than_their_gaps_are_warned_of(tmp_path):
    """Each second slice lost in a transfer leaves even gaps."""
    hu = np.zeros((4, 5, 3), np.int16)
    write_series(tmp_path / "P1", hu, heights=[0, 10, 20], SliceThickness=5)
    with pytest.warns(
        UserWarning, match="10 mm apart; SliceThickness is 5 mm: is every second one"
    ):
        convert_series(tmp_path / "P1", tmp_path / "a.nii.gz")


def test_files_that_have_changed_are_converted_again(tmp_path, capsys):
    hu = np.arange(60).reshape(4, 5, 3)
    write_series(tmp_path / "in" / "P1", hu[:, :, :2])
    out = tmp_path / "out" / "P1.nii.gz"
    for expected, part in ((2, hu[:, :, :2]), (3, hu), (3, hu + 7)):
        write_series(tmp_path / "in" / "P1", part)
        assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 0
        assert nib.load(out).shape[2] == expected
        assert nib.load(out).get_fdata().max() == part.max()
    capsys.readouterr()
    assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert "there already" in capsys.readouterr().out


def test_a_patient_that_is_a_dead_link_is_named(tmp_path, capsys):
    write_series(tmp_path / "in" / "P1", np.zeros((4, 5, 3), np.int16))
    (tmp_path / "in" / "P2").symlink_to(tmp_path / "nowhere")
    assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    assert "P2" in capsys.readouterr().err


def test_a_scan_in_two_folders_is_no_two_patients(tmp_path, capsys):
    """Two discs side by side, each with half of the slices; and a patient's folder copied."""
    hu, dicom, out = volume(depth=8), tmp_path / "in", tmp_path / "out"
    write_series(dicom / "DISC1", hu)
    (dicom / "DISC2").mkdir()
    for k in range(4, 8):
        (file,) = (dicom / "DISC1").glob(f"*-{k}.dcm")
        file.rename(dicom / "DISC2" / file.name)
    assert main([str(dicom), str(out)]) == 1
    assert "in the folders DISC1, DISC2, whose files differ" in capsys.readouterr().err
    assert not list(out.glob("*.nii.gz"))
    for file in (dicom / "DISC2").iterdir():
        file.rename(dicom / "DISC1" / file.name)
    (dicom / "DISC2").rmdir()
    assert main([str(dicom), str(out)]) == 0
    np.testing.assert_array_equal(open_hu(out / "DISC1.nii.gz")[...], as_read(hu))
    shutil.copytree(dicom / "DISC1", dicom / "DISC1 - Copy")
    assert main([str(dicom), str(out)]) == 1
    said = capsys.readouterr().err.replace("DISC1, ", "")
    assert "DISC1 - Copy, whose files are equal" in said
    assert "have one PatientID" not in said  # one fault, one message


@pytest.mark.parametrize(
    ("turn", "plane"),
    [
        ([1, 0, 0, 0, 1, 0], ""),
        ([1, 0, 0, 0, 0, -1], "coronal"),
        ([0, 1, 0, 0, 0, -1], "sagittal"),
    ],
)
def test_a_series_that_is_not_axial_is_named(tmp_path, capsys, turn, plane):
    def place(k):  # slices follow one another along their normal
        at = np.cross(turn[:3], turn[3:]) * (2.5 * k - 40)
        return {"ImagePositionPatient": at.tolist(), "ImageOrientationPatient": turn}

    write_series(tmp_path / "dicom" / "P1", volume(), change=place)
    for _ in range(2):  # also when it is there already
        assert main([str(tmp_path / "dicom"), str(tmp_path / "nifti")]) == 0
        said = capsys.readouterr().out
        assert ("what is axial in it" in said) == (plane != "") and plane in said


def test_one_uid_in_two_patients_keeps_their_choices_apart(tmp_path):
    """An anonymiser gave both the same; what is dropped from one is not dropped from the other."""
    dicom, table = tmp_path / "in", tmp_path / "out" / "series.csv"
    write_series(dicom / "P1", volume(1))
    command = [str(dicom), str(tmp_path / "out")]
    assert main(command) == 0
    rows = pd.read_csv(table, dtype=str, keep_default_na=False)
    rows["drop"] = next((dicom / "P1").glob("*-5.dcm")).name
    rows.to_csv(table, index=False)
    write_series(dicom / "P0", volume(2), PatientID="P0")
    assert main(command) == 0
    hu = {name: open_hu(tmp_path / "out" / f"{name}.nii.gz")[...] for name in ("P0", "P1")}
    np.testing.assert_array_equal(hu["P0"], as_read(volume(2)))
    np.testing.assert_array_equal(hu["P1"], as_read(volume(1))[:, :, :5])


def test_a_ct_of_another_patient_is_not_chosen_in_silence(tmp_path, capsys):
    write_series(tmp_path / "in" / "P1" / "a", volume()[:, :, :1], 1)
    uid = write_series(tmp_path / "in" / "P1" / "b", volume(), 2, PatientID="P2")
    command = [str(tmp_path / "in"), str(tmp_path / "out")]
    assert main(command) == 1
    assert "series of several patients (PatientID P1, P2)" in capsys.readouterr().err
    assert main([*command, "--series", uid]) == 0


@pytest.mark.parametrize(
    ("name", "birth", "refused"),
    [("Doe^J", "19710101", True), ("Roe^Ann", "19500101", False), ("", "19710101", False)],
)
def test_without_a_number_name_and_birth_date_tell_two_patients(
    tmp_path, name, birth, refused, capsys
):
    one = {"PatientID": "", "PatientName": "Roe^A", "PatientBirthDate": "19500101"}
    write_series(tmp_path / "in" / "P1" / "a", volume(), 1, **one)
    other = one | {"PatientName": name, "PatientBirthDate": birth}
    write_series(tmp_path / "in" / "P1" / "b", volume()[:, :, :1], 2, **other)
    assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == refused
    said = capsys.readouterr().err
    assert ("several patients (PatientName Roe^A, Doe^J)" in said) == refused


@pytest.mark.parametrize("name", ["P3.zip", "loose", "P4.tar"])
def test_what_lies_beside_the_patients_is_named(tmp_path, name, capsys):
    write_series(tmp_path / "in" / "P1", volume())
    first = next((tmp_path / "in" / "P1").iterdir()).read_bytes()
    (tmp_path / "in" / name).write_bytes(first[:300] if name == "loose" else b"PK\3\4" + bytes(9))
    assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    assert f"{tmp_path / 'in' / name}, which are of no patient" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="names of bytes")
def test_two_folders_that_print_alike_are_no_one_patient(tmp_path, capsys):
    for name in (b"M\xfcller", "Müller".encode()):
        write_series(tmp_path / "A", volume())
        (tmp_path / "in").mkdir(exist_ok=True)
        os.rename(tmp_path / "A", os.fsencode(tmp_path / "in") + b"/" + name)
    assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    assert "Müller: several folders print so: rename one" in capsys.readouterr().err


def test_archives_and_bare_big_endian_may_be_slices_and_a_list_alone_is_named(tmp_path):
    write_series(tmp_path / "P1", volume())
    image = pydicom.dcmread(next((tmp_path / "P1").glob("*-5.dcm")))
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.ImagePositionPatient[2], image.SOPInstanceUID = -25, ROOT
    way = {"implicit_vr": False, "little_endian": False, "force_encoding": True}
    pydicom.dcmwrite(tmp_path / "P1" / "last", image, **way)  # no preamble either
    with pytest.raises(ValueError, match="last"):
        convert_series(tmp_path / "P1", tmp_path / "a.nii.gz")
    (tmp_path / "P1" / "last").rename(tmp_path / "P1" / "rest.tar")
    with pytest.raises(ValueError, match=r"rest\.tar: an archive"):
        convert_series(tmp_path / "P1", tmp_path / "a.nii.gz")
    (tmp_path / "P2").mkdir()
    (tmp_path / "P2" / "notes.txt").write_text("the images are on the other disc")
    with pytest.raises(ValueError, match=r"no DICOM series below: .*\n.*notes\.txt: no DICOM"):
        convert_series(tmp_path / "P2", tmp_path / "a.nii.gz")


def test_numbers_written_in_two_ways_are_one(tmp_path):
    ways = lambda k: {  # noqa: E731
        "KVP": "120.0" if k % 2 else "120",
        "RescaleSlope": "1.00000000001" if k % 2 else "1",
    }
    write_series(tmp_path / "P1", volume(), change=ways)
    read = open_hu(convert_series(tmp_path / "P1", tmp_path / "a.nii.gz"))[...]
    np.testing.assert_allclose(read, as_read(volume()), atol=1e-3)


@pytest.mark.parametrize("tag", ["AcquisitionTime", "ContrastBolusAgent"])
def test_two_phases_are_told_apart_by_each_slices_time_or_contrast(tmp_path, tag):
    def change(k):
        time = f"1010{10 + k // 2 + 30 * (k % 2)}.5"
        return {tag: time if tag == "AcquisitionTime" else "iodine" if k % 2 else None}

    write_series(tmp_path / "P1", volume(depth=8), change=change)
    with pytest.raises(ValueError, match=tag):
        convert_series(tmp_path / "P1", tmp_path / "a.nii.gz")
    for name, time in {"pairs": "10101{:.0f}", "over midnight": "{:06.0f}"}.items():
        moments = (
            [k // 2 for k in range(8)] if name == "pairs" else [*range(235956, 235960), *range(4)]
        )
        write_series(
            tmp_path / name,
            volume(depth=8),
            change=lambda k, t=time, m=moments: {"AcquisitionTime": t.format(m[k])},
        )
        convert_series(tmp_path / name, tmp_path / "b.nii.gz")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"SpacingBetweenSlices": 1.25},
            "lie straight, 2.5 mm apart; SpacingBetweenSlices is 1.25",
        ),
        ({"GantryDetectorTilt": 12}, "slices lie straight, .* GantryDetectorTilt is 12 degrees"),
        ({"ImagesInAcquisition": 9}, "6 slices .* ImagesInAcquisition is 9: are some missing"),
        ({"NumberOfSeriesRelatedInstances": 9}, "6 slices .*Instances is 9: are some missing"),
    ],
)
def test_hints_that_slices_do_not_lie_so_are_warned_of(tmp_path, fields, words):
    odd = lambda k: fields if k == 4 else {}  # noqa: E731
    write_series(tmp_path / "P1", volume(), SliceThickness=2.5, change=odd)
    with pytest.warns(UserWarning, match=words):
        convert_series(tmp_path / "P1", tmp_path / "a.nii.gz")
    write_series(tmp_path / "P2", volume(), SpacingBetweenSlices=-2.5, GantryDetectorTilt=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert_series(tmp_path / "P2", tmp_path / "a.nii.gz")


def test_slices_that_look_copied_by_half_or_twice_are_warned_of(tmp_path):
    hu = volume()
    hu[:, 9:, 3] = -1024  # 7 of 16 rows, as the file was laid out
    write_series(tmp_path / "half", hu)
    with pytest.warns(UserWarning, match=r"7 of 16 rows of .*-3\.dcm are 0, and not in the slices"):
        convert_series(tmp_path / "half", tmp_path / "a.nii.gz")
    write_series(tmp_path / "twice", volume()[:, :, [0, 1, 2, 1, 4, 5]])
    with pytest.warns(UserWarning, match=r"-1\.dcm and .*-3\.dcm lie apart and have the same pix"):
        convert_series(tmp_path / "twice", tmp_path / "a.nii.gz")
    hu[:, 9:] = -1024  # a table that was taken away is so in all of them
    write_series(tmp_path / "all", hu)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert_series(tmp_path / "all", tmp_path / "a.nii.gz")


@pytest.mark.parametrize(("value", "warned"), [(1024, True), (0, False), (7, False)])
def test_padding_that_is_read_as_tissue_is_warned_of(tmp_path, value, warned, recwarn):
    hu = volume()
    hu[:4] = value - 1024 if value != 7 else 0  # of 7 there is none
    write_series(tmp_path / "p", hu, PixelPaddingValue=value)
    convert_series(tmp_path / "p", tmp_path / "a.nii.gz")
    said = [str(w.message) for w in recwarn if "PixelPaddingValue" in str(w.message)]
    assert len(said) == warned and all("20% of" in s and "read as 0 HU" in s for s in said)


def test_lossy_compression_is_warned_of_by_header_or_by_kind(tmp_path):
    write_series(tmp_path / "p", volume(), LossyImageCompression="01")
    write_series(tmp_path / "q", volume())
    path = next((tmp_path / "q").glob("*-3.dcm"))
    image, packed = pydicom.dcmread(path), io.BytesIO()
    way = {"format": "JPEG2000", "no_jp2": True, "irreversible": True}
    Image.fromarray(image.pixel_array).save(packed, **way)
    image.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000
    image.PixelData = pydicom.encaps.encapsulate([packed.getvalue()])
    image.save_as(path)
    for name, words in {
        "p": "6 of 6 slices have lossy",
        "q": r"1 of 6 .*such as .*-3\.dcm",
    }.items():
        with pytest.warns(UserWarning, match=words):
            convert_series(tmp_path / name, tmp_path / "a.nii.gz")
    shutil.rmtree(tmp_path / "q")  # of the same series
    command = [sys.executable, "-m", "wspnb.data.dicom", tmp_path, tmp_path / "out"]
    silent = os.environ | {"PYTHONWARNINGS": "ignore"}  # as in many containers
    done = subprocess.run(command, env=silent, capture_output=True, text=True, check=True)
    assert sum(line.startswith("  warning: ") for line in done.stderr.splitlines()) == 1


def test_a_stack_that_is_moved_aside_is_no_tilted_gantry(tmp_path):
    place = lambda k: {"ImagePositionPatient": [-100 + 12 * (k > 2), -120, 2.5 * k]}  # noqa: E731
    write_series(tmp_path / "P1", volume(), change=place)
    with pytest.raises(ValueError, match=r"slices lie 12\.0 mm aside.*-2\.dcm and .*-3\.dcm"):
        convert_series(tmp_path / "P1", tmp_path / "a.nii.gz")


@pytest.mark.parametrize("signed", [0, 1])
def test_values_that_the_header_has_no_room_for_are_named(tmp_path, signed):
    """4096 in 12 bits is read as 0; padding of -2000 as unsigned is 63536."""
    fields = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": signed}
    hu = np.clip(volume(), -1000, 900)
    good = hu.copy()
    good[0] = -1024 - 100 * signed  # below 0 where it may be
    write_series(tmp_path / "P1", good, **fields)
    np.testing.assert_array_equal(
        open_hu(convert_series(tmp_path / "P1", tmp_path / "a.nii.gz"))[...], as_read(good)
    )
    hu[3, 3, 2] = 4200
    write_series(tmp_path / "P2", hu, **fields)
    with pytest.raises(ValueError, match=r"-2\.dcm has 1 pixels that need more than the 12 bits"):
        convert_series(tmp_path / "P2", tmp_path / "a.nii.gz")
    hu[3, 3, 2] = -3024
    write_series(tmp_path / "P3", hu)
    with pytest.raises(ValueError, match=r"-2\.dcm has values up to 62512 HU"):
        convert_series(tmp_path / "P3", tmp_path / "a.nii.gz")


def test_a_damaged_slice_that_comes_later_is_seen(tmp_path, capsys):
    write_series(tmp_path / "in" / "P1", volume())
    command = [str(tmp_path / "in"), str(tmp_path / "out")]
    assert main(command) == 0
    (tmp_path / "in" / "P1" / "late.dcm").write_bytes(b"")
    assert main(command) == 1 and "late.dcm: empty" in capsys.readouterr().err
    assert not (tmp_path / "out" / "P1.nii.gz").exists()


def test_one_uid_for_all_slices_and_a_nifti_beside_them(tmp_path):
    write_series(tmp_path / "P1", volume(), SOPInstanceUID=ROOT)
    out = convert_series(tmp_path / "P1", tmp_path / "P1" / "a.nii.gz")
    for _ in range(2):  # the second time with the volume in the folder
        np.testing.assert_array_equal(open_hu(out)[...], as_read(volume()))
        convert_series(tmp_path / "P1", out)


def test_pixels_of_two_images_in_one_are_named(tmp_path):
    write_series(tmp_path / "P1", volume())
    file = next((tmp_path / "P1").glob("*-3.dcm"))
    image = pydicom.dcmread(file)
    image.PixelData *= 2
    image.save_as(file)
    with pytest.raises(ValueError, match=r"-3\.dcm: 1280 bytes of pixels, .* image needs 640"):
        convert_series(tmp_path / "P1", tmp_path / "a.nii.gz")


def choices(nifti):
    table = pd.read_csv(nifti / "series.csv", dtype=str, keep_default_na=False)
    return table.set_index("series", drop=False)


def two_series(tmp_path):
    """A patient with two series, of which the second is taken and converted; command and UIDs."""
    dicom, nifti = tmp_path / "dicom", tmp_path / "nifti"
    uids = [write_series(dicom / "P" / name, volume(n), n) for n, name in ((1, "a"), (2, "b"))]
    command = [str(dicom), str(nifti)]
    main(command)
    table = choices(nifti)
    table.loc[uids[1], "take"] = "x"
    table.assign(note="mine").to_csv(nifti / "series.csv", index=False)
    assert main(command) == 0
    return command, nifti, uids


def test_a_chosen_series_that_is_away_is_asked_for_and_not_replaced(tmp_path, capsys):
    command, nifti, uids = two_series(tmp_path)
    shutil.move(tmp_path / "dicom" / "P" / "b", tmp_path / "away")
    assert main(command) == 1
    assert f"series {uids[1]} is taken in series.csv and not below" in capsys.readouterr().err
    table = choices(nifti)
    assert table["take"][uids[1]] == "x" and set(table.note) == {"mine"}  # the owner's column
    np.testing.assert_array_equal(open_hu(nifti / "P.nii.gz")[...], as_read(volume(2)))
    shutil.move(tmp_path / "away", tmp_path / "dicom" / "P" / "b")
    assert main(command) == 0


def test_without_its_table_a_volume_is_made_again(tmp_path, capsys):
    dicom, nifti = tmp_path / "dicom" / "P", tmp_path / "nifti"
    write_series(dicom, volume())
    command = [str(dicom.parent), str(nifti)]
    assert main(command) == 0
    shutil.rmtree(dicom)
    write_series(dicom, volume(3))
    (nifti / "series.csv").unlink()
    assert main(command) == 0
    np.testing.assert_array_equal(open_hu(nifti / "P.nii.gz")[...], as_read(volume(3)))
    (former,) = nifti.glob("P.former-*.nii.gz")  # may be anybody's: it is kept
    np.testing.assert_array_equal(open_hu(former)[...], as_read(volume()))
    assert f"{former} now" in capsys.readouterr().out
    (nifti / ".P.new.nii.gz").write_bytes(b"of a call that was killed between two renamings")
    former.replace(nifti / "P.nii.gz")  # in place of a converted one
    assert main(command) == 0
    np.testing.assert_array_equal(open_hu(former)[...], as_read(volume()))
    np.testing.assert_array_equal(open_hu(nifti / "P.nii.gz")[...], as_read(volume(3)))
    assert not [*nifti.glob("*.new.*")] and not [*nifti.glob(".P*")]
    shutil.copy(former, nifti / "P.nii.gz")
    lost = next(dicom.glob("*-2.dcm"))
    kept = lost.read_bytes()
    lost.unlink()
    assert main(command) == 1  # nor is it deleted with a series that is incomplete
    assert (nifti / "P.nii.gz").read_bytes() == former.read_bytes()
    lost.write_bytes(kept)
    assert main(command) == 0
    (nifti / "series.csv").unlink()
    next(dicom.glob("*-3.dcm")).unlink()
    assert main(command) == 1
    assert "P.nii.gz is there from before, and not of these files" in capsys.readouterr().err


@pytest.mark.parametrize(
    "word", ["NA", "nan", "FALSCH", "FAUX", "0.0", "non", "ONWAAR", "ЛОЖЬ", "YANLIŞ", "nej", "☐"]
)
def test_words_for_no_under_take(tmp_path, word):
    command, nifti, _ = two_series(tmp_path)
    choices(nifti).replace({"take": {"": word}, "drop": {"": "NA"}}).to_csv(
        nifti / "series.csv", index=False
    )
    assert main(command) == 0


@pytest.mark.parametrize("word", ["maybe", "FALSE()", "\u2717"])
def test_a_word_under_take_that_is_neither_yes_nor_no_is_asked_for(tmp_path, word, capsys):
    command, nifti, _ = two_series(tmp_path)
    choices(nifti).assign(take=["", word]).to_csv(nifti / "series.csv", index=False)
    assert main(command) == 1
    assert f"take is {word.lower()!r} in series.csv, neither a yes" in capsys.readouterr().err
    for yes in ("+", "TRUE", "waar", "1.0"):
        choices(nifti).assign(take=["", yes]).to_csv(nifti / "series.csv", index=False)
        assert main(command) == 0
        np.testing.assert_array_equal(open_hu(nifti / "P.nii.gz")[...], as_read(volume(2)))


def test_each_image_in_a_series_of_its_own_is_said(tmp_path, capsys):
    for n in (1, 2, 3):
        write_series(tmp_path / "in" / "P", volume(n, 1), n)
    assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    assert "each image has a SeriesInstanceUID of its own" in capsys.readouterr().err


def test_what_is_chosen_while_the_command_runs_stays(tmp_path, monkeypatch):
    for n, patient in enumerate(("A", "B")):
        for k in (1, 2):
            write_series(
                tmp_path / "dicom" / patient / str(k), volume(), 2 * n + k, PatientID=patient
            )
    convert, nifti = module.convert_patient, tmp_path / "nifti"

    def meanwhile(patient, *given):
        if patient.name == "B":
            table = choices(nifti)
            table.loc[f"{ROOT}.2", "take"] = "x"
            table.to_csv(nifti / "series.csv", index=False)
        return convert(patient, *given)

    monkeypatch.setattr(module, "convert_patient", meanwhile)
    assert main([str(tmp_path / "dicom"), str(nifti)]) == 1
    assert choices(nifti)["take"].to_dict() == {
        f"{ROOT}.{k}": "x" if k == 2 else "" for k in (1, 2, 3, 4)
    }


def test_two_commands_do_not_write_one_table(tmp_path, capsys):
    command, nifti, _ = two_series(tmp_path)
    with alone(nifti / "series.csv"), pytest.raises(SystemExit):
        main(command)
    assert "is at work on it" in capsys.readouterr().err


def test_a_number_without_its_zeros_is_dropped_and_another_is_told_apart(tmp_path, capsys):
    dicom, nifti = tmp_path / "dicom", tmp_path / "nifti"
    write_series(dicom / "P", volume())
    files = sorted((dicom / "P").iterdir(), key=lambda file: file.stem[-1])
    for k, file in enumerate(files):
        file.rename(file.with_name(f"{k + 1:08d}"))
    command = [str(dicom), str(nifti)]
    assert main(command) == 0
    for drop, code in (("6", 0), ("7", 1)):
        choices(nifti).assign(drop=drop).to_csv(nifti / "series.csv", index=False)
        assert main(command) == code
    assert "no file 7 to drop, there are 00000001, " in capsys.readouterr().err
    (dicom / "P").rename(dicom / "Q")
    choices(nifti).assign(drop="").to_csv(nifti / "series.csv", index=False)
    main(command)
    (dicom / "Q").rename(dicom / "P")
    (dicom / "#recycle").mkdir()  # of a server, no patient
    assert main(command) == 0
    assert "Q.nii.gz is of a folder that has another name now" in capsys.readouterr().err


def test_folders_of_one_patient_are_named(tmp_path, capsys):
    for n, name in enumerate(("2019", "2022")):
        write_series(tmp_path / "dicom" / name, volume(n), n)
    assert main([str(tmp_path / "dicom"), str(tmp_path / "nifti")]) == 0
    assert "the folders 2019, 2022 have one PatientID, P1" in capsys.readouterr().err


def test_slices_that_a_cloud_or_a_cipher_holds_are_missed(tmp_path):
    for name in (".{}.icloud", "{}.gpg"):
        folder = tmp_path / name
        write_series(folder, volume())
        top = next(folder.glob("*-5.dcm"))
        (folder / name.format(top.name)).write_bytes(b"bplist00" + bytes(range(1, 200)))
        convert_series(folder, tmp_path / "p.nii.gz")  # the slice itself is there
        top.unlink()
        with pytest.raises(
            ValueError, match=r"files below that cannot be read .*\(1\)(.|\n)*5\.dcm"
        ):
            convert_series(folder, tmp_path / "p.nii.gz")


def test_documents_and_other_volumes_beside_slices_spoil_nothing(tmp_path):
    write_series(tmp_path / "p", volume())
    for name, inside in {"a.docx": "[Content_Types].xml", "v.jar": "META-INF/MANIFEST.MF"}.items():
        with zipfile.ZipFile(tmp_path / "p" / name, "w") as archive:
            archive.writestr(inside, "<x/>")
    for name in ("liver.mgz", "v.img.gz"):
        (tmp_path / "p" / name).write_bytes(b"\x1f\x8b" + bytes(range(1, 200)))
    convert_series(tmp_path / "p", tmp_path / "p.nii.gz")
    with zipfile.ZipFile(tmp_path / "p" / "more.zip", "w") as archive:
        archive.writestr("IM7", "slice")
    with pytest.raises(ValueError, match=r"more\.zip: an archive"):
        convert_series(tmp_path / "p", tmp_path / "p.nii.gz")


def test_a_slice_whose_pixels_were_never_copied_is_named(tmp_path):
    write_series(tmp_path / "p", volume())
    file = next((tmp_path / "p").glob("*-3.dcm"))
    file.write_bytes(file.read_bytes()[: -20 * 16 * 2] + bytes(20 * 16 * 2))
    with pytest.raises(ValueError, match=r"all pixels are 0 in 1 slices, such as .*-3\.dcm"):
        convert_series(tmp_path / "p", tmp_path / "p.nii.gz")


@pytest.mark.parametrize(
    ("tag", "usual", "odd"),
    [
        ("AcquisitionDate", "20200301", "20210301"), ("StudyDate", "20200301", "20210301"),
        ("DeviceSerialNumber", "1", "2"), ("ManufacturerModelName", "Force", "Revolution"),
        ("ReconstructionDiameter", 350, 420), ("PatientBirthDate", "19500101", "19720505"),
        ("BodyPartExamined", "ABDOMEN", "HEAD"), ("AccessionNumber", "A1", "A2"),
    ],
)  # fmt: skip
def test_a_slice_of_another_day_or_device_is_named(tmp_path, tag, usual, odd):
    write_series(tmp_path / "p", volume(), change=lambda k: {tag: odd if k == 3 else usual})
    with pytest.raises(ValueError, match=tag):
        convert_series(tmp_path / "p", tmp_path / "p.nii.gz")
    if tag.endswith("Date") and tag != "PatientBirthDate":  # midnight passes once
        later = str(int(usual) + 1)
        write_series(tmp_path / "p", volume(), change=lambda k: {tag: later if k > 3 else usual})
        convert_series(tmp_path / "p", tmp_path / "p.nii.gz")
        write_series(tmp_path / "p", volume(), change=lambda k: {tag: odd if k > 3 else usual})
        with pytest.raises(ValueError, match=f"several days .{tag} 20"):
            convert_series(tmp_path / "p", tmp_path / "p.nii.gz")


def test_a_volume_that_becomes_another_scan_is_told(tmp_path, capsys):
    """The series that was taken by itself is away, and another lies in the folder of that name."""
    dicom, nifti = tmp_path / "dicom" / "P", tmp_path / "nifti"
    first = write_series(dicom, volume())
    command = [str(dicom.parent), str(nifti)]
    assert main(command) == 0
    shutil.rmtree(dicom)
    second = write_series(dicom, volume(3), 2)
    assert main(command) == 0
    said = capsys.readouterr().err
    assert f"P.nii.gz is of series {second} now, and was of {first}, which is not below" in said
    assert main(command) == 0 and "now, and was" not in capsys.readouterr().err


def test_a_taken_series_is_missed_also_where_a_spreadsheet_wrote_its_patient(tmp_path):
    """7 for the folder 007, or an umlaut in one character: not the other series in its place."""
    for folder, written in (("007", "7"), ("Ko\u0308hler", "K\u00f6hler")):
        dicom, nifti = tmp_path / f"{written} in", tmp_path / f"{written} out"
        uids = [write_series(dicom / folder / x, volume(n), n) for n, x in ((1, "a"), (2, "b"))]
        command = [str(dicom), str(nifti)]
        main(command)
        table = choices(nifti).assign(patient=written)
        table.loc[uids[1], "take"] = "x"
        table.to_csv(nifti / "series.csv", index=False)
        assert main(command) == 0
        table = choices(nifti).assign(patient=written)
        table.to_csv(nifti / "series.csv", index=False)
        shutil.move(dicom / folder / "b", tmp_path / f"{written} away")
        assert main(command) == 1
        made = open_hu(nifti / f"{folder}.nii.gz")[...]
        np.testing.assert_array_equal(made, as_read(volume(2)))


def test_a_volume_that_was_cut_or_overwritten_is_made_again(tmp_path):
    dicom, nifti = tmp_path / "dicom" / "P", tmp_path / "nifti"
    write_series(dicom, volume())
    command = [str(dicom.parent), str(nifti)]
    for content in (None, b"", b"other"):
        if content is not None:
            (nifti / "P.nii.gz").write_bytes(content)
        assert main(command) == 0
        np.testing.assert_array_equal(open_hu(nifti / "P.nii.gz")[...], as_read(volume()))


def test_a_slice_in_another_patients_folder_is_missed(tmp_path, capsys):
    dicom, nifti = tmp_path / "dicom", tmp_path / "nifti"
    write_series(dicom / "A", volume())
    write_series(dicom / "B", volume(2), 2, PatientID="P2")
    shutil.move(next((dicom / "A").glob("*-5.dcm")), dicom / "B")  # the highest: no gap is left
    assert main([str(dicom), str(nifti)]) == 1
    assert "is in the folders A, B, whose files differ" in capsys.readouterr().err
    assert not (nifti / "A.nii.gz").exists()


def test_names_that_the_terminal_cannot_show_end_nothing(tmp_path):
    dicom, nifti = tmp_path / "dicom", tmp_path / "nifti"
    for number, name in enumerate(("\u60a3\u8005", "L" * 245, "Z"), 1):
        write_series(dicom / name, volume(number), number, PatientID=name[:9])
    command = [sys.executable, "-m", "wspnb.data.dicom", dicom, nifti]
    shell = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=shell, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "over 240 bytes: shorten it" in done.stderr and "2 of 3 patients" in done.stdout
    assert {path.name for path in nifti.glob("*.gz")} == {"\u60a3\u8005.nii.gz", "Z.nii.gz"}


@pytest.mark.parametrize(
    "name", ["IM0003.dcm~", "#IM0003.dcm#", "IM0003_dcm", "rest.z01", "a.tar.Z"]
)
def test_what_a_gateway_or_an_archive_made_of_a_slice_is_missed(tmp_path, name):
    write_series(tmp_path / "p", volume())
    for number, path in enumerate(sorted((tmp_path / "p").iterdir())):
        path.rename(path.with_name(f"IM{number:04}.dcm"))
    (tmp_path / "p" / "IM0003.dcm").unlink()
    (tmp_path / "p" / name).write_bytes(b"\x1f\x9d" * 90 if name == "a.tar.Z" else b"x" * 200)
    with pytest.raises(ValueError, match=re.escape(name)):
        convert_series(tmp_path / "p", tmp_path / "p.nii.gz")


@pytest.mark.parametrize(
    "name, content",
    [
        ("jpeg/IM0003.jpg", b"\xff\xd8\xff\xe0"), ("IM0003.txt", b"words"),
        ("l/liver.nii.bz2", b"BZh91AY"), ("list.csv.gz", b"\x1f\x8b"),
    ],
)  # fmt: skip
def test_previews_lists_and_volumes_beside_slices_cost_nothing(tmp_path, name, content):
    write_series(tmp_path / "p" / "d", volume())
    for number, path in enumerate(sorted((tmp_path / "p" / "d").iterdir())):
        path.rename(path.with_name(f"IM{number:04}"))
    (tmp_path / "p" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "p" / name).write_bytes(content)
    convert_series(tmp_path / "p", tmp_path / "p.nii.gz")


@pytest.mark.parametrize("syntax", ["raw", "rle", "deflated", "big"])
def test_bits_that_the_header_does_not_know_are_named_however_they_are_packed(tmp_path, syntax):
    """5000 in 12 bits is 904 to most readers: -120 HU in place of 3976."""
    hu = np.full((16, 16, 4), 50, np.int16)
    hu[0, 0, 2] = 3976
    write_series(tmp_path / "p", hu, BitsStored=12, HighBit=11)
    for path in (tmp_path / "p").iterdir():
        image = pydicom.dcmread(path)
        if syntax == "rle":
            image.compress(pydicom.uid.RLELossless)
        if syntax == "deflated":
            image.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        if syntax == "big":
            raw = np.frombuffer(image.PixelData, "<u2")  # as it is, all bits
            image.PixelData = raw.astype(">u2").tobytes()
            image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
        image["PixelData"].VR = "OB" if syntax == "rle" else "OW"
        options = {"little_endian": None, "implicit_vr": None, "enforce_file_format": True}
        pydicom.dcmwrite(path, image, **options)
    with pytest.raises(ValueError, match="need more than the 12 bits"):
        convert_series(tmp_path / "p", tmp_path / "p.nii.gz")


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"BitsStored": None}, "BitsStored is missing"),
        ({"ImageType": ["DERIVED", "PRIMARY", "EFF_Z"]}, "EFF_Z"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "TOPOGRAM"]}, "TOPOGRAM"),
        *(
            ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", word]}, word)  # DICOM's own, vendors'
            for word in (
                "EFF_ATOMIC_NUM",
                "MAT_SPECIFIC",
                "MAT_FRACTIONAL",
                "MAT_VALUE_BASED",
                "RHO",
            )
        ),
    ],
)
def test_maps_by_other_words_and_missing_bits_are_named(tmp_path, fields, words):
    write_series(tmp_path / "p", volume(), **fields)
    with pytest.raises(ValueError, match=words):
        convert_series(tmp_path / "p", tmp_path / "p.nii.gz")


def test_a_table_of_values_in_one_slice_is_named(tmp_path):
    table = pydicom.dataset.Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table["LUTDescriptor"].VR = "US"
    change = lambda k: {"ModalityLUTSequence": [table]} if k == 3 else {}  # noqa: E731
    write_series(tmp_path / "p", volume(), change=change)
    with pytest.raises(ValueError, match="ModalityLUTSequence differs"):
        convert_series(tmp_path / "p", tmp_path / "p.nii.gz")


def test_a_steady_drift_is_a_tilt_also_in_whole_mm(tmp_path):
    heights = np.arange(8) * 5.0
    write_series(tmp_path / "p", volume(depth=8), heights=heights, tilt=1.0)
    with pytest.raises(ValueError, match="tilted gantry"):
        convert_series(tmp_path / "p", tmp_path / "p.nii.gz")


def test_a_description_that_changes_on_the_way_is_warned_of(tmp_path):
    change = lambda k: {"SeriesDescription": "lung" if k > 3 else "liver"}  # noqa: E731
    write_series(tmp_path / "p", volume(), change=change)
    with pytest.warns(UserWarning, match="SeriesDescription changes along the slices"):
        convert_series(tmp_path / "p", tmp_path / "p.nii.gz")


def test_a_scout_of_two_images_asks_for_no_choice(tmp_path):
    dicom, nifti = tmp_path / "dicom", tmp_path / "nifti"
    write_series(dicom / "P" / "a", volume())
    kind = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_series(dicom / "P" / "scout", volume()[:, :, :2], 2, ImageType=kind)
    assert main([str(dicom), str(nifti)]) == 0
    np.testing.assert_array_equal(open_hu(nifti / "P.nii.gz")[...], as_read(volume()))


def test_what_is_to_be_dropped_may_have_its_accents_in_two_characters(tmp_path):
    dicom, nifti = tmp_path / "dicom", tmp_path / "nifti"
    write_series(dicom / "P", volume())
    path = next((dicom / "P").glob("*-5.dcm"))
    path.rename(path.with_name("U\u0308bersicht.dcm"))
    main([str(dicom), str(nifti)])
    choices(nifti).assign(drop="\u00dcbersicht.dcm").to_csv(nifti / "series.csv", index=False)
    assert main([str(dicom), str(nifti)]) == 0
    assert open_hu(nifti / "P.nii.gz").shape[2] == 5


def test_what_is_to_be_dropped_is_of_the_series_that_is_taken(tmp_path, capsys):
    """Names that come again in every series, and twice in one."""
    dicom, nifti = tmp_path / "dicom", tmp_path / "nifti"
    for number, folder in ((1, "a"), (2, "b")):
        write_series(dicom / "P" / folder, volume(number), number)
        for path in (dicom / "P" / folder).iterdir():
            path.rename(path.with_name(f"{path.stem.split('-')[2]}.dcm"))
    assert main([str(dicom), str(nifti)]) == 1
    table = choices(nifti)
    table.loc[table.folder == "b", ["take", "drop"]] = ["x", "5.dcm"]
    table.to_csv(nifti / "series.csv", index=False)
    assert main([str(dicom), str(nifti)]) == 0
    assert open_hu(nifti / "P.nii.gz").shape[2] == 5
    files = pd.read_csv(nifti / "files" / "P.csv").set_index("file").use
    assert files[str(dicom / "P" / "b" / "5.dcm")] == "dropped as series.csv says"
    (dicom / "P" / "b" / "low").mkdir()
    (dicom / "P" / "b" / "0.dcm").rename(dicom / "P" / "b" / "low" / "5.dcm")
    assert main([str(dicom), str(nifti)]) == 1
    assert "5.dcm is the name of several files: write the path of one" in capsys.readouterr().err
    choices(nifti).replace({"drop": {"5.dcm": "b/5.dcm"}}).to_csv(nifti / "series.csv", index=False)
    assert main([str(dicom), str(nifti)]) == 0
    assert open_hu(nifti / "P.nii.gz").shape[2] == 5


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"ImagePositionPatient": None}, 0),  # an anonymiser took it: named
        ({"depth": 1, "InstanceNumber": 57}, 0),  # a download under way: named
        ({"change": lambda k: {} if k else {"Modality": "OT"}}, 1),
        ({"change": lambda k: {} if k else {"ImageOrientationPatient": None}}, 1),
        ({"depth": 1, "NumberOfFrames": 40, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}, 1),
    ],
)
def test_a_series_that_may_be_meant_is_not_passed_over(tmp_path, capsys, fields, code):
    dicom, nifti = tmp_path / "dicom", tmp_path / "nifti"
    write_series(dicom / "P" / "a", volume(), 1, SeriesDescription="arterial")
    other = {"SeriesDescription": "portal"} | fields
    write_series(dicom / "P" / "b", volume(1, other.pop("depth", 6)), 2, **other)
    assert main([str(dicom), str(nifti)]) == code
    said = capsys.readouterr().err
    assert "portal" in said and "write x under take" in said
    assert (nifti / "P.nii.gz").exists() == (not code)


def test_a_series_that_has_fewer_images_today_is_not_converted_again(tmp_path, capsys):
    dicom, nifti = tmp_path / "dicom", tmp_path / "nifti"
    write_series(dicom / "P", volume())
    assert main([str(dicom), str(nifti)]) == 0
    next((dicom / "P").glob("*-5.dcm")).unlink()
    for _ in range(2):
        assert main([str(dicom), str(nifti)]) == 1
        assert "has 5 images now, and had 6 when it was converted" in capsys.readouterr().err
        assert open_hu(nifti / "P.nii.gz").shape[2] == 6
    choices(nifti).head(0).to_csv(nifti / "series.csv", index=False)
    assert main([str(dicom), str(nifti)]) == 0
    assert open_hu(nifti / "P.nii.gz").shape[2] == 5


def test_copies_are_called_so_and_numbers_that_come_twice_are_warned_of(tmp_path):
    write_series(tmp_path / "d" / "P" / "a", volume(), change=lambda k: {"InstanceNumber": k + 1})
    shutil.copytree(tmp_path / "d" / "P" / "a", tmp_path / "d" / "P" / "copy")
    assert main([str(tmp_path / "d"), str(tmp_path / "n")]) == 0
    use = pd.read_csv(tmp_path / "n" / "files" / "P.csv").use
    assert (use == "used").sum() == use.str.startswith("a copy of 1-").sum() == 6
    write_series(tmp_path / "p", volume(), change=lambda k: {"InstanceNumber": k % 3 + 1})
    with pytest.warns(UserWarning, match="6 slices with 3 InstanceNumbers: is it one scan"):
        convert_series(tmp_path / "p", tmp_path / "p.nii.gz")


@pytest.mark.parametrize("value", ["abc", "1.5", "0"])
def test_a_number_of_frames_that_is_none_is_one_patients_business(tmp_path, value, capsys):
    for name in ("a", "z"):
        write_series(tmp_path / "in" / name, volume(), PatientID=name)
    for path in (tmp_path / "in" / "a").iterdir():
        image = pydicom.dcmread(path)
        image.compress(pydicom.uid.RLELossless)
        image.NumberOfFrames = 7  # its bytes are replaced below
        image.save_as(path)
        old = b"\x28\0\x08\0IS\x02\x007 "
        new = (
            b"\x28\0\x08\0IS" + len(value.ljust(4)).to_bytes(2, "little") + value.ljust(4).encode()
        )
        assert path.read_bytes().count(old) == 1
        path.write_bytes(path.read_bytes().replace(old, new))
    code = main([str(tmp_path / "in"), str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert (tmp_path / "out" / "z.nii.gz").exists() and "Traceback" not in said
    made = (tmp_path / "out" / "a.nii.gz").exists()  # of 0, which some write for none
    assert (code, made) == ((0, True) if value == "0" else (1, False))
    assert value == "0" or str(tmp_path / "in" / "a") in said


@pytest.mark.parametrize("syntax", ["raw", "deflated"])
@pytest.mark.parametrize("size", [{"Columns": 19}, {"Rows": 15}, {"Rows": 7}])
def test_pixels_of_a_larger_image_than_the_headers_are_named(tmp_path, syntax, size):
    """Taken as they come, every row would begin a little later than the one before."""
    write_series(tmp_path / "p", volume())
    for path in (tmp_path / "p").iterdir():
        image = pydicom.dcmread(path)
        for name, value in size.items():
            setattr(image, name, value)
        if syntax == "deflated":
            image.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        image.save_as(path)
    with pytest.raises(ValueError, match="bytes of pixels, but the header's image needs"):
        convert_series(tmp_path / "p", tmp_path / "p.nii.gz")


@pytest.mark.parametrize("at", [*range(133, 400, 9)])
def test_a_slice_that_ends_anywhere_in_its_header_is_missed(tmp_path, at):
    write_series(tmp_path / "p", volume())
    file = next((tmp_path / "p").glob("*-5.dcm"))  # the highest
    whole = file.read_bytes()
    for content in (whole[:at], whole[:at] + bytes(len(whole) - at)):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=file.name):
            convert_series(tmp_path / "p", tmp_path / "p.nii.gz")


def test_copies_that_are_taken_away_are_no_lost_images(tmp_path):
    write_series(tmp_path / "in" / "a", volume(), PatientID="a")
    shutil.copytree(tmp_path / "in" / "a", tmp_path / "in" / "a" / "copy")
    assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    shutil.rmtree(tmp_path / "in" / "a" / "copy")
    assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 0


def test_columns_of_ones_own_may_have_any_name(tmp_path, capsys):
    write_series(tmp_path / "in" / "a", volume(), PatientID="a")
    for _ in range(2):
        assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 0
        table = pd.read_csv(tmp_path / "out" / "series.csv", dtype=str)
        if "id" not in table:
            table = table.assign(id="H-7", slices="6 good", frames="x")
            table.to_csv(tmp_path / "out" / "series.csv", index=False)
    assert table.loc[0, ["id", "slices", "frames"]].tolist() == ["H-7", "6 good", "x"]


@pytest.mark.skipif(os.name != "posix", reason="a name that is too long stands for a dead drive")
def test_an_entry_that_cannot_be_looked_at_is_named_and_the_others_converted(tmp_path, capsys):
    write_series(tmp_path / "in" / "z", volume(), PatientID="z")
    (tmp_path / "in" / "a").symlink_to("x" * 300)
    assert main([str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    assert (tmp_path / "out" / "z.nii.gz").exists() and "in/a" in capsys.readouterr().err


def test_a_date_that_is_none_says_nothing(tmp_path):
    days = ["20200101"] * 5 + ["00000000"]
    write_series(tmp_path / "p", volume(), change=lambda k: {"StudyDate": days[k]})
    convert_series(tmp_path / "p", tmp_path / "p.nii.gz")
    assert nib.load(tmp_path / "p.nii.gz").shape[2] == 6


def test_one_value_written_in_two_ways_is_one(tmp_path, capsys):
    """Names with components that are empty, times with and without a fraction."""

    def change(k):
        long = k % 2
        return {
            "PatientName": "Doe^John^^^" if long else "Doe^John",
            "AcquisitionTime": "103012.000000" if long else "103012",
        }

    write_series(tmp_path / "dicom" / "P1", volume(), change=change)
    assert main([str(tmp_path / "dicom"), str(tmp_path / "nifti")]) == 0
    np.testing.assert_array_equal(open_hu(tmp_path / "nifti/P1.nii.gz")[...], as_read(volume()))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"LossyImageCompressionRatio": "8.1"}, "have lossy compression"),
        ({"BurnedInAnnotation": "YES"}, "6 of 6 slices have words or marks in their pixels"),
        ({"BurnedInAnnotation": "NO"}, ""),
        ({"SeriesDescription": "AX MIP 10 mm"}, ""),  # of the scanner: read as it is
        ({"ImageType": ["DERIVED", "SECONDARY"], "SeriesDescription": "AX MinIP"}, "says MINIP"),
        ({"ImageType": ["DERIVED", "PRIMARY"], "SeriesDescription": "low dose"}, ""),
        ({"ImageType": ["DERIVED", "PRIMARY", "VOLUME", "MASKED"]}, "says MASKED"),
    ],
)
def test_what_may_spoil_slices_is_named_and_they_are_read(tmp_path, fields, words):
    write_series(tmp_path / "dicom" / "P1", volume(), **fields)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert main([str(tmp_path / "dicom"), str(tmp_path / "nifti")]) == 0
    assert words in str([str(w.message) for w in said]) if words else not said


@pytest.mark.parametrize("word", ["MAXIMUM", "STD_DEVIATION"])
def test_what_was_reckoned_from_several_slices_is_no_ct(tmp_path, word):
    write_series(tmp_path / "p", volume(), ImageType=["DERIVED", "PRIMARY", "VOLUME", word])
    with pytest.raises(ValueError, match="no slices of a CT but a scout or pictures, or maps"):
        convert_series(tmp_path / "p", tmp_path / "p.nii.gz")


@pytest.mark.parametrize("change", ["how it was sent", "packed otherwise"])
def test_a_copy_that_was_sent_in_another_way_is_a_copy(tmp_path, change):
    write_series(tmp_path / "p" / "a", volume())
    (tmp_path / "p" / "b").mkdir()
    for file in (tmp_path / "p" / "a").iterdir():
        image, plain = pydicom.dcmread(file), change != "packed otherwise"
        image.file_meta.SourceApplicationEntityTitle = "PACS2"
        if not plain:
            image.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        path = tmp_path / "p" / "b" / file.name
        pydicom.dcmwrite(path, image, implicit_vr=not plain, little_endian=True)
    convert_series(tmp_path / "p", tmp_path / "p.nii.gz")
    np.testing.assert_array_equal(open_hu(tmp_path / "p.nii.gz")[...], as_read(volume()))
