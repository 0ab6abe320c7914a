r"""The multilayer perceptron: forward pass, backward pass, and the differential of each under it.

Notation: for one batch of each of T tasks, ``a_0 = x (T, rows, n_0)``, and for l = 1..L

.. math:: z_l = a_{l-1} W_l + b_l, \qquad a_l = f_l(z_l) \; (l < L), \qquad o = z_L.

A bar is the derivative of the loss, :math:`\bar a_l = \partial\ell/\partial a_l`, and
:math:`\delta_l = \partial\ell/\partial z_l`; a dot is the derivative along a direction in parameter
space. The differential of both passes along a direction is the R-operator of Pearlmutter (1994,
"Fast exact multiplication by the Hessian"): it turns a gradient into a Hessian-vector product.

Layers are anything that acts on thin matrices (:mod:`npmeta.weights`), so each pass is written once.
In the code lists count from 0: layer l maps ``a[l]`` to ``z[l]``. Lists of the hidden layers only
(``slope``, ``curvature``, ``a_dot``, ``a_bar``) count from 0 too: ``slope[l - 1]`` is f' at
``z[l - 1]``, which gave ``a[l]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from npmeta import activations as _activations
from npmeta._validation import Array, DType, as_dtype, as_parameters
from npmeta.activations import Activation
from npmeta.factored import FactoredBase, InputBase
from npmeta.weights import Dense, Layer, OuterSum, Shared, Term, flatten

__all__ = ["MLP", "Backward", "Forward", "backward", "backward_dot", "forward", "forward_dot"]


class Forward(NamedTuple):
    """Inputs a of every layer and pre-activations z of every layer; ``z[-1]`` are the outputs o."""

    a: list[Array]
    z: list[Array]


class Backward(NamedTuple):
    """The gradient of every layer, and the δ and ā it was made from (ā for hidden layers only)."""

    gradient: list[OuterSum]
    delta: list[Array]
    a_bar: list[Array]


def forward(layers: Sequence[Layer], fs: Sequence[Activation], x: Array) -> Forward:
    """The network's outputs for ``x (T, rows, n_0)``; ``fs`` are the hidden activations."""
    a = [x]
    z = [layers[0].act(x)]
    for layer, f in zip(layers[1:], fs, strict=True):
        a.append(f.f(z[-1]))
        z.append(layer.act(a[-1]))
    return Forward(a, z)


def forward_dot(
    layers: Sequence[Layer], tangents: Sequence[Layer], at: Forward, slope: Sequence[Array]
) -> tuple[list[Array], list[Array]]:
    """The differential of :func:`forward` along ``tangents``: ȧ of the hidden layers, ż of all.

    The inputs do not move: ȧ_0 = 0.
    """
    a_dot: list[Array] = []
    z_dot = [tangents[0].act(at.a[0])]
    for layer, tangent, a, f_prime in zip(layers[1:], tangents[1:], at.a[1:], slope, strict=True):
        a_dot.append(f_prime * z_dot[-1])
        z_dot.append(layer.act_linear(a_dot[-1]) + tangent.act(a))
    return a_dot, z_dot


def backward(
    layers: Sequence[Layer], at: Forward, slope: Sequence[Array], delta_out: Array
) -> Backward:
    """The gradient of every layer, from δ_L = ∂ℓ/∂o ``(T, rows, n_L)``."""
    delta = delta_out
    deltas = [delta]
    a_bars: list[Array] = []
    for l in range(len(layers) - 1, 0, -1):
        a_bar = layers[l].act_transposed(delta)
        delta = a_bar * slope[l - 1]
        deltas.insert(0, delta)
        a_bars.insert(0, a_bar)
    gradient = [OuterSum((Term(a, d, on_bias=True),)) for a, d in zip(at.a, deltas, strict=True)]
    return Backward(gradient, deltas, a_bars)


def backward_dot(
    layers: Sequence[Layer],
    tangents: Sequence[Layer],
    at: Forward,
    a_dot: Sequence[Array],
    z_dot: Sequence[Array],
    back: Backward,
    slope: Sequence[Array],
    curvature: Sequence[Array | None],
    delta_out_dot: Array,
) -> list[OuterSum]:
    """The differential of :func:`backward`: the product of the Hessian with ``tangents``.

    ``curvature[l]`` is f''(z[l]), or None where it is zero.
    """
    delta_dot = delta_out_dot
    product: list[OuterSum] = []
    for l in range(len(layers) - 1, 0, -1):
        moved_input = Term(a_dot[l - 1], back.delta[l], on_bias=False)
        moved_delta = Term(at.a[l], delta_dot, on_bias=True)
        product.insert(0, OuterSum((moved_input, moved_delta)))
        a_bar_dot = layers[l].act_transposed(delta_dot) + tangents[l].act_transposed(back.delta[l])
        delta_dot = a_bar_dot * slope[l - 1]
        f_second = curvature[l - 1]
        if f_second is not None:
            delta_dot = delta_dot + back.a_bar[l - 1] * f_second * z_dot[l - 1]
    product.insert(0, OuterSum((Term(at.a[0], delta_dot, on_bias=True),)))
    return product


class MLP:
    """A multilayer perceptron whose parameters are one flat vector.

    Parameters
    ----------
    widths : sequence of int
        ``[n_0, ..., n_L]``: inputs, hidden layers, outputs. Two widths make a linear model.
    activation : str, Activation, or sequence of them
        That of all hidden layers, or one for each of the L−1 hidden layers.

    Attributes
    ----------
    widths : tuple of int
    activations : tuple of Activation
        One for each hidden layer.
    n_params : int
        P, the length of theta. The order is W_1 (row by row), b_1, W_2, b_2, ...
    layer_sizes : tuple of int
        Parameters in each layer; they add up to P.

    Raises
    ------
    ValueError
        If there are fewer than two widths, a width is not a positive integer, the number of
        activations is not that of the hidden layers, or a name is unknown.

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> model = nm.MLP([1, 40, 40, 1], activation="relu")
    >>> theta = model.init(np.random.default_rng(0))
    >>> theta.shape, model.apply(theta, np.zeros((7, 1))).shape
    ((1761,), (7, 1))
    """

    def __init__(
        self,
        widths: Sequence[int],
        activation: str | Activation | Sequence[str | Activation] = "relu",
    ) -> None:
        try:
            self.widths = tuple(int(n) for n in widths)
            whole = all(n == m for n, m in zip(self.widths, widths, strict=True))
        except (TypeError, ValueError):
            whole = False
        if not whole or len(self.widths) < 2 or min(self.widths) < 1:
            raise ValueError(f"widths must be two or more positive integers, got {widths!r}")
        n_hidden = len(self.widths) - 2
        names = (
            list(activation)
            if isinstance(activation, Sequence) and not isinstance(activation, str)
            else [_activations.get(activation)] * n_hidden  # a linear model hears of a bad name too
        )
        if len(names) != n_hidden:
            raise ValueError(
                f"expected one activation, or one for each of the {n_hidden} hidden layers, "
                f"got {len(names)}"
            )
        self.activations = tuple(_activations.get(name) for name in names)
        self._shapes = list(zip(self.widths[:-1], self.widths[1:], strict=True))
        self.layer_sizes = tuple(n_in * n_out + n_out for n_in, n_out in self._shapes)
        self.n_params = sum(self.layer_sizes)

    @property
    def n_layers(self) -> int:
        """L, the number of weight matrices."""
        return len(self._shapes)

    def __repr__(self) -> str:
        names = [f.name for f in self.activations]
        shown = names[0] if len(set(names)) == 1 else names
        return f"MLP({list(self.widths)}, activation={shown!r})"

    # --- parameters ---------------------------------------------------------------------------

    def init(self, rng: np.random.Generator, dtype: DTypeLike = np.float64) -> Array:
        """Random initial parameters ``(P,)``: normal weights, zero biases.

        W_l has variance g / n_{l-1} with g the gain of the activation it feeds (2 for relu and its
        relatives, He et al. 2015; 1 for tanh, sigmoid, sin and for the output layer). Draws are made
        in float64, so that float32 parameters are the rounded float64 ones.

        Parameters
        ----------
        rng : numpy.random.Generator
        dtype : {float64, float32}

        Raises
        ------
        ValueError
            If ``dtype`` is another one.
        """
        if np.dtype(dtype) not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise ValueError(f"dtype must be float32 or float64, got {np.dtype(dtype)}")
        gains = [f.variance_gain for f in self.activations] + [1.0]
        layers = [
            (rng.normal(scale=math.sqrt(gain / shape[0]), size=shape), np.zeros(shape[1]))
            for gain, shape in zip(gains, self._shapes, strict=True)
        ]
        return self.pack(layers).astype(dtype)

    def unpack(self, theta: Array) -> list[tuple[Array, Array]]:
        """Each layer's ``(W, b)`` as views of theta.

        Parameters
        ----------
        theta : ndarray, (P,) or (T, P)

        Returns
        -------
        list of (W, b)
            W ``(n_in, n_out)``, b ``(n_out,)``, with a leading task axis if theta has one.
        """
        theta = as_parameters(theta, self.n_params)
        layers, start = [], 0
        for n_in, n_out in self._shapes:
            W = theta[..., start : start + n_in * n_out]
            start += n_in * n_out
            b = theta[..., start : start + n_out]
            start += n_out
            layers.append((W.reshape(*theta.shape[:-1], n_in, n_out), b))
        return layers

    def pack(self, layers: Sequence[tuple[ArrayLike, ArrayLike]]) -> Array:
        """The inverse of :meth:`unpack`: theta ``(P,)`` or ``(T, P)`` from each layer's (W, b).

        Raises
        ------
        ValueError
            If the number of layers or the shape of one is not this network's.
        """
        if len(layers) != self.n_layers:
            raise ValueError(f"expected {self.n_layers} layers, got {len(layers)}")
        flat = []
        for l, ((n_in, n_out), (W, b)) in enumerate(zip(self._shapes, layers, strict=True)):
            W, b = np.asarray(W), np.asarray(b)
            if W.shape[-2:] != (n_in, n_out) or b.shape != (*W.shape[:-2], n_out) or W.ndim > 3:
                raise ValueError(
                    f"layer {l} must have W ({n_in}, {n_out}) and b ({n_out},), both or neither "
                    f"with a task axis in front; got {W.shape} and {b.shape}"
                )
            flat += [W.reshape(*W.shape[:-2], n_in * n_out), b]
        if len({part.shape[:-1] for part in flat}) != 1:
            raise ValueError("either all layers have a task axis, of one length, or none has")
        return np.concatenate(flat, axis=-1)

    def layers(self, theta: Array, forms: Sequence[str] | None = None) -> list[Layer]:
        """The layers of theta as the passes take them: shared for ``(P,)``, dense for ``(T, P)``.

        ``forms`` says for each shared layer what it becomes in the inner loop, "dense" (the default)
        or "factored".
        """
        if np.ndim(theta) == 2:
            return [Dense(W, b) for W, b in self.unpack(theta)]
        kinds: list[type[Shared]] = [Shared] * self.n_layers
        if forms is not None:
            factored = [InputBase, *[FactoredBase] * (self.n_layers - 1)]
            kinds = [
                k if form == "factored" else Shared for k, form in zip(factored, forms, strict=True)
            ]
        return [kind(W, b) for kind, (W, b) in zip(kinds, self.unpack(theta), strict=True)]

    # --- the network as a function --------------------------------------------------------------

    def apply(self, theta: ArrayLike, x: ArrayLike) -> Array:
        """The network's outputs.

        Parameters
        ----------
        theta : array_like, (P,) or (T, P)
            One network, or one for each task.
        x : array_like, (rows, n_in) or (T, rows, n_in)
            With a task axis where theta has one. Cast to the dtype of theta.

        Returns
        -------
        ndarray, (rows, n_out) or (T, rows, n_out)

        Raises
        ------
        ValueError
            If the shapes do not fit or x is not finite.
        """
        theta, x, rows_only = self._batch(theta, x)
        o = forward(self.layers(theta), self.activations, x).z[-1]
        return o[0] if rows_only else o

    def jvp(self, theta: ArrayLike, x: ArrayLike, v: ArrayLike) -> Array:
        """The derivative of the outputs along a direction in parameter space, J v.

        Parameters
        ----------
        theta, x : array_like
            As in :meth:`apply`.
        v : array_like, shape of theta

        Returns
        -------
        ndarray, (rows, n_out) or (T, rows, n_out)
        """
        theta, x, rows_only = self._batch(theta, x)
        v = self._like(v, theta.shape, theta.dtype, "v")
        layers = self.layers(theta)
        at = forward(layers, self.activations, x)
        o_dot = forward_dot(layers, self.layers(v), at, self.slopes(at))[1][-1]
        return o_dot[0] if rows_only else o_dot

    def vjp(self, theta: ArrayLike, x: ArrayLike, cotangent: ArrayLike) -> Array:
        """The pull-back of a cotangent of the outputs to the parameters, Jᵀ u.

        Parameters
        ----------
        theta, x : array_like
            As in :meth:`apply`.
        cotangent : array_like, shape of the outputs

        Returns
        -------
        ndarray, (P,) or (T, P)
            One for each task where x has a task axis, also where the tasks share theta.
        """
        theta, x, rows_only = self._batch(theta, x)
        shape = (*x.shape[:-1], self.widths[-1])
        u = self._like(cotangent, shape[1:] if rows_only else shape, theta.dtype, "cotangent")
        layers = self.layers(theta)
        at = forward(layers, self.activations, x)
        back = backward(layers, at, self.slopes(at), u.reshape(shape))
        pulled = flatten([gradient.dense() for gradient in back.gradient])
        return pulled[0] if rows_only else pulled

    def slopes(self, at: Forward) -> list[Array]:
        """f'(z) of every hidden layer."""
        return [f.df(z, a) for f, z, a in zip(self.activations, at.z[:-1], at.a[1:], strict=True)]

    def curvatures(self, at: Forward) -> list[Array | None]:
        """f''(z) of every hidden layer; None where it is zero."""
        return [
            f.d2f(z, a) if f.d2f else None
            for f, z, a in zip(self.activations, at.z[:-1], at.a[1:], strict=True)
        ]

    # --- the boundary ---------------------------------------------------------------------------

    def features(self, x: ArrayLike, dtype: DType, name: str = "x") -> Array:
        """x checked, ``(..., rows, n_in)``, and cast to ``dtype``."""
        array = np.asarray(x)
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} must hold real numbers, got dtype {array.dtype}")
        if array.ndim not in (2, 3) or array.shape[-1] != self.widths[0]:
            raise ValueError(
                f"{name} must have shape (rows, {self.widths[0]}) or (T, rows, {self.widths[0]}) "
                f"for a network with {self.widths[0]} inputs, got {array.shape}"
            )
        return as_dtype(array, dtype, name)

    def _batch(self, theta: ArrayLike, x: ArrayLike) -> tuple[Array, Array, bool]:
        """theta and x checked, x with a task axis, and whether that axis was missing."""
        theta = as_parameters(theta, self.n_params)
        x = self.features(x, theta.dtype)
        if theta.ndim == 2 and (x.ndim != 3 or len(x) != len(theta)):
            raise ValueError(
                f"theta of shape {theta.shape} needs x of shape ({len(theta)}, rows, "
                f"{self.widths[0]}), got {x.shape}"
            )
        return theta, x if x.ndim == 3 else x[None], x.ndim == 2

    @staticmethod
    def _like(v: ArrayLike, shape: tuple[int, ...], dtype: DType, name: str) -> Array:
        array = np.asarray(v)
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
        return array.astype(dtype, copy=False)
