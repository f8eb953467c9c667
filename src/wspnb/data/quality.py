"""What became of each patient and volume of a cohort, to be read before any result."""

import os
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import binary_erosion

from wspnb.data.inventory import FAR, SAY, THIN, Hu
from wspnb.data.masks import summarise
from wspnb.data.volumes import resize, to_image, window
from wspnb.files import read_csv, relative
from wspnb.folds import cohorts_of

PICTURE = 96  # pixels a side of a volume's coronal picture
STEP = 500  # HU; CT: change of the 95th percentile from slice to slice that is named; paper silent
WEAVE = 15  # HU; CT: change of the mean under the mask that is named; paper silent
BIAS = 0.3  # MRI: change of the median from one slice to the next that is named; paper silent
# Times that a step from slice to slice is larger than those beside it. Sound: up to 1.5 of four
# real CT and an MRI in planes of 2 to 25 mm, 1.8 of 1930 phantoms of 1 to 20 mm; where 40 mm are
# missing among planes of 2 to 5 mm, from 2.1 on. Paper silent.
JUMP = 2
DIM = 0.3  # MRI: share of the body that is too dark for the window; paper silent
OBLIQUE = 20  # degrees; paper silent
LUNG = 0.05  # share of lung below the liver, above that above it; paper silent
FRONT, SIDE = 10, 40  # mm that bone may lie off the body's middle; paper silent
FLAT = 0.5  # share of the largest section that a whole liver may end with; paper silent
LIVER_MM, TAIL = (40, 300), 30  # heights of a whole liver, and of a thread at its end; paper silent
OUTLINE, BAND = (213, 94, 0), (86, 180, 233)  # orange: the mask; blue: ends of the kept slices


def coronal(
    hu: Hu, mask: np.ndarray | None, kept: np.ndarray, low: float, high: float
) -> np.ndarray:
    """A volume from the front: where the liver is, what is kept of it, what the scan cuts off.

    Args:
        hu: the volume.
        mask: ``(x, y, z)`` bool, or None.
        kept: slice numbers along z; the plane with most mask in their middle is drawn, without a
            mask that through the middle of the scan.
        low, high: window, HU.

    Returns:
        ``(PICTURE, PICTURE, 3)`` uint8, head on top, the patient's right on the left.
    """
    width, depth, height = hu.shape
    y = depth // 2
    if mask is not None and len(kept):
        y = int(np.argmax(mask[:, :, kept[len(kept) // 2]].sum(0)))
    pixel = (hu.spacing[2], hu.spacing[0])

    def square(values, outside):  # (x, z) -> (PICTURE, PICTURE)
        return resize(to_image(np.asarray(values, np.float32)), PICTURE, pixel, outside)

    grey = square(np.clip(hu[:, y], low, high), low)
    picture = np.repeat(window(grey, low, high)[:, :, None], 3, axis=2)
    band = np.zeros((width, height))
    band[:, kept] = 1
    rows = square(band, 0.0) > 0.5
    ends = rows.any(1) & ~binary_erosion(rows.any(1))
    picture[rows & ends[:, None]] = BAND
    if mask is not None:
        liver = square(mask[:, y], 0.0) > 0.5
        picture[liver & ~binary_erosion(liver)] = OUTLINE
    return picture


def read_pictures(folder: Path) -> np.ndarray:
    """Pictures of a store's volumes, ``(n, PICTURE, PICTURE, 3)``; none, with a warning, where an
    earlier version has written the store or the file is damaged."""
    try:
        return np.load(folder / "pictures.npy")
    except (OSError, ValueError, EOFError) as error:
        advice = "the store is sound without; overwrite=True draws them again"
        warnings.warn(f"{folder}: no pictures of volumes ({error}): {advice}", stacklevel=2)
        return np.zeros((0, PICTURE, PICTURE, 3), np.uint8)


def fates(
    inventory: pd.DataFrame, cohort: pd.DataFrame, evaluate: list[str], train_cohort: str, source=""
) -> pd.DataFrame:
    """What became of each volume, with its reason.

    Args:
        inventory: of the store, row by row as the cohort.
        cohort: of :func:`wspnb.data.cohort.read_cohort`.
        evaluate, train_cohort: cohorts to judge (a plus joins them) and to pretrain on.
        source: folder of the cohort table, whose ``failed_masks.csv`` names what notebook 01b left
            out of it, if there is one.

    Returns:
        volume, patient, cohort, ``fate`` ("no liver mask", "set aside", "not used", "pretraining",
        "judged"), ``reason``, ``mask`` ("given", "drawn" or ""), ``kept`` slices, and of the mask
        ``mask_ml``, ``mask_mm`` and ``mask_cut`` where they are known; for drawn masks
        ``held_out_dice`` and ``held_out_ends_mm``, means of the patients that 01b held out, and
        ``mask_changed`` for a given one that is no longer what the network has learnt from.
    """
    table = inventory[["volume", "patient", "reason"]].fillna("").assign(kept=inventory.n_kept)
    table["cohort"] = cohort.cohort.to_numpy()
    given = cohort.get("mask_source", pd.Series("given", cohort.index)).to_numpy()
    drawn = np.where(given == "predicted", "drawn", "given")
    table["mask"] = np.where(cohort["mask"] == "", "", drawn)
    for name in ("mask_ml", "mask_cut", "mask_mm"):
        table[name] = inventory[name].to_numpy() if name in inventory else np.nan
    if {"drawn_from"} <= {*cohort} and {"content"} <= {*inventory}:  # see masks.check_drawn
        pairs = zip(cohort.drawn_from, inventory.content, strict=True)
        same = [f"{now} ".startswith(f"{then} ") for then, now in pairs]
        table["mask_changed"] = ~np.array(same) & (drawn == "given")
    judged = table.cohort.isin(cohorts_of(evaluate))
    trained = (table.cohort == train_cohort).to_numpy()
    kinds = [table.reason != "", judged & cohort.label.notna().to_numpy(), trained]
    table["fate"] = np.select(kinds, ["set aside", "judged", "pretraining"], "not used")
    unused = np.where(judged, "no label", "its cohort is neither train_cohort nor in evaluate")
    table["reason"] = table.reason.where(table.fate != "not used", unused)
    if cohort.weak_label[trained].notna().any():
        unread = (table.fate == "pretraining") & cohort.weak_label.isna().to_numpy()
        table.loc[unread, "reason"] = "no weak label: in pretraining it is of no class"
    dice = Path(source) / "dice.csv"
    if source and dice.exists() and len(dice := read_csv(dice)):
        held = summarise(dice).set_index("kind").reindex(["held out"])
        for name in ("dice", "ends_mm"):
            table[f"held_out_{name}"] = np.where(
                table["mask"] == "drawn", held[name].iloc[0].round(3), np.nan
            )
    lost = Path(source) / "failed_masks.csv"
    if source and lost.exists():
        file, lost = lost, read_csv(lost, text=True)
        if missing := {"volume", "patient", "reason", "cohort"} - set(lost):
            raise ValueError(f"{file}: columns {sorted(missing)} are missing: run 01b again")
        lost["volume"] = [os.path.normpath(Path(source, name)) for name in lost.volume]
        lost = lost[~lost.volume.isin(cohort.volume) & (lost.cohort != "")]  # else of train_dir
        liver = lost.reason.str.match("no liver|.* of liver predicted")  # else the volume's fault
        lost = lost.assign(fate=np.where(liver, "no liver mask", "set aside"), kept=0)
        lost["volume"] = lost.volume.map(partial(relative, folder=source))
        table = pd.concat([table, lost], ignore_index=True)
    return table


def funnel(table: pd.DataFrame) -> pd.DataFrame:
    """Volumes and patients of each cohort that are left at each step, from :func:`fates`.

    Returns:
        Index cohort and step (found, masked, kept; then what is done with them), columns
        ``volumes``, ``patients`` and ``left out``: who went there and why, or
        is there without a class, three at most.
    """

    def why(gone):
        told = [f"{row.patient}: {row.reason}"[:400] for row in gone[:3].itertuples()]
        return "; ".join(told + [f"and {len(gone) - 3} more"] * (len(gone) > 3))

    rows = []
    for cohort, own in table.groupby("cohort"):
        for step, fate in (("found", ""), ("masked", "no liver mask"), ("kept", "set aside")):
            gone, own = own[own.fate == fate], own[own.fate != fate]
            rows.append((cohort, step, len(own), own.patient.nunique(), why(gone)))
        for use, part in own.groupby("fate"):
            left = why(part[part.reason != ""])
            rows.append((cohort, use, len(part), part.patient.nunique(), left))
    names = ["cohort", "step", "volumes", "patients", "left out"]
    return pd.DataFrame(rows, columns=names).set_index(["cohort", "step"])


def cautions(table: pd.DataFrame) -> list[str]:
    """What positions rest on (masks drawn, livers cut), in sentences, from a ``quality.csv`` read
    as text."""
    kept, said = table[table.kept != "0"], []
    if drawn := int((kept["mask"] == "drawn").sum()):
        words = f"{drawn} liver masks are drawn by a network, and positions rest on them"
        held = kept[kept.get("held_out_dice", pd.Series("", kept.index)) != ""]
        for row in held[:1].itertuples():
            dice, ends = float(row.held_out_dice), float(row.held_out_ends_mm)
            words += f"; on patients that it had not seen its Dice was {dice:.2f}, and the ends of"
            words += f" the liver were {ends:.0f} mm off"
        said += [f"{words}: its pictures are in notebooks/01b_liver_masks.ipynb of this run."]
        if len(other := kept[kept.get("mask_changed", pd.Series("", kept.index)) == "True"]):
            words = f"Changed since the drawn masks were learnt from them: {len(other)} given masks"
            words += (
                f" or their volumes ({', '.join(other.patient.unique()[:10])}). Draw anew: give"
            )
            words += " step 4's command of docs/data.md, with -p source_dir FOLDER_OF_YOUR_TABLE"
            said += [f"{words} -p resume false at its end."]
    if cut := int((kept.mask_cut != "").sum()):
        words = f"{cut} livers of {len(kept)} reach the first or last slice of their scan: the"
        said += [f"{words} positions of a liver that is cut off are not those of a whole one."]
    return said


def caption(row: pd.Series) -> str:
    """Words above a volume's picture: whose, ml, mm, what the scan cuts off, given or drawn."""
    name = str(row.patient)
    parts = [name if len(name) < 17 else f"{name[:4]}…{name[-11:]}"]
    if row.mask_ml == row.mask_ml:
        parts.append(
            f"{row.mask_ml:.0f} ml" + (f", {row.mask_mm:.0f} mm" if row.mask_mm > 0 else "")
        )
        cut = row.mask_cut if isinstance(row.mask_cut, str) else ""
        parts.append(f"cut: {cut}" if cut else "whole")
    return "\n".join([", ".join(parts[:2]), ", ".join([*parts[2:], row["mask"] or "no mask"])])


def people(table: pd.DataFrame) -> pd.DataFrame:
    """Who is in a table of slices: one row per cohort.

    Returns:
        Index cohort; ``patients``, ``volumes``, ``slices``, patients ``with_weak_label``,
        ``with_label``, and of them ``class_1``.
    """
    one = table.groupby("patient", as_index=False, sort=False).first()  # a label may stand once
    known = one.assign(
        with_weak_label=one.weak_label.notna(),
        with_label=one.label.notna(),
        class_1=one.label.eq(1).fillna(False),
    )
    all_of = table.groupby("cohort")
    counts = all_of.agg(
        patients=("patient", "nunique"), volumes=("volume", "nunique"), slices=("patient", "size")
    )
    labels = ["with_weak_label", "with_label", "class_1"]
    return counts.join(known.groupby("cohort")[labels].sum().astype(int))


def refuse_mixed(cohort: pd.DataFrame) -> None:
    """Positions in the scan do not compare with those in the liver.

    Raises:
        ValueError: if some volumes have a mask and others none; names patients.
    """
    bare = cohort[cohort["mask"] == ""]
    if 0 < len(bare) < len(cohort):
        shown = ", ".join(bare.patient.unique()[:5])
        raise ValueError(
            f"{len(bare)} of {len(cohort)} volumes have no mask, such as those of {shown}, and"
            " positions in the scan do not compare with those in the liver: draw the missing masks"
            " with notebook 01b, delete these rows, or leave all masks empty"
        )


def decoded(used: pd.DataFrame) -> pd.Series:
    """Which rows of an inventory were decoded by evidence, and not as the table says."""
    return ~used.coding.isin(["HU", "MR"]) & ~used.evidence.str.startswith("said")


def oddities(used: pd.DataFrame, liver: bool, high: float) -> list[str]:
    """What is odd about volumes that are used, in sentences, from their inventory.

    Args:
        used: rows of the volumes that have slices.
        liver: whether the masks are livers.
        high: end of the window, HU.
    """
    measured = ["mask_gaps", "mask_reach", "mask_share", "mask_cut"]  # missing where no mask is
    measured += ["mask_right_mm", "mask_outside", "mask_left_out_ml", "mask_mm"]
    measured += ["mask_tail_mm", "mask_flat", "mask_ml", "slices_apart", "slice_weave"]
    measured += ["slice_jump"]
    measured += ["slice_bias", "dim_share"]  # of MRI
    measured += ["slice_step", "corner_hu", "bone_front_mm", "bone_right_mm", "lung_above"]  # of CT
    used = used.reindex(columns=used.columns.union(measured))
    apart = (used.mask_gaps > 0) | (used.mask_reach > 0)
    halves = ~apart & (used.mask_share < 0.9)
    spacing = used.spacing_mm.str.split("x", expand=True).astype(float)
    pixel, kept_mm = spacing.iloc[:, :2], used.n_kept * spacing[2]
    oblong = pixel.max(axis=1) > 1.5 * pixel.min(axis=1)
    kinds = {  # the released code reads files that hold (HU + 100) / 2
        "volumes, such as {}, are no HU but bytes of the window by their evidence, and were"
        f" decoded: read it, and if you know better, {SAY}": decoded(used),
        "masks, such as that of {}, have slices without mask between their ends, or parts that"
        " lie apart and go beyond the largest, as a stray voxel or another organ does, which"
        " moves every position: look at mask_gaps and mask_reach, keep the largest part": apart,
        f"volumes, such as {{}}, are turned by more than {OBLIQUE} degrees against the body: their"
        " slices are not axial, and positions mix; look at oblique_deg": used.oblique_deg > OBLIQUE,
        "CT, such as {}, have bone in front of the body's middle, or far to a side, and no spine at"
        " the back: mirrored or turned? Look at the sheets, bone_front_mm and bone_right_mm": (
            used.bone_front_mm > FRONT
        )
        | (used.bone_right_mm.abs() > SIDE),
        "CT, such as {}, have lung below the liver and not above it: upside down? Each position is"
        " 1 minus the right one then; look at lung_above": used.lung_above < -LUNG,
        "CT, such as {}, have voxels above 32767 HU, as where padding below 0 was read as unsigned:"
        " look at maximum": (used.coding == "HU") & (used.maximum > 32767),
        "CT, such as {}, have much below -1300 HU, and not in one value, as where a slope was"
        " applied twice: look at evidence": used.evidence.str.contains(FAR),
        "volumes, such as {}, have pixels longer than wide, or wider than long, by half, in axial"
        " slices, as stacks of coronal or sagittal ones: look at spacing_mm": oblong,
        "masks, such as that of {}, have a tenth outside the largest part: mask_share": halves,
        "masks, such as that of {}, reach the first or last slice: an organ that is cut off by"
        " the scan has not the positions of a whole one: look at mask_cut": used.mask_cut.notna()
        & (used.mask_cut != ""),
        "masks, such as that of {}, lie on the patient's left, where no liver is: mirrored, or of"
        " another organ? Look at mask_right_mm": used.mask_right_mm < -10,
        "masks, such as that of {}, hold a tenth of air, lung or bone: are they shifted, turned"
        " over or of another scan? Look at mask_outside": used.mask_outside > 0.1,
        f"MRI, such as {{}}, change by more than {BIAS:.0%} from one slice to the next: look at the"
        " sheets and at slice_bias": used.slice_bias > np.log1p(BIAS),
        "MRI, such as {}, enclose much that is brighter than the background and darker than their"
        " window, so black, as beside bright fluid: look at the sheets and at dim_share": (
            used.dim_share > DIM
        ),
        "volumes, such as {}, have kept slices of one value only, or of one in an eighth of the"
        " rows, as where an export did not end: look at flat_slices": used.flat_slices > 0,
        "volumes, such as {}, have kept slices that are the same as the one below, bit by bit:"
        " look at repeated_slices": used.repeated_slices > 0,
        "volumes, such as {}, have kept slices most like one that is no neighbour, as where files"
        " were sorted by name or two scans appended, so that positions are wrong: look at"
        " slices_apart": used.slices_apart > 1,
        f"volumes, such as {{}}, have a step from slice to slice that is over {JUMP} times those"
        " beside it, as where slices are missing, a page of letters is among them, or two spacings"
        " were stacked as one: look at slice_jump": (used.slice_jump > JUMP)
        & ~used.evidence.str.contains("drawn"),
        f"volumes, such as {{}}, go to and fro by more than {WEAVE} HU, an MRI by as many per cent,"
        " from slice to slice, as two phases in turn: look at slice_weave": used.slice_weave
        > WEAVE,
        "CT, such as {}, have air that is far from -1000 HU, as where a slope was applied twice:"
        " look at evidence": used.evidence.str.contains(f"air {THIN}"),
        f"CT, such as {{}}, change by more than {STEP} HU from one slice to the next, as where one"
        " was scaled otherwise: look at the sheets and at slice_step": used.slice_step > STEP,
        "CT, such as {}, are filled at the corners with one value, as with padding that was meant"
        " to be air; the window shows it as tissue: look at corner_hu": used.corner_hu.notna()
        & ~used.evidence.str.contains("drawn"),
        f"CT, such as {{}}, were cut above within the window (to {high:g} HU): contrast and bone"
        " are lost; look at maximum and at_maximum": (used.coding == "HU")
        & (used.maximum < high)
        & (used.at_maximum > 0.001)
        & ~used.evidence.str.contains("drawn"),
        "masks, such as that of {}, lie in parts that touch nowhere: the largest is kept; look"
        " at mask_parts and mask_left_out_ml": used.mask_left_out_ml > 0,
    }
    uncut = used.mask_cut.isna() | (used.mask_cut == "")
    low, high = LIVER_MM
    kinds |= {
        f"masks, such as that of {{}}, are less than {low:g} mm tall, or over {high:g}, which no"
        " whole liver is: look at mask_mm": (uncut & (used.mask_mm < low)) | (used.mask_mm > high),
        f"masks, such as that of {{}}, have a thread of more than {TAIL} mm at an end, which moves"
        " every position: look at mask_tail_mm": used.mask_tail_mm > TAIL,
        "masks, such as that of {}, end with half of their largest section or more, as where a part"
        " was drawn or a scan's first slice left out: look at mask_flat": used.mask_flat > FLAT,
        f"volumes, such as {{}}, have no mask and less than {low:g} mm of slices kept, which are no"
        " whole liver: positions are those in the scan": used.mask_ml.isna() & (kept_mm < low),
    } if liver else {}  # fmt: skip
    said, files = [], used.volume.map(os.path.basename).tolist()
    for words, those in kinds.items():
        if those.any():
            one = used.volume[those].iloc[0]
            name = os.path.basename(one)  # without a way from elsewhere, where it tells
            told = words.format(name if files.count(name) == 1 else one)
            said.append(f"{those.sum()} {told} (inventory.csv)")
    return said
