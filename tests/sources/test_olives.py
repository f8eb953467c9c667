"""OLIVES: the public label tables audited by number, and the reader on a folder of their layout."""

import re
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from wspnb.data.bscans import BIOMARKERS, prepare_bscan, write_bscans
from wspnb.data.slices import open_slices
from wspnb.run import main
from wspnb.sources import olives

SHARED = Path(__file__).parents[3] / "shared" / "data"
ATTRIBUTES = SHARED / "olives" / "olives_biomarker_attributes_patient_added.csv"
TEST = SHARED / "olives" / "olives_fold1_complete_biomarker_test.csv"
VOLUMES = SHARED / "olives" / "olives_volume_seq.csv"
needs_tables = pytest.mark.skipif(
    not ATTRIBUTES.exists(), reason=f"no copy of the public label tables in {ATTRIBUTES.parent}"
)
needs_scans = pytest.mark.skipif(
    not (SHARED / "oct").is_dir(), reason=f"no real B-scans in {SHARED / 'oct'}"
)


# --- the public tables ----------------------------------------------------------------------------


@needs_tables
def test_public_tables_are_whole():
    for csv, n_eyes in ((ATTRIBUTES, 40), (TEST, 20)):
        table = olives.read_labels(csv)
        assert len(table) == n_eyes * 2 * 49 and table.eye.nunique() == n_eyes
        visits = table.groupby("volume")
        assert (visits.size() == 49).all() and (visits.scan.nunique() == 49).all()
        assert (table.groupby("eye").volume.nunique() == 2).all()
        for name in ("bcva", "cst", "patient", "eye"):
            assert (visits[name].nunique() == 1).all(), name
        raw = pd.read_csv(csv)
        assert (raw["Scan (n/49)"] == table.scan).all()  # the file's number is the scan
        assert table.position.min() == 0 and table.position.max() == 1
        assert table.bcva.between(0, 100).all() and table.cst.between(150, 800).all()


@needs_tables
def test_public_split_shares_four_patients_through_their_other_eye():
    test, volumes = olives.read_labels(TEST), pd.read_csv(VOLUMES)
    train = volumes.assign(patient=volumes.Patient_ID.astype(str))
    assert len(volumes) == train.Eye_ID.nunique() == 76
    assert not set(train.Eye_ID) & set(test.eye) and len({*train.Eye_ID, *test.eye}) == 96
    assert olives.shared_patients(train, test) == ["201", "204", "213", "226"]
    with pytest.raises(ValueError, match="201, 204, 213, 226"):
        olives.check_split(train, test)
    repaired, same = olives.check_split(train, test, repair=True)
    assert len(repaired) == 72 and set(train.Eye_ID) - set(repaired.Eye_ID) == {35, 23, 40, 44}
    assert same is test and olives.shared_patients(repaired, test) == []


@needs_tables
def test_audit_of_the_public_tables():
    audit = olives.audit_tables(ATTRIBUTES.parent)
    found = {(r.table.replace("olives_", ""), r.finding): r.value for r in audit.itertuples()}
    attributes, test = "biomarker_attributes_patient_added", "fold1_complete_biomarker_test"
    assert found[attributes, "rows"] == "3920" and found[test, "rows"] == "1960"
    assert found[f"{attributes} and {test}", "images in both"] == "980"
    assert found[f"{attributes} and {test}", "values that differ"] == "0"
    volumes = f"volumes and {test}"
    assert found[volumes, "patients in both"] == "201 204 213 226"
    assert found[volumes, "eyes in both"] == "0"
    assert found[volumes, "biomarker rows of all eyes"] == "9408 = 96 x 2 x 49"
    assert found[attributes, "column types"].startswith("BCVA float64")
    assert found[test, "column types"].startswith("BCVA int64")
    share = found[test, "share of irf: first, middle, last seventh"]
    assert share == "0.24 -> 0.49 -> 0.31"
    assert not audit[audit.finding.str.contains("swapped")].value.eq("True").any()


@needs_tables
def test_swapped_headers_are_found_in_the_real_values(tmp_path):
    raw = pd.read_csv(ATTRIBUTES)
    raw["Snellen"] = (20 * 10 ** ((85 - raw.BCVA) / 50)).round()
    assert not olives.headers_swapped(raw)
    other = raw.rename(columns={"BCVA": "Snellen", "Snellen": "BCVA"})
    assert olives.headers_swapped(other)
    other.to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(ValueError, match=r"other\.csv: BCVA holds Snellen denominators"):
        olives.read_labels(tmp_path / "other.csv")
    repaired = olives.read_labels(tmp_path / "other.csv", swapped="repair")
    assert (repaired.bcva == olives.read_labels(ATTRIBUTES).bcva).all()


def test_snellen_under_the_name_of_bcva_without_another_column():
    assert olives.headers_swapped(pd.DataFrame({"BCVA": [32, 16, 25, 16, 50]}))
    assert not olives.headers_swapped(pd.DataFrame({"BCVA": [73, 88, 78, 90, 50]}))
    assert not olives.headers_swapped(pd.DataFrame({"BCVA": [80, 80, 63]}))  # letters can be these
    trap = pd.DataFrame({"BCVA": [32.0, 16.0, 25.0], "Snellen": [73.0, 88.0, 78.0]})
    assert olives.headers_swapped(trap)


# --- a folder of the authors' layout --------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Two trials' file names; patient 7 has a training and a test eye; one copied image."""
    random = np.random.default_rng(0)
    eyes = [  # table, folder, side, eye, patient
        ("train", "Prime_FULL/01-001", "OD", 1, 5),
        ("train", "TREX DME/GILA/0007GOD", "OD", 2, 7),
        ("test", "TREX DME/TREX/0007TOS", "OS", 3, 7),
        ("test", "Prime_FULL/02-003", "OS", 4, 9),
    ]
    rows = {"train": [], "test": []}
    for part, place, side, eye, patient in eyes:
        for visit, cst in (("W0", 400), ("W52", 300)):
            for scan in (0, 24, 48):
                name = f"{scan}.tif" if "Prime" in place else f"TREXW_{scan:06d}.tif"
                path = tmp_path / place / visit / side / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 255, (30, 40), dtype=np.uint8)).save(path)
                row = {"Path (Trial/Arm)": f"/{place}/{visit}/{side}/{name}"}
                row |= {
                    "Scan (n/49)": scan + 1,
                    "Eye_ID": eye,
                    "BCVA": 120.0 - cst / 10,
                    "CST": cst,
                }
                row |= {"Patient_ID": float(patient)}
                row |= {header: (eye + scan // 24) % 2 for header in BIOMARKERS.values()}
                rows[part].append(row)
    for part, table in rows.items():
        pd.DataFrame(table).to_csv(tmp_path / f"{part}.csv", index=False)
    more = [r for r in rows["train"] if "01-001/W0" in r["Path (Trial/Arm)"]]
    more = [{k: r[k] for k in r if k not in BIOMARKERS.values()} for r in more]
    extra = tmp_path / "Prime_FULL/01-001/W20/OD/3.tif"
    extra.parent.mkdir(parents=True)
    Image.fromarray(random.integers(0, 255, (30, 40), dtype=np.uint8)).save(extra)
    more.append(more[0] | {"Path (Trial/Arm)": "/Prime_FULL/01-001/W20/OD/3.tif", "CST": 350})
    more = [{"File_Path": r.pop("Path (Trial/Arm)"), **r} for r in more]
    more[0]["File_Path"] = re.sub(r"(\d+)\.", r"0\1.", more[0]["File_Path"])  # the same scan
    pd.DataFrame(more).to_csv(tmp_path / "pretrain.csv", index=False)
    return tmp_path


def write(folder, **options):
    csv = [folder / f"{name}.csv" for name in ("train", "test")]
    where = folder / "store"
    return open_slices(olives.write_olives(folder, *csv, where, size=24, **options))


def test_shared_patient_is_refused_then_repaired(folder):
    with pytest.raises(ValueError, match="patients 7 are in training and test"):
        write(folder)
    assert not (folder / "store" / "slices.npy").exists()
    store = write(folder, repair=True)
    assert store.images.shape == (18, 24, 24) and store.images.dtype == np.uint8
    assert isinstance(store.images, np.memmap)
    assert set(store.table.patient[store.table.cohort == "train"]) == {"5"}
    assert set(store.table.patient[store.table.cohort == "test"]) == {"7", "9"}
    assert store.settings["n_patients"] == 3 and store.settings["repaired"] is True


def test_rows_hold_the_tables_values(folder):
    store = write(folder, repair=True, pretrain_csv=folder / "pretrain.csv")
    assert len(store.table) == 19  # one new image; those already read are not taken twice
    row = store.table[store.table.volume == "01-001/W20/OD"].iloc[0]
    assert (row.cst, row.scan, row.cohort) == (350, 4, "train") and row.position == 3 / 48
    assert row[list(BIOMARKERS)].isna().all()
    row = store.table[store.table.volume == "0007TOS/W52/OS"].iloc[1]
    assert (row.patient, row.eye, row.side, row.scan) == ("7", 3, "OS", 25)
    assert (row[list(BIOMARKERS)] == 0).all()  # (3 + 1) % 2
    assert (store.table.loc[row.name - 1, list(BIOMARKERS)] == 1).all()
    with Image.open(folder / "TREX DME/TREX/0007TOS/W52/OS/TREXW_000024.tif") as file:
        expected = prepare_bscan(np.asarray(file), 24)
    assert (store.images[row.name] == expected).all()


def test_byte_identical_images_are_dropped(folder):
    def copy(source, target):
        (folder / target).write_bytes((folder / source).read_bytes())

    copy("Prime_FULL/02-003/W0/OS/0.tif", "Prime_FULL/02-003/W52/OS/0.tif")  # same patient
    copy("Prime_FULL/01-001/W0/OD/48.tif", "Prime_FULL/02-003/W0/OS/48.tif")  # two patients
    (folder / "Prime_FULL/02-003/W0/OS/24.tif").unlink()
    store = write(folder, repair=True)
    assert len(store.table) == 18 - 1 - 2 - 1 and len(store.failed) == 4
    reasons = " | ".join(store.failed.reason)
    assert reasons.count("but of patients ") == reasons.count("find out whose it is") == 2
    same = "W52/OS/0.tif: the same bytes as Prime_FULL/02-003/W0/OS/0.tif of the same patient"
    assert same in reasons
    assert "24.tif: no such file" in reasons


def test_damaged_images_and_foreign_tables_are_left_out(folder):
    home = folder / "Prime_FULL/02-003/W0/OS"
    (home / "0.tif").write_bytes((home / "0.tif").read_bytes()[:300])
    (home / "24.tif").write_text("gone")
    Image.fromarray(np.full((30, 40), 40_000, np.uint16)).save(home / "48.tif")
    store = write(folder, repair=True)
    assert len(store.table) == 15 and store.failed.patient.tolist() == ["9"] * 3
    assert store.failed.reason.str.contains("cannot be used").all()
    assert "mode I;16, not 8 bits" in store.failed.reason[2]
    (folder / "notes.csv").write_text("who,what\n1,2\n")
    (folder / "._test.csv").write_bytes(b"\0\5\26\7")
    (folder / "pretrain.csv").unlink()
    assert set(olives.audit_tables(folder).table) == {"test", "train", "test and train"}


def test_wrong_tables_are_named(folder):
    def broken(**change):
        pd.read_csv(folder / "test.csv").assign(**change).to_csv(folder / "bad.csv", index=False)
        return folder / "bad.csv"

    with pytest.raises(ValueError, match=r"bad\.csv: Fluid \(IRF\) holds \[2\]"):
        olives.read_labels(broken(**{"Fluid (IRF)": 2}))
    with pytest.raises(ValueError, match=r"bad\.csv, line 2: '/x/y' is no folder/visit/side/file"):
        olives.read_labels(broken(**{"Path (Trial/Arm)": "/x/y"}))
    with pytest.raises(ValueError, match=r"bad\.csv, line 3: .* a second time"):
        olives.read_labels(broken(**{"Path (Trial/Arm)": "/a/W0/OD/1.tif"}))
    twice = [f"/a/W0/OD/{name}.tif" for name in ("5", "05", *range(6, 16))]  # converted once more
    with pytest.raises(ValueError, match=r"bad\.csv, line 3: '/a/W0/OD/05.tif' is the scan of ano"):
        olives.read_labels(broken(**{"Path (Trial/Arm)": twice}))
    with pytest.raises(ValueError, match=r"0007TOS/W0/OS has 3 patients"):
        olives.read_labels(broken(Patient_ID=range(12)))
    for name, value in (("BCVA", "HM"), ("Patient_ID", ""), ("Eye_ID", 1.5)):
        with pytest.raises(ValueError, match=rf"bad\.csv, line 2: {name} .* is no number"):
            olives.read_labels(broken(**{name: value}))
    assert olives.read_labels(broken(CST="n/a")).cst.isna().all()
    paths = pd.read_csv(folder / "test.csv")["Path (Trial/Arm)"].str.replace(".tif", ".TIF")
    assert len(olives.read_labels(broken(**{"Path (Trial/Arm)": paths}))) == 12  # of Windows
    (folder / "bad.csv").write_bytes((folder / "test.csv").read_text().encode("utf-16"))
    with pytest.raises(ValueError, match=r"bad\.csv: not a CSV table"):
        olives.read_labels(folder / "bad.csv")
    with pytest.raises(ValueError, match=r"none of 18 images found"):
        csv = folder / "train.csv", folder / "test.csv"
        olives.write_olives(folder / "nowhere", *csv, folder / "s", repair=True)


@pytest.mark.slow
def test_notebook_on_a_users_folder(folder, capfd):
    """The whole notebook, from the authors' layout to the table."""
    notebook = Path(__file__).parents[2] / "notebooks" / "07_oct_biomarkers.ipynb"
    values = {"olives_dir": folder, "run_dir": folder / "run", "oct_methods": "[random, soft]"}
    values |= {"oct_steps": 2, "oct_batch": 4, "oct_size": 32, "probe_every": 1}
    values |= {"real_dir": folder / "nowhere"}

    def run(**more):
        pairs = [w for k, v in (values | more).items() for w in ("-p", k, str(v))]
        return main([str(notebook), str(folder / "out.ipynb"), *pairs])

    assert run() == 1 and "patients 7 are in training and test" in capfd.readouterr().err
    assert run(olives_repair="true") == 0
    table = pd.read_csv(folder / "run" / "oct" / "table_oct.csv")
    assert list(table.method) == ["None (random)", "BCVA x CST x position (ours)"]
    assert (table.train_patients == 1).all() and (table.test_patients == 2).all()
    assert table.macro_auroc.between(0, 1).all() and (table.source == "olives").all()


# --- preprocessing and store ----------------------------------------------------------------------


def test_a_bscan_is_padded_with_black_and_keeps_its_grey():
    image = np.full((20, 40), 200, np.uint8)
    small = prepare_bscan(image, 20)
    assert small.shape == (20, 20) and small.dtype == np.uint8
    assert (small[7:13] == 200).all() and (small[:4] == 0).all() and (small[-4:] == 0).all()
    with pytest.raises(ValueError, match="expected \\(h, w\\)"):
        prepare_bscan(np.zeros((4, 4, 3)), 8)
    for other in (image / 255, image * np.uint16(200), image - 201.0, image * np.nan):
        with pytest.raises(ValueError, match=r"grey values 0\.\.255"):
            prepare_bscan(other, 20)


@needs_scans
def test_the_real_bscans_go_through():
    files = sorted((SHARED / "oct").glob("*.png"))
    assert len(files) == 5
    for file in files:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("L"))
        small = prepare_bscan(pixels, 64)
        bright = pixels.sum() / max(pixels.shape) ** 2
        assert small.shape == (64, 64) and abs(small.mean() - bright) < 0.6, file.name


def test_a_store_that_does_not_fit_is_not_written(tmp_path):
    row = {"patient": "a", "eye": 1, "side": "OD", "visit": 0, "scan": 1, "position": 0.0}
    table = pd.DataFrame([row | {"bcva": 80, "cst": 300, "cohort": "train"}] * 2)
    with pytest.raises(ValueError, match="1 images for 2 rows"):
        write_bscans(tmp_path, [np.zeros((1, 8, 8), np.uint8)], table, 8)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no column \\['cst'\\]"):
        write_bscans(tmp_path, [], table.drop(columns="cst"), 8)


def test_scans_beyond_the_protocol_gaps_and_pages_are_named(folder):
    name = "/Prime_FULL/02-003/W52/OS/{}.tif"
    table = pd.read_csv(folder / "test.csv")
    for scan in (49, 96):
        more = table.iloc[[-1]].assign(**{"Path (Trial/Arm)": name.format(scan)})
        pd.concat([table, more]).to_csv(folder / "bad.csv", index=False)
        with pytest.raises(ValueError, match=r"bad\.csv, line 14: .* is no scan of 0 to 48"):
            olives.read_labels(folder / "bad.csv")
    (folder / "bad.csv").unlink()
    eyes = {"File_Path": ["/a/W0/OD.npy", "/b/W0/OD.npy"], "BCVA": 80, "CST": 300}
    eyes = pd.DataFrame(eyes | {"Patient_ID": [1, None], "Eye_ID": [1, 2]})
    eyes.to_csv(folder / "eyes.csv", index=False)
    with pytest.raises(ValueError, match=r"eyes\.csv, line 3: Patient_ID .* is no number"):
        olives.audit_tables(folder)
    first = olives.read_labels(folder / "train.csv").iloc[:2]
    pages = [Image.open(folder / image) for image in first.image]
    pages[0].save(folder / first.image.iloc[1], save_all=True, append_images=[pages[0].copy()])
    kept, failed = olives.drop_copies(folder, first)
    assert len(kept) == 1 and "2 pages, not one: write each as a file" in failed.reason.iloc[0]


def test_a_training_scan_without_its_value_is_set_aside_by_name(tmp_path):
    (tmp_path / "a").mkdir()
    rows = {
        "image": "a/0.tif",
        "patient": "1",
        "volume": "a",
        "bcva": [60.0, np.nan, np.nan],
        "cst": 300.0,
    }
    table = pd.DataFrame(
        rows | {"cohort": ["train", "train", "test"], "image": ["a/0.tif", "a/1.tif", "a/2.tif"]}
    )
    for number, name in enumerate(table.image):
        Image.fromarray(np.full((9, 9), number, np.uint8)).save(tmp_path / name)
    kept, failed = olives.drop_copies(tmp_path, table)
    assert kept.image.tolist() == ["a/0.tif", "a/2.tif"]
    assert failed.reason.tolist() == [
        "a/1.tif: cannot be used (no BCVA or CST, which training needs)"
    ]


def test_folders_with_accents_in_two_characters_are_found(tmp_path):
    name = "Prüfung/0.tif"
    (tmp_path / unicodedata.normalize("NFD", "Prüfung")).mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / unicodedata.normalize("NFD", name))
    table = pd.DataFrame({"image": [name], "patient": "1", "volume": "a", "bcva": 1.0, "cst": 1.0})
    assert len(olives.drop_copies(tmp_path, table)[0]) == 1
