"""Every way of fitting is the model's own; words follow the figures; what is seen is found by experiment."""

import csv

import pytest
import torch
from PIL import Image

from negah.errors import InputError
from negah.images.scenes.words import told
from negah.lab import costs, describe, describers
from negah.lab.describe import _paired, _told_cost, alike, found, shuffled, strangers, turned
from negah.lab.describers import WAYS, Pairs, Trio, fit_of, fits, right, trained
from negah.lab.training import Effort
from negah.language.captions import Captions
from negah.language.likelihood import likelihoods, logits, seen, surprise
from negah.language.retrieval import Index, recall
from negah.language.score import texts_of, vectors

EFFORT = Effort(steps=10, batch=4, seeds=1, say=lambda line: None)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    with pytest.MonkeyPatch.context() as patch:
        for name, count in (("TRAIN", 8), ("TEST", 6), ("UNSEEN", 3)):
            patch.setattr(describers, name, count)
        return Pairs.of(EFFORT)


@pytest.fixture(scope="module")
def trio(pairs) -> Trio:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(describers, "WIDTH", 64)
        patch.setattr(describers, "LAYERS", 2)
        return trained(pairs, EFFORT, 0)


def test_no_training_picture_has_what_is_never_seen(pairs):
    assert pairs.unseen is not None and (len(pairs.train), len(pairs.test), len(pairs.unseen)) == (8, 6, 3)
    for text in pairs.unseen.texts:
        assert told(text)["roofs"] == "red" and told(text)["pool"] == "one"
    for text in [*pairs.train.texts, *pairs.test.texts]:
        assert not (told(text)["roofs"] == "red" and told(text)["pool"] == "one")
    assert {*pairs.train.texts, *pairs.test.texts, *pairs.unseen.texts} <= set(pairs.choices)
    assert len(pairs.choices) == 4 * 2 * 3 * 2


def test_likelihoods_are_sums_over_the_tokens_and_add_up_to_one(pairs, trio):
    """A text of one token and its end: over all tokens the likelihoods of the first are a distribution."""
    tokens = trio.tokens
    for method in ("coca", "simvlm"):
        model = trio.models[method]
        ids = torch.full((len(tokens), tokens.length), tokens.end)
        ids[:, 0], ids[:, 1] = tokens.start, torch.arange(len(tokens))
        first = likelihoods(model, pairs.test.images[:2], ids, end=False)
        others = torch.arange(len(tokens)) != tokens.end
        memory = seen(model, pairs.test.images[:2])
        end = -surprise(model, memory, ids[tokens.end].expand(2, -1))[0].sum(1)  # an empty text
        total = first[:, others].exp().sum(1) + end.exp()
        torch.testing.assert_close(total, torch.ones(2), rtol=1e-4, atol=1e-4)
        whole = likelihoods(model, pairs.test.images[:2], tokens(pairs.choices[:3]))
        assert (whole < likelihoods(model, pairs.test.images[:2], tokens(pairs.choices[:3]), end=False)).all()


def test_what_a_model_writes_is_what_it_finds_likely(pairs, trio):
    """Greedy writing takes the likeliest token at each place, by the same probabilities."""
    for method in ("coca", "simvlm"):
        model, images = trio.models[method], pairs.test.images[:3]
        written = model.caption(images, most=4)
        ids = torch.cat([torch.full((3, 1), trio.tokens.start), written], 1)
        scores = logits(model, seen(model, images), ids)
        ended = (written == trio.tokens.end).cumsum(1) > 1
        assert torch.equal(scores.argmax(2).masked_fill(ended, 0), written.masked_fill(ended, 0))


@pytest.mark.parametrize("way", WAYS)
def test_one_text_for_each_picture_fits_as_in_the_table_of_all(pairs, trio, way):
    texts = describers.first_texts(pairs.test)
    table = fits(trio, way, pairs.test.images, texts)
    torch.testing.assert_close(fit_of(trio, way, pairs.test.images, texts), table.diag(), rtol=1e-4, atol=1e-4)


def test_finding_is_the_recall_of_the_index(pairs, trio):
    images, texts = (
        vectors(trio.models["clip"], pairs.test.images),
        texts_of(trio.models["clip"], trio.tokens, pairs.choices),
    )
    answers = right(pairs.test, pairs.choices)
    index = Index.of([str(i) for i in range(len(texts))], texts)
    assert found(images @ texts.T, answers) == recall(images, index, answers, best=describe.BEST)


def test_ranks_are_compared_over_the_wrong_texts_alone():
    a = torch.tensor([[0.1, 0.5, 0.9, 7.0], [0.1, 0.5, 0.9, -7.0]])
    over = torch.tensor([[True, True, True, False]] * 2)
    torch.testing.assert_close(alike(a, a.exp(), over), torch.ones(2).double())
    b = a.clone()
    b[:, :3] = -b[:, :3]
    torch.testing.assert_close(alike(a, b, over), -torch.ones(2).double())
    assert alike(a, torch.tensor([[0.5, 0.1, 0.9, 0.0]] * 2), over).tolist() == pytest.approx([0.5, 0.5])


def test_the_same_words_in_another_order():
    text = "red roof, a swimming pool, many trees, no street"
    other = turned(text)
    assert other == "red roof, no swimming pool, many trees, a street"
    assert sorted(other.replace(",", "").split()) == sorted(text.replace(",", "").split()) and turned(other) == text
    assert turned("red roof, a swimming pool, many trees, a street") is None
    assert shuffled("one", 0) is None
    assert shuffled(text, 0) != text and sorted(shuffled(text, 0).split()) == sorted(text.split())


def test_a_stranger_is_a_picture_of_which_the_text_is_not_said():
    assert strangers(["a", "b", "a"], [{"a"}, {"b"}, {"a"}]) == [1, 2, 1]
    assert strangers(["a", "a"], [{"a"}, {"a"}]) == [0, 1]


def test_what_words_see_is_found_by_experiment(pairs, trio):
    moved = describe.moved(trio, pairs.test)
    sees = {part: [value > describe.TOLD_APART for value in changes.values()] for part, changes in moved.items()}
    assert sees == {  # another picture, first word, last word
        "CLIP's text": [False, True, False], "CoCa's first half": [False, True, False],
        "CoCa's second half": [True, True, False], "SimVLM's prefix": [True, True, True],
        "SimVLM's writer": [True, True, False],
    }  # fmt: skip


def test_every_panel_is_made_of_its_figures(tmp_path, monkeypatch, pairs, trio):
    monkeypatch.setattr(describe.Pairs, "of", lambda effort: pairs)
    monkeypatch.setattr(describe, "trained", lambda pairs, effort, seed: trio)
    monkeypatch.setattr(describe, "SIZES", (2, 4))
    monkeypatch.setattr(costs, "LEAST_ROUNDS", 2)
    page = describe.run(tmp_path, Effort(steps=10, batch=4, seeds=2, say=lambda line: None))
    panels = {panel.name: panel for panel in page.panels}
    assert list(panels) == [
        "retrieval", "captions", "zero-shot", "same-contrast", "same-words", "cost", "sight", "order"
    ]  # fmt: skip
    assert [row["setting"] for row in panels["retrieval"].rows] == [*WAYS, "chance"]
    assert panels["retrieval"].rows[0]["image to text, first 5 ±"] == 0  # of two seeds, which are one here
    on = {(row["setting"], row["on"]): row for row in panels["captions"].rows}
    assert len(on) == 2 * (2 + len(WAYS))
    own = panels["same-words"].rows[0]
    assert f"CoCa: {own['own picture']:.3f} with its own picture" in panels["same-words"].found
    passes = [row["passes of a network"] for row in panels["cost"].rows]
    assert passes == [1, 1, 2, 4, 1, 1, 4, 8]
    assert "generated scenes" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_caption_files_take_the_place_of_scenes(tmp_path, monkeypatch):
    monkeypatch.setattr(describers, "WIDTH", 64)
    monkeypatch.setattr(describers, "LAYERS", 2)
    monkeypatch.setattr(describe, "SIZES", (2, 4))
    monkeypatch.setattr(costs, "LEAST_ROUNDS", 2)
    with (tmp_path / "captions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "caption1", "caption2"])
        for i in range(12):
            Image.new("RGB", (50, 50), (20 * i, 255 - 20 * i, 90)).save(tmp_path / f"{i}.png")
            rows.writerow([f"{i}.png", f"a field number {i // 2} of green", "a field"])
    effort = Effort(data=(str(tmp_path / "captions.csv"),), steps=10, batch=4, say=lambda line: None)
    page = describe.run(tmp_path / "out", effort)
    assert "zero-shot" not in [panel.name for panel in page.panels]  # whose classes would these be?
    (captions,) = (panel for panel in page.panels if panel.name == "captions")
    assert {row["on"] for row in captions.rows} == {"pictures like those trained on"}
    assert all("words" in row and "roofs" not in row for row in captions.rows)
    with pytest.raises(InputError, match="do not fill a batch of 64"):
        Pairs.of(Effort(data=effort.data, say=lambda line: None))
    (tmp_path / "captions.csv").write_text("file,caption\n" + "".join(f"{i}.png,field\n" for i in range(12)))
    with pytest.raises(InputError, match="no caption has three words"):
        Pairs.of(effort)


def test_conclusions_turn_with_the_figures():
    assert _paired(torch.tensor([1.0, 1.1, 0.9])) == "more" and _paired(-torch.tensor([1.0, 1.1, 0.9])) == "less"
    assert _paired(torch.tensor([1.0, -1.0, 0.1])) == "no more"
    rows = [
        {"setting": way, "pictures": size, "ms": ms * (size if "SimVLM" in way else 1), "passes of a network": size,
         "numbers kept of a picture": 8}
        for way, ms in (("CLIP", 1.0), ("CoCa", 1.0), ("SimVLM, read", 2.0), ("SimVLM", 3.0))
        for size in (describe.SIZES[0], describe.SIZES[-1])
    ]  # fmt: skip
    assert "SimVLM with pictures read before takes 512 times as long as CLIP" in _told_cost(rows)


def test_texts_that_are_said_of_a_picture_are_right():
    captions = Captions.of(torch.zeros(2, 3, 4, 4), ["a", "b"], [["x", "y"], ["y"]])
    assert right(captions, ["x", "y", "z"]).tolist() == [[True, True, False], [False, True, False]]
