"""The probe: no test patient is seen in training; numbers agree with scikit-learn's."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from test_pretrain import SETTINGS

from wspnb import folds, pretrain, probe
from wspnb.files import read_csv
from wspnb.models import build_encoder
from wspnb.results import statistics, tables
from wspnb.studies.judge import fitted_scores


def make_slices(n_patients=60, per_patient=4, strength=1.0, seed=0, dim=5):
    rng = np.random.default_rng(seed)
    labels = np.arange(n_patients) % 3 == 0
    patients = np.repeat([f"p{i:03d}" for i in range(n_patients)], per_patient)
    slice_labels = np.repeat(labels, per_patient).astype(int)
    features = rng.normal(size=(len(patients), dim))
    features[:, 0] += strength * slice_labels
    return features, slice_labels, patients


def test_every_patient_is_scored_once_and_folds_are_stratified():
    features, labels, patients = make_slices()
    scores = probe.cross_validate(features, labels, patients).scores
    assert sorted(scores.patient) == sorted(set(patients))
    assert scores.groupby("fold").label.sum().tolist() == [4] * 5
    assert scores.groupby("fold").size().tolist() == [12] * 5


def test_folds_do_not_depend_on_features_or_order_of_slices():
    features, labels, patients = make_slices()
    first = probe.cross_validate(features, labels, patients, seed=3)
    order = np.random.default_rng(1).permutation(len(labels))
    second = probe.cross_validate(features[order], labels[order], patients[order], seed=3)
    pd.testing.assert_frame_equal(first.scores, second.scores, rtol=1e-4)
    other = probe.cross_validate(2 * features + 1, labels, patients, seed=3)
    assert (first.scores.fold == other.scores.fold).all()
    assert (
        first.scores.fold != probe.cross_validate(features, labels, patients, seed=4).scores.fold
    ).any()


def test_held_out_patients_never_reach_scaler_or_regression():
    """Ruin the features of one fold's patients: the models that score them must stay the same."""
    features, labels, patients = make_slices(strength=1.0)
    clean = probe.cross_validate(features, labels, patients)
    fold_0 = set(clean.scores.patient[clean.scores.fold == 0])
    victim = min(fold_0)
    ruined = features.copy()
    ruined[patients == victim] = 1e6
    scores = probe.cross_validate(ruined, labels, patients).scores
    same = (scores.fold == 0) & (scores.patient != victim)
    assert np.array_equal(scores.score[same], clean.scores.score[same])
    assert not np.allclose(
        scores.score[scores.fold == 1], clean.scores.score[clean.scores.fold == 1]
    )


def test_leak_through_slices_of_a_patient_is_closed():
    """Features that identify the patient exactly, and nothing else, must not predict the label."""
    _, labels, patients = make_slices(n_patients=60)
    identity = np.random.default_rng(0).normal(size=(60, 200)).repeat(4, 0)
    assert 0.3 < probe.cross_validate(identity, labels, patients, C=1.0).mean < 0.7


def test_patient_score_is_the_mean_slice_probability_and_fold_auc_scikit_learns():
    features, labels, patients = make_slices(strength=0.7)
    result = probe.cross_validate(features, labels, patients, C=0.1)
    fold = result.scores[result.scores.fold == 2]
    held_out = np.isin(patients, fold.patient)
    model = probe.classifier(0.1).fit(features[~held_out], labels[~held_out])
    for patient, score in zip(fold.patient, fold.score, strict=True):
        expected = model.predict_proba(features[patients == patient])[:, 1].mean()
        assert score == pytest.approx(expected, rel=1e-9)
    assert result.fold_auc[2] == roc_auc_score(fold.label, fold.score)
    assert result.mean == pytest.approx(np.mean(result.fold_auc))
    assert result.sd == pytest.approx(np.std(result.fold_auc, ddof=1))


def test_signal_and_noise():
    assert probe.cross_validate(*make_slices(strength=4.0)).mean > 0.99
    null = [probe.cross_validate(*make_slices(strength=0.0, seed=s)).mean for s in range(8)]
    assert abs(np.mean(null) - 0.5) < 0.08


def test_bad_labels_are_refused():
    features, labels, patients = make_slices()
    wrong = labels.copy()
    wrong[0] = 1 - wrong[0]
    with pytest.raises(ValueError, match="two labels"):
        probe.cross_validate(features, wrong, patients)
    with pytest.raises(ValueError, match="5 folds need 5 patients of each class"):
        probe.cross_validate(*(a[:40] for a in make_slices()))


def test_plane_quality_reads_what_is_there():
    rng = np.random.default_rng(0)
    _, labels, patients = make_slices(n_patients=50, per_patient=10)
    positions = np.tile(np.linspace(0, 1, 10), 50)
    plane = np.stack([positions, labels + 0.1 * rng.normal(size=500)], 1)
    both = probe.plane_quality(plane, positions, labels, patients)
    assert both["depth_r2"] > 0.95
    assert both["class_auc"] > 0.95
    nothing = probe.plane_quality(rng.normal(size=(500, 2)), positions, labels, patients)
    assert nothing["depth_r2"] < 0.1
    assert 0.2 < nothing["class_auc"] < 0.8


def test_plane_quality_is_not_biased_where_there_is_nothing():
    """Identities of patients tell nothing of patients never seen: one half on average."""
    rng = np.random.default_rng(0)
    _, labels, patients = make_slices(n_patients=60, per_patient=6)
    positions = np.tile(np.linspace(0, 1, 6), 60)
    planes = [rng.normal(size=(60, 2)).repeat(6, 0) for _ in range(30)]
    found = [probe.plane_quality(p, positions, labels, patients)["class_auc"] for p in planes]
    assert abs(np.mean(found) - 0.5) < 0.045  # standard error about 0.015


def test_features_are_read_in_order_and_in_eval_mode(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (7, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)).eval()
    rows = [5, 0, 3]
    found = probe.extract_features(encoder, mapped, rows, batch_size=2)
    with torch.no_grad():
        expected = encoder(torch.from_numpy(images[rows]).float().div(255)[:, None]).numpy()
    assert np.allclose(found, expected, rtol=0, atol=1e-6)  # features are of order 1
    assert found.dtype == np.float32
    which = np.isin(np.arange(7), rows)
    by_mask = probe.extract_features(encoder, mapped, which, batch_size=2)
    np.testing.assert_allclose(by_mask, expected[[1, 2, 0]], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="no slice to take features of"):
        probe.extract_features(encoder, mapped, [])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
def test_features_that_are_no_finite_numbers_are_refused_by_patient(value):
    features, labels, patients = make_slices(20)
    wrong, names = features.copy(), np.array([f"p{p}" for p in patients], dtype=object)
    wrong[9, 1] = value
    with pytest.raises(ValueError, match=f"features of 1 slices are not finite.*{names[9]!r}"):
        probe.cross_validate(wrong, labels, names)
    for other in (features[:, 0], features[:, :0], features.astype(str)):
        with pytest.raises(ValueError, match=r"expected numbers \(n_slices, d\)"):
            probe.cross_validate(other, labels, names)
    names[patients == patients[0]] = 0
    with pytest.raises(ValueError, match="partly numbers, partly text"):
        probe.patient_folds(labels, names)


def test_encoder_of_an_unfinished_or_other_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="run 02_pretrain"):
        probe.load_encoder(tmp_path, "tiny", "batch", 0)
    (tmp_path / "encoder.safetensors").touch()
    (tmp_path / "config.json").write_text('{"backbone": "tiny", "norm": "none", "seed": 0}')
    with pytest.raises(ValueError, match="'norm': 'none'"):
        probe.load_encoder(tmp_path, "tiny", "batch", 0)


def test_encoder_reads_back_as_it_was_saved(tmp_path):
    config = pretrain.Config(**SETTINGS)
    trained = build_encoder("tiny", "batch", seed=5)  # other weights than seed 0's
    pretrain.save_run(tmp_path, trained, config, [{"step": 0, "loss": 1.0}], collapsed=True)
    encoder, facts = probe.load_encoder(tmp_path, "tiny", "batch", 0)
    assert facts["collapsed"] is True
    assert facts["train_cohort"] == "radio"
    assert not encoder.training
    weights = trained.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in encoder.state_dict().items())
    untrained, facts = probe.load_encoder(None, "tiny", "batch", 0)
    assert facts == {}
    assert not untrained.training
    same = [torch.equal(v, weights[k]) for k, v in untrained.state_dict().items()]
    assert not all(same)


def test_an_encoder_is_not_judged_on_what_it_saw_or_on_other_sizes():
    store = {"sha256": "0123", "image_size": 160}
    trained = {"data": "0123", "train_cohort": "radio", "image_size": 160}
    probe.check_unseen(trained, store, ["d1", "d2"])
    probe.check_unseen({}, store, ["radio"])
    probe.check_unseen(trained | {"data": "4567"}, store, ["radio"])
    with pytest.raises(ValueError, match="pretrained on cohort 'radio'"):
        probe.check_unseen(trained, store, ["d1", "radio"])
    with pytest.raises(ValueError, match="512 px slices, these have 160 px"):
        probe.check_unseen(trained | {"image_size": 512}, store, ["d1"])
    imagenet = trained | {"method": "imagenet", "image_size": 512}  # has seen no CT
    probe.check_unseen(imagenet, store, ["radio"])


def test_youden_is_the_best_threshold_of_all():
    rng = np.random.default_rng(0)
    for _ in range(50):
        labels = np.r_[0, 1, rng.integers(2, size=20)]
        scores = rng.normal(size=22).round(1) + labels * rng.uniform(0, 2)
        chosen = probe.youden(labels, scores)
        called = np.r_[chosen, scores, np.inf][:, None] <= scores  # (n_thresholds, n_patients)
        index = called[:, labels == 1].mean(1) - called[:, labels == 0].mean(1)
        assert index[0] == index.max()


def test_thresholds_never_see_the_fold_they_judge():
    features, labels, patients = make_slices()
    clean = probe.cross_validate(features, labels, patients).scores
    before = probe.fold_thresholds(features, labels, patients, clean)
    assert len(set(before)) == 5
    tested = np.isin(patients, clean.patient[clean.fold == 0])
    ruined = np.where(tested[:, None], 1e3, features)
    after = probe.fold_thresholds(ruined, labels, patients, clean)
    first = (clean.fold == 0).to_numpy()
    assert np.array_equal(after[first], before[first])
    assert not np.isclose(after[~first], before[~first]).all()


def test_balanced_accuracy_of_folds_by_hand():
    people = pd.DataFrame({"label": [1, 1, 0, 0, 0, 1, 0], "fold": [0, 0, 0, 0, 0, 1, 1]})
    people["score"] = [0.9, 0.2, 0.1, 0.2, 0.8, 0.5, 0.4]
    people["threshold"] = [0.5] * 5 + [0.5] * 2
    found = probe.fold_balanced_accuracy(people)
    assert found.tolist() == pytest.approx([(1 / 2 + 2 / 3) / 2, 1])


def test_saved_features_are_those_of_the_same_weights_store_and_slices(tmp_path):
    encoder, rows = build_encoder("tiny", "batch", 0), np.arange(5)
    key = probe.features_key(encoder, "data", rows)
    features, slices = np.random.default_rng(0).normal(size=(5, 3)), pd.DataFrame({"patient": rows})
    probe.save_probe(tmp_path, slices, {"features": key}, features, slices)
    assert (probe.saved_features(tmp_path, key) == features.astype(np.float32)).all()
    other = build_encoder("tiny", "batch", 1)
    changed = [(other, "data", rows), (encoder, "else", rows), (encoder, "data", rows[:4])]
    changed += [(build_encoder("tiny_padded", "batch", 0), "data", rows)]
    for inputs in changed:
        assert probe.saved_features(tmp_path, probe.features_key(*inputs)) is None
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1e-7
    assert probe.features_key(encoder, "data", rows) != key


def test_interrupted_writing_leaves_no_results_of_other_features(tmp_path, monkeypatch):
    table = pd.DataFrame({"patient": [1]})
    probe.save_probe(tmp_path, table, {"features": "old"}, np.zeros((1, 2)), table)
    monkeypatch.setattr(pd.DataFrame, "to_csv", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        probe.save_probe(tmp_path, table, {"features": "new"}, np.ones((1, 2)), table)
    assert probe.saved_features(tmp_path, "old") is None


def test_thresholds_of_few_patients():
    """Outside a fold of 4 + 2 patients in two folds is one of a class: nothing to choose on."""
    features, labels, patients = make_slices(n_patients=6)
    assert sum(labels) == 2 * 4
    people = probe.cross_validate(features, labels, patients, n_folds=2).scores
    assert (probe.fold_thresholds(features, labels, patients, people) == 0.5).all()
    features, labels, patients = make_slices(n_patients=12)  # two are left: inner folds
    people = probe.cross_validate(features, labels, patients, n_folds=2).scores
    people["threshold"] = probe.fold_thresholds(features, labels, patients, people)
    assert (people.threshold != 0.5).all()
    assert probe.fold_balanced_accuracy(people).shape == (2,)


def test_cohorts_to_judge_are_counted_before_any_training():
    table = pd.DataFrame(
        [(f"{c}{k}", c, k % 2) for c, n in (("d1", 20), ("d2", 11), ("d3", 4)) for k in range(n)],
        columns=["patient", "cohort", "label"],
    )
    table = pd.concat([table, table, pd.DataFrame({"patient": ["r"], "cohort": ["radio"]})])
    found = folds.judged_cohorts(table, ["d1", "d2", "d1+d2"], 5)
    assert found.class_0.tolist() == [10, 6, 16] and found.class_1.tolist() == [10, 5, 15]
    assert found.interval.tolist() == [True, False, True]
    assert folds.judged_cohorts(table, ["d3"], 2).class_1.tolist() == [2]
    with pytest.raises(ValueError, match=r"d3 has 2 patients of class 0 and 2 .* take n_folds 2"):
        folds.judged_cohorts(table, ["d1", "d3"], 5)
    with pytest.raises(ValueError, match=r"evaluate is one text, 'd1': write a list, \['d1'\]"):
        folds.judged_cohorts(table, "d1", 5)
    for odd in ("d1 > d2", "d1 + d2", "d1++d2", ">d1", ""):
        with pytest.raises(ValueError, match=r"evaluate: '.*': write d1, .* without blanks"):
            folds.judged_cohorts(table, [odd], 2)
    with pytest.raises(ValueError, match=r"no patient of radio has a label; .*: d1, d2, d3"):
        folds.judged_cohorts(table, ["d1+radio"], 5)
    for few, advice in ((1, "two of each class are the least"), (2, r"n_folds, from 2 to 2")):
        with pytest.raises(
            ValueError, match=f"found 3 of class 0 and {few} of class 1: .*{advice}"
        ):
            probe.patient_folds([0, 0, 0, 1, 1][: 3 + few], [*"abcde"][: 3 + few], 3)
    # Where others are judged than those fitted on, no fold is dealt: one patient of a class does
    few = table[table.patient.isin(["d10", "d11", "d30", "d31"])]
    assert folds.judged_cohorts(few, ["d1>d3"], 5).to_numpy().tolist() == [
        ["d1>d3", 1, 1, 1, False]
    ]
    assert folds.deal(few, "d1>d3").fold.tolist() == [-1, -1, 0, 0]
    for side, what in (("d31", "judge"), ("d11", "fit")):
        with pytest.raises(ValueError, match=f"1 patients of class 0 and 0 .* to {what} on"):
            folds.judged_cohorts(few[few.patient != side], ["d1>d3"], 5)


def test_plane_of_few_patients_has_fewer_groups():
    rng = np.random.default_rng(0)
    labels, patients = np.repeat([0, 0, 0, 1, 1], 4), np.repeat(list("abcde"), 4)
    plane = np.c_[np.tile(np.arange(4), 5), 5 * labels] + rng.normal(0, 0.05, (20, 2))
    found = probe.plane_quality(plane, np.tile(np.arange(4) / 3, 5), labels, patients, 1)
    assert found["class_auc"] == 1 and found["depth_r2"] > 0.9


def test_features_do_not_depend_on_the_mode_of_the_encoder():
    """Batch norms of an encoder fresh from training must not see the batch, nor be changed."""
    images = np.random.default_rng(0).integers(0, 255, (24, 64, 64), dtype=np.uint8)
    encoder = build_encoder("tiny_padded", "batch", 0).train()
    next(encoder.children()).eval()  # a part that was frozen on purpose stays so
    modes = [module.training for module in encoder.modules()]
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    by_8, by_24 = (probe.extract_features(encoder, images, range(24), size) for size in (8, 24))
    np.testing.assert_allclose(by_8, by_24, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert [module.training for module in encoder.modules()] == modes
    frozen = probe.extract_features(build_encoder("tiny_padded", "batch", 0).eval(), images, [3])
    np.testing.assert_allclose(by_8[[3]], frozen, atol=1e-5)


@pytest.mark.parametrize("missing", [np.nan, None, pd.NA, "", " "])
def test_slices_without_patient_or_label_are_refused(missing):
    """Trained on in every fold and never judged, they would carry a patient's look across."""
    features, labels, patients = make_slices(20)
    people = probe.cross_validate(features, labels, patients).scores
    unnamed = np.array([f"p{p}" for p in patients], dtype=object)
    unnamed[::4] = missing
    for names in (unnamed, unnamed.tolist(), pd.Series(unnamed, index=range(9, 9 + len(unnamed)))):
        with pytest.raises(ValueError, match="20 slices without patient"):
            probe.cross_validate(features, labels, names)
        with pytest.raises(ValueError, match="20 slices without patient"):
            probe.patient_folds(labels, names)
        with pytest.raises(ValueError, match="20 slices without patient"):
            probe.fold_thresholds(features, labels, names, people)
        with pytest.raises(ValueError, match="20 slices without patient"):
            probe.plane_quality(features[:, :2], np.linspace(0, 1, 80), labels, names)
    with pytest.raises(ValueError, match="80 slices with a label other than 0 or 1"):
        probe.cross_validate(features, np.where(labels, "F4", "F0"), patients)
    for other in (np.nan, 2, -1, 0.5):
        wrong = labels.astype(float)
        wrong[7] = other
        with pytest.raises(ValueError, match="1 slices with a label other than 0 or 1"):
            probe.cross_validate(features, wrong, patients)
    with pytest.raises(ValueError, match=r"79 features, 80 labels, 80 patients"):
        probe.cross_validate(features[1:], labels, patients)


def test_nothing_is_read_where_all_positions_are_equal():
    rng = np.random.default_rng(0)
    found = probe.plane_quality(rng.normal(size=(40, 2)), [0.5] * 40, np.arange(40) % 2, range(40))
    assert np.isnan(found["depth_r2"]) and 0.2 < found["class_auc"] < 0.8


def test_text_stays_text_between_notebooks(tmp_path):
    names = ["7", "007", "NA", "nan", "1e3"]
    slices = pd.DataFrame({"patient": names, "cohort": "d1", "label": [0, 1, 0, 1, 1]})
    slices["position"] = [0.0, 0.5, np.nan, 1, 0]
    probe.save_probe(tmp_path, slices[["patient"]], {}, np.zeros((5, 2)), slices)
    found = read_csv(tmp_path / "slices.csv")
    assert found.patient.tolist() == names and found.label.tolist() == slices.label.tolist()
    assert found.position.isna().tolist() == [False, False, True, False, False]


def test_damaged_encoders_are_refused(tmp_path):
    config = pretrain.Config(**SETTINGS)
    network = build_encoder("tiny", "batch", seed=5)
    pretrain.save_run(tmp_path, network, config, [{"step": 0, "loss": 1.0}])
    file = tmp_path / "encoder.safetensors"
    content = file.read_bytes()
    for place in (len(content) // 2, 20, -1):  # a weight, the header, the last byte
        damaged = bytearray(content)
        damaged[place] ^= 64
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"encoder.safetensors: damaged.*run 02 again"):
            probe.load_encoder(tmp_path, "tiny", "batch", 0)
    file.write_bytes(content[:-100])
    with pytest.raises(ValueError, match="damaged"):
        probe.load_encoder(tmp_path, "tiny", "batch", 0)
    file.write_bytes(content)
    probe.load_encoder(tmp_path, "tiny", "batch", 0)
    with torch.no_grad():
        next(network.parameters()).view(-1)[0] = torch.nan
    pretrain.save_run(tmp_path, network, config, [{"step": 0, "loss": 1.0}])
    with pytest.raises(ValueError, match="not finite"):
        probe.load_encoder(tmp_path, "tiny", "batch", 0)


def test_probe_of_a_replaced_encoder_is_refused(tmp_path):
    config, table = pretrain.Config(**SETTINGS), pd.DataFrame({"patient": ["a"]})
    run, judged = tmp_path / "pretrain/wsp-tiny-seed0", tmp_path / "probe/wsp-tiny-seed0"
    with pytest.raises(FileNotFoundError, match="run 03_linear_probe"):
        probe.read_probe(judged)
    pretrain.save_run(run, build_encoder("tiny", "batch", 0), config, [])
    facts = probe.load_encoder(run, "tiny", "batch", 0)[1]
    probe.save_probe(judged, table, {"encoder": facts["encoder_sha256"]})
    assert probe.read_probe(judged)["encoder"] == facts["encoder_sha256"]
    pretrain.save_run(run, build_encoder("tiny", "batch", 1), config, [])
    with pytest.raises(ValueError, match="trained anew since: run 03 again"):
        probe.read_probe(judged)


# What no other test would notice if it were left out.


def test_both_classes_weigh_the_same():
    """The threshold of one feature lies between the class means, however many of each there are."""
    feature = np.concatenate([np.linspace(-2, 0, 90), np.linspace(0, 2, 10)])[:, None]
    model = probe.classifier(C=1.0).fit(feature, np.repeat([0, 1], [90, 10]))
    grid = np.linspace(-1, 1, 2001)[:, None]
    border = grid[np.argmin(abs(model.predict_proba(grid)[:, 1] - 0.5)), 0]
    assert abs(border) < 0.1  # without class weights 0.5 or more


def test_youden_lies_halfway_between_two_scores():
    assert probe.youden([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]) == pytest.approx(0.4)
    assert probe.youden([0, 1, 0, 1], [0.1, 0.3, 0.4, 0.8]) == pytest.approx(0.6)


def test_as_many_patients_as_folds_are_enough():
    features, _, patients = make_slices(10)
    labels = np.repeat(np.arange(10) % 2, 4)
    folds = probe.patient_folds(labels, patients, 5)
    assert folds.groupby("fold").label.agg(["sum", "size"]).values.tolist() == [[1, 2]] * 5
    first = patients[labels == 1][0]
    fewer = patients != first
    with pytest.raises(ValueError, match="found 5 of class 0 and 4 of class 1"):
        probe.patient_folds(labels[fewer], patients[fewer], 5)
    assert len(probe.cross_validate(features, labels, patients, n_folds=5).scores) == 10


def two_cohorts():
    """Slices of D1 and of 30 other patients, with features that tell the class by their sign."""
    rng = np.random.default_rng(0)
    people = [(f"p{i}", "d1" if i < 40 else "other", i % 2) for i in range(70)]
    rows = [row for row in people for _ in range(4)]
    slices = pd.DataFrame(rows, columns=["patient", "cohort", "label"])
    features = rng.normal(size=(len(slices), 6))
    features[:, 0] += 1.5 * slices.label - 0.75
    return features, slices


def test_a_probe_of_one_cohort_is_judged_on_another():
    features, slices = two_cohorts()
    found = probe.judge(features, slices, "d1>other", C=0.1)
    own = (slices.cohort == "d1").to_numpy()
    model = probe.classifier(0.1).fit(features[own], slices.label[own])
    score = pd.Series(model.predict_proba(features[~own])[:, 1]).groupby(
        slices.patient[~own].values
    )
    assert np.allclose(found.scores.set_index("patient").score, score.mean())
    assert set(found.scores.patient) == set(slices.patient[~own]) and len(found.fold_auc) == 1
    assert found.mean > 0.9 and np.isnan(found.sd)
    # Neither scores nor threshold depend on the labels of those who are judged.
    turned = slices.assign(label=slices.label.where(own, 1 - slices.label))
    other = probe.judge(features, turned, "d1>other", C=0.1)
    assert np.array_equal(other.scores.score, found.scores.score)
    assert np.array_equal(other.scores.threshold, found.scores.threshold)
    assert np.isclose(other.mean, 1 - found.mean)


def test_folds_by_judge_are_those_of_cross_validate():
    features, slices = two_cohorts()
    found = probe.judge(features, slices, "d1+other", seed=3)
    given = (features, slices.label, slices.patient)
    plain = probe.cross_validate(*given, seed=3)
    assert np.array_equal(found.fold_auc, plain.fold_auc)
    thresholds = probe.fold_thresholds(*given, plain.scores, seed=3)
    assert np.array_equal(found.scores.threshold, thresholds)


def test_a_patient_on_both_sides_is_refused():
    features, slices = two_cohorts()
    slices.loc[slices.patient == "p50", "patient"] = "p3"
    slices["label"] = slices.patient.str[1:].astype(int) % 2
    with pytest.raises(ValueError, match=r"d1>other: patients on both sides: \['p3'\]"):
        probe.judge(features, slices, "d1>other")
    with pytest.raises(ValueError, match="both sides"):
        folds.judged_cohorts(slices, ["d1>other"], 5)


@pytest.mark.parametrize("group", ["d1+d3", "d1+ other", "d1>d3"])
def test_a_cohort_that_is_not_there_is_not_left_out(group):
    with pytest.raises(ValueError, match=r"no patient of .* has a label; cohorts .*: d1, other"):
        probe.judge(*two_cohorts(), group)


def test_what_the_probe_refuses_is_refused_before_any_training():
    plain = pd.DataFrame({"patient": [f"p{k // 2}" for k in range(40)], "cohort": "d1"})
    plain["label"] = np.arange(40) // 2 % 2
    as_text = plain.astype({"label": str})
    assert folds.judged_cohorts(as_text, ["d1"]).equals(folds.judged_cohorts(plain, ["d1"]))
    for column, value, words in (
        ("label", 1, r"two labels: \['p0'\]"),
        ("label", 2, "1 slices with a label other than 0 or 1"),
        ("patient", "", "1 slices without patient"),
    ):
        other = plain.copy()
        other.loc[0, column] = value
        with pytest.raises(ValueError, match=words):
            folds.judged_cohorts(other, ["d1"])


def test_a_seed_of_folds_may_be_a_date():
    labels, names = np.arange(40) % 2, [f"p{k}" for k in range(40)]
    found = folds.patient_folds(labels, names, 5, np.int64(2**32 + 3))
    assert found.equals(folds.patient_folds(labels, names, 5, 3))


def test_one_patient_as_number_and_as_text_is_refused():
    features, labels, _ = make_slices(20)
    patients = np.repeat(np.arange(20), 4).astype(object)
    patients[5] = "1"
    with pytest.raises(ValueError, match="patient 1 as number and as text"):
        probe.cross_validate(features, labels, patients)
    patients[5] = 1.0  # the same number
    assert len(probe.cross_validate(features, labels, patients).scores) == 20


def test_half_precision_features_do_not_overflow():
    features, labels, patients = make_slices(20)
    half = (features * 1e4).astype(np.float16)
    found = probe.cross_validate(half, labels, patients).scores.score
    wide = probe.cross_validate(half.astype(float), labels, patients).scores.score
    np.testing.assert_allclose(found, wide, atol=1e-5)
    with pytest.raises(ValueError, match="n_folds=1: takes a whole number from 2"):
        probe.cross_validate(features, labels, patients, n_folds=1)


def test_an_interrupt_leaves_the_encoder_in_its_mode():
    encoder = build_encoder("tiny_padded", "batch", 0).train()

    def interrupted(batches):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        images = np.zeros((2, 32, 32), np.uint8)
        probe.extract_features(encoder, images, [0, 1], progress=interrupted)
    assert all(module.training for module in encoder.modules())


def test_one_patient_under_two_looks_is_refused():
    features, labels, _ = make_slices(20)
    for other in (" 1", "1 "):
        patients = np.repeat(np.arange(20), 4).astype(str).astype(object)
        patients[5] = other
        with pytest.raises(ValueError, match=r"patient +1 +as number and as text, with blanks"):
            probe.cross_validate(features, labels, patients)
    two = ["M\u00fcller", "Mu\u0308ller"]
    with pytest.raises(ValueError, match=r"two forms of Unicode"):
        folds.people([0, 0], two)


def test_rows_features_and_settings_are_checked():
    images = np.zeros((4, 32, 32), np.uint8)
    encoder = build_encoder("tiny_padded", "batch", 0)
    for rows in (np.ones(3, bool), [[0, 1]], [0.0], np.zeros(4, bool), [1, -1]):
        with pytest.raises(ValueError, match=r"no slice to take features of: rows"):
            probe.extract_features(encoder, images, rows)
    with pytest.raises(ValueError, match=r"the encoder gave .*expected features"):
        probe.extract_features(torch.nn.Conv2d(1, 2, 3), images, [0, 1])
    features, labels, patients = make_slices(20)
    for wrong in ("5", None, 2.5):
        with pytest.raises(ValueError, match=r"^n_folds=.*takes a whole number"):
            probe.cross_validate(features, labels, patients, n_folds=wrong)
    slices = pd.DataFrame({"cohort": "d1", "patient": patients, "label": labels})
    with pytest.raises(ValueError, match=r"79 features of 80 slices"):
        probe.judge(features[:-1], slices, "d1")
    with pytest.raises(ValueError, match=r"positions .79,. of 80 slices"):
        probe.plane_quality(features[:, :2], np.zeros(79), labels, patients)
    with pytest.raises(ValueError, match=r"positions .80,. of 80 slices, 1 missing"):
        lost = np.r_[np.nan, np.zeros(79)]
        probe.plane_quality(features[:, :2], lost, labels, patients)
    pictures = np.random.default_rng(0).integers(0, 256, images.shape).astype(np.uint8)
    found = probe.extract_features(encoder, torch.from_numpy(pictures), [0, 2])
    assert np.array_equal(found, probe.extract_features(encoder, pictures, [0, 2]))


def test_features_do_not_depend_on_autocast_and_follow_the_weights_type():
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
    encoder = build_encoder("tiny_padded", "batch", 0)
    want = probe.extract_features(encoder, images, [0, 1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        found = probe.extract_features(encoder, images, [0, 1, 2])
    np.testing.assert_array_equal(found, want)
    wide = probe.extract_features(encoder.double(), images, [0, 1, 2])
    np.testing.assert_allclose(wide, want, atol=1e-5)
    assert wide.dtype == np.float32


def test_a_plane_of_one_patient_tells_nothing():
    for labels, patients in ([1, 1, 1], ["a"] * 3), ([0, 1], ["a", "b"]):  # or of two slices
        n = len(labels)
        found = probe.plane_quality(np.eye(3)[:n, :2], np.arange(n) / 2, labels, patients)
        assert np.isnan([found["depth_r2"], found["class_auc"]]).all()


def test_notebook_04_asks_nothing_where_no_depth_can_be_read():
    book = Path(__file__).parents[2] / "notebooks" / "04_representations.ipynb"
    cells = json.loads(book.read_text(encoding="utf-8"))["cells"]
    code = next(s for c in cells if "right = {" in (s := "".join(c["source"])))
    numbers = pd.DataFrame({"plane": "pca", "method": ["random", "wsp"], "depth_r2": np.nan})
    given = {"numbers": numbers, "shares": {"wsp": 0.5}, "methods": ["wsp"]}
    given |= {"by_class": [["a"], ["b"]], "answers": {1: None, 2: 0.5}}
    exec(code, given)
    assert given["right"] == {1: [], 2: 0.5, 3: 1}


def test_a_threshold_needs_two_classes_and_features_a_stack_of_slices():
    with pytest.raises(ValueError, match="between two classes"):
        probe.youden([0, 0], [0.1, 0.2])
    encoder, images = build_encoder("tiny_padded"), np.zeros((2, 1, 32, 32), np.uint8)
    with pytest.raises(ValueError, match=r"images \(2, 1, 32, 32\)"):
        probe.extract_features(encoder, images, [0])


def test_features_are_those_that_were_written(tmp_path):
    features = np.arange(12, dtype=np.float32).reshape(6, 2)
    table = pd.DataFrame({"patient": [*"aabbcc"]})
    probe.save_probe(tmp_path, table, {"features": "key"}, features, table)
    np.testing.assert_array_equal(probe.saved_features(tmp_path, "key"), features)
    assert probe.saved_features(tmp_path, "other") is None
    for changed in (features[::-1], features[:4]):
        np.save(tmp_path / "features.npy", changed)
        assert probe.saved_features(tmp_path, "key") is None
    (tmp_path / "features.npy").unlink()
    assert probe.saved_features(tmp_path, "key") is None


def test_key_of_features_by_rows_and_by_bools_and_of_any_dtype():
    encoder = torch.nn.Linear(2, 2)
    mask = probe.features_key(encoder, "d", [False, True, True])
    assert (
        mask == probe.features_key(encoder, "d", [1, 2]) != probe.features_key(encoder, "d", [0, 1])
    )
    half = probe.features_key(encoder.bfloat16(), "d", [1, 2])
    with torch.no_grad():
        encoder.weight[0, 0] += 1
    assert half != probe.features_key(encoder, "d", [1, 2])


def test_slices_and_scores_of_nobody_are_refused():
    rng = np.random.default_rng(0)
    labels, patients = np.tile([0, 1], 20), np.repeat([f"p{i:02d}" for i in range(20)], 2)
    labels = np.repeat(labels[:20], 2)
    people = folds.patient_folds(labels, patients, 4)
    lost = patients.astype(object)
    lost[3] = None
    features = rng.normal(size=(40, 3))
    with pytest.raises(ValueError, match="1 slices without patient"):
        probe.held_out_scores(features, labels, lost, people, 0.01)
    with pytest.raises(ValueError, match="2 slices are of nobody"):
        probe.held_out_scores(features, labels, patients, people.drop(index=0), 0.01)
    table = people.assign(score=0.5, threshold=0.5)
    for column in ("score", "threshold", "fold"):
        table_without = table.assign(**{column: table[column].where(table.index > 0)})
        with pytest.raises(ValueError, match="patient p00: no fold or score or threshold"):
            probe.fold_balanced_accuracy(table_without)
    for judge in (probe.fold_auc, lambda t: statistics.bootstrap_interval([t])):
        with pytest.raises(ValueError, match="patient p00: no fold"):
            judge(table_without)


def test_columns_of_a_table_are_taken_in_their_order():
    rng, n = np.random.default_rng(0), 60
    labels, patients = (
        np.repeat(np.arange(20) % 2, 3),
        np.repeat([f"p{i:02d}" for i in range(20)], 3),
    )
    features, people = (
        rng.normal(size=(n, 4)) + labels[:, None],
        folds.patient_folds(labels, patients),
    )
    expected = probe.held_out_scores(features, labels, patients, people, 0.01)
    for index in (np.arange(n), rng.permutation(n), np.zeros(n, int)):
        given = pd.Series(labels, index), pd.Series(patients, index)
        found = probe.held_out_scores(features, *given, people, 0.01)
        np.testing.assert_array_equal(found, expected)


def test_a_patient_of_two_labels_is_refused_wherever_patients_are_judged():
    rng = np.random.default_rng(0)
    labels, patients = (
        np.repeat(np.arange(20) % 2, 3),
        np.repeat([f"p{i:02d}" for i in range(20)], 3),
    )
    features, people = rng.normal(size=(60, 2)), folds.patient_folds(labels, patients)
    two = np.where(np.arange(60) == 3, 1 - labels, labels)
    for call in (
        lambda: probe.cross_validate(features, two, patients),
        lambda: probe.plane_quality(features, rng.random(60), two, patients),
        lambda: probe.held_out_scores(features, two, patients, people, 0.01),
        lambda: fitted_scores((features, labels), (features, two, patients)),
    ):
        with pytest.raises(ValueError, match=r"patients with two labels: .*p01"):
            call()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_a_threshold_lies_above_the_next_lower_score(kind):
    for high in np.random.default_rng(0).random(20).astype(kind):
        low = np.nextafter(high, kind(0))
        scores = np.array([low, low, high, high])
        assert (scores >= probe.youden([0, 0, 1, 1], scores)).tolist() == [False, False, True, True]


def test_an_entry_of_evaluate_twice_is_refused():
    table = pd.DataFrame({"patient": [*"abcd"], "cohort": "d1", "label": [0, 1, 0, 1]})
    with pytest.raises(ValueError, match="twice"):
        folds.judged_cohorts(table, ["d1", "d1"], 2)


def test_an_encoder_is_given_back_as_it_was():
    """Its layout too: safetensors does not save weights that lie channels last."""
    encoder = build_encoder("tiny_padded", "batch", 0)
    images = np.zeros((3, 32, 32), np.uint8)
    probe.extract_features(encoder, images, range(3))
    assert all(w.is_contiguous() for w in encoder.parameters()) and encoder.training
    encoder.to(memory_format=torch.channels_last)
    probe.extract_features(encoder, images, range(3))
    assert not all(w.is_contiguous() for w in encoder.parameters())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_an_encoder_of_half_precision_is_refused(kind):
    encoder = build_encoder("tiny_padded", "batch", 0).to(kind)
    with pytest.raises(ValueError, match=r"is in torch\..*float16: features are float32"):
        probe.extract_features(encoder, np.zeros((2, 32, 32), np.uint8), range(2))
    assert encoder.training


def test_a_fold_of_one_class_has_no_auc():
    people = pd.DataFrame({"patient": list("abcdef"), "label": [0, 1, 0, 1, 1, 1]})
    people = people.assign(fold=[0, 0, 1, 1, 2, 2], score=np.linspace(0, 1, 6))
    with pytest.raises(ValueError, match=r"fold 2 holds one class"):
        probe.fold_auc(people)


def test_results_are_json_and_what_it_cannot_say_comes_back(tmp_path):
    scores = pd.DataFrame({"cohort": "d1>d2", "patient": ["a"], "score": [0.5]})
    row = {"cohort": "d1>d2", "auc": 0.5, "sd": float("nan")}
    run = {"name": "wsp", "backbone": "tiny", "seed": 0, "results": [row]}
    folder = tmp_path / "probe" / "wsp-tiny-seed0"
    folder.mkdir(parents=True)
    probe.save_probe(folder, scores, run)
    text = (folder / "results.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["results"][0]["sd"] is None
    assert np.isnan(tables.read_runs(tmp_path)[0]["results"]["d1>d2"]["sd"])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_youden_of_scores_that_rank_the_wrong_way_calls_nobody_positive(kind):
    """Sensitivity + specificity is 1 then; with the highest called positive it was 0."""
    labels, scores = [1, 1, 0, 0], np.array([0.1, 0.2, 0.8, 1.0], kind)
    threshold = probe.youden(labels, scores)
    assert threshold > 1 and not (scores >= threshold).any()
    rng = np.random.default_rng(0)
    for _ in range(50):  # on noise, no choice is worse than none
        labels, scores = np.arange(16) % 2, rng.random(16)
        called = scores >= probe.youden(labels, scores)
        assert called[labels == 1].mean() + (~called)[labels == 0].mean() >= 1


def test_folds_of_one_class_and_patients_without_score_are_refused_by_name():
    people = pd.DataFrame(
        {"patient": [*"abcd"], "label": [0, 1, 1, 1], "fold": [0, 0, 1, 1], "threshold": 0.5}
    )
    with pytest.raises(ValueError, match="fold 1 holds one class"):
        probe.fold_balanced_accuracy(people.assign(score=[0.1, 0.9, 0.8, 0.7]))
    with pytest.raises(ValueError, match="patient b: no fold or score"):
        probe.fold_auc(people.assign(score=[0.1, np.nan, 0.8, 0.7]))


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_a_batch_of_no_slices_is_refused_by_name(size):
    with pytest.raises(ValueError, match=f"batch_size={size}"):
        images = np.zeros((2, 8, 8), np.uint8)
        probe.extract_features(build_encoder("tiny_padded", "batch", 0), images, [0, 1], size)


def test_a_number_of_slices_may_be_written_as_a_float():
    """As YAML and spreadsheets leave it."""
    encoder, images = build_encoder("tiny_padded", "batch", 0), np.zeros((3, 64, 64), np.uint8)
    found = [probe.extract_features(encoder, images, [0, 1, 2], size) for size in (2, 2.0, 99)]
    assert all(np.allclose(each, found[0]) for each in found)


def test_features_are_of_the_code_that_computes_them(monkeypatch):
    encoder = build_encoder("tiny_padded", "batch", 0)
    before = probe.features_key(encoder, "d", [0])
    assert before == probe.features_key(encoder, "d", [0])
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda p: read(p) + b"#" * (p.name == "models.py"))
    pretrain.code.cache_clear()  # as in a process that begins
    assert before != probe.features_key(encoder, "d", [0])
    pretrain.code.cache_clear()
