"""B-scans of optical coherence tomography: preprocessing, and their store.

The store is the one of the CT slices (``open_slices``), with one row per B-scan: patient, eye,
side, visit, scan, position, bcva, cst, cohort (train or test) and a column 0/1 for each biomarker,
empty where nobody read the scan.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from wspnb.data.store import write_store
from wspnb.data.volumes import resize
from wspnb.folds import check_names

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


def prepare_bscan(image: np.ndarray, size: int) -> np.ndarray:
    """A grey B-scan ``(h, w)``, 0..255, as a square of bytes ``(size, size)``: padded with black,
    then interpolated with antialiasing.

    Raises:
        ValueError: if the image is not grey or empty, or its values are others, such as 0..1.
    """
    image = np.asarray(image)
    if image.ndim != 2 or not image.size:
        raise ValueError(f"B-scan of shape {image.shape}: expected (h, w), grey values")
    top = float(image.max())
    if not (image.min() >= 0 and top <= 255) or (image.dtype.kind == "f" and 0 < top <= 1):
        raise ValueError(f"B-scan of {image.dtype}, {image.min()} to {top:g}: grey values 0..255")
    return np.rint(resize(image.astype(np.float32), size, air=0.0)).clip(0, 255).astype(np.uint8)


def write_bscans(folder: str | Path, blocks, table: pd.DataFrame, *more, **settings) -> Path:
    """:func:`wspnb.data.store.write_store` of B-scans, whose table has :data:`COLUMNS` at least.

    Raises:
        ValueError: also if a column or a patient is missing; nothing is written.
    """
    if missing := [name for name in COLUMNS if name not in table]:
        raise ValueError(f"{folder}: the table has no column {missing}")
    check_names(table.patient)
    return write_store(folder, blocks, table, *more, **settings)
