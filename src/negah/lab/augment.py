"""Do generated pictures help to find a panel type that was seen five times?

A text-to-image model is personalised on the five by DreamBooth (Ruiz et al. 2023, arXiv:2208.12242), draws more of the
type, and these join the training of a detector.  What a gain would have to be told from: more weight on the type (the
five repeated), and pictures of panels as such (by the model before it saw the five).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from negah.diffusion.generate import generate
from negah.diffusion.load import load
from negah.errors import InputError
from negah.images.pool import Pool, folder_labels
from negah.images.scenes.words import Composition, described
from negah.lab.page import Page, Panel, figure
from negah.lab.training import Effort
from negah.nn.vit import ViT
from negah.probe.detector import load as load_detector
from negah.probe.features import turned
from negah.probe.linear import fit_linear, pooled
from negah.probe.metrics import auc, average_precision, bootstrap_weights
from negah.runs import IMAGINER
from negah.runs.dreambooth import dreambooth
from negah.runs.dreambooth_options import Options

RARE, COMMON, NONE = "rare", "common", "none"
FIVE, DRAWN, SHOWN = 5, 60, 8
TOKEN, CLASS_WORD = "<rare>", "solar array"
VIEWS = 8  # quarter turns, and these mirrored
COUNTS = {"train": {RARE: FIVE, COMMON: 60, NONE: 120}, "test": {RARE: 80, COMMON: 60, NONE: 160}}
TERRACOTTA = (178.0, 84.0, 52.0)  # modules made to look like roof tiles
WITHOUT, REPEATED, CLASS, PERSONAL = "five alone", "five repeated", "class drawn", "DreamBooth drawn"
WAYS = (WITHOUT, REPEATED, CLASS, PERSONAL)


@dataclass(frozen=True)
class Tiles:
    """Pictures by class, each [n, 3, side, side]; of the rare ones, the training has only five."""

    train: dict[str, UInt8[Tensor, "_ 3 side side"]]
    test: dict[str, UInt8[Tensor, "_ 3 side side"]]


def run(out: Path, effort: Effort) -> Page:
    """All panels, and the DreamBooth runs, into the folder `out`."""
    drawer = load(IMAGINER)
    tiles = of_data(effort.data, drawer.size) if effort.data else generated(drawer.size)
    settings = effort.settings() | {"data": ", ".join(effort.data) or "generated houses, rare panels of terracotta"}
    page = Page("augment", "Do generated pictures help to find what is rare?", out, settings)
    detector = load_detector("negah/aerial-tiny")
    judge = Features(detector.backbone, detector.info.window_px)
    test = {name: judge(images) for name, images in tiles.test.items()}
    results: list[dict[str, Any]] = []
    first: dict[str, Tensor] = {}
    for seed in range(effort.seeds):
        five = chosen(tiles.train[RARE], seed)
        drawn = {CLASS: sentences(None, seed), PERSONAL: sentences(TOKEN, seed)}
        lora = personalised(five, out / f"dreambooth-{seed}", effort, seed)
        pictures = {
            CLASS: draw(load(IMAGINER), drawn[CLASS], seed),
            PERSONAL: draw(load(IMAGINER, lora=lora), drawn[PERSONAL], seed),
        }
        first = first or {"five": five, **pictures}
        for way in WAYS:
            more = {WITHOUT: five[:0], REPEATED: five.repeat(DRAWN // FIVE, 1, 1, 1)}.get(way, pictures.get(way))
            assert more is not None
            row = trained(judge, tiles, torch.cat([five, more]), test, seed)
            results.append({"setting": way, "seed": seed, **row})
            effort.say(f"{way}, seed {seed}: rare {row['rare AUC']:.3f}, common {row['common AUC']:.3f}")
    page.add(_detection(results, tiles))
    page.add(_pictures(first))
    return page


# Pictures


def generated(side: int) -> Tiles:
    """Houses with no panels, with panels as they are, and with such as are red as tiles."""
    gsd_m = 30.5 / side

    def one(kind: str, number: int, part: str) -> Tensor:
        seed = 2 * number + (part == "test")
        rng = Random(f"{kind} {seed}")
        what = Composition(
            rng.choice(("one", "two")), rng.choice(("red", "grey", "white")), "none" if kind == NONE else "one",
            rng.choice(("none", "one")), rng.choice(("none", "few", "many")), rng.choice(("none", "one")),
        )  # fmt: skip
        scene = described(side, gsd_m, seed=seed, what=what)
        image = scene.image.astype(np.float32)
        if kind == RARE:
            cover = scene.masks["array"][..., None]
            light = image.mean(2, keepdims=True) / max(1.0, float((image * cover).sum() / (3 * cover.sum())))
            image = image * (1 - cover) + cover * np.array(TERRACOTTA, np.float32) * (0.5 + 0.5 * light)
        return torch.from_numpy(image.round().clip(0, 255).astype(np.uint8)).permute(2, 0, 1)

    parts = {
        part: {kind: torch.stack([one(kind, number, part) for number in range(n)]) for kind, n in counts.items()}
        for part, counts in COUNTS.items()
    }
    return Tiles(**parts)


def of_data(paths: Sequence[str], side: int) -> Tiles:
    """Folders or archives whose pictures lie below train or test, and there below rare, common or none.

    Raises InputError where one of these has too few.
    """
    pool = Pool([Path(path) for path in paths], side)
    labels, classes = folder_labels(pool.names)
    if sorted(classes) != sorted((RARE, COMMON, NONE)):
        raise InputError(f"augment wants folders named rare, common and none; these are {', '.join(classes)}")
    is_test = ["test" in Path(name).parts for name in pool.names]
    parts: dict[str, dict[str, Tensor]] = {"train": {}, "test": {}}
    for (part, found), kind in product(parts.items(), (RARE, COMMON, NONE)):
        wanted = [
            i for i, label in enumerate(labels.tolist())
            if classes[label] == kind and is_test[i] == (part == "test")
        ]  # fmt: skip
        least = FIVE if kind == RARE and part == "train" else 2
        if len(wanted) < least:
            raise InputError(f"{len(wanted)} pictures of {part}/{kind}: give {least} or more")
        found[kind] = torch.stack([pool[i] for i in wanted])
    return Tiles(**parts)


def chosen(rare: UInt8[Tensor, "n 3 side side"], seed: int) -> UInt8[Tensor, "5 3 side side"]:
    return rare[torch.randperm(len(rare), generator=torch.Generator().manual_seed(seed))[:FIVE]]


def sentences(token: str | None, seed: int) -> list[str]:
    """As many as are drawn, in the words of the bundled model, of all kinds of houses."""
    rng, named = Random(seed), CLASS_WORD if token is None else f"{token} {CLASS_WORD}"
    return [
        f"{rng.choice(('one house with a {} roof', 'two houses with {} roofs')).format(rng.choice(('red', 'grey')))}, "
        f"one {named}, no swimming pool, {rng.choice(('no trees', 'a few trees', 'many trees'))}, "
        f"{rng.choice(('no street', 'a street'))}"
        for _ in range(DRAWN)
    ]


def personalised(five: UInt8[Tensor, "5 3 side side"], out: Path, effort: Effort, seed: int) -> Path:
    """The LoRA that DreamBooth makes of the five."""
    photos = out / "five"
    photos.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(five):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(photos / f"{number}.png")
    options = Options(
        class_word=CLASS_WORD, token=TOKEN, steps=effort.steps, every=max(1, effort.steps // 2), lr=5e-4, samples=2,
        class_images=min(100, 2 * effort.steps), seed=seed,
    )  # fmt: skip
    return dreambooth([photos], out / "run", IMAGINER, options, say=effort.say).model


def draw(model: Any, prompts: Sequence[str], seed: int) -> UInt8[Tensor, "n 3 side side"]:
    seeds = [1000 * (seed + 1) + number for number in range(len(prompts))]
    images = generate(model.pack(), prompts, seeds, batch=16)
    return (255 * images).round().to(torch.uint8)


# The detector


class Features:
    """CLS and mean patch of a frozen backbone."""

    def __init__(self, backbone: ViT, side: int):
        self.backbone, self.side = backbone.eval(), side // backbone.patch * backbone.patch

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n width"]:
        size = (self.side, self.side)
        parts = [F.interpolate(some.float(), size, mode="bicubic", antialias=True) for some in images.split(32)]
        return torch.cat([pooled(self.backbone.tokens(part.clamp(0, 255).round().to(torch.uint8))) for part in parts])


def trained(
    judge: Features, tiles: Tiles, rare: UInt8[Tensor, "n 3 side side"], test: Mapping[str, Tensor], seed: int
) -> dict[str, float]:
    """Areas under the curves of a linear detector on frozen features, of rare and of common panels against none.

    Every picture is seen in each of its eight views, which stay together where its strength is chosen.
    """
    kinds = ((rare, 1), (tiles.train[COMMON], 1), (tiles.train[NONE], 0))
    features = [judge(torch.cat([turned(images, view) for view in range(VIEWS)])) for images, _ in kinds]
    labels = np.concatenate([np.full(len(part), label) for part, (_, label) in zip(features, kinds)])
    groups, begun = [], 0
    for images, _ in kinds:
        groups.append(np.tile(np.arange(begun, begun + len(images)), VIEWS))
        begun += len(images)
    probe = fit_linear(torch.cat(features).numpy(), labels, np.concatenate(groups), seed=seed)
    row = {}
    for kind in (RARE, COMMON):
        both = torch.cat([test[kind], test[NONE]]).numpy()
        truth = np.r_[np.ones(len(test[kind])), np.zeros(len(test[NONE]))]
        probability = probe.probability(both)
        row[f"{kind} AUC"] = float(auc(truth, probability))
        row[f"{kind} AP"] = float(average_precision(truth, probability))
        draws = bootstrap_weights(np.arange(len(truth)), 500, torch.Generator().manual_seed(0))
        areas = np.concatenate([auc(truth, probability, weights) for weights in draws])
        low, high = np.nanquantile(areas, (0.025, 0.975))
        row |= {f"{kind} low": float(low), f"{kind} high": float(high)}
    return row


# The page


def told(results: Sequence[Mapping[str, Any]]) -> str:
    """DreamBooth's pictures against each other way, by differences within seeds."""
    by = {way: [row["rare AUC"] for row in results if row["setting"] == way] for way in WAYS}
    common = {way: mean(row["common AUC"] for row in results if row["setting"] == way) for way in WAYS}
    parts = [f"Of the rare type against none the area under the curve is {mean(by[WITHOUT]):.3f} with the five alone"]
    for way in WAYS[1:]:
        gains = [a - b for a, b in zip(by[way], by[WITHOUT])]
        same = len(gains) > 1 and abs(mean(gains)) <= 2 * stdev(gains) / len(gains) ** 0.5
        word = "no different" if same else f"{mean(gains):+.3f}"
        parts.append(f"with {way} {mean(by[way]):.3f} ({word}{', one seed' if len(gains) == 1 else ''})")
    better = mean(by[PERSONAL]) > max(mean(by[REPEATED]), mean(by[CLASS]), mean(by[WITHOUT]))
    ends = (
        "is the best of the four"
        if better
        else f"is NOT the best of the four: {max(WAYS, key=lambda w: mean(by[w]))} is"
    )
    return (
        f"{', '.join(parts)}. {PERSONAL[0].upper() + PERSONAL[1:]} {ends}. Common panels: "
        f"{common[WITHOUT]:.3f} before, {common[PERSONAL]:.3f} with them."
    )  # fmt: skip


def _detection(results: Sequence[Mapping[str, Any]], tiles: Tiles) -> Panel:
    plot, axes = figure(2)
    for axis, kind in zip(axes, (RARE, COMMON)):
        for place, way in enumerate(WAYS):
            for row in (row for row in results if row["setting"] == way):
                x = place + 0.12 * (row["seed"] - (len(results) / len(WAYS) - 1) / 2)
                low, high = row[f"{kind} AUC"] - row[f"{kind} low"], row[f"{kind} high"] - row[f"{kind} AUC"]
                axis.errorbar(x, row[f"{kind} AUC"], yerr=[[max(0, low)], [max(0, high)]], fmt="o", color=f"C{place}")
        axis.set_xticks(range(len(WAYS)), [way.replace(" ", "\n") for way in WAYS], fontsize=8)
        axis.set(title=f"{kind} panels against none, AUC")
    n = {part: ", ".join(f"{len(images)} {kind}" for kind, images in of.items()) for part, of in
         (("train", {**tiles.train, RARE: tiles.train[RARE][:FIVE]}), ("test", tiles.test))}  # fmt: skip
    return Panel(
        name="detection", title="Five pictures of a type, and sixty more that were drawn",
        asks="A linear detector on frozen features of negah/aerial-tiny learns panels from so many pictures, each in "
        f"{VIEWS} views: {n['train']}. To the five rare ones come: nothing; the five again, {DRAWN // FIVE} times; "
        f"{DRAWN} pictures that negah/imagine-tiny draws of any solar array; {DRAWN} that it draws after DreamBooth (a "
        f"LoRA) on the five. Measured on held-out pictures ({n['test']}): area under the ROC curve, a point for each "
        "seed, which draws another five, with a bootstrap interval over pictures. If drawing helps, the last way is "
        "above the other three.",
        found=told(results), rows=[dict(row) for row in results], figure=plot, code=[dreambooth, generate, fit_linear],
    )  # fmt: skip


def _pictures(pictures: Mapping[str, UInt8[Tensor, "n 3 side side"]]) -> Panel:
    plot, _ = figure(1)
    plot.clear()
    plot.set_size_inches(1.1 * SHOWN, 1.25 * len(pictures))
    for line, (name, images) in enumerate(pictures.items()):
        for column in range(min(SHOWN, len(images))):
            axis = plot.add_subplot(len(pictures), SHOWN, line * SHOWN + column + 1)
            axis.imshow(images[column].permute(1, 2, 0).numpy())
            axis.axis("off")
            if column == 0:
                axis.set_title(name, fontsize=8, loc="left")
    return Panel(
        name="pictures", title="What was drawn",
        asks="The five of seed 0, and the first pictures drawn before and after DreamBooth, of the same sentences but "
        "for the new word, and the same seeds.",
        found="To be looked at; nothing is measured here.",
        rows=[{"setting": name, "pictures": len(images)} for name, images in pictures.items()], figure=plot,
        code=[generate],
    )  # fmt: skip
