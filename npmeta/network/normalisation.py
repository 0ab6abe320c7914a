r"""Normalisation between a hidden layer and its activation, with the differential of both passes.

.. math:: \hat z = (z - \mu)/\sigma, \qquad
          \sigma^2 = \operatorname{mean}\bigl((z - \mu)^2\bigr) + \epsilon, \qquad
          u = \gamma \circ \hat z + \beta, \qquad a = f(u).

The means μ and "mean" are over the rows of one task, for each unit by itself, in batch normalisation
(Ioffe & Szegedy 2015), and over the units of a layer, for each row by itself, in layer normalisation
(Ba, Kiros & Hinton 2016). All else is the same in both.

Batch normalisation has no memory here: the statistics are those of the rows at hand, of the support set
on the support pass and of the query set on the query pass. So the output for one query row depends on
the other query rows: predictions are transductive.

Scale γ and shift β are parameters of the block, after W and b. There may be several sets of them, one
for each step of the inner loop (:class:`npmeta.network.parts.Sets`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from npmeta._support.validation import Array
from npmeta.network.parts import Parted, Parts, PreActivation
from npmeta.network.weights import OuterSum, Vector, row_sum

#: ε. Where all z are the same, σ is its root and ẑ is 0.
EPS = 1e-5


def _over_rows(v: Array) -> Array:
    """The mean over a task's rows, ``(T, 1, n)``."""
    return row_sum(v)[..., None, :] / v.shape[-2]


def _over_units(v: Array) -> Array:
    """The mean over a layer's units, ``(T, rows, 1)``."""
    return (v @ np.ones(v.shape[-1], dtype=v.dtype))[..., None] / v.shape[-1]


#: The mean of each normalisation.
NORMS: dict[str, Callable[[Array], Array]] = {"batch": _over_rows, "layer": _over_units}


# --- the passes -----------------------------------------------------------------------------------


class StandardisedDot(NamedTuple):
    """The differential of a :class:`Standardised`."""

    u: Array
    z_hat: Array
    sigma: Array
    scale: Array


class Standardised(PreActivation):
    r"""z normalised. With

    .. math:: P(v) = v - \operatorname{mean}(v) - \hat z \circ \operatorname{mean}(\hat z \circ v),

    which is symmetric, and but for ε a projection, the Jacobian of ẑ is P/σ, on the way forward and on
    the way back.
    """

    def __init__(self, block: Normalised, z: Array) -> None:
        self.block, self.mean = block, NORMS[str(block.norm)]
        centred = z - self.mean(z)
        self.sigma = np.sqrt(self.mean(centred * centred) + EPS)
        self.z_hat = centred / self.sigma
        self.scale, self.shift = block.rows_of(block)
        self.u = self.scale * self.z_hat + self.shift

    def terms(self, of_z: Array) -> Array:
        centred = (of_z + self.mean(of_z)) / np.abs(self.sigma)
        return np.abs(self.scale) * centred + np.abs(self.shift)

    def forward_dot(self, tangent: Parts, z_dot: Array) -> StandardisedDot:
        # σ̇ = mean((z − μ) ∘ ż)/σ;  u̇ = γ ∘ ẑ̇ + γ̇ ∘ ẑ + β̇
        sigma_dot = self.mean(self.z_hat * z_dot)
        z_hat_dot = (z_dot - self.mean(z_dot) - self.z_hat * sigma_dot) / self.sigma
        scale_dot, shift_dot = self.block.rows_of(tangent)
        u_dot = self.scale * z_hat_dot + scale_dot * self.z_hat + shift_dot
        return StandardisedDot(u_dot, z_hat_dot, sigma_dot, scale_dot)

    def backward(self, u_bar: Array) -> Array:
        # ẑ-bar = γ ∘ ū;  δ = P(ẑ-bar)/σ
        z_hat_bar = self.scale * u_bar
        return self._projected(z_hat_bar) / self.sigma

    def backward_dot(self, dot: StandardisedDot, u_bar: Array, delta: Array, u_bar_dot: Array) -> Array:
        # σ δ = P(ẑ-bar), so σ̇ δ + σ δ̇ = P(ẑ-bar-dot) + Ṗ(ẑ-bar), and P has ẑ in it twice
        z_hat_bar = self.scale * u_bar
        z_hat_bar_dot = self.scale * u_bar_dot + dot.scale * u_bar
        moved = self._projected(z_hat_bar_dot)
        moved -= dot.z_hat * self.mean(self.z_hat * z_hat_bar)
        moved -= self.z_hat * self.mean(dot.z_hat * z_hat_bar)
        return (moved - dot.sigma * delta) / self.sigma

    def gradient(self, layer: OuterSum, u_bar: Array) -> Parts:
        # γ-bar = 1ᵀ (ū ∘ ẑ);  β-bar = 1ᵀ ū
        return self._gradient(layer, row_sum(u_bar * self.z_hat), row_sum(u_bar))

    def gradient_dot(
        self, layer: OuterSum, dot: StandardisedDot, u_bar: Array, u_bar_dot: Array
    ) -> Parts:
        by_scale = row_sum(u_bar_dot * self.z_hat + u_bar * dot.z_hat)
        return self._gradient(layer, by_scale, row_sum(u_bar_dot))

    def _projected(self, v: Array) -> Array:
        return v - self.mean(v) - self.z_hat * self.mean(self.z_hat * v)

    def _gradient(self, layer: OuterSum, by_scale: Array, by_shift: Array) -> Parts:
        _, scale, shift = self.block.parts
        return Parts((layer, Vector(scale.scatter(by_scale)), Vector(shift.scatter(by_shift))))


# --- the parameters -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Normalised(Parted):
    """A hidden layer with its normalisation, in three parts: W and b, γ, β.

    Attributes
    ----------
    norm : {"batch", "layer"}
    """

    norm: str

    def between(self, z: Array) -> PreActivation:
        return Standardised(self, z)

    def rows_of(self, parts: Parts) -> tuple[Array, Array]:
        """γ and β of the block, or of a direction of it: what every row is multiplied by, or gets
        added, ``(n,)`` or ``(T, 1, n)``."""
        (_, own_scale, own_shift), (_, scale, shift) = self.parts, parts.parts
        scale, shift = own_scale.gather(scale.values), own_shift.gather(shift.values)
        return (scale, shift) if scale.ndim == 1 else (scale[:, None, :], shift[:, None, :])
