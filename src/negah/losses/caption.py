"""Caption: the mean of -log p over the tokens that are to be written, those of all processes.

Captions differ in length, and so do the numbers of tokens that processes hold.  `fit` averages the processes' losses: a
mean over each one's own tokens would count those of the process with fewer of them more.  So the sum of a process is
divided by the tokens that a process has on average, and the average of the losses is the mean over all tokens.  (The
batches of one step under `fit(accumulate=...)` still count alike, whatever their tokens.)
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from negah import ranks

IGNORED = -100  # a target that no loss is taken of


def caption_loss(
    logits: Float[Tensor, "batch token vocabulary"], wanted: Int[Tensor, "batch token"]
) -> Float[Tensor, ""]:
    """This process's part of the mean over all tokens but those IGNORED; half precision is computed in fp32."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    total = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / ranks.mean((wanted != IGNORED).sum().to(total.dtype))
