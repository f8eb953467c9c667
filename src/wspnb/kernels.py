"""Degrees of positiveness: how much two slices of a batch count as the same thing.

A kernel is an ``(n, n)`` matrix of degrees >= 0 over the n slices of a batch, 1 on its diagonal.
The product of two kernels is plain ``*``; WSP is that of the same label and the Gaussian of height.
Where a batch is too large for the whole matrix, ``rows`` asks for some of its rows alone.
"""

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
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
        ValueError: if ``labels`` is not one-dimensional, or words.
    """
    labels = _one_per_slice(labels, "labels")
    known = (labels == labels) & (labels != -1)
    own = slice(None) if rows is None else check_rows(rows, len(labels))
    equal = (labels[own, None] == labels[None, :]) & known[own, None] & known[None, :]
    return (equal | same_slice(labels, rows).bool()).float()


def same_slice(values: Tensor, rows: Tensor | None = None) -> Tensor:
    """Positive with nothing but itself (SimCLR): ``(m, n)`` rows of the identity, as above."""
    values = _one_per_slice(values, "values") if not isinstance(values, Tensor) else values
    numbers = torch.arange(len(values), device=values.device)
    own = numbers if rows is None else check_rows(rows, len(numbers))
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
        ValueError: if ``sigma`` is not positive, ``positions`` is not one-dimensional or one is not
            finite.
    """
    own, positions = _own_and_all(positions, sigma, "sigma", rows)
    return torch.exp(-0.5 * ((own[:, None] - positions[None, :]).abs() / sigma) ** 2)


def closer(positions: Tensor, width: float, rows: Tensor | None = None) -> Tensor:
    r"""Positive within a distance: :math:`[|d_t - d_i| < w]` (PCL, Zeng et al. 2021); at the width,
    to rounding, is not within. A step, so a width that is learnt, which would get no gradient, is
    refused (ValueError)."""
    if isinstance(width, Tensor) and width.requires_grad:
        raise ValueError(
            "width of a step gets no gradient: hold it fixed, or take gaussian, cauchy"
        )
    own, positions = _own_and_all(positions, width, "width", rows)
    apart = (own[:, None] - positions[None, :]).abs()
    rounding = 4 * torch.finfo(apart.dtype).eps * positions.abs().amax()  # of heights and distances
    return ((apart < width - rounding) | (apart == 0)).to(positions.dtype)


def cauchy(positions: Tensor, width: float, rows: Tensor | None = None) -> Tensor:
    r"""Kernel with a heavy tail: :math:`1 / (1 + (d_t - d_i)^2 / w^2)` (AnatCL writes
    :math:`\sigma = 1 / w^2`); ``inf`` ignores the position."""
    own, positions = _own_and_all(positions, width, "width", rows)
    return 1 / (1 + ((own[:, None] - positions[None, :]) / width).square())


def order(positions: Tensor, width: float, rows: Tensor | None = None) -> Tensor:
    """Degrees for losses that only compare them (Rank-N-Contrast): they fall with the distance and
    never end at 0. A finite ``width`` changes no order; ``inf`` ignores the position."""
    own, positions = _own_and_all(positions, width, "width", rows)
    unit = positions.abs().amax() + width
    return 1 / (1 + (own[:, None] - positions[None, :]).abs() / unit)


def soft_graph(similarity: Tensor, temperature: float = 0.1) -> Tensor:
    r"""Degrees from any graph of similarities: :math:`\exp((G_{ti} - 1) / \tau_s)` (X-CLR, Sobal et
    al. 2024), G = 1 on the diagonal. Row-normalised it is X-CLR's softmax over the positives.

    With :math:`G = 1 - (d_t - d_i)^2` and :math:`\tau_s = 2\sigma^2` it is :func:`gaussian`.
    """
    check_positive("temperature of the graph", temperature)
    return torch.exp((similarity - 1) / temperature)


def jaccard(labels: Tensor, power: float = 1.0, rows: Tensor | None = None) -> Tensor:
    r"""Share of the labels that two slices have in common, :math:`(|A_t \cap A_i| / |A_t \cup
    A_i|)^\beta` (multi-label SupCon).

    Args:
        labels: 1 where a slice bears a label, ``(n, n_labels)``; one label each gives
            :func:`same_label`, whatever the power. A slice without labels is positive with itself
            alone.
        power: beta.
        rows: numbers of the slices whose rows are wanted, ``(m,)``; None for all n.

    Raises:
        ValueError: if labels are no matrix of 0 and 1, or the power is not positive.
    """
    labels = torch.as_tensor(np.array(labels) if hasattr(labels, "to_numpy") else labels)
    known = (labels == 0) | (labels == 1)
    if labels.ndim != 2 or not power > 0 or (labels.is_cpu and not holds(known.all())):
        found = f"labels {tuple(labels.shape)}, power={power}"
        raise ValueError(f"{found}: (n, n_labels) of 0 and 1, and a positive power")
    has = labels.float()
    own = has if rows is None else has[check_rows(rows, len(has))]
    with torch.autocast(has.device.type, enabled=False):  # counts above 256 would be rounded
        both = own @ has.T
    either = own.sum(1)[:, None] + has.sum(1)[None, :] - both
    return torch.maximum((both / either.clamp_min(1)) ** power, same_slice(has, rows))


def nested(stages: Tensor) -> Tensor:
    """Stage s as the labels "at least 0" to "at least s", ``(n, n_stages)``; unknown (-1): none."""
    stages = _one_per_slice(stages, "labels")
    stages = stages.masked_fill(stages != stages, -1)
    if stages.is_cpu and not (stages % 1 == 0).all():
        raise ValueError("stages: whole numbers from 0 on, -1 or NaN where unknown")
    n_stages = int(stages.max()) + 1 if len(stages) else 0
    return (stages[:, None] >= torch.arange(n_stages, device=stages.device)).float()


def mixture(kernels: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    r"""One kernel whose loss is the weighted mean of the kernels' own losses.

    Each kernel is divided by the sum of its row over the 2n - 1 positives of the two-view batch
    (every slice twice, the anchor left out: :math:`2\sum_i k_{ti} - 1`) before it is weighted
    and added:

    .. math:: m_{ti} = \sum_m a_m\, k^m_{ti} / (2\sum_j k^m_{tj} - 1)

    With ``normalise="row"`` then :math:`L(m) = \sum_m a_m L(k^m) / \sum_m a_m` exactly, since the
    loss is linear in the normalised weights. A plain sum of losses (clinical labels) is this times
    the sum of the weights. Rows of the result sum to the sum of the weights over the 2n - 1
    positives; its diagonal is therefore not 1.

    Args:
        kernels: matrices ``(n, n)``, or the same rows of them, each 1 on its diagonal.
        weights: share of each kernel, >= 0, not all 0.

    Returns:
        ``(n, n)``, in general not symmetric; float32 at least, as shares are small.

    Raises:
        ValueError: if numbers or shapes do not match or a weight is negative.
    """
    _check_parts(kernels, weights)
    finest = reduce(torch.promote_types, [kernel.dtype for kernel in kernels], torch.float32)
    total = torch.zeros_like(kernels[0], dtype=finest)
    for kernel, weight in zip(kernels, weights, strict=True):
        kernel = kernel.to(finest)
        total = total + weight * kernel / (2 * kernel.sum(1, keepdim=True) - 1)
    return total


def combine(kernels: Sequence[Tensor], how: str = "product", weights=None) -> Tensor:
    r"""One kernel of several attributes, such as label, height and eye.

    product :math:`\prod_m (k^m_{ti})^{a_m}`: alike in all, each counts (WSP: label x height; a
    Gaussian to the power a is one of width :math:`\sigma / \sqrt a`). minimum
    :math:`\min_m k^m_{ti}`: as alike as the worst of them, whatever their number; equal to the
    product where all but one are 0 or 1. mixture: alike in any, see :func:`mixture`.

    Args:
        kernels: matrices of one shape, each 1 on its diagonal.
        how: "product", "minimum" or "mixture".
        weights: a, >= 0; None: all 1, in the mixture equal shares. The minimum has none.

    Returns:
        ``(m, n)``; product and minimum are 1 on the diagonal, and a single kernel is itself.

    Raises:
        ValueError: if numbers or shapes do not match, a weight is negative or how is unknown.
    """
    if weights is None:
        weights = [1 / len(kernels) if how == "mixture" else 1] * len(kernels)
    if how not in ("product", "minimum", "mixture") or (how == "minimum" and set(weights) != {1}):
        raise ValueError(f"how={how!r}: product, minimum (without weights) or mixture, please")
    if how == "mixture":
        return mixture(kernels, weights)
    _check_parts(kernels, weights)
    plain = [not isinstance(a, Tensor) and a == 1 for a in weights]  # k**1 costs; one is learnt
    powers = [k if one else k**a for k, a, one in zip(kernels, weights, plain, strict=True)]
    return reduce(torch.mul if how == "product" else torch.minimum, powers)


def _check_parts(kernels: Sequence[Tensor], weights: Sequence[float]) -> None:
    if not kernels or len(kernels) != len(weights):
        raise ValueError(f"{len(kernels)} kernels, {len(weights)} weights: give one for each")
    if not (min(weights) >= 0 and sum(weights) > 0):  # NaN is neither
        raise ValueError(f"weights of kernels {list(weights)}: must be >= 0 and not all 0")
    if len({kernel.shape for kernel in kernels}) > 1:
        raise ValueError(f"kernels of shapes {[tuple(k.shape) for k in kernels]}: must be equal")


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
        ValueError: if the kernel is not square, a degree is negative or not finite, or
            ``normalise`` is unknown.
    """
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(f"kernel of shape {tuple(kernel.shape)}: expected (n, n), over slices")
    if normalise not in ("row", "column"):
        raise ValueError(f"normalise={normalise!r}: choose 'row' or 'column' (as released)")
    check_degrees(kernel)
    weights = kernel.repeat(2, 2)  # (2n, 2n)
    weights.fill_diagonal_(0)
    total = weights.sum(1)
    total = total.where(total > 0, 1)
    return weights / (total[:, None] if normalise == "row" else total[None, :])


def effective_positives(kernel: Tensor) -> Tensor:
    r"""Number of equal positives that would weigh the same, of a kernel ``(n, n)``: :math:`1 /
    \sum_i w_{ti}^2` (Kish).

    Returns:
        ``(n,)``, between 1 (only the other view) and 2n - 1; 0 for an anchor without positives.
    """
    kernel = kernel.to(torch.promote_types(kernel.dtype, torch.float32))  # squares of 1/1000 count
    squares = pair_weights(kernel)[: len(kernel)].square().sum(1)
    return torch.where(squares > 0, 1 / squares, squares)


def check_rows(rows, n: int, name: str = "rows") -> Tensor:
    """Numbers of slices ``(m,)`` as int64; whether they are of the n where no GPU waits for it."""
    rows = torch.as_tensor(np.array(rows) if hasattr(rows, "to_numpy") else rows)  # by row, too
    whole = not (rows.is_floating_point() or rows.dtype == torch.bool)
    if rows.ndim != 1 or not len(rows) or not whole:
        found = f"{name} {tuple(rows.shape)} of {rows.dtype}"
        raise ValueError(f"{found}: give the numbers of one slice or more, (m,)")
    if rows.is_cpu and not torch.compiler.is_compiling():
        low, high = map(int, rows.long().aminmax())
        if low < 0 or high >= n:
            raise ValueError(f"{name} {low} to {high} of {n} slices")
    return rows.long()


def holds(condition: Tensor) -> bool:
    """Whether a condition on values holds; also where nobody can see them: in a graph that is being
    compiled, and under ``torch.func.vmap``."""
    try:
        return torch.compiler.is_compiling() or bool(condition)
    except RuntimeError:
        if not torch._C._are_functorch_transforms_active():
            raise
        return True


def check_positive(name: str, value: float | Tensor) -> None:
    """Refuse what is not one number above 0."""
    try:
        if value > 0 and (not isinstance(value, Tensor) or value.numel() == 1):
            return
    except (TypeError, ValueError, RuntimeError):  # text, None, several
        pass
    shown = " ".join(str(value).split())[:60]
    raise ValueError(f"{name}={shown}: must be positive, one number")


def check_degrees(kernel: Tensor) -> None:
    """Refuse degrees that are negative or not finite: the loss would be a wrong number, or NaN. Not
    on a GPU, which would wait for it."""
    if kernel.is_cpu and kernel.numel():
        low, high = kernel.detach().aminmax()
        if not holds((low >= 0) & (high < torch.inf)):
            found = f"kernel has degrees from {float(low)} to {float(high)}"
            raise ValueError(f"{found}: they must be finite and not negative")


def check_finite(positions: Tensor, named: Callable[[int], str] = "positions[{}]".format) -> None:
    """Refuse a position that is NaN or infinite, by name: the whole batch's loss would be NaN.

    Args:
        positions: height of each slice, ``(n,)``.
        named: what to call slice number i, and what was found there.
    """
    if not holds((finite := torch.isfinite(positions)).all()):
        first = int((~finite).nonzero()[0])
        raise ValueError(
            f"{named(first)}: {float(positions[first])} is no height ({int((~finite).sum())} of"
            f" {len(positions)} slices): give each a finite position, or leave it out"
        )


def _one_per_slice(values: Tensor, name: str) -> Tensor:
    try:
        if hasattr(values, "to_numpy"):  # a column of a table; its index says nothing
            values = values.to_numpy()
        if isinstance(values, np.ndarray):  # also turned round, or of numbers as objects
            values = np.array(values.tolist() if values.dtype == object else values)
        values = torch.as_tensor(values)  # a loader's list or array, too
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} are no numbers ({error}): number the classes 0, 1, ...") from None
    if values.ndim != 1:
        raise ValueError(f"{name} of shape {tuple(values.shape)}: expected (n,), one per slice")
    return values if values.dtype.is_signed else values.long()  # -1 would be 255 in uint8


def _own_and_all(positions: Tensor, width: float, name: str, rows: Tensor | None):
    """Positions of the rows and of all, float32 at least."""
    check_positive(name, width)
    positions = _one_per_slice(positions, "positions")
    positions = positions if positions.dtype == torch.float64 else positions.float()
    if rows is None or positions.is_cpu:  # block after block of a GPU would wait for it
        check_finite(positions)
    return (positions if rows is None else positions[check_rows(rows, len(positions))]), positions
