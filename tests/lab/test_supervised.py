"""Networks begin and learn as the protocol says; the whole of it is run on CIFAR-10 alone."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from negah.errors import InputError
from negah.lab import supervised
from negah.lab.supervised import CIFAR10, Bench, Network, untouched
from negah.lab.training import Effort, Pictures

EFFORT = Effort(steps=40, batch=16, say=lambda line: None)


def bench(effort: Effort = EFFORT, classes=CIFAR10) -> Bench:
    """Black pictures and white ones."""
    labels = torch.arange(80) % 2
    images = (255 * labels).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    pictures = Pictures(images, labels, images[:40], labels[:40], classes)
    return Bench(pictures, effort, images[:40].float() / 255, labels[:40])


def test_the_network_is_torchvisions():
    from torchvision.models import resnet18

    theirs = resnet18(num_classes=10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours = Network(10).eval()
    names = {f"resnet.{name}".replace("resnet.fc", "linear"): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(names)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x), theirs.eval()(x))
    assert all((block.bn2.weight == 1).all() for block in Network(10).modules() if hasattr(block, "bn2"))


def test_it_learns_and_repeats_itself(monkeypatch):
    monkeypatch.setattr(supervised, "REDUCED_WIDTHS", (8, 8, 16, 16))
    made = bench()
    networks = [made.network(seed) for seed in (0, 0, 1)]
    done = [made.train(network, craft=untouched) for network in networks]
    a, b, other = (network(made.images) for network in networks)
    assert torch.equal(a, b) and not torch.equal(a, other) and not networks[0].training
    assert done[0].history[-1]["loss"] < 0.3 * done[0].history[0]["loss"]


def pictures(folder, classes: int, each: int) -> None:
    for k in range(classes):
        (folder / f"class{k}").mkdir(parents=True)
        for i in range(each):
            Image.new("RGB", (40, 40), (20 * k, 10 * i, 0)).save(folder / f"class{k}" / f"{i}.png")


def test_a_folder_called_test_is_what_is_measured_on(tmp_path):
    pictures(tmp_path / "train", 3, 4)
    pictures(tmp_path / "test", 3, 2)
    both = Pictures.of(Effort(data=(str(tmp_path / "train"), str(tmp_path / "test"))))
    assert len(both.train) == 12 and len(both.test) == 6 and both.classes == ["class0", "class1", "class2"]
    assert len(Pictures.of(Effort(data=(str(tmp_path),)), train=5, test=4).train) == 5
    # Where all or none are called so, a part is held out at random.
    for name in ("train", "test"):
        one = Pictures.of(Effort(data=(str(tmp_path / name),)), train=4, test=2)
        assert len(one.train) == 4 and len(one.test) == 2


def test_all_of_it_takes_the_protocols_own_numbers(tmp_path):
    pictures(tmp_path / "train", 2, 4)
    pictures(tmp_path / "test", 2, 2)
    full = Bench.of(replace(EFFORT, full=True, data=(str(tmp_path),)))
    assert (full.effort.batch, full.effort.steps) == (128, 7)  # 100 epochs of 8 pictures
    assert full.network(0).resnet.dim == 512 and len(full.images) == 4
    assert not full.protocol and "not on CIFAR-10" in full.size and full.settings()["size"] == "full"
    # Without a folder called test, a part of all is held out.
    part = Bench.of(replace(EFFORT, full=True, data=(str(tmp_path / "train"),)))
    assert len(part.images) == 1 and len(part.pictures.train) == 7
    with pytest.raises(InputError, match="give --data"):
        Bench.of(replace(EFFORT, full=True))


def test_the_protocol_is_cifar_in_full():
    short = Pictures(*(torch.zeros(1, dtype=torch.uint8).expand(50_000, 3, 1, 1), torch.zeros(50_000).long()),
                     torch.zeros(1, 3, 1, 1, dtype=torch.uint8), torch.zeros(1).long(), CIFAR10)  # fmt: skip
    images, labels = torch.zeros(1, 3, 1, 1).expand(10_000, 3, 1, 1), torch.zeros(10_000).long()
    assert Bench(short, replace(EFFORT, full=True), images, labels).protocol
    assert not Bench(short, EFFORT, images, labels).protocol
    assert not Bench(short, replace(EFFORT, full=True), images[:100], labels[:100]).protocol
    assert not Bench(replace(short, classes=("a",)), replace(EFFORT, full=True), images, labels).protocol
