"""Where the heads look, against masks: when not to trust a map of attention.

For each head, in the first look at windows that hold panels,

    pointing   how often its strongest patch is on a panel (the pointing game, Zhang et al. 2016, arXiv:1608.00507)
    iou        of the patches that get more than their even share, with the panels
    inside     what share of its attention to patches falls on panels; compare with `covered`, which chance would give
    sink       what share of its attention goes to nothing in the picture: to the CLS token itself, or to patches
               without panels that take SINK times their even share, as transformers use some for scratch space
               (Darcet et al. 2023, arXiv:2309.16588)

and the same of the evidence, but for `sink`, which has no meaning there and is None.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from negah.solar.area import Known, overlap, shrunk

SINK = 5.0  # times the even share
ON_PANEL = 0.25  # of a patch that is panel


class Head(NamedTuple):
    """What is said of one head, or of the evidence; see above."""

    name: str
    pointing: float
    iou: float
    inside: float
    sink: float | None


class Audit(NamedTuple):
    """covered: share of the windows that panels cover, in the mean."""

    windows: int
    covered: float
    heads: tuple[Head, ...]


def audit(known: Sequence[Known]) -> Audit | None:
    """Each head, then the evidence, on windows that hold panels; None where there are none."""
    seen = [(k.look.glance, shrunk(k.fraction, *k.look.glance.evidence.shape)) for k in known]
    held = [(first, t) for first, t in seen if (t >= ON_PANEL).any()]
    if not held:
        return None
    heads = []
    for h in range(len(held[0][0].share)):
        maps = [np.exp(first.share[h]) / first.share[h].size for first, _ in held]  # what patches get
        even = [m * m.size for m in maps]
        heads.append(_head(f"head {h + 1}", maps, [e > 1 for e in even], [t for _, t in held], even))
    maps = [expit(first.evidence) for first, _ in held]
    heads.append(_head("evidence", maps, [m >= 0.5 for m in maps], [t for _, t in held], None))
    return Audit(len(held), float(np.mean([t.mean() for _, t in held])), tuple(heads))


def _head(name: str, maps: list, said: list, truths: list, even: list | None) -> Head:
    pointing = np.mean([t.flat[int(np.argmax(m))] >= ON_PANEL for m, t in zip(maps, truths, strict=True)])
    both, either = np.sum([overlap(s, t) for s, t in zip(said, truths, strict=True)], axis=0)
    inside = np.mean([(m * t).sum() / max(m.sum(), 1e-9) for m, t in zip(maps, truths, strict=True)])
    sink = None
    if even is not None:
        lost = [1 - m.sum() + m[(e >= SINK) & (t < ON_PANEL)].sum() for m, e, t in zip(maps, even, truths, strict=True)]
        sink = float(np.mean(lost))
    return Head(name, float(pointing), float(both / max(either, 1e-9)), float(inside), sink)
