r"""Golden cases of algorithms that are not MAML: what they have in common.

A subclass writes the algorithm down once more, from its paper's formulas and without a backward pass
for anything that is meta-learned. What is expected is a complex step of that meta-loss for every entry,

.. math:: \frac{\partial L}{\partial p_j} = \operatorname{Im} L(p + i h e_j) / h,

and npmeta's own gradient and extrapolated differences along it are held against this. A mistake is the
same code with one thing changed, so that its gradient is computed and not made up.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from npmeta._support.validation import Array
from npmeta.algorithms.base import MetaGradient, MetaLearner
from npmeta.network.losses import LOSSES
from npmeta.network.mlp import MLP
from npmeta.tasks import TaskBatch
from npmeta.verification.doctor.files import named_arrays, task_arrays
from npmeta.verification.golden.maml import GoldenCase, WrongAnswer
from npmeta.verification.oracles.differences import differentiate
from npmeta.verification.oracles.meta_loss import tiny_step
from npmeta.verification.oracles.references import extended
from npmeta.verification.rounding import FLOOR, SAFETY_OF_MISFITS, SHAKES, relative, shaken, unit

#: Meta-parameters by name, each with an axis of points in front.
Parameters = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class OtherCase(GoldenCase):
    """One case of an algorithm that has a meta-loss, computed as it is asked for."""

    METHOD: ClassVar[str] = "complex step of the meta-loss, written down from its definition"

    #: Formulas by the name of the mistake; beside these, :data:`OF_ALL`.
    MISTAKES: ClassVar[Mapping[str, str]] = {}

    #: Whether differences are taken in extended precision, where there is one.
    LONG: ClassVar[bool] = False

    # --- what a subclass says -----------------------------------------------------------------------

    @property
    @abstractmethod
    def learner(self) -> MetaLearner:
        """npmeta's own."""

    @abstractmethod
    def losses(self, params: Parameters, mistake: str = "") -> Array:
        """The loss of each task at D points of meta-parameter space, ``(D, T)``."""

    @abstractmethod
    def definition(self) -> list[str]:
        """The algorithm, line by line."""

    def constants(self) -> dict[str, Any]:
        """What is neither learned nor in the tasks."""
        return dict(self.setting.options)

    def further(self) -> dict[str, Array]:
        """Meta-parameters beside theta."""
        return {}

    def networks(self) -> dict[str, MLP]:
        """Meta-parameters that are those of a network."""
        return {"theta": self.setting.model}

    def quantities(self) -> dict[str, tuple[str, Array | dict[str, Array]]]:
        """What is expected beside gradients and losses: in words, and the array, or arrays by name."""
        return {}

    # --- computed -----------------------------------------------------------------------------------

    @cached_property
    def params(self) -> dict[str, Array]:
        """All meta-parameters."""
        return {"theta": self.setting.theta, **self.further()}

    def tasks(self, mistake: str = "") -> TaskBatch:
        """The tasks; with one mistake, those whose sets have changed places."""
        tasks = self.setting.tasks
        if mistake != "sets_swapped":
            return tasks
        return TaskBatch(tasks.query_x, tasks.query_y, tasks.support_x, tasks.support_y)

    def gradients(self, mistake: str = "", names: tuple[str, ...] = ()) -> dict[str, Array]:
        """The derivative of the meta-loss by the meta-parameters named, by default all."""
        sizes = {name: self.params[name].size for name in names or self.params}
        n, h = sum(sizes.values()), tiny_step(np.float64)
        start, moved = 0, {}
        for name, array in self.params.items():
            moved[name] = np.repeat(array[None].astype(complex), n, axis=0)
            if name in sizes:
                entries = moved[name].reshape(n, -1)
                own = np.arange(sizes[name])
                entries[start + own, own] += 1j * h
                start += sizes[name]
        derivative = self.losses(moved, mistake).imag.mean(1) / h
        parts = np.split(derivative, np.cumsum([*sizes.values()])[:-1])
        pairs = zip(sizes, parts, strict=True)
        return {name: part.reshape(self.params[name].shape) for name, part in pairs}

    @cached_property
    def right(self) -> dict[str, Array]:
        """What is expected of the gradients, by meta-parameter."""
        return self.gradients()

    @cached_property
    def task_losses(self) -> Array:
        """``(T,)``"""
        return self.losses({name: array[None] for name, array in self.params.items()})[0]

    @cached_property
    def own(self) -> MetaGradient:
        """What npmeta computes."""
        return self.learner.meta_gradient(self.params, self.setting.tasks)

    @cached_property
    def wrong(self) -> dict[str, WrongAnswer]:
        """The gradient by theta that every mistake makes."""
        found = {mistake: self.gradients(mistake, ("theta",))["theta"] for mistake in self.MISTAKES}
        g = self.right["theta"]
        found |= {"summed_over_tasks": len(self.setting.tasks) * g, "negated": -g}
        formulas = {**self.MISTAKES, **OF_ALL}
        return {
            id: WrongAnswer(
                gradient,
                relative(gradient, g),
                {"formula": formulas[id], "detail": "", "factor": None},
            )
            for id, gradient in found.items()
        }

    @cached_property
    def tolerance(self) -> dict[str, float]:
        """As of MAML: a multiple of what float32, and moved inputs, do to npmeta's own gradients."""
        right, tasks = self.own, self.setting.tasks
        rng, shake = np.random.default_rng(0), SHAKES["float64"][0]

        moved = self.learner.meta_gradient(
            {name: shaken(array, rng, shake) for name, array in self.params.items()},
            TaskBatch(
                shaken(tasks.support_x, rng, shake),
                tasks.support_y,
                shaken(tasks.query_x, rng, shake),
                tasks.query_y,
            ),
        )
        short = self.learner.meta_gradient(
            {name: array.astype(np.float32) for name, array in self.params.items()}, tasks
        )
        noise = {
            "float64": _apart(moved, right) * unit(np.float64) / shake,
            "float32": _apart(short, right),
        }
        return {
            dtype: float(f"{max(SAFETY_OF_MISFITS * noise[dtype], FLOOR[dtype]):.1e}")
            for dtype in noise
        }

    # --- tensors ------------------------------------------------------------------------------------

    @cached_property
    def inputs(self) -> dict[str, Array]:
        tensors = task_arrays(self.setting.tasks)
        for name, constant in self.constants().items():
            if not isinstance(constant, str):
                tensors[name] = np.array(constant)
        for name, array in self.params.items():
            tensors |= self._arrays(name, name, array)
        return tensors

    @cached_property
    def tensors(self) -> dict[str, Array]:
        tensors = dict(self.inputs)
        for name, gradient in self.right.items():
            tensors |= self._arrays(f"expected.{_quantity(name)}", name, gradient)
        tensors["expected.meta_loss"] = np.array(self.task_losses.mean())
        tensors["expected.query_loss"] = self.task_losses
        for name, (_, value) in self.quantities().items():
            arrays = value if isinstance(value, dict) else {name: value}
            tensors |= {f"expected.{key}": array for key, array in arrays.items()}
        for id, wrong in self.seen.items():
            tensors |= self._arrays(f"wrong.{id}.meta_grad", "theta", wrong.gradient)
        return tensors

    def _arrays(self, prefix: str, name: str, value: Array) -> dict[str, Array]:
        """A meta-parameter, or its gradient: of a network layer by layer."""
        networks = self.networks()
        return named_arrays(prefix, networks[name], value) if name in networks else {prefix: value}

    # --- words --------------------------------------------------------------------------------------

    @cached_property
    def document(self) -> dict[str, Any]:
        by_name = {_quantity(name): f"derivative of meta_loss by {name}" for name in self.params} | {
            name: words for name, (words, _) in self.quantities().items()
        }
        return {
            **self._said,
            "order": 1 if self.setting.first_order else 2,
            "definition": [*self.definition(), "meta_loss = mean of query_loss over tasks"],
            "constants": self.constants(),
            "meta_parameters": {name: _quantity(name) for name in self.params},
            "networks": {
                name: {
                    "widths": list(model.widths),
                    "activation": [f.name for f in model.activations],
                    "parameter_order": list(model.places),
                }
                for name, model in self.networks().items()
            },
            "expected": EXPECTED | by_name,
            "acceptable": {},
            "oracle": {"method": self.METHOD, "agreement": self._agreement()},
            **self._wrong_answers(),
        }

    def _hidden(self) -> Any:
        tasks, theta = self.setting.tasks, self.params["theta"][None]
        for x in (tasks.support_x, tasks.query_x):
            yield from network(self.setting.model, theta, x)[1]

    def _loss_kink(self) -> float | None:
        return None

    def _agreement(self) -> dict[str, dict[str, float]]:
        """Relative distances of npmeta's own gradients, and of differences, from what is expected."""
        found = {
            _quantity(name): {"r_operator": relative(self.own.grads[name], gradient)}
            for name, gradient in self.right.items()
        }
        found["meta_loss"] = {"r_operator": relative(np.array(self.own.loss), self.task_losses.mean())}
        if not self.setting.first_order:
            found["meta_grad"] |= self._differences()
        return found

    def _differences(self) -> dict[str, float]:
        """Extrapolated differences of the meta-loss along the gradient."""
        theta, g = self.params["theta"], self.right["theta"]
        slope = float(np.linalg.norm(g))
        others = {name: array[None] for name, array in self.params.items()}

        def loss(t: Array) -> Array:
            there = self.losses({**others, "theta": theta + t[:, None] * g / slope})
            return there.mean(1)

        long = np.longdouble if self.LONG and extended() else np.float64
        along = differentiate(loss, np.sqrt(np.mean(theta**2, keepdims=True, dtype=long)), self.reach)
        return {
            "differences": abs(float(along.value[0]) - slope) / slope,
            "differences_error": float(along.error[0]) / slope,
        }

    @property
    def reach(self) -> float:
        """How far the nearest kink is taken to be."""
        near = [self._loss_kink()] if self._loss_kink() is not None else []
        if any(f.kinks for f in self.setting.model.activations):
            near.append(min(float(np.abs(z).min()) for z in self._hidden()))
        return min((d for d in near if d is not None), default=np.inf)

    def _not_applicable(self) -> list[str]:
        return []

    # --- for subclasses -----------------------------------------------------------------------------

    def one_hot(self, labels: Array) -> Array:
        """Labels ``(T, rows)`` as rows of the identity, ``(T, rows, N)``."""
        return np.eye(self.setting.n_targets)[labels]

    def scored(self, outputs: Array, y: Array) -> Array:
        """The setting's loss of outputs ``(D, T, Q, n)`` with targets ``y (T, Q, n)``: ``(D, T)``."""
        D, T = outputs.shape[:2]
        flat = outputs.reshape(D * T, *outputs.shape[2:])
        value: Array = LOSSES[self.setting.loss](flat, np.tile(y, (D, 1, 1))).value
        return value.reshape(D, T)


#: What is expected of every algorithm.
EXPECTED = {
    "meta_loss": "mean of query_loss over tasks",
    "query_loss": "the loss of every task, (T,)",
}

#: What can be mistaken in every algorithm.
OF_ALL = {"summed_over_tasks": "T g", "negated": "−g"}


def network(model: MLP, theta: Array, x: Array) -> tuple[Array, list[Array]]:
    """Outputs ``(D, T, rows, n)`` for ``theta (D, P)`` and ``x ([D,] T, rows, n_in)``, and what hidden
    layers hand to their activations. There is no normalisation here."""
    hidden: list[Array] = []
    a = x
    for l, shapes in enumerate(model.shapes):
        W, b = (
            theta[:, model.places[f"{l}.{name}"]].reshape(-1, 1, *shape)
            for name, shape in shapes.items()
        )
        if l:
            hidden.append(a)
            a = model.activations[l - 1].f(a)
        a = a @ W + b[:, :, None]
    return a, hidden


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def _quantity(name: str) -> str:
    """What the gradient by a meta-parameter is called."""
    return "meta_grad" if name == "theta" else f"{name}_grad"


def _apart(found: MetaGradient, right: MetaGradient) -> float:
    """The largest relative distance of loss and gradients."""
    pairs = [(np.array(found.loss), np.array(right.loss))]
    pairs += [(found.grads[name], gradient) for name, gradient in right.grads.items()]
    return max(relative(one, other) for one, other in pairs)
