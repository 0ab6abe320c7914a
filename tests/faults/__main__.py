"""``python -m tests.faults [--full] [--only NAME]``: every sweep, and its figures."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from tests.faults.sweep import Sweep, sampled

#: Modules of this package with a tuple SWEEPS.
MODULES = ("kills", "disks", "mutations", "calls", "encodings")

_states: dict[str, object] = {}


def sweeps() -> Iterator[Sweep]:
    """All of them."""
    for name in MODULES:
        yield from import_module(f"tests.faults.{name}").SWEEPS


def _trial(task: tuple[str, int]) -> tuple[str, int, str | None]:
    name, number = task
    sweep = next(one for one in sweeps() if one.name == name)
    if name not in _states:
        _states[name] = sweep.prepare(Path(tempfile.mkdtemp(prefix="faults-")))
    return name, number, sweep.trial(_states[name], number)


def main() -> int:
    """Run the sweeps."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--full", action="store_true", help="every trial, not a sample")
    parser.add_argument("--only", metavar="NAME", action="append", help="one sweep (may be repeated)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures too")
    args = parser.parse_args()
    figures = {}
    with get_context("spawn").Pool(args.workers) as pool:
        for sweep in sweeps():
            if args.only and sweep.name not in args.only:
                continue
            numbers = range(sweep.count()) if args.full else sampled(sweep, args.seed)
            began, failed = time.monotonic(), []
            tasks = [(sweep.name, number) for number in numbers]
            for _, number, wrong in pool.imap_unordered(
                _trial, tasks, chunksize=1 + len(tasks) // 2000
            ):
                if wrong is not None:
                    failed.append(number)
                    print(f"  {sweep.name} {number}: {wrong}", flush=True)
            seconds = time.monotonic() - began
            figures[sweep.name] = {
                "trials": len(tasks),
                "failed": len(failed),
                "seconds": round(seconds),
            }
            print(
                f"{sweep.name}: {len(tasks)} trials, {len(failed)} failed, {seconds:.0f} s", flush=True
            )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(any(one["failed"] for one in figures.values()))


if __name__ == "__main__":
    sys.exit(main())
