"""Degrees of positiveness: how much two slices of a batch count as the same thing.

A kernel is an ``(n, n)`` matrix of degrees >= 0 over the n slices of a batch, 1 on its diagonal.
The product of two kernels is plain ``*``; WSP is that of the same label and the Gaussian of height.
Where a batch is too large for the whole matrix, ``rows`` asks for some of its rows alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def same_label(labels: Tensor, rows: Tensor | None = None) -> Tensor:
    r"""Degree of positiveness of two slices by class: :math:`[y_t = y_i]` (SupCon, eq. 2).

    Args:
        labels: class of each slice, ``(n,)``; NaN or -1 = unknown, positive with nothing but
            itself.
        rows: numbers of the slices whose rows are wanted, ``(m,)``; None for all n.

    Returns:
        ``(m, n)`` float32 of 0 and 1; all rows are symmetric, 1 on the diagonal.

    Raises:
        ValueError: if ``labels`` is not one-dimensional.
    """
    labels = _one_per_slice(labels, "labels")
    known = (labels == labels) & (labels != -1)
    own = slice(None) if rows is None else rows
    equal = (labels[own, None] == labels[None, :]) & known[own, None] & known[None, :]
    return (equal | same_slice(labels, rows).bool()).float()


def same_slice(values: Tensor, rows: Tensor | None = None) -> Tensor:
    """Positive with nothing but itself (SimCLR): ``(m, n)`` rows of the identity, as above."""
    numbers = torch.arange(len(values), device=values.device)
    own = numbers if rows is None else rows
    return (own[:, None] == numbers[None, :]).float()


def gaussian(positions: Tensor, sigma: float, rows: Tensor | None = None) -> Tensor:
    r"""Degree of positiveness of two slices by their height (WSP, section 2).

    .. math:: k_{ti} = \exp(-(d_t - d_i)^2 / 2\sigma^2)

    Args:
        positions: normalised height of each slice, ``(n,)``, 0 = first slice kept, 1 = last.
        sigma: kernel width in the unit of ``positions``; ``inf`` ignores the position.
        rows: numbers of the slices whose rows are wanted, ``(m,)``; None for all n.

    Returns:
        ``(m, n)``; all rows are symmetric, 1 on the diagonal.

    Raises:
        ValueError: if ``sigma`` is not positive or ``positions`` is not one-dimensional.
    """
    if not sigma > 0:
        raise ValueError(f"sigma={sigma}: must be positive (inf ignores the position)")
    positions = _one_per_slice(positions, "positions")
    positions = positions if positions.dtype == torch.float64 else positions.float()
    own = positions if rows is None else positions[rows]
    return torch.exp(-0.5 * ((own[:, None] - positions[None, :]).abs() / sigma) ** 2)


def mixture(kernels: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    r"""One kernel whose loss is the weighted mean of the kernels' own losses.

    Each kernel is divided by the sum of its row over the 2n - 1 positives of the two-view batch
    (every slice twice, the anchor left out: :math:`2\sum_i k_{ti} - k_{tt}`) before it is weighted
    and added:

    .. math:: m_{ti} = \sum_m a_m\, k^m_{ti} / (2\sum_j k^m_{tj} - k^m_{tt})

    With ``normalise="row"`` then :math:`L(m) = \sum_m a_m L(k^m) / \sum_m a_m` exactly, since the
    loss is linear in the normalised weights. A plain sum of losses (clinical labels) is this times
    the sum of the weights. Rows of the result sum to the sum of the weights over the 2n - 1
    positives; its diagonal is therefore not 1.

    Args:
        kernels: matrices ``(n, n)``, each with 1 on its diagonal (an anchor without any positive in
            one of them would shift its weight to the others).
        weights: share of each kernel, >= 0, not all 0.

    Returns:
        ``(n, n)``, in general not symmetric.

    Raises:
        ValueError: if numbers or shapes do not match or a weight is negative.
    """
    if not kernels or len(kernels) != len(weights):
        raise ValueError(f"{len(kernels)} kernels, {len(weights)} weights: give one for each")
    if min(weights) < 0 or sum(weights) <= 0:
        raise ValueError(f"mixture weights {list(weights)}: must be >= 0 and not all 0")
    if len({kernel.shape for kernel in kernels}) > 1:
        raise ValueError(f"kernels of shapes {[tuple(k.shape) for k in kernels]}: must be equal")
    total = torch.zeros_like(kernels[0])
    for kernel, weight in zip(kernels, weights, strict=True):
        row_sum = 2 * kernel.sum(1, keepdim=True) - kernel.diagonal()[:, None]
        total = total + weight * kernel / row_sum.where(row_sum > 0, 1)
    return total


# Who attracts whom, by method, from (labels, positions, sigma, floor, rows).
KERNELS = {
    "wsp": lambda y, d, sigma, floor, rows: same_label(y, rows) * gaussian(d, sigma, rows),
    "depth_aware": lambda y, d, sigma, floor, rows: gaussian(d, sigma, rows),
    "supcon": lambda y, d, sigma, floor, rows: same_label(y, rows),
    "simclr": lambda y, d, sigma, floor, rows: same_slice(d if y is None else y, rows),
    "wsp_floor": lambda y, d, sigma, floor, rows: (
        same_label(y, rows) * (floor + (1 - floor) * gaussian(d, sigma, rows))
    ),
    "wsp_own": lambda y, d, sigma, floor, rows: same_label(y, rows) * gaussian(d, sigma, rows),
}
# Who repels whom, and how much; in a method that is not here all repel alike.
NEGATIVES = {
    "wsp_own": lambda y, d, sigma, floor, rows: torch.where(
        same_label(y, rows) > 0, gaussian(d, sigma, rows), 1
    ),
}


def pair_kernel(
    method: str,
    labels: Tensor | None,
    positions: Tensor | None,
    sigma: float = 0.1,
    rows: Tensor | None = None,
    floor: float = 0.2,
) -> Tensor:
    r"""Kernel of a method for one batch of slices, looked up in ``KERNELS``.

    With g the Gaussian of height: wsp :math:`[y_t = y_i]\,g_{ti}`, depth_aware g, supcon
    :math:`[y_t = y_i]`, simclr the same slice. Not in the paper: wsp_floor
    :math:`[y_t = y_i] (f + (1 - f)\,g_{ti})`, from WSP (f = 0) to SupCon (f = 1), so that slices of
    one class attract at every depth; wsp_own attracts as wsp, see :func:`negative_kernel`.

    Args:
        method: a name in ``KERNELS``.
        labels: class of each slice, ``(n,)``; None where the method does not use it.
        positions: normalised height of each slice, ``(n,)``; None where the method does not use it.
        sigma: Gaussian width in the unit of ``positions``.
        rows: numbers of the slices whose rows are wanted, ``(m,)``; None for all n.
        floor: f, least degree of positiveness within a class, 0 to 1; wsp_floor alone uses it.

    Returns:
        ``(m, n)`` degrees of positiveness.

    Raises:
        ValueError: if the method is unknown, or what it needs is missing or of another length, or
            the floor is no share.
    """
    _check(method, labels, positions, floor)
    return KERNELS[method](labels, positions, sigma, floor, rows)


def negative_kernel(
    method: str,
    labels: Tensor | None,
    positions: Tensor | None,
    sigma: float = 0.1,
    rows: Tensor | None = None,
    floor: float = 0.2,
) -> Tensor | None:
    r"""How much slices repel each other, the second kernel of the loss, from ``NEGATIVES``.

    wsp_own: :math:`v_{ti} = g_{ti}` where :math:`y_t = y_i`, else 1. Slices of one class repel only
    as far as they attract, so those of other depths are left alone.

    Args:
        method: a name in ``KERNELS``; the other arguments as for :func:`pair_kernel`.

    Returns:
        ``(m, n)``, or None where all others repel alike (the methods of the paper).

    Raises:
        ValueError: as :func:`pair_kernel`.
    """
    _check(method, labels, positions, floor)
    return NEGATIVES[method](labels, positions, sigma, floor, rows) if method in NEGATIVES else None


def pair_weights(kernel: Tensor, normalise: str = "row") -> Tensor:
    r"""Normalised weights of all pairs of views, self pairs left out.

    "row": :math:`w_{ti} / \sum_{k \in P(t)} w_{tk}`, an anchor's weights sum to 1 (WSP, section 2).
    "column" (as released): :math:`w_{ti} / \sum_{k \in P(i)} w_{ik}`, row i's sum divides column i.

    Args:
        kernel: degrees of positiveness of the n slices, ``(n, n)``.
        normalise: "row" or "column".

    Returns:
        ``(2n, 2n)``, rows in the order view_1 then view_2; a row without positives is 0.

    Raises:
        ValueError: if the kernel is not square or ``normalise`` is unknown.
    """
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(f"kernel of shape {tuple(kernel.shape)}: expected (n, n), over slices")
    if normalise not in ("row", "column"):
        raise ValueError(f"normalise={normalise!r}: choose 'row' or 'column' (as released)")
    weights = kernel.repeat(2, 2)  # (2n, 2n)
    weights.fill_diagonal_(0)
    total = weights.sum(1)
    total = total.where(total > 0, 1)
    return weights / (total[:, None] if normalise == "row" else total[None, :])


def effective_positives(kernel: Tensor) -> Tensor:
    r"""Number of equal positives that would weigh the same: :math:`1 / \sum_i w_{ti}^2` (Kish).

    Args:
        kernel: degrees of positiveness of the n slices, ``(n, n)``.

    Returns:
        ``(n,)``, between 1 (only the other view) and 2n - 1; 0 for an anchor without positives.
    """
    squares = pair_weights(kernel)[: len(kernel)].square().sum(1)
    return torch.where(squares > 0, 1 / squares, squares)


def _one_per_slice(values: Tensor, name: str) -> Tensor:
    if values.ndim != 1:
        raise ValueError(f"{name} of shape {tuple(values.shape)}: expected (n,), one per slice")
    return values


def _check(method: str, labels: Tensor | None, positions: Tensor | None, floor: float) -> None:
    if method not in KERNELS:
        raise ValueError(f"method={method!r} has no kernel: choose one of {', '.join(KERNELS)}")
    either = labels if positions is None else positions
    needs = {"depth_aware": (positions,), "supcon": (labels,), "simclr": (either,)}
    if any(values is None for values in needs.get(method, (labels, positions))):
        raise ValueError(f"method={method!r}: labels or positions of the slices are missing")
    if labels is not None and positions is not None and len(labels) != len(positions):
        raise ValueError(f"{len(labels)} labels for {len(positions)} positions: give one per slice")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor={floor}: a degree of positiveness, between 0 and 1")
