"""Functions of the user's own: their parameters as one vector, and what rounding does to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from npmeta._support.validation import (
    Array,
    as_array,
    as_precision,
    check_finite,
    check_function,
    unmasked,
)
from npmeta.verification.oracles.differences import Difference
from npmeta.verification.rounding import SAFETY_OF_DIFFERENCES, jittered, unit

#: ``x -> (value, gradient)``.
ValueAndGradient: TypeAlias = Callable[[Any], tuple[Any, Any]]

#: Trials in which parameters are moved by a few roundings.
TRIALS = 4


class Layout:
    """Parameters, an array or several with or without names, as one vector of float64.

    Parameters
    ----------
    x : array_like, mapping or sequence of array_like
        A list of numbers is an array; a list of arrays is several.
    """

    def __init__(self, x: Any) -> None:
        self._kind: Callable[[dict[str, Array]], Any]
        if isinstance(x, Mapping):
            arrays = {str(name): as_array(part, str(name)) for name, part in x.items()}
            self._kind = lambda parts: dict(zip(x, parts.values(), strict=True))
        elif isinstance(x, Sequence) and len(x) > 0 and any(np.ndim(part) > 0 for part in x):
            arrays = {str(i): as_array(part, f"x[{i}]") for i, part in enumerate(x)}
            self._kind = lambda parts: list(parts.values())
        else:
            arrays = {"x": as_array(x, "x")}
            self._kind = lambda parts: parts["x"]
        for name, array in arrays.items():
            if array.dtype.kind not in "iuf" or array.size == 0:
                raise ValueError(f"{name} must hold real numbers, got {array.dtype} {array.shape}")
            check_finite(array, name)
        self._arrays = arrays
        ends = np.cumsum([array.size for array in arrays.values()]).tolist()
        starts = [0, *ends[:-1]]
        self.blocks = {n: slice(i, j) for n, i, j in zip(arrays, starts, ends, strict=True)}
        self.dtype = np.result_type(*(self._dtype(array) for array in arrays.values()))
        self.vector = self.flat(x, "x")

    @staticmethod
    def _dtype(array: Array) -> np.dtype[Any]:
        return array.dtype if array.dtype.kind == "f" else np.dtype(np.float64)

    def build(self, vector: Array) -> Any:
        """A vector as what x was, in its dtypes."""
        parts = {
            name: vector[self.blocks[name]].reshape(array.shape).astype(self._dtype(array))
            for name, array in self._arrays.items()
        }
        return self._kind(parts)

    def flat(self, given: Any, what: str) -> Array:
        """What has the structure of x as a vector. ValueError says where it has another."""
        if isinstance(given, Mapping):
            parts = {str(name): unmasked(part, what) for name, part in given.items()}
        elif len(self._arrays) == 1 and "x" in self._arrays:
            parts = {"x": unmasked(given, what)}
        else:
            parts = {str(i): unmasked(part, what) for i, part in enumerate(given)}
        shapes = {name: array.shape for name, array in self._arrays.items()}
        came = {name: part.shape for name, part in parts.items()}
        if came != shapes:  # a (64, 1) for a (64,) would broadcast in silence
            raise ValueError(f"{what} must have the shapes of x, {shapes}, got {came}")
        return np.concatenate([parts[name].astype(np.float64).reshape(-1) for name in shapes])

    def sizes(self) -> Array:
        """For every parameter the root mean square of its block: a length over which to move it. For
        a block of zeros that of x as a whole, and 1 if all is zero."""
        whole = float(np.sqrt(np.mean(self.vector**2))) or 1.0
        size = np.empty_like(self.vector)
        for at in self.blocks.values():
            size[at] = float(np.sqrt(np.mean(self.vector[at] ** 2))) or whole
        return size


class Function:
    """``function(x) -> (value, gradient)`` on vectors.

    Attributes
    ----------
    layout : Layout
    value, gradient : float, ndarray
        At x.
    dtype : numpy.dtype
        The coarser one of x and of the gradient, unless another is said.
    """

    def __init__(self, function: ValueAndGradient, x: Any, precision: DTypeLike | None) -> None:
        check_function(function, "function")
        judged = None if precision is None else as_precision(precision, "precision")
        self._function = function
        self.layout = Layout(x)
        value, gradient = self._call(self.layout.vector)
        if np.size(value) != 1:
            raise ValueError(f"function must return (value, gradient), got a value {np.shape(value)}")
        parts = gradient.values() if isinstance(gradient, Mapping) else gradient
        several = isinstance(gradient, Mapping | list | tuple)
        dtypes = [np.asarray(part).dtype for part in (parts if several else [gradient])]
        coarse = max((d for d in [self.layout.dtype, *dtypes] if d.kind == "f"), key=unit)
        self.dtype = coarse if judged is None else judged
        self.value, self.gradient = self(self.layout.vector)

    @property
    def eps(self) -> float:
        """The rounding unit."""
        return unit(self.dtype)

    def __call__(self, vector: Array) -> tuple[float, Array]:
        value, gradient = self._call(vector)
        return float(np.asarray(value).reshape(())), self.layout.flat(gradient, "the gradient")

    def _call(self, vector: Array) -> tuple[Any, Any]:
        result = self._function(self.layout.build(vector))
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise ValueError(f"function must return (value, gradient), got {type(result).__name__}")
        return result[0], result[1]

    def moved(self, rng: np.random.Generator) -> Array:
        """x with every parameter moved by a few roundings."""
        return jittered(self.layout.vector, self.layout.sizes(), rng, self.eps)

    def spread(self, of: Callable[[Array], Array]) -> Array:
        """How far a function of the vector moves, entry by entry, when x is moved so."""
        here, rng = of(self.layout.vector), np.random.default_rng(0)
        away = [np.abs(of(self.moved(rng)) - here) for _ in range(TRIALS)]
        return np.max(away, axis=0)


def derivative_bar(found: Difference, rounding: Array) -> tuple[Array, Array]:
    """What a correct derivative may be off a difference, and where there is a kink.

    At a kink every number between the one-sided derivatives is right, and the central difference is
    their mean. Where there is none they agree, as far as can be told.
    """
    gap = np.abs(found.right - found.left)
    kinked = gap > SAFETY_OF_DIFFERENCES * (found.gap_error + found.error)
    # What a gradient does when x moves across a kink is in the gap already. One that is not finite has
    # no rounding, and must not widen its own bar.
    rounding = np.where(kinked | ~np.isfinite(rounding), 0, rounding)
    return SAFETY_OF_DIFFERENCES * found.error + rounding + (gap + found.gap_error) / 2, kinked


def why_wide(kinked: bool, f: Function) -> str:
    return "a kink here" if kinked else f"rounding in {f.dtype}, or a kink nearby,"
