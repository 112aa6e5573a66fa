"""The one tree of errors that negah raises on purpose.

Each message is a single line that says what is wrong, where, and what to do.  The command line prints it as it is and
exits with status 2; `--debug` shows the traceback.
"""


class NegahError(Exception):
    """Root of the tree: something the user can act on."""


class InputError(NegahError):
    """A file, folder or argument given by the user cannot be used."""


class GeoError(InputError):
    """Georeference missing, contradictory or of a kind that cannot be measured in."""


class WeightsError(NegahError):
    """Weights that cannot be found, read, or fitted to the model."""


class OutputError(NegahError):
    """A result that cannot be written, or a folder that holds another run's results."""


class TrainingError(NegahError):
    """Training that cannot go on: a non-finite loss, nothing to learn from."""
