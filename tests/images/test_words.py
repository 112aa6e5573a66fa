"""Captions of described scenes say what is to be seen."""

import subprocess
import sys
from itertools import product

import numpy as np
import pytest
from scipy import ndimage

from negah.errors import InputError
from negah.images.scenes.words import (
    ATTRIBUTES,
    EXTENT,
    HELD_OUT,
    Composition,
    caption,
    compositions,
    described,
    held_out,
    told,
)

FULL = Composition("three", "white", "two", "one", "many", "one")


def parts(mask: np.ndarray) -> int:
    return ndimage.label(mask > 0.5)[1]


@pytest.mark.parametrize("number", range(7, 432, 41))  # all values of all attributes
def test_the_first_caption_is_what_the_masks_show(number):
    what = compositions()[number]
    found = described(104, 0.3, seed=number, what=what)
    said = told(found.captions[0])
    assert said == found.composition._asdict() == what._asdict()
    assert {name: mask.shape for name, mask in found.masks.items()} == dict.fromkeys(
        ("house", "array", "pool", "tree", "street"), (104, 104)
    )
    square_metres = {name: float(mask.sum()) * 0.09 for name, mask in found.masks.items()}
    assert parts(found.masks["house"]) == ATTRIBUTES["houses"].index(said["houses"]) + 1
    assert parts(found.masks["array"]) == ATTRIBUTES["panels"].index(said["panels"])
    assert parts(found.masks["pool"]) == (said["pool"] == "one")
    assert (square_metres["pool"] > 8) == (said["pool"] == "one")
    assert (square_metres["street"] > 50) == (said["street"] == "one")
    low, high = {"none": (0, 0), "few": (6, 60), "many": (30, 250)}[said["trees"]]
    assert low <= square_metres["tree"] <= high


@pytest.mark.parametrize("roofs", ATTRIBUTES["roofs"])
@pytest.mark.parametrize("seed", range(3))
def test_roofs_have_the_colour_that_is_named(roofs, seed):
    found = described(64, 0.5, seed=seed, what=Composition("two", roofs, "one", "none", "none", "none"))
    red, _, blue = found.image[(found.masks["house"] > 0.9) & (found.masks["array"] < 0.05)].mean(0)
    light = found.image[found.masks["house"] > 0.9].mean() / 255
    assert {"red": red > blue + 40, "blue": blue > red + 40, "grey": light < 0.6, "white": light > 0.6}[roofs]
    assert roofs in ("red", "blue") or abs(red - blue) < 45


def test_arrays_differ_from_the_roof_about_them():
    for seed in range(6):
        found = described(104, 0.3, seed=seed, what=FULL._replace(houses="one", roofs="grey", street="none"))
        array = found.masks["array"] > 0.9
        roof = (found.masks["house"] > 0.9) & (found.masks["array"] == 0)
        assert abs(found.image[array].mean(0) - found.image[roof].mean(0)).max() > 15


def test_all_five_captions_are_true_and_differ():
    """Things that are missing are not named, unless as missing, and what is there is never called missing."""
    words = {"panels": ("solar",), "pool": ("pool",), "trees": ("trees",), "street": ("street", "road")}
    for number in range(7, 432, 41):
        found = described(64, 0.5, seed=number, what=compositions()[number])
        assert len(found.captions) == 5 and len(set(found.captions)) == 5
        what = found.composition._asdict()
        for text in found.captions[1:]:
            there, _, missing = text.lower().partition("without")
            assert what["houses"] in there and what["roofs"] in there
            for name, named in words.items():
                kept = missing if what[name] == "none" else there
                other = there if what[name] == "none" else missing
                assert not any(word in other for word in named), (text, kept)
    assert described(64, 0.5, seed=1).captions[0] == caption(described(64, 0.5, seed=1).composition)


def test_the_first_caption_names_each_value_in_the_order_of_the_attributes():
    assert caption(FULL) == ("three houses with white roofs, two solar arrays, a swimming pool, many trees, a street")
    assert caption(Composition("one", "red", "none", "none", "none", "none")) == (
        "one house with a red roof, no solar array, no swimming pool, no trees, no street"
    )
    texts = [caption(what) for what in compositions()]
    assert len(set(texts)) == len(texts)
    assert all(told(text) == what._asdict() for text, what in zip(texts, compositions(), strict=True))
    assert told("one house and two houses, a street") == dict.fromkeys(ATTRIBUTES) | {"street": "one"}


def test_the_same_seed_gives_the_same_in_every_process():
    code = (
        "from negah.images.scenes.words import described; import hashlib\n"
        "found = described(64, 0.5, seed=3)\n"
        "print(hashlib.sha256(found.image.tobytes()).hexdigest(), *found.captions, sep='\\n')"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(runs) == 1 and runs.pop().count("\n") == 6
    assert not np.array_equal(described(64, 0.5, seed=3).image, described(64, 0.5, seed=4).image)


def test_every_value_is_seen_and_no_held_out_pair_is():
    seen = [what for what in compositions() if not held_out(what)]
    held = [what for what in compositions() if held_out(what)]
    assert len(seen) + len(held) == np.prod([len(values) for values in ATTRIBUTES.values()])
    assert 0.2 < len(held) / (len(seen) + len(held)) < 0.5
    for name, values in ATTRIBUTES.items():
        assert {getattr(what, name) for what in seen} == set(values)
    pairs = {
        frozenset(((a, getattr(what, a)), (b, getattr(what, b))))
        for what in seen
        for a, b in product(ATTRIBUTES, repeat=2)
        if a < b
    }
    missing = [frozenset(pair.items()) for pair in HELD_OUT]
    assert not pairs & set(missing)
    everything = {
        frozenset(((a, x), (b, y)))
        for a, b in product(ATTRIBUTES, repeat=2) if a < b for x in ATTRIBUTES[a] for y in ATTRIBUTES[b]
    }  # fmt: skip
    assert everything - pairs == set(missing)  # and these are the only ones


@pytest.mark.parametrize("side, gsd", [(64, 0.47), (104, 0.3), (128, 0.5)])
def test_the_fullest_picture_of_each_size_can_be_drawn(side, gsd):
    found = described(side, gsd, seed=0, what=FULL)
    assert found.image.shape == (side, side, 3) and found.image.dtype == np.uint8
    assert found.composition == FULL


@pytest.mark.parametrize("side, gsd", [(64, 0.3), (300, 0.3), (40, 0.8), (0, 0.3), (64, float("nan")), (2000, 0.02)])
def test_sizes_at_which_the_words_mean_nothing_are_refused(side, gsd):
    with pytest.raises(InputError, match=f"{EXTENT[0]:g} to {EXTENT[1]:g} m wide"):
        described(side, gsd, seed=0)


def test_a_value_that_there_is_not_is_refused_and_the_others_are_named():
    with pytest.raises(InputError, match="roofs are red, grey, white, blue, not 'green'"):
        described(64, 0.5, seed=0, what=FULL._replace(roofs="green"))
