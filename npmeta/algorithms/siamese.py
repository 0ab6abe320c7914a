"""Siamese networks: are two rows alike? (Hadsell et al. 2006, Koch et al. 2015)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from npmeta._support.validation import Array, lookup
from npmeta.algorithms.base import MetaParameters
from npmeta.algorithms.episodic import ABSENT, Compared, Episodic, check_model, check_scale
from npmeta.network import losses
from npmeta.network.distances import euclidean, weighted_l1
from npmeta.network.mlp import MLP

PAIR_LOSSES = ("weighted_l1", "contrastive")


@dataclass(frozen=True, eq=False)
class SiameseNetwork(Episodic):
    r"""Learn from pairs whether two rows are of one class; label a query as the row it is most like.

    The pairs of a task are its query rows with its support rows, t = 1 for one class and 0 for two.
    With "weighted_l1" (Koch et al. 2015, section 3.1) a pair's features are weighed, and its loss is
    the cross-entropy of

    .. math:: P(t = 1) = \sigma\Big(b - \sum_k w_k\, |e_k(x) - e_k(x_i)|\Big) ;

    with "contrastive" (Hadsell, Chopra & LeCun 2006, equation 4), for the Euclidean distance d and a
    margin m, it is

    .. math:: \tfrac12\, t\, d^2 + \tfrac12\, (1 - t) \max(0, m - d)^2 .

    The loss of a task is half the mean over its pairs of one class and half that over the others, as
    if as many of either had been drawn.

    Parameters
    ----------
    model : MLP or None
        The embedding of both rows; None compares the inputs themselves.
    pair_loss : {"weighted_l1", "contrastive"}
    margin : float
        The distance, positive, that parts pairs of one class from the others: m, or where b begins. It
        is to be of the size of distances between embeddings before training. A small one begins by
        drawing them all together, and what was learned from that has generalised badly.
    ways : int, optional
        N, the number of classes; by default as many as the labels show.

    Raises
    ------
    ValueError
        If an argument is out of range; or if w would have no length (weighted L1 without a model).

    Notes
    -----
    The weighted L1 loss has meta-parameters "weights" (w, which begins at 1) and "bias" (b).
    A pair of two classes whose embeddings coincide has gradient 0 (:mod:`npmeta.network.distances`).

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> siamese = nm.algorithms.SiameseNetwork(nm.MLP([2, 16, 8]))
    >>> params = siamese.init(np.random.default_rng(0))
    >>> {name: array.shape for name, array in params.items()}
    {'theta': (184,), 'weights': (8,), 'bias': ()}
    """

    model: MLP | None
    pair_loss: str = "weighted_l1"
    margin: float = 10.0
    ways: int | None = None

    def __post_init__(self) -> None:
        check_model(self.model, self.ways)
        check_scale(self.margin, "margin")
        lookup(self.pair_loss, dict.fromkeys(PAIR_LOSSES), "pair loss")
        if self.pair_loss == "weighted_l1" and self.model is None:
            raise ValueError("the weighted L1 loss needs a model, whose outputs it weighs")

    def extra(self) -> dict[str, Array]:
        if self.pair_loss == "contrastive" or self.model is None:
            return {}
        return {"weights": np.ones(self.model.widths[-1]), "bias": np.array(float(self.margin))}

    def compare(self, params: MetaParameters, support: Array, y: Array, query: Array) -> Compared:
        """How alike the rows of each pair are, ``(T, Q, K)``: −d, or the logit of P(t = 1)."""
        if self.pair_loss == "contrastive":
            d, to_rows = euclidean(query, support)

            def pull_back(outputs_bar: Array) -> tuple[Array, Array, dict[str, Array]]:
                query_bar, support_bar = to_rows(-outputs_bar)
                return support_bar, query_bar, {}

            return Compared(-d, pull_back)

        d, to_weighted_rows = weighted_l1(query, support, params["weights"])

        def pull_back_weighted(outputs_bar: Array) -> tuple[Array, Array, dict[str, Array]]:
            query_bar, support_bar, weights_bar = to_weighted_rows(-outputs_bar)
            return support_bar, query_bar, {"weights": weights_bar, "bias": outputs_bar.sum()}

        return Compared(params["bias"] - d, pull_back_weighted)

    def query_loss(self, outputs: Array, support_y: Array, query_y: Array) -> tuple[Array, Array]:
        """The loss of each task's pairs, and its gradient in the outputs."""
        t = query_y @ support_y.swapaxes(1, 2)  # (T, Q, K)
        if self.pair_loss == "contrastive":
            loss, gradient = contrastive(-outputs, t, float(self.margin))
            gradient = -gradient
        else:
            loss, gradient, _ = losses.decisions(outputs, t)
        weight = 0.5 * (_shares(t) + _shares(1 - t))
        return (weight * loss).sum((1, 2)), weight * gradient

    def class_outputs(self, outputs: Array, support_y: Array) -> Array:
        """The output for the support row of each class that is most like the query."""
        member = (support_y.real > 0)[:, None]
        return np.where(member, outputs[..., None].real, ABSENT).max(2)


def contrastive(d: Array, t: Array, margin: float) -> tuple[Array, Array]:
    """½ t d² + ½ (1 − t) u² with u = max(0, m − d), pair by pair; its derivative t d − (1 − t) u."""
    u = np.where(d.real < margin, margin - d, 0)
    return (t * d * d + (1 - t) * u * u) / 2, t * d - (1 - t) * u


def _shares(t: Array) -> Array:
    """t so scaled that the pairs of each task add up to 1 (to 0 where there are none)."""
    n_pairs = t.sum((1, 2), keepdims=True)
    return t / np.where(n_pairs == 0, 1, n_pairs)
