"""Committed scores give the tables back; what was edited afterwards is named."""

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import save
from test_audit import write_probe

from wspnb.files import write_csv
from wspnb.models import build_encoder
from wspnb.results import audit, committed, tables


@pytest.fixture
def figures(tmp_path):
    """Tables of a small run, as notebooks 05 and 06 publish them, with its scores."""
    for seed in (0, 1):
        for name, strength in (("wsp", 3.0), ("supcon", 2.0), ("random", 0.0)):
            write_probe(tmp_path, name, seed, strength, name=name)
    write_probe(tmp_path, "wsp", 0, 1.0, name="wsp_sigma0.3")
    for file in tmp_path.glob("probe/*/results.json"):
        run = json.loads(file.read_text())
        run |= {"collapsed": False, "training": {"sigma": 0.3 if "0.3" in run["name"] else 0.1}}
        run["results"] = [r | {"sd": 0.1, "bacc": 0.7, "bacc_sd": 0.1} for r in run["results"]]
        file.write_text(json.dumps(run))
        log = tmp_path / "pretrain" / file.parent.name / "log.csv"
        write_csv(log, pd.DataFrame({"step": [0, 1], "effective_positives": [2.0, 2.1]}))
    for file in tmp_path.glob("probe/*/scores.csv"):
        pd.read_csv(file).assign(threshold=0.5).to_csv(file, index=False)
    runs = tables.read_runs(tmp_path)
    probes, scores = audit.by_cohort(runs)
    deals = audit.repeat_folds(probes, scores, [0, 1], 0.01, 5)
    write_csv(tmp_path / "deals.csv", deals.assign(backbone="tiny"))
    people = pd.DataFrame({"patient": [f"p{i:02d}" for i in range(24)], "cohort": "d1"})
    people = people.assign(label=np.arange(24) % 3 > 0, reading=np.arange(24) % 2)
    figures = tmp_path / "figures"
    for place in ("here", "again"):
        committed.pack(runs, figures / "runs" / place, "_x", people, [tmp_path / "deals.csv"])
    files = ("runs.json", "scores.csv.gz", "deals.csv.gz", "readings.csv.gz")
    for name in files:  # the same bytes for the same runs
        one, two = (figures / "runs" / place / name for place in ("here", "again"))
        assert one.read_bytes() == two.read_bytes()
        two.unlink()
    for name, table in committed.recompute(figures / "runs" / "here").items():
        write_csv(figures / f"{name}.csv", table)
    return figures


def test_committed_scores_give_the_same_tables_as_the_run(figures):
    runs, kept = tables.read_runs(figures.parent), tables.read_runs(figures / "runs" / "here")
    assert tables.auc_table(runs).equals(tables.auc_table(kept))
    assert tables.sigma_table(kept).effective_positives.tolist() == pytest.approx([2.05, 2.05])
    for one, two in zip(runs, kept, strict=True):
        assert one["scores"].equals(two["scores"])
    names = {"table1", "table2", "table3"}
    names |= {f"audit_{kind}" for kind in ("differences", "claims", "variants", "pairs", "folds")}
    assert {file.stem for file in figures.glob("*.csv")} == {f"{name}_x" for name in names}
    table2 = pd.read_csv(figures / "table2_x.csv")
    assert table2.method.tolist() == ["None (random)", "SupCon", "WSP", "simulated reading"]
    assert set(committed.verify(figures).found) == {"equal"}


def test_a_number_edited_by_hand_is_named(figures):
    file = figures / "table1_x.csv"
    table = pd.read_csv(file)
    was = table.auc_d1[2]
    table.loc[2, "auc_d1"] = was + 0.001
    write_csv(file, table)
    found = committed.verify(figures).set_index("file").found
    assert found["table1_x.csv"] == f"row 3, auc_d1: committed {was + 0.001}, now {was}"
    claims = figures / "audit_claims_x.csv"
    claims.write_text(claims.read_text().replace("not supported", "supported", 1))
    found = committed.verify(figures).set_index("file").found
    assert found["audit_claims_x.csv"].endswith(": committed supported, now not supported")
    (figures / "audit_pairs_x.csv").unlink()
    found = committed.verify(figures).set_index("file").found
    assert found["audit_pairs_x.csv"] == "is not committed"


def test_scores_that_do_not_give_their_results_are_named(figures):
    file = figures / "runs" / "here" / "scores.csv.gz"
    scores = pd.read_csv(file)
    own = (scores.run == "wsp-tiny-seed0") & (scores.cohort == "d1")
    scores.loc[own, "score"] = 1 - scores.score[own]
    scores.to_csv(file, index=False)
    found = committed.verify(figures)
    assert found.found[0].startswith("wsp-tiny-seed0 d1: runs.json ")
    assert found.set_index("file").found["audit_differences_x.csv"].startswith("row ")


def test_tables_without_scores_are_told_from_equal_ones(figures):
    write_csv(figures / "position_help.csv", pd.DataFrame({"a": [1]}))
    write_csv(figures / "own.csv", pd.DataFrame({"a": [1]}))
    found = committed.verify(figures).set_index("file").found
    assert found["own.csv"] == "not from scores: none are committed"
    assert found["position_help.csv"].startswith("not from scores: one row per training")


def test_a_run_is_published_with_its_scores_and_tables(figures):
    found = committed.publish(figures.parent, "mine", "_mine", figures)
    assert {"table1_mine", "table3_mine", "audit_claims_mine"} <= set(found)
    kept = tables.auc_table(tables.read_runs(figures / "runs" / "mine")).round(4)
    table = pd.read_csv(figures / "table1_mine.csv")
    assert table.auc_d12.tolist() == kept.auc_d12.tolist() and len(table) == 4
    assert set(committed.verify(figures).found) == {"equal"}


def test_a_run_is_held_against_itself(figures):
    run = figures.parent
    content = save(build_encoder("tiny_padded", "batch", 0).state_dict())
    facts = {"backbone": "tiny_padded", "norm": "batch", "seed": 0}
    facts |= {"encoder_sha256": hashlib.sha256(content).hexdigest()}
    for folder in (run / "pretrain").iterdir():
        (folder / "encoder.safetensors").write_bytes(content)
        (folder / "config.json").write_text(json.dumps(facts))
    for name, table in committed.tables_of(tables.read_runs(run)).items():
        write_csv(figures / f"{name}.csv", table)
    whole = committed.verify_run(run)
    assert set(whole.found) == {"equal"}
    assert {"pretrain/wsp-tiny-seed0", "probe/wsp-tiny-seed0", "figures/table1.csv"} <= {
        *whole.file
    }

    file = run / "pretrain" / "wsp-tiny-seed0" / "encoder.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # of one weight
    file.write_bytes(content)
    (figures / "table1.csv").write_text((figures / "table1.csv").read_text().replace("0.", "1.", 1))
    scores = run / "probe" / "supcon-tiny-seed1" / "scores.csv"
    table = pd.read_csv(scores)
    write_csv(scores, table.assign(score=1 - table.score))
    found = committed.verify_run(run).set_index("file").found
    assert "damaged, or not the encoder" in found["pretrain/wsp-tiny-seed0"]
    assert found["figures/table1.csv"].startswith("row 1, ")
    assert "supcon-tiny-seed1 d1" in found["probe"].iloc[0]
    assert found["pretrain/wsp-tiny-seed1"] == "equal"


def test_what_others_leave_in_a_run_is_not_compared(figures, monkeypatch, capsys):
    run = figures.parent
    for name in ("audit_deals.csv", "audit_deals (1).csv", "audit_deals_resnet18.csv"):
        write_csv(figures / name, pd.DataFrame({"auc": [0.5]}))
    assert [file.name for file in committed.deals_of(run)] == [
        "audit_deals.csv",
        "audit_deals_resnet18.csv",
    ]
    for file in committed.deals_of(run):
        file.unlink()
    for name in ("dinov2-base", ".trash", "._wsp-tiny-seed0", "wsp-tiny-seed0 (1)"):
        (run / "pretrain" / name).mkdir()
        (run / "pretrain" / name / "config.json").write_text("{")
    (run / "pretrain" / "wsp-tiny-seed0" / "config.json").write_text("{")
    found = committed.verify_run(run).set_index("file").found
    assert [name for name in found.index if name.startswith("pretrain")] == [
        "pretrain/wsp-tiny-seed0"
    ]
    assert "config.json: damaged" in found["pretrain/wsp-tiny-seed0"]
    (figures / "runs" / ".here").mkdir()
    (figures / "runs" / ".here" / "runs.json").write_text("{")
    (figures / "folder.csv").mkdir()
    assert len(committed.verify(figures))
    monkeypatch.setattr("sys.argv", ["committed", "--run", str(run / "none")])
    with pytest.raises(SystemExit):
        committed.main()
    assert "no finished probe" in capsys.readouterr().err


def test_tables_are_compared_whatever_the_profile_calls_them(figures):
    run = figures.parent
    found = committed.verify_run(run).set_index("file").found
    assert found["figures/table1_x.csv"] == "equal"
    file = figures / "table1_x.csv"
    file.write_text(file.read_text().replace("0.", "1.", 1))  # by hand
    for probe in run.glob("probe/wsp*"):
        shutil.rmtree(probe)
    found = committed.verify_run(run).set_index("file").found
    assert found["figures/table1_x.csv"] != "equal"
    assert found["figures/table3_x.csv"] == "is of former runs: 05 or 06 again"


def test_each_encoder_has_an_audit_of_its_own(figures):
    runs = tables.read_runs(figures.parent)
    alone = committed.tables_of(runs)
    more = [run | {"backbone": kind} for kind in ("tiny_padded", "resnet18", "vit") for run in runs]
    found = committed.tables_of(runs + more)
    for name in ("audit_differences", "audit_variants", "audit_claims"):
        pd.testing.assert_frame_equal(found[name], alone[name])
        assert {f"{name}_{kind}" for kind in ("tiny_padded", "resnet18", "vit")} <= {*found}
    assert [*committed.tables_of(more[: len(runs)])] == [*alone]  # the padded one by itself


def test_an_audit_is_compared_as_it_was_made(figures):
    run = figures.parent
    _, scores = audit.by_cohort(tables.read_runs(run))
    gaps = audit.differences(scores, [("supcon", name) for name in ("random", "wsp")])
    table = audit.named(gaps, "reference", "method").round(4)
    write_csv(figures / "audit_differences.csv", table)
    found = committed.verify_run(run).set_index("file").found
    assert found["figures/audit_differences.csv"] == "equal"
    joined = tables.read_runs(run)  # whose parts nobody judged alone: slices.csv knows them
    for one in joined:
        one["results"] = {"d1+d2": one["results"]["d1+d2"]}
    both = committed.tables_of(tables.read_runs(run))["audit_pairs"]
    found = committed.tables_of(joined)["audit_pairs"]
    pd.testing.assert_frame_equal(found, both[both.cohort == "d1+d2"].reset_index(drop=True))


@pytest.mark.parametrize("phantom", [True, False])
def test_only_a_phantoms_reading_is_published(figures, phantom):
    people = pd.DataFrame({"patient": [f"p{i:02d}" for i in range(24)], "cohort": "d1"})
    people = people.assign(label=np.arange(24) % 3 > 0, reading=np.arange(24) % 2)
    people = people.assign(true_severity=0.5) if phantom else people
    write_csv(figures.parent / "cohort" / "slices.csv", people)
    committed.publish(figures.parent, "mine", "_mine", figures)
    methods = pd.read_csv(figures / "table2_mine.csv").method
    assert ("simulated reading" in set(methods)) == phantom


def test_nothing_to_compare_is_no_success(tmp_path):
    found = subprocess.run(
        [sys.executable, "-m", "wspnb.results.committed"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2 and "no table of ours to compare" in found.stderr


def test_what_lay_under_the_name_before_goes(tmp_path):
    for name in ("deals", "readings", "studies"):
        write_csv(tmp_path / f"{name}.csv.gz", pd.DataFrame({"run": ["of before"]}))
    committed.pack([], tmp_path, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs.json"]
