"""What a survey takes up, and what it refuses before it begins: sources, folder, polygons, an earlier survey."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import geopandas
import shapely

from negah.errors import InputError, OutputError
from negah.images.raster import DISAGREE
from negah.images.sources import MASK, Source, find_sources
from negah.probe.detector import Detector
from negah.runs.telling import counted
from negah.solar.ledger import FILE as LEDGER
from negah.solar.ledger import Input, Ledger
from negah.solar.outputs import NAMES, discard
from negah.solar.plan import Plan
from negah.solar.regions import Region


def taken(paths: Sequence[str], out: Path, *, root: Path | None = None) -> tuple[list[Source], list[str]]:
    """The pictures that a survey of these paths looks at, and what is to be said of those that it leaves out.

    Left out are what surveys made, and masks in folders beside their pictures.
    """
    sources = [source for source in find_sources(paths, root=root) if not _made_by_a_survey(source, out)]
    if not sources:
        raise InputError(f"nothing to survey: all images found were made by surveys, in {out} or another output folder")
    masks = _masks(sources, paths)
    if not masks:
        return sources, []
    told = f"Left out: {counted(len(masks), 'mask')} of pictures beside them (first: {masks[0].name}). "
    left = {source.name for source in masks}
    kept = [source for source in sources if source.name not in left]
    return kept, [f"{told}Name a mask itself to survey it."]


def said_themselves(plan: Plan, gsd_m: float | None) -> list[str]:
    """Says that images have other pixels than --gsd does; nothing where none has."""
    apart = [s for s in plan.sources if gsd_m and s.crs and abs(s.gsd_m / gsd_m - 1) > DISAGREE]
    if not apart:
        return []
    return [
        f"--gsd {gsd_m:g} was not used for {counted(len(apart), 'image')} that say their pixel size themselves (first: "
        f"{apart[0].name}, {apart[0].gsd_m:.3g} m)."
    ]


def same_kind(detectors: Sequence[Detector]) -> Detector:
    """The first of detectors that can be averaged and are ready to be used; InputError where they are not."""
    if not detectors:
        raise InputError("a survey needs at least one detector")
    kinds = {(d.patch, d.info.window_px, d.info.gsd_m) for d in detectors}
    if len(kinds) > 1:
        raise InputError("detectors that are averaged must have the same patch, window and ground sampling distance")
    if any(d.training for d in detectors):
        raise InputError("a detector is in training mode: call .eval() on it first")
    return detectors[0]


def another(out: Path, what: str) -> OutputError:
    """What is raised where a folder holds another survey.  what: in which they differ."""
    return OutputError(f"{out} holds another survey ({what}): choose another --out, or --overwrite to discard it")


def try_again(out: Path, ledger: Ledger, inputs: Sequence[Input], plan_of: Callable[..., Plan]) -> Plan:
    """The recorded plan with another attempt at what failed, which is recorded too.  plan_of: `make_plan`, but `only`.

    Raises OutputError where an input of which some windows were read has been replaced by one with other windows: their
    numbers are taken.
    """
    plan = ledger.plan()
    planned = {source.position: source for source in plan.sources}
    found = plan_of(only={failure.position for failure in plan.failures}.union(ledger.changed(inputs)))
    for failure in found.failures:
        if failure.position in planned:
            raise another(out, f"the input {failure.source} has changed since and fails now: {failure.reason}")
    joining, repaired, first = [], [], plan.windows
    for source in found.sources:
        old = planned.get(source.position)
        if old is None:
            joining.append(replace(source, first=first, opens_chunk=not joining))
            first += len(source.layout)
        elif replace(source, first=old.first, opens_chunk=old.opens_chunk) == old:
            repaired.append(old)
        else:
            raise another(out, f"the input {source.name} has changed since, in size or place")
    ledger.take_up(inputs, Plan(joining, found.failures), repaired)
    return ledger.plan()


def check_region(plan: Plan, region: Region | None) -> None:
    """Polygons that lie elsewhere would make a map without panels, which looks like an answer."""
    if region is None:
        return
    for source in plan.sources:
        extent = shapely.box(0, 0, source.width, source.height)
        if source.crs is not None and region.in_pixels(source.crs, source.affine).intersects(extent):
            return
    raise InputError("--aoi touches none of the images: is it the right file, and does it say the right CRS?")


def check_parcels(plan: Plan, parcels: geopandas.GeoDataFrame | None) -> None:
    """Parcels can be joined only to panels that lie somewhere on Earth.  Raises InputError where none do."""
    if parcels is not None and all(source.crs is None for source in plan.sources):
        raise InputError("--parcels needs images with a CRS, and none of these has one: leave it out")


def prepare_folder(out: Path, *, overwrite: bool) -> None:
    """Make sure that `out` may be written to; nothing is created yet."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"--out {out} is a file: give a folder")
    if out.is_dir() and not os.access(out, os.W_OK | os.X_OK):
        raise OutputError(f"the folder {out} may not be written to: choose another --out, or change its permissions")
    if overwrite and out.is_dir():
        discard(out)
    if out.is_dir() and not (out / LEDGER).exists():
        if taken := [name for name in NAMES if (out / name).exists()]:
            raise OutputError(
                f"{out} already holds {taken[0]}, and no survey to continue: choose another --out, or --overwrite"
            )


def make_folder(out: Path) -> None:
    """The output folder.  Raises OutputError where it cannot be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {out} cannot be made ({error.strerror}): choose another --out") from error


def _made_by_a_survey(source: Source, out: Path) -> bool:
    """Whether it lies in the output folder of this survey, or is a heat map in that of another."""
    if source.path is None:
        return False
    path = Path(os.path.abspath(source.path))
    if Path(os.path.abspath(out)) in path.parents:
        return True
    if path.parent.name == "heatmaps":
        return (path.parents[1] / LEDGER).exists()
    return path.name == "heatmap.tif" and (path.parent / LEDGER).exists()


def _masks(sources: Sequence[Source], paths: Sequence[str]) -> list[Source]:
    """Those that lie in folders beside pictures of their name, or in masks/ beside images/, and were not named."""
    named = {os.path.abspath(path) for path in paths}
    files = [(source, source.path) for source in sources if source.path and not source.member]
    stems = {path.with_suffix("") for _, path in files}
    beside = (path.parent.name == "masks" and path.parents[1] / "images" / path.stem in stems for _, path in files)
    return [
        source
        for (source, path), in_masks in zip(files, beside, strict=True)
        if os.path.abspath(path) not in named
        and (
            (path.stem.endswith(MASK) and path.parent / path.stem.removesuffix(MASK) in stems)
            or (in_masks and os.path.abspath(path.parent) not in named)
        )
    ]
