"""Mistakes of the way back: the inner loop is right, and its derivative is not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from npmeta.verification.doctor.choices import Backward
from npmeta.verification.doctor.faults.base import Fault, Variant, where
from npmeta.verification.doctor.problem import Problem


def _detached(problem: Problem) -> Iterator[Variant]:
    for j in range(1, problem.S):
        yield Variant(Backward(stop=j), f"j = {j}", float(j))


def _backward_lr(problem: Problem) -> Iterator[Variant]:
    if problem.S == 0:
        return
    alpha = np.asarray(problem.maml.inner_lr)
    factors = {2.0: "2 α", 0.5: "α / 2"}
    if alpha.ndim == 0 and alpha != 0:
        factors.setdefault(1 / float(alpha), "1 in its place")
    for size, letter in ((problem.K, "K"), (problem.n_outputs, "d_out"), (problem.Q, "Q")):
        factors.setdefault(float(size), f"{letter} α")
        factors.setdefault(1 / size, f"α / {letter}")
    factors.setdefault(float(problem.K * problem.n_outputs), "K d_out α")
    for factor, name in factors.items():
        if factor != 1:
            yield Variant(Backward(curvature=factor), name, factor)


def _second_order_weight(problem: Problem) -> Iterator[Variant]:
    if problem.S:
        for weight in (0.5, 2.0, -1.0):
            yield Variant(Backward(second=weight), factor=weight)


def _uncoupled(problem: Problem) -> Iterator[Variant]:
    if problem.model is not None and problem.S and problem.model.structure is not None:
        yield Variant(Backward(coupled=False))


def _leaked(problem: Problem) -> Iterator[Variant]:
    if problem.S:
        yield Variant(Backward(leak=1.0), "of every task, averaged", 1.0)
        if problem.T > 1:
            yield Variant(Backward(leak=float(problem.T)), "of every task, summed", float(problem.T))


#: In the order of how simple they are: of several that fit, the first is named.
BACKWARD = [
    Fault("first_order", "backward", where(Backward(curvature=0.0), steps=1)),
    Fault("detached", "backward", _detached),
    Fault("hessian_at_theta", "backward", where(Backward(hessian_at="theta"), steps=2)),
    Fault("hessian_at_end", "backward", where(Backward(hessian_at="end"), steps=1)),
    Fault("hessian_at_next", "backward", where(Backward(hessian_at="next"), steps=1)),
    Fault("query_hessian", "backward", where(Backward(hessian_at="query"), steps=1)),
    Fault("reversed_product", "backward", where(Backward(reversed=True), steps=2)),
    Fault("linearised", "backward", where(Backward(linearised=True), steps=2)),
    Fault("hessian_sign", "backward", where(Backward(curvature=-1.0), steps=1)),
    Fault("identity_lost", "backward", where(Backward(identity=False), steps=1)),
    Fault("first_order_part_lost", "backward", where(Backward(first=0.0), steps=1)),
    Fault("cross_terms_lost", "backward", _uncoupled),
    Fault("backward_lr", "backward", _backward_lr),
    Fault("second_order_weight", "backward", _second_order_weight),
    Fault("support_gradients_leaked", "backward", _leaked),
    Fault("loss_after_every_step", "backward", where(Backward(scored="every step"), steps=2)),
]
