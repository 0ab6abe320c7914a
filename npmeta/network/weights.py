r"""How a layer's weights, and other parameters, are held.

A gradient of a layer is a short sum of outer products,

.. math:: \nabla W = \sum_i \mathrm{left}_i^\top \mathrm{right}_i, \qquad
          \nabla b = \sum_{i \text{ on bias}} 1^\top \mathrm{right}_i,

and whatever moves subtracts such sums: the inner loop from the weights, the adjoint from the cotangent.
Whoever works with a layer asks it to act on thin matrices and to descend; how it holds its numbers is
nobody else's business.

=====================  ==========================================================================
:class:`Shared`        a layer with one ``W (n_in, n_out)`` for all tasks: one product over T·rows
:class:`Dense`         a layer with a matrix for each task, ``W (T, n_in, n_out)``
:class:`OuterSum`      a layer's gradient, the outer products not multiplied out
:class:`Vector`        parameters without layers, ``(P,)`` or ``(T, P)``: its own gradient
=====================  ==========================================================================

Points, cotangents and directions are lists of these, and of those of :mod:`npmeta.network.factored` and
:mod:`npmeta.network.parts`; what may be done with which is in :mod:`npmeta.network.spaces`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from npmeta._support.validation import Array

#: What multiplies a block: one factor for each of its arrays (W and b; or one alone), each a number
#: or an array of that shape; or a number for all of them.
Scale: TypeAlias = "float | tuple[Any, ...]"


def each(scale: Scale, n: int) -> tuple[Any, ...]:
    """A factor for each of n arrays."""
    return scale if isinstance(scale, tuple) else (scale,) * n


# --- the roles ------------------------------------------------------------------------------------


class Point(Protocol):
    """Part of where one is: parameters of all tasks, or of each."""

    def descend(self, gradient: Any, scale: Scale | None = None, shrink: Scale | None = None) -> Point:
        """``(1 − shrink) ∘ self − scale ∘ gradient``, with a task axis if there was none.

        Without ``scale`` the gradient counts once; without ``shrink`` nothing shrinks.
        """

    def cotangent(self, gradient: Any) -> Cotangent:
        """A gradient at this point, held the way the point is."""

    def flat(self) -> Array:
        """The numbers in a row, ``(T, P_block)``, or ``(P_block,)`` where all tasks share them."""


class Cotangent(Protocol):
    """Part of what the derivative of a loss by a point is."""

    def descend(
        self, gradient: Any, scale: Scale | None = None, shrink: Scale | None = None
    ) -> Cotangent:
        """As that of a point."""

    def scaled(self, scale: Scale) -> Cotangent:
        """``scale ∘ self``: by step sizes, a :class:`Direction`."""

    def dot(self, gradient: Any, scale: Scale = 1.0) -> Array:
        """``⟨self, scale ∘ gradient⟩`` for each task, ``(T,)``; the factors are numbers."""

    def flat(self) -> Array:
        """``(T, P_block)``."""

    def task_mean(self) -> Array:
        """Mean over the tasks, flat, ``(P_block,)``."""


class Direction(Protocol):
    """Part of what one moves along. The passes take it as a :class:`Layer`."""

    def flat(self) -> Array:
        """``(T, P_block)``, or ``(P_block,)`` where it is that of all tasks."""


class Gradient(Protocol):
    """A cotangent, or a Hessian product, in whatever form the objective makes it."""

    def dense(self) -> Cotangent:
        """The same numbers multiplied out."""


class Linear(Protocol):
    """``h ↦ h W + b``: all that the passes of an MLP ask of a layer, and of a direction of one."""

    def act(self, h: Array) -> Array:
        """``h W + b`` for ``h (T, rows, n_in)``."""

    def act_linear(self, h: Array) -> Array:
        """``h W``."""

    def act_transposed(self, d: Array) -> Array:
        """``d Wᵀ`` for ``d (T, rows, n_out)``."""


class Layer(Linear, Point, Protocol):
    """A point that is a layer."""


# --- sums of outer products -----------------------------------------------------------------------


class Term(NamedTuple):
    """One outer product ``leftᵀ right`` a task: ``left (T, rows, n_in)``, ``right (T, rows, n_out)``.

    The bias sees a constant input of ones. A term in which ``left`` is the differential of a layer's
    input has the differential of that constant, zero, so it leaves the bias alone.
    """

    left: Array
    right: Array
    on_bias: bool


@dataclass(frozen=True)
class OuterSum:
    """A layer's gradient or Hessian product: a sum of outer products, held as its factors."""

    terms: tuple[Term, ...]

    def dense(self) -> Dense:
        """The products carried out: a matrix and a bias for each task."""
        W = total(product(term.left.swapaxes(-1, -2), term.right) for term in self.terms)
        b = total(row_sum(term.right) for term in self.terms if term.on_bias)
        return Dense(W, b)


def product(h: Array, W: Array) -> Array:
    """``h W``. Where rows have one entry it is a product of a column with a row, in which matmul is
    three times as slow as multiplication with broadcasting."""
    return h * W if h.shape[-1] == 1 else h @ W


def row_sum(rows: Array) -> Array:
    """``1ᵀ rows``: as a product twice as fast as a sum over an inner axis."""
    return np.ones(rows.shape[-2], dtype=rows.dtype) @ rows


def total(arrays: Iterable[Array]) -> Array:
    """Their sum (``sum`` would begin with one more addition, of 0)."""
    return reduce(operator.add, arrays)


# --- layers ---------------------------------------------------------------------------------------


class Weights:
    """What all ways of holding a layer have in common: those that act can be paired."""

    def dot(self: Linear, gradient: OuterSum, scale: Scale = 1.0) -> Array:
        """⟨W, leftᵀ right⟩ = Σ (left W) ∘ right: no matrix is formed."""
        pairs: Any = np.zeros(())
        for left, right, on_bias in gradient.terms:
            acted = self.act(left) if on_bias else self.act_linear(left)
            pairs = pairs + np.einsum("tri,tri->t", acted, right)
        return pairs * each(scale, 2)[0]


class _Held(Weights):
    """What :class:`Shared` and :class:`Dense` have in common: a matrix and a bias, multiplied out."""

    W: Array
    b: Array

    def descend(
        self, gradient: OuterSum, scale: Scale | None = None, shrink: Scale | None = None
    ) -> Dense:
        step = gradient.dense() if scale is None else gradient.dense().scaled(scale)
        W, b = self.W, self.b
        if shrink is not None:
            by_W, by_b = each(shrink, 2)
            W, b = W - by_W * W, b - by_b * b
        return Dense(np.subtract(W, step.W, out=step.W), np.subtract(b, step.b, out=step.b))

    def cotangent(self, gradient: OuterSum) -> Cotangent:
        return gradient.dense()

    def flat(self) -> Array:
        *lead, _ = self.b.shape
        return np.concatenate([self.W.reshape(*lead, -1), self.b], axis=-1)


@dataclass(frozen=True)
class Shared(_Held):
    """One layer for all tasks: ``W (n_in, n_out)``, ``b (n_out,)``."""

    W: Array
    b: Array

    def act(self, h: Array) -> Array:
        z = self.act_linear(h)
        z += self.b
        return z

    def act_linear(self, h: Array) -> Array:
        # One product over T·rows rows; a stack of T products would read W T times.
        return product(h.reshape(-1, h.shape[-1]), self.W).reshape(*h.shape[:-1], self.W.shape[-1])

    def act_transposed(self, d: Array) -> Array:
        return product(d.reshape(-1, d.shape[-1]), self.W.T).reshape(*d.shape[:-1], self.W.shape[0])

    def scaled(self, scale: Scale) -> Shared:
        by_W, by_b = each(scale, 2)
        return Shared(by_W * self.W, by_b * self.b)


@dataclass(frozen=True)
class Dense(_Held):
    """A layer for each task: ``W (T, n_in, n_out)``, ``b (T, n_out)``."""

    W: Array
    b: Array

    def act(self, h: Array) -> Array:
        z = self.act_linear(h)
        z += self.b[:, None, :]
        return z

    def act_linear(self, h: Array) -> Array:
        return product(h, self.W)

    def act_transposed(self, d: Array) -> Array:
        return product(d, self.W.swapaxes(-1, -2))

    def scaled(self, scale: Scale) -> Dense:
        by_W, by_b = each(scale, 2)
        return Dense(by_W * self.W, by_b * self.b)

    def task_mean(self) -> Array:
        # One product with the vector of weights 1/T: in float32 a sum over an outer axis, one task
        # after another, would lose a digit or two over many tasks.
        flat = self.flat()
        share = np.full(len(flat), 1 / len(flat), dtype=flat.dtype)
        return share @ flat


# --- a vector -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Vector:
    """Parameters without structure, ``(P,)`` or ``(T, P)``; its gradient is a Vector too."""

    values: Array

    def descend(
        self, gradient: Vector, scale: Scale | None = None, shrink: Scale | None = None
    ) -> Vector:
        step = gradient if scale is None else gradient.scaled(scale)
        kept = self.values if shrink is None else self.values - each(shrink, 1)[0] * self.values
        return Vector(kept - step.values)

    def cotangent(self, gradient: Vector) -> Vector:
        return gradient

    def scaled(self, scale: Scale) -> Vector:
        return Vector(each(scale, 1)[0] * self.values)

    def dot(self, gradient: Vector, scale: Scale = 1.0) -> Array:
        return np.einsum("tp,tp->t", self.values, gradient.values) * each(scale, 1)[0]

    def dense(self) -> Vector:
        return self

    def gather(self, values: Array) -> Array:
        """Of numbers for all parameters those that the pass takes: all."""
        return values

    def scatter(self, values: Array) -> Array:
        """Its transpose."""
        return values

    def flat(self) -> Array:
        return self.values

    def task_mean(self) -> Array:
        return self.values.mean(0)
