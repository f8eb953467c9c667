"""From finished probes to the paper's tables."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from wspnb.data.store import digest_file
from wspnb.encoders import BACKBONE, ENCODERS
from wspnb.files import own_files, read_csv, read_json
from wspnb.folds import check_judged
from wspnb.methods import check_name, parse, split_name
from wspnb.pretrain import run_name
from wspnb.probe import fold_auc, fold_balanced_accuracy, read_probe
from wspnb.results.statistics import bootstrap_interval, draw_again, ends, wins_by_fold

RUN = r"[\w.]+-\w+-seed\d+"  # name of a run's folder
# Names of runs and backbones as the paper's tables print them, in its order.
ROWS = {
    "supervised": "Supervised",
    "random": "None (random)",
    "imagenet": "ImageNet",
    "simclr": "SimCLR",
    "byol": "BYOL",
    "supcon": "SupCon",
    "depth_aware": "depth-Aware",
    "wsp": "WSP",
} | {name: row.label for name, row in ENCODERS.items()}
# Runs of params/NAME.yaml: as the tables print them, and the settings that the file changes.
RELEASED = {"sigma", "normalise", "convention", "severe_from", "translate"}
SWITCHES = {
    "as_released": ("WSP, as released", RELEASED),
    "full_precision": ("WSP, float32", {"precision"}),
}
BACKBONES = {"tiny": "TinyNet", "tiny_padded": "TinyNet (padded)", "resnet18": "ResNet-18"}
BACKBONES[BACKBONE] = "ViT"


def read_runs(run_dir: Path, seeds=(), backbones=()) -> list[dict]:
    """Finished probes of a folder, each with its ``folder``, ``scores`` (one row per patient and
    cohort) and ``results`` by cohort; ordered as in the paper, variants last.

    Args:
        run_dir: folder with ``probe/<name>-<backbone>-seed<seed>/``, or one of ``figures/runs/``,
            where :func:`wspnb.results.committed.pack` keeps the same in two files.
        seeds, backbones: those to keep, empty for all found.

    Raises:
        FileNotFoundError: if no probe is finished.
        ValueError: if a seed asked for was not probed, or a file cannot be read; names it.
    """
    runs = [
        run | {"folder": folder, "scores": scores, "results": _by_cohort(run["results"])}
        for folder, run, scores in _finished(run_dir)
    ]
    there = sorted({run["backbone"] for run in runs})
    runs = [run for run in runs if not backbones or run["backbone"] in backbones]
    if not runs:
        of = f" of backbones {[*backbones]}, only of {there}" if there else ""
        raise FileNotFoundError(
            f"{run_dir / 'probe'}: no finished probe{of}, run 03_linear_probe first"
        )
    found = {run["seed"] for run in runs}
    if absent := sorted(set(seeds) - found):
        raise ValueError(f"seeds {absent} were not probed; found {sorted(found)}")
    runs = [run for run in runs if not seeds or run["seed"] in seeds]
    if unknown := [run["folder"].name for run in runs if run["backbone"] not in BACKBONES]:
        raise ValueError(f"{unknown[0]}: no backbone of {', '.join(BACKBONES)}: move it elsewhere")
    return sorted(runs, key=order)


def order(run: dict) -> tuple:
    """Where a run stands among the others: by encoder, as in the paper, variants last, by seed."""
    return list(BACKBONES).index(run["backbone"]), *place(run["name"]), run["seed"]


def place(name: str) -> tuple[int, str]:
    """Where a run of this name stands in a table: the paper's order, then variants by name."""
    return list(ROWS).index(name) if name in ROWS else len(ROWS), name


def _by_cohort(results: list[dict]) -> dict[str, dict]:
    """Rows of results.json by their cohort; what JSON cannot say is NaN again."""
    rows = ({k: np.nan if v is None else v for k, v in row.items()} for row in results)
    return {row["cohort"]: row for row in rows}


def _finished(run_dir: Path):
    """Folder, content of results.json and scores of each finished or committed probe."""
    if (run_dir / "runs.json").exists():
        parts = dict(list(read_csv(run_dir / "scores.csv.gz").groupby("run")))
        for name, run in read_json(run_dir / "runs.json")["runs"].items():
            if name not in parts:
                raise ValueError(f"{run_dir / 'scores.csv.gz'}: no scores of {name}: keep it again")
            part = parts[name].drop(columns="run").reset_index(drop=True)
            yield run_dir / "probe" / name, run, part
    for file in own_files(run_dir / "probe", "*-seed*/results.json"):
        if not re.fullmatch(RUN, file.parent.name):  # a copy, such as "x (1)"
            continue
        try:
            run = read_probe(file.parent)
            scores = read_csv(file.parent / "scores.csv")
            if missing := {"name", "backbone", "seed", "results"} - set(run):
                raise ValueError(f"results.json has no {sorted(missing)}")
            if missing := {"cohort", "patient"} - set(scores):
                raise ValueError(f"scores.csv has no columns {sorted(missing)}, was it saved anew?")
            for column in scores.columns.intersection(["label", "fold", "score", "threshold"]):
                if not pd.api.types.is_numeric_dtype(scores[column]):
                    found = f"text such as {scores[column].dropna().iloc[0]!r}"
                    raise ValueError(f"scores.csv has {found} in {column}, was it saved anew?")
            named = scores[scores.patient.fillna("") != ""]  # no blank rows of a spreadsheet
            if (twice := named.duplicated(["cohort", "patient"])).any():
                who = named.patient[twice].iloc[0]
                raise ValueError(f"scores.csv has patient {who} twice in a cohort")
        except (ValueError, OSError) as error:
            again = "" if "run 03" in str(error) else "; run 03 again"
            raise ValueError(f"{file.parent}: not a readable probe ({error}){again}") from None
        if file.parent.name == run_name(run["name"], run["backbone"], run["seed"]):  # else a copy
            yield file.parent, run, scores


def grouped(runs: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """Runs of one row of a table, the seeds of a (backbone, name), in the order given.

    Raises:
        ValueError: if they were judged on several cohorts; names a run.
    """
    rows = {}
    for run in runs:
        if {*(own := list(run["results"]))} != {*(other := list(runs[0]["results"]))}:
            found = f"{run['folder'].name} was judged on {own}, {runs[0]['folder'].name} on {other}"
            raise ValueError(f"{found}{OLD}")
        rows.setdefault((run["backbone"], run["name"]), []).append(run)
    return rows


def cohort_scores(run: dict, cohort: str) -> pd.DataFrame:
    """Scores of the patients of one cohort, from one run, which their ``attrs`` name."""
    own = run["scores"][run["scores"].cohort == cohort].reset_index(drop=True)
    own.attrs["run"] = run["folder"].name
    return own


def auc_table(runs: list[dict]) -> pd.DataFrame:
    """Table 1 of the runs: one row per backbone and name.

    Columns for each cohort: ``auc`` mean of the folds and seeds, ``sd`` over folds (as the paper),
    ``seed_sd`` over seeds (NaN for one), ``low`` and ``high`` 95 % interval over patients. Then
    ``n_seeds``, ``collapsed`` seeds, and ``run``, the folders that the row comes from.
    """
    records = []
    for (backbone, name), own in grouped(runs).items():
        record = {"backbone": BACKBONES[backbone], "method": row_label(name)}
        if len({*map(short, own[0]["results"])}) < len(own[0]["results"]):
            found = ", ".join(own[0]["results"])
            raise ValueError(f"evaluate: of {found} two make one column: rename a cohort of them")
        for cohort in own[0]["results"]:
            tag, results = short(cohort), [run["results"][cohort] for run in own]
            auc = [result["auc"] for result in results]
            record[f"auc_{tag}"] = np.mean(auc)
            record[f"sd_{tag}"] = np.mean([result["sd"] for result in results])
            record[f"seed_sd_{tag}"] = np.std(auc, ddof=1) if len(auc) > 1 else np.nan
            low, high = bootstrap_interval([cohort_scores(run, cohort) for run in own])
            record |= {f"low_{tag}": low, f"high_{tag}": high}
        records.append(record | _sources(own))
    return pd.DataFrame(records)


def rounded(table: pd.DataFrame) -> pd.DataFrame:
    """A table to look at: three digits, and a dash where nothing can be computed."""
    return table.round(3).astype(object).fillna("–")


def in_words(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Some columns of an :func:`auc_table` and its cells as text: "mean (SD over folds) ±SD over
    seeds [interval over patients]"; seeds with collapsed embeddings are named in the column before.
    What cannot be computed is not printed."""
    shown = table[columns].copy()
    marks = table.collapsed.map(lambda n: f" (embeddings collapsed: {n:.0f})" if n else "")
    shown["n_seeds"] = shown.n_seeds.astype(str) + marks
    for tag in [name.removeprefix("auc_") for name in table if name.startswith("auc_")]:
        parts = [table[f"{kind}_{tag}"] for kind in ("auc", "sd", "seed_sd", "low", "high")]
        form = "{:.2f} ({:.2f}) ±{:.2f} [{:.2f}, {:.2f}]"
        text = (form.format(*values) for values in zip(*parts, strict=True))
        shown[tag] = [re.sub(r" (±nan|\(nan\)|\[nan, nan\])", "", cell) for cell in text]
    return shown.rename(columns={"n_seeds": "seeds"})


def accuracy_table(runs: list[dict], cohort: str, readings=None) -> pd.DataFrame:
    """Table 2 of the runs: balanced accuracy on one cohort, one row per name (variants only where
    there is nothing else).

    ``bacc`` and ``sd`` (over folds) are those of the better backbone, as in the paper, named in
    ``backbone``; picking the better of two on the test patients is optimistic, so each backbone has
    its own ``bacc_<backbone>`` and ``seed_sd_<backbone>`` beside it. The last row is the simulated
    radiologist's, where ``readings`` (:func:`reader_accuracy`) are given.
    """
    records = {}
    plain = [run for run in runs if run["name"] in ROWS]
    for (backbone, name), own in grouped(plain or runs).items():
        label, results = BACKBONES[backbone], [run["results"][cohort] for run in own]
        bacc, sd = ([result[key] for result in results] for key in ("bacc", "bacc_sd"))
        record = records.setdefault(name, {"method": row_label(name), "bacc": -1.0})
        record |= {f"bacc_{label}": np.mean(bacc), f"n_seeds_{label}": len(own)}
        record[f"seed_sd_{label}"] = np.std(bacc, ddof=1) if len(bacc) > 1 else np.nan
        record["run"] = " ".join(filter(None, [record.get("run"), _sources(own)["run"]]))
        record["collapsed"] = record.get("collapsed", 0) + _sources(own)["collapsed"]
        if np.mean(bacc) > record["bacc"]:
            low, high = accuracy_interval([cohort_scores(run, cohort) for run in own])
            record |= {"bacc": np.mean(bacc), "sd": np.mean(sd), "low": low, "high": high}
            record["backbone"] = label
    value, low, high = (np.nan,) * 3 if readings is None else reader_accuracy(readings, cohort)
    reading = {"method": "simulated reading", "bacc": value, "low": low, "high": high}
    return pd.DataFrame([*records.values(), *([] if np.isnan(value) else [reading])])


def accuracy_interval(runs: list[pd.DataFrame], n: int = 2000, seed: int = 0):
    """95 % percentile interval of the mean fold balanced accuracy, resampling patients within fold
    and class as :func:`~wspnb.results.statistics.bootstrap_interval` does for the AUC, NaN where
    that is; thresholds stay.

    Raises:
        ValueError: as there; if a score or threshold is missing.
    """
    if "patient" in runs[0]:
        wins_by_fold(runs)  # the same patients in each
    for run in runs:
        check_judged(run, "score", "threshold")
    rng, total = np.random.default_rng(seed), np.zeros(n)
    right = [((run.score >= run.threshold) == run.label).to_numpy() for run in runs]
    mean, keys = np.mean(right, axis=0), runs[0][["fold", "label"]].reset_index(drop=True)
    for _, part in keys.groupby(["fold", "label"]):
        values = mean[part.index]
        if len(values) < 2:
            return np.nan, np.nan
        total += values[draw_again(len(values), n, rng)].mean(1) / 2
    return ends(total / keys.fold.nunique())


def effective_positives(run: dict) -> float:
    """Mean over the pretraining's log of the positives that an anchor effectively has; NaN where
    there is no log, as for encoders pretrained on another cohort."""
    log = run["folder"].parents[1] / "pretrain" / run["folder"].name / "log.csv"
    if not log.exists() or run.get("encoder", "") is None:  # which is another training's
        return run.get("effective_positives", np.nan)
    return float(read_csv(log).get("effective_positives", pd.Series(dtype=float)).mean())


def sigma_table(runs: list[dict], backbone: str = "tiny") -> pd.DataFrame:
    """Table 3 of the runs: WSP at each sigma that was run, with effective positives per anchor."""
    records = []
    for (_, name), own in grouped([r for r in runs if r["backbone"] == backbone]).items():
        if re.fullmatch(r"wsp(_sigma([0-9.]+|inf))?", name):  # in nothing else than sigma
            used = np.mean([effective_positives(run) for run in own])
            row = auc_table(own).drop(columns=["backbone", "method"]).iloc[0].to_dict()
            sigma = float(own[0]["training"]["sigma"])
            records.append({"sigma": sigma, "effective_positives": used} | row)
    table = pd.DataFrame(records)
    return table.sort_values("sigma", ignore_index=True) if len(table) else table


def reader_accuracy(table: pd.DataFrame, cohort: str) -> tuple[float, float, float]:
    """Balanced accuracy of the phantom's radiologist (column ``reading``, mild or worse against
    the histological label) with its 95 % bootstrap interval over patients; NaN without readings,
    the interval also where a class has one patient."""
    people = table[table.cohort == cohort].drop_duplicates("patient")
    people = people.reindex(columns=["reading", "label"]).dropna()
    if people.label.nunique() < 2:
        return (np.nan,) * 3
    mean = ((people.reading >= 1) == people.label).groupby(people.label).mean().mean()
    read = people.assign(score=people.reading, threshold=1, fold=0)
    return float(mean), *accuracy_interval([read])


# Ends of what is said of runs that do not go together.
OLD = "; if it is one of an earlier study, delete its folder under probe"
DATA = f"slices or labels: give the report's command for all methods, or run notebook 03 again{OLD}"


def check_alike(runs: list[dict], data: str) -> None:
    """All runs of a table judge the same data (checksum of :func:`wspnb.pretrain.identity`) in the
    same folds, and were trained alike.

    Raises:
        ValueError: names the run that differs and in what.
    """
    first = next((run for run in runs if "C" in run), runs[0])
    for run in runs:
        _check_told(run, "data", "n_folds", "fold_seed", "norm", "seconds")
    plain = [run for run in runs if run["name"] in ROWS]
    trained = next((run for run in plain + runs if run.get("training")), None)
    supervised = next((run for run in runs if run.get("supervised")), None)
    grouped(runs)
    for run in runs:
        name = run["folder"].name
        if run["data"] != data:
            raise ValueError(f"{name} was probed on other {DATA}")
        for key in ("n_folds", "fold_seed", "norm", *(["C"] if "C" in run else [])):
            if run[key] != first[key]:
                other = f"{first['folder'].name}: {first[key]}"
                raise ValueError(f"{name}: {key}={run[key]}, {other}{OLD}")
        for kind, other in (("training", trained), ("supervised", supervised)):
            if not run.get(kind):
                continue
            differ = {key for key, _ in run[kind].items() ^ other[kind].items()}
            if differ - _changed(run, run[kind]):
                raise ValueError(f"{name}: trained with {run[kind]}, not {other[kind]}{OLD}")
        check_scores(run)


def check_scores(run: dict) -> None:
    """Refuse a run whose results are not those of its scores (ValueError)."""
    for cohort, result in run["results"].items():
        scores = cohort_scores(run, cohort)
        for key, by_fold in {"auc": fold_auc, "bacc": fold_balanced_accuracy}.items():
            if key in result and not abs(by_fold(scores).mean() - result[key]) <= 1e-6:
                found = f"{run['folder'].name}, {cohort}: scores.csv and results.json disagree"
                raise ValueError(f"{found}: run 03 again")


def read_features(folder: Path) -> np.ndarray:
    """Cached features of a probe, a row for each of its ``slices.csv``; a ValueError if they are
    not those that its results are of."""
    file = folder / "features.npy"
    if read_json(folder / "results.json").get("features_sha256", own := digest_file(file)) != own:
        raise ValueError(f"{file}: not the features that results.json is of: run 03 again")
    return np.load(file)


def row_label(name: str) -> str:
    """Name of a run as the tables print it: ``wsp_sigma0.3`` is "WSP, sigma 0.3"."""
    if name in SWITCHES:
        return SWITCHES[name][0]
    if name.startswith("finetuned_"):
        return f"{row_label(name.removeprefix('finetuned_'))}, fine-tuned"
    try:
        method, changed = split_name(name)
    except ValueError:
        return ROWS.get(name, name)
    label = ROWS.get(method) or parse(method).label
    return ", ".join([label, *(f"{key} {value}" for key, value in changed.items())])


def printed_backbone(label: str) -> str:
    """The paper's name of an encoder; the padding is ours, for images smaller than the paper's."""
    return label.removesuffix(" (padded)")


def short(cohort: str) -> str:
    """Name of an entry of ``evaluate`` in columns: ``d1+d2`` is d12, ``d1>d2`` is d1_on_d2."""
    return cohort.replace("d1+d2", "d12").replace("+", "_").replace(">", "_on_")


def _changed(run: dict, settings: dict) -> set[str]:
    """Settings that the run's name says it changed.

    Raises:
        ValueError: if the run was trained by another method, or with another number, than it says.
    """
    name, own = run["name"], run.get("method", run["name"])
    if name in SWITCHES:
        return SWITCHES[name][1]
    try:
        numbers = check_name(name, own, settings)
    except ValueError as error:
        raise ValueError(f"{run['folder'].name}: {error}{OLD}") from None
    words = {k for k, v in settings.items() if re.search(rf"_{k}_?{re.escape(str(v))}(_|$)", name)}
    return {"start_from", *numbers, *words}


def _check_told(run: dict, *keys: str) -> None:
    """Refuse a run of which results.json does not say what a table needs."""
    if missing := sorted(set(keys) - set(run)):
        found = f"{run['folder'].name}: results.json has no {', '.join(missing)}"
        raise ValueError(f"{found}, is it of an earlier version? Run 03 again")


def _sources(own: list[dict]) -> dict:
    for run in own:
        _check_told(run, "collapsed")
    collapsed = sum(run["collapsed"] for run in own)
    folders = " ".join(run["folder"].name for run in own)
    return {"n_seeds": len(own), "collapsed": collapsed, "run": folders}
