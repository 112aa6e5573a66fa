"""A sparse matrix kept by rows (CSR), and its products with dense ones, with exact gradients.

Row i of a matrix M has its entries at offsets[i] to offsets[i + 1] of `columns` and `values`.  With Y = M X,

    dX = M^T dY            dM_e = dY_row(e) . X_column(e)   of each entry e that is there, and of no other

M^T is M's entries in another order.  That order is found once for a pattern and kept, so a backward pass is another
product by rows, which no two threads write to at once; nothing of size [entries, width] is ever held.  Indices are
32-bit, as MKL takes them without a copy.
"""

import warnings
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from negah.errors import InputError

CHUNK = 2**17  # numbers held at once where entries have to be gone through: 0.5 MB in fp32, which stays in a cache
WIDE = 64  # from here on torch's own product is faster than MKL's, on the one processor where both were measured
MOST = 2**31 - 1  # what 32-bit indices can count

with warnings.catch_warnings():
    # Torch says once in a process that its CSR tensors are young; said here, nobody has to read it.
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.zeros(2, dtype=torch.int32), torch.zeros(0, dtype=torch.int32), torch.zeros(0))


class Pattern:
    """Where the entries are: `offsets` [rows + 1] and `columns` [entries], both int32; not to be changed."""

    def __init__(self, offsets: Int[Tensor, " offsets"], columns: Int[Tensor, " entries"], shape: tuple[int, int]):
        self.offsets, self.columns, self.shape = offsets.int(), columns.int(), shape

    @classmethod
    def of(
        cls, rows: Int[Tensor, " entries"], columns: Int[Tensor, " entries"], shape: tuple[int, int]
    ) -> tuple["Pattern", Int[Tensor, " entries"]]:
        """The pattern of entries in any order, and the order that sorts them by row, then by column."""
        if max(len(rows), *shape) > MOST:
            raise InputError(f"{len(rows)} entries in {shape[0]} x {shape[1]} are too many for 32-bit indices: cut it")
        order = torch.argsort(rows.long() * shape[1] + columns.long(), stable=True)
        return cls(_offsets(rows, shape[0]), columns[order], shape), order

    @cached_property
    def rows(self) -> Int[Tensor, " entries"]:
        """Row of each entry."""
        counts = self.offsets.diff()
        return torch.repeat_interleave(torch.arange(self.shape[0], device=counts.device, dtype=torch.int32), counts)

    @cached_property
    def transposed(self) -> tuple["Pattern", Int[Tensor, " entries"]]:
        """The pattern of the transposed matrix, and where its entries are among those of this one."""
        order = torch.argsort(self.columns, stable=True).int()  # rows ascend already
        offsets, columns = _offsets(self.columns, self.shape[1]), self.rows.index_select(0, order)
        if torch.equal(offsets, self.offsets) and torch.equal(columns, self.columns):
            return self, order  # as of an undirected graph: held once
        return Pattern(offsets, columns, (self.shape[1], self.shape[0])), order

    def to(self, device: torch.device | str) -> "Pattern":
        """On another device."""
        return Pattern(self.offsets.to(device), self.columns.to(device), self.shape)


class CSR:
    """A sparse matrix, `matrix @ x` its product: a pattern, and values of the entries, which may require a gradient.

    Raises InputError unless there is one value for each entry.
    """

    def __init__(self, pattern: Pattern, values: Float[Tensor, " entries"]):
        if values.shape != pattern.columns.shape:
            raise InputError(f"{len(pattern.columns)} entries have values of shape {tuple(values.shape)}: one for each")
        self.pattern, self.values = pattern, values

    @classmethod
    def of_dense(cls, dense: Float[Tensor, "row column"]) -> "CSR":
        """The entries of a dense matrix that are not zero, as of bags of words."""
        rows, columns = dense.nonzero(as_tuple=True)
        pattern, _ = Pattern.of(rows, columns, (dense.shape[0], dense.shape[1]))
        return cls(pattern, dense[rows, columns])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.pattern.shape

    def __len__(self) -> int:
        return self.pattern.shape[0]

    @cached_property
    def T(self) -> "CSR":
        """The transposed matrix."""
        pattern, order = self.pattern.transposed
        return self.paired(CSR(pattern, self.values.index_select(0, order))).T

    def paired(self, flipped: "CSR") -> "CSR":
        """Itself, when `flipped` is known to be its transposed matrix: that is then not made again."""
        self.__dict__["T"], flipped.__dict__["T"] = flipped, self
        return self

    def take(self, rows: Int[Tensor, " some"]) -> "CSR":
        """Some of the rows, in the order given."""
        starts = self.pattern.offsets[rows].long()
        counts = self.pattern.offsets[rows + 1].long() - starts
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        entries = torch.arange(int(offsets[-1])) + torch.repeat_interleave(starts - offsets[:-1], counts)
        pattern = Pattern(offsets, self.pattern.columns[entries], (len(rows), self.shape[1]))
        return CSR(pattern, self.values[entries])

    def dense(self) -> Float[Tensor, "row column"]:
        """All of it; entries in the same place add up."""
        place = self.pattern.rows.long(), self.pattern.columns.long()
        return self.values.new_zeros(self.shape).index_put(place, self.values, accumulate=True)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "CSR":
        """On another device, or of another type."""
        if torch.device(device) == self.values.device and dtype in (None, self.values.dtype):
            return self
        return CSR(self.pattern.to(device), self.values.to(device, dtype))

    def __matmul__(self, x: Float[Tensor, "column width"]) -> Float[Tensor, "row width"]:
        return _Product.apply(self, self.values, x)  # pyright: ignore[reportReturnType]

    def tensor(self, dtype: torch.dtype) -> Tensor:
        """As a CSR tensor of torch, without gradients."""
        values = self.values.detach().to(dtype)
        p = self.pattern
        return torch.sparse_csr_tensor(p.offsets, p.columns, values, p.shape, check_invariants=False)


def _offsets(rows: Int[Tensor, " entries"], count: int) -> Int[Tensor, " offsets"]:
    counts = torch.bincount(rows, minlength=count)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()


def multiply(matrix: CSR, x: Float[Tensor, "column width"]) -> Float[Tensor, "row width"]:
    """The product without a gradient; half precision is added up in fp32, as no library of torch does it otherwise."""
    dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    how = ("sum",) if x.device.type == "cpu" and x.shape[1] >= WIDE else ()
    with torch.autocast(x.device.type, enabled=False):
        return torch.sparse.mm(matrix.tensor(dtype), x.to(dtype), *how).to(x.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: CSR, values: Tensor, x: Tensor) -> Tensor:
        ctx.matrix = matrix
        ctx.save_for_backward(values, x if values.requires_grad else None)
        return multiply(matrix, x.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        (g,) = grads
        pattern, (values, x) = ctx.matrix.pattern, ctx.saved_tensors
        d_values = entrywise(pattern, g, x).to(values.dtype) if ctx.needs_input_grad[1] else None
        d_x = None
        if ctx.needs_input_grad[2]:
            # Kept for a constant matrix; one whose values are learnt is another at each step.
            if values.requires_grad:
                flipped, order = pattern.transposed
                d_x = CSR(flipped, values.index_select(0, order)) @ g
            else:
                d_x = ctx.matrix.T @ g
        return None, d_values, d_x


def entrywise(
    pattern: Pattern, left: Float[Tensor, "row *head width"], right: Float[Tensor, "column *head width"]
) -> Float[Tensor, "entry *head"]:
    """left_row(e) . right_column(e) of each entry e, and of each head, some entries at a time."""
    step = max(1, CHUNK // max(1, left[0].numel()))
    parts = [
        (left.index_select(0, rows) * right.index_select(0, columns)).sum(-1)
        for rows, columns in zip(pattern.rows.split(step), pattern.columns.split(step))
    ]
    return torch.cat(parts) if parts else left.new_zeros(0, *left.shape[1:-1])
