"""`negah dreambooth`: teach a model one thing from a few pictures, and say when to stop.

Before anything is trained the model draws the class itself (`class/`), for prior preservation.  Before the first step
and at fixed ones it is looked at: both losses, a loss at noise that never changes, how like the subject and the words
what it draws is, how varied, and what it forgot of the class.  The weights of one step are kept:

    the step with the greatest sum of subject fidelity and class kept (both cosines of the same features)

as up to there each step gained more likeness to the subject than it cost of the class.  A run that was stopped goes on
when the same call is made again.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from negah import __version__, ranks
from negah.diffusion.dreambooth import Draw, DreamBooth, default_lr
from negah.diffusion.generate import MEMORY
from negah.diffusion.identifier import Identifier, Weakness, add_token, weakest
from negah.diffusion.load import load
from negah.diffusion.model import TextToImage
from negah.errors import InputError, OutputError, WeightsError
from negah.images.pool import Pool
from negah.nn.backbone import ViTBackbone
from negah.progress import Progress, Say, silent
from negah.runs import DESCRIBER
from negah.runs.dreambooth_looks import (
    DRAWN,
    SEEDS,
    Each,
    Judges,
    Looker,
    Watch,
    batch_told,
    drawn,
    eight_bit,
    save,
    save_picture,
    sheet_path,
    verdict,
    with_losses,
)
from negah.runs.dreambooth_options import PROMPTS, Options, Result
from negah.runs.dreambooth_page import page
from negah.runs.probe import as_plain
from negah.runs.record import claim, compute_device, digest, hardware, now, versions
from negah.runs.search import described_by
from negah.runs.watch import on_first
from negah.train import Batches, FitResult, fit
from negah.train.callbacks import KeepBest
from negah.train.schedules import constant
from negah.weights import backbone as backbone_named
from negah.weights.save import write, write_json

__all__ = ["PROMPTS", "Options", "Result", "dreambooth"]

ENOUGH, ASIDE = 8, 4  # from so many pictures on, one in four is kept aside
ENCODED = 8  # pictures at a time
MADE = ("checkpoint.pt",)


def dreambooth(
    instance: Sequence[str | Path], out: Path, model: str, options: Options, *, backbone: str = "negah/aerial-tiny",
    describer: str = DESCRIBER, vocabulary: Path | None = None,
    progress: Progress = silent, say: Say = silent, each: Each = silent,
) -> Result:  # fmt: skip
    """Teach `model` what the pictures `instance` show.

    `out` gets the weights (a LoRA file with a new token's embedding beside it, or the folder model/), class/, samples/,
    report.html, checkpoint.pt, scores.json and run.json; of a LoRA also steps/, its file at each look.

    Args:
        instance: pictures, folders or archives of them; of each the middle square is seen.
        backbone: whose features say how like the subject, see `weights.backbone`.
        describer: a CLIP or CoCa, which says how like the words; vocabulary: where it has none itself.
        progress: told of all but the training, which draws its own bar on a terminal; each: told after its steps.

    Raises InputError for what cannot be learned from (also where memory does not suffice), WeightsError for a model,
    OutputError where `out` holds another run or cannot be written, TrainingError where the loss is no longer finite.
    """
    ranks.join()
    options.check()
    arguments = {
        "instance": [str(path) for path in instance], "model": model, "backbone": backbone, "describer": describer,
        "vocabulary": str(vocabulary) if vocabulary else None, **asdict(options),
    }  # fmt: skip
    record = {"negah": __version__, "verb": "dreambooth", "started": now(), "arguments": arguments}
    record = on_first(lambda: claim(out, record, holds=MADE, say=say))
    device = compute_device()
    drawer = load(model, device=device)
    origin = digest(drawer)  # before a token is added
    judges = judges_of(backbone, describer, vocabulary, device)
    pool = Pool(list(instance), drawer.size, cut="none", progress=progress)
    identifier, ranking = identifier_of(drawer, options)
    on_first(lambda: write_json(record, out / "run.json"))
    say(f"token {identifier.token}: {identifier.why}")
    try:
        result, found = _personalise(
            drawer, pool, judges, identifier, out, options, record, origin, progress, say, each
        )
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(words in str(error) for words in MEMORY):
            raise
        smaller = ["--method lora"] * (options.method == "full") + ["--batch 1"] * (options.batch > 1)
        smaller += ["--precision bf16"] * (options.precision == "fp32") + ["--prior-weight 0, which halves a step"]
        raise InputError(f"out of memory ({str(error).split('.')[0]}): try {', '.join(smaller)}") from error
    result.ranking.extend(ranking)
    result.failures.extend(pool.failures)

    def finish() -> Result:
        write_json(as_plain(result) | {"history": found.history}, out / "scores.json")
        made_with = {"versions": versions(), "hardware": hardware(device), "processes": ranks.world()}
        write_json({**record, "finished": now(), **made_with}, out / "run.json")
        return result

    return on_first(finish)


def judges_of(backbone: str, describer: str, vocabulary: Path | None, device: torch.device) -> Judges:
    """Both networks by their names, at the size that they were made for.  Raises WeightsError for what is none."""
    net = backbone_named(backbone, device=device).requires_grad_(False)
    side = net.vit.grid[0] * net.vit.patch if isinstance(net, ViTBackbone) else None
    clip, tokens = described_by(describer, vocabulary)
    clip = clip.to(device).requires_grad_(False)

    def sized(images: Tensor, side: int | None) -> Tensor:
        images = images.to(device)
        if side is None or images.shape[-1] == side:
            return images
        return F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(0, 1)

    return Judges(
        lambda images: net(sized(images, side)).float().cpu(),
        lambda images: clip.images(sized(images, clip.size)).float().cpu(),
        lambda words: clip.texts(tokens(list(words)).to(device)).float().cpu(),
    )


def identifier_of(model: TextToImage, options: Options) -> tuple[Identifier, list[Weakness]]:
    """The token that was given, added to the model, or one that was measured; and what it was chosen from."""
    if options.token is not None:
        return add_token(model, options.token, options.class_word), []
    return weakest(model, options.class_word, seed=options.seed)


def _personalise(
    model: TextToImage, pool: Pool, judges: Judges, identifier: Identifier, out: Path, options: Options,
    record: dict[str, Any], origin: str, progress: Progress, say: Say, each: Each,
) -> tuple[Result, FitResult]:  # fmt: skip
    pictures = torch.stack([pool[i] for i in range(len(pool))])
    aside = torch.arange(len(pool)) % ASIDE == ASIDE - 1 if len(pool) >= ENOUGH else torch.zeros(len(pool)).bool()
    own, prior = latents_of(model, pictures, progress=progress), None
    if options.prior_weight > 0:
        prompt = identifier.class_prompt
        drawn_before = on_first(
            lambda: class_pictures(model, prompt, out / "class", options, origin, progress=progress)
        )
        prior = latents_of(model, drawn_before, progress=progress)
    kept_aside, own = own[aside] if aside.any() else own, own[~aside]
    held_out = (
        f"{int(aside.sum())} of {len(pool)} pictures, which are not trained on" if aside.any()
        else f"the {len(pool)} pictures that are trained on, at other noise: from {ENOUGH} on some are kept aside"
    )  # fmt: skip

    lr = options.lr or default_lr(options.method, train_text=options.train_text)
    objective = DreamBooth(
        model, identifier, method=options.method, rank=options.rank, train_text=options.train_text,
        prior_weight=options.prior_weight, min_snr=options.min_snr, lr=lr, seed=options.seed,
    )  # fmt: skip
    looker = Looker(objective, pictures[~aside], kept_aside, judges, options, progress)
    first = {"step": 0, **looker()}
    best = KeepBest("balance")
    watch = Watch(looker, first, best, out, say, each)
    found = fit(
        objective,
        Batches(
            _Numbers([name for name, left in zip(pool.names, aside) if not left]), options.batch, seed=options.seed,
            collate=Draw(own, prior, timesteps=len(model.schedule)),
        ),
        steps=options.steps, lr=lr, schedule=constant(), weight_decay=0.01, clip=1.0, precision=options.precision,
        device=model.device, seed=options.seed, out=out, checkpoint_every=options.every,
        callbacks=[best, watch], scores=looker, score_every=options.every, log_every=math.gcd(10, options.every),
    )  # fmt: skip
    rows = [first, *with_losses(found.scores, found.history)]
    step, reason, notes = verdict(rows)
    if looker.centre.any():
        notes.append(
            "the backbone's vectors are nearly the same for any pictures, so their mean over the pictures before "
            "training is taken off: fidelity, diversity and class cannot be compared with published figures"
        )
    path = on_first(lambda: save(objective, out))
    result = Result(
        model=path, report=out / "report.html", token=identifier.token, why=identifier.why, step=step, reason=reason,
        held_out=held_out, scores=rows, real=looker.real(), notes=notes,
        images={"instance": len(own), "kept aside": int(aside.sum()), "class": 0 if prior is None else len(prior)},
    )  # fmt: skip
    sheets = {int(row["step"]): sheet_path(out, int(row["step"])) for row in rows}
    text = page(result, found.history, sheets, record)
    on_first(lambda: write(result.report, lambda part: part.write_text(text, encoding="utf-8")))
    return result, found


# What the model draws


def class_pictures(
    model: TextToImage, prompt: str, folder: Path, options: Options, origin: str, *, progress: Progress
) -> UInt8[Tensor, "n 3 side side"]:
    """Pictures of the plain class by the model as it is: made once, kept in `folder`, and used again.

    origin: tells the model from others.  Raises OutputError where the folder's pictures were made otherwise.
    """
    about = {
        "model": origin, "prompt": prompt, "seed": options.seed, "sampler": options.sampler,
        "steps": options.sampler_steps, "scale": options.scale,
    }  # fmt: skip
    made = folder / "made.json"
    if made.exists():
        try:
            before = json.loads(made.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OutputError(f"{made} cannot be read ({error}): remove {folder}") from error
        if differ := [name for name in about if before.get(name) != about[name]]:
            raise OutputError(
                f"{folder} holds pictures of another {', '.join(differ)}: remove it, or give another --out"
            )
    else:
        write_json(about, made)
    paths = [folder / f"{number:05}.png" for number in range(options.class_images)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    done = len(paths) - len(missing)
    for first in range(0, len(missing), DRAWN):
        some = missing[first : first + DRAWN]
        seeds = [options.seed * SEEDS + number for number in some]
        told = batch_told(progress, "class pictures", done, len(paths))
        images = drawn(model, [prompt] * len(some), seeds, options, each=told)
        for number, pixels in zip(some, eight_bit(images)):
            write(paths[number], partial(save_picture, pixels.permute(1, 2, 0).numpy()))
        done += len(some)
    return torch.stack([_read_picture(path) for path in paths])


@torch.no_grad()
def latents_of(
    model: TextToImage, pictures: UInt8[Tensor, "n 3 side side"], *, progress: Progress
) -> Float[Tensor, "n c h w"]:
    """Means of the autoencoder's distribution, on the CPU.  Raises WeightsError where they are not finite."""
    where, found = model.device, []
    for part in pictures.split(ENCODED):
        found.append(model.encode(part.to(where).float() / 255).float().cpu())
        progress("latents", sum(map(len, found)), len(pictures))
    latents = torch.cat(found)
    if not latents.isfinite().all():
        raise WeightsError("the autoencoder gives latents that are not finite: is the model's file whole?")
    return latents


def _read_picture(path: Path) -> UInt8[Tensor, "3 h w"]:
    try:
        with Image.open(path) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    except OSError as error:
        raise OutputError(f"{path} cannot be read ({error}): remove it, and it is drawn again") from error


class _Numbers:
    """A data set of numbers, each with the name of its picture for messages."""

    def __init__(self, names: Sequence[str]):
        self.names = list(names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> int:
        return number
