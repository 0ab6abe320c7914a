"""A batch of tasks: what every algorithm is given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.validation import Array, as_array, as_features, shown


@dataclass(frozen=True, eq=False)
class TaskBatch:
    """The support and query sets of T tasks, with as many rows in each task.

    Parameters
    ----------
    support_x : array_like, (T, K, n_in)
        K rows to adapt on. Your own objective may have more axes.
    support_y : array_like, (T, K, n_out) or integer labels (T, K)
    query_x : array_like, (T, Q, n_in)
        Q rows to be scored on; Q need not be K.
    query_y : array_like, (T, Q, n_out) or integer labels (T, Q)

    Raises
    ------
    ValueError
        If a set is empty or not numeric, a value is not finite, or tasks, rows or the numbers of
        inputs disagree.

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> x, y = np.zeros((3, 12, 2)), np.zeros((3, 12), dtype=int)
    >>> tasks = nm.TaskBatch(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:])
    >>> tasks
    TaskBatch(3 tasks, support (5, 2) -> labels, query (7, 2) -> labels)
    >>> len(tasks[:2])
    2
    """

    support_x: Array
    support_y: Array
    query_x: Array
    query_y: Array

    def __init__(
        self, support_x: ArrayLike, support_y: ArrayLike, query_x: ArrayLike, query_y: ArrayLike
    ) -> None:
        arrays = {
            "support_x": as_features(support_x, "support_x"),
            "support_y": as_features(support_y, "support_y"),
            "query_x": as_features(query_x, "query_x"),
            "query_y": as_features(query_y, "query_y"),
        }
        shapes = {name: array.shape for name, array in arrays.items()}
        if len({shape[0] for shape in shapes.values()}) != 1:
            raise ValueError(f"all sets must have as many tasks, got {shapes}")
        for part in ("support", "query"):
            if shapes[f"{part}_x"][1] != shapes[f"{part}_y"][1]:
                raise ValueError(
                    f"{part}_x and {part}_y must have as many rows, got "
                    f"{shapes[f'{part}_x'][1]} and {shapes[f'{part}_y'][1]}"
                )
        for part in ("x", "y"):
            if shapes[f"support_{part}"][2:] != shapes[f"query_{part}"][2:]:
                raise ValueError(
                    f"support_{part} and query_{part} must agree in every axis after the rows, got "
                    f"{shapes[f'support_{part}']} and {shapes[f'query_{part}']}"
                )
        for name, array in arrays.items():
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.support_x)

    def __getitem__(self, tasks: slice | list[int] | Array) -> TaskBatch:
        """The tasks of a slice or of a list of indices, as a batch.

        Raises
        ------
        ValueError
            If it is something else.
        IndexError
            If there is no such task.
        """
        if not isinstance(tasks, slice):
            indices = np.atleast_1d(as_array(tasks, "tasks"))
            if indices.dtype.kind not in "iub" or indices.ndim != 1:
                raise ValueError(
                    f"tasks must be a slice or a list of whole numbers, got {shown(tasks)}"
                )
            if indices.dtype.kind == "b" and len(indices) != len(self):
                raise ValueError(f"there are {len(self)} tasks, got {len(indices)} flags")
            tasks = indices
        return TaskBatch(
            self.support_x[tasks], self.support_y[tasks], self.query_x[tasks], self.query_y[tasks]
        )

    def __repr__(self) -> str:
        def shown(x: Array, y: Array) -> str:
            labels = y.ndim == 2 and y.dtype.kind in "iu"
            return f"{x.shape[1:]} -> {'labels' if labels else y.shape[2:]}"

        support = shown(self.support_x, self.support_y)
        query = shown(self.query_x, self.query_y)
        return f"TaskBatch({len(self)} tasks, support {support}, query {query})"
