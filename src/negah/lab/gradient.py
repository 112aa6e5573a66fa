"""What does the gradient of the contrastive loss do, is its closed form right, and what does it save?

With s_ij = <x_i, y_j> / (|x_i| |y_j| T), p_ij = exp s_ij / sum_k exp s_ik and L1 = -mean_i log p_ii, which is one
direction of CLIP's loss (Radford et al. 2021, arXiv:2103.00020),

    dL1/dx_i = -1/(N |x_i|) (y_i/(|y_i| T) - s_ii x_i/|x_i| - sum_j p_ij (y_j/(|y_j| T) - s_ij x_i/|x_i|))

`losses.contrast` computes it tile by tile.  Here it is written out, checked, planted with faults that the check has to
tell, and looked at: what it pulls and pushes, and what the temperature changes about that (Wang and Liu 2021,
arXiv:2012.09740).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from negah.lab.costs import ANEW, costs, device, highest, peak_memory
from negah.lab.page import Page, Panel, figure
from negah.lab.training import Effort, over_seeds
from negah.losses.contrast import contrast

Loss = Callable[[Tensor, Tensor, Tensor, int | None], Tensor]  # of pairs, a temperature and the side of a tile
Row = dict[str, Any]

TEMPERATURE, TINY = 0.07, 1e-3  # CLIP's at its start; one whose logits' exponentials are beyond any float
FAULTY = {"finite differences": 1e-5, "autograd fp64": 1e-10, "autograd fp32": 1e-5, "memory": 3.0}  # above these
DIM, SIZES = 128, (512, 1024, 2048, 4096)  # of the costs; an accelerator gets four times the pairs
GROUP = 8  # pairs that resemble each other, of the temperatures'
TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
PATH = 0.4  # by which x and y of length 1 move in a descent, on average


def run(out: Path, effort: Effort) -> Page:
    """All panels into the folder `out`."""
    settings = {"steps": effort.steps, "seeds": effort.seeds, "batch": effort.batch}
    page = Page("gradient", "What does the contrastive gradient do, and what does its closed form save?", out, settings)
    checks = {name: checked(loss) for name, loss in FORMS.items()}
    page.add(formula(checks))
    page.add(planted(checks))
    page.add(saves(effort))
    page.add(forces(effort))
    page.add(temperatures(effort))
    return page


# Forms of the loss


def plain(x: Tensor, y: Tensor, temperature: Tensor, tile: int | None = None) -> Tensor:
    """Both cross-entropies of all pairs at once."""
    s = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T / temperature
    own = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(s, own) + F.cross_entropy(s.T, own)) / 2


def tiled(x: Tensor, y: Tensor, temperature: Tensor, tile: int | None = None) -> Tensor:
    return contrast(x, y, temperature=temperature, symmetric=True, tile=tile)


def gradient(
    x: Float[Tensor, "pair dim"], y: Float[Tensor, "pair dim"], temperature: Float[Tensor, ""], *,
    norm: bool = True, both: bool = True,
) -> tuple[Float[Tensor, "pair dim"], Float[Tensor, "pair dim"], Float[Tensor, ""]]:  # fmt: skip
    """The formula, of all pairs at once, for x, y and the temperature.

    norm: derive |x| too, or take it for a constant (wrong).  both: both directions, or the first alone (wrong).
    """
    x_norm, y_norm = x.norm(dim=1, keepdim=True), y.norm(dim=1, keepdim=True)
    s = (x / x_norm) @ (y / y_norm).T / temperature
    own = torch.eye(len(x), dtype=x.dtype, device=x.device)
    f = (s.softmax(1) + s.softmax(0) - 2 * own) / 2 if both else s.softmax(1) - own  # p_ij less 1 where i = j
    f, fs = f / len(x), f * s / len(x)
    along = fs.sum(1, keepdim=True) * x / x_norm if norm else 0
    dx = (f @ (y / y_norm) / temperature - along) / x_norm
    dy = (f.T @ (x / x_norm) / temperature - fs.sum(0).unsqueeze(1) * y / y_norm) / y_norm
    return dx, dy, -fs.sum() / temperature


class _Written(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, temperature: Tensor, norm: bool, both: bool) -> Tensor:
        ctx.save_for_backward(x, y, temperature)
        ctx.options = {"norm": norm, "both": both}
        return plain(x, y, temperature)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Any):
        return *(grads[0] * part for part in gradient(*ctx.saved_tensors, **ctx.options)), None, None


def written(
    x: Tensor, y: Tensor, temperature: Tensor, tile: int | None = None, *, norm: bool = True, both: bool = True
) -> Tensor:
    """The plain loss, with `gradient` for its gradient."""
    return _Written.apply(x, y, temperature, norm, both)  # pyright: ignore[reportReturnType]


def kept(x: Tensor, y: Tensor, temperature: Tensor, tile: int | None = None) -> Tensor:
    """Tile by tile, as autograd does it by itself: what backward needs of every tile is kept until then."""
    a, b = F.normalize(x, dim=1) / temperature, F.normalize(y, dim=1)
    rows = torch.cat([(part @ b.T).logsumexp(1) for part in a.split(tile or 1024)])
    columns = torch.cat([(part @ a.T).logsumexp(1) for part in b.split(tile or 1024)])
    return ((rows + columns) / 2 - (a * b).sum(1)).mean()


def unguarded(x: Tensor, y: Tensor, temperature: Tensor, tile: int | None = None) -> Tensor:
    """Log-sum-exps whose maximum is not subtracted."""
    s = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T / temperature
    return ((s.exp().sum(1).log() + s.exp().sum(0).log()) / 2 - s.diagonal()).mean()


FORMS: dict[str, Loss] = {
    "the plain form, by autograd": plain,
    "losses.contrast, tile by tile": tiled,
    "the formula, all pairs at once": written,
    "a norm left out of the derivative": partial(written, norm=False),
    "one direction only": partial(written, both=False),
    "tiles kept, not made again": kept,
    "no maximum subtracted": unguarded,
}
RIGHT, PLANTED = list(FORMS)[:3], list(FORMS)[3:]


# The check


def pairs(n: int, dim: int, *, dtype: torch.dtype = torch.float64, seed: int = 0, temperature: float = TEMPERATURE):
    """x, y near x, of all lengths between 1/2 and 3; and a temperature.  All want gradients."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(n, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    lengths = torch.rand(2, n, 1, generator=generator, dtype=torch.float64) * 2.5 + 0.5
    made = F.normalize(x, dim=1) * lengths[0], F.normalize(x + noise, dim=1) * lengths[1], torch.tensor(temperature)
    return tuple(part.to(dtype).requires_grad_() for part in made)


def gradients(loss: Loss, inputs: Sequence[Tensor], tile: int | None = None) -> list[Tensor]:
    return list(torch.autograd.grad(loss(inputs[0], inputs[1], inputs[2], tile), inputs))


def apart(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference of any entry, relative to the largest entry of the same input; infinite where one is NaN."""
    parts = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)]
    return max(math.inf if math.isnan(part) else part for part in parts)


def finite_differences(loss: Loss, inputs: Sequence[Tensor], tile: int, *, step: float = 1e-6) -> list[Tensor]:
    """Central ones, entry by entry."""
    inputs, found = [part.detach().clone() for part in inputs], []
    for part in inputs:
        flat, slopes = part.view(-1), []
        for k, value in enumerate(flat.tolist()):
            ends = []
            for end in (value + step, value - step):
                flat[k] = end
                ends.append(float(loss(inputs[0], inputs[1], inputs[2], tile)))
            flat[k] = value
            slopes.append((ends[0] - ends[1]) / (2 * step))
        found.append(part.new_tensor(slopes).view_as(part))
    return found


def checked(loss: Loss) -> Row:
    """What the check measures of a loss and its gradient, and, as `verdict`, what of it speaks against them.

    The sides of tiles do not divide the numbers of pairs.  own rounding: from fp32 to the plain form in fp64.  memory:
    of a step, how many times as much twice as many pairs take.
    """
    few, some = pairs(5, 3, temperature=0.5), pairs(12, 4, temperature=0.3)
    row: Row = {
        "gradcheck": torch.autograd.gradcheck(lambda x, y, t: loss(x, y, t, 2), few, raise_exception=False),
        "finite differences": apart(gradients(loss, some, 5), finite_differences(loss, some, 5)),
    }
    for name, dtype in (("fp64", torch.float64), ("fp32", torch.float32)):
        inputs = pairs(300, 64, dtype=dtype)
        row[f"autograd {name}"] = apart(gradients(loss, inputs, 64), gradients(plain, inputs))
    row["own rounding"] = apart(gradients(loss, inputs, 64), gradients(plain, [part.double() for part in inputs]))
    tiny = gradients(loss, pairs(300, 64, dtype=torch.float32, temperature=TINY), 64)
    row[f"finite at {TINY:g}"] = all(bool(part.isfinite().all()) for part in tiny)
    many = [[part.detach().to(device()).requires_grad_() for part in pairs(n, 16)] for n in (512, 1024)]
    less, more = (peak_memory(partial(gradients, loss, inputs, 64)) for inputs in many)
    row["memory"] = more / less
    told = [name for name, value in row.items() if value is False or value > FAULTY.get(name, math.inf)]
    return row | {"verdict": f"caught by {', '.join(told)}" if told else "passes"}


def formula(checks: Mapping[str, Row]) -> Panel:
    """The formula itself, and how far what is computed is from other ways to compute it."""
    columns = ("gradcheck", "finite differences", "autograd fp64", "autograd fp32", "own rounding")
    rows = [{"setting": name} | {column: checks[name][column] for column in columns} for name in RIGHT]
    base, ours, ones = rows
    told = [
        f"{name}: gradcheck in float64 {'passes' if row['gradcheck'] else 'fails'}; largest difference to finite "
        f"differences {row['finite differences']:.0e}, to autograd of the plain loss {row['autograd fp64']:.0e} in "
        f"fp64 and {row['autograd fp32']:.0e} in fp32."
        for name, row in (("Tile by tile (losses.contrast)", ours), ("The formula as it stands here", ones))
    ]
    told.append(
        f"From the plain form in fp64 are, in fp32, the plain form {base['own rounding']:.0e} and losses.contrast "
        f"{ours['own rounding']:.0e}."
    )
    return Panel(
        name="formula", title="The gradient, written out",
        asks="N vectors x of pictures and as many y of texts, of any lengths; x_i belongs to y_i. The loss is the mean "
        "of two cross-entropies, each picture against all texts and each text against all pictures, of cosines over a "
        "temperature T. A difference is the largest one of any entry, for x, y and T, relative to the largest "
        "entry: to finite differences of 12 pairs, and to PyTorch's autograd of the plain form of 300 pairs. "
        "One would expect rounding and no more.",
        found=" ".join(told), rows=rows, figure=_plot_formula(), code=[contrast, gradient],
    )  # fmt: skip


def _plot_formula() -> Any:
    plot, (axis,) = figure(width=7.5, height=4.4)
    axis.set_axis_off()
    # Brackets stay of one size: fonts that hold larger ones are missing where the page is read.
    lines = [
        (r"$\hat{x}_i=\frac{x_i}{|x_i|}\qquad \hat{y}_j=\frac{y_j}{|y_j|}\qquad "
         r"s_{ij}=\frac{\hat{x}_i\cdot\hat{y}_j}{T}\qquad "
         r"p_{ij}=\frac{\exp\,s_{ij}}{\sum_k \exp\,s_{ik}}\qquad q_{ij}=\frac{\exp\,s_{ij}}{\sum_k \exp\,s_{kj}}$", 15),
        (r"$L=\frac{1}{2}\,(L_1+L_2)\qquad L_1=-\frac{1}{N}\sum_i\,\log\,p_{ii}\qquad "
         r"L_2=-\frac{1}{N}\sum_i\,\log\,q_{ii}$", 15),
        (r"$\frac{\partial L_1}{\partial x_i}=-\frac{1}{N|x_i|}\;(\;\frac{\hat{y}_i}{T}-s_{ii}\,\hat{x}_i-"
         r"\sum_j\,p_{ij}\,(\frac{\hat{y}_j}{T}-s_{ij}\,\hat{x}_i)\;)$", 21),
        (r"$\frac{\partial L}{\partial x_i}=\frac{1}{|x_i|}\sum_j\,f_{ij}\,"
         r"(\frac{\hat{y}_j}{T}-s_{ij}\,\hat{x}_i)$", 17),
        (r"$\frac{\partial L}{\partial y_j}=\frac{1}{|y_j|}\sum_i\,f_{ij}\,"
         r"(\frac{\hat{x}_i}{T}-s_{ij}\,\hat{y}_j)$", 17),
        (r"$\frac{\partial L}{\partial T}=-\frac{1}{T}\sum_{ij}\,f_{ij}\,s_{ij}\qquad "
         r"f_{ij}=\frac{1}{2N}\,(p_{ij}+q_{ij}-2\cdot[i=j])$", 17),
    ]  # fmt: skip
    places = ((0.0, 0.95), (0.0, 0.76), (0.0, 0.53), (0.0, 0.28), (0.5, 0.28), (0.0, 0.06))
    for (line, size), (left, height) in zip(lines, places):
        axis.text(left, height, line, fontsize=size, va="center", transform=axis.transAxes)
    return plot


def planted(checks: Mapping[str, Row]) -> Panel:
    """Faults that the check has to tell, beside what has none."""
    rows = [
        {"setting": name} | {key: value for key, value in row.items() if key != "own rounding"}
        for name, row in checks.items()
    ]
    missed = [name for name in PLANTED if checks[name]["verdict"] == "passes"]
    told = [f"{name} ({checks[name]['verdict']})" for name in PLANTED if name not in missed]
    right_ones = [f"{name}: {checks[name]['verdict']}" for name in RIGHT]
    plot, (left, right) = figure(2, width=5.4, height=3.2)
    names = list(checks)
    for shift, column in ((-0.2, "autograd fp64"), (0.2, "autograd fp32")):
        values = [max(min(float(row[column]), 10.0), 1e-17) for row in checks.values()]
        left.barh([i + shift for i in range(len(names))], values, height=0.4, label=column)
    left.axvline(FAULTY["autograd fp64"], color="C0", linewidth=0.8, linestyle="--")
    left.axvline(FAULTY["autograd fp32"], color="C1", linewidth=0.8, linestyle="--")
    left.set(title="largest difference to autograd", xscale="log")
    left.legend(fontsize=8, frameon=False)
    right.barh(names, [row["memory"] for row in checks.values()], color="C2")
    right.axvline(FAULTY["memory"], color="C2", linewidth=0.8, linestyle="--")
    right.set(title="memory, times that of half the pairs")
    left.set_yticks(range(len(names)), names, fontsize=9)
    right.set_yticks(range(len(names)), [""] * len(names))
    for axis in (left, right):
        axis.invert_yaxis()
    return Panel(
        name="check", title="Would the check notice?",
        asks="The same check of three right forms and of four that have a fault: the length of x taken for a "
        "constant; the gradient of one direction, of a loss of both; tiles that autograd keeps until backward; "
        f"exponentials whose maximum is not subtracted, at a temperature of {TINY:g}. Memory is that of 1024 pairs "
        "over that of 512: 4 where all pairs are held, so that a right form without tiles is caught by it too. Dashed: "
        "what is beyond is caught.",
        found=f"{len(PLANTED) - len(missed)} of {len(PLANTED)} planted faults are caught: {'; '.join(told)}."
        + (f" Not caught: {', '.join(missed)}." if missed else "")
        + f" Right ones: {'; '.join(right_ones)}.",
        rows=rows, figure=plot, code=[checked, contrast],
    )  # fmt: skip


# What it saves

WAYS: dict[str, Loss] = {"plain": plain, "tiles kept": kept, "tiles made again": tiled}


def saves(effort: Effort) -> Panel:
    """Memory and time of a step, for more and more pairs."""
    sizes = [n if device().type == "cpu" else 4 * n for n in SIZES]
    rows: list[Row] = []
    for n in sizes:
        inputs = _of_costs(n)
        found = costs({f"{way}, {n} pairs": partial(gradients, loss, inputs) for way, loss in WAYS.items()}, effort)
        base = found[f"plain, {n} pairs"]
        rows += [{"setting": name} | cost.row(base) | {"pairs": n} for name, cost in found.items()]
    for row in rows:
        row["way"] = row["setting"].split(",")[0]
    plot, axes = figure(2)
    for axis, name, title in zip(axes, ("MB", "ms"), ("peak memory, MB", "a step, ms")):
        for way in WAYS:
            mine = [row for row in rows if row["way"] == way]
            axis.plot(sizes, [row[name] for row in mine], marker="o", label=way)
        axis.set(title=title, xlabel="pairs", xscale="log", yscale="log")
        axis.set_xticks(sizes, [str(n) for n in sizes])
        axis.minorticks_off()
    axes[0].legend(fontsize=8, frameon=False)
    last = {row["way"]: row for row in rows if row["pairs"] == sizes[-1]}
    before = {row["way"]: row for row in rows if row["pairs"] == sizes[-2]}
    grown = ", ".join(f"{last[way]['MB'] / before[way]['MB']:.1f} ({way})" for way in WAYS)
    ours = last["tiles made again"]
    found = (
        f"At {sizes[-1]} pairs of {DIM} numbers the plain form holds {last['plain']['MB']:.0f} MB, kept tiles "
        f"{last['tiles kept']['MB']:.0f} MB, tiles made again {ours['MB']:.0f} MB: {ours['memory']:.3f} of the plain "
        f"form's, at {ours['speed']:.2f} times its speed (middle half of the rounds {ours['speed, lower quarter']:.2f} "
        f"to {ours['speed, upper quarter']:.2f}). From {sizes[-2]} pairs memory grew by a factor of {grown}."
    )
    for way in ("plain", "tiles made again"):
        grown_by = _process_memory(way, sizes[-1])
        if grown_by is not None:
            last[way]["process MB"] = grown_by / 1e6
            found += f" For {way} a process of its own grew by {grown_by / 1e6:.0f} MB."
    return Panel(
        name="saves", title="What it saves",
        asks="Loss and gradients of both directions, for x, y and T: the plain form; tiles that autograd keeps; "
        "losses.contrast, which makes its tiles again in backward. Memory is what tensors hold at the peak of a step "
        "beyond the inputs, and, where the system tells, the highest size of a fresh process above its size before. "
        "One would expect the first two to grow fourfold with each doubling, the third twofold once there are more "
        "pairs than a tile has rows, and time to differ little.",
        found=found, rows=rows, figure=plot, code=[contrast, plain, kept, peak_memory, highest],
    )  # fmt: skip


def _of_costs(n: int) -> list[Tensor]:
    return [part.detach().to(device()).requires_grad_() for part in pairs(n, DIM, dtype=torch.float32)]


def _process_memory(way: str, n: int) -> int | None:
    """Bytes by which a process of its own grows during a step; None where the system does not tell, or on a GPU."""
    if device().type != "cpu" or not ANEW.exists():
        return None
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_grown, (way, n, torch.get_num_threads()))


def _grown(way: str, n: int, threads: int) -> int:
    torch.set_num_threads(threads)
    gradients(WAYS[way], _of_costs(64))  # what is loaded at first use
    return highest(partial(gradients, WAYS[way], _of_costs(n)))[0]


# What it does


def parts(
    x: Float[Tensor, "pair dim"], y: Float[Tensor, "pair dim"], temperature: float
) -> tuple[Float[Tensor, "pair dim"], Float[Tensor, "pair dim"], Float[Tensor, "pair pair"]]:
    """Of the first direction: pull of each x's positive, push of its negatives, and the weights p_ij.

    pull_i = (1 - p_ii) y_i / T and push_i = -sum_{j != i} p_ij y_j / T, with y of length 1: what is left of their sum
    without its part along x_i, over N |x_i|, is the step downhill.
    """
    unit = F.normalize(y, dim=1)
    p = (F.normalize(x, dim=1) @ unit.T / temperature).softmax(1)
    own = p.diagonal().unsqueeze(1)
    return (1 - own) * unit / temperature, (own * unit - p @ unit) / temperature, p


def across(v: Float[Tensor, "pair dim"], x: Float[Tensor, "pair dim"]) -> Float[Tensor, "pair dim"]:
    """v without its part along x."""
    unit = F.normalize(x, dim=1)
    return v - (v * unit).sum(1, keepdim=True) * unit


def forces(effort: Effort) -> Panel:
    """Pull, push, and that the gradient is orthogonal to x; of the first direction alone."""
    n = effort.batch
    runs: dict[str, list[Row]] = {"as they are": [], "x twice as long": [], "a norm left out": []}
    moved: dict[str, tuple[Tensor, Tensor]] = {}
    for seed in range(effort.seeds):
        x, y, _ = (part.detach() for part in pairs(n, 32, seed=seed))
        for name, factor in (("as they are", 1), ("x twice as long", 2), ("a norm left out", 1)):
            at = (factor * x).requires_grad_()
            pull, push, p = parts(at.detach(), y, TEMPERATURE)
            right = torch.autograd.grad(contrast(at, y, temperature=TEMPERATURE), at)[0]
            downhill = (pull + push) / (n * at.detach().norm(dim=1, keepdim=True))
            g = -downhill if name == "a norm left out" else right
            after = (at.detach() - n * TEMPERATURE * g).norm(dim=1) / at.detach().norm(dim=1)
            runs[name].append({
                "pull": float((1 - p.diagonal()).mean()), "push": float((p.sum(1) - p.diagonal()).mean()),
                "length of the gradient": n * float(g.norm(dim=1).mean()),
                "largest cosine with x": float(F.cosine_similarity(g, at.detach()).abs().max()),
                "growth of |x|": float((after - 1).mean()), "least growth of |x|": float((after - 1).min()),
                "parts against contrast": apart([-across(downhill, at.detach())], [right]),
            })  # fmt: skip
            moved.setdefault(name, (at.detach().norm(dim=1), after - 1))
    rows = [over_seeds(name, mine) for name, mine in runs.items()]
    row, long, wrong = rows
    plot, (left, right) = figure(2, width=4.8, height=4.2)
    _plot_forces(left)
    right.set_yscale("symlog", linthresh=1e-7)
    for name, colour in (("a norm left out", "C3"), ("as they are", "C0")):
        lengths, change = moved[name]
        right.scatter(lengths, change, s=14, color=colour, label={"as they are": "the gradient"}.get(name, name))
    right.axhline(0, color="#999", linewidth=0.8, linestyle="--")
    right.set(title="growth of |x| in a step", xlabel="|x|")
    right.legend(fontsize=8, frameon=False)
    return Panel(
        name="forces", title="Pull and push",
        asks=f"{n} pairs in 32 dimensions at T = {TEMPERATURE:g}, the first direction alone: the positive pulls x_i "
        "with the weight 1 - p_ii, each negative pushes with p_ij, and what lies along x_i is taken off. Measured: "
        "the weights, how far these parts are from the gradient of losses.contrast, the cosine of gradient and x, and "
        "what a step does to |x|; for x as they are, twice as long, and with x's norm left out of the derivative. "
        "One would expect pull and push to weigh the same, the gradient to be orthogonal to x, so that steps only ever "
        "lengthen it, and half as long for x of twice the length.",
        found=f"The pull weighs {row['pull']:.3f} on average and the pushes together {row['push']:.3f}; put together "
        f"they are the gradient to within {row['parts against contrast']:.0e}. The largest cosine of gradient and x is "
        f"{row['largest cosine with x']:.0e}, and a step makes x longer by {row['least growth of |x|']:.1e} of its "
        f"length at least and {row['growth of |x|']:.1e} on average. With the norm left out the cosine is up to "
        f"{wrong['largest cosine with x']:.2f}, and a step makes x longer by {wrong['growth of |x|']:.1e} on average: "
        f"{wrong['growth of |x|'] / row['growth of |x|']:.1f} times as much. For x twice as long the gradient is "
        f"{long['length of the gradient'] / row['length of the gradient']:.3f} times as long.",
        rows=rows, figure=plot, code=[parts, contrast],
    )  # fmt: skip


def _plot_forces(axis: Any) -> None:
    """One x and nine y in the plane, with the parts of the step downhill."""
    angles = torch.tensor([0.6, 1.6, 2.1, -0.35, -0.8, -1.6, 2.9, 3.6, 4.2], dtype=torch.float64)
    y = torch.stack([angles.cos(), angles.sin()], 1)
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    pull, push, p = (part[:1] for part in parts(x.expand_as(y), y, 0.5))
    step = across(pull + push, x)
    turn = torch.linspace(0, 2 * math.pi, 200)
    axis.plot(turn.cos(), turn.sin(), color="#bbb", linewidth=0.8)
    axis.scatter(*y[1:].T, s=20 + 400 * p[0, 1:], color="C3", alpha=0.5, label="negatives, area by p")
    axis.scatter(*y[:1].T, s=60, color="C2", label="positive")
    axis.scatter(*x.T, s=60, color="k", marker="s", label="x")
    axis.plot([0, 1.6], [0, 0], color="k", linewidth=0.8, linestyle=":")
    for vector, colour, label in ((pull, "C2", "pull"), (push, "C3", "push"), (step, "k", "step downhill")):
        end = x[0] + 0.5 * vector[0]
        axis.annotate(
            "", xy=end.tolist(), xytext=x[0].tolist(), arrowprops={"arrowstyle": "->", "color": colour, "lw": 2}
        )
        axis.text(float(end[0]), float(end[1]) + 0.06, label, color=colour, fontsize=9)
    axis.set(title="one x in the plane, T = 0.5", aspect="equal")
    axis.set_axis_off()
    axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0.0, 0.0), ncols=3)


def temperatures(effort: Effort) -> Panel:
    """Which negatives push, by the temperature; and where that leads."""
    n = effort.batch
    group = torch.arange(n) % max(2, n // GROUP)
    alike = (group[:, None] == group) & ~torch.eye(n, dtype=torch.bool)
    others = group[:, None] != group
    runs: dict[float, list[Row]] = {temperature: [] for temperature in TEMPERATURES}
    start: list[Row] = []
    nearest: dict[float, list[Tensor]] = {temperature: [] for temperature in TEMPERATURES}
    for seed in range(effort.seeds):
        x, y = _in_groups(group, seed)
        start.append(_cosines(x, y, alike, others))
        for temperature in TEMPERATURES:
            p = parts(x, y, temperature)[2].fill_diagonal_(0)
            w = p / p.sum(1, keepdim=True)
            nearest[temperature].append(w.sort(1, descending=True).values[:, :-1].mean(0))
            runs[temperature].append({
                "pushing": float(torch.special.entr(w).sum(1).exp().mean()),
                "push of the nearest": float(w.amax(1).mean()), "push of its group": float((w * alike).sum(1).mean()),
                **_cosines(*descended(x, y, temperature, effort.steps), alike, others),
            })  # fmt: skip
        effort.say(f"temperatures, seed {seed}: {len(TEMPERATURES)} descents of {effort.steps} steps")
    rows = [over_seeds("before", start)] + [over_seeds(f"T = {t:g}", mine) for t, mine in runs.items()]
    plot, (left, right) = figure(2)
    for temperature, curves in nearest.items():
        left.plot(range(1, n), torch.stack(curves).mean(0).cumsum(0), label=f"T = {temperature:g}")
    left.set(title="share of the push", xlabel="of so many of the nearest negatives", xscale="log", ylim=(0, 1.02))
    left.legend(fontsize=8, frameon=False)
    for colour, name in enumerate(("positive", "its group", "others")):
        right.plot(TEMPERATURES, [row[name] for row in rows[1:]], color=f"C{colour}", marker="o", label=name)
        right.axhline(rows[0][name], color=f"C{colour}", linewidth=0.8, linestyle="--")
    right.set(title="cosines after equal paths (dashed: before)", xlabel="T", xscale="log")
    right.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(0.0, 0.58))
    return Panel(
        name="temperature", title="What the temperature changes",
        asks=f"{n} pairs in {int(group.max()) + 1} groups that resemble each other, in 16 dimensions. Measured, "
        "for an x: by how many negatives the push comes (the exponential of the entropy of their weights), and which "
        f"share of it is the nearest's and its group's; then x and y go downhill by paths that are equally long at "
        f"each T, {PATH:g} of their length, in {effort.steps} steps. Measured afterwards: cosines of an x to its "
        "positive, to the y of its group and to the others. One would expect a low temperature to push the nearest "
        "negatives alone, so that those of a group are parted; a high one to push all alike, so that groups are.",
        found=_told_temperatures(rows, n), rows=rows, figure=plot, code=[parts, descended, contrast],
    )  # fmt: skip


def _in_groups(group: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """x around the centre of their group and y around x, of length 1."""
    generator = torch.Generator().manual_seed(seed)
    centre, near, noise = (torch.randn(len(group), 16, generator=generator, dtype=torch.float64) for _ in range(3))
    x = centre[group] + 0.6 * near
    return F.normalize(x, dim=1), F.normalize(x + 0.6 * noise, dim=1)


def _cosines(x: Tensor, y: Tensor, alike: Tensor, others: Tensor) -> Row:
    cosines = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    return {
        "positive": float(cosines.diagonal().mean()), "its group": float(cosines[alike].mean()),
        "others": float(cosines[others].mean()), "least |x|": float(x.norm(dim=1).min()),
    }  # fmt: skip


def descended(x: Tensor, y: Tensor, temperature: float, steps: int) -> tuple[Tensor, Tensor]:
    """x and y after so many steps down the gradient of both directions, each of which moves them by PATH / steps."""
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    for _ in range(steps):
        loss = contrast(x, y, temperature=temperature, symmetric=True)
        slopes = torch.autograd.grad(loss, (x, y))
        rate = PATH / steps / torch.cat(slopes).norm(dim=1).mean()
        with torch.no_grad():
            for part, slope in zip((x, y), slopes):
                part -= rate * slope
    return x.detach(), y.detach()


def _told_temperatures(rows: Sequence[Row], n: int) -> str:
    before, cold, *_, warm = rows
    fewer = all(a["pushing"] < b["pushing"] for a, b in pairwise(rows[1:]))
    pushed, moved = (
        "; ".join(told(row) for row in (cold, warm))
        for told in (
            lambda row: (
                f"at {row['setting']}, {row['pushing']:.1f} of {n - 1} negatives push, the nearest with "
                f"{100 * row['push of the nearest']:.0f} % of the push and its group with "
                f"{100 * row['push of its group']:.0f} %"
            ),
            lambda row: (
                f"at {row['setting']}, {row['positive']:.2f} to the positive, {row['its group']:.2f} to its "
                f"group, {row['others']:.2f} to others"
            ),
        )
    )
    parts_group, parts_others = warm["its group"] - cold["its group"], cold["others"] - warm["others"]
    return (
        f"{pushed[0].upper()}{pushed[1:]}. The lower the temperature, the fewer push"
        f"{'' if fewer else ': not throughout'}. Cosines before: {before['positive']:.2f} to the positive, "
        f"{before['its group']:.2f} to its group and {before['others']:.2f} to others; after equal paths: {moved}. The "
        f"lowest temperature parts a group {_more(parts_group)} than the highest, which parts groups from each other "
        f"{_more(parts_others)}. The shortest x is {min(row['least |x|'] for row in rows[1:]):.4f} times as long as "
        "before."
    )


def _more(difference: float) -> str:
    return "more" if difference > 0 else "no more"
