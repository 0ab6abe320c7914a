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

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from npmeta._support.files import TEMPORARY, lock, sweep, write_atomically
from npmeta._support.reading import read_json
from npmeta._support.validation import Array
from npmeta.algorithms.base import MetaLearner
from npmeta.cli.checkpoints import Checkpoint
from npmeta.cli.metrics import HEADER, Metrics
from npmeta.tasks import Encoding
from npmeta.training.config import Config

KEPT_CHECKPOINTS = 3


class TakenError(ValueError):
    """A folder is another run's, or not a run's at all, or a process is at work in it."""


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
        self._metrics = Metrics(self.folder / "metrics.csv")

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
            files[start.file_name] = replace(start, rows=np.zeros(2, dtype=np.int64)).to_bytes()
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
        rows = np.array(self._metrics.counted(), dtype=np.int64)
        path = self.write(checkpoint.file_name, replace(checkpoint, rows=rows).to_bytes())
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
        """Add a row to metrics.csv."""
        self._metrics.append(row)

    def metrics(self) -> list[dict[str, float]]:
        """The rows of metrics.csv: :meth:`npmeta.cli.metrics.Metrics.rows`."""
        return self._metrics.rows()

    def check_metrics(self, checkpoint: Checkpoint) -> None:
        """Raise ValueError unless metrics.csv has the rows that it had at a checkpoint."""
        rows = checkpoint.rows
        self._metrics.check(
            checkpoint.iteration, None if rows is None else (int(rows[0]), int(rows[1]))
        )

    def go_on(self, checkpoint: Checkpoint) -> None:
        """Make the run what it was at a checkpoint: rows of later iterations are dropped."""
        for place in (self.folder, self.folder / "checkpoints"):
            sweep(place)
        self._metrics.go_back(checkpoint.iteration)
        # It may have counted rows that are no more, and checkpoints before and after it may be left.
        self.save(checkpoint)


def _iteration(path: Path) -> int:
    return int(path.stem)
