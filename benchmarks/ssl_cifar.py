"""Claim: on CIFAR-10 our SimCLR, MoCo, BYOL and DINO learn as much per image as lightly's, at the same settings.

    python benchmarks/ssl_cifar.py                 # about an hour on one core; goes on where it was stopped
    python benchmarks/ssl_cifar.py --small         # minutes: shows that it runs, and writes no result

Settings are those of lightly's CIFAR-10 benchmark (docs/source/getting_started/benchmarks/cifar10_benchmark.py in its
repository): batches of 128, SGD with lr 0.06, momentum 0.9, weight decay 5e-4, cosine, no blur, moving averages of
0.99, MoCo symmetric with norms in 8 parts, DINO with two crops and no local ones; the network is a ResNet-8 of 64
features, and heads are smaller.  Both sides start from the same backbone weights and see each of 32,000 images once, in
the same order.  Lightly's side is its losses, heads, moving average, split norms and transforms by their public names;
ours is `negah.ssl`, `negah.images.views` and `fit`.  Lightly's transforms are Pillow's and slow, so its views of each
image are made once and serve all seeds, which differ in weights and order; ours are drawn anew.  What is compared is
what is learned per image; time and memory have rows of their own.

Our CIFAR-10 is JPEG-compressed: a supervised run of the same network on as many images comes first, and what is learned
is also stated as a share of its, both by linear probes.  Judged are the features of the backbone after the last step
(DINO: the teacher's), by their nearest neighbours and by a linear probe.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import results
import torch
import torch.nn.functional as F
from lightly import loss as lightly_loss
from lightly import transforms
from lightly.models import utils
from lightly.models.batchnorm import SplitBatchNorm
from lightly.models.modules import heads
from PIL import Image
from scipy import stats
from torch import Tensor, nn
from torch.optim import SGD

from negah.images.views import View, Views, dino, simclr_cifar, unblurred
from negah.nn.backbone import Backbone, ConvBackbone
from negah.nn.resnet import ResNet
from negah.probe.evaluate import embed, knn_accuracy, linear_accuracy
from negah.ssl import BYOL, DINO, MoCo, SimCLR
from negah.train import Batches, Objective, fit
from negah.train.schedules import constant

BATCH, LR, MOMENTUM, DECAY, AVERAGE = 128, 0.06, 0.9, 5e-4, 0.99
WIDTHS, STEPS, SEEDS = (16, 32, 64), 250, 3
HELD_OUT = 5000  # training pictures that nothing is trained on: ours is changed by these alone
LABELLED = 10_000  # training pictures that the nearest neighbours are looked for among, and the probe is fitted to
TESTED = ("knn200", "linear", "classifier")
METHODS = ("simclr", "moco", "byol", "dino")
# The sum of BYOL's two regressions is four times lightly's loss: so divided, lr and decay make the same step.
BYOL_SCALE = 4


class Pictures(NamedTuple):
    """Decoded pictures, uint8 [n, 3, 32, 32], and their classes."""

    images: Tensor
    labels: Tensor

    def part(self, rows: slice) -> "Pictures":
        return Pictures(self.images[rows], self.labels[rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/ssl_cifar"), help="where rows and lightly's views go")
    parser.add_argument("--small", action="store_true", help="a few steps and one seed: shows that it runs, no more")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="2 or more, for intervals")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)  # for `cost`, in a process of its own
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak:
        print(peak(*args.peak))
        return
    steps, seeds = (4, 1) if args.small else (STEPS, args.seeds)
    train, test = (read(results.data_folder() / "cifar10" / f"{part}.zip") for part in ("train", "test"))
    held_out, train = train.part(slice(-HELD_OUT, None)), train.part(slice(0, steps * BATCH))
    if args.small:
        held_out, test = (pictures.part(slice(0, 1000)) for pictures in (held_out, test))
    args.work.mkdir(parents=True, exist_ok=True)
    kind = "small" if args.small else "whole"
    rows = Rows(args.work / f"rows_{kind}.jsonl")
    for seed in range(seeds):
        for method, side in sides(args.methods):
            key = {"method": method, "side": side, "seed": seed}
            if not rows.have(key):
                rows.add(key | one(method, side, seed, train, held_out, test, args.work / f"views_{kind}"))
    paired = [compare(rows.all, method, seeds) for method in args.methods]
    for row in paired:
        print(json.dumps(row))
    if args.small:
        print("No result is written: that takes a whole run.")
        return
    costs = Rows(args.work / "costs.jsonl")
    for method in args.methods:
        if not costs.have({"method": method}):
            costs.add(cost(method, train))
    worst = min(paired, key=lambda row: row["knn200_difference"])
    print(
        results.write(
            "ssl_cifar", claim="CIFAR-10, per image seen: accuracy of ours less lightly's, same settings",
            rows=[*means(rows.all, seeds, args.methods), *paired, *costs.all], seeds=list(range(seeds)),
            packages=("lightly", "torchvision", "pillow", "numpy"), runs=rows.all,
            settings={"images_seen": steps * BATCH, "batch": BATCH, "lr": LR, "weight_decay": DECAY, "widths": WIDTHS},
            headline={"value": worst["knn200_difference"], "target": 0.0, "better": "higher",
                      "unit": f"kNN accuracy, ours less lightly's, in the worst method: {worst['method']}, 95 %"
                              f" interval {worst['knn200_low']:+.3f} to {worst['knn200_high']:+.3f}"},
        )
    )  # fmt: skip


def read(path: Path) -> Pictures:
    """All pictures of an archive with a folder for each class, shuffled once, always alike."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        arrays = [np.asarray(Image.open(archive.open(name)).convert("RGB")) for name in names]
    classes = sorted({name.split("/")[0] for name in names})
    labels = torch.tensor([classes.index(name.split("/")[0]) for name in names])
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))
    return Pictures(torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)[order].contiguous(), labels[order])


def sides(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Method and side of each run: the untrained network, the supervised one, and each method twice."""
    return [("none", ""), ("supervised", ""), *((method, side) for method in methods for side in ("lightly", "ours"))]


class Rows:
    """Rows of a file that grows by a line at a time, so that a run which was stopped goes on."""

    def __init__(self, path: Path):
        self.path = path
        self.all = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def have(self, key: dict) -> bool:
        return any(key.items() <= row.items() for row in self.all)

    def add(self, row: dict) -> None:
        """Figures on the test pictures go to the file alone: who watches, and changes something, has not seen them."""
        print({name: value for name, value in row.items() if name not in TESTED}, flush=True)
        self.all.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


# One run


def fresh(seed: int) -> Backbone:
    """The backbone that both sides start from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ConvBackbone(ResNet(widths=WIDTHS, depths=(1,) * len(WIDTHS), stem="fine"))


def one(
    method: str, side: str, seed: int, train: Pictures, held_out: Pictures, test: Pictures, work: Path
) -> dict:  # fmt: skip
    """Train and judge; accuracies are shares in [0, 1]."""
    net, row, start = fresh(seed), {}, time.perf_counter()
    torch.manual_seed(seed)
    if method == "supervised":
        net, row = supervised(net, seed, train, test)
    elif side == "ours":
        objective, recipe = ours(method, net)
        scale = BYOL_SCALE if method == "byol" else 1
        source = Batches(train.images, BATCH, seed=seed, collate=Views(tuple(recipe)))
        found = learn(objective, source, len(train.images) // BATCH, seed, lr=LR / scale, weight_decay=DECAY * scale)
        net, row = judged(objective), {"loss": found / scale}
    elif side == "lightly":
        peer = PEERS[method](net)
        views = stored_views(work / f"{peer.views}.npy", peer.views, train)
        start = time.perf_counter()
        net, row = train_peer(peer, views, Batches(train.images, BATCH, seed=seed)), {"loss": peer.last}
    row["train_s"] = time.perf_counter() - start
    return row | judge(net, train.part(slice(0, LABELLED)), held_out, test)


def judge(net: nn.Module, train: Pictures, held_out: Pictures, test: Pictures) -> dict:
    x, held, y = (embed(net, pictures.images) for pictures in (train, held_out, test))
    return {
        "knn200_held_out": knn_accuracy(x, train.labels, held, held_out.labels, k=200),
        "knn200": knn_accuracy(x, train.labels, y, test.labels, k=200),
        "linear": linear_accuracy(x, train.labels, y, test.labels),
    }


class Supervised(Objective):
    """Cross-entropy on crops of labelled pictures."""

    def __init__(self, net: Backbone):
        super().__init__()
        self.net, self.classifier = net, nn.Linear(net.width, 10)

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        images, labels = batch
        return {"loss": F.cross_entropy(self.classifier(self.net(images)), labels)}


def supervised(net: Backbone, seed: int, train: Pictures, test: Pictures) -> tuple[Backbone, dict]:
    """The same network, told the classes; one view of each image, cropped and mirrored."""
    crops = Views((View(32, scale=(0.25, 1.0)),))

    def collate(items: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return crops(list(train.images[list(items)]), generator)[0], train.labels[list(items)]

    objective = Supervised(net)
    source = Batches(range(len(train.images)), BATCH, seed=seed, collate=collate)
    loss = learn(objective, source, len(train.images) // BATCH, seed, lr=LR, weight_decay=DECAY)
    said = torch.cat([objective.classifier(part) for part in embed(net, test.images).split(1000)]).argmax(1)
    return net, {"loss": loss, "classifier": (said == test.labels).double().mean().item()}


def learn(
    objective: Objective, source: Batches | Sequence, steps: int, seed: int, *, lr: float, weight_decay: float
) -> float:
    """Returns the mean loss of the last tenth."""
    found = fit(objective, source, steps=steps, lr=lr, weight_decay=weight_decay, seed=seed,
                optimizer=partial(SGD, momentum=MOMENTUM), log_every=max(1, steps // 10))  # fmt: skip
    return found.history[-1]["loss"]


# Ours


def ours(method: str, net: Backbone) -> tuple[Objective, list[View]]:
    """Objective and views."""
    if method == "simclr":
        return SimCLR(net, hidden=512, dim=128, temperature=0.5), simclr_cifar()
    if method == "moco":
        learner = MoCo(net, dim=128, queue=4096, temperature=0.1, momentum=AVERAGE, parts=8, symmetric=True)
        return learner, simclr_cifar()
    if method == "byol":
        return BYOL(net, hidden=1024, dim=256, momentum=AVERAGE), simclr_cifar()
    learner = DINO(
        net, prototypes=2048, hidden=512, bottleneck=64, head_norm=True, teacher_temperature=constant(0.04),
        momentum=AVERAGE, freeze_last=0.0,
    )  # fmt: skip
    return learner, unblurred(dino(32, locals=0))


def judged(objective: Objective) -> nn.Module:
    return objective.get_submodule("teacher.model.0" if isinstance(objective, DINO) else "backbone")


# Lightly's


class Peer(nn.Module):
    """A method out of lightly's parts: `views` names its transform, `loss` is that of two batches of views."""

    views = "simclr"

    def __init__(self, net: Backbone, projector: nn.Module):
        super().__init__()
        self.net, self.projector, self.last = net, projector, 0.0

    def student(self, x: Tensor) -> Tensor:
        return self.projector(self.net(x))

    def loss(self, x0: Tensor, x1: Tensor) -> Tensor:
        raise NotImplementedError

    def judged(self) -> nn.Module:
        return self.net


class PeerSimCLR(Peer):
    def __init__(self, net: Backbone):
        super().__init__(net, heads.SimCLRProjectionHead(net.width, 512, 128))
        self.criterion = lightly_loss.NTXentLoss(temperature=0.5)

    def loss(self, x0: Tensor, x1: Tensor) -> Tensor:
        return self.criterion(self.student(x0), self.student(x1))


class Averaged(Peer):
    """With a moving average, which is updated before each loss."""

    def __init__(self, net: Backbone, projector: nn.Module, slow_projector: nn.Module | None = None):
        super().__init__(net, projector)
        self.slow_net, self.slow_projector = copy.deepcopy(net), slow_projector or copy.deepcopy(projector)
        for part in (self.slow_net, self.slow_projector):
            utils.deactivate_requires_grad(part)

    def average(self) -> None:
        utils.update_momentum(self.net, self.slow_net, m=AVERAGE)
        utils.update_momentum(self.projector, self.slow_projector, m=AVERAGE)

    @torch.no_grad()
    def teacher(self, x: Tensor) -> Tensor:
        return self.slow_projector(self.slow_net(x))


class PeerMoCo(Averaged):
    """Symmetric, with split norms and shuffled keys."""

    def __init__(self, net: Backbone):
        super().__init__(split(net), heads.MoCoProjectionHead(net.width, net.width, 128))
        self.criterion = lightly_loss.NTXentLoss(temperature=0.1, memory_bank_size=(4096, 128))

    def loss(self, x0: Tensor, x1: Tensor) -> Tensor:
        self.average()
        return 0.5 * (self.criterion(self.student(x0), self.keys(x1)) + self.criterion(self.student(x1), self.keys(x0)))

    def keys(self, x: Tensor) -> Tensor:
        shuffled, order = utils.batch_shuffle(x)
        return utils.batch_unshuffle(self.teacher(shuffled), order)


class PeerBYOL(Averaged):
    def __init__(self, net: Backbone):
        super().__init__(net, heads.BYOLProjectionHead(net.width, 1024, 256))
        self.predictor = heads.BYOLPredictionHead(256, 1024, 256)
        self.criterion = lightly_loss.NegativeCosineSimilarity()

    def loss(self, x0: Tensor, x1: Tensor) -> Tensor:
        self.average()
        p0, p1 = self.predictor(self.student(x0)), self.predictor(self.student(x1))
        return 0.5 * (self.criterion(p0, self.teacher(x1)) + self.criterion(p1, self.teacher(x0)))


class PeerDINO(Averaged):
    """The teacher's head starts from weights of its own, as in lightly's example."""

    views = "dino"

    def __init__(self, net: Backbone):
        super().__init__(net, self.head(net.width), self.head(net.width))
        self.criterion = lightly_loss.DINOLoss(output_dim=2048)

    @staticmethod
    def head(width: int) -> nn.Module:
        return heads.DINOProjectionHead(width, 512, 64, 2048, batch_norm=True)

    def loss(self, x0: Tensor, x1: Tensor) -> Tensor:
        self.average()
        return self.criterion([self.teacher(x) for x in (x0, x1)], [self.student(x) for x in (x0, x1)])

    def judged(self) -> nn.Module:
        return self.slow_net


PEERS: dict[str, Callable[[Backbone], Peer]] = {
    "simclr": PeerSimCLR, "moco": PeerMoCo, "byol": PeerBYOL, "dino": PeerDINO,
}  # fmt: skip


def split(net: Backbone) -> Backbone:
    """Lightly's batch norm of 8 parts in place of each, as its ResNets have with num_splits=8."""
    for module in list(net.modules()):
        for name, norm in list(module.named_children()):
            if isinstance(norm, nn.BatchNorm2d):
                parts = SplitBatchNorm(norm.num_features, 8)
                parts.load_state_dict({k: v for k, v in norm.state_dict().items() if "running" not in k}, strict=False)
                setattr(module, name, parts)
    return net


def train_peer(peer: Peer, views: np.ndarray, order: Batches) -> nn.Module:
    """One epoch over `views`, uint8 [image, view, 3, 32, 32], with the optimiser and the schedule that `fit` has."""
    steps = len(views) // BATCH
    optimizer = SGD([p for p in peer.parameters() if p.requires_grad], lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    peer.train()
    losses = []
    for k in range(steps):
        batch = torch.from_numpy(views[order.indices(k)]).float() / 255
        loss = peer.loss(*batch.unbind(1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    peer.last = statistics.mean(losses[-max(1, steps // 10) :])
    return peer.judged()


@cache
def transform(name: str) -> Callable[[Image.Image], list[Tensor]]:
    """Lightly's transforms for CIFAR-10; the backbone normalises."""
    if name == "simclr":
        return transforms.SimCLRTransform(32, cj_strength=0.5, gaussian_blur=0.0, normalize=None)
    return transforms.DINOTransform(
        global_crop_size=32, n_local_views=0, cj_strength=0.5, gaussian_blur=(0, 0, 0), normalize=None
    )


def peer_views(images: Tensor, name: str) -> np.ndarray:
    """Two views of each image: uint8 [image, view, 3, 32, 32]; Pillow's have 8 bits, so nothing is lost."""
    pairs = [torch.stack(transform(name)(Image.fromarray(image))) for image in images.permute(0, 2, 3, 1).numpy()]
    return (torch.stack(pairs) * 255).round().byte().numpy()


def stored_views(path: Path, name: str, train: Pictures) -> np.ndarray:
    """The views of all images, from the disk once they were made."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 (lightly's transforms draw from it)
        views = peer_views(train.images, name)
        with path.with_suffix(".part").open("wb") as file:
            np.save(file, views)
        path.with_suffix(".part").rename(path)
    return np.load(path)


# What came of it


def means(rows: list[dict], seeds: int, methods: Sequence[str]) -> list[dict]:
    """Mean accuracies of each method and side over the seeds; share of the supervised: that of linear probes."""

    def mean(method: str, side: str, name: str) -> float:
        return statistics.mean(row[name] for row in chosen(rows, method, side, seeds))

    whole = mean("supervised", "", "linear")
    found = []
    for method, side in sides(methods):
        row = {name: mean(method, side, name) for name in ("knn200", "linear")}
        found.append({"method": method, "side": side} | row | {"share_of_supervised": row["linear"] / whole})
    return found


def compare(rows: list[dict], method: str, seeds: int) -> dict:
    """Ours less lightly's, paired by seed: mean, and 95 % of Student's t."""
    found: dict = {"method": method, "compared": "ours less lightly's"}
    for name in ("knn200", "linear"):
        pairs = zip(chosen(rows, method, "ours", seeds), chosen(rows, method, "lightly", seeds), strict=True)
        differences = [ours[name] - lightly[name] for ours, lightly in pairs]
        mean = statistics.mean(differences)
        found[f"{name}_difference"] = mean
        if seeds > 1:
            reach = stats.t.ppf(0.975, seeds - 1) * statistics.stdev(differences) / seeds**0.5
            found |= {f"{name}_low": mean - reach, f"{name}_high": mean + reach}
    return found


def chosen(rows: list[dict], method: str, side: str, seeds: int) -> list[dict]:
    mine = [row for row in rows if row["method"] == method and row["side"] == side and row["seed"] < seeds]
    return sorted(mine, key=lambda row: row["seed"])


# Time and memory


def cost(method: str, train: Pictures, *, repeat: int = 5, steps: int = 2) -> dict:
    """Milliseconds for views and for a step of both, in turn in this process (medians), and the memory of a step."""
    images = train.images[: steps * BATCH]
    objective, recipe = ours(method, fresh(0))
    peer, collate, generator = PEERS[method](fresh(0)), Views(tuple(recipe)), torch.Generator().manual_seed(0)

    def our_views() -> list[list[Tensor]]:
        return [collate(list(part), generator) for part in images.split(BATCH)]

    mine, theirs = our_views(), peer_views(images, peer.views)
    actions = {
        "ours_views_ms": our_views,
        "lightly_views_ms": lambda: peer_views(images, peer.views),
        "ours_step_ms": lambda: learn(objective, mine, steps, 0, lr=LR, weight_decay=DECAY),
        "lightly_step_ms": lambda: train_peer(peer, theirs, Batches(images, BATCH)),
    }
    times: dict[str, list[float]] = {name: [] for name in actions}
    for i in range(repeat + 1):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            if i:  # the first round is not counted
                times[name].append((time.perf_counter() - start) / steps * 1000)
    row = {"method": method, "measured": f"a batch of {BATCH} images, one thread"}
    row |= {name: statistics.median(values) for name, values in times.items()}
    for name in ("views", "step"):
        ratios = [b / a for a, b in zip(times[f"ours_{name}_ms"], times[f"lightly_{name}_ms"], strict=True)]
        row[f"{name}_ratio"] = statistics.median(ratios)
    for side in ("ours", "lightly"):
        command = [sys.executable, __file__, "--peak", method, side]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        row[f"{side}_step_mb"] = float(said.splitlines()[-1])
    return row


def peak(method: str, side: str, *, steps: int = 5) -> float:
    """MB that the first steps add to what this process holds at most, on Linux."""
    pairs = torch.randint(0, 256, (steps * BATCH, 2, 3, 32, 32), dtype=torch.uint8)
    if side == "ours":
        batches = [list((part / 255).unbind(1)) for part in pairs.split(BATCH)]
        action = partial(learn, ours(method, fresh(0))[0], batches, steps, 0, lr=LR, weight_decay=DECAY)
    else:
        action = partial(train_peer, PEERS[method](fresh(0)), pairs.numpy(), Batches(pairs, BATCH))
    Path("/proc/self/clear_refs").write_text("5")  # Linux: from here on the most is measured anew
    before = status("VmRSS")
    action()
    return (status("VmHWM") - before) / 1024


def status(name: str) -> int:
    """kB of this process, as the operating system counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
