"""Claim: one picture of noise, or one printed sheet, deceives the panel detector on tiles that it was not made of.

    python benchmarks/robust_universal_panels.py          # about a quarter of an hour on one core

Perturbations are made of Duke tiles that negah/aerial-tiny was trained on, and judged on fold 4, which it was not:

universal   one delta in an Linf ball for all tiles, by ascent and by DeepFool (2017), beside random signs of the same
            size; fooled: the detector's answer at its threshold changes.
patch       one square of 5 % or 10 % of the window's side at random places, turned by up to 10 degrees, 10 % brighter
            or darker, values 0.1 to 0.9, total variation weighed in; beside a grey and a random one.  Judged on the
            tiles of which the detector says the opposite of what the patch shall make it say.

Searches run in bfloat16, judgements in fp32.  Intervals are bootstrap samples of groups of overlapping tiles.  No
setting was chosen by fold 4.
"""

import argparse

import numpy as np
import results
import torch
from torch import Tensor

from negah.adversarial import random_signs, universal, universal_deepfool
from negah.adversarial.evaluate import Bf16
from negah.adversarial.patch import Placement, adversarial_patch, patched
from negah.probe.detector import load
from negah.probe.metrics import bootstrap_weights
from negah.runs.aerial.recipe import ASIDE
from negah.runs.aerial.tiles import GSD_M, WINDOW_PX, duke
from negah.runs.classifiers import PanelClassifier

PICTURE = results.ROOT / "docs" / "img" / "attack-panels.png"
LEVELS = (10, 4, 2)  # of 255
SHARES = (0.05, 0.1)  # of the window's side
PRINTABLE, SMOOTH, PLACES = (0.1, 0.9), 0.2, 3  # places: at which each judged tile is tried
NAMES = {0: "hide panels", 1: "make panels appear"}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--tiles", type=int, default=192, help="that a universal perturbation is made of")
    parser.add_argument("--epochs", type=int, default=8, help="of the ascent")
    parser.add_argument("--steps", type=int, default=100, help="of making a patch")
    parser.add_argument("--dry", action="store_true", help="measure, and write nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tiles = duke(results.data_folder())
    images = torch.from_numpy(tiles.labelled.images).permute(0, 3, 1, 2).float() / 255
    aside = torch.from_numpy(tiles.folds() == ASIDE)
    model = PanelClassifier(load("negah/aerial-tiny")).eval()
    search = Bf16(model)
    known, asked, groups = images[~aside], images[aside], tiles.groups[aside.numpy()]
    known = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(0))]
    said, rows, shown = answers(model, asked), [], {}

    def add(row: dict, flags: Tensor, which: Tensor) -> None:
        rows.append(row | share(flags.double().numpy(), groups[which.numpy()]))
        print(rows[-1], flush=True)

    everything = torch.ones(len(asked), dtype=torch.bool)
    for level in LEVELS:
        eps = level / 255
        for form in ("ascent", "DeepFool", "random signs"):
            generator, some = torch.Generator().manual_seed(0), known[: args.tiles]
            if form == "ascent":
                delta = universal(search, some, eps=eps, epochs=args.epochs, batch=32, generator=generator)
            elif form == "DeepFool":
                # classes=2: there are no more.
                delta = universal_deepfool(
                    search, some, eps=eps, epochs=2, classes=2, steps=10, generator=generator
                )  # fmt: skip
            else:
                delta = random_signs(images[:1], eps, generator)
            now = answers(model, (asked + delta).clamp(0, 1))
            row = {"attack": "universal", "form": form, "eps_255": level}
            row |= {
                "panels_lost": (now[said == 1] == 0).double().mean().item(),
                "panels_appeared": (now[said == 0] == 1).double().mean().item(),
            }
            add(row, now != said, everything)
            if form == "ascent":
                shown[f"one perturbation for all tiles,\nat most {level} of 255 (here amplified)"] = 0.5 + delta[0] / (
                    2 * eps
                )

    before = answers(model, known)
    for part in SHARES:
        side = round(part * WINDOW_PX)
        for target, name in NAMES.items():
            generator = torch.Generator().manual_seed(0)
            made = adversarial_patch(
                search, known[before != target], target=target, side=side, steps=args.steps, smooth=SMOOTH,
                printable=PRINTABLE, generator=generator,
            )  # fmt: skip
            low, high = PRINTABLE
            noise = low + (high - low) * torch.rand(made.shape, generator=generator)
            which = said != target
            for form, patch in (("made", made), ("grey", torch.full_like(made, 0.5)), ("random", noise)):
                generator = torch.Generator().manual_seed(1)  # the same places for all
                flags = torch.stack([
                    answers(model, patched(asked[which], patch, Placement(), generator)) == target
                    for _ in range(PLACES)
                ]).double().mean(0)  # fmt: skip
                add(
                    {"attack": "patch", "form": form, "aim": name, "side_px": side, "side_m": side * GSD_M},
                    flags,
                    which,
                )
            shown[f"{name}:\n{side} px, {side * GSD_M:.1f} m"] = made
    if args.dry:
        return
    head = next(r for r in rows if r["form"] == "ascent" and r["eps_255"] == LEVELS[0])
    signs = next(r for r in rows if r["form"] == "random signs" and r["eps_255"] == LEVELS[0])
    path = results.write(
        "robust_universal_panels",
        claim="One perturbation for all tiles changes what the panel detector says of new ones",
        rows=rows, seeds=[0], packages=("numpy",), made_of=args.tiles, judged_on=len(asked),
        of_which_said_to_hold_panels=int(said.sum()), places_per_tile=PLACES,
        headline={
            "value": head["fooled"], "unit": f"of Duke fold {ASIDE} fooled at Linf 10/255; random signs "
            f"{signs['fooled']:.3f}", "target": None, "better": "lower", "low": head["low"], "high": head["high"],
        },
    )  # fmt: skip
    picture(shown)
    print(path)


@torch.no_grad()
def answers(model: PanelClassifier, images: Tensor) -> Tensor:
    """1 where the detector says panels, at its threshold, in fp32."""
    return torch.cat([model(part).argmax(1) for part in images.split(64)])


def share(flags: np.ndarray, groups: np.ndarray) -> dict:
    """Mean of the flags, and its interval of 95 % over groups."""
    member = np.unique(groups, return_inverse=True)[1]
    weights = bootstrap_weights(member, 1000, torch.Generator().manual_seed(0))
    drawn = np.concatenate([(w * flags).sum(1) / w.sum(1) for w in weights])
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"tiles": len(flags), "fooled": float(flags.mean()), "low": float(low), "high": float(high)}


def picture(shown: dict[str, Tensor]) -> None:
    """Perturbations and patches alone: no tile is shown."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.2), layout="constrained")
    axes = figure.subplots(2, 4).ravel()
    for axis, (text, values) in zip(axes, shown.items()):
        axis.imshow(values.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
        axis.set_title(text, fontsize=9)
    for axis in axes:
        axis.axis("off")
    figure.savefig(PICTURE, dpi=90)


if __name__ == "__main__":
    main()
