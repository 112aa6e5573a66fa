"""Arrays of solar modules: where they stand, what they cover exactly, and how they look from above.

An array is a grid of equal modules seen in plan: `width` along the rows, `depth` across them (already foreshortened by
the tilt), some places empty.  Rows come `stack` at a time without a gap, such groups at a `pitch`.  Across the rows

    c(v) = stack floor(v / pitch) + min((v - pitch floor(v / pitch)) / depth, stack)

counts the modules passed on the way to v; along them c(u) = u / width.  With C the running sum of the occupied places,
continued bilinearly, the part of a small square of side s that is panel is a difference of C at its four corners, times
width depth / s^2: exact in the frame of the array, no sampling.  So sum(mask) gsd_m^2 is the plan area at any gsd_m.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

Grey = NDArray[np.float32]


@dataclass(frozen=True)
class Look:
    """How modules look: colours 0..255, frame width in metres, tone spread between modules, glare 0..1."""

    colour: tuple[float, float, float]
    frame: tuple[float, float, float]
    frame_m: float
    spread: float
    glare: float
    seed: int


@dataclass(frozen=True)
class ModuleArray:
    """A grid of modules in plan; (x, y) is the outer corner of module (0, 0), u and v unit vectors along its axes."""

    x: float
    y: float
    u: tuple[float, float]
    v: tuple[float, float]
    width: float
    depth: float
    pitch: float  # from one group of rows to the next, at least stack * depth
    stack: int
    present: NDArray[np.bool_]  # [rows along v, columns along u]; the rows are whole groups when pitch > stack * depth
    tilt_deg: float
    azimuth_deg: float  # compass direction in which the modules face
    mount: str  # "roof", "rack" (tilted rows on a flat roof) or "ground"
    look: Look

    @property
    def modules(self) -> int:
        """How many modules there are."""
        return int(self.present.sum())

    @property
    def plan_area(self) -> float:
        """Square metres seen from above."""
        return self.modules * self.width * self.depth

    @property
    def module_area(self) -> float:
        """Square metres of module surface."""
        return self.plan_area / math.cos(math.radians(self.tilt_deg))

    @cached_property
    def size(self) -> tuple[float, float]:
        """Extent along u and v, in metres."""
        rows, cols = self.present.shape
        return cols * self.width, float(self.row_start(rows - 1)) + self.depth

    def row_start(self, row: Any) -> Any:
        """Where a row (or an array of rows) begins along v, in metres."""
        return row // self.stack * self.pitch + row % self.stack * self.depth

    def world(self, u: float, v: float) -> tuple[float, float]:
        """World coordinates of a point of the grid."""
        return self.x + self.u[0] * u + self.v[0] * v, self.y + self.u[1] * u + self.v[1] * v

    def local(self, x: float, y: float) -> tuple[float, float]:
        """Coordinates along u and v of a point of the world."""
        dx, dy = x - self.x, y - self.y
        return dx * self.u[0] + dy * self.u[1], dx * self.v[0] + dy * self.v[1]

    def distance(self, x: float, y: float) -> float:
        """Metres from a point of the world to the grid's rectangle, 0 inside."""
        u, v = self.local(x, y)
        w, d = self.size
        return math.hypot(max(0.0, -u, u - w), max(0.0, -v, v - d))

    @cached_property
    def bounds(self) -> tuple[float, float, float, float]:
        """min x, min y, max x, max y in the world."""
        w, d = self.size
        xs, ys = zip(*(self.world(u, v) for u, v in ((0, 0), (w, 0), (w, d), (0, d))), strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def centres(self) -> NDArray[np.float64]:
        """World coordinates of the middles of the modules, [n, 2]."""
        row, col = np.nonzero(self.present)
        u, v = (col + 0.5) * self.width, self.row_start(row) + self.depth / 2
        return np.stack([self.x + self.u[0] * u + self.v[0] * v, self.y + self.u[1] * u + self.v[1] * v], 1)

    def polygon(self) -> shapely.MultiPolygon:
        """Outline in the world: modules that touch are one part, so its area is `plan_area`."""
        boxes = []
        starts = self.row_start(np.arange(len(self.present)))
        for v0, line in zip(starts.tolist(), self.present, strict=True):
            steps = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(np.int8), [0]]))) * self.width
            for u0, u1 in zip(steps[::2].tolist(), steps[1::2].tolist(), strict=True):
                boxes.append([(u0, v0), (u1, v0), (u1, v0 + self.depth), (u0, v0 + self.depth)])
        corners = np.asarray(boxes)
        flat = corners.reshape(-1, 2) @ np.array([self.u, self.v]) + (self.x, self.y)
        parts = shapely.polygons(flat.reshape(corners.shape))
        return as_multi(shapely.union_all(parts, grid_size=1e-6))

    def coverage(self, u: Grey, v: Grey, side_m: float) -> Grey:
        """Fraction of squares of `side_m` metres about the local points (u, v) that is module."""
        rows, cols = self.present.shape
        w = np.float32(self.width)
        u0, u1 = (np.clip((u + t) / w, 0, cols) for t in (np.float32(-side_m / 2), np.float32(side_m / 2)))
        v0, v1 = (self._passed(v + t, rows) for t in (np.float32(-side_m / 2), np.float32(side_m / 2)))
        if self.present.all():
            passed = (u1 - u0) * (v1 - v0)
        else:
            total = np.zeros(np.add(self.present.shape, 1), np.float32)
            total[1:, 1:] = self.present.cumsum(0).cumsum(1)
            passed = (
                bilinear(total, v1, u1) - bilinear(total, v0, u1) - bilinear(total, v1, u0) + bilinear(total, v0, u0)
            )
        return np.asarray(passed * (self.width * self.depth / side_m**2), np.float32)

    def _passed(self, v: Grey, rows: int) -> Grey:
        """c(v) of the module docstring."""
        group = np.floor(v / np.float32(self.pitch))
        part = np.minimum((v - group * np.float32(self.pitch)) / np.float32(self.depth), self.stack)
        return np.clip(group * self.stack + part, 0, rows)

    def colours(self, u: Grey, v: Grey, side_m: float) -> Grey:
        """RGB 0..255 of the modules at the local points, [..., 3]; meaningless where there is no module."""
        look = self.look
        rows, cols = self.present.shape
        i = np.clip(np.floor(u / np.float32(self.width)), 0, cols - 1)
        j = np.clip(np.floor(self._passed(v, rows)), 0, rows - 1)
        group = np.floor(j / self.stack)
        in_u = u - i * np.float32(self.width)
        in_v = v - group * np.float32(self.pitch) - (j - group * self.stack) * np.float32(self.depth)
        edge = np.minimum(
            np.minimum(in_u, np.float32(self.width) - in_u), np.minimum(in_v, np.float32(self.depth) - in_v)
        )
        frame = np.clip(
            (np.float32(look.frame_m + side_m / 2) - edge) / np.float32(side_m), 0, min(1, look.frame_m / side_m + 0.2)
        )
        rng = np.random.default_rng(look.seed)
        tones = 1 + look.spread * rng.standard_normal(min(rows * cols, 4096), dtype=np.float32)
        tone = tones[(j * cols + i).astype(np.int32) % len(tones)]
        slope = rng.uniform(-1, 1, 2)
        w, d = self.size
        shine = np.clip(0.5 + slope[0] * (u / w - 0.5) + slope[1] * (v / d - 0.5), 0, 1) * np.float32(look.glare)
        cell = np.asarray(look.colour, np.float32) * tone[..., None]
        cell += shine[..., None] * (np.asarray((225, 232, 240), np.float32) - cell)
        if side_m < 0.06:  # the 6 x 10 cells of a module, visible only in very fine imagery
            fine_u, fine_v = (
                np.abs(in_u % (self.width / 6) - self.width / 12),
                np.abs(in_v % (self.depth / 10) - self.depth / 20),
            )
            grid = np.maximum(fine_u / (self.width / 12), fine_v / (self.depth / 20)) > 0.9
            cell += (0.15 * grid)[..., None] * (np.asarray(look.frame, np.float32) - cell)
        return cell + frame[..., None] * (np.asarray(look.frame, np.float32) - cell)


def bilinear(table: Grey, y: Grey, x: Grey) -> Any:
    """Values of `table` [rows, cols] at fractional places inside it."""
    j = np.minimum(y.astype(np.int32), table.shape[0] - 2)
    i = np.minimum(x.astype(np.int32), table.shape[1] - 2)
    fy, fx = y - j, x - i
    flat = table.ravel()
    at = j * table.shape[1] + i
    top = flat[at] * (1 - fx) + flat[at + 1] * fx
    at += table.shape[1]
    return top * (1 - fy) + (flat[at] * (1 - fx) + flat[at + 1] * fx) * fy


def as_multi(shape: Any) -> shapely.MultiPolygon:
    """The polygons of any geometry, lines and points left out."""
    return shapely.MultiPolygon([part for part in shapely.get_parts(shape) if part.geom_type == "Polygon"])
