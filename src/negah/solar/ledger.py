"""The ledger: which windows are finished and what was found in them, in one SQLite file that survives a kill -9.

Windows are committed chunk by chunk and in order, each chunk in one transaction, so "finished" is one number: every
window before it is in the ledger, none after it.  All that a survey writes is derived from the ledger, so a survey that
was stopped and continued ends with the same files as one that was not.  A finished window that failed is read again by
the next run; its row says that it failed until its chunk is committed once more.

    about    what the figures depend on (the fingerprint), the time spent
    inputs   name, size and time of change of every input, so that an exchanged file is noticed
    sources  the plan: one JSON object per raster
    windows  one row per window; cells are the panel fractions of its patches as float16, NULL where all are zero;
             factor is what they are multiplied with, so that cells of panels carry the whole area;
             abstained says why the area should not be relied on; feature is the backbone's summary of the window as
             float16, kept where the survey is refined, and refined the probability that came of it
    failures inputs and windows that could not be read, with the reason
    looks    what a model of pictures and words saw at a window: its vector as float16 (see `negah.solar.also`)
"""

import json
import math
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from negah.errors import OutputError
from negah.solar.plan import Failure, Plan, PlannedSource

FORMAT = 6
FILE = "ledger.sqlite"

SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE inputs (position INTEGER PRIMARY KEY, name TEXT, size INTEGER, changed INTEGER);
CREATE TABLE sources (position INTEGER PRIMARY KEY, plan TEXT);
CREATE TABLE windows (id INTEGER PRIMARY KEY, source INTEGER, status TEXT, probability REAL,
                      area_m2 REAL, area_low REAL, area_high REAL, cells BLOB, factor REAL,
                      abstained TEXT, feature BLOB, refined REAL);
CREATE TABLE failures (source INTEGER, name TEXT, window INTEGER, reason TEXT);
CREATE INDEX failed ON failures (window);
CREATE TABLE looks (window INTEGER PRIMARY KEY, vector BLOB);
"""

REASONS = "; "  # between the reasons for abstaining
UNLIKE = "ground size out of range"  # the reason that no range holds for: what it was made on had other pixels
CUT = "cut by the image's edge"  # the reason that says nothing against what is there
# As a window is read: without its feature, which is large and read apart.
COLUMNS = "id, source, status, probability, area_m2, area_low, area_high, cells, factor, abstained, NULL, refined"

Fingerprint = Mapping[str, str | int | float | bool | None]


class Input(NamedTuple):
    """An input as it was when the survey took it up; size and changed are -1 where they cannot be known (a URL)."""

    name: str
    size: int
    changed: int  # nanoseconds since the epoch


class Window(NamedTuple):
    """A finished window.

    probability and areas are None unless it was scored, area_low and area_high also where the detector's areas were
    never compared with true ones.  cells is None where all are zero; factor makes areas of them, see `survey`.
    abstained: why the area should not be relied on, None where nothing speaks against it.
    feature: written only, see `Ledger.features`.  refined: probability in the light of its neighbours, if asked for.
    """

    id: int
    source: int  # position of its source
    status: str  # ok, gsd-out-of-range, nodata, failed, outside-aoi
    probability: float | None = None
    area_m2: float | None = None
    area_low: float | None = None
    area_high: float | None = None
    cells: bytes | None = None
    factor: float | None = None
    abstained: str | None = None
    feature: bytes | None = None
    refined: float | None = None

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
            about = {"format": FORMAT, "seconds": 0.0, "fingerprint": dict(fingerprint), "looks": None}
            self._db.executemany("INSERT INTO about VALUES (?, ?)", [(k, json.dumps(v)) for k, v in about.items()])
            self._db.executemany("INSERT INTO inputs VALUES (?, ?, ?, ?)", ((i, *x) for i, x in enumerate(inputs)))
            self._add(plan)

    def difference(self, fingerprint: Fingerprint, inputs: Sequence[Input]) -> str | None:
        """What of the recorded survey differs from the one that is asked for now, in words; None if nothing.

        An input that failed, whole or in part, may have changed: it may have been repaired.
        """
        if self._about("format") != FORMAT:
            return "it was written by another version of negah"
        names = [name for (name,) in self._all("SELECT name FROM inputs ORDER BY position")]
        for now, was in zip(inputs, names):
            if now.name != was:
                same = Path(was).name == Path(now.name).name
                hint = "; if it is the same file, name it as you did then" if same else ""
                return f"it had the input {was}, where there is {now.name} now{hint}"
        if len(names) != len(inputs):
            return f"it had {len(names):,} input{'s' * (len(names) != 1)} and there are {len(inputs):,} now"
        old, plan = self._about("fingerprint"), self.plan()
        for key in {**old, **fingerprint}:
            if key == "gsd" and not plan.failures and all(source.crs for source in plan.sources):
                continue  # all images said it themselves, so nothing depends on it
            if old.get(key) != fingerprint.get(key):
                was, now = ("not given" if each.get(key) is None else each[key] for each in (old, fingerprint))
                return f"{key} was {was} there and is {now} now"
        failed = {failure.position for failure in self.failures()}
        for position in self.changed(inputs):
            if position not in failed:
                return f"the input {inputs[position].name} has changed since"
        return None

    def changed(self, inputs: Sequence[Input]) -> list[int]:
        """Positions of the inputs whose size or time of change is not the recorded one."""
        recorded = self._all("SELECT size, changed FROM inputs ORDER BY position")
        return [k for k, (now, was) in enumerate(zip(inputs, recorded, strict=True)) if (now.size, now.changed) != was]

    def plan(self) -> Plan:
        """The recorded plan; what failed of its windows is to be read again."""
        rows = self._all("SELECT plan FROM sources")
        failed = self._all("SELECT source, name, reason FROM failures WHERE window IS NULL ORDER BY source")
        again = self._all("SELECT window FROM failures WHERE window IS NOT NULL")
        return Plan(
            sorted((PlannedSource.from_dict(json.loads(plan)) for (plan,) in rows), key=lambda source: source.first),
            [Failure(position, name, 0, reason) for position, name, reason in failed],
            frozenset(window for (window,) in again),
        )

    def take_up(self, inputs: Sequence[Input], unopened: Plan, repaired: Iterable[PlannedSource]) -> None:
        """Record another attempt at what failed.

        unopened: what is now known of the sources that could not be opened: those that now can, numbered behind all
        others, and those that still cannot.  repaired: sources of the plan whose file has changed since some of their
        windows failed: all of their windows count as failed.
        """
        with self._transaction():
            self._db.executemany(
                "UPDATE inputs SET size = ?, changed = ? WHERE position = ?",
                [(inputs[k].size, inputs[k].changed, k) for k in self.changed(inputs)],
            )
            self._db.execute("DELETE FROM failures WHERE window IS NULL")
            self._add(unopened)
            for source in repaired:
                mine = source.first, source.first + len(source.layout)
                self._db.execute("DELETE FROM failures WHERE source = ?", (source.position,))
                self._db.execute("DELETE FROM looks WHERE window >= ? AND window < ?", mine)
                self._db.execute(
                    "UPDATE windows SET status = 'failed', probability = NULL, area_m2 = NULL, area_low = NULL, "
                    "area_high = NULL, cells = NULL, factor = NULL, abstained = NULL, feature = NULL, refined = NULL "
                    "WHERE id >= ? AND id < ? AND status != 'outside-aoi'", mine,
                )  # fmt: skip
                self._db.execute(
                    "INSERT INTO failures SELECT source, ?, id, 'its file has changed and was not read again yet' "
                    "FROM windows WHERE id >= ? AND id < ? AND status = 'failed'", (source.name, *mine),
                )  # fmt: skip

    @property
    def finished(self) -> int:
        """Number of finished windows: 0 to this, without a gap."""
        return self._one("SELECT coalesce(max(id) + 1, 0) FROM windows")

    @property
    def seconds(self) -> float:
        """Time spent on the finished windows, over all the runs that it took."""
        return self._about("seconds")

    def commit(self, windows: Sequence[Window], failed: Iterable[tuple[int, str, int, str]], seconds: float) -> None:
        """Record a chunk's windows, the (position, source, window, reason) of those that failed, and the time taken.

        Of a chunk that is finished already, only the windows that had failed are replaced: what was read once stays,
        even if it cannot be read any more.
        """
        with self._transaction():
            if windows[0].id < self.finished:
                mine = windows[0].id, windows[-1].id
                self._db.execute("DELETE FROM windows WHERE id BETWEEN ? AND ? AND status = 'failed'", mine)
                self._db.execute("DELETE FROM failures WHERE window BETWEEN ? AND ?", mine)
                kept = {k for (k,) in self._all("SELECT id FROM windows WHERE id BETWEEN ? AND ?", *mine)}
                windows = [window for window in windows if window.id not in kept]
                failed = [failure for failure in failed if failure[2] not in kept]
            self._db.executemany("INSERT INTO windows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", windows)
            self._db.executemany("INSERT INTO failures VALUES (?, ?, ?, ?)", failed)
            self._db.execute("UPDATE about SET value = ? WHERE key = 'seconds'", (json.dumps(self.seconds + seconds),))

    def look_with(self, model: str) -> None:
        """From now on what was seen is this model's; what another one saw is forgotten."""
        if self._about("looks") != model:
            with self._transaction():
                self._db.execute("DELETE FROM looks")
                self._db.execute("UPDATE about SET value = ? WHERE key = 'looks'", (json.dumps(model),))

    def unseen(self, first: int, end: int) -> list[int]:
        """Which of the windows [first, end) were scored but not looked at."""
        return [k for k, vector in self.looks(first, end) if vector is None]

    def see(self, looks: Iterable[tuple[int, bytes]]) -> None:
        """Record what was seen at some windows."""
        with self._transaction():
            self._db.executemany("INSERT INTO looks VALUES (?, ?)", looks)

    def looks(self, first: int, end: int) -> Iterator[tuple[int, bytes | None]]:
        """What was seen at each of the windows [first, end) that were scored; None where nothing was, so far."""
        return self._all(
            "SELECT id, vector FROM windows LEFT JOIN looks ON window = id "
            "WHERE id >= ? AND id < ? AND probability IS NOT NULL ORDER BY id", first, end,
        )  # fmt: skip

    @property
    def looked(self) -> tuple[int, int]:
        """Number of windows that were looked at, and that were scored."""
        return self._one("SELECT count(*) FROM looks"), self._one(
            "SELECT count(*) FROM windows WHERE probability IS NOT NULL"
        )

    def features(self, first: int, end: int) -> Iterator[tuple[int, float, bytes]]:
        """Number, probability and feature of those of the windows [first, end) that were scored."""
        return self._all(
            "SELECT id, probability, feature FROM windows "
            "WHERE id >= ? AND id < ? AND probability IS NOT NULL ORDER BY id", first, end,
        )  # fmt: skip

    def refine(self, refined: Iterable[tuple[int, float]]) -> None:
        """Record what came of the neighbours, by number of the window."""
        with self._transaction():
            self._db.executemany("UPDATE windows SET refined = ? WHERE id = ?", ((p, k) for k, p in refined))

    def windows(self, first: int = 0, end: int | None = None) -> Iterator[Window]:
        """Finished windows in order, read as they are asked for."""
        rows = self._all(
            f"SELECT {COLUMNS} FROM windows "
            "WHERE id >= ? AND id < ? ORDER BY id",
            first, self.finished if end is None else end,
        )  # fmt: skip
        return (Window(*row) for row in rows)

    def probability_of(self, source: PlannedSource) -> float:
        """The highest of a source's windows; NaN where none has one."""
        found = self._one("SELECT max(probability) FROM windows WHERE id >= ? AND id < ?",
                          source.first, source.first + len(source.layout))  # fmt: skip
        return math.nan if found is None else found

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

    def abstained(self) -> tuple[dict[str, int], float]:
        """Windows by each reason for which their area should not be relied on; their share of all windows' area."""
        counts: Counter[str] = Counter()
        areas = []
        for reasons, area in self._all("SELECT abstained, area_m2 FROM windows WHERE abstained IS NOT NULL"):
            counts.update(reasons.split(REASONS))
            areas.append(area)
        every = math.fsum(self.areas())
        # fsum, and rounded: the same whatever the order and the batches in which windows came in
        share = round(math.fsum(areas) / every, 6) if every else 0.0
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))), share

    def doubts(self) -> dict[str, float]:
        """The share of all windows' area that is abstained for each reason; one window may count for several."""
        against: defaultdict[str, list[float]] = defaultdict(list)
        for reasons, area in self._all("SELECT abstained, area_m2 FROM windows WHERE abstained IS NOT NULL"):
            for reason in reasons.split(REASONS):
                against[reason].append(area)
        every = math.fsum(self.areas())
        return {reason: math.fsum(areas) / every for reason, areas in against.items()} if every else {}

    def found(self, threshold: float) -> int:
        """Windows with panels: of a probability of at least `threshold`."""
        return self._one("SELECT count(*) FROM windows WHERE probability >= ?", threshold)

    def found_refined(self, threshold: float, level: float) -> tuple[int, int, int]:
        """Windows whose refined probability is at least `level`, and of these and of the others how many turned.

        threshold: of the detector's own probability: windows that lay below it and count now, or the other way round.
        """
        count = "SELECT count(*) FROM windows WHERE refined "
        return (
            self._one(f"{count} >= ?", level), self._one(f"{count} >= ? AND probability < ?", level, threshold),
            self._one(f"{count} < ? AND probability >= ?", level, threshold),
        )  # fmt: skip

    def most_certain(self, threshold: float, count: int) -> list[Window]:
        """Windows with panels, the most probable first."""
        return self._ranked("probability >= ? ORDER BY probability DESC, id", threshold, count)

    def least_certain(self, threshold: float, count: int) -> list[Window]:
        """Windows with panels, those nearest to the threshold first."""
        return self._ranked("probability >= ? ORDER BY probability, id DESC", threshold, count)

    def extremes(self, threshold: float, count: int) -> tuple[list[Window], list[Window]]:
        """At most so many of the most and of the least certain windows with panels, none of them in both."""
        found = self.found(threshold)
        least = min(count, found // 2)
        most = min(count, found - least)
        return self.most_certain(threshold, most), self.least_certain(threshold, least)

    def areas(self) -> Float[ndarray, " n"]:
        """Panel areas of the windows that have some, in m2."""
        return np.array([area for (area,) in self._all("SELECT area_m2 FROM windows WHERE area_m2 > 0")], dtype=float)

    def probabilities(self, most: int) -> list[float]:
        """Probabilities of the scored windows; evenly thinned if there are more than `most`."""
        step = max(1, -(-self.finished // most))
        return [p for (p,) in self._all(
            "SELECT probability FROM windows WHERE probability IS NOT NULL AND id % ? = 0 ORDER BY id", step
        )]  # fmt: skip

    def _add(self, plan: Plan) -> None:
        self._db.executemany(
            "INSERT INTO sources VALUES (?, ?)", ((s.position, json.dumps(s.as_dict())) for s in plan.sources)
        )
        self._db.executemany(
            "INSERT INTO failures VALUES (?, ?, NULL, ?)", ((f.position, f.source, f.reason) for f in plan.failures)
        )

    def _ranked(self, where: str, *values: float) -> list[Window]:
        return [Window(*row) for row in self._all(f"SELECT {COLUMNS} FROM windows WHERE {where} LIMIT ?", *values)]

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
        if "unable to open" in text or "readonly" in text:
            return OutputError(f"{self.path} cannot be written ({text}): choose another --out, or mend its permissions")
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
