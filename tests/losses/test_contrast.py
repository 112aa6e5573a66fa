"""The tiled contrast against the plain cross-entropies that it stands for."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from negah import ranks
from negah.losses.contrast import contrast, contrast_queue, contrast_self

# Numbers of groups: some in common, some of keys alone; captions of pictures; views, one picture with three.
MANY = torch.tensor([0, 1, 2, 1, 3, 5]), torch.tensor([5, 3, 3, 2, 1, 1, 0, 0, 7])
CAPTIONS = torch.tensor([10, 11, 12]), torch.tensor([10, 10, 11, 11, 11, 12, 12])
VIEWS = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 1])


def rows(n: int, dim: int = 5, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x * torch.linspace(0.5, 3, n, dtype=torch.float64)[:, None]).to(dtype).requires_grad_()


def plain(logits: Tensor, positive: Tensor) -> Tensor:
    """Cross-entropy of each row, averaged over its positives outside of the logarithm."""
    log_p = logits.log_softmax(1)
    return -(log_p.where(positive, 0).sum(1) / positive.sum(1)).mean()


def plain_contrast(q: Tensor, k: Tensor, temperature, groups=None, symmetric: bool = False) -> Tensor:
    logits = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / temperature
    positive = torch.eye(len(q), dtype=torch.bool) if groups is None else groups[0][:, None] == groups[1]
    loss = plain(logits, positive)
    return (loss + plain(logits.T, positive.T)) / 2 if symmetric else loss


def plain_self(z: Tensor, groups: Tensor, temperature) -> Tensor:
    own = torch.eye(len(z), dtype=torch.bool)
    logits = (F.normalize(z, dim=1) @ F.normalize(z, dim=1).T / temperature).masked_fill(own, -torch.inf)
    return plain(logits, (groups[:, None] == groups) & ~own)


def plain_queue(q: Tensor, k: Tensor, queue: Tensor, temperature) -> Tensor:
    q, k, queue = (F.normalize(x, dim=1) for x in (q, k, queue.detach()))
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


# name: (sizes of the inputs, ours, plain), both called with the inputs and a temperature
FORMS: dict[str, tuple[tuple[int, ...], Callable, Callable]] = {
    "pairs": ((7, 7), lambda q, k, t, **o: contrast(q, k, temperature=t, **o), plain_contrast),
    "both directions": (
        (7, 7),
        lambda q, k, t, **o: contrast(q, k, temperature=t, symmetric=True, **o),
        lambda q, k, t: plain_contrast(q, k, t, symmetric=True),
    ),
    "several positives": (
        (6, 9),
        lambda q, k, t, **o: contrast(q, k, temperature=t, groups=MANY, **o),
        lambda q, k, t: plain_contrast(q, k, t, MANY),
    ),
    "captions, both directions": (
        (3, 7),
        lambda q, k, t, **o: contrast(q, k, temperature=t, groups=CAPTIONS, symmetric=True, **o),
        lambda q, k, t: plain_contrast(q, k, t, CAPTIONS, symmetric=True),
    ),
    "self": (
        (9,),
        lambda z, t, **o: contrast_self(z, VIEWS, temperature=t, **o),
        lambda z, t: plain_self(z, VIEWS, t),
    ),
    "queue": ((4, 4, 11), lambda q, k, n, t, **o: contrast_queue(q, k, n, temperature=t, **o), plain_queue),
}


def with_gradients(form: Callable, inputs: list[Tensor], temperature: Tensor, **options) -> list[Tensor]:
    """Loss, and its gradients for all inputs (a queue has none) and the temperature."""
    temperature = temperature.clone().requires_grad_()
    loss = form(*inputs, temperature, **options)
    found = torch.autograd.grad(loss, [*inputs, temperature], allow_unused=True)
    return [loss.detach(), *(g for g in found if g is not None)]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_equals_autograd_of_the_plain_form_whatever_the_tile(name, dtype, tolerance):
    sizes, ours, form = FORMS[name]
    inputs = [rows(n, seed=i, dtype=dtype) for i, n in enumerate(sizes)]
    temperature = torch.tensor(0.3, dtype=dtype)
    expected = with_gradients(form, inputs, temperature)
    for tile in (2, 4, None):
        found = with_gradients(ours, inputs, temperature, tile=tile)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", FORMS)
def test_gradcheck(name):
    sizes, ours, _ = FORMS[name]
    inputs = [rows(n, 3, seed=i).detach().requires_grad_(i < 2) for i, n in enumerate(sizes)]
    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: ours(*x, tile=3), (*inputs, temperature))


def test_the_clip_scale_gets_its_gradient_through_a_clamp():
    log_scale = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    a, b = rows(8, seed=1), rows(8, seed=2)
    ours = contrast(a, b, temperature=1 / log_scale.exp().clamp(max=100), symmetric=True)
    expected = plain_contrast(a, b, (-log_scale).exp(), symmetric=True)
    torch.testing.assert_close(torch.autograd.grad(ours, log_scale), torch.autograd.grad(expected, log_scale))


@pytest.mark.parametrize("name", FORMS)
def test_a_tiny_temperature_does_not_overflow(name):
    sizes, ours, form = FORMS[name]
    inputs = [rows(n, seed=i, dtype=torch.float32) for i, n in enumerate(sizes)]
    found = with_gradients(lambda *x: ours(*x[:-1], 1e-4, tile=3), inputs, torch.tensor(1.0))
    exact = form(*(x.double() for x in inputs), 1e-4)
    torch.testing.assert_close(found[0].double(), exact, rtol=1e-5, atol=0)
    assert all(x.isfinite().all() for x in found)


def test_half_precision_is_computed_in_fp32_also_under_autocast():
    q, k = (rows(40, 16, seed=i).detach().bfloat16().requires_grad_() for i in range(2))
    expected = with_gradients(
        lambda a, b, t: plain_contrast(a.float(), b.float(), t, symmetric=True), [q, k], torch.tensor(0.1)
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(FORMS["both directions"][1], [q, k], torch.tensor(0.1), tile=16)
    assert found[0].dtype == torch.float32 and found[1].dtype == torch.bfloat16
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(found[1:3], expected[1:3], rtol=2**-7, atol=1e-6)


def test_a_side_without_gradients_costs_none():
    q, k = rows(6), rows(6, seed=1).detach()
    contrast(q, k, temperature=0.1, symmetric=True).backward()
    expected = torch.autograd.grad(plain_contrast(q, k, 0.1, symmetric=True), q)[0]
    torch.testing.assert_close(q.grad, expected)


class Largest(TorchDispatchMode):
    """Most numbers in any tensor that an operation makes or fills."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor):
                self.numbers = max(self.numbers, x.numel())
        return out


@pytest.mark.parametrize("name", ["both directions", "self", "queue"])
def test_memory_is_that_of_the_inputs_and_some_tiles(name):
    n, dim, tile = 512, 8, 16
    inputs = [rows(n, dim, seed=i) for i in range(len(FORMS[name][0]))]
    ours = (
        FORMS[name][1]
        if name != "self"
        else lambda z, t, **o: contrast_self(z, torch.arange(n) // 2, temperature=t, **o)
    )
    with Largest() as largest:
        with_gradients(ours, inputs, torch.tensor(0.1, dtype=torch.float64), tile=tile)
    assert largest.numbers <= n * n // tile  # of each tile and row one number, which is the most there is
    with Largest() as largest:
        with_gradients(lambda q, k, t: plain_contrast(q, k, t), [rows(n), rows(n)], torch.tensor(0.1))
    assert largest.numbers >= n * n  # so the measurement would have seen it


def test_what_cannot_be_contrasted_is_refused():
    q = rows(4)
    for bad in (0.0, -1.0, float("nan"), torch.tensor(0.0)):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            contrast(q, q, temperature=bad)
    with pytest.raises(ValueError, match="at least 2 keys"):
        contrast(q[:1], q[:1], temperature=0.1)
    with pytest.raises(ValueError, match="at least 2 views"):
        contrast_self(q[:1], torch.tensor([0]), temperature=0.1)
    with pytest.raises(ValueError, match="at least 1 query"):
        contrast(q[:0], q, temperature=0.1, groups=(torch.arange(0), torch.arange(4)))
    with pytest.raises(ValueError, match="4 queries and 3 keys are not pairs"):
        contrast(q, q[:3], temperature=0.1)
    unchecked = inspect.unwrap(contrast)  # outside of tests nothing checks the annotations
    with pytest.raises(ValueError, match="queries have 5 dimensions and keys 4"):
        unchecked(q, q[:, :4], temperature=0.1)
    with pytest.raises(ValueError, match="4 and 3 groups' numbers for 4 queries and 4 keys"):
        unchecked(q, q, temperature=0.1, groups=(torch.arange(4), torch.arange(3)))
    with pytest.raises(ValueError, match="row 2 has no positive"):
        contrast_self(q, torch.tensor([0, 0, 1, 0]), temperature=0.1)
    with pytest.raises(ValueError, match="do not fit"):
        contrast_queue(q, q, q[:0], temperature=0.1)


# Several processes


def shared(name: str, inputs: list[Tensor], groups: Tensor, temperature: Tensor) -> Tensor:
    """A form on this process's part of the rows, with numbers of groups that all processes share."""
    options = {"temperature": temperature, "tile": 3}
    if name == "self":
        return contrast_self(inputs[0], groups, **options)
    pairs = None if name in ("pairs", "both directions") else (groups, groups)
    return contrast(inputs[0], inputs[1], groups=pairs, symmetric="both" in name, **options)


def train(rank: int, world: int) -> dict[str, list[Tensor]]:
    """Loss and gradients of each form as DDP would give them, from this process's rows."""
    found = {}
    for name in [name for name in FORMS if name != "queue"]:  # that one knows nothing of processes
        whole = [rows(8, seed=i) for i in range(2)]
        temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        mine = [x.chunk(world)[rank] for x in whole]
        groups = torch.tensor([0, 1, 2, 2, 2, 0, 1, 0]).chunk(world)[rank]
        loss = shared(name, mine, groups, temperature)
        loss.backward()
        gradients = [x.grad for x in [*whole, temperature] if x.grad is not None]
        found[name] = [ranks.mean(x) for x in (loss, *gradients)]
    return found


def main(folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    ranks.join()
    torch.save(train(ranks.rank(), ranks.world()), folder / f"{ranks.rank()}.pt")
    torch.distributed.barrier()  # both leave together: gloo may abort a process whose peer is gone first


def test_two_processes_equal_one(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, __file__, str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    alone = train(0, 1)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), alone, rtol=1e-12, atol=1e-14)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
