"""The loop of notebook 02 for studies: any kind of slices, any method, watched on the way."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wspnb.losses import contrastive_loss
from wspnb.methods import loss_of, loss_terms
from wspnb.pretrain import STEP, byol_momentum, check_sound, code, health, learning_rate_factor
from wspnb.sampling import OneSlicePerPatient


def stamp(*more: str) -> str:
    """Eight characters that change with the code that trains and judges, and with ``more``."""
    files = code(*STEP.split(), "folds", "probe", "studies/judge", "studies/loop", *more)
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:8]


def train(
    method: str,
    slices: tuple[Any, Tensor, Tensor],
    views: Callable[[list[int], torch.Generator], Tensor],
    encoder: nn.Module,
    head: nn.Module,
    settings: Any,
    draw: torch.Generator,
    generator: torch.Generator,
    watch: Callable[[int], None] | None = None,
    byol: nn.Module | None = None,
) -> list[dict]:
    """Pretrain ``encoder`` and ``head`` in place.

    Args:
        method: a name that :func:`wspnb.methods.parse` knows.
        slices: patient, weak label and position of each, ``(n,)``.
        views: two views of the slices of a batch, one after the other, ``(2b, ...)``.
        encoder, head: what ``views`` returns to features; features to the space of the loss.
        settings: sigma, temperature, batch_size, n_steps, warmup_steps, learning_rate and
            weight_decay.
        draw, generator: of the batches and of the views.
        watch: called with the number of steps done, before each step and after the last.
        byol: the loss of a method without negatives.

    Returns:
        The log, a row for every tenth of a percent of the steps, with the embeddings' health.
    """
    patients, labels, positions = slices
    n_steps, device = settings.n_steps, next(encoder.parameters()).device
    trained = nn.ModuleList([encoder, head, *([byol] if byol else [])])
    trained.train()  # an encoder that was read from a file is in evaluation mode
    weights = [p for p in trained.parameters() if p.requires_grad]
    rates = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    optimizer = torch.optim.Adam(weights, **rates, fused=True)
    log, every = [], max(1, n_steps // 1000)
    sampler = OneSlicePerPatient(patients, labels.numpy(), settings.batch_size, n_steps, draw)
    for step, batch in enumerate(sampler):
        if watch:
            watch(step)
        factor = learning_rate_factor(step, n_steps, settings.warmup_steps)
        optimizer.param_groups[0]["lr"] = settings.learning_rate * factor
        images = views(batch, generator)
        features = encoder(images)
        view_1, view_2 = head(features).chunk(2)
        pairs = loss_terms(method, labels[batch], positions[batch], settings.sigma, step / n_steps)
        pairs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in pairs.items()}
        if loss_of(method) == "contrast":
            loss = contrastive_loss(view_1, view_2, temperature=settings.temperature, **pairs)
        else:
            loss = byol(view_1, view_2, images, pairs["kernel"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss_of(method) != "contrast":
            byol.follow(encoder, head, byol_momentum(step, n_steps))
        if step % every == 0 or step == n_steps - 1:
            row = {"step": step, "loss": float(loss.detach())}
            log.append(row | health(view_1.detach(), view_2.detach(), features.detach()))
    check_sound(method, encoder.state_dict(), [row["loss"] for row in log])
    if watch:
        watch(n_steps)
    return log
