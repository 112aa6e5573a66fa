"""How spread out embeddings are, and how a teacher uses its prototypes: figures that collapse is read from.

With z the embeddings, scaled to length 1, and s the singular values of z less its mean, of n images in d dimensions:

    embedding_std   sqrt of the sum of the dimensions' variances          1 when directions are uniform
    effective_rank  exp(H(s / sum s)), 1 to min(n - 1, d)                 Roy and Vetterli 2007
    alignment       mean |z_a - z_b|^2 over views a, b of an image        Wang and Isola 2020, arXiv:2005.10242
    uniformity      log mean exp(-2 |z_i - z_j|^2) over images i != j     0 when all are one, about -4 when uniform
    duplicates      share of pairs of images whose cosine is above .9999

and with p_i the teacher's probabilities of image i over K prototypes, p their mean, H the entropy, u uniform:

    teacher_entropy mean H(p_i)     from 0 to ln K
    teacher_kl      KL(p || u)      from 0 to ln K
"""

import math
from itertools import combinations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from negah.losses.distill import entropy

FEWEST = 4  # images below which nothing can be said
SAME = 0.9999  # cosine of a duplicate


def duplicates(x: Float[Tensor, "n dim"], *, cosine: float = SAME) -> float:
    """Share of the pairs of rows whose cosine is above `cosine`; O(n^2) memory."""
    z = F.normalize(x.float(), dim=1)
    above = (z @ z.T > cosine).fill_diagonal_(False)
    return above.sum().item() / (len(z) * (len(z) - 1))


def effective_rank(x: Float[Tensor, "n dim"]) -> float:
    """exp of the entropy of the singular values of x less its mean row; 1 also where all rows are the same."""
    return _count(_variances(x).sqrt())


def alignment(a: Float[Tensor, "n dim"], b: Float[Tensor, "n dim"]) -> float:
    """Mean squared distance of two views of the same images, whose embeddings have length 1: 0 to 4."""
    return (a - b).square().sum(1).mean().item()


def uniformity(z: Float[Tensor, "n dim"], *, t: float = 2.0) -> float:
    """log of the mean of exp(-t |z_i - z_j|^2) over the pairs of different rows of length 1: -4 t to 0."""
    squared = torch.pdist(z).square()
    return (torch.logsumexp(-t * squared, 0) - math.log(len(squared))).item()


def embedding_figures(embedding: Float[Tensor, "view batch dim"]) -> dict[str, float]:
    """Figures of each view's images, averaged over the views: rows of several views would not be independent.

    Beside those above: rank_share is H(s^2 / sum s^2), which is not so taken by many tiny s as effective_rank is, over
    the largest that it could be, and view_distance the distance of two views of an image over that of two images.
    """
    views, n, d = embedding.shape
    if n < FEWEST:
        return {}
    z = F.normalize(embedding, dim=2)
    apart = 2 * z.var(1).sum(1).mean().item()  # mean squared distance of two images of one view
    variances = [_variances(view) for view in z]
    found = {
        "embedding_std": math.sqrt(apart / 2),
        "effective_rank": sum(_count(v.sqrt()) for v in variances) / views,
        "uniformity": sum(uniformity(view) for view in z) / views,
        "duplicates": sum(duplicates(view) for view in z) / views,
    }
    if min(n - 1, d) > 2:
        found["rank_share"] = sum(math.log(_count(v)) for v in variances) / (views * math.log(min(n - 1, d)))
    if views > 1:
        found["alignment"] = sum(alignment(a, b) for a, b in combinations(z, 2)) / math.comb(views, 2)
        if apart > 0:
            found["view_distance"] = found["alignment"] / apart
    return found


def teacher_figures(probs: Float[Tensor, "view batch prototype"]) -> dict[str, float]:
    """Beside those above, from 0 (collapsed) to about 1: sharpness is 1 - H(p_i) / ln K, usage H(p) and information
    H(p) - mean H(p_i), both over the largest that they could be."""
    _, n, k = probs.shape
    if n < FEWEST or k < 2:
        return {}
    each, together = entropy(probs).mean().item(), entropy(probs.mean((0, 1))).item()
    most = math.log(min(n, k))  # n images cannot say more, however many prototypes there are
    return {
        "teacher_entropy": each,
        "teacher_kl": math.log(k) - together,
        "ln_k": math.log(k),
        "sharpness": 1 - each / math.log(k),
        "usage": min(1.0, together / most),
        "information": (together - each) / most,
    }


def logit_figures(logits: Float[Tensor, "view batch prototype"]) -> dict[str, float]:
    """logit_variation: share of the logits' variation that comes from the images, and not from the prototypes alone."""
    if logits.shape[1] < FEWEST:
        return {}
    logits = logits - logits.mean(2, keepdim=True)  # what softmax does not see
    whole = logits.square().mean().item()
    return {"logit_variation": logits.var(1).mean().item() / whole if whole > 0 else 0.0}


def input_figures(pixels: Float[Tensor, "view batch pixel"]) -> dict[str, float]:
    """equal_inputs: share of the images whose first two views are one; duplicate_inputs: of the pairs that are one."""
    found = {}
    if len(pixels) > 1:
        found["equal_inputs"] = (pixels[0] == pixels[1]).all(1).float().mean().item()
    if pixels.shape[1] > 1:
        found["duplicate_inputs"] = duplicates(pixels[0] - pixels[0].mean(1, keepdim=True))
    return found


def _variances(x: Float[Tensor, "n dim"]) -> Float[Tensor, " k"]:
    """s^2."""
    x = x.double() - x.double().mean(0)
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x  # the smaller of the two
    return torch.linalg.eigvalsh(gram).clamp(min=0)


def _count(weights: Float[Tensor, " k"]) -> float:
    """As how many equal weights these are: exp of the entropy of their shares, 1 when there are none."""
    return math.exp(entropy(weights / weights.sum()).item()) if weights.sum() > 0 else 1.0
