"""Tables of the reference experiment: what each encoder is worth on patients whom no fold holds.

All come from files that ``committed.py`` keeps: one score per run and patient, one row per run and
judged step, one per run and drawn study.
"""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from wspnb.files import read_csv, read_json
from wspnb.results import statistics, tables

NORMAL = 1.96  # reach of 95 % in standard errors
PARTS = {
    "population": ["patient"],
    "curve": ["step"],
    "studies": ["study", "auc_folds", "auc_rest"],
}


def read(folder: Path) -> dict[str, pd.DataFrame]:
    """The :data:`PARTS` of a folder by name, with each run's name, method and seed; and ``runs``,
    one row per run with ceiling, depth_r2, loss, verdict, device and, if not the default, phantom.

    Raises:
        FileNotFoundError: if the folder holds no reference runs.
        ValueError: if a run has no scores.
    """
    if not (folder / "population.csv.gz").exists():
        raise FileNotFoundError(f"{folder}: no population.csv.gz: no reference runs were kept here")
    facts = read_json(folder / "runs.json")["runs"]
    runs = pd.DataFrame.from_dict(facts, orient="index").rename_axis("run").reset_index()
    names = ["run", "name", "method", "seed"]
    columns = [*names, "ceiling", "depth_r2", "loss", "verdict", "device", "phantom"]
    found = {"runs": runs.reindex(columns=columns)}
    for part, columns in PARTS.items():
        file = folder / f"{part}.csv.gz"  # runs that drew no studies have none
        table = read_csv(file) if file.exists() else pd.DataFrame(columns=["run", *columns])
        if part == "population" and (lost := sorted(set(runs.run) - set(table.run))):
            raise ValueError(f"{folder}: no scores of {', '.join(lost)}, which runs.json names")
        found[part] = runs[names].merge(table, on="run")
    return found


def scores_by_name(found: dict[str, pd.DataFrame]) -> dict[str, dict[int, pd.DataFrame]]:
    """Scores of the population of each name, by seed; all in one fold, as no fold was fitted."""
    people = found["population"].assign(fold=0).sort_values("patient")
    scores = {name: {} for name in sorted(people.name.unique(), key=tables.place)}
    for (name, seed), part in people.groupby(["name", "seed"]):
        own = part[["patient", "label", "fold", "score"]]
        scores[name][seed] = own.reset_index(drop=True)
    return scores


def population_table(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A row per name: seeds, AUC on the population (mean over seeds, SD over seeds, 95 % interval
    over patients by DeLong's error), the ceiling (probe fitted on four fifths of the population),
    depth R2 and loss at the end, and the verdict on the training."""
    facts, rows = found["runs"].set_index(["name", "seed"]), []
    for name, runs in scores_by_name(found).items():
        aucs = [auc(run) for run in runs.values()]
        coin = {seed: run.assign(score=0.0) for seed, run in runs.items()}  # .5 without error
        own = facts.loc[name]
        reach = _reach(own.phantom, runs, coin)
        row = {"name": name, "method": tables.row_label(name), "n_seeds": len(runs)}
        row |= {"auc": np.mean(aucs), "auc_sd": np.std(aucs, ddof=1) if len(aucs) > 1 else np.nan}
        row |= {"low": row["auc"] - reach, "high": np.minimum(1, row["auc"] + reach)}
        row |= {key: own[key].astype(float).mean() for key in ("ceiling", "depth_r2", "loss")}
        verdicts = own.verdict.dropna().value_counts()
        row["verdict"] = ", ".join(f"{v} {n}/{len(own)}" for v, n in verdicts.items())
        rows.append(row)
    return pd.DataFrame(rows)


def difference_table(found: dict[str, pd.DataFrame], pairs: list[tuple[str, str]]) -> pd.DataFrame:
    """First minus second of each pair on the population, over the seeds that both have.

    Returns:
        A row per pair: mean, 95 % interval over patients (DeLong's), and over patients and seeds
        together (squares of both reaches added, the seeds' by Student's t; NaN for one seed). Where
        each seed has a phantom of its own, the spread over seeds holds that of patients already,
        and the second interval is the wider for it.
    """
    scores, rows = scores_by_name(found), []
    phantoms = found["runs"].set_index(["name", "seed"]).phantom
    for first, second in pairs:
        seeds = sorted(set(scores.get(first, ())) & set(scores.get(second, ())))
        if not seeds:
            continue
        one, two = ({seed: scores[name][seed] for seed in seeds} for name in (first, second))
        each = np.array([auc(one[seed]) - auc(two[seed]) for seed in seeds])
        reach, mean = _reach(phantoms.loc[first], one, two), each.mean()
        row = {"first": first, "second": second, "n_seeds": len(seeds), "difference": mean}
        row |= {"low": mean - reach, "high": mean + reach}
        own = student.ppf(0.975, max(len(each) - 1, 1)) * pd.Series(each).sem()
        both = np.hypot(reach, own)
        rows.append(row | {"low_both": mean - both, "high_both": mean + both})
    columns = ["first", "second", "n_seeds", "difference", "low", "high", "low_both", "high_both"]
    return pd.DataFrame(rows, columns=columns)


def study_table(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """How often a study of D1's size ranks two methods against their order on all patients.

    The studies are drawn from the population, the same for all methods; what a study reports is
    the mean of its five folds. Order and difference of two methods are those of ``auc_rest``, the
    probes of all studies on the patients that these have not seen, averaged.

    Returns:
        A row per pair of names and no seed: better, worse, difference (of ``auc_rest``), spread (SD
        over studies of the reported difference), wrong (share of studies and seeds with the other
        order), studies.
    """
    columns = ["auc_folds", "auc_rest"]
    reported = found["studies"].set_index(["name", "seed", "study"])[columns]
    phantoms = found["runs"].set_index(["seed", "name"]).phantom.map(str).unstack()
    rows = []
    for one, two in combinations(sorted(reported.index.unique("name"), key=tables.place), 2):
        gap = (reported.loc[one] - reported.loc[two]).dropna()
        both = phantoms[[one, two]].dropna()
        if not len(gap) or (both[one] != both[two]).any():  # not the same patients
            continue
        truth = gap.auc_rest.mean()
        better, worse, gap = (one, two, gap) if truth >= 0 else (two, one, -gap)
        row = {"better": better, "worse": worse, "difference": abs(truth)}
        row |= {"spread": gap.auc_folds.std(ddof=1), "wrong": (gap.auc_folds < 0).mean()}
        rows.append(row | {"studies": len(gap)})
    columns = ["better", "worse", "difference", "spread", "wrong", "studies"]
    return pd.DataFrame(rows, columns=columns)


def all_tables(found: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The published tables by file name: WSP against every method of the paper, a variant against
    WSP and SupCon, WSP against SupCon at each number of patients."""
    names = list(scores_by_name(found))
    pairs = [("wsp", name) for name in names if name in tables.ROWS and name != "wsp"]
    few = [n.removeprefix("wsp") for n in names if n.startswith("wsp_patients")]
    pairs += [(f"wsp{share}", f"supcon{share}") for share in few]
    variants = [n for n in names if n not in tables.ROWS and "_patients" not in n]
    pairs += [(name, base) for name in variants for base in ("wsp", "supcon")]
    curves = found["curve"].drop(columns=["run", "method"])
    return {
        "reference_population": population_table(found).round(4),
        "reference_differences": difference_table(found, pairs).round(4),
        "reference_studies": study_table(found).round(4),
        "reference_curves": curves.sort_values(["name", "seed", "step"]).round(4),
    }


def auc(run: pd.DataFrame) -> float:
    """AUC of one run's scores of the population."""
    return float(roc_auc_score(run.label, run.score))


def _reach(phantom: pd.Series, one: dict[int, pd.DataFrame], two: dict[int, pd.DataFrame]) -> float:
    """Reach of 95 % over patients of the mean difference of runs by seed. Patients of one phantom
    are the same in all its runs, those of two phantoms have nothing in common. NaN where they do
    not vary."""
    phantoms, squares = phantom.map(str), 0.0
    for _, group in phantoms[list(one)].groupby(phantoms):
        runs = [[side[seed] for seed in group.index] for side in (one, two)]
        squares += (len(group) / len(one) * statistics.delong(*runs)[0]) ** 2
    return NORMAL * float(np.sqrt(squares)) or np.nan
