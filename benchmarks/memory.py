"""The extra peak memory of one meta-gradient: a fresh process for each, asked in JSON.

Everybody is measured in the same way, by what the system knows of the process (Linux only). A first
call compiles, loads code and starts threads. Then the mark of the highest resident memory (VmHWM) is
set back, and a second call runs. The extra memory is how far the mark then stands above the resident
memory before that call. Inputs, parameters and code were there before; results, and what a matrix
product packs for itself, are part of it.

An allocator that keeps what was freed would hide the second call's memory behind the first one's, and
one that splits it into pieces adds to it: by default glibc's makes 130 to 360 MiB of the same call of
PyTorch, from process to process. So these processes have it return every array at once
(``MALLOC_MMAP_THRESHOLD_``), and numbers repeat within a percent. What they say is how much is in use
at the same time. Below a megabyte read "little".

The memory of worker processes is added up as if all had their highest at the same moment. Left to
itself npmeta tells its workers to keep what they had; here they are told what the others are told.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from time import sleep
from typing import TypedDict

from benchmarks.cases import Case, make_problem
from benchmarks.peers import EVERYBODY, Peer

__all__ = ["Memory", "extra_memory", "measurable"]

_PROCESS = Path("/proc/self")

#: Below the size of the smallest case's arrays, 40 KB; and what is set does not grow by itself.
_KEEP_NOTHING = {"MALLOC_TRIM_THRESHOLD_": "16384", "MALLOC_MMAP_THRESHOLD_": "16384"}


class Memory(TypedDict):
    """Bytes. ``planned`` is what the compiler says it needs for results in between, if one says."""

    extra: int
    before: int
    planned: int | None


def measurable() -> bool:
    """Whether the system tells."""
    return (_PROCESS / "clear_refs").exists()


def extra_memory(peer: Peer, case: Case, dtype: str, threads: int | None) -> Memory | None:
    """Measure in a new process, under the variables and on the cores of this one.

    None if the process does not end well: one that runs out of memory is ended by the system.
    """
    request = {"peer": peer.name, "case": asdict(case), "dtype": dtype, "threads": threads}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory"],
        input=json.dumps(request),
        capture_output=True,
        env={**os.environ, **_KEEP_NOTHING},
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        return None
    answer: Memory = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Do what the request on standard input says."""
    request = json.load(sys.stdin)
    peer = EVERYBODY[request["peer"]]
    if peer.in_workers:
        from npmeta.training import pool as crew

        crew.ENVIRONMENT.update(_KEEP_NOTHING)
    if peer.set_threads is not None and request["threads"] is not None:
        peer.set_threads(request["threads"])
    prepared = peer.prepare(make_problem(Case.from_json(request["case"]), request["dtype"]))
    prepared.run()
    gc.collect()
    sleep(0.2)  # other threads may still have something to free
    _return_free_memory()
    processes = [_PROCESS, *_children()]
    for process in processes:
        (process / "clear_refs").write_text("5")
    before = sum(_resident(process, "VmRSS") for process in processes)
    out = prepared.run()
    most = sum(_resident(process, "VmHWM") for process in processes)
    del out
    planned = None if prepared.planned is None else prepared.planned()
    print(json.dumps({"extra": most - before, "before": before, "planned": planned}))
    prepared.close()


def _return_free_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def _children() -> list[Path]:
    """The processes that this one has started and that are alive."""
    return [Path(f"/proc/{child.pid}") for child in multiprocessing.active_children()]


def _resident(process: Path, mark: str) -> int:
    """Bytes of resident memory: now (VmRSS) or at most so far (VmHWM)."""
    status = (process / "status").read_text(encoding="ascii")
    found = re.search(rf"^{mark}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


if __name__ == "__main__":
    main()
