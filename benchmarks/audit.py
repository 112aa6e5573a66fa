"""Does the auditor tell valid update functions from invalid ones?

    python benchmarks/audit.py

Valid and invalid functions of `audit_cases.py`, the mission's three candidates among them.  Right is a verdict that
certifies or does not refute a valid function, and one that refutes an invalid one with as few messages as there can be.
Beside it stands what whoever tests by hand would do: one permutation of normal features in float32, allclose.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from audit_cases import FEWEST, INVALID, VALID
from results import write

from negah.errors import NegahError
from negah.graph.audit import Audit, audit
from negah.graph.precision import Subject
from negah.graph.refute import search, widths_of


def by_hand(f: Callable[..., Any]) -> str:
    """The usual test: one shuffle of 5 messages with 3 features, float32, torch.allclose."""
    generator = torch.Generator().manual_seed(0)
    h, m = torch.randn(3, generator=generator), torch.randn(5, 3, generator=generator)
    for dtype in (torch.float32, torch.float64):
        try:
            a, b = (torch.as_tensor(f(h.to(dtype), x.to(dtype))) for x in (m, m[torch.tensor([3, 0, 4, 1, 2])]))
            return "passes" if a.shape == b.shape and torch.allclose(a, b) else "fails"
        except Exception:
            continue
    return "raises"


def row(name: str, f: Callable[..., Any], kind: str, seconds: float) -> dict[str, Any]:
    """What came out for one function."""
    hand = by_hand(f)
    try:
        found: Audit | None = audit(f, seconds=seconds)
        verdict = found.verdict
    except NegahError as problem:
        found, verdict = None, f"error: {problem}"
    shown = found.counterexample if found is not None else None
    searched = verdict
    if found is not None and verdict == "certified":  # what the search would have said of it
        subject = Subject(f, name, time.monotonic() + seconds)
        searched = "not refuted" if search(subject, widths_of(subject, None))[0] is None else "refuted"
    messages = len(shown.inputs["messages"]) if shown is not None else None
    return {
        "function": name, "truth": kind, "verdict": verdict, "by search alone": searched,
        "right": (verdict == "refuted") == (kind == "invalid") and found is not None,
        "messages": messages,
        "fewest": FEWEST.get(name, 2) if kind == "invalid" else None,
        "difference": shown.difference if shown is not None else None,
        "rounding": shown.rounding if shown is not None else None,
        "by hand": hand,
        "seconds": round(found.tried.seconds, 2) if found is not None else None,
    }  # fmt: skip


def main() -> None:
    """Measure and write results/audit.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="for the search of each function")
    parser.add_argument("--only", default="", help="functions whose name holds this; nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for kind, cases in (("valid", VALID), ("invalid", INVALID)):
        for name, f in cases.items():
            if arguments.only in name:
                rows.append(row(name, f, kind, arguments.seconds))
                print(*rows[-1].values(), sep=" | ", flush=True)
    good = [r for r in rows if r["truth"] == "valid"]
    bad = [r for r in rows if r["truth"] == "invalid"]
    counts = {
        "valid": len(good),
        "certified": sum(r["verdict"] == "certified" for r in good),
        "valid_refuted_by_search": sum(r["by search alone"] == "refuted" for r in good),
        "valid_refuted": sum(r["verdict"] == "refuted" for r in good),
        "invalid": len(bad),
        "refuted": sum(r["verdict"] == "refuted" for r in bad),
        "invalid_certified": sum(r["verdict"] == "certified" for r in bad),
        "minimal": sum(r["messages"] is not None and r["messages"] <= max(2, r["fewest"]) for r in bad),
        "at_most_4": sum(r["messages"] is not None and r["messages"] <= 4 for r in bad),
        "right_by_hand": sum((r["by hand"] == "passes") == (r["truth"] == "valid") for r in rows),
    }
    print(counts)
    if not arguments.only:
        write(
            "audit", claim="The auditor refutes every invalid update function, and no valid one", rows=rows, seeds=[0],
            **counts,
            headline={"value": sum(r["right"] for r in rows) / len(rows), "unit": "share judged rightly", "target": 1,
                      "better": "higher"},
        )  # fmt: skip


if __name__ == "__main__":
    main()
