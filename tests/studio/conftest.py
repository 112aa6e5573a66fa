"""A studio that runs as users run it, and Debian's chromium to use it with."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
UPLOAD_MB = 3
SOON = 60_000  # ms that anything on the page is waited for: long, for a machine that does other things as well


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
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)


@pytest.fixture
def page(browser: Any, studio: str) -> Iterator[Any]:
    """The studio in a new window; whatever is asked of another machine fails the test, as does an error of a script."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    found = context.new_page()
    found.set_default_timeout(SOON)
    asked: list[str] = []
    broken: list[str] = []
    found.on("request", lambda request: asked.append(request.url))
    found.on("pageerror", lambda error: broken.append(str(error)))
    found.goto(studio)
    yield found
    context.close()
    outside = [url for url in asked if not url.startswith((studio, "data:", "blob:"))]
    assert asked and outside == [], "requests left the machine"
    assert broken == []


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small georeferenced town."""
    from negah.images.scenes import write_town

    path = tmp_path_factory.mktemp("town") / "town.tif"
    write_town(path, size_px=300, gsd_m=0.3, seed=1)
    return path
