r"""The way back through an inner loop, as it is chosen.

With a momentum μ and a weight decay w that are both zero unless somebody has put them there,

.. math:: v_s = \mu v_{s-1} + \nabla L^S(\varphi_s) + w \varphi_s, \qquad
          &\varphi_{s+1} = \varphi_s - \alpha_s \circ v_s, \\
          m_s = \mu m_{s+1} + \alpha_s \circ \lambda_{s+1}, \qquad
          &\lambda_s = \lambda_{s+1} - (H_s + w I) m_s .
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from npmeta._support.validation import Array
from npmeta.bilevel.objective import Linearization
from npmeta.verification.doctor.choices import Backward
from npmeta.verification.doctor.inner_loop import InnerLoop, adapted_by


def pull_back(loop: InnerLoop, choices: Backward) -> Array:
    """Every task's meta-gradient ``(T, P)``, by the way back that is chosen."""
    if loop.choices.start == "last task, through the graph":
        # Task t begins where task t − 1 ended, so its cotangent goes on through the tasks before. In
        # the end all of it is the first task's.
        total = np.zeros_like(loop.first_order)
        for t in reversed(range(len(total))):
            cotangent = loop.first_order[t] + (total[t + 1] if t + 1 < len(total) else 0)
            total[t] = _pull_back(loop.only(t), choices, cotangent[None])[0]
        total[1:] = 0
        return total
    q = loop.first_order
    if loop.all_at_once:
        back = _pull_back(loop, choices, q)
    else:
        back = np.empty_like(q)
        for t in range(len(q)):
            back[t] = _pull_back(loop.only(t), choices, q[t : t + 1])[0]
    if (choices.first, choices.second) != (1.0, 1.0):
        back = choices.first * q + choices.second * (back - q)
    return back


def _pull_back(loop: InnerLoop, choices: Backward, cotangent: Array) -> Array:
    S, w, momentum = loop.n_steps, loop.decay, loop.choices.momentum
    at_theta = loop.choices.gradient_at == "theta"
    hessian: Callable[[int], Linearization] = {
        "own": lambda s: loop.support(0 if at_theta else s),
        "theta": lambda s: loop.support(0),
        "end": lambda s: loop.support(S),
        "next": lambda s: loop.support(s + 1),
        "query": loop.query,
        "own, constant statistics": lambda s: loop.support_with(s, constant=True),
        "own, saved statistics": lambda s: loop.support_with(s, saved=True),
    }[choices.hessian_at]

    lam, m = cotangent, np.zeros_like(cotangent)
    unbent = cotangent  # what λ would be without any H
    for s in range(S) if choices.reversed else reversed(range(S)):
        if s < choices.stop:
            break
        if choices.scored == "every step" and s + 1 < S:
            injected = loop.query(s + 1).grad
            lam, unbent = lam + injected, unbent + injected
        # Where the inner gradients are all taken at θ, φ_s has no second derivative of its own.
        moved = unbent if choices.linearised or at_theta else lam
        m = momentum * m + loop.step_sizes[s] * moved
        if choices.curvature:
            bent = hessian(s).hvp(m) if choices.coupled else _uncoupled(loop, hessian(s), m)
            if w:
                bent = bent + w * m
            lam = (lam if choices.identity else 0) - choices.curvature * bent
        if w and at_theta:
            unbent = unbent - w * m
        if choices.leak:
            injected = choices.leak * loop.support(s).grad
            lam, unbent = lam + injected, unbent + injected
    return lam


def _uncoupled(loop: InnerLoop, lin: Linearization, m: Array) -> Array:
    """H m without the terms that weights and structure have in common."""
    weights = adapted_by(loop.objective, "layers")
    return weights * lin.hvp(weights * m) + (1 - weights) * lin.hvp((1 - weights) * m)
