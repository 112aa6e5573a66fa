"""`attack` on a detector: rising radii, verdicts, files, and clear words where nothing can be attacked."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from negah.errors import InputError, OutputError
from negah.probe import detector as detectors
from negah.probe.detector import Detector
from negah.runs.attack import Options, attack

SHORT = {"eps": (0.5 / 255, 8 / 255), "steps": 5, "sample": 12}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A detector of random weights, and pictures labelled by what it says of them."""
    folder = tmp_path_factory.mktemp("attack")
    detector = Detector.random(window_px=32)
    model = folder / "head.safetensors"
    detectors.save(detector, model)
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(24)]
    x = torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in pictures])
    with torch.no_grad():
        logits = detector(x).logit
    cut = logits.median()
    with torch.no_grad():
        detector.head.classifier.bias -= cut
    detectors.save(detector, model)
    for i, picture in enumerate(pictures):
        kind = "panel" if logits[i] > cut else "none"
        (folder / "tiles" / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / "tiles" / kind / f"{i}.png")
    return folder, str(model)


def test_a_detector_is_attacked_at_rising_radii(given, tmp_path):
    folder, model = given
    result = attack(folder / "tiles", tmp_path / "out", model, Options(**SHORT))
    found = result.robustness
    assert len(found.images) == 24 and found.clean > 0.9
    first, last = found.curve
    assert found.clean >= first.robust > last.robust and first.low <= first.robust <= first.high
    assert last.gradients > first.gradients > 0
    assert [v.number for v in found.verdicts] == list(range(1, 16)) and found.sample == 12
    stored = json.loads((tmp_path / "out" / "robustness.json").read_text(encoding="utf-8"))
    assert stored["curve"][1]["robust"] == last.robust and len(stored["verdicts"]) == 15
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1 and page.count("<img") == 18 and "an alarm says" in page and "no panels" in page
    run = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert run["verb"] == "attack" and run["arguments"]["model"] == model


def test_what_cannot_be_attacked_is_told(given, tmp_path):
    folder, model = given
    with pytest.raises(InputError, match="eps 0"):
        attack(folder / "tiles", tmp_path, model, Options(eps=(0.0,)))
    with pytest.raises(InputError, match="--images 0"):
        attack(folder / "tiles", tmp_path, model, Options(images=0))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="another --out"):
        attack(folder / "tiles", tmp_path / "file", model, Options(**SHORT, images=8))


def test_a_broken_picture_is_left_out_and_named(given, tmp_path):
    import shutil

    folder, model = given
    shutil.copytree(folder / "tiles", tmp_path / "tiles")
    (tmp_path / "tiles" / "none" / "broken.png").write_bytes(b"not a picture")
    result = attack(tmp_path / "tiles", tmp_path / "out", model, Options(**SHORT))
    assert len(result.robustness.images) == 24 and [name for name, _ in result.failures] == ["none/broken.png"]
