"""Whether generated pictures help: what the detector is trained on, what the page says of it."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from negah.errors import InputError
from negah.lab import augment
from negah.lab.training import Effort


@pytest.fixture
def small(monkeypatch):
    few = {augment.RARE: 5, augment.COMMON: 6, augment.NONE: 8}
    monkeypatch.setattr(augment, "COUNTS", {"train": few, "test": few})
    monkeypatch.setattr(augment, "DRAWN", 10)
    monkeypatch.setattr(augment, "VIEWS", 2)
    monkeypatch.setattr(augment, "Options", partial(augment.Options, sampler_steps=2))


def test_rare_panels_are_red_and_nothing_else_about_them_is(small):
    tiles, again = augment.generated(64), augment.generated(64)
    assert {kind: len(images) for kind, images in tiles.train.items()} == augment.COUNTS["train"]
    for kind in (augment.RARE, augment.COMMON, augment.NONE):
        assert torch.equal(tiles.train[kind], again.train[kind])
        assert not torch.equal(tiles.train[kind], tiles.test[kind])
    redness = {kind: (images[:, 0].float() - images[:, 2]).mean() for kind, images in tiles.train.items()}
    assert redness[augment.RARE] > redness[augment.COMMON]


def test_folders_of_ones_own_are_read_and_what_lacks_is_named(tmp_path):
    rng = np.random.default_rng(0)

    def fill(place: str, count: int) -> None:
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / place / f"{number}.png")

    for part, kind in (("train", "none"), ("train", "common"), ("test", "none"), ("test", "common"), ("test", "rare")):
        fill(f"{part}/{kind}", 3)
    fill("train/rare", 4)
    with pytest.raises(InputError, match="4 pictures of train/rare: give 5 or more"):
        augment.of_data([str(tmp_path)], 64)
    fill("train/rare", 7)
    tiles = augment.of_data([str(tmp_path)], 64)
    assert [len(tiles.train[kind]) for kind in ("rare", "common", "none")] == [7, 3, 3]
    assert [len(tiles.test[kind]) for kind in ("rare", "common", "none")] == [3, 3, 3]
    five = [augment.chosen(tiles.train["rare"], seed) for seed in (0, 1)]
    assert len(five[0]) == 5
    assert not torch.equal(five[0], five[1])
    fill("train/other", 1)
    with pytest.raises(InputError, match="rare, common and none; these are"):
        augment.of_data([str(tmp_path)], 64)


def test_what_is_said_follows_the_figures():
    def rows(personal: float, others: float) -> list[dict]:
        values = dict.fromkeys(augment.WAYS, others) | {augment.PERSONAL: personal}
        return [
            {"setting": way, "seed": seed, "rare AUC": value + 0.001 * seed, "common AUC": 0.9}
            for way, value in values.items() for seed in (0, 1)
        ]  # fmt: skip

    better, worse = augment.told(rows(0.9, 0.8)), augment.told(rows(0.7, 0.8))
    assert "+0.100" in better and "is the best of the four" in better
    assert "-0.100" in worse and "is NOT the best of the four" in worse
    assert "no different" in augment.told(rows(0.8, 0.8))


def test_the_page_holds_every_way_of_training(small, tmp_path):
    said: list[str] = []
    page = augment.run(tmp_path / "out", Effort(steps=2, seeds=1, say=said.append))
    rows = page.panels[0].rows
    assert [row["setting"] for row in rows] == list(augment.WAYS)
    assert all(0 <= row["rare low"] <= row["rare AUC"] <= row["rare high"] <= 1 for row in rows)
    assert "one seed" in page.panels[0].found
    for name in ("index.html", "results.json", "detection.svg", "pictures.svg", "dreambooth-0/run/report.html"):
        assert (tmp_path / "out" / name).is_file()
    assert len(list(Path(tmp_path / "out/dreambooth-0/five").glob("*.png"))) == augment.FIVE
