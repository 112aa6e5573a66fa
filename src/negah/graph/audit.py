"""Audit an update function: certified, refuted, or not refuted.

A layer of message passing computes, for each node with features h and its neighbours' messages m_1 ... m_n,

    h' = f(h, {m_1, ..., m_n})

and neighbours have no order: f is valid on an undirected graph if f(h, m[p]) = f(h, m) for every permutation p.  Then
the layer is equivariant, F(PH, PAP^T) = P F(H, A): a node's new features do not depend on how the nodes are numbered.
Gilmer et al. 2017, "Neural message passing for quantum chemistry", arXiv:1704.01212; Zaheer et al. 2017, "Deep sets",
arXiv:1703.06114.

- certified: a derivation shows it for every n and all features (`negah.graph.derive`);
- refuted: features and an order are given by which the value changes by more than rounding (`negah.graph.refute`);
- not refuted: neither; it says what was tried, and where the derivation ended.  That is no proof.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from negah.graph.derive import Step, derive
from negah.graph.precision import Subject
from negah.graph.refute import Counterexample, Tried, search, widths_of

Verdict = Literal["certified", "refuted", "not refuted"]
CHECKED = (5,)  # sizes at which a certified function is run as well


@dataclass(frozen=True)
class Audit:
    """What is known of a function.

    verdict: see above.  name: of the function.  width: of the features that a certificate is for; None for every.
    derivation: its lines (only where certified).  unproved: why there is no certificate.
    counterexample: the smallest that was found.  tried: where it was run.
    """

    verdict: Verdict
    name: str
    width: int | None
    derivation: list[Step] = field(default_factory=list)
    unproved: str = ""
    counterexample: Counterexample | None = None
    tried: Tried = field(default_factory=Tried)


def audit(
    f: Callable[..., Any], *, width: int | None = None, seed: int = 0, seconds: float = 20.0, name: str = ""
) -> Audit:
    """Audit `f(h, messages)`: h [d] of one node, messages [n, d] of its neighbours, to a tensor of any shape.

    f is run, in this process: call it only on code that you trust.  It sees float64 features, or float32 where it takes
    no others; torch's global generator is as before afterwards.

    Args:
        width: d; without it the widths that f takes are found by trying.
        seconds: the search ends after these; a call that does not return is not interrupted.

    Raises InputError where f raises at every n, returns no tensor or only NaN, or writes into its inputs.
    """
    subject = Subject(f, name or getattr(f, "__name__", type(f).__name__))
    with torch.random.fork_rng(devices=[]):
        widths = widths_of(subject, width)
        # Of a function that takes any width, a certificate for one would say nothing of the others.
        certain = width
        derivation = derive(f, certain)
        if derivation.unproved and width is None and len(widths) == 1:
            certain = widths[0]
            derivation = derive(f, certain)
        subject.deadline = time.monotonic() + seconds
        if not derivation.unproved:
            _, tried = search(subject, widths[-1:], seed=seed, sizes=CHECKED)
            return Audit("certified", subject.name, certain, derivation.steps, tried=tried)
        found, tried = search(subject, widths, seed=seed)
    verdict: Verdict = "not refuted" if found is None else "refuted"
    return Audit(verdict, subject.name, width, [], derivation.unproved, found, tried)
