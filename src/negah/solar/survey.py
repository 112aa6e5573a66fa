"""The loop of a survey: windows are read ahead by threads, scored batch by batch, and committed to the ledger.

    plan -> chunks -> [read]*threads -> [score]*streams -> ledger

Only the plan decides what shares a batch, and chunks are committed in order, so the loop can be killed at any moment
and started again.  Nothing a file contains can end it: what cannot be read is recorded with the reason.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from queue import SimpleQueue

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray
from torch import Tensor

from negah.images.raster import Raster
from negah.images.sources import Source
from negah.nn.heap import give_back
from negah.probe.attentive import Reading
from negah.progress import Progress, silent
from negah.solar.area import Cells, glances, look_at
from negah.solar.calibration import Calibration
from negah.solar.footprint import FirstEstimate, footprint, mean_footprint
from negah.solar.ledger import CUT, REASONS, UNLIKE, Ledger, Window, pack
from negah.solar.merge import LEVEL
from negah.solar.plan import Chunk, Plan, PlannedSource, chunks
from negah.solar.regions import Region

Scorer = Callable[..., Reading]
"""Anything with the contract of `Detector.forward`; it is called in inference mode, with uint8 images on `device`."""

Scored = tuple[list[Window], list[tuple[int, str, int, str]]]
"""Ledger rows of a chunk: its windows, and what failed."""

AHEAD = 3  # chunks that may be read before they are scored: the bound on memory
STREAMS = 8  # chunks that are scored at a time, at most
DIFFUSE = 0.9  # share of the patches from which attention that is spread over them points nowhere
POINTS = 9  # patches from which attention can point at all
PER_TASK = 8  # windows per reading task: enough to hide the queue's cost, few enough to keep the threads even


@dataclass(frozen=True)
class Measure:
    """How readings become figures.

    threshold: probability from which a window has panels.  area_ratio: factors that bound an area at 90 %, if known.
    calibration: takes the place of both the first estimate and these factors.
    features: whether what the backbone says of a window is kept, for a refiner.
    """

    threshold: float
    area_ratio: tuple[float, float] | None = None
    calibration: Calibration | None = None
    features: bool = False

    @property
    def sizes(self) -> Calibration | FirstEstimate:
        """What is said of areas and their bounds."""
        return self.calibration or FirstEstimate(self.area_ratio)

    @property
    def level(self) -> float:
        """Panel fraction from which a cell belongs to a panel."""
        return LEVEL if self.calibration is None else self.calibration.cells.level

    @property
    def fine(self) -> int:
        """Cells along a patch."""
        return 1 if self.calibration is None else self.calibration.cells.fine


@dataclass
class Loaded:
    """A chunk's windows in memory, in the order of the scored ones."""

    rgb: UInt8[ndarray, "batch h w 3"]
    valid: dict[int, Float[ndarray, " patch"]]  # share of valid pixels per patch, only where some are not
    empty: set[int]  # without a valid pixel
    failed: dict[int, str]  # why it could not be read


def score(
    plan: Plan,
    sources: Sequence[Source],
    scorers: Sequence[Scorer],
    ledger: Ledger,
    measure: Measure,
    *,
    patch: int,
    batch: int,
    region: Region | None = None,
    threads: int = 2,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> None:
    """Score every window that is not in the ledger yet.

    Args:
        sources: as given to `make_plan`, failed ones included.
        scorers: one detector, or several whose footprints are averaged.
        batch: most windows per batch; part of what makes two runs equal.
        threads: that read and decode.
        progress: told of the windows after every chunk.

    Raises OutputError when the ledger cannot be written.
    """
    device = torch.device(device)
    done = ledger.finished
    progress("windows", done, plan.windows)
    # On CPUs one stream a core: small matrices gain little from sharing one, and lose much by waiting for each other.
    cores = torch.get_num_threads()
    streams = min(cores, STREAMS) if device.type == "cpu" else 1
    if device.type == "cpu":
        keep_freed_memory()

    def task(chunk: Chunk, loaded: Loaded) -> Scored:
        with torch.inference_mode():
            return _score_chunk(chunk, loaded, scorers, measure, patch=patch, device=device)

    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, cores)
        stack.callback(cv2.setNumThreads, cv2.getNumThreads())
        cv2.setNumThreads(1)  # GrabCut's own threads would take the cores from the streams
        stack.callback(give_back)
        readers = stack.enter_context(Readers(sources, patch=patch, threads=threads))
        pool = stack.enter_context(ThreadPoolExecutor(streams, "score", torch.set_num_threads, (cores // streams,)))
        began = time.monotonic()
        waiting: deque[tuple[Chunk, Future[Scored]]] = deque()

        def commit() -> None:
            nonlocal done, began
            chunk, scored = waiting.popleft()
            windows, failed = scored.result()
            now = time.monotonic()
            ledger.commit(windows, failed, now - began)
            began = now
            done += len(chunk)
            progress("windows", done, plan.windows)

        for chunk, loaded in readers.read_ahead(chunks(plan, batch=batch, region=region, start=done)):
            waiting.append((chunk, pool.submit(task, chunk, loaded)))
            if len(waiting) > streams:
                commit()
        while waiting:
            commit()


def keep_freed_memory() -> None:
    """Let the process keep what a batch frees for the next one, up to some tens of megabytes.

    glibc returns large blocks to the system at once, and every batch would have its pages made anew.  It stops doing so
    for blocks up to the largest that was ever freed, 32 MB at most (mallopt(3), on M_MMAP_THRESHOLD).  Other systems
    lose nothing by this.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def fast_bf16(device: torch.device | str) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware; elsewhere it is emulated, and slower than fp32."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # missing before torch.cpu could say: then nothing is known, and fp32 is always right
    can = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(can.get("avx512_bf16") or can.get("amx_bf16") or can.get("bf16"))


class Readers:
    """Threads that read windows ahead.

    Each has a raster of its own open, and closes it itself: GDAL's settings belong to the thread that made them.
    """

    def __init__(self, sources: Sequence[Source], *, patch: int, threads: int):
        self._sources = sources
        self._patch = patch
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._stopped = False
        self._threads = [threading.Thread(target=self._work, name=f"read {k}", daemon=True) for k in range(threads)]

    def __enter__(self) -> "Readers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        for _thread in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def read_ahead(self, todo: Iterator[Chunk]) -> Iterator[tuple[Chunk, Loaded]]:
        """Chunks with their pixels, in order; at most AHEAD of them wait to be scored."""
        queue: deque[tuple[Chunk, Loaded, list[Task]]] = deque()
        for chunk in todo:
            queue.append(self._start(chunk))
            if len(queue) > AHEAD:
                yield _finish(*queue.popleft())
        while queue:
            yield _finish(*queue.popleft())

    def _start(self, chunk: Chunk) -> tuple[Chunk, Loaded, "list[Task]"]:
        looked_at = [(source, index) for source, index, look in chunk.windows if look]
        loaded = Loaded(np.zeros((len(looked_at), *chunk.shape, 3), np.uint8), {}, set(), {})
        tasks = [
            Task(loaded, first, looked_at[first : first + PER_TASK], chunk.shape)
            for first in range(0, len(looked_at), PER_TASK)
        ]
        for task in tasks:
            self._tasks.put(task)
        return chunk, loaded, tasks

    def _work(self) -> None:
        hand = Hand(self._sources)
        while (task := self._tasks.get()) is not None and not self._stopped:
            self._fill(task, hand)
            task.done.set()
        hand.put_down()

    def _fill(self, task: "Task", hand: "Hand") -> None:
        loaded = task.loaded
        for place, (source, index) in enumerate(task.windows, task.first):
            try:
                rgb, valid = hand.take(source.position).read(source.layout.box(index), task.shape)
            except Exception as error:  # whatever a damaged file makes a decoder raise: the survey goes on
                hand.put_down()
                loaded.failed[place] = " ".join(str(error).split()) or type(error).__name__
                continue
            loaded.rgb[place] = rgb
            if not valid.all():
                loaded.valid[place] = patch_means(valid, self._patch)
                if not valid.any():
                    loaded.empty.add(place)


@dataclass(eq=False)
class Task:
    """Some windows of a chunk for one thread to read.  first: place of the first among the chunk's."""

    loaded: Loaded
    first: int
    windows: list[tuple[PlannedSource, int]]
    shape: tuple[int, int]
    done: threading.Event = field(default_factory=threading.Event)


class Hand:
    """The raster that a thread holds open: the last one it read from."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = sources
        self._raster: Raster | None = None
        self._position = -1

    def take(self, position: int) -> Raster:
        """The raster of a source, opened if need be."""
        if self._raster is None or self._position != position:
            self.put_down()
            self._raster, self._position = self._sources[position].open(), position
        return self._raster

    def put_down(self) -> None:
        """Close what is open."""
        if self._raster is not None:
            self._raster.close()
            self._raster = None


def patch_means(valid: Bool[ndarray, "h w"], patch: int) -> Float[ndarray, " patches"]:
    """Share of valid pixels in each patch, row by row."""
    h, w = valid.shape
    means = valid.reshape(h // patch, patch, w // patch, patch).mean(axis=(1, 3), dtype=np.float32)
    return means.reshape(-1)


def _finish(chunk: Chunk, loaded: Loaded, tasks: list[Task]) -> tuple[Chunk, Loaded]:
    for task in tasks:
        task.done.wait()
    return chunk, loaded


def _score_chunk(
    chunk: Chunk, loaded: Loaded, scorers: Sequence[Scorer], measure: Measure, *, patch: int, device: torch.device
) -> tuple[list[Window], list[tuple[int, str, int, str]]]:
    """Ledger rows of a chunk: its windows, and what failed."""
    count = len(loaded.rgb)
    unusable = loaded.empty | loaded.failed.keys()
    if len(unusable) < count:
        # Unusable windows stay in the batch, black: its shape, and with it every bit of the others, is the plan's.
        images = torch.from_numpy(loaded.rgb).to(device).permute(0, 3, 1, 2)
        readings = [scorer(images, above=measure.threshold) for scorer in scorers]
        found = mean_footprint([footprint(reading, threshold=measure.threshold) for reading in readings])
        probability, fraction = found.probability.cpu().numpy(), found.fraction.cpu().numpy()
        if measure.calibration is not None:
            fraction = looked_closer(
                scorers[0], images, loaded.valid, probability, readings[0], measure.calibration.cells,
                threshold=measure.threshold, patch=patch,
            )  # fmt: skip
        else:
            for place, share in loaded.valid.items():
                fraction[place] *= share
        for place in np.flatnonzero(~(np.isfinite(probability) & np.isfinite(fraction).all(1))).tolist():
            loaded.failed.setdefault(place, "the model's reading of this window is not a finite number")
        ground_m2 = _window_areas([(s, i) for s, i, look in chunk.windows if look])
        area = fraction.mean(1, dtype=np.float64) * ground_m2
        gsd_m = np.array([source.gsd_m for source, _, look in chunk.windows if look])
        low, high, factor = _measured(area, fraction, probability, ground_m2, gsd_m, measure)
        spread = spread_of(readings[0].attention).cpu().numpy()
        feature = readings[0].feature if measure.features else None
        feature = None if feature is None else feature.half().cpu().numpy()
    else:
        probability = area = spread = np.zeros(count)
        fraction = np.zeros((count, 1), np.float32)
        low = high = factor = [None] * count
        feature = None

    rows, failed, place = [], [], -1
    for source, index, look in chunk.windows:
        number = source.first + index
        if not look:
            rows.append(Window(number, source.position, "outside-aoi"))
            continue
        place += 1
        if place in loaded.failed:
            rows.append(Window(number, source.position, "failed"))
            failed.append((source.position, source.name, number, loaded.failed[place]))
        elif place in loaded.empty:
            rows.append(Window(number, source.position, "nodata"))
        else:
            status = "ok" if source.in_range else "gsd-out-of-range"
            figures = float(probability[place]), float(area[place]), low[place], high[place]
            doubts = doubts_of(source, index, float(probability[place]), float(spread[place]), fraction[place], measure)
            packed = pack(fraction[place])
            kept = None if feature is None else feature[place].tobytes()
            rows.append(Window(number, source.position, status, *figures, packed, factor[place], doubts, kept))
    return rows, failed


def looked_closer(
    scorer: Scorer, images: UInt8[Tensor, "batch 3 h w"], valid: dict[int, Float[ndarray, " patch"]],
    probability: Float[ndarray, " batch"], reading: Reading, cells: Cells, *, threshold: float, patch: int,
) -> Float[ndarray, "batch cell"]:  # fmt: skip
    """Panel fractions of the cells; of windows that hold panels, each looked at once more, on its own."""
    fraction = np.zeros((len(images), reading.patch_logits.shape[1] * cells.fine**2), np.float32)
    found = np.flatnonzero(probability >= threshold).tolist()
    for place, first in zip(found, glances(reading, found, rows=images.shape[2] // patch), strict=True):
        look = look_at(
            scorer, images[place], first, patch=patch, zoom=cells.zoom, outputs=bool(cells.layer),
            valid=valid.get(place),
        )  # fmt: skip
        fraction[place] = cells.fraction(look).ravel()
    return fraction


def spread_of(attention: Float[Tensor, "batch head patch"]) -> Float[Tensor, " batch"]:
    """Over what share of the patches attention is spread: the exponential of its entropy, 1 where it is even."""
    mass = attention.float().mean(1)
    mass = mass / mass.sum(1, keepdim=True)
    return torch.special.entr(mass).sum(1).exp() / mass.shape[1]


def _measured(
    area: Float[ndarray, " batch"], fraction: Float[ndarray, "batch patch"], probability: Float[ndarray, " batch"],
    ground_m2: Float[ndarray, " batch"], gsd_m: Float[ndarray, " batch"], measure: Measure,
) -> tuple[list, list, list]:  # fmt: skip
    """Bounds of each window's area, and the factor that makes areas of its cells; a calibration changes `area` itself.

    Only cells from the level on belong to a panel, so they carry the whole area of their window, and where there is
    none, the strongest is raised to it: the panels of a survey sum to its windows, where these do not overlap.
    """
    area[:], *bounds = measure.sizes.measure(area, probability.astype(float), gsd_m, ground_m2)
    low, high = ([None if np.isnan(value) else value for value in some.tolist()] for some in bounds)
    enough = np.nextafter(np.float16(measure.level), np.float16(1))  # in the type in which the ledger keeps fractions
    kept = fraction.astype(np.float16)
    faint = np.flatnonzero((area > 0) & (kept < enough).all(1))
    fraction[faint, fraction[faint].argmax(1)] = kept[faint, kept[faint].argmax(1)] = enough
    drawn = np.where(kept >= measure.level, kept, 0).mean(1, dtype=np.float64) * ground_m2
    factor = np.divide(area, drawn, out=np.ones(len(area)), where=drawn > 0)
    return low, high, factor.tolist()


def doubts_of(
    source: PlannedSource, index: int, probability: float, spread: float, fraction: Float[ndarray, " cell"],
    measure: Measure,
) -> str | None:  # fmt: skip
    """Why the area of a window with panels should not be relied on; None where nothing speaks against it."""
    if not fraction.any():
        return None
    calibration, reasons = measure.calibration, []
    if not source.in_range or (calibration is not None and not calibration.covers(source.gsd_m)):
        reasons.append(UNLIKE)
    if calibration is not None and calibration.fit.presence(probability) < 0.5:
        reasons.append("low probability")
    if spread > DIFFUSE and source.layout.x.cells * source.layout.y.cells >= POINTS * measure.fine**2:
        reasons.append("diffuse attention")
    drawn = fraction.reshape(source.layout.y.cells, source.layout.x.cells) >= measure.level
    box = source.layout.box(index)
    edges = (
        (box.row == 0, drawn[0]), (box.row + box.height == source.height, drawn[-1]),
        (box.col == 0, drawn[:, 0]), (box.col + box.width == source.width, drawn[:, -1]),
    )  # fmt: skip
    if any(at_edge and line.any() for at_edge, line in edges):
        reasons.append(CUT)
    return REASONS.join(reasons) or None


def _window_areas(windows: list[tuple[PlannedSource, int]]) -> Float[ndarray, " batch"]:
    """Ground area of each window."""
    areas = np.empty(len(windows))
    start = 0
    while start < len(windows):
        source = windows[start][0]
        end = start
        while end < len(windows) and windows[end][0] is source:
            end += 1
        areas[start:end] = source.windows_m2(np.array([index for _, index in windows[start:end]]))
        start = end
    return areas
