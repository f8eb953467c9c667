"""What became of each patient: numbers by hand."""

import pandas as pd
import pytest

from wspnb.data import quality


def test_people_are_counted_once_however_many_slices_they_have():
    table = pd.DataFrame(
        [(p, f"{p}{v}", c, w, y) for p, c, w, y, n in PEOPLE for v in range(n) for _ in range(3)],
        columns=["patient", "volume", "cohort", "weak_label", "label"],
    ).astype({"weak_label": "Int64", "label": "Int64"})
    found = quality.people(table)
    assert found.loc["d1"].tolist() == [3, 4, 12, 0, 2, 1]
    assert found.loc["radio"].tolist() == [2, 2, 6, 1, 0, 0]


PEOPLE = [
    ("a", "d1", pd.NA, 1, 2),
    ("b", "d1", pd.NA, 0, 1),
    ("c", "d1", pd.NA, pd.NA, 1),
    ("d", "radio", 2, pd.NA, 1),
    ("e", "radio", pd.NA, pd.NA, 1),
]


def test_masked_and_unmasked_volumes_are_not_mixed():
    cohort = pd.DataFrame({"patient": ["a", "b", "c"], "mask": ["m", "", "m"]})
    quality.refuse_mixed(cohort[["patient", "mask"]].iloc[[0, 2]])
    quality.refuse_mixed(cohort.iloc[[1]])
    with pytest.raises(ValueError, match="1 of 3 volumes have no mask, such as those of b"):
        quality.refuse_mixed(cohort)
