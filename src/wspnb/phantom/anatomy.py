"""Painting of the synthetic abdomen: organs as smooth solids (``solids.py``), signs of disease.

What varies between patients comes from ``bodies.py``. VERSION in ``scans.py`` rises with every
change here that alters a voxel.
"""

import numpy as np

from wspnb.phantom.solids import ALL, Slab, evaluate, join, meet

LIVER_HEIGHT = 165.0  # mm, template, lower tip to dome
# Bands of depth (0 tip .. 1 dome of the liver) where each sign shows when depth_dependence = 1.
# Paper silent.
BANDS = {
    "contour": (0.30, 0.60),
    "texture": (0.50, 0.80),
    "spleen": (0.40, 0.85),
    "caudate": (0.42, 0.82),
}


# --- signs: where and how much --------------------------------------------------------------------


def band(depth, low, high):
    """1 inside [low, high] of depth, 0 outside, with edges 0.08 wide."""
    return np.clip((depth - low) / 0.08 + 0.5, 0, 1) * np.clip((high - depth) / 0.08 + 0.5, 0, 1)


def _sign_weight(name, z, depth_dependence):
    """How far a sign shows at the height z (template mm): 1 - d + d x band."""
    return 1 - depth_dependence + depth_dependence * band(z / LIVER_HEIGHT, *BANDS[name])


def growth(organ, sign):
    """In-plane factor on an organ's size for the strength of its sign, both without unit."""
    return 1 + {"spleen": 0.41, "caudate": 0.57}[organ] * sign


# --- the abdomen ----------------------------------------------------------------------------------


def paint(a: dict, fields: dict[str, tuple], axes: tuple, edge: float):
    """Some slices of a patient, without noise.

    Positions, sizes and HU are those of an adult in the portal-venous phase; paper silent.

    Args:
        a: the patient's anatomy, as ``bodies.py`` samples it.
        fields: the patient's random fields, of ``solids.draw_fields``.
        axes: positions of the slices, rows and columns (z, y, x), template mm.
        edge: width over which a surface is blurred, mm.

    Returns:
        HU and the liver's cover in [0, 1], both (z, y, x) float32.
    """
    slab = Slab(a, fields, axes, edge)
    hu = a["hu"]
    _paint_wall(a, slab)
    _paint_chest(a, slab)
    _paint_bones(a, slab)
    _paint_psoas(a, slab)
    kidney_right = _paint_kidney(a, slab, "kidney_r", 1, 38)
    kidney_left = _paint_kidney(a, slab, "kidney_l", -1, 52)
    _paint_bowel(slab, fields)
    slab.paint_tube((-9, -30, -60), (-9, -32, 230), (10.5, 11.5), hu["aorta"])
    slab.paint_tube((18, -28, -60), (21, -22, 110), (11, 12), hu["cava"])
    slab.paint_tube((-5, -10, -60), (-7, -18, 62), (4, 4), hu["aorta"])
    slab.paint_tube((9, -6, -60), (13, 0, 64), (5.5, 6.5), hu["portal"])
    slab.paint_tube((-8, -22, 84), (-8, -6, 88), (4, 4), hu["aorta"])  # coeliac trunk
    _paint_stomach(a, slab)
    _paint_spleen(a, slab, kidney_left)
    return slab.hu, _paint_liver(a, slab, fields, kidney_right)


def _paint_wall(a, slab):
    """Table, skin, fat and muscle."""
    hu, shape, stranding = a["hu"], slab.shape, slab.stranding
    X, Y, _ = slab.position
    table = meet(-np.abs(Y + 132 + (X / 110) ** 2 * -14) + 2.5, 200 - np.abs(X), 1)
    slab.paint(ALL, table, -350)
    slab.paint(ALL, slab.body, 10)  # skin
    slab.paint(ALL, slab.body - 2, hu["fat"] + 3 * stranding)
    wall = np.minimum(slab.cavity + 14 + 2 * shape, slab.body - 5)
    slab.paint(ALL, wall, hu["muscle"])
    slab.paint(ALL, 1.2 - np.abs(slab.cavity + 8.5 + 2 * shape), -20)  # fat between the layers
    right, left = (slab.ellipsoid(ALL, (x, -92, 0), (32, 20, None)) for x in (36, -36))
    back = np.minimum(np.maximum(right, left), slab.body - 6) + 1.5 * shape
    slab.paint(ALL, back, hu["muscle"] + 4 * stranding - 4)


def _paint_chest(a, slab):
    """The belly's fat below the diaphragm; lungs, mediastinum and heart above it."""
    hu, shape, stranding, edge = a["hu"], slab.shape, slab.stranding, slab.dome_edge
    cavity, under = slab.cavity, slab.under
    slab.paint(ALL, cavity, hu["fat"] + 8 + 5 * stranding)
    lung = meet(cavity - 2, -under, 3)
    air = -860 + 25 * np.maximum(stranding, 0) ** 2 - 0.5 * slab.position[1]
    slab.paint(ALL, lung, air, edge)
    mediastinum = slab.ellipsoid(ALL, (-4, -38, 0), (34, 30, None)) + 2 * shape
    slab.paint(ALL, np.minimum(mediastinum, lung), hu["fat"] + 45, edge)
    slab.paint(ALL, np.minimum(2.2 - np.abs(under), cavity + 2), hu["muscle"], edge)  # diaphragm
    centre, radii = np.array([-24, 42, 178 + a["breath"]]) + a["jitter"]["heart"], (66, 52, 46)
    if box := slab.near(centre, radii):
        heart = meet(slab.ellipsoid(box, centre, radii) + 2 * shape[box], -under[box] - 2, 4)
        slab.paint(box, heart, hu["fat"] + 15)
        slab.paint(box, heart - 4, 95 + 25 * (slab.warp_z[box] > 0), 6)


def _paint_bones(a, slab):
    """Ribs with their cartilage, and the spine with discs, marrow and canal."""
    X, Y, Z = slab.position
    bone = a["hu"]["bone"]
    turn = np.clip((Y + 80) / 170, 0, 1)  # 0 back .. 1 front
    pitch = a["rib_pitch"]
    along = np.mod(Z + a["breath"] / 3 + 100 * turn + a["rib_phase"] + 400, pitch) - pitch / 2
    rib = (1 - ((slab.cavity + 6.5) / 5.0) ** 2 - (along / 7.0) ** 2) * 2.5
    rib = np.minimum(rib, (Z - 5 - 80 * turn**2) * 0.5)
    rib = np.minimum(rib, slab.body - 8)
    cartilage = np.clip((turn - 0.75) / 0.1, 0, 1)  # the front ends are cartilage
    slab.paint(ALL, rib, (bone + 170) * (1 - cartilage) + 110 * cartilage)
    slab.paint(ALL, rib - 1.6, bone * (1 - cartilage) + 110 * cartilage)
    box = slab.near((0, -82, 80), (52, 52, 300))
    if not box:
        return
    X, Y, Z = (p[box] for p in slab.position)
    level = np.mod(Z + a["disc_phase"] + 340, 34) - 17  # mm from the middle of the vertebra
    disc = np.clip((np.abs(level) - 13) / 2, 0, 1)
    vertebra = slab.ellipsoid(box, (0, -60, 0), (22, 17.5, None)) + 0.8 * (np.abs(level) / 17) ** 2
    slab.paint(box, vertebra, (bone + 190) * (1 - disc) + 95 * disc)
    marrow = (bone - 10 + 22 * slab.stranding[box]) * (1 - disc) + 90 * disc
    slab.paint(box, vertebra - 2.5, marrow)
    arch = slab.ellipsoid(box, (0, -86, 0), (19, 13, None))
    spine = meet(4.5 - np.abs(X), meet(-92 - Y, Y + 113, 2), 2)
    transverse = meet(4.5 - np.abs(Y + 82), meet(36 - np.abs(X), 7 - np.abs(level), 2), 2)
    spine = spine - np.maximum(np.abs(level + 6) - 11, 0)
    slab.paint(box, np.maximum(np.maximum(arch, transverse), spine), bone + 130)
    slab.paint(box, slab.ellipsoid(box, (0, -83, 0), (10, 8, None)), 25)  # canal
    slab.paint(box, slab.ellipsoid(box, (0, -83, 0), (5.5, 4.5, None)), 45, 2 * slab.edge)


def _paint_psoas(a, slab):
    """Psoas, crura of the diaphragm and adrenals, right then left."""
    muscle = a["hu"]["muscle"]
    for side in (1, -1):
        if box := slab.near((side * 36, -56, -10), (22, 22, 60)):
            taper = np.clip((50 - slab.position[2][box]) / 60, 0.05, 1.1)
            psoas = slab.ellipsoid(box, (side * 37.0, -56.0, 0), (19, 21, None)) - 16 * (1 - taper)
            slab.paint(box, psoas, muscle)
        slab.paint_tube((side * 15, -46, 20), (side * 14 - 4, -30, 128), (6, 8), muscle)
        start = (side * 34 - 2, -34, 92 + a["breath"] / 2)
        slab.paint_tube(start, np.add(start, (side * 9, -9, -16)), (3, 2), 85)
        slab.paint_tube(start, np.add(start, (-side * 3, -12, -16)), (3, 2), 85)


def _paint_kidney(a, slab, name, side, height):
    """One kidney, leaning on the psoas; returns its centre and radii, mm."""
    hu = a["hu"]
    centre = np.array([side * 62, -44, height + a["breath"] / 2]) + a["jitter"][name] * (1, 1, 3)
    radii = np.array([27, 28, 54]) * a[f"size_{name}"]
    if box := slab.near(centre, radii):
        shape, stranding = slab.shape[box], slab.stranding[box]
        lean = centre[0] - side * 0.16 * (slab.position[2][box] - centre[2])
        kidney = slab.ellipsoid(box, (lean, centre[1], centre[2]), radii) + 1.2 * shape
        sinus_at = (lean - side * 16, centre[1] + 8.0, centre[2])
        sinus = slab.ellipsoid(box, sinus_at, radii * (0.62, 0.36, 0.5)) + 2 * shape
        slab.paint(box, kidney, hu["cortex"])
        slab.paint(box, np.minimum(kidney - 7, 3 * stranding + 2), hu["medulla"], 4)
        slab.paint(box, sinus, hu["fat"] + 25 + 25 * stranding)
    return centre, radii


def _paint_bowel(slab, fields):
    """Loops in front of the kidneys, and the colon: its two flexures and the transverse part."""
    X, Y, Z = slab.position
    cavity, under, shape, stranding = slab.cavity, slab.under, slab.shape, slab.stranding
    if slab.axes[0].min() < 95:
        region = meet(cavity - 5, 74 - Z + 0.15 * Y, 6)
        region = meet(region, Y + 22 - 0.0012 * X**2 + 4 * shape, 6)
        bowel = np.minimum((0.62 - np.abs(evaluate(fields["bowel"], slab.axes))) * 12, region)
        gas = np.minimum((evaluate(fields["gas"], slab.axes) - 1.1) * 10, Y - 30)
        slab.paint(ALL, bowel, 80)
        slab.paint(ALL, bowel - 2.5, 25 + 12 * stranding)
        slab.paint(ALL, np.minimum(bowel - 3, gas), -850)
    for centre, radii in (
        ((92, 18, -12), (23, 25, 36)),
        ((-104, 8, 40), (18, 20, 44)),
        ((0, 68, 12), (80, 15, 17)),
    ):
        if box := slab.near(centre, radii):
            colon = slab.ellipsoid(box, centre, radii) + 4 * shape[box]
            colon = meet(colon, meet(cavity[box] - 4, under[box] - 4, 3), 4)
            slab.paint(box, colon, 70)
            stool = -60 + 70 * stranding[box]
            gas = np.clip((Y[box] - centre[1] - 4) / 2, 0, 1)
            slab.paint(box, colon - 3.5, stool * (1 - gas) - 900 * gas)


def _paint_stomach(a, slab):
    """Pancreas, the vein behind it, and the stomach with fluid and gas."""
    slab.paint_tube((28, 8, 58), (6, 16, 70), (14, 11), 98)
    slab.paint_tube((6, 16, 70), (-78, -18, 96), (11, 9), 98)
    slab.paint_tube((13, 2, 66), (-82, -26, 98), (5, 4), a["hu"]["portal"])
    centre = np.array([-52, 14, 104]) + a["jitter"]["stomach"] * (1, 1, 2)
    if box := slab.near(np.add(centre, (20, 10, -10)), (85, 70, 75)):
        full = a["stomach_full"] * a["size_stomach"]
        fundus = slab.ellipsoid(box, np.add(centre, (-6, -22, 24)), np.array([36, 34, 32]) * full)
        corpus = slab.ellipsoid(box, np.add(centre, (-2, 22, -8)), np.array([34, 30, 42]) * full)
        antrum = slab.ellipsoid(box, np.add(centre, (40, 40, -38)), np.array([38, 18, 19]) * full)
        stomach = join(join(fundus, corpus, 10), antrum, 10) + 3 * slab.shape[box]
        stomach = meet(stomach, meet(slab.cavity[box] - 4, slab.under[box] - 4, 4), 5)
        slab.paint(box, stomach, 85)
        gas = np.clip((slab.position[1][box] - a["gas_level"]) / 2, 0, 1)
        fluid = a["stomach_hu"] + 14 * slab.stranding[box]
        slab.paint(box, stomach - 4, fluid * (1 - gas) - 950 * gas)


def _paint_spleen(a, slab, kidney):
    """The spleen, grown in its band by its sign, pushed in by the left kidney."""
    centre = np.array([-104, -34, 108 + a["breath"] / 2]) + a["jitter"]["spleen"]
    radii = np.array([30, 46, 50]) * a["size_spleen"]
    if box := slab.near(centre, radii * 1.5):
        weight = _sign_weight("spleen", slab.position[2][box], a["depth_dependence"])
        grow = 1 + (growth("spleen", a["signs"]["spleen"]) - 1) * weight
        grown = (radii[0] * grow, radii[1] * grow, radii[2] * (0.5 + grow / 2))
        spleen = slab.ellipsoid(box, np.add(centre, (4, 2, 0)), grown) + 2 * slab.shape[box]
        hilum = slab.ellipsoid(box, np.add(centre, (34, 22, -4)), (24, 26, 40))
        spleen = meet(spleen, -hilum, 5)
        spleen = meet(spleen, meet(slab.cavity[box] - 3, slab.under[box] - 2, 3), 4)
        spleen = meet(spleen, -slab.ellipsoid(box, *kidney) - 5, 4)
        slab.paint(box, spleen, a["hu"]["spleen"])


# --- the liver ------------------------------------------------------------------------------------


def _paint_liver(a, slab, fields, kidney):
    """The liver with its signs and mimics, vessels and gallbladder; returns its cover."""
    hu, signs = a["hu"], a["signs"]
    cover = np.zeros_like(slab.hu)
    box = slab.near((35, 5, 85), (125, 95, 95))
    if box is None:
        return cover
    axes = [axis[index] for axis, index in zip(slab.axes, box, strict=True)]
    Z, shape, cavity = slab.position[2][box], slab.shape[box], slab.cavity[box]
    depth = Z / LIVER_HEIGHT
    strength = {
        name: signs[name] * _sign_weight(name, Z, a["depth_dependence"])
        for name in ("contour", "texture", "caudate")
    }
    centre = (50, 44, 52) + a["jitter"]["gallbladder"]
    radii = np.array([15, 17, 24]) * a["size_gallbladder"]
    gallbladder = slab.ellipsoid(box, centre, radii)
    liver = _lobes(a, slab, box, strength["caudate"])
    liver = meet(liver, -slab.ellipsoid(box, *kidney) - 5, 5)
    if a["gallbladder"]:
        liver = meet(liver, -gallbladder - 0.5, 3)

    # Rounded nodules, sharp valleys. Mimics use the same field: only depth tells them apart.
    nodules = np.abs(evaluate(fields["contour"], axes)) - np.float32(0.8)
    low, high = band(depth, -1, 0.27), band(depth, 0.68, 2)
    rough = strength["contour"] + signs["base_contour"]
    rough = rough + signs["mimic_contour_low"] * low + signs["mimic_contour_high"] * high
    liver = liver + 2.0 * shape + 5.7 * rough * nodules
    room = meet(cavity - 3, slab.under[box] - 2.5, 4) + 3.4 * np.minimum(rough * nodules, 0)
    liver = meet(liver, room, 4)

    grain = np.abs(evaluate(fields["texture"], axes)) - np.float32(0.8)
    coarse = strength["texture"] + signs["base_texture"]
    coarse = coarse + signs["mimic_texture"] * band(depth, -1, 0.42)
    tissue = hu["liver"] + 30 * coarse * grain + 1.5 * shape
    cover[box] = inside = slab.paint(box, liver, tissue, max(slab.edge, 0.4 * slab.dome_edge))
    before = slab.hu[box].copy()
    _paint_vessels(a, slab)
    slab.hu[box] = before + inside * (slab.hu[box] - before)  # vessels stay within the liver
    slab.paint(box, slab.tube(box, (20, -24, 60), (22, -18, 152), (11.5, 12)), hu["cava"])
    slab.paint_tube((12, 0, 62), (30, 12, 80), (7, 7), hu["portal"])
    if a["gallbladder"]:
        slab.paint(box, meet(gallbladder, cavity - 3, 3), 12)
    return cover


def _lobes(a, slab, box, caudate_sign):
    """Inside of the right lobe, left lobe and caudate, less the clefts between them, mm."""
    X, Y, Z = (p[box] for p in slab.position)
    size, jitter = a["size_liver"], a["jitter"]["liver"]
    lean = np.float32(0.16) * (80 - Z)
    centre = (66 + jitter[0] + lean, -4 + jitter[1] - lean * 0.4, 83)
    radii = (82 * size[0] * (1 - 0.18 * caudate_sign), 86 * size[1], 84 * size[2])
    right = slab.ellipsoid(box, centre, radii)
    # The oblique lower face.
    visceral = (Z - (86 - 0.95 * X) + 0.25 * (Y - 10) + 5 * slab.shape[box]) * 0.7
    right = meet(right, visceral, 8)
    size, jitter = a["size_left"], a["jitter"]["left"]
    centre = (-2 + a["lobe_left"] + jitter[0], 46 + jitter[1], 110)
    radii = (74 * size[0], (37 + 0.12 * X) * size[1], 46 * size[2])
    left = slab.ellipsoid(box, centre, radii)
    liver = join(right, left, 8)
    porta = slab.ellipsoid(box, (30, 14, 80), (26, 10, 13))
    liver = meet(liver, -porta, 4)
    sheet = 1.6 - np.abs(Y - 22 - 0.25 * X)  # venous ligament
    sheet = np.minimum(sheet, np.minimum(30 - np.abs(X - 2), 24 - np.abs(Z - 104)))
    ligament = slab.tube(box, (0, 84, 84), (8, 40, 82), (7, 5))  # round
    liver = meet(meet(liver, -sheet, 2), -ligament, 4)
    liver = meet(liver, -slab.ellipsoid(box, (-4, -50, 0), (34, 36, None)), 5)  # spine
    size, grow = a["size_caudate"], 1 + (growth("caudate", 1.0) - 1) * caudate_sign
    radii = (17 * size[0] * grow, 15 * size[1] * grow, 26 * size[2])
    caudate = slab.ellipsoid(box, (14, 3 * (grow - 1), 104), radii)
    cava = slab.tube(box, (20, -24, 60), (22, -18, 160), (12, 12))
    return meet(join(liver, caudate, 3), -cava, 2)


def _paint_vessels(a, slab):
    """Portal tree from the porta, hepatic veins into the vena cava."""
    portal, hepatic = a["hu"]["portal"], a["hu"]["hepatic"]
    for start, end, radii, hu in (
        ((30, 12, 80), (62, 2, 88), (7, 6), portal),
        ((62, 2, 88), (92, 34, 100), (5, 2.5), portal),
        ((92, 34, 100), (112, 44, 124), (3, 1.5), portal),
        ((62, 2, 88), (100, -28, 76), (5, 2.5), portal),
        ((100, -28, 76), (118, -38, 52), (3, 1.5), portal),
        ((92, 34, 100), (104, 50, 74), (3, 1.5), portal),
        ((62, 2, 88), (88, -14, 122), (4, 2), portal),
        ((30, 12, 80), (8, 38, 102), (6, 4.5), portal),
        ((8, 38, 102), (-30, 50, 118), (4, 2), portal),
        ((8, 38, 102), (6, 66, 96), (3.5, 2), portal),
        ((22, -16, 148), (62, -2, 128), (6, 4.5), hepatic),
        ((62, -2, 128), (108, 4, 92), (4.5, 2), hepatic),
        ((62, -2, 128), (112, -20, 118), (3.5, 2), hepatic),
        ((22, -14, 148), (44, 34, 122), (6, 4), hepatic),
        ((44, 34, 122), (62, 58, 86), (4, 2), hepatic),
        ((22, -14, 148), (-2, 30, 132), (5, 4), hepatic),
        ((-2, 30, 132), (-38, 46, 108), (3.5, 1.5), hepatic),
        ((30, 0, 66), (96, -10, 34), (3.5, 2), hepatic),
    ):
        slab.paint_tube(start, end, radii, hu)
