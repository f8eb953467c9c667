"""The pretraining step of notebook 02 on random bytes, and what all benchmarks share."""

import argparse
import os
import platform
import time
from pathlib import Path

import torch

from wspnb.augment import augment
from wspnb.losses import contrastive_loss
from wspnb.methods import pair_kernel
from wspnb.models import build_encoder, build_head
from wspnb.pretrain import pick_precision
from wspnb.workers import keep_memory

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KIND = {"bf16": torch.bfloat16}.get(pick_precision("auto"))  # None: float32
if DEVICE.type == "cpu":
    keep_memory()  # as trainings do; the plain versions profit as well


def machine() -> str:
    """Processor or card, cores, versions and the precision that trainings choose here."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":")[1]
            for line in info.read_text(encoding="utf-8").splitlines()
            if "model name" in line
        ]
        cpu = names[0].strip() if names else cpu
    card = torch.cuda.get_device_name(0) if DEVICE.type == "cuda" else "no GPU"
    precision = pick_precision("auto").replace("no", "float32")
    found = f"{cpu}, {os.cpu_count()} cores, {card}; {precision}; torch {torch.__version__}"
    return f"{found}, {platform.system()}"


def at_least_one(text: str) -> int:
    """A number of the command line."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value}: at least 1")
    return value


def timed(work) -> float:
    """Seconds of one call, the device's work included."""
    begin = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


class Step:
    """One step with n slices when called; its parts can be timed one by one.

    Args:
        backbone: of the encoder.
        size: of the images, pixels.
        n: slices in the batch; the store on the device holds twice as many.
        compiler: backend of ``torch.compile`` for the encoder; none if empty.
    """

    def __init__(self, backbone: str, size: int, n: int, compiler: str = ""):
        self.n, self.seconds = n, {}
        self.store = torch.randint(0, 256, (2 * n, 1, size, size), dtype=torch.uint8).to(DEVICE)
        self.labels, self.positions = torch.arange(2 * n) % 4, torch.rand(2 * n)
        encoder = build_encoder(backbone, "batch").to(DEVICE, memory_format=torch.channels_last)
        encoder = torch.compile(encoder, backend=compiler) if compiler else encoder
        self.network = torch.nn.Sequential(encoder, build_head(backbone).to(DEVICE))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-5)
        self.generator = torch.Generator().manual_seed(0)

    def part(self, name: str, work):
        """Run and time a part of the step, the device's work included."""
        kept = []
        seconds = timed(lambda: kept.append(work()))
        self.seconds.setdefault(name, []).append(seconds)
        return kept[0]

    def __call__(self, part=None):
        part = part or (lambda name, work: work())
        rows = torch.randperm(2 * self.n, generator=self.generator)[: self.n]
        images = part("read", lambda: self.store[rows.to(DEVICE, non_blocking=True)])
        views = part(
            "augment", lambda: torch.cat([augment(images, self.generator) for _ in range(2)])
        )
        pair = part("forward", lambda: self.embed(views))
        loss = part("kernel and loss", lambda: self.loss(pair, rows))
        part("backward", loss.backward)
        part("optimiser", self.optimizer.step)
        self.optimizer.zero_grad()

    def embed(self, views):
        with torch.autocast(DEVICE.type, KIND, enabled=KIND is not None):
            return self.network(views).chunk(2)

    def loss(self, pair, rows):
        kernel = pair_kernel("wsp", self.labels[rows], self.positions[rows])
        return contrastive_loss(*pair, kernel.to(DEVICE, non_blocking=True))
