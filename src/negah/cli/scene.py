"""`negah scene`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from negah.cli import show


@dataclass
class Scene(show.Verb):
    """Draw a town as a GeoTIFF in which every panel is known, to try the survey on.

    Beside town.tif come the truth as a raster (town_mask.tif: the fraction of each pixel that is panel) and as polygons
    with areas in m2 (town_panels.gpkg). The same seed draws the same town.

    Example:
        negah scene town.tif
        negah scene big.tif --size-px 20000 --gsd 0.15 --seed 7
    """

    path: Annotated[Path, tyro.conf.Positional]
    """GeoTIFF to write."""
    size_px: Annotated[int, tyro.conf.arg(metavar="PX")] = 2000
    """Side of the square picture in pixels."""
    gsd: Annotated[float, tyro.conf.arg(metavar="M")] = 0.3
    """Side of a pixel on the ground in metres."""
    seed: int = 0
    """Which town to draw."""
    overwrite: bool = False
    """Draw over a town that is there already."""

    def run(self) -> int:
        from negah.runs.scene import draw

        with show.progress(quiet=self.json) as bar:
            truth = draw(
                self.path, size_px=self.size_px, gsd_m=self.gsd, seed=self.seed, overwrite=self.overwrite,
                progress=show.stages(bar, quiet=self.json),
            )  # fmt: skip
        if self.json:
            show.as_json(truth)
            return 0
        show.table(
            [
                ("picture", truth.image),
                ("truth, raster", truth.mask),
                ("truth, polygons", truth.panels),
                ("side", f"{self.size_px:,} px = {self.size_px * self.gsd:,.0f} m"),
                ("arrays of panels", f"{truth.arrays:,}, {truth.plan_area_m2:,.0f} m² seen from above"),
            ],
            title="A generated town",
        )
        return 0
