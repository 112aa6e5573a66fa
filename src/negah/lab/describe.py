"""What do CLIP, SimVLM and CoCa have in common, and what sets them apart?

Radford et al. 2021 (arXiv:2103.00020), Wang et al. 2021 (arXiv:2108.10904), Yu et al. 2022 (arXiv:2205.01917).  The
three are trained from fresh weights on the same pictures and captions, in the same number of steps, and asked the same:
to find pictures and words, to classify without examples, to caption.  Then two similarities, which are those of their
losses (CLIP's contrast is CoCa's, SimVLM's next token is CoCa's), and differences: what a search costs, what sees what,
and what order of words is to each.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from negah.images.scenes.words import ATTRIBUTES, PHRASES, told
from negah.lab.conclusions import against
from negah.lab.costs import costs
from negah.lab.describers import (
    METHODS,
    NAMED,
    SIDE,
    TRAIN,
    WAYS,
    Pairs,
    Trio,
    first_texts,
    fit_of,
    fits,
    own_texts,
    right,
    trained,
)  # fmt: skip
from negah.lab.page import Page, Panel, figure
from negah.lab.training import Effort, over_seeds
from negah.language import CLIP, CoCa, SimVLM
from negah.language.captions import Captions
from negah.language.likelihood import likelihoods, seen, surprise
from negah.language.score import captions, plain, texts_of, vectors
from negah.language.zeroshot import prototypes
from negah.losses.caption import caption_loss
from negah.losses.contrast import contrast
from negah.runs.pairs import Method

BEST = (1, 5)
SIZES = (16, 64, 256)  # pictures that a query is compared with
WRITERS: tuple[Method, ...] = ("coca", "simvlm")
CHOOSES = {
    way: way.replace(", vectors", " chooses by vector").replace(", likelihood", " chooses by likelihood")
    for way in WAYS
}
TOLD_APART = 1e-5  # of its length: a vector that moved less did not move
Row = dict[str, Any]
Fit = dict[str, Float[Tensor, "image text"]]  # how well each text fits each picture, by each of WAYS


def run(out: Path, effort: Effort) -> Page:
    """All panels into the folder `out`."""
    settings = effort.settings() | {"pictures": f"{SIDE} px"}
    if not effort.data:
        settings["data"] = f"{TRAIN} generated scenes"
    page = Page("describe", "What do CLIP, SimVLM and CoCa share, and what sets them apart?", out, settings)
    pairs = Pairs.of(effort)
    trios = [trained(pairs, effort, seed) for seed in range(effort.seeds)]
    settings["trained"] = "; ".join(
        f"{name} {sum(p.numel() for p in trios[0].models[method].parameters()) / 1e6:.1f} million weights, "
        f"{mean(trio.seconds[method] for trio in trios):.0f} s"
        for method, name in METHODS.items()
    )
    fit = [{way: fits(trio, way, pairs.test.images, pairs.choices) for way in WAYS} for trio in trios]
    page.add(retrieval(pairs, fit))
    page.add(written(pairs, trios, fit))
    if pairs.unseen is not None:
        page.add(zero_shot(pairs, trios))
    page.add(same_contrast(pairs, fit))
    page.add(same_words(pairs, trios))
    page.add(cost(pairs, trios[0], effort))
    page.add(sight(pairs, trios))
    page.add(order(pairs, trios))
    return page


# Side by side


def retrieval(pairs: Pairs, fit: Sequence[Fit]) -> Panel:
    """Pictures by words and words by pictures."""
    answers = right(pairs.test, pairs.choices)
    asked = answers.any(0)  # texts that some picture answers
    rows: list[Row] = []
    for way in WAYS:
        runs = []
        for scores in (each[way] for each in fit):
            to_image, to_text = found(scores.T[asked], answers.T[asked]), found(scores, answers)
            runs.append(
                {f"text to image, first {k}": share for k, share in to_image.items()}
                | {f"image to text, first {k}": share for k, share in to_text.items()}
            )
        rows.append(over_seeds(way, runs))
    by_chance = {
        "text to image": answers.T[asked].float().mean().item(),
        "image to text": answers.float().mean().item(),
    }
    rows.append({"setting": "chance"} | {f"{how}, first 1": share for how, share in by_chance.items()})
    plot, axes = figure(2)
    for axis, how in zip(axes, by_chance):
        bars(axis, rows[:-1], [f"{how}, first {k}" for k in BEST], labels=[f"first {k}" for k in BEST])
        axis.axhline(by_chance[how], color="#999", linewidth=0.8, linestyle="--")
        axis.set(title=how, ylim=(0, 1))
    texts, images = int(asked.sum()), len(pairs.test)
    return Panel(
        name="retrieval", title="Side by side: finding",
        asks=f"{texts} texts look for a right one of {images} pictures that nobody was trained on, and these for their "
        f"text among {len(pairs.choices)}; every picture of which a text is true is right. CLIP and CoCa compare "
        "vectors. SimVLM has none: it can only be asked, for each pair, how likely the text is in view of the picture. "
        "So can CoCa. Measured: how often a right answer is first, and among the first five; dashed: first by chance.",
        found=_told_retrieval(rows, texts, images), rows=rows, figure=plot, code=[CLIP, CoCa, SimVLM],
    )  # fmt: skip


def found(scores: Float[Tensor, "query entry"], answers: Bool[Tensor, "query entry"]) -> dict[int, float]:
    """R@k: the share of queries with a right answer among their k best."""
    best = scores.topk(min(max(BEST), scores.shape[1]), dim=1).indices
    return {k: answers.gather(1, best[:, :k]).any(1).double().mean().item() for k in BEST}


def _told_retrieval(rows: Sequence[Row], texts: int, images: int) -> str:
    by = {row["setting"]: row for row in rows}
    told = "; ".join(
        f"{way}: {_percent(by[way]['text to image, first 1'])} of the texts find a right picture first, "
        f"{_percent(by[way]['image to text, first 1'])} of the pictures their text"
        for way in WAYS
    )

    def compared(a: str, b: str, how: str, n: int) -> str:
        name = f"{how}, first 1"
        return against(by[a][name], by[b][name], n)

    ours, theirs, writer = "CoCa, vectors", "CLIP, vectors", "SimVLM, likelihood"
    return (
        f"{told}. CoCa's vectors are {compared(ours, theirs, 'text to image', texts)} CLIP's for texts and "
        f"{compared(ours, theirs, 'image to text', images)} these for pictures; SimVLM's likelihoods are "
        f"{compared(writer, theirs, 'text to image', texts)} CLIP's vectors for texts and "
        f"{compared(writer, theirs, 'image to text', images)} these for pictures. What SimVLM cannot do: give a "
        "picture a vector that could be kept and searched."
    )


def written(pairs: Pairs, trios: Sequence[Trio], fit: Sequence[Fit]) -> Panel:
    """Captions: written, or chosen among given ones."""
    sets = {"pictures like those trained on": pairs.test}
    if pairs.unseen is not None:
        sets["combinations never seen"] = pairs.unseen
    rows: list[Row] = []
    for on, asked in sets.items():
        runs: dict[str, list[dict[str, float]]] = {}
        for trio, known in zip(trios, fit, strict=True):
            for method in WRITERS:
                runs.setdefault(f"{METHODS[method]} writes", []).append(scored(write(trio, method, asked), asked, trio))
            for way in WAYS:
                scores = known[way] if asked is pairs.test else fits(trio, way, asked.images, pairs.choices)
                chosen = [plain(trio.tokens, pairs.choices[int(i)]) for i in scores.argmax(1).tolist()]
                runs.setdefault(CHOOSES[way], []).append(scored(chosen, asked, trio))
        head = {"setting": "", "on": on, "pictures": len(asked)}
        rows += [head | over_seeds(setting, mine) for setting, mine in runs.items()]
    plot, axes = figure(2, width=5.5)
    for axis, name in zip(axes, ("exact", "attributes" if pairs.unseen is not None else "words")):
        for shift, on in enumerate(sets):
            mine = [row for row in rows if row["on"] == on]
            places = [place + 0.4 * shift for place in range(len(mine))]
            axis.barh(places, [row[name] for row in mine], height=0.4, label=on)
        axis.set_yticks(range(len(mine)), [row["setting"] for row in mine], fontsize=8)
        axis.invert_yaxis()
        axis.set(title={"exact": "captions right to the word", "attributes": "attributes named rightly"}.get(
            name, "words that are the picture's"), xlim=(0, 1))  # fmt: skip
    axes[0].legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    return Panel(
        name="captions", title="Side by side: captions",
        asks="CoCa and SimVLM write a caption, the likeliest token at a time. CLIP cannot write: it takes the nearest "
        f"of {len(pairs.choices)} captions that it is given, which the others can be made to do as well, by vector or "
        "by likelihood. Measured: the share of captions that are right to the word, "
        + ("and of attributes that are named rightly, on pictures like those trained on, and on pictures with a pair "
           "of attributes that no training picture has." if pairs.unseen is not None
           else "and of words that are among the picture's own."),
        found=_told_written(rows), rows=rows, figure=plot, code=[CoCa.caption, SimVLM.caption, caption_loss],
    )  # fmt: skip


def write(trio: Trio, method: Method, asked: Captions) -> list[str]:
    """A greedy caption of each picture."""
    model = trio.models[method]
    assert not isinstance(model, CLIP)
    return list(captions(model, trio.tokens, asked.images))


def scored(answers: Sequence[str], asked: Captions, trio: Trio) -> dict[str, float]:
    """Shares of exact captions, of words that the picture's own have, and of each attribute where these name any."""
    own = [{plain(trio.tokens, text) for text in its} for its in own_texts(asked)]
    result = {"exact": mean(float(text in its) for text, its in zip(answers, own, strict=True))}
    words = [{word for text in its for word in text.split()} for its in own]
    result["words"] = mean(
        mean(float(word in its) for word in text.split()) if text else 0.0 for text, its in zip(answers, words)
    )
    true, named = [told(text) for text in first_texts(asked)], [told(text) for text in answers]
    if all(values[name] for values in true for name in NAMED):
        shares = {name: mean(float(a[name] == b[name]) for a, b in zip(named, true)) for name in NAMED}
        result |= {"attributes": mean(shares.values())} | shares
    return result


def _told_written(rows: Sequence[Row]) -> str:
    parts = []
    for on in dict.fromkeys(row["on"] for row in rows):
        mine = [row for row in rows if row["on"] == on]
        values = ", ".join(f"{row['setting']} {_percent(row['exact'])}" for row in mine)
        parts.append(f"On {on}, exact: {values}")
    told = ". ".join(parts)
    if len(parts) == 2:
        by = {row["setting"]: row for row in mine}
        writes, n = by["CoCa writes"], mine[0]["pictures"]
        told += ". On combinations never seen CoCa's writing is " + " and ".join(
            f"{against(writes['exact'], by[CHOOSES[way]]['exact'], n)} its own choice by {way.split(', ')[1]}"
            for way in WAYS if way.startswith("CoCa")
        )  # fmt: skip
        told += "; attributes named rightly: " + ", ".join(
            f"{setting} {_percent(row['attributes'])}" for setting, row in by.items()
        )
    return f"{told}. What CLIP cannot do: say anything that it was not given."


def zero_shot(pairs: Pairs, trios: Sequence[Trio]) -> Panel:
    """Classes by their names alone, which never were a caption."""
    truth = {name: [told(text)[name] for text in first_texts(pairs.test)] for name in NAMED}
    rows = [over_seeds(way, [
        {name: classified(trio, way, pairs.test, name, truth[name]) for name in NAMED} for trio in trios
    ]) for way in WAYS]  # fmt: skip
    often = {name: max(values.count(value) for value in values) / len(values) for name, values in truth.items()}
    rows.append({"setting": "most frequent class", **often})
    plot, (axis,) = figure(width=9)
    bars(axis, rows, NAMED, labels=list(NAMED))
    axis.set(title="zero-shot accuracy", ylim=(0, 1))
    n = len(pairs.test)
    said = []
    for row in rows[:-1]:
        above = [name for name in NAMED if against(row[name], often[name], n) == "above"]
        values = ", ".join(f"{name} {_percent(row[name])}" for name in NAMED)
        said.append(f"{row['setting']}: {values} (above the most frequent class: {', '.join(above) or 'nowhere'})")
    return Panel(
        name="zero-shot", title="Side by side: classes by their names",
        asks="Each attribute is a question: which of its phrases, such as "
        f"“{PHRASES['roofs']['red']}” and “{PHRASES['roofs']['white']}”, fits the picture best? Alone none of them was "
        "a caption in training. CLIP and CoCa compare vectors; CoCa and SimVLM, how likely a caption is to begin so, "
        "though in training all began with the roofs.",
        found=f"{'; '.join(said)}.", rows=rows, figure=plot, code=[prototypes, likelihoods],
    )  # fmt: skip


def classified(trio: Trio, way: str, asked: Captions, name: str, truth: Sequence[str | None]) -> float:
    """Accuracy on an attribute, by its phrases alone."""
    method, by_likelihood = WAYS[way]
    model, values = trio.models[method], ATTRIBUTES[name]
    phrases = [PHRASES[name][value] for value in values]
    if by_likelihood:
        scores = fits(trio, way, asked.images, phrases, end=False)
    else:
        assert not isinstance(model, SimVLM)
        with torch.no_grad():
            scores = vectors(model, asked.images) @ prototypes(model, trio.tokens, phrases, ["{}"]).T
    return mean(float(values[i] == value) for i, value in zip(scores.argmax(1).tolist(), truth, strict=True))


# What they share


def same_contrast(pairs: Pairs, fit: Sequence[Fit]) -> Panel:
    """How alike the ways of fitting rank the wrong texts of each picture."""
    wrong = ~right(pairs.test, pairs.choices)
    each: dict[tuple[str, str], list[Tensor]] = {}
    first: dict[tuple[str, str], list[float]] = {}
    for scores in fit:
        for a, b in combinations(WAYS, 2):
            each.setdefault((a, b), []).append(alike(scores[a], scores[b], wrong))
            first.setdefault((a, b), []).append((scores[a].argmax(1) == scores[b].argmax(1)).float().mean().item())
    rows = [over_seeds(f"{a}; {b}", [
        {"rank correlation": values.mean().item(), "same first": same}
        for values, same in zip(each[a, b], first[a, b], strict=True)
    ]) for a, b in each]  # fmt: skip
    plot, (axis,) = figure(width=6, height=4.6)
    grid = torch.eye(len(WAYS))
    for (a, b), values in each.items():
        i, j = list(WAYS).index(a), list(WAYS).index(b)
        grid[i, j] = grid[j, i] = torch.stack(values).mean()
    heat(axis, grid, list(WAYS), [way.replace(", ", ",\n") for way in WAYS])
    axis.set(title="rank correlation over the wrong texts of a picture")
    vectors_alike = torch.stack(each["CLIP, vectors", "CoCa, vectors"]).mean(0)
    others = torch.stack(each["CLIP, vectors", "SimVLM, likelihood"]).mean(0)
    writers = torch.stack(each["CoCa, likelihood", "SimVLM, likelihood"]).mean(0)
    own = torch.stack(each["CoCa, vectors", "CoCa, likelihood"]).mean(0)
    return Panel(
        name="same-contrast", title="Similarity 1: CLIP's loss is half of CoCa's",
        asks="Both pull a picture's vector to that of its text, and push it from the others of the batch, by one "
        "and the same function. Do they come to rank texts alike? Measured for each picture over the texts that are "
        "wrong for it, so that being right alone does not count: the correlation of their ranks. One would expect CLIP "
        "to agree with CoCa's vectors more than with the likelihoods of SimVLM, which contrasts nothing.",
        found=f"Of CLIP and CoCa's vectors it is {vectors_alike.mean():.2f}, of CLIP and SimVLM's likelihoods "
        f"{others.mean():.2f}: the two that share the contrast rank {_paired(vectors_alike - others)} alike. Of "
        f"CoCa's vectors and its own likelihoods it is {own.mean():.2f}, of the likelihoods of CoCa and "
        f"SimVLM {writers.mean():.2f}: the two halves of CoCa agree {_paired(own - writers)} than two writers do.",
        rows=rows, figure=plot, code=[contrast, CLIP.forward, CoCa.forward],
    )  # fmt: skip


def alike(
    a: Float[Tensor, "image text"], b: Float[Tensor, "image text"], over: Bool[Tensor, "image text"]
) -> Float[Tensor, " image"]:
    """Spearman's correlation of two scores for each picture, over some of the texts."""

    def ranks(scores: Tensor) -> Tensor:
        order = scores.masked_fill(~over, torch.inf).argsort(1).argsort(1).double()
        own = order.masked_fill(~over, 0)
        return (order - own.sum(1, keepdim=True) / over.sum(1, keepdim=True).clamp(min=1)).masked_fill(~over, 0)

    return F.cosine_similarity(ranks(a), ranks(b), dim=1)


def same_words(pairs: Pairs, trios: Sequence[Trio]) -> Panel:
    """How well each token is foretold in view of the right picture, and of a wrong one."""
    texts = first_texts(pairs.test)
    other = strangers(texts, own_texts(pairs.test))
    rows: list[Row] = []
    differences: dict[Method, Tensor] = {}
    hard: dict[Method, Tensor] = {}
    for method in WRITERS:
        runs, per_place, kept = [], [], []
        for trio in trios:
            model, ids = trio.models[method], trio.tokens(texts)
            assert not isinstance(model, CLIP)
            memory = seen(model, pairs.test.images)
            own, counts = surprise(model, memory, ids)
            wrong, _ = surprise(model, memory[other], ids)
            total = counts.sum()
            runs.append({
                "own picture": (own.sum() / total).exp().item(), "another picture": (wrong.sum() / total).exp().item()
            })  # fmt: skip
            per_place.append(torch.stack([own.sum(0), wrong.sum(0)]) / counts.sum(0).clamp(min=1))
            kept.append(((wrong - own).sum(1) / counts.sum(1), own[counts]))
        row = over_seeds(METHODS[method], runs)
        by_place = torch.stack(per_place).mean(0)[:, counts.any(0)]
        row["times"] = row["another picture"] / row["own picture"]
        rows.append(row | {"by token, own": by_place[0].tolist(), "by token, another": by_place[1].tolist()})
        differences[method] = torch.stack([each for each, _ in kept]).mean(0)
        hard[method] = torch.stack([each for _, each in kept]).mean(0)
    plot, axes = figure(len(rows))
    for axis, row in zip(axes, rows):
        for name, line in (("own", "-"), ("another", "--")):
            values = row[f"by token, {name}"]
            axis.plot(range(1, 1 + len(values)), values, line, marker="o", label=f"{name} picture")
        axis.set(title=row["setting"], xlabel="token of the caption", ylabel="-log p")
        axis.legend(fontsize=8, frameon=False)
    together = torch.corrcoef(torch.stack([hard[method] for method in WRITERS]))[0, 1].item()
    chance = 2 / len(texts) ** 0.5  # tokens of one caption are not independent: as if each had one
    said = [
        f"{row['setting']}: {row['own picture']:.3f} with its own picture, {row['another picture']:.3f} with another "
        f"({row['times']:.2f} times)" for row in rows
    ]  # fmt: skip
    depends = [METHODS[method] for method in WRITERS if _paired(differences[method]) == "more"]
    return Panel(
        name="same-words", title="Similarity 2: SimVLM's loss is the other half of CoCa's",
        asks="Both learn to foretell the next token of a caption, by one and the same function. Do the words depend on "
        "the picture, or has the model learnt what is usually said? Measured on test pictures: the perplexity of a "
        "token in view of the caption's own picture, and of one with another caption; the plot has -log p by the "
        "token's place.",
        found=f"Perplexity of a token: {'; '.join(said)}. The words depend on the picture in: "
        f"{', '.join(depends) or 'neither'}. What is hard for one is {'' if together > chance else 'not '}hard for the "
        f"other: over all tokens their -log p correlate by {together:.2f}.",
        rows=rows, figure=plot, code=[caption_loss, CoCa.forward, SimVLM.forward],
    )  # fmt: skip


def strangers(texts: Sequence[str], own: Sequence[set[str]]) -> list[int]:
    """For each text the next picture, all round, of which it is not said; its own where it is said of all."""
    n = len(texts)
    return [next(((i + k) % n for k in range(1, n) if texts[i] not in own[(i + k) % n]), i) for i in range(n)]


# What sets them apart


def cost(pairs: Pairs, trio: Trio, effort: Effort) -> Panel:
    """What it takes to compare a text with N pictures that are known beforehand."""
    ids = trio.tokens(list(pairs.choices)[:1])
    rows: list[Row] = []
    for size in SIZES:
        images = [pairs.test.images[i % len(pairs.test)] for i in range(size)]
        stacked = torch.stack(images)
        steps: dict[str, Callable[[], object]] = {}
        kept: dict[str, int] = {}
        for way in ("CLIP, vectors", "CoCa, vectors"):
            model = trio.models[WAYS[way][0]]
            assert not isinstance(model, SimVLM)
            with torch.no_grad():
                index = vectors(model, stacked)

            def compare(model=model, index=index) -> Tensor:
                with torch.no_grad():
                    return index @ model.texts(ids).T

            steps[way], kept[way] = compare, index[0].numel()
        model = trio.models["simvlm"]
        assert isinstance(model, SimVLM)
        memory = seen(model, stacked)
        steps["SimVLM, pictures read before"] = lambda m=model, memory=memory: surprise(
            m, memory, ids.expand(len(memory), -1)
        )
        steps["SimVLM, from pictures"] = lambda m=model, stacked=stacked: likelihoods(m, stacked, ids)
        kept |= {"SimVLM, pictures read before": memory[0].numel(), "SimVLM, from pictures": 0}
        by_vector = {way: step for way, step in steps.items() if "vectors" in way}
        by_words = {way: step for way, step in steps.items() if way not in by_vector}
        each = costs(by_vector, effort) | costs(by_words, effort)  # apart: what is large empties the caches of others
        for way, its in each.items():
            rows.append({
                "setting": way, "pictures": size, "ms": 1000 * median(its.seconds), "MB": its.peak / 1e6,
                "passes of a network": 1 if way in by_vector else size * (1 + ("from" in way)),
                "numbers kept of a picture": kept[way],
            })  # fmt: skip
    plot, (axis,) = figure(width=7)
    for way in dict.fromkeys(row["setting"] for row in rows):
        mine = [row for row in rows if row["setting"] == way]
        axis.plot([row["pictures"] for row in mine], [row["ms"] for row in mine], "-o", label=way)
    axis.set(title="time of a query", xlabel="pictures", ylabel="ms", xscale="log", yscale="log")
    axis.set_xticks(SIZES, [str(size) for size in SIZES])
    axis.minorticks_off()
    axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return Panel(
        name="cost", title="Difference 1: vectors are made once, likelihoods for each pair",
        asks="A new text is compared with pictures that are there already. CLIP and CoCa have vectors, and read "
        "the text once. SimVLM has at best what its encoder made of each picture, and writes the text in view of each. "
        "Measured: the time of a query, its median over rounds on one machine; passes of a network through a text "
        "or a picture; and how many numbers are kept of each picture.",
        found=_told_cost(rows), rows=rows, figure=plot, code=[texts_of, likelihoods],
    )  # fmt: skip


def _told_cost(rows: Sequence[Row]) -> str:
    def of(way: str, size: int) -> Row:
        return next(row for row in rows if row["setting"] == way and row["pictures"] == size)

    least, most = SIZES[0], SIZES[-1]
    ways = list(dict.fromkeys(row["setting"] for row in rows))
    told = "; ".join(
        f"{way}: {of(way, most)['ms']:.1f} ms, {of(way, most)['ms'] / of(way, least)['ms']:.1f} times that of {least}"
        for way in ways
    )
    slower = of(ways[2], most)["ms"] / of(ways[0], most)["ms"]
    return (
        f"A query of {most} pictures takes by {told}. SimVLM with pictures read before takes {slower:.0f} times as "
        f"long as CLIP, in {of(ways[2], most)['passes of a network']} passes in place of 1, and keeps "
        f"{of(ways[2], most)['numbers kept of a picture']} numbers of a picture in place of "
        f"{of(ways[0], most)['numbers kept of a picture']}."
    )


def sight(pairs: Pairs, trios: Sequence[Trio]) -> Panel:
    """What the vector of a word in the middle of a text moves by."""
    runs = [moved(trio, pairs.test) for trio in trios]
    rows = [over_seeds(part, [run[part] for run in runs]) for part in runs[0]]
    changes = list(next(iter(runs[0].values())))
    plot, (axis,) = figure(width=7, height=4)
    grid = torch.tensor([[row[change] for change in changes] for row in rows])
    heat(axis, grid, [row["setting"] for row in rows], [change.replace(" ", "\n", 1) for change in changes])
    axis.set(title="how far the word's vector moves, by its length")
    said = [
        f"{change}: {', '.join(row['setting'] for row in rows if row[change] > TOLD_APART) or 'none'}"
        for change in changes
    ]  # fmt: skip
    blind = [row["setting"] for row in rows if row["another picture"] <= TOLD_APART]
    both = [row["setting"] for row in rows if min(row[f"another {end} word"] for end in ("first", "last")) > TOLD_APART]
    return Panel(
        name="sight", title="Difference 2: where words meet the picture, and each other",
        asks="In the trained networks, the vector that a word in the middle of a caption has before the next token is "
        "told, or, in SimVLM's prefix, before anything is written. What moves it: another picture, another first word, "
        "another last word? What does not move it is not seen. Measured: how far it moves, by its length.",
        found=f"Moved by {'; by '.join(said)}. The same for every picture, so that it can be made once: "
        f"{', '.join(blind) or 'none'}. Words see what is before and behind them in: {', '.join(both) or 'none'}.",
        rows=rows, figure=plot, code=[CoCa.read, SimVLM.read],
    )  # fmt: skip


@torch.no_grad()
def moved(trio: Trio, asked: Captions) -> dict[str, dict[str, float]]:
    """Of each part that reads words: the change of the middle word's vector by each change of what is read."""
    texts = first_texts(asked)
    ids = trio.tokens(texts)
    ends = (ids == trio.tokens.end).int().argmax(1)
    enough = ends >= 4  # a first word, one in the middle and a last one
    ids, ends = ids[enough], ends[enough]
    images = torch.stack([asked.images[i] for i in enough.nonzero().flatten().tolist()])
    other = images.roll(1, 0)
    row, middle = torch.arange(len(ids)), ends // 2
    known = ids[ids != trio.tokens.end].unique()
    known = known[known != trio.tokens.start]

    def replaced(at: Int[Tensor, " text"]) -> Int[Tensor, "text token"]:
        """Another word of these texts there: the next one of all."""
        changed = ids.clone()
        changed[row, at] = known[(torch.searchsorted(known, ids[row, at]) + 1) % len(known)]
        return changed

    changes = {
        "another picture": (other, ids), "another first word": (images, replaced(torch.ones_like(ends))),
        "another last word": (images, replaced(ends - 1)),
    }  # fmt: skip
    result: dict[str, dict[str, float]] = {}
    for name, of in readers(trio).items():
        before = of(images, ids)[row, middle]
        result[name] = {
            change: ((of(*to)[row, middle] - before).norm(dim=1) / before.norm(dim=1)).mean().item()
            for change, to in changes.items()
        }
    return result


def readers(trio: Trio) -> dict[str, Callable[[Tensor, Tensor], Float[Tensor, "text token dim"]]]:
    """What makes vectors of words: of pictures and token numbers, a vector at the place of each token."""
    clip, coca, simvlm = (trio.models[method] for method in METHODS)
    assert isinstance(clip, CLIP) and isinstance(coca, CoCa) and isinstance(simvlm, SimVLM)

    def prefix(images: Tensor, ids: Tensor) -> Tensor:
        """Start stands before the prefix, so a place is left empty."""
        count = (ids == simvlm.end).int().argmax(1) - 1
        words = simvlm.read(images, ids[:, 1:], count)[0][:, len(simvlm.places) :]
        return F.pad(words, (0, 0, 1, 0))

    def writer(images: Tensor, ids: Tensor) -> Tensor:
        memory = seen(simvlm, images)
        places = torch.ones(memory.shape[:2], dtype=torch.bool)
        return simvlm.write(ids, torch.zeros(len(ids), dtype=torch.long), memory, places)

    return {
        "CLIP's text": lambda images, ids: clip.text(ids),
        "CoCa's first half": lambda images, ids: coca.read(ids)[1],
        "CoCa's second half": lambda images, ids: coca.decoder(coca.read(ids)[1], coca.look(images)[1]),
        "SimVLM's prefix": prefix,
        "SimVLM's writer": writer,
    }


def order(pairs: Pairs, trios: Sequence[Trio]) -> Panel:
    """Whether a caption is told from the same words in another order."""
    texts = first_texts(pairs.test)
    kinds = {"shuffled words": [(i, text, mixed) for i, text in enumerate(texts) if (mixed := shuffled(text, i))]}
    if pairs.unseen is not None:
        kinds["another meaning"] = [(i, text, twin) for i, text in enumerate(texts) if (twin := turned(text))]
    rows = [over_seeds(way, [
        {kind: told_apart(trio, way, pairs.test, cases) for kind, cases in kinds.items()} for trio in trios
    ]) for way in WAYS]  # fmt: skip
    plot, (axis,) = figure(width=8)
    bars(axis, rows, list(kinds), labels=list(kinds))
    axis.axhline(0.5, color="#999", linewidth=0.8, linestyle="--")
    axis.set(title="the true caption fits better", ylim=(0, 1))
    counts = {kind: len(cases) for kind, cases in kinds.items()}
    said = []
    for kind, n in counts.items():
        values = ", ".join(f"{row['setting']} {_percent(row[kind])}" for row in rows)
        above = [row["setting"] for row in rows if against(row[kind], 0.5, n) == "above"]
        said.append(f"{kind.capitalize()} ({n} pictures): {values}; above one half: {', '.join(above) or 'none'}")
    contrast_only, writer = rows[0]["shuffled words"], rows[-1]["shuffled words"]
    than = against(writer, contrast_only, counts["shuffled words"])
    return Panel(
        name="order", title="Difference 3: what the order of words is to each",
        asks="Does the true caption of a picture fit better than the same words in another order? Who foretells words "
        "one by one has to know their order; a contrast only has to tell the captions of a batch apart, and shuffled "
        "words never are among these"
        + (f". Of the second kind are pairs such as “{(case := kinds['another meaning'][0])[1]}” and “{case[2]}”: the "
           "same words, and both are captions, one of which is true; a batch may hold both"
           if kinds.get("another meaning") else "")
        + ". Dashed: by guessing.",
        found=f"{'. '.join(said)}. SimVLM is {than} CLIP where words are shuffled.",
        rows=rows, figure=plot, code=[likelihoods, CLIP.texts],
    )  # fmt: skip


def told_apart(trio: Trio, way: str, asked: Captions, cases: Sequence[tuple[int, str, str]]) -> float:
    """Share of pictures with a true and a false text where the true one fits better; half where neither does."""
    images = [asked.images[i] for i, *_ in cases]
    true, false = (fit_of(trio, way, images, texts) for texts in ([a for _, a, _ in cases], [b for _, _, b in cases]))
    return ((true > false).double() + (true == false).double() / 2).mean().item()


def shuffled(text: str, seed: int) -> str | None:
    """Its words in another order; None for a text that has no other."""
    words = text.split()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(10):
        mixed = " ".join(words[i] for i in torch.randperm(len(words), generator=generator).tolist())
        if mixed != text:
            return mixed
    return None


def turned(text: str) -> str | None:
    """A short caption of a pool or a street, but not both, with the one in place of the other: the same words."""
    pool, street = (PHRASES[name] for name in ("pool", "street"))
    for a, b in (("one", "none"), ("none", "one")):
        if pool[a] in text and street[b] in text:
            return text.replace(pool[a], pool[b]).replace(street[b], street[a])
    return None


# Plots and words


def bars(axis: Any, rows: Sequence[Row], names: Sequence[str], *, labels: Sequence[str]) -> None:
    """Groups of bars, one of each row."""
    width = 0.8 / len(names)
    for k, (name, label) in enumerate(zip(names, labels)):
        axis.bar([i + k * width for i in range(len(rows))], [row[name] for row in rows], width=width, label=label)
    shown = [row["setting"].replace(", ", ",\n") for row in rows]
    axis.set_xticks([i + 0.4 - width / 2 for i in range(len(rows))], shown, fontsize=8)
    axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def heat(axis: Any, grid: Float[Tensor, "row column"], rows: Sequence[str], columns: Sequence[str]) -> None:
    """A table of numbers as colours."""
    axis.grid(visible=False)
    axis.imshow(grid.numpy(), cmap="Blues", vmin=0, vmax=max(1.0, grid.max().item()), aspect="auto")
    for i, line in enumerate(grid.tolist()):
        for j, value in enumerate(line):
            colour = "white" if value > 0.6 * max(1.0, grid.max().item()) else "black"
            axis.text(j, i, f"{value:.2g}" if abs(value) > TOLD_APART else "0", ha="center", va="center", color=colour)
    axis.set_xticks(range(len(columns)), columns, fontsize=8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)


def _paired(differences: Float[Tensor, " image"]) -> str:
    """ "more", "less" or "no more": differences of the same pictures, by two standard errors of their mean."""
    middle, error = differences.mean().item(), differences.std().item() / len(differences) ** 0.5
    return "no more" if abs(middle) <= 2 * error else "more" if middle > 0 else "less"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
