"""The contrastive loss of large batches, in blocks of anchors: memory grows with the batch alone.

The plain version holds some ten ``(2n, 2n)`` matrices, this one a few rows of one. Loss and
gradient come from one sweep, so nothing is computed twice and nothing of size n x n is kept.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from wspnb.kernels import check_degrees

BLOCK_BYTES = 16 << 20  # of the logits of a block: few large steps, as each waits for all cores


def blockwise_loss(
    views: Tensor,
    kernel: Tensor | Callable[[Tensor], Tensor],
    temperature: float,
    normalise: str = "row",
    anchors: Tensor | None = None,
    negatives: Tensor | Callable[[Tensor], Tensor] | None = None,
    denominator: str = "all",
) -> Tensor:
    r"""Mean loss of anchors, as :func:`wspnb.losses.contrastive_loss`.

    With denominator "all",
    :math:`p_{tj} = v_{tj} e^{s_{tj}} / \sum_{k \neq t} v_{tk} e^{s_{tk}}` and
    :math:`W_t = \sum_i w_{ti}`,

    .. math::
        L_t = W_t \log \sum_{j \neq t} v_{tj} e^{s_{tj}} - \sum_i w_{ti} s_{ti}, \qquad
        \partial L_t / \partial s_{tj} = W_t p_{tj} - w_{tj}

    The slopes of other denominators come from autograd, block by block.

    Args:
        views: embeddings on the unit sphere, ``(2n, dim)``, all first views, then all second ones.
        kernel, negatives: matrices ``(n, n)``, or functions from the numbers of m slices ``(m,)``
            to their rows ``(m, n)``, so that the matrix never exists.
        temperature, normalise, anchors, denominator: as there.

    Returns:
        Scalar, differentiable once and by the views alone, in their type.
    """
    n = len(views) // 2
    anchors = torch.arange(n, device=views.device) if anchors is None else anchors
    rows = _by_rows(kernel, n, views)
    repel = None if negatives is None else _by_rows(negatives, n, views)
    if repel is not None and not isinstance(negatives, Tensor):  # a whole one has been checked
        unchecked, repel = repel, lambda own: check_negatives(unchecked(own), denominator)
    size = max(1, BLOCK_BYTES // (4 * n * views.element_size()))
    totals = None
    if normalise == "column":  # the sum of row i divides column i
        everyone = torch.arange(n, device=views.device).split(size)
        totals = torch.cat([_totals(rows(own), own) for own in everyone]).repeat(2)
    blocks = anchors.split(size)
    return _Blockwise.apply(views, rows, blocks, temperature, totals, repel, denominator)


class _Blockwise(torch.autograd.Function):
    """Loss and, in the same sweep, its gradient with respect to the views."""

    @staticmethod
    def forward(ctx, views, rows, blocks, temperature, totals, repel, denominator):
        n, loss = len(views) // 2, views.new_zeros((), dtype=torch.float64)
        gradient = torch.zeros_like(views) if ctx.needs_input_grad[0] else None
        n_anchors = 2 * sum(map(len, blocks))
        for own in blocks:
            anchor = torch.cat([own, own + n])  # (2b,) both views of b slices
            itself = anchor + 2 * n * torch.arange(len(anchor), device=own.device)  # flat place
            weights = rows(own)
            check_degrees(weights)
            divisor = _totals(weights, own).repeat(2)[:, None] if totals is None else totals
            weights = weights.repeat(2, 2).div_(divisor)  # (2b, 2n)
            weights.view(-1).index_fill_(0, itself, 0)
            logits = (views[anchor] / temperature) @ views.T
            second = None if repel is None else repel(own).repeat(2, 2)
            if denominator == "all":
                part, slope = _all_others(logits, weights, itself, second)
            else:
                with torch.enable_grad():
                    logits.requires_grad_(gradient is not None)
                    log_sum = log_denominators(logits, anchor, denominator, second)
                    part = (weights * (logits - log_sum)).sum()
                slope = gradient if gradient is None else -torch.autograd.grad(part, logits)[0]
            loss -= part.detach()
            if gradient is not None:
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
        return upstream * ctx.saved_tensors[0], None, None, None, None, None, None


def _all_others(logits: Tensor, weights: Tensor, itself: Tensor, repel: Tensor | None):
    """Sum of weighted log shares of a block, and the loss's slopes; few steps, each of which waits
    for all cores. ``logits`` is used up."""
    logits.view(-1).index_fill_(0, itself, -torch.inf)
    if repel is None:
        log_p = logits.log_softmax(1)
    else:
        log_v = repel.log_()
        log_p = logits.sub_((logits + log_v).logsumexp(1, keepdim=True))
    log_p.view(-1).index_fill_(0, itself, 0)
    part = torch.linalg.vecdot(weights, log_p).sum()  # one dot over all rows loses two digits
    slope = (log_p if repel is None else log_p.add_(log_v)).exp_()
    slope.mul_(weights.sum(1, keepdim=True)).sub_(weights)
    slope.view(-1).index_fill_(0, itself, 0)
    return part, slope


def log_denominators(
    logits: Tensor, anchor: Tensor, denominator: str, repel: Tensor | None = None
) -> Tensor:
    """Log of the denominator of every pair, see :func:`wspnb.losses.contrastive_loss`.

    Args:
        logits: similarities s of m anchors to all views, ``(m, 2n)``.
        anchor: each anchor's own column, ``(m,)``.
        repel: the second kernel's rows, ``(m, 2n)``.

    Returns:
        ``(m, 1)`` where it is the same for all positives of an anchor ("all", "exp"), else
        ``(m, 2n)``, of any value in the anchor's own column.
    """
    itself = torch.zeros_like(logits, dtype=torch.bool).scatter(1, anchor[:, None], True)
    if denominator == "exp":
        logits = logits * (1 - repel)
    elif denominator in ("less", "no_more"):
        return _up_to_each(logits, itself, repel, denominator == "less")
    elif repel is not None:
        logits = logits + repel.log()
    if denominator != "printed":
        logits = logits.masked_fill(itself, -torch.inf)
    if denominator in ("all", "exp"):
        return logits.logsumexp(1, keepdim=True)
    return _logsumexp_without_each(logits)


def _up_to_each(logits: Tensor, itself: Tensor, degrees: Tensor, less: bool) -> Tensor:
    """Log of the sum of exponentials over those whose degree is less than that of i (and i), or no
    more than it, for every i; the anchor left out. Sorted once, summed on the way, in float64:
    shares of e-700 of the largest count, at temperatures of .003 and more all of them. Degrees that
    differ by rounding, as of slices equally far above and below, are equal."""
    top = logits.detach().amax(1, keepdim=True).double()
    grown = (logits - top).exp()
    degrees = degrees.detach().masked_fill(itself, torch.inf)  # last, so that nobody counts it
    rising, order = degrees.sort(1)
    sums = grown.masked_fill(itself, 0).gather(1, order).cumsum(1)
    sums = torch.cat([torch.zeros_like(sums[:, :1]), sums], 1)
    rounding = 64 * torch.finfo(degrees.dtype).eps * (-1 if less else 1)
    limit = degrees * (1 + rounding)
    below = sums.gather(1, torch.searchsorted(rising, limit, right=not less))
    total = below + grown if less else below
    return (total.clamp_min(1e-300).log() + top).to(logits)


def _logsumexp_without_each(logits: Tensor) -> Tensor:
    """Log of the sum of exponentials of each row with entry i left out, for every i.

    log(S - e_i) = log S + log(1 - e_i / S) is accurate unless e_i is the largest (then e_i / S is
    at most 1/2); the sum without the largest is taken afresh. Same shape as ``logits``.
    """
    largest = logits.argmax(1, keepdim=True)
    is_largest = torch.zeros_like(logits, dtype=torch.bool).scatter(1, largest, True)
    log_sum = logits.logsumexp(1, keepdim=True)
    without_largest = logits.masked_fill(is_largest, -torch.inf).logsumexp(1, keepdim=True)
    share = (logits - log_sum).masked_fill(is_largest, -torch.inf).exp()
    return torch.where(is_largest, without_largest, log_sum + torch.log1p(-share))


def check_negatives(negatives: Tensor, denominator: str = "all") -> Tensor:
    """Rows of the second kernel, ``(m, n)``, as they are.

    Raises:
        ValueError: if a weight is negative or NaN, or above 1 for "exp"; if it is learnt and only
            compared ("less", "no_more"); and, where it weighs the terms of the denominator, if a
            row has none above 0, or a weight is learnt and 0, where its logarithm, added to the
            logits, has no slope.
    """
    if denominator in ("exp", "less", "no_more"):
        if not ((negatives >= 0).all() and (negatives <= 1).all()):
            raise ValueError(f"negatives of denominator={denominator!r}: degrees from 0 to 1")
        if denominator != "exp" and negatives.requires_grad:
            raise ValueError(f"negatives of denominator={denominator!r} are compared: no gradient")
        return negatives
    if not ((negatives >= 0).all() and (negatives > 0).any(1).all()):
        raise ValueError("negatives: every row needs weights >= 0, at least one of them above 0")
    if negatives.requires_grad and (negatives == 0).any():
        raise ValueError("negatives that are learnt must stay above 0: add a small constant")
    return negatives


def _by_rows(kernel: Tensor | Callable[[Tensor], Tensor], n: int, views: Tensor) -> Callable:
    """Function from the numbers of m slices to their rows ``(m, n)``, checked, as the views."""

    def rows(own: Tensor) -> Tensor:
        with torch.enable_grad():  # to see what is learnt
            found = kernel[own] if isinstance(kernel, Tensor) else kernel(own)
        if found.requires_grad:
            raise ValueError("some rows of the kernel are learnt: give the whole matrix (n, n)")
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
