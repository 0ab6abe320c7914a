"""Golden cases of learners without an inner loop, each written down from its paper's formulas.

Numbers of a task have two axes in front, points of meta-parameter space and tasks: e(x) is
``(D, T, rows, d)``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from npmeta._support.validation import Array
from npmeta.algorithms.base import MetaLearner
from npmeta.algorithms.matching import MatchingNetwork
from npmeta.algorithms.prototypical import PrototypicalNetwork
from npmeta.algorithms.relation import RelationNetwork
from npmeta.algorithms.ridge import RidgeHead
from npmeta.algorithms.siamese import SiameseNetwork
from npmeta.network.losses import LOSSES
from npmeta.network.mlp import MLP
from npmeta.verification.golden.maml import loss_words
from npmeta.verification.golden.others import OtherCase, Parameters, network, sigmoid

__all__ = [
    "EMBEDDING",
    "SETS_SWAPPED",
    "MatchingCase",
    "PrototypicalCase",
    "RelationCase",
    "RidgeCase",
    "ScoredCase",
    "SiameseCase",
    "distances",
]

SETS_SWAPPED = {"sets_swapped": "S ↔ Q"}
EMBEDDING = "e(x): the outputs of the network theta for the row x; the same for support and query rows"
CLASSES = "query_loss = mean over query rows of -log(exp(o[label]) / sum(exp(o[k]) over k))"

DISTANCE_FORMULAS = {
    "squared_euclidean": "d(u, v) = sum((u - v)**2)",
    "euclidean": "d(u, v) = sqrt(sum((u - v)**2))",
    "cosine": "d(u, v) = 1 - sum(u * v) / (sqrt(sum(u**2)) * sqrt(sum(v**2)))",
}


def distances(name: str, u: Array, v: Array) -> Array:
    """d of all rows ``u (.., Q, n)`` with all ``v (.., C, n)``: ``(.., Q, C)``."""
    u, v = u[..., :, None, :], v[..., None, :, :]
    if name == "cosine":
        lengths = np.sqrt((u * u).sum(-1)) * np.sqrt((v * v).sum(-1))
        one_less: Array = 1 - (u * v).sum(-1) / lengths
        return one_less
    squares: Array = ((u - v) ** 2).sum(-1)
    return squares if name == "squared_euclidean" else np.sqrt(squares)


def log_sum_exp(z: Array, axis: int) -> Array:
    """log Σ exp, with the largest out of the sum."""
    top = z.real.max(axis, keepdims=True)
    summed: Array = np.log(np.exp(z - top).sum(axis)) + top.squeeze(axis)
    return summed


def over_rows(charged: Array, mistake: str) -> Array:
    """The mean over query rows, or, by mistake, the sum."""
    mean: Array = charged.mean(-1)
    return mean * charged.shape[-1] if mistake == "summed_over_rows" else mean


@dataclass(frozen=True, eq=False)
class EpisodicCase(OtherCase):
    """A case of a learner that compares query rows with support rows."""

    @abstractmethod
    def outputs(self, params: Parameters, mistake: str = "") -> Array:
        """What is scored, ``(D, T, Q, ..)``."""

    #: What the outputs are.
    OUTPUTS = "o[k] of every query row, (T, Q, N)"

    def embedded(self, params: Parameters, mistake: str) -> tuple[Array, Array, Array, Array]:
        """Embeddings of the support rows with their labels, and of the query rows with theirs."""
        tasks = self.tasks(mistake)
        support, query = (
            network(self.setting.model, params["theta"], x)[0] for x in (tasks.support_x, tasks.query_x)
        )
        return support, tasks.support_y, query, tasks.query_y

    def losses(self, params: Parameters, mistake: str = "") -> Array:
        o, y = self.outputs(params, mistake), self.tasks(mistake).query_y
        right = np.take_along_axis(o, y[None, :, :, None], axis=-1)[..., 0]
        return over_rows(log_sum_exp(o, -1) - right, mistake)

    def quantities(self) -> dict[str, tuple[str, Array | dict[str, Array]]]:
        at = {name: array[None] for name, array in self.params.items()}
        return {"outputs": (self.OUTPUTS, self.outputs(at)[0])}


@dataclass(frozen=True, eq=False)
class ScoredCase(EpisodicCase):
    """One whose outputs have the setting's loss."""

    OUTPUTS = "o of every query row, (T, Q, n_out)"

    def targets(self, y: Array) -> Array:
        return self.one_hot(y) if y.dtype.kind == "i" else y

    def losses(self, params: Parameters, mistake: str = "") -> Array:
        y = self.targets(self.tasks(mistake).query_y)
        value = self.scored(self.outputs(params, mistake), y)
        return y.shape[1] * value if mistake == "summed_over_rows" else value

    def loss_line(self) -> str:
        """What is done with o."""
        words = loss_words(self.setting.loss)
        return f"query_loss = mean over query rows of ({words['outputs']}: {words['formula']})"


# --- by distance ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PrototypicalCase(EpisodicCase):
    MISTAKES: ClassVar[Mapping[str, str]] = {
        "prototypes_summed": "c[k] = Σ e, and not the mean",
        "sign_of_distance": "o = +s d",
        "summed_over_rows": "Q g",
        "prototypes_constant": "c[k] a constant",
        **SETS_SWAPPED,
    }

    @property
    def learner(self) -> MetaLearner:
        return PrototypicalNetwork(
            self.setting.model, self.constants()["distance"], ways=self.setting.n_targets
        )

    def further(self) -> dict[str, Array]:
        return {"scale": np.array(1.5)}

    def prototypes(self, support: Array, labels: Array, mistake: str) -> Array:
        member = self.one_hot(labels)
        n_rows = 1 if mistake == "prototypes_summed" else member.sum(1)[..., None]
        c: Array = member.swapaxes(-1, -2) @ support / n_rows
        return c.real if mistake == "prototypes_constant" else c

    def outputs(self, params: Parameters, mistake: str = "") -> Array:
        support, labels, query, _ = self.embedded(params, mistake)
        c = self.prototypes(support, labels, mistake)
        s = params["scale"][:, None, None, None] * (-1 if mistake == "sign_of_distance" else 1)
        o: Array = -s * distances(self.constants()["distance"], query, c)
        return o

    def quantities(self) -> dict[str, tuple[str, Array | dict[str, Array]]]:
        at = {name: array[None] for name, array in self.params.items()}
        support, labels, *_ = self.embedded(at, "")
        prototypes = self.prototypes(support, labels, "")[0]
        return {**super().quantities(), "prototypes": ("c[k] of every task, (T, N, d)", prototypes)}

    def definition(self) -> list[str]:
        return [
            EMBEDDING,
            "c[k] = mean of e(support.x[i]) over the rows i with support.y[i] == k; classes have "
            "different numbers of rows",
            DISTANCE_FORMULAS[self.constants()["distance"]],
            "o[k] = -scale * d(e(query.x), c[k])",
            CLASSES,
        ]


@dataclass(frozen=True, eq=False)
class MatchingCase(EpisodicCase):
    MISTAKES: ClassVar[Mapping[str, str]] = {
        "mean_over_class": "P(k) ∝ mean of exp(−s d[i]) over the rows of class k, and not their sum",
        "sign_of_distance": "a[i] ∝ exp(+s d[i])",
        "summed_over_rows": "Q g",
        "support_constant": "e(support.x) a constant",
        **SETS_SWAPPED,
    }

    @property
    def learner(self) -> MetaLearner:
        return MatchingNetwork(
            self.setting.model, self.constants()["distance"], ways=self.setting.n_targets
        )

    def further(self) -> dict[str, Array]:
        return {"scale": np.array(1.5)}

    def outputs(self, params: Parameters, mistake: str = "") -> Array:
        support, labels, query, _ = self.embedded(params, mistake)
        if mistake == "support_constant":
            support = support.real
        s = params["scale"][:, None, None, None] * (-1 if mistake == "sign_of_distance" else 1)
        z = -s * distances(self.constants()["distance"], query, support)
        member = self.one_hot(labels)[:, None] > 0  # (T, 1, K, N)
        o = log_sum_exp(np.where(member, z[..., None], -np.inf), -2)
        return o - np.log(member.sum(-2)) if mistake == "mean_over_class" else o

    def definition(self) -> list[str]:
        return [
            EMBEDDING,
            DISTANCE_FORMULAS[self.constants()["distance"]],
            "a[i] = exp(-scale * d(e(query.x), e(support.x[i]))), divided by the sum of these over i",
            "P(k) = sum of a[i] over the rows i with support.y[i] == k",
            "o[k] = log(sum of exp(-scale * d(e(query.x), e(support.x[i]))) over the rows i with "
            "support.y[i] == k), so that P is the softmax of o",
            CLASSES,
        ]


# --- by pairs ---------------------------------------------------------------------------------------


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
        o: Array = b - (w * size).sum(-1)
        return o

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
        scores: Array = g.reshape(shape[:-1])
        return scores

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


# --- by a solve -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RidgeCase(ScoredCase):
    MISTAKES: ClassVar[Mapping[str, str]] = {
        "head_constant": "W a constant: no gradient through the solve",
        "no_constant_feature": "A = e(x)",
        "mean_in_the_fit": "|A W − Y|² / K + λ |W|²",
        "summed_over_rows": "Q g",
        **SETS_SWAPPED,
    }

    @property
    def learner(self) -> MetaLearner:
        return RidgeHead(self.setting.model, self.setting.loss, ways=self.setting.n_targets)

    def further(self) -> dict[str, Array]:
        own = {"log_ridge": np.array(-0.5), "scale": np.array(1.5)}
        if LOSSES[self.setting.loss].targets == "classes":
            return own  # a softmax takes no notice of what is added to all classes
        return {**own, "bias": np.array(0.25)}

    def constants(self) -> dict[str, Any]:
        return {} if "bias" in self.params else {"bias": 0.0}

    def head(self, params: Parameters, mistake: str = "") -> tuple[Array, Array]:
        """W ``(D, T, d + 1, n_out)``, and the features of the query rows."""
        support, y, query, _ = self.embedded(params, mistake)
        one = 0.0 if mistake == "no_constant_feature" else 1.0
        A, A_query = (
            np.concatenate([e, np.full_like(e[..., :1], one)], axis=-1) for e in (support, query)
        )
        rows = A.shape[-2] if mistake == "mean_in_the_fit" else 1
        ridge = rows * np.exp(params["log_ridge"])[:, None, None, None]
        # The normal equations; npmeta solves with the K×K matrix.
        normal = A.swapaxes(-1, -2) @ A + ridge * np.eye(A.shape[-1])
        W = np.linalg.solve(normal, A.swapaxes(-1, -2) @ self.targets(y))
        return W.real if mistake == "head_constant" else W, A_query

    def outputs(self, params: Parameters, mistake: str = "") -> Array:
        W, A_query = self.head(params, mistake)
        s = params["scale"][:, None, None, None]
        b = params["bias"][:, None, None, None] if "bias" in params else 0.0
        o: Array = s * (A_query @ W) + b
        return o

    def quantities(self) -> dict[str, tuple[str, Array | dict[str, Array]]]:
        at = {name: array[None] for name, array in self.params.items()}
        words = "W of every task, the row of the constant feature last, (T, d + 1, n_out)"
        return {**super().quantities(), "head": (words, self.head(at)[0][0])}

    def definition(self) -> list[str]:
        return [
            EMBEDDING,
            "A = [e(support.x), 1], (K, d + 1); A_query = [e(query.x), 1], (Q, d + 1)",
            "Y = support.y; of labels the rows of the identity, (K, n_out)",
            "W = the minimum of sum((A W - Y)**2) + exp(log_ridge) * sum(W**2), the row of the "
            "constant feature in the penalty too: W = inv(A^T A + exp(log_ridge) * I) A^T Y",
            "o = scale * A_query W + bias; the gradient goes through the solve",
            self.loss_line(),
        ]
