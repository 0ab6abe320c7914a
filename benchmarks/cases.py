"""What is measured: the table of cases, and the arrays of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import npmeta as nm

__all__ = ["CASES", "DTYPES", "QUICK", "Case", "Problem", "make_problem"]


@dataclass(frozen=True)
class Case:
    """One exact second-order meta-gradient of a ReLU network.

    Attributes
    ----------
    name : str
    widths : tuple of int
        Of the network, inputs first.
    tasks, support_rows, query_rows : int
        T tasks of K rows to adapt on and Q to be scored on. Of images both are counted over all
        classes.
    steps : int
        S, the inner steps.
    loss : {"mse", "cross_entropy"}
        With "mse" the tasks are sine waves, with "cross_entropy" images of as many classes as the
        network has outputs.
    inner_lr : float
        That of Finn et al. (2017) for the data set. It does not change the work, but a loss that blew
        up would: numbers that are not finite, or denormal, take their own time.
    """

    name: str
    widths: tuple[int, ...]
    tasks: int
    support_rows: int
    query_rows: int
    steps: int
    loss: str
    inner_lr: float

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Case:
        """From its fields, as :func:`dataclasses.asdict` makes them; JSON has lists for tuples."""
        return cls(**{**fields, "widths": tuple(fields["widths"])})


_SINE = (1, 40, 40, 1)
_OMNIGLOT = (784, 256, 128, 64, 64)

#: Every case, by its name.
CASES = {
    case.name: case
    for case in (
        Case("sine-1", _SINE, 25, 10, 10, 1, "mse", 0.01),
        Case("sine-5", _SINE, 25, 10, 10, 5, "mse", 0.01),
        Case("sine-1000", _SINE, 1000, 10, 10, 1, "mse", 0.01),
        Case("omniglot-5w1s", (*_OMNIGLOT, 5), 32, 5, 5, 5, "cross_entropy", 0.4),
        Case("omniglot-5w1s-q75", (*_OMNIGLOT, 5), 32, 5, 75, 5, "cross_entropy", 0.4),
        Case("omniglot-20w1s", (*_OMNIGLOT, 20), 16, 20, 20, 5, "cross_entropy", 0.1),
        Case("wide", (784, 1024, 1024, 5), 32, 5, 15, 5, "cross_entropy", 0.1),
    )
}

#: The cases of ``--quick``.
QUICK = ("sine-1", "omniglot-5w1s")

DTYPES = ("float32", "float64")


class Problem(NamedTuple):
    """A case in numbers: theta and the sets of ``tasks`` are all of one dtype, labels are integers."""

    case: Case
    model: nm.MLP
    theta: NDArray[Any]
    tasks: nm.TaskBatch


def make_problem(case: Case, dtype: str, seed: int = 0) -> Problem:
    """The arrays of a case: a function of its sizes and the seed.

    Those of float32 are the rounded ones of float64.
    """
    model = nm.MLP(case.widths, activation="relu")
    theta = model.init(np.random.default_rng(seed), dtype)
    tasks = _sines(case, seed) if case.loss == "mse" else _images(case, seed)
    rounded = nm.TaskBatch(
        tasks.support_x.astype(dtype),
        _rounded(tasks.support_y, dtype),
        tasks.query_x.astype(dtype),
        _rounded(tasks.query_y, dtype),
    )
    return Problem(case, model, theta, rounded)


def _rounded(y: NDArray[Any], dtype: str) -> NDArray[Any]:
    return y if y.dtype.kind == "i" else y.astype(dtype)


def _sines(case: Case, seed: int) -> nm.TaskBatch:
    sampler = nm.tasks.Sinusoid(shots=case.support_rows, queries=case.query_rows)
    return sampler.sample(seed=seed, iteration=0, n_tasks=case.tasks)


def _images(case: Case, seed: int) -> nm.TaskBatch:
    """Images in [0, 1] that are zero in nine pixels of ten, as drawings scaled to 28×28 are.

    A class is a set of pixels with ink on them; an image of it misses some and shades the rest.
    """
    rng = np.random.default_rng(seed)
    T, n_in, n_classes = case.tasks, case.widths[0], case.widths[-1]
    ink = rng.random((T, n_classes, n_in)) < 0.12

    def draw(rows: int) -> tuple[NDArray[Any], NDArray[Any]]:
        labels = np.tile(np.arange(n_classes), rows // n_classes)
        kept = ink[:, labels] & (rng.random((T, rows, n_in)) < 0.85)
        images = np.where(kept, rng.uniform(0.3, 1.0, size=(T, rows, n_in)), 0.0)
        return images, np.tile(labels, (T, 1))

    return nm.TaskBatch(*draw(case.support_rows), *draw(case.query_rows))
