"""Meta-training and evaluation of any algorithm on any tasks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.validation import Array, as_number, as_whole, check_function, check_has, unmasked
from npmeta.algorithms import MetaGradient, Scores
from npmeta.algorithms.base import named
from npmeta.bilevel.optimizers import Adam, Optimizer, Schedule, clip_by_global_norm, constant
from npmeta.tasks import TaskBatch


class Algorithm(Protocol):
    """What training asks of an algorithm.

    One that changes in the course of training has a method ``at_iteration(i)`` as well, which returns
    the algorithm as it is in iteration i, counted from 0.
    """

    def meta_gradient(self, params: Mapping[str, Array], tasks: TaskBatch) -> MetaGradient: ...

    def evaluate(
        self, params: Mapping[str, Array], tasks: TaskBatch, steps: int | None = None
    ) -> Scores: ...


class Sampler(Protocol):
    """What training asks of a task distribution: tasks from (seed, iteration, index) alone."""

    def sample(
        self, seed: int, iteration: int, n_tasks: int, *, start: int = 0, split: str = "train"
    ) -> TaskBatch: ...


def _deferred(algorithm: Algorithm, tasks: Sampler) -> Sampler | None:
    """The sampler as an algorithm wants it that has tasks drawn elsewhere
    (:mod:`npmeta.training.parallel`)."""
    defer = getattr(algorithm, "defer", None)
    return None if defer is None else defer(tasks)


def form_at(algorithm: Algorithm, iteration: int) -> Algorithm:
    """An algorithm as it is in an iteration."""
    at_iteration = getattr(algorithm, "at_iteration", None)
    return algorithm if at_iteration is None else at_iteration(iteration)


class NonFiniteError(ArithmeticError):
    """The meta-loss or its gradient is no longer finite.

    Attributes
    ----------
    iteration : int
        Counted from 0: the one whose tasks gave the loss.
    task : int or None
        Index of the first task with a non-finite loss; None where only the gradient is not finite.
    """

    def __init__(
        self, iteration: int, task: int | None, value: float, what: str = "the meta-gradient"
    ) -> None:
        self.iteration, self.task = iteration, task
        self._made_of = iteration, task, value, what
        what = what if task is None else f"the loss of task {task}"
        super().__init__(
            f"{what} in iteration {iteration} is {value}; try a smaller inner_lr or outer_lr, fewer "
            f"inner steps, or clipping the meta-gradient (clip = 10, say)"
        )

    def __reduce__(self) -> tuple[object, ...]:
        """So that it comes back from another process."""
        return type(self), self._made_of


@dataclass(frozen=True, eq=False)
class Step:
    """One outer step, and all that is needed to go on from it.

    Attributes
    ----------
    iteration : int
        Outer steps made so far, this one included.
    loss : float
        The meta-loss before the step.
    grad_norm : float
        Norm of the meta-gradient before clipping.
    lr : float
        The outer learning rate of this step.
    params, state : dict of ndarray
        Meta-parameters and optimizer state after the step.
    report : dict of float
        What the algorithm says of its tasks beside their losses, the largest of each: of implicit MAML
        the steps and residuals of its solves.
    """

    iteration: int
    loss: float
    grad_norm: float
    lr: float
    params: Mapping[str, Array]
    state: Mapping[str, Array]
    report: Mapping[str, float]


def meta_train(
    algorithm: Algorithm,
    params: Mapping[str, Array] | ArrayLike,
    tasks: Sampler,
    *,
    iterations: int,
    meta_batch: int = 25,
    outer_lr: float = 1e-3,
    optimizer: Optimizer | None = None,
    schedule: Schedule | None = None,
    clip: float | None = None,
    seed: int = 0,
    state: Mapping[str, Array] | None = None,
    start: int = 0,
) -> Iterator[Step]:
    """Outer steps, one for each value drawn from the iterator that is returned.

    Every step depends only on the arguments and on where the last one left off, so a loop that
    begins again with the ``params``, ``state`` and ``iteration`` of some step goes on bit for bit as
    the first one would have.

    Parameters
    ----------
    algorithm : Algorithm
        :class:`~npmeta.MAML`, say.
    params : mapping of ndarray, or array_like
        Meta-parameters to begin with: ``algorithm.init(rng)``, or theta alone.
    tasks : Sampler
    iterations : int
        Outer steps in all, those before ``start`` included.
    meta_batch : int
        Tasks in each step.
    outer_lr : float
    optimizer : Optimizer, optional
        By default Adam.
    schedule : Schedule, optional
        By default constant.
    clip : float, optional
        Greatest global norm of the meta-gradient.
    seed : int
        Of the tasks.
    state, start
        Of the step to go on from.

    Yields
    ------
    Step

    Raises
    ------
    ValueError
        If a number is out of range, before the first step.
    NonFiniteError
        If the loss, its gradient, or the parameters after a step are not finite; what was yielded
        before stays good.

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> maml = nm.MAML(nm.MLP([1, 20, 20, 1]), inner_lr=0.01)
    >>> params = maml.init(np.random.default_rng(0))
    >>> for step in nm.meta_train(maml, params, nm.tasks.Sinusoid(), iterations=3):
    ...     print(step.iteration, round(step.loss, 1))
    1 9.4
    2 6.6
    3 9.3
    """
    for name, number in (("outer_lr", outer_lr), ("clip", 1.0 if clip is None else clip)):
        as_number(number, name, "positive and finite", lambda x: x > 0)
    for name, number, low in (("meta_batch", meta_batch, 1), ("start", start, 0), ("seed", seed, 0)):
        as_whole(number, name, low)
    as_whole(iterations, "iterations", start)
    check_has(algorithm, "algorithm", "an algorithm", "meta_gradient")
    params = named(params)
    _check_sampler(tasks)
    if optimizer is not None:
        check_has(optimizer, "optimizer", "an optimizer, or left out", "init", "update")
    if schedule is not None:
        check_function(schedule, "schedule")
    optimizer = Adam() if optimizer is None else optimizer
    schedule = constant() if schedule is None else schedule
    if state is None:
        state = optimizer.init(params)
    else:
        _check_state(optimizer.init(params), state)
    tasks = _deferred(algorithm, tasks) or tasks

    def steps(params: Mapping[str, Array], state: Mapping[str, Array]) -> Iterator[Step]:
        for iteration in range(start, iterations):
            batch = tasks.sample(seed, iteration, meta_batch)
            with np.errstate(all="ignore"):  # overflow is reported once, below, and in words
                out = form_at(algorithm, iteration).meta_gradient(params, batch)
                grads, norm = clip_by_global_norm(out.grads, clip)
            _check_finite(iteration, out, norm)
            factor = as_number(schedule(iteration), "what schedule returns", "a finite number")
            lr = float(outer_lr) * factor
            with np.errstate(all="ignore"):
                params, state = optimizer.update(params, grads, state, lr)
            for name, array in (*params.items(), *state.items()):
                if not np.isfinite(array).all():
                    raise NonFiniteError(iteration, None, math.inf, f"{name} after the outer step")
            report = {name: values.max().item() for name, values in out.by_task.items()}
            yield Step(iteration + 1, out.loss, norm, lr, params, state, report)

    return steps(params, state)


def _check_state(expected: Mapping[str, Array], state: Mapping[str, Array]) -> None:
    """Raise ValueError unless a state is one of these parameters: another shape would broadcast."""
    if not isinstance(state, Mapping) or set(state) != set(expected):
        found = ", ".join(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"state must have {', '.join(expected)}; got {found}")
    for name, array in expected.items():
        came = unmasked(state[name], name)
        if (came.shape, came.dtype) != (array.shape, array.dtype):
            raise ValueError(
                f"state {name!r} must have shape {array.shape} and dtype {array.dtype}, got "
                f"{came.shape} and {came.dtype}"
            )


def _check_sampler(tasks: Sampler) -> None:
    if not callable(getattr(tasks, "sample", None)):
        raise ValueError(
            f"tasks must be a task distribution, which has a sample method; got {type(tasks).__name__}"
        )


def _check_finite(iteration: int, out: MetaGradient, norm: float) -> None:
    if np.isfinite(out.loss) and np.isfinite(norm):
        return
    bad = np.flatnonzero(~np.isfinite(out.task_loss))
    if bad.size:
        raise NonFiniteError(iteration, int(bad[0]), float(out.task_loss[bad[0]]))
    raise NonFiniteError(iteration, None, norm if not np.isfinite(norm) else out.loss)


#: Tasks that ``evaluate`` adapts at a time: parameters for each are in memory at once.
EVALUATION_BATCH = 50


def evaluate(
    algorithm: Algorithm,
    params: Mapping[str, Array] | ArrayLike,
    tasks: Sampler,
    *,
    n_tasks: int = 600,
    steps: int | None = None,
    split: str = "test",
    seed: int = 0,
) -> Scores:
    """Query loss (and accuracy) on tasks of a split, after 0, 1, .., ``steps`` inner steps.

    Parameters
    ----------
    algorithm : Algorithm
    params : mapping of ndarray
    tasks : Sampler
    n_tasks : int
    steps : int, optional
        By default those the algorithm trains with.
    split : {"train", "validation", "test"}
    seed : int
        The same seed and split give the same tasks.

    Returns
    -------
    Scores
        ``(n_tasks, steps + 1)``. Those of a :class:`~npmeta.tasks.Table`, or of any sampler that has
        ``task_names`` and ``names`` as it does, say which task each is.
    """
    as_whole(n_tasks, "n_tasks", 1)
    as_whole(seed, "seed")
    check_has(algorithm, "algorithm", "an algorithm", "evaluate")
    params = named(params)
    _check_sampler(tasks)
    deferred = _deferred(algorithm, tasks)
    if deferred is not None:
        scores = algorithm.evaluate(params, deferred.sample(seed, 0, n_tasks, split=split), steps)
    else:
        parts = []
        for start in range(0, n_tasks, EVALUATION_BATCH):
            n_drawn = min(EVALUATION_BATCH, n_tasks - start)
            batch = tasks.sample(seed, 0, n_drawn, start=start, split=split)
            with np.errstate(all="ignore"):  # a task that diverges shows in its scores
                parts.append(algorithm.evaluate(params, batch, steps))
        scores = Scores.join(parts)
    drawn: Any = tasks
    if not hasattr(drawn, "task_names"):
        return scores
    return replace(scores, names=drawn.names(seed, 0, n_tasks, split=split))
