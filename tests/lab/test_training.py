"""Short runs of the lab measure what they say, and equal seeds give equal runs."""

from functools import partial

import pytest
import torch

from negah.errors import InputError
from negah.lab.page import figure
from negah.lab.training import Effort, Pictures, learn, plot_curves, small_resnet, small_views, summary
from negah.ssl import SimCLR

EFFORT = Effort(steps=12, batch=32, say=lambda line: None)


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    whole = Pictures.of(EFFORT)
    return Pictures(whole.train[:200], whole.train_labels[:200], whole.test[:100], whole.test_labels[:100])


def simclr(pictures: Pictures, seed: int = 0):
    make = partial(SimCLR, hidden=32, dim=16)
    return learn(make, pictures, [small_views(), small_views()], EFFORT, label="simclr", seed=seed, checks=2)


def test_a_run_is_scored_before_and_on_the_way_and_repeats_itself(pictures):
    before = torch.get_rng_state()
    run = simclr(pictures)
    assert torch.equal(torch.get_rng_state(), before)
    assert [row["step"] for row in run.scores] == [0, 6, 12]
    assert run.scores[0]["knn"] == pictures.knn(small_resnet(0))
    assert run.kind == "none" and run.last("embedding_std") > 0.05
    again = simclr(pictures)
    assert (again.scores, again.history) == (run.scores, run.history)
    assert simclr(pictures, seed=1).history != run.history


def test_summaries_are_of_last_values_over_seeds(pictures):
    runs = [simclr(pictures), simclr(pictures, seed=1)]
    (row,) = summary(runs, ["knn"])
    values = [run.scores[-1]["knn"] for run in runs]
    assert row["setting"] == "simclr" and row["seeds"] == 2 and row["knn"] == sum(values) / 2
    assert row["knn ±"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    _, (axis,) = figure()
    plot_curves(axis, runs, "knn", title="kNN")
    (line,) = axis.get_lines()
    assert list(line.get_xdata()) == [0, 6, 12] and line.get_ydata()[-1] == row["knn"]


def test_own_pictures_need_a_folder_for_each_class(tmp_path):
    from PIL import Image

    for i in range(4):
        Image.new("RGB", (40, 40), (i * 50, 0, 0)).save(tmp_path / f"{i}.png")
    with pytest.raises(InputError, match="folder for each class"):
        Pictures.of(Effort(data=(str(tmp_path),)))
