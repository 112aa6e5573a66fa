"""A studio that runs as users run it, and Debian's chromium to use it with."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
UPLOAD_MB = 3
SETTLED = 300  # ms that a new field is given: for about 30 it loses what is typed, sooner than a person can type
SOON = 60_000  # ms that anything on the page is waited for: long, for a machine that does other things as well
OUTLINE = "#ffd23f"  # of panels on a map, which a picture in few colours keeps
LONGEST = 150_000  # bytes of a picture


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pictures", type=Path,
        help="make docs/studio.md's pictures of what tests/studio sees anew, in this folder: docs/img",
    )  # fmt: skip


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a studio in a process of its own."""
    pytest.importorskip("gradio", reason="the studio needs gradio: pip install 'negah[studio]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    temporary = tmp_path_factory.mktemp("studio")
    command = [sys.executable, "-m", "negah", "studio", "--no-browser", "--json", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--upload-mb", str(UPLOAD_MB)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    try:
        assert process.stdout
        first = process.stdout.readline() + process.stdout.readline() + process.stdout.readline()
        yield json.loads(first)["address"]
    finally:
        process.terminate()
        process.wait(30)
    assert not list(temporary.glob("negah*")), "the studio left files behind"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Debian's chromium, driven by Playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright: pip install playwright")
    if not CHROMIUM:
        pytest.skip("browser tests need Debian's chromium: apt-get install chromium")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture
def pages(browser: Any, studio: str) -> Iterator[Callable[[], Any]]:
    """Opens the studio in new windows; a request to another machine, or an error of a script, fails the test."""
    contexts, asked, broken = [], [], []

    def opened() -> Any:
        context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SOON)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.goto(studio)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert asked and [url for url in asked if not url.startswith((studio, "data:", "blob:"))] == []
    assert broken == []


@pytest.fixture
def page(pages: Callable[[], Any]) -> Any:
    """The studio in a new window."""
    return pages()


class Room:
    """A room of the page, as a user handles it."""

    def __init__(self, page: Any, name: str):
        page.get_by_role("tab", name=name, exact=True).click()
        self.page, self.panel = page, page.get_by_role("tabpanel").filter(visible=True).first
        self.panel.get_by_text("Stop", exact=True).filter(visible=True).first.wait_for()
        self.settle()

    def settle(self) -> None:
        """Wait until fields that were just made keep what is typed."""
        self.page.wait_for_timeout(SETTLED)

    def drop(self, *paths: Path) -> None:
        """Give it files, and wait until they are there."""
        self.panel.locator("input[type=file]").first.set_input_files([str(path) for path in paths])
        self.panel.get_by_text(paths[0].name).or_(self.panel.get_by_text(paths[0].stem)).first.wait_for()

    def tab(self, name: str) -> "Room":
        """Go to one of its own tabs, and see no more than that."""
        self.turn(name)
        self.panel = self.panel.get_by_role("tabpanel").filter(visible=True)
        return self

    def turn(self, name: str) -> None:
        """Go to one of its own tabs, and still see what is beside it."""
        self.panel.get_by_role("tab", name=name, exact=True).click()
        self.panel.get_by_role("tabpanel").filter(visible=True).get_by_text("Stop", exact=True).first.wait_for()
        self.settle()

    def example(self, button: str, file: str) -> None:
        """Let it draw its own example, whose last file begins so."""
        self.press(button)
        self.panel.locator(f"a[download^='{file}']").filter(visible=True).last.wait_for()

    def press(self, button: str) -> None:
        self.panel.get_by_role("button", name=button, exact=True).filter(visible=True).first.click()

    def says(self, text: str) -> str:
        """The line that it tells a failure in, once it has this text."""
        line = self.panel.locator(".told .line").filter(has_text=text).first
        line.wait_for()
        return line.inner_text()

    def number(self, label: str, value: str) -> None:
        """Type a number beside a slider."""
        field = self.panel.get_by_label(f"number input for {label}")
        field.fill(value)
        field.press("Enter")

    def downloaded(self, name: str) -> Path:
        with self.page.expect_download() as found:
            self.panel.locator(f"a[download='{name}']").first.click()
        return Path(found.value.path())


@pytest.fixture
def room(page: Any) -> Callable[..., Room]:
    """Rooms of the studio by their tabs' names; in another window, where one is given."""
    return lambda name, window=page: Room(window, name)


class Pictures:
    """Keeps what a room shows for the docs, where pytest was given --pictures."""

    def __init__(self, folder: Path | None):
        self.folder = folder

    def take(self, page: Any, name: str, *, height: int = 900, top: Any = None, scheme: Any = "light") -> None:
        """studio-NAME.png: `height` pixels of the page, from `top` on, in as many colours as LONGEST allows."""
        if self.folder is None:
            return
        before = page.viewport_size
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": 390 if name.endswith("phone") else 1080, "height": height})
        if top is not None:
            top.evaluate("part => scrollTo(0, part.getBoundingClientRect().top + scrollY - 16)")
        page.mouse.move(1, 1)
        page.wait_for_timeout(1500)  # until nothing moves any more
        shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        page.set_viewport_size(before)
        page.emulate_media(color_scheme="null")
        weighted = Image.new("RGB", (shot.width, shot.height + 30), OUTLINE)
        weighted.paste(shot)
        for colours in (256, 128, 64, 48, 32):
            made = io.BytesIO()
            palette = weighted.quantize(colours, method=Image.Quantize.MEDIANCUT)
            shot.quantize(palette=palette, dither=Image.Dither.NONE).save(made, "PNG", optimize=True)
            if made.tell() <= LONGEST:
                break
        (self.folder / f"studio-{name}.png").write_bytes(made.getvalue())

    def quick(self, room: Room, settings: dict[str, str]) -> None:
        """Numbers that make work short; for a picture the room stays as a user finds it."""
        for label, value in settings.items() if self.folder is None else ():
            room.number(label, value)


@pytest.fixture
def pictures(request: pytest.FixtureRequest) -> Pictures:
    """Takes the pictures of the docs, if any are to be taken."""
    return Pictures(request.config.getoption("--pictures", None))


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """The scores.json of a run in a folder named mine, of two looks, as `negah dreambooth` writes it."""
    names = ("held out loss", "fidelity", "fidelity CLIP-I", "prompt CLIP-T", "diversity", "class kept", "class drift")
    rows = [{"step": step, **dict.fromkeys(names, 0.5 - step / 100), "balance": 1.0} for step in (0, 2, 4)]
    content = {
        "model": "runs/mine/pytorch_lora_weights.safetensors", "report": "runs/mine/report.html", "token": "<new>",
        "why": "new to the model", "step": 2, "reason": "of 2 looks the greatest sum", "held_out": "the 4 pictures",
        "images": {"instance": 4, "kept aside": 0, "class": 2}, "scores": rows, "notes": ["more steps may do more"],
        "real": {"fidelity": 0.7, "fidelity CLIP-I": 0.8}, "ranking": [], "failures": [],
        "history": [{"step": step, "instance": 0.6, "prior": 0.5} for step in (1, 2, 3, 4)],
    }  # fmt: skip
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small georeferenced town, in which the bundled model finds panels."""
    from negah.images.scenes import write_town

    path = tmp_path_factory.mktemp("town") / "town.tif"
    write_town(path, size_px=420, gsd_m=0.3, seed=2)
    return path
