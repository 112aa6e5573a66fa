"""Do the verdicts of an evaluation tell what is wrong, and keep quiet where nothing is?

    python benchmarks/robust_verdicts.py

Sound: networks of several kinds on CIFAR-10, trained for long or hardly at all, hardened or not; any alarm is a false
one.  Planted: every failure of an evaluation that is known to have happened to others, each on several networks; it
counts as found when an alarm has one of the numbers that say so.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from results import write
from robust_eval import pictures, resnet20
from torch import Tensor, nn
from torch.optim import AdamW

from negah.adversarial import Classifier, Linf, apgd, fgsm, pgd
from negah.adversarial.harden import Hardening, fgsm_start, noisy_start, pgd_start, random_start
from negah.adversarial.losses import dlr
from negah.adversarial.target import Attack
from negah.adversarial.verdicts import Verdict, verdicts
from negah.nn.backbone import ViTBackbone
from negah.nn.resnet import ResNet
from negah.nn.vit import ViT
from negah.train import Batches, fit

SAMPLE = 128
LADDER: dict[str, Attack] = {
    "FGSM": fgsm, "APGD-CE": partial(apgd, steps=30), "APGD-DLR": partial(apgd, steps=30, loss=dlr)
}  # fmt: skip


@dataclass
class Case:
    """A model, the attacks it is judged by, and the numbers of the verdicts of which one must be an alarm."""

    name: str
    model: nn.Module
    attacks: dict[str, Attack]
    numbers: frozenset[int] = frozenset()


def convolutional(width: int, depth: int, *, norm: bool = True) -> nn.Module:
    """Plain convolutions, with or without batch norm."""
    layers: list[nn.Module] = []
    before = 3
    for i in range(depth):
        after = width * 2 ** min(i, 2)
        layers += [nn.Conv2d(before, after, 3, stride=2 if i < 3 else 1, padding=1)]
        layers += [nn.BatchNorm2d(after)] if norm else []
        layers += [nn.ReLU()]
        before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


class Pooled(nn.Module):
    """A backbone and a linear layer."""

    def __init__(self, net: nn.Module, width: int):
        super().__init__()
        self.net, self.linear = net, nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = self.net(x)
        return self.linear(features.mean((2, 3)) if features.dim() == 4 else features)


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "narrow convolutions": lambda: convolutional(16, 3),
    "deep convolutions": lambda: convolutional(24, 5),
    "no norm": lambda: convolutional(24, 4, norm=False),
    "residual": lambda: Pooled(ResNet(widths=(16, 32, 64), depths=(1, 1, 1), stem="fine"), 64),
    "perceptron": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 128), nn.ReLU(), nn.Linear(128, 10)),
    "transformer": lambda: Pooled(
        ViTBackbone(ViT(patch=8, dim=64, depth=2, heads=4, grid=(4, 4), mean=(0.0,) * 3, std=(1.0,) * 3)), 64
    ),
}


def train(
    make: Callable[[], nn.Module], x: Tensor, y: Tensor, *, steps: int, eps: float, craft, seed: int
) -> Classifier:
    """A network on training pictures; eps 0 is plain training."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Classifier(make(), mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
    batches = Batches(list(zip(x, y)), 128, seed=seed)
    fit(Hardening(model, eps=eps, craft=craft), batches, steps=steps, lr=2e-3, weight_decay=0.05, optimizer=AdamW)
    return model.eval()


def sound(x: Tensor, y: Tensor, steps: int) -> Iterator[Case]:
    """Networks with nothing wrong."""
    yield Case("ResNet-20, published", resnet20(), LADDER)
    for seed, (name, make) in enumerate(ARCHITECTURES.items()):
        yield Case(f"{name}, plain", train(make, x, y, steps=steps, eps=0.0, craft=fgsm_start, seed=seed), LADDER)
        few = train(make, x, y, steps=max(1, steps // 10), eps=0.0, craft=fgsm_start, seed=seed)
        yield Case(f"{name}, hardly trained", few, LADDER)
        craft = (fgsm_start, random_start, noisy_start, partial(pgd_start, steps=3))[seed % 4]
        hard = train(make, x, y, steps=steps, eps=8 / 255, craft=craft, seed=seed)
        yield Case(f"{name}, hardened", hard, LADDER)
    for seed in (7, 8):
        craft = partial(pgd_start, steps=3)
        hard = train(ARCHITECTURES["residual"], x, y, steps=steps, eps=4 / 255, craft=craft, seed=seed)
        yield Case(f"residual, PGD at 4/255, seed {seed}", hard, LADDER)


class Around(nn.Module):
    """A model with something done to its pixels or logits."""

    def __init__(self, model: nn.Module, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.model, self.before, self.after = model, before, after
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.model(self.before(x)))


def planted(model: Classifier, other: Classifier) -> Iterator[Case]:
    """The failures of methods.md and some more, on one model."""

    def elsewhere(_, x, y, **options):
        return pgd(other, x, y, **options)

    def loose(m, x, y, *, eps, norm, generator):
        return (x + 2 * (pgd(m, x, y, eps=eps, norm=norm, generator=generator) - x)).clamp(0, 1)

    def unprojected(m, x, y, *, eps, norm, generator):
        for _ in range(20):
            x = fgsm(m, x, y, eps=eps / 4, norm=norm)
        return x

    def last_restart(m, x, y, *, eps, norm, generator):
        for scale in (1.0, 0.5, 0.05):
            found = pgd(m, x, y, eps=scale * eps, norm=norm, keep="last", generator=generator)
        return found

    def left_training(m, x, y, **options):
        m.train()
        return pgd(m, x, y, **options)

    def noisy(z: Tensor) -> Tensor:
        return z + 0.1 * z.std() * torch.randn_like(z)

    steps = {"PGD": partial(pgd, steps=20)}
    yield Case("attack on another model", model, {"PGD": elsewhere}, frozenset({11}))
    yield Case("no projection", model, {"PGD": unprojected}, frozenset({14}))
    yield Case("the point before projection returned", model, {"PGD": loose}, frozenset({14}))
    yield Case("saturated logits", Around(model, after=lambda z: 1e4 * z), steps, frozenset({5, 6}))
    yield Case("quantised pixels", Around(model, before=lambda x: (x * 7).round() / 7), steps, frozenset({4, 5}))
    yield Case("training mode", Around(model).train(), LADDER, frozenset({12}))
    yield Case("an attack leaves training mode on", Around(model).eval(), {"PGD": left_training}, frozenset({12}))
    yield Case("probabilities for logits", Around(model, after=lambda z: z.softmax(1)), LADDER, frozenset({8}))
    yield Case("restarts keep the last", model, {"PGD": last_restart}, frozenset({9}))
    yield Case("random logits", Around(model, after=noisy), LADDER, frozenset({7}))
    yield Case("too few steps", model, {"PGD": partial(pgd, steps=2, step_size=0.1 / 255)}, frozenset({1, 2, 15}))


def judged(case: Case, x: Tensor, y: Tensor, eps: float) -> list[Verdict]:
    """On rightly classified images, or on any where there are too few."""
    model = case.model
    training = model.training
    model.eval()
    with torch.no_grad():
        right = model(x).argmax(1) == y
    model.train(training)
    return verdicts(model, x[right][:SAMPLE], y[right][:SAMPLE], eps=eps, norm=Linf(), attacks=case.attacks)


def main() -> None:
    """Measure and write results/robust_verdicts.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of training each network")
    parser.add_argument("--dry", action="store_true", help="measure, and write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x, y = pictures("train", 8000)
    tx, ty = pictures("test", 1000, seed=1)
    eps, rows = 4 / 255, []
    models: list[Case] = []
    for case in sound(x, y, arguments.steps):
        models.append(case)
        alarms = [f"{v.number} {v.name}: {v.text}" for v in judged(case, tx, ty, eps) if v.alarm]
        rows.append({"kind": "sound", "case": case.name, "right": not alarms, "alarms": alarms})
        print(rows[-1], flush=True)
    chosen = [case for case in models if case.name in ("ResNet-20, published", "residual, hardened", "no norm, plain")]
    for host in chosen:
        other = next(case for case in models if case is not host)
        assert isinstance(host.model, Classifier) and isinstance(other.model, Classifier)
        for case in planted(host.model, other.model):
            found = [v for v in judged(case, tx, ty, eps) if v.alarm]
            rows.append({
                "kind": "planted", "case": f"{case.name}, {host.name}",
                "right": bool({v.number for v in found} & case.numbers),
                "alarms": [f"{v.number} {v.name}: {v.text}" for v in found],
            })  # fmt: skip
            host.model.eval()
            print(rows[-1], flush=True)
    right = {kind: [row["right"] for row in rows if row["kind"] == kind] for kind in ("sound", "planted")}
    share = sum(map(sum, right.values())) / len(rows)
    print({kind: f"{sum(values)} of {len(values)}" for kind, values in right.items()})
    if not arguments.dry:
        write(
            "robust_verdicts", claim="Verdicts find every planted failure of an evaluation, and flag no sound model",
            rows=rows, seeds=list(range(9)), sound=len(right["sound"]), planted=len(right["planted"]),
            false_alarms=right["sound"].count(False), missed=right["planted"].count(False),
            headline={"value": share, "unit": "share judged rightly", "target": 1, "better": "higher"},
        )  # fmt: skip


if __name__ == "__main__":
    main()
