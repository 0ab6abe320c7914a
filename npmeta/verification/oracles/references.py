r"""Meta-gradients from first-order code alone: three oracles that share nothing with the R-operator.

They use an objective's values and gradients, never its Hessian products, and never the inner loop, the
adjoint or the forms of weights that MAML's own meta-gradient is made of.

* :func:`~npmeta.verification.meta_gradient`: the adjoint, with Hessian products by complex step of the
  gradient,

  .. math:: \lambda_s = \lambda_{s+1} - \operatorname{Im}
            \nabla L^S(\varphi_s + i h \, \alpha_s \circ \lambda_{s+1}) / h ,

  which costs S complex gradients and is as exact as the arithmetic: nothing is subtracted, and h² is
  below the smallest number there is.
* :func:`~npmeta.verification.complex_step`: Im of the meta-loss at θ + ihe_j, for every parameter j.
  It knows no adjoint.
* :func:`~npmeta.verification.richardson`: differences of the meta-loss along real directions,
  extrapolated, in extended precision where the platform has it. It knows no complex numbers.

All of npmeta's activations and losses are complex-safe: they branch on real parts only. In extended
precision all work but gelu, for which SciPy has no such function. (Some constants are rounded to
float64, 2/(rows · outputs) in mse for one, so that methods agree to 1e-16 there, not to 1e-19.)
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from npmeta._support.validation import Array, as_precision, lookup
from npmeta.algorithms import MAML
from npmeta.algorithms.base import MetaParameters, named
from npmeta.bilevel.objective import Batch, Objective
from npmeta.tasks import TaskBatch
from npmeta.verification.oracles.differences import Difference, differentiate
from npmeta.verification.oracles.kinks import nearest_kink
from npmeta.verification.oracles.meta_loss import MetaLoss, check_maml, tiny_step, value_and_gradient

#: Samples of what rounding does to a result.
TRIALS = 6


def extended() -> bool:
    """Whether this platform's long double is longer than float64."""
    return bool(np.finfo(np.longdouble).eps < np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class Reference:
    """A meta-gradient from an oracle, and how much of it rounding leaves open.

    Attributes
    ----------
    loss : float
        Mean query loss after adaptation.
    task_loss : ndarray, (T,)
    grads : dict of ndarray
        Derivatives of ``loss`` by "theta" and "inner_lr", each in the shape of the parameter.
    first_order : ndarray, (P,)
        The first-order approximation of the derivative by theta.
    error : dict of ndarray
        For every entry of ``grads``, how far it moves when θ, α and the inputs move by a few
        roundings in the precision asked for and the arithmetic is done in that precision: what a
        correct computation in that precision may be off by. (The oracle itself computes in float64.)
    loss_error : float
        The same for ``loss``.
    """

    loss: float
    task_loss: Array
    grads: dict[str, Array]
    first_order: Array
    error: dict[str, Array]
    loss_error: float

    @property
    def grad(self) -> Array:
        """The derivative by theta, ``(P,)``."""
        return self.grads["theta"]


def meta_gradient(
    maml: MAML,
    params: ArrayLike | MetaParameters,
    tasks: TaskBatch,
    *,
    precision: DTypeLike | None = None,
    products: str = "complex step",
    trials: int = TRIALS,
) -> Reference:
    """The meta-gradient by the adjoint, with Hessian products made of first-order gradients.

    Parameters
    ----------
    maml : MAML
        Its objective, step sizes, steps, decay and ``first_order`` say what is differentiated.
    params : array_like (P,), or mapping
        As in :meth:`npmeta.MAML.meta_gradient`.
    tasks : TaskBatch
    precision : {float64, float32}, optional
        Whose rounding ``error`` is about: that of the gradient to be judged. By default that of
        theta. Data and step sizes are rounded to the dtype of theta first, as MAML rounds them.
    products : {"complex step", "difference"}
        "difference" is for objectives that do not take complex parameters: it extrapolates real
        differences of the gradient, and loses four or five digits.
    trials : int
        Samples for ``error``; without any it is zero, and the oracle takes a seventh of the time.

    Returns
    -------
    Reference

    Raises
    ------
    ValueError
        If the arguments do not fit, or the objective turns out not to be complex-safe.
    """
    product = lookup(products, PRODUCTS, "kind of products")
    meta_loss = MetaLoss.of(maml, params, tasks)
    if products == "complex step":
        _check_complex_safe(meta_loss)
    with np.errstate(all="ignore"):  # a loop that runs away is for the caller to see
        base = _adjoint(meta_loss.cast(np.float64), product)
        judged = meta_loss.theta.dtype if precision is None else as_precision(precision, "precision")
        samples = [
            _adjoint(meta_loss.moved(np.random.default_rng(trial), judged), product)
            for trial in range(trials)
        ]
    names = list(base.grads) if "inner_lr" in named(params) else ["theta"]
    error = {
        name: np.max([_distance(s.grads[name], base.grads[name]) for s in samples], axis=0, initial=0)
        for name in names
    }
    loss_error = max((_distance(s.loss, base.loss) for s in samples), default=0.0)
    grads = {name: base.grads[name] for name in names}
    return replace(base, grads=grads, error=error, loss_error=float(loss_error))


def complex_step(
    maml: MAML, params: ArrayLike | MetaParameters, tasks: TaskBatch, *, dtype: DTypeLike = np.float64
) -> dict[str, Array]:
    """The meta-gradient entry by entry, Im L(θ + ihe_j)/h, in float64 or in longdouble.

    It takes P complex inner loops: for small networks. ``maml.first_order`` is a ValueError, since
    the first-order gradient is the derivative of nothing.
    """
    _refuse_first_order(maml)
    meta_loss = MetaLoss.of(maml, params, tasks)
    _check_complex_safe(meta_loss)
    meta_loss = meta_loss.cast(dtype)
    P, n = meta_loss.theta.size, meta_loss.alpha.size if "inner_lr" in named(params) else 0
    h = tiny_step(meta_loss.theta.dtype)
    derivative = np.empty(P + n, dtype=meta_loss.theta.dtype)
    for start, directions in meta_loss.in_stacks(np.eye(P + n, dtype=meta_loss.theta.dtype)):
        by_theta = 1j * h * directions[:, :P]
        by_alpha = np.zeros((len(directions), meta_loss.alpha.size), dtype=by_theta.dtype)
        by_alpha[:, :n] = 1j * h * directions[:, P:]
        losses = meta_loss.values(meta_loss.theta + by_theta, meta_loss.alpha + by_alpha)
        derivative[start : start + len(directions)] = losses.imag / h
    grads = {"theta": derivative[:P]}
    if n:
        grads["inner_lr"] = derivative[P:].reshape(meta_loss.alpha_shape)
    return grads


def richardson(
    maml: MAML,
    params: ArrayLike | MetaParameters,
    tasks: TaskBatch,
    directions: ArrayLike | None = None,
    *,
    dtype: DTypeLike | None = None,
) -> Difference:
    """Derivatives of the meta-loss along directions in theta, by extrapolated differences.

    Parameters
    ----------
    maml, params, tasks
        As in :func:`meta_gradient`.
    directions : array_like, (D, P), optional
        By default every parameter's own.
    dtype : optional
        float64, or longdouble, the default where it is longer.

    Returns
    -------
    Difference
        ``.value (D,)`` with ``.error (D,)``. No difference reaches further than half the way to the
        nearest kink.
    """
    _refuse_first_order(maml)
    if dtype is None:
        dtype = np.longdouble if extended() else np.float64
    meta_loss = MetaLoss.of(maml, params, tasks).cast(dtype)
    v = np.eye(meta_loss.theta.size) if directions is None else np.atleast_2d(np.asarray(directions))
    reach = np.array([nearest_kink(maml, params, tasks, one) for one in v])
    size = np.sqrt((v * v).sum(-1))
    scale = ((np.sqrt(np.mean(meta_loss.theta**2)) or 1) / np.where(size > 0, size, 1)).astype(dtype)
    alpha = np.broadcast_to(meta_loss.alpha, (len(v), meta_loss.alpha.size))

    def f(t: Array) -> Array:
        points = meta_loss.theta + t[:, None] * v
        parts = [
            meta_loss.values(points[start : start + len(part)], alpha[start : start + len(part)])
            for start, part in meta_loss.in_stacks(points)
        ]
        return np.concatenate(parts)

    return differentiate(f, scale, reach)


# --- the adjoint ------------------------------------------------------------------------------------


def _complex_step_product(objective: Objective, phi: Array, batch: Batch, v: Array) -> Array:
    """H v = Im ∇L(φ + ihv)/h, for v of any size: the step goes along v/|v|."""
    h = tiny_step(phi.dtype)
    largest = np.abs(v).max(-1, keepdims=True)
    unit = v / np.where(largest > 0, largest, 1)
    _, gradient = value_and_gradient(objective, phi + 1j * (h * unit), batch)
    return gradient.imag / h * largest


def _difference_product(objective: Objective, phi: Array, batch: Batch, v: Array) -> Array:
    """H v from extrapolated differences of the gradient."""
    largest = np.abs(v).max(-1, keepdims=True)
    unit = v / np.where(largest > 0, largest, 1)

    def gradient(t: Array) -> Array:
        return value_and_gradient(objective, phi + t * unit, batch)[1]

    # The gradient of a task is a function of one t, so that all of its entries share a step.
    scale = np.full_like(phi, np.sqrt(np.mean(phi**2)) or 1)
    return differentiate(gradient, scale).value * largest


PRODUCTS = {"complex step": _complex_step_product, "difference": _difference_product}


def _adjoint(meta_loss: MetaLoss, product: Any) -> Reference:
    """λ_S = ∇L^Q(φ_S), λ_s = λ_{s+1} − (H_s + wI)(α_s ∘ λ_{s+1}); ∂/∂α_s = −λ_{s+1} ∘ (∇L^S + wφ_s)."""
    objective, w = meta_loss.objective, meta_loss.decay
    *steps, (phi, query) = meta_loss.passes(meta_loss.theta)
    value, cotangent = value_and_gradient(objective, phi, query)
    first_order = cotangent.mean(0)
    by_alpha = np.zeros_like(meta_loss.alpha)
    for (phi, support), owner in zip(reversed(steps), meta_loss.owner[::-1], strict=True):
        descent = value_and_gradient(objective, phi, support)[1] + w * phi
        np.add.at(by_alpha, owner, -meta_loss.moves * (cotangent * descent).mean(0))
        direction = meta_loss.alpha[owner] * meta_loss.moves * cotangent
        cotangent = meta_loss.carried_back(cotangent)
        if not meta_loss.first_order:
            Hv = product(objective, phi, support, direction)
            cotangent = cotangent - Hv - w * direction
    grads = {"theta": cotangent.mean(0), "inner_lr": by_alpha.reshape(meta_loss.alpha_shape)}
    return Reference(float(value.mean()), value, grads, first_order, {}, 0.0)


# --- small parts ------------------------------------------------------------------------------------


def _distance(a: Any, b: Any) -> Any:
    """|a − b|, in float64."""
    return np.abs(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64))


def _refuse_first_order(maml: MAML) -> None:
    check_maml(maml)
    if maml.first_order:
        raise ValueError(
            "the first-order meta-gradient is the derivative of nothing; use meta_gradient"
        )


def _check_complex_safe(meta_loss: MetaLoss) -> None:
    """Im L(φ + ihv)/h must be ⟨∇L(φ), v⟩, at θ, on the support and on the query sets."""
    meta_loss = meta_loss.cast(np.float64)
    h = tiny_step(np.float64)
    phi = np.broadcast_to(meta_loss.theta, (len(meta_loss.support[0]), meta_loss.theta.size))
    v = np.random.default_rng(0).normal(size=meta_loss.theta.size)
    for batch in (meta_loss.support, meta_loss.query):
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", np.exceptions.ComplexWarning)  # judged below
            _, gradient = value_and_gradient(meta_loss.objective, phi, batch)
            moved = value_and_gradient(meta_loss.objective, phi + 1j * h * v, batch)[0].imag / h
            off, terms = np.abs(moved - (gradient * v).sum(-1)), np.abs(gradient * v).sum(-1)
        # Both are derivatives good to a dozen digits; what is not complex-safe is off in the first.
        if (np.isfinite(terms) & ~(off <= 1e-6 * terms)).any():
            raise ValueError(
                f"{meta_loss.objective!r} is not complex-safe, or its gradient is not that of its "
                "value; products='difference' needs real parameters only, check_gradient tells which"
            )
