"""MoCo v2: the positive is the other view, the negatives wait in a queue."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from wspnb.models import Byol


class Moco(nn.Module):
    """Slowly following encoder of the keys and their queue (He et al. 2020, algorithm 1; MoCo v2
    has the head of SimCLR); the encoder and head that are trained stay outside.

    Queries are the first views, keys the second ones. Two deviations: keys and queries are
    normalised by the statistics of their own batches on one device, unshuffled, and a queue that is
    not full yet is used as far as it is.

    Args:
        encoder: network that is trained; copied.
        head: its projection head; copied.
        n_keys: length of the queue (MoCo: 65,536).
        temperature: of the similarities.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, n_keys: int, temperature: float):
        super().__init__()
        if n_keys < 1 or not temperature > 0:
            raise ValueError(f"n_keys={n_keys}, temperature={temperature}: must be positive")
        self.target = nn.Sequential(copy.deepcopy(encoder), copy.deepcopy(head))
        self.target.requires_grad_(False)
        self.n_keys, self.temperature = n_keys, temperature
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

    follow = Byol.follow


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
