"""The multilayer perceptron: its parameters, its layers, and the network as a function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

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
)
from npmeta.network import activations as _activations
from npmeta.network import layout
from npmeta.network.activations import Activation
from npmeta.network.factored import FactoredBase, InputBase
from npmeta.network.normalisation import NORMS, Normalised
from npmeta.network.parts import Sets
from npmeta.network.passes import backward, forward, forward_dot, slopes
from npmeta.network.spaces import dense
from npmeta.network.structure import GATE_AT_FIRST, Structure, Structured
from npmeta.network.weights import Dense, Layer, Shared, Vector


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
        return layout.places(self.shapes)

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
        begin = {"bias": 0.0, "scale": 1.0, "shift": 0.0, "mixture": 0.0, "gate": GATE_AT_FIRST}
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
        return layout.unpack(self.shapes, as_parameters(theta, self.n_params))

    def pack(self, layers: Sequence[Sequence[ArrayLike]]) -> Array:
        """The inverse of :meth:`unpack`: theta ``(P,)`` or ``(T, P)`` from each layer's arrays.

        Raises
        ------
        ValueError
            If the number of layers or the shape of one is not this network's.
        """
        return layout.pack(self.shapes, layers)

    def layers(self, theta: Array, forms: Sequence[str] | None = None) -> list[Layer]:
        """The layers of theta as the passes take them: shared for ``(P,)``, dense for ``(T, P)``.

        ``forms`` says for each shared layer what it becomes in the inner loop, "dense" (the default)
        or "factored".
        """
        arrays = self.unpack(theta)
        if np.ndim(theta) == 2:
            return self.in_parts([Dense(W, b) for W, b, *_ in arrays], arrays)
        forms = forms or ["dense"] * self.n_layers
        factored: list[Any] = [InputBase, *[FactoredBase] * (self.n_layers - 1)]
        layers = [
            (kind if form == "factored" else Shared)(W, b)
            for kind, form, (W, b, *_) in zip(factored, forms, arrays, strict=True)
        ]
        return self.in_parts(layers, arrays)

    def in_parts(self, layers: Sequence[Layer], arrays: Sequence[Sequence[Array]]) -> list[Layer]:
        """Layers, and behind the hidden ones the normalisation or the structure, if there is one.
        ``arrays`` are the parameters of all of them as :meth:`unpack` returns them."""
        if self.is_plain:
            return [*layers]
        hidden = zip(layers[:-1], arrays[:-1], strict=True)
        parts = [(layer, *map(self._held, further)) for layer, (_, _, *further) in hidden]
        if self.structure is not None:
            return [*(Structured(own, self.structure.functions) for own in parts), layers[-1]]
        return [*(Normalised(own, str(self.norm)) for own in parts), layers[-1]]

    def _held(self, values: Array) -> Vector:
        """Parameters beside W and b."""
        if self.norm_sets == 1:
            return Vector(values)
        return Sets(values.reshape(*values.shape[:-2], -1), values.shape[-1])

    def begun_anew(self, phi: Array, steps: int) -> Array:
        """Parameters after some inner steps as those of a network before its first: of several sets of
        scales and shifts, the one that counts now comes first, and the last fills up."""
        if self.norm_sets == 1:
            return phi
        later = np.minimum(np.arange(self.norm_sets) + steps, self.norm_sets - 1)
        index = np.arange(self.n_params)
        for name, place in self.places.items():
            if name.endswith(("scale", "shift")):
                index[place] = index[place].reshape(self.norm_sets, -1)[later].reshape(-1)
        return phi[..., index]

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
        o_dot = forward_dot(layers, self.layers(v), at, slopes(self.activations, at)).z[-1]
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
        back = backward(layers, at, slopes(self.activations, at), u.reshape(shape))
        pulled = dense(back.gradient)
        return pulled[0] if rows_only else pulled

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
