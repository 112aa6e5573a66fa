"""Let the panel detector guide what is drawn: universal guidance, by a network that knows nothing of noise.

    python examples/guide_by_a_detector.py [FOLDER]          needs pip install '.[diffusion]'

At each step the model's guess of the finished picture is shown to the detector, and the gradient of what it says moves
the guess.  That pleases the detector; whether there are panels is for the eye: the same gradients fool it.
"""

import sys
from pathlib import Path

import torch

from negah import probe
from negah.diffusion import generate, load
from negah.diffusion.guidance import universal
from negah.runs import IMAGINER
from negah.runs.generate import save_picture, sheet, sized

folder = Path(sys.argv[1] if sys.argv[1:] else "build/examples")
folder.mkdir(parents=True, exist_ok=True)

model = load(IMAGINER)
detector = probe.load("negah/aerial-tiny").requires_grad_(False)


def panels(clean: torch.Tensor) -> torch.Tensor:
    """How sure the detector is of each picture, from latents."""
    return detector(sized(model.decode(clean), 64)).logit


words, seeds = "a house with a grey roof", [0, 1]
plain = generate(model, [words] * 2, seeds, steps=6)
guided = generate(
    model, [words] * 2, seeds, steps=6,
    guides=[lambda denoise, numbers: universal(denoise, panels, 30.0)],
)  # fmt: skip
with torch.inference_mode():
    before, after = (detector(images).logit.sigmoid() for images in (plain, guided))
for seed, low, high in zip(seeds, before.tolist(), after.tolist()):
    print(f"{words}, seed {seed}: the detector says {low:.2f} without guidance, {high:.2f} with it")

path = folder / "guided.png"
save_picture(sheet(torch.cat([plain, guided]), 2), path, {"prompt": words})
print(f"{path}: above without, below with guidance")
