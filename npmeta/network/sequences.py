r"""Layers of networks that read a task as a sequence, row by row, and see what came before.

A task's support rows are the sequence :math:`a_1, \dots, a_K`, and every query row is its row K + 1:
what comes before a query row is the support set and no other query row. Arrays are ``(T, K + Q, n)``,
all tasks and rows at once, with the support rows first. So what is made of the support rows is made
once, whatever the number of query rows.

Layers are densely connected: they hand on what they were given, and beside it what they make of it.
Each has one matrix, whose last row is the bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from npmeta._support.validation import Array
from npmeta.network import activations
from npmeta.network.softmax import softmax, through_softmax

_sigmoid, _tanh = activations.get("sigmoid"), activations.get("tanh")


class Layered(NamedTuple):
    """What a layer hands on, and the way back.

    Attributes
    ----------
    outputs : ndarray, (T, rows, n + m)
        The n numbers of a row that it was given, and m of its own; of :func:`linear` the m alone.
    pull_back : callable
        From a cotangent of the outputs to those of the inputs ``(T, rows, n)`` and of the matrix.
    """

    outputs: Array
    pull_back: Callable[[Array], tuple[Array, Array]]


def linear(a: Array, W: Array) -> Layered:
    """A W and a bias, row by row, with ``W (n + 1, m)``."""

    def pull_back(z_bar: Array) -> tuple[Array, Array]:
        return z_bar @ W[:-1].T, np.concatenate([_over_rows(a, z_bar), [z_bar.sum((0, 1))]])

    return Layered(a @ W[:-1] + W[-1], pull_back)


def earlier(a: Array, K: int, distance: int) -> Array:
    r"""What stood so many rows before, :math:`a_{t-D}`; zeros before the first row."""
    out = np.zeros_like(a)
    if distance <= K:
        out[:, distance:K] = a[:, : K - distance]
        out[:, K:] = a[:, [K - distance]]  # t = K + 1 for every query row
    return out


def through_earlier(bar: Array, K: int, distance: int) -> Array:
    """The transpose of :func:`earlier`: what every row is told by the row so many later."""
    out = np.zeros_like(bar)
    if distance <= K:
        out[:, : K - distance] = bar[:, distance:K]
        out[:, K - distance] += bar[:, K:].sum(1)
    return out


def dilated_convolution(a: Array, W: Array, K: int, dilation: int) -> Layered:
    r"""A gated causal convolution over two rows, D apart (van den Oord et al. 2016, equation 2).

    .. math:: z_t = a_t W_0 + a_{t-D} W_1 + b, \qquad
              h_t = \tanh(z_t^f) \circ \sigma(z_t^g), \qquad a_t \mapsto [a_t, h_t] .

    Parameters
    ----------
    a : ndarray, (T, K + Q, n)
    W : ndarray, (2 n + 1, 2 m)
        :math:`W_0` over :math:`W_1` over b, each for f and g side by side.
    K : int
        Rows of the sequence.
    dilation : int
        D, at least 1.
    """
    n, m = a.shape[-1], W.shape[-1] // 2
    W_0, W_1, b = W[:n], W[n:-1], W[-1]
    z = a @ W_0 + earlier(a @ W_1, K, dilation) + b
    z_f, z_g = z[..., :m], z[..., m:]
    f, g = _tanh.f(z_f), _sigmoid.f(z_g)

    def pull_back(bar: Array) -> tuple[Array, Array]:
        a_bar, h_bar = bar[..., :n], bar[..., n:]
        z_bar = np.concatenate([h_bar * g * _tanh.df(z_f, f), h_bar * f * _sigmoid.df(z_g, g)], axis=-1)
        back = through_earlier(z_bar, K, dilation)
        W_bar = np.concatenate([_over_rows(a, z_bar), _over_rows(a, back), [z_bar.sum((0, 1))]])
        return a_bar + z_bar @ W_0.T + back @ W_1.T, W_bar

    return Layered(np.concatenate([a, f * g], axis=-1), pull_back)


def attention(a: Array, W: Array, K: int, n_keys: int) -> Layered:
    r"""What a row finds in itself and in the rows before it (Vaswani et al. 2017, section 3.2.1).

    .. math:: q_t, k_t, v_t = a_t W + b, \qquad
              p_t = \operatorname{softmax}_{s \le t}\, \frac{q_t \cdot k_s}{\sqrt d}, \qquad
              r_t = \sum_{s \le t} p_{ts}\, v_s, \qquad a_t \mapsto [a_t, r_t] .

    Parameters
    ----------
    a : ndarray, (T, K + Q, n)
    W : ndarray, (n + 1, 2 d + m)
        Over b; for queries, keys and values side by side.
    K : int
        Rows of the sequence.
    n_keys : int
        d, the length of a query and of a key.
    """
    n, root = a.shape[-1], math.sqrt(n_keys)
    qkv, to_rows = linear(a, W)
    q, k, v = np.split(qkv, [n_keys, 2 * n_keys], axis=-1)
    k_K, v_K = k[:, :K], v[:, :K]
    # One column for every row of the sequence, of which a row sees those before it, and one for itself.
    z = np.concatenate([q @ k_K.swapaxes(1, 2), (q * k).sum(-1, keepdims=True)], axis=-1) / root
    p = softmax(np.where(_seen(a.shape[1], K), z, -np.inf))
    p_K, p_self = p[..., :K], p[..., K:]
    r = p_K @ v_K + p_self * v

    def pull_back(bar: Array) -> tuple[Array, Array]:
        a_bar, r_bar = bar[..., :n], bar[..., n:]
        p_bar = [r_bar @ v_K.swapaxes(1, 2), (r_bar * v).sum(-1, keepdims=True)]
        z_bar = through_softmax(p, np.concatenate(p_bar, axis=-1)) / root
        z_K_bar, z_self_bar = z_bar[..., :K], z_bar[..., K:]
        q_bar = z_K_bar @ k_K + z_self_bar * k
        k_bar, v_bar = z_self_bar * q, p_self * r_bar
        k_bar[:, :K] += z_K_bar.swapaxes(1, 2) @ q
        v_bar[:, :K] += p_K.swapaxes(1, 2) @ r_bar
        a_bar_read, W_bar = to_rows(np.concatenate([q_bar, k_bar, v_bar], axis=-1))
        return a_bar + a_bar_read, W_bar

    return Layered(np.concatenate([a, r], axis=-1), pull_back)


def _seen(rows: int, K: int) -> Array:
    """Whether a row sees a column of :func:`attention`, ``(rows, K + 1)``."""
    t, s = np.arange(rows)[:, None], np.arange(K + 1)
    return (s < t) | (s == K)


def _over_rows(a: Array, z_bar: Array) -> Array:
    """Σ a_tᵀ z̄_t over the rows of all tasks."""
    W_bar: Array = a.reshape(-1, a.shape[-1]).T @ z_bar.reshape(-1, z_bar.shape[-1])
    return W_bar
