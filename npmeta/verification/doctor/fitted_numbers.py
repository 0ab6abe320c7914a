"""Mistakes with a number in them that nobody can list: the number that fits an answer best."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from npmeta._support.validation import Array
from npmeta.verification.doctor.assembly import (
    AddDecay,
    Assembly,
    AtUpdatedTheta,
    ClipValues,
    OuterStep,
    StepPerTask,
)
from npmeta.verification.doctor.choices import Backward, Forward
from npmeta.verification.doctor.explanations import MOST_FOR_ALL_PAIRS, Explanation, is_large, work
from npmeta.verification.doctor.faults import FAULTS, Variant
from npmeta.verification.doctor.inner_loop import InnerLoop, run_loop
from npmeta.verification.doctor.problem import Problem
from npmeta.verification.doctor.recipe import Choices, Recipe, gradient_by

#: A fit begins at the best of these. Round numbers are met exactly: far from the right step size a
#: gradient may change so fast that a fit finds nothing else, and behind a kink the slope leads astray.
ROUND = np.array([2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 16, 20, 25, 32, 50, 64, 75, 100, 128, 200, 1000])
EVEN = np.geomspace(1e-3, 1e3, 25)
FACTORS = np.unique(np.concatenate([EVEN, ROUND, 1 / ROUND]))
SMALL = np.array([float(f"{digit}e{power}") for power in range(-6, 1) for digit in (1, 2, 5)])
#: Of a large problem, every so many of them.
FEW = 4
#: Gauss-Newton, which converges quadratically where the residual goes to zero.
ROUNDS = 12
SHRINKS = 0.9
#: A start from which c still lies farther than this beside the prediction leads nowhere.
HOPELESS = 0.7


@dataclass(frozen=True)
class _Family:
    """A mistake, what it chooses for a number, and the numbers to begin at."""

    id: str
    choices: Callable[[float], Choices]
    grid: Array


def _families(problem: Problem) -> Iterator[_Family]:
    few = slice(None, None, FEW if is_large(problem) else 1)
    factors = FACTORS if work(problem) <= MOST_FOR_ALL_PAIRS else EVEN[few]
    even, small = EVEN[few], SMALL[few]
    if problem.S:
        yield _Family("inner_lr", lambda x: Forward(lr_factor=x), factors)
        # A polynomial of degree S in its number: no surprises between the points of a coarse grid.
        yield _Family("backward_lr", lambda x: Backward(curvature=x), np.concatenate([-even, even]))
        yield _Family("inner_weight_decay", lambda x: Forward(decay=x), small)
    if problem.S > 1:
        yield _Family("inner_momentum", lambda x: Forward(momentum=x), np.linspace(0.05, 1, 20)[few])
    yield _Family("at_updated_theta", lambda x: Assembly(outer=AtUpdatedTheta(x)), small)
    if problem.T > 1:
        yield _Family("outer_step_per_task", lambda x: Assembly(outer=StepPerTask(x)), small)


class FittedNumbers:
    """Such mistakes on one problem. Where a fit may begin is computed once, for every answer."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._starts: dict[str, Array] = {}

    def near(self, c: Array, admit: Callable[[InnerLoop], bool] | None = None) -> Iterator[Explanation]:
        """Every such mistake with the number that fits ``c (P,)`` best, where one comes near."""
        for family in _families(self.problem):
            value = self._best(c / np.linalg.norm(c), family)
            if value is not None:
                choices = family.choices(value)
                if admit is None or admit(run_loop(self.problem, Recipe().having(choices).forward)):
                    yield _explanation(family.id, choices, value)
        if admit is None or admit(run_loop(self.problem, Recipe().forward)):
            yield from _linear(self.problem, c)

    def _best(self, u: Array, family: _Family) -> float | None:
        """The number at which the prediction has the direction u; its length is left to the factors."""
        if family.id not in self._starts:
            self._starts[family.id] = np.array([self._direction(family, x) for x in family.grid])
        rows = self._starts[family.id]
        sides = np.where(rows @ u < 0, -1.0, 1.0)
        beside = np.linalg.norm(u - sides[:, None] * rows, axis=1)
        best = int(np.argmin(beside))
        if beside[best] > HOPELESS:
            return None
        x, side = float(family.grid[best]), sides[best]
        residual, left = u - side * rows[best], float(beside[best])
        for _ in range(ROUNDS if left > 1e-12 else 0):
            h = 1e-6 * abs(x)
            slope = side * (self._direction(family, x + h) - self._direction(family, x)) / h
            if not slope.any():
                break
            # Newton's step, cut so that the number keeps its sign and its order of magnitude.
            x += float(np.clip(residual @ slope / (slope @ slope), -abs(x) / 2, abs(x)))
            residual = u - side * self._direction(family, x)
            before, left = left, float(np.linalg.norm(residual))
            if left > SHRINKS * before:
                break  # at the best there is, or nowhere
        return x

    def _direction(self, family: _Family, x: float) -> Array:
        with np.errstate(all="ignore"):
            p = gradient_by(self.problem, Recipe().having(family.choices(x)))
            length = np.linalg.norm(p)
        return p / length if np.isfinite(length) and length > 0 else np.zeros_like(p)


def _explanation(id: str, choices: Choices, value: float) -> Explanation:
    return Explanation.of((FAULTS[id], Variant(choices, f"{value:.6g}", value, fitted=True)))


def _linear(problem: Problem, c: Array) -> Iterator[Explanation]:
    """Numbers that the answer is linear in."""
    g, theta = problem.gradient, problem.theta.astype(np.float64)
    q = gradient_by(problem, Recipe().having(Backward(curvature=0.0)))
    bent = g - q
    if theta.any():
        w = float((c - g) @ theta / (theta @ theta))
        yield _explanation("outer_weight_decay", Assembly(finish=(AddDecay(w),)), w)
        beta = float((theta - c) @ g / (g @ g))
        yield _explanation("updated_theta", Assembly(finish=(OuterStep(beta),)), beta)
    if bent.any():
        weight = float((c - q) @ bent / (bent @ bent))
        yield _explanation("second_order_weight", Backward(second=weight), weight)
    largest = float(np.abs(c).max())
    nearly = 1 - 1e-6
    # Several entries at the limit, or one that would be the largest and has come down to it.
    if (np.abs(c) >= nearly * largest).sum() > 1 or largest < nearly * np.abs(g).max():
        yield _explanation("values_clipped", Assembly(finish=(ClipValues(largest),)), largest)
