"""The little that several processes which train together need; on a single one every function is a plain identity.

Under `torchrun --nproc-per-node 8 my_training.py` each process calls `train.fit`, which joins the others by itself.

Gradients: `fit` averages those of the processes (as DDP does), so each process's loss is the mean over its own part of
the batch, and the average of the losses is that of the whole batch.  `all_gather` and `total` let such a loss look at
what the other processes hold, and carry gradients back to them.
"""

import atexit
import os
import time

import torch
import torch.distributed as dist
from jaxtyping import Float, Num
from torch import Tensor


def rank() -> int:
    """Number of this process among all, 0 for the one that writes files and shows progress."""
    return dist.get_rank() if _together() else 0


def world() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if _together() else 1


def join() -> None:
    """Join the processes that torchrun started, if it did: by NCCL where there is CUDA, by gloo elsewhere.

    For the rest of the process: a second group under one torchrun would meet what the first left at its meeting point.
    """
    if _together() or int(os.environ.get("WORLD_SIZE", "1")) == 1 or not dist.is_available():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    atexit.register(_leave)


def mean(values: Tensor) -> Tensor:
    """Average over the processes; a NaN in one of them reaches all.  Without gradients."""
    if world() > 1:
        values = values.detach().clone()
        dist.all_reduce(values)
        values /= world()
    return values


def gather(value: object) -> list:
    """One picklable value of each process, in order of rank, known to all."""
    if world() == 1:
        return [value]
    values: list = [None] * world()
    dist.all_gather_object(values, value)
    return values


def all_gather(x: Num[Tensor, "batch *rest"]) -> Num[Tensor, "all *rest"]:
    """The rows of all processes, in order of rank; every process must have as many.

    Each process gets the gradients that all of them have for its rows, added up.
    """
    return x if world() == 1 else _AllGather.apply(x)  # pyright: ignore[reportReturnType]


def total(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The sum over the processes; each gets the sum of the gradients that all of them have for it."""
    return x if world() == 1 else _Total.apply(x)  # pyright: ignore[reportReturnType]


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        whole = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)  # gloo has no reduce_scatter
        return whole[rank() * ctx.rows : (rank() + 1) * ctx.rows]


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad


def _leave() -> None:
    """End the group, with none of gloo's threads still at work.

    After a collective has returned, the thread that did it lets go of its tensors, for which it needs Python's lock.
    One that waits for the lock as the interpreter ends is killed there, and takes the process with it ("terminate
    called without an active exception"; Python 3.14 ends such threads otherwise).  Sharded parameters keep the group,
    and so its threads, alive past `destroy_process_group`: what helps is to leave them the lock for a moment.
    """
    time.sleep(0.1)
    if _together():
        dist.destroy_process_group()


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
