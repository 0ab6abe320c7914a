"""Relation networks (Sung, Yang, Zhang, Xiang, Torr & Hospedales 2018)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import DTypeLike

from npmeta._support.validation import Array, as_generator
from npmeta.algorithms.base import MetaParameters, check_network
from npmeta.algorithms.episodic import ABSENT, Compared, Episodic, check_model, through
from npmeta.network import losses
from npmeta.network.mlp import MLP

#: Widths of the hidden layers of the second network, where none is given.
HIDDEN = (128, 64)


@dataclass(frozen=True, eq=False)
class RelationNetwork(Episodic):
    r"""Learn the comparison too: a second network scores a class and a query joined together.

    With embeddings :math:`e` and the relation module g, a network with one output (equations 1 and 2 of
    the paper):

    .. math:: r_k = \sigma\Big(g\Big(\Big[\sum_{i:\, y_i = k} e(x_i),\; e(x)\Big]\Big)\Big), \qquad
              L = \operatorname{mean}_k \, (r_k - [y = k])^2 .

    Parameters
    ----------
    model : MLP
        The embedding, with d outputs.
    relation : MLP, optional
        g, with 2d inputs and one output; by default with hidden layers of 128 and 64 units (relu).
    ways : int, optional
        N, the number of classes; by default as many as the labels show.

    Attributes
    ----------
    module : MLP
        g.

    Raises
    ------
    ValueError
        If the widths do not fit.

    Notes
    -----
    The meta-parameters are "theta" and "relation", those of g. The outputs are g, the logits of r. The
    sum over a class grows with the shots, so a relation network is best used with as many as it was
    trained with.

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> network = nm.algorithms.RelationNetwork(nm.MLP([2, 16, 8]))
    >>> network.module
    MLP([16, 128, 64, 1], activation='relu')
    >>> {name: array.shape for name, array in network.init(np.random.default_rng(0)).items()}
    {'theta': (184,), 'relation': (10497,)}
    """

    model: MLP
    relation: MLP | None = None
    ways: int | None = None
    module: MLP = field(init=False, repr=False)

    @property
    def required(self) -> tuple[str, ...]:
        return ("relation",)

    def __post_init__(self) -> None:
        if self.model is None:
            raise ValueError("a relation network needs a model, whose outputs it joins")
        check_model(self.model, self.ways)
        d = self.model.widths[-1]
        module = MLP([2 * d, *HIDDEN, 1]) if self.relation is None else self.relation
        check_network(module, "relation")
        if (module.widths[0], module.widths[-1]) != (2 * d, 1):
            raise ValueError(
                f"relation must have {2 * d} inputs, twice the embedding's outputs, and 1 output; got "
                f"{module!r}"
            )
        object.__setattr__(self, "module", module)

    def init(self, rng: np.random.Generator | int, dtype: DTypeLike = np.float64) -> dict[str, Array]:
        """Initial meta-parameters: "theta" and "relation"."""
        rng = as_generator(rng)
        return {"theta": self.model.init(rng, dtype), "relation": self.module.init(rng, dtype)}

    def extra(self) -> dict[str, Array]:
        return {"relation": np.zeros(self.module.n_params)}

    def compare(self, params: MetaParameters, support: Array, y: Array, query: Array) -> Compared:
        """g of every class sum joined with every query row, ``(T, Q, N)``."""
        sums = y.swapaxes(1, 2) @ support  # (T, N, d)
        T, Q, N, d = (*query.shape[:2], *sums.shape[1:])
        joined = np.empty((T, Q, N, 2 * d), dtype=sums.dtype)
        joined[..., :d] = sums[:, None]
        joined[..., d:] = query[:, :, None]
        scores, to_relation = through(self.module, params["relation"], joined)
        outputs = np.where((y != 0).any(1)[:, None], scores[..., 0], ABSENT)

        def pull_back(outputs_bar: Array) -> tuple[Array, Array, dict[str, Array]]:
            relation_bar, delta = to_relation(outputs_bar[..., None])
            W, *_ = self.module.unpack(params["relation"])[0]
            joined_bar = delta @ W.T
            sums_bar, query_bar = joined_bar[..., :d].sum(1), joined_bar[..., d:].sum(2)
            return y @ sums_bar, query_bar, {"relation": relation_bar}

        return Compared(outputs, pull_back)

    def query_loss(self, outputs: Array, support_y: Array, query_y: Array) -> tuple[Array, Array]:
        """Mean of (σ(g) − [y = k])², and its gradient in g."""
        # σ(g) − [y = k] with its tails, and σ', are the derivatives of a decision's cross-entropy.
        _, off, slope = losses.decisions(outputs, query_y)
        value, off_bar, _ = losses.get("mse")(off, np.zeros_like(query_y))
        return value, off_bar * slope
