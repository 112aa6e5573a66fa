"""The layouts that people have, and one clear line for each way in which they break."""

import csv
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from negah.errors import InputError
from negah.probe.labels import read_classes, read_samples


def save(path: Path, value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (value, 20, 30)).save(path)


def write_csv(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def table(tmp_path: Path, labels: list[object], **columns: list[object]) -> Path:
    """A csv of as many images as labels, with further columns."""
    rows = []
    for i, label in enumerate(labels):
        save(tmp_path / f"{i}.png", i)
        rows.append({"file": f"{i}.png", "label": label, **{name: values[i] for name, values in columns.items()}})
    return write_csv(tmp_path / "labels.csv", rows)


def test_class_folders(tmp_path):
    for i, folder in enumerate(["panel", "panel", "no_panel"]):
        save(tmp_path / "set" / folder / f"{i}.png", i)
    samples = read_samples(tmp_path)
    assert samples.names == ("set/no_panel/2.png", "set/panel/0.png", "set/panel/1.png")
    assert samples.labels.tolist() == [0, 1, 1] and samples.groups is None
    assert samples.image(2).shape == (4, 6, 3) and samples.image(2)[0, 0].tolist() == [1, 20, 30]


def test_any_class_can_be_named_the_positive_one(tmp_path):
    for folder in ("river", "forest", "solarfarm"):
        save(tmp_path / folder / "a.png")
    assert read_samples(tmp_path, positive="Solarfarm").labels.tolist() == [0, 0, 1]
    with pytest.raises(InputError, match=r"'forest' is not understood.*--positive"):
        read_samples(tmp_path)
    with pytest.raises(InputError, match=r"no class 'lake'.*forest, river, solarfarm"):
        read_samples(tmp_path, positive="lake")


def test_classes_of_any_number_are_numbered_by_name(tmp_path):
    for folder in ("b", "c", "a/deeper"):
        save(tmp_path / folder / "x.png")
    samples = read_classes(tmp_path)
    assert samples.classes == ("b", "c", "deeper") and samples.labels.tolist() == [2, 0, 1]
    assert samples.names == ("a/deeper/x.png", "b/x.png", "c/x.png")
    written = table(tmp_path, ["dog", "", "cat", "-1", "dog"])
    samples = read_classes(written)
    assert samples.classes == ("cat", "dog") and samples.labels.tolist() == [1, 0, 1]
    assert samples.names == ("0.png", "2.png", "4.png")
    with pytest.raises(InputError, match="holds no labels"):
        read_classes(table(tmp_path, ["", "?"]))


def test_suffixes_of_the_uk20k_layout_give_locations_too(tmp_path):
    for i, ending in enumerate(["P", "N", "N"]):
        profile = {"driver": "GTiff", "width": 8, "height": 8, "count": 3, "dtype": "uint8", "crs": "EPSG:27700"}
        transform = from_origin(530000 + 1000 * i, 180000, 0.25, 0.25)
        with rasterio.open(tmp_path / f"TQ{i}-{ending}.tif", "w", transform=transform, **profile) as file:
            file.write(np.full((3, 8, 8), 50, np.uint8))
    samples = read_samples(tmp_path)
    assert samples.labels.tolist() == [1, 0, 0]
    assert samples.lat is not None and samples.lon is not None and samples.gsd_m is not None
    assert samples.lat == pytest.approx(51.5, abs=0.1) and np.diff(samples.lon) == pytest.approx(0.0144, abs=1e-3)
    assert samples.gsd_m == pytest.approx(0.25, rel=1e-3)


def test_a_zip_is_read_in_place(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("pos/a.png", "neg/b.png"):
            save(tmp_path / "plain" / name)
            archive.write(tmp_path / "plain" / name, name)
        archive.writestr("readme.txt", "hello")
    samples = read_samples(tmp_path / "set.zip")
    assert samples.names == ("neg/b.png", "pos/a.png") and samples.labels.tolist() == [0, 1]
    assert np.array_equal(samples.image(0), read_samples(tmp_path / "plain").image(0))


def test_csv_with_everything(tmp_path):
    path = table(
        tmp_path, [1, "0.0", "", -1, "yes"], group=["a", "", "b", "b", "a"], lat=[1, 2, 3, "", 5], lon=[1, 2, 3, 4, 5],
        split=["train"] * 5, source=["x", "x", "y", "y", "y"], mine=[7, 7, 8, 8, 9],
    )  # fmt: skip
    samples = read_samples(tmp_path)  # the folder of a labels.csv will do
    assert samples.labels.tolist() == [1, 0, -1, -1, 1]
    assert samples.groups is not None and samples.groups.tolist() == ["a", "alone:1.png", "b", "b", "a"]
    assert samples.lat is not None and np.isnan(samples.lat[3]) and samples.source is not None
    mine = read_samples(path, group="mine").groups
    assert mine is not None and mine.tolist() == ["7", "7", "8", "8", "9"]
    kept = samples.labelled()
    assert kept.names == ("0.png", "1.png", "4.png") and kept.image(2)[0, 0, 0] == 4
    assert kept.source is not None and kept.source.tolist() == ["x", "x", "y"]


def test_csv_finds_its_files_in_a_zip_beside_it(tmp_path):
    path = table(tmp_path, [1, 0])
    with zipfile.ZipFile(tmp_path / "tiles.zip", "w") as archive:
        archive.write(tmp_path / "1.png", "1.png")
    (tmp_path / "1.png").unlink()
    samples = read_samples(path)
    assert samples.image(1)[0, 0, 0] == 1 and samples.image(0)[0, 0, 0] == 0


def test_missing_files_are_counted_and_the_first_three_named(tmp_path):
    path = table(tmp_path, [1, 0, 1, 0, 1])
    for i in range(4):
        (tmp_path / f"{i}.png").unlink()
    with pytest.raises(InputError, match=r"4 of 5 files of .* missing \(0.png, 1.png, 2.png, \.\.\. 4 in all\)"):
        read_samples(path)


def test_a_file_that_is_no_image_is_named_when_it_is_read(tmp_path):
    path = table(tmp_path, [1, 0])
    (tmp_path / "1.png").write_bytes(b"not a picture")
    samples = read_samples(path)
    with pytest.raises(InputError, match=r"1\.png"):
        samples.image(1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file,label\na.png,maybe\n", "row 2: label 'maybe' is not understood"),
        ("name,label\na.png,1\n", "no column file .it has name, label"),
        ("file,label\n", "no rows"),
        ("file,label\na.png,1\na.png,0\n", "lists 1 files more than once .a.png"),
        ("file,label,lat\na.png,1,50\n", "only one of the columns lat and lon"),
        ("file,label,lat,lon\na.png,1,north,5\n", "column lat must hold degrees"),
    ],
)
def test_a_csv_that_cannot_be_used(tmp_path, text, says):
    save(tmp_path / "a.png")
    (tmp_path / "set.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=says):
        read_samples(tmp_path / "set.csv")


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_samples(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no images"):
        read_samples(tmp_path)
    save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"no labels found in the names \(a.png\)"):
        read_samples(tmp_path)
    with pytest.raises(InputError, match="--group tile names a column of a csv"):
        read_samples(tmp_path, group="tile")
    path = table(tmp_path, [1, 0])
    with pytest.raises(InputError, match="no column tile for --group"):
        read_samples(path, group="tile")
    (tmp_path / "labels.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as a csv"):
        read_samples(path)


@pytest.mark.parametrize(("labels", "says"), [([1, 1, ""], r"only label 1 \(2 images\)"), (["", -1], "no labels")])
def test_one_class_only_teaches_nothing(tmp_path, labels, says):
    with pytest.raises(InputError, match=says):
        read_samples(table(tmp_path, labels)).labelled()


def test_duke_is_adopted_as_it_is(data_dir, tmp_path):
    samples = read_samples(data_dir / "duke-solar" / "labels.csv")
    assert len(samples) == 1758 and (samples.labels == 1).sum() == 408 and (samples.labels == -1).sum() == 558
    assert samples.groups is not None and len(set(samples.groups)) == 1513
    kept = samples.labelled()
    assert len(kept) == 1200 and kept.image(0).shape == (101, 101, 3)
    shutil.copy(data_dir / "duke-solar" / "labels.csv", tmp_path)
    with pytest.raises(InputError, match="1758 of 1758 files"):
        read_samples(tmp_path / "labels.csv")
