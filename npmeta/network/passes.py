r"""The passes of a multilayer perceptron: forward, backward, and the differential under each.

Notation: for one batch of each of T tasks, ``a_0 = x (T, rows, n_0)``, and for l = 1..L

.. math:: z_l = a_{l-1} W_l + b_l, \qquad a_l = f_l(z_l) \; (l < L), \qquad o = z_L.

A normalisation (:mod:`npmeta.network.normalisation`) or a learned structure
(:mod:`npmeta.network.structure`) may stand between z and the activation: then
:math:`a_l = f_l(u_l)` with :math:`u_l` made of :math:`z_l`, and without them :math:`u_l = z_l`.

A bar is the derivative of the loss, :math:`\bar a_l = \partial\ell/\partial a_l`, and
:math:`\delta_l = \partial\ell/\partial z_l`; a dot is the derivative along a direction in parameter
space. The differential of both passes along a direction is the R-operator of Pearlmutter (1994,
"Fast exact multiplication by the Hessian"): it turns a gradient into a Hessian-vector product.

Layers are anything that acts on thin matrices (:mod:`npmeta.network.weights`), so each pass is written
once.
In the code lists count from 0: layer l maps ``a[l]`` to ``z[l]``. Lists of the hidden layers only
(``pre``, ``slope``, ``curvature``, ``a_dot``, ``a_bar``, ``u_bar``) count from 0 too: ``slope[l - 1]``
is f' at the u that ``z[l - 1]`` gave, and that gave ``a[l]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from npmeta._support.validation import Array
from npmeta.network.activations import Activation
from npmeta.network.parts import PreActivation, pre_activation
from npmeta.network.weights import Layer, Linear, OuterSum, Term


class ForwardPass(NamedTuple):
    """Inputs a of every layer, z of every layer, and what the hidden layers hand to their activations;
    ``z[-1]`` are the outputs o."""

    a: list[Array]
    z: list[Array]
    pre: list[PreActivation]


class ForwardPassDot(NamedTuple):
    """The differential of a :class:`ForwardPass`; ``a`` of the hidden layers only."""

    a: list[Array]
    z: list[Array]
    pre: list[Any]


class BackwardPass(NamedTuple):
    """The gradient of every layer, and the δ it was made from, with ā and ū of the hidden layers."""

    gradient: list[Any]
    delta: list[Array]
    a_bar: list[Array]
    u_bar: list[Array]


def forward(layers: Sequence[Layer], fs: Sequence[Activation], x: Array) -> ForwardPass:
    """The network's outputs for ``x (T, rows, n_0)``; ``fs`` are the hidden activations."""
    a, pre = [x], []
    z = [layers[0].act(x)]
    for below, layer, f in zip(layers[:-1], layers[1:], fs, strict=True):
        pre.append(pre_activation(below, z[-1]))
        a.append(f.f(pre[-1].u))
        z.append(layer.act(a[-1]))
    return ForwardPass(a, z, pre)


def forward_dot(
    layers: Sequence[Layer], tangents: Sequence[Linear], at: ForwardPass, slope: Sequence[Array]
) -> ForwardPassDot:
    """The differential of :func:`forward` along ``tangents``.

    The inputs do not move: ȧ_0 = 0.
    """
    a_dot: list[Array] = []
    pre_dot: list[Any] = []
    z_dot = [tangents[0].act(at.a[0])]
    for l in range(1, len(layers)):
        pre_dot.append(at.pre[l - 1].forward_dot(tangents[l - 1], z_dot[-1]))
        a_dot.append(slope[l - 1] * pre_dot[-1].u)
        z_dot.append(layers[l].act_linear(a_dot[-1]) + tangents[l].act(at.a[l]))
    return ForwardPassDot(a_dot, z_dot, pre_dot)


def backward(
    layers: Sequence[Layer], at: ForwardPass, slope: Sequence[Array], delta_out: Array
) -> BackwardPass:
    """The gradient of every layer, from δ_L = ∂ℓ/∂o ``(T, rows, n_L)``."""
    delta = delta_out
    deltas = [delta]
    a_bars: list[Array] = []
    u_bars: list[Array] = []
    for l in range(len(layers) - 1, 0, -1):
        a_bar = layers[l].act_transposed(delta)
        u_bar = a_bar * slope[l - 1]
        delta = at.pre[l - 1].backward(u_bar)
        deltas.insert(0, delta)
        a_bars.insert(0, a_bar)
        u_bars.insert(0, u_bar)
    gradient = [OuterSum((Term(a, d, on_bias=True),)) for a, d in zip(at.a, deltas, strict=True)]
    # With scale and shift, where a hidden layer has them.
    hidden = zip(at.pre, gradient[:-1], u_bars, strict=True)
    blocks = [pre.gradient(layer, u_bar) for pre, layer, u_bar in hidden]
    return BackwardPass([*blocks, gradient[-1]], deltas, a_bars, u_bars)


def backward_dot(
    layers: Sequence[Layer],
    tangents: Sequence[Linear],
    at: ForwardPass,
    dot: ForwardPassDot,
    back: BackwardPass,
    slope: Sequence[Array],
    curvature: Sequence[Array | None],
    delta_out_dot: Array,
) -> list[Any]:
    """The differential of :func:`backward`: the product of the Hessian with ``tangents``.

    ``curvature[l]`` is f''(u[l]), or None where it is zero.
    """
    delta_dot = delta_out_dot
    product: list[OuterSum] = []
    u_bar_dots: list[Array] = []
    for l in range(len(layers) - 1, 0, -1):
        moved_input = Term(dot.a[l - 1], back.delta[l], on_bias=False)
        moved_delta = Term(at.a[l], delta_dot, on_bias=True)
        product.insert(0, OuterSum((moved_input, moved_delta)))
        a_bar_dot = layers[l].act_transposed(delta_dot) + tangents[l].act_transposed(back.delta[l])
        u_bar_dot = a_bar_dot * slope[l - 1]
        f_second = curvature[l - 1]
        if f_second is not None:
            u_bar_dot = u_bar_dot + back.a_bar[l - 1] * f_second * dot.pre[l - 1].u
        pre, moved = at.pre[l - 1], dot.pre[l - 1]
        delta_dot = pre.backward_dot(moved, back.u_bar[l - 1], back.delta[l - 1], u_bar_dot)
        u_bar_dots.insert(0, u_bar_dot)
    product.insert(0, OuterSum((Term(at.a[0], delta_dot, on_bias=True),)))
    hidden = zip(at.pre, product[:-1], dot.pre, back.u_bar, u_bar_dots, strict=True)
    blocks = [pre.gradient_dot(layer, *rest) for pre, layer, *rest in hidden]
    return [*blocks, product[-1]]


def slopes(fs: Sequence[Activation], at: ForwardPass) -> list[Array]:
    """f'(u) of every hidden layer."""
    return [f.df(pre.u, a) for f, pre, a in zip(fs, at.pre, at.a[1:], strict=True)]


def curvatures(fs: Sequence[Activation], at: ForwardPass) -> list[Array | None]:
    """f''(u) of every hidden layer; None where it is zero."""
    hidden = zip(fs, at.pre, at.a[1:], strict=True)
    return [f.d2f(pre.u, a) if f.d2f else None for f, pre, a in hidden]
