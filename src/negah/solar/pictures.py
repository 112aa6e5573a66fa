"""Pictures for a survey's report: overviews of whole rasters, and single windows."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from negah.errors import NegahError
from negah.images.overview import overview, within
from negah.images.sources import Source
from negah.progress import Progress
from negah.solar.ledger import Window
from negah.solar.outputs import Drawn, read_heat
from negah.solar.plan import Plan, PlannedSource
from negah.solar.report import Find, Overview

MAPS = 12  # overviews in the report: each reads its source once more
MAP_PIXELS = 1400  # along an overview's longer side
HEAT_CELLS = 700  # along the longer side of the heat map that the report shows
SHEET, SHEET_PX = 150, 420  # images on a contact sheet, and the most pixels along one
SHAPE, GAP = 1.25, 4  # width of a contact sheet over its height; pixels between its images


def overviews(
    plan: Plan,
    sources: Sequence[Source],
    drawn: dict[int, Drawn],
    heatmaps: dict[int, Path],
    *,
    progress: Progress,
) -> list[Overview]:
    """Maps of the MAPS sources with most panels.

    drawn: panels of the sources with a heat map, by position.  heatmaps: these maps.
    """

    def area(source: PlannedSource) -> float:
        return float(drawn[source.position].area_m2.sum())

    shown = [s for s in plan.sources if s.position in heatmaps]
    shown = sorted(shown, key=lambda s: (-area(s), s.position))[:MAPS]
    pictures = []
    for count, source in enumerate(sorted(shown, key=lambda s: s.position)):
        progress("report", count, len(shown))
        try:
            with sources[source.position].open() as raster:
                rgb, valid = overview(raster, within(raster, MAP_PIXELS))
        except (NegahError, OSError):
            continue  # it is among the failures already, or it went away since it was scored
        image = np.where(valid[..., None], rgb, 255)
        scale = image.shape[1] / source.width, image.shape[0] / source.height
        outlines, labels = [], []
        for shape, m2, probability in zip(*drawn[source.position], strict=True):
            for polygon in getattr(shape, "geoms", [shape]):
                outlines.append(np.asarray(polygon.exterior.coords)[:-1, :2] * scale)
                labels.append(f"{m2:,.0f} m², probability {probability:.2f}")
        pictures.append(Overview(
            name=source.name,
            image=image,
            heat=read_heat(heatmaps[source.position], band=2, longest=HEAT_CELLS),
            outlines=outlines,
            labels=labels,
            panels=len(drawn[source.position].outlines),
            metres_per_px=source.gsd_m / scale[0],
        ))  # fmt: skip
    return pictures


def contact_sheet(
    plan: Plan, sources: Sequence[Source], drawn: Mapping[int, Drawn], probability: Callable[[PlannedSource], float]
) -> Overview | None:
    """One picture of the SHEET images with most panels that are no larger than a window; None where there is none.

    drawn: panels of these images, by position.  probability: that there are panels in one; NaN where it has none.
    """
    shown = [s for s in plan.sources if s.position in drawn]
    shown = sorted(shown, key=lambda s: (-drawn[s.position].area_m2.sum(), s.position))[:SHEET]
    if not shown:
        return None
    columns = math.ceil(math.sqrt(len(shown) * SHAPE))
    side = max(1, min(MAP_PIXELS // columns - GAP, SHEET_PX))
    image = np.full((-(-len(shown) // columns) * (side + GAP) - GAP, columns * (side + GAP) - GAP, 3), 255, np.uint8)
    outlines, labels, places, count = [], [], [], 0
    for k, source in enumerate(shown):
        top, left = (part * (side + GAP) for part in divmod(k, columns))
        scale = side / max(source.width, source.height)
        height, width = max(1, round(source.height * scale)), max(1, round(source.width * scale))
        try:
            with sources[source.position].open() as raster:
                rgb, valid = raster.read(source.layout.box(0), (height, width))
        except (NegahError, OSError):
            rgb, valid = np.full((height, width, 3), 128, np.uint8), np.ones((height, width), bool)
        image[top : top + height, left : left + width] = np.where(valid[..., None], rgb, 255)
        found = drawn[source.position]
        for shape, m2, chance in zip(*found, strict=True):
            for polygon in getattr(shape, "geoms", [shape]):
                outlines.append(np.asarray(polygon.exterior.coords)[:-1, :2] * scale + (left, top))
                labels.append(f"{source.name}: {m2:,.0f} m², probability {chance:.2f}")
        told = "not looked at" if math.isnan(p := probability(source)) else f"probability {p:.2f}"
        places.append(((left, top, width, height), f"{source.name}: {found.area_m2.sum():,.0f} m², {told}"))
        count += len(found.outlines)
    every = sum(s.position in drawn for s in plan.sources)
    which = f"{len(shown):,} of {every:,} images" if every > len(shown) else f"{every:,} images"
    sizes = {(s.width, s.height, s.gsd_m) for s in shown}
    return Overview(
        name=shown[0].name if every == 1 else f"Contact sheet of {which}, those with most panels first",
        image=image, heat=None, outlines=outlines, labels=labels, panels=count, places=places,
        metres_per_px=shown[0].gsd_m * max(shown[0].width, shown[0].height) / side if len(sizes) == 1 else None,
    )  # fmt: skip


def finds(plan: Plan, sources: Sequence[Source], windows: list[Window]) -> list[Find]:
    """Windows as the gallery shows them."""
    planned = {s.position: s for s in plan.sources}
    shown = []
    for window in windows:
        source = planned[window.source]
        box = source.layout.box(window.id - source.first)
        try:
            with sources[source.position].open() as raster:
                rgb, _ = raster.read(box, source.layout.shape)
        except (NegahError, OSError):
            continue  # the gallery is a courtesy; the window's figures are in tiles.csv
        cells = source.layout.y.cells, source.layout.x.cells
        place = "" if len(source.layout) == 1 else f", column {box.col}, row {box.row}"
        shown.append(Find(
            image=rgb,
            fraction=window.fractions(cells[0] * cells[1]).reshape(cells),
            caption=f"{source.name}{place}: {window.area_m2:,.1f} m²",
            probability=float(window.probability or 0),
        ))  # fmt: skip
    return shown
