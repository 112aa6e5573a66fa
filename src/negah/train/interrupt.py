"""SIGTERM and Ctrl-C during training: finish the step, save, then go."""

import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from negah import ranks


class Interrupts:
    """Inside `with`, a first SIGTERM or Ctrl-C is only noted in `pending`; a second one acts at once.

    Without a checkpoint to save to there is nothing to wait for, and outside the main thread Python allows no handlers:
    signals then do what they always do.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.received = 0
        self.previous: dict[int, object] = {}

    @property
    def pending(self) -> bool:
        """Whether this process was told to stop."""
        return self.received != 0

    def __enter__(self) -> "Interrupts":
        if self.path is not None and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self.previous):
            self._restore(number)

    def leave(self, step: int, steps: int) -> None:
        """Say where the run is, and end it as the signal asked: KeyboardInterrupt, or SystemExit(143) for SIGTERM."""
        name = "Ctrl-C" if self.received == signal.SIGINT else "SIGTERM"
        line = f"{name}: stopped after step {step} of {steps}, saved in {self.path}; the same call continues from there"
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt(line)
        if ranks.rank() == 0:
            print(line, file=sys.stderr, flush=True)
        raise SystemExit(128 + signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore(number)

    def _restore(self, number: int) -> None:
        # None stands for a handler that was not set from Python and cannot be set from it either.
        handler = self.previous.pop(number)
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # type: ignore[arg-type]
