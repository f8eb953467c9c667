"""The tables hold what the runs say; runs that do not belong together are refused."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from wspnb import probe
from wspnb.files import write_csv
from wspnb.results import tables

ROOT = Path(__file__).parents[2]
TRAINING = {"sigma": 0.1, "n_steps": 150}


def save(run_dir, name, backbone="tiny", seed=0, shift=1.0, training=TRAINING, **facts):
    """A finished probe of 40 patients in two cohorts, scored at random."""
    rng = np.random.default_rng([seed, len(name)])
    parts, records = [], []
    for cohort in ("d1", "d1+d2"):
        label = np.arange(40) % 2
        table = pd.DataFrame({"patient": [f"{i:02d}" for i in range(40)], "label": label})
        table["fold"] = np.arange(40) // 2 % 5
        table["score"] = 1 / (1 + np.exp(-rng.normal(size=40) - shift * label))
        table["threshold"] = 0.5 + 0.02 * table.fold
        auc = [roc_auc_score(p.label, p.score) for _, p in table.groupby("fold")]
        bacc = probe.fold_balanced_accuracy(table)
        record = {"method": name, "cohort": cohort, "auc": np.mean(auc), "sd": np.std(auc, ddof=1)}
        record |= {"bacc": bacc.mean(), "bacc_sd": bacc.std(ddof=1), "folds": auc}
        records.append(record)
        parts.append(table.assign(cohort=cohort))
    run = {"name": name, "method": name, "backbone": backbone, "seed": seed, "norm": "batch"}
    run |= {"C": 0.01, "n_folds": 5, "fold_seed": 0, "data": "abc", "collapsed": False}
    run |= {"seconds": 1.0, "training": training, "results": records} | facts
    folder = run_dir / "probe" / f"{name}-{backbone}-seed{seed}"
    probe.save_probe(folder, pd.concat(parts), run)
    return folder


def test_auc_table_has_the_rows_of_the_paper_in_its_order(tmp_path):
    for seed in (0, 1, 2):
        save(tmp_path, "wsp", seed=seed)
    save(tmp_path, "supcon", collapsed=True)
    save(tmp_path, "supervised", training=None)
    save(tmp_path, "wsp", backbone="resnet18")
    save(tmp_path, "wsp_sigma0.3", training=TRAINING | {"sigma": 0.3})
    runs = tables.read_runs(tmp_path)
    table = tables.auc_table(runs)
    tiny = ["Supervised", "SupCon", "WSP", "WSP, sigma 0.3"]
    assert table.method.tolist() == [*tiny, "WSP"]
    assert table.backbone.tolist() == ["TinyNet"] * 4 + ["ResNet-18"]
    assert table.n_seeds.tolist() == [1, 1, 3, 1, 1]
    assert table.collapsed.tolist() == [0, 1, 0, 0, 0]
    auc = [run["results"]["d1+d2"]["auc"] for run in runs if run["folder"].name[:9] == "wsp-tiny-"]
    assert table.auc_d12[2] == pytest.approx(np.mean(auc))
    assert table.seed_sd_d12[2] == pytest.approx(np.std(auc, ddof=1))
    assert np.isnan(table.seed_sd_d1[0])
    assert table.run[2] == "wsp-tiny-seed0 wsp-tiny-seed1 wsp-tiny-seed2"
    assert (table.low_d1 < table.auc_d1).all() and (table.auc_d1 < table.high_d1).all()
    words = tables.in_words(table, ["method", "n_seeds"])
    assert words.seeds.tolist() == ["1", "1 (embeddings collapsed: 1)", "3", "1", "1"]
    assert words.d1[2].startswith(f"{table.auc_d1[2]:.2f} ({table.sd_d1[2]:.2f}) ±")
    assert "±" not in words.d1[0]
    tables.check_alike(runs, "abc")


def test_accuracy_table_takes_the_better_backbone_and_shows_both(tmp_path):
    for seed in (0, 1):
        save(tmp_path, "wsp", seed=seed, shift=0.5)
    folder = save(tmp_path, "wsp", backbone="resnet18", shift=4.0, collapsed=True)
    table = tables.accuracy_table(tables.read_runs(tmp_path), "d1")
    assert table.backbone.tolist() == ["ResNet-18"]
    scores = pd.read_csv(folder / "scores.csv").query("cohort == 'd1'")
    folds = [
        balanced_accuracy_score(p.label, p.score >= p.threshold) for _, p in scores.groupby("fold")
    ]
    assert table.bacc[0] == table["bacc_ResNet-18"][0] == pytest.approx(np.mean(folds))
    assert table["bacc_TinyNet"][0] < table.bacc[0]
    assert table.low[0] <= table.bacc[0] <= table.high[0]
    assert table.n_seeds_TinyNet[0] == 2 and table.collapsed[0] == 1


def test_accuracy_interval_by_hand():
    """One fold, all positives right, half of 200 negatives right: SE is that of one proportion."""
    label = np.repeat([0, 1], [200, 50])
    score = np.where(label == 1, 0.9, np.where(np.arange(250) < 100, 0.9, 0.1))
    run = pd.DataFrame({"label": label, "fold": 0, "score": score, "threshold": 0.5})
    low, high = tables.accuracy_interval([run])
    half = 1.96 * (0.25 / 200) ** 0.5 / 2
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.006)


def test_accuracy_interval_covers_the_truth_as_often_as_it_says():
    """D1's classes in five folds, sensitivity .7, specificity .6: the truth is .65."""
    hits, label = 0, np.repeat([0, 1], [28, 78])
    fold = np.r_[np.arange(28) % 5, np.arange(78) % 5]
    for seed in range(300):
        right = np.random.default_rng(seed).random(106) < np.where(label == 1, 0.7, 0.6)
        columns = {"label": label, "fold": fold, "score": right == label, "threshold": 0.5}
        run = pd.DataFrame(columns)
        low, high = tables.accuracy_interval([run.astype(float)], n=400, seed=seed)
        hits += low <= 0.65 <= high
    assert 0.92 <= hits / 300 <= 0.98  # standard error .013


def test_sigma_table_is_sorted_and_counts_positives(tmp_path):
    for name, sigma in (("wsp_sigmainf", np.inf), ("wsp", 0.1), ("wsp_sigma0.01", 0.01)):
        folder = save(tmp_path, name, training=TRAINING | {"sigma": sigma})
        log = tmp_path / "pretrain" / folder.name / "log.csv"
        write_csv(log, pd.DataFrame({"effective_positives": [sigma, 3 * sigma]}))
    save(tmp_path, "supcon")
    table = tables.sigma_table(tables.read_runs(tmp_path))
    assert table.sigma.tolist() == [0.01, 0.1, np.inf]
    assert table.effective_positives[:2].tolist() == pytest.approx([0.02, 0.2])
    runs = [run | {"encoder": None} for run in tables.read_runs(tmp_path)]  # of pretrain_dir
    assert tables.sigma_table(runs).effective_positives.isna().all()
    log.unlink()  # of sigma 0.01, as when the encoder comes from another run
    table = tables.sigma_table(tables.read_runs(tmp_path))
    assert np.isnan(table.effective_positives[0]) and table.effective_positives[1] > 0


def test_reader_accuracy_of_a_known_table():
    table = pd.DataFrame({"patient": list("aabcd"), "cohort": "d1", "label": [1, 1, 1, 0, 0]})
    table["reading"] = [2, 2, 0, 0, 0]
    value, low, high = tables.reader_accuracy(table, "d1")
    assert value == pytest.approx(0.75)
    assert low <= value <= high
    assert np.isnan(tables.reader_accuracy(table.drop(columns="reading"), "d1")[0])
    unread = table.assign(reading=[np.nan, np.nan, 2, 0, 0])  # a's reading is missing, not wrong
    assert tables.reader_accuracy(unread, "d1") == pytest.approx((1, np.nan, np.nan), nan_ok=True)
    assert np.isnan(tables.reader_accuracy(table[:3], "d1")).all()  # one class


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "xyz"}, "supcon-tiny-seed0 was probed on other slices or labels"),
        ({"fold_seed": 1}, "wsp-tiny-seed0: fold_seed=0, supcon-tiny-seed0: 1"),
        ({"C": 1.0}, "wsp-tiny-seed0: C=0.01, supcon-tiny-seed0: 1.0"),
        ({"training": TRAINING | {"n_steps": 300}}, "wsp-tiny-seed0: trained with"),
    ],
)
def test_runs_that_differ_are_refused(tmp_path, change, message):
    save(tmp_path, "wsp")
    save(tmp_path, "supcon", **change)
    with pytest.raises(ValueError, match=message):
        tables.check_alike(tables.read_runs(tmp_path), "abc")


@pytest.mark.parametrize(
    ("name", "changed", "method"),
    [
        ("wsp_sigma0.3", {}, "wsp"),
        ("wsp_n_steps500", {"n_steps": 300}, "wsp"),
        ("supcon", {}, "wsp"),
        ("wsp_data2024", {"data": "other"}, "wsp"),
        ("wsp_sigmas", {"sigma": 0.5}, "wsp"),
        ("wsp_mixed_precision", {"precision": "bf16"}, "wsp"),
    ],
)
def test_a_name_that_says_another_method_or_setting_is_refused(tmp_path, name, changed, method):
    plain = TRAINING | {"data": "a", "precision": "no"}
    save(tmp_path, "wsp", training=plain)
    save(tmp_path, name, training=plain | changed, method=method)
    with pytest.raises(ValueError, match=f"^{name}-tiny-seed0.* trained "):
        tables.check_alike(tables.read_runs(tmp_path), "abc")


def test_a_name_may_say_what_was_changed_or_nothing(tmp_path):
    plain = TRAINING | {"data": "a", "normalise": "row"}
    save(tmp_path, "wsp", training=plain)
    for name, changed in (
        ("wsp_sigma.30_n_steps0500", {"sigma": 0.3, "n_steps": 500}),
        ("wsp_sigmainf", {"sigma": np.inf}),
        ("wsp_normalise_column", {"normalise": "column"}),
        ("wsp_data2024", {}),
        ("as_released", {"sigma": 0.85, "normalise": "column"}),
        ("ours", {}),
    ):
        save(tmp_path, name, training=plain | changed, method="wsp")
    tables.check_alike(tables.read_runs(tmp_path), "abc")


def test_scores_that_were_edited_are_found(tmp_path):
    file = save(tmp_path, "wsp") / "scores.csv"
    scores = pd.read_csv(file)
    scores.loc[:5, "score"] = 1 - scores.score[:6]
    scores.to_csv(file, index=False)
    with pytest.raises(ValueError, match="disagree"):
        tables.check_alike(tables.read_runs(tmp_path), "abc")


def test_names_of_rows():
    assert tables.row_label("depth_aware_crop_area0.25") == "depth-Aware, crop_area 0.25"
    assert tables.row_label("wsp_sigmainf") == "WSP, sigma inf"
    assert tables.row_label("as_released") == "WSP, as released"
    assert tables.row_label("full_precision") == "WSP, float32"
    assert tables.row_label("ours") == "ours"
    assert tables.row_label("wsp_floor0.3") == "WSP, floor 0.3"
    assert tables.row_label("wsp_narrowing") == "WSP, sigma from 0.5 to 0.1"
    assert tables.row_label("byol_wsp_batch_size16") == "BYOL, WSP, batch_size 16"


def test_missing_or_broken_probes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished probe"):
        tables.read_runs(tmp_path)
    folder = save(tmp_path, "wsp")
    with pytest.raises(ValueError, match=r"seeds \[4\] were not probed; found \[0\]"):
        tables.read_runs(tmp_path, seeds=[4])
    scores = (folder / "scores.csv").read_text(encoding="utf-8")
    twice, comma = scores + scores.splitlines()[1], scores.replace("0.5,d1", '"0,5",d1')
    for text, message in (
        (scores.replace(",", ";"), "no columns .*was it saved anew"),
        (comma, "text such as '0,5' in threshold, was it saved anew"),
        (twice, "patient 00 twice in a cohort"),
    ):
        (folder / "scores.csv").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=f"wsp-tiny-seed0: .*{message}"):
            tables.read_runs(tmp_path)
    blank = "," * scores.splitlines()[0].count(",") + "\n"  # as a spreadsheet leaves them
    (folder / "scores.csv").write_text(scores + 3 * blank, encoding="utf-8")
    assert len(tables.read_runs(tmp_path)) == 1
    (folder / "results.json").write_text("{")
    with pytest.raises(ValueError, match="wsp-tiny-seed0: not a readable probe"):
        tables.read_runs(tmp_path)


@pytest.mark.parametrize("key", ["collapsed", "data", "n_folds", "seconds"])
def test_a_probe_of_an_earlier_version_is_named(tmp_path, key):
    save(tmp_path, "wsp")
    runs = [{k: v for k, v in run.items() if k != key} for run in tables.read_runs(tmp_path)]
    with pytest.raises(ValueError, match=f"wsp-tiny-seed0: results.json has no {key}"):
        tables.auc_table(runs)
        tables.check_alike(runs, "abc")


def test_switches_are_those_of_the_parameter_files():
    for name, (_, changed) in tables.SWITCHES.items():
        given = yaml.safe_load((ROOT / "params" / f"{name}.yaml").read_text(encoding="utf-8"))
        assert set(given) - {"method", "name"} == changed, name


def test_a_renamed_copy_of_a_run_is_no_second_run(tmp_path):
    folder = save(tmp_path, "wsp")
    for name in ("backup-tiny-seed0", "wsp-tiny-seed1", "wsp-tiny-seed0 (copy)"):
        shutil.copytree(folder, folder.with_name(name))
    (folder.with_name("Thumbs.db")).touch()
    assert [run["folder"].name for run in tables.read_runs(tmp_path)] == ["wsp-tiny-seed0"]


def test_a_copy_is_passed_over_whatever_is_in_it(tmp_path):
    save(tmp_path, "wsp")
    for name in ("wsp-tiny-seed0 (1)", "wsp-tiny-seed0~", "._wsp-tiny-seed0", "x-seed0"):
        (tmp_path / "probe" / name).mkdir()
        (tmp_path / "probe" / name / "results.json").write_text('{"name": 3', encoding="utf-8")
    assert [run["folder"].name for run in tables.read_runs(tmp_path)] == ["wsp-tiny-seed0"]


def test_what_cannot_be_computed_is_a_dash():
    table = pd.DataFrame({"name": ["a", None], "n": [1, 2], "auc": [0.12345, np.nan]})
    assert tables.rounded(table).values.tolist() == [["a", 1, 0.123], ["–", 2, "–"]]


def test_what_changes_more_than_sigma_is_no_row_of_its_table(tmp_path):
    for name in ("wsp", "wsp_sigma0.3", "wsp_sigma0.3_n_steps500", "wsp_sigma0.3_temperature0.5"):
        save(tmp_path, name, training=TRAINING | {"sigma": 0.3 if "0.3" in name else 0.1})
    for log in (tmp_path / "probe").iterdir():
        log = tmp_path / "pretrain" / log.name / "log.csv"
        write_csv(log, pd.DataFrame({"step": [0], "effective_positives": [2.0]}))
    runs = [
        run | {"training": run["training"] | {"n_steps": 150}} for run in tables.read_runs(tmp_path)
    ]
    assert tables.sigma_table(runs).sigma.tolist() == [0.1, 0.3]


def test_the_interval_of_an_accuracy_asks_for_places_not_for_names_of_rows(tmp_path):
    save(tmp_path, "wsp")
    table = tables.cohort_scores(tables.read_runs(tmp_path)[0], "d1").reset_index(drop=True)
    low, high = tables.accuracy_interval([table])
    assert low < probe.fold_balanced_accuracy(table).mean() < high
    for other in (table.set_index(table.index + 7), table.set_index(np.zeros(40, int))):
        assert tables.accuracy_interval([other]) == (low, high)
    low, high = tables.accuracy_interval([table.sample(frac=1, random_state=1)])
    assert low < probe.fold_balanced_accuracy(table).mean() < high


def test_entries_of_one_column_are_refused_and_runs_without_steps_have_no_positives(tmp_path):
    folder = save(tmp_path, "imagenet", backbone="resnet18")
    (run,) = tables.read_runs(tmp_path)
    log = tmp_path / "pretrain" / folder.name / "log.csv"
    write_csv(log, pd.DataFrame([], columns=["step"]))  # as save_run writes it
    assert np.isnan(tables.effective_positives(run))
    for meets in ({"ct_mr": 0, "ct+mr": 0}, {"a_on_b": 0, "a>b": 0}):
        with pytest.raises(ValueError, match="two make one column: rename a cohort"):
            tables.auc_table([run | {"results": meets}])


def test_entries_in_another_order_and_what_is_not_there(tmp_path):
    save(tmp_path, "wsp")
    save(tmp_path, "supcon")
    runs = tables.read_runs(tmp_path)
    was = tables.auc_table(runs)
    runs[0]["results"] = dict(reversed(runs[0]["results"].items()))
    assert tables.auc_table(runs)[was.columns].equals(was)
    with pytest.raises(FileNotFoundError, match=r"of backbones \['vit'\], only of \['tiny'\]"):
        tables.read_runs(tmp_path, backbones=["vit"])


def test_the_seed_that_was_dealt_otherwise_is_named(tmp_path):
    for seed in range(3):
        folder = save(tmp_path, "wsp", seed=seed)
    scores = pd.read_csv(folder / "scores.csv", dtype={"patient": str})
    scores.assign(fold=4 - scores.fold).to_csv(folder / "scores.csv", index=False)
    with pytest.raises(ValueError, match="wsp-tiny-seed2: probed on other patients or folds"):
        tables.auc_table(tables.read_runs(tmp_path))


def test_a_run_of_an_unknown_encoder_is_named(tmp_path):
    save(tmp_path, "wsp", backbone="convnext")
    with pytest.raises(ValueError, match="wsp-convnext-seed0: no backbone of tiny, "):
        tables.read_runs(tmp_path)
    save(tmp_path, "wsp")
    assert len(tables.read_runs(tmp_path, backbones=["tiny"])) == 1
