"""What the fast versions are measured against: the same steps as one would first write them."""

import random

import kornia.augmentation as K
import numpy as np
import torch
from sklearn.metrics.pairwise import rbf_kernel

from wspnb.models import build_encoder, build_head


def five_passes(size: int, translate: float = 0.0) -> torch.nn.Module:
    """Kornia's flips, crop, translation and rotation one after the other."""
    return torch.nn.Sequential(
        K.RandomHorizontalFlip(p=0.5),
        K.RandomVerticalFlip(p=0.5),
        K.RandomResizedCrop((size, size), scale=(0.7, 0.7), p=0.5),
        K.RandomAffine(0.0, translate=(translate, translate), p=0.5),
        K.RandomRotation(30.0, p=0.5),
    )


def weights(labels, positions, sigma: float) -> torch.Tensor:
    """Pair weights of a batch seen twice, by scikit-learn, in Python's hands at every step."""
    position = np.tile(np.asarray(positions, float), 2)[:, None]
    label = np.tile(np.asarray(labels), 2)
    kernel = rbf_kernel(position, gamma=1 / (2 * sigma**2)) * (label[:, None] == label)
    np.fill_diagonal(kernel, 0)
    return torch.from_numpy(kernel / kernel.sum(1, keepdims=True)).float()


def loss(view_1, view_2, weights: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """The equation with whole matrices in float32."""
    views = torch.nn.functional.normalize(torch.cat([view_1, view_2]), dim=1)
    logits = views @ views.T / temperature
    itself = torch.eye(len(views), dtype=torch.bool)
    log_sum = torch.logsumexp(logits.masked_fill(itself, -torch.inf), 1, keepdim=True)
    return -(weights * (logits - log_sum)).sum(1).mean()


def slices_of_patients(patients) -> dict:
    """Slices of each patient by a scan of all slices for each patient."""
    names = list(patients)
    return {p: [i for i, name in enumerate(names) if name == p] for p in dict.fromkeys(names)}


def batches(slices: dict, label: dict, batch_size: int, n_batches: int):
    """One slice per patient, balanced, by drawing patients until one fits."""
    people, classes = list(slices), sorted(set(label.values()))
    for _ in range(n_batches):
        room, chosen = {c: batch_size // len(classes) for c in classes}, []
        taken = set()
        while any(room.values()):
            patient = random.choice(people)
            if patient not in taken and room[label[patient]]:
                taken.add(patient)
                room[label[patient]] -= 1
                chosen.append(random.choice(slices[patient]))
        yield chosen


def step(backbone: str, size: int, n: int, device: torch.device):
    """One training step in float32 on random bytes, as a function without arguments."""
    store = torch.randint(0, 256, (2 * n, 1, size, size), dtype=torch.uint8)
    labels, positions = torch.arange(2 * n) % 4, torch.rand(2 * n)
    network = torch.nn.Sequential(build_encoder(backbone, "batch"), build_head(backbone)).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)
    chain = five_passes(size)

    def work():
        rows = torch.randperm(2 * n)[:n]
        images = store[rows].float().to(device) / 255
        pair = network(torch.cat([chain(images) for _ in range(2)])).cpu().chunk(2)
        value = loss(*pair, weights(labels[rows], positions[rows], 0.1))
        value.item()  # a log line at every step
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return work
