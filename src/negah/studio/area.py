"""A part to survey, drawn on a map of the pictures: corners that are clicked or typed, which are the same thing.

320104.50 5399950.20          x y of a corner, in the coordinates of the map
320161.00 5399948.00
320150.75 5399890.10
                              an empty line begins another area
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import geopandas
import numpy as np
import shapely
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image, ImageDraw

from negah.errors import InputError
from negah.images.overview import Mosaic, mosaic
from negah.images.sources import find_sources
from negah.progress import Progress
from negah.studio import parts
from negah.studio.work import UPLOADED, Work, gathered

LONGEST = 1000  # pixels along the map's longer side
FILE = "area.gpkg"
POLYGONS = [".geojson", ".json", ".gpkg", ".parquet", ".geoparquet"]
LINE, EDGE = (255, 210, 63), (28, 32, 36)  # of what is drawn, and around it

Corner = tuple[float, float]


class Given(NamedTuple):
    """What says where to survey (components of Gradio): the map, corners on it, and files of polygons."""

    ground: Any
    corners: Any
    areas: Any
    parcels: Any


def lay_out(work: Work, pictures: Any) -> Given:
    """The part of the room where an area is drawn.  pictures: the component that has the files."""
    import gradio as gr

    with gr.Accordion("Only a part: draw the area to survey", open=False), gr.Row():
        with gr.Column(scale=1, min_width=280):
            showing = parts.controls("Show the map")
            corners = gr.Textbox(
                label="Corners", lines=6, max_lines=12, placeholder="320104.5 5399950.2",
                info="Click on the map, or type: x y in its coordinates, a line each. An empty line begins another.",
            )  # fmt: skip
            with gr.Row():
                another = gr.Button("Another area", size="sm", min_width=90)
                back = gr.Button("Take back", size="sm", min_width=90)
                clear = gr.Button("Clear", size="sm", min_width=70)
            areas = gr.File(label="Or a file of areas", file_types=POLYGONS, file_count="single", height=132)
            parcels = gr.File(label="Parcels to sum up by", file_types=POLYGONS, file_count="single", height=132)
        with gr.Column(scale=2, min_width=320):
            picture = gr.Image(
                label="Map", show_label=False, visible=False, interactive=False, format="jpeg", buttons=[],
                alt_text="map of the pictures, with the areas that are drawn", elem_classes="map",
            )  # fmt: skip
            told = gr.HTML(parts.empty("The map will be here, once its pictures say where they lie."))
    ground = gr.State(None)
    parts.wire(
        work, "area", showing, [pictures, corners], [ground, picture, told], prepare,
        lambda shown: [shown[0], gr.update(value=drawn(*shown), visible=True), note(*shown)],
    )  # fmt: skip

    def click(event: gr.SelectData, found: Mosaic | None, text: str) -> str:
        return added(found, text, event.index[0], event.index[1])

    def redraw(found: Mosaic | None, text: str) -> tuple[Any, Any]:
        if found is None:
            return gr.skip(), gr.skip()
        return drawn(found, text), note(found, text)

    quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
    picture.select(click, [ground, corners], corners, **quiet)
    another.click(lambda text: text.rstrip("\n") + "\n\n" if text.strip() else "", corners, corners, **quiet)
    back.click(lambda text: "\n".join(text.rstrip("\n").split("\n")[:-1]), corners, corners, **quiet)
    clear.click(lambda: "", None, corners, **quiet)
    corners.change(redraw, [ground, corners], [picture, told], **quiet)
    return Given(ground, corners, areas, parcels)


def prepare(folder: Path, files: Sequence[str] | None, corners: str) -> Callable[[Progress], tuple[Mosaic, str]]:
    """The map that the page asks for, and the corners that are to be on it."""
    sources = find_sources(gathered(files, folder), root=folder / UPLOADED)
    return lambda progress: (mosaic(sources, longest=LONGEST, progress=progress), corners)


def added(found: Mosaic | None, text: str, col: float, row: float) -> str:
    """The corners with one more, at a pixel of the map."""
    if found is None:
        return text
    x, y = found.transform * (col + 0.5, row + 0.5)
    # so many digits as tell half a pixel of the map
    digits = max(0, 1 - math.floor(math.log10(abs(found.transform.a))))
    line = f"{x:.{digits}f} {y:.{digits}f}"
    return f"{text}\n{line}" if text and not text.endswith("\n") else f"{text}{line}"


def read(text: str) -> list[list[Corner]]:
    """The corners of each area.  Raises InputError for a line that is none."""
    areas: list[list[Corner]] = [[]]
    for number, line in enumerate(text.splitlines(), 1):
        words = line.replace(",", " ").split()
        if not words:
            areas.append([])
            continue
        try:
            x, y = map(float, words)
        except ValueError:
            raise InputError(f"corners, line {number}: {line.strip()!r} is no corner: type x y, two numbers") from None
        if not (math.isfinite(x) and math.isfinite(y)):
            raise InputError(f"corners, line {number}: {line.strip()!r} is nowhere: type x y, two numbers")
        areas[-1].append((x, y))
    return [area for area in areas if area]


def polygons(text: str) -> list[shapely.Polygon]:
    """The areas.  Raises InputError for what is none."""
    found = []
    for number, area in enumerate(read(text), 1):
        polygon = shapely.Polygon(area) if len(set(area)) > 2 else shapely.Polygon()
        if not polygon.area > 0:
            raise InputError(f"area {number} encloses nothing: give it three corners or more, not on one line")
        found.append(polygon)
    return found


def chosen(folder: Path, ground: Mosaic | None, corners: str, areas: str | None) -> Path | None:
    """The file with the areas to stay inside of; None for everything.  Raises InputError where that is not clear."""
    drawn_ones = polygons(corners or "")
    if areas and drawn_ones:
        raise InputError("an area is drawn, and a file of areas is given: leave one of them out")
    if not drawn_ones:
        return Path(areas) if areas else None
    if ground is None:
        raise InputError("corners are in the coordinates of the map: show the map first")
    path = folder / FILE
    geopandas.GeoDataFrame(geometry=drawn_ones, crs=ground.crs.to_wkt()).to_file(path, driver="GPKG")
    return path


def drawn(found: Mosaic, text: str) -> UInt8[ndarray, "h w 3"]:
    """The map with the areas on it; a line that cannot be read leaves it as it is."""
    image = Image.fromarray(found.image)
    try:
        areas = read(text or "")
    except InputError:
        return found.image
    pen = ImageDraw.Draw(image)
    back = ~found.transform
    for area in areas:
        at = [back * corner for corner in area]
        line = [*at, at[0]] if len(at) > 2 else at
        if len(line) > 1:
            pen.line(line, fill=EDGE, width=6, joint="curve")
            pen.line(line, fill=LINE, width=3, joint="curve")
        for x, y in at:
            pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=LINE, outline=EDGE, width=2)
    return np.asarray(image)


def note(found: Mosaic, text: str) -> str:
    """The line below the map: how much is drawn, or why it cannot be read, and what is not on it."""
    lines = list(found.left_out[: parts.LISTED])
    if more := len(found.left_out) - len(lines):
        lines.append(f"and {more:,} more are not on the map")
    try:
        areas = read(text or "")
        count = sum(map(len, areas))
        told = f"{len(areas)} area{'s' * (len(areas) > 1)}, {count} corner{'s' * (count > 1)}"
        first = told if areas else "Click the corners of the area."
    except InputError as error:
        first = str(error)
    return parts.lines([f"{first} (coordinates: {found.crs})", *lines])
