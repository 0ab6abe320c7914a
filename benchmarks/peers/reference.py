"""npmeta itself, called as its users call it."""

from __future__ import annotations

import npmeta as nm
from benchmarks.cases import Problem
from benchmarks.peers import Prepared

__all__ = ["default"]


def default(problem: Problem) -> Prepared:
    """:meth:`npmeta.MAML.meta_gradient`, its checks of the arguments included."""
    case = problem.case
    maml = nm.MAML(problem.model, loss=case.loss, inner_lr=case.inner_lr, inner_steps=case.steps)
    return Prepared(
        lambda: maml.meta_gradient(problem.theta, problem.tasks), lambda out: (out.loss, out.grad)
    )
