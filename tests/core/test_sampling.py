import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import chisquare

from wspnb.sampling import OneSlicePerPatient


def cohort(patients_per_class, slices=5):
    """Patients, labels of a cohort; patient k has ``slices`` slices (or slices[k])."""
    label_of = np.repeat(np.arange(len(patients_per_class)), patients_per_class)
    counts = np.broadcast_to(slices, len(label_of))
    return np.repeat(np.arange(len(label_of)), counts), np.repeat(label_of, counts)


def sampler(patients, labels, batch_size, n_batches, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return OneSlicePerPatient(patients, labels, batch_size, n_batches, generator)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_slice_per_patient_and_exact_balance(seed):
    patients, labels = cohort([40, 17, 16, 30], slices=np.arange(103) % 7 + 1)
    order = np.random.default_rng(seed).permutation(len(patients))  # slices in any order
    patients, labels = patients[order], labels[order]
    batches = list(sampler(patients, labels, 64, 50, seed))
    assert len(batches) == 50
    for batch in batches:
        assert len(batch) == 64 and all(type(i) is int for i in batch)
        assert len(set(patients[batch])) == 64
        assert np.bincount(labels[batch]).tolist() == [16] * 4


def test_places_left_over_go_round_the_classes():
    patients, labels = cohort([10, 10, 10, 10])
    counts = [np.bincount(labels[b], minlength=4) for b in sampler(patients, labels, 7, 4)]
    assert all(c.min() == 1 and c.max() == 2 for c in counts)
    assert np.sum(counts, 0).tolist() == [7] * 4
    # Fewer places than classes.
    counts = [np.bincount(labels[b], minlength=4) for b in sampler(patients, labels, 3, 4)]
    assert np.sum(counts, 0).tolist() == [3] * 4


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_patients_and_their_slices_are_drawn_uniformly(seed):
    patients, labels = cohort([12, 30], slices=4)
    drawn = np.concatenate(list(sampler(patients, labels, 8, 3000, seed)))
    for c in (0, 1):
        counts = np.bincount(drawn, minlength=len(patients))[labels == c]
        assert chisquare(counts).pvalue > 1e-3
        assert counts.sum() == 3000 * 4


def test_classes_are_mixed_within_the_batch():
    patients, labels = cohort([50, 50])
    first_place = [labels[batch[0]] for batch in sampler(patients, labels, 8, 400)]
    assert 0.42 < np.mean(first_place) < 0.58


def test_resume_is_exact():
    patients, labels = cohort([9, 5, 3])
    whole = list(sampler(patients, labels, 9, 20, seed=4))
    resumed = sampler(patients, labels, 9, 20, seed=4)
    resumed.start = 13
    assert len(resumed) == 7
    assert list(resumed) == whole[13:]
    assert list(resumed) == whole[13:]  # iterating changes nothing
    longer = sampler(patients, labels, 9, 30, seed=4)
    assert list(longer)[:20] == whole
    resumed.start = 20
    assert len(resumed) == 0 and list(resumed) == []


def test_only_the_generator_at_construction_matters():
    patients, labels = cohort([9, 5, 3])
    first = sampler(patients, labels, 9, 5, seed=1)
    generator = torch.Generator().manual_seed(1)
    second = OneSlicePerPatient(patients, labels, 9, 5, generator)
    expected = list(first)
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    states = torch.get_rng_state(), random.getstate()
    torch.rand(3, generator=generator)
    assert list(second) == expected
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert list(sampler(patients, labels, 9, 5, seed=2)) != expected
    # The next sampler of the same generator draws other batches.
    assert list(OneSlicePerPatient(patients, labels, 9, 5, generator)) != expected


def test_small_set_repeats_patients_evenly_with_distinct_slices():
    # The severe class: 3 patients for 8 places.
    patients, labels = cohort([20, 3], slices=10)
    for batch in sampler(patients, labels, 16, 30):
        rare = [i for i in batch if labels[i] == 1]
        assert len(rare) == len(set(rare)) == 8
        assert sorted(np.bincount(patients[rare])[20:]) == [2, 3, 3]
        assert len({patients[i] for i in batch if labels[i] == 0}) == 8


def test_small_set_takes_more_from_patients_who_have_more():
    patients, labels = cohort([3], slices=[1, 2, 20])
    for batch in sampler(patients, labels, 9, 20):
        assert len(set(batch)) == 9
        assert np.bincount(patients[batch]).tolist() == [1, 2, 6]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_small_set_is_uniform(seed):
    patients, labels = cohort([3, 9], slices=4)
    drawn = np.concatenate(list(sampler(patients, labels, 10, 1500, seed)))
    for c in (0, 1):
        assert chisquare(np.bincount(drawn, minlength=48)[labels == c]).pvalue > 1e-3


def test_slices_repeat_only_when_a_class_has_too_few():
    patients, labels = cohort([30, 1], slices=3)
    for batch in sampler(patients, labels, 16, 5):
        rare = [i for i in batch if labels[i] == 1]
        assert sorted(np.bincount(rare)[90:]) == [2, 3, 3]


@pytest.mark.parametrize("sizes", [[1], [2, 1], [1, 1, 40]])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_never_endless(sizes, batch_size):
    patients, labels = cohort(sizes, slices=6)
    assert [len(b) for b in sampler(patients, labels, batch_size, 3)] == [batch_size] * 3


def test_any_kind_of_names_and_missing_labels():
    patients = ["a", "a", "b", "c", "c", "d"]
    for labels in (
        None,
        [None] * 6,
        [np.nan] * 6,
        pd.Series([pd.NA] * 6, dtype="Int64"),
        torch.zeros(6),
    ):
        for batch in sampler(patients, labels, 4, 5):
            assert sorted(np.array(patients)[batch]) == ["a", "b", "c", "d"]
    # Missing labels among others: a class of their own.
    some = pd.Series([0, 0, pd.NA, 1, 1, pd.NA], dtype="Int64")
    for batch in sampler(pd.Series(patients), some, 3, 5):
        assert sorted(str(some[i]) for i in batch) == ["0", "1", "<NA>"]
    for batch in sampler(torch.tensor([5, 5, 3, 7, 7, 9]), ["x", "x", "y", "x", "x", "y"], 2, 5):
        assert len(batch) == 2


def test_dataloader_uses_it_as_batch_sampler():
    patients, labels = cohort([6, 6])
    data = torch.utils.data.TensorDataset(torch.tensor(patients))
    loader = torch.utils.data.DataLoader(data, batch_sampler=sampler(patients, labels, 4, 7))
    batches = [batch[0] for batch in loader]
    assert len(loader) == len(batches) == 7
    assert all(len(b.unique()) == 4 for b in batches)


def test_same_batches_in_another_process():
    code = (
        "import torch, numpy as np; from wspnb.sampling import OneSlicePerPatient;"
        "s = OneSlicePerPatient(np.arange(30) // 3, np.arange(30) // 15, 6, 3,"
        " torch.Generator().manual_seed(7)); print(list(s))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = sampler(np.arange(30) // 3, np.arange(30) // 15, 6, 3, seed=7)
    assert out.stdout.strip() == str(list(here))


def test_errors_say_what_to_do():
    patients, labels = cohort([3, 3])
    with pytest.raises(ValueError, match="but only 30 slices: lower it"):
        sampler(patients, labels, 64, 1)
    with pytest.raises(ValueError, match="one per slice"):
        sampler(patients, labels[:-1], 4, 1)
    for size in (0, 2.5):
        with pytest.raises(ValueError, match=f"batch_size={size}: takes a whole number from 1"):
            sampler(patients, labels, size, 1)
    assert len(next(iter(sampler(patients, labels, 4.0, 1)))) == 4
    assert sorted(next(iter(sampler(patients, labels, 30, 1)))) == list(range(30))  # all there are
    mixed = labels.copy()
    mixed[-1] = 0
    with pytest.raises(ValueError, match="patient 5 has slices of different labels"):
        sampler(patients, mixed, 4, 1)
    with pytest.raises(ValueError, match="2 slices without patient"):
        sampler(["a", None, "b", None], None, 2, 1)
    with pytest.raises(ValueError, match="2 slices without patient"):  # no patient called nan
        sampler(["a", np.nan, "b", np.nan], None, 2, 1)


def test_epochs_differ_and_repeat():
    patients = np.repeat(np.arange(40), 20)
    sampler = OneSlicePerPatient(patients, patients % 2, 16, 5, torch.Generator().manual_seed(0))
    first = list(sampler)
    assert list(sampler) == first  # without a word, the same
    epochs = []
    for epoch in range(10):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert epochs[0] == first
    assert len({str(batches) for batches in epochs}) == 10
    assert len(np.unique(epochs)) > 450  # 800 draws from 800 slices; one epoch has 80
    sampler.set_epoch(3)
    assert sampler.batch(2) == epochs[3][2]
    with pytest.raises(ValueError, match="epoch=-1"):
        sampler.set_epoch(-1)


def test_empty_names_are_no_patients():
    with pytest.raises(ValueError, match="2 slices without patient"):
        OneSlicePerPatient(["a", "", "b", " "], None, 2, 1)
    with pytest.raises(ValueError, match="patient 7 as number and as text"):
        OneSlicePerPatient(np.array([7, 7, "7"], dtype=object), None, 2, 1)


def test_all_ways_to_write_a_missing_label_are_one_class():
    labels = [0, 0, -1, -1, np.nan, np.nan]
    for batch in sampler(list("aabbcc"), labels, 2, 20):
        assert sorted(number < 2 for number in batch) == [False, True]


@pytest.mark.parametrize("value", [2.5, "4", None, -1, True])
def test_sizes_and_epochs_are_whole_numbers(value):
    for wrong in ({"batch_size": value}, {"n_batches": value}):
        name = next(iter(wrong))
        with pytest.raises(ValueError, match=f"^{name}={value!r}: takes a whole number"):
            OneSlicePerPatient([1, 1, 2, 2], None, **{"batch_size": 2, "n_batches": 3} | wrong)
    with pytest.raises(ValueError, match=f"^epoch={value!r}: takes a whole number from 0"):
        OneSlicePerPatient([1, 2], None, 2, 3).set_epoch(value)


@pytest.mark.parametrize("first", ["start", "epoch"])
def test_the_epochs_after_a_resumed_one_are_whole(first):
    patients, labels = cohort([9, 5, 3])
    whole, resumed = (sampler(patients, labels, 9, 5.0, seed=4) for _ in range(2))
    if first == "start":
        resumed.start = 3
    resumed.set_epoch(1)
    if first == "epoch":
        resumed.start = 3
    whole.set_epoch(1)
    assert list(resumed) == list(whole)[3:]
    for epoch in (2, 3):
        resumed.set_epoch(epoch)
        whole.set_epoch(epoch)
        assert list(resumed) == list(whole) and len(resumed) == 5


def test_whoever_looks_for_a_sampler_in_the_batch_sampler_finds_it():
    """Lightning, and accelerate on several devices, call set_epoch on ``batch_sampler.sampler``."""
    patients, labels = cohort([20, 20])
    ours = sampler(patients, labels, 8, 3)
    first = list(ours)
    ours.sampler.set_epoch(1)
    assert list(ours) != first and ours.epoch == 1


def test_large_codes_are_classes_of_their_own_beside_missing_ones():
    labels = np.repeat([2**60, 2**60 + 1, 2**60 + 2, -1], 8)
    ours = sampler(np.arange(32), labels, 8, 5)
    assert all((np.unique(labels[batch], return_counts=True)[1] == 2).all() for batch in ours)


def test_batches_are_those_of_the_generator_on_any_default_device():
    plain, pairs = list(range(8)), [("a", k) for k in range(8)]  # a patient by two keys
    first = OneSlicePerPatient(plain, None, 4, 1, torch.Generator().manual_seed(0)).batch(0)
    with torch.device("meta"):
        again = OneSlicePerPatient(pairs, None, 4, 1, torch.Generator().manual_seed(0)).batch(0)
    assert again == first
