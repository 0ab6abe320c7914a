"""Rows of one's own for a network that is trained: CSV files in, answers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from npmeta._support.validation import Array
from npmeta.tasks.checks import existing
from npmeta.tasks.columns import read_columns
from npmeta.tasks.drawings import SIDE, read_image
from npmeta.tasks.encoding import Encoding
from npmeta.tasks.table import read_rows

#: New columns by name.
Answers: TypeAlias = list[tuple[str, Sequence[object]]]


class Rows(Protocol):
    """How the rows of a run's tasks are written in CSV files."""

    @property
    def n_in(self) -> int: ...
    @property
    def n_out(self) -> int: ...

    def support(self, path: Path) -> tuple[Array, Array]:
        """Inputs ``(K, n_in)`` and targets, as the network and its loss take them."""

    def query(self, path: Path) -> Array:
        """Inputs ``(Q, n_in)``."""

    def answers(self, outputs: Array) -> Answers:
        """What outputs ``(Q, n_out)`` say."""


@dataclass(frozen=True)
class TableRows:
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

    def answers(self, outputs: Array) -> Answers:
        predicted = ("prediction", self.encoding.decode(outputs).tolist())
        return [predicted, *_probabilities(outputs, self.encoding.classes or ())]


class DrawingRows:
    """Drawings in image files: a column ``image`` of paths and a column ``label`` of names."""

    n_in = SIDE * SIDE

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

    def answers(self, outputs: Array) -> Answers:
        known = outputs[:, : len(self.labels)]  # an output that no label was given to is no answer
        predicted = [self.labels[i] for i in known.argmax(-1)]
        return [("prediction", predicted), *_probabilities(known, self.labels)]

    def _images(self, path: Path, names: Sequence[str]) -> Array:
        """Images whose paths are relative to the CSV file."""
        return np.stack([read_image(path.parent / name, self.align) for name in names])


def _probabilities(outputs: Array, names: Sequence[str]) -> Answers:
    """A column for each class: softmax of the outputs, to four digits."""
    from scipy.special import softmax

    p = softmax(outputs.astype(np.float64), axis=-1)
    return [(f"p({name})", [f"{value:.4g}" for value in p[:, i]]) for i, name in enumerate(names)]
