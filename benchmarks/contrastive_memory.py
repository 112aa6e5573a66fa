"""Claim: CLIP's loss and its gradients in a tenth of the memory of open_clip's, and no more time, on a CPU.

    python benchmarks/contrastive_memory.py [--threads 1]

16,384 pictures and as many texts, 512 numbers each, fp32, a learned scale: loss and gradients of both and of the scale,
by `losses.contrast` and by open_clip's ClipLoss.  Memory is what a process holds at its highest above what it held
before, each contestant in processes of its own; time is taken in one process, in turns.  Both must agree.  A second
row is of 65,536 pairs, which the plain form would need 64 GB for: ours alone.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from results import write
from torch import Tensor

from negah.lab.costs import highest
from negah.losses.contrast import contrast

PAIRS, MANY, DIM, SCALE = 16_384, 65_536, 512, 1 / 0.07
TARGETS = {"memory": 0.1, "time": 1.1, "bytes": 4 * 2**30}
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def negah(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
    return contrast(images, texts, temperature=(-log_scale).exp(), symmetric=True)


def open_clip(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
    from open_clip import ClipLoss

    return ClipLoss()(F.normalize(images, dim=1), F.normalize(texts, dim=1), log_scale.exp())


CONTESTANTS: dict[str, Loss] = {"negah": negah, "open_clip": open_clip}


def inputs(pairs: int) -> list[Tensor]:
    """Texts near their pictures, so that the loss is that of a model in training."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(pairs, DIM, generator=generator)
    texts = images + 2 * torch.randn(pairs, DIM, generator=generator)
    scale = torch.tensor(SCALE).log()
    return [x.requires_grad_() for x in (images, texts, scale)]


def step(loss: Loss, x: list[Tensor]) -> tuple[float, list[Tensor]]:
    """Loss and gradients."""
    found = loss(*x)
    return found.item(), list(torch.autograd.grad(found, x))


def peak(loss: Loss, pairs: int) -> dict[str, float]:
    """In this process: bytes above what it held before, and the loss."""
    x, values = inputs(pairs), []
    step(loss, inputs(64))  # what is loaded at first use
    above, _ = highest(lambda: values.append(step(loss, x)[0]))
    return {"bytes": above, "loss": values[0]}


def measured(who: str, pairs: int, threads: int) -> dict[str, float]:
    """`peak` in a process of its own."""
    command = [sys.executable, __file__, "--peak", who, str(pairs), "--threads", str(threads)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Measure and write results/contrastive_memory.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", nargs=2, metavar=("WHO", "PAIRS"), help="print the memory of one, nothing else")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(json.dumps(peak(CONTESTANTS[arguments.peak[0]], int(arguments.peak[1]))))
        return
    rows, x = [], inputs(PAIRS)
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    found = {}
    for _ in range(arguments.rounds + 1):  # the first warms up
        for name, loss in CONTESTANTS.items():
            began = time.perf_counter()
            found[name] = step(loss, x)
            seconds[name].append(time.perf_counter() - began)
    apart = max(float((a - b).norm() / b.norm()) for a, b in zip(found["negah"][1], found["open_clip"][1]))
    for name in CONTESTANTS:
        one = measured(name, PAIRS, arguments.threads)
        rows.append({"who": name, "pairs": PAIRS, **one, "seconds": statistics.median(seconds[name][1:])})
        print(rows[-1], flush=True)
    rows.append({"who": "negah", "pairs": MANY, **measured("negah", MANY, arguments.threads)})
    print(rows[-1], flush=True)
    ours, theirs, many = rows
    ratios = [a / b for a, b in zip(seconds["negah"][1:], seconds["open_clip"][1:])]
    path = write(
        "contrastive_memory",
        claim="Memory of CLIP's loss and gradients above the process's own, against open_clip's ClipLoss",
        rows=rows, seeds=[0], packages=("open_clip_torch",), targets=TARGETS,
        headline={"value": round(ours["bytes"] / theirs["bytes"], 4), "target": TARGETS["memory"], "better": "lower",
                  "unit": f"of open_clip's memory, {PAIRS:,} pairs"},
        time_ratio=statistics.median(ratios), time_ratio_low=min(ratios), time_ratio_high=max(ratios),
        largest_difference_of_gradients=apart, many_bytes=many["bytes"],
    )  # fmt: skip
    print(path)


if __name__ == "__main__":
    main()
