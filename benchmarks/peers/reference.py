"""npmeta itself, called as its users call it."""

from __future__ import annotations

from collections.abc import Callable

import npmeta as nm
from benchmarks.cases import Problem
from benchmarks.peers import Prepared
from benchmarks.settings import available_cores

__all__ = ["auto", "dense", "factored", "maml", "sharded"]


def maml(problem: Problem, weights: str = "auto") -> nm.MAML:
    """The algorithm of a case."""
    case = problem.case
    return nm.MAML(
        problem.model,
        loss=case.loss,
        inner_lr=case.inner_lr,
        inner_steps=case.steps,
        weights=weights,
    )


def _in_form(weights: str) -> Callable[[Problem], Prepared]:
    def prepare(problem: Problem) -> Prepared:
        """:meth:`npmeta.MAML.meta_gradient`, its checks of the arguments included."""
        algorithm = maml(problem, weights)
        return Prepared(
            lambda: algorithm.meta_gradient(problem.theta, problem.tasks),
            lambda out: (out.loss, out.grad),
        )

    return prepare


auto, dense, factored = map(_in_form, ("auto", "dense", "factored"))


def sharded(problem: Problem) -> Prepared:
    """Shards of tasks in worker processes, or in this one: npmeta times both and decides."""
    from npmeta.training.parallel import Sharded

    algorithm = Sharded(maml(problem), workers=len(available_cores()))
    for _ in range(12):  # after some ten calls it has decided
        algorithm.meta_gradient(problem.theta, problem.tasks)
    return Prepared(
        lambda: algorithm.meta_gradient(problem.theta, problem.tasks),
        lambda out: (out.loss, out.grad),
        close=algorithm.close,
    )
