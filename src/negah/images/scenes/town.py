"""An endless town, laid out lazily: streets, districts, blocks, lots.

The plan is a jittered grid of streets in a flat "street space" (u along, v across, metres), bent by a gentle smooth
warp and turned as a whole.  Every lot is drawn from its own seed, so any window of the town can be sketched alone, and
every window agrees with its neighbours.  Buildings are rigid: the warp moves and turns them, it never stretches one.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple

from negah.images.scenes import places
from negah.images.scenes import sketch as s
from negah.images.scenes.house import Wish, house, yard
from negah.images.scenes.sketch import Ink, Point, Pose, Sketch, Sun, vary
from negah.images.scenes.things import Style, car, draw_style, ground_ink, tree

District = Literal["residential", "commercial", "field", "park"]
WEIGHTS: dict[District, float] = {"residential": 0.55, "commercial": 0.17, "field": 0.22, "park": 0.06}


class Lot(NamedTuple):
    """A piece of a block in street space; `front` is +1 where the street lies at larger v, -1 where at smaller."""

    u0: float
    u1: float
    v0: float
    v1: float
    front: int
    key: int


class Block(NamedTuple):
    """What lies between four streets."""

    i: int
    j: int
    district: District
    u0: float
    u1: float
    v0: float
    v1: float
    lots: list[Lot]


def mix(*numbers: int) -> int:
    """A seed from several integers (splitmix64 over them)."""
    state = 0x9E3779B97F4A7C15
    for n in numbers:
        state = (state ^ (n & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 29) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 32
    return state


@dataclass
class Town:
    """The plan of a town. `adoption` is the part of buildings with modules; `district` makes all blocks alike.

    `clumping`, from 0 to below 1, is how alike two buildings of one neighbourhood are in having modules: the
    correlation between them. `adoption` stays the expected part of all buildings.
    """

    seed: int
    adoption: float = 0.3
    clumping: float = 0.0
    district: District | None = None
    angle: float = 0.0

    def __post_init__(self) -> None:
        rng = Random(mix(self.seed, 1))
        self.style: Style = draw_style(rng)
        summer = rng.random()
        self.sun = Sun.at(math.radians(rng.gauss(180, 55)), math.radians(35 + 32 * summer))
        self.bend = [(rng.uniform(0, 14), rng.uniform(260, 480), rng.uniform(0, 6.28)) for _ in range(2)]
        self.block_u, self.block_v = rng.uniform(120, 210), rng.uniform(68, 92)
        self.street = rng.uniform(9, 14)
        self.lot_width = rng.uniform(16, 24)
        self.size = rng.uniform(0.85, 1.15)
        self.lean = math.cos(self.angle), math.sin(self.angle)

    # Street space and the world.
    def out(self, u: float, v: float) -> Point:
        """World coordinates of a point of street space."""
        (a, la, pa), (b, lb, pb) = self.bend
        x, y = u + a * math.sin(v / la + pa), v + b * math.sin(u / lb + pb)
        c, t = self.lean
        return c * x - t * y, t * x + c * y

    def back(self, x: float, y: float) -> Point:
        """Street space coordinates of a point of the world (fixed point iteration; the warp contracts)."""
        (a, la, pa), (b, lb, pb) = self.bend
        c, t = self.lean
        px, py = c * x + t * y, c * y - t * x
        u, v = px, py
        for _ in range(6):
            u, v = px - a * math.sin(v / la + pa), py - b * math.sin(u / lb + pb)
        return u, v

    def pose(self, u: float, v: float, front: int = 1) -> Pose:
        """A rigid frame at a point of street space: x along the street, +y towards `front`."""
        _, (b, lb, pb) = self.bend
        turn = math.atan(b / lb * math.cos(u / lb + pb))
        return Pose(*self.out(u, v), self.angle + turn + (0.0 if front > 0 else math.pi))

    def area(self, u0: float, v0: float, u1: float, v1: float) -> list[Point]:
        """The outline of a rectangle of street space in the world, bent as the streets are."""
        n = max(1, math.ceil((u1 - u0) / 25))
        m = max(1, math.ceil((v1 - v0) / 25))
        top = [self.out(u0 + (u1 - u0) * k / n, v0) for k in range(n)]
        right = [self.out(u1, v0 + (v1 - v0) * k / m) for k in range(m)]
        low = [self.out(u1 - (u1 - u0) * k / n, v1) for k in range(n)]
        left = [self.out(u0, v1 - (v1 - v0) * k / m) for k in range(m)]
        return top + right + low + left

    # Plan.
    def line_u(self, i: int) -> float:
        return (i + 0.3 * (mix(self.seed, 2, i) / 2**64 - 0.5)) * self.block_u

    def line_v(self, j: int) -> float:
        return (j + 0.16 * (mix(self.seed, 3, j) / 2**64 - 0.5)) * self.block_v

    def kind(self, i: int, j: int) -> District:
        """The district a block belongs to: quarters of about half a kilometre, some blocks of them of another kind."""
        if self.district:
            return self.district
        rng = Random(mix(self.seed, 4, i // 3, j // 6))
        own = Random(mix(self.seed, 5, i, j))
        if own.random() < 0.12:
            rng = own
        return rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]

    def share(self, i: int, j: int) -> float:
        """The part of buildings with modules where a block belongs: both sides of a street share one.

        It is drawn from a beta distribution; the buildings' correlation is then 1 / (a + b + 1) (beta-binomial).
        """
        if not self.clumping or self.adoption in (0, 1):
            return self.adoption
        weight = 1 / self.clumping - 1
        rng = Random(mix(self.seed, 9, i, j // 2))
        return rng.betavariate(self.adoption * weight, (1 - self.adoption) * weight)

    def block(self, i: int, j: int) -> Block:
        half = self.street / 2
        u0, u1 = self.line_u(i) + half, self.line_u(i + 1) - half
        v0, v1 = self.line_v(j) + half, self.line_v(j + 1) - half
        district = self.kind(i, j)
        lots: list[Lot] = []
        if district == "residential":
            rng = Random(mix(self.seed, 6, i, j))
            middle = (v0 + v1) / 2
            for front, a, b in ((-1, v0, middle), (1, middle, v1)):
                n = max(2, round((u1 - u0) / (self.lot_width * rng.uniform(0.9, 1.15))))
                cuts = [u0 + (u1 - u0) * (k + (rng.uniform(-0.08, 0.08) if 0 < k < n else 0)) / n for k in range(n + 1)]
                lots += [Lot(cuts[k], cuts[k + 1], a, b, front, len(lots) + k) for k in range(n)]
        else:
            lots = [Lot(u0, u1, v0, v1, 1, 0)]
        return Block(i, j, district, u0, u1, v0, v1, lots)

    def blocks_in(
        self, bounds: tuple[float, float, float, float]
    ) -> Iterator[tuple[Block, tuple[float, float, float, float]]]:
        """Blocks that may touch a window of the world, with the window's bounds in street space."""
        x0, y0, x1, y1 = bounds
        corners = [self.back(x, y) for x in (x0, (x0 + x1) / 2, x1) for y in (y0, (y0 + y1) / 2, y1)]
        u0, u1 = min(c[0] for c in corners), max(c[0] for c in corners)
        v0, v1 = min(c[1] for c in corners), max(c[1] for c in corners)
        for j in range(math.floor(v0 / self.block_v) - 1, math.floor(v1 / self.block_v) + 2):
            for i in range(math.floor(u0 / self.block_u) - 1, math.floor(u1 / self.block_u) + 2):
                block = self.block(i, j)
                half = self.street
                if block.u0 - half < u1 and block.u1 + half > u0 and block.v0 - half < v1 and block.v1 + half > v0:
                    yield block, (u0, v0, u1, v1)

    def sketch(self, bounds: tuple[float, float, float, float], reach: float = 12.0) -> Sketch:
        """All that touches a window of the world (min x, min y, max x, max y) or lies within `reach` metres of it."""
        x0, y0, x1, y1 = bounds
        sk = Sketch(self.sun, bounds)
        sk.inks.append(Ink(self.style.asphalt, s.STAIN, 0.035))  # ink 0 is the canvas: the streets
        for block, (u0, v0, u1, v1) in self.blocks_in((x0 - reach, y0 - reach, x1 + reach, y1 + reach)):
            self.block_ground(sk, block)
            for lot in block.lots:
                if lot.u0 < u1 and lot.u1 > u0 and lot.v0 < v1 and lot.v1 > v0:
                    corners = [self.out(u, v) for u in (lot.u0, lot.u1) for v in (lot.v0, lot.v1)]
                    # In a turned town the bounds in street space take in much more than the window.
                    if (
                        max(c[0] for c in corners) > x0 - reach
                        and min(c[0] for c in corners) < x1 + reach
                        and max(c[1] for c in corners) > y0 - reach
                        and min(c[1] for c in corners) < y1 + reach
                    ):
                        self.draw(sk, block, lot)
        return sk

    def block_ground(self, sk: Sketch, block: Block) -> None:
        """Kerb and pavement, markings, street trees; a field has a track about it instead."""
        rng = Random(mix(self.seed, 7, block.i, block.j))
        u0, u1, v0, v1 = block.u0, block.u1, block.v0, block.v1
        if block.district == "field":
            wide = self.street / 2 - 1.8
            sk.add(
                self.area(u0 - wide, v0 - wide, u1 + wide, v1 + wide),
                Ink(vary(rng, self.style.soil, 0.08), s.SOIL, 0.12),
                s.GROUND,
            )
            return
        pave = Ink(vary(rng, self.style.paving, 0.05), s.STAIN, 0.04)
        sk.add(self.area(u0 - 0.3, v0 - 0.3, u1 + 0.3, v1 + 0.3), pave, s.GROUND)
        if rng.random() < 0.5:  # a strip of grass along the kerb
            sk.add(self.area(u0, v0, u1, v1), ground_ink(rng, self.style), s.GROUND)
            sk.add(self.area(u0 + 1.3, v0 + 1.3, u1 - 1.3, v1 - 1.3), pave, s.GROUND)
        if block.district == "commercial" or rng.random() < 0.3:
            paint = Ink((222, 220, 210))
            y = v1 + self.street / 2
            u = u0
            while u < u1:
                sk.line(self.pose(u, y), (0, 0), (3, 0), 0.2, paint, s.FLAT)
                u += 9
        for _ in range(rng.randint(0, 4)):  # parked cars
            car_u, side = rng.uniform(u0 + 5, u1 - 5), rng.choice([v0 - 1.6, v1 + 1.6])
            car(sk, rng, self.pose(car_u, side, rng.choice([1, -1])))

    def draw(self, sk: Sketch, block: Block, lot: Lot) -> None:
        """One lot."""
        rng = Random(mix(self.seed, 8, block.i, block.j, lot.key))
        equipped = rng.random() < self.share(block.i, block.j)
        w, d = lot.u1 - lot.u0, lot.v1 - lot.v0
        pose = self.pose((lot.u0 + lot.u1) / 2, (lot.v0 + lot.v1) / 2, lot.front)
        if block.district == "residential":
            self.dwelling(sk, rng, pose, lot, w, d, equipped)
            return
        sk.add(self.area(lot.u0 + 1.5, lot.v0 + 1.5, lot.u1 - 1.5, lot.v1 - 1.5), ground_ink(rng, self.style), s.GROUND)
        draw = {"commercial": places.commercial, "field": places.field, "park": places.park}[block.district]
        draw(sk, rng, pose, w - 6, d - 6, self.style, equipped)

    def dwelling(self, sk: Sketch, rng: Random, pose: Pose, lot: Lot, w: float, d: float, equipped: bool) -> None:
        """A lot with a house."""
        walk = 1.6
        far = (lot.v0, lot.v1 - walk) if lot.front > 0 else (lot.v0 + walk, lot.v1)
        sk.add(self.area(lot.u0, far[0], lot.u1, far[1]), ground_ink(rng, self.style), s.LOT)
        if rng.random() < 0.03:  # an empty lot
            for _ in range(rng.randint(0, 6)):
                tree(
                    sk,
                    rng,
                    pose.at(rng.uniform(-0.4, 0.4) * w, rng.uniform(-0.4, 0.4) * d),
                    rng.uniform(1.5, 4),
                    self.style,
                )
            return
        hw = min(w - 3.0, rng.uniform(11, 19) * self.size * self.style.size)
        hd = min(d - 13.0, rng.uniform(8.5, 15) * self.size * self.style.size)
        wish = None
        if equipped:
            wish = Wish(max(4, min(44, round(rng.lognormvariate(math.log(13), 0.62)))), rng.choice([1, 1, 1, 2, 2, 3]))
        setback = rng.uniform(5.5, 7.5)
        at = pose.at(
            rng.uniform(-0.5, 0.5) * (w - hw - 2.6),
            max(-d / 2 + hd / 2 + 4.5, d / 2 - hd / 2 - setback),
            rng.choice([0.0, 0.0, 0.0, rng.gauss(0, 0.08)]),
        )
        taken = house(sk, rng, at, hw, hd, self.style, wish)
        dx, dy = at.x - pose.x, at.y - pose.y
        c, t = math.cos(-pose.angle), math.sin(-pose.angle)
        shift = (c * dx - t * dy, t * dx + c * dy)
        moved = [[(x + shift[0], y + shift[1]) for x, y in ring] for ring in taken]
        if sk.sees(pose, math.hypot(w, d) / 2 + 10):
            yard(sk, rng, pose, w, d, moved, self.style)
