"""`negah calibrate`: pictures with masks of their panels in, a calibration of the survey's areas out.

The windows are laid out, read and scored by the survey's own loop, and those with a find are looked at again as a
survey looks at them, so what is calibrated is what a survey measures; the mask says how much panel each cell holds.
"""

import datetime
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pyproj
import torch
from jaxtyping import Int
from numpy import ndarray

from negah import __version__
from negah.errors import InputError, NegahError, OutputError
from negah.images.bands import gdal_settings
from negah.images.sources import MASK, Source, find_sources
from negah.probe.detector import Detector, in_bf16
from negah.probe.splits import NEIGHBOUR_M, location_groups
from negah.progress import Progress, silent
from negah.runs.record import fingerprint_of, hardware, versions
from negah.runs.survey import BATCHES, Precision, uses_bf16
from negah.solar import calibration
from negah.solar.area import HALVES, Known, glances, look_at, shrunk
from negah.solar.calibration import Assessment, Calibration, Seen
from negah.solar.ledger import Input, Ledger, Window
from negah.solar.overlays import examples, sheet
from negah.solar.plan import PlannedSource, make_plan
from negah.solar.regions import apply
from negah.solar.survey import Measure, Scorer, patch_means, score

ZOOM = 2  # of the closer look
CLASSES = 20  # values of a mask up to which they rather count classes than say how much of a pixel is panel
MANY = 5  # places from which their spread says something
PICTURES = 8  # windows that are shown beside a calibration


class Pair(NamedTuple):
    """A picture and the mask of its panels."""

    picture: Source
    mask: Source


@dataclass(frozen=True, kw_only=True)
class Result:
    """A calibration, and what the windows say of it when their places take no part."""

    path: Path
    pictures: Path
    calibration: Calibration
    assessment: Assessment
    notes: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)


def calibrate(
    masks: Path,
    out: Path,
    detector: Detector,
    *,
    region: str = "",
    gsd_m: float | None = None,
    threshold: float | None = None,
    zoom: int = ZOOM,
    from_masks: bool = False,
    distance_m: float = NEIGHBOUR_M,
    precision: Precision = "auto",
    seed: int = 0,
    given: Mapping[str, object] = MappingProxyType({}),
    progress: Progress = silent,
) -> Result:
    """Compare the survey's estimates with masks, and write what corrects them to `out` (JSON).

    Beside it lie some windows as they are looked at, as `OUT-windows.png`.

    masks: a folder with pictures and masks, see `pairs_of`.  region: what it is called.  gsd_m: metres per pixel of
    pictures that do not say.  threshold: of the surveys that will use it; None takes the model's own.  zoom: of the
    closer look, see `negah.solar.area`.  from_masks: read evidence anew from the masks.  distance_m: windows nearer
    than this are of one place; without a CRS each picture is one.  precision: as in a survey.  given: what else was
    asked for.

    Raises InputError where nothing can be calibrated, OutputError where `out` cannot be written.  A mask that does not
    fit its picture is left out and listed.
    """
    started = datetime.datetime.now(datetime.UTC)
    threshold = detector.info.threshold if threshold is None else threshold
    pairs, failures = pairs_of(masks)
    if not out.absolute().parent.is_dir():
        raise OutputError(f"--out {out}: there is no folder {out.absolute().parent}; make it, or choose another")
    seen, notes, more = compare(
        pairs, detector, gsd_m=gsd_m, threshold=threshold, zoom=zoom, outputs=from_masks, distance_m=distance_m,
        precision=precision, progress=progress,
    )  # fmt: skip
    failures += more
    made = calibration.calibrate(
        seen, zoom=zoom, from_masks=from_masks, model=fingerprint_of(detector)[:12], threshold=threshold,
        region=region, seed=seed,
    )  # fmt: skip
    made = replace(made, notes=tuple(notes))
    assessment = calibration.assess(seen, zoom=zoom, from_masks=from_masks, seed=seed)
    about = {
        "negah": __version__,
        "started": started.isoformat(timespec="seconds"),
        "arguments": {
            "masks": str(masks),
            "out": str(out),
            "region": region,
            "gsd_m": gsd_m,
            "threshold": threshold,
            "zoom": zoom,
            "from_masks": from_masks,
            "distance_m": distance_m,
            "precision": precision,
            **given,
        },
        "seed": seed,
        "detector": detector.info.name,
        "when its places take no part": asdict(assessment),
        "versions": versions(),
        "hardware": hardware(next(detector.parameters()).device),
    }
    try:
        calibration.save(made, out, about=about)
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error.strerror or error}): choose another --out") from error
    pictures = out.with_name(f"{out.stem}-windows.png")
    try:
        sheet(examples(seen, made, PICTURES)).save(pictures)
    except OSError as error:
        raise OutputError(f"{pictures} cannot be written ({error.strerror or error}): choose another --out") from error
    return Result(path=out, pictures=pictures, calibration=made, assessment=assessment, notes=notes, failures=failures)


def pairs_of(folder: Path) -> tuple[list[Pair], list[tuple[str, str]]]:
    """Pictures with their masks, and (name, why) of those that lack the other.

    Either the folder holds images/ and masks/ (folders or archives) whose files have the same names but for their
    endings, or a mask lies beside its picture and has "_mask" behind its name: town.tif, town_mask.tif.
    """
    if not folder.is_dir():
        raise InputError(f"--masks {folder} is no folder: give one that holds pictures and their masks")
    apart = {name: sorted(folder.glob(f"{name}*")) for name in ("images", "masks")}
    if apart["images"] and apart["masks"]:
        pictures = {stem_of(s): s for s in find_sources([str(path) for path in apart["images"]])}
        masks = {stem_of(s): s for s in find_sources([str(path) for path in apart["masks"]])}
    else:
        found = {stem_of(s): s for s in find_sources([str(folder)])}
        masks = {stem.removesuffix(MASK): s for stem, s in found.items() if stem.endswith(MASK)}
        pictures = {stem: s for stem, s in found.items() if not stem.endswith(MASK)}
    alone = [(pictures[stem].name, "it has no mask") for stem in pictures.keys() - masks.keys()]
    alone += [(masks[stem].name, "it is a mask without a picture") for stem in masks.keys() - pictures.keys()]
    pairs = [Pair(pictures[stem], masks[stem]) for stem in sorted(pictures.keys() & masks.keys())]
    if not pairs:
        raise InputError(
            f"--masks {folder} holds no pair of a picture and a mask: put them into images/ and masks/ under the same "
            f"names, or beside each other as town.tif and town{MASK}.tif"
        )
    return pairs, sorted(alone)


def stem_of(source: Source) -> str:
    """A source's file name without its ending."""
    return Path(source.name).stem


def compare(
    pairs: Sequence[Pair],
    detector: Detector,
    *,
    gsd_m: float | None,
    threshold: float,
    zoom: int = ZOOM,
    outputs: bool = False,
    distance_m: float = NEIGHBOUR_M,
    precision: Precision = "auto",
    progress: Progress = silent,
) -> tuple[Seen, list[str], list[tuple[str, str]]]:
    """What a survey sees of the pictures' windows and what their masks say; notes; what could not be used."""
    pictures = [pair.picture for pair in pairs]
    device = next(detector.parameters()).device
    scorer = in_bf16(detector) if uses_bf16(precision, device) else detector
    rows: list[Row] = []
    kept, failures = [], []
    with tempfile.TemporaryDirectory(prefix="negah-calibrate-") as folder, gdal_settings():
        plan = make_plan(pictures, detector.info, patch=detector.patch, gsd_m=gsd_m, verb="calibrated")
        failures += [(failure.source, failure.reason) for failure in plan.failures]
        with Ledger(Path(folder)) as ledger:
            ledger.begin({}, [Input(source.name, -1, -1) for source in pictures], plan)
            score(
                plan, pictures, [scorer], ledger, Measure(threshold), patch=detector.patch,
                batch=BATCHES.get(device.type, 256), device=device,
                progress=progress,
            )  # fmt: skip
            failures += [(failure.source, failure.reason) for failure in ledger.failures() if failure.windows]
            for count, source in enumerate(plan.sources):
                progress("closer looks", count, len(plan.sources))
                pair = pairs[source.position]
                windows = list(ledger.windows(source.first, source.first + len(source.layout)))
                try:
                    # A picture counts as a whole or not at all.
                    found = list(_rows(pair, source, windows, scorer, detector, threshold, zoom, outputs))
                except NegahError as error:
                    failures.append((pair.mask.name, str(error)))
                    continue
                kept.append(source)
                rows += found
            progress("closer looks", len(plan.sources), len(plan.sources))
    if not rows:
        raise InputError(f"no picture could be compared with its mask (first: {failures[0][0]}: {failures[0][1]})")
    share, notes = np.array([row.share for row in rows]), []
    if not share.any():
        raise InputError("all masks are empty: a calibration needs some with panels")
    if full := int((share > 0.999).sum()):
        notes.append(f"{full} windows are all panel by their masks: are those masks inverted?")
    place = places_of([row.centre for row in rows], distance_m)
    if any(source.crs is None for source in kept):
        notes.append(
            "pictures without a CRS count as a place each: if some lie side by side, the intervals are too narrow"
        )
    if place.max() == 0:
        notes.append("all windows are of one place: how far the areas of another one are off is not known")
    elif len(np.unique(place[share > 0])) < MANY:
        notes.append(f"panels lie in fewer than {MANY} places: how far another one's sum is off is hardly known")
    ground = np.array([row.ground_m2 for row in rows])
    cells = np.array([row.cells for row in rows])
    first, probability = np.array([(row.area_m2, row.probability) for row in rows]).T
    known = [row.known for row in rows]
    gsds_m = np.array([row.gsd_m for row in rows])
    seen = Seen(known, ground / cells, ground, first, probability, share * ground, place, gsds_m)
    return seen, notes, failures


class Row(NamedTuple):
    """A window, its mask, and, where something was found, the closer look.  cells: half patches in it."""

    area_m2: float
    probability: float
    share: float  # of the window that is panel by its mask
    ground_m2: float
    cells: int
    gsd_m: float
    centre: tuple[float, float, int]
    known: Known | None


def _rows(
    pair: Pair, source: PlannedSource, windows: Sequence[Window], scorer: Scorer, detector: Detector, threshold: float,
    zoom: int, outputs: bool,
) -> Iterator[Row]:  # fmt: skip
    """Raises InputError where the mask does not fit its picture, see `mask_values`."""
    device = next(detector.parameters()).device
    rows, cols = (axis.cells * HALVES * zoom for axis in (source.layout.y, source.layout.x))
    highest = max(int(values.max()) for values in mask_values(pair.mask, source))
    if 1 < highest < CLASSES:
        raise InputError(
            f"{pair.mask.name} has values up to {highest}: give 0 and 1, or 0 to 255 for the share of each pixel"
        )
    most = 1 if highest <= 1 else 255
    ground = source.windows_m2(np.arange(len(source.layout)))
    with pair.picture.open() as raster, torch.inference_mode():
        for index, (window, values) in enumerate(zip(windows, mask_values(pair.mask, source), strict=True)):
            if window.probability is None or window.area_m2 is None:
                continue
            known = None
            if window.probability >= threshold:
                rgb, valid = raster.read(source.layout.box(index), source.layout.shape)
                image = torch.from_numpy(rgb.copy()).to(device).permute(2, 0, 1)
                partly = None if valid.all() else patch_means(valid, detector.patch)
                first = glances(scorer(image[None]), [0], rows=image.shape[1] // detector.patch)[0]
                look = look_at(scorer, image, first, patch=detector.patch, zoom=zoom, outputs=outputs, valid=partly)
                known = Known(look, shrunk(values, rows, cols) / most)
            yield Row(
                window.area_m2, window.probability, float(values.mean()) / most, float(ground[index]), rows * cols,
                source.gsd_m, centre_of(source, index), known,
            )  # fmt: skip


def mask_values(mask: Source, source: PlannedSource) -> Iterator[ndarray]:
    """The mask in each window of its picture, pixel by pixel.

    Raises InputError where the mask has another size, CRS or place, or is not of 8 bits.
    """
    with mask.open() as raster:
        if (raster.width, raster.height) != (source.width, source.height):
            raise InputError(
                f"{mask.name} has {raster.width} x {raster.height} px and its picture {source.width} x {source.height}"
            )
        if raster.crs is not None and source.crs is not None:
            if not pyproj.CRS(raster.crs.to_wkt()).equals(pyproj.CRS(source.crs), ignore_axis_order=True):
                raise InputError(f"{mask.name} has another CRS than its picture: warp it onto the picture first")
            pixels = ~source.affine * raster.transform if raster.transform else source.affine
            corners = apply(pixels, np.array([[0.0, 0.0], [source.width, source.height]]))
            if np.abs(corners - [[0, 0], [source.width, source.height]]).max() > 0.5:
                raise InputError(f"{mask.name} lies elsewhere than its picture: warp it onto the picture first")
        if raster.stretch is not None:
            raise InputError(f"{mask.name} is not of 8 bits: give 0 and 1, or 0 to 255 for the share of each pixel")
        for index in range(len(source.layout)):
            yield raster.read(source.layout.box(index)).rgb[..., 0]


def centre_of(source: PlannedSource, index: int) -> tuple[float, float, int]:
    """Latitude, longitude (NaN without a CRS) of a window's centre, and its source."""
    if source.crs is None:
        return np.nan, np.nan, source.position
    box = source.layout.box(index)
    xy = apply(source.affine, np.array([[box.col + box.width / 2, box.row + box.height / 2]]))
    lon, lat = pyproj.Transformer.from_crs(source.crs, "EPSG:4326", always_xy=True).transform(*xy[0])
    return float(lat), float(lon), source.position


def places_of(centres: Sequence[tuple[float, float, int]], distance_m: float) -> Int[ndarray, " n"]:
    """The place of each window: neighbours on earth are one, and so is a picture without a CRS."""
    lat, lon, source = np.array(centres, dtype=float).T
    place, known = np.zeros(len(source), dtype=np.int64), np.isfinite(lat)
    if known.any():
        place[known] = location_groups(lat[known], lon[known], distance_m=distance_m)
    place[~known] = np.unique(source[~known], return_inverse=True)[1] + place.max() + 1
    return np.unique(place, return_inverse=True)[1]
