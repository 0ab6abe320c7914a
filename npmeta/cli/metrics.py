"""metrics.csv: a row for every so many iterations, none of which an interrupt may cost or repeat."""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from npmeta._support.files import write_atomically
from npmeta._support.reading import read_file

#: Columns: means over the iterations since the row before; then the last validation. What an algorithm
#: reports of the iteration itself comes after them.
COLUMNS = ("iteration", "loss", "grad_norm", "outer_lr", "validation_loss", "validation_accuracy")

HEADER = ",".join(COLUMNS) + "\n"


class Metrics:
    """The file of a run. Nothing is read before it is asked for.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._counted: tuple[int, int] | None = None

    def append(self, row: Mapping[str, float | int | None]) -> None:
        """Add a row. ``repr`` of a float reads back as the same float."""
        columns = self._columns()
        more = [name for name in row if name not in columns]
        if more:
            lines = self._lines()
            rest = "," * len(more)
            self._write([",".join([lines[0], *more]), *(line + rest for line in lines[1:])])
        cells = ["" if row.get(name) is None else repr(row[name]) for name in [*columns, *more]]
        counted, line = self.counted(), ",".join(cells)
        # A link would lead out of the folder, and a pipe would wait for a reader.
        flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        with open(os.open(self.path, flags), "ab") as file:
            file.write(f"{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        self._counted = _count([line], counted)

    def rows(self) -> list[dict[str, float]]:
        """The rows, none without the file.

        Empty cells are left out, and so is an end that is not whole.

        Raises
        ------
        ValueError
            If whole rows follow one that is not: no process leaves that behind, and to drop them is
            not for us to decide.
        """
        rows: list[dict[str, float]] = []
        if not os.path.lexists(self.path):
            return rows
        damaged, columns = 0, self._columns()
        for number, line in enumerate(self._lines()[1:], start=2):
            try:
                cells = zip(columns, line.split(","), strict=True)
                row = {n: float(c) for n, c in cells if c or n == "iteration"}
            except ValueError:
                damaged = damaged or number  # what a killed process, or a power failure, left of a line
                continue
            if damaged:
                raise ValueError(
                    f"{self.path}: line {damaged} is damaged and rows follow it; mend or remove it"
                )
            rows.append(row)
        return rows

    def counted(self) -> tuple[int, int]:
        """Number and checksum of the rows."""
        if self._counted is None:
            self._counted = _count(self._lines()[1:])
        return self._counted

    def check(self, iteration: int, counted: tuple[int, int] | None) -> None:
        """Raise ValueError unless there are the rows that were counted by an iteration.

        None is that of a checkpoint of an older version.
        """
        n_kept = self._rows_up_to(iteration)
        if counted is None or not os.path.lexists(self.path):
            return
        n_rows, _ = counted
        if _count(self._lines()[1 : 1 + n_rows]) != counted:
            raise ValueError(
                f"{self.path} is damaged: up to iteration {iteration} it had {n_rows} rows, and "
                + (f"now it has {n_kept}" if n_kept != n_rows else "now they are others")
                + "; restore it, or remove it to go on without those rows"
            )

    def go_back(self, iteration: int) -> None:
        """Drop rows of later iterations, and a line that a killed process left unfinished.

        Without the file a new one is begun.
        """
        lines = [HEADER[:-1]]
        if os.path.lexists(self.path):
            lines = self._lines()[: 1 + self._rows_up_to(iteration)]
        else:
            warnings.warn(f"{self.path} is missing; a new one begins", stacklevel=3)
        self._write(lines)
        self._counted = _count(lines[1:])

    def _rows_up_to(self, iteration: int) -> int:
        return sum(row["iteration"] <= iteration for row in self.rows())

    def _columns(self) -> list[str]:
        """The columns, which begin with those of every run."""
        try:
            columns = self._text().partition("\n")[0].split(",")
            if columns[: len(COLUMNS)] != list(COLUMNS):
                raise ValueError("its first line does not name its columns")
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.path} cannot be read: {error}") from None
        return columns

    def _lines(self) -> list[str]:
        """The lines that have an end. No cell has a comma or a quote."""
        self._columns()
        return self._text().split("\n")[:-1]

    def _text(self) -> str:
        return read_file(self.path).decode("utf-8", errors="replace")

    def _write(self, lines: Sequence[str]) -> None:
        write_atomically(self.path, "\n".join(lines) + "\n", follow=False)


def _count(lines: Sequence[str], before: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """Number and CRC-32 of rows, and of those before them.

    Empty cells at their ends, which a row gets when later ones have further columns, do not count.
    """
    number, checksum = before
    for line in lines:
        checksum = zlib.crc32(f"{line.rstrip(',')}\n".encode(), checksum)
    return number + len(lines), checksum
