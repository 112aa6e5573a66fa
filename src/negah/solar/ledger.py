"""The ledger: which windows are finished and what was found in them, in one SQLite file that survives a kill -9.

Windows are committed chunk by chunk and in order, each chunk in one transaction, so "finished" is one number: every
window before it is in the ledger, none after it.  All that a survey writes is derived from the ledger, so a survey that
was stopped and continued ends with the same files as one that was not.

    about    what the figures depend on (the fingerprint), the time spent
    inputs   name, size and time of change of every input, so that an exchanged file is noticed
    sources  the plan: one JSON object per raster
    windows  one row per window; cells are the panel fractions of its patches as float16, NULL where all are zero
    failures inputs and windows that could not be read, with the reason
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from negah.errors import OutputError
from negah.solar.plan import Failure, Plan, PlannedSource

FORMAT = 1
FILE = "ledger.sqlite"

SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE inputs (position INTEGER PRIMARY KEY, name TEXT, size INTEGER, changed INTEGER);
CREATE TABLE sources (position INTEGER PRIMARY KEY, plan TEXT);
CREATE TABLE windows (id INTEGER PRIMARY KEY, source INTEGER, status TEXT, probability REAL,
                      area_m2 REAL, area_low REAL, area_high REAL, cells BLOB);
CREATE TABLE failures (source INTEGER, name TEXT, window INTEGER, reason TEXT);
"""

Fingerprint = Mapping[str, str | int | float | bool | None]


class Input(NamedTuple):
    """An input as it was when the survey began; size and changed are -1 where they cannot be known (a URL)."""

    name: str
    size: int
    changed: int  # nanoseconds since the epoch


class Window(NamedTuple):
    """A finished window.  probability and areas are None unless it was scored; cells is None where all are zero."""

    id: int
    source: int  # position of its source
    status: str  # ok, gsd-out-of-range, nodata, failed, outside-aoi
    probability: float | None = None
    area_m2: float | None = None
    area_low: float | None = None
    area_high: float | None = None
    cells: bytes | None = None

    def fractions(self, cells: int) -> Float[ndarray, " patch"]:
        """Panel fraction of each of the window's patches, float32."""
        if self.cells is None:
            return np.zeros(cells, np.float32)
        return np.frombuffer(self.cells, np.float16).astype(np.float32)


def pack(fractions: Float[ndarray, " patch"]) -> bytes | None:
    """Fractions as they are stored; float16 keeps them to within 0.0005."""
    return fractions.astype(np.float16).tobytes() if fractions.any() else None


class Ledger:
    """An open ledger.  Use as a context manager; one process at a time.

    Every method raises OutputError when the file cannot be read or written (a full disk, another process, damage).
    """

    def __init__(self, folder: Path):
        self.path = folder / FILE
        try:
            self._db = sqlite3.connect(self.path, timeout=1.0, isolation_level=None)
            # An exclusive lock, held until the end: two surveys in one folder would mix their windows.
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            # In WAL mode NORMAL loses at most the last chunks on power failure, never consistency.
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("BEGIN EXCLUSIVE")
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._problem(error) from error

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Fold the write-ahead log back into the one file, as far as the disk allows, and let go of it."""
        try:
            self._db.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.Error:
            pass  # the log stays beside the file, and the next open reads both
        self._db.close()

    @classmethod
    def begun(cls, folder: Path) -> bool:
        """Whether a survey is recorded in a folder."""
        if not (folder / FILE).exists():
            return False
        with cls(folder) as ledger:
            return bool(ledger._one("SELECT count(*) FROM sqlite_master WHERE name = 'about'"))

    def begin(self, fingerprint: Fingerprint, inputs: Sequence[Input], plan: Plan) -> None:
        """Record a new survey."""
        with self._transaction():
            for statement in SCHEMA.strip().split(";"):
                self._db.execute(statement)
            about = {"format": FORMAT, "seconds": 0.0, "fingerprint": dict(fingerprint)}
            self._db.executemany("INSERT INTO about VALUES (?, ?)", [(k, json.dumps(v)) for k, v in about.items()])
            self._db.executemany("INSERT INTO inputs VALUES (?, ?, ?, ?)", ((i, *x) for i, x in enumerate(inputs)))
            self._db.executemany(
                "INSERT INTO sources VALUES (?, ?)", ((s.position, json.dumps(s.as_dict())) for s in plan.sources)
            )
            self._db.executemany(
                "INSERT INTO failures VALUES (?, ?, NULL, ?)", ((f.position, f.source, f.reason) for f in plan.failures)
            )

    def difference(self, fingerprint: Fingerprint, inputs: Sequence[Input]) -> str | None:
        """What of the recorded survey differs from the one that is asked for now, in words; None if nothing."""
        if self._about("format") != FORMAT:
            return "it was written by another version of negah"
        old = self._about("fingerprint")
        for key in {**old, **fingerprint}:
            if old.get(key) != fingerprint.get(key):
                return f"{key} was {old.get(key)} there and is {fingerprint.get(key)} now"
        count = self._one("SELECT count(*) FROM inputs")
        if count != len(inputs):
            return f"it had {count} inputs and there are {len(inputs)} now"
        for now, was in zip(inputs, self._all("SELECT name, size, changed FROM inputs ORDER BY position"), strict=True):
            if now.name != was[0]:
                return f"it had the input {was[0]}, where there is {now.name} now"
            if now != Input(*was):
                return f"the input {now.name} has changed since"
        return None

    def plan(self) -> Plan:
        """The recorded plan."""
        rows = self._all("SELECT plan FROM sources ORDER BY position")
        failed = self._all("SELECT source, name, reason FROM failures WHERE window IS NULL ORDER BY source")
        return Plan(
            [PlannedSource.from_dict(json.loads(plan)) for (plan,) in rows],
            [Failure(position, name, 0, reason) for position, name, reason in failed],
        )

    @property
    def finished(self) -> int:
        """Number of finished windows: 0 to this, without a gap."""
        return self._one("SELECT coalesce(max(id) + 1, 0) FROM windows")

    @property
    def seconds(self) -> float:
        """Time spent on the finished windows, over all the runs that it took."""
        return self._about("seconds")

    def commit(self, windows: Sequence[Window], failed: Iterable[tuple[int, str, int, str]], seconds: float) -> None:
        """Record a chunk's windows, the (position, source, window, reason) of those that failed, and the time taken."""
        with self._transaction():
            self._db.executemany("INSERT INTO windows VALUES (?, ?, ?, ?, ?, ?, ?, ?)", windows)
            self._db.executemany("INSERT INTO failures VALUES (?, ?, ?, ?)", failed)
            self._db.execute("UPDATE about SET value = ? WHERE key = 'seconds'", (json.dumps(self.seconds + seconds),))

    def windows(self, first: int = 0, end: int | None = None) -> Iterator[Window]:
        """Finished windows in order, read as they are asked for."""
        rows = self._all(
            "SELECT id, source, status, probability, area_m2, area_low, area_high, cells FROM windows "
            "WHERE id >= ? AND id < ? ORDER BY id",
            first, self.finished if end is None else end,
        )  # fmt: skip
        return (Window(*row) for row in rows)

    def failures(self) -> list[Failure]:
        """What failed, an entry per source, with the first reason."""
        rows = self._all(
            # beside min(), SQLite takes the bare columns from the row that holds the minimum
            "SELECT source, name, count(window), reason, min(rowid) FROM failures GROUP BY source ORDER BY source"
        )
        return [Failure(*row[:4]) for row in rows]

    def counts(self) -> dict[str, int]:
        """Windows by status."""
        return dict(self._all("SELECT status, count(*) FROM windows GROUP BY status ORDER BY status"))

    def found(self, threshold: float) -> int:
        """Windows with panels: of a probability of at least `threshold`."""
        return self._one("SELECT count(*) FROM windows WHERE probability >= ?", threshold)

    def most_certain(self, threshold: float, count: int) -> list[Window]:
        """Windows with panels, the most probable first."""
        return self._ranked("probability >= ? ORDER BY probability DESC, id", threshold, count)

    def least_certain(self, threshold: float, count: int) -> list[Window]:
        """Windows with panels, those nearest to the threshold first."""
        return self._ranked("probability >= ? ORDER BY probability, id", threshold, count)

    def probabilities(self, most: int) -> list[float]:
        """Probabilities of the scored windows; evenly thinned if there are more than `most`."""
        step = max(1, -(-self.finished // most))
        return [p for (p,) in self._all(
            "SELECT probability FROM windows WHERE probability IS NOT NULL AND id % ? = 0 ORDER BY id", step
        )]  # fmt: skip

    def _ranked(self, where: str, *values: float) -> list[Window]:
        columns = "id, source, status, probability, area_m2, area_low, area_high, cells"
        return [Window(*row) for row in self._all(f"SELECT {columns} FROM windows WHERE {where} LIMIT ?", *values)]

    def _about(self, key: str):
        return json.loads(self._one("SELECT value FROM about WHERE key = ?", key))

    def _one(self, query: str, *values: object):
        return next(self._all(query, *values))[0]

    def _all(self, query: str, *values: object) -> Iterator[tuple]:
        try:
            yield from self._db.execute(query, values)
        except sqlite3.Error as error:
            raise self._problem(error) from error

    def _transaction(self) -> "_Transaction":
        return _Transaction(self)

    def _problem(self, error: sqlite3.Error) -> OutputError:
        text = str(error)
        if "disk is full" in text or "disk I/O" in text:
            return OutputError(
                f"the disk of {self.path.parent} is full or failing ({text}): free some space and give the same "
                "command again, which continues where this one stopped"
            )
        if "locked" in text:
            return OutputError(f"another process writes to {self.path.parent}: wait for it, or choose another --out")
        return OutputError(f"{self.path} cannot be used ({text}): choose another --out, or --overwrite to start afresh")


class _Transaction:
    """All or nothing; a KeyboardInterrupt inside rolls back like any other exception."""

    def __init__(self, ledger: Ledger):
        self._ledger = ledger
        self._db = ledger._db

    def __enter__(self) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise self._ledger._problem(error) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
                return
        except sqlite3.Error as problem:
            error = problem
        try:
            self._db.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # SQLite has rolled back on its own (a full disk)
        if isinstance(error, sqlite3.Error):
            raise self._ledger._problem(error) from error
