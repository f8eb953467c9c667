"""What became of each patient and volume of a cohort, to be read before any result."""

import pandas as pd


def people(table: pd.DataFrame) -> pd.DataFrame:
    """Who is in a table of slices: one row per cohort.

    Args:
        table: of :class:`wspnb.data.slices.Slices`.

    Returns:
        Index cohort; ``patients``, ``volumes``, ``slices``, patients ``with_weak_label``,
        ``with_label``, and of them ``class_1``.
    """
    one = table.drop_duplicates("patient")
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

    Args:
        cohort: of :func:`wspnb.data.cohort.read_cohort`.

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
