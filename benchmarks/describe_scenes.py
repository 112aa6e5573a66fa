"""Claim: what CLIP, CoCa and SimVLM say of pictures whose combination of known parts they have never seen.

    python benchmarks/describe_scenes.py                     # about 20 minutes on a core; goes on where it was stopped
    python benchmarks/describe_scenes.py --small             # a minute or two: shows that it runs, writes no result

Pictures of 64 px of 0.5 m by `negah.images.scenes.words`, each with the caption that names all six attributes in a
fixed order.  Training pictures are of seen compositions only; turned and mirrored at random.  Scored on pictures of
held-out compositions (of each value pair that is held out, no training picture has both), and on fresh pictures of
seen ones.  A caption is right when it is the true one to the word: CoCa and SimVLM write it, greedily; CLIP, and CoCa
a second time, take the nearest of the captions of all compositions, seen or not.

All three are trained from fresh weights by one recipe, on the same pictures in the same number of steps: 128 wide, a
ViT of four blocks as the image encoder of CLIP and CoCa, SimVLM's residual stem and two blocks; four more for the text
of CLIP, two and two in CoCa, two in SimVLM's decoder.  A short run: what more steps would give is not measured.  The
recipe was fixed beforehand, nothing was chosen by a score.  Beside them: the caption of the training picture that is
nearest in pixels, or by the CLS of the bundled negah/aerial-tiny backbone (these two cannot be right on held-out
compositions), and the most frequent caption.

Intervals are 95 % bootstrap ones over pictures, of the mean over the seeds; a seed changes fresh weights and order.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import results
import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor

from negah import weights
from negah.images.scenes.words import ATTRIBUTES, Composition, caption, compositions, described, held_out, told
from negah.language import CLIP, CoCa, Tokenizer
from negah.language.simvlm import SimVLM
from negah.nn.resnet import ResNet
from negah.nn.text import TextTransformer
from negah.nn.vit import ViT
from negah.probe.metrics import bootstrap_weights
from negah.train import Batches, fit
from negah.train.objective import Objective

SIDE, GSD_M, WIDTH, HEADS, LENGTH = 64, 0.5, 128, 4, 22
ALL = compositions()
NAMES = {what: number for number, what in enumerate(ALL)}
SETS = {"train": (False, 1_000_000), "seen": (False, 2_000_000), "held_out": (True, 3_000_000)}  # held out, first seed
CLAIM = "Captions of generated pictures whose parts were never together before, chosen among all or written"


@dataclass(frozen=True)
class Effort:
    """How much is done; `SMALL` is for a look at whether it runs.  each: pictures of a composition."""

    each: dict[str, int]
    most: int = 1_000_000  # compositions of a set
    steps: int = 600
    batch: int = 48
    lr: float = 1e-3


FULL = Effort({"train": 6, "seen": 1, "held_out": 2})
SMALL = Effort({"train": 1, "seen": 1, "held_out": 1}, most=40, steps=4)


@dataclass(frozen=True)
class Pictures:
    """Pictures, and the number of the composition of each in `ALL`."""

    images: UInt8[Tensor, "picture 3 h w"]
    what: Int[Tensor, " picture"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/describe_scenes"), help="where finished parts are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--small", action="store_true", help="a few pictures and steps; no result is written")
    args = parser.parse_args()
    torch.set_num_threads(1)
    effort, work = (SMALL, args.work / "small") if args.small else (FULL, args.work)
    work.mkdir(parents=True, exist_ok=True)
    sets = {name: pictures(work, name, effort) for name in SETS}
    texts = [caption(what) for what in ALL]
    tokens = Tokenizer.train(texts, vocabulary=640, length=LENGTH)
    ids = tokens(texts)
    texts = [tokens.text(row) for row in ids]  # as they come back

    said: dict[str, list[dict[str, list[str]]]] = {}  # of each way of answering and seed, the answers on each set
    times: dict[str, list[float]] = {}
    for seed in args.seeds:
        for name in MODELS:
            found = once(work / f"{name}-{seed}.json", partial(answers, name, sets, tokens, ids, texts, effort, seed))
            times.setdefault(name, []).append(found.pop("seconds"))
            for way, answer in found.items():
                said.setdefault(way, []).append(answer)
    said |= {name: [answer] for name, answer in baselines(sets, texts).items()}
    rows = [row(way, name, runs, sets[name], texts) for way, runs in said.items() for name in ("held_out", "seen")]
    for each in rows:
        print(json.dumps(each))
    if args.small:
        print("A few pictures and steps: these figures show that it runs, and no result was written.")
        return
    learned = [each for each in rows if each["on"] == "held_out" and each["method"] not in BASELINES]
    exact = {each["method"]: each["exact"] for each in learned}
    unit = (
        f"of captions exact, chosen by CoCa among {len(ALL)}; chosen by CLIP {exact['clip_choice']:.3f}, written "
        f"by CoCa {exact['coca_caption']:.3f}, by SimVLM {exact['simvlm_caption']:.3f}"
    )
    print(results.write(
        "describe_scenes", claim=CLAIM, rows=rows, seeds=args.seeds, packages=("numpy", "tokenizers"),
        headline={"value": exact["coca_choice"], "unit": unit, "target": None, "better": "higher"},
        side_px=SIDE, gsd_m=GSD_M, steps=effort.steps, batch=effort.batch, lr=effort.lr,
        pictures={name: len(found.what) for name, found in sets.items()},
        compositions={"seen": sum(not held_out(what) for what in ALL), "held_out": sum(map(held_out, ALL))},
        train_seconds={name: [round(t) for t in each] for name, each in times.items()},
    ))  # fmt: skip


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns, from the file where it was made before."""
    if not path.is_file():
        part = path.with_suffix(".part")
        part.write_text(json.dumps(make()))
        part.rename(path)
        print(f"{path.stem}: done", flush=True)
    return json.loads(path.read_text())


def pictures(work: Path, name: str, effort: Effort) -> Pictures:
    """Of a set of compositions, the same number of each; kept in `work`."""
    held, seed = SETS[name]
    wanted = [what for what in ALL if held_out(what) == held]
    wanted = wanted[:: max(1, len(wanted) // effort.most)] * effort.each[name]
    path = work / f"{name}.npz"
    if not path.is_file():
        images = [described(SIDE, GSD_M, seed=seed + i, what=what).image for i, what in enumerate(wanted)]
        part = path.with_suffix(".part.npz")
        np.savez(part, images=np.stack(images).transpose(0, 3, 1, 2), what=[NAMES[what] for what in wanted])
        part.rename(path)
        print(f"{name}: {len(images)} pictures", flush=True)
    with np.load(path) as stored:
        return Pictures(torch.from_numpy(stored["images"]), torch.from_numpy(stored["what"]))


# The models


def vit() -> ViT:
    return ViT(patch=8, dim=WIDTH, depth=4, heads=HEADS, grid=(SIDE // 8, SIDE // 8), layer_scale=None)


def clip(tokens: Tokenizer) -> CLIP:
    text = TextTransformer(vocabulary=len(tokens), length=LENGTH, dim=WIDTH, depth=4, heads=HEADS)
    return CLIP(vit(), text, dim=WIDTH, end=tokens.end)


def coca(tokens: Tokenizer) -> CoCa:
    return CoCa(
        vit(), dim=WIDTH, vocabulary=len(tokens), length=LENGTH, start=tokens.start, end=tokens.end, width=WIDTH,
        depth=2, heads=HEADS, queries=32, pooler_heads=HEADS,
    )  # fmt: skip


def simvlm(tokens: Tokenizer) -> SimVLM:
    stem = ResNet(widths=(32, 64, WIDTH), depths=(1, 1, 1), stem="fine")
    return SimVLM(
        stem, places=(SIDE // 8) ** 2, vocabulary=len(tokens), length=LENGTH, start=tokens.start, end=tokens.end,
        dim=WIDTH, depth=2, heads=HEADS,
    )  # fmt: skip


MODELS: dict[str, Callable[[Tokenizer], Objective]] = {"clip": clip, "coca": coca, "simvlm": simvlm}


def answers(
    name: str, sets: dict[str, Pictures], tokens: Tokenizer, ids: Tensor, texts: Sequence[str], effort: Effort,
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Train one; its texts for every scored picture, by each way of answering that it has."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MODELS[name](tokens)
    train = sets["train"]

    def collate(items: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
        at = torch.as_tensor(items)
        turns = torch.randint(8, (len(at),), generator=generator).tolist()
        images = torch.stack([turned(image, turn) for image, turn in zip(train.images[at], turns)])
        what = train.what[at]
        return (images, ids[what]) if name == "simvlm" else (images, ids[what], what)  # its third would be prefixes

    start = perf_counter()
    fit(
        model, Batches(range(len(train.what)), effort.batch, seed=seed, collate=collate), steps=effort.steps,
        lr=effort.lr, warmup=effort.steps // 10, weight_decay=0.05, clip=1.0, precision="bf16", seed=seed,
    )  # fmt: skip
    found: dict[str, Any] = {"seconds": perf_counter() - start}
    model.eval()
    for on in ("held_out", "seen"):
        parts = sets[on].images.split(128)
        if isinstance(model, CLIP | CoCa):
            with torch.no_grad():
                cosines = torch.cat([model.images(part) for part in parts]) @ model.texts(ids).T
            found.setdefault(f"{name}_choice", {})[on] = [texts[i] for i in cosines.argmax(1).tolist()]
        if isinstance(model, CoCa | SimVLM):
            written = [tokens.text(row) for part in parts for row in model.caption(part, most=LENGTH)]
            found.setdefault(f"{name}_caption", {})[on] = written
    return found


def turned(image: UInt8[Tensor, "3 h w"], turn: int) -> UInt8[Tensor, "3 h w"]:
    """One of the eight ways to lay a square picture; what is in it stays."""
    return torch.rot90(image.flip(2) if turn >= 4 else image, turn % 4, (1, 2))


# What they are compared with

BASELINES = ("nearest_pixels", "nearest_features", "most_frequent")


@torch.no_grad()
def baselines(sets: dict[str, Pictures], texts: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Texts of scored pictures that are copied from training pictures."""
    backbone, train = weights.load("negah/aerial-tiny"), sets["train"]

    def pixels(images: UInt8[Tensor, "n 3 h w"]) -> Tensor:
        return F.avg_pool2d(images.float(), 4).flatten(1)

    def features(images: UInt8[Tensor, "n 3 h w"]) -> Tensor:
        return torch.cat([F.normalize(backbone(part).cls, dim=1) for part in images.split(128)])

    found: dict[str, dict[str, list[str]]] = {name: {} for name in BASELINES}
    for name, of in (("nearest_pixels", pixels), ("nearest_features", features)):
        known = of(train.images)
        for on in ("held_out", "seen"):
            nearest = torch.cdist(of(sets[on].images), known).argmin(1)
            found[name][on] = [texts[i] for i in train.what[nearest].tolist()]
    often = texts[int(train.what.bincount().argmax())]
    found["most_frequent"] = {on: [often] * len(sets[on].what) for on in ("held_out", "seen")}
    return found


def row(
    way: str, on: str, runs: Sequence[dict[str, list[str]]], scored: Pictures, texts: Sequence[str]
) -> dict[str, Any]:
    """Share of exact captions with its interval, and of each attribute named rightly, mean over the runs."""
    true: list[Composition] = [ALL[i] for i in scored.what.tolist()]
    exact = np.zeros(len(true))
    right = dict.fromkeys(ATTRIBUTES, 0.0)
    for run in runs:
        exact += [text == texts[i] for text, i in zip(run[on], scored.what.tolist(), strict=True)]
        for text, what in zip(run[on], true, strict=True):
            for name, value in told(text).items():
                right[name] += (value == getattr(what, name)) / len(true)
    exact /= len(runs)
    blocks = bootstrap_weights(np.arange(len(exact)), 2000, torch.Generator().manual_seed(0))
    draws = np.concatenate([block @ exact / block.sum(1) for block in blocks])
    return {
        "method": way, "on": on, "pictures": len(true), "exact": round(float(exact.mean()), 4),
        "low": round(float(np.quantile(draws, 0.025)), 4), "high": round(float(np.quantile(draws, 0.975)), 4),
        **{name: round(value / len(runs), 4) for name, value in right.items()},
    }  # fmt: skip


if __name__ == "__main__":
    main()
