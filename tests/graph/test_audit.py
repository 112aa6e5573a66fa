"""The auditor: what it certifies is certain, what it refutes is shown, rounding is neither."""

import importlib.util
import math
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from negah.errors import InputError
from negah.graph import GAT, GCN, Edges, Update, networks
from negah.graph.audit import audit
from negah.graph.derive import derive
from negah.graph.networks import audit_layer
from negah.graph.precision import Subject
from negah.graph.refute import search, widths_of


def load_cases():
    path = Path(__file__).parents[2] / "benchmarks" / "audit_cases.py"
    spec = importlib.util.spec_from_file_location("audit_cases", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["audit_cases"] = module
    spec.loader.exec_module(module)
    return module


cases = load_cases()
UNCERTIFIED = {
    "Sum in half precision, one by one", "A sum written as a loop", "Mean by NumPy, in half precision",
    "Sum of Python's numbers, exactly rounded",
    # While tests run, every function of negah is wrapped to check its shapes, and the wrapper cannot be read.
    "Attentive head: presence", "Attentive head: summed evidence",
}  # fmt: skip


# Certificates


@pytest.mark.parametrize("name", cases.VALID)
def test_valid_functions_are_certified(name):
    certified = not derive(cases.VALID[name], None).unproved or not derive(cases.VALID[name], 3).unproved
    assert certified == (name not in UNCERTIFIED)


def test_no_invalid_function_is_certified():
    for name, f in cases.INVALID.items():
        assert derive(f, None).unproved, name


def one_of_a_shape(h, m):
    return m.sum(0) if m.shape == (3, 3) else m[0]


def written_elsewhere(h, m):
    _ = [(y := m) for _ in range(1)]  # noqa: F841
    return cases.W1.sum(1)


def places_of_ones(h, m):
    return torch.ones(len(m)).cumsum(0) @ m


def columns_of_identity(h, m):
    return torch.eye(len(m), 3).T @ m


def first_behind_h(h, m):
    return torch.cat([h[None], m])[1]


def positions_expanded(h, m):
    return torch.arange(len(m)).view(-1, 1).expand(len(m), 3).mul(m).sum(0)


def rows_and_columns(h, m):
    return m.T.reshape(len(m), 3)[:, 0].sum()


def in_place_relu(h, m):
    return torch.nn.functional.relu(m, True).sum(0)


def axis_by_count(h, m):
    return m.sum(len(m) > 5)


def ranks_meet_messages(h, m):
    return (m.sort(0).values * m).sum(0)


def list_by_count(h, m):
    return [m.sum(0), m.sum(1)][len(m) > 5]


def kept(h, m, seen=[]):  # noqa: B006
    return m.sum(0) * seen.append(1)


def written(h, m):
    x = m
    x[0] = 0
    return x.sum(0)


@pytest.mark.parametrize("f", [
    one_of_a_shape, written_elsewhere, places_of_ones, columns_of_identity, first_behind_h, positions_expanded,
    rows_and_columns, in_place_relu, axis_by_count, ranks_meet_messages, list_by_count, kept, written,
], ids=lambda f: f.__name__)  # fmt: skip
def test_ways_around_a_certificate_are_closed(f):
    assert derive(f, 3).unproved and derive(f, None).unproved


def test_a_replaced_method_is_not_taken_for_torch(monkeypatch):
    assert not derive(cases.total, 3).unproved
    monkeypatch.setattr(torch.Tensor, "sum", lambda self, dim: self[0])
    assert "replaced" in derive(cases.total, 3).unproved


def test_what_runs_is_what_is_read():
    namespace = {"torch": torch}
    exec(compile("def f(h, m):\n    return m[0]\n", __file__, "exec"), namespace)  # its source is not this file's
    assert "is not what its file says" in derive(namespace["f"], 3).unproved


def test_derivation_names_each_step():
    steps = derive(cases.by_softmax, 3).steps
    assert [step.axes for step in steps] == ["[n]", "[n]", "[n, 1]", "[n, 3]", "[3]"]
    assert steps[-1].kind == "symmetric reduction" and "messages" in steps[-1].expression
    why = derive(cases.first_neighbour, 3).unproved
    assert why.startswith("line ") and "one message by its position" in why


def test_a_certificate_says_for_which_width():
    assert audit(cases.total).width is None
    assert audit(cases.total, width=3).width == 3
    narrow = cases.INVALID["The first message, where there are more than two features"]
    assert not derive(narrow, 2).unproved and derive(narrow, None).unproved
    assert audit(narrow).verdict == "refuted"


# Counterexamples


@pytest.mark.parametrize("name", [
    "Mission: maximum with a weight for each position", "A difference of 1e-4",
    "A difference of 1e-4 behind a cast to half precision", "A difference of 1e-8, after a softmax",
    "Weights that differ by 1 % in half precision", "Order-dependent only when n > 3",
    "A branch that few features take", "Weights on the wrong side where n = d",
    "Sorted by the first feature, weights with long mantissas: ties", "It raises where the first is negative",
    "Weights by position in NumPy",
])  # fmt: skip
def test_invalid_functions_are_refuted_with_few_messages(name):
    f = cases.INVALID[name]
    found = audit(f)
    shown = found.counterexample
    assert found.verdict == "refuted" and shown and shown.kind == "order"
    h, m = shown.inputs["h"], shown.inputs["messages"]
    assert len(m) == cases.FEWEST[name]
    assert sum(i != j for i, j in enumerate(shown.permutation)) == 2  # two change places
    if not isinstance(shown.output, str) and not isinstance(shown.permuted, str):
        again = torch.as_tensor(f(h, m[list(shown.permutation)])).double()
        assert torch.allclose(again, shown.permuted.double(), atol=0, rtol=1e-12)
        assert shown.difference > 10 * shown.rounding


@pytest.mark.parametrize("name", [
    "A counter of calls", "State that shows at every hundredth call", "Random weights for each message",
    "Dropout that is left on",
])  # fmt: skip
def test_state_and_randomness_are_told(name):
    shown = audit(cases.INVALID[name]).counterexample
    assert shown and shown.kind == "repeat"


@pytest.mark.parametrize("name", [
    "Sum in half precision, one by one", "Mean in bfloat16, times a large number",
    "Sum around a large number, which cancels", "Rounded mean, which jumps", "Sign of the sum of tenths",
    "Variance as a difference of means, which cancels", "Mean by NumPy, in half precision",
    "A network in single precision",
])  # fmt: skip
def test_rounding_is_no_counterexample(name):
    subject = Subject(cases.VALID[name], name)
    found, tried = search(subject, widths_of(subject, None)[-1:], sizes=(4, 7, 33))
    assert found is None and tried.complete


def test_rows_that_follow_the_order_are_named():
    shown = audit(lambda h, m: m * 2).counterexample
    assert shown and "reduce it" in shown.note


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    audit(cases.INVALID["Random weights for each message"])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("f, said", [
    (lambda h, m: m.add_(1).sum(0), "writes into its inputs"),
    (lambda h, m: None, "returns None"),
    (lambda h, m: (m, h), "returns a tuple"),
    (lambda h: h, "takes 1 positional argument"),
    (lambda h, m: m.sum(0) * math.nan, "returns NaN"),
])  # fmt: skip
def test_what_cannot_be_audited_is_told_in_a_line(f, said):
    with pytest.raises(InputError, match=said) as problem:
        audit(f)
    assert "\n" not in str(problem.value)


def test_the_search_ends_in_time():
    def slow(h, m):
        time.sleep(0.02)
        return sum(m[i] for i in range(len(m)))

    found = audit(slow, width=1, seconds=0.5)
    assert found.verdict == "not refuted" and not found.tried.complete


# Layers


def checked(layer):
    return lambda x, e: layer(x, Edges.of(e, len(x), loops="keep", duplicates="keep"))


@pytest.mark.parametrize("layer", [Update(2, 3), GCN(2, 3), GAT(2, 4, heads=2)], ids=lambda layer: type(layer).__name__)
def test_our_layers_are_not_refuted(layer, monkeypatch):
    monkeypatch.setattr(networks, "SIZES", (2,))  # the rest is in test_layers.py
    found = audit_layer(checked(layer.double()), width=2)
    assert found.verdict == "not refuted" and found.tried.sizes == [2] and found.tried.complete


def test_layers_that_know_numbers_are_refuted():
    found = audit_layer(lambda x, e: x * torch.arange(len(x))[:, None], width=2)
    assert found.counterexample and found.counterexample.kind == "nodes"
    assert len(found.counterexample.inputs["features"]) == 2

    def last_edge_wins(x, e):
        out = torch.zeros_like(x)
        for start, end in e.T.tolist():
            out[end] = x[start]
        return out

    found = audit_layer(last_edge_wins, width=1)
    assert found.verdict == "refuted" and found.counterexample
    assert len(found.counterexample.inputs["features"]) <= 3
    with pytest.raises(InputError, match="one row a node"):
        audit_layer(lambda x, e: x.sum(0), width=2)


class Sets(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])

    def forward(self, h, m):
        for layer in self.inner:
            m = torch.relu(layer(m))
        return m.mean(0) + h


def test_modules_are_read_through():
    assert audit(Sets()).verdict == "certified"
    hooked = Sets()
    hooked.inner[0].register_forward_hook(lambda module, inputs, output: output[:1])
    assert "hooks" in derive(hooked, 3).unproved
