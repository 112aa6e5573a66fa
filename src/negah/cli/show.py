"""What every verb shares: the two switches all of them have, and how they print.

stdout carries the result only (a table for people, one JSON object with --json), so that it can be piped; progress,
warnings and errors go to stderr. Text that came from outside (file names, CRS names) is printed as it is: rich's markup
is off, and control characters, which could rewrite a terminal, are made visible.
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NoReturn, get_origin

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text
from tyro.conf import UseAppendAction, arg

from negah.progress import Progress

FAILURES = 10  # that are told one by one
LOG_S = 30.0  # between two lines that tell how far a run is


class Paper(Console):
    """A rich console that prints texts as they are and leaves it to main what a broken pipe means."""

    def __init__(self, stream: Any):
        # Without a terminal lines are not wrapped: whoever reads them by program wants a row on a line.
        width = None if stream.isatty() else 200
        super().__init__(file=stream, markup=False, highlight=False, emoji=False, width=width)

    def on_broken_pipe(self) -> NoReturn:
        """Rich would end the program here, with status 1."""
        raise BrokenPipeError


def default_told(label: str) -> str:
    """What the help says of a default: nothing where the option's own line says what happens without it."""
    return "" if label in ("None", "False", "") else f"(default: {label})"


@dataclass(kw_only=True)
class Verb:
    """A verb of the command line: its fields are the arguments (parsed by tyro), its docstring is the help.

    The first line of the docstring is the line in `negah --help`; the rest says more and shows an example. Importing a
    verb's file must stay cheap (no torch, no rasterio at the top), because `negah --help` imports all of them.
    """

    IF_INTERRUPTED: ClassVar[str] = "stopped"
    """What Ctrl-C leaves the user with, in a line: what is kept, and how to continue."""

    json: Annotated[bool, arg(help_behavior_hint=default_told)] = False
    """Print one JSON object for machines instead of tables."""
    debug: Annotated[bool, arg(help_behavior_hint=default_told)] = False
    """Show the whole traceback of an error."""

    def __init_subclass__(cls) -> None:
        """Every field's default is told by `default_told`; of a repeatable one tyro says that it is."""
        for name, annotation in cls.__annotations__.items():
            repeatable = UseAppendAction in getattr(annotation, "__metadata__", ())
            if get_origin(annotation) is not ClassVar and not repeatable:
                cls.__annotations__[name] = Annotated[annotation, arg(help_behavior_hint=default_told)]

    def run(self) -> int:
        """Do it and return the exit status: 0 all done, 3 some inputs failed; raise NegahError for what must stop."""
        raise NotImplementedError


def stdout() -> Console:
    """A console for results."""
    return Paper(sys.stdout)


def stderr() -> Console:
    """A console for what is not the result."""
    return Paper(sys.stderr)


class Rate(TextColumn):
    """Steps per second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        """The text of one bar."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f}/s", style="progress.data.speed")


def progress(*, quiet: bool = False) -> Bar:
    """A progress bar on stderr with count, rate and time left; silent where stderr is not a terminal.

    Use: `with progress() as bar: task = bar.add_task("windows", total=n); bar.advance(task, 16)`.
    """
    console = stderr()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn()
    return Bar(*columns, console=console, disable=quiet or not console.is_terminal)


class Log:
    """Where stderr is no terminal, and a run takes long: how far it is, a line every LOG_S seconds."""

    def __init__(self, *, quiet: bool):
        self.quiet = quiet or stderr().is_terminal
        self.last = time.monotonic()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if not self.quiet and time.monotonic() - self.last >= LOG_S:
            self.last = time.monotonic()
            stderr().print(f"{stage}: {done:,} of {total:,}" if total else stage)


def stages(bar: Bar, *, quiet: bool) -> Progress:
    """The progress of a run: each stage becomes a line of the bar when it begins."""
    tasks: dict[str, TaskID] = {}
    log = Log(quiet=quiet)

    def advance(stage: str, done: int, total: int) -> None:
        log(stage, done, total)
        if stage not in tasks:
            tasks[stage] = bar.add_task(stage, total=total)
            bar.reset(tasks[stage], total=total, completed=done)  # continued: the rate is that of this run
        bar.update(tasks[stage], completed=done)

    return advance


class Bars:
    """A progress bar for each stage, taken down when it is done: for runs that train, which draws a bar of its own.

    Use: `with Bars(quiet=False) as bars: run(progress=bars)`.
    """

    def __init__(self, *, quiet: bool):
        self.quiet, self.log = quiet, Log(quiet=quiet)
        self.stage, self.bar = "", None

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.log(stage, done, total)
        if stage != self.stage:
            self.stage, self.bar = stage, progress(quiet=self.quiet)
            self.task = self.bar.add_task(stage, total=total)
            self.bar.start()
        if self.bar is not None:
            self.bar.update(self.task, completed=done)
            if done == total:
                self.bar.stop()
                self.bar = None


def table(rows: Iterable[Sequence[object]], *, header: Sequence[str] = (), title: str = "") -> None:
    """Print rows on stdout; a column whose cells are all numbers is set flush right."""
    body = [list(row) for row in rows]
    width = max([len(header), *map(len, body)], default=0)
    out = Table(
        title=Text(title, style="bold") if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_header=bool(header),
        show_edge=False,
        pad_edge=False,
    )
    for i in range(width):
        cells = [row[i] for row in body if i < len(row)]
        right = bool(cells) and all(isinstance(cell, int | float) for cell in cells)
        out.add_column(header[i] if i < len(header) else "", justify="right" if right else "left", overflow="fold")
    for row in body:
        out.add_row(*(Text(printable(cell)) for cell in row))
    stdout().print(out)
    print()


def as_json(value: object) -> None:
    """Print one value as JSON on stdout: dataclasses as objects, NaN and infinity (JSON has none) as null."""
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False), flush=True)


def error(message: str) -> None:
    """Print one line on stderr."""
    print(f"negah: {printable(message)}", file=sys.stderr, flush=True)


def warning(message: str) -> None:
    """Print one line on stderr, marked as a warning."""
    print(f"negah: warning: {printable(message)}", file=sys.stderr, flush=True)


def failures(found: Sequence[tuple[str, str]], *, more: str) -> None:
    """Warn of what failed, (what, why), the first ten; `more` says the rest, after their number."""
    for what, why in found[:FAILURES]:
        warning(why if what in why else f"{what}: {why}")
    if len(found) > FAILURES:
        warning(f"{len(found) - FAILURES} {more}")


def printable(value: object) -> str:
    """Text on one line that cannot steer a terminal: line breaks become spaces, control characters their escapes."""
    text = " ".join(str(value).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def size(count: int) -> str:
    """Bytes in the largest decimal unit that leaves a number of at least one."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str | Path):
        return str(value).encode("utf-8", "backslashreplace").decode()
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # a numpy or torch scalar
        return _plain(value.item())
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value)
