"""The loss in blocks of anchors: the plain version's numbers and gradients, in less memory."""

import math
import subprocess
import sys
from functools import partial

import pytest
import torch

from wspnb import blockwise, losses
from wspnb.losses import contrastive_loss
from wspnb.methods import METHODS, loss_terms, pair_kernel

SIGMAS = (0.02, 0.1, math.inf)


def rows_of_negatives(method, labels, positions, sigma, own):
    return loss_terms(method, labels, positions, sigma, rows=own)["negatives"]


def batch(n, dim, seed=0, dtype=torch.float64):
    """Two views that want gradients, labels with an unknown one, positions."""
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(2, n, dim, dtype=dtype, generator=generator).requires_grad_()
    labels = torch.randint(3, (n,), generator=generator)
    labels[0] = -1
    return views, labels, torch.rand(n, dtype=torch.float64, generator=generator)


def both(monkeypatch, views, kernel, **options):
    """(loss, gradient) plain and in blocks."""
    found = []
    for above in (math.inf, 0):
        monkeypatch.setattr(losses, "BLOCKWISE_ABOVE", above)
        loss = contrastive_loss(*views, kernel, **options)
        found.append((loss, *torch.autograd.grad(loss, views)))
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("normalise", ["row", "column"])
@pytest.mark.parametrize(("n", "rows"), [(2, 1), (7, 3), (60, 60), (60, 7)])
def test_equals_the_plain_loss_and_gradient(monkeypatch, method, normalise, n, rows):
    monkeypatch.setattr(blockwise, "BLOCK_BYTES", rows * 4 * n * 8)
    for seed, sigma in enumerate(SIGMAS):
        views, labels, positions = batch(n, 5, seed)
        terms = loss_terms(method, labels, positions, sigma) | {"normalise": normalise}
        (plain, slope), (fast, fast_slope) = both(monkeypatch, views, terms.pop("kernel"), **terms)
        assert fast.item() == pytest.approx(plain.item(), rel=1e-12)
        torch.testing.assert_close(fast_slope, slope, rtol=1e-10, atol=1e-14)
        by_rows = partial(pair_kernel, method, labels, positions, sigma)
        if terms["negatives"] is not None:
            terms["negatives"] = partial(rows_of_negatives, method, labels, positions, sigma)
        loss = contrastive_loss(*views, by_rows, **terms)
        assert loss.item() == pytest.approx(fast.item(), rel=1e-12)
        found = torch.autograd.grad(loss, views)[0]
        torch.testing.assert_close(found, fast_slope, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("denominator", ["others", "printed", "exp", "less", "no_more"])
def test_a_share_of_the_anchors_with_every_denominator(monkeypatch, denominator):
    views, labels, positions = batch(12, 4)
    kernel = pair_kernel("wsp", labels, positions, 0.3)
    options = {"denominator": denominator, "negatives": kernel.clamp_min(0.01)}
    (plain, slope), _ = both(monkeypatch, views, kernel, **options)
    shares = [
        contrastive_loss(*views, kernel, anchors=torch.arange(12)[k::3], **options)
        for k in range(3)
    ]
    assert sum(shares).item() / 3 == pytest.approx(plain.item(), rel=1e-12)
    slopes = [torch.autograd.grad(share, views)[0] for share in shares]
    torch.testing.assert_close(sum(slopes) / 3, slope)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_float32_to_1e_5(monkeypatch, temperature, n_threads):
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)  # sums are taken in another order
    views, labels, positions = batch(600, 64, dtype=torch.float32)
    kernel = pair_kernel("wsp", labels, positions)
    (plain, slope), (fast, fast_slope) = both(monkeypatch, views, kernel, temperature=temperature)
    exact = contrastive_loss(*views.double(), kernel.double(), temperature=temperature)
    torch.set_num_threads(before)
    assert fast.dtype == torch.float32
    assert fast.item() == pytest.approx(plain.item(), rel=1e-5)
    assert fast.item() == pytest.approx(exact.item(), rel=1e-6)
    assert (fast_slope - slope).abs().max() < 1e-5 * slope.abs().max()


@pytest.mark.parametrize("normalise", ["row", "column"])
@pytest.mark.parametrize("n", [7, 60])
def test_negatives_of_0_and_above_1(monkeypatch, normalise, n):
    """And for a share of the anchors: the plain loss of these rows alone."""
    monkeypatch.setattr(blockwise, "BLOCK_BYTES", 3 * 4 * n * 8)
    views, labels, positions = batch(n, 5)
    kernel = pair_kernel("wsp", labels, positions, 0.2)
    negatives = torch.rand(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    negatives = 3 * negatives.where(negatives > 0.4, 0) + torch.eye(n).roll(1, 0)
    options = {"normalise": normalise, "negatives": negatives}
    (plain, slope), (fast, fast_slope) = both(monkeypatch, views, kernel, **options)
    assert fast.item() == pytest.approx(plain.item(), rel=1e-12)
    torch.testing.assert_close(fast_slope, slope, rtol=1e-10, atol=1e-14)
    shares = [
        contrastive_loss(*views, kernel, anchors=torch.arange(n)[k::2], **options) for k in (0, 1)
    ]
    sizes = torch.tensor([len(range(k, n, 2)) for k in (0, 1)])
    assert (torch.stack(shares) @ (sizes / n).double()).item() == pytest.approx(
        plain.item(), rel=1e-6
    )


def test_anchor_without_positives_counts_zero(monkeypatch):
    views, labels, positions = batch(9, 4)
    kernel = pair_kernel("wsp", labels, positions)
    kernel[3] = kernel[:, 3] = 0
    (plain, slope), (fast, fast_slope) = both(monkeypatch, views, kernel)
    assert fast.item() == pytest.approx(plain.item(), rel=1e-12)
    torch.testing.assert_close(fast_slope, slope)


def test_large_batches_take_blocks_by_themselves(monkeypatch):
    calls = []
    monkeypatch.setattr(losses, "blockwise_loss", lambda *a: calls.append(a) or a[0].sum())
    for n in (losses.BLOCKWISE_ABOVE, losses.BLOCKWISE_ABOVE + 1):
        views, labels, positions = batch(n, 3)
        contrastive_loss(*views, pair_kernel("wsp", labels, positions))
    assert len(calls) == 1


def test_mean_over_shares_of_the_anchors_is_the_loss():
    views, labels, positions = batch(12, 4)
    kernel = pair_kernel("wsp", labels, positions)
    whole = contrastive_loss(*views, kernel)
    shares = [contrastive_loss(*views, kernel, anchors=torch.arange(12)[k::3]) for k in range(3)]
    assert sum(shares).item() / 3 == pytest.approx(whole.item(), rel=1e-12)
    slopes = [torch.autograd.grad(share, views)[0] for share in shares]
    torch.testing.assert_close(sum(slopes) / 3, torch.autograd.grad(whole, views)[0])
    assert abs(shares[0].item() - whole.item()) > 1e-3  # a share is not the whole


def test_half_precision_is_computed_in_float32():
    views, labels, positions = batch(200, 8, dtype=torch.float32)
    half = views.detach().bfloat16().requires_grad_()
    kernel = pair_kernel("wsp", labels, positions)
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(*half, kernel)
    assert loss.dtype == torch.float32
    exact = contrastive_loss(*half.detach().double(), kernel.double())
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    loss.backward()
    assert half.grad.dtype == torch.bfloat16 and half.grad.abs().sum() > 0


def test_errors_say_what_to_do():
    views = batch(8, 3)[0]
    with pytest.raises(ValueError, match=r"shape \(8, 7\), expected \(8, 8\)"):
        contrastive_loss(*views, lambda rows: torch.ones(len(rows), 7))
    with pytest.raises(ValueError, match="'less' needs negatives, degrees from 0 to 1"):
        contrastive_loss(*views, lambda rows: torch.ones(len(rows), 8), denominator="less")
    with pytest.raises(ValueError, match="'exp': degrees from 0 to 1"):
        contrastive_loss(*views, torch.eye(8), denominator="exp", negatives=2 * torch.eye(8))
    with pytest.raises(ValueError, match="normalise='rows'"):
        contrastive_loss(*views, lambda rows: torch.ones(len(rows), 8), normalise="rows")


MEMORY = """
import torch
from functools import partial
from wspnb.methods import pair_kernel
from wspnb.losses import contrastive_loss
torch.set_num_threads(1)
def step(n):
    views = torch.randn(2, n, 16, requires_grad=True)
    kernel = partial(pair_kernel, "wsp", torch.arange(n) % 4, torch.rand(n), 0.1)
    contrastive_loss(*views, kernel).backward()
    with open("/proc/self/status") as status:  # getrusage would start at the parent's peak
        return int(next(line for line in status if "VmHWM" in line).split()[1]) / 1024
step(200)
print(step(4000) - step(200))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_holds_no_square_matrix():
    """One (2n, 2n) float32 matrix of 4,000 slices is 256 MB; the plain version needs several."""
    found = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert float(found.stdout) < 100  # MB
