"""Reptile (Nichol, Achiam & Schulman 2018): move towards where training on a task leads."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from npmeta._support.validation import as_number, as_whole
from npmeta.algorithms.adapts import Adapts
from npmeta.algorithms.base import MetaGradient, all_rows
from npmeta.algorithms.gradient_steps import GradientSteps, Prepared
from npmeta.bilevel.adaptation import inner_loop
from npmeta.bilevel.objective import Batch, Objective
from npmeta.network import spaces
from npmeta.network.losses import Loss
from npmeta.network.mlp import MLP


@dataclass(frozen=True, eq=False)
class Reptile(Adapts):
    r"""Take S steps of stochastic gradient descent on each task, and go part of the way there.

    .. math:: \theta \leftarrow \theta + \varepsilon \, \frac1T \sum_t (\varphi_{t,S} - \theta)

    What is handed to the outer optimizer for a gradient is, as in the paper's section 2, the sum of the
    gradients met on the way,

    .. math:: g = \frac1T \sum_t \frac{\theta - \varphi_{t,S}}{\alpha}
                = \frac1T \sum_t \sum_{s<S} \nabla L_t^{(s)}(\varphi_{t,s}),

    so that plain gradient descent with the learning rate ε α is the update above: one task at a time
    (a meta-batch of 1) it is the paper's algorithm 1, with more its algorithm 2. It is the gradient of
    no function, and takes no second derivatives.

    There is no query set in training. A task's rows, those of support and query together, are cut into
    minibatches of ``batch_rows``, which the steps take in turn; with the same rows in every step there
    would be nothing to generalise to. Adapting to a new task takes all support rows in every step.

    Parameters
    ----------
    model, loss, inner_steps, weights
        As in :class:`~npmeta.MAML`. With one step this is joint training.
    inner_lr : float
        α, positive and one for all parameters.
    batch_rows : int
        Rows of a minibatch; 0 for all.
    """

    model: MLP | Objective
    loss: str | Loss | None = None
    inner_lr: float = 0.01
    inner_steps: int = 1
    weights: str = "auto"
    batch_rows: int = 0
    inner: GradientSteps = field(init=False, repr=False)

    learns_inner_lr = False

    def __post_init__(self) -> None:
        as_number(self.inner_lr, "inner_lr of Reptile", "one positive number", lambda a: a > 0)
        as_whole(self.batch_rows, "batch_rows")
        self._hold()

    def of_tasks(self, problem: Prepared) -> MetaGradient:
        """The sum of the gradients met on the way, of a prepared batch."""
        rows = all_rows(problem.support, problem.query)
        batches = self._minibatches(rows)
        point = start = self.inner.hold(replace(problem, support=batches[0]))
        g = None
        for s in range(self.inner_steps):
            batch = batches[s % len(batches)]
            ((lin, point),) = inner_loop(self.objective, point, batch, problem.alpha, 1)
            if g is None:
                g = spaces.cotangent(start, lin.gradient)
            else:
                g = spaces.plus(g, 1.0, lin.gradient)
        mean = np.zeros_like(problem.theta) if g is None else spaces.task_mean(g)
        loss, _ = self.objective.score(point, rows)
        return MetaGradient(float(loss.real.mean()), {"theta": mean}, loss, "none")

    def _minibatches(self, rows: Batch) -> list[Batch]:
        x, y = rows
        size = min(self.batch_rows or x.shape[1], x.shape[1])
        starts = range(0, x.shape[1] - size + 1, size)
        return [(x[:, start : start + size], y[:, start : start + size]) for start in starts]
