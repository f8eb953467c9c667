"""Synthetic abdominal CT cohorts with the mechanisms the paper argues from: who the patients are.

A demonstration, not evidence about livers. A hidden severity in [0, 1] causes both the histological
stage and the image. The radiologist reads it with noise (weak label), its signs show at some depths
only, other anatomy imitates them elsewhere, and scanners differ between cohorts. ``bodies.py`` says
what each patient looks like, ``anatomy.py`` paints it and ``scans.py`` writes the files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

# population: further patients like those of D1, whom no fold ever holds; only a phantom has them.
COHORTS = {"radio": 0, "d1": 1, "d2": 2, "population": 3}
# Patients by class: radiologist's stage none/mild/moderate/severe (P); METAVIR F0-F4, where only
# F0-F2 = 28 and F3-F4 = 78 are known (P) and the split within them is paper silent; Ishak in five
# strings (P).
COUNTS = {"radio": (1880, 385, 415, 119), "d1": (8, 9, 11, 24, 54), "d2": (25, 5, 4, 2, 13)}
COUNTS["population"] = tuple(10 * n for n in COUNTS["d1"])
FIRST_POSITIVE = 3  # class >= 3 is label 1 in both histological cohorts (P: F3-F4; Ishak >= 5)
# Severity at which each class begins. Paper silent: METAVIR in equal steps; Ishak 5-6 lies within
# F4 (the paper binarises differently: F3-F4 is advanced fibrosis, Ishak >= 5 is cirrhosis).
STAGES = {"d1": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), "d2": (0.0, 0.2, 0.4, 0.8, 0.9, 1.0)}
STAGES["population"] = STAGES["d1"]
# The reading is binary at "mild or worse", put at the border F2 | F3 of severity. Paper silent.
READING_BORDER = 0.6


def check_limits(definition, limits: dict[str, tuple[float, float]]) -> None:
    """Refuse a definition of which a value is outside its limits, (lowest, highest) by name."""
    for name, (low, high) in limits.items():
        value = getattr(definition, name)
        if not low <= value <= high:
            kind = type(definition).__name__
            raise ValueError(f"{kind}.{name} = {value}: choose a value from {low} to {high}")


@dataclass(frozen=True)
class Phantom:
    """Parameters of the definition; every file of a cohort follows from them."""

    reader_accuracy: float = 0.82  # balanced accuracy of the reading against D1's histology, P
    sign_strength: float = 1.0  # factor on the disease signs, 0 = none; paper silent
    depth_dependence: float = 0.8  # signs 0 = at every depth .. 1 = in their bands; paper silent
    mimicry: float = 1.0  # factor on rough contours and texture without disease; paper silent
    shift: float = 1.0  # factor on how cohorts differ (noise, phase, spacing); paper silent
    image_size: int = 160  # pixels a side, 32..512; P: 512. Field of view stays about 404 mm
    pixel_mm: float = 0.79 * 512 / 160  # mm, mean at 160 px = P's 0.79 at 512 px; scaled with size
    pixel_sd: float = 0.10 / 0.79  # SD of the pixel over its mean, P
    spacing_mm: float = 7.0  # mm, mean slice spacing of the laptop default; P: 3.23
    spacing_sd: float = 1.29 / 3.23  # SD of the spacing over its mean, P
    noise_hu: float = 11.0  # HU, mean noise SD in a pixel; paper silent
    seed: int = 0  # of everything

    def __post_init__(self):
        limits = {"reader_accuracy": (0.55, 0.99), "sign_strength": (0, 5), "mimicry": (0, 5)}
        limits |= {"depth_dependence": (0, 1), "shift": (0, 3), "image_size": (32, 512)}
        limits |= {"pixel_mm": (1.5, 4), "pixel_sd": (0, 0.3), "spacing_mm": (1, 20)}
        limits |= {"spacing_sd": (0, 0.6), "noise_hu": (0, 100), "seed": (0, 2**63)}
        check_limits(self, limits)


class Reader(NamedTuple):
    """The radiologist, calibrated."""

    noise: float  # SD of the reading about the severity
    borders: tuple[float, float, float]  # readings at which mild, moderate and severe begin
    exponent: float  # severity in D_radio ~ Beta(1, exponent)


@lru_cache
def calibrate_reader(accuracy: float) -> Reader:
    r"""Noise, borders and population that give the paper's numbers, by numerical integration.

    The reading is :math:`r = u + s\,\varepsilon`, binary at :math:`r > 0.6`. (1) :math:`s` is
    solved such that the mean of sensitivity and specificity over D1's severities (uniform within
    each METAVIR stage) is ``accuracy``. (2) D_radio's severity is Beta(1, b), b solved such that
    P(r > 0.6) is the paper's share of mild or worse. (3) The borders of moderate and severe are
    solved for their shares. The distributions of u are paper silent;
    ``accuracy`` is in (0.5, 1).
    """
    grid = (np.arange(4000) + 0.5) / 4000
    edges, counts = np.array(STAGES["d1"]), np.array(COUNTS["d1"])
    stage = np.searchsorted(edges, grid, side="right") - 1
    density = counts[stage] / np.diff(edges)[stage]
    positive = stage >= FIRST_POSITIVE

    def balanced(noise):
        above = ndtr((grid - READING_BORDER) / noise)
        sides = ((above, positive), (1 - above, ~positive))
        return sum(np.average(right[side], weights=density[side]) for right, side in sides) / 2

    noise = brentq(lambda s: balanced(s) - accuracy, 1e-3, 20)
    total = sum(COUNTS["radio"])
    shares = np.cumsum(COUNTS["radio"][:0:-1])[::-1] / total  # mild or worse, moderate.., severe

    def above(border, exponent):
        weights = (1 - grid) ** (exponent - 1)
        return np.average(ndtr((grid - border) / noise), weights=weights)

    exponent = brentq(lambda b: above(READING_BORDER, b) - shares[0], 0.05, 60)
    worse = [brentq(lambda t, s=s: above(t, exponent) - s, -9, 90) for s in shares[1:]]
    return Reader(noise, (READING_BORDER, *worse), exponent)


def read_severity(severity, reader: Reader, rng: np.random.Generator):
    """The radiologist's stage 0..3 (none, mild, moderate, severe) of each severity in [0, 1]."""
    noisy = severity + reader.noise * rng.standard_normal(np.shape(severity))
    return np.searchsorted(reader.borders, noisy)


@lru_cache
def list_classes(cohort: str, seed: int) -> np.ndarray:
    """Class of every patient of the full cohort, by number, in random order."""
    if cohort not in COHORTS:
        raise ValueError(f"cohort {cohort!r}: choose one of {', '.join(COHORTS)}")
    classes = np.repeat(np.arange(len(COUNTS[cohort])), COUNTS[cohort])
    return np.random.default_rng([seed, COHORTS[cohort]]).permutation(classes)


def _shrink(counts: Sequence[int], scale: float, at_least: int) -> np.ndarray:
    """Counts times scale by largest remainder; each label keeps ``at_least`` patients."""
    exact = np.array(counts) * scale
    kept = np.floor(exact).astype(int)
    missing = round(exact.sum()) - kept.sum()
    kept[np.argsort(kept - exact, kind="stable")[:missing]] += 1
    for side in (slice(0, FIRST_POSITIVE), slice(FIRST_POSITIVE, None)):
        while kept[side].sum() < min(at_least, sum(counts[side])):
            kept[side][np.argmax(np.array(counts[side]) - kept[side])] += 1
    return kept


def list_patients(
    phantom: Phantom, scale: float = 0.1, scale_histology: float = 1.0, population: float = 0.0
) -> list[tuple[str, int]]:
    """Cohort and number of every patient; up to rounding a smaller scale is a subset of a larger.

    Args:
        phantom: only the seed matters.
        scale: share of D_radio's 2,799 patients, in (0, 1].
        scale_histology: share of D1's 106 and D2's 49 patients, in (0, 1]; each label keeps 10 (D1)
            and 5 (D2) patients, so that five folds exist.
        population: share of the 1,060 further patients, in (0, 1]; 0 for none.

    Raises:
        ValueError: if a scale is outside (0, 1].
    """
    pairs = []
    wanted = [("radio", scale, 0), ("d1", scale_histology, 10), ("d2", scale_histology, 5)]
    wanted += [("population", population, 10)] if population else []
    for cohort, share, at_least in wanted:
        if not 0 < share <= 1:
            raise ValueError(f"scale {share} of cohort {cohort}: choose a value in (0, 1]")
        classes = list_classes(cohort, phantom.seed)
        kept = _shrink(COUNTS[cohort], share, at_least)
        numbers = [np.flatnonzero(classes == c)[:n] for c, n in enumerate(kept)]
        pairs += [(cohort, int(number)) for number in np.sort(np.concatenate(numbers))]
    return pairs


def draw_latent(phantom: Phantom, cohort: str, number: int, rng: np.random.Generator):
    """(class, severity, reading); D_radio's severity is drawn given its reading, by rejection."""
    classes = list_classes(cohort, phantom.seed)
    if not 0 <= number < len(classes):
        raise ValueError(f"patient {number} of cohort {cohort}: numbers run 0..{len(classes) - 1}")
    label = int(classes[number])
    reader = calibrate_reader(phantom.reader_accuracy)
    if cohort != "radio":
        severity = rng.uniform(*STAGES[cohort][label : label + 2])
        return label, severity, int(read_severity(severity, reader, rng))
    while True:
        severity = rng.beta(1, reader.exponent, 256)
        fits = np.flatnonzero(read_severity(severity, reader, rng) == label)
        if len(fits):
            return label, float(severity[fits[0]]), label
