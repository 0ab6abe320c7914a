r"""The inner loop and its adjoint.

Adaptation takes S gradient steps on a task's support set,

.. math:: \varphi_0 = \theta, \qquad
          \varphi_{s+1} = \varphi_s - \alpha_s \circ (\nabla L^S(\varphi_s) + w \varphi_s),

with step sizes α and weight decay w. Its adjoint carries the cotangent
:math:`\lambda_s = dL^Q/d\varphi_s` back through the same steps, last first:

.. math:: \lambda_S = \nabla L^Q(\varphi_S), \qquad
          \lambda_s = \lambda_{s+1} - (H_s + w I)(\alpha_s \circ \lambda_{s+1}), \qquad
          H_s = \nabla^2 L^S(\varphi_s).

λ_0 is the exact second-order meta-gradient of MAML (Finn et al. 2017); stopping at λ_S is its
first-order approximation. Both loops move in the spaces of :mod:`npmeta.network.spaces`, and see no
network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.validation import Array, DType, as_dtype, check_finite, unmasked
from npmeta.bilevel.objective import Batch, Linearization, Objective
from npmeta.network import spaces
from npmeta.network.spaces import flatten
from npmeta.network.weights import Cotangent, Gradient, Point, Scale


class StepSizes:
    """Inner step sizes for every step and block.

    Parameters
    ----------
    values : array_like
        A number; one per block (layer) ``(L,)``; one per step ``(S, 1)``; one per step and layer
        ``(S, L)``; one per parameter ``(P,)``; one per step and parameter ``(S, P)``. ``(S,)`` is
        read as one per step where that cannot be mistaken for another. Zeros freeze.
    objective : Objective
        Gives L and P.
    n_steps : int
        S, the number of steps the sizes are meant for. Steps beyond S use those of the last.
    dtype : numpy.dtype
        That of the parameters.

    Raises
    ------
    ValueError
        If the shape is none of these or could be two of them, or a value is not finite.
    """

    def __init__(self, values: ArrayLike, objective: Objective, n_steps: int, dtype: DType) -> None:
        given = unmasked(values, "inner_lr")
        if given.dtype.kind not in "iuf" and given.dtype != dtype:  # complex steps
            raise ValueError(f"inner_lr must be real numbers, got dtype {given.dtype}")
        check_finite(given, "inner_lr")
        self._objective = objective
        self._given_shape = given.shape
        shape = _grid(given.shape, n_steps, len(objective.block_sizes), objective.n_params)
        self._values = as_dtype(given, dtype, "inner_lr").reshape(shape)

    @property
    def grid(self) -> Array:
        """The values as 1 or S rows, for steps, and 1, L or P columns, for blocks or parameters."""
        return self._values

    @property
    def per_parameter(self) -> bool:
        """Whether sizes may differ within a block."""
        return self._values.shape[1] > len(self._objective.block_sizes)

    def __getitem__(self, s: int) -> Sequence[Scale]:
        """α_s, block by block."""
        return self._scales(self._row(s))

    def times(self, decay: float, s: int) -> Sequence[Scale | None]:
        """``decay · α_s``, block by block; None where there is no decay."""
        if decay == 0:
            return [None] * len(self._objective.block_sizes)
        return self._scales(self._row(s) * decay)

    @property
    def moves(self) -> Sequence[Scale]:
        """What they multiply: 1, block by block, and 0 for what inner steps do not move."""
        return self._scales(np.ones(1, dtype=self._values.dtype))

    def written_out(self) -> Array:
        """α for every step and parameter, ``(rows, P)``; 0 for what inner steps do not move."""
        return np.stack([self._for_each(self[s]) for s in range(len(self._values))])

    def collect(self, per_parameter: Sequence[Array]) -> Array:
        """Derivatives for every step and block or parameter, ``S × (L or P,)``, added up to the shape
        of the values."""
        n_rows, n_columns = self._values.shape
        starts = np.cumsum([0, *self._objective.block_sizes[:-1]])
        total = np.zeros(self._values.shape, dtype=self._values.dtype)
        for s, derivative in enumerate(per_parameter):
            if len(derivative) == self._objective.n_params:
                derivative = derivative * self._for_each(self.moves)
            if n_columns == 1:
                derivative = derivative.sum(keepdims=True)
            elif n_columns != len(derivative):
                derivative = np.add.reduceat(derivative, starts)
            total[min(s, n_rows - 1)] += derivative
        return total.reshape(self._given_shape)

    def _for_each(self, scales: Sequence[Scale]) -> Array:
        """Factors block by block, for every parameter, ``(P,)``."""
        ones: Any = self._objective.hold(np.ones(self._objective.n_params, dtype=self._values.dtype))
        return flatten(spaces.scaled(ones, scales))

    def _row(self, s: int) -> Array:
        return self._values[min(s, len(self._values) - 1)]

    def _scales(self, row: Array) -> Sequence[Scale]:
        n_blocks = len(self._objective.block_sizes)
        return self._objective.scales(np.repeat(row, n_blocks) if row.size == 1 else row)


def _grid(shape: tuple[int, ...], S: int, L: int, P: int) -> tuple[int, int]:
    """The (rows, columns) that step sizes of this shape stand for: 1 or S rows; 1, L or P columns."""
    rows = max(S, 1)
    if shape == ():
        return 1, 1
    if len(shape) == 2 and shape[0] in (1, rows) and shape[1] in (1, L, P):
        return shape[0], shape[1]
    readings = set()
    if len(shape) == 1:
        readings = {grid for grid in ((1, L), (1, P), (rows, 1)) if shape[0] in grid}
        readings = {grid for grid in readings if max(grid) == shape[0]}
    if len(readings) == 1:
        return readings.pop()
    expected = (
        f"a number, ({L},) per layer, ({rows}, 1) per step, ({rows}, {L}) per step and layer, "
        f"({P},) per parameter, or ({rows}, {P}) per step and parameter"
    )
    if readings:
        choices = " or ".join(str(grid) for grid in sorted(readings))
        other = "layer" if (1, L) in readings else "parameter"
        raise ValueError(
            f"inner_lr of shape {shape} could be one per step or one per {other}; write it with shape "
            f"{choices}"
        )
    raise ValueError(f"inner_lr must be {expected}; got shape {shape}")


def inner_loop(
    objective: Objective,
    weights: Sequence[Point],
    support: Batch,
    step_sizes: StepSizes,
    n_steps: int,
    decay: float = 0.0,
) -> Iterator[tuple[Linearization, Sequence[Point]]]:
    """The inner steps one by one: the support loss linearised at φ_s, and φ_{s+1}."""
    for s in range(n_steps):
        lin = objective.at(weights, support)
        weights = spaces.descend(weights, lin.gradient, step_sizes[s], step_sizes.times(decay, s))
        yield lin, weights


@dataclass(frozen=True)
class Trajectory:
    """φ_0..φ_S, and the support loss linearised at φ_0..φ_{S-1}."""

    weights: Sequence[Sequence[Point]]
    steps: Sequence[Linearization]


def adapt(
    objective: Objective,
    weights: Sequence[Point],
    support: Batch,
    step_sizes: StepSizes,
    n_steps: int,
    decay: float = 0.0,
) -> Trajectory:
    """The inner loop, with everything kept that its adjoint needs."""
    points: list[Sequence[Point]] = [weights]
    steps = []
    for lin, point in inner_loop(objective, weights, support, step_sizes, n_steps, decay):
        steps.append(lin)
        points.append(point)
    return Trajectory(points, steps)


def pull_back(
    path: Trajectory,
    cotangent: Sequence[Cotangent],
    step_sizes: StepSizes,
    decay: float = 0.0,
    *,
    first_order: bool = False,
    with_step_sizes: bool = False,
    joining: Mapping[int, tuple[float, Sequence[Gradient]]] | None = None,
) -> tuple[Sequence[Cotangent], Array | None]:
    """The adjoint of :func:`adapt`.

    Parameters
    ----------
    path : Trajectory
    cotangent : sequence of Cotangent
        λ_S, the gradient of the query loss at φ_S.
    step_sizes, decay
        Those that :func:`adapt` was called with.
    first_order : bool
        Take every H_s and w for zero: λ_s = λ_S.
    with_step_sizes : bool
        Also return the derivative with respect to the step sizes, the mean over tasks of
        −λ_{s+1} ∘ (∇L^S(φ_s) + w φ_s), added up over whatever shares a step size.
    joining : mapping, optional
        Where points before the last have a part in the outer loss: by s, the weight v of the query loss
        at φ_s and its gradient, v ∇L^Q(φ_s), which joins λ_s.

    Returns
    -------
    cotangent : sequence of Cotangent
        λ_0.
    step_size_gradient : ndarray or None
        In the shape of the step sizes.
    """
    derivatives: list[Array] = []
    moves = step_sizes.moves if with_step_sizes else ()
    for s in reversed(range(len(path.steps))):
        lin = path.steps[s]
        if with_step_sizes and (step_sizes.per_parameter or decay):
            descent = lin.grad + decay * flatten(path.weights[s]) if decay else lin.grad
            derivatives.insert(0, -(flatten(cotangent) * descent).mean(0))
        elif with_step_sizes:
            pairs = spaces.paired(cotangent, lin.gradient, moves)
            derivatives.insert(0, -np.array([pair.mean() for pair in pairs]))
        if not first_order:
            direction = spaces.scaled(cotangent, step_sizes[s])
            products = lin.product(direction)
            cotangent = spaces.minus(cotangent, products, step_sizes.times(decay, s))
        if joining and s in joining:
            cotangent = spaces.plus(cotangent, *joining[s])
    return cotangent, step_sizes.collect(derivatives) if with_step_sizes else None
