"""What workers of pytest-xdist share."""

import os
from pathlib import Path

__all__ = ["made_once", "of_all_workers"]


def of_all_workers(tmp_path_factory) -> Path:
    """The folder of this run of the tests."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once(tmp_path_factory, name, make) -> Path:
    """A folder that the first worker which asks for it makes, by ``make(path)``; others wait. It has to
    appear as a whole, and nobody may change it."""
    try:
        import fcntl
    except ImportError:
        make(path := tmp_path_factory.mktemp(name) / name)
        return path
    path = of_all_workers(tmp_path_factory) / name
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # which ends with the process, however it ends
        if not path.exists():
            make(path)
    return path
