"""Who is judged, and in which fold: checked before anything is trained."""

import unicodedata
from numbers import Real

import numpy as np
import pandas as pd


def sides(group: str) -> tuple[list[str], list[str]]:
    """Cohorts of an entry of ``evaluate`` that a probe is fitted on, and that it is judged on.

    "d1+d2" is both: its patients are dealt to folds. "d1>d2" is fitted on all of d1 and judged on
    d2, as one cohort's probe would be used in another hospital.
    """
    fitted, _, judged = unicodedata.normalize("NFC", group).partition(">")  # as the table's
    return fitted.split("+"), (judged or fitted).split("+")


def cohorts_of(evaluate: list[str]) -> list[str]:
    """Names of all cohorts that the entries of ``evaluate`` speak of, sorted.

    Raises:
        ValueError: ``evaluate`` is one text, whose letters would be read as cohorts.
    """
    if isinstance(evaluate, str):
        raise ValueError(f"evaluate is one text, {evaluate!r}: write a list, [{evaluate!r}]")
    return sorted({name for group in evaluate for side in sides(group) for name in side})


def judged_cohorts(table: pd.DataFrame, evaluate: list[str], n_folds: int = 5) -> pd.DataFrame:
    """Patients of each class in the cohorts to judge, checked before anything is trained.

    Args:
        table: slices, or volumes, with patient, cohort and label (missing where unknown).
        evaluate: names of cohorts; a plus joins them, "d1>d2" is fitted on d1, judged on d2.

    Returns:
        One row per entry: cohort, class_0, class_1 (patients), folds, and whether an interval can
        be computed, which takes two patients of each class in every fold.

    Raises:
        ValueError: names the cohort without labels, or with too few patients for the folds, the
            counts, and what to do; as :func:`people`.
    """
    check_whole("n_folds", n_folds, 2)
    labelled, rows = table[table.label.notna()], []
    cohorts_of(evaluate)
    if len(set(evaluate)) < len(evaluate):
        raise ValueError(f"evaluate {[*evaluate]}: an entry is there twice, delete one")
    for group in evaluate:
        if any(not name or name != name.strip() for name in cohorts_of([group])):
            raise ValueError(f"evaluate: {group!r}: write d1, d1+d2 or d1>d2, without blanks")
        parts = [people(side.label, side.patient) for side in split(labelled, group)]
        n_parts = 1 if ">" in group else n_folds
        for part, what in zip(parts, ("fit", "judge"), strict=True):
            counts = [int((part.label == k).sum()) for k in (0, 1)]
            if min(counts) < n_parts:
                few = f"too few for {n_folds} folds" if n_parts > 1 else f"too few to {what} on"
                take = f"n_folds {min(counts)}" if min(counts) > 1 else "more patients"
                raise ValueError(
                    f"evaluate: {group} has {counts[0]} patients of class 0 and {counts[1]} of"
                    f" class 1, {few}: take {take}, or leave it out of evaluate"
                )
        row = {"cohort": group, "class_0": counts[0], "class_1": counts[1], "folds": n_parts}
        rows.append(row | {"interval": min(counts) >= 2 * n_parts})
    return pd.DataFrame(rows)


def read_rows(table: pd.DataFrame, cohort: str) -> np.ndarray:
    """Row numbers of a cohort's slices in the store's table; a ValueError lists those there are."""
    rows = np.flatnonzero(table.cohort == unicodedata.normalize("NFC", cohort))
    if not len(rows):
        there = sorted(table.cohort.dropna().unique())
        raise ValueError(f"no slice of cohort {cohort!r}, there are {there}: correct train_cohort")
    return rows


def split(table: pd.DataFrame, group: str) -> list[pd.DataFrame]:
    """Rows of both :func:`sides`.

    Raises:
        ValueError: if a cohort is not there, or a patient is on both sides of ">".
    """
    if absent := sorted(set(cohorts_of([group])) - set(table.cohort)):
        known = ", ".join(sorted(table.cohort.dropna().unique())) or "none"
        raise ValueError(
            f"evaluate: no patient of {', '.join(absent)} has a label; cohorts with labels:"
            f" {known}. Correct evaluate, or set it to [] and do not judge"
        )
    fitted, judged = parts = [table[table.cohort.isin(side)] for side in sides(group)]
    both = sorted(set(fitted.patient) & set(judged.patient))
    if ">" in group and both:
        raise ValueError(f"evaluate: {group}: patients on both sides: {both[:5]}")
    return parts


def deal(slices: pd.DataFrame, group: str, n_folds: int = 5, seed: int = 0) -> pd.DataFrame:
    """Patients of an entry of ``evaluate`` with the fold in which each is judged.

    Args:
        slices: patient, cohort and label of each labelled slice.
        group, n_folds, seed: as :func:`sides` and :func:`patient_folds`.

    Returns:
        One row per patient: patient, label, fold. With ">" the judged are fold 0, and -1 are those
        who are fitted on and not judged.

    Raises:
        ValueError: as :func:`patient_folds` and :func:`split`.
    """
    fitted, judged = split(slices, group)
    if ">" not in group:
        return patient_folds(judged.label, judged.patient, n_folds, seed)
    parts = [people(part.label, part.patient).assign(fold=fold)
             for fold, part in ((-1, fitted), (0, judged))]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def people(labels, patients) -> pd.DataFrame:
    """One row per patient, sorted: patient, label.

    Raises:
        ValueError: as :func:`checked`.
    """
    _, labels, patients = checked(None, labels, patients)
    found = pd.DataFrame({"patient": patients, "label": labels}).drop_duplicates()
    return found.sort_values("patient", ignore_index=True)


def patient_folds(labels, patients, n_folds: int = 5, seed: int = 0) -> pd.DataFrame:
    """Stratified folds over patients; they depend on patients, labels and seed only.

    Args:
        labels: class of each slice's patient, 0 or 1, ``(n_slices,)``.
        patients: patient of each slice, ``(n_slices,)``.

    Returns:
        One row per patient, sorted: patient, label, fold.

    Raises:
        ValueError: as :func:`people`, or if a class has fewer patients than folds (at least two).
    """
    from sklearn.model_selection import StratifiedKFold  # takes seconds, and 01 deals no folds

    check_whole("n_folds", n_folds, 2)
    n_folds = int(n_folds)
    found = people(labels, patients)
    counts = found.label.value_counts().reindex([0, 1], fill_value=0)
    if counts.min() < n_folds:
        fewer = f"take fewer folds (n_folds, from 2 to {counts.min()})"
        advice = fewer if counts.min() > 1 else "two of each class are the least"
        raise ValueError(
            f"{n_folds} folds need {n_folds} patients of each class, found {counts[0]} of class 0"
            f" and {counts[1]} of class 1: {advice}"
        )

    splitter = StratifiedKFold(n_folds, shuffle=True, random_state=int(seed) % 2**32)
    for fold, (_, test) in enumerate(splitter.split(found, found.label)):
        found.loc[test, "fold"] = fold
    return found.astype({"fold": int})


def checked(features, labels, patients) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row-aligned features (or None; float32 at least), labels 0 and 1, and patients of slices, as
    arrays.

    Raises:
        ValueError: if lengths differ, features are no finite numbers ``(n_slices, d)``, a slice has
            no patient or another label, or a patient two labels.
    """
    patients = pd.Series(np.asarray(patients, dtype=object)).reset_index(drop=True)
    labels = pd.to_numeric(pd.Series(labels), errors="coerce").to_numpy(float, na_value=np.nan)
    given = features is not None
    features = np.asarray(features) if given else np.zeros(len(labels))
    if features.dtype == np.float16:  # whose sums leave its range
        features = features.astype(np.float32)
    if not len(features) == len(labels) == len(patients):
        sizes = f"{len(features)} features, {len(labels)} labels, {len(patients)} patients"
        raise ValueError(f"{sizes}: give one of each per slice")
    check_names(patients)
    if patients.map(lambda name: isinstance(name, str)).nunique() > 1:  # have no order
        raise ValueError("patients are partly numbers, partly text: write all as text")
    if given and (features.ndim != 2 or not features.size or features.dtype.kind not in "fiub"):
        found = f"features {features.dtype} {features.shape}"
        raise ValueError(f"{found}: expected numbers (n_slices, d)")
    largest = np.finfo(np.result_type(features, np.float32)).max ** 0.5  # whose square has a value
    if given and len(bad := np.flatnonzero(~(np.abs(features) < largest).all(1))):
        found = f"features of {len(bad)} slices are not finite, or too large, such as of patient"
        raise ValueError(f"{found} {patients[bad[0]]!r}: train or extract them again")
    if (other := ~np.isin(labels, (0, 1))).any():
        raise ValueError(f"{other.sum()} slices with a label other than 0 or 1: leave them out")
    each = pd.DataFrame({"patient": patients, "label": labels}).drop_duplicates()
    if len(mixed := each.patient[each.patient.duplicated()]):
        raise ValueError(f"patients with two labels: {[*mixed[:5]]}; one label per patient")
    return features, labels.astype(int), patients.to_numpy()


def check_judged(people: pd.DataFrame, *columns: str) -> None:
    """Refuse patients without fold, or without what else is asked for: they would be left out of a
    figure in silence."""
    if (lost := people[["fold", *columns]].isna().any(axis=1)).any():
        who = people.patient[lost].iloc[0] if "patient" in people else "without name"
        what = " or ".join(["fold", *columns])
        raise ValueError(f"patient {who}: no {what}: judge those without, or run 03 again")


def check_classes(people: pd.DataFrame, *columns: str) -> None:
    """Refuse a fold of one class, and what :func:`check_judged` refuses."""
    check_judged(people, *columns)
    for fold, labels in people.groupby("fold").label:
        if labels.nunique() < 2:
            raise ValueError(f"fold {fold} holds one class: no AUC; take fewer folds (n_folds)")


def check_whole(name: str, value, least: int) -> None:
    """Refuse what is no whole number, or below the least."""
    if not isinstance(value, Real) or isinstance(value, bool) or not value >= least or value % 1:
        value = value.item() if hasattr(value, "item") else value
        raise ValueError(f"{name}={value!r}: takes a whole number from {least} on")


def check_names(patients) -> None:
    """Refuse slices of nobody, which would be on both sides of a fold, and one look of two names.

    Raises:
        ValueError: says how many slices have no patient, or which patient is both number and text.
    """
    names = pd.Series(np.asarray(patients, dtype=object))
    if unnamed := int((names.isna() | (names.astype(str).str.strip() == "")).sum()):
        raise ValueError(f"{unnamed} slices without patient: name it for each")
    one = names.drop_duplicates()
    look = one.astype(str).map(lambda name: unicodedata.normalize("NFC", name.strip()))
    if len(twice := one[look.duplicated()]):
        forms = "as number and as text, with blanks, or in two forms of Unicode"
        raise ValueError(f"patient {twice.iloc[0]} {forms}: write all as one text")
