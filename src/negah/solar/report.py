"""The report: one HTML file with the map, the numbers and the doubts, that opens anywhere and loads nothing.

`write_report` turns plain arrays and texts into a page; it knows nothing of rasters, models or coordinates. Pictures
are embedded (JPEG for photographs, palette PNG for layers) and shrunk until the whole page fits into BUDGET bytes;
whatever had to be left out for that is said on the page. The page works without JavaScript as a static picture with
all its numbers, and a content security policy with the script's own hash forbids it any other script and every
connection, so that a file name made to be hostile stays text.
"""

import base64
import hashlib
import io
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from PIL import Image

from negah.errors import OutputError

BUDGET = 4_500_000
"""Most bytes a page may have: it must pass through mail and open on a phone."""
MAP_PIXELS = 1400
MAPS = 40
FINDS = 24
ASKED = 12
LISTED = 200
LONGEST = 1500
"""Most pixels along a map's longer side; maps; finds in each half of the gallery; questions; rows in a list; letters in
a text."""

OUTLINE_SHARE, MAP_SHARE, FIND_SHARE, ASKED_SHARE = 0.2, 0.5, 0.2, 0.05
"""How outlines, maps, the gallery and answers share the budget; the rest is text."""


@dataclass(frozen=True)
class Find:
    """One window of the gallery: the picture, and which fraction of each cell of a grid over it is taken for panel."""

    image: UInt8[ndarray, "h w 3"]
    fraction: Float[ndarray, "gh gw"]
    caption: str
    probability: float


@dataclass(frozen=True)
class Overview:
    """One map: a picture of a whole source, the probability over it (NaN: not looked at), and the panels' outlines.

    heat: None for a sheet of many pictures, each of one window.
    """

    name: str
    image: UInt8[ndarray, "h w 3"]
    heat: Float[ndarray, "gh gw"] | None
    outlines: Sequence[ndarray] = ()
    """Polygons, [n, 2] (x, y) in pixels of `image`, not closed."""
    labels: Sequence[str] = ()
    """What is shown when the pointer rests on an outline, one per outline or none at all."""
    metres_per_px: float | None = None
    """Ground size of a pixel of `image`, for the scale bar; None leaves the bar out."""
    panels: int | None = None
    """How many panels the outlines are of, where some panels have several; None: one each."""
    places: Sequence[tuple[tuple[float, float, float, float], str]] = ()
    """Parts of `image` (left, top, width, height) with a name, which is shown when the pointer rests on one."""


@dataclass(frozen=True)
class Shown:
    """A picture that was compared with words.  standing: None where there are no reference pictures."""

    image: UInt8[ndarray, "h w 3"]
    caption: str
    cosine: float
    standing: float | None


@dataclass(frozen=True)
class Asked:
    """A question in words, what is told of the answer, and the pictures that fit best, best first."""

    words: str
    told: str
    shown: Sequence[Shown]


@dataclass(frozen=True)
class Report:
    """All that the page shows. Texts may hold anything: they are escaped."""

    title: str
    totals: dict[str, str]
    """Headline numbers in their order, label to value; lines after the first are set small under the value."""
    threshold: float
    overviews: Sequence[Overview] = ()
    most_certain: Sequence[Find] = ()
    least_certain: Sequence[Find] = ()
    areas_m2: Sequence[float] = ()
    """Area of each find; of an even sample of them where there are too many to hold (`finds` then says how many)."""
    probabilities: Sequence[float] = ()
    """Probability of each window; likewise (`windows`)."""
    finds: int | None = None
    windows: int | None = None
    failures: Sequence[tuple[str, str]] = ()
    """(what, why)"""
    not_looked_at: Sequence[str] = ()
    notes: Sequence[str] = ()
    provenance: dict[str, str] = field(default_factory=dict)
    audit: dict[str, str] = field(default_factory=dict)
    """Where each head of the detector looks, by what masks say; `audit_lead` says on what that was seen."""
    audit_lead: str = ""
    asked: Sequence[Asked] = ()
    asked_lead: str = ""
    """What the figures of `asked` mean."""


def write_report(report: Report, path: str | Path) -> None:
    """Write the page, whole or not at all: it takes its name only when it is complete.

    Raises OutputError where it cannot be written.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        try:
            part.write_bytes(render(report).encode("utf-8", "replace"))
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as problem:
        why = problem.strerror or problem
        raise OutputError(f"cannot write the report {path}: {why}; make room or choose another place") from problem


def render(report: Report) -> str:
    """The page as text."""
    room = resources.files("negah.solar")
    script = (room / "report.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template((room / "report.html").read_text("utf-8")).substitute(
        title=escape(report.title),
        maps=_maps(report.overviews),
        totals="".join(_total(label, value) for label, value in report.totals.items()),
        charts_lead=_charts_lead(report),
        charts=_areas_chart(report.areas_m2, report.finds)
        + _probabilities_chart(report.probabilities, report.threshold, report.windows),
        gallery=_gallery(report),
        asked=_asked(report),
        unseen=_unseen(report),
        notes=_list(_text(note) for note in report.notes) or '<p class="none">No notes were left.</p>',
        provenance=_facts(report.provenance),
        audit=_audit(report),
        script_hash=f"sha256-{digest}",
        script=script,
    )


def _facts(facts: dict[str, str]) -> str:
    return "".join(f"<div><dt>{_text(key)}</dt><dd>{_text(value)}</dd></div>" for key, value in facts.items())


def _audit(report: Report) -> str:
    """A section of its own, where there is something to say."""
    if not report.audit:
        return ""
    lead = f'<p class="lead">{_text(report.audit_lead)}</p>'
    return f'<section><h2>Where the heads look</h2>{lead}<dl class="facts">{_facts(report.audit)}</dl></section>'


def _text(value: object) -> str:
    """Escaped, and kept from turning the direction of the text around it (names in Persian, or made to deceive)."""
    text = str(value)
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}... ({len(text):,} characters)"
    return f"<bdi>{escape(text)}</bdi>"


def _total(label: str, value: str) -> str:
    head, *rest = value.split("\n")
    small = "".join(f"<small>{escape(line)}</small>" for line in rest)
    return f"<div><dt>{escape(label)}</dt><dd>{escape(head)}{small}</dd></div>"


# ---------------------------------------------------------------------------------------------------------------- maps


def _maps(overviews: Sequence[Overview]) -> str:
    if not overviews:
        return '<p class="none">There is no map: none of the images could be read.</p>'
    shown = overviews[:MAPS]
    picker = ""
    if len(shown) > 1:
        options = "".join(f"<option>{escape(overview.name)}</option>" for overview in shown)
        left = f"<span>the first {len(shown)} of {len(overviews)}</span>" if len(overviews) > len(shown) else ""
        select = f'<select id="picture">{options}</select>'
        picker = f'<div class="picker"><label for="picture">Picture</label>{select}{left}</div>'
    return picker + "".join(_map(overview, index, 1 / len(shown)) for index, overview in enumerate(shown))


def _map(overview: Overview, index: int, share: float) -> str:
    height, width = overview.image.shape[:2]
    unseen = np.zeros((1, 1), bool) if overview.heat is None else ~np.isfinite(overview.heat)
    frame = f'width="{width}" height="{height}" preserveAspectRatio="none"'
    layers = f'<image {frame} href="{_jpeg(overview.image, int(BUDGET * MAP_SHARE * 0.7 * share))}"/>'
    if unseen.any():
        layers += f'<image class="unseen" {frame} href="{_mask_png(unseen)}"/>'
    if overview.heat is not None:
        heat = _heat_png(overview.heat, int(BUDGET * MAP_SHARE * 0.3 * share))
        layers += f'<image class="heat" {frame} opacity="0.4" href="{heat}"/>'
    layers += "".join(
        f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="#fff" fill-opacity="0">'
        f"<title>{escape(told)}</title></rect>"
        for (x, y, w, h), told in overview.places
    )
    paths, drawn = _outlines(overview, int(BUDGET * OUTLINE_SHARE * share))
    layers += f'<use class="halo" href="#outlines-{index}"/><g class="lines"><g id="outlines-{index}">{paths}</g></g>'
    name = escape(overview.name, quote=True)
    count = len(overview.outlines)
    panels = count if overview.panels is None else overview.panels
    facts = [
        f"{panels:,} panel{'s' * (panels != 1)}" if drawn == count else f"the {drawn:,} largest of {count:,} outlines"
    ]
    metres = overview.metres_per_px if overview.metres_per_px and math.isfinite(overview.metres_per_px) else None
    if metres and not overview.places:
        facts.append(f"{_metres(width * metres)} &times; {_metres(height * metres)}")
    told = ", ".join(facts)
    keys, opacity = '<span class="key panel">panels</span>', ""
    if overview.heat is not None:
        keys += '<span class="key heat">probability</span>'
        opacity = (
            '<label class="control">opacity <input type="range" min="0" max="100" value="40" aria-label="Opacity of the'
            ' probability layer"></label>'
        )
    if unseen.any():
        keys += '<span class="key blank">not looked at</span>'
    hint = "Drag to move, choose the map and scroll to zoom; keys: arrows, + and &minus;, 0 for all"
    return (
        f'<figure><div class="stage" tabindex="0" role="group" style="--shape:{min(max(width / height, 0.8), 1.8):.3f}"'
        f' data-metres="{metres or ""}" aria-label="Map of {name}. {hint}.">'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{name}: {told}">{layers}</svg>'
        '<div class="tools"><button type="button" aria-label="Zoom in">+</button>'
        '<button type="button" aria-label="Zoom out">&minus;</button>'
        '<button type="button" aria-label="Show all">⤢</button></div>'
        '<div class="scale"> <i></i></div></div>'
        f'<figcaption><div class="under"><span class="name">{_text(overview.name)}</span><span>{told}</span></div>'
        f'<div class="under">{keys}'
        f'<label class="control"><input type="checkbox" checked> outlines</label>{opacity}</div>'
        f'<p class="under control">{hint}.</p></figcaption></figure>'
    )


def _metres(length: float) -> str:
    return f"{length / 1000:.3g} km" if length >= 1000 else f"{length:.3g} m"


def _outlines(overview: Overview, limit: int) -> tuple[str, int]:
    """SVG paths of the outlines, largest first, until `limit` bytes are used up; and how many those are."""
    labels = overview.labels or [""] * len(overview.outlines)
    rings = [(np.asarray(ring, dtype=float), label) for ring, label in zip(overview.outlines, labels, strict=True)]
    rings.sort(key=lambda item: -_area(item[0]))
    paths: list[str] = []
    used = 0
    for ring, label in rings:
        if len(ring) < 3 or not np.isfinite(ring).all():
            continue
        points = "L".join(f"{x:.1f} {y:.1f}" for x, y in ring)
        title = f"<title>{escape(label)}</title>" if label else ""
        path = f'<path d="M{points}Z">{title}</path>'
        used += len(path.encode())
        if used > limit:
            break
        paths.append(path)
    return "".join(paths), len(paths)


def _area(ring: ndarray) -> float:
    if len(ring) < 3:
        return 0.0
    x, y = ring[:, 0], ring[:, 1]
    area = abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return area if math.isfinite(area) else 0.0


# ------------------------------------------------------------------------------------------------------------ pictures


def _jpeg(image: UInt8[ndarray, "h w 3"], limit: int) -> str:
    """The picture as a JPEG data URI of at most about `limit` bytes: first the quality gives way, then the size."""
    picture = Image.fromarray(np.ascontiguousarray(image), "RGB")
    picture.thumbnail((MAP_PIXELS, MAP_PIXELS), Image.Resampling.LANCZOS)
    while True:
        for quality in (86, 70):
            data = _encode(picture, "JPEG", quality=quality, optimize=True)
            if len(data) * 4 / 3 <= limit or (quality == 70 and max(picture.size) <= 64):
                return _uri("jpeg", data)
        picture = _shrunk(picture, limit / (len(data) * 4 / 3))


def _heat_png(heat: Float[ndarray, "gh gw"], limit: int) -> str:
    """Probability 0 to 1 as a PNG data URI that turns from clear to violet to rose; NaN is clear."""
    levels = np.linspace(0, 1, 64)
    stops = [0.0, 0.35, 0.7, 1.0]
    colours = np.stack(
        [np.interp(levels, stops, c) for c in ([70, 139, 255, 255], [40, 63, 79, 217], [160, 209, 160, 194])]
    )
    # Alpha rises quickly and then stays: a faint suspicion must be visible, and certainty must not hide the roof.
    alpha = np.clip(levels * 2.2 - 0.08, 0, 1) * 255
    index = np.round(np.clip(np.nan_to_num(heat, nan=0.0, posinf=1.0, neginf=0.0), 0, 1) * 63).astype(np.uint8)
    return _palette_png(index, colours.T, alpha, limit)


def _mask_png(mask: ndarray) -> str:
    """Cells that are True as translucent grey."""
    return _palette_png(mask.astype(np.uint8), np.array([[0, 0, 0], [90, 96, 102]]), np.array([0, 190]), BUDGET // 20)


def _palette_png(index: UInt8[ndarray, "h w"], colours: ndarray, alpha: ndarray, limit: int) -> str:
    """A PNG of palette indices. Shrinking picks cells instead of averaging: indices are not numbers to be mixed."""
    picture = Image.fromarray(np.ascontiguousarray(index), "L")
    while True:
        painted = picture.copy()
        painted.putpalette(np.round(colours).astype(np.uint8).tobytes())
        data = _encode(painted, "PNG", optimize=True, transparency=np.round(alpha).astype(np.uint8).tobytes())
        if len(data) * 4 / 3 <= limit or max(picture.size) <= 32:
            return _uri("png", data)
        picture = _shrunk(picture, limit / (len(data) * 4 / 3), Image.Resampling.NEAREST)


def _shrunk(picture: Image.Image, excess: float, how: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    """Smaller by about the factor `excess` in its number of pixels; in steps, as bytes do not quite follow pixels."""
    factor = min(max(math.sqrt(excess), 0.5), 0.9)
    width, height = (max(1, int(side * factor)) for side in picture.size)
    return picture.resize((width, height), how)


def _encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


# -------------------------------------------------------------------------------------------------------------- charts


def _charts_lead(report: Report) -> str:
    areas = _finite(report.areas_m2)
    if not len(areas):
        if report.not_looked_at and not len(_finite(report.probabilities)):
            return "No window was looked at."
        return "No panels were found above the threshold."
    low, middle, high = np.percentile(areas, [25, 50, 75])
    return (
        f"Half of the finds lie between {_number(low)} and {_number(high)} m², the middle one has {_number(middle)} m²,"
        f" the largest {_number(areas.max())} m²."
    )


def _finite(values: Sequence[float]) -> Float[ndarray, " n"]:
    array = np.asarray(values, dtype=float).reshape(-1)
    return array[np.isfinite(array)]


def _number(value: float) -> str:
    """Three digits that matter, in plain notation."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _of_all(sample: int, total: int | None) -> str:
    return f" Shown is an even sample of {sample:,} of {total:,}." if total and total > sample else ""


def _areas_chart(areas_m2: Sequence[float], total: int | None) -> str:
    areas = _finite(areas_m2)
    areas = areas[areas > 0]
    title = "Area of each find"
    if not len(areas):
        return _chart(title, "Nothing to show.", "")
    # Installations run from a few m2 to fields of hectares, so the axis counts in factors, not in steps.
    low, high = math.log10(areas.min()), math.log10(areas.max())
    if high - low < 0.6:
        low, high = (low + high) / 2 - 0.3, (low + high) / 2 + 0.3
    edges = np.linspace(low, high, min(40, max(12, round(math.sqrt(len(areas)) * 2))) + 1)
    counts, _ = np.histogram(np.clip(np.log10(areas), low, high), edges)
    bars = [
        (i / len(counts), 1 / len(counts), int(n), f"{_number(10**a)} to {_number(10**b)} m²: {n:,}", True)
        for i, (n, a, b) in enumerate(zip(counts, edges[:-1], edges[1:], strict=True))
    ]
    leads = (1, 2, 5) if high - low < 2.4 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks = [((math.log10(m * 10.0**e) - low) / (high - low), _number(m * 10.0**e)) for e in powers for m in leads]
    without = len(areas_m2) - len(areas)
    told = (
        f"{len(areas):,} {'find' if len(areas) == 1 else 'finds'}"
        + (f", and {without:,} whose area is not known" if without else "")
        + "."
    )
    told += _of_all(len(areas_m2), total)
    return _chart(
        title, told, _plot(bars, [t for t in ticks if 0 <= t[0] <= 1], "m², on a logarithmic axis", log=False)
    )


def _probabilities_chart(probabilities: Sequence[float], threshold: float, total: int | None) -> str:
    known = np.clip(_finite(probabilities), 0, 1)
    title = "Probability of each window"
    if not len(known):
        return _chart(title, "Nothing to show.", "")
    bins = 40
    counts, _ = np.histogram(known, np.linspace(0, 1, bins + 1))
    bars = [
        (i / bins, 1 / bins, int(n), f"{i / bins:.3f} to {(i + 1) / bins:.3f}: {n:,}", (i + 0.5) / bins >= threshold)
        for i, n in enumerate(counts)
    ]
    above = int((known >= threshold).sum())
    of, reach = f"{len(known):,} window{'s' * (len(known) != 1)}", "reaches" if above == 1 else "reach"
    told = f"{above:,} of {of} {reach} the threshold of {_number(threshold)}."
    told += _of_all(len(probabilities), total) + " Heights grow with the logarithm."
    marks = [(i / 5, f"{i / 5:.1f}") for i in range(6)]
    at = threshold if 0 <= threshold <= 1 else None
    return _chart(title, told, _plot(bars, marks, "probability of panels", log=True, threshold=at))


def _chart(title: str, told: str, plot: str) -> str:
    return f'<figure class="chart"><figcaption><h3>{title}</h3><p>{told}</p></figcaption>{plot}</figure>'


def _plot(
    bars: Sequence[tuple[float, float, int, str, bool]],
    marks: Sequence[tuple[float, str]],
    unit: str,
    *,
    log: bool,
    threshold: float | None = None,
) -> str:
    """A histogram: bars (left, width, count, told, lit) in fractions of the plot's width, counts upward.

    The bars are SVG stretched to the figure; the labels are HTML over it, so that they keep their size on a phone.
    """
    scale = math.log1p if log else float
    top_count = max(max(bar[2] for bar in bars), 1)
    grid = [10**k for k in range(7) if 10**k <= top_count] if log else _steps(top_count)
    top = scale(top_count) * 1.02
    shapes, labels = "", ""
    for count in [0, *grid]:
        y = 100 - 100 * scale(count) / top
        shapes += f'<line x1="0" x2="100" y1="{y:.2f}" y2="{y:.2f}"/>'
        labels += f'<span class="y" style="bottom:{100 - y:.2f}%">{count:,}</span>'
    for left, width, count, told, lit in bars:
        height = 100 * scale(count) / top
        if count:
            across = f'x="{100 * left + 8 * width:.2f}" width="{84 * width:.2f}"'
            up = f'y="{100 - height:.2f}" height="{height:.2f}"'
            shapes += f"<rect {across} {up}{' class=on' if lit else ''}><title>{escape(told)}</title></rect>"
    if threshold is not None:
        x = 100 * threshold
        side = "early" if threshold < 0.15 else "late" if threshold > 0.85 else ""
        shapes += f'<line class="mark-line" x1="{x:.2f}" x2="{x:.2f}" y1="-4" y2="100"/>'
        labels += f'<span class="tip {side}" style="left:{x:.2f}%">threshold {_number(threshold)}</span>'
    labels += "".join(f'<span class="x" style="left:{100 * x:.2f}%">{text}</span>' for x, text in marks)
    told = escape("; ".join(bar[3] for bar in bars if bar[2]), quote=True)
    return (
        f'<div class="plot"><svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{told}">'
        f'{shapes}</svg>{labels}<span class="unit">{unit}</span></div>'
    )


def _steps(top: int) -> list[int]:
    """Two to five round counts up to `top`."""
    power = 10 ** max(0, math.floor(math.log10(top)))
    step = next(s for s in (power * f // 10 for f in (2, 5, 10, 20, 50)) if s >= 1 and top / s < 6)
    return list(range(step, top + 1, step))


# ------------------------------------------------------------------------------------------------- gallery and lists


def _gallery(report: Report) -> str:
    if not report.most_certain and not report.least_certain:
        return '<p class="none">No finds to show.</p>'
    limit = int(BUDGET * FIND_SHARE / (2 * FINDS))
    halves = (
        ("Most certain", "What the model was surest of.", report.most_certain),
        (
            "Least certain",
            "Closest to the threshold: look at these first when you check the result.",
            report.least_certain,
        ),
    )
    out = '<input class="switch" type="checkbox" id="marks" checked>'
    out += '<label for="marks">show what was taken for panel</label>'
    for title, told, finds in halves:
        if not finds:
            continue
        if len(finds) > FINDS:
            told += f" {FINDS} of {len(finds):,} are shown."
        cards = "".join(_card(find, limit) for find in finds[:FINDS])
        out += f'<h3>{title}</h3><p>{told}</p><ul class="grid">{cards}</ul>'
    return out


def _card(find: Find, limit: int) -> str:
    rows, columns = find.fraction.shape
    fraction = np.nan_to_num(np.asarray(find.fraction, dtype=float), nan=0.0)
    index = np.round(np.clip(fraction, 0, 1) * 15).astype(np.uint8)
    tint = _palette_png(index, np.tile([255.0, 210.0, 63.0], (16, 1)), np.linspace(0, 150, 16), limit // 5)
    edges = border(fraction >= 0.5)
    if len(edges) > limit // 4:  # a grid so fine that its border is not a line any more
        edges = ""
    known = math.isfinite(find.probability)
    percent = f"{100 * min(max(find.probability, 0), 1):.1f}" if known else "0"
    shown = f"{find.probability:.3f}" if known else "unknown"
    caption = escape(find.caption, quote=True)
    return (
        f'<li><figure><div class="photo"><img alt="{caption}" src="{_jpeg(find.image, limit // 2)}">'
        f'<svg class="seen" viewBox="0 0 {columns} {rows}" preserveAspectRatio="none" aria-hidden="true">'
        f'<image width="{columns}" height="{rows}" preserveAspectRatio="none" href="{tint}"/>'
        f'<path d="{edges}"/></svg></div>'
        f'<div class="p">{shown}<i><b style="width:{percent}%"></b></i></div>'
        f"<figcaption>{_text(find.caption)}</figcaption></figure></li>"
    )


def _asked(report: Report) -> str:
    """A section of its own, where something was asked."""
    if not report.asked:
        return ""
    shown = report.asked[:ASKED]
    limit = int(BUDGET * ASKED_SHARE / max(1, sum(len(asked.shown) for asked in shown)))
    out = f'<section class="gallery asked"><h2>In your words</h2><p class="lead">{_text(report.asked_lead)}</p>'
    for asked in shown:
        cards = "".join(_asked_card(picture, limit) for picture in asked.shown)
        out += f'<h3>{_text(asked.words)}</h3><p>{_text(asked.told)}</p><ul class="grid">{cards}</ul>'
    if len(report.asked) > ASKED:
        out += f'<p class="more">and {len(report.asked) - ASKED:,} more questions, in the tables beside this page</p>'
    return f"{out}</section>"


def _asked_card(picture: Shown, limit: int) -> str:
    bar = "" if picture.standing is None else f'<i><b style="width:{100 * picture.standing:.1f}%"></b></i>'
    standing = "" if picture.standing is None else f", standing {100 * picture.standing:.1f} %"
    return (
        f'<li><figure><div class="photo"><img alt="{escape(picture.caption, quote=True)}" '
        f'src="{_jpeg(picture.image, limit)}"></div><div class="p">{picture.cosine:.3f}{bar}</div>'
        f"<figcaption>cosine{standing}<br>{_text(picture.caption)}</figcaption></figure></li>"
    )


def border(inside: Bool[ndarray, "row col"]) -> str:
    """The edges between cells inside and outside, as an SVG path in cells."""
    padded = np.pad(inside, 1)
    rows, columns = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    path = "".join(f"M{c} {r}h1" for r, c in zip(rows, columns, strict=True))
    rows, columns = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    return path + "".join(f"M{c} {r}v1" for r, c in zip(rows, columns, strict=True))


def _unseen(report: Report) -> str:
    if not report.failures and not report.not_looked_at:
        return '<p class="lead">Nothing was left out, and nothing failed: all that was given was looked at.</p>'
    told = _list(_text(line) for line in report.not_looked_at)
    if report.failures:
        count = len(report.failures)
        told += f"<h3>{count:,} {'input' if count == 1 else 'inputs'} failed</h3>"
        told += _list(f'<span class="failed">{_text(what)}</span><br>{_text(why)}' for what, why in report.failures)
    return told


def _list(items: Iterable[str]) -> str:
    """An HTML list of at most LISTED items, which says how many more there are; nothing for no items."""
    rows = list(items)
    more = len(rows) - LISTED
    shown = "".join(f"<li>{row}</li>" for row in rows[:LISTED])
    if more > 0:
        shown += f'<li class="more">and {more:,} more, listed in the tables beside this page</li>'
    return f'<ul class="plain">{shown}</ul>' if shown else ""
