"""Mistakes of the way back: the inner loop is right, and its derivative is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from npmeta.verification.doctor.faults.base import Fault, Variant
from npmeta.verification.doctor.problem import Problem

__all__ = ["BACKWARD"]


def _steps(at_least: int = 1, **changes: object) -> Callable[[Problem], Iterator[Variant]]:
    """In problems of so many inner steps."""

    def variants(problem: Problem) -> Iterator[Variant]:
        if at_least <= problem.S:
            yield Variant(changes)

    return variants


def _detached(problem: Problem) -> Iterator[Variant]:
    for j in range(1, problem.S):
        yield Variant({"stop": j}, f"j = {j}", float(j))


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
            yield Variant({"curvature": factor}, name, factor)


def _second_order_weight(problem: Problem) -> Iterator[Variant]:
    if problem.S:
        for weight in (0.5, 2.0, -1.0):
            yield Variant({"second": weight}, factor=weight)


def _uncoupled(problem: Problem) -> Iterator[Variant]:
    if problem.model is not None and problem.S and problem.model.structure is not None:
        yield Variant({"coupled": False})


def _leaked(problem: Problem) -> Iterator[Variant]:
    if problem.S:
        yield Variant({"leak": 1.0}, "of every task, averaged", 1.0)
        if problem.T > 1:
            yield Variant({"leak": float(problem.T)}, "of every task, summed", float(problem.T))


_LEAVE_ALONE = "Leave the Hessian to autograd: torch.autograd.grad(inner_loss, phi, create_graph=True)."
_LEAVE_ALONE_JAX = "Leave the Hessian to jax.grad through the loop; no stop_gradient, no custom_vjp."


def _by_hand(id: str, formula: str, cause: str, at_least: int, **changes: object) -> Fault:
    """A mistake in an adjoint that is written out by hand."""
    return Fault(
        id, "backward", formula, cause, _LEAVE_ALONE, _LEAVE_ALONE_JAX, _steps(at_least, **changes)
    )


#: In the order of how simple they are: of several that fit, the first is named.
BACKWARD = [
    Fault(
        "first_order",
        "backward",
        "q",
        "No second derivatives: the inner gradients are constants to the outer one.",
        "create_graph=True in the inner torch.autograd.grad; no detach(), no .data, no no_grad().",
        "No lax.stop_gradient on the inner gradient; one jax.grad around the whole inner loop.",
        _steps(curvature=0.0),
    ),
    Fault(
        "detached",
        "backward",
        "(I − αH_j) ⋯ (I − αH_{S−1}) q",
        "The graph is cut before step j: the steps before count as first order.",
        "create_graph=True in every step; do not detach phi after the first ones.",
        "No stop_gradient between steps; one jax.grad around all of them.",
        _detached,
    ),
    _by_hand(
        "hessian_at_theta",
        "(I − αH_0)^S q",
        "Every Hessian is taken at θ, not at its own step's φ_s.",
        2,
        hessian_at="theta",
    ),
    _by_hand(
        "hessian_at_end",
        "(I − αH_S)^S q",
        "Every Hessian is taken at the adapted parameters φ_S.",
        1,
        hessian_at="end",
    ),
    _by_hand(
        "hessian_at_next",
        "(I − αH_1) ⋯ (I − αH_S) q",
        "The Hessian of a step is taken at the point the step leads to.",
        1,
        hessian_at="next",
    ),
    _by_hand(
        "query_hessian",
        "H_s → ∇²L^Q(φ_s)",
        "The Hessian is that of the query loss; the inner loop descends on the support loss.",
        1,
        hessian_at="query",
    ),
    _by_hand(
        "reversed_product",
        "(I − αH_{S−1}) ⋯ (I − αH_0) q",
        "The steps are gone back through first one first; the last one must come first.",
        2,
        reversed=True,
    ),
    _by_hand(
        "linearised",
        "(I − α Σ_s H_s) q",
        "Every Hessian is applied to q; a step's belongs on the cotangent of the step after.",
        2,
        linearised=True,
    ),
    _by_hand(
        "hessian_sign",
        "(I + αH_0) ⋯ (I + αH_{S−1}) q",
        "The Hessian term has the wrong sign: the step is a descent.",
        1,
        curvature=-1.0,
    ),
    _by_hand(
        "identity_lost",
        "(−αH_0) ⋯ (−αH_{S−1}) q",
        "The update's own path is lost: φ_{s+1} = φ_s − … has a derivative I by φ_s.",
        1,
        identity=False,
    ),
    _by_hand(
        "first_order_part_lost",
        "g − q",
        "The first-order part is missing.",
        1,
        first=0.0,
    ),
    Fault(
        "cross_terms_lost",
        "backward",
        "∂²L/∂weights∂structure → 0",
        "The Hessian has no cross terms of weights with mixtures and gates.",
        _LEAVE_ALONE,
        _LEAVE_ALONE_JAX,
        _uncoupled,
    ),
    Fault(
        "backward_lr",
        "backward",
        "(I − cαH_0) ⋯ (I − cαH_{S−1}) q",
        "The way back has another step size than the inner loop.",
        "Use one inner_lr for the update and for its derivative; autograd does that by itself.",
        "Use one inner_lr for the update and for its derivative; jax.grad does that by itself.",
        _backward_lr,
    ),
    Fault(
        "second_order_weight",
        "backward",
        "q + c (g − q)",
        "The second-order part counts c times.",
        "Return the gradient of the query loss by θ alone; no blending with the first-order one.",
        "Return the gradient of the query loss by θ alone; no blending with the first-order one.",
        _second_order_weight,
    ),
    Fault(
        "support_gradients_leaked",
        "backward",
        "g + Σ_k dL^S(φ_k)/dθ",
        "The inner gradients land in the accumulator that the outer ones are read from.",
        "torch.autograd.grad in the inner loop; loss.backward() there adds to θ's .grad as well.",
        "Differentiate the query loss alone; do not return or add up the support losses.",
        _leaked,
    ),
    Fault(
        "loss_after_every_step",
        "backward",
        "d/dθ Σ_s L^Q(φ_s), s = 1..S",
        "The query loss is added up after every step (MAML++'s multi-step loss).",
        "Compute the query loss once, after the loop.",
        "Compute the query loss once, on the carry that scan returns; do not sum its outputs.",
        _steps(2, scored="every step"),
    ),
]
