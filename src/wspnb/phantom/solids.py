"""Smooth solids and random fields, of which the synthetic abdomen is painted.

Template positions are in mm of an average adult: x to the patient's right, y to the front, z to the
head from the liver's lower tip. Organs are laid one over the other in HU, each given by its signed
distance ("inside", mm, positive inside).
"""

import numpy as np

ALL = (slice(None),) * 3

# --- random fields --------------------------------------------------------------------------------

# Reach of the fields (z, y, x), mm.
LOW, HIGH = np.array([-60.0, -260.0, -260.0]), np.array([260.0, 260.0, 260.0])


def draw_fields(rng: np.random.Generator, texture_size: float) -> dict[str, tuple]:
    """All random fields of a patient, independent of pixels and slices: by name, coefficients (z,
    y, x) float32 and distance of the knots, mm. Each is white noise on the knots of a cubic
    B-spline; those of the liver's texture are ``texture_size`` mm apart."""
    knots = {
        "warp_x": 48, "warp_y": 48, "warp_z": 60, "shape": 26, "bowel": 15, "gas": 22,
        "stranding": 9, "contour": 8, "texture": texture_size,
    }  # fmt: skip
    fields = {}
    for name, knot in knots.items():
        shape = np.ceil((HIGH - LOW) / knot).astype(int) + 4
        fields[name] = rng.standard_normal(shape, dtype=np.float32) / np.float32(0.33), knot
    return fields


def evaluate(field, axes) -> np.ndarray:
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


def join(a, b, soft):
    """Smooth maximum of two insides, rounding of ``soft`` mm."""
    return np.maximum(a, b) + _round(a, b, soft)


def meet(a, b, soft):
    """Smooth minimum: inside both."""
    return np.minimum(a, b) - _round(a, b, soft)


class Slab:
    """Some slices being painted; arrays are (z, y, x).

    Holds HU, the warped template position of every voxel (X, Y, Z; mm), two random fields (shape,
    stranding) and the three solids that others are cut to, as insides in mm: the body, the cavity
    within its wall, and what is under the diaphragm.
    """

    def __init__(self, a, fields, axes, edge):
        self.axes, self.edge = axes, edge
        z, y, x = np.ix_(*map(np.float32, axes))
        cos, sin = np.float32(np.cos(a["turn"])), np.float32(np.sin(a["turn"]))
        warp = [evaluate(fields[name], axes) for name in ("warp_x", "warp_y", "warp_z")]
        X = x * cos + y * sin + 4 * warp[0]
        Y = y * cos - x * sin + 3.5 * warp[1]
        Z = z + 3 * warp[2]
        self.position, self.warp_z = (X, Y, Z), warp[2]
        self.hu = np.full(X.shape, -1000, np.float32)
        self.shape = shape = evaluate(fields["shape"], axes)
        self.stranding = evaluate(fields["stranding"], axes)

        sides, front = a["fat"]
        radii = (154 + sides, 113 + (front + 14) / 2, None)
        squarish = (X / 165) ** 2 * (Y / 125) ** 2  # fuller than an ellipse at the flanks
        squarish = 14 * squarish / (squarish + np.float32(0.3))
        self.body = self.ellipsoid(ALL, (0, (front - 14) / 2, 0), radii) + squarish
        self.cavity = self.ellipsoid(ALL, (0, 4, 0), (140, 90, None)) + 1.5 * shape
        right = 166 - 56 * ((X - 62) / 82) ** 2 - 52 * ((Y - 12) / 88) ** 2
        left = 150 - 56 * ((X + 64) / 80) ** 2 - 52 * ((Y - 12) / 88) ** 2
        dome = np.maximum(join(right, left, 12), 20) + 2 * shape
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
        if box := self.near(middle, reach):
            self.paint(box, self.tube(box, start, end, radii), np.float32(hu))
