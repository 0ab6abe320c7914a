"""What scikit-learn expects of an estimator: parameters by name, rows that are checked, tags."""

from __future__ import annotations

import inspect
import sys
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.validation import Array, check_finite, is_missing, unknown_name, unmasked


class NotFittedError(ValueError, AttributeError):
    """An estimator was asked for what it has not learned yet."""


EstimatorT = TypeVar("EstimatorT", bound="Parameters")


class Parameters:
    """What was passed to the constructor, by name: nothing more happens there."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments; ``deep`` changes nothing."""
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names}

    def set_params(self: EstimatorT, **params: Any) -> EstimatorT:
        """Replace arguments of the constructor; ValueError names the nearest known one."""
        known = self.get_params()
        for name in params:
            if name not in known:
                raise unknown_name(name, list(known), f"parameter of {type(self).__name__}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        own = inspect.signature(type(self)).parameters
        given = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if value is not own[name].default
        ]
        return f"{type(self).__name__}({', '.join(given)})"

    def _fitted(self, attribute: str, call: str) -> None:
        if not hasattr(self, attribute):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call {call} first")


def column_names(X: Any) -> tuple[str, ...] | None:
    """Of a data frame: what its columns are called, if that is text."""
    names = tuple(getattr(X, "columns", ()))
    return names if names and all(isinstance(name, str) for name in names) else None


def as_rows(X: ArrayLike) -> Array:
    """Rows of features in float64, checked."""
    if hasattr(X, "tocsr"):
        raise ValueError("sparse X is not supported; pass X.toarray()")
    rows = _with_numbers(unmasked(X, "X"), "X")
    if rows.dtype.kind == "c":
        raise ValueError("Complex data not supported: X must hold real numbers")
    if rows.dtype.kind not in "biufO":
        raise ValueError(f"X must hold real numbers, got dtype {rows.dtype}")
    try:
        rows = rows.astype(np.float64)
    except (TypeError, OverflowError, ValueError) as error:  # what is no number
        raise ValueError(f"X must hold real numbers: {error}") from None
    if rows.ndim == 2 and not rows.shape[1]:
        raise ValueError(f"0 feature(s) (shape={rows.shape}) while a minimum of 1 is required.")
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"X must have shape (rows, features), at least (1, 1), got {rows.shape}")
    check_finite(rows, "X")
    return rows


def _with_numbers(rows: Array, name: str) -> Array:
    """The rows, or a ValueError that names the first cell that is missing, or text."""
    if rows.dtype.kind == "O":
        for place in np.ndindex(rows.shape):
            if isinstance(rows[place], str) or is_missing(rows[place]):
                raise ValueError(
                    f"{name} must hold real numbers, but {name}{list(place)} is {rows[place]!r}"
                )
    return rows


def as_column(values: ArrayLike, n_rows: int, name: str) -> Array:
    """One number, or one word, for each row; objects become numbers if that is what they are."""
    column = unmasked(values, name)
    if column.shape != (n_rows,):
        raise ValueError(f"{name} must have shape ({n_rows},), one for each row, got {column.shape}")
    if column.dtype.kind == "O":
        cells = column.tolist()
        text = [isinstance(cell, str) for cell in cells]
        if not any(text):
            column = np.array(cells)
        if not all(text) and (column.dtype.kind not in "biuf" or column.ndim > 1):
            i = text.index(False) if any(text) else 0
            raise ValueError(f"{name} must be text or numbers alone, but {name}[{i}] is {cells[i]!r}")
    if column.dtype.kind == "c":
        raise ValueError(f"{name} must hold real numbers, got dtype {column.dtype}")
    if column.dtype.kind == "f":
        check_finite(column, name)
    return column


def tags(kind: str | None) -> Any:
    """What scikit-learn asks for, in its own words: only it calls this, so it is there."""
    utils = sys.modules["sklearn.utils"]
    made = utils.Tags(kind, utils.TargetTags(required=kind is not None))
    if kind == "classifier":
        made.classifier_tags = utils.ClassifierTags()
    elif kind == "regressor":
        made.regressor_tags = utils.RegressorTags()
    return made
