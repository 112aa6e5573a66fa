"""Presence refined by neighbours: a small network over windows that lie side by side.

    h_i  = gelu(W0 [norm(x_i), z_i])                    x_i: the backbone's feature of window i; z_i: detector's logit
    h_i <- h_i + gelu(W h_i + W' mean_{j in N(i)} h_j)  the layers, GraphSAGE's with means (`graph.layers.SAGE`)
    z'_i = scale (w . h_i + z_i) + shift                the detector's answer, moved

sigmoid(z') is the refined probability.  What panels stand on in the next street says something of this one, because
people do as their neighbours do, and because a detector that errs on one roof errs on its like: neither depends on the
order of the neighbours, and a window without any is judged by itself.  `scale` and `shift` are fitted last, on towns
that were not trained on (Platt 1999), so that the probabilities mean what they say there.
"""

import json
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from negah.errors import WeightsError
from negah.graph.edges import Edges
from negah.graph.layers import SAGE
from negah.weights.files import read
from negah.weights.save import write


class Refiner(nn.Module):
    """From what a backbone and a detector say of windows, and which lie side by side, to refined logits.

    Args:
        dim: width of the features.
        width: of what is told to the neighbours.
        depth: how many windows away a window may hear of.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, dim: int, *, width: int = 16, depth: int = 2):
        super().__init__()
        self.dim, self.width, self.depth = dim, width, depth
        self.norm = nn.LayerNorm(dim)
        self.first = nn.Linear(dim + 1, width)
        self.layers = nn.ModuleList(SAGE(width, width) for _ in range(depth))
        self.last = nn.Linear(width, 1)
        self.drop = nn.Dropout(0.4)  # thousands of windows are few for features of hundreds of numbers
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))

    def alone(
        self, feature: Float[Tensor, "window dim"], logit: Float[Tensor, " window"]
    ) -> Float[Tensor, "window width"]:
        """What is kept of each window, by itself: many are looked at in blocks, before they meet."""
        return nn.functional.gelu(self.first(self.drop(torch.cat([self.norm(feature), logit.unsqueeze(1)], dim=1))))

    def among(
        self, h: Float[Tensor, "window width"], logit: Float[Tensor, " window"], edges: Edges
    ) -> Float[Tensor, " window"]:
        """Refined logits, from what is kept of each window."""
        for layer in self.layers:
            h = h + nn.functional.gelu(layer(h, edges))
        return self.scale * (self.last(h).squeeze(1) + logit) + self.shift

    def forward(
        self, feature: Float[Tensor, "window dim"], logit: Float[Tensor, " window"], edges: Edges
    ) -> Float[Tensor, " window"]:
        """Refined logits of windows, of which `edges` says which lie side by side."""
        return self.among(self.alone(feature, logit), logit, edges)


def save(refiner: Refiner, path: Path, *, detector: str, dtype: torch.dtype = torch.float32) -> Path:
    """Write a refiner as one safetensors file, and return its path.

    detector: the mark of the one whose features and logits it reads.  Raises OutputError when it cannot be written.
    """
    about = {"dim": refiner.dim, "width": refiner.width, "depth": refiner.depth, "detector": detector}
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in refiner.state_dict().items()}
    told = {"negah": json.dumps({"refiner": about}, sort_keys=True)}
    write(path, lambda file: save_file(tensors, str(file), metadata=told))
    return path


def load(name_or_path: str | Path) -> tuple[Refiner, str]:
    """A refiner in eval mode and fp32, and the mark of its detector.

    Raises WeightsError where there is none, or its tensors do not fit.
    """
    checkpoint = read(name_or_path)
    about = dict(checkpoint.negah.get("refiner") or {})
    if not about:
        raise WeightsError(f"{checkpoint.origin} holds no refiner: give a file by `python -m negah.runs.neighbours`")
    detector = about.pop("detector")
    dim = about.pop("dim")
    refiner = Refiner(dim, **about)
    try:
        refiner.load_state_dict({name: tensor.float() for name, tensor in checkpoint.content.items()})
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise WeightsError(f"{checkpoint.origin} does not fit its own description: {text}") from error
    return refiner.eval(), detector
