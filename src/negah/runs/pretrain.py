"""`negah pretrain`: a backbone from pictures without labels.

Each method with the recipe of its paper (`runs.recipes`).  The collapse doctor watches every run; at fixed epochs maps
of a few pictures are drawn, and with labelled pictures kNN and linear probes are taken: it is the last figure that
counts.  A run that was stopped goes on when the same call is made again.
"""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from negah import __version__, ranks
from negah.errors import InputError
from negah.images.pool import Pool
from negah.images.views import Views
from negah.nn.backbone import Backbone
from negah.progress import Progress, Say, silent
from negah.runs.recipes import Method, Options, fitted, recipe_of, seen_by
from negah.runs.record import claim, compute_device, hardware, now, versions
from negah.runs.watch import Labelled, Watch, dated, few_of, learnt_by, on_first
from negah.ssl.collapse import CollapseDoctor
from negah.ssl.figures import FEWEST
from negah.train import Batches, FitResult, fit
from negah.weights import backbone as backbone_named
from negah.weights import save_backbone
from negah.weights.save import write_json

# Options that may change while a run is continued: they say how it is computed and kept, and not what comes out.
FREE = ("workers", "shard", "checkpoint_every")


@dataclass(frozen=True)
class Result:
    """What came of it.  backbone: the file.  scores: epoch, step, knn20, knn200, linear.

    diagnosis: the doctor's warning, or what was read last.  failures: (name, reason) of pictures that were left out.
    """

    backbone: Path
    steps: int
    tiles: int
    loss: float
    scores: list[dict[str, float]]
    diagnosis: str
    stopped: str
    failures: list[tuple[str, str]] = field(default_factory=list)
    duplicates: int = 0


def pretrain(
    data: Sequence[str], out: Path, method: Method, backbone: str, options: Options = Options(), *,  # noqa: B008 (frozen)
    progress: Progress = silent, say: Say = silent,
) -> Result:  # fmt: skip
    """Train `backbone` on the pictures under `data` by `method`.

    `out` gets backbone.safetensors, checkpoint.pt, maps/, scores.json and run.json.  progress: told a stage of reading,
    and how much of how many is done.  say: told a line now and then.

    Raises InputError for what cannot be trained on, OutputError where `out` holds another run or cannot be written,
    TrainingError where the loss is no longer finite.
    """
    if method not in get_args(Method):
        raise InputError(f"no method {method}: there are {', '.join(get_args(Method))}")
    options.check()
    ranks.join()
    if options.batch % ranks.world():
        raise InputError(f"--batch {options.batch} is not a multiple of the {ranks.world()} processes")
    net = backbone_named(backbone, size=options.size, seed=options.seed)
    size, local = fitted(net, method, options)
    record: dict[str, Any] = {
        "negah": __version__, "verb": "pretrain", "started": now(),
        "arguments": {"method": method, "data": list(data), "backbone": backbone, **asdict(options)},
    }  # fmt: skip
    finished = ("checkpoint.pt", "backbone.safetensors")
    record = on_first(lambda: claim(out, record, holds=finished, free=FREE, say=say))

    pool = Pool(list(data), options.side or size, progress=progress)
    if len(pool) < 2:
        raise InputError(f"one picture is not enough to learn from: {data[0]} holds no other")
    if len(pool) < options.batch:
        raise InputError(
            f"{len(pool)} pictures do not fill a batch of {options.batch}: give --batch {len(pool)} or less"
        )
    labelled = Labelled.load(options.score, size, seed=options.seed, progress=progress) if options.score else None
    epoch = max(1, round(len(pool) / (options.batch * options.accumulate)))
    device = compute_device()
    learner = copy.deepcopy(net)  # the plain one takes up what was learnt: with `shard` the learner's is in parts
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(options.seed)
        recipe = recipe_of(method, learner, size, local, len(pool), options)
    seen = seen_by(recipe.objective)
    learnt = learnt_by(seen, net.to(device).eval())

    on_first(lambda: write_json(record, out / "run.json"))
    doctor = CollapseDoctor(stop=options.stop_on_collapse)
    watch = Watch(out, learnt, few_of(pool, size), epoch=epoch, every=options.score_every, say=say)
    found = fit(
        recipe.objective,
        Batches(
            pool, options.batch, seed=options.seed, collate=Views(tuple(recipe.views)), workers=options.workers
        ),
        steps=options.epochs * epoch, lr=options.lr or recipe.lr, optimizer=recipe.optimizer,
        weight_decay=recipe.weight_decay, warmup=min(recipe.warmup, options.epochs // 5) * epoch,
        clip=recipe.clip, accumulate=options.accumulate, precision=options.precision,
        shard=options.shard, device=device, seed=options.seed, out=out,
        checkpoint_every=options.checkpoint_every * epoch, callbacks=[doctor, watch],
        scores=(lambda: labelled.scores(seen)) if labelled else None, score_every=options.score_every * epoch,
    )  # fmt: skip
    net = learnt()
    rows = list(found.scores)
    if labelled and (not rows or rows[-1]["step"] < found.step):  # the doctor ended it between two scores
        rows.append({"step": found.step, **labelled.scores(net)})
    result = Result(
        backbone=out / "backbone.safetensors", steps=found.step, tiles=len(pool), loss=found.history[-1]["loss"],
        scores=dated(rows, epoch), diagnosis=doctor.warning or _said(doctor.readings[-1]), stopped=found.stopped,
        failures=pool.failures + (labelled.pool.failures if labelled else []), duplicates=len(pool.duplicates),
    )  # fmt: skip
    on_first(lambda: _write(net.cpu(), record, result, found, device))
    return result


def _said(reading: dict[str, Any]) -> str:
    """What the doctor read last, in a line; it has not lasted, or there would be a warning."""
    names = {"embedding_std": "spread", "effective_rank": "effective rank", "teacher_entropy": "teacher entropy"}
    if not names.keys() & reading.keys():
        return f"nothing can be told from fewer than {FEWEST} pictures in a batch"
    figures = [f"{label} {reading[name]:.3g}" for name, label in names.items() if name in reading]
    kind = "no collapse" if reading["kind"] == "none" else f"no lasting collapse, but at the end {reading['kind']}"
    return f"{kind}: {', '.join(figures)}"


def _write(net: Backbone, record: dict[str, Any], result: Result, found: FitResult, device: torch.device) -> None:
    out = save_backbone(net, result.backbone).parent
    write_json({**asdict(result), "backbone": str(result.backbone), "history": found.history}, out / "scores.json")
    made_with = {"versions": versions(), "hardware": hardware(device), "processes": ranks.world()}
    write_json({**record, "finished": now(), **made_with}, out / "run.json")
