"""Update functions as text: what is read, what is refused, what becomes of it."""

import pytest
import torch

from negah.errors import InputError
from negah.graph.audit import audit
from negah.graph.derive import derive
from negah.graph.grammar import FUNCTIONS, parse

TWO = ("maximum", "minimum", "dot")
h, messages = torch.tensor([1.0, -2.0]), torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]])


@pytest.mark.parametrize("text, expected", [
    ("mean(messages) + h", messages.mean(0) + h),
    ("sum(softmax(dot(h, messages)) * messages)", ((messages @ h).softmax(0)[:, None] * messages).sum(0)),
    ("sum(positions * messages) / n", (torch.tensor([[1.0], [2.0], [3.0]]) * messages).sum(0) / 3),
    ("-max(messages) ** 2", -(messages.amax(0) ** 2)),
    ("first(sort(messages)) - last(messages)", messages.amin(0) - messages[-1]),
    ("sum(norm(messages))", messages.norm(dim=1).sum()[None]),
    ("maximum(h, 0.5)", h.clamp(min=0.5)),
])  # fmt: skip
def test_values(text, expected):
    assert torch.allclose(parse(text)(h, messages).float(), expected)


@pytest.mark.parametrize("text", [
    "__import__('os').system('true')", "messages.sum(0)", "messages[0]", "lambda: h", "open(h)", "sum(messages, 0)",
    "sum(x)", "'a' * 5", "[h]", "h if n else h", "sum(*messages)", "h @ messages", "mean(messages", "", "True",
    "1e99", "h" * 401, "+".join(["h"] * 90),
])  # fmt: skip
def test_all_else_is_refused(text):
    with pytest.raises(InputError) as problem:
        parse(text)
    assert "\n" not in str(problem.value)


def test_every_function_runs_and_is_read():
    for name in FUNCTIONS:
        expression = parse(f"sum({name}(messages{', messages' if name in TWO else ''}) * messages)")
        # Beside the messages, what is one for all of them stays valid, and what follows a place of its own does not.
        order = name in ("first", "last", "cumsum", "flip", "sort")
        assert bool(derive(expression, None).unproved) == order, name
        assert len(expression(h, messages)) == 2
        if order and name != "cumsum":  # products with a running sum add up to a sum over pairs: valid, and not seen
            assert audit(expression, width=1).verdict == "refuted", name


def test_powers_of_numbers_cost_nothing():
    assert parse("9 ** 9 ** 9 ** 9 + h")(h, messages).isinf().all()


def test_a_sum_needs_messages():
    with pytest.raises(InputError, match="taken over the messages"):
        parse("sum(h)")(h, messages)
