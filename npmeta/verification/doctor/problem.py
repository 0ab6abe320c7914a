"""A meta-learning problem with everything fixed that its gradient depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.validation import Array, DType, as_parameters, check_finite, shown
from npmeta.algorithms import MAML
from npmeta.bilevel.adaptation import StepSizes
from npmeta.bilevel.objective import Batch, Risk
from npmeta.network.mlp import MLP
from npmeta.tasks import TaskBatch
from npmeta.verification.doctor.row_space import RowSpace
from npmeta.verification.oracles.meta_loss import check_maml


@dataclass(frozen=True, eq=False)
class Problem:
    """MAML, the meta-parameters it is differentiated at, and the tasks.

    Parameters
    ----------
    maml : MAML
        Itself, not another algorithm that is made of one; with exact second derivatives:
        ``first_order`` is one of the mistakes to be told apart.
    theta : array_like, (P,)
        Or a mapping with "theta" alone, as :meth:`npmeta.MAML.init` returns it.
    tasks : TaskBatch

    Raises
    ------
    ValueError
        If an argument is something else; if ``maml`` is first order, or theta or the tasks do not fit
        it.

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> maml = nm.MAML(nm.MLP([1, 8, 8, 1], "tanh"), inner_lr=0.1, inner_steps=3)
    >>> theta = maml.model.init(np.random.default_rng(0))
    >>> problem = nm.Problem(maml, theta, nm.tasks.Sinusoid(shots=5).sample(0, 0, 3))
    >>> problem
    Problem(T=3, K=5, Q=10, S=3, P=97, float64)
    """

    maml: MAML
    theta: Array
    tasks: TaskBatch
    _prepared: dict[DType, tuple[Batch, Batch]] = field(init=False, repr=False)

    def __init__(
        self, maml: MAML, theta: ArrayLike | Mapping[str, ArrayLike], tasks: TaskBatch
    ) -> None:
        check_maml(maml)
        if not isinstance(tasks, TaskBatch):
            raise ValueError(f"tasks must be a TaskBatch, got {shown(tasks)}")
        if isinstance(theta, Mapping):
            if set(theta) != {"theta"}:
                raise ValueError(
                    f"a problem is posed at theta alone, got {', '.join(map(repr, theta))}; learned "
                    "step sizes go into MAML(inner_lr=...)"
                )
            theta = theta["theta"]
        if maml.first_order:
            raise ValueError("a problem is posed by exact MAML; leave out first_order=True")
        if isinstance(maml.model, MLP) and maml.model.norm_sets > 1:
            raise ValueError("a problem has one scale and shift for all inner steps, not norm_sets")
        parameters = as_parameters(theta, maml.objective.n_params)
        if parameters.ndim != 1 or parameters.dtype.kind != "f":
            raise ValueError(
                f"theta must be real, of shape ({maml.objective.n_params},); got {parameters.dtype} "
                f"{parameters.shape}"
            )
        check_finite(parameters, "theta")
        object.__setattr__(self, "_prepared", {})
        for name, value in (("maml", maml), ("theta", parameters.copy()), ("tasks", tasks)):
            object.__setattr__(self, name, value)
        self.theta.flags.writeable = False
        self.batches(self.theta.dtype)  # data that does not fit is refused here

    def __repr__(self) -> str:
        sizes = f"T={self.T}, K={self.K}, Q={self.Q}, S={self.S}, P={self.P}"
        return f"Problem({sizes}, {self.theta.dtype})"

    # --- sizes, by the letters of the formulas --------------------------------------------------

    @property
    def T(self) -> int:
        """Tasks."""
        return len(self.tasks)

    @property
    def K(self) -> int:
        """Support rows of a task."""
        return int(self.tasks.support_x.shape[1])

    @property
    def Q(self) -> int:
        """Query rows of a task."""
        return int(self.tasks.query_x.shape[1])

    @property
    def S(self) -> int:
        """Inner steps."""
        return self.maml.inner_steps

    @property
    def P(self) -> int:
        """Parameters."""
        return int(self.theta.size)

    @property
    def risk(self) -> Risk | None:
        """The network with its loss; None for an objective that is no network."""
        return self.maml.objective if isinstance(self.maml.objective, Risk) else None

    @property
    def model(self) -> MLP | None:
        """The network, if there is one."""
        return None if self.risk is None else self.risk.model

    @property
    def n_outputs(self) -> int:
        """d_out; 1 where there is no network."""
        return 1 if self.model is None else self.model.widths[-1]

    @property
    def blocks(self) -> dict[str, slice]:
        """Where each array of parameters lies in theta: ``0.weight``, ``0.bias``, ``1.weight``, ..."""
        return {"theta": slice(0, self.P)} if self.model is None else self.model.places

    # --- data -----------------------------------------------------------------------------------

    def batches(self, dtype: DType) -> tuple[Batch, Batch]:
        """Support and query sets, checked and cast."""
        if dtype not in self._prepared:
            prepare = self.maml.objective.prepare
            self._prepared[dtype] = (
                prepare(self.tasks.support_x, self.tasks.support_y, dtype, "support_"),
                prepare(self.tasks.query_x, self.tasks.query_y, dtype, "query_"),
            )
        return self._prepared[dtype]

    def step_sizes(self, dtype: DType, *, norm_too: bool = False) -> Array:
        """α written out for every step and parameter, ``(max(S, 1), P)``; ``norm_too`` as if scales and
        shifts were adapted."""
        objective = self.maml.objective
        if norm_too and isinstance(objective, Risk) and objective.model.norm is not None:
            model = objective.model
            objective = Risk(MLP(model.widths, model.activations, norm=model.norm), objective.loss)
        sizes = StepSizes(self.maml.inner_lr, objective, self.S, dtype).written_out()
        return sizes if len(sizes) > 1 else np.repeat(sizes, max(self.S, 1), axis=0)

    @cached_property
    def row_space(self) -> RowSpace | None:
        """The same in float64, in coordinates of the tasks' rows, where inputs are wide."""
        if self.risk is None:
            return None
        float64 = np.dtype(np.float64)
        theta = self.theta.astype(float64)
        return RowSpace.of(self.risk, theta, self.step_sizes(float64), *self.batches(float64))

    @cached_property
    def gradient(self) -> Array:
        """The exact meta-gradient, ``(P,)``, in float64; not finite where the inner loop runs away."""
        with np.errstate(all="ignore"):
            return self.maml.meta_gradient(self.theta.astype(np.float64), self.tasks).grad
