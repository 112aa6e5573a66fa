"""`harden`: what comes out withstands more than what went in, and nothing leaks, tears or is lost on the way."""

import json
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from negah import weights
from negah.adversarial.harden import Hardening, OverfittingWatch, fgsm_start, held_out
from negah.errors import InputError, OutputError, WeightsError
from negah.probe import detector as detectors
from negah.probe.detector import Detector
from negah.probe.labels import read_samples
from negah.runs import attack as attacks
from negah.runs import harden as runs
from negah.runs import probe as probes
from negah.runs.classifiers import PanelClassifier
from negah.runs.harden import Images, Options, drawn, harden, harden_classifier
from negah.train import Batches, checkpoint, fit

EPS = 5 / 255
QUICK = Options(eps=EPS, epochs=5, batch=16, lr=2e-3)


def pictures(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two signs tell the classes apart: 40 grey levels between two halves, which are noisy, and a perfect checkerboard
    of 3, which an attack of 5 turns around."""
    rng, y = np.random.default_rng(0), np.arange(n) % 2
    sign = np.where(y, 1, -1)[:, None, None, None]
    x = 110 + rng.normal(0, 12, (n, 16, 16, 3))
    x[:, :, :8] += 20 * sign + rng.normal(0, 9, (n, 1, 1, 1))
    x += 3 * sign * np.where(np.indices((16, 16)).sum(0) % 2, 1, -1)[None, :, :, None]
    return x.clip(0, 255).astype(np.uint8), y


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """160 pictures in 40 groups, in a csv and in class folders, and a detector that learned from them plainly."""
    root = tmp_path_factory.mktemp("harden")
    x, y = pictures(160)
    rows = ["file,label,group"]
    for i, (image, label) in enumerate(zip(x, y)):
        path = root / "classes" / "ab"[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        rows.append(f"{path.relative_to(root)},{label},{i // 4}")
    (root / "labels.csv").write_text("\n".join(rows))
    detector = Detector.random(window_px=16)
    pixels = torch.from_numpy(x).permute(0, 3, 1, 2) / 255
    batches = Batches(list(zip(pixels, torch.from_numpy(y))), 32)
    fit(Hardening(PanelClassifier(detector), eps=0.0, craft=fgsm_start), batches, steps=40, lr=1e-3)
    detectors.save(detector.eval(), root / "plain.safetensors")
    return root


def run(folder: Path, out: Path, options: Options = QUICK, **more):
    return harden(folder / "labels.csv", out, "fgsm", str(folder / "plain.safetensors"), options, **more)


@pytest.fixture(scope="module")
def hardened(folder):
    told: list[str] = []
    return run(folder, folder / "hard", say=told.append), told


def test_a_hardened_detector_withstands_more_and_goes_where_detectors_go(folder, hardened, tmp_path):
    result, told = hardened
    before, after = result.before["robust accuracy"], result.after["robust accuracy"]
    assert before.value < 0.6 and after.value > 0.85 and after.low > before.high and not result.notes
    assert result.after["accuracy"].value > 0.9
    assert result.images == {"learned": 96, "watched": 32, "judged": 32} and result.epoch == 6 and result.steps == 30
    best = max(result.scores, key=lambda row: row["robust"])
    assert result.kept == best["step"] and len(result.scores) == 5
    assert len(told) == 5 and told[0].startswith("epoch 1 of 5: loss ") and "robust" in told[0]
    detector = detectors.load(result.model)
    assert detector.info.name == "hard" and detector.info.threshold == result.threshold
    assert detector.info.area_ratio is None  # nobody has compared the areas of this one with true ones
    short = attacks.Options(eps=(EPS,), steps=5, sample=4, images=64)
    found = attacks.attack(folder / "classes", tmp_path, str(result.model), replace(short, positive="b"))
    assert found.robustness.curve[0].robust > 0.8
    scored = probes.eval_probe(folder / "labels.csv", str(result.model), probes.Options())
    assert scored.threshold == result.threshold and scored.methods["attentive head"].auc.value > 0.95


def test_what_it_took_is_written_down(folder, hardened):
    result, _ = hardened
    scores, made = (json.loads((folder / "hard" / name).read_text()) for name in ("scores.json", "run.json"))
    assert scores["after"]["robust accuracy"] == result.after["robust accuracy"]._asdict() and scores["history"]
    assert made["arguments"]["method"] == "fgsm" and made["arguments"]["eps"] == EPS and made["finished"]


def test_parts_share_no_group_and_what_is_marked_as_test_is_judged(folder, tmp_path):
    samples = read_samples(folder / "labels.csv").labelled()
    groups, how = QUICK.groups(samples)
    marked = replace(samples, split=np.where(np.arange(160) < 40, "test", "train"))
    for given, judged in ((samples, None), (marked, set(range(40)))):
        fold = QUICK.folds_of(given, groups, how)
        parted = Images.parted(torch.zeros(160, 3, 8, 8, dtype=torch.uint8), samples.labels, fold, QUICK, origin="")
        parts = [set(groups[part]) for part in (parted.learned, parted.watched, parted.judged)]
        assert len(set.union(*parts)) == sum(map(len, parts)) == 40
        assert judged is None or set(parted.judged.tolist()) == judged
    few = Images.parted(torch.zeros(160, 3, 8, 8, dtype=torch.uint8), samples.labels, fold,
                        replace(QUICK, images=10), origin="")  # fmt: skip
    assert few.counts == {"learned": len(parted.learned), "watched": 10, "judged": 10}


def test_a_rare_class_is_watched_and_a_draw_repeats_itself():
    labels = np.zeros(1000, int)
    labels[[7, 500, 993]] = 1
    labels[::5] = 2
    rows = np.arange(100, 1000)
    for seed in range(20):
        found = drawn(rows, labels, 20, np.random.default_rng(seed))
        counts = np.bincount(labels[found], minlength=3)
        assert len(set(found.tolist())) == 20 == counts.sum() and set(found.tolist()) <= set(rows.tolist())
        assert counts[1] == 1 and abs(counts[2] - 4) <= 1  # its share, and one at least
        assert np.array_equal(found, drawn(rows, labels, 20, np.random.default_rng(seed)))
    assert len({tuple(drawn(rows, labels, 20, np.random.default_rng(seed))) for seed in range(5)}) == 5
    assert np.array_equal(drawn(rows, labels, 5000, np.random.default_rng(0)), rows)


def test_a_run_that_was_stopped_ends_the_same(folder, hardened, tmp_path, monkeypatch):
    start = Batches.start

    def stopping(self, at):
        for i, batch in enumerate(start(self, at)):
            if at + i == 14:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Batches, "start", stopping)
        run(folder, tmp_path / "hard")
    assert checkpoint.load(tmp_path / "hard" / "checkpoint.pt")["step"] == 15
    assert not (tmp_path / "hard" / "detector.safetensors").exists()
    again = run(folder, tmp_path / "hard")
    assert replace(again, model=hardened[0].model) == hardened[0]
    a, b = load_file(again.model), load_file(hardened[0].model)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("drop", "at"), [(0.2, 13), (9.0, 25)])  # seen, or too small a fall for the watch
def test_what_is_saved_is_from_before_a_breakdown_seen_or_not(folder, tmp_path, monkeypatch, drop, at):
    """Planted: after one step the classifier says the opposite."""
    steps = []

    def spoilt(self, progress):
        steps.append(progress)
        if len(steps) == at:
            self.model.detector.head.classifier.weight.data.neg_()

    monkeypatch.setattr(Hardening, "after_step", spoilt)
    monkeypatch.setattr(runs, "OverfittingWatch", partial(OverfittingWatch, drop=drop))
    result = run(folder, tmp_path / "out", replace(QUICK, lr=1e-3))
    assert ("catastrophic overfitting" in result.stopped) == (drop < 1)
    assert result.kept < at < result.steps == (18 if drop < 1 else 30)
    detector = detectors.load(result.model)
    detector.info = replace(detector.info, threshold=0.5)
    samples = read_samples(folder / "labels.csv").labelled()
    fold = QUICK.folds_of(samples, *QUICK.groups(samples))
    pixels = torch.stack([torch.from_numpy(samples.image(i)).permute(2, 0, 1) for i in range(len(samples))])
    watched = Images.parted(pixels, samples.labels, fold, QUICK, origin="").watched
    scores = held_out(PanelClassifier(detector), pixels[watched] / 255, torch.from_numpy(samples.labels[watched]),
                      eps=EPS)  # fmt: skip
    kept = next(row for row in result.scores if row["step"] == result.kept)
    assert scores["robust"]() == pytest.approx(kept["robust"]) and kept["robust"] > result.scores[-1]["robust"] + 0.2


def test_the_head_alone_leaves_the_backbone_and_an_average_is_what_is_kept(folder, tmp_path):
    before = load_file(folder / "plain.safetensors")
    short = replace(QUICK, epochs=1)
    found = {
        "head": run(folder, tmp_path / "head", replace(short, what="head")),
        "average": run(folder, tmp_path / "average", replace(short, average=0.999)),
    }
    after = {name: load_file(result.model) for name, result in found.items()}
    same = {name for name in before if torch.equal(before[name], after["head"][name])}
    assert same == {name for name in before if name.startswith("backbone.")}
    assert {"clean", "robust", "averaged clean", "averaged robust"} < found["average"].scores[0].keys()
    assert all((before[name] - after["average"][name]).abs().max() < 1e-3 for name in before)
    assert not all(torch.equal(before[name], after["average"][name]) for name in before)


@pytest.mark.parametrize("method", ["fast-at", "n-fgsm", "pgd", "trades"])
def test_every_method_makes_a_classifier_from_class_folders(folder, tmp_path, method):
    options = Options(eps=1 / 255, epochs=2, batch=32, size=16)
    result = harden_classifier([str(folder / "classes")], tmp_path, method, "resnet10-cifar", options)
    assert result.before == {} and result.threshold is None and result.steps == 6
    assert 0 <= result.after["robust accuracy"].value <= result.after["accuracy"].value <= 1
    model = weights.load_classifier(tmp_path)
    assert model.classes == ("a", "b") and not model.training
    x, y = pictures(160)
    with torch.no_grad():
        right = model(torch.from_numpy(x).permute(0, 3, 1, 2)).argmax(1) == torch.from_numpy(y)
    assert right.double().mean() > 0.5 or result.after["accuracy"].value < 0.75


def test_a_classifier_is_refused_where_its_parts_do_not_fit(folder, tmp_path):
    options = Options(eps=1 / 255, epochs=1, batch=64, size=16)
    harden_classifier([str(folder / "classes")], tmp_path / "a", "fgsm", "resnet10-cifar", options)
    weights.save_backbone(weights.backbone("vit-micro/8", size=16), tmp_path / "a" / "backbone.safetensors")
    with pytest.raises(WeightsError, match="does not fit its backbone"):
        weights.load_classifier(tmp_path / "a")
    (tmp_path / "a" / "classes.safetensors").write_bytes((folder / "plain.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="names no classes"):
        weights.load_classifier(tmp_path / "a")


def test_what_cannot_be_done_is_told(folder, hardened, tmp_path):
    with pytest.raises(OutputError, match="holds another run: epochs 5 .now 6."):
        run(folder, folder / "hard", replace(QUICK, epochs=6))
    with pytest.raises(InputError, match="not of two classes"):
        run(folder, tmp_path, replace(QUICK, images=1))
    for wrong, told in (({"eps": 0.0}, "--eps 0"), ({"folds": 2}, "--folds 2"), ({"average": 1.0}, "--average 1"),
                        ({"beta": 6.0}, "of trades only"), ({"epochs": 0}, "--epochs 0")):  # fmt: skip
        with pytest.raises(InputError, match=told):
            run(folder, tmp_path, replace(QUICK, **wrong))
    assert not any(tmp_path.iterdir())
