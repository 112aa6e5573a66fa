"""Attacks by gradients reach known optima, equal their peers, and leave no trace."""

from functools import partial

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from negah.adversarial import L1, L2, Classifier, Linf, apgd, apgd_targeted, fgsm, pgd
from negah.adversarial.gradient import checkpoints
from negah.adversarial.losses import cross_entropy, dlr, margin, targeted_dlr
from negah.adversarial.target import check
from negah.errors import InputError

ATTACKS = {
    "fgsm": fgsm,
    "pgd": partial(pgd, steps=10, restarts=2),
    "apgd": partial(apgd, steps=12),
    "apgd_dlr": partial(apgd, steps=12, loss=dlr),
    "apgd_targeted": partial(apgd_targeted, steps=8, targets=3),
}


class Net(nn.Module):
    """A small network with everything that an attack could disturb: batch norm, dropout."""

    def __init__(self, classes: int = 5, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5),
                nn.Linear(8 * 9, classes),
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def images(n: int = 12, seed: int = 0) -> Tensor:
    return 0.1 + 0.8 * torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def labels(n: int = 12, classes: int = 5) -> Tensor:
    return torch.arange(n) % classes


def run(name: str, model, x, y, **options):
    if name != "fgsm":
        options["generator"] = torch.Generator().manual_seed(0)
    return ATTACKS[name](model, x, y, **options)


# Known optima


class Linear(nn.Module):
    """Two classes, z = (0, <w, x> + b)."""

    def __init__(self, w: Tensor, b: float):
        super().__init__()
        self.w, self.b = nn.Parameter(w), b

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1) @ self.w + self.b
        return torch.stack([torch.zeros_like(z), z], 1)


@pytest.mark.parametrize(("norm", "dual"), [(Linf(), 1), (L2(), 2), (L1(), torch.inf)], ids=["Linf", "L2", "L1"])
@pytest.mark.parametrize("attack", [partial(pgd, steps=60), partial(apgd, steps=60, loss=margin)], ids=["pgd", "apgd"])
def test_linear_models_reach_their_closed_form_optimum(norm, dual, attack):
    """Far from 0 and 1, the most that <w, x> can rise is eps times the dual norm of w."""
    w = torch.randn(192, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = torch.full((4, 3, 8, 8), 0.5, dtype=torch.float64)
    model = Linear(w, -float(w.sum()) / 2 - 30.0)  # far from being fooled: the climb goes on to the end
    eps = 0.1
    found = attack(model, x, torch.zeros(4, dtype=torch.long), eps=eps, norm=norm, generator=torch.Generator())
    rise = ((found - x).flatten(1) @ w).mean().item()
    best = eps * float(torch.linalg.vector_norm(w, dual))
    # L1 moves a hundredth of the values by equal amounts, and PGD in L2 turns to the gradient by and by.
    reached = {"L1": 0.9, "L2": 0.98, "Linf": 0.999}[norm.name]
    assert best * reached <= rise <= best * (1 + 1e-6)


def test_fgsm_is_one_step_along_the_sign():
    model, x, y = Net().eval(), images(), labels()
    x.requires_grad_()
    (slope,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), x)
    expected = (x + 0.03 * slope.sign()).clamp(0, 1).detach()
    assert torch.allclose(fgsm(model, x.detach(), y, eps=0.03), expected, atol=1e-7)


# Peers


@pytest.mark.parametrize("eps", [2 / 255, 8 / 255])
def test_fgsm_and_pgd_are_torchattacks(eps):
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed")
    model, x, y = Net().eval(), images(), labels()
    ours = fgsm(model, x, y, eps=eps)
    assert torch.allclose(ours, torchattacks.FGSM(model, eps=eps)(x, y), atol=1e-6)
    theirs = torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=7, random_start=False)(x, y)
    ours = pgd(model, x, y, eps=eps, steps=7, step_size=eps / 4, random=False, keep="last")
    assert torch.allclose(ours, theirs, atol=1e-6)
    theirs = torchattacks.PGDL2(model, eps=0.5, alpha=0.1, steps=7, random_start=False)(x, y)
    ours = pgd(model, x, y, eps=0.5, norm=L2(), steps=7, step_size=0.1, random=False, keep="last")
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_fgsm_and_pgd_are_foolboxs():
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed")
    model, x, y = Net().eval(), images(), labels()
    theirs = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    for attack, options in (
        (foolbox.attacks.LinfPGD(abs_stepsize=0.01, steps=6, random_start=False), {}),
        (foolbox.attacks.L2PGD(abs_stepsize=0.1, steps=6, random_start=False), {"norm": L2()}),
    ):
        eps, size = (0.03, 0.01) if not options else (0.4, 0.1)
        _, clipped, _ = attack(theirs, x, y, epsilons=eps)
        ours = pgd(model, x, y, eps=eps, steps=6, step_size=size, random=False, keep="last", **options)
        assert torch.allclose(ours, clipped, atol=1e-6)


def test_dlr_is_torchattacks():
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is not installed")
    z = torch.randn(50, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(50) % 10
    assert torch.allclose(dlr(z, y), torchattacks.APGD(Net()).dlr_loss(z, y), rtol=1e-9)
    attack = torchattacks.APGDT(Net())
    target = (y + 3) % 10
    assert torch.allclose(
        targeted_dlr(z, torch.stack([y, target], 1)), attack.dlr_loss_targeted(z, y, target), rtol=1e-9
    )


def test_checkpoints_are_the_papers():
    """The first ones of 100 steps, by hand from p_1 = .22."""
    assert checkpoints(100)[:6] == [0, 22, 41, 57, 70, 80] and checkpoints(100)[-1] <= 100


# Whatever is given


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(ATTACKS)), norm=st.sampled_from([Linf(), L2(), L1()]), seed=st.integers(0, 99),
    eps=st.sampled_from([0.0, 1 / 255, 0.1, 2.0]),
)  # fmt: skip
def test_images_stay_in_the_ball_and_in_range(name, norm, seed, eps):
    model, x, y = Net(seed=seed), torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed)), labels(6)
    found = run(name, model, x, y, eps=eps, norm=norm)
    assert found.shape == x.shape and found.min() >= 0 and found.max() <= 1
    # fp32 images are known to 6e-8: over 192 values of an image that is the most that a norm can be off.
    slack = {"Linf": 1.2e-7, "L2": 192**0.5 * 1.2e-7, "L1": 192 * 1.2e-7}[norm.name]
    assert (norm.size(found.double() - x.double()) <= eps * (1 + 1e-5) + slack).all()


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_an_attack_leaves_no_trace(name):
    model, x, y = Net().train(), images(), labels()
    model.layers[0].eval()
    model.layers[5].weight.requires_grad_(False)
    model.layers[5].bias.grad = torch.ones(5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random, pixels = torch.get_rng_state(), x.clone()
    run(name, model, x, y, eps=0.05)

    class Broken(Exception):
        pass

    model.layers[3].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(Broken()))
    with pytest.raises(Broken):
        run(name, model, x, y, eps=0.05)
    assert torch.equal(torch.get_rng_state(), random) and torch.equal(x, pixels)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.layers] == [False, True, True, True, True, True]
    assert model.layers[0].weight.requires_grad and not model.layers[5].weight.requires_grad
    assert model.layers[0].weight.grad is None and torch.equal(model.layers[5].bias.grad, torch.ones(5))


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_the_same_generator_gives_the_same_images(name):
    model, x, y = Net().eval(), images(), labels()
    assert torch.equal(run(name, model, x, y, eps=0.05), run(name, model, x, y, eps=0.05))


def test_the_best_point_is_kept_and_more_steps_never_lose():
    model, x = Net().eval(), images(64)
    y = model(x).argmax(1)
    for eps in (0.01, 0.03, 0.1):
        one = model(fgsm(model, x, y, eps=eps)).argmax(1) != y
        kept = pgd(model, x, y, eps=eps, steps=9, step_size=eps, random=False)
        last = pgd(model, x, y, eps=eps, steps=9, step_size=eps, random=False, keep="last")
        assert (one <= (model(kept).argmax(1) != y)).all()  # its first step is FGSM's
        assert ((model(last).argmax(1) != y) <= (model(kept).argmax(1) != y)).all()


def test_restarts_add_up_and_fooled_images_cost_nothing_more():
    model, x = Net().eval(), images(64)
    y = model(x).argmax(1)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    once = pgd(model, x, y, eps=0.03, steps=5, generator=torch.Generator().manual_seed(0))
    costs_once = sum(seen)
    seen.clear()
    thrice = pgd(model, x, y, eps=0.03, steps=5, restarts=3, generator=torch.Generator().manual_seed(0))
    fooled = model.eval()(once).argmax(1) != y
    assert (fooled <= (model(thrice).argmax(1) != y)).all()
    assert 0 < fooled.sum() < 64 and sum(seen) - 2 * 64 < 3 * costs_once - 2 * int(fooled.sum())


def test_apgd_beats_pgd_of_as_many_steps_where_the_model_is_sure():
    """Logits of a hundred times the size: cross-entropy has no gradient left, DLR does not see the difference."""
    model, x = Net().eval(), images(64)
    y = model(x).argmax(1)
    sure = lambda x: 1e4 * model(x)  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    by_ce = (sure(pgd(sure, x, y, eps=0.05, steps=20, generator=generator)).argmax(1) != y).float().mean()
    by_dlr = (sure(apgd(sure, x, y, eps=0.05, steps=20, loss=dlr, generator=generator)).argmax(1) != y).float().mean()
    plain = (model(apgd(model, x, y, eps=0.05, steps=20, loss=dlr, generator=generator)).argmax(1) != y).float().mean()
    assert by_dlr > by_ce + 0.1 and by_dlr == pytest.approx(float(plain), abs=0.05)


# What cannot be attacked


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"images": images() * 255}, "not in 0 to 1"),
        ({"images": images() - 0.5}, "undo their normalisation"),
        ({"images": torch.full((12, 3, 8, 8), float("nan"))}, "not in 0 to 1"),
        ({"images": images()[:0], "labels": labels(0)}, "images \\[batch"),
        ({"labels": labels() + 5}, "label 9 is out of range: the model has 5 classes"),
        ({"labels": labels() - 1}, "negative"),
        ({"eps": -0.1}, "radius"),
        ({"eps": float("nan")}, "radius"),
        ({"model": lambda x: Net()(x) * float("nan")}, "not finite"),
        ({"model": lambda x: Net()(x)[:, 0]}, "wrap it in Classifier"),
        ({"model": lambda x: {"logits": Net()(x)}}, "dict"),
        ({"attack": partial(apgd, loss=dlr), "model": Net(2), "labels": labels(12, 2)}, "DLR loss needs 3 classes"),
        ({"attack": partial(apgd_targeted), "model": Net(3), "labels": labels(12, 3)}, "needs 4 classes"),
        ({"attack": partial(pgd, steps=0)}, "steps is a count"),
        ({"attack": partial(pgd, restarts=0)}, "restarts is a count"),
        ({"attack": partial(pgd, restarts=2, keep="last")}, "return the last start alone"),
    ],
)
def test_what_cannot_be_attacked_is_named(change, says):
    given_ = {"attack": pgd, "model": Net(), "images": images(), "labels": labels(), "eps": 0.1} | change
    attack = given_.pop("attack")
    with pytest.raises(InputError, match=says):
        attack(given_["model"], given_["images"], given_["labels"], eps=given_["eps"])


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        ((images() * 255).byte(), labels(), "as floats"),
        (images()[0], labels(), "images \\[batch"),
        (images(), torch.eye(5)[labels()], "one class number"),
        (images(), labels(3), "one class number"),
    ],
)
def test_tensors_of_another_kind_are_named(x, y, says):
    with pytest.raises(InputError, match=says):
        check(Net(), x, y, 0.1)


def test_eps_zero_and_a_model_without_gradient_return_the_images():
    x, y = images(), labels()
    assert torch.equal(pgd(Net(), x, y, eps=0.0), x)
    blind = lambda x: torch.eye(5)[torch.zeros(len(x), dtype=torch.long)] * 1.0  # noqa: E731
    assert torch.equal(fgsm(blind, x, y, eps=0.1), x)


def test_a_classifier_owns_its_normalisation_and_takes_other_outputs():
    inner = Net()

    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Hub(nn.Module):
        def forward(self, x):
            return Output(inner(x))

    x = images()
    wrapped = Classifier(Hub(), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)).eval()
    inner.eval()
    expected = inner((x - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1))
    assert torch.allclose(wrapped(x), expected)
    one = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 1)))
    z = one.model((x - one.mean) / one.std)
    assert torch.equal(one(x), torch.cat([torch.zeros_like(z), z], 1))
    with pytest.raises(ValueError, match="std divides"):
        Classifier(inner, std=(1, 0, 1))


def test_cross_entropy_and_margin_by_hand():
    z, y = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 3.0]]), torch.tensor([0, 1])
    assert torch.allclose(margin(z, y), torch.tensor([-1.0, 3.0]))
    assert torch.allclose(cross_entropy(z, y), torch.logsumexp(z, 1) - z.gather(1, y[:, None])[:, 0])
