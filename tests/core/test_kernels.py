import math

import numpy as np
import pandas as pd
import pytest
import torch

from wspnb import kernels
from wspnb.kernels import (
    cauchy,
    closer,
    combine,
    effective_positives,
    gaussian,
    jaccard,
    mixture,
    nested,
    order,
    pair_weights,
    same_label,
    soft_graph,
)
from wspnb.losses import contrastive_loss
from wspnb.methods import loss_terms, pair_kernel


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


def test_sigma_is_the_standard_deviation():
    distances = torch.linspace(-4, 4, 1001, dtype=torch.float64)
    curve = gaussian(distances, 0.3)[500]  # the row of the slice at 0
    assert math.sqrt((curve * distances**2).sum() / curve.sum()) == pytest.approx(0.3, rel=1e-4)


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
    positions = torch.rand(4)
    with pytest.raises(ValueError, match="one per slice"):
        gaussian(positions[:, None], 0.1)
    with pytest.raises(ValueError, match="row"):
        pair_weights(torch.eye(3), "rows")
    with pytest.raises(ValueError, match="over slices"):
        pair_weights(torch.ones(3, 4))
    for parts, weights in (
        ([], []),
        ([torch.eye(3)], [1, 1]),
        ([torch.eye(3)], [-1]),
        ([torch.eye(3)], [0]),
        ([torch.eye(3)], [math.nan]),
        ([torch.eye(3), torch.eye(3)], [-1, 2]),
        ([torch.eye(3), torch.eye(4)], [1, 1]),
    ):
        with pytest.raises(ValueError):
            mixture(parts, weights)


def test_product_minimum_and_mixture_of_several_attributes():
    stage, near = (
        jaccard(nested(torch.tensor([0, 1, 3]))),
        gaussian(torch.tensor([0.0, 0.1, 0.1]), 0.1),
    )
    assert stage[0].tolist() == [1, 0.5, 0.25] and stage[1, 2] == 0.5
    assert torch.equal(combine([stage, near]), stage * near)
    least = combine([stage, near], "minimum")
    assert least[0].tolist() == pytest.approx([1, 0.5, 0.25]) and least[1, 2] == 0.5
    same = same_label(torch.tensor([0, 0, 1]))  # of 0 and 1: minimum and product are one
    assert torch.equal(combine([same, near], "minimum"), combine([same, near]))
    torch.testing.assert_close(
        combine([near], weights=[4]), gaussian(torch.tensor([0.0, 0.1, 0.1]), 0.05)
    )
    assert torch.equal(combine([stage, near], "mixture"), mixture([stage, near], [0.5, 0.5]))
    for how in ("product", "minimum"):
        assert torch.equal(combine([stage], how), stage)
        assert combine([stage, near], how).diagonal().tolist() == [1, 1, 1]
    for given in ([[], "product"], [[stage], "sum"], [[stage, near], "minimum", [1, 2]]):
        with pytest.raises(ValueError):
            combine(*given)


def test_powers_of_a_product_are_learnt_from_1_on():
    parts = [same_label(torch.tensor([0, 0, 1])), gaussian(torch.tensor([0.0, 0.1, 0.4]), 0.1)]
    powers = torch.ones(2, requires_grad=True)
    combine(parts, weights=powers)[0, 1].backward()
    # k^a log k, with log k = -0.1^2 / (2 x 0.1^2)
    torch.testing.assert_close(powers.grad, torch.tensor([0, -0.5 * math.exp(-0.5)]))


def test_jaccard_of_several_labels():
    labels = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0]])
    assert jaccard(labels)[0].tolist() == pytest.approx([1, 1 / 3, 0, 1])
    assert jaccard(labels, 2)[0, 1].item() == pytest.approx(1 / 9)
    assert jaccard(labels)[2].tolist() == [0, 0, 1, 0]  # no label: itself alone
    assert torch.equal(jaccard(labels, rows=torch.tensor([2, 1])), jaccard(labels)[[2, 1]])
    stages = torch.tensor([2, -1, 0, 2])
    one_hot = (stages[:, None] == torch.arange(3)).float()
    for power in (0.5, 1, 2):  # exact limit: one label each is SupCon
        assert torch.equal(jaccard(one_hot, power), same_label(stages))
    table = pd.DataFrame({"cyst": [1, 0], "fluid": [1, 1]}, index=[7, 8])
    assert torch.equal(jaccard(table), torch.tensor([[1, 0.5], [0.5, 1]]))
    with pytest.raises(ValueError, match="n_labels"):
        jaccard(stages)


def test_other_kernels_by_hand_and_their_limits():
    positions = torch.tensor([0.0, 0.1, 0.3], dtype=torch.float64)
    assert closer(positions, 0.15).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert cauchy(positions, 0.1)[0].tolist() == pytest.approx([1, 0.5, 0.1])
    for kernel in (gaussian, cauchy, closer):  # no width: SimCLR; without end: everybody
        assert torch.equal(kernel(positions, 1e-200), torch.eye(3).double())
        assert torch.equal(kernel(positions, math.inf), torch.ones(3, 3).double())
    graph = 1 - (positions[:, None] - positions) ** 2  # X-CLR's graph of squared distances: y-Aware
    torch.testing.assert_close(soft_graph(graph, 2 * 0.1**2), gaussian(positions, 0.1))
    assert torch.equal(soft_graph(graph, math.inf), torch.ones(3, 3).double())
    with pytest.raises(ValueError, match="temperature of the graph=0"):
        soft_graph(graph, 0)


def test_lists_and_arrays_of_a_loader_are_taken_and_words_are_not():
    heights, classes = [0.0, 0.1, 0.3], np.array([0, 0, 1])
    assert torch.equal(same_label(classes), same_label(torch.tensor([0, 0, 1])))
    assert torch.equal(gaussian(heights, 0.1), gaussian(torch.tensor(heights), 0.1))
    for words in (["mild", "severe"], np.array(["mild", "severe"]), np.array([1, None])):
        with pytest.raises(ValueError, match=r"labels are no numbers .*number the classes 0, 1"):
            same_label(words)


def test_half_precision_positions_are_compared_in_float32():
    positions = torch.rand(8).bfloat16()
    assert torch.equal(gaussian(positions, 0.1), gaussian(positions.float(), 0.1))


def test_a_width_that_cannot_be_learnt_is_refused():
    width = torch.tensor(0.1, requires_grad=True)
    with pytest.raises(ValueError, match="width of a step gets no gradient"):
        closer(torch.rand(4), width)
    gaussian(torch.rand(4), width).sum().backward()
    assert width.grad != 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kernel", [gaussian, closer, cauchy])
def test_a_position_that_is_not_finite_is_named(kernel, value):
    positions = torch.tensor([0.0, 0.5, value, 1.0, value])
    words = rf"positions\[2\]: {value} is no height \(2 of 5 slices\): give each a finite"
    for rows in (None, torch.tensor([0])):  # a block without it, too
        with pytest.raises(ValueError, match=words):
            kernel(positions, 0.1, rows)
    for method in ("wsp", "depth_aware", "wsp_mixture", "rank", "pcl", "barlow_wsp"):
        with pytest.raises(ValueError, match=words):
            loss_terms(method, torch.zeros(5), positions)
    assert kernel(positions[:2], 0.1).isfinite().all()


def test_255_of_whole_numbers_without_sign_is_a_class():
    labels = torch.tensor([255, 255, 1], dtype=torch.uint8)
    assert same_label(labels).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert pair_kernel("simclr", [0, 0], None).tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match=r"^sigma=0.1: must be positive, one number"):
        gaussian(torch.zeros(2), "0.1")


def test_columns_of_a_table_count_by_row_and_not_by_index():
    index = [7, 7, 0]
    labels, positions = pd.Series([0, 1, 0], index), pd.Series([0.0, 0.5, 1.0], index)
    assert torch.equal(same_label(labels), same_label([0, 1, 0]))
    torch.testing.assert_close(gaussian(positions, 0.3).float(), gaussian([0, 0.5, 1], 0.3))
    assert torch.equal(jaccard(np.eye(2)), torch.eye(2))
    with pytest.raises(ValueError, match="of 0 and 1"):
        jaccard(torch.tensor([[1, math.nan]]))


def test_labels_are_0_and_1_and_degrees_not_negative():
    for labels in (torch.tensor([[2, 0], [1, 1]]), torch.tensor([[255, 0]], dtype=torch.uint8)):
        with pytest.raises(ValueError, match="of 0 and 1"):
            jaccard(labels)
    for bad in (-0.1, math.nan, math.inf):
        kernel = torch.eye(3)
        kernel[0, 1] = bad
        with pytest.raises(ValueError, match="finite and not negative"):
            effective_positives(kernel)
    assert nested(torch.tensor([])).shape == (0, 0)
    for bad in ([math.inf, 1], [0.5, 1]):
        with pytest.raises(ValueError, match="whole numbers"):
            nested(torch.tensor(bad))


def test_rows_are_numbers_of_slices():
    labels, positions = torch.tensor([0, 1, -1, 0]), torch.tensor([0.0, 0.3, 0.4, 1.0])
    calls = {
        "same_label": lambda rows: kernels.same_label(labels, rows),
        "same_slice": lambda rows: kernels.same_slice(labels, rows),
        "gaussian": lambda rows: kernels.gaussian(positions, 0.3, rows),
        "cauchy": lambda rows: kernels.cauchy(positions, 0.3, rows),
        "jaccard": lambda rows: kernels.jaccard(kernels.nested(labels), rows=rows),
    }
    for call in calls.values():
        for rows in (np.array([2, 0]), [2, 0], torch.tensor([2, 0], dtype=torch.int32)):
            assert torch.equal(call(rows), call(None)[[2, 0]])
        for rows in (torch.tensor([False, False, True, False]), torch.tensor([-2]), [4], [1.0]):
            with pytest.raises(ValueError, match="rows"):
                call(rows)


def test_columns_that_are_turned_round_or_of_objects_are_numbers():
    labels, positions = np.array([0, 1, 1, 2]), np.array([0.0, 0.2, 0.5, 1.0])
    expected = pair_kernel("wsp", torch.tensor(labels), torch.tensor(positions), 0.3).flip(0, 1)
    for a, b in (
        (labels[::-1], positions[::-1]),
        (pd.Series(labels)[::-1], pd.Series(positions)[::-1]),
        (labels[::-1].astype(object), positions[::-1].astype(object)),
        (pd.Series(labels[::-1], dtype="Int64"), pd.Series(positions[::-1], dtype="Float64")),
    ):
        assert torch.allclose(pair_kernel("wsp", a, b, 0.3).double(), expected.double())


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_neighbour_at_exactly_the_width_is_not_within_it(kind):
    tenths, slices = torch.arange(11, dtype=kind) / 10, torch.arange(11, dtype=kind)
    for width in (1, 2, 3):
        assert torch.equal(closer(tenths, width / 10), closer(slices, width))


def test_effective_positives_of_a_kernel_in_half_precision():
    for kind in (torch.float16, torch.bfloat16):  # 1 / 1199**2 is no number of the first
        found = effective_positives(torch.ones(600, 600, dtype=kind))
        torch.testing.assert_close(found, torch.full((600,), 1199.0))


@pytest.mark.parametrize("kind", ["uint16", "uint64", "int64"])
def test_rows_are_a_column_of_a_table_or_whole_numbers_of_any_type(kind):
    labels = torch.tensor([0, 1, 1, 0])
    for rows in (np.array([0, 2], kind), pd.Series([0, 2], index=[5, 7], dtype=kind)):
        assert torch.equal(same_label(labels, rows), same_label(labels)[[0, 2]])


def test_many_labels_are_counted_exactly_under_autocast():
    labels = (torch.rand(6, 1500, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = jaccard(labels)
    assert torch.equal(found, jaccard(labels))


def test_mixture_of_kernels_in_half_precision_has_shares_in_float32():
    for kind in (torch.float16, torch.bfloat16):
        parts = [same_label(torch.zeros(900)), gaussian(torch.linspace(0, 1, 900), 0.1)]
        parts = [part.to(kind) for part in parts]
        want = mixture([part.double() for part in parts], [0.5, 0.5])
        found = mixture(parts, [0.5, 0.5])
        torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kernel", [same_label, gaussian, cauchy, closer, order])
def test_kernels_of_a_whole_graph_and_of_many_batches(kernel):
    width = () if kernel is same_label else (0.25,)
    batches = (torch.rand(3, 6, generator=torch.Generator().manual_seed(0)) * 8).round() / 8
    want = torch.stack([kernel(positions, *width) for positions in batches])
    whole = torch.compile(kernel, fullgraph=True, backend="eager")
    torch.testing.assert_close(whole(batches[0], *width), want[0])
    many = torch.func.vmap(lambda positions: kernel(positions, *width))(batches)
    torch.testing.assert_close(many, want)
    weights = torch.func.vmap(pair_weights)(want)
    torch.testing.assert_close(weights, torch.stack([pair_weights(k) for k in want]))
