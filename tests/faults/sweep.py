"""A sweep: numbered trials, each of which says what went wrong, or nothing."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["LONGEST", "HangsError", "Sweep", "timed"]

#: Seconds of the processor that a trial may take, and six times as many by the clock: the machine may
#: be busy with other things.
LONGEST = 10


class HangsError(BaseException):
    """A trial takes too long. Nothing that catches an Exception holds it."""


@contextmanager
def timed() -> Iterator[None]:
    """Raise HangsError in what takes too long."""

    def hangs(*_: object) -> None:
        raise HangsError

    before = [signal.signal(number, hangs) for number in (signal.SIGALRM, signal.SIGVTALRM)]
    signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST)
    signal.setitimer(signal.ITIMER_REAL, 6 * LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip((signal.SIGALRM, signal.SIGVTALRM), before, strict=True):
            signal.signal(number, handler)


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
