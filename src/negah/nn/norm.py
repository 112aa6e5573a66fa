"""Batch norm whose statistics are those of more, or of less, than the rows that one process holds.

GlobalBatchNorm: of the rows of all processes.  A contrastive method whose norms see each process's rows alone can tell
a positive by the statistics that it shares with its query, and learns that instead (Chen et al. 2020,
arXiv:2002.05709, section 2.1).  torch's SyncBatchNorm does the same, but refuses CPU tensors.

SplitBatchNorm: of parts of the batch, each on its own: many devices on one.  MoCo (He et al. 2020, arXiv:1911.05722,
section 3.3) hides the same leak by shuffling its keys across devices, which does nothing where there is only one.

All are nn.BatchNorm otherwise: same parameters, buffers and names, so weights go from one to another.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from negah import ranks
from negah.errors import InputError


class _Global(_BatchNorm):
    def forward(self, input: Float[Tensor, "batch channel *grid"]) -> Float[Tensor, "batch channel *grid"]:
        of_batch = self.training or self.running_mean is None
        return _over_ranks(self, input) if of_batch and ranks.world() > 1 else super().forward(input)


class GlobalBatchNorm1d(_Global, nn.BatchNorm1d):
    """nn.BatchNorm1d over the rows of all processes, which must have as many each; on one process it is that one."""


class GlobalBatchNorm2d(_Global, nn.BatchNorm2d):
    """nn.BatchNorm2d over the rows of all processes, which must have as many each; on one process it is that one."""


class _Split(_BatchNorm):
    def __init__(self, channels: int, *, parts: int, **options):
        super().__init__(channels, **options)
        self.parts = parts

    def forward(self, input: Float[Tensor, "batch channel *grid"]) -> Float[Tensor, "batch channel *grid"]:
        if not self.training:
            return super().forward(input)
        if len(input) % self.parts:
            raise InputError(f"a batch of {len(input)} cannot be split into {self.parts} equal parts for batch norm")
        return torch.cat([super(_Split, self).forward(part) for part in input.chunk(self.parts)])


class SplitBatchNorm1d(_Split, nn.BatchNorm1d):
    """nn.BatchNorm1d called on `parts` consecutive, equal parts of the batch, one after the other.

    So the running statistics move once for each part.  In evaluation mode it is nn.BatchNorm1d.
    """


class SplitBatchNorm2d(_Split, nn.BatchNorm2d):
    """nn.BatchNorm2d called on `parts` consecutive, equal parts of the batch, as SplitBatchNorm1d is."""


_GLOBAL = {nn.BatchNorm1d: GlobalBatchNorm1d, nn.BatchNorm2d: GlobalBatchNorm2d}
_SPLIT = {nn.BatchNorm1d: SplitBatchNorm1d, nn.BatchNorm2d: SplitBatchNorm2d}


def globalise(module: nn.Module) -> nn.Module:
    """Give every batch norm in `module` the statistics of all processes, in place; returns `module`.

    Parameters, buffers and modes stay.  A batch norm of another library's own kind, such as timm's with an activation
    inside, stays what it is, and raises InputError once it is trained on more than one process.
    """
    for norm in _batch_norms(module):
        if type(norm) in _GLOBAL:
            _become(norm, _GLOBAL[type(norm)])
        elif not isinstance(norm, _Global):
            norm.register_forward_pre_hook(_refuse_ranks)
    return module


def split(module: nn.Module, parts: int) -> nn.Module:
    """Make every batch norm in `module` take its statistics from each of `parts` parts of the batch, in place.

    Returns `module`; parameters, buffers and modes stay.  Raises InputError on a batch norm that is neither
    nn.BatchNorm1d nor nn.BatchNorm2d.
    """
    for norm in _batch_norms(module):
        if type(norm) not in _SPLIT:
            raise InputError(f"{type(norm).__name__} cannot be split: only nn.BatchNorm1d and nn.BatchNorm2d can")
        _become(norm, _SPLIT[type(norm)])
        norm.parts = parts  # pyright: ignore[reportArgumentType]
    return module


def _batch_norms(module: nn.Module) -> list[_BatchNorm]:
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


def _become(norm: nn.Module, kind: type[nn.Module]) -> None:
    """Change the class and not the module: hooks stay, and so do parameters that an optimiser may hold."""
    norm.__class__ = kind  # pyright: ignore[reportAttributeAccessIssue]


def _refuse_ranks(norm: nn.Module, inputs: tuple) -> None:
    if norm.training and ranks.world() > 1:
        raise InputError(
            f"{type(norm).__name__} has statistics of each process alone, which the method forbids:"
            " take a backbone with nn.BatchNorm, or one process"
        )


def _over_ranks(norm: _BatchNorm, x: Float[Tensor, "batch channel *grid"]) -> Float[Tensor, "batch channel *grid"]:
    norm._check_input_dim(x)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    others = [0, *range(2, x.ndim)]
    # One exchange.  Means and variances, not sums of squares, which cancel where the mean is large.
    variances, means = ranks.all_gather(torch.stack(torch.var_mean(wide, others, correction=0))[None]).unbind(1)
    mean = means.mean(0)
    variance = variances.mean(0) + (means - mean).square().mean(0)
    if norm.training and norm.running_mean is not None:
        _keep(norm, mean.detach(), variance.detach(), ranks.world() * x.numel() // x.shape[1])
    scale = (variance + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    shift = -mean * scale
    if norm.affine:
        shift = shift + norm.bias
    # In this form backward needs x and no other tensor of its size.
    shape = [1, -1] + [1] * (x.ndim - 2)
    return torch.addcmul(shift.view(shape), wide, scale.view(shape)).to(x.dtype)


def _keep(norm: _BatchNorm, mean: Float[Tensor, " channel"], variance: Float[Tensor, " channel"], count: int) -> None:
    """Move the running statistics as nn.BatchNorm does: the variance unbiased, momentum None for a plain average."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    weight = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), weight)
    norm.running_var.lerp_((variance * count / (count - 1)).to(norm.running_var.dtype), weight)
