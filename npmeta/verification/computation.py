r"""What a recipe computes: the inner loop, the way back, and what is made of the tasks' gradients.

One piece of code for every choice of :class:`~npmeta.verification.recipe.Recipe`. With a momentum μ
and a weight decay w that are both zero unless somebody has put them there,

.. math:: v_s = \mu v_{s-1} + \nabla L^S(\varphi_s) + w \varphi_s, \qquad
          &\varphi_{s+1} = \varphi_s - \alpha_s \circ v_s, \\
          m_s = \mu m_{s+1} + \alpha_s \circ \lambda_{s+1}, \qquad
          &\lambda_s = \lambda_{s+1} - (H_s + w I) m_s .

Predictions are computed in float64, and in float32 to see what rounding does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from npmeta._support.validation import Array, DType
from npmeta.bilevel.objective import Batch, Linearization, Objective, Risk
from npmeta.network.activations import IDENTITY
from npmeta.network.mlp import MLP
from npmeta.verification.other_norms import (
    Norm,
    OtherNorm,
    Statistics,
    first_rows,
    fresh,
    running,
    statistics_of,
)
from npmeta.verification.problem import Problem
from npmeta.verification.recipe import Backward, Forward, Recipe
from npmeta.verification.spans import Spans
from npmeta.verification.stand_ins import GELU_BY_TANH, SOFTMAX_TWICE

__all__ = [
    "ORDERS",
    "Path",
    "combine",
    "evaluate",
    "evaluate_all",
    "finished",
    "follow",
    "handed_over",
    "over_tasks",
    "pull_back",
]

FLOAT64 = np.dtype(np.float64)
#: Numbers above which the tasks go back one after another: less memory, and no more time.
MOST_AT_ONCE = 4_000_000


# --- forward --------------------------------------------------------------------------------------


class Path:
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
        spans: Spans | None = None,
    ) -> None:
        self.choices, self.objective = choices, objective
        self.support_rows, self.query_rows = support, query
        self.step_sizes, self.decay, self.points = step_sizes, decay, points
        self.spans = spans
        self._known = {("support", s): lin for s, lin in enumerate(steps)}
        self._part_of: tuple[Path, int] | None = None

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
        kind, *arguments = self.choices.statistics
        rows, objective = self.query_rows, self.objective
        if not isinstance(objective, Risk) or not isinstance(objective.model, OtherNorm):
            return objective, rows
        loss, model = objective.loss, objective.model
        if kind == "fresh on query":
            return Risk(model.having(fresh(model)), loss), rows
        if kind == "running":
            return Risk(model.having(self._running(s, *arguments)), loss), rows
        if kind == "support, a constant":
            fixed = statistics_of(objective, self.points[s], self.support_rows[0])
            return Risk(model.having(fixed), loss), rows
        if kind in ("support", "both"):
            n = rows[0].shape[1]
            of_rows = n if kind == "support" else 0
            together = _each(lambda q, s: np.concatenate([q, s], axis=1), rows, self.support_rows)
            return Risk(model.having(of_rows=of_rows), first_rows(loss, n)), together
        return objective, rows

    def _running(self, s: int, momentum: float, unbiased: bool, kept: bool) -> list[Statistics]:
        if self._part_of is not None:
            whole, t = self._part_of
            every = whole._running(s, momentum, unbiased, kept)
            return [(mean[t : t + 1], variance[t : t + 1]) for mean, variance in every]
        assert isinstance(self.objective, Risk)
        if s == 0:
            return fresh(self.objective.model)
        x = self.support_rows[0]
        passes = [statistics_of(self.objective, self.points[k], x) for k in range(s)]
        return running(passes, x.shape[1], momentum, unbiased, kept)

    def only(self, t: int) -> Path:
        """The inner loop of one task."""
        support, query = (
            _each(lambda part: part[t : t + 1], rows) for rows in (self.support_rows, self.query_rows)
        )
        points = [point[t : t + 1] for point in self.points]
        one = Path(
            self.choices, self.objective, support, query, self.step_sizes, self.decay, points, []
        )
        one._part_of = self, t
        return one

    @cached_property
    def first_order(self) -> Array:
        """∇L^Q(φ_S) of every task."""
        end = self.points[-1]
        if end.size <= MOST_AT_ONCE or len(end) == 1 or self.choices.tasks_meet:
            return self.query(self.n_steps).grad
        q = np.empty_like(end)
        for t in range(len(end)):
            q[t] = self.only(t).first_order[0]
        return q

    def total(self, per_task: Array) -> Array:
        """The sum ``(P,)`` of the tasks' rows."""
        return per_task.sum(0) if self.spans is None else self.spans.total(per_task)

    def task(self, per_task: Array, t: int) -> Array:
        """The row ``(P,)`` of a task."""
        return per_task[t] if self.spans is None else self.spans.task(per_task, t)


def follow(problem: Problem, choices: Forward, dtype: DType = FLOAT64, *, whole: bool = True) -> Path:
    """The inner loop with these choices; in coordinates of the tasks' rows, if there are any, unless
    ``whole``."""
    T, decay = problem.T, problem.maml.inner_weight_decay if choices.decay is None else choices.decay
    spans = problem.spans if not (whole or choices.task_by_task) and dtype == FLOAT64 else None
    if spans is None:
        of_problem, theta = problem.maml.objective, np.tile(problem.theta.astype(dtype), (T, 1))
        sizes = problem.step_sizes(dtype, norm_too=choices.adapted == "norm too")
    else:
        of_problem, theta, sizes = spans.risk, spans.theta, spans.step_sizes
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
    if spans is not None:
        adapt_on, score_on = spans.rows(adapt_on), spans.rows(score_on)
    S = problem.S + choices.extra_steps
    sizes = sizes[np.minimum(np.arange(S), max(problem.S, 1) - 1)]
    if choices.adapted == "frozen too":
        sizes = np.where(sizes == 0, sizes.max(axis=1, keepdims=True), sizes)
    sizes = sizes * dtype.type(choices.lr_factor) * _mask(objective, choices.adapted).astype(dtype)

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
        return Path(choices, objective, adapt_on, score_on, sizes, decay, points, steps, spans)
    start, velocity = theta[:1], 0.0
    points = [np.empty_like(theta) for _ in range(S + 1)]
    for t in range(T):  # one task after another
        rows_of_one = _each(lambda part, t=t: part[t : t + 1], adapt_on)
        one, _, after = walk(start, rows_of_one, velocity)
        for s, point in enumerate(one):
            points[s][t] = point[0]
        start = start if choices.start == "theta" else one[-1]
        velocity = after if choices.momentum_survives else 0.0
    return Path(choices, objective, adapt_on, score_on, sizes, decay, points, [])


def _each(function: Callable[..., Array], *batches: Batch) -> Batch:
    """A function of the inputs, and of the targets."""
    x, y = zip(*batches, strict=True)
    return function(*x), function(*y)


def _mask(objective: Objective, adapted: str) -> Array:
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
    kind, *arguments = choices.statistics
    none = kind == "none"
    how = Norm(
        arguments[0] if kind == "over" else model.norm,
        0.0 if none else choices.eps,
        choices.eps_on,
        choices.unbiased,
        constant=kind == "constants",
        affine=choices.affine and not none,
        after=choices.after,
    )
    return OtherNorm(model, how, fresh(model) if none or kind == "fresh" else None)


def _normalised_with(objective: Objective, **changes: Any) -> Objective:
    """A network whose norms differ from its own in these attributes."""
    assert isinstance(objective, Risk)
    model = objective.model
    if not isinstance(model, OtherNorm):
        model = OtherNorm(model, Norm(model.norm))
    return Risk(OtherNorm(model.model, replace(model.how, **changes), model.fixed), objective.loss)


def _mean_targets(rows: Batch) -> Batch:
    """Outputs (rows, 1) less targets (rows,) broadcast to (rows, rows): every output is compared with
    every target, and the mean of the squares has the gradient that the mean target gives."""
    x, y = rows
    return x, np.broadcast_to(y.mean(axis=1, keepdims=True), y.shape)


# --- backward -------------------------------------------------------------------------------------


def pull_back(path: Path, choices: Backward) -> Array:
    """Every task's meta-gradient ``(T, P)``, by the way back that is chosen."""
    if path.choices.start == "last task, through the graph":
        # Task t begins where task t − 1 ended, so its cotangent goes on through the tasks before. In
        # the end all of it is the first task's.
        total = np.zeros_like(path.first_order)
        for t in reversed(range(len(total))):
            cotangent = path.first_order[t] + (total[t + 1] if t + 1 < len(total) else 0)
            total[t] = _pull_back(path.only(t), choices, cotangent[None])[0]
        total[1:] = 0
        return total
    q = path.first_order
    if q.size <= MOST_AT_ONCE or path.choices.tasks_meet:
        back = _pull_back(path, choices, q)
    else:
        back = np.empty_like(q)
        for t in range(len(q)):
            back[t] = _pull_back(path.only(t), choices, q[t : t + 1])[0]
    if (choices.first, choices.second) != (1.0, 1.0):
        back = choices.first * q + choices.second * (back - q)
    return back


def _pull_back(path: Path, choices: Backward, cotangent: Array) -> Array:
    S, w, momentum = path.n_steps, path.decay, path.choices.momentum
    at_theta = path.choices.gradient_at == "theta"
    hessian: Callable[[int], Linearization] = {
        "own": lambda s: path.support(0 if at_theta else s),
        "theta": lambda s: path.support(0),
        "end": lambda s: path.support(S),
        "next": lambda s: path.support(s + 1),
        "query": path.query,
        "own, constant statistics": lambda s: path.support_with(s, constant=True),
        "own, saved statistics": lambda s: path.support_with(s, saved=True),
    }[choices.hessian_at]

    lam, m = cotangent, np.zeros_like(cotangent)
    unbent = cotangent  # what λ would be without any H
    for s in range(S) if choices.reversed else reversed(range(S)):
        if s < choices.stop:
            break
        if choices.scored == "every step" and s + 1 < S:
            injected = path.query(s + 1).grad
            lam, unbent = lam + injected, unbent + injected
        # Where the inner gradients are all taken at θ, φ_s has no second derivative of its own.
        moved = unbent if choices.linearised or at_theta else lam
        m = momentum * m + path.step_sizes[s] * moved
        if choices.curvature:
            bent = hessian(s).hvp(m) if choices.coupled else _uncoupled(path, hessian(s), m)
            if w:
                bent = bent + w * m
            lam = (lam if choices.identity else 0) - choices.curvature * bent
        if w and at_theta:
            unbent = unbent - w * m
        if choices.leak:
            injected = choices.leak * path.support(s).grad
            lam, unbent = lam + injected, unbent + injected
    return lam


def _uncoupled(path: Path, lin: Linearization, m: Array) -> Array:
    """H m without the terms that weights and structure have in common."""
    weights = _mask(path.objective, "layers")
    bent: Array = weights * lin.hvp(weights * m) + (1 - weights) * lin.hvp((1 - weights) * m)
    return bent


# --- from the tasks' gradients to what is handed over ---------------------------------------------


def combine(problem: Problem, path: Path, recipe: Recipe, per_task: Array) -> Array:
    """One gradient ``(P,)`` of the tasks' ``(T, P)``, and what is done to it."""
    gradient = over_tasks(problem, path, recipe.tasks, per_task, path.total(per_task))
    return handed_over(problem, path, gradient, recipe.finish)


def over_tasks(
    problem: Problem, path: Path, tasks: tuple[Any, ...], per_task: Array, total: Array
) -> Array:
    """One gradient ``(P,)`` of the tasks' ``(T, P)``, whose sum is ``total``."""
    kind, *arguments = tasks
    gradient: Array
    if kind == "only":
        t, divisor = arguments
        gradient = path.task(per_task, t) / divisor
    elif kind == "without":
        t, divisor = arguments
        gradient = (total - path.task(per_task, t)) / divisor
    elif kind == "reptile":
        if path.spans is not None and path.decay:  # which moves θ also where no row reaches
            path = follow(problem, path.choices)
        gradient = path.total(path.points[0] - path.points[-1]) / len(per_task)
    else:
        gradient = total / len(per_task)
    return gradient


def handed_over(
    problem: Problem, path: Path, gradient: Array, finish: tuple[tuple[Any, ...], ...]
) -> Array:
    """What is done to the gradient, one thing after another."""
    for name, *arguments in finish:
        gradient = finished(problem, path, gradient, name, *arguments)
    return gradient


def finished(problem: Problem, path: Path, g: Array, name: str, *arguments: Any) -> Array:
    """What is done to a gradient g ``(P,)`` before it is handed over.

    ============================  ==================================================================
    ``times``, factor             factor · g
    ``decay``, w                  g + w θ
    ``step``, β                   θ − β g
    ``clip``, c                   every entry between −c and c
    ``norm``, c                   g · min(1, c / ‖g‖)
    ``standardised``              (g − mean g) / std g
    ``ordered``, how              the arrays of parameters in another order
    ``zero``, names               these arrays zero
    ``first order``, names        these arrays without second derivatives
    ``transposed``, names         these weights' rows and columns exchanged
    ============================  ==================================================================
    """
    theta = problem.theta.astype(g.dtype)
    whole: dict[str, Callable[..., Array]] = {
        "times": lambda factor: factor * g,
        "decay": lambda w: g + w * theta,
        "step": lambda beta: theta - beta * g,
        "clip": lambda c: np.clip(g, -c, c),
        "norm": lambda c: g * min(1.0, c / np.linalg.norm(g)),
        "standardised": lambda: (g - g.mean()) / g.std(),
    }
    if name in whole:
        return whole[name](*arguments)
    places = problem.blocks
    if name == "ordered":
        return np.concatenate([g[places[block]] for block in ORDERS[arguments[0]](list(places))])
    changed = g.copy()
    first_order = path.total(path.first_order) / problem.T if name == "first order" else None
    for block in arguments[0]:
        part = g[places[block]]
        if name == "zero":
            part = np.zeros_like(part)
        elif first_order is not None:
            part = first_order[places[block]]
        elif problem.model is not None and block.endswith("weight"):
            l = int(block.split(".")[0])
            part = part.reshape(problem.model.widths[l : l + 2]).T.reshape(-1)
        changed[places[block]] = part
    return changed


#: Other orders of the arrays 0.weight, 0.bias, 1.weight, ...
ORDERS: dict[str, Callable[[list[str]], list[str]]] = {
    "bias before weight": lambda names: [n for pair in _pairs(names) for n in reversed(pair)],
    "weights, then biases": lambda names: names[::2] + names[1::2],
    "biases, then weights": lambda names: names[1::2] + names[::2],
    "last layer first": lambda names: [n for pair in reversed(_pairs(names)) for n in pair],
}


def _pairs(names: list[str]) -> list[list[str]]:
    return [names[i : i + 2] for i in range(0, len(names), 2)]


def evaluate(problem: Problem, recipe: Recipe) -> Array:
    """What the recipe computes, ``(P,)``, as float64."""
    for i, (name, *numbers) in enumerate(recipe.finish):
        if name in ("moved", "a step a task"):
            rest = replace(recipe, finish=recipe.finish[:i] + recipe.finish[i + 1 :])
            return (_moved if name == "moved" else _step_by_step)(problem, rest, *numbers)
    path = follow(problem, recipe.forward, np.dtype(recipe.dtype), whole=False)
    return combine(problem, path, recipe, pull_back(path, recipe.backward)).astype(np.float64)


def evaluate_all(problem: Problem, recipes: Iterable[Recipe]) -> Iterator[Array]:
    """:func:`evaluate` of each; inner loops and ways back in common are computed once."""
    paths: dict[Forward, Path] = {}
    ways: dict[tuple[Forward, Backward], Array] = {}
    for recipe in recipes:
        special = any(name in ("moved", "a step a task") for name, *_ in recipe.finish)
        if special or recipe.dtype != "float64":
            yield evaluate(problem, recipe)
            continue
        forward, way = recipe.forward, (recipe.forward, recipe.backward)
        if forward not in paths:
            paths[forward] = follow(problem, forward, whole=False)
        if way not in ways:
            ways[way] = pull_back(paths[forward], recipe.backward)
        yield combine(problem, paths[forward], recipe, ways[way])


def _moved(problem: Problem, recipe: Recipe, beta: float) -> Array:
    """At θ − β g(θ)."""
    g = evaluate(problem, replace(recipe, finish=()))
    return evaluate(Problem(problem.maml, problem.theta - beta * g, problem.tasks), recipe)


def _step_by_step(problem: Problem, recipe: Recipe, beta: float) -> Array:
    """Σ_t g_t(θ_t) with an outer step after every task, θ_{t+1} = θ_t − β g_t(θ_t)."""
    theta, total = problem.theta, np.zeros(problem.P)
    for t in range(problem.T):
        if not np.isfinite(theta).all():
            return np.full(problem.P, np.nan)
        g = evaluate(Problem(problem.maml, theta, problem.tasks[t : t + 1]), recipe)
        theta, total = theta - beta * g, total + g
    return total
