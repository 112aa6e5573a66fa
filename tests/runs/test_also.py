"""`negah survey --also`: its figures worked out by hand, its files, and that the panels do not notice."""

import csv
import json
import math
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import torch
import torch.nn.functional as F
from rasterio.transform import from_origin
from safetensors.torch import load_file

from negah.cli.main import main
from negah.errors import InputError, OutputError, WeightsError
from negah.images.raster import Raster
from negah.images.windows import Box
from negah.language import CLIP, Tokenizer
from negah.language.load import load, save
from negah.nn.text import TextTransformer
from negah.nn.vit import ViT
from negah.probe.detector import Detector
from negah.runs.also import Answer, joined
from negah.runs.survey import Options, Summary, survey
from negah.solar.plan import Failure

SIZE = 24  # of the model's pictures
WORDS = ["swimming pool", "parked cars"]


@pytest.fixture(scope="module")
def tokens() -> Tokenizer:
    return Tokenizer.train(["a swimming pool", "parked cars on a street", "a tennis court"], vocabulary=600, length=40)


def model(path: Path, tokens: Tokenizer, *, seed: int = 0, pictures: int = 200, gsd_m: float | None = None) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vit = ViT(patch=8, dim=32, depth=1, heads=2, grid=(3, 3), layer_scale=None)
        text = TextTransformer(vocabulary=len(tokens), length=40, dim=32, depth=1, heads=2)
        clip = CLIP(vit, text, dim=16, end=tokens.end).eval()
        reference = F.normalize(torch.randn(pictures, 16), dim=1) if pictures else None
    return save(clip, path, tokens=tokens, gsd_m=gsd_m, reference=reference)


@pytest.fixture(scope="module")
def describer(tmp_path_factory, tokens) -> Path:
    """Pictures of 24 px of 0.6 m, while windows are 32 px of 0.3 m: a picture is half as wide again."""
    return model(tmp_path_factory.mktemp("model") / "words.safetensors", tokens, gsd_m=0.6)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.random(window_px=32)


def raster(path: Path, seed: int = 0, size: tuple[int, int] = (160, 128), crs: str | None = "EPSG:32633") -> Path:
    """Blotches of colour, so that windows differ."""
    rng = np.random.default_rng(seed)
    blotches = torch.from_numpy(rng.random((1, 3, 10, 8), dtype=np.float32))
    image = (F.interpolate(blotches, size, mode="bicubic")[0].clip(0, 1) * 255).byte().numpy()
    where = {"crs": crs, "transform": from_origin(500_000, 5_800_000, 0.3, 0.3)} if crs else {}
    with rasterio.open(path, "w", driver="GTiff", width=size[1], height=size[0], count=3, dtype="uint8", **where) as f:
        f.write(image)
    return path


def do(paths, out: Path, detector: Detector, words=(), by: Path | None = None, progress=None, **options) -> Summary:
    more = {"progress": progress} if progress else {}
    asked = {"also": tuple(words), "also_model": str(by)} if words else {}
    return survey([str(p) for p in paths], out, [detector], Options(precision="fp32", **asked, **options), **more)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(out: Path, *, also: bool) -> dict[str, object]:
    """What two equal surveys share."""
    names = ["tiles.csv", "failures.csv", "panels.geojson", *(["also.csv", "also.geojson"] if also else [])]
    found: dict[str, object] = {name: (out / name).read_text() for name in names}
    found["panels"] = geopandas.read_parquet(out / "panels.parquet").to_csv()
    with rasterio.open(out / "heatmap.tif") as file:
        found["heat"] = file.read().tobytes()
    passing = ("out", "report", "continued", "seconds", "windows_per_s", *(() if also else ("also",)))
    totals = json.loads((out / "run.json").read_text())["totals"]
    return {**found, "totals": {k: v for k, v in totals.items() if k not in passing}}


def test_figures_are_those_of_the_picture_around_each_window(tmp_path, detector, describer, tokens):
    town = raster(tmp_path / "town.tif")
    summary = do([town], tmp_path / "out", detector, WORDS, describer)
    found = rows(tmp_path / "out/also.csv")
    assert [(r["window"], r["query"]) for r in found[:3]] == [
        ("c0_r0", "swimming pool"), ("c0_r0", "parked cars"), ("c32_r0", "swimming pool")
    ]  # fmt: skip
    assert len(found) == 20 * 2 and summary.windows == {"ok": 20}
    bounds = {r["window"]: r["bounds"] for r in rows(tmp_path / "out/tiles.csv")}
    assert all(r["bounds"] == bounds[r["window"]] for r in found)

    clip = load(describer)
    stored = F.normalize(load_file(describer)["reference"].float(), dim=1)
    with Raster(town, name="town") as picture, torch.inference_mode():
        for row in found:
            col, line = (int(x[1:]) for x in row["window"].split("_"))
            # 24 px of 0.6 m are 48 of the raster's pixels (its metre is 1.0004 m): 8 on either side of the window
            col, line = min(max(col - 8, 0), 128 - 48), min(max(line - 8, 0), 160 - 48)
            rgb = picture.read(Box(col, line, 48, 48), (SIZE, SIZE)).rgb
            seen = clip.images(torch.from_numpy(rgb).permute(2, 0, 1)[None])
            words = clip.texts(tokens([row["query"]]))
            cosine = float(seen[0] @ words[0])
            assert float(row["cosine"]) == pytest.approx(cosine, abs=1e-3)
            lower = float((stored @ words[0] < float(row["cosine"])).double().mean())
            assert float(row["standing"]) == pytest.approx(lower, abs=0.02)  # the cosine is rounded in the file

    for answer in summary.also:
        mine = [r for r in found if r["query"] == answer.query]
        assert answer.windows == 20 and answer.unusual == sum(float(r["standing"]) >= 0.99 for r in mine)
        top = max(mine, key=lambda r: float(r["cosine"]))
        assert answer.best[0] == {
            "source": str(town), "window": top["window"], "cosine": float(top["cosine"]),
            "standing": float(top["standing"]),
        }  # fmt: skip


def test_layers_and_report_say_the_same(tmp_path, detector, describer):
    do([raster(tmp_path / "town.tif")], tmp_path / "out", detector, WORDS, describer)
    found = {(r["window"], r["query"]): r for r in rows(tmp_path / "out/also.csv")}
    layer = geopandas.read_parquet(tmp_path / "out/also.parquet")
    assert layer.crs == "EPSG:32633" and len(layer) == len(found) == 40
    for row in layer.itertuples():
        text = found[row.window, row.query]
        assert row.geometry.bounds == pytest.approx([float(x) for x in text["bounds"].split()])
        assert (row.cosine, row.standing) == pytest.approx((float(text["cosine"]), float(text["standing"])), abs=1e-4)
    assert geopandas.read_file(tmp_path / "out/also.gpkg", layer="also").crs == "EPSG:32633"
    assert geopandas.read_file(tmp_path / "out/also.geojson").crs == "EPSG:4326"
    page = (tmp_path / "out/report.html").read_text()
    assert "In your words" in page and page.count("swimming pool") and page.count("parked cars")
    assert "share of 200 reference pictures" in page and "both figures may be wrong" in page
    best = max(found.values(), key=lambda r: float(r["cosine"]))
    assert f"{100 * float(best['standing']):.1f} %" in page and f"window {best['window']}" in page
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["also"]["gsd_m"] == 0.6 and record["also"]["reference"] == 200
    assert record["arguments"]["also"] == WORDS


def test_panels_do_not_notice_and_without_words_nothing_is_written(tmp_path, detector, describer):
    town = raster(tmp_path / "town.tif")
    options = {"threshold": 0.0, "overlap": 0.25}
    do([town], tmp_path / "plain", detector, **options)
    do([town], tmp_path / "out", detector, WORDS, describer, **options)
    assert contents(tmp_path / "out", also=False) == contents(tmp_path / "plain", also=False)
    assert not list((tmp_path / "plain").glob("also*"))
    assert "In your words" not in (tmp_path / "plain/report.html").read_text()


@pytest.mark.parametrize("stage", ["windows", "words"])
def test_an_interrupted_survey_continues_to_the_same_files(tmp_path, detector, describer, stage, monkeypatch):
    monkeypatch.setattr("negah.solar.also.BATCH", 3)
    monkeypatch.setattr("negah.runs.survey.BATCHES", {"cpu": 3})
    places = [raster(tmp_path / "a.tif"), raster(tmp_path / "b.tif", 1)]

    def survey_to(out: str, progress=None) -> Summary:
        return do(places, tmp_path / out, detector, WORDS, describer, progress, overlap=0.5, aoi=area)

    area = tmp_path / "area.geojson"
    corner = geopandas.GeoSeries.from_wkt(["POLYGON((500000 5799980, 500015 5799980, 500015 5800000, 500000 5800000, \
500000 5799980))"], crs="EPSG:32633")  # fmt: skip
    corner.to_file(area)
    whole = survey_to("whole")
    assert whole.windows["outside-aoi"] > 10

    def stop(now: str, done: int, total: int) -> None:
        if now == stage and done >= total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        survey_to("out", stop)
    assert not (tmp_path / "out/also.csv").exists()
    assert survey_to("out").continued
    for name in ("also.csv", "also.geojson", "tiles.csv", "panels.geojson"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert len(rows(tmp_path / "out/also.csv")) == 2 * whole.windows["ok"]


def test_more_words_cost_no_second_look(tmp_path, detector, describer, tokens, monkeypatch):
    town = raster(tmp_path / "town.tif")
    do([town], tmp_path / "out", detector)  # asked afterwards
    do([town], tmp_path / "out", detector, WORDS[:1], describer)
    alone = [r for r in rows(tmp_path / "out/also.csv") if r["query"] == WORDS[0]]
    other = model(tmp_path / "other.safetensors", tokens, seed=1)
    looks = []
    seen = CLIP.images
    monkeypatch.setattr(CLIP, "images", lambda self, images: looks.append(len(images)) or seen(self, images))
    do([town], tmp_path / "out", detector, ["tennis court", *WORDS], describer)
    found = rows(tmp_path / "out/also.csv")
    assert not looks and len(found) == 60 and [r for r in found if r["query"] == WORDS[0]] == alone
    # another model's vectors are others
    do([town], tmp_path / "out", detector, WORDS[:1], other)
    assert sum(looks) == 20 and rows(tmp_path / "out/also.csv") != alone
    # and without words the files of the last time are gone
    do([town], tmp_path / "out", detector)
    assert not list((tmp_path / "out").glob("also*"))


def test_without_reference_pictures_there_is_no_standing(tmp_path, detector, tokens):
    plain = model(tmp_path / "plain.safetensors", tokens, pictures=0)
    answer = do([raster(tmp_path / "town.tif")], tmp_path / "out", detector, WORDS[:1], plain).also[0]
    assert answer.unusual is None and answer.by_chance is None and answer.best[0]["standing"] is None
    assert {r["standing"] for r in rows(tmp_path / "out/also.csv")} == {""}
    assert geopandas.read_parquet(tmp_path / "out/also.parquet").standing.isna().all()
    page = (tmp_path / "out/report.html").read_text()
    assert "without reference pictures" in page and "standing" not in page.partition("In your words")[2].lower()


def test_places_and_pictures_without_one(tmp_path, detector, describer):
    (tmp_path / "in").mkdir()
    raster(tmp_path / "in/a.tif")
    raster(tmp_path / "in/b.tif", 1, crs="EPSG:32632")
    raster(tmp_path / "in/c.tif", 2, crs=None)
    (tmp_path / "in/d.tif").write_bytes(b"II*\0nothing")
    summary = do([tmp_path / "in"], tmp_path / "out", detector, WORDS[:1], describer, gsd_m=0.3)
    assert not summary.complete and summary.also[0].windows == 60
    assert len(rows(tmp_path / "out/also.csv")) == 60
    on_earth = geopandas.read_parquet(tmp_path / "out/also.parquet")
    assert on_earth.crs == "EPSG:4326" and len(on_earth) == 40
    in_pixels = geopandas.read_parquet(tmp_path / "out/also-pixel.parquet")
    assert in_pixels.crs is None and in_pixels.total_bounds.tolist() == [0, 0, 128, 160]


def test_what_could_not_be_seen_is_told_and_tried_again(tmp_path, detector, describer, monkeypatch):
    town = raster(tmp_path / "town.tif")
    do([town], tmp_path / "whole", detector, WORDS, describer)
    seen = CLIP.images

    def broken(self, images):
        vectors = seen(self, images).clone()
        vectors[4] = math.nan
        return vectors

    monkeypatch.setattr(CLIP, "images", broken)
    summary = do([town], tmp_path / "out", detector, WORDS, describer)
    reason = "--also: what the model of words sees here is not a finite number"
    assert summary.failures == [Failure(0, str(town), 1, reason)] and not summary.complete
    found = rows(tmp_path / "out/also.csv")
    assert [r["window"] for r in found if not r["cosine"]] == ["c0_r32", "c0_r32"] and summary.also[0].windows == 19
    assert len(geopandas.read_parquet(tmp_path / "out/also.parquet")) == 38
    monkeypatch.undo()
    assert do([town], tmp_path / "out", detector, WORDS, describer).complete
    assert contents(tmp_path / "out", also=True) == contents(tmp_path / "whole", also=True)


def test_a_source_that_failed_twice_is_listed_once():
    first, second = Failure(1, "b.tif", 2, "cut off"), Failure(0, "a.tif", 1, "--also: cut off")
    assert joined([first], [second, Failure(1, "b.tif", 3, "--also: cut off")]) == [second, first]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pool", ""], "asks nothing"),
        ([" \n"], "asks nothing"),
        (["pool", " Pool "], '" Pool " is asked twice'),
        (["house " * 10_000], "50,000 tokens long, and the model reads no more than 38"),
        (["\udcff"], "not text in UTF-8"),
    ],
)
def test_words_that_cannot_be_asked_stop_it_before_it_begins(tmp_path, detector, describer, words, said):
    # The raster is never opened: it is not even there.
    with pytest.raises(InputError, match=said) as told:
        do([tmp_path / "none.tif"], tmp_path / "out", detector, words, describer)
    assert len(str(told.value)) < 200 and "\n" not in str(told.value) and not (tmp_path / "out").exists()


def test_a_model_that_knows_no_words_stops_it_before_it_begins(tmp_path, detector, tokens):
    with pytest.raises(WeightsError, match="holds no CLIP or CoCa"):
        do([tmp_path / "none.tif"], tmp_path / "out", detector, WORDS, Path("negah/aerial-tiny"))
    with pytest.raises(WeightsError, match="no weights at"):
        do([tmp_path / "none.tif"], tmp_path / "out", detector, WORDS, tmp_path / "none.safetensors")
    bad = load(model(tmp_path / "m.safetensors", tokens))
    save(bad, tmp_path / "bad.safetensors", tokens=tokens, reference=torch.ones(5, 3))
    with pytest.raises(WeightsError, match="reference vectors of 3 numbers"):
        do([tmp_path / "none.tif"], tmp_path / "out", detector, WORDS, tmp_path / "bad.safetensors")
    assert not (tmp_path / "out").exists()


def test_any_script_may_be_asked_and_what_the_model_may_not_know_is_told(tmp_path, detector, describer):
    words = ["استخر", "🏊", "wombats near a swimming pool"]
    summary = do([raster(tmp_path / "town.tif")], tmp_path / "out", detector, words, describer)
    assert [answer.in_pieces for answer in summary.also] == [["استخر"], ["🏊"], ["wombats", "near"]]
    assert "may not know" in summary.also[0].told and "wombats, near" in summary.also[2].told
    assert {r["query"] for r in rows(tmp_path / "out/also.csv")} == set(words)
    assert set(geopandas.read_file(tmp_path / "out/also.gpkg")["query"]) == set(words)
    page = (tmp_path / "out/report.html").read_text()
    assert all(word in page for word in words)


def test_hostile_words_stay_text(tmp_path, detector, describer):
    do([raster(tmp_path / "town.tif")], tmp_path / "out", detector, ["<script>x"], describer)
    assert "<script>x" not in (tmp_path / "out/report.html").read_text()


def test_the_command_takes_several_and_prints_them(tmp_path, describer, capsys):
    town = raster(tmp_path / "town.tif")
    command = ["survey", "--also", WORDS[0], str(town), "--also", WORDS[1], "--also-model", str(describer)]
    command += ["--out", str(tmp_path / "out")]
    assert main([*command, "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)["also"]
    assert [answer["query"] for answer in answers] == WORDS
    assert main(command) == 0
    assert "In your words" in (out := capsys.readouterr().out) and "if this place were like them" in " ".join(
        out.split()
    )
    assert main([*command, "--also", ""]) == 2
    assert "asks nothing" in capsys.readouterr().err


def test_a_full_disk_is_told(tmp_path, detector, describer, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("negah.runs.also.write_also", full)
    with pytest.raises(OutputError, match=r"also.csv cannot be written .*continues from the ledger"):
        do([raster(tmp_path / "town.tif")], tmp_path / "out", detector, WORDS, describer)


def test_counts_say_how_many_are_to_be_expected():
    told = Answer("pool", 1000, 37, 10.4).told
    assert told.startswith("37 of 1,000 windows score higher than 99 %") and "about 10.4 would" in told
