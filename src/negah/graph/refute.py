"""Search for a counterexample: features and an order of the messages by which an update function's value changes.

    f(h, m[p]) == f(h, m)    for every permutation p of the rows of m

(1 2) and (1 2 ... n) generate every permutation, so one of them shows a violation somewhere if any does; for few
messages all are tried.  Features are small integers first, ties, equal and single messages among them, then normal and
badly scaled ones; sizes run from the smallest up, so that what is found first is found with the fewest messages.  It is
then made smaller: fewer messages, a transposition, simpler numbers.

That nothing was found proves nothing.  Rounding is told apart in `negah.graph.precision`.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from negah.errors import InputError
from negah.graph.precision import Gap, Inputs, Leaving, OutOfTime, Output, Subject, Unsteady, apart, changed, same

FEW = 4  # messages of which every order is tried
SIZES = (*range(2, 51), 64, 77, 100, 128, 200, 257, 512)
WIDTHS = (*range(1, 17), 20, 24, 32, 48, 50, 64, 96, 100, 128, 192, 256, 300, 384, 512, 768, 1024)
SHRINKING = 3000  # evaluations spent on making a counterexample smaller


@dataclass(frozen=True)
class Counterexample:
    """Two inputs that differ in order only, and what comes out.

    kind: "order" (of messages or edges), "nodes" (of a graph), or "repeat": the very same input, twice.
    inputs: by name.  permutation: the new order, as numbers of the old one.
    output, permuted: of the input and of the permuted one (for nodes: put back); a text is an error that was raised.
    difference: the largest in any entry.  rounding: how far arithmetic could have moved them apart.
    """

    kind: str
    inputs: dict[str, Tensor]
    permutation: tuple[int, ...]
    output: Output
    permuted: Output
    difference: float
    rounding: float
    note: str = ""


@dataclass
class Tried:
    """What a search has looked at.  refused: what the function raised, by n."""

    evaluations: int = 0
    widths: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    complete: bool = True


def widths_of(subject: Subject, asked: int | None) -> list[int]:
    """Widths of features that the function takes, smallest first, at most three; sets the type of number it takes.

    Raises InputError where there is none.
    """
    generator = torch.Generator().manual_seed(0)
    found: list[int] = []
    said: dict[int, str] = {}
    for dtype in (torch.float64, torch.float32):
        subject.dtype = dtype
        for width in [asked] if asked is not None else WIDTHS:
            for n in (3, 2, 5, 4, 8, 1, 16):
                with Leaving() as watch:
                    out = subject(normal(n, width, generator))
                subject.left |= watch.left
                if not isinstance(out, str):
                    found.append(width)
                    break
                said.setdefault(width, f"n = {n}, d = {width}: {out}")
            if len(found) == 3:
                return found
        if found:
            return found
    first = said[asked] if asked is not None else said[3]
    raise InputError(f"{subject.name} raises at {first}; it is called with h [d] and messages [n, d]")


def search(
    subject: Subject, widths: list[int], *, seed: int = 0, sizes: tuple[int, ...] = SIZES
) -> tuple[Counterexample | None, Tried]:
    """The simplest counterexample that is found, and what was tried.  It ends at the subject's deadline."""
    generator = torch.Generator().manual_seed(seed)
    tried = Tried(widths=widths)
    begun = time.monotonic()
    found: Counterexample | None = None
    try:
        found = _search(subject, widths, sizes, generator, tried)
    except Unsteady as shown:
        found = repeat(shown.inputs, shown.first, shown.again)
    except OutOfTime:
        tried.complete = False
    tried.evaluations, tried.seconds = subject.evaluations, time.monotonic() - begun
    return found, tried


def _search(
    subject: Subject, widths: list[int], sizes: tuple[int, ...], generator: torch.Generator, tried: Tried
) -> Counterexample | None:
    early = [normal(n, d, generator) for d in widths for n in (0, 1, 3, 4)]
    before = []
    for x in early:
        before.append(subject(x))
        again = repeated(subject, x)
        if again is not None:
            return again
        if isinstance(before[-1], str):
            tried.refused.setdefault(len(x[1]), before[-1])
    if all(isinstance(out, Tensor) and bool(out.isnan().all()) and out.numel() for out in before[-2:]):
        raise InputError(f"{subject.name} returns NaN for normal features of n = 3 and n = 4: nothing can be compared")
    for n in sizes:
        for width in widths:
            for x in features(n, width, generator):
                out = subject(x)
                if isinstance(out, str):
                    tried.refused.setdefault(n, out)
                for p in orders(n, generator):
                    gap = subject.differs(x, (x[0], x[1][list(p)]))
                    if gap is not None:
                        return smaller(subject, x, p, gap)
        tried.sizes.append(n)
    for x, out in zip(early, before):
        if changed(out, subject(x), x, subject.dtype):
            return repeat(x, out, subject(x))
    return None


def repeated(subject: Subject, x: Inputs) -> Counterexample | None:
    """A counterexample where the same input gives another output: randomness, or state that is kept."""
    first = subject(x)
    for _ in range(8 if len(x[1]) == 1 else 3):
        again = subject(x)
        if changed(first, again, x, subject.dtype):
            return repeat(x, first, again)
    return None


def repeat(x: Inputs, first: Output, again: Output) -> Counterexample:
    """The same input twice."""
    gap = float("inf")
    if isinstance(first, Tensor) and isinstance(again, Tensor) and first.shape == again.shape:
        gap = apart(first, again)
    return report("repeat", x, tuple(range(len(x[1]))), Gap(first, again, gap, 0.0))


def normal(n: int, width: int, generator: torch.Generator) -> Inputs:
    """h and messages of normal features."""
    draw = torch.randn(n + 1, width, generator=generator, dtype=torch.float64)
    return draw[0], draw[1:]


def features(n: int, width: int, generator: torch.Generator) -> Iterator[Inputs]:
    """Features to try, simple ones first; fewer where there are many messages."""

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (n, width), generator=generator).double()

    counting = torch.arange(1, n + 1).double()[:, None].expand(n, width).clone()
    zeros, ones = torch.zeros(width, dtype=torch.float64), torch.ones(width, dtype=torch.float64)
    yield zeros, counting
    yield ones, whole(-2, 2)
    yield normal(n, width, generator)
    yield ones, whole(0, 1)  # many ties
    if n > 100:
        return
    first = counting.clone()
    first[:, 0] = 1
    yield zeros, first  # the first features tie, the others do not
    yield zeros, 100 * whole(-9, 9)
    if n > 16:
        return
    single = torch.zeros(n, width, dtype=torch.float64)
    single[-1] = 1
    yield ones, single
    yield zeros, -counting
    yield whole(-2, 2)[0], whole(-9, 9)
    yield ones, torch.cat([ones[None], 2 * torch.ones(n - 1, width, dtype=torch.float64)])
    for scale in (1e-3, 1e3, 1e6):
        h, messages = normal(n, width, generator)
        yield h, scale * messages
    if n > FEW:
        return
    for _ in range(6):
        yield whole(-1, 2)[0], whole(-1, 2)
        yield normal(n, width, generator)
        h, messages = normal(n, width, generator)
        yield h, 5 * messages.abs()


def orders(n: int, generator: torch.Generator) -> Iterator[tuple[int, ...]]:
    """Permutations to try: the two that generate all, then all for few messages, else two more."""
    swap = (1, 0, *range(2, n))
    cycle = (*range(1, n), 0)
    yield swap
    if n > 2:
        yield cycle
    if 2 < n <= 3:
        yield from (p for p in itertools.permutations(range(n)) if p not in (swap, cycle, tuple(range(n))))
    elif n > 3:
        yield (*range(n - 2), n - 1, n - 2)
        yield tuple(reversed(range(n)))
        yield tuple(torch.randperm(n, generator=generator).tolist())


# Making it small


def smaller(subject: Subject, x: Inputs, p: tuple[int, ...], gap: Gap) -> Counterexample:
    """The counterexample with fewer messages, a simpler order and simpler features, as far as it stays one."""
    limit = subject.evaluations + SHRINKING

    def breaks(x: Inputs, p: tuple[int, ...]) -> Gap | None:
        try:
            return None if subject.evaluations > limit else subject.differs(x, (x[0], x[1][list(p)]))
        except (OutOfTime, Unsteady):
            return None

    x, p, gap = fewer(x, p, gap, breaks)
    for swap in transpositions(len(p)):
        if swap == p:
            break
        found = breaks(x, swap)
        if found is not None:
            p, gap = swap, found
            break
    x, gap = simpler(x, gap, lambda x: breaks(x, p))
    x, p, gap = fewer(x, p, gap, breaks)
    note = ""
    if isinstance(gap.output, Tensor) and isinstance(gap.permuted, Tensor):
        y, z = gap.output, gap.permuted
        if y.dim() and y.shape == z.shape and len(y) == len(p) and same(y[list(p)], z):
            note = "its output has a row for each message and follows their order: reduce it (sum, mean, max)"
    return report("order", x, p, gap, note)


def fewer(
    x: Inputs, p: tuple[int, ...], gap: Gap, breaks: Callable[[Inputs, tuple[int, ...]], Gap | None]
) -> tuple[Inputs, tuple[int, ...], Gap]:
    """Leave out messages, one by one, while some simple order still shows the violation."""
    row = 0
    while row < len(x[1]) and len(x[1]) > 2:
        less = (x[0], torch.cat([x[1][:row], x[1][row + 1 :]]))
        n = len(x[1]) - 1
        rest = tuple(i - (i > row) for i in p if i != row)
        tries = dict.fromkeys([rest, (1, 0, *range(2, n)), (*range(1, n), 0)])
        for order in tries:
            found = breaks(less, order) if order != tuple(range(n)) else None
            if found is not None:
                x, p, gap = less, order, found
                break
        else:
            row += 1
    return x, p, gap


def simpler(x: Inputs, gap: Gap, breaks: Callable[[Inputs], Gap | None]) -> tuple[Inputs, Gap]:
    """Put small whole numbers in place of features, all at once and then entry by entry."""
    for rounded in (1.0, 10.0):
        whole = tuple((rounded * v).round() / rounded if v.is_floating_point() else v for v in x)
        found = breaks(whole)
        if found is not None:
            x, gap = whole, found
            break
    for part in range(len(x)):
        if not x[part].is_floating_point():
            continue
        for at in range(x[part].numel()):
            for value in (0.0, 1.0, 2.0, -1.0):
                old = float(x[part].flatten()[at])
                if simplicity(old) <= simplicity(value):
                    break
                changed = x[part].clone().reshape(-1)
                changed[at] = value
                inputs = (*x[:part], changed.reshape(x[part].shape), *x[part + 1 :])
                found = breaks(inputs)
                if found is not None:
                    x, gap = inputs, found
                    break
    return x, gap


def simplicity(value: float) -> float:
    """Smaller is simpler: 0, 1, 2, -1, other whole numbers, the rest."""
    known = {0.0: 0, 1.0: 1, 2.0: 2, -1.0: 3}
    return known.get(value, 4 if value == round(value) and abs(value) < 100 else 5)


def transpositions(n: int) -> Iterator[tuple[int, ...]]:
    """Swaps of two, neighbours first."""
    for distance in range(1, n):
        for i in range(n - distance):
            p = list(range(n))
            p[i], p[i + distance] = p[i + distance], p[i]
            yield tuple(p)


def report(kind: str, x: Inputs, p: tuple[int, ...], gap: Gap, note: str = "") -> Counterexample:
    """As it is handed out."""
    names = {"h": x[0], "messages": x[1]}
    return Counterexample(kind, names, p, gap.output, gap.permuted, gap.difference, gap.rounding, note)
