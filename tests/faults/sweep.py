"""A sweep: numbered trials, each of which says what went wrong, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Sweep", "sampled"]


@dataclass(frozen=True)
class Sweep:
    """Numbered trials of one kind of fault.

    Attributes
    ----------
    name : str
    about : str
        What is done and what is expected, for the page of figures.
    in_tests : int
        Trials in the tests, drawn from all.
    count : callable
        ``() -> int``: trials of the full sweep.
    prepare : callable
        ``folder -> state``: what the trials of one process share, made once in an empty folder.
    trial : callable
        ``(state, number) -> str | None``: makes trial ``number``, a function of the number alone, in
        folders of its own that it removes; returns what went wrong, in a line or a few, or None.
    """

    name: str
    about: str
    in_tests: int
    count: Callable[[], int]
    prepare: Callable[[Path], Any]
    trial: Callable[[Any, int], str | None]


def sampled(sweep: Sweep, seed: int = 0) -> list[int]:
    """The trials that the tests make."""
    import random

    n = sweep.count()
    return sorted(random.Random(seed).sample(range(n), min(sweep.in_tests, n)))
