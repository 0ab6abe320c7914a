"""Is this the meta-gradient? A gradient that any program has computed, against the oracle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from npmeta._support.validation import Array, unmasked
from npmeta.algorithms import MAML
from npmeta.algorithms.base import MetaParameters, named
from npmeta.bilevel.objective import Objective, Risk
from npmeta.network.distances import norm
from npmeta.tasks import TaskBatch
from npmeta.verification.checks.reports import Finding, Report, Verdict, judge
from npmeta.verification.oracles.kinks import at_kinks
from npmeta.verification.oracles.references import Reference, meta_gradient
from npmeta.verification.rounding import SAFETY, unit

#: A block is zero by subtraction if it is below so many roundings of the whole gradient.
ZERO = 100


def blocks(objective: Objective) -> dict[str, slice]:
    """Where theta has each array, by the names of :attr:`npmeta.MLP.places`; for an objective without
    layers all of it, ``theta``."""
    if not isinstance(objective, Risk):
        return {"theta": slice(0, objective.n_params)}
    return objective.model.places


class SecondOrder(NamedTuple):
    """How much of the second-order part of a meta-gradient a gradient has.

    Attributes
    ----------
    share : float
        ρ: 1 for the exact gradient, 0 for the first-order one, ½ for a halved Hessian, −1 for one of
        the wrong sign. NaN where exact and first-order gradient are the same.
    bar : float
        What rounding leaves open of ρ.
    residual : float
        What is left of the error at a right angle to the second-order part, as a share of it.
    size : float
        The second-order part as a share of the gradient.
    """

    share: float
    bar: float
    residual: float
    size: float


def second_order(gradient: ArrayLike, reference: Reference) -> SecondOrder:
    r"""ρ, the one number that sees second order.

    With g the exact and :math:`g_1` the first-order gradient,

    .. math:: u = \frac{g - g_1}{\lVert g - g_1 \rVert}, \qquad
              \rho(c) = \frac{\langle c - g_1, u \rangle}{\lVert g - g_1 \rVert} .

    A random direction would see a fault of the second-order part weaker by the root of the number of
    parameters, and a cosine hardly at all: first-order gradients have one of 0.99.
    """
    c = np.asarray(gradient, dtype=np.float64)
    part = reference.grad - reference.first_order
    size = norm(part)
    if size == 0:
        return SecondOrder(np.nan, np.nan, np.nan, 0.0)
    away, u = (c - reference.first_order) / size, part / size
    share = float(away @ u)
    bar = SAFETY * norm(reference.error["theta"]) / size
    return SecondOrder(share, bar, norm(away - share * u), size / norm(reference.grad))


def check_meta_gradient(
    maml: MAML,
    params: ArrayLike | MetaParameters,
    tasks: TaskBatch,
    gradient: ArrayLike | Mapping[str, ArrayLike],
    *,
    loss: float | None = None,
    precision: DTypeLike | None = None,
    products: str = "complex step",
) -> Report:
    """Hold a meta-gradient, whoever computed it, against the oracle.

    Parameters
    ----------
    maml : MAML
        The setting: network, loss, step sizes, steps.
    params : array_like (P,), or mapping
        Where; as in :meth:`npmeta.MAML.meta_gradient`.
    tasks : TaskBatch
    gradient : array_like (P,), or mapping
        The derivative of the mean query loss by theta, in theta's order; or by name, with
        "inner_lr" too. A mapping may have one of them alone.
    loss : float, optional
        The meta-loss, to be checked as well.
    precision : {float64, float32}, optional
        What the gradient was computed in. By default its dtype.
    products : {"complex step", "difference"}
        As in :func:`~npmeta.verification.meta_gradient`.

    Returns
    -------
    Report
        A finding for each block of :func:`blocks
        <npmeta.verification.checks.meta_gradients.blocks>`, for "inner_lr" and "loss" where given. Its
        numbers are those of :func:`second_order
        <npmeta.verification.checks.meta_gradients.second_order>`, unless ``maml.first_order``.

    Raises
    ------
    ValueError
        If a shape does not fit; and as :func:`~npmeta.verification.meta_gradient`.
    """
    given = gradient if isinstance(gradient, Mapping) else {"theta": gradient}
    candidate = {name: unmasked(values, name) for name, values in given.items()}
    params = dict(named(params))
    if "inner_lr" in candidate:
        params.setdefault("inner_lr", np.asarray(maml.inner_lr))
    unknown = set(candidate) - {"theta", "inner_lr"}
    if unknown or not candidate:
        raise ValueError(f"gradient must be by 'theta' or 'inner_lr', got {sorted(candidate)}")
    for name, values in candidate.items():
        if values.shape != np.shape(params[name]) or values.dtype.kind not in "iuf":
            raise ValueError(
                f"the gradient by {name} must be real with shape {np.shape(params[name])}, got "
                f"{values.dtype} with shape {values.shape}"
            )
    dtype = np.dtype(precision or np.result_type(np.float32, *candidate.values()))
    reference = meta_gradient(maml, params, tasks, precision=dtype, products=products)
    title = f"meta-gradient in {dtype} of {maml.objective!r}, {maml.inner_steps} inner steps"
    if not np.isfinite([norm(reference.grad), norm(reference.error["theta"])]).all():
        why = f"the inner loop runs away: the meta-loss is {reference.loss:.3g}"
        return Report(title, (Finding("all", Verdict.INCONCLUSIVE, np.nan, np.nan, np.nan, why),))

    findings = list(compare(maml.objective, candidate, reference, dtype))
    if loss is not None:
        error, scale = reference.loss_error, abs(reference.loss)
        findings.append(_finding("loss", loss, reference.loss, error, dtype, scale))
    if any(finding.verdict is Verdict.INCONCLUSIVE for finding in findings):
        n_kinks = at_kinks(maml, params, tasks, dtype)
        if n_kinks:
            s = "s" * (n_kinks > 1)
            why = f"{n_kinks} pre-activation{s} at a kink, or within rounding of it:"
            findings = [_because(why, finding) for finding in findings]
    numbers = {}
    if "theta" in candidate and not maml.first_order:
        share = second_order(candidate["theta"], reference)
        if np.isfinite(share.share):
            numbers = {
                "ρ": share.share,
                "bar of ρ": share.bar,
                "residual": share.residual,
                "second-order part": share.size,
            }
    return Report(title, tuple(findings), numbers)


def compare(
    objective: Objective, candidate: Mapping[str, Array], reference: Reference, dtype: DTypeLike
) -> Iterator[Finding]:
    """Block by block, the derivatives that ``candidate`` has against those of ``reference``, whose
    ``error`` is for computations in ``dtype``."""
    for name, values in candidate.items():
        exact, error = reference.grads[name], reference.error[name]
        whole = norm(exact)
        parts = blocks(objective) if name == "theta" else {name: ...}
        for block, at in parts.items():
            yield _finding(block, values[at], exact[at], error[at], np.dtype(dtype), whole)


def _because(why: str, finding: Finding) -> Finding:
    if finding.verdict is not Verdict.INCONCLUSIVE:
        return finding
    return replace(finding, reason=f"{why} {finding.reason}")


def _finding(
    name: str, candidate: ArrayLike, exact: ArrayLike, error: ArrayLike, dtype: np.dtype, whole: float
) -> Finding:
    """Norms of the difference, of what rounding does, and of the block."""
    eps = unit(dtype)
    exact, off = np.asarray(exact), np.asarray(candidate, dtype=np.float64) - np.asarray(exact)
    scale = norm(exact)
    # Its own last digit is rounding too, where the inputs' is not felt.
    bar = SAFETY * (norm(error) + eps * scale)
    return judge(
        name,
        norm(off),
        bar,
        scale,
        why_wide=f"rounding in {dtype}",
        zero=ZERO * eps * whole,
    )
