"""Synthetic abdominal CT cohorts with the mechanisms the paper argues from.

A demonstration, not evidence about livers. A hidden severity in [0, 1] causes both the histological
stage and the image. The radiologist reads it with noise (weak label), its signs show at some depths
only, other anatomy imitates them elsewhere, and scanners differ between cohorts. This file says who
the patients are and writes their files; ``anatomy.py`` paints them, independent of the pixels.
"""

import csv
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

from wspnb.data.volumes import write_image
from wspnb.files import write_text
from wspnb.phantom.anatomy import (
    BANDS,
    LIVER_HEIGHT,
    caudate_growth,
    draw_fields,
    paint,
    spleen_growth,
)

VERSION = 1  # of the definition: raise it with every change that alters a voxel or a label

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
ORIENTATIONS = ("RAS", "LPS", "LAS", "RPS", "LPI", "LAI", "PLS", "SRA")  # as archives hold them
ORIENTATION_ODDS = (0.25, 0.3, 0.2, 0.08, 0.06, 0.05, 0.03, 0.03)  # paper silent
THICK = 200_000  # pixels painted at once: bounds the memory and stays in the processor's cache


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
    """Normal, cut at its tails: mean + sd * clip(z)."""
    return float(mean + sd * np.clip(rng.standard_normal(), low, high))


def _acquisition(phantom: Phantom, cohort: str, rng) -> dict[str, Any]:
    """Scanner, phase, spacing. radio: five scanners; d1: one centre; d2: an older archive."""
    shift = phantom.shift
    scanner = int(rng.integers(5))
    noise = (0.75, 0.9, 1.0, 1.15, 1.3)[scanner] * _clipped(rng, 1, 0.12)
    smooth = (0.20, 0.45, 0.30, 0.40, 0.25)[scanner]
    phase = _clipped(rng, 0, 0.8)
    spacing = phantom.spacing_mm * _clipped(rng, 1, phantom.spacing_sd, -1.2, 1.8)
    if cohort in ("d1", "population"):
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
        "scanner": {"radio": f"r{scanner}", "d2": f"t{scanner}"}.get(cohort, "c0"),
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
    a["depth_dependence"] = phantom.depth_dependence

    size = _clipped(rng, 0, 1)  # habitus: thin .. big
    growth = ((1 + 0.035 * size, 0.03), (1 + 0.04 * size, 0.03), (1, 0.06))
    a["scale"] = np.array([_clipped(rng, mean, sd) for mean, sd in growth])
    a["fat"] = np.clip([18 + 8 * size, 20 + 9 * size], 5, 45)  # mm: sides, front
    a["fat"] *= rng.uniform(0.7, 1.3, 2)
    a["turn"] = _clipped(rng, 0, 0.04)  # rad
    a["centre"] = rng.normal(0, 6, 2)  # mm, of the patient in the field of view
    a["breath"] = _clipped(rng, 0, 9)  # mm, diaphragm against skeleton
    organs = ("liver", "left", "spleen", "kidney_r", "kidney_l", "stomach", "gallbladder")
    a["jitter"] = {  # mm
        name: rng.normal(0, 1, 3).clip(-2, 2) * 4 for name in (*organs, "heart")
    }
    for name in (*organs, "caudate"):
        a[f"size_{name}"] = np.exp(rng.normal(0, 0.07) + rng.normal(0, 0.05, 3)).clip(0.78, 1.3)
    a["size_liver"][2] = np.clip(a["size_liver"][2], 0.9, 1.1)
    a["gas_level"], a["stomach_full"] = rng.uniform(15, 50), rng.uniform(0.75, 1.15)
    a["stomach_hu"] = rng.uniform(5, 45) if rng.random() < 0.8 else rng.uniform(120, 260)
    a["lobe_left"] = rng.uniform(-18, 14)  # mm, reach of the left lobe
    a["gallbladder"] = rng.random() < 0.88
    a["rib_phase"], a["rib_pitch"] = rng.uniform(0, 27), rng.uniform(24, 29)
    a["disc_phase"], a["texture_size"] = rng.uniform(0, 34), rng.uniform(6.0, 8.5)
    phase = a["phase"]
    liver = _clipped(rng, 110 + 5 * phase, 9)
    if rng.random() < 0.25:
        liver -= 18 * rng.random()  # fatty
    a["hu"] = {
        "liver": liver,
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
    spread = 0.8 * size + _clipped(rng, 0, 0.6)  # the operator fits the field to the body
    pixel *= 1 + phantom.pixel_sd * spread
    a["pixel_mm"] = float(max(pixel, (body + 8) / phantom.image_size))
    below, above = rng.uniform((14, 10), (28, 24))  # mm beyond the liver, and up to a slice more
    bottom = -below - rng.uniform(0, 1) * a["spacing_mm"]
    top = LIVER_HEIGHT * a["scale"][2] + above + 0.7 * a["spacing_mm"]
    a["z"] = np.arange(bottom, top, a["spacing_mm"])
    a["orientation"] = str(rng.choice(ORIENTATIONS, p=ORIENTATION_ODDS))
    origin = np.array([*rng.normal(0, 15, 2), rng.uniform(-900, 200)])
    a["origin"] = origin.round(2)  # mm, of the table

    def in_plane(organ, growth):
        return round(float(np.prod(a[f"size_{organ}"][:2]) ** 0.5) * growth, 4)

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
        "true_spleen": in_plane("spleen", spleen_growth(signs["spleen"])),
        "true_caudate": in_plane("caudate", caudate_growth(signs["caudate"])),
    }
    return a, row, seeds[2:]


# --- the scan -------------------------------------------------------------------------------------


def draw_patient(phantom: Phantom, cohort: str, number: int) -> Patient:
    """Draw one patient; depends on (phantom, cohort, number) only, not on order or workers.

    Args:
        phantom: the definition.
        cohort: "radio", "d1", "d2" or "population".
        number: 0..2798, 0..105, 0..48 or 0..1059.

    Raises:
        ValueError: if the cohort or the number does not exist.
    """
    a, row, (field_seed, noise_seed) = _sample(phantom, cohort, number)
    fields = draw_fields(np.random.default_rng(field_seed), a["texture_size"])
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
        image[:, *inner], liver = paint(a, fields, axes, edge)
        image += np.float32(a["noise_hu"]) * _noise(noise, image.shape, a["smooth"])
        hu[part] = np.rint(np.clip(image, -1024, 3000))
        mask[part][:, *inner] = liver > 0.5

    affine = np.diag([pixel, pixel, a["spacing_mm"], 1.0])
    affine[:3, 3] = a["origin"] + (in_plane[0], in_plane[0], a["z"][0])
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


def _write_patient(folder: Path, phantom: Phantom, cohort: str, number: int) -> None:
    """Draw and write one patient unless both of its files are there; the volume comes last."""
    name = f"{cohort}_{number:04d}.nii.gz"
    volume, mask = folder / "volumes" / name, folder / "masks" / name
    if volume.exists() and mask.exists():
        return
    patient = draw_patient(phantom, cohort, number)
    write_image(mask, patient.mask, patient.affine)
    write_image(volume, patient.volume, patient.affine)


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
    write_text(folder / "cohort.csv", table.getvalue())
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
    write_text(note, json.dumps(definition, indent=1) + "\n")
