"""Killed at any moment: made good, it is what it would have been."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from tests.faults.processes import run
from tests.faults.scenarios import SCENARIOS, Prepared, prepared, readable, ready, recovered
from tests.faults.sweep import Sweep

__all__ = ["SWEEP"]

#: Kills in all: one at each point, and the others at random times.
KILLS = 1000


def prepare(folder: Path) -> list[Prepared]:
    ready()
    return list(prepared(SCENARIOS, folder))


def trial(state: list[Prepared], number: int, folder: Path) -> str | None:
    at, kill, after = number, None, None
    for one in state:
        if at < one.points:
            kill = at
            break
        at -= one.points
    else:
        one = state[number % len(state)]
        after = random.Random(number).uniform(0, 1.1 * one.seconds)
    shutil.copytree(one.start, folder, dirs_exist_ok=True)
    done = run(one.scenario.words, folder, kill=kill, after=after)
    where = f"{one.scenario.name}, killed {f'at {kill}' if after is None else f'after {after:.3f} s'}"
    if done.status != -9 and after is None:
        return f"{where}: status {done.status}: {done.err[-300:]}"
    wrong = readable(folder) or recovered(one, folder)
    return wrong and f"{where}: {wrong}"


SWEEP = Sweep(
    "kills",
    "SIGKILL at every event of the file system, in the middle of every write and at random times; "
    "whatever is left can be read, and made good it is the same, bit for bit.",
    16,
    prepare,
    lambda state: max(KILLS, sum(one.points for one in state)),
    trial,
)
