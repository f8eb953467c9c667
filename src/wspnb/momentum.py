"""Methods without negatives, BYOL, SimSiam and Barlow Twins, with a kernel or without; MoCo v2."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from wspnb.losses import barlow_loss, byol_loss
from wspnb.methods import FAMILIES, loss_of
from wspnb.models import HEADS, on_sphere, seeded, two_layers


def slow_copy(encoder: nn.Module, head: nn.Module) -> nn.Sequential:
    """Copy of encoder and head that no gradient reaches."""
    return nn.Sequential(*copy.deepcopy([encoder, head])).requires_grad_(False)


@torch.no_grad()
def follow(self, encoder: nn.Module, head: nn.Module, momentum: float) -> None:
    """Move the target's weights: momentum x old + (1 - momentum) x trained."""
    trained = [*encoder.parameters(), *head.parameters()]
    for old, new in zip(self.target.parameters(), trained, strict=True):
        old.lerp_(new, 1 - momentum)


def has_norms(method: str) -> bool:
    """Whether the method's head and predictor have the batch norms of the originals: all losses
    without negatives but the row ``byol``, whose published tables are without (*paper silent*).
    BYOL with its batch norms is ``byol_simclr``: the kernel is the identity."""
    return loss_of(method) in FAMILIES and method != "byol"


def without_negatives(
    method: str, encoder: nn.Module, head: nn.Module, backbone: str, seed: int = 0, n_devices=1
) -> nn.Module:
    """What a loss without negatives needs beside encoder and head, by the method's name.

    The module takes (view_1, view_2, images, kernel) and gives the loss, and has ``follow``. For
    other methods it is an empty one, without parameters.

    Raises:
        ValueError: if a batch with a kernel would be split over devices, which see their own share.
    """
    if has_norms(method) and n_devices > 1:
        raise ValueError(f"method={method}: its pairs span the batch, so one device, please")
    made = MODULES.get(loss_of(method))
    return made(encoder, head, backbone, seed, has_norms(method)) if made else nn.Module()


class Byol(nn.Module):
    """Predictor and slowly following target of BYOL (Grill et al. 2020); the encoder and head that
    are trained stay outside, copied. With a kernel, a prediction is compared with the targets of
    all slices that count as positives (the paper's future work; ours): see
    :func:`wspnb.losses.byol_loss`. The predictor is latent-hidden-latent, like the backbone's head,
    with a batch norm before the ReLU (``norm``) as in the original or without.
    """

    follow = follow

    def __init__(self, encoder, head, backbone: str, seed: int = 0, norm: bool = False):
        super().__init__()
        _, hidden, latent = HEADS[backbone]
        with seeded(seed + 2_000_003):
            self.predictor = two_layers(latent, hidden, latent, norm)
        self.target = slow_copy(encoder, head)

    def forward(self, view_1: Tensor, view_2: Tensor, views: Tensor, kernel=None) -> Tensor:
        """Loss of the projections ``(n, dim)`` of both views; ``views`` are their images,
        ``(2n, c, h, w)``."""
        with torch.no_grad():
            targets = self.target(views).chunk(2)
        return byol_loss(self.predictor(view_1), self.predictor(view_2), *targets, kernel)


class SimSiam(nn.Module):
    r"""Predictor of SimSiam (Chen & He 2021), whose targets are the projections themselves, without
    a gradient: :math:`L = -\frac12 \frac1n \sum_t \sum_i w_{ti} (p_{1t} z_{2i} +
    p_{2t} z_{1i})`, w as in :func:`wspnb.losses.byol_loss`.

    The last layer of the projection ends in a batch norm without scale, the predictor is a
    bottleneck of a quarter of the latent size, as in the original; its projection has one layer
    more (*paper silent*: all methods share the size of the head). Arguments as for ``Byol``.
    """

    def __init__(self, encoder, head, backbone: str, seed: int = 0, norm: bool = True):
        super().__init__()
        latent = HEADS[backbone][2]
        self.last = nn.BatchNorm1d(latent, affine=False) if norm else nn.Identity()
        with seeded(seed + 2_000_003):
            self.predictor = two_layers(latent, latent // 4, latent, norm)

    def forward(self, view_1: Tensor, view_2: Tensor, views=None, kernel=None) -> Tensor:
        """Loss of the projections ``(n, dim)`` of both views."""
        z_1, z_2 = self.last(view_1), self.last(view_2)
        return byol_loss(self.predictor(z_1), self.predictor(z_2), z_1, z_2, kernel) / 4 - 1

    def follow(self, *given) -> None:
        """Nothing follows."""


class BarlowTwins(nn.Module):
    """Nothing beside encoder and head: see :func:`wspnb.losses.barlow_loss`."""

    def __init__(self, *given):
        super().__init__()

    def forward(self, view_1: Tensor, view_2: Tensor, views=None, kernel=None) -> Tensor:
        """Loss of the projections ``(n, dim)`` of both views."""
        return barlow_loss(view_1, view_2, kernel)

    def follow(self, *given) -> None:
        """Nothing follows."""


MODULES = {"byol": Byol, "simsiam": SimSiam, "barlow": BarlowTwins}  # of losses without negatives


class Moco(nn.Module):
    """Encoder of the keys and their queue (He et al. 2020, algorithm 1; MoCo v2 has the head of
    SimCLR); the encoder and head that are trained stay outside.

    Queries are the first views, keys the second ones, of which the queue holds ``n_keys`` (MoCo:
    65,536). Two deviations: keys and queries are normalised by the statistics of their own batches
    on one device, unshuffled, and a queue that is not full yet is used as far as it is.
    """

    follow = follow

    def __init__(self, encoder: nn.Module, head: nn.Module, n_keys: int, temperature: float):
        super().__init__()
        if n_keys < 1 or not temperature > 0:
            raise ValueError(f"n_keys={n_keys}, temperature={temperature}: must be positive")
        self.target, self.n_keys, self.temperature = slow_copy(encoder, head), n_keys, temperature
        self.register_buffer("queue", torch.empty(0))

    def _load_from_state_dict(self, state, prefix, *rest):
        """The queue of a checkpoint is of any length."""
        self.queue = self.queue.new_empty(state.get(f"{prefix}queue", self.queue).shape)
        super()._load_from_state_dict(state, prefix, *rest)

    def forward(self, view_1: Tensor, view_2: Tensor, views: Tensor) -> Tensor:
        """InfoNCE of projections ``(n, dim)`` of the first views; ``views`` are all images,
        ``(2n, c, h, w)``. The keys join the queue afterwards; ``view_2`` is not used."""
        with torch.no_grad():
            keys = on_sphere(self.target(views[len(view_1) :]).float())  # (n, dim)
        queue = self.queue.view(-1, keys.shape[1])
        self.queue = torch.cat([keys, queue])[: self.n_keys]
        return info_nce(on_sphere(view_1.float()), keys, queue, self.temperature)


def info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    r"""Cross-entropy of each query finding its key among the queue (MoCo, equation 1).

    .. math:: L = -\frac1n \sum_t \log \frac{\exp(q_t k_t / \tau)}
        {\exp(q_t k_t / \tau) + \sum_j \exp(q_t u_j / \tau)}

    Args:
        queries, keys: ``(n, dim)`` on the unit sphere, keys their positives.
        queue: negatives u, ``(k, dim)``; none gives a loss of 0.
    """
    positive = (queries * keys).sum(1, keepdim=True)
    logits = torch.cat([positive, queries @ queue.T], 1) / temperature  # (n, 1 + k)
    return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
