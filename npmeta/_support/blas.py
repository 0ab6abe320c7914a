"""One BLAS thread, because the rounding of a product depends on how many threads share it."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

#: Environment in which every BLAS has one thread, if it is there when the library is loaded.
ONE_THREAD = dict.fromkeys(
    (
        "OPENBLAS_NUM_THREADS",
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "BLIS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
    ),
    "1",
)

#: What NumPy's and SciPy's wheels, and other builds, put around OpenBLAS's names.
AFFIXES = [(prefix, suffix) for prefix in ("scipy_", "") for suffix in ("64_", "", "_64")]

#: A library is found if it is loaded; nothing is loaded to look into it. Windows knows no such mode.
NO_LOAD: int = getattr(os, "RTLD_NOLOAD", ctypes.DEFAULT_MODE)


class _Control(NamedTuple):
    get: Callable[[], int]
    set: Callable[[int], Any]


_controls: list[_Control] = []
_n_modules = 0  # when _controls was made: a module imported since may have loaded another library
_lock = threading.Lock()
_users = 0
_before: list[int] = []


def can_be_one_thread() -> bool:
    """Whether :func:`one_thread` works here: NumPy's BLAS is OpenBLAS, or the environment says one."""
    if all(os.environ.get(name) == "1" for name in ONE_THREAD):
        return True
    config: Any = np.show_config(mode="dicts")
    name = config["Build Dependencies"]["blas"]["name"]
    return "openblas" in name and bool(_found())


@contextmanager
def one_thread() -> Iterator[None]:
    """Products inside have one thread. It costs a microsecond.

    The number of threads is the process's, so of several Python threads in here the first sets it and
    the last sets it back.
    """
    global _users
    with _lock:
        if _users == 0:
            _before[:] = [control.get() for control in _found()]
            for control in _controls:
                control.set(1)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                for control, n_threads in zip(_controls, _before, strict=False):
                    control.set(n_threads)


def _found() -> list[_Control]:
    """The OpenBLAS libraries of this process."""
    global _n_modules
    if _n_modules != len(sys.modules):
        _controls[:] = [control for path in _libraries() for control in _control(path)]
        _n_modules = len(sys.modules)
    return _controls


def _libraries() -> list[str]:
    """Paths of libraries called openblas: those loaded, where Linux lists them; else NumPy's own.

    What is not mapped to be executed is data, whatever its name.
    """
    with suppress(OSError):
        maps = Path("/proc/self/maps").read_text("utf-8", errors="replace")
        # Columns: addresses, permissions, offset, device, inode, path.
        entries = (line.split(maxsplit=5) for line in maps.splitlines())
        return sorted({e[5] for e in entries if len(e) == 6 and "x" in e[1] and "openblas" in e[5]})
    package = Path(np.__file__).parent
    folders = (package.parent / "numpy.libs", package / ".dylibs")
    return sorted(str(path) for folder in folders for path in folder.glob("*openblas*"))


def _control(path: str) -> Iterator[_Control]:
    try:
        library = ctypes.CDLL(path, NO_LOAD)
    except OSError:
        return
    for prefix, suffix in AFFIXES:
        with suppress(AttributeError):
            yield _Control(
                getattr(library, f"{prefix}openblas_get_num_threads{suffix}"),
                getattr(library, f"{prefix}openblas_set_num_threads{suffix}"),
            )
            return


def _renew_lock() -> None:
    """In a fork: the thread that held the lock may not have come along."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
