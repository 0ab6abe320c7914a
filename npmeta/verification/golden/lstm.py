"""Golden cases of the meta-learner LSTM, written down from its definition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from npmeta._support.validation import Array
from npmeta.algorithms.base import MetaLearner
from npmeta.algorithms.meta_lstm import MetaLSTM
from npmeta.bilevel.objective import Batch
from npmeta.verification.golden.inner import SETS_SWAPPED, InnerCase
from npmeta.verification.golden.others import Parameters, sigmoid


class _Step(NamedTuple):
    """φ_s and the gates that have made it ``(D T, P)``, and the gradient there of the support loss."""

    phi: Array
    i: Array
    f: Array
    gradient: Array


@dataclass(frozen=True, eq=False)
class LSTMCase(InnerCase):
    LONG = True  # the kinks of pre are near: steps are short
    MISTAKES: ClassVar[Mapping[str, str]] = {
        "first_order": "g, l constants",
        "second_order_kept": "g, l no constants",
        "preprocessing_constant": "pre(g), pre(l) constants",
        "log_not_divided": "log|v|, not divided by p",
        "sign_of_all": "(−1, sign v) for |v| < e^−p",
        "loss_seen_first": "w · [pre(l), pre(g), φ, ..]",
        "gates_forgotten": "i_{s−1}, f_{s−1} → 0",
        "one_gate_remembered": "f sees i_{s−1}",
        "gates_swapped": "φ_s = i φ − f g",
        "gradient_added": "φ_s = f φ + i g",
        "one_step_fewer": "S → S − 1",
        **SETS_SWAPPED,
    }

    @property
    def learner(self) -> MetaLearner:
        setting = self.setting
        return MetaLSTM(
            setting.model, setting.loss, inner_steps=setting.S, first_order=setting.first_order
        )

    def constants(self) -> dict[str, Any]:
        return {"inner_steps": self.setting.S, "p": 10.0}

    def further(self) -> dict[str, Array]:
        return {
            "input_gate": np.array([0.5, -0.25, 0.375, 0.5, -0.75, 1.5, -1.5]),
            "forget_gate": np.array([-0.25, 0.5, 0.75, -0.25, 0.5, 1.0, 1.5]),
        }

    def preprocessed(self, v: Array, mistake: str) -> list[Array]:
        """Two numbers for every one."""
        p = self.constants()["p"]
        size, sign = np.where(v.real < 0, -v, v), np.sign(v.real)
        large = size.real >= np.exp(-p)
        log = np.log(np.where(large, size, 1)) / (1 if mistake == "log_not_divided" else p)
        small = sign if mistake == "sign_of_all" else np.exp(p) * v
        seen = [np.where(large, log, -1), np.where(large, sign, small)]
        return [u.real for u in seen] if mistake == "preprocessing_constant" else seen

    def steps(self, params: Parameters, mistake: str = "") -> list[_Step]:
        """s = 0..S; the gates of s = 0 are what the first ones see."""
        support, _ = self.batches(len(params["theta"]), mistake)
        w_i, w_f = (self.stacked(params[name])[..., None] for name in ("input_gate", "forget_gate"))
        constant = self.setting.first_order and mistake != "second_order_kept"
        phi = self.stacked(params["theta"])
        i = f = np.zeros(phi.shape)
        found = []
        for s in range(self.setting.S + 1):
            loss, g = self.at(phi, support)
            if constant or mistake == "first_order":
                loss, g = loss.real, g.real
            found.append(_Step(phi, i, f, g))
            if s == self.setting.S - (mistake == "one_step_fewer"):
                break
            seen = [self.preprocessed(v, mistake) for v in (g, loss[:, None])]
            if mistake == "loss_seen_first":
                seen.reverse()
            if mistake == "gates_forgotten":
                i = f = np.zeros(phi.shape)
            before_f = i if mistake == "one_gate_remembered" else f

            def gate(w: Array, *all_seen: Array) -> Array:
                return sigmoid(sum(w[:, k] * u for k, u in enumerate([*all_seen, np.ones(1)])))

            i, f = gate(w_i, *seen[0], *seen[1], phi, i), gate(w_f, *seen[0], *seen[1], phi, before_f)
            keep, move = (i, f) if mistake == "gates_swapped" else (f, i)
            phi = keep * phi - (-move if mistake == "gradient_added" else move) * g
        return found

    def losses(self, params: Parameters, mistake: str = "") -> Array:
        _, query = self.batches(len(params["theta"]), mistake)
        return self.by_point(self.at(self.steps(params, mistake)[-1].phi, query)[0])

    @property
    def found(self) -> list[_Step]:
        return self.steps({name: array[None] for name, array in self.params.items()})

    def passes(self) -> Iterator[tuple[Array, Batch]]:
        support, query = self.batches()
        *before, last = (step.phi for step in self.found)
        yield from ((phi, support) for phi in before)
        yield last, query

    def _kinks(self) -> Array:
        """|e^p |g| − 1| of all that is preprocessed."""
        steps, p = self.found[:-1], self.constants()["p"]
        losses = [self.at(step.phi, self.batches()[0])[0] for step in steps]
        sizes = np.abs(np.concatenate([*(step.gradient.reshape(-1) for step in steps), *losses]))
        return np.abs(np.exp(p) * sizes - 1)

    def _loss_kink(self) -> float | None:
        return float(self._kinks().min())

    @property
    def reach(self) -> float:
        """In terms of g itself, which is nearer by far."""
        return min(super().reach, float(self._kinks().min() * np.exp(-self.constants()["p"])))

    def quantities(self) -> dict[str, tuple[str, Array | dict[str, Array]]]:
        phi: dict[str, Array] = {}
        for s, step in enumerate(self.found):
            phi |= self.named(f"phi.{s:03}", step.phi)
        gates = {
            name: np.stack([getattr(step, name) for step in self.found[1:]], axis=1) for name in "if"
        }
        words = "[s] of every task and parameter, s = 1..S, (T, S, P) in the order of a flat theta"
        return {
            "phi": ("task.TTT.phi.SSS.*: phi[s] of every task, layer by layer", phi),
            "input_gates": (f"i{words}", gates["i"]),
            "forget_gates": (f"f{words}", gates["f"]),
        }

    def definition(self) -> list[str]:
        how = (
            "with l[s] and g[s] taken for constants in every step, in gates and in phi"
            if self.setting.first_order
            else "exactly: l[s] and g[s] depend on them too, in gates and in phi"
        )
        return [
            self.loss_line(),
            "phi[0] = theta; i[0] = f[0] = 0",
            "l[s] = L(phi[s]; support rows), a number for a task; g[s] = dL(phi[s]; support rows)/dphi",
            "pre(v) = [log(abs(v)) / p, sign(v)] if abs(v) >= exp(-p), else [-1, exp(p) * v]; log is "
            "the natural one",
            "every parameter of every task has gates of its own, made with the same seven weights for "
            "all; for one parameter, and the numbers phi[s], g[s], i[s], f[s] that are its own:",
            "seen[s] = [pre(g[s])[0], pre(g[s])[1], pre(l[s])[0], pre(l[s])[1], phi[s]], in this order",
            "i[s+1] = sigmoid(sum(input_gate * [seen[s], i[s], 1]))",
            "f[s+1] = sigmoid(sum(forget_gate * [seen[s], f[s], 1]))",
            "sigmoid(z) = 1 / (1 + exp(-z))",
            "phi[s+1] = f[s+1] * phi[s] - i[s+1] * g[s], with g[s] itself and not pre(g[s])",
            "query_loss = L(phi[S]; query rows), S = inner_steps",
            f"meta_loss is differentiated by theta, input_gate and forget_gate, {how}",
            "min_distance_to_loss_kink is the least abs(exp(p) * abs(v) - 1) of all g[s] and l[s], "
            "s < S: pre has a kink there",
        ]
