"""Painting of the synthetic abdomen: organs as smooth solids, random fields, signs of disease.

Template positions are in mm of an average adult: x to the patient's right, y to the front, z to the
head from the liver's lower tip. Organs are laid one over the other in HU, each given by its signed
distance ("inside", mm, positive inside). What varies between patients comes from ``phantom.py``,
whose VERSION rises with every change here that alters a voxel.
"""

import numpy as np

LIVER_HEIGHT = 165.0  # mm, template, lower tip to dome
# Bands of depth (0 tip .. 1 dome of the liver) where each sign shows when depth_dependence = 1.
# Paper silent.
BANDS = {
    "contour": (0.30, 0.60),
    "texture": (0.50, 0.80),
    "spleen": (0.40, 0.85),
    "caudate": (0.42, 0.82),
}
ALL = (slice(None),) * 3


# --- signs: where and how much --------------------------------------------------------------------


def _band(depth, low, high):
    """1 inside [low, high] of depth, 0 outside, with edges 0.08 wide."""
    return np.clip((depth - low) / 0.08 + 0.5, 0, 1) * np.clip((high - depth) / 0.08 + 0.5, 0, 1)


def _sign_weight(name, z, depth_dependence):
    """How far a sign shows at the height z (template mm): 1 - d + d x band."""
    return 1 - depth_dependence + depth_dependence * _band(z / LIVER_HEIGHT, *BANDS[name])


def spleen_growth(sign):
    """In-plane factor on the spleen's size for the strength of its sign, both without unit."""
    return 1 + 0.41 * sign


def caudate_growth(sign):
    """In-plane factor on the caudate's size for the strength of its sign, both without unit."""
    return 1 + 0.57 * sign


# --- random fields --------------------------------------------------------------------------------

# Reach of the fields (z, y, x), mm.
LOW, HIGH = np.array([-60.0, -260.0, -260.0]), np.array([260.0, 260.0, 260.0])


def draw_fields(rng: np.random.Generator, texture_size: float) -> dict[str, tuple]:
    """All random fields of a patient, independent of pixels and slices.

    Each is white noise on the knots of a cubic B-spline.

    Args:
        rng: consumed in the order of the names.
        texture_size: distance of the knots of the liver's texture, mm.

    Returns:
        By name, coefficients (z, y, x) float32 and distance of the knots, mm.
    """
    knots = {
        "warp_x": 48, "warp_y": 48, "warp_z": 60, "shape": 26, "bowel": 15, "gas": 22,
        "stranding": 9, "contour": 8, "texture": texture_size,
    }  # fmt: skip
    fields = {}
    for name, knot in knots.items():
        shape = np.ceil((HIGH - LOW) / knot).astype(int) + 4
        fields[name] = rng.standard_normal(shape, dtype=np.float32) / np.float32(0.33), knot
    return fields


def _evaluate(field, axes) -> np.ndarray:
    """The field (mean 0, SD about 1) on the grid of axes (z, y, x), mm.

    No BLAS: the bits do not depend on the number of threads.
    """
    values, knot = field
    steps = [
        np.clip((axis - low) / knot, 0, n - 4.001)
        for axis, low, n in zip(axes, LOW, values.shape, strict=True)
    ]
    first = [np.floor(step).astype(int) for step in steps]
    values = values[tuple(slice(start.min(), start.max() + 4) for start in first)]
    for axis in (2, 1, 0):  # z last: whole planes are added
        f = (steps[axis] - first[axis]).astype(np.float32)
        g = 1 - f
        weights = (g**3 / 6, 2 / 3 - f**2 + f**3 / 2, 2 / 3 - g**2 + g**3 / 2, f**3 / 6)
        shape = [-1 if i == axis else 1 for i in range(3)]
        start = first[axis] - first[axis].min()
        total = np.float32(0)
        for k, weight in enumerate(weights):
            part = np.take(values, start + k, axis)
            part *= weight.astype(np.float32).reshape(shape)
            total = np.add(total, part, out=part)
        values = total
    return values


# --- solids ---------------------------------------------------------------------------------------


def _round(a, b, soft):
    """What a smooth maximum adds where two insides meet within ``soft`` mm."""
    near = np.maximum(np.float32(soft) - np.abs(a - b), np.float32(0))
    near *= near
    near *= np.float32(0.25 / soft)
    return near


def _join(a, b, soft):
    """Smooth maximum of two insides, rounding of ``soft`` mm."""
    return np.maximum(a, b) + _round(a, b, soft)


def _meet(a, b, soft):
    """Smooth minimum: inside both."""
    return np.minimum(a, b) - _round(a, b, soft)


class _Slab:
    """Some slices being painted; arrays are (z, y, x).

    Holds HU, the warped template position of every voxel (X, Y, Z; mm), two random fields (shape,
    stranding) and the three solids that others are cut to, as insides in mm: the body, the cavity
    within its wall, and what is under the diaphragm.
    """

    def __init__(self, a, fields, axes, edge):
        self.axes, self.edge = axes, edge
        z, y, x = np.ix_(*map(np.float32, axes))
        cos, sin = np.float32(np.cos(a["turn"])), np.float32(np.sin(a["turn"]))
        warp = [_evaluate(fields[name], axes) for name in ("warp_x", "warp_y", "warp_z")]
        X = x * cos + y * sin + 4 * warp[0]
        Y = y * cos - x * sin + 3.5 * warp[1]
        Z = z + 3 * warp[2]
        self.position, self.warp_z = (X, Y, Z), warp[2]
        self.hu = np.full(X.shape, -1000, np.float32)
        self.shape = shape = _evaluate(fields["shape"], axes)
        self.stranding = _evaluate(fields["stranding"], axes)

        sides, front = a["fat"]
        radii = (154 + sides, 113 + (front + 14) / 2, None)
        squarish = (X / 165) ** 2 * (Y / 125) ** 2  # fuller than an ellipse at the flanks
        squarish = 14 * squarish / (squarish + np.float32(0.3))
        self.body = self.ellipsoid(ALL, (0, (front - 14) / 2, 0), radii) + squarish
        self.cavity = self.ellipsoid(ALL, (0, 4, 0), (140, 90, None)) + 1.5 * shape
        right = 166 - 56 * ((X - 62) / 82) ** 2 - 52 * ((Y - 12) / 88) ** 2
        left = 150 - 56 * ((X + 64) / 80) ** 2 - 52 * ((Y - 12) / 88) ** 2
        dome = np.maximum(_join(right, left, 12), 20) + 2 * shape
        self.under = (dome - Z) * np.float32(0.75)
        self.dome_edge = max(edge, 0.5 * a["spacing_mm"])  # mm, partial volume where it lies flat

    def near(self, centre, reach):
        """Index of the box about an organ (x, y, z in mm), or None where the slab misses it."""
        box = []
        for axis, c, r in zip(self.axes, reversed(centre), reversed(reach), strict=True):
            hits = np.flatnonzero(np.abs(axis - c) <= r + 20)  # 20 mm: warp, turn
            if not len(hits):
                return None
            box.append(slice(hits[0], hits[-1] + 1))
        return tuple(box)

    def ellipsoid(self, box, centre, radii):
        """Signed distance to an ellipsoid to first order, mm, positive inside; None: infinite."""
        level = np.ones_like(self.hu[box])
        slope = np.full_like(level, 1e-6)
        for position, c, r in zip(self.position, centre, radii, strict=True):
            if r is not None:
                inverse = np.float32(1) / np.square(np.float32(r))
                part = position[box] - np.float32(c)
                part *= part
                part *= inverse
                level -= part
                part *= inverse
                slope += part
        np.sqrt(slope, out=slope)
        level /= slope
        level *= np.float32(0.5)
        return np.minimum(level, np.float32(60), out=level)

    def tube(self, box, start, end, radii):
        """Signed distance to a tapering tube between two points, mm, positive inside."""
        start, end = np.float32(start), np.float32(end)
        along = end - start
        d = [p[box] - s for p, s in zip(self.position, start, strict=True)]
        h = np.clip((d[0] * along[0] + d[1] * along[1] + d[2] * along[2]) / (along @ along), 0, 1)
        gap = [di - h * ai for di, ai in zip(d, along, strict=True)]
        r0, r1 = np.float32(radii)
        return r0 + (r1 - r0) * h - np.sqrt(gap[0] ** 2 + gap[1] ** 2 + gap[2] ** 2)

    def paint(self, box, inside, hu, edge=None):
        """Lay an organ over what is there; returns its cover, the share of each voxel inside."""
        cover = inside * np.float32(1 / (edge or self.edge))
        cover += np.float32(0.5)
        np.clip(cover, np.float32(0), np.float32(1), out=cover)
        self.hu[box] += cover * (hu - self.hu[box])
        return cover

    def paint_tube(self, start, end, radii, hu):
        """Lay a tapering tube (points and two radii in mm) where the slab meets it."""
        middle, reach = np.add(start, end) / 2, np.abs(np.subtract(end, start)) / 2 + max(radii)
        box = self.near(tuple(middle), tuple(reach))
        if box:
            self.paint(box, self.tube(box, start, end, radii), np.float32(hu))


# --- the abdomen ----------------------------------------------------------------------------------


def paint(a: dict, fields: dict[str, tuple], axes: tuple, edge: float):
    """Some slices of a patient, without noise.

    Positions, sizes and HU are those of an adult in the portal-venous phase; paper silent.

    Args:
        a: the patient's anatomy, as ``phantom.py`` samples it.
        fields: the patient's random fields, of ``draw_fields``.
        axes: positions of the slices, rows and columns (z, y, x), template mm.
        edge: width over which a surface is blurred, mm.

    Returns:
        HU and the liver's cover in [0, 1], both (z, y, x) float32.
    """
    slab = _Slab(a, fields, axes, edge)
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
    table = _meet(-np.abs(Y + 132 + (X / 110) ** 2 * -14) + 2.5, 200 - np.abs(X), 1)
    slab.paint(ALL, table, -350)
    slab.paint(ALL, slab.body, 10)  # skin
    slab.paint(ALL, slab.body - 2, hu["fat"] + 3 * stranding)
    wall = np.minimum(slab.cavity + 14 + 2 * shape, slab.body - 5)
    slab.paint(ALL, wall, hu["muscle"])
    slab.paint(ALL, 1.2 - np.abs(slab.cavity + 8.5 + 2 * shape), -20)  # fat between the layers
    back = np.maximum(
        slab.ellipsoid(ALL, (36, -92, 0), (32, 20, None)),
        slab.ellipsoid(ALL, (-36, -92, 0), (32, 20, None)),
    )
    back = np.minimum(back, slab.body - 6) + 1.5 * shape
    slab.paint(ALL, back, hu["muscle"] + 4 * stranding - 4)


def _paint_chest(a, slab):
    """The belly's fat below the diaphragm; lungs, mediastinum and heart above it."""
    hu, shape, stranding, edge = a["hu"], slab.shape, slab.stranding, slab.dome_edge
    cavity, under = slab.cavity, slab.under
    slab.paint(ALL, cavity, hu["fat"] + 8 + 5 * stranding)
    lung = _meet(cavity - 2, -under, 3)
    air = -860 + 25 * np.maximum(stranding, 0) ** 2 - 0.5 * slab.position[1]
    slab.paint(ALL, lung, air, edge)
    mediastinum = slab.ellipsoid(ALL, (-4, -38, 0), (34, 30, None)) + 2 * shape
    slab.paint(ALL, np.minimum(mediastinum, lung), hu["fat"] + 45, edge)
    slab.paint(ALL, np.minimum(2.2 - np.abs(under), cavity + 2), hu["muscle"], edge)  # diaphragm
    centre, radii = np.array([-24, 42, 178 + a["breath"]]) + a["jitter"]["heart"], (66, 52, 46)
    if box := slab.near(centre, radii):
        heart = _meet(slab.ellipsoid(box, centre, radii) + 2 * shape[box], -under[box] - 2, 4)
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
    spine = _meet(4.5 - np.abs(X), _meet(-92 - Y, Y + 113, 2), 2)
    transverse = _meet(4.5 - np.abs(Y + 82), _meet(36 - np.abs(X), 7 - np.abs(level), 2), 2)
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
        region = _meet(cavity - 5, 74 - Z + 0.15 * Y, 6)
        region = _meet(region, Y + 22 - 0.0012 * X**2 + 4 * shape, 6)
        bowel = np.minimum((0.62 - np.abs(_evaluate(fields["bowel"], slab.axes))) * 12, region)
        gas = np.minimum((_evaluate(fields["gas"], slab.axes) - 1.1) * 10, Y - 30)
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
            colon = _meet(colon, _meet(cavity[box] - 4, under[box] - 4, 3), 4)
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
        stomach = _join(_join(fundus, corpus, 10), antrum, 10) + 3 * slab.shape[box]
        stomach = _meet(stomach, _meet(slab.cavity[box] - 4, slab.under[box] - 4, 4), 5)
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
        grow = 1 + (spleen_growth(a["signs"]["spleen"]) - 1) * weight
        grown = (radii[0] * grow, radii[1] * grow, radii[2] * (0.5 + grow / 2))
        spleen = slab.ellipsoid(box, np.add(centre, (4, 2, 0)), grown) + 2 * slab.shape[box]
        hilum = slab.ellipsoid(box, np.add(centre, (34, 22, -4)), (24, 26, 40))
        spleen = _meet(spleen, -hilum, 5)
        spleen = _meet(spleen, _meet(slab.cavity[box] - 3, slab.under[box] - 2, 3), 4)
        spleen = _meet(spleen, -slab.ellipsoid(box, *kidney) - 5, 4)
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
    gallbladder = slab.ellipsoid(
        box,
        (50, 44, 52) + a["jitter"]["gallbladder"],
        np.array([15, 17, 24]) * a["size_gallbladder"],
    )
    liver = _lobes(a, slab, box, strength["caudate"])
    liver = _meet(liver, -slab.ellipsoid(box, *kidney) - 5, 5)
    if a["gallbladder"]:
        liver = _meet(liver, -gallbladder - 0.5, 3)

    # Rounded nodules, sharp valleys. Mimics use the same field: only depth tells them apart.
    nodules = np.abs(_evaluate(fields["contour"], axes)) - np.float32(0.8)
    low, high = _band(depth, -1, 0.27), _band(depth, 0.68, 2)
    rough = strength["contour"] + signs["base_contour"]
    rough = rough + signs["mimic_contour_low"] * low + signs["mimic_contour_high"] * high
    liver = liver + 2.0 * shape + 5.7 * rough * nodules
    room = _meet(cavity - 3, slab.under[box] - 2.5, 4) + 3.4 * np.minimum(rough * nodules, 0)
    liver = _meet(liver, room, 4)

    grain = np.abs(_evaluate(fields["texture"], axes)) - np.float32(0.8)
    coarse = strength["texture"] + signs["base_texture"]
    coarse = coarse + signs["mimic_texture"] * _band(depth, -1, 0.42)
    tissue = hu["liver"] + 30 * coarse * grain + 1.5 * shape
    cover[box] = inside = slab.paint(box, liver, tissue, max(slab.edge, 0.4 * slab.dome_edge))
    before = slab.hu[box].copy()
    _paint_vessels(a, slab)
    slab.hu[box] = before + inside * (slab.hu[box] - before)  # vessels stay within the liver
    slab.paint(box, slab.tube(box, (20, -24, 60), (22, -18, 152), (11.5, 12)), hu["cava"])
    slab.paint_tube((12, 0, 62), (30, 12, 80), (7, 7), hu["portal"])
    if a["gallbladder"]:
        slab.paint(box, _meet(gallbladder, cavity - 3, 3), 12)
    return cover


def _lobes(a, slab, box, caudate_sign):
    """Inside of the right lobe, left lobe and caudate, less the clefts between them, mm."""
    X, Y, Z = (p[box] for p in slab.position)
    size, jitter = a["size_liver"], a["jitter"]["liver"]
    lean = np.float32(0.16) * (80 - Z)
    right = slab.ellipsoid(
        box,
        (66 + jitter[0] + lean, -4 + jitter[1] - lean * 0.4, 83),
        (82 * size[0] * (1 - 0.18 * caudate_sign), 86 * size[1], 84 * size[2]),
    )
    # The oblique lower face.
    visceral = (Z - (86 - 0.95 * X) + 0.25 * (Y - 10) + 5 * slab.shape[box]) * 0.7
    right = _meet(right, visceral, 8)
    size, jitter = a["size_left"], a["jitter"]["left"]
    left = slab.ellipsoid(
        box,
        (-2 + a["lobe_left"] + jitter[0], 46 + jitter[1], 110),
        (74 * size[0], (37 + 0.12 * X) * size[1], 46 * size[2]),
    )
    liver = _join(right, left, 8)
    porta = slab.ellipsoid(box, (30, 14, 80), (26, 10, 13))
    liver = _meet(liver, -porta, 4)
    sheet = 1.6 - np.abs(Y - 22 - 0.25 * X)  # venous ligament
    sheet = np.minimum(sheet, np.minimum(30 - np.abs(X - 2), 24 - np.abs(Z - 104)))
    ligament = slab.tube(box, (0, 84, 84), (8, 40, 82), (7, 5))  # round
    liver = _meet(_meet(liver, -sheet, 2), -ligament, 4)
    liver = _meet(liver, -slab.ellipsoid(box, (-4, -50, 0), (34, 36, None)), 5)  # spine
    size, grow = a["size_caudate"], 1 + (caudate_growth(1.0) - 1) * caudate_sign
    caudate = slab.ellipsoid(
        box,
        (14, 3 * (grow - 1), 104),
        (17 * size[0] * grow, 15 * size[1] * grow, 26 * size[2]),
    )
    cava = slab.tube(box, (20, -24, 60), (22, -18, 160), (12, 12))
    return _meet(_join(liver, caudate, 3), -cava, 2)


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
