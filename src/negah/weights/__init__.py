"""Names to weights: where a checkpoint lies, which layout it is written in, how it becomes a `ViT` or a backbone."""

from negah.weights.backbones import backbone, save_backbone
from negah.weights.classifiers import load_classifier, save_classifier
from negah.weights.files import bundled
from negah.weights.load import load
from negah.weights.save import save

__all__ = ["backbone", "bundled", "load", "load_classifier", "save", "save_backbone", "save_classifier"]
