import json

import geopandas
import pytest
import rasterio

from negah.cli.main import main


def draw(path, capsys, *words: str) -> dict:
    """Run the verb, and read its JSON."""
    assert main(["scene", str(path), "--size-px", "256", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_town_lies_on_the_map_with_its_truth_beside_it(tmp_path, capsys):
    found = draw(tmp_path / "new" / "town.tif", capsys, "--gsd", "0.5", "--seed", "3")
    with rasterio.open(found["image"]) as town, rasterio.open(found["mask"]) as mask:
        assert town.crs.is_projected and town.res == (0.5, 0.5) and (town.width, town.height) == (256, 256)
        assert (mask.crs, mask.transform) == (town.crs, town.transform)
    assert len(geopandas.read_file(found["panels"])) == found["arrays"]
    assert found["plan_area_m2"] >= 0


def test_the_table_says_what_was_drawn(tmp_path, capsys):
    assert main(["scene", str(tmp_path / "town.tif"), "--size-px", "200"]) == 0
    text = capsys.readouterr().out
    assert "town_panels.gpkg" in text and "200 px = 60 m" in text


def test_the_same_seed_draws_the_same_town_and_over_an_old_one_only_when_asked(tmp_path, capsys):
    path = tmp_path / "town.tif"
    pictures = []
    for seed in ("1", "1", "2"):
        draw(path, capsys, "--seed", seed, *["--overwrite"] * len(pictures))
        with rasterio.open(path) as town:
            pictures.append(town.read())
    assert (pictures[0] == pictures[1]).all() and (pictures[0] != pictures[2]).any()
    before = path.read_bytes()
    assert main(["scene", str(path), "--size-px", "256"]) == 2
    assert "is there already: survey it, choose another name, or --overwrite" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["real.tif", "town.png"])
def test_other_files_are_not_touched(name, tmp_path, capsys):
    path = tmp_path / name
    path.write_bytes(b"a flight that cost money")
    assert main(["scene", str(path), "--size-px", "256", "--overwrite"]) == 2
    assert str(path) in capsys.readouterr().err
    assert path.read_bytes() == b"a flight that cost money" and list(tmp_path.iterdir()) == [path]
