"""Batch norms over all processes, and over parts of a batch: whose statistics they have; nothing else changes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from negah import ranks
from negah.errors import InputError
from negah.nn.norm import GlobalBatchNorm1d, GlobalBatchNorm2d, SplitBatchNorm1d, SplitBatchNorm2d, globalise, split


class OwnKind(nn.BatchNorm2d):
    """Another library's batch norm, which computes it in its own way."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5, bias=False),
        nn.BatchNorm1d(5, affine=False, momentum=None), nn.Linear(5, 3),
    ).double()  # fmt: skip
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn_like(p))
    return net


def images(n: int = 8) -> Tensor:
    # Far from zero, and each row elsewhere: the processes' statistics differ much, and sums of squares would cancel.
    where = torch.arange(n).double().view(-1, 1, 1, 1)
    noise = torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return 100 + where.square() + noise


def train(rank: int, world: int) -> dict:
    """Two steps' outputs, gradients and statistics on this process's rows."""
    net = globalise(network())
    outputs, input_gradients = [], []
    for shift in (0.0, 3.0):
        x = (images() + shift).chunk(world)[rank].requires_grad_()
        y = net(x)
        y.pow(3).mean().backward()
        outputs.append(y.detach())
        assert x.grad is not None
        input_gradients.append(x.grad / world)
    gradients = [ranks.mean(p.grad) for p in net.parameters() if p.grad is not None]
    evaluated = net.eval()(images()).detach()
    return {
        "outputs": outputs, "input_gradients": input_gradients, "gradients": gradients,
        "buffers": dict(net.named_buffers()), "evaluated": evaluated,
    }  # fmt: skip


def main(folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    ranks.join()
    found = train(ranks.rank(), 2)
    found["one row"] = GlobalBatchNorm1d(2)(torch.tensor([[1.0, 5.0 * ranks.rank()]]))
    with torch.autocast("cpu", torch.bfloat16):
        found["half"] = globalise(network().float())(images().float().chunk(2)[ranks.rank()]).detach()
    try:
        globalise(nn.Sequential(OwnKind(3)))(images().float())
    except InputError as error:
        found["error"] = str(error)
    torch.save(found, folder / f"{ranks.rank()}.pt")
    torch.distributed.barrier()  # both leave together: gloo may abort a process whose peer is gone first


def test_two_processes_have_the_statistics_of_the_whole_batch(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, __file__, str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = train(0, 1)

    for name in ("outputs", "input_gradients"):
        for step in range(2):
            together = torch.cat([first[name][step], second[name][step]])
            torch.testing.assert_close(together, alone[name][step], rtol=1e-9, atol=1e-12)
    for found in (first, second):
        for name in ("gradients", "buffers", "evaluated"):
            torch.testing.assert_close(found[name], alone[name], rtol=1e-9, atol=1e-11)
        assert "OwnKind" in found["error"]
    # One row on each process is a batch of two: +-1 (and 0 where both are equal).
    both = torch.cat([first["one row"], second["one row"]])
    torch.testing.assert_close(both, torch.tensor([[0.0, -1.0], [0.0, 1.0]]))

    with torch.autocast("cpu", torch.bfloat16):
        alone_half = network().float()(images().float())
    assert first["half"].dtype == alone_half.dtype == torch.bfloat16
    torch.testing.assert_close(torch.cat([first["half"], second["half"]]), alone_half, rtol=0.05, atol=0.05)


def test_on_one_process_it_is_torchs_to_the_bit():
    plain, ours = network(), globalise(network())
    for x in (images(), images() - 90):
        assert torch.equal(plain(x), ours(x))
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), ours.buffers()))
    assert torch.equal(plain.eval()(images()), ours.eval()(images()))


@pytest.mark.parametrize("convert", [globalise, lambda net: split(net, 2)])
def test_converting_keeps_weights_modes_and_what_an_optimiser_holds(convert):
    net = network()
    net[1].eval()
    net[5].train().momentum = 0.3  # pyright: ignore[reportArgumentType]
    before, state = list(net.parameters()), {k: v.clone() for k, v in net.state_dict().items()}
    assert convert(net) is net
    assert all(p is q for p, q in zip(net.parameters(), before, strict=True))
    assert isinstance(net[1], (GlobalBatchNorm2d, SplitBatchNorm2d))
    assert isinstance(net[5], (GlobalBatchNorm1d, SplitBatchNorm1d))
    assert not net[1].training and net[5].training and net[5].momentum == 0.3

    plain = network()
    plain.load_state_dict(net.state_dict())  # strict: the names are torch's
    net.load_state_dict(state)
    torch.testing.assert_close(net.eval()(images()), plain.eval()(images()))
    norm = nn.BatchNorm1d(2)  # a net that is a norm itself
    assert convert(norm) is norm and type(norm) is not nn.BatchNorm1d


def test_split_norm_is_one_norm_called_on_each_part():
    x = images()
    plain, ours = nn.BatchNorm2d(3).double(), SplitBatchNorm2d(3, parts=4).double()
    expected = torch.cat([plain(part) for part in x.chunk(4)])
    assert torch.equal(ours(x), expected)
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), plain.buffers())) and ours.num_batches_tracked == 4
    assert not torch.allclose(expected, nn.BatchNorm2d(3).double()(x), atol=0.1)
    assert torch.equal(ours.eval()(x[:3]), plain.eval()(x[:3]))  # no split in evaluation: any batch will do
    flat = x.flatten(1)
    two = nn.BatchNorm1d(108).double()
    assert torch.equal(SplitBatchNorm1d(108, parts=2).double()(flat), torch.cat([two(flat[:4]), two(flat[4:])]))


def test_what_cannot_be_split_is_refused():
    with pytest.raises(InputError, match="batch of 8 cannot be split into 3"):
        SplitBatchNorm2d(3, parts=3).double()(images())
    with pytest.raises(InputError, match="OwnKind"):
        split(nn.Sequential(OwnKind(3)), 2)
    globalise(nn.Sequential(OwnKind(3)))(images().float())  # harmless on one process, where all rows are there


if __name__ == "__main__":
    main(Path(sys.argv[1]))
