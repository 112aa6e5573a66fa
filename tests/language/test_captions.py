"""Caption files: what is read, what is left out and told, what is refused."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from negah.errors import InputError
from negah.images.scenes.words import caption, compositions, held_out
from negah.images.views import View
from negah.language import Tokenizer
from negah.language.captions import Captions, Told, joined


def picture(path, value, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        picture(tmp_path / "a" / f"{i}.png", 40 * i)
    return tmp_path


def table(folder, text):
    path = folder / "captions.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_row_for_each_text_and_a_row_for_each_picture(folder):
    long = Captions.read(table(folder, "file,caption\na/0.png,A house.\na/0.png,One  house\na/1.png,A house.\n"), 8)
    assert list(long.names) == ["a/0.png", "a/1.png"] and list(long.texts) == ["A house.", "One house"]
    assert [its.tolist() for its in long.said] == [[0, 1], [0]]
    assert long[1][0].shape == (3, 8, 8) and int(long[1][0].float().mean()) == 40
    assert long.right().tolist() == [[True, True], [True, False]]
    wide = Captions.read(table(folder, "image,caption1,caption2\na/0.png,A house.,One house\na/1.png,A house.,\n"), 8)
    assert list(wide.texts) == list(long.texts) and [its.tolist() for its in wide.said] == [[0, 1], [0]]


def test_pictures_in_a_zip_and_rows_of_one_value(folder, tmp_path):
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.write(picture(tmp_path / "x.png", 200), "in/x.png")
    path = table(folder, "file,caption,split\nin/x.png,a field,test\na/0.png,a house,train\n")
    assert list(Captions.read(f"{path}:split=test", 8).names) == ["in/x.png"]
    assert set(Captions.read(path, 8).names) == {"in/x.png", "a/0.png"}
    with pytest.raises(InputError, match="no row of .* has split val: there are test, train"):
        Captions.read(f"{path}:split=val", 8)
    with pytest.raises(InputError, match="no column kind: it has file, caption, split"):
        Captions.read(f"{path}:kind=val", 8)


def test_what_is_missing_or_broken_is_left_out_and_told(folder):
    (folder / "a" / "broken.png").write_bytes(b"\x89PNG not really")
    (folder / "a" / "notes.txt").write_text("no picture")
    rows = "a/0.png,yes\na/gone.png,no\na/broken.png,no\na/1.png,\n,no picture\na/notes.txt,no\n"
    found = Captions.read(table(folder, "file,caption\n" + rows), 8)
    assert list(found.names) == ["a/0.png"]
    told = {name.split("/")[-1]: why for name, why in found.failures}
    assert set(told) == {"gone.png", "broken.png", "1.png", "row 6", "notes.txt"}
    assert "is not there" in told["gone.png"] and "row 5: no caption" in told["1.png"]
    assert "row 6: no file" in told["row 6"] and "is no picture" in told["notes.txt"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na/0.png,1\n", "file and caption"),
        ("file,caption\n", "no row with a file and a caption"),
        ("file,caption\na/0.png,\n", "no row with a file and a caption"),
        ("file,caption\nb/0.png,x\nb/1.png,x\n", "none of the 2 pictures .* is there .*b/0.png"),
        ("", r"columns \(none\): file and caption"),
        ("file,caption,caption\na/0.png,x,y\n", "two columns caption: name them caption1"),
        (f"file,caption\n{'a house ' * 80},a/0.png\n", "none of the 1 pictures .* is there"),
    ],
)
def test_files_that_say_nothing_are_refused(folder, text, message):
    with pytest.raises(InputError, match=message):
        Captions.read(table(folder, text), 8)


def test_a_picture_of_two_names_has_the_texts_of_both(folder):
    found = Captions.read(table(folder, "file,caption\na/0.png,one\n./a/0.png,two\na/1.png,three\n"), 8)
    assert list(found.names) == ["a/0.png", "a/1.png"] and list(found.texts) == ["one", "two", "three"]
    assert [its.tolist() for its in found.said] == [[0, 1], [2]]


def test_rows_without_a_value_are_named_among_the_others(folder):
    path = table(folder, "file,caption,split\na/0.png,x,\na/1.png,y,train\n")
    with pytest.raises(InputError, match=r"has split val: there are \(nothing\), train"):
        Captions.read(f"{path}:split=val", 8)


def test_other_names_are_refused(folder):
    with pytest.raises(InputError, match="cannot be read"):
        Captions.read(folder / "none.csv", 8)
    with pytest.raises(InputError, match="no caption file"):
        Captions.read(folder / "a" / "0.png", 8)


def test_strange_texts_are_texts(folder):
    texts = ["\U0001f3e0\U0001f333", "خانه‌ای با استخر", "word " * 10_000]
    rows = "".join(f'a/{i}.png,"{text}"\n' for i, text in enumerate(texts))
    found = Captions.read(table(folder, "file,caption\n" + rows), 8)
    tokens = Tokenizer.train(found.texts, vocabulary=600, length=12)
    ids = tokens(found.texts)
    assert ids.shape == (3, 12) and (ids == tokens.end).any(1).all()


def test_scenes_are_those_that_are_not_held_out_and_join_with_files(folder):
    scenes = Captions.read("scenes:3:5", 24)
    canonical = {caption(what) for what in compositions() if not held_out(what)}
    assert all(scenes.texts[int(its[0])] in canonical for its in scenes.said)
    assert torch.equal(scenes[1][0], Captions.read("scenes:3:5", 24)[1][0])
    both = joined([scenes, Captions.read(table(folder, "file,caption\na/0.png,A house.\n"), 24)])
    assert len(both) == 4 and both.names[3] == "a/0.png" and both.texts[int(both.said[3][0])] == "A house."
    assert torch.equal(both[1][0], scenes[1][0]) and both[3][0].max() == 0


def test_batches_hold_each_text_of_a_picture_in_turn_and_its_number(folder):
    pairs = Captions.read(table(folder, "file,caption1,caption2\na/0.png,one,two\na/1.png,two,three\n"), 8)
    tokens = Tokenizer.train(pairs.texts, vocabulary=600, length=8)
    told = Told(pairs, tokens, View(8, scale=(1, 1)))
    generator, seen = torch.Generator().manual_seed(0), set()
    for _ in range(20):
        images, ids, numbers = told([pairs[0], pairs[1]], generator)
        assert images.shape == (2, 3, 8, 8)
        assert [tokens.text(row[1:]) for row in ids] == [pairs.texts[int(n)] for n in numbers]
        seen |= {(row, pairs.texts[int(n)]) for row, n in enumerate(numbers)}
    assert seen == {(0, "one"), (0, "two"), (1, "two"), (1, "three")}
    assert len(Told(pairs, tokens, View(8), numbered=False)([pairs[0]], generator)) == 2
