r"""Derivatives by differences that say how far they can be trusted.

Central differences at steps h, h/2, h/4, ... are extrapolated to step 0 (Richardson), and of all
extrapolations the one with the least estimated error is taken (Ridders 1982, "Accurate computation of
F'(x) and F'(x)F''(x)"). At a kink this converges too, to a mean of slopes that is nobody's derivative.
One-sided differences, extrapolated in the same way, tell: they agree where there is a derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from npmeta._validation import Array

__all__ = ["Difference", "differentiate"]

#: Steps, each half of the one before, and how often differences are extrapolated.
LEVELS, ORDERS = 18, 5

#: The longest step, as a share of the length over which a function is taken to be smooth.
FIRST_STEP = 0.1

#: Points beside t = 0 that show how rough a function is, and their distance in roundings.
PROBES, SPACING = 8, 32


class Difference(NamedTuple):
    """Derivatives by extrapolated differences; all are arrays of one shape.

    Attributes
    ----------
    value : ndarray
    error : ndarray
        An estimate of what truncation and rounding leave open.
    left, right : ndarray
        One-sided derivatives.
    gap_error : ndarray
        What rounding leaves open of ``right − left``. A gap beyond that is a kink.
    """

    value: Array
    error: Array
    left: Array
    right: Array
    gap_error: Array


def differentiate(
    f: Callable[[Array], Array], scale: Array, reach: Array | float = np.inf
) -> Difference:
    """df/dt at t = 0, entry by entry.

    Parameters
    ----------
    f : callable
        Takes an array of the shape of ``scale`` and returns one: entry i is a function of t_i alone.
    scale : ndarray
        The length in t over which f may be taken for a smooth function, of the size of x where
        f(t) is F(x + tv) with a v of length 1.
    reach : array_like
        Where the nearest kink is, if that is known: no step is longer than half of it.
    """
    eps = np.finfo(scale.dtype).eps
    h = np.minimum(FIRST_STEP * scale, np.asarray(reach, dtype=scale.dtype) / 2)
    steps = [h / 2**k for k in range(LEVELS)]
    ahead, behind = [f(h_k) for h_k in steps], [f(-h_k) for h_k in steps]
    here = f(np.zeros_like(scale))

    # Rounding, of f and of the points it is evaluated at: what is left of its values at points next to
    # each other when a straight line has been taken off.
    probes = np.array([f(j * SPACING * eps * scale) for j in range(1, PROBES + 1)])
    j = np.arange(PROBES, dtype=scale.dtype).reshape(-1, *[1] * scale.ndim) - (PROBES - 1) / 2
    residual = probes - probes.mean(0) - j * (j * probes).sum(0) / (j * j).sum()
    noise = 2 * np.maximum(np.abs(residual).max(0), eps * np.abs(here))

    rounding = [noise / h_k for h_k in steps]
    central = [(a - b) / (2 * h_k) for a, b, h_k in zip(ahead, behind, steps, strict=True)]
    right = [(a - here) / h_k for a, h_k in zip(ahead, steps, strict=True)]
    left = [(here - b) / h_k for b, h_k in zip(behind, steps, strict=True)]
    value, error = _extrapolated(central, rounding, 4)
    right_value, right_error = _extrapolated(right, rounding, 2)
    left_value, left_error = _extrapolated(left, rounding, 2)
    return Difference(value, error, left_value, right_value, left_error + right_error)


def _extrapolated(
    quotients: Sequence[Array], rounding: Sequence[Array], power: int
) -> tuple[Array, Array]:
    """The best extrapolation to step 0 and its estimated error. ``power`` is 4 where halving a step
    divides the leading error by 4, 2 where it halves it."""
    # What the coefficients of an extrapolation add up to, at most: ∏ (p^m + 1) / (p^m − 1).
    growth = float(np.prod([(power**m + 1) / (power**m - 1) for m in range(1, ORDERS + 1)]))
    best = quotients[-1]
    least = np.full(best.shape, np.inf, dtype=best.dtype)
    above: list[Array] = []  # extrapolations from the steps up to the one before
    for quotient, r in zip(quotients, rounding, strict=True):
        row = [quotient]
        for m, other in enumerate(above[:ORDERS], start=1):
            row.append(row[-1] + (row[-1] - other) / (power**m - 1))
            off = np.maximum(np.abs(row[-1] - row[-2]), np.abs(row[-1] - other))
            error = off + r * growth
            better = error < least
            best = np.where(better, row[-1], best)
            least = np.where(better, error, least)
        above = row
    return best, least
