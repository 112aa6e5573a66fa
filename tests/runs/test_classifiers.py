"""Classifiers of any origin say what they say in their own library, and their classes are never guessed."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from negah.adversarial import fgsm
from negah.errors import InputError, WeightsError
from negah.probe.detector import Detector
from negah.runs.classifiers import PanelClassifier, class_numbers, classifier

CPU = torch.device("cpu")


@pytest.fixture
def pictures() -> list[np.ndarray]:
    """Of several shapes, none of them the model's."""
    generator = np.random.default_rng(0)
    return [
        generator.integers(0, 256, (*side, 3), dtype=np.uint8) for side in ((40, 50), (64, 33), (32, 32), (200, 90))
    ]


def said(judged, pictures) -> Tensor:
    x = torch.stack([judged.prepare(picture) for picture in pictures])
    assert x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1
    with torch.no_grad():
        return judged.model(x.to(judged.device))


def hugging_face(folder, kind: str) -> nn.Module:
    """A small classifier of random weights in transformers' own layout."""
    transformers = pytest.importorskip("transformers")
    names = {"id2label": {0: "cat", 1: "Dog", 2: "river bank"}, "num_labels": 3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "vit":
            config = transformers.ViTConfig(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32,
                patch_size=8, **names,
            )  # fmt: skip
            net = transformers.ViTForImageClassification(config)
            processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.4, 0.5, 0.6])
        else:
            config = transformers.ResNetConfig(
                embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **names
            )
            net = transformers.ResNetForImageClassification(config)
            # Resizes the shorter side and crops the middle, in one go, as ResNets of the hub are used.
            processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 40}, crop_pct=0.8)
    net.save_pretrained(folder)
    processor.save_pretrained(folder)
    return net.eval()


# Hugging Face


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_folder_of_transformers_gives_the_logits_of_its_own_pipeline(kind, pictures, tmp_path):
    from transformers import AutoImageProcessor

    net = hugging_face(tmp_path, kind)
    judged = classifier(str(tmp_path), device=CPU)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    pixels = [processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"] for picture in pictures]
    with torch.no_grad():
        theirs = net(torch.cat(pixels)).logits
    torch.testing.assert_close(said(judged, pictures), theirs, atol=1e-5, rtol=1e-4)
    assert judged.classes == ("cat", "Dog", "river bank") and theirs.std() > 1e-4
    assert not judged.model.training and not judged.detects


def test_a_folder_without_the_weights_of_a_classifier_is_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    net = hugging_face(tmp_path, "vit")
    transformers.ViTModel(net.config).save_pretrained(tmp_path)  # a backbone: its classifier would be random
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": {0: "a", 1: "b"}}), encoding="utf-8")
    with pytest.raises(WeightsError, match="no whole classifier.*classifier.bias"):
        classifier(str(tmp_path), device=CPU)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="no image classifier that transformers reads"):
        classifier(str(tmp_path), device=CPU)


def test_a_processor_that_does_more_is_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    hugging_face(tmp_path, "vit")
    processor = transformers.EfficientNetImageProcessor(size={"height": 32, "width": 32}, include_top=True)
    processor.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="does more than resize"):
        classifier(str(tmp_path), device=CPU)


# timm


@pytest.fixture(scope="module")
def of_timm() -> nn.Module:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model("test_vit", pretrained=False, num_classes=5).eval()


def timm_logits(net: nn.Module, pictures) -> Tensor:
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    transform = create_transform(**resolve_model_data_config(net))
    with torch.no_grad():
        return net(torch.stack([transform(Image.fromarray(picture)) for picture in pictures]))


def test_weights_of_timm_give_the_logits_of_its_own_transform(of_timm, pictures, tmp_path):
    save_file(of_timm.state_dict(), tmp_path / "w.safetensors")
    judged = classifier("timm/test_vit", weights=tmp_path / "w.safetensors", device=CPU)
    theirs = timm_logits(of_timm, pictures)
    torch.testing.assert_close(said(judged, pictures), theirs, atol=1e-5, rtol=1e-4)
    assert theirs.shape == (4, 5) and theirs.std() > 1e-4
    torch.save({"state_dict": of_timm.state_dict()}, tmp_path / "w.pth")
    torch.testing.assert_close(
        said(classifier("timm/test_vit", weights=tmp_path / "w.pth", device=CPU), pictures), theirs
    )


def test_a_folder_of_timm_gives_its_logits_and_names(of_timm, pictures, tmp_path):
    from timm.models import save_for_hf

    names = ["a", "b", "c", "d", "e"]
    save_for_hf(of_timm, str(tmp_path), model_config={"label_names": names}, safe_serialization=True)
    judged = classifier(str(tmp_path), device=CPU)
    torch.testing.assert_close(said(judged, pictures), timm_logits(of_timm, pictures), atol=1e-5, rtol=1e-4)
    assert judged.classes == tuple(names)


def test_what_timm_cannot_have_is_told(of_timm, tmp_path):
    path = tmp_path / "w.safetensors"
    state = of_timm.state_dict()
    for name, weights, words in (
        ("timm/test_vit", None, "--weights"), ("timm/no_such", path, "timm knows no no_such"),
        ("timm/test_resnet", path, "has no 'fc.weight'"), ("timm/test_vit", tmp_path / "none.pt", "no weights at"),
        ("timm/test_vit.no_such_tag", path, "cannot be made"),
    ):  # fmt: skip
        save_file(state, path)
        with pytest.raises((InputError, WeightsError), match=words):
            classifier(name, weights=weights, device=CPU)
    state.pop("norm.bias")
    save_file(state, path)
    with pytest.raises(WeightsError, match="missing: norm.bias"):
        classifier("timm/test_vit", weights=path, device=CPU)


@pytest.mark.parametrize("package", ["timm", "transformers"])
def test_a_missing_package_is_one_clear_line(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    key = "architecture" if package == "timm" else "model_type"
    (tmp_path / "config.json").write_text(json.dumps({key: "vit"}), encoding="utf-8")
    with pytest.raises(InputError, match=f"needs the package {package}: pip install {package}"):
        classifier(str(tmp_path), device=CPU)


# Functions

CODE = """
import torch
from torch import nn
from beside import WIDTH

def build():
    net = nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, 1)).half()
    net.classes = ("no", "yes")
    return net.train()

def plain():
    return lambda x: torch.stack([x.mean((1, 2, 3)), x.amax((1, 2, 3))], 1)

def wrong():
    return 3

def broken():
    raise RuntimeError("no weights here")
"""


@pytest.fixture
def code(tmp_path) -> str:
    (tmp_path / "mine.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "beside.py").write_text("WIDTH = 3 * 8 * 8\n", encoding="utf-8")
    return str(tmp_path / "mine.py")


def test_a_function_gives_a_model_and_its_names(code, pictures):
    before = list(sys.path)
    judged = classifier(f"{code}:build", size=8, device=CPU)
    logits = said(judged, pictures)  # one logit makes two classes
    assert logits.shape == (4, 2) and (logits[:, 0] == 0).all() and logits.dtype == torch.float32
    assert judged.classes == ("no", "yes") and not judged.model.training and sys.path == before
    plain = classifier(f"{code}:plain", device=CPU)
    assert plain.prepare(pictures[0]).shape == (3, 40, 50)
    assert torch.allclose(plain.prepare(pictures[0]) * 255, torch.from_numpy(pictures[0]).permute(2, 0, 1).float())
    x = plain.prepare(pictures[2])[None]
    assert fgsm(plain.model, x, torch.tensor([0]), eps=0.1).shape == x.shape


def test_what_a_function_cannot_give_is_told(code, tmp_path):
    for name, words in (
        ("wrong", "returns a int, not a model"), ("broken", "made no model .RuntimeError: no weights here"),
        ("absent", "made no model .AttributeError"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            classifier(f"{code}:{name}", device=CPU)
    with pytest.raises(InputError, match="no file"):
        classifier(f"{tmp_path}/other.py:build", device=CPU)
    with pytest.raises(InputError, match="--size 0"):
        classifier(f"{code}:build", size=0, device=CPU)


# The rest


def test_options_that_do_not_fit_are_told(tmp_path):
    for name, options, words in (
        ("negah/aerial-tiny", {"size": 32}, "size of its own"), ("nothing", {}, "nothing is no model"),
        ("negah/aerial-tiny", {"weights": tmp_path}, "--weights is for models of timm"),
        (str(tmp_path), {}, "has no config.json"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            classifier(name, **options, device=CPU)


def test_the_threshold_parts_the_two_classes_of_a_detector():
    detector = Detector.random(window_px=32)
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        said = PanelClassifier(detector)(images).argmax(1)
        assert torch.equal(said == 1, detector(images).logit.sigmoid() > detector.info.threshold)


def test_classes_are_matched_by_name_then_number_then_order():
    names = ("cat", "Dog", "river bank", "crane", "crane")
    assert class_numbers(["dog", "River_Bank"], names, 5) == [1, 2]
    assert class_numbers(["0", "10", "2"], (), 11) == [0, 10, 2]
    assert class_numbers(["3", "4"], names, 5) == [3, 4]
    assert class_numbers(["b", "c", "d"], (), 3) == [0, 1, 2]
    assert class_numbers(["b", "c"], ("LABEL_0", "LABEL_1"), 2) == [0, 1]
    assert class_numbers(["10", "7"], ("7", "10"), 2) == [1, 0]


@pytest.mark.parametrize(
    ("kinds", "classes", "count", "words"),
    [
        (["cat", "eel"], ("cat", "dog"), 2, "class 'eel' of the data is none of the model's classes .cat, dog."),
        (["crane"], ("crane", "crane"), 2, "names several of the model's"),
        (["a", "b"], (), 3, "the data have 2 classes .a, b. and the model 3"),
        (["0", "5"], (), 5, "a class 5, but the model's are 0 to 4"),
    ],
)
def test_classes_that_do_not_fit_are_told(kinds, classes, count, words):
    with pytest.raises(InputError, match=words):
        class_numbers(kinds, classes, count)
