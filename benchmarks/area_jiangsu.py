"""Claim: panel outlines and areas of Jiangsu tiles are right, from image labels and some calibration masks.

    python benchmarks/area_jiangsu.py --work runs/area     # trains two small detectors first (two hours on two cores)

Tiles of 0.1 m with masks (PV01), as they are and shrunk to 0.3 m.  The detector, called labels_only, is the recipe of
negah/aerial-tiny without any real mask (`LABELS_ONLY`, then `LABELS_ONLY_LARGE` with drawn arrays as large as those on
halls): Duke labels, generated scenes, drawn panels, and of Jiangsu cuts only whether they show panels.  Trained twice,
each time on one half of the places, calibrated on the masks of that half, and asked about the other, of which it knows
nothing; the threshold is 0.5, chosen by nothing.  The bundled detector is asked in area_jiangsu_tiny.py.

Beside `evidence: labels`, which is the head as it was trained and a calibration, stands `evidence: masks`, where the
calibration masks teach the head's patch outputs anew.  Figures are means over `REPEATS` foldings; intervals are
bootstrap samples of places (of tiles, where there is one place).  A tile in which nothing is found is wrong by all that
it holds.

Baselines, on the same tiles and detectors: min-max of the attention, LOST, TokenCut (in windows with a find, since none
of them can say "no panel"), and the survey's first estimate without a calibration.  Their outlines are scored as ours.
"""

import argparse
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import results
import torch
from PIL import Image
from torch import Tensor

from negah.images.sources import find_sources
from negah.images.windows import Box
from negah.probe.detector import Detector, load, save
from negah.probe.splits import location_groups
from negah.runs.aerial.recipe import LABELS_ONLY, LABELS_ONLY_LARGE, first_stage, second_stage
from negah.runs.aerial.tiles import Elsewhere, cuts, duke, jiangsu, joined, only_labels, with_panels
from negah.runs.calibrate import Pair, compare
from negah.solar.area import overlap
from negah.solar.baselines import lost, min_max, token_cut
from negah.solar.calibration import PRESENT_M2, HeldOut, Seen, calibrate, held_out, measured
from negah.solar.footprint import footprint

TARGETS = {"iou": 0.60, "median_error": 0.20, "bias": 0.10}
REPEATS, SAMPLES, ZOOM, SCALE, THRESHOLD, LARGE = 3, 1000, 2, 0.8, 0.5, 0.6
SIDES = {0.1: 256, 0.3: 85}  # pixels of a tile by ground size
Cases = dict[str, tuple[Sequence[tuple[Seen | None, Seen]], list[tuple[Detector, np.ndarray]]]]
"""By name: pairs of what is calibrated on (None: the other folds) and what is asked about; which tiles each detector is
asked about."""


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/area"), help="where trained detectors are kept")
    parser.add_argument(
        "--train", type=int, choices=(0, 1), help="only train the detector that is asked about this half"
    )
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    data = results.data_folder()
    for half in (0, 1) if args.train is None else (args.train,):
        if not (args.work / f"half{half}.safetensors").is_file():
            train(data, args.work, half)
    if args.train is None:
        report(data, [load(args.work / f"half{half}.safetensors") for half in (0, 1)])


def train(data: Path, work: Path, half: int) -> None:
    """A detector that saw masks of no real tile, and nothing of the places of this half."""
    elsewhere = replace(Elsewhere.load(data, work=work), masked=None)
    first = first_stage(elsewhere, scale=SCALE, out=work / "first")
    rows, halves = jiangsu(data, folds=2)
    told = only_labels(cuts(data, [row for row, h in zip(rows, halves, strict=True) if h != half]))
    tiles = duke(data)
    known = joined(tiles.labelled, told), tiles.unlabelled
    pair = second_stage(first, *known, elsewhere, rounds=LABELS_ONLY, out=work / f"half{half}")
    elsewhere = replace(elsewhere, drawn=with_panels(elsewhere.background, seed=1, large=LARGE))
    pair = second_stage(
        pair, *known, elsewhere, rounds=LABELS_ONLY_LARGE, large=LARGE, seed=1, out=work / f"half{half}-large"
    )
    save(pair.detector, work / f"half{half}.safetensors")


def report(data: Path, detectors: list[Detector]) -> None:
    """detectors: the one that is asked about each half."""
    halves = jiangsu(data, folds=2)[1]

    def cases(look: Callable[[Detector], Seen]) -> Cases:
        seen = [look(detector) for detector in detectors]
        parts = [(s.of(halves != h), s.of(halves == h)) for h, s in enumerate(seen)]
        return {"labels_only": (parts, [(detector, halves == h) for h, detector in enumerate(detectors)])}

    rows = scored(data, cases, baselines_of={"labels_only"})
    write("area_jiangsu", "from image labels and calibration masks", rows, headline="labels_only")


def scored(data: Path, cases: Callable[[Callable[[Detector], Seen]], Cases], *, baselines_of: set[str]) -> list[dict]:
    """Figures of each case at each ground size.  cases: makes them, given what lets a detector look at all tiles."""
    rows, found = jiangsu(data, folds=2)[0], []
    place = location_groups([float(r["lat"]) for r in rows], [float(r["lon"]) for r in rows], distance_m=300)
    for gsd, side in SIDES.items():
        with tempfile.TemporaryDirectory() as folder:
            pairs = extracted(data, rows, Path(folder), side)
            looks = partial(looked, pairs, side=side, place=place)
            for name, (parts, asked) in cases(looks).items():
                seen = joined_seen([test for _, test in parts])
                for evidence in ("labels", "masks"):
                    outs = [
                        joined_out([ask(known, test, evidence, seed) for known, test in parts])
                        for seed in range(REPEATS)
                    ]
                    about = {"detector": name, "gsd_m": gsd, "method": f"evidence_{evidence}"}
                    found.append(about | counts(seen) | figures(seen, outs))
                    print(found[-1], flush=True)
                for method, fractions in baselines(pairs, asked, side).items() if name in baselines_of else ():
                    found.append({"detector": name, "gsd_m": gsd, "method": method} | plain(seen, fractions))
                    print(found[-1], flush=True)
    return found


def write(name: str, of: str, rows: list[dict], *, headline: str) -> None:
    """headline: the case whose outlines at 0.3 m, with evidence as it was trained, stand for all."""
    head = next(r for r in rows if (r["detector"], r["gsd_m"], r["method"]) == (headline, 0.3, "evidence_labels"))
    path = results.write(
        name, claim=f"Overlap of outlines with masks of new places, {of}",
        rows=rows, seeds=list(range(REPEATS)), packages=("numpy", "scipy"), targets=TARGETS,
        headline={"value": head["iou"], "unit": f"pooled IoU, {headline} at 0.3 m", "target": TARGETS["iou"],
                  "better": "higher", "low": head["iou_low"], "high": head["iou_high"]},
    )  # fmt: skip
    print(path)


def ask(known: Seen | None, test: Seen, evidence: str, seed: int) -> HeldOut:
    """Measure tiles by a calibration on others, or, where none are given, on the other folds of themselves."""
    masks = evidence == "masks"
    if known is None:
        return held_out(test, zoom=ZOOM, from_masks=masks, seed=seed)
    return measured(calibrate(known, zoom=ZOOM, from_masks=masks, seed=seed), test)


def extracted(data: Path, rows: list[dict[str, str]], folder: Path, side: int) -> list[Pair]:
    """Pictures and masks as files of `side` pixels."""
    for kind in ("image", "mask"):
        (folder / f"{kind}s").mkdir()
        with zipfile.ZipFile(data / f"pv-masks/{kind}s.zip") as archive:
            for row in rows:
                with archive.open(row[kind]) as file:
                    picture = Image.open(file)
                    if side != picture.width:
                        picture = picture.resize((side, side), Image.Resampling.BOX)
                    picture.save(folder / f"{kind}s" / row[kind])
    sources = [[find_sources([f"{folder}/{kind}s/{row[kind]}"])[0] for row in rows] for kind in ("image", "mask")]
    return [Pair(picture, mask) for picture, mask in zip(*sources, strict=True)]


def looked(pairs: list[Pair], detector: Detector, *, side: int, place: np.ndarray) -> Seen:
    seen, _, failures = compare(
        pairs, detector, gsd_m=25.6 / side, threshold=detector.info.threshold, zoom=ZOOM, outputs=True
    )
    assert not failures and len(seen) == len(pairs), failures
    return replace(seen, place=place)


def joined_seen(parts: list[Seen]) -> Seen:
    """Tiles that several detectors were asked about."""
    names = ("cell_m2", "ground_m2", "first_m2", "probability", "true_m2", "place", "gsd_m")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Seen([k for part in parts for k in part.known], **arrays)


def joined_out(parts: list[HeldOut]) -> HeldOut:
    return HeldOut(*(np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])))


def counts(seen: Seen) -> dict:
    return {
        "tiles": len(seen), "places": len(np.unique(seen.place)), "found": len(seen.found),
        "with_panels": int((seen.true_m2 >= PRESENT_M2).sum()), "true_m2": float(seen.true_m2.sum()),
    }  # fmt: skip


def figures(seen: Seen, outs: list[HeldOut]) -> dict:
    """Means over the foldings, and bootstrap intervals of 95 %."""
    true = seen.true_m2
    present = true >= PRESENT_M2

    def scored(out: HeldOut, rows: np.ndarray) -> dict[str, float]:
        t, some = true[rows], rows[present[rows]]
        held = rows[out.area[rows] > 0]
        return {
            "iou": out.both[rows].sum() / out.either[rows].sum(),
            "median_error": np.median(np.abs(out.area[some] - true[some]) / true[some]),
            "bias": out.summed[rows].sum() / t.sum() - 1,
            "coverage": ((out.low[held] <= true[held]) & (true[held] <= out.high[held])).mean(),
            "width": np.median((out.high[held] - out.low[held]) / out.area[held]),
        }

    every, values = np.arange(len(true)), {}
    for key in ("iou", "median_error", "bias", "coverage", "width"):
        values[key] = float(np.mean([scored(out, every)[key] for out in outs]))
    groups = seen.place if len(np.unique(seen.place)) > 1 else every
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    rng = np.random.default_rng(0)
    drawn = []
    for k in range(SAMPLES):
        rows = np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])
        if (outs[0].area[rows] > 0).any() and true[rows].sum():
            drawn.append(scored(outs[k % len(outs)], rows))
    for key in ("iou", "median_error", "bias", "coverage"):
        low, high = np.quantile([d[key] for d in drawn], [0.025, 0.975])
        values |= {f"{key}_low": float(low), f"{key}_high": float(high)}
    return values


def plain(seen: Seen, fractions: list[np.ndarray]) -> dict:
    """An estimate without a calibration: outlines at the level that suits it best, areas as they are."""
    true, masks = seen.true_m2, [None if k is None else k.fraction for k in seen.known]
    area = np.array([f.mean() for f in fractions]) * seen.ground_m2
    present = true >= PRESENT_M2
    best = 0.0
    for level in np.arange(0.1, 0.9, 0.1):
        both = either = 0.0
        for fraction, mask, t, m2 in zip(fractions, masks, true, seen.cell_m2, strict=True):
            if mask is None:
                either += t
                continue
            rows, cols = (np.arange(n) * fraction.shape[a] // n for a, n in enumerate(mask.shape))
            said = fraction[rows][:, cols] >= level
            inside, joint = overlap(said, mask)
            both, either = both + inside * m2, either + joint * m2
        best = max(best, both / either)
    return counts(seen) | {
        "iou": float(best),
        "median_error": float(np.median(np.abs(area - true)[present] / true[present])),
        "bias": float(area.sum() / true.sum() - 1),
    }


@torch.inference_mode()
def baselines(pairs: list[Pair], parts: list, side: int) -> dict[str, list[np.ndarray]]:
    """Fractions per patch by each baseline, zero where the detector finds nothing."""
    n = 11  # patches along a tile of 25.6 m
    methods: dict[str, Callable[[Detector, Tensor], Tensor]] = {
        "first_estimate": lambda d, x: footprint(d(x), threshold=d.info.threshold).fraction,
        "min_max": lambda d, x: min_max(d(x).attention),
        "lost": lambda d, x: lost(centred(d, x), grid=(n, n)),
        "token_cut": lambda d, x: token_cut(centred(d, x), grid=(n, n)),
    }
    out: dict[str, list[np.ndarray]] = {name: [] for name in methods}
    for detector, which in parts:
        for pair, use in zip(pairs, which, strict=True):
            if not use:
                continue
            with pair.picture.open() as raster:
                rgb, _ = raster.read(Box(0, 0, side, side), (8 * n, 8 * n))
            image = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None]
            found = float(detector(image).logit.sigmoid()) >= detector.info.threshold
            for name, method in methods.items():
                fraction = method(detector, image)[0].reshape(n, n).numpy()
                out[name].append(fraction if found else np.zeros_like(fraction))
    return out


def centred(detector: Detector, images: Tensor) -> Tensor:
    """Patch tokens less their mean, since those of one picture all resemble each other."""
    patches = detector.backbone(images).patches.float()
    return patches - patches.mean(1, keepdim=True)


if __name__ == "__main__":
    main()
