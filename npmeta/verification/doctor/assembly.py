"""From the tasks' gradients to what is handed over: each kind of way is a type that knows how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from npmeta._support.validation import Array
from npmeta.verification.doctor.inner_loop import InnerLoop, run_loop
from npmeta.verification.doctor.problem import Problem


class TaskGradients(NamedTuple):
    """Gradients ``(T, P)``, their sum ``(P,)``, and where they come from."""

    problem: Problem
    loop: InnerLoop
    per_task: Array
    total: Array


# --- one gradient of many ---------------------------------------------------------------------------


class OverTasks(Protocol):
    """How the tasks' gradients become one, ``(P,)``."""

    def join(self, tasks: TaskGradients) -> Array: ...


@dataclass(frozen=True)
class MeanOfTasks:
    def join(self, tasks: TaskGradients) -> Array:
        return tasks.total / len(tasks.per_task)


@dataclass(frozen=True)
class OnlyTask:
    t: int
    divisor: int

    def join(self, tasks: TaskGradients) -> Array:
        return tasks.loop.task(tasks.per_task, self.t) / self.divisor


@dataclass(frozen=True)
class WithoutTask:
    t: int
    divisor: int

    def join(self, tasks: TaskGradients) -> Array:
        return (tasks.total - tasks.loop.task(tasks.per_task, self.t)) / self.divisor


@dataclass(frozen=True)
class ReptileUpdate:
    """θ − φ_S."""

    def join(self, tasks: TaskGradients) -> Array:
        loop = tasks.loop
        if loop.row_space is not None and loop.decay:  # which moves θ also where no row reaches
            loop = run_loop(tasks.problem, loop.choices)
        return loop.total(loop.points[0] - loop.points[-1]) / len(tasks.per_task)


# --- what is done to it -----------------------------------------------------------------------------


class Finish(Protocol):
    """What is done to a gradient g ``(P,)`` before it is handed over."""

    def apply(self, g: Array, tasks: TaskGradients) -> Array: ...


@dataclass(frozen=True)
class Times:
    factor: float

    def apply(self, g: Array, tasks: TaskGradients) -> Array:
        return self.factor * g


@dataclass(frozen=True)
class AddDecay:
    """g + w θ."""

    w: float

    def apply(self, g: Array, tasks: TaskGradients) -> Array:
        return g + self.w * tasks.problem.theta.astype(g.dtype)


@dataclass(frozen=True)
class OuterStep:
    """θ − β g."""

    beta: float

    def apply(self, g: Array, tasks: TaskGradients) -> Array:
        return tasks.problem.theta.astype(g.dtype) - self.beta * g


@dataclass(frozen=True)
class ClipValues:
    limit: float

    def apply(self, g: Array, tasks: TaskGradients) -> Array:
        return np.clip(g, -self.limit, self.limit)


@dataclass(frozen=True)
class ClipNorm:
    limit: float

    def apply(self, g: Array, tasks: TaskGradients) -> Array:
        return g * min(1.0, self.limit / np.linalg.norm(g))


@dataclass(frozen=True)
class Standardise:
    def apply(self, g: Array, tasks: TaskGradients) -> Array:
        return (g - g.mean()) / g.std()


@dataclass(frozen=True)
class Reorder:
    """The arrays of parameters in another order, one of :data:`ORDERS`."""

    how: str

    def apply(self, g: Array, tasks: TaskGradients) -> Array:
        places = tasks.problem.blocks
        return np.concatenate([g[places[block]] for block in ORDERS[self.how](list(places))])


@dataclass(frozen=True)
class SetToZero:
    blocks: tuple[str, ...]

    def apply(self, g: Array, tasks: TaskGradients) -> Array:
        g = g.copy()
        for block in self.blocks:
            g[tasks.problem.blocks[block]] = 0
        return g


@dataclass(frozen=True)
class DropSecondOrder:
    blocks: tuple[str, ...]

    def apply(self, g: Array, tasks: TaskGradients) -> Array:
        g, loop = g.copy(), tasks.loop
        first_order = loop.total(loop.first_order) / tasks.problem.T
        for block in self.blocks:
            place = tasks.problem.blocks[block]
            g[place] = first_order[place]
        return g


@dataclass(frozen=True)
class Transpose:
    """The rows and columns of these weights exchanged."""

    blocks: tuple[str, ...]

    def apply(self, g: Array, tasks: TaskGradients) -> Array:
        g, model = g.copy(), tasks.problem.model
        assert model is not None
        for block in self.blocks:
            place, layer = tasks.problem.blocks[block], int(block.split(".")[0])
            g[place] = g[place].reshape(model.widths[layer : layer + 2]).T.reshape(-1)
        return g


def _pairs(names: list[str]) -> list[list[str]]:
    return [names[i : i + 2] for i in range(0, len(names), 2)]


#: Other orders of the arrays 0.weight, 0.bias, 1.weight, ...
ORDERS: dict[str, Callable[[list[str]], list[str]]] = {
    "bias before weight": lambda names: [n for pair in _pairs(names) for n in reversed(pair)],
    "weights, then biases": lambda names: names[::2] + names[1::2],
    "biases, then weights": lambda names: names[1::2] + names[::2],
    "last layer first": lambda names: [n for pair in reversed(_pairs(names)) for n in pair],
}


# --- where it is taken ------------------------------------------------------------------------------


@dataclass(frozen=True)
class AtUpdatedTheta:
    """The gradient at θ − β g(θ)."""

    beta: float


@dataclass(frozen=True)
class StepPerTask:
    """Σ_t g_t(θ_t) with an outer step after every task, θ_{t+1} = θ_t − β g_t(θ_t)."""

    beta: float


@dataclass(frozen=True)
class Assembly:
    """The choices that are left when the tasks' gradients are known.

    Attributes
    ----------
    tasks : OverTasks
    finish : tuple of Finish
        One thing after another.
    outer : AtUpdatedTheta, StepPerTask or None
        An outer step before the gradient is taken.
    """

    tasks: OverTasks = MeanOfTasks()
    finish: tuple[Finish, ...] = ()
    outer: AtUpdatedTheta | StepPerTask | None = None


def finished(gradient: Array, assembly: Assembly, tasks: TaskGradients) -> Array:
    """What is handed over of the one gradient."""
    for finish in assembly.finish:
        gradient = finish.apply(gradient, tasks)
    return gradient
