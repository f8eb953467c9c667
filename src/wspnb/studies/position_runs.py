"""The runs of a study: which there are, which are done, and the table that survives a stop."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from itertools import product
from pathlib import Path

import pandas as pd
from scipy.stats import t as student

from wspnb.files import alone, read_csv, write_csv
from wspnb.phantom.minimal import Minimal, draw_cohort
from wspnb.pretrain import UNTRAINED
from wspnb.results.statistics import interval
from wspnb.results.tables import ROWS, row_label
from wspnb.studies.loop import stamp
from wspnb.studies.position import Settings, run

KEYS = ["point", "seed", "method"]  # the name of a run in the table
TRAINING = {field.name for field in fields(Settings)}
WITH_SIGMA = ("wsp", "depth_aware")


def plan(
    points: dict[str, dict],
    seeds: Sequence[int],
    methods: Sequence[str],
    watched: dict[str, Sequence[int]] | None = None,
) -> list[dict]:
    """All runs of a study, seed by seed, so that a stopped study has whole seeds.

    A run that could not differ from the base is left out: sigma concerns WSP and depth-Aware only,
    and the untrained encoder knows no training.

    Args:
        points: what differs from the base, by the point's name; {} is the base itself.
        seeds: of cohort, weights, batches and views.
        methods: to train; random is the untrained encoder.
        watched: steps after which to judge too, by the point's name.
    """
    jobs = []
    for seed, (point, changes), method in product(seeds, points.items(), methods):
        if set(changes) == {"sigma"} and method not in WITH_SIGMA:
            continue
        if changes and set(changes) <= TRAINING and method in UNTRAINED:
            continue
        job = {"point": point, "seed": seed, "method": method, "changes": changes}
        jobs.append(job | {"watched": tuple((watched or {}).get(point, ()))})
    return jobs


def point_name(changes: dict) -> str:
    """Name of a point in the table: what differs from the base, e.g. ``shift=2.0``, or base."""
    return " ".join(f"{name}={value}" for name, value in changes.items()) or "base"


def run_missing(
    path: Path, jobs: Sequence[dict], settings: Settings, progress: Callable | None = None
) -> pd.DataFrame:
    """Do the runs of ``jobs`` (of :func:`plan`) that the CSV at ``path`` lacks, adding each as it
    ends. ``settings`` are those of the base point, ``progress`` wraps the jobs (``tqdm``) or None.

    Returns:
        The table: a row per run and judgement, with :data:`KEYS`, definition, code, step, results.

    Raises:
        ValueError: if a run is there with another definition, some are to be added to those of
            other code, or a parameter is unknown.
    """
    table, drawn, cohort = read_table(path), None, None
    now = stamp("phantom/minimal", "studies/position")
    for job in progress(jobs) if progress else jobs:
        key = {name: job[name] for name in KEYS}
        changes, own, definition = define(job["changes"], settings)
        there = table[(table[KEYS] == list(key.values())).all(axis=1)]
        if other := set(there.definition) - {definition}:  # mixing the two would compare nothing
            raise ValueError(
                f"{path}: run {key} has definition {other.pop()}, now it is {definition}: "
                "delete the file or choose another run_dir"
            )
        steps = {step for step in job["watched"] if step <= own.n_steps}
        if len(there) and (steps <= {*there.step} or job["method"] in UNTRAINED):
            continue
        if "code" in table and (other := {*table.code.dropna()} - {now}):
            raise ValueError(
                f"{path}: runs there are of other code ({other.pop()}, now {now}): delete the file "
                "or choose another run_dir"
            )
        table = table.drop(there.index)  # steps that it was not judged at are asked for
        if drawn != (changes, job["seed"]):
            drawn = (changes, job["seed"])
            cohort = draw_cohort(Minimal(**changes, seed=job["seed"]))
        rows = run(cohort, job["method"], job["seed"], own, job["watched"])
        known = key | {"definition": definition, "code": now}
        table = append_rows(path, table, [known | row for row in rows])
    return table


def define(point: dict, settings: Settings) -> tuple[dict, Settings, str]:
    """Split a point's changes into those of the cohort and of the training; and eight characters
    that change with the definition.

    Raises:
        ValueError: if a name belongs to neither.
    """
    training = {name: value for name, value in point.items() if name in TRAINING}
    changes = {name: value for name, value in point.items() if name not in TRAINING}
    if unknown := set(changes) - set(Minimal.__dataclass_fields__):
        raise ValueError(f"point {point}: {sorted(unknown)} is no parameter of a study")
    settings = replace(settings, **training)
    text = json.dumps([Minimal(**changes), settings], sort_keys=True, default=asdict)
    return changes, settings, hashlib.sha256(text.encode()).hexdigest()[:8]


def read_table(path: Path) -> pd.DataFrame:
    """The rows of finished runs; empty if there is no table yet."""
    if not path.exists():
        return pd.DataFrame(columns=[*KEYS, "definition", "step"])
    kinds = {"definition": str, "code": str, "collapsed": bool}  # also FALSE of a spreadsheet
    return read_csv(path, dtype=kinds)


def append_rows(path: Path, table: pd.DataFrame, rows: list[dict]) -> pd.DataFrame:
    """The table with a finished run's rows, written whole under a temporary name, then renamed.
    What another process has added meanwhile stays."""
    try:
        with alone(path):
            now = read_table(path)
            own = pd.DataFrame(rows, columns=None if len(rows) else now.columns)
            here = {tuple(key) for part in (table, own) for key in part[KEYS].to_numpy()}
            meanwhile = [tuple(key) not in here for key in now[KEYS].to_numpy()]
            parts = [part for part in (table, now[meanwhile], own) if len(part)]
            whole = pd.concat(parts, ignore_index=True).round(6)
            write_csv(path, whole)
            return whole
    except BlockingIOError:  # another one writes: it takes a moment
        time.sleep(0.1)
        return append_rows(path, table, rows)


def paired_difference(first: pd.Series, second: pd.Series) -> dict:
    """Mean difference over the seeds that both have (their index), with Student's 95 % interval:
    mean, low, high, n; low and high are NaN for fewer than two seeds, or where all are alike."""
    gap = (first - second).dropna()
    sd = gap.std(ddof=1)
    sd = sd if sd > 1e-9 else float("nan")
    half = student.ppf(0.975, len(gap) - 1) * sd / max(len(gap), 1) ** 0.5
    mean = gap.mean()
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": len(gap)}


def last_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The judgement at the end of each run, once, also where tables that overlap were joined."""
    return table[table.step == table.groupby(KEYS).step.transform("max")].drop_duplicates(KEYS)


def differences(
    table: pd.DataFrame,
    first: str = "wsp",
    others: Sequence[str] = ("supcon", "depth_aware", "simclr"),
) -> pd.DataFrame:
    """AUC on the population of ``first`` minus each other method at the end, paired by seed.

    The base's runs of a method without sigma stand for every sigma. A point that ``first`` has not
    reached yet is left out.

    Returns:
        A row per point and other method: mean, low, high, n (see :func:`paired_difference`)
        and collapsed, the number of pairs in which either run has collapsed.
    """
    runs = last_rows(table).set_index(["point", "method", "seed"]).sort_index()
    rows = []
    have = set(runs.index.droplevel("seed"))
    for point in table.point.unique():
        if (point, first) not in have or ("base", first) not in have:
            continue  # a study that was stopped
        for other in others:
            alone = point.startswith("sigma=") and other not in WITH_SIGMA
            if (where := "base" if alone else point, other) not in have:
                continue
            own, theirs = runs.loc[point, first], runs.loc[where, other]
            pairs = own.merge(theirs, left_index=True, right_index=True, suffixes=("", "_other"))
            bad = pairs[["collapsed", "collapsed_other"]].astype(bool).any(axis=1).sum()
            found = paired_difference(own.auc_population, theirs.auc_population)
            rows.append({"point": point, "other": other, **found, "collapsed": int(bad)})
    return pd.DataFrame(rows, columns=["point", "other", "mean", "low", "high", "n", "collapsed"])


def findings(table: pd.DataFrame) -> list[str]:
    """What the differences of a table say, in words: one sentence for each other method.

    A point is named where its interval leaves out zero; the last sentence is about the runs whose
    loss ended at the line of equal embeddings.
    """
    gaps, ends, lines = differences(table), last_rows(table), []
    for other, rows in gaps.groupby("other", sort=False):
        if not len(base := rows[rows.point == "base"]):
            continue
        base = base.iloc[0]
        ends_of = interval(base.low, base.high, "+.2f")
        text, named = f"WSP minus {ROWS[other]}: {base['mean']:+.2f}{ends_of} at the base", 0
        for word, part in (("ahead", rows[rows.low > 0]), ("behind", rows[rows.high < 0])):
            points = [f"{p} ({m:+.2f})" for p, m in zip(part.point, part["mean"], strict=True)]
            if len(points) > 8:
                ends_of = f"{part['mean'].min():+.2f} to {part['mean'].max():+.2f}"
                points = [f"{len(points)} points ({ends_of})"]
            text += f"; {word} at {', '.join(points)}" if points else ""
            named += len(part)
        lines.append(f"{text}; not told at {len(rows) - named} of {len(rows)} points.")
    for method, rows in ends[ends.collapsed.astype(bool)].groupby("method", sort=False):
        total = (ends.method == method).sum()
        before = ends.auc_population[ends.method == "random"].mean()
        lines.append(
            f"{ROWS[method]} is marked in {len(rows)} of {total} runs; their mean AUC is "
            f"{rows.auc_population.mean():.2f}, that of untrained encoders {before:.2f}."
        )
    return lines


def over_points(table: pd.DataFrame, value: str = "auc_population") -> pd.DataFrame:
    """Mean of a judged value over the points at the end of training, ``(seeds, methods)``; what no
    training changes is that of the base. NaN where a seed lacks points, as in a stopped study."""
    ends = last_rows(table)
    own = ends[~ends.method.isin(UNTRAINED) | (ends.point == "base")]
    cells = own.groupby(["seed", "method"])[value]
    whole = cells.size() == own.point.nunique()
    return cells.mean().where(whole | whole.index.isin(UNTRAINED, "method")).unstack()


def choose_rows(table: pd.DataFrame) -> list[str]:
    """The rule of notebook 08, from runs on the seeds that choose and no other: of the methods that
    read depth as well as WSP, less .01, the two with the highest mean AUC on the population (*paper
    silent*); WSP, SupCon and depth-Aware are judged in any case."""
    auc, depth = over_points(table).mean(), over_points(table, "depth_r2").mean()
    able = depth.index[depth >= depth["wsp"] - 0.01]
    able = able.difference(["wsp", "supcon", "depth_aware", *UNTRAINED])
    return auc[able].nlargest(2).index.tolist()


def compare_rows(table: pd.DataFrame, chosen) -> pd.DataFrame:
    """Each chosen method, and WSP, minus WSP and SupCon over the seeds of a table, paired: row,
    minus, mean, low, high, n."""
    auc = over_points(table)
    pairs = [(a, b) for a in (*chosen, "wsp") for b in ("wsp", "supcon") if a != b]
    found = [paired_difference(auc[a], auc[b]) for a, b in pairs]
    return pd.DataFrame(pairs, columns=["row", "minus"]).join(pd.DataFrame(found))


def recommend(table: pd.DataFrame, found: pd.DataFrame) -> list[str]:
    """What runs on the seeds that judge, and :func:`compare_rows` of them, say in words of the
    chosen rows, and which is recommended."""
    depth, lines, best = over_points(table, "depth_r2").mean(), [], []
    for name, own in found.groupby("row", sort=False):
        words = []
        for gap in own.itertuples():
            side = "above" if gap.low > 0 else "below" if gap.high < 0 else "not told from"
            found = f"{gap.mean:+.3f}{interval(gap.low, gap.high, '+.3f')}"
            words.append(f"{side} {row_label(gap.minus)} ({found})")
        lines.append(f"{row_label(name)}: {', '.join(words)}; R2 of depth {depth[name]:.2f}.")
        best += [name] if (own.low > 0).all() else []
    if not best:
        return [*lines, "None of them is above WSP and SupCon: none is recommended."]
    first = [name for name in best if name != "wsp"]
    words = row_label(first[0]) if first else "WSP, as none is told to be above it"
    return [*lines, f"Recommended where position and class both count: {words}."]
