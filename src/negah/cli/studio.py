"""`negah studio`: the web page."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from tyro.conf import arg

from negah.cli import show


@dataclass(kw_only=True)
class Studio(show.Verb):
    """Open the web page: survey, look, attack, describe and imagine by hand, on this machine alone.

    It listens on 127.0.0.1, fetches nothing from outside and reports nothing home. Files that are dropped on the page
    are kept in a temporary folder until it ends. Needs the extra `studio`.

    Example:
        negah studio
        negah studio --port 8000 --upload-mb 4000 --no-browser
    """

    IF_INTERRUPTED: ClassVar[str] = "the studio is closed"

    port: Annotated[int | None, arg(metavar="N")] = None
    """Port on 127.0.0.1 (default: the first free one from 7860)."""
    upload_mb: Annotated[int, arg(metavar="MB")] = 1000
    """Most megabytes that are taken at once."""
    no_browser: bool = False
    """Print the address, and open no browser."""

    def run(self) -> int:
        """Serve until Ctrl-C."""
        import signal
        import threading
        import webbrowser

        from negah.studio.app import served

        with served(port=self.port, upload_mb=self.upload_mb) as address:
            if self.json:
                show.as_json({"address": address})
            else:
                print(f"negah studio: {address}  (Ctrl-C closes it)", flush=True)
            if not self.no_browser:
                webbrowser.open(address)
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # however it is told to end, it tidies up
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                return 0
        return 0
