"""The exercise runs from end to end, and every sentence of its page follows the figures, whichever way these fall."""

import json

import pytest
import torch

from negah.adversarial import fgsm
from negah.lab import adversarial, supervised
from negah.lab.adversarial import ATTACKS, EPS, beside_torchattacks, public, table
from negah.lab.adversarial_answers import (
    MANY_STEPS,
    ONE_STEP,
    concluded,
    path,
    told_clean,
    told_fgsm,
    told_pgd,
    told_plain,
    told_training,
)
from negah.lab.supervised import Bench, right
from negah.lab.training import Effort

EFFORT = Effort(steps=6, batch=8, say=lambda line: None)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(supervised, "TRAIN", 40)
    monkeypatch.setattr(supervised, "TEST", 20)
    monkeypatch.setattr(supervised, "REDUCED_WIDTHS", (4, 4, 8, 8))


def test_the_whole_exercise_becomes_a_page(tiny, tmp_path):
    page = adversarial.run(tmp_path, EFFORT)
    names = ["plain", "pictures", "training", "clean", "fgsm", "pgd", "verdicts"]
    assert [panel.name for panel in page.panels] == names
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert text.count("<svg") == len(names) and "REDUCED" in text and "does not stand beside" in text
    assert "two public runs</td>" not in text and "seeds 1" in text and "size reduced" in text
    panels = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["panels"]
    assert [row["setting"] for row in panels["pgd"]["rows"]] == ["plain", "by FGSM", "by PGD"]
    for row in panels["pgd"]["rows"]:
        assert all(0 <= row[name] <= 1 for name in ATTACKS)
    for row in panels["verdicts"]["rows"]:
        assert len(row["verdicts"]) == 15 and row["withstand all"] <= row["clean"]
    for panel in panels.values():
        assert panel["found"]


def test_a_row_is_what_the_attacks_leave_over_seeds(tiny):
    bench = Bench.of(EFFORT)
    runs = [adversarial.train(bench, "plain", supervised.untouched, 0.0, seed) for seed in (0, 1)]
    (row,) = table(runs)
    points = fgsm(runs[0].network, bench.images, bench.labels, eps=EPS)
    assert runs[0].figures[ONE_STEP] == right(runs[0].network, points, bench.labels)
    values = [run.figures["clean"] for run in runs]
    assert row["clean"] == sum(values) / 2 and row["clean ±"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert all((attack(runs[0].network, bench.images, bench.labels) - bench.images).abs().max() <= EPS + 1e-6
               for attack in ATTACKS.values())  # fmt: skip


def test_two_fgsms_give_the_same_images(tiny, monkeypatch):
    pytest.importorskip("torchattacks", reason="torchattacks is not installed")
    bench = Bench.of(EFFORT)
    network = bench.network(0).eval()
    row = beside_torchattacks(bench, network)
    assert row["of these steep"] == 0 and row["values apart"] < 1e-4 * row["values"]
    assert row["values"] == 3 * bench.images.numel()
    assert row[ONE_STEP] == right(network, fgsm(network, bench.images, bench.labels, eps=EPS), bench.labels)
    # Of another attack the difference is told.
    monkeypatch.setattr(adversarial, "fgsm", lambda model, images, labels, eps: images)
    row = beside_torchattacks(bench, network)
    assert row["of these steep"] > 0.5 * row["values"]


def test_fgsms_are_compared_in_full_precision_also_on_a_gpu(tiny):
    pytest.importorskip("torchattacks", reason="torchattacks is not installed")
    bench, seen = Bench.of(EFFORT), set()
    network = bench.network(0).eval()
    network.register_forward_hook(lambda *_: seen.add(torch.backends.cudnn.allow_tf32))
    beside_torchattacks(bench, network)
    assert seen == {False} and torch.backends.cudnn.allow_tf32


def figures(label: str, clean: float, one: float, many: float) -> dict:
    row = {"setting": label} | {name: one if name.startswith("FGSM") else many for name in ATTACKS}
    return row | {"clean": clean}


PLAIN = figures("plain", 0.8, 0.2, 0.0)


def test_what_the_attacks_leave_of_the_plain_network():
    same = {"values": 99, "values apart": 0, "of these steep": 0}
    told = told_plain(PLAIN, same)
    assert "Of 80.0 % rightly classified, FGSM leaves 20.0, 20.0 and 20.0 % at 1, 4 and 8 of 255" in told
    assert "20.0 points fewer" in told and told.endswith("gives the same images as ours.")
    assert "10.0 points more" in told_plain(figures("plain", 0.8, 0.2, 0.3), same)
    told = told_plain(PLAIN, same | {"values apart": 2})
    assert told.endswith("the same images as ours, but for 2 of 99 values, whose gradient is 0 up to rounding.")
    assert "OTHER IMAGES than ours: 9 of 99" in told_plain(PLAIN, same | {"values apart": 9, "of these steep": 1})
    assert "not installed" in told_plain(PLAIN, {"setting": "theirs"})


@pytest.mark.parametrize(
    ("clean", "told"), [(0.6, "it fell: 60.0 %, -20.0 points"), (0.9, "it rose: 90.0 %, +10.0"), (0.81, "is the same")]
)
def test_what_happened_to_clean_accuracy(clean, told):
    assert told in told_clean([PLAIN, figures("by FGSM", clean, 0.5, 0.5)], 1000)


@pytest.mark.parametrize(
    ("clean", "one", "told"),
    [(0.7, 0.5, "keeps 50.0 % at 8/255, above"), (0.7, 0.21, "no different from"), (0.7, 0.1, "below the plain one")],
)
def test_what_fgsm_shows(clean, one, told):
    said = told_fgsm([PLAIN, figures("by FGSM", clean, one, 0.4)], 1000)
    assert told in said and "leaking" not in said


def test_more_right_under_fgsm_than_without_is_label_leaking():
    assert "label leaking" in told_fgsm([PLAIN, figures("by FGSM", 0.6, 0.9, 0.0)], 1000)


@pytest.mark.parametrize(
    ("many", "told"),
    [(0.48, "holds against more steps"), (0.35, "15.0 points too many, the rest holds"), (0.05, "one step and not")],
)
def test_what_pgd_shows(many, told):
    said = told_pgd([PLAIN, figures("by FGSM", 0.7, 0.5, many)], 1000)
    assert told in said and said.startswith("Eight steps leave 0.0 % of the plain network.")


@pytest.mark.parametrize(
    ("robust", "what", "told"),
    [
        ([0.1, 0.3, 0.5], "held", "held to the end"),
        ([0.1, 0.5, 0.05, 0.5], "broke down", "catastrophic"),
        ([0.3, 0.5, 0.42, 0.34], "past its best", "robust overfitting"),
        ([0.3, 0.5, 0.47], "held", "held to the end"),
        ([0.0, 0.02, 0.0], "never came", "never came"),
    ],
)
def test_what_became_of_robustness_on_the_way(robust, what, told):
    assert path([{"robust": value} for value in robust], 0.01, 200) == what
    row = {"setting": "by FGSM", "seed": 0, "what": what, "robust": robust[-1], "best robust": max(robust)}
    plain = row | {"setting": "plain", "what": "held"}  # which is no news of a network that was not hardened
    assert told in told_training([plain, row]) and told_training([plain]) == ""


def verdict_row(label: str, clean: float, robust: float, fgsm: float, alarms: str = "none") -> dict:
    return {
        "setting": label, "clean": clean, "withstand all": robust, "withstand FGSM": fgsm, "alarms": alarms,
        "images": 400,
    }  # fmt: skip


def test_what_is_concluded():
    plain = verdict_row("plain", 0.8, 0.0, 0.2)
    told = concluded([plain, verdict_row("by FGSM", 0.7, 0.1, 0.5), verdict_row("by PGD", 0.6, 0.4, 0.42)])
    assert "leave 0.0 % (plain), 10.0 % (by FGSM), 40.0 % (by PGD)." in told
    assert "Training by PGD bought 40.0 points of robustness, for 20.0 points of clean accuracy." in told
    assert "Training by FGSM is below that." in told
    assert "claimed 40.0 points too many by FGSM." in told and "too many by PGD" not in told
    assert "No verdict speaks against" in told
    told = concluded([plain, verdict_row("by FGSM", 0.85, 0.41, 0.42), verdict_row("by PGD", 0.7, 0.4, 0.42)])
    assert "bought 41.0 points of robustness, and cost no clean" in told and "by PGD is no different from that" in told
    told = concluded([plain, verdict_row("by FGSM", 0.8, 0.0, 0.0), verdict_row("by PGD", 0.8, 0.0, 0.0, "5 zero")])
    assert "bought no robustness" in told and "NOT TO BE TRUSTED: by PGD: 5 zero." in told


def test_the_public_runs_stand_beside_the_whole_protocol_alone(tiny, monkeypatch):
    bench = Bench.of(EFFORT)
    assert public(bench, "plain") == []
    monkeypatch.setattr(Bench, "protocol", True)
    (row,) = public(bench, "plain")
    assert row["setting"] == "plain, two public runs" and row[MANY_STEPS] == "0.010 to 0.010"
    assert "The whole protocol" in bench.size
