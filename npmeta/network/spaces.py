r"""Where the loops of MAML move: points, cotangents and directions, and what may be done with which.

=========  ===================================  =====================================================
point      where one is, φ                      :func:`descend`: φ − α ∘ ∇L
gradient   what an objective has at a point     :func:`cotangent`: λ, held as the point is;
                                                :func:`dense`: multiplied out
cotangent  what the derivative by a point is,   :func:`times`, :func:`plus`, :func:`minus`,
           λ                                    :func:`paired`, :func:`task_mean`
direction  what one moves along                 :func:`scaled`: α ∘ λ, by step sizes alone
=========  ===================================  =====================================================

Each is a list with a block for every layer, and an operation is that of its blocks, whatever they are.
Step sizes multiply block by block. What inner steps leave alone has a step size of zero, and nothing
else sets it apart: its cotangent is that of any other parameter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from npmeta._support.validation import Array
from npmeta.network.weights import Cotangent, Direction, Gradient, Point, Scale


def descend(
    point: Sequence[Point],
    gradient: Sequence[Gradient],
    scales: Sequence[Scale],
    shrinks: Sequence[Scale | None],
) -> Sequence[Point]:
    """``(1 − shrink) ∘ φ − scale ∘ ∇L``."""
    blocks = zip(point, gradient, scales, shrinks, strict=True)
    return [own.descend(g, scale, shrink) for own, g, scale, shrink in blocks]


def cotangent(point: Sequence[Point], gradient: Sequence[Gradient]) -> Sequence[Cotangent]:
    """A gradient at a point, as what products are subtracted from."""
    return [own.cotangent(g) for own, g in zip(point, gradient, strict=True)]


def scaled(cotangent: Sequence[Cotangent], scales: Sequence[Scale]) -> Sequence[Direction]:
    """``scale ∘ λ``."""
    return [lam.scaled(scale) for lam, scale in zip(cotangent, scales, strict=True)]


def times(weight: float, cotangent: Sequence[Cotangent]) -> Sequence[Cotangent]:
    """``weight λ``."""
    return [lam.scaled(weight) for lam in cotangent]


def minus(
    cotangent: Sequence[Cotangent],
    products: Sequence[Gradient],
    shrinks: Sequence[Scale | None] | None = None,
) -> Sequence[Cotangent]:
    """``(1 − shrink) ∘ λ − Hv``."""
    blocks = zip(cotangent, products, shrinks or [None] * len(cotangent), strict=True)
    return [lam.descend(product, shrink=shrink) for lam, product, shrink in blocks]


def plus(
    cotangent: Sequence[Cotangent], weight: float, gradient: Sequence[Gradient]
) -> Sequence[Cotangent]:
    """``λ + weight ∇L``."""
    return [lam.descend(g, -weight) for lam, g in zip(cotangent, gradient, strict=True)]


def paired(
    cotangent: Sequence[Cotangent], gradient: Sequence[Gradient], scales: Sequence[Scale]
) -> Sequence[Array]:
    """``⟨λ, scale ∘ ∇L⟩``, block by block and for each task."""
    blocks = zip(cotangent, gradient, scales, strict=True)
    return [lam.dot(g, scale) for lam, g, scale in blocks]


def task_mean(cotangent: Sequence[Cotangent]) -> Array:
    """The mean over tasks, ``(P,)``."""
    return np.concatenate([lam.task_mean() for lam in cotangent])


def dense(gradient: Sequence[Gradient]) -> Array:
    """A gradient multiplied out, ``(T, P)``."""
    return flatten([part.dense() for part in gradient])


def flatten(blocks: Sequence[Point | Cotangent | Direction]) -> Array:
    """The blocks side by side, ``(T, P)`` (``(P,)`` where all tasks share them)."""
    return np.concatenate([block.flat() for block in blocks], axis=-1)
