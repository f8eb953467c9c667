"""A cohort's volumes become slices: the central ones of each liver, windowed, as bytes on disk.

:func:`write_slices` makes a store, whose form ``store.py`` describes and reads; while it is
written, ``part.py`` keeps it resumable.
"""

import shutil
import warnings
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from wspnb.data import inventory, part, store, volumes
from wspnb.data.cohort import COLUMNS, file_stamp, read_cohort
from wspnb.data.headers import open_header
from wspnb.data.masks import check_drawn, check_labels, read_given, value_of
from wspnb.data.organs import (
    LIVER_ML,
    body_above,
    check_place,
    check_size,
    is_liver,
    keep_largest,
    look_at_planes,
    look_of,
    lung_above,
    measure,
    same_looks,
)
from wspnb.data.quality import PICTURE, coronal, decoded, oddities
from wspnb.data.store import TABLES, Slices, open_slices, reader, verify_store
from wspnb.files import alone, package_version, printable, relative, whole
from wspnb.workers import in_order

__all__ = ["Slices", "open_slices", "prepare_volume", "reader", "verify_store", "write_slices"]

PACKAGES = ("wspnb", "numpy", "nibabel", "torch")
WITHOUT_MASK = "all body slices (no mask)"


def prepare_volume(
    volume: str | Path,
    mask: str | Path = "",
    image_size: int = 160,
    fraction: float = 0.7,
    convention: str = "k/(n-1)",
    low: float = -100.0,
    high: float = 400.0,
    mask_value: int | None = None,
    organ_ml: tuple[float, float] = LIVER_ML,
    coding: str = "",
    row: dict[str, Any] | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """The kept slices of one CT volume as bytes, lowest first (WSP, section 3).

    Args:
        volume, mask: NIfTI files of the CT and of the liver (of an MRI's its largest part); without
            mask all slices of the body are kept.
        image_size: pixels a side.
        fraction: central share of the mask's slices.
        convention: of the positions, "k/(n-1)" or "k/n".
        low, high: window, HU, see :func:`wspnb.data.inventory.slice_images`.
        mask_value: label of the organ in the mask, None for all that is not zero.
        organ_ml: least and most of a mask, ml; one that the scan cuts off may be smaller.
        coding: one of :data:`wspnb.data.inventory.CODINGS`; empty to decide by evidence.
        row: filled with what :func:`wspnb.data.inventory.describe` finds, also where an error is
            raised after it.

    Returns:
        ``(n_kept, image_size, image_size)`` uint8, and a dict: ``z`` (slice numbers from the feet),
        ``position``, ``spacing`` (mm) and ``selection`` (in words).

    Raises:
        FileNotFoundError, ValueError: as :func:`wspnb.data.volumes.load_volume` and its neighbours;
            if the intensities are no HU and cannot be decoded; if the mask lies on no organ, or no
            liver has its size.
    """
    inside, problem, header, row = None, None, None, {} if row is None else row
    kept = np.arange(0)
    with suppress(OSError, ValueError):  # raised below, beside what is wrong with the mask
        header = open_header(volume)
    if mask:  # before the volume, so that raw labels and volume are not in memory together
        try:
            inside = read_given(mask, volume, mask_value, header)
            row.update(measure(inside, header := header or open_header(volume)))
            if coding == "MR":
                inside = keep_largest(inside, row, header)
            kept = volumes.central_slices(inside, fraction)
            check_size(mask, row, organ_ml)
        except ValueError as error:  # the volume is described all the same
            problem = error
    try:
        scan = volumes.read_scan(volume, header)
    except ValueError as error:
        if not problem or str(problem) == str(error):
            raise
        raise ValueError(f"{error}; {problem}") from error  # both at once
    row.update(inventory.describe(scan, coding))
    hu, ends = inventory.Hu(scan, row), inventory.window_of(row, low, high)
    if row["coding"] in inventory.CODINGS:
        if not mask:
            try:
                kept = volumes.body_slices(hu, body_above(row))
            except ValueError as error:
                problem = error
        row["picture"] = coronal(hu, inside, kept, *ends)  # also of a volume that is set aside
    if problem:
        raise problem
    inventory.refuse(volume, row)
    look_at_planes(hu, kept, row)
    if mask:
        check_place(mask, volume, row, [hu[:, :, z][inside[:, :, z]] for z in kept])
        if is_liver(organ_ml):
            beyond = np.flatnonzero(inside.any((0, 1)))[[0, -1]] + (-1, 1)
            row["mask_cut"] = " and ".join(  # also where slices were added in one value
                end
                for end, z in zip(("bottom", "top"), beyond, strict=True)
                if end in row["mask_cut"] or np.ptp(scan.voxels[:, :, z]) == 0
            )
            body = hu[:, :, kept[len(kept) // 2]] > body_above(row)
            counts = inside[:, :, kept[0] : kept[-1] + 1].sum((1, 2)), body.sum(1)
            middles = [own @ np.arange(len(own)) / own.sum() for own in counts]
            row["mask_right_mm"] = round(float((middles[0] - middles[1]) * scan.spacing[0]), 1)
            if row["coding"] != "MR":
                row["lung_above"] = lung_above(hu, beyond, row)
    return inventory.slice_images(hu, kept, image_size, low, high), {
        "z": kept.tolist(),
        "position": volumes.slice_positions(len(kept), convention).tolist(),
        "spacing": [round(float(s), 6) for s in scan.spacing],
        "selection": f"central {100 * fraction:g} % of the mask" if mask else WITHOUT_MASK,
    }


def write_slices(
    cohort_csv: str | Path,
    folder: str | Path,
    image_size: int = 160,
    fraction: float = 0.7,
    convention: str = "k/(n-1)",
    low: float = -100.0,
    high: float = 400.0,
    mask_value: int | None = None,
    organ_ml: tuple[float, float] = LIVER_ML,
    workers: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> Path:
    """Preprocess a cohort into a store; goes on where an interrupted call stopped.

    Volumes are prepared in parallel and appended in the cohort's order, so the bytes do not depend
    on the number of workers or on interruptions. Each worker holds one volume in memory. A volume
    that cannot be used is left out and listed with its reason in ``failed.csv``: look at it. So is
    a scan that is in the table twice: both rows where they are of two patients, the later one where
    they are of one. What was found in each file is in ``inventory.csv``; its decision on the
    intensities comes before they are used, and a column ``coding`` of the table before the
    evidence. A complete store of the same settings and inputs is verified and its images are left
    as they are; labels, cohorts and further columns are joined anew, so that a corrected label
    costs nothing.

    Args:
        cohort_csv: see :func:`wspnb.data.cohort.read_cohort`.
        folder: of the store, made if missing, which is returned.
        image_size, fraction, convention, low, high, mask_value, organ_ml: of
            :func:`prepare_volume`.
        workers: processes; None is one per core, 1 works in this process.
        overwrite: throw away what a call with other settings or inputs left in the folder.

    Raises:
        FileNotFoundError, ValueError: from the cohort table; if the folder holds a store of other
            settings or inputs, or damaged; if no volume is usable.
        BlockingIOError: if another process writes here.
        RuntimeError: if a worker died, for instance for want of memory; what is done is kept.
    """
    volumes.slice_positions(1, convention)  # raises before any work, as the next two do
    volumes.window(np.zeros(1), low, high)
    volumes.central_slices(np.ones((1, 1, 1)), fraction)
    if mask_value is not None and mask_value < 1:
        raise ValueError(f"mask_value {mask_value}: the liver's label, 1 or more, or None for all")
    if image_size < 1 or image_size != int(image_size):
        raise ValueError(f"image_size {image_size}: choose a number of pixels")
    cohort = read_cohort(cohort_csv)
    check_labels(cohort_csv, cohort)
    mask_value = value_of(cohort, mask_value, cohort_csv)
    cohort = _name_volumes(cohort, Path(cohort_csv))
    codings = cohort.get("coding", pd.Series("", cohort.index)).tolist()
    options = {
        "image_size": int(image_size),
        "fraction": float(fraction),
        "convention": convention,
        "low": float(low),
        "high": float(high),
        "mask_value": mask_value,
        "organ_ml": list(map(float, organ_ml)),
    }
    cohort_rows = store.digest([cohort.patient.tolist(), codings])
    settings = {"format": store.FORMAT, **options, "cohort_rows": cohort_rows}
    seen = [(file_stamp(r.path), file_stamp(r.mask_path)) for r in cohort.itertuples()]
    check_drawn(cohort, seen, cohort_csv)
    stamps = [volume + mask for volume, mask in seen]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "slices.npy").exists():
        try:
            store.accept_tables(folder)
            there = verify_store(folder)
            part.check_same(folder, there.settings, settings | {"inputs": store.digest(stamps)})
        except ValueError:
            if not overwrite:
                raise
        else:
            if not there.settings.get("try_again"):
                shutil.rmtree(folder / store.PART, ignore_errors=True)
                part.join_labels(folder, there, cohort)
                _warn(folder, there.settings)  # also where nothing was to do
                return folder
    with alone(folder / "slices.npy"):
        if overwrite:
            for name in ("slices.npy", *TABLES, "store.json", "pictures.npy"):
                (folder / name).unlink(missing_ok=True)
        files = part.begin(folder, settings, len(cohort), overwrite)
        rows = zip(cohort.path, cohort.mask_path, codings, stamps, files, strict=True)
        todo = [(*own, stamp, file) for *own, stamp, file in rows if not part.is_done(file, stamp)]
        jobs = [(*row, options) for row in todo]
        done = len(cohort) - len(jobs)
        bar = tqdm(None, "volumes", len(cohort), initial=done, disable=not progress)
        with bar, closing(in_order(_prepare, jobs, workers)) as results:
            for _ in results:
                bar.update()
        if not _finish(folder, files, cohort, settings | {"inputs": store.digest(stamps)}):
            shutil.rmtree(folder / store.PART)
    return folder


def _prepare(
    volume: str, mask: str, coding: str, stamp: list, file: Path, options: dict[str, Any]
) -> None:
    """One job: a volume's slices and what else is known of it, a reason if it is bad, in a file."""
    row = {}
    try:
        images, entry = prepare_volume(volume, mask, **options, coding=coding, row=row)
    except MemoryError as error:  # says nothing about the volume
        raise RuntimeError(f"{volume}: not enough memory: call again with workers=1") from error
    except Exception as error:  # one bad file must not end the cohort, whatever is wrong with it
        causes = (error, error.__cause__)  # a drive, or a package: the next call tries again
        if any(isinstance(e, ImportError) or getattr(e, "errno", None) for e in causes):
            stamp = []
        reason = str(error)
        if volume not in reason and not (mask and mask in reason):
            reason = f"{volume}: cannot be used ({error!r}): copy or convert it again"
        size = options["image_size"]
        images, entry = np.empty((0, size, size), np.uint8), {"z": [], "reason": reason}
    entry["look"] = look_of(images)
    picture = row.pop("picture", np.zeros((PICTURE, PICTURE, 3), np.uint8))
    part.write_part(file, images, picture, entry | {"stamp": stamp, "inventory": row})


def _name_volumes(cohort: pd.DataFrame, csv: Path) -> pd.DataFrame:
    """The cohort with paths aside, and volumes named relative to the table."""
    own = {*part.OWN_COLUMNS, "path", "mask_path"} - set(COLUMNS)
    if clash := [name for name in cohort if name in own]:
        raise ValueError(f"{csv}: columns {clash} are names of the slices' table: rename them")
    paths = cohort[["volume", "mask"]]
    names = paths.map(relative, folder=csv.parent)
    return cohort.assign(path=paths["volume"], mask_path=paths["mask"], **names)


def _finish(folder: Path, files: list[Path], cohort: pd.DataFrame, settings) -> int:
    """Put what was done of each volume together: the store, without those that are there twice.
    Returns how many volumes are to be tried again."""
    done = list(part.read_parts(files, "entry"))
    rows, usable = [entry["inventory"] for entry in done], [bool(entry["z"]) for entry in done]
    hashes = [row.get("voxels", "") for row in rows]
    twice = inventory.duplicates(hashes, cohort.patient, cohort.volume, usable)
    used = [
        {"z": [], "reason": twice[row]} if row in twice and entry["z"] else entry
        for row, entry in enumerate(done)
    ]
    reasons = [entry.get("reason", "") for entry in used]  # why it is left out
    for row, own in enumerate(cohort.itertuples()):  # named as in the table, wherever that lies
        for path, name in ((own.path, own.volume), (own.mask_path, own.mask)):
            reasons[row] = printable(reasons[row].replace(path, name) if path else reasons[row])
    said = []  # what is odd, and used
    looks = [entry["look"] if entry["z"] else [] for entry in used]
    twins = [cohort.iloc[numbers] for numbers in same_looks(looks)]
    for alike in twins:
        own, who = ", ".join(alike.volume[:5]), ", ".join(alike.patient.unique()[:5])
        words = f"{own} (patients {who}) have the same kept slices: one scan in two forms?"
        said.append(f"{words} Then delete all but one line of the table")
    masks = pd.Series([row.get("mask_voxels", "") for row in rows], cohort.index)
    for voxels, alike in cohort.groupby(masks, sort=False):
        told = any({*alike.patient} <= {*others.patient} for others in twins)
        if voxels and alike.patient.nunique() > 1 and not told:
            who = ", ".join(alike.patient.unique()[:5])
            words = f"the masks of {who} are the same, voxel by voxel: is it the liver of each?"
            said.append(words)
    own = cohort[["volume", "patient"]].assign(
        n_kept=[len(entry["z"]) for entry in used],
        reason=reasons,
        content=[" ".join(map(str, entry["stamp"])) for entry in done],  # of volume and mask
    )
    listed = pd.concat([own, pd.DataFrame(rows, index=own.index)], axis=1)
    failed = own[own.reason != ""][["volume", "patient", "reason"]]
    if len(failed) == len(cohort):
        shown = "\n".join(f"  {who}: {why}" for who, why in failed.values[:10, 1:])
        shutil.rmtree(folder / store.PART)
        raise ValueError(f"{folder}: none of {len(cohort)} volumes could be used\n{shown}")
    table, kept = part.slice_table(cohort, used), listed[listed.n_kept > 0]
    with whole(folder / "pictures.npy") as temporary:
        np.save(temporary, np.stack(list(part.read_parts(files, "picture"))))
    about = settings | {
        "n_volumes": len(done) - len(failed),
        "without_mask": int((table.selection == WITHOUT_MASK).groupby(table.volume).any().sum()),
        "not_hu": kept.volume[decoded(kept)].tolist(),
        "warned": said + oddities(kept, is_liver(settings["organ_ml"]), settings["high"]),
        "versions": {name: package_version(name) for name in PACKAGES},
    }
    if again := sum(not entry["stamp"] for entry in done):
        about["try_again"] = again
    own = [file for file, entry in zip(files, used, strict=True) if entry["z"]]
    images, size = part.read_parts(own, "images"), about.pop("image_size")
    store.write_store(folder, images, table, size, failed, listed, **about)
    _warn(folder, about)
    return again


def _warn(folder: Path, settings: dict[str, Any]) -> None:
    for words in settings.get("warned", []):  # a store of an earlier version has none
        warnings.warn(f"{folder}: {words}", stacklevel=4)
