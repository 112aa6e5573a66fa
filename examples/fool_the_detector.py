"""Fool the panel detector, and ask whether the figure can be trusted.

    python examples/fool_the_detector.py

Accuracy under attack is an upper bound: a broken attack makes any model look robust.  Here one has the wrong sign, a
common slip.  Its figure looks well; the fifteen verdicts that come with every figure say why not to believe it.
"""

from functools import partial

import torch

from negah import probe
from negah.adversarial import evaluate, pgd
from negah.adversarial.losses import cross_entropy
from negah.images.scenes import render
from negah.runs.classifiers import PanelClassifier

scenes = [render(40, 0.3, seed=seed, panels="some" if seed % 2 else "none") for seed in range(16)]
images = torch.stack([torch.tensor(scene.image).permute(2, 0, 1) for scene in scenes]) / 255  # attacks see [0, 1]
labels = torch.arange(16) % 2
model = PanelClassifier(probe.load("negah/aerial-tiny"))  # logits [batch, 2]: without panels, with panels


def downhill(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The slip: an attack climbs what it is given, so this makes the model surer of the truth."""
    return -cross_entropy(logits, labels)


attacks = {"PGD with a slip": partial(pgd, steps=5, loss=downhill), "PGD": partial(pgd, steps=5)}
for name, attack in attacks.items():
    found = evaluate(model, images, labels, eps=4 / 255, attacks={name: attack}, sample=3)
    point = found.curve[-1]
    print(f"{name}: {found.clean:.0%} right, and {point.robust:.0%} when each pixel may change by four grey levels")
    print(f"    95 % interval {point.low:.0%} to {point.high:.0%}, of {len(images)} images")
    for verdict in found.alarms:
        print(f"    do not trust it: {verdict.means} ({verdict.text})")
    if not found.alarms:
        print("    nothing was found that speaks against it")
