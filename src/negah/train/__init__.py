"""One training loop for everything: an objective, batches, and `fit`."""

from negah.train.batches import Batches
from negah.train.fit import FitResult, fit
from negah.train.objective import Objective

__all__ = ["Batches", "FitResult", "Objective", "fit"]
