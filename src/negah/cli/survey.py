"""`negah survey`: map the solar panels of aerial images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tyro.conf import Positional, UseAppendAction, arg

from negah.cli import show
from negah.runs import DESCRIBER


@dataclass(kw_only=True)
class Survey(show.Verb):
    """Map the solar panels of aerial images: where, how many square metres, how many kilowatts.

    Reads GeoTIFF, COG, VRT, PNG and JPEG files, folders and zip or tar archives of them, and COG URLs. Writes panels
    (GeoParquet, GeoPackage, GeoJSON), a heat map, tables and a report into one folder. A survey that was stopped
    continues where it was when the same command is given again, and tries again what could not be read.

    Exit status 3: done, but some inputs could not be read (see failures.csv), no window could be looked at, or all have
    pixels of another size than the model was made for.

    Example:
        negah survey town.tif --out map
        negah survey tiles/ --out map --gsd 0.3 --json > map.json
        negah survey town.tif --also "swimming pool" --also "tennis court"
        negah survey town.tif --aoi quarter.geojson --parcels parcels.gpkg --overlap 0.25
    """

    IF_INTERRUPTED: ClassVar[str] = (
        "stopped; what is finished so far is kept in the output folder: give the same command again to continue"
    )

    paths: Annotated[Positional[tuple[str, ...]], arg(metavar="PATH...")]
    """Images, folders, archives or URLs."""
    out: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Folder for the results (default: negah-survey- and the name of the first PATH)."""
    model: Annotated[str, arg(metavar="NAME")] = "negah/aerial-tiny"
    """Detector: a bundled name or a .safetensors file."""
    backbone: Annotated[str | None, arg(metavar="NAME")] = None
    """Use this backbone (a name or a file, such as facebook/dinov2-with-registers-small) with --head, not --model."""
    head: Annotated[Path | None, arg(metavar="FILE")] = None
    """Head trained on --backbone by `negah probe train`."""
    gsd: Annotated[float | None, arg(metavar="M")] = None
    """Metres per pixel, for images that do not say."""
    overlap: Annotated[float, arg(metavar="F")] = 0.0
    """Overlap of neighbouring windows, as a share of their side, from 0 to below 0.9."""
    threshold: Annotated[float | None, arg(metavar="P")] = None
    """Probability from which a window counts as having panels (default: the calibration's, or the model's own)."""
    aoi: Annotated[Path | None, arg(metavar="FILE")] = None
    """Polygons (GeoJSON, GeoPackage, GeoParquet) to stay inside of: windows that touch none are not looked at."""
    parcels: Annotated[Path | None, arg(metavar="FILE")] = None
    """Polygons to sum the results up by."""
    calibration: Annotated[Path | None, arg(metavar="FILE")] = None
    """Areas calibrated for your region, by `negah calibrate`."""
    also: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="WORDS")] = ()
    """Also say which windows these words fit best, and how that compares with ordinary pictures."""
    also_model: Annotated[str, arg(metavar="MODEL")] = DESCRIBER
    """A CLIP or CoCa that compares them: a bundled name, a file, a folder, a name of the Hugging Face hub."""
    refine: Literal["none", "neighbours"] = "none"
    """neighbours: also give each window's probability in the light of the windows around it (learned from generated
    towns; compare it before you rely on it)."""
    label_next: Annotated[int | None, arg(metavar="N")] = None
    """Draw N windows whose labels would tell most of the total, into label-next.csv in the output folder; with --labels
    N more beside those."""
    labels: Annotated[Path | None, arg(metavar="FILE")] = None
    """That file with true_m2 filled in: the total rests on it. Its range does not trust the model, and is wide with few
    labels."""
    m2_per_kw: Annotated[float | None, arg(metavar="M2")] = None
    """Module area of one kilowatt (default: 7.29, one figure for all years; newer modules need less)."""
    year: Annotated[int | None, arg(metavar="YEAR")] = None
    """Take the module area of one kilowatt from the median efficiency of modules installed in this year."""
    tilt: Annotated[str, arg(metavar="DEGREES")] = "none"
    """Tilt of the modules, whose area is larger than what is seen from above: degrees, "assumed" (20 ± 10), "none"."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the model; auto takes bfloat16 where the hardware is fast at it."""
    engine: Literal["local"] = "local"
    """Where it runs: on this machine."""
    overwrite: bool = False
    """Discard an earlier survey in the output folder instead of continuing it."""

    def run(self) -> int:
        """Survey, then print the totals and where the report is."""
        from negah.errors import InputError
        from negah.runs.detectors import detector_of
        from negah.runs.record import compute_device
        from negah.runs.survey import Options, summary_dict, survey, totals

        if not self.paths:
            raise InputError("nothing to survey: give an image, a folder, an archive or a URL")
        out = self.out or Path(f"negah-survey-{default_name(self.paths[0])}")
        detector = detector_of(self.model, backbone=self.backbone, head=self.head).to(compute_device())
        options = Options(
            gsd_m=self.gsd, overlap=self.overlap, threshold=self.threshold, aoi=self.aoi, parcels=self.parcels,
            m2_per_kw=self.m2_per_kw, year=self.year, tilt=self.tilt, label_next=self.label_next, labels=self.labels,
            precision=self.precision, overwrite=self.overwrite,
            calibration=self.calibration, also=self.also, also_model=self.also_model, refine=self.refine,
        )  # fmt: skip
        with show.progress(quiet=self.json) as bar:
            given = {"model": self.model} if self.head is None else {"backbone": self.backbone, "head": self.head}
            summary = survey(
                self.paths, out, [detector], options, given=given, progress=show.stages(bar, quiet=self.json)
            )
        if self.json:
            show.as_json(summary_dict(summary))
        else:
            show.table(
                [
                    (label, first, "; ".join(rest))
                    for label, value in totals(summary).items()
                    for first, *rest in [value.split("\n")]
                ],
                title="Solar panels",
            )
            if summary.also:
                show.table([(answer.query, answer.told) for answer in summary.also], title="In your words")
            failed = [(failure.source, failure.reason) for failure in summary.failures]
            show.failures(failed, more=f"more failed: see {out / 'failures.csv'}")
            for remark in summary.remarks:
                show.warning(remark)
            if (path := summary.label_next) is not None:
                page = path.with_suffix(".html").name
                show.stdout().print(f"label next: {path} (pictures: {page}): fill in true_m2, then --labels {path}")
            show.stdout().print(f"report: {summary.report}")
        return 0 if summary.complete and not summary.warning else 3


def default_name(path: str) -> str:
    """The name of the output folder for a file, folder or URL: its last part without what follows the first dot."""
    last = path.split("?")[0].rstrip("/").rsplit("/", 1)[-1]
    return (Path(last).resolve().name if last in ("", ".", "..") else last).lstrip(".").split(".")[0] or "images"
