"""Synthetic abdominal CT cohorts with the mechanisms the paper argues from.

A demonstration, not evidence about livers. A hidden severity in [0, 1] causes both the histological
stage and the image. The radiologist reads it with noise (weak label), its signs show at some depths
only, other anatomy imitates them elsewhere, and scanners differ between cohorts. Anatomy is painted
in millimetres, x to the patient's right, y to the front, z to the head, independent of the pixels.
"""

import csv
import gzip
import io
import json
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from scipy.optimize import brentq
from scipy.special import ndtr
from tqdm.auto import tqdm

VERSION = 1  # of the definition: raise it with every change that alters a voxel or a label

COHORTS = {"radio": 0, "d1": 1, "d2": 2}
# Patients by class: radiologist's stage none/mild/moderate/severe (P); METAVIR F0-F4, where only
# F0-F2 = 28 and
# F3-F4 = 78 are known (P) and the split within them is paper silent; Ishak in five strings (P).
COUNTS = {"radio": (1880, 385, 415, 119), "d1": (8, 9, 11, 24, 54), "d2": (25, 5, 4, 2, 13)}
FIRST_POSITIVE = 3  # class >= 3 is label 1 in both histological cohorts (P: F3-F4; Ishak >= 5)
# Severity at which each class begins. Paper silent: METAVIR in equal steps; Ishak 5-6 lies within
# F4 (the two binarisations of the paper differ: F3-F4 is advanced fibrosis, Ishak >= 5 is
# cirrhosis).
STAGES = {"d1": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), "d2": (0.0, 0.2, 0.4, 0.8, 0.9, 1.0)}
# The reading is binary at "mild or worse", put at the border F2 | F3 of severity. Paper silent.
READING_BORDER = 0.6
ORIENTATIONS = ("RAS", "LPS", "LAS", "RPS", "LPI", "LAI", "PLS", "SRA")  # as archives hold them
ORIENTATION_ODDS = (0.25, 0.3, 0.2, 0.08, 0.06, 0.05, 0.03, 0.03)  # paper silent
LIVER_HEIGHT = 165.0  # mm, template, lower tip to dome
# Bands of depth (0 tip .. 1 dome of the liver) where each sign shows when depth_dependence = 1.
# Paper silent.
BANDS = {
    "contour": (0.30, 0.60),
    "texture": (0.50, 0.80),
    "spleen": (0.40, 0.85),
    "caudate": (0.42, 0.82),
}


@dataclass(frozen=True)
class Phantom:
    """Parameters of the definition; every file of a cohort follows from them."""

    reader_accuracy: float = (
        0.82  # balanced accuracy of the binary reading against D1's histology, P
    )
    sign_strength: float = 1.0  # factor on the disease signs, 0 = none; paper silent
    depth_dependence: float = (
        0.8  # 0 = signs at every depth .. 1 = in their bands only; paper silent
    )
    mimicry: float = 1.0  # factor on rough contours and texture without disease; paper silent
    shift: float = (
        1.0  # factor on the differences between cohorts (noise, phase, spacing); paper silent
    )
    image_size: int = 160  # pixels a side, 32..512; P: 512. Field of view stays about 404 mm
    pixel_mm: float = (
        0.79 * 512 / 160
    )  # mm, mean pixel at 160 px = P's 0.79 mm at 512 px; scaled with image_size
    pixel_sd: float = 0.10 / 0.79  # SD of the pixel over its mean, P
    spacing_mm: float = 7.0  # mm, mean slice spacing of the laptop default; P: 3.23
    spacing_sd: float = 1.29 / 3.23  # SD of the spacing over its mean, P
    noise_hu: float = 11.0  # HU, mean noise SD in a pixel; paper silent
    seed: int = 0  # of everything

    def __post_init__(self):
        limits = {
            "reader_accuracy": (0.55, 0.99),
            "sign_strength": (0, 5),
            "depth_dependence": (0, 1),
            "mimicry": (0, 5),
            "shift": (0, 3),
            "image_size": (32, 512),
            "pixel_mm": (1.5, 4),
            "pixel_sd": (0, 0.3),
            "spacing_mm": (1, 20),
            "spacing_sd": (0, 0.6),
            "noise_hu": (0, 100),
            "seed": (0, 2**63),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"Phantom.{name} = {value}: choose a value from {low} to {high}")


class Patient(NamedTuple):
    """One synthetic scan as it is stored."""

    volume: np.ndarray  # HU, int16, axes in the orientation of `affine`
    mask: np.ndarray  # liver = 1, uint8, same axes
    affine: np.ndarray  # (4, 4), voxel to mm, x right, y front, z head
    row: dict[str, Any]  # the patient's line of cohort.csv without the two paths


# --- who: labels, severity and the radiologist's reading ------------------------------------------


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
    solved for their shares. The distributions of u are paper silent.

    Args:
        accuracy: balanced accuracy of the binary reading against histology, in (0.5, 1).
    """
    grid = (np.arange(4000) + 0.5) / 4000
    edges, counts = np.array(STAGES["d1"]), np.array(COUNTS["d1"])
    stage = np.searchsorted(edges, grid, side="right") - 1
    density = counts[stage] / np.diff(edges)[stage]
    positive = stage >= FIRST_POSITIVE

    def balanced(noise):
        above = ndtr((grid - READING_BORDER) / noise)
        return (
            np.average(above[positive], weights=density[positive])
            + np.average(1 - above[~positive], weights=density[~positive])
        ) / 2

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
def _classes(cohort: str, seed: int) -> np.ndarray:
    """Class of every patient of the full cohort, by number, in random order."""
    _check_cohort(cohort)
    order = np.random.default_rng([seed, COHORTS[cohort]])
    return order.permutation(np.repeat(np.arange(len(COUNTS[cohort])), COUNTS[cohort]))


def _check_cohort(cohort):
    if cohort not in COHORTS:
        raise ValueError(f"cohort {cohort!r}: choose one of {', '.join(COHORTS)}")


def _shrink(counts: Sequence[int], scale: float, at_least: int) -> np.ndarray:
    """Counts times scale by largest remainder; each label keeps ``at_least`` patients."""
    exact = np.array(counts) * scale
    kept = np.floor(exact).astype(int)
    missing = round(exact.sum()) - kept.sum()
    kept[np.argsort(kept - exact, kind="stable")[:missing]] += 1
    if at_least:
        for side in (slice(0, FIRST_POSITIVE), slice(FIRST_POSITIVE, None)):
            while kept[side].sum() < min(at_least, sum(counts[side])):
                kept[side][np.argmax(np.array(counts[side]) - kept[side])] += 1
    return kept


def list_patients(
    phantom: Phantom, scale: float = 0.1, scale_histology: float = 1.0
) -> list[tuple[str, int]]:
    """Cohort and number of every patient; up to rounding a smaller scale is a subset of a larger.

    Args:
        phantom: only the seed matters.
        scale: share of D_radio's 2,799 patients, in (0, 1].
        scale_histology: share of D1's 106 and D2's 49 patients, in (0, 1]; each label keeps 10 (D1)
            and 5 (D2) patients, so that five folds exist.

    Raises:
        ValueError: if a scale is outside (0, 1].
    """
    pairs = []
    for cohort, share, at_least in (
        ("radio", scale, 0),
        ("d1", scale_histology, 10),
        ("d2", scale_histology, 5),
    ):
        if not 0 < share <= 1:
            raise ValueError(f"scale {share} of cohort {cohort}: choose a value in (0, 1]")
        classes = _classes(cohort, phantom.seed)
        kept = _shrink(COUNTS[cohort], share, at_least)
        numbers = [np.flatnonzero(classes == c)[:n] for c, n in enumerate(kept)]
        pairs += [(cohort, int(number)) for number in np.sort(np.concatenate(numbers))]
    return pairs


def describe_patient(phantom: Phantom, cohort: str, number: int) -> dict[str, Any]:
    """The patient's line of cohort.csv (without paths), known without drawing a voxel."""
    return _sample(phantom, cohort, number)[1]


def _latent(phantom: Phantom, cohort: str, number: int, rng: np.random.Generator):
    """(class, severity, reading); D_radio's severity is drawn given its reading, by rejection."""
    classes = _classes(cohort, phantom.seed)
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


# --- what: one patient's anatomy, in template millimetres -----------------------------------------


def _clipped(rng, mean, sd, low=-2.0, high=2.0):
    """Normal, redrawn at its tails: mean + sd * clip(z)."""
    return float(mean + sd * np.clip(rng.standard_normal(), low, high))


def _acquisition(phantom: Phantom, cohort: str, rng) -> dict[str, Any]:
    """Scanner, phase, spacing. radio: five scanners; d1: one centre; d2: an older archive."""
    shift = phantom.shift
    scanner = int(rng.integers(5))
    noise = (0.75, 0.9, 1.0, 1.15, 1.3)[scanner] * _clipped(rng, 1, 0.12)
    smooth = (0.20, 0.45, 0.30, 0.40, 0.25)[scanner]
    phase = _clipped(rng, 0, 0.8)
    spacing = phantom.spacing_mm * _clipped(rng, 1, phantom.spacing_sd, -1.2, 1.8)
    if cohort == "d1":
        noise += shift * (0.95 - noise) * 0.8
        smooth += min(shift, 1) * (0.35 - smooth)
        phase += shift * (0.3 - 0.5 * phase)
        spacing += min(shift, 1) * 0.5 * (phantom.spacing_mm * 0.95 - spacing)
    if cohort == "d2":
        noise += shift * 0.35
        smooth += min(shift, 1) * 0.7 * (0.22 - smooth)
        phase -= shift * 0.5
        spacing *= 1 + 0.1 * shift
    return {
        "scanner": {"radio": f"r{scanner}", "d1": "c0"}.get(cohort, f"t{scanner}"),
        "noise_hu": max(phantom.noise_hu * noise, 0.0),
        "smooth": smooth,  # weight of each neighbour in the kernel (smooth, 1, smooth) per axis
        "phase": phase,  # 0 = portal venous at 70 s, < 0 earlier; SD units
        "spacing_mm": round(spacing, 2),
    }


def _signs(phantom: Phantom, severity: float, rng) -> dict[str, float]:
    """Strength of each sign and each mimic in this patient.

    Strength = sign_strength x logistic((u - 0.58) / 0.07) x expression; expression is 0.15 (hardly
    shown) with odds 0.15, else uniform in 0.65..1.15. Mimics do not depend on severity. Paper
    silent.
    """
    growth = 1 / (1 + np.exp(-(severity - 0.58) / 0.07))
    signs = {}
    for name in BANDS:
        hidden, shown = rng.random() < 0.15, rng.uniform(0.65, 1.15)
        signs[name] = float(phantom.sign_strength * growth * (0.15 if hidden else shown))
    for name in ("mimic_contour_low", "mimic_contour_high", "mimic_texture"):
        signs[name] = float(phantom.mimicry * rng.uniform(0.1, 1.0))
    signs["base_contour"], signs["base_texture"] = (float(v) for v in rng.uniform(0, 0.2, 2))
    return signs


def _sample(phantom: Phantom, cohort: str, number: int):
    """All of a patient but the voxels: (anatomy, row, seeds of the fields and of the noise)."""
    _check_cohort(cohort)
    seeds = np.random.SeedSequence([phantom.seed, COHORTS[cohort], number]).spawn(4)
    label, severity, reading = _latent(phantom, cohort, number, np.random.default_rng(seeds[0]))
    rng = np.random.default_rng(seeds[1])
    a = _acquisition(phantom, cohort, rng)
    a["signs"] = signs = _signs(phantom, severity, rng)

    size = _clipped(rng, 0, 1)  # habitus: thin .. big
    a["scale"] = np.array(
        [
            _clipped(rng, 1 + 0.035 * size, 0.03),
            _clipped(rng, 1 + 0.04 * size, 0.03),
            _clipped(rng, 1, 0.06),
        ]
    )
    a["fat"] = np.clip([18 + 8 * size, 20 + 9 * size], 5, 45) * rng.uniform(
        0.7, 1.3, 2
    )  # mm: sides, front
    a["turn"] = _clipped(rng, 0, 0.04)  # rad
    a["centre"] = rng.normal(0, 6, 2)  # mm, of the patient in the field of view
    a["breath"] = _clipped(rng, 0, 9)  # mm, diaphragm against skeleton
    a["jitter"] = {
        name: rng.normal(0, 1, 3).clip(-2, 2) * 4
        for name in (
            "liver",
            "left",
            "spleen",
            "kidney_r",
            "kidney_l",
            "stomach",
            "gallbladder",
            "heart",
        )
    }
    for name in (
        "liver",
        "left",
        "spleen",
        "kidney_r",
        "kidney_l",
        "stomach",
        "gallbladder",
        "caudate",
    ):
        a[f"size_{name}"] = np.exp(rng.normal(0, 0.07) + rng.normal(0, 0.05, 3)).clip(0.78, 1.3)
    a["size_liver"][2] = np.clip(a["size_liver"][2], 0.9, 1.1)
    a["gas_level"], a["stomach_full"] = rng.uniform(15, 50), rng.uniform(0.75, 1.15)
    a["stomach_hu"] = rng.uniform(5, 45) if rng.random() < 0.8 else rng.uniform(120, 260)
    a["lobe_left"] = rng.uniform(-18, 14)  # mm, reach of the left lobe
    a["gallbladder"] = rng.random() < 0.88
    a["rib_phase"], a["rib_pitch"] = rng.uniform(0, 27), rng.uniform(24, 29)
    a["disc_phase"], a["texture_size"] = rng.uniform(0, 34), rng.uniform(6.0, 8.5)
    phase = a["phase"]
    a["hu"] = {
        "liver": _clipped(rng, 110 + 5 * phase, 9)
        - (18 * rng.random() if rng.random() < 0.25 else 0),
        "spleen": _clipped(rng, 122 - 5 * phase, 7),
        "aorta": _clipped(rng, 155 - 22 * phase, 8),
        "cava": _clipped(rng, 135 + 8 * phase, 8),
        "portal": _clipped(rng, 165 + 4 * phase, 9),
        "hepatic": _clipped(rng, 145 + 14 * phase, 9),
        "cortex": _clipped(rng, 190 - 10 * phase, 10),
        "medulla": _clipped(rng, 150 + 18 * phase, 10),
        "muscle": _clipped(rng, 60, 5),
        "bone": _clipped(rng, 200, 25),
        "fat": _clipped(rng, -102, 5),
    }

    body = 2 * (154 + a["fat"][0]) * a["scale"][0]  # mm, width
    pixel = phantom.pixel_mm * 160 / phantom.image_size
    spread = 0.8 * size + 0.6 * np.clip(
        rng.standard_normal(), -2, 2
    )  # the operator fits the field to the body
    pixel *= 1 + phantom.pixel_sd * spread
    a["pixel_mm"] = float(max(pixel, (body + 8) / phantom.image_size))
    below, above = rng.uniform((14, 10), (28, 24))  # mm beyond the liver, and up to a slice more
    bottom = -below - rng.uniform(0, 1) * a["spacing_mm"]
    top = LIVER_HEIGHT * a["scale"][2] + above + 0.7 * a["spacing_mm"]
    a["z"] = np.arange(bottom, top, a["spacing_mm"])
    a["orientation"] = str(rng.choice(ORIENTATIONS, p=ORIENTATION_ODDS))
    a["origin"] = np.array([*rng.normal(0, 15, 2), rng.uniform(-900, 200)]).round(
        2
    )  # mm, of the table

    histology = cohort != "radio"
    row = {
        "patient": f"{cohort}_{number:04d}",
        "weak_label": "" if histology else label,
        "label": int(label >= FIRST_POSITIVE) if histology else "",
        "cohort": cohort,
        "stage": label if histology else "",
        "reading": reading,
        "scanner": a["scanner"],
        "phase": round(phase, 3),
        "noise_hu": round(a["noise_hu"], 2),
        "spacing_mm": a["spacing_mm"],
        "pixel_mm": round(a["pixel_mm"], 3),
        "n_slices": len(a["z"]),
        "orientation": a["orientation"],
        "true_severity": round(severity, 4),
        "true_contour": round(signs["contour"] + signs["base_contour"], 4),
        "true_texture": round(signs["texture"] + signs["base_texture"], 4),
        "true_spleen": round(
            float(np.prod(a["size_spleen"][:2]) ** 0.5) * _spleen(signs["spleen"]), 4
        ),
        "true_caudate": round(
            float(np.prod(a["size_caudate"][:2]) ** 0.5) * _caudate(signs["caudate"]), 4
        ),
    }
    return a, row, seeds[2:]


def _spleen(sign):
    """In-plane factor on the spleen's size."""
    return 1 + 0.41 * sign


def _caudate(sign):
    """In-plane factor on the caudate's size."""
    return 1 + 0.57 * sign


# --- how: painting --------------------------------------------------------------------------------

LOW, HIGH = (
    np.array([-60.0, -260.0, -260.0]),
    np.array([260.0, 260.0, 260.0]),
)  # mm, reach of fields: z, y, x


def _field(rng, knot: float) -> tuple[np.ndarray, float]:
    """Random smooth field: white coefficients of a cubic B-spline with knots every ``knot`` mm."""
    shape = np.ceil((HIGH - LOW) / knot).astype(int) + 4
    return rng.standard_normal(shape, dtype=np.float32) / np.float32(0.33), knot


def _evaluate(field, axes) -> np.ndarray:
    """The field (mean 0, SD about 1) on the grid of axes (z, y, x), mm.

    No BLAS: the bits do not depend on the number of threads.
    """
    values, knot = field
    steps = [
        np.clip((axis - low) / knot, 0, n - 4.001)
        for axis, low, n in zip(axes, LOW, values.shape, strict=True)
    ]
    first = [np.floor(step).astype(int) for step in steps]
    values = values[tuple(slice(start.min(), start.max() + 4) for start in first)]
    for axis in (2, 1, 0):  # z last: whole planes are added
        f = (steps[axis] - first[axis]).astype(np.float32)
        g = 1 - f
        weights = (g**3 / 6, 2 / 3 - f**2 + f**3 / 2, 2 / 3 - g**2 + g**3 / 2, f**3 / 6)
        shape = [-1 if i == axis else 1 for i in range(3)]
        start = first[axis] - first[axis].min()
        parts = [
            np.take(values, start + k, axis) * w.astype(np.float32).reshape(shape)
            for k, w in enumerate(weights)
        ]
        values = parts[0] + parts[1] + parts[2] + parts[3]
    return values


def _draw_fields(rng, texture_size: float) -> dict[str, tuple]:
    """All random fields of a patient, independent of pixels and slices."""
    knots = {
        "warp_x": 48, "warp_y": 48, "warp_z": 60, "shape": 26, "bowel": 15, "gas": 22,
        "stranding": 9, "contour": 8, "texture": texture_size,
    }  # fmt: skip
    return {name: _field(rng, knot) for name, knot in knots.items()}


def _band(depth, low, high):
    """1 inside [low, high] of depth, 0 outside, with edges 0.08 wide."""
    return np.clip((depth - low) / 0.08 + 0.5, 0, 1) * np.clip((high - depth) / 0.08 + 0.5, 0, 1)


def sign_weight(name: str, depth, depth_dependence: float):
    """How far a sign shows at a depth (0 = lower tip, 1 = dome of the liver): 1 - d + d x band."""
    return 1 - depth_dependence + depth_dependence * _band(np.asarray(depth), *BANDS[name])


def _join(a, b, soft):
    """Smooth maximum of two insides, rounding of ``soft`` mm."""
    near = np.maximum(np.float32(soft) - np.abs(a - b), np.float32(0))
    near *= near
    near *= np.float32(0.25 / soft)
    near += np.maximum(a, b)
    return near


def _meet(a, b, soft):
    """Smooth minimum: inside both."""
    return -_join(-a, -b, soft)


class _Slab:
    """Some slices being painted: HU, and the (warped) template position of each, axes (z, y, x)."""

    def __init__(self, axes, position, edge):
        self.axes, self.position, self.edge = axes, position, edge
        self.hu = np.full(position[0].shape, -1000, np.float32)

    def near(self, centre, reach):
        """Index of the box about an organ (x, y, z in mm), or None where the slab misses it."""
        box = []
        for axis, c, r in zip(self.axes, reversed(centre), reversed(reach), strict=True):
            hits = np.flatnonzero(np.abs(axis - c) <= r + 20)  # 20 mm: warp, turn
            if not len(hits):
                return None
            box.append(slice(hits[0], hits[-1] + 1))
        return tuple(box)

    def ellipsoid(self, box, centre, radii):
        """Signed distance to an ellipsoid to first order, mm, positive inside; None: infinite."""
        level, slope = np.float32(1), np.float32(1e-6)
        for position, c, r in zip(self.position, centre, radii, strict=True):
            if r is not None:
                inverse = np.float32(1) / np.square(np.float32(r))
                part = np.square(position[box] - np.float32(c))
                part *= inverse
                level = level - part
                part *= inverse
                slope = slope + part
        np.sqrt(slope, out=slope)
        level /= slope
        return np.minimum(np.float32(0.5) * level, np.float32(60), out=level)

    def tube(self, box, start, end, radii):
        """Signed distance to a tapering tube between two points, mm, positive inside."""
        start, end = np.float32(start), np.float32(end)
        along = end - start
        d = [p[box] - s for p, s in zip(self.position, start, strict=True)]
        h = np.clip((d[0] * along[0] + d[1] * along[1] + d[2] * along[2]) / (along @ along), 0, 1)
        gap = [di - h * ai for di, ai in zip(d, along, strict=True)]
        r0, r1 = np.float32(radii)
        return r0 + (r1 - r0) * h - np.sqrt(gap[0] ** 2 + gap[1] ** 2 + gap[2] ** 2)

    def cover(self, inside, edge=None):
        """Share of the voxel that lies inside: the partial volume."""
        cover = inside * np.float32(1 / (edge or self.edge))
        cover += np.float32(0.5)
        return np.clip(cover, np.float32(0), np.float32(1), out=cover)

    def paint(self, box, inside, hu, edge=None):
        """Lay an organ over what is there; returns its cover."""
        cover = self.cover(inside, edge)
        self.hu[box] += cover * (hu - self.hu[box])
        return cover

    def paint_tube(self, start, end, radii, hu):
        middle, reach = (np.add(start, end)) / 2, np.abs(np.subtract(end, start)) / 2 + max(radii)
        box = self.near(tuple(middle), tuple(reach))
        if box:
            self.paint(box, self.tube(box, start, end, radii), np.float32(hu))


ALL = (slice(None),) * 3
THICK = 200_000  # pixels painted at once: bounds the memory and stays in the processor's cache


def _paint(a, fields, axes, edge):
    """HU without noise and the liver's cover of some slices; axes (z, y, x) in template mm.

    Positions, sizes and HU are those of an adult in the portal-venous phase; paper silent.
    """
    x, y = np.float32(axes[2])[None, None], np.float32(axes[1])[None, :, None]
    z = np.float32(axes[0])[:, None, None]
    cos, sin = np.float32(np.cos(a["turn"])), np.float32(np.sin(a["turn"]))
    warp = {name: _evaluate(fields[name], axes) for name in ("warp_x", "warp_y", "warp_z", "shape")}
    X = x * cos + y * sin + 4 * warp["warp_x"]
    Y = y * cos - x * sin + 3.5 * warp["warp_y"]
    Z = z + 3 * warp["warp_z"]
    slab = _Slab(axes, (X, Y, Z), edge)
    shape, hu, breath = warp["shape"], a["hu"], a["breath"]
    jitter = a["jitter"]

    # Wall: skin, fat, muscle, ribs, spine.
    stranding = _evaluate(fields["stranding"], axes)
    cavity = slab.ellipsoid(ALL, (0, 4, 0), (140, 90, None)) + 1.5 * shape
    squarish = (X / 165) ** 2 * (Y / 125) ** 2
    squarish = 14 * squarish / (squarish + np.float32(0.3))  # fuller than an ellipse at the flanks
    sides, front = a["fat"]
    body = slab.ellipsoid(
        ALL, (0, (front - 14) / 2, 0), (154 + sides, 113 + (front + 14) / 2, None)
    )
    body = body + squarish
    slab.paint(
        ALL, _meet(-np.abs(Y + 132 + (X / 110) ** 2 * -14) + 2.5, 200 - np.abs(X), 1), -350
    )  # table
    slab.paint(ALL, body, 10)  # skin
    slab.paint(ALL, body - 2, hu["fat"] + 3 * stranding)
    wall = np.minimum(cavity + 14 + 2 * shape, body - 5)
    slab.paint(ALL, wall, hu["muscle"])
    slab.paint(ALL, 1.2 - np.abs(cavity + 8.5 + 2 * shape), -20)  # fat between the layers
    back = np.maximum(
        slab.ellipsoid(ALL, (36, -92, 0), (32, 20, None)),
        slab.ellipsoid(ALL, (-36, -92, 0), (32, 20, None)),
    )
    slab.paint(ALL, np.minimum(back, body - 6) + 1.5 * shape, hu["muscle"] + 4 * stranding - 4)
    # Diaphragm: two domes; below it the belly, above it the lungs.
    right = 166 - 56 * ((X - 62) / 82) ** 2 - 52 * ((Y - 12) / 88) ** 2
    left = 150 - 56 * ((X + 64) / 80) ** 2 - 52 * ((Y - 12) / 88) ** 2
    dome = np.maximum(_join(right, left, 12), 20) + 2 * shape
    under = (dome - Z) * np.float32(0.75)
    dome_edge = max(edge, 0.5 * a["spacing_mm"])
    slab.paint(ALL, cavity, hu["fat"] + 8 + 5 * stranding)
    lung = _meet(cavity - 2, -under, 3)
    middle = slab.ellipsoid(ALL, (-4, -38, 0), (34, 30, None)) + 2 * shape  # mediastinum
    slab.paint(ALL, lung, -860 + 25 * np.maximum(stranding, 0) ** 2 - 0.5 * Y, dome_edge)
    slab.paint(ALL, np.minimum(middle, lung), hu["fat"] + 45, dome_edge)
    diaphragm = np.minimum(2.2 - np.abs(under), cavity + 2)
    slab.paint(ALL, diaphragm, hu["muscle"], dome_edge)
    centre = np.array([-24, 42, 178 + breath]) + jitter["heart"]
    if box := slab.near(centre, (66, 52, 46)):
        heart = _meet(
            slab.ellipsoid(box, centre, (66, 52, 46)) + 2 * shape[box], -under[box] - 2, 4
        )
        slab.paint(box, heart, hu["fat"] + 15)
        slab.paint(box, heart - 4, 95 + 25 * (warp["warp_z"][box] > 0), 6)
    _paint_bones(a, slab, cavity, body, stranding)
    # Retroperitoneum: psoas, crura, kidneys, adrenals, great vessels.
    for side in (1, -1):
        if box := slab.near((side * 36, -56, -10), (22, 22, 60)):
            taper = np.clip((50 - Z[box]) / 60, 0.05, 1.1)
            psoas = slab.ellipsoid(box, (side * 37.0, -56.0, 0), (19, 21, None)) - 16 * (1 - taper)
            slab.paint(box, psoas, hu["muscle"])
        slab.paint_tube((side * 15, -46, 20), (side * 14 - 4, -30, 128), (6, 8), hu["muscle"])
        start = (side * 34 - 2, -34, 92 + breath / 2)
        slab.paint_tube(start, np.add(start, (side * 9, -9, -16)), (3, 2), 85)
        slab.paint_tube(start, np.add(start, (-side * 3, -12, -16)), (3, 2), 85)
    kidneys = {}
    for name, side, height in (("kidney_r", 1, 38), ("kidney_l", -1, 52)):
        centre = np.array([side * 62, -44, height + breath / 2]) + jitter[name] * (1, 1, 3)
        radii = np.array([27, 28, 54]) * a[f"size_{name}"]
        box = slab.near(centre, radii)
        kidneys[name] = (centre, radii)
        if box:
            lean = centre[0] - side * 0.16 * (Z[box] - centre[2])
            kidney = slab.ellipsoid(box, (lean, centre[1], centre[2]), radii) + 1.2 * shape[box]
            sinus_at = (lean - side * 16, centre[1] + 8.0, centre[2])
            sinus = slab.ellipsoid(box, sinus_at, radii * (0.62, 0.36, 0.5)) + 2 * shape[box]
            slab.paint(box, kidney, hu["cortex"])
            slab.paint(box, np.minimum(kidney - 7, 3 * stranding[box] + 2), hu["medulla"], 4)
            slab.paint(box, sinus, hu["fat"] + 25 + 25 * stranding[box])
    _paint_bowel(a, slab, fields, axes, cavity, under, stranding, shape)
    slab.paint_tube((-9, -30, -60), (-9, -32, 230), (10.5, 11.5), hu["aorta"])
    slab.paint_tube((18, -28, -60), (21, -22, 110), (11, 12), hu["cava"])
    slab.paint_tube((-5, -10, -60), (-7, -18, 62), (4, 4), hu["aorta"])
    slab.paint_tube((9, -6, -60), (13, 0, 64), (5.5, 6.5), hu["portal"])
    slab.paint_tube((-8, -22, 84), (-8, -6, 88), (4, 4), hu["aorta"])  # coeliac trunk
    _paint_left_side(a, slab, kidneys["kidney_l"], cavity, under, shape, stranding)
    liver = _paint_liver(
        a, slab, fields, kidneys["kidney_r"], cavity, under, shape, stranding, dome_edge
    )
    return slab.hu, liver


def _paint_bones(a, slab, cavity, body, stranding):
    X, Y, Z = slab.position
    bone, edge = a["hu"]["bone"], slab.edge
    turn = np.clip((Y + 80) / 170, 0, 1)  # 0 back .. 1 front
    along = (
        np.mod(Z + a["breath"] / 3 + 100 * turn + a["rib_phase"] + 400, a["rib_pitch"])
        - a["rib_pitch"] / 2
    )
    rib = (1 - ((cavity + 6.5) / 5.0) ** 2 - (along / 7.0) ** 2) * 2.5
    rib = np.minimum(rib, (Z - 5 - 80 * turn**2) * 0.5)
    rib = np.minimum(rib, body - 8)
    cartilage = np.clip((turn - 0.75) / 0.1, 0, 1)  # the front ends are cartilage
    slab.paint(ALL, rib, (bone + 170) * (1 - cartilage) + 110 * cartilage)
    slab.paint(ALL, rib - 1.6, bone * (1 - cartilage) + 110 * cartilage)
    if box := slab.near((0, -82, 80), (52, 52, 300)):
        Xb, Yb, Zb = X[box], Y[box], Z[box]
        level = np.mod(Zb + a["disc_phase"] + 340, 34) - 17  # mm from the middle of the vertebra
        disc = np.clip((np.abs(level) - 13) / 2, 0, 1)
        vertebra = (
            slab.ellipsoid(box, (0, -60, 0), (22, 17.5, None)) + 0.8 * (np.abs(level) / 17) ** 2
        )
        slab.paint(box, vertebra, (bone + 190) * (1 - disc) + 95 * disc)
        marrow = (bone - 10 + 22 * stranding[box]) * (1 - disc) + 90 * disc
        slab.paint(box, vertebra - 2.5, marrow)
        arch = slab.ellipsoid(box, (0, -86, 0), (19, 13, None))
        spine = _meet(4.5 - np.abs(Xb) * 1.0, _meet(-92 - Yb, Yb + 113, 2), 2)
        transverse = _meet(4.5 - np.abs(Yb + 82), _meet(36 - np.abs(Xb), 7 - np.abs(level), 2), 2)
        bony = np.maximum(
            np.maximum(arch, transverse), spine - np.maximum(np.abs(level + 6) - 11, 0)
        )
        slab.paint(box, bony, bone + 130)
        slab.paint(box, slab.ellipsoid(box, (0, -83, 0), (10, 8, None)), 25)  # canal
        slab.paint(box, slab.ellipsoid(box, (0, -83, 0), (5.5, 4.5, None)), 45, 2 * edge)


def _paint_bowel(a, slab, fields, axes, cavity, under, stranding, shape):
    """Loops in front of the kidneys, and the two flexures of the colon."""
    X, Y, Z = slab.position
    if axes[0].min() < 95:
        loops = _evaluate(fields["bowel"], axes)
        region = _meet(
            _meet(cavity - 5, 74 - Z + 0.15 * Y, 6), Y + 22 - 0.0012 * X**2 + 4 * shape, 6
        )
        bowel = np.minimum((0.62 - np.abs(loops)) * 12, region)
        gas = np.minimum((_evaluate(fields["gas"], axes) - 1.1) * 10, Y - 30)
        slab.paint(ALL, bowel, 80)
        slab.paint(ALL, bowel - 2.5, 25 + 12 * stranding)
        slab.paint(ALL, np.minimum(bowel - 3, gas), -850)
    for centre, radii in (
        ((92, 18, -12), (23, 25, 36)),
        ((-104, 8, 40), (18, 20, 44)),
        ((0, 68, 12), (80, 15, 17)),
    ):
        if box := slab.near(centre, radii):
            colon = slab.ellipsoid(box, centre, radii) + 4 * shape[box]
            colon = _meet(colon, _meet(cavity[box] - 4, under[box] - 4, 3), 4)
            slab.paint(box, colon, 70)
            stool = -60 + 70 * stranding[box]
            level = np.clip((Y[box] - centre[1] - 4) / 2, 0, 1)
            slab.paint(box, colon - 3.5, stool * (1 - level) - 900 * level)


def _paint_left_side(a, slab, kidney, cavity, under, shape, stranding):
    """Pancreas, stomach, spleen and its vein."""
    hu, jitter = a["hu"], a["jitter"]
    Y, Z = slab.position[1:]
    slab.paint_tube((28, 8, 58), (6, 16, 70), (14, 11), 98)
    slab.paint_tube((6, 16, 70), (-78, -18, 96), (11, 9), 98)
    slab.paint_tube((13, 2, 66), (-82, -26, 98), (5, 4), hu["portal"])
    centre = np.array([-52, 14, 104]) + jitter["stomach"] * (1, 1, 2)
    if box := slab.near(np.add(centre, (20, 10, -10)), (85, 70, 75)):
        full = a["stomach_full"] * a["size_stomach"]
        fundus = slab.ellipsoid(box, np.add(centre, (-6, -22, 24)), np.array([36, 34, 32]) * full)
        corpus = slab.ellipsoid(box, np.add(centre, (-2, 22, -8)), np.array([34, 30, 42]) * full)
        antrum = slab.ellipsoid(box, np.add(centre, (40, 40, -38)), np.array([38, 18, 19]) * full)
        stomach = _join(_join(fundus, corpus, 10), antrum, 10) + 3 * shape[box]
        stomach = _meet(stomach, _meet(cavity[box] - 4, under[box] - 4, 4), 5)
        slab.paint(box, stomach, 85)
        gas = np.clip((Y[box] - a["gas_level"]) / 2, 0, 1)
        fluid = a["stomach_hu"] + 14 * stranding[box]
        slab.paint(box, stomach - 4, fluid * (1 - gas) - 950 * gas)
    spleen_weight = a["spleen_weight"](Z)
    centre = np.array([-104, -34, 108 + a["breath"] / 2]) + jitter["spleen"]
    radii = np.array([30, 46, 50]) * a["size_spleen"]
    if box := slab.near(centre, radii * 1.5):
        grow = 1 + (_spleen(a["signs"]["spleen"]) - 1) * spleen_weight[box]
        spleen = slab.ellipsoid(
            box,
            np.add(centre, (4, 2, 0)),
            (radii[0] * grow, radii[1] * grow, radii[2] * (0.5 + grow / 2)),
        )
        hilum = slab.ellipsoid(box, np.add(centre, (34, 22, -4)), (24, 26, 40))
        spleen = _meet(spleen + 2 * shape[box], -hilum, 5)
        spleen = _meet(spleen, _meet(cavity[box] - 3, under[box] - 2, 3), 4)
        centre_k, radii_k = kidney
        spleen = _meet(spleen, -slab.ellipsoid(box, centre_k, radii_k) - 5, 4)
        slab.paint(box, spleen, hu["spleen"])


def _paint_liver(a, slab, fields, kidney, cavity, under, shape, stranding, dome_edge):
    """Right lobe, left lobe and caudate, their signs and mimics; returns the liver's cover."""
    hu, jitter, signs = a["hu"], a["jitter"], a["signs"]
    cover = np.zeros_like(slab.hu)
    box = slab.near((35, 5, 85), (125, 95, 95))
    if box is None:
        return cover
    X, Y, Z = (p[box] for p in slab.position)
    local, axes = shape[box], [axis[index] for axis, index in zip(slab.axes, box, strict=True)]
    depth = Z / np.float32(LIVER_HEIGHT)
    weights = {
        name: np.float32(a["weight"](name, depth)) for name in ("contour", "texture", "caudate")
    }
    caudate_sign = signs["caudate"] * weights["caudate"]

    size = a["size_liver"]
    lean = np.float32(0.16) * (80 - Z)
    dx, dy, dz = jitter["liver"] * (1, 1, 0)
    right = slab.ellipsoid(
        box,
        (66 + dx + lean, -4 + dy - lean * 0.4, 83 + dz),
        (82 * size[0] * (1 - 0.18 * caudate_sign), 86 * size[1], 84 * size[2]),
    )
    visceral = (Z - (86 - 0.95 * X) + 0.25 * (Y - 10) + 5 * local) * 0.7  # the oblique lower face
    right = _meet(right, visceral, 8)
    lobe = a["size_left"]
    reach = a["lobe_left"]
    left = slab.ellipsoid(
        box,
        (-2 + reach + jitter["left"][0], 46 + jitter["left"][1], 110),
        (74 * lobe[0], (37 + 0.12 * X) * lobe[1], 46 * lobe[2]),
    )
    liver = _join(right, left, 8)
    # Clefts: porta, ligaments, gallbladder, vena cava, spine, kidney.
    porta = slab.ellipsoid(box, (30, 14, 80), (26, 10, 13))
    liver = _meet(liver, -porta, 4)
    sheet = 1.6 - np.abs(Y - 22 - 0.25 * X)
    sheet = np.minimum(sheet, np.minimum(30 - np.abs(X - 2), 24 - np.abs(Z - 104)))
    ligament = slab.tube(box, (0, 84, 84), (8, 40, 82), (7, 5))
    liver = _meet(_meet(liver, -sheet, 2), -ligament, 4)
    liver = _meet(liver, -slab.ellipsoid(box, (-4, -50, 0), (34, 36, None)), 5)
    big, factor = a["size_caudate"], 1 + (_caudate(1.0) - 1) * caudate_sign
    caudate = slab.ellipsoid(
        box,
        (14, 0 + 3 * (factor - 1), 104),
        (17 * big[0] * factor, 15 * big[1] * factor, 26 * big[2]),
    )
    liver = _join(liver, caudate, 3)
    cava = slab.tube(box, (20, -24, 60), (22, -18, 160), (12, 12))
    liver = _meet(liver, -cava, 2)
    centre_k, radii_k = kidney
    liver = _meet(liver, -slab.ellipsoid(box, centre_k, radii_k) - 5, 5)
    bladder_at = (50, 44, 52) + jitter["gallbladder"]
    bladder = slab.ellipsoid(box, bladder_at, np.array([15, 17, 24]) * a["size_gallbladder"])
    if a["gallbladder"]:
        liver = _meet(liver, -bladder - 0.5, 3)

    # Contour: rounded nodules, sharp valleys. Mimics use the same field: only depth tells them
    #     apart.
    nodules = np.abs(_evaluate(fields["contour"], axes)) - np.float32(0.8)
    low, high = _band(depth, -1, 0.27), _band(depth, 0.68, 2)
    rough = signs["contour"] * weights["contour"] + signs["base_contour"]
    rough = rough + signs["mimic_contour_low"] * low + signs["mimic_contour_high"] * high
    liver = liver + 2.0 * local + 5.7 * rough * nodules
    room = _meet(cavity[box] - 3, under[box] - 2.5, 4) + 3.4 * np.minimum(rough * nodules, 0)
    liver = _meet(liver, room, 4)

    grain = np.abs(_evaluate(fields["texture"], axes)) - np.float32(0.8)
    coarse = signs["texture"] * weights["texture"] + signs["base_texture"]
    coarse = coarse + signs["mimic_texture"] * _band(depth, -1, 0.42)
    inside = slab.paint(
        box, liver, hu["liver"] + 30 * coarse * grain + 1.5 * local, max(slab.edge, 0.4 * dome_edge)
    )
    before = slab.hu[box].copy()
    _paint_vessels(a, slab)
    slab.hu[box] = before + inside * (slab.hu[box] - before)  # vessels stay within the liver
    slab.paint(box, slab.tube(box, (20, -24, 60), (22, -18, 152), (11.5, 12)), hu["cava"])
    slab.paint_tube((12, 0, 62), (30, 12, 80), (7, 7), hu["portal"])
    if a["gallbladder"]:
        slab.paint(box, _meet(bladder, cavity[box] - 3, 3), 12)
    cover[box] = inside
    return cover


def _paint_vessels(a, slab):
    """Portal tree from the porta, hepatic veins into the vena cava."""
    portal, hepatic = a["hu"]["portal"], a["hu"]["hepatic"]
    for start, end, radii, hu in (
        ((30, 12, 80), (62, 2, 88), (7, 6), portal),
        ((62, 2, 88), (92, 34, 100), (5, 2.5), portal),
        ((92, 34, 100), (112, 44, 124), (3, 1.5), portal),
        ((62, 2, 88), (100, -28, 76), (5, 2.5), portal),
        ((100, -28, 76), (118, -38, 52), (3, 1.5), portal),
        ((92, 34, 100), (104, 50, 74), (3, 1.5), portal),
        ((62, 2, 88), (88, -14, 122), (4, 2), portal),
        ((30, 12, 80), (8, 38, 102), (6, 4.5), portal),
        ((8, 38, 102), (-30, 50, 118), (4, 2), portal),
        ((8, 38, 102), (6, 66, 96), (3.5, 2), portal),
        ((22, -16, 148), (62, -2, 128), (6, 4.5), hepatic),
        ((62, -2, 128), (108, 4, 92), (4.5, 2), hepatic),
        ((62, -2, 128), (112, -20, 118), (3.5, 2), hepatic),
        ((22, -14, 148), (44, 34, 122), (6, 4), hepatic),
        ((44, 34, 122), (62, 58, 86), (4, 2), hepatic),
        ((22, -14, 148), (-2, 30, 132), (5, 4), hepatic),
        ((-2, 30, 132), (-38, 46, 108), (3.5, 1.5), hepatic),
        ((30, 0, 66), (96, -10, 34), (3.5, 2), hepatic),
    ):
        slab.paint_tube(start, end, radii, hu)


# --- the scan -------------------------------------------------------------------------------------


def draw_patient(phantom: Phantom, cohort: str, number: int) -> Patient:
    """Draw one patient; depends on (phantom, cohort, number) only, not on order or workers.

    Args:
        phantom: the definition.
        cohort: "radio", "d1" or "d2".
        number: 0..2798, 0..105 or 0..48.

    Raises:
        ValueError: if the cohort or the number does not exist.
    """
    a, row, (field_seed, noise_seed) = _sample(phantom, cohort, number)
    fields = _draw_fields(np.random.default_rng(field_seed), a["texture_size"])
    d = phantom.depth_dependence
    a["weight"] = lambda name, depth: sign_weight(name, depth, d)
    a["spleen_weight"] = lambda z: np.float32(sign_weight("spleen", z / LIVER_HEIGHT, d))
    noise = np.random.default_rng(noise_seed)
    n, size, pixel, scale = len(a["z"]), phantom.image_size, a["pixel_mm"], a["scale"]
    in_plane = (np.arange(size) - (size - 1) / 2) * pixel
    x, y = (in_plane + a["centre"][0]) / scale[0], (in_plane + a["centre"][1]) / scale[1]
    hu, mask = np.empty((n, size, size), np.int16), np.zeros((n, size, size), np.uint8)
    edge = max(1.2 * pixel, 1.2)
    thick = max(4, THICK // size**2)  # slices at once
    kept = (np.abs(y - a["fat"][1] / 2 + 20) < 145 + a["fat"][1] / 2, np.abs(x) < 172 + a["fat"][0])
    inner = tuple(slice(i[0], i[-1] + 1) for i in map(np.flatnonzero, kept))  # the rest is air
    for start in range(0, n, thick):
        part = slice(start, min(start + thick, n))
        image = np.full((part.stop - start, size, size), -1000, np.float32)
        axes = (a["z"][part] / scale[2], y[inner[0]], x[inner[1]])
        image[:, *inner], liver = _paint(a, fields, axes, edge)
        image += np.float32(a["noise_hu"]) * _noise(noise, image.shape, a["smooth"])
        hu[part] = np.rint(np.clip(image, -1024, 3000))
        mask[part][:, *inner] = liver > 0.5

    affine = np.diag([pixel, pixel, a["spacing_mm"], 1.0])
    affine[:3, 3] = [
        in_plane[0] + a["origin"][0],
        in_plane[0] + a["origin"][1],
        a["z"][0] + a["origin"][2],
    ]
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(a["orientation"]))
    stored = [nib.orientations.apply_orientation(v.transpose(2, 1, 0), turn) for v in (hu, mask)]
    return Patient(*stored, affine @ inv_ornt_aff(turn, (size, size, n)), row)


def _noise(rng, shape, neighbour):
    """Noise of SD 1, correlated in each slice by the kernel (neighbour, 1, neighbour) twice."""
    white = rng.standard_normal((shape[0], shape[1] + 2, shape[2] + 2), dtype=np.float32)
    weight, norm = np.float32(neighbour), np.float32(1 + 2 * neighbour**2)
    rows = white[:, 1:-1] + weight * (white[:, :-2] + white[:, 2:])
    return (rows[..., 1:-1] + weight * (rows[..., :-2] + rows[..., 2:])) / norm


# --- the cohort on disk ---------------------------------------------------------------------------


def _write_image(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """NIfTI, gzipped without name or date: equal images are equal files. Temporary name first."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file, gzip.GzipFile("", "wb", 1, file, mtime=0) as packed:
            packed.write(image.to_bytes())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_patient(folder: Path, phantom: Phantom, cohort: str, number: int) -> None:
    """Draw and write one patient unless both of its files are there; the volume comes last."""
    name = f"{cohort}_{number:04d}.nii.gz"
    volume, mask = folder / "volumes" / name, folder / "masks" / name
    if volume.exists() and mask.exists():
        return
    patient = draw_patient(phantom, cohort, number)
    _write_image(mask, patient.mask, patient.affine)
    _write_image(volume, patient.volume, patient.affine)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is answered by the parent


def make_phantom(
    folder: str | Path,
    phantom: Phantom | None = None,
    scale: float = 0.1,
    scale_histology: float = 1.0,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write the cohorts radio, d1 and d2 as NIfTI with liver masks and a table; resumes.

    ``folder`` receives volumes/PATIENT.nii.gz (int16 HU, varying orientation), masks/PATIENT.nii.gz
    (liver = 1), phantom.json (every parameter) and, last, cohort.csv. Files that exist are kept,
    since phantom.json guards their definition. Columns that begin with ``true_`` are hidden causes,
    for audits only.

    Args:
        folder: made if missing; one definition per folder, any scale.
        phantom: the definition; None is ``Phantom()``.
        scale: share of D_radio's 2,799 patients, in (0, 1].
        scale_histology: share of D1's 106 and D2's 49 patients, in (0, 1].
        workers: processes; None is one per core, 1 draws in this process.
        progress: show a bar.

    Returns:
        Path of cohort.csv.

    Raises:
        ValueError: if the folder holds another definition, or a scale is outside (0, 1].
    """
    folder, phantom = Path(folder), phantom or Phantom()
    pairs = list_patients(phantom, scale, scale_histology)
    definition = {"version": VERSION, **asdict(phantom)}
    _claim(folder, definition)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(workers or cores or 1, len(pairs))
    bar = tqdm(total=len(pairs), desc="phantom", unit="patient", disable=not progress)
    with bar:
        if workers == 1:
            for pair in pairs:
                _write_patient(folder, phantom, *pair)
                bar.update()
        else:
            with ProcessPoolExecutor(workers, get_context("spawn"), _ignore_interrupt) as pool:
                try:
                    jobs = [pool.submit(_write_patient, folder, phantom, *pair) for pair in pairs]
                    for job in as_completed(jobs):
                        job.result()
                        bar.update()
                except BaseException:
                    pool.shutdown(wait=True, cancel_futures=True)
                    raise
    rows = []
    for cohort, number in pairs:
        row = describe_patient(phantom, cohort, number)
        name = f"{row['patient']}.nii.gz"
        rows.append({"volume": f"volumes/{name}", "mask": f"masks/{name}", **row})
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write_text(folder / "cohort.csv", table.getvalue())
    return folder / "cohort.csv"


def _claim(folder: Path, definition: dict[str, Any]) -> None:
    """Make the folder, or check that it holds the same definition."""
    note = folder / "phantom.json"
    if note.exists():
        found = json.loads(note.read_text(encoding="utf-8"))
        names = sorted(definition.keys() | found.keys())
        changed = [
            f"{name} = {found.get(name)} there, {definition.get(name)} asked"
            for name in names
            if found.get(name) != definition.get(name)
        ]
        if changed:
            raise ValueError(
                f"{note}: the folder holds another phantom ({'; '.join(changed)}): "
                "choose another folder or delete this one"
            )
    elif any((folder / "volumes").glob("*.nii.gz")):
        raise ValueError(
            f"{note}: missing beside volumes of unknown definition: "
            "choose another folder or delete this one"
        )
    for part in ("volumes", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    _write_text(note, json.dumps(definition, indent=1) + "\n")
