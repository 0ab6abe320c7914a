"""Adapting a trained run to somebody's own examples: CSV files in, predictions as CSV out."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy.special import expit, softmax

from npmeta._support.reading import read_file
from npmeta._support.validation import Array, check_converged, shortened
from npmeta.cli.runs import Run
from npmeta.network import losses
from npmeta.tasks import Encoding, read_image, read_rows
from npmeta.tasks.checks import existing
from npmeta.tasks.columns import LONGEST, read_columns, read_csv

__all__ = ["predict"]


class Format(Protocol):
    """How the rows of a run's tasks are written in CSV files."""

    @property
    def n_in(self) -> int: ...
    @property
    def n_out(self) -> int: ...

    def support(self, path: Path) -> tuple[Array, Array]:
        """Inputs ``(K, n_in)`` and targets, as the network and its loss take them."""

    def query(self, path: Path) -> Array:
        """Inputs ``(Q, n_in)``."""

    def answers(self, outputs: Array) -> list[tuple[str, Sequence[object]]]:
        """New columns, by name, for outputs ``(Q, n_out)``."""


@dataclass(frozen=True)
class _Columns:
    """Rows of numbers: a table's, or x and y of a sine wave."""

    encoding: Encoding

    @property
    def n_in(self) -> int:
        return self.encoding.n_in

    @property
    def n_out(self) -> int:
        return self.encoding.n_out

    def support(self, path: Path) -> tuple[Array, Array]:
        x, y = read_rows(path, self.encoding)
        assert y is not None
        return x, y

    def query(self, path: Path) -> Array:
        return read_rows(path, self.encoding, with_target=False)[0]

    def answers(self, outputs: Array) -> list[tuple[str, Sequence[object]]]:
        predicted = ("prediction", self.encoding.decode(outputs).tolist())
        return [predicted, *_probabilities(outputs, self.encoding.classes or ())]


class _Drawings:
    """Drawings in image files: a column ``image`` of paths and a column ``label`` of names."""

    n_in = 784

    def __init__(self, ways: int, align: bool) -> None:
        self.n_out, self.align = ways, align
        self.labels: tuple[str, ...] = ()

    def support(self, path: Path) -> tuple[Array, Array]:
        columns = read_columns(existing(path))
        images, labels = (columns.strings(name).tolist() for name in ("image", "label"))
        self.labels = tuple(dict.fromkeys(labels))
        if len(self.labels) > self.n_out:
            raise ValueError(
                f"{path} has {len(self.labels)} different labels; this network tells {self.n_out} "
                f"apart (train with --ways {len(self.labels)} for more)"
            )
        return self._images(path, images), np.array([self.labels.index(label) for label in labels])

    def query(self, path: Path) -> Array:
        return self._images(path, read_columns(existing(path)).strings("image").tolist())

    def answers(self, outputs: Array) -> list[tuple[str, Sequence[object]]]:
        known = outputs[:, : len(self.labels)]  # an output that no label was given to is no answer
        predicted = [self.labels[i] for i in known.argmax(-1)]
        return [("prediction", predicted), *_probabilities(known, self.labels)]

    def _images(self, path: Path, names: Sequence[str]) -> Array:
        """Images whose paths are relative to the CSV file."""
        return np.stack([read_image(path.parent / name, self.align) for name in names])


def _probabilities(outputs: Array, names: Sequence[str]) -> list[tuple[str, Sequence[object]]]:
    """A column for each class: softmax of the outputs, to four digits."""
    p = softmax(outputs.astype(np.float64), axis=-1)
    return [(f"p({name})", [f"{value:.4g}" for value in p[:, i]]) for i, name in enumerate(names)]


def _table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file as they stand in it."""
    try:
        header, rows, _ = read_csv(read_file(existing(path)))
    except ValueError as error:
        raise ValueError(f"{path}: {shortened(str(error), LONGEST)}") from None
    return header, rows


def _means(outputs: Array, loss: str) -> Array:
    """What outputs predict of numbers: log-rates give rates, logits of one output probabilities."""
    targets = losses.get(loss).targets
    if targets == "counts":
        rates: Array = np.exp(outputs)
        return rates
    if targets == "binary":
        probabilities: Array = expit(outputs)
        return probabilities
    return outputs


def _format_of(run: Run) -> Format:
    if run.config.task == "omniglot":
        return _Drawings(run.config["ways"], run.config["align"])
    if run.config.task == "table":
        return _Columns(run.encoding())
    return _Columns(Encoding(("x",), "y", mean=(0.0,), std=(1.0,)))


def predict(run: Run, support: Path, query: Path, steps: int | None = None) -> str:
    """The query file with new columns: what the network predicts after adapting to the support file.

    Parameters
    ----------
    run : Run
    support, query : path
        CSV files with the run's columns; sinusoid: ``x`` and ``y``; omniglot: ``image`` (a path) and
        ``label``. The query file needs no target.
    steps : int, optional
        Inner steps, by default the run's ``eval_steps``.

    Returns
    -------
    str
        CSV text.

    Raises
    ------
    ValueError
        If a file or the run cannot be read, or a column is missing.
    DivergedError
        If outputs are not finite, which are no predictions.
    """
    form = _format_of(run)
    support_x, support_y = form.support(support)
    query_x = form.query(query)
    algorithm = run.config.algorithm(form.n_in, form.n_out)
    params = run.params_for(algorithm)
    steps = run.config["eval_steps"] if steps is None else steps
    outputs = algorithm.predict(params, support_x[None], support_y[None], query_x[None], steps=steps)
    check_converged(outputs[0])
    with np.errstate(over="ignore"):  # a rate is the exponential of an output
        answers = _means(outputs[0], run.config["loss"])
    check_converged(answers)
    head, rows = _table(query)
    columns = form.answers(answers)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*head, *(name for name, _ in columns)])
    for row, *cells in zip(rows, *(values for _, values in columns), strict=True):
        writer.writerow([*row, *cells])
    return text.getvalue()
