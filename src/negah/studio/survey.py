"""Survey: a raster or tiles in; panels, square metres, intervals and files out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from negah.runs.record import compute_device
from negah.runs.scene import draw
from negah.runs.survey import Options, Summary, detector_of, survey, totals
from negah.solar.outputs import NAMES
from negah.studio import parts
from negah.studio.work import Progress, Work, gathered

MODEL = "negah/aerial-tiny"
EXAMPLE_PX = 900  # side of the generated town
TYPES = [
    ".tif",
    ".tiff",
    ".png",
    ".jpg",
    ".jpeg",
    ".jp2",
    ".zip",
    ".tar",
    ".gz",
    ".tgz",
    ".tfw",
    ".jgw",
    ".pgw",
    ".xml",
]


def room(work: Work) -> None:
    """Lay out the room."""
    import gradio as gr

    parts.lead("Drop a GeoTIFF, pictures or an archive of them: where are solar panels, and how large are they?")
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            files = gr.File(label="Pictures", file_count="multiple", file_types=TYPES, height=150)
            example = gr.Button("Draw a town as an example", size="sm")
            gsd = gr.Textbox(
                label="Metres per pixel", info="Of pictures that do not say, such as PNG and JPEG.", placeholder="0.3"
            )
            threshold = gr.Slider(
                0.05, 0.95, step=0.01, value=round(detector_of(MODEL).info.threshold, 2), label="Threshold",
                info="Probability from which a window has panels.",
            )  # fmt: skip
            with gr.Accordion("More", open=False):
                calibration = gr.File(label="Calibration", file_types=[".json"], file_count="single", height=110)
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
    parts.wire(
        work, "survey", buttons, [files, gsd, threshold, calibration, also, overlap], [figures, report, downloads],
        prepare, shown,
    )  # fmt: skip
    parts.wire(work, "town", buttons._replace(go=example), [], [files], town, lambda path: [[str(path)]])


def prepare(
    folder: Path, files: Sequence[str] | None, gsd: str, threshold: float, calibration: str | None, also: str,
    overlap: float,
) -> Callable[[Progress], Summary]:  # fmt: skip
    """The survey that the page asks for."""
    paths = gathered(files, folder)
    detector = detector_of(MODEL).to(compute_device())
    options = Options(
        gsd=parts.number(gsd, "metres per pixel"), overlap=overlap, threshold=None if calibration else threshold,
        calibration=Path(calibration) if calibration else None,
        also=[line.strip() for line in (also or "").splitlines() if line.strip()],
    )  # fmt: skip
    return lambda progress: survey(
        paths, folder / "map", [detector], options, given={"model": MODEL}, progress=progress
    )


def shown(summary: Summary) -> list[Any]:
    """Figures, report and files of a survey."""
    text = parts.facts(totals(summary))
    text += parts.failed([(failure.source, failure.reason) for failure in summary.failures])
    return [text, parts.framed(summary.report, "Report of the survey"), parts.files(summary.out, NAMES)]


def town(folder: Path) -> Callable[[Progress], Path]:
    """An example to survey: a generated town of which every panel is known."""

    def job(progress: Progress) -> Path:
        path = folder / "town.tif"
        draw(path, size_px=EXAMPLE_PX, seed=1, progress=lambda done, total: progress("drawing", done, total))
        return path

    return job
