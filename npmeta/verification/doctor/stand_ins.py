"""A loss and an activation that networks are built with by mistake, for the right ones."""

from __future__ import annotations

import numpy as np

from npmeta._support.validation import Array
from npmeta.network.activations import Activation
from npmeta.network.losses import Loss, LossAt
from npmeta.network.softmax import relative_to_largest, softmax, through_softmax


def _gelu_by_tanh(z: Array) -> tuple[Array, Array, Array]:
    """½ z (1 + tanh u), u = √(2/π) (z + 0.044715 z³), and its first two derivatives."""
    c, k = np.sqrt(2 / np.pi).astype(z.dtype), 0.044715
    t = np.tanh(c * (z + k * z**3))
    u_prime, u_second = c * (1 + 3 * k * z**2), 6 * c * k * z
    s = 1 - t * t
    first = (1 + t + z * s * u_prime) / 2
    second = s * u_prime + z * s * (u_second - 2 * t * u_prime**2) / 2
    return z * (1 + t) / 2, first, second


GELU_BY_TANH = Activation(
    "gelu by tanh",
    lambda z: _gelu_by_tanh(z)[0],
    lambda z, a: _gelu_by_tanh(z)[1],
    lambda z, a: _gelu_by_tanh(z)[2],
)


def _softmax_twice(o: Array, y: Array) -> LossAt:
    """Cross-entropy of probabilities that are taken for logits: −Σ y log softmax(p), p = softmax(o)."""
    rows = o.shape[-2]
    p = softmax(o)
    u = softmax(p)
    g = (u - y) / rows

    def hessian_product(o_dot: Array) -> Array:
        p_dot = through_softmax(p, o_dot)
        g_dot = through_softmax(u, p_dot) / rows
        v = relative_to_largest(p, g)
        moved = p_dot * (v - (p * v).sum(-1, keepdims=True)) - p * (p_dot * v).sum(-1, keepdims=True)
        return moved + through_softmax(p, g_dot)

    return LossAt(-(y * np.log(u)).sum(-1).mean(-1), through_softmax(p, g), hessian_product)


SOFTMAX_TWICE = Loss("softmax, then cross_entropy", _softmax_twice, "classes", soft=True)
