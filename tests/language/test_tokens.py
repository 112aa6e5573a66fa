"""Texts of all kinds become `length` numbers, and come back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import negah
from negah.errors import InputError
from negah.language import Tokenizer

CAPTIONS = ["solar panels on the roof of a house", "a house with a swimming pool", "an airport with many planes"] * 3


@pytest.fixture(scope="module")
def tokens() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, vocabulary=600, length=24)


def test_what_was_seen_often_is_one_token(tokens):
    ids = tokens(["Solar   PANELS\n"])
    assert ids.shape == (1, 24) and ids[0, 0] == tokens.start and ids[0, 3] == tokens.end
    assert (ids[0, 3:] == tokens.pad).all()
    assert tokens.text(ids[0]) == "solar panels"


@pytest.mark.parametrize("text", ["", "a pool", "خانه", "🌞", "ça", "日本", "\x00", "<|endoftext|>"])
def test_every_text_has_tokens_and_comes_back(tokens, text):
    ids = tokens([text])[0].tolist()
    assert ids.count(tokens.start) == 1 and max(ids) < len(tokens)
    expected = {"\x00": "", "<|endoftext|>": "<| endoftext |>"}.get(text, text)  # spaces between words are all it knows
    assert tokens.text(ids).strip("\x00") == expected


def test_long_texts_lose_their_last_tokens_and_keep_an_end(tokens):
    ids = tokens(["house " * 10_000])[0]
    assert ids[0] == tokens.start and ids[-1] == tokens.end and len(set(ids[1:-1].tolist())) == 1


def test_words_that_were_rare_are_told(tokens):
    assert tokens.count("house " * 10_000) == 10_000 and tokens.count(" \n") == 0
    assert tokens.in_pieces("A swimming  POOL on the roof") == []
    assert tokens.in_pieces("a wombat's house, خانه 🌞") == ["wombat", "'s", "خانه", "🌞"]


def test_texts_are_independent_of_their_batch(tokens):
    texts = ["a pool", "", "an airport with many planes"]
    assert torch.equal(tokens(texts), torch.cat([tokens([text]) for text in texts]))
    assert tokens([]).shape == (0, 24)


def test_the_same_texts_give_the_same_vocabulary_in_another_process(tokens):
    code = (
        "from negah.language import Tokenizer\n"
        f"print(Tokenizer.train({CAPTIONS!r}, vocabulary=600, length=24)(['a roof with a pool']).tolist())"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(negah.__file__).parents[1])}
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        assert json.loads(done.stdout) == tokens(["a roof with a pool"]).tolist()


def test_json_and_back(tokens):
    assert torch.equal(Tokenizer.of_json(tokens.to_json())(CAPTIONS), tokens(CAPTIONS))


def test_too_small_is_named():
    with pytest.raises(InputError, match="no room for all bytes"):
        Tokenizer.train(CAPTIONS, vocabulary=300, length=24)
    with pytest.raises(InputError, match="1 tokens are too few"):
        Tokenizer.train(CAPTIONS, vocabulary=600, length=1)
