"""Claim: how far a change of two grey levels, or less, moves the square metres that a survey measures.

    python benchmarks/robust_area.py          # some twenty minutes on one core

negah/aerial-tiny at its own threshold, on tiles that it was not trained on: Jiangsu tiles with panels at 0.3 m (all of
one place; the card's area factors were fitted on cuts of them) and windows of UC Merced pictures without any.  Within
an Linf ball of 0.5, 1 and 2 of 255 the area is driven up and down, by the first estimate and, in whole levels, with a
calibration on masks of other places; random signs of the same size stand beside it, of each window the lowest and the
highest of three draws.

Searches run in bfloat16, measurements in fp32 and, in whole levels, on 8 bits.  Intervals are bootstrap samples of
tiles, of 95 %.  The attack's settings were not chosen by these figures; a stronger one may move more.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import results
import torch
from area_jiangsu import SIDES, ZOOM, extracted, looked
from torch import Tensor

from negah.images.windows import Box
from negah.probe.detector import Detector, load
from negah.probe.splits import location_groups
from negah.runs.aerial.tiles import GSD_M, WINDOW_PX, background, jiangsu
from negah.runs.attack_area import Moved, Windows, attack_area
from negah.runs.calibrate import Pair
from negah.solar.calibration import Calibration, calibrate
from negah.solar.survey import Measure

PICTURE = results.ROOT / "docs" / "img" / "attack-area.svg"
SIDE = SIDES[GSD_M]  # pixels of a Jiangsu tile of 25.6 m
WINDOW = 88  # ... and of the window that a survey makes of it: whole patches
TILE_M2 = 25.6**2
SAMPLES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--tiles", type=int, default=24, help="with panels")
    parser.add_argument("--without", type=int, default=20, help="windows without panels")
    parser.add_argument("--steps", type=int, default=12, help="of the climb, each way")
    parser.add_argument("--dry", action="store_true", help="measure, and write nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data, detector = results.data_folder(), load("negah/aerial-tiny")
    threshold = detector.info.threshold
    with tempfile.TemporaryDirectory() as folder:
        tiles, true, calibration = jiangsu_tiles(data, detector, Path(folder), args.tiles)
    bare = background(data, kept_aside=True).images
    some = np.random.default_rng(0).permutation(len(bare))[: args.without]
    sets = {
        "with_panels": (tiles, np.full(len(tiles), TILE_M2), float(true.sum())),
        "without_panels": (
            torch.from_numpy(bare[some]).permute(0, 3, 1, 2), np.full(len(some), (GSD_M * WINDOW_PX) ** 2), 0.0
        ),
    }  # fmt: skip
    rows = []
    for way, made in (("first estimate", None), ("calibrated", calibration)):
        for name, (pixels, ground, truth) in sets.items():
            began = time.process_time()
            eps = (1 / 255, 2 / 255) if made else (0.5 / 255, 1 / 255, 2 / 255)
            found = attack_area(
                detector, Windows(pixels, ground, np.full(len(pixels), GSD_M)), Measure(threshold, calibration=made),
                eps=eps, steps=args.steps, bf16=True,
            )  # fmt: skip
            for moved in found:
                rows.append({"measure": way, "set": name, "true_m2": truth} | figures(moved))
                print(rows[-1], flush=True)
            print(f"{way}, {name}: {time.process_time() - began:.0f} s of processor time", flush=True)
    if args.dry:
        return
    head = next(
        r for r in rows if (r["measure"], r["set"], r["eps_255"]) == ("calibrated", "with_panels", 2)
    )  # fmt: skip
    path = results.write(
        "robust_area", claim="How far 2 of 255 grey levels move the measured area of tiles with panels",
        rows=rows, seeds=[0], packages=("numpy", "scipy"), steps=args.steps, threshold=threshold,
        headline={
            "value": head["highest_share"],
            "unit": f"times the calibrated area, {head['tiles']} tiles; downwards {head['lowest_share']:.3f} times",
            "target": None, "better": "lower", "low": head["highest_low"], "high": head["highest_high"],
        },
    )  # fmt: skip
    draw(rows)
    print(path)


def jiangsu_tiles(data: Path, detector: Detector, folder: Path, count: int) -> tuple[Tensor, np.ndarray, Calibration]:
    """Tiles of the place that was kept aside, their true m2, and a calibration on the other places."""
    rows, fold = jiangsu(data, folds=5)
    aside = fold == 0
    pairs = extracted(data, rows, folder, SIDE)
    place = location_groups([float(r["lat"]) for r in rows], [float(r["lon"]) for r in rows], distance_m=300)
    others = [pair for pair, kept in zip(pairs, aside) if not kept]
    seen = looked(others, detector, side=SIDE, place=place[~aside])
    made = calibrate(seen, zoom=ZOOM, threshold=detector.info.threshold)
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(aside))[:count]
    true = np.array([float(rows[i]["panel_area_m2"]) for i in chosen])
    return torch.stack([window(pairs[i]) for i in chosen]), true, made


def window(pair: Pair) -> Tensor:
    with pair.picture.open() as raster:
        rgb, _ = raster.read(Box(0, 0, SIDE, SIDE), (WINDOW, WINDOW))
    return torch.from_numpy(rgb.copy()).permute(2, 0, 1)


def figures(moved: Moved) -> dict:
    """Sums over the windows; shares are of the sum before, with their intervals; None where that is 0."""
    names = ("before", "lowest", "highest", "noise_lowest", "noise_highest")
    parts = {name: getattr(moved, name) for name in names}
    row = {"eps_255": round(moved.eps * 255, 1), "tiles": len(moved.before)}
    row |= {f"{name}_m2": float(values.sum()) for name, values in parts.items()}
    held = moved.before > 0
    row |= {
        "measured_before": int(held.sum()), "of_these_emptied": int((moved.lowest[held] == 0).sum()),
        "empty_before": int((~held).sum()), "of_these_filled": int((moved.highest[~held] > 0).sum()),
    }  # fmt: skip
    drawn = np.random.default_rng(0).integers(len(held), size=(SAMPLES, len(held)))
    for name in names[1:]:
        row[f"{name}_share"] = row[f"{name}_low"] = row[f"{name}_high"] = None
        if held.sum() >= len(held) / 2:
            ratios = parts[name][drawn].sum(1) / moved.before[drawn].sum(1)
            row[f"{name}_share"] = row[f"{name}_m2"] / row["before_m2"]
            row[f"{name}_low"], row[f"{name}_high"] = map(float, np.quantile(ratios, [0.025, 0.975]))
    return row


def draw(rows: list[dict]) -> None:
    """Sums of the tiles with panels, as shares of what was measured before."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "negah"}):
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        axes = figure.subplots(1, 2, sharex=True, sharey=True)
        for axis, way in zip(axes, ("first estimate", "calibrated")):
            some = [r for r in rows if r["measure"] == way and r["set"] == "with_panels"]
            eps = [0, *(r["eps_255"] for r in some)]
            for key, colour, words in (("highest", "C3", "driven up"), ("lowest", "C0", "driven down")):
                shares, low, high = (
                    [100, *(100 * r[f"{key}_{end}"] for r in some)] for end in ("share", "low", "high")
                )
                axis.plot(eps, shares, "o-", color=colour, label=words)
                axis.fill_between(eps, low, high, color=colour, alpha=0.2, lw=0)
            noise = [[100, *(100 * r[f"noise_{end}_share"] for r in some)] for end in ("lowest", "highest")]
            axis.fill_between(eps, *noise, color="0.5", label="random signs")
            axis.set_title(way, fontsize=10)
            axis.set_xlabel("largest change of a pixel (of 255)")
            axis.grid(alpha=0.3)
            axis.set_ylim(bottom=0)
        axes[0].set_ylabel("measured area (% of that before)")
        axes[0].legend(frameon=False)
        figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
