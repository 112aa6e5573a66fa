"""`negah attack area`: how far small changes move square metres."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from negah.cli import show
from negah.cli.attack import Radius


@dataclass(kw_only=True)
class AttackArea(show.Verb):
    """Say how far changes of a few grey levels can move the area that a survey measures.

    Windows of the pictures are changed so that their panel area becomes as small, and as large, as can be; then they
    are measured as a survey does. Beside it stands random noise of the same size. What is reached is no bound: another
    search may go further.

    Exit status 3: done, but some pictures could not be read.

    Example:
        negah attack area town.tif --images 50
        negah attack area tiles/ --gsd 0.3 --calibration calibration.json --eps 1/255 2/255
    """

    paths: Positional[Annotated[tuple[str, ...], arg(metavar="PATH...")]]
    """Pictures, rasters, folders and archives of them, as for `negah survey`."""
    model: Annotated[str, arg(metavar="MODEL")] = "negah/aerial-tiny"
    """A detector's file or bundled name."""
    gsd: Annotated[float | None, arg(metavar="METRES")] = None
    """Metres per pixel of pictures that do not say."""
    calibration: Annotated[Path | None, arg(metavar="FILE")] = None
    """Of `negah calibrate`; then radii are whole grey levels, k/255."""
    eps: Annotated[tuple[Radius, ...], arg(metavar="E...")] = (1 / 255, 2 / 255)
    """Radii, where a pixel's range is 1."""
    images: Annotated[int, arg(metavar="N")] = 100
    """At most so many windows: those with panels first, in random order."""
    steps: Annotated[int, arg(metavar="N")] = 20
    """Of each search."""
    seed: int = 0
    """Of the windows and of the noise."""

    def run(self) -> int:
        """Attack, and print the sums."""
        from negah.errors import InputError
        from negah.runs.attack_area import attack_areas

        for name, value in (("images", self.images), ("steps", self.steps)):
            if value < 1:
                raise InputError(f"--{name} {value}: give 1 or more")
        with show.Bars(quiet=self.json) as bars:
            result = attack_areas(
                self.paths, model=self.model, gsd_m=self.gsd, calibration=self.calibration, eps=self.eps,
                images=self.images, steps=self.steps, seed=self.seed, progress=bars,
            )  # fmt: skip
        status = 3 if result.failures else 0
        if self.json:
            show.as_json({"status": "some inputs failed" if status else "complete", **vars(result)})
            return status
        rows = [("0", f"{result.before:,.1f}", f"{result.before:,.1f}", "", "")]
        for row in result.rows:
            noise = f"{row['noise_lowest']:,.1f} to {row['noise_highest']:,.1f}"
            shown = f"{row['eps'] * 255:.3g}/255", f"{row['lowest']:,.1f}", f"{row['highest']:,.1f}"
            rows.append((*shown, noise, f"{row['filled']:.0f} of {result.windows - result.with_panels}"))
        header = ("eps", "lowest m2", "highest m2", "by noise", "empty windows filled")
        title = f"{result.windows} windows, {result.with_panels} with panels: their area"
        show.table(rows, header=header, title=f"{title} (drawn {result.drawn})")
        show.failures([(f"left out {name}", why) for name, why in result.failures], more="more pictures were left out")
        return status
