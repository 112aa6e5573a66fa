"""Each room in a browser: upload, act, see the result, download."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def opened(page, name: str):
    """A room, by its tab."""
    page.get_by_role("tab", name=name, exact=True).click()
    panel = page.get_by_role("tabpanel").filter(visible=True)
    panel.get_by_role("button", name=name, exact=True).wait_for()
    return panel


def drop(panel, *paths: Path) -> None:
    panel.locator("input[type=file]").first.set_input_files([str(path) for path in paths])
    panel.get_by_text(paths[0].stem).first.wait_for()


def start(panel, name: str) -> None:
    panel.get_by_role("button", name=name, exact=True).click()


def downloaded(page, panel, name: str) -> Path:
    with page.expect_download() as found:
        panel.get_by_role("link", name=name).or_(panel.locator(f"a[download='{name}']")).first.click()
    return Path(found.value.path())


def test_survey_of_a_raster(page, town):
    room = opened(page, "Survey")
    drop(room, town)
    start(room, "Survey")
    room.locator("dl.totals").wait_for()
    assert "9 of 9 windows" in room.locator("dl.totals").inner_text()
    report = page.frame_locator("iframe[title='Report of the survey']")
    assert report.locator("h1").inner_text() == "Solar panels: town.tif"
    content = json.loads(downloaded(page, room, "run.json").read_text())
    assert content["verb"] == "survey" and content["totals"]["windows"]["ok"] == 9


def test_survey_of_what_has_no_size_says_what_to_do(page, tmp_path):
    Image.fromarray(np.full((128, 128, 3), 90, np.uint8)).save(tmp_path / "tile.png")
    room = opened(page, "Survey")
    start(room, "Survey")
    assert "drop a file" in room.get_by_role("alert").inner_text()
    drop(room, tmp_path / "tile.png")
    start(room, "Survey")
    room.get_by_role("alert").filter(has_text="tile.png").wait_for()
    assert "gsd" in room.get_by_role("alert").inner_text()
    room.get_by_label("Metres per pixel").fill("0.3")
    start(room, "Survey")
    room.locator("dl.totals").wait_for()


def test_look_at_a_picture(page, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "noise.png")
    room = opened(page, "Look")
    drop(room, tmp_path / "noise.png")
    start(room, "Look")
    room.get_by_alt_text("head 1").wait_for()
    last = room.get_by_alt_text("head 1").get_attribute("src")
    room.get_by_label("number input for Layer").fill("1")
    room.get_by_label("number input for Layer").press("Enter")
    page.wait_for_function("([old]) => document.querySelector('img[alt=\"head 1\"]').src !== old", arg=[last])


def test_imagine_side_by_side(page):
    room = opened(page, "Imagine")
    room.get_by_label("Pictures each").fill("1")
    room.get_by_role("button", name="More").click()
    room.get_by_label("number input for Steps").fill("2")
    room.get_by_label("number input for Steps").press("Enter")
    start(room, "Imagine")
    room.get_by_alt_text("none, seed 0").wait_for()
    sources = {room.get_by_alt_text(f"{kind}, seed 0").get_attribute("src") for kind in ("none", "classifier-free")}
    assert len(sources) == 2
    assert Image.open(downloaded(page, room, "none-000000.png")).size == (64, 64)
