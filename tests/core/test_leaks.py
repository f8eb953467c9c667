"""No patient on both sides: properties of random cohorts; leaks planted to see them caught."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from wspnb import probe
from wspnb.folds import patient_folds
from wspnb.sampling import OneSlicePerPatient


def cohort(seed: int, n_folds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features ``(n, 4)``, labels and patients of slices in random order; one to five a patient."""
    rng = np.random.default_rng(seed)
    count = rng.integers(1, 6, n_people := int(rng.integers(3 * n_folds, 6 * n_folds)))
    patients = rng.permutation(np.repeat([f"P{i % 7}-{i}" for i in range(n_people)], count))
    label = {f"P{i % 7}-{i}": int(i % 3 == 0) for i in range(n_people)}
    return rng.normal(size=(len(patients), 4)), np.array([*map(label.get, patients)]), patients


def unseen(seed: int, n_folds: int) -> bool:
    """Whether a patient's score stays, to the bit, when all else of the fold becomes noise."""
    features, labels, patients = cohort(seed, n_folds)
    people = patient_folds(labels, patients, n_folds, seed)
    rng = np.random.default_rng(seed)
    chosen = people.iloc[rng.integers(len(people))]
    others = people.patient[(people.fold == chosen.fold) & (people.patient != chosen.patient)]
    noisy = features.copy()
    noisy[np.isin(patients, others)] += 1000 * rng.normal(size=(np.isin(patients, others).sum(), 4))
    scores = [
        pd.Series(probe.held_out_scores(x, labels, patients, people, 0.1), people.patient)
        for x in (features, noisy)
    ]
    return scores[0][chosen.patient] == scores[1][chosen.patient]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_folds_scaler_and_regression_mix_no_patients(seed, n_folds):
    _, labels, patients = cohort(seed, n_folds)
    people = patient_folds(labels, patients, n_folds, seed)
    assert people.patient.is_unique and set(people.patient) == set(patients)
    assert (people.groupby("fold").label.nunique() == 2).all()
    assert unseen(seed, n_folds)


@pytest.mark.parametrize("leak", ["scaler", "folds"])
def test_a_planted_leak_is_caught(monkeypatch, leak):
    seeds = range(5)
    assert all(unseen(seed, 3) for seed in seeds)
    held_out, whole = probe.held_out_scores, probe.classifier
    if leak == "scaler":  # fitted on all slices, those to be judged among them

        def leaky(features, labels, patients, people, C):
            everything = StandardScaler().fit(features)
            regression = whole(C).named_steps["logisticregression"]
            with monkeypatch.context() as inner:
                inner.setattr(probe, "classifier", lambda _: make_pipeline(regression))
                return held_out(everything.transform(features), labels, patients, people, C)

    else:  # dealt by slices: those of a patient stand on both sides

        def leaky(features, labels, patients, people, C):
            slices = np.array([f"{name} {i}" for i, name in enumerate(patients)])
            dealt = patient_folds(labels, slices, people.fold.nunique(), 0)
            score = pd.Series(held_out(features, labels, slices, dealt, C), dealt.patient)
            return people.patient.map(score[slices].groupby(patients).mean()).to_numpy()

    monkeypatch.setattr(probe, "held_out_scores", leaky)
    assert not any(unseen(seed, 3) for seed in seeds)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_no_threshold_sees_the_fold_it_is_for(seed, n_folds):
    features, labels, patients = cohort(seed, n_folds)
    people = patient_folds(labels, patients, n_folds, seed)
    fold = people.fold[0]
    judged = np.isin(patients, people.patient[people.fold == fold])
    noisy = np.where(judged[:, None], 50.0, features)
    one, other = (
        probe.fold_thresholds(x, labels, patients, people, 0.1, seed)[people.fold == fold]
        for x in (features, noisy)
    )
    assert np.array_equal(one, other)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(2, 8))
def test_a_batch_has_a_patient_once_where_there_are_enough(seed, batch_size):
    _, labels, patients = cohort(seed, 5)
    per_class = pd.Series(labels).groupby(patients).first().value_counts().min()
    for batch in OneSlicePerPatient(patients, labels, batch_size, 5):
        if per_class >= (batch_size + 1) // 2:
            assert len(set(patients[batch])) == batch_size
