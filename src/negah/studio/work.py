"""Long work behind a page: told step by step, stopped on request, ended by one line where it cannot go on.

    for told in work.run(lambda progress: survey(..., progress=progress), owner=("a page", "survey")):
        ...                                              Step, Step, ..., and at last Done or Failed

A job runs in a thread of its own and hears of a stop where it reports progress, as the command line hears of Ctrl-C.
One job runs at a time, because each takes all cores; the others wait for their turn and say so.
"""

import itertools
import os
import re
import shutil
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from negah.errors import InputError, told
from negah.progress import Progress

T = TypeVar("T")
Owner = tuple[str, str]
"""Whose a job is: the page (a tab of a browser) and the room."""

UPLOADED = "in"  # of a job's folder: what it was given
PAUSE = 0.15  # seconds between two looks at a job
LEAVE = 10  # seconds that running jobs are waited for at the end
FIELDS = {
    "--gsd": '"Metres per pixel"', "--threshold": '"Threshold"', "--calibration": '"Calibration"', "--aoi": "the area",
    "--labels": '"Labels"', "--label-next": '"Label next"', "--parcels": '"Parcels"', "--also": '"Also look for"',
}  # fmt: skip
"""What the command line calls an option, as the page calls it."""


@dataclass(frozen=True)
class Step:
    """How far a job is; total 0: nobody knows how far it goes."""

    what: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Done(Generic[T]):
    """What came of a job."""

    value: T


@dataclass(frozen=True)
class Failed:
    """Why nothing came of it, in one line.  stopped: because somebody wished so."""

    line: str
    stopped: bool = False


class Stopped(KeyboardInterrupt):
    """Raised inside a job that is to end: what treats Ctrl-C with care treats it as well."""


class Work:
    """All jobs of a studio, and their folders under `home`."""

    def __init__(self, home: Path):
        self.home = home
        self._turn = threading.Lock()
        self._numbers = itertools.count(1)
        self._stops: dict[Owner, threading.Event] = {}
        self._folders: dict[Owner, Path] = {}
        self._threads: set[threading.Thread] = set()

    def folder(self, owner: Owner) -> Path:
        """A new folder for what this room of this page makes; the one before it is removed."""
        self._forget(owner)
        path = self.home / f"{owner[1]}-{next(self._numbers)}"
        path.mkdir()
        self._folders[owner] = path
        return path

    def latest(self, owner: Owner) -> Path:
        """The folder that this room of this page wrote to last.  Raises InputError where there is none."""
        if owner not in self._folders:
            raise InputError("there is nothing to go on with yet: run the first step of this room before")
        return self._folders[owner]

    def run(self, job: Callable[[Progress], T], owner: Owner) -> Iterator[Step | Done[T] | Failed]:
        """Start a job and tell of it until it ends; a consumer that goes away stops it."""
        self.stop(owner)
        stop = self._stops[owner] = threading.Event()
        said: SimpleQueue[Step | Done[T] | Failed] = SimpleQueue()

        def progress(stage: str, done: int, total: int) -> None:
            if stop.is_set():
                raise Stopped
            said.put(Step(stage, done, total))

        def act() -> None:
            try:
                while not self._turn.acquire(timeout=PAUSE):
                    progress("waiting for other work to end", 0, 0)
                try:
                    progress("starting", 0, 0)
                    said.put(Done(job(progress)))
                finally:
                    self._turn.release()
            except Stopped:
                said.put(Failed("stopped", stopped=True))
            except Exception as problem:
                said.put(Failed(self.plainly(problem)))
            finally:
                self._threads.discard(thread)

        thread = threading.Thread(target=act, name=f"studio {owner[1]}", daemon=True)
        self._threads.add(thread)
        thread.start()
        try:
            latest: Step | Done[T] | Failed = Step("starting")
            yield latest
            while isinstance(latest, Step):
                before = latest
                try:
                    latest = said.get(timeout=PAUSE)
                    while isinstance(latest, Step):
                        latest = said.get_nowait()
                except Empty:
                    pass
                if stop.is_set() and isinstance(latest, Step):
                    latest = Step("stopping")
                if latest != before:
                    yield latest
        finally:
            stop.set()

    def stop(self, owner: Owner) -> None:
        """Let the job of a room end as soon as it can."""
        if owner in self._stops:
            self._stops[owner].set()

    def leave(self, page: str) -> None:
        """A page was closed: stop what it runs, and remove what it made."""
        for owner in [owner for owner in self._stops if owner[0] == page]:
            self.stop(owner)
            del self._stops[owner]
        for owner in [owner for owner in self._folders if owner[0] == page]:
            self._forget(owner)

    def close(self) -> None:
        """Stop everything, and wait a little for it."""
        for stop in self._stops.values():
            stop.set()
        for thread in list(self._threads):
            thread.join(LEAVE)

    def plainly(self, problem: Exception) -> str:
        """A problem in one line, files by their own names; the traceback of a bug goes to the terminal."""
        status, line = told(problem, report="; the terminal shows more: please report it")
        if status == 1:
            traceback.print_exception(problem)
        return self.named(line)

    def named(self, text: str) -> str:
        """Text on one line: without the studio's own folders in its paths, options called as the page calls them."""
        text = re.sub(r"--[a-z-]+", lambda flag: FIELDS.get(flag[0], flag[0]), text)
        text = re.sub(r"(?:[^\s\"']*/)?(?:[a-z]+-\d+/in|uploads/[0-9a-f]+)/", "", " ".join(text.split()))
        return text.replace(f"{self.home.absolute()}/", "")

    def _forget(self, owner: Owner) -> None:
        if path := self._folders.pop(owner, None):
            shutil.rmtree(path, ignore_errors=True)


def gathered(files: Iterable[str | os.PathLike[str]] | None, folder: Path) -> list[str]:
    """Uploaded files under their own names in one folder, so that a world file lies beside its picture.

    Returns what a run takes as its paths: the one file, or the folder.  Raises InputError where there is none.
    """
    within = folder / UPLOADED
    within.mkdir()
    count = 0
    for file in map(Path, files or ()):
        place = within / file.name
        for number in itertools.count(2):
            if not place.exists():
                break
            place = within / f"{file.stem}-{number}{file.suffix}"
        try:
            os.link(file, place)
        except OSError:
            shutil.copyfile(file, place)
        count += 1
    if not count:
        raise InputError("nothing to look at yet: drop a file above, or take the example")
    return [str(next(within.iterdir()))] if count == 1 else [str(within)]
