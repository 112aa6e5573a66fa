"""Claim: what each way of learning without labels is worth for panels and land use, on one pool and one budget.

    python benchmarks/ssl_aerial.py --work runs/ssl_aerial       # an hour on a core; goes on where it was stopped
    python benchmarks/ssl_aerial.py --work runs/ssl_aerial --seeds 0 --table-only    # a third of it
    python benchmarks/ssl_aerial.py --work runs/small --small    # minutes: shows that it runs, writes no result

The backbone of negah/aerial-tiny, fresh, is pretrained by SimCLR, MoCo v3 (v2's SGD is for residual networks), BYOL,
DINO and DINOv2 with `negah pretrain`, each with the recipe of its paper but for what a short run forces on all of them
alike: batches of 32, one learning rate, crops of 64 px, four local ones.  All see the same pictures equally often.

The pool: Duke tiles without label that overlap with none that has one, Jiangsu cuts, UC Merced pictures below number
80 of their class (whole, or windows at their own resolution), generated scenes.  So no tile that is tested on, nor one
that overlaps with it, was seen without its label either.

Tested frozen, on windows of 104 px: AUC of panel presence on Duke, five grouped folds pooled, by kNN, a linear probe
and the attentive head; accuracy in the 21 classes of UC Merced on the pictures from number 80 on, trained on the
others.  Beside the methods stand the fresh backbone, image statistics, and the bundled supervised backbone, which was
trained on Duke labels of all folds but one and therefore is tested on that one only (`fold4`, given for all).  DINO and
DINOv2 are judged by their teacher; as in a short run it lags behind, their student is given as well.

Intervals are 95 % bootstrap ones over groups of overlapping tiles, or pictures, of the mean over the seeds; each seed
changes the fresh weights, the order of the pictures, the views and the heads.

The second part asks whether DINOv2 makes negah/aerial-tiny better: the bundled backbone, pretrained further by DINOv2
or not, gets a new head, and both are trained for a few steps on what the recipe's second stage learns from, without
its teacher.  Tested as the bundled model is, on Duke fold 4 and on the Jiangsu cuts that the recipe keeps aside.
Nothing here was chosen by a figure of a test fold.

The headline is of the linear probe, which is solved to its optimum; the mean gains of the others stand beside it.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import results
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from negah import weights
from negah.images.pool import Pool, folder_labels
from negah.nn.backbone import ViTBackbone
from negah.nn.vit import ViT
from negah.probe.attentive import AttentiveHead
from negah.probe.baseline import image_statistics
from negah.probe.detector import Detector, load
from negah.probe.evaluate import STRENGTHS
from negah.probe.knn import knn_probability
from negah.probe.learn import ProbeObjective
from negah.probe.linear import fit_linear, pooled
from negah.probe.metrics import auc, bootstrap_weights
from negah.runs.aerial.objectives import Detection
from negah.runs.aerial.recipe import ASIDE, EXACT, STRENGTH, new_detector, train
from negah.runs.aerial.score import elsewhere_windows, predict
from negah.runs.aerial.tiles import WINDOW_PX, Duke, background, chosen, duke, masked, with_panels
from negah.runs.pretrain import Method, Options, pretrain
from negah.train import Batches, checkpoint, fit

METHODS: tuple[Method, ...] = ("simclr", "mocov3", "byol", "dino", "dinov2")
TAUGHT: tuple[Method, ...] = ("dino", "dinov2")  # judged by their teacher
BUNDLED, WARM = "aerial_tiny", "dinov2_from_aerial_tiny"
AS_IT_IS = f"{BUNDLED}_as_it_is"
FOLDS, KEPT_ASIDE = 5, 80
CLAIM = "What minutes of learning without labels add to a linear probe on Duke tiles, mean of five methods"
RECIPE = Options(
    epochs=5, batch=32, size=64, side=WINDOW_PX, local=32, locals=4, lr=5e-4, overhead=True, precision="bf16"
)  # fmt: skip


@dataclass(frozen=True)
class Effort:
    """How much is done; `SMALL` is for a look at whether it runs.  most: tiles of each source."""

    most: int = 1_000_000
    scenes: int = 160
    recipe: Options = RECIPE
    head_epochs: int = 6
    steps: int = 80  # of a detector


SMALL = Effort(most=40, scenes=40, recipe=replace(RECIPE, epochs=1), head_epochs=1, steps=2)


@dataclass(frozen=True)
class Labelled:
    """What backbones are tested on: uint8 windows, labels, and which are held out when."""

    tiles: UInt8[Tensor, "duke 3 h w"]
    panels: Int[np.ndarray, " duke"]
    groups: np.ndarray
    fold: np.ndarray
    pictures: UInt8[Tensor, "merced 3 h w"]
    classes: Int[Tensor, " merced"]
    held: np.ndarray  # bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/ssl_aerial"), help="where finished parts are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--table-only", action="store_true", help="leave the detectors of the second part out")
    parser.add_argument("--small", action="store_true", help="a few tiles and steps; no result is written")
    args = parser.parse_args()
    torch.set_num_threads(1)
    effort, seeds = (SMALL, args.seeds[:1]) if args.small else (Effort(), args.seeds)
    data, work = results.data_folder(), args.work
    tiles, merced = duke(data), Pool([data / "ucmerced/images.zip"], WINDOW_PX)
    held = np.array([int(Path(name).stem[-2:]) >= KEPT_ASIDE for name in merced.names])
    labelled = Labelled(
        torch.from_numpy(tiles.labelled.images).permute(0, 3, 1, 2), tiles.labelled.labels, tiles.groups,
        tiles.folds(FOLDS), torch.stack(list(merced)), folder_labels(merced.names)[0], held,
    )  # fmt: skip
    pool = [str(unlabelled(work, data, tiles, labelled, effort.most)), f"scenes:{effort.scenes}"]

    for seed in seeds:
        for name, found in backbones(work, pool, effort.recipe, seed).items():
            once(work / f"{name}-{seed}.npz", partial(judged, found, labelled, name, seed, effort.head_epochs))
    statistics = once(work / "image_statistics.npz", partial(by_statistics, labelled))
    names = ["fresh", *METHODS, *(f"{name}_student" for name in TAUGHT), BUNDLED, WARM]
    runs = {name: [dict(np.load(work / f"{name}-{seed}.npz")) for seed in seeds] for name in names}
    rows = table(runs | {"image_statistics": [statistics]}, labelled)
    detectors = {AS_IT_IS: predictions(load("negah/aerial-tiny"), tiles, data)}
    if not args.table_only:
        found = backbones(work, pool, effort.recipe, seeds[0])
        for name in (BUNDLED, WARM):
            part = work / f"detector-{name}.npz"
            detectors[name] = once(part, partial(detected, found[name], tiles, data, effort.steps))
    rows += detector_rows(detectors, tiles)
    for row in rows:
        print(json.dumps(row))
    if args.small:
        print("A few tiles and steps: these figures show that it runs, and no result was written.")
        return
    seen = json.loads((work / f"dinov2-{seeds[0]}" / "scores.json").read_text())
    gained = [row for row in rows if row["name"] in METHODS]
    figures = ("duke_knn", "duke_linear", "duke_attentive", "merced_knn", "merced_linear")
    gains = {figure: round(float(np.mean([row[f"{figure}_over_fresh"] for row in gained])), 5) for figure in figures}
    print(results.write(
        "ssl_aerial", claim=CLAIM, rows=rows, seeds=seeds, packages=("numpy", "scikit-learn"),
        pool_tiles=seen["tiles"], epochs=effort.recipe.epochs, steps=seen["steps"], batch=effort.recipe.batch,
        images_seen=seen["steps"] * effort.recipe.batch, mean_gain_over_fresh=gains,
        headline={"value": gains["duke_linear"], "unit": "AUC more than with fresh weights", "target": None,
                  "better": "higher"},
    ))  # fmt: skip


def unlabelled(work: Path, data: Path, tiles: Duke, labelled: Labelled, most: int) -> Path:
    """The real pictures of the pool, written as files into a folder; what may be tested on is not among them."""
    folder = work / "pool"
    if not folder.is_dir():
        known = np.flatnonzero(~labelled.held)
        sources = {
            "duke": tiles.without(np.ones(len(labelled.panels), bool))[1].images,
            "jiangsu": masked(data).images[::3],
            "merced": labelled.pictures[known[::3]].permute(0, 2, 3, 1).numpy(),
            "merced-window": background(data).images[::32],
        }
        part = work / "pool.part"
        part.mkdir(parents=True, exist_ok=True)
        for name, images in sources.items():
            for i, image in enumerate(images[:most]):
                Image.fromarray(image).save(part / f"{name}-{i:04}.png")
        part.rename(folder)
    return folder


def backbones(work: Path, pool: list[str], recipe: Options, seed: int) -> dict[str, Callable[[], ViT]]:
    """Maker of every backbone of the table; a maker trains what is not trained yet."""

    def fresh() -> ViT:
        return new_detector(seed=seed).backbone.eval()

    def trained(method: Method, start: str, name: str) -> Path:
        out = work / f"{name}-{seed}"
        if not (out / "backbone.safetensors").is_file():
            made = pretrain(pool, out, method, start, replace(recipe, seed=seed))
            print(f"{name}, seed {seed}: {made.steps} steps on {made.tiles} tiles; {made.diagnosis}", flush=True)
        return out

    def own(method: Method) -> Path:
        start = work / f"fresh-{seed}.safetensors"
        weights.save_backbone(ViTBackbone(fresh()), start)
        return trained(method, str(start), method)

    def teacher(out: Path) -> ViT:
        return weights.load(out / "backbone.safetensors")

    def student(out: Path) -> ViT:
        state, at = checkpoint.load(out / "checkpoint.pt")["objective"], "backbone.vit."
        vit = fresh()
        vit.load_state_dict({key.removeprefix(at): value for key, value in state.items() if key.startswith(at)})
        return vit

    return {
        "fresh": fresh,
        **{method: lambda method=method: teacher(own(method)) for method in METHODS},
        **{f"{method}_student": lambda method=method: student(own(method)) for method in TAUGHT},
        BUNDLED: lambda: load("negah/aerial-tiny").backbone,
        WARM: lambda: teacher(trained("dinov2", "negah/aerial-tiny", WARM)),
    }


def once(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What `make` returns, from the file where it was made before."""
    if not path.is_file():
        made = make()
        part = path.with_suffix(".part.npz")
        np.savez(part, **made)  # pyright: ignore[reportArgumentType]
        part.rename(path)
        print(f"{path.stem}: done", flush=True)
    with np.load(path) as stored:
        return dict(stored)


# The table


def judged(make: Callable[[], ViT], known: Labelled, name: str, seed: int, epochs: int) -> dict[str, np.ndarray]:
    """What probes on the frozen backbone say: a probability of panels for each Duke tile, NaN where its labels were
    trained on, and whether each held-out UC Merced picture was named rightly."""
    vit = make()
    tokens = read(vit, known.tiles)
    flat, cls = pooled(tokens), vit.dim  # kNN compares CLS alone, as DINO does; the linear probe has the mean patch too
    probes = ("knn", "linear") if name.endswith("_student") else ("knn", "linear", "attentive")
    duke = {f"duke_{probe}": np.full(len(flat), np.nan) for probe in probes}
    for k in [ASIDE] if name in (BUNDLED, WARM) else range(FOLDS):
        train, test = np.flatnonzero(known.fold != k), np.flatnonzero(known.fold == k)
        y = known.panels[train]
        near = knn_probability(flat[train, :cls], torch.from_numpy(y), flat[test, :cls], classes=2)
        duke["duke_knn"][test] = near[:, 1].numpy()
        linear = fit_linear(flat[train].numpy(), y, known.groups[train], seed=seed)
        duke["duke_linear"][test] = linear.probability(flat[test].numpy())
        if "attentive" in probes:
            head = attentive(vit, tokens, known.panels, train, seed=seed, epochs=epochs)
            duke["duke_attentive"][test] = np.concatenate([head.probability(part) for part in tokens[test].split(64)])
    seen = torch.cat([pooled(read(vit, part)) for part in known.pictures.split(256)])
    train, held, labels = ~known.held, known.held, known.classes
    near = knn_probability(seen[train, :cls], labels[train], seen[held, :cls]).argmax(1)
    right = labels[held].numpy()
    return duke | {
        "merced_knn": near.numpy() == right,
        "merced_linear": land_use(seen[train].numpy(), labels[train].numpy(), seen[held].numpy()) == right,
    }


def by_statistics(known: Labelled) -> dict[str, np.ndarray]:
    """The same by a linear probe on image statistics."""
    features, p = image_statistics(known.tiles.permute(0, 2, 3, 1).numpy()), np.zeros(len(known.panels))
    for k in range(FOLDS):
        train, test = known.fold != k, known.fold == k
        p[test] = fit_linear(features[train], known.panels[train], known.groups[train]).probability(features[test])
    seen, labels = image_statistics(known.pictures.permute(0, 2, 3, 1).numpy()), known.classes.numpy()
    named = land_use(seen[~known.held], labels[~known.held], seen[known.held])
    return {"duke_linear": p, "merced_linear": named == labels[known.held]}


def land_use(train: Float[np.ndarray, "train d"], labels: np.ndarray, test: Float[np.ndarray, "test d"]) -> np.ndarray:
    """Classes that a linear probe gives, its l2 chosen as `linear_accuracy` does."""
    return fit_linear(train, labels, strengths=STRENGTHS, inner_folds=5, held_out=1).probability(test).argmax(1)


@torch.no_grad()
def read(vit: ViT, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n token dim"]:
    """Tokens, in half precision."""
    parts = []
    for part in images.split(64):
        with torch.autocast("cpu", torch.bfloat16):
            tokens = vit.tokens(part)
        parts.append(tokens.half())
    return torch.cat(parts)


def attentive(
    vit: ViT, tokens: Float[Tensor, "n token dim"], labels: Int[np.ndarray, " n"], rows: np.ndarray, *, seed: int,
    epochs: int,
) -> ProbeObjective:  # fmt: skip
    """The attentive head on tokens of some rows: `negah probe train`'s, in bfloat16, on upright views alone."""
    y, batch = torch.from_numpy(labels).float(), 32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        objective = ProbeObjective(AttentiveHead(vit.dim, heads=vit.heads))

    def collate(items, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        at = torch.as_tensor(list(items))
        return tokens[at], y[at]

    steps = max(1, epochs * len(rows) // batch)
    batches = Batches(rows.tolist(), batch, seed=seed, collate=collate)
    fit(objective, batches, steps=steps, lr=1e-3, weight_decay=0.05, warmup=max(1, steps // 20), clip=1.0,
        precision="bf16", seed=seed)  # fmt: skip
    return objective.eval()


def table(runs: dict[str, list[dict[str, np.ndarray]]], known: Labelled) -> list[dict]:
    """A row for each backbone: figures with intervals, each seed's, and the difference from what it is held against."""
    rows, values, drawn = [], {}, {}
    aside = known.fold == ASIDE
    for name, seeds in runs.items():
        row: dict = {"name": name, "seeds": len(seeds)}
        rival = BUNDLED if name == WARM else "fresh"
        for figure in seeds[0]:
            said = [run[figure] for run in seeds]
            if figure.startswith("merced"):
                parts = {figure: resampled(said, share, np.arange(len(said[0])))}
            else:
                near = partial(resampled, [p[aside] for p in said], partial(auc, known.panels[aside]))
                parts = {f"{figure}_fold4": near(known.groups[aside])}
                if not np.isnan(said[0]).any():
                    parts[figure] = resampled(said, partial(auc, known.panels), known.groups)
            for key, (each, draws) in parts.items():
                values[name, key], drawn[name, key] = float(np.mean(each)), draws
                row |= spread(key, values[name, key], draws) | {f"{key}_seeds": [round(v, 5) for v in each]}
                if name not in (rival, BUNDLED) and (rival, key) in drawn:
                    gain = values[name, key] - values[rival, key]
                    row |= spread(f"{key}_over_{rival}", gain, draws - drawn[rival, key])
        rows.append(row)
    return rows


def share(right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Of what was named rightly."""
    return (weights * right).sum(-1) / weights.sum(-1)


def resampled(
    said: Sequence[np.ndarray], score: Callable[[np.ndarray, np.ndarray], np.ndarray], groups: np.ndarray
) -> tuple[list[float], Float[np.ndarray, " resample"]]:
    """Score of what each seed said, and the mean of these in resamples of the groups, the same ones at every call."""
    member = np.unique(groups, return_inverse=True)[1]
    draws = list(bootstrap_weights(member, 1000, torch.Generator().manual_seed(0)))
    each = [float(score(p, np.ones(len(p)))) for p in said]
    return each, np.mean([np.concatenate([score(p, w) for w in draws]) for p in said], axis=0)


def spread(key: str, value: float, draws: Float[np.ndarray, " resample"]) -> dict[str, float]:
    low, high = np.quantile(draws, (0.025, 0.975))
    return {key: round(value, 5), f"{key}_low": round(float(low), 5), f"{key}_high": round(float(high), 5)}


# Detectors


def detected(make: Callable[[], ViT], tiles: Duke, data: Path, steps: int) -> dict[str, np.ndarray]:
    """A detector on this backbone, all of it trained, and what it says of the tiles kept aside."""
    labelled, _ = tiles.without(tiles.folds(FOLDS) == ASIDE)
    sources = [
        replace(labelled, share=0.65),
        replace(with_panels(labelled), share=0.1),
        replace(masked(data), share=0.1),
        replace(background(data), share=0.15),
    ]
    detector = new_detector()
    detector.backbone.load_state_dict(make().state_dict())
    trained = train(Detection(detector, momentum=0.98), sources, steps=steps, lr=1e-3, strength=STRENGTH, exact=EXACT)
    return predictions(trained, tiles, data)


def predictions(detector: Detector, tiles: Duke, data: Path) -> dict[str, np.ndarray]:
    windows = elsewhere_windows(data)
    aside = chosen(tiles.labelled, tiles.folds(FOLDS) == ASIDE).images
    return {"duke_fold4": predict(detector, aside)} | {
        name: predict(detector, windows[name]) for name in ("jiangsu_with_panels", "jiangsu_without_panels")
    }


def detector_rows(found: dict[str, dict[str, np.ndarray]], tiles: Duke) -> list[dict]:
    """AUC of each detector where nothing was trained or chosen, and the difference from the bundled model as it is."""
    aside = tiles.folds(FOLDS) == ASIDE
    at_groups = partial(resampled, score=partial(auc, tiles.labelled.labels[aside]), groups=tiles.groups[aside])
    (bundled,), rival = at_groups([found[AS_IT_IS]["duke_fold4"]])
    rows = []
    for name, said in found.items():
        (value,), draws = at_groups([said["duke_fold4"]])
        row = {"name": f"detector_{name}"} | spread("duke_fold4", value, draws)
        if name != AS_IT_IS:
            row |= spread("duke_fold4_over_bundled", value - bundled, draws - rival)
        panels, none = said["jiangsu_with_panels"], said["jiangsu_without_panels"]
        jiangsu = auc(np.repeat([1, 0], [len(panels), len(none)]), np.concatenate([panels, none]))
        rows.append(row | {"jiangsu": round(float(jiangsu), 5)})
    return rows


if __name__ == "__main__":
    main()
