"""Golden cases of MAML++, Reptile and joint training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from npmeta._support.validation import Array
from npmeta.algorithms.base import MetaLearner
from npmeta.algorithms.baselines import Joint
from npmeta.algorithms.maml_plus_plus import MAMLPlusPlus
from npmeta.algorithms.reptile import Reptile
from npmeta.bilevel.objective import Batch
from npmeta.verification.golden.inner import SETS_SWAPPED, InnerCase
from npmeta.verification.golden.others import Parameters
from npmeta.verification.oracles.meta_loss import MetaLoss, tiny_step
from npmeta.verification.rounding import relative


@dataclass(frozen=True, eq=False)
class MAMLPlusPlusCase(InnerCase):
    MISTAKES: ClassVar[Mapping[str, str]] = {
        "first_order": "inner gradients are constants",
        "last_step_only": "v = (0, .., 0, 1)",
        "weights_forgotten": "v = (1, .., 1)",
        "weights_one_step_early": "v_s on L^Q(φ_{s−1})",
        "inner_ascent": "α → −α",
        **SETS_SWAPPED,
    }

    @property
    def learner(self) -> MetaLearner:
        setting = self.setting
        return MAMLPlusPlus(
            setting.model,
            setting.loss,
            setting.maml.inner_lr,
            setting.S,
            step_weights=self.constants()["step_weights"],
        )

    def further(self) -> dict[str, Array]:
        return {"inner_lr": np.asarray(self.setting.maml.inner_lr)}

    def path(self, params: Parameters, mistake: str = "") -> list[Array]:
        """φ_0..φ_S ``(D T, P)``."""
        meta_loss = MetaLoss.of(self.setting.maml, self.setting.theta, self.setting.tasks)
        support, _ = self.batches(len(params["theta"]), mistake)
        alpha = self.stacked(params["inner_lr"].reshape(len(params["inner_lr"]), -1))
        points = [self.stacked(params["theta"])]
        for owner in meta_loss.owner:
            phi = points[-1]
            _, gradient = self.at(phi, support)
            if mistake == "first_order":
                gradient = gradient.real
            step = alpha[:, owner] * meta_loss.moves * gradient
            points.append(phi[:, meta_loss.before] - (-step if mistake == "inner_ascent" else step))
        return points

    def query_losses(self, params: Parameters, mistake: str = "") -> Array:
        """L^Q(φ_s), s = 0..S: ``(D, T, S + 1)``."""
        _, query = self.batches(len(params["theta"]), mistake)
        losses = [self.at(phi, query)[0] for phi in self.path(params, mistake)]
        return np.stack([self.by_point(loss) for loss in losses], axis=-1)

    def losses(self, params: Parameters, mistake: str = "") -> Array:
        S, v = self.setting.S, np.array(self.constants()["step_weights"])
        if mistake == "last_step_only":
            v = np.eye(S)[-1]
        if mistake == "weights_forgotten":
            v = np.ones(S)
        losses = self.query_losses(params, mistake)
        early = mistake == "weights_one_step_early"
        return (losses[..., :-1] if early else losses[..., 1:]) @ v

    def passes(self) -> Iterator[tuple[Array, Batch]]:
        support, query = self.batches()
        for phi in self.path({name: array[None] for name, array in self.params.items()}):
            yield phi, support
            yield phi, query

    def quantities(self) -> dict[str, tuple[str, Array | dict[str, Array]]]:
        at = {name: array[None] for name, array in self.params.items()}
        points = self.path(at)
        phi: dict[str, Array] = {}
        for s, point in enumerate(points):
            phi |= self.named(f"phi.{s:03}", point)
        return {
            "phi": ("task.TTT.phi.SSS.*: phi[s] of every task, layer by layer", phi),
            "step_loss": (
                "L(phi[s]; query rows), s = 1..S, (T, S)",
                self.query_losses(at)[0, :, 1:],
            ),
        }

    def definition(self) -> list[str]:
        return [
            self.loss_line(),
            "phi[0] = theta",
            "phi[s+1] = phi[s] - inner_lr[s, l] * dL(phi[s]; support rows)/dphi, with l the layer of a "
            "parameter, from 0 (its scale and shift, if they are moved, as its weight and bias)",
            "query_loss = sum over s = 1..S of step_weights[s-1] * L(phi[s]; query rows)",
            "meta_loss is differentiated by theta and by inner_lr, exactly; step_weights are constants",
        ]


@dataclass(frozen=True, eq=False)
class ReptileCase(InnerCase):
    METHOD = "sum of the gradients met by plain gradient descent"
    MISTAKES: ClassVar[Mapping[str, str]] = {
        "displacement": "θ − φ_S, not divided by α",
        "last_gradient_only": "∇L(φ_{S−1})",
        "support_rows_only": "minibatches of the support rows alone",
        "same_rows_in_every_step": "all rows in every step",
    }

    @property
    def learner(self) -> MetaLearner:
        setting = self.setting
        assert isinstance(setting.step_sizes, float)
        rows = self.constants()["batch_rows"]
        return Reptile(setting.model, setting.loss, setting.step_sizes, setting.S, batch_rows=rows)

    def constants(self) -> dict[str, Any]:
        setting = self.setting
        own = {"inner_lr": setting.step_sizes, "inner_steps": setting.S}
        return {**super().constants(), **own}

    def minibatch(self, s: int, mistake: str = "") -> Batch:
        """The rows of a step."""
        x, y = self.batches()[0] if mistake == "support_rows_only" else self.both()
        n = self.constants()["batch_rows"] or x.shape[1]
        if mistake == "same_rows_in_every_step":
            n = x.shape[1]
        n = min(n, x.shape[1])
        start = n * (s % (x.shape[1] // n))
        return x[:, start : start + n], y[:, start : start + n]

    def path(self, mistake: str = "") -> tuple[list[Array], list[Array]]:
        """φ_0..φ_S and the gradients between them, ``(T, P)``."""
        points, gradients = [self.stacked(self.params["theta"][None])], []
        for s in range(self.setting.S):
            gradients.append(self.at(points[-1], self.minibatch(s, mistake))[1])
            points.append(points[-1] - self.setting.step_sizes * gradients[-1])
        return points, gradients

    def gradients(self, mistake: str = "", names: tuple[str, ...] = ()) -> dict[str, Array]:
        """No derivative: (θ − φ_S)/α."""
        _, met = self.path(mistake)
        g: Array = met[-1] if mistake == "last_gradient_only" else np.sum(met, axis=0)
        return {"theta": g.mean(0) * (self.setting.step_sizes if mistake == "displacement" else 1)}

    def losses(self, params: Parameters, mistake: str = "") -> Array:
        """Where the steps have come to, on all rows."""
        return self.by_point(self.at(self.path()[0][-1], self.both())[0])

    def passes(self) -> Iterator[tuple[Array, Batch]]:
        for phi in self.path()[0]:
            yield phi, self.both()

    def _differences(self) -> dict[str, float]:
        """No loss has this gradient. Its parts are complex steps of the losses of the steps."""
        h, P = tiny_step(np.float64), self.params["theta"].size
        points, _ = self.path()
        T, g = len(self.setting.tasks), np.zeros(P)
        moves = np.repeat(1j * h * np.eye(P), T, axis=0)
        for s, phi in enumerate(points[:-1]):
            x, y = (np.tile(part, (P, 1, 1)) for part in self.minibatch(s))
            value, _ = self.at(np.tile(phi, (P, 1)) + moves, (x, y))
            g += self.by_point(value).imag.mean(1) / h
        return {"complex_step": relative(g, self.right["theta"])}

    def quantities(self) -> dict[str, tuple[str, Array | dict[str, Array]]]:
        phi: dict[str, Array] = {}
        for s, point in enumerate(self.path()[0]):
            phi |= self.named(f"phi.{s:03}", point)
        return {"phi": ("task.TTT.phi.SSS.*: phi[s] of every task, layer by layer", phi)}

    def definition(self) -> list[str]:
        return [
            self.loss_line(),
            "rows = the support rows of a task, and after them its query rows, in their order",
            "minibatch m = rows m * batch_rows .. (m + 1) * batch_rows - 1; rows too few for a whole "
            "minibatch are left out; batch_rows = 0: all rows",
            "phi[0] = theta",
            "phi[s+1] = phi[s] - inner_lr * dL(phi[s]; minibatch s mod their number)/dphi",
            "meta_grad = mean over tasks of (theta - phi[S]) / inner_lr, the sum of the gradients met: "
            "the gradient of no function, to be descended along",
            "query_loss = L(phi[S]; all rows), which is not what meta_grad is the derivative of",
        ]


@dataclass(frozen=True, eq=False)
class JointCase(InnerCase):
    MISTAKES: ClassVar[Mapping[str, str]] = {
        "query_only": "the mean over query rows",
        "sum_of_means": "L(support) + L(query)",
    }

    @property
    def learner(self) -> MetaLearner:
        return Joint(self.setting.model, self.setting.loss)

    def losses(self, params: Parameters, mistake: str = "") -> Array:
        D = len(params["theta"])
        theta = self.stacked(params["theta"])
        if mistake:
            losses = [self.at(theta, batch)[0] for batch in self.batches(D)]
            return self.by_point(losses[1] if mistake == "query_only" else losses[0] + losses[1])
        return self.by_point(self.at(theta, self.both(D))[0])

    def definition(self) -> list[str]:
        return [
            self.loss_line(),
            "query_loss = L(theta; the support and the query rows of a task together), every row "
            "alike; nothing is adapted",
        ]
