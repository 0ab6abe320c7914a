"""Tasks from a table of your own: the rows of a CSV or NPZ file, grouped by a task column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from npmeta._support.options import parameters
from npmeta._support.validation import Array, check_flag, check_names, check_text, lookup, shown
from npmeta.tasks.batch import TaskBatch
from npmeta.tasks.checks import PathLike, check_counts, check_fractions, existing
from npmeta.tasks.columns import Columns, ordered, read_columns
from npmeta.tasks.draws import split_up, uniforms
from npmeta.tasks.encoding import Encoding
from npmeta.tasks.groups import Groups, warn_of_skipped

#: What a target may be said to be.
TARGET_KINDS = ("auto", "number", "class")


@dataclass(frozen=True, eq=False)
class Table:
    """Tasks that are groups of rows in one table: predict a target column from feature columns.

    The file is a CSV with a header line (commas, UTF-8) or an NPZ with an array for each column; a
    2-D array ``x`` in it is the columns ``x[0]``, ``x[1]``, ... Tasks, not rows, are split into train,
    validation and test. Features, and a target that is a number, are scaled to mean 0 and standard
    deviation 1 over the rows of the training tasks, so losses are in units of that deviation.

    Parameters
    ----------
    path : path-like
    shots, queries : int
        K and Q, support and query rows of a task. Tasks with fewer than K + Q rows are skipped, with
        a warning that names them.
    task, target : str
        Columns that name the task and that are to be predicted.
    features : sequence of str, optional
        Input columns; by default all others. All must hold numbers.
    kind : {"auto", "number", "class"}
        What the target is. By default numbers are numbers and other text is classes; a mixture has to
        be settled here.
    standardise : bool
        False leaves features and target in their own units.
    split_seed : int
        Decides which task goes where.
    fractions : (float, float, float)
        Shares of train, validation and test, with sum 1. A split of share 0 is empty; the others get
        at least one task each.
    encoding : Encoding, optional
        Use this one rather than fit one. Then target, kind and the features are its own (other values
        are refused), and ``standardise`` has nothing to decide.

    Attributes
    ----------
    encoding : Encoding
    skipped : tuple of (str, int)
        Tasks with too few rows, and how many they have.
    checksum : str
        SHA-256 of the file.
    n_in, n_out : int
        Number of features; 1, or the number of classes in the training tasks.

    Raises
    ------
    ValueError
        If an argument is out of range; the file cannot be read, has no such column, or has a cell
        that is empty or not a number where there must be one (column and line are named; the rows of
        an NPZ are counted from 0); too few tasks are left; or a class is in no training task.

    Examples
    --------
    >>> from npmeta.tasks import Table
    >>> tasks = Table("prices.csv", shots=5, queries=10, task="shop", target="price")  # doctest: +SKIP
    >>> tasks.sample(seed=0, iteration=7, n_tasks=25)  # doctest: +SKIP
    TaskBatch(25 tasks, support (5, 3) -> (1,), query (10, 3) -> (1,))
    """

    path: PathLike
    shots: int
    queries: int
    task: str
    target: str
    features: tuple[str, ...]
    kind: str
    standardise: bool
    split_seed: int
    fractions: tuple[float, float, float]
    encoding: Encoding = field(repr=False)

    skipped: tuple[tuple[str, int], ...] = field(init=False, repr=False)
    checksum: str = field(init=False, repr=False)
    _groups: Groups = field(init=False, repr=False)
    _split: Mapping[str, Array] = field(init=False, repr=False)
    _x: Array = field(init=False, repr=False)  # rows of one task after those of another
    _y: Array = field(init=False, repr=False)

    def __init__(
        self,
        path: PathLike,
        shots: int = 5,
        queries: int = 5,
        task: str = "task",
        target: str = "target",
        features: Sequence[str] | None = None,
        kind: str = "auto",
        standardise: bool = True,
        split_seed: int = 0,
        fractions: Sequence[float] = (0.7, 0.15, 0.15),
        encoding: Encoding | None = None,
    ) -> None:
        check_flag(standardise, "standardise")
        check_text(task, "task")
        check_text(target, "target")
        if features is not None:
            check_names(features, "features", "a sequence of columns")
        if encoding is not None:
            _check_encoding(encoding)
        self._set(path=path, shots=shots, queries=queries, task=task, standardise=standardise)
        self._set(split_seed=split_seed, fractions=check_fractions(fractions))
        check_counts(self, shots=1, queries=1, split_seed=0)
        lookup(kind, dict.fromkeys(TARGET_KINDS), "kind")
        if encoding is not None:
            _check_agreement(encoding, features, target, kind)
            features, target, kind = encoding.features, encoding.target, encoding.kind
        elif not self.fractions[0]:
            raise ValueError(
                f"a table without training tasks needs an encoding, got fractions {self.fractions}"
            )
        columns = read_columns(existing(path))
        task_of_row = columns.strings(task)
        names = columns.features(features, (task, target))
        if kind == "auto":
            kind = columns.kind(target)
        self._set(target=target, features=names, kind=kind, checksum=columns.checksum)
        x, y = columns.matrix(names), columns.targets(target, kind)
        groups = self._group(columns, task_of_row)
        rows = groups.rows
        x, y = x[rows], y[rows]
        if encoding is None:
            n_tasks = len(groups.count)
            train = np.isin(np.repeat(np.arange(n_tasks), groups.count), self._split["train"])
            encoding = self._fit(x[train], y[train])
        columns.check_classes(y, rows, encoding)
        self._set(encoding=encoding, _x=encoding.encode(x), _y=encoding.encode_targets(y))
        warn_of_skipped(groups, shots + queries, stacklevel=2)  # the caller of Table

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _group(self, columns: Columns, task_of_row: Array) -> Groups:
        """Find the tasks and split them."""
        names = ordered(task_of_row)
        number = {name: i for i, name in enumerate(names)}
        task = np.array([number[name] for name in task_of_row.tolist()])
        need = self.shots + self.queries
        try:
            groups = Groups.of(names, task, need)
            split = split_up(
                len(groups.names), self.fractions, self.split_seed, f"tasks with {need} rows or more"
            )
        except ValueError as error:
            raise columns.error(str(error)) from None
        self._set(skipped=groups.skipped, _groups=groups, _split=split)
        return groups

    def _fit(self, x: Array, y: Array) -> Encoding:
        """The encoding of these rows."""
        if self.kind == "number":
            return Encoding.fit(self.features, self.target, x, y, scaled=self.standardise)
        classes = tuple(ordered(y))
        if len(classes) == 1:
            raise ValueError(
                f"{self.path}: target {self.target!r} is {classes[0]!r} in all training tasks; "
                f"there is nothing to tell apart"
            )
        return Encoding.fit(self.features, self.target, x, classes=classes, scaled=self.standardise)

    @property
    def n_in(self) -> int:
        return self.encoding.n_in

    @property
    def n_out(self) -> int:
        return self.encoding.n_out

    def task_names(self, split: str = "train") -> list[str]:
        """Names of a split's tasks."""
        return [self._groups.names[i] for i in lookup(split, self._split, "split")]

    def on(self, path: PathLike) -> Table:
        """The same settings and encoding on another table, all of whose tasks are in the test split.

        Examples
        --------
        >>> new = tasks.on("prices_2025.csv")  # doctest: +SKIP
        >>> new.sample(seed=0, iteration=0, n_tasks=600, split="test")  # doctest: +SKIP
        """
        return replace(self, path=path, fractions=(0.0, 0.0, 1.0))

    def sample(
        self, seed: int, iteration: int, n_tasks: int, *, start: int = 0, split: str = "train"
    ) -> TaskBatch:
        """Tasks ``start .. start + n_tasks - 1`` of an iteration; the same call, the same tasks.

        Every task of the split is as likely as any other, whatever its number of rows, and may come
        more than once in a batch. The rows of a task are distinct.

        Parameters are those of :meth:`npmeta.tasks.Sinusoid.sample`.

        Returns
        -------
        TaskBatch
            Encoded features ``(n_tasks, K, n_in)`` and ``(n_tasks, Q, n_in)``, float64; targets
            ``(n_tasks, K, 1)`` and ``(n_tasks, Q, 1)``, or labels ``(n_tasks, K)`` and
            ``(n_tasks, Q)`` in int64.

        Raises
        ------
        ValueError
            If the split is unknown or empty, or a number is out of range.
        """
        task, u = self._draw(seed, iteration, n_tasks, start, split)
        return self._groups.batch(self._x, self._y, task, u, self.shots)

    def names(
        self, seed: int, iteration: int, n_tasks: int, *, start: int = 0, split: str = "train"
    ) -> list[str]:
        """Names of the same tasks."""
        task, _ = self._draw(seed, iteration, n_tasks, start, split)
        return [self._groups.names[i] for i in task]

    def _draw(
        self, seed: int, iteration: int, n_tasks: int, start: int, split: str
    ) -> tuple[Array, Array]:
        """Tasks ``(T,)`` and uniform numbers for their rows ``(T, K + Q)``."""
        own = lookup(split, self._split, "split")
        if not own.size:
            raise ValueError(f"the {split} split is empty: fractions are {self.fractions}")
        u = uniforms(seed, iteration, start, n_tasks, 1 + self.shots + self.queries, split)
        return own[(u[:, 0] * own.size).astype(np.int64)], u[:, 1:]


def read_rows(
    path: PathLike, encoding: Encoding, with_target: bool = True
) -> tuple[Array, Array | None]:
    """Encoded rows of a CSV or NPZ file: one task's support set, or inputs to predict from.

    Columns that the encoding does not name are ignored, and no task column is needed.

    Parameters
    ----------
    path : path-like
    encoding : Encoding
        That of the table the network was trained on.
    with_target : bool
        False where there is no target column, or it should not be read.

    Returns
    -------
    x : ndarray, (rows, n_in)
        float64.
    y : ndarray, (rows, 1), or of int64 labels (rows,); None without target

    Raises
    ------
    ValueError
        As for :class:`Table`; also if a class is not one of the encoding's.
    """
    _check_encoding(encoding)
    check_flag(with_target, "with_target")
    columns = read_columns(existing(path))
    x = encoding.encode(columns.matrix(columns.features(encoding.features)))
    if not with_target:
        return x, None
    y = columns.targets(encoding.target, encoding.kind)
    columns.check_classes(y, np.arange(len(y)), encoding)
    return x, encoding.encode_targets(y)


def _check_encoding(encoding: object) -> None:
    if not isinstance(encoding, Encoding):
        raise ValueError(f"encoding must be an Encoding, got {shown(encoding)}")


def _check_agreement(
    encoding: Encoding, features: Sequence[str] | None, target: str, kind: str
) -> None:
    """Raise ValueError if an argument is neither left at its default nor the encoding's."""
    features = None if features is None else tuple(features)
    for name, given in (("features", features), ("target", target), ("kind", kind)):
        own = getattr(encoding, name)
        if given not in (parameters(Table)[name].default, own):
            raise ValueError(f"{name} must be the encoding's, {own!r}, got {given!r}")
