"""Survey: a raster or tiles in; panels, square metres, intervals and files out; then a total from labels."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from negah.errors import InputError
from negah.images.overview import Mosaic
from negah.images.sources import find_sources
from negah.progress import Progress
from negah.runs import labels
from negah.runs.detectors import detector_of
from negah.runs.record import compute_device
from negah.runs.scene import draw
from negah.runs.survey import Options, Summary, survey, totals
from negah.solar.ledger import Ledger
from negah.solar.outputs import NAMES
from negah.solar.sampling import LABELS, Row, read_drawn, read_labels, write_labels
from negah.studio import area, parts
from negah.studio.work import UPLOADED, Work, gathered

EXAMPLE_PX = 900  # side of the generated town
BESIDE = [".tfw", ".jgw", ".pgw", ".xml"]  # files that say where a picture lies

FILLED = "labels.csv"  # what was chosen, filled in
FILES = (*NAMES, LABELS, str(Path(LABELS).with_suffix(".html")), FILLED)  # as far as they are there
ACCEPT = "Rows that I leave empty: what was measured is right"


@dataclass(frozen=True)
class Asked:
    """A survey that can be asked again, in the same folder.

    intervals: (what it rests on, total, low, high) so far.  true_m2: of the drawn windows, where it was told.
    """

    paths: list[str]
    options: Options
    summary: Summary
    intervals: tuple[tuple[str, float, float | None, float | None], ...]
    drawn: tuple[Row, ...] = ()
    true_m2: tuple[float | None, ...] = ()


def room(work: Work) -> None:
    """Lay out the room."""
    import gradio as gr

    parts.lead("Drop a GeoTIFF, pictures or an archive of them: where are solar panels, and how large are they?")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            files = gr.File(label="Pictures", file_count="multiple", file_types=[*parts.TYPES, *BESIDE], height=150)
            example = gr.Button("Draw a town as an example", size="sm")
            gsd = gr.Textbox(
                label="Metres per pixel",
                info="Of pictures that do not say, such as PNG and JPEG.",
                placeholder="such as 0.3",
            )
            threshold = gr.Slider(
                0.05, 0.95, step=0.005, value=round(detector_of(parts.DETECTOR).info.threshold, 3), label="Threshold",
                info="Probability from which a window has panels.",
            )  # fmt: skip
            with gr.Accordion("More", open=False):
                calibration = gr.File(label="Calibration", file_types=[".json"], file_count="single", height=132)
                also = gr.Textbox(
                    label="Also look for", info="In words, one thing a line.", lines=2,
                    placeholder="swimming pool",
                )  # fmt: skip
                overlap = gr.Slider(0, 0.5, step=0.25, value=0, label="Overlap of windows")
            buttons = parts.controls("Survey")
        with gr.Column(scale=2, min_width=320):
            figures = gr.HTML(parts.empty("The figures and the map will be here."))
            report = gr.HTML()
            downloads = parts.downloads()
    part = area.lay_out(work, files)
    with gr.Accordion("Label next: look at some windows, and rest the total on them", open=False):
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                count = gr.Slider(4, 60, step=1, value=12, label="Windows to look at")
                drawing = parts.controls("Choose windows")
                accept = gr.Checkbox(label=ACCEPT)
                counting = parts.controls("Recalibrate")
                intervals = gr.HTML()
            with gr.Column(scale=2, min_width=320):
                windows = gr.HTML(parts.empty("The windows whose labels would tell most of the total will be here."))
                table = gr.Dataframe(
                    [["", "", ""]], headers=["window", "measured m²", "true m²"], type="array", label="Labels",
                    interactive=True, column_count=3, buttons=[], visible=False,
                )  # fmt: skip
    asked = gr.State(None)
    results = [asked, figures, report, downloads, intervals]
    parts.wire(
        work, "survey", buttons, [files, gsd, threshold, calibration, also, overlap, *part], results, prepare, shown,
    )  # fmt: skip
    parts.wire(
        work, "survey", drawing, [asked, count], [asked, windows, table], choosing, to_label, fresh=False
    )  # fmt: skip
    parts.wire(
        work, "survey", counting, [asked, table, accept], results, recalibrating, shown, fresh=False
    )  # fmt: skip
    parts.wire(work, "town", buttons._replace(go=example), [], [files], town, lambda path: [[str(path)]])


def prepare(
    folder: Path, files: Sequence[str] | None, gsd: str, threshold: float, calibration: str | None, also: str,
    overlap: float, ground: Mosaic | None, corners: str, areas: str | None, parcels: str | None,
) -> Callable[[Progress], Asked]:  # fmt: skip
    """The survey that the page asks for."""
    paths = gathered(files, folder)
    usual = threshold == round(detector_of(parts.DETECTOR).info.threshold, 3)  # the slider knows three places
    options = Options(
        gsd_m=parts.number(gsd, "metres per pixel"), overlap=overlap,
        threshold=None if calibration or usual else threshold,
        calibration=Path(calibration) if calibration else None,
        aoi=area.chosen(folder, ground, corners, areas), parcels=Path(parcels) if parcels else None,
        also=[line.strip() for line in (also or "").splitlines() if line.strip()],
    )  # fmt: skip

    def job(progress: Progress) -> Asked:
        summary = surveyed(paths, folder, options, progress)
        return Asked(paths, options, summary, (interval_of(summary),))

    return job


def surveyed(paths: Sequence[str], folder: Path, options: Options, progress: Progress) -> Summary:
    """The survey of a room's folder; a second one goes on from its ledger, and is fast."""
    detector = detector_of(parts.DETECTOR).to(compute_device())
    return survey(
        paths, folder / "map", [detector], options, root=folder / UPLOADED, given={"model": parts.DETECTOR},
        progress=progress,
    )  # fmt: skip


def interval_of(summary: Summary) -> tuple[str, float, float | None, float | None]:
    """A line of the table of intervals."""
    return summary.rests_on, summary.area_m2, summary.area_low, summary.area_high


def shown(asked: Asked) -> list[Any]:
    """The survey itself, its figures, report and files, and all intervals so far."""
    summary = asked.summary
    text = parts.facts(totals(summary))
    if summary.remarks:
        text += parts.lines(summary.remarks)
    text += parts.failed([(failure.source, failure.reason) for failure in summary.failures])
    rows = []
    for rests_on, total, low, high in asked.intervals:
        if math.isnan(total):  # nothing could be looked at
            continue
        between, width = "", ""
        if low is not None and high is not None:
            between, width = f"{low:,.0f} to {high:,.0f}", f"{high - low:,.0f}"
        rows.append((rests_on, f"{total:,.0f} m²", between, width))
    table = parts.table(("rests on", "total", "interval, m²", "width"), rows) if rows else ""
    return [
        asked, text, parts.framed(summary.report, "Report of the survey"),
        parts.files([*(summary.out / name for name in FILES), summary.out.parent / area.FILE]),
        table,
    ]  # fmt: skip


def choosing(folder: Path, asked: Asked | None, count: float) -> Callable[[Progress], Asked]:
    """Draw windows to label: anew as long as none has a label, then more beside those that have."""
    if asked is None:
        raise InputError("survey first: windows are chosen by what it measured")

    def job(progress: Progress) -> Asked:
        (folder / "map" / LABELS).unlink(missing_ok=True)
        known = folder / "map" / FILLED if asked.summary.labelled else None
        surveyed(asked.paths, folder, replace(asked.options, label_next=int(count), labels=known), progress)
        drawn = tuple(read_drawn(folder / "map" / LABELS))
        told = read_labels(known).rows if known else {}
        true = tuple(told[key].true_m2 if (key := (row.source, row.window)) in told else None for row in drawn)
        return replace(asked, drawn=drawn, true_m2=true)

    return job


def to_label(asked: Asked) -> list[Any]:
    """The windows to label as pictures, and a table to fill in."""
    import gradio as gr

    pictures, rows = [], []
    with Ledger(asked.summary.out) as ledger:
        sources = find_sources(asked.paths, root=asked.summary.out.parent / UPLOADED)
        shots = labels.shots_of(ledger.plan(), ledger, sources, asked.drawn)
    for number, (row, shot, true) in enumerate(zip(asked.drawn, shots, asked.true_m2, strict=True), 1):
        told = f"probability {row.probability:.2f}, {shot.ground_m2:,.0f} m² of ground"
        pictures.append((shot.pixels, f"{number}: {row.area_m2:,.1f} m²", told))
        rows.append([str(number), f"{row.area_m2:,.1f}", "" if true is None else f"{true:.10g}"])
    return [asked, parts.sheet(pictures, cell=150), gr.update(value=rows, visible=True)]


def recalibrating(
    folder: Path, asked: Asked | None, table: Sequence[Sequence[Any]], accept: bool
) -> Callable[[Progress], Asked]:
    """Rest the total on the labels of the table."""
    if asked is None or not asked.drawn:
        raise InputError("choose windows first, and look at them")
    given = {str(row[0]).strip(): str(row[2] or "").strip() for row in table}

    def job(progress: Progress) -> Asked:
        true = []
        for number, row in enumerate(asked.drawn, 1):
            typed = parts.number(given.get(str(number)), f"true m² of window {number}")
            true.append(row.area_m2 if typed is None and accept else typed)
        path = folder / "map" / FILLED
        write_labels(asked.drawn, path, true_m2=true)
        options = replace(asked.options, labels=path)
        summary = surveyed(asked.paths, folder, options, progress)
        return replace(asked, summary=summary, true_m2=tuple(true), intervals=(*asked.intervals, interval_of(summary)))

    return job


def town(folder: Path) -> Callable[[Progress], Path]:
    """An example to survey: a generated town of which every panel is known."""

    def job(progress: Progress) -> Path:
        path = folder / "town.tif"
        draw(path, size_px=EXAMPLE_PX, seed=1, overwrite=True, progress=progress)
        return path

    return job
