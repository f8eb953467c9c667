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
