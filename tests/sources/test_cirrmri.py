"""CirrMRI600+: its tables, its splits, and the whole way from a stand-in for OSF to a cohort.

The archive itself was never seen: the stand-in has the layout that public readers of it show.
"""

import contextlib
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from transformers import Dinov2Config, Dinov2Model
from zenodo_server import Zenodo

from wspnb.data.cohort import read_cohort
from wspnb.data.slices import open_slices, write_slices
from wspnb.files import read_csv
from wspnb.results.stages import MEASURES
from wspnb.results.tables import auc_table, read_runs
from wspnb.sources import cirrmri
from wspnb.sources.archives import gather
from wspnb.sources.cirrmri import API, SHA256, TABLES, divide, make_cirrmri, read_stages
from wspnb.sources.downloads import BLOCK

REAL = Path(__file__).parents[3] / "shared" / "data" / "cirrmri" / "metadata"
HEAD = "Patient ID,Age,Gender,Radiological Evaluation"
# patient: stage, split of T1, split of T2; as in the real set, 5 and 47 change sides
PATIENTS = {n: (n % 3 + 1, "train", "train") for n in range(10, 22)}
PATIENTS |= {n: (n % 3 + 1, "valid", "valid") for n in range(30, 33)}
PATIENTS |= {n: (n % 3 + 1, "test", "test") for n in range(40, 43)}
PATIENTS |= {5: (1, "valid", "train"), 47: (2, "train", "valid")}


def mri(number: int, stage: int) -> tuple[bytes, bytes]:
    """A drawn body whose liver is rougher with the stage; headers as odd as the set's."""
    rng, shape = np.random.default_rng(number), (32, 28, 16)
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[:2]), indexing="ij")
    grey = rng.uniform(0, 5, shape)
    grey[np.hypot(x / 0.85, y / 0.85) < 1] = 90
    mask = np.zeros(shape, np.uint16)
    mask[np.hypot((x + 0.3) / 0.45, y / 0.6) < 1, 2:14] = 1
    grey[mask > 0] = 160 + 25 * stage * rng.standard_normal(int(mask.sum()))
    affine = np.diag([-8.0, -8.0, 7.0, 1.0])
    files = []
    for array in (grey.clip(0, 4095) * (1 + number % 5), mask):
        image = nib.Nifti1Image(array.astype(np.int16 if array is not mask else np.uint16), affine)
        image.set_qform(affine, 1)
        image.set_sform(np.zeros((4, 4)), 0)
        files.append(image.to_bytes())
    return files[0], files[1]


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(name, content)
    return buffer.getvalue()


def project() -> dict[str, bytes]:
    """The archives of a small set: names, splits, tables with BOM, stray files, as on OSF."""
    files, rows = {}, []
    for number, (stage, *splits) in PATIENTS.items():
        rows.append(f"{number},60,{number % 2 + 1},{stage}")
        for kind, split in zip(("T1", "T2"), splits, strict=True):
            home = f"Cirrhosis_{kind}_3D/Cirrhosis_{kind}_3D/{split}"
            scans = mri(number + 1000 * (kind == "T2"), stage)
            for what, content in zip(("images", "masks"), scans, strict=True):
                files.setdefault(kind, {})[f"{home}_{what}/{number}.nii"] = content
    files["T1"] |= {"Cirrhosis_T1_3D/.DS_Store": b"x", "__MACOSX/._5.nii.gz": b"x"}
    files["T1"]["Cirrhosis_T1_3D/Cirrhosis_T1_3D/train_images/99.nii"] = mri(99, 1)[0]
    sound = {
        f"Healthy_subjects/T1_W_Healthy/T1_{what}/10.nii": content
        for what, content in zip(("images", "masks"), mri(500, 0), strict=True)
    }
    text = ("\ufeff" + "\n".join([HEAD, *rows]) + "\n").encode()
    metadata = {f"Metadata/{name}": text for name in TABLES.values()}
    return {
        "Cirrhosis_T1_3D.zip": archive(files["T1"]),
        "Cirrhosis_T2_3D.zip": archive(files["T2"]),
        "Metadata.zip": archive(metadata),
        "LICENSE.txt": b"CC BY-NC 4.0",
        "Healthy_subjects.zip": archive(sound),
    }


class Osf(Zenodo):
    """The same server with OSF's language: pages of ten, folders, hashes, downloads by id."""

    def __init__(self, files):
        super().__init__(files)
        self.home = self.api.removesuffix("/api")
        self.start = f"{self.home}/v2/top/1"

    def body(self, path):
        names = list(self.files)
        if path == "/v2/top/1":
            link = {"links": {"related": {"href": f"{self.home}/v2/inner/1"}}}
            inner = {"attributes": {"kind": "folder", "name": "data"}}
            data = [inner | {"relationships": {"files": link}}, *map(self.entry, names[:2])]
            return {"data": data, "links": {"next": f"{self.home}/v2/top/2"}}
        if path == "/v2/top/2":
            return {"data": [self.entry(names[2])], "links": {"next": None}}
        if path == "/v2/inner/1":
            return {"data": [self.entry(n) for n in names[3:]], "links": {"next": None}}
        return None

    def entry(self, name):
        sha = hashlib.sha256(self.files[name]).hexdigest()
        about = {"kind": "file", "name": name, "size": len(self.files[name])}
        about["extra"] = {"hashes": {"md5": "", "sha256": sha}}
        return {"attributes": about, "links": {"download": f"{self.home}/download/{name}"}}


FILES = project()
KNOWN = {n: hashlib.sha256(c).hexdigest() for n, c in FILES.items() if "_3D" in n}


@pytest.fixture
def osf(monkeypatch):
    server = Osf(FILES)
    monkeypatch.setattr(cirrmri, "API", server.start)
    monkeypatch.setattr(cirrmri, "SHA256", KNOWN)
    yield server
    server.close()


def make(folder, *take):
    return make_cirrmri(folder, take=take or ("t1",), progress=False)


def test_from_the_server_to_slices_cut_and_resumed(tmp_path, osf):
    size = len(FILES["Cirrhosis_T1_3D.zip"])
    osf.cuts = [size // 2]  # the connection breaks; what is there is not sent again
    with pytest.warns(UserWarning, match="no mask: 1|no scan"):
        table = read_cohort(make(tmp_path))
    asked = [(span, n) for path, span, _, n in osf.asked if "T1_3D" in path]
    assert [bool(span) for span, _ in asked] == [False, True]
    assert size <= sum(n for _, n in asked) <= size + BLOCK  # a block at most is sent again
    assert not any("T2_3D" in p or "Healthy" in p for p, *_ in osf.asked)
    inventory = pd.read_csv(tmp_path / "inventory.csv", dtype=str, keep_default_na=False)
    assert inventory.status.value_counts().to_dict() == {"": 20, "no scan": 5, "no mask": 1}
    train, judged = (table[table.cohort == name] for name in ("train", "judged"))
    assert sorted(judged.patient, key=int) == ["5", "30", "31", "32", "40", "41", "42"]
    assert (train.weak_label == train.stage - 1).all() and judged.weak_label.isna().all()
    assert (table.label == (table.stage == 3)).all() and set(table.coding) == {"MR"}
    store = open_slices(write_slices(tmp_path / "cohort.csv", tmp_path / "s", 24, progress=False))
    assert not len(store.failed) and store.table.patient.nunique() == 20
    assert set(store.table.spacing_z) == {7.0} and set(store.table.n_kept) == {8}
    asked = len(osf.asked)
    make(tmp_path)  # all is there: nothing is asked for
    assert len(osf.asked) == asked


def test_patients_who_change_sides_are_named_and_judged_in_both(tmp_path, osf):
    with pytest.warns(UserWarning, match=r"2 patients change sides .*\(5, 47\)"):
        table = read_cohort(make(tmp_path, "t1", "t2"))
    assert len(table) == 40 and (table.groupby("patient").cohort.nunique() == 1).all()
    assert set(table.cohort[table.patient.isin(["5", "47"])]) == {"judged"}
    assert set(table.split[table.patient == "5"]) == {"train", "valid"}


def test_healthy_only_when_asked_with_the_warning(tmp_path, osf):
    with pytest.warns(UserWarning, match=r"\.986 by what lies outside the liver"):
        table = read_cohort(make(tmp_path, "t1", "healthy"))
    sound = table[table.cohort == "healthy"]
    assert sound.patient.tolist() == ["healthy-10"] and "10" in set(table.patient)
    assert sound.weak_label.isna().all()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_five_folds_hold_every_patient_once(tmp_path, osf):
    judged = []
    for fold in range(5):
        table = read_cohort(make(tmp_path, "t1", f"fold{fold}"))
        judged += table.patient[table.cohort == "judged"].tolist()
        assert not set(judged[-4:]) & set(table.patient[table.cohort == "train"])
    assert len(judged) == len(set(judged)) == 20


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_copy_on_the_disk_in_either_layout(tmp_path):
    for depth in ("", "Cirrhosis_T1_3D/"):
        home = tmp_path / f"copy{len(depth)}"
        for name in ("Cirrhosis_T1_3D.zip", "Metadata.zip"):
            with zipfile.ZipFile(io.BytesIO(FILES[name])) as source:
                for entry in source.namelist():
                    short = entry.replace("Cirrhosis_T1_3D/Cirrhosis_T1_3D/", "Cirrhosis_T1_3D/")
                    short = short.replace("Metadata/", "") if not depth else depth + short
                    (home / short).parent.mkdir(parents=True, exist_ok=True)
                    (home / short).write_bytes(source.read(entry))
        (home / "._Cirrhosis_T1_3D.zip").write_bytes(b"\0\5\26\7")  # a Mac's note, no archive
        table = read_cohort(make_cirrmri(tmp_path / f"out{len(depth)}", home, progress=False))
        assert len(table) == 20
    (tmp_path / "all").mkdir()
    for name in ("out16", "copy16"):  # a project that is moved
        (tmp_path / name).rename(tmp_path / "all" / name)
    assert len(read_cohort(tmp_path / "all" / "out16" / "cohort.csv")) == 20
    for name in ("out16", "copy16"):
        (tmp_path / "all" / name).rename(tmp_path / name)
    table = next(home.rglob("T1_*.csv"))
    copy = home / "more" / table.name
    copy.parent.mkdir()
    shutil.copy(table, copy)
    assert len(read_cohort(make_cirrmri(tmp_path / "twice", home, progress=False))) == 20
    copy.write_bytes(table.read_bytes() + b"99,60,1,1\n")
    with pytest.raises(ValueError, match="tables of one name that differ"):
        make_cirrmri(tmp_path / "twice", home, progress=False)
    copy.unlink()
    for file in home.rglob("T1_*.csv"):  # a patient's stage and another one's age are unknown
        text = file.read_text(encoding="utf-8")
        text = text.replace("\n12,60,1,1", "\n12,60,1,").replace("\n13,60,", "\n13,,")
        file.write_text(text, encoding="utf-8")
    table = read_cohort(make_cirrmri(tmp_path / "gaps", home, progress=False))
    assert len(table) == 19 and "12" not in set(table.patient)
    assert table.age[table.patient == "13"].isna().all() and table.age.notna().sum() == 18
    inventory = read_csv(tmp_path / "gaps" / "inventory.csv", text=True)
    assert inventory.status[inventory.patient == "12"].tolist() == ["no stage"]


def test_an_archive_that_is_not_as_known_is_refused_before_it_is_fetched(
    tmp_path, osf, monkeypatch
):
    monkeypatch.setattr(cirrmri, "SHA256", {"Cirrhosis_T1_3D.zip": "0" * 64})
    with pytest.raises(ValueError, match="not what it was"):
        make(tmp_path)
    assert not any("download" in path for path, *_ in osf.asked)
    with pytest.raises(ValueError, match="take="):
        make(tmp_path, "healthy")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no tables of CirrMRI600+ in {REAL}")
def test_real_tables_and_official_splits():
    files = {path.name: path for path in REAL.iterdir()}
    stages = read_stages(files, ["t1", "t2"])
    assert stages.stage.value_counts().to_dict() == {1: 137, 2: 116, 3: 84}
    rows, counts = [], {}
    for kind in ("t1", "t2"):
        own = read_stages(files, [kind])
        ids = sorted(own.index)  # as text: the last 31 are test, those before valid
        parts = dict.fromkeys(ids, "train") | dict.fromkeys(ids[-62:-31], "valid")
        parts |= dict.fromkeys(ids[-31:], "test")
        if kind == "t2":  # but for these two, as counts and names of those who change sides say
            parts |= {"393": "valid", "471": "train"}
        for part in ("train", "valid", "test"):
            inside = [n for n in ids if parts[n] == part]
            counts[kind, part] = own.stage[inside].value_counts().sort_index().tolist()
        rows += [{"patient": n, "split": parts[n], "stage": own.stage[n]} for n in ids]
    assert counts["t1", "train"] == [97, 94, 57] and counts["t2", "train"] == [102, 99, 55]
    assert counts["t1", "test"] == [17, 6, 8] and counts["t2", "valid"] == [13, 9, 9]
    with pytest.warns(UserWarning, match=r"7 patients .*\(47, 56, 393, 460, 463, 464, 471\)"):
        cohort = divide(pd.DataFrame(rows))
    table = pd.DataFrame(rows).assign(cohort=cohort)
    assert (table.groupby("patient").cohort.nunique() == 1).all()


@pytest.mark.parametrize(
    ("t1", "t2", "message"),
    [
        ("patient id ,AGE,Gender,Radiological Evaluation \n4,60,2,3", "", ""),
        ("Patient ID,Age,Gender,Grade\n4,60,2,3", "", r"\['radiological evaluation'\] .*'Grade'"),
        ("Patient ID,Age,Gender,Radiological Evaluation\n4,60,2,9", "", "{'4': '9'} are none of"),
        ("", "Patient ID,Age,Gender,Radiological Evaluation\n4,60,2,1", r"\['4'\] have two stages"),
    ],
)
def test_tables_that_are_wrong_are_named_with_what_was_found(tmp_path, t1, t2, message):
    good = "Patient ID,Age,Gender,Radiological Evaluation\n4,60,2,3"
    files = {}
    for kind, text in (("T1", t1 or good), ("T2", t2 or good)):
        path = tmp_path / f"{kind}_age_gender_evaluation.csv"
        path.write_text(text + "\n", encoding="utf-8-sig")
        files[path.name] = path
    if not message:
        assert read_stages(files, ["t1", "t2"]).stage.to_dict() == {"4": 3}
        return
    with pytest.raises(ValueError, match=message):
        read_stages(files, ["t1", "t2"])


def test_tables_that_a_spreadsheet_saved_are_read(tmp_path):
    """Stages as 1.0 or NA, semicolons, ages and genders written in two ways, or missing in one."""
    rows = {
        "T1": ["1;54;M;1.0", "2;60;;2 ", "3;61;F;NA", "4;62;F;3"],
        "T2": ["1.0;54.0;m;1", "2;60;F ;2", "4;NA;F;3"],
    }
    files = {}
    for kind, lines in rows.items():
        path = tmp_path / f"{kind}_age_gender_evaluation.csv"
        path.write_text("\n".join([HEAD.replace(",", ";"), *lines]) + "\n", encoding="utf-8")
        files[path.name] = path
    found = read_stages(files, ["t1", "t2"])
    assert found.stage.to_dict() == {"1": 1, "2": 2, "4": 3}
    assert found.age.tolist() == ["54", "60", "62"] and found.gender.tolist() == ["M", "F", "F"]
    path.write_text(path.read_text().replace("54.0", "55"))
    with pytest.raises(ValueError, match=r"\['1'\] have two stages, ages or genders"):
        read_stages(files, ["t1", "t2"])


def test_scans_that_are_dead_links_are_listed(tmp_path):
    name = "Cirrhosis_T1_3D/train_{}/7.nii.gz"
    for what in ("images", "masks"):
        (tmp_path / name.format(what)).parent.mkdir(parents=True)
    (tmp_path / name.format("images")).symlink_to("gone")
    (tmp_path / name.format("masks")).write_bytes(b"1")
    found = cirrmri.list_scans(gather(tmp_path / "out", tmp_path, list), ["t1"], False)
    dead = "a link that leads nowhere: fetch the file"
    assert sorted(found.status) == [dead, "mask without image"]


SMALL = {"image_size": 32, "backbone": "tiny_padded", "n_folds": 2, "n_steps": 60, "batch_size": 8}
SMALL |= {"warmup_steps": 1, "supervised_steps": 2, "log_every": 1, "save_every": 0.2}
SMALL |= {"toy_steps": 20, "toy_seeds": 2, "toy_held_out": 60, "live_seeds": [0]}


class Copy:
    """A copy of the project, small, that asks the stand-in for the files and their checksums."""

    def __init__(self, folder: Path, server: Osf):
        root, self.folder = Path(__file__).parents[2], folder
        for name in ("notebooks", "params", "workflow", "src", "docs", "figures"):
            shutil.copytree(root / name, folder / name)
        for name in ("Makefile", "pyproject.toml", "requirements.lock"):
            shutil.copy2(root / name, folder / name)
        (folder / ".venv").mkdir()
        for name in (
            "bin",
            "lib",
            "share",
            "etc",
            "pyvenv.cfg",
        ):  # this environment, not set up again
            if (there := Path(sys.prefix) / name).exists():
                (folder / ".venv" / name).symlink_to(there)
        (folder / ".venv" / ".ready").touch()
        source = folder / "src" / "wspnb" / "sources" / "cirrmri.py"
        text = source.read_text(encoding="utf-8")
        for old, new in {API: server.start, **{SHA256[n]: KNOWN[n] for n in SHA256}}.items():
            assert old in text
            text = text.replace(old, new)
        source.write_text(text, encoding="utf-8")
        file = folder / "params" / "cirrmri.yaml"
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | SMALL))

    def start(self) -> subprocess.Popen:
        """``make cirrmri``, with an encoder of others."""
        own = {"PYTHONPATH": str(self.folder / "src"), "OMP_NUM_THREADS": "1", "MARK": self.mark}
        command = ["make", "cirrmri", "CORES=2", f"ENCODERS=dinov2={self.folder / 'dinov2'}"]
        said = (self.folder / "said.txt").open("w")
        options = {"cwd": self.folder, "env": os.environ | own, "stdout": said}
        return subprocess.Popen(command, stderr=subprocess.STDOUT, **options)

    @property
    def mark(self) -> str:
        return f"make cirrmri in {self.folder}"

    def kill_when(self, ready) -> None:
        """Start, and end all processes of this start at once when it has come so far."""
        running = self.start()
        while not ready():
            assert running.poll() is None, (self.folder / "said.txt").read_text()
            time.sleep(0.05)
        while found := [file for file in Path("/proc").glob("[0-9]*/environ") if self.ours(file)]:
            for file in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(file.parent.name), signal.SIGKILL)
        running.wait()

    def ours(self, file: Path) -> bool:
        try:
            return f"MARK={self.mark}".encode() in file.read_bytes().split(b"\0")
        except OSError:  # ended meanwhile
            return False

    def finish(self) -> str:
        code = self.start().wait()
        said = (self.folder / "said.txt").read_text()
        assert code == 0, said
        return said


@pytest.mark.trust
def test_make_cirrmri_killed_and_resumed(tmp_path, osf):
    torch.manual_seed(0)  # an encoder of others, tiny
    kind = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    Dinov2Model(kind).save_pretrained(tmp_path / "dinov2")
    project, run = Copy(tmp_path, osf), tmp_path / "runs" / "cirrmri"
    size = len(FILES["Cirrhosis_T1_3D.zip"])

    def asked():
        return [(span, n) for path, span, _, n in osf.asked if "T1_3D" in path]

    osf.pause = 0.1  # killed in the download, then in a pretraining
    project.kill_when(lambda: sum(n for _, n in asked()) > size / 2)
    osf.pause, first = 0.0, len(asked())
    project.kill_when(lambda: [*run.glob("pretrain/*/checkpoint.pt")])
    (checkpoint,) = run.glob("pretrain/*/checkpoint.pt")
    begin = int(asked()[first][0].removeprefix("bytes=").split("-")[0])
    assert begin > 0 and len(asked()) == first + 1  # went on within the file, once
    step, done = torch.load(checkpoint)["step"], run / "notebooks" / ".done" / "01_preprocess"
    written = done.stat().st_mtime_ns
    project.finish()
    assert done.stat().st_mtime_ns == written and len(asked()) == first + 1
    book = (run / "notebooks" / f"02_pretrain-{checkpoint.parent.name}.ipynb").read_text()
    assert f"going on at step {step} of 60" in book
    found = read_runs(run)
    rows = auc_table(found).set_index(["backbone", "method"])
    ours = {"None (random)", "depth-Aware", "SupCon", "WSP", "WSP, fine-tuned"}
    assert set(rows.index) == {("TinyNet (padded)", name) for name in ours} | {("ViT", "DINOv2")}
    assert rows.auc_train_on_judged.between(0, 1).all() and rows.auc_judged.between(0, 1).all()
    tuned, frozen = (r["scores"] for r in found if r["name"] in ("finetuned_wsp", "wsp"))
    assert sorted(tuned.patient) == sorted(frozen.patient)  # the same patients are judged
    table = pd.read_csv(run / "figures" / "stages.csv")
    names = ["random", "supcon", "depth_aware", "wsp", "dinov2", "finetuned_wsp"]
    assert table.name.tolist() == names and set(table.n) == {7}
    known = table[[*MEASURES]].notna()  # fine-tuned on severe against the rest: that alone
    assert set(table.trained) == {13} and known[:-1].all(axis=None) and known.severe_auc.all()
    assert not known.iloc[-1, 1:].any()
    curve = pd.read_csv(run / "figures" / "stages_curve.csv")
    assert curve.groupby(["name", "share"]).size().tolist() == [5, 5, 5, 1] * 5
    report = (run / "report.html").read_text(encoding="utf-8")
    words = ("CirrMRI600+ (stage by MRI, no histology)", "WSP, fine-tuned", "DINOv2")
    for text in (*words, "Quadratic kappa", "Three stages, and few labels", "25%"):
        assert text in report, text
    assert "Nothing to be done" in project.finish()
