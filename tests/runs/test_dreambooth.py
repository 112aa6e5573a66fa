"""`dreambooth`: what comes out can be used and says when to stop; stopped and continued it is the same run."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from negah.diffusion.generate import generate
from negah.diffusion.load import load
from negah.errors import InputError, OutputError, TrainingError
from negah.runs import dreambooth as runs
from negah.runs import dreambooth_looks as looks
from negah.runs.dreambooth import Options, dreambooth
from negah.runs.dreambooth_looks import verdict, with_losses
from negah.runs.dreambooth_read import LARGEST, read_scores
from negah.train import checkpoint

pytest.importorskip("diffusers")

QUICK = Options(
    class_word="house", token="<new>", steps=4, every=2, batch=2, class_images=3, samples=2, sampler_steps=2, lr=1e-2,
    prompts=("a {}", "a {} beside a street"),
)  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in "cadb":
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


def run(photos: Path, pipeline: Path, out: Path, options: Options = QUICK, **more):
    return dreambooth([photos], out, str(pipeline), options, **more)


@pytest.fixture(scope="module")
def done(photos, pipeline, tmp_path_factory):
    out, told = tmp_path_factory.mktemp("run"), []
    return run(photos, pipeline, out, say=told.append), out, told


def test_a_run_leaves_weights_pictures_figures_and_a_page(done, pipeline):
    result, out, told = done
    assert [row["step"] for row in result.scores] == [0, 2, 4] and result.failures == []
    assert result.images == {"instance": 4, "kept aside": 0, "class": 3} and "other noise" in result.held_out
    assert "prior" not in result.scores[0] and {"instance", "prior"} <= result.scores[1].keys()
    assert result.scores[0]["class kept"] == pytest.approx(1) and result.scores[2]["class kept"] < 1
    assert [line.partition(":")[0] for line in told] == ["token <new>", "step 0", "step 2", "step 4"]
    for name in ("class/00002.png", "samples/step-00000.png", "samples/step-00004.png", "checkpoint.pt", "run.json",
                 "steps/00002/pytorch_lora_weights.safetensors", "steps/00004/learned_embeds.safetensors"):  # fmt: skip
        assert (out / name).is_file(), name
    best = max(result.scores[1:], key=lambda row: row["balance"])
    assert result.step == best["step"] and result.model == out / "pytorch_lora_weights.safetensors"
    kept, looked_at = load_file(result.model), load_file(out / "steps" / f"{result.step:05}" / result.model.name)
    assert kept.keys() == looked_at.keys() and all(torch.equal(kept[name], looked_at[name]) for name in kept)
    scores = json.loads((out / "scores.json").read_text())
    assert scores["reason"] == result.reason and len(scores["history"]) == 2
    text = result.report.read_text()
    for part in (f"Step {result.step}:", "&lt;new&gt;", "held-out loss", "data:image/png", "Settings"):
        assert part in text, part


def test_what_was_learned_is_drawn_again_from_the_files(done, pipeline):
    result, out, _ = done
    model = load(str(pipeline), lora=result.model)
    seeds = [QUICK.seed * looks.SEEDS + looks.COMPARED + i for i in range(2)]
    drawn = generate(
        model, ["a <new> house"] * 2, seeds, sampler=QUICK.sampler, steps=QUICK.sampler_steps, scale=QUICK.scale
    )  # fmt: skip
    sheet = np.asarray(Image.open(looks.sheet_path(out, result.step)))
    cell, line = looks.CELL, looks.LINE
    for i, picture in enumerate(looks.eight_bit(drawn)):
        expected = np.asarray(Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((cell, cell), 3))
        x, y = i * (cell + 2), (cell + line) + line
        assert np.abs(sheet[y : y + cell, x : x + cell].astype(int) - expected).max() <= 1


def test_the_whole_model_becomes_a_folder(photos, pipeline, tmp_path):
    options = replace(QUICK, method="full", train_text=True, token=None, prior_weight=0.0, lr=1e-3)
    result = run(photos, pipeline, tmp_path, options)
    assert result.model == tmp_path / "model" and result.ranking and "weakest of" in result.why
    assert not (tmp_path / "class").exists() and "prior" not in result.scores[-1]
    trained, before = load(str(result.model)), load(str(pipeline))
    for part in ("unet", "text"):
        ours, theirs = getattr(trained, part).state_dict(), getattr(before, part).state_dict()
        assert any(not torch.equal(ours[name], theirs[name]) for name in theirs), part


def test_a_new_word_is_in_the_folder_of_the_whole_model(photos, pipeline, tmp_path):
    model = load(str(run(photos, pipeline, tmp_path, replace(QUICK, method="full", prior_weight=0.0)).model))
    learned, start = model.encode_prompts(["a <new> house"]), load(str(pipeline)).encode_prompts(["a house house"])
    assert "<new>" in model.tokenizer.get_vocab() and 1e-5 < (learned - start).abs().max() < 1


def test_stopped_and_continued_is_the_same_run(done, photos, pipeline, tmp_path):
    def stop(line: str) -> None:
        if line.startswith("step 2"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(photos, pipeline, tmp_path, say=stop)
    assert load(str(pipeline), lora=tmp_path / "pytorch_lora_weights.safetensors")  # usable
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "class").iterdir()}
    told: list[str] = []
    result = run(photos, pipeline, tmp_path, say=told.append)
    assert told[0].startswith("going on") and result.scores == done[0].scores
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "class").iterdir()} == stamps
    one, other = (checkpoint.load(out / "checkpoint.pt")["objective"] for out in (done[1], tmp_path))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_missing_class_picture_is_drawn_again_and_others_are_not_mixed_in(done, photos, pipeline, tmp_path):
    _, out, _ = done
    lost = out / "class" / "00001.png"
    was = lost.read_bytes()
    lost.unlink()
    run(photos, pipeline, out)
    assert lost.read_bytes() == was
    options = replace(QUICK, seed=1)
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "made.json").write_bytes((out / "class" / "made.json").read_bytes())
    with pytest.raises(OutputError, match="another seed"):
        run(photos, pipeline, tmp_path, options)
    with pytest.raises(OutputError, match="holds another run: seed 0"):
        run(photos, pipeline, out, options)


def test_from_eight_pictures_on_some_are_kept_aside(pipeline, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    result = run(tmp_path, pipeline, tmp_path / "out", replace(QUICK, steps=2))
    assert result.images == {"instance": 6, "kept aside": 2, "class": 3} and "2 of 8" in result.held_out


# What goes wrong


def test_a_broken_picture_is_left_out_and_told(photos, pipeline, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in photos.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "b.png").write_bytes((photos / "b.png").read_bytes()[:100])
    result = run(folder, pipeline, tmp_path / "out", replace(QUICK, steps=2))
    assert [Path(name).name for name, _ in result.failures] == ["b.png"] and result.images["instance"] == 3
    for path in folder.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(InputError, match="no picture to be used"):
        run(folder, pipeline, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"class_word": " "}, "--class-word is empty"), ({"token": "house"}, "is a word of this model already"),
        ({"steps": 0}, "--steps 0"), ({"samples": 1}, "--samples 1"), ({"prompts": ("a house",)}, "needs {}"),
        ({"prior_weight": -1.0}, "--prior-weight"), ({"lr": 0.0}, "--lr 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_anything_is_made(photos, pipeline, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        run(photos, pipeline, tmp_path / "out", replace(QUICK, **change))
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_no_number_names_step_and_pictures(photos, pipeline, tmp_path):
    with pytest.raises(TrainingError, match=r"is nan at step \d.*\.png"):
        run(photos, pipeline, tmp_path, replace(QUICK, lr=1e30, steps=8, every=8))


def test_too_little_memory_is_told_with_advice(photos, pipeline, tmp_path, monkeypatch):
    def full(*args, **more):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(runs, "fit", full)
    with pytest.raises(InputError, match="out of memory .*--batch 1, --precision bf16"):
        run(photos, pipeline, tmp_path)


# The step to stop at


def look(step: int, fidelity: float, kept: float, held_out: float) -> dict[str, float]:
    return {
        "step": step, "fidelity": fidelity, "class kept": kept, "balance": fidelity + kept, "held out loss": held_out
    }  # fmt: skip


def test_the_step_to_stop_at_is_where_fidelity_no_longer_pays_for_the_class():
    rows = [look(0, 0.3, 1, 0.5), look(10, 0.6, 0.95, 0.4), look(20, 0.8, 0.9, 0.45), look(30, 0.85, 0.6, 0.6)]
    step, reason, notes = verdict(rows)
    assert step == 20 and "+0.050" in reason and "-0.300" in reason and "0.800 + 0.900" in reason
    assert notes == ["the held-out loss is least at step 10 (0.4000)"]
    step, _, notes = verdict([look(0, 0.9, 1, 0.5), look(10, 0.6, 0.9, 0.4)])
    assert step == 10 and "no look is better than the model before" in notes[0]
    assert verdict([rows[0], rows[1], rows[2]])[2][0] == "the best look is the last: more steps may do more"


def test_losses_of_a_look_are_those_since_the_last_one():
    history = [{"step": s, "instance": v, "prior": 1.0} for s, v in ((1, 4.0), (2, 2.0), (3, 1.0), (4, 3.0))]
    rows = with_losses([look(2, 0, 0, 0), look(4, 0, 0, 0)], history)
    assert [row["instance"] for row in rows] == [3, 2] and list(rows[0])[:3] == ["step", "instance", "prior"]


# Read back


def test_scores_are_read_back_as_they_were(done):
    result, out, _ = done
    found, history = read_scores(out / "scores.json")
    assert (found.scores, found.real, found.step, found.token) == (result.scores, result.real, result.step, "<new>")
    assert found.notes == result.notes and [row["step"] for row in history] == [2, 4]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scores": 1}, "no list of scores"), ({"scores": [{"step": 0}]}, "lacks one of step, held out loss"),
        ({"step": 3}, "none of those that it looked at"), ({"token": 5}, "token is not a text"),
        ({"history": [{"step": 1, "instance": 1.0}, {"step": 2}]}, "not alike"),
        ({"history": [{"step": 10**400}]}, "no row of numbers"),
    ],
)  # fmt: skip
def test_scores_of_another_kind_say_what_is_wrong(done, tmp_path, change, message):
    content = json.loads((done[1] / "scores.json").read_text())
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(content | change))
    with pytest.raises(InputError, match=message):
        read_scores(path)


def test_scores_that_are_no_json_too_large_or_of_a_run_under_way(done, tmp_path):
    path = tmp_path / "scores.json"
    content = json.loads((done[1] / "scores.json").read_text())
    for text, message in (
        ("[" * 100_000, "cannot be read as JSON"), ("{NaN}", "cannot be read as JSON"),
        (" " * LARGEST + "{}", "MB"),
        (json.dumps({name: content[name] for name in ("scores", "history")}), "has not ended"),
    ):  # fmt: skip
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            read_scores(path)


def test_each_step_is_told(photos, pipeline, tmp_path):
    told, stages = [], []
    run(photos, pipeline, tmp_path, replace(QUICK, steps=2), each=lambda *step: told.append(step),
        progress=lambda *stage: stages.append(stage))  # fmt: skip
    assert told == [(1, 2), (2, 2)]
    drawn = [stage for stage in stages if stage[0] == "class pictures"]
    assert drawn[0] == ("class pictures", 1, 3) and drawn[-1] == ("class pictures", 3, 3)
