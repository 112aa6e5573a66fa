"""One perturbation for every picture: made of some pictures, it changes what the detector says of others.

    python examples/universal_perturbation.py [FOLDER]

Random signs of the same size are shown beside it: what noise does as well is no attack.
"""

import sys
from pathlib import Path

import torch

from negah import probe
from negah.adversarial import fooling_rate, random_signs, universal
from negah.images.scenes import render
from negah.runs.classifiers import PanelClassifier
from negah.runs.generate import save_picture

folder = Path(sys.argv[1] if sys.argv[1:] else "build/examples")
folder.mkdir(parents=True, exist_ok=True)

scenes = [render(48, 0.3, seed=seed, panels="some" if seed % 2 else "none") for seed in range(40)]
images = torch.stack([torch.tensor(scene.image).permute(2, 0, 1) for scene in scenes]) / 255  # attacks see [0, 1]
known, new = images[:24], images[24:]
model = PanelClassifier(probe.load("negah/aerial-tiny"))  # logits [batch, 2]: without panels, with panels

eps = 10 / 255  # at most ten grey levels for a pixel
generator = torch.Generator().manual_seed(0)
delta = universal(model, known, eps=eps, epochs=8, batch=12, generator=generator)  # [1, 3, 48, 48]
noise = random_signs(delta, eps, generator)
print("share of pictures of which the detector says something else:")
print(f"  by the perturbation: {fooling_rate(model, known, delta):.0%} of those it was made of")
print(f"  by the perturbation: {fooling_rate(model, new, delta):.0%} of new ones")
print(f"  by random signs:     {fooling_rate(model, new, noise):.0%} of new ones")

path = folder / "universal.png"  # a picture, the perturbation (enlarged to the whole range), the sum
row = torch.cat([new[0], 0.5 + delta[0] / (2 * eps), (new[0] + delta[0]).clamp(0, 1)], 2)
save_picture(row.repeat_interleave(4, 1).repeat_interleave(4, 2), path, {"eps": eps})
print(path)
