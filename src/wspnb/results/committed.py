"""Patients' scores kept beside the published tables, and every table computed again from them.

``python -m wspnb.results.committed`` (``make verify``) needs no training and no images;
``... --publish RUN_DIR --name NAME`` keeps the scores of a run and writes its tables.
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from wspnb.data.store import verify_store
from wspnb.files import own_files, read_csv, read_json, write_csv, write_text
from wspnb.folds import cohorts_of
from wspnb.probe import load_encoder, read_probe, read_slices
from wspnb.results import audit, population, statistics, tables
from wspnb.run import project_path

# Committed tables that do not come from patients' scores, and where their numbers are.
RAW = {
    "position_help": "one row per training already; notebook 06b trains its base again",
    "kernels_help": "one row per training already; notebook 08 trains two of them again",
    "table_oct": "notebook 07, two minutes per seed",
    "table_oct_500": "notebook 07 with oct_steps 500",
    "olives_audit": "counts in the public label tables, which are not part of this package",
}


def pack(runs: list[dict], target: Path, suffix: str, readings=None, deals=()) -> None:
    """Keep the runs of the published tables: ``runs.json`` (settings and results of each),
    ``scores.csv.gz`` (one row per run, cohort and patient) and, where a run has them, the files of
    :data:`wspnb.results.population.PARTS`; the same bytes for the same runs.

    Args:
        runs: as :func:`wspnb.results.tables.read_runs` gives them.
        target: folder to write to, one per profile.
        suffix: at the end of the tables' names.
        readings: cohort, patient, label and reading of a simulated radiologist, or None.
        deals: files of :func:`wspnb.results.audit.repeat_folds`, one per backbone.
    """
    lines = []
    for run in runs:
        facts = read_json(run["folder"] / "results.json")
        facts.pop("features", None)
        used = tables.effective_positives(run)
        facts |= {} if np.isnan(used) else {"effective_positives": used}
        lines.append(f"{json.dumps(run['folder'].name)}: {json.dumps(facts)}")
    for part in ("scores", *population.PARTS, "readings", "deals"):  # of what lay here before
        (target / f"{part}.csv.gz").unlink(missing_ok=True)
    for part in ("scores", *population.PARTS):  # as written, digit by digit
        files = [f for run in runs if (f := run["folder"] / f"{part}.csv").exists()]
        if files:
            own = [read_csv(file, text=True).assign(run=file.parent.name) for file in files]
            write_csv(target / f"{part}.csv.gz", pd.concat(own))
    if readings is not None:
        write_csv(target / "readings.csv.gz", readings)
    if deals:
        write_csv(target / "deals.csv.gz", pd.concat(read_csv(file, text=True) for file in deals))
    text = ",\n".join(lines)
    text = f'{{"suffix": {json.dumps(suffix)}, "runs": {{\n{text}\n}}}}\n'
    write_text(target / "runs.json", text)


def unpack(target: Path, folder: Path) -> list[dict]:
    """The runs that :func:`pack` kept in ``target``, as files below ``folder`` again."""
    for name, facts in read_json(target / "runs.json")["runs"].items():
        write_text(folder / "probe" / name / "results.json", json.dumps(facts))
    for part in ("scores", *population.PARTS):
        if (file := target / f"{part}.csv.gz").exists():
            for name, own in read_csv(file, text=True).groupby("run"):
                write_csv(folder / "probe" / name / f"{part}.csv", own.drop(columns="run"))
    return tables.read_runs(folder)


def recompute(folder: Path, figures: Path | None = None) -> dict[str, pd.DataFrame]:
    """All tables that notebooks 05 and 06 write, by file name, from a folder of :func:`pack`; for
    runs on several phantoms those of the population alone; ``figures`` as :func:`tables_of`."""
    runs = tables.read_runs(folder)
    suffix = read_json(folder / "runs.json")["suffix"]
    files = [folder / f"{name}.csv.gz" for name in ("readings", "deals")]
    extra = [read_csv(file) if file.exists() else None for file in files]
    several = any("phantom" in run for run in runs)
    found = {} if several else tables_of(runs, suffix, *extra, figures)
    if (folder / "population.csv.gz").exists():
        own = population.all_tables(population.read(folder))
        found |= {name + suffix: table for name, table in own.items()}
    return {name: table for name, table in found.items() if len(table)}


def tables_of(runs: list[dict], suffix="", readings=None, deals=None, figures=None) -> dict:
    """The tables that follow from the scores of runs; readings and deals as tables, see
    :func:`pack`. The reference of an audit is that of its table in ``figures``, else WSP."""
    found = {
        "table1": tables.auc_table(runs),
        "table2": tables.accuracy_table(runs, next(iter(runs[0]["results"])), readings),
        "table3": tables.sigma_table(runs, runs[0]["backbone"]),
    }
    found = {name + suffix: table.round(4) for name, table in found.items()}
    for backbone in dict.fromkeys(run["backbone"] for run in runs):
        probes, scores = audit.by_cohort([run for run in runs if run["backbone"] == backbone])
        ending, names = suffix + audit.ending(backbone, runs), {name for name, _ in probes}
        told = figures / f"audit_differences{ending}.csv" if figures else Path()
        told = {*read_csv(told).get("reference", [])} & names if told.is_file() else ()
        present = [name for name in dict.fromkeys([*tables.ROWS, *told]) if name in names]
        if len(present) < 2:
            continue
        reference = next(iter(told), present[-1])
        homes = {c: next(iter(scores[c].values())).patient for c in scores if not {*"+>"} & {*c}}
        home = pd.Series({who: c for c, patients in homes.items() for who in patients}, dtype=str)
        if slices := [run["folder"] for run in runs if (run["folder"] / "slices.csv").exists()]:
            home = read_slices(slices[0]).drop_duplicates("patient").set_index("patient").cohort
        pairs = [(reference, name) for name in present]
        variants = audit.variant_pairs(probes, present, reference)
        own = {
            "differences": audit.named(audit.differences(scores, pairs), "reference", "method"),
            "claims": audit.verdicts(scores, reference, project_path("figures/paper"), backbone),
            "variants": audit.named(audit.differences(scores, variants), "variant", "of"),
            "pairs": audit.origins(scores, home),
        }
        if deals is not None:
            own["folds"] = audit.spread(deals[deals.backbone == backbone])
        found |= {f"audit_{name}{ending}": table.round(4) for name, table in own.items()}
    return found


def publish(run_dir: Path, name: str, suffix: str, figures: Path) -> list[str]:
    """Keep the scores of a finished run under ``figures/runs/NAME`` and write all its tables."""
    runs, readings, deals = _finished(run_dir)
    return publish_runs(runs, figures / "runs" / name, suffix, readings, deals)


def _finished(run_dir: Path) -> tuple[list[dict], pd.DataFrame | None, list[Path]]:
    """Runs of a folder, the readings of a phantom's radiologist, and the files of the deals."""
    runs, readings = tables.read_runs(run_dir), None
    slices, columns = run_dir / "cohort" / "slices.csv", ["cohort", "patient", "label", "reading"]
    known = read_csv(slices) if slices.exists() else pd.DataFrame()
    if {*columns, "true_severity"} <= {*known}:  # a phantom: one's own "reading" is something else
        known = known[columns]
        cohorts = cohorts_of(runs[0]["results"])
        readings = known[known.cohort.isin(cohorts)].drop_duplicates()
    return runs, readings, deals_of(run_dir)


def deals_of(run_dir: Path) -> list[Path]:
    """Files of the deals that notebook 06 has written, one per kind of backbone; no copy of one."""
    ends = "", *map("_{}".format, tables.BACKBONES)
    files = [run_dir / "figures" / f"audit_deals{end}.csv" for end in ends]
    return [file for file in files if file.exists()]


def publish_runs(runs: list[dict], target: Path, *kept) -> list[str]:
    """:func:`pack` the runs into ``figures/runs/NAME``, and write every table that follows."""
    pack(runs, target, *kept)
    found = recompute(target)
    for name, table in found.items():
        write_csv(target.parents[1] / f"{name}.csv", table)
    return list(found)


def add_runs(runs: list[dict], target: Path, *kept) -> list[str]:
    """:func:`publish_runs`, with the others that ``target`` keeps: a further run does not cost the
    published ones. Those of a phantom drawn otherwise (size, share, version) are left out."""

    def phantom(run):
        return str(run.get("phantom"))

    with tempfile.TemporaryDirectory() as place:
        drawn = {phantom(run): run.get("drawn") for run in runs}
        names = {(run["folder"].name, phantom(run)) for run in runs}
        old = unpack(target, Path(place)) if (target / "runs.json").exists() else []
        runs = [*runs, *(run for run in old if (run["folder"].name, phantom(run)) not in names)]
        alike = [(run.get("drawn"), drawn.get(phantom(run))) for run in runs]  # None: not said
        runs = [run for run, (a, b) in zip(runs, alike, strict=True) if a == b or None in (a, b)]
        runs.sort(key=lambda run: (phantom(run), *tables.order(run)))
        return publish_runs(runs, target, *kept)


def faults(folder: Path) -> list[str]:
    """Where the AUCs of a folder's results are not those of its scores."""
    wrong = []
    for run in tables.read_runs(folder):
        for cohort, result in run["results"].items():
            own = tables.cohort_scores(run, cohort)
            auc = np.mean([wins.mean() for wins in statistics.wins_by_fold([own])])
            if abs(auc - result["auc"]) > 1e-6:
                found = f"runs.json {result['auc']:.4f}, scores {auc:.4f}"
                wrong.append(f"{run['folder'].name} {cohort}: {found}")
    return wrong


def difference(table: pd.DataFrame, file: Path) -> str:
    """What differs between a table and a committed file by more than the last digit, or "equal"."""
    if not file.exists():
        return "is not committed"
    kept = read_csv(file)
    if table.empty:
        return "is of former runs: 05 or 06 again" if len(kept) else "equal"
    with tempfile.TemporaryDirectory() as folder:
        write_csv(again := Path(folder) / "again.csv", table)
        again = read_csv(again)
    if list(kept) != list(again) or len(kept) != len(again):
        return f"{len(kept)} rows of {list(kept)}, now {len(again)} of {list(again)}"
    for name in kept:
        one, two = kept[name], again[name]
        if pd.api.types.is_numeric_dtype(one) and pd.api.types.is_numeric_dtype(two):
            same = np.isclose(one, two, rtol=0, atol=1.01e-4, equal_nan=True)
        else:
            same = (one == two) | (one.isna() & two.isna())
        if not np.all(same):
            row = int(np.argmin(same))
            return f"row {row + 1}, {name}: committed {one[row]}, now {two[row]}"
    return "equal"


def verify(figures: Path) -> pd.DataFrame:
    """Every committed table against what the committed scores give: columns file, found."""
    rows, seen = [], set()
    for folder in [file.parent for file in own_files(figures / "runs", "*/runs.json")]:
        rows += [(f"runs/{folder.name}", fault) for fault in faults(folder)]
        for name, table in recompute(folder, figures).items():
            rows.append((f"{name}.csv", difference(table, figures / f"{name}.csv")))
            seen.add(name)
    for file in own_files(figures, "*.csv"):
        if file.stem not in seen:
            rows.append((file.name, f"not from scores: {RAW.get(file.stem, 'none are committed')}"))
    return pd.DataFrame(rows, columns=["file", "found"])


def verify_run(run_dir: Path) -> pd.DataFrame:
    """A finished run against itself: columns file, found.

    Every byte of its slices, each encoder against the checksum written beside it and in its probe,
    AUCs against scores, and the tables against what the scores give.
    """

    def told(check, *given) -> str:
        try:
            check(*given)
        except (OSError, ValueError, KeyError) as error:
            return str(error)
        return "equal"

    rows, (runs, readings, deals) = [], _finished(run_dir)
    for name in ("cohort", "cohort_source"):
        if (run_dir / name).exists():
            rows.append((name, told(verify_store, run_dir / name)))
    for config in own_files(run_dir / "pretrain", "*-seed*/config.json"):
        if re.fullmatch(tables.RUN, config.parent.name):
            rows.append((f"pretrain/{config.parent.name}", told(_load, config.parent)))
    rows += [(f"probe/{run['folder'].name}", told(_whole, run["folder"])) for run in runs]
    rows += [("probe", fault) for fault in faults(run_dir)]
    deals = pd.concat(map(read_csv, deals)) if deals else None
    found = tables_of(runs, "", readings, deals, run_dir / "figures")
    ends = r"$" if (run_dir / "figures" / "table1.csv").exists() else r"\w*$"
    for file in own_files(run_dir / "figures", "*.csv"):
        name = re.sub(f"^(table[123]){ends}", r"\1", file.stem)  # 05 ends these as it was told
        if name in found:
            rows.append((f"figures/{file.name}", difference(found[name], file)))
    return pd.DataFrame(rows, columns=["file", "found"])


def _load(folder: Path) -> None:
    """The encoder of a finished pretraining, as its own settings call it."""
    found = read_json(folder / "config.json")
    load_encoder(folder, *(found.get(key) for key in ("backbone", "norm", "seed")))


def _whole(folder: Path) -> None:
    """A finished probe, and its features if they are kept."""
    read_probe(folder)
    if (folder / "features.npy").exists():
        tables.read_features(folder)


def main() -> int:
    """Publish a run, or print what was compared; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--publish", type=Path, help="folder of a finished run")
    parser.add_argument("--run", type=Path, help="folder of a run to hold against itself")
    parser.add_argument("--name", help="folder under figures/runs, default: that of the run")
    parser.add_argument("--suffix", default="", help="at the end of the tables' file names")
    given, figures = parser.parse_args(), project_path("figures")
    try:
        if given.publish:
            name = given.name or given.publish.resolve().name
            print(*publish(given.publish, name, given.suffix, figures), sep="\n")
            return 0
        found = verify_run(given.run) if given.run else verify(figures)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if not len(found):
        parser.error(
            f"{given.run or figures}: no table of ours to compare: name a run, or go there"
        )
    print(found.to_string(index=False, header=False))
    wrong = ~(found.found == "equal") & ~found.found.str.startswith("not from scores")
    print(f"{(found.found == 'equal').sum()} equal, {wrong.sum()} differences")
    return int(wrong.any())


if __name__ == "__main__":
    sys.exit(main())
