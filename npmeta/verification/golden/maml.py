"""A golden case: what is to be computed, the right numbers, and the numbers that mistakes make.

Everything expected comes from the oracle (:mod:`npmeta.verification.oracles.references`); how far
npmeta's own meta-gradient and the other oracles are from it is written into the case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from typing import Any, NamedTuple

import numpy as np

from npmeta._support.validation import Array
from npmeta.algorithms import MAML
from npmeta.network.passes import forward
from npmeta.verification.doctor.choices import Backward
from npmeta.verification.doctor.faults import FAULTS
from npmeta.verification.doctor.files import described, named_arrays, tensors_of
from npmeta.verification.doctor.noise import Noise
from npmeta.verification.doctor.problem import Problem
from npmeta.verification.doctor.recipe import Recipe, gradients_by
from npmeta.verification.golden.families import SUITE_VERSION
from npmeta.verification.golden.settings import Setting
from npmeta.verification.golden.words import (
    ACTIVATION_FORMULAS,
    LOSS_FORMULAS,
    normalisation,
    structure,
)
from npmeta.verification.oracles.meta_loss import MetaLoss, layers, value_and_gradient
from npmeta.verification.oracles.references import (
    Reference,
    complex_step,
    extended,
    meta_gradient,
    richardson,
)
from npmeta.verification.rounding import CEILING_OF_MISTAKES, relative

#: The mistake of a case that asks for the first-order gradient, and gets the exact one.
SECOND_ORDER = "second_order_kept"

#: A mistake so far from what is right may have an inner loop that runs away.
FAR = 1e3

METHOD = "adjoint with Hessian products by complex step of the gradient"


class WrongAnswer(NamedTuple):
    """What a mistake makes of the gradient, and how far that is from the right one."""

    gradient: Array
    misfit: float
    form: dict[str, Any]
    recipe: Recipe | None = None


@dataclass(frozen=True, eq=False)
class GoldenCase:
    """One case of MAML, computed as it is asked for.

    Attributes
    ----------
    setting : Setting
    """

    setting: Setting

    @property
    def id(self) -> str:
        return self.setting.id

    @cached_property
    def maml(self) -> MAML:
        """MAML as the case asks for it."""
        return self.setting.maml

    @cached_property
    def problem(self) -> Problem:
        """The problem with exact second derivatives, also where the case asks for first order."""
        exact = replace(self.maml, first_order=False)
        return Problem(exact, self.setting.theta, self.setting.tasks)

    @cached_property
    def tolerance(self) -> dict[str, float]:
        """The misfit up to which an answer is right, by its dtype: the doctor's, in two digits."""
        return {
            dtype: float(f"{self._noise.tolerance(Recipe(), dtype):.1e}")
            for dtype in ("float64", "float32")
        }

    @cached_property
    def _noise(self) -> Noise:
        return Noise(self.problem)

    # --- tensors --------------------------------------------------------------------------------

    @cached_property
    def inputs(self) -> dict[str, Array]:
        """All that an answer depends on."""
        problem, maml, model = self.problem, self.maml, self.setting.model
        tensors = tensors_of(problem)
        tensors["inner_lr"] = np.asarray(maml.inner_lr, dtype=np.float64)
        tensors["inner_weight_decay"] = np.array(maml.inner_weight_decay)
        for s, row in enumerate(problem.step_sizes(np.dtype(np.float64))[: problem.S]):
            tensors |= named_arrays(f"step_size.{s:03}", model, row)
        return tensors

    @cached_property
    def tensors(self) -> dict[str, Array]:
        """Inputs, what is expected, and wrong answers."""
        problem, right, model = self.problem, self._oracle, self.setting.model
        tensors = dict(self.inputs)
        tensors |= named_arrays("expected.meta_grad", model, right.grad)
        tensors |= named_arrays("expected.first_order_grad", model, right.first_order)
        tensors["expected.inner_lr_grad"] = right.grads["inner_lr"]
        tensors["expected.meta_loss"] = np.array(right.loss)
        tensors["expected.query_loss"] = right.task_loss
        tensors["expected.support_loss"] = np.stack([loss for _, loss in self._path], axis=1)
        for s, (phi, _) in enumerate(self._path):
            for t in range(problem.T):
                tensors |= named_arrays(f"expected.task.{t:03}.phi.{s:03}", model, phi[t])
        for word, gradient in self._acceptable.items():
            tensors |= named_arrays(f"acceptable.{word}.meta_grad", model, gradient)
        for id, wrong in self.seen.items():
            tensors |= named_arrays(f"wrong.{id}.meta_grad", model, wrong.gradient)
        return tensors

    @cached_property
    def _oracle(self) -> Reference:
        return self._reference(self.maml)

    def _reference(self, maml: MAML) -> Reference:
        params = {"theta": self.problem.theta, "inner_lr": np.asarray(maml.inner_lr, np.float64)}
        return meta_gradient(maml, params, self.problem.tasks, trials=0)

    @cached_property
    def _path(self) -> list[tuple[Array, Array]]:
        """φ_s ``(T, P)`` and the support loss there ``(T,)``, for s = 0..S."""
        meta_loss = self._meta_loss
        points = [phi for phi, _ in meta_loss.passes(meta_loss.theta)]
        return [
            (phi, value_and_gradient(meta_loss.objective, phi, meta_loss.support)[0]) for phi in points
        ]

    @property
    def _meta_loss(self) -> MetaLoss:
        return MetaLoss.of(self.maml, self.problem.theta, self.problem.tasks)

    @cached_property
    def _acceptable(self) -> dict[str, Array]:
        """Gradients with another activation that is no mistake."""
        return {
            word: self._reference(
                self.setting.maml_with(self.setting.model.with_activation(other))
            ).grad
            for word, other in self.setting.also
        }

    @cached_property
    def wrong(self) -> dict[str, WrongAnswer]:
        """Every mistake in its first form."""
        problem, right, first_order = self.problem, self._oracle.grad, self.setting.first_order
        found: dict[str, WrongAnswer] = {}
        if first_order:
            g = problem.gradient
            form: dict[str, Any] = {"formula": "g", "detail": "", "factor": None}
            found[SECOND_ORDER] = WrongAnswer(g, relative(g, right), form, Recipe())
        base = Recipe().having(Backward(curvature=0.0)) if first_order else Recipe()
        forms = [
            (fault, variant, base.having(variant.choices))
            for fault in FAULTS.values()
            # A mistake in what is left out is none.
            if not (first_order and fault.stage == "backward")
            for variant in list(fault.variants(problem))[:1]
        ]
        with np.errstate(all="ignore"):
            gradients = list(gradients_by(problem, (recipe for *_, recipe in forms)))
            misfits = [relative(gradient, right) for gradient in gradients]
        for (fault, variant, recipe), gradient, misfit in zip(forms, gradients, misfits, strict=True):
            if np.isfinite(misfit):
                form = {"formula": fault.formula, "detail": variant.detail, "factor": variant.factor}
                found[fault.id] = WrongAnswer(gradient, misfit, form, recipe)
        return found

    @property
    def seen(self) -> dict[str, WrongAnswer]:
        """Those that are no right answers here."""
        limit = self.tolerance["float64"]
        return {id: wrong for id, wrong in self.wrong.items() if wrong.misfit > limit}

    # --- words ----------------------------------------------------------------------------------

    @cached_property
    def document(self) -> dict[str, Any]:
        """What ``case.json`` says."""
        setting, problem = self.setting, self.problem
        return {
            **self._said,
            **described(problem),
            "order": 1 if setting.first_order else 2,
            "inner_loss_details": loss_words(setting.loss),
            "outer_loss_details": loss_words(setting.loss),
            "inner_step": "phi[s+1] = phi[s] - step_size[s] * (grad + inner_weight_decay * phi[s])",
            "inner_lr_kind": _kind(setting),
            "adapted": self._adapted(),
            "acceptable": {
                word: relative(gradient, self._oracle.grad)
                for word, gradient in self._acceptable.items()
            },
            "oracle": {"method": METHOD, "agreement": self._agreement()},
            **self._wrong_answers(),
        }

    @property
    def _said(self) -> dict[str, Any]:
        """What is said of every algorithm's case."""
        setting, model, tasks = self.setting, self.setting.model, self.setting.tasks
        return {
            "id": self.id,
            "family": setting.family,
            "about": setting.about,
            "suite_version": SUITE_VERSION,
            "result": "acceptable" if setting.also else "valid",
            "algorithm": setting.algorithm,
            **({"published_as": setting.published_as} if setting.published_as else {}),
            "sizes": {
                "T": len(tasks),
                "K": setting.K,
                "Q": setting.Q,
                "S": setting.S,
                "P": model.n_params,
                "n_in": tasks.support_x.shape[-1],
                "n_out": setting.n_targets or model.widths[-1],
            },
            "widths": list(model.widths),
            "activation": [f.name for f in model.activations],
            "layout": "in_out",
            "parameter_order": list(model.places),
            "layer": "y = x W + b",
            "output_activation": "identity",
            "activation_details": [
                {
                    "name": f.name,
                    "formula": ACTIVATION_FORMULAS[f.name],
                    "derivative_at_0": float(f.df(np.zeros(1), f.f(np.zeros(1)))[0]),
                    "kinks": list(f.kinks),
                }
                for f in (model.structure.functions if model.structure else model.activations)
            ],
            **normalisation(model),
            **structure(model),
            "targets": setting.targets or "values",
            "task_reduction": "mean",
            "min_abs_z": min((float(np.abs(z).min()) for z in self._hidden()), default=None),
            "min_distance_to_loss_kink": self._loss_kink(),
            "tolerance": self.tolerance,
        }

    def _adapted(self) -> list[str]:
        """The arrays of parameters that the inner loop moves, in part at least."""
        sizes = self.problem.step_sizes(np.dtype(np.float64))[: self.problem.S]
        return [name for name, place in self.problem.blocks.items() if sizes[:, place].any()]

    def _hidden(self) -> Iterator[Array]:
        """What may lie at kinks in all hidden layers, in all passes."""
        yield from (pre.kinked for at in self._forward() for pre in at.pre)

    def _forward(self) -> Iterator[Any]:
        meta_loss = self._meta_loss
        for phi, (x, _) in meta_loss.passes(meta_loss.theta):
            point = layers(self.problem.maml.objective, phi)  # type: ignore[arg-type]  # a Risk
            yield forward(point, self.setting.model.activations, x)

    def _loss_kink(self) -> float | None:
        """How near outputs come to where the loss, or its derivative, has a kink; None without one."""
        distance: Callable[[Array, Array], Array]
        if self.setting.loss == "huber":
            distance = lambda o, y: np.abs(np.abs(o - y) - 1)  # noqa: E731
        elif "hinge" in self.setting.loss:
            distance = lambda o, y: np.abs(1 + o - (o * y).sum(-1, keepdims=True))[y == 0]  # noqa: E731
        else:
            return None
        batches = (batch for _, batch in self._meta_loss.passes(self._meta_loss.theta))
        pairs = zip(self._forward(), batches, strict=True)
        return float(min(distance(at.z[-1], y).min() for at, (_, y) in pairs))

    def _agreement(self) -> dict[str, dict[str, float]]:
        """Relative distances of npmeta's own gradients, and of other oracles, from what is expected."""
        maml, right, tasks = self.maml, self._oracle, self.problem.tasks
        params = {"theta": self.problem.theta, "inner_lr": np.asarray(maml.inner_lr, np.float64)}
        others = {"r_operator": maml.meta_gradient(params, tasks).grads}
        if not maml.first_order:  # which is the derivative of nothing
            others["complex_step"] = complex_step(maml, params, tasks)
        found = {
            tensor: {
                method: relative(grads[name], right.grads[name]) for method, grads in others.items()
            }
            for tensor, name in (("meta_grad", "theta"), ("inner_lr_grad", "inner_lr"))
        }
        # At a kink a difference has nothing to say; SciPy has no normal distribution in long double.
        if not maml.first_order and not self.setting.also:
            long = extended() and all(f.name != "gelu" for f in self.setting.model.activations)
            v = right.grad / np.linalg.norm(right.grad)
            along = richardson(
                maml, self.problem.theta, tasks, v, dtype=np.longdouble if long else np.float64
            )
            slope = float(v @ right.grad)
            found["meta_grad"]["differences"] = abs(float(along.value[0]) - slope) / slope
            found["meta_grad"]["differences_error"] = float(along.error[0]) / slope
        return found

    def _wrong_answers(self) -> dict[str, Any]:
        """Which mistakes there are, and which of them cannot be seen here, or told apart."""
        limits, seen = self.tolerance, self.seen
        gradients = np.array([wrong.gradient for wrong in seen.values()])
        distances = np.linalg.norm(gradients[:, None] - gradients, axis=-1)
        same = distances <= limits["float64"] * np.linalg.norm(gradients, axis=-1)
        np.fill_diagonal(same, False)
        return {
            "wrong": {
                id: {**wrong.form, "misfit": wrong.misfit, "same_as": list(compress(seen, others))}
                for (id, wrong), others in zip(seen.items(), same.T, strict=True)
            },
            "not_distinguishable": {
                dtype: [id for id, wrong in self.wrong.items() if wrong.misfit <= limit]
                for dtype, limit in limits.items()
            },
            "not_reproducible": {
                dtype: [
                    id
                    for id, wrong in self.wrong.items()
                    if wrong.recipe is not None
                    and wrong.misfit > FAR
                    and self._noise.of(wrong.recipe, dtype) > CEILING_OF_MISTAKES
                ]
                for dtype in limits
            },
            "not_applicable": self._not_applicable(),
        }

    def _not_applicable(self) -> list[str]:
        return [id for id in FAULTS if id not in self.wrong]


def loss_words(name: str) -> dict[str, str]:
    """A loss in words."""
    formula = LOSS_FORMULAS[name]
    return {"name": name, "formula": formula.formula, "outputs": formula.outputs, "rows": formula.rows}


def _kind(setting: Setting) -> str:
    """What shape ``inner_lr`` has."""
    if not isinstance(setting.step_sizes, str):
        return "number"
    by_layer = ("head", "body", "every other layer")
    by_parameter = ("weights", "every other parameter")
    if setting.step_sizes in by_layer:
        return "layer"
    return "parameter" if setting.step_sizes in by_parameter else setting.step_sizes
