"""What a meta-loss depends on, as plain arrays of any precision, and the loss itself by its definition.

The oracles stand on this. It asks an objective for values and gradients alone, and takes the inner loop
from the formula, not from :mod:`npmeta.bilevel.adaptation`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from npmeta._support.validation import Array, as_parameters, shown
from npmeta.algorithms import MAML
from npmeta.algorithms.adapts import Adapts
from npmeta.algorithms.base import MetaParameters, named
from npmeta.bilevel.adaptation import StepSizes
from npmeta.bilevel.objective import Batch, Objective, Risk
from npmeta.network.weights import Dense, Layer
from npmeta.tasks import TaskBatch
from npmeta.verification.rounding import ROUNDINGS, jittered, unit

#: Numbers that the parameters of one stack of tasks may be: 64 MiB if complex.
STACK = 2**22


def check_maml(maml: object) -> None:
    """Raise ValueError unless it is MAML itself.

    Another algorithm has another meta-gradient, and so may have a class made from MAML: judged as MAML,
    its own would be called wrong, and MAML's right.
    """
    if type(maml) is MAML:
        return
    if isinstance(getattr(maml, "maml", None), MAML):
        raise ValueError(
            f"maml must be a MAML, got a {type(maml).__name__}; its .maml is one, which says what the "
            "tasks' part of its meta-gradient is"
        )
    if isinstance(maml, MAML | Adapts):
        raise ValueError(
            f"maml must be a MAML, got a {type(maml).__name__}: its meta-gradient is another, of which "
            "there is no definition here to judge by"
        )
    raise ValueError(f"maml must be a MAML, got {shown(maml)}")


@dataclass(frozen=True, eq=False)
class MetaLoss:
    """All that a meta-loss depends on.

    Attributes
    ----------
    objective : Objective
    theta : ndarray, (P,)
    alpha : ndarray, (n,)
        The step sizes in a row; ``alpha_shape`` is what they came in.
    owner : ndarray, (S, P)
        Which of them each step and parameter takes.
    moves : ndarray, (P,)
        1 where inner steps move a parameter, 0 where they do not.
    before : ndarray, (P,)
        Which parameter's value before a step a parameter has after it, but for that: its own, or
        that of the next set of scales and shifts.
    support, query : Batch
    decay : float
    first_order : bool
    """

    objective: Objective
    theta: Array
    alpha: Array
    alpha_shape: tuple[int, ...]
    owner: Array
    moves: Array
    before: Array
    support: Batch
    query: Batch
    decay: float
    first_order: bool

    @staticmethod
    def of(maml: MAML, params: ArrayLike | MetaParameters, tasks: TaskBatch) -> MetaLoss:
        """Data and step sizes rounded to the dtype of theta, as MAML rounds them."""
        check_maml(maml)
        if not isinstance(tasks, TaskBatch):
            raise ValueError(f"tasks must be a TaskBatch, got {shown(tasks)}")
        objective, S = maml.objective, maml.inner_steps
        theta = as_parameters(named(params)["theta"], objective.n_params)
        if theta.ndim != 1 or theta.dtype.kind != "f":
            raise ValueError(
                f"theta must be real with shape ({objective.n_params},), got {theta.dtype} with shape "
                f"{theta.shape}"
            )
        alpha = np.asarray(named(params).get("inner_lr", maml.inner_lr))
        sizes = objective.block_sizes
        rows, columns = StepSizes(alpha, objective, S, theta.dtype).grid.shape
        owner = np.arange(rows * columns).reshape(rows, columns)
        if columns == len(sizes):
            owner = np.repeat(owner, sizes, axis=1)
        return MetaLoss(
            objective,
            theta,
            alpha.reshape(-1).astype(theta.dtype),
            alpha.shape,
            np.broadcast_to(owner[:S] if rows > 1 else owner, (S, objective.n_params)),
            *_scheduled(objective),
            objective.prepare(tasks.support_x, tasks.support_y, theta.dtype, "support_"),
            objective.prepare(tasks.query_x, tasks.query_y, theta.dtype, "query_"),
            maml.inner_weight_decay,
            maml.first_order,
        )

    def cast(self, dtype: DTypeLike) -> MetaLoss:
        """The same numbers in another precision."""

        def to(values: Array) -> Array:
            return values.astype(dtype) if values.dtype.kind == "f" else values

        return replace(
            self,
            theta=to(self.theta),
            alpha=to(self.alpha),
            support=(to(self.support[0]), to(self.support[1])),
            query=(to(self.query[0]), to(self.query[1])),
        )

    def moved(self, rng: np.random.Generator, dtype: DTypeLike) -> MetaLoss:
        """θ, α and inputs moved by up to ROUNDINGS roundings, in that precision, and tasks and rows
        in another order.

        Weights move by a share of the typical one in their layer: biases that are zero move too,
        since what they are added to is rounded. The order is that of sums, where equal terms cancel.
        """
        eps = ROUNDINGS * unit(dtype)

        def relative(values: Array) -> Array:
            if values.dtype.kind != "f":
                return values
            return values * (1 + eps * rng.uniform(-1, 1, size=values.shape))

        def shuffled(batch: Batch) -> Batch:
            x, y = batch[0][order], batch[1][order]
            if isinstance(self.objective, Risk):  # others' rows may have a meaning in their order
                rows = rng.permutation(x.shape[1])
                x, y = x[:, rows], y[:, rows]
            return relative(x), y

        meta_loss = self.cast(np.float64)
        order = rng.permutation(len(meta_loss.support[0]))
        blocks = np.split(meta_loss.theta, np.cumsum(self.objective.block_sizes)[:-1])
        size = np.concatenate([np.full(block.shape, np.sqrt(np.mean(block**2))) for block in blocks])
        return replace(
            meta_loss,
            theta=jittered(meta_loss.theta, size, rng, unit(dtype)),
            alpha=relative(meta_loss.alpha),
            support=shuffled(meta_loss.support),
            query=shuffled(meta_loss.query),
        ).cast(dtype)

    def passes(self, theta: Array, alpha: Array | None = None) -> Iterator[tuple[Array, Batch]]:
        """φ_0..φ_{S-1} with the support set and φ_S with the query set, from any real or complex
        theta ``(P,)`` or ``(T, P)``."""
        alpha = self.alpha if alpha is None else alpha
        phi = np.broadcast_to(theta, (len(self.support[0]), theta.shape[-1]))
        for owner in self.owner:
            yield phi, self.support
            _, gradient = value_and_gradient(self.objective, phi, self.support)
            descent = gradient + self.decay * phi
            phi = phi[..., self.before] - alpha[..., owner] * self.moves * descent
        yield phi, self.query

    def carried_back(self, cotangent: Array) -> Array:
        """The adjoint of ``phi[..., before]``."""
        others = np.flatnonzero(self.before != np.arange(self.before.size))
        carried = cotangent.copy()
        carried[:, others] = 0
        np.add.at(carried.T, self.before[others], cotangent.T[others])
        return carried

    def values(self, theta: Array, alpha: Array) -> Array:
        """The meta-loss at D points ``theta (D, P)``, ``alpha (D, n)``, all as one stack of tasks."""
        D, T = len(theta), len(self.support[0])

        def tiled(batch: Batch) -> Batch:
            x, y = (np.tile(part, (D, *[1] * (part.ndim - 1))) for part in batch)
            return x, y

        stacked = replace(self, support=tiled(self.support), query=tiled(self.query))
        points = stacked.passes(np.repeat(theta, T, axis=0), np.repeat(alpha, T, axis=0))
        *_, (phi, query) = points
        value, _ = value_and_gradient(self.objective, phi, query)
        return value.reshape(D, T).mean(1)

    def in_stacks(self, rows: Array) -> Iterator[tuple[int, Array]]:
        """Rows, each of which stands for a point, in stacks that fit into memory."""
        at_once = max(1, STACK // (self.theta.size * len(self.support[0])))
        for start in range(0, len(rows), at_once):
            yield start, rows[start : start + at_once]


def layers(risk: Risk, phi: Array) -> list[Layer]:
    """The layers of ``phi (T, P)`` in any dtype; MLP.layers takes no extended precision."""
    model = risk.model
    arrays = [
        [
            phi[:, model.places[f"{l}.{name}"]].reshape(len(phi), *shape)
            for name, shape in shapes.items()
        ]
        for l, shapes in enumerate(model.shapes)
    ]
    return model.in_parts([Dense(W, b) for W, b, *_ in arrays], arrays)


def _scheduled(objective: Objective) -> tuple[Array, Array]:
    """``moves`` and ``before``: inner steps leave all but weights and biases alone where the network
    says so, and go on to the next set of scales and shifts, if there are several."""
    moves, before = np.ones(objective.n_params), np.arange(objective.n_params)
    if isinstance(objective, Risk) and not objective.model.adapts_all:
        for name, place in objective.model.places.items():
            if not name.endswith(("weight", "bias")):
                moves[place] = 0
                sets = before[place].reshape(objective.model.norm_sets, -1)  # a view
                sets[:-1] = sets[1:]
    return moves, before


def value_and_gradient(objective: Objective, phi: Array, batch: Batch) -> tuple[Array, Array]:
    """Value ``(T,)`` and gradient ``(T, P)``: all that an oracle asks of an objective."""
    try:
        point = layers(objective, phi) if isinstance(objective, Risk) else objective.hold(phi)
        lin = objective.at(point, batch)
    except TypeError as error:
        hint = "; products='difference' needs real parameters only" if phi.dtype.kind == "c" else ""
        raise ValueError(f"{objective!r} cannot be computed in {phi.dtype}: {error}{hint}") from error
    return lin.value, lin.grad


def tiny_step(dtype: Any) -> Any:
    """h whose square is nothing, so that not even a unit exactly at a kink is moved across it by the
    product of two imaginary parts: 1e-205 in float64. float32 has no room for that."""
    info = np.finfo(dtype)
    return info.dtype.type(1e-15) if info.bits == 32 else info.tiny ** info.dtype.type(2 / 3)
