"""The part DreamBooth of the room Imagine: taught, drawn, stopped, compared."""

import json
import time
from pathlib import Path

import pytest
from PIL import Image

from negah.errors import InputError

pytest.importorskip("diffusers")
from negah.diffusion.dreambooth import LORA
from negah.diffusion.lora import EMBEDDINGS
from negah.runs.dreambooth_read import read_scores
from negah.studio import dreambooth, imagine
from negah.studio.dreambooth import Taught

TEACH = "Teach it a thing"
QUICK = {
    "Steps of learning": "2", "Steps between two looks": "1", "Pictures of the class": "2",
    "Steps of drawing a picture": "2",
}  # fmt: skip


def picture(path: Path) -> Path:
    Image.new("RGB", (64, 64), (200, 30, 160)).save(path)
    return path


def drawn(imagined, way: str) -> str | None:
    """The one picture that the room draws with what stands behind a label."""
    imagined.panel.get_by_label(way).check()
    before = imagined.panel.locator(".sheet img").first
    old = before.get_attribute("src") if before.count() else None
    imagined.press("Imagine")
    imagined.page.wait_for_function(
        "old => [...document.querySelectorAll('.sheet img')].some(img => img.src !== old)"
        " && ![...document.querySelectorAll('.told progress')].length", arg=old,
    )  # fmt: skip
    return imagined.panel.locator(".sheet img").first.get_attribute("src")


def test_a_thing_is_taught_and_drawn_at_once_and_again_from_its_files(room, page, tmp_path, pictures):
    teach = room("Imagine").tab(TEACH)
    teach.example("Draw a house in false colours as an example", "house-3")
    teach.panel.get_by_role("button", name="More").click()
    teach.panel.get_by_label("Steps of drawing a picture").first.wait_for()
    pictures.quick(teach, QUICK)
    if pictures.folder is None:
        teach.panel.get_by_label("Learning rate").fill("0.01")  # so that two steps tell
    teach.panel.get_by_role("button", name="More").click()
    teach.press("Teach")
    teach.panel.get_by_role("button", name="Draw a <new> house").wait_for(timeout=600_000)
    assert " of " in teach.panel.locator("dl.totals").inner_text()
    page.frame_locator("iframe").locator("h1").wait_for()
    pictures.take(page, "imagine-teach", top=teach.panel.locator(".lead").first)
    frame = page.locator("iframe[title='Report of DreamBooth']")
    assert frame.get_attribute("sandbox") == "allow-scripts"
    report = page.frame_locator("iframe[title='Report of DreamBooth']")
    assert report.locator("h1").inner_text() == "<new> house: at which step to stop"
    assert json.loads(teach.downloaded("run.json").read_text())["arguments"]["class_word"] == "house"
    files = [teach.downloaded(name).rename(tmp_path / name) for name in (LORA, EMBEDDINGS)]

    teach.press("Draw a <new> house")
    imagined = room("Imagine").tab("Draw")
    assert imagined.panel.get_by_label("Prompt").input_value() == "a <new> house"
    assert imagined.panel.get_by_label("what it was taught: <new> house").is_checked()
    imagined.panel.get_by_label("Pictures each").fill("1")
    for kind in ("none", "in an interval"):
        imagined.panel.get_by_label(kind, exact=True).uncheck()
    imagined.panel.get_by_role("button", name="More").click()
    imagined.number("Steps", "2")
    taught, alone = drawn(imagined, "what it was taught"), drawn(imagined, "the model as it is")
    imagined.panel.get_by_label("a LoRA of mine").check()
    imagined.drop(*files)
    assert drawn(imagined, "a LoRA of mine") == taught != alone


def test_a_stop_is_heard_while_it_learns_and_what_is_wrong_is_told(room, tmp_path):
    teach = room("Imagine").tab(TEACH)
    teach.press("Teach")
    teach.says("drop a file")
    teach.drop(picture(tmp_path / "thing.png"))
    teach.panel.get_by_label("What it is").fill(" ")
    teach.press("Teach")
    teach.says("say what the pictures show")
    teach.panel.get_by_label("What it is").fill("house")
    teach.panel.get_by_label("Its own word").fill("house")
    teach.press("Teach")
    teach.says("a word of this model already")
    teach.panel.get_by_label("Its own word").fill("<new>")
    teach.panel.get_by_role("button", name="More").click()
    for label, value in (QUICK | {"Steps of learning": "1000", "Steps between two looks": "500"}).items():
        teach.number(label, value)
    teach.press("Teach")
    teach.panel.locator(".told .step").filter(has_text=" of 1,000").wait_for()
    begun = time.monotonic()
    teach.press("Stop")
    teach.says("stopped")
    assert time.monotonic() - begun < 20  # a step takes a fraction of a second
    assert not teach.panel.get_by_role("button", name="Draw a <new> house").is_visible()


def test_runs_side_by_side_and_nothing_of_a_file_is_run(room, page, scores, tmp_path):
    compare = room("Imagine").tab("Compare runs")
    compare.press("Compare")
    compare.says("nothing to compare yet")
    hostile = json.loads(scores.read_text())
    code = "<img src=x onerror='window.broken = 1'>"
    hostile |= {"token": code, "reason": code, "notes": [code], "model": f"{code}/weights", "real": {"fidelity": None}}
    (tmp_path / "hostile.json").write_text(json.dumps(hostile))
    (tmp_path / "bad.json").write_text("{")
    compare.drop(scores, tmp_path / "hostile.json", tmp_path / "bad.json")
    compare.press("Compare")
    compare.panel.locator("details").nth(1).wait_for()
    rows = compare.panel.locator("table.plain").first.locator("tbody tr").all_inner_texts()
    assert rows[0].split() == ["mine", "<new>", "4", "2", "0.480", "0.480", "0.480", "0.480"]
    assert "onerror" in rows[1]
    assert "cannot be read as JSON" in compare.panel.locator("table.plain").last.inner_text()
    compare.panel.locator("summary").first.click()
    assert compare.panel.locator("details[open] svg").count() == 2
    assert page.evaluate("window.broken") is None and compare.panel.locator("img").count() == 0


def test_a_single_file_that_is_no_run_is_told_in_one_line(room, tmp_path):
    (tmp_path / "bad.json").write_text("[1]")
    compare = room("Imagine").tab("Compare runs")
    compare.drop(tmp_path / "bad.json")
    compare.press("Compare")
    assert compare.says("bad.json").startswith("bad.json does not hold the figures")


# Without a page


def test_a_lora_and_its_words_come_together(tmp_path):
    numbered = tmp_path / "learned_embeds (1).safetensors"
    for path in (tmp_path / "style.safetensors", numbered, tmp_path / "other.safetensors"):
        path.write_bytes(path.name.encode())
    given = [str(numbered), str(tmp_path / "style.safetensors")]
    found = imagine.lora_of(tmp_path / "lora", imagine.MINE, given, None)
    assert found == tmp_path / "lora" / "style.safetensors"
    assert (tmp_path / "lora" / EMBEDDINGS).read_bytes() == numbered.name.encode()
    for wrong in (None, [str(numbered)], [*given, str(tmp_path / "other.safetensors")]):
        with pytest.raises(InputError, match="of one LoRA"):
            imagine.lora_of(tmp_path / "none", imagine.MINE, wrong, None)
    taught = Taught("<new> house", ((LORA, b"1"), (EMBEDDINGS, b"2")))
    assert imagine.lora_of(tmp_path / "x", imagine.ALONE, given, taught) is None
    found = imagine.lora_of(tmp_path / "taught", imagine.TAUGHT, None, taught)
    assert found and (found.read_bytes(), (found.parent / EMBEDDINGS).read_bytes()) == (b"1", b"2")


def test_what_the_page_asks_for_is_what_the_run_gets(scores, tmp_path, monkeypatch):
    result, _ = read_scores(scores)

    def run(instance, out, model, options, *, progress, each):
        assert (options.class_word, options.token, options.prior_weight, options.lr) == ("red house", None, 0.0, 0.002)
        assert (options.steps, options.rank, options.every, options.sampler_steps) == (30, 8, 10, 5)
        assert out == tmp_path / "red-house-30" and Path(instance[0]).name == "thing.png"
        each(3, 30)
        return result

    monkeypatch.setattr(dreambooth, "dreambooth", run)
    told = []
    job = dreambooth.prepare(
        tmp_path, [str(picture(tmp_path / "thing.png"))], " red  house ", " ", 30, "0,002", 8, 10, 0, 5
    )
    assert job(lambda *step: told.append(step)) == (result, "red house") and told[-1] == ("steps", 3, 30)


def test_runs_of_one_name_are_told_apart_and_there_is_a_limit(scores, tmp_path):
    read = dreambooth.reading(tmp_path, [str(scores)] * 3)(lambda *step: None)
    assert list(read.runs) == ["mine", "mine (2)", "mine (3)"]
    with pytest.raises(InputError, match="at most 12"):
        dreambooth.reading(tmp_path, [str(scores)] * 13)
