"""`negah survey`: sources, detector, ledger, map, files and report, put together.

What the windows' figures depend on (inputs, model, arguments, versions) is the ledger's fingerprint; a folder with
another one is refused, not mixed.  What only the files depend on (parcels, m2 per kW) may change between two runs: the
files are assembled anew from the ledger at the end of every run.  What could not be read is tried again by every run.
"""

import datetime
import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import shapely
import torch

from negah import __version__
from negah.errors import InputError
from negah.images.bands import gdal_settings
from negah.probe.detector import Detector, in_bf16
from negah.progress import Progress, silent
from negah.runs import also, labels, refine
from negah.runs.beginning import (
    another,
    check_parcels,
    check_region,
    make_folder,
    prepare_folder,
    said_themselves,
    same_kind,
    taken,
    try_again,
)
from negah.runs.record import fingerprint_of, hardware, versions
from negah.runs.telling import (
    OUTLINES,
    SCORED,
    Options,
    Precision,
    Summary,
    audit_texts,
    doubt_of,
    how_bounded,
    not_looked_at,
    notes_of,
    plain,
    summary_dict,
    totals,
)
from negah.solar.calibration import Calibration
from negah.solar.calibration import load as load_calibration
from negah.solar.ledger import Input, Ledger
from negah.solar.merge import Strip, components, strips
from negah.solar.outputs import (
    Assembly,
    Drawn,
    Heatmap,
    Panels,
    heatmap_names,
    write_failures,
    write_json,
    write_layer,
    write_parcels,
    write_tiles,
)  # fmt: skip
from negah.solar.pictures import contact_sheet, finds, overviews
from negah.solar.plan import Plan, PlannedSource, make_plan
from negah.solar.power import Power, power_of, tilt
from negah.solar.regions import Region, join, read_polygons, read_region
from negah.solar.report import Report, write_report
from negah.solar.survey import Measure, fast_bf16, score

BATCHES = {"cpu": 16}  # windows per batch, 256 on accelerators; part of the fingerprint
FILES_CACHE = 2**25  # bytes of decoded blocks kept while the files are made: nearly all is read once, in order
FINDS = 24  # windows in each half of the report's gallery
SAMPLE = 50_000  # most values behind a histogram
LABEL_SEED = 0  # of the windows that are drawn for labelling


def survey(
    paths: Sequence[str],
    out: Path,
    detectors: Sequence[Detector],
    options: Options,
    *,
    root: Path | None = None,
    given: Mapping[str, object] = MappingProxyType({}),
    progress: Progress = silent,
) -> Summary:
    """Survey files, folders, archives and URLs into the folder `out`; continue there if it holds the same survey.

    Continuing tries again what could not be read, and takes an input that failed as it is now, repaired or not.

    detectors: one, or several of one patch and window whose footprints are averaged.
    root: pictures below this folder are named by their place in it.
    given: what else the user asked for (by what name the model, say): for run.json.
    progress: called with a stage ("windows", "map", "report"), how far it is, and how far it goes.

    Raises InputError when nothing can be surveyed, OutputError when `out` holds another survey or cannot be written.
    A single bad input is not an error: it is in the summary's failures.
    """
    detector = same_kind(detectors)
    info, device = detector.info, next(detector.parameters()).device
    calibration = calibration_for(options.calibration, detectors, threshold=options.threshold)
    made_at = info.threshold if calibration is None else calibration.threshold
    threshold = made_at if options.threshold is None else options.threshold
    if not 0 <= threshold <= 1:
        raise InputError(f"--threshold is a probability, from 0 to 1, not {threshold:g}")
    power = power_of(options.m2_per_kw, year=options.year, tilt=tilt(options.tilt))
    labels.check(out, options.label_next, options.labels, overlap=options.overlap, aoi=options.aoi)
    asked = also.asking(options.also, options.also_model, device) if options.also else None
    refining = refine.refining(detectors, overlap=options.overlap) if options.refine == "neighbours" else None
    started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
    bf16 = uses_bf16(options.precision, device)
    measure = Measure(threshold, info.area_ratio, calibration, features=refining is not None)
    batch = BATCHES.get(device.type, 256)
    threads = max(2, min(8, os.cpu_count() or 2))
    region = read_region(options.aoi) if options.aoi else None
    parcels = read_polygons(options.parcels, option="--parcels") if options.parcels else None
    sources, remarks = taken(paths, out, root=root)
    fingerprint = {
        "negah": __version__,
        "torch": torch.__version__,
        "device": device.type,
        "precision": "bf16" if bf16 else "fp32",
        "batch": batch,
        "model": " + ".join(f"{d.info.name} {fingerprint_of(d)[:12]}" for d in detectors),
        "gsd": options.gsd_m,  # as ledgers have it
        "overlap": options.overlap,
        "threshold": threshold,
        "aoi": _digest(options.aoi),
        "calibration": _digest(options.calibration),
        "refine": refining and refining.mark,
    }

    with ExitStack() as stack:
        stack.enter_context(gdal_settings())
        prepare_folder(out, overwrite=options.overwrite)
        inputs = [Input(source.name, *source.state()) for source in sources]
        begun = Ledger.begun(out)
        plan_of = partial(
            make_plan, sources, info, patch=detector.patch, fine=measure.fine, gsd_m=options.gsd_m,
            overlap=options.overlap, region=region, threads=threads,
        )  # fmt: skip
        # A new plan comes before the ledger: a survey that cannot begin must leave no trace.
        plan = None if begun else plan_of()
        if plan is not None:
            check_region(plan, region)
            check_parcels(plan, parcels)
        make_folder(out)
        ledger = stack.enter_context(Ledger(out))
        if plan is not None:
            ledger.begin(fingerprint, inputs, plan)
        elif what := ledger.difference(fingerprint, inputs):
            raise another(out, what)
        else:
            plan = try_again(out, ledger, inputs, plan_of)
            check_parcels(plan, parcels)
        remarks += said_themselves(plan, options.gsd_m)
        done, again = ledger.finished, len(plan.again)
        scorers = [in_bf16(d) for d in detectors] if bf16 else detectors
        score(
            plan, sources, scorers, ledger, measure, patch=detector.patch, batch=batch,
            region=region, threads=threads, device=device,
            # a chunk that is read again counts for all its windows there, more than the failed ones that it has
            progress=lambda stage, done, total: progress(stage, min(done - again, total), total),
        )  # fmt: skip
        unseen = []
        if asked is not None:
            unseen = also.look(
                asked, plan, sources, ledger, region=region, threads=threads, device=device, progress=progress
            )  # fmt: skip
        # The files list sources as they were given, whenever they joined the plan.
        plan = replace(plan, sources=sorted(plan.sources, key=lambda source: source.position))

        refined = None
        if refining is not None:
            refined = refine.refine(refining, plan, ledger, threshold=threshold)

        with gdal_settings(cache=FILES_CACHE), Assembly(out) as assembly:
            with assembly.file("tiles.csv") as path:
                write_tiles(ledger, plan, path, refined=refined is not None)
            failures = also.joined(ledger.failures(), unseen)
            with assembly.file("failures.csv") as path:
                write_failures(failures, path)
            made = _map(plan, ledger, assembly, power, measure, region, progress)
            on_earth, in_pixels = made.panels.frames()
            write_layer(assembly, "panels", on_earth, in_pixels)
            answers, sections = also.answer(asked, plan, sources, ledger, assembly) if asked else ([], [])
            notes = notes_of(plan, ledger, measure, options, power, made.drawn)
            if refined is not None:
                notes.insert(0, refined.note)
            if parcels is not None and on_earth is not None:
                write_parcels(assembly, join(parcels, on_earth))
            frames = [frame for frame in (on_earth, in_pixels) if frame is not None]
            areas = np.concatenate([frame["area_m2"].to_numpy() for frame in frames])
            total, *bounds = measure.sizes.total(float(areas.sum()), ledger.areas())
            low, high = (None if doubt_of(ledger) or np.isnan(bound) else bound for bound in bounds)
            rests_on = how_bounded(measure, ledger)
            if not any(ledger.counts().get(status) for status in SCORED):
                total, low, high, rests_on = np.nan, None, None, "nothing was looked at"
            said = labels.consulted(
                plan, ledger, out, count=options.label_next, path=options.labels, seed=LABEL_SEED,
                noise=measure.calibration.noise if measure.calibration else labels.NOISE,
                whole=not options.overlap and options.aoi is None,
            )  # fmt: skip
            notes, remarks = [*said.notes, *notes], [*remarks, *said.remarks]
            if said.total is not None:
                (total, low, high, _), rests_on = said.total, said.rests_on
                low, high = (low, high) if said.ranged else (None, None)
            kw_low, kw_high = (None, None) if low is None or high is None else power.interval(low, high)
            abstained, share = ledger.abstained()
            seconds = ledger.seconds
            summary = Summary(
                out=out, report=out / "report.html", sources=len(sources),
                failed_sources=len(plan.failures), windows=ledger.counts(), windows_with_panels=ledger.found(threshold),
                panels=len(areas), area_m2=total, area_low=low, area_high=high, rests_on=rests_on,
                abstained=abstained, abstained_share=share, kw=power.kw(total), kw_low=kw_low, kw_high=kw_high,
                surveyed_km2=made.surveyed_m2 / 1e6, calibration=calibration and (calibration.region or "unnamed"),
                threshold=threshold, continued=done > 0, seconds=seconds,
                windows_per_s=plan.windows / seconds if seconds else 0.0, notes=notes, failures=failures,
                also=answers, refined=refined, labelled=said.total and said.total.labels, label_next=said.path,
                remarks=remarks, measured_m2=float(areas.sum()),
            )  # fmt: skip
            provenance = {
                "model": fingerprint["model"],
                "negah": __version__,
                "figures in": fingerprint["precision"],
                "window": f"{info.window_px} px of {info.gsd_m:g} m, overlap {options.overlap:g}",
                "threshold": f"{threshold:g}",
                **({"calibration": str(options.calibration)} if options.calibration else {}),
                **({"labels": str(options.labels)} if options.labels else {}),
                **({"refined by": refined.model} if refined else {}),
                **({"words": asked.words} if asked else {}),
                **power.words(),
                "made": f"{started:%Y-%m-%d %H:%M} UTC",
            }
            ranked = ledger.extremes(threshold, FINDS)
            with ThreadPoolExecutor(1, "finds") as pool:  # the large pictures stay with the memory of the main thread
                gallery = [pool.submit(finds, plan, sources, windows) for windows in ranked]
                heatmaps = {k: assembly.corner / name for k, name in made.heatmaps.items()}
                maps = overviews(plan, sources, made.drawn, heatmaps, progress=progress)
                if sheet := contact_sheet(plan, sources, made.tiles, ledger.probability_of):
                    maps.append(sheet)
            if summary.warning:
                notes.insert(0, f"{summary.warning[0].upper()}{summary.warning[1:]}.")
            notes[:0] = remarks
            report = Report(
                title=f"Solar panels: {_title(paths)}",
                totals=totals(summary),
                threshold=threshold,
                overviews=maps,
                most_certain=gallery[0].result(),
                least_certain=gallery[1].result(),
                areas_m2=areas[:: -(-len(areas) // SAMPLE) or 1].tolist(),
                probabilities=ledger.probabilities(SAMPLE),
                failures=[(f.source, f.reason) for f in failures],
                not_looked_at=not_looked_at(summary),
                notes=notes,
                provenance=provenance,
                asked=sections,
                asked_lead=also.lead(asked) if asked else "",
                **audit_texts(calibration),
            )
            with assembly.file("report.html") as path:
                write_report(report, path)
            with assembly.file("run.json") as path:
                write_json({
                    "negah": __version__,
                    "verb": "survey",
                    "started": started.isoformat(timespec="seconds"),
                    "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                    "seconds": {"windows": round(seconds, 3), "this run": round(time.monotonic() - clock, 3)},
                    "arguments": {"paths": list(paths), "out": str(out), **plain({**given, **asdict(options)})},
                    "fingerprint": fingerprint,
                    "seeds": {"windows to label": LABEL_SEED} if said.rows else {},  # nothing else is random
                    "model": [{"hash": fingerprint_of(d), **asdict(d.info)} for d in detectors],
                    **({"refined": asdict(refined)} if refined else {}),
                    **({"also": asked.about} if asked else {}),
                    "versions": versions(),
                    "hardware": hardware(device),
                    "totals": summary_dict(summary),
                }, path)  # fmt: skip
        if said.path is not None:
            shots = labels.shots_of(plan, ledger, sources, said.rows[: labels.SHOWN])
            labels.write_next(said.rows, shots, said.path, level=measure.level, labels=options.labels)
    return summary


def uses_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether a survey on this device multiplies in bfloat16."""
    return fast_bf16(device) if precision == "auto" else precision == "bf16"


class _Made(NamedTuple):
    """The map of all sources: panels, what the report draws of them, the ground that was looked at."""

    panels: Panels
    drawn: dict[int, Drawn]  # panels of the sources that have a heat map, by position
    heatmaps: dict[int, str]  # their names
    tiles: dict[int, Drawn]  # panels of the other sources, by position: those of one window
    surveyed_m2: float


def _map(
    plan: Plan,
    ledger: Ledger,
    assembly: Assembly,
    power: Power,
    measure: Measure,
    region: Region | None,
    progress: Progress,
) -> _Made:
    panels = Panels(plan, kw=power.kw, interval=measure.sizes.interval, refined=measure.features)
    names = heatmap_names(plan)
    drawn: dict[int, Drawn] = {}
    tiles: dict[int, Drawn] = {}
    surveyed = 0.0
    for count, source in enumerate(plan.sources):
        if count % 64 == 0:
            progress("map", count, len(plan.sources))
        windows = ledger.windows(source.first, source.first + len(source.layout))
        pieces = strips(source.layout, windows)
        if source.position in names:
            with assembly.file(names[source.position]) as path:
                heatmap = Heatmap(path, source)
                drawn[source.position], ground = _add(panels, source, heatmap.through(pieces), region, measure.level)
                heatmap.close()
        else:
            tiles[source.position], ground = _add(panels, source, pieces, region, measure.level)
        surveyed += ground
    progress("map", len(plan.sources), len(plan.sources))
    return _Made(panels, drawn, names, tiles, surveyed)


def _add(
    panels: Panels, source: PlannedSource, pieces: Iterator[Strip], region: Region | None, level: float
) -> tuple[Drawn, float]:
    """Add a source's panels; returns them, and the ground that was looked at, in m2."""
    ground = 0.0
    clip = region.in_pixels(source.crs, source.affine) if region and source.crs else None

    def measured() -> Iterator[Strip]:
        nonlocal ground
        x, y = source.layout.x, source.layout.y
        widths, heights = np.diff(x.cell_edges), np.diff(y.cell_edges)
        for piece in pieces:
            rows = slice(piece.row, piece.row + len(piece.fraction))
            pixel = source.ground.pixel_m2(x.cell_centres, np.full(len(widths), y.cell_centres[rows].mean()))
            looked_at = ~np.isnan(piece.fraction)
            if clip is not None:
                looked_at &= shapely.contains_xy(clip, *np.meshgrid(x.cell_centres, y.cell_centres[rows]))
            seen = looked_at.T.astype(float) @ heights[rows]
            ground += float((seen * widths * pixel).sum())
            yield piece

    drawn = panels.add(source, components(measured(), level=level), clip, draw=OUTLINES)
    return drawn, ground


def calibration_for(
    path: Path | None, detectors: Sequence[Detector], *, threshold: float | None = None
) -> Calibration | None:
    """A calibration's file, read for use with these detectors; None without one.

    Raises InputError where it was made for another detector or threshold: then it corrects other errors.
    """
    if path is None:
        return None
    found = load_calibration(path)
    if len(detectors) > 1 or found.model != fingerprint_of(detectors[0])[:12]:
        raise InputError(f"--calibration {path} was made for another model: make one for this, with `negah calibrate`")
    if threshold not in (None, found.threshold):
        raise InputError(
            f"--calibration {path} was made at a threshold of {found.threshold:g}, and this survey's is {threshold:g}: "
            "leave --threshold out, or calibrate at this one"
        )
    return found


def _digest(path: Path | None) -> str | None:
    """What a file's content is told by in the fingerprint."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path else None


def _title(paths: Sequence[str]) -> str:
    first = Path(paths[0]).name or str(paths[0])
    return first if len(paths) == 1 else f"{first} and {len(paths) - 1} more"
