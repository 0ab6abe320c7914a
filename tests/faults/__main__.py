"""``python -m tests.faults [--full] [--only NAME]``: all sweeps, and their figures."""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.faults import calls, disks, encodings, kills, mutations
from tests.faults.sweep import Sweep

SWEEPS: tuple[Sweep, ...] = (
    kills.SWEEP,
    disks.SWEEP,
    mutations.SWEEP,
    calls.SWEEP,
    encodings.SWEEP,
)


#: What the process's trials are of, and their state.
_shared: tuple[Sweep, Any]


def _share(sweep: Sweep, state: Any) -> None:
    global _shared
    _shared = sweep, state


def _trial(number: int) -> tuple[int, str | None]:
    sweep, state = _shared
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        place = folder / "trial"
        place.mkdir()
        return number, sweep.trial(state, number, place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _made(sweep: Sweep, state: Any, numbers: list[int], workers: int) -> list[tuple[int, str]]:
    """Make trials in as many processes; those in which something went wrong."""
    wrong = []
    # Forked, so that they have the state, and everything has been imported.
    with get_context("fork").Pool(workers, _share, (sweep, state)) as pool:
        for number, said in pool.imap_unordered(_trial, numbers, 1 + len(numbers) // (200 * workers)):
            if said is not None:
                wrong.append((number, said))
                print(f"  {sweep.name} {number}: {said}", flush=True)
    return wrong


def main() -> int:
    """Run the sweeps."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--full", action="store_true", help="every trial, not a sample")
    names = [sweep.name for sweep in SWEEPS]
    parser.add_argument("--only", metavar="NAME", nargs="+", choices=names, default=names, help="these")
    parser.add_argument("--trial", metavar="N", type=int, help="one trial, in this process")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures too")
    args = parser.parse_args()
    figures = {}
    with ExitStack() as shared:
        states: dict[Callable[[Path], Any], Any] = {}  # some sweeps have one in common
        for sweep in SWEEPS:
            if sweep.name not in args.only:
                continue
            if sweep.prepare not in states:
                folder = shared.enter_context(tempfile.TemporaryDirectory(prefix="faults-"))
                states[sweep.prepare] = sweep.prepare(Path(folder))
            state = states[sweep.prepare]
            if args.trial is not None:
                _share(sweep, state)
                print(_trial(args.trial)[1])
                continue
            numbers = sweep.numbers(state, None if args.full else args.seed)
            began = time.monotonic()
            wrong = _made(sweep, state, numbers, args.workers)
            most = max(
                resource.getrusage(who).ru_maxrss // 1024
                for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
            )
            figures[sweep.name] = {
                "trials": len(numbers),
                "wrong": len(wrong),
                "seconds": round(time.monotonic() - began),
                "most_MiB": most,
            }
            print(f"{sweep.name}: {figures[sweep.name]}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(any(one["wrong"] for one in figures.values()))


if __name__ == "__main__":
    sys.exit(main())
