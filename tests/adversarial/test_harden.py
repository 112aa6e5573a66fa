"""Training on hard images makes robust, crafts are what their papers say, and overfitting is caught."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from negah.adversarial import L2, Linf, fgsm, pgd
from negah.adversarial.evaluate import attacked
from negah.adversarial.harden import (
    Hardening,
    OverfittingWatch,
    Trades,
    divergence,
    fgsm_start,
    held_out,
    noisy_start,
    pgd_start,
    random_start,
)
from negah.errors import InputError, TrainingError
from negah.train import Batches, fit
from negah.train.callbacks import KeepBest
from negah.train.run import Run

EPS = 0.03
CRAFTS = {"fgsm": fgsm_start, "fast": random_start, "n-fgsm": noisy_start, "pgd": partial(pgd_start, steps=3)}


def data(n: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    means = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(9))
    y = torch.arange(n) % 4
    x = 0.4 + 0.2 * F.interpolate(means[y], size=8, mode="bilinear")
    return (x + 0.12 * torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))).clamp(0, 1), y


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(192, 4)
        )


def batches(x: Tensor, y: Tensor) -> Batches:
    return Batches(list(zip(x, y)), 50, seed=0)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", [*CRAFTS, "trades"])
def test_hardening_makes_robust(name):
    x, y = data()
    others = data(200, seed=1)
    plain, hard = network(), network()
    fit(Hardening(plain, eps=0.0, craft=fgsm_start), batches(x, y), steps=60, lr=3e-3)
    objective = Trades(hard, eps=EPS, steps=3) if name == "trades" else Hardening(hard, eps=EPS, craft=CRAFTS[name])
    fit(objective, batches(x, y), steps=60, lr=3e-3)
    attacks = {"PGD": partial(pgd, steps=10)}
    before = attacked(plain.eval(), *others, eps=EPS, attacks=attacks)
    after = attacked(hard.eval(), *others, eps=EPS, attacks=attacks)
    assert after.robust > before.robust + 0.05 and after.clean > 0.7


def test_crafts_lie_where_their_papers_put_them():
    model, (x, y) = network().eval(), data(20)
    for norm in (Linf(), L2()):
        for name, craft in CRAFTS.items():
            size = norm.size(craft(model, x, y, EPS, norm, generator()) - x)
            most = 3 * EPS if name == "n-fgsm" else EPS
            assert (size <= most + 1e-6).all() and (size > 0.3 * EPS).all()
    assert (Linf().size(noisy_start(model, x, y, EPS, Linf(), generator()) - x) > EPS).all()
    assert torch.equal(fgsm_start(model, x, y, EPS, Linf(), generator()), fgsm(model, x, y, eps=EPS))


def test_each_step_draws_anew_and_a_seed_repeats_a_run():
    x, y = data(50)
    seen: list[Tensor] = []

    def craft(model, images, labels, eps, norm, generator):
        seen.append(random_start(model, images, labels, eps, norm, generator))
        return seen[-1]

    nets = [network(), network()]
    for net in nets:
        fit(Hardening(net, eps=EPS, craft=craft), [(x, y)], steps=2, lr=0.0, seed=3)
    assert not torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])


def test_trades_is_its_formula():
    x, y = data(12)
    model = network().eval()
    objective = Trades(model, eps=EPS, beta=2.0).eval()
    hard = objective.climb(x, generator())
    assert (hard - x).abs().max() <= EPS + 1e-6
    p, q = model(x), model(hard)
    by_hand = F.cross_entropy(p, y) + 2 * F.kl_div(q.log_softmax(1), p.softmax(1), reduction="batchmean")
    assert torch.allclose(objective.loss(x, y, generator())["loss"], by_hand, atol=1e-6)
    near = objective.climb(x, generator()), (x + EPS * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    assert divergence(p, model(near[0])).mean() > 2 * divergence(p, model(near[1])).mean()


def test_the_average_follows_the_weights():
    x, y = data(50)
    objective = Hardening(network(), eps=EPS, craft=fgsm_start, average=0.5)
    start = objective.model[4].weight.detach().clone()
    fit(objective, [(x, y)], steps=1, lr=1e-2)
    expected = 0.5 * start + 0.5 * objective.model[4].weight
    assert objective.averaged is not None
    assert torch.allclose(objective.averaged.model[4].weight, expected)


def test_catastrophic_overfitting_is_caught_and_undone():
    """Planted: at step 3 the weights become useless."""
    x, y = data()

    class Spoilt(Hardening):
        steps_left = -1

        def after_step(self, progress: float) -> None:
            self.steps_left -= 1
            if self.steps_left == 0:
                nn.init.normal_(self.model[4].weight, std=5.0)

    objective = Spoilt(network(), eps=EPS, craft=fgsm_start)
    fit(objective, batches(x, y), steps=60, lr=3e-3)
    objective.steps_left = 3
    scores = held_out(objective.model, x, y, eps=EPS / 3)
    result = fit(objective, [(x, y)], steps=6, lr=1e-4, scores=scores, score_every=1, callbacks=[OverfittingWatch()])
    assert result.step == 3 and "catastrophic overfitting" in result.stopped and "step 2" in result.stopped
    assert scores["robust"]() == pytest.approx(result.scores[1]["robust"], abs=0.02)


def test_a_slow_decline_is_no_catastrophe_and_the_best_is_kept():
    watch, model = OverfittingWatch(), network()
    objective = Hardening(model, eps=EPS)
    run = Run(objective, torch.optim.SGD(model.parameters()), steps=9)
    for step, value in enumerate((0.5, 0.45, 0.3, 0.2), 1):
        run.step = step
        run.scores.append({"step": step, "robust": value})
        watch.after_step(run)
    assert not run.stop and watch.state_dict()["last"]["step"] == 4
    with pytest.raises(TrainingError, match="OverfittingWatch looks at"):
        OverfittingWatch("other").after_step(run)


def test_held_out_scores_can_stop_a_run():
    x, y = data(100)
    objective = Hardening(network(), eps=EPS, craft=fgsm_start)
    result = fit(
        objective, batches(x, y), steps=8, lr=1e-3, scores=held_out(objective.model, x, y, eps=EPS), score_every=2,
        callbacks=[KeepBest("robust", patience=2)],
    )  # fmt: skip
    assert all(row["clean"] >= row["robust"] for row in result.scores)


def test_a_negative_eps_is_refused():
    with pytest.raises(InputError, match="radius"):
        Hardening(network(), eps=-1.0)
