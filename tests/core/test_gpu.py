"""What only a card can show: numbers equal to the CPU's, and no step that waits for the host."""

import copy
from functools import partial

import pytest
import torch

from wspnb.augment import augment
from wspnb.data.slices import reader
from wspnb.losses import contrastive_loss
from wspnb.methods import pair_kernel
from wspnb.models import build_encoder, build_head

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(n: int, size: int):
    images = torch.randint(0, 256, (n, 1, size, size), generator=seeded(0), dtype=torch.uint8)
    labels = torch.randint(0, 4, (n,), generator=seeded(1))
    return images, labels, torch.rand(n, generator=seeded(2))


def test_views_are_equal_on_the_gpu():
    images = torch.nn.functional.interpolate(torch.rand(16, 1, 12, 12, generator=seeded(0)), 96)
    views = augment(images.cuda(), seeded(1))
    assert views.is_cuda
    # Nearest-neighbour edges are steps of up to 1: a pixel's weight may differ by its rounding.
    torch.testing.assert_close(views.cpu(), augment(images, seeded(1)), rtol=0, atol=1e-3)


@pytest.mark.parametrize("n", [48, 300])  # both forms of the loss
@pytest.mark.parametrize("method", ["wsp", "simclr"])
def test_loss_and_gradient_are_those_of_the_cpu(method, n):
    z = torch.randn(2, n, 64, generator=seeded(3), dtype=torch.float64)
    _, labels, positions = batch(n, 8)
    kernel = partial(pair_kernel, method, labels, positions)
    found = []
    for device in ("cpu", "cuda"):
        views = z.to(device, copy=True).requires_grad_()
        loss = contrastive_loss(views[0], views[1], kernel().to(device))
        loss.backward()
        found.append((loss.detach().cpu(), views.grad.cpu()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backbone", ["tiny", "resnet18"])
def test_a_step_moves_the_weights_as_on_the_cpu(backbone, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    images, labels, positions = batch(16, 160)
    found = []
    for device in ("cpu", "cuda"):
        encoder, head = build_encoder(backbone, "batch").to(device), build_head(backbone).to(device)
        views = torch.cat([augment(images.to(device), seeded(i)) for i in (4, 5)])
        kernel = pair_kernel("wsp", labels, positions).to(device)
        loss = contrastive_loss(*head(encoder(views)).chunk(2), kernel)
        loss.backward()
        gradient = torch.cat([p.grad.flatten().cpu() for p in encoder.parameters()])
        found.append((loss.item(), gradient))
    assert found[1][0] == pytest.approx(found[0][0], rel=2e-4)
    cosine = torch.nn.functional.cosine_similarity(found[0][1], found[1][1], dim=0)
    assert cosine > 0.999


@pytest.mark.parametrize("backbone", ["tiny", "resnet18"])
def test_no_step_waits_for_the_host(backbone):
    images, labels, positions = batch(64, 160)
    device = torch.device("cuda")
    encoder = build_encoder(backbone, "batch").to(device, memory_format=torch.channels_last)
    head = build_head(backbone).to(device)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], fused=True)
    read, generator = reader(images[:, 0].numpy(), device, hold=True), seeded(0)

    def step():
        views = torch.cat([augment(read(range(64)), generator) for _ in range(2)])
        with torch.autocast("cuda", torch.bfloat16):
            view_1, view_2 = head(encoder(views)).chunk(2)
        kernel = pair_kernel("wsp", labels, positions).pin_memory().to(device, non_blocking=True)
        contrastive_loss(view_1, view_2, kernel).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    control = torch.ones((), device=device)  # filled on the card, no copy
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns() as caught:
            step()
            control.item()  # this does wait
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(w.message) for w in caught if "synchroniz" in str(w.message)]
    lines = sorted({f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)})
    assert len(waits) >= 1, "the control was not seen"
    assert len(waits) == 1, f"{len(waits) - 1} waits: {lines}"


def test_a_copy_trains_in_bf16_to_a_near_loss():
    images, labels, positions = batch(64, 96)
    start = [make("tiny_padded").cuda() for make in (build_encoder, build_head)]
    losses = []
    for enabled in (False, True):
        encoder, head = copy.deepcopy(start[0]), copy.deepcopy(start[1])
        optimizer, generator = (
            torch.optim.Adam([*encoder.parameters(), *head.parameters()]),
            seeded(0),
        )
        for _ in range(10):
            views = torch.cat([augment(images.cuda(), generator) for _ in range(2)])
            with torch.autocast("cuda", torch.bfloat16, enabled=enabled):
                view_1, view_2 = head(encoder(views)).chunk(2)
            kernel = pair_kernel("simclr", labels, positions).cuda()
            loss = contrastive_loss(view_1, view_2, kernel)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
