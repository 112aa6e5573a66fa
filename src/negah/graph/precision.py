"""Tell a difference that rounding makes from one that the order makes.

Two orders of the same messages give outputs that differ.  It is rounding if the difference shrinks as the arithmetic
gets finer, so the function is run again with all its floating-point operations, casts to half precision included, done
in float64, and in float32:

    violation    |f64(x) - f64(px)|  >  64 * 2^-29 * max(|f32 - f64| at x, at px)  +  ulps of the largest number

and f64 does not jump by as much in a neighbourhood of x in which equal features stay equal (a rounded mean jumps there;
a choice between equal messages does not).  Where every number on the way fits into 24 bits nothing was rounded, and any
difference is the order's.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from negah.errors import InputError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NUDGE = 1e-9
SLACK = 64  # how far rounding may exceed its estimate
Output = Tensor | str  # a str is the error that was raised
Inputs = tuple[Tensor, ...]


class OutOfTime(Exception):
    """The search has used up its time."""


class Unsteady(Exception):
    """The same input gave two outputs."""

    def __init__(self, inputs: Inputs, first: Output, again: Output):
        self.inputs, self.first, self.again = inputs, first, again


class Precision(TorchDispatchMode):
    """Does every floating-point operation in one precision, and watches whether anything was rounded."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        self.short = True  # every number so far fits into 24 bits
        self.largest = 0.0  # of all finite ones

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            # What is written into keeps its type, and takes the others into it.
            owner = args[0] if args else None
            if isinstance(owner, Tensor) and owner.is_floating_point():
                dtype = owner.dtype
                args = (owner, *tree_map(lambda x: in_type(x, dtype), args[1:]))
            out = func(*args, **kwargs)
        else:
            args, kwargs = tree_map(lambda x: in_type(x, self.dtype), (args, kwargs))
            out = func(*args, **kwargs)
            if not any(isinstance(one, Tensor) for one in tree_leaves((args, kwargs))):
                out = tree_map(lambda x: in_type(x, self.dtype), out)
        for one in tree_leaves(out):
            if isinstance(one, Tensor) and one.is_floating_point() and one.numel():
                self.short = self.short and fits(one)
                self.largest = max(self.largest, float(one.nan_to_num(0, 0, 0).abs().max()))
        return out


class Leaving(TorchFunctionMode):
    """Sees a function go to NumPy, whose arithmetic cannot be done again in another precision."""

    def __init__(self) -> None:
        super().__init__()
        self.left = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left |= getattr(func, "__name__", "") in ("numpy", "__array__", "__dlpack__")
        return func(*args, **(kwargs or {}))


def in_type(value: Any, dtype: torch.dtype) -> Any:
    """A floating-point tensor, or the name of a floating-point type, in another type."""
    if isinstance(value, Tensor) and value.dtype in FLOATS:
        return value.to(dtype)
    return dtype if isinstance(value, torch.dtype) and value in FLOATS else value


def fits(x: Tensor) -> bool:
    """Whether all values have at most 24 significant bits."""
    return bool(((x.float().to(x.dtype) == x) | ~x.isfinite()).all())


@dataclass(frozen=True)
class Gap:
    """Two outputs that ought to be equal.  rounding: how far arithmetic could have moved them apart."""

    output: Output
    permuted: Output
    difference: float
    rounding: float


@dataclass
class Subject:
    """A function under audit: how it is called, how often it was, and until when it may be.

    Args:
        name: in messages.
        dtype: of the features it is given.
    """

    f: Callable[..., Any]
    name: str
    deadline: float = float("inf")
    dtype: torch.dtype = torch.float64
    evaluations: int = 0
    left: bool = False  # it goes to NumPy

    def __call__(self, inputs: Inputs) -> Output:
        """Its output, without a gradient, or the error it raises.

        Raises InputError for a function that writes into its inputs or returns no tensor, OutOfTime at the deadline.
        """
        if time.monotonic() > self.deadline:
            raise OutOfTime
        self.evaluations += 1
        given = tuple(x.to(self.dtype, copy=True) if x.is_floating_point() else x.clone() for x in inputs)
        kept = tuple(x.clone() for x in given)
        try:
            with torch.no_grad():
                out = self.f(*given)
        except InputError:
            raise
        except Exception as error:
            return f"{type(error).__name__}: {error}".splitlines()[0][:200]
        for before, after in zip(kept, given):
            if before.shape != after.shape or not torch.equal(before.nan_to_num(), after.nan_to_num()):
                raise InputError(f"{self.name} writes into its inputs: let it work on a copy (x = x.clone())")
        return self.checked(out)

    def checked(self, out: Any) -> Tensor:
        """The output as a tensor of its own."""
        if isinstance(out, bool | int | float):
            return torch.tensor(out, dtype=torch.float64)
        if not isinstance(out, Tensor):
            raise InputError(f"{self.name} returns {said(out)}, not a tensor: return one")
        return out.detach().clone()

    def at(self, inputs: Inputs, dtype: torch.dtype) -> tuple[Tensor, Precision] | None:
        """The output with all arithmetic in `dtype`, and what was seen of it; None where it cannot be done."""
        mode = Precision(dtype)
        try:
            with mode:
                out = self(inputs)
        except InputError:
            return None
        return None if isinstance(out, str) else (numbers(out), mode)

    def differs(self, a: Inputs, b: Inputs, back: Callable[[Tensor], Tensor] = lambda x: x) -> Gap | None:
        """Whether f(a) and back(f(b)), which ought to be equal, differ by more than rounding.

        Raises Unsteady where f(a) or f(b), done again, is not what it was.
        """
        y, z = self(a), self(b)
        if isinstance(y, str) and isinstance(z, str):
            return None
        if isinstance(y, Tensor) and isinstance(z, Tensor) and y.shape == z.shape:
            if same(y, back(z)) or apart(y, back(z)) <= ulps(y, z, a, self.dtype):
                return None
        for inputs, first in ((a, y), (b, z)):
            again = self(inputs)
            if changed(first, again, inputs, self.dtype):
                raise Unsteady(inputs, first, again)
        if isinstance(y, str) or isinstance(z, str):
            return Gap(y, z, float("inf"), 0.0)
        if y.shape != z.shape:
            return Gap(y, z, float("inf"), 0.0)
        z = back(z)
        gap, limit = apart(y, z), ulps(y, z, a, self.dtype)
        fine_a, fine_b = self.at(a, torch.float64), self.at(b, torch.float64)
        if fine_a is None or fine_b is None:
            limit = 1024 * limit
            return Gap(y, z, gap, limit) if gap > limit else None
        (y64, seen_a), (z64, seen_b) = fine_a, fine_b
        if y64.shape != z64.shape or same(y64, back(z64)):
            return None
        gap = apart(y64, back(z64))
        if seen_a.short and seen_b.short and not self.left:
            return Gap(y, z, gap, 0.0)
        rounding = self.rounding(a, b, y64, z64)
        # A large number on the way rounds what is added to it, down to nothing in float32.
        rounding += 8 * counted(a) * torch.finfo(torch.float64).eps * max(seen_a.largest, seen_b.largest)
        if not gap > rounding or self.jumps(a, y64, gap) or self.jumps(b, z64, gap):
            return None
        return Gap(y, z, gap, rounding)

    def rounding(self, a: Inputs, b: Inputs, y64: Tensor, z64: Tensor) -> float:
        """How far float64 arithmetic may have moved the outputs, judged by how far float32 moves them."""
        limit = ulps(y64, z64, a, torch.float64)
        y32, z32 = self.at(a, torch.float32), self.at(b, torch.float32)
        if y32 is None or z32 is None:
            return 1024 * limit
        if self.left:  # half precision may be at work there
            limit += 2**-8 * float(torch.cat([y64.flatten(), z64.flatten()]).abs().max())
        return SLACK * 2**-29 * max(apart(y32[0], y64), apart(z32[0], z64)) + limit

    def jumps(self, x: Inputs, y: Tensor, gap: float) -> bool:
        """Whether f leaps by a part of `gap` close by, equal features staying equal: then rounding may do so, too."""
        for i in range(3):
            for sign in (1, -1):
                found = self.at(tuple(nudged(v, sign * NUDGE, i) for v in x), torch.float64)
                if found is None or found[0].shape != y.shape or not apart(found[0], y) <= gap / 4:
                    return True
        return False


def nudged(x: Tensor, by: float, kind: int) -> Tensor:
    """Features a little beside x: equal ones stay equal."""
    if not x.is_floating_point():
        return x
    x = x.double()
    return x + by * (1 + kind * x + (3 * x + kind).sin())


def numbers(x: Tensor) -> Tensor:
    """As float64, whatever it was."""
    return x.abs().double() if x.is_complex() else x.double()


def same(y: Tensor, z: Tensor) -> bool:
    """Equal in every entry, NaN to NaN."""
    return torch.equal(torch.isnan(y), torch.isnan(z)) and torch.equal(y.nan_to_num(), z.nan_to_num())


def apart(y: Tensor, z: Tensor) -> float:
    """The largest difference of two outputs; infinite where one is a number and the other is not."""
    y, z = numbers(y), numbers(z)
    if not y.numel():
        return 0.0
    both = y.isnan() & z.isnan() | (y == z)
    gap = torch.where(both, 0.0, (y - z).abs())
    return float(gap.nan_to_num(nan=torch.inf).max())


def changed(y: Output, z: Output, inputs: Inputs, dtype: torch.dtype) -> bool:
    """Whether two outputs for the same input differ."""
    if isinstance(y, str) or isinstance(z, str):
        return isinstance(y, str) != isinstance(z, str)
    return y.shape != z.shape or not (same(y, z) or apart(y, z) <= ulps(y, z, inputs, dtype))


def ulps(y: Tensor, z: Tensor, inputs: Sequence[Tensor], dtype: torch.dtype) -> float:
    """The last few digits of numbers of this size."""
    values = torch.cat([numbers(y).flatten(), numbers(z).flatten()])
    values = values[values.isfinite()]
    scale = float(values.abs().max()) if values.numel() else 0.0
    return 8 * counted(inputs) * torch.finfo(dtype).eps * scale


def counted(inputs: Sequence[Tensor]) -> int:
    """How many numbers are added up, roughly."""
    return max(8, *(len(x) if x.dim() else 1 for x in inputs))


def said(value: Any) -> str:
    """What a value is, in a message."""
    return "None" if value is None else f"a {type(value).__name__}"
