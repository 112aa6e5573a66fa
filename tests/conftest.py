"""What every test stands on: shapes checked at run time, real data where there are some, one thread per process."""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from beartype import BeartypeConf, beartype
from hypothesis import settings
from jaxtyping import install_import_hook

# Before anything imports negah: each annotated shape and type is checked at every call that a test makes.  The hook
# takes its checker by name, so a module is made to hold it: beartype, taking an int for a float as pyright does.
checks = ModuleType("negah_runtime_checks")
checks.check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # pyright: ignore[reportAttributeAccessIssue]
sys.modules[checks.__name__] = checks
install_import_hook("negah", "negah_runtime_checks.check")

# A slow moment of a busy machine is not a failure of the property under test.
settings.register_profile("negah", deadline=None)
settings.load_profile("negah")

# Processes share the cores among them; a thread pool in each would only make them wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
    import torch

    torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real data sets, from NEGAH_DATA or beside the checkout; the test is skipped where there is none."""
    folder = Path(os.environ.get("NEGAH_DATA") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set NEGAH_DATA to their folder")
    return folder
