"""Memory that was freed but is still the process's."""

import ctypes
from functools import cache


@cache
def _trim():
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):  # another system, or another C library
        return lambda keep: 0


def give_back() -> None:
    """Give free memory back to the system, where it is kept for later: glibc does so with pieces below 32 MB."""
    _trim()(0)
