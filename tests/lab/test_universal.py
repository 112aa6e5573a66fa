"""Universal perturbations are made of the pictures they should be, measured on others, and told by the figures."""

import json

import pytest
import torch

from negah.adversarial import fooling_rate
from negah.errors import InputError
from negah.lab import supervised, universal
from negah.lab.supervised import Bench
from negah.lab.training import Effort
from negah.lab.universal import (
    ALGORITHM,
    OPTIMISED,
    SIGNS,
    Made,
    make_all,
    table,
    told_counts,
    told_pictures,
    told_rates,
)

EFFORT = Effort(steps=6, batch=8, say=lambda line: None)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(supervised, "TRAIN", 40)
    monkeypatch.setattr(supervised, "TEST", 20)
    monkeypatch.setattr(supervised, "REDUCED_WIDTHS", (4, 4, 8, 8))
    monkeypatch.setattr(universal, "RADII", (5, 10))
    monkeypatch.setattr(universal, "COUNTS", (2, 4, 6))


def test_the_experiment_becomes_a_page(tiny, tmp_path):
    page = universal.run(tmp_path, EFFORT)
    assert [panel.name for panel in page.panels] == ["rates", "pictures", "images"]
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert text.count("<svg") == 3 and "REDUCED" in text
    panels = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["panels"]
    rates = {(row["setting"], row["eps"], row["pictures"]) for row in panels["rates"]["rows"]}
    assert rates == {(form, eps, 4) for form in (OPTIMISED, ALGORITHM, SIGNS) for eps in ("5/255", "10/255")}
    made_of = {(row["setting"], row["pictures"]) for row in panels["images"]["rows"]}
    assert made_of == {(form, count) for form in (OPTIMISED, ALGORITHM) for count in (2, 4, 6)}
    assert all(row["eps"] == "10/255" for row in panels["images"]["rows"])


def test_fewer_pictures_than_a_change_is_made_of_are_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(universal, "COUNTS", (2, 4, 41))
    with pytest.raises(InputError, match="40 pictures to train on are too few: a change is made of up to 41"):
        universal.run(tmp_path, EFFORT)


def test_rates_are_of_test_pictures_on_both_networks(tiny):
    bench = Bench.of(EFFORT)
    pair = universal.networks(bench, 0)
    found = make_all(bench, pair, 60, 4, seed=0)
    assert [made.form for made in found] == [OPTIMISED, ALGORITHM, SIGNS]
    for made in found[:2]:
        assert 0 < made.delta.abs().max() <= 60 / 255 + 1e-6
        assert made.rate == fooling_rate(pair[0], bench.images, made.delta)
        assert made.transfer == fooling_rate(pair[1], bench.images, made.delta)
    assert torch.allclose(found[2].delta.abs(), torch.tensor(60 / 255))
    assert any(made.rate != made.transfer for made in found)


def test_rows_are_means_over_seeds():
    delta = torch.zeros(1, 3, 2, 2)
    rows = table([Made("a", 10, 4, seed, delta, rate, 0.1, 1.0) for seed, rate in ((0, 0.4), (1, 0.6))])
    assert len(rows) == 1 and rows[0]["fooled"] == 0.5 and rows[0]["fooled ±"] == pytest.approx(0.1414, abs=1e-3)
    assert rows[0]["seeds"] == 2 and rows[0]["eps"] == "10/255"


def rates(ours: float, theirs: float, noise: float, second: float) -> list[dict]:
    rows = [
        {"setting": form, "eps": eps, "fooled": fooled * share, "second network": other * share}
        for eps, share in (("5/255", 0.5), ("10/255", 1.0))
        for form, fooled, other in ((OPTIMISED, ours, second), (ALGORITHM, theirs, second), (SIGNS, noise, 0.1))
    ]
    return rows


@pytest.mark.parametrize(
    ("ours", "theirs", "word"), [(0.8, 0.5, "above"), (0.5, 0.8, "below"), (0.5, 0.51, "no different from")]
)
def test_the_two_forms_are_compared_at_the_largest_radius(ours, theirs, word):
    told = told_rates(rates(ours, theirs, 0.05, 0.4), 1000)
    assert f"The optimisation is {word} the 2017 algorithm" in told and f"{100 * ours:.1f} % (optimisation)" in told


def test_noise_and_the_second_network_are_told_whichever_way():
    told = told_rates(rates(0.8, 0.4, 0.05, 0.4), 1000)
    assert (
        told.count("more than noise does") == 2
        and "NO more" not in told
        and told.count("%, more than random signs do (10.0 %)") == 2
    )
    assert (
        "half or more of the pictures from 10/255 on" in told
        and "half or more of the pictures at no radius tried" in told
    )
    told = told_rates(rates(0.11, 0.1, 0.1, 0.1), 1000)
    assert told.count("NO more than noise does") == 2 and told.count("no more than random signs do (10.0 %)") == 2


@pytest.mark.parametrize(("many", "word"), [(0.9, "above"), (0.2, "below"), (0.51, "no different from")])
def test_more_pictures_are_told_against_few(many, word):
    rows = [
        {"setting": form, "pictures": count, "fooled": rate}
        for form in (OPTIMISED, ALGORITHM) for count, rate in ((16, 0.5), (256, many))
    ]  # fmt: skip
    told = told_counts(rows, 1000)
    assert told.count(f"with 256 pictures {word} with 16 (16: 50.0 %") == 2


@pytest.mark.parametrize(("share", "told"), [(0.8, "of them: a."), (0.3, "of them: nowhere.")])
def test_a_class_that_draws_most_is_named(share, told):
    row = {"setting": "a", "commonest answer": "dog", "its share of the fooled": share}
    assert told_pictures([row]).endswith(told) and "become dog" in told_pictures([row])
