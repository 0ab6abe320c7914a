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

from npmeta._support.validation import Array

#: Steps, each half of the one before, and how often differences are extrapolated.
LEVELS, ORDERS = 22, 5

#: The longest step, as a share of the length over which a function is taken to be smooth.
FIRST_STEP = 0.1

#: Points beside t = 0 that show how rough a function is, in roundings. With equal distances many sums
#: would be rounded in the same way at all of them.
PROBES = np.array([29, 67, 97, 131, 163, 197, 227, 269])

# Projects values at the probes on what no cubic has.
_POWERS = np.linalg.qr(np.vander(PROBES / PROBES.max(), 4))[0]
_OFF_CUBIC = np.eye(len(PROBES)) - _POWERS @ _POWERS.T


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
    noise = roughness(f, scale, here, eps)
    rounding = [noise / h_k for h_k in steps]
    central = [(a - b) / (2 * h_k) for a, b, h_k in zip(ahead, behind, steps, strict=True)]
    right = [(a - here) / h_k for a, h_k in zip(ahead, steps, strict=True)]
    left = [(here - b) / h_k for b, h_k in zip(behind, steps, strict=True)]
    value, error, level = _extrapolated(central, rounding, 4)
    # One-sided derivatives at the scale of the central one see a kink next to t = 0 as one at 0; those
    # from any scale are far better where there is none.
    sides = []
    for at in (level, None):
        ahead_of, off, _ = _extrapolated(right, rounding, 2, at)
        behind_of, also_off, _ = _extrapolated(left, rounding, 2, at)
        sides.append((behind_of, ahead_of, off + also_off))
    better = sides[0][2] <= sides[1][2]
    return Difference(value, error, *(np.where(better, a, b) for a, b in zip(*sides, strict=True)))


def roughness(f: Callable[[Array], Array], scale: Array, here: Array, eps: float) -> Array:
    """How far values of f are off its smooth course, by rounding of f and of where it is evaluated.

    That is what a cubic leaves of values at points close together. If all of them are the same, f may
    round more coarsely than ``eps``, and points as for float32 are looked at.
    """
    residual, still = np.zeros_like(here), np.ones(here.shape, dtype=bool)
    for unit in (eps, max(eps, float(np.finfo(np.float32).eps))):
        moved = np.array([f(float(probe) * unit * scale) - here for probe in PROBES])
        residual = np.where(still, np.abs(np.tensordot(_OFF_CUBIC, moved, 1)).max(0), residual)
        still &= (moved == moved[0]).all(0)
    return 3 * np.maximum(residual, eps * np.abs(here))


def _extrapolated(
    quotients: Sequence[Array], rounding: Sequence[Array], power: int, at: Array | None = None
) -> tuple[Array, Array, Array]:
    """The best extrapolation to step 0, its estimated error, and the shortest step it is made of.

    ``power`` is 4 where halving a step divides the leading error by 4, 2 where it halves it. With
    ``at``, the shortest step is the one that says, as a number from 0: so that one-sided derivatives
    are those at the scale of the central one, whatever there is at smaller scales.
    """
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
    best, level = last[-1], np.full(last.shape[1:], len(rows) - 1)
    least = np.full(best.shape, np.inf, dtype=best.dtype)
    for k in range(1, len(rows)):
        # Two extrapolations may agree by chance. So must the one of the same order a step before, and
        # what smaller steps give, which rounding blurs more (at times more than a few probes tell),
        # must not contradict them.
        later, doubt = last[k + 1 :], 2 * blur[k + 1 :]
        for m in range(1, len(rows[k])):
            value = rows[k][m]
            others = [rows[k][m - 1], *rows[k - 1][m - 1 : m + 1]]
            error = np.max([np.abs(value - other) for other in others], axis=0)
            if at is None:
                error = np.maximum(error, (np.abs(value - later) - doubt).max(0, initial=0))
            error = error + blur[k]
            better = error < least if at is None else (error < least) & (at == k)
            best = np.where(better, value, best)
            least = np.where(better, error, least)
            level = np.where(better, k, level)
    return best, least, level
