"""Pictures for a survey's report: overviews of whole rasters, and single windows."""

from collections.abc import Sequence
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
