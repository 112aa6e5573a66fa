"""Claim: `negah survey` looks at twice as many tiles a second as the loop a user would write, with the same verdicts.

    python benchmarks/survey_throughput.py

The loop holds the bundled weights in transformers' `Dinov2Model` and the same head: Pillow (tiles) or rasterio (raster)
reads, the processor's normalisation, batches of 16, inference mode, fp32, all threads; it keeps the probabilities and
writes nothing.  Ours is the whole survey with every file that it writes, report included.  Both run in this process, in
turn; medians over the repetitions.  Two inputs: the folder of Duke tiles (PNG, 101 px), and a generated GeoTIFF.
Verdicts: |p - p_fp32| on the real tiles, and how many fall on the other side of the threshold.
"""

import argparse
import csv
import shutil
import statistics
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import rasterio
import results
import torch
from PIL import Image
from rasterio.windows import Window
from transformers import AutoModel

from negah.images.scenes import write_town
from negah.probe.detector import Detector, load
from negah.runs.survey import Options, survey
from negah.weights import save

BATCH, TARGET, TOLERANCE = 16, 2.0, 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="negah/aerial-tiny")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--raster-px", type=int, default=4160)
    args = parser.parse_args()
    detector = load(args.model)
    side = detector.info.window_px
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        peer = AutoModel.from_pretrained(save(detector.backbone, work / "dinov2", layout="transformers")).eval()
        tiles = work / "tiles"
        with zipfile.ZipFile(results.data_folder() / "duke-solar/tiles.zip") as archive:
            archive.extractall(tiles)
        raster = work / "town.tif"
        write_town(raster, size_px=args.raster_px, seed=0)
        inputs = {
            "duke tiles, PNG 101 px": (tiles, lambda: tile_loop(tiles, peer, detector)),
            f"GeoTIFF {args.raster_px} px": (raster, lambda: raster_loop(raster, side, peer, detector)),
        }
        rows = []
        for name, (path, loop) in inputs.items():
            rows.append({"input": name} | compare(path, loop, detector, work / "out", args.repeat))
            print(rows[-1])
    worst = min(rows, key=lambda row: row["ratio"])
    path = results.write(
        "survey_throughput", claim="Tiles per second of a whole survey over those of a plain loop with transformers",
        rows=rows, seeds=[0], packages=("transformers", "rasterio", "pillow", "numpy"),
        headline={"value": worst["ratio"], "unit": f"times the loop, {worst['input']}",
                  "target": TARGET, "better": "higher"},
    )  # fmt: skip
    print(path)


def compare(path: Path, loop, detector: Detector, out: Path, repeat: int) -> dict:
    """Loop and survey in turn, after one round that is not counted."""
    theirs, ours, fp32, probabilities = [], [], {}, {}
    for i in range(repeat + 1):
        start = time.perf_counter()
        fp32 = loop()
        middle = time.perf_counter()
        survey([str(path)], out, [detector], Options(gsd_m=0.3))
        end = time.perf_counter()
        if i:
            theirs.append(len(fp32) / (middle - start))
            ours.append(len(fp32) / (end - middle))
        probabilities = read_probabilities(out)
        shutil.rmtree(out)
    assert probabilities.keys() == fp32.keys(), "the loop and the survey looked at different windows"
    keys = sorted(fp32)
    a, b = np.array([fp32[k] for k in keys]), np.array([probabilities[k] for k in keys])
    threshold = detector.info.threshold
    ratios = [o / t for o, t in zip(ours, theirs, strict=True)]
    return {
        "tiles": len(keys), "ours_per_s": ours, "loop_per_s": theirs, "ratio": statistics.median(ratios),
        "ratios": ratios,
        "largest_difference": float(np.abs(a - b).max()), "over_tolerance": int((np.abs(a - b) > TOLERANCE).sum()),
        "verdicts_changed": int(((a >= threshold) != (b >= threshold)).sum()),
    }  # fmt: skip


def read_probabilities(out: Path) -> dict[str, float]:
    with (out / "tiles.csv").open(newline="") as file:
        return {
            f"{Path(row['source']).name} {row['window']}": float(row["probability"]) for row in csv.DictReader(file)
        }


def tile_loop(folder: Path, peer, detector: Detector) -> dict[str, float]:
    side = detector.info.window_px
    names = sorted(folder.rglob("*.png"))
    found: dict[str, float] = {}
    for start in range(0, len(names), BATCH):
        batch = names[start : start + BATCH]
        images = [
            np.asarray(Image.open(n).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)) for n in batch
        ]
        for name, p in zip(batch, judge(images, peer, detector), strict=True):
            found[f"{name.name} c0_r0"] = p
    return found


def raster_loop(path: Path, side: int, peer, detector: Detector) -> dict[str, float]:
    found: dict[str, float] = {}
    with rasterio.open(path) as dataset:
        corners = [(c, r) for r in range(0, dataset.height, side) for c in range(0, dataset.width, side)]
        for start in range(0, len(corners), BATCH):
            batch = corners[start : start + BATCH]
            images = [dataset.read((1, 2, 3), window=Window(c, r, side, side)).transpose(1, 2, 0) for c, r in batch]
            for (c, r), p in zip(batch, judge(images, peer, detector), strict=True):
                found[f"{path.name} c{c}_r{r}"] = p
    return found


@torch.inference_mode()
def judge(images: list[np.ndarray], peer, detector: Detector) -> list[float]:
    """What transformers' documentation shows: a float batch, normalised, through the model and the head."""
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor(detector.backbone.config["mean"]), torch.tensor(detector.backbone.config["std"])
    tokens = peer(pixel_values=(pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)).last_hidden_state
    return detector.head(tokens).logit.sigmoid().tolist()


if __name__ == "__main__":
    main()
