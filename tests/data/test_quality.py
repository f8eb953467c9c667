"""What became of each patient: numbers by hand."""

import numpy as np
import pandas as pd
import pytest

from wspnb.data import quality
from wspnb.files import read_csv


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


def test_what_became_of_each_volume(tmp_path):
    """Six in the table, one of them broken, and one that notebook 01b left out of it."""
    cohort = pd.DataFrame(
        [
            ("/v0", "/m0", "a", 2, pd.NA, "radio", "given"),
            ("/v1", "/m1", "b", pd.NA, 1, "d1", "predicted"),
            ("/v2", "/m2", "c", pd.NA, pd.NA, "d1", "given"),
            ("/v3", "/m3", "d", pd.NA, 0, "d1", "given"),
        ],
        columns=["volume", "mask", "patient", "weak_label", "label", "cohort", "mask_source"],
    )
    inventory = cohort[["volume", "patient"]].assign(
        n_kept=[3, 4, 5, 0], mask_ml=[1500, 900, 80, None]
    )
    inventory["reason"] = [None, None, None, "v3: damaged"]
    inventory["mask_cut"], inventory["mask_mm"] = [None, "top", None, None], [160.0, 90.2, 40, None]
    v9 = str(tmp_path.parent / "scans" / "v9.nii")
    lost = {
        "volume": [v9],
        "patient": ["e"],
        "reason": ["no liver mask: none found"],
        "cohort": ["d1"],
    }
    lost = {name: [*own, ""] for name, own in lost.items()}  # a volume of train_dir, of no cohort
    pd.DataFrame(lost).to_csv(tmp_path / "failed_masks.csv", index=False)
    dice = {"patient": ["a", "c"], "dice": [0.6, 0.8], "kind": ["held out"] * 2}
    dice |= {"bottom_mm": [-10.0, 10.0], "top_mm": [30.0, 10.0]}
    pd.DataFrame(dice).head(0).to_csv(tmp_path / "dice.csv", index=False)  # no fold was held out
    bare = quality.fates(inventory, cohort, ["d1"], "radio", tmp_path)
    assert "held_out_dice" not in bare
    pd.DataFrame(dice).to_csv(tmp_path / "dice.csv", index=False)
    found = quality.fates(inventory, cohort, ["d1"], "radio", tmp_path)
    expected = ["pretraining", "judged", "not used", "set aside", "no liver mask"]
    assert found.fate.tolist() == expected
    assert found.volume.iloc[-1] == "../scans/v9.nii"  # relative, as all the others
    assert found["mask"].tolist()[:4] == ["given", "drawn", "given", "given"]
    steps = quality.funnel(found).loc["d1"]
    assert steps.volumes.to_dict() == {
        "found": 4,
        "masked": 3,
        "kept": 2,
        "judged": 1,
        "not used": 1,
    }
    assert steps["left out"].tolist() == [
        *("", "e: no liver mask: none found", "d: v3: damaged", "", "c: no label"),
    ]
    unread = cohort.assign(cohort=["radio", "radio", "d1", "d1"])  # b has no weak label
    told = quality.fates(inventory, unread, ["d1"], "radio")
    assert told.reason[1] == "no weak label: in pretraining it is of no class"
    assert quality.funnel(told)["left out"]["radio", "pretraining"] == f"b: {told.reason[1]}"
    pd.DataFrame(lost | {"reason": ["no HU", "no HU"]}).to_csv(tmp_path / "failed_masks.csv")
    assert quality.fates(inventory, cohort, ["d1"], "radio", tmp_path).fate.iloc[-1] == "set aside"
    nobody = unread.assign(weak_label=pd.NA)  # pretrained without labels
    assert not quality.fates(inventory, nobody, ["d1"], "radio").reason[:2].any()
    aside = quality.fates(inventory.assign(reason="bad"), cohort.assign(cohort="r"), [], "x")
    assert quality.funnel(aside)["left out"].iloc[2] == "a: bad; b: bad; c: bad; and 1 more"
    assert "neither" in quality.fates(inventory, cohort, ["d1"], "x").reason[0]
    stamps = ["9 ab 5 cd", "9 ef 5 cd", "8 ab 5 cd", "9 ab"]
    learnt = ["9 ab 5 cd", "9 00", "8 ab", "9 a"]  # where 01b copies masks, volumes alone
    now, then = inventory.assign(content=stamps), cohort.assign(drawn_from=learnt)
    other = quality.fates(now, then, ["d1"], "radio").assign(kept=1)
    assert other.mask_changed.tolist() == [False, False, False, True]  # of drawn ones 01 says it
    other.to_csv(tmp_path / "quality.csv", index=False)
    words = quality.cautions(read_csv(tmp_path / "quality.csv", text=True))[1]
    assert "learnt from them: 1 given masks or their volumes (d). Draw anew" in words
    found.to_csv(tmp_path / "quality.csv", index=False)
    drawn, cut = quality.cautions(read_csv(tmp_path / "quality.csv", text=True))
    assert drawn.startswith("1 liver masks are drawn") and cut.startswith("1 livers of 3 reach")
    assert "its Dice was 0.70, and the ends of the liver were 15 mm off" in drawn
    assert quality.cautions(read_csv(tmp_path / "quality.csv", text=True).head(1)) == []
    assert quality.caption(found.iloc[1]) == "b, 900 ml, 90 mm\ncut: top, drawn"
    assert quality.caption(found.iloc[0]) == "a, 1500 ml, 160 mm\nwhole, given"
    long = [found.iloc[0].copy(), found.iloc[0].copy()]
    long[0].patient, long[1].patient = "CirrMRI600_Case_0001", "CirrMRI600_Case_0002"
    assert quality.caption(long[0]) != quality.caption(long[1])
    (tmp_path / "failed_masks.csv").write_text("volume;patient\n/v9;e\n")
    with pytest.raises(ValueError, match=r"failed_masks.csv: columns .*'cohort'.* are missing"):
        quality.fates(inventory, cohort, ["d1"], "radio", tmp_path)


def test_a_store_without_sound_pictures_is_read_all_the_same(tmp_path):
    pictures = np.ones((2, quality.PICTURE, quality.PICTURE, 3), np.uint8)
    np.save(tmp_path / "pictures.npy", pictures)
    assert (quality.read_pictures(tmp_path) == pictures).all()
    (tmp_path / "pictures.npy").write_bytes((tmp_path / "pictures.npy").read_bytes()[:100])
    for _ in range(2):
        with pytest.warns(UserWarning, match="no pictures of volumes"):
            assert len(quality.read_pictures(tmp_path)) == 0
        (tmp_path / "pictures.npy").unlink(missing_ok=True)


def test_a_label_may_stand_in_the_second_row_of_a_patient():
    table = pd.DataFrame({"patient": ["a", "a", "b"], "volume": ["1", "2", "3"], "cohort": "d1"})
    table["label"] = pd.array([pd.NA, 1, 0], dtype="Int64")
    found = quality.people(table.assign(weak_label=pd.array([pd.NA] * 3, dtype="Int64")))
    row = found.loc["d1"]
    assert (row.patients, row.volumes, row.with_label, row.class_1) == (2, 3, 2, 1)
