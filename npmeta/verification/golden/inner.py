"""What golden cases of algorithms that take gradient steps on a task, or solve for its minimum, share.

Points of meta-parameter space and tasks are one axis here, ``(D T, ..)``. The inner loop's gradients
are those of an objective at complex parameters; nothing else is asked of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from npmeta._support.validation import Array
from npmeta.bilevel.objective import Batch, Risk
from npmeta.network.passes import forward
from npmeta.verification.doctor.files import named_arrays
from npmeta.verification.golden.maml import loss_words
from npmeta.verification.golden.others import OtherCase
from npmeta.verification.oracles.meta_loss import layers, value_and_gradient

SETS_SWAPPED = {"sets_swapped": "S ↔ Q"}


@dataclass(frozen=True, eq=False)
class InnerCase(OtherCase):
    """A case of an algorithm whose network has a loss on the rows of a task."""

    @cached_property
    def risk(self) -> Risk:
        return Risk(self.setting.model, self.setting.loss)

    def batches(self, D: int = 1, mistake: str = "") -> tuple[Batch, Batch]:
        """Support and query sets, D times one after another."""
        tasks = self.tasks(mistake)
        n_out, dtype = self.setting.model.widths[-1], np.dtype(np.float64)

        def tiled(x: Array, y: Array) -> Batch:
            prepared = self.risk.loss.prepare(y, n_out, dtype)
            return np.tile(x, (D, 1, 1)), np.tile(prepared, (D, 1, 1))

        return tiled(tasks.support_x, tasks.support_y), tiled(tasks.query_x, tasks.query_y)

    def both(self, D: int = 1) -> Batch:
        """The rows of both sets, support first."""
        (x, y), (x_query, y_query) = self.batches(D)
        return np.concatenate([x, x_query], axis=1), np.concatenate([y, y_query], axis=1)

    def at(self, phi: Array, batch: Batch) -> tuple[Array, Array]:
        """Loss ``(D T,)`` and gradient ``(D T, P)``."""
        return value_and_gradient(self.risk, phi, batch)

    def stacked(self, theta: Array) -> Array:
        """``theta (D, P)`` for every task, ``(D T, P)``."""
        return np.repeat(theta, len(self.setting.tasks), axis=0)

    def by_point(self, values: Array) -> Array:
        """``(D T,)`` as ``(D, T)``."""
        return values.reshape(-1, len(self.setting.tasks))

    def named(self, prefix: str, phi: Array) -> dict[str, Array]:
        """φ ``(T, P)`` by task and layer."""
        arrays: dict[str, Array] = {}
        for t, one in enumerate(phi):
            arrays |= named_arrays(f"task.{t:03}.{prefix}", self.setting.model, one)
        return arrays

    def passes(self) -> Iterator[tuple[Array, Batch]]:
        """Parameters ``(T, P)`` and rows of every pass through the network."""
        theta = self.stacked(self.params["theta"][None])
        for batch in self.batches():
            yield theta, batch

    def _hidden(self) -> Iterator[Array]:
        for phi, (x, _) in self.passes():
            at = forward(layers(self.risk, phi), self.setting.model.activations, x)
            yield from (pre.u for pre in at.pre)

    def loss_line(self) -> str:
        """What L is."""
        words = loss_words(self.setting.loss)
        return f"L(phi; rows) = mean over rows of ({words['outputs']}: {words['formula']})"
