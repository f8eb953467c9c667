"""Same seed, machine and number of threads: the same bytes; what threads may change is bounded.

Sums in another order differ in their last digit, and Adam turns the sign of a gradient near 0 into
a whole step. So another number of threads is another training, and the workflow always takes two.
"""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from wspnb.models import build_encoder, build_head
from wspnb.studies import loop, position

TRAIN = """
import sys
import numpy as np, torch
from types import SimpleNamespace
from wspnb import probe
from wspnb.augment import augment
from wspnb.models import build_encoder, build_head
from wspnb.studies import loop

grid, number = torch.arange(32) / 32, torch.arange(40)
waves = (number // 4 % 2 + 1)[:, None] * grid * 6 + (number % 4)[:, None]  # class, then depth
images = ((waves.sin()[:, :, None] + (waves * 0.7).cos()[:, None] + 2) * 63).byte()
patients = np.array([f"p{i // 4}" for i in range(40)])
slices = patients, torch.arange(40) // 4 % 2, torch.arange(40) % 4 / 3
encoder, head = build_encoder("tiny_padded", "batch", 0), build_head("tiny_padded", 0)
settings = SimpleNamespace(sigma=0.1, temperature=0.1, batch_size=8, n_steps=6, warmup_steps=1,
                           learning_rate=1e-3, weight_decay=1e-5)
views = lambda batch, g: torch.cat([augment(images[batch, None], g) for _ in range(2)])
loop.train("wsp", slices, views, encoder, head, settings,
           torch.Generator().manual_seed(0), torch.Generator().manual_seed(0))
features = probe.extract_features(encoder.eval(), images.numpy(), np.arange(40), 16)
weights = np.concatenate([p.detach().numpy().ravel() for p in encoder.parameters()])
np.savez(sys.argv[1], features=features, weights=weights)
"""


@pytest.mark.slow
def test_same_seed_same_bytes_and_threads_move_weights_by_adams_steps(tmp_path):
    found = {}
    for name, threads in (("one", 1), ("again", 1), ("two", 2), ("two_again", 2)):
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        file = tmp_path / f"{name}.npz"
        subprocess.run([sys.executable, "-c", TRAIN, file], check=True, env=environment)
        with np.load(file) as content:
            found[name] = {key: content[key] for key in content}
    for key in ("weights", "features"):
        assert found["one"][key].tobytes() == found["again"][key].tobytes()
        assert found["two"][key].tobytes() == found["two_again"][key].tobytes()
    apart = np.abs(found["one"]["weights"] - found["two"]["weights"]).max()
    assert apart <= 2 * 6 * 1e-3  # twice what Adam can move a weight in six steps
    assert np.abs(found["one"]["features"]).max() > 0.01


def test_a_training_that_diverges_is_no_result():
    table = pd.DataFrame({"patient": [*"aabbccdd"]})
    weak, positions = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1]), torch.linspace(0, 1, 8)
    settings = position.Settings(batch_size=4, n_steps=6, warmup_steps=0, learning_rate=1e30)
    parts = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(8, 3, generator=draw)
    with pytest.raises(ValueError, match=r"supcon: .* is not finite: the training diverged"):
        loop.train(
            "supcon",
            (table.patient.to_numpy(), weak, positions),
            lambda batch, _: images[batch + batch],
            *parts,
            settings,
            draw,
            draw,
        )


def test_an_encoder_that_was_read_from_a_file_learns_as_any_other():
    """It comes in evaluation mode, where batch norms would stand still."""
    images, losses = torch.rand(24, 1, 32, 32, generator=torch.Generator().manual_seed(0)), []
    slices = [f"p{i}" for i in range(24)], torch.arange(24) % 2, torch.arange(24) / 23
    given = {"sigma": 0.1, "temperature": 0.1, "batch_size": 8, "n_steps": 3, "warmup_steps": 0}
    settings = SimpleNamespace(**given, learning_rate=1e-3, weight_decay=0.0)
    for mode in (True, False):
        encoder = build_encoder("tiny_padded", "batch", 0).train(mode)
        head = build_head("tiny_padded", 0).train(mode)
        draws = [torch.Generator().manual_seed(0) for _ in range(2)]
        views = lambda rows, _: images[rows].repeat(2, 1, 1, 1)  # noqa: E731
        log = loop.train("supcon", slices, views, encoder, head, settings, *draws)
        losses.append([row["loss"] for row in log])
    assert losses[0] == losses[1]
