"""The one contrastive loss of all methods, whose kernels differ; two losses without negatives."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from wspnb.blockwise import blockwise_loss, check_negatives, log_denominators
from wspnb.kernels import check_degrees, check_positive, check_rows, pair_weights
from wspnb.models import on_sphere

Kernel = Tensor | Callable[[Tensor], Tensor]  # (n, n), or a function that gives its rows
DENOMINATORS = ("all", "others", "printed")  # weighed by the second kernel
BY_DEGREE = ("exp", "less", "no_more")  # that compare or scale by it
BLOCKWISE_ABOVE = 64  # slices: faster and in less memory from here on, equal to rounding


def contrastive_loss(
    view_1: Tensor,
    view_2: Tensor,
    kernel: Kernel,
    temperature: float | Tensor = 0.1,
    denominator: str = "all",
    normalise: str = "row",
    anchors: Tensor | None = None,
    negatives: Kernel | None = None,
) -> Tensor:
    r"""Kernel-weighted contrastive loss of a batch seen twice (WSP, equation 1).

    .. math::
        L = -\frac{1}{2n} \sum_t \sum_{i \in P(t)} w_{ti}
            \log \frac{\exp s_{ti}}{\sum_{j \in D(t,i)} v_{tj} \exp s_{tj}},
            \qquad s_{tj} = z_t \cdot z_j / \tau

    over the 2n views, z on the unit sphere. P(t): the other views of positive degree, that of the
    same slice among them. The paper sums over anchors; the mean is taken here, so that equal
    embeddings cost log(2n - 1) at every batch size. An anchor without positives counts 0.

    Args:
        view_1: embeddings of the n slices, ``(n, dim)``, any scale, any float dtype.
        view_2: embeddings of their second views, ``(n, dim)``.
        kernel: degrees of positiveness of the n slices, ``(n, n)``, >= 0; or, for batches whose
            matrix would not fit, a function from the numbers of m slices ``(m,)`` to their rows
            ``(m, n)``, such as ``partial(pair_kernel, "wsp", labels, positions, sigma)``.
        temperature: tau, one number, *paper silent*; 0.1 in the released code.
        denominator: D. "all" {j != t} (SupCon, y-Aware, released code); "others" {j not in {i, t}}
            (the positive left out as well); "printed" {j != i} (as the paper prints: keeps j = t).
            By the degrees v of the second kernel: "less" i and those with v_tj < v_ti (Barbano et
            al. 2023, threshold); "no_more" those with v_tj <= v_ti (Rank-N-Contrast, Zha et al.
            2023); "exp" all j != t, each as exp(s_tj (1 - v_tj)) (Barbano et al., exp).
        normalise: "row" sum of w over P(t) is 1 (paper); "column" as released (``pair_weights``).
        anchors: numbers of the slices whose two views are anchors t, ``(m,)``; the mean is then
            over these 2m (the share of one device); None for all.
        negatives: v, how much j repels t, as ``kernel``; None: all 1 (paper). It weighs every term
            of the denominator alike, so also the positive pair's own (by v_ti) and that of the
            other view of the same slice (by v_tt); whether j = t enters is D's choice. With the
            last three denominators it is what they compare or scale by, and no weight.

    Returns:
        Scalar, float64 for float64 embeddings, else float32 (computed in it, also under autocast).
        Not negative with "all" and no ``negatives``. Gradients reach kernels and temperature, too.

    Raises:
        ValueError: if shapes do not match, an option is unknown, the temperature is not positive,
            or a degree on the CPU is negative or not finite (a GPU would wait for the look).
    """
    n = _check(view_1, view_2, kernel, temperature, denominator, normalise, anchors, negatives)
    with torch.autocast(view_1.device.type, enabled=False):
        views = on_sphere(torch.cat([view_1, view_2]))  # (2n, dim)
        if isinstance(temperature, Tensor):  # of any type; (1,) would widen the result
            temperature = temperature.reshape(()).to(views)
        else:  # numpy's numbers have a type of their own
            temperature = float(temperature)
        if anchors is not None:
            anchors = check_rows(anchors, n, "anchors").to(views.device)
        kernel, negatives = (  # whole ones beside the views; nothing waits for a GPU
            k.to(views.device, non_blocking=True) if isinstance(k, Tensor) else k
            for k in (kernel, negatives)
        )
        if not _learnt(views, kernel, negatives, temperature):
            if n > BLOCKWISE_ABOVE or anchors is not None or not isinstance(kernel, Tensor):
                options = (temperature, normalise, anchors, negatives, denominator)
                return blockwise_loss(views, kernel, *options)
        logits = views @ views.T / temperature  # (2n, 2n)
        weights = pair_weights(_whole(kernel, views), normalise)
        repel = None
        if negatives is not None:
            repel = check_negatives(_whole(negatives, views), denominator).repeat(2, 2)
        every = torch.arange(2 * n, device=logits.device)
        log_sum = log_denominators(logits, every, denominator, repel)
        # Self pairs have weight 0 and a finite logit here: no 0 * inf.
        terms = weights * (logits - log_sum)
        if anchors is not None:
            terms = terms.view(2, n, 2 * n)[:, anchors].flatten(0, 1)  # (2m, 2n)
        return -terms.sum() / len(terms)


def byol_loss(
    prediction_1: Tensor,
    prediction_2: Tensor,
    target_1: Tensor,
    target_2: Tensor,
    kernel: Tensor | None = None,
) -> Tensor:
    r"""Distance of each view's prediction to targets of the other views (BYOL, equations 2 and 3).

    .. math::
        L = \frac{1}{n} \sum_t \sum_i w_{ti} \left(
            \|q_{1t} - z_{2i}\|^2 + \|q_{2t} - z_{1i}\|^2\right)

    symmetrised, all vectors on the unit sphere. With the identity, and without a kernel, it is
    BYOL's; a quarter of it minus 1 is SimSiam's. 0 when all are equal: its value does not show a
    collapse.

    Args:
        prediction_1, prediction_2: predictor's output for both views, ``(n, dim)``, any scale.
        target_1, target_2: projections of both views by the moving average, ``(n, dim)``; no
            gradient flows into them.
        kernel: degrees of positiveness ``(n, n)``, 1 on the diagonal; w are its rows divided by
            their sums over the n views of the other side. None: the identity.

    Returns:
        Scalar in float32 (float64 for such input), between 0 and 8.

    Raises:
        ValueError: if shapes differ or are not ``(n, dim)``.
    """
    if not prediction_1.shape == prediction_2.shape == target_1.shape == target_2.shape:
        shapes = [tuple(x.shape) for x in (prediction_1, prediction_2, target_1, target_2)]
        raise ValueError(f"predictions and targets of shapes {shapes}: expected four equal")
    if not prediction_1.numel():
        raise ValueError(f"predictions {tuple(prediction_1.shape)}: nothing to compare")
    if prediction_1.ndim != 2:
        raise ValueError(f"predictions {tuple(prediction_1.shape)}: expected (n, dim)")
    kind = torch.promote_types(prediction_1.dtype, torch.float32)
    weights = _rows_to_1(kernel, prediction_1, kind)

    def distance(prediction: Tensor, target: Tensor) -> Tensor:
        target = weights @ on_sphere(target.detach())
        return 2 - 2 * (on_sphere(prediction) * target).sum(1).mean()

    with torch.autocast(prediction_1.device.type, enabled=False):
        return distance(prediction_1, target_2) + distance(prediction_2, target_1)


def barlow_loss(
    view_1: Tensor, view_2: Tensor, kernel: Tensor | None = None, off_diagonal: float = 0.0051
) -> Tensor:
    r"""Cross-correlation of coordinates, smoothed by a kernel (Barlow Twins, Zbontar et al. 2021).

    .. math::
        L = \sum_a (1 - C_{aa})^2 + \lambda \sum_{a \ne b} C_{ab}^2, \qquad
        C = \tfrac{1}{n} Z_1^\top W Z_2

    Z: embeddings with mean 0 and variance 1 over the batch in each coordinate; W: the kernel, rows
    divided by their sums. With the identity it is the original. C can only be 1 on its diagonal
    for coordinates that W leaves alone, so the first term asks for functions that are constant
    within a class, or slow in depth; of a few classes there are as many such functions as classes
    less one, and the rest of the term stays.

    Args:
        view_1: embeddings of the n slices, ``(n, dim)``. As in the original 1e-5 is added to each
            variance: a coordinate that spreads by less than .003 counts as constant.
        view_2: embeddings of their second views.
        kernel: degrees of positiveness ``(n, n)``, 1 on the diagonal; None: the identity.
        off_diagonal: lambda (released code of the original: 0.0051).

    Returns:
        Scalar in float32 (float64 for such input).

    Raises:
        ValueError: if shapes differ or the batch holds one slice.
    """
    if view_1.ndim != 2 or view_1.shape != view_2.shape or len(view_1) < 2 or not view_1.numel():
        shapes = f"view_1 {tuple(view_1.shape)}, view_2 {tuple(view_2.shape)}"
        raise ValueError(f"{shapes}: expected two equal (n, dim), n of two or more")
    kind = torch.promote_types(view_1.dtype, torch.float32)
    with torch.autocast(view_1.device.type, enabled=False):
        one, two = (
            torch.nn.functional.batch_norm(v.to(kind), None, None, training=True)
            for v in (view_1, view_2)
        )
        found = one.T @ _rows_to_1(kernel, view_1, kind) @ two / len(one)  # (dim, dim)
        diagonal = found.diagonal()
        rest = found.square().sum() - diagonal.square().sum()
        return (1 - diagonal).square().sum() + off_diagonal * rest


def _rows_to_1(kernel: Tensor | None, views: Tensor, kind: torch.dtype) -> Tensor:
    """The kernel divided by its row sums, ``(n, n)``; the identity where there is none."""
    n = len(views)
    if kernel is None:
        return torch.eye(n, dtype=kind, device=views.device)
    if kernel.shape != (n, n):
        raise ValueError(f"kernel {tuple(kernel.shape)}: expected {(n, n)}, one row per slice")
    check_degrees(kernel)
    kernel = kernel.to(views.device, kind, non_blocking=True)
    totals = kernel.sum(1, keepdim=True)
    return kernel / totals.where(totals > 0, 1)


def _whole(kernel: Kernel, views: Tensor) -> Tensor:
    """The ``(n, n)`` matrix, as the views."""
    if not isinstance(kernel, Tensor):
        kernel = kernel(torch.arange(len(views) // 2, device=views.device))
    return kernel.to(views)


def _learnt(views: Tensor, *values) -> bool:
    """Whether a kernel or the temperature wants a gradient, or a derivative is taken forward or by
    torch.func: the blocks serve none of them."""
    if torch._C._are_functorch_transforms_active() or unpack_dual(views).tangent is not None:
        return True
    first = torch.arange(1, device=views.device)
    values = [value(first) if callable(value) else value for value in values]
    values = [value for value in values if isinstance(value, Tensor)]
    return any(v.requires_grad or unpack_dual(v).tangent is not None for v in values)


def _check(view_1, view_2, kernel, temperature, denominator, normalise, anchors, negatives) -> int:
    """Number of slices of a valid call."""
    if view_1.ndim != 2 or view_1.shape != view_2.shape or not view_1.shape[1]:
        shapes = f"view_1 {tuple(view_1.shape)}, view_2 {tuple(view_2.shape)}"
        raise ValueError(f"{shapes}: expected two equal (n, dim)")
    n = len(view_1)
    for name, given in (("kernel", kernel), ("negatives", negatives)):
        absent = given is None and name == "negatives"
        if not (isinstance(given, Tensor) or callable(given) or absent):
            found = f"{name} is a {type(given).__name__}"
            raise ValueError(f"{found}: give a tensor {(n, n)}, or a function that gives its rows")
        if isinstance(given, Tensor) and given.shape != (n, n):
            raise ValueError(
                f"{name} {tuple(given.shape)}: expected {(n, n)}, one row per slice (not per view)"
            )
    if denominator not in (known := (*DENOMINATORS, *BY_DEGREE)):
        raise ValueError(f"denominator={denominator!r}: choose one of {', '.join(known)}")
    if isinstance(negatives, Tensor):
        check_negatives(negatives, denominator)
        if denominator == "others" and not (negatives.sum(1) > negatives.diagonal()).all():
            raise ValueError("negatives: nothing is left to compare a positive with; use 'all'")
    check_positive("temperature", temperature)
    if normalise not in ("row", "column"):
        raise ValueError(f"normalise={normalise!r}: choose 'row' or 'column' (as released)")
    if negatives is None and denominator in BY_DEGREE:
        raise ValueError(f"denominator={denominator!r} needs negatives, degrees from 0 to 1")
    if n < (2 if denominator == "others" else 1):
        raise ValueError(f"{n} slices: too few for a contrast with denominator={denominator!r}")
    return n
