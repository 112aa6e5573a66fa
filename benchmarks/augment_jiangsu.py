"""Claim: Whether pictures drawn after DreamBooth on five of a rare panel type help to find it in real pictures

    python benchmarks/augment_jiangsu.py [--seeds 3]

`negah lab augment` on quarters (12.8 m a side, resized to 64 x 64 pixels) of the 0.1 m tiles of Jiangsu.  The rare type
is panels on roofs of class 213 there, the common one those of class 211; quarters without a panel pixel are the
negatives, with less than a twentieth of panel nothing.  Neighbourhoods (tiles within 300 m) are in either the training
or the test half.  The backbone, negah/aerial-tiny, has seen some of these tiles without their types; all ways share it.
"""

import argparse
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import results
import torch
from lab import rounded
from lab_augment import headline
from PIL import Image

from negah.images.decode import read_image
from negah.lab import augment
from negah.lab.training import Effort
from negah.runs.aerial.tiles import jiangsu

TYPES = {"213": augment.RARE, "211": augment.COMMON}
MOST = {"train": {augment.RARE: 1000, augment.COMMON: 60, augment.NONE: 120}, "test": {}}
QUARTER, SIDE, LEAST = 128, 64, 0.05


def written(data: Path, folder: Path) -> Counter[str]:
    """Quarters as PNG files below PART/KIND, and how many there are of each."""
    rows, fold = jiangsu(data, folds=2)
    count: Counter[str] = Counter()
    order = np.random.default_rng(0).permutation(len(rows))
    with zipfile.ZipFile(data / "pv-masks/images.zip") as images, zipfile.ZipFile(data / "pv-masks/masks.zip") as masks:
        for number in order:
            row, part = rows[number], "test" if fold[number] else "train"
            image = read_image(images.read(row["image"]), name=row["image"])
            mask = read_image(masks.read(row["mask"]), name=row["mask"])[..., 0]
            for top, left in ((0, 0), (0, QUARTER), (QUARTER, 0), (QUARTER, QUARTER)):
                window = np.s_[top : top + QUARTER, left : left + QUARTER]
                share = float(mask[window].mean()) / 255
                kind = augment.NONE if share == 0 else TYPES.get(row["class_code"]) if share >= LEAST else None
                place = f"{part}/{kind}"
                if kind is None or count[place] >= MOST[part].get(kind, 1000):
                    continue
                (folder / place).mkdir(parents=True, exist_ok=True)
                picture = Image.fromarray(image[window]).resize((SIDE, SIDE), Image.Resampling.BOX)
                picture.save(folder / place / f"{row['tile']}-{top}-{left}.png")
                count[place] += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs") / "augment-jiangsu", help="where the page goes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        count = written(results.data_folder(), Path(folder))
        print(dict(count), flush=True)
        page = augment.run(args.out, Effort(data=(folder,), seeds=args.seeds, steps=300))
    rows = [{"panel": panel.name} | rounded(row) for panel in page.panels for row in panel.rows]
    print(results.write(
        "augment_jiangsu", claim=str(__doc__).splitlines()[0].removeprefix("Claim: "), rows=rows,
        headline=headline(rows), seeds=list(range(args.seeds)), packages=("diffusers", "transformers", "peft"),
        pictures=dict(count), found={panel.name: panel.found for panel in page.panels},
    ))  # fmt: skip


if __name__ == "__main__":
    main()
