"""One picture, attacked: it stays in the ball, and what is said of it is what the model says."""

import numpy as np
import pytest
import torch
from PIL import Image

from negah.errors import InputError
from negah.images.scenes import render
from negah.runs.attack_picture import METHODS, attack_picture
from negah.runs.classifiers import classifier


@pytest.fixture(scope="module")
def roof(tmp_path_factory):
    path = tmp_path_factory.mktemp("roof") / "roof.png"
    Image.fromarray(render(104, 0.3, seed=19, panels="some").image).save(path)
    return path


@pytest.mark.parametrize("method", METHODS)
def test_the_picture_stays_in_the_ball_and_in_range(roof, method):
    found = attack_picture(roof, method=method, eps=3 / 255, steps=3)
    assert found.named[0] == "panels" and 0 < found.largest <= 3 / 255 + 1e-6
    assert float(found.after.min()) >= 0 and float(found.after.max()) <= 1
    assert found.chances[1, 1] < found.chances[0, 1]
    judged = classifier("negah/aerial-tiny", device=torch.device("cpu"))
    with torch.no_grad():
        said = judged.model(found.after[None]).softmax(1)[0]
    np.testing.assert_allclose(found.chances[1], said.numpy(), atol=1e-5)


def test_other_norms_and_an_attack_that_fools(roof):
    assert attack_picture(roof, norm="L2", eps=0.3, steps=3).length <= 0.3 + 1e-5
    found = attack_picture(roof, eps=8 / 255, steps=5)
    assert found.fooled and found.named == ("panels", "no panels")


def test_what_cannot_be_attacked_is_said(roof):
    with pytest.raises(InputError, match="the methods are FGSM, PGD"):
        attack_picture(roof, method="guess")
