"""The synthetic cohorts: determinism, labels, anatomy, signs, files. Small images, few patients."""

import json
from collections import Counter
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from wspnb.data.volumes import central_slices
from wspnb.phantom import bodies, scans
from wspnb.phantom.bodies import describe_patient
from wspnb.phantom.patients import (
    COHORTS,
    COUNTS,
    STAGES,
    Phantom,
    calibrate_reader,
    list_classes,
    list_patients,
    read_severity,
)
from wspnb.phantom.scans import draw_patient, make_phantom

SMALL = Phantom(image_size=64, spacing_mm=10.0)


def canonical(patient):
    """(volume, mask) with x to the right, y to the front, z to the head."""
    return tuple(
        np.asarray(nib.as_closest_canonical(nib.Nifti1Image(array, patient.affine)).dataobj)
        for array in (patient.volume, patient.mask)
    )


def draw_at(monkeypatch, severity, phantom, number):
    """The same patient at another severity: all else equal."""
    with monkeypatch.context() as patch:
        patch.setattr(bodies, "draw_latent", lambda *_: (0, severity, 0))
        return draw_patient(phantom, "d1", number)


def test_counts_of_the_paper_at_full_scale():
    pairs = list_patients(Phantom(), scale=1.0)
    assert Counter(cohort for cohort, _ in pairs) == {"radio": 2799, "d1": 106, "d2": 49}
    further = list_patients(Phantom(), scale=1.0, population=1.0)
    assert further[: len(pairs)] == pairs and len(further) == len(pairs) + 1060
    pairs = further
    for cohort, counts in COUNTS.items():
        numbers = [number for name, number in pairs if name == cohort]
        assert numbers == list(range(sum(counts)))
        assert np.bincount(list_classes(cohort, 0)).tolist() == list(counts)
    labels = {
        c: [describe_patient(Phantom(), c, n)["label"] for k, n in pairs if k == c]
        for c in ("d1", "d2")
    }
    assert (labels["d1"].count(0), labels["d1"].count(1)) == (28, 78)
    assert (labels["d2"].count(0), labels["d2"].count(1)) == (34, 15)


def test_a_smaller_scale_is_a_proportional_subset():
    full, tenth = list_patients(Phantom(), 1.0), list_patients(Phantom(), 0.1)
    assert set(tenth) < set(full)
    stages = Counter(list_classes("radio", 0)[n] for c, n in tenth if c == "radio")
    assert stages == {0: 188, 1: 39, 2: 41, 3: 12}
    smoke = list_patients(Phantom(), 0.005, 0.05)
    for cohort, least in (("d1", 10), ("d2", 5)):
        positive = [list_classes(cohort, 0)[n] >= 3 for c, n in smoke if c == cohort]
        assert sum(positive) >= least and len(positive) - sum(positive) >= least
    with pytest.raises(ValueError, match=r"scale 0.*\(0, 1\]"):
        list_patients(Phantom(), 0)


def test_columns_hide_what_a_cohort_does_not_know():
    radio, histology = describe_patient(SMALL, "radio", 5), describe_patient(SMALL, "d2", 5)
    assert radio["weak_label"] == radio["reading"] and radio["label"] == radio["stage"] == ""
    assert histology["weak_label"] == "" and histology["label"] == int(histology["stage"] >= 3)
    assert radio.keys() == histology.keys()


@pytest.mark.parametrize("accuracy", [0.7, 0.82, 0.95])
def test_reader_has_the_accuracy_and_the_shares_asked_for(accuracy):
    rng, reader = np.random.default_rng(0), calibrate_reader(accuracy)
    counts, edges = np.array(COUNTS["d1"]), np.array(STAGES["d1"])
    stage = rng.choice(5, 200_000, p=counts / counts.sum())
    severity = rng.uniform(edges[stage], edges[stage + 1])
    called, truth = read_severity(severity, reader, rng) >= 1, stage >= 3
    assert (called[truth].mean() + (~called[~truth]).mean()) / 2 == pytest.approx(
        accuracy, abs=0.005
    )
    population = read_severity(rng.beta(1, reader.exponent, 200_000), reader, rng)
    shares = np.bincount(population, minlength=4) / 200_000
    assert shares == pytest.approx(np.array(COUNTS["radio"]) / 2799, abs=0.005)


def test_weak_label_goes_with_hidden_severity():
    rows = [describe_patient(Phantom(), "radio", n) for n in range(600)]
    means = [np.mean([r["true_severity"] for r in rows if r["weak_label"] == k]) for k in range(4)]
    assert all(np.diff(means) > 0.02)


def test_a_patient_depends_on_seed_cohort_and_number_only():
    first = draw_patient(SMALL, "d1", 3)
    draw_patient(SMALL, "radio", 0)
    again = draw_patient(Phantom(image_size=64, spacing_mm=10.0), "d1", 3)
    assert first.volume.tobytes() == again.volume.tobytes()
    assert first.mask.tobytes() == again.mask.tobytes()
    assert np.array_equal(first.affine, again.affine) and first.row == again.row
    others = [
        draw_patient(SMALL, "d2", 3),
        draw_patient(SMALL, "d1", 4),
        draw_patient(replace(SMALL, seed=1), "d1", 3),
    ]
    assert all(first.volume.tobytes() != other.volume.tobytes() for other in others)


def test_slabs_do_not_show(monkeypatch):
    whole = draw_patient(SMALL, "d1", 1)
    monkeypatch.setattr(scans, "THICK", 5 * 64**2)
    parts = draw_patient(SMALL, "d1", 1)
    assert np.array_equal(whole.volume, parts.volume) and np.array_equal(whole.mask, parts.mask)


def test_orientation_varies_and_the_affine_restores_it():
    codes, spacings = set(), set()
    for number in range(14):
        patient = draw_patient(SMALL, "radio", number)
        row = patient.row
        assert "".join(nib.aff2axcodes(patient.affine)) == row["orientation"]
        codes.add(row["orientation"])
        spacings.add(row["spacing_mm"])
        volume, mask = canonical(patient)
        assert (
            volume.dtype == np.int16 and mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}
        )
        assert volume.shape == (64, 64, row["n_slices"])
        centre = np.argwhere(mask).mean(0)
        body = np.argwhere(volume > -300).mean(0)
        assert centre[0] > body[0] + 4  # liver on the patient's right: x grows to the right
        bone = np.argwhere(volume[20:44] > np.quantile(volume[20:44], 0.997)).mean(0)
        assert bone[1] < body[1] - 8  # spine at the back: y grows to the front
        lung = np.argwhere((volume < -600) & (np.abs(np.arange(64) - body[0]) < 18)[:, None, None])
        lung = lung[np.abs(lung[:, 1] - body[1]) < 6]
        assert lung[:, 2].mean() > volume.shape[2] / 2  # lungs above: z grows to the head
    assert len(codes) >= 4 and len(spacings) >= 10


def test_hounsfield_units_and_the_liver_mask():
    volume, mask = canonical(draw_patient(replace(SMALL, image_size=96), "d1", 0))
    liver = volume[mask == 1]
    assert 80 < np.median(liver) < 145
    assert np.mean(liver < 30) < 0.05  # almost nothing else inside
    assert volume.min() < -850 and volume.max() > 280
    fat = volume[(volume > -140) & (volume < -60)]
    assert np.median(fat) == pytest.approx(-100, abs=10)
    pixel = 404 / 96
    litres = mask.sum() * pixel**2 * 10 / 1e6
    assert 0.7 < litres < 3.2
    z = np.flatnonzero(mask.any((0, 1)))
    assert z[0] > 0 and z[-1] < mask.shape[2] - 1  # slices beyond the liver on both sides
    assert np.array_equal(z, np.arange(z[0], z[-1] + 1))


def test_masks_are_in_one_piece_with_the_ends_they_had(monkeypatch):
    """Whatever a coarse grid tears off is tied on; which slices are kept does not change."""
    phantom, drawn = Phantom(image_size=64), []
    tie = scans.in_one_piece
    monkeypatch.setattr(scans, "in_one_piece", lambda m, mm: drawn.append(m.copy()) or tie(m, mm))
    torn = 0
    for number in (2, 5, 32, 37, 60, 62):
        mask = canonical(draw_patient(phantom, "radio", number))[1]
        before = drawn[-1].transpose(2, 1, 0)
        torn += ndimage.label(before, np.ones((3, 3, 3)))[1] - 1
        assert ndimage.label(mask, np.ones((3, 3, 3)))[1] == 1
        assert (mask >= before).all() and 0 < (mask > before).sum() < 20
        assert central_slices(mask).tolist() == central_slices(before).tolist()
    assert torn > 10
    steps = np.zeros((3, 9, 9), np.uint8)
    steps[1, 0:3, 0:3] = steps[1, 0, 7] = 1
    tied = np.argwhere(tie(steps, (9.0, 1.0, 1.0)) > steps)
    assert tied.tolist() == [[1, 0, x] for x in (3, 4, 5, 6)]


def test_neighbouring_slices_are_alike():
    phantom = replace(SMALL, spacing_mm=4.0, spacing_sd=0.0, noise_hu=0.0)
    volume, _ = canonical(draw_patient(phantom, "d1", 2))
    image = np.clip(volume, -100, 400).astype(float)
    near = np.abs(np.diff(image, axis=2)).mean()
    far = np.abs(image[:, :, 10:] - image[:, :, :-10]).mean()
    assert near < 0.35 * far


def roughness(volume, mask, low, high):
    """Median size of the high-passed liver between two depths, HU; vessels hardly count."""
    from scipy.ndimage import binary_erosion, gaussian_filter

    z = np.flatnonzero(mask.any((0, 1)))
    part = slice(z[0] + round(low * len(z)), z[0] + round(high * len(z)))
    image, inside = volume[:, :, part].astype(float), mask[:, :, part] > 0
    inside = binary_erosion(inside, np.ones((5, 5, 1)))
    return np.median(np.abs(image - gaussian_filter(image, (4, 4, 0)))[inside])


def test_signs_grow_with_severity_and_show_in_their_band_only(monkeypatch):
    phantom = Phantom(image_size=128, noise_hu=0.0, depth_dependence=1.0, mimicry=0.0)
    inside, outside, spleen = [], [], []
    for number in range(3):
        pair = [draw_at(monkeypatch, u, phantom, number) for u in (0.0, 1.0)]
        (v0, m0), (v1, m1) = map(canonical, pair)
        assert pair[0].volume.shape == pair[1].volume.shape
        change = np.abs(v1.astype(float) - v0).mean((0, 1))
        z = np.flatnonzero(m0.any((0, 1)))
        low, high = z[0] + round(0.14 * len(z)), z[0] + round(0.5 * len(z))
        assert change[:low].max() < 0.1 * change[high]  # nothing below the bands
        inside.append(roughness(v1, m1, 0.56, 0.74) - roughness(v0, m0, 0.56, 0.74))
        outside.append(roughness(v1, m1, 0.05, 0.2) - roughness(v0, m0, 0.05, 0.2))
        spleen.append(pair[1].row["true_spleen"] - pair[0].row["true_spleen"])
    assert np.mean(inside) > 3 and abs(np.mean(outside)) < 0.3
    assert min(spleen) > 0
    rows = [describe_patient(Phantom(), "d1", n) for n in range(106)]
    for name in ("contour", "texture", "spleen", "caudate"):
        values = [(r["true_severity"], r[f"true_{name}"]) for r in rows]
        assert np.corrcoef(np.transpose(values))[0, 1] > 0.3


def test_without_depth_dependence_signs_show_everywhere(monkeypatch):
    phantom = Phantom(image_size=128, noise_hu=0.0, depth_dependence=0.0, mimicry=0.0)
    change = []
    for number in range(2):
        (v0, m0), (v1, m1) = (
            canonical(draw_at(monkeypatch, u, phantom, number)) for u in (0.0, 1.0)
        )
        change.append(roughness(v1, m1, 0.08, 0.25) - roughness(v0, m0, 0.08, 0.25))
    assert np.mean(change) > 1.5


def test_anatomy_imitates_texture_at_low_depth_without_disease(monkeypatch):
    values = {}
    for mimicry in (0.0, 1.0):
        phantom = Phantom(image_size=128, noise_hu=0.0, mimicry=mimicry)
        drawn = [canonical(draw_at(monkeypatch, 0.0, phantom, n)) for n in range(3)]
        values[mimicry] = [
            np.mean([roughness(*d, *part) for d in drawn]) for part in ((0.1, 0.3), (0.5, 0.65))
        ]
    low, band = np.subtract(values[1.0], values[0.0])
    assert low > 1.5 and abs(band) < 0.5 * low


def test_cohorts_differ_by_the_shift_only_when_asked():
    def spread(shift):
        rows = {
            c: [describe_patient(Phantom(shift=shift), c, n) for n in range(45)] for c in COHORTS
        }
        return {c: np.mean([r["noise_hu"] for r in rows[c]]) for c in rows}

    with_shift, without = spread(1.0), spread(0.0)
    assert with_shift["d2"] > with_shift["d1"] + 2
    assert abs(without["d2"] - without["d1"]) < 1.2


def test_spacing_and_pixels_follow_the_paper():
    rows = [
        describe_patient(Phantom(image_size=512, spacing_mm=3.23), "radio", n) for n in range(800)
    ]
    spacing, pixel = (np.array([r[name] for r in rows]) for name in ("spacing_mm", "pixel_mm"))
    assert spacing.mean() == pytest.approx(3.23, rel=0.05) and spacing.std() == pytest.approx(
        1.29, rel=0.25
    )
    assert pixel.mean() == pytest.approx(0.79, rel=0.05) and pixel.std() == pytest.approx(
        0.10, rel=0.25
    )


def test_files_do_not_depend_on_workers_resume_and_refuse_another_definition(tmp_path):
    tiny = Phantom(image_size=48, spacing_mm=20.0)
    kwargs = {"phantom": tiny, "scale": 0.002, "scale_histology": 0.01, "progress": False}
    one, two = tmp_path / "one", tmp_path / "two"
    table = make_phantom(one, workers=1, **kwargs)
    make_phantom(two, workers=2, **kwargs)
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files)

    lines = table.read_text().splitlines()
    assert lines[0].startswith("volume,mask,patient,weak_label,label,cohort")
    assert (
        len(lines)
        == 1 + len(list_patients(tiny, 0.002, 0.01))
        == 1 + len(list((one / "masks").iterdir()))
    )
    volume = nib.load(one / lines[1].split(",")[0])
    assert volume.get_data_dtype() == np.int16
    assert (float(volume.dataobj.slope), float(volume.dataobj.inter)) == (1.0, 0.0)

    paths = sorted((one / "volumes").iterdir())
    before, content = {p: p.stat().st_mtime_ns for p in paths}, paths[2].read_bytes()
    paths[2].unlink()
    make_phantom(one, workers=1, **kwargs)
    assert paths[2].read_bytes() == content
    assert all(p.stat().st_mtime_ns == before[p] for p in paths if p != paths[2])

    with pytest.raises(
        ValueError, match=r"seed = 0 there, 1 asked.*choose another folder or delete"
    ):
        make_phantom(one, **{**kwargs, "phantom": replace(tiny, seed=1)})
    assert json.loads((one / "phantom.json").read_text())["image_size"] == 48


@pytest.mark.parametrize(
    "change", [{"image_size": 1024}, {"reader_accuracy": 0.4}, {"depth_dependence": 2}]
)
def test_impossible_parameters_are_refused(change):
    with pytest.raises(ValueError, match=f"Phantom.{next(iter(change))}.*choose a value"):
        Phantom(**change)


def test_unknown_patients_are_refused():
    with pytest.raises(ValueError, match="cohort 'd3'"):
        draw_patient(SMALL, "d3", 0)
    with pytest.raises(ValueError, match=r"numbers run 0\.\.48"):
        draw_patient(SMALL, "d2", 49)
