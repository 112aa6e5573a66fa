"""The one tree of errors that negah raises on purpose.

Each message is a single line that says what is wrong, where, and what to do.  The command line prints it as it is and
exits with status 2; `--debug` shows the traceback.
"""

import errno
import os


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


def install(extra: str) -> str:
    """How to install an extra: the end of a message that something needs it."""
    return f"pip install '.[{extra}]' in the folder that negah was cloned into"


def told(problem: Exception, *, report: str = "") -> tuple[int, str]:
    """Whatever went wrong as (exit status, one line): 2 for what the user can act on, 1 for a bug in negah.

    report: how to report a bug, behind "this is a bug in negah".
    """
    if isinstance(problem, NegahError):
        return 2, str(problem)
    if isinstance(problem, OSError):
        return 2, _of_system(problem)
    if isinstance(problem, MemoryError) or type(problem).__name__ == "OutOfMemoryError":  # torch's, for a GPU
        return 2, f"out of memory ({problem}); use smaller inputs or batches, or a larger machine"
    return 1, f"{type(problem).__name__}: {problem} (this is a bug in negah{report})"


def _of_system(problem: OSError) -> str:
    """An operating-system error in one line, with what to do where that is known."""
    where = f" ({os.fspath(problem.filename)})" if isinstance(problem.filename, str | os.PathLike) else ""
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}; free some space, or give an --out elsewhere, and run the command again"
    return f"{problem.strerror or problem}{where}"
