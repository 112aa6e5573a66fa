"""`negah survey --refine neighbours`: what the windows around a window say of it.

Windows are joined across seams of one raster and across rasters: by where they lie on the Earth.  The detector's own
probabilities, and the areas that rest on them, stay as they are; the refined ones stand beside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyproj
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from negah.errors import InputError
from negah.graph import refine as graph
from negah.graph.edges import Edges
from negah.graph.near import nearest
from negah.probe.detector import Detector
from negah.runs.record import digest, fingerprint_of
from negah.solar.ledger import Ledger
from negah.solar.outputs import WGS84
from negah.solar.plan import Plan, PlannedSource
from negah.solar.regions import apply

REFINER = "negah/refine-neighbours"
LEVEL = 0.5  # refined probability from which a window counts as having panels
BLOCK = 65_536  # windows whose features are in memory at a time
AROUND = 12  # windows that a window looks for around itself: the 8 that touch it, and some of overlapping pictures
REACH = 1.5  # of a window's side: centres of windows that touch are nearer than this
EARTH_M = 6_371_000
CAUTION = (
    "It learned from generated towns, and its probabilities are calibrated there; on photographs no gain was seen. "
    "Panels, areas, their calibration and the heat map rest on the detector alone: compare the columns probability and "
    "refined before you rely on either."
)


@dataclass(frozen=True)
class Refining:
    """A refiner and its mark, which tells it from another one.  side_m: of a window."""

    refiner: graph.Refiner
    mark: str
    side_m: float

    @property
    def words(self) -> str:
        """Which it is, for people."""
        return f"{REFINER} {self.mark}"


@dataclass(frozen=True)
class Refined:
    """What came of it, in windows.

    level: refined probability from which a window is found.  gained: found, and not called by the detector alone.
    lost: called by it, and not found.
    """

    model: str
    windows: int
    alone: int  # without a neighbour
    level: float
    found: int
    gained: int
    lost: int

    @property
    def told(self) -> str:
        """In a sentence or two."""
        text = (
            f"In the light of their neighbours {self.found:,} of {self.windows:,} windows have a probability of at "
            f"least {self.level:g}; {self.gained:,} of them the detector alone does not call, and {self.lost:,} that "
            "it calls are not among them"
        )
        return text + (f". Without a neighbour: {self.alone:,}." if self.alone else ".")

    @property
    def note(self) -> str:
        """What the reader of a report has to know."""
        return f"{self.told} {CAUTION}"


def refining(detectors: Sequence[Detector], *, overlap: float) -> Refining:
    """The bundled refiner.

    Raises InputError for detectors that it cannot read, and for windows that overlap: before anything is done.
    """
    if overlap:
        raise InputError("--refine neighbours looks at windows side by side: leave out --overlap, or --refine")
    refiner, detector = graph.load(REFINER)
    if len(detectors) > 1 or fingerprint_of(detectors[0])[:12] != detector:
        raise InputError(
            "--refine neighbours reads what negah/aerial-tiny says of windows, and no other model: leave out --refine, "
            "or --model"
        )
    info = detectors[0].info
    return Refining(refiner, digest(refiner)[:12], info.window_px * info.gsd_m)


def refine(refining: Refining, plan: Plan, ledger: Ledger, *, threshold: float) -> Refined:
    """Refine every scored window's probability, into the ledger.  threshold: of the detector's own."""
    numbers, places, logits, kept = [], [], [], []
    with torch.inference_mode():
        for source in plan.sources:
            for begin in range(0, len(source.layout), BLOCK):
                first = source.first + begin
                rows = list(ledger.features(first, min(first + BLOCK, source.first + len(source.layout))))
                if not rows:
                    continue
                number, probability, feature = zip(*rows)
                vectors = np.frombuffer(b"".join(feature), np.float16).reshape(len(rows), -1).astype(np.float32)
                logit = torch.tensor(probability, dtype=torch.float64).logit(eps=1e-7).float()
                kept.append(refining.refiner.alone(torch.from_numpy(vectors), logit))
                logits.append(logit)
                numbers.append(np.array(number))
                places.append(centres(source, np.array(number) - source.first))
        if not numbers:
            return Refined(refining.words, 0, 0, LEVEL, 0, 0, 0)
        edges = beside(np.concatenate(places), refining.side_m)
        found = refining.refiner.among(torch.cat(kept), torch.cat(logits), edges).sigmoid()
    number = np.concatenate(numbers)
    ledger.refine(zip(number.tolist(), found.tolist()))
    alone = int(edges.isolated.sum())
    return Refined(refining.words, len(number), alone, LEVEL, *ledger.found_refined(threshold, LEVEL))


def beside(places: Float[ndarray, "window axis"], side_m: float) -> Edges:
    """Edges between windows that touch, at a side or a corner.

    Two of much the same ground, as where pictures overlap, say the same thing twice and are not joined.
    """
    index = nearest(places, AROUND, reach=REACH * side_m).index
    apart = np.linalg.norm(places[index[0]] - places[index[1]], axis=1)
    return Edges.of(index[:, torch.from_numpy(apart > side_m / 2)], len(places))


def centres(source: PlannedSource, indices: Int[ndarray, " n"]) -> Float[ndarray, "n 3"]:
    """Where windows lie, in metres: on a globe, where distances are the same whatever the CRS.

    A source without one lies nowhere near any other.
    """
    x, y = source.layout.x, source.layout.y
    row, col = np.divmod(indices, len(x.starts))
    pixels = np.stack([x.starts[col] + x.window / 2, y.starts[row] + y.window / 2], axis=1)
    if source.crs is None:
        away = np.full(len(indices), 1e8 * (1 + source.position))
        return np.column_stack([pixels * source.gsd_m, away])
    to_degrees = pyproj.Transformer.from_crs(source.crs, WGS84, always_xy=True)
    lon, lat = np.radians(to_degrees.transform(*apply(source.affine, pixels).T))
    return EARTH_M * np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
