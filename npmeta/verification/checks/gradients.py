"""Checks of any Python function that returns a value and a gradient: yours, or a framework's.

Each returns a :class:`~npmeta.verification.Report`. Parameters ``x`` may be an array, a list of arrays
or a mapping of names to arrays; the gradient has the same structure, and every array is a block with a
verdict of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from npmeta._support.validation import Array, as_generator, as_whole, check_function, shown
from npmeta.network.distances import norm
from npmeta.verification.checks.functions import (
    Function,
    ValueAndGradient,
    derivative_bar,
    why_wide,
)
from npmeta.verification.checks.reports import Report, judge
from npmeta.verification.oracles.differences import differentiate
from npmeta.verification.rounding import SAFETY

#: Random directions for each block, beside that of its gradient.
DIRECTIONS = 3


def check_gradient(
    function: ValueAndGradient, x: Any, *, precision: DTypeLike | None = None, seed: int = 0
) -> Report:
    """Is the gradient that of the value? By extrapolated differences along directions in each block.

    Parameters
    ----------
    function : callable
        ``x -> (value, gradient)``.
    x : array_like, mapping or list of array_like
        Where. float32 parameters are passed as such, and differences of float32 values see no more
        than three or four digits.
    precision : {float64, float32}, optional
        What the function computes in, if its gradient's dtype does not say so.
    seed : int
        Of the directions.

    Returns
    -------
    Report
        Errors are those of directional derivatives, of the worst direction in each block.

    Raises
    ------
    ValueError
        If x is not finite, or the gradient has other shapes than x.

    Examples
    --------
    >>> import numpy as np
    >>> from npmeta.verification import check_gradient
    >>> report = check_gradient(lambda x: (np.sin(x).sum(), np.cos(x)), np.arange(4.0))
    >>> report.passed
    True
    """
    f = Function(function, x, precision)
    rng, size = as_generator(seed, "seed"), f.layout.sizes()
    owners, directions = [], []
    for name, at in f.layout.blocks.items():
        for v in _directions(f.gradient[at], rng):
            owners.append(name)
            directions.append(np.zeros_like(f.gradient))
            directions[-1][at] = v
    V = np.array(directions)
    scale = np.array([(size * np.abs(v)).max() / np.abs(v).max() for v in V])

    def along(t: Array) -> Array:
        return np.array([f(f.layout.vector + t_i * v)[0] for t_i, v in zip(t, V, strict=True)])

    with np.errstate(all="ignore"):
        found = differentiate(along, scale, eps=f.eps)
        claimed, spread = V @ f.gradient, f.spread(lambda point: f(point)[1])
        # Entries of a gradient are rounded independently of each other.
        rounding = np.sqrt(V**2 @ (spread + f.eps * np.abs(f.gradient)) ** 2)
    bar, kinked = derivative_bar(found, SAFETY * rounding)
    error = np.abs(found.value - claimed)
    largest = np.fmax(np.abs(found.value), np.where(np.isfinite(claimed), np.abs(claimed), 0))

    findings = []
    for name in f.layout.blocks:
        mine = [i for i, owner in enumerate(owners) if owner == name]
        i = max(mine, key=lambda i: _excess(float(error[i]), float(bar[i])))
        why = why_wide(bool(kinked[i]), f)
        zero = np.sqrt(f.eps) * largest.max()
        findings.append(judge(name, error[i], bar[i], largest[mine].max(), why_wide=why, zero=zero))
    return Report(f"gradient against differences of the value, {f.dtype}", tuple(findings))


def check_hvp(
    function: ValueAndGradient,
    hvp: Callable[[Any, Any], Any],
    x: Any,
    *,
    precision: DTypeLike | None = None,
    seed: int = 0,
) -> Report:
    """Are Hessian products those of the gradient? Differences, symmetry and linearity.

    Parameters
    ----------
    function : callable
        ``x -> (value, gradient)``.
    hvp : callable
        ``(x, v) -> H v``, with v and the product in the structure of x.
    x, precision, seed
        As in :func:`check_gradient`.

    Returns
    -------
    Report
        A finding for each block of H v; "symmetry", ⟨u, Hv⟩ = ⟨v, Hu⟩; and "linearity",
        H(2u − 3v) = 2Hu − 3Hv.
    """
    check_function(hvp, "hvp")
    rng = as_generator(seed, "seed")
    f = Function(function, x, precision)
    size = f.layout.sizes()
    u, v = size * rng.normal(size=(2, size.size))

    def product(direction: Array, point: Array = f.layout.vector) -> Array:
        built = f.layout.build(point), f.layout.build(direction)
        return f.layout.flat(hvp(*built), "the product")

    def along(t: Array) -> Array:
        return f(f.layout.vector + t.flat[0] * v)[1]

    Hu, Hv = product(u), product(v)
    with np.errstate(all="ignore"):
        # v has the size of x, so that t has that of 1.
        found = differentiate(along, np.ones_like(v), eps=f.eps)
    spread = f.spread(lambda point: product(v, point)) + f.eps * np.abs(Hv)
    bar, kinked = derivative_bar(found, SAFETY * spread)
    whole = norm(Hv)
    findings = [
        judge(
            name,
            norm((found.value - Hv)[at]),
            norm(bar[at]),
            max(norm(Hv[at]), norm(found.value[at])),
            why_wide=why_wide(bool(kinked[at].any()), f),
            zero=np.sqrt(f.eps) * whole,
        )
        for name, at in f.layout.blocks.items()
    ]
    noise_u = f.spread(lambda point: product(u, point)) + f.eps * np.abs(Hu)
    crossed = norm(u) * norm(spread) + norm(v) * norm(noise_u)
    symmetry = abs(float(u @ Hv - v @ Hu))
    sizes = norm(u) * norm(Hv)
    findings.append(judge("symmetry", symmetry, SAFETY * crossed, sizes, why_wide=why_wide(False, f)))
    combined = product(2 * u - 3 * v) - (2 * Hu - 3 * Hv)
    noise = 2 * noise_u + 3 * spread
    findings.append(
        judge(
            "linearity",
            norm(combined),
            SAFETY * norm(noise),
            norm(2 * Hu - 3 * Hv),
            why_wide=why_wide(False, f),
        )
    )
    return Report(f"Hessian products against differences of the gradient, {f.dtype}", tuple(findings))


def check_deterministic(function: ValueAndGradient, x: Any, *, times: int = 3) -> Report:
    """Does the same x give the same value and gradient, to the last bit?"""
    as_whole(times, "times", 2)
    f = Function(function, x, None)
    again = [f(f.layout.vector) for _ in range(times - 1)]
    value_off = max(abs(value - f.value) for value, _ in again)
    findings = [judge("value", value_off, 0.0, abs(f.value))]
    for name, at in f.layout.blocks.items():
        off = max(norm((gradient - f.gradient)[at]) for _, gradient in again)
        findings.append(judge(name, off, 0.0, norm(f.gradient[at])))
    return Report(f"{times} times the same", tuple(findings))


def check_batched(
    function: Callable[[Any, Any], tuple[Any, Any]],
    x: Any,
    tasks: Any,
    *,
    precision: DTypeLike | None = None,
) -> Report:
    """Is the gradient of a batch of tasks the mean of those of its tasks?

    Parameters
    ----------
    function : callable
        ``(x, tasks) -> (value, gradient)``, means over tasks.
    x, precision
        As in :func:`check_gradient`.
    tasks : TaskBatch
        Or anything with a length whose slices are such batches.
    """
    check_function(function, "function")
    has_slices = hasattr(tasks, "__getitem__") and not isinstance(tasks, Mapping | str | bytes)
    if not hasattr(tasks, "__len__") or not has_slices or getattr(tasks, "ndim", 1) == 0:
        raise ValueError(f"tasks must be a TaskBatch, or have a length and slices, got {shown(tasks)}")
    f = Function(lambda point: function(point, tasks), x, precision)
    one_by_one = [
        Function(lambda point, t=t: function(point, tasks[t : t + 1]), x, precision)  # type: ignore[misc]  # t=t
        for t in range(len(tasks))
    ]
    gradient = np.mean([one.gradient for one in one_by_one], axis=0)
    # What tasks add up from is rounded, though their sum be small.
    terms = np.mean([np.abs(one.gradient) for one in one_by_one], axis=0)
    spread = f.spread(lambda point: f(point)[1]) + f.eps * terms
    findings = [
        judge(
            name,
            norm((f.gradient - gradient)[at]),
            SAFETY * norm(spread[at]),
            norm(gradient[at]),
            why_wide=why_wide(False, f),
            zero=SAFETY * norm(spread),
        )
        for name, at in f.layout.blocks.items()
    ]
    return Report(f"{len(tasks)} tasks at once and one by one, {f.dtype}", tuple(findings))


# --- shared by the checks above -----------------------------------------------------------------------


def _directions(gradient: Array, rng: np.random.Generator) -> list[Array]:
    """Every parameter's own if they are few; else the gradient's and random ones of the same size."""
    if gradient.size <= DIRECTIONS + 1:
        return list(np.eye(gradient.size))
    random = list(rng.normal(size=(DIRECTIONS, gradient.size)))
    length = norm(gradient)
    own = [gradient / length * np.sqrt(gradient.size)] if 0 < length < np.inf else []
    return own + random


def _excess(error: float, bar: float) -> tuple[float, float]:
    """For the worst direction: the error in bars first, then the bar."""
    return (error / bar if bar > 0 else (np.inf if error > 0 else 0.0)), bar
