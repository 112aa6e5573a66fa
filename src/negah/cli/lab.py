"""`negah lab`: experiments that answer questions about methods."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tyro.conf import Positional, arg

from negah.cli import show


@dataclass(kw_only=True)
class Lab(show.Verb):
    """Answer a question about methods by an experiment, as a page with plots.

    NAME is one of
        collapse       what keeps BYOL, SimCLR and DINO from saying the same of every picture
        dino-byol      from BYOL to DINO, one change at a time
        large-batch    LARS and SGD as the batch grows, and what batch norm gives away
        background     how local crops turn DINO's teacher to the object
        dinov2-tricks  what DINOv2's economies save in time and memory
        adversarial    a network is fooled, by FGSM and PGD, and trained on what fools it
        universal      one change for all pictures: how often it fools a network, and another one
        gradient       the closed-form gradient of the contrastive loss: its check, its force, what it saves
        describe       CLIP, SimVLM and CoCa side by side: what they share, what sets them apart
        graph          neighbours without order: which updates are valid, how deep networks of them can be
        augment        whether pictures drawn after DreamBooth help to find a rare panel type

    Small networks on generated pictures: minutes on a CPU.  OUT/index.html is the page.

    Example:
        negah lab collapse --out collapse
        negah lab dino-byol --data cifar10/train.zip --steps 2000 --seeds 3 --out dino-byol
        negah lab gradient --out gradient
        negah lab describe --data captions.csv --out describe
        negah lab adversarial --data cifar10/train.zip cifar10/test.zip --full --out adversarial
    """

    IF_INTERRUPTED: ClassVar[str] = "stopped; the page holds what was done until then"

    name: Positional[
        Literal[
            "collapse",
            "dino-byol",
            "large-batch",
            "background",
            "dinov2-tricks",
            "adversarial",
            "universal",
            "gradient",
            "describe",
            "augment",
            "graph",
        ]
    ]
    """The question: which experiment."""
    out: Path
    """Folder for index.html, results.json and the plots."""
    data: Annotated[tuple[str, ...], arg(metavar="PATH...")] = ()
    """Pictures to train on, a folder for each class; describe: caption files; augment: train and
    test, in each rare, common and none; graph: a folder or npz of Planetoid's (default: generated ones)."""
    steps: Annotated[int | None, arg(metavar="N")] = None
    """Steps of each run (default: 200; adversarial, universal, describe: 500; augment, of DreamBooth: 300; gradient,
    of a descent: 100)."""
    seeds: Annotated[int, arg(metavar="N")] = 1
    """Runs of each setting, or draws of the pairs."""
    batch: Annotated[int | None, arg(metavar="N")] = None
    """Pictures in a step, or pairs whose gradient is looked at (default: 64)."""
    full: bool = False
    """adversarial, universal: ResNet-18, all pictures of --data, 100 epochs; hours on a GPU. graph: larger graphs."""

    def run(self) -> int:
        """Run the experiment, and print what each plot shows."""
        import sys
        from functools import partial

        from negah.errors import InputError
        from negah.lab import (
            adversarial,
            augment,
            background,
            collapse,
            describe,
            dino_byol,
            dinov2_tricks,
            gradient,
            graph,
            large_batch,
            universal,
        )
        from negah.lab.training import Effort

        supervised = self.name in ("adversarial", "universal")
        if self.name == "gradient" and (self.data or self.full):
            given = "--data" if self.data else "--full"
            raise InputError(f"gradient looks at vectors that it draws, and is never reduced: leave out {given}")
        if self.full and not supervised and self.name != "graph":
            raise InputError(f"{self.name} has no --full: give --steps, --seeds and --data")
        if self.full and (self.steps is not None or self.batch is not None):
            raise InputError("--full has steps and batches of its own: leave out --steps and --batch")
        default = {"adversarial": 500, "universal": 500, "describe": 500, "gradient": 100, "augment": 300}.get(
            self.name, 200
        )
        steps = default if self.steps is None else self.steps
        batch = 64 if self.batch is None else self.batch
        for name, value, least in (("steps", steps, 10), ("seeds", self.seeds, 1), ("batch", batch, 4)):
            if value < least:
                raise InputError(f"--{name} {value}: give {least} or more")
        experiments = {
            "collapse": collapse.run, "dino-byol": dino_byol.run, "large-batch": large_batch.run,
            "background": background.run, "dinov2-tricks": dinov2_tricks.run, "adversarial": adversarial.run,
            "universal": universal.run, "gradient": gradient.run, "describe": describe.run,
            "augment": augment.run, "graph": graph.run,
        }  # fmt: skip
        effort = Effort(
            data=self.data, steps=steps, seeds=self.seeds, batch=batch, full=self.full,
            say=partial(print, file=sys.stderr, flush=True),
        )  # fmt: skip
        page = experiments[self.name](self.out, effort)
        if self.json:
            show.as_json({"page": self.out / "index.html", "found": {p.name: p.found for p in page.panels}})
        else:
            show.table([(panel.title, panel.found) for panel in page.panels], title=page.title)
            print(f"page: {self.out / 'index.html'}")
        return 0
