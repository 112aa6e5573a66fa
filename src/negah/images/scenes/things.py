"""What stands and lies in a scene: the tastes of a region, roof and ground surfaces, trees, cars, pools."""

import math
from random import Random
from typing import NamedTuple

from negah.images.scenes import sketch as s
from negah.images.scenes.roofs import shaded
from negah.images.scenes.sketch import Colour, Ink, Point, Pose, Sketch, blob, vary

ROOFS: dict[str, list[Colour]] = {
    "grey": [(150, 145, 138), (128, 124, 120), (108, 106, 104), (168, 164, 156), (138, 130, 124)],
    "dark": [(82, 82, 80), (70, 72, 74), (92, 86, 82), (62, 66, 72), (76, 84, 80)],
    "brown": [(142, 120, 104), (120, 102, 90), (104, 90, 80), (158, 136, 116), (132, 108, 96)],
    "tan": [(186, 160, 132), (196, 172, 142), (176, 148, 120)],
    "red": [(178, 108, 88), (164, 96, 84), (190, 124, 98), (150, 92, 82)],
    "metal": [(72, 128, 200), (60, 110, 180), (160, 205, 228), (112, 44, 56), (190, 192, 190), (96, 150, 190)],
    "white": [(232, 230, 224), (216, 214, 208), (240, 240, 238)],
    "gravel": [(176, 168, 156), (150, 146, 140), (122, 120, 120), (98, 96, 98)],
}
CARS: list[Colour] = [
    (235, 235, 235), (225, 226, 228), (180, 182, 184), (140, 142, 146), (60, 62, 66), (36, 38, 42), (28, 34, 58),
    (34, 52, 104), (150, 40, 36), (120, 100, 80), (200, 200, 205), (90, 30, 30),
]  # fmt: skip


class Style(NamedTuple):
    """Tastes of a region: roof materials and their weights, ground, greenery."""

    roofs: dict[str, float]
    grass: Colour
    dry: float  # part of the lawns that is dry or bare
    leaves: Colour
    soil: Colour
    paving: Colour
    asphalt: Colour
    trees: float  # per lot
    hip: float  # part of the roofs that are hipped
    pool: float
    size: float  # of the houses


def draw_style(rng: Random) -> Style:
    """A region at random; half of them like the suburbs of a dry country."""
    if rng.random() < 0.55:
        roofs = {"grey": 3, "dark": 2.0, "brown": 3, "tan": 1.2, "red": 1.2, "white": 0.3}
        style = Style(
            roofs,
            (96, 120, 82),
            0.4,
            (62, 82, 56),
            (188, 164, 128),
            (204, 192, 170),
            (122, 116, 108),
            6.0,
            0.55,
            0.25,
            1.22,
        )
    elif rng.random() < 0.5:
        roofs = {"red": 3, "brown": 1.5, "dark": 1.5, "grey": 1.0, "metal": 0.2, "gravel": 0.6}
        style = Style(
            roofs,
            (92, 122, 66),
            0.12,
            (54, 80, 44),
            (150, 122, 92),
            (178, 170, 160),
            (120, 120, 120),
            4.5,
            0.35,
            0.06,
            1.0,
        )
    else:
        roofs = {"metal": 3, "dark": 2, "gravel": 2.5, "grey": 1.5, "red": 1.0}
        style = Style(
            roofs,
            (78, 110, 52),
            0.3,
            (50, 84, 40),
            (146, 124, 98),
            (190, 184, 172),
            (128, 126, 124),
            3.5,
            0.15,
            0.01,
            1.0,
        )
    return style._replace(
        grass=vary(rng, style.grass, 0.15), leaves=vary(rng, style.leaves, 0.18), soil=vary(rng, style.soil, 0.12),
        paving=vary(rng, style.paving, 0.08), asphalt=vary(rng, style.asphalt, 0.22),
    )  # fmt: skip


def pick(rng: Random, weights: dict[str, float]) -> str:
    """One of the keys, by weight."""
    return rng.choices(list(weights), list(weights.values()))[0]


def roof_ink(rng: Random, material: str, colour: Colour, pose: Pose, down: Point, light: float) -> Ink:
    """Surface of a roof plane: shingles lie in courses along the eave, metal has seams down the slope."""
    shade = shaded(colour, light)
    dx, dy = pose.turn(*down)
    if material == "metal":
        k = 2 * math.pi / 0.8
        return Ink(shade, s.STAIN, 0.03, -dy * k, dx * k, 0.06)
    if material in ("white", "gravel"):
        return Ink(shade, s.STAIN, 0.06)
    k = 2 * math.pi / 0.33
    return Ink(shade, s.GRAIN, 0.06 if material != "red" else 0.08, dx * k, dy * k, 0.05)


def ground_ink(rng: Random, style: Style) -> Ink:
    """A yard: lawn, dry lawn or bare soil."""
    if rng.random() < style.dry:
        if rng.random() < 0.5:
            return Ink(vary(rng, style.soil, 0.1), s.SOIL, 0.09)
        g = rng.uniform(0.3, 0.8)
        mixed = tuple(a * g + b * (1 - g) for a, b in zip(style.soil, style.grass, strict=True))
        return Ink(vary(rng, mixed, 0.08), s.GRASS, 0.12)  # pyright: ignore[reportArgumentType]
    return Ink(vary(rng, style.grass, 0.12), s.GRASS, 0.12)


def tree(sk: Sketch, rng: Random, pose: Pose, radius: float, style: Style, *, over_roofs: bool = False) -> None:
    """A crown of lumps, lit on the side of the sun, and its shadow."""
    rng = Random(rng.getrandbits(32))  # its own, so that leaving it out changes nothing else
    if not sk.sees(pose, 4 * radius):
        return
    colour = vary(rng, style.leaves, 0.16)
    if rng.random() < 0.08:
        colour = vary(rng, rng.choice([(110, 96, 50), (104, 60, 56), (120, 124, 70)]), 0.1)
    height = radius * rng.uniform(1.3, 2.4)
    reach = height * sk.sun.length * 0.7
    outline = blob(rng, radius, 11, 0.18)
    under = pose.at(0, 0)
    cast = Pose(under.x + sk.sun.dx * reach, under.y + sk.sun.dy * reach, 0.0)
    layer = s.TREE_SHADOW if over_roofs else s.HIGH_SHADOW
    sk.shapes.append((layer, -1, False, [cast.out(x, y) for x, y in outline]))
    half = Pose(under.x + sk.sun.dx * reach / 2, under.y + sk.sun.dy * reach / 2, 0.0)
    sk.shapes.append((layer, -1, False, [half.out(x * 0.9, y * 0.9) for x, y in outline]))
    sk.poly(pose, outline, Ink(shaded(colour, 0.62), s.LEAF, 0.3), s.TREE, lit=True)
    lit = Pose(pose.x - sk.sun.dx * radius * 0.2, pose.y - sk.sun.dy * radius * 0.2, 0.0)
    sk.poly(lit, blob(rng, radius * 0.7, 9, 0.25), Ink(shaded(colour, 1.0), s.LEAF, 0.34), s.TREE)
    lumps = min(14, int(3 + radius * 2))
    for _ in range(lumps):
        a, r = rng.random() * 6.2832, radius * 0.85 * math.sqrt(rng.random())
        x, y = r * math.cos(a), r * math.sin(a)
        toward = -(x * sk.sun.dx + y * sk.sun.dy) / radius  # 1 on the sunny side
        light = 0.95 + 0.4 * toward + rng.gauss(0, 0.12)
        sk.poly(Pose(pose.x + x, pose.y + y, 0.0), blob(rng, radius * rng.uniform(0.1, 0.3), 6, 0.3),
                Ink(shaded(colour, max(0.4, light)), s.LEAF, 0.3), s.TREE)  # fmt: skip
    sk.site("tree", pose)


def bush(sk: Sketch, rng: Random, pose: Pose, radius: float, style: Style) -> None:
    """A low shrub."""
    rng = Random(rng.getrandbits(32))  # its own, so that leaving it out changes nothing else
    if not sk.sees(pose, 2 * radius):
        return
    sk.cast_box(pose, 0, 0, radius * 1.4, radius * 1.4, radius * 0.8, s.LOW_SHADOW)
    colour = shaded(vary(rng, style.leaves, 0.2), rng.uniform(0.8, 1.3))
    sk.poly(pose, blob(rng, radius, 7, 0.2), Ink(colour, s.LEAF, 0.3), s.LOW, lit=True)


def car(sk: Sketch, rng: Random, pose: Pose) -> None:
    """A car along the x axis: body, dark glass, shadow."""
    rng = Random(rng.getrandbits(32))  # its own, so that leaving it out changes nothing else
    if not sk.sees(pose, 5):
        return
    colour = vary(rng, rng.choice(CARS), 0.05)
    length, width = rng.uniform(4.1, 5.2), rng.uniform(1.7, 2.0)
    sk.cast_box(pose, 0, 0, length, width, 1.3, s.LOW_SHADOW)
    sk.rect(pose, 0, 0, length, width, Ink(colour, s.SMOOTH, 0.03), s.LOW, lit=True)
    glass = Ink((40, 46, 54))
    sk.rect(pose, length * 0.16, 0, length * 0.13, width * 0.86, glass, s.LOW)
    sk.rect(pose, -length * 0.34, 0, length * 0.09, width * 0.8, glass, s.LOW)
    sk.rect(pose, -length * 0.09, 0, length * 0.34, width * 0.78, Ink(shaded(colour, 1.06)), s.LOW)
    sk.site("car", pose)


def pool(sk: Sketch, rng: Random, pose: Pose, size: float, style: Style, water: Colour | None = None) -> None:
    """A swimming pool with its paving; turquoise, deep blue, or green, unless its water is given."""
    rng = Random(rng.getrandbits(32))
    if not sk.sees(pose, size):
        return
    drawn = rng.choices(
        [(98, 190, 196), (126, 206, 208), (54, 104, 160), (40, 74, 122), (96, 140, 110)], [4, 3, 2, 1, 1]
    )[0]
    w, d = size, size * rng.uniform(0.45, 0.65)
    stone = Ink(vary(rng, style.paving, 0.06), s.STAIN, 0.04)
    ink = Ink(vary(rng, water or drawn, 0.06), s.WATER, 0.07)
    sk.rect(pose, 0, 0, w + rng.uniform(2, 4), d + rng.uniform(2, 4), stone, s.FLAT)
    if rng.random() < 0.5:
        sk.rect(pose, 0, 0, w + 0.6, d + 0.6, Ink((226, 220, 208)), s.FLAT)
        sk.rect(pose, 0, 0, w, d, ink, s.FLAT)
    else:
        outline = [(x * 0.5 * w, y * 0.5 * d) for x, y in blob(rng, 1.0, 14, 0.1)]
        sk.poly(pose, [(x * 1.08, y * 1.12) for x, y in outline], Ink((226, 220, 208)), s.FLAT)
        sk.poly(pose, outline, ink, s.FLAT)
    sk.site("pool", pose)


def trampoline(sk: Sketch, pose: Pose, radius: float) -> None:
    """A dark disc in a blue rim."""
    ring = [(math.cos(a * 0.4488), math.sin(a * 0.4488)) for a in range(14)]
    sk.poly(pose, [(x * radius, y * radius) for x, y in ring], Ink((56, 84, 140)), s.LOW)
    sk.poly(pose, [(x * radius * 0.8, y * radius * 0.8) for x, y in ring], Ink((34, 34, 38)), s.LOW)
    sk.site("trampoline", pose)
