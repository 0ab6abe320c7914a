r"""The way back through an inner loop, as it is chosen.

With a momentum μ and a weight decay w that are both zero unless somebody has put them there,

.. math:: v_s = \mu v_{s-1} + \nabla L^S(\varphi_s) + w \varphi_s, \qquad
          &\varphi_{s+1} = \varphi_s - \alpha_s \circ v_s, \\
          m_s = \mu m_{s+1} + \alpha_s \circ \lambda_{s+1}, \qquad
          &\lambda_s = \lambda_{s+1} - (H_s + w I) m_s .
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from npmeta._support.validation import Array
from npmeta.bilevel.objective import Linearization, Risk
from npmeta.verification.doctor.choices import Backward
from npmeta.verification.doctor.inner_loop import InnerLoop, adapted_by

#: Numbers in the cotangents of ways back that are gone side by side.
MOST_TOGETHER = 100_000

#: Where Hessians are taken that differ by the point alone.
AT_POINTS = ("own", "theta", "end", "next")


def pull_back(loop: InnerLoop, choices: Backward) -> Array:
    """Every task's meta-gradient ``(T, P)``, by the way back that is chosen."""
    ((_, back),) = ways_back(loop, [choices])
    return back


def ways_back(loop: InnerLoop, several: Collection[Backward]) -> Iterator[tuple[Backward, Array]]:
    """:func:`pull_back` by each of several choices; of small problems many are gone side by side."""
    together = max(MOST_TOGETHER // max(loop.points[0].size, 1), 1)
    through_graph = loop.choices.start == "last task, through the graph"
    # Rows that meet, or tasks that do not all begin at θ, cannot stand beside copies of themselves.
    side_by_side = (
        isinstance(loop.objective, Risk)
        and loop.all_at_once
        and not loop.choices.tasks_meet
        and not through_graph
    )
    plain = [one for one in several if side_by_side and one.hessian_at in AT_POINTS and one.coupled]
    gone: dict[Backward, Array] = {}
    for choices in several:
        if plain and choices is plain[0]:
            group, plain = plain[:together], plain[together:]
            with np.errstate(all="ignore"):
                gone = dict(zip(group, _pull_back(loop, group, loop.first_order), strict=True))
        back = gone.pop(choices) if choices in gone else _alone(loop, choices)
        yield choices, back if through_graph else _blended(loop, choices, back)


@np.errstate(all="ignore")  # some run away
def _blended(loop: InnerLoop, choices: Backward, back: Array) -> Array:
    """First-order part and the rest, each as often as it counts."""
    if (choices.first, choices.second) == (1.0, 1.0):
        return back
    q = loop.first_order
    return choices.first * q + choices.second * (back - q)


@np.errstate(all="ignore")
def _alone(loop: InnerLoop, choices: Backward) -> Array:
    q = loop.first_order
    if loop.choices.start == "last task, through the graph":
        # Task t begins where task t − 1 ended, so its cotangent goes on through the tasks before. In
        # the end all of it is the first task's.
        total = np.zeros_like(q)
        for t in reversed(range(len(total))):
            cotangent = q[t] + (total[t + 1] if t + 1 < len(total) else 0)
            total[t] = _pull_back(loop.only(t), [choices], cotangent[None])[0, 0]
        total[1:] = 0
        return total
    if loop.all_at_once:
        return _pull_back(loop, [choices], q)[0]
    back = np.empty_like(q)
    for t in range(len(q)):
        back[t] = _pull_back(loop.only(t), [choices], q[t : t + 1])[0, 0]
    return back


@np.errstate(all="ignore")
def _pull_back(loop: InnerLoop, group: Sequence[Backward], cotangent: Array) -> Array:
    """λ_0 of each way back, ``(ways, T, P)``, from λ_S ``(T, P)``."""
    S, w, momentum = loop.n_steps, loop.decay, loop.choices.momentum
    at_theta = loop.choices.gradient_at == "theta"

    def each(name: str, dtype: type | np.dtype = cotangent.dtype) -> Array:
        return np.array([getattr(choices, name) for choices in group], dtype)[:, None, None]

    curvature, stop = each("curvature"), each("stop", int)
    identity, linearised = each("identity", bool), each("linearised", bool)
    reverse = each("reversed", bool)

    lam = np.repeat(cotangent[None], len(group), axis=0)
    unbent, m = lam, np.zeros_like(lam)  # unbent: what λ would be without any H
    stopped = np.zeros(stop.shape, dtype=bool)
    for k in range(S):
        s = np.where(reverse, k, S - 1 - k)
        stopped = stopped | (s < stop)
        if stopped.all():
            break
        before = lam
        injected = np.zeros_like(lam)
        for way, choices in enumerate(group):
            if choices.scored == "every step" and s.flat[way] + 1 < S:
                injected[way] = loop.query(int(s.flat[way]) + 1).grad
        lam, unbent = lam + injected, unbent + injected
        # Where the inner gradients are all taken at θ, φ_s has no second derivative of its own.
        moved = unbent if at_theta else np.where(linearised, unbent, lam)
        m = momentum * m + loop.step_sizes[s[:, 0, 0]][:, None] * moved
        if curvature.any():
            bent = _products(loop, group, [int(i) for i in s.flat], m)
            if w:
                bent = bent + w * m
            lam = np.where(curvature != 0, np.where(identity, lam, 0) - curvature * bent, lam)
        if w and at_theta:
            unbent = unbent - w * m
        injected = np.zeros_like(lam)
        for way, choices in enumerate(group):
            if choices.leak:
                injected[way] = choices.leak * loop.support(int(s.flat[way])).grad
        lam, unbent = lam + injected, unbent + injected
        lam = np.where(stopped, before, lam)
    return lam


def _products(loop: InnerLoop, group: Sequence[Backward], steps: Sequence[int], m: Array) -> Array:
    """H m of each way back at its step, ``(ways, T, P)``."""
    if len(group) == 1:
        lin = _hessian(loop, group[0], steps[0])
        return (lin.hvp(m[0]) if group[0].coupled else _uncoupled(loop, lin, m[0]))[None]
    places = [_place(loop, choices, s) for choices, s in zip(group, steps, strict=True)]
    points = np.concatenate([loop.points[place] for place in places])
    x, y = (np.concatenate([part] * len(group)) for part in loop.support_rows)
    lin = loop.objective.at(loop.objective.hold(points), (x, y))
    return lin.hvp(m.reshape(points.shape)).reshape(m.shape)


def _place(loop: InnerLoop, choices: Backward, s: int) -> int:
    """i, where the Hessian is that at φ_i."""
    own = 0 if loop.choices.gradient_at == "theta" else s
    return {"own": own, "theta": 0, "end": loop.n_steps, "next": s + 1}[choices.hessian_at]


def _hessian(loop: InnerLoop, choices: Backward, s: int) -> Linearization:
    kind = choices.hessian_at
    if kind == "query":
        return loop.query(s)
    if kind == "own, constant statistics":
        return loop.support_with(s, constant=True)
    if kind == "own, saved statistics":
        return loop.support_with(s, saved=True)
    return loop.support(_place(loop, choices, s))


def _uncoupled(loop: InnerLoop, lin: Linearization, m: Array) -> Array:
    """H m without the terms that weights and structure have in common."""
    weights = adapted_by(loop.objective, "layers")
    return weights * lin.hvp(weights * m) + (1 - weights) * lin.hvp((1 - weights) * m)
