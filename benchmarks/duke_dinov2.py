"""Claim: official DINOv2-S with registers, frozen, and the attentive head, on the Duke tiles.

    python benchmarks/duke_dinov2.py                # needs a network once: the weights come from the Hugging Face hub
    python benchmarks/duke_dinov2.py --random       # random weights in the true layout: shows that it runs, no more

Grouped folds as in duke_grouped; the head is trained on frozen features of the tiles enlarged to 224 px.  Linear and
kNN probes on the same features and the image statistics stand beside it.  With --random no result is written.
"""

import argparse
import tempfile
from pathlib import Path

import results
import torch

from negah import weights
from negah.nn.vit import ViT
from negah.runs.probe import Options, train_probe

OFFICIAL = "facebook/dinov2-with-registers-small"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", action="store_true", help="random weights instead of the official ones")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--views", type=int, default=4, help="turned views of each training tile")
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args()
    labels = results.data_folder() / "duke-solar/labels.csv"
    options = Options(group="overlap_group", size=args.size, gsd_m=0.3, views=args.views, epochs=args.epochs)
    with tempfile.TemporaryDirectory() as folder:
        name = random_weights(Path(folder) / "dinov2") if args.random else OFFICIAL
        result = train_probe(labels, Path(folder) / "probe", name, options)
    rows = [{"name": name, "auc": s.auc.value, "auc_low": s.auc.low, "auc_high": s.auc.high,
             "accuracy": s.accuracy.value} for name, s in result.methods.items()]  # fmt: skip
    for row in rows:
        print(f"{row['name']:24} AUC {row['auc']:.4f} [{row['auc_low']:.4f}, {row['auc_high']:.4f}]")
    if args.random:
        print("The weights were random: these figures say nothing of DINOv2, only that the pairing runs.")
        return
    head = rows[0]
    results.write(
        "duke_dinov2", claim="Pooled AUC on Duke tiles: frozen official DINOv2-S with registers, attentive head",
        rows=rows, seeds=[options.seed], packages=("transformers", "numpy"),
        headline={"value": head["auc"], "unit": "AUC", "target": 0.985, "better": "higher"},
    )  # fmt: skip


def random_weights(folder: Path) -> str:
    """DINOv2-S with registers as transformers writes it, filled with random values."""
    torch.manual_seed(0)
    vit = ViT(patch=14, dim=384, depth=12, heads=6, registers=4, grid=(37, 37), interpolation="size-antialias")
    return str(weights.save(vit, folder, layout="transformers"))


if __name__ == "__main__":
    main()
