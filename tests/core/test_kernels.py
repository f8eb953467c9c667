import math

import pytest
import torch

from wspnb.kernels import (
    KERNELS,
    effective_positives,
    gaussian,
    mixture,
    negative_kernel,
    pair_kernel,
    pair_weights,
    same_label,
)
from wspnb.losses import contrastive_loss


def batch(n, seed=0, n_labels=3):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(n_labels, (n,), generator=generator)
    return labels, torch.rand(n, generator=generator, dtype=torch.float64)


def test_values_by_hand():
    labels, positions = torch.tensor([0, 0, 1]), torch.tensor([0.0, 0.1, 0.3])
    assert same_label(labels).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    expected = [math.exp(-0.5), math.exp(-4.5), math.exp(-2)]
    kernel = gaussian(positions, 0.1)
    assert kernel[[0, 0, 1], [1, 2, 2]].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("method", KERNELS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_symmetric_with_unit_diagonal(method, seed):
    kernel = pair_kernel(method, *batch(17, seed), 0.2)
    assert torch.equal(kernel, kernel.T)
    assert torch.equal(kernel.diagonal(), torch.ones(17, dtype=kernel.dtype))
    assert 0 <= kernel.min() and kernel.max() <= 1


def test_sigma_is_the_standard_deviation():
    distances = torch.linspace(-4, 4, 1001, dtype=torch.float64)
    curve = gaussian(distances, 0.3)[500]  # the row of the slice at 0
    assert math.sqrt((curve * distances**2).sum() / curve.sum()) == pytest.approx(0.3, rel=1e-4)


def test_limits_of_sigma():
    labels, positions = batch(12)
    everything = pair_kernel("wsp", labels, positions, math.inf)
    assert torch.equal(everything.float(), pair_kernel("supcon", labels, positions))
    nothing = pair_kernel("wsp", labels, positions, 1e-30)
    assert torch.equal(nothing.float(), pair_kernel("simclr", labels, positions))
    one_class = pair_kernel("wsp", torch.zeros(12), positions, 0.1)
    assert torch.equal(one_class, pair_kernel("depth_aware", None, positions, 0.1))


def test_table_of_methods():
    labels, positions = batch(9)
    paper = ["wsp", "depth_aware", "supcon", "simclr"]
    assert list(KERNELS) == [*paper, "wsp_floor", "wsp_own"]
    product = same_label(labels) * gaussian(positions, 0.1)
    assert torch.equal(pair_kernel("wsp", labels, positions, 0.1), product)
    assert torch.equal(pair_kernel("simclr", None, positions), torch.eye(9))
    assert torch.equal(pair_kernel("simclr", labels, None), torch.eye(9))


def test_floor_goes_from_wsp_to_supcon():
    labels, positions = torch.tensor([0, 0, 0, 1]), torch.tensor([0.0, 0.1, 1.0, 0.1])
    kernel = pair_kernel("wsp_floor", labels, positions, 0.1)
    near, far = 0.2 + 0.8 * math.exp(-0.5), 0.2 + 0.8 * math.exp(-50)
    assert kernel[0].tolist() == pytest.approx([1, near, far, 0], rel=1e-6)
    for floor, method in ((0, "wsp"), (1, "supcon")):
        kernel = pair_kernel("wsp_floor", labels, positions, 0.1, floor=floor)
        assert torch.equal(kernel, pair_kernel(method, labels, positions, 0.1))
    for floor in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            pair_kernel("wsp_floor", labels, positions, floor=floor)


@pytest.mark.parametrize("method", KERNELS)
def test_rows_are_rows_of_the_whole(method):
    rows = torch.tensor([4, 0, 7])
    labels, positions = batch(9)
    for kernel in (pair_kernel, negative_kernel):
        whole = kernel(method, labels, positions, 0.2, floor=0.3)
        part = kernel(method, labels, positions, 0.2, rows, 0.3)
        assert (whole is None and part is None) or torch.equal(whole[rows], part)
    with pytest.raises(ValueError, match="missing"):
        negative_kernel("wsp_own", None, positions)


def test_unknown_labels_are_positive_with_themselves_only():
    assert torch.equal(same_label(torch.tensor([math.nan, math.nan, 1.0])), torch.eye(3))
    assert torch.equal(same_label(torch.tensor([-1, -1, 1])), torch.eye(3))


def test_pair_weights_sums():
    labels, positions = batch(10)
    kernel = pair_kernel("wsp", labels, positions, 0.2)
    rows, columns = pair_weights(kernel, "row"), pair_weights(kernel, "column")
    torch.testing.assert_close(rows.sum(1), torch.ones(20, dtype=rows.dtype))
    # A symmetric kernel divided by the row sum of the column: the transpose of the row-normalised.
    torch.testing.assert_close(columns, rows.T)
    assert not rows.diagonal().any()
    assert (rows[0, 10] > 0) and (rows[10, 0] > 0)  # the other view of the slice is a positive


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("denominator", ["all", "others", "printed"])
def test_mixture_is_the_weighted_sum_of_the_losses(seed, denominator):
    labels, positions = batch(11, seed)
    kernels = [same_label(labels).double(), gaussian(positions, 0.1), torch.eye(11).double()]
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(2, 11, 8, dtype=torch.float64, generator=generator)

    def loss(kernel):
        return contrastive_loss(*views, kernel, denominator=denominator).item()

    for weights in ([0.2, 0.3, 0.5], [1, 1, 1], [2, 0, 1]):
        separate = sum(w * loss(k) for w, k in zip(weights, kernels, strict=True))
        mixed = mixture(kernels, weights)
        assert sum(weights) * loss(mixed) == pytest.approx(separate, rel=1e-13)
        row_sums = mixed.repeat(2, 2).fill_diagonal_(0).sum(1)
        assert row_sums.tolist() == pytest.approx([sum(weights)] * 22, rel=1e-13)


@pytest.mark.parametrize(
    "sigma, expected",
    [(0.01, 2.1), (0.05, 6.0), (0.1, 10.5), (0.2, 18.0), (0.3, 23.4), (0.5, 28.6), (0.85, 30.6)],
)
def test_effective_positives_of_the_facts(sigma, expected):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(16)
    draws = [
        effective_positives(pair_kernel("wsp", labels, torch.rand(64, generator=generator), sigma))
        for _ in range(200)
    ]
    # The expected values carry one decimal and other positions; 0.1 is what that is worth.
    assert torch.cat(draws).mean().item() == pytest.approx(expected, rel=0.01, abs=0.1)


def test_effective_positives_limits():
    labels = torch.arange(4).repeat_interleave(16)
    assert effective_positives(same_label(labels)).tolist() == pytest.approx([31] * 64, rel=1e-6)
    assert effective_positives(torch.eye(5)).tolist() == [1] * 5
    assert effective_positives(torch.zeros(3, 3)).tolist() == [0] * 3


@pytest.mark.parametrize("sigma", [0, -1, math.nan])
def test_width_must_be_positive(sigma):
    with pytest.raises(ValueError, match="must be positive"):
        gaussian(torch.rand(3), sigma)


def test_errors_say_what_to_do():
    labels, positions = batch(4)
    with pytest.raises(ValueError, match=r"choose one of wsp, depth_aware"):
        pair_kernel("byol", labels, positions)
    with pytest.raises(ValueError, match="missing"):
        pair_kernel("wsp", None, positions)
    with pytest.raises(ValueError, match="missing"):
        pair_kernel("simclr", None, None)
    with pytest.raises(ValueError, match="one per slice"):
        pair_kernel("wsp", labels[:3], positions)
    with pytest.raises(ValueError, match="one per slice"):
        gaussian(positions[:, None], 0.1)
    with pytest.raises(ValueError, match="row"):
        pair_weights(torch.eye(3), "rows")
    with pytest.raises(ValueError, match="over slices"):
        pair_weights(torch.ones(3, 4))
    for kernels, weights in (
        ([], []),
        ([torch.eye(3)], [1, 1]),
        ([torch.eye(3)], [-1]),
        ([torch.eye(3), torch.eye(4)], [1, 1]),
    ):
        with pytest.raises(ValueError):
            mixture(kernels, weights)


def test_half_precision_positions_are_compared_in_float32():
    positions = torch.rand(8).bfloat16()
    assert torch.equal(gaussian(positions, 0.1), gaussian(positions.float(), 0.1))
