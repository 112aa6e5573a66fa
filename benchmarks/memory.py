"""How much memory something takes: for scripts that measure each contestant in a process of its own."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path


def highest(run: Callable[[], object]) -> tuple[int, int]:
    """Highest resident size of this process during a run, in bytes: above what it held before, and in all."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # free memory back to the system, or it would count as in use before
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far begins anew
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before, _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
