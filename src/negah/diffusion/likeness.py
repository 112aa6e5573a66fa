"""How like its subject what a model draws is, how like its words, how varied, and how much else it forgot.

Ruiz et al. 2022, arXiv:2208.12242, section 4.1, on vectors of pictures from networks that are handed in:

    subject fidelity (DINO, CLIP-I)   mean cosine of drawn and real pictures of the subject, over all pairs
    prompt fidelity (CLIP-T)          mean cosine of drawn pictures and the words that they were drawn from
    diversity (DIV)                   1 - mean cosine of the pictures of one prompt with each other; the paper's is by
                                      LPIPS, here it is by the same vectors as fidelity, and needs no other network
    language drift (PRES)             mean cosine of pictures of the plain class with those of the subject: it rises as
                                      every house becomes this house
    class kept                        mean cosine of pictures of the plain class with those of the model before, same
                                      seed by same seed: 1 before, and it falls with whatever changes

The published real pictures reach .774 (DINO) and .885 (CLIP-I) among themselves: 1 is not the mark to reach, but what
`likeness` of the real pictures says.
"""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Embed = Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, "n dim"]]
"""Pictures in [0, 1] to vectors."""


def likeness(drawn: Float[Tensor, "n dim"], real: Float[Tensor, "m dim"]) -> float:
    """Mean cosine over all pairs."""
    return float((F.normalize(drawn, dim=1) @ F.normalize(real, dim=1).T).mean())


def paired(one: Float[Tensor, "n dim"], other: Float[Tensor, "n dim"]) -> float:
    """Mean cosine of the first with the first, the second with the second, and so on."""
    return float(F.cosine_similarity(one, other).mean())


def among(pictures: Float[Tensor, "n dim"]) -> float:
    """Mean cosine of different pictures with each other; nan for one alone."""
    unit = F.normalize(pictures, dim=1)
    n = len(unit)
    return float(((unit @ unit.T).sum() - unit.square().sum()) / (n * (n - 1))) if n > 1 else float("nan")


def diversity(pictures: Float[Tensor, "n dim"]) -> float:
    """1 - `among`: 0 where all pictures are alike."""
    return 1 - among(pictures)
