"""Synthetic OCT volumes: what edema does to the retina, to its thickness and to the vision.

A demonstration, not evidence about eyes. One hidden edema per visit raises the central thickness
(CST), lowers the vision (BCVA) and makes fluid and hyper-reflective foci more likely, at some scan
positions more than at others. The state of the vitreous is apart from it. Build, vision, contrast,
tilt and noise differ between patients. Every strength is a parameter with its source.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import ndtri

from wspnb.data.bscans import BIOMARKERS, write_bscans
from wspnb.data.store import holds
from wspnb.phantom.patients import check_limits

VERSION = 1  # of the definition: raise it with every change that alters a pixel or a label

# Share of scans with the biomarker at position 0, 1/2 and 1. IRF as audited on OLIVES' 9,408 rows;
# the others counted in the 4,900 public rows (first, middle and last seventh of the volume).
PREVALENCE = {
    "irf": (0.32, 0.56, 0.36),
    "drt_me": (0.17, 0.19, 0.15),
    "ir_hrf": (0.53, 0.67, 0.60),
    "favf": (0.51, 0.54, 0.44),
    "pavf": (0.29, 0.33, 0.22),
    "vd": (0.39, 0.32, 0.34),
}
# Correlation of each biomarker's cause with the edema of the visit; paper silent.
EDEMA = {"irf": 0.7, "drt_me": 0.8, "ir_hrf": 0.4, "favf": 0.0, "vd": 0.0}
# Grey value by relative depth in the retina, from the inner surface (0) to the pigment layer (1).
DEPTHS = (0, 0.05, 0.12, 0.16, 0.34, 0.38, 0.46, 0.50, 0.56, 0.60, 0.82, 0.85, 0.89, 0.92, 1.0)
GREYS = (0.55, 0.8, 0.75, 0.5, 0.5, 0.28, 0.28, 0.5, 0.5, 0.2, 0.2, 0.85, 0.4, 0.95, 0.95)
SKEW = 0.45  # of CST, SD of its logarithm; paper silent
SPAN = (6.0, 4.0)  # mm, along a B-scan and across the volume; paper silent


@dataclass(frozen=True)
class OctPhantom:
    """Parameters of the definition; every pixel follows from them."""

    patients: int = 60
    test_share: float = 1 / 3  # of the patients, never pretrained on; paper silent
    second_eye: float = 0.1  # share of patients with both eyes; public list: 5 of 71
    visits: int = 4  # per eye; the first and last are read for biomarkers, as in OLIVES
    scans: int = 49  # per visit, OLIVES
    image_size: int = 64  # pixels a side
    height_um: float = 1100.0  # field of view in depth; paper silent
    cst_um: tuple[float, float] = (394.0, 138.0)  # mean, SD; public list of 76 volumes
    bcva_letters: tuple[float, float] = (74.0, 12.0)  # mean, SD; the same list
    edema_cst: float = 0.85  # correlation of edema and CST; paper silent
    bcva_cst: float = -0.67  # correlation of BCVA and CST; the same list
    position_dependence: float = 1.0  # 0 = biomarkers everywhere alike, 1 = as PREVALENCE
    sign_strength: float = 1.0  # factor on what the biomarkers draw; paper silent
    noise: float = 0.16  # SD of the speckle, share of the grey value; paper silent
    seed: int = 0

    def __post_init__(self):
        limits = {"patients": (4, 10_000), "test_share": (0.05, 0.95), "visits": (2, 50)}
        limits |= {"scans": (2, 500), "image_size": (24, 512), "edema_cst": (0.75, 1)}
        limits |= {"bcva_cst": (-0.68, 0), "position_dependence": (0, 1), "second_eye": (0, 1)}
        limits |= {"sign_strength": (0, 5), "noise": (0, 1), "height_um": (700, 3000)}
        check_limits(self, limits | {"seed": (0, 2**63)})
        if not 0 < round(self.patients * self.test_share) < self.patients:
            found = f"patients={self.patients}, test_share={self.test_share}"
            raise ValueError(f"{found}: both parts need a patient")


def draw_visits(phantom: OctPhantom) -> pd.DataFrame:
    """One row per visit: patient, eye, side, visit, cohort, bcva, cst, edema and build."""
    random, rows = np.random.default_rng([VERSION, phantom.seed]), []
    n_test = round(phantom.patients * phantom.test_share)
    # CST is lognormal (thin retinas are alike, swollen ones are not): its correlation with the
    # normal value behind it is SKEW / sqrt(exp(SKEW^2) - 1).
    spread = (np.exp(SKEW**2) - 1) ** 0.5
    b = -phantom.bcva_cst / phantom.edema_cst * spread / SKEW
    eye = 0
    for number in range(phantom.patients):
        build = random.normal()
        sides = ["OD", "OS"] if random.random() < phantom.second_eye else [["OD", "OS"][number % 2]]
        for side in sides:
            own, vision = random.normal(size=2)
            eye += 1
            for visit in range(phantom.visits):
                edema = 0.8 * own + 0.6 * random.normal()
                thick = phantom.edema_cst * edema + (1 - phantom.edema_cst**2) ** 0.5 * build
                other = 0.9 * vision + 0.19**0.5 * random.normal()  # what else takes vision
                sight = -b * edema + (1 - b**2) ** 0.5 * other
                skewed = (np.exp(SKEW * thick - SKEW**2 / 2) - 1) / spread  # mean 0, SD 1
                cst = phantom.cst_um[0] + phantom.cst_um[1] * skewed
                bcva = phantom.bcva_letters[0] + phantom.bcva_letters[1] * sight
                row = {"patient": f"P{number:03d}", "eye": eye, "side": side, "visit": visit}
                row |= {"cohort": "test" if number < n_test else "train"}
                row |= {"bcva": int(np.clip(round(bcva), 0, 100)), "cst": round(cst)}
                rows.append(row | {"edema": edema, "build": build})
    return pd.DataFrame(rows)


def prevalence(name: str, positions: np.ndarray, dependence: float = 1.0) -> np.ndarray:
    """Share of scans with a biomarker at positions in [0, 1], ``(n,)``."""
    profile = np.interp(positions, [0, 0.5, 1], PREVALENCE[name])
    mean = np.interp(np.linspace(0, 1, 101), [0, 0.5, 1], PREVALENCE[name]).mean()
    return mean + dependence * (profile - mean)


def draw_signs(edema: float, phantom: OctPhantom, random) -> tuple[dict, dict]:
    """Biomarkers of one visit: labels 0/1, and how far each cause is over its threshold.

    Both by name, ``(scans,)`` each. A cause is standard normal at every scan: edema, a part of the
    visit, and a part that changes slowly along the volume. It is compared with the normal quantile
    of the prevalence, which is therefore exact.
    """
    positions = np.linspace(0, 1, phantom.scans)
    labels, excess = {}, {}
    for name, weight in EDEMA.items():
        angles = np.pi * np.arange(1, 4)[:, None] * positions
        sine, cosine = random.normal(size=(2, 3, 1))
        local = (sine * np.sin(angles) + cosine * np.cos(angles)).sum(0) / 3**0.5
        own = 0.5 * local + 0.75**0.5 * random.normal()
        cause = weight * edema + (1 - weight**2) ** 0.5 * own
        share = prevalence(name, positions, phantom.position_dependence)
        excess[name] = cause - ndtri(1 - share)
        labels[name] = (excess[name] > 0).astype(np.uint8)
        if name == "favf":  # attached on the whole width, else in part, else not at all
            both = share + prevalence("pavf", positions, phantom.position_dependence)
            excess["pavf"] = cause - ndtri(1 - both)
            labels["pavf"] = ((excess["pavf"] > 0) & (labels["favf"] == 0)).astype(np.uint8)
    return {name: labels[name] for name in BIOMARKERS}, excess


def paint_visit(visit, signs: dict, excess: dict, phantom: OctPhantom, random) -> np.ndarray:
    """B-scans of one visit, ``(scans, size, size)`` uint8: of a row of :func:`draw_visits` and of
    what :func:`draw_signs` gave for it."""
    n, size, micron = phantom.scans, phantom.image_size, phantom.image_size / phantom.height_um
    x = np.linspace(-0.5, 0.5, size)[None] * SPAN[0]  # mm
    z = np.linspace(-0.5, 0.5, n)[:, None] * SPAN[1]
    off_x, off_z = random.normal(0, 0.15, 2)  # the eye does not look exactly at the middle
    centre = np.exp(-((x - off_x) ** 2 + (z - off_z) ** 2) / (2 * 0.6**2))  # (n, size)
    around = 300 + 25 * visit.build + 0.35 * max(visit.cst - 300, 0)  # um, outside the fovea
    nasal = 1 + 0.06 * x * (1 if visit.side == "OD" else -1)  # nerve fibres: sides are mirrored
    thick = around * nasal + (visit.cst - around) * centre
    swelling = np.clip(excess["drt_me"], 0, 2) * signs["drt_me"]
    bump = random.normal(0, 0.8), random.uniform(0.8, 1.6)
    hill = np.exp(-((x - bump[0]) ** 2) / (2 * bump[1] ** 2))
    swollen, strength = signs["drt_me"][:, None] > 0, phantom.sign_strength
    thick = thick + strength * 70 * (0.5 + swelling[:, None]) * hill * swollen
    tilt, bend = random.normal(0, 25), random.uniform(2, 14)  # um per mm, um per mm2
    base = 780 + random.normal(0, 25) + np.cumsum(random.normal(0, 3, (n, 1)), 0)
    bottom = np.clip(base + tilt * x - bend * x**2, 520, 1000) * micron  # pigment layer, pixels
    top = bottom - thick * micron
    y = np.arange(size)[None, :, None]  # (1, size, 1)
    depth = (y - top[:, None]) / (bottom - top)[:, None]  # (n, size, size), 0..1 in the retina
    image = np.interp(depth, DEPTHS, GREYS).astype(np.float32)
    below = np.clip((depth - 1) * (thick * micron)[:, None], 0, None)
    image = np.where(depth > 1, 0.55 * np.exp(-below / (0.12 * size)), image)
    image = np.where(depth < 0, 0.04, image)

    places = zip(random.normal(off_x, 0.9, 12), random.uniform(0.3, 0.75, 12), strict=True)
    for number, (at, deep) in enumerate(places):  # cysts, the more the further over the threshold
        radius = random.uniform(35, 80) * micron * np.clip(5 * excess["irf"] - number + 1, 0, 1)
        radius = np.maximum(radius * signs["irf"], 1e-3)[:, None, None]
        wide = random.uniform(1.0, 1.6) * radius
        height = (y - (top + deep * (bottom - top))[:, None]) / radius
        width = (x - at)[:, None] * size / SPAN[0] / wide
        inside = 1 / (1 + np.exp(np.clip(4 * (height**2 + width**2 - 1), -30, 30)))
        image = image * (1 - np.clip(0.9 * strength * inside, 0, 1))

    spots = np.zeros((n, size, size), np.float32)
    for scan in range(n):  # foci in the retina, debris above it
        for name, low, high, grey in (("ir_hrf", 0.1, 0.8, 1.6), ("vd", -0.9, -0.1, 0.9)):
            count = signs[name][scan] * int(np.ceil(2 + 4 * np.clip(excess[name][scan], 0, 2)))
            column = random.integers(size, size=count)
            edge, length = top[scan, column], (bottom - top)[scan, column]
            row = np.clip(edge + random.uniform(low, high, count) * length, 0, size - 1)
            spots[scan, row.astype(int), column] += grey * strength
    for axis in (1, 2):
        spots = sum(w * np.roll(spots, s, axis) for s, w in ((-1, 0.25), (0, 1), (1, 0.25)))

    gap = np.full((n, size), random.uniform(90, 260)) * micron  # of the vitreous face
    partial = np.clip(np.abs(x - off_x) - 0.4, 0, None) * random.uniform(40, 90) * micron
    gap = np.where(signs["pavf"][:, None] > 0, partial, gap)
    face = top - np.where(signs["favf"][:, None] > 0, 0.3, gap)
    line = np.exp(-0.5 * ((y - face[:, None] + 0.7) / 0.6) ** 2)
    image = np.maximum(image, np.clip(0.45 * strength * line, 0, 1)) + spots

    shadows = np.ones((1, 1, size), np.float32)  # of vessels, in every scan
    for column in random.integers(size, size=random.integers(2, 6)):
        shadows[..., max(0, column - 1) : column + 1] *= 0.65
    image = np.where(depth > 0.15, image * shadows, image)
    gain, gamma = random.uniform(0.6, 1.0), random.uniform(0.9, 1.4)
    image = gain * np.clip(image, 0, 1.2) ** gamma
    image = image * (1 + phantom.noise * random.normal(size=image.shape).astype(np.float32))
    image = image + 0.03 * np.abs(random.normal(size=image.shape).astype(np.float32))
    return (255 * np.clip(image, 0, 1)).astype(np.uint8)


def make_oct(folder: str | Path, phantom: OctPhantom, progress=None) -> Path:
    """Draw all volumes into a store that :func:`wspnb.data.slices.open_slices` opens; one of the
    same parameters there is kept, another replaced. ``progress`` wraps the visits (``tqdm``).
    Returns the folder."""
    settings = {"source": "phantom", "definition": VERSION, "phantom": asdict(phantom)}
    if holds(folder, settings):
        return Path(folder)
    visits, tables, drawn = draw_visits(phantom), [], []
    positions = np.linspace(0, 1, phantom.scans)
    for number, visit in enumerate(visits.itertuples()):
        random = np.random.default_rng([VERSION, phantom.seed, 1, number])
        signs, excess = draw_signs(visit.edema, phantom, random)
        own = {name: getattr(visit, name) for name in visits if name not in ("edema", "build")}
        table = pd.DataFrame({"scan": np.arange(1, phantom.scans + 1), "position": positions})
        table = table.assign(**own, volume=f"{visit.patient}/{visit.side}/V{visit.visit}")
        read = visit.visit in (0, phantom.visits - 1)
        tables.append(table.assign(**{k: v if read else np.nan for k, v in signs.items()}))
        drawn.append((visit, signs, excess, phantom, random))

    def paint() -> Iterator[np.ndarray]:
        for job in progress(drawn) if progress else drawn:
            yield paint_visit(*job)

    table = pd.concat(tables, ignore_index=True)
    return write_bscans(folder, paint(), table, phantom.image_size, **settings)
