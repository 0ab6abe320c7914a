r"""All cores: a batch of tasks in shards, over worker processes or any executor.

The meta-gradient is a mean over tasks. A batch of T tasks is cut into shards of ``shard_size`` tasks,
the last one of what is left, and

.. math:: \nabla L = \sum_i \frac{T_i}{T} \nabla L_i

is added up shard after shard, in their order. Neither the shards nor the order depends on who computes
them, and everybody does it with one BLAS thread: the result is the same bit for bit in this process, in
any number of workers, and through any executor on machines of one kind.

What workers draw themselves does not travel: a task is a function of (seed, iteration, index), so a
shard of tasks is five numbers. The algorithm and the sampler go to every worker once.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.validation import Array, as_whole, check_has
from npmeta.algorithms import MetaGradient, Scores
from npmeta.algorithms.base import named
from npmeta.tasks import TaskBatch
from npmeta.training.loop import EVALUATION_BATCH, Algorithm, Sampler, form_at
from npmeta.training.pool import begins_anew_in_forks
from npmeta.training.runners import Foreign, OwnProcesses
from npmeta.training.worker import Outcome

if TYPE_CHECKING:
    from concurrent.futures import Executor

#: What a shard has by default: at least so many tasks, and at least so many parameters times tasks.
LEAST_TASKS, LEAST_NUMBERS = 8, 2**17


def default_shard_size(n_tasks: int, n_params: int) -> int:
    r"""Tasks in a shard where nobody says.

    Small shards occupy more cores, but each of the calls of NumPy that a shard is made of has a cost of
    its own, and a matrix that tasks share is read once in each. So a shard has at least 8 tasks and at
    least 2\ :sup:`17` parameters times tasks; a batch that is smaller is one shard. The machine has no
    say in it.

    Parameters
    ----------
    n_tasks : int
        T, tasks in a batch.
    n_params : int
        P, meta-parameters.
    """
    size = max(LEAST_TASKS, LEAST_NUMBERS // max(n_params, 1))
    n_shards = max(n_tasks // size, 1)
    return -(-n_tasks // n_shards)


@dataclass(frozen=True, eq=False)
class Deferred:
    """Tasks yet to be drawn: what :class:`Sharded` takes for a batch.

    Its attributes are the arguments of ``sampler.sample``.
    """

    sampler: Sampler
    seed: int
    iteration: int
    n_tasks: int
    start: int = 0
    split: str = "train"

    def __len__(self) -> int:
        return self.n_tasks


class _Deferring:
    """A sampler that draws nothing."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def sample(
        self, seed: int, iteration: int, n_tasks: int, *, start: int = 0, split: str = "train"
    ) -> Any:
        return Deferred(self._sampler, seed, iteration, n_tasks, start, split)


class _Drawn(NamedTuple):
    """The tasks of a shard, for a sampler to draw."""

    seed: int
    iteration: int
    n_tasks: int
    start: int
    split: str


class _Job(NamedTuple):
    """A shard, and what to do with it."""

    tasks: _Drawn | slice
    method: str
    argument: int | None  # the iteration, if it is known; or the number of steps


class _Work:
    """An algorithm and the source of its tasks: all that shards have in common.

    Every way of running a shard ends in a call of this.
    """

    def __init__(self, algorithm: Algorithm, source: Sampler | TaskBatch) -> None:
        self.algorithm, self.source = algorithm, source

    def __call__(self, params: Mapping[str, Array], job: _Job) -> Outcome:
        with np.errstate(all="ignore"):  # what is not finite shows in the result
            outcome: Outcome = getattr(self, job.method)(params, self._tasks(job.tasks), job.argument)
        return outcome

    def gradient(self, params: Mapping[str, Array], tasks: TaskBatch, iteration: int | None) -> Outcome:
        form = self.algorithm if iteration is None else form_at(self.algorithm, iteration)
        out = form.meta_gradient(params, tasks)
        return out.grads, replace(out, grads={})

    def scores(self, params: Mapping[str, Array], tasks: TaskBatch, steps: int | None) -> Outcome:
        return {}, self.algorithm.evaluate(params, tasks, steps)

    def _tasks(self, tasks: _Drawn | slice) -> TaskBatch:
        if isinstance(tasks, slice):
            assert isinstance(self.source, TaskBatch)
            return self.source[tasks]
        assert not isinstance(self.source, TaskBatch)
        seed, iteration, n_tasks, start, split = tasks
        return self.source.sample(seed, iteration, n_tasks, start=start, split=split)


def _jobs(tasks: TaskBatch | Deferred, size: int, method: str, steps: int | None = None) -> list[_Job]:
    if not isinstance(tasks, TaskBatch | Deferred):
        raise ValueError(f"tasks must be a TaskBatch or Deferred, got a {type(tasks).__name__}")
    jobs: list[_Job] = []
    iteration = tasks.iteration if isinstance(tasks, Deferred) else None
    argument = steps if method == "scores" else iteration
    for first in range(0, len(tasks), size):
        n = min(size, len(tasks) - first)
        where: _Drawn | slice = slice(first, first + n)
        if isinstance(tasks, Deferred):
            where = _Drawn(tasks.seed, tasks.iteration, n, tasks.start + first, tasks.split)
        jobs.append(_Job(where, method, argument))
    return jobs


def _joined(outcomes: Sequence[Outcome]) -> MetaGradient:
    return MetaGradient.join([replace(rest, grads=dict(grads)) for grads, rest in outcomes])


# --- all shards -----------------------------------------------------------------------------------


class Sharded:
    """An algorithm whose batches are shared among cores, and whose result does not depend on how many.

    It takes the place of the algorithm in :func:`npmeta.meta_train` and :func:`npmeta.evaluate`, or is
    called with batches. Worker processes start when they are first needed and stay until
    :meth:`close`, or the end of a ``with`` block.

    Parameters
    ----------
    algorithm : Algorithm
        :class:`~npmeta.MAML`, or anything with ``meta_gradient`` and ``evaluate``.
    shard_size : int, optional
        Tasks in a shard, by default :func:`default_shard_size`. The result depends on it, within
        rounding.
    workers : int
        Processes at most. With 1, shards are computed in this process, one after another. With more,
        calls are timed, and while this process would have been faster it goes on alone.
    executor : concurrent.futures.Executor, optional
        Somebody else's workers in the place of our own: a pool of processes, Dask's
        ``client.get_executor()``, ``mpi4py.futures.MPIPoolExecutor()``. It is not shut down.

    Raises
    ------
    ValueError
        If a number is below 1, or both ``workers`` and an executor are given.

    Notes
    -----
    A :class:`~npmeta.TaskBatch` goes to the workers once, as long as the same object is passed; do not
    write into its arrays. A worker that dies is replaced, and its shards are computed again. An error
    in a worker is raised here as itself. Threads may use one of these: their calls wait for each other.
    A process that is forked from this one starts workers of its own; an executor does not go along.

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> from npmeta.training.parallel import Sharded
    >>> maml = nm.MAML(nm.MLP([1, 20, 20, 1]), inner_lr=0.01)
    >>> params = maml.init(np.random.default_rng(0))
    >>> with Sharded(maml, shard_size=8) as sharded:  # workers=4, in a script
    ...     for step in nm.meta_train(sharded, params, nm.tasks.Sinusoid(), iterations=3):
    ...         print(step.iteration, round(step.loss, 1))
    1 9.4
    2 6.6
    3 9.3
    """

    def __init__(
        self,
        algorithm: Algorithm,
        shard_size: int | None = None,
        *,
        workers: int = 1,
        executor: Executor | None = None,
    ) -> None:
        check_has(algorithm, "algorithm", "an algorithm", "meta_gradient", "evaluate")
        self.algorithm, self.workers = algorithm, as_whole(workers, "workers", 1)
        self.shard_size = None if shard_size is None else as_whole(shard_size, "shard_size", 1)
        if executor is not None:
            check_has(executor, "executor", "an executor, or left out", "submit")
            if self.workers != 1:
                raise ValueError("an executor has workers of its own; pass either workers or executor")
        own = OwnProcesses(self.workers)
        self._runner: OwnProcesses | Foreign = own if executor is None else Foreign(executor)
        self._work: _Work | None = None
        self._source: Sampler | TaskBatch | None = None
        self.begin_anew()
        begins_anew_in_forks(self)

    def begin_anew(self) -> None:
        """In a process that was forked: nobody is in the middle of a call."""
        self._lock = threading.Lock()  # what outcomes hold, the workers' next call overwrites

    def meta_gradient(
        self, params: Mapping[str, Array] | ArrayLike, tasks: TaskBatch | Deferred
    ) -> MetaGradient:
        """The mean loss over all tasks and its gradient, as the algorithm defines them."""
        params = _arrays(params)
        size = self.shard_size
        if size is None:
            size = default_shard_size(len(tasks), sum(array.size for array in params.values()))
        jobs = _jobs(tasks, size, "gradient")
        with self._lock:
            return _joined(self._runner(self._work_on(tasks), params, jobs, gradients=True))

    def evaluate(
        self,
        params: Mapping[str, Array] | ArrayLike,
        tasks: TaskBatch | Deferred,
        steps: int | None = None,
    ) -> Scores:
        """The scores of all tasks, in shards of ``npmeta.training.loop.EVALUATION_BATCH``."""
        jobs = _jobs(tasks, EVALUATION_BATCH, "scores", steps)
        with self._lock:
            work = self._work_on(tasks)
            outcomes = self._runner(work, _arrays(params), jobs, gradients=False)
        return Scores.join([scores for _, scores in outcomes])

    def defer(self, tasks: Sampler) -> Sampler:
        """A sampler that leaves drawing to the workers; training asks for it."""
        return _Deferring(tasks)

    def close(self) -> None:
        """End the workers, if they are our own."""
        self._runner.close()

    def __enter__(self) -> Sharded:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _work_on(self, tasks: TaskBatch | Deferred) -> _Work:
        """The same object for the same tasks, so that workers know that they have it."""
        source = tasks.sampler if isinstance(tasks, Deferred) else tasks
        if self._work is None or source is not self._source:
            self._source = source
            if isinstance(source, TaskBatch):
                # Sums over arrays that lie otherwise in memory may be in another order.
                source = TaskBatch(*map(np.ascontiguousarray, _sets(source)))
            self._work = _Work(self.algorithm, source)
        return self._work


def _sets(tasks: TaskBatch) -> tuple[Array, Array, Array, Array]:
    return tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y


def _arrays(params: Mapping[str, Array] | ArrayLike) -> dict[str, Array]:
    return {name: np.asarray(array) for name, array in named(params).items()}
