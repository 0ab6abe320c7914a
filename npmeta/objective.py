r"""Objectives: what can be linearised at a point, and so be trained by every algorithm here.

:class:`Risk` is the mean loss of a network over the rows of each task. :class:`Quadratic` has its
meta-gradient in closed form and is the tests' exact reference. :class:`FunctionObjective` is your own
model, any function that returns a value and a gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from npmeta import losses as _losses
from npmeta._validation import Array, DType, as_features, as_parameters, check_finite
from npmeta.losses import Loss
from npmeta.mlp import MLP, Backward, Forward, backward, backward_dot, forward, forward_dot
from npmeta.weights import Block, Gradient, Scale, Vector, flatten

__all__ = ["Batch", "FunctionObjective", "Linearization", "Objective", "Quadratic", "Risk"]

#: Inputs and targets of the rows of every task, checked and cast: what ``Objective.prepare`` returns.
Batch: TypeAlias = tuple[Array, Array]


class Linearization(ABC):
    """An objective at one point: value, gradient, and Hessian-vector products.

    Attributes
    ----------
    value : ndarray, (T,)
        The objective of each task.
    gradient : list of Gradient
        Block by block, in the objective's own form; :attr:`grad` is the same as an array.
    """

    value: Array
    gradient: Sequence[Gradient]
    _objective: Objective
    _dtype: DType

    @abstractmethod
    def product(self, direction: Sequence[Any]) -> Sequence[Gradient]:
        """The Hessian applied to a direction, block by block."""

    @property
    def grad(self) -> Array:
        """The gradient of each task, ``(T, P)``."""
        return flatten([part.dense() for part in self.gradient])

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
        return flatten([part.dense() for part in self.product(self._direction(v))])

    def _direction(self, v: ArrayLike) -> Sequence[Any]:
        direction = as_parameters(v, self._objective.n_params, "v")
        if direction.ndim == 2 and len(direction) != len(self.value):
            raise ValueError(f"v must have shape (P,) or ({len(self.value)}, P), got {direction.shape}")
        return self._objective.hold(direction.astype(self._dtype, copy=False))


class Objective(Protocol):
    """What an algorithm needs of a model and its loss.

    Attributes
    ----------
    n_params : int
        P.
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

        ``name`` is put before "x" and "y" in messages ("support_", say).
        """

    def hold(self, theta: Array) -> Sequence[Block]:
        """Parameters ``(P,)`` or ``(T, P)`` as blocks."""

    def scales(self, factors: Array) -> Sequence[Scale]:
        """Factors ``(P,)``, or one a block ``(n_blocks,)``, as what the blocks multiply by."""

    def at(self, point: Sequence[Any], batch: Batch) -> Linearization:
        """Linearise at a point, without checks."""

    def value(self, point: Sequence[Any], batch: Batch) -> tuple[Array, Array | None]:
        """Value ``(T,)``, and accuracy ``(T,)`` where the objective has one. No gradient."""


def _linearize(objective: Objective, phi: ArrayLike, x: ArrayLike, y: ArrayLike) -> Linearization:
    """``objective.at`` behind the boundary's checks."""
    phi = as_parameters(phi, objective.n_params, "phi")
    batch = objective.prepare(x, y, phi.dtype)
    if phi.ndim == 2 and len(phi) != len(batch[0]):
        raise ValueError(f"phi has {len(phi)} tasks and x has {len(batch[0])}; they must agree")
    return objective.at(objective.hold(phi), batch)


# --- a network and a loss -------------------------------------------------------------------------


class Risk:
    """The mean loss of a network over the rows of each task.

    Parameters
    ----------
    model : MLP
    loss : str or Loss
        A name in :data:`npmeta.losses.LOSSES`, or your own.

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
        lin = _linearize(self, phi, x, y)
        assert isinstance(lin, RiskLinearization)
        return lin

    def prepare(self, x: ArrayLike, y: ArrayLike, dtype: DType, name: str = "") -> Batch:
        array = self.model.features(as_features(x, f"{name}x"), dtype, f"{name}x")
        if array.ndim != 3:
            raise ValueError(f"{name}x must have shape (T, rows, n_in), got {array.shape}")
        targets = self.loss.prepare(y, self.model.widths[-1], dtype, f"{name}y")
        if targets.shape[:2] != array.shape[:2]:
            raise ValueError(
                f"{name}x and {name}y must agree in tasks and rows, got {array.shape[:2]} and "
                f"{targets.shape[:2]}"
            )
        return array, targets

    def hold(self, theta: Array) -> Sequence[Block]:
        return self.model.layers(theta)

    def scales(self, factors: Array) -> Sequence[Scale]:
        if factors.size == self.n_params:
            return self.model.unpack(factors)
        return [(factor, factor) for factor in factors.tolist()]

    def at(self, point: Sequence[Any], batch: Batch) -> RiskLinearization:
        return RiskLinearization(self, point, *batch)

    def value(self, point: Sequence[Any], batch: Batch) -> tuple[Array, Array | None]:
        x, y = batch
        o = forward(point, self.model.activations, x).z[-1]
        return self.loss(o, y).value, _losses.accuracy(self.loss, o, y)


class RiskLinearization(Linearization):
    """:class:`Risk` at one point. It keeps what the two passes left behind, and nothing else."""

    def __init__(self, risk: Risk, layers: Sequence[Any], x: Array, y: Array) -> None:
        model = risk.model
        self._objective, self._dtype = risk, x.dtype
        self._model, self._layers = model, layers
        self._at: Forward = forward(layers, model.activations, x)
        self._slope = model.slopes(self._at)
        self.value, delta_out, self._loss_product = risk.loss(self._at.z[-1], y)
        self._back: Backward = backward(layers, self._at, self._slope, delta_out)
        self.gradient = self._back.gradient

    def product(self, direction: Sequence[Any]) -> Sequence[Gradient]:
        a_dot, z_dot = forward_dot(self._layers, direction, self._at, self._slope)
        return backward_dot(
            self._layers,
            direction,
            self._at,
            a_dot,
            z_dot,
            self._back,
            self._slope,
            self._model.curvatures(self._at),
            self._loss_product(z_dot[-1]),
        )

    def gauss_newton(self, v: ArrayLike) -> Array:
        """Products with the (generalised) Gauss-Newton matrix Jᵀ (∂²ℓ/∂o²) J (Schraudolph 2002).

        It is the Hessian without the curvature of the network, and positive semidefinite for every
        loss here. Shapes as in :meth:`hvp`.
        """
        _, z_dot = forward_dot(self._layers, self._direction(v), self._at, self._slope)
        back = backward(self._layers, self._at, self._slope, self._loss_product(z_dot[-1]))
        return flatten([part.dense() for part in back.gradient])


# --- objectives on a plain vector -------------------------------------------------------------------


class _OnVector:
    """What objectives without layers share: one block that holds the whole vector."""

    n_params: int

    @property
    def block_sizes(self) -> tuple[int, ...]:
        return (self.n_params,)

    def hold(self, theta: Array) -> Sequence[Block]:
        return [Vector(theta)]

    def scales(self, factors: Array) -> Sequence[Scale]:
        return [(factors,)]


class VectorLinearization(Linearization):
    """An objective on a plain vector, at one point."""

    def __init__(
        self,
        objective: Objective,
        value: Array,
        grad: Array,
        hvp: Callable[[Array], Array],
    ) -> None:
        self._objective, self._dtype = objective, grad.dtype
        self.value = value
        self.gradient = [Vector(grad)]
        self._hvp = hvp

    def product(self, direction: Sequence[Any]) -> Sequence[Gradient]:
        (vector,) = direction
        return [Vector(self._hvp(np.broadcast_to(vector.values, self.grad.shape)))]


class Quadratic(_OnVector):
    r""":math:`L(\varphi) = \tfrac12 (\varphi - c)^\top A (\varphi - c)`, with A and c a task's data.

    The matrices are passed as ``x (T, P, P)`` and the centres as ``y (T, P)``, so a batch of
    quadratics is a :class:`~npmeta.TaskBatch` like any other. Gradient steps are linear here, so the
    adapted parameters and the meta-gradient have a closed form:

    .. math:: \varphi_S - c = (I - \alpha A)^S (\theta - c), \qquad
              \nabla_\theta L^Q(\varphi_S) = (I - \alpha A)^S A^Q (\varphi_S - c^Q).

    Parameters
    ----------
    n_params : int
        P.
    """

    hessian = "exact"

    def __init__(self, n_params: int) -> None:
        if n_params < 1:
            raise ValueError(f"n_params must be at least 1, got {n_params}")
        self.n_params = int(n_params)

    def __repr__(self) -> str:
        return f"Quadratic({self.n_params})"

    def linearize(self, phi: ArrayLike, x: ArrayLike, y: ArrayLike) -> Linearization:
        """Value, gradient and Hessian products of ``x = A (T, P, P)``, ``y = c (T, P)``."""
        return _linearize(self, phi, x, y)

    def prepare(self, x: ArrayLike, y: ArrayLike, dtype: DType, name: str = "") -> Batch:
        A, c, P = as_features(x, f"{name}x"), np.asarray(y), self.n_params
        if A.ndim != 3 or A.shape[1:] != (P, P) or c.shape != (len(A), P):
            raise ValueError(
                f"{name}x must be matrices (T, {P}, {P}) and {name}y centres (T, {P}), got "
                f"{A.shape} and {c.shape}"
            )
        check_finite(c, f"{name}y")
        A, c = A.astype(dtype, copy=False), c.astype(dtype, copy=False)
        # A matrix made as B Bᵀ is symmetric to rounding in its own precision.
        if not np.allclose(A, A.swapaxes(-1, -2), rtol=1e-5, atol=1e-6 * np.abs(A).max()):
            raise ValueError(f"{name}x must hold symmetric matrices")
        return A, c

    def at(self, point: Sequence[Any], batch: Batch) -> Linearization:
        (vector,), (A, c) = point, batch

        def product(v: Array) -> Array:
            Av: Array = np.einsum("tij,tj->ti", A, v)
            return Av

        r = vector.values - c
        grad = product(r)
        return VectorLinearization(self, (r * grad).sum(-1) / 2, grad, product)

    def value(self, point: Sequence[Any], batch: Batch) -> tuple[Array, Array | None]:
        return self.at(point, batch).value, None


class FunctionObjective(_OnVector):
    """Your own model: a function that returns value and gradient.

    Parameters
    ----------
    n_params : int
        P, the number of parameters.
    value_and_grad : callable
        ``(phi (P,), x (rows, ...), y (rows, ...)) -> (value, gradient (P,))`` for one task.
    hvp : callable, optional
        ``(phi (P,), x, y, v (P,)) -> H v (P,)`` for one task. Without it a central difference of the
        gradient stands in: two more gradients a product, and about 1e-9 relative error in float64
        (1e-4 in float32) where the gradient is smooth. :attr:`hessian` says which it is.

    Attributes
    ----------
    hessian : {"supplied", "central difference"}

    Examples
    --------
    Logistic regression, whose gradient anyone can write down:

    >>> import numpy as np, npmeta as nm
    >>> def value_and_grad(phi, x, y):
    ...     p = 1 / (1 + np.exp(-x @ phi))
    ...     return -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)), x.T @ (p - y) / len(y)
    >>> objective = nm.FunctionObjective(3, value_and_grad)
    >>> maml = nm.MAML(objective, inner_lr=0.5, inner_steps=2)
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(4, 20, 3))
    >>> y = (x[..., 0] > 0).astype(float)
    >>> tasks = nm.TaskBatch(x[:, :10], y[:, :10], x[:, 10:], y[:, 10:])
    >>> out = maml.meta_gradient(np.zeros(3), tasks)
    >>> out.grad.shape, out.hessian
    ((3,), 'central difference')
    """

    def __init__(
        self,
        n_params: int,
        value_and_grad: Callable[[Array, Array, Array], tuple[float, Array]],
        hvp: Callable[[Array, Array, Array, Array], Array] | None = None,
    ) -> None:
        if n_params < 1:
            raise ValueError(f"n_params must be at least 1, got {n_params}")
        self.n_params = int(n_params)
        self.value_and_grad = value_and_grad
        self.supplied_hvp = hvp
        self.hessian = "supplied" if hvp is not None else "central difference"

    def __repr__(self) -> str:
        return f"FunctionObjective({self.n_params}, hessian={self.hessian!r})"

    def linearize(self, phi: ArrayLike, x: ArrayLike, y: ArrayLike) -> Linearization:
        """Value, gradient and Hessian products for ``x (T, rows, ...)``, ``y (T, rows, ...)``."""
        return _linearize(self, phi, x, y)

    def prepare(self, x: ArrayLike, y: ArrayLike, dtype: DType, name: str = "") -> Batch:
        def cast(values: Array) -> Array:  # labels and other integers stay what they are
            return values.astype(dtype, copy=False) if values.dtype.kind == "f" else values

        return cast(as_features(x, f"{name}x")), cast(as_features(y, f"{name}y"))

    def at(self, point: Sequence[Any], batch: Batch) -> Linearization:
        (vector,), (x, y) = point, batch
        phi = np.broadcast_to(vector.values, (len(x), self.n_params))
        value, grad = self._each(phi, x, y)

        def product(v: Array) -> Array:
            if self.supplied_hvp is None:
                return self._central_difference(phi, x, y, v)
            rows = [self.supplied_hvp(*task) for task in zip(phi, x, y, v, strict=True)]
            for row in rows:
                if np.shape(row) != (self.n_params,):  # a column would broadcast in silence
                    raise ValueError(
                        f"hvp must return a product ({self.n_params},), got shape {np.shape(row)}"
                    )
            return np.asarray(rows, dtype=phi.dtype)

        return VectorLinearization(self, value, grad, product)

    def value(self, point: Sequence[Any], batch: Batch) -> tuple[Array, Array | None]:
        return self.at(point, batch).value, None

    def _each(self, phi: Array, x: Array, y: Array) -> tuple[Array, Array]:
        """Value and gradient, task by task."""
        values, grads = [], []
        for task in zip(phi, x, y, strict=True):
            value, grad = self.value_and_grad(*task)
            if np.shape(value) != () or np.shape(grad) != (self.n_params,):
                raise ValueError(
                    f"value_and_grad must return a number and a gradient ({self.n_params},), got "
                    f"shapes {np.shape(value)} and {np.shape(grad)}"
                )
            values.append(value)
            grads.append(grad)
        return np.asarray(values, dtype=phi.dtype), np.asarray(grads, dtype=phi.dtype)

    def _central_difference(self, phi: Array, x: Array, y: Array, v: Array) -> Array:
        """(∇L(φ + hv) − ∇L(φ − hv)) / 2h, with ‖hv‖ = ε^⅓ (1 + ‖φ‖): truncation meets rounding."""
        size = np.linalg.norm(v, axis=-1, keepdims=True)
        reach = np.cbrt(np.finfo(phi.dtype).eps) * (1 + np.linalg.norm(phi, axis=-1, keepdims=True))
        h = (reach / np.where(size > 0, size, 1)).astype(phi.dtype)
        ahead, behind = self._each(phi + h * v, x, y)[1], self._each(phi - h * v, x, y)[1]
        difference: Array = (ahead - behind) / (2 * h)
        return difference
