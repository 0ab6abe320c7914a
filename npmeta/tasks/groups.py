"""Rows of one table by task: which tasks have enough of them, and batches of what is drawn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from npmeta._support.validation import Array, shortened
from npmeta.tasks.batch import TaskBatch
from npmeta.tasks.draws import distinct


@dataclass(frozen=True, eq=False)
class Groups:
    """Tasks with enough rows.

    Attributes
    ----------
    names : list of str
    count, first : ndarray of int, (n_tasks,)
        Rows of each task, and where they begin among ``rows``.
    rows : ndarray of int
        The rows to keep, those of one task after those of another.
    skipped : tuple of (str, int)
        Tasks with too few rows, and how many they have.
    """

    names: list[str]
    count: Array
    first: Array
    rows: Array
    skipped: tuple[tuple[str, int], ...]

    @staticmethod
    def of(names: Sequence[str], task: Array, need: int) -> Groups:
        """Of rows that belong to task ``task[i]``, an index of names; ValueError if none has enough."""
        count = np.bincount(task)
        enough = count >= need
        if not enough.any():
            raise ValueError(
                f"no task has the {need} rows that shots + queries ask for; the largest, "
                f"{names[int(count.argmax())]!r}, has {count.max()}"
            )
        kept, rows = count[enough], np.argsort(task, kind="stable")
        return Groups(
            [names[i] for i in np.flatnonzero(enough).tolist()],
            kept,
            np.cumsum(kept) - kept,
            rows[enough[task[rows]]],
            tuple((names[i], int(count[i])) for i in np.flatnonzero(~enough).tolist()),
        )

    def batch(self, x: Array, y: Array, task: Array, u: Array, shots: int) -> TaskBatch:
        """Of the kept rows x and y, distinct ones of each task, by uniform numbers ``(T, K + Q)``."""
        row = self.first[task, None] + distinct(u, self.count[task])
        x, y = x[row], y[row]
        return TaskBatch(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])


def warn_of_skipped(groups: Groups, need: int, stacklevel: int) -> None:
    """Name tasks that have too few rows, if there are any."""
    if not groups.skipped:
        return
    shown = ", ".join(f"{shortened(name)} ({rows})" for name, rows in groups.skipped[:10])
    more = f" and {len(groups.skipped) - 10} more" if len(groups.skipped) > 10 else ""
    warnings.warn(
        f"tasks with fewer than {need} rows are skipped: {shown}{more}", stacklevel=stacklevel + 1
    )
