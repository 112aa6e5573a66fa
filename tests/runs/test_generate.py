"""`negah generate` from prompts to files: their names, what they tell, and what cannot be drawn from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from negah.diffusion.classifier import NoisyClassifier
from negah.diffusion.load import load
from negah.errors import InputError, OutputError, WeightsError
from negah.runs.generate import Options, imagine, made_with

FEW = Options(steps=3)
PROMPTS = ["a house", "a red roof"]


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def drawn(out: Path) -> dict[str, np.ndarray]:
    return {path.name: pixels(path) for path in sorted(out.glob("*.png"))}


@pytest.fixture(scope="module")
def model(pipeline) -> str:
    return str(pipeline)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A picture of the model's size, one twice as wide as high, and masks for them."""
    generator = np.random.default_rng(0)
    hole = np.zeros((32, 32), np.uint8)
    hole[8:20, 12:27] = 255
    for name, values in {
        "start": generator.integers(0, 256, (32, 32, 3), np.uint8),
        "wide": generator.integers(0, 256, (32, 64, 3), np.uint8),
        "hole": hole, "large": hole.repeat(2, 0).repeat(2, 1), "black": 0 * hole,
    }.items():  # fmt: skip
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    return tmp_path


# What is written


def test_each_prompt_and_seed_has_a_file_that_tells_how_it_was_made(model, tmp_path):
    told = []
    options = replace(FEW, count=2, seed=7, sampler="euler", guidance=3.0, negative="trees", batch=3, grid=True)
    result = imagine(PROMPTS, tmp_path / "out", model=model, options=options, progress=lambda *n: told.append(n))
    names = ["000-000007.png", "000-000008.png", "001-000007.png", "001-000008.png"]
    assert [(Path(path).name, prompt, seed) for path, prompt, seed in result.pictures] == [
        (name, PROMPTS[i // 2], 7 + i % 2) for i, name in enumerate(names)
    ]
    about = made_with(tmp_path / "out" / "001-000008.png")
    for name, value in {
        "prompt": "a red roof", "seed": 8, "model": model, "sampler": "euler", "steps": 3, "guidance": 3.0,
        "negative": "trees",
    }.items():  # fmt: skip
        assert about[name] == value, name

    sheet = pixels(tmp_path / "out" / "grid.png")
    assert sheet.shape == (64, 64, 3)  # a row for each prompt
    assert np.array_equal(sheet[32:, 32:], pixels(tmp_path / "out" / names[3]))
    run = json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))
    assert run["arguments"]["prompts"] == PROMPTS and [row[2] for row in run["pictures"]] == [7, 8, 7, 8]
    assert run["versions"]["torch"] and run["hardware"]
    assert told == [("steps", k + 1, 6) for k in range(6)]  # two batches of three steps


def test_what_a_file_tells_makes_it_again(model, tmp_path):
    options = replace(FEW, seed=5, rescale=0.5, interval=(0.1, 9.0), sampler="dpmpp-2m-sde", spacing="karras")
    imagine(["two houses"], tmp_path / "one", model=model, options=options)
    about = made_with(tmp_path / "one" / "000-000005.png")
    interval = tuple(about["interval"])
    fields = {name: about[name] for name in ("seed", "steps", "rescale", "sampler", "spacing", "guidance")}
    imagine([about["prompt"]], tmp_path / "two", model=about["model"], options=Options(**fields, interval=interval))
    assert np.array_equal(pixels(tmp_path / "one" / "000-000005.png"), pixels(tmp_path / "two" / "000-000005.png"))


@pytest.mark.parametrize("sampler", ["dpmpp-2m", "euler-ancestral"])
def test_pictures_do_not_depend_on_the_batch_or_what_is_beside_them(model, tmp_path, sampler):
    options = replace(FEW, count=2, sampler=sampler)
    for batch in (1, 2, 4):
        imagine(PROMPTS, tmp_path / str(batch), model=model, options=replace(options, batch=batch))
    one = drawn(tmp_path / "1")
    assert len(one) == 4
    for batch in ("2", "4"):
        for name, values in drawn(tmp_path / batch).items():
            assert np.abs(values - one[name]).max() <= 1, (batch, name)
    alone = replace(options, count=1, seed=1)
    imagine(PROMPTS[:1], tmp_path / "alone", model=model, options=alone)
    assert np.abs(drawn(tmp_path / "alone")["000-000001.png"] - one["000-000001.png"]).max() <= 1
    assert np.abs(one["000-000000.png"] - one["000-000001.png"]).mean() > 1


def test_a_run_that_is_stopped_keeps_what_it_had(model, tmp_path):
    def stop(stage, done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        imagine(PROMPTS, tmp_path / "out", model=model, options=replace(FEW, batch=1), progress=stop)
    assert list(drawn(tmp_path / "out")) == ["000-000000.png"]


def test_previews_are_written_on_the_way(model, tmp_path):
    seen = []

    def watch(stage, done, total):
        path = tmp_path / "preview.png"
        seen.append(pixels(path) if path.is_file() else None)

    imagine(PROMPTS, tmp_path, model=model, options=replace(FEW, steps=5, preview=2), progress=watch)
    assert seen[1] is None and seen[2].shape == (32, 64, 3)  # of both, side by side
    assert not np.array_equal(seen[2], seen[4])


def test_every_option_of_sampling_and_guidance_reaches_the_picture(model, tmp_path):
    plain = replace(FEW, guidance=9.0)
    made = {}
    for name, how in {
        "plain": {}, "sampler": {"sampler": "euler"}, "steps": {"steps": 4}, "spacing": {"spacing": "karras"},
        "guidance": {"guidance": 4.0}, "negative": {"negative": "trees"}, "interval": {"interval": (0.0, 2.0)},
        "rescale": {"rescale": 1.0}, "plus_plus": {"plus_plus": True, "guidance": 0.6}, "apg": {"apg": 0.0},
    }.items():  # fmt: skip
        imagine(["a house"], tmp_path / name, model=model, options=replace(plain, **how))
        made[name] = pixels(tmp_path / name / "000-000000.png")
    for name, values in made.items():
        for other in made.keys() - {name}:
            assert not np.array_equal(values, made[other]), f"{name} and {other} draw the same"


def test_pictures_may_be_of_another_size_and_in_bf16(model, tmp_path):
    imagine(["a house"], tmp_path / "a", model=model, options=replace(FEW, size=(16, 24)))
    assert pixels(tmp_path / "a" / "000-000000.png").shape == (16, 24, 3)
    for precision in ("fp32", "bf16"):
        imagine(["a house"], tmp_path / precision, model=model, options=replace(FEW, precision=precision))
    full, half = (pixels(tmp_path / precision / "000-000000.png") for precision in ("fp32", "bf16"))
    assert 0 < np.abs(full - half).mean() < 5


# From pictures


def test_what_is_not_under_the_mask_stays_to_the_pixel(model, pictures):
    hole = pixels(pictures / "hole.png") > 0
    start = pixels(pictures / "start.png")
    for mask in ("hole", "large"):  # one of another size is made as large
        options = replace(FEW, start=str(pictures / "start.png"), mask=str(pictures / f"{mask}.png"), count=2)
        imagine(PROMPTS[:1], pictures / mask, model=model, options=options)
        for values in drawn(pictures / mask).values():
            assert np.array_equal(values[~hole], start[~hole])
            assert np.abs(values[hole] - start[hole]).mean() > 10
    assert made_with(pictures / "hole" / "000-000001.png")["mask"] == str(pictures / "hole.png")


def test_a_start_changes_as_much_as_strength_says(model, pictures):
    start = str(pictures / "wide.png")
    made = []
    for strength in (0.05, 1.0):
        options = replace(FEW, steps=20, start=start, strength=strength, guidance=1.0)
        imagine(PROMPTS[:1], pictures / str(strength), model=model, options=options)
        made.append(pixels(pictures / str(strength) / "000-000000.png"))
    imagine(PROMPTS[:1], pictures / "none", model=model, options=replace(FEW, steps=20, guidance=1.0))
    without = pixels(pictures / "none" / "000-000000.png")
    near, far = (np.abs(picture - without).mean() for picture in made[::-1])
    assert near < 0.3 * far, (near, far)  # at 1 it is next to what is drawn without it


@pytest.mark.parametrize(("how", "said"), [
    ({"mask": "hole.png"}, "--mask says where a picture may change: give it as --start"),
    ({"start": "start.png", "mask": "black.png"}, "black.png is black all over"),
    ({"start": "wide.png", "mask": "hole.png"}, "hole.png is 32 x 32 px and --start 64 x 32: .* same proportions"),
    ({"start": "broken.png"}, "broken.png"), ({"start": "none.png"}, "none.png"),
    ({"start": "start.png", "mask": "broken.png"}, "broken.png"),
    ({"start": "start.png", "size": (16, 24)}, "give --size two equal numbers"),
    ({"start": "start.png", "size": (18, 18)}, "18 x 18 px: sides of this model"),
    ({"start": "start.png", "size": (0, 0)}, "at least 1 px"),
    ({"start": "start.png", "strength": 0.0}, "strength 0.0"),
    ({"size": (18, 16)}, "16 x 18 px: sides of this model's pictures are multiples of 4 px"),
    ({"size": (-4, 16)}, "16 x -4 px"), ({"size": (0, 0)}, "0 x 0 px"),
    ({"steps": 0}, "--steps 0: give 1 or more"), ({"steps": 1001}, "1001 steps: give 1 to 1000"),
    ({"count": 0}, "--count 0"), ({"batch": -1}, "--batch -1"), ({"seed": -1}, "--seed -1"),
    ({"rescale": 1.5}, "--rescale 1.5"), ({"interval": (5.0, 1.0)}, "--interval 5.0 1.0"),
    ({"plus_plus": True}, "--plus-plus wants --guidance from 0 to 1"),
    ({"preview": -1}, "--preview -1"),
])  # fmt: skip
def test_what_cannot_be_drawn_is_one_line_and_leaves_no_trace(model, pictures, how, said):
    placed = {name: str(pictures / how[name]) for name in ("start", "mask") if how.get(name)}
    options = replace(FEW, **{**how, **placed})
    with pytest.raises(InputError, match=said) as caught:
        imagine(PROMPTS, pictures / "out", model=model, options=options)
    assert "\n" not in str(caught.value) and not (pictures / "out").exists()


@pytest.mark.parametrize("prompts", [[], [""], ["a house", "  "]])
def test_no_words_are_refused(model, tmp_path, prompts):
    with pytest.raises(InputError, match="give words to draw"):
        imagine(prompts, tmp_path / "out", model=model, options=FEW)


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_loaded(model, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="is a file; give another --out"):
        imagine(PROMPTS, tmp_path / "file" / "out", model="none/such")


def test_a_picture_that_was_not_made_here_does_not_tell(pictures):
    for name in ("start.png", "broken.png"):
        with pytest.raises(InputError, match=f"{name} does not tell how it was made"):
            made_with(pictures / name)
    with pytest.raises(InputError, match=r"none\.png is not there"):
        made_with(pictures / "none.png")


# Further guidance


def test_a_label_pulls_to_its_class(model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    with pytest.raises(WeightsError, match="has no classifier/"):
        imagine(PROMPTS, tmp_path / "out", model=str(folder), options=replace(FEW, label="roof"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = NoisyClassifier(["roof", "pool"], widths=(8, 16))
    net.save(folder / "classifier")
    with pytest.raises(InputError, match="--label 'tree': the classifier knows roof, pool"):
        imagine(PROMPTS, tmp_path / "out", model=str(folder), options=replace(FEW, label="tree"))

    net, drawer = NoisyClassifier.load(folder / "classifier"), load(folder)
    sure = {}
    for label in (None, "roof", "pool"):
        out = tmp_path / str(label)
        # Each is pulled by itself: in one batch or in two.
        for batch in (1, 2):
            options = replace(FEW, steps=6, label=label, label_scale=20.0, batch=batch)
            imagine(PROMPTS, out / str(batch), model=str(folder), options=options)
        one, two = drawn(out / "1"), drawn(out / "2")
        assert all(np.abs(one[name] - two[name]).max() <= 1 for name in one)
        images = torch.tensor(np.stack(list(one.values()))).permute(0, 3, 1, 2) / 255
        sure[label] = net.log_prob(drawer.encode(images), torch.tensor(0.0), torch.zeros(2, dtype=torch.long)).mean()
    assert sure["pool"] < sure[None] < sure["roof"]


@pytest.mark.parametrize("how", [{"towards": "a house"}, {"panels": 5.0}])
def test_models_of_other_rooms_guide_too(model, tmp_path, how):
    for name, options in (("without", FEW), ("with", replace(FEW, **how))):
        imagine(PROMPTS[:1], tmp_path / name, model=model, options=options)
    made, plain = (drawn(tmp_path / name)["000-000000.png"] for name in ("with", "without"))
    assert np.abs(made - plain).max() > 1
