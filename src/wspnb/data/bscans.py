"""B-scans of optical coherence tomography: preprocessing, and the store of ``slices.py`` for them.

The store is the one of the CT slices (``open_slices``), with one row per B-scan: patient, eye,
side, visit, scan, position, bcva, cst, cohort (train or test) and a column 0/1 for each biomarker,
empty where nobody read the scan.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from wspnb.data.store import FORMAT, write_settings
from wspnb.data.volumes import resize
from wspnb.files import package_version, write_csv

# Column of the store -> header of the authors' label tables.
BIOMARKERS = {
    "irf": "Fluid (IRF)",
    "drt_me": "DRT/ME",
    "ir_hrf": "IR HRF",
    "favf": "Fully attached vitreous face",
    "pavf": "Partially attached vitreous face",
    "vd": "Vitreous debris",
}
COLUMNS = ("patient", "eye", "side", "visit", "scan", "position", "bcva", "cst", "cohort")
NO_SCAN = pd.DataFrame(columns=["volume", "patient", "reason"])


def prepare_bscan(image: np.ndarray, size: int) -> np.ndarray:
    """A grey B-scan as a square of bytes: padded with black, then interpolated with antialiasing.

    Args:
        image: ``(h, w)``, grey values 0..255.
        size: pixels a side.

    Returns:
        ``(size, size)`` uint8.

    Raises:
        ValueError: if the image is not grey, or empty.
    """
    image = np.asarray(image)
    if image.ndim != 2 or not image.size:
        raise ValueError(f"B-scan of shape {image.shape}: expected (h, w), grey values")
    return np.rint(resize(image.astype(np.float32), size, air=0.0)).clip(0, 255).astype(np.uint8)


def write_bscans(folder: str | Path, blocks, table: pd.DataFrame, *more, **settings) -> Path:
    """:func:`write_store` of B-scans, whose table has :data:`COLUMNS` at least.

    Raises:
        ValueError: also if a column is missing; nothing is written.
    """
    if missing := [name for name in COLUMNS if name not in table]:
        raise ValueError(f"{folder}: the table has no column {missing}")
    return write_store(folder, blocks, table, *more, **settings)


def write_store(
    folder: str | Path,
    blocks: Iterable[np.ndarray],
    table: pd.DataFrame,
    size: int,
    failed: pd.DataFrame = NO_SCAN,
    **settings,
) -> Path:
    """Write a store; each file appears whole or not at all, ``slices.npy`` last.

    Args:
        folder: made if missing; a store there is replaced.
        blocks: images in the order of the table, ``(k, size, size)`` uint8 each.
        table: one row per image, in the columns of notebook 01's store.
        size: pixels a side.
        failed: volume, patient and reason of what was left out.
        settings: what the images were made from, kept in ``store.json``.

    Returns:
        The folder.

    Raises:
        ValueError: if the blocks do not fit the table; nothing is written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shape, part, done = (len(table), size, size), folder / "slices.npy.part", 0
    try:
        images = np.lib.format.open_memmap(part, "w+", np.uint8, shape)
        for block in blocks:
            if block.dtype != np.uint8 or block.shape[1:] != shape[1:]:
                raise ValueError(f"{folder}: images {block.dtype}{block.shape}, expected {shape}")
            images[done : done + len(block)] = block
            done += len(block)
        if done != len(table):
            raise ValueError(f"{folder}: {done} images for {len(table)} rows")
        images.flush()
        del images
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    store = {"format": FORMAT, **settings, "image_size": size, "n_slices": len(table)}
    store |= {"convention": "k/(n-1)", "n_patients": int(table.patient.nunique())}
    store |= {"n_failed": len(failed), "versions": {"wspnb": package_version("wspnb")}}
    (folder / "inventory.csv").unlink(missing_ok=True)  # of a store that was here
    write_csv(folder / "slices.csv", table)
    write_csv(folder / "failed.csv", failed)
    write_settings(folder, part, store)
    os.replace(part, folder / "slices.npy")
    return folder
