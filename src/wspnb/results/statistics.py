"""What an AUC of few patients can bear: intervals, paired differences, null distributions."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from wspnb.folds import check_classes, check_whole
from wspnb.probe import cross_validate, fold_auc, fold_balanced_accuracy


class Difference(NamedTuple):
    """Mean difference of two methods' fold-mean AUC, with one interval per source of chance."""

    mean: float
    low: float  # from the test patients
    high: float
    per_seed: np.ndarray  # (n_seeds,)
    seed_sd: float  # from the training seeds; this and all below NaN for one seed
    seed_low: float
    seed_high: float
    low_both: float  # from patients and seeds together
    high_both: float


def pairwise_wins(labels, scores) -> np.ndarray:
    """Whether each positive patient scores above each negative one, ``(n_positive, n_negative)``;
    its mean is the AUC. Ties count one half (Mann and Whitney 1947).

    Raises:
        ValueError: if a label is neither 0 nor 1, or a score no number.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, float)
    if labels.shape != scores.shape or not np.isin(labels, (0, 1)).all() or np.isnan(scores).any():
        found = f"labels {labels.shape}, scores {scores.shape}, {int(np.isnan(scores).sum())} NaN"
        raise ValueError(f"{found}: one label, 0 or 1, and one score each; score those without")
    positive, negative = scores[labels == 1][:, None], scores[labels == 0]
    return (positive > negative) + (positive == negative) / 2  # two at infinity are a tie


def wins_by_fold(runs: list[pd.DataFrame]) -> list[np.ndarray]:
    """:func:`pairwise_wins` of every run, one array ``(n_runs, n_positive, n_negative)`` per fold.

    Raises:
        ValueError: if there is none, the runs have other patients or folds than the first, or a
            fold one class; or a patient twice.
    """
    if not runs:
        raise ValueError("no run: give the scores of one at least")
    keys = ["patient", "label", "fold"]
    if (twice := runs[0].patient.duplicated()).any():
        who = runs[0].patient[twice].iloc[0]
        raise ValueError(f"patient {who} is there twice: give one score for each patient")
    check_classes(runs[0])
    for other in runs[1:]:
        if not np.array_equal(*(run[keys].to_numpy(object) for run in (other, runs[0]))):
            raise ValueError(
                f"{other.attrs.get('run', 'the runs')}: probed on other patients or folds, or rows "
                "stand in another order: probe all with one fold_seed, sort them by patient"
            )
    parts = [[run[run.fold == fold] for run in runs] for fold in runs[0].fold.unique()]
    return [np.stack([pairwise_wins(p.label, p.score) for p in part]) for part in parts]


def draw_again(size: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Who is in each of ``n`` resamples of ``size`` patients, ``(n, size - 1)``: one fewer than
    there are; as many would take a third off the variance of a class of three (Rao and Wu 1988)."""
    return rng.integers(size, size=(n, size - 1))


def resample_patients(wins: list[np.ndarray], n: int, rng: np.random.Generator) -> np.ndarray:
    """Fold-mean AUC of each run under ``n`` resamples of the patients, ``(n, n_runs)``.

    Positives and negatives of a fold are drawn apart (:func:`draw_again`), the same for all runs.
    NaN where a fold has one patient of a class: who cannot be drawn otherwise does not vary.
    """
    if min(min(fold.shape[1:]) for fold in wins) < 2:
        return np.full((n, wins[0].shape[0]), np.nan)
    total = np.zeros((n, wins[0].shape[0]))
    for fold in wins:
        weights = []
        for size in fold.shape[1:]:
            drawn = draw_again(size, n, rng)
            cells = (drawn + size * np.arange(n)[:, None]).ravel()
            weights.append(np.bincount(cells, minlength=n * size).reshape(n, size) / drawn.shape[1])
        total += np.einsum("np,kpq,nq->nk", weights[0], fold, weights[1], optimize=True)
    return total / len(wins)


def bootstrap_interval(
    runs: list[pd.DataFrame], n: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the mean of the fold AUCs, by ``n`` resamples of patients in fold and class.

    It is the uncertainty from the finite number of test patients, given the trained encoders and
    probes; the spread over training seeds is another thing and is reported beside it.

    Args:
        runs: score tables of :class:`wspnb.probe.Probe`, one per training seed, of the same
            patients in the same folds; the AUC is averaged over them within each resample.

    Returns:
        Its ends; both NaN where it cannot be computed: a fold has one patient of a class, or every
        resample gives the same, as where all pairs of patients are in the right order.

    Raises:
        ValueError: if the runs have other patients or folds than the first.
    """
    wins = [fold.mean(0, keepdims=True) for fold in wins_by_fold(runs)]
    return ends(resample_patients(wins, n, np.random.default_rng(seed)))


def ends(values) -> tuple[float, float]:
    """95 % percentile interval of the resamples that have a value; NaN if none has, or if all have
    the same: who does not vary says nothing of others."""
    values = np.asarray(values)[~np.isnan(values)]
    low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (np.nan, np.nan)
    return (float(low), float(high)) if high - low > 1e-9 else (np.nan, np.nan)


def interval(low: float, high: float, form: str = ".2f") -> str:
    """The ends of an interval in words, after a blank; "" where it cannot be computed."""
    return f" [{low:{form}}, {high:{form}}]" if high > low else ""


def paired_difference(
    runs_a: list[pd.DataFrame], runs_b: list[pd.DataFrame], n: int = 2000, seed: int = 0
) -> Difference:
    """AUC of method a minus method b on the same patients, folds and training seeds.

    ``low`` to ``high`` resamples patients, the same for both methods and all seeds. ``seed_low`` to
    ``seed_high`` is Student's interval over the seeds. In ``low_both`` to ``high_both`` each
    resample of the patients also draws the mean over seeds from its t distribution: three seeds
    are too few to draw from. What seed and patients do together counts twice, so it errs wide.
    Ends that hold the patients are NaN where a fold has one patient of a class, and those
    of what does not vary: of patients where both methods order every pair alike, of equal seeds.

    Args:
        runs_a, runs_b: score tables of each method, one per training seed, seed by seed.

    Raises:
        ValueError: if the numbers of seeds, the patients or the folds differ.
    """
    if len(runs_a) != len(runs_b) or not runs_a:
        raise ValueError(f"{len(runs_a)} and {len(runs_b)} runs: give one per seed of each method")
    k, rng = len(runs_a), np.random.default_rng(seed)
    wins = [fold[:k] - fold[k:] for fold in wins_by_fold([*runs_a, *runs_b])]
    per_seed = np.mean([fold.mean((1, 2)) for fold in wins], axis=0)
    mean, draws = float(per_seed.mean()), resample_patients(wins, n, rng).mean(1)
    if k == 1:
        return Difference(mean, *ends(draws), per_seed, *[np.nan] * 5)
    sd, half = float(per_seed.std(ddof=1)), stats.t.ppf(0.975, k - 1) / k**0.5
    half = half if sd > 1e-9 else np.nan
    both = draws + rng.standard_t(k - 1, n) * sd / k**0.5
    spread = (sd, mean - half * sd, mean + half * sd)
    return Difference(mean, *ends(draws), per_seed, *spread, *ends(both))


def delong(runs_a: list[pd.DataFrame], runs_b: list[pd.DataFrame]) -> tuple[float, float]:
    """Standard error and two-sided p of :func:`paired_difference` for the patients, without
    resampling (DeLong, DeLong and Clarke-Pearson 1988).

    Within folds, as the AUC is: scores of different folds come from different probes. NaN where a
    fold has one patient of a class; the p also where the methods order every pair alike.
    """
    if (k := len(runs_a)) != len(runs_b):
        raise ValueError(f"{k} and {len(runs_b)} runs: give one per seed of each method")
    wins = [f[:k].mean(0) - f[k:].mean(0) for f in wins_by_fold([*runs_a, *runs_b])]
    if min(min(d.shape) for d in wins) < 2:
        return np.nan, np.nan
    parts = [d.mean(axis).var(ddof=1) / d.shape[1 - axis] for d in wins for axis in (0, 1)]
    error = float(np.sum(parts) ** 0.5 / len(wins))
    error = error if error > 1e-9 else 0.0  # thirds that are all alike differ in the last digit
    z = np.mean([d.mean() for d in wins]) / error if error else np.nan
    return error, float(2 * stats.norm.sf(abs(z)))


def hanley_mcneil(auc, n_positive: int, n_negative: int):
    """Standard error of an AUC from its value and the class counts (Hanley and McNeil 1982)."""
    if not np.all((np.asarray(auc) >= 0) & (np.asarray(auc) <= 1)):
        raise ValueError(f"auc={auc}: from 0 to 1")
    auc = auc.astype(float) if hasattr(auc, "astype") else np.asarray(auc, float)[()]
    n_positive, n_negative = int(n_positive), int(n_negative)  # products of small types overflow
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (n_positive - 1) * (q1 - auc**2) + (n_negative - 1) * (q2 - auc**2)
    return (variance / (n_positive * n_negative)) ** 0.5


def stratified_auc(labels, scores, strata, folds=None) -> dict[str, float]:
    """AUC of all pairs of patients, of pairs within one data set, and of pairs across.

    Args:
        labels, scores, strata: class, score and data set of each patient, ``(n,)``.
        folds: if given, only pairs of patients in the same fold count.

    Returns:
        ``pooled``, ``within``, ``between``; NaN where there is no such pair.
    """
    labels, given, strata = np.asarray(labels), strata, np.asarray(strata)
    folds = np.zeros(len(labels)) if folds is None else np.asarray(folds)
    for what, each in (("data set (strata)", given), ("fold", folds)):
        if lost := int(pd.isna(np.asarray(each, dtype=object)).sum()):
            raise ValueError(f"{lost} patients without {what}: name it, or leave them out")
    positive, negative = labels == 1, labels == 0
    wins = pairwise_wins(labels, scores)
    counted = folds[positive][:, None] == folds[negative]
    same = strata[positive][:, None] == strata[negative]
    pairs = {"pooled": counted, "within": counted & same, "between": counted & ~same}
    return {k: float(wins[p].mean()) if p.any() else np.nan for k, p in pairs.items()}


def null_of_fold_mean(
    n_positive: int, n_negative: int, n_folds: int, n: int, rng: np.random.Generator
) -> np.ndarray:
    """Mean of the fold AUCs of ``n`` sets of scores that know nothing, ``(n,)``.

    Classes are dealt evenly to the folds; folds count as independent.
    """
    check_whole("n_folds", n_folds, 1)
    n_folds = int(n_folds)
    if min(n_positive, n_negative) < n_folds:
        raise ValueError(f"{n_positive}, {n_negative} patients: too few for {n_folds} folds")
    n_positive, n_negative = int(n_positive), int(n_negative)  # a product of bytes would overflow
    total = np.zeros(n)
    for fold in range(n_folds):
        p, q = ((size + n_folds - 1 - fold) // n_folds for size in (n_positive, n_negative))
        ranks = rng.random((n, p + q)).argsort(1)[:, :p]
        total += (ranks.sum(1) - p * (p - 1) / 2) / (p * q)
    return total / n_folds


def permutation_null(
    features,
    labels,
    patients,
    n: int,
    rng: np.random.Generator,
    strata=None,
    C: float = 0.01,
    n_folds: int = 5,
    seed: int = 0,
) -> tuple[float, np.ndarray, float]:
    """The probe's AUC, what it reaches when the patients' labels are shuffled, and p.

    Args:
        features, labels, patients, C, n_folds, seed: as in :func:`cross_validate`; labels decide
            the folds with the seed.
        n, rng: number of shuffles and their source.
        strata: data set of each slice; labels are then shuffled within it, which keeps what the
            data set alone tells.

    Returns:
        AUC, ``(n,)`` shuffled AUCs, and (1 + number of them that reach it) / (1 + n).
    """
    check_whole("n", n, 1)
    n = int(n)
    auc = cross_validate(features, labels, patients, C, n_folds, seed).mean
    table = pd.DataFrame({"label": np.asarray(labels), "patient": np.asarray(patients)})
    people = table.assign(strata=0 if strata is None else np.asarray(strata, dtype=object))
    people = people.drop_duplicates(["patient", "strata"]).set_index("patient").sort_index()
    if (lost := people.strata.isna() | people.index.duplicated()).any():
        who = people.index[lost][0]
        raise ValueError(f"patient {who}: no data set (strata), or two: give one to each")
    null = np.zeros(n)
    for number in range(n):
        shuffled = people.groupby("strata").label.transform(rng.permutation)
        mixed = table.patient.map(shuffled)
        null[number] = cross_validate(features, mixed, patients, C, n_folds, seed).mean
    reached = (null >= auc - 1e-9).sum()  # the sum over folds depends on their order
    return auc, null, float((1 + reached) / (1 + n))


def variance_split(table: pd.DataFrame) -> dict[str, float]:
    """Spread of an AUC over training seeds, over repeats of the folds, and over folds.

    Args:
        table: one AUC per row, columns seed, fold_seed, fold, auc.

    Returns:
        ``seeds`` and ``repeats``: SD of the means of each seed and of each fold_seed, NaN where
        there is one; ``folds``: SD over the folds of one cross-validation, root mean square.
    """
    seeds, repeats = (float(table.groupby(c).auc.mean().std()) for c in ("seed", "fold_seed"))
    within = table.groupby(["seed", "fold_seed"]).auc.var()
    return {"seeds": seeds, "repeats": repeats, "folds": float(within.mean() ** 0.5)}


def records_of(name: str, people: dict[str, pd.DataFrame]) -> list[dict]:
    """What notebook 03 keeps of one run: a row per entry of ``evaluate``.

    ``people`` are patients with label, fold, score and threshold, by entry of ``evaluate``.

    Returns:
        method, cohort, auc (mean of the folds) and its sd over folds, low and high (95 % interval
        over patients), n patients, bacc and its sd, and both fold by fold; an sd is NaN where
        there is one fold.
    """
    records = []
    for group, table in people.items():
        folds, bacc = fold_auc(table), fold_balanced_accuracy(table)
        low, high = bootstrap_interval([table])
        sd, bacc_sd = (pd.Series(values).std(ddof=1) for values in (folds, bacc))
        record = {"method": name, "cohort": group, "auc": np.mean(folds), "sd": sd}
        record |= {"low": low, "high": high, "n": len(table), "bacc": bacc.mean()}
        record |= {"bacc_sd": bacc_sd, "folds": np.round(folds, 4).tolist()}
        records.append(record | {"bacc_folds": bacc.round(4).tolist()})
    return records
