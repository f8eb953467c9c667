"""Statistics of small AUCs: closed forms, plain loops, known limits and coverage."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from wspnb.probe import cross_validate
from wspnb.results import statistics, tables


def make_run(positive=15, negative=34, shift=1.0, seed=0, n_folds=5, noise=None):
    """Scores of patients dealt to folds; ``noise`` (one number per patient) is shared by runs."""
    rng = np.random.default_rng(seed)
    label = np.repeat([1, 0], [positive, negative])
    fold = np.r_[np.arange(positive) % n_folds, np.arange(negative) % n_folds]
    score = rng.normal(size=len(label)) + shift * label + (0 if noise is None else noise)
    return pd.DataFrame(
        {"patient": np.arange(len(label)), "label": label, "fold": fold, "score": score}
    )


def test_resamples_of_few_patients_spread_as_their_mean_does():
    values = np.array([0.1, 0.5, 0.9])
    means = values[statistics.draw_again(3, 100_000, np.random.default_rng(0))].mean(1)
    assert means.var() == pytest.approx(values.var(ddof=1) / 3, rel=0.02)


def fold_mean(run):
    return np.mean([roc_auc_score(p.label, p.score) for _, p in run.groupby("fold")])


def test_pairwise_wins_mean_is_the_auc_with_ties():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 50), rng.integers(0, 6, 50) / 5
    found = statistics.pairwise_wins(labels, scores).mean()
    assert found == pytest.approx(roc_auc_score(labels, scores))


def test_bootstrap_interval_against_a_plain_loop():
    run, rng, means = make_run(30, 60, shift=0.6), np.random.default_rng(1), []
    parts = [
        [part.score[part.label == k].to_numpy() for k in (0, 1)] for _, part in run.groupby("fold")
    ]
    for _ in range(4000):
        folds = []
        for part in parts:
            drawn = [rng.choice(scores, len(scores) - 1) for scores in part]
            folds.append(np.mean(drawn[1][:, None] > drawn[0]))  # no ties here
        means.append(np.mean(folds))
    expected = np.quantile(means, [0.025, 0.975])
    assert statistics.bootstrap_interval([run], n=4000) == pytest.approx(expected, abs=0.012)


def test_bootstrap_over_seeds_narrows_only_if_the_seeds_differ():
    runs = [make_run(shift=0.6, seed=seed) for seed in range(6)]
    choices = (runs[:1], runs[:1] * 6, runs)
    one, same, several = (statistics.bootstrap_interval(r) for r in choices)
    assert same == pytest.approx(one, abs=1e-12)
    assert several[1] - several[0] < 0.8 * (one[1] - one[0])
    with pytest.raises(ValueError, match="other patients or folds"):
        statistics.bootstrap_interval([runs[0], runs[1].assign(fold=0)])


@pytest.mark.parametrize(("positive", "negative"), [(15, 34), (78, 28)])
def test_interval_covers_the_truth_as_often_as_it_says(positive, negative):
    """Three positives per fold: drawing three of them again would cover 90 % here, not 95 %."""
    shift, hits = 2**0.5 * stats.norm.ppf(0.82), 0
    for seed in range(200):
        run = make_run(positive, negative, shift, seed)
        low, high = statistics.bootstrap_interval([run], n=400, seed=seed)
        hits += low <= 0.82 <= high
    assert 0.915 <= hits / 200 <= 0.985  # standard error .015


def test_resampled_patients_have_the_variance_of_a_mean():
    """Two equal negatives: the AUC is a mean over positives, its variance var(ddof=1)/n exactly."""
    wins = np.array([0.0, 1.0, 1.0])[None, :, None].repeat(2, axis=2)
    draws = statistics.resample_patients([wins], 200_000, np.random.default_rng(0))
    assert draws.mean() == pytest.approx(2 / 3, abs=0.003)
    assert draws.var() == pytest.approx(np.var([0, 1, 1], ddof=1) / 3, rel=0.02)


def few(n0, n1, n_folds, seed=0):
    """Scores of a probe of noise, five slices a patient."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0] * n0 + [1] * n1, 5)
    patients = np.repeat([f"p{k}" for k in range(n0 + n1)], 5)
    features = rng.normal(size=(len(labels), 8))
    return cross_validate(features, labels, patients, 0.01, n_folds, seed).scores


@pytest.mark.parametrize(("n0", "n1", "n_folds"), [(5, 5, 5), (20, 9, 5), (2, 2, 2)])
def test_one_patient_of_a_class_in_a_fold_has_no_interval(n0, n1, n_folds):
    """Who cannot be drawn otherwise would make it too narrow, down to a width of zero."""
    run = few(n0, n1, n_folds)
    assert np.isnan(statistics.bootstrap_interval([run])).all()
    assert np.isnan(tables.accuracy_interval([run.assign(threshold=0.5)])).all()
    found = statistics.paired_difference([run], [run.assign(score=0.0)])
    assert np.isnan([found.low, found.high]).all() and abs(found.mean) <= 0.5


def test_all_pairs_in_order_have_no_interval_either():
    run = few(9, 9, 3)
    low, high = statistics.bootstrap_interval([run])
    assert 0 <= low < high <= 1
    assert np.isnan(statistics.bootstrap_interval([run.assign(score=run.label)])).all()


def test_difference_of_a_method_with_itself_is_exactly_nothing():
    runs = [make_run(seed=s) for s in range(3)]
    found = statistics.paired_difference(runs, runs)
    assert found.per_seed.tolist() == [0, 0, 0]
    assert {found.mean, found.seed_sd} == {0}
    ends = (found.low, found.high, found.seed_low, found.seed_high, found.low_both, found.high_both)
    assert np.isnan(ends).all()  # nothing varies


def test_an_interval_has_a_width_or_is_not_printed():
    run = make_run(seed=0)
    best, worst = (run.assign(score=score) for score in (run.label, 1 - run.label))
    found = statistics.paired_difference([best], [worst])
    assert found.mean == 1 and np.isnan([found.low, found.high]).all()
    assert np.isnan([*statistics.ends(np.ones(9)), *statistics.ends([np.nan])]).all()
    assert statistics.ends(np.arange(41)) == (1.0, 39.0)
    assert statistics.interval(0.25, 1.0) == " [0.25, 1.00]"
    assert statistics.interval(-0.5, 0.5, "+.1f") == " [-0.5, +0.5]"
    assert statistics.interval(1.0, 1.0) == statistics.interval(np.nan, np.nan) == ""


def test_difference_is_that_of_the_fold_means_and_turns_its_sign():
    a = [make_run(seed=s, shift=1.5) for s in range(3)]
    b = [make_run(seed=s + 9, shift=0.6) for s in range(3)]
    one, two = statistics.paired_difference(a, b), statistics.paired_difference(b, a)
    expected = [fold_mean(x) - fold_mean(y) for x, y in zip(a, b, strict=True)]
    assert one.per_seed == pytest.approx(expected, abs=1e-12)
    assert one.mean == pytest.approx(np.mean(expected), abs=1e-12)
    assert one.seed_sd == pytest.approx(np.std(expected, ddof=1))
    assert (one.low, one.high) == pytest.approx((-two.high, -two.low), abs=1e-12)
    student = stats.t.interval(0.95, 2, np.mean(expected), stats.sem(expected))
    assert (one.seed_low, one.seed_high) == pytest.approx(student)
    assert one.low_both < one.low
    assert one.high_both > one.high


def test_pairing_narrows_when_methods_err_on_the_same_patients():
    noise = 3 * np.random.default_rng(5).normal(size=49)
    a, b = (make_run(shift=2, seed=s, noise=noise) for s in (0, 1))
    found = statistics.paired_difference([a], [b])
    ends = [statistics.bootstrap_interval([run]) for run in (a, b)]
    apart = np.hypot(*[high - low for low, high in ends])
    assert found.high - found.low < 0.75 * apart


def test_one_seed_knows_nothing_of_seeds_and_other_runs_are_refused():
    a, b = make_run(seed=0), make_run(seed=1)
    found = statistics.paired_difference([a], [b])
    assert np.isnan([found.seed_sd, found.seed_low, found.low_both, found.high_both]).all()
    with pytest.raises(ValueError, match="other patients or folds"):
        statistics.paired_difference([a], [b.assign(patient=b.patient + 1)])
    with pytest.raises(ValueError, match="2 and 1 runs"):
        statistics.paired_difference([a, a], [b])


def test_interval_of_patients_and_seeds_is_students_where_patients_do_not_matter():
    """Each run ranks all pairs alike but one fold: no patient variance, only that of seeds."""
    label, fold = np.tile([1, 0], 8), np.repeat(np.arange(4), 4)
    base = pd.DataFrame({"patient": np.arange(16), "label": label, "fold": fold})
    runs = [base.assign(score=np.where(fold < k, label, 0.5)) for k in (1, 2, 4)]
    blank = [base.assign(score=0.5)] * 3
    found = statistics.paired_difference(runs, blank, n=100_000)
    assert found.per_seed.tolist() == [0.125, 0.25, 0.5]
    assert np.isnan([found.low, found.high]).all()
    student = (found.seed_low, found.seed_high)
    assert (found.low_both, found.high_both) == pytest.approx(student, rel=0.05)


def test_interval_of_patients_and_seeds_covers_where_that_of_patients_does_not():
    """Each training seed shifts the signal: patients alone do not know."""
    rng, patients, both, n = np.random.default_rng(0), 0, 0, 150
    for number in range(n):
        noise = rng.normal(size=49)
        runs = [
            [make_run(shift=1 + rng.normal(), noise=noise, seed=7 * number + k) for k in range(3)]
            for _ in range(2)
        ]
        found = statistics.paired_difference(*runs, n=300, seed=number)
        patients += found.low <= 0 <= found.high
        both += found.low_both <= 0 <= found.high_both
    assert patients / n < 0.85
    assert both / n >= 0.93


def test_delong_against_structural_components_in_loops():
    a, b = make_run(seed=0), make_run(seed=3)
    variance = 0
    for fold in range(5):
        x, y = (run[run.fold == fold] for run in (a, b))
        rows = [r for _, r in x.assign(other=y.score).iterrows()]
        psi = [
            [(p.score > q.score) * 1.0 - (p.other > q.other) for q in rows if q.label == 0]
            for p in rows
            if p.label == 1
        ]
        for components in ([np.mean(r) for r in psi], [np.mean(c) for c in zip(*psi, strict=True)]):
            variance += np.var(components, ddof=1) / len(components) / 25
    error, p = statistics.delong([a], [b])
    assert error == pytest.approx(variance**0.5)
    z = (fold_mean(a) - fold_mean(b)) / variance**0.5
    assert p == pytest.approx(2 * stats.norm.cdf(-abs(z)))
    draws = statistics.resample_patients(
        [w[:1] - w[1:] for w in statistics.wins_by_fold([a, b])], 4000, np.random.default_rng(0)
    )
    assert draws.std() == pytest.approx(error, rel=0.1)
    assert statistics.delong([a, a], [b, b]) == pytest.approx((error, p))
    assert statistics.delong([a], [a])[0] == 0
    assert np.isnan(statistics.delong([a], [a])[1])
    few = [make_run(5, 10, seed=s) for s in (0, 1)]  # one positive per fold
    assert np.isnan(statistics.delong(few[:1], few[1:])).all()


@pytest.mark.parametrize(
    ("auc", "positive", "negative", "error"),
    [(0.82, 15, 34, 0.072), (0.91, 15, 34, 0.054), (0.84, 78, 28, 0.038)],
)
def test_hanley_mcneil_of_the_papers_cells(auc, positive, negative, error):
    assert statistics.hanley_mcneil(auc, positive, negative) == pytest.approx(error, abs=5e-4)


def test_hanley_mcneil_of_chance_is_close_to_mann_whitneys():
    exact = ((15 + 34 + 1) / (12 * 15 * 34)) ** 0.5
    assert statistics.hanley_mcneil(0.5, 15, 34) == pytest.approx(exact, rel=1e-12)
    assert statistics.hanley_mcneil(1.0, 15, 34) == 0


def test_the_data_set_alone_reaches_an_auc_but_tells_nothing_within():
    """78 of 106 and 15 of 49 positive; the score is the data set's name."""
    labels = np.repeat([1, 0, 1, 0], [78, 28, 15, 34])
    origin = np.repeat(["d1", "d2"], [106, 49])
    found = statistics.stratified_auc(labels, origin == "d1", origin)
    closed = (78 * 34 + 0.5 * (78 * 28 + 15 * 34)) / (93 * 62)
    assert found["pooled"] == pytest.approx(closed, rel=1e-12)
    assert found["pooled"] == pytest.approx(0.694, abs=5e-4)
    assert found["within"] == 0.5
    assert found["between"] == pytest.approx(78 * 34 / (78 * 34 + 15 * 28))


def test_stratified_auc_against_a_loop_over_pairs():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 40), rng.integers(0, 9, 40)
    strata, folds = rng.integers(0, 2, 40), rng.integers(0, 3, 40)
    wins = {"pooled": [], "within": [], "between": []}
    for i in np.flatnonzero(labels == 1):
        for j in np.flatnonzero(labels == 0):
            if folds[i] == folds[j]:
                win = (scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])
                wins["pooled"].append(win)
                wins["within" if strata[i] == strata[j] else "between"].append(win)
    found = statistics.stratified_auc(labels, scores, strata, folds)
    assert found == pytest.approx({k: np.mean(v) for k, v in wins.items()})
    one = statistics.stratified_auc(labels, scores, np.zeros(40))
    assert one["within"] == one["pooled"] == pytest.approx(roc_auc_score(labels, scores))
    assert np.isnan(one["between"])


def test_null_of_the_fold_mean_has_mann_whitneys_variance():
    null = statistics.null_of_fold_mean(15, 34, 5, 40_000, np.random.default_rng(0))
    parts = [(3 + q + 1) / (12 * 3 * q) for q in (7, 7, 7, 7, 6)]
    assert null.mean() == pytest.approx(0.5, abs=0.003)
    assert null.std() == pytest.approx((sum(parts) / 25) ** 0.5, rel=0.02)
    assert null.std() == pytest.approx(0.095, abs=0.0025)
    assert np.quantile(null, [0.025, 0.975]) == pytest.approx([0.32, 0.69], abs=0.012)
    for kind in (np.int8, np.uint8):  # of a column of small numbers
        null = statistics.null_of_fold_mean(kind(100), kind(60), 2, 900, np.random.default_rng(0))
        assert null.mean() == pytest.approx(0.5, abs=0.01)


def make_slices(strength, n_patients=40, seed=0):
    rng = np.random.default_rng(seed)
    labels, patients = np.repeat(np.arange(n_patients) % 2, 2), np.repeat(np.arange(n_patients), 2)
    features = rng.normal(size=(len(labels), 3))
    features[:, 0] += strength * labels
    return features, labels, patients


def test_permutation_null_tells_signal_from_noise():
    rng = np.random.default_rng(0)
    auc, null, p = statistics.permutation_null(*make_slices(3.0), n=12, rng=rng)
    assert auc == cross_validate(*make_slices(3.0)).mean
    assert p == 1 / 13
    assert abs(null.mean() - 0.5) < 0.1  # standard error about .03
    several = [
        statistics.permutation_null(*make_slices(0.0, seed=s), n=4, rng=rng)[2] for s in range(10)
    ]
    assert 0.35 < np.mean(several) < 0.85  # uniform on .2 ... 1: mean .6, standard error .09


def test_a_shuffle_that_ties_with_the_probe_counts_as_reaching_it():
    """A feature that is the same for all: every AUC is one half, and p is 1, not 1 / (1 + n)."""
    _, labels, patients = make_slices(0.0)
    rng = np.random.default_rng(0)
    auc, null, p = statistics.permutation_null(np.ones((80, 1)), labels, patients, n=4, rng=rng)
    assert auc == 0.5 and null.tolist() == [0.5] * 4 and p == 1


def test_permutation_within_data_sets_keeps_what_the_data_set_tells():
    """The feature is the data set, whose class shares are 4:1 and 1:4."""
    labels = np.repeat([1, 0, 1, 0], [24, 6, 6, 24])
    origin = np.repeat([0, 1], 30)
    data = (origin[:, None], labels, np.arange(60))
    rng = np.random.default_rng(0)
    free = statistics.permutation_null(*data, n=10, rng=rng)
    kept = statistics.permutation_null(*data, n=10, rng=rng, strata=origin)
    assert free[0] == pytest.approx(0.8, abs=0.05)
    assert free[1].mean() < 0.65
    assert kept[1].mean() == pytest.approx(0.8, abs=0.05)


def test_variance_split_of_an_additive_table():
    seeds, repeats, folds = np.array([0, 1, 5.0]), np.array([0, 2.0]), np.array([-1, 0, 1.0])
    rows = [
        {"seed": i, "fold_seed": j, "fold": k, "auc": 0.5 + (s + r + f) / 100}
        for i, s in enumerate(seeds)
        for j, r in enumerate(repeats)
        for k, f in enumerate(folds)
    ]
    found = statistics.variance_split(pd.DataFrame(rows))
    expected = {
        k: x.std(ddof=1) / 100
        for k, x in (("seeds", seeds), ("repeats", repeats), ("folds", folds))
    }
    assert found == pytest.approx(expected)
    one = statistics.variance_split(pd.DataFrame(rows).query("seed == 0 and fold_seed == 1"))
    assert np.isnan([one["seeds"], one["repeats"]]).all()
    assert one["folds"] == pytest.approx(0.01)


@pytest.mark.parametrize("column, value", [("score", np.nan), ("label", 2)])
def test_a_patient_without_score_or_class_is_no_tie(column, value):
    run = make_run()
    other = run.assign(**{column: run[column].where(run.patient != 3, value)})
    for judge in (statistics.bootstrap_interval, lambda r: statistics.delong(r, r)):
        with pytest.raises(ValueError, match="0 or 1, and one score each"):
            judge([other])
    with pytest.raises(ValueError, match="2 runs"):
        statistics.delong([run], [run, run])
    with pytest.raises(ValueError, match="fold 0 holds one class: no AUC; take fewer folds"):
        statistics.bootstrap_interval([run[(run.fold > 0) | (run.label == 1)]])
    with pytest.raises(ValueError, match="no run"):
        statistics.bootstrap_interval([])


def test_what_has_no_value_is_refused():
    with pytest.raises(ValueError, match="from 0 to 1"):
        statistics.hanley_mcneil(np.array([0.5, 1.2]), 5, 5)
    with pytest.raises(ValueError, match="too few for 5 folds"):
        statistics.null_of_fold_mean(3, 9, 5, 10, np.random.default_rng(0))
    with pytest.raises(ValueError, match="n=0"):
        statistics.permutation_null([[0]], [0], ["a"], 0, None)


def test_a_patient_twice_or_of_no_data_set_is_refused():
    run = make_run()
    twice = pd.concat([run, run.iloc[:1]], ignore_index=True)
    for call in (statistics.bootstrap_interval, tables.accuracy_interval):
        with pytest.raises(ValueError, match="is there twice"):
            call([twice.assign(threshold=0.5)])
    other = run.iloc[::-1].reset_index(drop=True)
    with pytest.raises(ValueError, match="other patients"):
        tables.accuracy_interval([run.assign(threshold=0.5), other.assign(threshold=0.5)])
    kinds = {"label": float, "fold": "int8", "patient": "category"}  # the same in other types
    assert statistics.paired_difference([run], [run.astype(kinds)]).mean == 0
    for nobody in (None, np.nan):
        strata = np.array(["a", "b"] * len(run), dtype=object)[: len(run)]
        strata[0] = nobody
        with pytest.raises(ValueError, match="1 patients without data set"):
            statistics.stratified_auc(run.label, run.score, strata)
    with pytest.raises(ValueError, match="1 patients without data set"):  # none is called nan
        statistics.stratified_auc([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], ["a", np.nan, "a", "a"])
    with pytest.raises(ValueError, match="1 patients without fold"):
        statistics.stratified_auc([0, 1, 0], [0.3, 0.2, 0.1], ["a"] * 3, [0, np.nan, 0])


def test_shuffles_keep_each_patient_in_one_data_set():
    n = 20
    features, labels = np.random.default_rng(0).normal(size=(n, 2)), np.arange(n) // 2 % 2
    patients = [f"p{k // 2}" for k in range(n)]
    for strata in (np.tile(["ct", "mr"], n // 2), [None, None, *"a" * (n - 2)]):
        with pytest.raises(ValueError, match=r"patient p0: no data set \(strata\), or two"):
            rng = np.random.default_rng(0)
            statistics.permutation_null(features, labels, patients, 2, rng, strata, n_folds=2)


def test_two_at_infinity_are_a_tie():
    scores = [-np.inf, -np.inf, np.log(0.5), np.log(0.25), np.inf, np.inf]
    found = statistics.pairwise_wins([1, 0, 1, 0, 1, 0], scores)
    assert found.tolist() == [[0.5, 0, 0], [1, 1, 0], [1, 1, 0.5]]


def test_a_difference_that_is_the_same_in_every_pair_has_no_p():
    """Thirds do not add up to the last digit."""
    people = make_run()
    right, flat = people.assign(score=people.label * 1.0), people.assign(score=0.5)
    for k in (1, 2, 3, 6, 7):
        error, p = statistics.delong([right] * (k - k // 3) + [flat] * (k // 3), [flat] * k)
        assert error == 0 and np.isnan(p)


def test_shuffles_that_reach_the_same_auc_count_in_any_order_of_the_folds():
    found = 0
    for seed in range(3):
        rng, patients = np.random.default_rng(seed), [f"p{i:02d}" for i in range(14)]
        given = rng.normal(size=(14, 2)), np.arange(14) % 2, patients, 60
        auc, null, p = statistics.permutation_null(*given, np.random.default_rng(1), n_folds=2)
        assert p == (1 + (null > auc - 1e-9).sum()) / 61
        found += (np.isclose(null, auc) & (null < auc)).sum()
    assert found  # else nothing was asked


def test_error_of_an_auc_in_small_types():
    expected = statistics.hanley_mcneil(0.9, 78, 28)
    for kind in (np.int8, np.uint8, np.int16):
        assert statistics.hanley_mcneil(0.9, kind(78), kind(28)) == expected
    assert statistics.hanley_mcneil(np.float16(0.9), 78, 28) == pytest.approx(expected, rel=1e-3)
    column = pd.Series([0.9, 0.9], ["a", "b"])
    assert statistics.hanley_mcneil(column, 78, 28)["b"] == expected
