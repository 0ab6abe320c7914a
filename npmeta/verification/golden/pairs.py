"""Golden cases of siamese and of relation networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from npmeta._support.validation import Array
from npmeta.algorithms.base import MetaLearner
from npmeta.algorithms.relation import RelationNetwork
from npmeta.algorithms.siamese import SiameseNetwork
from npmeta.network.mlp import MLP
from npmeta.verification.golden.episodes import (
    EMBEDDING,
    SETS_SWAPPED,
    EpisodicCase,
    distances,
    log_sum_exp,
    over_rows,
)
from npmeta.verification.golden.others import Parameters, network, sigmoid


@dataclass(frozen=True, eq=False)
class SiameseCase(EpisodicCase):
    OUTPUTS = "o of every pair, query row by support row, (T, Q, K)"
    MISTAKES: ClassVar[Mapping[str, str]] = {
        "pairs_not_balanced": "the mean over all pairs",
        "summed_over_pairs": "Σ over all pairs",
        "labels_of_pairs_swapped": "t → 1 − t",
        "support_constant": "e(support.x) a constant",
        **SETS_SWAPPED,
    }

    @property
    def learner(self) -> MetaLearner:
        return SiameseNetwork(
            self.setting.model,
            self.constants()["pair_loss"],
            self.constants().get("margin", 10.0),
            self.setting.n_targets,
        )

    @property
    def contrastive(self) -> bool:
        return bool(self.constants()["pair_loss"] == "contrastive")

    def further(self) -> dict[str, Array]:
        if self.contrastive:
            return {}
        weights = np.arange(1, 1 + self.setting.widths[-1]) / 4
        return {"weights": weights, "bias": np.array(1.25)}

    def outputs(self, params: Parameters, mistake: str = "") -> Array:
        support, _, query, _ = self.embedded(params, mistake)
        if mistake == "support_constant":
            support = support.real
        if self.contrastive:
            return -distances("euclidean", query, support)
        r = query[..., :, None, :] - support[..., None, :, :]
        size = np.where(r.real < 0, -r, r)
        w, b = params["weights"][:, None, None, None], params["bias"][:, None, None, None]
        return b - (w * size).sum(-1)

    def losses(self, params: Parameters, mistake: str = "") -> Array:
        o, tasks = self.outputs(params, mistake), self.tasks(mistake)
        alike = tasks.query_y[..., :, None] == tasks.support_y[..., None, :]
        t = ~alike if mistake == "labels_of_pairs_swapped" else alike
        if self.contrastive:
            u = np.where(-o.real < self.constants()["margin"], self.constants()["margin"] + o, 0)
            charged = np.where(t, o * o, u * u) / 2
        else:
            charged = log_sum_exp(np.stack([np.zeros_like(o), o]), 0) - t * o
        total = charged.sum((-1, -2))
        same, others = ((charged * of).sum((-1, -2)) / of.sum((-1, -2)) for of in (t, ~t))
        right: Array = (same + others) / 2
        if mistake == "summed_over_pairs":
            return np.asarray(total)
        return np.asarray(total / t[0].size) if mistake == "pairs_not_balanced" else right

    def definition(self) -> list[str]:
        pair = (
            [
                "o = -sqrt(sum((e(query.x[j]) - e(support.x[i]))**2))",
                "loss of a pair = o**2 / 2 if t else max(0, margin + o)**2 / 2",
            ]
            if self.contrastive
            else [
                "o = bias - sum(weights * abs(e(query.x[j]) - e(support.x[i])))",
                "loss of a pair = log(1 + exp(o)) - t * o",
            ]
        )
        return [
            EMBEDDING,
            "pairs: every query row j with every support row i",
            "t = 1 if query.y[j] == support.y[i], else 0",
            *pair,
            "query_loss = (mean over the pairs with t = 1) / 2 + (mean over those with t = 0) / 2",
        ]

    def _loss_kink(self) -> float | None:
        at = {name: array[None] for name, array in self.params.items()}
        if self.contrastive:
            return float(np.abs(self.outputs(at) + self.constants()["margin"]).min())
        support, _, query, _ = self.embedded(at, "")
        return float(np.abs(query[..., :, None, :] - support[..., None, :, :]).min())


@dataclass(frozen=True, eq=False)
class RelationCase(EpisodicCase):
    OUTPUTS = "g of every query row with every class, before the sigmoid, (T, Q, N)"
    MISTAKES: ClassVar[Mapping[str, str]] = {
        "class_means": "the mean over a class, and not the sum",
        "joined_in_other_order": "[e(query.x), c[k]]",
        "no_sigmoid": "r[k] = g",
        "summed_over_rows": "Q g",
        "summed_over_classes": "N g",
        **SETS_SWAPPED,
    }

    @property
    def module(self) -> MLP:
        """The relation module, with as many layers as the embedding."""
        return MLP([2 * self.setting.widths[-1], *self.constants()["relation_hidden"], 1], "tanh")

    @property
    def learner(self) -> MetaLearner:
        return RelationNetwork(self.setting.model, self.module, self.setting.n_targets)

    def networks(self) -> dict[str, MLP]:
        return {**super().networks(), "relation": self.module}

    def further(self) -> dict[str, Array]:
        return {"relation": self.setting.parameters(self.module, self.setting.model.n_params)}

    def outputs(self, params: Parameters, mistake: str = "") -> Array:
        support, labels, query, _ = self.embedded(params, mistake)
        member = self.one_hot(labels)
        n_rows = member.sum(1)[..., None] if mistake == "class_means" else 1
        c = member.swapaxes(-1, -2) @ support / n_rows
        shape = (*query.shape[:-1], c.shape[-2], query.shape[-1])
        parts = [np.broadcast_to(part, shape) for part in (c[..., None, :, :], query[..., :, None, :])]
        joined = np.concatenate(parts[:: -1 if mistake == "joined_in_other_order" else 1], axis=-1)
        rows = joined.reshape(*shape[:2], -1, joined.shape[-1])
        g, _ = network(self.module, params["relation"], rows)
        return g.reshape(shape[:-1])

    def losses(self, params: Parameters, mistake: str = "") -> Array:
        g, y = self.outputs(params, mistake), self.one_hot(self.tasks(mistake).query_y)
        r = g if mistake == "no_sigmoid" else sigmoid(g)
        squares = (r - y) ** 2
        by_row = squares.sum(-1) if mistake == "summed_over_classes" else squares.mean(-1)
        return over_rows(by_row, mistake)

    def definition(self) -> list[str]:
        return [
            EMBEDDING,
            "c[k] = sum of e(support.x[i]) over the rows i with support.y[i] == k",
            "g = the output of the network relation for the inputs [c[k], e(query.x)], in this order",
            "r[k] = 1 / (1 + exp(-g))",
            "query_loss = mean over query rows and classes of (r[k] - (1 if query.y == k else 0))**2",
        ]
