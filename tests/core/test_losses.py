import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss

from wspnb import losses
from wspnb.kernels import gaussian, same_label
from wspnb.losses import DENOMINATORS, byol_loss, contrastive_loss
from wspnb.methods import loss_terms, pair_kernel
from wspnb.momentum import Moco
from wspnb.pretrain import health

DOUBLE = torch.float64


def batch(n, dim, seed=0):
    """Two views, labels and positions of n slices."""
    generator = torch.Generator().manual_seed(seed)
    view_1, view_2 = torch.randn(2, n, dim, dtype=DOUBLE, generator=generator)
    labels = torch.randint(3, (n,), generator=generator)
    return view_1, view_2, labels, torch.rand(n, dtype=DOUBLE, generator=generator)


def naive_loss(
    view_1, view_2, kernel, temperature, denominator="all", normalise="row", negatives=None
):
    """The equation, pair by pair, in Python numbers."""
    views = [v / v.norm() for v in torch.cat([view_1, view_2])]
    n = len(kernel)
    m = 2 * n
    s = [[float(views[t] @ views[j]) / temperature for j in range(m)] for t in range(m)]
    w = [[float(kernel[t % n, i % n]) if i != t else 0.0 for i in range(m)] for t in range(m)]
    total = 0.0
    for t in range(m):
        for i in range(m):
            if i == t or w[t][i] == 0:
                continue
            left_out = {"all": {t}, "others": {i, t}, "printed": {i}}[denominator]
            weight = w[t][i] / sum(w[t] if normalise == "row" else w[i])
            below = math.fsum(
                math.exp(s[t][j]) * (1.0 if negatives is None else float(negatives[t % n, j % n]))
                for j in range(m)
                if j not in left_out
            )
            total -= weight * (s[t][i] - math.log(below))
    return total / m


@pytest.mark.parametrize("n, dim", [(2, 3), (5, 2), (9, 16)])
@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("sigma", [0.02, 0.1, math.inf])
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("normalise", ["row", "column"])
def test_naive_double_loop(n, dim, temperature, sigma, denominator, normalise):
    view_1, view_2, labels, positions = batch(n, dim, seed=n)
    options = {"denominator": denominator, "normalise": normalise}
    kernel = pair_kernel("wsp", labels, positions, sigma)
    expected = naive_loss(view_1, view_2, kernel, temperature, **options)
    fast = contrastive_loss(view_1, view_2, kernel, temperature, **options)
    assert fast.dtype == DOUBLE
    assert fast.item() == pytest.approx(expected, rel=1e-12)
    single = contrastive_loss(view_1.float(), view_2.float(), kernel, temperature, **options)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("temperature", [0.07, 0.1, 0.5])
def test_metric_learning_supcon(seed, temperature):
    view_1, view_2, labels, positions = batch(24, 16, seed)
    expected = SupConLoss(temperature)(torch.cat([view_1, view_2]), labels.repeat(2)).item()
    supcon = contrastive_loss(view_1, view_2, same_label(labels), temperature).item()
    assert supcon == pytest.approx(expected, rel=1e-12)
    # Exact limit: a Gaussian of infinite width is no Gaussian.
    kernel = pair_kernel("wsp", labels, positions, math.inf)
    assert contrastive_loss(view_1, view_2, kernel, temperature).item() == supcon


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("temperature", [0.07, 0.1, 0.5])
def test_metric_learning_ntxent(seed, temperature):
    view_1, view_2, labels, positions = batch(24, 16, seed)
    slices = torch.arange(24)
    expected = NTXentLoss(temperature)(torch.cat([view_1, view_2]), slices.repeat(2)).item()
    simclr = contrastive_loss(view_1, view_2, torch.eye(24), temperature).item()
    assert simclr == pytest.approx(expected, rel=1e-12)
    # Exact limits: every label distinct, or a Gaussian of no width (positions differ here).
    for kernel in (
        pair_kernel("wsp", slices, positions, 0.1),
        pair_kernel("wsp", labels, positions, 1e-30),
    ):
        assert contrastive_loss(view_1, view_2, kernel, temperature).item() == simclr


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_label_is_depth_aware(seed):
    view_1, view_2, labels, positions = batch(13, 8, seed)
    wsp = pair_kernel("wsp", torch.full_like(labels, 2), positions, 0.1)
    depth_aware = gaussian(positions, 0.1)
    assert contrastive_loss(view_1, view_2, wsp) == contrastive_loss(view_1, view_2, depth_aware)


@pytest.mark.parametrize("method", ["wsp", "depth_aware", "supcon", "simclr"])
@pytest.mark.parametrize("n", [2, 8, 64])
def test_identical_embeddings(method, n):
    view_1, _, labels, positions = batch(n, 4)
    same = view_1[:1].expand(n, 4)
    kernel = pair_kernel(method, labels, positions, 0.1)
    expected = {"all": 2 * n - 1, "others": 2 * n - 2, "printed": 2 * n - 1}
    for denominator, number in expected.items():
        loss = contrastive_loss(same, same, kernel, denominator=denominator).item()
        assert loss == pytest.approx(math.log(number), rel=1e-12)


@pytest.mark.parametrize("n, temperature", [(2, 0.1), (5, 0.5), (16, 1.0)])
def test_orthogonal_slices_with_equal_views(n, temperature):
    views, e = torch.eye(n, dtype=DOUBLE), math.exp(1 / temperature)

    def loss(kernel, denominator):
        return contrastive_loss(views, 3 * views, kernel, temperature, denominator).item()

    # Another view with similarity 1, 2n - 2 views with similarity 0.
    aligned, rest = 1 / temperature, 2 * n - 2
    close = {"rel": 1e-10, "abs": 1e-12}
    simclr = torch.eye(n)
    assert loss(simclr, "all") == pytest.approx(math.log1p(rest / e), **close)
    assert loss(simclr, "others") == pytest.approx(math.log(rest) - aligned, **close)
    assert loss(simclr, "printed") == pytest.approx(math.log1p(rest / e), **close)
    # One class: the 2n - 1 positives weigh the same, one of them is aligned.
    supcon = math.log(e + rest) - aligned / (2 * n - 1)
    assert loss(torch.ones(n, n), "all") == pytest.approx(supcon, **close)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("normalise", ["row", "column"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_order_of_slices_and_views_does_not_matter(denominator, normalise, seed):
    view_1, view_2, labels, positions = batch(10, 6, seed)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(seed))
    kernel = pair_kernel("wsp", labels, positions, 0.2)

    def loss(a, b, k):
        return contrastive_loss(a, b, k, denominator=denominator, normalise=normalise).item()

    value = loss(view_1, view_2, kernel)
    shuffled = loss(view_1[order], view_2[order], kernel[order][:, order])
    assert shuffled == pytest.approx(value, rel=1e-13)
    assert loss(view_2, view_1, kernel) == pytest.approx(value, rel=1e-13)
    # One slice with its two views exchanged.
    a, b = view_1.clone(), view_2.clone()
    a[3], b[3] = view_2[3], view_1[3]
    assert loss(a, b, kernel) == pytest.approx(value, rel=1e-13)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("normalise", ["row", "column"])
def test_gradcheck(denominator, normalise):
    view_1, view_2, labels, positions = batch(4, 3, seed=1)
    kernel = pair_kernel("wsp", labels, positions, 0.2)
    kernel[0], kernel[:, 0] = 0, 0  # an anchor without positives has a gradient, as a negative
    inputs = (view_1.requires_grad_(), view_2.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda a, b: contrastive_loss(a, b, kernel, 0.3, denominator, normalise), inputs
    )


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("normalise", ["row", "column"])
def test_anchor_without_positives_counts_zero(denominator, normalise):
    view_1, view_2, *_ = batch(6, 4)
    kernel = torch.eye(6)
    kernel[2, 2] = 0
    view_1.requires_grad_()
    loss = contrastive_loss(view_1, view_2, kernel, 0.1, denominator, normalise)
    assert loss.item() == pytest.approx(
        naive_loss(view_1.detach(), view_2, kernel, 0.1, denominator, normalise), rel=1e-12
    )
    loss.backward()
    assert view_1.grad.isfinite().all()
    nothing = contrastive_loss(view_1, view_2, torch.zeros(6, 6), 0.1, denominator, normalise)
    assert nothing.item() == 0
    (gradient,) = torch.autograd.grad(nothing, view_1)
    assert not gradient.any()


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_float32_holds_where_one_pair_dominates(denominator, temperature):
    # Aligned views: the positive is nearly all of the sum that "others" takes it out of.
    view_1, _, labels, positions = batch(32, 64, seed=3)
    view_2 = view_1 + 1e-3 * batch(32, 64, seed=4)[0]
    kernel = pair_kernel("wsp", labels, positions, 0.1)
    exact = contrastive_loss(view_1, view_2, kernel, temperature, denominator)
    first, second = view_1.float().requires_grad_(), view_2.float()
    single = contrastive_loss(first, second, kernel, temperature, denominator)
    assert single.item() == pytest.approx(exact.item(), rel=1e-5)
    single.backward()
    assert first.grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    view_1, view_2, labels, positions = batch(16, 32)
    kernel = pair_kernel("wsp", labels, positions, 0.1)
    for dtype in (torch.bfloat16, torch.float16):
        a, b = view_1.to(dtype), view_2.to(dtype)
        expected = contrastive_loss(a.float(), b.float(), kernel)
        assert contrastive_loss(a, b, kernel).dtype == torch.float32
        assert contrastive_loss(a, b, kernel) == expected
        with torch.autocast("cpu", torch.bfloat16):
            assert contrastive_loss(a, b, kernel) == expected
            assert contrastive_loss(a.float(), b.float(), kernel) == expected


def test_column_normalisation_as_released_is_close_and_not_equal():
    view_1, view_2, labels, positions = batch(24, 16)
    kernel = pair_kernel("wsp", labels, positions, 0.1)
    row = contrastive_loss(view_1, view_2, kernel).item()
    column = contrastive_loss(view_1, view_2, kernel, normalise="column").item()
    assert row == pytest.approx(column, rel=0.05)
    assert row != pytest.approx(column, rel=1e-6)


def test_self_term_fills_the_printed_denominator():
    # 98.7 % at initialisation: 64 slices, random embeddings of 64 coordinates, temperature 0.1.
    view_1, view_2, *_ = batch(64, 64)
    views = torch.nn.functional.normalize(torch.cat([view_1, view_2]), dim=1)
    share = (views @ views.T / 0.1).softmax(1).diagonal()
    assert share.mean().item() == pytest.approx(0.987, abs=0.002)


numbers = st.floats(-10, 10, allow_nan=False, width=32)


@st.composite
def batches(draw):
    n, dim = draw(st.integers(2, 7)), draw(st.integers(1, 5))
    values = draw(st.lists(numbers, min_size=2 * n * dim, max_size=2 * n * dim))
    labels = torch.tensor(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    heights = draw(st.lists(st.floats(0, 1, width=32), min_size=n, max_size=n))
    sigma = draw(st.sampled_from([0.01, 0.1, 1.0, math.inf]))
    kernel = same_label(labels) * gaussian(torch.tensor(heights), sigma)
    return torch.tensor(values).reshape(2, n, dim), kernel, draw(st.sampled_from([0.05, 0.1, 1.0]))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(batches(), st.sampled_from(DENOMINATORS), st.sampled_from(["row", "column"]))
def test_always_finite_and_not_negative(example, denominator, normalise):
    views, kernel, temperature = example
    view_1, view_2 = views[0].clone().requires_grad_(), views[1]
    loss = contrastive_loss(view_1, view_2, kernel, temperature, denominator, normalise)
    assert loss.isfinite()
    if denominator == "all":
        assert loss >= -1e-6
    (gradient,) = torch.autograd.grad(loss, view_1)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("size", [1e-45, 1e-39, 1e-36, 1e-30])
def test_gradients_of_the_smallest_embeddings_are_finite(size):
    view_1, view_2 = (
        torch.zeros(4, 2),
        torch.randn(4, 2, generator=torch.Generator().manual_seed(0)),
    )
    view_1[3, 0] = size
    loss = contrastive_loss(view_1.requires_grad_(), view_2, torch.eye(4), 0.05)
    assert torch.autograd.grad(loss, view_1)[0].isfinite().all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(batches(), st.floats(0.1, 100), st.sampled_from(DENOMINATORS))
def test_scale_of_embeddings_does_not_matter(example, scale, denominator):
    views, kernel, temperature = example
    views = views.double()
    views = views + 1e-3 * (views.norm(dim=2, keepdim=True) < 1e-3)  # no zero vector
    before = contrastive_loss(*views, kernel, temperature, denominator).item()
    after = contrastive_loss(*(views * scale), kernel, temperature, denominator).item()
    assert after == pytest.approx(before, rel=1e-9, abs=1e-9)


def test_errors_say_what_to_do():
    view = torch.randn(4, 3)
    with pytest.raises(ValueError, match="two equal"):
        contrastive_loss(view, view[:3], torch.eye(4))
    with pytest.raises(ValueError, match="two equal"):
        contrastive_loss(view[0], view[0], torch.eye(4))
    with pytest.raises(ValueError, match="per slice"):
        contrastive_loss(view, view, torch.eye(8))
    for other in (torch.eye(4).numpy(), [[1.0] * 4] * 4, None):
        with pytest.raises(ValueError, match=rf"kernel is a {type(other).__name__}: give a tensor"):
            contrastive_loss(view, view, other)
    with pytest.raises(ValueError, match="temperature=0"):
        contrastive_loss(view, view, torch.eye(4), temperature=0)
    with pytest.raises(ValueError, match="choose one of all, others, printed"):
        contrastive_loss(view, view, torch.eye(4), denominator="any")
    with pytest.raises(ValueError, match="normalise='both'"):
        contrastive_loss(view, view, torch.eye(4), normalise="both")
    with pytest.raises(ValueError, match="too few"):
        contrastive_loss(view[:1], view[:1], torch.eye(1), denominator="others")


def test_byol_loss_by_hand_and_without_gradient_into_the_targets():
    q1, q2, z1, z2 = (torch.randn(5, 7, dtype=torch.float64, requires_grad=True) for _ in range(4))
    loss = byol_loss(q1, q2, z1, z2)
    by_hand = 0.0
    for q, z in ((q1, z2), (q2, z1)):
        for a, b in zip(q, z, strict=True):
            by_hand += float((a / a.norm() - b / b.norm()).detach().pow(2).sum()) / 5
    assert loss.item() == pytest.approx(by_hand, rel=1e-12)
    loss.backward()
    assert z1.grad is None and z2.grad is None
    assert q1.grad.abs().sum() > 0 and q2.grad.abs().sum() > 0
    assert float(byol_loss(q1, -q1, -q1, 3 * q1)) == pytest.approx(0, abs=1e-12)
    assert float(byol_loss(q1, q1, -q1, -q1)) == pytest.approx(8)
    with pytest.raises(ValueError, match="four equal"):
        byol_loss(q1, q2, z1, z2[:4])


def random_negatives(n, seed=0):
    """Weights of the denominator, not symmetric, some of them 0, above and below 1."""
    weights = 2 * torch.rand(n, n, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    weights[weights < 0.3] = 0
    return weights + torch.eye(n).roll(1, 0)  # every row has one off the diagonal


@pytest.mark.parametrize("n", [3, 9])
@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("normalise", ["row", "column"])
def test_negatives_weigh_each_term_of_the_denominator(n, temperature, denominator, normalise):
    for seed in range(3):
        view_1, view_2, labels, positions = batch(n, 4, seed)
        kernel, negatives = pair_kernel("wsp", labels, positions, 0.2), random_negatives(n, seed)
        options = {"denominator": denominator, "normalise": normalise, "negatives": negatives}
        expected = naive_loss(view_1, view_2, kernel, temperature, **options)
        loss = contrastive_loss(view_1, view_2, kernel, temperature, **options)
        assert loss.item() == pytest.approx(expected, rel=1e-12)
        ones = options | {"negatives": torch.ones(n, n)}
        plain = contrastive_loss(view_1, view_2, kernel, temperature, denominator, normalise)
        assert torch.equal(contrastive_loss(view_1, view_2, kernel, temperature, **ones), plain)


@pytest.mark.parametrize("denominator", DENOMINATORS)
def test_negatives_have_gradients(denominator):
    view_1, view_2, labels, positions = batch(5, 3)
    kernel, negatives = pair_kernel("wsp", labels, positions, 0.2), random_negatives(5)
    inputs = view_1.requires_grad_(), view_2.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: contrastive_loss(a, b, kernel, 0.3, denominator, negatives=negatives), inputs
    )
    weights = (negatives + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v: contrastive_loss(view_1, view_2, kernel, 0.3, denominator, negatives=v), weights
    )


def test_negatives_are_checked(monkeypatch):
    view_1, view_2, *_ = batch(4, 3)
    eye = torch.eye(4)
    for bad in (torch.zeros(4, 4), -eye, torch.full((4, 4), math.nan)):
        with pytest.raises(ValueError, match="every row needs weights >= 0"):
            contrastive_loss(view_1, view_2, eye, negatives=bad)
    for above in (math.inf, 0):
        monkeypatch.setattr(losses, "BLOCKWISE_ABOVE", above)
        with pytest.raises(ValueError, match="every row needs weights >= 0"):
            contrastive_loss(view_1, view_2, eye, negatives=lambda rows: -eye[rows])
    with pytest.raises(ValueError, match=r"negatives \(8, 8\): expected \(4, 4\)"):
        contrastive_loss(view_1, view_2, eye, negatives=torch.ones(8, 8))
    with pytest.raises(ValueError, match="nothing is left to compare"):
        contrastive_loss(view_1, view_2, eye, denominator="others", negatives=eye)
    with pytest.raises(ValueError, match="must stay above 0"):
        contrastive_loss(view_1, view_2, eye, negatives=eye.clone().requires_grad_())
    assert contrastive_loss(view_1, view_2, eye, negatives=eye) == 0  # only the positive itself


def test_own_class_repels_only_as_far_as_it_attracts():
    """Four slices, two classes, worked by hand: wsp_own leaves the own class elsewhere alone."""
    labels, positions = torch.tensor([0, 0, 1, 1]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    negatives = loss_terms("wsp_own", labels, positions, 0.1)["negatives"]
    far = math.exp(-50)
    expected = torch.tensor([[1, far, 1, 1], [far, 1, 1, 1], [1, 1, 1, far], [1, 1, far, 1]])
    torch.testing.assert_close(negatives, expected)
    same = torch.ones(4, 3)
    loss = contrastive_loss(
        same, same, pair_kernel("wsp_own", labels, positions, 0.1), negatives=negatives
    )
    assert loss.item() == pytest.approx(math.log(5))  # itself again, two other slices twice
    for method in ("wsp", "wsp_floor", "supcon", "depth_aware", "simclr"):
        assert loss_terms(method, labels, positions)["negatives"] is None


@pytest.mark.parametrize("n", [8, 65])
def test_learnt_temperature_and_widths_get_their_slope(n):
    """At every size, for whole kernels and functions of rows, and for a share of the anchors."""
    view_1, view_2, _, positions = batch(n, 8)
    negatives = torch.rand(n, n, dtype=DOUBLE) + 0.1
    some = torch.arange(0, n, 2)

    def loss(tau, width, scale, **options):
        kernel = lambda rows: gaussian(positions, width, rows)  # noqa: E731
        kernel = kernel(torch.arange(n)) if options.pop("whole") else kernel
        return contrastive_loss(view_1, view_2, kernel, tau, negatives=scale * negatives, **options)

    for whole in (True, False):
        for anchors in (None, some):
            at = [torch.tensor(v, dtype=DOUBLE, requires_grad=True) for v in (0.1, 0.2, 1.5)]
            found = torch.autograd.grad(loss(*at, whole=whole, anchors=anchors), at)
            for i, slope in enumerate(found):
                up, down = (
                    loss(
                        *(v.item() + h * (j == i) for j, v in enumerate(at)),
                        whole=whole,
                        anchors=anchors,
                    )
                    for h in (1e-5, -1e-5)
                )
                assert slope.item() == pytest.approx((up - down).item() / 2e-5, rel=1e-6)


def test_second_derivatives_are_right_or_refused(monkeypatch):
    for n in (6, 65):
        view_1, view_2, *_ = batch(n, 4)
        view_1.requires_grad_()

        def penalty(a, b=view_2, n=n):
            loss = contrastive_loss(a, b, torch.eye(n), 0.5)
            return torch.autograd.grad(loss, a, create_graph=True)[0].square().sum()

        if n > losses.BLOCKWISE_ABOVE:
            with pytest.raises(RuntimeError, match="no second derivative; for it, set"):
                penalty(view_1)
            monkeypatch.setattr(losses, "BLOCKWISE_ABOVE", math.inf)
        assert torch.autograd.gradcheck(penalty, view_1)


@pytest.mark.parametrize("scale", [1e-40, 1e-13, 1e-10, 1e-5, 1e15, 1e19, 1e38])
def test_embeddings_of_any_scale(scale):
    view_1, view_2, *_ = (v.float() if v.is_floating_point() else v for v in batch(6, 4))
    view_1, view_2 = view_1.clamp(-2, 2), view_2.clamp(-2, 2)
    view_2.requires_grad_()
    want = contrastive_loss(view_1, view_2, torch.eye(6))
    slope = torch.autograd.grad(want, view_2)[0]
    scaled = (view_2.detach() * scale).requires_grad_()
    loss = contrastive_loss(view_1 * scale, scaled, torch.eye(6))
    rel = 1e-3 if scale < 1e-38 else 1e-5  # such numbers have few digits
    assert loss.item() == pytest.approx(want.item(), rel=rel)
    if 1e-30 < scale < 1e30:
        found = torch.autograd.grad(loss, scaled)[0] * scale
        torch.testing.assert_close(found, slope, rtol=1e-4, atol=1e-5)
    zero = torch.zeros(6, 4, requires_grad=True)
    contrastive_loss(zero, view_2, torch.eye(6)).backward()
    assert torch.isfinite(zero.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("n", [1, 2, 65], ids=["alone", "pair", "blockwise"])
def test_finite_for_every_odd_batch(dtype, temperature, n):
    generator, labels = torch.Generator().manual_seed(0), torch.arange(n)
    usual = torch.randn(2, n, 8, generator=generator)
    odd = {
        "duplicates": usual[:1, :1].expand(2, n, 8),
        "zero vectors": torch.zeros(2, n, 8),
        "one zero vector": usual * (torch.arange(n) > 0)[None, :, None],
        "opposite views": torch.stack([usual[0], -usual[0]]),
        "largest": usual.sign() * torch.finfo(dtype).max,
        "smallest": usual.sign() * torch.finfo(dtype).tiny,
    }
    for name, views in odd.items():
        for classes in (labels * 0, labels, labels % 2):
            kernel = same_label(classes) * gaussian(torch.linspace(0, 1, n), 0.1)
            for denominator in DENOMINATORS if n > 1 else ("all", "printed"):
                pair = [view.to(dtype).requires_grad_() for view in views]
                loss = contrastive_loss(*pair, kernel, temperature, denominator)
                loss.backward()
                told = f"{name}, {denominator}, {len(classes.unique())} classes: {loss}"
                assert loss.dtype == torch.float32 and loss.isfinite(), told
                if name != "smallest" and "zero" not in name:  # their slope leaves half precision
                    assert all(view.grad.isfinite().all() for view in pair), told
                if denominator == "all" and name in ("duplicates", "zero vectors"):
                    assert loss.item() == pytest.approx(math.log(2 * n - 1), rel=1e-5, abs=1e-6)


def test_kernel_that_is_learnt_in_some_rows_only():
    view_1, view_2, _, positions = batch(70, 4)
    width = torch.tensor(0.3, dtype=DOUBLE, requires_grad=True)

    def rows(own):
        kernel = gaussian(positions, 0.2, own)
        wide = gaussian(positions, width, own)
        return torch.where((own > 30)[:, None], wide, kernel) if own.max() else kernel

    with pytest.raises(ValueError, match="give the whole matrix"):
        contrastive_loss(view_1, view_2, rows)
    contrastive_loss(view_1, view_2, rows(torch.arange(70))).backward()
    assert width.grad.abs() > 1e-6


def test_nothing_to_compare():
    with pytest.raises(ValueError, match=r"\(4, 0\).*expected two equal"):
        losses.barlow_loss(torch.zeros(4, 0), torch.zeros(4, 0))
    with pytest.raises(ValueError, match=r"\(0, 4\): nothing to compare"):
        byol_loss(*torch.zeros(4, 0, 4))
    with pytest.raises(ValueError, match=r"\(3, 0\)"):
        contrastive_loss(*torch.zeros(2, 3, 0), torch.eye(3))
    view_1, view_2, labels, _ = batch(6, 4)
    kernel = same_label(labels)
    kernel[2] = 0  # attracted by nobody
    assert byol_loss(view_1, view_2, view_1, view_2, kernel).isfinite()


@pytest.mark.parametrize("n", [8, 100])  # on both sides of the switch to blocks
@pytest.mark.parametrize("kind", [torch.float64, torch.float16])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_temperature_is_one_number_of_any_type(n, kind, shape):
    view_1, view_2, labels, _ = batch(n, 5)
    for learnt in (False, True):
        temperature = torch.full(shape, 0.125, dtype=kind, requires_grad=learnt)
        loss = contrastive_loss(view_1.float(), view_2.float(), same_label(labels), temperature)
        assert loss.dtype == torch.float32 and loss.shape == ()
        want = contrastive_loss(view_1, view_2, same_label(labels), 0.125)
        assert loss.item() == pytest.approx(want.item(), rel=1e-5)
        if learnt:
            loss.backward()
            assert temperature.grad.shape == shape
    for wrong in (torch.full((n,), 0.1), torch.tensor(math.nan), "0.1", None, 0, -1):
        with pytest.raises(ValueError, match=r"^temperature=.*must be positive, one number"):
            contrastive_loss(view_1, view_2, same_label(labels), wrong)


@pytest.mark.parametrize("n", [8, 100])
@pytest.mark.parametrize("value", [math.nan, math.inf, -0.5])
def test_degrees_that_are_none_are_refused(n, value):
    view_1, view_2, labels, _ = batch(n, 5)
    kernel = same_label(labels)
    kernel[0, 1] = kernel[1, 0] = value
    for given_kernel in (kernel, kernel.__getitem__):
        with pytest.raises(ValueError, match=r"kernel has degrees from"):
            contrastive_loss(view_1, view_2, given_kernel)
    with pytest.raises(ValueError, match=r"kernel has degrees from"):
        byol_loss(view_1, view_2, view_1, view_2, kernel)


@pytest.mark.parametrize("learnt", [False, True])  # in blocks, and plainly
def test_anchors_are_numbers_of_slices(learnt):
    view_1, view_2, labels, _ = batch(8, 5)
    kernel = same_label(labels).double().requires_grad_(learnt)
    want = contrastive_loss(view_1, view_2, kernel, anchors=torch.tensor([1, 3]))
    for same in ([1, 3], torch.tensor([1, 3], dtype=torch.int32)):
        assert contrastive_loss(view_1, view_2, kernel, anchors=same).item() == want.item()
    wrong = ([], [0.0], [8], [-1], [[0, 1], [2, 3]], torch.arange(8) < 4)
    for anchors in wrong:
        with pytest.raises(ValueError, match=r"^anchors"):
            contrastive_loss(view_1, view_2, kernel, anchors=anchors)


def test_slopes_forward_reach_kernel_and_views_on_both_sides_of_the_switch(monkeypatch):
    view_1, view_2, labels, _ = batch(70, 5)
    given = [view_1, view_2, same_label(labels).double()]
    for place in (0, 2):
        slopes = []
        for above in (64, math.inf):
            monkeypatch.setattr(losses, "BLOCKWISE_ABOVE", above)
            with torch.autograd.forward_ad.dual_level():
                dual = torch.autograd.forward_ad.make_dual(
                    given[place], torch.ones_like(given[place])
                )
                found = contrastive_loss(*given[:place], dual, *given[place + 1 :])
                slopes.append(torch.autograd.forward_ad.unpack_dual(found).tangent.item())
        assert slopes[0] == slopes[1] != 0


@pytest.mark.parametrize("n", [64, 65])
def test_functional_transforms_give_the_same_slope_above_the_switch(n):
    view_1, view_2, labels, positions = batch(n, 4)
    kernel = same_label(labels) * gaussian(positions, 0.2)
    leaf = view_1.clone().requires_grad_()
    contrastive_loss(leaf, view_2, kernel).backward()
    found = torch.func.grad(lambda views: contrastive_loss(views, view_2, kernel))(view_1)
    torch.testing.assert_close(found, leaf.grad)
    many = torch.stack([view_1, view_2])
    found = torch.func.vmap(lambda views: contrastive_loss(views, view_2, kernel))(many)
    alone = [contrastive_loss(views, view_2, kernel) for views in many]
    torch.testing.assert_close(found, torch.stack(alone))


@pytest.mark.parametrize("scale", [1e-20, 1e-13, 1e-5, 1e19])
def test_losses_without_negatives_and_moco_at_any_scale(scale):
    one, two, *_ = (v.float() if v.is_floating_point() else v for v in batch(6, 4))
    views = [one * scale, two * scale]
    assert byol_loss(*views, *views).item() == pytest.approx(byol_loss(one, two, one, two).item())
    found, want = (health(a, b, torch.cat([one, two])) for a, b in (views, (one, two)))
    assert found == pytest.approx(want, rel=1e-5)
    moco = [Moco(torch.nn.Identity(), torch.nn.Identity(), 6, 0.1) for _ in range(2)]
    for loss, (a, b) in zip(moco, (views, (one, two)), strict=True):
        loss(a, b, torch.cat([a, b]))  # fills the queue
    scaled, plain = (m(*v, torch.cat([*v])) for m, v in zip(moco, (views, (one, two)), strict=True))
    assert scaled.item() == pytest.approx(plain.item(), rel=1e-5)


@pytest.mark.parametrize("denominator", ["less", "no_more"])
@pytest.mark.parametrize("levels", [3, 50])
def test_denominators_that_compare_have_second_derivatives(denominator, levels):
    """Also where many degrees are equal and where nobody's is less."""
    view_1, view_2, labels, positions = batch(5, 3)
    steps = (positions * levels).round() / levels
    degrees = gaussian(steps, 0.5)

    def loss(a):
        options = {"denominator": denominator, "negatives": degrees}
        return contrastive_loss(a, view_2, same_label(labels), 0.5, **options)

    assert torch.autograd.gradcheck(loss, view_1.requires_grad_())
    assert torch.autograd.gradgradcheck(loss, view_1)
    learnt = degrees.clone().requires_grad_()
    with pytest.raises(ValueError, match="compared: no gradient"):
        contrastive_loss(view_1, view_2, degrees, 0.5, denominator, negatives=learnt)


def test_byol_of_other_shapes_is_refused():
    for shape in ((4,), (2, 3, 4)):
        with pytest.raises(ValueError, match=r"expected \(n, dim\)"):
            byol_loss(*torch.ones(4, *shape))


@pytest.mark.parametrize("n", [64, 65])
def test_a_temperature_of_numpy_is_a_number(n):
    views = torch.randn(2, n, 4, generator=torch.Generator().manual_seed(0))
    expected = losses.contrastive_loss(*views, torch.eye(n), 0.5)
    for temperature in (np.array(0.5), np.float64(0.5), np.float32(0.5)):
        assert losses.contrastive_loss(*views, torch.eye(n), temperature) == expected
