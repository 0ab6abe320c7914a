"""Objectives on a plain vector of parameters: a quadratic, and any function of your own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.validation import Array, DType, as_dtype, as_features, as_whole, check_function
from npmeta.bilevel.objective import Batch, Linearization, Objective, linearize
from npmeta.network.weights import Gradient, Point, Scale, Vector


class _OnVector:
    """What objectives without layers share: one block that holds the whole vector."""

    n_params: int

    @property
    def block_sizes(self) -> tuple[int, ...]:
        return (self.n_params,)

    def hold(self, theta: Array, forms: Sequence[str] | None = None) -> Sequence[Point]:
        """One block with the whole vector; there are no layers to have forms."""
        return [Vector(theta)]

    def scales(self, factors: Array) -> Sequence[Scale]:
        """One factor, or one per parameter, for the one block."""
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
        super().__init__(objective, value, [Vector(grad)])
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
        P, the number of parameters.
    """

    hessian = "exact"

    def __init__(self, n_params: int) -> None:
        self.n_params = as_whole(n_params, "n_params", 1)

    def __repr__(self) -> str:
        return f"Quadratic({self.n_params})"

    def linearize(self, phi: ArrayLike, x: ArrayLike, y: ArrayLike) -> Linearization:
        """Value, gradient and Hessian products of ``x = A (T, P, P)``, ``y = c (T, P)``."""
        return linearize(self, phi, x, y)

    def prepare(self, x: ArrayLike, y: ArrayLike, dtype: DType, name: str = "") -> Batch:
        """Matrices ``(T, P, P)`` and centres ``(T, P)``, checked and cast."""
        A, c, P = as_features(x, f"{name}x"), as_features(y, f"{name}y"), self.n_params
        if A.ndim != 3 or A.shape[1:] != (P, P) or c.shape != (len(A), P):
            raise ValueError(
                f"{name}x must be matrices (T, {P}, {P}) and {name}y centres (T, {P}), got "
                f"{A.shape} and {c.shape}"
            )
        A, c = as_dtype(A, dtype, f"{name}x"), as_dtype(c, dtype, f"{name}y")
        transposed = A.swapaxes(-1, -2)
        # A matrix made as B Bᵀ is symmetric to a few roundings of its largest sum of P products.
        allowed = 10 * P * np.finfo(dtype).eps * np.abs(A).max(axis=(-2, -1))
        if (np.abs(A - transposed).max(axis=(-2, -1)) > allowed).any():
            raise ValueError(f"{name}x must hold symmetric matrices")
        # Then the gradient is exactly that of the value.
        return (A + transposed) / 2, c

    def at(self, point: Sequence[Any], batch: Batch) -> Linearization:
        """The linearization at one block, without checks."""
        (vector,), (A, c) = point, batch

        def product(v: Array) -> Array:
            return np.einsum("tij,tj->ti", A, v)

        r = vector.values - c
        grad = product(r)
        return VectorLinearization(self, (r * grad).sum(-1) / 2, grad, product)

    def score(self, point: Sequence[Any], batch: Batch) -> tuple[Array, Array | None]:
        """Value ``(T,)``; there is no accuracy."""
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
        gradient stands in: two more gradients a product, and where the gradient is smooth a relative
        error of about 1e-10 in float64 (1e-4 in float32) that grows with ‖φ‖². :attr:`hessian` says
        which it is.

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
        self.n_params = as_whole(n_params, "n_params", 1)
        check_function(value_and_grad, "value_and_grad")
        if hvp is not None:
            check_function(hvp, "hvp")
        self.value_and_grad = value_and_grad
        self.supplied_hvp = hvp
        self.hessian = "supplied" if hvp is not None else "central difference"

    def __repr__(self) -> str:
        return f"FunctionObjective({self.n_params}, hessian={self.hessian!r})"

    def linearize(self, phi: ArrayLike, x: ArrayLike, y: ArrayLike) -> Linearization:
        """Value, gradient and Hessian products for ``x (T, rows, ...)``, ``y (T, rows, ...)``."""
        return linearize(self, phi, x, y)

    def prepare(self, x: ArrayLike, y: ArrayLike, dtype: DType, name: str = "") -> Batch:
        """Inputs and targets ``(T, rows, ...)``; floating ones are cast, others stay what they are."""

        def cast(values: Array) -> Array:  # labels and other integers stay what they are
            return as_dtype(values, dtype, name) if values.dtype.kind == "f" else values

        return cast(as_features(x, f"{name}x")), cast(as_features(y, f"{name}y"))

    def at(self, point: Sequence[Any], batch: Batch) -> Linearization:
        """The linearization at one block, without checks."""
        (vector,), (x, y) = point, batch
        phi = np.broadcast_to(vector.values, (len(x), self.n_params))
        value, grad = self._each(phi, x, y)

        def product(v: Array) -> Array:
            if self.supplied_hvp is None:
                return self._central_difference(phi, x, y, v)
            products = np.empty_like(phi)
            for t, task in enumerate(zip(phi, x, y, v, strict=True)):
                product = self.supplied_hvp(*task)
                if np.shape(product) != (self.n_params,):  # a column would broadcast in silence
                    raise ValueError(
                        f"hvp must return a product ({self.n_params},), got shape {np.shape(product)}"
                    )
                products[t] = product
            return products

        return VectorLinearization(self, value, grad, product)

    def score(self, point: Sequence[Any], batch: Batch) -> tuple[Array, Array | None]:
        """Value ``(T,)``; there is no accuracy."""
        return self.at(point, batch).value, None

    def _each(self, phi: Array, x: Array, y: Array) -> tuple[Array, Array]:
        """Value and gradient, task by task."""
        # Filled at once: a function may well return the same array, with other numbers, every time.
        values, grads = np.empty(len(phi), dtype=phi.dtype), np.empty_like(phi)
        for t, task in enumerate(zip(phi, x, y, strict=True)):
            value, grad = self.value_and_grad(*task)
            if np.shape(value) != () or np.shape(grad) != (self.n_params,):
                raise ValueError(
                    f"value_and_grad must return a number and a gradient ({self.n_params},), got "
                    f"shapes {np.shape(value)} and {np.shape(grad)}"
                )
            values[t], grads[t] = value, grad
        return values, grads

    def _central_difference(self, phi: Array, x: Array, y: Array, v: Array) -> Array:
        """(∇L(φ + hv) − ∇L(φ − hv)) / 2h, with ‖hv‖ = ε^⅓ (1 + ‖φ‖): truncation meets rounding."""
        size = np.linalg.norm(v, axis=-1, keepdims=True)
        reach = np.cbrt(np.finfo(phi.dtype).eps) * (1 + np.linalg.norm(phi, axis=-1, keepdims=True))
        h = (reach / np.where(size > 0, size, 1)).astype(phi.dtype)
        ahead, behind = self._each(phi + h * v, x, y)[1], self._each(phi - h * v, x, y)[1]
        return (ahead - behind) / (2 * h)
