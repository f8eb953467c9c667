"""Drawn patients straight into the store's form: the pixels that the NIfTI way gives, in less time.

Nothing is read from a file here, so nothing of reading is tested by it; notebook 01 takes the long
way for the cohorts that stand for a hospital's.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from wspnb.data.store import holds, write_store
from wspnb.data.volumes import central_slices, slice_positions, to_image, window
from wspnb.phantom.patients import Phantom, list_patients
from wspnb.phantom.scans import VERSION, draw_patient
from wspnb.workers import in_order

CHUNK = 16  # patients of one job of a worker


def draw_slices(phantom: Phantom, cohort: str, number: int) -> tuple[np.ndarray, pd.DataFrame]:
    """The kept slices of one drawn patient, as :func:`wspnb.data.slices.prepare_volume` gives them:
    ``(n_kept, size, size)`` uint8, lowest first, and their rows of the store's table; arguments as
    :func:`~wspnb.phantom.scans.draw_patient`."""
    patient = draw_patient(phantom, cohort, number)
    turn = nib.orientations.io_orientation(patient.affine)
    hu, mask = (nib.orientations.apply_orientation(v, turn) for v in patient[:2])
    kept = central_slices(mask)
    images = window(np.stack([to_image(hu[:, :, z]) for z in kept]))
    named = {"weak_label": None, "label": None} | {k: v for k, v in patient.row.items() if v != ""}
    rows = pd.DataFrame({"position": slice_positions(len(kept)), "z": kept}).assign(**named)
    return images, rows.assign(volume=patient.row["patient"], n_kept=len(kept))


def make_store(
    folder: str | Path,
    phantom: Phantom,
    scale: float = 1.0,
    scale_histology: float = 1.0,
    population: float = 1.0,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Draw the cohorts of a phantom into a store; one of the same definition there is kept, another
    replaced.

    Arguments and errors as :func:`wspnb.phantom.scans.make_phantom`; returns the folder, for
    :func:`wspnb.data.slices.open_slices`.
    """
    shares = {"scale": scale, "scale_histology": scale_histology, "population": population}
    pairs = list_patients(phantom, **shares)
    definition = {"phantom": {"version": VERSION, **asdict(phantom)}, **shares}
    if holds(folder, definition):
        return Path(folder)
    chunks = [pairs[i : i + CHUNK] for i in range(0, len(pairs), CHUNK)]
    bar = tqdm(total=len(pairs), desc="phantom", unit="patient", disable=not progress)
    images, rows = [], []
    with bar, closing(in_order(_draw_chunk, [(phantom, c) for c in chunks], workers, 1)) as drawing:
        for drawn, table in drawing:
            images.append(drawn)
            rows.append(table)
            bar.update(table.patient.nunique())
    table = pd.concat(rows, ignore_index=True)
    for name in ("weak_label", "label", "stage"):
        table[name] = table[name].astype("Int64")
    return write_store(folder, images, table, phantom.image_size, **definition)


def _draw_chunk(phantom: Phantom, pairs: Sequence[tuple[str, int]]):
    """Slices and rows of some patients."""
    drawn = [draw_slices(phantom, *pair) for pair in pairs]
    return np.concatenate([d[0] for d in drawn]), pd.concat([d[1] for d in drawn])
