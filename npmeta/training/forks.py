"""What is made anew in a process that is forked from one with workers."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet

__all__ = ["begins_anew_in_forks"]


class _BeginsAnew(Protocol):
    def begin_anew(self) -> None: ...


_begin_anew: WeakSet[_BeginsAnew] = WeakSet()


def begins_anew_in_forks(owner: _BeginsAnew) -> None:
    """Have ``owner.begin_anew()`` called first of all in every process that is forked from this one.

    Two processes at one end of a pipe would each read the other's answers, and a thread that held a
    lock is not there to release it.
    """
    _begin_anew.add(owner)


def _in_fork() -> None:
    for owner in _begin_anew:
        owner.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_fork)
