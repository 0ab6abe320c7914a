r"""Activation functions with their first two derivatives, by name.

The three travel together because the three passes need them together: the forward pass uses
:math:`f`, the backward pass :math:`f'`, and the R-operator :math:`f''`.

Everything here is complex-safe: no ``abs``, and branches look at the real part only, so that
:math:`\operatorname{Im} f(z + ih)/h` is an independent check of :math:`f'`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from npmeta._support.validation import Array, as_number, lookup_made


@dataclass(frozen=True)
class Activation:
    """One activation function.

    Attributes
    ----------
    name : str
        What it is called in configurations and files: :func:`~npmeta.network.activations.get` finds
        one of ours by it, its parameter included.
    f : callable
        ``z -> f(z)``, any shape.
    df : callable
        ``(z, a) -> f'(z)``, where ``a = f(z)`` is what the forward pass already has.
    d2f : callable or None
        ``(z, a) -> f''(z)``; None where f'' is zero away from the kinks, so that the passes can
        leave the term out.
    kinks : tuple of float
        Points at which f' (or, for elu, f'') jumps. At a kink the derivatives take their limit
        from the left, which for relu is f'(0) = 0.
    variance_gain : float
        Gain of the initial weights: W has variance ``variance_gain / n_in``.
    """

    name: str
    f: Callable[[Array], Array]
    df: Callable[[Array, Array], Array]
    d2f: Callable[[Array, Array], Array] | None
    kinks: tuple[float, ...] = ()
    variance_gain: float = 1.0

    def __reduce__(self) -> str | tuple[object, ...]:
        """Pickle one of ours by its name, so that networks can be sent to other processes."""
        return (get, (self.name,)) if self.is_ours else object.__reduce__(self)

    @property
    def is_ours(self) -> bool:
        """Whether :func:`~npmeta.network.activations.get` finds it by its name."""
        try:
            return get(self.name) is self
        except ValueError:
            return False


# --- piecewise linear ---------------------------------------------------------------------------


def _positive(z: Array) -> Array:
    """1 where Re z > 0, else 0, in the dtype of z (a float mask multiplies faster than a bool)."""
    return (z.real > 0).astype(z.dtype)


def _positive_part(z: Array) -> Array:
    """z where Re z > 0, else 0. np.maximum would settle a complex tie by the imaginary part."""
    # Against an array NumPy's maximum is three times as fast as against a number.
    return z * _positive(z) if np.iscomplexobj(z) else np.maximum(z, np.zeros_like(z))


IDENTITY = Activation("identity", lambda z: z, lambda z, a: np.ones_like(z), None)

# He et al. 2015: half the inputs are cut off, so the variance has to double.
RELU = Activation("relu", _positive_part, lambda z, a: _positive(z), None, (0.0,), variance_gain=2.0)


def leaky_relu(slope: float = 0.01) -> Activation:
    """z for z > 0, ``slope * z`` elsewhere; f'(0) = slope. Called "leaky_relu" or "leaky_relu(0.3)"."""
    return _leaky_relu(as_number(slope, "slope", "a finite number"))


@cache  # one of each, so that it is found again by its name
def _leaky_relu(slope: float) -> Activation:
    return Activation(
        "leaky_relu" if slope == 0.01 else f"leaky_relu({slope})",
        lambda z: np.where(z.real > 0, z, slope * z),
        lambda z, a: slope + (1 - slope) * _positive(z),
        None,
        (0.0,),
        variance_gain=2.0 / (1.0 + slope**2),
    )


# --- smooth -------------------------------------------------------------------------------------


def elu(alpha: float = 1.0) -> Activation:
    """z for z > 0, ``alpha (exp(z) - 1)`` elsewhere; f'(0) = f''(0) = alpha, the left limits. Called
    "elu" or "elu(0.5)"."""
    return _elu(as_number(alpha, "alpha", "a finite number"))


@cache
def _elu(alpha: float) -> Activation:
    def negative_part(z: Array) -> Array:  # so that no exponential overflows
        return np.where(z.real > 0, 0, z)

    def tail(z: Array) -> Array:  # alpha exp(z) on the negative side
        return alpha * np.exp(negative_part(z))

    return Activation(
        "elu" if alpha == 1 else f"elu({alpha})",
        lambda z: np.where(z.real > 0, z, alpha * np.expm1(negative_part(z))),
        lambda z, a: np.where(z.real > 0, np.ones_like(z), tail(z)),
        lambda z, a: np.where(z.real > 0, np.zeros_like(z), tail(z)),
        (0.0,),
        variance_gain=2.0,
    )


def _sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z)), with the exponential of a negative number only."""
    e = np.exp(np.where(z.real > 0, -z, z))
    return np.where(z.real > 0, np.ones_like(z), e) / (1 + e)


def _sigmoid_df(z: Array) -> Array:
    """σ (1 − σ) = e / (1 + e)² with e = exp(−|z|): no difference that cancels where σ is nearly 1."""
    e = np.exp(np.where(z.real > 0, -z, z))
    return e / (1 + e) ** 2


def _softplus(z: Array) -> Array:
    """log(1 + exp(z)) = max(z, 0) + log(1 + exp(-|z|))."""
    return _positive_part(z) + np.log1p(np.exp(np.where(z.real > 0, -z, z)))


def _normal_cdf(z: Array) -> Array:
    # scipy.special takes longer to import than numpy itself, and only gelu needs it.
    from scipy.special import ndtr

    return ndtr(z)


def _normal_pdf(z: Array) -> Array:
    return np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _beyond_which_the_pdf_is_zero(z: Array) -> Array:
    """z clipped to [-40, 40]: exp(-800) is 0 even in float64, while z² may overflow."""
    return np.clip(z, -40, 40)


def _gelu_df(z: Array, a: Array) -> Array:
    c = _beyond_which_the_pdf_is_zero(z)
    return _normal_cdf(z) + c * _normal_pdf(c)


def _gelu_d2f(z: Array, a: Array) -> Array:
    c = _beyond_which_the_pdf_is_zero(z)
    return (2 - c * c) * _normal_pdf(c)


def _silu_df(z: Array, a: Array) -> Array:
    return _sigmoid(z) + z * _sigmoid_df(z)


def _silu_d2f(z: Array, a: Array) -> Array:
    return _sigmoid_df(z) * (2 + z * (1 - 2 * _sigmoid(z)))


TANH = Activation(
    "tanh",
    np.tanh,
    # 1 − tanh² z = 4 σ'(2z)
    lambda z, a: 4 * _sigmoid_df(2 * z),
    lambda z, a: -8 * a * _sigmoid_df(2 * z),
)
SIGMOID = Activation(
    "sigmoid", _sigmoid, lambda z, a: _sigmoid_df(z), lambda z, a: _sigmoid_df(z) * (1 - 2 * a)
)
SOFTPLUS = Activation(
    "softplus", _softplus, lambda z, a: _sigmoid(z), lambda z, a: _sigmoid_df(z), variance_gain=2.0
)
GELU = Activation("gelu", lambda z: z * _normal_cdf(z), _gelu_df, _gelu_d2f, variance_gain=2.0)
SILU = Activation("silu", lambda z: z * _sigmoid(z), _silu_df, _silu_d2f, variance_gain=2.0)
SIN = Activation("sin", np.sin, lambda z, a: np.cos(z), lambda z, a: -a)

#: Every activation, by the name configurations use.
ACTIVATIONS: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        IDENTITY,
        RELU,
        leaky_relu(),
        elu(),
        TANH,
        SIGMOID,
        SOFTPLUS,
        GELU,
        SILU,
        SIN,
    )
}


def get(activation: str | Activation) -> Activation:
    """The activation of that name; an :class:`Activation` of your own passes through.

    Raises
    ------
    ValueError
        If the name is unknown; the message gives the nearest known one.
    """
    if isinstance(activation, Activation):
        return activation
    makers = {"leaky_relu": leaky_relu, "elu": elu}
    return lookup_made(activation, ACTIVATIONS, makers, "activation")
