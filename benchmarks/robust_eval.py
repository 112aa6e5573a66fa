"""Speed of an evaluation by PGD-50 on CIFAR-10 against torchattacks, foolbox and ART, before and after hardening.

    pip install --no-deps torchattacks foolbox eagerpy adversarial-robustness-toolbox gitpython gitdb smmap six
    python benchmarks/robust_eval.py

The network is a ResNet-20 that others have trained (cifar10-models), and the same one after a short adversarial
training here.  All attack the same images, in batches of the same size, with 50 steps of 2/255 in a ball of 8/255 from
one random start; each round runs all of them in turn, and ratios are taken within a round.  An image counts as fooled
when the network, asked again, misclassifies what the attack returned.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from results import data_folder, write
from torch import Tensor, nn
from torch.optim import SGD

from negah.adversarial import Classifier, pgd
from negah.adversarial.harden import Hardening, noisy_start
from negah.images.pool import Pool, folder_labels
from negah.nn.resnet import ResNet
from negah.train import Batches, fit

EPS, STEP, STEPS, BATCH = 8 / 255, 2 / 255, 50, 250
Attack = Callable[[Tensor, Tensor], Tensor]


class ResNet20(nn.Module):
    """He et al. 2015, section 4.2, n = 3, with option A."""

    def __init__(self):
        super().__init__()
        self.net = ResNet(widths=(16, 32, 64), depths=(3, 3, 3), stem="cifar", shortcut="padding")
        self.linear = nn.Linear(64, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.linear(self.net(pixels).mean((2, 3)))


def resnet20() -> Classifier:
    """With the published weights."""
    path = data_folder() / "cifar10-models" / "resnet20-12fca82f.th"
    stored = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    names = {name: name.removeprefix("module.") for name in stored}
    net = ResNet20()
    net.load_state_dict({(n if n.startswith("linear") else f"net.{n}"): stored[old] for old, n in names.items()})
    return Classifier(net.eval(), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).eval()


def pictures(split: str, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """So many, drawn at random, in [0, 1], with their classes."""
    pool = Pool([data_folder() / "cifar10" / f"{split}.zip"], 32)
    labels, _ = folder_labels(pool.names)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:count]
    return torch.stack([pool[int(i)] for i in order]).float() / 255, labels[order]


def hardened(steps: int) -> Classifier:
    """The network after `steps` steps of N-FGSM on training pictures."""
    model = resnet20()
    x, y = pictures("train", 20_000)
    batches = Batches(list(zip(x, y)), 128, seed=0)
    fit(
        Hardening(model, eps=EPS, craft=noisy_start), batches, steps=steps, lr=0.02, weight_decay=5e-4,
        optimizer=partial(SGD, momentum=0.9),
    )  # fmt: skip
    return model.eval()


def attacks(model: Classifier) -> dict[str, Attack]:
    """Ours and the peers', each from images and labels to images."""
    import foolbox
    import torchattacks
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    theirs = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=STEPS)
    box = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    box_attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS)
    art = PyTorchClassifier(
        model, loss=nn.CrossEntropyLoss(), input_shape=(3, 32, 32), nb_classes=10, clip_values=(0, 1), device_type="cpu"
    )
    art_attack = ProjectedGradientDescent(
        art, eps=EPS, eps_step=STEP, max_iter=STEPS, num_random_init=1, batch_size=BATCH, verbose=False
    )
    return {
        "negah": lambda x, y: pgd(
            model, x, y, eps=EPS, step_size=STEP, steps=STEPS, generator=torch.Generator().manual_seed(0)
        ),
        "torchattacks": theirs,
        "foolbox": lambda x, y: box_attack(box, x, y, epsilons=EPS)[1],
        "ART": lambda x, y: torch.from_numpy(art_attack.generate(x.numpy(), np.eye(10)[y.numpy()]).astype(np.float32)),
    }


def main() -> None:
    """Measure and write results/robust_eval.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--harden", type=int, default=300, metavar="STEPS")
    parser.add_argument("--dry", action="store_true", help="measure, and write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x, y = pictures("test", arguments.images)
    rows, medians = [], {}
    for name, model in (("standard", resnet20()), ("hardened", hardened(arguments.harden))):
        with torch.no_grad():
            clean = torch.cat([model(part).argmax(1) for part in x.split(BATCH)]) == y
        seconds: dict[str, list[float]] = {}
        fooled: dict[str, Tensor] = {}
        for _ in range(arguments.rounds):
            for who, attack in attacks(model).items():
                started = time.perf_counter()
                found = torch.cat([attack(a, b).detach() for a, b in zip(x.split(BATCH), y.split(BATCH))])
                seconds.setdefault(who, []).append(time.perf_counter() - started)
                assert (found - x).abs().max() <= EPS + 1e-6
                model.eval()
                with torch.no_grad():
                    fooled[who] = torch.cat([model(part).argmax(1) for part in found.split(BATCH)]) != y
        fastest = min((who for who in seconds if who != "negah"), key=lambda who: statistics.median(seconds[who]))
        for who, its in seconds.items():
            ratios = [theirs / ours for theirs, ours in zip(its, seconds["negah"])]
            as_strong = (fooled["negah"] | ~fooled[who]).double().mean().item()
            rows.append({
                "model": name, "who": who, "seconds": statistics.median(its), "all seconds": its,
                "times as long as negah": statistics.median(ratios),
                "robust accuracy": 1 - fooled[who].double().mean().item(),
                "images on which negah is as strong": as_strong, "clean accuracy": clean.double().mean().item(),
                "fastest peer": who == fastest,
            })  # fmt: skip
            print(rows[-1], flush=True)
            if who == fastest:
                medians[name] = statistics.median(ratios)
    if arguments.dry:
        return
    write(
        "robust_eval", claim="PGD-50 on a ResNet-20 of CIFAR-10, against the fastest of torchattacks, foolbox and ART",
        rows=rows, seeds=[0], packages=("torchattacks", "foolbox", "adversarial-robustness-toolbox"),
        headline={
            "value": medians["standard"], "unit": "times as fast, standard model", "target": 4, "better": "higher"
        },
        hardened={"value": medians["hardened"], "target": 2}, images=arguments.images,
    )  # fmt: skip


if __name__ == "__main__":
    main()
