"""The columns of a CSV or NPZ file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TypeAlias

import numpy as np

from npmeta._support.reading import allowed, npz_arrays, read_file
from npmeta._support.validation import Array, shortened, unknown_name
from npmeta.tasks.encoding import Encoding

#: Characters of a message at most: cells and names are as long as they like.
LONGEST = 600


@dataclass(frozen=True, eq=False)
class Columns:
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
        return ValueError(f"{self.path}: {shortened(message, LONGEST)}")

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


def ordered(names: Iterable[str]) -> list[str]:
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


def read_columns(path: Path) -> Columns:
    """The columns of a CSV, or of an NPZ, which is known by its first bytes or its name."""
    import hashlib

    if path.is_dir():
        raise ValueError(f"{path} is a folder, a CSV or NPZ file is expected")
    data = read_file(path)
    npz = data.startswith(b"PK") or path.suffix.lower() in (".npz", ".npy")
    arrays = _arrays(data, path) if npz else {}
    try:
        cells, parts, lines = _from_arrays(arrays, len(data)) if npz else _from_csv(data)
        repeated = _repeated(name for name, _ in cells)
        if repeated is not None:
            raise ValueError(f"two columns are called {repeated!r}")
    except ValueError as error:
        raise ValueError(f"{path}: {shortened(str(error), LONGEST)}") from error
    return Columns(path, hashlib.sha256(data).hexdigest(), dict(cells), parts, lines)


def read_csv(data: bytes) -> tuple[list[str], list[list[str]], list[int]]:
    """Header and rows of a CSV as they stand in it, and the line each row ends on.

    Rows of nothing but empty cells, as spreadsheets leave them at the end, are no rows.
    """
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
            if any(cell.strip() for cell in row):
                lines.append(reader.line_num)
                rows.append(row)
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error
    if not rows:
        raise ValueError("the file is empty")
    header = rows.pop(0)
    line = lines.pop(0)
    names = [name.strip() for name in header]
    if "" in names:
        raise ValueError(
            f"line {line}: column {names.index('') + 1} has no name in the header; name it, or write "
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
    return header, rows, lines


def _from_csv(data: bytes) -> _Parts:
    header, rows, lines = read_csv(data)
    columns = zip(*rows, strict=True)
    return (
        [
            (name.strip(), [cell.strip() for cell in column])
            for name, column in zip(header, columns, strict=True)
        ],
        {},
        lines,
    )


def _arrays(data: bytes, path: Path) -> dict[str, Array]:
    if data.startswith(b"\x93NUMPY"):
        raise ValueError(
            f"{path}: this is a single array; an NPZ file with a named array a column is expected"
        )
    arrays = npz_arrays(data, path, "a CSV or NPZ file")
    if not arrays:
        raise ValueError(f"{path}: the file holds no arrays")
    return arrays


def _from_arrays(arrays: Mapping[str, Array], size: int) -> _Parts:
    """Columns of the arrays in a file of so many bytes."""
    # Every cell becomes a float64, or a string of its own.
    cells_in_all, most = sum(array.size for array in arrays.values()), allowed(size) // 8
    if cells_in_all > most:
        raise ValueError(
            f"the arrays have {cells_in_all} cells, and at most {most} are expected of {size} bytes; "
            f"write them without compression"
        )
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
