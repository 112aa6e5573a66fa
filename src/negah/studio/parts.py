"""What the rooms are made of: the buttons of a job, how it is told of, pictures and tables as HTML."""

import html
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import UInt8
from numpy import ndarray

from negah.errors import InputError
from negah.images.sources import PICTURES, TARS, ZIPS
from negah.progress import Progress
from negah.runs.page import picture_uri
from negah.studio.work import Done, Failed, Step, Work

DETECTOR = "negah/aerial-tiny"
"""The bundled model: what the rooms use unless another is given."""

TYPES = [*PICTURES, *ZIPS, *TARS, ".gz", ".tgz", ".bz2", ".xz"]
"""Endings of pictures and archives of them, as the browser offers them to choose from."""

LISTED = 12  # failures that are told one by one
GREY = "#7d858d"  # letters of a plot, which has no background of its own


class Controls(NamedTuple):
    """The buttons of a job, and the line below them (components of Gradio)."""

    go: Any
    stop: Any
    status: Any


def lead(text: str) -> None:
    """The sentence that a room begins with."""
    import gradio as gr

    gr.HTML(f"<p>{html.escape(text)}</p>", elem_classes="lead", padding=False)


def controls(label: str) -> Controls:
    """A button that starts a job, one that stops it, and a line that tells of it."""
    import gradio as gr

    with gr.Row():
        go = gr.Button(label, variant="primary", min_width=120)
        stop = gr.Button("Stop", interactive=False, min_width=80)
    return Controls(go, stop, gr.HTML(elem_classes="told", padding=False))


def wire(
    work: Work, room: str, buttons: Controls, inputs: Sequence[Any], outputs: Sequence[Any],
    prepare: Callable[..., Callable[[Progress], Any]], show: Callable[[Any], Sequence[Any]], *,
    triggers: Sequence[Any] = (), fresh: bool = True,
) -> None:  # fmt: skip
    """Let `buttons.go` (and other triggers) run a job and show what comes of it.

    Args:
        prepare: makes the job, from a folder for its files and the values of `inputs`; runs inside the job.
        show: the values of `outputs`, from what the job returned.
        fresh: give each job a new folder; else the room's last one is given again.
    """
    import gradio as gr

    def act(request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
        owner = str(request.session_hash), room
        place = work.folder if fresh else work.latest
        yield {buttons.go: gr.update(interactive=False), buttons.stop: gr.update(interactive=True)}
        shown: dict[Any, Any] = {}
        for told in work.run(lambda progress: show(prepare(place(owner), *values)(progress)), owner):
            if isinstance(told, Done):
                shown = dict(zip(outputs, told.value, strict=True))
            yield {buttons.status: status(told)}
        yield {buttons.go: gr.update(interactive=True), buttons.stop: gr.update(interactive=False), **shown}

    def halt(request: gr.Request) -> None:
        work.stop((str(request.session_hash), room))

    gr.on(
        [buttons.go.click, *triggers], act, list(inputs), [*buttons, *outputs], show_progress="hidden",
        concurrency_limit=None, api_visibility="private",
    )  # fmt: skip
    buttons.stop.click(halt, queue=False, show_progress="hidden", api_visibility="private")


def downloads() -> Any:
    """The files of a result, once there are some."""
    import gradio as gr

    return gr.File(label="Files", file_count="multiple", visible=False, interactive=False, elem_classes="files")


def files(paths: Iterable[Path]) -> Any:
    """`downloads` with those of the files that are there."""
    import gradio as gr

    return gr.update(value=[str(path) for path in paths if path.is_file()], visible=True)


def on_any_ground(axis: Any) -> None:
    """Let a plot be read on light and on dark ground: no background, and letters in a grey between them."""
    axis.figure.patch.set_alpha(0)
    axis.patch.set_alpha(0)
    axis.tick_params(colors=GREY)
    for spine in axis.spines.values():
        spine.set_color(GREY)
    texts = [axis.xaxis.label, axis.yaxis.label]
    if legend := axis.get_legend():
        legend.get_frame().set_visible(False)
        texts += legend.get_texts()
    for text in texts:
        text.set_color(GREY)


def status(told: Step | Done[Any] | Failed) -> str:
    """How a job is told of, as HTML; nothing when it is done."""
    if isinstance(told, Done):
        return '<div role="status" class="step"></div>'
    if isinstance(told, Failed):
        kind = ' role="status" class="line"' if told.stopped else ' role="alert" class="line bad"'
        return f"<div{kind}>{html.escape(told.line)}</div>"
    bar, count = "<progress></progress>", ""
    if told.total:
        bar = f'<progress max="{told.total}" value="{told.done}"></progress>'
        count = f" {told.done:,} of {told.total:,}"
    return f'<div role="status" class="step">{bar}<span>{html.escape(told.what)}{count}</span></div>'


def number(text: str | None, what: str) -> float | None:
    """What was typed as a number, None for nothing.  Raises InputError for anything else."""
    if not (text or "").strip():
        return None
    try:
        return float(str(text).replace(",", "."))
    except ValueError as error:
        raise InputError(f"{what}: {text!r} is no number, type one such as 0.3") from error


def empty(text: str) -> str:
    """What stands where results will be."""
    return f'<div class="empty">{html.escape(text)}</div>'


def facts(totals: dict[str, str]) -> str:
    """Headline figures: label to value, lines after the first are set small."""
    cells = []
    for label, value in totals.items():
        first, *rest = value.split("\n")
        small = "".join(f"<small>{html.escape(line)}</small>" for line in rest)
        cells.append(f"<div><dt>{html.escape(label)}</dt><dd>{html.escape(first)}{small}</dd></div>")
    return f'<dl class="totals">{"".join(cells)}</dl>'


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows under a header."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def lines(texts: Sequence[str]) -> str:
    """Short lines below something."""
    return "".join(f'<p class="note">{html.escape(text)}</p>' for text in texts)


def scrolled(content: str, title: str) -> str:
    """HTML that may be wider than a telephone, and is then moved sideways, by the keyboard as well."""
    return f'<div class="scrolled" tabindex="0" role="region" aria-label="{html.escape(title)}">{content}</div>'


def heading(text: str) -> str:
    """A line above a group of results."""
    return f"<h3>{html.escape(text)}</h3>"


def failed(failures: Sequence[tuple[str, str]]) -> str:
    """What could not be read, and why; nothing where everything could."""
    if not failures:
        return ""
    more = f"<p>and {len(failures) - LISTED:,} more</p>" if len(failures) > LISTED else ""
    return heading("Could not be read") + table(("what", "why"), failures[:LISTED]) + more


def sheet(pictures: Sequence[tuple[UInt8[ndarray, "h w 3"], str, str]], *, cell: int = 170) -> str:
    """Pictures with a caption and a smaller line below it, in as many columns as there is room for.

    cell: width of a column in pixels, at least.
    """
    items = []
    for pixels, caption, small in pictures:
        below = f"<small>{html.escape(small)}</small>" if small else ""
        items.append(
            f'<li><img src="{picture_uri(pixels)}" alt="{html.escape(caption, quote=True)}">'
            f"<p>{html.escape(caption)}{below}</p></li>"
        )
    return f'<ul class="sheet" style="--cell: {cell}px">{"".join(items)}</ul>'


def framed(page: Path, title: str) -> str:
    """A page that holds all it needs, within this one: it can run its own script and reach nothing else."""
    content = html.escape(page.read_text(encoding="utf-8"), quote=True)
    frame = f'<iframe title="{html.escape(title)}" sandbox="allow-scripts" srcdoc="{content}"></iframe>'
    return f'<div class="page">{frame}</div>'
