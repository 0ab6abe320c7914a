r"""One model of rounding: how far a right answer may be off.

A result may be off by what it moves when everything that it depends on moves by a few roundings: that
finds out how ill-conditioned it is, whatever the order of its sums. It is seen in a few trials, so that
a safety factor stands before it; and it is never taken for less than a floor, nor believed beyond a
ceiling, where nothing can be decided.

============================  ======================================================================
checks, entry by entry        :data:`SAFETY` × the furthest of some trials, :func:`jittered` by
                              :data:`ROUNDINGS`
doctor and golden vectors,    :data:`SAFETY_OF_MISFITS` × the misfit of one trial, between
by the misfit of a vector     :data:`FLOOR` (of what comes before a gradient
                              :data:`FLOOR_OF_EVIDENCE`) and :data:`CEILING`; :func:`shaken` so far
                              that what is seen is no rounding itself, and scaled down to the
                              precision (:data:`SHAKES`); in float32 also computed in it
differences                   :data:`SAFETY_OF_DIFFERENCES` × the error that they estimate themselves
============================  ======================================================================
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from npmeta._support.validation import Array

#: Up to so many roundings are parameters and inputs moved: those of the few operations that made them.
ROUNDINGS = 8
#: Trials see a sample of what may happen, entry by entry.
SAFETY = 4
#: Another implementation rounds as often as ours, elsewhere. A factor over one measurement.
SAFETY_OF_MISFITS = 10.0
#: A difference estimates its error from neighbours that may agree by chance.
SAFETY_OF_DIFFERENCES = 10
#: The least misfit that is allowed. Implementations sum in other orders, over thousands of terms, and
#: not all of their functions are good to the last digit: PyTorch's softplus is off by 2e-9 beyond 20.
#: Known mistakes differ from each other by 1e-3 in most cases, and float32 shows from 2e-8 on.
FLOOR = {"float64": 1e-8, "float32": 3e-6}
#: That of losses and adapted parameters, which come before a gradient: they lose fewer digits, and in
#: float32 a mean of squares of large numbers more.
FLOOR_OF_EVIDENCE = {"float64": 1e-9, "float32": 1e-5}
#: The most. An answer that agrees with the right gradient no better than this is not called right; one
#: that agrees with a mistake no better than that is not explained by it. (A mistake may be a small
#: difference of large numbers, in float32, without the right gradient being one.)
CEILING, CEILING_OF_MISTAKES = 1e-3, 1e-2
#: How far numbers are moved to see what becomes of it: so far that the difference is no rounding, and,
#: where what follows runs away from there, by the last digit.
SHAKES = {"float64": (1e-10, 2.2e-16), "float32": (1.2e-7,)}


def unit(dtype: DTypeLike) -> float:
    """ε, the gap between 1 and the next number."""
    return float(np.finfo(dtype).eps)


def relative(actual: Array, expected: Array) -> float:
    """The misfit ‖actual − expected‖ / ‖expected‖; 0 where both are zero, ∞ where something has
    overflowed."""
    difference = float(np.linalg.norm(actual - expected))
    scale = float(np.linalg.norm(expected))
    if not np.isfinite([difference, scale]).all():
        return np.inf
    return difference / scale if scale > 0 else (0.0 if difference == 0 else np.inf)


def jittered(values: Array, size: Array, rng: np.random.Generator, eps: float) -> Array:
    """Values moved by up to :data:`ROUNDINGS` roundings of numbers of that size."""
    return values + ROUNDINGS * eps * size * rng.uniform(-1, 1, size=size.shape)


def shaken(values: Any, rng: np.random.Generator, shake: float) -> Array:
    """Values, where they are real, each moved by a random share of itself."""
    array: Array = np.asarray(values)
    if array.dtype.kind == "f":
        array = array * (1 + shake * rng.normal(size=array.shape))
    return array
