"""How far rounding may move a gradient: what agreement can be asked of an answer in a given dtype."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from npmeta._support.validation import Array
from npmeta.algorithms import MAML
from npmeta.network.activations import Activation
from npmeta.network.mlp import MLP
from npmeta.tasks import TaskBatch
from npmeta.verification.doctor.choices import Forward
from npmeta.verification.doctor.problem import Problem
from npmeta.verification.doctor.recipe import Recipe, gradient_by

__all__ = ["Noise", "relative"]

#: The least that is allowed. Implementations sum in other orders, over thousands of terms, and not all
#: of their functions are good to the last digit: PyTorch's softplus is off by 2e-9 beyond 20. Known
#: mistakes differ from each other by 1e-3 in most cases, and float32 shows from 2e-8 on.
FLOOR = {"float64": 1e-8, "float32": 3e-6}
#: The most. An answer that agrees with the right gradient no better than this is not called right; one
#: that agrees with a mistake no better than that is not explained by it. (A mistake may be a small
#: difference of large numbers, in float32, without the right gradient being one.)
CEILING, CEILING_OF_MISTAKES = 1e-3, 1e-2
#: Another implementation rounds as often as ours, elsewhere. A factor over one measurement.
SAFETY = 10.0
#: How far numbers are moved to see what becomes of it: so far that the difference is no rounding, and,
#: where what follows runs away from there, by the last digit.
SHAKES = {"float64": (1e-10, 2.2e-16), "float32": (1.2e-7,)}


def relative(actual: Array, expected: Array) -> float:
    """‖actual − expected‖ / ‖expected‖; 0 where both are zero, ∞ where something has overflowed."""
    difference = float(np.linalg.norm(actual - expected))
    scale = float(np.linalg.norm(expected))
    if not np.isfinite([difference, scale]).all():
        return np.inf
    return difference / scale if scale > 0 else (0.0 if difference == 0 else np.inf)


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
                * min(1.0, float(np.finfo(precision).eps) / shake)
                for shake in SHAKES[precision]
            ]
            if precision == "float32":
                rounded = recipe.having(Forward(dtype="float32"))
                moved.append(relative(gradient_by(self.problem, rounded), expected))
        return SAFETY * max(moved) if np.isfinite(moved).all() else np.inf

    def _moved(self, shake: float) -> Problem:
        """The problem with every parameter and input moved by a random share of it."""
        if shake not in self._shaken:
            rng = np.random.default_rng(0)
            tasks = self.problem.tasks

            def shaken(values: Array) -> Array:
                moved: Array = values * (1 + shake * rng.normal(size=values.shape))
                return moved

            theta = shaken(self.problem.theta.astype(np.float64))
            if (
                self.problem.model is not None
            ):  # the data of other objectives may have to be symmetric, say
                tasks = TaskBatch(
                    shaken(np.asarray(tasks.support_x, np.float64)),
                    tasks.support_y,
                    shaken(np.asarray(tasks.query_x, np.float64)),
                    tasks.query_y,
                )
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
