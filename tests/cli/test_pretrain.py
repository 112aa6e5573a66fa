"""`negah pretrain` as it is typed: what it prints, its exit status, and what is left after it was killed."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin
from safetensors.torch import load_file

from negah.cli import main as cli
from negah.train import checkpoint

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
METHOD = ("simclr", "--backbone", "resnet10-cifar", "--size", "32", "--batch", "8", "--seed", "3")

# `negah` in which something happens as file number `at` is flushed to the disk: written, but not yet renamed.
FLUSHING = """
import os, signal, sys
from negah.cli.main import main
at, what, flush, seen = int(sys.argv[1]), sys.argv[2], os.fsync, []
def fsync(file):
    if os.path.isdir(f"/proc/self/fd/{file}") or len(seen.append(1) or seen) != at:
        return flush(file)
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "term": signal.SIGTERM}[what])
os.fsync = fsync
sys.exit(main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two classes of 12 pictures."""
    root = tmp_path_factory.mktemp("pictures")
    for label in ("day", "night"):
        (root / label).mkdir()
        for i in range(12):
            (root / label / f"{i:02}.png").write_bytes(png(i, 200 if label == "day" else 40))
    return root


def png(seed: int, level: int) -> bytes:
    pixels = np.random.default_rng(seed).normal(level, 30, (32, 32, 3)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def words(data: Path | str, out: Path | str, *more: str, epochs: int = 2) -> list[str]:
    return ["pretrain", *METHOD, "--epochs", str(epochs), "--data", str(data), "--out", str(out), *more]


def one_line(capsys) -> str:
    """The only line on stderr; nothing on stdout."""
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("negah: "), (out, err)
    return err


def weights(out: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(out / "checkpoint.pt")["objective"]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    assert cli.main(words(folder, out)) == 0
    return out


# What it prints


def test_a_table_for_people_and_lines_on_the_way(folder, tmp_path, capsys):
    assert cli.main(words(folder, tmp_path, "--score", str(folder), "--score-every", "1")) == 0
    out, err = capsys.readouterr()
    for part in (
        "simclr",
        "tiles",
        "24",
        "steps",
        "6",
        "kNN accuracy, k 200",
        "linear accuracy",
        "backbone.safetensors",
    ):
        assert part in out
    lines = err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert all(str(tmp_path / "maps") in line and "kNN (k 20) " in line for line in lines)


def test_json_for_machines(folder, tmp_path, capsys):
    assert cli.main(words(folder, tmp_path, "--json", epochs=1)) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == "" and found["tiles"] == 24 and found["steps"] == 3 and found["failures"] == []
    assert found["backbone"] == str(tmp_path / "backbone.safetensors")


def test_a_corrupt_picture_is_named_and_the_rest_is_learnt_from(folder, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for path in folder.rglob("*.png"):
        (tmp_path / "in" / f"{path.parent.name}{path.name}").write_bytes(path.read_bytes())
    (tmp_path / "in" / "day03.png").write_bytes(png(3, 200)[:200])
    assert cli.main(words(tmp_path / "in", tmp_path / "out", epochs=1)) == 3
    out, err = capsys.readouterr()
    assert "23" in out and (tmp_path / "out" / "backbone.safetensors").exists()
    assert "left out" in err and "day03.png" in err.splitlines()[-1]


def test_nan_in_a_raster_is_no_data(tmp_path, capsys):
    pixels = np.random.default_rng(0).random((3, 96, 96), np.float32)
    pixels[:, :32, :32], pixels[:, 40, 40], pixels[0, 70, 70] = np.nan, np.nan, np.inf
    place = {"crs": "EPSG:32633", "transform": from_origin(320_000, 5_400_000, 0.3, 0.3)}
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", width=96, height=96, count=3, dtype="float32", **place
    ) as file:
        file.write(pixels)
    assert cli.main(words(tmp_path / "a.tif", tmp_path / "out", "--json", epochs=1)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tiles"] == 8 and np.isfinite(found["loss"])  # nine windows, of which one is empty


# What cannot be done


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--batch", "1"], "give --batch 2 or more"),
        (["--batch", "64"], "24 pictures do not fill a batch of 64: give --batch 24 or less"),
        (["--data", "{tmp}/empty"], "no pictures in"),
        (["--data", "{tmp}/absent"], "cannot be read: No such file"),
        (["--data", "{tmp}/one"], "one picture is not enough to learn from"),
        (["--score", "{tmp}/one"], "labels need a folder for each class"),
        (["--score", "{tmp}/two"], "one picture of cat only"),
        (["--backbone", "resnet99"], "there is no backbone resnet99"),
        (["--out", "{tmp}/one/cat/0.png"], "cannot write"),
        (["--lr", "1e30", "--epochs", "5"], "loss is nan at step"),
        (["--epochs", "0"], "--epochs 0: give 1 or more"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(folder, tmp_path, capsys, more, told):
    for place in ("empty", "one/cat", "two/cat", "two/dog"):
        (tmp_path / place).mkdir(parents=True)
        if place != "empty":
            (tmp_path / place / "0.png").write_bytes(png(0, 90))
    for i in range(9):
        (tmp_path / "two" / "dog" / f"{i}.png").write_bytes(png(i, 90))
    given = words(folder, tmp_path / "out")
    for name, value in zip(more[::2], more[1::2]):
        given += [name, value] if name not in given else []
        given[given.index(name) + 1] = value.format(tmp=tmp_path)
    assert cli.main(given) == 2
    assert told in one_line(capsys)
    assert not (tmp_path / "out").exists() or "loss" in told


def test_pictures_behind_a_loss_that_is_not_finite_are_named(folder, tmp_path, capsys):
    assert cli.main(words(folder, tmp_path, "--lr", "1e30", epochs=5)) == 2
    assert str(folder / "day") in one_line(capsys)


def test_the_folder_of_another_run_is_refused(folder, undisturbed, capsys):
    before = (undisturbed / "checkpoint.pt").read_bytes()
    assert cli.main(words(folder, undisturbed, epochs=3)) == 2
    assert "holds another run: epochs 2 (now 3); give another --out" in one_line(capsys)
    assert (undisturbed / "checkpoint.pt").read_bytes() == before


# What is left when it is stopped


def shell(*more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", FLUSHING, *more], capture_output=True, text=True, env=ENVIRONMENT, timeout=600
    )


def test_sigterm_saves_and_exits_143_and_the_same_command_goes_on(folder, undisturbed, tmp_path):
    stopped = shell("1", "term", *words(folder, tmp_path))  # during the first checkpoint; the next step is finished
    assert stopped.returncode == 143
    assert "SIGTERM: stopped after step 4 of 6" in stopped.stderr and "Traceback" not in stopped.stderr
    assert checkpoint.load(tmp_path / "checkpoint.pt")["step"] == 4
    assert cli.main(words(folder, tmp_path)) == 0
    assert same(weights(tmp_path), weights(undisturbed))
    # By tensors: safetensors writes the entries of a file's metadata in any order.
    assert same(*(load_file(out / "backbone.safetensors") for out in (tmp_path, undisturbed)))


def test_a_signal_to_the_whole_group_does_not_take_the_workers_first(folder, tmp_path):
    """As a batch system and a terminal send it."""
    run = subprocess.Popen(
        [sys.executable, "-m", "negah", *words(folder, tmp_path, "--workers", "1", "--accumulate", "2", epochs=400)],
        stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True,
    )  # fmt: skip
    try:
        waited = time.monotonic() + 300
        while not (tmp_path / "checkpoint.pt").exists() and time.monotonic() < waited:
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGTERM)
        _, err = run.communicate(timeout=300)
    finally:
        run.kill()
    assert run.returncode == 143 and "SIGTERM: stopped after step" in err and "worker" not in err


def test_kill_9_while_saving_leaves_the_last_checkpoint_to_go_on_from(folder, undisturbed, tmp_path):
    killed = shell("2", "kill", *words(folder, tmp_path))
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "checkpoint.pt.partial").exists()  # the second one was being written
    assert checkpoint.load(tmp_path / "checkpoint.pt")["step"] == 3
    assert cli.main(words(folder, tmp_path)) == 0
    assert same(weights(tmp_path), weights(undisturbed))


def test_a_full_disk_is_a_line_and_keeps_the_last_checkpoint(folder, undisturbed, tmp_path, capsys, monkeypatch):
    saves = []

    def full(content, file):
        saves.append(1)
        if len(saves) == 2:
            file.write(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(content, file)

    save = torch.save
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert cli.main(words(folder, tmp_path)) == 2
    told = capsys.readouterr().err.splitlines()
    assert "cannot write checkpoint" in told[-1] and "No space left on device" in told[-1] and "intact" in told[-1]
    assert sorted(path.name for path in tmp_path.iterdir() if "checkpoint" in path.name) == ["checkpoint.pt"]
    assert checkpoint.load(tmp_path / "checkpoint.pt")["step"] == 3
    assert cli.main(words(folder, tmp_path)) == 0
    assert same(weights(tmp_path), weights(undisturbed))


# From words to pictures


def test_diffusion_takes_no_backbone_and_others_need_one(folder, tmp_path, capsys):
    table = tmp_path / "captions.csv"
    rows = [f"{path},a {path.parent.name}" for path in sorted(folder.rglob("*.png"))]
    table.write_text("\n".join(["file,caption", *rows]))
    command = ["pretrain", "diffusion", "--data", str(table), "--size", "16", "--batch", "8", "--epochs", "1"]
    command += ["--autoencoder-steps", "2", "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--backbone", "resnet18"]) == 2
    assert "--backbone is not for diffusion" in capsys.readouterr().err
    assert cli.main(["pretrain", "dino", "--data", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "--backbone is missing" in capsys.readouterr().err
    assert cli.main([*command, "--debug"]) == 0
    assert "different texts" in capsys.readouterr().out
    assert (tmp_path / "out" / "model" / "model_index.json").is_file()


# Several processes


def test_two_processes_with_parts_of_the_weights_each_print_once(folder, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "negah", *words(folder, tmp_path, "--score", str(folder), "--shard")],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("linear accuracy") == 1 and done.stderr.count("epoch 2 of 2") == 1
    assert json.loads((tmp_path / "run.json").read_text())["processes"] == 2
    assert len(list((tmp_path / "maps").iterdir())) == 1
