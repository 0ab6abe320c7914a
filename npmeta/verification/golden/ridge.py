"""Golden cases of ridge heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from npmeta._support.validation import Array
from npmeta.algorithms.base import MetaLearner
from npmeta.algorithms.ridge import RidgeHead
from npmeta.network.losses import LOSSES
from npmeta.verification.golden.episodes import (
    EMBEDDING,
    SETS_SWAPPED,
    ScoredCase,
)
from npmeta.verification.golden.others import Parameters


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
        return s * (A_query @ W) + b

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
