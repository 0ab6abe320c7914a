"""What a worker process does: it takes work, parameters and jobs, and answers what came of them."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, TypeAlias

from npmeta._support.validation import Array
from npmeta.training.shared_memory import Exchange, Layout, Segment, aligned, layout_of

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

#: What a job gives: arrays with the names, shapes and dtypes of the parameters, and something small.
Outcome: TypeAlias = tuple[Mapping[str, Array], Any]

#: What is done with parameters and one job.
Work: TypeAlias = Callable[[Mapping[str, Array], Any], Outcome]

#: What came of jobs, and the seconds they took: what a worker answers.
Answer: TypeAlias = tuple[list[tuple[Any, ...]], float]

#: Ctrl-C and a closed terminal reach all processes at once: what becomes of them, the parent decides.
NOT_FOR_WORKERS = {signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])}


def serve(connection: Connection) -> None:
    """What a worker does until the parent closes its end of the pipe, or is no more."""
    for number in NOT_FOR_WORKERS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    hands = _Hands(connection)
    with suppress(EOFError, OSError):
        while True:
            kind, *rest = connection.recv()
            try:
                answer = ForkingPickler.dumps(getattr(hands, kind)(*rest))
            except Exception as error:  # goes to the parent, who raises it
                answer = ForkingPickler.dumps(([("failed", portable(error))], 0.0))
            connection.send_bytes(answer)
    os._exit(0)


def _end_with_parent() -> None:
    """Do not outlive the parent, even in the middle of a long job."""
    from multiprocessing.connection import wait
    from multiprocessing.process import parent_process

    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def portable(error: Exception) -> Exception:
    """The error in a form that can be sent, and that tells where it arose."""
    told = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever pickling somebody's exception may raise
        return RuntimeError(f"{type(error).__name__}: {error}\n{told}")
    if hasattr(error, "add_note"):  # from Python 3.11
        error.add_note(f"In a worker process:\n{told}")
    return error


class _Hands:
    """What a worker holds, and what it is asked to do."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._work: Work | None = None
        self._exchange: Exchange | None = None

    def take_work(self, data: bytes, sizes: Sequence[int]) -> Answer:
        """Work, its arrays in a segment, in the place of what was there."""
        self._work = None
        buffers = []
        if sizes:
            segment = self._receive(sum(map(aligned, sizes)))
            buffers = [part.toreadonly() for part in segment.parts(sizes)]
        self._work = pickle.loads(data, buffers=buffers)
        return [], 0.0

    def take_exchange(self, layout: Layout, n_slots: int) -> Answer:
        """Another segment for parameters and gradients."""
        self._exchange = None
        segment = self._receive(Exchange.size(layout, n_slots))
        self._exchange = Exchange(segment.memory, layout, n_slots)
        for array in self._exchange.params.values():
            array.flags.writeable = False
        return [], 0.0

    def run(self, params: Mapping[str, Array] | None, jobs: Sequence[tuple[int | None, Any]]) -> Answer:
        """Do jobs up to the first that fails; what came of them, and the seconds it took."""
        began = _clock()
        assert self._work is not None
        exchange = self._exchange
        if params is None:
            assert exchange is not None
            params = exchange.params
        done: list[tuple[Any, ...]] = []
        for slot, job in jobs:
            try:
                arrays, rest = self._work(params, job)
            except Exception as error:  # goes to the parent, who raises it
                done.append(("failed", portable(error)))
                break
            if slot is None or exchange is None or set(layout_of(arrays)) != set(exchange.layout):
                done.append(("sent", arrays, rest))
                continue
            for name, array in arrays.items():
                exchange.slots[slot][name][...] = array
            done.append(("stored", rest))
        return done, _clock() - began

    def _receive(self, n_bytes: int) -> Segment:
        segment = Segment.receive(self._connection, n_bytes)
        segment.close()
        return segment


#: Time of this process alone, where that is measured finely: what jobs would take on one core.
_clock = (
    time.process_time if time.get_clock_info("process_time").resolution < 1e-5 else time.perf_counter
)
