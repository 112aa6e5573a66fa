"""Roofs as planes, and module arrays laid on them.

Every roof is a list of `Plane`s in painting order: a wing's planes lie over the main roof's, and with equal pitches the
valley between the two runs at 45 degrees in plan, so no intersection has to be computed.  Arrays are grids of real
modules in one plane; a place is usable when all four corners lie in the plane, off its edges and off what covers it.
"""

import math
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from negah.images.scenes.modules import Look, ModuleArray
from negah.images.scenes.sketch import Point, Pose, Sun

MODULES = ((1.0, 1.65), (1.0, 1.65), (1.0, 1.65), (0.99, 1.96), (1.05, 1.70), (1.13, 1.72), (1.05, 1.56))


class Plane(NamedTuple):
    """A convex part of a roof in the house's frame, falling towards `down` at `pitch` radians."""

    points: list[Point]
    down: Point
    pitch: float


def ridge_roof(x: float, y: float, w: float, d: float, pitch: float, hip: bool) -> list[Plane]:
    """Gable or hip roof over a rectangle, ridge along its longer side."""
    if d > w:
        turned = ridge_roof(-y, x, d, w, pitch, hip)  # in a frame turned by a quarter
        return [Plane([(py, -px) for px, py in p.points], (p.down[1], -p.down[0]), pitch) for p in turned]
    left, right, top, low = x - w / 2, x + w / 2, y - d / 2, y + d / 2
    inset = min(d / 2, w / 2) if hip else 0.0
    planes = [
        Plane([(left, top), (right, top), (right - inset, y), (left + inset, y)], (0, -1), pitch),
        Plane([(right, low), (left, low), (left + inset, y), (right - inset, y)], (0, 1), pitch),
    ]
    if hip:
        planes += [
            Plane([(right, top), (right, low), (right - inset, y)], (1, 0), pitch),
            Plane([(left, low), (left, top), (left + inset, y)], (-1, 0), pitch),
        ]
    return planes


def wing_roof(x: float, eave: float, side: int, half: float, length: float, pitch: float, hip: bool) -> list[Plane]:
    """A wing of half width `half` that leaves the eave y=`eave` towards `side` (+1 or -1); its ridge runs on inside."""
    end = eave + side * length
    top, inner = (x, end - side * (min(half, length) if hip else 0)), (x, eave - side * half)
    planes = [
        Plane([(x - half, eave), (x - half, end), top, inner], (-1, 0), pitch),
        Plane([(x + half, end), (x + half, eave), inner, top], (1, 0), pitch),
    ]
    if hip:
        planes.append(Plane([(x - half, end), (x + half, end), top], (0, side), pitch))
    return planes


def half_planes(outline: Sequence[Point]) -> list[tuple[float, float, float]]:
    """A convex outline as (a, b, c) with a x + b y + c the depth of a point behind each edge, in metres."""
    area = 0.0
    edges = list(zip(outline, [*outline[1:], outline[0]], strict=True))
    for (px, py), (qx, qy) in edges:
        area += px * qy - py * qx
    out = []
    for (px, py), (qx, qy) in edges:
        length = math.copysign(math.hypot(qx - px, qy - py) or 1e-9, area)
        a, b = (py - qy) / length, (qx - px) / length
        out.append((a, b, -a * px - b * py))
    return out


def holds(outline: Sequence[Point], x: float, y: float) -> bool:
    """Whether a point lies in a convex outline."""
    return all(a * x + b * y + c >= 0 for a, b, c in half_planes(outline))


def inside(
    x: NDArray[np.floating], y: NDArray[np.floating], outline: Sequence[Point], margin: float
) -> NDArray[np.bool_]:
    """Which points lie in a convex outline, at least `margin` metres from its edges (< 0: at most that far out)."""
    ok = np.ones(x.shape, bool)
    for a, b, c in half_planes(outline):
        ok &= a * x + b * y >= margin - c
    return ok


def draw_look(rng: Random) -> Look:
    """A make of modules: black, dark blue, blue with white frames, or bluish grey."""
    kind = rng.random()
    if kind < 0.35:  # monocrystalline, black frames
        g = rng.uniform(28, 62)
        colour, frame, width = (
            (g, g * rng.uniform(1.0, 1.1), g * rng.uniform(1.08, 1.4)),
            (g + 16, g + 18, g + 22),
            0.03,
        )
    elif kind < 0.65:  # monocrystalline, bright frames
        g = rng.uniform(32, 66)
        tone = rng.uniform(120, 190)
        colour, frame, width = (
            (g, g * 1.08, g * rng.uniform(1.15, 1.55)),
            (tone, tone, tone + 6),
            rng.uniform(0.03, 0.05),
        )
    elif kind < 0.92:  # polycrystalline blue
        g = rng.uniform(34, 70)
        tone = rng.uniform(120, 205)
        colour = (g, g * rng.uniform(1.12, 1.35), g * rng.uniform(1.6, 2.2))
        frame, width = (tone, tone, tone + 8), rng.uniform(0.03, 0.06)
    else:  # weathered or hazy: bluish grey
        g = rng.uniform(70, 110)
        colour, frame, width = (g, g * 1.06, g * 1.2), (g + 50, g + 50, g + 55), 0.04
    glare = rng.random()
    glare = rng.uniform(0.3, 0.8) if glare < 0.05 else rng.uniform(0.0, 0.16)
    return Look(colour, frame, width, rng.uniform(0.01, 0.07), glare, rng.getrandbits(32))


def lay_modules(
    rng: Random,
    pose: Pose,
    plane: Plane,
    above: Sequence[Sequence[Point]],
    target: int,
    look: Look,
    size: tuple[float, float],
    *,
    mount: str = "roof",
    edge: float = 0.35,
) -> ModuleArray | None:
    """One array of about `target` modules on a plane, flush with it; None where fewer than three find room.

    `above` are outlines (house frame) that cover the plane: wings, chimneys.
    """
    across, along = size if rng.random() < 0.65 else size[::-1]
    slope = math.cos(plane.pitch)
    dx, dy = plane.down
    u, v = (-dy, dx), (-dx, -dy)  # along the eave, and up the slope
    cu = [px * u[0] + py * u[1] for px, py in plane.points]
    cv = [px * v[0] + py * v[1] for px, py in plane.points]
    depth, room_u, room_v = along * slope, max(cu) - min(cu) - 2 * edge, max(cv) - min(cv) - 2 * edge
    cols, rows = int(room_u / across), int(room_v / depth)
    if cols < 1 or rows < 1:
        return None
    u0 = min(cu) + edge + rng.random() * (room_u - cols * across)
    v0 = min(cv) + edge + rng.random() * (room_v - rows * depth)
    gu, gv = np.meshgrid(u0 + across * np.arange(cols + 1), v0 + depth * np.arange(rows + 1))
    x, y = gu * u[0] + gv * v[0], gu * u[1] + gv * v[1]
    ok = inside(x, y, plane.points, edge)
    for outline in above:
        ok &= ~inside(x, y, outline, -0.25)
    usable = ok[:-1, :-1] & ok[1:, :-1] & ok[:-1, 1:] & ok[1:, 1:]
    for outline in above:  # small things between the nodes
        cx, cy = sum(p[0] for p in outline) / len(outline), sum(p[1] for p in outline) / len(outline)
        place_u, place_v = int((cx * u[0] + cy * u[1] - u0) // across), int((cx * v[0] + cy * v[1] - v0) // depth)
        if 0 <= place_u < cols and 0 <= place_v < rows:
            usable[place_v, place_u] = False
    chosen = choose_places(rng, usable, target)
    if chosen is None:
        return None
    keep_v, keep_u = np.flatnonzero(chosen.any(1)), np.flatnonzero(chosen.any(0))
    top, left = int(keep_v[0]), int(keep_u[0])
    present = chosen[top : keep_v[-1] + 1, left : keep_u[-1] + 1]
    start_u, start_v = u0 + left * across, v0 + top * depth
    x, y = pose.out(start_u * u[0] + start_v * v[0], start_u * u[1] + start_v * v[1])
    face_x, face_y = pose.turn(dx, dy)
    azimuth = math.degrees(math.atan2(face_x, -face_y)) % 360
    return ModuleArray(
        x, y, pose.turn(*u), pose.turn(*v), across, depth, depth, 1, present,
        math.degrees(plane.pitch), azimuth, mount, look,
    )  # fmt: skip


def choose_places(rng: Random, usable: NDArray[np.bool_], target: int) -> NDArray[np.bool_] | None:
    """About `target` of the usable places as an installer would fill them: rows of like length, now and then ragged."""
    rows = len(usable)
    if usable.sum() < 3:
        return None
    deep = min(rows, max(1, round(math.sqrt(target / 2.2) * rng.uniform(0.5, 1.5))))
    best: tuple[int, int, int, int] | None = None  # columns, first row, first column, end
    starts = list(range(rows - deep + 1))
    rng.shuffle(starts)
    want = max(1, math.ceil(target / deep))
    for top in starts:
        open_cols = np.concatenate([[0], usable[top : top + deep].all(0).astype(np.int8), [0]])
        steps = np.flatnonzero(np.diff(open_cols))
        for a, b in zip(steps[::2].tolist(), steps[1::2].tolist(), strict=True):
            n = min(b - a, want)
            first = a + rng.randint(0, b - a - n)
            if best is None or n > best[0]:
                best = (n, top, first, first + n)
    chosen = np.zeros_like(usable)
    if best is not None:
        _, top, first, end = best
        chosen[top : top + deep, first:end] = True
        if chosen.sum() > 5 and rng.random() < 0.2:  # a corner left out
            chosen[rng.choice([top, top + deep - 1]), rng.choice([first, end - 1])] = False
    if chosen.sum() < max(min(3, target), 0.4 * target) or rng.random() < 0.25:  # ragged: follow the plane
        middle_v, middle_u = rng.choice(np.argwhere(usable).tolist())
        jv, iu = np.nonzero(usable)
        near = np.argsort(np.abs(jv - middle_v) * 1.7 + np.abs(iu - middle_u), kind="stable")[:target]
        ragged = np.zeros_like(usable)
        ragged[jv[near], iu[near]] = True
        if ragged.sum() > chosen.sum() or rng.random() < 0.5:
            chosen = ragged
    return chosen if chosen.sum() >= 3 else None


def rows_of_modules(
    rng: Random,
    pose: Pose,
    area: tuple[float, float, float, float],
    above: Sequence[Sequence[Point]],
    look: Look,
    size: tuple[float, float],
    tilt: float,
    stack: int,
    gap: float,
    *,
    mount: str,
    fill: float = 1.0,
) -> ModuleArray | None:
    """Tilted rows over a rectangle (min x, min y, max x, max y in the frame `pose`, rows along x, facing +y).

    `stack` modules one above the other make a row; `gap` metres of roof or ground lie between rows.  None without room.
    """
    x0, y0, x1, y1 = area
    across, along = size
    depth = along * math.cos(tilt)
    pitch = stack * depth + gap
    cols, lines = round(int((x1 - x0) / across) * fill), int((y1 - y0 + gap) / pitch)
    if cols < 2 or lines < 1:
        return None
    first_x = x0 + (x1 - x0 - cols * across) * 0.5
    gu, gv = np.meshgrid(first_x + across * (np.arange(cols) + 0.5), y0 + pitch * np.arange(lines) + stack * depth / 2)
    usable = np.ones(gu.shape, bool)
    for outline in above:
        usable &= ~inside(gu, gv, outline, -(0.5 * stack * depth + 0.4))
    if not usable.any():
        return None
    face_x, face_y = pose.turn(0, 1)
    azimuth = math.degrees(math.atan2(face_x, -face_y)) % 360
    x, y = pose.out(first_x, y0)
    return ModuleArray(
        x, y, pose.turn(1, 0), pose.turn(0, 1), across, depth, pitch, stack, np.repeat(usable, stack, 0),
        math.degrees(tilt), azimuth, mount, look,
    )  # fmt: skip


def shaded(colour: tuple[float, float, float], light: float) -> tuple[float, float, float]:
    """The colour under another light."""
    return colour[0] * light, colour[1] * light, colour[2] * light


def plane_light(pose: Pose, plane: Plane, sun: Sun) -> float:
    """Brightness of a roof plane in the world."""
    return sun.light(*pose.turn(*plane.down), plane.pitch)
