"""The loop learns, the table of runs survives a stop, and differences are what they say."""

import math
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from wspnb.files import alone
from wspnb.phantom.minimal import Minimal, draw_cohort
from wspnb.studies import position, position_runs

SHORT = position.Settings(batch_size=16, n_steps=5, warmup_steps=1)
CHEAP = {"scale": 0.05, "n_slices": 4}  # of the cohort


@pytest.fixture(scope="module")
def easy():
    """Signs at every depth, strong, read without error, and nothing that imitates them."""
    parameters = {"reader_accuracy": 0.99, "depth_dependence": 0.0, "mimicry": 0.0, "shift": 0.0}
    return draw_cohort(Minimal(**parameters, sign_strength=2.0, seed=0))


@pytest.fixture(scope="module")
def ends(easy):
    settings = position.Settings(n_steps=150, warmup_steps=15)
    methods = ("random", "supcon", "depth_aware")
    return {m: position.run(easy, m, 0, settings)[-1] for m in methods}


def test_the_label_is_learnt_where_it_is_easy(ends):
    assert ends["supcon"]["auc_d1"] > max(0.97, ends["random"]["auc_d1"])
    assert not ends["supcon"]["collapsed"] and ends["supcon"]["loss"] < math.log(127) - 0.3


def test_depth_is_learnt_where_it_is_asked_for(ends):
    depth = {method: row["depth_r2"] for method, row in ends.items()}
    assert depth["depth_aware"] > max(0.95, depth["random"] + 0.01, depth["supcon"] + 0.01)


def test_a_learning_rate_of_almost_nothing_stays_untrained(easy):
    settings = position.Settings(n_steps=2, warmup_steps=0, learning_rate=1e-12)
    encoder, head = position.build_networks(0)
    before = [p.clone() for p in encoder.parameters()]
    position.train("wsp", easy, encoder, head, settings)
    for old, new in zip(before, encoder.parameters(), strict=True):
        assert torch.allclose(old, new, atol=1e-10)


def test_same_seed_same_run_and_batches_are_shared_by_methods(easy):
    runs = [position.run(easy, "wsp", seed, SHORT) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    batches = {}
    for method in ("wsp", "simclr"):
        seen = []

        def views(inputs, generator, seen=seen):
            seen.append(inputs.clone())
            return easy.views(inputs, generator)

        encoder, head = position.build_networks(0)
        position.train(method, easy._replace(views=views), encoder, head, SHORT, seed=7)
        batches[method] = torch.stack(seen)
    assert torch.equal(batches["wsp"], batches["simclr"])


def test_only_the_pretraining_cohort_is_trained_on(easy):
    radio = easy.inputs[torch.from_numpy((easy.table.cohort == "radio").to_numpy())]
    allowed = {tuple(row) for row in radio[:, :3].tolist()}

    def views(inputs, generator):
        assert {tuple(row) for row in inputs[:, :3].tolist()} <= allowed
        return easy.views(inputs, generator)

    encoder, head = position.build_networks(0)
    log = position.train("wsp", easy._replace(views=views), encoder, head, SHORT)
    assert [row["step"] for row in log] == list(range(5)) and "alignment" in log[-1]


def test_watched_steps_are_judged_and_the_first_is_the_untrained_encoder(easy):
    rows = position.run(easy, "wsp", 0, SHORT, watched=(0, 2))
    untrained = position.run(easy, "random", 0, SHORT)[0]
    assert [row["step"] for row in rows] == [0, 2, 5]
    assert rows[0]["auc_d1"] == untrained["auc_d1"] and rows[0]["depth_r2"] == untrained["depth_r2"]


def test_a_method_of_the_table_and_a_changed_setting_train(easy):
    wide = position.Settings(batch_size=16, n_steps=5, warmup_steps=1, sigma=0.3)
    named = position.run(easy, "wsp_sigma0.3", 0, SHORT)
    assert named == position.run(easy, "wsp", 0, wide) != position.run(easy, "wsp", 0, SHORT)
    own = position.run(easy, "wsp_own", 0, SHORT)[-1]
    assert own["loss"] != named[-1]["loss"] and own["collapsed"] is False  # it has no line


def test_the_population_is_like_d1_and_ten_times_as_large(easy):
    people = easy.table.drop_duplicates("patient").groupby("cohort").label.agg(["size", "mean"])
    assert people["size"]["population"] == 1060 == 10 * people["size"]["d1"]
    assert people["mean"]["population"] == people["mean"]["d1"]


def jobs_of(points, seeds=(0,), methods=("random", "simclr", "wsp"), **more):
    jobs = position_runs.plan(points, seeds, methods, **more)
    return [job | {"changes": CHEAP | job["changes"]} for job in jobs]


def test_the_plan_leaves_out_what_cannot_differ():
    points = {"base": {}, "sigma=0.4": {"sigma": 0.4}, "n_steps=9": {"n_steps": 9}}
    points["shift=2"] = {"shift": 2.0}
    methods = ("random", "simclr", "supcon", "depth_aware", "wsp")
    jobs = jobs_of(points, (0, 1), methods, watched={"n_steps=9": [3]})
    at = {p: [j["method"] for j in jobs if j["point"] == p and j["seed"] == 1] for p in points}
    assert at["base"] == at["shift=2"] == list(methods)
    assert at["sigma=0.4"] == ["depth_aware", "wsp"] and at["n_steps=9"] == list(methods[1:])
    assert [j["seed"] for j in jobs] == [0] * 16 + [1] * 16
    assert {j["watched"] for j in jobs if j["point"] == "n_steps=9"} == {(3,)}
    assert jobs[-1]["changes"] == CHEAP | {"shift": 2.0}


def weights(_, encoder):
    """In place of the probe where only the training's repeatability matters."""
    return {"auc_d1": float(sum(p.detach().abs().sum() for p in encoder.parameters()))}


def test_resume_skips_what_is_done_and_gives_the_same_table(tmp_path, monkeypatch):
    jobs = jobs_of({"base": {}, "shift=2": {"shift": 2.0}})
    monkeypatch.setattr(position, "judge", weights)
    whole = position_runs.run_missing(tmp_path / "whole.csv", jobs, SHORT)
    path, real, done = tmp_path / "part.csv", position_runs.run, []

    def stops(cohort, method, *rest):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(method)
        return real(cohort, method, *rest)

    monkeypatch.setattr(position_runs, "run", stops)
    with pytest.raises(KeyboardInterrupt):
        position_runs.run_missing(path, jobs, SHORT)
    assert len(position_runs.read_table(path)) == 3
    monkeypatch.setattr(position_runs, "run", lambda *a: done.append(a[1]) or real(*a))
    position_runs.run_missing(path, jobs, SHORT)
    assert len(done) == len(jobs) == 6
    assert path.read_text() == (tmp_path / "whole.csv").read_text()
    assert len(whole) == 6

    def never(*_):
        raise AssertionError("a finished run was done again")

    monkeypatch.setattr(position_runs, "run", never)
    position_runs.run_missing(path, jobs, SHORT)


def test_another_definition_is_refused(tmp_path):
    jobs, path = jobs_of({"base": {}}, methods=("random",)), tmp_path / "runs.csv"
    position_runs.run_missing(path, jobs, SHORT)
    with pytest.raises(ValueError, match="choose another run_dir"):
        position_runs.run_missing(path, jobs, position.Settings(n_steps=6))


def test_runs_of_other_code_are_not_added_to(tmp_path, monkeypatch):
    monkeypatch.setattr(position, "judge", weights)
    jobs, path = jobs_of({"base": {}}, (0, 1), ("random", "wsp")), tmp_path / "runs.csv"
    position_runs.run_missing(path, jobs[:2], SHORT)
    monkeypatch.setattr(position_runs, "stamp", lambda *_: "12345678")  # after an update
    assert len(position_runs.run_missing(path, jobs[:2], SHORT)) == 2  # nothing is to be added
    with pytest.raises(ValueError, match=r"runs there are of other code .*choose another run_dir"):
        position_runs.run_missing(path, jobs, SHORT)
    table = position_runs.read_table(path).drop(columns="code")  # as committed tables are
    table.to_csv(path, index=False)
    assert len(position_runs.run_missing(path, jobs, SHORT)) == 4


def test_steps_that_are_asked_for_later_are_judged(tmp_path, monkeypatch):
    monkeypatch.setattr(position, "judge", weights)
    path, given = tmp_path / "runs.csv", ({"base": {}}, (0,), ("random", "wsp"))
    first = position_runs.run_missing(path, jobs_of(*given), SHORT)
    watched = jobs_of(*given, watched={"base": [0, 2, 99]})
    for _ in range(2):
        table = position_runs.run_missing(path, watched, SHORT)
        assert table[table.method == "wsp"].step.tolist() == [0, 2, 5]
    again = position_runs.last_rows(table).reset_index(drop=True)
    pd.testing.assert_frame_equal(again[first.columns], first)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="depth_dependance"):
        position_runs.define({"depth_dependance": 0.0}, SHORT)
    changes, settings, _ = position_runs.define({"shift": 2.0, "sigma": 0.3}, SHORT)
    assert changes == {"shift": 2.0} and settings.sigma == 0.3 and settings.n_steps == 5


def test_an_interrupted_write_leaves_the_old_table(tmp_path, monkeypatch):
    path = tmp_path / "runs.csv"
    row = {"point": "base", "seed": 0, "method": "wsp", "definition": "1"}
    table = position_runs.append_rows(path, position_runs.read_table(path), [row])
    before = path.read_text()

    def half(self, text, **_):
        self.write_bytes(b"point,se")
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="disk full"):
        position_runs.append_rows(path, table, [row | {"seed": 1}])
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


def test_paired_difference_is_students_interval():
    gaps = np.array([0.01, 0.03, 0.08])
    first = pd.Series(gaps + 0.5, index=[2, 0, 1])
    second = pd.Series(0.5, index=[0, 1, 2, 9])
    found = position_runs.paired_difference(first, second)
    assert found["n"] == 3 and found["mean"] == pytest.approx(0.04)
    half = 4.302653 * gaps.std(ddof=1) / 3**0.5  # Student's t, 2 degrees of freedom, 97.5 %
    assert (found["low"], found["high"]) == pytest.approx((0.04 - half, 0.04 + half))
    assert math.isnan(position_runs.paired_difference(first[:1], second)["low"])
    assert math.isnan(position_runs.paired_difference(second, second)["high"])


def test_differences_are_paired_and_a_point_without_a_method_takes_the_base():
    rows = []
    for seed, shift in ((0, 0.0), (1, 0.1)):
        for point, method, auc in (
            ("base", "wsp", 0.7),
            ("base", "supcon", 0.6),
            ("base", "depth_aware", 0.65),
            ("sigma=0.4", "wsp", 0.8),
            ("sigma=0.4", "depth_aware", 0.5),
        ):
            key = {"point": point, "seed": seed, "method": method}
            bad = method == "supcon" and seed == 1
            rows.append(key | {"step": 3, "auc_population": 0.0, "collapsed": bad})
            rows.append(key | {"step": 5, "auc_population": auc + shift, "collapsed": bad})
    found = position_runs.differences(pd.DataFrame(rows), others=("supcon", "depth_aware"))
    found = found.set_index(["point", "other"])
    assert found["mean"].loc["base"].to_dict() == pytest.approx(
        {"supcon": 0.1, "depth_aware": 0.05}
    )
    assert found["mean"].loc["sigma=0.4"].to_dict() == pytest.approx(
        {"supcon": 0.2, "depth_aware": 0.3}
    )
    assert found.collapsed.unstack().loc["base"].to_dict() == {"supcon": 1, "depth_aware": 0}
    assert (found.n == 2).all() and found.low.isna().all()  # both seeds say the same
    twice = position_runs.differences(pd.DataFrame(rows * 2), others=("supcon", "depth_aware"))
    pd.testing.assert_frame_equal(twice.set_index(["point", "other"]), found)


def test_points_are_named_by_what_differs():
    assert position_runs.point_name({}) == "base"
    assert position_runs.point_name({"shift": 2.0, "n_steps": 9}) == "shift=2.0 n_steps=9"


@pytest.mark.slow
def test_the_notebook_trains_a_tiny_study_and_publishes_it(tmp_path):
    from wspnb.run import main

    notebook = Path(__file__).parents[2] / "notebooks" / "06b_when_position_helps.ipynb"
    tiny = {"recompute": "true", "study_seeds": "[0, 1]", "sizes": "[0.2]"}
    tiny |= {"accuracies": "[0.97]", "dependences": "[1.0]", "shifts": "[0.0]"}
    tiny |= {"sigmas": "[0.4]", "lengths": "[3, 6]", "watched_steps": "[0, 2]", "study_steps": "4"}
    tiny |= {"live_seeds": "[0]", "run_dir": str(tmp_path), "publish_dir": str(tmp_path / "figs")}
    (tmp_path / "figs").mkdir()
    options = [word for name, value in tiny.items() for word in ("-p", name, value)]
    assert main([str(notebook), str(tmp_path / "out.ipynb"), *options]) == 0
    table = position_runs.read_table(tmp_path / "figs" / "position_help.csv")
    assert len(position_runs.last_rows(table)) == 2 * 45
    assert (tmp_path / "figs" / "position_help.pdf").stat().st_size > 1000


def test_findings_name_the_points_whose_interval_leaves_out_zero():
    rows = []
    for point, gain in (("base", 0.0), ("scale=1.0", 0.1)):
        for seed in range(3):
            for method in ("random", "simclr", "supcon", "depth_aware", "wsp"):
                auc = 0.7 + 0.01 * seed + (gain + 0.001 * seed) * (method == "wsp")
                row = {"point": point, "seed": seed, "method": method}
                marked = method == "supcon" and point != "base"
                rows.append(row | {"step": 300, "auc_population": auc, "collapsed": marked})
    lines = position_runs.findings(pd.DataFrame(rows))
    assert lines[0] == (
        "WSP minus SupCon: +0.00 [-0.00, +0.00] at the base; ahead at scale=1.0 (+0.10); "
        "not told at 1 of 2 points."
    )
    assert lines[-1] == (
        "SupCon is marked in 3 of 6 runs; their mean AUC is 0.71, that of untrained encoders 0.71."
    )


def table_of_rows(seeds, gain):
    rows = []
    for seed in seeds:
        for method, auc, depth in (
            ("wsp", 0.80, 0.97),
            ("supcon", 0.82, 0.90),
            ("random", 0.70, 0.95),
            ("wsp_own", 0.90, 0.93),  # the best class, but it cannot read depth
            ("wsp_floor", 0.81 + gain, 0.965),
            ("wsp_near", 0.805, 0.98),
            ("wsp_exp", 0.78, 0.99),
        ):
            for point in ("base", "n_steps=9"):
                if method == "random" and point != "base":
                    continue
                auc_here = auc + 0.01 * seed + 0.001 * seed * (method == "wsp_floor")
                auc_here += 0.02 * (point != "base")
                auc_here += 1e-4 * (seed - 4) * {"supcon": 1, "wsp_near": -1}.get(method, 0)
                row = {"point": point, "seed": seed, "method": method, "step": 3}
                rows.append(row | {"auc_population": auc_here, "depth_r2": depth})
    return pd.DataFrame(rows)


def test_rows_are_chosen_by_class_among_those_that_read_depth():
    table = table_of_rows((0, 1), 0.0)
    assert position_runs.over_points(table).loc[1, "wsp"] == pytest.approx(0.82)
    assert position_runs.over_points(table).loc[1, "random"] == pytest.approx(0.71)
    assert position_runs.choose_rows(table) == ["wsp_floor", "wsp_near"]


def test_seeds_of_which_points_are_missing_are_not_compared():
    table = table_of_rows((3, 4, 5), 0.0)
    late = (table.seed == 5) & (table.point != "base") & (table.method != "wsp_floor")
    part = position_runs.compare_rows(table[~late], ["wsp_floor"])
    whole = position_runs.compare_rows(table[table.seed < 5], ["wsp_floor"])
    pd.testing.assert_frame_equal(part, whole)
    assert np.isnan(position_runs.over_points(table[~late]).loc[5, "wsp"])


def test_a_table_that_a_spreadsheet_saved_says_the_same(tmp_path):
    row = {"point": "base", "seed": 0, "definition": "1", "step": 1, "auc_population": 0.5}
    rows = [row | {"method": m, "collapsed": m == "supcon"} for m in ("random", "supcon", "wsp")]
    position_runs.append_rows(file := tmp_path / "t.csv", pd.DataFrame(rows), [])
    was = position_runs.read_table(file)
    file.write_text(file.read_text().replace("False", "FALSE").replace("True", "TRUE"))
    pd.testing.assert_frame_equal(position_runs.read_table(file), was)
    assert was.collapsed.tolist() == [False, True, False]


def test_a_row_is_recommended_only_above_wsp_and_supcon():
    seeds = (3, 4, 5)
    near = position_runs.compare_rows(table_of_rows(seeds, 0.0), ["wsp_floor", "wsp_near"])
    assert near["mean"].to_numpy() == pytest.approx([0.014, -0.006, 0.005, -0.015, -0.02])
    assert near.row.iloc[-1] == "wsp" and near.minus.iloc[-1] == "supcon"
    lines = position_runs.recommend(table_of_rows(seeds, 0.0), near)
    assert lines[1].startswith("WSP, only a similar depth repels: above WSP (+0.005")
    assert "below SupCon (-0.015" in lines[1] and lines[-1].endswith("none is recommended.")
    far = table_of_rows(seeds, 0.1)
    lines = position_runs.recommend(far, position_runs.compare_rows(far, ["wsp_floor"]))
    assert lines == [
        "WSP, floor 0.2: above WSP (+0.114 [+0.112, +0.116]), above SupCon (+0.094 [+0.092, "
        "+0.096]); R2 of depth 0.96.",
        "WSP: below SupCon (-0.020 [-0.020, -0.020]); R2 of depth 0.97.",
        "Recommended where position and class both count: WSP, floor 0.2.",
    ]
    ahead = table_of_rows(seeds, 0.0)
    ahead.loc[ahead.method == "supcon", "auc_population"] -= 0.1
    lines = position_runs.recommend(ahead, position_runs.compare_rows(ahead, ["wsp_exp"]))
    assert lines[-1].endswith("both count: WSP, as none is told to be above it.")
    same = table_of_rows(seeds, 0.0).assign(auc_population=1.0)
    told = position_runs.recommend(same, position_runs.compare_rows(same, []))
    assert told[0] == "WSP: not told from SupCon (+0.000); R2 of depth 0.97."


def test_a_study_that_was_stopped_leaves_out_what_is_not_there(tmp_path):
    settings = position.Settings(n_steps=2, warmup_steps=1, batch_size=16)
    points = {"base": {}, "sigma=0.3": {"sigma": 0.3}}
    jobs = position_runs.plan(points, [0, 1], ["random", "supcon", "depth_aware", "wsp"])
    table = position_runs.run_missing(tmp_path / "a.csv", jobs, settings)
    pd.testing.assert_frame_equal(
        table, position_runs.run_missing(tmp_path / "a.csv", jobs, settings)
    )
    for k in range(len(jobs) + 1):
        for order in (table, table[::-1]):
            position_runs.differences(order[:k].reset_index(drop=True))
            position_runs.findings(order[:k].reset_index(drop=True))


def test_two_processes_that_add_runs_lose_none(tmp_path):
    path = tmp_path / "t.csv"
    row = {"point": "base", "method": "wsp", "definition": "x", "step": 1, "auc": 0.5}
    empty = position_runs.read_table(path)
    one = position_runs.append_rows(path, empty, [row | {"seed": 0}])
    position_runs.append_rows(path, empty, [row | {"seed": 1}])  # another, which began as early
    position_runs.append_rows(path, one, [row | {"seed": 2}])
    assert position_runs.read_table(path).seed.tolist() == [0, 1, 2]
    given = path, one, [row | {"seed": 3}]
    slow = threading.Thread(target=position_runs.append_rows, args=given)
    with alone(path):  # another one writes: it is waited for
        slow.start()
        slow.join(0.5)
        assert slow.is_alive() and len(position_runs.read_table(path)) == 3
    slow.join(20)
    assert sorted(position_runs.read_table(path).seed) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["weight_decay", "warmup_steps", "sigma"])
def test_settings_below_0_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=-1"):
        position.Settings(**{name: -1})
