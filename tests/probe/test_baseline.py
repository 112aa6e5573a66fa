"""Statistics that separate what they should, and ignore what they should."""

import numpy as np

from negah.probe.baseline import image_statistics
from negah.probe.linear import fit_linear
from negah.probe.metrics import auc


def striped(seed: int, *, blue: bool) -> np.ndarray:
    """Noise, with a dark blue block in it or not."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 170, (60, 70, 3), dtype=np.uint8)
    if blue:
        r, c = rng.integers(5, 30, 2)
        image[r : r + 20, c : c + 25] = (25, 35, 70)
    return image


def test_a_block_of_panel_colour_is_found():
    images = [striped(i, blue=i % 2 == 0) for i in range(60)]
    labels = np.array([1, 0] * 30)
    features = image_statistics(images)
    probe = fit_linear(features[:40], labels[:40])
    assert auc(labels[40:], probe.probability(features[40:])) > 0.95


def test_statistics_are_finite_of_one_length_and_of_each_image_alone():
    flat = [np.zeros((8, 300, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)]
    noise = striped(0, blue=True)
    together = image_statistics([*flat, noise])
    assert together.shape[0] == 3 and np.isfinite(together).all()
    assert np.array_equal(together[2:], image_statistics(iter([noise])))
    assert image_statistics([]).shape == (0, together.shape[1])


def test_orientation_is_seen():
    rows = np.zeros((96, 96, 3), np.uint8)
    rows[::8] = rows[1::8] = 200
    a, b = image_statistics([rows, rows.transpose(1, 0, 2)])
    assert np.abs(a - b).max() > 0.5  # only the histogram of orientations can tell these two apart
