"""Golden cases of SNAIL, written down from its definition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from npmeta._support.validation import Array
from npmeta.algorithms.base import MetaLearner
from npmeta.algorithms.snail import SNAIL
from npmeta.verification.golden.episodes import EMBEDDING, SETS_SWAPPED, ScoredCase
from npmeta.verification.golden.others import Parameters, sigmoid


@dataclass(frozen=True, eq=False)
class SNAILCase(ScoredCase):
    """Every query row has a sequence of its own: ``(D, T, Q, K + 1, n)``."""

    MISTAKES: ClassVar[Mapping[str, str]] = {
        "later_rows_attended": "r_t sees every s",
        "itself_not_attended": "r_t sees s < t",
        "attention_not_scaled": "q · k, and not q · k / √d",
        "softmax_over_queries": "Σ_t p_ts = 1",
        "keys_for_queries": "k_t · q_s",
        "later_rows_convolved": "a_{t+D} W_1",
        "dilations_of_1": "D = 1",
        "dilations_from_2": "D = 2, 4, 8, ..",
        "first_row_repeated": "a_1 before the first row, and not 0",
        "gates_in_other_order": "σ(f) tanh(g)",
        "label_late": "a_t = [e(x_t), y_{t−1}]",
        "query_with_label": "a_{K+1} = [e(x), y]",
        "rows_in_reverse": "a_K first",
        "queries_one_after_another": "a query row sees those before it",
        "summed_over_rows": "Q g",
        **SETS_SWAPPED,
    }

    @property
    def learner(self) -> MetaLearner:
        """As they come: in which order rows are read is no part of the case."""
        sizes = dict(self.setting.options)
        return SNAIL(
            self.setting.model, self.setting.loss, self.setting.n_targets, **sizes, shuffle=False
        )

    def layers(self) -> Iterator[tuple[str, int]]:
        """Names in their order, and dilations: 0 for an attention."""
        sizes = self.constants()
        yield "attention_0", 0
        for block in range(1, sizes["blocks"] + 1):
            for j in range(sizes["convolutions"]):
                yield f"convolution_{block}_{2**j}", 2**j
            yield f"attention_{block}", 0

    def constants(self) -> dict[str, Any]:
        return {**super().constants(), "targets": self.setting.n_targets}

    def further(self) -> dict[str, Array]:
        sizes, n = self.constants(), self.setting.widths[-1] + self.setting.n_targets
        shapes = {}
        for name, dilation in self.layers():
            own = 2 * sizes["key_width"] + sizes["value_width"]
            shapes[name] = (2 * n, 2 * sizes["filters"]) if dilation else (n, own)
            n += sizes["filters"] if dilation else sizes["value_width"]
        shapes["output"] = n, self.setting.n_targets
        return self.matrices(shapes)

    def sequences(self, params: Parameters, mistake: str) -> Array:
        """Support rows with their targets, and one query row: ``(D, T, Q, K + 1, d + N)``."""
        e, labels, query, query_labels = self.embedded(params, mistake)
        y = self.targets(labels)
        if mistake == "rows_in_reverse":
            e, y = e[:, :, ::-1], y[:, ::-1]
        last = np.zeros((*query.shape[1:3], y.shape[-1]))
        if mistake == "query_with_label":
            last = self.targets(query_labels)
        if mistake == "label_late":
            last = last + y[:, -1:]
            y = np.concatenate([np.zeros_like(y[:, :1]), y[:, :-1]], axis=1)
        support = np.concatenate([e, np.broadcast_to(y, (*e.shape[:-1], y.shape[-1]))], axis=-1)
        ends = np.concatenate([query, np.broadcast_to(last, (*query.shape[:-1], y.shape[-1]))], axis=-1)
        if mistake == "queries_one_after_another":
            return np.concatenate([support, ends], axis=2)[:, :, None]
        Q = ends.shape[2]
        shared = np.repeat(support[:, :, None], Q, axis=2)
        return np.concatenate([shared, ends[..., None, :]], axis=3)

    def attended(self, a: Array, W: Array, mistake: str) -> tuple[Array, Array]:
        """r of every row, and the shares p ``(.., t, s)`` that each finds in the others."""
        d, t = self.constants()["key_width"], np.arange(a.shape[-2])
        q, k, v = np.split(a @ W[..., :-1, :] + W[..., -1:, :], [d, 2 * d], axis=-1)
        if mistake == "keys_for_queries":
            q, k = k, q
        z = q @ k.swapaxes(-1, -2) / (1 if mistake == "attention_not_scaled" else np.sqrt(d))
        seen = t[:, None] >= t
        if mistake == "later_rows_attended":
            seen = np.ones_like(seen)
        if mistake == "itself_not_attended":
            seen = (t[:, None] > t) | (t[:, None] + t == 0)  # the first row sees no other
        weights = np.where(seen, np.exp(z), 0)
        p = weights / weights.sum(-2 if mistake == "softmax_over_queries" else -1, keepdims=True)
        return p @ v, p

    def convolved(self, a: Array, W: Array, D: int, mistake: str) -> Array:
        """h of every row."""
        n = a.shape[-1]
        if mistake == "dilations_of_1":
            D = 1
        elif mistake == "dilations_from_2":
            D = 2 * D
        rows = np.arange(a.shape[-2]) + (D if mistake == "later_rows_convolved" else -D)
        inside = (rows >= 0) & (rows < len(rows))
        if mistake == "first_row_repeated":
            inside |= rows < 0
        there = np.where(inside[:, None], a[..., rows.clip(0, len(rows) - 1), :], 0)
        z = a @ W[..., :n, :] + there @ W[..., n:-1, :] + W[..., -1:, :]
        f, g = np.split(z, 2, axis=-1)
        if mistake == "gates_in_other_order":
            f, g = g, f
        return np.tanh(f) * sigmoid(g)

    def rows(self, params: Parameters, mistake: str = "") -> tuple[Array, Array]:
        """All rows before the output layer, and the shares of the last attention."""
        a, p = self.sequences(params, mistake), np.empty(0)
        for name, dilation in self.layers():
            W = params[name][:, None, None]
            if dilation:
                new = self.convolved(a, W, dilation, mistake)
            else:
                new, p = self.attended(a, W, mistake)
            a = np.concatenate([a, new], axis=-1)
        return a, p

    def outputs(self, params: Parameters, mistake: str = "") -> Array:
        a, _ = self.rows(params, mistake)
        Q = self.tasks(mistake).query_y.shape[1]
        ends = a[:, :, 0, -Q:] if mistake == "queries_one_after_another" else a[..., -1, :]
        W = params["output"][:, None]
        return ends @ W[..., :-1, :] + W[..., -1:, :]

    def quantities(self) -> dict[str, tuple[str, Array | dict[str, Array]]]:
        _, p = self.rows({name: array[None] for name, array in self.params.items()})
        words = "p[K + 1, s] of every query row in the last attention, (T, Q, K + 1)"
        return {**super().quantities(), "shares": (words, p[0, ..., -1, :])}

    def definition(self) -> list[str]:
        convolutions = ", ".join(
            f"convolution_b_{2**j}" for j in range(self.constants()["convolutions"])
        )
        return [
            EMBEDDING,
            "every query row has a sequence of K + 1 rows of its own: a[t] = [e(support.x[t]), y[t]], "
            "t = 1..K, with the support rows in the order in which they come, and a[K + 1] = "
            "[e(query.x), 0]; y[t] = the target of the row; of a label the row of the identity",
            "layers make every row longer, all rows of a sequence at once. First attention_0; then in "
            f"every block b = 1..blocks {convolutions} and attention_b",
            "convolution_b_D, with n the length of rows: z[t] = a[t] @ W[:n] + a[t - D] @ W[n:2n] + "
            "W[2n], where a[t - D] = 0 if t - D < 1; z = [f, g] in two parts of filters numbers; "
            "a[t] = [a[t], tanh(f) * sigmoid(g)]; sigmoid(z) = 1 / (1 + exp(-z))",
            "attention_b: [a[t], 1] @ W = [q[t], k[t], v[t]], of key_width, key_width and value_width "
            "numbers; p[t, s] = exp(sum(q[t] * k[s]) / sqrt(key_width)), divided by the sum of these "
            "over s, s = 1..t: the row itself and those before it; a[t] = [a[t], sum over s of "
            "p[t, s] * v[s]]",
            "o = [a[K + 1], 1] @ output, behind the last layer",
            self.loss_line(),
            "all matrices have their biases in the last row",
        ]
