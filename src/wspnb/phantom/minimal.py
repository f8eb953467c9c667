"""A cohort whose slices are short vectors: the phantom's mechanisms at a thousandth of its cost.

For maps of when a method helps, where hundreds of trainings are compared. The patients (classes,
severity, the radiologist's reading) are those of ``patients.py``; a slice is 64 numbers, one random
smooth map of what the scan consists of. A demonstration, not evidence about livers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from wspnb.phantom import patients
from wspnb.phantom.anatomy import BANDS, band

# Numbers that describe a slice, in this order: anatomy, signs of disease, the patient's build, the
# scanner, how the patient lies (new in every view), the noise's SD, the noise (new in every view).
PARTS = {"anatomy": 12, "signs": 4, "build": 6, "scanner": 3, "pose": 4, "noise_sd": 1}
N_FEATURES = 64
# Weight of the signs in the map: an untrained encoder then scores about .7 on D1, as it does in the
# paper (.64 and .69) and on the phantom. Set on that ground alone. Paper silent.
VISIBLE = 0.7
KEPT = (0.15, 0.85)  # central 70 % of the liver (P), as depth 0 tip .. 1 dome


@dataclass(frozen=True)
class Minimal:
    """Parameters of the definition; the first five mean what they mean in the phantom."""

    reader_accuracy: float = 0.82  # balanced accuracy of the reading against D1's histology, P
    sign_strength: float = 1.0  # factor on the disease signs, 0 = none; paper silent
    depth_dependence: float = 0.8  # signs 0 = at every depth .. 1 = in their bands; paper silent
    mimicry: float = 1.0  # factor on what imitates the signs outside their bands; paper silent
    shift: float = 1.0  # factor on how cohorts differ (scanner, noise); paper silent
    noise: float = 0.3  # SD of the noise in a feature, whose signal has SD 1; paper silent
    n_slices: int = 10  # kept slices of a patient, mean; paper silent
    scale: float = 0.1  # share of D_radio's 2,799 patients, the laptop default; P: 1
    seed: int = 0  # of everything, the map included

    def __post_init__(self):
        limits = {"reader_accuracy": (0.55, 0.99), "sign_strength": (0, 10), "mimicry": (0, 5)}
        limits |= {"depth_dependence": (0, 1), "shift": (0, 5), "noise": (0, 10)}
        limits |= {"n_slices": (4, 100), "scale": (0.02, 10), "seed": (0, 2**63)}
        patients.check_limits(self, limits)


class Cohort(NamedTuple):
    """Slices of D_radio, D1, D2 and the population, and the two ways to show them to a network."""

    table: pd.DataFrame  # a row per slice: patient, cohort, weak_label, label, position, true_*
    inputs: Tensor  # (n, 94) float64, the causes of each slice, see PARTS
    plain: Callable[[Tensor], Tensor]  # (b, 94) -> (b, 64), the slices as recorded
    views: Callable[[Tensor, torch.Generator], Tensor]  # the same with pose and noise drawn anew


def draw_cohort(minimal: Minimal) -> Cohort:
    """Draw D_radio, D1, D2 and a population like D1; nothing depends on anything but ``minimal``.

    Float64, so that trainings on two machines differ by less than the last printed digit.
    """
    parts = [_draw_slices(minimal, cohort) for cohort in ("radio", "d1", "d2", "population")]
    table = pd.concat([part[0] for part in parts], ignore_index=True)
    causes = torch.from_numpy(np.concatenate([part[1] for part in parts]))
    render = _draw_map(minimal.seed)

    def views(causes: Tensor, generator: torch.Generator) -> Tensor:
        fresh = torch.randn(len(causes), PARTS["pose"] + N_FEATURES, generator=generator).double()
        first, pose = split(causes), PARTS["pose"]
        noise = fresh[:, pose:] * first["noise_sd"]
        first |= {"pose": fresh[:, :pose], "noise": noise}
        return render(torch.cat(list(first.values()), 1))

    return Cohort(table, causes, render, views)


def split(causes: Tensor) -> dict[str, Tensor]:
    """The columns of ``causes`` by name (:data:`PARTS`, then ``noise``)."""
    return dict(zip([*PARTS, "noise"], causes.split([*PARTS.values(), N_FEATURES], 1), strict=True))


def draw_patients(minimal: Minimal, cohort: str, scale: float = 1.0) -> pd.DataFrame:
    """Class, hidden severity and reading of each patient of a cohort (radio, d1, d2, population),
    as in the phantom; reader_accuracy and seed matter, ``scale`` is a factor on the paper's number.

    D_radio's severities are drawn from the population and kept until each reading has its share.

    Returns:
        A row per patient: patient, cohort, weak_label, label (-1 = has none), reading, severity.
    """
    rng = np.random.default_rng([minimal.seed, patients.COHORTS[cohort], 0])
    reader = patients.calibrate_reader(minimal.reader_accuracy)
    counts = np.maximum(np.rint(np.array(patients.COUNTS[cohort]) * scale).astype(int), 1)
    classes = np.repeat(np.arange(len(counts)), counts)
    if cohort == "radio":
        pool = rng.beta(1, reader.exponent, 40 * len(classes) + 1000)
        seen = patients.read_severity(pool, reader, rng)
        severity = np.concatenate([pool[seen == c][:n] for c, n in enumerate(counts)])
        weak, label, reading = classes, -1, classes
    else:
        edges = np.array(patients.STAGES[cohort])
        severity = rng.uniform(edges[classes], edges[classes + 1])
        weak, label = -1, (classes >= patients.FIRST_POSITIVE).astype(int)
        reading = patients.read_severity(severity, reader, rng)
    names = [f"{cohort}_{number:04d}" for number in range(len(classes))]
    columns = {"patient": names, "cohort": cohort, "weak_label": weak, "label": label}
    return pd.DataFrame(columns | {"reading": reading, "severity": severity})


def sign_weight(depth: np.ndarray, depth_dependence: float) -> np.ndarray:
    """How far each of the four signs shows: 1 - d + d x [in its band], ``(n,)`` -> ``(n, 4)``."""
    in_band = band(depth[:, None], *np.array(list(BANDS.values())).T)
    return 1 - depth_dependence + depth_dependence * in_band


def _draw_slices(minimal: Minimal, cohort: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Table and causes of one cohort; numbers that the phantom has too are the phantom's."""
    people = draw_patients(minimal, cohort, minimal.scale if cohort == "radio" else 1.0)
    rng = np.random.default_rng([minimal.seed, patients.COHORTS[cohort], 1])
    n = len(people)
    count = np.rint(minimal.n_slices * rng.uniform(0.7, 1.3, n)).astype(int)
    owner = np.repeat(np.arange(n), count)  # (slices,) patient of each
    position = np.concatenate([np.linspace(0, 1, k) for k in count])
    moved = 0.03 * rng.standard_normal(n).clip(-2, 2)  # organs against the liver
    depth = KEPT[0] + (KEPT[1] - KEPT[0]) * position
    at = (depth + moved[owner])[:, None]

    wave = np.random.default_rng([minimal.seed, 99])  # the anatomy that all patients share
    frequency, phase = wave.uniform(0.3, 1.5, 12), wave.uniform(0, 2 * np.pi, 12)
    anatomy = np.sqrt(2) * np.sin(2 * np.pi * frequency * at + phase)
    anatomy *= 1 + 0.15 * rng.standard_normal((n, 12))[owner]

    growth = 1 / (1 + np.exp(-(people.severity.to_numpy()[:, None] - 0.58) / 0.07))
    hidden = rng.random((n, 4)) < 0.15
    shown = growth * np.where(hidden, 0.15, rng.uniform(0.65, 1.15, (n, 4)))
    signs = minimal.sign_strength * shown[owner] * sign_weight(depth, minimal.depth_dependence)
    mimics = minimal.mimicry * rng.uniform(0.1, 1.0, (n, 4))[owner] * (1 - sign_weight(depth, 1))
    signs = signs + mimics + rng.uniform(0, 0.2, (n, 4))[owner]

    build = rng.standard_normal((n, PARTS["build"]))[owner]
    scanner, noise_sd = _draw_scanners(minimal, cohort, n, rng)
    pose = rng.standard_normal((len(owner), PARTS["pose"]))
    noise_sd = noise_sd[owner, None]
    noise = noise_sd * rng.standard_normal((len(owner), N_FEATURES))
    table = people.iloc[owner].reset_index(drop=True).rename(columns={"severity": "true_severity"})
    table["position"], table["true_depth"] = position, depth
    return table, np.hstack([anatomy, signs, build, scanner[owner], pose, noise_sd, noise])


def _draw_scanners(minimal: Minimal, cohort: str, n: int, rng):
    """Scanner ``(n, 3)`` and SD of the noise ``(n,)`` of patients: radio has five scanners, d1 and
    the population one, d2 five of another make; at shift 0 all three cohorts have radio's.
    """
    makes = np.random.default_rng([minimal.seed, 98])
    radio, single, other = makes.standard_normal((5, 3)), *makes.standard_normal((2, 3))
    which, phase = rng.integers(5, size=n), rng.standard_normal(n).clip(-2, 2)
    scanner = 0.6 * radio[which] + 0.4 * phase[:, None]
    noise = np.array([0.75, 0.9, 1.0, 1.15, 1.3])[which] * (1 + 0.12 * rng.standard_normal(n))
    if cohort in ("d1", "population"):
        keep = max(0.0, 1 - 0.8 * minimal.shift)  # of the variety of scanners
        scanner = keep * scanner + minimal.shift * 0.8 * single
        noise = keep * noise + (1 - keep) * 0.95
    if cohort == "d2":
        scanner, noise = scanner + minimal.shift * 0.8 * other, noise + 0.35 * minimal.shift
    return scanner, minimal.noise * noise.clip(0)


def _draw_map(seed: int) -> Callable[[Tensor], Tensor]:
    """The fixed smooth map of causes to features: two random layers, tanh between, SD about 1."""
    rng, n_causes, hidden = np.random.default_rng([seed, 97]), sum(PARTS.values()) - 1, 128
    inner = torch.from_numpy(rng.standard_normal((n_causes, hidden)) * (1.5 / n_causes**0.5))
    signs = slice(PARTS["anatomy"], PARTS["anatomy"] + PARTS["signs"])
    inner[signs] *= VISIBLE
    bias = torch.from_numpy(rng.standard_normal(hidden) * 0.5)
    outer = torch.from_numpy(rng.standard_normal((hidden, N_FEATURES)) * (1.5 / hidden**0.5))

    def render(causes: Tensor) -> Tensor:
        noise = causes[:, n_causes + 1 :]  # the column between is its SD
        return torch.tanh(causes[:, :n_causes] @ inner + bias) @ outer + noise

    return render
