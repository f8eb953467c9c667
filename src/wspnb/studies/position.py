"""One short training of a study and its judgement, on vectors or on small images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from wspnb import probe
from wspnb.augment import augment, to_unit
from wspnb.data.slices import open_slices, write_slices
from wspnb.losses import contrastive_loss
from wspnb.methods import pair_kernel
from wspnb.models import build_encoder, build_head
from wspnb.phantom.minimal import N_FEATURES, Cohort, Minimal, draw_cohort
from wspnb.phantom.patients import Phantom
from wspnb.phantom.scans import make_phantom
from wspnb.pretrain import UNTRAINED, health, is_collapsed, learning_rate_factor, pick_precision
from wspnb.sampling import OneSlicePerPatient

LEVELS = {"minimal": Minimal, "images": Phantom}


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


def train(
    method: str,
    cohort: Cohort,
    encoder: nn.Module,
    head: nn.Module,
    settings: Settings,
    seed: int = 0,
    watch: Callable[[int], None] | None = None,
    precision: str = "no",
) -> list[dict]:
    """Pretrain ``encoder`` and ``head`` in place: the loop of notebook 02 on any kind of slices.

    Args:
        method: wsp, depth_aware, supcon or simclr.
        cohort: its slices of D_radio are used, see :class:`~wspnb.phantom.minimal.Cohort`.
        encoder: what ``cohort.views`` returns, to features.
        head: features to the space of the loss.
        settings: hyper-parameters.
        seed: of batches and views; these are equal for all methods.
        watch: called with the number of steps done, before each step and after the last.
        precision: "no" or "bf16", of the two networks on the CPU.

    Returns:
        A row per step: step and loss; the last also with the health of the embeddings.
    """
    slices = cohort.table[cohort.table.cohort == "radio"]
    inputs = cohort.inputs[slices.index.to_numpy(copy=True)]
    labels, positions = torch.tensor(slices.weak_label.to_numpy(int)), slices.position.to_numpy()
    positions = torch.tensor(positions).to(inputs.dtype if inputs.is_floating_point() else None)
    generator = torch.Generator().manual_seed(seed)
    patients, size = slices.patient.to_numpy(), settings.batch_size
    sampler = OneSlicePerPatient(patients, labels.numpy(), size, settings.n_steps, generator)
    optimizer = torch.optim.Adam(
        [*encoder.parameters(), *head.parameters()],
        weight_decay=settings.weight_decay,
        fused=True,
    )
    log = []
    for step, batch in enumerate(sampler):
        if watch:
            watch(step)
        optimizer.param_groups[0]["lr"] = settings.learning_rate * learning_rate_factor(
            step, settings.n_steps, settings.warmup_steps
        )
        views = torch.cat([cohort.views(inputs[batch], generator) for _ in range(2)])
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            features = encoder(views)
            view_1, view_2 = head(features).chunk(2)
        kernel = pair_kernel(method, labels[batch], positions[batch], settings.sigma)
        loss = contrastive_loss(view_1, view_2, kernel, settings.temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        log.append({"step": step, "loss": loss.item()})
    if watch:
        watch(len(log))
    return [*log[:-1], log[-1] | health(view_1, view_2, features)] if log else []


@torch.inference_mode()
def judge(cohort: Cohort, encoder: nn.Module) -> dict[str, float]:
    """AUC of the linear probe on D1 and D2 (five folds over patients), and how well depth is read.

    Returns:
        ``auc_d1``, ``auc_d2`` and ``depth_r2``, of D1 from the nearest features of other patients.
    """
    was_training, _ = encoder.training, encoder.eval()
    found = {}
    for name in ("d1", "d2"):
        slices = cohort.table[cohort.table.cohort == name]
        parts = cohort.inputs[slices.index.to_numpy(copy=True)].split(256)
        features = torch.cat([encoder(cohort.plain(part)) for part in parts]).double().numpy()
        truth = (slices.label.to_numpy(int), slices.patient.to_numpy())
        found[f"auc_{name}"] = probe.cross_validate(features, *truth).mean
        if name == "d1":
            quality = probe.plane_quality(features, slices.position.to_numpy(), *truth)
            found["depth_r2"] = quality["depth_r2"]
    encoder.train(was_training)
    return found


def run(
    cohort: Cohort, level: str, method: str, seed: int, settings: Settings, watched=()
) -> list[dict]:
    """One training with its judgement after ``watched`` steps and at the end.

    Returns:
        A row per judgement: step, auc_d1, auc_d2, depth_r2, and loss (mean of the last tenth) and
        collapsed of the whole training.
    """
    encoder, head = build_networks(level, seed)
    rows = []

    def watch(step):
        if step in watched or step == settings.n_steps:
            rows.append({"step": step, **judge(cohort, encoder)})

    if method in UNTRAINED:
        return [{"step": 0, **judge(cohort, encoder), "collapsed": False}]
    precision = pick_precision("auto") if level == "images" else "no"
    log = pd.DataFrame(train(method, cohort, encoder, head, settings, seed, watch, precision))
    tail = log.loss.tail(max(1, len(log) // 10)).mean()
    facts = {"loss": tail, "collapsed": is_collapsed(log.loss, settings.batch_size)}
    return [row | facts for row in rows]


def build_networks(level: str, seed: int) -> tuple[nn.Module, nn.Module]:
    """Encoder and head whose weights depend on the seed alone."""
    if level == "images":
        encoder = build_encoder("tiny_padded", "batch", seed)
        return encoder.to(memory_format=torch.channels_last), build_head("tiny_padded", seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        sizes = [(N_FEATURES, 128), (128, 64)]
        layers = [(nn.Linear(*size), nn.BatchNorm1d(size[1]), nn.ReLU()) for size in sizes]
        encoder = nn.Sequential(*(layer for block in layers for layer in block))
        head = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    return encoder.double(), head.double()


def build_cohort(level: str, changes: dict, seed: int, folder: Path) -> Cohort:
    """The cohort of a seed: vectors, or images drawn into ``folder`` and preprocessed as in 01.

    Args:
        level: minimal or images.
        changes: parameters of :class:`Minimal` or :class:`Phantom` that differ from their defaults.
        seed: of the cohort.
        folder: for the volumes and slices of images.
    """
    if level == "minimal":
        return draw_cohort(Minimal(**changes, seed=seed))
    phantom = Phantom(**changes, seed=seed)
    name = "-".join([*(f"{key}{value}" for key, value in changes.items()), f"seed{seed}"])
    folder = folder / name
    table = make_phantom(folder / "source", phantom, workers=1, progress=False)
    size = phantom.image_size
    store = open_slices(write_slices(table, folder / "slices", size, workers=1, progress=False))
    images = torch.tensor(store.images)[:, None]  # a copy: the store is read-only
    table = store.table.assign(
        weak_label=store.table.weak_label.fillna(-1), label=store.table.label.fillna(-1)
    )
    return Cohort(table, images, to_unit, augment)
