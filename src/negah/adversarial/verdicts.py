"""Fifteen reasons to distrust a robust accuracy, each looked for on a sample of the images.

An attack can be weak, broken, or run against something else, and the figure it gives is then too high; each verdict
tells one such cause.  They are statistical: on a network in good health a single step can beat fifty on one image of a
thousand.  So a count is an alarm only above TOLERATED of the sample (and above two images), and a note below it.
(Athalye et al. 2018, arXiv:1802.00420; Carlini et al. 2019, arXiv:1902.06705; Pintor et al. 2021, arXiv:2106.09947.)
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from negah.adversarial.climb import Ball
from negah.adversarial.gradient import Fixed, fgsm, pgd
from negah.adversarial.losses import cross_entropy, margin
from negah.adversarial.norms import Norm
from negah.adversarial.square import SHARES, square
from negah.adversarial.target import Attack, Model, gradient, logits_of, still
from negah.adversarial.watch import Watched, inside
from negah.progress import Progress, silent

State = Literal["ok", "note", "alarm"]

TOLERATED = 0.03  # share of the sample: on 128 images three; benchmarks/robust_verdicts.py tries it
FAR = 0.5  # of the range of a pixel: within it any image becomes grey, which no model can tell from another
STEPS = 20  # of the attacks that verdicts run themselves
DRAWS = 20  # of noise
QUERIES = 200  # of a search by squares

# What an alarm says, by number.
MEANS = (
    "a single step fools images that the attacks do not",
    "four times the steps and a second start fool more",
    "images withstand a ball in which all could become grey, or a larger ball fools fewer",
    "noise or squares fool images that gradients do not",
    "gradients are zero or not finite",
    "the margin fools twice as many images: saturated logits",
    "other logits the second time",
    "outputs are probabilities",
    "an attack met a point that fools, and returned another",
    "(a note at most)",
    "an attack never asked this model",
    "training mode, or something left changed",
    "points fool between two grey levels only",
    "points outside the ball or out of range",
    "fewer than five gradients an image, and images left that more might fool",
)


@dataclass(frozen=True)
class Verdict:
    """number: as in the list below.  text: what was found, in one line."""

    number: int
    name: str
    state: State
    text: str

    @property
    def alarm(self) -> bool:
        return self.state == "alarm"

    @property
    def means(self) -> str:
        """What an alarm says."""
        return MEANS[self.number - 1]


def verdicts(
    model: Model, images: Float[Tensor, "n channel h w"], labels: Int[Tensor, " n"], *, eps: float, norm: Norm,
    attacks: Mapping[str, Attack], seed: int = 0, progress: Progress = silent,
) -> list[Verdict]:  # fmt: skip
    """All fifteen, of attacks on rightly classified images: about 100 is a good number."""
    case = _Case(model, images, labels, eps, norm, attacks, seed)
    questions = [
        case.at_least_single_step, case.more_changes_nothing, case.falls_with_eps, case.beats_the_blind,
        case.has_gradients, case.losses_agree, case.says_the_same_twice, case.says_logits, case.keeps_success,
        case.has_arrived, case.attacks_this_model, case.leaves_no_trace, case.survives_rounding,
        case.stays_in_the_ball, case.pays_enough,
    ]  # fmt: skip
    found: list[Verdict] = []
    for question in questions:
        found.append(question())
        progress("verdicts", len(found), len(questions))
    return found


@dataclass
class _Run:
    """One attack on the sample."""

    images: Tensor
    fooled: Bool[Tensor, " n"]  # validly
    outside: int
    lost: int
    forwards: int
    backwards: int
    changed: list[str]  # what it left changed


class _Case:
    """The sample, and what several verdicts look at."""

    def __init__(self, model, images, labels, eps, norm, attacks, seed):
        self.model, self.x, self.y = model, images, labels
        self.eps, self.norm, self.attacks, self.seed = eps, norm, attacks, seed
        self.n = len(images)
        self.ball = Ball(images, eps, norm)
        self.was_training = isinstance(model, nn.Module) and model.training

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def wrong(self, points: Tensor, labels: Tensor) -> Bool[Tensor, " some"]:
        with still(self.model), torch.no_grad():
            return logits_of(self.model, points).argmax(1) != labels

    @cached_property
    def runs(self) -> dict[str, _Run]:
        """Each attack of the ladder on the whole sample."""
        found = {}
        for name, attack in self.attacks.items():
            watched = Watched(self.model, self.ball, self.y)
            before = _state(self.model)
            points = attack(
                watched, self.x, self.y, eps=self.eps, norm=self.norm, generator=self.generator()
            ).detach()  # fmt: skip
            changed = _changes(before, _state(self.model))
            _restore(self.model, before)
            valid = inside(self.ball, points)
            fooled = valid & self.wrong(points, self.y)
            found[name] = _Run(
                points, fooled, int((~valid).sum()), int((watched.met & ~fooled).sum()), watched.forwards,
                watched.backwards, changed,
            )  # fmt: skip
        return found

    @cached_property
    def fooled(self) -> Bool[Tensor, " n"]:
        """By any attack of the ladder."""
        return torch.stack([run.fooled for run in self.runs.values()]).any(0)

    @cached_property
    def by_gradients(self) -> Bool[Tensor, " n"]:
        """By any that asks for gradients."""
        some = [run.fooled for run in self.runs.values() if run.backwards]
        return torch.stack(some).any(0) if some else torch.zeros_like(self.fooled)

    @cached_property
    def by_pgd(self) -> Bool[Tensor, " n"]:
        """By PGD on the cross-entropy."""
        return self.pgd(self.eps)

    def pgd(self, eps: float, **options: Any) -> Bool[Tensor, " n"]:
        return self.fools(partial(pgd, **({"steps": STEPS} | options)), eps)

    def fools(self, attack: Attack, eps: float, among: Bool[Tensor, " n"] | None = None) -> Bool[Tensor, " n"]:
        """Which images an attack fools; it is given those of `among` alone, and fools no others."""
        fooled = torch.zeros_like(self.y, dtype=torch.bool)
        kept = torch.ones_like(fooled) if among is None else among
        if kept.any():
            x, y = self.x[kept], self.y[kept]
            points = attack(self.model, x, y, eps=eps, norm=self.norm, generator=self.generator())
            fooled[kept] = self.wrong(points, y)
        return fooled

    def counted(self, number: int, name: str, count: int, text: str, *, tolerated: float = TOLERATED) -> Verdict:
        """An alarm where more images than tolerated are concerned."""
        state: State = "ok" if count == 0 else "alarm" if count > max(2, tolerated * self.n) else "note"
        return Verdict(number, name, state, f"{count} of {self.n} images {text}")

    # In the order of their numbers

    def at_least_single_step(self) -> Verdict:
        count = int(self.fools(fgsm, self.eps, ~self.fooled).sum())
        return self.counted(1, "stronger than one step", count, "are fooled by a single step, but not by the attacks")

    def more_changes_nothing(self) -> Verdict:
        harder = self.fools(partial(pgd, steps=4 * STEPS, restarts=2), self.eps, ~self.fooled)
        harder |= self.fools(partial(pgd, steps=2 * STEPS, loss=margin), self.eps, ~(self.fooled | harder))
        count = int(harder.sum())
        text = f"are fooled by {4 * STEPS} steps and a second start only"
        return self.counted(2, "more steps change nothing", count, text)

    def falls_with_eps(self) -> Verdict:
        name, far = "accuracy falls to 0 with eps", _far(self.norm, self.x)
        shares = (0.25, 0.5, 1.0, 2.0)
        fooled = [self.by_pgd if share == 1 else self.pgd(share * self.eps) for share in shares]
        kept = [self.n - int(some.sum()) for some in fooled]
        left = self.n - int(self.pgd(far).sum())
        rises = max((after - before for before, after in pairwise(kept)), default=0)
        told = ", ".join(f"{k} at {share:g} eps" for share, k in zip(shares, kept))
        text = f"{told}, {left} at {far:.3g}, of {self.n} images withstand PGD"
        if left > max(2, TOLERATED * self.n):
            return Verdict(3, name, "alarm", f"{text}: gradients lead nowhere")
        if rises > max(2, TOLERATED * self.n):
            return Verdict(3, name, "alarm", f"{text}: a larger ball fools fewer")
        return Verdict(3, name, "note" if left or rises > 0 else "ok", text)

    def beats_the_blind(self) -> Verdict:
        blind = torch.zeros_like(self.by_gradients)
        left, generator = (~self.by_gradients).nonzero().squeeze(1), self.generator()
        for _ in range(DRAWS if len(left) else 0):
            blind[left] |= self.wrong(self.ball[left].start(generator), self.y[left])
        searched = [run.fooled for name, run in self.runs.items() if _searches(self.attacks[name])]
        if searched:
            blind |= torch.stack(searched).any(0)
        elif self.norm.name in SHARES:
            blind |= self.fools(partial(square, steps=QUERIES), self.eps, ~(self.by_gradients | blind))
        count = int((blind & ~self.by_gradients).sum())
        text = "are fooled by noise or squares, but by no attack that uses gradients"
        return self.counted(4, "gradients beat blind search", count, text)

    def has_gradients(self) -> Verdict:
        with still(self.model):
            _, _, slope = gradient(self.model, self.x, self.y, cross_entropy)
        flat = slope.flatten(1)
        count = int((~flat.isfinite().all(1) | (flat == 0).all(1)).sum())
        return self.counted(5, "gradients are there", count, "have a gradient of zero or one that is not finite")

    def losses_agree(self) -> Verdict:
        """Of a network that is hardly trained either loss fools some more; saturation takes most from cross-entropy."""
        name = "cross-entropy is not blind"
        by_margin, by_entropy = self.pgd(self.eps, loss=margin), self.by_pgd
        only = int((by_margin & ~by_entropy).sum())
        text = (
            f"PGD fools {int(by_entropy.sum())} of {self.n} images by cross-entropy, {int(by_margin.sum())} by margin"
        )
        blind = only > max(2, 0.1 * self.n) and by_entropy.sum() < 0.5 * by_margin.sum()
        return Verdict(6, name, "alarm" if blind else "note" if only else "ok", text)

    def says_the_same_twice(self) -> Verdict:
        with still(self.model), torch.no_grad():
            first, again = logits_of(self.model, self.x), logits_of(self.model, self.x)
        off = ((first - again).abs() > 1e-4 * (1 + first.abs())).any(1)
        count = int(off.sum())
        text = f"{count} of {self.n} images have other logits the second time"
        return Verdict(7, "the model is deterministic", "alarm" if count else "ok", text)

    def says_logits(self) -> Verdict:
        with still(self.model), torch.no_grad():
            logits = logits_of(self.model, self.x)
        sums = bool(((logits >= 0).all(1) & ((logits.sum(1) - 1).abs() < 1e-3)).all())
        text = "the outputs are probabilities: a second softmax flattens them" if sums else "the outputs are logits"
        return Verdict(8, "outputs are logits", "alarm" if sums else "ok", text)

    def keeps_success(self) -> Verdict:
        count, name = max((run.lost, name) for name, run in self.runs.items())
        text = f"were fooled on the way of {name}, which returned another point"
        return self.counted(9, "success is kept", count, text)

    def has_arrived(self) -> Verdict:
        """A note at most: the loss may rise for ever and change no answer.  Verdict 2 tells whether it matters."""
        left = ~self.fooled
        if not left.any():
            return Verdict(10, "the loss has stopped rising", "ok", "no image is left")
        y, ball = self.y[left], self.ball[left]
        step, losses = Fixed(2.5 * self.eps / STEPS), []
        with still(self.model):
            point = ball.start(self.generator())
            for _ in range(STEPS):
                _, loss, slope = gradient(self.model, point, y, cross_entropy)
                losses.append(loss)
                point = step(ball, point, slope, loss)
        count = int((losses[-1] > 1.01 * losses[-2]).sum())
        text = f"of {int(left.sum())} images that withstand all, {count} still gain 1 % in PGD's last step"
        return Verdict(10, "the loss has stopped rising", "note" if count else "ok", text)

    def attacks_this_model(self) -> Verdict:
        name = "the model that is judged is attacked"
        never = [name for name, run in self.runs.items() if not run.forwards]
        if never:
            return Verdict(11, name, "alarm", f"{', '.join(never)} never asked the model: what did it attack?")
        if not any(run.backwards for run in self.runs.values()):
            return Verdict(11, name, "alarm", "no attack asked for a gradient of the model")
        return Verdict(11, name, "ok", "every attack asked the model")

    def leaves_no_trace(self) -> Verdict:
        name = "modes, buffers and gradients stay"
        if self.was_training:
            return Verdict(12, name, "alarm", "the model is in training mode: call eval() before it is judged")
        changed = [f"{label} changed {', '.join(run.changed)}" for label, run in self.runs.items() if run.changed]
        for label, attack in self.attacks.items():
            before = _state(self.model)
            with suppress(_Broken):
                attack(
                    _Breaks(Watched(self.model, self.ball, self.y)), self.x, self.y, eps=self.eps, norm=self.norm,
                    generator=self.generator(),
                )  # fmt: skip
            after = _changes(before, _state(self.model))
            _restore(self.model, before)
            changed += [f"{label}, when interrupted, left {', '.join(after)} changed"] if after else []
        return Verdict(12, name, "alarm" if changed else "ok", "; ".join(changed) or "nothing was left changed")

    def survives_rounding(self) -> Verdict:
        lost = torch.zeros_like(self.fooled)
        kept = torch.zeros_like(self.fooled)
        for run in self.runs.values():
            rounded = self.wrong((run.images * 255).round() / 255, self.y)
            kept |= run.fooled & rounded
            lost |= run.fooled & ~rounded
        count = int((lost & ~kept).sum())
        return self.counted(
            13, "success survives 8 bits", count, "are fooled only between two grey levels", tolerated=0.1
        )

    def stays_in_the_ball(self) -> Verdict:
        outside = {name: run.outside for name, run in self.runs.items() if run.outside}
        text = ", ".join(f"{name} returned {count} images outside" for name, count in outside.items())
        return Verdict(14, "points lie in the ball", "alarm" if outside else "ok", text or "all points lie in the ball")

    def pays_enough(self) -> Verdict:
        """More could only fool those that are left: no alarm where these are so few that they would be tolerated."""
        cost, left = sum(run.backwards for run in self.runs.values()) / self.n, int((~self.fooled).sum())
        text = f"{cost:.0f} gradients an image on the sample, {left} of {self.n} images withstand"
        few = cost < 5 and left > max(2, TOLERATED * self.n)
        state: State = "alarm" if few else "note" if cost < STEPS and left else "ok"
        return Verdict(15, "the budget is sufficient", state, text)


class _Broken(Exception):
    pass


class _Breaks(nn.Module):
    """Fails when it is asked the second time."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.asked = model, 0
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        self.asked += 1
        if self.asked > 1:
            raise _Broken
        return self.model(images)


def _searches(attack: Attack) -> bool:
    """Whether it is the search by squares that verdict 4 would make, or a longer one."""
    return isinstance(attack, partial) and attack.func is square and attack.keywords.get("steps", 0) >= QUERIES


def _far(norm: Norm, images: Tensor) -> float:
    return FAR * float(norm.size(torch.ones_like(images[:1])))


def _state(model: Model) -> dict[str, dict[str, object]]:
    """Copies of what an attack must leave alone."""
    found: dict[str, dict[str, object]] = {"torch's random state": {"": torch.get_rng_state()}}
    if isinstance(model, nn.Module):
        found["modes"] = {name: module.training for name, module in model.named_modules()}
        found["weights"] = {name: p.detach().clone() for name, p in model.named_parameters()}
        found["buffers"] = {name: buffer.clone() for name, buffer in model.named_buffers()}
        found["requires_grad"] = {name: p.requires_grad for name, p in model.named_parameters()}
        found["gradients"] = {
            name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
        }  # fmt: skip
    return found


def _changes(before: dict[str, dict[str, object]], after: dict[str, dict[str, object]]) -> list[str]:
    def same(a: object, b: object) -> bool:
        both = isinstance(a, Tensor) and isinstance(b, Tensor)
        return torch.equal(a, b) if both else type(a) is type(b) and a == b  # pyright: ignore

    return [
        kind for kind, values in before.items()
        if not all(same(value, after[kind][name]) for name, value in values.items())
    ]  # fmt: skip


def _restore(model: Model, state: dict[str, dict[str, object]]) -> None:
    random = state["torch's random state"][""]
    assert isinstance(random, Tensor)
    torch.set_rng_state(random)
    if not isinstance(model, nn.Module):
        return
    for name, module in model.named_modules():
        module.training = bool(state["modes"][name])
    with torch.no_grad():
        for kind, tensors in (("weights", model.named_parameters()), ("buffers", model.named_buffers())):
            for name, tensor in tensors:
                tensor.copy_(state[kind][name])  # pyright: ignore[reportArgumentType]
    for name, p in model.named_parameters():
        p.requires_grad_(bool(state["requires_grad"][name]))
        p.grad = state["gradients"][name]  # pyright: ignore[reportAttributeAccessIssue]
