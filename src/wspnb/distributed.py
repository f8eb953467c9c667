"""One batch on several devices: each holds its share of the patients, the loss sees all of them.

Started by ``torchrun``, every process runs notebook 02; without it all of this does nothing.
"""

import os

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from wspnb.pretrain import pick_precision
from wspnb.workers import keep_memory


def start(precision: str) -> Accelerator:
    """This process' device in one of accelerate's precisions, or "auto"; under torchrun it joins
    the others, on CPUs too.

    Raises:
        ValueError: another precision, or fp16 without a GPU, where accelerate would compute in
            float32 and say fp16.
    """
    alone = os.environ.get("WORLD_SIZE") == "1" and "MASTER_ADDR" not in os.environ
    if alone or not {"RANK", "WORLD_SIZE"} <= os.environ.keys():  # by hand, or of another tool
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            os.environ.pop(name, None)
    for name in [*os.environ]:  # settings of another project's `accelerate launch`
        if name.startswith("ACCELERATE_") and not name.endswith(("_DEVICE", "_CPU")):
            del os.environ[name]
    on_cpus = "RANK" in os.environ and not torch.cuda.is_available()
    if not torch.cuda.is_available():
        keep_memory()
    accelerator = Accelerator(cpu=on_cpus, mixed_precision=pick_precision(precision))
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("precision=fp16 needs a GPU: take auto, bf16 or no")
    return accelerator


def share(batch_size: int, rank: int, n_devices: int) -> Tensor:
    """Places of the batch that one device holds, ``(batch_size / n_devices,)``.

    The batch is drawn once, equal on all devices, so no slice stands on two of them; nor does a
    patient, unless the class has fewer patients than places and gives several slices of each.

    Raises:
        ValueError: if the batch cannot be divided equally.
    """
    if batch_size % n_devices:
        raise ValueError(f"batch_size={batch_size}: must be a multiple of the {n_devices} devices")
    return torch.arange(batch_size).chunk(n_devices)[rank]


def gather(embeddings: Tensor) -> Tensor:
    """Embeddings of the whole batch from those of each device, in the order of the devices.

    The gradient flows back to the device that an embedding came from, summed over the losses of all
    devices. Where each device's loss is the mean over its share of the anchors, the average over
    devices, which DistributedDataParallel takes, is the gradient of the whole batch's loss.

    Args:
        embeddings: ``(b, dim)``, equally many on each device.

    Returns:
        ``(n_devices * b, dim)``; the same tensor where there is one device.

    Raises:
        ValueError: on every process, if their numbers differ (on CPUs; a GPU would wait for it).
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return embeddings
    if embeddings.is_cpu:
        ends = torch.tensor([-len(embeddings), len(embeddings)])
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        fewest, most = -int(ends[0]), int(ends[1])
        if fewest < most:
            found = f"{fewest} to {most} embeddings on the devices"
            raise ValueError(f"{found}, {len(embeddings)} here: give equally many on each")
    return _Gather.apply(embeddings)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings):
        parts = [torch.empty_like(embeddings) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, embeddings.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        if torch.is_grad_enabled():
            raise RuntimeError("embeddings gathered from several devices have no second derivative")
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]
