"""Certify an update function by reading it, without running it.

The source of `f(h, messages)` is interpreted over tensors of which only the axes are known (see `negah.graph.rules`).
The language that is understood is small and has no side effects: names, tuples, torch's operations that have a rule,
functions and modules of one's own (read in the same way), loops over things of known length, and branches on what does
not depend on the order, of which both sides are read.  Nothing else is let through: no state that is written, no
randomness, no exception that is caught, no value taken out of a tensor.  So a function cannot behave otherwise while it
is watched, because it never runs; and every step of a certificate is an instance of a rule, whatever n is.

The statement is about real numbers: floating point may round each order in a way of its own.
"""

import ast
import builtins
import inspect
import linecache
import math
import operator
import types
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from negah.graph.grammar import Expression
from negah.graph.rules import (
    ABOUT,
    FUNCTIONS,
    METHODS,
    RULES,
    SET,
    Bag,
    Length,
    Term,
    Ties,
    Unknown,
    Unproved,
    index_of,
    place,
)

PATHS = 32  # ways through a function's branches
DEPTH = 30  # of calls
STEPS = 20_000


@dataclass(frozen=True)
class Step:
    """A line of a derivation: where, the expression, what kind of operation it is, the axes of its value.

    file: its name, where it is another one than that of the function that was asked about.
    """

    file: str
    line: int
    expression: str
    kind: str
    axes: str

    def __str__(self) -> str:
        return f"{self.file or 'line'} {self.line}: {self.expression}  ->  {self.axes}  ({self.kind})"


@dataclass(frozen=True)
class Derivation:
    """Why a function does not depend on the order of its messages, or at which place no reason was found."""

    steps: list[Step]
    unproved: str = ""


def derive(f: Callable[..., Any], width: int | None) -> Derivation:
    """Read `f(h, messages)` for features of `width`, None for any; `unproved` is empty where no order can matter."""
    steps: list[Step] = []
    waiting: list[tuple[bool, ...]] = [()]
    values = 0
    done = 0
    while waiting:
        choices = waiting.pop()
        done += 1
        reader = Reader(choices)
        try:
            if done > PATHS:
                raise Unproved(f"it branches into more than {PATHS} ways")
            value = reader.call(f, [Term((width,)), Term((SET, width))], {})
            check(value)
            values += 1
        except Raised:
            pass  # it refuses such n, in every order
        except Unproved as problem:
            return Derivation(steps, f"{reader.where()}: {problem}" if reader.line else str(problem))
        except RecursionError:
            return Derivation(steps, "it is nested too deeply to be read")
        except Exception as problem:  # of arguments that no rule foresaw: they cost the certificate, and no more
            return Derivation(steps, f"{reader.where()}: {type(problem).__name__} while it was read: {problem}")
        steps += [step for step in reader.steps if step not in steps]
        waiting += [
            (*reader.made[:i], not reader.made[i]) for i in range(len(choices), len(reader.made))
        ]  # the other side of every branch
    if not values:
        return Derivation(steps, "it raises whatever n is")
    return Derivation(steps)


def check(value: Any) -> None:
    """What f returns must be a tensor or a number, with no set along any of its axes."""
    if not isinstance(value, Term | int | float | Unknown):
        raise Unproved(f"it returns {kind(value)} and not a tensor")
    if isinstance(value, Term) and value.ordered:
        raise Unproved("what it returns has an axis for the messages, so its rows follow their order")


class Raised(Exception):
    """The function that is read raises an error of its own."""


class Returned(Exception):
    """A return statement."""

    def __init__(self, value: Any):
        self.value = value


@dataclass
class Written:
    """A function or lambda that was made while reading, and the names that it sees."""

    node: ast.FunctionDef | ast.Lambda
    seen: "Scope"
    defaults: list[Any]


@dataclass
class Method:
    """A method of a tensor, not yet called."""

    name: str
    owner: Term


@dataclass
class Scope:
    """Names of a function: its own, and where the others are found."""

    own: dict[str, Any]
    outer: Callable[[str], Any]

    def find(self, name: str) -> Any:
        return self.own[name] if name in self.own else self.outer(name)


PLAIN = (int, float, complex, bool, str, type(None), tuple, list, dict, range, slice, torch.Size, torch.dtype,
         torch.device, type(Ellipsis))  # fmt: skip
BINARY: dict[type, tuple[str, Callable[..., Any]]] = {
    ast.Add: ("add", operator.add), ast.Sub: ("sub", operator.sub), ast.Mult: ("mul", operator.mul),
    ast.Div: ("div", operator.truediv), ast.FloorDiv: ("floor_divide", operator.floordiv),
    ast.Mod: ("remainder", operator.mod), ast.Pow: ("pow", operator.pow), ast.MatMult: ("matmul", operator.matmul),
    ast.BitAnd: ("bitwise_and", operator.and_), ast.BitOr: ("bitwise_or", operator.or_),
    ast.BitXor: ("bitwise_xor", operator.xor),
    ast.Eq: ("eq", operator.eq), ast.NotEq: ("ne", operator.ne), ast.Lt: ("lt", operator.lt),
    ast.LtE: ("le", operator.le), ast.Gt: ("gt", operator.gt), ast.GtE: ("ge", operator.ge),
}  # fmt: skip
UNARY: dict[type, tuple[str, Callable[..., Any]]] = {
    ast.USub: ("neg", operator.neg), ast.UAdd: ("positive", operator.pos), ast.Invert: ("bitwise_not", operator.invert),
}  # fmt: skip
BUILTINS: dict[str, Any] = {
    name: getattr(builtins, name)
    for name in "abs bool enumerate float int isinstance len list max min range reversed round sum tuple zip".split()
}
ERRORS = {
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
}
# The dunder methods that operators stand for: a torch whose operators were replaced is not torch.
OPERATORS = {
    name: getattr(Tensor, name)
    for name in """__add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __pow__ __rpow__ __mod__
    __matmul__ __rmatmul__ __neg__ __lt__ __le__ __gt__ __ge__ __eq__ __ne__ __getitem__ __len__ __abs__""".split()
}
PLAIN_TUPLE = (tuple.__iter__, tuple.__getitem__)
CALLS: tuple[Any, Any] = nn.Module.__call__, nn.Module.__getattr__


MEASURES: dict[str, Callable[..., Any]] = {
    "size": lambda x, dim=None: tuple(map(length, x.axes)) if dim is None else length(x.axes[place(dim, len(x.axes))]),
    "dim": lambda x: len(x.axes),
    "numel": lambda x: Unknown() if x.ordered or None in x.axes else math.prod(x.axes),
}  # what a tensor tells of its shape


class Reader:
    """One way through a function: at the i-th branch on what is not known, the side `choices[i]`, then True."""

    def __init__(self, choices: tuple[bool, ...]):
        self.choices = choices
        self.made: list[bool] = []
        self.steps: list[Step] = []
        self.line = self.depth = self.count = 0
        self.inside = 0  # calls of torch's own Python functions that are being read
        self.text = self.file = self.home = ""

    def where(self) -> str:
        """The place that is being read."""
        return f"{self.file if self.file != self.home else 'line'} {self.line}"

    # Calls

    def call(self, function: Any, args: list[Any], given: dict[str, Any]) -> Any:
        """The value of a call."""
        if isinstance(function, Method) and function.name in MEASURES:
            return MEASURES[function.name](function.owner, *args, **given)
        if isinstance(function, Method):
            if getattr(Tensor, function.name, None) is not METHODS.get(function.name):
                raise Unproved(f"Tensor.{function.name} was replaced")
            return self.apply(function.name, [function.owner, *args], given)
        if id(function) in FUNCTIONS:
            return self.apply(FUNCTIONS[id(function)][1], args, given)
        if isinstance(function, Written):
            return self.enter(function.node, function.seen, function.defaults, {}, args, given)
        if isinstance(function, partial) and type(function) is partial:
            return self.call(function.func, [*map(lift, function.args), *args], {**function.keywords, **given})
        if isinstance(function, types.MethodType):
            return self.call(function.__func__, [function.__self__, *args], given)
        if isinstance(function, types.FunctionType):
            return self.function(function, args, given)
        if any(function is one for one in BUILTINS.values()):
            return self.builtin(function, args, given)
        if isinstance(function, types.BuiltinFunctionType) and vars(math).get(function.__name__) is function:
            return self.number(function, args)
        if isinstance(function, nn.Module):
            return self.module(function, args, given)
        if isinstance(function, type):
            return self.record(function, args, given)
        if isinstance(function, Expression):
            self.line, names = 1, {"h": args[0], "messages": args[1], "n": Length(SET)}
            return function.value(names, self.expression)
        call = inspect.getattr_static(type(function), "__call__", None)
        if isinstance(call, types.FunctionType):
            return self.call(call, [function, *args], given)
        raise Unproved(f"nothing is known of {kind(function)}")

    def expression(self, name: str, *args: Any) -> Any:
        """An operation in an expression of `negah.graph.grammar`, whose text is that of the operation."""
        self.text = f"{name}({', '.join(str(arg) if isinstance(arg, Term) else repr(arg) for arg in args)})"
        return self.apply(name, list(args), {})

    def apply(self, name: str, args: list[Any], given: dict[str, Any]) -> Any:
        """An operation of torch, by its rule."""
        for theirs, ours in (("axis", "dim"), ("keepdims", "keepdim")):
            if theirs in given and name not in ("cat", "concat", "concatenate"):
                given = {**given, ours: given[theirs]}
                del given[theirs]
        if any(isinstance(value, Ties) for value in [*args, *given.values()]):
            raise Unproved("which of several equal messages comes first follows their order")
        try:
            value = RULES[name](*args, **given)
        except TypeError as error:
            raise Unproved(f"these arguments of {name} have no rule") from error
        except Unproved as problem:
            raise Unproved(f"{name}: {problem}") from problem
        self.note(ABOUT[name], args, value)
        return value

    def note(self, about: str, args: list[Any], value: Any) -> None:
        """A step, where a set takes part in it."""
        inputs = [one for arg in args for one in (arg if isinstance(arg, list | tuple) else [arg])]
        before = any(isinstance(one, Term) and one.ordered for one in inputs)
        found = value.values if hasattr(value, "values") and not isinstance(value, Term) else value
        if before or (isinstance(found, Term) and found.ordered):
            ends = before and isinstance(found, Term) and not found.ordered
            if ends and about == "product":
                about = "symmetric sum over the set"
            if not ends and about in ("symmetric reduction", "sorting along the set"):
                about = "row by row"
            shown = " and ".join(map(str, found)) if isinstance(found, tuple) else str(found)
            file = "" if self.file == self.home else self.file
            self.steps.append(Step(file, self.line, self.text, about, shown))

    def function(self, function: types.FunctionType, args: list[Any], given: dict[str, Any]) -> Any:
        """A Python function, read in its source."""
        if function.__builtins__ is not vars(builtins):
            raise Unproved(f"{function.__qualname__} has builtins of its own")
        node = source_of(function)
        names = function.__code__.co_freevars
        cells = dict(zip(names, function.__closure__ or ()))

        def outer(name: str) -> Any:
            if name in cells:
                try:
                    return lift(cells[name].cell_contents)
                except ValueError as error:
                    raise Unproved(f"{name} has no value yet") from error
            if name in function.__globals__:
                return lift(function.__globals__[name])
            if name in BUILTINS and getattr(builtins, name) is BUILTINS[name]:
                return BUILTINS[name]
            if name in ERRORS:
                return getattr(builtins, name)
            raise Unproved(f"{name} is not understood here")

        defaults = [lift(value) for value in function.__defaults__ or ()]
        keywords = {name: lift(value) for name, value in (function.__kwdefaults__ or {}).items()}
        theirs = function.__module__.partition(".")[0] == "torch"
        self.inside += theirs
        before = self.file, self.line
        if not self.inside:
            self.file = Path(function.__code__.co_filename).name
            self.home = self.home or self.file
        value = self.enter(node, Scope({}, outer), defaults, keywords, args, given)
        self.inside -= theirs
        if not self.inside:
            self.file, self.line = before
        return value

    def enter(
        self, node: ast.FunctionDef | ast.Lambda, seen: Scope, defaults: list[Any], keywords: dict[str, Any],
        args: list[Any], given: dict[str, Any],
    ) -> Any:  # fmt: skip
        """Bind arguments to names and read the body."""
        self.depth += 1
        if self.depth > DEPTH:
            raise Unproved("it calls itself, or is nested too deeply to be read")
        wanted = node.args
        names = [one.arg for one in (*wanted.posonlyargs, *wanted.args)]
        own: dict[str, Any] = dict(keywords)
        own.update(zip(names[len(names) - len(defaults) :], defaults))
        if len(args) > len(names) and wanted.vararg is None:
            raise Unproved("it is called with too many arguments")
        own.update(zip(names, args))
        if wanted.vararg is not None:
            own[wanted.vararg.arg] = tuple(args[len(names) :])
        known = {*names, *(one.arg for one in wanted.kwonlyargs)}
        if not given.keys() <= known or wanted.kwarg is not None:
            raise Unproved("it is called with keywords that are not understood")
        own.update(given)
        if not known <= own.keys():
            raise Unproved(f"it is called without {', '.join(sorted(known - own.keys()))}")
        scope = Scope(own, seen.find)
        try:
            if isinstance(node, ast.Lambda):
                value = self.value(node.body, scope)
            else:
                self.body(node.body, scope)
                value = None
        except Returned as end:
            value = end.value
        self.depth -= 1
        return value

    def builtin(self, function: Any, args: list[Any], given: dict[str, Any]) -> Any:
        """A function of Python's own."""
        name = function.__name__
        if name == "isinstance" and len(args) == 2 and not given:
            return self.is_a(*args)
        if name in ("enumerate", "zip", "list", "tuple", "reversed", "sum"):
            if given.keys() - {"start"}:
                raise Unproved(f"{name} with these arguments is not understood")
            plain = [list(self.items(arg)) if i == 0 or name == "zip" else arg for i, arg in enumerate(args)]
            if name == "sum":
                total = given.get("start", args[1] if len(args) > 1 else 0)
                for item in plain[0]:
                    total = self.binary(ast.Add(), total, item)
                return total
            return (tuple if name == "tuple" else list)(function(*plain, **given))
        if given:
            raise Unproved(f"{name} with these arguments is not understood")
        if name == "len" and len(args) == 1:
            if isinstance(args[0], Term):
                if not args[0].axes:
                    raise Unproved("it asks how long a single number is")
                return length(args[0].axes[0])
            return len(self.items(args[0]))
        if any(isinstance(arg, Term) for arg in args):
            if name == "abs":
                return self.apply("abs", args, {})
            raise Unproved(f"{name}() takes a value out of a tensor")
        if name in ("min", "max") and len(args) == 1:
            args = list(self.items(args[0]))
        if name in ("bool",) and len(args) == 1:
            return self.truth(args[0])
        return self.number(function, args)

    def record(self, made: type, args: list[Any], given: dict[str, Any]) -> Any:
        """A named tuple of the user's, of the same names; its class is not run."""
        names, defaults = (inspect.getattr_static(made, name, None) for name in ("_fields", "_field_defaults"))
        if not issubclass(made, tuple) or type(names) is not tuple or type(defaults) is not dict:
            raise Unproved(f"making {kind(made)} is not understood")
        found = {**{name: lift(value) for name, value in defaults.items()}, **dict(zip(names, args)), **given}
        if len(args) > len(names) or set(names) != found.keys():
            raise Unproved(f"{kind(made)} is made of other parts than it has")
        return namedtuple(made.__name__, names)(**found)

    def number(self, function: Any, args: list[Any]) -> Any:
        """A function of numbers: what depends on n stays unknown."""
        if any(isinstance(arg, Term) for arg in args):
            raise Unproved(f"{function.__name__}() takes a value out of a tensor")
        if any(isinstance(arg, Unknown) for arg in args):
            if function is range:
                raise Unproved("it loops as often as n or d says")
            return Unknown()
        if not all(type(arg) in (int, float, bool, str) for arg in args):
            raise Unproved(f"{function.__name__}() of these arguments is not understood")
        try:
            return function(*args)
        except (ArithmeticError, ValueError, TypeError) as error:
            raise Raised from error

    def is_a(self, value: Any, kinds: Any) -> bool:
        """isinstance, of kinds that cannot have a say in it."""
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        if not all(one in (Tensor, nn.Module, int, float, bool, str, tuple, list, dict) for one in kinds):
            raise Unproved("isinstance of these types is not understood")
        if isinstance(value, Unknown):
            raise Unproved("isinstance of what depends on n is not understood")
        return isinstance(value, tuple(kind for kind in kinds if kind is not Tensor)) or (
            isinstance(value, Term) and Tensor in kinds
        )

    def module(self, module: nn.Module, args: list[Any], given: dict[str, Any]) -> Any:
        """A module without hooks is its forward."""
        if (nn.Module.__call__, nn.Module.__getattr__) != CALLS:
            raise Unproved("torch.nn.Module was changed")
        call = inspect.getattr_static(type(module), "__call__")
        if call is not CALLS[0]:
            return self.call(call, [module, *args], given)
        hooks = [name for name, value in vars(module).items() if "hooks" in name and isinstance(value, dict) and value]
        everywhere = [value for name, value in vars(nn.modules.module).items() if name.startswith("_global_") and value]
        if hooks or module._compiled_call_impl is not None or any(isinstance(value, dict) for value in everywhere):
            raise Unproved(f"{type(module).__name__} has hooks, or is compiled")
        return self.call(self.attribute(module, "forward"), args, given)

    # Statements

    def body(self, statements: list[ast.stmt], scope: Scope) -> None:
        """Read statement by statement; a return ends it by `Returned`."""
        for statement in statements:
            self.statement(statement, scope)

    def statement(self, node: ast.stmt, scope: Scope) -> None:
        self.at(node)
        match node:
            case ast.Return(value=value):
                raise Returned(None if value is None else self.value(value, scope))
            case ast.Assign(targets=targets, value=value):
                found = self.value(value, scope)
                for target in targets:
                    self.assign(target, found, scope)
            case ast.AnnAssign(target=target, value=value):
                if value is not None:
                    self.assign(target, self.value(value, scope), scope)
            case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
                old = scope.own.get(name)
                if isinstance(old, Term) or not isinstance(old, int | float | str | tuple | Unknown):
                    raise Unproved(f"{name} is changed in place; write {name} = {name} ... instead")
                self.assign(target, self.binary(op, old, self.value(value, scope)), scope)
            case ast.If(test=test, body=body, orelse=orelse):
                self.body(body if self.truth(self.value(test, scope)) else orelse, scope)
            case ast.For(target=target, iter=source, body=body, orelse=[]):
                for item in self.items(self.value(source, scope)):
                    self.assign(target, item, scope)
                    self.body(body, scope)
            case ast.FunctionDef(decorator_list=[]):
                self.assign(ast.Name(node.name), self.written(node, scope), scope)
            case ast.Expr(value=ast.Constant()) | ast.Pass():
                pass
            case ast.Assert(test=test):
                held = self.value(test, scope)
                if isinstance(held, Term):
                    raise Unproved("whether it raises depends on the features")
                if not isinstance(held, Unknown) and not self.truth(held):
                    raise Raised
            case ast.Raise():
                raise Raised
            case ast.With(items=[ast.withitem(context_expr=ast.Call(func=func, args=[]), optional_vars=None)]):
                if self.value(func, scope) not in (torch.no_grad, torch.inference_mode, torch.enable_grad):
                    raise Unproved("this `with` is not understood")
                self.body(node.body, scope)
            case _:
                raise Unproved(f"`{ast.unparse(node).splitlines()[0]}` is more than is understood here")

    def assign(self, target: ast.expr, value: Any, scope: Scope) -> None:
        """Names are bound, and nothing else is ever written to."""
        match target:
            case ast.Name(id=name):
                scope.own[name] = value
            case ast.Tuple(elts=targets) | ast.List(elts=targets):
                found = list(self.items(value))
                if len(found) != len(targets) or any(isinstance(one, ast.Starred) for one in targets):
                    raise Unproved("what it unpacks is not of that length")
                for one, item in zip(targets, found):
                    self.assign(one, item, scope)
            case _:
                raise Unproved(f"it writes into {ast.unparse(target)}, which may be kept, or be its input")

    # Expressions

    def value(self, node: ast.expr, scope: Scope) -> Any:
        """The value of an expression."""
        self.count += 1
        if self.count > STEPS:
            raise Unproved("it is too long to be read")
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return scope.find(name)
            case ast.Attribute(value=owner, attr=name):
                found = self.value(owner, scope)
                self.at(node)
                return self.attribute(found, name)
            case ast.BinOp(left=left, op=op, right=right):
                a, b = self.value(left, scope), self.value(right, scope)
                self.at(node)
                return self.binary(op, a, b)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                found = self.value(operand, scope)
                return self.apply("logical_not", [found], {}) if isinstance(found, Ties) else not self.truth(found)
            case ast.UnaryOp(op=op, operand=operand):
                found = self.value(operand, scope)
                self.at(node)
                name, plain = UNARY[type(op)]
                return self.apply(name, [found], {}) if isinstance(found, Term) else self.number(plain, [found])
            case ast.Compare(left=left, ops=ops, comparators=others):
                return self.compared(self.value(left, scope), ops, others, scope, node)
            case ast.BoolOp(op=op, values=values):
                found: Any = None
                for one in values:
                    found = self.value(one, scope)
                    if self.truth(found) is isinstance(op, ast.Or):
                        return found
                return found
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self.value(body if self.truth(self.value(test, scope)) else orelse, scope)
            case ast.Tuple(elts=elts):
                return tuple(self.many(elts, scope))
            case ast.List(elts=elts):
                return self.many(elts, scope)
            case ast.ListComp(elt=elt, generators=[made]) | ast.GeneratorExp(elt=elt, generators=[made]):
                inner = Scope({}, scope.find)
                out = []
                for item in self.items(self.value(made.iter, scope)):
                    self.assign(made.target, item, inner)
                    if all(self.truth(self.value(test, inner)) for test in made.ifs):
                        out.append(self.value(elt, inner))
                return out
            case ast.Slice(lower=lower, upper=upper, step=step):
                return slice(*(None if part is None else self.value(part, scope) for part in (lower, upper, step)))
            case ast.Subscript(value=owner, slice=index):
                found, places = self.value(owner, scope), self.value(index, scope)
                self.at(node)
                return self.item(found, places)
            case ast.Lambda():
                return self.written(node, scope)
            case ast.Call(func=func, args=args, keywords=keywords):
                if any(keyword.arg is None for keyword in keywords):
                    raise Unproved("** in a call is not understood")
                function = self.value(func, scope)
                values = self.many(args, scope)
                given = {keyword.arg or "": self.value(keyword.value, scope) for keyword in keywords}
                self.at(node)
                return self.call(function, values, given)
            case _:
                raise Unproved(f"`{ast.unparse(node)}` is more than is understood here")

    def at(self, node: ast.stmt | ast.expr) -> None:
        """Remember the place in the user's own source; torch's own is not worth telling."""
        if not self.inside:
            self.line = node.lineno
            if isinstance(node, ast.expr):
                self.text = ast.unparse(node)

    def many(self, nodes: list[ast.expr], scope: Scope) -> list[Any]:
        """Several expressions, some perhaps with a star."""
        out: list[Any] = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                out += self.items(self.value(node.value, scope))
            else:
                out.append(self.value(node, scope))
        return out

    def written(self, node: ast.FunctionDef | ast.Lambda, scope: Scope) -> Written:
        """A function that is made here."""
        if any(node.args.kw_defaults):
            raise Unproved("defaults of keywords of an inner function are not understood")
        return Written(node, Scope({}, scope.find), self.many(node.args.defaults, scope))

    def binary(self, op: ast.operator | ast.cmpop, a: Any, b: Any) -> Any:
        """a op b."""
        if type(op) not in BINARY:
            raise Unproved("this operator is not understood")
        name, plain = BINARY[type(op)]
        if isinstance(a, Term | Ties) or isinstance(b, Term | Ties):
            if any(getattr(Tensor, dunder) is not ours for dunder, ours in OPERATORS.items()):
                raise Unproved("the operators of torch.Tensor were replaced")
            return self.apply(name, [a, b], {})
        if isinstance(a, list | tuple) and type(a) is type(b) and isinstance(op, ast.Add):
            return a + b
        if isinstance(a, list | tuple) and type(b) is int and isinstance(op, ast.Mult) and len(a) * b <= 1000:
            return a * b
        return self.number(plain, [a, b])

    def compared(self, left: Any, ops: list[ast.cmpop], others: list[ast.expr], scope: Scope, node: ast.expr) -> Any:
        """a < b, a is None, a in (...)."""
        found: Any = True
        for op, other in zip(ops, others):
            right = self.value(other, scope)
            self.at(node)
            if isinstance(op, ast.Is | ast.IsNot):
                if left is not None and right is not None and not isinstance(right, bool):
                    raise Unproved("`is` is understood with None only")
                found = (left is right) == isinstance(op, ast.Is)
            elif isinstance(op, ast.In | ast.NotIn):
                if not all(type(one) in (int, float, str, bool) for one in (left, *self.items(right))):
                    raise Unproved("`in` is understood for plain values only")
                found = (left in right) == isinstance(op, ast.In)
            elif isinstance(left, Unknown) or isinstance(right, Unknown):
                found = Unknown() if not isinstance(left, Term) and not isinstance(right, Term) else (
                    self.binary(op, left, right)
                )  # fmt: skip
            elif type(op) in (ast.Eq, ast.NotEq) and type(left) in PLAIN and type(right) in PLAIN:
                known = settled(left) and settled(right)
                found = BINARY[type(op)][1](left, right) if known else Unknown()
            else:
                found = self.binary(op, left, right)
            if len(ops) > 1 and not self.truth(found):
                return False
            left = right
        return found

    def truth(self, value: Any) -> bool:
        """Whether a branch is taken; where it is not known but the same for every order, both sides are read."""
        if isinstance(value, Unknown):
            self.made.append(self.choices[len(self.made)] if len(self.made) < len(self.choices) else True)
            if len(self.made) > PATHS:
                raise Unproved("it branches too often on n")
            return self.made[-1]
        if isinstance(value, Term | Ties):
            raise Unproved("it branches on the features")
        if type(value) not in PLAIN:
            raise Unproved(f"whether {kind(value)} is true is not understood")
        return bool(value)

    def items(self, value: Any) -> list[Any]:
        """What a loop goes through."""
        if isinstance(value, Term):
            if value.axes and isinstance(value.axes[0], Bag):
                raise Unproved("it goes through the messages in their order")
            return list(RULES["unbind"](value))
        if isinstance(value, Unknown):
            raise Unproved("it goes through something that depends on n")
        if isinstance(value, tuple) or type(value) in (list, range, str):
            return [lift(one) for one in value]
        if type(value) is dict:
            return list(value)
        if type(value) in (nn.Sequential, nn.ModuleList):
            return list(value)
        raise Unproved(f"going through {kind(value)} is not understood")

    def item(self, owner: Any, index: Any) -> Any:
        """owner[index]."""
        if isinstance(owner, Term):
            if OPERATORS["__getitem__"] is not Tensor.__getitem__:
                raise Unproved("the operators of torch.Tensor were replaced")
            value = index_of(owner, index)
            self.note("entries", [owner], value)
            return value
        if isinstance(owner, tuple) or type(owner) in (list, dict, str, range):
            if type(index) not in (int, str, slice):
                raise Unproved("which item it takes is not known")
            try:
                found = owner[index]
            except (LookupError, TypeError) as error:
                raise Raised from error
            return lift(found)
        if type(owner) in (nn.Sequential, nn.ModuleList) and type(index) is int:
            return self.items(owner)[index]
        raise Unproved(f"taking an item of {kind(owner)} is not understood")

    def attribute(self, owner: Any, name: str) -> Any:
        """owner.name, found without running anything."""
        if isinstance(owner, Term):
            return self.of_tensor(owner, name)
        if isinstance(owner, Unknown):
            return Unknown()  # of a device, its type
        if isinstance(owner, Ties):
            raise Unproved("which of several equal messages comes first follows their order")
        if isinstance(owner, types.ModuleType):
            if type(owner) is not types.ModuleType or name not in vars(owner):
                raise Unproved(f"{owner.__name__}.{name} is not understood")
            return lift(vars(owner)[name])
        if name.startswith("__"):
            raise Unproved(f".{name} is not understood")
        if isinstance(owner, type):
            found = inspect.getattr_static(owner, name, None)
            if isinstance(found, staticmethod):
                return found.__func__
            if isinstance(found, types.FunctionType | int | float | str | tuple):
                return found
            raise Unproved(f"{owner.__name__}.{name} is not understood")
        if isinstance(owner, tuple) and name in getattr(owner, "_fields", ()):
            return owner[getattr(owner, "_fields").index(name)]  # noqa: B009
        if type(owner) in PLAIN or isinstance(owner, types.FunctionType | types.BuiltinFunctionType | types.MethodType):
            raise Unproved(f".{name} of {kind(owner)} is not understood")
        if isinstance(owner, Written | Method):
            raise Unproved(f".{name} of a function is not understood")
        return self.of_object(owner, name)

    def of_object(self, owner: Any, name: str) -> Any:
        """An attribute of an object of the user's: its own value, a method, a property."""
        kinds = type(owner)
        if inspect.getattr_static(kinds, "__getattribute__") is not object.__getattribute__:
            raise Unproved(f"{kinds.__name__} looks up its attributes in a way of its own")
        inside = vars(owner) if hasattr(kinds, "__dict__") and hasattr(owner, "__dict__") else {}
        found = inspect.getattr_static(kinds, name, None)
        if isinstance(found, property):
            return self.call(found.fget, [owner], {})
        if found is not None and hasattr(type(found), "__set__") and not isinstance(found, types.MemberDescriptorType):
            raise Unproved(f".{name} of {kinds.__name__} is computed in a way that is not understood")
        if name in inside:
            return lift(inside[name])
        if isinstance(owner, nn.Module):
            if inspect.getattr_static(kinds, "__getattr__") is not CALLS[1]:
                raise Unproved(f"{kinds.__name__} looks up its attributes in a way of its own")
            for home in ("_parameters", "_buffers", "_modules"):
                if name in inside.get(home, {}):
                    return lift(inside[home][name])
        if isinstance(found, types.FunctionType):
            return types.MethodType(found, owner)
        if isinstance(found, staticmethod):
            return found.__func__
        if isinstance(found, types.MemberDescriptorType):  # __slots__
            return lift(found.__get__(owner))
        if found is None or hasattr(type(found), "__get__"):
            raise Unproved(f".{name} of {kinds.__name__} is not understood")
        return lift(found)

    def of_tensor(self, owner: Term, name: str) -> Any:
        """An attribute or method of a tensor."""
        if name == "shape":
            return tuple(length(axis) for axis in owner.axes)
        if name == "ndim":
            return len(owner.axes)
        if name in ("dtype", "device", "requires_grad", "is_cuda"):
            return Unknown()
        if name in ("T", "mT"):
            if len(owner.axes) != 2:
                raise Unproved(f".{name} of other than a matrix is not understood")
            return self.apply("t", [owner], {})
        if name in METHODS or name in MEASURES:
            return Method(name, owner)
        raise Unproved(f".{name} of a tensor has no rule")


def length(axis: Any) -> int | Unknown:
    """What `len` and `shape` say of an axis."""
    return Length(axis) if isinstance(axis, Bag) else Unknown() if axis is None else axis


def settled(value: Any) -> bool:
    """Whether a plain value is known; a shape with an axis for the set is not.  Unproved where tensors are inside."""
    if isinstance(value, Unknown):
        return False
    if isinstance(value, tuple | list):
        inside = [settled(one) for one in value]  # each is looked at: a tensor may stand behind what is not known
        return all(inside)
    if type(value) not in PLAIN or type(value) in (dict, slice):
        raise Unproved(f"comparing {kind(value)} is not understood")
    return True


def kind(value: Any) -> str:
    """What a value is, in a message."""
    if value is None:
        return "None"
    name = getattr(value, "__qualname__", "") or getattr(value, "__name__", "")
    return f"`{name}`" if isinstance(name, str) and name else f"a {type(value).__name__}"


def lift(value: Any) -> Any:
    """What a name outside the function stands for: of a tensor only its axes, none of them a set's."""
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, nn.Parameter, nn.Buffer):
            raise Unproved(f"a {type(value).__name__} may do otherwise than a plain tensor")
        return Term(tuple(value.shape))
    if isinstance(value, tuple) and (type(value).__iter__, type(value).__getitem__) != PLAIN_TUPLE:
        raise Unproved(f"a {type(value).__name__} may do otherwise than a plain tuple")
    return value


def source_of(function: types.FunctionType) -> ast.FunctionDef | ast.Lambda:
    """The syntax of a function, only if compiling its file anew gives the very code that would run."""
    code = function.__code__
    text = "".join(linecache.getlines(code.co_filename))
    if not text:
        raise Unproved(f"the source of {function.__qualname__} cannot be read")
    try:
        tree, known = parsed(text)
    except (SyntaxError, ValueError) as error:
        raise Unproved(f"the source of {function.__qualname__} cannot be read") from error
    if fingerprint(code) not in known.get(code.co_firstlineno, ()):
        raise Unproved(f"{function.__qualname__} is not what its file says now")
    spans = set(code.co_positions())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            if min([node.lineno, *(one.lineno for one in node.decorator_list)]) == code.co_firstlineno:
                return node
        elif isinstance(node, ast.Lambda) and code.co_name == "<lambda>" and node.lineno == code.co_firstlineno:
            body = node.body
            if (body.lineno, body.end_lineno, body.col_offset, body.end_col_offset) in spans:
                return node
    raise Unproved(f"{function.__qualname__} is of a kind that is not understood")


@lru_cache(maxsize=16)
def parsed(text: str) -> tuple[ast.Module, dict[int, list[Any]]]:
    """The syntax of a file, and the fingerprints of all code in it, by its first line."""
    known: dict[int, list[Any]] = {}
    for code in codes(compile(text, "<source>", "exec", dont_inherit=True)):
        known.setdefault(code.co_firstlineno, []).append(fingerprint(code))
    return ast.parse(text), known


def codes(whole: types.CodeType) -> Iterator[types.CodeType]:
    """All code inside a piece of code."""
    for constant in whole.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from codes(constant)


def fingerprint(code: types.CodeType) -> tuple[Any, ...]:
    """What makes two pieces of code the same."""
    constants = tuple(
        fingerprint(one) if isinstance(one, types.CodeType) else (type(one), repr(one)) for one in code.co_consts
    )
    return (code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars, code.co_argcount,
            code.co_kwonlyargcount, code.co_posonlyargcount, code.co_flags, tuple(code.co_positions()))  # fmt: skip
