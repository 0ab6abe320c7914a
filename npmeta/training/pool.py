"""Worker processes that are started once, kept, and replaced when they die.

A call costs one message to each worker and one back, however many jobs it has. What is the same in
many calls, the work, goes to a worker once: it is pickled, and its arrays lie in shared memory, one
copy for all. Parameters and gradients lie in shared memory too, a slot for the gradient of each job.

Messages are pipes, not semaphores. A semaphore would save some 40 µs a call, but whoever dies takes
what it holds along, while a pipe has an end that both sides notice. Where there is no shared memory,
everything goes through the pipes.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import current_process, get_context, process
from typing import Any, Protocol
from weakref import WeakSet

from npmeta._support.blas import ONE_THREAD
from npmeta._support.validation import Array
from npmeta.training.shared_memory import Exchange, Segment, layout_of
from npmeta.training.worker import NOT_FOR_WORKERS, Answer, Outcome, Work, serve

#: Deaths in one call after which it is given up; as many as there are workers, a request to terminate
#: that goes to all processes may cost.
MOST_DEATHS = 3

#: Of the workers. What comes after the threads is for glibc: it would give the memory of large arrays
#: back to the system and ask for it anew in every call, which takes as long as the arithmetic.
ENVIRONMENT = ONE_THREAD | dict.fromkeys(
    ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(2**30)
)

#: Seconds that an idle worker has to end by itself.
PATIENCE = 2.0


class WorkersError(RuntimeError):
    """There can be no workers here, or they die again and again; it says what to do."""


class _Died(Exception):
    """The worker at the other end is no more."""


def pickled(work: Work, keep: Callable[[pickle.PickleBuffer], Any] | None = None) -> bytes:
    """The work in bytes; ``keep`` is given its arrays, which are then left out.

    Raises
    ------
    ValueError
        If it cannot be sent to another process.
    """
    try:
        return pickle.dumps(work, protocol=5, buffer_callback=keep)
    except Exception as error:  # whatever __reduce__ of somebody's class may raise
        raise _cannot_be_sent(error) from error


def _cannot_be_sent(error: Exception) -> ValueError:
    return ValueError(
        f"the algorithm or the tasks cannot be sent to a worker process: {error}; functions and "
        f"classes must come from a module, or from the script that is run"
    )


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


class _Member:
    """A worker, seen from the parent."""

    def __init__(self) -> None:
        _check_that_workers_can_begin()
        context = get_context("spawn")  # a fork would inherit the locks of BLAS threads
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), name="npmeta", daemon=True)
        self.work: Work | None = None
        self.exchange: Exchange | None = None
        self.answered = False
        with _as_workers_begin():
            self._process.start()
        theirs.close()

    def tell(self, message: tuple[Any, ...], segment: Segment | None = None) -> None:
        try:
            self._connection.send(message)
            if segment is not None:
                segment.send(self._connection)
        except OSError:
            raise _Died from None

    def answer(self) -> Answer:
        try:
            answer: Answer = self._connection.recv()
        except (EOFError, OSError):
            raise _Died from None
        self.answered = True
        return answer

    def disown(self) -> None:
        """In a fork: it is the parent's worker, and this process neither asks it nor ends it."""
        self._connection.close()  # or the worker would not see that the parent closes its own
        # When Python ends, multiprocessing terminates the daemons that it has here.
        process._children.discard(self._process)  # type: ignore[attr-defined]

    def end(self, patience: float = 0.0) -> str:
        """End it, by force if it takes longer; returns how it ended."""
        self._connection.close()
        self._process.join(patience)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        code = self._process.exitcode or 0
        self._process.close()
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def _check_that_workers_can_begin() -> None:
    """Raise RuntimeError, with what to do, where they cannot."""
    if current_process().daemon:
        raise WorkersError(
            "this process is a daemon, as those of multiprocessing.Pool are, and may have no worker "
            "processes: leave out workers here, or use concurrent.futures.ProcessPoolExecutor, whose "
            "processes may"
        )
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if getattr(main, "__spec__", None) is None and file is not None and not os.path.exists(file):
        raise WorkersError(
            f"worker processes import the script, and {file} is no file that they could: save the "
            f"script and run it by its name, or leave out workers"
        )


@contextmanager
def _as_workers_begin() -> Iterator[None]:
    """What a worker inherits: an environment, and no ear for what is for the parent."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    mask = getattr(signal, "pthread_sigmask", None)
    if mask:
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # begun with the first worker, it would clear the mask
        blocked = mask(signal.SIG_BLOCK, NOT_FOR_WORKERS)
    try:
        yield
    finally:
        if mask:
            mask(signal.SIG_SETMASK, blocked)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Crew:
    """Worker processes for jobs that share work and parameters.

    Parameters
    ----------
    n_workers : int
        Processes at most; they are started when there are jobs for them.

    Notes
    -----
    A script that uses this must be importable, with its beginning under
    ``if __name__ == "__main__"``: the workers import it. A process that is forked from this one leaves
    these workers alone and starts its own.
    """

    def __init__(self, n_workers: int) -> None:
        self.n_workers = n_workers
        self._members: list[_Member] = []
        self.begin_anew()
        begins_anew_in_forks(self)

    def begin_anew(self) -> None:
        """With no worker of its own; those that there are belong to the parent of this fork."""
        for member in self._members:
            member.disown()
        self._members = []
        self._exchange: Exchange | None = None
        self._deaths: list[str] = []
        self._lock = threading.Lock()

    def __call__(
        self, work: Work, params: Mapping[str, Array], jobs: Sequence[Any], *, gradients: bool
    ) -> tuple[list[Outcome], float]:
        """Do all jobs.

        Parameters
        ----------
        work : callable
            Goes to the workers once, as long as it is the same object.
        params : mapping of ndarray
        jobs : sequence
        gradients : bool
            Whether the arrays of the outcomes are of the parameters' names, shapes and dtypes.

        Returns
        -------
        outcomes : list of Outcome
            In the order of the jobs. Their arrays are good until the next call.
        seconds : float
            Processor time of all jobs.

        Raises
        ------
        WorkersError
            If workers die again and again.
        Exception
            Whatever the first job that failed raised.
        """
        with self._lock:
            try:
                done, seconds = self._run(work, params, jobs, len(jobs) if gradients else 0)
            except BaseException:
                # Whatever workers are in the middle of, nobody will ask for it.
                self._end(0.0)
                raise
            outcomes = []
            for i in sorted(done):
                kind, *rest = done[i]
                if kind == "failed":
                    raise rest[0]
                if kind == "stored":
                    assert self._exchange is not None
                    rest.insert(0, self._exchange.slots[i])
                outcomes.append((rest[0], rest[1]))
            return outcomes, seconds

    def close(self) -> None:
        """End the workers; another call would start new ones."""
        with self._lock:
            self._end(PATIENCE)

    def _end(self, patience: float) -> None:
        members, self._members, self._exchange = self._members, [], None
        for member in members:
            member.end(patience)

    def _run(
        self, work: Work, params: Mapping[str, Array], jobs: Sequence[Any], n_slots: int
    ) -> tuple[dict[int, tuple[Any, ...]], float]:
        done: dict[int, tuple[Any, ...]] = {}
        seconds = 0.0
        self._deaths = []
        while len(done) < len(jobs):
            pending = [i for i in range(len(jobs)) if i not in done]
            while len(self._members) < min(self.n_workers, len(pending)):
                self._members.append(_Member())
            members = self._take_work(work, self._members[: len(pending)])
            shared = self._take_exchange(params, n_slots, members)
            members = self._living(members)
            shares = {member: pending[k :: len(members)] for k, member in enumerate(members)}
            answers = self._ask(
                {
                    member: (
                        "run",
                        None if shared else params,
                        [(i if shared and n_slots else None, jobs[i]) for i in share],
                    )
                    for member, share in shares.items()
                }
            )
            for member, (outcomes, time_taken) in answers.items():
                seconds += time_taken
                done.update(zip(shares[member], outcomes, strict=False))  # short if one failed
            if any(outcome[0] == "failed" for outcome in done.values()):
                break
            if len(done) < len(jobs):  # another exchange will take the place of this one
                done = {i: self._kept(i, outcome) for i, outcome in done.items()}
        return done, seconds

    def _kept(self, i: int, outcome: tuple[Any, ...]) -> tuple[Any, ...]:
        """An outcome that does not lie in shared memory."""
        if outcome[0] != "stored":
            return outcome
        assert self._exchange is not None
        slot = self._exchange.slots[i]
        return "sent", {name: array.copy() for name, array in slot.items()}, outcome[1]

    def _living(self, members: Sequence[_Member]) -> list[_Member]:
        return [member for member in members if member in self._members]

    def _take_work(self, work: Work, members: Sequence[_Member]) -> list[_Member]:
        """See to it that workers have the work; returns those that live to do it."""
        lacking = [member for member in members if member.work is not work]
        if not lacking:
            return list(members)
        buffers: list[pickle.PickleBuffer] = []
        data = pickled(work, buffers.append)
        arrays = [buffer.raw() for buffer in buffers]
        segment = Segment.holding(arrays) if arrays else None
        if segment is None:
            data, arrays = pickled(work), []
        sizes = [len(array) for array in arrays]
        answers = self._ask(dict.fromkeys(lacking, ("take_work", data, sizes)), segment)
        for member, (outcomes, _) in answers.items():
            for _, error in outcomes:
                raise _cannot_be_sent(error) from error
            member.work = work
        return self._living(members)

    def _take_exchange(
        self, params: Mapping[str, Array], n_slots: int, members: Sequence[_Member]
    ) -> bool:
        """Parameters into shared memory that all these workers have; False if there is none."""
        layout = layout_of(params)
        exchange = self._exchange
        ready = exchange is not None and exchange.fits(layout, n_slots)
        if not ready or any(member.exchange is not exchange for member in members):
            if not n_slots:  # not worth it
                return False
            exchange = self._exchange = None
            segment = Segment.new(Exchange.size(layout, n_slots))
            if segment is None:
                return False
            exchange = self._exchange = Exchange(segment.memory, layout, n_slots)
            message = ("take_exchange", layout, n_slots)
            for member, (outcomes, _) in self._ask(dict.fromkeys(members, message), segment).items():
                for _, error in outcomes:
                    raise error
                member.exchange = exchange
        assert exchange is not None
        for name, array in params.items():
            exchange.params[name][...] = array
        return all(member.exchange is exchange for member in self._living(members))

    def _ask(
        self, messages: Mapping[_Member, tuple[Any, ...]], segment: Segment | None = None
    ) -> dict[_Member, Answer]:
        """The answers of those that live to give one; the others are removed.

        A segment that the messages speak of goes along, for the last time.
        """
        told, answers = [], {}
        try:
            for member, message in messages.items():
                with suppress(_Died):
                    member.tell(message, segment)
                    told.append(member)
            for member in told:
                with suppress(_Died):
                    answers[member] = member.answer()
        finally:
            if segment is not None:
                segment.close()
        for member in messages:
            if member not in answers:
                self._bury(member)
        return answers

    def _bury(self, member: _Member) -> None:
        self._members.remove(member)
        how = member.end()
        if not member.answered and how.startswith("exit"):
            raise WorkersError(
                f"a worker process ended as it began ({how}); its message is above. Workers import "
                f"the script: what it does must be under if __name__ == '__main__'"
            )
        self._deaths.append(how)
        if len(self._deaths) > max(MOST_DEATHS, self.n_workers):
            raise WorkersError(
                f"{len(self._deaths)} worker processes died in one call ({', '.join(self._deaths)}); "
                f"signal 9 is what a system short of memory sends"
            )
