"""Update functions with known answers, for `audit.py` and the tests: valid ones, and ones that look so.

The invalid ones are written to be missed: each names a way by which an order can come in.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from negah.probe.attentive import AttentiveHead

VALID: dict[str, Callable[..., Any]] = {}
INVALID: dict[str, Callable[..., Any]] = {}
FEWEST: dict[str, int] = {}
"""Messages of the smallest counterexample there is, where it is not 2 (1: the same input twice, in any number)."""

D = 3
seeded = torch.Generator().manual_seed(0)
W1, W2, W3 = (torch.randn(D, D, generator=seeded, dtype=torch.float64) for _ in range(3))
RANKS = torch.rand(512, 1, generator=seeded, dtype=torch.float64)
SQUARE = torch.rand(3, 1, generator=seeded, dtype=torch.float64)
A = torch.randn(D, generator=seeded, dtype=torch.float64)
with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    MLP = nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, D)).double()
    SINGLE = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, D))
    LSTM = nn.LSTM(D, 4).double()
    GRU = nn.GRU(D, 4)
    CONV = nn.Conv1d(D, D, 3, padding=1).double()
    NORM = nn.LayerNorm(D).double()
    HEAD = AttentiveHead(8, heads=2).double().eval()
    PLACES = torch.randn(600, 8, dtype=torch.float64)


def valid(f: Callable[..., Any]) -> Callable[..., Any]:
    VALID[(f.__doc__ or f.__name__).rstrip(".")] = f
    return f


def invalid(f: Callable[..., Any], fewest: int = 2) -> Callable[..., Any]:
    name = (f.__doc__ or f.__name__).rstrip(".")
    INVALID[name], FEWEST[name] = f, fewest
    return f


def needs(fewest: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return partial(invalid, fewest=fewest)


# The mission's candidates: valid, invalid, valid


@valid
def mission_mean(h, messages):
    """Mission: mean over neighbours with one shared weight."""
    return torch.relu(h @ W1 + (messages @ W2).mean(0))


@invalid
def mission_max_positions(h, messages):
    """Mission: maximum with a weight for each position."""
    weights = (W2, W3)
    rows = [h @ W1] + [messages[i] @ weights[i % 2] for i in range(len(messages))]
    return torch.stack(rows).max(0).values


@valid
def mission_max_shared(h, messages):
    """Mission: maximum with one weight shared by all neighbours."""
    return torch.cat([(h @ W1)[None], messages @ W2]).max(0).values


# Valid


@valid
def mission_update(h, messages):
    """The mission's update: sigma(W h + sum W' m)."""
    return torch.sigmoid(h @ W1 + (messages @ W2).sum(0))


@valid
def total(h, messages):
    """Sum."""
    return messages.sum(0)


@valid
def largest(h, messages):
    """Maximum."""
    return messages.max(dim=0).values


@valid
def smallest(h, messages):
    """Minimum."""
    return torch.amin(messages, 0)


@valid
def middle(h, messages):
    """Median."""
    return messages.median(dim=0).values


@valid
def span(h, messages):
    """Range: maximum less minimum."""
    return messages.amax(0) - messages.amin(0)


@valid
def by_softmax(h, messages):
    """Softmax-weighted sum."""
    scores = torch.softmax(messages @ A, dim=0)
    return (scores[:, None] * messages).sum(0)


@valid
def sorted_shared(h, messages):
    """Sorted features, weighted by rank."""
    ranked = messages.sort(dim=0).values
    return (ranked * torch.linspace(0, 1, len(messages), dtype=messages.dtype)[:, None]).sum(0)


@valid
def top_two(h, messages):
    """Top-k by value."""
    return messages.topk(2, dim=0).values.mean(0)


@valid
def by_count(h, messages):
    """Dependence on n, with a branch."""
    n = len(messages)
    if n == 0:
        return torch.zeros_like(h)
    if n > 5:
        return messages.sum(0) / math.sqrt(n)
    return messages.mean(0) * n**2


@valid
def variance(h, messages):
    """Variance."""
    return messages.var(0, unbiased=False)


@valid
def variance_by_hand(h, messages):
    """Variance as a difference of means, which cancels."""
    return (messages**2).mean(0) - messages.mean(0) ** 2


@valid
def log_sum_exp(h, messages):
    """Log-sum-exp."""
    return torch.logsumexp(messages, 0)


@valid
def attention(h, messages):
    """Attention by h, as GAT's."""
    e = F.leaky_relu((h @ W1 @ A) + (messages @ W2) @ A, 0.2)
    return torch.einsum("n,nd->d", e.softmax(0), messages @ W2)


@valid
def dot_product(h, messages):
    """Scaled dot-product attention."""
    return F.scaled_dot_product_attention((h @ W1)[None], messages @ W2, messages @ W3)[0]


@valid
def gin(h, messages):
    """GIN: a network of (1 + eps) h + sum."""
    return MLP(1.1 * h + messages.sum(0))


@valid
def degree_scaled(h, messages):
    """Scaled by log of the degree, as PNA's."""
    return messages.mean(0) * math.log(len(messages) + 1) + messages.std(0, correction=0)


@valid
def deep_sets(h, messages):
    """Deep sets: a network of each, summed, and a network."""
    return MLP(MLP(messages).sum(0)) + NORM(h)


@valid
def single_precision(h, messages):
    """A network in single precision."""
    return SINGLE(messages).mean(0) + h


@valid
def half_sum(h, messages):
    """Sum in half precision: rounding depends on the order."""
    return messages.half().sum(0)


@valid
def half_loop(h, messages):
    """Sum in half precision, one by one."""
    total = torch.zeros(messages.shape[1], dtype=torch.float16)
    for message in messages:
        total = total + message.half()
    return total


@valid
def brain_float_mean(h, messages):
    """Mean in bfloat16, times a large number."""
    return messages.bfloat16().mean(0) * 1000


@valid
def large_offset(h, messages):
    """Sum around a large number, which cancels."""
    return (messages + 1e8).sum(0) - 1e8 * len(messages)


@valid
def rounded(h, messages):
    """Rounded mean, which jumps."""
    return torch.round(10 * messages.mean(0)) / 10


@valid
def steep(h, messages):
    """Steep: exp of the sum."""
    return torch.exp(messages.sum(0).clamp(-50, 50))


@valid
def sum_of_signs(h, messages):
    """Sign of the sum of tenths."""
    return torch.sign((0.1 * messages).sum(0))


@valid
def product(h, messages):
    """Product."""
    return messages.prod(0)


@valid
def pairs(h, messages):
    """Sum over all pairs."""
    return (messages @ messages.T).tanh().sum()


@valid
def distances(h, messages):
    """Mean distance to the centre."""
    return (messages - messages.mean(0)).norm(dim=1).mean()


@valid
def loop_sum(h, messages):
    """A sum written as a loop."""
    total = torch.zeros_like(h)
    for i in range(len(messages)):
        total = total + messages[i] @ W1
    return total


@valid
def numpy_mean(h, messages):
    """Mean by NumPy, in half precision."""
    return torch.from_numpy(messages.numpy().astype(np.float16).mean(0))


@valid
def of_python(h, messages):
    """Sum of Python's numbers, exactly rounded."""
    return torch.tensor([math.fsum(column) for column in messages.T.tolist()])


@valid
def sorted_first(h, messages):
    """Sorted, then a running sum, then its differences from position."""
    ranked = messages.sort(0, descending=True).values
    return (ranked.cumsum(0) * torch.arange(len(messages))[:, None]).sum(0)


@valid
def counting(h, messages):
    """Share of positive features."""
    return (messages > 0).double().mean(0)


@valid
def by_heads(h, messages):
    """Two heads of attention."""
    q, k = torch.cat([h, h]).view(2, -1), torch.cat([messages, messages], 1).view(len(messages), 2, -1)
    scores = (k * q).sum(-1).softmax(0)
    return (scores[..., None] * k).sum(0).flatten()


@valid
def quantiles(h, messages):
    """Quartiles."""
    return torch.quantile(messages, torch.tensor([0.25, 0.75], dtype=messages.dtype), dim=0)


@valid
def without_messages(h, messages):
    """No use of the messages."""
    return h @ W1


@valid
def all_or_none(h, messages):
    """The largest of a set that is put beside zeros."""
    return torch.cat([messages, torch.zeros(2, D, dtype=messages.dtype)]).amax(0)


# A set of another kind: the attentive head over CLS (h) and patches (messages)


@valid
def head_presence(h, messages):
    """Attentive head: presence."""
    return HEAD(torch.cat([h[None], messages])[None]).logit[0]


@valid
def head_evidence(h, messages):
    """Attentive head: summed evidence."""
    return HEAD(torch.cat([h[None], messages])[None]).patch_logits[0].sigmoid().sum()


# Invalid


@invalid
def head_places(h, messages):
    """Attentive head with a position embedding."""
    return HEAD(torch.cat([h[None], messages + PLACES[: len(messages)]])[None]).logit[0]


@invalid
def lstm(h, messages):
    """LSTM."""
    return LSTM(messages)[1][0][0]


@invalid
def gru_single(h, messages):
    """GRU in single precision, its last state."""
    return GRU(messages)[0][-1]


@invalid
def position_weights(h, messages):
    """A weight for each position."""
    return (RANKS[: len(messages)] * messages).sum(0)


@invalid
def arange_weights(h, messages):
    """Weights 1, 2, 3, ..."""
    return (torch.arange(len(messages))[:, None] * messages).sum(0)


@invalid
def cumulative(h, messages):
    """Running sum, summed."""
    return messages.cumsum(0).sum(0)


@invalid
def first_neighbour(h, messages):
    """The first neighbour."""
    return messages[0] + h


@invalid
def last_neighbour(h, messages):
    """The last neighbour, beside the sum."""
    return messages.sum(0) + 0.1 * messages.select(0, -1)


@invalid
def parity(h, messages):
    """Even positions only."""
    return messages[::2].sum(0)


@invalid
def alternating(h, messages):
    """Alternating signs."""
    return sum(((-1) ** i * m for i, m in enumerate(messages)), torch.zeros_like(h))


@needs(4)
def beyond_three(h, messages):
    """Order-dependent only when n > 3."""
    return messages[0] if len(messages) > 3 else messages.mean(0)


@needs(7)
def beyond_six(h, messages):
    """Order-dependent only when n > 6."""
    return messages.sum(0) + (messages[3] if len(messages) > 6 else 0)


@needs(41)
def beyond_forty(h, messages):
    """Order-dependent only when n > 40."""
    return messages.amax(0) + (messages[7] if len(messages) > 40 else 0)


@invalid
def slightly(h, messages):
    """A difference of 1e-4."""
    return messages.mean(0) + 1e-4 * messages[0]


@invalid
def slightly_half(h, messages):
    """A difference of 1e-4 behind a cast to half precision."""
    return messages.half().double().sum(0) + 1e-4 * messages[-1]


@invalid
def faintly(h, messages):
    """A difference of 1e-8, after a softmax."""
    scores = torch.softmax(messages @ A[: messages.shape[1]] if messages.shape[1] == D else messages.sum(1), 0)
    return (scores[:, None] * messages).sum(0) + 1e-8 * messages[0]


@invalid
def half_positions(h, messages):
    """Weights that differ by 1 % in half precision."""
    weights = (1 + 0.01 * torch.arange(len(messages))).half()
    return (weights[:, None] * messages.half()).sum(0)


@invalid
def half_running(h, messages):
    """A decaying state in half precision."""
    state = torch.zeros(messages.shape[1], dtype=torch.float16)
    for message in messages.half():
        state = 0.9 * state + message
    return state


@needs(1)
def random_weights(h, messages):
    """Random weights for each message."""
    return (messages * torch.rand(messages.shape[0], 1)).sum(0)


@needs(1)
def dropout(h, messages):
    """Dropout that is left on."""
    return F.dropout(messages, 0.5, training=True).sum(0)


@needs(1)
def untrained(h, messages):
    """A layer that is made anew at each call."""
    return nn.Linear(messages.shape[1], 2).double()(messages).sum(0)


@invalid
def seeded_weights(h, messages):
    """Seeded random weights for each message."""
    g = torch.Generator().manual_seed(1)
    return (messages * torch.rand(len(messages), 1, generator=g)).sum(0)


@invalid
def wrong_axis(h, messages):
    """Sum over the wrong axis."""
    return messages.sum(1)


@invalid
def flattened(h, messages):
    """Flattened and cut to a fixed length."""
    return F.pad(messages.flatten(), (0, 6))[:6]


@needs(3)
def captured(h, messages):
    """A captured tensor that varies along the neighbours."""
    return (messages * SQUARE).sum(0) if len(messages) == 3 else messages.sum(0)


@needs(3)
def square_confusion(h, messages):
    """A captured vector that meets the messages where n = d."""
    return (messages * A[:, None]).sum(0) if len(messages) == D else messages.sum(0)


@needs(3)
def transposed_weights(h, messages):
    """Weights on the wrong side where n = d."""
    return (W1 @ messages).amax(0) if messages.shape == (D, D) else messages.amax(0)


@invalid
def merged(h, messages):
    """A reshape that merges the messages with their features."""
    n, d = messages.shape
    return messages.reshape(d, n).amax(1)


@invalid
def strided(h, messages):
    """Strides that walk across rows."""
    return messages.as_strided((max(len(messages) - 1, 1),), (1,)).sum()


@invalid
def convolved(h, messages):
    """A convolution along the neighbours."""
    return CONV(messages.T[None])[0].relu().sum(1)


@needs(3)
def differences(h, messages):
    """Differences of neighbours in the list."""
    return messages.diff(dim=0).abs().sum(0)


@needs(3)
def rolled(h, messages):
    """Products with the next in the list."""
    return (messages * messages.roll(1, 0) ** 2).sum(0)


@needs(3)
def flipped(h, messages):
    """Products with the list turned round, position by position."""
    return (messages * messages.flip(0) * torch.linspace(0, 1, len(messages))[:, None]).sum(0)


@invalid
def argmax_ties(h, messages):
    """The message whose first feature is largest: ties."""
    return messages[messages[:, 0].argmax()]


@invalid
def argsort_ties(h, messages):
    """Sorted by the first feature, weighted by rank: ties."""
    ranked = messages[messages[:, 0].argsort()]
    return (ranked * torch.arange(len(messages))[:, None]).sum(0)


@invalid
def argsort_ties_weighted(h, messages):
    """Sorted by the first feature, weights with long mantissas: ties."""
    ranked = messages[torch.argsort(messages[:, 0], stable=True)]
    return (ranked * RANKS[: len(messages)]).sum(0)


@invalid
def median_index(h, messages):
    """The place of the median."""
    return messages.median(0).indices.double()


@invalid
def sort_index(h, messages):
    """The places of the sorted."""
    return (messages.sort(0).indices * torch.arange(1, len(messages) + 1)[:, None]).sum(0)


@invalid
def top_index(h, messages):
    """Features taken by another feature's place."""
    at = messages[:, :1].topk(1, 0).indices
    return messages.gather(0, at.expand(1, messages.shape[1])).sum(0)


@invalid
def triangle(h, messages):
    """A triangular mask over pairs."""
    return ((messages @ messages.T).tril(-1) * messages[:, :1]).sum()


@invalid
def causal(h, messages):
    """Causal attention, summed."""
    return F.scaled_dot_product_attention(messages[None], messages[None], messages[None], is_causal=True)[0].sum(0)


@invalid
def diagonal(h, messages):
    """A diagonal of messages by features."""
    return messages.diagonal().sum()


@invalid
def traced(h, messages):
    """The trace in place of the sum."""
    return messages.trace()


@invalid
def einsum_positions(h, messages):
    """einsum with weights along the set."""
    return torch.einsum("nd,nk->d", messages, RANKS[: len(messages)])


@invalid
def einsum_diagonal(h, messages):
    """einsum along a diagonal."""
    k = min(messages.shape)
    return torch.einsum("ii->i", messages[:k, :k]).sum()


@invalid
def horner(h, messages):
    """Horner's rule: powers by position."""
    out = torch.zeros_like(h)
    for message in messages:
        out = 0.5 * out + message
    return out


@invalid
def matrix_chain(h, messages):
    """A chain of matrices, which do not commute."""
    out = torch.eye(2, dtype=messages.dtype)
    for x in messages[:, 0]:
        out = out @ torch.stack([torch.stack([x, x + 1]), torch.stack([x * 0 + 2, x])])
    return out


@invalid
def saturating(h, messages):
    """A clamp inside a running sum."""
    out = torch.zeros_like(h)
    for message in messages:
        out = (out + message).clamp(-1, 1)
    return out


@invalid
def subtraction(h, messages):
    """The first less the others."""
    return messages[0] - messages[1:].sum(0)


@invalid
def running_mean(h, messages):
    """A moving average."""
    out = h
    for message in messages:
        out = out + 0.3 * (message - out)
    return out


@invalid
def branch_on_first(h, messages):
    """A branch on the first message."""
    return messages.sum(0) if messages[0, 0] > 0 else messages.amax(0)


@needs(3)
def rare_branch(h, messages):
    """A branch that few features take."""
    return messages[0] if bool((messages.sum() > 50) & (len(messages) == 3)) else messages.sum(0)


@invalid
def equal_rows(h, messages):
    """Only where two messages are equal in a feature."""
    tie = (messages[:, 0] == messages[:1, 0]).sum() > 1
    return messages.sum(0) + (messages[0] if tie else 0)


@invalid
def raises_by_order(h, messages):
    """It raises where the first is negative."""
    if messages[0, 0] < 0:
        raise ValueError("negative")
    return messages.sum(0)


@invalid
def caught(h, messages):
    """An exception that is caught."""
    try:
        return messages.view(1, 2, -1)[:, 0].sum(0)
    except RuntimeError:
        return messages[-1]


@invalid
def out_argument(h, messages):
    """A result that is written with out=."""
    out = torch.zeros_like(messages)
    torch.cumsum(messages, 0, out=out)
    return out.sum(0)


@invalid
def in_place_rows(h, messages):
    """Rows written in place, one by one."""
    out = torch.zeros_like(messages)
    out[0] = messages[0]
    for i in range(1, len(messages)):
        out[i] = out[i - 1] * 0.5 + messages[i]
    return out.sum(0)


@invalid
def aliased(h, messages):
    """A view that is written to."""
    copy = messages.clone()
    view = copy[:1]
    view.mul_(2)
    return copy.sum(0)


@invalid
def through_data(h, messages):
    """.data of a copy is written to."""
    copy = messages.clone()
    copy.data[0] = 0
    return copy.sum(0)


@invalid
def through_numpy(h, messages):
    """Weights by position in NumPy."""
    values = messages.numpy()
    return torch.from_numpy((values * np.arange(1, len(values) + 1)[:, None]).sum(0))


@invalid
def through_lists(h, messages):
    """Positions in Python's lists."""
    rows = messages.tolist()
    return torch.tensor([sum(i * x for i, x in enumerate(column)) for column in zip(*rows)], dtype=torch.float64)


@invalid
def through_items(h, messages):
    """The first message by item()."""
    return messages.sum(0) * (1 if len(messages) < 2 else messages[0, 0].item())


@invalid
def accumulate(h, messages):
    """itertools.accumulate."""
    return list(itertools.accumulate(messages, lambda a, b: a * 0.5 + b))[-1]


STATE: dict[str, Any] = {"calls": 0, "first": None}


@needs(1)
def counter(h, messages):
    """A counter of calls."""
    STATE["calls"] += 1
    return messages.sum(0) * (STATE["calls"] % 2)


@needs(1)
def every_hundredth(h, messages):
    """State that shows at every hundredth call."""
    STATE["calls"] += 1
    return messages.sum(0) + (STATE["calls"] % 100 == 0)


@needs(1)
def attribute(h, messages):
    """State in an attribute of the function."""
    attribute.seen = getattr(attribute, "seen", 0) + 1  # pyright: ignore[reportFunctionMemberAccess]
    return messages.mean(0) + attribute.seen  # pyright: ignore[reportFunctionMemberAccess]


@needs(1)
def default_state(h, messages, seen=[]):  # noqa: B006
    """State in a default argument."""
    seen.append(1)
    return messages.mean(0) * len(seen)


def hiding(f: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(h, messages):
        return f(h, messages) + messages[0]

    wrapper.__wrapped__ = f  # pyright: ignore[reportFunctionMemberAccess]
    return wrapper


INVALID["A wrapper that claims to be what it wraps"] = hiding(total)
INVALID["A lambda with a running sum"] = lambda h, m: m.cumsum(0).sum(0)
INVALID["A partial function that fills in weights by position"] = partial(
    lambda w, h, m: (w[: len(m)] * m).sum(0), RANKS
)
INVALID["A captured list of weights, zipped"] = lambda h, m, w=tuple(RANKS): sum(a * b for a, b in zip(w, m))
CONFIG = SimpleNamespace(dim=0)
INVALID["An axis that depends on n"] = lambda h, m: m.sum(min(len(m) // 4, 1)) if len(m) > 3 else m.sum(0)
FEWEST["An axis that depends on n"] = 4


class Positional(nn.Module):
    """A learnt vector for each position."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.linspace(0, 1, 512 * D, dtype=torch.float64).view(512, D))

    def forward(self, h: Tensor, messages: Tensor) -> Tensor:
        return MLP(messages + self.places[: len(messages)]).sum(0)


class Hooked(nn.Module):
    """A hook that turns a sum into the first message."""

    def forward(self, h: Tensor, messages: Tensor) -> Tensor:
        return messages.sum(0)


hooked = Hooked()
hooked.register_forward_hook(lambda module, inputs, output: inputs[1][0])
INVALID["A learnt vector for each position"] = Positional()
INVALID["A hook that turns a sum into the first message"] = hooked


class Watching(torch.autograd.Function):
    """Forward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.cumsum(0)


INVALID["A custom autograd function"] = lambda h, m: Watching.apply(m).sum(0)
INVALID["vmap over positions"] = lambda h, m: torch.func.vmap(lambda x, i: x * i)(m, torch.arange(len(m))).sum(0)
INVALID["scatter by position"] = lambda h, m: torch.zeros(2, m.shape[1], dtype=m.dtype).index_add(
    0, torch.arange(len(m)) % 2, m
)[0]  # fmt: skip
INVALID["bincount of features weighted by position"] = lambda h, m: torch.bincount(
    (m[:, 0].abs().long()) % 4, weights=torch.arange(len(m)).double(), minlength=4
)  # fmt: skip
INVALID["unique, and where each came from"] = lambda h, m: (
    torch.unique(m[:, 0], return_inverse=True)[1].double() @ torch.arange(len(m)).double()
)  # fmt: skip


@invalid
def wide_only(h, messages):
    """The first message, where there are more than two features."""
    return messages[0] if messages.shape[1] > 2 else messages.sum(0)
