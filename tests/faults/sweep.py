"""A sweep: numbered trials, each of which says what went wrong, or nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Sweep"]


@dataclass(frozen=True)
class Sweep:
    """Numbered trials of one kind of fault.

    Attributes
    ----------
    name : str
    about : str
        What is done, and what is expected.
    in_tests : int
        Trials in the tests, drawn from all.
    prepare : callable
        ``folder -> state``: what all trials share, made once in an empty folder.
    count : callable
        ``state -> int``: trials of the full sweep.
    trial : callable
        ``(state, number, folder) -> str | None``: makes trial ``number``, a function of the number
        alone, in an empty folder; returns what went wrong, in a line or a few, or None.
    """

    name: str
    about: str
    in_tests: int
    prepare: Callable[[Path], Any]
    count: Callable[[Any], int]
    trial: Callable[[Any, int, Path], str | None]

    def numbers(self, state: Any, seed: int | None) -> list[int]:
        """All trials, or with a seed those of the tests."""
        n = self.count(state)
        if seed is None:
            return list(range(n))
        return sorted(random.Random(seed).sample(range(n), min(self.in_tests, n)))
