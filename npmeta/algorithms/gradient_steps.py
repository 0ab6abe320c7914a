r"""What algorithms that adapt by gradient steps are made of.

:class:`GradientSteps` is the inner procedure: what is adapted, how far and how often, and the way back
through it. :class:`Prepared` is what a meta-gradient depends on, checked once; it is all that goes from
floor to floor. An algorithm holds the first, and says what it makes of a prepared batch; what it does
not hold has no meaning for it. The methods that they share are in :mod:`npmeta.algorithms.adapts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.memory import keep_freed_memory
from npmeta._support.validation import (
    Array,
    as_number,
    as_parameters,
    check_finite,
    lookup,
    unmasked,
)
from npmeta.algorithms.base import MetaGradient, MetaParameters, Scores, both_sets, check_steps
from npmeta.bilevel.adaptation import StepSizes, adapt, inner_loop, pull_back
from npmeta.bilevel.objective import Batch, Objective, Risk, as_objective
from npmeta.bilevel.plan import FORMS, Plan, chunk_size, make_plan
from npmeta.network import spaces
from npmeta.network.losses import Loss
from npmeta.network.mlp import MLP
from npmeta.network.weights import Point, total

if TYPE_CHECKING:
    from npmeta.tasks.batch import TaskBatch


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a meta-gradient depends on, checked and cast.

    Attributes
    ----------
    theta : ndarray, (P,)
    alpha : StepSizes
    support, query : Batch
        Rows of T tasks.
    learns : bool
        Whether the step sizes are among the meta-parameters.
    """

    theta: Array
    alpha: StepSizes
    support: Batch
    query: Batch
    learns: bool = False

    def __getitem__(self, tasks: slice) -> Prepared:
        """Some of the tasks."""
        (x, y), (query_x, query_y) = self.support, self.query
        support, query = (x[tasks], y[tasks]), (query_x[tasks], query_y[tasks])
        return Prepared(self.theta, self.alpha, support, query, self.learns)


@dataclass(frozen=True, eq=False)
class GradientSteps:
    """S steps of gradient descent on each task's support loss, and their adjoint.

    Attributes
    ----------
    objective : Objective
    step_sizes : ndarray
        α, in one of the shapes of :class:`~npmeta.bilevel.adaptation.StepSizes`; read only.
    steps : int
        S
    weight_decay : float
        w
    weights : str
        How layers hold the tasks' weights: "auto", "dense" or "factored".
    second_order : bool
        Whether the way back takes second derivatives.
    """

    objective: Objective
    step_sizes: Array
    steps: int
    weight_decay: float
    weights: str
    second_order: bool

    @staticmethod
    def of(
        model: MLP | Objective,
        loss: str | Loss | None,
        inner_lr: ArrayLike,
        inner_steps: int,
        inner_weight_decay: float = 0.0,
        weights: str = "auto",
        *,
        second_order: bool = False,
    ) -> GradientSteps:
        """From an algorithm's arguments.

        Raises
        ------
        ValueError
            If an argument is out of range or of a shape that does not fit.
        """
        objective = as_objective(model, loss)
        check_steps(inner_steps, "inner_steps")
        lookup(weights, dict.fromkeys(FORMS), "form of weights")
        kind = "a number of at least 0"
        decay = as_number(inner_weight_decay, "inner_weight_decay", kind, lambda w: w >= 0)
        # A copy: what becomes of the caller's is his affair.
        alpha = np.array(unmasked(inner_lr, "inner_lr"))
        alpha.flags.writeable = False
        StepSizes(alpha, objective, inner_steps, np.dtype(np.float64))
        return GradientSteps(objective, alpha, inner_steps, decay, weights, second_order)

    # --- prepared once ----------------------------------------------------------------------------

    def meta_parameters(self, params: MetaParameters) -> tuple[Array, StepSizes]:
        """theta, checked, and the step sizes: learned ones, if there are any, before our own."""
        theta = as_parameters(params["theta"], self.objective.n_params)
        if theta.ndim != 1:
            raise ValueError(f"theta must have shape ({theta.shape[-1]},), got {theta.shape}")
        check_finite(theta, "theta")
        alpha = params.get("inner_lr", self.step_sizes)
        return theta, StepSizes(alpha, self.objective, self.steps, theta.dtype)

    def prepared(self, params: MetaParameters, tasks: TaskBatch) -> Prepared:
        """Meta-parameters and tasks."""
        theta, alpha = self.meta_parameters(params)
        support, query = both_sets(self.objective.prepare, tasks, theta.dtype)
        return Prepared(theta, alpha, support, query, "inner_lr" in params)

    def chunks(self, problem: Prepared) -> list[Prepared]:
        """The tasks in chunks whose activations stay in the cache."""
        keep_freed_memory()
        support, query = problem.support[0], problem.query[0]
        size = n_tasks = len(support)
        if isinstance(self.objective, Risk):
            size = chunk_size(
                self.objective.model.widths,
                n_tasks=n_tasks,
                n_support=support.shape[1],
                n_query=query.shape[1],
                itemsize=support.dtype.itemsize,
            )
        return [problem[start : start + size] for start in range(0, n_tasks, size)]

    def plan(
        self,
        widths: tuple[int, ...],
        problem: Prepared,
        steps: int | None = None,
        second_order: bool | None = None,
    ) -> Plan:
        """How each layer holds the tasks' weights, by default for a meta-gradient."""
        support, query = problem.support[0], problem.query[0]
        return make_plan(
            widths,
            n_tasks=len(support),
            n_support=support.shape[1],
            n_query=query.shape[1],
            n_steps=self.steps if steps is None else steps,
            itemsize=problem.theta.dtype.itemsize,
            second_order=self.second_order if second_order is None else second_order,
            per_parameter=problem.alpha.per_parameter,
            weights=self.weights,
        )

    def hold(
        self, problem: Prepared, steps: int | None = None, second_order: bool | None = None
    ) -> Sequence[Point]:
        """theta as the plan says, where there are layers to plan for."""
        if not isinstance(self.objective, Risk):
            return self.objective.hold(problem.theta)
        plan = self.plan(self.objective.model.widths, problem, steps, second_order)
        return self.objective.hold(problem.theta, plan.forms)

    # --- there, and back --------------------------------------------------------------------------

    def adapted(
        self, point: Sequence[Point], support: Batch, alpha: StepSizes, steps: int
    ) -> Sequence[Point]:
        """φ after the steps from a point."""
        for _, moved in inner_loop(self.objective, point, support, alpha, steps, self.weight_decay):
            point = moved
        return point

    def scores(self, problem: Prepared, steps: int) -> Scores:
        """Query loss after 0, 1, .., ``steps`` steps."""
        point = self.hold(problem, steps, second_order=False)
        scored = [self.objective.score(point, problem.query)]
        for _, moved in inner_loop(
            self.objective, point, problem.support, problem.alpha, steps, self.weight_decay
        ):
            scored.append(self.objective.score(moved, problem.query))
        return Scores.of_steps(scored)

    def meta_gradient(
        self, problem: Prepared, step_weights: Mapping[int, float] | None = None
    ) -> MetaGradient:
        r"""The derivative of :math:`\frac1T \sum_t \sum_s v_s L^Q_t(\varphi_{t,s})` by the
        meta-parameters.

        Parameters
        ----------
        problem : Prepared
        step_weights : mapping, optional
            v_s by the number of the step, S among them; by default the last step's loss alone counts.
        """
        S, of = self.steps, problem.theta.dtype.type  # weights have the precision of what they multiply
        v = {s: of(weight).item() for s, weight in (step_weights or {S: 1.0}).items()}
        path = adapt(
            self.objective, self.hold(problem), problem.support, problem.alpha, S, self.weight_decay
        )
        outer = {s: self.objective.at(path.weights[s], problem.query) for s in v}
        last = spaces.cotangent(path.weights[S], outer[S].gradient)
        if v[S] != 1:
            last = spaces.times(v[S], last)
        cotangent, by_alpha = pull_back(
            path,
            last,
            problem.alpha,
            self.weight_decay,
            first_order=not self.second_order,
            with_step_sizes=problem.learns,
            joining={s: (v[s], outer[s].gradient) for s in v if s < S},
        )
        grads = {"theta": spaces.task_mean(cotangent)}
        if by_alpha is not None:
            grads["inner_lr"] = by_alpha
        loss = outer[S].value if step_weights is None else total(v[s] * outer[s].value for s in v)
        hessian = self.objective.hessian if self.second_order else "none"
        return MetaGradient(float(loss.real.mean()), grads, loss, hessian)
