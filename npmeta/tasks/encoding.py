"""How rows of a table become what a network sees, and its outputs answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.reading import check_json
from npmeta._support.validation import (
    Array,
    as_array,
    as_number,
    check_converged,
    check_finite,
    check_names,
    check_text,
    shown,
    unknown_name,
    unmasked,
)

#: Of the fields, as JSON has them.
KIND = {
    "features": [str],
    "target": str,
    "mean": [float],
    "std": [float],
    "target_mean": float,
    "target_std": float,
    "classes": (None, [str]),
}


@dataclass(frozen=True)
class Encoding:
    """How rows of a table become what the network sees, and its outputs become answers.

    A :class:`Table` fits one to its training tasks. Kept beside the trained network (it goes into
    JSON by way of :meth:`to_dict`), it is all that later predictions need of the table.

    Parameters
    ----------
    features : tuple of str
        Columns that are the inputs, in order.
    target : str
        Column to be predicted.
    mean, std : tuple of float
        Of each feature; inputs are (x − mean) / std.
    target_mean, target_std : float
        The same for a target that is a number.
    classes : tuple of str or None
        Names behind labels 0, 1, ..; None where the target is a number.

    Attributes
    ----------
    kind : {"number", "class"}
    n_in, n_out : int
        Number of features; 1 for a number, else the number of classes.

    Raises
    ------
    ValueError
        If there are no features, names are repeated, lengths differ, a number is not finite, a
        standard deviation is not positive, or there is only one class.

    Examples
    --------
    >>> from npmeta.tasks import Encoding
    >>> encoding = Encoding(("hour", "load"), "price", mean=(12, 50), std=(6, 10), target_mean=30)
    >>> encoding.encode([[18, 45]])
    array([[ 1. , -0.5]])
    >>> encoding.decode([[2.5]])
    array([32.5])
    """

    features: tuple[str, ...]
    target: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    target_mean: float = 0.0
    target_std: float = 1.0
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_names(self.features, "features")
        check_text(self.target, "target")
        if self.classes is not None:
            check_names(self.classes, "classes")
            object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "features", tuple(self.features))
        for name in ("mean", "std"):
            numbers = as_array(getattr(self, name), name, "iuf")
            if numbers.ndim != 1:
                raise ValueError(f"{name} must have a number for each feature, got {shown(numbers)}")
            object.__setattr__(self, name, tuple(numbers.astype(np.float64).tolist()))
        for name in ("target_mean", "target_std"):
            object.__setattr__(self, name, as_number(getattr(self, name), name, "a finite number"))
        n = len(self.features)
        if not n or len(set(self.features)) < n:
            raise ValueError(f"features must be different columns, at least one, got {self.features}")
        if len(self.mean) != n or len(self.std) != n:
            raise ValueError(
                f"mean and std must have a number for each of {n} features, got {len(self.mean)} and "
                f"{len(self.std)}"
            )
        check_finite(np.array([*self.mean, self.target_mean], dtype=float), "mean and target_mean")
        deviations = np.array([*self.std, self.target_std], dtype=float)
        check_finite(deviations, "std and target_std")
        if deviations.min() <= 0:
            raise ValueError(f"std and target_std must be positive, got {deviations.min()}")
        if self.classes is not None and not 1 < len(self.classes) == len(set(self.classes)):
            raise ValueError(f"classes must be at least two different names, got {self.classes}")

    @staticmethod
    def fit(
        features: Sequence[str],
        target: str,
        x: Array,
        y: Array | None = None,
        classes: Sequence[str] | None = None,
        *,
        scaled: bool = True,
    ) -> Encoding:
        """The encoding of rows x ``(rows, n_in)``, and of numbers y ``(rows,)`` or of classes.

        Features and numbers get mean 0 and standard deviation 1, or keep their units if not
        ``scaled``.
        """
        names = None if classes is None else tuple(classes)
        if not scaled:
            n = len(features)
            return Encoding(tuple(features), target, (0.0,) * n, (1.0,) * n, classes=names)
        mean, std = _moments(x)
        target_mean, target_std = (0.0, 1.0) if y is None else map(float, _moments(y))
        scales = tuple(mean.tolist()), tuple(std.tolist()), target_mean, target_std
        return Encoding(tuple(features), target, *scales, names)

    @property
    def kind(self) -> str:
        return "number" if self.classes is None else "class"

    @property
    def n_in(self) -> int:
        return len(self.features)

    @property
    def n_out(self) -> int:
        return 1 if self.classes is None else len(self.classes)

    def encode(self, x: ArrayLike) -> Array:
        """Network inputs for rows of features in the table's units, both ``(..., n_in)``."""
        rows = _as_float64(x, "x")
        if rows.ndim < 1 or rows.shape[-1] != self.n_in:
            raise ValueError(f"x must have shape (..., {self.n_in}), got {rows.shape}")
        check_finite(rows, "x")
        return (rows - self.mean) / self.std

    def encode_targets(self, y: ArrayLike) -> Array:
        """Targets for the loss: numbers ``(...)`` to ``(..., 1)``, class names to labels ``(...)``.

        Raises
        ------
        ValueError
            If a number is not finite or a class is not one of :attr:`classes`.
        """
        if self.classes is None:
            numbers = _as_float64(y, "y")
            check_finite(numbers, "y")
            return (numbers[..., None] - self.target_mean) / self.target_std
        names = unmasked(y, "y")
        label = {name: i for i, name in enumerate(self.classes)}
        for name in names.flat:
            if str(name) not in label:
                raise unknown_name(str(name), list(self.classes), "class")
        labels = np.array([label[str(name)] for name in names.flat], dtype=np.int64)
        return labels.reshape(names.shape)

    def decode(self, outputs: ArrayLike) -> Array:
        """Answers for outputs ``(..., n_out)``: numbers in the table's units or class names ``(...)``.

        The class with the largest output is the answer.

        Raises
        ------
        ValueError
            If the shape is another.
        DivergedError
            If an output is not finite.
        """
        o = as_array(outputs, "outputs")
        if o.ndim < 1 or o.shape[-1] != self.n_out:
            raise ValueError(f"outputs must have shape (..., {self.n_out}), got {o.shape}")
        check_converged(o)
        answers: Array
        if self.classes is None:
            answers = self.target_mean + self.target_std * o[..., 0]
        else:
            answers = np.array(self.classes)[o.argmax(-1)]
        return answers

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them: lists, numbers and strings."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Encoding:
        """The encoding that :meth:`to_dict` gave.

        Raises
        ------
        ValueError
            If a field is missing, unknown, of another type or out of range.
        """
        check_json(values, KIND, "an encoding")
        names = [f.name for f in fields(Encoding)]
        for name in values:
            if name not in names:
                raise unknown_name(name, names, "field of an encoding")
        return Encoding(**values)


def _as_float64(values: ArrayLike, name: str) -> Array:
    array = unmasked(values, name)
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:  # text, None, pandas' NA, 10**400
        raise ValueError(f"{name} must hold real numbers: {error}") from None


def _moments(values: Array) -> tuple[Array, Array]:
    """Mean and standard deviation over rows; 1 where all are equal."""
    # In units of the range, squares neither overflow nor vanish, and equal numbers have mean exactly
    # what they are.
    low = values.min(0)
    span = values.max(0) - low
    unit = (values - low) / np.where(span > 0, span, 1)
    std = span * unit.std(0)
    return low + span * unit.mean(0), np.where(std > 0, std, 1)
