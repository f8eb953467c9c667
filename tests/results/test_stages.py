"""Stages from features: known answers, no leak, and a curve that rises with the labels."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from wspnb.probe import save_probe
from wspnb.results import stages
from wspnb.results.stages import (
    MEASURES,
    draw_curve,
    label_efficiency,
    main,
    measures,
    over_folds,
    read_stages,
    with_intervals,
    write,
)


def drawn(signal, seed=0, n=90, n_judged=60, slices=4):
    """Slices of patients whose features tell the stage with some strength."""
    rng = np.random.default_rng(seed)
    stage = np.arange(n + n_judged) % 3 + 1
    rows = pd.DataFrame({"patient": [f"p{k:03d}" for k in range(n + n_judged)], "stage": stage})
    rows["cohort"] = np.where(np.arange(n + n_judged) < n, "train", "judged")
    rows = rows.loc[np.repeat(rows.index, slices)].reset_index(drop=True)
    features = rng.normal(size=(len(rows), 12))
    features[:, 0] += signal * rows.stage
    features[:, 1] += signal * (rows.stage == 2)
    return features, rows


def test_measures_by_hand():
    people = pd.DataFrame({"stage": [1, 2, 3, 3]})
    people[["p1", "p2", "p3"]] = [[0.9, 0, 0], [0, 0.9, 0.3], [0, 0, 0.9], [0.8, 0.1, 0.2]]
    found = measures(people)  # read as 1, 2, 3, 1
    assert found["severe_auc"] == 0.75 and found["mild_auc"] == 1
    np.testing.assert_allclose(found["bacc"], (1 + 1 + 0.5) / 3)
    # Weights (i-j)^2: observed 4 / 4, expected by the margins (1 1 2) and (2 1 1): 32 / 16
    margins = zip((1, 1, 2), (1, 2, 3), strict=True)
    total = sum(
        a * b * (i - j) ** 2 for a, i in margins for b, j in zip((2, 1, 1), (1, 2, 3), strict=True)
    )
    np.testing.assert_allclose(found["kappa"], 1 - 4 / (total / 4))
    for few in (people[people.stage < 3], people[people.stage == 3][["stage", "p3"]]):
        assert all(np.isnan(v) for v in measures(few).values())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_knows_nothing_and_signal_much(seed):
    for signal, low, high in ((0, 0.25, 0.75), (3, 0.95, 1)):
        features, rows = drawn(signal, seed)
        train = rows.cohort == "train"
        people = read_stages(features, rows.stage, rows.patient, train)
        found = with_intervals(people, n=50)
        assert len(people) == 60
        for name in ("severe_auc", "mild_auc"):
            assert low <= found[name] <= high
            ends = (found[f"{name}_low"], found[f"{name}_high"])
            assert ends[0] <= found[name] <= ends[1] or (found[name] == 1 and np.isnan(ends).all())


def test_a_stage_of_one_patient_leaves_no_interval():
    people = pd.DataFrame({"stage": [1, 1, 1, 2, 2, 3, 3]})
    people[["p1", "p2", "p3"]] = np.random.default_rng(0).random((7, 3))
    assert np.isfinite(with_intervals(people, n=50)["severe_auc_low"])
    alone = with_intervals(people.drop(4), n=50)
    assert 0 <= alone["severe_auc"] <= 1 and np.isnan(alone["severe_auc_low"])


def test_the_curve_rises_with_the_labels_and_draws_are_nested():
    features, rows = drawn(0.6, n=150)
    curve = label_efficiency(features, rows)
    assert curve.groupby("share").patients.first().tolist() == [15, 39, 75, 150]
    assert curve.groupby("share").size().tolist() == [5, 5, 5, 1]
    mean = curve.groupby("share")[list(MEASURES)].mean()
    assert (mean.loc[1.0] > mean.loc[0.1]).all()
    pd.testing.assert_frame_equal(curve, label_efficiency(features, rows))


def test_a_patient_on_both_sides_is_refused():
    features, rows = drawn(1)
    train = rows.cohort.eq("train").to_numpy().copy()
    train[-1] = True
    with pytest.raises(ValueError, match="patients on both sides: p149"):
        read_stages(features, rows.stage, rows.patient, train)


def test_a_folder_without_probes_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert f"error: {tmp_path / 'probe'}: no finished probe" in capsys.readouterr().err


def test_mean_over_folds_by_hand():
    who = {"backbone": ["tiny", "vit"], "name": ["wsp", "dinov2"], "seed": [0, 0]}
    folds = [
        pd.DataFrame(who | {name: [0.1 * k, 0.5] for name in MEASURES}) for k in (1, 2, 3, 4, 5)
    ]
    table = over_folds(folds).set_index("name")
    assert table.folds.tolist() == [5, 5] and table.index.tolist() == ["wsp", "dinov2"]
    np.testing.assert_allclose(table.loc["wsp", list(MEASURES)].astype(float), 0.3)
    np.testing.assert_allclose(table.kappa_sd, [0.1 * np.sqrt(2.5), 0], atol=1e-12)
    folds[1] = folds[1][:1]
    with pytest.raises(ValueError, match=r"dinov2.*in 4 of 5 runs"):
        over_folds(folds)


def test_tables_to_read_of_a_run(tmp_path):
    for name, backbone, signal in (("wsp", "tiny", 3), ("dinov2", "vit", 0)):
        features, rows = drawn(signal)
        run = {"name": name, "backbone": backbone, "seed": 0, "results": [], "C": 0.01}
        scores = rows.groupby("patient").first().reset_index()
        save_probe(tmp_path / "probe" / f"{name}-{backbone}-seed0", scores, run, features, rows)
    # A network fine-tuned on severe against the rest: scores of the judged patients, no features.
    tuned = {"name": "finetuned_wsp", "backbone": "tiny", "seed": 0, "results": [], "C": 0.01}
    scores = scores[scores.cohort == "judged"].assign(label=lambda s: (s.stage == 3).astype(int))
    scores["score"] = np.where(scores.label == 1, 0.9, 0.1)
    scores.loc[scores.index[scores.label == 1][0], "score"] = 0.0  # 1 of 20, below all others
    own = scores[["patient", "label", "score"]].assign(cohort="train>judged")
    save_probe(tmp_path / "probe" / "finetuned_wsp-tiny-seed0", own, tuned)
    table, few = write(tmp_path)
    alone = table[table.Method == "WSP, fine-tuned"].iloc[0]
    assert alone["AUC severe"].startswith("0.95 [0.") and alone["Fitted on"] == 90
    assert [alone[name] for name in [*MEASURES.values()][1:]] == ["–"] * 3 and alone.Judged == 60
    table = table[table.Method != "WSP, fine-tuned"].reset_index(drop=True)
    assert table.Method.tolist() == ["WSP", "DINOv2"] and table.Encoder.tolist()[1] == "ViT"
    assert table.Judged.tolist() == [60, 60] and table["Fitted on"].tolist() == [90, 90]
    assert [*table.columns[-4:]] == [*MEASURES.values()] and table["AUC severe"][0].startswith(
        ("1.00", "0.9")
    )
    assert few.Labels.tolist() == ["10%", "25%", "50%", "100%"] * 2
    assert few.Patients.tolist() == [9, 24, 45, 90] * 2
    curve = pd.read_csv(tmp_path / "figures" / "stages_curve.csv")
    mean = curve[(curve.name == "wsp") & (curve.share == 0.25)].kappa.mean()
    assert few["Quadratic kappa"][1] == pytest.approx(mean, abs=1e-4)
    assert (tmp_path / "figures" / "stages_curve.png").exists()
    (tmp_path / "matplotlibrc").write_text("backend: TkAgg\ntext.usetex: True\n")  # the user's
    command = [sys.executable, "-m", "wspnb.results.stages", str(tmp_path)]
    alone = {"MATPLOTLIBRC": str(tmp_path), "MPLBACKEND": "", "DISPLAY": ""}
    found = subprocess.run(command, env=os.environ | alone, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    for axis, title in zip(draw_curve(curve).axes, MEASURES.values(), strict=True):
        assert axis.get_title() == title and axis.get_ylim()[1] <= 1.02
        assert [tick.get_text() for tick in axis.get_xticklabels()] == ["9", "24", "45", "90"]
    both = pd.concat([curve, curve.assign(backbone="resnet18", **dict.fromkeys(MEASURES, 0.25))])
    lines = draw_curve(both[both.name == "wsp"]).axes[0].lines  # one for each encoder
    assert [line.get_label() for line in lines] == ["WSP  ResNet-18", "WSP  TinyNet"]
    assert set(lines[0].get_ydata()) == {0.25} and lines[1].get_ydata()[-1] > 0.9
    file = tmp_path / "probe" / "wsp-tiny-seed0" / "features.npy"
    np.save(file, 2 * np.load(file))  # those of an earlier probe
    with pytest.raises(ValueError, match=r"features\.npy: not the features that results"):
        write(tmp_path)


def test_slices_without_patient_or_stage_are_refused():
    rng, n = np.random.default_rng(0), 24
    stage, patients = np.tile([1.0, 2, 3], 8), np.array([f"p{i:02d}" for i in range(n)], object)
    given = (rng.normal(size=(n, 3)), stage, patients, np.arange(n) < 12)
    lost = patients.copy()
    lost[20] = None
    with pytest.raises(ValueError, match="1 slices without patient"):
        stages.read_stages(given[0], stage, lost, given[3])
    for at in (2, 20):
        twice = patients.copy()
        twice[at + 1] = twice[at]
        with pytest.raises(ValueError, match=f"patients of two stages: .*p{at:02d}"):
            stages.read_stages(given[0], stage, twice, given[3])
        unknown = stage.copy()
        unknown[at] = np.nan
        with pytest.raises(ValueError, match=f"patient p{at:02d}: stage nan"):
            stages.read_stages(given[0], unknown, *given[2:])


def test_slices_of_no_side_and_features_without_value_are_refused():
    rng, n = np.random.default_rng(0), 24
    features, stage = rng.normal(size=(n, 3)), np.tile([1, 2, 3], 8)
    names, train = [f"p{i:02d}" for i in range(n)], np.arange(n) < 12
    with pytest.raises(ValueError, match="1 slices of no side"):  # NaN as bool is True
        stages.read_stages(features, stage, names, [*train[:-1], np.nan])
    with pytest.raises(ValueError, match="1 slices without patient"):  # none is called nan
        stages.read_stages(features, stage, [*names[:-1], np.nan], train)
    with pytest.raises(ValueError, match="25 features, 24 labels"):
        stages.read_stages(rng.normal(size=(n + 1, 3)), stage, names, train)
    features[3] = np.nan
    with pytest.raises(ValueError, match="'p03': train or extract them again"):
        stages.read_stages(features, stage, names, train)
