"""The experiment's variants are what they say, and its page has all panels."""

import json

import pytest
import torch

from negah.lab import collapse, training
from negah.lab.collapse import Balanced, FewNegatives, NoStopGradient, small_byol, small_dino, small_simclr
from negah.lab.training import Effort, small_resnet
from negah.ssl import DINO
from negah.ssl.collapse import Settings
from negah.ssl.simclr import nt_xent
from negah.train.run import Run


def views(n: int = 8) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.rand(n, 3, 24, 24, generator=g) for _ in range(2)]


def made(method, **options):
    torch.manual_seed(0)
    return method(small_resnet(0), **options)


def test_with_the_whole_batch_for_a_group_few_negatives_is_simclr():
    options = {"hidden": 128, "dim": 64, "temperature": 0.2}
    whole, plain = made(FewNegatives, group=8, **options), made(small_simclr)
    torch.testing.assert_close(whole(views())["loss"], plain(views())["loss"])


def test_a_view_meets_the_negatives_of_its_group_alone():
    few = made(FewNegatives, group=4, hidden=128, dim=64, temperature=0.2)
    loss = few(views())["loss"]
    halves = [nt_xent(few.seen["embedding"][:, half], temperature=0.2) for half in (slice(4), slice(4, 8))]
    torch.testing.assert_close(loss.detach(), torch.stack(halves).mean())
    assert few(views(9))["loss"].isfinite()  # groups of 4 and 5


def test_without_stop_gradient_the_target_side_learns():
    gradients = []
    for objective in (made(small_byol), made(NoStopGradient, hidden=128, dim=64)):
        objective(views())["loss"].backward()
        gradients.append(objective.projector[0].weight.grad)
    assert not torch.allclose(*gradients)


def test_balanced_targets_give_each_prototype_its_share_where_logits_have_favourites():
    objective = made(small_dino, kind=Balanced)
    g = torch.Generator().manual_seed(0)
    logits = 0.1 * torch.randn(2, 64, 256, generator=g) + 0.2 * torch.randn(256, generator=g)
    targets = objective.targets(logits)
    torch.testing.assert_close(targets.sum(-1), torch.ones(2, 64))
    shares, without = (256 * t.mean((0, 1)) for t in (targets, DINO.targets(objective, logits)))
    assert 0.5 < shares.min() and shares.max() < 1.5 and without.max() > 5


def test_the_doctor_knows_of_the_changes():
    def settings(objective) -> Settings:
        return Settings.of(Run(objective, torch.optim.SGD(objective.parameters(), lr=0.1), 10))

    assert settings(made(NoStopGradient, hidden=128, dim=64)).stop_gradient is False
    assert settings(made(small_dino, center_momentum=1.0)).centering is False
    assert settings(made(small_dino, kind=Balanced, center_momentum=1.0)).centering is True


@pytest.fixture
def few_pictures(monkeypatch):
    for name, number in (("TRAIN", 20), ("TEST", 10)):
        monkeypatch.setattr(training, name, number)


def test_the_page_has_all_panels(tmp_path, few_pictures):
    page = collapse.run(tmp_path, Effort(steps=4, batch=8, say=lambda line: None))
    assert [panel.name for panel in page.panels] == ["byol", "negatives", "dino", "teacher", "sinkhorn"]
    panels = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["panels"]
    assert [row["setting"] for row in panels["negatives"]["rows"]] == [
        "batch 4", "batch 8", "batch 32", "2 negatives", "14 negatives",
    ]  # fmt: skip
    assert {row["setting"] for row in panels["sinkhorn"]["rows"]} == {"Sinkhorn-Knopp", "centering", "neither"}
    assert "ln K = 5.55" in panels["dino"]["found"]
