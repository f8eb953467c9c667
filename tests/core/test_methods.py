"""The table of methods: names, exact limits, every row's loss pair by pair, what each wants."""

import math

import pytest
import torch
from pytorch_metric_learning.losses import SupConLoss

from wspnb.blockwise import log_denominators
from wspnb.kernels import pair_weights, same_label
from wspnb.losses import barlow_loss, byol_loss, contrastive_loss
from wspnb.methods import (
    METHODS,
    check_name,
    has_line,
    loss_of,
    loss_terms,
    needs_labels,
    pair_kernel,
    parse,
    split_name,
)
from wspnb.models import build_encoder, build_head
from wspnb.momentum import SimSiam, has_norms, without_negatives

DOUBLE = torch.float64


def batch(n=11, dim=6, seed=0):
    """Two views, labels and positions of n slices."""
    generator = torch.Generator().manual_seed(seed)
    views = torch.randn(2, n, dim, dtype=DOUBLE, generator=generator)
    labels = torch.randint(3, (n,), generator=generator)
    return views, labels, torch.rand(n, dtype=DOUBLE, generator=generator)


def loss(method, views, labels, positions, sigma=0.2, **more):
    return contrastive_loss(*views, **loss_terms(method, labels, positions, sigma), **more).item()


def pair_by_pair(views, kernel, negatives, denominator, tau=0.1):
    """Every denominator of the table as the papers write it, in Python numbers."""
    z = [v / v.norm() for v in torch.cat([*views])]
    n, m, total = len(kernel), 2 * len(kernel), 0.0
    for t in range(m):
        s = [float(z[t] @ z[j]) / tau for j in range(m)]
        w = [float(kernel[t % n, j % n]) * (j != t) for j in range(m)]
        r = [1.0 if negatives is None else float(negatives[t % n, j % n]) for j in range(m)]
        others = [j for j in range(m) if j != t]
        for i in [i for i in others if w[i] > 0]:
            if denominator == "all":
                below = [r[j] * math.exp(s[j]) for j in others]
            elif denominator == "exp":
                below = [math.exp(s[j] * (1 - r[j])) for j in others]
            elif denominator == "less":
                below = [math.exp(s[j]) for j in others if r[j] < r[i] or j == i]
            else:
                below = [math.exp(s[j]) for j in others if r[j] <= r[i]]
            total -= w[i] / sum(w) * (s[i] - math.log(math.fsum(below)))
    return total / m


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_row_against_a_double_loop(method, seed):
    views, labels, positions = batch(seed=seed)
    labels[3] = -1
    positions[4] = positions[5]  # a tie
    terms = loss_terms(method, labels, positions, 0.2)
    expected = pair_by_pair(views, terms["kernel"], terms["negatives"], terms["denominator"])
    assert loss(method, views, labels, positions) == pytest.approx(expected, rel=1e-12)
    single = contrastive_loss(*views.float(), **terms).item()
    assert single == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_rows_and_symmetry_of_every_row(method):
    views, labels, positions = batch(5, 3)
    terms = loss_terms(method, labels, positions, 0.2)
    views.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: contrastive_loss(*v, temperature=0.4, **terms), views)
    some = torch.tensor([4, 0, 2])
    parts = loss_terms(method, labels, positions, 0.2, rows=some)
    assert torch.equal(parts["kernel"], pair_kernel(method, labels, positions, 0.2, some))
    for whole, part in [(terms[key], parts[key]) for key in ("kernel", "negatives")]:
        if whole is None:
            assert part is None
            continue
        torch.testing.assert_close(part, whole[some], rtol=1e-12, atol=0)
        if method != "wsp_mixture":  # whose rows sum to 1 instead
            assert torch.equal(whole, whole.T) and (whole.diagonal() == 1).all()
        assert 0 <= whole.min() and whole.max() <= 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_exact_limits_give_the_methods_of_the_paper(seed):
    views, labels, positions = batch(seed=seed)
    given = views, labels, positions
    distinct, one = torch.arange(11), torch.zeros(11, dtype=torch.long)
    paper = {m: loss(m, *given) for m in ("wsp", "depth_aware", "supcon", "simclr")}
    # WSP: the ends of sigma, one class, each slice a class
    assert loss("wsp", *given, sigma=math.inf) == paper["supcon"]
    assert loss("wsp", *given, sigma=1e-30) == paper["simclr"]
    assert loss("wsp", views, one, positions) == paper["depth_aware"]
    assert loss("wsp", views, distinct, positions) == paper["simclr"]
    # numerators
    assert (
        loss("wsp_floor0", *given) == paper["wsp"] and loss("wsp_floor1", *given) == paper["supcon"]
    )
    close = {"rel": 1e-13}
    assert loss("wsp_mixture1", *given) == pytest.approx(paper["supcon"], **close)
    assert loss("wsp_mixture0", *given) == pytest.approx(paper["depth_aware"], **close)
    half = (paper["supcon"] + paper["depth_aware"]) / 2
    assert loss("wsp_mixture", *given) == pytest.approx(half, **close)
    assert loss("wsp_minimum", views, one, positions) == paper["depth_aware"]
    assert loss("wsp_stages", views, one, positions) == paper["depth_aware"]
    assert loss("jaccard", views, one, positions) == loss("supcon", views, one, positions)
    for method in ("pcl", "cauchy"):
        assert loss(method, *given, sigma=1e-30) == paper["simclr"]
        assert loss(method, *given, sigma=math.inf) == loss("supcon", views, one, positions)
    assert loss("xclr0.0000001", *given) == pytest.approx(paper["simclr"], **close)
    # denominators
    for method in ("wsp_own", "wsp_near"):
        assert loss(method, *given, sigma=math.inf) == pytest.approx(paper["supcon"], **close)
    for method in ("wsp_threshold", "depth_threshold"):  # only the slice itself attracts
        assert loss(method, *given, sigma=1e-30) == pytest.approx(paper["simclr"], **close)
    assert loss("rank", *given, sigma=math.inf) == loss("supcon", views, one, positions)
    zero = torch.zeros(11, 11, dtype=DOUBLE)
    exp = contrastive_loss(*views, same_label(labels), denominator="exp", negatives=zero)
    assert exp.item() == pytest.approx(paper["supcon"], **close)
    # sigma that narrows: at its start and end
    terms = loss_terms("wsp_narrowing0.4", labels, positions, 0.1, done=0)
    assert torch.equal(terms["kernel"], pair_kernel("wsp", labels, positions, 0.4))
    terms = loss_terms("wsp_narrowing0.4", labels, positions, 0.1, done=1)
    assert torch.equal(terms["kernel"], pair_kernel("wsp", labels, positions, 0.1))


def test_supcon_of_a_kept_library_is_reached_from_three_rows():
    views, labels, positions = batch(24, 16)
    expected = SupConLoss(0.1)(torch.cat([*views]), labels.repeat(2)).item()
    for method, sigma in (("wsp_floor1", 0.1), ("wsp_own", math.inf), ("wsp_near", math.inf)):
        found = loss(method, views, labels, positions, sigma)
        assert found == pytest.approx(expected, rel=1e-12)


def test_one_parser_reads_every_name():
    assert split_name("wsp_floor0.3") == ("wsp_floor0.3", {})
    assert split_name("wsp_sigma0.3") == ("wsp", {"sigma": "0.3"})
    assert split_name("wsp_floor0.3_sigmainf") == ("wsp_floor0.3", {"sigma": "inf"})
    assert split_name("byol_wsp_batch_size16") == ("byol_wsp", {"batch_size": "16"})
    assert split_name("random") == ("random", {})
    settings = {"sigma": 0.3, "n_steps": 500, "seed": 0}
    assert check_name("wsp_sigma.30", "wsp", settings) == {"sigma": 0.3}
    assert check_name("ours", "wsp", settings) == check_name("wsp_floor0.2", "wsp_floor", {}) == {}
    for name in ("wsp_sigma0.1", "wsp_sigma0.3_n_steps5", "supcon", "wsp_floor0.3", "random"):
        with pytest.raises(ValueError, match=f"called {name} and trained as wsp with"):
            check_name(name, "wsp", settings)
    several = {"patients": "0.1", "n_steps": "2000", "reader_accuracy": "0.7"}
    name = "wsp_own_patients0.1_n_steps2000_reader_accuracy0.7"
    assert split_name(name) == ("wsp_own", several)
    assert parse("wsp_floor0.3").number == 0.3 and parse("wsp_floor").number == 0.2
    labels, positions = torch.tensor([0, 0, 1]), torch.tensor([0.0, 0.5, 0.5])
    floor = pair_kernel("wsp_floor0.3", labels, positions, 0.1)[0, 1].item()
    assert floor == pytest.approx(0.3 + 0.7 * math.exp(-12.5), rel=1e-6)
    assert loss_of("simsiam_wsp_floor0.3") == "simsiam" and loss_of("imagenet") == "none"
    for wrong in (
        "wsp_floor1.3",
        "wsp_mixture2",
        "wpsi",
        "wsp1",
        "byol_wsp_own",
        "wsp_",
        "",
        "wsp_sigma0.2_sigma0.3",
        "wsp_sigma0.2_",
        "wsp_sigma0.2_own",
        "wsp_sigma0.2__n_steps3",
    ):
        with pytest.raises(ValueError):
            split_name(wrong)
    with pytest.raises(ValueError, match="has no kernel: choose one of wsp, depth_aware"):
        pair_kernel("random", labels, positions)
    for method in ("wsp", "jaccard", "byol_supcon", "wsp_own"):
        assert needs_labels(method)
        with pytest.raises(ValueError, match="labels of the slices are missing"):
            pair_kernel(method, None, positions)
    for method in ("depth_aware", "rank", "simclr", "byol", "random", "barlow_depth_aware"):
        assert not needs_labels(method)
    with pytest.raises(ValueError, match="3 labels for 2 positions"):
        pair_kernel("wsp", labels, positions[:2])
    lined = [m for m in METHODS if has_line(m)]
    assert "wsp_floor" in lined and not {"wsp_own", "rank", "wsp_exp"} & {*lined}


@pytest.mark.parametrize("method", [m for m in METHODS if has_line(m)])
def test_equal_embeddings_cost_the_line(method):
    views, labels, positions = batch()
    same = views[:, :1].expand(2, 11, 6) * 0 + 1
    assert loss(method, same, labels, positions) == pytest.approx(math.log(21), rel=1e-12)


# What each row wants: at its minimum over free similarities (docs/kernels.md).
def free(method, sigma=0.3):
    """Weights, second kernel and columns of the anchors for 6 slices of two classes."""
    labels, positions = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0.3, 1, 0, 0.3, 1.0])
    terms = loss_terms(method, labels, positions.double(), sigma)
    weights = pair_weights(terms["kernel"].double())
    repel = terms["negatives"]
    return weights, None if repel is None else repel.double().repeat(2, 2), terms["denominator"]


def total(s, weights, repel, denominator):
    below = log_denominators(s, torch.arange(len(s)), denominator, repel)
    return (weights * (below - s)).sum(1).mean()


@pytest.mark.parametrize("method", ["depth_aware", "wsp_floor", "wsp_own", "wsp_near", "wsp_sigma"])
def test_minimum_is_the_log_ratio_of_attraction_and_repulsion(method):
    weights, repel, denominator = free(method.replace("_sigma", ""))
    v = torch.ones_like(weights) if repel is None else repel
    ratio = (weights / v).log().clamp_min(-60)  # other classes: as far as it goes
    s = ratio.clone().requires_grad_()
    value = total(s, weights, repel, denominator)
    (slope,) = torch.autograd.grad(value, s)
    assert slope.abs().max() < 1e-12
    some = weights > 0
    entropy = -(weights[some] * (weights[some].log() - v[some].log())).sum() / len(weights)
    assert value.item() == pytest.approx(entropy.item(), rel=1e-10)
    away = ratio + 0.3 * torch.randn(
        12, 12, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)
    )
    assert total(away, weights, repel, denominator) > value + 1e-3
    own = ratio[0, [1, 2]] - ratio[0, 6]  # same class at other depths, against the other view
    wanted = {"wsp_own": [0, 0], "wsp_near": [0, 0], "wsp_sigma": [-0.5, -(1 / 0.3**2) / 2]}
    wanted |= {"depth_aware": wanted["wsp_sigma"]}
    wanted["wsp_floor"] = [math.log(0.2 + 0.8 * math.exp(x)) for x in wanted["wsp_sigma"]]
    assert own.tolist() == pytest.approx(wanted[method], abs=1e-6)


def test_threshold_wants_an_order_and_no_distance_and_exp_has_no_balance():
    weights, repel, denominator = free("depth_threshold")
    order = repel.clone()  # any similarity that rises with the degree, steep enough
    assert total(200 * order, weights, repel, denominator) < 1e-6
    assert total(200 * order**0.3, weights, repel, denominator) < 1e-6
    assert total(-200 * order, weights, repel, denominator) > 1
    weights, repel, denominator = free("rank")
    ties = [
        [int((r == r[i]).sum()) - int(r[t] == r[i]) for i in range(12)] for t, r in enumerate(repel)
    ]
    floor = (weights * torch.tensor(ties).double().clamp_min(1).log()).sum(1).mean()
    assert total(500 * order, weights, repel, denominator).item() == pytest.approx(
        floor.item(), abs=1e-6
    )
    weights, repel, denominator = free("depth_exp")
    values = [
        total(a * torch.eye(6, dtype=DOUBLE).repeat(2, 2), weights, repel, denominator)
        for a in (0, 10, 1000)
    ]
    assert values[0] > values[1] > values[2] and values[2] < -100  # only the sphere stops it


# Without negatives.
def test_identity_is_the_original_byol_and_simsiam():
    generator = torch.Generator().manual_seed(0)
    q1, q2, z1, z2 = torch.randn(4, 9, 5, dtype=DOUBLE, generator=generator)
    eye, cos = torch.eye(9), torch.nn.functional.cosine_similarity
    original = 4 - 2 * cos(q1, z2).mean() - 2 * cos(q2, z1).mean()
    assert byol_loss(q1, q2, z1, z2).item() == pytest.approx(original.item(), rel=1e-14)
    assert byol_loss(q1, q2, z1, z2, eye) == byol_loss(q1, q2, z1, z2)
    kernel = pair_kernel("wsp", torch.arange(9) % 2, torch.linspace(0, 1, 9), 0.3).double()
    by_hand = 0.0
    for q, z in ((q1, z2), (q2, z1)):
        for t in range(9):
            for i in range(9):
                gap = q[t] / q[t].norm() - z[i] / z[i].norm()
                by_hand += float(kernel[t, i] / kernel[t].sum() * gap.square().sum()) / 9
    assert byol_loss(q1, q2, z1, z2, kernel).item() == pytest.approx(by_hand, rel=1e-12)


def test_identity_is_the_original_simsiam():
    module = SimSiam(None, None, "tiny").double()
    z_1, z_2 = torch.randn(2, 16, 64, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    z_1.requires_grad_()
    found = module(z_1, z_2, None, torch.eye(16))
    assert found == module(z_1, z_2)
    cos, sides = (
        torch.nn.functional.cosine_similarity,
        [module.last(z).detach() for z in (z_1, z_2)],
    )
    p_1, p_2 = (module.predictor(side) for side in sides)
    original = -(cos(p_1, sides[1]).mean() + cos(p_2, sides[0]).mean()) / 2
    assert found.item() == pytest.approx(original.item(), rel=1e-12)
    found.backward()
    assert z_1.grad.abs().sum() > 0  # through the predictor alone


def test_identity_is_the_original_barlow_twins():
    z_1, z_2 = torch.randn(2, 20, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    one, two = (((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt()) for z in (z_1, z_2))
    expected = 0.0
    for a in range(4):
        for b in range(4):
            c = sum(float(one[t, a] * two[t, b]) for t in range(20)) / 20
            expected += (1 - c) ** 2 if a == b else 0.0051 * c**2
    assert barlow_loss(z_1, z_2).item() == pytest.approx(expected, rel=1e-12)
    assert barlow_loss(z_1, z_2, torch.eye(20)) == barlow_loss(z_1, z_2)
    labels = torch.arange(20) % 2  # two classes: one function is free, the other three cost 1 each
    signs = (2.0 * labels - 1).double()[:, None]
    views = torch.cat([signs, torch.randn(20, 3, dtype=DOUBLE)], 1)
    value = barlow_loss(views, views, same_label(labels), off_diagonal=0).item()
    assert value < barlow_loss(z_1, z_1, same_label(labels), off_diagonal=0).item()
    assert value == pytest.approx(3, abs=0.9)
    assert barlow_loss(signs, signs, same_label(labels)).item() == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("method", ["byol_wsp", "simsiam_supcon", "barlow_wsp_floor0.3", "byol"])
def test_modules_by_name(method):
    assert has_norms(method) == (method != "byol")
    encoder = build_encoder("tiny_padded", "batch")
    head = build_head("tiny_padded", 0, has_norms(method))
    assert any(isinstance(m, torch.nn.BatchNorm1d) for m in head) == (method != "byol")
    module = without_negatives(method, encoder, head, "tiny_padded")
    images = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    kernel = pair_kernel(method, torch.arange(4) % 2, torch.linspace(0, 1, 4))
    module(*head(encoder(images)).chunk(2), images, kernel).backward()
    assert all(p.grad is not None for p in head.parameters())
    if method != "byol":
        with pytest.raises(ValueError, match="one device"):
            without_negatives(method, encoder, head, "tiny_padded", n_devices=2)
    assert not [*without_negatives("wsp", encoder, head, "tiny_padded").parameters()]


@pytest.mark.parametrize("name", ["byol_", "wsp_floor0.3.3", "wsp_floor.", None, "WSP", "wsp\n"])
def test_odd_spellings_of_a_name_are_refused_as_methods(name):
    with pytest.raises(ValueError, match=r"^method=.* has no kernel: choose one of wsp"):
        parse(name)


@pytest.mark.parametrize("method", ["rank", "depth_threshold", "wsp_threshold"])
@pytest.mark.parametrize("n", [11, 80])  # in one piece and in blocks
def test_slices_equally_far_are_ties_in_every_unit(method, n):
    views = torch.randn(2, n, 8, generator=torch.Generator().manual_seed(0))
    labels, slices = torch.arange(n) % 2, torch.arange(n)
    exact, rounded = (
        contrastive_loss(*views, **loss_terms(method, labels, slices / unit, 8 / unit))
        for unit in (128, 100)  # binary fractions, and others
    )
    torch.testing.assert_close(rounded, exact, rtol=1e-5, atol=0)


def test_rank_compares_the_distances_themselves_at_every_width():
    (one, two), _, positions = batch(40, 8)
    apart = (positions[:, None] - positions).abs()
    options = {"denominator": "no_more", "negatives": 1 - apart / 2}
    want = contrastive_loss(one, two, torch.ones(40, 40), **options).item()
    for sigma in (0.01, 0.05, 0.1, 0.5):
        for unit in (1, 200):  # heights, and mm, in float32
            given = loss_terms("rank", None, positions.float() * unit, sigma * unit)
            assert contrastive_loss(one, two, **given).item() == pytest.approx(want, rel=1e-6)
