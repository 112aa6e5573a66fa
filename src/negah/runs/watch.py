"""What a pretraining shows of itself while it goes on: scores on labelled pictures, maps of a few others, a line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from negah import ranks
from negah.errors import InputError, OutputError
from negah.images.pool import Pool, folder_labels
from negah.images.views import crop
from negah.nn.backbone import Backbone
from negah.probe.evaluate import embed, knn_accuracy, linear_accuracy
from negah.probe.maps import can_map, sheet
from negah.progress import Progress, Say
from negah.train import shards
from negah.train.callbacks import Callback
from negah.train.run import Run
from negah.weights.save import write, write_json

SHOWN = 6  # pictures on a sheet of maps
NAMES = {"knn20": "kNN (k 20)", "knn200": "kNN (k 200)", "linear": "linear"}
T = TypeVar("T")


@dataclass(frozen=True)
class Labelled:
    """Labelled pictures, a fifth of each class held out: what features are judged on."""

    pool: Pool
    labels: Int[Tensor, " tile"]
    held: Bool[Tensor, " tile"]

    @classmethod
    def load(cls, paths: Sequence[str], side: int, *, seed: int, progress: Progress):
        """Raises InputError on pictures of one class, or of a class of which there is only one."""
        pool = Pool(list(paths), side, cut="none", progress=lambda _, done, total: progress("scores", done, total))
        try:
            labels, classes = folder_labels(pool.names)
        except InputError as error:
            raise InputError(f"--score: {error}") from None
        held = torch.zeros(len(pool), dtype=torch.bool)
        generator = torch.Generator().manual_seed(seed)
        for label, name in enumerate(classes):
            of = (labels == label).nonzero().squeeze(1)
            if len(of) < 2:
                raise InputError(f"--score: there is one picture of {name} only, one to learn from and one to ask for")
            held[of[torch.randperm(len(of), generator=generator)[: max(1, len(of) // 5)]]] = True
        return cls(pool, labels, held)

    def scores(self, net: nn.Module) -> dict[str, float]:
        """Share of the held out whose class the others tell: by their 20 or 200 nearest, and by a linear layer."""
        x = embed(net, (self.pool[i] for i in range(len(self.pool))))
        told = x[~self.held], self.labels[~self.held], x[self.held], self.labels[self.held]
        found = {f"knn{k}": knn_accuracy(*told, k=k) for k in (20, 200)}
        return found | {"linear": linear_accuracy(*told)}


class Watch(Callback):
    """At fixed epochs, and at the end: scores.json of the run so far, a sheet of maps, a line.

    Args:
        out: folder of scores.json and of `maps/`.
        learnt: gives a backbone of its own with what was learnt up to now; all processes have to ask for it.
        pictures: of the maps.
        epoch: steps in one.
        every: epochs between two looks.
        say: told the line.
    """

    def __init__(
        self, out: Path, learnt: Callable[[], Backbone], pictures: UInt8[Tensor, "n 3 side side"], *, epoch: int,
        every: int, say: Say,
    ):  # fmt: skip
        self.out, self.learnt, self.pictures = out, learnt, pictures
        self.epoch, self.every, self.say = epoch, every, say

    def after_step(self, run: Run) -> None:
        if run.step % (self.every * self.epoch) and run.step < run.steps and not run.stop:
            return
        net = self.learnt()
        on_first(lambda: self.look(run, net))

    def look(self, run: Run, net: Backbone) -> None:
        """Write and tell what there is after this step."""
        at = run.step // self.epoch
        loss = (run.history or run.unlogged)[-1]["loss"]
        line = [f"epoch {at} of {run.steps // self.epoch}: loss {loss:.4g}"]
        if run.scores and run.scores[-1]["step"] == run.step:
            line += [f"{told} {run.scores[-1][name]:.3f}" for name, told in NAMES.items()]
        if can_map(net):
            path = self.out / "maps" / f"epoch-{at:04}.png"
            write(path, lambda part: Image.fromarray(sheet(net, self.pictures)).save(part, "PNG"))
            line.append(str(path))
        write_json({"scores": dated(run.scores, self.epoch), "history": run.history}, self.out / "scores.json")
        self.say(", ".join(line))


def learnt_by(seen: nn.Module, net: Backbone) -> Callable[[], Backbone]:
    """`net` with the weights that `seen`, the backbone in training, has when it is asked for; whole also if sharded."""

    def learnt() -> Backbone:
        net.load_state_dict(shards.whole(seen.state_dict()))
        return net

    return learnt


def on_first(do: Callable[[], T]) -> T:
    """What `do` gives on process 0, for all; when it raises an OutputError there, all do, and none is left waiting."""
    found: list[Any] = [None, None]
    if ranks.rank() == 0:
        try:
            found[0] = do()
        except OutputError as error:
            found[1] = error
    value, failure = ranks.gather(found)[0]
    if failure is not None:
        raise failure
    return value


def dated(scores: Sequence[dict[str, float]], epoch: int) -> list[dict[str, Any]]:
    """Rows of scores with the epoch that each was taken after."""
    return [{"epoch": row["step"] / epoch, **row} for row in scores]


def few_of(pool: Pool, size: int) -> UInt8[Tensor, "n 3 size size"]:
    """Pictures for the maps: SHOWN of the pool at equal distances, whole, at `size` pixels."""
    chosen = torch.linspace(0, len(pool) - 1, min(SHOWN, len(pool))).round().long().tolist()
    images = torch.stack([pool[i] for i in chosen])
    return crop(images, torch.tensor([[0, 0, pool.side, pool.side]] * len(images)), size)
