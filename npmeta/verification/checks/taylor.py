"""Taylor's remainder: the check that shows in one picture what a gradient is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from npmeta._support.validation import Array, as_generator
from npmeta.network.distances import norm
from npmeta.verification.checks.functions import (
    Function,
    ValueAndGradient,
    derivative_bar,
    why_wide,
)
from npmeta.verification.checks.reports import Finding, Report, Verdict, judge
from npmeta.verification.oracles.differences import Difference, differentiate, roughness
from npmeta.verification.rounding import SAFETY

#: Steps of :func:`check_taylor`, each half of the one before, and how many a slope is fitted to.
LEVELS, WINDOW = 26, 6


def check_taylor(
    function: ValueAndGradient,
    x: Any,
    hvp: Callable[[Any, Any], Any] | None = None,
    *,
    precision: DTypeLike | None = None,
    seed: int = 0,
) -> Report:
    r"""Does what Taylor's polynomial leaves shrink as it must?

    Along a direction v, random but uphill, :math:`|f(x + hv) - f(x) - h \langle g, v \rangle|` falls
    as h², and as h³ when :math:`\tfrac12 h^2 \langle v, Hv \rangle` is taken off too. A wrong gradient
    leaves a remainder of slope 1 on logarithmic axes, a wrong Hessian product one of slope 2.

    Parameters
    ----------
    function, x, precision, seed
        As in :func:`check_gradient`.
    hvp : callable, optional
        ``(x, v) -> H v``.

    Returns
    -------
    Report
        ``.numbers`` has the slopes, fitted to the smallest steps that are clear of rounding;
        ``.curves`` has "h" and the remainders of orders "0", "1" and, with ``hvp``, "2".
    """
    f = Function(function, x, precision)
    v = f.layout.sizes() * as_generator(seed, "seed").normal(size=f.gradient.size)
    v = np.where(f.gradient < 0, -np.abs(v), np.where(f.gradient > 0, np.abs(v), v))  # ⟨g, v⟩ is large
    h = 0.5 ** np.arange(1, LEVELS + 1)

    def values(t: Array) -> Array:
        return np.array([f(f.layout.vector + t_i * v)[0] for t_i in np.atleast_1d(t)])

    with np.errstate(all="ignore"):
        away = np.array([values(h), values(-h)]) - f.value
        noise = float(roughness(values, np.ones(1), np.array([f.value]), f.eps)[0])
        found = differentiate(values, np.ones(1), eps=f.eps)
        rounding = norm(v * f.spread(lambda point: f(point)[1]))
    sides, first = np.array([[1.0], [-1.0]]), float(f.gradient @ v)
    remainder = np.abs(away - sides * h * first)  # (2, steps): ahead and behind
    blur = noise + h * rounding
    curves = {"h": h, "0": np.abs(away).max(0), "1": remainder.max(0)}
    checks = [(_Derivative("gradient", 2, first, rounding, found), remainder, blur)]
    if hvp is not None:
        Hv = f.layout.flat(hvp(f.layout.build(f.layout.vector), f.layout.build(v)), "the product")
        second, rounding = float(v @ Hv), f.eps * norm(Hv * v)
        remainder = np.abs(away - sides * h * first - h * h * second / 2)
        curves["2"] = remainder.max(0)

        def slopes(t: Array) -> Array:
            return np.array([f(f.layout.vector + t_i * v)[1] @ v for t_i in t])

        with np.errstate(all="ignore"):
            found = differentiate(slopes, np.ones(1), eps=f.eps)
        derivative = _Derivative("product", 3, second, rounding, found)
        checks.append((derivative, remainder, blur + h * h * rounding))
    findings, numbers = [], {}
    for derivative, remainder, blur in checks:
        slope = _slope(h, remainder.max(0), blur)
        numbers[f"slope of order {derivative.order - 1}"] = slope
        # A kink may be on one side alone.
        slope = max(slope, _slope(h, remainder.min(0), blur))
        findings.append(derivative.judged(slope, f))
    return Report(f"remainder of Taylor's polynomial, {f.dtype}", tuple(findings), numbers, curves)


class _Derivative(NamedTuple):
    """A derivative along the direction, as claimed and as differences have it."""

    name: str
    order: int  # of the remainder
    claimed: float
    rounding: float
    found: Difference

    def judged(self, slope: float, f: Function) -> Finding:
        """A slope that is too flat is a fault only if the derivative is wrong, too. Without a slope,
        all that the polynomial leaves is rounding."""
        (bar,), (kinked,) = derivative_bar(self.found, np.full(1, SAFETY * self.rounding))
        value = float(self.found.value[0])
        error, scale = abs(value - self.claimed), abs(value)
        finding = judge(self.name, error, bar, scale, why_wide=why_wide(bool(kinked), f))
        if finding.verdict is Verdict.PASS and slope < self.order - 0.2:
            why = f"slope {slope:.2f}, not {self.order}, though the derivative is right: kinks nearby"
            return replace(finding, verdict=Verdict.INCONCLUSIVE, reason=why)
        return finding


def _slope(h: Array, remainder: Array, blur: Array) -> float:
    """The slope on logarithmic axes at the smallest steps clear of rounding; NaN without enough."""
    clear = np.flatnonzero(np.isfinite(remainder) & (remainder > 30 * blur))
    clear = clear[-WINDOW:]
    if len(clear) < WINDOW // 2:
        return np.nan
    return float(np.polyfit(np.log(h[clear]), np.log(remainder[clear]), 1)[0])
