"""Clinical labels: kernels against formulas, MoCo against a loop, metrics against scikit-learn."""

import copy
import dataclasses
import hashlib
import json
import math
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from wspnb import pretrain
from wspnb.files import plain_json
from wspnb.kernels import same_label
from wspnb.losses import contrastive_loss
from wspnb.momentum import Moco, info_nce, without_negatives
from wspnb.studies import oct

WIDTHS = {"alpha": 0.3, "sigma": 0.1, "sigma_bcva": 0.5, "sigma_cst": 0.5}
WIDTHS |= {"sd_bcva": 12.0, "sd_cst": 138.0}


def make_settings(method, **change):
    given = dict(
        method=method, backbone="tiny_padded", norm="batch", seed=0, batch_size=8, optimizer="sgd"
    )
    given |= dict(n_steps=5, warmup_steps=1, learning_rate=0.05, weight_decay=1e-4, alpha=0.3)
    given |= dict(temperature=0.07, sigma=0.1, sigma_bcva=0.5, sigma_cst=0.5, n_keys=16)
    given |= dict(momentum=0.9, precision="no", image_size=32, data="x")
    return oct.Settings(**given | change)


@pytest.fixture
def values():
    random = torch.Generator().manual_seed(0)
    draw = {"bcva": (70, 74), "cst": (300, 306), "eye": (0, 4)}
    found = {k: torch.randint(*v, (24,), generator=random).double() for k, v in draw.items()}
    return found | {"position": torch.rand(24, generator=random, dtype=torch.float64)}


def test_kernels_are_the_formulas(values):
    for name in ("bcva", "cst", "eye"):
        kernel = oct.clinical_kernel(name, values, WIDTHS)
        assert torch.equal(kernel, (values[name][:, None] == values[name]).float())
    assert torch.equal(oct.clinical_kernel("simclr", values, WIDTHS), torch.eye(24))
    soft = oct.clinical_kernel("soft", values, WIDTHS)
    for t, i in ((0, 1), (3, 17), (5, 5)):
        gap = [values[k][t] - values[k][i] for k in ("bcva", "cst", "position")]
        widths = (6.0, 69.0, 0.1)
        square = sum((g / w) ** 2 for g, w in zip(gap, widths, strict=True))
        assert math.isclose(soft[t, i], math.exp(-square / 2), rel_tol=1e-9)


def test_loss_of_the_mixture_is_the_weighted_sum_and_so_are_its_gradients(values):
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(2, 24, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    for alpha in (0.0, 0.3, 1.0):
        own = {k: v for k, v in values.items()}
        kernel = oct.clinical_kernel("bcva_cst", own, WIDTHS | {"alpha": alpha})
        parts = [same_label(values[k]).double() for k in ("bcva", "cst")]
        losses = [contrastive_loss(*views, part, 0.07) for part in parts]
        weighted = alpha * losses[0] + (1 - alpha) * losses[1]
        mixed = contrastive_loss(*views, kernel.double(), 0.07)
        assert math.isclose(mixed.item(), weighted.item(), rel_tol=1e-6)  # the kernel is float32
        one, two = (torch.autograd.grad(x, views, retain_graph=True)[0] for x in (mixed, weighted))
        assert (one - two).abs().max() < 1e-6 * two.abs().max()
    assert not math.isclose(
        losses[0].item(), losses[1].item(), rel_tol=0.01
    )  # else nothing was shown


def test_limits_of_the_soft_kernel(values):
    """Narrow on values and without position: same value of both; narrow on all: SimCLR."""
    narrow = WIDTHS | {"sigma_bcva": 1e-4, "sigma_cst": 1e-5, "sigma": math.inf}
    soft = oct.clinical_kernel("soft", values, narrow)
    both = same_label(values["bcva"]) * same_label(values["cst"])
    assert torch.equal(soft.float(), both) and both.sum() > 24
    alone = oct.clinical_kernel("soft", values, narrow | {"sigma": 1e-9})
    assert torch.equal(alone.float(), torch.eye(24))


def test_unknown_method_and_wrong_settings_are_named(values):
    with pytest.raises(ValueError, match="method='age'"):
        oct.clinical_kernel("age", values, WIDTHS)
    adam = oct.optimizer(torch.nn.Linear(2, 2), make_settings("soft", optimizer="adam"))
    assert isinstance(adam, torch.optim.Adam) and adam.defaults["weight_decay"] == 1e-4
    for change in (
        {"optimizer": "lars"},
        {"alpha": 1.5},
        {"n_steps": 0},
        {"sigma_cst": 0.0},
        {"temperature": -1.0},
    ):
        with pytest.raises(ValueError, match=next(iter(change))):
            make_settings("soft", **change)
    with pytest.raises(ValueError, match="method='age'"):
        make_settings("age")


# --- MoCo -----------------------------------------------------------------------------------------


def test_info_nce_is_the_sum_over_the_queue():
    random = torch.Generator().manual_seed(0)
    queries, keys, queue = (torch.randn(n, 4, generator=random) for n in (3, 3, 7))
    total = 0.0
    for q, k in zip(queries, keys, strict=True):
        positive = math.exp(q @ k / 0.5)
        total -= math.log(positive / (positive + sum(math.exp(q @ u / 0.5) for u in queue)))
    assert math.isclose(info_nce(queries, keys, queue, 0.5), total / 3, rel_tol=1e-5)
    assert info_nce(queries, keys, queue[:0], 0.5) == 0
    same = torch.ones(3, 4) / 2  # all embeddings equal: log(1 + k)
    assert math.isclose(info_nce(same, same, torch.ones(7, 4) / 2, 0.1), math.log(8), rel_tol=1e-6)


def test_moco_queue_and_momentum():
    encoder, head = torch.nn.Linear(6, 5), torch.nn.Linear(5, 4)
    moco = Moco(encoder, head, n_keys=10, temperature=0.2)
    views = torch.randn(12, 6)
    for step in range(3):
        view_1, view_2 = head(encoder(views)).chunk(2)
        loss = moco(view_1, view_2, views)
        assert len(moco.queue) == min(10, 6 * (step + 1))
    expected = torch.nn.functional.normalize(moco.target(views[6:]), dim=1)
    assert torch.allclose(moco.queue[:6], expected)  # the newest keys stand first
    loss.backward()
    assert encoder.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in moco.target.parameters())
    old = copy.deepcopy(moco.target)
    with torch.no_grad():
        encoder.weight += 1
    moco.follow(encoder, head, 0.9)
    moved = moco.target[0].weight - old[0].weight
    assert torch.allclose(moved, torch.full_like(moved, 0.1), atol=1e-6)
    again = Moco(encoder, head, n_keys=10, temperature=0.2)
    again.load_state_dict(moco.state_dict())  # a new one's queue is empty
    assert torch.equal(again.queue, moco.queue)


@pytest.mark.parametrize("method", [m for m in oct.ROWS if m != "random"])
def test_every_method_steps_its_encoder(method, values):
    settings = make_settings(method)
    encoder, head, extra = oct.build(settings)
    before = copy.deepcopy(encoder.state_dict())
    views = torch.rand(48, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    truth = (torch.rand(24, 6, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    parts = torch.nn.ModuleList([encoder, head, extra])
    optimizer = oct.optimizer(parts, settings)
    assert optimizer.defaults["momentum"] == 0.9 and optimizer.defaults["lr"] == 0.05
    for _ in range(2):  # MoCo's first batch has no negatives, the supervised layer begins at 0
        features = encoder(views)
        view_1, view_2 = head(features).chunk(2)
        given = (view_1, view_2, views, truth, values)
        loss = oct.loss(extra, features, *given, settings, WIDTHS)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.isfinite() and loss > (-1 if "simsiam" in method else 0)
    moved = [(v - before[k]).abs().max() for k, v in encoder.named_parameters() if v.ndim == 4]
    assert len(moved) == 5 and min(moved) > 0
    again = oct.build(settings)[0].state_dict()
    assert all(torch.equal(again[k], v) for k, v in before.items())


@pytest.mark.parametrize("family", ["byol", "simsiam", "barlow"])
def test_losses_without_negatives_are_those_of_the_ct_with_the_kernel_of_the_scans(family, values):
    views = torch.randn(2, 24, 64, generator=torch.Generator().manual_seed(0))
    images = torch.rand(48, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    found = {}
    for kernel in ("simclr", "soft"):
        settings = make_settings(f"{family}_{kernel}")
        encoder, head, extra = oct.build(settings)
        assert isinstance(head[1], torch.nn.BatchNorm1d)  # as the originals
        own = without_negatives(f"{family}_wsp", encoder, head, "tiny_padded", 0)
        own.load_state_dict(extra.state_dict())
        found[kernel] = oct.loss(extra, None, *views, images, None, values, settings, WIDTHS)
        weights = oct.clinical_kernel(kernel, values, WIDTHS)
        assert torch.equal(found[kernel], own(*views, images, weights))
    assert not torch.isclose(found["simclr"], found["soft"], rtol=1e-3)
    head = oct.build(make_settings("byol"))[1]
    assert not any(isinstance(part, torch.nn.BatchNorm1d) for part in head)


def test_collapse_is_told_by_the_spread(tmp_path):
    def log(method, spread):
        (tmp_path / "config.json").write_text(json.dumps({"method": method}))
        rows = pd.DataFrame({"step": range(40), "loss": 4.8, "embedding_sd": spread})
        rows.to_csv(tmp_path / "log.csv", index=False)
        return oct.collapsed(tmp_path)

    assert log("soft", 0.05) and log("byol", 0.05) and log("moco", 0.05)
    assert not log("soft", 0.4) and not log("supervised", 0.05)
    assert not log("soft", np.linspace(0.0, 0.4, 40))  # the end decides


def test_heads_are_the_authors():
    def sizes(**change):
        _, head, _ = oct.build(make_settings("simclr", **change))
        return [layer.weight.shape[::-1] for layer in (head[0], head[2])]

    assert sizes(backbone="resnet18") == [(512, 512), (512, 128)]
    assert sizes() == [(256, 128), (128, 64)]


# --- metrics --------------------------------------------------------------------------------------


@pytest.fixture
def judged():
    random = np.random.default_rng(0)
    labels = (random.random((400, 6)) < [0.1, 0.3, 0.5, 0.5, 0.7, 0.2]).astype(int)
    scores = 1 / (1 + np.exp(-(random.normal(size=(400, 6)) + labels - 0.3)))
    return labels, scores, random.integers(0, 12, 400)


def test_auroc_of_rounded_scores_is_balanced_accuracy(judged):
    labels, scores, _ = judged
    table = oct.biomarker_metrics(labels, scores)
    for n, row in enumerate(table.itertuples()):
        rounded = np.round(scores[:, n])
        assert row.auroc == roc_auc_score(labels[:, n], scores[:, n])
        assert row.rounded == roc_auc_score(labels[:, n], rounded)
        balanced = balanced_accuracy_score(labels[:, n], rounded)
        assert math.isclose(row.rounded, balanced, rel_tol=1e-12)
        assert math.isclose(row.rounded, (row.recall + row.specificity) / 2, rel_tol=1e-12)
        assert row.rounded < row.auroc - 0.02  # the trap is not harmless
    assert math.isclose(table.accuracy.iloc[0], (np.round(scores[:, 0]) == labels[:, 0]).mean())


def test_metrics_without_cases_are_nan_not_errors():
    labels, scores = np.zeros((4, 6), int), np.full((4, 6), 0.2)
    row = oct.biomarker_metrics(labels, scores).iloc[0]
    assert row.accuracy == 1 and row.specificity == 1
    assert np.isnan([row.auroc, row.recall, row.precision, row["rounded"]]).all()


def test_draws_resample_whole_patients(judged):
    labels, scores, patients = judged
    draws = oct.macro_draws(labels, [scores, 1 - scores], patients, n=400, seed=1)
    assert draws.shape == (400, 2)
    assert np.allclose(draws[:, 0], 1 - draws[:, 1])  # the same patients for both
    table = oct.biomarker_metrics(labels, scores)
    assert abs(draws[:, 0].mean() - table.auroc.mean()) < 0.01
    drawn = np.random.default_rng(1).integers(12, size=(400, 11))[7]  # one resample, by hand
    rows = [np.flatnonzero(patients == pd.unique(patients)[number]) for number in drawn]
    rows = np.concatenate(rows)
    byhand = np.mean([roc_auc_score(labels[rows, k], scores[rows, k]) for k in range(6)])
    assert math.isclose(draws[7, 0], byhand, rel_tol=1e-9)


def test_interval_over_patients_is_wider_than_over_scans():
    """Scans of a patient that are all alike count once, not fifty times."""
    random = np.random.default_rng(0)
    labels, scores = random.integers(0, 2, (14, 1)), random.random((14, 1))
    many = [np.repeat(x, 50, axis=0) for x in (labels, scores)]
    patients = np.repeat(np.arange(14), 50)
    by_patient = oct.macro_draws(many[0], [many[1]], patients, 500).std()
    by_scan = oct.macro_draws(many[0], [many[1]], np.arange(700), 500).std()
    assert by_patient > 4 * by_scan


def test_linear_layer_and_table(judged):
    labels, _, patients = judged
    random = np.random.default_rng(1)
    features = np.hstack(
        [labels + random.normal(0, 0.5, labels.shape), random.normal(size=(400, 2))]
    )
    train, test = np.flatnonzero(patients < 8), np.flatnonzero(patients >= 8)
    found = oct.probabilities(features, labels, train, test)
    assert found.shape == (len(test), 6) and ((found > 0) & (found < 1)).all()
    noise = random.random(found.shape)
    runs = {"random": [noise, noise], "soft": [found, found]}
    table = oct.result_table(labels[test], runs, patients[test], 300).set_index("method")
    best, none = table.loc[oct.ROWS["soft"]], table.loc[oct.ROWS["random"]]
    assert best.macro_auroc > 0.9 and abs(none.macro_auroc - 0.5) < 0.1 and best.seed_sd == 0
    assert best.low < best.macro_auroc < best.high
    assert math.isclose(none.soft_minus, best.macro_auroc - none.macro_auroc)
    assert none.soft_minus_low > 0.2 and np.isnan(best.soft_minus_low)
    runs |= {"simclr": runs["random"], "byol_soft": runs["random"], "byol_simclr": runs["soft"]}
    gains = oct.result_table(labels[test], runs, patients[test], 300).set_index("method").gain
    assert gains[oct.ROWS["soft"]] == -gains[oct.ROWS["byol_soft"]] == none.soft_minus
    assert np.isnan(gains.drop([oct.ROWS["soft"], oct.ROWS["byol_soft"]])).all()
    one_class = np.zeros_like(labels)
    assert (oct.probabilities(features, one_class, train, test) == 0).all()


def test_findings_are_those_of_the_intervals():
    names = [oct.ROWS[m] for m in ("supervised", "simclr", "byol", "soft")]
    columns = {"method": names, "macro_auroc": [0.9, 0.8, 0.6, 0.7]}
    columns |= {"low": 0.5, "high": 0.95, "soft_minus": [-0.2, -0.1, 0.1, 0.0]}
    columns |= {"soft_minus_low": [-0.3, -0.2, 0.05, np.nan]}
    columns |= {"soft_minus_high": [-0.1, 0.01, 0.2, np.nan], "gain": [*3 * [np.nan], -0.1]}
    columns |= {"gain_low": -0.2, "gain_high": 0.01}
    first, second, third = oct.findings(pd.DataFrame(columns))
    assert first == "Supervised is first with 0.90 [0.50, 0.95]."
    assert second.startswith(
        "The product kernel (ours) has 0.70, place 3 of 4; ahead of BYOL (+0.10); "
        "behind Supervised (-0.20); from the others"
    )
    assert third == "What the product kernel adds: to SimCLR -0.10 [-0.20, +0.01]."


def test_a_missing_biomarker_or_patient_is_refused():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (20, 2)).astype(float)
    scores = rng.random((20, 2))
    with pytest.raises(ValueError, match="slices without patient"):
        oct.macro_draws(labels, [scores], [None, *"abcdefghijklmnopqrs"])
    labels[3, 1] = np.nan
    with pytest.raises(ValueError, match="none missing"):
        oct.probabilities(scores, labels, np.arange(10), np.arange(10, 20))


def test_a_run_of_infinite_width_is_finished(tmp_path):
    settings = make_settings("soft", sigma=float("inf"))
    (tmp_path / "encoder.safetensors").write_bytes(b"x")
    digest = hashlib.sha256(b"x").hexdigest()
    text = plain_json(dataclasses.asdict(settings) | {"encoder_sha256": digest})
    (tmp_path / "config.json").write_text(text)
    assert oct.finished(tmp_path, settings)
    assert not oct.finished(tmp_path, make_settings("soft"))
    for known, same in ((pretrain.code(), True), ({"losses.py": "other"}, False)):
        (tmp_path / "config.json").write_text(plain_json(json.loads(text) | {"code": known}))
        assert oct.finished(tmp_path, settings) == same


def test_the_queue_of_a_checkpoint_goes_where_the_module_is():
    old, new = (Moco(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), 5, 0.1) for _ in range(2))
    old.queue = torch.ones(3, 2)
    new.to("meta").load_state_dict(old.state_dict(), assign=False)
    assert new.queue.shape == (3, 2) and new.queue.device.type == "meta"


def test_resamples_of_many_patients_need_no_table_of_all_pairs_per_draw():
    rng, n = np.random.default_rng(0), 300
    tracemalloc.start()
    oct.macro_draws(rng.integers(0, 2, (n, 1)), [rng.random((n, 1))], np.arange(n))
    assert tracemalloc.get_traced_memory()[1] < 60e6  # 2,000 draws x 300 x 8 bytes are 4.8 MB
    tracemalloc.stop()
