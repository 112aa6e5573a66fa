"""Sentences made of a run's figures, whichever way these came out.

Accuracies are compared by two standard errors of their difference, as if they were of different pictures: on the safe
side where they are of the same, and blind to what another seed would have changed.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import mean

from negah.lab.training import Learned, Pictures


def by_label(runs: Sequence[Learned]) -> dict[str, list[Learned]]:
    """The runs of each setting."""
    return {label: [run for run in runs if run.label == label] for label in dict.fromkeys(run.label for run in runs)}


def error(p: float, n: int) -> float:
    """Two standard errors of the difference of two accuracies near p, each of n pictures."""
    return 2 * math.sqrt(2 * p * (1 - p) / n)


def against(a: float, b: float, n: int) -> str:
    """ "above", "below" or "no different from": accuracy a against b, each of n pictures."""
    return "no different from" if abs(a - b) <= error((a + b) / 2, n) else "above" if a > b else "below"


def collapses(runs: Sequence[Learned]) -> str:
    """Which kind of collapse the doctor read last, in which settings."""
    kinds: dict[str, list[str]] = {}
    for label, mine in by_label(runs).items():
        for kind, count in Counter(run.kind for run in mine).items():
            kinds.setdefault(kind, []).append(label if count == len(mine) else f"{label} ({count} of {len(mine)})")
    healthy = kinds.pop("none", [])
    found = [f"{kind} ({', '.join(labels)})" for kind, labels in kinds.items()]
    return f"Collapse: {'; '.join(found) or 'nowhere'}. None: {', '.join(healthy) or 'nowhere'}."


def gains(runs: Sequence[Learned], pictures: Pictures, *, name: str = "knn") -> str:
    """Which settings' features are better than those of networks before training, and which are not."""
    words: dict[str, list[str]] = {"above": [], "no different from": [], "below": []}
    start = mean(run.first(name) for run in runs)
    for label, mine in by_label(runs).items():
        value = mean(run.last(name) for run in mine)
        words[against(value, start, len(pictures.test))].append(f"{label} {value:.3f}")
    said = [f"{word} it: {', '.join(labels)}" for word, labels in words.items() if labels]
    return f"kNN accuracy before training is {start:.3f}; {'; '.join(said)}."


def versus(runs: Sequence[Learned], label: str, other: str, pictures: Pictures, *, name: str = "knn") -> str:
    """The accuracy of one setting against that of another."""
    groups = by_label(runs)
    a, b = (mean(run.last(name) for run in groups[which]) for which in (label, other))
    return f"{label} ends {against(a, b, len(pictures.test))} {other} ({a:.3f}, {b:.3f})."


def trend(by: Mapping[int, Sequence[Learned]], pictures: Pictures, *, name: str = "knn") -> str:
    """The accuracy with most of something against that with least."""
    values = {number: mean(run.last(name) for run in by[number]) for number in sorted(by)}
    least, *_, most = values
    return (
        f"with {most} {against(values[most], values[least], len(pictures.test))} {least}"
        f" ({', '.join(f'{number}: {value:.3f}' for number, value in values.items())})"
    )
