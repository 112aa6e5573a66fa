"""Parameters spread over the processes (FSDP2): each holds a part of every tensor, and of its optimiser state.

`apply` makes units: the children of every ModuleList (blocks) and whatever the objective names in `units`.  A unit's
parameters are brought together only while it runs; what is in no unit is together for the whole step.  Checkpoints hold
whole tensors, so that a run goes on with another number of processes, or without sharding.

`torch.distributed.fsdp` takes half a second to import, so only who shards waits for it; whether something is spread is
told without it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from negah import ranks
from negah.train.objective import Objective


def apply(objective: Objective, *, bf16: bool) -> None:
    """Shard `objective` in place.  bf16: parameters travel in bfloat16, gradients are added up in fp32 all the same."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    where = next(objective.parameters()).device.type
    mesh = init_device_mesh(where, (ranks.world(),))
    # Inputs are left as they are: autocast decides what is computed in which type.
    policy = MixedPrecisionPolicy(torch.bfloat16 if bf16 else None, torch.float32, cast_forward_inputs=False)
    for unit in [*_blocks(objective), *objective.units(), objective]:
        fully_shard(unit, mesh=mesh, mp_policy=policy)
        if unit is not objective and hasattr(unit, "many"):
            register_fsdp_forward_method(unit, "many")


def is_spread(value: Any) -> bool:
    """Whether it is a tensor (a DTensor) of which each process holds a part."""
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def is_sharded(model: nn.Module) -> bool:
    """Whether it went through `apply`."""
    return hasattr(model, "set_requires_gradient_sync")


def full(value: Tensor) -> Tensor:
    """A tensor brought together where it is spread; all processes have to ask for it."""
    return value.full_tensor() if is_spread(value) else value  # pyright: ignore[reportAttributeAccessIssue]


def whole(state: Any) -> Any:
    """A state dict with every spread tensor brought together, on the CPU; all processes have to ask for it."""
    return _changed(state, lambda x: full(x).cpu() if is_spread(x) else x)


def load(objective: Objective, optimizer: Optimizer, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Take up whole tensors, each process its part of them; without sharding, simply load them."""
    now = objective.state_dict()
    objective.load_state_dict({name: _spread(value, now.get(name)) for name, value in weights.items()})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    of = {
        index: {name: _spread(value, parameters[index]) for name, value in entries.items()}
        for index, entries in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": of})


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Children of the outermost ModuleLists."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _blocks(child)


def _spread(value: Any, like: Any) -> Any:
    """A whole tensor, spread as `like` is if it has its shape: an optimiser also keeps counters."""
    if is_spread(like) and isinstance(value, Tensor) and value.shape == like.shape:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value


def _changed(state: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(state, dict):
        return {key: _changed(value, change) for key, value in state.items()}
    return [_changed(value, change) for value in state] if isinstance(state, list) else change(state)
