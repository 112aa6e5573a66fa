"""`negah studio`: the page of all rooms, and the server that shows it to this machine alone.

What keeps it here: it listens on 127.0.0.1 and answers to no other name; Gradio's own reports home are switched off;
the page's letters, scripts and styles come with Gradio's package; and each answer has a content security policy that
forbids the browser to fetch anything from elsewhere.  What keeps it up: uploads have a limit, a job that fails is a
line on the page, and a page that is closed stops its jobs.
"""

import contextlib
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from negah.errors import InputError, install
from negah.studio.work import Work

HOST = "127.0.0.1"
PORTS = range(7860, 7900)  # of which the first free one is taken
MEGABYTE = 10**6
FORM = 2**20  # bytes of a request beside the files in it
POLICY = (  # Gradio writes scripts into its page, and makes functions of the templates of its HTML
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; media-src 'self' blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
SETTINGS = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_NUM_WORKERS": "0"}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Guard:
    """In front of the server: other names and too large requests are refused, answers get the policy.

    most: bytes of a request.
    """

    def __init__(self, app: Any, most: int):
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1").rpartition(":")[0]
        length = headers.get(b"content-length", b"0")
        if host not in (HOST, "localhost"):
            await _refuse(send, 421, f"negah studio answers to http://{HOST} only")
        elif not length.isdigit() or int(length) > self.most:
            await _refuse(send, 413, f"more than the {self.most // MEGABYTE:,} MB that this studio takes at once")
        else:

            async def guarded(message: MutableMapping[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    added = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                    message["headers"] = [*message.get("headers", ()), *added]
                await send(message)

            await self.app(scope, receive, guarded)


async def _refuse(send: Send, code: int, line: str) -> None:
    head = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": code, "headers": head})
    await send({"type": "http.response.body", "body": line.encode()})


def build(work: Work) -> Any:
    """The page, as Blocks of Gradio.  Raises InputError where Gradio is not installed."""
    os.environ.update(SETTINGS)
    try:
        import gradio as gr
    except ImportError as error:
        raise InputError(f"the studio needs the extra: {install('studio')}") from error
    from negah.studio import attack, describe, imagine, look, neighbours, survey

    rooms = {
        "Survey": survey.room, "Look": look.room, "Attack": attack.room, "Describe": describe.room,
        "Imagine": imagine.room, "Neighbours": neighbours.room,
    }  # fmt: skip
    with gr.Blocks(title="negah studio", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.HTML(
            "<h1><b>negah</b> studio</h1><p>Solar panels in aerial pictures, and what models see. "
            "Everything stays on this machine.</p>",
            elem_id="masthead",
        )
        with gr.Tabs():
            for name, room in rooms.items():
                with gr.Tab(name, id=name.lower()):
                    room(work)

        def leave(request: gr.Request) -> None:
            work.leave(str(request.session_hash))

        page.unload(leave)
    return page


@contextlib.contextmanager
def served(*, port: int | None = None, upload_mb: int = 1000) -> Iterator[str]:
    """A studio that answers until the block ends; gives its address.

    It works in a temporary folder, which is the process's working folder meanwhile, so that files are named in results
    by where they lie in it, and which is removed at the end.

    Args:
        port: on 127.0.0.1; None takes the first free one from 7860.
        upload_mb: most megabytes that are taken at once.

    Raises InputError where Gradio is missing, the port is taken, or a limit makes no sense.
    """
    if upload_mb < 1:
        raise InputError(f"--upload-mb {upload_mb}: give 1 or more")
    if port is not None and not 1 <= port <= 65535:
        raise InputError(f"--port {port}: give a number from 1 to 65535")
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="negah-studio-", ignore_cleanup_errors=True) as folder:
        home = Path(folder).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(home / "uploads")
        # The server asks itself whether it is up: that must not go through a proxy.
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(
            filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), HOST, "localhost"])
        )
        work = Work(Path())
        page = build(work)
        from negah.studio.theme import CSS, SCRIPT, theme

        os.chdir(home)
        try:
            page.queue(max_size=64, default_concurrency_limit=8, api_open=False)
            try:
                page.launch(
                    server_name=HOST, server_port=port if port is not None else free_port(), share=False, quiet=True,
                    prevent_thread_lock=True, show_error=True, ssr_mode=False, num_workers=0, footer_links=[],
                    max_file_size=upload_mb * MEGABYTE, theme=theme(), css=CSS, js=SCRIPT, run_history=False,
                    app_kwargs={"middleware": [(Guard, (), {"most": upload_mb * MEGABYTE + FORM})],
                                "docs_url": None, "redoc_url": None},
                )  # fmt: skip
            except OSError as error:
                raise InputError(f"port {port} of {HOST} is taken: give another --port") from error
            yield page.local_url
        finally:
            work.close()
            page.close(verbose=False)
            os.chdir(before)


def free_port() -> int:
    """The first of PORTS that nobody listens on.  Raises InputError where there is none."""
    import socket

    for port in PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise InputError(f"ports {PORTS.start} to {PORTS.stop - 1} of {HOST} are all taken: give another --port")
