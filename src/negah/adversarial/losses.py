"""What an attack climbs: functions of logits and labels, one value an image, higher where it is closer to a mistake.

With z the logits, y the true class, and z_(1) >= z_(2) >= ... in order:

    cross_entropy   logsumexp(z) - z_y                             its gradient fades where the model is sure
    margin          max_{i != y} z_i - z_y                         above 0 where the image is misclassified
    dlr             (max_{i != y} z_i - z_y) / (z_(1) - z_(3))     Croce and Hein 2020, arXiv:2003.01690, section 4
    targeted_dlr    (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)    towards a class t

The last two do not change when logits are scaled or shifted, so a model cannot hide behind large logits.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from negah.errors import InputError

Logits = Float[Tensor, "batch classes"]
Labels = Int[Tensor, " batch"]


def cross_entropy(logits: Logits, labels: Labels) -> Float[Tensor, " batch"]:
    """-log softmax(z)_y."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Logits, labels: Labels) -> Float[Tensor, " batch"]:
    """max over other classes of z_i, less z_y."""
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    return others.amax(1) - own


def dlr(logits: Logits, labels: Labels) -> Float[Tensor, " batch"]:
    """Difference of logits ratio.  Raises InputError for fewer than three classes, where it is constant."""
    if logits.shape[1] < 3:
        raise InputError(f"the DLR loss needs 3 classes or more, not {logits.shape[1]}: take margin")
    top = logits.topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr(logits: Logits, aim: Int[Tensor, "batch 2"]) -> Float[Tensor, " batch"]:
    """aim: the true class and the wanted one.  Raises InputError for fewer than four classes."""
    if logits.shape[1] < 4:
        raise InputError(f"the targeted DLR loss needs 4 classes or more, not {logits.shape[1]}: take dlr")
    top = logits.topk(4, dim=1).values
    own, wanted = logits.gather(1, aim).unbind(1)
    return (wanted - own) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)
