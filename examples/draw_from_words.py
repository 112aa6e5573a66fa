"""Draw the same pictures at several guidance scales, side by side.

    python examples/draw_from_words.py [FOLDER]          needs pip install '.[diffusion]'

A row is one seed.  At scale 0 the words are ignored, at 1 followed as the model has them; more exaggerates them, for
clearer pictures that are less varied and, in the end, garish.
"""

import sys
from pathlib import Path

import torch

from negah.diffusion import generate, load
from negah.runs import IMAGINER
from negah.runs.generate import save_picture, sheet

folder = Path(sys.argv[1] if sys.argv[1:] else "build/examples")
folder.mkdir(parents=True, exist_ok=True)

words, seeds, scales = "a house with a red roof beside a street", [0, 1], [0.0, 1.0, 4.0, 8.0]
model = load(IMAGINER).pack()  # pack: the weights in the order in which a CPU is fastest
drawn = [
    generate(model, [words] * len(seeds), seeds, scale=scale, steps=8)  # [2, 3, 64, 64] in [0, 1]
    for scale in scales
]
print(words)
for scale, images in zip(scales, drawn):
    apart = torch.pdist(images.flatten(1)).mean() / images[0].numel() ** 0.5
    print(f"scale {scale:g}: two of its pictures differ by {apart:.2f} of the range of a pixel")

path = folder / "guidance.png"
save_picture(sheet(torch.stack(drawn, 1).flatten(0, 1), len(scales)), path, {"prompt": words, "scales": scales})
print(path)
