"""Speed and memory against plain versions, side by side: ``make bench`` or
``python benchmarks/bench.py [TOPIC ...]``.

Every row is the median of runs taken in turn, plain and ours, in this one process; the ratio is
what counts. A run of all topics writes ``results.csv`` beside this file.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
import plain

from wspnb.augment import augment
from wspnb.data.slices import reader
from wspnb.kernels import pair_kernel, pair_weights
from wspnb.losses import contrastive_loss
from wspnb.models import build_encoder, build_head
from wspnb.pretrain import pick_precision
from wspnb.sampling import OneSlicePerPatient

HERE = Path(__file__).parent
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def timed(work) -> float:
    """Seconds of one call, the device's work included."""
    begin = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


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
        chain, generator = plain.five_passes(0.2), torch.Generator().manual_seed(0)
        chain[2].flags["size"] = (size, size)
        yield compare(
            f"augmentation, {n} images of {size} px",
            lambda images=images, chain=chain: chain(images),
            lambda images=images, g=generator: augment(images, g, translate=0.2),
            runs,
        )


def bench_loss(runs: int, quick: bool):
    for n in (16, 64) if quick else (64, 256, 1024, 2048, 4096):
        views = torch.randn(2 * n, 128, requires_grad=True)
        labels, positions = torch.arange(n) % 4, torch.rand(n)
        weights = plain.weights(labels, positions, 0.1)
        kernel = pair_kernel("wsp", labels, positions)

        def dense(views=views, weights=weights):
            plain.loss(*views.chunk(2), weights).backward()

        def ours(views=views, kernel=kernel):
            contrastive_loss(*views.chunk(2), kernel).backward()

        yield compare(f"loss and gradient, n = {n}", dense, ours, runs if n < 2000 else 3)
    n = 256 if quick else 16384
    code = f"""
import time, torch
from functools import partial
from wspnb.kernels import pair_kernel
from wspnb.losses import contrastive_loss
views, n = torch.randn(2, {n}, 128, requires_grad=True), {n}
kernel = partial(pair_kernel, "wsp", torch.arange(n) % 4, torch.rand(n), 0.1)
begin = time.perf_counter()
contrastive_loss(*views, kernel).backward()
seconds = time.perf_counter() - begin
peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")][0]
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
    people, n = (50, 1000) if quick else (2799, 100_000)
    patient = np.sort(np.random.default_rng(0).integers(people, size=n))
    patient[:people] = np.arange(people)
    patient.sort()
    label = patient % 4
    size, n_batches = (40, 250) if quick else (64, 156)
    yield compare(
        f"sampler set-up, {people} patients, {n} slices",
        lambda: plain.slices_of_patients(patient.tolist()),
        lambda: OneSlicePerPatient(patient, label, size, n_batches),
        1,
    )
    slices = {p: np.flatnonzero(patient == p).tolist() for p in range(people)}
    of = {p: p % 4 for p in range(people)}
    sampler = OneSlicePerPatient(patient, label, size, n_batches, torch.Generator().manual_seed(0))
    yield compare(
        "10,000 draws in balanced batches",
        lambda: list(plain.batches(slices, of, size, n_batches)),
        lambda: list(sampler),
        runs,
    )


def training_step(backbone: str, size: int, n: int, fast: bool):
    """One whole step on random bytes, plain or ours, as a function without arguments."""
    store = torch.randint(0, 256, (4 * n, 1, size, size), dtype=torch.uint8)
    labels, positions = torch.arange(4 * n) % 4, torch.rand(4 * n)
    encoder, head = build_encoder(backbone, "batch"), build_head(backbone)
    encoder, head = encoder.to(DEVICE), head.to(DEVICE)
    if fast:
        encoder, store = encoder.to(memory_format=torch.channels_last), store.to(DEVICE)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=1e-5)
    chain, generator = plain.five_passes(), torch.Generator().manual_seed(0)
    chain[2].flags["size"] = (size, size)
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(pick_precision("auto"))

    def step():
        rows = torch.randperm(4 * n, generator=generator)[:n]
        if fast:
            images = store[rows.to(store.device)]
            views = torch.cat([augment(images, generator) for _ in range(2)])
            with torch.autocast(DEVICE.type, kind, enabled=kind is not None):
                pair = head(encoder(views)).chunk(2)
            kernel = pair_kernel("wsp", labels[rows], positions[rows]).to(DEVICE)
            loss = contrastive_loss(*pair, kernel)
        else:
            images = store[rows].float().to(DEVICE) / 255
            views = torch.cat([chain(images) for _ in range(2)])
            weights = plain.weights(labels[rows], positions[rows], 0.1)
            loss = plain.loss(*(v.cpu() for v in head(encoder(views)).chunk(2)), weights)
            loss.item()  # a log line at every step
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def bench_step(runs: int, quick: bool):
    gpu = DEVICE.type == "cuda"
    sizes = [("tiny", 512, 64 if gpu else 8), ("resnet18", 512, 64 if gpu else 4)]
    sizes += [("tiny", 160, 64)]
    for backbone, size, n in [("tiny", 160, 2)] if quick else sizes:
        steps = [training_step(backbone, size, n, fast) for fast in (False, True)]
        row = compare(f"step, {backbone}, {n} slices of {size} px", *steps, runs)
        row["images_per_s"] = 2 * n / row["ours_s"]
        if gpu:
            row["peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
        yield row


def bench_memory(runs: int, quick: bool):
    """Batches from a store of the paper's size, a file with holes; memory of the process' own
    (Linux; pages of the file that the system caches do not count)."""
    n, size = (400, 64) if quick else (100_000, 512)
    with tempfile.TemporaryDirectory() as folder:
        code = f"""
import sys, time
sys.path.insert(0, {str(HERE)!r})
import bench
begin = time.perf_counter()
bench.read_batches({folder!r}, {n}, {size})
seconds = time.perf_counter() - begin
own = [line for line in open("/proc/self/status") if line.startswith("RssAnon")][0]
print(seconds, int(own.split()[1]) / 1024)
"""
        header = np.lib.format.open_memmap(
            f"{folder}/slices.npy", mode="w+", dtype=np.uint8, shape=(n, size, size)
        )
        del header  # written sparsely: the file has its full length and no blocks
        seconds, peak = in_new_process(code)
    what = f"sampler and 100 batches of 64 read, {n} slices of {size} px"
    yield {"what": what, "ours_s": seconds, "peak_mb": peak, "note": f"{n * size**2 / 1e9:.1f} GB"}


def bench_devices(runs: int, quick: bool):
    """One process against two, a thread or a card each: the same batch shared (strong scaling), and
    twice the batch (weak)."""
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
        yield row | {"times_faster": ratio, "note": f"efficiency {ratio / 2:.0%}"}


def read_batches(folder: str, n: int, size: int) -> None:
    """What a pretraining reads: 100 batches of 64 slices of a memory-mapped store."""
    images = np.load(f"{folder}/slices.npy", mmap_mode="r")
    patients = np.arange(n) * 2799 // n
    read = reader(images, torch.device("cpu"))
    for batch in OneSlicePerPatient(patients, patients % 4, 64, 100):
        read(np.array(batch))


TOPICS = {
    name.removeprefix("bench_"): work
    for name, work in globals().items()
    if name.startswith("bench_")
}


def machine() -> str:
    """Processor or card, cores, versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":")[1] for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0].strip() if names else cpu
    card = torch.cuda.get_device_name(0) if DEVICE.type == "cuda" else "no GPU"
    return f"{cpu}, {os.cpu_count()} cores, {card}; torch {torch.__version__}, {platform.system()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("topics", nargs="*", help=f"of {', '.join(TOPICS)}; all if none")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs")
    options = parser.parse_args()
    if unknown := set(options.topics) - set(TOPICS):
        parser.error(f"no topic {', '.join(unknown)}; there are {', '.join(TOPICS)}")
    rows = []
    for topic in tqdm(options.topics or TOPICS):
        rows += TOPICS[topic](options.runs, options.quick)
    table = pd.DataFrame(rows).round(4)
    print(machine())
    print(table.to_string(index=False))
    if not options.quick and not options.topics:
        part = HERE / "results.csv.part"
        table.assign(machine=machine()).to_csv(part, index=False)
        part.replace(HERE / "results.csv")


if __name__ == "__main__":
    main()
