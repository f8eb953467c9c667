"""The reference experiment: every method on the whole pretraining cohort, judged with power.

Besides D1, D2 and D1+2 at the paper's sizes, each encoder is judged on a *population*: a thousand
further phantom patients like those of D1, whom no fold ever holds. Only a synthetic cohort has one.
A run leaves the files of notebooks 02 and 03, so that 04 to 06 read it, and three more.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from wspnb import folds, pretrain, probe
from wspnb.augment import augment
from wspnb.data.slices import Slices, open_slices, reader
from wspnb.files import read_json, write_csv
from wspnb.methods import split_name
from wspnb.models import build_encoder, build_head
from wspnb.momentum import has_norms, without_negatives
from wspnb.phantom.bodies import describe_patient
from wspnb.phantom.patients import Phantom, list_patients
from wspnb.phantom.scans import VERSION
from wspnb.phantom.store import make_store
from wspnb.results import committed, tables
from wspnb.results.statistics import records_of
from wspnb.sampling import OneSlicePerPatient
from wspnb.studies import judge, loop
from wspnb.workers import start_worker

STEPS = (0, 125, 250, 500, 1000, 2000, 4000)  # after which encoders are judged, and at the end
SUPERVISED_STEPS = 1000  # of each fold's network, fixed before comparing; paper silent


@dataclass(frozen=True)
class Run:
    """One training of the experiment; what differs from its base is in its name."""

    name: str  # a method, with what is changed and the share of the patients: wsp_patients0.1
    seed: int = 0  # of weights, batches and views
    phantom: tuple = ()  # pairs (parameter, value) of Phantom that differ from the default
    draws: int = 30  # studies of D1's size drawn from the population

    @property
    def method(self) -> str:
        return split_name(self.name)[0]

    @property
    def changes(self) -> dict[str, str]:
        return split_name(self.name)[1]


def share_of(run: Run) -> float:
    """Share of D_radio's patients that a run sees."""
    share = float(run.changes.get("patients", 1))
    if not 0 < share <= 1:
        raise ValueError(f"run {run.name}: a share of the patients is above 0, and 1 at most")
    return share


def settings_of(run: Run, store: dict, n_steps: int) -> pretrain.Config:
    """The paper's numbers where it gives them, else the package's defaults; one set for all."""
    n_steps = int(run.changes.get("n_steps", n_steps))
    base = {
        "method": run.method.replace("supervised", "random"), "backbone": "tiny_padded",
        "norm": "batch", "sigma": 0.1, "temperature": 0.1, "batch_size": 64, 
        "n_steps": n_steps, "warmup_steps": n_steps // 10,
        "learning_rate": 1e-3, "weight_decay": 1e-5, "image_size": store["image_size"],
        "precision": "no", "translate": 0.0, "crop_area": 0.7, "normalise": "row",
        "convention": "k/(n-1)", "severe_from": 0, "train_cohort": "radio",
        "data": store["sha256"], "seed": run.seed,
    }  # fmt: skip
    elsewhere = {"patients", *dict(run.phantom)}
    changed = {key: value for key, value in run.changes.items() if key not in elsewhere}
    if unknown := set(changed) - set(base):
        raise ValueError(f"run {run.name}: no setting {', '.join(unknown)}")
    return pretrain.Config(**base | {k: type(base[k])(v) for k, v in changed.items()})


def train(
    store: Slices, run: Run, config: pretrain.Config, device: torch.device, watch: Callable
) -> tuple[nn.Module, list[dict]]:
    """Pretrain on the images of D_radio, as many of its patients as the run wants. ``watch`` is
    called with (steps done, encoder) at :data:`STEPS` and at the end; the encoder, and the log of
    :func:`wspnb.studies.loop.train`, are returned."""
    rows = folds.read_rows(store.table, config.train_cohort)
    owner = store.table.patient.iloc[rows]
    people = owner.unique()[: round(share_of(run) * owner.nunique())]
    rows = rows[owner.isin(people)]
    table = store.table.iloc[rows].reset_index(drop=True)
    labels = pretrain.weak_labels(table, config.severe_from)
    positions = pretrain.slice_positions(table, store.settings["convention"], config.convention)
    encoder = build_encoder(config.backbone, config.norm, config.seed)
    encoder = encoder.to(device, memory_format=torch.channels_last)
    head = build_head(config.backbone, config.seed, has_norms(run.method)).to(device)
    byol = without_negatives(run.method, encoder, head, config.backbone, config.seed).to(device)
    read = reader(store.images, device)

    def views(batch, generator):
        images = read(rows[np.array(batch)])
        return torch.cat([augment(images, generator) for _ in range(2)])

    def watched(step):
        if step in STEPS or step == config.n_steps:
            watch(step, encoder)

    slices = table.patient.to_numpy(), labels, positions
    draw, generator = (torch.Generator().manual_seed(config.seed) for _ in range(2))
    given = (encoder, head, config, draw, generator, watched, byol)
    return encoder, loop.train(run.method, slices, views, *given)


def supervised(
    store: Slices, config: pretrain.Config, device: torch.device, steps: int
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Cross-entropy from scratch inside the folds (notebook 03b), and once on all of D1: scores of
    each group's patients with folds, and scores of the population."""
    table = store.table
    known = np.flatnonzero(table.label.notna())
    labels = torch.tensor(table.label.fillna(-1).to_numpy(int)).float()
    read = reader(store.images, device)

    def fit(train, held):
        encoder = build_encoder(config.backbone, config.norm, config.seed)
        torch.nn.init.zeros_((last := nn.Linear(encoder.n_features, 1, bias=False)).weight)
        network = nn.Sequential(encoder, last).to(device, memory_format=torch.channels_last)
        rate, decay = config.learning_rate, config.weight_decay
        optimizer = torch.optim.Adam(network.parameters(), rate, weight_decay=decay, fused=True)
        generator = torch.Generator().manual_seed(config.seed)
        draw = (table.patient.to_numpy()[train], labels[train].numpy(), config.batch_size, steps)
        for step, batch in enumerate(OneSlicePerPatient(*draw, generator)):
            factor = pretrain.learning_rate_factor(step, steps, steps // 10)
            optimizer.param_groups[0]["lr"] = rate * factor
            views = augment(read(train[batch]), generator)
            target = labels[train[batch]].to(device)
            loss = binary_cross_entropy_with_logits(network(views)[:, 0], target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        logits = probe.extract_features(network.eval(), store.images, held, 256)[:, 0].astype(float)
        score = pd.Series(1 / (1 + np.exp(-logits)), table.patient.to_numpy()[held])
        return score.groupby(level=0).mean()

    people = {}
    for group in judge.GROUPS:
        own = known[table.cohort.iloc[known].isin(folds.sides(group)[1])]
        given = (table.label.iloc[own].astype(int), table.patient.iloc[own])
        dealt = probe.patient_folds(*given, judge.N_FOLDS, judge.FOLD_SEED)
        fold = table.patient.iloc[own].map(dealt.set_index("patient").fold).to_numpy()
        score = pd.concat([fit(own[fold != k], own[fold == k]) for k in range(judge.N_FOLDS)])
        people[group] = dealt.assign(score=dealt.patient.map(score).to_numpy(), threshold=0.5)
    d1, rest = (np.flatnonzero(table.cohort == name) for name in ("d1", "population"))
    score = fit(d1, rest)
    truth = table.iloc[rest].groupby("patient").label.first()
    found = {"patient": score.index, "label": truth[score.index].astype(int), "score": score}
    return people, pd.DataFrame(found).reset_index(drop=True)


def folder_name(phantom: tuple, size: int) -> str:
    """Folder of the runs on one phantom, e.g. ``64px`` or ``64px-seed1-reader_accuracy0.7``."""
    return "-".join([f"{size}px", *(f"{key}{value}" for key, value in phantom)])


def do(run: Run, root: Path, size: int, n_steps: int, device: torch.device, share=1.0) -> Path:
    """One run with its judgement; a finished one is kept. Returns the folder of its probe. A
    finished one of other steps, slices or code is a ValueError.

    Writes ``pretrain/RUN/`` (encoder, log, settings), ``probe/RUN/`` (``scores.csv`` of D1, D2 and
    both, ``population.csv``, ``studies.csv``, ``curve.csv`` over steps and, last,
    ``results.json``).
    """
    folder = root / folder_name(run.phantom, size)
    name = pretrain.run_name(run.name, "tiny_padded", run.seed)
    out, began = folder / "probe" / name, time.monotonic()
    phantom = Phantom(image_size=size, **dict(run.phantom))
    store = open_slices(make_store(folder / "cohort", phantom, share, share, share, progress=False))
    config, curve, facts = settings_of(run, store.settings, n_steps), [], {}
    drawn = {"version": VERSION, "image_size": size, "share": share}  # pixels round by processor
    if (out / "results.json").exists():
        found = read_json(out / "results.json")
        asked = {"drawn": drawn, "n_steps": config.n_steps, "code": loop.stamp()}
        if odd := [f"{k} {found[k]}, not {v}" for k, v in asked.items() if found.get(k, v) != v]:
            told = "; ".join(odd)
            raise ValueError(f"{out} is of another run ({told}): delete it, or take --out")
        return out
    base = [key for key in tables.ROWS if f"{run.name}_".startswith(f"{key}_")]  # to compare with
    result = {"name": run.name, "method": (base or [run.method])[0], "backbone": config.backbone}
    result |= {"seed": run.seed, "norm": config.norm, "C": judge.C, "n_folds": judge.N_FOLDS}
    result |= {"fold_seed": judge.FOLD_SEED, "data": config.data, "drawn": drawn}
    result |= {"phantom": dict(run.phantom)} if run.phantom else {}
    if run.method == "supervised":
        steps = min(SUPERVISED_STEPS, n_steps)
        people, population = supervised(store, config, device, steps)
        result |= {"training": None, "supervised": {"supervised_steps": steps}}
    else:

        def watch(step, encoder):
            found = judge.features_of(encoder, store, device)
            curve.append({"step": step, **judge.judge(found)})

        if run.method in pretrain.UNTRAINED:
            encoder = build_encoder(config.backbone, config.norm, config.seed)
            encoder, log = encoder.to(device, memory_format=torch.channels_last), []
            watch(0, encoder)
        else:
            encoder, log = train(store, run, config, device, watch)
        found = judge.features_of(encoder, store, device)
        people, population = judge.cross_validated(found), judge.population_scores(found)
        given = found["population"][:3]
        ceiling = probe.cross_validate(*given, judge.C, judge.N_FOLDS, judge.FOLD_SEED)
        result |= {"ceiling": ceiling.mean, "training": None}
        if log:
            verdict = pretrain.verdict(run.method, log, config.batch_size)
            facts = {"name": run.name, "verdict": verdict}
            facts |= {"loss": float(np.mean([r["loss"] for r in log[-len(log) // 10 :]]))}
            result["training"] = {k: getattr(config, k) for k in probe.EQUAL_SETTINGS}
            pretrain.save_run(folder / "pretrain" / name, encoder, config, log, **facts)
        write_csv(out / "curve.csv", pd.DataFrame(curve).round(5))
        if run.draws:
            write_csv(out / "studies.csv", judge.draw_studies(found, run.draws).round(5))
    write_csv(out / "population.csv", population.round({"score": 5}))
    result |= {"auc_population": roc_auc_score(population.label, population.score)}
    result |= {"depth_r2": curve[-1]["depth_r2"] if curve else None, "collapsed": False, **facts}
    device_name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    result |= {"device": device_name, "torch": torch.__version__, "n_steps": config.n_steps}
    result |= {"patients": share_of(run), "code": loop.stamp()}
    result |= {"seconds": round(time.monotonic() - began, 1)}
    result["results"] = records_of(run.name, people)
    table = pd.concat(t.assign(cohort=g) for g, t in people.items())
    probe.save_probe(out, table, result)
    return out


PAPER = ("wsp", "supcon", "depth_aware", "simclr", "byol", "random", "supervised")
VARIANTS = ("wsp_floor0.1", "wsp_floor0.2", "wsp_floor0.4", "wsp_own", "wsp_near", "wsp_sigma0.01")
VARIANTS += ("wsp_sigma0.05", "wsp_sigma0.2", "wsp_sigma0.5", "wsp_narrowing")
FEWER = tuple(f"{m}_patients{share}" for share in (0.1, 0.3) for m in ("wsp", "supcon"))
# The other rows of methods.METHODS, and the losses without negatives by size of the batch.
KERNELS = ("wsp_threshold", "wsp_exp", "wsp_stages", "wsp_minimum", "wsp_mixture", "xclr")
KERNELS += ("rank", "depth_threshold", "depth_exp", "jaccard", "pcl", "cauchy")
WITHOUT = [f"{f}_{k}" for f in ("byol", "simsiam", "barlow") for k in ("simclr", "wsp", "supcon")]
SMALL = [m + f"_batch_size{n}" for n in (16, 32) for m in (*WITHOUT, "wsp", "supcon", "simclr")]
SMALL += WITHOUT
# What phantom seed 0 has left to be judged on others: by the rule of notebook 08 the first two; the
# row with the highest AUC, which misses that rule by .0001 of depth; and the fewer patients.
CHOSEN = ("wsp_floor0.4", "wsp_floor0.2", "wsp_sigma0.5", "wsp_patients0.1", "supcon_patients0.1")
# What three phantoms left open, for three more: with fewer patients the interval touched 0.
OPEN = ("wsp_patients0.1", "supcon_patients0.1", "wsp", "supcon", "wsp_sigma0.5")
# Notebook 06b's question with images: one factor of the phantom at a time, the first is the base.
FACTORS = (("reader_accuracy", 0.82), ("reader_accuracy", 0.7), ("reader_accuracy", 0.95))
FACTORS += (("depth_dependence", 0.0), ("depth_dependence", 1.0))


def plan(which: str) -> list[Run]:
    """The runs of a part of the experiment, the most wanted first.

    ``reference``: the paper's methods on phantom seed 0, three training seeds. ``variants``: other
    kernels, denominators and numbers of patients on the same phantom, where choices are made.
    ``kernels``: the other rows of the table of methods. ``small``: losses without negatives, with a
    kernel and without, in batches of 16, 32 and 64, beside contrastive ones. ``judged``: what was
    chosen, on three phantoms on which nothing was; ``open``: what these left open, on three more.
    ``factors``: WSP and SupCon with a tenth of the patients and a third of the steps, where
    position was seen to help, on phantoms that differ in one factor.

    Raises:
        ValueError: if there is no such part.
    """
    seeds, judged = range(3), ("wsp", "supcon", "depth_aware", "random", *CHOSEN)
    parts = {
        "reference": [Run(name, seed) for seed in seeds for name in PAPER],
        "variants": [Run(name, seed, draws=0) for seed in seeds for name in (*VARIANTS, *FEWER)],
        "kernels": [Run(name, seed, draws=0) for seed in seeds for name in KERNELS],
        "small": [Run(name, seed, draws=0) for seed in seeds for name in SMALL],
        "judged": [Run(name, seed, (("seed", seed),)) for seed in (1, 2, 3) for name in judged],
        "open": [Run(name, seed, (("seed", seed),)) for name in OPEN for seed in (4, 5, 6)],
        "factors": [
            Run(f"{method}_patients0.1_n_steps2000_{key}{value}", seed, ((key, value),))
            for seed in seeds
            for key, value in FACTORS
            for method in ("wsp", "supcon")
        ],
    }
    if which not in parts:
        raise ValueError(f"plan {which!r}: choose {', '.join(parts)}")
    return parts[which]


def run_all(
    runs: Sequence[Run],
    root: Path,
    size: int,
    n_steps: int,
    workers: int,
    seconds: float,
    share: float = 1.0,
    say: Callable = print,
) -> None:
    """Do the runs side by side, a process each; what is not done in time is left for the next call.

    Args:
        runs: in the order wanted.
        root: folder of all phantoms' runs.
        seconds: no run is begun after three quarters of it; at its end all are stopped.
        share: of the patients of all cohorts.
        say: is told each run's result as it ends.
    """
    end, context = time.monotonic() + seconds, multiprocessing.get_context("spawn")
    for phantom in dict.fromkeys(run.phantom for run in runs):
        folder = root / folder_name(phantom, size) / "cohort"
        make_store(folder, Phantom(image_size=size, **dict(phantom)), share, share, share)
    queue, results = context.Queue(), context.Queue()
    for run in runs:
        queue.put(run)
    given = (queue, results, root, size, n_steps, share, end - seconds / 4)
    pool = [context.Process(target=_work, args=given, daemon=True) for _ in range(workers)]
    for process in pool:
        process.start()
    while any(p.is_alive() for p in pool) and time.monotonic() < end:
        while not results.empty():
            say(f"{seconds - (end - time.monotonic()):4.0f} s", results.get())
        time.sleep(0.5)
    if killed := [process.exitcode for process in pool if process.exitcode]:
        advice = "their runs are not done: call again, with fewer workers if memory was short"
        say(f"{len(killed)} workers were killed (exit {killed[0]}), {advice}")
    for process in pool:
        process.terminate()
    while not results.empty():
        say(results.get())


def publish(root: Path, size: int, figures: Path) -> list[str]:
    """Keep the scores of all finished runs under ``figures/runs`` and write every table that
    follows from them: ``reference`` for phantom seed 0, ``judged`` for other seeds, ``factors`` for
    other factors; names of the tables. Published runs that were not done here stay
    (:func:`wspnb.results.committed.add_runs`). ``root`` and ``size`` as for :func:`run_all`.
    Without a finished run a FileNotFoundError.
    """
    drawn = [describe_patient(Phantom(), c, n) for c, n in list_patients(Phantom()) if c != "radio"]
    readings = pd.DataFrame(drawn)[["cohort", "patient", "label", "reading"]]
    done = sorted({file.parents[2] for file in root.glob(f"{size}px*/probe/*-seed*/results.json")})
    parts, names = {"reference": [], "judged": [], "factors": []}, []
    runs = [run for folder in done for run in tables.read_runs(folder)]
    own = [run for run in runs if "_n_steps" not in run["name"] and "n_steps" in run]
    if len(lengths := {run["n_steps"]: run["folder"] for run in own}) > 1:
        found = ", ".join(f"{folder}: {n} steps" for n, folder in lengths.items())
        raise ValueError(f"runs of several lengths ({found}): delete those of one, or take --out")
    for run in runs:
        other = run.get("phantom")
        parts["reference" if not other else "judged" if "seed" in other else "factors"].append(run)
    for part, runs in parts.items():
        if runs:
            kept = ("", readings) if part == "reference" else (f"_{part}",)
            names += committed.add_runs(runs, figures / "runs" / part, *kept)
    if not names:
        raise FileNotFoundError(f"{root}: no run is finished, nothing to publish; give more time")
    return names


def _work(queue, results, root, size, n_steps, share, last) -> None:
    """Do runs from the queue until it is empty or it is too late to begin one."""
    start_worker()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    while time.monotonic() < last:
        try:
            run = queue.get(timeout=2)
        except Exception:  # empty
            return
        began = time.monotonic()
        try:
            found = read_json(do(run, root, size, n_steps, device, share) / "results.json")
            text = f"population {found['auc_population']:.3f}, D1 {found['results'][0]['auc']:.3f}"
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
        took = time.monotonic() - began
        results.put(f"{dict(run.phantom)} {run.name} seed {run.seed}: {text}, {took:.0f} s")
