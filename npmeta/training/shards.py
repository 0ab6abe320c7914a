"""A batch of tasks in shards: what a shard is, what is done with it, and how results are joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from npmeta._support.validation import Array
from npmeta.algorithms import MetaGradient
from npmeta.tasks import TaskBatch
from npmeta.training.loop import Algorithm, Sampler, form_at
from npmeta.training.worker import Outcome

__all__ = ["Deferred", "Deferring", "Job", "Work", "default_shard_size", "jobs_of", "joined"]

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
    """Tasks yet to be drawn: what :class:`~npmeta.training.parallel.Sharded` takes for a batch.

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


class Deferring:
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


class Job(NamedTuple):
    """A shard, and what to do with it."""

    tasks: _Drawn | slice
    method: str
    argument: int | None  # the iteration, if it is known; or the number of steps


class Work:
    """An algorithm and the source of its tasks: all that shards have in common.

    Every way of running a shard ends in a call of this.
    """

    def __init__(self, algorithm: Algorithm, source: Sampler | TaskBatch) -> None:
        self.algorithm, self.source = algorithm, source

    def __call__(self, params: Mapping[str, Array], job: Job) -> Outcome:
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


def jobs_of(tasks: TaskBatch | Deferred, size: int, method: str, steps: int | None = None) -> list[Job]:
    if not isinstance(tasks, TaskBatch | Deferred):
        raise ValueError(f"tasks must be a TaskBatch or Deferred, got a {type(tasks).__name__}")
    jobs: list[Job] = []
    iteration = tasks.iteration if isinstance(tasks, Deferred) else None
    argument = steps if method == "scores" else iteration
    for first in range(0, len(tasks), size):
        n = min(size, len(tasks) - first)
        where: _Drawn | slice = slice(first, first + n)
        if isinstance(tasks, Deferred):
            where = _Drawn(tasks.seed, tasks.iteration, n, tasks.start + first, tasks.split)
        jobs.append(Job(where, method, argument))
    return jobs


def joined(outcomes: Sequence[Outcome]) -> MetaGradient:
    return MetaGradient.join([replace(rest, grads=dict(grads)) for grads, rest in outcomes])
