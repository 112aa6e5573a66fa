"""The little that training on several processes needs; on a single one every function here is a plain identity.

Under `torchrun --nproc-per-node 8 my_training.py` each process calls `fit`, which joins the others by itself.
"""

import atexit
import os

import torch
import torch.distributed as dist
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
    atexit.register(dist.destroy_process_group)


def mean(values: Tensor) -> Tensor:
    """Average over the processes; a NaN in one of them reaches all."""
    if world() > 1:
        values = values.clone()
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


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
