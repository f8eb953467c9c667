"""The tables of a store: what each slice is, and beside it what the cohort table says of it.

Images and labels are separate identities: a corrected label changes the tables, not the images.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wspnb.data.store import IMAGE_COLUMNS, TABLES, Slices, write_settings
from wspnb.files import read_csv, write_csv

LABELS = ("volume", "cohort", "weak_label", "label")  # joined to the images' columns
OWN_COLUMNS = (*IMAGE_COLUMNS[:7], *LABELS, *IMAGE_COLUMNS[7:])


def slice_table(cohort: pd.DataFrame, done: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per kept slice, in the order of the images."""
    counts = [len(entry["z"]) for entry in done]
    rows = cohort.loc[np.repeat(np.arange(len(cohort)), counts)].reset_index(drop=True)
    used = [entry for entry in done if entry["z"]]
    spacing = np.repeat([e["spacing"] for e in used], [len(e["z"]) for e in used], axis=0)
    z = np.concatenate([e["z"] for e in used])
    own = pd.DataFrame(
        {
            "patient": rows.patient,
            "position": np.concatenate([e["position"] for e in used]),
            "z": z,  # slice number from the feet in the canonical volume
            "height_mm": np.concatenate(
                [(np.array(e["z"]) - e["z"][0]) * e["spacing"][2] for e in used]
            ).round(4),  # above the lowest kept slice
            "spacing_x": spacing[:, 0],  # of the source, mm
            "spacing_y": spacing[:, 1],
            "spacing_z": spacing[:, 2],
            "selection": np.concatenate([[e["selection"]] * len(e["z"]) for e in used]),
            "n_kept": np.repeat([len(e["z"]) for e in used], [len(e["z"]) for e in used]),
        }
    )
    return _labelled(own, rows)


def _labelled(images: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Columns of the images, and beside them those that the cohort table says of each slice."""
    own = images.assign(**{name: rows[name].to_numpy() for name in LABELS})[[*OWN_COLUMNS]]
    own = own.astype({"weak_label": "Int64", "label": "Int64"})
    extra = [c for c in rows.columns if c not in (*OWN_COLUMNS, "mask", "path", "mask_path")]
    return pd.concat([own, rows[extra]], axis=1)


def join_labels(folder: Path, store: Slices, cohort: pd.DataFrame) -> None:
    """Tables of a finished store with what the cohort table says now; images are not touched."""
    inventory = read_csv(folder / "inventory.csv", text=True)
    inventory["volume"] = cohort.volume.to_numpy()
    failed = inventory[inventory.reason != ""][["volume", "patient", "reason"]]
    rows = cohort.loc[np.repeat(np.arange(len(cohort)), inventory.n_kept.astype(int))]
    images = read_csv(folder / "slices.csv", text=True)
    table = _labelled(images[[*IMAGE_COLUMNS]], rows.reset_index(drop=True))
    tables = dict(zip(TABLES, (table, failed, inventory), strict=True))
    then = {name: (folder / name).read_text(encoding="utf-8") for name in TABLES}
    if any(content.to_csv(index=False) != then[name] for name, content in tables.items()):
        for name, content in tables.items():
            write_csv(folder / name, content)
        write_settings(folder, folder / "slices.npy", store.settings)


def inventory_table(cohort: pd.DataFrame, used: list[dict[str, Any]], rows) -> pd.DataFrame:
    """One row per file of the cohort: what was found in it, and whether it is used."""
    own = pd.DataFrame(
        {
            "volume": cohort.volume,
            "patient": cohort.patient,
            "n_kept": [len(entry["z"]) for entry in used],
            "reason": [entry.get("reason", "") for entry in used],  # why it is left out
        }
    )
    return pd.concat([own, pd.DataFrame(rows, index=own.index)], axis=1)
