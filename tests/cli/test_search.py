"""`negah search` as it is typed: what it finds, what it keeps, what it says of what it cannot use."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from negah.cli import main as cli
from negah.errors import InputError
from negah.language import CLIP, Tokenizer
from negah.language.load import save
from negah.nn.text import TextTransformer
from negah.nn.vit import ViT
from negah.runs.search import classify
from negah.train import Batches, fit

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 200), "white": (240, 240, 240)}


def picture(colour: str, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 20, (24, 32, 3))
    return (np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A CLIP that has learnt the names of four colours, in a file."""
    texts = [f"a {colour} field" for colour in COLOURS]
    tokens = Tokenizer.train(texts * 3, vocabulary=700, length=10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = ViT(patch=8, dim=32, depth=1, heads=2, grid=(3, 3), layer_scale=None)
        text = TextTransformer(vocabulary=len(tokens), length=10, dim=32, depth=1, heads=2)
        clip = CLIP(vit, text, dim=16, end=tokens.end)
        ids = tokens(texts)
        images = [
            torch.from_numpy(picture(c, seed)[:, 4:28].copy()).permute(2, 0, 1) for seed in range(8) for c in COLOURS
        ]
        fit(
            clip,
            Batches(list(zip(images, ids.repeat(8, 1), torch.arange(4).repeat(8))), 32, seed=0),
            steps=200,
            lr=1e-3,
        )
    return save(clip, tmp_path_factory.mktemp("model") / "colours.safetensors", tokens=tokens)


@pytest.fixture
def folder(tmp_path):
    for colour in COLOURS:
        for seed in range(3):
            Image.fromarray(picture(colour, 100 + seed)).save(tmp_path / f"{seed}-{colour}.png")
    return tmp_path


def test_words_find_their_pictures(model, folder, capsys):
    words = ["search", "a green field", "a blue field", "--images", str(folder), "--model", str(model), "--best", "3"]
    assert cli.main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    for colour, found in zip(("green", "blue"), result["found"]):
        assert all(colour in name for name, _ in found["hits"]) and len(found["hits"]) == 3
        scores = [score for _, score in found["hits"]]
        assert scores == sorted(scores, reverse=True) and scores[-1] > 0.5
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "a green field" in out and "0-green.png" in out and "12 pictures, 12 of them looked at now" in out


def test_pictures_are_sorted_into_classes_that_are_words(model, folder):
    (folder / "broken.png").write_bytes(b"no picture")
    names = list(COLOURS)
    found = classify(names, [folder], model=str(model), templates=["a {} field"])
    assert len(found.chances) == 12 and [name for name, _ in found.failures] == [str(folder / "broken.png")]
    for name, chances in found.chances:
        assert sum(chances) == pytest.approx(1) and names[int(np.argmax(chances))] in name
    with pytest.raises(InputError, match="at least two classes"):
        classify(["red"], [folder], model=str(model))


def test_a_picture_finds_those_like_it(model, folder, capsys):
    words = [
        "search",
        str(folder / "1-red.png"),
        "--images",
        str(folder),
        "--model",
        str(model),
        "--best",
        "3",
        "--json",
    ]
    assert cli.main(words) == 0
    hits = json.loads(capsys.readouterr().out)["found"][0]["hits"]
    assert hits[0][0].endswith("1-red.png") and hits[0][1] == pytest.approx(1, abs=1e-3)
    assert all("red" in name for name, _ in hits)


def test_an_index_is_used_again_and_follows_what_changes(model, folder, tmp_path_factory, capsys):
    index = tmp_path_factory.mktemp("index") / "i.safetensors"
    words = ["search", "a red field", "--images", str(folder), "--model", str(model), "--index", str(index), "--json"]

    def looked_at() -> tuple[int, int]:
        assert cli.main(words) == 0
        result = json.loads(capsys.readouterr().out)
        return result["images"], result["read"]

    assert looked_at() == (12, 12)
    assert looked_at() == (12, 0)
    (folder / "0-red.png").unlink()
    Image.fromarray(picture("blue", 7)).save(folder / "1-red.png")  # what it shows is exchanged
    os.utime(folder / "1-red.png", ns=(1, 1))
    assert looked_at() == (11, 1)
    assert cli.main(words) == 0
    first = json.loads(capsys.readouterr().out)["found"][0]["hits"][0][0]
    assert first.endswith("2-red.png")


def test_unreadable_pictures_are_left_out_and_said(model, folder, capsys):
    (folder / "broken.png").write_bytes((folder / "0-red.png").read_bytes()[:200])
    Image.new("RGB", (1, 1), (200, 30, 30)).save(folder / "pixel.png")
    assert cli.main(["search", "ده 🌞", "--images", str(folder), "--model", str(model)]) == 3
    out, err = capsys.readouterr()
    assert "13 pictures" in out and "broken.png" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--images", "nowhere"], "nowhere cannot be read"),
        (["--best", "0"], "--best 0"),
        (["--model", "nothing.safetensors"], "nothing.safetensors"),
        (["--model", "nothing"], "with model.safetensors, or a Hugging Face name like openai/clip-vit-base-patch32"),
        (["--vocabulary", "."], "no tokenizer.json, nor vocab.json"),
    ],
)
def test_what_cannot_be_used_is_one_line(model, folder, capsys, words, says):
    given = {"--images": str(folder), "--model": str(model)} | dict([words])
    assert cli.main(["search", "a red field", *(x for pair in given.items() for x in pair)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err


@pytest.mark.parametrize("query", ["nosuch.jpg", "."])
def test_a_path_that_is_no_picture_is_not_taken_for_words(model, folder, capsys, query):
    assert cli.main(["search", query, "--images", str(folder), "--model", str(model)]) == 2
    assert f"{query} is no picture" in capsys.readouterr().err


def test_an_empty_query_is_one_line(model, folder, capsys):
    assert cli.main(["search", " ", "--images", str(folder), "--model", str(model)]) == 2
    assert "an empty query" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("field " * 10_000, "tokens long, and the model reads no more than 8"),
        ("x" * 5000, "tokens long, and the model reads no more than 8"),
        ("\udce9", 'the query "\\udce9" is not text in UTF-8'),
        ("\udce9.png", "?.png is no picture that is there"),
    ],
)
def test_words_that_the_model_cannot_read_are_one_short_line(model, folder, capsys, query, says):
    assert cli.main(["search", query, "--images", str(folder), "--model", str(model)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and len(err) < 200 and says in err
