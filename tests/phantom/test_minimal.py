"""The minimal cohort does what its parameters say."""

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from wspnb import probe
from wspnb.phantom.anatomy import BANDS
from wspnb.phantom.minimal import Minimal, draw_cohort, draw_patients, sign_weight, split
from wspnb.phantom.patients import COUNTS, READING_BORDER


def of(cohort, name):
    rows = (cohort.table.cohort == name).to_numpy()
    return cohort.table[rows], cohort.inputs[torch.from_numpy(rows)]


def test_same_seed_same_data_and_another_seed_other_data():
    first, again, other = (draw_cohort(Minimal(seed=s)) for s in (3, 3, 4))
    assert first.table.equals(again.table)
    assert torch.equal(first.plain(first.inputs), again.plain(again.inputs))
    assert not torch.equal(first.plain(first.inputs[:5]), other.plain(first.inputs[:5]))


@pytest.mark.parametrize("accuracy", [0.6, 0.82, 0.97])
def test_reader_accuracy_is_measured_as_asked(accuracy):
    people = draw_patients(Minimal(reader_accuracy=accuracy, seed=1), "d1", scale=400)
    says_ill = people.reading >= 1
    balanced = (says_ill[people.label == 1].mean() + (~says_ill)[people.label == 0].mean()) / 2
    assert balanced == pytest.approx(accuracy, abs=0.006)  # 3 SE of 42,400 patients


def test_patients_are_the_papers():
    people = draw_patients(Minimal(), "radio", scale=1.0)
    assert tuple(people.weak_label.value_counts().sort_index()) == COUNTS["radio"]
    assert (people.label == -1).all()
    for cohort, negatives, positives in (("d1", 28, 78), ("d2", 34, 15)):
        labels = draw_patients(Minimal(), cohort).label.value_counts()
        assert (labels[0], labels[1]) == (negatives, positives)


def test_weak_labels_follow_severity_as_the_reader_is_accurate():
    agreement = []
    for accuracy in (0.6, 0.97):
        people = draw_patients(Minimal(reader_accuracy=accuracy), "radio", scale=1.0)
        truth = people.severity > READING_BORDER
        agreement.append(((people.weak_label > 0) == truth).mean())
    assert agreement[0] < 0.8 < 0.97 < agreement[1]


def test_signs_show_at_every_depth_or_in_their_bands_only():
    depth = np.linspace(0, 1, 101)
    assert sign_weight(depth, 0.0) == pytest.approx(np.ones((101, 4)))
    banded = sign_weight(depth, 1.0)
    for column, (low, high) in enumerate(BANDS.values()):
        middle, outside = (depth > low + 0.041) & (depth < high - 0.041), depth < low - 0.041
        assert (banded[middle, column] == 1).all() and (banded[outside, column] == 0).all()
    assert sign_weight(depth, 0.8) == pytest.approx(0.2 + 0.8 * banded)


def gap_by_depth(**parameters):
    """Mean sign of the ill minus the healthy, below and inside the bands' common part."""
    table, inputs = of(draw_cohort(Minimal(mimicry=0, seed=2, **parameters)), "d1")
    signs = split(inputs)["signs"].mean(1).numpy()
    parts = [table.true_depth < 0.25, table.true_depth.between(0.52, 0.58)]
    return [
        signs[p & (table.label == 1)].mean() - signs[p & (table.label == 0)].mean() for p in parts
    ]


def test_depth_dependence_acts_on_the_drawn_slices():
    low, middle = gap_by_depth(depth_dependence=0.0)
    assert low == pytest.approx(middle, abs=0.03) and middle > 0.3
    low, middle = gap_by_depth(depth_dependence=1.0)
    assert abs(low) < 0.02 and middle > 0.3


def test_mimicry_imitates_outside_the_bands_whatever_the_label():
    table, inputs = of(draw_cohort(Minimal(sign_strength=0, mimicry=2, seed=2)), "d1")
    signs = split(inputs)["signs"].mean(1).numpy()
    low, middle = signs[table.true_depth < 0.25], signs[table.true_depth.between(0.52, 0.58)]
    assert low.mean() > 0.8 and middle.mean() < 0.2
    assert signs[table.label == 1].mean() == pytest.approx(signs[table.label == 0].mean(), abs=0.12)


def per_patient(minimal, name):
    table, inputs = of(draw_cohort(minimal), name)
    causes = split(inputs[table.groupby("patient").cumcount().to_numpy() == 0])
    return {"scanner": causes["scanner"].numpy().T, "noise_sd": causes["noise_sd"].numpy().T}


@pytest.mark.parametrize("name", ["d1", "d2"])
def test_without_shift_the_cohorts_are_alike_and_with_it_they_are_not(name):
    for shift, alike in ((0.0, True), (2.0, False)):
        minimal = Minimal(shift=shift, scale=0.3, seed=5)
        here, radio = per_patient(minimal, name), per_patient(minimal, "radio")
        p = [ks_2samp(a, b).pvalue for k in here for a, b in zip(here[k], radio[k], strict=True)]
        assert (min(p) > 0.005) if alike else (min(p) < 1e-6)


def test_two_views_share_all_but_pose_and_noise():
    cohort = draw_cohort(Minimal(noise=0.0, seed=0))
    causes = cohort.inputs[:50].clone()
    view_1, view_2 = (cohort.views(causes, torch.Generator().manual_seed(s)) for s in (1, 2))
    assert (view_1 - view_2).abs().mean() > 0.1
    same = cohort.views(causes, torch.Generator().manual_seed(1))
    assert torch.equal(view_1, same)
    start = 12 + 4 + 6 + 3
    causes[:, start : start + 4] = 7.0  # the recorded pose does not reach a view
    assert torch.equal(view_1, cohort.views(causes, torch.Generator().manual_seed(1)))
    causes[:, 0] += 1  # the anatomy does
    assert (view_1 - cohort.views(causes, torch.Generator().manual_seed(1))).abs().mean() > 0.01


def test_the_oracle_reads_the_label_and_without_signs_nobody_does():
    scores = []
    for strength in (1.0, 0.0):
        table, inputs = of(draw_cohort(Minimal(sign_strength=strength, seed=0)), "d1")
        signs = split(inputs)["signs"].numpy()
        scores.append(probe.cross_validate(signs, table.label, table.patient).mean)
    assert scores[0] > 0.95 and 0.3 < scores[1] < 0.7


def test_a_parameter_out_of_its_range_is_named():
    with pytest.raises(ValueError, match=r"Minimal.depth_dependence = 1.5: choose"):
        Minimal(depth_dependence=1.5)
