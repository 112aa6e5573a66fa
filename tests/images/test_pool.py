import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin

from negah.errors import InputError
from negah.images.pool import Pool, folder_labels
from negah.images.scenes import render
from negah.images.scenes.town import mix
from negah.images.views import Views, simclr_cifar
from negah.train import Batches


def picture(seed: int, height: int = 20, width: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(seed: int, height: int = 20, width: int = 20, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(seed, height, width)).save(file, kind)
    return file.getvalue()


def tile(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)


def write_tiff(path: Path, array: np.ndarray, *, located: bool = True, **more) -> Path:
    place = {"crs": "EPSG:32633", "transform": from_origin(320_000, 5_400_000, 0.3, 0.3)} if located else {}
    height, width, count = array.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=array.dtype, **place, **more
    ) as file:
        file.write(np.moveaxis(array, -1, 0))
    return path


# What becomes of pictures


def test_folders_and_archives_become_tiles_with_the_names_of_their_pictures(tmp_path):
    folder = tmp_path / "folder" / "deep"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(encoded(1))
    (folder / "b.jpg").write_bytes(encoded(2, kind="JPEG"))
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("cat/c.png", encoded(3))
    with tarfile.open(tmp_path / "d.tar.gz", "w:gz") as archive:
        for seed in (4, 5):
            info = tarfile.TarInfo(f"dog/{seed}.png")
            info.size = len(encoded(seed))
            archive.addfile(info, io.BytesIO(encoded(seed)))
    told: list[tuple[str, int, int]] = []
    pool = Pool([tmp_path], 20, threads=2, progress=lambda *args: told.append(args))
    names = ["c.zip/cat/c.png", "d.tar.gz/dog/4.png", "d.tar.gz/dog/5.png", "folder/deep/a.png", "folder/deep/b.jpg"]
    assert pool.names == [str(tmp_path / name) for name in names]
    assert len(pool) == 5 and not pool.failures and not pool.duplicates and not pool.skipped
    for index, seed in ((0, 3), (1, 4), (2, 5), (3, 1)):
        assert pool[index].dtype == torch.uint8 and torch.equal(pool[index], tile(picture(seed)))
    assert told == [("pictures", i, 5) for i in range(1, 6)]
    assert len(list(pool)) == 5
    assert torch.equal(pool[-2], pool[3])


def test_a_picture_gives_its_middle_square_resized(tmp_path):
    wide = np.repeat(np.arange(0, 180, 2, dtype=np.uint8)[None, :, None], 30, 0).repeat(3, 2)  # 30 x 90
    Image.fromarray(wide).save(tmp_path / "a.png")
    pool = Pool([tmp_path], 10)
    expected = wide[:, 30:60].reshape(10, 3, 10, 3, 3).mean((1, 3)).round()
    assert torch.equal(pool[0], tile(expected.astype(np.uint8)))
    assert Pool([tmp_path], 40)[0].shape == (3, 40, 40)


def test_a_georeferenced_raster_is_cut_into_windows(tmp_path):
    array = picture(0, 50, 64)
    path = write_tiff(tmp_path / "town.tif", array)
    pool = Pool([path], 25)
    assert pool.names == [f"{path}@{col},{row}" for row in (0, 25) for col in (0, 25, 39)]
    for name, found in zip(pool.names, pool):
        col, row = map(int, name.rpartition("@")[2].split(","))
        assert torch.equal(found, tile(array[row : row + 25, col : col + 25]))
    assert len(Pool([path], 25, cut="none")) == 1
    assert len(Pool([path], 60)) == 1  # shorter than a window
    plain = write_tiff(tmp_path / "plain.tif", array, located=False)
    assert len(Pool([plain], 25)) == 1
    assert len(Pool([plain], 25, cut="all")) == 6


def test_windows_without_data_are_left_out(tmp_path):
    array = np.random.default_rng(0).integers(1, 256, (40, 60, 3), dtype=np.uint8)
    array[:, :20] = 0
    array[:20, 20:25] = 0  # a quarter of the window beside it
    array[:20, 40:41] = 0  # a twentieth
    path = write_tiff(tmp_path / "edge.tif", array, nodata=0)
    pool = Pool([path], 20)
    assert [name.rpartition("@")[2] for name in pool.names] == ["40,0", "20,20", "40,20"]
    assert pool.skipped == 3 and not pool.failures
    with pytest.raises(InputError, match="no picture to be used in .*empty.tif .2 windows without data"):
        Pool([write_tiff(tmp_path / "empty.tif", np.zeros((20, 40, 3), np.uint8), nodata=0)], 20)


def test_sixteen_bits_are_stretched_alike_in_all_windows(tmp_path):
    ramp = np.repeat(np.linspace(1000, 3000, 80).astype(np.uint16)[None, :, None], 20, 0).repeat(3, 2)
    pool = Pool([write_tiff(tmp_path / "ramp.tif", ramp)], 20)
    means = [float(t.float().mean()) for t in pool]
    assert len(means) == 4 and means == sorted(means) and means[0] < 45 and means[-1] > 210


# What goes wrong


def test_one_corrupt_picture_is_left_out_and_remembered(tmp_path):
    for seed in range(20):
        (tmp_path / f"{seed:02}.png").write_bytes(encoded(seed))
    (tmp_path / "05.png").write_bytes(encoded(5)[:300])
    (tmp_path / "06.png").write_bytes(b"")
    (tmp_path / "07.png").write_text("no picture")
    pool = Pool([tmp_path], 20, threads=3)
    assert len(pool) == 17
    assert [Path(name).name for name, _ in pool.failures] == ["05.png", "06.png", "07.png"]
    assert all(reason and "\n" not in reason for _, reason in pool.failures)
    assert torch.equal(pool[5], tile(picture(8)))


def test_one_corrupt_picture_among_ten_thousand_is_the_one_that_is_named(tmp_path):
    content = encoded(1, 4, 4)
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for i in range(10_000):
            archive.writestr(f"{i:05}.png", content[:60] if i == 7777 else content)
    pool = Pool([tmp_path], 4)
    assert len(pool) == 9999 and [Path(name).name for name, _ in pool.failures] == ["07777.png"]
    assert torch.equal(pool[7777], tile(picture(1, 4, 4)))


def test_a_raster_that_breaks_off_gives_the_windows_before(tmp_path):
    path = write_tiff(tmp_path / "town.tif", picture(0, 128, 64), tiled=True, blockxsize=32, blockysize=32)
    path.write_bytes(path.read_bytes()[:-9000])
    pool = Pool([path], 32)
    assert 0 < len(pool) < 8
    assert len(pool.failures) == 1
    assert pool.failures[0][0] == str(path) and pool.failures[0][1].startswith(f"{8 - len(pool)} windows: {path}")


def test_nothing_to_learn_from_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="no pictures in"):
        Pool([tmp_path], 20)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        Pool([tmp_path / "absent"], 20)
    with pytest.raises(InputError, match="nothing to look at"):
        Pool([], 20)
    (tmp_path / "bad.png").write_bytes(b"bad")
    with pytest.raises(InputError, match="no picture to be used in .*first: .*bad.png") as caught:
        Pool([tmp_path], 20)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="at least 1 px"):
        Pool([tmp_path], 0)


def test_a_transparent_picture_counts_as_unreadable(tmp_path):
    Image.fromarray(np.zeros((20, 20, 4), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(encoded(0))
    pool = Pool([tmp_path], 20)
    assert len(pool) == 1 and "only 0% of its pixels hold data" in pool.failures[0][1]


def test_duplicates_are_noted(tmp_path):
    for name, seed in (("a", 1), ("b", 2), ("c", 1), ("d", 1)):
        (tmp_path / f"{name}.png").write_bytes(encoded(seed))
    pool = Pool([tmp_path], 20)
    assert len(pool) == 4
    a, _, c, d = pool.names
    assert pool.duplicates == [(c, a), (d, a)]


# Memory


@pytest.mark.parametrize("kept", [0, 3, 7, 100])
def test_what_does_not_fit_in_memory_is_read_again(tmp_path, kept, monkeypatch):
    monkeypatch.setattr("negah.images.pool.BLOCK_BYTES", 2 * 3 * 20 * 20)  # blocks of two tiles
    for seed in range(3):
        (tmp_path / f"{seed}.png").write_bytes(encoded(seed))
    write_tiff(tmp_path / "town.tif", picture(9, 40, 40))
    whole = Pool([tmp_path, "scenes:2"], 20)
    pool = Pool([tmp_path, "scenes:2"], 20, memory=kept * 3 * 20 * 20)
    assert len(pool) == 9 and pool.names == whole.names
    assert sum(len(block) for block in pool._blocks) <= kept
    assert all(torch.equal(a, b) for a, b in zip(pool, whole))
    for path in tmp_path.iterdir():
        path.unlink()
    pool[0] if kept else None  # in memory
    if kept < 2:
        with pytest.raises(InputError, match="1.png"):
            pool[1]


def test_batches_of_views_from_worker_processes(tmp_path):
    for seed in range(6):
        (tmp_path / f"{seed}.png").write_bytes(encoded(seed))
    write_tiff(tmp_path / "town.tif", picture(9, 40, 40))
    pool = Pool([tmp_path], 20, memory=4 * 3 * 20 * 20)
    assert len(pickle.dumps(pool)) < 100_000
    collate = Views(tuple(simclr_cifar(8)))
    here, there = (iter(Batches(pool, 4, collate=collate, workers=n).start(0)) for n in (0, 2))
    for _ in range(3):
        for a, b in zip(next(here), next(there)):
            assert a.shape == (4, 3, 8, 8) and torch.equal(a, b)


# Scenes and labels


def test_generated_scenes_are_a_source(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(1, 24, 24))
    pool = Pool([tmp_path, "scenes:3:7"], 24)
    assert pool.names[1:] == ["scenes:7/0", "scenes:7/1", "scenes:7/2"]
    assert torch.equal(pool[2], tile(render(24, 0.3, seed=mix(7, 1)).image))
    assert len(Pool(["scenes:2"], 24)) == 2
    for wrong in ("scenes:", "scenes:many", "scenes:3:x"):
        with pytest.raises(InputError, match="is not scenes:COUNT"):
            Pool([wrong], 24)


def test_folders_are_labels(tmp_path):
    for name in ("ship/2.png", "cat/1.png", "ship/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(len(name)))
    labels, classes = folder_labels(Pool([tmp_path], 20).names)
    assert classes == ["cat", "ship"] and labels.tolist() == [0, 1, 1]
    with pytest.raises(InputError, match="all pictures lie in one folder .cat."):
        folder_labels(["x/cat/1.png", "y/cat/2.png"])
