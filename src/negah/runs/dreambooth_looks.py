"""What `negah dreambooth` looks at while a model learns, and the step at which it says to stop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image, ImageDraw
from torch import Tensor

from negah.diffusion.dreambooth import DreamBooth, save_lora
from negah.diffusion.generate import generate
from negah.diffusion.likeness import Embed, among, diversity, likeness, paired
from negah.diffusion.model import TextToImage
from negah.progress import Progress, Say
from negah.runs.dreambooth_options import Options
from negah.runs.watch import on_first
from negah.train.callbacks import Callback, KeepBest
from negah.train.run import Run
from negah.weights.save import write, write_json

DRAWN = 16  # pictures at a time
ALIKE = 0.9  # mean cosine of any pictures above which a backbone's vectors are taken less their mean
CELL, LINE = 128, 16  # pixels of a picture on a sheet, and of a line of words
SEEDS = 1_000_003  # apart from each other are the seeds of two runs
COMPARED = 500_000  # the first seed of pictures that are looked at, far from those that are trained on
Each = Callable[[int, int], None]


@dataclass(frozen=True)
class Judges:
    """Networks that look at what is drawn: `features` (DINO or the like), and pictures and words of one space."""

    features: Embed
    pictures: Embed
    words: Callable[[Sequence[str]], Float[Tensor, "n dim"]]


class Looker:
    """Scores of the model as it is, for `fit`; the pictures are kept until the next look.

    Some backbones (negah/aerial-tiny is one) give all pictures nearly the same vector, and a cosine then says nothing.
    Where those of the first look are so alike, their mean is taken off all vectors, in this and every later look.

    Args:
        real: pictures that are trained on.  held_out: latents for the loss at fixed noise.
    """

    def __init__(
        self, objective: DreamBooth, real: UInt8[Tensor, "n 3 side side"], held_out: Float[Tensor, "m c h w"],
        judges: Judges, options: Options, progress: Progress,
    ):  # fmt: skip
        self.objective, self.held_out, self.judges, self.options = objective, held_out, judges, options
        self.progress, self.pictures = progress, real
        with torch.no_grad():
            self.subject, self.subject_pictures = (
                judges.features(real.float() / 255),
                judges.pictures(real.float() / 255),
            )
        identifier = objective.identifier
        named = f"{identifier.token} {identifier.class_word}"
        self.prompts = [*(prompt.replace("{}", named) for prompt in options.prompts), identifier.class_prompt]
        # A describer knows the word no more than the model did, and is asked for the class.
        self.words = [prompt.replace("{}", identifier.class_word) for prompt in options.prompts]
        self.images = torch.empty(0, 3, 1, 1)
        # Of the first look, so of the model before: features of the class, and of all pictures the mean, or 0.
        self.before, self.centre = torch.empty(0), torch.empty(0)

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """Scores by name, see `diffusion.likeness`."""
        self.objective.settle()
        n, model = self.options.samples, self.objective.model
        prompts = [prompt for prompt in self.prompts for _ in range(n)]
        seeds = [self.options.seed * SEEDS + COMPARED + i for i in range(n)] * len(self.prompts)
        parts = []
        for first in range(0, len(prompts), DRAWN):
            some = slice(first, first + DRAWN)
            told = batch_told(self.progress, "pictures to look at", first, len(prompts))
            parts.append(drawn(model, prompts[some], seeds[some], self.options, each=told))
        self.images = torch.cat(parts)
        features, pictures = self.judges.features(self.images), self.judges.pictures(self.images)
        if not len(self.before):
            self.centre = features.mean(0) * float(among(features) > ALIKE)
            self.before = features[-n:] - self.centre
        features -= self.centre
        words = self.judges.words(self.words).repeat_interleave(n, 0)
        plain, subject = features[-n:], self.subject - self.centre
        fidelity, kept = likeness(features[:n], subject), paired(plain, self.before)
        return {
            "held out loss": self.objective.held_out(self.held_out, seed=self.options.seed),
            "fidelity": fidelity, "fidelity CLIP-I": likeness(pictures[:n], self.subject_pictures),
            "prompt CLIP-T": paired(pictures[:-n], words), "diversity": diversity(features[:n]),
            "class kept": kept, "class drift": likeness(plain, subject), "balance": fidelity + kept,
        }  # fmt: skip

    def real(self) -> dict[str, float]:
        """Fidelity of the real pictures to each other."""
        return {"fidelity": among(self.subject - self.centre), "fidelity CLIP-I": among(self.subject_pictures)}

    def sheet(self) -> UInt8[ndarray, "h w 3"]:
        """The last pictures, a row for each prompt under its words, below the real ones."""
        n = self.options.samples
        rows = [("real", self.pictures[:n]), *zip(self.prompts, eight_bit(self.images).split(n))]
        page = Image.new("RGB", (n * (CELL + 2), len(rows) * (CELL + LINE)), "white")
        draw = ImageDraw.Draw(page)
        for y, (words, images) in enumerate(rows):
            draw.text((2, y * (CELL + LINE) + 2), words, fill="black")
            for x, image in enumerate(images):
                cell = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((CELL, CELL), Image.Resampling.BICUBIC)
                page.paste(cell, (x * (CELL + 2), y * (CELL + LINE) + LINE))
        return np.asarray(page)


class Watch(Callback):
    """At each look, and before the first step: a sheet of pictures, scores.json so far, the weights, a line.

    each: told after every step how many are done, of how many.
    """

    def __init__(
        self, looker: Looker, first: dict[str, float], best: KeepBest, out: Path, say: Say, each: Each
    ):  # fmt: skip
        self.looker, self.first, self.best, self.out, self.say, self.each = looker, first, best, out, say, each
        on_first(lambda: self._show(first))

    def after_step(self, run: Run) -> None:
        self.each(run.step, run.steps)
        if run.scores and run.scores[-1]["step"] == run.step:
            on_first(lambda: self._look(run))

    def _look(self, run: Run) -> None:
        rows = [self.first, *with_losses(run.scores, [*run.history, *run.unlogged])]
        write_json({"scores": rows, "history": run.history}, self.out / "scores.json")
        self._show(rows[-1])
        objective = self.looker.objective
        if self.best.best["step"] == run.step:
            save(objective, self.out)
        if objective.method == "lora":
            save_lora(objective, self.out / "steps" / f"{run.step:05}")

    def _show(self, row: dict[str, float]) -> None:
        step = int(row["step"])
        write(sheet_path(self.out, step), partial(save_picture, self.looker.sheet()))
        losses = f"losses {row['instance']:.4f} + {row['prior']:.4f}, " if "prior" in row else (
            f"loss {row['instance']:.4f}, " if "instance" in row else ""
        )  # fmt: skip
        self.say(
            f"step {step}: {losses}held out {row['held out loss']:.4f}, fidelity {row['fidelity']:.3f}, prompt "
            f"{row['prompt CLIP-T']:.3f}, diversity {row['diversity']:.3f}, class kept {row['class kept']:.3f}"
        )


def sheet_path(out: Path, step: int) -> Path:
    return out / "samples" / f"step-{step:05}.png"


def with_losses(scores: Sequence[dict[str, float]], history: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Each row of scores with the mean of both losses over the steps since the last one."""
    found, since = [], 0.0
    for row in scores:
        logged = [each for each in history if since < each["step"] <= row["step"]]
        losses = {
            name: float(np.mean([each[name] for each in logged]))
            for name in ("instance", "prior") if logged and name in logged[0]
        }  # fmt: skip
        found.append({"step": row["step"], **losses, **{k: v for k, v in row.items() if k != "step"}})
        since = row["step"]
    return found


def verdict(rows: Sequence[dict[str, float]]) -> tuple[int, str, list[str]]:
    """The step to stop at, why, and what else should be known; rows: of step 0 and each look.

    It is the one whose weights `KeepBest` keeps: the first of those with the greatest balance.
    """
    before, *looks = rows
    best = max(looks, key=lambda row: (row["balance"], -row["step"]))
    step = int(best["step"])
    said = (
        f"of {len(looks)} looks the greatest sum of subject fidelity and class kept, {best['fidelity']:.3f} + "
        f"{best['class kept']:.3f} (before training {before['fidelity']:.3f} + {before['class kept']:.3f})"
    )
    last, notes = looks[-1], []
    if last is not best:
        said += (
            f"; from there to step {int(last['step'])} fidelity changes by {last['fidelity'] - best['fidelity']:+.3f} "
            f"and the class by {last['class kept'] - best['class kept']:+.3f}"
        )
    elif len(looks) > 1:
        notes.append("the best look is the last: more steps may do more")
    if best["balance"] <= before["balance"]:
        notes.append(
            "no look is better than the model before, by that sum: try more steps, a larger lr or more pictures"
        )
    least = min(rows, key=lambda row: row["held out loss"])
    if least["step"] != step:
        notes.append(f"the held-out loss is least at step {int(least['step'])} ({least['held out loss']:.4f})")
    return step, said, notes


# Pictures and files


@torch.no_grad()
def drawn(
    model: TextToImage, prompts: Sequence[str], seeds: Sequence[int], options: Options, *, each: Each
) -> Float[Tensor, "n 3 h w"]:
    """Pictures in [0, 1] on the CPU, each the same whatever is drawn beside it.  each: told how far they are."""
    return generate(
        model, list(prompts), list(seeds), sampler=options.sampler, steps=options.sampler_steps, scale=options.scale,
        each=lambda done, total, clean: each(done, total),
    )  # fmt: skip


def batch_told(progress: Progress, stage: str, before: int, total: int) -> Each:
    """What tells of a batch of DRAWN pictures, or of the rest, while it is drawn: `before` of `total` are there."""
    count = min(DRAWN, total - before)
    return lambda done, steps: progress(stage, before + count * done // steps, total)


def save(objective: DreamBooth, out: Path) -> Path:
    """The weights as they are: a LoRA's file, or the whole model's folder."""
    if objective.method == "lora":
        return save_lora(objective, out)[0]
    objective.settle()
    return objective.model.save(out / "model")


def eight_bit(images: Float[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 h w"]:
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def save_picture(pixels: UInt8[ndarray, "h w 3"], path: Path) -> None:
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, "PNG")
