"""Judging an encoder of the reference experiment: at the paper's sizes, and on a population."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from wspnb import probe
from wspnb.data.slices import Slices
from wspnb.folds import check_names, checked

GROUPS = ("d1", "d2", "d1+d2")
C, N_FOLDS, FOLD_SEED = 0.01, 5, 0  # of the probe: notebook 03's defaults


def features_of(encoder: nn.Module, store: Slices, device: torch.device) -> dict[str, tuple]:
    """Features, labels, patients and positions of the slices of each judged cohort."""
    size = 512 if device.type == "cuda" else 16
    return by_cohort(
        store.table, lambda rows: probe.extract_features(encoder, store.images, rows, size)
    )


def by_cohort(table: pd.DataFrame, features: Callable[[np.ndarray], np.ndarray]) -> dict:
    """:func:`features_of`, from what gives the features ``(m, d)`` of m rows of a table."""
    found = {}
    for cohort in ("d1", "d2", "population"):
        rows = np.flatnonzero(table.cohort == cohort)
        slices = table.iloc[rows]
        check_names(slices.patient)
        truth = slices.label.to_numpy(int), slices.patient.to_numpy(str)
        found[cohort] = (features(rows), *truth, slices.position.to_numpy(float))
    return found


def judge(found: dict[str, tuple]) -> dict:
    """What a study of D1 would find on the population, and how well depth is read.

    Returns:
        ``auc_population``: the probe fitted on all of D1 and judged on the population;
        ``auc_d1``: mean of five folds over D1; ``depth_r2`` from neighbours of other patients.
    """
    features, labels, patients, positions = found["d1"]
    people = population_scores(found)
    quality = probe.plane_quality(features, positions, labels, patients)
    return {
        "auc_population": roc_auc_score(people.label, people.score),
        "auc_d1": probe.cross_validate(features, labels, patients, C, N_FOLDS, FOLD_SEED).mean,
        "depth_r2": quality["depth_r2"],
    }


def population_scores(found: dict[str, tuple]) -> pd.DataFrame:
    """Patients of the population with label and score of the probe fitted on D1."""
    return fitted_scores(found["d1"][:2], found["population"][:3])


def fitted_scores(fitted: tuple, judged: tuple) -> pd.DataFrame:
    """Patients of ``judged`` (features, labels, patients) with label and mean score of the probe
    fitted on the features and labels of ``fitted``."""
    features, labels, patients = checked(*judged)
    score = probe.classifier(C).fit(*fitted).predict_proba(features)[:, 1]
    table = pd.DataFrame({"patient": patients, "label": labels, "score": score})
    return table.groupby("patient").mean().astype({"label": int}).reset_index()


def draw_studies(found: dict[str, tuple], n: int) -> pd.DataFrame:
    """``n`` studies of D1's size, drawn from the population (of :func:`features_of`) without
    replacement, the same for every method of a phantom.

    Returns:
        A row per study: ``study``, ``auc_folds`` (five folds over its patients, what it would have
        reported) and ``auc_rest`` (its probe on the patients it has not seen: how good it is).
    """
    labels = {k: pd.Series(v[1], v[2]).groupby(level=0).first() for k, v in found.items()}
    of_patient, sizes = labels["population"], labels["d1"].value_counts()
    rows = []
    for study in range(n):
        rng, chosen = np.random.default_rng([study, 7]), []
        for label in (0, 1):
            people = of_patient.index[of_patient == label]
            chosen += [*rng.choice(people, min(sizes[label], len(people) // 2), replace=False)]
        own = np.isin(found["population"][2], chosen)
        part = [values[own] for values in found["population"][:3]]
        folds = probe.cross_validate(*part, C, N_FOLDS, FOLD_SEED).mean
        rest = fitted_scores(part[:2], [values[~own] for values in found["population"][:3]])
        auc = roc_auc_score(rest.label, rest.score)
        rows.append({"study": study, "auc_folds": folds, "auc_rest": auc})
    return pd.DataFrame(rows)


def cross_validated(found: dict[str, tuple]) -> dict[str, pd.DataFrame]:
    """Scores, folds and thresholds of the patients of each group, as in notebook 03."""
    people, features = {}, np.concatenate([part[0] for part in found.values()])
    parts = [pd.DataFrame({"label": part[1], "patient": part[2]}) for part in found.values()]
    slices = pd.concat(parts, keys=found, names=["cohort"]).reset_index("cohort")
    for group in GROUPS:
        people[group] = probe.judge(features, slices, group, C, N_FOLDS, FOLD_SEED).scores
    return people
