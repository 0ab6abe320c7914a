"""Tasks as an estimator is given them: a distribution, or a table with the task of each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.validation import Array
from npmeta.estimators.conventions import as_column, as_rows, column_names
from npmeta.tasks import Encoding, TaskBatch
from npmeta.tasks.draws import uniforms
from npmeta.tasks.groups import Groups, warn_of_skipped
from npmeta.training.config import Config


@dataclass(frozen=True, eq=False)
class Grouped:
    """A sampler of tasks whose rows are in arrays."""

    groups: Groups
    x: Array
    y: Array
    shots: int
    queries: int

    def sample(
        self, seed: int, iteration: int, n_tasks: int, *, start: int = 0, split: str = "train"
    ) -> TaskBatch:
        """As :meth:`npmeta.tasks.Table.sample`, of one split."""
        u = uniforms(seed, iteration, start, n_tasks, 1 + self.shots + self.queries, split)
        task = (u[:, 0] * len(self.groups.count)).astype(np.int64)
        return self.groups.batch(self.x, self.y, task, u[:, 1:], self.shots)


def of_table(
    X: ArrayLike, y: ArrayLike | None, groups: ArrayLike | None, config: Config
) -> tuple[Grouped, Encoding, Array | None]:
    """Tasks, encoding and classes of a table."""
    x = as_rows(X)
    if y is None or groups is None:
        raise ValueError("a table needs y and groups, which names the task of each row")
    targets, task_of_row = as_column(y, len(x), "y"), as_column(groups, len(x), "groups")
    names, task = np.unique(task_of_row, return_inverse=True)
    shots, queries = config["shots"], config["queries"]
    tasks = Groups.of([str(name) for name in names], task, shots + queries)
    warn_of_skipped(tasks, shots + queries, stacklevel=3)  # the caller of fit
    x, targets = x[tasks.rows], targets[tasks.rows]
    text = targets.dtype.kind in "USOb"
    if config["target_kind"] == "number" and text:
        raise ValueError(f"y must hold numbers, got dtype {targets.dtype}")
    classes = None
    if config["target_kind"] == "class" or text:
        classes, targets = np.unique(targets, return_inverse=True)
        if len(classes) == 1:
            raise ValueError(f"y is {str(classes[0])!r} throughout; there is nothing to tell apart")
    numbers = targets if classes is None else None
    features = column_names(X) or _columns(x.shape[1])
    encoding = Encoding.fit(features, "y", x, numbers, scaled=config["standardise"])
    if classes is None:
        targets = encoding.encode_targets(targets)
    return Grouped(tasks, encoding.encode(x), targets, shots, queries), encoding, classes


def of_distribution(tasks: Any, first: TaskBatch) -> tuple[Encoding, Array | None, int]:
    """Encoding, shared classes, and number of outputs, as a distribution or its first task says."""
    x, y = first.support_x, first.support_y
    labels = y.ndim == 2 and y.dtype.kind in "iu"
    if not labels and y.shape[2:] not in ((), (1,)):
        raise ValueError(f"targets must be one number or label a row, got shape {y.shape[2:]}")
    highest = max(int(y.max()), int(first.query_y.max())) + 1 if labels else 1
    n_out = int(getattr(tasks, "n_out", highest))
    encoding = getattr(tasks, "encoding", None)
    if encoding is not None:
        return encoding, None if encoding.classes is None else np.array(encoding.classes), n_out
    n = x.shape[2]
    return Encoding(_columns(n), "y", (0.0,) * n, (1.0,) * n), None, n_out


def _columns(n: int) -> tuple[str, ...]:
    return tuple(f"x[{i}]" for i in range(n))
