"""Tasks from a table of your own: the rows of a CSV or NPZ file, grouped by a task column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from npmeta._validation import Array, check_finite, lookup, unknown_name
from npmeta.tasks.batch import TaskBatch
from npmeta.tasks.draws import uniforms
from npmeta.tasks.omniglot import PathLike, check_counts, check_fractions, distinct, existing, split_up

__all__ = ["Encoding", "Table", "read_rows"]


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
        for name in ("features", "mean", "std", "classes"):  # JSON has lists
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
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
        rows = np.asarray(x, dtype=np.float64)
        if rows.ndim < 1 or rows.shape[-1] != self.n_in:
            raise ValueError(f"x must have shape (..., {self.n_in}), got {rows.shape}")
        check_finite(rows, "x")
        encoded: Array = (rows - self.mean) / self.std
        return encoded

    def encode_targets(self, y: ArrayLike) -> Array:
        """Targets for the loss: numbers ``(...)`` to ``(..., 1)``, class names to labels ``(...)``.

        Raises
        ------
        ValueError
            If a number is not finite or a class is not one of :attr:`classes`.
        """
        if self.classes is None:
            numbers = np.asarray(y, dtype=np.float64)
            check_finite(numbers, "y")
            encoded: Array = (numbers[..., None] - self.target_mean) / self.target_std
            return encoded
        names = np.asarray(y)
        label = {name: i for i, name in enumerate(self.classes)}
        for name in names.flat:
            if str(name) not in label:
                raise unknown_name(str(name), list(self.classes), "class")
        labels = np.array([label[str(name)] for name in names.flat], dtype=np.int64)
        return labels.reshape(names.shape)

    def decode(self, outputs: ArrayLike) -> Array:
        """Answers for outputs ``(..., n_out)``: numbers in the table's units or class names ``(...)``.

        The class with the largest output is the answer.
        """
        o = np.asarray(outputs)
        if o.ndim < 1 or o.shape[-1] != self.n_out:
            raise ValueError(f"outputs must have shape (..., {self.n_out}), got {o.shape}")
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
            If a field is missing, unknown or out of range.
        """
        names = [f.name for f in fields(Encoding)]
        for name in values:
            if name not in names:
                raise unknown_name(name, names, "field of an encoding")
        for name in names:
            if name not in values:
                raise ValueError(f"an encoding needs the field {name!r}")
        return Encoding(**values)


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
    _names: list[str] = field(init=False, repr=False)
    _split: Mapping[str, Array] = field(init=False, repr=False)
    _x: Array = field(init=False, repr=False)  # rows of one task after those of another
    _y: Array = field(init=False, repr=False)
    _first: Array = field(init=False, repr=False)
    _count: Array = field(init=False, repr=False)

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
        self._set(path=path, shots=shots, queries=queries, task=task, standardise=standardise)
        self._set(split_seed=split_seed, fractions=check_fractions(fractions))
        check_counts(self, shots=1, queries=1, split_seed=0)
        lookup(kind, {"auto": 0, "number": 0, "class": 0}, "kind")
        if encoding is not None:
            _check_agreement(encoding, features, target, kind)
            features, target, kind = encoding.features, encoding.target, encoding.kind
        elif not self.fractions[0]:
            raise ValueError(
                f"a table without training tasks needs an encoding, got fractions {self.fractions}"
            )
        columns = _read(existing(path))
        task_of_row = columns.strings(task)
        names = columns.features(features, (task, target))
        if kind == "auto":
            kind = columns.kind(target)
        self._set(target=target, features=names, kind=kind, checksum=columns.checksum)
        x, y = columns.matrix(names), columns.targets(target, kind)
        rows = self._group(columns, task_of_row)
        x, y = x[rows], y[rows]
        if encoding is None:
            train = np.isin(np.repeat(np.arange(len(self._count)), self._count), self._split["train"])
            encoding = self._fit(x[train], y[train])
        columns.check_classes(y, rows, encoding)
        self._set(encoding=encoding, _x=encoding.encode(x), _y=encoding.encode_targets(y))
        if self.skipped:
            _warn_of_skipped(self.skipped, shots + queries)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _group(self, columns: _Columns, task_of_row: Array) -> Array:
        """Find the tasks and split them; the rows to keep, task by task."""
        names = _ordered(task_of_row)
        number = {name: i for i, name in enumerate(names)}
        task = np.array([number[name] for name in task_of_row.tolist()])
        count = np.bincount(task)
        need = self.shots + self.queries
        enough = count >= need
        if not enough.any():
            raise columns.error(
                f"no task has the {need} rows that shots + queries ask for; the largest, "
                f"{names[count.argmax()]!r}, has {count.max()}"
            )
        skipped = tuple((names[i], int(count[i])) for i in np.flatnonzero(~enough))
        names, count = [names[i] for i in np.flatnonzero(enough)], count[enough]
        try:
            split = split_up(
                len(names), self.fractions, self.split_seed, f"tasks with {need} rows or more"
            )
        except ValueError as error:
            raise columns.error(str(error)) from None
        self._set(
            skipped=skipped, _names=names, _split=split, _first=np.cumsum(count) - count, _count=count
        )
        rows = np.argsort(task, kind="stable")
        kept: Array = rows[enough[task[rows]]]
        return kept

    def _fit(self, x: Array, y: Array) -> Encoding:
        """The encoding of these rows."""
        n = x.shape[1]
        mean, std, target_mean, target_std = np.zeros(n), np.ones(n), 0.0, 1.0
        if self.standardise:
            mean, std = _moments(x)
        classes = None
        if self.kind == "class":
            classes = tuple(_ordered(y))
            if len(classes) == 1:
                raise ValueError(
                    f"{self.path}: target {self.target!r} is {classes[0]!r} in all training tasks; "
                    f"there is nothing to tell apart"
                )
        elif self.standardise:
            target_mean, target_std = map(float, _moments(y))
        return Encoding(
            self.features,
            self.target,
            tuple(mean.tolist()),
            tuple(std.tolist()),
            target_mean,
            target_std,
            classes,
        )

    @property
    def n_in(self) -> int:
        return self.encoding.n_in

    @property
    def n_out(self) -> int:
        return self.encoding.n_out

    def task_names(self, split: str = "train") -> list[str]:
        """Names of a split's tasks."""
        return [self._names[i] for i in lookup(split, self._split, "split")]

    def on(self, path: PathLike) -> Table:
        """The same settings and encoding on another table, all of whose tasks are in the test split.

        Examples
        --------
        >>> new = tasks.on("prices_2025.csv")  # doctest: +SKIP
        >>> new.sample(seed=0, iteration=0, n_tasks=600, split="test")  # doctest: +SKIP
        """
        return replace(self, path=path, fractions=(0.0, 0.0, 1.0))

    def sample(
        self,
        seed: int,
        iteration: int,
        n_tasks: int,
        *,
        start: int = 0,
        split: str = "train",
    ) -> TaskBatch:
        """Tasks ``start .. start + n_tasks - 1`` of an iteration; the same call, the same tasks.

        Every task of the split is as likely as any other, whatever its number of rows, and may come
        more than once in a batch. The rows of a task are distinct.

        Parameters
        ----------
        seed : int
            0 to 2**64 - 1.
        iteration, start, n_tasks : int
        split : {"train", "validation", "test"}

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
        row = self._first[task, None] + distinct(u, self._count[task])
        x, y, K = self._x[row], self._y[row], self.shots
        return TaskBatch(x[:, :K], y[:, :K], x[:, K:], y[:, K:])

    def names(
        self, seed: int, iteration: int, n_tasks: int, *, start: int = 0, split: str = "train"
    ) -> list[str]:
        """Names of the same tasks."""
        task, _ = self._draw(seed, iteration, n_tasks, start, split)
        return [self._names[i] for i in task]

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
    columns = _read(existing(path))
    x = encoding.encode(columns.matrix(columns.features(encoding.features)))
    if not with_target:
        return x, None
    y = columns.targets(encoding.target, encoding.kind)
    columns.check_classes(y, np.arange(len(y)), encoding)
    return x, encoding.encode_targets(y)


def _check_agreement(
    encoding: Encoding, features: Sequence[str] | None, target: str, kind: str
) -> None:
    """Raise ValueError if an argument is neither left at its default nor the encoding's."""
    for name, given, default in (
        ("features", None if features is None else tuple(features), None),
        ("target", target, "target"),
        ("kind", kind, "auto"),
    ):
        own = getattr(encoding, name)
        if given not in (default, own):
            raise ValueError(f"{name} must be the encoding's, {own!r}, got {given!r}")


def _moments(values: Array) -> tuple[Array, Array]:
    """Mean and standard deviation over rows; 1 where all are equal."""
    # In units of the range, squares neither overflow nor vanish, and equal numbers have mean exactly
    # what they are.
    low = values.min(0)
    span = values.max(0) - low
    unit = (values - low) / np.where(span > 0, span, 1)
    std = span * unit.std(0)
    return low + span * unit.mean(0), np.where(std > 0, std, 1)


def _warn_of_skipped(skipped: Sequence[tuple[str, int]], need: int) -> None:
    import warnings

    shown = ", ".join(f"{name} ({rows})" for name, rows in skipped[:10])
    more = f" and {len(skipped) - 10} more" if len(skipped) > 10 else ""
    warnings.warn(
        f"tasks with fewer than {need} rows are skipped: {shown}{more}",
        stacklevel=3,  # the caller of Table
    )


# --- reading ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Columns:
    """The columns of a file.

    Attributes
    ----------
    path : Path
    checksum : str
    cells : dict
        Each column, as text or as numbers.
    parts : dict
        Names in ``cells`` of the columns of every 2-D array.
    lines : list of int or None
        Where in a CSV each row ends; None for an NPZ.
    """

    path: Path
    checksum: str
    cells: Mapping[str, Sequence[str] | Array]
    parts: Mapping[str, Sequence[str]]
    lines: Sequence[int] | None

    def error(self, message: str) -> ValueError:
        return ValueError(f"{self.path}: {message}")

    def error_at(self, row: int, message: str) -> ValueError:
        where = f"row {row}" if self.lines is None else f"line {self.lines[row]}"
        return self.error(f"{where}: {message}")

    def column(self, name: str) -> Sequence[str] | Array:
        if name in self.parts:
            raise self.error(f"{name!r} is {len(self.parts[name])} columns, where one is expected")
        if name not in self.cells:
            raise self.error(str(unknown_name(name, [*self.cells, *self.parts], "column")))
        return self.cells[name]

    def features(self, names: Sequence[str] | None, without: Sequence[str] = ()) -> tuple[str, ...]:
        """The columns that these names mean; by default all but ``without``."""
        for name in without:
            self.column(name)
        if names is None:
            found = [name for name in self.cells if name not in without]
        elif isinstance(names, str):
            raise ValueError(f"features must be a sequence of columns, got the string {names!r}")
        else:
            found = [part for name in names for part in self.parts.get(name, [name])]
        for name in without:
            if name in found:
                raise self.error(f"{name!r} is the task or the target and cannot be a feature")
        if not found:
            raise self.error("there is no feature column")
        repeated = _repeated(found)
        if repeated is not None:
            raise self.error(f"feature {repeated!r} is given twice")
        return tuple(found)

    def matrix(self, names: Iterable[str]) -> Array:
        """Columns of numbers side by side, ``(rows, n)``."""
        return np.stack([self.numbers(name) for name in names], axis=1)

    def numbers(self, name: str) -> Array:
        """A column as float64; every cell must be a finite number."""
        cells = self.column(name)
        if isinstance(cells, np.ndarray):
            values = cells.astype(np.float64)
        else:
            parsed = [_number(cell) for cell in cells]
            for row, value in enumerate(parsed):
                if value is None:
                    what = f"{cells[row]!r}, not a number" if cells[row] else "empty"
                    raise self.error_at(row, f"column {name!r} is {what}")
            values = np.array(parsed, dtype=np.float64)
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise self.error_at(
                int(bad[0]), f"column {name!r} is {values[bad[0]]}, not a finite number"
            )
        return values

    def strings(self, name: str) -> Array:
        """A column as names; whole numbers have no decimal point, and no cell may be empty."""
        cells = self.column(name)
        if isinstance(cells, np.ndarray):
            if cells.dtype.kind == "f":
                whole = self.numbers(name)
                cells = [f"{v:.0f}" if v.is_integer() else repr(v) for v in whole.tolist()]
            else:
                cells = [str(value) for value in cells.tolist()]
        for row, cell in enumerate(cells):
            if not cell:
                raise self.error_at(row, f"column {name!r} is empty")
        return np.array(cells)

    def targets(self, name: str, kind: str) -> Array:
        return self.numbers(name) if kind == "number" else self.strings(name)

    def kind(self, name: str) -> str:
        """Whether a column holds numbers or names of classes."""
        cells = self.column(name)
        if isinstance(cells, np.ndarray):
            return "class" if cells.dtype.kind == "b" else "number"
        numeric = [not cell or _number(cell) is not None for cell in cells]
        if all(numeric):
            return "number"
        if any(is_number and cell for is_number, cell in zip(numeric, cells, strict=True)):
            row = numeric.index(False)
            raise self.error_at(
                row,
                f"target {name!r} is {cells[row]!r}, but other cells are numbers; correct it, or say "
                f"whether the target's kind is 'number' or 'class'",
            )
        return "class"

    def check_classes(self, y: Array, rows: Array, encoding: Encoding) -> None:
        """Raise ValueError for the first of ``rows`` with a class that is not the encoding's."""
        if encoding.classes is None:
            return
        bad = rows[~np.isin(y, encoding.classes)]
        if bad.size:
            row = int(bad.min())
            name = str(y[rows == row][0])
            raise self.error_at(
                row,
                f"class {name!r} of {encoding.target!r} is in no training task; known: "
                f"{', '.join(encoding.classes)}",
            )


def _number(cell: str) -> float | None:
    """The number a cell holds; None if it is not one (nor is 1_000, which Python would take)."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _ordered(names: Iterable[str]) -> list[str]:
    """Different names in order: by value if all are numbers, else by letters."""
    different = sorted({str(name) for name in names})
    values = [_number(name) for name in different]
    if all(value is not None and np.isfinite(value) for value in values):
        different.sort(key=float)
    return different


def _repeated(names: Iterable[str]) -> str | None:
    """The first name that has come before."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


#: Names and columns, names of the columns of 2-D arrays, and the line of each row.
_Parts: TypeAlias = tuple[
    list[tuple[str, Sequence[str] | Array]], Mapping[str, Sequence[str]], Sequence[int] | None
]


def _read(path: Path) -> _Columns:
    """The columns of a CSV, or of an NPZ, which is known by its first bytes or its name."""
    import hashlib

    if path.is_dir():
        raise ValueError(f"{path} is a folder, a CSV or NPZ file is expected")
    data = path.read_bytes()
    npz = data.startswith(b"PK") or path.suffix.lower() in (".npz", ".npy")
    try:
        cells, parts, lines = _from_npz(data) if npz else _from_csv(data)
        repeated = _repeated(name for name, _ in cells)
        if repeated is not None:
            raise ValueError(f"two columns are called {repeated!r}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return _Columns(path, hashlib.sha256(data).hexdigest(), dict(cells), parts, lines)


def _from_csv(data: bytes) -> _Parts:
    import csv

    try:
        text = data.decode("utf-8-sig")  # spreadsheets put a byte order mark in front
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line}: the text is not UTF-8; save the file as UTF-8") from error
    reader = csv.reader(StringIO(text, newline=""), strict=True)
    lines, rows = [], []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                lines.append(reader.line_num)
                rows.append(cells)
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error
    if not rows:
        raise ValueError("the file is empty")
    header = rows.pop(0)
    line = lines.pop(0)
    if "" in header:
        raise ValueError(
            f"line {line}: column {header.index('') + 1} has no name in the header; name it, or write "
            f"the table without it"
        )
    if len(header) == 1 and any(separator in header[0] for separator in ";\t"):
        raise ValueError(
            f"line {line}: the header is one column, {header[0]!r}; separate cells by commas"
        )
    if not rows:
        raise ValueError("there are no rows under the header")
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(header):
            raise ValueError(f"line {line}: {len(row)} cells, where the header has {len(header)}")
    return list(zip(header, zip(*rows, strict=True), strict=True)), {}, lines


def _from_npz(data: bytes) -> _Parts:
    arrays: dict[str, Array] = {}
    try:
        loaded = np.load(BytesIO(data), allow_pickle=False)
    except Exception as error:  # damage shows in many ways
        raise ValueError(f"not an NPZ file: {error}") from error
    if isinstance(loaded, np.ndarray):
        raise ValueError("this is a single array; an NPZ file with a named array a column is expected")
    with loaded:
        for name in loaded.files:
            try:
                array = loaded[name]
            except Exception as error:  # damage, or an array of objects, which would run code
                raise ValueError(f"array {name!r} cannot be read: {error}") from error
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{name!r} is not an array: a CSV or NPZ file is expected")
            arrays[name] = array
    if not arrays:
        raise ValueError("the file holds no arrays")
    cells: list[tuple[str, Sequence[str] | Array]] = []
    parts: dict[str, Sequence[str]] = {}
    for name, array in arrays.items():
        if array.dtype.kind not in "biufU":
            raise ValueError(f"array {name!r} must hold numbers or strings, got dtype {array.dtype}")
        if array.ndim not in (1, 2) or not array.size:
            raise ValueError(f"array {name!r} must be (rows,) or (rows, columns), got {array.shape}")
        columns = array.reshape(len(array), -1).T
        own = [name] if len(columns) == 1 else [f"{name}[{j}]" for j in range(len(columns))]
        if len(columns) > 1:
            parts[name] = own
        for part, column in zip(own, columns, strict=True):
            is_text = column.dtype.kind == "U"
            cells.append((part, [str(cell).strip() for cell in column] if is_text else column))
    if len({len(array) for array in arrays.values()}) > 1:
        rows = ", ".join(f"{name}: {len(array)}" for name, array in arrays.items())
        raise ValueError(f"arrays must have as many rows, got {rows}")
    return cells, parts, None
