"""`negah calibrate`: make the survey's areas right for a region, from masks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from negah.cli import show


@dataclass(kw_only=True)
class Calibrate(show.Verb):
    """Calibrate the survey's areas for your region, from some tens of masks.

    Compares what the detector estimates with masks of the true panels, window by window, and writes what corrects it,
    with intervals that hold 90 % of the true areas of such windows. `negah survey --calibration` uses it.

    Pictures and masks lie in images/ and masks/ under the same names, or beside each other (town.tif, town_mask.tif). A
    mask has the size of its picture and 8 bits: 0 and 1, or 0 to 255 for the share of each pixel that is panel.

    Exit status 3: done, but some pictures or masks could not be used.

    Example:
        negah calibrate --masks masks/ --region Jiangsu --gsd 0.1 --out jiangsu.json
        negah survey town.tif --out map --calibration jiangsu.json
    """

    masks: Annotated[Path, arg(metavar="FOLDER")]
    """Pictures and their masks."""
    out: Annotated[Path, arg(metavar="FILE")]
    """The calibration (JSON)."""
    region: str = ""
    """What the region is called; the survey's report repeats it."""
    model: Annotated[str, arg(metavar="NAME")] = "negah/aerial-tiny"
    """Detector: a bundled name or a .safetensors file."""
    backbone: Annotated[str | None, arg(metavar="NAME")] = None
    """Calibrate this backbone with --head, not --model."""
    head: Annotated[Path | None, arg(metavar="FILE")] = None
    """Head trained on --backbone by `negah probe train`."""
    gsd: Annotated[float | None, arg(metavar="M")] = None
    """Metres per pixel, for pictures that do not say."""
    threshold: Annotated[float | None, arg(metavar="P")] = None
    """Probability from which a window counts as having panels (default: the model's own)."""
    zoom: Literal[1, 2] = 2
    """How often windows with panels are enlarged for the closer look: 1 is four times as fast and half as fine."""
    evidence: Literal["labels", "masks"] = "labels"
    """Where the evidence of each patch comes from: the head as image labels taught it, or read anew from the masks."""
    distance: Annotated[float, arg(metavar="M")] = 500.0
    """Windows nearer to each other than this many metres are of one place: they stand on one side of every split."""
    seed: int = 0
    """Of the folds and the bootstrap."""

    def run(self) -> int:
        """Calibrate, then print how far the areas are off before and after."""
        from negah.runs.calibrate import calibrate
        from negah.runs.detectors import detector_of
        from negah.runs.record import compute_device

        detector = detector_of(self.model, backbone=self.backbone, head=self.head).to(compute_device())
        given = {"backbone": self.backbone, "head": str(self.head)} if self.head else {"model": self.model}
        with show.progress(quiet=self.json) as bar:
            result = calibrate(
                self.masks, self.out, detector, region=self.region, gsd_m=self.gsd, threshold=self.threshold,
                zoom=self.zoom, from_masks=self.evidence == "masks", distance_m=self.distance, seed=self.seed,
                given=given, progress=show.stages(bar, quiet=self.json),
            )  # fmt: skip
        if self.json:
            show.as_json(result)
        else:
            made, seen = result.calibration, result.assessment
            low, high = made.gsd_m
            show.table(
                [
                    ("windows with masks", f"{made.windows:,}", f"of {made.places:,} places"),
                    ("outlines on masks", f"IoU {seen.iou:.2f}", "pooled over all windows"),
                    ("median error of an area", f"{seen.median_error:.0%}", f"{seen.median_error_before:.0%} before"),
                    ("error of the sum", f"{seen.bias:+.0%}", f"{seen.bias_before:+.0%} before"),
                    ("inside the 90 % interval", f"{seen.coverage:.0%}", f"median width {seen.width:.0%} of the area"),
                    ("made for", f"{low:.3g} to {high:.3g} m per pixel", made.region),
                ],
                title=f"Calibration, of {'places' if made.places > 1 else 'windows'} that took no part in it",
            )
            if made.audit is not None:
                show.table(
                    [
                        (head.name, f"{head.pointing:.0%} points at panels, IoU {head.iou:.2f}",
                         f"{head.inside:.0%} of its weight on panels"
                         + ("" if head.sink is None else f", {head.sink:.0%} on nothing"))
                        for head in made.audit.heads
                    ],
                    title=f"Where the heads look; panels cover {made.audit.covered:.0%} of these windows",
                )  # fmt: skip
            for note in result.notes:
                show.warning(note)
            show.failures(result.failures, more="more could not be used")
            show.stdout().print(f"calibration: {result.path}\npictures: {result.pictures}")
        return 3 if result.failures else 0
