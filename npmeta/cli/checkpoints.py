"""Points that training can go on from, as files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from npmeta._support.reading import npz_arrays, read_file
from npmeta._support.validation import Array
from npmeta.algorithms.base import MetaLearner
from npmeta.bilevel import optimizers
from npmeta.training.config import Config


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

    @property
    def file_name(self) -> str:
        """In the folder of a run."""
        return f"checkpoints/{self.iteration:08d}.npz"
