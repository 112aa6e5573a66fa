import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from negah.errors import WeightsError
from negah.nn import packed
from negah.probe.detector import Detector, in_bf16, load, save


def images(side: int = 104) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_saved_detector_comes_back_whole(tmp_path):
    detector = Detector.random(seed=3)
    detector.info = replace(detector.info, threshold=0.37, gsd_range_m=(0.2, 0.4))
    save(detector, tmp_path / "d.safetensors")
    back = load(tmp_path / "d.safetensors")
    assert back.info == detector.info and not back.training
    for a, b in zip(detector(images()), back(images()), strict=True):
        assert torch.equal(a, b)


def test_half_precision_halves_the_file_and_hardly_moves_the_reading(tmp_path):
    detector = Detector.random()
    save(detector, tmp_path / "full.safetensors")
    save(detector, tmp_path / "half.safetensors", dtype=torch.float16)
    sizes = [(tmp_path / f"{n}.safetensors").stat().st_size for n in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    assert torch.allclose(load(tmp_path / "half.safetensors")(images()).logit, detector(images()).logit, atol=0.05)


def test_a_bf16_copy_says_nearly_the_same_and_leaves_the_original_alone():
    detector = Detector.random(depth=2)
    state = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    fast = in_bf16(detector)
    assert fast.backbone.blocks[0].attn.qkv.weight.dtype == torch.bfloat16  # pyright: ignore
    assert fast.head.classifier.weight.dtype == torch.float32  # the logit is not rounded to eight bits
    slow, quick = detector(images()), fast(images())
    assert torch.allclose(slow.logit, quick.logit, atol=0.1) and not torch.equal(slow.logit, quick.logit)
    for name, tensor in detector.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, state[name])


def test_a_bf16_copy_does_without_the_packed_operators(monkeypatch):
    monkeypatch.setattr(packed, "available", lambda: False)
    detector = Detector.random(depth=2)
    fast = in_bf16(detector)
    assert isinstance(fast.head.block.attn.qkv, torch.nn.Linear)
    assert torch.allclose(detector(images()).logit, fast(images()).logit, atol=0.1)


def test_it_reads_uint8_and_unit_floats_alike_at_several_sizes():
    detector = Detector.random()
    for side in (64, 104, 128):
        pixels = images(side)
        reading = detector(pixels)
        assert reading.patch_logits.shape == (2, (side // 8) ** 2)
        assert torch.allclose(reading.logit, detector(pixels.float() / 255).logit, atol=1e-4)


@pytest.mark.parametrize("name", ["nowhere.safetensors", "negah/no-such-model"])
def test_what_is_not_there_is_named(name):
    with pytest.raises(WeightsError, match=name.removesuffix(".safetensors")):
        load(name)


def test_what_is_no_detector_is_refused(tmp_path):
    text, plain = tmp_path / "text.safetensors", tmp_path / "plain.safetensors"
    text.write_text("not weights")
    save_file({"x": torch.zeros(1)}, str(plain))
    with pytest.raises(WeightsError, match=r"text\.safetensors is not a readable safetensors"):
        load(text)
    with pytest.raises(WeightsError, match="holds no detector"):
        load(plain)


def test_a_missing_key_is_named(tmp_path):
    path = tmp_path / "d.safetensors"
    detector = Detector.random()
    save(detector, path)
    state = load_file(str(path))
    del state["head.classifier.bias"]
    meta = {"backbone": detector.backbone.config, "head": {"dim": 32, "heads": 1, "mlp_ratio": 4.0}}
    meta["info"] = {**detector.info.__dict__}
    save_file(state, str(path), metadata={"negah": json.dumps(meta)})
    with pytest.raises(WeightsError, match=r"head\.classifier\.bias"):
        load(path)
