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

Scale γ and shift β are parameters of the block, after W and b. Inner steps move them as they move
weights (:class:`~npmeta.weights.Vector`), or do not (:class:`Scheduled`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from npmeta._validation import Array
from npmeta.weights import Layer, OuterSum, Scale, Vector, row_sum, total

__all__ = [
    "EPS",
    "NORMS",
    "Normalised",
    "PreActivation",
    "Scheduled",
    "Standardised",
    "Unmoved",
    "pre_activation",
]

#: ε. Where all z are the same, σ is its root and ẑ is 0.
EPS = 1e-5


def _over_rows(v: Array) -> Array:
    """The mean over a task's rows, ``(T, 1, n)``."""
    mean: Array = row_sum(v)[..., None, :] / v.shape[-2]
    return mean


def _over_units(v: Array) -> Array:
    """The mean over a layer's units, ``(T, rows, 1)``."""
    mean: Array = (v @ np.ones(v.shape[-1], dtype=v.dtype))[..., None] / v.shape[-1]
    return mean


#: The mean of each normalisation.
NORMS: dict[str, Callable[[Array], Array]] = {"batch": _over_rows, "layer": _over_units}


# --- the passes -----------------------------------------------------------------------------------


class PreActivation:
    """What a hidden layer hands to its activation, ``u``: without normalisation z as it is."""

    def __init__(self, z: Array) -> None:
        self.u = z

    def terms(self, of_z: Array) -> Array:
        """u's sum with all of its terms made positive, from that of z: what rounding of u goes by."""
        return of_z

    def forward_dot(self, tangent: Any, z_dot: Array) -> Any:
        """u̇, and what the differential of the way back needs beside it."""
        return PreActivation(z_dot)

    def backward(self, u_bar: Array) -> Array:
        """δ = ∂ℓ/∂z from ū = ∂ℓ/∂u."""
        return u_bar

    def backward_dot(self, dot: Any, u_bar: Array, delta: Array, u_bar_dot: Array) -> Array:
        """δ̇ from ū̇."""
        return u_bar_dot

    def gradient(self, layer: OuterSum, u_bar: Array) -> Any:
        """The gradient of the block, from that of W and b."""
        return layer

    def gradient_dot(self, layer: OuterSum, dot: Any, u_bar: Array, u_bar_dot: Array) -> Any:
        """The Hessian product of the block, from that of W and b."""
        return layer


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
        self.scale = _rows(block.scale)
        self.u = self.scale * self.z_hat + _rows(block.shift)

    def terms(self, of_z: Array) -> Array:
        centred = (of_z + self.mean(of_z)) / np.abs(self.sigma)
        return np.abs(self.scale) * centred + np.abs(_rows(self.block.shift))

    def forward_dot(self, tangent: Normalised, z_dot: Array) -> StandardisedDot:
        # σ̇ = mean((z − μ) ∘ ż)/σ;  u̇ = γ ∘ ẑ̇ + γ̇ ∘ ẑ + β̇
        sigma_dot = self.mean(self.z_hat * z_dot)
        z_hat_dot = (z_dot - self.mean(z_dot) - self.z_hat * sigma_dot) / self.sigma
        scale_dot = _rows(tangent.scale)
        u_dot = self.scale * z_hat_dot + scale_dot * self.z_hat + _rows(tangent.shift)
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
        delta_dot: Array = (moved - dot.sigma * delta) / self.sigma
        return delta_dot

    def gradient(self, layer: OuterSum, u_bar: Array) -> Normalised:
        # γ-bar = 1ᵀ (ū ∘ ẑ);  β-bar = 1ᵀ ū
        return self._gradient(layer, row_sum(u_bar * self.z_hat), row_sum(u_bar))

    def gradient_dot(
        self, layer: OuterSum, dot: StandardisedDot, u_bar: Array, u_bar_dot: Array
    ) -> Normalised:
        by_scale = row_sum(u_bar_dot * self.z_hat + u_bar * dot.z_hat)
        return self._gradient(layer, by_scale, row_sum(u_bar_dot))

    def _projected(self, v: Array) -> Array:
        projected: Array = v - self.mean(v) - self.z_hat * self.mean(self.z_hat * v)
        return projected

    def _gradient(self, layer: OuterSum, by_scale: Array, by_shift: Array) -> Normalised:
        scale, shift = self.block.scale, self.block.shift
        return Normalised(layer, _gradient_of(scale, by_scale), _gradient_of(shift, by_shift))


def pre_activation(block: Layer, z: Array) -> PreActivation:
    """What stands between a layer and its activation, at z ``(T, rows, n_out)``."""
    return Standardised(block, z) if isinstance(block, Normalised) else PreActivation(z)


# --- the parameters -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scheduled:
    """Scales, or shifts, that inner steps do not move: one set for each pass, or one for all.

    Attributes
    ----------
    values : ndarray, (sets, n) or (T, sets, n)
    step : int
        Inner steps taken. After s of them set s counts; after as many as there are sets, the last.
    """

    values: Array
    step: int = 0

    @property
    def place(self) -> int:
        """Which of the sets counts."""
        return min(self.step, int(self.values.shape[-2]) - 1)

    def descend(
        self, gradient: Unmoved, scale: Scale | None = None, shrink: Scale | None = None
    ) -> Scheduled:
        return replace(self, step=self.step + 1)

    def scaled(self, scale: Scale) -> Vector:
        return Vector(np.zeros_like(self.flat()))

    def cotangent(self, gradient: Unmoved) -> Unmoved:
        return gradient

    def dot(self, gradient: Unmoved) -> Array:
        return gradient.dot(gradient)

    def flat(self) -> Array:
        """The set that counts, those after it, and the last once more for every one before: of these
        numbers a network makes now what it makes of all of them after so many steps."""
        sets = self.values.shape[-2]
        later = self.values[..., np.minimum(np.arange(sets) + self.step, sets - 1), :]
        return later.reshape(*self.values.shape[:-2], -1)

    def task_mean(self) -> Array:
        return Vector(self.flat()).task_mean()


@dataclass(frozen=True)
class Unmoved:
    """The gradient, or the cotangent, of a :class:`Scheduled`: ``values (T, sets, n)``, zero for sets
    that never counted. As a direction of the inner loop it is zero."""

    values: Array

    def descend(
        self, gradient: Unmoved, scale: Scale | None = None, shrink: Scale | None = None
    ) -> Unmoved:
        step = gradient.values if scale is None else scale[0] * gradient.values
        return Unmoved(self.values - step)

    def scaled(self, scale: Scale) -> Unmoved:
        return Unmoved(scale[0] * self.values)

    def cotangent(self, gradient: Unmoved) -> Unmoved:
        return gradient

    def dot(self, gradient: Unmoved) -> Array:
        return np.zeros(len(self.values), dtype=self.values.dtype)

    def dense(self) -> Unmoved:
        return self

    def flat(self) -> Array:
        return self.values.reshape(len(self.values), -1)

    def task_mean(self) -> Array:
        return Vector(self.flat()).task_mean()


def _rows(held: Vector | Scheduled | Unmoved) -> Array:
    """γ, or β, ``(n,)`` or ``(T, 1, n)``: what every row is multiplied by, or gets added."""
    if isinstance(held, Unmoved):
        return np.zeros_like(held.values[:, :1])
    values = held.values[..., held.place, :] if isinstance(held, Scheduled) else held.values
    return values if values.ndim == 1 else values[:, None, :]


def _gradient_of(held: Vector | Scheduled, values: Array) -> Vector | Unmoved:
    """``values (T, n)`` in the form of the gradient of γ, or β."""
    if isinstance(held, Vector):
        return Vector(values)
    sets = np.zeros((len(values), *held.values.shape[-2:]), dtype=values.dtype)
    sets[:, held.place] = values
    return Unmoved(sets)


@dataclass(frozen=True)
class Normalised:
    """A hidden layer with its normalisation, one block of parameters in three parts: W and b, γ, β. Its
    gradient and its cotangent have the same three.

    To the passes it is the layer ``h ↦ h W + b``; :func:`pre_activation` does the rest.

    Attributes
    ----------
    layer : Layer, or OuterSum in a gradient
    scale, shift : Vector, Scheduled or Unmoved
    norm : {"batch", "layer"}, or None in a gradient
    """

    layer: Any
    scale: Any
    shift: Any
    norm: str | None = None

    def act(self, h: Array) -> Array:
        acted: Array = self.layer.act(h)
        return acted

    def act_linear(self, h: Array) -> Array:
        acted: Array = self.layer.act_linear(h)
        return acted

    def act_transposed(self, d: Array) -> Array:
        acted: Array = self.layer.act_transposed(d)
        return acted

    # --- as a block, it passes on to its parts what it is asked

    @property
    def _parts(self) -> tuple[Any, Any, Any]:
        return self.layer, self.scale, self.shift

    def _of(self, parts: Iterable[Any]) -> Normalised:
        layer, scale, shift = parts
        return Normalised(layer, scale, shift, self.norm)

    def descend(
        self, gradient: Normalised, scale: Scale | None = None, shrink: Scale | None = None
    ) -> Normalised:
        parts = zip(self._parts, gradient._parts, _split(scale), _split(shrink), strict=True)
        return self._of(part.descend(*arguments) for part, *arguments in parts)

    def cotangent(self, gradient: Normalised) -> Normalised:
        pairs = zip(self._parts, gradient._parts, strict=True)
        return self._of(part.cotangent(other) for part, other in pairs)

    def scaled(self, scale: Scale) -> Normalised:
        pairs = zip(self._parts, _split(scale), strict=True)
        return self._of(part.scaled(factors) for part, factors in pairs)

    def dot(self, gradient: Normalised) -> Array:
        pairs = zip(self._parts, gradient._parts, strict=True)
        return total(part.dot(other) for part, other in pairs)

    def dense(self) -> Normalised:
        return self._of(part.dense() for part in self._parts)

    def flat(self) -> Array:
        parts = [part.flat() for part in self._parts]
        lead = np.broadcast_shapes(*(part.shape[:-1] for part in parts))  # of those of tasks, if any is
        return np.concatenate([np.broadcast_to(part, (*lead, part.shape[-1])) for part in parts], -1)

    def task_mean(self) -> Array:
        return np.concatenate([part.task_mean() for part in self._parts])


def _split(scale: Scale | None) -> tuple[Scale | None, Scale | None, Scale | None]:
    """The factors of W and b, of γ, and of β."""
    return (None, None, None) if scale is None else (scale[:2], scale[2:3], scale[3:])
