r"""Weights that are never multiplied out: a matrix shared by all tasks, and each task's thin factors.

After s inner steps a task's weights differ from the shared ones by a short sum of outer products,

.. math:: W_s = \kappa W + \sum_i c_i \, \mathrm{left}_i^\top \mathrm{right}_i, \qquad
          b_s = \kappa b + \sum_i c_i m_i \, \mathrm{right}_i,

one term for each row of each step. κ is 1 unless weights decay; the markers :math:`m_i` are 1 for rows
the bias sees and 0 for the others. The passes never ask for :math:`W_s`, only for its action on thin
matrices h and d. That costs one product with W for the rows of all tasks together, and two thin ones
for each task:

.. math:: h W_s + b_s &= \kappa (h W + b)
          + \bigl[(h \, \mathrm{left}^\top + 1 m^\top) \circ c\bigr] \mathrm{right}, \\
          d W_s^\top &= \kappa \, d W^\top
          + \bigl[(d \, \mathrm{right}^\top) \circ c\bigr] \mathrm{left}.

A cotangent is held in the same way and has no W; its mean over tasks, a sum of outer products over all
tasks and rows, is one matrix product.

The first layer has a class of its own. The rows it sees never change, so each step adds to the right
factor of the same left one, and the products of the inputs, with W and with each other, are made once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np

from npmeta._validation import Array
from npmeta.weights import Dense, OuterSum, Scale, Shared, Term, paired

__all__ = ["Factored", "FactoredBase", "FactoredInput", "InputBase", "InputProducts"]


class _Rows:
    """Rows ``(T, n, width)`` that only grow at the end.

    The points of a trajectory have each some rows more than the one before. They share one array, of
    which each sees the rows it knows of, so memory grows with the steps and not with their square.
    """

    def __init__(self, rows: Array) -> None:
        self._array = rows
        self._n_used = rows.shape[1]

    def first(self, n: int) -> Array:
        """The first n rows."""
        return self._array[:, :n]

    def append(self, n: int, new: Array) -> _Rows:
        """The first n rows and then ``new``; whoever holds earlier rows sees no change."""
        end = n + new.shape[1]
        rows = self
        if n < self._n_used or end > self._array.shape[1]:
            grown = np.empty((len(new), 2 * end, new.shape[2]), dtype=new.dtype)
            grown[:, :n] = self.first(n)
            rows = _Rows(grown)
        rows._array[:, n:end] = new
        rows._n_used = end
        return rows


# --- any layer but the first ----------------------------------------------------------------------


@dataclass(frozen=True)
class FactoredBase(Shared):
    """A layer that all tasks still share, and that becomes :class:`Factored` by descending."""

    def descend(
        self, gradient: OuterSum, scale: Scale | None = None, shrink: Scale | None = None
    ) -> Factored:
        factor, kept = _numbers(scale, shrink)
        return Factored.of(gradient, -factor, base=self, kept=kept)

    def cotangent(self, gradient: OuterSum) -> Factored:
        return Factored.of(gradient, 1.0)


@dataclass(frozen=True)
class Factored:
    """A layer for each task whose inputs change from step to step.

    Attributes
    ----------
    left, right : _Rows
        Factors of R rows (and of more, of later points) for each task.
    coefficient, marker : ndarray, (R,)
        c and m.
    base : Shared or None
        W and b; None for a direction.
    kept : float
        κ.
    """

    left: _Rows
    right: _Rows
    coefficient: Array
    marker: Array
    base: Shared | None = None
    kept: float = 1.0

    @staticmethod
    def of(
        gradient: OuterSum, coefficient: float, base: Shared | None = None, kept: float = 1.0
    ) -> Factored:
        """``kept · base + coefficient · gradient``."""
        first, *rest = gradient.terms
        layer = Factored(
            _Rows(first.left), _Rows(first.right), *_numbers_of(first, coefficient), base, kept
        )
        return layer._with(rest, coefficient)

    def _with(self, terms: Sequence[Term], coefficient: float) -> Factored:
        """``self + coefficient · terms``."""
        layer = self
        for term in terms:
            n = len(layer.coefficient)
            c, m = _numbers_of(term, coefficient)
            layer = Factored(
                layer.left.append(n, term.left),
                layer.right.append(n, term.right),
                np.concatenate([layer.coefficient, c]),
                np.concatenate([layer.marker, m]),
                self.base,
                self.kept,
            )
        return layer

    def descend(
        self, gradient: OuterSum, scale: Scale | None = None, shrink: Scale | None = None
    ) -> Factored:
        factor, kept = _numbers(scale, shrink)
        shrunk = self if kept == 1 else self.scaled((kept, kept))
        return shrunk._with(gradient.terms, -factor)

    def cotangent(self, gradient: OuterSum) -> Factored:
        return Factored.of(gradient, 1.0)

    def scaled(self, scale: Scale) -> Factored:
        factor = scale[0]
        return replace(self, coefficient=factor * self.coefficient, kept=factor * self.kept)

    def dot(self, gradient: OuterSum) -> Array:
        return paired(self, gradient)

    # --- as a layer

    def act(self, h: Array) -> Array:
        return self._sum(
            h, None if self.base is None else self.base.act(h), self._left, self._right, self.marker
        )

    def act_linear(self, h: Array) -> Array:
        return self._sum(
            h, None if self.base is None else self.base.act_linear(h), self._left, self._right
        )

    def act_transposed(self, d: Array) -> Array:
        return self._sum(
            d, None if self.base is None else self.base.act_transposed(d), self._right, self._left
        )

    def _sum(
        self, h: Array, shared: Array | None, into: Array, out_of: Array, marker: Array | None = None
    ) -> Array:
        """``κ shared + [(h intoᵀ + 1 mᵀ) ∘ c] out_of``."""
        gram: Array = h @ into.swapaxes(-1, -2)
        if marker is not None:
            gram += marker
        gram *= self.coefficient
        own: Array = gram @ out_of
        if shared is None:
            return own
        own += shared if self.kept == 1 else self.kept * shared
        return own

    @property
    def _left(self) -> Array:
        return self.left.first(len(self.coefficient))

    @property
    def _right(self) -> Array:
        return self.right.first(len(self.coefficient))

    # --- as numbers

    def flat(self) -> Array:
        weighed = self._right * self.coefficient[:, None]
        W = self._left.swapaxes(-1, -2) @ weighed
        b = self.marker @ weighed
        if self.base is not None:
            W, b = W + self.kept * self.base.W, b + self.kept * self.base.b
        return Dense(W, b).flat()

    def task_mean(self) -> Array:
        # A mean over tasks of sums over rows is one product over all rows of all tasks.
        weighed = self._right * (self.coefficient / len(self._right))[:, None]
        W = self._left.reshape(-1, self._left.shape[-1]).T @ weighed.reshape(-1, weighed.shape[-1])
        b = self.marker @ weighed.sum(0)
        if self.base is not None:
            W, b = W + self.kept * self.base.W, b + self.kept * self.base.b
        return Shared(W, b).flat()


def _numbers(scale: Scale | None, shrink: Scale | None) -> tuple[float, float]:
    """The factor on the new terms, and what is kept of the old ones: step sizes are numbers here."""
    return 1.0 if scale is None else scale[0], 1.0 if shrink is None else 1.0 - shrink[0]


def _numbers_of(term: Term, coefficient: float) -> tuple[Array, Array]:
    """c and m for the rows of a term."""
    n, dtype = term.left.shape[1], term.left.dtype
    return np.full(n, coefficient, dtype), np.full(n, float(term.on_bias), dtype)


# --- the first layer --------------------------------------------------------------------------------


class InputProducts:
    """The products of the inputs that all points and directions of one meta-gradient need, made once.

    A set of inputs is known by being the same array, which is kept here, and so cannot be another one
    at the same place in memory.
    """

    def __init__(self) -> None:
        self._with_weights: dict[int, tuple[Array, Array]] = {}
        self._grams: dict[tuple[int, int], tuple[Array, Array, Array]] = {}

    def with_weights(self, x: Array, base: Shared) -> Array:
        """``x W + b``."""
        if id(x) not in self._with_weights:
            self._with_weights[id(x)] = x, Shared.act(base, x)
        return self._with_weights[id(x)][1]

    def gram(self, x: Array, other: Array) -> Array:
        """``x otherᵀ + 1``: the bias sees every row."""
        if (id(x), id(other)) not in self._grams:
            gram = x @ other.swapaxes(-1, -2) + 1
            self._grams[id(x), id(other)] = x, other, gram
            self._grams[id(other), id(x)] = other, x, gram.swapaxes(-1, -2)
        return self._grams[id(x), id(other)][2]


@dataclass(frozen=True)
class InputBase(Shared):
    """A first layer that all tasks still share, and that becomes :class:`FactoredInput`."""

    products: InputProducts = field(default_factory=InputProducts)

    def act(self, h: Array) -> Array:
        return self.products.with_weights(h, self)

    def descend(
        self, gradient: OuterSum, scale: Scale | None = None, shrink: Scale | None = None
    ) -> FactoredInput:
        factor, kept = _numbers(scale, shrink)
        return FactoredInput({}, self.products, self, kept)._with(gradient.terms, -factor)

    def cotangent(self, gradient: OuterSum) -> FactoredInput:
        return FactoredInput({}, self.products)._with(gradient.terms, 1.0)


@dataclass(frozen=True)
class FactoredInput:
    """A first layer for each task.

    Attributes
    ----------
    terms : dict
        By identity of the inputs: the inputs ``(T, rows, n_in)`` and their right factor
        ``(T, rows, n_out)``, coefficients included. There are two at most, support and query.
    products : InputProducts
    base : Shared or None
    kept : float
    """

    terms: dict[int, tuple[Array, Array]]
    products: InputProducts
    base: Shared | None = None
    kept: float = 1.0

    def _with(self, terms: Sequence[Term], coefficient: float) -> FactoredInput:
        """``self + coefficient · terms``."""
        merged = dict(self.terms)
        for term in terms:
            new = coefficient * term.right
            _, old = merged.get(id(term.left), (None, None))
            merged[id(term.left)] = term.left, new if old is None else old + new
        return replace(self, terms=merged)

    def descend(
        self, gradient: OuterSum, scale: Scale | None = None, shrink: Scale | None = None
    ) -> FactoredInput:
        factor, kept = _numbers(scale, shrink)
        shrunk = self if kept == 1 else self.scaled((kept, kept))
        return shrunk._with(gradient.terms, -factor)

    def cotangent(self, gradient: OuterSum) -> FactoredInput:
        return FactoredInput({}, self.products)._with(gradient.terms, 1.0)

    def scaled(self, scale: Scale) -> FactoredInput:
        factor = scale[0]
        terms = {key: (x, factor * right) for key, (x, right) in self.terms.items()}
        return replace(self, terms=terms, kept=factor * self.kept)

    def dot(self, gradient: OuterSum) -> Array:
        return paired(self, gradient)

    # --- as a layer

    def act(self, h: Array) -> Array:
        own = self._total(lambda x, right: self.products.gram(h, x) @ right)
        return self._sum(own, None if self.base is None else self.base.act(h))

    def act_linear(self, h: Array) -> Array:
        own = self._total(lambda x, right: (self.products.gram(h, x) - 1) @ right)
        return self._sum(own, None if self.base is None else self.base.act_linear(h))

    def act_transposed(self, d: Array) -> Array:
        own = self._total(lambda x, right: (d @ right.swapaxes(-1, -2)) @ x)
        return self._sum(own, None if self.base is None else self.base.act_transposed(d))

    def _total(self, of: Callable[[Array, Array], Array]) -> Array:
        """The sum over the terms of a function of inputs and right factor."""
        return reduce(operator.add, (of(x, right) for x, right in self.terms.values()))

    def _sum(self, own: Array, shared: Array | None) -> Array:
        if shared is not None:
            own += shared if self.kept == 1 else self.kept * shared
        return own

    # --- as numbers

    def flat(self) -> Array:
        W = self._total(lambda x, right: x.swapaxes(-1, -2) @ right)
        b = self._total(lambda x, right: right.sum(-2))
        if self.base is not None:
            W, b = W + self.kept * self.base.W, b + self.kept * self.base.b
        return Dense(W, b).flat()

    def task_mean(self) -> Array:
        W = self._total(
            lambda x, right: (
                x.reshape(-1, x.shape[-1]).T @ (right / len(right)).reshape(-1, right.shape[-1])
            )
        )
        b = self._total(lambda x, right: right.sum(1).mean(0))
        if self.base is not None:
            W, b = W + self.kept * self.base.W, b + self.kept * self.base.b
        return Shared(W, b).flat()
