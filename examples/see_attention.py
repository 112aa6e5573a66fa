"""Where the panel detector looks: its attention and its evidence as one picture.

    python examples/see_attention.py [FOLDER]

A row is a generated scene: the picture, the attention of each head, the evidence patch by patch, the true panels.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from negah import probe
from negah.images.scenes import render
from negah.solar.overlays import large, ramp, tinted

folder = Path(sys.argv[1] if sys.argv[1:] else "build/examples")
folder.mkdir(parents=True, exist_ok=True)

scenes = [render(104, 0.3, seed=seed, panels="some") for seed in (9, 7, 13, 15)]  # 31 m wide, all with panels
images = torch.stack([torch.tensor(scene.image).permute(2, 0, 1) for scene in scenes])
detector = probe.load("negah/aerial-tiny")
with torch.inference_mode():
    reading = detector(images)  # logit [4], attention [4, heads, patches], patch_logits [4, patches]

side = 104 // detector.patch
rows = []
for scene, logit, attention, evidence in zip(scenes, reading.logit, reading.attention, reading.patch_logits):
    maps = [head / head.max() for head in attention] + [evidence.sigmoid()]
    cells = [ramp(values.reshape(side, side).numpy()) for values in maps]
    pictures = [scene.image, *cells, tinted(scene.image, scene.mask)]
    framed = [np.pad(large(picture), ((2, 2), (2, 2), (0, 0)), constant_values=255) for picture in pictures]
    rows.append(np.concatenate(framed, 1))

    # Panels fill a share of the ground; attention above that share is attention that found them.
    panel = torch.from_numpy(scene.mask).reshape(side, detector.patch, side, detector.patch).mean((1, 3)).flatten()
    on = (attention.mean(0) * panel).sum() / panel.mean() / attention.mean(0).sum()
    print(f"probability {logit.sigmoid():.2f}: attention on panels is {on:.1f} times that of an even look")

path = folder / "attention.png"
Image.fromarray(np.concatenate(rows)).save(path)
print(path)
