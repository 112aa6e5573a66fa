"""What must not bring the studio down, and what it says of it."""

import http.client
import zipfile
from urllib.parse import urlsplit

from PIL import Image


def asked(address: str, method: str, path: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    where = urlsplit(address)
    assert where.hostname and where.port
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Host": where.netloc, **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    return connection.getresponse()


def test_only_this_machine_is_answered_and_nothing_may_be_fetched(studio):
    answer = asked(studio, "GET", "/", {})
    policy = answer.headers["Content-Security-Policy"]
    assert answer.status == 200 and "http" not in policy and "*" not in policy
    assert asked(studio, "GET", "/", {"Host": "elsewhere.example:80"}).status == 421


def test_two_gigabytes_are_refused_before_they_are_read(studio):
    answer = asked(studio, "POST", "/gradio_api/upload", {"Content-Length": str(2 * 10**9)})
    assert answer.status == 413 and b"more than the 4 MB" in answer.read()
    assert asked(studio, "GET", "/", {}).status == 200


def test_a_file_above_the_limit_is_told_on_the_page(room, page, tmp_path):
    (tmp_path / "large.tif").write_bytes(bytes(4 * 10**6))
    survey = room("Survey")
    survey.panel.locator("input[type=file]").first.set_input_files(str(tmp_path / "large.tif"))
    page.get_by_text("maximum allowed size").first.wait_for()
    survey.press("Survey")
    survey.says("drop a file")


def test_a_corrupt_file_and_a_zip_bomb_are_told(room, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("bomb.png", "w", force_zip64=True) as member:
            member.write(b"\x89PNG\r\n\x1a\n")
            for _ in range(33):
                member.write(bytes(2**24))
    describe = room("Describe")
    Image.new("RGB", (32, 32), (60, 140, 50)).save(tmp_path / "meadow.png")
    describe.drop(tmp_path / "bomb.zip", tmp_path / "broken.png", tmp_path / "meadow.png")
    describe.press("Search")
    describe.panel.get_by_role("heading", name="Could not be read").wait_for()
    text = describe.panel.locator("table.plain").inner_text()
    assert "more than are taken into memory" in text and "broken.png" in text
    assert describe.panel.locator(".sheet img").count() == 1


def test_a_stop_two_pages_at_once_and_a_page_that_is_closed(room, pages, town):
    busy, waiting = room("Imagine"), room("Survey", pages())
    waiting.drop(town)

    def begin_what_takes_long() -> None:
        busy.panel.get_by_label("Pictures each").fill("8")
        busy.press("Imagine")
        busy.panel.locator(".told .step").filter(has_text="steps").first.wait_for()  # not the label Steps

    busy.panel.get_by_role("button", name="More").click()
    busy.number("Steps", "100")
    begin_what_takes_long()
    waiting.press("Survey")
    waiting.panel.get_by_text("waiting for other work").wait_for()
    busy.press("Stop")
    busy.says("stopped")
    waiting.panel.locator("dl.totals").wait_for()  # its turn came
    begin_what_takes_long()
    waiting.press("Survey")
    waiting.panel.get_by_text("waiting for other work").wait_for()
    busy.page.close()
    waiting.panel.get_by_text("waiting for other work").wait_for(state="hidden")
    waiting.panel.locator("dl.totals").wait_for()
