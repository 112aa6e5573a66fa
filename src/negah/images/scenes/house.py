"""Dwellings: a house with its roof, what is mounted on it, and the yard about it."""

import math
from random import Random
from typing import NamedTuple

from negah.images.scenes import sketch as s
from negah.images.scenes.modules import ModuleArray
from negah.images.scenes.roofs import (
    MODULES,
    Plane,
    draw_look,
    holds,
    lay_modules,
    plane_light,
    ridge_roof,
    rows_of_modules,
    shaded,
    wing_roof,
)
from negah.images.scenes.sketch import Colour, Ink, Point, Pose, Sketch, blob, box, vary
from negah.images.scenes.things import ROOFS, Style, bush, car, pick, pool, roof_ink, trampoline, tree

CLUTTER: list[Colour] = [
    (225, 222, 215), (200, 180, 150), (150, 120, 95), (90, 85, 80), (50, 50, 54), (90, 130, 190), (60, 140, 120),
    (190, 90, 70), (240, 240, 236), (120, 112, 104), (214, 200, 176),
]  # fmt: skip


class Wish(NamedTuple):
    """Modules wanted on a building: how many, and on which planes (sunny ones first)."""

    modules: int
    planes: int


def house(
    sk: Sketch, rng: Random, pose: Pose, w: float, d: float, style: Style, wish: Wish | None,
    roof: tuple[str, Colour] | None = None, *, fittings: bool = True,
) -> list[list[Point]]:  # fmt: skip
    """A dwelling of about w x d metres centred in `pose`, street towards +y; returns its outlines there.

    roof: its material and about its colour, in place of the style's.  fittings: vents, chimneys and their like.
    """
    material = roof[0] if roof else pick(rng, style.roofs)
    colour = vary(rng, roof[1] if roof else rng.choice(ROOFS[material]), 0.09)
    flat = material in ("gravel", "white")
    pitch = 0.02 if flat else math.radians(rng.uniform(14, 32))
    hip = rng.random() < style.hip
    eave = rng.choice([2.8, 3.0, 5.5, 5.8])
    planes: list[Plane] = []
    outlines = [box(0, 0, w, d)]
    if flat:
        planes.append(Plane(box(0, 0, w, d), (0, 1), 0.02))
    else:
        planes += ridge_roof(0, 0, w, d, pitch, hip)
    wings: list[tuple[float, int, float, float]] = []
    for side in (1, -1):
        if w > d * 0.95 and rng.random() < (0.7 if side == 1 else 0.5):
            half = rng.uniform(2.4, max(2.5, d * 0.46))
            length = rng.uniform(1.5, 6.0)
            x = rng.choice([-1, 1]) * (w / 2 - half) if rng.random() < 0.7 else rng.uniform(half - w / 2, w / 2 - half)
            wings.append((x, side, half, length))
            outlines.append(box(x, side * (d / 2 + length / 2), 2 * half, length))
            if flat:
                planes.append(Plane(box(x, side * (d / 2 + length / 2), 2 * half, length), (0, 1), 0.02))
            else:
                planes += wing_roof(x, side * d / 2, side, half, length, pitch, hip)
    rise = eave + math.tan(pitch) * min(w, d) / 2
    for outline in outlines:
        sk.cast(pose, [(x, y, eave) for x, y in outline], s.HIGH_SHADOW)
    if not flat:
        half = max(w, d) / 2 - (min(w, d) / 2 if hip else 0)
        ends = [(-half, 0, rise), (half, 0, rise)] if w >= d else [(0, -half, rise), (0, half, rise)]
        sk.cast(pose, [*[(x, y, eave) for x, y in outlines[0]], *ends], s.HIGH_SHADOW)
    ridge_tone = rng.uniform(1.0, 1.22) if rng.random() < 0.7 else rng.uniform(0.8, 1.0)
    lights = []
    for plane in planes:
        light = plane_light(pose, plane, sk.sun)
        sk.poly(pose, plane.points, roof_ink(rng, material, colour, pose, plane.down, light), s.ROOF, lit=True)
        lights.append(light)
        if not flat:  # ridges, hips and valleys
            top = max(plane.points, key=lambda p, f=plane.down: -(p[0] * f[0] + p[1] * f[1]))
            for i, p in enumerate(plane.points):
                q = plane.points[(i + 1) % len(plane.points)]
                if top in (p, q):
                    sk.line(pose, p, q, 0.22, Ink(shaded(colour, ridge_tone * 0.97)), s.ROOF)
    if flat:
        rim = Ink(shaded(colour, rng.choice([0.75, 1.15, 1.25])))
        for outline in outlines:
            for p, q in zip(outline, outline[1:] + outline[:1], strict=True):
                sk.line(pose, p, q, 0.3, rim, s.ROOF)
    arrays = modules_on(sk, rng, pose, planes, lights, wish) if wish else []
    if fittings:
        roof_fittings(sk, rng, pose, planes, colour, arrays)
    sk.site("house", pose)
    return outlines


def modules_on(
    sk: Sketch, rng: Random, pose: Pose, planes: list[Plane], light: list[float], wish: Wish
) -> list[ModuleArray]:
    """Module arrays on up to `wish.planes` planes of a roof."""
    look, size, arrays, left = draw_look(rng), rng.choice(MODULES), [], wish.modules

    # Installers take the sunny and the large planes; a little chance keeps every orientation in the picture.
    def merit(i: int) -> float:
        xs, ys = zip(*planes[i].points, strict=True)
        return light[i] + 0.02 * math.sqrt((max(xs) - min(xs)) * (max(ys) - min(ys))) + rng.uniform(0, 0.35)

    for i in sorted(range(len(planes)), key=merit, reverse=True):
        if left < 3 or len(arrays) >= wish.planes:
            break
        above = [p.points for p in planes[i + 1 :]]
        share = left if len(arrays) == wish.planes - 1 else max(3, round(left * rng.uniform(0.5, 0.9)))
        if planes[i].pitch < 0.05 and rng.random() < 0.6:
            xs, ys = zip(*planes[i].points, strict=True)
            tilt = math.radians(rng.uniform(5, 25))
            gap = size[0] * math.sin(tilt) * rng.uniform(1.2, 2.5)
            area = (min(xs) + 0.8, min(ys) + 0.8, max(xs) - 0.8, max(ys) - 0.8)
            rows = rows_of_modules(
                rng, pose, area, above, look, (size[1], size[0]), tilt, 1, gap, mount="rack", fill=rng.uniform(0.5, 1)
            )
            if rows:
                arrays.append(rows)
                left -= rows.modules
            continue
        array = lay_modules(rng, pose, planes[i], above, share, look, size)
        if array:
            arrays.append(array)
            left -= array.modules
    sk.arrays += arrays
    return arrays


def free_spot(
    rng: Random, pose: Pose, planes: list[Plane], arrays: list[ModuleArray], margin: float
) -> tuple[Point, Plane] | None:
    """A place on the roof that no module covers."""
    for _ in range(6):
        i = rng.randrange(len(planes))
        plane = planes[i]
        weights = [rng.random() for _ in plane.points]
        total = sum(weights)
        x = sum(w * p[0] for w, p in zip(weights, plane.points, strict=True)) / total
        y = sum(w * p[1] for w, p in zip(weights, plane.points, strict=True)) / total
        wx, wy = pose.out(x, y)
        clear = True
        for array in arrays:
            u, v = array.local(wx, wy)
            w, d = array.size
            if -margin < u < w + margin and -margin < v < d + margin:
                clear = False
        if clear and not any(holds(p.points, x, y) for p in planes[i + 1 :]):
            return (x, y), plane
    return None


def roof_fittings(
    sk: Sketch, rng: Random, pose: Pose, planes: list[Plane], colour: Colour, arrays: list[ModuleArray]
) -> None:
    """Vents, chimneys, skylights, air conditioners and now and then a solar water heater."""

    def place(n: int, margin: float):
        for _ in range(n):
            spot = free_spot(rng, pose, planes, arrays, margin)
            if spot:
                (x, y), plane = spot
                yield pose.at(x, y, math.atan2(plane.down[1], plane.down[0]))

    bright = Ink((232, 232, 228))
    for p in place(rng.choice([0, 2, 4, 6, 10]), 0.5):
        r = rng.uniform(0.25, 0.6)
        sk.cast_box(p, 0, 0, r, r, 0.5, s.ROOF_SHADOW)
        sk.rect(p, 0, 0, r, r, bright if rng.random() < 0.6 else Ink(shaded(colour, 0.6)), s.ROOF_TOP, lit=True)
    if rng.random() < 0.35:
        for p in place(1, 0.9):
            sk.cast_box(p, 0, 0, 0.9, 1.2, 1.3, s.ROOF_SHADOW)
            sk.rect(
                p,
                0,
                0,
                0.9,
                1.2,
                Ink(vary(rng, rng.choice([(150, 110, 95), (190, 184, 176), (120, 116, 112)]), 0.08)),
                s.ROOF_TOP,
                lit=True,
            )
            sk.rect(p, 0, 0, 0.5, 0.7, Ink((50, 48, 46)), s.ROOF_TOP)
    if rng.random() < 0.25:
        for p in place(rng.choice([1, 1, 2, 4]), 0.9):
            dark = rng.random() < 0.4
            sk.rect(p, 0, 0, 1.35, 0.85, Ink((216, 216, 212)), s.ROOF_TOP)
            sk.rect(p, 0, 0, 1.1, 0.6, Ink((70, 82, 98) if dark else (200, 212, 220)), s.ROOF_TOP)
    if rng.random() < 0.15:
        for p in place(1, 1.2):
            sk.cast_box(p, 0, 0, 1.3, 1.3, 1.0, s.ROOF_SHADOW)
            sk.rect(p, 0, 0, 1.3, 1.3, Ink(vary(rng, (200, 200, 196), 0.08)), s.ROOF_TOP, lit=True)
            sk.poly(p, [(0.4 * math.cos(a), 0.4 * math.sin(a)) for a in range(7)], Ink((90, 92, 94)), s.ROOF_TOP)
    if rng.random() < 0.03:
        for p in place(1, 1.8):  # solar water heater: dark collector, pale tank
            sk.rect(p, 0, 0, 2.0, 2.2, Ink((44, 46, 54), s.SMOOTH, 0.05), s.ROOF_TOP)
            sk.rect(p, -1.2, 0, 0.5, 2.2, Ink((214, 214, 214)), s.ROOF_TOP)


def yard(sk: Sketch, rng: Random, pose: Pose, w: float, d: float, taken: list[list[Point]], style: Style) -> None:
    """What lies about a house on a lot of w x d metres: drive, patio, pool, trees, sheds, clutter, fences."""
    boxes = [(min(p[0] for p in t), min(p[1] for p in t), max(p[0] for p in t), max(p[1] for p in t)) for t in taken]

    def spot(margin: float, tries: int = 8, back: bool = False) -> Pose | None:
        for _ in range(tries):
            x, y = rng.uniform(-w / 2 + margin, w / 2 - margin), rng.uniform(-d / 2 + margin, d / 2 - margin)
            if back and y > 0:
                continue
            if all(not (a - margin < x < c + margin and b - margin < y < e + margin) for a, b, c, e in boxes):
                return pose.at(x, y, 0.0)
        return None

    stone = Ink(vary(rng, style.paving, 0.07), s.STAIN, 0.05)
    x0, _, x1, y1 = boxes[-1] if len(boxes) > 1 and boxes[-1][3] > boxes[0][3] else boxes[0]
    mid, wide = rng.uniform(x0 + 1.5, max(x0 + 1.6, x1 - 1.5)), rng.uniform(3, 6)
    sk.poly(pose, box(mid, (y1 + d / 2) / 2, wide, d / 2 - y1 + 0.5), stone, s.FLAT)
    if rng.random() < 0.55:
        car(
            sk,
            rng,
            pose.at(
                mid + rng.uniform(-0.8, 0.8),
                (y1 + d / 2) / 2 + rng.uniform(-0.5, 1.0),
                math.pi / 2 * rng.choice([1, -1]) + rng.gauss(0, 0.04),
            ),
        )
    # Paving around the house, and a patio behind it.
    a, b, c, e = boxes[0]
    if rng.random() < 0.5:
        m = rng.uniform(0.6, 1.6)
        sk.poly(pose, [(a - m, b - m), (c + m, b - m), (c + m, e + m), (a - m, e + m)], stone, s.FLAT)
    if rng.random() < 0.7:
        pw, pd = rng.uniform(4, 10), rng.uniform(2.5, 5)
        px = rng.uniform(a + pw / 2, max(a + pw / 2 + 0.1, c - pw / 2))
        sk.rect(pose, px, b - pd / 2, pw, pd, stone, s.FLAT)
        if rng.random() < 0.45:  # patio cover: white, tan or louvred
            cw, cd = pw * rng.uniform(0.5, 0.95), pd * rng.uniform(0.6, 1.0)
            tone = vary(rng, rng.choice([(238, 238, 236), (225, 220, 208), (200, 180, 150), (120, 105, 92)]), 0.05)
            k = 2 * math.pi / rng.uniform(0.4, 0.9)
            dx, dy = pose.turn(*rng.choice([(1, 0), (0, 1)]))
            sk.cast_box(pose, px, b - cd / 2, cw, cd, 2.5, s.HIGH_SHADOW)
            sk.rect(
                pose,
                px,
                b - cd / 2,
                cw,
                cd,
                Ink(tone, s.SMOOTH, 0.02, dx * k, dy * k, rng.choice([0.0, 0.0, 0.3, 0.45])),
                s.ROOF,
                lit=True,
            )
    if rng.random() < style.pool:
        size = rng.uniform(6, 10)
        p = spot(size * 0.45, 20, back=True)
        if p:
            pool(sk, rng, p, size, style)
    for _ in range(rng.randint(0, 4)):  # beds and bare patches
        p = spot(1.5)
        if p:
            sk.poly(p, blob(rng, rng.uniform(1.5, 4), 9, 0.3), Ink(vary(rng, style.soil, 0.15), s.SOIL, 0.12), s.LOT)
    if rng.random() < 0.35:  # shed
        p = spot(1.8, back=True)
        if p:
            sw, sd = rng.uniform(2, 4), rng.uniform(2, 3.5)
            sk.cast_box(p, 0, 0, sw, sd, 2.3, s.LOW_SHADOW)
            tone = vary(rng, rng.choice([(190, 188, 184), (120, 110, 100), (84, 80, 78), (60, 66, 76)]), 0.08)
            sk.rect(p, 0, -sd / 4, sw, sd / 2, Ink(shaded(tone, 1.05), s.GRAIN, 0.05), s.LOW, lit=True)
            sk.rect(p, 0, sd / 4, sw, sd / 2, Ink(shaded(tone, 0.85), s.GRAIN, 0.05), s.LOW, lit=True)
    if rng.random() < 0.06:
        p = spot(2.2, back=True)
        if p:
            trampoline(sk, p, rng.uniform(1.5, 2.1))
    if rng.random() < 0.1:  # tarpaulin or dark cover
        p = spot(1.5)
        if p:
            tone = rng.choice([(60, 110, 190), (46, 60, 96), (44, 46, 50), (70, 120, 90)])
            sk.rect(
                p, 0, 0, rng.uniform(1.5, 4), rng.uniform(1.5, 5), Ink(vary(rng, tone, 0.08), s.CLUTTER, 0.06), s.LOW
            )
    for _ in range(rng.randint(2, 12)):  # clutter
        p = spot(0.5, 2)
        if p:
            cw, cd = rng.uniform(0.3, 1.6), rng.uniform(0.3, 1.6)
            p = p.at(0, 0, rng.uniform(-0.6, 0.6))
            sk.cast_box(p, 0, 0, cw, cd, 0.7, s.LOW_SHADOW)
            sk.rect(p, 0, 0, cw, cd, Ink(vary(rng, rng.choice(CLUTTER), 0.1)), s.LOW, lit=True)
    for _ in range(rng.randint(1, 7)):
        p = spot(0.6, 2)
        if p:
            bush(sk, rng, p, rng.uniform(0.4, 1.3), style)
    if rng.random() < 0.7:  # fence along the sides and the back
        ink = Ink(vary(rng, rng.choice([(170, 150, 125), (130, 112, 96), (214, 208, 198)]), 0.08))
        for p, q in (((-w / 2, -d / 2), (w / 2, -d / 2)), ((-w / 2, -d / 2), (-w / 2, d * 0.2))):
            sk.cast(pose, [(*p, 1.8), (*q, 1.8)], s.LOW_SHADOW)
            sk.line(pose, p, q, 0.2, ink, s.LOW)
    n = min(14, int(rng.expovariate(1 / max(style.trees, 0.1))))
    for _ in range(n):
        radius = rng.uniform(1.2, 4.6) * rng.uniform(0.5, 1.0)
        p = spot(radius * 0.55, 6)
        if p and all(array.distance(p.x, p.y) > radius * 1.2 for array in sk.arrays[-6:]):
            tree(sk, rng, p, radius, style, over_roofs=rng.random() < 0.5)
