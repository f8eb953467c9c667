"""The graph plans what it should: every method and seed once, and nothing twice."""

import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from wspnb.data.cohort import read_cohort
from wspnb.data.masks import write_cohort
from wspnb.results.tables import ROWS
from wspnb.studies import reference

ROOT = Path(__file__).parents[2]


def dry_run(target: str, *config: str, folder: Path = ROOT) -> str:
    """What is said of a run in which nothing is done yet."""
    command = [Path(sys.executable).with_name("snakemake"), "--snakefile", "workflow/Snakefile"]
    command += ["--dry-run", "--forceall", "--cores", "2", target]
    command += ["--config", *config] if config else []
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def plan(target: str, *config: str) -> dict[str, int]:
    """Number of jobs of each rule."""
    said = dry_run(target, *config)
    return {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", said, re.MULTILINE)}


@pytest.mark.slow
def test_notebook_07_runs_in_the_smoke_run_only():
    assert plan("report", "profile=smoke")["alone"] == plan("report")["alone"] + 1 == 6


@pytest.mark.slow
def test_plan_of_the_default_run():
    jobs = plan("report")
    assert (jobs["preprocess"], jobs["pretrain"], jobs["linear_probe"]) == (1, 3, 4)
    assert (jobs["representations"], jobs["results"], jobs["html_report"]) == (1, 1, 1)
    assert (jobs["audit"], jobs["alone"]) == (1, 5)
    assert "supervised" not in jobs and "masks" not in jobs


@pytest.mark.slow
def test_plan_of_a_product_of_methods_backbones_seeds_and_sigmas():
    product = (
        "methods=supervised,random,wsp",
        "backbones=tiny,resnet18",
        "seeds=0,1",
        "sigmas=0.3",
    )
    jobs = plan("report", *product, "profile=smoke")
    assert (jobs["pretrain"], jobs["linear_probe"], jobs["supervised"]) == (8, 12, 4)
    assert (jobs["representations"], jobs["audit"]) == (1, 2)  # each backbone has its audit
    assert jobs["masks"] == 1  # in the smoke run only
    jobs = plan("report", "methods=supervised", "profile=smoke")
    assert "audit" not in jobs and "representations" not in jobs  # nothing to compare or draw


@pytest.mark.slow
def test_plan_of_lihc_pretrains_nothing():
    jobs = plan("report", "profile=lihc", "methods=random", "lihc=/a", "labels=/b.csv")
    assert (jobs["preprocess"], jobs["linear_probe"], jobs["results"]) == (1, 1, 1)
    assert not {"alone", "pretrain", "audit", "supervised"} & set(jobs)
    imagenet = ("backbones=resnet18", "methods=random,imagenet", "imagenet=FILE")
    assert plan("report", "profile=lihc", *imagenet)["pretrain"] == 1


@pytest.mark.slow
def test_a_corrected_table_of_labels_is_read_again(tmp_path, monkeypatch):
    labels = tmp_path / "labels.csv"
    labels.touch()
    said = dry_run("report", "profile=lihc", "methods=random", f"labels={labels}")
    assert f"input: notebooks/01_preprocess.ipynb, {labels}\n" in said
    monkeypatch.setenv("HOME", str(tmp_path))
    said = dry_run("report", "profile=lihc", "methods=random", "labels=~/labels.csv")
    assert f"input: notebooks/01_preprocess.ipynb, {labels}\n" in said


@pytest.mark.slow
def test_plan_of_encoders_from_elsewhere(tmp_path):
    for run in ("wsp-tiny-seed0", "wsp-tiny-seed1"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "encoder.safetensors").touch()
    given = ("profile=lihc_160", "methods=random,wsp", f"encoders={tmp_path}")
    jobs = plan("report", *given, "seeds=0,1")
    assert (jobs["linear_probe"], jobs["audit"]) == (4, 1)
    assert not {"alone", "pretrain"} & set(jobs)
    with pytest.raises(AssertionError, match=r"wsp-tiny-seed2/encoder\.safetensors"):
        plan("report", *given, "seeds=2")


@pytest.mark.slow
def test_plan_of_the_tables_has_every_row_of_the_paper():
    sweep = yaml.safe_load((ROOT / "workflow" / "tables.yaml").read_text())
    runs = [
        (profile, name, backbone, seed)
        for profile, blocks in sweep.items()
        for block in blocks
        for name in block["names"]
        for backbone in block["backbones"]
        for seed in block["seeds"]
    ]
    assert len(runs) == len(set(runs))
    jobs = plan("report", "sweep=workflow/tables.yaml")
    trained = [run for run in runs if run[1] not in ("random", "supervised")]
    assert jobs["pretrain"] == len(trained)
    assert jobs["linear_probe"] == len([run for run in runs if run[1] != "supervised"])
    assert jobs["results"] == len(sweep)
    # The phantom's tables come from the reference experiment, the adrenal ones from the sweep.
    ours = [run for part in ("reference", "variants") for run in reference.plan(part)]
    assert len({(run.name, run.seed) for run in ours}) == len(ours)
    printed = pd.read_csv(ROOT / "figures" / "paper" / "table1_auc.csv")
    for names in ({run.name for run in ours}, {r[1] for r in runs if r[0] == "adrenal"}):
        missing = set(printed.method) - {ROWS[name] for name in names & set(ROWS)}
        assert missing <= {"ImageNet"}, missing  # needs torchvision's file: methods=imagenet
    sigmas = pd.read_csv(ROOT / "figures" / "paper" / "table3_sigma.csv").sigma
    here = {run.name for run in ours} | {run[1] for run in runs}
    assert {f"wsp_sigma{sigma}" for sigma in sigmas} - {"wsp_sigma0.1"} <= here  # 0.1: plain wsp


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("seed=3", "--config knows no seed"),
        ("profile=none", "there is no params/none.yaml"),
        ("methods=wpsi", "no method of"),
        ("methods=wsp_foo0.3", "notebook 02 has no parameter foo"),
        ("backbones=vit", "backbones: vit: there are tiny, tiny_padded and resnet18"),
        ("lihc=2024_05", r"lihc: snakemake takes the name for 202405: write \./ before it"),
        ("public_encoders=dinov2=/none", r"/none does not hold config\.json.*licence"),
    ],
)
def test_mistakes_on_the_command_line_are_named(config, message):
    with pytest.raises(AssertionError, match=message):
        plan("report", config)


@pytest.mark.slow
@pytest.mark.parametrize(
    "blocks",
    [
        "[{names: wsp, backbones: [tiny], seeds: [0]}]",
        "[{names: [wsp], backbones: [tiny]}]",
        "{names: [wsp], backbones: [tiny], seeds: [0]}",
    ],
)
def test_blocks_of_a_sweep_are_told_their_form(tmp_path, blocks):
    (tmp_path / "own.yaml").write_text(f"laptop: {blocks}\n", encoding="utf-8")
    with pytest.raises(AssertionError, match=r"own\.yaml: laptop: each block is a line like - "):
        plan("report", f"sweep={tmp_path / 'own.yaml'}")


@pytest.mark.slow
def test_a_training_of_large_slices_asks_for_the_memory_that_it_holds():
    book = "runs/{}/notebooks/02_pretrain-wsp-resnet18-seed0.ipynb"
    for profile, held in (("smoke", 8000), ("paper", 20833)):  # 512 px, 64 slices, and a kernel
        said = dry_run(book.format(profile), f"profile={profile}", "backbones=resnet18")
        asked = re.search(r"rule pretrain:.*?mem_mb=(\d+)", said, re.DOTALL)
        assert int(asked[1]) == held


@pytest.mark.slow
def test_who_judges_nobody_is_told_what_to_ask_for(tmp_path):
    for name in ("workflow", "params", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    own = (tmp_path / "params" / "own_160.yaml").read_text(encoding="utf-8")
    own = re.sub("^evaluate:.*", "evaluate: []", own, flags=re.MULTILINE)
    (tmp_path / "params" / "own_160.yaml").write_text(own, encoding="utf-8")
    config = ("profile=own_160", "methods=depth_aware")
    with pytest.raises(AssertionError, match=r"evaluate is empty.*name cohorts there") as told:
        dry_run("report", *config, folder=tmp_path)
    book = re.search(r"runs/own_160/notebooks/02_\S+\.ipynb", str(told.value))[0]
    assert re.search(r"pretrain +1\ntotal +2", dry_run(book, *config, folder=tmp_path))
    own = own.replace("evaluate: []", "evaluate: [d1]")
    own = re.sub("^n_folds:.*", "n_folds: 1", own, flags=re.MULTILINE)
    (tmp_path / "params" / "own_160.yaml").write_text(own, encoding="utf-8")
    with pytest.raises(AssertionError, match=r"own_160\.yaml: n_folds 1: write 2 or more"):
        dry_run("report", *config, folder=tmp_path)
    own = own.replace("n_folds: 1", "n_folds: 2").replace("data/own", "masks")
    (tmp_path / "params" / "own_160.yaml").write_text(own, encoding="utf-8")
    (tmp_path / "masks").mkdir()
    (tmp_path / "a").write_bytes(b"x")
    lines = "volume,mask,patient,weak_label,label,cohort\na,a,A,1,,radio\n"
    (tmp_path / "cohort.csv").write_text(lines, encoding="utf-8")
    drawn = read_cohort(tmp_path / "cohort.csv").assign(mask_source="predicted")
    write_cohort(tmp_path / "masks", drawn, None, tmp_path / "cohort.csv")
    assert "pretrain" in dry_run("report", *config, folder=tmp_path)
    (tmp_path / "cohort.csv").write_text(lines.replace("radio", "d1"), encoding="utf-8")
    drawn = read_cohort(tmp_path / "cohort.csv").assign(mask_source="predicted")
    write_cohort(tmp_path / "masks", drawn, None, tmp_path / "cohort.csv")
    with pytest.raises(AssertionError, match=r"nobody of cohort 'radio', there are \['d1'\]"):
        dry_run("report", *config, folder=tmp_path)
    (tmp_path / "cohort.csv").write_text(lines, encoding="utf-8")
    drawn = read_cohort(tmp_path / "cohort.csv").assign(mask_source="predicted")
    write_cohort(tmp_path / "masks", drawn, None, tmp_path / "cohort.csv")
    (tmp_path / "cohort.csv").write_text(lines.replace("1,,r", "2,,r"), encoding="utf-8")
    with pytest.raises(AssertionError, match=r"cohort\.csv: says something else than when"):
        dry_run("report", *config, folder=tmp_path)
    more = "volume,mask,patient,weak_label,label,cohort,scanner\na,a,A,1,,radio,Force\n"
    (tmp_path / "cohort.csv").write_text(more, encoding="utf-8")
    with pytest.raises(AssertionError, match=r"cohort\.csv: says something else than when"):
        dry_run("report", *config, folder=tmp_path)
    (tmp_path / "cohort.csv").write_text(lines, encoding="utf-8")
    own = read_cohort(tmp_path / "cohort.csv").assign(mask_source="given")
    write_cohort(tmp_path / "masks", own, None, tmp_path / "cohort.csv")
    assert "given masks" not in said(2, *config, folder=tmp_path)
    (tmp_path / "a").write_bytes(b"corrected by hand")
    assert "own_160: given masks of A, or their" in said(2, *config, folder=tmp_path)


def said(cores: int, *config: str, folder: Path = ROOT) -> str:
    """What `plan` prints."""
    command = [Path(sys.executable).with_name("snakemake"), "--snakefile", "workflow/Snakefile"]
    command += ["--cores", str(cores), "--nolock", "plan", "--config", *config]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.stdout + done.stderr


def hours(cores: int, *config: str) -> float:
    """Its estimate."""
    return float(re.search(r"about (\d+) h on", said(cores, *config))[1])


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a card's time is not estimated")
def test_steps_size_batch_and_cores_enter_the_estimate():
    long = hours(2, "profile=own_160", "methods=wsp_n_steps100000")
    about = partial(pytest.approx, rel=0.05)  # printed in whole hours, with minutes of the others
    assert hours(2, "profile=own_160", "methods=wsp_n_steps200000") == about(2 * long)
    own = said(2, "profile=own", "methods=wsp_n_steps100000")
    assert float(re.search(r"about (\d+) h on", own)[1]) == about(long * (512 / 160) ** 2)
    assert "a training holds up to 9 GB of memory" in own  # measured: 7.8 and a kernel
    assert hours(8, "profile=own_160", "methods=wsp_n_steps100000") == about(long)  # takes two
    assert hours(1, "profile=own_160", "methods=wsp_n_steps100000") == about(2 * long)
    # 500 steps of batches of 64 * 200 slices
    assert hours(2, "profile=own_160", "methods=wsp_batch_size12800") == about(long)


def test_profiles_name_only_parameters_that_exist():
    from wspnb.run import gather

    files = sorted((ROOT / "params").glob("*.yaml"))
    assert {"smoke", "paper", "adrenal"} <= {file.stem for file in files}
    for file in files:
        for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
            gather(notebook, [str(file)], [])
