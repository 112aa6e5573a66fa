import base64
import hashlib
import io
import os
import re
import zipfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from negah.errors import OutputError
from negah.solar.report import BUDGET, FINDS, LISTED, Find, Overview, Report, render, write_report

HOSTILE = """</script><script>alert(1)</script><img src=x onerror=alert(1)>"'&${title}$"""


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise: the hardest picture to keep small."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def find(seed: int = 0, *, caption: str = "24 m²", probability: float = 0.9) -> Find:
    fraction = np.zeros((13, 13), np.float32)
    fraction[3:5, 4:8] = 0.9
    return Find(picture(104, 104, seed), fraction, caption, probability)


def overview(name: str = "town.tif", **changes) -> Overview:
    square = np.array([[10.0, 10], [30, 10], [30, 20], [10, 20]])
    made = Overview(
        name, picture(90, 120), np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8), [square], ["18 m²"], 0.3
    )
    return replace(made, **changes)


@pytest.fixture
def report() -> Report:
    rng = np.random.default_rng(1)
    return Report(
        title="Solar panels in town.tif",
        totals={"panels found": "412\n386 to 431 with 90 % confidence", "panel area": "9,310 m²", "power": "1,862 kW"},
        threshold=0.42,
        overviews=[overview()],
        most_certain=[find(i, probability=0.99) for i in range(3)],
        least_certain=[find(i + 3, probability=0.431) for i in range(3)],
        areas_m2=np.exp(rng.normal(3, 0.8, 412)).tolist(),
        probabilities=[*rng.beta(0.3, 9, 900), *rng.beta(9, 0.9, 95)],
        failures=[("tiles/broken.tif", "the file is empty")],
        not_looked_at=["town.tif: 1.6 % has no data"],
        notes=["Areas are seen from above."],
        provenance={"command": "negah survey town.tif --out map", "model": "negah/aerial-tiny"},
    )


class Page(HTMLParser):
    """The parts of a page that tests ask about."""

    VOID = frozenset({"meta", "img", "input", "br", "image", "line", "use", "rect", "path"})

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
            self.open.pop()

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def pictures(page: Page) -> list[Image.Image]:
    """Every embedded picture, decoded."""
    sources = [attrs.get("src") or attrs.get("href") or "" for attrs in page.all("img") + page.all("image")]
    return [Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2]))) for source in sources]


def bars(page: Page) -> list[str]:
    """What the bars of both histograms say, as screen readers read them."""
    return [
        str(attrs["aria-label"])
        for attrs in page.all("svg")
        if attrs.get("preserveaspectratio") == "none" and attrs.get("role")
    ]


def test_numbers_names_and_reasons_are_on_the_page(report):
    page = Page(render(report))
    assert page.open == []
    for told in (
        "412", "386 to 431 with 90 % confidence", "9,310 m²", "1,862 kW", "town.tif", "tiles/broken.tif",
        "the file is empty",
        "1 input failed", "1.6 % has no data", "Areas are seen from above.", "negah survey town.tif --out map",
        "36 m \u00d7 27 m",
        "1 panel", "0.431", "18 m²",
    ):  # fmt: skip
        assert told in page.text


def test_the_page_loads_nothing(report):
    text = render(report)
    page = Page(text)
    for tag, attrs in page.tags:
        for name in ("src", "href", "xlink:href", "action", "poster", "srcset", "data"):
            target = attrs.get(name)
            assert target is None or target.startswith(("data:image/", "#")), f"<{tag} {name}={target[:60]}>"
    assert "http://" not in text and "https://" not in text
    assert "@import" not in text and not re.search(r"url\((?!['\"]?data:)", text)
    assert {"link", "iframe", "object", "embed", "base"}.isdisjoint(tag for tag, _ in page.tags)


def test_the_policy_allows_the_pages_own_script_and_no_other(report):
    text = render(report)
    policy = next(attrs["content"] for attrs in Page(text).all("meta") if attrs.get("http-equiv"))
    script = text.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy and "default-src 'none'" in policy and f"script-src 'sha256-{digest}';" in policy


def test_hostile_texts_stay_texts(report):
    hostile = replace(
        report,
        title=HOSTILE,
        totals={HOSTILE: HOSTILE},
        overviews=[overview(HOSTILE, labels=[HOSTILE]), overview(HOSTILE)],
        most_certain=[find(caption=HOSTILE)],
        failures=[(HOSTILE, HOSTILE)],
        not_looked_at=[HOSTILE],
        notes=[HOSTILE],
        provenance={HOSTILE: HOSTILE},
    )
    plain, page = Page(render(report)), Page(render(hostile))
    assert page.open == []
    assert len(page.all("script")) == len(plain.all("script")) == 1
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert HOSTILE in page.text  # and nothing of it was lost or filled in
    assert page.text.count(HOSTILE) >= 12


def test_names_that_are_not_unicode_are_written(report, tmp_path):
    name = os.fsdecode(b"caf\xe9.tif")
    write_report(replace(report, failures=[(name, "unreadable")]), tmp_path / "report.html")
    assert "caf?.tif" in (tmp_path / "report.html").read_text("utf-8")


def test_an_empty_survey_is_a_page_too():
    page = Page(render(Report(title="Nothing", totals={"panels found": "0"}, threshold=0.5)))
    assert page.open == []
    for told in (
        "No panels were found",
        "none of the images could be read",
        "Nothing to show",
        "No finds to show",
        "nothing failed",
    ):
        assert told in page.text
    assert pictures(page) == [] and bars(page) == []


def test_no_finds_among_windows_that_were_looked_at(report):
    page = Page(
        render(
            replace(
                report, most_certain=(), least_certain=(), areas_m2=(), overviews=[overview(outlines=(), labels=())]
            )
        )
    )
    assert "0 panels" in page.text and "No finds to show" in page.text
    assert len(bars(page)) == 1


def test_five_hundred_finds_are_cut_and_counted(report):
    finds = [find(i) for i in range(20)] * 25
    page = Page(render(replace(report, most_certain=finds, least_certain=finds)))
    assert len(page.all("img")) == 2 * FINDS
    assert page.text.count(f"{FINDS} of 500 are shown") == 2


def test_long_lists_are_cut_and_counted(report):
    page = Page(render(replace(report, failures=[(f"{i}.tif", "empty") for i in range(LISTED + 1234)])))
    assert f"{LISTED + 1234:,} inputs failed" in page.text
    assert "and 1,234 more" in page.text


def test_the_page_stays_small_whatever_comes(report, tmp_path):
    rng = np.random.default_rng(0)
    star = rng.uniform(0, 1400, (60_000, 5, 2))
    big = [
        Overview(
            f"{i}.tif",
            picture(1400, 1400, i),
            rng.random((700, 700), dtype=np.float32),
            list(star),
            ["12.3 m²"] * len(star),
            1.0,
        )
        for i in range(2)
    ]
    finds = [Find(picture(200, 200, i), rng.random((50, 50), dtype=np.float32), "x", 0.5) for i in range(FINDS)]
    path = tmp_path / "report.html"
    endless = "x" * 1_000_000
    write_report(replace(report, overviews=big, most_certain=finds, least_certain=finds, notes=[endless]), path)
    assert "(1,000,000 characters)" in path.read_text("utf-8")
    assert path.stat().st_size < BUDGET
    text = path.read_text("utf-8")
    drawn = re.findall(r"the ([\d,]+) largest of 60,000 outlines", text)
    assert len(drawn) == 2 * 2 and all(1000 < int(count.replace(",", "")) < 60_000 for count in drawn)


def test_a_panel_of_two_outlines_is_one_panel():
    squares = [np.array([[x, x], [x + 4, x], [x + 4, x + 4], [x, x + 4]], float) for x in (0, 4)]
    one = Overview("a.tif", picture(40, 30, 0), np.zeros((3, 4), np.float32), squares, ["20 m²"] * 2, 1.0, panels=1)
    page = Page(render(Report(title="a", totals={}, threshold=0.5, overviews=[one])))
    assert "1 panel," in page.text and "2 panels" not in page.text


def test_the_largest_outlines_are_the_ones_kept():
    def square(side: float) -> np.ndarray:
        return np.array([[0.0, 0], [side, 0], [side, side], [0, side]])

    sides = [3.0, 50.0, 7.0]
    page = Page(
        render(
            Report("t", {}, 0.5, [overview(outlines=[square(s) for s in sides], labels=["small", "large", "middle"])])
        )
    )
    shapes = [str(attrs["d"]) for attrs in page.all("path")]
    assert [re.findall(r"L([\d.]+)", shape)[0] for shape in shapes] == ["50.0", "7.0", "3.0"]
    assert page.text.index("large") < page.text.index("middle") < page.text.index("small")


def test_what_is_not_a_number_does_no_harm(report):
    heat = np.full((6, 8), np.nan, np.float32)
    heat[0, 0], heat[1, 1] = np.inf, 0.7
    hole = np.array([[0.0, 0], [np.nan, 1], [5, 5]])
    unsure = Find(picture(104, 104), np.full((13, 13), np.nan, np.float32), "?", float("nan"))
    page = Page(render(replace(
        report,
        overviews=[overview(heat=heat, outlines=[hole, hole[:2]], labels=["", ""], metres_per_px=float("nan"))],
        most_certain=[unsure],
        areas_m2=[float("nan"), 12.0, float("inf"), -1.0, 0.0],
        probabilities=[float("nan"), 0.5, 2.0, -1.0],
    )))  # fmt: skip
    assert page.open == []
    drawing = [value for tag, attrs in page.tags if tag in ("path", "rect", "line", "svg") for value in attrs.values()]
    assert not [value for value in drawing if value and re.search(r"\bnan\b|\binf\b", value)]
    assert "1 find, and 4 whose area is not known" in page.text
    assert "2 of 3 windows reach the threshold" in page.text
    assert "not looked at" in page.text and "unknown" in page.text


def test_places_that_were_not_looked_at_are_grey_and_others_clear():
    heat = np.zeros((4, 4), np.float32)
    heat[0, 1], heat[2, 3] = np.nan, 1.0
    photo, unseen, glow = pictures(Page(render(Report("t", {}, 0.5, [overview(heat=heat)]))))
    assert photo.size == (120, 90) and photo.format == "JPEG"
    alpha = np.asarray(unseen.convert("RGBA"))[..., 3]
    assert alpha[0, 1] > 100 and np.count_nonzero(alpha) == 1
    alpha = np.asarray(glow.convert("RGBA"))[..., 3]
    assert alpha[2, 3] == 255 and np.count_nonzero(alpha) == 1


def test_a_photograph_is_shown_as_it_is():
    ramp = np.broadcast_to(np.linspace(0, 255, 120).astype(np.uint8)[None, :, None], (90, 120, 3)).copy()
    photo = pictures(Page(render(Report("t", {}, 0.5, [overview(image=ramp)]))))[0]
    assert np.abs(np.asarray(photo).astype(int) - ramp).max() <= 8


def test_histograms_count_every_find_once(report):
    areas, probabilities = bars(Page(render(report)))
    assert sum(int(n.replace(",", "")) for n in re.findall(r": ([\d,]+)(?:;|$)", areas)) == 412
    assert sum(int(n.replace(",", "")) for n in re.findall(r": ([\d,]+)(?:;|$)", probabilities)) == 995


@pytest.mark.parametrize("areas", [[20.0], [20.0] * 5, [1e-3, 1e6], [2.0, 3.0, 4.0]])
def test_histogram_of_odd_areas(report, areas):
    page = Page(render(replace(report, areas_m2=areas)))
    assert sum(int(n) for n in re.findall(r": (\d+)(?:;|$)", bars(page)[0])) == len(areas)


def test_the_threshold_parts_the_probabilities(report):
    text = render(replace(report, areas_m2=(), probabilities=[0.11, 0.31, 0.61, 0.71, 0.91], threshold=0.65))
    assert "2 of 5 windows reach the threshold of 0.65." in Page(text).text
    shown = re.findall(r"<rect ([^>]+)><title>([\d.]+) to", text)
    assert [start for look, start in shown if look.endswith("class=on")] == ["0.700", "0.900"]
    assert [start for look, start in shown if not look.endswith("class=on")] == ["0.100", "0.300", "0.600"]


def test_a_sample_is_called_one(report):
    page = Page(render(replace(report, windows=640_000, finds=50_000)))
    assert "an even sample of 995 of 640,000" in page.text and "an even sample of 412 of 50,000" in page.text
    assert "sample" not in Page(render(report)).text


def test_several_pictures_can_be_chosen(report):
    page = Page(
        render(replace(report, overviews=[overview("a.tif"), overview("b.tif", heat=np.zeros((2, 2), np.float32))]))
    )
    assert len(page.all("option")) == 2
    ids = [str(attrs["id"]) for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {str(attrs["href"])[1:] for attrs in page.all("use")} <= set(ids)


def test_the_page_appears_whole_or_not_at_all(report, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("earlier")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("negah.solar.report.os.replace", full)
    with pytest.raises(OutputError, match=r"report\.html: No space left"):
        write_report(report, path)
    assert path.read_text() == "earlier" and os.listdir(tmp_path) == ["report.html"]


def test_a_folder_that_is_not_there_is_an_error(report, tmp_path):
    with pytest.raises(OutputError, match="cannot write the report"):
        write_report(report, Path(tmp_path / "none" / "report.html"))


def test_real_tiles(report, data_dir, tmp_path):
    with zipfile.ZipFile(data_dir / "duke-solar" / "tiles.zip") as tiles:
        names = [name for name in tiles.namelist() if name.endswith(".png")][:FINDS]
        images = [np.asarray(Image.open(io.BytesIO(tiles.read(name))).convert("RGB")) for name in names]
    finds = [Find(image, np.zeros((13, 13), np.float32), name, 0.5) for image, name in zip(images, names, strict=True)]
    write_report(replace(report, most_certain=finds), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 600_000


def test_what_the_slider_moves_is_called_by_its_name(report):
    assert '<label class="control">opacity <input type="range"' in render(report)


def test_one_window_is_one_window(report):
    page = render(replace(report, probabilities=[0.9], windows=None))
    assert "1 of 1 window reaches the threshold" in page
    page = render(replace(report, probabilities=[], areas_m2=[], not_looked_at=["4 windows hold no data"]))
    assert "No window was looked at." in page and "No panels were found" not in page
