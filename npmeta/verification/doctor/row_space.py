r"""A network with wide inputs, in coordinates of the few directions that a task's rows span.

Gradients of the first weights are :math:`X^\top \delta`: in an inner loop they never leave the span of
the task's rows. With an orthonormal basis :math:`B_t (n, r)` of it, :math:`x W = (x B_t)(B_t^\top W)`,
so the loop and the way back are those of a network with r inputs, and a gradient of that,
:math:`(r, n_1)`, stands for :math:`B_t` times it. Of an image of 784 pixels and twenty rows this is a
fifth of the numbers of the standard Omniglot network, and the same up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from npmeta._support.validation import Array
from npmeta.bilevel.objective import Batch, Risk
from npmeta.network.mlp import MLP

#: Less is saved than it costs where the span is wider than this share of the inputs.
WIDEST = 0.25


@dataclass(frozen=True, eq=False)
class RowSpace:
    """Inner loops in such coordinates; P′ is the number of parameters that is left.

    Attributes
    ----------
    risk : Risk
    bases : ndarray, (T, n, r)
    theta : ndarray, (T, P′)
    step_sizes : ndarray, (max(S, 1), P′)
    """

    risk: Risk
    bases: Array
    theta: Array
    step_sizes: Array

    @staticmethod
    def of(
        risk: Risk, theta: Array, step_sizes: Array, support: Batch, query: Batch
    ) -> RowSpace | None:
        """None where there is nothing to be saved, or a step size differs between inputs."""
        model = risk.model
        x, n, first = support[0], model.widths[0], model.places["0.weight"]
        # Some mistakes score a task on the rows of its neighbours.
        rows = [x, *(np.roll(query[0], shift, axis=0) for shift in (0, -1, 1))]
        if sum(part.shape[1] for part in rows) > WIDEST * n or not model.is_plain:
            return None
        if np.ptp(step_sizes[:, first], axis=1).any():
            return None
        bases = np.linalg.qr(np.concatenate(rows, axis=1).swapaxes(1, 2)).Q
        T, _, r = bases.shape
        W = bases.swapaxes(1, 2) @ theta[first].reshape(n, -1)
        return RowSpace(
            Risk(MLP([r, *model.widths[1:]], list(model.activations)), risk.loss),
            bases,
            np.concatenate([W.reshape(T, -1), np.tile(theta[first.stop :], (T, 1))], axis=1),
            np.concatenate([step_sizes[:, : r * model.widths[1]], step_sizes[:, first.stop :]], axis=1),
        )

    def rows(self, batch: Batch) -> Batch:
        """Every task's rows."""
        x, y = batch
        return x @ self.bases, y

    def total(self, per_task: Array) -> Array:
        """The sum ``(P,)`` over tasks of what is ``(T, P′)``."""
        return self._whole(self.bases, per_task)

    def task(self, per_task: Array, t: int) -> Array:
        """That of one task, ``(P,)``."""
        return self._whole(self.bases[t : t + 1], per_task[t : t + 1])

    def _whole(self, bases: Array, rows: Array) -> Array:
        T, n, r = bases.shape
        stop = self.risk.model.places["0.weight"].stop
        W = bases.swapaxes(0, 1).reshape(n, T * r) @ rows[:, :stop].reshape(T * r, -1)
        return np.concatenate([W.reshape(-1), rows[:, stop:].sum(0)])
