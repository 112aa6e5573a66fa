"""Pictures whose captions are true by construction: compositions of attributes that can be told by eye.

    found = described(104, 0.3, seed=7)
    found.image, found.captions[0]                  "two houses with red roofs, one solar array, no swimming pool, ..."
    found = described(104, 0.3, seed=7, what=composition)

The first caption names every attribute in a fixed order, so that a caption can be right or wrong; the other four say
less, or the same in other words and another order.  `held_out` splits the compositions by pairs of values: each value
occurs in what is seen, but no held-out pair does, so naming a held-out composition takes putting known parts together.

What a caption names is in plain sight: a scene is drawn again until each thing lies in the picture, apart from the
others and uncovered, by the cells of the canvas that show it; and until the finished picture, whatever sun and camera
made of it, has roofs of the colour that is named, and arrays that stand out from them.
"""

import math
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage

from negah.errors import InputError
from negah.images.scenes import sketch as s
from negah.images.scenes.house import Wish, house
from negah.images.scenes.paint import Camera, Window, rasterise, shrink, subdivision
from negah.images.scenes.render import listed, photograph
from negah.images.scenes.sketch import Colour, Ink, Point, Pose, Sketch, Sun, box, vary
from negah.images.scenes.things import ROOFS, draw_style, ground_ink, pool, tree
from negah.images.scenes.town import mix


class Composition(NamedTuple):
    """What is in a picture; `ATTRIBUTES` lists the values."""

    houses: str
    roofs: str
    panels: str
    pool: str
    trees: str
    street: str


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "houses": ("one", "two", "three"),
    "roofs": ("red", "grey", "white", "blue"),
    "panels": ("none", "one", "two"),  # arrays
    "pool": ("none", "one"),
    "trees": ("none", "few", "many"),
    "street": ("none", "one"),
}
HELD_OUT: tuple[dict[str, str], ...] = (  # pairs that no seen composition has
    {"roofs": "red", "pool": "one"},
    {"roofs": "blue", "panels": "two"},
    {"houses": "three", "street": "one"},
)
# Words of the first caption, by which each value can be found in it.
PHRASES: dict[str, dict[str, str]] = {
    "houses": {"one": "one house", "two": "two houses", "three": "three houses"},
    "roofs": {colour: f"{colour} roof" for colour in ATTRIBUTES["roofs"]},
    "panels": {"none": "no solar array", "one": "one solar array", "two": "two solar arrays"},
    "pool": {"none": "no swimming pool", "one": "a swimming pool"},
    "trees": {"none": "no trees", "few": "a few trees", "many": "many trees"},
    "street": {"none": "no street", "one": "a street"},
}
TILES: dict[str, tuple[str, list[Colour]]] = {  # material, and colours that can be told apart in any light
    "red": ("red", ROOFS["red"][:3]),
    "grey": ("grey", ROOFS["grey"][1:3]),
    "white": ("white", [ROOFS["white"][0], ROOFS["white"][2]]),
    "blue": ("metal", ROOFS["metal"][:2]),
}
WATER: list[Colour] = [(98, 190, 196), (126, 206, 208), (54, 130, 190)]  # not the green of pools that nobody keeps
TREES = {"none": (0, 0), "few": (2, 3), "many": (8, 11)}
EXTENT = 30.0, 64.0  # metres a side: room for three houses, and none that are lost in a meadow
COARSEST = 0.6  # metres a pixel at which an array on a roof can still be told
APART = 1.8  # metres between two things
ARRAY_M2 = 9.0  # least area of an array
IN_SIGHT = {"house": 0.93, "pool": 0.85, "tree": 0.6, "street": 0.85}  # least part of a thing that shows
SUNNY = 0.65  # least part of a pool that lies out of shadow
CONTRAST = 32  # least difference of an array from the roof about it, in grey levels
LEAVES = 12  # and of the trees from the ground
# What the mean colour of a roof must be in the picture: red less blue, and the mean of the three, in grey levels.
SEEN: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "red": ((45, 255), (0, 200)), "grey": ((-30, 30), (0, 150)), "white": ((-30, 40), (170, 255)),
    "blue": ((-255, -60), (0, 200)),
}  # fmt: skip
TRIES = 400  # scenes that are drawn until one is as wanted


@dataclass(frozen=True)
class Described:
    """A picture, five captions of which the first names all, and the part of each pixel that each kind of thing is."""

    image: NDArray[np.uint8]  # [side, side, 3]
    captions: list[str]
    composition: Composition
    masks: dict[str, NDArray[np.float32]]  # house, array, pool, tree, street; [side, side]


def compositions() -> list[Composition]:
    """All of them, always in the same order."""
    return [Composition(*values) for values in product(*ATTRIBUTES.values())]


def held_out(what: Composition) -> bool:
    """Whether it has one of the pairs in `HELD_OUT`."""
    return any(all(getattr(what, name) == value for name, value in pair.items()) for pair in HELD_OUT)


def caption(what: Composition) -> str:
    """The one that names every attribute, in the order of `ATTRIBUTES`."""
    count = PHRASES["houses"][what.houses]
    roofs = f"with a {what.roofs} roof" if what.houses == "one" else f"with {what.roofs} roofs"
    return ", ".join([f"{count} {roofs}", *(PHRASES[name][getattr(what, name)] for name in list(ATTRIBUTES)[2:])])


def told(text: str) -> dict[str, str | None]:
    """What a text in the words of `caption` says of each attribute; None where it says nothing, or two things."""
    found: dict[str, str | None] = {}
    for name, phrases in PHRASES.items():
        said = [value for value, phrase in phrases.items() if phrase in text.lower()]
        found[name] = said[0] if len(said) == 1 else None
    return found


def described(side: int, gsd_m: float, *, seed: int, what: Composition | None = None) -> Described:
    """A picture of side x side pixels of `gsd_m` metres with captions, the same for the same arguments.

    what: the composition; one at random without it.
    Raises InputError for a ground that is not 30 to 64 m wide, pixels above 0.6 m or below 0.05 m, and for a
    composition that is none of `compositions()`.
    """
    low, high = EXTENT
    if not 0.05 <= gsd_m <= COARSEST or not low <= side * gsd_m <= high:
        raise InputError(
            f"{side} px of {gsd_m} m: a described scene is {low:g} to {high:g} m wide, its pixels 0.05 to {COARSEST} m"
        )
    rng = Random(mix(seed, 0x30BD5))
    what = rng.choice(compositions()) if what is None else what
    for name, value in what._asdict().items():
        if value not in ATTRIBUTES[name]:
            raise InputError(f"{name} are {', '.join(ATTRIBUTES[name])}, not {value!r}")
    for attempt in range(TRIES):
        found = _attempt(Random(mix(seed, 1, attempt)), side, gsd_m, what, np.random.default_rng(mix(seed, 2, attempt)))
        if found is not None:
            return Described(found[0], _captions(rng, what), what, found[1])
    raise InputError(f"no room for {caption(what)} in {side} px of {gsd_m} m: take a larger picture")


class _Plot:
    """A sketch of a picture, and where its things stand."""

    def __init__(self, rng: Random, window: Window):
        self.rng, self.window, self.style = rng, window, draw_style(rng)._replace(dry=0.15)
        sun = Sun.at(math.radians(rng.gauss(180, 55)), math.radians(rng.uniform(42, 67)))
        self.sketch = Sketch(sun, inks=[ground_ink(rng, self.style)])  # ink 0 is the canvas
        self.frame = Pose(0.0, 0.0, rng.uniform(0, 2 * math.pi))
        self.free: shapely.Geometry = shapely.box(*window.bounds(-0.8))  # where things may stand
        self.inks: list[tuple[str, range, float]] = []  # kind, its inks, its square metres
        self.span = window.width * window.gsd_m

    def anywhere(self) -> tuple[float, float]:
        half = self.span / 2
        return self.rng.uniform(-half, half), self.rng.uniform(-half, half)

    def note(self, kind: str, first: int, area: float) -> None:
        self.inks.append((kind, range(first, len(self.sketch.inks)), area))

    def take(self, shape: shapely.Geometry, apart: float = APART) -> None:
        self.free = shapely.difference(self.free, shapely.buffer(shape, apart))


def _attempt(
    rng: Random, side: int, gsd_m: float, what: Composition, noise: np.random.Generator
) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.float32]]] | None:
    """The picture and its masks, or None where something found no room or is not in plain sight."""
    window = Window(-side * gsd_m / 2, -side * gsd_m / 2, side, side, gsd_m)
    plot = _Plot(rng, window)
    if what.street == "one":
        _street(plot)
    if not _houses(plot, what) or (what.pool == "one" and not _pool(plot)) or not _trees(plot, what):
        return None
    masks = _masks(plot, subdivision(gsd_m))
    if masks is None:
        return None
    camera = Camera.draw(rng)
    # Colours are among what is told, and trees are dark: not as dull as a hazy day makes them, shadows not as deep.
    r, g, b = (max(0.45, light) for light in camera.shadow)
    camera = camera._replace(
        saturation=max(0.95, camera.saturation), haze=min(0.25, camera.haze), level=max(110, camera.level),
        shadow=(r, g, b),
    )  # fmt: skip
    image, masks["array"] = photograph(plot.sketch, window, camera, noise)
    return (image, masks) if _plain(image, masks, what) else None


def _plain(image: NDArray[np.uint8], masks: dict[str, NDArray[np.float32]], what: Composition) -> bool:
    """Whether the picture shows as many houses and arrays as wanted, the colour of the roofs, the arrays, the trees."""
    pixels, roof = image.astype(np.float32), (masks["house"] > 0.9) & (masks["array"] < 0.05)
    homes, count = _parts(masks["house"])
    if count != ATTRIBUTES["houses"].index(what.houses) + 1:
        return False
    for k in range(1, count + 1):
        mean = pixels[roof & (homes == k)].mean(0)
        for value, (low, high) in zip((mean[0] - mean[2], mean.mean()), SEEN[what.roofs], strict=True):
            if not low <= value <= high:
                return False
    arrays, count = _parts(masks["array"])
    if count != ATTRIBUTES["panels"].index(what.panels):
        return False
    for k in range(1, count + 1):
        about = roof & np.asarray(ndimage.binary_dilation(arrays == k, iterations=3), bool)
        within = (arrays == k) & (masks["array"] > 0.9)
        if not about.any() or not within.any():
            return False
        if abs(pixels[within].mean(0) - pixels[about].mean(0)).max() < CONTRAST:
            return False
    trees, ground = masks["tree"] > 0.9, sum(masks.values()) < 0.05
    return not trees.any() or bool(abs(pixels[trees].mean(0) - pixels[ground].mean(0)).max() >= LEAVES)


def _parts(mask: NDArray[np.float32]) -> tuple[NDArray[np.int32], int]:
    """Number of the part of a mask that each pixel belongs to, 0 for none, and how many parts there are."""
    numbers = np.zeros(mask.shape, np.int32)
    return numbers, int(ndimage.label(mask > 0.5, output=numbers))  # pyright: ignore[reportArgumentType]


def _polygon(pose: Pose, ring: list[Point]) -> shapely.Polygon:
    """In the world, of corners in a frame."""
    return shapely.Polygon([pose.out(x, y) for x, y in ring])


def _street(plot: _Plot) -> None:
    """A street across the picture, off its middle, with a pavement on both sides and perhaps a dashed line."""
    rng, sk, frame = plot.rng, plot.sketch, plot.frame
    y, wide, long = plot.span * rng.uniform(0.33, 0.38), rng.uniform(5.5, 7), 3 * plot.span
    sk.rect(frame, 0, y, long, wide + 3, Ink(vary(rng, plot.style.paving, 0.05), s.STAIN, 0.04), s.GROUND)
    first = len(sk.inks)
    sk.rect(frame, 0, y, long, wide, Ink(plot.style.asphalt, s.STAIN, 0.035), s.LOT)
    if rng.random() < 0.5:
        for x in np.arange(-plot.span, plot.span, 9).tolist():
            sk.line(frame, (x, y), (x + 3, y), 0.2, Ink((222, 220, 210)), s.LOT)
    strip = _polygon(frame, box(0, y, long, wide))
    plot.note("street", first, strip.intersection(shapely.box(*plot.window.bounds())).area)
    plot.take(strip, 1.8)


def _houses(plot: _Plot, what: Composition) -> bool:
    """As many houses as wanted, with as many arrays on them."""
    rng, sk = plot.rng, plot.sketch
    count, arrays = ATTRIBUTES["houses"].index(what.houses) + 1, ATTRIBUTES["panels"].index(what.panels)
    hosts = [rng.randrange(count) for _ in range(arrays)]
    material, colours = TILES[what.roofs]
    colour, large = rng.choice(colours), min(1.4, plot.span / 31) * {1: 1.15, 2: 1.0, 3: 0.8}[count]
    for k in range(count):
        wanted = hosts.count(k)
        for _ in range(120):
            w, d = rng.uniform(7, 10) * large, rng.uniform(7, 9.5) * large
            pose = plot.frame.at(*plot.anywhere(), rng.choice([0, 0.5, 1, 1.5]) * math.pi + rng.gauss(0, 0.04))
            if not shapely.contains(plot.free, _polygon(pose, box(0, 0, w, d))):
                continue  # sooner than drawing it
            wish, key = Wish(rng.randint(7, 14) * wanted, wanted) if wanted else None, rng.getrandbits(48)
            trial = Sketch(sk.sun)
            rings = house(trial, Random(key), pose, w, d, plot.style, wish, (material, colour), fittings=False)
            outline = shapely.union_all([_polygon(pose, ring) for ring in rings])
            if shapely.contains(plot.free, outline) and _clear(trial, wanted):
                break
        else:
            return False
        first = len(sk.inks)
        sk.shapes += [
            (layer, ink + first if ink >= 0 else ink, lit, points) for layer, ink, lit, points in trial.shapes
        ]
        sk.inks += trial.inks
        sk.arrays += trial.arrays
        plot.note("house", first, outline.area)
        plot.take(outline)
    return True


def _clear(trial: Sketch, wanted: int) -> bool:
    """Whether a house has so many arrays, each in one piece, large enough and apart."""
    shapes = [array.polygon() for array in trial.arrays]
    if len(shapes) != wanted or any(len(shape.geoms) > 1 or shape.area < ARRAY_M2 for shape in shapes):
        return False
    return wanted < 2 or shapes[0].distance(shapes[1]) >= APART


def _pool(plot: _Plot) -> bool:
    rng, sk = plot.rng, plot.sketch
    for _ in range(60):
        size = rng.uniform(5.5, 8)
        pose = plot.frame.at(*plot.anywhere(), rng.choice([0, 0.5]) * math.pi)
        ground = _polygon(pose, box(0, 0, size + 1.2, 0.65 * size + 1.2))
        if shapely.contains(plot.free, ground):
            pool(sk, rng, pose, size, plot.style, rng.choice(WATER))
            plot.note("pool", len(sk.inks) - 1, shapely.Polygon(sk.shapes[-1][3]).area)  # the water is drawn last
            plot.take(ground, 0.6)
            return True
    return False


def _trees(plot: _Plot, what: Composition) -> bool:
    rng, sk, crowns = plot.rng, plot.sketch, []
    for _ in range(rng.randint(*TREES[what.trees])):
        for _ in range(60):
            x, y, radius = *plot.anywhere(), rng.uniform(1.4, 2.4)
            crown = shapely.Point(x, y).buffer(radius * 0.7)
            if shapely.contains(plot.free, crown) and all(
                math.hypot(x - a, y - b) > 0.8 * (radius + r) for a, b, r in crowns
            ):
                break
        else:
            return False
        first = len(sk.inks)
        tree(sk, rng, Pose(x, y, 0.0), radius, plot.style)
        plot.note("tree", first, math.pi * radius**2)
        crowns.append((x, y, radius))
    return True


def _masks(plot: _Plot, cells: int) -> dict[str, NDArray[np.float32]] | None:
    """Where each kind of thing shows, or None where one is hidden, cut off or, a pool, in shadow."""
    window = plot.window
    cell = window.gsd_m / cells
    ids, shade = rasterise(plot.sketch, window, cell, window.width * cells, window.height * cells)
    kinds = {kind: np.zeros(ids.shape, bool) for kind in ("house", "pool", "tree", "street")}
    for kind, inks, area in plot.inks:
        here = (ids >= inks.start) & (ids < inks.stop)
        if here.sum() * cell**2 < IN_SIGHT[kind] * area:
            return None
        if kind == "pool" and (shade[here] == 0).mean() < SUNNY:
            return None
        kinds[kind] |= here
    return {kind: shrink(mask.astype(np.float32), cells) for kind, mask in kinds.items()}


def _captions(rng: Random, what: Composition) -> list[str]:
    """Five true captions: the one that names all, a short one, and three that leave out or turn round."""
    several = what.houses != "one"
    home = rng.choice(["house", "home", "building"]) + "s" * several
    colour = f"{what.roofs}-roofed"
    roof = rng.choice([f"with {what.roofs} roofs", f"whose roofs are {what.roofs}"]) if several else rng.choice(
        [f"with a {what.roofs} roof", f"whose roof is {what.roofs}"]
    )  # fmt: skip
    there = {
        "panels": {
            "one": rng.choice(["an array of solar panels", "one set of solar modules on a roof"]),
            "two": rng.choice(["two arrays of solar panels", "solar panels in two places on the roofs"]),
        },
        "pool": {"one": rng.choice(["a pool", "a pool in the garden", "a swimming pool"])},
        "trees": {
            "few": rng.choice(["a few trees", "some trees", "two or three trees"]),
            "many": rng.choice(["many trees", "a lot of trees", "trees all around"]),
        },
        "street": {"one": rng.choice(["a street", "a road", "a road along one side"])},
    }
    gone = {"panels": "solar panels", "pool": "pool", "trees": "trees", "street": "road"}
    has = [phrases[getattr(what, name)] for name, phrases in there.items() if getattr(what, name) != "none"]
    lacks = [thing for name, thing in gone.items() if getattr(what, name) == "none"]
    rng.shuffle(has)
    rng.shuffle(lacks)
    view = rng.choice(["An aerial view", "An aerial image", "A picture from above", "A bird's eye view"])
    houses = f"{what.houses} {home} {roof}"
    lacking = f"without {listed(lacks, 'or')}" if lacks else ""
    short = f"{what.houses} {colour} {home}" + (f" and {rng.choice(has)}" if has else "")
    longer = f"{view} of {houses}" + (f", with {listed(has)}" if has else "") + "."
    turned = f"{listed(has)} beside {houses}" if has else f"nothing but {houses} on open ground"
    whole = ", ".join(
        part for part in (f"There {'are' if several else 'is'} {what.houses} {colour} {home}", *has, lacking) if part
    )
    return [caption(what), short, longer, turned[0].upper() + turned[1:] + ".", whole + "."]
