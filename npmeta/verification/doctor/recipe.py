"""All choices together, and the gradient that they make: one piece of code for every combination.

Predictions are computed in float64, and in float32 to see what rounding does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from npmeta._support.validation import Array
from npmeta.verification.doctor.assembly import (
    Assembly,
    AtUpdatedTheta,
    StepPerTask,
    TaskGradients,
    finished,
)
from npmeta.verification.doctor.choices import Backward, Forward, changed
from npmeta.verification.doctor.inner_loop import InnerLoop, run_loop
from npmeta.verification.doctor.problem import Problem
from npmeta.verification.doctor.way_back import pull_back

Choices: TypeAlias = Forward | Backward | Assembly


@dataclass(frozen=True)
class Recipe:
    """What is chosen in the inner loop, on the way back, and with the tasks' gradients."""

    forward: Forward = field(default_factory=Forward)
    backward: Backward = field(default_factory=Backward)
    assembly: Assembly = field(default_factory=Assembly)

    def having(self, choices: Choices) -> Recipe:
        """With those of the choices that are not what is right; what is done at the end comes last."""
        others = changed(choices)
        if isinstance(choices, Forward):
            return replace(self, forward=replace(self.forward, **others))
        if isinstance(choices, Backward):
            return replace(self, backward=replace(self.backward, **others))
        others["finish"] = self.assembly.finish + choices.finish
        return replace(self, assembly=replace(self.assembly, **others))


def gradient_by(problem: Problem, recipe: Recipe) -> Array:
    """What the recipe makes, ``(P,)``, as float64."""
    return next(gradients_by(problem, [recipe]))


def gradients_by(problem: Problem, recipes: Iterable[Recipe]) -> Iterator[Array]:
    """:func:`gradient_by` of each; inner loops and ways back that they share are gone once."""
    loops: dict[Forward, InnerLoop] = {}
    ways_back: dict[tuple[Forward, Backward], TaskGradients] = {}
    for recipe in recipes:
        forward, backward, assembly = recipe.forward, recipe.backward, recipe.assembly
        if assembly.outer is not None:
            yield _after_outer_step(problem, recipe, assembly.outer)
            continue
        if forward not in loops:
            loops[forward] = run_loop(problem, forward, whole=False)
        if (forward, backward) not in ways_back:
            loop = loops[forward]
            per_task = pull_back(loop, backward)
            tasks = TaskGradients(problem, loop, per_task, loop.total(per_task))
            ways_back[forward, backward] = tasks
        tasks = ways_back[forward, backward]
        yield finished(assembly.tasks.join(tasks), assembly, tasks).astype(np.float64)


def _after_outer_step(problem: Problem, recipe: Recipe, outer: AtUpdatedTheta | StepPerTask) -> Array:
    rest = replace(recipe, assembly=replace(recipe.assembly, outer=None))
    step = _at_updated_theta if isinstance(outer, AtUpdatedTheta) else _step_per_task
    return step(problem, rest, outer.beta)


def _at_updated_theta(problem: Problem, recipe: Recipe, beta: float) -> Array:
    unfinished = replace(recipe, assembly=replace(recipe.assembly, finish=()))
    theta = problem.theta - beta * gradient_by(problem, unfinished)
    return gradient_by(Problem(problem.maml, theta, problem.tasks), recipe)


def _step_per_task(problem: Problem, recipe: Recipe, beta: float) -> Array:
    theta, total = problem.theta, np.zeros(problem.P)
    for t in range(problem.T):
        if not np.isfinite(theta).all():
            return np.full(problem.P, np.nan)
        g = gradient_by(Problem(problem.maml, theta, problem.tasks[t : t + 1]), recipe)
        theta, total = theta - beta * g, total + g
    return total
