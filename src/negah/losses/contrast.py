"""Contrast: pull a query towards its positives, push it from every other key, without the matrix of all pairs.

Oord et al. 2018, arXiv:1807.03748 (InfoNCE); Chen et al. 2020, arXiv:2002.05709 (a view against the other views); He
et al. 2020, arXiv:1911.05722 (a queue); Khosla et al. 2020, arXiv:2004.11362, L_out (several positives); Radford et al.
2021, arXiv:2103.00020 (both directions).  All of them are

    a_i = queries_i / |queries_i| / temperature,    b_j = keys_j / |keys_j|,    s_ij = a_i . b_j
    loss = mean_i (log sum_j exp s_ij  -  mean_{p in positives of i} s_ip)

The second term needs no pairs: it is a_i . (mean of the positives' b).  For the first, s is made one tile at a time,
each tile is reduced to its log-sum-exp, which subtracts the maximum so that no temperature overflows, and is
forgotten.  Backward makes the tiles again.  With R_i = log sum_j exp s_ij and its gradient r_i, and C_j, c_j likewise
for the columns, which the other direction needs,

    ds_ij = r_i exp(s_ij - R_i) + c_j exp(s_ij - C_j),    da = ds b,    db = ds^T a

so memory is O(queries x tile), and both directions take 4 matrix products where two plain cross-entropies take 6.  The
norms and the temperature are outside of the tiles and have their exact gradients from autograd.

Over several processes keys are those of all (queries stay where they are), and each process's loss is the mean over its
own queries.  For the other direction each process has only its own rows of a column: the log-sum-exps are gathered
instead of the rows.  Inputs of half precision are computed in fp32, under autocast as well.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from negah import ranks

TILE = 1024  # side of a tile: 4 MB in fp32, which stays in a CPU's cache while it is worked on
TILE_GPU = 4096  # 64 MB: large enough that starting the kernels costs nothing

Temperature = float | Float[Tensor, ""]
Groups = tuple[Int[Tensor, " query"], Int[Tensor, " key"]]


def contrast(
    queries: Float[Tensor, "query dim"],
    keys: Float[Tensor, "key dim"],
    *,
    temperature: Temperature,
    groups: Groups | None = None,
    symmetric: bool = False,
    tile: int | None = None,
) -> Float[Tensor, ""]:
    """Each query against the keys of all processes; by default its positive is the key in its own row.

    Args:
        queries, keys: of any length but 0: they are normalised here; as many on every process.
        temperature: above 0; a tensor gets its gradient.
        groups: a number for each query and each key, for several positives (captions of one picture, pictures of one
            class): the keys with the query's number, on whichever process.  Numbers mean the same on all of them.
        symmetric: the mean of this and of the keys against the queries (CLIP).
        tile: side of a tile, by default chosen for the device; it changes speed and memory only.

    Raises ValueError on fewer than 2 keys, on queries and keys that do not fit each other, on a temperature that is not
    above 0, and on a query without positives.

    Examples:
        >>> views = torch.eye(4)
        >>> f"{contrast(views, views, temperature=0.1):.4f}"  # each view is nearest to its own key
        '0.0001'
        >>> f"{contrast(views, views.roll(1, 0), temperature=0.1):.4f}"  # and here to another's
        '10.0001'
    """
    _check(queries, keys, temperature, groups)
    if groups is None and len(queries) != len(keys):
        raise ValueError(
            f"{len(queries)} queries and {len(keys)} keys are not pairs: say by groups what belongs together"
        )
    a, b = _unit(queries, temperature), _unit(keys)
    all_b = ranks.all_gather(b)
    if len(all_b) < 2:
        raise ValueError(f"contrast needs at least 2 keys, one to push away, got {len(all_b)}")
    rows, columns = _log_sums(a, all_b, columns=symmetric, tile=tile)
    positive = (a * b).sum(1) if groups is None else _positive(a, groups[0], all_b, ranks.all_gather(groups[1]))
    loss = (rows - positive).mean()
    if columns is None:
        return loss
    own = slice(ranks.rank() * len(b), (ranks.rank() + 1) * len(b))
    columns = ranks.all_gather(columns[None]).logsumexp(0)[own]
    if groups is not None:
        positive = _positive(b, groups[1], ranks.all_gather(a), ranks.all_gather(groups[0]))
    return (loss + (columns - positive).mean()) / 2


def contrast_self(
    views: Float[Tensor, "view dim"],
    groups: Int[Tensor, " view"],
    *,
    temperature: Temperature,
    tile: int | None = None,
) -> Float[Tensor, ""]:
    """Each view against all other views of all processes; its positives are the others with its number in `groups`.

    SimCLR with the picture's number, supervised contrastive learning with its class.  Raises as `contrast` does.
    """
    _check(views, views, temperature, (groups, groups))
    unit = _unit(views)
    every = ranks.all_gather(unit)
    if len(every) < 2:
        raise ValueError(f"contrast needs at least 2 views, got {len(every)}")
    a, first = unit / temperature, ranks.rank() * len(views)
    rows, _ = _log_sums(a, every, first=first, tile=tile)
    return (rows - _positive(a, groups, every, ranks.all_gather(groups), without=unit)).mean()


def contrast_queue(
    queries: Float[Tensor, "query dim"],
    keys: Float[Tensor, "query dim"],
    queue: Float[Tensor, "negative dim"],
    *,
    temperature: Temperature,
    tile: int | None = None,
) -> Float[Tensor, ""]:
    """Each query against its own key and the negatives in a queue, which gets no gradient (MoCo).

    The queue is the same on all processes, so nothing is gathered.  Raises ValueError on an empty queue, and otherwise
    as `contrast` does.
    """
    _check(queries, keys, temperature)
    if len(queries) != len(keys) or queue.shape[1] != keys.shape[1] or len(queue) == 0:
        raise ValueError(
            f"queries {tuple(queries.shape)}, keys {tuple(keys.shape)} and queue {tuple(queue.shape)} do not fit:"
            " a key for each query, and negatives of the same dimension"
        )
    a = _unit(queries, temperature)
    positive = (a * _unit(keys)).sum(1)
    rows, _ = _log_sums(a, _unit(queue.detach()).to(a.dtype), tile=tile)
    return torch.logaddexp(torch.zeros_like(rows), rows - positive).mean()


def _check(
    queries: Tensor, keys: Tensor, temperature: Temperature, groups: tuple[Tensor, Tensor] | None = None
) -> None:
    if len(queries) == 0:
        raise ValueError("contrast needs at least 1 query, got none")
    if queries.shape[1] != keys.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} dimensions and keys {keys.shape[1]}: they must be equal")
    if groups is not None and (len(groups[0]), len(groups[1])) != (len(queries), len(keys)):
        raise ValueError(
            f"{len(groups[0])} and {len(groups[1])} groups' numbers for {len(queries)} queries and {len(keys)} keys:"
            " each has one"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {float(temperature)}")


def _unit(x: Float[Tensor, "row dim"], temperature: Temperature = 1.0) -> Float[Tensor, "row dim"]:
    """x / (|x| temperature), from which backward needs nothing of x's size but x."""
    x = x if x.dtype == torch.float64 else x.float()
    return x * (1 / (torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12) * temperature))


def _positive(
    a: Float[Tensor, "row dim"],
    of: Int[Tensor, " row"],
    b: Float[Tensor, "column dim"],
    groups: Int[Tensor, " column"],
    *,
    without: Float[Tensor, "row dim"] | None = None,
) -> Float[Tensor, " row"]:
    """Mean of s over the columns in each row's group: a_i times their mean b, without a row's own b in `without`."""
    _, index = torch.cat([of, groups]).unique(return_inverse=True)
    of, groups = index[: len(a)], index[len(a) :]
    counts = groups.bincount(minlength=len(index))[of]
    sums = b.new_zeros(len(index), b.shape[1]).index_add(0, groups, b)[of]
    if without is not None:
        counts, sums = counts - 1, sums - without
    if not counts.all():
        raise ValueError(f"row {int(counts.argmin())} has no positive: nothing else is in its group")
    return (a * sums).sum(1) / counts


def _log_sums(
    a: Float[Tensor, "row dim"],
    b: Float[Tensor, "column dim"],
    *,
    columns: bool = False,
    first: int | None = None,
    tile: int | None = None,
) -> tuple[Float[Tensor, " row"], Float[Tensor, " column"] | None]:
    """log sum exp of the rows of s = a b^T, and with `columns` of its columns, with gradients.

    Where `first` is given, row i leaves out column first + i.
    """
    side = tile or (TILE if a.device.type == "cpu" else TILE_GPU)
    return _LogSums.apply(a, b, columns, first, side)  # pyright: ignore[reportReturnType]


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, columns: bool, first: int | None, side: int):
        tiles = _Tiles(a, b, first, side)
        # Each tile's part of each sum.  They are put together only at the end, so that rounding does not add up.
        row_parts = a.new_empty(len(tiles.columns), len(a))
        column_parts = a.new_empty(len(tiles.rows), len(b)) if columns else None
        for i, j, s, spare in tiles:
            row_parts[j, tiles.rows[i]] = _log_sum(s, 1, spare)
            if column_parts is not None:
                column_parts[i, tiles.columns[j]] = _log_sum(s, 0, spare)
        row_sums = row_parts.logsumexp(0)
        column_sums = None if column_parts is None else column_parts.logsumexp(0)
        ctx.save_for_backward(a, b, row_sums, column_sums)
        ctx.first, ctx.side = first, side
        return row_sums, column_sums

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Any):
        a, b, row_sums, column_sums = ctx.saved_tensors
        da = torch.zeros_like(a) if ctx.needs_input_grad[0] else None
        db = torch.zeros_like(b) if ctx.needs_input_grad[1] else None
        tiles = _Tiles(a, b, ctx.first, ctx.side)
        for i, j, s, spare in tiles:
            rows, columns = tiles.rows[i], tiles.columns[j]
            ds = torch.sub(s, row_sums[rows, None], out=spare).exp_().mul_(grads[0][rows, None])
            if column_sums is not None:
                ds.add_(s.sub_(column_sums[columns]).exp_().mul_(grads[1][columns]))
            if da is not None:
                da[rows].addmm_(ds, b[columns])
            if db is not None:
                db[columns].addmm_(ds.T, a[rows])
        return da, db, None, None, None


class _Tiles:
    """The tiles of s = a b^T one after the other, all in the same memory: (row of tiles, column of tiles, s, spare).

    Few rows make wide tiles, so that a tile always holds about side^2 numbers.  What a row leaves out is -inf.
    """

    def __init__(self, a: Tensor, b: Tensor, first: int | None, side: int):
        self.a, self.b, self.first = a, b, first
        height = min(side, len(a))
        self.rows, self.columns = _parts(len(a), height), _parts(len(b), max(side, side**2 // height))

    def __iter__(self):
        # torch's allocator for CPUs is the system's: new memory for each tile would cost time, and leave holes behind.
        size = self.rows[0].stop * self.columns[0].stop
        memory = self.a.new_empty(2, size)
        for i, rows in enumerate(self.rows):
            for j, columns in enumerate(self.columns):
                shape = rows.stop - rows.start, columns.stop - columns.start
                s, spare = memory[:, : shape[0] * shape[1]].view(2, *shape)
                torch.mm(self.a[rows], self.b[columns].T, out=s)  # with out=, autocast leaves it alone
                if self.first is not None:  # row k of the tile leaves out its column k + offset, if it has one
                    s.diagonal(self.first + rows.start - columns.start).fill_(-torch.inf)
                yield i, j, s, spare


def _parts(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _log_sum(s: Float[Tensor, "row column"], dim: int, spare: Float[Tensor, "row column"]) -> Float[Tensor, " kept"]:
    """log sum exp of s along `dim`, leaving s as it is."""
    top = s.amax(dim, keepdim=True).clamp_min_(torch.finfo(s.dtype).min)  # where all is -inf: -inf - -inf is NaN
    return torch.sub(s, top, out=spare).exp_().sum(dim).log_().add_(top.squeeze(dim))
