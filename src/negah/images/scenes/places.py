"""Whole blocks that are no dwellings: commerce and industry, fields, parks."""

import math
from itertools import pairwise
from random import Random

from negah.images.scenes import sketch as s
from negah.images.scenes.roofs import (
    MODULES,
    Plane,
    draw_look,
    lay_modules,
    plane_light,
    ridge_roof,
    rows_of_modules,
    shaded,
)
from negah.images.scenes.sketch import Ink, Point, Pose, Sketch, blob, box, vary
from negah.images.scenes.things import ROOFS, Style, bush, car, roof_ink, trampoline, tree


def commercial(sk: Sketch, rng: Random, pose: Pose, w: float, d: float, style: Style, equipped: bool) -> None:
    """Halls, shops and their car parks."""
    paved = vary(rng, style.asphalt, 0.15)
    sk.rect(pose, 0, 0, w, d, Ink(paved, s.STAIN, 0.06), s.LOT)
    n = rng.choice([1, 1, 2, 2, 3])
    part = w / n
    for k in range(n):
        x = -w / 2 + part * (k + 0.5)
        hw, hd = part * rng.uniform(0.55, 0.88), d * rng.uniform(0.35, 0.72)
        y = rng.choice([-1, 1]) * (d - hd) / 2 * 0.92
        hall(sk, rng, pose.at(x, y), hw, hd, style, equipped and rng.random() < 0.75)
        car_park(sk, rng, pose.at(x, -math.copysign(hd / 2, y) if hd < d else 0), part * 0.94, d - hd - 3, style)
    for _ in range(rng.randint(0, 8)):
        side = rng.choice([-1, 1])
        tree(sk, rng, pose.at(rng.uniform(-0.5, 0.5) * w, side * (d / 2 - 0.5)), rng.uniform(1.2, 2.6), style)


def hall(sk: Sketch, rng: Random, pose: Pose, w: float, d: float, style: Style, equipped: bool) -> None:
    """A large building: level roof with fittings, or a low metal gable."""
    material = rng.choices(
        ["white", "gravel", "metal", "dark"], [4, 3, 1 + 2.0 * min(style.roofs.get("metal", 0), 2), 0.7]
    )[0]
    colour = vary(rng, rng.choice(ROOFS[material]), 0.07)
    height = rng.uniform(5, 11)
    sk.cast_box(pose, 0, 0, w, d, height, s.HIGH_SHADOW)
    look, size = draw_look(rng), rng.choice(MODULES)
    if material == "metal":
        bays = max(1, round(d / rng.uniform(18, 30)))
        span = d / bays
        for b in range(bays):
            y = -d / 2 + span * (b + 0.5)
            for plane in (
                ridge_roof(0, y, w, span, math.radians(rng.uniform(4, 9)), False)
                if w >= span
                else [Plane(box(0, y, w, span), (0, 1), 0.03)]
            ):
                sk.poly(
                    pose,
                    plane.points,
                    roof_ink(rng, material, colour, pose, plane.down, plane_light(pose, plane, sk.sun)),
                    s.ROOF,
                    lit=True,
                )
                strips: list[list[Point]] = []
                if rng.random() < 0.5:  # translucent strips
                    xs, ys = zip(*plane.points, strict=True)
                    x = min(xs) + rng.uniform(2, 6)
                    while x < max(xs) - 2:
                        strip = box(x, (min(ys) + max(ys)) / 2, 0.9, (max(ys) - min(ys)) * 0.7)
                        strips.append(strip)
                        sk.poly(pose, strip, Ink(vary(rng, (214, 222, 220), 0.04)), s.ROOF_TOP)
                        x += rng.choice([6.0, 8.0])
                if equipped and rng.random() < 0.7:
                    if strips:
                        left = [p[0] for strip in strips for p in strip]
                        edges = [min(q[0] for q in plane.points), *left, max(q[0] for q in plane.points)]
                        a, c = max(pairwise(edges), key=lambda gap: gap[1] - gap[0])
                        _, ys = zip(*plane.points, strict=True)
                        piece = Plane(
                            box((a + c) / 2, (min(ys) + max(ys)) / 2, c - a, max(ys) - min(ys)), plane.down, plane.pitch
                        )
                    else:
                        piece = plane
                    array = lay_modules(
                        rng, pose, piece, strips, rng.choice([40, 120, 400, 2000]), look, size, edge=0.6
                    )
                    if array:
                        sk.arrays.append(array)
        sk.site("hall", pose)
        return
    sk.rect(pose, 0, 0, w, d, Ink(colour, s.STAIN, 0.06), s.ROOF, lit=True)
    rim = Ink(shaded(colour, rng.choice([0.72, 1.12, 1.2])))
    corners = box(0, 0, w - 0.4, d - 0.4)
    for p, q in zip(corners, corners[1:] + corners[:1], strict=True):
        sk.line(pose, p, q, 0.4, rim, s.ROOF)
    things: list[list[Point]] = []
    for _ in range(rng.choice([0, 2, 4, 8])):  # air conditioning
        x, y = rng.uniform(-0.42, 0.42) * w, rng.uniform(-0.4, 0.4) * d
        aw, ad = rng.uniform(1.2, 4), rng.uniform(1.2, 3)
        things.append(box(x, y, aw, ad))
        p = pose.at(x, y)
        sk.cast_box(p, 0, 0, aw, ad, 1.6, s.ROOF_SHADOW)
        sk.rect(p, 0, 0, aw, ad, Ink(vary(rng, (196, 198, 196), 0.1), s.CLUTTER, 0.06), s.ROOF_TOP, lit=True)
        if rng.random() < 0.6:
            sk.poly(p, [(0.45 * math.cos(a), 0.45 * math.sin(a)) for a in range(7)], Ink((74, 76, 80)), s.ROOF_TOP)
    if rng.random() < 0.35:  # rows of skylights
        nx, ny = max(1, int(w / rng.uniform(6, 10))), max(1, int(d / rng.uniform(6, 10)))
        tone = vary(rng, rng.choice([(206, 218, 226), (236, 238, 238), (120, 140, 160), (84, 100, 120)]), 0.05)
        for a in range(nx):
            for b in range(ny):
                x, y = (a + 0.5 - nx / 2) * w / nx * 0.92, (b + 0.5 - ny / 2) * d / ny * 0.92
                things.append(box(x, y, 1.3, 2.5))
                sk.rect(pose, x, y, 1.3, 2.5, Ink(tone), s.ROOF_TOP)
    if rng.random() < 0.3:  # patches of new roofing
        for _ in range(rng.randint(1, 4)):
            x, y = rng.uniform(-0.3, 0.3) * w, rng.uniform(-0.3, 0.3) * d
            pw, pd = rng.uniform(3, 0.3 * w + 3), rng.uniform(2, 0.3 * d + 2)
            sk.rect(pose, x, y, pw, pd, Ink(shaded(colour, rng.uniform(0.65, 1.1)), s.STAIN, 0.06), s.ROOF)
    if equipped:
        flush = rng.random() < 0.3
        tilt = math.radians(rng.uniform(0.5, 3) if flush else rng.uniform(5, 20))
        stack = rng.choice([1, 1, 2]) if not flush else rng.choice([2, 3])
        gap = rng.uniform(0.5, 1.2) if flush else stack * size[1] * math.sin(tilt) * rng.uniform(1.2, 2.4) + 0.25
        x0, x1 = -w / 2 + rng.uniform(1.2, 1.2 + w * 0.25), w / 2 - rng.uniform(1.2, 1.2 + w * 0.25)
        y0, y1 = -d / 2 + rng.uniform(1.2, 1.2 + d * 0.25), d / 2 - rng.uniform(1.2, 1.2 + d * 0.25)
        frame, area = pose, (x0, y0, x1, y1)
        if rng.random() < 0.35:  # rows across the hall
            frame, area = pose.at(0, 0, math.pi / 2), (y0, -x1, y1, -x0)
            c, t = 0.0, 1.0
            things = [[(c * x + t * y, -t * x + c * y) for x, y in ring] for ring in things]
        rows = rows_of_modules(rng, frame, area, things, look, size, tilt, stack, gap, mount="rack")
        if rows:
            sk.arrays.append(rows)
    sk.site("hall", pose)


def car_park(sk: Sketch, rng: Random, pose: Pose, w: float, d: float, style: Style) -> None:
    """Rows of bays with cars in some of them."""
    if d < 8 or w < 10:
        return
    paint, full = Ink((220, 218, 212)), rng.uniform(0.1, 0.8)
    lanes = max(1, int(d / 16))
    for lane in range(lanes):
        y = -d / 2 + d * (lane + 0.5) / lanes
        x = -w / 2 + 2
        while x < w / 2 - 2:
            for side in (-1, 1) if d / lanes > 15 else (1,):
                sk.line(pose, (x, y), (x, y + side * 5), 0.14, paint, s.FLAT)
                if rng.random() < full:
                    car(sk, rng, pose.at(x + 1.3, y + side * 2.5, side * math.pi / 2 + rng.choice([0, math.pi])))
            x += 2.6
    sk.site("car park", pose)


def field(sk: Sketch, rng: Random, pose: Pose, w: float, d: float, style: Style, equipped: bool) -> None:
    """Farmland, ponds, greenhouses, or a solar farm."""
    n = rng.choice([1, 1, 2, 3])
    part = w / n
    for k in range(n):
        p = pose.at(-w / 2 + part * (k + 0.5), 0)
        what = rng.choices(["crop", "pond", "greenhouse", "orchard"], [6, 1.2, 0.8, 0.8])[0]
        if equipped and (k == 0 or rng.random() < 0.5):
            solar_farm(sk, rng, p, part - 2, d, style)
        elif what == "pond":
            ink = Ink(
                vary(rng, rng.choice([(64, 82, 76), (88, 96, 82), (52, 64, 78), (104, 96, 84)]), 0.12), s.WATER, 0.06
            )
            sk.rect(p, 0, 0, part - 3, d, Ink(vary(rng, style.soil, 0.1), s.SOIL, 0.12), s.LOT)
            sk.rect(p, 0, 0, part - 7, d - 4, ink, s.FLAT)
            sk.site("pond", p)
        elif what == "greenhouse":
            greenhouses(sk, rng, p, part - 4, d, style)
        else:
            crop(sk, rng, p, part - 2, d, style)
            if what == "orchard":
                orchard(sk, rng, p, part - 6, d - 4, style)
    for _ in range(rng.randint(0, 6)):
        tree(sk, rng, pose.at(rng.uniform(-0.5, 0.5) * w, rng.choice([-0.5, 0.5]) * d), rng.uniform(1.5, 3.5), style)


def crop(sk: Sketch, rng: Random, pose: Pose, w: float, d: float, style: Style) -> None:
    """A field with rows or furrows."""
    tone = vary(
        rng, rng.choice([style.grass, style.grass, style.soil, (120, 112, 70), (70, 100, 52), (112, 92, 78)]), 0.14
    )
    k = 2 * math.pi / rng.choice([0.75, 1.5, 3.0, 6.0])
    dx, dy = pose.turn(*rng.choice([(1, 0), (0, 1)]))
    sk.rect(
        pose,
        0,
        0,
        w,
        d,
        Ink(tone, rng.choice([s.GRASS, s.SOIL, s.GRASS]), 0.1, dx * k, dy * k, rng.uniform(0, 0.16)),
        s.LOT,
    )
    for _ in range(rng.randint(0, 3)):
        x, y, r = rng.uniform(-0.4, 0.4) * w, rng.uniform(-0.4, 0.4) * d, rng.uniform(3, 10)
        sk.poly(
            pose.at(x, y), blob(rng, min(r, w / 4, d / 4), 10, 0.3), Ink(vary(rng, tone, 0.16), s.GRASS, 0.12), s.LOT
        )
    sk.site("field", pose)


def orchard(sk: Sketch, rng: Random, pose: Pose, w: float, d: float, style: Style) -> None:
    """Bushes in rows."""
    step, r = rng.uniform(3.5, 6), rng.uniform(0.9, 1.6)
    for i in range(min(30, int(w / step))):
        for j in range(min(16, int(d / step))):
            bush(
                sk, rng, pose.at(-w / 2 + step * (i + 0.5), -d / 2 + step * (j + 0.5)), r * rng.uniform(0.7, 1.1), style
            )


def greenhouses(sk: Sketch, rng: Random, pose: Pose, w: float, d: float, style: Style) -> None:
    """Long tunnels of film, side by side."""
    span, tone = rng.uniform(6, 9), rng.choice([(210, 214, 212), (176, 184, 186), (120, 128, 130), (70, 76, 80)])
    k = 2 * math.pi / 2.0
    dx, dy = pose.turn(0, 1)
    n = int(w / (span + 1.2))
    for i in range(n):
        x = (i + 0.5 - n / 2) * (span + 1.2)
        colour = vary(rng, tone, 0.06)
        sk.cast_box(pose, x, 0, span, d * 0.94, 2.5, s.LOW_SHADOW)
        for half, light in ((-1, 0.92), (1, 1.08)):
            sk.rect(
                pose,
                x + half * span / 4,
                0,
                span / 2,
                d * 0.94,
                Ink(shaded(colour, light), s.STAIN, 0.05, dx * k, dy * k, 0.04),
                s.LOW,
                lit=True,
            )
    sk.site("greenhouse", pose)


def solar_farm(sk: Sketch, rng: Random, pose: Pose, w: float, d: float, style: Style) -> None:
    """Tables of modules on the ground, facing the equator as far as the plot allows, or over water."""
    base = rng.choice([style.grass, style.soil, style.soil, (72, 86, 78)])
    sk.rect(pose, 0, 0, w, d, Ink(vary(rng, base, 0.12), rng.choice([s.GRASS, s.SOIL]), 0.1), s.LOT)
    tilt = math.radians(rng.uniform(8, 32))
    stack, size = rng.choice([1, 2, 2, 3, 4]), rng.choice([(1.0, 1.65), (1.0, 1.96), (1.05, 2.1)])
    gap = stack * size[1] * (math.sin(tilt) * rng.uniform(1.2, 2.2)) + rng.uniform(0.6, 1.5)
    # The local frame whose +y looks south.
    turn = round((-pose.angle) / (math.pi / 2)) * math.pi / 2
    frame = pose.at(0, 0, turn)
    fw, fd = (w, d) if abs(math.cos(turn)) > 0.5 else (d, w)
    area = (-fw / 2 + 2.5, -fd / 2 + 2.5, fw / 2 - 2.5, fd / 2 - 2.5)
    look = draw_look(rng)
    table = rng.choice([10**6, rng.uniform(18, 40)])
    x = area[0]
    while x < area[2] - 3:
        end = min(x + table, area[2])
        array = rows_of_modules(
            rng, frame, (x, area[1], end, area[3]), [], look, size, tilt, stack, gap, mount="ground"
        )
        if array:
            sk.arrays.append(array)
            rows, cols = array.present.shape
            deep = stack * size[1] * math.cos(tilt)
            for r in range(rows // stack):
                y = area[1] + r * (deep + gap)
                top = 0.7 + deep * math.tan(tilt)
                wide = cols * size[0]
                left = x + (end - x - wide) / 2
                sk.cast(
                    frame,
                    [(left, y, top), (left + wide, y, top), (left + wide, y + deep, 0.7), (left, y + deep, 0.7)],
                    s.LOW_SHADOW,
                )
        x = end + rng.uniform(2, 5)
    sk.site("solar farm", pose)


def park(sk: Sketch, rng: Random, pose: Pose, w: float, d: float, style: Style, equipped: bool) -> None:
    """Lawns, paths, trees, courts, a pond."""
    sk.rect(pose, 0, 0, w, d, Ink(vary(rng, style.grass, 0.1), s.GRASS, 0.12), s.LOT)
    path = Ink(vary(rng, style.paving, 0.06), s.STAIN, 0.05)
    knots = [(-w / 2 + w * k / 8, rng.uniform(-0.3, 0.3) * d) for k in range(9)]
    for p, q in pairwise(knots):
        sk.line(pose, p, q, 2.0, path, s.FLAT)
    if rng.random() < 0.6:
        for k in range(rng.randint(1, 3)):
            court(sk, rng, pose.at(-w / 2 + 14 + 20 * k, -d / 2 + 22, math.pi / 2))
    if rng.random() < 0.4:
        x, y = rng.uniform(0, 0.3) * w, rng.uniform(0, 0.2) * d
        water = Ink(vary(rng, rng.choice([(60, 86, 84), (50, 70, 90)]), 0.1), s.WATER, 0.06)
        sk.poly(pose.at(x, y), blob(rng, min(w, d) * 0.18, 16, 0.2), water, s.FLAT)
        sk.site("pond", pose.at(x, y))
    if rng.random() < 0.4:
        trampoline(sk, pose.at(rng.uniform(-0.3, 0.3) * w, rng.uniform(-0.3, 0.3) * d), 3.0)
    if equipped and rng.random() < 0.6:  # a roof over parked cars or benches, with modules
        at = pose.at(0.3 * w, -0.3 * d)
        sk.cast_box(at, 0, 0, 24, 6, 3.2, s.HIGH_SHADOW)
        plane = Plane(box(0, 0, 24, 6), (0, 1), math.radians(6))
        sk.poly(at, plane.points, Ink((190, 190, 188)), s.ROOF, lit=True)
        array = lay_modules(rng, at, plane, [], 60, draw_look(rng), (1.0, 1.65), edge=0.15)
        if array:
            sk.arrays.append(array)
    for _ in range(rng.randint(6, 40)):
        x, y = rng.uniform(-0.48, 0.48) * w, rng.uniform(-0.48, 0.48) * d
        tree(sk, rng, pose.at(x, y), rng.uniform(1.5, 5.0), style)
    sk.site("park", pose)


def court(sk: Sketch, rng: Random, pose: Pose) -> None:
    """A tennis court."""
    outer = vary(rng, rng.choice([(96, 132, 98), (72, 104, 150), (168, 96, 76)]), 0.06)
    inner = vary(rng, rng.choice([(70, 104, 150), (64, 92, 130), (92, 130, 92)]), 0.06)
    sk.rect(pose, 0, 0, 34, 17, Ink(outer, s.STAIN, 0.03), s.FLAT)
    sk.rect(pose, 0, 0, 23.8, 11, Ink(inner, s.STAIN, 0.03), s.FLAT)
    line = Ink((236, 236, 232))
    for y in (-5.5, -4.1, 4.1, 5.5):
        sk.line(pose, (-11.9, y), (11.9, y), 0.1, line, s.FLAT)
    for x in (-11.9, -6.4, 6.4, 11.9):
        sk.line(pose, (x, -5.5), (x, 5.5), 0.1, line, s.FLAT)
    sk.line(pose, (-6.4, 0), (6.4, 0), 0.1, line, s.FLAT)
    sk.line(pose, (0, -6.2), (0, 6.2), 0.25, Ink((70, 70, 72)), s.FLAT)
    sk.site("tennis court", pose)
