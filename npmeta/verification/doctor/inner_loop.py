"""The inner loop, as it is chosen: points, and the losses that are descended on and scored there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from npmeta._support.validation import Array
from npmeta.bilevel.objective import Batch, Linearization, Objective, Risk
from npmeta.network.activations import IDENTITY
from npmeta.network.mlp import MLP
from npmeta.verification.doctor.choices import Forward
from npmeta.verification.doctor.other_norms import (
    MeanAndVariance,
    NormRule,
    OtherNorm,
    first_rows,
    fresh,
    running,
    statistics_of,
)
from npmeta.verification.doctor.problem import Problem
from npmeta.verification.doctor.row_space import RowSpace
from npmeta.verification.doctor.stand_ins import GELU_BY_TANH, SOFTMAX_TWICE

FLOAT64 = np.dtype(np.float64)
#: Numbers above which the tasks go back one after another: less memory, and no more time.
MOST_AT_ONCE = 4_000_000


class InnerLoop:
    """The points φ_0..φ_S of an inner loop, and the losses linearised there as they are asked for."""

    def __init__(
        self,
        choices: Forward,
        objective: Objective,
        support: Batch,
        query: Batch,
        step_sizes: Array,
        decay: float,
        points: list[Array],
        steps: list[Linearization],
        row_space: RowSpace | None = None,
    ) -> None:
        self.choices, self.objective = choices, objective
        self.support_rows, self.query_rows = support, query
        self.step_sizes, self.decay, self.points = step_sizes, decay, points
        self.row_space = row_space
        self._known = {("support", s): lin for s, lin in enumerate(steps)}
        self._part_of: tuple[InnerLoop, int] | None = None

    @property
    def n_steps(self) -> int:
        return len(self.points) - 1

    def support(self, s: int) -> Linearization:
        """The loss that is descended on, at φ_s."""
        return self._at("support", s, lambda: (self.objective, self.support_rows))

    def query(self, s: int) -> Linearization:
        """The loss that is scored, at φ_s."""
        return self._at("query", s, lambda: self._scored(s))

    def support_with(self, s: int, **changes: bool) -> Linearization:
        """The loss that is descended on, with other derivatives of the norm."""
        other = _normalised_with(self.objective, **changes)
        return self._at(f"support with {changes}", s, lambda: (other, self.support_rows))

    def _at(self, name: str, s: int, what: Callable[[], tuple[Objective, Batch]]) -> Linearization:
        if (name, s) not in self._known:
            objective, rows = what()
            self._known[name, s] = objective.at(objective.hold(self.points[s]), rows)
        return self._known[name, s]

    def _scored(self, s: int) -> tuple[Objective, Batch]:
        """What is scored, and on which rows: with statistics of other rows these come after its own."""
        statistics, rows, objective = self.choices.statistics, self.query_rows, self.objective
        if not isinstance(objective, Risk) or not isinstance(objective.model, OtherNorm):
            return objective, rows
        loss, model = objective.loss, objective.model
        if statistics.on_query == "own":
            return objective, rows
        if statistics.on_query == "fresh":
            return Risk(model.having(fresh(model)), loss), rows
        if statistics.on_query == "running":
            return Risk(model.having(self._running(s)), loss), rows
        if statistics.constant:  # those of the support rows
            fixed = statistics_of(objective, self.points[s], self.support_rows[0])
            return Risk(model.having(fixed), loss), rows
        n = rows[0].shape[1]
        of_rows = n if statistics.on_query == "support" else 0
        together = _each(lambda q, s: np.concatenate([q, s], axis=1), rows, self.support_rows)
        return Risk(model.having(of_rows=of_rows), first_rows(loss, n)), together

    def _running(self, s: int) -> list[MeanAndVariance]:
        if self._part_of is not None:
            whole, t = self._part_of
            return [(mean[t : t + 1], variance[t : t + 1]) for mean, variance in whole._running(s)]
        assert isinstance(self.objective, Risk)
        if s == 0:
            return fresh(self.objective.model)
        x, how = self.support_rows[0], self.choices.statistics
        passes = [statistics_of(self.objective, self.points[k], x) for k in range(s)]
        return running(passes, x.shape[1], how.momentum, how.unbiased, how.kept)

    def only(self, t: int) -> InnerLoop:
        """The inner loop of one task."""
        support, query = (
            _each(lambda part: part[t : t + 1], rows) for rows in (self.support_rows, self.query_rows)
        )
        points = [point[t : t + 1] for point in self.points]
        one = InnerLoop(
            self.choices, self.objective, support, query, self.step_sizes, self.decay, points, []
        )
        one._part_of = self, t
        return one

    @cached_property
    def first_order(self) -> Array:
        """∇L^Q(φ_S) of every task."""
        if self.all_at_once:
            return self.query(self.n_steps).grad
        q = np.empty_like(self.points[-1])
        for t in range(len(q)):
            q[t] = self.only(t).first_order[0]
        return q

    @property
    def all_at_once(self) -> bool:
        """Whether all tasks go back together, not one after another."""
        end = self.points[-1]
        return end.size <= MOST_AT_ONCE or len(end) == 1 or self.choices.tasks_meet

    def total(self, per_task: Array) -> Array:
        """The sum ``(P,)`` of the tasks' rows."""
        return per_task.sum(0) if self.row_space is None else self.row_space.total(per_task)

    def task(self, per_task: Array, t: int) -> Array:
        """The row ``(P,)`` of a task."""
        return per_task[t] if self.row_space is None else self.row_space.task(per_task, t)


def run_loop(problem: Problem, choices: Forward, *, whole: bool = True) -> InnerLoop:
    """The inner loop with these choices; in coordinates of the tasks' rows, if there are any, unless
    ``whole``."""
    T, dtype = problem.T, np.dtype(choices.dtype)
    decay = problem.maml.inner_weight_decay if choices.decay is None else choices.decay
    row_space = problem.row_space if not (whole or choices.task_by_task) and dtype == FLOAT64 else None
    if row_space is None:
        of_problem, theta = problem.maml.objective, np.tile(problem.theta.astype(dtype), (T, 1))
        sizes = problem.step_sizes(dtype, norm_too=choices.adapted == "norm too")
    else:
        of_problem, theta, sizes = row_space.risk, row_space.theta, row_space.step_sizes
    objective = _objective(of_problem, choices)
    support, query = problem.batches(dtype)
    if choices.loss == "targets broadcast":
        support, query = _mean_targets(support), _mean_targets(query)
    rows = {
        "support": support,
        "query": query,
        "both": _each(lambda s, q: np.concatenate([s, q], axis=1), support, query),
        "query of the next task": _each(lambda part: np.roll(part, -1, axis=0), query),
        "query of the task before": _each(lambda part: np.roll(part, 1, axis=0), query),
    }
    adapt_on, score_on = rows[choices.adapt_on], rows[choices.score_on]
    if row_space is not None:
        adapt_on, score_on = row_space.rows(adapt_on), row_space.rows(score_on)
    S = problem.S + choices.extra_steps
    sizes = sizes[np.minimum(np.arange(S), max(problem.S, 1) - 1)]
    if choices.adapted == "frozen too":
        sizes = np.where(sizes == 0, sizes.max(axis=1, keepdims=True), sizes)
    sizes = sizes * dtype.type(choices.lr_factor) * adapted_by(objective, choices.adapted).astype(dtype)

    def walk(start: Array, rows: Batch, velocity: Any) -> tuple[list[Array], list[Linearization], Any]:
        points, steps = [start], []
        for s in range(S):
            phi = points[-1]
            if s == 0 or choices.gradient_at == "phi":
                steps.append(objective.at(objective.hold(phi), rows))
            descent = steps[-1].grad + decay * phi if decay else steps[-1].grad
            velocity = choices.momentum * velocity + descent if choices.momentum else descent
            points.append(phi - sizes[s] * velocity)
        return points, steps, velocity

    if not choices.task_by_task:
        points, steps, _ = walk(theta, adapt_on, 0.0)
        return InnerLoop(choices, objective, adapt_on, score_on, sizes, decay, points, steps, row_space)
    start, velocity = theta[:1], 0.0
    points = [np.empty_like(theta) for _ in range(S + 1)]
    for t in range(T):  # one task after another
        rows_of_one = _each(lambda part, t=t: part[t : t + 1], adapt_on)
        one, _, after = walk(start, rows_of_one, velocity)
        for s, point in enumerate(one):
            points[s][t] = point[0]
        start = start if choices.start == "theta" else one[-1]
        velocity = after if choices.momentum_survives else 0.0
    return InnerLoop(choices, objective, adapt_on, score_on, sizes, decay, points, [])


def _each(function: Callable[..., Array], *batches: Batch) -> Batch:
    """A function of the inputs, and of the targets."""
    x, y = zip(*batches, strict=True)
    return function(*x), function(*y)


def adapted_by(objective: Objective, adapted: str) -> Array:
    """1 where the inner loop may move a parameter, 0 elsewhere."""
    mask = np.ones(objective.n_params)
    if not isinstance(objective, Risk) or adapted in ("all", "frozen too", "norm too"):
        return mask
    head = objective.model.n_layers - 1
    for name, place in objective.model.places.items():
        layer, kind = name.split(".")
        moves = {
            "weights": kind == "weight",
            "weights and scales": kind in ("weight", "scale"),
            "layers": kind in ("weight", "bias"),
            "head": int(layer) == head,
            "body": int(layer) < head,
        }
        mask[place] = moves[adapted]
    return mask


def _objective(objective: Objective, choices: Forward) -> Objective:
    other = choices.other_norm
    if not isinstance(objective, Risk) or not (choices.activation or choices.loss or other):
        return objective
    model, loss = objective.model, objective.loss
    if choices.activation is not None:
        by_tanh = choices.activation == GELU_BY_TANH.name
        f = GELU_BY_TANH if by_tanh else choices.activation
        # Where some layers are linear beside others that are not, it is the others that have another.
        linear = [own is IDENTITY for own in model.activations]
        model = model.with_activation([IDENTITY if own and not all(linear) else f for own in linear])
    if other:
        model = _normalised_otherwise(model, choices)
    return Risk(model, SOFTMAX_TWICE if choices.loss == "softmax twice" else loss)


def _normalised_otherwise(model: MLP, choices: Forward) -> OtherNorm:
    statistics = choices.statistics
    none = statistics.everywhere == "none"
    how = NormRule(
        statistics.over or model.norm,
        0.0 if none else choices.eps,
        choices.eps_on,
        choices.unbiased,
        constant=statistics.constant and statistics.on_query == "own",
        affine=choices.affine and not none,
        after=choices.after,
    )
    return OtherNorm(model, how, None if statistics.everywhere == "own" else fresh(model))


def _normalised_with(objective: Objective, **changes: Any) -> Objective:
    """A network whose norms differ from its own in these attributes."""
    assert isinstance(objective, Risk)
    model = objective.model
    if not isinstance(model, OtherNorm):
        model = OtherNorm(model, NormRule(model.norm))
    return Risk(OtherNorm(model.model, replace(model.how, **changes), model.fixed), objective.loss)


def _mean_targets(rows: Batch) -> Batch:
    """Outputs (rows, 1) less targets (rows,) broadcast to (rows, rows): every output is compared with
    every target, and the mean of the squares has the gradient that the mean target gives."""
    x, y = rows
    return x, np.broadcast_to(y.mean(axis=1, keepdims=True), y.shape)
