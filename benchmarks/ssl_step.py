"""Claim: a training step of DINO and of DINOv2 takes less time and memory than lightly's, on the same CPU.

    python benchmarks/ssl_step.py [dino] [dinov2] [--what speed memory products] [--threads 1] [--who NAME ...]

A step is: forward, backward, clip, AdamW, teacher.  ViT-S with patches of 14 px, 2 crops of 224 px and 8 of 98 px of
each of 8 images, heads of 2048-2048-256 on 65,536 prototypes, fp32; stochastic depth of 0.1 rising with depth and no
layer scale (DINO), or 0.3 in all blocks and layer scale (DINOv2).

lightly's side is put together from its parts as its own example for DINOv2 does it: the two global crops of all images
as one batch, the local ones as another, losses and masks by its own functions; DINO is the same without iBOT and
KoLeo.  The transformer is timm's, in lightly's wrapper.  Two more contestants tell what the parts of ours are worth:
"negah, loop" calls the transformer once for each size of crops instead of `ViT.many`, "negah, F.linear" leaves products
to PyTorch's choice, see `nn.linear`.

Speed: the contestants take turns in one process, and each round gives a ratio; medians of those.  By the clock, and by
the processor's time ("cpu"), which other programs on the machine disturb less; "load" is how many programs wanted a
core in the last minute, this one among them.  Memory: each in a process of its own, the highest resident size during
steps, over that just before them ("step"), and from zero ("all", which holds PyTorch itself, weights, teacher and
optimiser too).  Each run measures what it is asked for and leaves the other rows of the file as they are.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import results
import torch
import torch.nn.functional as F
from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
from lightly.models.modules import DINOProjectionHead, DINOv2ProjectionHead, MaskedVisionTransformerTIMM
from lightly.models.utils import deactivate_requires_grad, random_block_mask, update_drop_path_rate, update_momentum
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import negah.nn.linear
from negah.lab.costs import highest
from negah.nn.backbone import ViTBackbone
from negah.nn.linear import product
from negah.nn.vit import Tokens, ViT
from negah.ssl.dino import DINO
from negah.ssl.dinov2 import DINOv2
from negah.train import Objective
from negah.train.objective import Groups

IMAGES, DEPTH, GRID, PATCH, WIDTH = 8, 12, 16, 14, 384
NAME, PROTOTYPES = "ssl_step", 65_536
PROGRESS = 0.5  # of a run: the last layers train, temperatures are warm
TARGETS = {"dino": 1.1, "dinov2": 1.3}
MEMORY_TARGET = 0.8
RIVALS, PLAIN = ("lightly", "negah"), "negah, F.linear"
ROUNDS_OF_OTHERS = 2
Seconds = list[tuple[float, float]]  # of each step: by the clock, and of the processor's time


class Looped(ViT):
    """Our transformer, called once for each size of crops."""

    def many(self, crops: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None) -> list[Tokens]:
        hidden = masks[:2] if masks is not None and masks[0] is not None else None
        views = [Tokens(*parts) for parts in zip(*(x.chunk(2) for x in self(
            torch.cat(list(crops[:2])), None if hidden is None else torch.cat([m for m in hidden if m is not None])
        )))]  # fmt: skip
        if len(crops) > 2:
            local = self(torch.cat(list(crops[2:])))
            views += [Tokens(*parts) for parts in zip(*(x.chunk(len(crops) - 2) for x in local))]
        return views


def ours(method: str, kind: type[ViT] = ViT) -> Objective:
    if method == "dino":
        vit = kind(patch=PATCH, grid=(GRID, GRID), layer_scale=None, drop_path=0.1)
        return DINO(ViTBackbone(vit), prototypes=PROTOTYPES)
    vit = kind(patch=PATCH, grid=(GRID, GRID), drop_path=[0.3] * DEPTH)
    return DINOv2.short(ViTBackbone(vit), prototypes=PROTOTYPES, layer_decay=1.0)


class Lightly(Objective):
    """What both of lightly's methods have in common: student, frozen teacher, its update."""

    def __init__(self, head: type[nn.Module], *, layer_scale: float | None, drop_path: float):
        super().__init__()
        vit = VisionTransformer(
            img_size=GRID * PATCH, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=6, num_classes=0,
            dynamic_img_size=True, init_values=layer_scale, drop_path_rate=drop_path,
        )  # fmt: skip
        backbone = MaskedVisionTransformerTIMM(vit, antialias=False, pos_embed_initialization="skip")
        self.student = nn.ModuleList([backbone, head(WIDTH, output_dim=PROTOTYPES)])
        self.teacher = nn.ModuleList([copy.deepcopy(backbone), head(WIDTH, output_dim=PROTOTYPES)])
        deactivate_requires_grad(self.teacher)
        self.dino = DINOLoss(PROTOTYPES)

    def train(self, mode: bool = True) -> "Lightly":
        super().train(mode)
        self.teacher.eval()
        return self

    def after_step(self, progress: float) -> None:
        update_momentum(self.student, self.teacher, m=0.996)


class LightlyDINO(Lightly):
    def __init__(self):
        super().__init__(DINOProjectionHead, layer_scale=None, drop_path=0.1)

    def forward(self, crops: Sequence[Tensor]) -> dict[str, Tensor]:
        (student, head), (teacher, teacher_head) = self.student, self.teacher
        whole, local = torch.cat(list(crops[:2])), torch.cat(list(crops[2:]))
        with torch.no_grad():
            targets = teacher_head(teacher(whole))
        answers = torch.cat([head(student(whole)), head(student(local))])
        return {"loss": self.dino(targets.chunk(2), answers.chunk(len(crops)), teacher_temp=0.07)}


class LightlyDINOv2(Lightly):
    def __init__(self):
        super().__init__(DINOv2ProjectionHead, layer_scale=1e-5, drop_path=0.3)
        update_drop_path_rate(self.student[0].vit, 0.3, mode="uniform")
        self.ibot, self.koleo = IBOTPatchLoss(PROTOTYPES), KoLeoLoss()

    def forward(self, crops: Sequence[Tensor]) -> dict[str, Tensor]:
        (student, head), (teacher, teacher_head) = self.student, self.teacher
        whole, local = torch.cat(list(crops[:2])), torch.cat(list(crops[2:]))
        hidden = random_block_mask((len(whole), GRID, GRID))
        mask = torch.cat([hidden.new_zeros(len(whole), 1), hidden.flatten(1)], 1)
        with torch.no_grad():
            tokens = teacher.encode(whole)
            targets, patch_targets = teacher_head(tokens[:, 0]), teacher_head(tokens[mask])
        tokens = student.encode(whole, mask=mask)
        cls = tokens[:, 0]
        answers = torch.cat([head(cls), head(student.encode(local)[:, 0])])
        dino = self.dino(targets.chunk(2), answers.chunk(len(crops)), teacher_temp=0.07)
        ibot = self.ibot(patch_targets, head(tokens[mask]), mask=hidden, teacher_temp=0.07)
        return {"loss": dino + ibot + 0.1 * sum(self.koleo(part) for part in cls.chunk(2))}


CONTESTANTS: dict[str, Callable[[str], Objective]] = {
    "lightly": lambda method: LightlyDINO() if method == "dino" else LightlyDINOv2(),
    "negah": ours,
    "negah, loop": lambda method: ours(method, Looped),
    PLAIN: ours,
}


class Step:
    """The step of `train.fit`, for one contestant."""

    def __init__(self, name: str, method: str):
        torch.manual_seed(0)
        self.objective = CONTESTANTS[name](method).train()
        self.fewest = sys.maxsize if name == PLAIN else negah.nn.linear.FEWEST
        groups: Groups = self.objective.param_groups()
        self.parts: dict[str, list[Tensor]] = {}
        for group in groups:
            self.parts.setdefault(group.get("part", ""), []).extend(group["params"])
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, weight_decay=0.04)

    def __call__(self, crops: Sequence[Tensor]) -> tuple[float, float]:
        """Seconds that it took: by the clock, and of processors' time."""
        start, used = time.perf_counter(), time.process_time()
        self.objective.before_step(PROGRESS)
        with mock.patch.object(negah.nn.linear, "FEWEST", self.fewest):
            self.objective(crops)["loss"].backward()
        for part in self.parts.values():
            nn.utils.clip_grad_norm_(part, 3.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.objective.after_step(PROGRESS)
        return time.perf_counter() - start, time.process_time() - used


def crops() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sides = [GRID * PATCH] * 2 + [7 * PATCH] * 8
    return [torch.rand(IMAGES, 3, side, side, generator=generator) for side in sides]


def speed(method: str, who: Sequence[str], rounds: int) -> Iterator[list[dict[str, Any]]]:
    """After each round a row for each contestant; they take turns, after one step each that is not counted."""
    batch = crops()
    steps = {name: Step(name, method) for name in who}
    seconds: dict[str, Seconds] = {name: [] for name in steps}
    for turn in range(1 + rounds):
        due = [name for name in steps if name in RIVALS or turn <= ROUNDS_OF_OTHERS]
        for name in due[:: 1 if turn % 2 else -1]:
            taken = steps[name](batch)
            if turn:
                seconds[name].append(taken)
        if turn:
            print(method, turn, {name: taken[-1] for name, taken in seconds.items()}, flush=True)
            yield [compared(method, name, taken, seconds["lightly"]) for name, taken in seconds.items()]


def compared(method: str, name: str, taken: Seconds, theirs: Seconds) -> dict[str, Any]:
    wall, cpu = ([their / our for their, our in zip(a, b)] for a, b in zip(zip(*theirs), zip(*taken)))
    return {
        "method": method, "what": "speed", "who": name, "threads": torch.get_num_threads(), "rounds": len(taken),
        "images_per_s": IMAGES / statistics.median(clock for clock, _ in taken), "ratio": statistics.median(wall),
        "from_to": [min(wall), max(wall)],
        "images_per_cpu_s": IMAGES / statistics.median(used for _, used in taken),
        "ratio_cpu": statistics.median(cpu), "from_to_cpu": [min(cpu), max(cpu)],
        "load": os.getloadavg()[0],
    }  # fmt: skip


def memory(method: str, who: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each contestant that differs in memory."""
    used = {}
    for name in who:
        if name == PLAIN:
            continue
        command = [sys.executable, __file__, method, "--threads", str(torch.get_num_threads()), "--peak", name]
        used[name] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(method, name, used[name], flush=True)
    return [
        {
            "method": method, "what": "memory", "who": name, "threads": torch.get_num_threads(),
            "step_mb": found["step"], "ratio": found["step"] / used["lightly"]["step"],
            "all_mb": found["all"], "ratio_all": found["all"] / used["lightly"]["all"],
        }
        for name, found in used.items()
    ]  # fmt: skip


def peak(name: str, method: str) -> dict[str, float]:
    """Highest resident size over two steps of this process, in MB: over that before them, and in all."""
    batch, step = crops(), Step(name, method)
    step(batch)

    def twice() -> None:
        step(batch)
        step(batch)

    above, whole = highest(twice)
    return {"step": above / 2**20, "all": whole / 2**20}


def products() -> list[dict[str, Any]]:
    """`nn.linear.product` against F.linear on matrices of this step: billions of operations per processor's second."""
    rows = []
    for shape in ((7312, 384, 1536), (7312, 1536, 384), (700, 2048, 2048), (700, 256, PROTOTYPES)):
        count, inner, outer = shape
        x, w, g = torch.randn(count, inner), torch.randn(outer, inner), torch.randn(count, outer)
        x.requires_grad_(), w.requires_grad_()
        best: dict[str, float] = {}
        for _ in range(5):
            for name, form in (("F.linear", F.linear), ("product", product)):
                start = time.process_time()
                y = form(x, w)
                forward = time.process_time()
                y.backward(g)
                for part, taken, work in (
                    ("forward", forward - start, 2), ("backward", time.process_time() - forward, 4),
                ):  # fmt: skip
                    rate = work * count * inner * outer / taken / 1e9
                    best[f"{name} {part}"] = max(best.get(f"{name} {part}", 0.0), rate)
        rows.append({"shape": list(shape), "threads": torch.get_num_threads()} | best)
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("methods", nargs="*", choices=[*TARGETS, []], default=list(TARGETS))
    parser.add_argument("--what", nargs="+", choices=["speed", "memory", "products"], default=["speed", "memory"])
    parser.add_argument("--who", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", choices=list(CONTESTANTS), help="print the memory of one, nothing else")
    args = parser.parse_args()
    if "lightly" not in args.who:
        parser.error("--who needs lightly: ratios are to it")
    torch.set_num_threads(args.threads)
    if args.peak:
        print(json.dumps(peak(args.peak, args.methods[0])))
        return
    if "products" in args.what:
        write([], products())
    for method in args.methods:
        if "memory" in args.what:
            write(memory(method, args.who), [])
        if "speed" in args.what:
            for rows in speed(method, args.who, args.rounds):
                write(rows, [])


def write(rows: list[dict[str, Any]], rates: list[dict[str, Any]]) -> None:
    """New rows take the place of those of the same contestant, method and threads; the others stay."""
    path = results.FOLDER / f"{NAME}.json"
    old = json.loads(path.read_text()) if path.exists() else {"rows": [], "products": []}

    def merged(before: list[dict[str, Any]], new: list[dict[str, Any]], *keys: str) -> list[dict[str, Any]]:
        found = {str([row[key] for key in keys]): row for row in [*before, *new]}
        return [found[key] for key in sorted(found)]

    every = merged(old["rows"], rows, "method", "what", "threads", "who")
    ratios = {(row["method"], row["threads"]): row["ratio"] for row in every
              if row["what"] == "speed" and row["who"] == "negah"}  # fmt: skip
    path = results.write(
        NAME, claim="Images per second of a DINOv2 training step over lightly's, on the CPU", rows=every, seeds=[0],
        packages=("lightly", "timm"), prototypes=PROTOTYPES, targets=TARGETS | {"memory": MEMORY_TARGET},
        products=merged(old["products"], rates, "threads", "shape"),
        headline={"value": ratios.get(("dinov2", 1)), "unit": "times lightly, one thread",
                  "target": TARGETS["dinov2"], "better": "higher"},
    )  # fmt: skip
    print(path)


if __name__ == "__main__":
    main()
