r"""Distances between the rows of two sets, and their backward passes.

For rows ``u (T, Q, d)`` and ``v (T, C, d)`` each function returns values for all pairs of a task,
``(T, Q, C)``, and a function that pulls a cotangent of these values back to the rows. A bar is the
derivative of a loss, :math:`\bar u = \partial\ell/\partial u`.

Where two rows are the same, their Euclidean distance and the differences of an L1 distance have a kink,
and the cosine of a row of zeros is not defined at all. There the derivatives are zero: for a distance
that is the subgradient of least length, and rows that coincide stay where they are. No value and no
derivative is ever NaN.

Everything here is complex-safe (branches look at the real part only), so that complex steps check it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.validation import Array


class PairsAt(NamedTuple):
    """A number for each pair ``(T, Q, C)``, and the function from its cotangent to ū and v̄."""

    value: Array
    pull_back: Callable[[Array], tuple[Array, Array]]


class WeightedPairsAt(NamedTuple):
    """The same for a distance with weights: from the cotangent to ū, v̄ and w̄."""

    value: Array
    pull_back: Callable[[Array], tuple[Array, Array, Array]]


def _differences(u: Array, v: Array) -> Array:
    """r_ij = u_i − v_j, ``(T, Q, C, d)``: |u|² + |v|² − 2 u·v would lose what near rows differ by."""
    return u[:, :, None, :] - v[:, None, :, :]


def squared_euclidean(u: Array, v: Array) -> PairsAt:
    r"""Squared Euclidean distances.

    .. math:: D_{ij} = |u_i - v_j|^2, \qquad
              \bar u_i = \sum_j 2 \bar D_{ij} (u_i - v_j), \qquad
              \bar v_j = -\sum_i 2 \bar D_{ij} (u_i - v_j).
    """
    r = _differences(u, v)

    def pull_back(D_bar: Array) -> tuple[Array, Array]:
        return (
            np.einsum("tij,tijd->tid", 2 * D_bar, r),
            np.einsum("tij,tijd->tjd", -2 * D_bar, r),
        )

    return PairsAt(np.einsum("tijd,tijd->tij", r, r), pull_back)


def euclidean(u: Array, v: Array) -> PairsAt:
    r"""Euclidean distances.

    .. math:: d_{ij} = |r_{ij}|, \quad r_{ij} = u_i - v_j, \qquad
              \bar u_i = \sum_j \bar d_{ij} \frac{r_{ij}}{d_{ij}}, \qquad
              \bar v_j = -\sum_i \bar d_{ij} \frac{r_{ij}}{d_{ij}}, \qquad 0 \text{ where } d_{ij} = 0.
    """
    r = _differences(u, v)
    unit = _unit_of(r)
    scaled = r / unit
    d = np.sqrt(np.einsum("tijd,tijd->tij", scaled, scaled))  # in units

    def pull_back(d_bar: Array) -> tuple[Array, Array]:
        by_pair = (d_bar * _inverse(d))[..., None] * scaled
        return by_pair.sum(2), -by_pair.sum(1)

    return PairsAt(d * unit[..., 0], pull_back)


def cosine(u: Array, v: Array) -> PairsAt:
    r"""Cosine distances, from 0 (the same direction) to 2; a row of zeros is at 1 from every other.

    With rows of length 1, :math:`\hat u = u/|u|`:

    .. math:: d_{ij} = 1 - \hat u_i^\top \hat v_j, \qquad
              \bar{\hat u}_i = -\sum_j \bar d_{ij} \hat v_j, \qquad
              \bar u = \frac{\bar{\hat u} - \hat u\, (\hat u^\top \bar{\hat u})}{|u|} .
    """
    u_hat, u_pull_back = _unit(u)
    v_hat, v_pull_back = _unit(v)

    def pull_back(d_bar: Array) -> tuple[Array, Array]:
        return u_pull_back(-d_bar @ v_hat), v_pull_back(-d_bar.swapaxes(1, 2) @ u_hat)

    return PairsAt(1 - u_hat @ v_hat.swapaxes(1, 2), pull_back)


def _unit(u: Array) -> tuple[Array, Callable[[Array], Array]]:
    """û = u / |u|, 0 for a row of zeros, and the function from its cotangent to ū."""
    unit = _unit_of(u)
    scaled = u / unit
    inverse = _inverse(np.sqrt(np.einsum("tid,tid->ti", scaled, scaled)))[..., None]
    u_hat = scaled * inverse
    inverse = inverse / unit

    def pull_back(u_hat_bar: Array) -> Array:
        along = np.einsum("tid,tid->ti", u_hat, u_hat_bar)[..., None]
        return (u_hat_bar - u_hat * along) * inverse

    return u_hat, pull_back


def _unit_of(rows: Array) -> Array:
    """The power of 2 just above the largest entry of each row ``(..., d)``, 1 of zeros: ``(..., 1)``.

    In such units squares neither overflow nor vanish, and nothing is rounded. For derivatives it is a
    constant: where it jumps, nothing changes.
    """
    largest = np.abs(rows.real).max(-1, keepdims=True)
    return np.ldexp(np.ones_like(largest), np.frexp(largest)[1])


def weighted_l1(u: Array, v: Array, w: Array) -> WeightedPairsAt:
    r"""Sums of absolute differences, each feature with a weight of its own, ``w (d,)``.

    .. math:: d_{ij} = \sum_k w_k\, |r_{ijk}|, \quad r_{ij} = u_i - v_j, \qquad
              \bar r_{ijk} = \bar d_{ij}\, w_k \operatorname{sign} r_{ijk}, \qquad
              \bar w_k = \sum_{ij} \bar d_{ij}\, |r_{ijk}|,

    with :math:`\operatorname{sign} 0 = 0`; the weights are those of all tasks, and so is their
    cotangent.
    """
    r = _differences(u, v)
    sign = np.sign(r.real).astype(r.dtype)
    size = sign * r

    def pull_back(d_bar: Array) -> tuple[Array, Array, Array]:
        return (
            w * np.einsum("tij,tijd->tid", d_bar, sign),
            -w * np.einsum("tij,tijd->tjd", d_bar, sign),
            np.einsum("tij,tijd->d", d_bar, size),
        )

    return WeightedPairsAt(size @ w, pull_back)


def norm(values: ArrayLike) -> float:
    """The Euclidean norm of all entries, also where squares would be too small or too large."""
    array = np.abs(np.asarray(values, dtype=np.float64))
    largest = float(np.max(array, initial=0))
    if not 0 < largest < math.inf:
        return largest
    return largest * float(np.linalg.norm(array / largest))


def _inverse(d: Array) -> Array:
    """1 / d, and 0 where d is 0."""
    zero = d == 0
    return np.where(zero, 0, 1 / np.where(zero, 1, d)).astype(d.dtype)


#: The distances without weights, by the name configurations use.
DISTANCES: dict[str, Callable[[Array, Array], PairsAt]] = {
    "cosine": cosine,
    "euclidean": euclidean,
    "squared_euclidean": squared_euclidean,
}
