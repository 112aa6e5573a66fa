"""`negah pretrain clip|coca|simvlm`: a model of pictures and words, from pictures with captions.

The three differ in what they ask of a pair (see `negah.language`); pictures, words, order, optimiser and budget are the
same.  Held-out pairs tell what was learnt: who finds whom, and how many captions are among those that people gave.
A run that was stopped goes on when the same call is made again.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.optim import AdamW

from negah import __version__, ranks
from negah.errors import InputError
from negah.images.views import View, aerial, crop
from negah.language import CLIP, CoCa, SimVLM, Tokenizer
from negah.language.captions import Captions, Told, joined
from negah.language.layouts import Model
from negah.language.load import save
from negah.language.score import scores, vectors
from negah.nn.backbone import Backbone, ConvBackbone, ViTBackbone
from negah.nn.resnet import ResNet
from negah.nn.text import TextTransformer
from negah.progress import Progress, Say, silent
from negah.runs.recipes import check_numbers
from negah.runs.record import claim, compute_device, hardware, now, versions
from negah.runs.watch import dated, on_first
from negah.train import Batches, FitResult, fit
from negah.train.callbacks import Callback
from negah.train.run import Run
from negah.weights import backbone as backbone_named
from negah.weights.save import write_json

Method = Literal["clip", "coca", "simvlm"]
FREE = ("workers", "shard", "checkpoint_every")  # may change while a run is continued: they change no result
STEM_STAGES = 3  # of a residual network, before SimVLM's encoder: section 3.2 of its paper
QUERIES = 32  # of CoCa's captioner, which has 256 for pictures of 576 patches
WARMUP = 0.05  # share of the steps
REFERENCE = 1000  # pictures that a model's file keeps the vectors of
NAMES = {
    "text_to_image_1": "picture found by its words, first", "image_to_text_1": "words found by their picture, first",
    "exact": "captions that people gave too",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to train.

    size: side of the pictures in pixels; None: the backbone's.  side: of the tiles that crops are cut from, by default
    an eighth more.  vocabulary: most different tokens.  length: most tokens of a text.  width, layers: of the text
    transformer; half of the layers are in each half of CoCa, and in SimVLM's encoder and decoder.  lr: highest learning
    rate.  overhead: the pictures are seen from above, so crops are mirrored and turned.  extent: metres on the ground
    of a picture's side, which the model's file then tells.  score: caption files that nothing is learnt from.
    """

    epochs: int = 30
    batch: int = 128
    size: int | None = None
    side: int | None = None
    vocabulary: int = 4096
    length: int = 40
    width: int = 256
    layers: int = 6
    lr: float | None = None
    overhead: bool = False
    extent: float | None = None
    accumulate: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    shard: bool = False
    workers: int = 0
    score: tuple[str, ...] = ()
    score_every: int = 10
    checkpoint_every: int = 1
    seed: int = 0

    def check(self) -> None:
        """Raises InputError that names the first option which nothing can be trained with."""
        least = {
            "epochs": 1, "size": 1, "side": 1, "vocabulary": 514, "length": 3, "width": 8, "layers": 2, "accumulate": 1,
            "workers": 0, "score_every": 1, "checkpoint_every": 1, "seed": 0,
        }  # fmt: skip
        check_numbers(self.batch, self.lr, {name: (getattr(self, name), lowest) for name, lowest in least.items()})
        if self.layers % 2:
            raise InputError(f"--layers {self.layers}: give an even number, half of it for each half of the text")
        if self.extent is not None and not 0 < self.extent < math.inf:
            raise InputError(f"--extent {self.extent}: give metres above 0")


@dataclass(frozen=True)
class Result:
    """What came of it.  model: the file.  pictures, texts: how many different ones.  scores: epoch, step, and those of
    `language.score`.  failures: (name, reason) of pictures that were left out."""

    model: Path
    steps: int
    pictures: int
    texts: int
    loss: float
    scores: list[dict[str, float]]
    stopped: str
    failures: list[tuple[str, str]] = field(default_factory=list)


def pretrain(
    data: Sequence[str], out: Path, method: Method, backbone: str, options: Options = Options(), *,
    progress: Progress = silent, say: Say = silent,
) -> Result:  # fmt: skip
    """Train by `method` on the caption files `data`, with `backbone` to see the pictures.

    `out` gets model.safetensors with its tokens, checkpoint.pt, scores.json and run.json.  progress, say: as of
    `runs.pretrain`.

    Raises InputError for what cannot be trained on, OutputError where `out` holds another run or cannot be written,
    TrainingError where the loss is no longer finite.
    """
    if method not in get_args(Method):
        raise InputError(f"no method {method}: there are {', '.join(get_args(Method))}")
    options.check()
    ranks.join()
    if options.batch % ranks.world():
        raise InputError(f"--batch {options.batch} is not a multiple of the {ranks.world()} processes")
    net = backbone_named(backbone, size=options.size, seed=options.seed)
    size = options.size or own_size(net)
    record: dict[str, Any] = {
        "negah": __version__, "verb": "pretrain", "started": now(),
        "arguments": {"method": method, "data": list(data), "backbone": backbone, **asdict(options)},
    }  # fmt: skip
    record = on_first(lambda: claim(out, record, holds=("checkpoint.pt", "model.safetensors"), free=FREE, say=say))

    captions = joined([Captions.read(path, options.side or round(size * 9 / 8), progress=progress) for path in data])
    if len(captions) < options.batch:
        raise InputError(
            f"{len(captions)} pictures do not fill a batch of {options.batch}: give --batch {len(captions)} or less"
        )
    held = joined([Captions.read(path, size, progress=progress) for path in options.score]) if options.score else None
    tokens = Tokenizer.train(captions.texts, vocabulary=options.vocabulary, length=options.length)
    device = compute_device()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(options.seed)
        model = model_of(method, net, tokens, size, options)
    # Colours and sides are among what captions tell: hues stay, and only what is seen from above is mirrored.
    view = View(size, scale=(0.6, 1.0), flip=0.0, jitter=0.8, brightness=0.2, contrast=0.2, saturation=0.1)
    view = replace(aerial([view])[0], flip=0.5) if options.overhead else view
    epoch = max(1, round(len(captions) / (options.batch * options.accumulate)))
    steps = options.epochs * epoch
    on_first(lambda: write_json(record, out / "run.json"))
    found = fit(
        model,
        Batches(
            captions, options.batch, seed=options.seed, workers=options.workers,
            collate=Told(captions, tokens, view, numbered=method != "simvlm"),
        ),
        steps=steps, lr=options.lr or 5e-4, optimizer=partial(AdamW, betas=(0.9, 0.98), eps=1e-6),
        weight_decay=0.2 if method == "clip" else 0.01, warmup=round(WARMUP * steps), clip=1.0,
        accumulate=options.accumulate, precision=options.precision, shard=options.shard, device=device,
        seed=options.seed, out=out, checkpoint_every=options.checkpoint_every * epoch,
        scores=(lambda: scores(model, tokens, held)) if held else None, score_every=options.score_every * epoch,
        callbacks=[Telling(out, epoch, options.score_every, say)],
    )  # fmt: skip
    result = Result(
        model=out / "model.safetensors", steps=found.step, pictures=len(captions), texts=len(captions.texts),
        loss=found.history[-1]["loss"], scores=dated(found.scores, epoch), stopped=found.stopped,
        failures=[*captions.failures, *(held.failures if held else [])],
    )  # fmt: skip
    model = model.cpu().eval()
    about: dict[str, Any] = {"tokens": tokens, "gsd_m": options.extent / size if options.extent else None}
    if not isinstance(model, SimVLM):
        about["reference"] = vectors(model, ordinary(held or captions, size))
    on_first(lambda: _write(model, about, record, result, found, device))
    return result


def own_size(net: Backbone) -> int:
    """Side of the pictures that a backbone was made for, in pixels."""
    return net.vit.grid[0] * net.vit.patch if isinstance(net, ViTBackbone) else 224


def model_of(method: Method, net: Backbone, tokens: Tokenizer, size: int, options: Options) -> Model:
    """A fresh model of words around a backbone.

    Raises InputError where method and backbone do not go together.
    """
    width, half = options.width, options.layers // 2
    heads = max(1, width // 64)
    of_text: dict[str, Any] = {"vocabulary": len(tokens), "length": tokens.length}
    if method == "simvlm":
        if not isinstance(net, ConvBackbone):
            raise InputError("simvlm sees by the first stages of a residual network: give --backbone resnet18")
        stem = stages(net.resnet, STEM_STAGES)
        if size % stem.stride:
            raise InputError(f"--size {size} is not a multiple of {stem.stride} px, the stem's stride")
        return SimVLM(
            stem, places=(size // stem.stride) ** 2, start=tokens.start, end=tokens.end, dim=width, depth=half,
            heads=heads, mean=net.mean.flatten().tolist(), std=net.std.flatten().tolist(), **of_text,
        )  # fmt: skip
    if not isinstance(net, ViTBackbone):
        raise InputError(f"{method} sees by a vision transformer: give a --backbone such as vit-micro/8")
    if method == "clip":
        text = TextTransformer(dim=width, depth=options.layers, heads=heads, **of_text)
        return CLIP(net.vit, text, dim=width, end=tokens.end)
    return CoCa(
        net.vit, dim=width, start=tokens.start, end=tokens.end, width=width, depth=half, heads=heads,
        queries=QUERIES, pooler_heads=heads, **of_text,
    )  # fmt: skip


def stages(resnet: ResNet, count: int) -> ResNet:
    """Its first stages, with its weights."""
    config = {name: value[:count] if name in ("widths", "depths") else value for name, value in resnet.config.items()}
    first = ResNet(**config)
    kept = first.state_dict().keys()
    first.load_state_dict({name: value for name, value in resnet.state_dict().items() if name in kept})
    return first


def ordinary(captions: Captions, size: int) -> UInt8[Tensor, "picture 3 size size"]:
    """Pictures of a caption file at equal distances, REFERENCE at most, whole: what others can be compared with.

    Those that were learnt from fit a model better than others do, so held-out ones are to be preferred.

    Generated ones are left out where there are others: they are all of one kind.
    """
    real = [i for i, name in enumerate(captions.names) if not name.startswith("scenes:")] or range(len(captions))
    chosen = torch.linspace(0, len(real) - 1, min(REFERENCE, len(real))).round().long().tolist()
    images = torch.stack([captions.images[real[i]] for i in chosen])
    return crop(images, torch.tensor([[0, 0, *images.shape[2:]]] * len(images)), size)


class Telling(Callback):
    """A line, and scores.json of the run so far, at fixed epochs and at the end."""

    def __init__(self, out: Path, epoch: int, every: int, say: Say):
        self.out, self.epoch, self.every, self.say = out, epoch, every, say

    def after_step(self, run: Run) -> None:
        if run.step % (self.every * self.epoch) and run.step < run.steps:
            return
        on_first(lambda: self.tell(run))

    def tell(self, run: Run) -> None:
        line = [f"epoch {run.step // self.epoch} of {run.steps // self.epoch}"]
        line += [f"loss {(run.history or run.unlogged)[-1]['loss']:.4g}"]
        if run.scores and run.scores[-1]["step"] == run.step:
            line += [f"{told} {run.scores[-1][name]:.3f}" for name, told in NAMES.items() if name in run.scores[-1]]
        write_json({"scores": dated(run.scores, self.epoch), "history": run.history}, self.out / "scores.json")
        self.say(", ".join(line))


def _write(
    model: Model, about: dict[str, Any], record: dict[str, Any], result: Result, found: FitResult, device: torch.device
) -> None:
    out = save(model, result.model, **about).parent
    write_json({**asdict(result), "model": str(result.model), "history": found.history}, out / "scores.json")
    made_with = {"versions": versions(), "hardware": hardware(device), "processes": ranks.world()}
    write_json({**record, "finished": now(), **made_with}, out / "run.json")
