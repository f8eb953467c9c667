"""The synthetic scans: each patient's voxels, and the cohorts as NIfTI files with their table."""

import json
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from scipy import ndimage
from tqdm.auto import tqdm

from wspnb.data.volumes import write_image
from wspnb.files import own_files, read_json, write_csv, write_text
from wspnb.phantom.anatomy import paint
from wspnb.phantom.bodies import describe_patient, sample_body
from wspnb.phantom.patients import Phantom, list_patients
from wspnb.phantom.solids import draw_fields
from wspnb.workers import in_order

VERSION = 1  # of the definition: raise it when a voxel of a scan, a kept slice or a label changes
THICK = 200_000  # pixels painted at once: bounds the memory and stays in the processor's cache


class Patient(NamedTuple):
    """One synthetic scan as it is stored."""

    volume: np.ndarray  # HU, int16, axes in the orientation of `affine`
    mask: np.ndarray  # liver = 1, uint8, same axes
    affine: np.ndarray  # (4, 4), voxel to mm, x right, y front, z head
    row: dict[str, Any]  # the patient's line of cohort.csv without the two paths


def draw_patient(phantom: Phantom, cohort: str, number: int) -> Patient:
    """Draw one patient; depends on (phantom, cohort, number) only, not on order or workers.

    Args:
        cohort, number: "radio", "d1", "d2" or "population"; 0..2798, 0..105, 0..48 or 0..1059.

    Raises:
        ValueError: if the cohort or the number does not exist.
    """
    a, row, (field_seed, noise_seed) = sample_body(phantom, cohort, number)
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
    mask = in_one_piece(mask, (a["spacing_mm"], pixel, pixel))

    affine = np.diag([pixel, pixel, a["spacing_mm"], 1.0])
    affine[:3, 3] = a["origin"] + (in_plane[0], in_plane[0], a["z"][0])
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(a["orientation"]))
    stored = [nib.orientations.apply_orientation(v.transpose(2, 1, 0), turn) for v in (hu, mask)]
    return Patient(*stored, affine @ inv_ornt_aff(turn, (size, size, n)), row)


def in_one_piece(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """A mask of one part: coarse voxels tear thin edges off the liver, straight lines tie them on.

    Its first and last slice stay, and with them the slices that are kept and their positions. The
    mask is uint8 and not empty, ``spacing`` in mm along each axis; the result hangs together by
    faces, edges or corners."""
    parts, n = ndimage.label(mask, np.ones((3, 3, 3)))
    largest = np.bincount(parts.ravel())[1:].argmax() + 1
    body, whole = np.argwhere(parts == largest) if n > 1 else None, mask.copy()
    for part in set(range(1, n + 1)) - {largest}:
        start = np.argwhere(parts == part)[0]
        end = body[np.square((body - start) * spacing).sum(1).argmin()]
        line = np.linspace(start, end, np.abs(end - start).max() + 1)
        whole[tuple(np.rint(line).astype(int).T)] = 1
    return whole


def _noise(rng, shape, neighbour):
    """Noise of SD 1, correlated in each slice by the kernel (neighbour, 1, neighbour) twice."""
    white = rng.standard_normal((shape[0], shape[1] + 2, shape[2] + 2), dtype=np.float32)
    weight, norm = np.float32(neighbour), np.float32(1 + 2 * neighbour**2)
    rows = white[:, 1:-1] + weight * (white[:, :-2] + white[:, 2:])
    return (rows[..., 1:-1] + weight * (rows[..., :-2] + rows[..., 2:])) / norm


def _write_patient(folder: Path, phantom: Phantom, cohort: str, number: int) -> None:
    """Draw and write one patient unless both of its files are there; the volume comes last."""
    name = f"{cohort}_{number:04d}.nii.gz"
    volume, mask = folder / "volumes" / name, folder / "masks" / name
    if volume.exists() and mask.exists():
        return
    patient = draw_patient(phantom, cohort, number)
    write_image(mask, patient.mask, patient.affine)
    write_image(volume, patient.volume, patient.affine)


def make_phantom(
    folder: str | Path,
    phantom: Phantom | None = None,
    scale: float = 0.1,
    scale_histology: float = 1.0,
    population: float = 0.0,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write all cohorts of a phantom as NIfTI with liver masks and a table; resumes.

    ``folder`` receives volumes/PATIENT.nii.gz (int16 HU, varying orientation), masks/PATIENT.nii.gz
    (liver = 1), phantom.json (every parameter) and, last, cohort.csv. Files that exist are kept,
    since phantom.json guards their definition. Columns that begin with ``true_`` are hidden causes,
    for audits only.

    Args:
        folder: made if missing; one definition per folder, any scale.
        phantom: the definition; None is ``Phantom()``.
        scale: share of D_radio's 2,799 patients, in (0, 1].
        scale_histology: share of D1's 106 and D2's 49 patients, in (0, 1].
        population: share of the 1,060 further patients, 0 for none.
        workers: processes; None is one per core, 1 draws in this process.

    Returns:
        Path of cohort.csv.

    Raises:
        ValueError: if the folder holds another definition, or a scale is outside (0, 1].
    """
    folder, phantom = Path(folder), phantom or Phantom()
    pairs = list_patients(phantom, scale, scale_histology, population)
    definition = {"version": VERSION, **asdict(phantom)}
    _claim(folder, definition)
    jobs = [(folder, phantom, *pair) for pair in pairs]
    options = {"desc": "phantom", "unit": "patient", "disable": not progress}
    with closing(in_order(_write_patient, jobs, workers, 3)) as written:
        deque(tqdm(written, total=len(pairs), **options), maxlen=0)
    table = pd.DataFrame([describe_patient(phantom, *pair) for pair in pairs])
    for place, part in enumerate(("volume", "mask")):
        table.insert(place, part, f"{part}s/" + table.patient + ".nii.gz")
    write_csv(folder / "cohort.csv", table)
    return folder / "cohort.csv"


def _claim(folder: Path, definition: dict[str, Any]) -> None:
    """Make the folder, or check that it holds the same definition."""
    note, advice = folder / "phantom.json", "choose another folder or delete this one"
    if note.exists():
        found = read_json(note)
        changed = [
            f"{name} = {found.get(name)} there, {definition.get(name)} asked"
            for name in sorted(definition.keys() | found.keys())
            if found.get(name) != definition.get(name)
        ]
        if changed:
            said = f"the folder holds another phantom ({'; '.join(changed)})"
            raise ValueError(f"{note}: {said}: {advice}")
    elif own_files(folder / "volumes", "*.nii.gz"):
        raise ValueError(f"{note}: missing beside volumes of unknown definition: {advice}")
    for part in ("volumes", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps(definition, indent=1) + "\n")
