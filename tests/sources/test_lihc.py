"""TCGA-LIHC: labels read and refused, files and labels joined, the way from a record to a cohort.

All barcodes are invented. The record is a stand-in: what the real one holds is not known here.
"""

import hashlib
import os
import shutil
import sys
import tarfile
import warnings
from importlib.metadata import version
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from test_downloads import nobody_waits, tar, zipped
from zenodo_server import Zenodo

from wspnb.data.cohort import read_cohort
from wspnb.phantom.patients import COUNTS
from wspnb.sources import lihc
from wspnb.sources.lihc import fetch_labels, list_files, make_lihc, read_labels

ISHAK = (
    "0 - No Fibrosis",
    "1,2 - Portal Fibrosis",
    "3,4 - Fibrous Speta",
    "5 - Nodular Formation and Incomplete Cirrhosis",
    "6 - Established Cirrhosis",
)


def scan(number: int, date: str = "2001-02-03") -> str:
    return f"lihc__TCGA-{'DD' if number < 32 else 'G3'}-X{number:03d}__{date}__VEN.nii.gz"


def table(counts=COUNTS["d2"]) -> pd.DataFrame:
    """A table of the form of the authors', by the number of patients in each class."""
    classes = np.repeat(range(5), counts)
    rows = {"subject": [scan(n) for n in range(len(classes))], "score": np.take(ISHAK, classes)}
    return pd.DataFrame(rows | {"class": classes, "label": (classes >= 3).astype(int)})


def written(path: Path, rows: pd.DataFrame, **options) -> Path:
    rows.to_csv(path, **options)
    return path


def volume(seed: int = 0) -> bytes:
    values = np.random.default_rng(seed).integers(-100, 400, (8, 8, 5)).astype(np.int16)
    return nib.Nifti1Image(values, np.diag([-4.0, -4.0, 5.0, 1.0])).to_bytes()


def lay(folder: Path, *names: str) -> Path:
    """A folder with a small file of each name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def make(folder, local, labels, **options):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        path = make_lihc(folder, local, labels, progress=False, **options)
    inventory = pd.read_csv(folder / "inventory.csv", dtype=str, keep_default_na=False)
    return read_cohort(path), inventory, [str(w.message) for w in seen]


# --- labels -----------------------------------------------------------------------------------


def test_table_of_the_authors_form(tmp_path):
    found = read_labels(written(tmp_path / "t.csv", table()))  # with its column without a name
    assert len(found) == found.patient.nunique() == 49
    assert found["class"].value_counts().to_dict() == {0: 25, 4: 13, 1: 5, 2: 4, 3: 2}
    assert found.label.value_counts().to_dict() == {0: 34, 1: 15}
    assert found.patient.str[5:7].value_counts().to_dict() == {"DD": 32, "G3": 17}
    assert found.attrs["by"] == "subject" and found.key[0] == scan(0).removesuffix(".nii.gz")
    for columns in (["subject", "score"], ["subject", "class"], ["subject", "label"]):
        part = read_labels(written(tmp_path / "t.csv", table()[columns], index=False))
        assert part.label.tolist() == found.label.tolist(), columns


@pytest.mark.parametrize(
    ("score", "stage", "label"),
    [
        *zip(ISHAK, range(5), (0, 0, 0, 1, 1), strict=True),
        *zip("123456", (1, 1, 2, 2, 3, 4), (0, 0, 0, 0, 1, 1), strict=True),
        ("3,4 - Fibrous Septa", 2, 0),
    ],
)
def test_ishak_scores(tmp_path, score, stage, label):
    rows = pd.DataFrame({"patient": ["TCGA-DD-X001-01A"], "score": [score]})
    found = read_labels(written(tmp_path / "t.csv", rows, index=False)).iloc[0]
    assert (found.key, found["class"], found.label) == ("TCGA-DD-X001", stage, label)
    assert found.score == score


@pytest.mark.parametrize(
    ("line", "column", "value", "message"),
    [
        (2, "class", "3", r"line 2: score '0 - No Fibrosis' is class 0, but class is 3"),
        (2, "label", "1", r"line 2: class 0 is not label 1"),
        (50, "label", "0", r"line 50: class 4 is not label 0"),
        (7, "score", "7 - Worse", r"line 7: score '7 - Worse' is no Ishak score"),
        (7, "score", "F4", r"line 7: score 'F4' is no Ishak score"),
        (7, "class", "5", r"line 7: class '5' is not one of 0 to 4"),
        (7, "label", "yes", r"line 7: label 'yes' is not one of 0 to 1"),
        (7, "subject", "somebody.nii.gz", r"line 7: subject 'somebody.nii.gz' holds no TCGA"),
        (7, "subject", scan(0), r"line 7: .*X000.* is already in line 2"),
        (50, "subject", scan(0, "1999-01-01"), r"X000 has label 1 here and 0 in line 2"),
    ],
)
def test_rows_that_contradict_are_named(tmp_path, line, column, value, message):
    rows = table().astype(str)
    rows.loc[line - 2, column] = value
    with pytest.raises(ValueError, match=message) as error:
        read_labels(written(tmp_path / "t.csv", rows))
    assert "1 problems" in str(error.value)


def test_blank_lines_count_and_other_files_are_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("patient,label\n\nTCGA-DD-X001,1\n , \nTCGA-DD-X002,0\n")
    assert read_labels(path).line.tolist() == [3, 5]
    for content in ("patient,label\nMüller,1\n".encode("latin-1"), b"", b"a,b\n1,2\n1,2,3\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"t\.csv: not a CSV table \(.+\): save it as CSV"):
            read_labels(path)


def test_tables_of_other_forms(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such table"):
        read_labels(tmp_path / "gone.csv")
    other = written(tmp_path / "t.csv", pd.DataFrame(columns=["who", "label"]), index=False)
    with pytest.raises(ValueError, match=r"columns \['who', 'label'\]"):
        read_labels(other)
    empty = pd.DataFrame({"patient": ["TCGA-DD-X001"], "label": ["nan"]})
    with pytest.raises(ValueError, match="no row has a label"):
        read_labels(written(tmp_path / "t.csv", empty, index=False))


def test_labels_are_fetched_and_verified(tmp_path, monkeypatch):
    content = table().to_csv().encode()
    server = Zenodo({"dataframe_lihc.csv": content})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    nobody_waits(monkeypatch)
    monkeypatch.setattr(lihc, "LABELS_URL", f"{server.api}/dataframe_lihc.csv")
    with pytest.raises(ConnectionError, match=r"does not match.*labels_file.*fibrosis_ishak_score"):
        fetch_labels(tmp_path)  # not the authors' table
    monkeypatch.setattr(lihc, "LABELS_SHA256", hashlib.sha256(content).hexdigest())
    assert fetch_labels(tmp_path).read_bytes() == content
    assert server.agents == {f"wspnb/{version('wspnb')}"}
    server.close()
    assert len(read_labels(fetch_labels(tmp_path))) == 49  # kept


# --- files and labels -------------------------------------------------------------------------


def test_all_patients_of_the_paper(tmp_path):
    local = lay(tmp_path / "local", *(f"ct/{scan(n)}" for n in range(49)))
    cohort, inventory, seen = make(tmp_path / "source", local, written(tmp_path / "t.csv", table()))
    assert len(cohort) == cohort.patient.nunique() == 49 and not seen
    assert cohort.label.value_counts().to_dict() == {0: 34, 1: 15}
    assert np.bincount(cohort["class"]).tolist() == [25, 5, 4, 2, 13]
    assert set(cohort.cohort) == {"d2"} and cohort.weak_label.isna().all()
    assert (cohort.date == "2001-02-03").all() and set(cohort["mask"]) == {""}
    assert sorted(set(cohort.score)) == sorted(ISHAK)
    assert set(inventory.status) == {"used"} and len(inventory) == 49
    for row in cohort.itertuples():
        assert Path(row.volume).parent == local / "ct" and row.patient in row.volume


def test_oldest_scan_and_nothing_lost(tmp_path):
    names = [scan(0, "1999-05-01"), scan(0, "1998-12-31"), scan(0, "2003-01-01"), scan(1)]
    names += [scan(2), scan(7, "2000-01-01"), "README.txt", "._" + scan(3), "other.nii.gz"]
    local = lay(tmp_path / "local", *names)
    rows = pd.DataFrame({"patient": [f"TCGA-DD-X{n:03d}" for n in (0, 1, 3)], "label": [1, 0, 0]})
    labels = written(tmp_path / "t.csv", rows, index=False)
    cohort, inventory, seen = make(tmp_path / "source", local, labels)
    assert [Path(v).name for v in cohort.volume] == [scan(0, "1998-12-31"), scan(1)]
    assert cohort.label.tolist() == [1, 0] and cohort.date.tolist() == ["1998-12-31", "2001-02-03"]
    assert inventory.status.value_counts().to_dict() == {
        "used": 2,
        "another scan is used": 2,
        "no label": 2,
        "no CT": 2,
        "no TCGA name": 1,
        "no file": 1,
    }
    assert inventory[inventory.status == "no file"].patient.item() == "TCGA-DD-X003"
    assert len(seen) == 1 and "no label: 2" in seen[0] and "no file: 1" in seen[0]

    # By file name: the labelled scan is used although the patient has an older one.
    by_scan = pd.DataFrame({"subject": [scan(0, "1999-05-01"), scan(1)], "label": [1, 0]})
    labels = written(tmp_path / "t.csv", by_scan, index=False)
    cohort, inventory, _ = make(tmp_path / "source", local, labels)
    assert cohort.date.tolist() == ["1999-05-01", "2001-02-03"]
    assert (inventory.status == "another scan is used").sum() == 2


def test_masks_are_found_by_name(tmp_path):
    local = lay(tmp_path / "local", scan(0), scan(1), scan(2), f"masks/{scan(0)}")
    cads = scan(2).replace(".nii", "_part_551.nii")
    lay(tmp_path / "source", f"masks/{cads}")
    labels = written(tmp_path / "t.csv", table((2, 0, 0, 0, 1)))
    cohort, _, _ = make(tmp_path / "source", local, labels)
    masks = [str(local / "masks" / scan(0)), "", str(tmp_path / "source" / "masks" / cads)]
    assert cohort["mask"].tolist() == masks
    local.rename(tmp_path / "disk")  # a copy whose parts lie on another disk
    (tmp_path / "local").mkdir()
    for part in (scan(0), scan(1), scan(2), "masks"):
        (local / part).symlink_to(tmp_path / "disk" / part)
    cohort, _, _ = make(tmp_path / "source", local, labels)
    assert cohort["mask"].tolist() == masks
    lay(tmp_path / "source", f"masks/{scan(2)}")  # which of the two is not for us to say
    with pytest.raises(ValueError, match=r"two masks of one volume, take one away"):
        make(tmp_path / "source", local, labels)


def test_files_that_do_not_fit(tmp_path):
    labels = written(tmp_path / "t.csv", table((2, 0, 0, 0, 1)))
    lay(tmp_path / "one", scan(0), scan(1), scan(30))
    with pytest.raises(ValueError, match=r"2 patients with file and label, labels \{0\}: both"):
        make(tmp_path / "source", tmp_path / "one", labels)
    lay(tmp_path / "none", "a.nii.gz", "b.nii")
    with pytest.raises(ValueError, match=r"0 patients.*'a\.nii\.gz', 'b\.nii', labels are for"):
        make(tmp_path / "source", tmp_path / "none", labels)
    assert not (tmp_path / "source" / "cohort.csv").exists()
    lay(tmp_path / "two", f"images/{scan(0)}", f"labels/{scan(0)}", scan(2))
    with pytest.raises(ValueError, match=r"two files of one name: .*images.*labels.*masks"):
        make(tmp_path / "source", tmp_path / "two", labels)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        make(tmp_path / "source", tmp_path / "gone", labels)


# --- the whole way ----------------------------------------------------------------------------


@pytest.fixture
def record(tmp_path, monkeypatch):
    """Twelve patients: most in an archive of each kind, one as it is."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    nobody_waits(monkeypatch)
    contents = [(f"LIHC ü/{scan(n)}", volume(n)) for n in range(12)]
    tar(tmp_path / "a.tar.gz", *contents[:6])
    zipped(tmp_path / "b.zip", *contents[6:11], ("__MACOSX/._" + scan(6), b"x"))
    files = {name: (tmp_path / name).read_bytes() for name in ("a.tar.gz", "b.zip")}
    server = Zenodo({**files, scan(11): contents[11][1], "README.md": b"hello"})
    monkeypatch.setattr(lihc, "API", server.api)
    yield server
    server.close()


def test_from_a_record_to_a_cohort(tmp_path, record):
    labels, source = written(tmp_path / "t.csv", table((6, 0, 0, 0, 6))), tmp_path / "source"
    record.cuts = [500]
    cohort, inventory, seen = make(source, None, labels)
    assert len(cohort) == 12 and not seen
    assert inventory.status.value_counts().to_dict() == {"used": 12, "archive": 2, "no CT": 2}
    for n, row in enumerate(cohort.itertuples()):
        assert Path(row.volume).read_bytes() == volume(n)
    before, asked = (source / "cohort.csv").read_bytes(), len(record.asked)
    assert str(tmp_path) not in before.decode()  # the folder can be moved
    make(source, None, labels)
    assert len(record.asked) == asked and (source / "cohort.csv").read_bytes() == before

    moved = source.rename(tmp_path / "moved")  # an existing download, used in place
    again, _, _ = make(tmp_path / "new", moved, labels)
    assert len(record.asked) == asked and again.patient.tolist() == cohort.patient.tolist()
    assert Path(again.volume.iloc[11]).is_relative_to(moved / "download")
    assert not (tmp_path / "new" / "download").exists()

    shutil.rmtree(moved / "unpacked")
    (moved / "registry.json").unlink()  # a copy made by hand: the same, unverified
    again, _, _ = make(tmp_path / "third", moved / "download", labels)
    assert again.patient.tolist() == cohort.patient.tolist() and len(record.asked) == asked


def test_new_content_of_an_archive_is_unpacked_beside_the_old(tmp_path, record):
    labels, source = written(tmp_path / "t.csv", table((6, 0, 0, 0, 6))), tmp_path / "source"
    make(source, None, labels)
    tar(tmp_path / "a.tar.gz", *[(scan(n), volume(100 + n)) for n in range(6)])
    record.files["a.tar.gz"] = (tmp_path / "a.tar.gz").read_bytes()
    cohort, _, _ = make(source, None, labels, accept_changed=True)
    assert Path(cohort.volume.iloc[0]).read_bytes() == volume(100)
    assert len(list((source / "unpacked").iterdir())) == 3


def test_hostile_archive_in_the_record(tmp_path, record):
    labels = written(tmp_path / "t.csv", table((6, 0, 0, 0, 6)))
    link = tarfile.TarInfo("LIHC")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
    tar(tmp_path / "a.tar.gz", link, ("LIHC/evil", b"x"))
    record.files["a.tar.gz"] = (tmp_path / "a.tar.gz").read_bytes()
    with pytest.raises(ValueError, match="'LIHC' is a link"):
        make(tmp_path / "source", None, labels)
    assert not (tmp_path / "evil").exists() and not (tmp_path / "source" / "cohort.csv").exists()


def test_masks_beside_volumes_phases_of_a_day_and_words_of_tcga(tmp_path):
    labels = tmp_path / "labels.csv"
    rows = [f"TCGA-AA-000{k},{word}" for k, word in enumerate(["0 - No Fibrosis"] * 2 + ["6"] * 2)]
    rows += [
        f"TCGA-AA-001{k},{w}" for k, w in enumerate(("[Not Available]", "'--", "Not Reported"))
    ]
    labels.write_text("patient,score\n" + "\n".join(rows) + "\n")
    names = [f"lihc__TCGA-AA-000{k}__2001-02-03__{p}" for k in range(4) for p in ("ART", "VEN")]
    masks = [f"{name}_liver" for name in names] + ["lihc__TCGA-AA-0000__2001-02-03__VEN-1seg.x"]
    lay(tmp_path / "copy", *(f"{name}.nii.gz" for name in names + masks[:-1]))
    (tmp_path / "copy" / "rest.7z").write_bytes(b"7z")
    table, _, said = make(tmp_path / "out", tmp_path / "copy", labels)
    assert "an archive that is not unpacked (rest.7z): 1" in said[0]
    assert table.volume.str.endswith("VEN.nii.gz").all() and len(table) == 4
    assert table["mask"].str.endswith("VEN_liver.nii.gz").all()


@pytest.mark.parametrize("form", ["Segmentation-{}", "Mask_{}", "LIVER_{}", "{}-seg", "x_{}_mask"])
def test_a_mask_is_known_by_a_word_on_either_side_of_the_name(form):
    name = "lihc__TCGA-AA-0001__2001-02-03__VEN"
    stem = "LIVER_" + name if form.startswith("x_") else name  # a volume's own name has one
    mask = form.format(name).replace("x_", "LIVER_")
    found = list_files([f"a/{stem}.nii.gz", f"a/{mask}.nii.gz"]).set_index("file")
    found.index = found.index.map(lambda file: Path(file).name)
    assert found.status.to_dict() == {f"{stem}.nii.gz": "", f"{mask}.nii.gz": "mask"}
    assert found.name[f"{mask}.nii.gz"] == stem


def test_the_older_scan_is_used_also_by_american_dates():
    days = {"04-23-2002": "2002-04-23", "01-05-2003": "2003-01-05", "23-04-2002": ""}
    found = list_files(f"TCGA-AA-0001_{day}_VEN.nii.gz" for day in days)
    assert dict(zip(found.name.str.split("_").str[1], found.date, strict=True)) == days


def test_a_link_that_leads_nowhere_is_listed(tmp_path):
    local = lay(tmp_path / "local", scan(0), scan(2))
    for name in (scan(1), "more.zip"):
        (local / name).symlink_to(tmp_path / "annex" / name)
    cohort, inventory, said = make(
        tmp_path / "out", local, written(tmp_path / "t.csv", table((2, 0, 0, 0, 1)))
    )
    dead = inventory[inventory.status == "a link that leads nowhere: fetch the file"]
    assert dead.file.map(lambda name: Path(name).name).tolist() == [scan(1), "more.zip"]
    assert len(cohort) == 2 and "leads nowhere: fetch the file: 2" in said[0]


def test_a_project_with_its_copy_can_be_moved(tmp_path):
    labels = written(tmp_path / "t.csv", table((2, 0, 0, 0, 1)))
    project = tmp_path / "project"
    local = lay(project / "data", scan(0), scan(1), scan(2), f"masks/{scan(0)}")
    make(project / "runs" / "source", local, labels)
    project.rename(tmp_path / "moved")
    cohort = read_cohort(tmp_path / "moved" / "runs" / "source" / "cohort.csv")
    assert cohort.volume.map(lambda name: Path(name).name).tolist() == [scan(0), scan(1), scan(2)]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_utf8_are_listed_and_the_others_used(tmp_path):
    local = lay(tmp_path / "local", scan(0), scan(1), scan(2))
    for name in (b"M\xfcller.txt", scan(3).encode().replace(b"VEN", b"V\xe9N")):
        Path(os.fsdecode(os.fsencode(local) + b"/" + name)).write_bytes(b"x")
    cohort, inventory, _ = make(
        tmp_path / "out", local, written(tmp_path / "t.csv", table((2, 0, 0, 0, 1)))
    )
    assert len(cohort) == 3
    odd = inventory[inventory.status == "its name is not UTF-8: rename it"]
    assert odd.file.map(lambda name: Path(name).name[:3]).tolist() == ["Mül", "lih"]
