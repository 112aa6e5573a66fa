"""Claim: What CLIP, CoCa and SimVLM find and say of aerial pictures they have not met, beside copying the nearest one

    pip install --no-deps pycocoevalcap
    python benchmarks/describe_ucmerced.py --work runs/describe

UC Merced with its five captions a picture, in the published split of PE-RSITR: 1,890 pictures to learn from, 210 to be
asked about.  Each model is trained by `negah pretrain` with the same pictures, order, vocabulary, size and number of
epochs; clip and coca begin with the backbone of negah/aerial-tiny, which has seen the pictures (not their captions),
simvlm with a fresh stem, since no trained one is at hand.  Nothing was tuned on the 210.

Scored by what is said: a text that several pictures have is right for each, a written caption is right ("exact") when
it is one of the picture's own five.  BLEU-4 and CIDEr by pycocoevalcap, in lower case without punctuation.  Classes
held out: clip and coca are trained again without the pictures of four classes, and asked which of these four a picture
of them shows.  SimVLM has no vectors: a text fits a picture as well as the mean log probability of its tokens says.
Baselines: the caption of the training picture that is nearest by the backbone's features; one person's
caption scored against the other four.  negah/describe-tiny was trained on 1,480 of the 1,890 pictures, see its card;
rows with a query say how well its cosines tell pictures of which a person says so, by a word in a caption, from others.
Intervals: bootstrap over pictures (over texts for text-to-image), 95 %.
"""

import argparse
import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import data_folder, write
from sklearn.metrics import roc_auc_score
from torch import Tensor

from negah.language import CLIP, SimVLM, Tokenizer
from negah.language.captions import Captions
from negah.language.layouts import Model
from negah.language.likelihood import likelihoods
from negah.language.load import load_both
from negah.language.retrieval import Index
from negah.language.score import captions, texts_of, vectors
from negah.language.zeroshot import AERIAL, prototypes
from negah.runs.pairs import Method, Options, pretrain
from negah.weights import bundled, load

SPLIT, SAMPLES, SIZE, EPOCHS = "split_pe_rsitr", 1000, 64, 25
HELD_OUT = ("airplane", "forest", "harbor", "tenniscourt")
BACKBONES: dict[Method, str] = {"clip": "negah/aerial-tiny", "coca": "negah/aerial-tiny", "simvlm": "resnet10-cifar"}
CLASSES = {
    "agricultural": "farmland", "airplane": "airplane", "baseballdiamond": "baseball diamond", "beach": "beach",
    "buildings": "building", "chaparral": "chaparral", "denseresidential": "dense residential area",
    "forest": "forest", "freeway": "freeway", "golfcourse": "golf course", "harbor": "harbor",
    "intersection": "road intersection", "mediumresidential": "residential area",
    "mobilehomepark": "mobile home park", "overpass": "overpass", "parkinglot": "parking lot", "river": "river",
    "runway": "runway", "sparseresidential": "house in a sparse residential area", "storagetanks": "storage tank",
    "tenniscourt": "tennis court",
}  # fmt: skip
QUERIES = {  # and what people write where it is to be seen
    "swimming pool": r"\bpools?\b", "tennis court": r"\btennis\b", "airplane": r"\b(air)?planes?\b",
    "boats": r"\bboats?\b",
    "cars": r"\bcars?\b", "houses": r"\b(houses?|villas?)\b", "water": r"\b(water|river|sea|pond)\b",
}  # fmt: skip
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/describe"), help="where trained models are kept")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="measure, and write nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = data_folder() / "ucmerced" / "captions.csv"
    some = partly(table, args.work)
    rows = [*baselines(table)]
    for seed in range(args.seeds):
        for method in BACKBONES:
            model, tokens = trained(method, f"{table}:{SPLIT}=train", args.work / f"{method}-{seed}", seed)
            row: Row = {"model": method, "seed": seed, **scored(model, tokens, Captions.read(test(table), SIZE))}
            if method != "simvlm" and seed == 0:
                model, tokens = trained(method, str(some), args.work / f"{method}-without", seed)
                row |= unmet(model, tokens, Captions.read(test(table), SIZE))
            rows.append(told(row))
    if "negah/describe-tiny" in bundled():
        model, tokens = load_both("negah/describe-tiny")
        pairs = Captions.read(test(table), model.size)
        rows.append(told({"model": "describe-tiny", **scored(model, tokens, pairs)}))
        rows += [told(row) for row in queries(model, tokens, pairs)]
    if args.dry:
        return
    best = max((row for row in rows if row["model"] == "coca"), key=lambda row: -row["seed"])
    copied = next(row for row in rows if row["model"] == "copied")
    unit = f"CIDEr of CoCa's captions (copying the nearest picture's: {copied['cider']:.2f})"
    write(
        "describe_ucmerced", claim=str(__doc__).splitlines()[0].removeprefix("Claim: "), rows=rows,
        headline={"value": best["cider"], "unit": unit, "target": None, "better": "higher"},
        seeds=list(range(args.seeds)), packages=("pycocoevalcap", "tokenizers"), size_px=SIZE, epochs=EPOCHS,
    )  # fmt: skip


def told(row: Row) -> Row:
    print({name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}, flush=True)
    return row


def test(table: Path) -> str:
    return f"{table}:{SPLIT}=test"


def partly(table: Path, work: Path) -> Path:
    """A caption file of the training part without the classes that are held out."""
    work.mkdir(parents=True, exist_ok=True)
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    path, pictures = work / "without.csv", work / "images.zip"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row for row in rows if row[SPLIT] == "train" and row["class"] not in HELD_OUT)
    if not pictures.exists():
        pictures.symlink_to((table.parent / "images.zip").resolve())
    return path


def trained(method: Method, data: str, out: Path, seed: int) -> tuple[Model, Tokenizer]:
    options = Options(
        epochs=EPOCHS, batch=64, size=SIZE, vocabulary=1024, width=128, layers=4, overhead=True, precision="bf16",
        seed=seed,
    )  # fmt: skip
    found = pretrain([data], out, method, BACKBONES[method], options, say=print)
    return load_both(str(found.model))


def scored(model: Model, tokens: Tokenizer, pairs: Captions) -> Row:
    """Retrieval both ways, captions, and which of the 21 classes; captions of training named the classes."""
    found: Row = {}
    model = model.eval()
    with torch.inference_mode():
        right = pairs.right()
        if isinstance(model, SimVLM):
            fit, named = fitting(model, tokens, pairs.images, pairs.texts), of_classes(model, tokens, pairs.images)
        else:
            images, texts = vectors(model, pairs.images), texts_of(model, tokens, pairs.texts)
            classes = prototypes(model, tokens, [CLASSES[name] for name in CLASSES], AERIAL)
            fit, named = images @ texts.T, images @ classes.T
        for name, scores, answers in (("text_to_image", fit.T, right), ("image_to_text", fit, right.T)):
            hit = answers.gather(1, scores.argsort(dim=1, descending=True, stable=True))
            for k in (1, 5, 10):
                found |= interval(f"{name}_{k}", hit[:, :k].any(1))
        found |= interval("classes_21", told_apart(named, pairs, list(CLASSES)))
        if not isinstance(model, CLIP):
            written = list(captions(model, tokens, pairs.images))
            found |= of_captions(written, [[pairs.texts[int(n)] for n in its] for its in pairs.said])
    return found


def fitting(model: SimVLM, tokens: Tokenizer, images: Any, texts: Sequence[str]) -> Tensor:
    """Mean log probability of the tokens of each text [image, text]: the sum would favour short ones."""
    ids = tokens(texts)
    count = torch.tensor([int((row == tokens.end).int().argmax()) for row in ids])  # of those behind the start
    return likelihoods(model, images, ids) / count


def of_classes(model: SimVLM, tokens: Tokenizer, images: Any) -> Tensor:
    """The same of the classes [image, class], each the mean over its sentences."""
    sentences = [form.replace("{}", CLASSES[name]) for name in CLASSES for form in AERIAL]
    return fitting(model, tokens, images, sentences).unflatten(1, (len(CLASSES), len(AERIAL))).mean(2)


def unmet(model: Model, tokens: Tokenizer, pairs: Captions) -> Row:
    """Which of the classes that it has never met, by their names; chance is one in four."""
    assert not isinstance(model, SimVLM)
    of = [i for i, name in enumerate(pairs.names) if name.split("/")[0] in HELD_OUT]
    some = Captions.of(
        [pairs.images[i] for i in of], [pairs.names[i] for i in of],
        [[pairs.texts[int(n)] for n in pairs.said[i]] for i in of],
    )  # fmt: skip
    with torch.inference_mode():
        classes = prototypes(model, tokens, [CLASSES[name] for name in HELD_OUT], AERIAL)
        return interval("held_out_classes_4", told_apart(vectors(model, some.images) @ classes.T, some, HELD_OUT))


def queries(model: Model, tokens: Tokenizer, pairs: Captions) -> list[Row]:
    """How well cosines with words tell pictures of which people say so from others: the area under the ROC curve."""
    assert not isinstance(model, SimVLM)
    with torch.inference_mode():
        cosines = (texts_of(model, tokens, list(QUERIES)) @ vectors(model, pairs.images).T).numpy()
    found = []
    for query, scores in zip(QUERIES, cosines):
        said = re.compile(QUERIES[query])
        truth = np.array([any(said.search(pairs.texts[int(n)].lower()) for n in its) for its in pairs.said])

        def auc(rows: Any, scores: Any = scores, truth: Any = truth) -> float:
            return float(roc_auc_score(truth[rows], scores[rows])) if 0 < truth[rows].sum() < len(rows) else np.nan

        low, high = bounds(auc, len(truth))
        found.append({
            "model": "asked", "query": query, "pictures": int(truth.sum()),
            "auc": auc(np.arange(len(truth))), "auc_low": low, "auc_high": high,
        })  # fmt: skip
    return found


def told_apart(scores: Tensor, pairs: Captions, classes: Sequence[str]) -> Tensor:
    """For each picture whether its class is the one of `classes` that scores highest."""
    return torch.tensor([classes[int(at)] == name.split("/")[0] for at, name in zip(scores.argmax(1), pairs.names)])


def of_captions(written: Sequence[str], own: Sequence[Sequence[str]]) -> Row:
    """BLEU-4, CIDEr and the share of captions that are one of the picture's own."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.cider.cider import Cider

    said, refs = [bare(text) for text in written], [[bare(text) for text in its] for its in own]
    _, each = Cider().compute_score(dict(enumerate(refs)), {i: [text] for i, text in enumerate(said)})
    exact = torch.tensor([text in its for text, its in zip(said, refs)])

    def bleu(rows: Sequence[int]) -> float:
        scorer = BleuScorer(n=4)
        for i in rows:
            scorer += (said[i], refs[i])
        return scorer.compute_score(option="closest", verbose=0)[0][3]

    found = interval("exact", exact) | interval("cider", torch.tensor(each))
    low, high = bounds(bleu, len(said), samples=100)
    return found | {"bleu4": bleu(range(len(said))), "bleu4_low": low, "bleu4_high": high}


def bare(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9']+", text.lower()))


def interval(name: str, values: Tensor) -> Row:
    """Mean of a value for each item, and the bootstrap's bounds."""
    x = values.double().numpy()
    low, high = bounds(lambda rows: x[rows].mean(), len(x))
    return {name: float(x.mean()), f"{name}_low": low, f"{name}_high": high}


def bounds(score: Callable[[Any], float], count: int, samples: int = SAMPLES) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    found = [score(rng.integers(0, count, count)) for _ in range(samples)]
    return float(np.nanpercentile(found, 2.5)), float(np.nanpercentile(found, 97.5))


def baselines(table: Path) -> list[Row]:
    known, asked = (Captions.read(f"{table}:{SPLIT}={split}", 104) for split in ("train", "test"))
    backbone = load("negah/aerial-tiny")

    def features(pairs: Captions) -> Tensor:
        parts = torch.arange(len(pairs)).split(128)
        with torch.inference_mode():
            seen = (backbone(torch.stack([pairs.images[int(i)] for i in part])).patches.mean(1) for part in parts)
            return torch.cat(list(seen))

    x, y = features(known), features(asked)
    mean, std = x.mean(0), x.std(0)
    index = Index.of(known.names, (x - mean) / std)
    nearest = index.search((y - mean) / std, best=1).numbers[:, 0]
    copied = [known.texts[int(known.said[int(i)][0])] for i in nearest]
    own = [[asked.texts[int(n)] for n in its] for its in asked.said]
    return [
        told({"model": "copied", **of_captions(copied, own)}),
        told({"model": "person", **of_captions([o[0] for o in own], [o[1:] for o in own])}),
    ]


if __name__ == "__main__":
    main()
