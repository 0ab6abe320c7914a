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
renamed. Rows of ``metrics.csv`` reach the disk before the checkpoint that covers them, and a resumed
run drops those that come after the checkpoint it goes on from, so it is bit for bit the run that was
not interrupted. One process at a time trains a run.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from npmeta._files import write_atomically
from npmeta._validation import Array
from npmeta.config import Config

__all__ = ["COLUMNS", "Checkpoint", "Run", "locked"]

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

KEPT_CHECKPOINTS = 3


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
    """

    iteration: int
    params: Mapping[str, Array]
    state: Mapping[str, Array]
    window: Array

    def to_bytes(self) -> bytes:
        """An .npz file."""
        arrays = {f"params/{name}": array for name, array in self.params.items()}
        arrays |= {f"state/{name}": array for name, array in self.state.items()}
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
        content = io.BytesIO(path.read_bytes())
        try:
            with np.load(content, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}  # checks every member's CRC-32
            alone = {name: arrays.pop(name) for name in ("members", "iteration", "window")}
            if list(arrays) != alone["members"].tolist():
                raise ValueError(f"it has {', '.join(arrays)}, not what it was written with")
            named: dict[str, dict[str, Array]] = {"params": {}, "state": {}}
            for name, array in arrays.items():
                part, _, rest = name.partition("/")
                named[part][rest] = array
            return Checkpoint(int(alone["iteration"]), named["params"], named["state"], alone["window"])
        except Exception as error:  # damage shows in many ways
            raise ValueError(f"{path} is damaged ({type(error).__name__}: {error})") from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training the run in a folder.

    The lock is the system's own and ends with the process, even with one that is killed. Where there
    is none (Windows, some network file systems) this does nothing.

    Raises
    ------
    ValueError
        If another process has the lock.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # no such folder, which is for others to say
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ValueError(f"{folder} is being trained by another process") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(handle)


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
            raise ValueError(f"{self.folder} is not a run: it has no config.toml")
        task, values = Config.read_toml(self.folder / "config.toml")
        if task is None:
            raise ValueError(f"{self.folder / 'config.toml'} does not name its task")
        self.config = Config(task, values)

    @classmethod
    def create(
        cls,
        folder: str | Path,
        config: Config,
        encoding: Mapping[str, Any] | None,
        start: Checkpoint | None = None,
    ) -> Run:
        """Make the folder of a new run, with its first checkpoint.

        Raises
        ------
        ValueError
            If the folder exists and is not empty.
        """
        path = Path(folder)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise FileExistsError
            (path / "checkpoints").mkdir()  # of two processes that have come so far, one makes it
        except FileExistsError:
            raise ValueError(
                f"{path} exists and is not empty; choose another --out, or go on with the run in it: "
                f"npmeta train --resume {path}"
            ) from None
        if encoding is not None:
            write_atomically(path / "encoding.json", json.dumps(encoding, indent=1) + "\n")
        write_atomically(path / "metrics.csv", ",".join(COLUMNS) + "\n")
        if start is not None:
            write_atomically(path / "checkpoints" / _file_name(start), start.to_bytes())
        # Last: a folder with a config.toml has all the rest.
        write_atomically(path / "config.toml", config.to_toml())
        return cls(path)

    def encoding(self) -> dict[str, Any]:
        """What ``encoding.json`` holds."""
        try:
            encoding: dict[str, Any] = json.loads((self.folder / "encoding.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.folder / 'encoding.json'} cannot be read: {error}") from None
        return encoding

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
        path = self.folder / "checkpoints" / _file_name(checkpoint)
        write_atomically(path, checkpoint.to_bytes())
        paths = self.checkpoints()
        end = paths.index(path) + 1
        for other in paths[: max(end - KEPT_CHECKPOINTS, 0)] + paths[end:]:
            other.unlink()
        return path

    def load(self) -> Checkpoint:
        """The newest checkpoint that is whole, with a warning for each that is not.

        Raises
        ------
        ValueError
            If there is none.
        """
        for path in reversed(self.checkpoints()):
            try:
                return Checkpoint.read(path)
            except ValueError as error:
                warnings.warn(f"{error}; using the one before it", stacklevel=2)
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
            write_atomically(self.folder / "metrics.csv", "\n".join(lines) + "\n")
        cells = ["" if row.get(name) is None else repr(row[name]) for name in [*columns, *more]]
        with open(self.folder / "metrics.csv", "a", encoding="utf-8", newline="") as file:
            file.write(",".join(cells) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, float]]:
        """The rows of metrics.csv; empty cells are left out, and so is an end that is not whole.

        Raises
        ------
        ValueError
            If whole rows follow one that is not: no process leaves that behind, and to drop them is
            not for us to decide.
        """
        rows: list[dict[str, float]] = []
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
            with open(path, encoding="utf-8", errors="replace") as file:
                columns = file.readline().removesuffix("\n").split(",")
            if columns[: len(COLUMNS)] != list(COLUMNS):
                raise ValueError("its first line does not name its columns")
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
        return columns

    def _metrics_lines(self) -> list[str]:
        """The lines of metrics.csv that have an end. No cell has a comma or a quote."""
        self._columns()
        text = (self.folder / "metrics.csv").read_text("utf-8", errors="replace")
        return text.split("\n")[:-1]

    def truncate_metrics(self, iteration: int) -> None:
        """Drop the rows of later iterations, and a line that a killed process left unfinished."""
        n_kept = sum(row["iteration"] <= iteration for row in self.metrics())
        lines = self._metrics_lines()[: 1 + n_kept]
        write_atomically(self.folder / "metrics.csv", "\n".join(lines) + "\n")


def _file_name(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.iteration:08d}.npz"


def _iteration(path: Path) -> int:
    return int(path.stem)
