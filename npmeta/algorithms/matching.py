"""Matching networks (Vinyals, Blundell, Lillicrap, Kavukcuoglu & Wierstra 2016)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from npmeta._support.validation import Array
from npmeta.algorithms.base import MetaParameters
from npmeta.algorithms.episodic import ABSENT, ByDistance, Compared
from npmeta.network.distances import DISTANCES
from npmeta.network.mlp import MLP


@dataclass(frozen=True, eq=False)
class MatchingNetwork(ByDistance):
    r"""Label a query by the labels of the support rows it attends to.

    With embeddings :math:`e`, a distance d and a scale s (equation 1 of the paper, whose embeddings of
    a row do not depend on the rest of the support set):

    .. math:: P(y = c \mid x) = \sum_{i:\, y_i = c} a_i, \qquad
              a_i = \frac{\exp(-s\, d(e(x), e(x_i)))}{\sum_j \exp(-s\, d(e(x), e(x_j)))}, \qquad
              L = -\log P(y \mid x) .

    Parameters
    ----------
    model : MLP or None
        The embedding; two widths make a linear one. None compares the inputs themselves: with cosine
        distance that is the baseline on raw pixels of the paper's table 1, which needs no training.
    distance : {"cosine", "euclidean", "squared_euclidean"}
    scale : float, optional
        s to begin with, positive; a meta-parameter, "scale". By default 10 for cosine distance, else 1.
        The paper has none, s = 1: then cosines, from −1 to 1, let no probability of five classes exceed
        0.65. To hold s fixed, leave "scale" out of the parameters.
    ways : int, optional
        N, the number of classes; by default as many as the labels show.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> matching = nm.algorithms.MatchingNetwork(nm.MLP([2, 16, 8]))
    >>> params = matching.init(np.random.default_rng(0))
    >>> x, y = np.random.default_rng(1).normal(size=(4, 9, 2)), np.tile([0, 1, 2], (4, 3))
    >>> tasks = nm.TaskBatch(x[:, :3], y[:, :3], x[:, 3:], y[:, 3:])     # 3-way 1-shot
    >>> out = matching.meta_gradient(params, tasks)
    >>> out.grad.shape, out.grads["scale"].shape
    ((184,), ())
    """

    model: MLP | None
    distance: str = "cosine"
    scale: float | None = None
    ways: int | None = None

    def compare(self, params: MetaParameters, support: Array, y: Array, query: Array) -> Compared:
        """log Σ_{i of class c} exp(−s d_i): softmax of these are the class probabilities."""
        d, to_rows = DISTANCES[self.distance](query, support)
        s = params["scale"]
        outputs, to_similarities = log_sum_by_class(-s * d, y)

        def pull_back(outputs_bar: Array) -> tuple[Array, Array, dict[str, Array]]:
            similarity_bar = to_similarities(outputs_bar)
            query_bar, support_bar = to_rows(-s * similarity_bar)
            return support_bar, query_bar, {"scale": -(similarity_bar * d).sum()}

        return Compared(outputs, pull_back)


def log_sum_by_class(similarity: Array, y: Array) -> tuple[Array, Callable[[Array], Array]]:
    r"""log Σ exp of the similarities to the support rows of each class.

    .. math:: o_c = \log \sum_{i:\, y_i = c} e^{z_i}, \qquad \bar z_i = \bar o_c\, e^{z_i - o_c}
              \text{ with } c = y_i .

    Parameters
    ----------
    similarity : ndarray, (T, Q, K)
    y : ndarray, (T, K, N)
        One-hot.

    Returns
    -------
    outputs : ndarray, (T, Q, N)
        ``ABSENT`` for a class without support rows.
    pull_back : callable
        From ō to z̄.
    """
    member = (y.real > 0)[:, None]  # (T, 1, K, N)
    # The largest of each class comes out of the sum, so that no class underflows beside another.
    z = similarity[..., None]
    top = np.where(member, z.real, ABSENT).max(2)
    own_top = top @ y.swapaxes(1, 2)  # (T, Q, K): that of a row's own class
    e = np.exp(similarity - own_top)
    total = e @ y
    absent = ~member.any(2)
    outputs = np.where(absent, ABSENT, top + np.log(np.where(absent, 1, total)))

    def pull_back(outputs_bar: Array) -> Array:
        share = e / (np.where(absent, 1, total) @ y.swapaxes(1, 2))  # e^{z_i − o_c}
        return share * (outputs_bar @ y.swapaxes(1, 2))

    return outputs, pull_back
