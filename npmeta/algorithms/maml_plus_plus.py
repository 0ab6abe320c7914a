"""MAML++ (Antoniou, Edwards & Storkey 2019, "How to train your MAML")."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.validation import as_array, as_number, as_whole
from npmeta.algorithms.adapts import Adapts
from npmeta.algorithms.base import MetaGradient, check_steps
from npmeta.algorithms.gradient_steps import GradientSteps, Prepared
from npmeta.bilevel.objective import Objective
from npmeta.network.losses import Loss
from npmeta.network.mlp import MLP


@dataclass(frozen=True, eq=False)
class MAMLPlusPlus(Adapts):
    r"""MAML whose outer loss has a part after every inner step, and whose step sizes are learned.

    .. math:: \min_{\theta, \alpha} \; \frac1T \sum_t \sum_{s=1}^S v_s L^Q_t(\varphi_{t,s})

    The weights v are annealed. In iteration i of the first A = ``multi_step_iterations`` they are

    .. math:: v_s = \max\!\Big(\frac1S \Big(1 - \frac iA\Big), \frac{0.03}{S}\Big) \; (s < S),
              \qquad v_S = 1 - \sum_{s<S} v_s,

    and after that the last step's loss alone counts, as in MAML. (0.03 is of the authors' code.) The
    order of derivatives is annealed too: the first ``first_order_iterations`` leave the second ones
    out. :func:`npmeta.meta_train` asks for the form of each iteration by :meth:`at_iteration`; called
    directly, an object is as its ``step_weights`` and ``first_order`` say. The paper's normalisation is
    the network's: ``MLP(..., norm="batch", adapt_norm=False, norm_sets=S)``.

    Parameters
    ----------
    model, loss, inner_steps, first_order, inner_weight_decay, weights
        As in :class:`~npmeta.MAML`.
    inner_lr : array_like
        As in MAML; one number stands for one in each step and layer, ``(S, L)``. By default learned.
    multi_step_iterations : int
        A; 0 for MAML's loss from the beginning.
    first_order_iterations : int
        0 for second derivatives from the beginning.
    step_weights : array_like, optional
        v ``(S,)`` where it is not annealed. By default (0, .., 0, 1).
    """

    model: MLP | Objective
    loss: str | Loss | None = None
    inner_lr: ArrayLike = 0.01
    inner_steps: int = 1
    first_order: bool = False
    inner_weight_decay: float = 0.0
    learn_inner_lr: bool = True
    weights: str = "auto"
    multi_step_iterations: int = 0
    first_order_iterations: int = 0
    step_weights: tuple[float, ...] | None = None
    inner: GradientSteps = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_steps(self.inner_steps, "inner_steps")
        if as_array(self.inner_lr, "inner_lr").ndim == 0:
            inner_lr = as_number(self.inner_lr, "inner_lr", "finite numbers")
            n_layers = self.model.n_layers if isinstance(self.model, MLP) else 1
            shape = max(self.inner_steps, 1), n_layers
            object.__setattr__(self, "inner_lr", np.full(shape, inner_lr))
        self._hold()
        for name in ("multi_step_iterations", "first_order_iterations"):
            as_whole(getattr(self, name), name)
        if self.step_weights is not None:
            v = np.asarray(self.step_weights)
            if v.shape != (self.inner_steps,) or v.dtype.kind not in "iuf" or not np.isfinite(v).all():
                raise ValueError(
                    f"step_weights must be {self.inner_steps} numbers, one for each inner step, got "
                    f"{self.step_weights}"
                )
            object.__setattr__(self, "step_weights", tuple(map(float, v)))

    def at_iteration(self, iteration: int) -> MAMLPlusPlus:
        """The algorithm as it is in an iteration, counted from 0."""
        S, A, v = self.inner_steps, self.multi_step_iterations, self.step_weights
        if iteration < A and S > 1:
            early = max(1 - iteration / A, 0.03) / S
            v = (early,) * (S - 1) + (1 - (S - 1) * early,)
        first_order = self.first_order or iteration < self.first_order_iterations
        return replace(self, step_weights=v, first_order=first_order)

    def of_tasks(self, problem: Prepared) -> MetaGradient:
        """The meta-gradient of a prepared batch: MAML's, with a loss after every step."""
        if not self.step_weights:
            return self.inner.meta_gradient(problem)
        return self.inner.meta_gradient(problem, dict(enumerate(self.step_weights, start=1)))
