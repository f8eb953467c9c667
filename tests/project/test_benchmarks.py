"""The benchmarks run; what they measure is not judged here."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

BENCH = Path(__file__).parents[2] / "benchmarks" / "bench.py"


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(BENCH), *words], capture_output=True, text=True)


@pytest.mark.trust
@pytest.mark.slow
def test_every_topic_gives_rows():
    results = BENCH.with_name("results.csv")
    before = results.read_bytes() if results.exists() else None
    done = run("--quick", "--runs", "1")
    assert done.returncode == 0, done.stderr
    for what in (
        "augmentation",
        "n = 64",
        "by rows",
        "weights",
        "draws",
        "step, tiny",
        "read",
        "notebook 01",
        "notebook 02",
        "compiled",
        "UMAP",
        "2 processes",
    ):
        assert what in done.stdout, what
    assert "efficiency" in done.stdout
    assert (results.read_bytes() if results.exists() else None) == before


def test_unknown_topic_is_named():
    done = run("speed")
    assert done.returncode == 2 and "no topic speed; there are augment" in done.stderr


@pytest.mark.slow
def test_parts_of_a_step(tmp_path):
    words = "--backbone tiny --size 160 --slices 2 --steps 1".split()
    words += ["--table", str(tmp_path / "card.csv")]
    script = [sys.executable, str(BENCH.with_name("step.py")), *words]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for what in ("backward", "utilisation", "GFLOP a step", "of the measured", "6240 steps"):
        assert what in done.stdout, what
    row, kept = pd.read_csv(tmp_path / "card.csv"), pd.read_csv(BENCH.with_name("card.csv"))
    assert list(row) == list(kept) and row.step_s[0] > 0 and 0 < row.tflops[0] < row.peak_tflops[0]


@pytest.mark.slow
def test_a_page_gets_the_table_and_keeps_the_rest(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH.parent))
    import bench

    row = {"what": "loss", "plain_s": 0.5, "ours_s": 0.25, "times_faster": 2.0, "note": "two"}
    table = pd.DataFrame([row, {"what": "read", "ours_s": 0.125, "peak_mb": 99.6}])
    table = table.assign(panel=["slices in a batch (loss)", None], x=[64, np.nan])
    table = table.assign(machine=["a laptop", "a node"])
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- results -->\nold\n<!-- end of results -->\nafter\n")
    bench.publish(table, page)
    text = page.read_text()
    assert "| loss | 0.500 | 0.250 | 2.0 |  | two |" in text and "old" not in text
    assert "| read |  | 0.125 |  | 100 |  |" in text
    assert text.index("a laptop.") < text.index("| loss") < text.index("a node.")
    assert text.startswith("before\n") and text.endswith("<!-- end of results -->\nafter\n")
    bench.draw(table, tmp_path / "cost.png")
    assert (tmp_path / "cost.png").stat().st_size > 5000


@pytest.mark.slow
def test_the_script_for_a_card_runs_in_a_tiny_form_without_one_and_goes_on(tmp_path):
    command = [sys.executable, str(BENCH.with_name("gpu.py")), "--out", str(tmp_path / "gpu")]
    command += "--size 32 --share 0.004 --steps 2 --workers 1 --skip step".split()
    log, one = tmp_path / "gpu" / "gpu.txt", "wsp seed 0: population 0."
    for times in (1, 2):  # done, then found done
        process, deadline = subprocess.Popen([*command, "--minutes", "8"]), time.monotonic() + 450
        try:
            while not log.exists() or log.read_text(encoding="utf-8").count(one) < times:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
        finally:
            process.terminate()  # its trainings leave with it
            process.wait(60)
    said = log.read_text(encoding="utf-8")
    assert torch.cuda.is_available() or "10 skipped" in said
    assert (tmp_path / "gpu" / "32px" / "probe" / "wsp-tiny_padded-seed0" / "studies.csv").exists()


def test_seconds_of_a_run_by_step(tmp_path):
    (tmp_path / "notebooks").mkdir()
    for seed in (0, 1):
        book = {"metadata": {"papermill": {"duration": 3.5}}}
        file = tmp_path / "notebooks" / f"02_pretrain-wsp-tiny-seed{seed}.ipynb"
        file.write_text(json.dumps(book), encoding="utf-8")
    command = [sys.executable, BENCH.with_name("where.py"), tmp_path]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "7 (2)" in said and "sum" in said


def test_the_speed_of_a_card_lies_beside_the_rest_wherever_it_is_called(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH.parent))
    import gpu

    from wspnb.studies import reference

    called = []
    monkeypatch.setattr(reference, "run_all", lambda *given: None)
    done = subprocess.CompletedProcess((), 0, "", "")
    monkeypatch.setattr(gpu.subprocess, "run", lambda words, **more: called.append(words) or done)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", "here", "--skip", "tests"])
    monkeypatch.chdir(tmp_path)
    gpu.main()
    assert {words[-1] for words in called if "--table" in words} == {
        str(tmp_path / "here/card.csv")
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--plans", "nonsense"], "--plans"),
        (["--workers", "0"], "at least 1"),
        (["--share", "0"], "--share 0"),
    ],
)
def test_words_that_are_wrong_are_told_before_the_work(tmp_path, words, said):
    command = [sys.executable, BENCH.parent / "gpu.py", "--out", tmp_path / "out", *words]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 2 and said in found.stderr and not (tmp_path / "out").exists()
