r"""The softmax and its derivatives, with their tails.

Where one share is nearly 1, :math:`1 - p` and :math:`v - \langle p, v \rangle` are small differences of
large numbers. Everything here starts from the largest entry m of each row instead, whose exponential
:math:`e_m` is exactly 1: what is small is then a sum of small numbers, and keeps its digits.

Functions work on the last axis and are complex-safe: branches look at the real part only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from npmeta._support.validation import Array


class FromLargest(NamedTuple):
    """Rows seen from their largest entries.

    Attributes
    ----------
    largest : ndarray of int, (..., 1)
        Where those are, the first of equal ones, for ``take`` from an array of the same shape.
    shifted : ndarray, (..., n)
        z − z_m, 0 at m.
    e : ndarray, (..., n)
        exp(z − z_m), 1 at m.
    others : ndarray, (..., 1)
        Σ_{k ≠ m} e_k.
    """

    largest: Array
    shifted: Array
    e: Array
    others: Array


def from_largest(z: Array) -> FromLargest:
    """Differences to the largest entry of each row of ``z (..., n)``, and their exponentials."""
    top = z.real.argmax(-1)
    largest = (top + np.arange(0, z.size, z.shape[-1]).reshape(top.shape))[..., None]
    shifted = z - z.take(largest)
    e = np.exp(shifted)
    e.put(largest, 0)
    others = e.sum(-1, keepdims=True)
    e.put(largest, 1)
    return FromLargest(largest, shifted, e, others)


def softmax(z: Array) -> Array:
    """p = exp(z) / Σ exp(z) along the last axis."""
    _, _, e, others = from_largest(z)
    return e / (1 + others)


def log_softmax(z: Array) -> Array:
    """log p, finite where p itself is 0."""
    _, shifted, _, others = from_largest(z)
    return shifted - np.log1p(others)


def relative_to_largest(p: Array, v: Array) -> Array:
    """v − v_m, where p_m is the largest share of its row: shapes broadcast."""
    largest = p.real.argmax(-1)[..., None] == np.arange(p.shape[-1])
    return v - (v * largest).sum(-1, keepdims=True)


def through_softmax(p: Array, v: Array) -> Array:
    r"""The product with the Jacobian of the softmax, which is symmetric.

    .. math:: J(v) = p \circ (v - \langle p, v \rangle), \qquad J(v) = J(v - v_m) .

    The right-hand side is what is computed: nothing of the largest share is in its inner product.
    """
    w = relative_to_largest(p, v)
    return p * (w - (p * w).sum(-1, keepdims=True))
