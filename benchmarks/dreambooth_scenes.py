"""Claim: a small text-to-image model learns a building from five views, and what prior preservation costs and saves.

    python benchmarks/dreambooth_scenes.py                  # goes on where it was stopped
    python benchmarks/dreambooth_scenes.py --quick          # a random tiny model, a minute: no result is written

DreamBooth on the bundled negah/imagine-tiny.  The subjects are buildings of shapes and roofs that generated scenes
never have (an octagon of magenta and yellow wedges, a round one of rings, a cross with stripes), five views each: the
same building on other ground, turned, under another sun and camera.  Four ways: a LoRA and the whole UNet, each with
and without prior preservation; all with the same class pictures of a seed.  Of every run the
figures are those of its last step and of the step that `negah dreambooth` keeps.

Learning rates are chosen on a fourth building, which is not among those judged, by the greatest balance at
the last step, of LoRAs with prior preservation and of whole UNets with it; the ways without it take the same.

Fidelity and class kept are cosines of CLS features of negah/aerial-tiny, prompt agreement is a cosine of
negah/describe-tiny; neither network was made for this, so the same figures of real views, and of the model before
training, stand beside them.  Intervals are 95 % bootstrap ones over runs (a subject and a seed), narrow where these
are few: with one seed they are of three subjects.
"""

import argparse
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
import results
import torch
from numpy.typing import NDArray
from PIL import Image

from negah.diffusion.load import load
from negah.images.scenes import sketch as s
from negah.images.scenes.paint import Camera, Window
from negah.images.scenes.render import photograph
from negah.images.scenes.roofs import shaded
from negah.images.scenes.sketch import Colour, Ink, Point, Pose, Sketch, Sun, box
from negah.images.scenes.things import draw_style, ground_ink, tree
from negah.images.scenes.town import mix
from negah.runs.dreambooth import Options, dreambooth

GSD_M, VIEWS = 0.5, 5
EAVE_M = 3.0
FIGURES = ("fidelity", "fidelity CLIP-I", "prompt CLIP-T", "diversity", "class kept", "class drift", "held out loss")
CLAIM = "DreamBooth on the bundled model: five views of a building that it never saw, kept against what is forgotten"


@dataclass(frozen=True)
class Building:
    """plan: outline; pattern: how its two colours lie on the roof."""

    plan: Literal["octagon", "round", "cross", "square"]
    pattern: Literal["wedges", "rings", "stripes", "checks"]
    colours: tuple[Colour, Colour]
    radius_m: float = 6.5


CHOSEN_BY = Building("square", "checks", ((70, 200, 90), (60, 40, 60)))
SUBJECTS = {
    "octagon": Building("octagon", "wedges", ((226, 30, 160), (246, 214, 60))),
    "round": Building("round", "rings", ((40, 205, 205), (60, 30, 110))),
    "cross": Building("cross", "stripes", ((240, 110, 20), (70, 20, 110))),
}


def view(building: Building, side: int, *, seed: int) -> NDArray[np.uint8]:
    """The building near the middle of a picture of `side` pixels, on ground of its own, with some trees."""
    rng = Random(mix(seed, 0xD0B))
    style = draw_style(rng)._replace(dry=0.15)
    sun = Sun.at(math.radians(rng.gauss(180, 50)), math.radians(rng.uniform(45, 65)))
    sketch = Sketch(sun, inks=[ground_ink(rng, style)])
    span = side * GSD_M
    pose = Pose(rng.uniform(-0.12, 0.12) * span, rng.uniform(-0.12, 0.12) * span, rng.uniform(0, 2 * math.pi))
    draw(sketch, pose, building)
    for _ in range(rng.randint(1, 5)):
        for _ in range(40):
            x, y, radius = rng.uniform(-span / 2, span / 2), rng.uniform(-span / 2, span / 2), rng.uniform(1.4, 2.6)
            if math.hypot(x - pose.x, y - pose.y) > 1.25 * building.radius_m + radius:
                tree(sketch, rng, Pose(x, y, 0.0), radius, style)
                break
    camera = Camera.draw(rng)
    camera = camera._replace(saturation=max(0.95, camera.saturation), haze=min(0.25, camera.haze))
    window = Window(-span / 2, -span / 2, side, side, GSD_M)
    return photograph(sketch, window, camera, np.random.default_rng(mix(seed, 2)))[0]


def draw(sketch: Sketch, pose: Pose, building: Building) -> None:
    """The building with its shadow: planes of one colour each, lit by their slope where the roof is a pyramid."""
    r = building.radius_m
    outlines = {
        "octagon": [ring(r, 8)], "round": [ring(r, 24)], "square": [box(0, 0, 1.6 * r, 1.6 * r)],
        "cross": [box(0, 0, 2 * r, 0.8 * r), box(0, 0, 0.8 * r, 2 * r)],
    }[building.plan]  # fmt: skip
    for outline in outlines:
        sketch.cast(pose, [(x, y, EAVE_M) for x, y in outline], s.HIGH_SHADOW)
    for piece, colour, (x, y) in pieces(building, outlines):
        slope = math.radians(22) if building.pattern == "wedges" else 0.0
        down = pose.turn(x, y)
        ink = Ink(shaded(building.colours[colour], sketch.sun.light(*down, slope)), s.GRAIN, 0.04)
        sketch.poly(pose, piece, ink, s.ROOF, lit=True)


def pieces(building: Building, outlines: Sequence[list[Point]]) -> list[tuple[list[Point], int, Point]]:
    """Parts of the roof, each with the number of its colour and the direction in which it falls."""
    r, level = building.radius_m, (0.0, 1.0)
    if building.pattern == "wedges":
        corners, found = outlines[0], []
        for k, p in enumerate(corners):
            q = corners[(k + 1) % len(corners)]
            x, y = p[0] + q[0], p[1] + q[1]
            found.append(([(0.0, 0.0), p, q], k % 2, (x / math.hypot(x, y), y / math.hypot(x, y))))
        return found
    if building.pattern == "rings":
        return [(ring(r * part, 24), k % 2, level) for k, part in enumerate((1, 0.75, 0.5, 0.25))]
    if building.pattern == "checks":
        step = 0.4 * r
        return [
            (box((i - 1.5) * step, (j - 1.5) * step, step, step), (i + j) % 2, level)
            for i in range(4) for j in range(4)
        ]  # fmt: skip
    found = [(outline, 0, level) for outline in outlines]
    for k in (-2, -1, 1, 2):  # stripes across the arms
        found.append((box(k * 0.4 * r, 0, 0.2 * r, 0.8 * r), 1, level))
        found.append((box(0, k * 0.4 * r, 0.8 * r, 0.2 * r), 1, level))
    return found


def ring(radius: float, corners: int) -> list[Point]:
    """A regular polygon."""
    turn = 2 * math.pi / corners
    return [(radius * math.cos((k + 0.5) * turn), radius * math.sin((k + 0.5) * turn)) for k in range(corners)]


# The runs


@dataclass(frozen=True)
class Effort:
    """How much is done; `QUICK` is for a look at whether it runs."""

    steps: int = 400
    every: int = 100
    batch: int = 2
    class_images: int = 100
    samples: int = 6
    sampler_steps: int = 20
    seeds: tuple[int, ...] = (0,)
    subjects: tuple[str, ...] = tuple(SUBJECTS)
    rates: tuple[tuple[str, tuple[float, ...]], ...] = (("lora", (1e-4, 5e-4, 2e-3)), ("full", (5e-6, 5e-5, 5e-4)))


FULL = Effort()
QUICK = Effort(
    steps=4, every=2, batch=1, class_images=4, samples=2, sampler_steps=2, seeds=(0, 1), subjects=("octagon",),
    rates=(("lora", (1e-3,)), ("full", (1e-4,))),
)  # fmt: skip
WAYS: dict[str, tuple[Literal["lora", "full"], float]] = {
    "LoRA with prior preservation": ("lora", 1.0), "LoRA alone": ("lora", 0.0),
    "whole UNet with prior preservation": ("full", 1.0), "whole UNet alone": ("full", 0.0),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/dreambooth_scenes"), help="folder of finished runs")
    parser.add_argument("--model", default="negah/imagine-tiny")
    parser.add_argument("--quick", action="store_true", help="a few steps and pictures; no result is written")
    args = parser.parse_args()
    torch.set_num_threads(1)
    effort, work = (QUICK, args.work / "quick") if args.quick else (FULL, args.work)
    bench = Bench(args.model, work, effort)

    chosen, tried = {}, []
    for method, rates in effort.rates:
        looks = {lr: bench.run("choice", CHOSEN_BY, method, 1.0, lr, seed=100)["scores"][-1] for lr in rates}
        chosen[method] = max(looks, key=lambda lr: looks[lr]["balance"])
        tried += [{"method": method, "lr": lr, **figures_of(look)} for lr, look in looks.items()]
    found = {
        way: [
            bench.run(name, SUBJECTS[name], method, weight, chosen[method], seed=seed)
            for name in effort.subjects for seed in effort.seeds
        ]
        for way, (method, weight) in WAYS.items()
    }  # fmt: skip
    rows = rows_of(found)
    for row in rows:
        print(json.dumps(row))
    if args.quick:
        print("A few steps and pictures: these figures show that it runs, and no result was written.")
        return
    kept = next(row for row in rows if row["what"] == "whole UNet: with less without prior preservation")
    print(results.write(
        "dreambooth_scenes", claim=CLAIM, rows=rows, seeds=list(effort.seeds),
        packages=("diffusers", "transformers", "peft"),
        headline={
            "value": kept["class_kept"],
            "unit": "more of the class kept (cosine) by prior preservation, whole UNet, at the last step",
            "target": None, "better": "higher",
        },
        views=VIEWS, gsd_m=GSD_M, lr=chosen, learning_rates_tried=tried, model=args.model,
        **{name: getattr(effort, name) for name in ("steps", "batch", "class_images", "samples", "sampler_steps")},
    ))  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """Runs by `negah dreambooth`, each kept in a folder of `work`."""

    model: str
    work: Path
    effort: Effort

    def run(
        self, name: str, building: Building, method: Literal["lora", "full"], weight: float, lr: float, *, seed: int
    ) -> dict[str, Any]:
        """What scores.json says of a run; from its folder where it was made before."""
        out = self.work / f"{name}-{method}-{'prior' if weight else 'alone'}-{lr:g}-{seed}"
        if not (out / "done.json").exists():
            drawn = self.work / f"class-{seed}"
            if weight and drawn.exists() and not (out / "class").exists():
                shutil.copytree(drawn, out / "class")
            side = self.side()
            photos = self.work / f"{name}-{side}"
            photos.mkdir(parents=True, exist_ok=True)
            for i in range(VIEWS):
                first = 1000 * (1 + list(SUBJECTS).index(name)) if name in SUBJECTS else 0
                Image.fromarray(view(building, side, seed=first + i)).save(photos / f"{i}.png")
            effort = self.effort
            options = Options(
                class_word="house", token="<new>", method=method, prior_weight=weight, lr=lr, seed=seed,
                steps=effort.steps, every=effort.every, batch=effort.batch, class_images=effort.class_images,
                samples=effort.samples, sampler_steps=effort.sampler_steps,
            )  # fmt: skip
            result = dreambooth([photos], out, self.model, options, say=lambda line: print(out.name, line, flush=True))
            if weight and not drawn.exists():
                shutil.copytree(out / "class", drawn)
            (out / "checkpoint.pt").unlink()
            for large in ("model", "class", "steps"):
                shutil.rmtree(out / large, ignore_errors=True)
            (out / "done.json").write_text(json.dumps({"step": result.step}))
        return json.loads((out / "scores.json").read_text())

    def side(self) -> int:
        """Of the model's pictures, in pixels."""
        return load(self.model).size


def figures_of(look: dict[str, Any]) -> dict[str, float]:
    return {name: round(look[name], 4) for name in (*FIGURES, "balance")}


def rows_of(found: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Means over runs with intervals: before, real views, each way at its last and its kept step, and what prior
    preservation changes, run by run."""
    runs = [run for some in found.values() for run in some]
    rows = [mean_row("before training", [run["scores"][0] for run in runs])]
    rows.append(mean_row("real views of the subject", [run["real"] for run in runs]))
    for way, some in found.items():
        rows.append(mean_row(f"{way}: last step", [run["scores"][-1] for run in some]))
        kept = [next(look for look in run["scores"] if look["step"] == run["step"]) for run in some]
        rows.append(mean_row(f"{way}: kept step", kept) | {"steps": [run["step"] for run in some]})
    for kind in ("LoRA", "whole UNet"):
        pairs = zip(found[f"{kind} with prior preservation"], found[f"{kind} alone"], strict=True)
        less = [
            {name: one["scores"][-1][name] - other["scores"][-1][name] for name in FIGURES} for one, other in pairs
        ]  # fmt: skip
        rows.append(mean_row(f"{kind}: with less without prior preservation", less))
    return rows


def mean_row(what: str, looks: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Mean of each figure, and its bootstrap interval as [low, high]."""
    row: dict[str, Any] = {"what": what, "runs": len(looks)}
    picks = np.random.default_rng(0).integers(len(looks), size=(2000, len(looks)))
    for name in FIGURES:
        if name in looks[0]:
            values = np.array([look[name] for look in looks])
            key = name.replace(" ", "_")
            row[key] = round(float(values.mean()), 4)
            row[f"{key}_ci"] = np.quantile(values[picks].mean(1), (0.025, 0.975)).round(4).tolist()
    return row


if __name__ == "__main__":
    main()
