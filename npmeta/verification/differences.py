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

__all__ = ["Difference", "differentiate", "roughness"]

#: Steps, each half of the one before, and how often differences are extrapolated.
LEVELS, ORDERS = 18, 5

#: The longest step, as a share of the length over which a function is taken to be smooth.
FIRST_STEP = 0.1

#: Points beside t = 0 that show how rough a function is, and their distance in roundings.
PROBES, SPACING = 8, 32


# Projects values at equidistant points on what no cubic has.
_POWERS = np.linalg.qr(np.vander(np.linspace(-1, 1, PROBES), 4))[0]
_OFF_CUBIC = np.eye(PROBES) - _POWERS @ _POWERS.T


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
    f: Callable[[Array], Array],
    scale: Array,
    reach: Array | float = np.inf,
    eps: float | None = None,
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
    eps : float, optional
        The rounding unit of f. By default that of ``scale``'s dtype.
    """
    eps = float(np.finfo(scale.dtype).eps) if eps is None else eps
    h = np.minimum(FIRST_STEP * scale, np.asarray(reach, dtype=scale.dtype) / 2)
    steps = [h / 2**k for k in range(LEVELS)]
    ahead, behind = [f(h_k) for h_k in steps], [f(-h_k) for h_k in steps]
    here = f(np.zeros_like(scale))
    constant = (np.array([*ahead, *behind]) == here).all(0)  # is exact
    noise = np.where(constant, 0, roughness(f, scale, here, eps))
    rounding = [noise / h_k for h_k in steps]
    central = [(a - b) / (2 * h_k) for a, b, h_k in zip(ahead, behind, steps, strict=True)]
    right = [(a - here) / h_k for a, h_k in zip(ahead, steps, strict=True)]
    left = [(here - b) / h_k for b, h_k in zip(behind, steps, strict=True)]
    value, error = _extrapolated(central, rounding, 4)
    right_value, right_error = _extrapolated(right, rounding, 2)
    left_value, left_error = _extrapolated(left, rounding, 2)
    return Difference(value, error, left_value, right_value, left_error + right_error)


def roughness(f: Callable[[Array], Array], scale: Array, here: Array, eps: float) -> Array:
    """How far values of f are off its smooth course, by rounding of f and of where it is evaluated.

    That is what a cubic leaves of values at points close together. If all of them are the same, f may
    round more coarsely than ``eps``, and points as for float32 are looked at.
    """
    residual, still = np.zeros_like(here), np.ones(here.shape, dtype=bool)
    for unit in (eps, max(eps, float(np.finfo(np.float32).eps))):
        moved = np.array([f(j * SPACING * unit * scale) - here for j in range(1, PROBES + 1)])
        residual = np.where(still, np.abs(np.tensordot(_OFF_CUBIC, moved, 1)).max(0), residual)
        still &= (moved == 0).all(0)
    noise: Array = 3 * np.maximum(residual, eps * np.abs(here))
    return noise


def _extrapolated(
    quotients: Sequence[Array], rounding: Sequence[Array], power: int
) -> tuple[Array, Array]:
    """The best extrapolation to step 0 and its estimated error. ``power`` is 4 where halving a step
    divides the leading error by 4, 2 where it halves it."""
    # What the coefficients of an extrapolation add up to, at most: ∏ (p^m + 1) / (p^m − 1).
    growth = float(np.prod([(power**m + 1) / (power**m - 1) for m in range(1, ORDERS + 1)]))
    rows: list[list[Array]] = []  # row k: extrapolations from steps k, then k − 1 and k, ...
    for quotient in quotients:
        row = [quotient]
        for m, other in enumerate(rows[-1][:ORDERS] if rows else [], start=1):
            row.append(row[-1] + (row[-1] - other) / (power**m - 1))
        rows.append(row)

    blur = growth * np.array(rounding)
    last = np.array([row[-1] for row in rows])
    best, least = last[-1], np.full(last.shape[1:], np.inf, dtype=last.dtype)
    for k in range(1, len(rows)):
        for m in range(1, len(rows[k])):
            value = rows[k][m]
            off = np.maximum(np.abs(value - rows[k][m - 1]), np.abs(value - rows[k - 1][m - 1]))
            # Two extrapolations may agree by chance. What smaller steps give, which rounding blurs
            # more, must not contradict them.
            contradiction = (np.abs(value - last[k + 1 :]) - blur[k + 1 :]).max(0, initial=0)
            error = np.maximum(off, contradiction) + blur[k]
            best = np.where(error < least, value, best)
            least = np.where(error < least, error, least)
    return best, least
