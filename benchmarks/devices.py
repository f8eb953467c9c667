"""Seconds of a step on several processes: ``torchrun --standalone --nproc-per-node N devices.py
BACKBONE PIXELS SLICES STEPS``; SLICES is the whole batch, shared by all."""

import statistics
import sys
import time

import torch
from torch.nn.parallel import DistributedDataParallel

from wspnb.augment import augment
from wspnb.distributed import gather, share, start
from wspnb.losses import contrastive_loss
from wspnb.methods import pair_kernel
from wspnb.models import build_encoder, build_head


def main() -> None:
    backbone, (size, n, n_steps) = sys.argv[1], map(int, sys.argv[2:5])
    accelerator = start("auto")
    if accelerator.device.type == "cpu":
        torch.set_num_threads(1)
    mine = share(n, accelerator.process_index, accelerator.num_processes)
    network = torch.nn.Sequential(build_encoder(backbone, "batch"), build_head(backbone))
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)
    network, optimizer = accelerator.prepare(network, optimizer)
    assert accelerator.num_processes == 1 or isinstance(network, DistributedDataParallel)
    images = torch.randint(0, 256, (len(mine), 1, size, size), dtype=torch.uint8)
    images, generator = images.to(accelerator.device), torch.Generator().manual_seed(0)
    kernel = pair_kernel("wsp", torch.arange(n) % 4, torch.rand(n, generator=generator))
    seconds = []
    for _ in range(n_steps + 1):
        accelerator.wait_for_everyone()
        begin = time.perf_counter()
        views = torch.cat([augment(images, generator, mine, n) for _ in range(2)])
        pair = (gather(half) for half in network(views).chunk(2))
        anchors = mine.to(views.device) if len(mine) < n else None
        loss = contrastive_loss(*pair, kernel.to(views.device), anchors=anchors)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - begin)
    if accelerator.is_main_process:
        print("seconds", statistics.median(seconds[1:]))
    accelerator.end_training()


if __name__ == "__main__":
    main()
