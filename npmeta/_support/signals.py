"""Signals that ask a command to end, and how it does."""

from __future__ import annotations

import _thread
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: Those that there are: Windows has no SIGHUP, and SIGBREAK nobody else.
ENDING = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    if hasattr(signal, name)
]

#: Seconds in which another signal is the same wish, and does not disturb what is put in order for it.
SAME_WISH = 1.0

#: Seconds after which a signal is raised again where what it raised was lost.
AGAIN = 0.01


@contextmanager
def raised() -> Iterator[list[int]]:
    """Signals that ask to end raise KeyboardInterrupt; gives a list of those that have come.

    What is raised inside a destructor or a callback, Python reports and drops: it is raised anew.
    """
    came: list[int] = []
    last = [-math.inf]
    report = sys.unraisablehook

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if time.monotonic() - last[0] > SAME_WISH:
            last[0] = time.monotonic()
            raise KeyboardInterrupt(number)

    def raise_anew(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            report(unraisable)
            return
        last[0] = -math.inf
        timer = threading.Timer(AGAIN, _thread.interrupt_main, [number_of(unraisable.exc_value)])
        timer.daemon = True
        timer.start()

    sys.unraisablehook = raise_anew
    try:
        with _handling(interrupt):
            yield came
    finally:
        sys.unraisablehook = report


def number_of(error: KeyboardInterrupt) -> int:
    """The signal that raised it: SIGINT, unless it says another."""
    number = next(iter(error.args), None)
    return number if isinstance(number, int) else signal.SIGINT


@contextmanager
def noted() -> Iterator[list[int]]:
    """Signals that ask to end are only noted, in a list.

    A second one raises KeyboardInterrupt: somebody is impatient. SIGHUP never does, for who closes a
    terminal sends it twice, by the system and by the shell.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        hung_up = number == getattr(signal, "SIGHUP", None)
        if came and not hung_up:
            raise KeyboardInterrupt(number)
        came.append(number)

    with _handling(note):
        yield came


def asked_to_end(number: int) -> str:
    """How it is told: Ctrl-C needs no name."""
    return "interrupted" if number == signal.SIGINT else f"interrupted by {signal.Signals(number).name}"


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """These signals go to a handler, but those that are ignored, as under nohup.

    Python hands signals to the main thread only, and in another there is nothing to be done.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in ENDING}
        # None: a handler that Python does not know, and could not bring back.
        before = {n: was for n, was in before.items() if was not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)
