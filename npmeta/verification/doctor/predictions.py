"""What explanations would make of the gradient of a problem, computed once for every answer to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np

from npmeta._support.validation import Array
from npmeta.verification.doctor.assembly import TaskGradients, finished
from npmeta.verification.doctor.choices import Backward, Forward
from npmeta.verification.doctor.explanations import Explanation, crowds, pairs, singles
from npmeta.verification.doctor.fitted_numbers import FittedNumbers
from npmeta.verification.doctor.inner_loop import InnerLoop, run_loop
from npmeta.verification.doctor.noise import Noise
from npmeta.verification.doctor.problem import Problem
from npmeta.verification.doctor.way_back import ways_back

#: Numbers in predictions that are kept for the next answer to the same problem.
MOST_KEPT = 8_000_000
#: With fewer parameters than this a free factor, or a mistake out of thousands, fits too easily.
FEWEST_PARAMETERS = 8

#: Single mistakes in the order of what their inner loops cost.
LOOPS: dict[str, Callable[[Forward], bool]] = {
    "own loop": lambda forward: forward == Forward(),
    "other loops": lambda forward: forward != Forward() and not forward.task_by_task,
    "loops task by task": lambda forward: forward.task_by_task,
}


class Predictions:
    """What is computed once of a problem, for every answer to it.

    Attributes
    ----------
    problem : Problem
    noise : Noise
    fits : FittedNumbers
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.noise = Noise(problem)
        self.fits = FittedNumbers(problem)
        self._kept: dict[str, list[tuple[list[Explanation], Array]]] = {}

    def level(
        self, name: str, admit: Callable[[InnerLoop], bool] | None
    ) -> Iterable[tuple[list[Explanation], Array]]:
        """Explanations of a level with their predictions; those for every inner loop are kept."""
        if name in self._kept and admit is None:
            return self._kept[name]
        if name in ("singles", *LOOPS):
            explanations = [
                one
                for one in singles(self.problem)
                if name == "singles" or LOOPS[name](one.recipe.forward)
            ]
        elif self.problem.P < FEWEST_PARAMETERS:
            explanations = []
        else:
            explanations = {"pairs": pairs, "crowds": crowds}[name](self.problem)
        if admit is not None:
            return predictions(self.problem, explanations, admit)
        if len(explanations) * self.problem.P > MOST_KEPT:
            return predictions(self.problem, explanations)
        self._kept[name] = list(predictions(self.problem, explanations))
        return self._kept[name]


def predictions(
    problem: Problem,
    explanations: Sequence[Explanation],
    admit: Callable[[InnerLoop], bool] | None = None,
    chunk: int = 2_000_000,
) -> Iterator[tuple[list[Explanation], Array]]:
    """What each would make of the gradient: explanations and their rows ``(n, P)``, some at a time.

    ``admit`` says whether an inner loop may be the one. Explanations whose prediction is not finite, or
    zero, are left out.
    """
    kept: list[Explanation] = []
    rows: list[Array] = []
    for explanation, row in _one_by_one(problem, explanations, admit):
        kept.append(explanation)
        rows.append(row)
        if len(rows) * problem.P > chunk:
            yield kept, np.array(rows)
            kept, rows = [], []
    if rows:
        yield kept, np.array(rows)


def _one_by_one(
    problem: Problem, explanations: Sequence[Explanation], admit: Callable[[InnerLoop], bool] | None
) -> Iterator[tuple[Explanation, Array]]:
    """Each with its prediction; inner loops, ways back and sums over tasks are made once."""

    def order(explanation: Explanation) -> tuple[str, str, str]:
        recipe = explanation.recipe
        return repr(recipe.forward), repr(recipe.backward), repr(recipe.assembly.tasks)

    ordered = sorted(explanations, key=order)
    for forward, group in groupby(ordered, key=lambda h: h.recipe.forward):
        yield from _of_one_loop(problem, forward, group, admit)


def _of_one_loop(
    problem: Problem,
    forward: Forward,
    group: Iterator[Explanation],
    admit: Callable[[InnerLoop], bool] | None,
) -> Iterator[tuple[Explanation, Array]]:
    with np.errstate(all="ignore"):
        loop = run_loop(problem, forward, whole=admit is not None)
        admitted = np.isfinite(loop.points[-1]).all() and (admit is None or admit(loop))
    if not admitted:
        return
    by_way: dict[Backward, list[Explanation]] = {}
    for explanation in group:
        by_way.setdefault(explanation.recipe.backward, []).append(explanation)
    for backward, per_task in ways_back(loop, by_way):
        with np.errstate(all="ignore"):
            tasks = TaskGradients(problem, loop, per_task, loop.total(per_task))
        for over_tasks, same in groupby(by_way[backward], key=lambda h: h.recipe.assembly.tasks):
            with np.errstate(all="ignore"):
                gradient = over_tasks.join(tasks)
            for explanation in same:
                with np.errstate(all="ignore"):
                    row = finished(gradient, explanation.recipe.assembly, tasks)
                if np.isfinite(row).all() and row.any():
                    yield explanation, row
