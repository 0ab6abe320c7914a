"""Who computes shards: this process, worker processes, or somebody else's executor."""

from __future__ import annotations

import os
import pickle
import statistics
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from npmeta._support.blas import can_be_one_thread, one_thread
from npmeta._support.validation import Array
from npmeta.training.pool import Crew, pickled
from npmeta.training.worker import Outcome, Work, portable

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

#: Attempts at a shard through somebody else's executor.
ATTEMPTS = 3

#: The last calls are compared with their jobs' processor time; where workers have cost more, so many
#: calls do without them.
TRIALS, HOLD = 9, 500


class OwnProcesses:
    """This process alone, or worker processes, whichever takes less time."""

    def __init__(self, n_workers: int) -> None:
        self._n_workers = n_workers
        self._crew = Crew(n_workers)
        self._one_thread = can_be_one_thread()
        self._times: deque[tuple[float, float]] = deque(maxlen=TRIALS)  # of a call; of its jobs
        self._n_alone = 0
        self._started = False

    def __call__(
        self, work: Work, params: Mapping[str, Array], jobs: Sequence[Any], *, gradients: bool
    ) -> Sequence[Outcome]:
        alone = self._n_workers == 1 or len(jobs) == 1 or (gradients and self._n_alone > 0)
        # Where BLAS does not listen, a worker's, which was told before it began, takes its place.
        if alone and self._one_thread:
            self._n_alone -= gradients and len(jobs) > 1
            with one_thread():
                return [work(params, job) for job in jobs]
        began = time.perf_counter()
        outcomes, seconds = self._crew(work, params, jobs, gradients=gradients)
        if gradients and not alone and self._started:
            self._times.append((time.perf_counter() - began, seconds))
            if len(self._times) == TRIALS:
                shared, serial = map(statistics.median, zip(*self._times, strict=True))
                if shared > serial:
                    self._n_alone = HOLD
                    self._times.clear()
        self._started = True
        return outcomes

    def __str__(self) -> str:
        return "this process" if self._n_workers == 1 else f"{self._n_workers} workers"

    def close(self) -> None:
        self._crew.close()


#: Work by key, in a process that computes shards for an executor, and in this one.
_KNOWN: dict[str, Work] = {}

#: What is kept there at most.
MOST_KNOWN = 4


def _remote(key: str, data: bytes | None, params: Mapping[str, Array], job: Any) -> tuple[str, Any]:
    """One shard, wherever the executor runs it; work that has not been here is asked for."""
    work = _KNOWN.get(key)
    if work is None:
        if data is None:
            return "unknown", None
        work = pickle.loads(data)
        for old in list(_KNOWN)[: 1 - MOST_KNOWN]:
            _KNOWN.pop(old, None)
        _KNOWN[key] = work
    try:
        with one_thread():
            return "done", work(params, job)
    except Exception as error:  # goes to the caller, who raises it
        return "failed", portable(error)


class Foreign:
    """Somebody else's executor."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._process = os.getpid()
        self._work: Work | None = None
        self._key, self._data = "", b""

    def __call__(
        self, work: Work, params: Mapping[str, Array], jobs: Sequence[Any], *, gradients: bool
    ) -> Sequence[Outcome]:
        if os.getpid() != self._process:  # where its threads are not, and it would wait for ever
            raise RuntimeError(
                f"{self} belongs to the process that this one was forked from; make an executor and a "
                f"Sharded of this process's own"
            )
        if work is not self._work:
            self.close()
            self._work, self._key, self._data = work, uuid.uuid4().hex, b""
            _KNOWN[self._key] = work  # threads, and forks to come, need not be sent it
        done: dict[int, Outcome] = {}
        lost: Exception | None = None
        for _ in range(ATTEMPTS):
            pending = [i for i in range(len(jobs)) if i not in done]
            answers = self._ask(pending, None, params, jobs)
            unknown = [i for i, (status, _) in answers.items() if status == "unknown"]
            if unknown:
                self._data = self._data or pickled(work)
                answers |= self._ask(unknown, self._data, params, jobs)
            for i, (status, value) in sorted(answers.items()):
                if status == "failed":
                    raise value
                if status == "done":
                    done[i] = value
                else:
                    lost = value
            if len(done) == len(jobs):
                return [done[i] for i in range(len(jobs))]
        raise RuntimeError(
            f"{self} lost {len(jobs) - len(done)} of {len(jobs)} shards in {ATTEMPTS} attempts: "
            f"{type(lost).__name__}: {lost}"
        ) from lost

    def _ask(
        self,
        indices: Sequence[int],
        data: bytes | None,
        params: Mapping[str, Array],
        jobs: Sequence[Any],
    ) -> dict[int, tuple[str, Any]]:
        """What :func:`_remote` says of each job; "lost", with an error, where nothing comes back."""
        answers: dict[int, tuple[str, Any]] = {}
        futures: dict[int, Future[tuple[str, Any]]] = {}
        try:
            for i in indices:
                try:
                    futures[i] = self._executor.submit(_remote, self._key, data, params, jobs[i])
                except Exception as error:  # executors differ in how they refuse
                    answers[i] = "lost", error
            for i, future in futures.items():
                try:
                    answers[i] = future.result()
                except Exception as error:  # and in how they lose a worker
                    answers[i] = "lost", error
        except BaseException:
            for future in futures.values():
                future.cancel()
            raise
        return answers

    def __str__(self) -> str:
        return type(self._executor).__name__

    def close(self) -> None:
        _KNOWN.pop(self._key, None)
        self._work = None
