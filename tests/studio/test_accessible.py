"""What a reader of screens and a narrow window meet, by axe and by the page's own width."""

from pathlib import Path

import pytest

ROOMS = ("Survey", "Look", "Attack", "Describe", "Imagine", "Neighbours")


@pytest.fixture(scope="module")
def axe() -> str:
    """The rules of axe-core, as the script that a page runs."""
    package = pytest.importorskip("axe_playwright_python", reason="accessibility needs axe-playwright-python")
    return (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_any_room(page, room, axe, scheme):
    page.emulate_media(color_scheme=scheme)
    page.evaluate(axe)
    found = []
    for name in ROOMS:
        room(name)
        for violation in page.evaluate("() => axe.run()")["violations"]:
            if violation["impact"] in ("serious", "critical"):
                places = [node["target"] for node in violation["nodes"]]
                found.append((name, violation["id"], places[:3]))
    assert found == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_the_parts_of_imagine(page, room, axe, scheme, scores):
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # half-way of a change of colour is no colour
    page.evaluate(axe)

    def serious() -> list[str]:
        found = page.evaluate("() => axe.run()")["violations"]
        return [each["id"] for each in found if each["impact"] in ("serious", "critical")]

    teach = room("Imagine").tab("Teach it a thing")
    teach.panel.get_by_role("button", name="More").click()
    teach.panel.get_by_label("Learning rate").wait_for()
    assert serious() == []
    compare = room("Imagine").tab("Compare runs")
    compare.drop(scores)
    compare.press("Compare")
    compare.panel.locator("details[open]").wait_for()
    assert serious() == []
    more = compare.panel.get_by_role("group", name="Add files")  # Gradio's own button, mended
    with page.expect_file_chooser():
        more.get_by_role("button").press("Enter")
    page.set_viewport_size({"width": 390, "height": 844})  # where the table and the curves are moved sideways
    assert serious() == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_all_rooms_are_as_wide_as_the_window_allows(page, room):
    for name in ROOMS:
        room(name)
        assert page.evaluate("document.querySelector('.fillable').getBoundingClientRect().width") == 1240


def test_a_telephone_does_not_scroll_sideways(page, room):
    for name in ROOMS:
        page.set_viewport_size({"width": 1280, "height": 900})  # where no tab hides behind another
        room(name)
        page.set_viewport_size({"width": 390, "height": 844})
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, f"{name} is {wide} px wide"
