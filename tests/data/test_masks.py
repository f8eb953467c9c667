"""Liver masks: given ones read, predicted ones back on their volume's own grid, failures named."""

import contextlib
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from test_inventory import body

from wspnb.data import masks, quality, segment
from wspnb.data.cohort import file_stamp, read_cohort
from wspnb.data.headers import open_header
from wspnb.data.slices import open_slices, write_slices
from wspnb.data.volumes import load_mask, load_volume, resize
from wspnb.files import read_csv
from wspnb.phantom.patients import Phantom
from wspnb.phantom.scans import make_phantom
from wspnb.run import main

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "01b_liver_masks.ipynb"
SPACING = (1.5, 2.0, 6.0)  # mm


def blob(shape=(60, 44, 9)) -> np.ndarray:
    """A liver without symmetry, so that a swapped or mirrored axis cannot pass."""
    mask = np.zeros(shape, bool)
    mask[32:52, 20:38, 2:7] = True
    mask[32:40, 10:20, 2:4] = True
    return mask


def store(path, array, code="RAS", origin=(10, -20, 300)) -> Path:
    """Write a canonical array along other axes, with its affine."""
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = origin
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(code))
    turned = nib.orientations.apply_orientation(array, turn)
    image = nib.Nifti1Image(turned, affine @ inv_ornt_aff(turn, array.shape))
    assert nib.aff2axcodes(image.affine) == tuple(code)
    nib.save(image, path)
    return path


def ct(mask) -> np.ndarray:
    """150 HU in the mask, air elsewhere: the window makes them 128 and 0."""
    return np.where(mask, 150, -1000).astype(np.int16)


def bright(images) -> np.ndarray:
    """A known function in the network's place: probability 1 where the picture is bright."""
    assert images.dtype == np.uint8 and images.shape[1:] == (64, 64)
    return (images / 128).clip(0, 1).astype(np.float32)


# --- geometry -------------------------------------------------------------------------------------


def test_largest_component_by_faces():
    mask = np.zeros((6, 6, 6), bool)
    mask[0:3, 0:3, 0] = True  # 9 voxels
    mask[3:5, 3:5, 1:3] = True  # 8 voxels, touches the first by a corner only
    found = masks.largest_component(mask)
    assert found.sum() == 9 and found[:3, :3, 0].all()
    mask[3, 2, 1] = mask[2, 2, 1] = True  # a bridge by faces
    assert masks.largest_component(mask).sum() == 19
    assert not masks.largest_component(np.zeros((3, 3, 3), bool)).any()


@pytest.mark.parametrize("shape", [(44, 60), (60, 44), (50, 50)])
def test_back_to_grid_undoes_resize(shape):
    """A plane wave is kept to a hundredth by going to a finer square and back; so is its place."""
    pixel = (2.0, 1.5)
    row, column = np.mgrid[: shape[0], : shape[1]]
    image = np.sin(row / 9 + column / 14).astype(np.float32)
    there = segment.back_to_grid(resize(image, 192, pixel, 0.0), shape, pixel)
    assert there.shape == shape
    np.testing.assert_allclose(there[2:-2, 2:-2], image[2:-2, 2:-2], atol=0.01)


@pytest.mark.parametrize("code", ["RAS", "LPS", "PIR", "SLA", "LAI"])
def test_prediction_lies_on_the_volumes_own_grid(tmp_path, code):
    truth = blob()
    volume = store(tmp_path / "ct.nii.gz", ct(truth), code)
    assert segment.predict_to(tmp_path / "mask.nii.gz", volume, bright, 10, size=64) == ""
    written, original = nib.load(tmp_path / "mask.nii.gz"), nib.load(volume)
    assert written.shape == original.shape and written.get_data_dtype() == np.uint8
    np.testing.assert_allclose(written.affine, original.affine, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith("tmp")] == []
    drawn = load_mask(tmp_path / "mask.nii.gz", volume)
    assert masks.dice(drawn, truth) > 0.95  # 0.96: a pixel of the 64 is 1.4 to 2 voxels wide
    assert drawn.any((0, 1)).tolist() == truth.any((0, 1)).tolist()
    overlap = masks.dice(np.asarray(written.dataobj) > 0, np.asarray(original.dataobj) > 0)
    assert overlap == masks.dice(drawn, truth)  # voxel by voxel of the files as well


def test_written_mask_is_exact_in_an_oblique_4d_volume(tmp_path):
    rng, mask = np.random.default_rng(0), blob()
    turn = np.eye(4)
    turn[:3, :3] = np.linalg.qr(np.eye(3) + 0.1 * rng.normal(size=(3, 3)))[0] * SPACING
    array = np.zeros((*mask.shape, 1), np.int16)
    nib.save(nib.Nifti1Image(array, turn), tmp_path / "ct.nii")
    hu, _ = load_volume(tmp_path / "ct.nii")
    drawn = rng.random(hu.shape) > 0.5
    masks.write_mask(tmp_path / "mask.nii.gz", drawn, tmp_path / "ct.nii")
    np.testing.assert_array_equal(load_mask(tmp_path / "mask.nii.gz", tmp_path / "ct.nii"), drawn)


def test_pairs_show_the_liver_where_it_is(tmp_path):
    volume = store(tmp_path / "ct.nii.gz", ct(blob()), "LPS")
    mask = store(tmp_path / "mask.nii.gz", blob().astype(np.uint8) * 5, "PIR")
    images, livers = segment.training_pairs(volume, mask, 5, 5, size=64)
    assert images.shape == livers.shape == (5, 64, 64)
    assert livers.any((1, 2)).tolist() == [False, True, True, True, False]  # z = 0, 2, 4, 6, 8
    assert ((images > 64) == (livers == 255)).mean() > 0.99
    assert np.argwhere(livers[2])[:, 1].mean() < 32  # the patient's right is on the left
    views, outlines = segment.vary(images, livers, torch.Generator().manual_seed(0))
    inside = outlines.bool()
    assert views[inside].min() > views[~inside].quantile(0.98)  # image and outline move together


def test_whether_the_volume_or_its_mask_is_at_fault(tmp_path):
    volume = store(tmp_path / "ct.nii.gz", ct(blob()))
    (tmp_path / "mask.nii.gz").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"^no liver mask: .*mask.nii.gz"):
        segment.training_pairs(volume, tmp_path / "mask.nii.gz")
    volume.write_bytes(b"cut as well")
    with pytest.raises(ValueError, match=r"^(?!no liver mask).*ct.nii.gz"):
        segment.training_pairs(volume, tmp_path / "mask.nii.gz")


def test_an_error_nobody_thought_of_costs_one_pair(monkeypatch):
    def pairs(volume, *_, **__):
        return {"a": (np.zeros((1, 8, 8), np.uint8),) * 2}[volume]  # KeyError of the other

    monkeypatch.setattr(segment, "training_pairs", pairs)
    pool = pd.DataFrame({"volume": ["b", "a"], "mask": "m", "patient": ["q", "p"]})
    _, _, owners, failed = segment.read_pairs(pool)
    assert owners.tolist() == [1]
    assert failed == [{"volume": "b", "patient": "q", "reason": "KeyError('b')"}]


# --- given masks ----------------------------------------------------------------------------------


def test_intensities_are_decoded_as_in_notebook_01_or_refused(tmp_path):
    hu, out = body(), tmp_path / "out.nii.gz"
    volume = store(tmp_path / "hu.nii.gz", hu)
    mask = store(tmp_path / "liver.nii.gz", (hu > 70).astype(np.uint8))
    halves = np.rint((hu.clip(-100, 400) + 100) / 2).astype(np.uint8)
    coded = store(tmp_path / "coded.nii.gz", halves)
    shifted = store(tmp_path / "shifted.nii.gz", hu + np.int16(1024))
    wrapped = store(tmp_path / "wrapped.nii.gz", hu.astype(np.uint8))
    images, _ = segment.training_pairs(volume, mask, size=64)
    livers, _ = segment.predict_mask(volume, bright, size=64)
    for path, coding in ((coded, ""), (shifted, "HU+1024")):
        row = {"volume": path, "mask": mask, "patient": "p", "coding": coding}
        found, *_ = segment.read_pairs(pd.DataFrame([row]), size=64)
        assert np.abs(found.astype(int) - images).max() <= 2, path
        drawn, _ = segment.predict_mask(path, bright, size=64, coding=coding)
        assert masks.dice(drawn, livers) > 0.98, path
        _, sheet, _ = segment.depth_sheet(path, [livers], coding=coding)
        assert np.abs(sheet.astype(int) - segment.depth_sheet(volume, [livers])[1]).max() <= 2
    for path in (shifted, wrapped):  # not said, or beyond repair
        with pytest.raises(ValueError, match=r"intensities (unknown|wrapped)"):
            segment.training_pairs(path, mask)
        assert "intensities" in segment.predict_to(out, path, bright, size=64)
    assert not out.exists()


def table(folder, *masks_given) -> Path:
    """A cohort of as many volumes as masks are given, the first with liver where blob() is."""
    lines = ["volume,mask,patient,weak_label,label,cohort,site"]
    for number, mask in enumerate(masks_given):
        store(folder / f"ct{number}.nii.gz", ct(blob()))
        lines.append(f"ct{number}.nii.gz,{mask},p{number},{number % 2},,ours,")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    return folder / "cohort.csv"


def test_totalsegmentators_folder_of_a_patient(tmp_path):
    (tmp_path / "seg").mkdir()
    store(tmp_path / "seg" / "liver.nii.gz", blob().astype(np.uint8))
    store(tmp_path / "seg" / "spleen.nii.gz", (~blob()).astype(np.uint8))
    path = table(tmp_path, "seg", "seg/")
    assert read_cohort(path)["mask"].tolist() == [str(tmp_path / "seg" / "liver.nii.gz")] * 2
    (tmp_path / "seg" / "liver.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"line 2: mask .*seg' is not a file"):
        read_cohort(path)


def test_label_map_is_read_by_value_and_copied_as_zero_and_one(tmp_path):
    labels = np.where(blob(), 5, 1).astype(np.uint8)
    store(tmp_path / "total.nii.gz", labels, "LPS")
    cohort = read_cohort(table(tmp_path, "total.nii.gz"))
    volume, path = cohort.volume[0], cohort["mask"][0]
    np.testing.assert_array_equal(masks.read_given(path, volume, 5), blob())
    with pytest.raises(ValueError, match="no voxel has the value 4, there are 1, 5"):
        masks.read_given(path, volume, 4)
    out = tmp_path / "out"
    (out / "given").mkdir(parents=True)
    masks.write_cohort(out, cohort.assign(mask_source="given"), 5)
    again = read_cohort(out / "cohort.csv")
    assert again.volume[0] == volume and again["mask"][0] == str(out / "given" / "00000-ct0.nii.gz")
    np.testing.assert_array_equal(load_mask(again["mask"][0], volume), blob())
    masks.write_cohort(out, cohort.assign(mask_source="given"))
    assert read_cohort(out / "cohort.csv")["mask"][0] == path  # without a value: where it was
    assert "../ct0.nii.gz,../total.nii.gz" in (out / "cohort.csv").read_text()


def test_hidden_masks_are_whole_patients():
    rows = pd.DataFrame({"patient": list("aabbccdde"), "mask": ["m"] * 8 + [""]})
    hidden = masks.hide_masks(rows, 0.5, seed=1)
    assert rows.patient[hidden].nunique() == 2 and hidden.sum() == 4
    assert not masks.hide_masks(rows, 0.0).any() and masks.hide_masks(rows, 1.0).sum() == 8
    with pytest.raises(ValueError, match=r"hide=1\.5"):
        masks.hide_masks(rows, 1.5)


# --- numbers --------------------------------------------------------------------------------------


def test_dice_and_millilitres(tmp_path):
    a, b = np.zeros((2, 4, 5, 6), bool)
    a[:2, 0], b[1:4, 0] = True, True
    assert masks.dice(a, b) == pytest.approx(2 * 6 / (12 + 18))
    assert masks.dice(a, ~a) == 0 and masks.dice(a[:0], b[:0]) == 1
    volume = store(tmp_path / "ct.nii.gz", ct(a), "SLA")
    found = masks.compare(a, b, {"volume": volume, "patient": "p", "cohort": "c"})
    assert found["ml_given"] == pytest.approx(12 * np.prod(SPACING) / 1000)
    assert found["ml"] == pytest.approx(1.5 * found["ml_given"]) and found["dice"] == 0.4
    assert found["bottom_mm"] == found["top_mm"] == 0
    b[:, :, 0], b[:, :, -1] = False, False  # one slice less at the bottom, one at the top
    b[:, :, -2] = False
    row = {"volume": volume, "patient": "p", "cohort": "c"}
    found = masks.compare(a, b, row)
    assert (found["bottom_mm"], found["top_mm"]) == pytest.approx((6, -12))
    assert np.isnan(masks.compare(a, b & False, row)["top_mm"])


def test_summary_counts_each_patient_once():
    lines = {"kind": "hidden", "patient": ["a", "a", "a", "b"], "dice": [0.9, 0.9, 0.9, 0.5]}
    lines |= {"bottom_mm": [-6, 6, 0, 0], "top_mm": [0, 0, 12, np.nan]}
    row = masks.summarise(pd.DataFrame(lines)).iloc[0]
    assert row.patients == 2 and row.dice == pytest.approx(0.7) and row.worst == 0.5
    assert row.ends_mm == pytest.approx(24 / 7)
    assert (row.low, row.high) == pytest.approx((0.5, 0.9))  # of two patients: a alone, b alone


def test_empty_small_and_huge_predictions_are_refused(tmp_path, monkeypatch):
    volume = store(tmp_path / "ct.nii.gz", ct(blob()))
    out, ml = tmp_path / "mask.nii.gz", blob().sum() * np.prod(SPACING) / 1000  # 38 ml
    nothing = lambda images: np.zeros(images.shape, np.float32)  # noqa: E731
    assert segment.predict_to(out, volume, nothing, 0, size=64) == "no liver mask: none found"
    assert "under 200 ml" in segment.predict_to(out, volume, bright, 200, size=64)
    with monkeypatch.context() as patch:
        patch.setattr(segment, "LIVER_ML", (0, 0.5 * ml))
        assert "ml predicted, over" in segment.predict_to(out, volume, bright, 0, size=64)
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(volume.read_bytes()[:150])
    assert "broken.nii.gz" in segment.predict_to(out, broken, bright, size=64)
    assert not out.exists()
    assert segment.predict_to(out, volume, bright, 0.9 * ml, size=64) == "" and out.exists()


def test_claim_refuses_other_settings_and_begins_afresh_on_demand(tmp_path):
    masks.claim(tmp_path, {"mask_steps": 3})
    names = ("notes.txt", "predicted/mine.nii.gz", "fold-notes.csv")  # other people's
    for name in ("fold-0.safetensors", "predicted/00000-ct.nii.gz", *names):
        (tmp_path / name).write_text("x")
    masks.claim(tmp_path, {"mask_steps": 3})
    assert (tmp_path / "fold-0.safetensors").exists()
    with pytest.raises(ValueError, match="mask_steps: 3 there, 4 now"):
        masks.claim(tmp_path, {"mask_steps": 4})
    masks.claim(tmp_path, {"mask_steps": 4}, resume=False)
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert left == sorted([*names, "settings.json"])
    assert json.loads((tmp_path / "settings.json").read_text()) == {"mask_steps": 4}
    masks.claim(tmp_path, {"source": "0123"}, resume=False)
    with pytest.raises(ValueError, match="masks or patients of source_dir changed"):
        masks.claim(tmp_path, {"source": "4567"})  # no bare hashes
    rows = [["a", "01"], ["b", "23"], ["b", "45"]]
    masks.claim(tmp_path, {"source": rows}, resume=False)
    for other, who in (
        ([["a", "01"], ["b", "23"], ["b", "67"]], "b"),
        ([*rows, ["c", "89"]], "c"),
        (rows[1:], "a"),
        (rows[::-1], "their order"),
    ):
        with pytest.raises(ValueError, match=rf"patients of source_dir \({who}\) changed"):
            masks.claim(tmp_path, {"source": other})


def test_a_corrected_label_draws_no_mask_again(tmp_path):
    (tmp_path / "v.nii").write_bytes(b"volume")
    table = pd.DataFrame({"volume": [str(tmp_path / "v.nii")], "mask": "", "patient": "a"})
    first = masks.digest(table.assign(label=0, cohort="d1"))
    assert masks.digest(table.assign(label=1, cohort="d2", coding="")) == first
    assert masks.digest(table.assign(label=0, patient="b")) != first
    assert masks.digest(table.assign(label=0, coding="HU")) != first
    (tmp_path / "v.nii").write_bytes(b"another")
    assert masks.digest(table.assign(label=0)) != first


# --- the network ----------------------------------------------------------------------------------


def test_missing_monai_is_one_clear_line(monkeypatch):
    for name in ("monai", "monai.networks.nets", "monai.losses"):
        monkeypatch.setitem(sys.modules, name, None)
    for needs in (segment.liver_unet, segment.dice_loss):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'wspnb\[segment\]'") as error:
            needs()
        assert "\n" not in str(error.value)


def test_network_follows_its_seed_and_survives_its_file(tmp_path):
    pytest.importorskip("monai")
    state = torch.random.get_rng_state()
    first, again, other = (segment.liver_unet(seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [next(network.parameters()) for network in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert sum(p.numel() for p in first.parameters()) == 165_873
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64), np.uint8)
    segment.save_network(first, tmp_path / "unet.safetensors")
    found = segment.load_network(tmp_path / "unet.safetensors")(images)
    assert found.shape == (5, 64, 64) and found.min() > 0 and found.max() < 1
    np.testing.assert_allclose(found, segment.segmenter(first, batch=2)(images), atol=1e-5)
    confident = torch.full((1, 1, 8, 8), -20.0)
    loss, truth = segment.dice_loss(), torch.zeros(1, 1, 8, 8)
    truth[..., :4] = 1
    confident[..., :4] = 20.0
    assert loss(confident, truth) < 1e-4 < 1 < loss(-confident, truth)


def run(folder, *pairs) -> int:
    places = (f"source_dir={folder}", f"masks_dir={folder / 'masks'}", f"run_dir={folder / 'run'}")
    options = [word for pair in (*places, *pairs) for word in ("-p", *pair.split("=", 1))]
    return main([str(NOTEBOOK), str(folder / "out.ipynb"), *options])


@pytest.mark.slow
def test_drawn_masks_never_replace_the_table_they_are_drawn_for(tmp_path, capfd):
    pytest.importorskip("monai")
    assert run(tmp_path / "masks", f"masks_dir={tmp_path / 'masks'}") == 1
    said = "is source_dir too: name the folder of your own table: -p source_dir FOLDER"
    assert said in capfd.readouterr().err


@pytest.mark.slow
def test_two_folds_learn_the_phantoms_liver_and_failures_leave_the_table(tmp_path, capfd):
    """Dice after 60 steps on a dozen phantoms was 0.8 to 0.9; an untrained network is under 0.3."""
    pytest.importorskip("monai")
    phantom = Phantom(image_size=64, spacing_mm=14)
    path = make_phantom(tmp_path, phantom, 0.005, 0.01, workers=1, progress=False)
    cohort = pd.read_csv(path, dtype=str, keep_default_na=False)
    blank = nib.load(tmp_path / cohort.volume[0])
    air = nib.Nifti1Image(np.full(blank.shape, -1000, np.int16), blank.affine)
    nib.save(air, tmp_path / "air.nii.gz")  # no liver to be found
    last = {"volume": "air.nii.gz", "mask": "", "patient": "air", "cohort": "radio"}
    cohort = pd.concat([cohort, pd.DataFrame([last])]).fillna("")
    cohort.to_csv(path, index=False)
    few = ("mask_folds=2", "mask_steps=60", "hide=0.3", "mask_size=64", "seed=0")
    assert run(tmp_path, *few) == 0
    found = pd.read_csv(tmp_path / "masks" / "dice.csv")
    failed = pd.read_csv(tmp_path / "masks" / "failed_masks.csv")
    assert not failed.reason.str.contains(str(tmp_path)).any()  # it goes into reports
    assert set(found.kind) == {"held out", "hidden"} and len(found) == len(cohort) - 1
    means = found.groupby("kind").dice.mean()
    assert (means > 0.6).all(), means
    failed = pd.read_csv(tmp_path / "masks" / "failed_masks.csv")
    assert "air" in failed.patient.tolist()
    written = read_cohort(tmp_path / "masks" / "cohort.csv")
    assert "air" not in written.patient.tolist() and len(written) + len(failed) == len(cohort)
    hidden = found.patient[found.kind == "hidden"]
    assert (written.mask_source[written.patient.isin(hidden)] == "predicted").all()
    first = written[written.mask_source == "predicted"].iloc[0]
    truth = load_mask(tmp_path / "masks" / f"{first.patient}.nii.gz", first.volume)
    drawn = load_mask(first["mask"], first.volume)
    row = found[found.patient == first.patient].iloc[0]
    assert masks.dice(truth, drawn) == pytest.approx(row.dice)

    # Notebook 01 goes on from here, the predicted masks like any other.
    write_slices(tmp_path / "masks" / "cohort.csv", tmp_path / "store", 64, workers=1)
    store = open_slices(tmp_path / "store")
    assert not len(store.failed) and store.table.patient.nunique() == len(written)
    assert set(store.table.selection) == {"central 70 % of the mask"}
    csv = tmp_path / "masks" / "cohort.csv"
    listed = read_csv(tmp_path / "store" / "inventory.csv")
    told = quality.fates(listed, read_cohort(csv), [], "r", csv.parent)
    assert len(told) >= len(written) and not told.mask_changed.fillna(False).astype(bool).any()

    # An interrupted run: one fold's network and one mask are gone, the rest is taken as it is.
    (tmp_path / "masks" / "fold-1.safetensors").unlink()
    (tmp_path / "masks" / "fold-1-dice.csv").unlink()
    kept = found[found.network == "0"].assign(dice=0.123)
    kept.to_csv(tmp_path / "masks" / "fold-0-dice.csv", index=False)
    assert run(tmp_path, *few) == 0
    again = pd.read_csv(tmp_path / "masks" / "dice.csv")
    assert (again.dice[again.network == "0"] == 0.123).all()
    expected = found.set_index("volume").dice[again.volume[again.network == "1"]]
    np.testing.assert_allclose(again.dice[again.network == "1"], expected, atol=0.02)
    # The project moves, who has no mask leaves, a file gets another name: nothing is learnt again.
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name} moved"))
    learnt = written.patient[written.mask_source == "given"].iloc[0]
    name = cohort.volume[cohort.patient == learnt].iloc[0]
    renamed = cohort[cohort.patient != "air"]
    (moved / name).rename(moved / "renamed.nii.gz")
    renamed = renamed.replace({"volume": {name: "renamed.nii.gz"}})
    renamed.to_csv(moved / "cohort.csv", index=False)
    before = (moved / "masks" / "fold-1.safetensors").stat().st_mtime_ns
    assert run(moved, *few) == 0
    assert (moved / "masks" / "fold-1.safetensors").stat().st_mtime_ns == before
    there = pd.read_csv(moved / "masks" / "dice.csv")
    again = again.replace({"volume": {f"../{name}": "../renamed.nii.gz"}})  # paths are relative
    pd.testing.assert_frame_equal(there, again)
    assert "air" not in pd.read_csv(moved / "masks" / "failed_masks.csv").patient.tolist()
    assert run(moved, *few, "low=-90") == 1
    assert "low: -100.0 there, -90.0 now" in capfd.readouterr().err


def test_a_drawn_mask_belongs_to_the_volume_that_it_was_drawn_on(tmp_path):
    for name, value in (("a", 1), ("b", 2), ("liver", 3)):
        (tmp_path / name).write_bytes(bytes([value] * 9))
    lines = {"volume": ["a", "b"], "mask": ["liver", "drawn"], "patient": ["A", "B"]}
    table = pd.DataFrame(lines | {"mask_source": ["given", "predicted"]})
    table[["volume", "mask"]] = table[["volume", "mask"]].map(lambda name: str(tmp_path / name))

    def check(said=None):
        stamps = [(file_stamp(r.volume), file_stamp(r.mask)) for r in table.itertuples()]
        masks.check_drawn(table.assign(drawn_from=said) if said is not None else table, stamps)

    check()  # another's table: nothing is known
    said = masks.write_cohort(tmp_path / "masks", table)["drawn_from"].tolist()
    (tmp_path / "drawn").write_bytes(b"smoothed by hand")
    check(said)
    (tmp_path / "liver").write_bytes(b"corrected")
    with pytest.warns(
        UserWarning, match="given masks of A, or their volumes, have changed; .* draw again"
    ):
        check(said)
    (tmp_path / "liver").write_bytes(bytes([3] * 9))
    check(said)
    (tmp_path / "a").write_bytes(b"another voxel")
    with pytest.warns(UserWarning, match="given masks of A, or their volumes, have changed"):
        check(said)
    (tmp_path / "b").write_bytes(b"another series")
    with pytest.raises(ValueError, match="masks of B were drawn on volumes that have changed"):
        check(said)


def test_labels_that_changed_after_the_drawing_are_asked_for(tmp_path):
    """A corrected label, a patient more; a moved project and another table are no matter."""
    own = tmp_path / "own"
    own.mkdir()
    for name in ("a", "b", "m"):
        (own / name).write_bytes(b"x")
    lines = "volume,mask,patient,weak_label,label,cohort\na,m,A,1,,r\nb,m,B,,0,d1\n"
    (own / "cohort.csv").write_text(lines)
    table = read_cohort(own / "cohort.csv").assign(mask_source=["given", "predicted"])
    masks.check_labels(own / "cohort.csv")
    (tmp_path / "masks").mkdir()
    masks.write_cohort(tmp_path / "masks", table, None, own / "cohort.csv")
    made = tmp_path / "masks" / "cohort.csv"
    masks.check_labels(made)
    for changed, who in ((lines.replace(",0,d1", ",1,d1"), "B"), (lines + "m,m,C,2,,r\n", "C")):
        (own / "cohort.csv").write_text(changed)
        with pytest.raises(ValueError, match=rf"\({who}\): give notebook 01b's command again"):
            masks.check_labels(made)
    (own / "cohort.csv").unlink()
    masks.check_labels(made)
    (own / "b").unlink()
    with pytest.raises(ValueError, match=r"It was made of .*own/cohort\.csv: correct that one"):
        read_cohort(made)


def test_lines_of_dice_find_their_volumes_under_other_names_of_folders():
    found = pd.DataFrame({"patient": ["B", "A", "A"], "volume": ["x/1.nii.gz", "2.nii", "x/1.nii"]})
    now = pd.DataFrame({"patient": ["A", "B", "A"], "volume": ["/y/1.nii", "/z/1.nii", "/y/2.nii"]})
    assert masks.named_again(found, now).volume.tolist() == ["/z/1.nii", "/y/2.nii", "/y/1.nii"]
    renamed = now.assign(volume=["/y/1.nii", "/z/b.nii", "/y/2.nii"])
    again = masks.named_again(found, renamed).volume
    assert again.tolist() == ["/z/b.nii", "/y/2.nii", "/y/1.nii"]


@pytest.mark.slow
def test_label_maps_for_every_volume_need_no_training(tmp_path):
    pytest.importorskip("monai")
    for number, value in enumerate((5, 5, 4)):  # the last is another organ's
        labels = np.where(blob(), value, 0).astype(np.uint8)
        store(tmp_path / f"total{number}.nii.gz", labels)
    table(tmp_path, *(f"total{number}.nii.gz" for number in range(3)))
    assert run(tmp_path, "hide=0", "mask_folds=0", "mask_value=5", "mask_size=64") == 0
    assert not list((tmp_path / "masks").glob("*.safetensors"))
    written = read_cohort(tmp_path / "masks" / "cohort.csv")
    assert written.patient.tolist() == ["p0", "p1"] and set(written.mask_source) == {"given"}
    for row in written.itertuples():
        np.testing.assert_array_equal(load_mask(row.mask, row.volume), blob())
    failed = pd.read_csv(tmp_path / "masks" / "failed_masks.csv")
    assert failed.patient.tolist() == ["p2"] and "no voxel has the value 5" in failed.reason[0]


def organ(first=3, last=16, shape=(40, 30, 20)):
    """(x, y, z) bool of 14 slices, 14 x 12 x 10 voxels of 5 x 5 x 10 mm: 588 ml whole."""
    mask = np.zeros(shape, bool)
    mask[20:34, 8:20, first : last + 1] = True
    return mask


def measured(tmp_path, mask):
    volume = tmp_path / "v.nii.gz"
    if not volume.exists():
        nib.save(nib.Nifti1Image(body(0, mask.shape), np.diag([5.0, 5, 10, 1])), volume)
    return masks.measure(mask, open_header(volume))


def test_a_mask_is_measured(tmp_path):
    whole = {"mask_ml": 588.0, "mask_mm": 140.0, "mask_cut": "", "mask_gaps": 0}
    alone = {"mask_parts": 1, "mask_share": 1.0, "mask_reach": 0, "mask_tail_mm": 0.0}
    alone |= {"mask_flat": 1.0}  # a box
    found = measured(tmp_path, organ())
    moved = measured(tmp_path, np.roll(organ(), 1, 0))
    assert len({row.pop("mask_voxels") for row in (found, moved)}) == 2
    assert found == moved == whole | alone
    assert measured(tmp_path, organ(0, 10))["mask_cut"] == "bottom"
    assert measured(tmp_path, organ(9, 19))["mask_cut"] == "top"
    assert measured(tmp_path, organ(0, 19))["mask_cut"] == "bottom and top"
    island = organ()
    island[2:5, 3:6, 1:5] = True  # two slices lower than the liver, no gap: 36 voxels
    found = measured(tmp_path, island)
    assert (found["mask_parts"], found["mask_reach"], found["mask_gaps"]) == (2, 2, 0)
    assert found["mask_share"] == pytest.approx(2352 / 2388, abs=1e-4)
    island[2:5, 3:6, 18] = True  # and one above, two slices from it
    found = measured(tmp_path, island)
    assert (found["mask_parts"], found["mask_reach"], found["mask_gaps"]) == (3, 4, 1)


@pytest.mark.parametrize("inside", [1, 255, 0.5])
def test_whatever_is_not_zero_is_inside(tmp_path, inside):
    mask, odd = organ(), organ() * inside
    assert measured(tmp_path, odd) == measured(tmp_path, mask)
    row = {"volume": str(tmp_path / "v.nii.gz"), "patient": "p", "cohort": "c"}
    found = masks.compare(mask * 2, odd, row)
    assert found["dice"] == 1 and found["ml"] == found["ml_given"] == pytest.approx(588)
    with pytest.raises(ValueError, match=r"m\.nii\.gz: mask \(40, 30, 19\) for .*\(40, 30, 20\)"):
        masks.write_mask(tmp_path / "m.nii.gz", mask[:, :, 1:], tmp_path / "v.nii.gz")


@pytest.mark.parametrize(
    "mask, words",
    [
        (np.pad(np.ones((1, 1, 1), bool), ((20, 19), (9, 20), (9, 10))), "0.2 ml, and a liver"),
        (np.ones((40, 30, 20), bool), "6000 ml, and a liver"),
        (organ(8, 10), "126 ml, and a liver has 200 to 6000 ml"),
    ],
)
def test_what_no_liver_has_is_set_aside(tmp_path, mask, words):
    row = measured(tmp_path, mask)
    if row["mask_ml"] == 6000:  # exactly the most
        masks.check_size("m.nii.gz", row)
        row["mask_ml"] = 6000.1
        words = "6000.1 ml, and a liver"
    with pytest.raises(ValueError, match=rf"m\.nii\.gz: {words}"):
        masks.check_size("m.nii.gz", row)
    masks.check_size("m.nii.gz", row, (0, 1e6))
    part = measured(tmp_path, organ(0, 2))  # 126 ml too, but the scan cuts it off
    masks.check_size("m.nii.gz", part)
    stray = organ(9, 11)
    stray[0, 0, 0] = True  # does not make a cut liver of it
    voxel = np.zeros_like(stray)
    voxel[0, 0, 0] = True
    for few in (stray, voxel):
        row = measured(tmp_path, few)
        assert row["mask_cut"] == "bottom"
        with pytest.raises(ValueError, match="and a liver has 200 to 6000 ml"):
            masks.check_size("m.nii.gz", row)


def test_cut_off_livers_and_islands_are_named_in_the_inventory(tmp_path):
    rows = []
    cases = {"whole": organ(), "cut": organ(0, 10), "island": organ(), "body": None}
    cases["island"][2:5, 3:6, 1:5] = True
    for number, (name, mask) in enumerate(cases.items()):
        hu = body(number, (40, 30, 20))
        mask = hu > -500 if mask is None else mask
        if name == "body":
            mask = np.ones(hu.shape, bool) & (np.indices(hu.shape)[2] < 20)
        place = np.diag([5.0, 5, 10, 1]) if name != "body" else np.diag([6.0, 6, 12, 1])
        nib.save(nib.Nifti1Image(hu, place), tmp_path / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), place), tmp_path / f"{name}-m.nii.gz")
        rows.append(f"{name}.nii.gz,{name}-m.nii.gz,{name},0,,radio")
    (tmp_path / "cohort.csv").write_text(
        "\n".join(["volume,mask,patient,weak_label,label,cohort", *rows]) + "\n"
    )
    with pytest.warns(UserWarning) as said:
        write_slices(tmp_path / "cohort.csv", tmp_path / "s", 32, workers=1, progress=False)
    said = [str(warning.message) for warning in said]
    said = [words for words in said if "mask_flat" not in words]  # boxes
    assert len(said) == 2
    assert any("1 masks, such as that of cut.nii.gz, reach the first or last" in w for w in said)
    assert any("1 masks, such as that of island.nii.gz, have slices without" in w for w in said)
    table = pd.read_csv(tmp_path / "s" / "inventory.csv", keep_default_na=False)
    table = table.set_index("patient")
    assert table.mask_cut.to_dict() == {
        "whole": "",
        "cut": "bottom",
        "island": "",
        "body": "bottom and top",
    }
    assert "10368 ml, and a liver has" in table.reason["body"] and table.n_kept["body"] == 0
    assert (table.n_kept[["whole", "cut", "island"]] > 0).all()


def test_masks_on_the_left_or_half_in_air_are_named(tmp_path):
    """A liver lies on the right; mirrored, its mask still lies on tissue."""
    hu, liver = body(0, (40, 30, 20)), organ()
    lung = np.where(np.indices(hu.shape)[2] > 13, np.int16(-800), hu)
    cases = {"right": (hu, liver), "left": (body(1, hu.shape), liver[::-1]), "high": (lung, liver)}
    for name, (voxels, mask) in cases.items():
        for end, array in (("", voxels), ("-m", mask.astype(np.uint8))):
            image = nib.Nifti1Image(array, np.diag([5.0, 5, 10, 1]))
            nib.save(image, tmp_path / f"{name}{end}.nii.gz")
    rows = [f"{name}.nii.gz,{name}-m.nii.gz,{name},0,,radio" for name in cases]
    header = "volume,mask,patient,weak_label,label,cohort"
    (tmp_path / "cohort.csv").write_text("\n".join([header, *rows]) + "\n")
    with pytest.warns(UserWarning) as said:
        write_slices(tmp_path / "cohort.csv", tmp_path / "s", 32, workers=1, progress=False)
    said = " ".join(str(warning.message) for warning in said)
    assert "1 masks, such as that of left.nii.gz, lie on the patient's left" in said
    assert "1 masks, such as that of high.nii.gz, hold a tenth of air, lung or bone" in said
    table = pd.read_csv(tmp_path / "s" / "inventory.csv").set_index("patient")
    assert table.mask_right_mm["right"] == pytest.approx(-table.mask_right_mm["left"], abs=0.3)
    assert table.mask_right_mm["right"] == pytest.approx(35, abs=0.5)
    assert table.mask_outside["right"] == pytest.approx(0.071, abs=0.002)
    assert table.mask_outside["high"] == pytest.approx(0.164, abs=0.002)  # one of ten is lung


def test_masks_of_other_voxels_are_not_gone_on_with(tmp_path):
    """Uncompressed volumes of one grid always have one size."""
    line = "volume,mask,patient,weak_label,label,cohort\nct.nii,m.nii,p,0,,radio\n"
    (tmp_path / "cohort.csv").write_text(line)
    seen = set()
    for volume, mask in [(0, 0), (1, 0), (1, 1), (0, 0)]:
        store(tmp_path / "ct.nii", body(volume, blob().shape))
        store(tmp_path / "m.nii", np.roll(blob(), mask, 2).astype(np.uint8))
        seen.add(str(masks.digest(read_cohort(tmp_path / "cohort.csv"))))
    assert len(seen) == 3


def test_a_new_patient_is_learnt_from_anew_and_a_label_is_not(tmp_path):
    head, lines = "volume,mask,patient,weak_label,label,cohort\n", ["a,a,A,1,,r", "b,b,B,1,,r"]
    for name in "abc":
        (tmp_path / name).write_text(name)
    own = tmp_path / "cohort.csv"
    own.write_text(head + "\n".join(lines) + "\n")
    drawn = read_cohort(own).assign(mask_source="given")
    masks.write_cohort(tmp_path / "masks", drawn, None, own)
    made = tmp_path / "masks" / "cohort.csv"
    masks.check_labels(made)
    own.write_text(head + "\n".join([lines[0].replace("1", "2"), lines[1]]) + "\n")
    with pytest.raises(ValueError, match=r"\(A\): .* -p source_dir \S+ at its end"):
        masks.check_labels(made)
    own.write_text(head + "\n".join([*lines, "c,c,C,1,,r"]) + "\n")
    with pytest.raises(ValueError, match=r"\(C\): .* -p source_dir \S+ -p resume false at its end"):
        masks.check_labels(made)


def own_table(folder, lines, head="volume,mask,patient,weak_label,label,cohort"):
    folder.mkdir(exist_ok=True)
    (folder / "cohort.csv").write_text("\n".join([head, *lines]) + "\n")


@pytest.mark.parametrize(
    ("before", "after", "who", "afresh"),
    [
        ("c,,C,1,,r,61,", "d,,C,1,,r,61,", "C", False),  # nobody has learnt from it
        ("b,m,B,1,,r,61,", "b,d,B,1,,r,61,", "B", None),  # another mask, or a renamed one
        ("c,,C,1,,r,61,", "c,d,C,1,,r,61,", "C", True),  # corrected by hand, and given now
        ("c,,C,1,,r,61,", "c,,C,1,,r,61,\nd,,B,1,,r,61,", "B", False),  # a second volume
        ("c,,C,1,,r,61,", "c,,C,1,,r,61,\nd,d,B,1,,r,61,", "B", True),  # with a mask
        ("b,m,B,1,,r,61,", "", "B", True),  # withdrawn
        ("b,m,B,1,,r,61,", "b,m,B,1,,r,61,\nd,d,B,1,,r,61,", "B", True),  # one more of B
        ("b,m,B,1,,r,61,", "b,m,B,1,,r,61,HU+1024", "B", True),
        ("b,m,B,1,,r,61,", "b,m,B,1,,r,16,", "B", False),  # another column
        ("b,m,B,1,,r,61,", "b,m,B,2,,r,61,", "B", False),
    ],
)
def test_a_row_that_changed_after_the_drawing_is_asked_for(tmp_path, before, after, who, afresh):
    head = "volume,mask,patient,weak_label,label,cohort,age,coding"
    own_table(
        tmp_path / "own", lines := ["a,l,A,0,,r,61,", "b,m,B,1,,r,61,", "c,,C,1,,r,61,"], head
    )
    for name in "abcdlm":
        (tmp_path / "own" / name).write_text(name)
    table = read_cohort(tmp_path / "own" / "cohort.csv")
    (tmp_path / "drawn").write_text("drawn")
    source = np.where(table["mask"] == "", "predicted", "given")
    table["mask"] = table["mask"].where(table["mask"] != "", str(tmp_path / "drawn"))
    drawn = table.assign(mask_source=source)
    made = tmp_path / "masks" / "cohort.csv"
    masks.write_cohort(made.parent, drawn, None, tmp_path / "own" / "cohort.csv")
    masks.check_labels(made)
    own_table(
        tmp_path / "own", [new for line in lines if (new := line.replace(before, after))], head
    )
    with pytest.raises(ValueError, match=rf"\({who}\): give .* again") as error:
        masks.check_labels(made)
    said, ask = str(error.value), " (and -p resume false if they are other scans or masks"
    assert (ask in said) == (afresh is None)
    assert said.endswith("-p resume false at its end") == bool(afresh)
    if after.startswith("d,,C"):  # while masks are drawn
        with pytest.raises(ValueError, match=r"changed meanwhile \(C\)"):
            masks.write_cohort(made.parent, drawn, None, tmp_path / "own" / "cohort.csv")
    if after == "b,m,B,2,,r,61,":  # corrected in both tables
        made.write_text(made.read_text().replace(",B,1,", ",B,2,"))
        masks.check_labels(made)
    (made.parent / "source.csv").unlink()
    with pytest.raises(ValueError, match="earlier version"):
        masks.check_labels(made)


def test_the_liver_in_the_masks_of_01b_has_been_told_already():
    table = pd.DataFrame({"patient": ["A", "B"], "drawn_from": "x", "mask_value": 5})
    assert masks.value_of(table, 5) is masks.value_of(table, None) is None
    with pytest.raises(
        ValueError, match=r"mask_value 6, and notebook 01b took 5 .* -p mask_value 6"
    ):
        masks.value_of(table, 6)
    assert masks.value_of(table.drop(columns="drawn_from"), 6) == 6  # a column of one's own


@pytest.mark.parametrize("after", range(8))
def test_beginning_afresh_that_is_interrupted_leaves_nothing_of_unknown_settings(
    tmp_path, monkeypatch, after
):
    masks.claim(tmp_path, {"seed": 0})
    for name in masks.OURS[1:8]:
        (tmp_path / name.replace("[0-9]*", "0")).write_text("of seed 0")
    left, real = [after], Path.unlink

    def unlink(path, *args, **more):
        if path.is_relative_to(tmp_path) and not path.name.startswith("."):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        return real(path, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with contextlib.suppress(KeyboardInterrupt):
            masks.claim(tmp_path, {"seed": 1}, resume=False)
    with contextlib.suppress(ValueError):  # says that another run's are there
        masks.claim(tmp_path, {"seed": 1})
        assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["settings.json"]


def test_networks_without_their_settings_are_nobodys(tmp_path):
    (tmp_path / "unet.safetensors").write_text("x")
    with pytest.raises(ValueError, match=r"without settings\.json"):
        masks.claim(tmp_path, {"seed": 1})
    masks.claim(tmp_path, {"seed": 1}, resume=False)
    assert not (tmp_path / "unet.safetensors").exists()


def test_a_copy_of_a_scan_is_that_scan(tmp_path):
    for name in ("own/a", "own/b", "more/a", "more/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name[-1])
    own, more = (
        pd.DataFrame({"volume": [str(tmp_path / folder / name) for name in names]})
        for folder, names in (("own", "ab"), ("more", "ac"))
    )
    assert masks.same_scans(more, own).tolist() == [True, False]


def test_a_mask_on_air_is_not_learnt_from(tmp_path):
    scan, air = ct(blob()), np.roll(blob(), 25, 0)
    assert (air & blob()).sum() < 0.1 * blob().sum()
    rows = []
    for name, mask in (("right", blob()), ("air", air)):
        store(tmp_path / f"{name}.nii", mask.astype(np.uint8))
        rows.append({"volume": store(tmp_path / "ct.nii", scan), "mask": tmp_path / f"{name}.nii"})
    pool = pd.DataFrame(rows).map(str).assign(patient=["A", "B"])
    *_, owners, failed = segment.read_pairs(pool, 4, size=64)
    assert set(owners) == {0} and [row["patient"] for row in failed] == ["B"]
    assert "no liver mask" in failed[0]["reason"] and "no organ's" in failed[0]["reason"]


def test_a_name_too_long_for_its_mask_is_a_failure_of_one(tmp_path):
    volume = store(tmp_path / f"{'X' * 230}.nii", ct(blob()))
    longest = tmp_path / f"00000-{'X' * 242}.nii.gz"  # 255 letters
    assert segment.predict_to(longest, volume, bright, 0, size=64) == "" and longest.exists()
    out = tmp_path / f"00000-{'X' * 243}.nii.gz"
    said = segment.predict_to(out, volume, bright, 0, size=64)
    assert "too long for its mask" in said and str(volume) in said


def test_drawn_masks_are_not_learnt_from_by_a_second_study(tmp_path, capfd):
    for name in ("a", "b"):
        store(tmp_path / f"{name}.nii", ct(blob()))
    store(tmp_path / "m.nii", blob().astype(np.uint8))
    own_table(
        tmp_path,
        ["a.nii,m.nii,A,0,,r,given", "b.nii,m.nii,B,1,,r,predicted"],
        "volume,mask,patient,weak_label,label,cohort,mask_source",
    )
    assert run(tmp_path, f"source_dir={tmp_path}", f"masks_dir={tmp_path / 'masks'}") == 1
    assert "masks there are drawn, and not to be learnt from" in capfd.readouterr().err
    assert not (tmp_path / "masks").exists()


def test_a_fresh_start_that_was_interrupted_goes_on_by_the_same_command(tmp_path):
    """`-p resume false` deletes what is finished or of other settings, not what it has begun."""
    masks.claim(tmp_path, {"seed": 0}, resume=False)
    (tmp_path / "fold-0.safetensors").touch()
    masks.claim(tmp_path, {"seed": 0}, resume=False)
    assert (tmp_path / "fold-0.safetensors").exists()
    with pytest.raises(FileNotFoundError, match="notebook 01b writes it when it ends"):
        read_cohort(tmp_path / "cohort.csv")
    (tmp_path / "cohort.csv").touch()  # it has ended
    masks.claim(tmp_path, {"seed": 0}, resume=False)
    assert not (tmp_path / "fold-0.safetensors").exists()
    (tmp_path / "fold-0.safetensors").touch()
    masks.claim(tmp_path, {"seed": 1}, resume=False)
    assert not (tmp_path / "fold-0.safetensors").exists()
