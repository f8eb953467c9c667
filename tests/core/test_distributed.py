"""Two processes on one machine (gloo, CPU): the batch they share is the batch of one."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.distributed as dist

from wspnb.augment import augment
from wspnb.data.slices import write_slices
from wspnb.distributed import gather, share
from wspnb.losses import contrastive_loss
from wspnb.methods import METHODS, loss_terms
from wspnb.phantom.patients import Phantom
from wspnb.phantom.scans import make_phantom

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "02_pretrain.ipynb"


def network() -> torch.nn.Module:
    layers = torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4)
    for number, parameter in enumerate(torch.nn.Sequential(*layers).parameters()):
        generator = torch.Generator().manual_seed(number)
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return torch.nn.Sequential(*layers).double()


def one_step(model, mine, anchors, method, normalise):
    """Loss and gradients of a batch of 12 slices, of which this process holds ``mine``."""
    generator = torch.Generator().manual_seed(9)
    views = torch.randn(2, 12, 6, generator=generator, dtype=torch.float64)
    terms = loss_terms(method, torch.arange(12) % 3, torch.linspace(0, 1, 12), 0.2)
    pair = (gather(model(view[mine])) for view in views)
    loss = contrastive_loss(*pair, **terms, normalise=normalise, anchors=anchors)
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


def _process(rank, folder, cases):
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    mine = share(12, rank, 2)
    for case in cases:
        model = torch.nn.parallel.DistributedDataParallel(network())
        loss, gradient = one_step(model, mine, mine, *case)
        dist.all_reduce(loss)
        torch.save((loss / 2, gradient), f"{folder}/{rank}-{'-'.join(case)}.pt")
    with pytest.raises(ValueError, match=f"3 to 4 embeddings on the devices, {4 - rank} here"):
        gather(torch.ones(4 - rank, 3))  # on both, and neither waits
    dist.destroy_process_group()


def test_loss_and_gradient_of_two_processes_are_those_of_one(tmp_path):
    cases = [(m, n) for m in METHODS for n in ("row", "column")]
    torch.multiprocessing.spawn(_process, (str(tmp_path), cases), nprocs=2)
    for case in cases:
        loss, gradient = one_step(network(), torch.arange(12), None, *case)
        for rank in (0, 1):
            found, slope = torch.load(tmp_path / f"{rank}-{'-'.join(case)}.pt")
            assert found.item() == pytest.approx(loss.item(), rel=1e-12)
            torch.testing.assert_close(slope, gradient, rtol=1e-9, atol=1e-14)


def test_shares_hold_every_place_once():
    places = torch.cat([share(12, rank, 3) for rank in range(3)])
    assert places.tolist() == list(range(12))
    with pytest.raises(ValueError, match="batch_size=10: must be a multiple of the 4 devices"):
        share(10, 0, 4)


def test_views_of_the_shares_are_those_of_the_batch():
    images = torch.rand(6, 1, 24, 24)
    whole = augment(images, torch.Generator().manual_seed(1))
    for rank in (0, 1):
        mine = share(6, rank, 2)
        found = augment(images[mine], torch.Generator().manual_seed(1), mine, 6)
        assert torch.equal(found, whole[mine])


@pytest.mark.parametrize("place", [{}, {"LOCAL_RANK": "0"}])
def test_a_single_process_of_another_tool_needs_no_address(place):
    words = "from wspnb.distributed import start; print(start('no').num_processes)"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MASTER_")}
    environment |= {"RANK": "0", "WORLD_SIZE": "1"} | place
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, env=environment)
    assert done.stdout.strip() == b"1", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("method", ["wsp", pytest.param("byol", marks=pytest.mark.trust)])
def test_notebook_under_torchrun_learns_the_same(tmp_path, method):
    table = make_phantom(
        tmp_path / "source", Phantom(image_size=32, spacing_mm=20), 0.01, 0.1, 1, progress=False
    )
    write_slices(table, tmp_path / "cohort", image_size=32, workers=1, progress=False)
    values = f"method={method} backbone=tiny_padded norm=none precision=no n_steps=4"
    values += f" batch_size=8 warmup_steps=1 log_every=1 cohort_dir={tmp_path / 'cohort'}"
    pairs = [word for pair in values.split() for word in ("-p", *pair.split("=", 1))]
    run, logs = [sys.executable, "-m", "wspnb.run", str(NOTEBOOK)], []
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", "--no-python"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, launcher in (("one", []), ("two", torchrun)):
        own = [str(tmp_path / f"{name}.ipynb"), *pairs, "-p", "run_dir", str(tmp_path / name)]
        done = subprocess.run(
            [*launcher, *run, *own], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stdout + done.stderr
        folder = tmp_path / name / "pretrain" / f"{method}-tiny_padded-seed0"
        logs.append(pd.read_csv(folder / "log.csv"))
    assert logs[1].loss.tolist() == pytest.approx(logs[0].loss.tolist(), rel=1e-5)
    assert logs[0].loss.nunique() == 4
    for name in ("uniformity", "embedding_sd", "feature_sd"):  # of the whole batch, not of a share
        assert logs[1][name].tolist() == pytest.approx(logs[0][name].tolist(), rel=1e-3, abs=1e-4)
    assert (tmp_path / "two-rank1.ipynb").exists()
