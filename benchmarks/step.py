"""Where a training step goes, and how near it is to what the device can do.

    python benchmarks/step.py [--backbone tiny] [--size 512] [--slices 64] [--steps 20] [--largest]
        [--table FILE]

(without a GPU 4 slices and 3 steps where nothing else is asked).

Prints seconds of each part of a step, images per second, the share of the time in which the device
works, arithmetic and bytes counted, the device's own limits as measured here (a large matrix
product, a large copy), the share of them that the step reaches, and the time of the paper's
pretraining (6,240 steps) at this speed. On a GPU `--largest` doubles the batch until it no longer
fits.
"""

import argparse
import contextlib
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
from ours import DEVICE, KIND, Step, at_least_one, machine, timed

PAPER_STEPS = 6240


def limits() -> tuple[float, float]:
    """Multiplications and additions per second of a matrix product in the step's precision, and
    bytes per second of a copy (read and written): medians of five."""
    n = 8192 if DEVICE.type == "cuda" else 2048
    a = torch.randn(n, n, device=DEVICE, dtype=KIND or torch.float32)
    block = torch.zeros(2**30 if DEVICE.type == "cuda" else 2**27, dtype=torch.uint8, device=DEVICE)
    rates = []
    for work, amount in ((lambda: a @ a, 2 * n**3), (block.clone, 2 * block.numel())):
        timed(work)
        rates.append(amount / sorted(timed(work) for _ in range(5))[2])
    return rates[0], rates[1]


def count(step: Step) -> tuple[float, float]:
    """Arithmetic of one step, forward and backward, and bytes that must move at the least: every
    layer's output written once and read twice (forward, backward), weights and Adam's state."""
    sizes = []
    hooks = [
        layer.register_forward_hook(lambda layer, given, out: sizes.append(out.nbytes))
        for layer in step.network.modules()
        if not list(layer.children())
    ]
    with FlopCounterMode(display=False) as counter:
        step()
    for hook in hooks:
        hook.remove()
    weights = sum(p.nbytes for p in step.network.parameters())
    return counter.get_total_flops(), 3 * sum(sizes) + 9 * weights


def utilisation(step: Step, steps: int) -> float:
    """Share of the time in which the device works, without waiting between the parts: of a GPU its
    kernels' seconds (by torch's profiler) over those of the clock, of a CPU its threads' seconds,
    waiting for one another included, over those of all cores that torch uses."""
    recorder = profile(activities=[ProfilerActivity.CUDA]) if DEVICE.type == "cuda" else None
    with recorder or contextlib.nullcontext():
        begin = time.process_time()
        whole = timed(lambda: [step() for _ in range(steps)])
        spent = time.process_time() - begin
    if recorder is None:
        return spent / torch.get_num_threads() / whole
    kernels = [event for event in recorder.events() if event.device_type == DeviceType.CUDA]
    kernels = [event for event in kernels if not event.is_user_annotation]  # Adam's span of kernels
    return sum(event.self_device_time_total for event in kernels) / 1e6 / whole


def largest(backbone: str, size: int) -> int:
    """Largest power of two of slices in a batch that fits on the card; 0 if two do not."""
    fits, n = 0, 2
    while True:
        try:
            Step(backbone, size, n)()
        except torch.OutOfMemoryError:
            return fits
        finally:
            torch.cuda.empty_cache()
        fits, n = n, 2 * n


def main() -> None:
    gpu = DEVICE.type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet18", choices=["tiny", "resnet18"])
    parser.add_argument("--size", type=at_least_one, default=512)
    parser.add_argument("--slices", type=at_least_one, default=64 if gpu else 4)
    parser.add_argument("--steps", type=at_least_one, default=20 if gpu else 3)
    parser.add_argument("--largest", action="store_true")
    parser.add_argument("--table", type=Path, help="CSV that gets a row")
    asked = parser.parse_args()
    if asked.largest and not gpu:
        parser.error("--largest needs a GPU")
    print(machine(), f"precision {KIND or torch.float32}", sep="\n")
    step = Step(asked.backbone, asked.size, asked.slices)
    step(), step()
    # Without waiting between the parts, as in training; the parts apart.
    whole = timed(lambda: [step() for _ in range(asked.steps)]) / asked.steps
    for _ in range(asked.steps):
        step(step.part)
    parts = {name: sorted(found)[len(found) // 2] for name, found in step.seconds.items()}
    print(f"{asked.backbone}, {asked.slices} slices ({2 * asked.slices} views) of {asked.size} px")
    for name, seconds in parts.items():
        print(f"  {name:16s} {seconds:9.5f} s  {seconds / sum(parts.values()):4.0%}")
    print(f"  {'whole step':16s} {whole:9.5f} s, {2 * asked.slices / whole:.0f} views/s")
    busy = utilisation(step, asked.steps)
    print(f"  {'utilisation':16s} {busy:9.0%}")
    memory = torch.cuda.max_memory_allocated() if gpu else 0
    (flops, moved), (peak, bandwidth) = count(step), limits()
    print(
        f"arithmetic {flops / 1e9:.0f} GFLOP a step: {flops / whole / 1e12:.3g} TFLOP/s,", end=" "
    )
    print(f"{flops / whole / peak:.0%} of the measured {peak / 1e12:.3g}")
    print(
        f"bytes, at the least, {moved / 1e9:.2f} GB a step: {moved / whole / 1e9:.3g} GB/s,",
        end=" ",
    )
    print(f"{moved / whole / bandwidth:.0%} of the measured {bandwidth / 1e9:.3g}")
    print(f"{PAPER_STEPS} steps: {PAPER_STEPS * whole / 60:.1f} min")
    if asked.table:
        row = {"machine": machine(), "backbone": asked.backbone, "size": asked.size}
        row |= {"slices": asked.slices, "step_s": whole, "utilisation": busy}
        row |= {"tflops": flops / whole / 1e12, "peak_tflops": peak / 1e12}
        row |= {"gb_per_s": moved / whole / 1e9, "peak_gb_per_s": bandwidth / 1e9}
        table = pd.DataFrame([row | {"memory_gib": memory / 2**30}]).round(5)
        table.to_csv(asked.table, mode="a", header=not asked.table.exists(), index=False)
    if gpu:
        print(f"peak memory {memory / 2**30:.1f} GiB")
    if asked.largest:
        print(f"largest batch that fits: {largest(asked.backbone, asked.size)} slices")


if __name__ == "__main__":
    main()
