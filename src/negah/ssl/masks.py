"""Block masks: which patches of an image a student has to do without.

Bao et al. 2021, BEiT, arXiv:2106.08254, algorithm 1; as iBOT (arXiv:2111.07832) and DINOv2 (arXiv:2304.07193) use it.
Blocks of random area and aspect are hidden one after the other, so that what is missing cannot be read off the next
patch.  Departure: the number of hidden patches is met exactly, by cutting the last block short, so that memory is
known beforehand.
"""

import math

import torch
from jaxtyping import Bool
from torch import Tensor

SMALLEST = 4  # patches in a block, while as many are missing
ASPECT = 0.3  # of the flattest block; its inverse is that of the tallest


def block_masks(
    images: int, grid: tuple[int, int], *, share: float = 0.5, ratio: tuple[float, float] = (0.1, 0.5),
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "images patch"]:  # fmt: skip
    """Masks of a batch, True where hidden, row-major over the grid, on the CPU.

    round(share * images) images, at least one, are drawn to be masked.  Their shares of hidden patches are spread
    evenly over `ratio`, each at random within its own stratum, and every one of them hides at least one patch.

    Args:
        generator: None draws from torch's global generator, which `train.fit` seeds, and keeps in its checkpoints.
    """
    masked = max(1, round(share * images))
    low, high = ratio
    at = (torch.arange(masked) + torch.rand(masked, generator=generator)) / masked
    counts = ((low + (high - low) * at) * grid[0] * grid[1]).long().clamp(min=1).tolist()
    masks = torch.zeros(images, *grid, dtype=torch.bool)
    for image, count in zip(torch.randperm(images, generator=generator).tolist(), counts):
        masks[image] = block_mask(grid, count, generator=generator)
    return masks.flatten(1)


def block_mask(
    grid: tuple[int, int], patches: int, *, generator: torch.Generator | None = None
) -> Bool[Tensor, "rows columns"]:
    """One mask that hides exactly `patches` of the grid."""
    if patches > grid[0] * grid[1]:
        raise ValueError(f"{patches} patches to hide on a grid of {grid[0]} x {grid[1]}")
    mask = torch.zeros(grid, dtype=torch.bool)
    missing = patches
    while missing:
        size, aspect, y, x = torch.rand(4, generator=generator).tolist()
        smallest = min(SMALLEST, missing)
        area = smallest + size * (missing - smallest)
        tall = math.exp((2 * aspect - 1) * math.log(ASPECT))
        rows = min(grid[0], max(1, round(math.sqrt(area * tall))))
        columns = min(grid[1], max(1, round(math.sqrt(area / tall))))
        top, left = int(y * (grid[0] - rows + 1)), int(x * (grid[1] - columns + 1))
        block = mask[top : top + rows, left : left + columns]
        new = (~block).nonzero()[:missing]
        block[new[:, 0], new[:, 1]] = True
        missing -= len(new)
    return mask
