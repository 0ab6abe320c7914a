r"""The multilayer perceptron: forward pass, backward pass, and the differential of each under it.

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

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from npmeta._support.validation import (
    Array,
    DType,
    as_array,
    as_dtype,
    as_generator,
    as_parameters,
    as_precision,
    as_whole,
    check_flag,
    lookup,
    shown,
    unmasked,
)
from npmeta.network import activations as _activations
from npmeta.network.activations import Activation
from npmeta.network.factored import FactoredBase, InputBase
from npmeta.network.normalisation import NORMS, Normalised
from npmeta.network.parts import PreActivation, Scheduled, pre_activation
from npmeta.network.structure import OPEN, Structure
from npmeta.network.weights import Dense, Layer, OuterSum, Shared, Term, Vector, flatten

__all__ = [
    "MLP",
    "Backward",
    "Forward",
    "ForwardDot",
    "backward",
    "backward_dot",
    "forward",
    "forward_dot",
]


class Forward(NamedTuple):
    """Inputs a of every layer, z of every layer, and what the hidden layers hand to their activations;
    ``z[-1]`` are the outputs o."""

    a: list[Array]
    z: list[Array]
    pre: list[PreActivation]


class ForwardDot(NamedTuple):
    """The differential of a :class:`Forward`; ``a`` of the hidden layers only."""

    a: list[Array]
    z: list[Array]
    pre: list[Any]


class Backward(NamedTuple):
    """The gradient of every layer, and the δ it was made from, with ā and ū of the hidden layers."""

    gradient: list[Any]
    delta: list[Array]
    a_bar: list[Array]
    u_bar: list[Array]


def forward(layers: Sequence[Layer], fs: Sequence[Activation], x: Array) -> Forward:
    """The network's outputs for ``x (T, rows, n_0)``; ``fs`` are the hidden activations."""
    a, pre = [x], []
    z = [layers[0].act(x)]
    for below, layer, f in zip(layers[:-1], layers[1:], fs, strict=True):
        pre.append(pre_activation(below, z[-1]))
        a.append(f.f(pre[-1].u))
        z.append(layer.act(a[-1]))
    return Forward(a, z, pre)


def forward_dot(
    layers: Sequence[Layer], tangents: Sequence[Layer], at: Forward, slope: Sequence[Array]
) -> ForwardDot:
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
    return ForwardDot(a_dot, z_dot, pre_dot)


def backward(
    layers: Sequence[Layer], at: Forward, slope: Sequence[Array], delta_out: Array
) -> Backward:
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
    return Backward([*blocks, gradient[-1]], deltas, a_bars, u_bars)


def backward_dot(
    layers: Sequence[Layer],
    tangents: Sequence[Layer],
    at: Forward,
    dot: ForwardDot,
    back: Backward,
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


class MLP:
    """A multilayer perceptron whose parameters are one flat vector.

    Parameters
    ----------
    widths : sequence of int
        ``[n_0, ..., n_L]``: inputs, hidden layers, outputs. Two widths make a linear model.
    activation : str, Activation, or sequence of them
        That of all hidden layers, or one for each of the L−1 hidden layers. By default "relu".
    norm : {"batch", "layer"}, optional
        Normalise what hidden layers hand to their activations (:mod:`npmeta.network.normalisation`).
        With "batch" the rows of a task depend on each other, and predictions are transductive.
    adapt_norm : bool
        Whether inner steps move scale and shift as they move weights, by the step size of the layer.
        If not, they are learned by the outer loop alone.
    norm_sets : int
        How many scales and shifts there are where inner steps do not move them: the first for the
        pass before the first inner step, the next for the pass after it, and so on; beyond the last,
        that one stays. With S sets for S inner steps they are those of MAML++ (Antoniou et al. 2019).
    structure : Structure, optional
        What hidden layers learn their activation and their gates from
        (:mod:`npmeta.network.structure`), in place of ``activation``; not beside a norm.

    Attributes
    ----------
    widths : tuple of int
    activations : tuple of Activation
        One for each hidden layer; with a structure the identity, behind mixture and gates.
    n_params : int
        P, the length of theta. The order is W_1 (row by row), b_1, W_2, b_2, ...; with normalisation
        W_1, b_1, scale_1, shift_1, W_2, ... but for the last layer, which has none; with a structure
        mixture and gate in their place.
    layer_sizes : tuple of int
        Parameters in each layer, all its arrays together; they add up to P.
    shapes : tuple of dict
        For each layer the shapes of its arrays, in their order, by the names "weight", "bias",
        "scale", "shift", "mixture", "gate".

    Raises
    ------
    ValueError
        If there are fewer than two widths, a width is not a positive integer, the number of
        activations is not that of the hidden layers, a name is unknown, there are several sets of
        scales and shifts and inner steps are to move them, or a structure stands beside a norm or
        an activation.

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
        activation: str | Activation | Sequence[str | Activation] | None = None,
        *,
        norm: str | None = None,
        adapt_norm: bool = True,
        norm_sets: int = 1,
        structure: Structure | None = None,
    ) -> None:
        try:
            self.widths = tuple(int(n) for n in widths)
            whole = all(n == m for n, m in zip(self.widths, widths, strict=True))
        except Exception:  # there are many ways to be no number
            whole = False
        if not whole or len(self.widths) < 2 or min(self.widths) < 1:
            raise ValueError(f"widths must be two or more positive integers, got {shown(widths)}")
        n_hidden = len(self.widths) - 2
        if structure is not None and activation is not None:
            raise ValueError("a structure has its own candidates; leave out the activation")
        activation = "relu" if activation is None else activation
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
        if norm is not None:
            lookup(norm, NORMS, "normalisation")
        norm_sets = as_whole(norm_sets, "norm_sets", 1)
        check_flag(adapt_norm, "adapt_norm")
        if norm_sets > 1 and (norm is None or adapt_norm):
            raise ValueError("norm_sets is for a norm with adapt_norm=False")
        self.norm, self.adapt_norm, self.norm_sets = norm, bool(adapt_norm), norm_sets
        self.structure = structure
        if structure is not None:
            if not isinstance(structure, Structure):
                raise ValueError(f"structure must be a Structure, got {type(structure).__name__}")
            if norm is not None:
                raise ValueError("a network has a norm or a structure, not both")
            self.activations = (structure.activation,) * n_hidden
        self.shapes = tuple(self._shapes(l) for l in range(len(self.widths) - 1))
        self.layer_sizes = tuple(sum(map(math.prod, own.values())) for own in self.shapes)
        self.n_params = sum(self.layer_sizes)

    def _shapes(self, l: int) -> dict[str, tuple[int, ...]]:
        n_in, n_out = self.widths[l : l + 2]
        shapes: dict[str, tuple[int, ...]] = {"weight": (n_in, n_out), "bias": (n_out,)}
        if self.norm is not None and l < len(self.widths) - 2:
            sets = (n_out,) if self.norm_sets == 1 else (self.norm_sets, n_out)
            shapes |= {"scale": sets, "shift": sets}
        if self.structure is not None and l < len(self.widths) - 2:
            shapes |= self.structure.shapes(n_out)
        return shapes

    @property
    def is_plain(self) -> bool:
        """Whether layers have W and b and nothing else: no norm, no structure."""
        return self.norm is None and self.structure is None

    @property
    def adapts_all(self) -> bool:
        """Whether inner steps move every parameter, those of a norm or a structure too."""
        if self.structure is not None:
            return self.structure.adapt
        return self.norm is None or self.adapt_norm

    @property
    def places(self) -> dict[str, slice]:
        """Where theta has each array: ``0.weight``, ``0.bias``, ``1.weight``, ..., and between them
        ``0.scale`` and ``0.shift``, or ``0.mixture`` and ``0.gate``, where layer 0 has them."""
        places, start = {}, 0
        for l, shapes in enumerate(self.shapes):
            for name, shape in shapes.items():
                places[f"{l}.{name}"] = slice(start, start + math.prod(shape))
                start += math.prod(shape)
        return places

    def with_activation(self, activation: str | Activation | Sequence[str | Activation]) -> MLP:
        """The network with other activations; parameters of one are parameters of the other."""
        if self.structure is not None:
            raise ValueError(f"the activations of {self!r} are its structure's candidates")
        return MLP(
            self.widths,
            activation,
            norm=self.norm,
            adapt_norm=self.adapt_norm,
            norm_sets=self.norm_sets,
        )

    @property
    def n_layers(self) -> int:
        """L, the number of weight matrices."""
        return len(self.shapes)

    def __repr__(self) -> str:
        if self.structure is not None:
            return f"MLP({list(self.widths)}, structure={self.structure!r})"
        names = [f.name for f in self.activations]
        shown = names[0] if len(set(names)) == 1 else names
        norm = "" if self.norm is None else f", norm={self.norm!r}"
        if self.norm is not None and not self.adapt_norm:
            norm += ", adapt_norm=False" + (f", norm_sets={self.norm_sets}") * (self.norm_sets > 1)
        return f"MLP({list(self.widths)}, activation={shown!r}{norm})"

    # --- parameters ---------------------------------------------------------------------------

    def init(self, rng: np.random.Generator | int, dtype: DTypeLike = np.float64) -> Array:
        """Random initial parameters ``(P,)``: normal weights, zero biases; scales 1, shifts 0,
        equal shares in a mixture, and gates of 0.95.

        W_l has variance g / n_{l-1} with g the gain of the activation it feeds (2 for relu and its
        relatives, He et al. 2015; 1 for tanh, sigmoid, sin and for the output layer; the mean of those
        of a mixture). Draws are made in float64, so that float32 parameters are the rounded float64
        ones.

        Parameters
        ----------
        rng : numpy.random.Generator
        dtype : {float64, float32}

        Raises
        ------
        ValueError
            If ``dtype`` is another one.
        """
        rng = as_generator(rng)
        dtype = as_precision(dtype)
        gains = [f.variance_gain for f in self.activations] + [1.0]
        begin = {"bias": 0.0, "scale": 1.0, "shift": 0.0, "mixture": 0.0, "gate": OPEN}
        layers = []
        for gain, shapes in zip(gains, self.shapes, strict=True):
            W = rng.normal(scale=math.sqrt(gain / shapes["weight"][0]), size=shapes["weight"])
            others = list(shapes.items())[1:]
            layers.append([W, *(np.full(own, begin[name]) for name, own in others)])
        return self.pack(layers).astype(dtype)

    def unpack(self, theta: Array) -> list[tuple[Array, ...]]:
        """Each layer's ``(W, b)`` as views of theta; of a normalised layer ``(W, b, scale, shift)``, of
        one with a structure W, b, and mixture or gate or both.

        Parameters
        ----------
        theta : ndarray, (P,) or (T, P)

        Returns
        -------
        list of tuples
            W ``(n_in, n_out)``; b, scale and shift ``(n_out,)``, or ``(norm_sets, n_out)`` where there
            are several sets; mixture ``(K,)`` and gate ``(n_out,)``; with a leading task axis if theta
            has one.
        """
        theta = as_parameters(theta, self.n_params)
        layers, start = [], 0
        for shapes in self.shapes:
            arrays = []
            for shape in shapes.values():
                size = math.prod(shape)
                flat = theta[..., start : start + size]
                arrays.append(flat.reshape(*theta.shape[:-1], *shape))
                start += size
            layers.append(tuple(arrays))
        return layers

    def pack(self, layers: Sequence[Sequence[ArrayLike]]) -> Array:
        """The inverse of :meth:`unpack`: theta ``(P,)`` or ``(T, P)`` from each layer's arrays.

        Raises
        ------
        ValueError
            If the number of layers or the shape of one is not this network's.
        """
        if not isinstance(layers, Sequence) or not all(isinstance(l, Sequence) for l in layers):
            raise ValueError(f"layers must be a list of lists of arrays, got {shown(layers)}")
        if len(layers) != self.n_layers:
            raise ValueError(f"expected {self.n_layers} layers, got {len(layers)}")
        letters = {"weight": "W", "bias": "b"}
        flat = []
        for l, (shapes, given) in enumerate(zip(self.shapes, layers, strict=True)):
            arrays = [unmasked(array, "layers") for array in given]
            lead = arrays[0].shape[:-2]
            if [array.shape for array in arrays] != [(*lead, *own) for own in shapes.values()] or (
                len(lead) > 1
            ):
                expected = " and ".join(
                    f"{letters.get(name, name)} {own}" for name, own in shapes.items()
                )
                every, none = ("both", "neither") if len(shapes) == 2 else ("all", "none")
                raise ValueError(
                    f"layer {l} must have {expected}, {every} or {none} with a task axis in front; got "
                    f"{' and '.join(str(array.shape) for array in arrays)}"
                )
            flat += [array.reshape(*lead, -1) for array in arrays]
        if len({part.shape[:-1] for part in flat}) != 1:
            raise ValueError("either all layers have a task axis, of one length, or none has")
        return np.concatenate(flat, axis=-1)

    def layers(self, theta: Array, forms: Sequence[str] | None = None) -> list[Layer]:
        """The layers of theta as the passes take them: shared for ``(P,)``, dense for ``(T, P)``.

        ``forms`` says for each shared layer what it becomes in the inner loop, "dense" (the default)
        or "factored".
        """
        arrays = self.unpack(theta)
        if np.ndim(theta) == 2:
            return self.in_parts([Dense(W, b) for W, b, *_ in arrays], arrays)
        kinds: list[type[Shared]] = [Shared] * self.n_layers
        if forms is not None:
            factored = [InputBase, *[FactoredBase] * (self.n_layers - 1)]
            kinds = [
                k if form == "factored" else Shared for k, form in zip(factored, forms, strict=True)
            ]
        layers = [kind(W, b) for kind, (W, b, *_) in zip(kinds, arrays, strict=True)]
        return self.in_parts(layers, arrays)

    def in_parts(self, layers: Sequence[Layer], arrays: Sequence[Sequence[Array]]) -> list[Layer]:
        """Layers, and behind the hidden ones the normalisation or the structure, if there is one.
        ``arrays`` are the parameters of all of them as :meth:`unpack` returns them."""
        if self.is_plain:
            return [*layers]
        hidden = zip(layers[:-1], arrays[:-1], strict=True)
        return [*(self._in_parts(layer, further) for layer, (_, _, *further) in hidden), layers[-1]]

    def _in_parts(self, layer: Layer, further: Sequence[Array]) -> Layer:
        held = [self._held(values) for values in further]
        if self.structure is not None:
            return self.structure.block(layer, held)
        scale, shift = held
        return Normalised(layer, scale, shift, self.norm)

    def _held(self, values: Array) -> Vector | Scheduled:
        """Parameters beside W and b as inner steps are to treat them."""
        if self.adapts_all:
            return Vector(values)
        return Scheduled(values[..., None, :] if self.norm_sets == 1 else values)

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
        o_dot = forward_dot(layers, self.layers(v), at, self.slopes(at)).z[-1]
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
        """f'(u) of every hidden layer."""
        hidden = zip(self.activations, at.pre, at.a[1:], strict=True)
        return [f.df(pre.u, a) for f, pre, a in hidden]

    def curvatures(self, at: Forward) -> list[Array | None]:
        """f''(u) of every hidden layer; None where it is zero."""
        hidden = zip(self.activations, at.pre, at.a[1:], strict=True)
        return [f.d2f(pre.u, a) if f.d2f else None for f, pre, a in hidden]

    # --- the boundary ---------------------------------------------------------------------------

    def features(self, x: ArrayLike, dtype: DType, name: str = "x") -> Array:
        """x checked, ``(..., rows, n_in)``, and cast to ``dtype``."""
        array = as_array(x, name, "biuf")
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
        array = as_array(v, name)
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
        return array.astype(dtype, copy=False)
