"""Greedy, beams and nucleus against brute force, on a table of probabilities instead of a model."""

import itertools
import math

import pytest
import torch

from negah.errors import InputError
from negah.language.generate import generate
from negah.nn.text import Past

VOCABULARY, END, MOST = 4, 3, 3


class Table:
    """Logits that depend on the whole text so far; of each row another."""

    def __init__(self, rows: int):
        self.rows, self.texts = rows, None

    def logits(self, row: int, text: tuple[int, ...]) -> torch.Tensor:
        seed = hash((row, *text)) % 2**31
        return 2 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed))

    def __call__(self, ids: torch.Tensor, past: Past) -> torch.Tensor:
        """Keeps the texts as an attention keeps its keys, so that beams are picked with them."""
        texts = ids[:, None, :, None].float()
        texts, _ = past.extend(self, texts, texts)  # pyright: ignore
        times = len(ids) // self.rows
        texts = texts[:, 0, :, 0].long().tolist()
        return torch.stack([self.logits(i // times, tuple(text)) for i, text in enumerate(texts)])


def score(table: Table, row: int, text: tuple[int, ...]) -> float:
    """Mean log probability of a text's tokens, up to its end."""
    logs = [table.logits(row, (0, *text[:i])).log_softmax(0)[text[i]].item() for i in range(len(text))]
    return sum(logs) / len(logs)


def every_text() -> list[tuple[int, ...]]:
    whole = itertools.chain.from_iterable(itertools.product(range(VOCABULARY), repeat=n) for n in range(1, MOST + 1))
    return [t for t in whole if END not in t[:-1] and (t[-1] == END or len(t) == MOST)]


def filled(text: tuple[int, ...], length: int) -> list[int]:
    return [*text, *[END] * (length - len(text))]


def test_greedy_takes_the_likeliest_token_each_time():
    table, rows = Table(3), 3
    found = generate(table, torch.zeros(rows, 1, dtype=torch.long), most=MOST, end=END)
    for row in range(rows):
        text: tuple[int, ...] = ()
        while len(text) < MOST and END not in text:
            text = (*text, int(table.logits(row, (0, *text)).argmax()))
        assert found[row].tolist() == filled(text, found.shape[1])


def test_enough_beams_find_the_best_text_of_all():
    table, rows = Table(4), 4
    found = generate(table, torch.zeros(rows, 1, dtype=torch.long), most=MOST, end=END, beams=VOCABULARY**MOST)
    for row in range(rows):
        best = max(every_text(), key=lambda text: score(table, row, text))
        assert found[row].tolist() == filled(best, found.shape[1])


def test_more_beams_are_at_least_as_good_as_greedy_here():
    table, rows = Table(20), 20
    start = torch.zeros(rows, 1, dtype=torch.long)

    def scores(beams: int) -> list[float]:
        found = generate(table, start, most=MOST, end=END, beams=beams).tolist()
        return [score(table, r, tuple(t[: t.index(END) + 1] if END in t else t)) for r, t in enumerate(found)]

    one, three = sum(scores(1)), sum(scores(3))
    assert three > one


def test_a_nucleus_is_as_few_tokens_as_hold_the_share():
    chances = torch.tensor([0.5, 0.3, 0.15, 0.05])
    seen: dict[float, torch.Tensor] = {}
    for share in (0.4, 0.79, 0.81, 1.0):
        drawn = generate(
            lambda ids, past: chances.log().expand(len(ids), -1), torch.zeros(4000, 1, dtype=torch.long), most=1,
            end=END, share=share, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        seen[share] = drawn.flatten().bincount(minlength=4) / 4000
    assert (seen[0.4] == torch.tensor([1.0, 0, 0, 0])).all()
    torch.testing.assert_close(seen[0.79], torch.tensor([0.625, 0.375, 0, 0]), atol=0.03, rtol=0)
    torch.testing.assert_close(seen[0.81], torch.tensor([0.5, 0.3, 0.15, 0]) / 0.95, atol=0.03, rtol=0)
    torch.testing.assert_close(seen[1.0], chances, atol=0.03, rtol=0)


def test_temperature_sharpens():
    logits = torch.tensor([1.0, 0.0, -math.inf, -math.inf])
    drawn = generate(
        lambda ids, past: logits.expand(len(ids), -1), torch.zeros(2000, 1, dtype=torch.long), most=1, end=END,
        share=1.0, temperature=0.5, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert (drawn == 0).float().mean().item() == pytest.approx(1 / (1 + math.exp(-2)), abs=0.03)


@pytest.mark.parametrize("wrong", [{"most": 0}, {"beams": 0}, {"share": 1.5}, {"temperature": 0.0}])
def test_numbers_out_of_range_are_named(wrong):
    with pytest.raises(InputError, match="1 or more"):
        generate(Table(1), torch.zeros(1, 1, dtype=torch.long), **({"most": 2, "end": END} | wrong))
    with pytest.raises(InputError, match="no beams"):
        generate(Table(1), torch.zeros(1, 1, dtype=torch.long), most=2, end=END, share=0.5, beams=2)
