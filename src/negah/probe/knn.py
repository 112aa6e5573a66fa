"""The k-nearest-neighbour probe: what frozen features already hold apart, with nothing trained.

    share_c = sum_{i in k nearest, label c} exp(cos(z, z_i) / temperature) / the same sum over all k nearest

Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", arXiv:1805.01978, section
3.4, with the temperature .07 and the k (20, 200) that DINO evaluates with (arXiv:2104.14294). It is O(train x test),
tiled so that memory is O(tile x train).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from negah.errors import InputError

TEMPERATURE = 0.07


@torch.no_grad()
def knn_probability(
    train: Float[Tensor, "train dim"],
    labels: Int[Tensor, " train"],
    test: Float[Tensor, "test dim"],
    *,
    k: int = 20,
    temperature: float = TEMPERATURE,
    classes: int | None = None,
    tile: int = 1024,
) -> Float[Tensor, "test class"]:
    """Share of each class (0..classes-1) among the k nearest training samples, weighted by similarity; rows sum to 1.

    k above the number of training samples means all of them. Raises InputError on an empty training set and on
    negative labels (leave out unlabelled samples).

    Examples:
        >>> train, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
        >>> knn_probability(train, labels, torch.tensor([[1.0, 0.9, 0.0, 0.0]]), k=2)
        tensor([[1., 0.]])
    """
    if not len(train) or k < 1:
        raise InputError(f"kNN needs at least one training sample and k >= 1, got {len(train)} and k = {k}")
    if labels.min() < 0:
        raise InputError("kNN labels must be 0, 1, ...: leave out unlabelled samples")
    classes = int(labels.max()) + 1 if classes is None else classes
    known = F.normalize(train.float(), dim=1)
    one_hot = F.one_hot(labels.long(), classes).float()
    shares = []
    for part in test.split(tile):
        similarity, index = (F.normalize(part.float(), dim=1) @ known.T).topk(min(k, len(known)), dim=1)
        weight = (similarity / temperature).softmax(1)
        shares.append((weight.unsqueeze(2) * one_hot[index]).sum(1))
    return torch.cat(shares) if shares else known.new_zeros(0, classes)
