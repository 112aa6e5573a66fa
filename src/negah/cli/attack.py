"""`negah attack`: how far a classifier can be trusted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from negah.cli import show


def radius(text: str) -> float:
    """A number or a fraction: 0.03, 8/255. Raises ValueError for what is neither."""
    over, line, under = text.partition("/")
    if line and not float(under):
        raise ValueError(f"{text} divides by 0")
    return float(over) / float(under) if line else float(text)


def grey_levels(radius: float) -> str:
    """As `radius` reads it: 2/255 where it is so many grey levels, else the number."""
    levels = round(255 * radius, 6)
    return f"{levels:g}/255" if levels.is_integer() else f"{radius:g}"


Radius = Annotated[
    float,
    PrimitiveConstructorSpec(
        nargs=1, metavar="E", instance_from_str=lambda words: radius(words[0]),
        is_instance=lambda value: isinstance(value, float), str_from_instance=lambda value: [grey_levels(value)],
    ),
]  # fmt: skip


@dataclass(kw_only=True)
class Attack(show.Verb):
    """Say how robust a classifier is, and whether that figure can be trusted.

    Labelled images go through a ladder of attacks at rising radii, until one fools the model. Fifteen verdicts then
    look for what makes such a figure too high: weak attacks, gradients that lead nowhere, and the like. report.html
    tells all.

    A model is a detector of panels; the folder of an image classifier, as transformers or timm save it; a name of
    timm's and a file of weights; or FILE.py:FUNCTION, which is run and returns a model of images in [0, 1] to logits.

    Exit status 3: done, but some images could not be read.

    Example:
        negah attack --model negah/aerial-tiny --data tiles/ --out attack
        negah attack --model probe/head.safetensors --data labels.csv --norm L2 --eps 0.25 0.5 --out attack
        negah attack --model my/vit --data photos/ --eps 1/255 4/255 --out attack
        negah attack --model timm/resnet18 --weights resnet18.safetensors --data photos/ --out attack
        negah attack --model mine.py:build --size 32 --data cifar/test.zip --out attack
    """

    model: Annotated[str, arg(metavar="MODEL")]
    """A detector's file or bundled name, a folder, timm/NAME, or FILE.py:FUNCTION."""
    data: Path
    """Class folders, a zip of them, or a csv with file,label. Detectors: as for `negah probe eval`."""
    out: Path
    """Folder for report.html, robustness.json and run.json."""
    weights: Annotated[Path | None, arg(metavar="FILE")] = None
    """Weights of a timm/NAME."""
    size: Annotated[int | None, arg(metavar="PX")] = None
    """Side that images are resized to for a FILE.py:FUNCTION (default: they are taken as they are)."""
    norm: Literal["Linf", "L2", "L1"] = "Linf"
    """How a perturbation is measured."""
    eps: Annotated[tuple[Radius, ...], arg(metavar="E...")] = ()
    """Radii, where a pixel's range is 1, as in 0.03 or 8/255 (default: half to eight grey levels for Linf)."""
    images: Annotated[int | None, arg(metavar="N")] = None
    """At most so many, drawn at random (default: 500, and 100 of more than 64 px)."""
    sample: Annotated[int | None, arg(metavar="N")] = None
    """Images that verdicts are taken on, which takes long (default: 64, and 32 of more than 64 px)."""
    steps: Annotated[int, arg(metavar="N")] = 50
    """Steps of the longer attacks."""
    bf16: bool = False
    """Search in bfloat16, which a GPU does faster; what counts is computed in fp32."""
    positive: Annotated[str | None, arg(metavar="CLASS")] = None
    """For a detector, the class that has panels (default: what is called panel, positive, P or 1)."""
    seed: int = 0
    """Of the images and of random starts."""

    def run(self) -> int:
        """Attack, and print the curve and the verdicts."""
        from negah.runs.attack import Options, attack
        from negah.runs.attack_page import MARKS
        from negah.runs.attack_page import radius as shown

        options = Options(
            norm=self.norm, eps=self.eps, images=self.images, steps=self.steps, bf16=self.bf16, sample=self.sample,
            positive=self.positive, weights=self.weights, size=self.size, seed=self.seed,
        )  # fmt: skip
        with show.Bars(quiet=self.json) as bars:
            result = attack(self.data, self.out, self.model, options, progress=bars)
        status = 3 if result.failures else 0
        if self.json:
            show.as_json({"status": "some inputs failed" if status else "complete", **result.figures()})
            return status
        found = result.robustness
        rows = [("0", f"{found.clean:.3f}", "", "")]
        for p in found.curve:
            interval = f"{p.low:.3f} to {p.high:.3f}"
            rows.append((shown(self.norm, p.eps), f"{p.robust:.3f}", interval, f"{p.gradients:.0f}"))
        title = f"{len(found.images)} images, {self.norm}: share that withstands all attacks, 95 % interval"
        show.table(rows, header=("eps", "accuracy", "interval", "gradients"), title=title)
        show.table(
            [(v.number, MARKS[v.state], v.name, v.text) for v in found.verdicts],
            title=f"verdicts, on {found.sample} images at eps {shown(self.norm, found.verdicts_eps)}",
        )
        for verdict in found.alarms:
            show.warning(f"{verdict.name}: {verdict.text}; the figures above may be too high")
        show.failures([(f"left out {name}", why) for name, why in result.failures], more="more images were left out")
        return status
