"""How far rounding may move a gradient: what agreement can be asked of an answer in a given dtype."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from npmeta.algorithms import MAML
from npmeta.network.activations import Activation
from npmeta.network.mlp import MLP
from npmeta.tasks import TaskBatch
from npmeta.verification.doctor.choices import Forward
from npmeta.verification.doctor.problem import Problem
from npmeta.verification.doctor.recipe import Recipe, gradient_by
from npmeta.verification.rounding import (
    CEILING,
    CEILING_OF_MISTAKES,
    FLOOR,
    SAFETY_OF_MISFITS,
    SHAKES,
    relative,
    shaken,
    unit,
)


class Noise:
    """What rounding in a dtype does to the predictions for one problem, measured.

    The recipe is computed again with parameters and inputs moved in their last digits, which finds
    out how ill-conditioned it is, and for float32 also in float32.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._known: dict[tuple[Recipe, str], float] = {}
        self._shaken: dict[float, Problem] = {}
        self._at_kinks: dict[str, float] = {}

    def of(self, recipe: Recipe, precision: str) -> float:
        """The relative error to be expected, not limited."""
        if (recipe, precision) not in self._known:
            self._known[recipe, precision] = self._measure(recipe, precision)
        return self._known[recipe, precision]

    def tolerance(self, recipe: Recipe, precision: str) -> float:
        """The misfit up to which an answer agrees; the least where rounding may do too much."""
        noise = self.of(recipe, precision)
        ceiling = CEILING if recipe == Recipe() else CEILING_OF_MISTAKES
        return FLOOR[precision] if noise > ceiling else max(noise, FLOOR[precision])

    def _measure(self, recipe: Recipe, precision: str) -> float:
        with np.errstate(all="ignore"):
            expected = gradient_by(self.problem, recipe)
            moved = [
                relative(gradient_by(self._moved(shake), recipe), expected)
                * min(1.0, unit(precision) / shake)
                for shake in SHAKES[precision]
            ]
            if precision == "float32":
                rounded = recipe.having(Forward(dtype="float32"))
                moved.append(relative(gradient_by(self.problem, rounded), expected))
        return SAFETY_OF_MISFITS * max(moved) if np.isfinite(moved).all() else np.inf

    def _moved(self, shake: float) -> Problem:
        """The problem with every parameter and input moved by a random share of it."""
        if shake not in self._shaken:
            rng = np.random.default_rng(0)
            tasks = self.problem.tasks
            theta = shaken(self.problem.theta.astype(np.float64), rng, shake)
            # The data of other objectives may have to be symmetric, say.
            if self.problem.model is not None:
                support_x, query_x = (
                    shaken(x.astype(np.float64), rng, shake) for x in (tasks.support_x, tasks.query_x)
                )
                tasks = TaskBatch(support_x, tasks.support_y, query_x, tasks.query_y)
            self._shaken[shake] = Problem(self.problem.maml, theta, tasks)
        return self._shaken[shake]

    def at_kinks(self, precision: str) -> float:
        """How much the right gradient changes if units near a kink fall on its other side.

        Rounding decides on which side of its kink a pre-activation of nearly 0 lies, and both
        gradients are right. Here all slopes are taken a little to the left, and to the right.
        """
        if precision not in self._at_kinks:
            self._at_kinks[precision] = self._lean(precision)
        return self._at_kinks[precision]

    def _lean(self, precision: str) -> float:
        model, maml = self.problem.model, self.problem.maml
        if model is None or not any(f.kinks for f in model.activations):
            return 0.0
        margin = 10 * min(max(self.of(Recipe(), precision), FLOOR[precision]), CEILING)
        changes = []
        for side in (-margin, margin):
            leaning = _all_leaning(model, side)
            other = MAML(
                leaning,
                maml.loss,
                maml.inner_lr,
                maml.inner_steps,
                inner_weight_decay=maml.inner_weight_decay,
            )
            moved = Problem(other, self.problem.theta, self.problem.tasks).gradient
            changes.append(relative(moved, self.problem.gradient))
        return max(changes)


def _all_leaning(model: MLP, side: float) -> MLP:
    """The network with :func:`_leaning` activations, or candidates."""
    if model.structure is None:
        return model.with_activation([_leaning(f, side) for f in model.activations])
    candidates = [_leaning(f, side) for f in model.structure.functions]
    return MLP(model.widths, structure=replace(model.structure, candidates=candidates))


def _leaning(f: Activation, side: float) -> Activation:
    """The activation with its slope taken a little beside every point."""
    if not f.kinks:
        return f
    d2f = f.d2f
    return Activation(
        f.name,
        f.f,
        lambda z, a: f.df(z + side, a),
        None if d2f is None else lambda z, a: d2f(z + side, a),
        f.kinks,
    )
