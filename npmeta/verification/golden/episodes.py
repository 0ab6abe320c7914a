"""Golden cases of learners without an inner loop, each written down from its paper's formulas.

Numbers of a task have two axes in front, points of meta-parameter space and tasks: e(x) is
``(D, T, rows, d)``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from npmeta._support.validation import Array
from npmeta.algorithms.base import MetaLearner
from npmeta.algorithms.matching import MatchingNetwork
from npmeta.algorithms.prototypical import PrototypicalNetwork
from npmeta.network.mlp import MLP
from npmeta.verification.golden.maml import loss_words
from npmeta.verification.golden.others import OtherCase, Parameters, network

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
        return 1 - (u * v).sum(-1) / lengths
    squares: Array = ((u - v) ** 2).sum(-1)
    return squares if name == "squared_euclidean" else np.sqrt(squares)


def log_sum_exp(z: Array, axis: int) -> Array:
    """log Σ exp, with the largest out of the sum."""
    top = z.real.max(axis, keepdims=True)
    return np.log(np.exp(z - top).sum(axis)) + top.squeeze(axis)


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

    def matrices(self, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Array]:
        """Drawn numbers, behind theta's, as matrices of so many rows and a last one for biases."""
        found, start = {}, self.setting.model.n_params
        for name, widths in shapes.items():
            layer = MLP(widths)  # whose bias comes behind its weights
            found[name] = self.setting.parameters(layer, start).reshape(-1, widths[1])
            start += layer.n_params
        return found

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
        return -s * distances(self.constants()["distance"], query, c)

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
