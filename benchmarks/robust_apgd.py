"""Claim: APGD's verdict on an image is that of AutoAttack's code, which torchattacks holds, on all but a few.

    pip install --no-deps torchattacks
    python benchmarks/robust_apgd.py

The network is a ResNet-20 of CIFAR-10 that others have trained (cifar10-models), at a radius that about half of the
pictures withstand: there a weaker attack shows.  Both take 50 steps from one random start, with cross-entropy and with
DLR, twice over.  Starts differ, so how often their code agrees with itself under another seed is measured as
well: more than that nobody can ask.  An image counts as fooled when the network, asked again, misclassifies the point,
and the point lies in the ball and in [0, 1].
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import combinations, product
from statistics import mean

import torch
from results import write
from robust_eval import pictures, resnet20
from torch import Tensor

from negah.adversarial import Linf, apgd
from negah.adversarial.climb import Ball
from negah.adversarial.losses import cross_entropy, dlr
from negah.adversarial.watch import inside

STEPS, BATCH, SEEDS = 50, 250, (0, 1)
LOSSES = {"ce": cross_entropy, "dlr": dlr}


def main() -> None:
    """Measure and write results/robust_apgd.json."""
    import torchattacks

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--eps", type=float, default=0.5, help="of 255")
    parser.add_argument("--dry", action="store_true", help="measure, and write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, eps = resnet20(), arguments.eps / 255
    x, y = pictures("test", arguments.images)

    def fooled(attack: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        found = []
        for a, b in zip(x.split(BATCH), y.split(BATCH)):
            points = attack(a, b).detach()
            with torch.no_grad():
                found.append((model(points).argmax(1) != b) & inside(Ball(a, eps, Linf()), points))
        return torch.cat(found)

    with torch.no_grad():
        clean = (model(x).argmax(1) == y).double().mean().item()
    rows = []
    for name, loss in LOSSES.items():
        found: dict[str, list[Tensor]] = {"negah": [], "torchattacks": []}
        seconds: dict[str, list[float]] = {"negah": [], "torchattacks": []}
        for seed in SEEDS:
            ours = partial(apgd, model, eps=eps, steps=STEPS, loss=loss)
            attacks: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
                "negah": lambda a, b, ours=ours, seed=seed: ours(a, b, generator=torch.Generator().manual_seed(seed)),
                "torchattacks": torchattacks.APGD(model, eps=eps, steps=STEPS, loss=name, seed=seed),
            }
            for who, attack in attacks.items():
                started = time.perf_counter()
                found[who].append(fooled(attack))
                seconds[who].append(time.perf_counter() - started)
                model.eval()
        pairs = list(product(found["negah"], found["torchattacks"]))
        rows.append({
            "loss": name, "clean accuracy": clean,
            **{f"robust accuracy, {who}": [1 - f.double().mean().item() for f in its] for who, its in found.items()},
            "equal verdicts": mean((a == b).double().mean().item() for a, b in pairs),
            "equal verdicts, same seed": [
                (a == b).double().mean().item() for a, b in zip(found["negah"], found["torchattacks"])
            ],
            "equal verdicts, torchattacks with another seed": mean(
                (a == b).double().mean().item() for a, b in combinations(found["torchattacks"], 2)
            ),
            "images that negah alone fools": mean(int((a & ~b).sum()) for a, b in pairs),
            "images that torchattacks alone fools": mean(int((b & ~a).sum()) for a, b in pairs),
            **{f"seconds, {who}": its for who, its in seconds.items()},
        })  # fmt: skip
        print(rows[-1], flush=True)
    if not arguments.dry:
        write(
            "robust_apgd", claim=(__doc__ or "").split("Claim: ")[1].split("\n")[0], rows=rows, seeds=list(SEEDS),
            packages=("torchattacks",), images=arguments.images, eps=f"{arguments.eps:g}/255", steps=STEPS,
            headline={
                "value": min(row["equal verdicts"] for row in rows), "unit": "share of equal verdicts, the worse loss",
                "target": 0.99, "better": "higher",
            },
        )  # fmt: skip


if __name__ == "__main__":
    main()
