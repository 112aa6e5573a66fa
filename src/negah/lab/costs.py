"""What a step costs: its time beside another's, and the memory that it holds at its peak.

Steps run in turns, so that whatever else a machine does falls on all; what is stated is a ratio of neighbours in time,
its median and the middle half.  Memory is what PyTorch's allocator holds at its peak, during one step and beyond what
was there before: exact and the same every time, where the size of a process is neither, but includes what others than
PyTorch take.
"""

import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from negah.lab.training import Effort
from negah.nn.heap import give_back

Step = Callable[[], object]

LEAST_ROUNDS, MOST_ROUNDS = 5, 25
ANEW = Path("/proc/self/clear_refs")  # Linux: "5" lets the highest size of a process so far begin anew


@dataclass(frozen=True)
class Cost:
    """Seconds of each round, and bytes at the peak of one step."""

    seconds: list[float]
    peak: int

    def row(self, base: "Cost") -> dict[str, Any]:
        """Figures, beside those of `base` that ran in the same rounds: `speed` above 1 is faster than it."""
        ratios = [theirs / ours for ours, theirs in zip(self.seconds, base.seconds)]
        low, middle, high = quantiles(ratios, n=4, method="inclusive")
        return {
            "ms": 1000 * median(self.seconds), "MB": self.peak / 1e6, "speed": middle, "speed, lower quarter": low,
            "speed, upper quarter": high, "memory": self.peak / base.peak, "rounds": len(ratios),
        }  # fmt: skip


def device() -> torch.device:
    """Where steps are to run: an accelerator only where its peak memory can be asked for."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def costs(steps: Mapping[str, Step], effort: Effort) -> dict[str, Cost]:
    """Run the steps in turns, after a first round that does not count; then one more of each for its peak.

    The number of rounds follows `effort.steps`: 15 at its default.
    """
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(min(MOST_ROUNDS, max(LEAST_ROUNDS, effort.steps // 20))):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    found = {name: Cost(seconds[name], peak_memory(step)) for name, step in steps.items()}
    for name, cost in found.items():
        effort.say(f"{name}: {1000 * median(cost.seconds):.1f} ms, {cost.peak / 1e6:.1f} MB")
    return found


def peak_memory(step: Step) -> int:
    """Bytes that tensors hold at the peak of `step`, beyond those from before it, which it must not free."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would tell of each start, and of a missing GPU
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        traced.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def highest(run: Callable[[], object]) -> tuple[int, int]:
    """Highest resident size of this process during a run, in bytes: above what it held before, and in all.

    Linux only.  For a process that has done nothing large before: free memory which the system did not get back would
    be used unseen.
    """
    gc.collect()
    give_back()  # or it would count as in use before
    ANEW.write_text("5")
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before, _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
