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
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.validation import Array, as_whole, check_has
from npmeta.algorithms import MetaGradient, Scores
from npmeta.algorithms.base import named
from npmeta.tasks import TaskBatch
from npmeta.training import loop as training
from npmeta.training.forks import begins_anew_in_forks
from npmeta.training.loop import Algorithm, Sampler
from npmeta.training.runners import Foreign, OwnProcesses
from npmeta.training.shards import Deferred, Deferring, Work, default_shard_size, jobs_of, joined

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = ["Deferred", "Sharded", "default_shard_size"]


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
        self._work: Work | None = None
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
        jobs = jobs_of(tasks, size, "gradient")
        with self._lock:
            return joined(self._runner(self._work_on(tasks), params, jobs, gradients=True))

    def evaluate(
        self,
        params: Mapping[str, Array] | ArrayLike,
        tasks: TaskBatch | Deferred,
        steps: int | None = None,
    ) -> Scores:
        """The scores of all tasks, in shards of ``npmeta.training.loop.EVALUATION_BATCH``."""
        jobs = jobs_of(tasks, training.EVALUATION_BATCH, "scores", steps)
        with self._lock:
            work = self._work_on(tasks)
            outcomes = self._runner(work, _arrays(params), jobs, gradients=False)
        return Scores.join([scores for _, scores in outcomes])

    def defer(self, tasks: Sampler) -> Sampler:
        """A sampler that leaves drawing to the workers; training asks for it."""
        return Deferring(tasks)

    def close(self) -> None:
        """End the workers, if they are our own."""
        self._runner.close()

    def __enter__(self) -> Sharded:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _work_on(self, tasks: TaskBatch | Deferred) -> Work:
        """The same object for the same tasks, so that workers know that they have it."""
        source = tasks.sampler if isinstance(tasks, Deferred) else tasks
        if self._work is None or source is not self._source:
            self._source = source
            if isinstance(source, TaskBatch):
                # Sums over arrays that lie otherwise in memory may be in another order.
                source = TaskBatch(*map(np.ascontiguousarray, _sets(source)))
            self._work = Work(self.algorithm, source)
        return self._work


def _sets(tasks: TaskBatch) -> tuple[Array, Array, Array, Array]:
    return tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y


def _arrays(params: Mapping[str, Array] | ArrayLike) -> dict[str, Array]:
    return {name: np.asarray(array) for name, array in named(params).items()}
