"""The OCT phantom: what its docstring promises, as numbers."""

import numpy as np
import pytest

from wspnb.data.bscans import BIOMARKERS
from wspnb.data.slices import open_slices
from wspnb.phantom.oct import (
    OctPhantom,
    draw_signs,
    draw_visits,
    make_oct,
    paint_visit,
    prevalence,
)

SMALL = OctPhantom(patients=6, visits=2, scans=9, image_size=48, seed=3)


def test_values_have_the_stated_moments_and_correlation():
    visits = draw_visits(OctPhantom(patients=4000, second_eye=0.0, visits=2))
    assert abs(visits.cst.mean() - 394) < 5 and abs(visits.cst.std() - 138) < 5
    assert abs(visits.bcva.mean() - 74) < 0.5 and abs(visits.bcva.std() - 12) < 0.4
    assert abs(visits.cst.corr(visits.bcva) - -0.67) < 0.02
    assert visits.edema.corr(visits.cst) > 0.75 > 0 > visits.edema.corr(visits.bcva)
    assert visits.cst.min() > 100 and visits.bcva.between(0, 100).all()


def test_prevalence_follows_the_position():
    phantom = OctPhantom(scans=9)
    random, total = np.random.default_rng(0), {name: 0.0 for name in BIOMARKERS}
    n = 4000
    for edema in random.normal(size=n):
        signs, _ = draw_signs(edema, phantom, random)
        for name in BIOMARKERS:
            total[name] = total[name] + signs[name] / n
        assert not (signs["favf"] & signs["pavf"]).any()
    positions = np.linspace(0, 1, 9)
    for name in BIOMARKERS:
        assert np.abs(total[name] - prevalence(name, positions)).max() < 0.03, name
    assert np.allclose(total["irf"][[0, 4, 8]], [0.32, 0.56, 0.36], atol=0.03)
    flat = prevalence("irf", positions, dependence=0.0)
    assert np.ptp(flat) == 0 and abs(flat[0] - 0.45) < 0.01


def test_edema_brings_fluid():
    random, share = np.random.default_rng(0), {}
    for edema in (-1.0, 1.0):
        drawn = [draw_signs(edema, OctPhantom(), random)[0] for _ in range(300)]
        share[edema] = {name: np.mean([signs[name] for signs in drawn]) for name in BIOMARKERS}
    for name in ("irf", "drt_me", "ir_hrf"):
        assert share[1.0][name] > share[-1.0][name] + 0.2, name
    for name in ("favf", "pavf", "vd"):  # apart from the edema
        assert abs(share[1.0][name] - share[-1.0][name]) < 0.12, name


def test_fluid_darkens_the_retina_and_foci_brighten_it():
    phantom = OctPhantom(scans=9, image_size=96, noise=0.0)
    visit = next(draw_visits(phantom).itertuples(index=False))
    none = {name: np.zeros(9, np.uint8) for name in BIOMARKERS}
    excess = {name: np.full(9, -1.0) for name in BIOMARKERS}

    def paint(name=None):
        own = {k: np.ones(9, np.uint8) if k == name else v for k, v in none.items()}
        over = {k: np.full(9, 1.0) if k == name else v for k, v in excess.items()}
        return paint_visit(visit, own, over, phantom, np.random.default_rng(5)).astype(int)

    plain, fluid = paint(), paint("irf")
    assert (fluid - plain).mean() < -0.3 and (fluid - plain).min() < -40
    assert (paint("vd").max((1, 2)) >= plain.max((1, 2))).all()
    thick = paint("drt_me")
    assert np.abs(thick - plain).mean() > 1  # the surface has moved


def test_thicker_retina_for_larger_cst():
    phantom = OctPhantom(scans=9, image_size=96, noise=0.0)
    visit = next(draw_visits(phantom).itertuples(index=False))
    none = {name: np.zeros(9, np.uint8) for name in BIOMARKERS}
    excess = {name: np.full(9, -1.0) for name in BIOMARKERS}

    def bright(cst):
        own = visit._replace(cst=cst)
        image = paint_visit(own, none, excess, phantom, np.random.default_rng(5))
        return (image[4, :, 44:52] > 50).sum()

    assert bright(250) < bright(400) < bright(600)


def test_store_is_deterministic_kept_and_split_by_patient(tmp_path):
    store = open_slices(make_oct(tmp_path / "a", SMALL))
    table = store.table
    assert store.images.shape == (len(table), 48, 48) and table.groupby("volume").size().eq(9).all()
    assert not set(table.patient[table.cohort == "train"]) & set(
        table.patient[table.cohort == "test"]
    )
    assert table.groupby("patient").cohort.nunique().eq(1).all()
    assert table.groupby("volume")[["bcva", "cst", "eye"]].nunique().eq(1).all(axis=None)
    assert table.position.min() == 0 and table.position.max() == 1
    other = open_slices(make_oct(tmp_path / "b", SMALL))
    assert store.settings["sha256"] == other.settings["sha256"]
    assert (store.images == other.images).all()
    before = (tmp_path / "a" / "slices.npy").stat().st_mtime_ns
    make_oct(tmp_path / "a", SMALL)
    assert (tmp_path / "a" / "slices.npy").stat().st_mtime_ns == before
    changed = open_slices(make_oct(tmp_path / "a", OctPhantom(**SMALL.__dict__ | {"seed": 4})))
    assert changed.settings["sha256"] != other.settings["sha256"]
    assert not list((tmp_path / "a").glob("*.part"))


def test_only_first_and_last_visit_are_read(tmp_path):
    phantom = OctPhantom(patients=4, visits=3, scans=2, image_size=24)
    table = open_slices(make_oct(tmp_path, phantom)).table
    read = table[list(BIOMARKERS)].notna().all(axis=1)
    assert (read == table.visit.isin([0, 2])).all()
    assert table[["bcva", "cst"]].notna().all(axis=None)


def test_wrong_parameters_are_named():
    with pytest.raises(ValueError, match=r"OctPhantom\.patients = 2"):
        OctPhantom(patients=2)
    with pytest.raises(ValueError, match=r"OctPhantom\.bcva_cst"):
        OctPhantom(bcva_cst=0.5)


@pytest.mark.parametrize("change", [{"test_share": 0.05}, {"test_share": 0.95}, {"seed": -1}])
def test_both_parts_have_a_patient(change):
    with pytest.raises(ValueError, match=r"both parts need a patient|seed"):
        OctPhantom(**{"patients": 4} | change)
