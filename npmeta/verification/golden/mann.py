"""Golden cases of memory-augmented networks, written down from their definition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from npmeta._support.validation import Array
from npmeta.algorithms.base import MetaLearner
from npmeta.algorithms.mann import MANN
from npmeta.verification.golden.episodes import EMBEDDING, SETS_SWAPPED, ScoredCase, distances
from npmeta.verification.golden.others import Parameters, sigmoid

#: Usages as near as that are those of slots that have been used alike.
ALIKE = 1e-12


class _Memory(NamedTuple):
    """What is left after a row; points, tasks and copies ``(D, T, R)`` in front of every shape."""

    h: Array
    c: Array
    r: Array
    w: Array
    M: Array
    usage: Array


@dataclass(frozen=True, eq=False)
class MANNCase(ScoredCase):
    MISTAKES: ClassVar[Mapping[str, str]] = {
        "rows_as_they_come": "support rows in their order",
        "label_not_late": "y_t with x_t",
        "queries_without_label": "y = 0 with query rows",
        "queries_one_after_another": "a query row sees those before it",
        "queries_not_written": "query rows only read",
        "gates_in_other_order": "z = [i, f, g, o]",
        "slot_not_emptied": "M(lu) is kept",
        "read_before_written": "read from M_{t−1}",
        "written_to_least_alone": "w^w = w^lu",
        "summed_over_rows": "Q g",
        **SETS_SWAPPED,
    }

    @property
    def learner(self) -> MetaLearner:
        sizes = dict(self.setting.options)
        return MANN(self.setting.model, self.setting.loss, self.setting.n_targets, **sizes)

    def constants(self) -> dict[str, Any]:
        return {**super().constants(), "decay": 0.95}

    def further(self) -> dict[str, Array]:
        sizes, d, N = self.constants(), self.setting.widths[-1], self.setting.n_targets
        units, m = sizes["units"], sizes["width"]
        shapes = {
            "controller": (d + N + m + units, 4 * units),
            "key": (units, m),
            "output": (units + m, N),
        }
        return {**self.matrices(shapes), "write_gate": np.array(-0.25), "scale": np.array(2.5)}

    def row(
        self, params: Parameters, before: _Memory, e: Array, y: Array, mistake: str, query: bool = False
    ) -> tuple[Array, _Memory]:
        """Outputs for rows ``e (D, T, R, d)``, with the label before each, and what they leave."""
        W, W_k, W_o = (params[name][:, None] for name in ("controller", "key", "output"))
        s, write = (params[name][:, None, None, None] for name in ("scale", "write_gate"))
        one = np.ones(1)
        z_i, z_f, z_o, z_g = np.split(_joined(e, y, before.r, before.h, one) @ W, 4, axis=-1)
        if mistake == "gates_in_other_order":
            z_o, z_g = z_g, z_o
        c = sigmoid(z_f) * before.c + sigmoid(z_i) * np.tanh(z_g)
        h = sigmoid(z_o) * np.tanh(c)
        k = np.tanh(_joined(h, one) @ W_k)

        least = np.eye(self.constants()["slots"])[before.usage.real.argmin(-1)]
        share = 0.0 if mistake == "written_to_least_alone" else sigmoid(write)
        w_write = share * before.w + (1 - share) * least
        M = before.M if mistake == "slot_not_emptied" else (1 - least)[..., None] * before.M
        if not (query and mistake == "queries_not_written"):
            M = M + w_write[..., None] * k[..., None, :]
        read = before.M if mistake == "read_before_written" else M
        blank = (read.real == 0).all(-1)
        d = distances("cosine", k[..., None, :], np.where(blank[..., None], 1, read))[..., 0, :]
        weights = np.exp(s * np.where(blank, 0, 1 - d))
        w = weights / weights.sum(-1, keepdims=True)
        r = (w[..., None] * read).sum(-2)
        usage = self.constants()["decay"] * before.usage + w + w_write
        return _joined(h, r, one) @ W_o, _Memory(h, c, r, w, M, usage)

    def support(self, params: Parameters, mistake: str) -> tuple[list[_Memory], Array, Array]:
        """What there is before the first support row and after every one, the label of the last, and
        the query rows."""
        e, labels, query, _ = self.embedded(params, mistake)
        y, x = self.targets(labels), self.tasks(mistake).support_x
        if mistake != "rows_as_they_come":
            order = np.argsort(x @ np.cos(np.arange(x.shape[-1])), axis=1, kind="stable")[..., None]
            e, y = np.take_along_axis(e, order[None], axis=2), np.take_along_axis(y, order, axis=1)
        late = np.concatenate([np.zeros_like(y[:, :1]), y], axis=1)
        units, m, slots = (self.constants()[name] for name in ("units", "width", "slots"))
        shapes = ((units,), (units,), (m,), (slots,), (slots, m), (slots,))
        states = [_Memory(*(np.zeros((1, len(x), 1, *shape)) for shape in shapes))]
        for t in range(e.shape[2]):
            shown = y[:, t] if mistake == "label_not_late" else late[:, t]
            at = e[:, :, t : t + 1], shown[:, None]
            states.append(self.row(params, states[-1], *at, mistake)[1])
        last = np.zeros_like(y[:, -1]) if mistake == "queries_without_label" else y[:, -1]
        return states, last[:, None], query

    def outputs(self, params: Parameters, mistake: str = "") -> Array:
        (*_, state), y, query = self.support(params, mistake)
        if mistake != "queries_one_after_another":
            return self.row(params, state, query, y, mistake, query=True)[0]
        found = []
        for q in range(query.shape[2]):
            o, state = self.row(params, state, query[:, :, q : q + 1], y, mistake)
            found.append(o)
        return np.concatenate(found, axis=2)

    @property
    def states(self) -> list[_Memory]:
        return self.support({name: array[None] for name, array in self.params.items()}, "")[0]

    def quantities(self) -> dict[str, tuple[str, Array | dict[str, Array]]]:
        read = np.concatenate([state.r[0] for state in self.states[1:]], axis=1)
        words = "r of every support row, in the order in which they are read, (T, K, width)"
        return {**super().quantities(), "read": (words, read)}

    def _loss_kink(self) -> float | None:
        """How far the two least usages are apart, where they are of slots that are not alike."""
        usages = np.sort(
            np.concatenate([state.usage.reshape(-1, state.usage.shape[-1]) for state in self.states])
        )
        gaps = np.diff(usages, axis=-1)
        gaps = np.array([row[row > ALIKE][0] for row in gaps if (row > ALIKE).any()])
        return float(gaps.min())

    def definition(self) -> list[str]:
        return [
            EMBEDDING,
            "support rows are read one by one, in the order of sum over j of x[j] * cos(j), j from 0 "
            "and in radians, the smallest first",
            "y[t] = the target of the row that is read t-th, t = 1..K; of a label the row of the "
            "identity; y[0] = 0",
            "before the first row h, c (units numbers), r (width), w, usage (slots) and M (slots rows "
            "of width numbers) are 0; every row makes them anew, by the following lines in this order, "
            "from those that the row before has left",
            "z = [e(x), y[t-1], r, h, 1] @ controller, in four parts of units numbers: z_i, z_f, z_o, "
            "z_g, in this order",
            "c = sigmoid(z_f) * c + sigmoid(z_i) * tanh(z_g); h = sigmoid(z_o) * tanh(c); "
            "sigmoid(z) = 1 / (1 + exp(-z))",
            "k = tanh([h, 1] @ key)",
            "least = the slot i with the smallest usage[i], of slots that tie any one: they are alike. "
            "The choice has no derivative",
            "w_write[i] = sigmoid(write_gate) * w[i] + (1 - sigmoid(write_gate)) * (1 if i == least "
            "else 0)",
            "M[i] = (0 if i == least else M[i]) + w_write[i] * k",
            "w[i] = exp(scale * cos(k, M[i])), divided by the sum of these over i; cos(u, v) = "
            "sum(u * v) / (sqrt(sum(u**2)) * sqrt(sum(v**2))), and 0, without a derivative, for a row "
            "of zeros",
            "r = sum over i of w[i] * M[i]: written first, then read",
            "usage[i] = decay * usage[i] + w[i] + w_write[i]",
            "o = [h, r, 1] @ output",
            "a query row is read, and written, as one more row, with y[K] and from what the K support "
            "rows have left; query rows do not see one another",
            self.loss_line(),
            "controller, key and output have their biases in the last row",
            "min_distance_to_loss_kink is the least distance of the smallest usage from the next one "
            "that is of a slot not alike: where they cross, meta_loss jumps",
        ]


def _joined(*parts: Array) -> Array:
    """Side by side, for all points, tasks and copies."""
    shape = np.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return np.concatenate([np.broadcast_to(u, (*shape, u.shape[-1])) for u in parts], axis=-1)
