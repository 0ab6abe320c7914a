"""Hidden layers with more parameters than W and b: what stands between their z and their activation.

Such a layer is one block of several parts, W and b first. To the passes it is the layer
``h ↦ h W + b``; what its other parameters do is a :class:`PreActivation`, made at z: a normalisation
(:mod:`npmeta.network.normalisation`), or a learned structure (:mod:`npmeta.network.structure`).

Inner steps move the other parameters as they move weights (:class:`~npmeta.network.weights.Vector`), or
do not (:class:`Scheduled`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from npmeta._support.validation import Array
from npmeta.network.weights import Layer, OuterSum, Scale, Vector, total

__all__ = [
    "Parted",
    "PreActivation",
    "Scheduled",
    "Unmoved",
    "gradient_of",
    "pre_activation",
    "values_of",
]


class PreActivation:
    """What a hidden layer hands to its activation, ``u``: without further parts z as it is."""

    def __init__(self, z: Array) -> None:
        self.u = z

    @property
    def kinked(self) -> Array:
        """What may lie at a kink of the activation."""
        return self.u

    def terms(self, of_z: Array) -> Array:
        """:attr:`kinked` with all terms of its sum made positive, from that of z: what rounding of it
        goes by."""
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


def pre_activation(block: Layer, z: Array) -> PreActivation:
    """What stands between a layer and its activation, at z ``(T, rows, n_out)``."""
    return block.between(z) if isinstance(block, Parted) else PreActivation(z)


# --- a layer in parts -------------------------------------------------------------------------------

Own = TypeVar("Own", bound="Parted")


@dataclass(frozen=True)
class Parted(ABC):
    """A hidden layer with further parameters, one block. Its gradient and its cotangent have the same
    parts.

    A subclass adds them as fields, and says what they make of z.

    Attributes
    ----------
    layer : Layer, or OuterSum in a gradient
    """

    layer: Any

    @abstractmethod
    def between(self, z: Array) -> PreActivation:
        """What the layer hands to its activation."""

    @property
    @abstractmethod
    def _parts(self) -> tuple[Any, ...]:
        """All of them, the layer first."""

    @abstractmethod
    def _of(self: Own, parts: Iterable[Any]) -> Own:
        """A block of the same kind."""

    # --- as a layer

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

    def descend(
        self: Own, gradient: Own, scale: Scale | None = None, shrink: Scale | None = None
    ) -> Own:
        parts = zip(self._parts, gradient._parts, self._split(scale), self._split(shrink), strict=True)
        return self._of(part.descend(*arguments) for part, *arguments in parts)

    def cotangent(self: Own, gradient: Own) -> Own:
        pairs = zip(self._parts, gradient._parts, strict=True)
        return self._of(part.cotangent(other) for part, other in pairs)

    def scaled(self: Own, scale: Scale) -> Own:
        pairs = zip(self._parts, self._split(scale), strict=True)
        return self._of(part.scaled(factors) for part, factors in pairs)

    def dot(self: Own, gradient: Own) -> Array:
        pairs = zip(self._parts, gradient._parts, strict=True)
        return total(part.dot(other) for part, other in pairs)

    def dense(self: Own) -> Own:
        return self._of(part.dense() for part in self._parts)

    def flat(self) -> Array:
        parts = [part.flat() for part in self._parts]
        lead = np.broadcast_shapes(*(part.shape[:-1] for part in parts))  # of those of tasks, if any is
        return np.concatenate([np.broadcast_to(part, (*lead, part.shape[-1])) for part in parts], -1)

    def task_mean(self) -> Array:
        return np.concatenate([part.task_mean() for part in self._parts])

    def _split(self, scale: Scale | None) -> Sequence[Scale | None]:
        """The factors of W and b, and those of each other part."""
        if scale is None:
            return [None] * len(self._parts)
        return [scale[:2], *((factor,) for factor in scale[2:])]


# --- parameters that inner steps do not move --------------------------------------------------------


@dataclass(frozen=True)
class Scheduled:
    """Parameters that inner steps do not move: one set for each pass, or one for all.

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


def values_of(held: Vector | Scheduled | Unmoved) -> Array:
    """The numbers that count, ``(n,)`` or ``(T, n)``; along a direction of the inner loop those that do
    not move have none but 0."""
    if isinstance(held, Unmoved):
        return np.zeros_like(held.values[:, 0])
    values: Array = held.values[..., held.place, :] if isinstance(held, Scheduled) else held.values
    return values


def gradient_of(held: Vector | Scheduled, values: Array) -> Vector | Unmoved:
    """``values (T, n)`` in the form of the gradient of what is held."""
    if isinstance(held, Vector):
        return Vector(values)
    sets = np.zeros((len(values), *held.values.shape[-2:]), dtype=values.dtype)
    sets[:, held.place] = values
    return Unmoved(sets)
