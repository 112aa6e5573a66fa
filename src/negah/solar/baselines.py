"""What others measure extents by: baselines beside our area estimate, for benchmarks only.

Each gives the panel fraction of each patch, here all or nothing, from what a head or a backbone says of one image.

    min-max     a_j = mean_h a_hj,    f_j = 1 where (a_j - min a) / (max a - min a) >= threshold

    LOST        Siméoni et al. 2021, "Localizing Objects with Self-Supervised Transformers and no Labels",
                arXiv:2109.14279.  With x_p the feature of patch p and a_pq = x_p . x_q,

                    degree_p = #{q : a_pq > 0},    seed = argmin_p degree_p
                    S        = {q of the `expand` lowest degrees : a_q,seed > 0}
                    f        = the component around the seed of {q : sum_{s in S} a_qs > 0}

    TokenCut    Wang et al. 2022, "Self-Supervised Transformers for Unsupervised Object Discovery using Normalized
                Cut", arXiv:2202.11539.  With e_pq = 1 where cos(x_p, x_q) >= tau, else 1e-5, and d_p = sum_q e_pq,

                    (d - e) y = lambda d y    for the second smallest lambda,    seed = argmax_p |y_p|
                    f         = the component around the seed of {q on the same side of mean(y) as the seed}

How they fail: none can say "nothing here", so windows without a panel have to be left out by a detector beforehand, and
none knows what a panel is.  LOST and TokenCut find one object per image and take it for the smaller part: where panels
cover more than half of a window, they measure what is left of it.

Departures from the papers: the patch mask is the result, neither turned into a box nor refined at its edges (TokenCut's
bilateral solver), nor are detectors trained on it.  LOST's inequalities are strict as in its authors' code, and ties
between degrees go to the first patch.  The papers take the keys of DINO's last layer; here the caller chooses.
"""

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import ndimage
from scipy.linalg import eigh
from torch import Tensor

WEAK = 1e-5  # affinity of unlike patches in TokenCut: above zero, so that the graph is connected and d invertible


def min_max(attention: Float[Tensor, "batch head patch"], *, threshold: float = 0.5) -> Float[Tensor, "batch patch"]:
    """The naive extent: attention of the CLS query, stretched to [0, 1] in each image and cut at `threshold`.

    Why it fails.  The largest value becomes one whatever it was, so something is always found, be it noise (only an
    exactly constant map gives nothing).  And softmax mass sums to one: a few telling patches decide that there is a
    panel, they take the mass and set the scale, and the rest of a large panel falls below the threshold, so that small
    and large measure the same.  It would be right if attention spread evenly over a panel, which no loss asks for.
    """
    a = attention.float().mean(1)
    low, high = a.amin(1, keepdim=True), a.amax(1, keepdim=True)
    scaled = (a - low) / (high - low).clamp(min=torch.finfo(a.dtype).tiny)
    return (scaled >= threshold).float()


def lost(
    features: Float[Tensor, "batch patch dim"], *, grid: tuple[int, int], expand: int = 100
) -> Float[Tensor, "batch patch"]:
    """LOST's object: patches that go with the one that fewest others resemble.

    Features count as alike where their product is positive.  If an offset common to all makes every product positive,
    all degrees tie and the whole image is found: subtract the mean over patches first.  A seed whose features are zero
    resembles nothing, not even itself, and nothing is found.

    grid: (rows, columns) of the patches, row by row.
    expand: the paper's k. On images of fewer patches than that, every patch is a candidate.
    """
    fraction = features.new_zeros(features.shape[:2], dtype=torch.float32)
    for k, x in enumerate(features.float()):
        a = x @ x.T
        order = (a > 0).sum(1).argsort(stable=True)
        seed, candidates = order[0], order[:expand]
        alike = candidates[a[seed, candidates] > 0]
        mask = a[alike].sum(0) > 0
        fraction[k] = torch.from_numpy(component(mask.cpu().numpy(), int(seed), grid))
    return fraction


def token_cut(
    features: Float[Tensor, "batch patch dim"], *, grid: tuple[int, int], tau: float = 0.2
) -> Float[Tensor, "batch patch"]:
    """TokenCut's object: the smaller side of the normalised cut through the graph of like patches.

    The smaller side, because y averages to zero under the weights d and so lies further from it on the side with less
    weight.  In an image whose patches are all alike every cut is as good, and what is found has no meaning.

    grid: (rows, columns) of the patches, row by row; at least two patches, or there is nothing to cut.
    tau: cosine from which two patches are alike.
    """
    fraction = features.new_zeros(features.shape[:2], dtype=torch.float32)
    for k, x in enumerate(F.normalize(features.float(), dim=-1)):
        e = np.where((x @ x.T >= tau).cpu().numpy(), 1.0, WEAK)
        d = np.diag(e.sum(1))
        y = cast(tuple[ndarray, ndarray], eigh(d - e, d, subset_by_index=[1, 1]))[1][:, 0]
        above, seed = y > y.mean(), int(np.abs(y).argmax())
        fraction[k] = torch.from_numpy(component(above == above[seed], seed, grid))
    return fraction


def component(mask: Bool[ndarray, " patch"], seed: int, grid: tuple[int, int]) -> Bool[ndarray, " patch"]:
    """Patches of the mask that are joined to the seed by their sides; none where the mask leaves the seed out.

    Raises ValueError if the patches do not fill the grid.
    """
    if mask.size != grid[0] * grid[1]:
        raise ValueError(f"{mask.size} patches do not fill a grid of {grid[0]} x {grid[1]}: pass their (rows, columns)")
    labels = cast(tuple[ndarray, int], ndimage.label(mask.reshape(grid)))[0].flatten()
    return mask & (labels == labels[seed])
