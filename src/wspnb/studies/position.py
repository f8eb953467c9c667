"""One short training of a study and its judgement, on slices that are short vectors."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import nn

from wspnb.methods import has_line, split_name
from wspnb.models import evaluating, seeded, two_layers
from wspnb.phantom.minimal import N_FEATURES, Cohort
from wspnb.pretrain import UNTRAINED, is_collapsed
from wspnb.studies import loop
from wspnb.studies.judge import by_cohort
from wspnb.studies.judge import judge as judge_features


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of one training, equal for all methods."""

    sigma: float = 0.1  # kernel width, share of the kept liver height (P: 0.1)
    temperature: float = 0.1  # of the similarities (released code: 0.1)
    batch_size: int = 64  # slices per batch (P: 64)
    n_steps: int = 300  # optimiser steps (released code: 6240)
    warmup_steps: int = 30  # linear rise of the learning rate (paper silent)
    learning_rate: float = 3e-3  # of Adam (paper silent)
    weight_decay: float = 1e-5  # of Adam (paper silent)

    def __post_init__(self):
        rates = (self.sigma, self.temperature, self.learning_rate, self.n_steps)
        least = min(self.warmup_steps, self.weight_decay)
        if not (min(rates) > 0 and self.batch_size > 1 and least >= 0):
            raise ValueError(f"{self}: all above 0, a batch of two or more")


def train(
    method: str,
    cohort: Cohort,
    encoder: nn.Module,
    head: nn.Module,
    settings: Settings,
    seed: int = 0,
    watch: Callable[[int], None] | None = None,
) -> list[dict]:
    """Pretrain ``encoder`` and ``head`` in place on the slices of D_radio; batches and views depend
    on the seed alone, so all methods see the same. See :func:`wspnb.studies.loop.train`."""
    table = cohort.table[cohort.table.cohort == "radio"]
    inputs = cohort.inputs[table.index.to_numpy(copy=True)]
    labels = torch.tensor(table.weak_label.to_numpy(int))
    slices = table.patient.to_numpy(), labels, torch.tensor(table.position.to_numpy())

    def views(batch, generator):
        return torch.cat([cohort.views(inputs[batch], generator) for _ in range(2)])

    generator = torch.Generator().manual_seed(seed)
    given = (encoder, head, settings, generator, generator, watch)
    return loop.train(method, slices, views, *given)


@torch.inference_mode()
def judge(cohort: Cohort, encoder: nn.Module) -> dict[str, float]:
    """AUC of the linear probe and how well depth is read, see :func:`wspnb.studies.judge.judge`."""
    with evaluating(encoder):
        found = by_cohort(
            cohort.table, lambda rows: encoder(cohort.plain(cohort.inputs[rows])).numpy()
        )
    return judge_features(found)


def run(cohort: Cohort, method: str, seed: int, settings: Settings, watched=()) -> list[dict]:
    """One training with its judgement after ``watched`` steps and at the end.

    The method is what :func:`wspnb.methods.split_name` knows (random: the untrained encoder), its
    name may change one of the settings (wsp_sigma0.3); the seed is that of weights, batches, views.

    Returns:
        A row per judgement: step, what :func:`judge` returns, and loss (mean of the last tenth) and
        collapsed of the whole training.
    """
    encoder, head = build_networks(seed)
    rows = []

    def watch(step):
        if step in watched or step == settings.n_steps:
            rows.append({"step": step, **judge(cohort, encoder)})

    if method in UNTRAINED:
        return [{"step": 0, **judge(cohort, encoder), "collapsed": False}]
    method, changes = split_name(method)
    changes = {key: type(getattr(settings, key))(value) for key, value in changes.items()}
    settings = replace(settings, **changes)
    log = pd.DataFrame(train(method, cohort, encoder, head, settings, seed, watch))
    tail = log.loss.tail(max(1, len(log) // 10)).mean()
    marked = has_line(method) and is_collapsed(log.loss, settings.batch_size)
    return [row | {"loss": tail, "collapsed": marked} for row in rows]


def build_networks(seed: int) -> tuple[nn.Module, nn.Module]:
    """Encoder and head whose weights depend on the seed alone."""
    with seeded(seed):
        first = nn.Linear(N_FEATURES, 128), nn.BatchNorm1d(128), nn.ReLU()
        second = nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU()
        encoder = nn.Sequential(*first, *second)
        return encoder.double(), two_layers(64, 64, 32).double()
