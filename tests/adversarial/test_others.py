"""Square, DeepFool and universal perturbations: known answers, peers, and what they promise."""

import pytest
import torch
from torch import Tensor, nn

from negah.adversarial import L1, L2, Linf, deepfool, fooling_rate, random_signs, square, universal, universal_deepfool
from negah.adversarial.square import hill, side
from negah.errors import InputError


class Net(nn.Module):
    def __init__(self, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5)
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def images(n: int = 32, seed: int = 0) -> Tensor:
    return 0.2 + 0.6 * torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("norm", "eps"), [(Linf(), 0.1), (L2(), 0.7)])
def test_square_fools_without_a_gradient_and_stays_in_the_ball(norm, eps):
    net = Net().eval()
    blind = lambda x: net(x).detach()  # noqa: E731
    x = images()
    y = net(x).argmax(1)
    rates = []
    for steps in (1, 20, 200):
        found = square(blind, x, y, eps=eps, norm=norm, steps=steps, generator=torch.Generator().manual_seed(0))
        assert norm.size(found - x).max() <= eps + 1e-6 and found.min() >= 0 and found.max() <= 1
        rates.append((net(found).argmax(1) != y).float().mean().item())
    assert rates[0] <= rates[1] <= rates[2] and rates[2] > rates[0] + 0.1


def test_square_changes_whole_squares_at_full_eps():
    """After one accepted step from stripes, all values are at +-eps, far from 0 and 1."""
    x = images(4)
    found = square(Net().eval(), x, torch.full((4,), 4), eps=0.05, steps=5, generator=torch.Generator())
    moved = (found - x).abs()
    assert torch.allclose(moved[moved > 0], torch.tensor(0.05), atol=1e-6)


def test_square_in_l2_uses_the_whole_radius_from_its_first_point_on():
    """Far from 0 and 1: what one square loses another gets, so that nothing of the length is lost."""
    x = images(4)
    for steps in (1, 30):
        found = square(Net().eval(), x, Net().eval()(x).argmax(1), eps=0.3, norm=L2(), steps=steps,
                       generator=torch.Generator())  # fmt: skip
        torch.testing.assert_close(L2().size(found - x), torch.full((4,), 0.3))


def test_a_hill_is_that_of_the_paper():
    """Squares of 1, 3, 5 around the middle, the k-th (from 1) as high as 1 / k^2; the sum has length 1."""
    expected = torch.zeros(5, 5)
    for k in (1, 2, 3):
        expected[3 - k : 2 + k, 3 - k : 2 + k] += 1 / k**2
    torch.testing.assert_close(hill(5, 5), expected / expected.norm())


def test_squares_shrink_as_the_paper_says():
    picture = torch.zeros(1, 3, 100, 100)
    assert [side(p, 0.8, picture) for p in (0, 0.002, 0.01, 0.9)] == [89, 63, 45, 4]
    assert side(0, 0.8, torch.zeros(1, 3, 1, 1)) == 1


def test_deepfool_finds_the_distance_to_a_plane():
    """Two classes, one plane: |<w, x> + b| / ||w|| times 1 + overshoot, in both norms."""
    w = torch.randn(192, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = images(6).double()
    b = -float((x.flatten(1) @ w).mean())
    model = lambda x: torch.stack([torch.zeros(len(x), dtype=x.dtype), x.flatten(1) @ w + b], 1)  # noqa: E731
    y = model(x).argmax(1)
    for norm, dual in ((L2(), w.norm()), (Linf(), w.abs().sum())):
        found = deepfool(model, x, y, norm=norm)
        assert (model(found).argmax(1) != y).all()
        expected = (x.flatten(1) @ w + b).abs() / dual
        assert torch.allclose(norm.size(found - x), expected * 1.02, rtol=1e-2, atol=2e-4)


def test_deepfool_needs_no_more_than_foolboxs():
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed")
    net, x = Net().eval(), images()
    y = net(x).argmax(1)
    ours = deepfool(net, x, y)
    _, theirs, _ = foolbox.attacks.L2DeepFoolAttack(steps=50)(
        foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu"), x, y, epsilons=None
    )
    assert (net(ours).argmax(1) != y).all()
    assert (L2().size(ours - x) <= L2().size(theirs - x) * 1.05 + 1e-3).float().mean() > 0.9


def test_deepfool_gives_up_at_eps_and_leaves_mistakes_alone():
    net, x = Net().eval(), images()
    y = net(x).argmax(1)
    y[:5] = (y[:5] + 1) % 5
    found = deepfool(net, x, y, eps=0.05)
    assert torch.equal(found[:5], x[:5]) and (L2().size(found - x) <= 0.05 + 1e-5).all()


@pytest.mark.parametrize("make", [universal, universal_deepfool])
def test_a_universal_perturbation_fools_images_it_has_not_seen(make):
    net, x, others = Net().eval(), images(60), images(200, seed=1)
    options = {"eps": 0.1, "epochs": 5, "generator": torch.Generator().manual_seed(0)}
    delta = make(net, x, **options)
    assert delta.shape == (1, 3, 8, 8) and delta.abs().max() <= 0.1 + 1e-6
    noise = fooling_rate(net, others, random_signs(delta, 0.1, torch.Generator().manual_seed(0)))
    assert fooling_rate(net, others, delta) > noise + 0.2
    assert fooling_rate(net, others, torch.zeros_like(delta)) == 0


def test_what_cannot_be_done_is_named():
    with pytest.raises(InputError, match="images to be made of"):
        universal(Net(), images(0), eps=0.1)
    with pytest.raises(InputError, match="not in 0 to 1"):
        universal(Net(), images() * 255, eps=0.1)
    with pytest.raises(InputError, match="steps of 1 or more"):
        square(Net(), images(), torch.zeros(32, dtype=torch.long), eps=0.1, steps=0)
    with pytest.raises(InputError, match="Linf and L2 only, not in L1"):
        square(Net(), images(), torch.zeros(32, dtype=torch.long), eps=0.1, norm=L1())
