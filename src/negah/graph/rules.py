"""What each operation of torch does to the axis along which a set lies.

A `Term` stands for a tensor whose numbers are not known.  Of each axis it is known whether it is ordinary (an int, its
length, or None where the length is not known), or a set's: a `Bag`.  What the rules keep true is one sentence:

    permuting the set permutes every Bag axis of a term in the same way, and changes nothing else.

The messages [n, d] are a term of axes (SET, d), of which it is true by definition.  A pointwise map keeps it true if no
ordinary axis of more than one entry meets a Bag (its entries would weigh each position in a way of their own); a sum, a
maximum, a sorting along a Bag keeps it true, and the Bag is gone.  A term without a Bag does not depend on the order.

Whatever has no rule here is refused: a rule that is missing costs a certificate, one too many would make it worthless.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

Part = int | str


@dataclass(frozen=True)
class Bag:
    """An axis along which a set lies: "n" for the set itself, an int for that many fixed entries put beside it."""

    parts: tuple[Part, ...]

    def __str__(self) -> str:
        return "+".join(map(str, self.parts))


SET = Bag(("n",))
Axis = int | None | Bag


class Unproved(Exception):
    """The derivation ends here, which says nothing against the function."""


@dataclass(frozen=True)
class Unknown:
    """A Python value that is not known but the same for every order: a function of n, a dtype, a device."""


@dataclass(frozen=True)
class Length(Unknown):
    """The length of a Bag axis."""

    bag: Bag


class Ties:
    """Places of a sorted or chosen message: among equal ones they follow the order."""


class Pair(NamedTuple):
    """What torch.max(x, dim) and its like return."""

    values: Any
    indices: Any


@dataclass(frozen=True)
class Term:
    """A tensor of which only the axes are known."""

    axes: tuple[Axis, ...]

    def __str__(self) -> str:
        return "[" + ", ".join("?" if axis is None else str(axis) for axis in self.axes) + "]"

    @property
    def ordered(self) -> bool:
        """Whether a set lies along one of its axes."""
        return any(isinstance(axis, Bag) for axis in self.axes)


Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}
ABOUT: dict[str, str] = {}  # the kind of operation, as derivations tell it


def rule(names: str, about: str) -> Callable[[Rule], Rule]:
    """Register what the operations of these names do."""

    def register(function: Rule) -> Rule:
        for name in names.split():
            RULES[name] = function
            ABOUT[name] = about
        return function

    return register


def only(names: str, given: dict[str, Any]) -> None:
    """Refuses arguments of which the rule does not know what they do: out=, generator= and the like."""
    for name in given.keys() - set(names.split()):
        raise Unproved(f"its argument {name}= has no rule")


def place(dim: Any, rank: int) -> int:
    """An axis's number, counted from the front."""
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise Unproved("the axis it works along is not a plain number")
    if not -max(rank, 1) <= dim < max(rank, 1):
        raise Unproved(f"there is no axis {dim} in a tensor of {rank}")
    return dim % max(rank, 1)


def places(dim: Any, rank: int) -> list[int]:
    """Several axes' numbers; None means all of them."""
    if dim is None:
        return list(range(rank))
    found = [place(one, rank) for one in (dim if isinstance(dim, list | tuple) else [dim])]
    return found if found else list(range(rank))


def term(value: Any) -> Term:
    """An argument that must be a tensor, or a number as a tensor."""
    if isinstance(value, Term):
        return value
    if isinstance(value, bool | int | float | complex | Unknown):
        return Term(())
    if isinstance(value, Ties):
        raise Unproved("which of several equal messages comes first follows their order")
    raise Unproved(f"{type(value).__name__} is not a tensor that is known here")


def meet(a: Axis, b: Axis) -> Axis:
    """The axis that two aligned axes are broadcast to."""
    if a == 1 or b == 1:
        return b if a == 1 else a
    if isinstance(a, Bag) or isinstance(b, Bag):
        if a != b:
            other = b if isinstance(a, Bag) else a
            what = "other entries" if isinstance(other, Bag) else f"{other if other is not None else 'several'} entries"
            raise Unproved(f"an axis of {what} meets the set's: each position is treated in a way of its own")
        return a
    return a if a is not None else b


def broadcast(terms: Sequence[Term]) -> Term:
    """Pointwise: the axes of what comes out."""
    rank = max((len(one.axes) for one in terms), default=0)
    out: list[Axis] = [1] * rank
    for one in terms:
        for i, axis in enumerate(one.axes, rank - len(one.axes)):
            out[i] = meet(out[i], axis)
    return Term(tuple(out))


def ordinary(x: Term, dim: int, what: str) -> None:
    """Refuses an operation that would walk along the set in its order."""
    if x.axes and isinstance(x.axes[dim], Bag):
        raise Unproved(f"{what} along the set follows the order of the messages")


# Pointwise

POINTWISE = """
abs absolute neg negative positive sign sgn sqrt rsqrt square exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos
atan arcsin arccos arctan sinh cosh tanh asinh acosh atanh sinc sigmoid erf erfc erfinv lgamma digamma ceil floor round
trunc fix frac reciprocal relu relu6 leaky_relu elu selu celu gelu silu mish softplus softsign hardtanh hardsigmoid
hardswish logsigmoid tanhshrink softshrink hardshrink threshold logit nan_to_num isnan isinf isfinite logical_not
bitwise_not deg2rad rad2deg add sub subtract mul multiply div divide true_divide floor_divide remainder fmod pow
float_power maximum minimum fmax fmin atan2 arctan2 hypot logaddexp logaddexp2 copysign xlogy eq ne lt le gt ge
not_equal less less_equal greater greater_equal logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor
clamp clip clamp_min clamp_max lerp addcmul addcdiv masked_fill heaviside
"""


@rule(POINTWISE, "pointwise")
def pointwise(*args: Any, **given: Any) -> Term:
    """Every entry of the result is made of the entries at its own place."""
    if given.pop("inplace", False):
        raise Unproved("it writes into its input")
    only("input other alpha min max negative_slope approximate beta lambd threshold value weight end tensor1 tensor2 "
         "rounding_mode exponent eps nan posinf neginf mask decimals min_val max_val", given)  # fmt: skip
    if any(isinstance(value, bool) for value in args):
        raise Unproved("one of its arguments is a plain True or False, which may mean that it writes into its input")
    values = [*args, *given.values()]
    return broadcast([term(value) for value in values if value is not None and not isinstance(value, str)])


@rule("where", "pointwise")
def where(condition: Any, input: Any, other: Any) -> Term:
    """With one argument it would list places."""
    return broadcast([term(condition), term(input), term(other)])


@rule("clone contiguous detach cpu float double half bfloat16 int long bool to type_as", "pointwise")
def same(input: Any, *args: Any, **given: Any) -> Term:
    """The same numbers, perhaps in another type."""
    for value in args:
        if not isinstance(value, Term | Unknown | torch.dtype | torch.device | str | bool):
            raise Unproved("it is converted to something that has no rule")
    only("dtype device copy non_blocking memory_format other", given)
    return term(input)


@rule("zeros_like ones_like full_like", "the same everywhere")
def like(input: Any, fill_value: Any = 0, **given: Any) -> Term:
    """One number everywhere."""
    only("dtype device requires_grad", given)
    if term(fill_value).axes:
        raise Unproved("it is filled with something other than a number")
    return term(input)


# Symmetric reductions


def reduced(x: Term, dim: Any, keepdim: Any) -> Term:
    """Axes after a reduction."""
    if not isinstance(keepdim, bool):
        raise Unproved("keepdim is not a plain True or False")
    gone = places(dim, len(x.axes))
    if keepdim:
        return Term(tuple(1 if i in gone else axis for i, axis in enumerate(x.axes)))
    return Term(tuple(axis for i, axis in enumerate(x.axes) if i not in gone))


@rule("sum mean prod amax amin logsumexp all any count_nonzero nansum nanmean", "symmetric reduction")
def reduction(input: Any, dim: Any = None, keepdim: Any = False, **given: Any) -> Term:
    """A value that does not depend on the order of what it is made of."""
    only("dtype", given)
    return reduced(term(input), dim, keepdim)


@rule("std var", "symmetric reduction")
def spread(input: Any, dim: Any = None, unbiased: Any = True, keepdim: Any = False, **given: Any) -> Term:
    """Standard deviation and variance; a second argument that is a bool means `unbiased`."""
    only("correction", given)
    return reduced(term(input), None if isinstance(dim, bool) else dim, keepdim)


@rule("std_mean var_mean", "symmetric reduction")
def spread_and_mean(input: Any, dim: Any = None, *args: Any, **given: Any) -> tuple[Term, Term]:
    """Both at once."""
    out = spread(input, dim, *args, **given)
    return out, out


@rule("norm", "symmetric reduction")
def norm(input: Any, p: Any = "fro", dim: Any = None, keepdim: Any = False) -> Term:
    """Of vectors: of a matrix only what treats it as one long vector."""
    if p not in ("fro", None) and (not isinstance(p, int | float) or isinstance(dim, list | tuple)):
        raise Unproved("this norm has no rule")
    return reduced(term(input), dim, keepdim)


@rule("vector_norm", "symmetric reduction")
def vector_norm(x: Any, ord: Any = 2, dim: Any = None, keepdim: Any = False) -> Term:
    """torch.linalg.vector_norm."""
    if not isinstance(ord, int | float):
        raise Unproved("this norm has no rule")
    return reduced(term(x), dim, keepdim)


@rule("max min median nanmedian", "symmetric reduction")
def extreme(input: Any, dim: Any = None, keepdim: Any = False, *, other: Any = None) -> Any:
    """With a tensor as second argument the pointwise maximum; with an axis (values, indices)."""
    x = term(input)
    other = dim if isinstance(dim, Term) else other
    if other is not None:
        return broadcast([x, term(other)])
    if dim is None:
        return Term(())
    at = place(dim, len(x.axes))
    out = reduced(x, at, keepdim)
    return Pair(out, Ties() if x.axes and isinstance(x.axes[at], Bag) else out)


@rule("argmax argmin argsort", "places")
def places_of(*args: Any, **given: Any) -> Any:
    """Where messages tie, places follow their order."""
    raise Unproved("places of messages follow their order where messages are equal; take values")


@rule("quantile nanquantile", "symmetric reduction")
def quantile(input: Any, q: Any, dim: Any = None, keepdim: Any = False, **given: Any) -> Term:
    """A number q, or several along a new first axis."""
    only("interpolation", given)
    out = reduced(term(input), dim, keepdim)
    asked = term(q)
    if asked.ordered:
        raise Unproved("its q varies along the set")
    return Term(asked.axes + out.axes)


@rule("sort", "sorting along the set")
def sort(input: Any, dim: Any = -1, descending: Any = False, stable: Any = False) -> Pair:
    """Along the set: rank by rank the same values in every order, so that the axis is a set's no more."""
    x = term(input)
    at = place(dim, len(x.axes))
    if x.axes and isinstance(x.axes[at], Bag):
        return Pair(Term((*x.axes[:at], None, *x.axes[at + 1 :])), Ties())
    return Pair(x, x)


@rule("msort", "sorting along the set")
def msort(input: Any) -> Term:
    """Along the first axis."""
    return sort(input, 0).values


@rule("topk", "sorting along the set")
def topk(input: Any, k: Any, dim: Any = -1, largest: Any = True, sorted: Any = True) -> Pair:
    """The k largest values; without sorting they would come in no order that is promised."""
    if sorted is not True:
        raise Unproved("without sorted=True the values come in no order that is promised")
    x = term(input)
    at = place(dim, len(x.axes))
    out = Term((*x.axes[:at], k if type(k) is int else None, *x.axes[at + 1 :]))
    return Pair(out, Ties() if isinstance(x.axes[at], Bag) else out)


@rule("kthvalue", "symmetric reduction")
def kthvalue(input: Any, k: Any, dim: Any = -1, keepdim: Any = False) -> Pair:
    """The k-th smallest value."""
    if isinstance(k, Term):
        raise Unproved("its k is a tensor")
    return extreme(input, dim, keepdim)


# Maps that look along an axis and keep it


@rule("softmax log_softmax softmin", "equivariant along the set")
def softmax(input: Any, dim: Any = None, _stacklevel: Any = 3, dtype: Any = None) -> Term:
    """Each entry and a symmetric sum over all."""
    x = term(input)
    place(dim, len(x.axes))
    return x


@rule("normalize", "equivariant along the set")
def normalize(input: Any, p: Any = 2.0, dim: Any = 1, eps: Any = 1e-12) -> Term:
    """Each entry over a symmetric norm."""
    x = term(input)
    places(dim, len(x.axes))
    return x


@rule("cumsum cumprod logcumsumexp", "along an ordinary axis")
def cumulative(input: Any, dim: Any, dtype: Any = None) -> Term:
    """Running sums: of ranks or features they are well defined, of messages they follow the order."""
    x = term(input)
    ordinary(x, place(dim, len(x.axes)), "a running sum")
    return x


@rule("flip", "along an ordinary axis")
def flip(input: Any, *dims: Any, **given: Any) -> Term:
    """The other way round."""
    x = term(input)
    named = given.pop("dims", None)
    only("", given)
    chosen = named if named is not None else dims[0] if len(dims) == 1 else list(dims)
    for at in [place(d, len(x.axes)) for d in (chosen if isinstance(chosen, list | tuple) else [chosen])]:
        ordinary(x, at, "turning round")
    return x


@rule("layer_norm rms_norm", "row by row")
def layer_norm(input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5) -> Term:
    """Over the last axes of each row."""
    x = term(input)
    width = len(normalized_shape) if isinstance(normalized_shape, list | tuple) else 1
    for at in range(len(x.axes) - width, len(x.axes)):
        if isinstance(x.axes[at], Bag):
            raise Unproved("its weights lie along the set")
    return broadcast([x, *(term(w) for w in (weight, bias) if w is not None)])


@rule("dropout", "pointwise")
def dropout(input: Any, p: Any = 0.5, training: Any = True, inplace: Any = False) -> Term:
    """Nothing in evaluation mode."""
    if training is not False and p != 0:
        raise Unproved("it is random while training; call eval() first")
    return term(input)


# Products


def contracted(a: Axis, b: Axis) -> None:
    """Two axes that a product sums over together."""
    if isinstance(a, Bag) or isinstance(b, Bag):
        meet(a, b)


@rule("matmul mm mv bmm dot", "product")
def matmul(input: Any, other: Any = None, *, mat2: Any = None, vec: Any = None, tensor: Any = None) -> Term:
    """A row of weights for each feature acts on every message alike; along the set it is a symmetric sum."""
    a = term(input)
    b = term(next(value for value in (other, mat2, vec, tensor, 0) if value is not None))
    if not a.axes or not b.axes:
        raise Unproved("it needs vectors or matrices")
    right, column = (b.axes[:-1], b.axes[-1:]) if len(b.axes) > 1 else (b.axes, ())
    contracted(a.axes[-1], next(reversed(right)))
    batch = broadcast([Term(a.axes[:-2]), Term(right[:-1])]).axes
    return Term((*batch, *a.axes[-2:-1], *column))


@rule("linear", "the same weights for every row")
def linear(input: Any, weight: Any, bias: Any = None) -> Term:
    """x W^T + b."""
    w = term(weight)
    out = matmul(input, Term(tuple(reversed(w.axes))))
    return out if bias is None else broadcast([out, term(bias)])


@rule("addmm baddbmm", "product")
def addmm(input: Any, mat1: Any, mat2: Any, **given: Any) -> Term:
    """input + mat1 mat2."""
    only("beta alpha", given)
    return broadcast([term(input), matmul(mat1, mat2)])


@rule("outer ger", "product")
def outer(input: Any, vec2: Any) -> Term:
    """Every entry with every entry."""
    return Term((*term(input).axes, *term(vec2).axes))


@rule("einsum", "product")
def einsum(equation: Any, *operands: Any) -> Term:
    """A letter stands for a set or for an ordinary axis, in all operands alike."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or "." in equation or "->" not in equation:
        raise Unproved("only einsum of letters with -> has a rule")
    inputs, out = equation.replace(" ", "").split("->")
    letters: dict[str, Axis] = {}
    if len(inputs.split(",")) != len(operands):
        raise Unproved("its equation has another number of operands")
    for word, x in zip(inputs.split(","), map(term, operands)):
        if len(set(word)) != len(word) or len(word) != len(x.axes) or not word.isalpha():
            raise Unproved("this einsum has no rule")
        for letter, axis in zip(word, x.axes):
            letters[letter] = meet(letters[letter], axis) if letter in letters else axis
    if len(set(out)) != len(out) or not set(out) <= letters.keys():
        raise Unproved("this einsum has no rule")
    return Term(tuple(letters[letter] for letter in out))


@rule("cosine_similarity", "row by row")
def cosine_similarity(x1: Any, x2: Any, dim: Any = None, **given: Any) -> Term:
    """Along one axis, which must be named."""
    only("eps", given)
    out = broadcast([term(x1), term(x2)])
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise Unproved("name its axis by dim=")
    return reduced(out, dim, False)


@rule("cdist", "product")
def cdist(x1: Any, x2: Any, p: Any = 2.0, **given: Any) -> Term:
    """Distances between rows."""
    only("compute_mode", given)
    a, b = term(x1), term(x2)
    if len(a.axes) < 2 or len(b.axes) < 2:
        raise Unproved("it needs matrices")
    contracted(a.axes[-1], b.axes[-1])
    return Term((*broadcast([Term(a.axes[:-2]), Term(b.axes[:-2])]).axes, a.axes[-2], b.axes[-2]))


@rule("scaled_dot_product_attention", "softmax and symmetric sum over the set")
def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: Any = 0.0,
              is_causal: Any = False, **given: Any) -> Term:  # fmt: skip
    """softmax(q k^T) v."""
    only("scale", given)
    if attn_mask is not None or dropout_p != 0 or is_causal is not False:
        raise Unproved("attention with a mask, dropout or causality has no rule")
    k = term(key)
    return matmul(matmul(query, Term((*k.axes[:-2], k.axes[-1], k.axes[-2]))), value)


# Shapes


@rule("unsqueeze", "a new axis")
def unsqueeze(input: Any, dim: Any) -> Term:
    """An axis of one."""
    x = term(input)
    at = place(dim, len(x.axes) + 1)
    return Term((*x.axes[:at], 1, *x.axes[at:]))


@rule("squeeze", "without an axis of one")
def squeeze(input: Any, dim: Any = None) -> Term:
    """Which axes go must not depend on n."""
    x = term(input)
    if dim is None and any(axis is None or isinstance(axis, Bag) for axis in x.axes):
        raise Unproved("which axes it drops depends on how many messages there are; name the axis")
    gone = [at for at in places(dim, len(x.axes)) if x.axes and x.axes[at] == 1]
    if any(isinstance(x.axes[at], Bag) or x.axes[at] is None for at in places(dim, len(x.axes))):
        raise Unproved("it drops the set's axis where there is one message")
    return Term(tuple(axis for i, axis in enumerate(x.axes) if i not in gone))


@rule("transpose swapaxes swapdims", "axes in another order")
def transpose(input: Any, dim0: Any, dim1: Any) -> Term:
    """Two axes change places."""
    x = term(input)
    axes = list(x.axes)
    i, j = place(dim0, len(axes)), place(dim1, len(axes))
    axes[i], axes[j] = axes[j], axes[i]
    return Term(tuple(axes))


@rule("t", "axes in another order")
def t(input: Any) -> Term:
    """Of a matrix."""
    x = term(input)
    if len(x.axes) > 2:
        raise Unproved("it is for matrices")
    return Term(x.axes[::-1])


@rule("permute", "axes in another order")
def permute(input: Any, *dims: Any, **given: Any) -> Term:
    """All axes."""
    x = term(input)
    chosen = given.pop("dims", dims[0] if len(dims) == 1 else dims)
    only("", given)
    order = [place(d, len(x.axes)) for d in (chosen if isinstance(chosen, list | tuple) else [chosen])]
    if sorted(order) != list(range(len(x.axes))):
        raise Unproved("it does not name every axis once")
    return Term(tuple(x.axes[i] for i in order))


def sizes(shape: tuple[Any, ...]) -> list[Any]:
    """A shape given as one tuple or as several numbers."""
    found = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], list | tuple) else list(shape)
    for size in found:
        if not (type(size) is int or isinstance(size, Unknown)):
            raise Unproved("its shape is not made of plain numbers")
    return found


def axis_of(size: Any) -> Axis:
    """The axis of a length that was asked for, along which everything is the same."""
    return size.bag if isinstance(size, Length) else None if isinstance(size, Unknown) else size


@rule("reshape view", "rows in another shape")
def reshape(input: Any, *shape: Any) -> Term:
    """Without a set any shape; with one, what lies before and behind it keeps its number of entries."""
    x, new = term(input), sizes(shape)
    if not x.ordered:
        return Term(tuple(None if size == -1 or isinstance(size, Unknown) else size for size in new))
    at, bag = next((i, axis) for i, axis in enumerate(x.axes) if isinstance(axis, Bag))
    places = [i for i, size in enumerate(new) if size == Length(bag)] or [i for i, size in enumerate(new) if size == -1]
    if len(places) == 1:
        to = places[0]
        before, after = matched(x.axes[:at], new[:to]), matched(x.axes[at + 1 :], new[to + 1 :])
        if before is not None and after is not None and new.count(-1) <= 1:
            return Term((*before, bag, *after))
    raise Unproved("it may mix the set's axis with others")


def matched(axes: Sequence[Axis], shape: list[Any]) -> list[Axis] | None:
    """A shape for these ordinary axes, with its -1 filled in; None where it has another number of entries."""
    if not all(isinstance(axis, int) for axis in axes) or not all(type(size) is int for size in shape):
        return None
    entries = math.prod(axis for axis in axes if isinstance(axis, int))
    known = math.prod(size for size in shape if size != -1)
    if -1 in shape and known and entries % known == 0:
        shape = [entries // known if size == -1 else size for size in shape]
    return [*shape] if math.prod(shape) == entries and -1 not in shape else None


@rule("flatten", "rows in another shape")
def flatten(input: Any, start_dim: Any = 0, end_dim: Any = -1) -> Term:
    """Of ordinary axes."""
    x = term(input)
    if not x.axes:
        return Term((1,))
    i, j = place(start_dim, len(x.axes)), place(end_dim, len(x.axes))
    inside = x.axes[i : j + 1]
    if len(inside) > 1 and any(isinstance(axis, Bag) for axis in inside):
        raise Unproved("it mixes the set's axis with others")
    if len(inside) == 1:
        return x
    known = [axis for axis in inside if isinstance(axis, int)]
    return Term((*x.axes[:i], math.prod(known) if len(known) == len(inside) else None, *x.axes[j + 1 :]))


@rule("unflatten", "rows in another shape")
def unflatten(input: Any, dim: Any, sizes: Any) -> Term:
    """An ordinary axis becomes several."""
    x = term(input)
    at = place(dim, len(x.axes))
    ordinary(x, at, "unflatten")
    if not isinstance(sizes, list | tuple) or not all(type(size) is int for size in sizes):
        raise Unproved("its shape is not made of plain numbers")
    known, whole = math.prod(size for size in sizes if size != -1), x.axes[at]
    inner = [(whole // known if isinstance(whole, int) and known else None) if size == -1 else size for size in sizes]
    return Term((*x.axes[:at], *inner, *x.axes[at + 1 :]))


@rule("expand broadcast_to", "repeated along new axes")
def expand(input: Any, *shape: Any) -> Term:
    """Axes of one become longer."""
    x, new = term(input), sizes(shape)
    old: list[Axis] = [1] * (len(new) - len(x.axes)) + list(x.axes)
    if len(old) != len(new):
        raise Unproved("it has fewer axes than it began with")
    return Term(tuple(
        axis if size == -1 else meet(axis, axis_of(size)) for axis, size in zip(old, new)
    ))  # fmt: skip


@rule("expand_as", "repeated along new axes")
def expand_as(input: Any, other: Any) -> Term:
    """To another tensor's shape."""
    return broadcast([term(input), Term(tuple(axis for axis in term(other).axes))])


@rule("repeat tile", "repeated along new axes")
def repeat(input: Any, *shape: Any) -> Term:
    """Only axes of one, or once."""
    x, new = term(input), sizes(shape)
    old: list[Axis] = [1] * (len(new) - len(x.axes)) + list(x.axes)
    if len(old) != len(new):
        raise Unproved("it has fewer repeats than axes")
    out: list[Axis] = []
    for axis, times in zip(old, new):
        if type(times) is int and times == 1:
            out.append(axis)
        elif axis == 1:
            out.append(axis_of(times))
        elif isinstance(axis, int) and type(times) is int:
            out.append(axis * times)
        else:
            raise Unproved("it repeats the set, or something as often as there are messages")
    return Term(tuple(out))


@rule("cat concat concatenate", "put side by side")
def cat(tensors: Any, dim: Any = 0, *, axis: Any = None) -> Term:
    """Along the set: entries that are put beside it stay where they are."""
    found = list(map(term, tensors))
    rank = max(len(x.axes) for x in found)
    at = place(dim if axis is None else axis, rank)
    if any(len(x.axes) != rank for x in found) or not rank:
        raise Unproved("it joins tensors of different rank")
    for i in range(rank):
        labels = {x.axes[i] for x in found if isinstance(x.axes[i], Bag)}
        if i != at and labels and any(x.axes[i] not in labels or len(labels) > 1 for x in found):
            raise Unproved("the set's axes do not lie side by side")
    ends = [x.axes[at] for x in found]
    joined: Axis
    if any(isinstance(end, Bag) for end in ends):
        parts: list[Part] = []
        for end in ends:
            if end is None:
                raise Unproved("how many entries it joins to the set is not known")
            parts += end.parts if isinstance(end, Bag) else [end] if end else []
        joined = Bag(tuple(parts))
    else:
        joined = sum(end for end in ends if isinstance(end, int)) if None not in ends else None
    first = found[0]
    return Term((*first.axes[:at], joined, *first.axes[at + 1 :]))


@rule("stack", "put side by side")
def stack(tensors: Any, dim: Any = 0) -> Term:
    """Along a new ordinary axis."""
    found = list(map(term, tensors))
    for x in found:
        if len(x.axes) != len(found[0].axes) or any(
            a != b and (isinstance(a, Bag) or isinstance(b, Bag)) for a, b in zip(x.axes, found[0].axes)
        ):
            raise Unproved("the set's axes do not lie side by side")
    at = place(dim, len(found[0].axes) + 1)
    return Term((*found[0].axes[:at], len(found), *found[0].axes[at:]))


@rule("chunk", "parts of an ordinary axis")
def chunk(input: Any, chunks: Any, dim: Any = 0) -> tuple[Term, ...]:
    """Equal parts."""
    x = term(input)
    at = place(dim, len(x.axes))
    ordinary(x, at, "cutting into parts")
    length = x.axes[at]
    if type(chunks) is not int or not isinstance(length, int) or chunks < 1 or length % chunks:
        raise Unproved("its parts are not of equal size")
    return tuple(Term((*x.axes[:at], length // chunks, *x.axes[at + 1 :])) for _ in range(chunks))


@rule("split", "parts of an ordinary axis")
def split(input: Any, split_size: Any, dim: Any = 0) -> tuple[Term, ...]:
    """Parts of given sizes."""
    x = term(input)
    at = place(dim, len(x.axes))
    ordinary(x, at, "cutting into parts")
    length = x.axes[at]
    if not isinstance(length, int):
        raise Unproved("how many parts there are is not known")
    if type(split_size) is int and split_size > 0:
        parts = [min(split_size, length - start) for start in range(0, length, split_size)]
    elif isinstance(split_size, list | tuple) and all(type(s) is int for s in split_size):
        parts = list(split_size)
    else:
        raise Unproved("its parts are not of a known size")
    return tuple(Term((*x.axes[:at], part, *x.axes[at + 1 :])) for part in parts)


@rule("unbind", "parts of an ordinary axis")
def unbind(input: Any, dim: Any = 0) -> tuple[Term, ...]:
    """Entry by entry."""
    x = term(input)
    at = place(dim, len(x.axes))
    ordinary(x, at, "going one by one")
    length = x.axes[at]
    if not isinstance(length, int) or length > 1000:
        raise Unproved("how many entries there are is not known")
    return tuple(Term((*x.axes[:at], *x.axes[at + 1 :])) for _ in range(length))


@rule("select", "an entry of an ordinary axis")
def select(input: Any, dim: Any, index: Any) -> Term:
    """One entry."""
    x = term(input)
    at = place(dim, len(x.axes))
    return index_of(x, (*(slice(None) for _ in range(at)), index))


def index_of(x: Term, index: Any) -> Term:
    """x[index]: ordinary axes by numbers and slices; of a set's axis all, or entries that were put beside it."""
    items = list(index) if isinstance(index, tuple) else [index]
    if items.count(Ellipsis) > 1:
        raise Unproved("it has two ellipses")
    taken = sum(item is not None and item is not Ellipsis for item in items)
    if not any(item is Ellipsis for item in items):
        items.append(Ellipsis)
    out: list[Axis] = []
    axes = list(x.axes)
    if taken > len(axes):
        raise Unproved("it has more indices than axes")
    for item in items:
        if item is None:
            out.append(1)
        elif isinstance(item, EllipsisType):
            whole = len(axes) - taken
            out += axes[:whole]
            axes = axes[whole:]
        elif isinstance(item, slice):
            taken -= 1
            out.append(sliced(axes.pop(0), item))
        elif type(item) is int or isinstance(item, Unknown):
            taken -= 1
            axis = axes.pop(0)
            if isinstance(axis, Bag) and not fixed(axis, item):
                raise Unproved("it takes one message by its position")
        else:
            raise Unproved("indexing with tensors has no rule")
    return Term(tuple(out))


def fixed(bag: Bag, index: Any) -> bool:
    """Whether an index falls on entries that were put before or behind the set."""
    if type(index) is not int:
        return False
    parts = bag.parts if index >= 0 else bag.parts[::-1]
    place = index if index >= 0 else -1 - index
    for part in parts:
        if isinstance(part, str):
            return False
        if place < part:
            return True
        place -= part
    return False


def sliced(axis: Axis, cut: slice) -> Axis:
    """What is left of an axis."""
    if cut == slice(None) or (cut.start in (0, None) and cut.stop is None and cut.step in (1, None)):
        return axis
    if any(not isinstance(part, int | None | Unknown) for part in (cut.start, cut.stop, cut.step)):
        raise Unproved("it slices by something other than plain numbers")
    if not isinstance(axis, Bag):
        plain = all(part is None or type(part) is int for part in (cut.start, cut.stop, cut.step))
        return len(range(*cut.indices(axis))) if plain and isinstance(axis, int) else None
    first = axis.parts[0]
    if cut.step in (1, None) and isinstance(first, int) and type(cut.start or 0) is int:
        start = cut.start or 0
        if cut.stop is None and 0 < start <= first:
            rest = axis.parts[1:] if start == first else (first - start, *axis.parts[1:])
            return Bag(rest)
        if type(cut.stop) is int and 0 <= start <= cut.stop <= first:
            return cut.stop - start
    raise Unproved("it takes messages by their positions")


# Made from nothing


@rule("zeros ones", "the same everywhere")
def filled(*shape: Any, **given: Any) -> Term:
    """One number everywhere, so along any axis."""
    only("dtype device requires_grad size", given)
    if "size" in given:
        shape = (given["size"],)
    return Term(tuple(axis_of(size) for size in sizes(shape)))


@rule("full", "the same everywhere")
def full(size: Any, fill_value: Any, **given: Any) -> Term:
    """One number everywhere."""
    if term(fill_value).axes:
        raise Unproved("it is filled with something other than a number")
    return filled(size, **given)


@rule("new_zeros new_ones", "the same everywhere")
def new_filled(input: Any, *shape: Any, **given: Any) -> Term:
    """One number everywhere."""
    return filled(*shape, **given)


@rule("new_full", "the same everywhere")
def new_full(input: Any, size: Any, fill_value: Any, **given: Any) -> Term:
    """One number everywhere."""
    return full(size, fill_value, **given)


@rule("eye", "the same for every message and itself")
def eye(n: Any, m: Any = None, **given: Any) -> Term:
    """1 where a message meets itself: permuting both axes changes nothing."""
    only("dtype device", given)
    if m is not None and m != n:
        raise Unproved("its rows differ from each other by their positions")
    return Term((axis_of(n), axis_of(n)))


@rule("arange linspace", "positions")
def arange(*args: Any, **given: Any) -> Term:
    """Positions: an ordinary axis, so it may weigh ranks and features, and never messages."""
    only("dtype device start end step steps", given)
    if any(not isinstance(value, int | float | Unknown) for value in args):
        raise Unproved("its ends are not plain numbers")
    return Term((args[0],)) if len(args) == 1 and type(args[0]) is int and not given else Term((None,))


@rule("tensor as_tensor scalar_tensor new_tensor", "a constant")
def constant(*args: Any, **given: Any) -> Term:
    """Of numbers."""
    only("dtype device requires_grad", given)
    value = args[-1]

    def shape(value: Any) -> tuple[Axis, ...]:
        if isinstance(value, list | tuple):
            return (len(value), *(shape(value[0]) if value else ()))
        inner = term(value)
        if inner.axes:
            raise Unproved("it is made of tensors")
        return ()

    return Term(shape(value))


# Where the names lead


def genuine() -> dict[int, tuple[Any, str]]:
    """The functions of torch that have a rule, by identity, as they were when negah was imported."""
    found: dict[int, tuple[Any, str]] = {}
    for name in RULES:
        for home in (torch, F, torch.special, torch.linalg):
            function = getattr(home, name, None)
            if callable(function) and not isinstance(function, type):
                found.setdefault(id(function), (function, name))
    found[id(torch.special.expit)] = (torch.special.expit, "sigmoid")
    del found[id(torch.linalg.norm)]  # which treats matrices as such, and torch.norm does not
    return found


FUNCTIONS = genuine()
METHODS = {name: getattr(torch.Tensor, name, None) for name in RULES}
