"""What notebook 06 needs tested: reading the runs, differences of all pairs, verdicts on claims."""

from concurrent.futures.process import BrokenProcessPool
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from sklearn.utils.parallel import Parallel, delayed

from wspnb import plots
from wspnb.files import read_csv
from wspnb.folds import sides
from wspnb.probe import cross_validate, read_slices
from wspnb.results import statistics, tables

# Positive and negative patients of each cohort (paper, section 3).
COUNTS = {"d1": (78, 28), "d2": (15, 34), "d1+d2": (93, 62)}


def claims_of(reference: str, sigmas=()) -> dict[str, tuple[list, list]]:
    """The paper's claims as ``{words: (names that should be better, names that should be worse)}``,
    the first one about the method ``reference``; ``sigmas`` are the widths of the paper's study."""
    trained = ["simclr", "byol", "supcon", "depth_aware", "wsp"]
    widths = ["wsp", *(f"wsp_sigma{value}" for value in sigmas)]
    return {
        f"{tables.row_label(reference)} beats every other method": ([reference], list(tables.ROWS)),
        "position adds to the label": (["wsp"], ["supcon"]),
        "the label adds to the position": (["wsp"], ["depth_aware"]),
        "WSP beats Supervised (abstract: +5 % D1, +26 % D2)": (["wsp"], ["supervised"]),
        "every pretraining beats the untrained encoder": (trained, ["random"]),
        "robust to sigma: each beats depth-Aware": (widths, ["depth_aware"]),
    }


def read_probes(
    folder: Path, backbone: str, seeds: list, reference: str, settings: dict
) -> tuple[dict, dict]:
    """Finished probes of the methods and of their variants, whose name is not their method.

    The first three as for :func:`wspnb.results.tables.read_runs`; the method ``reference`` must be
    there, every probe made with ``settings`` (C, n_folds, fold_seed). Returns :func:`by_cohort`'s.

    Raises:
        FileNotFoundError: if the reference or anything to compare it with is missing.
        ValueError: if a probe was made with other settings.
    """
    runs = tables.read_runs(folder, seeds, [backbone])
    for run in runs:
        if other := {k: run[k] for k, v in settings.items() if run.get(k, v) != v}:
            found = f"{run['folder']} says {other}, asked for {settings}"
            raise ValueError(f"{found}: use the same in 03 and 06{tables.OLD}")
    for run in runs:
        tables.check_scores(run)
        if run.get("data") != runs[0].get("data"):
            pair = f"{run['folder'].name} and {runs[0]['folder'].name}"
            raise ValueError(f"{pair} were probed on different {tables.DATA}")
    probes, scores = by_cohort(runs)
    found = sorted({name for name, _ in probes})
    if reference not in found or len(found) < 2:
        raise FileNotFoundError(
            f"{folder}: found {found or 'nothing'} of backbone {backbone}, seeds {seeds or 'all'}; "
            f"run 03_linear_probe for {reference!r} and at least one other method first"
        )
    return probes, scores


def ending(backbone: str, runs: list[dict]) -> str:
    """End of the names of an audit's files; TinyNet's have none, where both of them are there the
    padded one has."""
    there = {run["backbone"] for run in runs}
    plain = backbone == "tiny" or (backbone == "tiny_padded" and "tiny" not in there)
    return "" if plain else f"_{backbone}"


def by_cohort(runs: list[dict]) -> tuple[dict, dict]:
    """Runs by (name, seed), and their scores as ``{cohort: {(name, seed): score table}}``, which is
    what ``scores`` is everywhere below."""
    scores = {}
    for run in runs:
        for cohort in run["results"]:
            part = tables.cohort_scores(run, cohort)
            scores.setdefault(cohort, {})[run["name"], run["seed"]] = part
    return {(run["name"], run["seed"]): run for run in runs}, scores


def variant_pairs(probes: dict, names: list[str], reference: str) -> list[tuple[str, str]]:
    """Each run that is none of the paper's methods (``names``), and what it is compared with: the
    method it changes one setting of or, for a kernel or loss of its own, the reference."""
    pairs = {name: run["method"] for (name, _), run in probes.items() if name not in names}
    return [(name, method if method in names else reference) for name, method in pairs.items()]


def differences(scores: dict, pairs) -> pd.DataFrame:
    """:func:`~wspnb.results.statistics.paired_difference` of pairs of runs, over common seeds.

    Args:
        scores: of :func:`by_cohort`.
        pairs: ``(name, name)`` of the one that should be better and the other; pairs without a
            common seed, or of a name with itself, are left out.

    Returns:
        A row per cohort and pair: cohort, better, worse, seeds, the fields of
        :class:`~wspnb.results.statistics.Difference`, and by DeLong's formula p (of the patients)
        and r, the correlation of the two AUCs over draws of the patients.
    """
    rows = []
    for cohort, found in scores.items():
        for a, b in dict.fromkeys(pairs):
            common = [seed for name, seed in found if name == a and (b, seed) in found]
            if common and a != b:
                sides = [[found[name, seed] for seed in common] for name in (a, b)]
                row = {"cohort": cohort, "better": a, "worse": b, "seeds": len(common)}
                row |= statistics.paired_difference(*sides)._asdict()
                error, p = statistics.delong(*sides)
                # Against constant scores the error of the difference is that of the AUC itself.
                blank = [run.assign(score=0.0) for run in sides[0]]
                one, two = (statistics.delong(side, blank)[0] for side in sides)
                r = (one**2 + two**2 - error**2) / (2 * one * two) if one * two else np.nan
                rows.append(row | {"p": p, "r": r})
    columns = ["cohort", "better", "worse", "seeds", *statistics.Difference._fields, "p", "r"]
    return pd.DataFrame(rows, columns=columns)


def named(gaps: pd.DataFrame, better: str, worse: str) -> pd.DataFrame:
    """:func:`differences` as it is kept in a file, with names for its two sides."""
    gaps = gaps.drop(columns="per_seed", errors="ignore").reset_index(drop=True)
    return gaps.rename(columns={"better": better, "worse": worse})


def origins(scores: dict, home: pd.Series) -> pd.DataFrame:
    """AUC of pairs of patients within one data set and across, in the joined cohorts, mean over the
    seeds; ``home`` is the cohort of each patient, by patient. Joined cohorts of which one is not
    there are left out."""
    rows = [
        {"cohort": cohort, "method": name}
        | statistics.stratified_auc(run.label, run.score, run.patient.map(home), run.fold)
        for cohort in scores
        if "+" in cohort and {*cohort.split("+")} <= {*home}
        for (name, _), run in scores[cohort].items()
    ]
    means = pd.DataFrame(rows, columns=["cohort", "method", "pooled", "within", "between"])
    return means.groupby(["cohort", "method"], sort=False).mean().reset_index()


def spread(deals: pd.DataFrame) -> pd.DataFrame:
    """Mean AUC of each method and cohort over :func:`repeat_folds`, and where it varies."""
    rows = [
        {"method": method, "cohort": cohort, "auc": part.auc.mean()}
        | statistics.variance_split(part)
        for (method, cohort), part in deals.groupby(["method", "cohort"], sort=False)
    ]
    return pd.DataFrame(rows)


def verdicts(scores: dict, reference: str, printed: Path, backbone: str) -> pd.DataFrame:
    """:func:`judge` on the claims of ``reference`` and the paper, from the tables that it printed
    (folder ``printed``) and from the scores of a run with this backbone."""
    table1, table3 = read_printed(printed, COUNTS)
    name = tables.printed_backbone(tables.BACKBONES[backbone])
    rows = table1[table1.backbone == name]
    rows = rows.set_index(rows.method.map({label: key for key, label in tables.ROWS.items()}))
    if name == "TinyNet":  # the backbone of the paper's study of sigma
        rows = pd.concat([rows, table3.set_index("wsp_sigma" + table3.sigma.astype(str))])
    needs = claims_of(reference, table3.sigma)
    wanted = [(a, b) for better, worse in needs.values() for a in better for b in worse]
    gaps = differences(scores, wanted)
    ends = {end: gaps[f"{end}_both"].fillna(gaps[end]) for end in ("low", "high")}
    sources = {"paper": printed_differences(rows, COUNTS), "run": gaps.assign(**ends)}
    return judge(needs, sources, dict.fromkeys([*COUNTS, *scores]), tables.ROWS)


def printed_differences(printed: pd.DataFrame, counts: dict, correlation: float = 0):
    """Differences of all ordered pairs of rows of a printed table, with two standard errors.

    Args:
        printed: index name, one column of AUCs per cohort.
        counts: ``{cohort: (n_positive, n_negative)}``.
        correlation: of two AUCs on the same patients; 0 treats them as independent.

    Returns:
        Columns cohort, better, worse, mean, low, high.
    """
    rows = []
    for cohort, sizes in counts.items():
        auc, error = printed[cohort], statistics.hanley_mcneil(printed[cohort], *sizes)
        for a, b in permutations(auc.index, 2):
            variance = error[a] ** 2 + error[b] ** 2 - 2 * correlation * error[a] * error[b]
            mean, half = auc[a] - auc[b], 2 * variance**0.5
            rows.append((cohort, a, b, mean, mean - half, mean + half))
    return pd.DataFrame(rows, columns=["cohort", "better", "worse", "mean", "low", "high"])


def repeat_folds(
    probes: dict, cohorts, fold_seeds, C: float, n_folds: int, workers: int = 1
) -> pd.DataFrame:
    """The linear probe again from cached features, with other deals of the patients to folds.

    Args:
        probes: as :func:`read_probes` returns them; those without cached features are left out.
        cohorts: entries of ``evaluate``; one with ">" has no folds and is left out.
        fold_seeds: one deal each.
        C, n_folds: as :func:`wspnb.probe.cross_validate`.
        workers: processes that share runs and cohorts; the numbers do not depend on it.

    Returns:
        One row per fold: cohort, method, seed, fold_seed, fold, auc.
    """

    def deals(name, seed, cohort):
        features, part = read_features(probes[name, seed]["folder"], cohort)
        row, rows = {"cohort": cohort, "method": name, "seed": seed}, []
        for deal in fold_seeds:
            aucs = cross_validate(features, part.label, part.patient, C, n_folds, deal).fold_auc
            rows += [row | {"fold_seed": deal, "fold": n, "auc": auc} for n, auc in enumerate(aucs)]
        return rows

    cached = [key for key, run in probes.items() if (run["folder"] / "features.npy").exists()]
    folded = [cohort for cohort in cohorts if ">" not in cohort]
    jobs = [delayed(deals)(*key, cohort) for key in cached for cohort in folded]
    columns = ["cohort", "method", "seed", "fold_seed", "fold", "auc"]
    try:
        rows = [row for rows in Parallel(n_jobs=workers)(jobs) for row in rows]
    except BrokenProcessPool as error:
        found = "a worker died, perhaps for want of memory"
        raise RuntimeError(f"{found}: run again with deal_workers 1") from error
    return pd.DataFrame(rows, columns=columns)


def read_features(folder: Path, cohort: str) -> tuple[np.ndarray, pd.DataFrame]:
    """Cached features ``(n_slices, d)`` of a cohort and the row-aligned slices."""
    slices = read_slices(folder)
    keep = slices.cohort.isin(sides(cohort)[1]).to_numpy()
    return tables.read_features(folder)[keep], slices[keep]


def read_printed(folder: Path, cohorts) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables 1 and 3 of the paper, their columns of AUCs named by cohort (d1+d2 is auc_d12)."""
    columns = {f"auc_{cohort.replace('+d', '')}": cohort for cohort in cohorts}
    names = ("table1_auc.csv", "table3_sigma.csv")
    return tuple(read_csv(folder / name).rename(columns=columns) for name in names)


def verdict(rows: pd.DataFrame) -> str:
    """Whether differences (columns mean, low, high) bear the claim that all of them are above zero;
    of too few patients for an interval, or for one that has a width, nothing can be told. Where
    their column seeds holds a 1, the support is of one seed."""
    if not len(rows):
        return "not there"
    if not (rows.high > rows.low).all():
        return "cannot be told"
    if (rows["mean"] <= 0).any():
        return "not supported"
    if not (rows.low > 0).all():
        return "cannot be told"
    return "supported (1 seed)" if "seeds" in rows and rows.seeds.min() == 1 else "supported"


def evidence(rows: pd.DataFrame, labels: dict) -> str:
    """The least of the differences in words, empty if there is none."""
    if not len(rows):
        return ""
    least = rows.loc[rows["mean"].idxmin()]
    sides = " − ".join(labels.get(name, name) for name in (least.better, least.worse))
    least_of = f", least of {len(rows)}" if len(rows) > 1 else ""
    ends = f"[{least.low:+.2f}, {least.high:+.2f}]" if least.low == least.low else "(no interval)"
    return f"{sides} = {least['mean']:+.2f} {ends}{least_of}"


def judge(claims: dict, sources: dict, cohorts, labels: dict) -> pd.DataFrame:
    """Verdict and evidence for each claim (of :func:`claims_of`) and cohort, in the order wanted,
    from each source of differences: ``{name: table with cohort, better, worse, mean, low, high}``.
    Columns claim, cohort, and for each source its verdict (under its name) and evidence with the
    methods' printed names."""
    rows = []
    for (claim, (better, worse)), cohort in product(claims.items(), cohorts):
        row = {"claim": claim, "cohort": cohort}
        for source, gaps in sources.items():
            own = gaps[gaps.cohort.eq(cohort) & gaps.better.isin(better) & gaps.worse.isin(worse)]
            row |= {source: verdict(own), f"{source} evidence": evidence(own, labels)}
        rows.append(row)
    return pd.DataFrame(rows)


def sentences(claims: pd.DataFrame, sources) -> str:
    """The table of :func:`judge` as lines to read; what no source has is left out."""
    lines = []
    for row in claims.to_dict("records"):
        known = [source for source in sources if row[f"{source} evidence"]]
        lines += [f"{row['claim']}, {row['cohort']}"] if known else []
        lines += [f"    {s + ':':7}{row[s]:18} {row[f'{s} evidence']}" for s in known]
    return "\n".join(lines)


def draw_differences(axis: Axes, rows: pd.DataFrame, order: list[str]) -> None:
    """Thick bar: interval of patients; thin line: with seeds; small dots: single seeds."""
    for row in rows.itertuples():
        y, colour = order.index(row.worse), plots.PALETTE.get(row.worse, "black")
        axis.plot([row.low_both, row.high_both], [y, y], color=colour, lw=1)
        axis.plot([row.low, row.high], [y, y], color=colour, lw=5, alpha=0.5, solid_capstyle="butt")
        axis.plot(row.mean, y, "o", color=colour, mec="black", mew=0.7, zorder=3)
        if row.seeds > 1:
            axis.plot(row.per_seed, [y + 0.28] * row.seeds, ".", ms=4, color=colour)
    axis.axvline(0, color="black", lw=0.8, ls=":")
    axis.set(ylim=(len(order) - 0.4, -0.6), yticks=range(len(order)))
