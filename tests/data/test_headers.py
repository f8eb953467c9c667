"""Headers that are not to be believed: every format through the same checks, lengths in mm."""

import bz2
import gzip
import lzma
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from wspnb.data.headers import open_header
from wspnb.data.masks import compare, write_mask
from wspnb.data.volumes import load_mask, load_volume

AFFINE = np.array([[2.0, 0, 0, -20], [0, 3, 0, -30], [0, 0, 5, 300], [0, 0, 0, 1]])
HU = np.arange(-60, 60, dtype=np.int16).reshape(4, 5, 6)


def edited(image, **bytes_at):
    """The header's bytes, some of them replaced: ``at_252=b"..."``."""
    raw = bytearray(image.to_bytes())
    for name, content in bytes_at.items():
        at = int(name.removeprefix("at_"))
        raw[at : at + len(content)] = content
    return bytes(raw)


def nifti(folder, content, kind):
    """One content as .nii, .nii.gz or the pair .hdr and .img; returns the path to read."""
    if kind == "nii":
        (folder / "v.nii").write_bytes(content)
        return folder / "v.nii"
    if kind == "nii.gz":
        (folder / "v.nii.gz").write_bytes(gzip.compress(content))
        return folder / "v.nii.gz"
    header = bytearray(content[:348])
    header[344:348] = b"ni1\0"
    header[108:112] = bytes(4)  # voxels begin at once
    (folder / "v.hdr").write_bytes(header)
    (folder / "v.img").write_bytes(content[352:])
    return folder / f"v.{kind}"


KINDS = ["nii", "nii.gz", "hdr", "img"]
ONLY_QFORM = np.array([1, 0], "<i2").tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_nifti_reads_alike_and_is_refused_alike(tmp_path, kind):
    image = nib.Nifti1Image(HU, AFFINE)
    image.set_qform(AFFINE, 1)
    hu, spacing = load_volume(nifti(tmp_path, image.to_bytes(), kind))
    np.testing.assert_array_equal(hu, HU)
    np.testing.assert_allclose(spacing, [2, 3, 5], rtol=1e-6)
    refused = {
        r"both 'unknown'\), so feet and head": {"at_252": bytes(4)},
        r"no valid affine \(spacing \[2. 3. 0.\] mm\)": {"at_252": ONLY_QFORM, "at_88": bytes(4)},
        "contradicts itself: voxels of": {"at_80": np.array([4], "<f4").tobytes()},
        "not plain numbers": {"at_70": np.array([128, 24], "<i2").tobytes()},
        "too small for": {"at_42": np.array([3000] * 3, "<i2").tobytes()},
    }
    for words, change in refused.items():
        path = nifti(tmp_path, edited(image, **change), kind)
        with pytest.raises(ValueError, match=words) as error:
            load_volume(path)
        assert str(path) in str(error.value)
    wrong = edited(image, at_42=np.array([30000] * 3, "<i2").tobytes())
    (tmp_path / "v.nii.bz2").write_bytes(bz2.compress(wrong))  # 54 TB
    with pytest.raises(ValueError, match=r"v\.nii\.bz2: .*too small for"):
        load_volume(tmp_path / "v.nii.bz2")


@pytest.mark.parametrize("change", [nib.Nifti1Image, nib.Nifti2Image, "big"])
def test_a_file_that_is_not_what_its_name_says_is_called_what_it_is(tmp_path, change):
    make = nib.Nifti1Image if change == "big" else change
    image = make(HU, AFFINE, make.header_class(endianness=">") if change == "big" else None)
    content = image.to_bytes()
    files = {
        "zipped.nii": (
            gzip.compress(content),
            "compressed with gzip, which its name does not say: rename it to zipped.nii.gz",
        ),
        "plain.nii.gz": (
            content,
            "not compressed, though its name ends in .gz: rename it to plain.nii",
        ),
        "page.nii.gz": (b"<!DOCTYPE html>", "a web page or XML, not a NIfTI: download"),
        "a.nii": (b"PK\3\4" + bytes(500), "a zip archive, not a NIfTI: unpack it (of NumPy"),
        "rar.nii.gz": (b"Rar!\x1a\x07" + bytes(400), "a RAR archive, not a NIfTI: unpack it"),
        "7z.nii": (b"7z\xbc\xaf\x27\x1c" + bytes(400), "a 7z archive, not a NIfTI: unpack it"),
        "annex.nii.gz": (b"/annex/objects/MD5E-s5--d4.nii.gz\n", "a pointer of git-annex"),
        "lfs.nii": (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        "dicom.nii": (bytes(128) + b"DICM" + bytes(400), "a DICOM file, not a NIfTI: convert"),
    }
    for name, (written, words) in files.items():
        path = tmp_path / name
        path.write_bytes(written)
        with pytest.raises(ValueError, match=re.escape(f"{path}: {words}")) as error:
            open_header(path)
        assert "\n" not in str(error.value)
    for name in ("zipped.nii", "plain.nii.gz"):  # the advice helps
        told = tmp_path / ("zipped.nii.gz" if name == "zipped.nii" else "plain.nii")
        (tmp_path / name).rename(told)
        np.testing.assert_array_equal(load_volume(told)[0], HU)


def test_other_formats_are_read_with_their_scaling_or_refused(tmp_path):
    """Analyze has no orientation; MGH may say that its own is none; AFNI scales by slice."""
    nib.save(nib.AnalyzeImage(HU, np.diag([-2.0, 3, 5, 1])), tmp_path / "a.img")
    with pytest.raises(ValueError, match=r"a\.img: Spm2AnalyzeImage does not say which way is up"):
        load_volume(tmp_path / "a.img")
    image = nib.MGHImage(HU, AFFINE)
    nib.save(image, tmp_path / "v.mgz")
    hu, spacing = load_volume(tmp_path / "v.mgz")
    np.testing.assert_array_equal(hu, HU)
    np.testing.assert_allclose(spacing, [2, 3, 5], rtol=1e-6)
    raw = bytearray(gzip.decompress((tmp_path / "v.mgz").read_bytes()))
    raw[28:30] = bytes(2)  # goodRASFlag
    (tmp_path / "v.mgz").write_bytes(gzip.compress(raw))
    with pytest.raises(ValueError, match="goodRASFlag is 0"):
        load_volume(tmp_path / "v.mgz")
    scaled = nib.__path__[0] + "/tests/data/scaled+tlrc.HEAD"
    hu, _ = load_volume(scaled)
    truth = np.asarray(nib.as_closest_canonical(nib.load(scaled)).dataobj).reshape(hu.shape)
    np.testing.assert_allclose(hu, truth, rtol=1e-6)


@pytest.mark.parametrize("unit, factor", [(0, 1), (2, 1), (3, 1000), (1, 0.001)])
def test_lengths_and_millilitres_are_in_mm_whatever_the_unit(tmp_path, unit, factor):
    affine = AFFINE.copy()
    affine[:3] *= factor
    image = nib.Nifti1Image(HU, affine)
    image.header["xyzt_units"] = unit
    nib.save(image, tmp_path / "ct.nii.gz")
    header = open_header(tmp_path / "ct.nii.gz")
    np.testing.assert_allclose(header.spacing, [2, 3, 5], rtol=1e-6)
    assert header.voxel_ml == pytest.approx(0.03)
    liver = HU > 0
    row = {"volume": str(tmp_path / "ct.nii.gz"), "patient": "p", "cohort": "c"}
    found = compare(liver, np.roll(liver, 1, 2), row)
    assert found["ml"] == pytest.approx(59 * 0.03)
    write_mask(tmp_path / "m.nii.gz", liver, tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(load_mask(tmp_path / "m.nii.gz", tmp_path / "ct.nii.gz"), liver)


def test_units_that_make_no_body_are_refused(tmp_path):
    for unit, size, words in [(1, 1, "no body scan's"), (5, 1, "no body scan's"), (2, 400, "unit")]:
        image = nib.Nifti1Image(HU, AFFINE * np.array([size] * 3 + [1])[:, None])
        image.header["xyzt_units"] = unit
        nib.save(image, tmp_path / "ct.nii")
        with pytest.raises(ValueError, match=words):
            open_header(tmp_path / "ct.nii")


@pytest.mark.parametrize("name", ["V.NII", "V.NII.GZ", "v.nii.GZ"])
def test_names_in_capitals_are_read_to_the_checksum(tmp_path, name):
    content = nib.Nifti1Image(HU, AFFINE).to_bytes()
    packed = gzip.compress(content)
    (tmp_path / name).write_bytes(packed if "GZ" in name else content)
    np.testing.assert_array_equal(load_volume(tmp_path / name)[0], HU)
    (tmp_path / name).write_bytes(packed[:-4] + bytes(4) if "GZ" in name else content[:-4])
    with pytest.raises(ValueError, match=r"damaged|too small for|not readable") as error:
        load_volume(tmp_path / name)
    assert name in str(error.value)


def test_voxels_do_not_begin_within_the_header(tmp_path):
    content = edited(nib.Nifti1Image(HU, AFFINE), at_108=bytes(4))  # vox_offset
    (tmp_path / "v.nii").write_bytes(content)
    with pytest.raises(ValueError, match=r"v\.nii: its voxels begin at byte 0, within the header"):
        load_volume(tmp_path / "v.nii")


@pytest.mark.parametrize("noise", [0, 1e-6])
def test_an_identity_says_nothing(tmp_path, noise):
    nib.save(nib.Nifti1Image(HU, np.eye(4) + noise), tmp_path / "ct.nii")
    with pytest.raises(ValueError, match=r"ct\.nii: its affine is the identity.*any other origin"):
        open_header(tmp_path / "ct.nii")
    moved = np.eye(4)
    moved[2, 3] = 1
    nib.save(nib.Nifti1Image(HU, moved), tmp_path / "ct.nii")
    np.testing.assert_array_equal(load_volume(tmp_path / "ct.nii")[0], HU)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_sheared_grid_is_refused_a_turned_one_is_not(tmp_path, axis):
    for degrees, refused in [(20, True), (1, True), (0.3, False)]:
        affine = AFFINE.copy()
        affine[axis, 2] = 5 * np.tan(np.deg2rad(degrees))
        nib.save(nib.Nifti1Image(HU, affine), tmp_path / "ct.nii")
        if refused:
            with pytest.raises(ValueError, match=rf"{degrees}\.0 degrees off a right angle"):
                open_header(tmp_path / "ct.nii")
        else:
            open_header(tmp_path / "ct.nii")
    c, s = np.cos(0.4), np.sin(0.4)
    turned = np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]]) @ AFFINE
    nib.save(nib.Nifti1Image(HU, turned), tmp_path / "ct.nii")
    assert open_header(tmp_path / "ct.nii").voxel_ml == pytest.approx(0.03)


def test_two_places_that_differ_are_refused(tmp_path):
    """qform and sform mirrored against each other: nobody can tell which one is right."""
    image = nib.Nifti1Image(HU, AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(np.diag([-1.0, 1, 1, 1]) @ AFFINE, 1)
    nib.save(image, tmp_path / "ct.nii")
    with pytest.raises(ValueError, match="axes LAS by qform, RAS by sform"):
        open_header(tmp_path / "ct.nii")
    image.set_qform(np.diag([-1.0, 1, 1, 1]) @ AFFINE, 0)
    nib.save(image, tmp_path / "ct.nii")
    assert nib.aff2axcodes(open_header(tmp_path / "ct.nii").stored) == ("R", "A", "S")


@pytest.mark.parametrize(("code", "mm", "refused"), [(1, 100, True), (1, 4, False), (2, 9, False)])
def test_two_origins_of_one_space_are_refused(tmp_path, code, mm, refused):
    """By other codes they are places in other spaces, as the scanner's and one aligned to it."""
    image, moved = nib.Nifti1Image(HU, AFFINE), AFFINE.copy()
    moved[2, 3] += mm
    image.set_sform(AFFINE, code)
    image.set_qform(moved, 1)
    nib.save(image, tmp_path / "ct.nii")
    if refused:
        with pytest.raises(
            ValueError, match=r"ct\.nii: the header contradicts itself: origin .* by"
        ):
            open_header(tmp_path / "ct.nii")
    else:
        np.testing.assert_allclose(open_header(tmp_path / "ct.nii").stored, AFFINE)


def test_the_identity_of_itk_is_no_place_either(tmp_path):
    nib.save(nib.Nifti1Image(HU, np.diag([-1.0, -1, 1, 1])), tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match="its affine is the identity"):
        open_header(tmp_path / "a.nii.gz")


def test_a_mask_below_zero_is_refused(tmp_path):
    nib.save(nib.Nifti1Image(-(HU > 0).astype(np.int16), AFFINE), tmp_path / "m.nii.gz")
    with pytest.raises(ValueError, match="mask values from -1"):
        load_mask(tmp_path / "m.nii.gz")


@pytest.mark.parametrize("kind", [*KINDS, "nii.bz2"])
def test_slices_that_the_header_leaves_out_are_not_lost_in_silence(tmp_path, kind):
    """A dim that is too small, a file that was joined to itself, an extension taken for voxels."""
    content = nib.Nifti1Image(HU, AFFINE).to_bytes()

    def written(content):
        if kind != "nii.bz2":
            return nifti(tmp_path, content, kind)
        (tmp_path / "v.nii.bz2").write_bytes(bz2.compress(content))
        return tmp_path / "v.nii.bz2"

    np.testing.assert_array_equal(load_volume(written(content + bytes(100)))[0], HU)  # padding
    shorter = bytearray(content)
    shorter[46:48] = np.array([3], "<i2").tobytes()  # dim[3]
    for wrong, words in [(bytes(shorter), r"\(4, 5, 3\)"), (content + content, "another volume")]:
        path = written(wrong)
        with pytest.raises(ValueError, match=f"bytes behind the voxels of .*{words}") as error:
            load_volume(path)
        assert str(path) in str(error.value)


def test_slices_that_other_formats_leave_out_are_not_lost_either(tmp_path):
    raw = bytearray(nib.MGHImage(HU, AFFINE).to_bytes())
    (tmp_path / "v.mgh").write_bytes(bytes(raw) + b"tags")  # a few bytes behind are usual
    np.testing.assert_array_equal(load_volume(tmp_path / "v.mgh")[0], HU)
    raw[12:16] = (3).to_bytes(4, "big")  # depth
    (tmp_path / "v.mgh").write_bytes(raw)
    source = nib.__path__[0] + "/tests/data/scaled+tlrc"
    for end in ("HEAD", "BRIK"):
        content = Path(f"{source}.{end}").read_bytes()
        (tmp_path / f"v+tlrc.{end}").write_bytes(content * (2 if end == "BRIK" else 1))
    for name in ("v.mgh", "v+tlrc.HEAD"):
        with pytest.raises(ValueError, match="bytes behind the voxels of") as error:
            load_volume(tmp_path / name)
        assert name in str(error.value)


def test_every_format_may_contradict_itself(tmp_path):
    raw = bytearray(nib.MGHImage(HU, AFFINE).to_bytes())
    raw[42:78] = (2 * np.frombuffer(bytes(raw[42:78]), ">f4")).astype(">f4").tobytes()  # cosines
    (tmp_path / "v.mgh").write_bytes(raw)
    source = nib.__path__[0] + "/tests/data/scaled+tlrc"
    head = Path(f"{source}.HEAD").read_text()
    at = head.index("count", head.index("= DELTA"))
    sizes = head[at + 9 : head.index("type", at)]  # behind "count = 3"
    (tmp_path / "s+tlrc.HEAD").write_text(head.replace(sizes, sizes.replace("3", "6")))
    (tmp_path / "s+tlrc.BRIK").write_bytes(Path(f"{source}.BRIK").read_bytes())
    for name in ("v.mgh", "s+tlrc.HEAD"):
        with pytest.raises(ValueError, match=r"contradicts itself: voxels of .* by their size"):
            load_volume(tmp_path / name)


@pytest.mark.parametrize(
    ("at", "numbers", "words"),
    [
        (256, [3, 3, 3], "quaternion is none"),
        (256, [np.nan], "quaternion"),
        (84, [np.nan], "pixdim"),
    ],
)
def test_numbers_that_are_none_are_named_with_the_file(tmp_path, at, numbers, words):
    image = nib.Nifti1Image(HU, AFFINE)
    image.set_qform(AFFINE, 1)
    content = edited(image, **{f"at_{at}": np.array(numbers, "<f4").tobytes()})
    (tmp_path / "v.nii").write_bytes(content)
    with pytest.raises(ValueError, match=rf"v\.nii: the header contradicts itself: .*{words}"):
        open_header(tmp_path / "v.nii")


def test_what_is_no_nifti_is_called_what_it_is(tmp_path):
    content = nib.Nifti1Image(HU, AFFINE).to_bytes()
    tar = bytes(257) + b"ustar" + bytes(500)
    files = {
        "v.nrrd": (b"NRRD0005\n", "a NRRD, which is not read here: convert"),
        "v.mha": (b"ObjectType = Image\n", "a MetaImage, not read here: convert"),
        "v.mhd": (b"NDims = 3\n", "a MetaImage, not read here: convert"),
        "c.mhd": (b"Comment = x\n", "a MetaImage, not read here: convert"),
        "b.mhd": (b"BinaryData = True\n", "a MetaImage, not read here: convert"),
        "v.npy": (b"\x93NUMPY", "a NumPy array, which holds no place"),
        "v.h5": (b"\x89HDF\r\n", "HDF5, which holds no place"),
        "v.mat": (b"MATLAB 5.0 MAT-file", "a MATLAB file, which holds no place"),
        "t.nii": (tar, "a tar archive, not a NIfTI: unpack it"),
        "t.nii.gz": (gzip.compress(tar), "a tar archive, not a NIfTI: unpack it"),
        "w.nii.gz": (gzip.compress(gzip.compress(content)), "compressed with gzip twice: unpack"),
        "x.nii.gz": (lzma.compress(content), "compressed with xz, not with gzip: unpack it"),
        "z.nii.gz": (bz2.compress(content), "compressed with bzip2, not with gzip: unpack it"),
        "p.nii.gz": (gzip.compress(b"<html>"), "a web page or XML"),
        "h.img": (bytes(240), "half of a pair, and h.hdr is missing: copy it beside"),
    }
    for name, (written, words) in files.items():
        (tmp_path / name).write_bytes(written)
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path / name}: {words}")):
            open_header(tmp_path / name)
    (tmp_path / "cut.nii.gz").write_bytes(gzip.compress(content)[:60])
    with pytest.raises(ValueError, match=r"cut\.nii\.gz: (?!.*twice)"):  # it is damaged
        open_header(tmp_path / "cut.nii.gz")
    with pytest.raises(ValueError, match="a folder, not a volume: convert its DICOM series"):
        open_header(tmp_path)
