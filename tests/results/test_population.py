"""Differences on a population: patients of one phantom are shared, those of two are not."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wspnb.files import read_csv, write_csv
from wspnb.results import committed, population, statistics, tables
from wspnb.run import run

FIGURES = Path(__file__).parents[2] / "figures"


def found(phantoms):
    """Runs ``a`` and ``b`` of one seed per entry; patients of a phantom are the same."""
    runs, parts = [], []
    for seed, phantom in enumerate(phantoms):
        drawn = phantom["seed"] if isinstance(phantom, dict) else 9
        people = np.random.default_rng(drawn)
        labels, base = people.integers(0, 2, 80), people.normal(size=80)
        for name, noise in (("a", 1.0), ("b", 2.0)):
            own = np.random.default_rng(seed).normal(size=80) * noise
            run = {"run": f"{name}{seed}", "name": name, "seed": seed}
            runs.append(run | {"phantom": phantom})
            score = {"patient": np.arange(80).astype(str), "label": labels}
            parts.append(pd.DataFrame(score | run | {"score": labels + base + own}))
    return {"runs": pd.DataFrame(runs), "population": pd.concat(parts)}


def test_the_notebook_runs_with_wsp_alone(tmp_path):
    """As where somebody has trained no other method: tables without pairs are empty."""
    runs = committed.unpack(FIGURES / "runs" / "reference", tmp_path / "all")
    own = [run for run in runs if run["name"] == "wsp"]
    committed.publish_runs(own, tmp_path / "figures" / "runs" / "mine", "")
    given = {"scores_dir": str(tmp_path / "figures" / "runs" / "mine"), "judged_dir": ""}
    notebook = FIGURES.parent / "notebooks" / "05b_population.ipynb"
    given |= {"run_dir": str(tmp_path / "out"), "publish_dir": str(tmp_path / "out" / "figures")}
    run(notebook, tmp_path / "05b.ipynb", given)
    table = read_csv(tmp_path / "out" / "figures" / "reference_population.csv")
    assert table.name.tolist() == ["wsp"] and table.n_seeds.tolist() == [3]


def reach(table):
    return (table.high - table.low).iloc[0] / 2


def test_patients_of_two_phantoms_are_independent():
    one, two = ({"seed": 1}, {"seed": 2})
    pair, alone = [("a", "b")], []
    everything = population.difference_table(found([one, two]), pair)
    for seed in range(2):
        part = {k: t[t.seed == seed] for k, t in found([one, two]).items()}
        alone.append(population.difference_table(part, pair))
    assert reach(everything) == pytest.approx(np.hypot(*map(reach, alone)) / 2)
    means = [table.difference.iloc[0] for table in alone]
    assert everything.difference.iloc[0] == pytest.approx(np.mean(means))


def test_runs_on_one_phantom_share_their_patients():
    given = found([np.nan, np.nan, np.nan])
    scores = population.scores_by_name(given)
    error = statistics.delong(*(list(scores[name].values()) for name in "ab"))[0]
    assert reach(population.difference_table(given, [("a", "b")])) == pytest.approx(1.96 * error)


def test_patients_that_are_all_in_order_have_no_interval():
    given = found([np.nan])
    given["population"]["score"] = given["population"].label
    given["runs"] = given["runs"].assign(ceiling=1.0, depth_r2=1.0, loss=1.0, verdict="healthy")
    table = population.population_table(given)
    assert table.auc.tolist() == [1, 1] and table[["low", "high"]].isna().all(axis=None)
    table = population.difference_table(given, [("a", "b")])
    ends = ["low", "high", "low_both", "high_both"]
    assert table.difference.tolist() == [0] and table[ends].isna().all(axis=None)


def test_methods_are_ranked_where_they_saw_the_same_patients():
    """Two phantoms that differ in a factor, one seed: the row of each is its own."""
    rows = [("a", 0.6, 0.9), ("b", 0.6, 0.8), ("c", 0.95, 0.7), ("d", 0.95, 0.6)]
    runs = pd.DataFrame(
        {"run": n, "name": n, "seed": 0, "phantom": {"reader_accuracy": f}} for n, f, _ in rows
    )
    studies = pd.DataFrame(
        {"name": n, "seed": 0, "study": k, "auc_folds": auc, "auc_rest": auc}
        for n, _, auc in rows
        for k in range(3)
    )
    table = population.study_table({"runs": runs, "studies": studies})
    assert table[["better", "worse"]].values.tolist() == [["a", "b"], ["c", "d"]]
    assert table.difference.tolist() == pytest.approx([0.1, 0.1])


def test_runs_that_draw_no_studies_are_published(tmp_path):
    runs = committed.unpack(FIGURES / "runs" / "reference", tmp_path / "all")
    own = [run for run in runs if run["name"] in ("wsp", "supcon")]
    for run_ in own:
        for part in ("studies", "curve"):
            (run_["folder"] / f"{part}.csv").unlink(missing_ok=True)
    names = committed.publish_runs(own, tmp_path / "figures" / "runs" / "mine", "")
    assert "reference_differences" in names and "reference_studies" not in names


@pytest.mark.parametrize("part", ["population", "scores"])
def test_a_run_without_scores_is_named(tmp_path, part):
    for file in (FIGURES / "runs" / "reference").iterdir():
        shutil.copy(file, tmp_path)
    table = read_csv(tmp_path / f"{part}.csv.gz", text=True)
    gone = table.run.iloc[0]
    write_csv(tmp_path / f"{part}.csv.gz", table[table.run != gone])
    read = population.read if part == "population" else tables.read_runs
    with pytest.raises(ValueError, match=f"no scores of {gone}"):
        read(tmp_path)
