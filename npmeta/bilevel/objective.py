r"""Objectives: what can be linearised at a point, and so be trained by every algorithm here.

:class:`Risk` is the mean loss of a network over the rows of each task. Objectives that are no network,
your own among them, are in :mod:`npmeta.bilevel.vector_objectives`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from npmeta._support.validation import Array, DType, as_generator, as_parameters, check_has, shown
from npmeta.network import losses as _losses
from npmeta.network.losses import Loss
from npmeta.network.mlp import MLP
from npmeta.network.passes import (
    BackwardPass,
    ForwardPass,
    backward,
    backward_dot,
    curvatures,
    forward,
    forward_dot,
    slopes,
)
from npmeta.network.spaces import dense
from npmeta.network.weights import Gradient, Point, Scale

#: Inputs and targets of the rows of every task, checked and cast: what ``Objective.prepare`` returns.
Batch: TypeAlias = tuple[Array, Array]


class Linearization(ABC):
    """An objective at one point: value, gradient, and Hessian-vector products.

    A subclass adds :meth:`product`.

    Parameters
    ----------
    objective : Objective
        What was linearised.
    value : ndarray, (T,)
        The objective of each task.
    gradient : sequence of Gradient
        Block by block, in the objective's own form; :attr:`grad` is the same as an array.
    """

    def __init__(self, objective: Objective, value: Array, gradient: Sequence[Gradient]) -> None:
        self._objective = objective
        self.value = value
        self.gradient = gradient

    @abstractmethod
    def product(self, direction: Sequence[Any]) -> Sequence[Gradient]:
        """The Hessian applied to a direction, block by block."""

    @property
    def grad(self) -> Array:
        """The gradient of each task, ``(T, P)``."""
        return dense(self.gradient)

    def hvp(self, v: ArrayLike) -> Array:
        """Hessian-vector products.

        Parameters
        ----------
        v : array_like, (P,) or (T, P)
            One direction for all tasks, or one for each.

        Returns
        -------
        ndarray, (T, P)
        """
        return dense(self.product(self._direction(v)))

    def _direction(self, v: ArrayLike) -> Sequence[Any]:
        direction = as_parameters(v, self._objective.n_params, "v")
        if direction.ndim == 2 and len(direction) != len(self.value):
            raise ValueError(f"v must have shape (P,) or ({len(self.value)}, P), got {direction.shape}")
        return self._objective.hold(direction.astype(self.value.dtype, copy=False))


class Objective(Protocol):
    """What an algorithm needs of a model and its loss.

    Attributes
    ----------
    n_params : int
        P, the number of parameters.
    block_sizes : tuple of int
        Lengths of the blocks that may have a step size each (a network's layers); they add up to P.
    hessian : str
        Where Hessian products come from: "exact", "supplied", or "central difference".
    """

    @property
    def n_params(self) -> int: ...
    @property
    def block_sizes(self) -> tuple[int, ...]: ...
    @property
    def hessian(self) -> str: ...

    def prepare(self, x: ArrayLike, y: ArrayLike, dtype: DType, name: str = "") -> Batch:
        """Check inputs ``(T, rows, ...)`` and targets, and cast them. ValueError says what is wrong.

        ``name`` is put before "x" and "y" in messages, ``"support_"`` say.
        """

    def hold(self, theta: Array, forms: Sequence[str] | None = None) -> Sequence[Point]:
        """Parameters ``(P,)`` or ``(T, P)`` as blocks; ``forms`` as in :meth:`npmeta.MLP.layers`."""

    def scales(self, factors: Array) -> Sequence[Scale]:
        """Factors ``(P,)``, or one a block ``(n_blocks,)``, as what the blocks multiply by."""

    def at(self, point: Sequence[Any], batch: Batch) -> Linearization:
        """Linearise at a point, without checks."""

    def score(self, point: Sequence[Any], batch: Batch) -> tuple[Array, Array | None]:
        """Value ``(T,)``, and accuracy ``(T,)`` where the objective has one. No gradient."""


def linearize(objective: Objective, phi: ArrayLike, x: ArrayLike, y: ArrayLike) -> Linearization:
    """``objective.at`` behind the boundary's checks."""
    phi = as_parameters(phi, objective.n_params, "phi")
    batch = objective.prepare(x, y, phi.dtype)
    if phi.ndim == 2 and len(phi) != len(batch[0]):
        raise ValueError(f"phi has {len(phi)} tasks and x has {len(batch[0])}; they must agree")
    return objective.at(objective.hold(phi), batch)


# --- a network and a loss -------------------------------------------------------------------------


def as_objective(model: MLP | Objective, loss: str | Loss | None) -> Objective:
    """What an algorithm descends on: a network with its loss, by default "mse"; or an objective.

    Raises
    ------
    ValueError
        If it is neither, or an objective beside a loss.
    """
    if isinstance(model, MLP):
        return Risk(model, "mse" if loss is None else loss)
    try:
        check_has(model, "model", "an MLP or an objective", "prepare", "hold", "scales", "at", "score")
    except ValueError:
        raise ValueError(f"model must be an MLP or an objective, got {type(model).__name__}") from None
    if loss is not None:
        raise ValueError("an objective brings its own loss; pass loss only with an MLP")
    return model


class Risk:
    """The mean loss of a network over the rows of each task.

    Parameters
    ----------
    model : MLP
    loss : str or Loss
        A name in :data:`npmeta.network.losses.LOSSES`, or your own.

    Raises
    ------
    ValueError
        If the loss is unknown.

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> model = nm.MLP([2, 8, 1], activation="tanh")
    >>> theta = model.init(np.random.default_rng(0))
    >>> x, y = np.ones((3, 5, 2)), np.zeros((3, 5, 1))       # three tasks of five rows
    >>> lin = nm.Risk(model, "mse").linearize(theta, x, y)
    >>> lin.value.shape, lin.grad.shape, lin.hvp(lin.grad).shape
    ((3,), (3, 33), (3, 33))
    """

    hessian = "exact"

    def __init__(self, model: MLP, loss: str | Loss) -> None:
        if not isinstance(model, MLP):
            raise ValueError(f"model must be an MLP, got {shown(model)}")
        self.model = model
        self.loss = _losses.get(loss)

    def __repr__(self) -> str:
        return f"Risk({self.model!r}, {self.loss.name!r})"

    @property
    def n_params(self) -> int:
        return self.model.n_params

    @property
    def block_sizes(self) -> tuple[int, ...]:
        return self.model.layer_sizes

    def linearize(self, phi: ArrayLike, x: ArrayLike, y: ArrayLike) -> RiskLinearization:
        """Value, gradient and Hessian products at a point, from one forward and backward pass.

        Parameters
        ----------
        phi : array_like, (P,) or (T, P)
            Parameters shared by all tasks, or one vector for each.
        x : array_like, (T, rows, n_in)
        y : array_like, (T, rows, n_out) or integer labels (T, rows)

        Returns
        -------
        RiskLinearization
            ``.value (T,)``, ``.grad (T, P)``, ``.hvp(v) (T, P)``, ``.gauss_newton(v) (T, P)``.

        Raises
        ------
        ValueError
            If shapes do not fit, data is not finite, or a label is out of range.
        """
        lin = linearize(self, phi, x, y)
        assert isinstance(lin, RiskLinearization)
        return lin

    def init(self, rng: np.random.Generator | int, dtype: DTypeLike = np.float64) -> Array:
        """Initial parameters ``(P,)``: :meth:`npmeta.MLP.init`."""
        rng = as_generator(rng)
        return self.model.init(rng, dtype)

    def outputs(self, point: Sequence[Any], x: Array) -> Array:
        """The network's outputs ``(T, rows, n_out)`` for checked inputs."""
        return forward(point, self.model.activations, x).z[-1]

    def prepare(self, x: ArrayLike, y: ArrayLike, dtype: DType, name: str = "") -> Batch:
        """Inputs ``(T, rows, n_in)`` and targets ``(T, rows, n_out)``, checked and cast."""
        array = self.model.features(x, dtype, f"{name}x")
        if array.ndim != 3 or array.size == 0:
            raise ValueError(
                f"{name}x must have shape (T, rows, n_in) with at least one task and one row, got "
                f"{array.shape}"
            )
        targets = self.loss.prepare(y, self.model.widths[-1], dtype, f"{name}y")
        if targets.shape[:2] != array.shape[:2]:
            raise ValueError(
                f"{name}x and {name}y must agree in tasks and rows, got {array.shape[:2]} and "
                f"{targets.shape[:2]}"
            )
        return array, targets

    def hold(self, theta: Array, forms: Sequence[str] | None = None) -> Sequence[Point]:
        """The layers of theta."""
        return self.model.layers(theta, forms)

    def scales(self, factors: Array) -> Sequence[Scale]:
        """Numbers once for each array of a layer; factors per parameter as arrays. 0 for what inner
        steps are not to move."""
        if factors.size == self.n_params:
            arrays = self.model.unpack(factors)
            scales = [(W, b, *(one.reshape(-1) for one in others)) for W, b, *others in arrays]
        else:
            pairs = zip(factors.tolist(), self.model.shapes, strict=True)
            scales = [(factor,) * len(own) for factor, own in pairs]
        if self.model.adapts_all:
            return scales
        return [(W, b, *[0.0] * len(others)) for W, b, *others in scales]

    def at(self, point: Sequence[Any], batch: Batch) -> RiskLinearization:
        """The linearization at layers, without checks."""
        return RiskLinearization(self, point, *batch)

    def score(self, point: Sequence[Any], batch: Batch) -> tuple[Array, Array | None]:
        """Loss and, for a loss of classes, accuracy; both ``(T,)``."""
        x, y = batch
        o = self.outputs(point, x)
        return self.loss(o, y).value, _losses.accuracy(self.loss, o, y)


class RiskLinearization(Linearization):
    """:class:`Risk` at one point. It keeps what the two passes left behind, and nothing else."""

    def __init__(self, risk: Risk, layers: Sequence[Any], x: Array, y: Array) -> None:
        model = risk.model
        self._model, self._layers = model, layers
        self._at: ForwardPass = forward(layers, model.activations, x)
        self._slope = slopes(model.activations, self._at)
        value, delta_out, self._loss_product = risk.loss(self._at.z[-1], y)
        self._back: BackwardPass = backward(layers, self._at, self._slope, delta_out)
        super().__init__(risk, value, self._back.gradient)

    def product(self, direction: Sequence[Any]) -> Sequence[Gradient]:
        dot = forward_dot(self._layers, direction, self._at, self._slope)
        return backward_dot(
            self._layers,
            direction,
            self._at,
            dot,
            self._back,
            self._slope,
            curvatures(self._model.activations, self._at),
            self._loss_product(dot.z[-1]),
        )

    def gauss_newton(self, v: ArrayLike) -> Array:
        """Products with the (generalised) Gauss-Newton matrix Jᵀ (∂²ℓ/∂o²) J (Schraudolph 2002).

        It is the Hessian without the curvature of the network, and positive semidefinite for every
        loss here. Shapes as in :meth:`hvp`.
        """
        dot = forward_dot(self._layers, self._direction(v), self._at, self._slope)
        back = backward(self._layers, self._at, self._slope, self._loss_product(dot.z[-1]))
        return dense(back.gradient)
