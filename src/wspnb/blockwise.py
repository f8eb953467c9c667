"""The contrastive loss of large batches, in blocks of anchors: memory grows with the batch alone.

The plain version holds some ten ``(2n, 2n)`` matrices, this one a few rows of one. Loss and
gradient come from one sweep, so nothing is computed twice and nothing of size n x n is kept.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_BYTES = 4 << 20  # of the logits of a block: about a core's share of the cache


def blockwise_loss(
    views: Tensor,
    kernel: Tensor | Callable[[Tensor], Tensor],
    temperature: float,
    normalise: str = "row",
    anchors: Tensor | None = None,
) -> Tensor:
    r"""Mean loss of anchors, as :func:`wspnb.losses.contrastive_loss` with denominator "all".

    With :math:`p_{tj}` the softmax of the logits of anchor t and :math:`W_t = \sum_i w_{ti}`,

    .. math::
        L_t = W_t \log \sum_{j \neq t} e^{s_{tj}} - \sum_i w_{ti} s_{ti}, \qquad
        \partial L_t / \partial s_{tj} = W_t p_{tj} - w_{tj}

    Args:
        views: embeddings on the unit sphere, ``(2n, dim)``, all first views, then all second ones.
        kernel: degrees of positiveness ``(n, n)``, or a function from the numbers of m slices
            ``(m,)`` to their rows ``(m, n)``, so that the matrix never exists.
        temperature: tau.
        normalise: "row" or "column".
        anchors: numbers of the slices whose two views are anchors, ``(m,)``; None for all n.

    Returns:
        Scalar, differentiable once, in the views' type.
    """
    n = len(views) // 2
    anchors = torch.arange(n, device=views.device) if anchors is None else anchors
    rows = (lambda own: kernel[own]) if isinstance(kernel, Tensor) else kernel
    size = max(1, BLOCK_BYTES // (4 * n * views.element_size()))
    totals = None
    if normalise == "column":  # the sum of row i divides column i
        everyone = torch.arange(n, device=views.device).split(size)
        totals = torch.cat([_totals(rows(own).to(views), own) for own in everyone]).repeat(2)
    return _Blockwise.apply(views, rows, anchors.split(size), temperature, totals)


class _Blockwise(torch.autograd.Function):
    """Loss and, in the same sweep, its gradient with respect to the views."""

    @staticmethod
    def forward(ctx, views, rows, blocks, temperature, totals):
        n, loss = len(views) // 2, views.new_zeros((), dtype=torch.float64)
        gradient = torch.zeros_like(views) if ctx.needs_input_grad[0] else None
        n_anchors = 2 * sum(map(len, blocks))
        for own in blocks:
            anchor = torch.cat([own, own + n])  # (2b,) both views of b slices
            itself = anchor + 2 * n * torch.arange(len(anchor), device=own.device)  # flat place
            weights = rows(own).to(views)
            if weights.shape != (len(own), n):
                raise ValueError(
                    f"kernel gave rows of shape {tuple(weights.shape)}, expected {(len(own), n)}"
                )
            divisor = _totals(weights, own).repeat(2)[:, None] if totals is None else totals
            weights = torch.cat([torch.cat([weights, weights], 1)] * 2).div_(divisor)  # (2b, 2n)
            weights.view(-1).index_fill_(0, itself, 0)
            logits = (views[anchor] @ views.T).div_(temperature)
            logits.view(-1).index_fill_(0, itself, -torch.inf)
            largest = logits.amax(1, keepdim=True)
            log_sum = (logits - largest).exp_().sum(1, keepdim=True).log_().add_(largest)
            log_p = logits.sub_(log_sum)
            log_p.view(-1).index_fill_(0, itself, 0)
            loss -= torch.dot(weights.view(-1), log_p.view(-1))
            if gradient is None:
                continue
            slope = log_p.exp_().mul_(weights.sum(1, keepdim=True)).sub_(weights)
            slope.view(-1).index_fill_(0, itself, 0)
            gradient.index_add_(0, anchor, slope @ views)
            gradient.addmm_(slope.T, views[anchor])
        if gradient is not None:
            ctx.save_for_backward(gradient.div_(temperature * n_anchors))
        return (loss / n_anchors).to(views)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        return upstream * ctx.saved_tensors[0], None, None, None, None


def _totals(rows: Tensor, own: Tensor) -> Tensor:
    """Sum of degrees over the positives of each slice: all views but itself; 1 if there is none."""
    totals = 2 * rows.sum(1) - rows.gather(1, own[:, None])[:, 0]
    return totals.where(totals > 0, 1)
