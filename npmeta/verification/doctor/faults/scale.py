"""Right but for a factor."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from npmeta.verification.doctor.faults.base import Fault, Variant, always
from npmeta.verification.doctor.problem import Problem

__all__ = ["CLIP_NORMS", "SCALE"]

#: What gradients are commonly clipped to.
CLIP_NORMS = (0.01, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 50.0, 100.0, 1000.0)


def _norm_clipped(problem: Problem) -> Iterator[Variant]:
    norm = np.linalg.norm(problem.gradient)
    below = [c for c in CLIP_NORMS if c < 0.99 * norm]
    if below:
        yield Variant({"finish": (("norm", below[-1]),)}, factor=below[-1])


def _times(factor: Callable[[Problem], float]) -> Callable[[Problem], Iterator[Variant]]:
    def variants(problem: Problem) -> Iterator[Variant]:
        value = float(factor(problem))
        if value != 1:
            yield Variant({"finish": (("times", value),)}, factor=value)

    return variants


def _scale(
    id: str, formula: str, cause: str, pytorch: str, jax: str, factor: Callable[[Problem], float]
) -> Fault:
    return Fault(id, "scale", formula, cause, pytorch, jax, _times(factor))


_OUTER_TORCH = "reduction='mean' in the query loss, once."
_OUTER_JAX = "jnp.mean, not jnp.sum, in the query loss, once."

#: In the order of how simple they are: of several that fit, the first is named.
SCALE = [
    _scale(
        "summed_over_tasks",
        "T g",
        "A sum over the tasks, not their mean.",
        "Divide the sum of the query losses by T before backward().",
        "jnp.mean over the axis of vmap, not jnp.sum.",
        lambda p: p.T,
    ),
    _scale(
        "divided_by_tasks_twice",
        "g / T",
        "Divided by the number of tasks twice.",
        "Divide by T once: in the loss or in the gradient.",
        "Divide by T once: jnp.mean in the loss has done it.",
        lambda p: 1 / p.T,
    ),
    _scale(
        "times_query_rows",
        "Q g",
        "The query loss is a sum over its rows, not a mean.",
        _OUTER_TORCH,
        _OUTER_JAX,
        lambda p: p.Q,
    ),
    _scale(
        "times_support_rows",
        "K g",
        "A factor K: a mean and a sum over the support rows have been mixed up.",
        _OUTER_TORCH,
        _OUTER_JAX,
        lambda p: p.K,
    ),
    _scale(
        "times_outputs",
        "d_out g",
        "The query loss is a sum over the outputs, not a mean.",
        _OUTER_TORCH,
        _OUTER_JAX,
        lambda p: p.n_outputs,
    ),
    _scale(
        "times_query_rows_and_outputs",
        "Q d_out g",
        "The query loss is a sum over rows and outputs, not a mean.",
        _OUTER_TORCH,
        _OUTER_JAX,
        lambda p: p.Q * p.n_outputs,
    ),
    _scale(
        "over_query_rows",
        "g / Q",
        "The query loss is divided by its number of rows twice.",
        _OUTER_TORCH,
        _OUTER_JAX,
        lambda p: 1 / p.Q,
    ),
    _scale(
        "over_support_rows",
        "g / K",
        "A factor 1/K: the outer loss is divided by the support rows.",
        _OUTER_TORCH,
        _OUTER_JAX,
        lambda p: 1 / p.K,
    ),
    _scale(
        "over_outputs",
        "g / d_out",
        "The query loss is a mean over outputs where it should be a sum.",
        _OUTER_TORCH,
        _OUTER_JAX,
        lambda p: 1 / p.n_outputs,
    ),
    _scale(
        "doubled",
        "2 g",
        "Twice the gradient: a second backward pass added the same again, or a ½ is missing.",
        "zero_grad() before every iteration: .grad adds up. And look for a missing ½ in the loss.",
        "Look for a gradient that is carried over from the iteration before, or a missing ½.",
        lambda p: 2,
    ),
    _scale(
        "halved",
        "g / 2",
        "Half the gradient: a factor ½ in the query loss.",
        "F.mse_loss has no factor ½; drop yours.",
        "optax.l2_loss has a factor ½; use (o − y)².",
        lambda p: 0.5,
    ),
    _scale(
        "negated",
        "−g",
        "The sign is wrong: the gradient of what is maximised.",
        "Return the gradient, not the direction of descent.",
        "Return the gradient, not the update that optax adds to params.",
        lambda p: -1,
    ),
    Fault(
        "norm_clipped",
        "scale",
        "g · min(1, c/‖g‖)",
        "The gradient is clipped to a norm.",
        "Hand over the gradient before clip_grad_norm_.",
        "Hand over the gradient before clip_by_global_norm.",
        _norm_clipped,
    ),
    Fault(
        "update",
        "scale",
        "−β g",
        "The update, not the gradient.",
        "Hand over p.grad, not the change of p.",
        "Hand over the gradient, not the updates that the optimizer returns.",
        always(factor=-0.01, finish=(("times", -0.01),)),
    ),
    Fault(
        "scaled",
        "scale",
        "c g, any c > 0",
        "The right direction, times a factor that has no name here.",
        "Look for that factor in the loss, or in what is done to its gradient.",
        "Look for that factor in the loss, or in what is done to its gradient.",
        always(factor=1.7, finish=(("times", 1.7),)),
    ),
]
