"""Golden cases of CAVIA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from npmeta._support.validation import Array
from npmeta.algorithms.base import MetaLearner
from npmeta.algorithms.cavia import CAVIA
from npmeta.bilevel.objective import Batch
from npmeta.verification.golden.inner import SETS_SWAPPED, InnerCase
from npmeta.verification.golden.others import Parameters


@dataclass(frozen=True, eq=False)
class CAVIACase(InnerCase):
    MISTAKES: ClassVar[Mapping[str, str]] = {
        "first_order": "∇_c L^S a constant",
        "inner_ascent": "α → −α",
        "one_step_fewer": "S → S − 1",
        "inner_lr_times_rows": "α → K α",
        "adapted_on_query": "S → Q",
        **SETS_SWAPPED,
    }

    @property
    def learner(self) -> MetaLearner:
        setting = self.setting
        assert isinstance(setting.step_sizes, float)
        n, S, lr = setting.n_context, setting.S, setting.step_sizes
        return CAVIA(setting.model, setting.loss, n, lr, S, setting.first_order)

    def constants(self) -> dict[str, Any]:
        setting = self.setting
        steps = {"inner_lr": setting.step_sizes, "inner_steps": setting.S}
        return {"n_context": setting.n_context, **steps}

    def joined(self, batch: Batch, c: Array) -> Batch:
        """[x, c] in every row."""
        x, y = batch
        rows = np.broadcast_to(c[:, None], (*x.shape[:2], c.shape[-1]))
        return np.concatenate([x, rows], axis=-1), y

    def contexts(self, params: Parameters, mistake: str = "") -> list[Array]:
        """c_0..c_S ``(D T, n_context)``."""
        theta, model, setting = self.stacked(params["theta"]), self.setting.model, self.setting
        support, query = self.batches(len(params["theta"]), mistake)
        W = theta[:, model.places["0.weight"]].reshape(-1, *model.shapes[0]["weight"])
        to_context = W[:, -setting.n_context :].swapaxes(1, 2)
        factor = {"inner_ascent": -1, "inner_lr_times_rows": support[0].shape[1]}.get(mistake, 1)
        found = [np.zeros((len(theta), setting.n_context))]
        for _ in range(setting.S - (mistake == "one_step_fewer")):
            rows = self.joined(query if mistake == "adapted_on_query" else support, found[-1])
            by_bias = self.at(theta, rows)[1][:, model.places["0.bias"]]
            gradient = (by_bias[:, None] @ to_context)[:, 0]  # c adds c W_c where b is added
            if mistake == "first_order" or setting.first_order:
                gradient = gradient.real
            found.append(found[-1] - factor * setting.step_sizes * gradient)
        return found

    def losses(self, params: Parameters, mistake: str = "") -> Array:
        _, query = self.batches(len(params["theta"]), mistake)
        c = self.contexts(params, mistake)[-1]
        return self.by_point(self.at(self.stacked(params["theta"]), self.joined(query, c))[0])

    def passes(self) -> Iterator[tuple[Array, Batch]]:
        at = {name: array[None] for name, array in self.params.items()}
        for c in self.contexts(at):
            for batch in self.batches():
                yield self.stacked(at["theta"]), self.joined(batch, c)

    def quantities(self) -> dict[str, tuple[str, Array | dict[str, Array]]]:
        at = {name: array[None] for name, array in self.params.items()}
        contexts = np.stack(self.contexts(at), axis=1)
        return {"context": ("c[s] of every task, s = 0..S, (T, S + 1, n_context)", contexts)}

    def definition(self) -> list[str]:
        exact = (
            "meta_loss is differentiated by theta with dL/dc taken for a constant"
            if self.setting.first_order
            else "meta_loss is differentiated by theta, exactly: dL/dc depends on it too"
        )
        return [
            "the network's inputs are [x, c]: n_in features of a row, and after them the context of "
            "its task, the same in all rows",
            self.loss_line().replace("L(phi; rows)", "L(c, theta; rows)"),
            "c[0] = 0",
            "c[s+1] = c[s] - inner_lr * dL(c[s], theta; support rows)/dc; theta is not adapted",
            "query_loss = L(c[S], theta; query rows)",
            exact,
        ]
