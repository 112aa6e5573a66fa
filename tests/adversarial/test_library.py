"""An attack of torchattacks through our evaluation gives its own images, and the same for the same generator."""

import pytest
import torch
from torch import nn

from negah.adversarial.evaluate import attacked
from negah.adversarial.library import of_torchattacks

torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed")


def test_torchattacks_go_through_the_evaluation():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval()
    x = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y = net(x).argmax(1)
    before = torch.get_rng_state()
    attacks = {"FGSM": of_torchattacks(lambda model, eps: torchattacks.FGSM(model, eps=eps))}
    found = attacked(net, x, y, eps=0.05, attacks=attacks)
    theirs = torchattacks.FGSM(net, eps=0.05)(x, y)
    assert torch.equal(found.fooled, net(theirs).argmax(1) != y) and found.fooled.any()
    pgd = of_torchattacks(lambda model, eps: torchattacks.PGD(model, eps=eps, steps=3))
    again = [pgd(net, x, y, eps=0.05, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*again) and torch.equal(torch.get_rng_state(), before)
