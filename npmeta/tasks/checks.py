"""Checks that samplers of a data set share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from npmeta._support.validation import as_list, as_number, as_whole, shown

PathLike: TypeAlias = str | os.PathLike[str]


def as_path(path: PathLike) -> Path:
    """The path, with ~ expanded; ValueError if it is none."""
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"a path is expected, got {shown(path)}")
    return Path(path).expanduser()


def existing(path: PathLike) -> Path:
    """The path, with ~ expanded; ValueError if nothing is there, or a device or pipe without an end."""
    found = as_path(path)
    if not found.exists():
        raise ValueError(f"no such file or folder: {found}")
    if not (found.is_file() or found.is_dir()):
        raise ValueError(f"{found} is a device or a pipe; a regular file or a folder is expected")
    return found


def check_counts(settings: object, **least: int) -> None:
    """Raise ValueError unless each named attribute is a whole number of at least so much."""
    for name, low in least.items():
        as_whole(getattr(settings, name), name, low)


def check_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    """Shares of train, validation and test, or a ValueError."""
    kind = "the shares of train, validation and test"
    shares = tuple(as_number(x, "fractions", kind) for x in as_list(fractions, "fractions", kind))
    # The sum is compared so that a NaN fails.
    if len(shares) != 3 or min(shares) < 0 or not abs(sum(shares) - 1) < 1e-6:
        raise ValueError(f"fractions must be {kind}, not negative and with sum 1, got {shares}")
    return shares
