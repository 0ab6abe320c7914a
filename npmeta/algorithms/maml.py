"""Model-agnostic meta-learning (Finn, Abbeel & Levine 2017), with exact second derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from npmeta._memory import keep_freed_memory
from npmeta._validation import (
    Array,
    DType,
    as_generator,
    as_number,
    as_parameters,
    check_finite,
    check_flag,
    lookup,
    unmasked,
)
from npmeta.adaptation import StepSizes, adapt, inner_loop, pull_back
from npmeta.algorithms.base import MetaGradient, MetaParameters, Scores, both_sets, check_steps, named
from npmeta.losses import Loss
from npmeta.mlp import MLP
from npmeta.objective import Batch, Objective, Risk
from npmeta.plan import FORMS, Plan, chunk_size, make_plan
from npmeta.weights import Block, flatten

if TYPE_CHECKING:
    from npmeta.tasks.batch import TaskBatch

__all__ = ["MAML"]


@dataclass(frozen=True, eq=False)
class MAML:
    r"""Find an initialisation from which a few gradient steps solve a new task.

    .. math:: \min_\theta \; \frac1T \sum_t L^Q_t(\varphi_{t,S}), \qquad
              \varphi_{t,0} = \theta, \quad
              \varphi_{t,s+1} = \varphi_{t,s} - \alpha \nabla L^S_t(\varphi_{t,s}).

    Parameters
    ----------
    model : MLP or Objective
        A network, or any objective of your own (which brings its loss with it).
    loss : str or Loss, optional
        For a network: a name in :data:`npmeta.losses.LOSSES` or your own. Default "mse".
    inner_lr : array_like
        The step size α: a number, or one per layer, per step or per parameter
        (:class:`~npmeta.adaptation.StepSizes` lists the shapes). Zeros freeze parameters in the
        inner loop only: all layers but the last is ANIL, the last alone is BOIL.
    inner_steps : int
        S, at least 0; 0 is joint training on the query sets.
    first_order : bool
        Leave the second derivatives out (FOMAML).
    inner_weight_decay : float
        w ≥ 0: the inner loop descends on L^S + (w/2)‖φ‖².
    learn_inner_lr : bool
        Have :meth:`init` make ``inner_lr`` a meta-parameter beside theta, in the shape given here.
    weights : {"auto", "dense", "factored"}
        How layers hold the tasks' weights (:mod:`npmeta.factored`). By default each layer has the form
        that costs less; :meth:`plan` shows which and why. The result is the same within rounding.

    Attributes
    ----------
    objective : Objective
        ``Risk(model, loss)``, or the objective that was passed.

    Raises
    ------
    ValueError
        If an argument is out of range or of a shape that does not fit.

    Notes
    -----
    Calls share nothing that changes: threads may use one MAML, and no result is overwritten by a later
    call.

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> model = nm.MLP([1, 40, 40, 1], activation="relu")
    >>> theta = model.init(np.random.default_rng(0))
    >>> maml = nm.MAML(model, loss="mse", inner_lr=0.01, inner_steps=1)
    >>> tasks = nm.tasks.Sinusoid(shots=10).sample(seed=0, iteration=0, n_tasks=25)
    >>> out = maml.meta_gradient(theta, tasks)
    >>> out.grad.shape, out.task_loss.shape
    ((1761,), (25,))
    """

    model: MLP | Objective
    loss: str | Loss | None = None
    inner_lr: ArrayLike = 0.01
    inner_steps: int = 1
    first_order: bool = False
    inner_weight_decay: float = 0.0
    learn_inner_lr: bool = False
    weights: str = "auto"
    objective: Objective = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.model, MLP):
            objective: Objective = Risk(self.model, "mse" if self.loss is None else self.loss)
        elif self.loss is not None:
            raise ValueError("an objective brings its own loss; pass loss only with an MLP")
        elif not hasattr(self.model, "prepare"):
            raise ValueError(f"model must be an MLP or an objective, got {type(self.model).__name__}")
        else:
            objective = self.model
        check_steps(self.inner_steps, "inner_steps")
        check_flag(self.first_order, "first_order")
        check_flag(self.learn_inner_lr, "learn_inner_lr")
        lookup(self.weights, dict.fromkeys(FORMS), "form of weights")
        kind = "a number of at least 0"
        decay = as_number(self.inner_weight_decay, "inner_weight_decay", kind, lambda w: w >= 0)
        object.__setattr__(self, "inner_weight_decay", decay)
        inner_lr = np.array(
            unmasked(self.inner_lr, "inner_lr")
        )  # a copy: what becomes of the caller's is his affair
        inner_lr.flags.writeable = False
        object.__setattr__(self, "inner_lr", inner_lr)
        StepSizes(inner_lr, objective, self.inner_steps, np.dtype(np.float64))
        object.__setattr__(self, "objective", objective)

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
        if self.learn_inner_lr:
            params["inner_lr"] = np.array(self.inner_lr, dtype=dtype)
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
        theta, alpha = self._meta_parameters(params)
        support, query = self._prepare(tasks, theta.dtype)
        learns = "inner_lr" in named(params)
        parts = [
            self._of_chunk(theta, alpha, _part(support, chunk), _part(query, chunk), learns)
            for chunk in self._chunks(support, query)
        ]
        return parts[0] if len(parts) == 1 else MetaGradient.join(parts)

    def _of_chunk(
        self, theta: Array, alpha: StepSizes, support: Batch, query: Batch, learns: bool
    ) -> MetaGradient:
        """:meth:`meta_gradient` of some of the tasks."""
        path = adapt(
            self.objective,
            self._hold(theta, alpha, support, query),
            support,
            alpha,
            self.inner_steps,
            self.inner_weight_decay,
        )
        outer = self.objective.at(path.weights[-1], query)
        cotangent, alpha_grad = pull_back(
            path,
            [W.cotangent(g) for W, g in zip(path.weights[-1], outer.gradient, strict=True)],
            alpha,
            self.inner_weight_decay,
            first_order=self.first_order,
            with_step_sizes=learns,
        )
        grads = {"theta": np.concatenate([block.task_mean() for block in cotangent])}
        if alpha_grad is not None:
            grads["inner_lr"] = alpha_grad
        return MetaGradient(
            float(outer.value.real.mean()),
            grads,
            outer.value,
            "none" if self.first_order else self.objective.hessian,
        )

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
        steps = check_steps(self.inner_steps if steps is None else steps, "steps")
        theta, alpha = self._meta_parameters(params)
        support = self.objective.prepare(support_x, support_y, theta.dtype, "support_")
        point = self._adapted(self.objective.hold(theta), support, alpha, steps)
        phi = np.broadcast_to(flatten(point), (len(support[0]), self.objective.n_params))
        return np.array(phi)

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
        steps = check_steps(self.inner_steps if steps is None else steps, "steps")
        theta, alpha = self._meta_parameters(params)
        support = self.objective.prepare(support_x, support_y, theta.dtype, "support_")
        x = self.objective.model.features(query_x, theta.dtype, "query_x")
        if x.ndim != 3 or len(x) != len(support[0]):
            raise ValueError(
                f"query_x must have shape ({len(support[0])}, Q, n_in), as many tasks as "
                f"support_x; got {x.shape}"
            )
        outputs = []
        for chunk in self._chunks(support, (x, x)):
            part, query = _part(support, chunk), x[chunk]
            start = self._hold(theta, alpha, part, (query, query), steps, second_order=False)
            point = self._adapted(start, part, alpha, steps)
            outputs.append(self.objective.outputs(point, query))
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
        steps = check_steps(self.inner_steps if steps is None else steps, "steps")
        theta, alpha = self._meta_parameters(params)
        support, query = self._prepare(tasks, theta.dtype)
        return Scores.join(
            [
                self._scores(theta, alpha, _part(support, chunk), _part(query, chunk), steps)
                for chunk in self._chunks(support, query)
            ]
        )

    # --- shared by the methods above --------------------------------------------------------------

    def _scores(
        self, theta: Array, alpha: StepSizes, support: Batch, query: Batch, steps: int
    ) -> Scores:
        """:meth:`evaluate` for some of the tasks."""
        point = self._hold(theta, alpha, support, query, steps, second_order=False)
        scored = [self.objective.score(point, query)]
        for _, adapted in inner_loop(
            self.objective, point, support, alpha, steps, self.inner_weight_decay
        ):
            scored.append(self.objective.score(adapted, query))
        return Scores.of_steps(scored)

    def _meta_parameters(self, params: ArrayLike | MetaParameters) -> tuple[Array, StepSizes]:
        """theta, checked, and the step sizes: learned ones, if there are any, before our own."""
        params = named(params)
        unknown = set(params) - {"theta", "inner_lr"}
        if unknown:
            raise ValueError(f"MAML has no meta-parameter {sorted(unknown)[0]!r}")
        theta = as_parameters(params["theta"], self.objective.n_params)
        if theta.ndim != 1:
            raise ValueError(f"theta must have shape ({theta.shape[-1]},), got {theta.shape}")
        check_finite(theta, "theta")
        inner_lr = params.get("inner_lr", self.inner_lr)
        return theta, StepSizes(inner_lr, self.objective, self.inner_steps, theta.dtype)

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
        theta, alpha = self._meta_parameters(params)
        support, query = self._prepare(tasks, theta.dtype)
        chunk, *_ = self._chunks(support, query)
        return self._plan(
            self.objective.model.widths, theta, alpha, _part(support, chunk), _part(query, chunk)
        )

    def _plan(
        self,
        widths: tuple[int, ...],
        theta: Array,
        alpha: StepSizes,
        support: Batch,
        query: Batch,
        steps: int | None = None,
        second_order: bool = True,
    ) -> Plan:
        return make_plan(
            widths,
            n_tasks=len(support[0]),
            n_support=support[0].shape[1],
            n_query=query[0].shape[1],
            n_steps=self.inner_steps if steps is None else steps,
            itemsize=theta.dtype.itemsize,
            second_order=second_order and not self.first_order,
            per_parameter=alpha.per_parameter,
            weights=self.weights,
        )

    def _hold(self, theta: Array, alpha: StepSizes, *args: Any, **kwargs: Any) -> Sequence[Block]:
        """theta as the plan says, where there are layers to plan for; arguments as in :meth:`_plan`."""
        if not isinstance(self.objective, Risk):
            return self.objective.hold(theta)
        plan = self._plan(self.objective.model.widths, theta, alpha, *args, **kwargs)
        return self.objective.hold(theta, plan.forms)

    def _chunks(self, support: Batch, query: Batch) -> list[slice]:
        """The tasks in chunks whose activations stay in the cache."""
        keep_freed_memory()
        size = n_tasks = len(support[0])
        if isinstance(self.objective, Risk):
            size = chunk_size(
                self.objective.model.widths,
                n_tasks=n_tasks,
                n_support=support[0].shape[1],
                n_query=query[0].shape[1],
                itemsize=support[0].dtype.itemsize,
            )
        return [slice(start, start + size) for start in range(0, n_tasks, size)]

    def _prepare(self, tasks: TaskBatch, dtype: DType) -> tuple[Batch, Batch]:
        return both_sets(self.objective.prepare, tasks, dtype)

    def _adapted(
        self, point: Sequence[Block], support: Batch, alpha: StepSizes, steps: int
    ) -> Sequence[Block]:
        """φ after the steps from a point."""
        for _, adapted in inner_loop(
            self.objective, point, support, alpha, steps, self.inner_weight_decay
        ):
            point = adapted
        return point


def _part(batch: Batch, tasks: slice) -> Batch:
    x, y = batch
    return x[tasks], y[tasks]
