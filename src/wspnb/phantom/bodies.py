"""What each synthetic patient looks like: scanner, signs, build and organs, in template mm."""

from typing import Any

import numpy as np

from wspnb.phantom.anatomy import BANDS, LIVER_HEIGHT, growth
from wspnb.phantom.patients import COHORTS, FIRST_POSITIVE, Phantom, draw_latent, list_classes

ORIENTATIONS = ("RAS", "LPS", "LAS", "RPS", "LPI", "LAI", "PLS", "SRA")  # as archives hold them
ORIENTATION_ODDS = (0.25, 0.3, 0.2, 0.08, 0.06, 0.05, 0.03, 0.03)  # paper silent


def describe_patient(phantom: Phantom, cohort: str, number: int) -> dict[str, Any]:
    """The patient's line of cohort.csv (without paths), known without drawing a voxel."""
    return sample_body(phantom, cohort, number)[1]


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
    strength = 1 / (1 + np.exp(-(severity - 0.58) / 0.07))
    signs = {}
    for name in BANDS:
        hidden, shown = rng.random() < 0.15, rng.uniform(0.65, 1.15)
        signs[name] = float(phantom.sign_strength * strength * (0.15 if hidden else shown))
    for name in ("mimic_contour_low", "mimic_contour_high", "mimic_texture"):
        signs[name] = float(phantom.mimicry * rng.uniform(0.1, 1.0))
    signs["base_contour"], signs["base_texture"] = (float(v) for v in rng.uniform(0, 0.2, 2))
    return signs


def sample_body(phantom: Phantom, cohort: str, number: int):
    """All of a patient but the voxels: (anatomy, row, seeds of the fields and of the noise)."""
    list_classes(cohort, phantom.seed)  # raises where there is no such cohort
    seeds = np.random.SeedSequence([phantom.seed, COHORTS[cohort], number]).spawn(4)
    label, severity, reading = draw_latent(phantom, cohort, number, np.random.default_rng(seeds[0]))
    rng = np.random.default_rng(seeds[1])
    a = _acquisition(phantom, cohort, rng)
    a["signs"] = signs = _signs(phantom, severity, rng)
    a["depth_dependence"] = phantom.depth_dependence

    size = _clipped(rng, 0, 1)  # habitus: thin .. big
    widths = ((1 + 0.035 * size, 0.03), (1 + 0.04 * size, 0.03), (1, 0.06))
    a["scale"] = np.array([_clipped(rng, mean, sd) for mean, sd in widths])
    a["fat"] = np.clip([18 + 8 * size, 20 + 9 * size], 5, 45)  # mm: sides, front
    a["fat"] *= rng.uniform(0.7, 1.3, 2)
    a["turn"] = _clipped(rng, 0, 0.04)  # rad
    a["centre"] = rng.normal(0, 6, 2)  # mm, of the patient in the field of view
    a["breath"] = _clipped(rng, 0, 9)  # mm, diaphragm against skeleton
    organs = ("liver", "left", "spleen", "kidney_r", "kidney_l", "stomach", "gallbladder")
    a["jitter"] = {name: rng.normal(0, 1, 3).clip(-2, 2) * 4 for name in (*organs, "heart")}  # mm
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

    def in_plane(organ):
        size = float(np.prod(a[f"size_{organ}"][:2]) ** 0.5)
        return round(size * growth(organ, signs[organ]), 4)

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
        "true_spleen": in_plane("spleen"),
        "true_caudate": in_plane("caudate"),
    }
    return a, row, seeds[2:]
