"""CAVIA (Zintgraf, Shiarlis, Kurin, Hofmann & Whiteson 2019): adapt the context, share the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.validation import Array, as_features, as_number, as_whole, check_flag
from npmeta.algorithms.base import (
    MetaGradient,
    MetaParameters,
    both_sets,
    check_network,
    check_steps,
)
from npmeta.algorithms.own_steps import OwnSteps
from npmeta.bilevel.objective import Batch, Risk
from npmeta.network import spaces
from npmeta.network.factored import FactoredBase
from npmeta.network.losses import Loss
from npmeta.network.mlp import MLP
from npmeta.network.weights import OuterSum, Term, row_sum

if TYPE_CHECKING:
    from npmeta.tasks.batch import TaskBatch


@dataclass(frozen=True, eq=False)
class CAVIA(OwnSteps):
    r"""Tell a network which task it is on by further inputs c, which alone adapt to the task.

    .. math:: \min_\theta \; \frac1T \sum_t L^Q_t(c_{t,S}, \theta), \qquad
              c_{t,0} = 0, \quad
              c_{t,s+1} = c_{t,s} - \alpha \nabla_c L^S_t(c_{t,s}, \theta).

    All rows of a task have the same c. With W_c those rows of the first matrix that the context meets,
    :math:`z_1 = x W_x + c W_c + b_1`, and so :math:`\nabla_c L = 1^\top \delta_1 W_c^\top`. No task has
    weights of its own, only a context.

    Parameters
    ----------
    model : MLP
        Its last ``n_context`` inputs are the context: ``MLP([n_in + n_context, ...])``.
    loss : str or Loss
    n_context : int
    inner_lr : float
        α.
    inner_steps : int
        S.
    first_order : bool
        Take ∇_c L^S for a constant.

    Raises
    ------
    ValueError
        If an argument is out of range, or the model has no further inputs.

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> cavia = nm.algorithms.CAVIA(nm.MLP([1 + 4, 40, 40, 1]), n_context=4)
    >>> params = cavia.init(np.random.default_rng(0))
    >>> tasks = nm.tasks.Sinusoid(shots=10).sample(seed=0, iteration=0, n_tasks=25)
    >>> cavia.meta_gradient(params, tasks).grad.shape
    (1921,)
    >>> cavia.adapt(params, tasks.support_x, tasks.support_y).shape
    (25, 4)
    """

    model: MLP
    loss: str | Loss = "mse"
    n_context: int = 5
    inner_lr: float = 1.0
    inner_steps: int = 1
    first_order: bool = False
    objective: Risk = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_network(self.model)
        if not 1 <= as_whole(self.n_context, "n_context") < self.model.widths[0]:
            raise ValueError(
                f"n_context must be from 1 to {self.model.widths[0] - 1} for a network with "
                f"{self.model.widths[0]} inputs, got {self.n_context}"
            )
        if not self.model.is_plain:
            raise ValueError(f"CAVIA takes no normalised network and no structure, got {self.model!r}")
        inner_lr = as_number(self.inner_lr, "inner_lr", "one finite number")
        check_steps(self.inner_steps, "inner_steps")
        check_flag(self.first_order, "first_order")
        object.__setattr__(self, "inner_lr", inner_lr)
        object.__setattr__(self, "objective", Risk(self.model, self.loss))

    @property
    def n_in(self) -> int:
        """Inputs of a row, the context not among them."""
        return self.model.widths[0] - self.n_context

    @np.errstate(all="ignore")  # what diverges shows in the result
    def meta_gradient(self, params: ArrayLike | MetaParameters, tasks: TaskBatch) -> MetaGradient:
        """The mean query loss after adaptation and its exact gradient.

        Parameters and errors are :meth:`npmeta.MAML.meta_gradient`'s, but for step sizes.
        """
        given = self._given(params)
        support, query = both_sets(self._batch, tasks, given["theta"].dtype)
        layers = self._layers(given)
        W_c = layers[0].W[self.n_in :]
        c, steps = self._start(support), []
        for lin, adapted in self._inner_loop(given, support, self.inner_steps):
            steps.append(lin)
            c = adapted
        outer = self._at(given, c, query)

        # λ = dL^Q/dc and λ_θ = dL^Q/dθ, carried back through c_{s+1} = c_s − α ∇_c L^S(c_s, θ).
        lam = self._grad(outer, W_c)
        lam_theta = spaces.cotangent(layers, outer.gradient)
        for lin in () if self.first_order else reversed(steps):
            c_dot = self.inner_lr * lam
            # To the network, ċ is a direction of its first bias, ċ W_c.
            product = [*lin.product([_Moving(c_dot @ W_c), *[_Moving()] * (len(layers) - 1)])]
            delta, delta_dot = lin.gradient[0].terms[0].right, product[0].terms[0].right
            lam = lam - row_sum(delta_dot) @ W_c.T
            product[0] = OuterSum((*product[0].terms, self._moved_input(c_dot, delta)))
            lam_theta = spaces.minus(lam_theta, product)
        return MetaGradient(
            float(outer.value.real.mean()),
            {"theta": spaces.task_mean(lam_theta)},
            outer.value,
            "none" if self.first_order else "exact",
        )

    def states(self, given: Mapping[str, Array], support: Batch, n_steps: int) -> Iterator[Array]:
        """Every task's context ``(T, n_context)`` after 0, 1, .. steps."""
        yield self._start(support)
        for _, c in self._inner_loop(given, support, n_steps):
            yield c

    def placed(
        self, given: Mapping[str, Array], state: Array, x: Array
    ) -> tuple[list[FactoredBase], Array]:
        """The network of all tasks, and [x, c]: the inputs with the context of each in its place."""
        rows = np.broadcast_to(state[:, None, :], (*x.shape[:2], self.n_context))
        return self._layers(given), np.concatenate([x[..., : self.n_in], rows], axis=-1)

    # --- shared by the methods above --------------------------------------------------------------

    def _layers(self, given: Mapping[str, Array]) -> list[FactoredBase]:
        return [FactoredBase(W, b) for W, b in self.model.unpack(given["theta"])]

    def _inputs(self, x: ArrayLike, name: str) -> Array:
        """Inputs ``(T, rows, n_in)`` beside a context of zeros."""
        array = as_features(x, name)
        if array.ndim != 3 or array.shape[-1] != self.n_in:
            raise ValueError(f"{name} must have shape (T, rows, {self.n_in}), got {array.shape}")
        return np.concatenate([array, np.zeros((*array.shape[:2], self.n_context))], axis=-1)

    def _start(self, support: Batch) -> Array:
        return np.zeros((len(support[0]), self.n_context), dtype=support[0].dtype)

    def _inner_loop(
        self, given: Mapping[str, Array], support: Batch, n_steps: int
    ) -> Iterator[tuple[Any, Array]]:
        """The inner steps one by one: the support loss linearised at c_s, and c_{s+1}."""
        c, W_c = self._start(support), self._layers(given)[0].W[self.n_in :]
        for _ in range(n_steps):
            lin = self._at(given, c, support)
            c = c - self.inner_lr * self._grad(lin, W_c)
            yield lin, c

    @staticmethod
    def _grad(lin: Any, W_c: Array) -> Array:
        """∇_c L = 1ᵀ δ_1 W_cᵀ, ``(T, n_context)``."""
        return row_sum(lin.gradient[0].terms[0].right) @ W_c.T

    def _moved_input(self, c_dot: Array, delta: Array) -> Term:
        """ȧ_0ᵀ δ_1 for ȧ_0 = [0, ċ] in every row, which is [0, ċ]ᵀ (1ᵀ δ_1)."""
        left = np.concatenate([np.zeros((len(c_dot), self.n_in), c_dot.dtype), c_dot], axis=-1)
        return Term(left[:, None, :], row_sum(delta)[:, None, :], on_bias=False)


@dataclass(frozen=True)
class _Moving:
    """A direction of a layer, as the passes take it, in which its bias moves or nothing does."""

    b: Array | None = None

    def act(self, h: Array) -> Array | float:
        if self.b is None:
            return 0.0
        return np.broadcast_to(self.b[:, None, :], (*h.shape[:2], self.b.shape[-1]))

    def act_transposed(self, d: Array) -> float:
        return 0.0
