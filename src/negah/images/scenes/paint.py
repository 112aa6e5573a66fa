"""From a sketch in metres to pixels: surfaces, textures, modules, shadows, and then the camera.

A window is painted on a canvas a few times finer than the pixels (each canvas cell holds the number of the ink on top
of it), coloured in one gather, and averaged down.  The camera comes last: optical blur, colour grading and haze, noise.
Textures are periodic tables looked up by world coordinates, so that neighbouring windows fit together.
"""

import math
from functools import lru_cache
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from negah.images.scenes.modules import ModuleArray
from negah.images.scenes.sketch import FLAT, LOW, ROOF_TOP, Sketch

Float = NDArray[np.float32]

TEXTURE_PX = 512
TEXTURE_M = 0.1  # one texture cell; a table repeats after 51 m


class Window(NamedTuple):
    """A window on the world: its upper left corner in metres, its size in pixels, metres per pixel."""

    x: float
    y: float
    width: int
    height: int
    gsd_m: float

    def grown(self, pixels: int) -> "Window":
        """The window with a margin of so many pixels."""
        m = pixels * self.gsd_m
        return Window(self.x - m, self.y - m, self.width + 2 * pixels, self.height + 2 * pixels, self.gsd_m)

    def bounds(self, margin: float = 0.0) -> tuple[float, float, float, float]:
        """min x, min y, max x, max y in metres."""
        right, bottom = self.x + self.width * self.gsd_m, self.y + self.height * self.gsd_m
        return self.x - margin, self.y - margin, right + margin, bottom + margin


class Camera(NamedTuple):
    """What turns radiance into the picture of one flight."""

    blur_px: float  # standard deviation of the optics and the resampling
    sharpen: float  # strength of the unsharp mask that many providers apply
    gain: tuple[float, float, float]
    level: float  # mean grey level that the exposure aims at
    gamma: float
    contrast: float
    saturation: float
    black: tuple[float, float, float]  # path radiance: what a black surface shows, 0..255
    haze: float  # how much of it
    noise: float  # standard deviation, grey levels
    noise_grain_px: float  # correlation length
    chroma_noise: float  # part of it that differs between channels
    shadow: tuple[float, float, float]  # what remains of the light in shadow
    jpeg: int | None  # quality, or None

    @staticmethod
    def draw(rng: Random) -> "Camera":
        """A camera, a provider and a day."""
        warm, green = rng.gauss(0, 0.04), rng.gauss(0, 0.025)
        depth = rng.uniform(0.28, 0.55)
        return Camera(
            blur_px=rng.uniform(0.45, 1.0),
            sharpen=rng.choice([0.0, 0.0, rng.uniform(0.2, 0.9)]),
            gain=(1 + warm, 1 + green, 1 - warm),
            level=rng.uniform(92, 148),
            gamma=math.exp(rng.gauss(0, 0.12)),
            contrast=rng.uniform(0.8, 1.15),
            saturation=min(1.35, math.exp(rng.gauss(-0.2, 0.28))),
            black=(rng.uniform(35, 60), rng.uniform(55, 80), rng.uniform(60, 90)),
            haze=rng.choice([rng.uniform(0.25, 0.7), min(0.6, rng.expovariate(6.0))]),
            noise=rng.choice([rng.uniform(0.3, 1.5), rng.uniform(0.3, 3.0), rng.uniform(1.0, 4.5)]),
            noise_grain_px=rng.choice([0.0, rng.uniform(0.4, 0.9)]),
            chroma_noise=rng.uniform(0.1, 0.6),
            shadow=(depth * 0.95, depth, depth * rng.uniform(1.05, 1.3)),
            jpeg=rng.choice([None, rng.randint(55, 95)]),
        )

    @property
    def reach(self) -> int:
        """Margin in pixels that the blur looks at."""
        return math.ceil(4 * self.blur_px) + 3


def subdivision(gsd_m: float) -> int:
    """Canvas cells along a pixel."""
    return max(2, min(8, round(gsd_m / 0.15)))


def paint(sketch: Sketch, window: Window, shadow: tuple[float, float, float], cells: int) -> tuple[Float, Float]:
    """Surfaces seen by a perfect camera: colours 0..255 [h, w, 3], and the part of each pixel that is module [h, w]."""
    side_m = window.gsd_m / cells
    w, h = window.width * cells, window.height * cells
    ids, shade = rasterise(sketch, window, side_m, w, h)
    colour = coloured(sketch, ids, window, side_m)
    cover = np.zeros((h, w), np.float32)
    for array in sketch.arrays:
        place_array(array, colour, cover, window, side_m)
    ramp = 1 - np.linspace(0, 1, 256, dtype=np.float32)[:, None] * (1 - np.asarray(shadow, np.float32))
    colour *= ramp.take(shade, 0)
    return shrink(colour, cells), np.clip(shrink(cover, cells), 0, 1)


def rasterise(
    sketch: Sketch, window: Window, side_m: float, w: int, h: int
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Number of the ink on top of each canvas cell, and how deep it lies in shadow (0..255)."""
    ids, shade = Image.new("I", (w, h)), Image.new("L", (w, h))
    on_ids, on_shade = ImageDraw.Draw(ids), ImageDraw.Draw(shade)
    shapes = sorted(sketch.shapes, key=lambda shape: shape[0])
    if not shapes:
        return np.asarray(ids), np.asarray(shade)
    flat = np.array([p for shape in shapes for p in shape[3]], np.float64).reshape(-1, 2)
    # Pillow fills the cells from the first to the last corner, both included.  Half a cell less centres that; small
    # things draw in by another half on each side, to keep their size, where larger ones must not part from neighbours.
    flat = (flat - (window.x, window.y)) / side_m
    sizes = np.array([len(shape[3]) for shape in shapes])
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    small = np.isin([shape[0] for shape in shapes], (FLAT, LOW, ROOF_TOP))
    middle = np.repeat(np.add.reduceat(flat, first) / sizes[:, None], sizes, 0)
    flat -= 0.5 * np.sign(flat - middle) * np.repeat(small, sizes)[:, None]
    cells = np.rint(flat - 0.5).astype(np.int64).ravel().tolist()
    start = 0
    for _, ink, lit, points in shapes:
        stop = start + 2 * len(points)
        outline = cells[start:stop]
        start = stop
        xs, ys = outline[::2], outline[1::2]
        if max(xs) < 0 or max(ys) < 0 or min(xs) >= w or min(ys) >= h:
            continue
        if ink >= 0:
            on_ids.polygon(outline, fill=ink)
        if ink < 0 or lit:
            on_shade.polygon(outline, fill=255 if ink < 0 else 0)
    return np.asarray(ids), np.asarray(shade)


def coloured(sketch: Sketch, ids: NDArray[np.int32], window: Window, side_m: float) -> Float:
    """Colour of every canvas cell, textures included; [h, w, 3]."""
    inks = sketch.inks
    h, w = ids.shape
    ids = ids.ravel()
    kind = np.array([ink.texture for ink in inks], np.intp)
    # One row per ink: colour, strength of the texture, change of hue; so that one gather brings all of it.
    table = np.zeros((len(inks), 8), np.float32)
    table[:, :3] = [ink.colour for ink in inks]
    table[:, 3] = [ink.amount for ink in inks]
    table[:, 4:7] = HUE_SHIFT[kind] * table[:, 3:4]
    wave = np.array([(ink.wave_x, ink.wave_y, ink.wave) for ink in inks], np.float32)
    # A wave finer than two cells of the canvas cannot be drawn and would alias.
    wave[np.hypot(wave[:, 0], wave[:, 1]) * side_m > math.pi * 0.9, 2] = 0
    ys = window.y + (np.arange(h) + 0.5) * side_m
    xs = window.x + (np.arange(w) + 0.5) * side_m
    patterns, hue = textures()
    iy, ix = (np.floor(t / TEXTURE_M).astype(np.int32) % TEXTURE_PX for t in (ys, xs))
    at = ((iy * TEXTURE_PX)[:, None] + ix[None]).ravel()
    slow = (((iy // 2) * TEXTURE_PX)[:, None] + (ix // 2)[None]).ravel()
    rows = table.take(ids, 0)
    gain = patterns.take((kind * TEXTURE_PX**2).astype(np.int32).take(ids) + at)
    gain *= rows[:, 3]
    gain += 1
    if wave[:, 2].any():
        waved = np.flatnonzero((wave[:, 2] != 0).take(ids))
        k = wave.take(ids[waved], 0)
        gain[waved] += k[:, 2] * np.sin(
            k[:, 0] * xs.astype(np.float32)[waved % w] + k[:, 1] * ys.astype(np.float32)[waved // w]
        )
    colour = rows[:, :3] * gain[:, None]
    colour += rows[:, 4:7] * hue.take(slow)[:, None]
    return colour.reshape(h, w, 3)


def place_array(array: ModuleArray, colour: Float, cover: Float, window: Window, side_m: float) -> None:
    """Paint a module array and add up what it covers, in place."""
    x0, y0, x1, y1 = array.bounds
    h, w = cover.shape
    c0, c1 = max(0, math.floor((x0 - window.x) / side_m) - 2), min(w, math.ceil((x1 - window.x) / side_m) + 2)
    r0, r1 = max(0, math.floor((y0 - window.y) / side_m) - 2), min(h, math.ceil((y1 - window.y) / side_m) + 2)
    if c0 >= c1 or r0 >= r1:
        return
    dx = (window.x - array.x + (np.arange(c0, c1) + 0.5) * side_m)[None]
    dy = (window.y - array.y + (np.arange(r0, r1) + 0.5) * side_m)[:, None]
    u = (dx * array.u[0] + dy * array.u[1]).astype(np.float32)
    v = (dx * array.v[0] + dy * array.v[1]).astype(np.float32)
    part = array.coverage(u, v, side_m)
    cover[r0:r1, c0:c1] += part
    patch = colour[r0:r1, c0:c1]
    patch += part[..., None] * (array.colours(u, v, side_m) - patch)


def shrink(image: Float, cells: int) -> Float:
    """Mean over cells x cells squares."""
    # Sums of strided slices: several times faster than a mean over two axes of a reshaped array.
    rows = image[::cells].copy()
    for k in range(1, cells):
        rows += image[k::cells]
    out = rows[:, ::cells].copy()
    for k in range(1, cells):
        out += rows[:, k::cells]
    out *= np.float32(1 / cells**2)
    return out


def develop(radiance: Float, camera: Camera, noise: Float, exposure: float) -> NDArray[np.uint8]:
    """The picture the camera makes at an exposure (a factor); `noise` is white, of unit variance, [h, w, 3]."""
    image = ndimage.gaussian_filter(radiance, (camera.blur_px, camera.blur_px, 0), truncate=3.0)
    if camera.sharpen:
        image += camera.sharpen * (image - ndimage.gaussian_filter(image, (1.2, 1.2, 0), truncate=2.5))
    image *= np.asarray(camera.gain, np.float32) * np.float32(exposure / 255)
    np.clip(image, 0, 1.2, out=image)
    image **= camera.gamma
    grey = image.mean(-1, keepdims=True)
    image = grey + camera.saturation * (image - grey)
    image = (0.5 + camera.contrast * (image - 0.5)) * 255
    image += camera.haze * (np.asarray(camera.black, np.float32) - image) * (1.15 - np.clip(grey, 0, 1))
    grain = noise
    if camera.noise_grain_px:
        s = camera.noise_grain_px
        grain = ndimage.gaussian_filter(noise, (s, s, 0), truncate=2.5) * np.float32(1 + 2.5 * s)
    grain = grain[..., :1] * (1 - camera.chroma_noise) + grain * camera.chroma_noise
    image += camera.noise * grain
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


# How a slow change of hue moves the colour, per texture and unit of strength.
HUE_SHIFT = np.array(
    [[0, 0, 0], [70, 20, 10], [30, 12, 4], [6, 4, 2], [8, 6, 2], [30, 24, 16], [4, 10, 10], [20, 10, 5]], np.float32
)


@lru_cache(maxsize=1)
def textures() -> tuple[Float, Float]:
    """Periodic tables of mean 0 and deviation 1: one per texture, [8, px, px], and a slow one for hue, [px, px]."""
    rng = np.random.default_rng(20240501)  # a fixed pattern, like the grain of a material; scenes choose where they lie
    freq = np.fft.rfftfreq(TEXTURE_PX)[None] ** 2 + np.fft.fftfreq(TEXTURE_PX)[:, None] ** 2
    freq = np.sqrt(freq) / TEXTURE_M  # cycles per metre
    freq[0, 0] = np.inf

    def field(*octaves: tuple[float, float]) -> Float:
        """Sum of band-limited noises given as (wavelength in m, weight)."""
        out = np.zeros((TEXTURE_PX, TEXTURE_PX))
        for wavelength, weight in octaves:
            spectrum = np.fft.rfft2(rng.standard_normal((TEXTURE_PX, TEXTURE_PX)))
            band = np.exp(-0.5 * (np.log(freq * wavelength) / 0.5) ** 2)
            layer = np.fft.irfft2(spectrum * band, s=out.shape)
            out += weight * layer / layer.std()
        return ((out - out.mean()) / out.std()).astype(np.float32)

    smooth = field((0.3, 1.0), (6, 0.6))
    grass = field((0.25, 0.4), (1.0, 0.5), (5, 0.8), (15, 0.6))
    leaf = field((0.35, 0.5), (0.8, 1.0), (1.8, 0.7))
    grain = field((0.25, 0.8), (0.6, 0.5), (3, 0.5), (9, 0.4))
    stain = field((0.3, 0.5), (1.5, 0.3), (5, 0.4), (14, 0.6))
    soil = field((0.3, 0.6), (1.2, 0.7), (4, 0.7), (12, 0.6))
    water = field((1.0, 0.3), (5, 0.6), (15, 0.7))
    clutter = np.sign(field((1.2, 1.0), (2.5, 0.8))) * field((0.8, 1.0)) ** 2
    clutter = (clutter / clutter.std()).astype(np.float32)
    return np.stack([smooth, grass, leaf, grain, stain, soil, water, clutter]), field((12, 1.0), (25, 1.0))
