"""From what is typed after `--model` to a classifier of pictures, whoever made it.

    negah/aerial-tiny, head.safetensors     a detector of ours: two classes, parted at its threshold
    folder/                                 an image classifier as transformers saves it, or as timm does for the hub
    timm/NAME --weights FILE                a model of timm, with the weights in a file
    FILE.py:FUNCTION                        what a function returns: images in [0, 1] to logits

A classifier takes its normalisation with it, so whoever uses it sees pixels in [0, 1].  How pictures are brought to its
size is the library's own way, and so its logits are those of the library's own pipeline.
"""

import importlib.util
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Num, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor, nn

from negah.adversarial import Classifier
from negah.adversarial.target import Model
from negah.errors import InputError, WeightsError
from negah.probe import detector as detectors
from negah.probe.detector import Detector
from negah.probe.features import fit_to
from negah.weights.backbones import fitting
from negah.weights.files import Checkpoint, one_line, read_file, read_json

FUNCTION = re.compile(r"(?P<file>.+\.py):(?P<name>\w+)")
PANELS = ("no panels", "panels")
NUMBERED = re.compile(r"LABEL_\d+")  # what transformers calls classes that nobody has named

Prepare = Callable[[UInt8[ndarray, "h w 3"]], Float[Tensor, "3 side side2"]]


@dataclass(frozen=True)
class Judged:
    """model: of images in [0, 1], in evaluation mode.  prepare: a picture as the model wants it, in [0, 1].
    classes: names in the order of the logits, where they are known.  device: where images have to be."""

    model: Model
    prepare: Prepare
    classes: tuple[str, ...]
    device: torch.device

    @property
    def detects(self) -> bool:
        """Whether it is a detector of panels."""
        return isinstance(self.model, PanelClassifier)


class PanelClassifier(nn.Module):
    """A detector as a classifier of two classes, without and with panels, parted at its threshold."""

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = detector
        threshold = detector.info.threshold
        self.cut = math.log(threshold / (1 - threshold))
        self.train(detector.training)

    def forward(self, images: Num[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 2"]:
        logit = self.detector(images).logit - self.cut
        return torch.stack([torch.zeros_like(logit), logit], 1)


def classifier(name: str, *, weights: Path | None = None, size: int | None = None, device: torch.device) -> Judged:
    """What `name` stands for (see the head of this file), in evaluation mode and fp32.

    Args:
        weights: of a model of timm.
        size: side in pixels that pictures are resized to, for the model of a function, which says nothing of it.

    Raises InputError or WeightsError for what cannot be had, read or understood.
    """
    function, folder = FUNCTION.fullmatch(name), Path(name)
    of_timm = name.startswith("timm/") and not folder.exists()
    if of_timm and weights is None:
        raise InputError(f"{name} says nothing of weights: give the file that holds them with --weights")
    if weights is not None and not of_timm:
        raise InputError(f"--weights is for models of timm, as in --model timm/resnet18; {name} has its own")
    if size is not None and not function:
        raise InputError(f"--size is for models of a function: {name} has a size of its own")
    if function:
        return _of_function(Path(function["file"]), function["name"], size, device)
    if of_timm and weights is not None:
        return _of_timm(_timm(name.removeprefix("timm/"), weights), device)
    if folder.is_dir() and (folder / "config.json").is_file():
        saved_by_timm = "architecture" in read_json(folder / "config.json")
        return _of_timm(_timm_folder(folder), device) if saved_by_timm else _of_transformers(folder, device)
    if folder.suffix == ".py":
        raise InputError(f"{name} names no function: give {name}:FUNCTION, the function that returns the model")
    if not folder.is_file() and not name.startswith("negah/"):
        what = "has no config.json" if folder.is_dir() else "is no model"
        raise InputError(
            f"{name} {what}: give a detector (a file, or negah/aerial-tiny), the folder of a classifier of Hugging "
            "Face or timm, timm/NAME with --weights, or FILE.py:FUNCTION"
        )
    detector = detectors.load(name, device=device)
    side, patch = detector.info.window_px, detector.patch
    return Judged(
        PanelClassifier(detector).eval(), lambda image: fit_to(image, side, patch=patch).float() / 255, PANELS, device
    )


def class_numbers(kinds: Sequence[str], classes: Sequence[str], count: int) -> list[int]:
    """The model's number of each class of some data: by name, else by number, else by order.

    kinds: the data's names, sorted.  classes: the model's, or none.  count: of the model's classes.

    Raises InputError where they do not fit: nothing is guessed.
    """
    named = [] if all(map(NUMBERED.fullmatch, classes)) else [_plain(name) for name in classes]
    often = Counter(named)
    if named and all(often[_plain(kind)] == 1 for kind in kinds):
        return [named.index(_plain(kind)) for kind in kinds]
    if all(kind.isdecimal() for kind in kinds):
        numbers = [int(kind) for kind in kinds]
        if max(numbers) >= count:
            raise InputError(f"the data have a class {max(numbers)}, but the model's are 0 to {count - 1}")
        return numbers
    if named:
        twice = [kind for kind in kinds if often[_plain(kind)] > 1]
        strange = twice or [kind for kind in kinds if not often[_plain(kind)]]
        what = "names several of the model's classes" if twice else "is none of the model's classes"
        raise InputError(
            f"class {strange[0]!r} of the data {what} ({_some(classes)}): name the data's classes as the model does, "
            f"or number them 0 to {count - 1} as its logits"
        )
    if len(kinds) != count:
        raise InputError(
            f"the data have {len(kinds)} classes ({_some(kinds)}) and the model {count}, without names: number the "
            f"data's classes 0 to {count - 1} as its logits"
        )
    return list(range(count))


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").strip()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", ... {len(names)} in all" if len(names) > 3 else "")


# Functions


def _of_function(file: Path, name: str, size: int | None, device: torch.device) -> Judged:
    if not file.is_file():
        raise InputError(f"there is no file {file} to take {name} from")
    if size is not None and size < 1:
        raise InputError(f"--size {size}: give 1 or more")
    path = list(sys.path)
    sys.path.insert(0, str(file.parent.resolve()))  # it may import its neighbours
    try:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        made: Any = getattr(module, name)()
    except Exception as error:  # whatever the code of others raises
        what = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{file}:{name} made no model ({what}): --debug shows where") from error
    finally:
        sys.path[:] = path
    if not callable(made):
        raise InputError(f"{file}:{name} returns a {type(made).__name__}, not a model of images in [0, 1]")
    if isinstance(made, nn.Module):
        model: Model = Classifier(made.to(device).float()).to(device).eval()
    else:
        model, device = cast(Model, made), torch.device("cpu")  # nobody can know where else it would have its images

    def prepare(image: UInt8[ndarray, "h w 3"]) -> Float[Tensor, "3 side side2"]:
        if size is None:
            return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return fit_to(image, size, patch=1).float() / 255

    return Judged(model, prepare, tuple(map(str, getattr(made, "classes", ()))), device)


# Hugging Face


def _of_transformers(folder: Path, device: torch.device) -> Judged:
    try:
        from transformers import AutoImageProcessor, AutoModelForImageClassification
    except ImportError as error:
        raise InputError(f"{folder} needs the package transformers: pip install transformers") from error
    try:
        with _quiet():
            processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            net, told = AutoModelForImageClassification.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
            )
    except Exception as error:  # OSError, ValueError and what the parsers underneath raise
        raise WeightsError(f"{folder} holds no image classifier that transformers reads: {one_line(error)}") from error
    lacking = sorted(map(str, [*told["missing_keys"], *(key for key, *_ in told["mismatched_keys"])]))
    if lacking:
        raise WeightsError(f"{folder} is no whole classifier: weights are missing or misshapen ({_some(lacking)})")

    def prepare(image: UInt8[ndarray, "h w 3"]) -> Float[Tensor, "3 side side2"]:
        bare = processor(Image.fromarray(image), do_rescale=False, do_normalize=False, return_tensors="pt")
        return (bare["pixel_values"][0].float() / 255).clamp(0, 1)

    # The processor resizes and crops; scale and normalisation are the classifier's, if that is all that there is.
    picture = np.random.default_rng(0).integers(0, 256, (97, 131, 3), dtype=np.uint8)
    try:
        scale = 255 * (processor.rescale_factor if processor.do_rescale else 1)
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
        model = Classifier(net, mean=[m / scale for m in mean], std=[s / scale for s in std])
        theirs = processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"][0]
        ours = (prepare(picture) - model.get_buffer("mean")) / model.get_buffer("std")
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    except Exception as error:  # a difference, or whatever a processor of another kind raises
        raise InputError(
            f"{folder}: the {type(processor).__name__} does more than resize, crop, scale and normalise: give the "
            "model as FILE.py:FUNCTION"
        ) from error
    names = tuple(str(net.config.id2label[i]) for i in range(net.config.num_labels))
    return Judged(model.to(device).eval(), prepare, names, device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and warnings of transformers, whose settings stay as they were."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


# timm


def _timm(name: str, weights: Path) -> nn.Module:
    """A model with as many classes as its weights have."""
    timm = _library(f"timm/{name}")
    if not timm.is_model(name.split(".")[0]):
        near = timm.list_models(f"{name.split('_')[0]}*")[:5]
        raise InputError(f"timm knows no {name}" + (f": it knows {', '.join(near)}, ..." if near else ""))
    if not weights.is_file():
        raise WeightsError(f"no weights at {weights}: --weights is a file")
    content, _ = read_file(weights)
    content = content.get("state_dict", content.get("model", content))
    try:
        plain = timm.create_model(name, pretrained=False)
        head = plain.pretrained_cfg["classifier"]
        head = head if isinstance(head, str) else head[0]
        classes = len(content[f"{head}.weight"])
        net = plain if classes == plain.num_classes else timm.create_model(name, num_classes=classes)
    except KeyError as error:
        raise WeightsError(f"{weights} has no {error} and so no classes: is it of timm/{name}?") from error
    except Exception as error:  # an unknown tag, and whatever constructors raise
        raise InputError(f"timm/{name} cannot be made: {one_line(error)}") from error
    net.load_state_dict(fitting(Checkpoint(content, {}, {}, str(weights)), net))
    return net


def _timm_folder(folder: Path) -> nn.Module:
    """As timm's `save_for_hf` and the hub have it."""
    timm = _library(str(folder))
    try:
        return timm.create_model(f"local-dir:{folder}", pretrained=True)
    except Exception as error:  # missing or unfitting weights, unknown architectures
        raise WeightsError(f"{folder} holds no classifier that timm reads: {one_line(error)}") from error


def _library(what: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise InputError(f"{what} needs the package timm: pip install timm") from error
    return timm


def _of_timm(net: Any, device: torch.device) -> Judged:
    """With timm's own transform of an evaluation, less the normalisation that ends it."""
    from timm.data.config import resolve_model_data_config
    from timm.data.transforms_factory import create_transform

    transform: Any = create_transform(**resolve_model_data_config(net))
    *steps, normalise = transform.transforms

    def prepare(image: UInt8[ndarray, "h w 3"]) -> Float[Tensor, "3 side side2"]:
        found: Any = Image.fromarray(image)
        for step in steps:
            found = step(found)
        return found

    names = net.pretrained_cfg.get("label_names") or ()
    model = Classifier(net, mean=normalise.mean.tolist(), std=normalise.std.tolist())
    return Judged(model.to(device).eval(), prepare, tuple(map(str, names)), device)
