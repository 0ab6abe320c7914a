"""What to compare the numbers of meta-learning with: no meta-learning, and perfect knowledge."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from npmeta._support.validation import (
    Array,
    DType,
    as_dtype,
    as_features,
    as_generator,
    as_number,
    as_parameters,
)
from npmeta.algorithms.adapts import Adapts
from npmeta.algorithms.base import MetaGradient, MetaParameters, Scores, all_rows, check_steps, named
from npmeta.algorithms.gradient_steps import GradientSteps, Prepared
from npmeta.bilevel.objective import Objective
from npmeta.network import losses, spaces
from npmeta.network.losses import Loss
from npmeta.network.mlp import MLP

if TYPE_CHECKING:
    from npmeta.tasks.batch import TaskBatch


@dataclass(frozen=True, eq=False)
class Joint(Adapts):
    r"""Train one network on the rows of all tasks, then fine-tune it to each new one.

    .. math:: \min_\theta \; \frac1T \sum_t L_t(\theta)

    with L_t the mean loss over a task's support and query rows. Nothing adapts in training; a new task
    is adapted to by ``inner_steps`` steps of size ``inner_lr``, as MAML would. This is the "pretrained"
    of Finn et al. (2017).

    Parameters
    ----------
    model, loss, inner_lr, inner_steps, inner_weight_decay, weights
        As in :class:`~npmeta.MAML`.
    """

    model: MLP | Objective
    loss: str | Loss | None = None
    inner_lr: ArrayLike = 0.01
    inner_steps: int = 1
    inner_weight_decay: float = 0.0
    weights: str = "auto"
    inner: GradientSteps = field(init=False, repr=False)

    learns_inner_lr = False

    def __post_init__(self) -> None:
        self._hold()

    def of_tasks(self, problem: Prepared) -> MetaGradient:
        """The gradient of the loss on all rows, at theta."""
        rows = all_rows(problem.support, problem.query)
        point = self.inner.hold(replace(problem, query=rows))
        lin = self.objective.at(point, rows)
        gradient = spaces.cotangent(point, lin.gradient)
        loss = float(lin.value.real.mean())
        return MetaGradient(loss, {"theta": spaces.task_mean(gradient)}, lin.value, "none")


@dataclass(frozen=True, eq=False)
class Scratch(Adapts):
    """Train a network on the support rows of each task alone, from parameters that are random.

    There is nothing to be learned from other tasks: the gradient is zero.

    Parameters
    ----------
    model, loss, inner_lr, inner_steps, inner_weight_decay, weights
        As in :class:`~npmeta.MAML`.
    """

    model: MLP | Objective
    loss: str | Loss | None = None
    inner_lr: ArrayLike = 0.01
    inner_steps: int = 1
    inner_weight_decay: float = 0.0
    weights: str = "auto"
    inner: GradientSteps = field(init=False, repr=False)

    learns_inner_lr = False

    def __post_init__(self) -> None:
        self._hold()

    def of_tasks(self, problem: Prepared) -> MetaGradient:
        """The query loss of the trained networks, and zero."""
        start = self.inner.hold(problem)
        point = self.inner.adapted(start, problem.support, problem.alpha, self.inner_steps)
        loss, _ = self.objective.score(point, problem.query)
        grads = {"theta": np.zeros_like(problem.theta)}
        return MetaGradient(float(loss.real.mean()), grads, loss, "none")


@dataclass(frozen=True, eq=False)
class SineOracle:
    r"""Know that tasks are sine waves of one frequency, and find the wave through the support points.

    With :math:`A \sin(f x + p) = a \sin f x + b \cos f x`, it is linear least squares in (a, b): exact
    on two points or more without noise, the best fit with noise.

    Parameters
    ----------
    frequency : float
        f
    loss : str or Loss
        What is scored.

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> oracle = nm.algorithms.SineOracle()
    >>> nm.evaluate(oracle, np.zeros(0), nm.tasks.Sinusoid(shots=5)).mean().round(12)
    array([0.])
    """

    frequency: float = 1.0
    loss: str | Loss = "mse"

    def __post_init__(self) -> None:
        frequency = as_number(self.frequency, "frequency", "a finite number")
        object.__setattr__(self, "frequency", frequency)
        loss = losses.get(self.loss)
        if loss.targets != "values":
            raise ValueError(f"the targets of waves are values, those of {loss.name} {loss.targets}")

    def init(self, rng: np.random.Generator | int, dtype: DTypeLike = np.float64) -> dict[str, Array]:
        """Nothing: "theta" has no entries."""
        rng = as_generator(rng)
        return {"theta": np.zeros(0, dtype=dtype)}

    @np.errstate(all="ignore")  # what diverges shows in the result
    def meta_gradient(self, params: ArrayLike | MetaParameters, tasks: TaskBatch) -> MetaGradient:
        """The query loss; there is nothing to learn."""
        loss = self.evaluate(params, tasks).loss[:, -1]
        return MetaGradient(float(loss.mean()), {"theta": self._theta(params)}, loss, "none")

    @np.errstate(all="ignore")  # what diverges shows in the result
    def evaluate(
        self, params: ArrayLike | MetaParameters, tasks: TaskBatch, steps: int | None = None
    ) -> Scores:
        """Query loss, ``(T, 1)``: there are no steps."""
        o = self.predict(params, tasks.support_x, tasks.support_y, tasks.query_x, steps)
        loss = losses.get(self.loss)
        y = loss.prepare(tasks.query_y, 1, o.dtype, "query_y")
        return Scores(loss(o, y).value[:, None], None)

    @np.errstate(all="ignore")  # what diverges shows in the result
    def predict(
        self,
        params: ArrayLike | MetaParameters,
        support_x: ArrayLike,
        support_y: ArrayLike,
        query_x: ArrayLike,
        steps: int | None = None,
    ) -> Array:
        """The waves at query inputs, ``(T, Q, 1)``."""
        check_steps(0 if steps is None else steps, "steps")
        dtype = self._theta(params).dtype
        x, y = _column(support_x, dtype, "support_x"), _column(support_y, dtype, "support_y")
        x_query = _column(query_x, dtype, "query_x")
        return self._waves(x_query) @ (np.linalg.pinv(self._waves(x)) @ y)

    def _waves(self, x: Array) -> Array:
        """sin fx and cos fx, ``(T, rows, 2)``."""
        return np.concatenate([np.sin(self.frequency * x), np.cos(self.frequency * x)], axis=-1)

    @staticmethod
    def _theta(params: ArrayLike | MetaParameters) -> Array:
        return as_parameters(named(params)["theta"], 0)


def _column(values: ArrayLike, dtype: DType, name: str) -> Array:
    """Numbers ``(T, rows, 1)``."""
    array = as_features(values, name)
    if array.ndim != 3 or array.shape[-1] != 1:
        raise ValueError(f"{name} must have shape (T, rows, 1), got {array.shape}")
    return as_dtype(array, dtype, name)
