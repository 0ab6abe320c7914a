r"""How a block of parameters is held, and the one operation both loops of MAML are made of.

The inner loop subtracts gradients from the weights; the adjoint subtracts Hessian products from the
cotangent. A gradient of a layer is a short sum of outer products,

.. math:: \nabla W = \sum_i \mathrm{left}_i^\top \mathrm{right}_i, \qquad
          \nabla b = \sum_{i \text{ on bias}} 1^\top \mathrm{right}_i,

and both loops go through one door, :meth:`Block.descend`. Whoever works with a block asks it to act
on thin matrices and to descend; how it holds its numbers is nobody else's business.

=====================  ==========================================================================
:class:`Shared`        a layer with one ``W (n_in, n_out)`` for all tasks: one product over T·rows
:class:`Dense`         a layer with a matrix for each task, ``W (T, n_in, n_out)``
:class:`OuterSum`      a layer's gradient, the outer products not multiplied out
:class:`Vector`        parameters without layers, ``(P,)`` or ``(T, P)``: its own gradient
=====================  ==========================================================================

A point of parameter space is a list of blocks; so are a gradient, a direction and a cotangent.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from npmeta._support.validation import Array

__all__ = [
    "Block",
    "Dense",
    "Gradient",
    "Layer",
    "OuterSum",
    "Scale",
    "Shared",
    "Term",
    "Vector",
    "flatten",
    "paired",
    "product",
    "row_sum",
    "total",
]

#: What multiplies a block: one factor for each of its arrays (W and b; or one alone), each a number
#: or an array of that shape.
Scale: TypeAlias = tuple[Any, ...]


class Block(Protocol):
    """Part of a point, or of a direction, in parameter space."""

    def descend(self, gradient: Any, scale: Scale | None = None, shrink: Scale | None = None) -> Block:
        """``(1 − shrink) ∘ self − scale ∘ gradient``, with a task axis if there was none.

        Without ``scale`` the gradient counts once; without ``shrink`` nothing shrinks.
        """

    def scaled(self, scale: Scale) -> Block:
        """``scale ∘ self``."""

    def cotangent(self, gradient: Any) -> Block:
        """A gradient as a direction, held the way this block is."""

    def dot(self, gradient: Any) -> Array:
        """``⟨self, gradient⟩`` for each task, ``(T,)``."""

    def flat(self) -> Array:
        """The numbers in a row, ``(T, P_block)``, or ``(P_block,)`` where all tasks share them."""

    def task_mean(self) -> Array:
        """Mean over the tasks, flat, ``(P_block,)``."""


class Gradient(Protocol):
    """A gradient of a block, or a Hessian product, in whatever form the objective makes it."""

    def dense(self) -> Block:
        """The same numbers as a block, a value for each task."""


class Layer(Block, Protocol):
    """A block that is a layer, ``h ↦ h W + b``: all that the passes of an MLP ask of it."""

    def act(self, h: Array) -> Array:
        """``h W + b`` for ``h (T, rows, n_in)``."""

    def act_linear(self, h: Array) -> Array:
        """``h W``."""

    def act_transposed(self, d: Array) -> Array:
        """``d Wᵀ`` for ``d (T, rows, n_out)``."""


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
    result: Array = h * W if h.shape[-1] == 1 else h @ W
    return result


def paired(layer: Layer, gradient: OuterSum) -> Array:
    """``⟨layer, gradient⟩`` for each task: ⟨W, leftᵀ right⟩ = Σ (left W) ∘ right, no matrix formed."""
    total: Array = np.zeros(())
    for term in gradient.terms:
        acted = layer.act(term.left) if term.on_bias else layer.act_linear(term.left)
        total = total + np.einsum("tri,tri->t", acted, term.right)
    return total


def row_sum(rows: Array) -> Array:
    """``1ᵀ rows``: as a product twice as fast as a sum over an inner axis."""
    total: Array = np.ones(rows.shape[-2], dtype=rows.dtype) @ rows
    return total


def total(arrays: Iterable[Array]) -> Array:
    """Their sum (``sum`` would begin with one more addition, of 0)."""
    return reduce(operator.add, arrays)


class _Held:
    """What :class:`Shared` and :class:`Dense` have in common: a matrix and a bias, multiplied out."""

    W: Array
    b: Array

    def descend(
        self, gradient: OuterSum, scale: Scale | None = None, shrink: Scale | None = None
    ) -> Layer:
        step = gradient.dense() if scale is None else gradient.dense().scaled(scale)
        W, b = (self.W, self.b) if shrink is None else self._shrunk(*shrink)
        return Dense(np.subtract(W, step.W, out=step.W), np.subtract(b, step.b, out=step.b))

    def cotangent(self, gradient: OuterSum) -> Layer:
        return gradient.dense()

    def _shrunk(self, shrink_W: Any, shrink_b: Any) -> tuple[Array, Array]:
        return self.W - shrink_W * self.W, self.b - shrink_b * self.b


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
        return Shared(scale[0] * self.W, scale[1] * self.b)

    def dot(self, gradient: OuterSum) -> Array:
        return paired(self, gradient)

    def flat(self) -> Array:
        return np.concatenate([self.W.reshape(-1), self.b])

    def task_mean(self) -> Array:
        return self.flat()


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
        return Dense(scale[0] * self.W, scale[1] * self.b)

    def dot(self, gradient: OuterSum) -> Array:
        return paired(self, gradient)

    def flat(self) -> Array:
        return np.concatenate([self.W.reshape(len(self.W), -1), self.b], axis=-1)

    def task_mean(self) -> Array:
        # One product with the vector of weights 1/T: in float32 a sum over an outer axis, one task
        # after another, would lose a digit or two over many tasks.
        flat = self.flat()
        share = np.full(len(flat), 1 / len(flat), dtype=flat.dtype)
        return share @ flat


@dataclass(frozen=True)
class Vector:
    """Parameters without structure, ``(P,)`` or ``(T, P)``; its gradient is a Vector too."""

    values: Array

    def descend(
        self, gradient: Vector, scale: Scale | None = None, shrink: Scale | None = None
    ) -> Vector:
        step = gradient.scaled(scale) if scale else gradient
        kept = self.values - shrink[0] * self.values if shrink else self.values
        return Vector(kept - step.values)

    def scaled(self, scale: Scale) -> Vector:
        return Vector(scale[0] * self.values)

    def cotangent(self, gradient: Vector) -> Vector:
        return gradient

    def dot(self, gradient: Vector) -> Array:
        products: Array = np.einsum("tp,tp->t", self.values, gradient.values)
        return products

    def dense(self) -> Vector:
        return self

    def flat(self) -> Array:
        return self.values

    def task_mean(self) -> Array:
        mean: Array = self.values.mean(0) if self.values.ndim == 2 else self.values
        return mean


def flatten(blocks: Sequence[Block]) -> Array:
    """The blocks of a point side by side, ``(T, P)`` (``(P,)`` where all tasks share them)."""
    return np.concatenate([block.flat() for block in blocks], axis=-1)
