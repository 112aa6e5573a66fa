"""`negah pretrain diffusion`: a text-to-image model from pictures with captions, from nothing.

Stable Diffusion in small: an autoencoder that makes pictures smaller, a vocabulary of the captions' words, a text
transformer and a denoiser that learn together, and, where pictures have labels, a classifier that sees through noise.
What comes out is a folder that `negah generate` and diffusers open.  A run that was stopped goes on when the same call
is made again.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from negah import __version__, ranks
from negah.diffusion.autoencoder import latent_scale
from negah.diffusion.classifier import NoisyClassifier
from negah.diffusion.denoising import Denoising
from negah.diffusion.generate import generate
from negah.diffusion.load import load
from negah.diffusion.model import TextToImage, decoded, encoded
from negah.diffusion.schedule import PredictionType, Schedule
from negah.errors import InputError
from negah.images.listed import table
from negah.images.views import View, crop
from negah.language.captions import FILE, ROWS, Captions, joined
from negah.progress import Progress, Say, silent
from negah.runs.generate import save_picture, sheet
from negah.runs.imagine import stages
from negah.runs.recipes import check_numbers
from negah.runs.record import claim, compute_device, hardware, now, versions
from negah.runs.watch import on_first
from negah.train.callbacks import Callback
from negah.train.run import Run
from negah.train.surroundings import mode
from negah.weights.save import write_json

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

Space = Literal["latent", "pixel"]
FREE = ("checkpoint_every", "score_every")  # may change while a run is continued: they change no result
PREVIEWS = 8  # pictures on a sheet
CHECKPOINT = 250  # steps between checkpoints of what is counted in steps


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to train.

    size: side of the pictures in pixels.  space: denoise the latents of an autoencoder, or pixels.  autoencoder: a
    model whose autoencoder is used; None trains one first, for `autoencoder_steps`.  epochs, batch, lr: the denoiser's.
    widths: of its levels, each but the first at half the side.  vocabulary: most different tokens.  length: most of a
    text.  prediction, drop, min_snr, momentum: as of `diffusion.denoising`.  copies: views of each picture.  labels:
    column of the caption files whose values a noise-aware classifier learns, for `classifier_steps`.  overhead: the
    pictures are seen from above, so views are mirrored and turned.  score_every: epochs between sheets of pictures.
    """

    epochs: int = 60
    batch: int = 64
    size: int = 64
    space: Space = "latent"
    autoencoder: str | None = None
    autoencoder_steps: int = 2500
    lr: float | None = None
    widths: tuple[int, ...] = (64, 128)
    vocabulary: int = 2048
    length: int = 48
    prediction: PredictionType = "v_prediction"
    drop: float = 0.1
    min_snr: float | None = 5.0
    momentum: float = 0.999
    copies: int = 8
    labels: str | None = None
    classifier_steps: int = 1500
    overhead: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    score_every: int = 10
    checkpoint_every: int = 1
    seed: int = 0

    def check(self) -> None:
        """Raises InputError that names the first option which nothing can be trained with."""
        least = {
            "epochs": 1, "size": 8, "autoencoder_steps": 1, "vocabulary": 514, "length": 3, "copies": 1,
            "classifier_steps": 1, "score_every": 1, "checkpoint_every": 1, "seed": 0,
        }  # fmt: skip
        check_numbers(self.batch, self.lr, {name: (getattr(self, name), lowest) for name, lowest in least.items()})
        for name in ("drop", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: give a number from 0 to below 1")
        if self.min_snr is not None and not 0 < self.min_snr < math.inf:
            raise InputError(f"--min-snr {self.min_snr}: give a number above 0")
        if not self.widths or any(width < 16 or width % 16 for width in self.widths):
            raise InputError(f"--widths {' '.join(map(str, self.widths))}: give multiples of 16")
        if self.space == "pixel" and self.autoencoder:
            raise InputError("--autoencoder makes latents, and --space pixel has none: leave one of them out")


@dataclass(frozen=True)
class Result:
    """What came of it.  model: the folder.  loss: the denoiser's last.  latent_error: mean absolute error of pictures
    through the autoencoder, in [0, 1].  accuracy: the classifier's over all noise levels, on what it learns from.
    failures: (name, reason) of pictures that were left out."""

    model: Path
    steps: int
    pictures: int
    texts: int
    parameters: int
    loss: float
    latent_error: float | None = None
    accuracy: float | None = None
    classes: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)


def pretrain(
    data: Sequence[str], out: Path, options: Options = Options(), *,
    progress: Progress = silent, say: Say = silent,
) -> Result:  # fmt: skip
    """Train on the caption files `data` (see `language.captions`).

    `out` gets model/, a folder as diffusers writes it (with classifier/ in it where there are labels), sheets of
    pictures at fixed steps, history.json and run.json.

    Raises InputError for what cannot be trained on, OutputError where `out` holds another run or cannot be written,
    TrainingError where the loss is no longer finite.
    """
    options.check()
    ranks.join()
    record: dict[str, Any] = {
        "negah": __version__, "verb": "pretrain", "started": now(),
        "arguments": {"method": "diffusion", "data": list(data), **asdict(options)},
    }  # fmt: skip
    record = on_first(lambda: claim(out, record, holds=("autoencoder", "denoiser", "model"), free=FREE, say=say))
    captions = joined([Captions.read(path, round(options.size * 5 / 4), progress=progress) for path in data])
    if len(captions) < options.batch:
        raise InputError(
            f"{len(captions)} pictures do not fill a batch of {options.batch}: give --batch {len(captions)} or less"
        )
    labels = labelled(data, captions, options.labels) if options.labels else None
    on_first(lambda: write_json(record, out / "run.json"))
    return train(captions, out, options, record, labels=labels, progress=progress, say=say)


def train(
    captions: Captions, out: Path, options: Options, record: dict[str, Any], *, first: Captions | None = None,
    labels: "Labels | None" = None, half: bool = False,
    progress: Progress = silent, say: Say = silent,
) -> Result:  # fmt: skip
    """The stages, one behind the other.  first: what the autoencoder learns from, if not from all.  half: write the
    weights in fp16."""
    vae = autoencoder(first or captions, out, options, say) if options.space == "latent" else None
    view = View(options.size, scale=(0.8, 1.0), ratio=(0.95, 1.05), flip=options.overhead / 2, turns=options.overhead)
    latents = stages.Latents.of(vae, captions, view, copies=options.copies, seed=options.seed, progress=progress)
    tokenizer = stages.tokenizer_of(
        captions.texts, out / "tokenizer", vocabulary=options.vocabulary, length=options.length
    )
    ids = torch.tensor(tokenizer([*captions.texts, ""], padding="max_length", truncation=True)["input_ids"])
    unet, text = stages.new_networks(
        side=latents.images.shape[-1], channels=latents.images.shape[2], tokens=len(tokenizer), length=options.length,
        end=int(ids[-1, -1]), widths=options.widths, seed=options.seed,
    )  # fmt: skip
    schedule = Schedule.scaled_linear(prediction=options.prediction)
    objective = Denoising(
        unet, text, schedule, empty=ids[-1], drop=options.drop, min_snr=options.min_snr, momentum=options.momentum
    )
    average: Any = objective.average.model
    model = TextToImage(unet=average["unet"], vae=vae, text=average["text"], tokenizer=tokenizer, schedule=schedule)
    device = compute_device()
    epoch = max(1, round(len(captions) / options.batch))
    sheets = Sheets(out, model, shown(captions), options.score_every * epoch, say)
    found = stages.denoiser(
        objective, latents, ids[:-1], steps=options.epochs * epoch, batch=options.batch, lr=options.lr or 1e-3,
        precision=options.precision, device=device, seed=options.seed, out=out / "denoiser", callbacks=[sheets],
        checkpoint_every=options.checkpoint_every * epoch,
    )  # fmt: skip
    result = Result(
        model=out / "model", steps=found.step, pictures=len(captions), texts=len(captions.texts),
        parameters=sum(p.numel() for p in model.parameters()), loss=found.history[-1]["loss"],
        latent_error=None if vae is None else error_of(vae, captions, options.size), failures=list(captions.failures),
    )  # fmt: skip
    dtype = torch.float16 if half else torch.float32
    net = None
    if labels is not None:
        net, accuracy = classifier(labels, latents, schedule, out, options, device)
        result = replace(result, accuracy=accuracy, classes=net.classes)
    on_first(lambda: model.cpu().save(out / "model", dtype=dtype))
    if net is not None:
        on_first(lambda: net.save(out / "model" / "classifier", dtype=dtype))
    made_with = {"versions": versions(), "hardware": hardware(device), "processes": ranks.world()}
    told = {**asdict(result), "model": str(result.model), "history": found.history}
    on_first(lambda: write_json(told, out / "history.json"))
    on_first(lambda: write_json({**record, "finished": now(), **made_with}, out / "run.json"))
    return result


def autoencoder(captions: Captions, out: Path, options: Options, say: Say) -> "AutoencoderKL":
    """The one that was named, or one that is trained; in its config the number that makes latents of unit variance."""
    if options.autoencoder:
        vae = load(options.autoencoder, device=compute_device()).vae
        if vae is None:
            raise InputError(f"--autoencoder {options.autoencoder} denoises pixels and has none: give another, or none")
        return vae
    say("training the autoencoder")
    vae = stages.new_autoencoder(size=options.size, seed=options.seed)
    stages.autoencoder(
        vae, captions, steps=options.autoencoder_steps, size=options.size, precision=options.precision,
        device=compute_device(), seed=options.seed, checkpoint_every=CHECKPOINT, out=out / "autoencoder",
    )  # fmt: skip
    few = torch.linspace(0, len(captions) - 1, min(512, len(captions))).round().long()
    vae.register_to_config(scaling_factor=latent_scale(vae, whole(captions, few, options.size).split(32)))
    return vae


def whole(captions: Captions, numbers: Int[Tensor, " n"], size: int) -> Float[Tensor, "n 3 size size"]:
    """Pictures, uncropped, in [0, 1]."""
    images = torch.stack([captions.images[int(i)] for i in numbers])
    return crop(images, torch.tensor([[0, 0, *images.shape[2:]]] * len(images)), size).float() / 255


@torch.no_grad()
def error_of(vae: "AutoencoderKL", captions: Captions, size: int) -> float:
    """Mean absolute error of pictures through the autoencoder, in [0, 1]."""
    images = whole(captions, torch.linspace(0, len(captions) - 1, min(64, len(captions))).round().long(), size)
    return float((decoded(vae, encoded(vae, images.to(vae.device))).cpu() - images).abs().mean())


def classifier(
    labels: "Labels", latents: stages.Latents, schedule: Schedule, out: Path, options: Options, device: torch.device
) -> tuple[NoisyClassifier, float]:
    """Trained on what has a label; and its last accuracy over all noise levels."""
    with stages.seeded(options.seed):
        net = NoisyClassifier(labels.names, channels=latents.images.shape[2])
    known = labels.numbers >= 0
    found = stages.classifier(
        net, schedule, latents.of_those(known), labels.numbers[known], steps=options.classifier_steps,
        batch=options.batch, precision=options.precision, device=device, seed=options.seed,
        checkpoint_every=CHECKPOINT, out=out / "classifier",
    )  # fmt: skip
    return net.cpu().eval(), found.history[-1]["accuracy"]


@dataclass(frozen=True)
class Labels:
    """numbers: of each picture, -1 for none.  names: what they mean."""

    numbers: Int[Tensor, " picture"]
    names: list[str]


def labelled(data: Sequence[str], captions: Captions, column: str) -> Labels:
    """Labels of pictures by a column of their caption files.  Raises InputError where none has one, or all the same."""
    found: dict[str, str] = {}
    for path in data:
        match = ROWS.fullmatch(path)
        columns, rows = table(Path(match[1])) if match else ([], [])
        file = next((name for name in columns if name.strip().lower() in FILE), None)
        if file and column in columns:
            found |= {row[file].strip(): row[column].strip() for row in rows if row[column].strip()}
    names = sorted({found[name] for name in captions.names if name in found})
    if len(names) < 2:
        raise InputError(f"--labels {column}: {len(names)} labels in {', '.join(data)}; two or more are needed")
    number = {name: i for i, name in enumerate(names)}
    return Labels(torch.tensor([number[found[name]] if name in found else -1 for name in captions.names]), names)


def shown(captions: Captions) -> list[str]:
    """Texts for a sheet of pictures, from all over the caption files."""
    chosen = torch.linspace(0, len(captions) - 1, min(PREVIEWS, len(captions))).round().long().tolist()
    return [captions.texts[int(captions.said[i][0])] for i in chosen]


class Sheets(Callback):
    """A sheet of pictures of the average, at fixed steps and at the end, and a line."""

    def __init__(self, out: Path, model: TextToImage, texts: Sequence[str], every: int, say: Say):
        self.out, self.model, self.texts, self.every, self.say = out, model, texts, every, say

    def after_step(self, run: Run) -> None:
        if run.step % self.every and run.step < run.steps:
            return
        self.say(f"step {run.step} of {run.steps}, loss {(run.history or run.unlogged)[-1]['loss']:.4g}")
        on_first(lambda: self.draw(self.out / f"step_{run.step:06d}.png"))

    def draw(self, path: Path) -> None:
        with mode(self.model, training=False):
            images = generate(self.model, self.texts, list(range(len(self.texts))), scale=4.0)
        save_picture(sheet(images, 1), path, {"texts": list(self.texts)})
