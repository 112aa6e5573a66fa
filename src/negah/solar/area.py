"""Panel area as a measurement: a second, closer look at where a window has panels, read cell by cell.

Attention says where the head looked, but it is a share: it sums to one however large the panel.  Evidence, the head's
own linear layer on each patch, is additive.  For patch j of a window, with e_j its evidence, a_hj the attention of head
h of the CLS query, n patches,

    logit f_j = bias + scale e_j + sum_h heads_h log(n a_hj)

is the panel fraction; n a_hj is 1 where a patch gets its even share, so the odds of panel are evidence times attention,
each to a power.  The fraction times the ground area of a cell, summed, is m2: zero where no panel was found.  `bias` is
a threshold, `scale` an inverse temperature, `heads` says which heads are worth listening to: all are fitted on masks by
logistic regression with fractions as targets, with a pull towards (0, 1, 0), the head as it was trained from image
labels.

    evidence from masks (a named option)    logit f_jk = w_k . y_j + b_k,    k = 1..4

instead reads the head's patch outputs y_j with a linear layer of its own for each quarter of a patch, fitted on masks.

Where to look: the box of the patches in which the first look saw evidence, and a margin; the rest of the window counts
as empty.  The box costs a part of what the window would, and what is around a panel is still in view.

Finer grids: the box is enlarged `zoom` times before it is looked at, so that a patch covers less ground, and logits are
interpolated to half patches (Keys' bicubic kernel).  Then, where that helps on masks of other places, GrabCut
(Rother, Kolmogorov and Blake 2004) moves outlines to edges of colour in the picture: cells of at least SURE are panel,
of at most NONE are not, and the rest goes with those whose colours it has.  Groups of cells smaller than a module count
as nothing.  Every box is looked at alone, so the look does not depend on what shares its batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Num, Real, Shaped, UInt8
from numpy import ndarray
from scipy import ndimage
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from negah.images.windows import Box
from negah.probe.attentive import Reading

HALVES = 2  # cells along a patch of the enlarged window
PULL = 50.0  # of the prior of `bias`, `scale` and `heads`: a part of one window's cells, so only few masks feel it
RIDGE = 1e-4  # on evidence from masks, per cell: pull towards the head's own layer
PATCHES = 20_000  # that evidence from masks is fitted on, drawn at random
LIKELY = 0.3  # evidence, as a probability, from which a patch is looked at again
MARGIN = 1  # patches around those
MOST = 400  # windows that cells are fitted on: more would hardly change so few numbers
SURE, NONE = 0.7, 0.2  # fractions from which, and up to which, GrabCut takes a pixel as known
LEVELS = np.arange(0.2, 0.65, 0.05)  # panel fractions from which a cell may count as panel


class Glance(NamedTuple):
    """What the first look at a window gave, patch by patch."""

    evidence: Float[ndarray, "row1 col1"]  # logit
    share: Float[ndarray, "head row1 col1"]  # log of n times the attention

    @property
    def box(self) -> Box:
        """Where it is worth looking closer, in patches; never empty, also where the evidence is weak or no number."""
        likely = expit(self.evidence)
        seen = ~(likely < min(LIKELY, likely.max() / 2))
        (top, bottom), (left, right) = (np.flatnonzero(seen.any(axis))[[0, -1]] for axis in (1, 0))
        top, left = max(0, int(top) - MARGIN), max(0, int(left) - MARGIN)
        rows, cols = seen.shape
        return Box(left, top, min(cols, int(right) + 1 + MARGIN) - left, min(rows, int(bottom) + 1 + MARGIN) - top)


class Look(NamedTuple):
    """What a closer look at the box of one window gives, patch by patch.  first: None where the box is the window."""

    evidence: Float[ndarray, "row col"]  # logit
    share: Float[ndarray, "head row col"]  # log of n times the attention
    outputs: Float[ndarray, "row col dim"] | None = None  # what the head's linear layer reads, where it is asked for
    image: UInt8[ndarray, "h w 3"] | None = None  # the window
    valid: Float[ndarray, "row1 col1"] | None = None  # share of valid pixels in its patches, where some are not
    first: Glance | None = None

    @property
    def glance(self) -> Glance:
        """The first look at the window, or what there is of it."""
        return self.first or Glance(self.evidence, self.share)

    def inside(self, whole: Shaped[ndarray, "h w *rest"]) -> Shaped[ndarray, "h2 w2 *rest"]:
        """The box's part of a map of the window, of whatever cells or pixels: a view."""
        if self.first is None:
            return whole
        box, side = self.first.box, len(whole) // len(self.first.evidence)
        return whole[box.row * side : (box.row + box.height) * side, box.col * side : (box.col + box.width) * side]


class Known(NamedTuple):
    """A look at a window whose mask is known.  fraction: of each half patch of the window that is panel."""

    look: Look
    fraction: Float[ndarray, "row2 col2"]

    @property
    def inside(self) -> Float[ndarray, "row3 col3"]:
        """The fraction where the look was."""
        return self.look.inside(self.fraction)


@dataclass(frozen=True)
class Cells:
    """How looks become panel fractions, see above.  level: fraction from which a cell is part of an outline.

    layer: rows of evidence from masks (weights, then the bias), one for each quarter of a patch; empty without.
    refine: whether outlines are moved to edges of colour.
    """

    zoom: int
    level: float
    bias: float
    scale: float
    heads: tuple[float, ...]
    layer: tuple[tuple[float, ...], ...] = ()
    refine: bool = False

    @property
    def fine(self) -> int:
        """Cells along a patch of the window as it is."""
        return HALVES * self.zoom

    def fraction(self, look: Look) -> Float[ndarray, "row2 col2"]:
        """Panel fraction of each half patch of the window; 0 outside of the box."""
        if self.layer:
            assert look.outputs is not None
            layer = np.array(self.layer, np.float32)
            fraction = expit(quarters(look.outputs @ layer[:, :-1].T + layer[:, -1]))
        else:
            score = self.bias + self.scale * look.evidence + np.tensordot(self.heads, look.share, 1)
            fraction = expit(halved(score.astype(np.float32)[None])[0])
        if self.refine and look.image is not None:
            fraction = refined(fraction, look.inside(look.image))
        if look.first is not None:
            whole = np.zeros([side * self.fine for side in look.first.evidence.shape], np.float32)
            look.inside(whole)[:] = fraction
            fraction = whole
        fraction = without_specks(fraction, self.level, least=self.zoom**2)
        return fraction if look.valid is None else fraction * look.valid.repeat(self.fine, 0).repeat(self.fine, 1)


def glances(reading: Reading, which: Sequence[int], *, rows: int) -> list[Glance]:
    """The first look at some windows of a batch, whose patches lie in so many rows."""
    evidence = reading.patch_logits[which].float().unflatten(1, (rows, -1))
    share = (reading.attention[which].float() * reading.attention.shape[-1]).clamp(min=1e-6).log()
    share = share.unflatten(2, (rows, -1))
    return [Glance(e, s) for e, s in zip(evidence.cpu().numpy(), share.cpu().numpy(), strict=True)]


def look_at(
    scorer: Callable[..., Reading], image: UInt8[Tensor, "3 h w"], first: Glance, *, patch: int, zoom: int,
    outputs: bool = False, valid: Float[ndarray, " patch"] | None = None,
) -> Look:  # fmt: skip
    """Look at the box of one window again, enlarged.

    outputs: keep what evidence from masks is read from.  valid: share of valid pixels in its patches, row by row.
    """
    window, rows = image.permute(1, 2, 0).cpu().numpy(), len(first.evidence)
    look = Look(first.evidence, first.share, None, window, None if valid is None else valid.reshape(rows, -1), first)
    part = look.inside(window)
    size = part.shape[1] * zoom, part.shape[0] * zoom  # as OpenCV has it: width, height
    larger = cv2.resize(part, size, interpolation=cv2.INTER_CUBIC)
    reading = scorer(torch.from_numpy(larger).to(image.device).permute(2, 0, 1)[None])
    closer = glances(reading, [0], rows=size[1] // patch)[0]
    kept = None
    if outputs:
        assert reading.outputs is not None, "this scorer gives no patch outputs"
        # half: of a whole window they fill 0.3 MB
        kept = reading.outputs[0].half().unflatten(0, closer.evidence.shape).cpu().numpy()
    return look._replace(evidence=closer.evidence, share=closer.share, outputs=kept)


def refined(fraction: Float[ndarray, "row col"], image: UInt8[ndarray, "h w 3"]) -> Float[ndarray, "row col"]:
    """Fractions after GrabCut on the window's pixels; as they were where all or nothing is sure."""
    height, width = image.shape[:2]
    pixels = cv2.resize(fraction, (width, height), interpolation=cv2.INTER_CUBIC)
    likely = np.where(pixels >= (SURE + NONE) / 2, cv2.GC_PR_FGD, cv2.GC_PR_BGD)
    marks = np.select([pixels >= SURE, pixels <= NONE], [cv2.GC_FGD, cv2.GC_BGD], likely).astype(np.uint8)
    if not (marks == cv2.GC_FGD).any() or not (marks == cv2.GC_BGD).any():
        return fraction
    cv2.setRNGSeed(0)  # of this thread: the colour models begin with a random draw
    colours = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(np.ascontiguousarray(image), marks, (0, 0, 0, 0), *colours, 1, cv2.GC_INIT_WITH_MASK)
    panel = ((marks == cv2.GC_FGD) | (marks == cv2.GC_PR_FGD)).astype(np.float32)
    return shrunk(panel, *fraction.shape)


def shrunk(values: Real[ndarray, "h w"], rows: int, cols: int) -> Float[ndarray, "row col"]:
    """The mean over each cell; a pixel that lies in two cells counts for each by its part."""
    down, across = (shares(size, cells) for size, cells in zip(values.shape, (rows, cols), strict=True))
    return (down @ values.astype(np.float32) @ across.T).astype(np.float32)


@lru_cache(maxsize=64)
def shares(size: int, cells: int) -> Float[ndarray, "cell pixel"]:
    """What share of each cell each of `size` pixels along an axis takes."""
    start, pixel = np.arange(cells)[:, None] * size / cells, np.arange(size)
    part = np.minimum(start + size / cells, pixel + 1) - np.maximum(start, pixel)
    return np.clip(part, 0, None).astype(np.float32) * np.float32(cells / size)


def without_specks(fraction: Float[ndarray, "row col"], level: float, *, least: int) -> Float[ndarray, "row col"]:
    """Groups of fewer than `least` cells from the level on become 0: what is smaller than a module is none.

    Not those at the window's edge, which may go on in the next one.
    """
    inside = fraction >= level
    if not inside[1:-1, 1:-1].any():  # most windows: nothing that could be a speck, and labelling takes long
        return fraction
    labels, count = cast(tuple[ndarray, int], ndimage.label(inside, np.ones((3, 3), int)))
    few = np.bincount(labels.ravel(), minlength=count + 1) < least
    few[0] = False
    few[np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])] = False
    return np.where(few[labels], np.float32(0), fraction)


def halved(scores: Float[ndarray, "n row col"]) -> Float[ndarray, "n row2 col2"]:
    """Maps of patches, interpolated to half patches."""
    return F.interpolate(torch.from_numpy(scores)[:, None], scale_factor=HALVES, mode="bicubic")[:, 0].numpy()


def quarters(score: Num[ndarray, "row col 4"]) -> Num[ndarray, "row2 col2"]:
    """Four figures of each patch, laid out as its quarters: row by row."""
    rows, cols, _ = score.shape
    return score.reshape(rows, cols, 2, 2).transpose(0, 2, 1, 3).reshape(2 * rows, 2 * cols)


def fit_cells(known: Sequence[Known], *, zoom: int, from_masks: bool, level: float = 0.3) -> Cells:
    """Fit `bias`, `scale` and `heads`, or evidence from masks, on windows with masks."""
    heads = len(known[0].look.share)
    known = known[:: -(-len(known) // MOST)]
    if from_masks:
        return Cells(zoom, level, 0.0, 1.0, (0.0,) * heads, _layer(known))
    columns = np.concatenate([_columns(k.look) for k in known])
    target = np.concatenate([k.inside.ravel() for k in known])
    prior = np.array([0.0, 1.0] + [0.0] * heads)

    def loss(beta: ndarray) -> tuple[float, ndarray]:
        score = columns @ beta
        value = np.logaddexp(0, score).sum() - target @ score + PULL / 2 * ((beta - prior) ** 2).sum()
        return float(value), columns.T @ (expit(score) - target) + PULL * (beta - prior)

    # A head that looks away from panels is no map of them: it may be left out, not turned round.
    bounds = [(None, None), (0.0, None)] + [(0.0, None)] * heads
    bias, scale, *rest = minimize(loss, prior, jac=True, method="L-BFGS-B", bounds=bounds).x.tolist()
    return Cells(zoom, level, bias, scale, tuple(rest))


class Level(NamedTuple):
    """A fraction from which cells belong to outlines, and how these overlap with masks."""

    level: float
    iou: float


def overlap(said: Bool[ndarray, "*cell"], true: Float[ndarray, "*cell"]) -> tuple[float, float]:
    """Intersection and union, in cells, of an outline with a mask; what is half panel counts as half."""
    return float(true[said].sum()), float(said.sum() + true[~said].sum())


def best_level(fractions: Sequence[ndarray], known: Sequence[Known]) -> Level:
    """The level at which outlines overlap most with the masks, and the intersection over union there (pooled)."""
    said, true = (np.concatenate([f.ravel() for f in maps]) for maps in (fractions, [k.fraction for k in known]))
    ious = [both / max(either, 1e-9) for both, either in (overlap(said >= t, true) for t in LEVELS)]
    return Level(float(LEVELS[int(np.argmax(ious))]), float(max(ious)))


def _columns(look: Look) -> Float[ndarray, "cell term"]:
    maps = halved(np.stack([np.ones_like(look.evidence), look.evidence, *look.share]))
    return maps.reshape(len(maps), -1).T.astype(float)


def _layer(known: Sequence[Known]) -> tuple[tuple[float, ...], ...]:
    """Four logistic regressions on patch outputs, one for each quarter of a patch, from their least-squares start."""
    outputs = [k.look.outputs for k in known]
    x = np.concatenate([y.reshape(-1, y.shape[-1]) for y in outputs if y is not None]).astype(np.float32)
    target = np.concatenate([_as_quarters(k.inside) for k in known]).astype(np.float32)
    own = _own_layer(known)
    some = np.random.default_rng(0).permutation(len(x))[:PATCHES]
    x, target = x[some], target[some]
    n, start = len(x), np.tile(own, (4, 1))

    def loss(flat: ndarray) -> tuple[float, ndarray]:
        beta = flat.reshape(4, -1).astype(np.float32)
        score = x @ beta[:, :-1].T + beta[:, -1]
        error = expit(score) - target
        away = beta - start
        away[:, -1] = 0
        value = (np.logaddexp(0, score) - target * score).sum() + n * RIDGE / 2 * (away**2).sum()
        slope = np.concatenate([error.T @ x, error.sum(0)[:, None]], 1) + n * RIDGE * away
        return float(value) / n, slope.ravel().astype(float) / n

    found = minimize(loss, start.ravel().astype(float), jac=True, method="L-BFGS-B", options={"maxiter": 100}).x
    return tuple(tuple(row) for row in found.reshape(4, -1).tolist())


def _own_layer(known: Sequence[Known]) -> Float[ndarray, " term"]:
    """The head's own linear layer, read back from what it said of its outputs."""
    parts = [(k.look.outputs.reshape(-1, k.look.outputs.shape[-1]), k.look.evidence.ravel())
             for k in known[:20] if k.look.outputs is not None]  # fmt: skip
    x, e = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    return np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), e, rcond=None)[0]


def _as_quarters(fraction: Float[ndarray, "row2 col2"]) -> Float[ndarray, "patch 4"]:
    rows, cols = fraction.shape
    return fraction.reshape(rows // 2, 2, cols // 2, 2).transpose(0, 2, 1, 3).reshape(-1, 4)
