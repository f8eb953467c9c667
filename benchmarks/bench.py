"""Speed and memory against plain versions, side by side: ``make bench`` or
``python benchmarks/bench.py [TOPIC ...]``.

Every row is the median of runs taken in turn, plain and ours, in this one process; the median of
their ratios is what counts. Rows of memory need Linux. A run of all topics puts its rows into
``results.csv`` beside this file, in place of this machine's old ones, draws them as ``cost.png``
and writes a table of each machine into ``README.md``.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import LogLocator
from tqdm import tqdm
from umap import UMAP

sys.path.insert(0, str(Path(__file__).parent))
import plain
import preprocess
from ours import DEVICE, Step, at_least_one, machine, timed

from wspnb import plots, probe
from wspnb.augment import augment
from wspnb.data.slices import reader
from wspnb.kernels import pair_weights
from wspnb.losses import contrastive_loss
from wspnb.methods import pair_kernel
from wspnb.results import audit
from wspnb.sampling import OneSlicePerPatient

HERE = Path(__file__).parent
NUMBERS = ("plain_s", "ours_s", "times_faster", "peak_mb")


def compare(what: str, plain_work, our_work, runs: int, **more) -> dict:
    """Median seconds of both, taken in turn after one call to warm up."""
    timed(plain_work), timed(our_work)
    pairs = [(timed(plain_work), timed(our_work)) for _ in range(runs)]
    before, after = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    return {"what": what, "plain_s": before, "ours_s": after, "times_faster": ratio, **more}


def in_new_process(code: str) -> tuple[float, float]:
    """(seconds, peak memory in MB) that a piece of code prints about itself."""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, peak = map(float, found.stdout.split()[-2:])
    return seconds, peak


def bench_augment(runs: int, quick: bool):
    for size, n in ((64, 4),) if quick else ((160, 64), (512, 16)):
        images = torch.rand(n, 1, size, size)
        chain, generator = plain.five_passes(size, 0.2), torch.Generator().manual_seed(0)
        yield compare(
            f"augmentation, {n} images of {size} px",
            lambda images=images, chain=chain: chain(images),
            lambda images=images, g=generator: augment(images, g, translate=0.2),
            runs,
        )


def bench_compile(runs: int, quick: bool):
    """Our step with `torch.compile` of the encoder as "ours", without as "plain"."""
    size, n = (160, 2) if quick else (512, 64 if DEVICE.type == "cuda" else 8)
    compilers = ("", "eager" if quick else "inductor")
    steps = [Step("tiny", size, n, compiler) for compiler in compilers]
    first = timed(steps[1])
    row = compare(f"step, tiny, {n} slices of {size} px, compiled", *steps, runs)
    yield row | {"note": f"{first:.0f} s to compile"}


def bench_loss(runs: int, quick: bool):
    for n in (16, 64) if quick else (64, 256, 1024, 2048, 4096):
        views = torch.randn(2 * n, 128, requires_grad=True)
        labels, positions = torch.arange(n) % 4, torch.rand(n)
        kernel = pair_kernel("wsp", labels, positions)

        def dense(views=views, kernel=kernel):
            plain.loss(*views.chunk(2), pair_weights(kernel)).backward()

        def ours(views=views, kernel=kernel):
            contrastive_loss(*views.chunk(2), kernel).backward()

        calls = 30 * runs if n < 1000 else runs if n < 2000 else 3  # a millisecond is noisy
        row = compare(f"loss and gradient, n = {n}", dense, ours, calls)
        yield row | {"panel": "slices in a batch (loss)", "x": n}
    n = 256 if quick else 16384
    code = f"""
import time, torch
from functools import partial
from wspnb.methods import pair_kernel
from wspnb.losses import contrastive_loss
views, n = torch.randn(2, {n}, 128, requires_grad=True), {n}
kernel = partial(pair_kernel, "wsp", torch.arange(n) % 4, torch.rand(n), 0.1)
begin = time.perf_counter()
contrastive_loss(*views, kernel).backward()
seconds = time.perf_counter() - begin
peak = [line for line in open("/proc/self/status", encoding="utf-8") if line.startswith("VmHWM")][0]
print(seconds, int(peak.split()[1]) / 1024)
"""
    seconds, peak = in_new_process(code)
    yield {
        "what": f"loss and gradient, n = {n}, kernel by rows",
        "ours_s": seconds,
        "peak_mb": peak,
    }


def bench_kernel(runs: int, quick: bool):
    n = 64
    labels, positions = torch.arange(n) % 4, torch.rand(n)
    yield compare(
        f"pair weights of a batch of {n}",
        lambda: plain.weights(labels, positions, 0.1),
        lambda: pair_weights(pair_kernel("wsp", labels, positions)),
        5 * runs,
    )


def bench_sampler(runs: int, quick: bool):
    sizes = ((50, 1000),) if quick else ((280, 10_000), (840, 30_000), (2799, 100_000))
    for people, n in sizes:
        patient = np.sort(np.random.default_rng(0).integers(people, size=n))
        patient[:people] = np.arange(people)
        patient.sort()
        label = patient % 4
        size, n_batches = (40, 250) if quick else (64, 156)
        row = compare(
            f"sampler set-up, {people} patients, {n} slices",
            lambda patient=patient: plain.slices_of_patients(patient.tolist()),
            lambda given=(patient, label, size, n_batches): OneSlicePerPatient(*given),
            1,
        )
        yield row | {"panel": "slices in the store (set-up)", "x": n}
    slices = {p: np.flatnonzero(patient == p).tolist() for p in range(people)}
    of = {p: p % 4 for p in range(people)}
    sampler = OneSlicePerPatient(patient, label, size, n_batches, torch.Generator().manual_seed(0))
    yield compare(
        "10,000 draws in balanced batches",
        lambda: list(plain.batches(slices, of, size, n_batches)),
        lambda: list(sampler),
        runs,
    )


def bench_step(runs: int, quick: bool):
    gpu = DEVICE.type == "cuda"
    sizes = [("tiny", 512, 64 if gpu else 8), ("resnet18", 512, 64 if gpu else 4)]
    sizes += [("tiny", 160, 64), ("tiny", 256, 8), ("tiny", 160, 8)]
    for backbone, size, n in [("tiny", 160, 2)] if quick else sizes:
        steps = [plain.step(backbone, size, n, DEVICE), Step(backbone, size, n)]
        row = compare(f"step, {backbone}, {n} slices of {size} px", *steps, runs)
        row["views_per_s"] = 2 * n / row["ours_s"]
        if (backbone, n) == ("tiny", 8):
            row |= {"panel": "pixels of a side (step of 8 slices)", "x": size}
        if gpu:
            torch.cuda.reset_peak_memory_stats()  # without the plain step's images
            timed(steps[1])
            row["peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
        yield row


def sparse_store(folder: Path, n: int, size: int) -> None:
    """A preprocessed cohort of n blank slices, 2,799 patients at most: a file with holes, which has
    its full length and no blocks."""
    folder.mkdir()
    np.lib.format.open_memmap(
        folder / "slices.npy", mode="w+", dtype=np.uint8, shape=(n, size, size)
    )
    patient = np.arange(n) * min(2799, n // 8) // n
    columns = {"patient": patient, "volume": patient, "z": np.arange(n), "weak_label": patient % 4}
    table = pd.DataFrame(columns).assign(cohort="radio", label="", selection="", n_kept=1)
    place = table.groupby("patient").cumcount()
    table["position"] = place / place.groupby(patient).transform("max").clip(lower=1)
    table.to_csv(folder / "slices.csv", index=False)
    (folder / "failed.csv").write_text("volume,patient,reason\n", encoding="utf-8")
    settings = {"n_slices": n, "image_size": size, "convention": "k/(n-1)", "sha256": f"{n}"}
    (folder / "store.json").write_text(json.dumps(settings), encoding="utf-8")


def bench_memory(runs: int, quick: bool):
    """Batches from a store of the paper's size, and notebook 02 on it; memory of the process' own
    (Linux; pages of the file that the system caches do not count)."""
    sizes = ((400, 64),) if quick else ((2000, 512), (100_000, 512))
    for n, size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            sparse_store(Path(folder, "cohort"), n, size)
            code = f"""
import sys, time
sys.path.insert(0, {str(HERE)!r})
import bench
begin = time.perf_counter()
bench.read_batches({folder + "/cohort"!r}, {n})
seconds = time.perf_counter() - begin
status = open("/proc/self/status", encoding="utf-8")
own = [line for line in status if line.startswith("RssAnon")][0]
print(seconds, int(own.split()[1]) / 1024)
"""
            seconds, peak = in_new_process(code)
            what = f"sampler and 100 batches of 64 read, {n} slices of {size} px"
            note = f"store of {n * size**2 / 1e9:.1f} GB"
            yield {"what": what, "ours_s": seconds, "peak_mb": peak, "note": note}
            notebook = HERE.parent / "notebooks" / "02_pretrain.ipynb"
            given = {"cohort_dir": f"{folder}/cohort", "run_dir": folder}
            given |= {"backbone": "tiny_padded" if size < 156 else "tiny", "norm": "none"}
            given |= {"batch_size": 8, "n_steps": 3, "method": "wsp"}
            words = [str(notebook), f"{folder}/02.ipynb"]
            words += [word for name, value in given.items() for word in ("-p", name, str(value))]
            code = f"""
import resource, subprocess, sys, time
begin = time.perf_counter()
subprocess.run([sys.executable, "-m", "wspnb.run", *{words!r}], check=True, capture_output=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(time.perf_counter() - begin, peak / 1024)
"""
            seconds, peak = in_new_process(code)
            what = f"notebook 02, 3 steps of 8, {n} slices of {size} px"
            yield {"what": what, "ours_s": seconds, "peak_mb": peak, "note": note}


def bench_preprocess(runs: int, quick: bool):
    """The work of notebook 01 on volumes of 3 MB, which become 36 slices of 512 px each; peak
    memory of a worker, and in the note of the parent."""
    for volumes in (3,) if quick else (140, 560):
        with tempfile.TemporaryDirectory() as folder:
            preprocess.draw(Path(folder), volumes, 128, 52 if quick else 104)
            run = preprocess.measure_apart(Path(folder), 2, 64 if quick else 512)
        yield {
            "what": f"notebook 01's slices of {volumes} volumes, 2 processes",
            "ours_s": run["seconds"],
            "peak_mb": run["peak"],
            "note": f"store of {run['stored'] / 1e9:.1f} GB; parent {run['parent']:.0f} MB",
        }


def bench_probe(runs: int, quick: bool):
    """Five deals of five folds, in one process and in two; UMAP of a cohort's slices."""
    rng, n = np.random.default_rng(0), 200 if quick else 1200
    people = pd.DataFrame({"patient": np.arange(n) // 10, "cohort": "d1"})
    people["label"] = people.patient % 2
    features = rng.normal(size=(n, 256)) + people.label.to_numpy()[:, None] / 20
    with tempfile.TemporaryDirectory() as folder:
        probe.save_probe(Path(folder), people, {}, features, people)
        runs_of = {("wsp", seed): {"folder": Path(folder)} for seed in range(2 if quick else 20)}
        yield compare(
            f"probe, {len(runs_of)} runs x 5 deals x 5 folds, {n} slices, 2 processes",
            lambda: audit.repeat_folds(runs_of, ["d1"], range(5), 0.01, 5),
            lambda: audit.repeat_folds(runs_of, ["d1"], range(5), 0.01, 5, workers=2),
            1,
        )
    reduce = UMAP(n_neighbors=15, random_state=0, n_jobs=1).fit_transform
    timed(lambda: reduce(features[:100]))
    yield {"what": f"UMAP, {n} slices, 256 features", "ours_s": timed(lambda: reduce(features))}


def bench_devices(runs: int, quick: bool):
    """One process against two, a thread or a card each: the same batch shared (strong scaling), and
    twice the batch (weak). Nothing where one card is all there is."""
    if DEVICE.type == "cuda" and torch.cuda.device_count() < 2:
        return
    size, n = (160, 4) if quick else (160, 64)

    def seconds(processes: int, batch: int) -> float:
        launch = f"-m torch.distributed.run --standalone --nproc-per-node {processes}"
        work = [str(HERE / "devices.py"), "tiny", str(size), str(batch), str(runs)]
        found = subprocess.run(
            [sys.executable, *launch.split(), *work], capture_output=True, text=True, check=True
        )
        return float(found.stdout.split()[-1])

    alone, strong, weak = seconds(1, n), seconds(2, n), seconds(2, 2 * n)
    step = f"step, tiny, {size} px, two processes instead of one"
    for what, after, work in (("same batch", strong, 1), ("twice the batch", weak, 2)):
        ratio = work * alone / after
        row = {"what": f"{step}, {what} ({work * n})", "plain_s": alone, "ours_s": after}
        note = f"efficiency {ratio / 2:.0%}"
        yield row | {"times_faster": ratio, "note": note, "panel": f"processes ({what})", "x": 2}


def read_batches(folder: str, n: int) -> None:
    """What a pretraining reads: 100 batches of 64 slices of a memory-mapped store."""
    images = np.load(f"{folder}/slices.npy", mmap_mode="r")
    patients = np.arange(n) * min(2799, n // 8) // n
    read = reader(images, torch.device("cpu"))
    for batch in OneSlicePerPatient(patients, patients % 4, 64, 100):
        read(np.array(batch))


TOPICS = {
    name.removeprefix("bench_"): work
    for name, work in globals().items()
    if name.startswith("bench_")
}


def draw(table: pd.DataFrame, file: Path) -> None:
    """Cost against batch size, slices, image size and processes: plain and ours."""
    table = table[table.panel.notna()].copy()
    table["panel"] = table.panel.str.replace(r"processes.*", "processes (step)", regex=True)
    fig, axes = plt.subplots(
        1, table.panel.nunique(), figsize=(13, 3), squeeze=False, layout="constrained"
    )
    for axis, (panel, rows) in zip(axes.flat, table.groupby("panel", sort=False), strict=True):
        axis.set(xlabel=panel, xscale="log", yscale="log")
        if panel.startswith("processes"):
            for row in rows.itertuples():
                label = row.what.split(", ")[-1]
                axis.plot([1, 2], [row.plain_s, row.ours_s], "o-", label=label)
            axis.set(xscale="linear", yscale="linear", xticks=[1, 2], ylim=(0, None))
        else:
            rows = rows.sort_values("x")
            axis.plot(rows.x, rows.plain_s, "o--", color="gray", label="plain")
            axis.plot(rows.x, rows.ours_s, "o-", label="ours")
            axis.set_xticks(rows.x, [f"{x:g}" for x in rows.x], minor=False)
            axis.minorticks_off()
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
            axis.yaxis.set_major_formatter("{x:g}")
        axis.legend(fontsize=8)
    axes[0, 0].set_ylabel("seconds")
    fig.suptitle(machine(), fontsize=9)
    plots.save_figure(fig, file.parent, file.stem)
    plt.close(fig)


def publish(table: pd.DataFrame, page: Path) -> None:
    """Put a table of each machine between the two marks of the page."""

    def number(value, digits=3):
        if pd.isna(value):
            return ""
        return f"{value:.0f}" if value >= 100 else f"{value:#.{digits}g}".rstrip(".")

    lines = []
    for name, rows in table.groupby("machine", sort=False):
        lines += [f"{name}.", ""]
        lines += [
            "| what | plain, s | ours, s | times faster | peak, MB | note |",
            "|" + "---|" * 6,
        ]
        for row in rows.itertuples():
            cells = [row.what, number(row.plain_s), number(row.ours_s), number(row.times_faster, 2)]
            cells += ["" if pd.isna(row.peak_mb) else f"{row.peak_mb:.0f}"]
            lines.append(f"| {' | '.join([*cells, '' if pd.isna(row.note) else row.note])} |")
        lines.append("")
    text = page.read_text(encoding="utf-8")
    head, rest = text.split("<!-- results -->")
    tail = rest.split("<!-- end of results -->")[1]
    part = page.with_suffix(".part")
    middle = "\n".join(lines)
    text = f"{head}<!-- results -->\n{middle}<!-- end of results -->{tail}"
    part.write_text(text, encoding="utf-8")
    part.replace(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("topics", nargs="*", help=f"of {', '.join(TOPICS)}; all if none")
    parser.add_argument("--runs", type=at_least_one, default=7)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs")
    options = parser.parse_args()
    if unknown := set(options.topics) - set(TOPICS):
        parser.error(f"no topic {', '.join(unknown)}; there are {', '.join(TOPICS)}")
    rows = []
    for topic in tqdm(options.topics or TOPICS):
        for row in TOPICS[topic](options.runs, options.quick):
            rows.append(row)
            cells = {name: f"{row[name]:.3g}" for name in NUMBERS if name in row}
            tqdm.write(", ".join([row["what"], *(f"{k} {v}" for k, v in cells.items())]))
    table = pd.DataFrame(rows).round(4)
    print(machine())
    print(table.to_string(index=False))
    if not options.quick and not options.topics:
        draw(table, HERE / "cost.png")
        results, part = HERE / "results.csv", HERE / "results.csv.part"
        before = pd.read_csv(results) if results.exists() else pd.DataFrame({"machine": []})
        others = before[before.machine != machine()]
        table = pd.concat([table.assign(machine=machine()), others])
        table.to_csv(part, index=False)
        part.replace(results)
        publish(table, HERE / "README.md")


if __name__ == "__main__":
    main()
