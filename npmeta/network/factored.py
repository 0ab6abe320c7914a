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

The matrices in round brackets are inner products of rows, and every one of them is made once. On its
way forward each row meets the factors of the steps before it. The adjoint asks for the same numbers
from the other side: its factors are the rows that came later.

The first layer has a class of its own. The rows it sees never change, so each step adds to the right
factor of the same left one, and the products of the inputs, with W and with each other, are made once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import numpy as np

from npmeta._support.validation import Array
from npmeta.network.weights import (
    Dense,
    OuterSum,
    Scale,
    Shared,
    Term,
    Weights,
    each,
    product,
    row_sum,
    total,
)

# --- what all layers have in common -----------------------------------------------------------------

Own = TypeVar("Own", bound="_Thin")


class _Thin(Weights, ABC):
    """``κ base + Σ c leftᵀ right``: a point, or without a base a cotangent or a direction.

    A subclass says how it keeps its terms: it multiplies them all, adds some, and lists them.

    Attributes
    ----------
    base : Shared or None
        W and b; None for a cotangent.
    kept : float
        κ.
    """

    base: Shared | None
    kept: float

    @abstractmethod
    def times(self: Own, factor: float) -> Own:
        """``factor · self``."""

    @abstractmethod
    def plus(self: Own, terms: Sequence[Term], factor: float) -> Own:
        """``self + factor · terms``."""

    @abstractmethod
    def empty(self: Own) -> Own:
        """0, sharing what has been multiplied."""

    @abstractmethod
    def few_terms(self) -> Sequence[Term]:
        """Coefficients included, and as few as can be."""

    def descend(
        self: Own, gradient: OuterSum, scale: Scale | None = None, shrink: Scale | None = None
    ) -> Own:
        factor = 1.0 if scale is None else each(scale, 2)[0]  # step sizes are numbers here
        kept = self if shrink is None else self.times(1.0 - each(shrink, 2)[0])
        return kept.plus(gradient.terms, -factor)

    def cotangent(self: Own, gradient: OuterSum) -> Own:
        return self.empty().plus(gradient.terms, 1.0)

    def scaled(self: Own, scale: Scale) -> Own:
        return self.times(each(scale, 2)[0])

    def flat(self) -> Array:
        layer = OuterSum(tuple(self.few_terms())).dense()
        if self.base is None:
            return layer.flat()
        return Dense(layer.W + self.kept * self.base.W, layer.b + self.kept * self.base.b).flat()

    def task_mean(self) -> Array:
        # Of sums over rows, it is one product over all rows of all tasks.
        terms = self.few_terms()
        T = len(terms[0].left)
        W = total(_rows(term.left).T @ _rows(term.right) for term in terms) / T
        b = total(row_sum(_rows(term.right)) for term in terms if term.on_bias) / T
        return Shared(W, b).flat()

    def _sum(self, own: Array, shared: Array | None) -> Array:
        """``own + κ shared``."""
        if shared is not None:
            own += shared if self.kept == 1 else self.kept * shared
        return own


class _Base(Shared, ABC):
    """A layer that all tasks still share, and that becomes factored by descending."""

    @abstractmethod
    def start(self, base: Shared | None) -> _Thin:
        """κ = 1 and no terms."""

    # Descending makes another kind of layer of it, not one for each task as a shared one's does.
    def descend(  # type: ignore[override]
        self, gradient: OuterSum, scale: Scale | None = None, shrink: Scale | None = None
    ) -> _Thin:
        return self.start(self).descend(gradient, scale, shrink)

    def cotangent(self, gradient: OuterSum) -> _Thin:
        return self.start(None).cotangent(gradient)


# --- any layer but the first ----------------------------------------------------------------------

#: Rows ``(T, n, width)``, and whether the bias sees them.
_Part: TypeAlias = tuple[Array, bool]


class Grams:
    """Inner products of rows, each made once.

    A set of rows is known by being the same array, which is kept here, and so cannot be another one
    at the same place in memory.
    """

    def __init__(self) -> None:
        # By the rows h: h, where the rows it met stand in the product, and the product.
        self._made: dict[tuple[int, bool], tuple[Array, dict[tuple[int, bool], slice], Array]] = {}
        self._alive: list[Sequence[_Part]] = []

    def product(self, h: _Part, parts: Sequence[_Part]) -> Array:
        """``h partsᵀ + m m'ᵀ``: m is 1 where the bias sees the rows of h, m' where those of a part."""
        blocks = [self._turned(part, h) for part in parts]
        known = [block for block in blocks if block is not None]
        if len(known) == len(parts):
            return known[0] if len(known) == 1 else np.concatenate(known, axis=-1)
        gram = product(h[0], _joined([part for part, _ in parts]).swapaxes(-1, -2))
        places, start = {}, 0
        for part, on_bias in parts:
            place = slice(start, start + part.shape[1])
            if h[1] and on_bias:
                gram[..., place] += 1
            places[id(part), on_bias] = place
            start = place.stop
        self._made.setdefault((id(h[0]), h[1]), (h[0], places, gram))
        self._alive.append(parts)
        return gram

    def _turned(self, part: _Part, h: _Part) -> Array | None:
        """The product of h with a part, if it was made as that of the part with h."""
        made = self._made.get((id(part[0]), part[1]))
        place = None if made is None else made[1].get((id(h[0]), h[1]))
        if made is None or place is None:
            return None
        return made[2][..., place].swapaxes(-1, -2)


class Factored(_Thin):
    """A layer for each task whose inputs change from step to step.

    Parameters
    ----------
    terms : sequence of Term
        The outer products.
    coefficients : sequence of float
        c, one for the rows of each term.
    grams : pair of Grams
        Inner products with left factors and with right ones.
    base : Shared or None
        W and b; None for a direction.
    kept : float
        κ.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        coefficients: Sequence[float],
        grams: tuple[Grams, Grams],
        base: Shared | None = None,
        kept: float = 1.0,
    ) -> None:
        self.terms, self.coefficients = terms, coefficients
        self.grams, self.base, self.kept = grams, base, kept

    def times(self, factor: float) -> Factored:
        coefficients = [factor * c for c in self.coefficients]
        return Factored(self.terms, coefficients, self.grams, self.base, factor * self.kept)

    def plus(self, terms: Sequence[Term], factor: float) -> Factored:
        coefficients = (*self.coefficients, *[factor] * len(terms))
        return Factored((*self.terms, *terms), coefficients, self.grams, self.base, self.kept)

    def empty(self) -> Factored:
        return Factored((), (), self.grams)

    # --- as a layer

    def act(self, h: Array) -> Array:
        return self._out_of_right((h, True), None if self.base is None else self.base.act(h))

    def act_linear(self, h: Array) -> Array:
        return self._out_of_right((h, False), None if self.base is None else self.base.act_linear(h))

    def act_transposed(self, d: Array) -> Array:
        parts = [(term.right, False) for term in self.terms]
        gram = self.grams[1].product((d, False), parts)
        own = product(self._weighed(gram), _joined([term.left for term in self.terms]))
        return self._sum(own, None if self.base is None else self.base.act_transposed(d))

    def _out_of_right(self, h: _Part, shared: Array | None) -> Array:
        """``κ shared + [(h leftᵀ + 1 mᵀ) ∘ c] right``."""
        parts = [(term.left, term.on_bias) for term in self.terms]
        gram = self.grams[0].product(h, parts)
        own = product(self._weighed(gram), _joined([term.right for term in self.terms]))
        return self._sum(own, shared)

    def _weighed(self, gram: Array) -> Array:
        """``gram ∘ c``."""
        if len(set(self.coefficients)) == 1:
            return gram * self.coefficients[0]
        rows = [term.left.shape[1] for term in self.terms]
        return gram * np.repeat(np.array(self.coefficients, dtype=gram.dtype), rows)

    def few_terms(self) -> list[Term]:
        # Those that the bias sees, joined, and the others: two large products and not 2 S + 1.
        weighed = [
            Term(left, c * right, on_bias)
            for (left, right, on_bias), c in zip(self.terms, self.coefficients, strict=True)
        ]
        kinds = [[term for term in weighed if term.on_bias is seen] for seen in (True, False)]
        return [_together(kind) for kind in kinds if kind]


@dataclass(frozen=True)
class FactoredBase(_Base):
    """A layer that all tasks still share, and that becomes :class:`Factored` by descending."""

    def start(self, base: Shared | None) -> Factored:
        return Factored((), (), (Grams(), Grams()), base)


# --- the first layer --------------------------------------------------------------------------------


class InputProducts:
    """The products of the inputs that all points and directions of one meta-gradient need, made once.

    A set of inputs is known by being the same array, which is kept here.
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
class InputBase(_Base):
    """A first layer that all tasks still share, and that becomes :class:`FactoredInput`."""

    products: InputProducts = field(default_factory=InputProducts)

    def act(self, h: Array) -> Array:
        return self.products.with_weights(h, self)

    def start(self, base: Shared | None) -> FactoredInput:
        return FactoredInput({}, self.products, base)


class FactoredInput(_Thin):
    """A first layer for each task.

    Parameters
    ----------
    terms : dict
        By identity of the inputs: the inputs ``(T, rows, n_in)`` and their right factor
        ``(T, rows, n_out)``, coefficients included. There are two at most, support and query.
    products : InputProducts
    base : Shared or None
    kept : float
    """

    def __init__(
        self,
        terms: dict[int, tuple[Array, Array]],
        products: InputProducts,
        base: Shared | None = None,
        kept: float = 1.0,
    ) -> None:
        self.terms, self.products, self.base, self.kept = terms, products, base, kept

    def times(self, factor: float) -> FactoredInput:
        terms = {key: (x, factor * right) for key, (x, right) in self.terms.items()}
        return FactoredInput(terms, self.products, self.base, factor * self.kept)

    def plus(self, terms: Sequence[Term], factor: float) -> FactoredInput:
        merged = dict(self.terms)
        for term in terms:
            new = term.right if factor == 1 else factor * term.right
            _, old = merged.get(id(term.left), (None, None))
            merged[id(term.left)] = term.left, new if old is None else old + new
        return FactoredInput(merged, self.products, self.base, self.kept)

    def empty(self) -> FactoredInput:
        return FactoredInput({}, self.products)

    def few_terms(self) -> list[Term]:
        return [Term(x, right, True) for x, right in self.terms.values()]

    # --- as a layer

    def act(self, h: Array) -> Array:
        own = total(self.products.gram(h, x) @ right for x, right in self.terms.values())
        return self._sum(own, None if self.base is None else self.base.act(h))

    def act_linear(self, h: Array) -> Array:
        own = total((self.products.gram(h, x) - 1) @ right for x, right in self.terms.values())
        return self._sum(own, None if self.base is None else self.base.act_linear(h))

    def act_transposed(self, d: Array) -> Array:
        own = total((d @ right.swapaxes(-1, -2)) @ x for x, right in self.terms.values())
        return self._sum(own, None if self.base is None else self.base.act_transposed(d))


# --- rows ---------------------------------------------------------------------------------------


def _together(terms: Sequence[Term]) -> Term:
    """Terms that the bias sees all, or none, as one."""
    left, right, on_bias = zip(*terms, strict=True)
    return Term(_joined(left), _joined(right), on_bias[0])


def _joined(parts: Sequence[Array]) -> Array:
    """Rows ``(T, n, width)`` one below the other."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _rows(factor: Array) -> Array:
    """``(T, n, width)`` as ``(T·n, width)``."""
    return factor.reshape(-1, factor.shape[-1])
