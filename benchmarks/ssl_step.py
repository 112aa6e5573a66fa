"""Claim: a training step of DINO and of DINOv2 takes less time and memory than lightly's, on the same CPU.

    python benchmarks/ssl_step.py --threads 2

A step is: forward, backward, clip, AdamW, teacher.  ViT-S with patches of 14 px, 2 crops of 224 px and 8 of 98 px of
each of 8 images, heads of 2048-2048-256 on K prototypes, fp32; stochastic depth of 0.1 rising with depth and no layer
scale (DINO), or 0.3 in all blocks and layer scale (DINOv2).

lightly's side is put together from its parts as its own example for DINOv2 does it: the two global crops of all images
as one batch, the local ones as another, targets and masks by its own functions; DINO is the same without iBOT and
KoLeo.  The transformer is timm's, in lightly's wrapper.  "negah, loop" is our objective with the transformer called
once for each size of crops instead of `ViT.many`.

Time: the contestants take turns in one process, and each round gives a ratio; medians of those.  Memory: each in a
process of its own, the highest resident size during steps, over that just before them (`step`) and from zero (`all`,
which has PyTorch itself, weights, teacher and optimiser in it).
"""

import argparse
import copy
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import results
import torch
from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
from lightly.models.modules import DINOProjectionHead, DINOv2ProjectionHead, MaskedVisionTransformerTIMM
from lightly.models.utils import deactivate_requires_grad, random_block_mask, update_drop_path_rate, update_momentum
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from negah.nn.backbone import ViTBackbone
from negah.nn.vit import Tokens, ViT
from negah.ssl.dino import DINO
from negah.ssl.dinov2 import DINOv2
from negah.train import Objective
from negah.train.objective import Groups

IMAGES, DEPTH, GRID, PATCH, WIDTH = 8, 12, 16, 14, 384
PROTOTYPES = 65_536
PROGRESS = 0.5  # of a run: the last layers train, temperatures are warm
TARGETS = {"dino": 1.1, "dinov2": 1.3}
MEMORY_TARGET = 0.8
MB = 2**20


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


def ours(method: str, prototypes: int, kind: type[ViT] = ViT) -> Objective:
    if method == "dino":
        vit = kind(patch=PATCH, grid=(GRID, GRID), layer_scale=None, drop_path=0.1)
        return DINO(ViTBackbone(vit), prototypes=prototypes)
    vit = kind(patch=PATCH, grid=(GRID, GRID), drop_path=[0.3] * DEPTH)
    return DINOv2.short(ViTBackbone(vit), prototypes=prototypes, layer_decay=1.0)


class Lightly(Objective):
    """What both of lightly's methods have in common: student, frozen teacher, its update."""

    def __init__(self, head: type[nn.Module], prototypes: int, *, layer_scale: float | None, drop_path: float):
        super().__init__()
        vit = VisionTransformer(
            img_size=GRID * PATCH, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=6, num_classes=0,
            dynamic_img_size=True, init_values=layer_scale, drop_path_rate=drop_path,
        )  # fmt: skip
        backbone = MaskedVisionTransformerTIMM(vit, antialias=False, pos_embed_initialization="skip")
        self.student = nn.ModuleList([backbone, head(WIDTH, output_dim=prototypes)])
        self.teacher = copy.deepcopy(self.student)
        deactivate_requires_grad(self.teacher)
        self.dino = DINOLoss(prototypes)

    def train(self, mode: bool = True) -> "Lightly":
        super().train(mode)
        self.teacher.eval()
        return self

    def after_step(self, progress: float) -> None:
        update_momentum(self.student, self.teacher, m=0.996)


class LightlyDINO(Lightly):
    def __init__(self, prototypes: int):
        super().__init__(DINOProjectionHead, prototypes, layer_scale=None, drop_path=0.1)

    def forward(self, crops: Sequence[Tensor]) -> dict[str, Tensor]:
        (student, head), (teacher, teacher_head) = self.student, self.teacher
        whole, local = torch.cat(list(crops[:2])), torch.cat(list(crops[2:]))
        with torch.no_grad():
            targets = teacher_head(teacher(whole))
        answers = torch.cat([head(student(whole)), head(student(local))])
        return {"loss": self.dino(targets.chunk(2), answers.chunk(len(crops)), teacher_temp=0.07)}


class LightlyDINOv2(Lightly):
    def __init__(self, prototypes: int):
        super().__init__(DINOv2ProjectionHead, prototypes, layer_scale=1e-5, drop_path=0.3)
        update_drop_path_rate(self.student[0].vit, 0.3, mode="uniform")
        self.ibot, self.koleo = IBOTPatchLoss(prototypes), KoLeoLoss()

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


CONTESTANTS: dict[str, Callable[[str, int], Objective]] = {
    "lightly": lambda method, k: LightlyDINO(k) if method == "dino" else LightlyDINOv2(k),
    "negah": ours,
    "negah, loop": lambda method, k: ours(method, k, Looped),
}


class Step:
    """The step of `train.fit`, for one contestant."""

    def __init__(self, name: str, method: str, prototypes: int):
        torch.manual_seed(0)
        self.objective = CONTESTANTS[name](method, prototypes).train()
        groups: Groups = self.objective.param_groups()
        self.parts: dict[str, list[Tensor]] = {}
        for group in groups:
            self.parts.setdefault(group.get("part", ""), []).extend(group["params"])
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, weight_decay=0.04)

    def __call__(self, crops: Sequence[Tensor]) -> float:
        """Seconds that it took."""
        start = time.perf_counter()
        self.objective.before_step(PROGRESS)
        self.objective(crops)["loss"].backward()
        for part in self.parts.values():
            nn.utils.clip_grad_norm_(part, 3.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.objective.after_step(PROGRESS)
        return time.perf_counter() - start


def crops() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sides = [GRID * PATCH] * 2 + [7 * PATCH] * 8
    return [torch.rand(IMAGES, 3, side, side, generator=generator) for side in sides]


def times(method: str, prototypes: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant's steps; they take turns, after one step each that is not counted."""
    batch = crops()
    steps = {name: Step(name, method, prototypes) for name in CONTESTANTS}
    found: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(1 + rounds):
        for name in list(steps)[:: 1 if turn % 2 else -1]:
            seconds = steps[name](batch)
            if turn:
                found[name].append(seconds)
    return found


def memory(name: str, method: str, prototypes: int) -> dict[str, float]:
    """Highest resident size over three steps of this process, in MB: over that before them, and in all."""
    batch, step = crops(), Step(name, method, prototypes)
    for _ in range(2):
        step(batch)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # free memory back to the system, or it would count as in use before
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    for _ in range(3):
        step(batch)
    return {"step": status("VmHWM") - before, "all": status("VmHWM")}


def status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def memory_apart(name: str, method: str, prototypes: int) -> dict[str, float]:
    arguments = ["--memory", name, "--methods", method, "--prototypes", str(prototypes)]
    command = [sys.executable, __file__, *arguments, "--threads", str(torch.get_num_threads())]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure(method: str, prototypes: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each contestant."""
    seconds = times(method, prototypes, rounds)
    used = {name: memory_apart(name, method, prototypes) for name in seconds}
    rows = []
    for name, taken in seconds.items():
        ratios = [theirs / mine for theirs, mine in zip(seconds["lightly"], taken)]
        rows.append({
            "method": method, "prototypes": prototypes, "threads": torch.get_num_threads(), "who": name,
            "images_per_s": IMAGES / statistics.median(taken),
            "speed": statistics.median(ratios), "speeds": [min(ratios), max(ratios)],
            "step_mb": used[name]["step"], "step_memory": used[name]["step"] / used["lightly"]["step"],
            "all_mb": used[name]["all"], "all_memory": used[name]["all"] / used["lightly"]["all"],
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--prototypes", type=int, nargs="+", default=[PROTOTYPES])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory", choices=list(CONTESTANTS), help="only the memory of one, as json")
    parser.add_argument("--time", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads[0])
    if args.memory:
        print(json.dumps(memory(args.memory, args.methods[0], args.prototypes[0])))
        return
    if args.time:
        for m in args.methods:
            s = times(m, args.prototypes[0], args.rounds)
            print(m, {k: [round(v, 2) for v in x] for k, x in s.items()})
            print({k: round(statistics.median(a / b for a, b in zip(s["lightly"], x)), 3) for k, x in s.items()}, flush=True)
        return


if __name__ == "__main__":
    main()
