"""The pictures of the studio in these pages: `python docs/screenshots.py` makes them again, from its own examples.

Needs the extra `studio`, playwright and a chromium: --chromium says where it is.
"""

import argparse
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from negah.studio.app import served

HERE = Path(__file__).resolve().parent / "img"
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
OUTLINE = "#ffd23f"  # of panels on the map
LONGEST = 150_000  # bytes of a picture


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--chromium", default=shutil.which("chromium"))
    options.add_argument("rooms", nargs="*", default=list(ROOMS))
    given = options.parse_args()
    with served() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=given.chromium, args=ARGUMENTS)
        for name in given.rooms:
            width, height, scheme, act = ROOMS[name]
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.set_default_timeout(120_000)
            page.goto(address)
            page.get_by_role("tab", name=name.split("-")[0].capitalize(), exact=True).click()
            page.get_by_text("Stop", exact=True).locator("visible=true").first.wait_for()
            act(page)
            page.mouse.move(1, 1)
            page.wait_for_timeout(1500)
            save(page.screenshot(), HERE / f"studio-{name}.png")
            page.close()
        browser.close()


def save(content: bytes, path: Path) -> None:
    """In as many colours as LONGEST allows."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    weighted = Image.new("RGB", (picture.width, picture.height + 30), OUTLINE)  # so that few pixels keep their colour
    weighted.paste(picture)
    for colours in (256, 128, 64, 48, 32):
        made = io.BytesIO()
        palette = weighted.quantize(colours, method=Image.Quantize.MEDIANCUT)
        picture.quantize(palette=palette, dither=Image.Dither.NONE).save(made, "PNG", optimize=True)
        if made.tell() <= LONGEST:
            break
    path.write_bytes(made.getvalue())
    print(f"{path.name}: {made.tell() / 1000:.0f} kB, {colours} colours", flush=True)


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).locator("visible=true").first.click()


def example(page: Page, button: str, file: str) -> None:
    press(page, button)
    page.locator(f"a[download^='{file}']").locator("visible=true").last.wait_for()


def survey(page: Page) -> None:
    example(page, "Draw a town as an example", "town")
    press(page, "Survey")
    page.locator("dl.totals").wait_for()
    page.frame_locator("iframe").locator(".stage").wait_for()
    page.evaluate("scrollTo(0, 230)")


def area(page: Page) -> None:
    example(page, "Draw a town as an example", "town")
    page.get_by_role("button", name="Only a part").click()
    press(page, "Show the map")
    picture = page.locator(".map img")
    for count, (across, down) in enumerate(((0.3, 0.3), (0.62, 0.31), (0.6, 0.66), (0.31, 0.64)), 1):
        box = picture.bounding_box()
        assert box
        picture.click(position={"x": across * box["width"], "y": down * box["height"]})
        page.get_by_text(f"1 area, {count} corner").wait_for()
    page.get_by_role("button", name="Only a part").scroll_into_view_if_needed()
    page.evaluate("scrollTo(0, document.body.scrollHeight)")


def look(page: Page) -> None:
    example(page, "Draw a house as an example", "house")
    press(page, "Look")
    page.get_by_alt_text("head 1").wait_for()


def attack(page: Page) -> None:
    example(page, "Draw a house as an example", "roof")
    press(page, "Attack")
    page.get_by_text("The area", exact=True).wait_for()


def describe(page: Page) -> None:
    example(page, "Draw some houses as an example", "house-0")
    page.get_by_label("Words").fill("a swimming pool\nhouses with red roofs\nno trees")
    page.get_by_label("number input for Best of each").fill("4")
    press(page, "Search")
    page.get_by_text("cosine").first.wait_for()


def imagine(page: Page) -> None:
    page.get_by_label("Pictures each").fill("4")
    press(page, "Imagine")
    page.locator(".sheet img[alt^='in an']").first.wait_for()
    page.evaluate("scrollTo(0, 90)")


def imagine_teach(page: Page) -> None:
    page.get_by_role("tab", name="Teach it a thing", exact=True).click()
    example(page, "Draw a house in false colours as an example", "house-3")
    press(page, "Teach")
    page.get_by_role("button", name="Draw a <new> house", exact=True).wait_for(timeout=600_000)
    page.frame_locator("iframe").locator("h1").wait_for()
    page.evaluate("scrollTo(0, 100)")


def neighbours(page: Page) -> None:
    press(page, "Audit")
    page.get_by_text("On the graph", exact=True).wait_for()


def neighbours_dark(page: Page) -> None:
    page.get_by_label("Update function").fill("sum(softmax(dot(h, messages)) * messages) + h")
    neighbours(page)


ROOMS: dict[str, tuple[int, int, Any, Callable[[Page], None]]] = {
    "survey": (1080, 860, "light", survey),
    "survey-area": (1080, 720, "light", area),
    "survey-phone": (390, 844, "light", lambda page: None),
    "look": (1080, 900, "light", look),
    "attack": (1080, 960, "light", attack),
    "describe": (1080, 860, "light", describe),
    "imagine": (1080, 1010, "light", imagine),
    "imagine-teach": (1080, 900, "light", imagine_teach),
    "neighbours": (1080, 900, "light", neighbours),
    "neighbours-dark": (1080, 900, "dark", neighbours_dark),
}
"""Picture to width, height, colour scheme, and what is done in the room."""

if __name__ == "__main__":
    main()
