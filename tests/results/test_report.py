"""The sentences and tables of the report, against numbers worked by hand."""

import html
import json
from pathlib import Path

import matplotlib.pyplot as plt
import mistune
import numpy as np
import pandas as pd
import pytest

from wspnb import plots
from wspnb.results import report, statistics, tables


def run(name: str, seed: int, right: int, n: int = 40) -> dict:
    """A probe of two folds that puts ``right`` of the patients of class 1 above all of class 0."""
    labels, fold = np.arange(n) % 2, np.arange(n) // 2 % 2
    score = np.linspace(0.3, 0.4, n)
    for f in (0, 1):
        ones = np.flatnonzero((labels == 1) & (fold == f))
        score[ones] = -np.linspace(0, 0.1, len(ones))  # below all of class 0
        score[ones[:right]] = 0.9
    scores = {"patient": [f"p{i}" for i in range(n)], "label": labels, "score": score}
    scores |= {"fold": fold, "cohort": "d1", "threshold": 0.5}
    auc = right / (n / 4)
    result = {"cohort": "d1", "auc": auc, "sd": 0.0, "n": n, "bacc": auc, "bacc_sd": 0.0}
    training = {"n_steps": 1500, "sigma": 0.1, "train_cohort": "radio"}
    return {
        "name": name, "backbone": "tiny", "seed": seed, "collapsed": False, "n_folds": 2,
        "results": {"d1": result}, "scores": pd.DataFrame(scores),
        "training": None if name == "random" else training,
        "folder": Path(f"{name}-tiny-seed{seed}"),
    }  # fmt: skip


def test_main_result_says_the_difference_and_how_sure_it_is():
    runs = [run("random", 0, 2), run("supcon", 0, 5), run("wsp", 0, 9)]
    text = report.main_result(runs)
    gap = statistics.paired_difference([runs[2]["scores"]], [runs[1]["scores"]])
    assert gap.mean == pytest.approx(0.4)
    assert "On D1 (40 patients) WSP has a mean AUC of 0.90 and SupCon" in text
    assert f"a difference of +0.40 [{gap.low:+.2f}, {gap.high:+.2f}]" in text
    assert "patients alone, as there is one seed; it leaves out zero" in text


def test_main_result_of_two_seeds_counts_the_seeds_and_holds_zero():
    wins = {("random", 0): 5, ("random", 1): 5, ("wsp", 0): 7, ("wsp", 1): 4}
    text = report.main_result([run(*key, right) for key, right in wins.items()])
    assert "WSP has a mean AUC of 0.55 and the untrained network, the best of the others" in text
    assert "a difference of +0.05" in text and "over patients and seeds; it holds zero" in text


def test_main_result_names_no_single_best_among_equals():
    wins = {("random", 0): 2, ("supcon", 0): 5, ("simclr", 0): 5, ("wsp", 0): 9}
    text = report.main_result([run(*key, right) for key, right in wins.items()])
    assert "SupCon, one of 2 equally good others, 0.50" in text


def test_nothing_has_no_minus():
    """A difference of -.004 was "-0.00", beside two means that print alike."""
    text = report.main_result([run("wsp", 0, 125, 1000), run("supcon", 0, 126, 1000)])
    assert "a difference of +0.00 [" in text


def test_own_cohorts_keep_their_names():
    assert report.people(["probe", "d12", "d1"]) == {"probe": "probe", "d12": "d12", "d1": "D1"}
    assert report.people(())["probe"] == "Probe patients"  # of tables of ours


def test_main_result_of_one_method_compares_nothing():
    assert report.main_result([run("random", 0, 2)]).endswith(
        "the mean AUC is: None (random) 0.20. Nothing was compared."
    )


def test_what_was_run_counts_methods_seeds_steps_and_patients():
    slices = pd.DataFrame({"patient": ["a", "a", "b", "c", "d"], "weak_label": [1, 1, 2, None, 3]})
    slices.loc[5] = ["e", -1]  # unknown, too
    slices["cohort"] = ["radio"] * 4 + [
        "d1",
        "radio",
    ]  # a weak label of a judged patient is not trained on
    text = report.what_was_run([run("random", 0, 2), run("wsp", 0, 3), run("wsp", 1, 3)], slices)
    assert text == (
        "None (random) · WSP (TinyNet); 2 training seeds; pretrained for 1,500 steps on 2 patients "
        "with a weak label; judged on D1 (40 patients)."
    )


def test_patients_of_encoders_from_elsewhere_are_not_counted():
    slices = pd.DataFrame({"patient": ["a", "b"], "cohort": "radio", "weak_label": [1, 2]})
    text = report.what_was_run([run("wsp", 0, 3) | {"encoder": None}], slices)
    assert "pretrained for 1,500 steps; judged" in text


def test_tables_have_names_of_people_and_the_paper_beside():
    runs = [run("random", 0, 2), run("wsp", 0, 9)]
    for one in runs:  # padded is ours: the paper's TinyNet stands beside it
        one["backbone"] = "tiny_padded"
    printed = pd.DataFrame(
        {"backbone": ["TinyNet"], "method": ["WSP"], "auc_d1": [0.84], "sd_d1": [0.12]}
    )
    table = tables.auc_table(runs)
    words = report.auc_words(table, printed)
    assert list(words) == ["Method", "Seeds", "D1", "D1, paper"]
    assert words["D1, paper"].tolist() == ["–", "0.84 (0.12)"]
    assert words["D1"][1].startswith("0.90\u00a0(0.00) [")
    (axis,) = report.auc_figure(table, runs, printed).axes
    assert [list(c.get_xdata()) for c in axis.lines if c.get_marker() == "x"] == [[], [0.84]]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["None (random)", "WSP"]
    accuracy = report.accuracy_words(tables.accuracy_table(runs, "d1"), pd.Series({"WSP": 0.85}))
    assert accuracy["Balanced accuracy"].tolist() == ["0.20", "0.90"]
    assert accuracy["Paper"].tolist() == ["–", "0.85"]


@pytest.mark.parametrize(
    "own", [("klinik_a", "klinik_a+b", "klinik_a>b"), ("d12", "d1_on_population")]
)
def test_ones_own_cohorts_are_called_as_in_the_settings(own):
    runs = [run("random", 0, 2), run("wsp", 0, 9)]
    for one in runs:
        result = one["results"].pop("d1")
        one["results"] = {c: result for c in own}
        scores = one["scores"]
        parts = [scores.assign(cohort=cohort) for cohort in one["results"]]
        one["scores"] = pd.concat(parts, ignore_index=True)
    table = tables.auc_table(runs)
    words = report.auc_words(table, None, cohorts=runs[0]["results"])
    assert list(words) == ["Method", "Seeds", *own]
    axes = report.auc_figure(table, runs, None).axes
    assert [axis.get_title() for axis in axes] == [*own]


def test_an_interval_without_width_decides_nothing():
    same = [run("random", 0, 9), run("wsp", 0, 9)]
    assert "a difference of +0.00; these patients are too few or too alike for an interval, so" in (
        report.main_result(same)
    )


def test_the_encoder_is_named_where_there_are_several_and_nan_is_not_printed():
    runs = [run("wsp", 0, 9), run("wsp", 0, 8) | {"backbone": "resnet18"}]
    table = tables.auc_table(runs).assign(sd_d1=np.nan)
    words = report.auc_words(table, None)
    assert words["Encoder"].tolist() == ["TinyNet", "ResNet-18"]
    assert words["D1"][0].startswith("0.90 [") and "nan" not in "".join(words["D1"])
    (axis,) = report.auc_figure(table, runs, None).axes
    assert [t.get_text() for t in axis.get_yticklabels()] == ["WSP  TinyNet", "WSP  ResNet-18"]


def test_executed_notebooks_beside_what_others_leave_there(tmp_path):
    ran = json.dumps({"metadata": {"papermill": {"duration": 12.5}}, "cells": []})
    runs = {"01_preprocess": ran, "02_pretrain.failed": ran, "01_preprocess-Copy1": ran}
    runs |= {"Untitled": '{"metadata": {}}', "empty": "", "._01_preprocess": "\0", ".x": ran}
    runs |= {"03_linear_probe": ran.replace("12.5", "null")}  # is still running
    runs |= {"06_audit": ran.replace("12.5", '12.5, "exception": true')}  # failed in papermill
    runs |= dict.fromkeys(("01_preprocess (1)", "Copy of 01_preprocess", "01_preprocess~"), ran)
    for name, content in runs.items():
        (tmp_path / f"{name}.ipynb").write_text(content, encoding="utf-8")
    (tmp_path / "folder.ipynb").mkdir()
    found = report.executed(tmp_path)
    assert {name: told["duration"] for name, told in found.items()} == {"01_preprocess": 12.5}


def test_means_and_difference_are_of_the_same_seeds():
    runs = [run("wsp", 0, 4), run("wsp", 1, 8), run("supcon", 1, 7)]
    said = report.main_result(runs)
    assert "mean AUC of 0.80 and SupCon" in said and "0.70: a difference of +0.10" in said


def test_the_papers_value_stands_beside_its_method_whatever_the_index():
    printed = pd.DataFrame({"backbone": "TinyNet", "method": ["SupCon", "WSP"]})
    printed = printed.assign(auc_d1=[0.7, 0.9], sd_d1=[0.1, 0.2])
    table = tables.auc_table([run("random", 0, 2), run("supcon", 0, 5), run("wsp", 0, 6)])
    for other in (table, table.iloc[1:], table[::-1], table.set_index("method", drop=False)):
        words = report.auc_words(other, printed, cohorts=["d1"]).set_index("Method")
        assert (
            words["D1, paper"]["WSP"] == "0.90 (0.20)"
            and words["D1, paper"]["SupCon"][:4] == "0.70"
        )


def test_runs_judged_on_several_cohorts_are_named_by_the_first_table():
    runs = [run("wsp", 0, 4), run("supcon", 0, 4)]
    runs[1]["results"] = runs[1]["results"] | {"d2": runs[1]["results"]["d1"]}
    for table in (tables.auc_table, report.main_result):
        with pytest.raises(ValueError, match=r"supcon-tiny-seed0 was judged on \['d1', 'd2'\]"):
            table(runs)


def test_names_of_the_users_are_shown_as_they_are():
    """Dollars are no formula in Markdown, and < opens no tag in a table."""
    text = r"P$1 and P$2, a*b, C:\x, stage<F3, a_b_"
    page = mistune.html(report.as_markdown(text))
    assert html.unescape(page).strip() == f"<p>{text}</p>" and report.as_markdown("$") == r"\$"
    table = report.shown(pd.DataFrame({"x<b": ["a<b"], "n": [0.123]}), 2).to_html()
    assert "x&lt;b" in table and "a&lt;b" in table and "0.12" in table
    assert report.as_html("a<b") == "a&lt;b"


def test_variants_alone_are_reported_each_in_its_colour():
    runs = [run("wsp_floor.3", 0, 2), run("wsp_own", 0, 3)]
    runs = [one | {"folder": Path(f"{one['name']}-tiny-seed0")} for one in runs]
    assert "WSP, floor .3 0.20, WSP, one's own class" in report.main_result(runs)
    table = tables.auc_table(runs)
    figure = report.auc_figure(table, runs, None)
    drawn = [line.get_color() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert drawn == [plots.PALETTE["wsp_floor"], plots.PALETTE["wsp_own"]]
    renamed = [one | {"results": {"a_on_b": one["results"]["d1"]}} for one in runs]
    renamed = [one | {"scores": one["scores"].assign(cohort="a_on_b")} for one in renamed]
    figure = report.auc_figure(tables.auc_table(renamed), renamed, None)
    assert figure.axes[0].get_xlabel() == "mean AUC of the folds"
    both = [one | {"backbone": name} for name in ("tiny_padded", "resnet18") for one in runs]
    (axis,) = report.auc_figure(tables.auc_table(both), both, None).axes  # names of 67 letters
    names = [label.get_window_extent().x0 for label in axis.get_yticklabels()]
    assert min(names) > 0 and axis.get_window_extent().width > 2 * axis.figure.dpi
    plt.close("all")


def test_depths_of_another_unit_and_missing_ones_are_seen():
    axis = plt.subplots()[1]
    for depths, ends in (([0.2, 0.7, np.nan], (0, 1)), ([10, np.nan, 160], (0, 160))):
        points = plots.scatter(axis, np.zeros((3, 2)), depths, "depth")
        axis.figure.canvas.draw()
        grey = [np.ptp(colour[:3]) == 0 and colour[3] == 1 for colour in points.get_facecolors()]
        assert points.get_clim() == ends and grey == np.isnan(depths).tolist()
    plt.close("all")


def test_what_cannot_be_drawn_is_refused_and_a_column_of_titles_is_taken():
    axis = plt.subplots()[1]
    with pytest.raises(ValueError, match=r"2 points of class 2.0: draw 0 and 1"):
        plots.scatter(axis, np.zeros((4, 2)), [0, 1, 2, np.nan], "class")
    with pytest.raises(ValueError, match="no picture to draw"):
        plots.mosaic(np.zeros((0, 8, 8, 3), np.uint8), [])
    sheet = plots.contact_sheet(np.zeros((2, 4, 4)), pd.Series(["a", "b"], index=[5, 7]))
    assert [one.get_title() for one in sheet.axes[:2]] == ["a", "b"]
    plt.close("all")
