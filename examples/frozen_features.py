"""What frozen features know: nearest neighbours and a linear probe, beside statistics that need no network.

    python examples/frozen_features.py

A probe without the statistics' row beside it says little: on many data sets mean colours alone do well.
"""

import torch

from negah import probe
from negah.images.scenes import render
from negah.probe.baseline import image_statistics
from negah.probe.knn import knn_probability
from negah.probe.linear import fit_linear, pooled
from negah.probe.metrics import auc

# Generated scenes, every other one with panels.  The first are learned from, the last judged on.
scenes = [render(64, 0.3, seed=seed, panels="some" if seed % 2 else "none") for seed in range(64)]
labels = torch.arange(64) % 2
learn, judge = slice(0, 40), slice(40, 64)

images = torch.stack([torch.tensor(scene.image).permute(2, 0, 1) for scene in scenes])
detector = probe.load("negah/aerial-tiny")
with torch.inference_mode():
    tokens = detector.backbone.tokens(images)  # [64, 1 + patches, dim]: the network sees each picture once
    head = detector(images).logit

features = pooled(tokens)  # the CLS token beside the mean of the patches
statistics = image_statistics(scene.image for scene in scenes)

nearest = knn_probability(features[learn], labels[learn], features[judge], k=10)[:, 1]
linear = fit_linear(features[learn].numpy(), labels[learn].numpy())
baseline = fit_linear(statistics[learn], labels[learn].numpy())
rows = {
    "k nearest neighbours": nearest.numpy(),
    "linear probe": linear.probability(features[judge].numpy()),
    "the bundled head, trained on real tiles": head[judge].numpy(),
    "statistics of the picture, no network": baseline.probability(statistics[judge]),
}
print("area under the ROC curve on 24 pictures, half of them with panels (0.5 is chance):")
for name, scores in rows.items():
    print(f"  {float(auc(labels[judge].numpy(), scores)):.2f}  {name}")
