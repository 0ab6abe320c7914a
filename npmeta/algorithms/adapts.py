"""The methods that all algorithms share which adapt by gradient steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from npmeta._support.validation import Array, as_generator, check_flag
from npmeta.algorithms.base import MetaGradient, MetaParameters, Scores, check_steps, named
from npmeta.algorithms.gradient_steps import GradientSteps, Prepared
from npmeta.bilevel.objective import Objective, Risk
from npmeta.bilevel.plan import Plan
from npmeta.network.spaces import flatten

if TYPE_CHECKING:
    from npmeta.tasks.batch import TaskBatch


class Adapts(ABC):
    """The methods of an algorithm that adapts by gradient steps. It has no state of its own.

    A subclass has the steps as ``inner``, says in :attr:`learns_inner_lr` whether step sizes may be
    among its meta-parameters, and in :meth:`of_tasks` what it makes of a prepared batch.
    """

    #: Whether "inner_lr" may stand beside "theta".
    learns_inner_lr = True

    #: How it adapts.
    inner: GradientSteps

    @property
    def objective(self) -> Objective:
        """``Risk(model, loss)``, or the objective that was passed."""
        return self.inner.objective

    @abstractmethod
    def of_tasks(self, problem: Prepared) -> MetaGradient:
        """:meth:`meta_gradient` of some of the tasks."""

    def init(self, rng: np.random.Generator | int, dtype: DTypeLike = np.float64) -> dict[str, Array]:
        """Initial meta-parameters: "theta", and "inner_lr" if it is learned.

        Raises
        ------
        ValueError
            If the model is an objective, which does not say how its parameters begin.
        """
        rng = as_generator(rng)
        if not isinstance(self.objective, Risk):
            raise ValueError("an objective has no initial parameters; pass your own theta")
        params = {"theta": self.objective.init(rng, dtype)}
        if getattr(self, "learn_inner_lr", False):
            params["inner_lr"] = np.array(self.inner.step_sizes, dtype=dtype)
        return params

    @np.errstate(all="ignore")  # what diverges shows in the result
    def meta_gradient(self, params: ArrayLike | MetaParameters, tasks: TaskBatch) -> MetaGradient:
        """The mean query loss after adaptation and its exact gradient.

        Parameters
        ----------
        params : array_like (P,), or mapping
            theta; or "theta" with, optionally, "inner_lr" in any shape that ``inner_lr`` may have.
        tasks : TaskBatch

        Returns
        -------
        MetaGradient
            ``.loss``, ``.grad (P,)``, ``.task_loss (T,)``; ``.grads`` has a gradient under the name
            of every meta-parameter that was passed.

        Raises
        ------
        ValueError
            If shapes, labels or dtypes do not fit the model.
        """
        problem = self.inner.prepared(self._named(params), tasks)
        parts = [self.of_tasks(part) for part in self.inner.chunks(problem)]
        return parts[0] if len(parts) == 1 else MetaGradient.join(parts)

    @np.errstate(all="ignore")  # what diverges shows in the result
    def adapt(
        self,
        params: ArrayLike | MetaParameters,
        support_x: ArrayLike,
        support_y: ArrayLike,
        steps: int | None = None,
    ) -> Array:
        """Every task's parameters after adaptation.

        Parameters
        ----------
        params : array_like (P,), or mapping
        support_x : array_like, (T, K, n_in)
        support_y : array_like, (T, K, n_out) or integer labels (T, K)
        steps : int, optional
            Inner steps, by default ``inner_steps``.

        Returns
        -------
        ndarray, (T, P)
        """
        steps = self._steps(steps)
        theta, alpha = self.inner.meta_parameters(self._named(params))
        support = self.objective.prepare(support_x, support_y, theta.dtype, "support_")
        point = self.inner.adapted(self.objective.hold(theta), support, alpha, steps)
        phi = flatten(point)
        if isinstance(self.objective, Risk):
            phi = self.objective.model.begun_anew(phi, steps)
        return np.array(np.broadcast_to(phi, (len(support[0]), self.objective.n_params)))

    @np.errstate(all="ignore")  # what diverges shows in the result
    def predict(
        self,
        params: ArrayLike | MetaParameters,
        support_x: ArrayLike,
        support_y: ArrayLike,
        query_x: ArrayLike,
        steps: int | None = None,
    ) -> Array:
        """The adapted networks' outputs on query inputs, ``(T, Q, n_out)``.

        Raises
        ------
        ValueError
            If the model is an objective (adapt, and use its parameters), or shapes do not fit.
        """
        if not isinstance(self.objective, Risk):
            raise ValueError("an objective makes no predictions; adapt, and use its parameters")
        steps = self._steps(steps)
        theta, alpha = self.inner.meta_parameters(self._named(params))
        support = self.objective.prepare(support_x, support_y, theta.dtype, "support_")
        x = self.objective.model.features(query_x, theta.dtype, "query_x")
        if x.ndim != 3 or len(x) != len(support[0]):
            raise ValueError(
                f"query_x must have shape ({len(support[0])}, Q, n_in), as many tasks as "
                f"support_x; got {x.shape}"
            )
        outputs = []
        for part in self.inner.chunks(Prepared(theta, alpha, support, (x, x))):
            start = self.inner.hold(part, steps, second_order=False)
            point = self.inner.adapted(start, part.support, alpha, steps)
            outputs.append(self.objective.outputs(point, part.query[0]))
        return np.concatenate(outputs)

    @np.errstate(all="ignore")  # what diverges shows in the result
    def evaluate(
        self,
        params: ArrayLike | MetaParameters,
        tasks: TaskBatch,
        steps: int | None = None,
    ) -> Scores:
        """Query loss (and accuracy, for classes) of every task after 0, 1, .., ``steps`` steps.

        Parameters
        ----------
        params : array_like (P,), or mapping
        tasks : TaskBatch
        steps : int, optional
            By default ``inner_steps``. Steps beyond those trained for use the last one's step size.

        Returns
        -------
        Scores
            ``.loss (T, steps + 1)`` and ``.accuracy`` of that shape or None.
        """
        steps = self._steps(steps)
        problem = self.inner.prepared(self._named(params), tasks)
        return Scores.join([self.inner.scores(part, steps) for part in self.inner.chunks(problem)])

    def plan(self, tasks: TaskBatch, params: ArrayLike | MetaParameters | None = None) -> Plan:
        """How each layer will hold the tasks' weights in :meth:`meta_gradient`, and why.

        Parameters
        ----------
        tasks : TaskBatch
        params : array_like (P,), or mapping, optional
            By default float64 parameters with our own ``inner_lr``.

        Raises
        ------
        ValueError
            If the model is no network, or the arguments would not do for :meth:`meta_gradient`.
        """
        if not isinstance(self.objective, Risk):
            raise ValueError("an objective has no layers to plan for")
        if params is None:
            params = np.zeros(self.objective.n_params)
        first, *_ = self.inner.chunks(self.inner.prepared(self._named(params), tasks))
        return self.inner.plan(self.objective.model.widths, first)

    def _hold(self) -> None:
        """Make ``inner`` of the algorithm's own arguments, and put what was checked in their place.

        Where there is no ``first_order`` to say otherwise, nothing is differentiated twice.
        """
        own: dict[str, Any] = {
            one.name: getattr(self, one.name) for one in fields(cast(Any, self)) if one.init
        }
        for name in ("first_order", "learn_inner_lr"):
            check_flag(own.get(name, True), name)
        inner = GradientSteps.of(
            own["model"],
            own["loss"],
            own["inner_lr"],
            own["inner_steps"],
            own.get("inner_weight_decay", 0.0),
            own["weights"],
            second_order=not own.get("first_order", True),
        )
        checked = {"inner_lr": inner.step_sizes, "inner_weight_decay": inner.weight_decay}
        for name, value in {"inner": inner, **checked}.items():
            if name == "inner" or name in own:
                object.__setattr__(self, name, value)

    def _named(self, params: ArrayLike | MetaParameters) -> MetaParameters:
        """Meta-parameters by name, none of them unknown."""
        params = named(params)
        known = {"theta", "inner_lr"} if self.learns_inner_lr else {"theta"}
        unknown = sorted(set(params) - known)
        if unknown:
            raise ValueError(f"{type(self).__name__} has no meta-parameter {unknown[0]!r}")
        return params

    def _steps(self, steps: int | None) -> int:
        return check_steps(self.inner.steps if steps is None else steps, "steps")
