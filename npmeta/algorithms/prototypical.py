"""Prototypical networks (Snell, Swersky & Zemel 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from npmeta._support.validation import Array
from npmeta.algorithms.base import MetaParameters
from npmeta.algorithms.episodic import ABSENT, ByDistance, Compared
from npmeta.network.distances import DISTANCES
from npmeta.network.mlp import MLP


@dataclass(frozen=True, eq=False)
class PrototypicalNetwork(ByDistance):
    r"""Label a query by the nearest class mean of the embedded support rows.

    With embeddings :math:`e`, a distance d and a scale s (equations 1 and 2 of the paper):

    .. math:: c_k = \operatorname{mean}_{i:\, y_i = k} e(x_i), \qquad
              P(y = k \mid x) = \frac{\exp(-s\, d(e(x), c_k))}{\sum_j \exp(-s\, d(e(x), c_j))}, \qquad
              L = -\log P(y \mid x) .

    Parameters
    ----------
    model : MLP or None
        The embedding; None compares the inputs themselves.
    distance : {"squared_euclidean", "euclidean", "cosine"}
        With the first the learner is linear in the embeddings (section 2.4 of the paper).
    scale : float, optional
        s to begin with, positive; a meta-parameter, "scale". By default 10 for cosine distance, else 1.
        The paper has none, s = 1. To hold s fixed, leave "scale" out of the parameters.
    ways : int, optional
        N, the number of classes; by default as many as the labels show.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> prototypical = nm.algorithms.PrototypicalNetwork(nm.MLP([2, 16, 8]))
    >>> params = prototypical.init(np.random.default_rng(0))
    >>> x, y = np.random.default_rng(1).normal(size=(4, 9, 2)), np.tile([0, 1, 2], (4, 3))
    >>> prototypical.predict(params, x[:, :6], y[:, :6], x[:, 6:]).shape     # 3-way 2-shot
    (4, 3, 3)
    """

    model: MLP | None
    distance: str = "squared_euclidean"
    scale: float | None = None
    ways: int | None = None

    def compare(self, params: MetaParameters, support: Array, y: Array, query: Array) -> Compared:
        """−s d(e(x), c_k): softmax of these are the class probabilities."""
        n_rows = y.sum(1)
        share = y / np.where(n_rows == 0, 1, n_rows)[:, None]  # (T, K, N)
        prototypes = share.swapaxes(1, 2) @ support
        d, to_rows = DISTANCES[self.distance](query, prototypes)
        s = params["scale"]
        outputs = np.where((n_rows == 0)[:, None], ABSENT, -s * d)

        def pull_back(outputs_bar: Array) -> tuple[Array, Array, dict[str, Array]]:
            query_bar, prototypes_bar = to_rows(-s * outputs_bar)
            return share @ prototypes_bar, query_bar, {"scale": -(outputs_bar * d).sum()}

        return Compared(outputs, pull_back)
