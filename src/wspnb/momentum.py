"""Slowly following copies of a network: BYOL's targets, and the keys of MoCo v2."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from wspnb.losses import byol_loss
from wspnb.models import HEADS


def slow_copy(encoder: nn.Module, head: nn.Module) -> nn.Sequential:
    """Copy of encoder and head that no gradient reaches."""
    return nn.Sequential(copy.deepcopy(encoder), copy.deepcopy(head)).requires_grad_(False)


@torch.no_grad()
def follow(self, encoder: nn.Module, head: nn.Module, momentum: float) -> None:
    """Move the target's weights: momentum x old + (1 - momentum) x trained."""
    trained = [*encoder.parameters(), *head.parameters()]
    for old, new in zip(self.target.parameters(), trained, strict=True):
        old.lerp_(new, 1 - momentum)


class Byol(nn.Module):
    """Predictor and slowly following target of BYOL (Grill et al. 2020); the encoder and head that
    are trained stay outside.

    Args:
        encoder: network that is trained; copied.
        head: its projection head; copied.
        backbone: name of the encoder, for the size of the predictor: latent-hidden-latent with a
            ReLU between, like the head (*paper silent*; BYOL's own has a batch norm).
        seed: of the predictor's weights.
    """

    follow = follow

    def __init__(self, encoder: nn.Module, head: nn.Module, backbone: str, seed: int = 0):
        super().__init__()
        _, hidden, latent = HEADS[backbone]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed + 2_000_003)
            self.predictor = nn.Sequential(
                nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, latent)
            )
        self.target = slow_copy(encoder, head)

    def forward(self, view_1: Tensor, view_2: Tensor, views: Tensor) -> Tensor:
        """Loss of the projections ``(n, dim)`` of both views; ``views`` are their images,
        ``(2n, c, h, w)``."""
        with torch.no_grad():
            target_1, target_2 = self.target(views).chunk(2)
        return byol_loss(self.predictor(view_1), self.predictor(view_2), target_1, target_2)


class Moco(nn.Module):
    """Encoder of the keys and their queue (He et al. 2020, algorithm 1; MoCo v2 has the head of
    SimCLR); the encoder and head that are trained stay outside.

    Queries are the first views, keys the second ones. Two deviations: keys and queries are
    normalised by the statistics of their own batches on one device, unshuffled, and a queue that is
    not full yet is used as far as it is.

    Args:
        encoder: network that is trained; copied.
        head: its projection head; copied.
        n_keys: length of the queue (MoCo: 65,536).
        temperature: of the similarities.
    """

    follow = follow

    def __init__(self, encoder: nn.Module, head: nn.Module, n_keys: int, temperature: float):
        super().__init__()
        if n_keys < 1 or not temperature > 0:
            raise ValueError(f"n_keys={n_keys}, temperature={temperature}: must be positive")
        self.target, self.n_keys, self.temperature = slow_copy(encoder, head), n_keys, temperature
        self.register_buffer("queue", torch.empty(0))

    def forward(self, view_1: Tensor, view_2: Tensor, views: Tensor) -> Tensor:
        """InfoNCE of projections ``(n, dim)`` of the first views; ``views`` are all images,
        ``(2n, c, h, w)``. The keys join the queue afterwards; ``view_2`` is not used."""
        with torch.no_grad():
            keys = normalize(self.target(views[len(view_1) :]).float(), dim=1)  # (n, dim)
        queries = normalize(view_1.float(), dim=1)
        loss = info_nce(queries, keys, self.queue.view(-1, keys.shape[1]), self.temperature)
        self.queue = torch.cat([keys, self.queue.view(-1, keys.shape[1])])[: self.n_keys]
        return loss


def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    r"""Cross-entropy of each query finding its key among the queue (MoCo, equation 1).

    .. math:: L = -\frac1n \sum_t \log \frac{\exp(q_t k_t / \tau)}
        {\exp(q_t k_t / \tau) + \sum_j \exp(q_t u_j / \tau)}

    Args:
        queries: ``(n, dim)`` on the unit sphere.
        keys: their positives, ``(n, dim)``.
        queue: negatives u, ``(k, dim)``; none gives a loss of 0.
        temperature: tau.
    """
    positive = (queries * keys).sum(1, keepdim=True)
    logits = torch.cat([positive, queries @ queue.T], 1) / temperature  # (n, 1 + k)
    return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
