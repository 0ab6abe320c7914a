"""Meta-SGD (Li, Zhou, Chen & Li 2017): MAML with a step size for every parameter, learned."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import DTypeLike

from npmeta._support.validation import Array, as_generator, as_range
from npmeta.algorithms.adapts import Adapts
from npmeta.algorithms.base import MetaGradient
from npmeta.algorithms.gradient_steps import GradientSteps, Prepared
from npmeta.algorithms.maml import MAML
from npmeta.bilevel.objective import Objective
from npmeta.network.losses import Loss
from npmeta.network.mlp import MLP


@dataclass(frozen=True, eq=False)
class MetaSGD(Adapts):
    r"""Learn how far to go for every parameter, and which way (Li et al. 2017).

    .. math:: \min_{\theta, \alpha} \; \frac1T \sum_t L^Q_t(\theta - \alpha \circ \nabla L^S_t(\theta))

    The vector α is as long as θ, and begins at random. Its entries may become negative.

    Parameters
    ----------
    model, loss, inner_steps, first_order, inner_weight_decay, weights
        As in :class:`~npmeta.MAML`.
    inner_lr_range : (float, float)
        Of the uniform distribution that the step sizes are drawn from at first.

    Attributes
    ----------
    maml : MAML
        What it is with learned step sizes: what :class:`npmeta.Problem` and the oracles take. Without
        an "inner_lr" beside theta all sizes have the mean of the range.
    """

    model: MLP | Objective
    loss: str | Loss | None = None
    inner_steps: int = 1
    first_order: bool = False
    inner_weight_decay: float = 0.0
    weights: str = "auto"
    inner_lr_range: tuple[float, float] = (0.005, 0.1)
    maml: MAML = field(init=False, repr=False)
    inner: GradientSteps = field(init=False, repr=False)

    def __post_init__(self) -> None:
        low, high = as_range(self.inner_lr_range, "inner_lr_range")
        object.__setattr__(self, "inner_lr_range", (low, high))
        maml = MAML(
            self.model,
            self.loss,
            (low + high) / 2,
            self.inner_steps,
            self.first_order,
            self.inner_weight_decay,
            weights=self.weights,
        )
        object.__setattr__(self, "maml", maml)
        object.__setattr__(self, "inner", maml.inner)
        object.__setattr__(self, "inner_weight_decay", maml.inner_weight_decay)

    def of_tasks(self, problem: Prepared) -> MetaGradient:
        """MAML's meta-gradient of a prepared batch."""
        return self.maml.of_tasks(problem)

    def init(self, rng: np.random.Generator | int, dtype: DTypeLike = np.float64) -> dict[str, Array]:
        """Initial meta-parameters: "theta" ``(P,)`` and "inner_lr" ``(1, P)``."""
        rng = as_generator(rng)
        theta = super().init(rng, dtype)["theta"]
        return {
            "theta": theta,
            "inner_lr": rng.uniform(*self.inner_lr_range, size=(1, theta.size)).astype(dtype),
        }
