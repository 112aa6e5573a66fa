"""Training a text-to-image model: targets, weights, dropped words, timesteps; and a classifier of noisy pictures."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from negah.diffusion.classifier import Classifying, NoisyClassifier
from negah.diffusion.denoising import Denoising, noised, snr_weight, spread, target
from negah.diffusion.schedule import Schedule
from negah.errors import WeightsError
from negah.train import Batches, fit

SCHEDULE = Schedule.scaled_linear()


class Told:
    def __init__(self, sample):
        self.sample = sample


class Oracle(nn.Module):
    """Knows the one clean picture, so it can tell any target; its weight spoils it."""

    def __init__(self, clean, prediction):
        super().__init__()
        self.clean, self.prediction, self.off = clean, prediction, nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, x, t, context):
        self.seen.append(context)
        abar = SCHEDULE.alphas_cumprod.float()[t].view(-1, 1, 1, 1)
        noise = (x - abar.sqrt() * self.clean) / (1 - abar).sqrt()
        return Told(target(self.clean.expand_as(x), noise, abar, self.prediction) + self.off)


class Words(nn.Module):
    """The token itself is the embedding."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, ids):
        found = Told(None)
        found.last_hidden_state = self.weight * ids[..., None].float()
        return found


def objective(prediction="epsilon", **how):
    clean = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    return clean, Denoising(
        Oracle(clean, prediction),
        Words(),
        replace(SCHEDULE, prediction=prediction),
        empty=torch.zeros(3, dtype=torch.long),
        **how,
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_network_that_tells_the_target_has_no_loss(prediction):
    clean, learner = objective(prediction)
    ids = torch.ones(16, 3, dtype=torch.long)
    assert learner((clean.expand(16, -1, -1, -1), ids))["loss"] < 1e-5
    with torch.no_grad():
        learner.networks["unet"].off.fill_(0.5)
    assert learner((clean.expand(16, -1, -1, -1), ids))["loss"].item() == pytest.approx(0.25, rel=1e-3)


def test_v_gives_back_picture_and_noise():
    clean, noise = torch.randn(2, 5, 4, 3, 3).unbind()
    abar = SCHEDULE.alphas_cumprod.float()[[0, 10, 500, 900, 999]].view(-1, 1, 1, 1)
    x, v = noised(clean, noise, abar), target(clean, noise, abar, "v_prediction")
    torch.testing.assert_close(abar.sqrt() * x - (1 - abar).sqrt() * v, clean, atol=1e-5, rtol=0)
    torch.testing.assert_close((1 - abar).sqrt() * x + abar.sqrt() * v, noise, atol=1e-5, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weighs_the_error_of_the_picture(prediction):
    """A wrong target is a wrong x_0; its error is to weigh min(snr, 5), whatever the network tells."""
    clean, noise, wrong = torch.randn(3, 4, 2, 3, 3, dtype=torch.float64).unbind()
    abar = SCHEDULE.alphas_cumprod[[5, 200, 600, 990]]
    a = abar.view(-1, 1, 1, 1)
    x = noised(clean, noise, a)
    told = target(clean, noise, a, prediction) + wrong
    if prediction == "epsilon":
        picture = (x - (1 - a).sqrt() * told) / a.sqrt()
    else:
        picture = a.sqrt() * x - (1 - a).sqrt() * told
    expected = (abar / (1 - abar)).clamp(max=5) * (picture - clean).square().mean((1, 2, 3))
    found = snr_weight(abar, 5.0, prediction) * wrong.square().mean((1, 2, 3))
    torch.testing.assert_close(found, expected)


def test_words_are_dropped_from_a_share_of_the_pictures():
    torch.manual_seed(0)
    clean, learner = objective(drop=0.25)
    learner((clean.expand(2000, -1, -1, -1), torch.full((2000, 3), 7)))
    context = learner.networks["unet"].seen[-1][..., 0]
    dropped = (context == 0).all(1)
    assert ((context == 7).all(1) | dropped).all()  # a text is dropped whole or not at all
    assert dropped.float().mean() == pytest.approx(0.25, abs=0.04)


def test_timesteps_lie_in_each_part_once_and_are_uniform():
    torch.manual_seed(0)
    drawn = torch.stack([spread(10, 1000, torch.device("cpu")) for _ in range(2000)])
    assert (drawn.sort(1).values.diff(dim=1) - 100).abs().max() <= 1
    assert drawn.min() >= 0 and drawn.max() <= 999
    share = torch.histc(drawn[:, 0].float(), 10, 0, 1000) / 2000
    assert (share - 0.1).abs().max() < 0.03  # the first of a batch is at any level


def test_the_average_follows_the_networks():
    clean, learner = objective(momentum=0.5)
    batch = clean.expand(4, -1, -1, -1), torch.ones(4, 3, dtype=torch.long)
    with torch.no_grad():
        learner.networks["unet"].off.fill_(1.0)
    fit(learner, [batch], steps=5, lr=0.1)
    now, average = learner.networks["unet"].off, learner.average.model["unet"].off
    assert 0 < now < 1 and average != now and not average.requires_grad


class Sides:
    """Latents whose sign is their class."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        label = index % 2
        return torch.full((4, 8, 8), 2.0 * label - 1), label


def test_the_classifier_sees_through_noise_and_knows_when_it_cannot():
    torch.manual_seed(0)
    net = NoisyClassifier(["dark", "light"], widths=(16, 16))
    found = fit(Classifying(net, SCHEDULE), Batches(Sides(), 32), steps=150, lr=3e-3)
    net.eval()
    assert found.history[-1]["accuracy"] > 0.9
    label = torch.arange(2).repeat(50)
    clean, noise = (2.0 * label - 1).view(-1, 1, 1, 1).expand(-1, 4, 8, 8), torch.randn(100, 4, 8, 8)
    with torch.no_grad():
        sure, unsure = (net.log_prob(clean + s * noise, torch.tensor(s), label).exp() for s in (0.5, 14.0))
    assert sure.mean() > 0.95 and unsure.mean() < sure.mean()


def test_a_classifier_comes_back_as_it_was(tmp_path):
    net = NoisyClassifier(["a", "b", "c"], widths=(16, 24)).eval()
    net.save(tmp_path / "classifier")
    again = NoisyClassifier.load(tmp_path / "classifier")
    x = torch.randn(3, 4, 8, 8)
    assert again.classes == ["a", "b", "c"]
    torch.testing.assert_close(again(x, torch.tensor(1.0)), net(x, torch.tensor(1.0)), rtol=0, atol=0)
    (tmp_path / "classifier" / "config.json").write_text('{"classes": ["a"]}')
    with pytest.raises(WeightsError, match="classifier"):
        NoisyClassifier.load(tmp_path / "classifier")


def test_each_picture_is_told_by_itself():
    net = NoisyClassifier(["a", "b"], widths=(16, 24)).eval()
    x, sigma = torch.randn(5, 4, 8, 8), torch.rand(5) * 10
    one = torch.cat([net(x[i : i + 1], sigma[i]) for i in range(5)])
    torch.testing.assert_close(net(x, sigma), one, rtol=1e-5, atol=1e-6)
