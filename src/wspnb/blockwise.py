"""The contrastive loss of large batches, in blocks of anchors: memory grows with the batch alone.

The plain version holds some ten ``(2n, 2n)`` matrices, this one a few rows of one. Loss and
gradient come from one sweep, so nothing is computed twice and nothing of size n x n is kept.
"""

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK_BYTES = 4 << 20  # of the logits of a block: about a core's share of the cache


def blockwise_loss(
    views: Tensor,
    kernel: Tensor | Callable[[Tensor], Tensor],
    temperature: float,
    normalise: str = "row",
    anchors: Tensor | None = None,
    negatives: Tensor | Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    r"""Mean loss of anchors, as :func:`wspnb.losses.contrastive_loss` with denominator "all".

    With :math:`p_{tj} = v_{tj} e^{s_{tj}} / \sum_{k \neq t} v_{tk} e^{s_{tk}}` and
    :math:`W_t = \sum_i w_{ti}`,

    .. math::
        L_t = W_t \log \sum_{j \neq t} v_{tj} e^{s_{tj}} - \sum_i w_{ti} s_{ti}, \qquad
        \partial L_t / \partial s_{tj} = W_t p_{tj} - w_{tj}

    Args:
        views: embeddings on the unit sphere, ``(2n, dim)``, all first views, then all second ones.
        kernel: degrees of positiveness ``(n, n)``, or a function from the numbers of m slices
            ``(m,)`` to their rows ``(m, n)``, so that the matrix never exists.
        temperature: tau.
        normalise: "row" or "column".
        anchors: numbers of the slices whose two views are anchors, ``(m,)``; None for all n.
        negatives: weights v of the denominator, as ``kernel``; None: all 1.

    Returns:
        Scalar, differentiable once and by the views alone, in their type.
    """
    n = len(views) // 2
    anchors = torch.arange(n, device=views.device) if anchors is None else anchors
    rows = _by_rows(kernel, n, views)
    repel = None if negatives is None else _by_rows(negatives, n, views)
    if repel is not None and not isinstance(negatives, Tensor):  # a whole one has been checked
        unchecked, repel = repel, lambda own: check_negatives(unchecked(own))
    size = max(1, BLOCK_BYTES // (4 * n * views.element_size()))
    totals = None
    if normalise == "column":  # the sum of row i divides column i
        everyone = torch.arange(n, device=views.device).split(size)
        totals = torch.cat([_totals(rows(own), own) for own in everyone]).repeat(2)
    return _Blockwise.apply(views, rows, anchors.split(size), temperature, totals, repel)


class _Blockwise(torch.autograd.Function):
    """Loss and, in the same sweep, its gradient with respect to the views."""

    @staticmethod
    def forward(ctx, views, rows, blocks, temperature, totals, repel):
        n, loss = len(views) // 2, views.new_zeros((), dtype=torch.float64)
        gradient = torch.zeros_like(views) if ctx.needs_input_grad[0] else None
        n_anchors = 2 * sum(map(len, blocks))
        for own in blocks:
            anchor = torch.cat([own, own + n])  # (2b,) both views of b slices
            itself = anchor + 2 * n * torch.arange(len(anchor), device=own.device)  # flat place
            weights = rows(own)
            divisor = _totals(weights, own).repeat(2)[:, None] if totals is None else totals
            weights = weights.repeat(2, 2).div_(divisor)  # (2b, 2n)
            weights.view(-1).index_fill_(0, itself, 0)
            logits = (views[anchor] @ views.T).div_(temperature)
            logits.view(-1).index_fill_(0, itself, -torch.inf)
            log_v = None if repel is None else repel(own).log().repeat(2, 2)
            below = logits if log_v is None else logits + log_v
            largest = below.amax(1, keepdim=True)
            log_sum = (below - largest).exp_().sum(1, keepdim=True).log_().add_(largest)
            log_p = logits.sub_(log_sum)
            log_p.view(-1).index_fill_(0, itself, 0)
            loss -= torch.dot(weights.view(-1), log_p.view(-1))
            if gradient is None:
                continue
            log_p = log_p if log_v is None else log_p.add_(log_v)
            slope = log_p.exp_().mul_(weights.sum(1, keepdim=True)).sub_(weights)
            slope.view(-1).index_fill_(0, itself, 0)
            gradient.index_add_(0, anchor, slope @ views)
            gradient.addmm_(slope.T, views[anchor])
        if gradient is not None:
            ctx.save_for_backward(gradient.div_(temperature * n_anchors))
        return (loss / n_anchors).to(views)

    @staticmethod
    def backward(ctx, upstream):
        if torch.is_grad_enabled():  # create_graph=True; once_differentiable would let it pass
            raise RuntimeError(
                "the loss in blocks has no second derivative; for it, set "
                "wspnb.losses.BLOCKWISE_ABOVE = math.inf (the plain loss, in more memory)"
            )
        return upstream * ctx.saved_tensors[0], None, None, None, None, None


def check_negatives(negatives: Tensor) -> Tensor:
    """Rows of weights of the denominator, ``(m, n)``, as they are.

    Raises:
        ValueError: if a weight is negative or NaN, a row has none above 0, or a weight is learnt
            and 0, where its logarithm, added to the logits, has no slope.
    """
    if not ((negatives >= 0).all() and (negatives > 0).any(1).all()):
        raise ValueError("negatives: every row needs weights >= 0, at least one of them above 0")
    if negatives.requires_grad and (negatives == 0).any():
        raise ValueError("negatives that are learnt must stay above 0: add a small constant")
    return negatives


def _by_rows(kernel: Tensor | Callable[[Tensor], Tensor], n: int, views: Tensor) -> Callable:
    """Function from the numbers of m slices to their rows ``(m, n)``, checked, as the views."""

    def rows(own: Tensor) -> Tensor:
        found = kernel[own] if isinstance(kernel, Tensor) else kernel(own)
        if found.shape != (len(own), n):
            raise ValueError(
                f"kernel gave rows of shape {tuple(found.shape)}, expected {(len(own), n)}"
            )
        return found.to(views)

    return rows


def _totals(rows: Tensor, own: Tensor) -> Tensor:
    """Sum of degrees over the positives of each slice: all views but itself; 1 if there is none."""
    totals = 2 * rows.sum(1) - rows.gather(1, own[:, None])[:, 0]
    return totals.where(totals > 0, 1)
