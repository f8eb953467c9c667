"""Who is judged, and in which fold: checked before anything is trained."""

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold


def judged_cohorts(table: pd.DataFrame, evaluate: list[str], n_folds: int = 5) -> pd.DataFrame:
    """Patients of each class in the cohorts to judge, checked before anything is trained.

    Args:
        table: slices, or volumes, with patient, cohort and label (missing where unknown).
        evaluate: names of cohorts; a plus joins them.
        n_folds: number of folds.

    Returns:
        One row per entry: cohort, class_0, class_1 (patients), folds, and whether an interval can
        be computed, which takes two patients of each class in every fold.

    Raises:
        ValueError: names the cohort without labels, or with too few patients for the folds, the
            counts, and what to do.
    """
    if n_folds < 2:
        raise ValueError(f"n_folds={n_folds}: at least two")
    labelled, rows = table[table.label.notna()], []
    for group in evaluate:
        absent = sorted(set(group.split("+")) - set(labelled.cohort))
        if absent:
            known = ", ".join(sorted(labelled.cohort.unique())) or "none"
            raise ValueError(
                f"evaluate: no patient of {', '.join(absent)} has a label; cohorts with labels:"
                f" {known}. Correct evaluate, or set it to [] and do not judge"
            )
        people = labelled[labelled.cohort.isin(group.split("+"))].drop_duplicates("patient")
        counts = [int((people.label == k).sum()) for k in (0, 1)]
        if min(counts) < max(n_folds, 2):
            advice = f"n_folds {min(counts)}" if min(counts) > 1 else "more patients"
            raise ValueError(
                f"evaluate: {group} has {counts[0]} patients of class 0 and {counts[1]} of class 1,"
                f" too few for {n_folds} folds: take {advice}, or leave it out of evaluate"
            )
        row = {"cohort": group, "class_0": counts[0], "class_1": counts[1], "folds": n_folds}
        rows.append(row | {"interval": min(counts) >= 2 * n_folds})
    return pd.DataFrame(rows)


def patient_folds(labels, patients, n_folds: int = 5, seed: int = 0) -> pd.DataFrame:
    """Stratified folds over patients; they depend on patients, labels and seed only.

    Args:
        labels: class of each slice's patient, 0 or 1, ``(n_slices,)``.
        patients: patient of each slice, ``(n_slices,)``.
        n_folds: number of folds.
        seed: of the shuffling.

    Returns:
        One row per patient, sorted: patient, label, fold.

    Raises:
        ValueError: if a slice has no patient or no label, a patient two labels, or a class fewer
            patients than folds (at least two).
    """
    _, labels, patients = checked(None, labels, patients)
    slices = pd.DataFrame({"patient": patients, "label": labels})
    mixed = slices.groupby("patient").label.nunique()
    if (mixed > 1).any():
        raise ValueError(
            f"patients with two labels: {list(mixed.index[mixed > 1][:5])}; one label per patient"
        )
    people = slices.groupby("patient", sort=True).label.first().reset_index()
    counts = people.label.value_counts().reindex([0, 1], fill_value=0)
    if counts.min() < max(n_folds, 2):
        raise ValueError(
            f"{n_folds} folds need {max(n_folds, 2)} patients of each class, found {counts[0]} of"
            f" class 0 and {counts[1]} of class 1: take fewer folds (n_folds, from 2)"
        )

    people["fold"] = -1
    splitter = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    for fold, (_, test) in enumerate(splitter.split(people, people.label)):
        people.loc[people.index[test], "fold"] = fold
    return people


def checked(features, labels, patients) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row-aligned features (or None), labels 0 and 1, and patients of slices, as arrays.

    Raises:
        ValueError: if lengths differ, or a slice has no patient or another label.
    """
    patients = pd.Series(np.asarray(patients, dtype=object)).reset_index(drop=True)
    labels = pd.Series(labels).to_numpy(dtype=float, na_value=np.nan)
    features = np.zeros(len(labels)) if features is None else np.asarray(features)
    if not len(features) == len(labels) == len(patients):
        sizes = f"{len(features)} features, {len(labels)} labels, {len(patients)} patients"
        raise ValueError(f"{sizes}: give one of each per slice")
    if unnamed := int((patients.isna() | (patients.astype(str) == "")).sum()):
        raise ValueError(f"{unnamed} slices without patient: they would be on both sides of a fold")
    if (other := ~np.isin(labels, (0, 1))).any():
        raise ValueError(f"{other.sum()} slices with a label other than 0 or 1: leave them out")
    return features, labels.astype(int), patients.to_numpy()
