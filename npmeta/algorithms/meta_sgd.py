"""Meta-SGD (Li, Zhou, Chen & Li 2017): MAML with a step size for every parameter, learned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from npmeta._validation import Array, as_generator
from npmeta.algorithms.maml import MAML

__all__ = ["MetaSGD"]


@dataclass(frozen=True, eq=False)
class MetaSGD(MAML):
    r"""Learn how far to go for every parameter, and which way (Li et al. 2017).

    .. math:: \min_{\theta, \alpha} \; \frac1T \sum_t L^Q_t(\theta - \alpha \circ \nabla L^S_t(\theta))

    The vector α is as long as θ, and begins at random. Its entries may become negative.

    Parameters
    ----------
    model, loss, inner_steps, first_order, inner_weight_decay
        As in :class:`~npmeta.MAML`.
    inner_lr_range : (float, float)
        Of the uniform distribution that the step sizes are drawn from at first.
    """

    inner_lr_range: tuple[float, float] = (0.005, 0.1)

    def __post_init__(self) -> None:
        given = np.asarray(self.inner_lr_range)
        if (
            given.shape != (2,)
            or given.dtype.kind not in "iuf"
            or not (-np.inf < given[0] <= given[1] < np.inf)
        ):
            raise ValueError(f"inner_lr_range must be (low, high), got {self.inner_lr_range}")
        low, high = map(float, given)
        object.__setattr__(self, "inner_lr_range", (low, high))
        # Without an "inner_lr" beside theta, all have the mean.
        object.__setattr__(self, "inner_lr", (low + high) / 2)
        super().__post_init__()

    def init(self, rng: np.random.Generator | int, dtype: DTypeLike = np.float64) -> dict[str, Array]:
        """Initial meta-parameters: "theta" ``(P,)`` and "inner_lr" ``(1, P)``."""
        rng = as_generator(rng)
        theta = super().init(rng, dtype)["theta"]
        return {
            "theta": theta,
            "inner_lr": rng.uniform(*self.inner_lr_range, size=(1, theta.size)).astype(dtype),
        }
