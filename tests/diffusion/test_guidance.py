import pytest
import torch
from torch import Tensor, nn

from negah.diffusion.guidance import APG, Momentum, classifier, classifier_free, universal
from negah.diffusion.sample import SAMPLERS, Prediction
from negah.diffusion.schedule import Schedule

SIGMAS = torch.tensor([20.0, 8.0, 3.0, 1.5, 0.7, 0.3, 0.1, 0.0], dtype=torch.float64)
FREE = {
    "plain": {}, "interval": {"interval": (0.5, 5.0)}, "rescale": {"rescale": 0.7}, "plus_plus": {"plus_plus": True},
    "apg": {"apg": APG(eta=0.2, norm=0.5, momentum=-0.5)},
    "all": {"interval": (0.2, 10.0), "rescale": 0.5, "plus_plus": True, "apg": APG(norm=1.0, momentum=-0.3)},
}  # fmt: skip


def points(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(name: str, denoise, x: Tensor) -> Tensor:
    """A sampler from x at SIGMAS[0], with noise of its own for each sample."""
    generators = [torch.Generator().manual_seed(1000 + round(float(one[0]) * 1e6)) for one in x]

    def noise() -> Tensor:
        return torch.stack([torch.randn(2, generator=generator, dtype=x.dtype) for generator in generators])

    return SAMPLERS[name](denoise, x, SIGMAS, noise=noise)


def guidances(mixture, scale: float | Tensor, n: int) -> dict:
    """Every kind of guidance for a batch of n."""
    label = torch.arange(n) % 3
    kinds = {
        "classifier": classifier(mixture.denoise, lambda x, sigma: mixture.log_prob(x, sigma, label), scale),
        "universal": universal(mixture.denoise, lambda x0: -(x0 - 1).square().sum(1), scale),
    }
    for kind, options in FREE.items():
        kinds[kind] = classifier_free(mixture.network, label, -torch.ones(1, dtype=torch.long), scale=scale, **options)
    return kinds


KINDS = ["classifier", "universal", *FREE]


# Exact conditional sampling


@pytest.mark.parametrize("name", SAMPLERS)
def test_exact_classifier_at_scale_1_is_conditional_sampling(name, mixture):
    label = torch.arange(60) % 3
    guided = classifier(mixture.denoise, lambda x, sigma: mixture.log_prob(x, sigma, label), 1.0)
    x = 20 * points(60)
    exact = run(name, lambda x, sigma: mixture.network(x, sigma, label), x)
    torch.testing.assert_close(run(name, guided, x), exact, rtol=1e-9, atol=1e-9)


def test_guided_samples_have_the_distribution_of_their_class(mixture):
    n, label = 4000, torch.ones(4000, dtype=torch.long)
    guided = classifier(mixture.denoise, lambda x, sigma: mixture.log_prob(x, sigma, label), 1.0)
    sigmas = Schedule.scaled_linear().levels(60, "karras", sampler="heun")
    noisy = mixture.means[1] + (mixture.spreads[1] ** 2 + sigmas[0] ** 2).sqrt() * points(n)  # the class at this level
    x = SAMPLERS["heun"](guided, noisy, sigmas)
    spread = float(mixture.spreads[1])
    torch.testing.assert_close(x.mean(0), mixture.means[1], rtol=0, atol=4 * spread / n**0.5)
    assert float((x - x.mean(0)).square().mean().sqrt()) == pytest.approx(spread, rel=0.03)


@pytest.mark.parametrize("name", SAMPLERS)
def test_classifier_free_at_scale_1_is_conditional_and_at_0_unconditional(name, mixture):
    x, label, empty = 20 * points(9), torch.arange(9) % 3, -torch.ones(1, dtype=torch.long)
    conditional = run(name, lambda x, sigma: mixture.network(x, sigma, label), x)
    assert torch.equal(run(name, classifier_free(mixture.network, label, empty, scale=1.0), x), conditional)
    each = classifier_free(mixture.network, label, empty, scale=torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(run(name, each, x), conditional)
    none = classifier_free(mixture.network, label, empty, scale=0.0)
    torch.testing.assert_close(run(name, none, x), run(name, mixture.denoise, x))


def test_scales_of_samples_are_their_own(mixture):
    x, scales = 3 * points(6), torch.tensor([0.0, 0.5, 1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    together = guidances(mixture, scales, 6)
    for place, scale in enumerate(scales.tolist()):
        alone = guidances(mixture, scale, 6)
        for kind in KINDS:
            a, b = together[kind](x, SIGMAS[3]), alone[kind](x, SIGMAS[3])
            a, b = (one.clean if isinstance(one, Prediction) else one for one in (a, b))
            torch.testing.assert_close(a[place], b[place], msg=f"{kind} at {scale}")


# Per sample


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_does_not_depend_on_its_batch(name, kind, mixture):
    x, n = 20 * points(9), 9
    together = run(name, guidances(mixture, 0.6, n)[kind], x)
    for some in (slice(0, 1), slice(0, 3), slice(3, 6)):  # labels go round by three, and so begin alike
        size = some.stop - some.start
        alone = run(name, guidances(mixture, 0.6, size)[kind], x[some])
        torch.testing.assert_close(alone, together[some], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(together, run(name, mixture.denoise, x), atol=1e-3), "nothing was guided"


# Side effects


@pytest.mark.parametrize("kind", ["classifier", "universal"])
def test_parameters_and_modes_are_left_alone(kind):
    network, judge = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 2)).double(), nn.Linear(2, 1).double()
    network[1].eval()

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return network(x)

    guided = (
        classifier(denoise, lambda x, sigma: judge(x)[:, 0], 2.0)
        if kind == "classifier"
        else universal(denoise, lambda x0: judge(x0)[:, 0], 2.0)
    )
    x = run("heun", guided, 20 * points(4))
    assert not x.requires_grad and x.isfinite().all()
    for part in (network, judge):
        assert all(parameter.grad is None and parameter.requires_grad for parameter in part.parameters())
    assert network.training and not network[1].training and judge.training


@pytest.mark.parametrize("scale", [2.0, torch.tensor([2.0, 2.0, 2.0, 2.0])])
def test_half_precision_networks_keep_the_type_of_x(scale):
    x = torch.randn(4, 3, 2, 2)
    half = classifier_free(
        lambda x, sigma, context: (x / 2).bfloat16(), torch.zeros(4, 1), torch.zeros(1, 1), scale=scale, rescale=0.5
    )
    assert SAMPLERS["dpmpp-2m"](half, x, SIGMAS).dtype == torch.float32


@pytest.mark.parametrize("wrap", [classifier, universal])
@pytest.mark.parametrize(
    ("value", "message"),
    [(lambda x, *_: x.square().mean(), r"one value for each sample, \[3\], got \[\]"),
     (lambda x, *_: x.square(), r"\[3, 2\]"), (lambda x, *_: x.detach().sum(1), "does not depend on x")],
)  # fmt: skip
def test_scores_of_the_batch_are_refused(wrap, value, message):
    with pytest.raises(ValueError, match=message):
        wrap(lambda x, sigma: x / 2, value, 1.0)(points(3), SIGMAS[2])


# Universal guidance


def test_universal_guidance_adds_the_gradient_through_the_denoiser():
    # x_0 = A x, f = -|x_0 - g|^2: grad_x f = -2 A^T (A x - g).
    a, goal, x = points(2, 1), points(1, 2), points(5, 3)
    guided = universal(lambda x, sigma: x @ a.T, lambda x0: -(x0 - goal).square().sum(1), 0.3)(x, SIGMAS[2])
    expected = x @ a.T + SIGMAS[2] ** 2 * 0.3 * -2 * (x @ a.T - goal) @ a
    torch.testing.assert_close(guided, expected)


def test_universal_guidance_of_a_gaussian_leads_to_what_is_scored():
    # x_0 ~ N(0, 1), f = log N(goal; x_0, r^2): at each level x_0 + sigma^2 grad f(x_0(x)) in closed form, s = 1.
    goal, r = 2.0, 0.5

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma**2)

    guided = universal(denoise, lambda x0: -(x0 - goal).square().sum(1) / (2 * r**2), 1.0)
    x, sigma = points(5), SIGMAS[4]
    x0 = denoise(x, sigma)
    torch.testing.assert_close(guided(x, sigma), x0 + sigma**2 / (1 + sigma**2) * (goal - x0) / r**2)


# Composition


def test_two_classifiers_are_their_product(mixture):
    # p(y, z | x) = p(y | x) p(z | x): guidance by both is guidance by the sum of their logarithms.
    label, x = torch.arange(6) % 3, 20 * points(6)

    def first(x: Tensor, sigma: Tensor) -> Tensor:
        return mixture.log_prob(x, sigma, label)

    def second(x: Tensor, sigma: Tensor) -> Tensor:
        return -(x - 1).square().sum(1) / (1 + sigma**2)

    nested = classifier(classifier(mixture.denoise, first, 0.7), second, 0.4)
    once = classifier(mixture.denoise, lambda x, sigma: 0.7 * first(x, sigma) + 0.4 * second(x, sigma), 1.0)
    for name in SAMPLERS:
        torch.testing.assert_close(run(name, nested, x), run(name, once, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", FREE)
@pytest.mark.parametrize("inside", ["universal", "classifier"])
def test_gradients_are_added_to_classifier_free_guidance(kind, inside, mixture):
    x, sigma, label = 3 * points(6), SIGMAS[3], torch.arange(6) % 3

    def free():
        return classifier_free(mixture.network, label, -torch.ones(1, dtype=torch.long), scale=0.6, **FREE[kind])

    def log_prob(x: Tensor, sigma: Tensor) -> Tensor:
        return -(x - 1).square().sum(1)

    def score(x0: Tensor) -> Tensor:
        return -(x0 - 2).square().sum(1)

    at = x.clone().requires_grad_()
    told = both(free()(at, sigma))
    first = 0.2 * sigma**2 * -2 * (x - 1)
    seen = told.clean + first if inside == "classifier" else told.clean  # what the classifier adds is constant
    (gradient,) = torch.autograd.grad(score(seen).sum(), at)
    nested = (
        classifier(universal(free(), score, 0.3), log_prob, 0.2)
        if inside == "universal"
        else universal(classifier(free(), log_prob, 0.2), score, 0.3)
    )
    guided = both(nested(x, sigma))
    torch.testing.assert_close(guided.clean, told.clean.detach() + first + 0.3 * sigma**2 * gradient)
    torch.testing.assert_close(guided.renoise, told.renoise.detach() + first + 0.3 * sigma**2 * gradient)


def both(told: Tensor | Prediction) -> Prediction:
    return told if isinstance(told, Prediction) else Prediction(told, told)


@pytest.mark.parametrize("name", SAMPLERS)
def test_all_together_work_with_every_sampler(name, mixture):
    x, label = 20 * points(6), torch.arange(6) % 3
    free = classifier_free(mixture.network, label, -torch.ones(1, dtype=torch.long), scale=0.6, **FREE["all"])
    seen = universal(
        classifier(free, lambda x, sigma: mixture.log_prob(x, sigma, label), 0.2), lambda x0: -x0[:, 0], 0.1
    )
    end = run(name, universal(seen, lambda x0: -x0[:, 1], 0.1), x)
    assert end.isfinite().all() and not end.requires_grad


# Variants of classifier-free guidance


def spied(mixture, asked: list):
    def network(x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        asked.append((float(sigma), context.tolist()))
        return mixture.network(x, sigma, context)

    return network


def test_both_halves_are_one_batch_and_the_interval_leaves_one_out(mixture):
    label, empty, asked, x = torch.tensor([0, 2]), -torch.ones(1, dtype=torch.long), [], 20 * points(2)
    guided = classifier_free(spied(mixture, asked), label, empty, scale=3.0, interval=(0.3, 8.0))
    run("euler", guided, x)
    # (lo, hi]: 8 is inside, 0.3 is not.
    inside = {8.0, 3.0, 1.5, 0.7}
    assert asked == [(s, [-1, -1, 0, 2] if s in inside else [0, 2]) for s in SIGMAS[:-1].tolist()]
    told = guided(x, SIGMAS[0])
    assert torch.equal(told, mixture.network(x, SIGMAS[0], label)), "outside, the words alone"


@pytest.mark.parametrize(
    ("scale", "plus_plus", "size"), [(1, False, 2), (1.0, True, 4), (0.0, False, 4), (7.5, False, 4)]
)
def test_the_half_without_words_is_spared_at_scale_1(scale, plus_plus, size, mixture):
    asked, label = [], torch.tensor([0, 2])
    classifier_free(spied(mixture, asked), label, -torch.ones(1).long(), scale=scale, plus_plus=plus_plus)(
        points(2), SIGMAS[2]
    )
    assert [len(context) for _, context in asked] == [size]


@pytest.mark.parametrize("interval", [(2.0, 1.0), (1.0, 1.0), (-1.0, 1.0)])
def test_an_interval_without_length_is_refused(interval, mixture):
    with pytest.raises(ValueError, match="interval"):
        classifier_free(mixture.network, torch.zeros(1), torch.zeros(1), scale=2.0, interval=interval)


def pictures(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """x, and x_0 without and with words, of pictures [2, 4, 8, 8]."""
    return tuple(torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(seed)))


def fixed(u: Tensor, c: Tensor, **options):
    return classifier_free(lambda x, sigma, context: torch.cat([u, c]), torch.ones(2, 1), torch.zeros(1, 1), **options)


def test_rescale_is_that_of_its_paper_for_a_network_that_tells_v():
    # Eq. 14 to 16 of Lin et al., on the network's outputs.
    x, v_u, v_c = pictures()
    sigma = torch.tensor(2.0)
    spread = (1 + sigma**2).sqrt()

    def clean(v: Tensor) -> Tensor:
        return x / spread**2 - sigma / spread * v

    v_cfg = v_u + 5 * (v_c - v_u)
    v = torch.stack([0.7 * one * c.std() / one.std() + 0.3 * one for one, c in zip(v_cfg, v_c)])
    told = fixed(clean(v_u), clean(v_c), scale=5.0, rescale=0.7)(x, sigma)
    torch.testing.assert_close(told, clean(v), rtol=1e-4, atol=1e-5)


def test_cfg_plus_plus_is_its_algorithm():
    # Alg. 2, in its own symbols: x_t-1 = sqrt(abar') x_0(lambda) + sqrt(1 - abar') eps_empty.
    schedule = Schedule.scaled_linear()
    (abar, after), sigmas = schedule.alphas_cumprod[[700, 650]], schedule.sigmas[[700, 650]]
    x_t, eps_empty, eps_c = (one.double() for one in pictures())

    def clean(eps: Tensor) -> Tensor:
        return (x_t - (1 - abar).sqrt() * eps) / abar.sqrt()

    expected = after.sqrt() * clean(eps_empty + 0.4 * (eps_c - eps_empty)) + (1 - after).sqrt() * eps_empty
    guided = fixed(clean(eps_empty), clean(eps_c), scale=0.4, plus_plus=True)
    end = SAMPLERS["ddim"](guided, x_t / abar.sqrt(), sigmas)
    torch.testing.assert_close(end * after.sqrt(), expected)


@pytest.mark.parametrize(
    "settings", [{}, {"eta": 0.3}, {"norm": 2.0}, {"momentum": -0.5}, {"eta": 0.5, "norm": 9.0, "momentum": -0.7}]
)
def test_apg_is_that_of_diffusers_over_a_run(settings):
    from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

    apg = APG(**settings)
    buffer, halves = MomentumBuffer(apg.momentum), []

    def network(x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        return torch.cat(halves[-1])

    guided = classifier_free(network, torch.ones(2, 1), torch.zeros(1, 1), scale=4.0, apg=apg)
    for step in range(4):
        x, u, c = pictures(step)
        halves.append((u, c))
        expected = normalized_guidance(c, u, 3.0, buffer, apg.eta, apg.norm or 0.0, use_original_formulation=True)
        torch.testing.assert_close(guided(x, SIGMAS[step]), expected, rtol=1e-4, atol=1e-5)


def test_apg_with_all_of_the_parallel_part_is_plain():
    x, u, c = pictures()
    plain = fixed(u, c, scale=4.0)(x, SIGMAS[0])
    torch.testing.assert_close(fixed(u, c, scale=4.0, apg=APG(eta=1.0))(x, SIGMAS[0]), plain, rtol=1e-4, atol=1e-5)


def test_momentum_is_forgotten_between_runs(mixture):
    x, label = 20 * points(4), torch.arange(4) % 3
    guided = classifier_free(
        mixture.network, label, -torch.ones(1, dtype=torch.long), scale=2.0, apg=APG(eta=0.5, momentum=-0.6)
    )
    first = run("heun", guided, x)
    assert torch.equal(run("heun", guided, x), first)


def test_momentum_keeps_no_graph_of_earlier_steps():
    past, new = Momentum(-0.5), points(3).requires_grad_()
    assert past.add(new, 2.0).requires_grad and not past.sum.requires_grad
    assert torch.equal(past.add(new, 1.0), new / 2)
