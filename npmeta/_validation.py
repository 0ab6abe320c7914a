"""The boundary: what public functions check once, so that everything inside may trust it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Array",
    "DType",
    "DivergedError",
    "as_dtype",
    "as_features",
    "as_number",
    "as_parameters",
    "as_whole",
    "check_converged",
    "check_finite",
    "check_flag",
    "lookup",
    "unknown_name",
]

#: Any floating (or, inside a complex-step check, complex) array, and its dtype.
Array: TypeAlias = NDArray[Any]
DType: TypeAlias = np.dtype[Any]

Entry = TypeVar("Entry")

#: Names that an error message lists at most.
MOST_LISTED = 16


def unknown_name(name: object, known: list[str], kind: str) -> ValueError:
    """The error for a name that is not known, with the nearest one that is."""
    by_lower_case = {entry.lower(): entry for entry in known}
    near = get_close_matches(str(name).lower(), by_lower_case, n=1, cutoff=0.4)
    hint = f" (did you mean {by_lower_case[near[0]]!r}?)" if near else ""
    listed = ", ".join(known[:MOST_LISTED]) + (", ..." if len(known) > MOST_LISTED else "")
    return ValueError(f"unknown {kind} {name!r}{hint}; known: {listed}")


def lookup(name: str, registry: Mapping[str, Entry], kind: str) -> Entry:
    """``registry[name]``, or a ValueError that names the nearest known entry."""
    if not isinstance(name, str) or name not in registry:
        raise unknown_name(name, list(registry), kind)
    return registry[name]


def check_finite(values: Array, name: str) -> None:
    """Raise ValueError with the first offending index unless every value is finite."""
    finite = np.isfinite(values)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        where = f"[{', '.join(map(str, index))}]" if index else ""
        raise ValueError(
            f"{name} must be finite, but {name}{where} is {values[index]} "
            f"({int((~finite).sum())} of {values.size} values are not finite)"
        )


class DivergedError(ArithmeticError):
    """Outputs from which an answer is to be formed are not finite: adaptation has diverged."""


def check_converged(outputs: Array) -> None:
    """Raise DivergedError unless all outputs ``(..., n_out)`` are finite; counted by rows.

    ``argmax`` of NaN is class 0, which would be an answer like any other.
    """
    finite = np.isfinite(outputs).all(-1)
    if not finite.all():
        raise DivergedError(
            f"adaptation has diverged: the outputs of {int((~finite).sum())} of {finite.size} rows are "
            f"not finite; fewer inner steps or a smaller inner_lr may help"
        )


def as_dtype(values: Array, dtype: DType, name: str) -> Array:
    """The values in a dtype, finite there: 1e39 is not, in float32."""
    if values.dtype.kind not in ("biufc" if dtype.kind == "c" else "biuf"):
        raise ValueError(f"{name} must hold real numbers, got dtype {values.dtype}")
    if values.dtype == dtype:
        check_finite(values, name)
        return values
    with np.errstate(over="ignore"):
        cast: Array = values.astype(dtype)
    if not np.isfinite(cast).all():
        check_finite(values, name)
        check_finite(cast, f"{name} (as {dtype})")
    return cast


def as_number(
    value: object, name: str, kind: str, fits: Callable[[float], bool] = lambda number: True
) -> float:
    """One finite real number, as Python's: a np.float64 would turn float32 parameters into float64.

    ValueError "{name} must be {kind}" for anything else, and for a number that does not fit.
    """
    try:
        number = np.asarray(value)
    except ValueError:  # lists of several lengths
        number = np.asarray(None)
    real = number.ndim == 0 and number.dtype.kind in "iuf" and np.isfinite(number)
    if not real or not fits(float(number)):
        raise ValueError(f"{name} must be {kind}, got {value!r}")
    return float(number)


def as_whole(value: object, name: str, low: int = 0) -> int:
    """A whole number of at least ``low``, or a ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}")
    return int(value)


def check_flag(value: object, name: str) -> None:
    """Raise ValueError unless it is True or False: what is meant for another argument is neither."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def as_parameters(theta: ArrayLike, n_params: int, name: str = "theta") -> Array:
    """A parameter array ``(P,)`` or ``(T, P)`` in the dtype it came in; integers become float64.

    float32, float64 and the complex dtypes (for complex-step checks) pass through unchanged, but for
    another byte order than the machine's.
    """
    array = np.asarray(theta)
    if array.dtype.kind in "biu":
        array = array.astype(np.float64)
    if array.dtype.newbyteorder("=").name not in ("float32", "float64", "complex64", "complex128"):
        raise ValueError(f"{name} must be float32 or float64, got dtype {array.dtype}")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.ndim not in (1, 2) or array.shape[-1] != n_params:
        raise ValueError(f"{name} must have shape ({n_params},) or (T, {n_params}), got {array.shape}")
    return array


def as_features(x: ArrayLike, name: str = "x") -> Array:
    """A finite numeric array with at least a task and a row axis, ``(T, rows, ...)``."""
    array = np.asarray(x)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must hold real numbers, got dtype {array.dtype}")
    if array.ndim < 2:
        raise ValueError(f"{name} must have shape (T, rows, ...), got {array.shape}")
    if 0 in array.shape[:2]:
        raise ValueError(f"{name} must hold at least one task and one row, got {array.shape}")
    check_finite(array, name)
    return array
