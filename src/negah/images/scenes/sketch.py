"""A scene before it is painted: an ordered list of polygons in metres, their inks, shadows, and the module arrays.

World coordinates are metres, x to the right (east) and y down (south), as columns and rows of an image run.  Everything
in a scene (house, car, tree) is drawn in a local frame, a `Pose`, and ends as polygons in the world.  Painting order is
(layer, order of drawing).  Shadows go to a canvas of their own: `cast` darkens what is already there, and a shape that
stands high (`lit=True`) is lit again where it covers a shadow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import NamedTuple

from negah.images.scenes.modules import ModuleArray

Point = tuple[float, float]
Colour = tuple[float, float, float]

# Layers, bottom to top.
GROUND, LOT, FLAT, LOW_SHADOW, LOW, HIGH_SHADOW, ROOF, ROOF_SHADOW, ROOF_TOP, TREE_SHADOW, TREE = range(11)

# Textures (index into the stack of `paint.textures`).
SMOOTH, GRASS, LEAF, GRAIN, STAIN, SOIL, WATER, CLUTTER = range(8)


class Ink(NamedTuple):
    """Colour 0..255, a texture and its strength (relative), and a plane wave for rows, seams and corrugation.

    `wave_x`, `wave_y` are radians per metre; `wave` is the relative amplitude.
    """

    colour: Colour
    texture: int = SMOOTH
    amount: float = 0.0
    wave_x: float = 0.0
    wave_y: float = 0.0
    wave: float = 0.0


class Sun(NamedTuple):
    """Direction in which shadows fall (unit vector in the plane), their length per metre of height, and elevation."""

    dx: float
    dy: float
    length: float
    elevation: float

    @staticmethod
    def at(azimuth: float, elevation: float) -> "Sun":
        """Sun at a compass azimuth and an elevation, both in radians."""
        return Sun(-math.sin(azimuth), math.cos(azimuth), 1 / math.tan(elevation), elevation)

    def light(self, down_x: float, down_y: float, pitch: float) -> float:
        """Brightness of a plane that falls towards (down_x, down_y) at `pitch` radians; 1 for a level one."""
        direct = math.cos(pitch) - math.sin(pitch) * (down_x * self.dx + down_y * self.dy) * self.length
        return 0.35 + 0.65 * max(0.0, min(direct, 1.6))


@dataclass(frozen=True)
class Pose:
    """A local frame: origin in the world and the angle of its x axis (radians, from east towards south)."""

    x: float
    y: float
    angle: float

    @cached_property
    def lean(self) -> Point:
        """Cosine and sine of the angle."""
        return math.cos(self.angle), math.sin(self.angle)

    def out(self, px: float, py: float) -> Point:
        """World coordinates of a local point."""
        c, s = self.lean
        return self.x + c * px - s * py, self.y + s * px + c * py

    def turn(self, dx: float, dy: float) -> Point:
        """World direction of a local one."""
        c, s = self.lean
        return c * dx - s * dy, s * dx + c * dy

    def at(self, px: float, py: float, angle: float = 0.0) -> "Pose":
        """A frame inside this one."""
        return Pose(*self.out(px, py), self.angle + angle)


@dataclass
class Sketch:
    """All that will be painted, in drawing order."""

    sun: Sun
    view: tuple[float, float, float, float] | None = None  # min x, min y, max x, max y: nothing beyond is needed
    shapes: list[tuple[int, int, bool, list[Point]]] = field(
        default_factory=list
    )  # layer, ink (-1 shadow), lit, points
    inks: list[Ink] = field(default_factory=list)
    arrays: list[ModuleArray] = field(default_factory=list)
    sites: list[tuple[str, float, float]] = field(default_factory=list)  # what stands where, for counts and captions

    def sees(self, pose: Pose, radius: float) -> bool:
        """Whether a thing of this radius, shadow included, can touch the view."""
        if self.view is None:
            return True
        x0, y0, x1, y1 = self.view
        return x0 - radius < pose.x < x1 + radius and y0 - radius < pose.y < y1 + radius

    def add(self, points: list[Point], ink: Ink, layer: int, *, lit: bool = False) -> None:
        """A filled polygon in world coordinates."""
        self.shapes.append((layer, len(self.inks), lit, points))
        self.inks.append(ink)

    def poly(self, pose: Pose, points: Sequence[Point], ink: Ink, layer: int, *, lit: bool = False) -> None:
        """A filled polygon in the local frame `pose`."""
        self.add([pose.out(x, y) for x, y in points], ink, layer, lit=lit)

    def rect(
        self, pose: Pose, x: float, y: float, w: float, d: float, ink: Ink, layer: int, *, lit: bool = False
    ) -> None:
        """A rectangle of w x d metres centred at the local point (x, y)."""
        self.poly(pose, box(x, y, w, d), ink, layer, lit=lit)

    def line(self, pose: Pose, a: Point, b: Point, width: float, ink: Ink, layer: int) -> None:
        """A straight strip from a to b."""
        dx, dy = b[0] - a[0], b[1] - a[1]
        scale = width / 2 / (math.hypot(dx, dy) or 1.0)
        nx, ny = -dy * scale, dx * scale
        corners = [(a[0] + nx, a[1] + ny), (b[0] + nx, b[1] + ny), (b[0] - nx, b[1] - ny), (a[0] - nx, a[1] - ny)]
        self.poly(pose, corners, ink, layer)

    def cast(self, pose: Pose, tops: Sequence[tuple[float, float, float]], layer: int) -> None:
        """The shadow of a convex body given by its local corners (x, y, height in metres)."""
        points = []
        for x, y, height in tops:
            px, py = pose.out(x, y)
            reach = height * self.sun.length
            points += [(px, py), (px + self.sun.dx * reach, py + self.sun.dy * reach)]
        self.shapes.append((layer, -1, False, hull(points)))

    def cast_box(self, pose: Pose, x: float, y: float, w: float, d: float, height: float, layer: int) -> None:
        """The shadow of a box."""
        reach = height * self.sun.length
        tx, ty = self.sun.dx * reach, self.sun.dy * reach
        corners = [pose.out(px, py) for px, py in box(x, y, w, d)]
        # Corners between two edges that look down the shadow move with it; those at its sides do both.
        ahead = [
            (q[1] - p[1]) * tx - (q[0] - p[0]) * ty > 0 for p, q in zip(corners, corners[1:] + corners[:1], strict=True)
        ]
        points: list[Point] = []
        for k, (px, py) in enumerate(corners):
            before, after = ahead[k - 1], ahead[k]
            if not (before and after):
                points.append((px, py))
            if before or after:
                points.insert(len(points) - (before and not after), (px + tx, py + ty))
        self.shapes.append((layer, -1, False, points))

    def site(self, name: str, pose: Pose) -> None:
        """Note that a thing of this name stands here."""
        self.sites.append((name, pose.x, pose.y))


def box(x: float, y: float, w: float, d: float) -> list[Point]:
    """Corners of a rectangle centred at (x, y)."""
    return [(x - w / 2, y - d / 2), (x + w / 2, y - d / 2), (x + w / 2, y + d / 2), (x - w / 2, y + d / 2)]


def hull(points: list[Point]) -> list[Point]:
    """Convex hull (Andrew's monotone chain)."""
    points = sorted(set(points))
    if len(points) < 3:
        return points
    rings = []
    for run in (points, points[::-1]):
        ring: list[Point] = []
        for p in run:
            while len(ring) >= 2:
                (ax, ay), (bx, by) = ring[-2], ring[-1]
                if (bx - ax) * (p[1] - ay) - (by - ay) * (p[0] - ax) > 0:
                    break
                ring.pop()
            ring.append(p)
        rings += ring[:-1]
    return rings


def vary(rng: Random, colour: Colour, spread: float = 0.06) -> Colour:
    """The colour, a little lighter or darker and a little off in hue."""
    gain = 1 + rng.gauss(0, spread)
    r, g, b = colour
    return r * gain * (1 + rng.gauss(0, spread / 3)), g * gain, b * gain * (1 + rng.gauss(0, spread / 3))


def blob(rng: Random, radius: float, n: int, rough: float) -> list[Point]:
    """A round, irregular outline about the origin."""
    turn = rng.random() * 6.2832
    return [
        (r * math.cos(a), r * math.sin(a))
        for r, a in ((radius * (1 + rough * (2 * rng.random() - 1)), turn + 6.2832 * i / n) for i in range(n))
    ]
