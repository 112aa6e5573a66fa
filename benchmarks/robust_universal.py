"""Claim: One perturbation of 10/255 changes what a ResNet-20 of CIFAR-10 says of most pictures it was not made of.

    python benchmarks/robust_universal.py

Both forms (optimisation, and the 2017 algorithm) are made of the same training pictures, others for each seed, against
a ResNet-20 that others have trained (cifar10-models), and measured on test pictures, beside random signs of the same
size; and on a second network, a small residual one of another build that is trained here.  Intervals are of 95 %:
Wilson's over test pictures for each seed, Student's over the seeds for their mean.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import mean, stdev

import torch
from results import write
from robust_eval import pictures, resnet20
from robust_verdicts import ARCHITECTURES, train
from scipy.stats import binomtest, t
from torch import Tensor

from negah.adversarial import fooling_rate, random_signs, universal, universal_deepfool
from negah.lab.supervised import right, untouched

EPS, SEEDS = 10 / 255, (0, 1, 2)
FORMS: dict[str, Callable[..., Tensor]] = {
    "optimisation": partial(universal, epochs=20, batch=64),
    "algorithm of 2017": partial(universal_deepfool, epochs=3),
    "random signs": lambda model, images, eps, generator: random_signs(images[:1], eps, generator),
}


def main() -> None:
    """Measure and write results/robust_universal.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300, help="that each perturbation is made of")
    parser.add_argument("--test", type=int, default=1000, help="pictures to measure on")
    parser.add_argument("--steps", type=int, default=500, help="of training the second network")
    parser.add_argument("--dry", action="store_true", help="measure, and write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x, y = pictures("train", 8000 + len(SEEDS) * arguments.images)
    tx, ty = pictures("test", arguments.test)
    known = x[8000:].split(arguments.images)
    second = train(ARCHITECTURES["residual"], x[:8000], y[:8000], steps=arguments.steps, eps=0, craft=untouched, seed=0)
    networks = {"ResNet-20": resnet20(), "second": second}
    accuracy = {name: right(network, tx, ty) for name, network in networks.items()}
    print(accuracy, flush=True)
    rows = []
    for form, make in FORMS.items():
        seconds, rates = [], {name: [] for name in networks}
        for seed in SEEDS:
            started = time.perf_counter()
            delta = make(
                networks["ResNet-20"], known[seed], eps=EPS, generator=torch.Generator().manual_seed(seed)
            )  # fmt: skip
            seconds.append(time.perf_counter() - started)
            assert delta.abs().max() <= EPS + 1e-6
            for name, network in networks.items():
                rates[name].append(fooling_rate(network, tx, delta))
            print(form, seed, {name: its[-1] for name, its in rates.items()}, f"{seconds[-1]:.0f} s", flush=True)
        row = {"form": form, "pictures": 0 if form == "random signs" else arguments.images, "seconds": mean(seconds)}
        for name, its in rates.items():
            off = float(t.ppf(0.975, len(its) - 1)) * stdev(its) / len(its) ** 0.5
            row |= {name: mean(its), f"{name}, 95 %": [mean(its) - off, mean(its) + off], f"{name}, seeds": its}
            row[f"{name}, 95 % of each"] = [wilson(rate, arguments.test) for rate in its]
        rows.append(row)
    found = "; ".join(f"{row['form']} {row['ResNet-20']:.1%} (second network {row['second']:.1%})" for row in rows)
    noise = rows[-1]
    best = max(rows, key=lambda row: row["ResNet-20"])
    if not arguments.dry:
        write(
            "robust_universal", claim=(__doc__ or "").split("Claim: ")[1].split("\n")[0], rows=rows, seeds=list(SEEDS),
            packages=("scipy",), accuracy=accuracy, found=found, eps="10/255", test_pictures=arguments.test,
            headline={
                "value": best["ResNet-20"], "target": None, "better": "higher",
                "unit": f"of held-out pictures fooled by the {best['form']}; random signs {noise['ResNet-20']:.3f}",
            },
        )  # fmt: skip


def wilson(rate: float, n: int) -> list[float]:
    """Interval of 95 % of a share of n pictures."""
    found = binomtest(round(rate * n), n).proportion_ci(method="wilson")
    return [float(found.low), float(found.high)]


if __name__ == "__main__":
    main()
