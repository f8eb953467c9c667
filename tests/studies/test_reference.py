"""The reference experiment in a tiny form: what it writes, that it goes on, and how it judges."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from sklearn.metrics import roc_auc_score

from wspnb import probe
from wspnb.data.slices import open_slices, write_slices
from wspnb.phantom.patients import Phantom
from wspnb.phantom.scans import make_phantom
from wspnb.phantom.store import make_store
from wspnb.results import committed, tables
from wspnb.studies import judge, reference
from wspnb.studies.reference import Run, do, plan, run_all

SIZE, STEPS, SHARE = 32, 4, 0.004
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three tiny runs on one phantom."""
    folder = tmp_path_factory.mktemp("reference")
    for run in (Run("wsp", draws=1), Run("random", draws=0)):
        do(run, folder, SIZE, STEPS, CPU, SHARE)
    return folder


def test_drawn_slices_are_those_of_the_way_through_files(tmp_path):
    phantom, more = Phantom(image_size=32, spacing_mm=14.0), {"workers": 1, "progress": False}
    drawn = open_slices(make_store(tmp_path / "drawn", phantom, 0.002, 0.2, 0.0, **more))
    table = make_phantom(tmp_path / "source", phantom, 0.002, 0.2, **more)
    read = open_slices(write_slices(table, tmp_path / "read", 32, **more))
    assert np.array_equal(drawn.images, read.images) and len(drawn.images) > 200
    for name in ("patient", "cohort", "position", "z", "n_kept", "weak_label", "label"):
        assert drawn.table[name].equals(read.table[name]), name
    before = (tmp_path / "drawn" / "slices.npy").stat().st_mtime_ns
    make_store(tmp_path / "drawn", phantom, 0.002, 0.2, 0.0, **more)
    assert (tmp_path / "drawn" / "slices.npy").stat().st_mtime_ns == before  # kept
    make_store(tmp_path / "drawn", dataclasses.replace(phantom, seed=1), 0.002, 0.2, 0.0, **more)
    other = open_slices(tmp_path / "drawn")
    assert not np.array_equal(other.images[:50], read.images[:50])


def test_a_run_leaves_what_the_notebooks_read(root):
    folder = root / f"{SIZE}px"
    runs = {run["name"]: run for run in tables.read_runs(folder)}
    assert set(runs) == {"wsp", "random"} and list(runs["wsp"]["results"]) == list(judge.GROUPS)
    table = tables.auc_table(list(runs.values()))
    assert table.auc_d1.between(0, 1).all() and len(table) == 2
    out = folder / "probe" / "wsp-tiny_padded-seed0"
    curve = pd.read_csv(out / "curve.csv")
    assert curve.step.tolist() == [0, STEPS] and curve.depth_r2.le(1).all()
    start = pd.read_csv(folder / "probe" / "random-tiny_padded-seed0" / "curve.csv")
    assert start.iloc[0].tolist() == curve.iloc[0].tolist()  # before a step: the untrained network
    encoder, facts = probe.load_encoder(
        folder / "pretrain" / out.name, "tiny_padded", "batch", seed=0
    )
    assert facts["n_steps"] == STEPS and facts["verdict"] == runs["wsp"].get(
        "verdict", facts["verdict"]
    )
    store = open_slices(folder / "cohort")
    people = judge.population_scores(judge.features_of(encoder, store, CPU))
    kept = pd.read_csv(out / "population.csv")
    assert people.patient.tolist() == kept.patient.tolist()
    np.testing.assert_allclose(people.score, kept.score, atol=1e-4)
    assert not set(kept.patient) & set(pd.read_csv(out / "scores.csv").patient)


def test_a_finished_run_is_kept(root, monkeypatch):
    monkeypatch.setattr(reference, "train", lambda *a: pytest.fail("trained again"))
    do(Run("wsp", draws=1), root, SIZE, STEPS, CPU, SHARE)
    with pytest.raises(ValueError, match=rf"of another run \(n_steps {STEPS}, not {STEPS + 1}\)"):
        do(Run("wsp", draws=1), root, SIZE, STEPS + 1, CPU, SHARE)
    monkeypatch.setattr(reference.loop, "stamp", lambda: "12345678")  # after an update
    with pytest.raises(ValueError, match=r"of another run \(code \w{8}, not 12345678\)"):
        do(Run("wsp", draws=1), root, SIZE, STEPS, CPU, SHARE)


def test_runs_of_several_lengths_are_not_published(tmp_path, monkeypatch):
    made = [tmp_path / f"{SIZE}px" / "probe" / f"{name}-tiny-seed0" for name in ("wsp", "supcon")]
    for folder in made:
        folder.mkdir(parents=True)
        (folder / "results.json").touch()
    runs = [{"name": "a", "n_steps": n, "folder": f} for n, f in zip((10, 20), made, strict=True)]
    monkeypatch.setattr(tables, "read_runs", lambda folder: runs)
    with pytest.raises(ValueError, match=r"several lengths .*10 steps.*20 steps.*: delete those"):
        reference.publish(tmp_path, SIZE, tmp_path / "figures")


@pytest.mark.slow
def test_runs_side_by_side_stop_in_time_and_say_what_failed(root):
    told = []
    runs = [Run("wsp"), Run("wsp_temperature0", seed=7)]
    given = (runs, root, SIZE, STEPS, 1)
    run_all(*given, 240, SHARE, lambda *words: told.append(" ".join(map(str, words))))
    assert len(told) == 2 and "population" in told[0]
    assert "temperature=0.0: must be positive" in told[1]
    run_all(*given, 0, SHARE, told.append)  # no time: nothing is begun
    assert len(told) == 2


def test_studies_are_drawn_alike_for_every_method_and_judged_on_the_others():
    rng = np.random.default_rng(0)
    patients = np.repeat([f"p{i:03d}" for i in range(120)], 3)
    labels = np.repeat(np.arange(120) % 3 > 0, 3).astype(int)
    d1 = np.repeat([f"d{i}" for i in range(40)], 2), np.repeat(np.arange(40) % 4 > 0, 2).astype(int)
    positions = rng.random(360)
    found = {"d1": (rng.normal(size=(80, 4)), d1[1], d1[0], rng.random(80))}
    good = labels[:, None] + 0.05 * rng.normal(size=(360, 4))
    aucs = []
    for features in (good, rng.normal(size=(360, 4))):
        table = judge.draw_studies(
            found | {"population": (features, labels, patients, positions)}, 3
        )
        assert table.study.tolist() == [0, 1, 2]
        aucs.append(table.mean())
    assert aucs[0].auc_folds == aucs[0].auc_rest == 1
    assert 0.3 < aucs[1].auc_rest < 0.7


def test_plans_name_each_run_once():
    for which in ("reference", "variants", "kernels", "small", "judged", "open", "factors"):
        runs = plan(which)
        keys = [(run.name, run.seed, run.phantom) for run in runs]
        assert len(set(keys)) == len(runs) > 0
    assert {run.seed for run in plan("reference")} == {0, 1, 2}
    assert all(dict(run.phantom)["seed"] > 0 for run in plan("judged"))
    with pytest.raises(
        ValueError, match="choose reference, variants, kernels, small, judged, open, factors"
    ):
        plan("all")


def test_a_run_is_its_name():
    store = {"image_size": 64, "sha256": "x"}
    config = reference.settings_of(Run("wsp_floor0.3_sigma0.2"), store, 100)
    assert (config.method, config.sigma) == ("wsp_floor0.3", 0.2)
    assert reference.settings_of(Run("byol_wsp_batch_size16"), store, 100).batch_size == 16
    assert reference.share_of(Run("supcon_patients0.3")) == 0.3
    own = reference.plan("factors")[2]
    assert (own.name.count("reader_accuracy0.7"), own.phantom) == (1, (("reader_accuracy", 0.7),))
    config = reference.settings_of(own, store, 6240)
    assert (config.n_steps, config.warmup_steps, config.method) == (2000, 200, "wsp")
    with pytest.raises(ValueError, match="no setting floor"):
        reference.settings_of(Run("supcon_floor0.3"), store, 100)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rank", "wsp_narrowing", "simsiam_wsp", "barlow_batch_size16"])
def test_every_kind_of_loss_trains(root, name):
    do(Run(name, draws=0), root, SIZE, STEPS, CPU, SHARE)
    folder = root / f"{SIZE}px" / "pretrain" / f"{name}-tiny_padded-seed0"
    log = pd.read_csv(folder / "log.csv")
    assert len(log) == STEPS and log.loss.nunique() == STEPS


def test_runs_on_other_phantoms_are_published_apart(root, tmp_path):
    for seed in (1, 2):
        do(Run("random", seed, (("seed", seed),), draws=1), root, SIZE, STEPS, CPU, SHARE)
    names = reference.publish(root, SIZE, tmp_path)
    assert {"table1", "reference_population", "reference_population_judged"} <= set(names)
    assert "table1_judged" not in names  # its patients are not the same in all runs
    table = pd.read_csv(tmp_path / "reference_population_judged.csv")
    assert table.n_seeds.tolist() == [2] and table.name.tolist() == ["random"]
    each = [
        pd.read_csv(next((root / f"{SIZE}px-seed{s}").glob("probe/*/population.csv")))
        for s in (1, 2)
    ]
    aucs = [roc_auc_score(run.label, run.score) for run in each]
    assert table.auc[0] == pytest.approx(np.mean(aucs), abs=1e-4)
    assert set(committed.verify(tmp_path).found) == {"equal"}


def test_a_further_run_does_not_cost_the_published_ones(root, tmp_path):
    """Published from another folder, of that part alone; before, the reference had to be there, and
    what was published was replaced by the one run."""

    def run(seed, place):
        do(Run("random", seed, (("seed", 3),), draws=1), place, SIZE, STEPS, CPU, SHARE)

    first, other, both = tmp_path / "first", tmp_path / "other", tmp_path / "both"
    for seed, places in ((0, (first, both)), (1, (other, both))):
        for place in places:
            (store := place / f"{SIZE}px-seed3" / "cohort").parent.mkdir(
                parents=True, exist_ok=True
            )
            if not store.exists() and place != first:
                store.symlink_to(first / store.relative_to(place))
            run(seed, place)
    figures = tmp_path / "figures"
    names = [reference.publish(place, SIZE, figures) for place in (first, other)]
    assert names[0] == names[1] and "reference_population_judged" in names[0]
    table = pd.read_csv(figures / "reference_population_judged.csv")
    assert table.n_seeds.tolist() == [2]
    reference.publish(both, SIZE, tmp_path / "at_once")
    for name in ("scores.csv.gz", "population.csv.gz", "studies.csv.gz", "curve.csv.gz"):
        parts = [
            tables.read_csv(f / "runs" / "judged" / name) for f in (figures, tmp_path / "at_once")
        ]
        pd.testing.assert_frame_equal(*parts)

    old = figures / "runs" / "judged" / "runs.json"
    kept = json.loads(old.read_text())
    for facts in kept["runs"].values():
        facts["drawn"]["image_size"] = 999
    old.write_text(json.dumps(kept))
    reference.publish(other, SIZE, figures)
    assert pd.read_csv(figures / "reference_population_judged.csv").n_seeds.tolist() == [1]
    with pytest.raises(FileNotFoundError, match="no run is finished"):
        reference.publish(tmp_path / "empty", SIZE, figures)


def test_a_training_leaves_when_its_parent_is_killed(tmp_path):
    """As every worker does; a run of hours would go on unseen, beside the one that follows."""
    code = """
import multiprocessing, sys, time
from wspnb.studies import reference
def do(*given): print(multiprocessing.current_process().pid, flush=True); time.sleep(60)
reference.do = do
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    queue.put(reference.Run("wsp"))
    given = (queue, context.Queue(), None, 48, 1, 1, time.monotonic() + 60)
    context.Process(target=reference._work, args=given, daemon=True).start()
    time.sleep(60)
"""
    (file := tmp_path / "parent.py").write_text(code)
    with subprocess.Popen([sys.executable, file], stdout=subprocess.PIPE, text=True) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        child.wait(20)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_worker_that_is_killed_is_told(root, monkeypatch):
    told = []
    monkeypatch.setattr(reference, "_work", _killed)
    run_all([Run("wsp")], root, SIZE, STEPS, 1, 60, SHARE, lambda *w: told.append(str(w[-1])))
    assert len(told) == 1 and "1 workers were killed (exit -9)" in told[0]


def _killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_slices_of_nobody_are_not_judged():
    table = pd.DataFrame({"cohort": "d1", "patient": ["a", None], "label": 0, "position": 0.5})
    with pytest.raises(ValueError, match="1 slices without patient"):
        judge.by_cohort(table, lambda rows: np.zeros((len(rows), 2)))


@pytest.mark.parametrize("name", ["wsp_patients3", "wsp_patients0"])
def test_a_share_of_the_patients_is_a_share(name):
    with pytest.raises(ValueError, match=f"run {name}: a share of the patients"):
        reference.share_of(Run(name))
