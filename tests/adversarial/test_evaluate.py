"""A robust accuracy is what attacks leave, and every way to get it wrong is told."""

import json
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from negah.adversarial import L1, L2, Linf, apgd, evaluate, fgsm, pgd
from negah.adversarial.evaluate import attacked, ladder
from negah.adversarial.losses import dlr
from negah.adversarial.square import square
from negah.adversarial.verdicts import verdicts
from negah.errors import InputError

EPS = 0.02


def blobs(n: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Six classes of smooth pictures with noise, which a small network learns in a second."""
    means = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 6
    x = 0.4 + 0.2 * nn.functional.interpolate(means[y], size=8, mode="bilinear")
    x = x + 0.12 * torch.randn(n, 3, 8, 8, generator=generator)
    return x.clamp(0, 1), y


def trained(width: int = 16, steps: int = 150, hardened: bool = False, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(),
            nn.Linear(16 * width, 6),
        )  # fmt: skip
        x, y = blobs()
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(steps):
            part = torch.randint(len(x), (64,))
            xb, yb = x[part], y[part]
            if hardened:
                xb = pgd(net, xb, yb, eps=EPS, steps=3, keep="last")
            net.train()
            loss = nn.functional.cross_entropy(net(xb), yb)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return trained()


@pytest.fixture(scope="module")
def sample(net) -> tuple[Tensor, Tensor]:
    x, y = blobs(150, seed=1)
    right = net(x).argmax(1) == y
    return x[right][:96], y[right][:96]


SHORT = {"FGSM": fgsm, "APGD-CE": partial(apgd, steps=20), "APGD-DLR": partial(apgd, steps=20, loss=dlr)}


def alarms(model, sample, attacks=SHORT, eps: float = EPS) -> set[int]:
    found = verdicts(model, *sample, eps=eps, norm=Linf(), attacks=attacks)
    assert [v.number for v in found] == list(range(1, 16))
    return {v.number for v in found if v.alarm}


# The figure


def test_robust_accuracy_is_what_no_attack_has_fooled(net):
    x, y = blobs(200, seed=1)
    found = attacked(net, x, y, eps=EPS, attacks=SHORT, batch=64)
    assert found.clean == pytest.approx((net(x).argmax(1) == y).double().mean().item())
    assert (net(found.images).argmax(1) != y).equal(found.fooled)
    assert (found.images - x).abs().max() <= EPS + 1e-6
    by_hand = found.fooled
    for attack in SHORT.values():
        generator = torch.Generator().manual_seed(1)
        by_hand = by_hand | (net(attack(net, x, y, eps=EPS, generator=generator)).argmax(1) != y)
    assert found.robust - 0.02 <= 1 - by_hand.double().mean().item() <= found.robust
    low, high = found.interval
    assert 0 < low < found.robust < high < 1
    assert [r.name for r in found.rungs] == list(SHORT) and found.rungs[0].tried == int(found.right.sum())
    assert found.rungs[1].tried == found.rungs[0].tried - found.rungs[0].fooled
    assert found.rungs[0].backwards == found.rungs[0].tried and found.gradients > 1


def test_search_in_bf16_counts_in_fp32(net):
    x, y = blobs(200, seed=1)
    plain = attacked(net, x, y, eps=EPS, attacks=SHORT)
    fast = attacked(net, x, y, eps=EPS, attacks=SHORT, bf16=True)
    # Points on the very boundary depend on the size of the batch they are asked in.
    assert ((net(fast.images).argmax(1) != y) != fast.fooled).sum() <= 2
    assert abs(fast.robust - plain.robust) <= 0.02


def test_what_fools_at_a_smaller_eps_is_carried_upward(net):
    x, y = blobs(200, seed=1)
    low = attacked(net, x, y, eps=0.5 * EPS, attacks=SHORT)
    high = attacked(net, x, y, eps=EPS, attacks=SHORT, start=low)
    assert high.rungs[0].tried == int((~low.fooled).sum()) and high.robust <= low.robust


def test_nothing_is_left_to_attack_once_all_are_fooled(net):
    x, y = blobs(20, seed=1)
    found = attacked(net, x, y, eps=0.9, attacks=SHORT)
    assert found.robust == 0 and [rung.tried for rung in found.rungs][-1] == 0


def test_the_usual_ladder_fits_the_number_of_classes():
    assert list(ladder(10)) == ["FGSM", "PGD", "APGD-CE", "APGD-DLR", "APGD-T", "Square"]
    assert "APGD-T" not in ladder(3) and list(ladder(2)) == ["FGSM", "PGD", "APGD", "Square"]
    assert list(ladder(3, L2())) == ["FGSM", "PGD", "APGD-CE", "APGD-DLR", "Square"]
    assert "Square" not in ladder(3, L1())


# The whole evaluation


def test_an_evaluation_joins_rising_radii_and_verdicts(net):
    x, y = blobs(120, seed=1)
    stages = []
    found = evaluate(
        net, x, y, eps=(EPS, 0.25 * EPS), attacks=SHORT, batch=50, sample=40, seed=3,
        progress=lambda stage, done, total: stages.append((stage, done, total)),
    )  # fmt: skip
    right = net(x).argmax(1) == y
    assert found.clean == pytest.approx(right.double().mean().item())
    assert [point.eps for point in found.curve] == [0.25 * EPS, EPS]
    by_hand = attacked(net, x, y, eps=0.25 * EPS, attacks=SHORT, batch=50, seed=3)
    assert found.curve[0].robust == by_hand.robust
    assert (found.curve[0].low, found.curve[0].high) == by_hand.interval
    for point in found.curve:
        assert point.robust == pytest.approx((found.fooled_at > point.eps).double().mean().item())
    assert found.curve[1].gradients > found.curve[0].gradients == by_hand.gradients
    assert torch.equal(found.fooled_at == 0, ~right)
    # Each image carries the point that fooled it first, so it lies in the smaller ball where that one did.
    distance = (found.images - x).flatten(1).abs().amax(1)
    attackable = right & found.fooled_at.isfinite()
    assert (distance[attackable] <= found.fooled_at[attackable] + 1e-6).all() and (distance[~attackable] == 0).all()
    assert (net(found.images[attackable]).argmax(1) != y[attackable]).all()
    assert found.verdicts_eps == min(found.curve, key=lambda point: abs(point.robust - found.clean / 2)).eps
    assert [v.number for v in found.verdicts] == list(range(1, 16)) and found.sample == 40 and found.alarms == []
    assert stages[0] == ("attacks", 1, 6) and stages[5] == ("attacks", 6, 6) and stages[-1] == ("verdicts", 15, 15)


def test_the_figures_of_an_evaluation_are_json(net):
    x, y = blobs(30, seed=1)
    found = evaluate(net, x, y, eps=EPS / 8, attacks={"FGSM": fgsm}, sample=10)
    stored = json.loads(json.dumps(found.figures(), allow_nan=False))
    assert stored["images"] == 30 == len(stored["fooled_at"]) and None in stored["fooled_at"]
    assert stored["curve"][0]["rungs"][0]["name"] == "FGSM" and stored["verdicts"][14]["number"] == 15


def test_an_evaluation_has_radii_of_its_own(net):
    x, y = blobs(12, seed=1)
    few = {"FGSM": fgsm}
    assert [p.eps * 255 for p in evaluate(net, x, y, attacks=few).curve] == pytest.approx([0.5, 1, 2, 4, 8])
    assert [p.eps for p in evaluate(net, x, y, norm=L2(), attacks=few).curve] == [0.125, 0.25, 0.5, 1.0]


def test_what_cannot_be_evaluated_is_told(net):
    x, y = blobs(12, seed=1)
    for options, words in (
        ({"eps": 0.0}, "eps 0: a radius is above 0"), ({"eps": (0.1, 8.0)}, "eps 8 is more than"),
        ({"sample": 0}, "sample 0"), ({"batch": 0}, "batch 0"), ({"steps": 0}, "steps 0"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            evaluate(net, x, y, **options)
    wrong = (net(x).argmax(1) + 1) % 6
    with pytest.raises(InputError, match="none of 12 images rightly"):
        evaluate(net, x, wrong, eps=EPS)


# Sound models


@pytest.mark.parametrize(
    "options", [{}, {"steps": 15}, {"hardened": True}, {"width": 4}, {"width": 48, "steps": 400}], ids=str
)
def test_sound_models_raise_no_alarm(options):
    model = trained(**options, seed=3)
    x, y = blobs(150, seed=2)
    right = model(x).argmax(1) == y
    assert alarms(model, (x[right][:96], y[right][:96])) == set()


# Planted failures


def test_an_attack_on_another_model(net, sample):
    other = trained(seed=5)
    assert 11 in alarms(net, sample, {"PGD": lambda model, x, y, **options: pgd(other, x, y, **options)})


def test_no_projection(net, sample):
    def loose(model, x, y, *, eps, norm, generator):
        return (x + 3 * eps * torch.sign(pgd(model, x, y, eps=eps, norm=norm, generator=generator) - x)).clamp(0, 1)

    assert 14 in alarms(net, sample, {"PGD": loose})
    found = attacked(net, *sample, eps=EPS, attacks={"PGD": loose})
    assert found.rungs[0].outside > 0 and found.rungs[0].fooled == 0  # what lies outside does not count


def test_pixels_out_of_range(net, sample):
    assert 14 in alarms(net, sample, {"PGD": lambda model, x, y, *, eps, **rest: x - eps})


def test_saturated_logits(net, sample):
    class Saturated(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return 3e3 * self.net(x)

    assert {5, 6} & alarms(Saturated().eval(), sample, {"PGD": partial(pgd, steps=20)})


def test_quantised_inputs(net, sample):
    class Quantised(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net((x * 16).round() / 16)

    found = alarms(Quantised().eval(), sample, {"PGD": partial(pgd, steps=20)})
    assert 5 in found and 4 in found


def test_training_mode(net, sample):
    net.train()
    try:
        assert 12 in alarms(net, sample)
        assert net.training
    finally:
        net.eval()


def test_an_attack_that_leaves_traces(net, sample):
    def careless(model, x, y, *, eps, norm, generator):
        model.train()
        return x

    def after_an_exception(model, x, y, *, eps, norm, generator):
        net[1].eval()
        for module in net.modules():
            module.training = True
        model(x)
        model(x)
        for module in net.modules():
            module.training = False
        return x

    def accumulating(model, x, y, *, eps, norm, generator):
        nn.functional.cross_entropy(model(x), y).backward()
        return x

    before = {k: v.clone() for k, v in net.state_dict().items()}
    gradients = [p.grad.clone() for p in net.parameters()]
    for attack in (careless, after_an_exception, accumulating):
        assert 12 in alarms(net, sample, {"A": attack})
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and not net.training
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients))


def test_probabilities_as_logits(net, sample):
    assert 8 in alarms(nn.Sequential(net, nn.Softmax(1)).eval(), sample)


def test_restarts_that_keep_only_the_last(net, sample):
    def forgetful(model, x, y, *, eps, norm, generator):
        for restart in range(3):
            found = pgd(model, x, y, eps=eps * (1, 0.6, 0.1)[restart], norm=norm, keep="last", generator=generator)
        return found

    assert 9 in alarms(net, sample, {"PGD": forgetful})


def test_a_search_by_squares_in_the_ladder_is_not_made_again(net, sample):
    """Verdict 4 looks at the ladder's own where it is as long, and finds the same."""

    class Quantised(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.asked = net, 0

        def forward(self, x: Tensor) -> Tensor:
            self.asked += len(x)
            return self.net((x * 16).round() / 16)

    model = Quantised().eval()
    found, asked = {}, {}
    for steps in (10, 200):
        model.asked = 0
        attacks = {"PGD": partial(pgd, steps=20), "Square": partial(square, steps=steps)}
        found[steps] = verdicts(model, *sample, eps=EPS, norm=Linf(), attacks=attacks)[3]
        asked[steps] = model.asked
    assert found[10].alarm and found[200].alarm
    assert asked[200] < asked[10] + 10 * len(sample[0])  # two searches at most: else some 190 more for each image


def test_random_logits(net, sample):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            z = self.net(x)
            return z + torch.randn_like(z)

    assert 7 in alarms(Noisy().eval(), sample)


def test_an_attack_too_weak(net, sample):
    found = alarms(net, sample, {"PGD": partial(pgd, steps=1, step_size=EPS / 20)})
    assert {1, 2} <= found and 15 in found


def test_a_budget_is_sufficient_where_no_image_is_left_or_hardly_any(net, sample):
    def spared(count: int):
        def attack(model, x, y, *, eps, norm, generator):
            found = fgsm(model, x, y, eps=eps, norm=norm)
            found[:count] = x[:count]
            return found

        return {"FGSM": attack}

    for count, state in ((0, "ok"), (2, "note"), (6, "alarm")):
        found = verdicts(net, *sample, eps=0.9, norm=Linf(), attacks=spared(count))[14]
        assert found.state == state and f"{count} of {len(sample[0])} images withstand" in found.text


def test_gradients_of_the_wrong_sign(net, sample):
    class Reversed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, *grads):
            return -grads[0]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(Reversed.apply(x))

    assert 4 in alarms(Model().eval(), sample)


def test_success_between_grey_levels(net):
    """Images that only half a grey level fools: their success is gone once they are saved."""
    x, y = blobs(1500, seed=4)
    x = (x * 255).round() / 255
    eps = 0.45 / 255
    fooled = attacked(net, x, y, eps=eps, attacks=SHORT)
    some = fooled.fooled & fooled.right
    assert some.sum() > 2
    assert 13 in alarms(net, (x[some], y[some]), eps=eps)
