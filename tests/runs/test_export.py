import importlib.util
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from negah.errors import InputError, NegahError, OutputError
from negah.probe.detector import Detector
from negah.runs import export as module
from negah.runs.export import export


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.random(seed=3, dim=32, depth=1, window_px=48)


@pytest.mark.parametrize("window_px", [None, 32])
def test_onnx_gives_the_same_reading_for_any_batch(tmp_path, detector, window_px):
    done = export(detector, tmp_path / "deep" / "model.onnx", window_px)
    size = window_px or 48
    assert done.window_px == size
    assert max(done.difference.values()) < 1e-4
    assert [path.name for path in done.path.parent.iterdir()] == ["model.onnx"]  # nothing beside it

    session = onnxruntime.InferenceSession(str(done.path))
    assert [output.name for output in session.get_outputs()] == ["logit", "attention", "patch_logits"]
    for batch in (1, 4):
        images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
        with torch.inference_mode():
            ours = detector(images)
        for a, b in zip(ours, session.run(None, {"images": images.numpy()})):
            assert a.shape == b.shape
            np.testing.assert_allclose(a.numpy(), b, atol=1e-4)

    metadata = {entry.key: entry.value for entry in onnx.load(done.path).metadata_props}
    about = json.loads(metadata["negah"])
    assert about["window_px"] == size and about["patch"] == 8 and about["info"]["gsd_m"] == 0.3


def test_the_detector_is_left_as_it_was(tmp_path, detector):
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    random_state = torch.get_rng_state()
    detector.train()
    export(detector, tmp_path / "model.onnx", 32)
    assert detector.training
    detector.eval()
    assert detector.backbone.grid == (6, 6)
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, tensor in detector.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_graph_that_differs_is_not_written(tmp_path, detector, monkeypatch):
    exact = module.Window

    def skewed(original: Detector, size: int) -> nn.Module:
        window = exact(original, size)
        nn.init.constant_(window.detector.head.classifier.bias, 5.0)
        return window

    monkeypatch.setattr(module, "Window", skewed)
    with pytest.raises(OutputError, match="not written: its outputs differ from ours by 5"):
        export(detector, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_window_must_divide_into_patches(tmp_path, detector):
    with pytest.raises(InputError, match="window of 50 px does not divide into patches of 8 px"):
        export(detector, tmp_path / "model.onnx", 50)


def test_a_missing_package_is_named_with_the_extra(tmp_path, detector, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    with pytest.raises(NegahError, match=r"needs onnxruntime, .* pip install '.\[onnx\]'"):
        export(detector, tmp_path / "model.onnx")


def test_a_target_that_cannot_be_written(tmp_path, detector):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*model\.onnx"):
        export(detector, tmp_path / "file" / "model.onnx")
