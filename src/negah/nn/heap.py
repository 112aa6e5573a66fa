"""Memory that a process has freed and that is still its own."""

import ctypes
import sys


def give_back() -> None:
    """Return to the system what was freed and kept for later.

    glibc keeps blocks below 32 MB; what other threads kept comes back once these have ended.  Elsewhere nothing
    happens.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
