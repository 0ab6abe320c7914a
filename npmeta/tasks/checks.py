"""Checks that samplers of a data set share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

__all__ = ["PathLike", "check_counts", "check_fractions", "existing"]

PathLike: TypeAlias = str | os.PathLike[str]


def existing(path: PathLike) -> Path:
    """The path, with ~ expanded; ValueError if nothing is there, or a device or pipe without an end."""
    found = Path(path).expanduser()
    if not found.exists():
        raise ValueError(f"no such file or folder: {found}")
    if not (found.is_file() or found.is_dir()):
        raise ValueError(f"{found} is a device or a pipe; a regular file or a folder is expected")
    return found


def check_counts(settings: object, **least: int) -> None:
    """Raise ValueError unless each named attribute is a whole number of at least so much."""
    for name, low in least.items():
        value = getattr(settings, name)
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or value < low:
            raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}")


def check_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    """Shares of train, validation and test, or a ValueError."""
    shares = tuple(float(share) for share in fractions)
    # The sum is compared so that a NaN fails.
    if len(shares) != 3 or min(shares) < 0 or not abs(sum(shares) - 1) < 1e-6:
        raise ValueError(
            f"fractions must be the shares of train, validation and test, not negative and with sum 1, "
            f"got {shares}"
        )
    return shares
