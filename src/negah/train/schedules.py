"""Values that change over a run: each schedule maps progress in [0, 1] to a value.

    cosine(a, b)(p) = b + (a - b) (1 + cos(pi p)) / 2        Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5
    linear(a, b)(p) = a + (b - a) p

A schedule knows nothing of steps, so one value (a temperature, an EMA momentum, a weight decay) reads the same whatever
the length of the run.  For the learning rate `fit` puts a linear warm-up of so many steps in front.
"""

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def constant(value: float = 1.0) -> Schedule:
    """The same value throughout."""
    return lambda progress: value


def linear(start: float = 1.0, end: float = 0.0) -> Schedule:
    """A straight line from `start` to `end`."""
    return lambda progress: start + (end - start) * progress


def cosine(start: float = 1.0, end: float = 0.0) -> Schedule:
    """Half a cosine from `start` to `end`: flat at both ends, steepest half-way."""
    return lambda progress: end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def ramp(schedule: Schedule, until: float) -> Schedule:
    """`schedule` squeezed into progress [0, until], its last value after that (a teacher's temperature warming up)."""
    if not 0 < until <= 1:
        raise ValueError(f"ramp needs 0 < until <= 1, got {until}")
    return lambda progress: schedule(min(progress / until, 1.0))


def warmed(step: int, steps: int, warmup: int, schedule: Schedule) -> float:
    """Factor on the learning rate at `step` of `steps`: (step + 1) / warmup while warming up, then the schedule.

    The first step already learns something (its factor is 1 / warmup and not 0).
    """
    if step < warmup:
        return (step + 1) / warmup
    return schedule((step - warmup) / max(steps - warmup, 1))
