"""Liver masks for TCGA-LIHC from drawn DICOM segmentations: place, choice, and for whom none is."""

import highdicom
import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.sr.codedict import codes
from test_lihc import ISHAK, scan, written

from wspnb.data.headers import open_header
from wspnb.data.volumes import load_mask
from wspnb.sources.lihc import make_lihc
from wspnb.sources.lihc_masks import find_segmentations, main, off_grid, place, read_liver

SPACING, ORIGIN = (4.0, 5.0, 6.0), (-100.0, -120.0, -40.0)  # of DICOM's axes: left, back, head
SHAPE = (24, 20, 12)


def liver(seed: int = 0) -> np.ndarray:
    """``(left, back, head)`` bool, without a symmetry, empty at both ends: 7 slices of it."""
    mask = np.zeros(SHAPE, bool)
    mask[4:14, 3:12, 3:10] = True
    mask[4 + seed % 3 : 9, 3:6, 5:] = False
    mask[:, :, 10:] = False
    return mask


def draw(
    path,
    mask,
    patient,
    date="20010203",
    origin=ORIGIN,
    organ=codes.SCT.Liver,
    about="",
    first=codes.SCT.Spleen,
    called=None,
):
    """A DICOM SEG by highdicom, empty frames left out as usual; the organ is its second segment."""
    images, uid, study, frame = [], *(highdicom.UID() for _ in range(3))
    for k in range(mask.shape[2]):
        image = pydicom.Dataset()
        image.file_meta = pydicom.dataset.FileMetaDataset()
        image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        values = {
            "SOPClassUID": pydicom.uid.CTImageStorage,
            "SOPInstanceUID": highdicom.UID(),
            "SeriesInstanceUID": uid,
            "StudyInstanceUID": study,
            "FrameOfReferenceUID": frame,
            "PatientID": patient,
            "StudyDate": date,
            "Modality": "CT",
            "ImagePositionPatient": [origin[0], origin[1], origin[2] + SPACING[2] * k],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [SPACING[1], SPACING[0]],
            "SliceThickness": SPACING[2],
            "Rows": mask.shape[1],
            "Columns": mask.shape[0],
        }
        empty = ("PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID")
        empty += ("StudyTime", "ReferringPhysicianName")
        for name, value in (dict.fromkeys(empty, "") | values).items():
            setattr(image, name, value)
        images.append(image)
    kinds = (first, organ)
    described = [
        highdicom.seg.SegmentDescription(
            number, called or word.meaning, codes.SCT.Organ, word, "AUTOMATIC",
            highdicom.AlgorithmIdentificationSequence(
                "drawn", codes.DCM.ArtificialIntelligence, "1"
            ),
        )
        for number, word in enumerate(kinds, 1)
    ]  # fmt: skip
    other = np.roll(~mask, 1, axis=0) & ~mask & (np.arange(mask.shape[2]) < 3)
    frames = np.stack([other, mask], -1).transpose(2, 1, 0, 3).astype(np.uint8)
    found = highdicom.seg.Segmentation(
        images, frames, "BINARY", described, highdicom.UID(), 1, highdicom.UID(), 1,
        "maker", "model", "1", "0", series_description=about or "AIMI liver AI segmentation",
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save_as(path)


def affine_of(origin=ORIGIN) -> np.ndarray:
    """RAS affine of arrays in DICOM's axes (left, back, head)."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = origin
    return np.diag([-1, -1, 1, 1]) @ affine


def write_volume(path, codes_="LPS") -> None:
    """A CT on the segmentations' grid, its axes stored in another order."""
    values = np.random.default_rng(0).integers(-100, 400, SHAPE).astype(np.int16)
    image = nib.Nifti1Image(values, affine_of())
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes_)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    image.as_reoriented(turn).to_filename(path)


def canonical(mask) -> np.ndarray:
    return mask[::-1, ::-1]  # to the right, to the front


@pytest.fixture
def source(tmp_path):
    """Eight patients with a volume; ``make lihc`` has run."""
    for n, turned in enumerate(("LPS", "RAS", "SAL", "PIR", "LPS", "LPS", "LPS", "LPS")):
        write_volume(tmp_path / "record" / scan(n), turned)
    rows = pd.DataFrame({"subject": [scan(n) for n in range(8)], "score": np.resize(ISHAK, 8)})
    labels = written(tmp_path / "labels.csv", rows, index=False)

    def again():
        return make_lihc(tmp_path / "source", tmp_path / "record", labels, progress=False)

    again()
    return again


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_each_patient_has_a_mask_on_the_volumes_grid_or_a_reason(tmp_path, source, capsys):
    seg, who = tmp_path / "seg", [scan(n)[6:18] for n in range(8)]
    for n in range(4):  # volumes stored in four orders of axes
        draw(seg / who[n] / "a.dcm", liver(n), who[n])
    shifted = tuple(np.add(ORIGIN, (1.6, 0, 0)))  # of another series of that study
    draw(seg / who[0] / "0.dcm", liver(1), who[0], origin=shifted)
    draw(seg / who[1] / "b.dcm", liver(2), who[1], about="AIMI liver, corrected by a reader")
    draw(seg / who[4] / "a.dcm", liver(), who[4], date="20020203")
    draw(seg / who[5] / "a.dcm", liver(), who[5], origin=(300.0, -120.0, -40.0))
    draw(seg / who[6] / "a.dcm", liver(), who[6], organ=codes.SCT.Kidney)
    (seg / "notes.txt").write_text("no DICOM")
    assert main([str(tmp_path / "source"), str(seg)]) == 0
    table = pd.read_csv(tmp_path / "source" / "masks.csv", dtype=str, keep_default_na=False)
    status = table.set_index("patient").status
    assert (status[who[:4]] == "placed").all() and status[who[7]] == "none"
    assert status[who[4]] == "none of this date (2002-02-03)"
    assert status[who[5]] == "not of this scan: 0% of the liver lie on it"
    assert "segments [1, 2], none of them a liver" in status[who[6]]
    assert "placed: 4" in capsys.readouterr().out
    placed = table.set_index("patient").loc[who[:4]]
    assert (placed.off_grid.astype(float) == 0).all() and (placed.inside.astype(float) == 1).all()
    for n, drawn in enumerate((0, 2, 2, 3)):  # patient 1: the corrected one
        volume = tmp_path / "record" / scan(n)
        mask = load_mask(tmp_path / "source" / "masks" / scan(n), volume)
        assert np.array_equal(mask, canonical(liver(drawn)))
        assert float(placed.ml.iloc[n]) == pytest.approx(liver(drawn).sum() * 0.12)
    cohort = pd.read_csv(source(), keep_default_na=False).set_index("patient")
    assert sorted(cohort.index[cohort["mask"] != ""]) == sorted(who[:4])
    placed = tmp_path / "source" / "masks" / scan(0)
    placed.rename(placed.with_name(placed.name.replace(".nii", "_part_551.nii")))  # CADS's name
    source()
    assert main([str(tmp_path / "source"), str(seg)]) == 0  # nothing is done twice
    assert "there already: 4" in capsys.readouterr().out and not placed.exists()


def test_another_grid_is_resampled_by_the_nearest_voxel(tmp_path):
    write_volume(tmp_path / "v.nii.gz", "RAS")
    draw(tmp_path / "s.dcm", liver(), "p", origin=tuple(np.add(ORIGIN, (8.0, 5.0, -6.0))))
    mask, affine = read_liver(tmp_path / "s.dcm")
    header = open_header(tmp_path / "v.nii.gz")
    assert off_grid(affine, header) == 0  # by whole voxels: 2 to the left, 1 back, 1 down
    placed, inside = place(mask, affine, header)
    expected = canonical(np.roll(liver(), (2, 1, -1), (0, 1, 2)))
    assert inside == 1 and np.array_equal(placed > 0, expected)
    affine[0, 3] -= 1.6  # 0.4 of a voxel: the nearest voxel is the same
    assert off_grid(affine, header) == pytest.approx(0.4)
    assert np.array_equal(place(mask, affine, header)[0] > 0, expected)
    affine[0, 3] -= 0.8  # 0.6 of one: it is the next
    assert np.array_equal(place(mask, affine, header)[0] > 0, np.roll(expected, -1, 0))


def test_errors_are_one_line(tmp_path, capsys):
    assert main([str(tmp_path), str(tmp_path)]) == 1
    assert "inventory.csv does not exist: run `make lihc` first" in capsys.readouterr().err
    pd.DataFrame({"volume": [], "patient": []}).to_csv(tmp_path / "inventory.csv")  # notebook 01's
    assert main([str(tmp_path), str(tmp_path)]) == 1
    assert "is not the one of `make lihc`, without columns ['date'" in capsys.readouterr().err
    columns = ["name", "file", "patient", "date", "status"]
    pd.DataFrame(columns=columns).to_csv(tmp_path / "inventory.csv")
    assert main([str(tmp_path), str(tmp_path)]) == 1
    assert "no DICOM segmentation below" in capsys.readouterr().err
    draw(tmp_path / "s.dcm", liver(), "p")
    content = (tmp_path / "s.dcm").read_bytes()
    (tmp_path / "s.dcm").write_bytes(content[: len(content) - 200])
    with pytest.raises(ValueError, match=r"s\.dcm: "):
        read_liver(tmp_path / "s.dcm")


@pytest.mark.parametrize("called", ["Liver", " liver"])
def test_a_liver_by_its_label_alone_is_read(tmp_path, called):
    """As 3D Slicer writes it: the type of all segments is Tissue."""
    other = {"organ": codes.SCT.Tissue, "first": codes.SCT.Tissue}
    draw(tmp_path / "s.dcm", liver(), "p", called=called, **other)
    assert read_liver(tmp_path / "s.dcm")[0].sum() > liver().sum()  # both are called so
    draw(tmp_path / "s.dcm", liver(), "p", called="Lesion", **other)
    with pytest.raises(ValueError, match=r"none of them a liver \(Lesion, Lesion\)"):
        read_liver(tmp_path / "s.dcm")


def test_a_grid_of_twice_the_spacing_is_another_one(tmp_path):
    write_volume(tmp_path / "v.nii.gz", "RAS")
    header = open_header(tmp_path / "v.nii.gz")
    thick = affine_of() @ np.diag([1.0, 1, 2, 1])
    assert off_grid(affine_of(), header) == 0 and off_grid(thick, header) == 1


def test_lobes_are_one_liver(tmp_path):
    draw(tmp_path / "one.dcm", liver(), "TCGA-AA-0001")
    draw(tmp_path / "two.dcm", liver(), "TCGA-AA-0001", first=codes.SCT.Liver)
    one, two = (read_liver(tmp_path / f"{name}.dcm")[0].sum() for name in ("one", "two"))
    other = np.roll(~liver(), 1, axis=0) & ~liver() & (np.arange(liver().shape[2]) < 3)
    assert one == liver().sum() and two == one + other.sum()


@pytest.mark.parametrize("date", ["20010203", "2001.02.03"])
def test_a_date_is_read_as_it_was_written_before_dicom_too(tmp_path, date):
    draw(tmp_path / "s.dcm", liver(), "TCGA-AA-0001")
    image = pydicom.dcmread(tmp_path / "s.dcm")
    image.StudyDate = date
    image.save_as(tmp_path / "s.dcm")
    assert find_segmentations(tmp_path).date.tolist() == ["2001-02-03"]
