"""`render`: one scene as arrays, with its truth."""

import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image

from negah.errors import InputError
from negah.images.scenes.modules import ModuleArray, as_multi
from negah.images.scenes.paint import Camera, Window, develop, paint, subdivision
from negah.images.scenes.sketch import Sketch
from negah.images.scenes.town import District, Town, mix


@dataclass(frozen=True)
class Panel:
    """One module array as far as it lies in the scene.

    `polygon` is in metres from the upper left corner of the scene, x right and y down, clipped to it.
    """

    polygon: shapely.MultiPolygon
    plan_area_m2: float
    module_area_m2: float
    tilt_deg: float
    azimuth_deg: float
    modules: int  # whose middle lies in the scene
    mount: str


@dataclass(frozen=True)
class Scene:
    """A picture with its truth; `mask` is the part of each pixel that is module, so sum(mask) gsd_m^2 is an area."""

    image: NDArray[np.uint8]  # [h, w, 3]
    mask: NDArray[np.float32]  # [h, w]
    gsd_m: float
    panels: list[Panel]
    caption: str
    objects: dict[str, int]

    @property
    def plan_area_m2(self) -> float:
        """Square metres of panels seen from above."""
        return sum(panel.plan_area_m2 for panel in self.panels)


def render(
    size_px: int | tuple[int, int],
    gsd_m: float,
    *,
    seed: int,
    panels: Literal["random", "some", "none"] = "random",
) -> Scene:
    """A random aerial scene of `size_px` (or height, width) pixels of `gsd_m` metres, the same for the same arguments.

    `panels`: "some" has at least one array (2 m2 or more of it) in the picture, "none" has none, "random" is either.
    Raises InputError for a size outside 1..8192 px or a gsd_m outside 0.05..3 m.

    Examples:
        >>> scene = render(104, 0.3, seed=7, panels="some")
        >>> scene.image.shape, scene.image.dtype.name, scene.mask.shape
        ((104, 104, 3), 'uint8', (104, 104))
        >>> f"{scene.plan_area_m2:.1f} m2, by the mask {scene.mask.sum() * 0.3**2:.1f}"
        '19.3 m2, by the mask 19.3'
    """
    height, width = (size_px, size_px) if isinstance(size_px, int) else size_px
    check(height, width, gsd_m)
    if panels not in ("random", "some", "none"):
        raise InputError(f'panels must be "random", "some" or "none", not {panels!r}')
    rng = Random(mix(seed, 0x5CE7E))
    wanted = panels == "some" or (panels == "random" and rng.random() < 0.5)
    camera = Camera.draw(rng)
    for _ in range(50):
        town, x, y = viewpoint(rng, wanted)
        window = Window(x - width * gsd_m / 2, y - height * gsd_m / 2, width, height, gsd_m)
        wide = window.grown(camera.reach)
        sketch = town.sketch(wide.bounds(), reach=8.0)
        if not wanted:
            sketch.arrays.clear()
        found = truth(sketch.arrays, window)
        if not wanted or sum(panel.plan_area_m2 for panel in found) >= 2:
            break
    image, mask = photograph(sketch, window, camera, np.random.default_rng(mix(seed, 1)))
    objects = count(sketch, window, found)
    return Scene(image, mask, gsd_m, found, describe(objects, town, found), objects)


def photograph(
    sketch: Sketch, window: Window, camera: Camera, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """What a camera makes of a window, [h, w, 3], and the part of each pixel that is module, [h, w]."""
    wide = window.grown(camera.reach)
    grain = rng.standard_normal((wide.height, wide.width, 3), dtype=np.float32)
    radiance, cover = paint(sketch, wide, camera.shadow, subdivision(window.gsd_m))
    cut = slice(camera.reach, -camera.reach)
    exposure = (
        camera.level / float(radiance.mean())
    ) ** 0.7  # automatic, as far as a flight's settings follow one scene
    image = develop(radiance, camera, grain, exposure)[cut, cut]
    image = jpeg(image, camera.jpeg) if camera.jpeg else np.ascontiguousarray(image)
    return image, np.ascontiguousarray(cover[cut, cut])


def viewpoint(rng: Random, wanted: bool) -> tuple[Town, float, float]:
    """A town and a point in it to look at; where panels are wanted, a point near some."""
    districts: Sequence[District] = ("residential", "commercial", "field", "park")
    district = rng.choices(districts, (0.70, 0.17, 0.08, 0.05))[0]
    angle = rng.choice([0.0, math.pi / 2, rng.uniform(0, 6.28), rng.uniform(0, 6.28)]) + rng.gauss(0, 0.03)
    town = Town(rng.getrandbits(48), adoption=1.0 if wanted else 0.0, district=district, angle=angle)
    block = town.block(rng.randint(-9, 9), rng.randint(-9, 9))
    lot = rng.choice(block.lots)
    u, v = (lot.u0 + lot.u1) / 2, (lot.v0 + lot.v1) / 2
    if wanted:
        alone = Sketch(town.sun, view=(math.inf, math.inf, math.inf, math.inf))  # sees buildings and modules only
        town.draw(alone, block, lot)
        if alone.arrays:
            centres = rng.choice(alone.arrays).centres()
            x, y = centres[rng.randrange(len(centres))].tolist()
            return town, x + rng.gauss(0, 4.5), y + rng.gauss(0, 4.5)
    if district != "residential" or rng.random() < 0.25:
        u, v = rng.uniform(block.u0 - 8, block.u1 + 8), rng.uniform(block.v0 - 8, block.v1 + 8)
    x, y = town.out(u, v)
    return town, x + rng.gauss(0, 4), y + rng.gauss(0, 4)


def check(height: int, width: int, gsd_m: float) -> None:
    """Refuse sizes that cannot be painted and ground sizes at which the scenes mean nothing."""
    if not (1 <= height <= 8192 and 1 <= width <= 8192):
        raise InputError(f"a scene is 1 to 8192 px a side, not {height} x {width}: write_town makes larger ones")
    if not 0.05 <= gsd_m <= 3:
        raise InputError(f"a scene has a ground sampling distance of 0.05 to 3 m, not {gsd_m}")


def truth(arrays: Sequence[ModuleArray], window: Window) -> list[Panel]:
    """The arrays that lie in a window, clipped to it and in its coordinates."""
    x0, y0, x1, y1 = window.bounds()
    found = []
    for array in arrays:
        ax0, ay0, ax1, ay1 = array.bounds
        if ax0 >= x1 or ay0 >= y1 or ax1 <= x0 or ay1 <= y0:
            continue
        polygon, centres, area = array.polygon(), array.centres(), array.plan_area
        modules = array.modules
        if ax0 < x0 or ay0 < y0 or ax1 > x1 or ay1 > y1:
            polygon = as_multi(shapely.intersection(polygon, shapely.box(x0, y0, x1, y1)))
            area = polygon.area
            modules = int(((centres > (x0, y0)) & (centres < (x1, y1))).all(1).sum())
        if area <= 0:
            continue
        moved = shapely.transform(polygon, lambda c: c - (x0, y0))
        tilt = math.cos(math.radians(array.tilt_deg))
        found.append(Panel(moved, area, area / tilt, array.tilt_deg, array.azimuth_deg, modules, array.mount))
    return found


def jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """The image as a JPEG file would show it."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def count(sketch: Sketch, window: Window, panels: Sequence[Panel]) -> dict[str, int]:
    """How many things of a kind have their middle in the window."""
    x0, y0, x1, y1 = window.bounds()
    here = Counter(name for name, x, y in sketch.sites if x0 <= x < x1 and y0 <= y < y1)
    if panels:
        here["solar array"] = len(panels)
        here["solar module"] = sum(panel.modules for panel in panels)
    return dict(sorted(here.items()))


def describe(objects: dict[str, int], town: Town, panels: Sequence[Panel]) -> str:
    """A caption from what is in the scene."""
    place = {
        "residential": "a residential street",
        "commercial": "a commercial block",
        "field": "farmland",
        "park": "a park",
    }
    names = [
        f"{number(n)} {name if n == 1 else plural(name)}"
        for name, n in objects.items()
        if not name.startswith("solar") and name not in ("park", "field")
    ]
    text = f"An aerial image of {place[town.district or 'residential']}"
    if names:
        text += " with " + listed(names)
    if not panels:
        return text + "; no solar panels."
    area = sum(panel.plan_area_m2 for panel in panels)
    mounts = sorted({panel.mount for panel in panels})
    where = {"roof": "on the roofs", "rack": "on racks on flat roofs", "ground": "on the ground"}
    return text + f"; solar panels {listed([where[m] for m in mounts])}, {area:.0f} m2 in all."


def number(n: int) -> str:
    return ["no", "one", "two", "three", "four"][n] if n < 5 else "several" if n < 10 else "many"


def plural(name: str) -> str:
    return name + "es" if name.endswith(("h", "s")) else name + "s"


def listed(names: Sequence[str], word: str = "and") -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" {word} " + names[-1]
