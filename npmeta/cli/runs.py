"""A run is a folder, and can always be gone on with.

=====================  ===========================================================================
``config.toml``        every option: ``npmeta train --config config.toml`` makes the run again
``metrics.csv``        a row for every ``log_every`` iterations
``checkpoints/``       parameters and optimizer state; the newest three, and no pickle in them
``encoding.json``      tables only: columns, standardisation and classes of the training data
``evaluation.json``    scores on the test split, written by ``npmeta train``
``*.png``              pictures, if matplotlib is there
=====================  ===========================================================================

Files appear whole or not at all: each is written under another name, flushed to the disk, and
renamed. Rows of ``metrics.csv`` reach the disk before the checkpoint that covers them, which has their
number and checksum; a resumed run drops those that come after the checkpoint it goes on from, so it is
bit for bit the run that was not interrupted. ``config.toml`` is written last: what else a process that
was killed as it began has left is free for another. One process at a time trains a run. What is
written replaces links, which might lead elsewhere.
"""

from __future__ import annotations

import io
import json
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from npmeta._support.files import TEMPORARY, lock, sweep, write_atomically
from npmeta._support.reading import npz_arrays, read_file, read_json
from npmeta._support.validation import Array
from npmeta.algorithms.base import MetaLearner
from npmeta.bilevel import optimizers
from npmeta.tasks import Encoding
from npmeta.training.config import Config

__all__ = ["COLUMNS", "Checkpoint", "Run", "TakenError", "is_free", "locked", "new_run"]

#: Columns of metrics.csv: means over the iterations since the row before; then the last validation.
#: What an algorithm reports of the iteration itself comes after them.
COLUMNS = (
    "iteration",
    "loss",
    "grad_norm",
    "outer_lr",
    "validation_loss",
    "validation_accuracy",
)

HEADER = ",".join(COLUMNS) + "\n"

KEPT_CHECKPOINTS = 3


class TakenError(ValueError):
    """A folder is another run's, or not a run's at all, or a process is at work in it."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A point that training can go on from.

    Attributes
    ----------
    iteration : int
        Outer steps made.
    params, state : dict of ndarray
        Meta-parameters and optimizer state.
    window : ndarray, (3,)
        Number of iterations since the last row of metrics.csv, and the sums of their losses and of
        their gradient norms.
    rows : ndarray of int64, (2,), optional
        Number and CRC-32 of the rows that metrics.csv has by then; None in checkpoints of older
        versions.
    """

    iteration: int
    params: Mapping[str, Array]
    state: Mapping[str, Array]
    window: Array
    rows: Array | None = None

    def check_fit(self, config: Config, algorithm: MetaLearner) -> None:
        """Raise ValueError unless it has what a configuration's algorithm and optimizer need."""
        params = algorithm.init(0, config["dtype"])
        state = optimizers.get(config["optimizer"]).init(params)
        for part, expected, found in (
            ("parameters", params, self.params),
            ("optimizer state", state, self.state),
        ):
            wanted, came = (
                {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
                for arrays in (expected, found)
            )
            if wanted != came:
                raise ValueError(
                    f"the checkpoint does not fit config.toml: its {part} are {came}, expected {wanted}"
                )

    def to_bytes(self) -> bytes:
        """An .npz file."""
        arrays = {f"params/{name}": array for name, array in self.params.items()}
        arrays |= {f"state/{name}": array for name, array in self.state.items()}
        if self.rows is not None:
            arrays["rows"] = self.rows
        # The names once more: a member that damage has hidden is missed.
        members = np.array(list(arrays), dtype=str)
        arrays |= {"members": members, "iteration": np.asarray(self.iteration), "window": self.window}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]  # names are data, not keyword arguments
        return buffer.getvalue()

    @staticmethod
    def read(path: Path) -> Checkpoint:
        """The checkpoint in a file; ValueError if it is damaged in any way.

        A file that cannot be read at all (no permission, a fault of the disk) is an OSError: it may be
        whole, so going on from an older one would not do.
        """
        content = read_file(path)
        try:
            arrays = npz_arrays(content, "it")
            alone = {name: arrays.pop(name) for name in ("members", "iteration", "window")}
            if list(arrays) != alone["members"].tolist():
                raise ValueError("it has other arrays than it was written with")
            rows = arrays.pop("rows", None)
            named: dict[str, dict[str, Array]] = {"params": {}, "state": {}}
            for name, array in arrays.items():
                part, _, rest = name.partition("/")
                named[part][rest] = array
            iteration, window = alone["iteration"], alone["window"]
            for wrong, name in (
                (iteration.dtype.kind != "i" or iteration.shape or iteration < 0, "iteration"),
                (window.dtype != np.float64 or window.shape != (3,), "window"),
                (rows is not None and (rows.dtype != np.int64 or rows.shape != (2,)), "rows"),
            ):
                if wrong:
                    raise ValueError(f"its {name} is none")
            return Checkpoint(int(iteration), named["params"], named["state"], window, rows)
        except Exception as error:  # damage shows in many ways
            raise ValueError(f"{path} is damaged ({type(error).__name__}: {error})") from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training the run in a folder.

    The lock is the system's own and ends with the process, even with one that is killed. Where there
    is none (Windows, some network file systems) this does nothing.

    Raises
    ------
    TakenError
        If another process has the lock.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # no such folder, which is for others to say, or Windows
        yield
        return
    try:
        try:
            lock(handle)
        except BlockingIOError:
            raise TakenError(f"{folder} is being trained by another process") from None
        yield
    finally:
        os.close(handle)


def is_free(folder: Path) -> bool:
    """Whether a run may begin in a folder: it is not there, or empty, or was left by one that was
    killed, or found the disk full, as it began."""
    if not folder.is_dir():
        return not os.path.lexists(folder)
    names = {path.name for path in folder.iterdir() if not TEMPORARY.fullmatch(path.name)}
    if not names:
        return True
    begun = names <= {"checkpoints", "encoding.json", "metrics.csv"} and "checkpoints" in names
    if not begun or (folder / "checkpoints").is_symlink() or not (folder / "checkpoints").is_dir():
        return False
    first = {path.name for path in (folder / "checkpoints").iterdir()}
    metrics = folder / "metrics.csv"
    return all(name == f"{0:08d}.npz" or TEMPORARY.fullmatch(name) for name in first) and (
        "metrics.csv" not in names or (metrics.is_file() and metrics.stat().st_size == len(HEADER))
    )


@contextmanager
def new_run(
    folder: Path, config: Config, encoding: Mapping[str, Any] | None, start: Checkpoint
) -> Iterator[Run]:
    """A new run as of :meth:`Run.create`, locked until the end."""
    _check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        yield Run.create(folder, config, encoding, start)


def _check_free(folder: Path) -> None:
    if os.path.lexists(folder) and not folder.is_dir():
        raise TakenError(f"{folder} is not a folder; choose another --out")
    if not is_free(folder):
        raise TakenError(
            f"{folder} exists and is not empty; choose another --out, or go on with the run in it: "
            f"npmeta train --resume {folder}"
        )


class Run:
    """An existing run.

    Parameters
    ----------
    folder : path

    Raises
    ------
    ValueError
        If the folder is missing, or is not a run's.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"no such run: {self.folder} is not a folder")
        if not (self.folder / "config.toml").is_file():
            begun = is_free(self.folder) and any(self.folder.iterdir())
            raise ValueError(
                f"{self.folder} is not a run: "
                + (
                    f"the process that began it was stopped; train anew with --out {self.folder}"
                    if begun
                    else "it has no config.toml"
                )
            )
        task, values = Config.read_toml(self.folder / "config.toml")
        if task is None:
            raise ValueError(f"{self.folder / 'config.toml'} does not name its task")
        try:
            self.config = Config(task, values)
        except ValueError as error:
            raise ValueError(f"{self.folder / 'config.toml'}: {error}") from None
        self._rows: tuple[int, int] | None = None

    @classmethod
    def create(
        cls,
        folder: Path,
        config: Config,
        encoding: Mapping[str, Any] | None,
        start: Checkpoint | None = None,
    ) -> Run:
        """Make the folder of a new run, with its first checkpoint.

        Raises
        ------
        TakenError
            If the folder is not free: see :func:`is_free`.
        """
        _check_free(folder)  # of two processes that come here, the second finds what the first has made
        checkpoints = folder / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        for place in (folder, checkpoints):
            sweep(place)
        (folder / "encoding.json").unlink(missing_ok=True)
        files = {"metrics.csv": HEADER.encode()}
        if encoding is not None:
            files["encoding.json"] = (json.dumps(encoding, indent=1) + "\n").encode()
        if start is not None:
            files[_file_name(start)] = replace(start, rows=np.zeros(2, dtype=np.int64)).to_bytes()
        # Last: a folder with a config.toml has all the rest.
        files["config.toml"] = config.to_toml().encode()
        for name, content in files.items():
            write_atomically(folder / name, content, follow=False)
        return cls(folder)

    def write(self, name: str, content: bytes | str) -> Path:
        """Write a file of the run's, in the place of whatever has its name."""
        path = self.folder / name
        write_atomically(path, content, follow=False)
        return path

    def encoding(self) -> Encoding:
        """What ``encoding.json`` holds.

        Raises
        ------
        ValueError
            If the file is missing, or holds something else.
        """
        path = self.folder / "encoding.json"
        try:
            return Encoding.from_dict(read_json(path))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None

    # --- checkpoints ----------------------------------------------------------------------------------

    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        paths = (self.folder / "checkpoints").glob("*.npz")
        return sorted((path for path in paths if path.stem.isdecimal()), key=_iteration)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, and remove all but the newest three up to it.

        Those of later iterations go too: a run that makes an iteration again could not read what came
        after it.
        """
        rows = np.array(self._counted(), dtype=np.int64)
        path = self.write(_file_name(checkpoint), replace(checkpoint, rows=rows).to_bytes())
        paths = self.checkpoints()
        end = paths.index(path) + 1
        for other in paths[: max(end - KEPT_CHECKPOINTS, 0)] + paths[end:]:
            other.unlink()
        return path

    def params_for(self, algorithm: MetaLearner) -> Mapping[str, Array]:
        """The parameters of the newest checkpoint, for the configuration's algorithm.

        Raises
        ------
        ValueError
            If there are none, or they are those of another.
        """
        checkpoint = self.load()
        checkpoint.check_fit(self.config, algorithm)
        return checkpoint.params

    def load(self) -> Checkpoint:
        """The newest checkpoint that is whole, with a warning for each that is not.

        Raises
        ------
        ValueError
            If there is none.
        """
        paths = self.checkpoints()
        for path in reversed(paths):
            try:
                return Checkpoint.read(path)
            except ValueError as error:
                rest = "; using the one before it" if path != paths[0] else ""
                warnings.warn(f"{error}{rest}", stacklevel=2)
        raise ValueError(f"{self.folder} has no checkpoint that can be read")

    # --- metrics --------------------------------------------------------------------------------------

    def append(self, row: Mapping[str, float | int | None]) -> None:
        """Add a row to metrics.csv. ``repr`` of a float reads back as the same float."""
        columns = self._columns()
        more = [name for name in row if name not in columns]
        if more:
            lines = self._metrics_lines()
            rest = "," * len(more)
            lines = [",".join([lines[0], *more]), *(line + rest for line in lines[1:])]
            self.write("metrics.csv", "\n".join(lines) + "\n")
        cells = ["" if row.get(name) is None else repr(row[name]) for name in [*columns, *more]]
        counted, line = self._counted(), ",".join(cells)
        # A link would lead out of the folder, and a pipe would wait for a reader.
        flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        with open(os.open(self.folder / "metrics.csv", flags), "ab") as file:
            file.write(f"{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        self._rows = _count([line], counted)

    def metrics(self) -> list[dict[str, float]]:
        """The rows of metrics.csv, none without the file.

        Empty cells are left out, and so is an end that is not whole.

        Raises
        ------
        ValueError
            If whole rows follow one that is not: no process leaves that behind, and to drop them is
            not for us to decide.
        """
        rows: list[dict[str, float]] = []
        if not os.path.lexists(self.folder / "metrics.csv"):
            return rows
        damaged, columns = 0, self._columns()
        for number, line in enumerate(self._metrics_lines()[1:], start=2):
            try:
                cells = zip(columns, line.split(","), strict=True)
                row = {n: float(c) for n, c in cells if c or n == "iteration"}
            except ValueError:
                damaged = damaged or number  # what a killed process, or a power failure, left of a line
                continue
            if damaged:
                path = self.folder / "metrics.csv"
                raise ValueError(
                    f"{path}: line {damaged} is damaged and rows follow it; mend or remove it"
                )
            rows.append(row)
        return rows

    def _columns(self) -> list[str]:
        """The columns of metrics.csv, which begin with those of every run."""
        path = self.folder / "metrics.csv"
        try:
            columns = self._text().partition("\n")[0].split(",")
            if columns[: len(COLUMNS)] != list(COLUMNS):
                raise ValueError("its first line does not name its columns")
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
        return columns

    def _metrics_lines(self) -> list[str]:
        """The lines of metrics.csv that have an end. No cell has a comma or a quote."""
        self._columns()
        return self._text().split("\n")[:-1]

    def _text(self) -> str:
        return read_file(self.folder / "metrics.csv").decode("utf-8", errors="replace")

    def check_metrics(self, checkpoint: Checkpoint) -> None:
        """Raise ValueError unless metrics.csv has the rows that it had at a checkpoint."""
        n_kept = sum(row["iteration"] <= checkpoint.iteration for row in self.metrics())
        path = self.folder / "metrics.csv"
        if checkpoint.rows is None or not os.path.lexists(path):  # None: of an older version
            return
        n_rows, checksum = checkpoint.rows.tolist()
        if _count(self._metrics_lines()[1 : 1 + n_rows]) != (n_rows, checksum):
            raise ValueError(
                f"{path} is damaged: up to iteration {checkpoint.iteration} it had {n_rows} rows, and "
                + (f"now it has {n_kept}" if n_kept != n_rows else "now they are others")
                + "; restore it, or remove it to go on without those rows"
            )

    def go_on(self, checkpoint: Checkpoint) -> None:
        """Make the run what it was at a checkpoint.

        Rows of later iterations are dropped, and a line that a killed process left unfinished. Without
        a metrics.csv a new one is begun.
        """
        for place in (self.folder, self.folder / "checkpoints"):
            sweep(place)
        if os.path.lexists(self.folder / "metrics.csv"):
            n_kept = sum(row["iteration"] <= checkpoint.iteration for row in self.metrics())
            lines = self._metrics_lines()[: 1 + n_kept]
            self.write("metrics.csv", "\n".join(lines) + "\n")
            self._rows = _count(lines[1:])
        else:
            warnings.warn(f"{self.folder / 'metrics.csv'} is missing; a new one begins", stacklevel=2)
            self.write("metrics.csv", HEADER)
            self._rows = (0, 0)
        # It may have counted rows that are no more, and checkpoints before and after it may be left.
        self.save(checkpoint)

    def _counted(self) -> tuple[int, int]:
        """Number and checksum of the rows of metrics.csv."""
        if self._rows is None:
            self._rows = _count(self._metrics_lines()[1:])
        return self._rows


def _count(lines: Sequence[str], before: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """Number and CRC-32 of rows, and of those before them.

    Empty cells at their ends, which a row gets when later ones have further columns, do not count.
    """
    number, checksum = before
    for line in lines:
        checksum = zlib.crc32(f"{line.rstrip(',')}\n".encode(), checksum)
    return number + len(lines), checksum


def _file_name(checkpoint: Checkpoint) -> str:
    return f"checkpoints/{checkpoint.iteration:08d}.npz"


def _iteration(path: Path) -> int:
    return int(path.stem)
