"""KoLeo: keep the embeddings of a batch apart, each from its nearest neighbour.

Sablayrolles et al. 2018, "Spreading vectors for similarity search", arXiv:1806.03198; used so in DINOv2 (Oquab et al.
2023, arXiv:2304.07193).  With x scaled to length 1, after the entropy estimator of Kozachenko and Leonenko,

    loss = -mean_i ln(min_{j != i} |x_i - x_j| + eps)

Departures: fp32 whatever comes in (in half precision eps is 0, and two equal images make the loss infinite), and
neighbours are looked for among the rows of all processes.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from negah import ranks


def koleo(x: Float[Tensor, "batch dim"], *, eps: float = 1e-8) -> Float[Tensor, ""]:
    """KoLeo loss of this process's rows; 0 where all processes together have fewer than two.

    Equal rows count as at a distance of `eps`; they do not push each other, for there is no direction to push in.
    Every process must have as many rows.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
        everyone = ranks.all_gather(x)
        if len(everyone) < 2:
            return 0 * x.sum()
        with torch.no_grad():
            own = torch.arange(len(x), device=x.device)
            cosines = x @ everyone.T
            cosines[own, ranks.rank() * len(x) + own] = -2
            nearest = cosines.argmax(1)
        return -((x - everyone[nearest]).norm(dim=-1) + eps).log().mean()
