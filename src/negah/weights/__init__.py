"""Names to weights: where a checkpoint lies, which layout it is written in, and how it becomes a `ViT`."""

from negah.weights.files import bundled
from negah.weights.load import load
from negah.weights.save import save

__all__ = ["bundled", "load", "save"]
