"""The boundary: what public functions check once, so that everything inside may trust it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Any floating (or, inside a complex-step check, complex) array, and its dtype.
Array: TypeAlias = NDArray[Any]
DType: TypeAlias = np.dtype[Any]

Entry = TypeVar("Entry")

#: How alike a name must be to be suggested, from 0 to 1: a slip of the fingers is, another word is not.
NEAR = 0.55

#: Letters of a value that an error message shows.
LONGEST_SHOWN = 100

#: Names that an error message lists at most.
MOST_LISTED = 16


def unknown_name(name: object, known: list[str], kind: str) -> ValueError:
    """The error for a name that is not known, with the nearest one that is."""
    near = nearest(str(name), known)
    hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    listed = ", ".join(map(shortened, known[:MOST_LISTED])) + (", ..." * (len(known) > MOST_LISTED))
    came = repr(name) if isinstance(name, str) and len(name) <= LONGEST_SHOWN else shown(name)
    return ValueError(f"unknown {kind} {came}{hint}; known: {listed}")


def shortened(name: str, most: int = LONGEST_SHOWN) -> str:
    """A name that a file has, for a message: printable, and not long."""
    text = name if name.isprintable() else ascii(name)[1:-1]
    return text if len(text) <= most else f"{text[:most]}..."


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """What somebody may have meant: the name most like it, or one or two that end in it."""
    by_letters = {entry.lower().lstrip("-"): entry for entry in known}
    letters = name.lower().lstrip("-")[:LONGEST_SHOWN]
    near = get_close_matches(letters, by_letters, n=1, cutoff=NEAR)
    if not near:  # lr is said for inner-lr and outer-lr, but learn-inner-lr is farther
        ends = {
            entry: words for entry in by_letters if (words := re.split("[-_ ]", entry))[-1] == letters
        }
        near = [entry for entry in ends if len(ends[entry]) == min(map(len, ends.values()))]
    return [by_letters[entry] for entry in near] if len(near) <= 2 else []


def lookup(name: str, registry: Mapping[str, Entry], kind: str) -> Entry:
    """``registry[name]``, or a ValueError that names the nearest known entry."""
    if not isinstance(name, str) or name not in registry:
        raise unknown_name(name, list(registry), kind)
    return registry[name]


def lookup_made(
    name: str, registry: Mapping[str, Entry], makers: Mapping[str, Callable[[float], Entry]], kind: str
) -> Entry:
    """As :func:`lookup`; or what a maker makes of the number in "maker(number)"."""
    match = re.fullmatch(r"(\w+)\((.+)\)", name) if isinstance(name, str) else None
    if match is None or match[1] not in makers:
        return lookup(name, registry, kind)
    try:
        number = float(match[2])
    except ValueError:
        raise ValueError(f"{kind} {shown(name)} must have a number in its brackets") from None
    return makers[match[1]](number)


def shown(value: object) -> str:
    """What came, for a message of one line; its type where it has no such name."""
    try:
        text = repr(value)
    except Exception:  # another's object
        text = ""
    fits = 0 < len(text) <= LONGEST_SHOWN and text.isprintable()
    return text if fits else f"{'an' if type(value).__name__[:1] in 'aeiou' else 'a'} {_type_of(value)}"


def _type_of(value: object) -> str:
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__}{f' of shape {shape}' if isinstance(shape, tuple) else ''}"


def _masked(value: object) -> bool:
    """Whether an array, or one in lists of them, has masked entries: NumPy would drop the mask."""
    if isinstance(value, np.ma.MaskedArray):
        return bool(np.ma.is_masked(value))
    return isinstance(value, list | tuple) and any(map(_masked, value))


def unmasked(value: Any, name: str) -> Array:
    """An array as NumPy makes it, or a ValueError if entries are masked: it would drop the mask."""
    if type(value) is not np.ndarray and _masked(value):
        raise ValueError(
            f"{name} has masked entries, for which there are no numbers; leave out their rows, or "
            f"fill them yourself (numpy.ma.filled)"
        )
    return np.asarray(value)


def as_array(value: object, name: str, kinds: str = "biufc") -> Array:
    """An array of numbers; ``kinds`` are the kinds of dtype allowed (with "O", "U" and "S" also text).

    A masked array without masked entries says nothing that its data does not, and passes.

    Raises
    ------
    ValueError
        If entries are masked, rows differ in length, or the dtype is of another kind.
    """
    try:
        array = unmasked(value, name)
    except Exception as error:  # lists of several lengths; a tensor that is on another device
        if _masked(value):
            raise
        raise ValueError(f"{name} must be an array, got {shown(value)}: {error}") from None
    if array.dtype.kind not in kinds:
        missing = [cell for cell in array.flat if is_missing(cell)] if array.dtype.kind == "O" else []
        which = f", with {missing[0]!r} among its values" if missing else ""
        raise ValueError(f"{name} must hold real numbers, got dtype {array.dtype}{which}")
    return array


def is_missing(cell: object) -> bool:
    """None, pandas' NA and NaT, NumPy's NaT."""
    return cell is None or type(cell).__name__ in ("NAType", "NaTType") or str(cell) == "NaT"


def as_generator(rng: np.random.Generator | int, name: str = "rng") -> np.random.Generator:
    """The generator, or one with that seed."""
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, bool) or not isinstance(rng, int | np.integer) or rng < 0:
        raise ValueError(
            f"{name} must be a numpy.random.Generator, or a seed, a whole number of at least 0; got "
            f"{shown(rng)}"
        )
    return np.random.default_rng(int(rng))


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
    # What stands for a number is one: a Python or NumPy number, an array without axes.
    number = np.asarray(None if isinstance(value, Sequence) or _masked(value) else value)
    real = number.ndim == 0 and number.dtype.kind in "iuf" and np.isfinite(number)
    if not real or not fits(float(number)):
        raise ValueError(f"{name} must be {kind}, got {shown(value)}")
    return float(number)


def as_whole(value: Any, name: str, low: int = 0, high: int = 2**64 - 1) -> int:
    """A whole number from ``low`` to ``high``, or a ValueError."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, got {shown(value)}")
    if value > high:
        raise ValueError(f"{name} must be a whole number of at most {high}, got {shown(value)}")
    return int(value)


def as_list(value: Any, name: str, kind: str) -> list[Any]:
    """The items of what has an order (a list, an array with one axis, a column of a data frame).

    ValueError "{name} must be {kind}" for anything else.
    """
    ordered = isinstance(value, Iterable) and not isinstance(value, str | bytes | set | frozenset)
    if not ordered or getattr(value, "ndim", 1) != 1:
        raise ValueError(f"{name} must be {kind}, got {shown(value)}")
    return list(value)


def as_range(value: Any, name: str) -> tuple[float, float]:
    """Two finite numbers in order, or a ValueError."""
    kind = "a range (low, high)"
    bounds = [as_number(x, name, f"{kind} of finite numbers") for x in as_list(value, name, kind)]
    if len(bounds) != 2 or bounds[0] > bounds[1]:
        raise ValueError(f"{name} must be {kind}, got {shown(value)}")
    return bounds[0], bounds[1]


def as_precision(dtype: Any, name: str = "dtype") -> DType:
    """float32 or float64, or a ValueError."""
    try:
        made: DType | None = None if dtype is None else np.dtype(dtype)
    except Exception:  # NumPy has many words for what is none
        made = None
    if made is None or made.newbyteorder("=") not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"{name} must be float32 or float64, got {shown(dtype)}")
    return made.newbyteorder("=")


def check_text(value: object, name: str) -> None:
    """Raise ValueError unless it is a string."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, got {shown(value)}")


def check_names(value: Any, name: str, kind: str = "a list of strings") -> None:
    """Raise ValueError unless it is a list of strings."""
    if not all(isinstance(item, str) for item in as_list(value, name, kind)):
        raise ValueError(f"{name} must be {kind}, got {shown(value)}")


def check_mapping(value: object, name: str) -> None:
    """Raise ValueError unless it is a mapping by name."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} must be a mapping by name, got {shown(value)}")


def check_function(value: object, name: str) -> None:
    """Raise ValueError unless it can be called."""
    if not callable(value) or isinstance(value, type):
        raise ValueError(f"{name} must be a function, got {shown(value)}")


def check_has(value: object, name: str, kind: str, *methods: str) -> None:
    """Raise ValueError unless it has the methods of its kind."""
    if isinstance(value, type) or not all(callable(getattr(value, m, None)) for m in methods):
        raise ValueError(f"{name} must be {kind}, got {shown(value)}")


def check_flag(value: object, name: str) -> None:
    """Raise ValueError unless it is True or False: what is meant for another argument is neither."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")


def as_parameters(theta: ArrayLike, n_params: int, name: str = "theta") -> Array:
    """A parameter array ``(P,)`` or ``(T, P)`` in the dtype it came in; integers become float64.

    float32, float64 and the complex dtypes (for complex-step checks) pass through unchanged, but for
    another byte order than the machine's.
    """
    array = unmasked(theta, name)
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
    array = as_array(x, name, "biuf")
    if array.ndim < 2:
        raise ValueError(f"{name} must have shape (T, rows, ...), got {array.shape}")
    if 0 in array.shape[:2]:
        raise ValueError(f"{name} must hold at least one task and one row, got {array.shape}")
    check_finite(array, name)
    return array
