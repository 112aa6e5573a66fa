"""What a survey is asked and what it answers, in figures and in words."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from negah.runs import DESCRIBER
from negah.runs.also import Answer
from negah.runs.refine import Refined
from negah.solar.calibration import Calibration
from negah.solar.ledger import CUT, UNLIKE, Ledger
from negah.solar.outputs import Drawn
from negah.solar.pictures import MAPS
from negah.solar.plan import Failure, Plan
from negah.solar.power import Power
from negah.solar.survey import Measure

OUTLINES = 5000  # panels that an overview draws, the largest
MEASURED = (
    "windows_with_panels",
    "panels",
    "area_m2",
    "area_low",
    "area_high",
    "measured_m2",
    "abstained_share",
    "kw",
    "kw_low",
    "kw_high",
)
SCORED = ("ok", "gsd-out-of-range")  # status of windows with figures
LISTED = 20  # most notes of one kind
UNUSED = (
    "{path} has an empty or deleted row before {count}, which {are} left out: labels count to the first gap, since "
    "windows that are skipped are seldom skipped by chance."
)
TO_LABEL = (
    "{path} names {count:,} windows to label, and {page} beside it shows them: fill in true_m2, and give the "
    "same command again with --labels {path} and without --label-next."
)
DOUBTED = (
    "The {what} does not hold here: {doubt}. The areas may be several times too large or too small, and what is given "
    "as a range of single windows and panels does not hold either."
)
OTHERWISE = (
    "The areas that {path} names as measured are not those of this survey: its labels hold where another model, "
    "threshold or calibration looked at the same images. Where the images are others, label anew."
)
LABELLED = (
    "The total is the sum of all windows, corrected by what the labelled ones were off (a difference estimator). Its "
    "range rests on these windows and does not trust the model; from few of them, or where large panels are missed in "
    "few of many windows, it holds less often than it says. Panels, parcels, files and charts are as measured."
)
NONE_OFF = (
    "None of the labelled windows was off, so they tell no range: they know nothing of errors that they did not happen "
    "to meet. Label more windows before you rely on the total."
)

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of a survey.

    gsd_m: metres per pixel of images that do not say.  overlap: share of a window's side, in [0, 0.9).
    threshold: probability from which a window has panels; None takes that of the calibration, or the model's own.
    aoi: polygons to stay inside of.  parcels: polygons to sum up by.  m2_per_kw: module area of one kW; None takes that
    of `year`, or one figure for all years.  tilt: see `negah.solar.power`.
    label_next: how many windows to draw for labelling.  labels: what came of it, see `negah.solar.sampling`.
    precision: "auto" takes bfloat16 where the hardware multiplies it natively.
    overwrite: discard what an earlier survey left in the folder.  calibration: file of `negah calibrate`.
    also: what to look for besides, in words.  also_model: compares them with the windows, see `negah.language.load`.
    refine: "neighbours" adds what the windows around a window say of it, see `negah.runs.refine`.
    """

    gsd_m: float | None = None
    overlap: float = 0.0
    threshold: float | None = None
    aoi: Path | None = None
    parcels: Path | None = None
    m2_per_kw: float | None = None
    year: int | None = None
    tilt: str = "none"
    label_next: int | None = None
    labels: Path | None = None
    precision: Precision = "auto"
    overwrite: bool = False
    calibration: Path | None = None
    also: Sequence[str] = ()
    also_model: str = DESCRIBER
    refine: Literal["none", "neighbours"] = "none"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a survey found.  Areas in m2; `rests_on` says where area_low and area_high come from."""

    out: Path
    report: Path
    sources: int
    failed_sources: int
    windows: dict[str, int]  # by status
    windows_with_panels: int
    panels: int
    area_m2: float
    area_low: float | None
    area_high: float | None
    rests_on: str  # where the bounds come from
    abstained: dict[str, int]  # windows whose area should not be relied on, by reason
    abstained_share: float  # of the area of all windows
    kw: float
    kw_low: float | None
    kw_high: float | None
    surveyed_km2: float
    threshold: float
    calibration: str | None  # the region that areas were calibrated for
    continued: bool  # some windows were in the ledger already
    seconds: float  # spent on the windows, over all the runs that it took
    windows_per_s: float
    measured_m2: float = 0.0  # the sum of the panels, on which the total rests where there are no labels
    labelled: int | None = None  # windows whose labels the total rests on
    label_next: Path | None = None  # the windows to label, where they were asked for
    remarks: list[str] = field(default_factory=list)  # on what was given and not used
    notes: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    also: list[Answer] = field(default_factory=list)
    refined: Refined | None = None

    @property
    def complete(self) -> bool:
        """Whether every input was read."""
        return not self.failures

    @property
    def scored(self) -> int:
        """How many windows have figures."""
        return sum(self.windows.get(status, 0) for status in SCORED)

    @property
    def warning(self) -> str:
        """Why the figures must not be taken for an answer, or nothing."""
        if not self.scored:
            why = not_looked_at(self) or ["there are no windows"]
            return f"nothing was looked at, so nothing is known of panels here: {', '.join(why)}"
        if not self.windows.get("ok") and self.labelled is None:
            return (
                f"no figure can be relied on: the pixels of all windows that were looked at ({self.scored:,}) are of "
                "another size than the model was made for"
            )
        return ""


def totals(summary: Summary) -> dict[str, str]:
    """The headline figures, for people, in their order."""
    s = summary
    surveyed = f"{s.surveyed_km2:,.3g} km²\n{s.scored:,} of {counted(sum(s.windows.values()), 'window')}"
    images = f"{s.sources:,}\n{len(s.failures):,} of them failed, whole or in part"
    if not s.scored:
        return {
            "warning": s.warning, "panels": "-", "panel area": "not measured", "power": "not measured",
            "surveyed": surveyed, "images": images,
        }  # fmt: skip
    bounds, power = s.rests_on, f"{s.kw:,.0f} kW"
    missing = f"\nwithout {counted(n, 'window')} that could not be read" if (n := s.windows.get("failed")) else ""
    measured = "" if s.labelled is None else f"\nthe panels as measured: {s.measured_m2:,.0f} m²"
    if s.area_low is not None and s.area_high is not None:
        bounds = f"{s.area_low:,.0f} to {s.area_high:,.0f} m² ({s.rests_on})"
    if s.kw_low is not None and s.kw_high is not None:
        power += f"\n{s.kw_low:,.0f} to {s.kw_high:,.0f} kW"
    doubted = {}
    if s.abstained:
        counts = "; ".join(f"{reason}: {counted(windows, 'window')}" for reason, windows in s.abstained.items())
        doubted = {"abstained": f"{s.abstained_share:.0%} of the area\n{counts}"}
    refined = {}
    if s.refined is not None:
        r = s.refined
        said = f"refined probability of at least {r.level:g}; {r.gained:,} gained, {r.lost:,} lost"
        refined = {"by their neighbours": f"{r.found:,}\n{said}"}
    return {
        **({"warning": s.warning} if s.warning else {}),
        "panels": f"{s.panels:,}",
        "panel area": f"{s.area_m2:,.0f} m²\n{bounds}{measured}{missing}",
        **doubted,
        "power": power,
        "surveyed": surveyed,
        "windows with panels": f"{s.windows_with_panels:,}\nprobability of at least {s.threshold:g}",
        **refined,
        "images": images,
    }


def summary_dict(summary: Summary) -> dict:
    """The summary as plain values, for machines: null where nothing was looked at, as 0 would be an answer."""
    values = plain(asdict(summary))
    if not summary.scored:
        values |= dict.fromkeys(MEASURED)
    status = "complete" if summary.complete else "some inputs failed"
    return {"status": summary.warning or status, **values}


def not_looked_at(summary: Summary) -> list[str]:
    """Windows without figures, by the reason."""
    texts = {
        "nodata": ("holds no data", "hold no data"),
        "failed": ("could not be read", "could not be read"),
        "outside-aoi": ("lies outside the area of interest", "lie outside the area of interest"),
    }
    return [
        f"{counted(count, 'window')} {one if count == 1 else many}"
        for status, (one, many) in texts.items()
        if (count := summary.windows.get(status))
    ]


def counted(number: int, what: str) -> str:
    """1 window, 2 windows."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def audit_texts(calibration: Calibration | None) -> dict[str, Any]:
    """What the report says of the heads, where a calibration knows."""
    if calibration is None or calibration.audit is None:
        return {}
    seen = calibration.audit
    lead = (
        f"On {seen.windows:,} windows with masks of panels, which cover {seen.covered:.0%} of them: a head whose "
        "strongest patch or attention is no more often on panels than that is no map of them."
    )
    heads = {
        head.name: f"points at a panel in {head.pointing:.0%} of the windows, IoU {head.iou:.2f}, {head.inside:.0%} of "
        "its weight on panels" + ("" if head.sink is None else f", {head.sink:.0%} on nothing")
        for head in seen.heads
    }
    return {"audit": heads, "audit_lead": lead}


def doubt_of(ledger: Ledger) -> str:
    """Why no range holds for the total, or nothing.

    Most of the area is of pictures with other pixels than what the range was made on.  Windows that are doubtful for
    other reasons, such as a low probability, were among those that it was made on.
    """
    counts, share = ledger.counts(), ledger.doubts().get(UNLIKE, 0.0)
    if share > 0.5:
        return f"{share:.0%} of the area is abstained ({UNLIKE})"
    # nothing was found, in pictures of which it says nothing
    return f"{UNLIKE} in all windows" if counts.get("gsd-out-of-range") and not counts.get("ok") else ""


def how_bounded(measure: Measure, ledger: Ledger) -> str:
    """What the bounds of the total rest on, in words."""
    if doubt := doubt_of(ledger):
        what = "first estimate" if measure.calibration is None else "calibration"
        return f"no range: the {what} does not hold here, {doubt}"
    if measure.calibration is not None:
        most = [f"{share:.0%} of the area is abstained ({why})" for why, share in ledger.doubts().items()
                if share > 0.5 and why != CUT]  # fmt: skip
        return ", but ".join([f"90 %, calibrated: {measure.calibration.region or 'unnamed'}", *most[:1]])
    return (
        "a first estimate, fitted to hold for 90 % of other tiles"
        if measure.area_ratio
        else "a first estimate, never compared with true areas"
    )


def notes_of(
    plan: Plan, ledger: Ledger, measure: Measure, options: Options, power: Power, drawn: Mapping[int, Drawn]
) -> list[str]:
    """What the reader of a report has to know, most important first."""
    calibration, area_ratio, doubt = measure.calibration, measure.area_ratio, doubt_of(ledger)
    if calibration:
        trust = [
            f"Areas are calibrated on {calibration.windows:,} windows of {calibration.places:,} places with masks "
            f"(region: {calibration.region or 'unnamed'}): 90 % of the true areas of single windows lie between "
            "area_low and area_high, if these images are like those.",
        ]
        if not options.labels:
            trust.append("The total is corrected for what the masks say was missed: it is not the sum of the panels.")
        if not options.labels and not doubt:
            trust.append(
                "The total's range is that of the sum: errors of single windows even out in it, those of a whole place "
                "do not. It holds for one more place like those that the masks come from."
            )
        if calibration.notes:
            trust.append(f"Said of the masks when the calibration was made: {'; '.join(calibration.notes)}.")
        elif calibration.places == 1:
            trust.append("All masks are of one place: how far the total of another place is off is not known.")
        if apart := [s for s in plan.sources if not calibration.covers(s.gsd_m)]:
            low, high = calibration.gsd_m
            trust.append(
                f"{len(apart):,} of the images have pixels of another size than the {low:.3g} to {high:.3g} m that the "
                f"calibration was made on (first: {apart[0].name}, {apart[0].gsd_m:.3g} m): it may not hold for them."
            )
        largest = calibration.sizes_m2[1]
        if larger := sum((window.area_m2 or 0) > largest for window in ledger.windows()):
            trust.append(
                f"{counted(larger, 'window')} {'holds' if larger == 1 else 'hold'} more than {largest:,.0f} m², the "
                "most that any did on which the calibration was made: it may not hold for them."
            )
    elif area_ratio:
        trust = [
            "Areas are a first estimate from the detector's attention and evidence, not calibrated to this region: "
            f"nine in ten true areas lay between {area_ratio[0]:g} and {area_ratio[1]:g} times the figure given on the "
            "tiles that these factors were fitted on, and elsewhere that is unchecked.",
        ]
        if not options.labels and not doubt:
            trust.append("The total's range applies the same factors to the sum, as if all errors went the same way.")
    else:
        trust = [
            "Areas are a first estimate from the detector's attention and evidence, and this detector's were never "
            "compared with true ones: they may be several times too large or too small, and no range is given.",
        ]
    if doubt:
        what = "first estimate" if calibration is None else "calibration"
        trust.insert(0, DOUBTED.format(what=what, doubt=doubt))
    notes = [
        *trust,
        f"A panel is a group of touching cells, each at least {measure.level:.0%} panel. Panels carry the whole area "
        "of their windows; windows of tiles.csv that overlap count ground twice. One installation may be several "
        "panels, and several that touch are one: rely on square metres rather than on their number.",
        f"Power is module area divided by {power.m2_per_kw:.3g} m² per kW. Tilt: {power.tilt.words}.",
    ]
    if ledger.abstained()[0]:
        notes.append(
            "Abstained means that the area of a window should not be relied on, for the reason given. It counts in the "
            "totals all the same; tiles.csv names these windows."
        )
    crs = {source.crs for source in plan.sources}
    bare = sum(source.crs is None for source in plan.sources)
    if bare:
        what = "No image has" if crs == {None} else f"{bare:,} of the images lack"
        notes.append(
            f"{what} a coordinate reference system: their results are in pixels (column, row) of each image, so in a "
            "GIS outlines of several images lie on each other (the column source tells them apart), and no EPSG:4326 "
            "file is made of them."
        )
    if len(crs - {None}) > 1:
        notes.append("The images have different coordinate reference systems: panels are given in EPSG:4326.")
    if options.aoi:
        notes.append(
            "Panels, and the ground that was surveyed, are cut off at the area of interest; windows that reach over "
            "its edge are given whole in tiles.csv and the heat map."
        )
    if any(len(some.outlines) == OUTLINES for some in drawn.values()):
        notes.append(f"Maps in the report show the {OUTLINES:,} largest panels; panels.* hold all.")
    if len(drawn) > MAPS:
        notes.append(f"Maps of the {MAPS} images with most panels are shown; those of all others are in heatmaps/.")
    said = [note for source in plan.sources for note in source.notes]
    notes += said[:LISTED]
    if len(said) > LISTED:
        notes.append(f"... and {len(said) - LISTED:,} more notes of this kind; tiles.csv gives every window's status.")
    return notes


def plain(values: dict) -> dict:
    """As JSON takes it."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
