"""Hidden layers with more parameters than W and b: what stands between their z and their activation.

Such a layer is one block of several parts, W and b first. To the passes it is the layer
``h ↦ h W + b``; what its other parameters do is a :class:`PreActivation`, made at z: a normalisation
(:mod:`npmeta.network.normalisation`), or a learned structure (:mod:`npmeta.network.structure`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from npmeta._support.validation import Array
from npmeta.network.weights import Layer, OuterSum, Scale, Vector, total


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

Own = TypeVar("Own", bound="Parts")


@dataclass(frozen=True)
class Parts:
    """A gradient, a cotangent or a direction of a layer in parts: one of each, W and b first. What it
    is asked it passes on to them."""

    parts: tuple[Any, ...]

    @property
    def layer(self) -> Any:
        """The part of W and b."""
        return self.parts[0]

    def act(self, h: Array) -> Array:
        return self.layer.act(h)

    def act_linear(self, h: Array) -> Array:
        return self.layer.act_linear(h)

    def act_transposed(self, d: Array) -> Array:
        return self.layer.act_transposed(d)

    def descend(
        self: Own, gradient: Parts, scale: Scale | None = None, shrink: Scale | None = None
    ) -> Own:
        parts = zip(self.parts, gradient.parts, self._split(scale), self._split(shrink), strict=True)
        return self._of(tuple([part.descend(*arguments) for part, *arguments in parts]))

    def cotangent(self, gradient: Parts) -> Parts:
        pairs = zip(self.parts, gradient.parts, strict=True)
        return Parts(tuple(part.cotangent(other) for part, other in pairs))

    def scaled(self, scale: Scale) -> Parts:
        pairs = zip(self.parts, self._split(scale), strict=True)
        return Parts(tuple(part.scaled(factors) for part, factors in pairs))

    def dot(self, gradient: Parts, scale: Scale = 1.0) -> Array:
        triples = zip(self.parts, gradient.parts, self._split(scale), strict=True)
        return total(part.dot(other, factors) for part, other, factors in triples)

    def dense(self) -> Parts:
        return Parts(tuple(part.dense() for part in self.parts))

    def flat(self) -> Array:
        parts = [part.flat() for part in self.parts]
        lead = np.broadcast_shapes(*(part.shape[:-1] for part in parts))  # of those of tasks, if any is
        return np.concatenate([np.broadcast_to(part, (*lead, part.shape[-1])) for part in parts], -1)

    def task_mean(self) -> Array:
        return np.concatenate([part.task_mean() for part in self.parts])

    def _of(self: Own, parts: tuple[Any, ...]) -> Own:
        """Other parts of the same kind."""
        return type(self)(parts)

    def _split(self, scale: Scale | None) -> Sequence[Scale | None]:
        """The factors of W and b, and those of each other part."""
        if isinstance(scale, tuple):
            return [scale[:2], *((factor,) for factor in scale[2:])]
        return [scale] * len(self.parts)


@dataclass(frozen=True)
class Parted(Parts, ABC):
    """A point: it says in addition what its parts, all but the first, make of z."""

    @abstractmethod
    def between(self, z: Array) -> PreActivation:
        """What the layer hands to its activation."""

    def _of(self: Own, parts: tuple[Any, ...]) -> Own:
        return replace(self, parts=parts)


@dataclass(frozen=True)
class Sets(Vector):
    """Parameters in several sets, one after the other, of which the pass after s inner steps takes set
    s, and every later one the last.

    The gradient of all of them is a plain vector, zero for the sets that did not count.

    Attributes
    ----------
    values : ndarray, (sets · n,) or (T, sets · n)
    n : int
        Numbers in a set.
    step : int
        s
    """

    n: int
    step: int = 0

    def descend(
        self, gradient: Vector, scale: Scale | None = None, shrink: Scale | None = None
    ) -> Sets:
        return Sets(super().descend(gradient, scale, shrink).values, self.n, self.step + 1)

    def gather(self, values: Array) -> Array:
        """Those of the set that counts, ``(..., n)`` of ``(..., sets · n)``."""
        return values[..., self._place]

    def scatter(self, values: Array) -> Array:
        """Its transpose."""
        all_sets = np.zeros((*values.shape[:-1], self.values.shape[-1]), dtype=values.dtype)
        all_sets[..., self._place] = values
        return all_sets

    @property
    def _place(self) -> slice:
        start = min(self.step * self.n, self.values.shape[-1] - self.n)
        return slice(start, start + self.n)
