"""`negah pretrain diffusion`: what comes of caption files, goes on where it was, and says no to what cannot be."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from negah.diffusion.autoencoder import Autoencoding, latent_scale
from negah.diffusion.classifier import NoisyClassifier
from negah.diffusion.generate import generate
from negah.diffusion.load import load
from negah.errors import InputError, OutputError
from negah.runs.imagine import stages
from negah.runs.imagine.pretrain import Options, pretrain
from negah.train import fit

pytest.importorskip("diffusers")

SMALL = Options(
    size=16, batch=4, epochs=2, autoencoder_steps=3, classifier_steps=4, copies=2, widths=(16, 32), score_every=2
)


@pytest.fixture
def captions(tmp_path):
    """Red and blue squares, two broken files among them."""
    colours = {"red": (200, 30, 30), "blue": (30, 30, 200)}
    with (tmp_path / "captions.csv").open("w") as file:
        table = csv.writer(file)
        table.writerow(["file", "caption", "class"])
        for number in range(10):
            name = ("red", "blue")[number % 2]
            Image.fromarray(np.full((24, 24, 3), colours[name], np.uint8)).save(tmp_path / f"{number}.png")
            table.writerow([f"{number}.png", f"a {name} square", name if number != 9 else ""])
        (tmp_path / "broken.png").write_bytes(b"no picture")
        table.writerow(["broken.png", "a broken square", "red"])
        table.writerow(["missing.png", "a missing square", "red"])
    return str(tmp_path / "captions.csv")


def test_what_comes_out_draws_classifies_and_tells_what_was_left_out(captions, tmp_path):
    found = pretrain([captions], tmp_path / "out", replace(SMALL, labels="class"))
    assert (found.pictures, found.texts, found.steps) == (10, 2, 2 * round(10 / 4))
    assert sorted(Path(name).name for name, _ in found.failures) == ["broken.png", "missing.png"]
    model = load(found.model)
    assert model.size == 16 and model.prediction == "v_prediction"
    assert generate(model, ["a red square"], [1], steps=2).shape == (1, 3, 16, 16)
    assert NoisyClassifier.load(found.model / "classifier").classes == ["blue", "red"]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["finished"]
    assert list((tmp_path / "out").glob("step_*.png"))


def test_the_same_call_goes_on_and_another_is_refused(captions, tmp_path):
    out = tmp_path / "out"
    whole = pretrain([captions], tmp_path / "whole", SMALL)
    stopped = lambda line: (_ for _ in ()).throw(KeyboardInterrupt) if "step" in line else None  # noqa: E731
    with pytest.raises(KeyboardInterrupt):  # at the first sheet, with the autoencoder behind it
        pretrain([captions], out, replace(SMALL, score_every=1), say=stopped)
    again = pretrain([captions], out, SMALL)
    assert again.loss == whole.loss
    a, b = (load(at / "model").state_dict() for at in (out, tmp_path / "whole"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(OutputError, match="batch 4 \\(now 5\\)"):
        pretrain([captions], out, replace(SMALL, batch=5))


def test_pixels_need_no_autoencoder(captions, tmp_path):
    found = pretrain([captions], tmp_path / "out", replace(SMALL, space="pixel", prediction="epsilon"))
    assert found.latent_error is None
    model = load(found.model)
    assert model.vae is None and model.latent_shape(16, 16) == (3, 16, 16) and model.prediction == "epsilon"
    assert generate(model, ["a blue square"], [0], steps=2).shape == (1, 3, 16, 16)


def test_an_autoencoder_of_another_model_is_taken_as_it_is(captions, tmp_path):
    first = pretrain([captions], tmp_path / "first", SMALL)
    second = pretrain([captions], tmp_path / "second", replace(SMALL, autoencoder=str(first.model), epochs=1))
    a, b = (load(found.model).vae.state_dict() for found in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"labels": "colour"}, "--labels colour: 0 labels"),
        ({"batch": 11}, "give --batch 10 or less"),
        ({"drop": 1.0}, "--drop 1.0"),
        ({"widths": (20,)}, "--widths 20"),
        ({"space": "pixel", "autoencoder": "x"}, "--space pixel has none"),
        ({"min_snr": 0.0}, "--min-snr 0.0"),
    ],
)
def test_what_cannot_be_trained_is_refused(captions, tmp_path, change, said):
    with pytest.raises(InputError, match=said):
        pretrain([captions], tmp_path / "out", replace(SMALL, **change))


def test_the_autoencoder_learns_and_its_latents_become_of_unit_variance():
    vae = stages.new_autoencoder(size=16, widths=(16, 32), seed=0)
    coarse = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear")
    found = fit(Autoencoding(vae), [images], steps=80, lr=3e-3, log_every=1)
    assert found.history[-1]["pixels"] < 0.8 * found.history[0]["pixels"]
    scale = latent_scale(vae, images.split(3))
    with torch.no_grad():
        latents = scale * vae.encode(2 * images - 1).latent_dist.mean
    assert latents.std(unbiased=False).item() == pytest.approx(1, rel=1e-3)


def test_new_networks_leave_the_callers_random_state():
    before = torch.get_rng_state()
    one, other = (stages.new_autoencoder(size=16, widths=(8, 16), seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.decoder.conv_in.weight, other.decoder.conv_in.weight)
