"""The graph plans what it should: every method and seed once, and nothing twice."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def plan(target: str, *config: str) -> dict[str, int]:
    """Number of jobs of each rule in a dry run in which nothing is done yet."""
    command = [Path(sys.executable).with_name("snakemake"), "--snakefile", "workflow/Snakefile"]
    command += ["--dry-run", "--forceall", "--cores", "2", target]
    command += ["--config", *config] if config else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE)}


@pytest.mark.slow
def test_plan_of_the_default_run():
    jobs = plan("report")
    assert (jobs["preprocess"], jobs["pretrain"], jobs["linear_probe"]) == (1, 4, 5)
    assert (jobs["representations"], jobs["results"], jobs["html_report"]) == (1, 1, 1)


@pytest.mark.slow
def test_plan_of_three_seeds_and_another_profile():
    jobs = plan("report", "seeds=0,1,2", "profile=smoke")
    assert (jobs["pretrain"], jobs["linear_probe"], jobs["representations"]) == (12, 15, 1)


def test_profiles_name_only_parameters_that_exist():
    from wspnb.run import gather

    files = sorted((ROOT / "params").glob("*.yaml"))
    assert {"smoke", "paper", "adrenal"} <= {file.stem for file in files}
    for file in files:
        for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
            gather(notebook, [str(file)], [])
