"""Each room in a browser: upload, act, see the result, download."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from negah.progress import silent
from negah.runs.survey import Options
from negah.studio import attack as attacks
from negah.studio import describe as describing
from negah.studio import look as looks
from negah.studio import survey as surveys
from negah.studio.work import UPLOADED


def noise(path, side=64):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(path)
    return path


def test_survey_of_a_raster(room, page, pictures):
    survey = room("Survey")
    pictures.take(page, "survey-phone", height=844)
    survey.example("Draw a town as an example", "town")
    survey.press("Survey")
    survey.panel.locator("dl.totals").wait_for()
    assert "81 of 81 windows" in survey.panel.locator("dl.totals").inner_text()
    report = page.frame_locator("iframe[title='Report of the survey']")
    assert report.locator("h1").inner_text() == "Solar panels: town.tif"
    assert report.locator(".stage svg").is_visible()
    assert report.get_by_text("town.tif", exact=True).count()  # its own name, not where it lies meanwhile
    pictures.take(page, "survey", height=860, top=survey.panel.locator("dl.totals"))
    content = json.loads(survey.downloaded("run.json").read_text())
    assert content["verb"] == "survey" and content["totals"]["windows"]["ok"] == 81


def test_labels_of_a_few_windows_and_then_of_more(room, town):
    survey = room("Survey")
    survey.panel.get_by_role("button", name="Label next").click()
    survey.press("Choose windows")
    survey.says("run the first step")
    survey.drop(town)
    survey.press("Survey")
    survey.panel.locator("dl.totals").wait_for()
    survey.number("Windows to look at", "6")
    survey.press("Choose windows")
    survey.panel.locator(".sheet img").nth(5).wait_for()
    survey.panel.get_by_label("Rows that I leave empty").check()
    survey.press("Recalibrate")
    survey.panel.get_by_text("none of the 6 labelled windows was off").first.wait_for()
    assert survey.panel.get_by_text("6 labels tell little").first.is_visible()
    assert len(survey.panel.locator("table.plain tbody tr").all_inner_texts()) == 2
    survey.press("Choose windows")  # six more beside those that have labels
    survey.panel.locator(".sheet img").nth(11).wait_for()
    survey.press("Recalibrate")
    survey.panel.get_by_text("none of the 12 labelled windows was off").first.wait_for()
    table = list(csv.DictReader(survey.downloaded("labels.csv").read_text().splitlines()))
    assert [row["draw"] for row in table] == ["1"] * 6 + ["2"] * 6 and len({row["window"] for row in table}) == 12


def test_the_total_rests_on_what_is_typed_beside_the_windows(tmp_path, town):
    """The same as above without the page, whose table is a widget of its own."""
    (tmp_path / UPLOADED).mkdir()
    shutil.copy(town, tmp_path / UPLOADED / "town.tif")
    first = surveys.surveyed([str(tmp_path / UPLOADED / "town.tif")], tmp_path, Options(), silent)
    asked = surveys.Asked([str(tmp_path / UPLOADED / "town.tif")], Options(), first, (surveys.interval_of(first),))
    chosen = surveys.choosing(tmp_path, asked, 8)(silent)
    table = [[str(k), "", "2,5" if k % 2 else ""] for k in range(1, 9)]
    told = surveys.recalibrating(tmp_path, chosen, table, True)(silent)
    assert told.summary.labelled == 8 and told.true_m2[0] == 2.5 and told.true_m2[1] == chosen.drawn[1].area_m2
    assert told.intervals[1][0] == "90 %, from 8 labelled windows" and told.intervals[1][3] > told.intervals[1][1]
    more = surveys.choosing(tmp_path, told, 4)(silent)
    assert len(more.drawn) == 12 and more.true_m2[:8] == pytest.approx(told.true_m2, abs=1e-3)
    assert more.true_m2[8:] == (None,) * 4


def test_survey_says_what_is_missing(room, tmp_path):
    survey = room("Survey")
    survey.press("Survey")
    survey.says("drop a file")
    survey.drop(noise(tmp_path / "tile.png", 104))
    survey.press("Survey")
    assert 'with "Metres per pixel" 0.3' in survey.says("tile.png")
    survey.panel.get_by_label("Metres per pixel").fill("0.3")
    survey.press("Survey")
    survey.panel.locator("dl.totals").wait_for()
    assert survey.panel.locator(".told .line").count() == 0


def test_look_at_a_picture_layer_by_layer(room, page, tmp_path, pictures):
    look = room("Look")
    look.drop(looks.house(tmp_path)(silent))
    pictures.quick(look, {"Side in pixels that the model sees": "64"})
    look.press("Look")
    first = look.panel.get_by_alt_text("head 1")
    first.wait_for()
    pictures.take(page, "look")
    last = first.get_attribute("src")
    look.number("Layer", "1")
    page.wait_for_function("old => document.querySelector('img[alt=\"head 1\"]').src !== old", arg=last)


def test_attack_a_picture(room, page, tmp_path, pictures):
    attack = room("Attack")
    attack.drop(attacks.house(tmp_path)(silent))
    attack.panel.get_by_role("button", name="More").click()
    pictures.quick(attack, {"Steps": "1"})
    attack.panel.get_by_role("button", name="More").click()
    attack.press("Attack")
    attack.panel.get_by_text("The area", exact=True).wait_for()
    pictures.take(page, "attack", height=960)
    attack.number("Radius", "1")
    attack.press("Attack")
    attack.panel.get_by_text("a pixel at most 1 grey levels").wait_for()
    assert attack.panel.get_by_alt_text("what was changed").is_visible()
    assert attack.panel.locator("table.plain tbody tr").count() == 2  # half a grey level, and one


def test_describe_finds_captions_and_sorts(room, page, tmp_path, pictures):
    describe = room("Describe")
    describe.drop(*map(Path, describing.houses(tmp_path)(silent)))
    describe.panel.get_by_label("Words").fill("a swimming pool\nhouses with red roofs\nno trees")
    describe.number("Best of each", "4")
    describe.press("Search")
    describe.panel.get_by_role("heading", name="no trees").wait_for()
    assert describe.panel.locator(".sheet img").count() == 12
    pictures.take(page, "describe", height=860)
    describe.turn("Caption")
    describe.press("Caption")
    describe.panel.get_by_role("heading", name="In words").wait_for()
    describe.turn("Classify")
    describe.panel.get_by_label("Classes").fill("grass\nwater")
    describe.press("Classify")
    describe.panel.get_by_role("heading", name="grass").wait_for()
    assert describe.panel.locator(".sheet img").count() == describing.EXAMPLES


def test_imagine_side_by_side(room, page, pictures):
    imagine = room("Imagine")
    imagine.panel.get_by_role("button", name="More").click()
    pictures.quick(imagine, {"Steps": "2"})
    imagine.panel.get_by_role("button", name="More").click()
    imagine.press("Imagine")
    imagine.panel.get_by_alt_text("in an interval, seed 1").wait_for()
    assert len({img.get_attribute("src") for img in imagine.panel.locator(".sheet img").all()}) == 6
    pictures.take(page, "imagine", height=1010, top=page.get_by_role("tab", name="Survey", exact=True))
    assert Image.open(imagine.downloaded("none-000000.png")).size == (64, 64)


def test_neighbours_by_keyboard_alone(page, pictures):
    page.get_by_role("tab", name="Survey", exact=True).focus()
    for _ in range(6):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent.trim()") == "Neighbours":
            break
    page.keyboard.press("Enter")
    panel = page.get_by_role("tabpanel").filter(visible=True).first
    panel.get_by_label("Update function").wait_for()
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") in ("TEXTAREA", "INPUT"):
            break

    def typed(text: str, verdict: str) -> None:
        page.keyboard.press("Control+A")
        page.keyboard.type(text)
        page.keyboard.press("Enter")
        panel.get_by_text(verdict).first.wait_for()

    typed("sum(softmax(dot(h, messages)) * messages) + h", "Certified")
    pictures.take(page, "neighbours-dark", scheme="dark")
    typed("first(messages)", "Refuted")
    pictures.take(page, "neighbours")
    typed("__import__('os')", "is not understood")
    assert panel.locator(".graph circle.bad").count() == 3  # of the second one: a line that fails leaves it
    assert panel.locator(".stars figure").count() == 2
