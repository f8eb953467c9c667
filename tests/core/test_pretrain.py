"""Settings, schedule, health and the checkpoint of a pretraining."""

import ast
import contextlib
import dataclasses
import json
import math
import os
import platform
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC2701
from torch.utils._pytree import tree_leaves  # noqa: PLC2701

from wspnb import distributed, folds, pretrain, probe
from wspnb.data.slices import reader
from wspnb.keeper import Keeper
from wspnb.models import build_encoder, build_head
from wspnb.momentum import Byol

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "02_pretrain.ipynb"

SETTINGS = {
    "method": "wsp",
    "backbone": "tiny",
    "norm": "batch",
    "sigma": 0.1,
    "temperature": 0.1,
    "batch_size": 64,
    "n_steps": 100,
    "warmup_steps": 10,
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "image_size": 160,
    "precision": "no",
    "translate": 0.0,
    "crop_area": 0.7,
    "normalise": "row",
    "convention": "k/(n-1)",
    "severe_from": 0,
    "train_cohort": "radio",
    "data": "0123",
    "seed": 0,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", "wps"),
        ("backbone", "vgg"),
        ("method", "imagenet"),  # of a TinyNet
        ("norm", "layer"),
        ("normalise", "rows"),
        ("convention", "k"),
        ("crop_area", 0.0),
        ("precision", "fp8"),
        ("sigma", 0.0),
        ("sigma", float("nan")),
        ("learning_rate", math.inf),
        ("temperature", math.inf),
        ("crop_area", 1.5),
        ("translate", 5.0),
        ("seed", 2**70),
        ("method", "supervised"),
        ("method", "wsp_floor1.5"),
        ("method", "byol_wsp_own"),
        ("temperature", -1.0),
        ("batch_size", 1),
        ("n_steps", 0),
        ("learning_rate", 0.0),
        ("seed", -1),
        ("seed", 1.5),
        ("batch_size", 8.5),
        ("n_steps", True),
        ("sigma", "0.1"),
        ("method", None),
    ],
)
def test_bad_setting_is_named(name, value):
    with pytest.raises(ValueError, match=str(value) if "wsp" in str(value) else name):
        pretrain.Config(**SETTINGS | {name: value})


def test_schedule_rises_linearly_and_falls_as_a_cosine_to_zero():
    factors = [pretrain.learning_rate_factor(s, 100, 10) for s in range(100)]
    assert factors[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert pretrain.learning_rate_factor(0, 100, 0) == 1  # as the paper: no rise


def test_collapse_line_and_verdict():
    line = pretrain.collapse_loss(64)
    assert line == pytest.approx(4.844, abs=5e-4)  # log(127), FACTS section 5
    assert pretrain.is_collapsed([5.0] * 10 + [line - 0.01], 64)
    assert pretrain.is_collapsed([3.0, float("nan")], 64)
    assert not pretrain.is_collapsed([line] * 90 + [line - 0.2] * 10, 64)


def test_health_of_collapsed_and_of_uniform_embeddings():
    same = torch.ones(32, 8)
    values = pretrain.health(same, 5 * same, torch.cat([same, same]))  # scale does not matter
    zeros = dict.fromkeys(["alignment", "uniformity", "embedding_sd", "feature_sd"], 0)
    assert values == pytest.approx(zeros, abs=1e-6)
    points = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    values = pretrain.health(points, -points, 7 * points)
    assert values["feature_sd"] == pytest.approx((math.pi / 2) ** 0.5, abs=0.01)  # SD / mean |x|
    assert values["alignment"] == pytest.approx(4)
    assert values["embedding_sd"] == pytest.approx(1, abs=0.01)
    # t = 2 on the sphere S^15: E exp(-2 (2 - 2u)) = e^-4 E e^{4u}, by the Bessel series of E e^{4u}
    expected = sum(
        4 ** (2 * k) / (2**k * math.factorial(k) * math.prod(range(16, 16 + 2 * k, 2)))
        for k in range(20)
    )
    assert values["uniformity"] == pytest.approx(-4 + math.log(expected), abs=0.01)


def test_verdict_of_byol_looks_at_the_spread_not_at_the_loss():
    flat = [{"loss": 0.0, "embedding_sd": 0.01}] * 20
    spread = [{"loss": 0.0, "embedding_sd": 0.5}] * 20
    assert pretrain.verdict("byol", flat, 64) == "embeddings collapsed"
    assert pretrain.verdict("byol", spread, 64) == "healthy"
    assert pretrain.verdict("wsp", [row | {"loss": 4.84} for row in spread], 64) == "at the line"
    assert (
        pretrain.verdict("wsp", [row | {"loss": 4.84} for row in flat], 64)
        == "embeddings collapsed"
    )
    broken = {"loss": float("nan"), "embedding_sd": float("nan")}
    assert pretrain.verdict("wsp", [broken], 64) == pretrain.verdict("byol", [broken], 64)
    assert pretrain.verdict("wsp", [broken], 64) == "embeddings collapsed"
    assert pretrain.verdict("wsp", [row | {"loss": 4.7} for row in flat], 64) == "healthy"
    assert pretrain.verdict("random", [], 64) == "untrained"
    one = {"loss": 4.84, "embedding_sd": float("nan")}  # of one embedding there is no spread
    assert pretrain.verdict("byol", [one], 64) == "healthy"
    assert pretrain.verdict("wsp", [one], 64) == "at the line"


def test_byol_momentum_goes_from_start_to_one():
    values = [pretrain.byol_momentum(step, 100) for step in (0, 50, 100)]
    assert values == pytest.approx([0.996, 0.998, 1.0])


def test_run_names_are_plain():
    assert pretrain.run_name("wsp_sigma0.3", "tiny", 2) == "wsp_sigma0.3-tiny-seed2"
    for name in ("", "a-b", "../a", "a b"):
        with pytest.raises(ValueError, match="letters, digits"):
            pretrain.run_name(name, "tiny", 0)


def test_weak_labels_and_positions_as_released():
    table = pd.DataFrame({"weak_label": [0, 1, 2, 3, np.nan]})
    assert pretrain.weak_labels(table).tolist() == [0, 1, 2, 3, -1]
    assert pretrain.weak_labels(table, severe_from=3).tolist() == [0, 0, 0, 1, -1]
    kept = {"position": [0, 1 / 3, 2 / 3, 1, 0.5], "n_kept": [4, 4, 4, 4, 1]}
    table, ours, theirs = pd.DataFrame(kept), "k/(n-1)", "k/n"
    assert pretrain.slice_positions(table, ours, ours).tolist() == pytest.approx(kept["position"])
    released = pretrain.slice_positions(table, ours, theirs)
    assert released.tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 0])  # FACTS, ledger D1
    back = pretrain.slice_positions(table.assign(position=released.numpy()), theirs, ours)
    assert back.tolist() == pytest.approx(kept["position"])  # one slice alone lies in the middle
    floats = pretrain.slice_positions(table.astype(float), ours, theirs)  # as after a merge
    assert torch.equal(floats, released)
    with pytest.raises(ValueError, match=r"'position': 50.0"):
        pretrain.slice_positions(table.astype(float).replace(0.5, 50), ours, theirs)
    kinds = pd.DataFrame({"weak_label": pd.Categorical([0, 3, None])})
    assert pretrain.weak_labels(kinds).tolist() == [0, 3, -1]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300, "", "low", None, pd.NA])
def test_a_slice_without_a_height_is_named(value):
    table = pd.DataFrame({"patient": ["007", "08"], "z": [4, 9], "n_kept": 2, "position": [0, 1]})
    broken = table.astype({"position": object})
    broken.loc[1, "position"] = value
    words = r"slice 1 .*'patient': '08', 'z': 9, .* is no height \(1 of 2 slices\): give each"
    for wanted in ("k/(n-1)", "k/n"):
        with pytest.raises(ValueError, match=words):
            pretrain.slice_positions(broken, "k/(n-1)", wanted)
    with pytest.raises(ValueError, match=r"'n_kept': nan"):
        pretrain.slice_positions(table.assign(n_kept=np.nan), "k/(n-1)", "k/n")


def make_parts(seed: int):
    torch.manual_seed(seed)
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters())
    return {
        "encoder": module,
        "optimizer": optimizer,
        "generator": torch.Generator().manual_seed(seed),
    }


def advance(parts, steps):
    for _ in range(steps):
        x = torch.randn(4, 3, generator=parts["generator"])
        parts["optimizer"].zero_grad()
        parts["encoder"](x).pow(2).sum().backward()
        parts["optimizer"].step()
    return parts["encoder"].weight.detach().clone()


def test_resumed_training_equals_uninterrupted_training_exactly(tmp_path):
    config = pretrain.Config(**SETTINGS)
    straight = advance(make_parts(1), 7)
    first = make_parts(1)
    advance(first, 4)
    pretrain.save_checkpoint(tmp_path / "c.pt", 4, [{"step": 0, "loss": 1.5}], config, **first)
    second = make_parts(2)  # other weights and random state, all replaced
    step, log = pretrain.load_checkpoint(tmp_path / "c.pt", config, **second)
    assert (step, log) == (4, [{"step": 0, "loss": 1.5}])
    assert torch.equal(advance(second, 3), straight)


def test_checkpoint_absent_other_or_broken(tmp_path):
    config, parts, file = pretrain.Config(**SETTINGS), make_parts(0), tmp_path / "c.pt"
    assert pretrain.load_checkpoint(file, config, **parts) == (0, [])
    pretrain.save_checkpoint(file, 4, [], config, **parts)
    with pytest.raises(ValueError, match=r"sigma: 0.1 there, 0.5 now"):
        pretrain.load_checkpoint(file, dataclasses.replace(config, sigma=0.5), **parts)
    with pytest.raises(ValueError, match=r"data: 0123 there, 4567 now"):
        pretrain.load_checkpoint(file, dataclasses.replace(config, data="4567"), **parts)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"c\.pt: not a readable checkpoint"):
        pretrain.load_checkpoint(file, config, **parts)


def test_saved_run_reads_back(tmp_path):
    module = torch.nn.BatchNorm2d(3).to(torch.bfloat16)
    log = [{"step": 0, "loss": 2.0}, {"step": 1, "loss": 1.0}]
    pretrain.save_run(tmp_path / "run", module, pretrain.Config(**SETTINGS), log, collapsed=False)
    weights = load_file(tmp_path / "run" / "encoder.safetensors")
    assert weights["weight"].dtype == torch.float32
    assert weights["num_batches_tracked"].dtype == torch.int64
    assert pd.read_csv(tmp_path / "run" / "log.csv").loss.tolist() == [2, 1]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["collapsed"] is False
    assert len(list((tmp_path / "run").iterdir())) == 3
    own = torch.nn.ModuleDict({"module": module, "norm": torch.nn.LayerNorm(4)})  # no wrapper
    pretrain.save_run(tmp_path / "own", own, pretrain.Config(**SETTINGS), log)
    assert load_file(tmp_path / "own" / "encoder.safetensors").keys() == own.state_dict().keys()
    pretrain.save_run(tmp_path / "fast", torch.compile(module), pretrain.Config(**SETTINGS), log)
    assert load_file(tmp_path / "fast" / "encoder.safetensors").keys() == weights.keys()


def test_rows_of_a_cohort():
    table = pd.DataFrame({"cohort": ["radio", "d1", "radio"]})
    assert np.array_equal(folds.read_rows(table, "radio"), [0, 2])
    with pytest.raises(ValueError, match=r"'d3'.*\['d1', 'radio'\]"):
        folds.read_rows(table, "d3")


def test_a_cohort_is_found_whatever_form_its_accents_have():
    """Pasted from a file's name on a Mac: accents in characters of their own."""
    table = pd.DataFrame({"cohort": ["Z\u00fcrich", "d1"]})  # as read_cohort gives it
    assert folds.read_rows(table, "Zu\u0308rich").tolist() == [0]
    assert folds.cohorts_of(["Zu\u0308rich+d1"]) == ["Z\u00fcrich", "d1"]


class Waits(TorchDispatchMode):
    """Refuses what makes the host wait for the device "meta", from which nothing can be read
    anyway: a copy to it that is not asynchronous, hidden ones (an index on the CPU) included. What
    a GPU's own operations do inside does not show."""

    copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        copy = func is torch.ops.aten._to_copy.default
        met = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        # Anywhere but in a copy a number as a tensor without axes goes along with the call.
        if len({t.device.type for t in met if t.ndim or copy}) > 1:
            assert copy, f"{func} mixes devices"
            assert kwargs.get("non_blocking"), f"copy of {tuple(met[0].shape)} that waits"
            self.copies += 1
        return out


def run_loop(imports: str, loop: str, method: str, n: int) -> int:
    """Two steps of the loop that are not logged, on the device "meta"; number of copies to it."""
    meta, names = torch.device("meta"), {}
    exec(imports, names)
    encoder = build_encoder("tiny", "batch").to(meta, memory_format=torch.channels_last)
    head = build_head("tiny").to(meta)
    byol = Byol(encoder, head, "tiny").to(meta)
    names |= {name: SETTINGS[name] for name in ("learning_rate", "temperature")}
    names |= {"method": method, "batch_size": n, "ranges": {"crop_area": 0.7}}
    names |= {"sigma": 0.1, "options": {"normalise": "row", "temperature": 0.1}}
    names |= {"encoder": encoder, "head": head, "byol": byol, "guess": byol, "device": meta}
    names |= {"parts": {"encoder": encoder, "head": head}, "main": False}
    names["optimizer"] = torch.optim.Adam([*encoder.parameters(), *head.parameters()])
    names["read"] = reader(np.zeros((2 * n, 160, 160), np.uint8), meta, hold=True)
    names |= {"rows": np.arange(2 * n), "labels": torch.arange(2 * n) % 4}
    names |= {"positions": torch.rand(2 * n), "mine": torch.arange(n)}
    names |= {"sampler": [list(range(n))] * 2, "steps": range(1, 3), "n_steps": 9}
    names |= {"warmup_steps": 2, "log_every": 100, "generator": torch.Generator().manual_seed(0)}
    names["accelerator"] = SimpleNamespace(backward=lambda loss: loss.backward())
    config = pretrain.Config(**SETTINGS)
    names["keeper"] = Keeper(Path("none"), config, [], {}, log_every=100, main=False)
    names |= {"only": contextlib.nullcontext(), "factor": lambda step: 0.5}
    names["drawn"] = {"share": torch.arange(n), "batch_size": n, "crop_area": 0.7}
    with Waits() as waits:
        exec(loop, names)
    return waits.copies


@pytest.mark.parametrize(("method", "copies"), [("wsp", 4), ("byol", 4)])
@pytest.mark.parametrize("n", [8, 80])  # the plain loss and the one in blocks
def test_a_step_of_the_loop_never_waits_for_the_device(method, copies, n, monkeypatch):
    # "meta" has no autocast; that of a GPU waits for nothing.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    loop = next(text for text in code if text.startswith("with keeper as keep, only"))
    imports = code[0]
    # Row numbers, two sets of maps and the kernel, in each of two steps.
    assert run_loop(imports, loop, method, n) == 2 * copies
    waiting = {  # for wsp, for byol
        "contrastive_loss(*both, **pairs,": "contrastive_loss(*both, pairs['kernel'].to(device),",
        'pairs["kernel"][mine][:, mine])': 'pairs["kernel"][mine][:, mine]).item()',
    }
    for good, bad in waiting.items():
        assert loop.count(good) == 1
        loop = loop.replace(good, bad)
    with pytest.raises((AssertionError, RuntimeError), match=r"that waits|meta tensors"):
        run_loop(imports, loop, method, n)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")
@pytest.mark.parametrize("kept", [True, False])
def test_freed_memory_is_used_again(kept):
    code = f"""
import resource
from wspnb.workers import keep_memory
faults, size = [], 10**8
if {kept}:
    keep_memory()
for _ in range(3):
    len(b"x" * size)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[2] - faults[1])"""
    new_pages = int(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert (new_pages < 10) == kept, new_pages  # a block has 24,000 of 4 KiB, 48 of 2 MiB


def test_identity_is_that_of_the_labels_in_use():
    """A corrected label of the judged trains nothing again; one of the trained does."""
    slices = pd.DataFrame({"patient": ["a", "a", "b"], "cohort": "radio"})
    slices["weak_label"] = pd.array([1, 1, pd.NA], dtype="Int64")
    slices["label"] = pd.array([0, 0, 1], dtype="Int64")
    first = pretrain.identity("sha", slices, "weak_label")
    assert pretrain.identity("sha", slices.assign(label=1), "weak_label") == first
    others = [slices.assign(weak_label=2), slices.assign(patient=["a", "c", "b"]), slices[:2]]
    found = [pretrain.identity("sha", other, "weak_label") for other in others]
    found += [pretrain.identity("other", slices, "weak_label"), first]
    assert len(set(found)) == 5
    known = slices.assign(label=slices.label.astype(int))
    assert pretrain.identity("s", slices, "label") == pretrain.identity("s", known, "label")


def make_run(n_steps=6):
    """Config, parts of a tiny training, and its step; each step moves weights and generator."""
    config = pretrain.Config(**SETTINGS | {"n_steps": n_steps, "batch_size": 8})
    torch.manual_seed(0)
    network, generator = torch.nn.Linear(4, 3), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters())
    parts = {"encoder": network, "optimizer": optimizer, "generator": generator, "scaler": None}

    def step(scale=1.0):
        features = network(scale * torch.randn(16, 4, generator=generator))
        loss = features.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss, *features.detach().chunk(2), features.detach()

    return config, parts, step


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_ends_as_if_it_had_not_been(tmp_path, number):
    """The signal arrives within step 2; the checkpoint holds the state after it."""
    config, whole_parts, step = make_run()
    with Keeper(tmp_path / "a", config, [], whole_parts) as keep:
        for i in range(6):
            keep(i, *step())
    assert not (tmp_path / "a").exists()  # too short for one
    with pytest.raises(ValueError, match="this loop has run"), keep:  # its cell, once more
        pass
    config, parts, step = make_run()
    before = signal.signal(number, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        with pytest.raises(KeyboardInterrupt), Keeper(tmp_path / "b", config, [], parts) as keep:
            for i in range(6):
                done = step()
                if i == 2:
                    signal.raise_signal(number)
                keep(i, *done)
        assert signal.getsignal(number) is not keep._ask  # handlers are put back
    finally:
        signal.signal(number, before)
    config, parts, step = make_run()
    start, log = pretrain.load_checkpoint(tmp_path / "b", config, **parts)
    assert start == 3 and [row["step"] for row in log] == [0]
    with Keeper(tmp_path / "b", config, log, parts) as keep:
        for i in range(start, 6):
            keep(i, *step())
    assert torch.equal(parts["encoder"].weight, whole_parts["encoder"].weight)
    assert [row["step"] for row in log] == [0, 5]


def test_a_changed_parameter_or_a_trained_network_is_no_run_of_these_settings():
    """Cells of notebook 02 out of order: config.json would not say what ran."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    (cell,) = (t for t in ("".join(c["source"]) for c in cells) if "config, positions" in t)
    guard = cell[cell.index("pretrain.settings(") : cell.index("finished = ")]
    guard += cell[cell.index("if parts[") : cell.index("read = ")]
    optimizer = torch.optim.Adam(torch.nn.Linear(1, 1).parameters())
    given = {"pretrain": pretrain, "config": pretrain.Config(**SETTINGS)}
    given |= SETTINGS | {"parts": {"optimizer": optimizer}, "log": []}
    given |= {"positions": [], "sampler": []}
    exec(guard, dict(given))
    for made in ("positions", "sampler", "parts"):  # of the settings before
        with pytest.raises(ValueError, match="run all again from the settings on"):
            exec(guard, given | {made: None})
    with pytest.raises(ValueError, match="run all again"):
        exec(guard, given | {"sigma": 5.0})
    sum(p.sum() for p in optimizer.param_groups[0]["params"]).backward()
    optimizer.step()
    with pytest.raises(ValueError, match="run all again"):
        exec(guard, dict(given))
    exec(guard, given | {"log": [{"step": 0}]})  # from a checkpoint


def test_checkpoints_follow_the_clock(tmp_path):
    config, parts, step = make_run()
    with Keeper(tmp_path / "c", config, [], parts, every=0.0) as keep:
        for i in range(3):
            keep(i, *step())
            assert pretrain.load_checkpoint(tmp_path / "c", config, **parts)[0] == i + 1
    with Keeper(tmp_path / "none", config, [], parts, every=0.0, main=False) as keep:
        keep(0, *step())
    assert not (tmp_path / "none").exists()


def test_a_lost_run_stops_and_keeps_the_state_before(tmp_path):
    config, parts, step = make_run(30)
    file = tmp_path / "c"
    with Keeper(file, config, [], parts, every=0.0) as keep:
        keep(0, *step())
    good = file.read_bytes()
    with pytest.raises(FloatingPointError, match=r"the loss is nan from step 3 on.*delete .*c "):
        with Keeper(file, config, [], parts, log_every=10) as keep:
            for i in range(1, 12):
                keep(i, *step(math.nan if i >= 3 else 1.0))
    assert i == 10 and file.read_bytes() == good
    with pytest.raises(ValueError, match=r"encoder.weight is not finite after 12 steps.*rate"):
        pretrain.save_checkpoint(file, 12, [], config, **parts)
    assert file.read_bytes() == good
    state = torch.load(file, weights_only=True)
    state["optimizer"]["state"][0]["exp_avg"][0, 0] = math.inf
    torch.save(state, file)
    with pytest.raises(ValueError, match=r"optimizer.state.0.exp_avg is not finite.*delete it"):
        pretrain.load_checkpoint(file, config, **parts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": 101}, "101 of 100 steps; delete it"),
        ({"step": -3}, "-3 of 100 steps; delete it"),
        ({"step": 3.5}, "3.5 of 100 steps; delete it"),
        ({"log": [{"step": 2, "loss": math.nan}]}, "loss.0 is not finite.*delete it"),
        ({"config": {**SETTINGS, "kernel": "new"}}, "kernel: unknown here.*delete it"),
        ({"encoder": torch.nn.Linear(9, 9).state_dict()}, "encoder is another one.*delete it"),
    ],
)
def test_checkpoints_of_another_run_are_refused(tmp_path, change, words):
    config, parts, _ = make_run(100)
    pretrain.save_checkpoint(tmp_path / "c", 3, [], config, **parts)
    state = torch.load(tmp_path / "c", weights_only=True)
    config = pretrain.Config(**SETTINGS)
    torch.save(state | {"config": SETTINGS} | change, tmp_path / "c")
    with pytest.raises(ValueError, match=words):
        pretrain.load_checkpoint(tmp_path / "c", config, **parts)


def test_damaged_checkpoints_are_refused(tmp_path):
    config, parts, _ = make_run()
    file = tmp_path / "c"
    pretrain.save_checkpoint(file, 3, [], config, **parts)
    content = file.read_bytes()
    place = content.index(parts["encoder"].weight.detach().numpy().tobytes())
    for damaged in (
        content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :],
        content[: len(content) // 2],
        b"",
    ):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"c: not a readable checkpoint.*delete it"):
            pretrain.load_checkpoint(file, config, **parts)
    file.write_bytes(content)
    assert pretrain.load_checkpoint(file, config, **parts)[0] == 3
    with pytest.raises(ValueError, match=r"not a readable checkpoint .'scaler'"):
        pretrain.load_checkpoint(file, config, **parts | {"scaler": torch.nn.Linear(1, 1)})


def test_foreign_checkpoints_are_one_line(tmp_path):
    config, parts, _ = make_run()
    file = tmp_path / "c"
    pretrain.save_checkpoint(file, 3, [], config, **parts)
    own = torch.load(file, weights_only=True)
    odd = [own | {"config": "x"}, own | {"log": "x"}, own | {"log": [{"a": 1}]}]
    for content in (*odd, torch.nn.Linear(1, 1)):  # a whole module: torch explains on six lines
        torch.save(content, file)
        with pytest.raises(ValueError, match="not a readable checkpoint") as caught:
            pretrain.load_checkpoint(file, config, **parts)
        assert "\n" not in str(caught.value)


def test_a_finished_run_of_other_settings_is_not_replaced(tmp_path):
    config = pretrain.Config(**SETTINGS)
    pretrain.check_existing("resume", tmp_path, config)
    pretrain.save_run(tmp_path, torch.nn.Linear(2, 2), config, [])
    assert pretrain.check_existing("resume", tmp_path, config)  # the same again
    for existing in ("restart", "replace"):  # asked for
        assert not pretrain.check_existing(existing, tmp_path, config)
    other = pretrain.Config(**SETTINGS | {"sigma": 0.2})
    with pytest.raises(ValueError, match=r"sigma: 0.1 there, 0.2 now.*give this one a name"):
        pretrain.check_existing("resume", tmp_path, other)
    pretrain.check_existing("replace", tmp_path, other)
    with pytest.raises(ValueError, match="existing='again': choose resume, restart or replace"):
        pretrain.check_existing("again", tmp_path, other)


def _update(monkeypatch):
    """Another losses.py, seen by a process that begins."""
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda p: read(p) + b"#" * (p.name == "losses.py"))
    pretrain.code.cache_clear()


@pytest.mark.parametrize("what", ["code", "encoder", "checkpoint"])
def test_a_finished_run_is_kept_only_as_it_was_made(tmp_path, monkeypatch, what):
    """Not if other code made it, it was killed between two files, or it was begun anew."""
    config, net = pretrain.Config(**SETTINGS), torch.nn.Linear(2, 2)
    pretrain.save_run(tmp_path, net, config, [])
    if what == "code":
        _update(monkeypatch)
    elif what == "encoder":
        (tmp_path / "encoder.safetensors").write_bytes(b"of another run")
    else:
        pretrain.save_checkpoint(tmp_path / "checkpoint.pt", 3, [], config, encoder=net)
    assert not pretrain.check_existing("resume", tmp_path, config)
    monkeypatch.undo()
    pretrain.code.cache_clear()


def test_a_checkpoint_is_of_the_code_that_was_imported(tmp_path, monkeypatch):
    """An update in the midst of a training is not what runs."""
    config, parts, _ = make_run()
    pretrain.code()
    with monkeypatch.context() as update:
        read = Path.read_bytes
        update.setattr(Path, "read_bytes", lambda p: read(p) + b"#" * (p.name == "losses.py"))
        pretrain.save_checkpoint(tmp_path / "c", 2, [{"loss": 1.0}], config, **parts)
    pretrain.code.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pretrain.load_checkpoint(tmp_path / "c", config, **parts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_fp16_without_a_gpu_is_refused():
    with pytest.raises(ValueError, match="fp16 needs a GPU: take auto"):
        distributed.start("fp16")


@pytest.mark.parametrize("precision", ["FP16", "float16", "bfloat16", "Auto", "", None, False])
def test_a_precision_is_spelt_as_in_the_settings(precision):
    for refuse in (pretrain.pick_precision, distributed.start):
        with pytest.raises(ValueError, match=r"precision=.*choose one of auto, no, bf16, fp16"):
            refuse(precision)


def test_settings_are_plain_numbers_whatever_they_were(tmp_path):
    given = {"batch_size": np.int64(64), "sigma": np.float32(0.5), "learning_rate": 1}
    config, net = pretrain.Config(**SETTINGS | given), torch.nn.Linear(2, 2)
    assert [type(getattr(config, name)) for name in given] == [int, float, float]
    pretrain.save_checkpoint(tmp_path / "c", 3, [], config, encoder=net)
    assert pretrain.load_checkpoint(tmp_path / "c", config, encoder=net) == (3, [])
    pretrain.save_run(tmp_path, net, config, [])
    pretrain.check_existing("resume", tmp_path, config)


def test_stages_and_conventions_are_checked():
    table = pd.DataFrame({"weak_label": [0.5, 1], "position": [0, 1], "n_kept": [2, 2]})
    with pytest.raises(ValueError, match="whole numbers"):
        pretrain.weak_labels(table)
    with pytest.raises(ValueError, match="choose k/"):
        pretrain.slice_positions(table, "k/n", "k")


def test_codes_below_minus_one_are_unknown_and_other_rows_may_have_no_cohort():
    table = pd.DataFrame({"weak_label": [-9, 0, 3, None], "cohort": ["d1", None, "d2", "d1"]})
    assert pretrain.weak_labels(table).tolist() == [-1, 0, 3, -1]
    assert pretrain.weak_labels(table, 3).tolist() == [-1, 0, 1, -1]
    assert folds.read_rows(table, "d1").tolist() == [0, 3]
    with pytest.raises(ValueError, match=r"there are \['d1', 'd2'\]"):
        folds.read_rows(table, "d3")


@pytest.mark.parametrize(
    ("state", "loss"),
    [({}, np.float32("nan")), ({}, np.float16("inf")), ({"w": np.array([1, np.nan])}, 0.0)],
)
def test_numbers_of_numpy_are_looked_at_too(state, loss):
    with pytest.raises(ValueError, match="is not finite"):
        pretrain.check_sound("x", state, [loss])


@pytest.mark.parametrize("position", [[0, 60, 120], [-1, 0, 1], [0, 0.5, 1.5]])
def test_positions_are_shares_of_the_height(position):
    table = pd.DataFrame({"patient": "p1", "z": [4, 5, 6], "position": position, "n_kept": 3})
    with pytest.raises(ValueError, match="from 0 to 1"):
        pretrain.slice_positions(table, "k/(n-1)", "k/(n-1)")


@pytest.mark.parametrize(
    "wrap", [torch.nn.DataParallel, lambda e: torch.nn.DataParallel(torch.compile(e))]
)
def test_a_wrapped_encoder_is_saved_under_its_own_names(tmp_path, wrap):
    encoder = build_encoder("tiny_padded", "batch", 0)
    pretrain.save_run(
        tmp_path,
        wrap(encoder),
        pretrain.Config(**SETTINGS | dict(backbone="tiny_padded", sigma=float("inf"))),
        [{"step": 0, "loss": 1.0}],
    )
    again, found = probe.load_encoder(tmp_path, "tiny_padded", "batch", 0)
    assert again.state_dict().keys() == encoder.state_dict().keys()
    assert json.loads((tmp_path / "config.json").read_text(), parse_constant=pytest.fail)
    assert found["sigma"] == "inf"
    pretrain.check_existing(
        "resume",
        tmp_path,
        pretrain.Config(**SETTINGS | dict(backbone="tiny_padded", sigma=float("inf"))),
    )


def test_a_log_of_numpy_numbers_is_read_back(tmp_path):
    log = [{"step": np.int64(2), "loss": np.float32(0.5), "spread": np.float64(0.1)}]
    file, part = tmp_path / "c.pt", torch.nn.Linear(1, 1)
    pretrain.save_checkpoint(file, np.int64(3), log, pretrain.Config(**SETTINGS), encoder=part)
    found = pretrain.load_checkpoint(file, pretrain.Config(**SETTINGS), encoder=part)
    assert found == (3, [{"step": 2, "loss": 0.5, "spread": 0.1}])


def test_a_rank_of_another_tool_starts_no_group():
    code = "from wspnb import distributed; print(distributed.start('no').num_processes)"
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    environment |= {"LOCAL_RANK": "0"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert found.stdout.split() == [b"1"], found.stderr


def test_a_checkpoint_of_other_code_is_warned_of(tmp_path, monkeypatch):
    """The package was updated in the midst of a training: half by one loss, half by another."""
    config, parts, _ = make_run()
    pretrain.save_checkpoint(tmp_path / "c", 2, [{"loss": 1.0}], config, **parts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pretrain.load_checkpoint(tmp_path / "c", config, **parts)[0] == 2
    _update(monkeypatch)
    with pytest.warns(UserWarning, match=r"begun with another losses\.py.*existing=restart"):
        assert pretrain.load_checkpoint(tmp_path / "c", config, **parts)[0] == 2
    monkeypatch.undo()
    pretrain.code.cache_clear()


def test_the_code_of_a_step_is_all_that_a_step_imports():
    """From the imports of notebook 02 on, through those of each file."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = next(c["source"] for c in cells if c["cell_type"] == "code")
    no_numbers = {"files", "folds", "keeper", "plots", "run", "workers"}  # read, check, write, draw
    seen, texts = set(), ["".join(code)]
    while texts:
        for node in ast.walk(ast.parse(texts.pop())):
            if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "wspnb":
                names = [f"{node.module}.{alias.name}".split(".")[1] for alias in node.names]
                files = {Path(pretrain.__file__).with_name(f"{name}.py") for name in names}
                texts += [
                    file.read_text(encoding="utf-8") for file in files - seen if file.exists()
                ]
                seen |= files
    found = {file.stem for file in seen if file.exists()}
    assert found - no_numbers == {*pretrain.STEP.split()} and no_numbers < found


def test_a_checkpoint_of_another_precision_says_so(tmp_path):
    """Its scaler is missing, which is not what is wrong."""
    config, parts, _ = make_run()
    pretrain.save_checkpoint(tmp_path / "c", 2, [{"loss": 1.0}], config, **parts)
    half = dataclasses.replace(config, precision="fp16")
    with pytest.raises(ValueError, match=r"precision: .* there, fp16 now"):
        pretrain.load_checkpoint(
            tmp_path / "c", half, **parts | {"scaler": torch.amp.GradScaler("cpu")}
        )


def test_weak_labels_may_be_yes_no_or_unknown():
    table = pd.DataFrame({"weak_label": pd.array([True, None, False], "boolean")})
    assert pretrain.weak_labels(table).tolist() == [1, -1, 0]
