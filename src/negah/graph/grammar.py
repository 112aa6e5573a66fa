"""Update functions as one line of text: a small grammar, read without running any code.

    mean(messages)                          valid: the mean over neighbours
    sum(softmax(dot(h, messages)) * messages)
    sum(positions * messages) / n           invalid: a weight for each position

Names: h [d], messages [n, d], n (how many there are), positions (1 ... n, a column).  Numbers, + - * / **, and the
functions of `FUNCTIONS`.  The text is parsed into Python's syntax tree, and whatever is not on the list is refused
before anything is computed; nothing is ever handed to `eval`.
"""

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from negah.errors import InputError

LONGEST = 400  # letters
PARTS = 120  # nodes of the syntax tree

Call = Callable[..., Any]  # (name of an operation of torch, arguments) to its value

OVER_MESSAGES = "sum mean prod max min median var std logsumexp softmax sort cumsum flip".split()
POINTWISE = "abs exp log sqrt square sigmoid tanh relu sin cos floor round sign".split()
OF_TWO = "maximum minimum".split()
FUNCTIONS = {
    **dict.fromkeys(OVER_MESSAGES, "over the messages, feature by feature"),
    **dict.fromkeys(POINTWISE, "of every number"),
    **dict.fromkeys(OF_TWO, "of two, number by number"),
    "dot": "of two, over the features",
    "norm": "of one, over the features",
    "first": "the first message",
    "last": "the last message",
}
OPERATORS: dict[type, str] = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.Pow: "pow"
}  # fmt: skip


@dataclass(frozen=True)
class Expression:
    """An update function that was written as text; call it as f(h, messages)."""

    text: str
    tree: ast.expr

    def __call__(self, h: Tensor, messages: Tensor) -> Tensor:
        n = messages.shape[0]
        value = self.value({"h": h, "messages": messages, "n": n}, run)
        return value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=messages.dtype)

    def value(self, names: dict[str, Any], call: Call) -> Any:
        """Its value, with the operations of torch done by `call`: run, or derived."""
        return value_of(self.tree, names, call)


def parse(text: str) -> Expression:
    """The update function that a line of text describes.

    Raises InputError for what is not in the grammar, naming it.
    """
    if len(text) > LONGEST:
        raise InputError(f"the expression has {len(text)} letters: {LONGEST} are read")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise InputError(f"{shown(text)} is not an expression such as `mean(messages) + h`") from error
    if sum(1 for _ in ast.walk(tree)) > PARTS:
        raise InputError(f"the expression has more than {PARTS} parts: write a function in a file instead")
    check(tree)
    return Expression(text.strip(), tree)


def check(node: ast.expr) -> None:
    """Raises InputError for anything that is not in the grammar."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool) and abs(value) <= 1e9:
            return
        case ast.Name(id="h" | "messages" | "n" | "positions"):
            return
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return check(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            check(left)
            return check(right)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            wanted = 2 if name in OF_TWO or name == "dot" else 1
            if len(args) != wanted:
                raise InputError(f"{name} takes {wanted} argument{'s' * (wanted > 1)}, not {len(args)}")
            for arg in args:
                check(arg)
            return
    raise InputError(
        f"`{shown(ast.unparse(node))}` is not understood: there are h, messages, n, positions, numbers, + - * / **, "
        f"{', '.join(FUNCTIONS)}"
    )


def value_of(node: ast.expr, names: dict[str, Any], call: Call) -> Any:
    """The value of a checked expression."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value)
        case ast.Name(id="positions"):
            count = call("arange", names["n"])
            return call("unsqueeze", call("add", count, 1.0), 1)
        case ast.Name(id=name):
            return names[name]
        case ast.UnaryOp(operand=operand):
            return call("neg", value_of(operand, names, call))
        case ast.BinOp(left=left, op=op, right=right):
            a, b = value_of(left, names, call), value_of(right, names, call)
            return call(OPERATORS[type(op)], a, b)
        case ast.Call(func=ast.Name(id=name), args=args):
            given = [value_of(arg, names, call) for arg in args]
            if name == "dot":
                return call("sum", call("mul", *given), -1, True)
            if name == "norm":
                return call("vector_norm", given[0], 2, -1, True)
            if name in ("first", "last"):
                return call("select", given[0], 0, 0 if name == "first" else -1)
            if name in OVER_MESSAGES:
                found = call(name, given[0], 0)
                return found[0] if isinstance(found, tuple) else found
            return call(name, *given)
    raise InputError(f"`{shown(ast.unparse(node))}` is not understood")


def run(name: str, *args: Any) -> Any:
    """An operation of torch, done."""
    tensors = [arg if isinstance(arg, Tensor) else torch.tensor(arg, dtype=torch.float64) for arg in args]
    if name in OVER_MESSAGES and args[1:] == (0,) and tensors[0].dim() != 2:
        raise InputError(f"{name} is taken over the messages, and its argument has none")
    match name:
        case "arange":
            return torch.arange(args[0], dtype=torch.float64)
        case "add" | "sub" | "mul" | "div" | "pow" | "maximum" | "minimum":
            return getattr(torch, name)(tensors[0], tensors[1])
        case "vector_norm":
            return torch.linalg.vector_norm(tensors[0], *args[1:])
        case "flip":
            return tensors[0].flip(0)
        case "var" | "std":
            return getattr(torch, name)(tensors[0], 0, correction=0)  # of one message it is 0
        case _:
            return getattr(torch, name)(tensors[0], *args[1:])


def shown(text: str) -> str:
    """A text in a message."""
    return text if len(text) <= 60 else text[:60] + "..."
