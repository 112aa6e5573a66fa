"""Generated pictures say what they show, and only the object tells classes apart."""

import torch

from negah.lab.shapes import CLASSES, shapes
from negah.probe.evaluate import knn_accuracy


def test_the_same_seed_gives_the_same_pictures_and_another_gives_others():
    a, b, other = shapes(40, seed=3), shapes(40, seed=3), shapes(40, seed=4)
    assert torch.equal(a.images, b.images) and torch.equal(a.masks, b.masks)
    assert not torch.equal(a.images, other.images)
    assert a.labels.bincount().tolist() == [4] * len(CLASSES)


def test_masks_are_the_object():
    found = shapes(200, seed=0)
    assert found.masks.min() == 0 and found.masks.max() == 1
    areas = found.masks.mean((1, 2))
    assert ((areas > 0.04) & (areas < 0.5)).all()
    disc = areas[found.labels == 0]  # .9 of a radius between .26 and .4 of the side
    assert (disc > 3.13 * 0.234**2 - 0.01).all() and (disc < 3.15 * 0.36**2 + 0.01).all()
    # Inside and outside differ in brightness by more than the ground varies by itself.
    pixels = found.images.float().mean(1) / 255
    inside = (pixels * found.masks).sum((1, 2)) / found.masks.sum((1, 2))
    outside = (pixels * (1 - found.masks)).sum((1, 2)) / (1 - found.masks).sum((1, 2))
    assert ((inside - outside).abs() > 0.15).float().mean() > 0.95


def test_pixels_say_little_of_the_class_and_the_object_alone_says_it():
    known, asked = shapes(1000, seed=0), shapes(300, seed=1)
    of_pixels = knn_accuracy(
        known.images.float().flatten(1), known.labels, asked.images.float().flatten(1), asked.labels
    )
    assert of_pixels < 0.35
