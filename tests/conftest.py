"""Settings of the whole suite."""

import os
import signal
import sys

import pytest
from hypothesis import settings

from tests.workers import of_all_workers

# A shell without job control starts what goes on in the background with interrupts ignored, and so
# would its children be, whose interruption is tested.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# And nohup ignores that a terminal hangs up.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

#: What stands there in the place of a package is no module of the tests.
collect_ignore = ["without_pictures"]

# Workers of pytest-xdist fill the cores: threads of BLAS, made when NumPy is imported, would only
# get into their way.
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# The same examples in every run: a red test is a change in the code, never the luck of the draw. No
# deadlines, and no database of examples left in the checkout.
settings.register_profile(
    "deterministic", derandomize=True, deadline=None, database=None, max_examples=30
)
settings.load_profile("deterministic")


@pytest.fixture(scope="session", autouse=True)
def bytecode(tmp_path_factory):
    """Where Python is told to leave no bytecode beside sources (PYTHONDONTWRITEBYTECODE), each process
    that a test starts would compile npmeta anew: they share a folder for it."""
    if not sys.dont_write_bytecode or "PYTHONPYCACHEPREFIX" in os.environ:
        yield
        return
    folder = of_all_workers(tmp_path_factory) / "bytecode"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setenv("PYTHONPYCACHEPREFIX", str(folder))
        yield
