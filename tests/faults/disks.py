"""A full disk: one line that names the file, and nothing lost."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.faults.kills import prepare
from tests.faults.processes import ended, run
from tests.faults.scenarios import Prepared, readable, recovered
from tests.faults.sweep import Sweep

__all__ = ["SWEEP"]

#: Shares of the write that meets the end of the disk that there still is room for.
ROOMS = (0.0, 0.5, 0.999)


def trial(state: list[Prepared], number: int, folder: Path) -> str | None:
    at, room = number // len(ROOMS), ROOMS[number % len(ROOMS)]
    for one in state:
        if at < len(one.writes):
            break
        at -= len(one.writes)
    shutil.copytree(one.start, folder, dirs_exist_ok=True)
    done = run(one.scenario.words, folder, full=one.writes[at], room=room)
    wrong = ended(done, 2)
    if wrong is None and (len(done.err.splitlines()[-1]) > 300 or "No space left" not in done.err):
        wrong = f"it said {done.err[-500:]!r}"
    wrong = wrong or readable(folder) or recovered(one, folder)
    return wrong and f"{one.scenario.name}, full at write {at} with room for {room}: {wrong}"


SWEEP = Sweep(
    "disks",
    "A disk that is full from each write on, with room for none, half or nearly all of it; the command "
    "says so in one line, and made good it is the same, bit for bit.",
    9,
    prepare,
    lambda state: len(ROOMS) * sum(len(one.writes) for one in state),
    trial,
)
