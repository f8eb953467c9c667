"""Batches of slices: one from each patient, classes balanced."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Sampler

from wspnb.folds import check_names, check_whole


class OneSlicePerPatient(Sampler[list[int]]):
    """Class-balanced batches of B patients with one random slice each (WSP, section 3).

    Each class gives B / C slices; where that is not whole, the places left over go round the
    classes from batch to batch. Within a class patients are drawn without replacement, then a slice
    of each, all equally likely.

    Small sets (the paper's variant for sets smaller than B): a class with fewer patients than
    places gives several slices per patient, as evenly as its slices allow, all different. *Paper
    silent*: the rule holds class by class, and only a class with fewer slices than places repeats
    slices.

    Batch number b depends on ``generator`` at construction, b and the epoch alone: set ``start`` to
    resume there. In a loop over epochs call ``set_epoch(epoch)`` before each, as for PyTorch's
    ``DistributedSampler`` (accelerate and Lightning do it); without it all epochs are the first.

    Args:
        patients: patient of each slice, ``(n_slices,)``, any type.
        labels: class of each slice, ``(n_slices,)``, equal for all slices of a patient; missing
            ones (None, NaN or -1) form a class of their own (*paper silent*); None = one class.
        batch_size: B, slices in a batch.
        n_batches: number of batches from 0 on, whatever ``start``.
        generator: gives the seed of all batches, drawn once; None = the global generator.

    Raises:
        ValueError: if lengths differ, a patient has two labels or no name, or there are fewer
            slices than B.
    """

    drop_last = True  # read, with batch_size, by accelerate: every batch is full

    def __init__(self, patients, labels, batch_size: int, n_batches: int, generator=None):
        names = pd.Series(patients, dtype=object).to_numpy()  # NaN of a list stays NaN
        patient, _ = pd.factorize(names)  # (n_slices,) numbers from 0, in order of appearance
        labels = np.zeros(len(names)) if labels is None else np.asarray(labels)
        label, names_of = pd.factorize(labels, sort=True)  # as they are: 2**60 + 1 is no float
        label = np.where(np.isin(label, np.flatnonzero(names_of == -1)), -1, label)  # missing
        if len(label) != len(patient):
            raise ValueError(f"{len(patient)} patients but {len(label)} labels: give one per slice")
        check_whole("batch_size", batch_size, 1)
        check_whole("n_batches", n_batches, 0)
        if len(patient) < batch_size:
            raise ValueError(f"batch_size={batch_size} but only {len(patient)} slices: lower it")
        check_names(names)

        # Slices sorted by patient: those of patient p are order[first[p] : first[p] + count[p]].
        self._order = np.argsort(patient, kind="stable")
        self._owner = patient[self._order]
        self._count = np.bincount(patient)
        self._first = np.cumsum(self._count) - self._count
        class_of_patient = label[self._order[self._first]]
        if len(mixed := np.flatnonzero(label != class_of_patient[patient])):
            raise ValueError(
                f"patient {names[mixed[0]]} has slices of different labels: give one per patient"
            )
        self._members = [np.flatnonzero(class_of_patient == c) for c in np.unique(label)]

        self.batch_size, self.n_batches = int(batch_size), int(n_batches)
        self.start, self.epoch, self._begun = 0, 0, False
        device = getattr(generator, "device", "cpu")  # whatever the default one
        self.seed = int(torch.randint(2**62, (), generator=generator, device=device))

    def __len__(self) -> int:
        return max(0, self.n_batches - self.start)

    def __iter__(self) -> Iterator[list[int]]:
        self._begun = True
        for number in range(self.start, self.n_batches):
            yield self.batch(number)

    @property
    def sampler(self) -> "OneSlicePerPatient":
        """Where Lightning, and accelerate on several devices, look for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Other batches from now on, the same ones for the same epoch (0, 1, ...). ``start`` counts
        for the epoch that it is used in; the next one is whole."""
        check_whole("epoch", epoch, 0)
        if self._begun and epoch != self.epoch:
            self.start, self._begun = 0, False
        self.epoch = int(epoch)

    def batch(self, number: int) -> list[int]:
        """Slice numbers of one batch, in random order."""
        random = np.random.default_rng([self.seed, number] + [self.epoch] * (self.epoch > 0))
        n_classes = len(self._members)
        places = np.full(n_classes, self.batch_size // n_classes)
        left = self.batch_size % n_classes
        places[(number * left + np.arange(left)) % n_classes] += 1
        drawn = [self._draw(m, k, random) for m, k in zip(self._members, places, strict=True)]
        return random.permutation(np.concatenate(drawn)).tolist()

    def _draw(self, members: np.ndarray, n: int, random: np.random.Generator) -> np.ndarray:
        """Numbers of n slices of one class, whose patients are ``members``."""
        if n <= len(members):
            chosen = random.choice(members, n, replace=False)
            return self._order[self._first[chosen] + random.integers(self._count[chosen])]
        # All slices of the class in rounds: first one of each patient, then a second of each, ...
        own = np.isin(self._owner, members)
        slices, patient = self._order[own], self._owner[own]
        turn = np.flatnonzero(own) - self._first[patient]
        shuffled = slices[np.lexsort((random.random(len(slices)), patient))]
        in_rounds = shuffled[np.lexsort((random.random(len(slices)), turn))]
        return np.resize(in_rounds, n)  # from the start again when n > len(slices)
