"""Claim: Guidance trades variety for agreement with the words, and how far each kind can be turned up

    python benchmarks/guidance_sweep.py [--seeds 16] [--grid docs/img/guidance.png]

Pictures of the bundled negah/imagine-tiny, of twelve prompts and the same seeds for every way, 20 steps of DPM++ 2M.

    words       share of pictures to which, by negah/describe-tiny, their own prompt is the nearest of the twelve
    classes     share whose class the model's own classifier names at the lowest noise level, of 23 (for classifier
                guidance it is judge in its own case, and does not count)
    panels      how often a picture with a solar array in its prompt gets more from the detector negah/aerial-tiny than
                one of the same house without (area under the ROC curve; .5 is chance)
    diversity   mean distance (1 - cosine) of pictures of one prompt to each other, by negah/describe-tiny
    clipped     share of values at black or white, which too much guidance makes more of

Intervals are 95 % bootstrap ones over pictures (for diversity over prompts).  Nothing was chosen by these figures.
The judges are small models of the same makers, trained on the same two sources of pictures as the one that is judged.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import results
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from negah.diffusion.classifier import NoisyClassifier
from negah.diffusion.generate import Guide, generate
from negah.diffusion.guidance import APG, classifier
from negah.diffusion.load import found, load
from negah.probe.detector import load as load_detector
from negah.runs.generate import sized
from negah.runs.search import described_by

NAME, MODEL = "guidance_sweep", "negah/imagine-tiny"
HOUSE = "one house with a red roof, {}, no swimming pool, a few trees"
PROMPTS = {
    HOUSE.format("one solar array"): "house with solar panels",
    HOUSE.format("no solar panels"): "house without solar panels",
    "There is a piece of farmland .": "agricultural", "There is a beach .": "beach",
    "There are some buildings .": "buildings", "It is a dense forest .": "forest",
    "There are some cars on the freeway .": "freeway", "Lots of boats in the harbor .": "harbor",
    "There are many cars in the parking lot .": "parkinglot", "There is a river .": "river",
    "There is a runway .": "runway", "There are two tennis courts .": "tenniscourt",
}  # fmt: skip
MIDDLE = (0.3, 3.0)  # levels of the interval
STEPS, BATCH = 20, 16


@dataclass(frozen=True)
class Way:
    """How to guide: arguments of `generate`, and the scale of the classifier's own guidance."""

    name: str
    how: dict[str, Any] = field(default_factory=dict)
    labels: float = 0.0


WAYS = [
    *(Way(f"classifier-free {s:g}", {"scale": s}) for s in (0.0, 1.0, 2.0, 3.0, 4.5, 6.0, 9.0, 14.0, 20.0)),
    *(Way(f"interval {s:g}", {"scale": s, "interval": MIDDLE}) for s in (3.0, 6.0, 9.0, 14.0)),
    *(Way(f"rescale {s:g}", {"scale": s, "rescale": 0.7}) for s in (6.0, 14.0)),
    *(Way(f"CFG++ {s:g}", {"scale": s, "plus_plus": True}) for s in (0.2, 0.4, 0.6, 0.8, 1.0)),
    *(Way(f"APG {s:g}", {"scale": s, "apg": APG()}) for s in (3.0, 6.0, 14.0)),
    *(Way(f"classifier {s:g}", {"scale": 1.0}, s) for s in (1.0, 3.0, 10.0)),
    Way("classifier 3 without words", {"scale": 0.0}, 3.0),
]
SHOWN = ("classifier-free 0", "classifier-free 1", "classifier-free 3", "classifier-free 6", "classifier-free 14",
         "interval 14", "rescale 14", "CFG++ 0.6", "APG 14", "classifier 3")  # fmt: skip


class Judge:
    """The networks that look, and what they say of pictures [prompts, seeds, 3, h, w] in [0, 1]."""

    def __init__(self) -> None:
        self.describer, tokens = described_by("negah/describe-tiny", None)
        self.detector = load_detector("negah/aerial-tiny")
        self.drawer = load(MODEL)
        self.classes = NoisyClassifier.load(found(MODEL) / "classifier")
        with torch.no_grad():
            self.texts = self.describer.texts(tokens(list(PROMPTS)))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Any]:
        prompts, seeds = images.shape[:2]
        flat = images.flatten(0, 1)
        vectors = torch.cat([self.describer.images(sized(some, self.describer.size)) for some in flat.split(BATCH)])
        right = (vectors @ self.texts.T).argmax(1) == torch.arange(prompts).repeat_interleave(seeds)
        lowest = float(self.drawer.schedule.levels(500)[-2])
        wanted = torch.tensor([self.classes.classes.index(name) for name in PROMPTS.values()])
        told = torch.cat([
            self.classes(self.drawer.encode(some), torch.tensor(lowest)).argmax(1) for some in flat.split(BATCH)
        ]) == wanted.repeat_interleave(seeds)  # fmt: skip
        near = torch.stack([of @ of.T for of in vectors.view(prompts, seeds, -1)])
        others = ~torch.eye(seeds, dtype=torch.bool)
        return {
            "words": share(right), "classes": share(told), "panels": self.panels(images[:2]),
            "diversity": interval([1 - float(one[others].mean()) for one in near]),
            "clipped": float(((flat < 0.01) | (flat > 0.99)).float().mean()),
        }  # fmt: skip

    @torch.no_grad()
    def panels(self, images: Tensor) -> dict[str, float]:
        """Of pictures [2, seeds, 3, h, w], the former with a solar array in their prompt."""
        side = self.detector.info.window_px
        with_array, without = (
            torch.cat([self.detector(sized(some, side)).logit for some in one.split(BATCH)]).numpy() for one in images
        )
        rng = np.random.default_rng(0)
        picks = [rng.integers(len(one), size=(1000, len(one))) for one in (with_array, without)]
        drawn = [area(with_array[a], without[b]) for a, b in zip(*picks)]
        low, high = np.quantile(drawn, (0.025, 0.975))
        return {"value": area(with_array, without), "low": float(low), "high": float(high)}


def area(higher: Any, lower: Any) -> float:
    """Share of pairs that are in order, ties counting half."""
    difference = higher[:, None] - lower[None]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def share(right: Tensor) -> dict[str, float]:
    return interval(right.float().tolist())


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean and its bootstrap interval."""
    table = np.array(values)
    picks = np.random.default_rng(0).integers(len(table), size=(2000, len(table)))
    low, high = np.quantile(table[picks].mean(1), (0.025, 0.975))
    return {"value": float(table.mean()), "low": float(low), "high": float(high)}


def drawn(way: Way, judge: Judge, model: Any, seeds: int) -> Tensor:
    """[prompts, seeds, 3, h, w]."""
    prompts = [prompt for prompt in PROMPTS for _ in range(seeds)]
    numbers = torch.tensor([judge.classes.classes.index(PROMPTS[prompt]) for prompt in prompts])
    guides: list[Guide] = []
    if way.labels:
        guides.append(lambda denoise, which: classifier(
            denoise, lambda x, sigma: judge.classes.log_prob(x, sigma, numbers[list(which)]), way.labels
        ))  # fmt: skip
    images = generate(
        model, prompts, list(range(seeds)) * len(PROMPTS), steps=STEPS, batch=BATCH, guides=guides, **way.how
    )
    return images.unflatten(0, (len(PROMPTS), seeds))


def page(pictures: dict[str, Tensor], path: Path) -> None:
    """A row for each way, a column for each prompt, all of seed 0."""
    cell, left, top, columns = 96, 150, 20, list(PROMPTS)[:8]
    sheet = Image.new("RGB", (left + len(columns) * (cell + 2), top + len(pictures) * (cell + 2)), "white")
    pen = ImageDraw.Draw(sheet)
    for x, prompt in enumerate(columns):
        pen.text((left + x * (cell + 2) + 2, 4), PROMPTS[prompt].replace("house ", "")[:18], fill="black")
    for y, (name, images) in enumerate(pictures.items()):
        pen.text((4, top + y * (cell + 2) + cell // 2 - 6), name, fill="black")
        for x in range(len(columns)):
            pixels = (images[x, 0] * 255).round().byte().permute(1, 2, 0).numpy()
            picture = Image.fromarray(pixels).resize((cell, cell), Image.Resampling.BICUBIC)
            sheet.paste(picture, (left + x * (cell + 2), top + y * (cell + 2)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(256).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--grid", type=Path, help="a PNG of some pictures of each way")
    args = parser.parse_args()
    torch.set_num_threads(1)
    judge, model = Judge(), load(MODEL).pack()
    rows, shown = [], {}
    for way in WAYS:
        begun = time.process_time()
        images = drawn(way, judge, model, args.seeds)
        seconds = (time.process_time() - begun) / images.shape[:2].numel()
        rows.append({"way": way.name, **judge(images), "processor seconds a picture": seconds})
        print(json.dumps(rows[-1]), flush=True)
        if way.name in SHOWN:
            shown[way.name] = images
    if args.grid:
        page(shown, args.grid)
    by_name = {row["way"]: row for row in rows}
    plain, guided = by_name["classifier-free 1"], by_name["classifier-free 6"]
    lost = 1 - guided["diversity"]["value"] / plain["diversity"]["value"]
    seconds = statistics.median(row["processor seconds a picture"] for row in rows)
    results.write(
        NAME, claim=str(__doc__).splitlines()[0].removeprefix("Claim: "), rows=rows,
        headline={
            "value": guided["words"]["value"] - plain["words"]["value"],
            "unit": f"more of the pictures have their own words nearest at scale 6 than without guidance (of twelve"
                    f" prompts; {plain['words']['value']:.2f} to {guided['words']['value']:.2f}), at the price of"
                    f" {lost:.0%} of the diversity; {seconds:.2f} s of one core a picture",
            "target": None, "better": "higher",
        },
        seeds=list(range(args.seeds)), packages=("diffusers", "transformers"),
        prompts=list(PROMPTS), seeds_each=args.seeds, steps=STEPS,
    )  # fmt: skip


if __name__ == "__main__":
    main()
