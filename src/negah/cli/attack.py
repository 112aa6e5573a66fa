"""`negah attack`: how far a detector can be trusted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from negah.cli import show


@dataclass(kw_only=True)
class Attack(show.Verb):
    """Say how robust a detector is, and whether that figure can be trusted.

    Labelled images go through a ladder of attacks at rising radii, until one fools the detector. Fifteen verdicts then
    look for what makes such a figure too high: weak attacks, gradients that lead nowhere, and the like.

    Exit status 3: done, but some images could not be read.

    Example:
        negah attack --model negah/aerial-tiny --data tiles/ --out attack
        negah attack --model probe/head.safetensors --data labels.csv --norm L2 --eps 0.25 0.5 --out attack
    """

    model: Annotated[str, arg(metavar="FILE")]
    """Detector: a file written by `negah probe train`, or a bundled name."""
    data: Path
    """Class folders, images named *-P and *-N, a zip of either, or a csv, as for `negah probe eval`."""
    out: Path
    """Folder for robustness.json, pictures.png and run.json."""
    norm: Literal["Linf", "L2", "L1"] = "Linf"
    """How a perturbation is measured."""
    eps: Annotated[tuple[float, ...], arg(metavar="E...")] = ()
    """Radii, where a pixel's range is 1 (default: half to eight grey levels for Linf)."""
    images: Annotated[int, arg(metavar="N")] = 500
    """At most so many, drawn at random."""
    steps: Annotated[int, arg(metavar="N")] = 50
    """Of the longer attacks."""
    bf16: bool = False
    """Search in bfloat16; what counts is computed in fp32."""
    positive: Annotated[str | None, arg(metavar="CLASS")] = None
    """The class that counts as having panels (default: what is called panel, positive, P or 1)."""
    seed: int = 0
    """Of the images and of random starts."""

    def run(self) -> int:
        """Attack, and print the curve and the verdicts."""
        from negah.runs.attack import Options, attack

        options = Options(
            norm=self.norm, eps=self.eps, images=self.images, steps=self.steps, bf16=self.bf16, positive=self.positive,
            seed=self.seed,
        )  # fmt: skip
        with show.Bars(quiet=self.json) as bars:
            result = attack(self.model, self.data, self.out, options, progress=bars)
        status = 3 if result.failures else 0
        if self.json:
            show.as_json({"status": "some inputs failed" if status else "complete", **result.figures()})
            return status
        found = result.robustness
        rows = [("0", f"{found.clean:.3f}", "", "")]
        for p in found.curve:
            shown = f"{p.eps * 255:g}/255" if self.norm == "Linf" else f"{p.eps:g}"
            rows.append((shown, f"{p.robust:.3f}", f"{p.low:.3f} to {p.high:.3f}", f"{p.gradients:.0f}"))
        title = f"{len(found.images)} images, {self.norm}: share that withstands all attacks, 95 % interval"
        show.table(rows, header=("eps", "accuracy", "interval", "gradients"), title=title)
        marks = {"ok": "ok", "note": "note", "alarm": "ALARM"}
        show.table(
            [(v.number, marks[v.state], v.name, v.text) for v in found.verdicts],
            title=f"verdicts, on {found.sample} images at eps {found.verdicts_eps:.4g}",
        )
        for verdict in found.alarms:
            show.warning(f"{verdict.name}: {verdict.text}; the figures above may be too high")
        show.failures([(f"left out {name}", why) for name, why in result.failures], more="more images were left out")
        return status
