"""Learn from pictures without labels, and be told when learning collapses.

    python examples/learn_without_labels.py

SimCLR keeps the pictures of a batch apart.  BYOL keeps nothing apart: a predictor, and a target that lags behind,
stand between it and saying the same of every picture.  Without both it does, and the collapse doctor tells.
"""

import warnings

import torch
from torch import nn

from negah.images.views import View, Views
from negah.lab.shapes import shapes
from negah.nn.backbone import ConvBackbone
from negah.nn.resnet import ResNet
from negah.ssl import BYOL, SimCLR
from negah.ssl.collapse import CollapseDoctor, CollapseWarning
from negah.train import Batches, fit

warnings.simplefilter("ignore", CollapseWarning)  # the doctor's line is printed below instead

pictures = shapes(320, 32, seed=0).images  # ten kinds of shapes in all colours; nobody says which is which
view = View(20, scale=(0.4, 1.0), turns=True, jitter=1.0, brightness=0.6, contrast=0.6, saturation=0.6, hue=0.5)
two_views = Views((view, view))


def small() -> ConvBackbone:
    return ConvBackbone(ResNet(widths=(16, 32), depths=(1, 1), stem="fine"))


methods = {
    "SimCLR": lambda: SimCLR(small(), hidden=64, dim=32),
    "BYOL": lambda: BYOL(small(), hidden=64, dim=32, momentum=0.99),
    "BYOL, no predictor, no lag": lambda: BYOL(small(), hidden=64, dim=32, momentum=0.0, predictor=nn.Identity()),
}
for name, make in methods.items():
    torch.manual_seed(0)
    doctor = CollapseDoctor(every=2, patience=3)
    batches = Batches(pictures, 32, collate=two_views)
    result = fit(make(), batches, steps=40, lr=1e-2, warmup=4, callbacks=[doctor], log_every=2)
    first, last = result.history[0]["loss"], result.history[-1]["loss"]
    spread = doctor.readings[-1]["embedding_std"]
    print(f"{name}: loss {first:.3f} to {last:.3f}, spread of the embeddings {spread:.2f} (of a constant: 0)")
    print(f"    {doctor.warning or 'no sign of collapse'}")
