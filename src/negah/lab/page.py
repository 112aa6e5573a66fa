"""The page of an experiment: its plots, what each shows, the figures behind it, and the code that it is about.

    page = Page("collapse", "What keeps a network from saying nothing?", out, settings)
    page.add(Panel("byol", ..., figure=figure, rows=rows))

leaves `index.html`, which needs nothing else, `results.json`, and the plot as `byol.svg`.
"""

import datetime
import html
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from negah import __version__
from negah.errors import OutputError
from negah.runs.page import document, figure, svg, table
from negah.runs.record import compute_device, hardware, versions

__all__ = ["Page", "Panel", "figure"]


@dataclass(frozen=True)
class Panel:
    """One plot.

    name: of its picture, and its key in results.json.  asks: what is varied, what is measured on what, and what one
    would expect.  found: what came out, made of this run's figures.  rows: those figures.  code: the functions and
    classes that it is about.
    """

    name: str
    title: str
    asks: str
    found: str
    rows: Sequence[dict[str, Any]]
    figure: Figure
    code: Sequence[Callable[..., Any]] = ()


@dataclass
class Page:
    """A page in the making.  settings: what the experiment ran with, for whoever wants to repeat it."""

    name: str
    title: str
    out: Path
    settings: dict[str, Any]
    panels: list[Panel] = field(default_factory=list)
    started: datetime.datetime = field(default_factory=lambda: datetime.datetime.now(datetime.UTC))

    def add(self, panel: Panel) -> None:
        """Take a panel up, and write the page as far as it is: of an experiment that is stopped, its first half stays.

        Raises OutputError when it cannot be written.
        """
        self.panels.append(panel)
        finished = datetime.datetime.now(datetime.UTC)
        record = {
            "negah": __version__, "lab": self.name, "settings": self.settings,
            "started": self.started.isoformat(timespec="seconds"),
            "finished": finished.isoformat(timespec="seconds"),
            "versions": versions(), "hardware": hardware(compute_device()),
            "panels": {p.name: {"title": p.title, "found": p.found, "rows": list(p.rows)} for p in self.panels},
        }  # fmt: skip
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / f"{panel.name}.svg").write_text(svg(panel.figure), encoding="utf-8")
            text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
            (self.out / "results.json").write_text(text, encoding="utf-8")
            (self.out / "index.html").write_text(self._html(record), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{self.out} cannot be written to ({error.strerror}): give another --out") from error

    def _html(self, record: dict[str, Any]) -> str:
        e = html.escape
        on = f"{record['hardware']['device']}, {record['hardware']['torch threads']} threads"
        took = datetime.datetime.fromisoformat(record["finished"]) - self.started
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        body = [f"<h1>{e(self.title)}</h1>"]
        body.append(f'<p class="small">negah {__version__}: <code>negah lab {e(self.name)}</code>, {e(settings)}; ')
        body.append(f"torch {e(record['versions']['torch'])}, {e(on)}; {took.total_seconds() / 60:.0f} minutes</p>")
        for panel in self.panels:
            body += [f'<h2 id="{e(panel.name)}">{e(panel.title)}</h2>', f"<p>{e(panel.asks)}</p>", svg(panel.figure)]
            body += [f"<p><strong>{e(panel.found)}</strong></p>", table(panel.rows)]
            if panel.code:
                body.append(f'<p class="small">Code: {", ".join(map(_link, panel.code))}</p>')
        return document(self.title, body)


def _link(thing: Callable[..., Any]) -> str:
    """The name of a function or class, leading to its file."""
    name = f"{thing.__module__}.{thing.__qualname__}"
    path = sys.modules[thing.__module__].__file__
    return f'<a href="{html.escape(Path(path).as_uri())}"><code>{name}</code></a>' if path else f"<code>{name}</code>"
