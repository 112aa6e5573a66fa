"""Patches: what they change and what they leave alone, a known optimum, and that they fool better than grey."""

import pytest
import torch
from torch import Tensor, nn

from negah.adversarial.patch import Placement, adversarial_patch, named, patched, total_variation
from negah.errors import InputError

FLAT = Placement(at=(2, 5), turn_deg=0.0, light=0.0)


def images(n: int = 16, seed: int = 0, side: int = 16) -> Tensor:
    return 0.2 + 0.6 * torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Linear(nn.Module):
    """Logits (0, w . x)."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        score = (x * self.weight).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(score), score], 1)


class Net(nn.Module):
    """Looks at means of small neighbourhoods, with a dropout and a batch norm that would show a training mode."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 8, 5, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveMaxPool2d(2),
                nn.Flatten(), nn.Linear(32, 3),
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_a_patch_that_lies_straight_is_copied_and_nothing_else_changes():
    x, patch = images(), torch.rand(3, 4, 4, generator=generator(1))
    found = patched(x, patch, FLAT)
    expected = x.clone()
    expected[:, :, 2:6, 5:9] = patch
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    outside = torch.ones(16, 16, dtype=torch.bool)
    outside[2:6, 5:9] = False
    assert torch.equal(found[:, :, outside], x[:, :, outside])


def test_places_turns_and_light_are_drawn_for_each_image_and_repeat():
    x, patch = torch.zeros(1000, 3, 16, 16), torch.full((3, 5, 5), 0.5)
    found = patched(x, patch, Placement(turn_deg=20, light=0.2), generator())
    assert torch.equal(found, patched(x, patch, Placement(turn_deg=20, light=0.2), generator()))
    lit = (found > 0)[:, 0]
    # A turned square covers about as many pixel centres, unless a corner of it is cut off.
    assert 20 <= lit.sum((1, 2)).min() and lit.sum((1, 2)).max() <= 30
    assert lit.any(0).all(), "some place is never covered"
    light = found.flatten(1).amax(1)
    assert 0.4 <= light.min() < 0.42 and 0.58 < light.max() <= 0.6 + 1e-6


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_turns_are_those_of_rot90(quarter, monkeypatch):
    patch = torch.rand(3, 4, 4, generator=generator(1))
    # The draw of 1 turns by +turn_deg, counterclockwise as seen on the screen.
    monkeypatch.setattr("negah.adversarial.patch.uniform", lambda like, _: torch.ones_like(like))
    found = patched(images(1), patch, Placement(at=(2, 5), turn_deg=90 * quarter, light=0.0))
    torch.testing.assert_close(found[0, :, 2:6, 5:9], patch.rot90(-quarter, (1, 2)), atol=1e-5, rtol=0)


def test_the_best_patch_against_a_linear_model_is_known():
    """At a fixed place: the highest printable value where the weight is above 0, the lowest elsewhere."""
    weight = torch.randn(3, 16, 16, generator=generator(2)) * 0.1
    for target, sign in ((1, 1), (0, -1)):
        found = adversarial_patch(
            Linear(weight), images(), target=target, side=4, placement=FLAT, printable=(0.1, 0.8), steps=60,
            generator=generator(),
        )  # fmt: skip
        expected = torch.where(sign * weight[:, 2:6, 5:9] > 0, 0.8, 0.1)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_a_patch_fools_images_it_has_not_seen_better_than_grey_and_noise():
    net, target = Net().eval(), 1
    x, others = images(64), images(200, seed=1)
    made = adversarial_patch(net, x, target=target, side=8, steps=60, generator=generator())
    rates = [
        named(net, others, patch, target, generator=generator())
        for patch in (made, torch.full_like(made, 0.5), torch.rand(made.shape, generator=generator()))
    ]
    assert rates[0] > max(rates[1:]) + 0.2


def test_a_weight_on_variation_makes_a_patch_smoother():
    net = Net().eval()
    rough, smooth = (
        adversarial_patch(net, images(), target=1, side=6, steps=40, smooth=weight, generator=generator())
        for weight in (0.0, 2.0)
    )
    assert total_variation(smooth) < 0.7 * total_variation(rough)
    assert total_variation(torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])) == 0.5


def test_the_model_and_randomness_are_left_as_they_were():
    net = Net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    adversarial_patch(net, images(), target=1, side=4, steps=3, generator=generator())
    named(net, images(), torch.rand(3, 4, 4, generator=generator()), 1, generator=generator())
    assert net.training and all(p.grad is None and p.requires_grad for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_done_is_named():
    net, x = Net().eval(), images()
    with pytest.raises(InputError, match="patch of 17 px does not fit into images of 16 x 16"):
        adversarial_patch(net, x, target=1, side=17)
    with pytest.raises(InputError, match="patch of 0 px"):
        adversarial_patch(net, x, target=1, side=0)
    with pytest.raises(InputError, match=r"not \[3, 4, 5\]"):
        patched(x, torch.zeros(3, 4, 5))
    with pytest.raises(InputError, match="row 14, column 0 lies outside"):
        patched(x, torch.zeros(3, 4, 4), Placement(at=(14, 0)))
    with pytest.raises(InputError, match=r"not 0 to 2"):
        adversarial_patch(net, x, target=1, side=4, printable=(0, 2))
    with pytest.raises(InputError, match="label 3 is out of range"):
        adversarial_patch(net, x, target=3, side=4)
    with pytest.raises(InputError, match="not in 0 to 1"):
        adversarial_patch(net, x * 255, target=1, side=4)
