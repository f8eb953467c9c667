"""The audit: differences of all pairs, verdicts, and the notebook on made-up probes."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wspnb.probe import cross_validate, save_probe
from wspnb.results import audit, statistics
from wspnb.run import main, run

ROOT = Path(__file__).parents[2]
SETTINGS = {"C": 0.01, "n_folds": 5, "fold_seed": 0}
COHORTS = ("d1", "d2", "d1+d2")


def write_probe(folder, method, seed, strength, name=None, cohorts=COHORTS, cached=True, deal=0):
    """Slices of 24 + 16 patients; the first feature knows the label with the given strength."""
    rng = np.random.default_rng([seed, round(100 * strength)])
    people = pd.DataFrame({"patient": [f"p{i:02d}" for i in range(40)]})
    people["cohort"] = np.repeat(["d1", "d2"], [24, 16]) if "d1" in cohorts else cohorts[0]
    people["label"] = np.r_[np.arange(24) % 3 > 0, np.arange(16) % 3 == 0].astype(int)
    slices = people.loc[people.index.repeat(3)].reset_index(drop=True)
    features = rng.normal(size=(len(slices), 4)) + 0.7 * rng.normal(size=(40, 4)).repeat(3, 0)
    features[:, 0] += strength * slices.label
    scores, results = [], []
    for cohort in cohorts:
        keep = slices.cohort.isin(cohort.split("+")).to_numpy()
        part = slices[keep]
        found = cross_validate(features[keep], part.label, part.patient, seed=deal)
        scores.append(found.scores.assign(cohort=cohort))
        results.append({"cohort": cohort, "auc": found.mean})
    run = {"method": method, "backbone": "tiny", "seed": seed, **SETTINGS}
    run |= {"fold_seed": deal, "results": results}
    where = folder / "probe" / f"{name or method}-tiny-seed{seed}"
    save_probe(where, pd.concat(scores), run | {"name": name or method}, features, slices)
    if not cached:
        (where / "features.npy").unlink()
        (where / "slices.csv").unlink()


@pytest.fixture
def folder(tmp_path):
    for seed in (0, 1):
        write_probe(tmp_path, "wsp", seed, 3.0)
        write_probe(tmp_path, "random", seed, 0.0)
        write_probe(tmp_path, "wsp", seed, 1.0, name="wsp_sigma0.3")
        write_probe(tmp_path, "wsp", seed, 1.0, name="as_released")
    write_probe(tmp_path, "supervised", 0, 0.5, cached=False)
    return tmp_path


def test_all_runs_of_the_seeds_are_read(folder):
    probes, scores = audit.read_probes(folder, "tiny", [], "wsp", SETTINGS)
    names = {name for name, _ in probes}
    assert names == {"wsp", "random", "wsp_sigma0.3", "as_released", "supervised"}
    assert list(scores) == list(COHORTS)
    assert len(scores["d1+d2"]["wsp", 1]) == 40
    assert set(audit.read_probes(folder, "tiny", [1], "wsp", SETTINGS)[0]) == {
        (name, 1) for name in names - {"supervised"}
    }
    with pytest.raises(FileNotFoundError, match="run 03_linear_probe for 'byol'"):
        audit.read_probes(folder, "tiny", [], "byol", SETTINGS)
    with pytest.raises(ValueError, match=r"says {'C': 0\.01}, asked for.*delete its folder"):
        audit.read_probes(folder, "tiny", [], "wsp", SETTINGS | {"C": 1.0})
    file = folder / "probe" / "random-tiny-seed0" / "scores.csv"
    was = file.read_text()
    scores = pd.read_csv(file)
    scores.assign(score=1 - scores.score).to_csv(file, index=False)  # of another probe
    with pytest.raises(
        ValueError, match=r"random-tiny-seed0, d1: scores\.csv and results\.json dis"
    ):
        audit.read_probes(folder, "tiny", [], "wsp", SETTINGS)
    file.write_text(was)
    file = folder / "probe" / "random-tiny-seed1" / "results.json"  # after a label was corrected
    file.write_text(json.dumps(json.loads(file.read_text()) | {"data": "of other labels"}))
    with pytest.raises(ValueError, match=r"random-tiny-seed1 and .* were probed on diff"):
        audit.read_probes(folder, "tiny", [], "wsp", SETTINGS)


def test_differences_use_the_seeds_that_both_have(folder):
    _, scores = audit.read_probes(folder, "tiny", [], "wsp", SETTINGS)
    pairs = [("wsp", "random"), ("random", "wsp"), ("wsp", "supervised"), ("wsp_sigma0.3", "wsp")]
    left_out = [("wsp", "wsp"), ("wsp", "byol"), ("wsp", "random")]
    table = audit.differences(scores, pairs + left_out).set_index(["cohort", "better", "worse"])
    assert len(table) == 3 * 4
    row = table.loc["d1", "wsp", "random"]
    sides = [[scores["d1"][name, seed] for seed in (0, 1)] for name in ("wsp", "random")]
    expected = statistics.paired_difference(*sides)
    assert (row["mean"], row.seed_sd) == (expected.mean, expected.seed_sd)
    assert row.low == pytest.approx(expected.low, nan_ok=True)  # folds of one negative: none
    assert table.loc["d1", "random", "wsp"]["mean"] == -expected.mean
    assert row.seeds == 2
    assert table.loc["d1", "wsp", "supervised"].seeds == 1
    assert np.isnan(table.loc["d1", "wsp", "supervised"].low_both)


def test_correlation_of_two_aucs_is_that_of_the_resampled_ones():
    rng, label = np.random.default_rng(0), np.arange(200) % 2
    base = pd.DataFrame({"patient": np.arange(200), "label": label, "fold": 0})
    shared = rng.normal(size=200)
    runs = {
        (name, 0): base.assign(score=label + shared + 0.6 * rng.normal(size=200)) for name in "ab"
    }
    row = audit.differences({"d1": runs}, [("a", "b")]).iloc[0]
    wins = [fold for fold in statistics.wins_by_fold(list(runs.values()))]
    draws = statistics.resample_patients(wins, 4000, np.random.default_rng(1))
    assert row.r == pytest.approx(np.corrcoef(draws.T)[0, 1], abs=0.04)
    assert 0.5 < row.r < 0.9


def test_repeated_folds_start_with_the_first_deal_and_differ(folder):
    probes, _ = audit.read_probes(folder, "tiny", [0], "wsp", SETTINGS)
    table = audit.repeat_folds(probes, ["d1"], range(3), 0.01, 5)
    assert set(table.method) == {"wsp", "random", "wsp_sigma0.3", "as_released"}  # with features
    assert len(table) == 4 * 3 * 5
    means = table.groupby(["method", "fold_seed"]).auc.mean()
    for name in ("wsp", "random"):
        assert means[name, 0] == pytest.approx(probes[name, 0]["results"]["d1"]["auc"], abs=1e-12)
    assert means["random"].nunique() > 1
    again = probes["wsp", 0]["folder"] / "features.npy"
    was = again.read_bytes()
    np.save(again, 2 * np.load(again))  # of another encoder than the results
    with pytest.raises(ValueError, match=r"wsp-tiny-seed0/features\.npy: not the features that"):
        audit.repeat_folds(probes, ["d1"], range(3), 0.01, 5)
    again.write_bytes(was)
    assert audit.repeat_folds(probes, ["d1"], range(3), 0.01, 5, workers=2).equals(table)


def test_printed_differences_of_table_1():
    table1, table3 = audit.read_printed(ROOT / "figures" / "paper", COHORTS)
    assert len(table3) == 5
    tiny = table1[table1.backbone == "TinyNet"].set_index("method")
    counts = {"d2": (15, 34)}
    gaps = audit.printed_differences(tiny, counts).set_index(["better", "worse"])
    row = gaps.loc["WSP", "Supervised"]
    errors = [statistics.hanley_mcneil(auc, 15, 34) for auc in (0.91, 0.65)]
    assert row["mean"] == pytest.approx(0.26)
    assert row["mean"] - row.low == pytest.approx(2 * np.hypot(*errors))
    assert row.high - row["mean"] == pytest.approx(2 * np.hypot(*errors))
    close = audit.printed_differences(tiny, counts, 0.8).set_index(["better", "worse"])
    wide = 4 * (errors[0] ** 2 + errors[1] ** 2 - 1.6 * errors[0] * errors[1]) ** 0.5
    assert close.loc["WSP", "Supervised"].pipe(lambda r: r.high - r.low) == pytest.approx(wide)


@pytest.mark.parametrize(
    ("means", "lows", "expected"),
    [
        ([0.2, 0.1], [0.1, 0.01], "supported"),
        ([0.2, 0.1], [0.1, -0.01], "cannot be told"),
        ([0.2, -0.1], [0.1, -0.2], "not supported"),
        ([0.0], [-0.1], "not supported"),
        ([-0.3, 0.2], [np.nan, np.nan], "cannot be told"),
        ([], [], "not there"),
    ],
)
def test_verdicts(means, lows, expected):
    table = pd.DataFrame({"mean": means, "low": lows, "high": 1.0})
    assert audit.verdict(table) == expected


@pytest.mark.parametrize("place", range(5))
def test_one_of_five_differences_is_enough_to_doubt_a_claim(place):
    table = pd.DataFrame({"mean": 0.2, "low": [0.1] * 5, "high": 0.3})
    assert audit.verdict(table) == "supported"
    for values, expected in (
        ({"low": 0.0}, "cannot be told"),
        ({"low": np.nan}, "cannot be told"),
        ({"low": 0.3}, "cannot be told"),  # an interval without a width
        ({"mean": 0.0, "low": -0.1}, "not supported"),
    ):
        changed = table.copy()
        changed.loc[place, list(values)] = list(values.values())
        assert audit.verdict(changed) == expected


def test_a_claim_is_judged_by_its_least_difference():
    rows = [("d1", "wsp", "simclr", 0.2), ("d1", "wsp", "byol", -0.1), ("d2", "wsp", "byol", 0.3)]
    table = pd.DataFrame(rows, columns=["cohort", "better", "worse", "mean"])
    table = table.assign(low=table["mean"] - 0.1, high=table["mean"] + 0.1)
    found = audit.judge(
        {"best": (["wsp"], ["simclr", "byol"])}, {"run": table}, COHORTS, {"byol": "BYOL"}
    )
    assert found.run.tolist() == ["not supported", "supported", "not there"]
    assert found["run evidence"][0] == "wsp − BYOL = -0.10 [-0.20, +0.00], least of 2"
    lines = audit.sentences(found, ["run"]).splitlines()
    assert len(lines) == 4  # nothing about the cohort that is not there
    assert lines[2:] == [
        "best, d2",
        "    run:   supported          wsp − BYOL = +0.30 [+0.20, +0.40]",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("cohorts", [COHORTS, ("probe",)])
def test_notebook_with_one_or_two_seeds_and_any_cohorts(tmp_path, cohorts):
    for seed in range(len(cohorts) // 3 + 1):
        write_probe(tmp_path, "wsp", seed, 3.0, cohorts=cohorts)
        write_probe(tmp_path, "random", seed, 0.0, cohorts=cohorts)
        write_probe(tmp_path, "supervised", seed, 0.5, cohorts=cohorts, cached=False)
    values = {"run_dir": tmp_path, "backbone": "tiny", "n_repeats": 2, "n_permutations": 3}
    values |= {"publish_dir": tmp_path / "published", "suffix": "_test"}
    options = [word for k, v in values.items() for word in ("-p", k, str(v))]
    notebook, out = ROOT / "notebooks" / "06_audit.ipynb", tmp_path / "out.ipynb"
    smoke = str(ROOT / "params" / "smoke.yaml")
    assert main([str(notebook), str(out), "-f", smoke, *options]) == 0
    table = pd.read_csv(tmp_path / "published" / "audit_differences_test.csv")
    assert len(table) == 2 * len(cohorts)
    assert table.low_both.isna().all() == (len(cohorts) == 1)
    pairs = tmp_path / "published" / "audit_pairs_test.csv"
    assert pairs.exists() == (len(cohorts) > 1)
    if len(cohorts) > 1:
        found = pd.read_csv(pairs).set_index(["cohort", "method"])
        assert len(found) == 3 and found.columns.tolist() == ["pooled", "within", "between"]
    claims = pd.read_csv(tmp_path / "figures" / "audit_claims.csv").set_index(["claim", "cohort"])
    best = claims.loc["WSP beats every other method", cohorts[-1]]
    ends = table.low_both.fillna(table.low)[table.cohort == cohorts[-1]]
    words = "supported" if len(cohorts) > 1 else "supported (1 seed)"
    assert best.run == (words if (ends > 0).all() else "cannot be told")
    assert best["run evidence"].startswith("WSP − Supervised = +0.")
    written = json.loads(out.read_text(encoding="utf-8"))
    text = str([cell.get("outputs") for cell in written["cells"]])
    assert ("no joined cohort" in text) == (len(cohorts) == 1)


@pytest.mark.slow
def test_notebook_against_a_kernel_of_ones_own_and_a_seed_below_zero(tmp_path):
    for name, strength in (("wsp", 1.0), ("wsp_floor0.2", 3.0), ("wsp_floor0.2_sigma0.3", 2.0)):
        method = name.removesuffix("_sigma0.3")
        write_probe(tmp_path, method, 0, strength, name, cohorts=("d1",), deal=-1)
    values = {"run_dir": str(tmp_path), "backbone": "tiny", "reference": "wsp_floor0.2"}
    values |= {"fold_seed": -1, "n_repeats": 2, "n_permutations": 3}
    run(ROOT / "notebooks" / "06_audit.ipynb", tmp_path / "out.ipynb", values)
    table = pd.read_csv(tmp_path / "figures" / "audit_differences.csv")
    assert table[["reference", "method"]].values.tolist() == [["wsp_floor0.2", "wsp"]]
    table = pd.read_csv(tmp_path / "figures" / "audit_variants.csv")
    assert table["of"].tolist() == ["wsp_floor0.2"]
    claims = pd.read_csv(tmp_path / "figures" / "audit_claims.csv").set_index(["claim", "cohort"])
    best = claims.loc["WSP, floor 0.2 beats every other method", "d1"]
    assert best["run evidence"].startswith("wsp_floor0.2 − WSP = ")


@pytest.mark.parametrize("backbone", ["tiny_padded", "resnet18"])
def test_the_papers_verdicts_rest_on_the_rows_of_the_same_backbone(backbone):
    folder = ROOT / "figures" / "paper"
    people = pd.DataFrame({"patient": [f"p{k}" for k in range(40)], "label": np.arange(40) % 2})
    people["fold"] = np.arange(40) // 8
    draws = np.random.default_rng(0).normal(size=(2, 40))
    runs = [people.assign(score=draw + people.label) for draw in draws]
    claims = audit.verdicts(
        {"d1": {(name, 0): run for name, run in zip(("wsp", "supcon"), runs, strict=True)}},
        "wsp",
        folder,
        backbone,
    )
    printed = pd.read_csv(folder / "table1_auc.csv")
    name = {"tiny_padded": "TinyNet", "resnet18": "ResNet-18"}[backbone]
    auc = printed[printed.backbone == name].set_index("method").auc_d1
    least = (auc["WSP"] - auc.drop("WSP")).min()
    found = claims[claims.cohort == "d1"].set_index("claim")["paper evidence"]
    assert f"{least:+.2f}" in found["WSP beats every other method"].replace("−", "-")
    assert found.str.contains("sigma").any() == (backbone == "tiny_padded")


def test_methods_without_a_common_seed_are_not_compared():
    people = pd.DataFrame({"patient": [f"p{k}" for k in range(40)], "label": np.arange(40) % 2})
    people = people.assign(fold=np.arange(40) // 8, score=np.arange(40) / 40)
    scores = {"d1": {("wsp", 0): people, ("supcon", 1): people}}
    claims = audit.verdicts(scores, "wsp", ROOT / "figures" / "paper", "tiny")
    assert set(claims.run) == {"not there"}


def test_joined_cohorts_whose_parts_are_not_known_are_left_out():
    people = pd.DataFrame({"patient": [f"p{k}" for k in range(40)], "label": np.arange(40) % 2})
    people = people.assign(fold=np.arange(40) // 8, score=np.arange(40) / 40)
    scores = {name: {("wsp", 0): people} for name in ("a", "a+b", "a+b>c")}
    home = pd.Series(["a"] * 40, people.patient)
    assert not len(audit.origins(scores, home))
    home[20:] = "b"
    assert audit.origins(scores, home).cohort.tolist() == ["a+b"]


def test_a_claim_on_one_common_seed_says_so_beside_others_of_three():
    people = pd.DataFrame({"patient": [f"p{k}" for k in range(40)], "label": np.arange(40) % 2})
    people["fold"] = np.arange(40) // 8

    def scored(seed, noise):
        draw = np.random.default_rng(seed).normal(size=40)
        return people.assign(score=people.label + noise * draw)

    found = {("wsp", seed): scored(seed, 0.3) for seed in range(3)}
    found |= {("depth_aware", seed): scored(seed + 5, 4) for seed in range(3)}
    scores = {"d1": found | {("supcon", 0): scored(9, 4)}}
    claims = audit.verdicts(scores, "wsp", ROOT / "figures" / "paper", "tiny")
    claims = claims[claims.cohort == "d1"].set_index("claim").run
    assert claims["position adds to the label"] == "supported (1 seed)"
    assert claims["the label adds to the position"] == "supported"
