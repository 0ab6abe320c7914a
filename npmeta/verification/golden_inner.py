"""Golden cases of algorithms beside MAML that take gradient steps on a task, or solve for its minimum.

Points of meta-parameter space and tasks are one axis here, ``(D T, ..)``. The inner loop's gradients
are those of an objective at complex parameters; nothing else is asked of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np

from npmeta._support.validation import Array
from npmeta.algorithms.base import MetaLearner
from npmeta.algorithms.baselines import Joint
from npmeta.algorithms.cavia import CAVIA
from npmeta.algorithms.imaml import IMAML
from npmeta.algorithms.maml_plus_plus import MAMLPlusPlus
from npmeta.algorithms.reptile import Reptile
from npmeta.bilevel.objective import Batch, Risk
from npmeta.network.passes import forward
from npmeta.verification.given import Given, layers, tiny_step, value_and_gradient
from npmeta.verification.golden_cases import loss_words
from npmeta.verification.golden_files import named_arrays
from npmeta.verification.golden_others import OtherCase, Parameters
from npmeta.verification.noise import FLOOR, SAFETY, relative

__all__ = [
    "SETS_SWAPPED",
    "CAVIACase",
    "IMAMLCase",
    "InnerCase",
    "JointCase",
    "MAMLPlusPlusCase",
    "ReptileCase",
]

SETS_SWAPPED = {"sets_swapped": "S ↔ Q"}


@dataclass(frozen=True, eq=False)
class InnerCase(OtherCase):
    """A case of an algorithm whose network has a loss on the rows of a task."""

    @cached_property
    def risk(self) -> Risk:
        return Risk(self.setting.model, self.setting.loss)

    def batches(self, D: int = 1, mistake: str = "") -> tuple[Batch, Batch]:
        """Support and query sets, D times one after another."""
        tasks = self.tasks(mistake)
        n_out, dtype = self.setting.model.widths[-1], np.dtype(np.float64)

        def tiled(x: Array, y: Array) -> Batch:
            prepared = self.risk.loss.prepare(y, n_out, dtype)
            return np.tile(x, (D, 1, 1)), np.tile(prepared, (D, 1, 1))

        return tiled(tasks.support_x, tasks.support_y), tiled(tasks.query_x, tasks.query_y)

    def both(self, D: int = 1) -> Batch:
        """The rows of both sets, support first."""
        (x, y), (x_query, y_query) = self.batches(D)
        return np.concatenate([x, x_query], axis=1), np.concatenate([y, y_query], axis=1)

    def at(self, phi: Array, batch: Batch) -> tuple[Array, Array]:
        """Loss ``(D T,)`` and gradient ``(D T, P)``."""
        return value_and_gradient(self.risk, phi, batch)

    def stacked(self, theta: Array) -> Array:
        """``theta (D, P)`` for every task, ``(D T, P)``."""
        return np.repeat(theta, len(self.setting.tasks), axis=0)

    def by_point(self, values: Array) -> Array:
        """``(D T,)`` as ``(D, T)``."""
        return values.reshape(-1, len(self.setting.tasks))

    def named(self, prefix: str, phi: Array) -> dict[str, Array]:
        """φ ``(T, P)`` by task and layer."""
        arrays: dict[str, Array] = {}
        for t, one in enumerate(phi):
            arrays |= named_arrays(f"task.{t:03}.{prefix}", self.setting.model, one)
        return arrays

    def passes(self) -> Iterator[tuple[Array, Batch]]:
        """Parameters ``(T, P)`` and rows of every pass through the network."""
        theta = self.stacked(self.params["theta"][None])
        for batch in self.batches():
            yield theta, batch

    def _hidden(self) -> Iterator[Array]:
        for phi, (x, _) in self.passes():
            at = forward(layers(self.risk, phi), self.setting.model.activations, x)
            yield from (pre.u for pre in at.pre)

    def loss_line(self) -> str:
        """What L is."""
        words = loss_words(self.setting.loss)
        return f"L(phi; rows) = mean over rows of ({words['outputs']}: {words['formula']})"


# --- MAML++ -----------------------------------------------------------------------------------------


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
        given = Given.of(self.setting.maml, self.setting.theta, self.setting.tasks)
        support, _ = self.batches(len(params["theta"]), mistake)
        alpha = self.stacked(params["inner_lr"].reshape(len(params["inner_lr"]), -1))
        points = [self.stacked(params["theta"])]
        for owner in given.owner:
            phi = points[-1]
            _, gradient = self.at(phi, support)
            if mistake == "first_order":
                gradient = gradient.real
            step = alpha[:, owner] * given.moves * gradient
            points.append(phi[:, given.before] - (-step if mistake == "inner_ascent" else step))
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
        weighed: Array = (losses[..., :-1] if early else losses[..., 1:]) @ v
        return weighed

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


# --- Reptile ----------------------------------------------------------------------------------------


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


# --- CAVIA ------------------------------------------------------------------------------------------


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


# --- iMAML ------------------------------------------------------------------------------------------


class _Solved(NamedTuple):
    """φ ``(T, P)``, H + ρI there ``(T, P, P)``, and the size of ∇G by that at θ, of the worst task."""

    phi: Array
    matrix: Array
    residual: float


@dataclass(frozen=True, eq=False)
class IMAMLCase(InnerCase):
    METHOD = "Newton's method and a dense solve, with the Hessian by complex step of the gradient"
    MISTAKES: ClassVar[Mapping[str, str]] = {
        "first_order": "∇L^Q(φ)",
        "strength_forgotten": "(H + ρI)⁻¹ ∇L^Q",
        "strength_on_the_hessian": "(I + ρH)⁻¹ ∇L^Q",
        "penalty_not_halved": "ρ → 2ρ",
        **SETS_SWAPPED,
    }

    @property
    def learner(self) -> MetaLearner:
        return IMAML(self.setting.model, self.setting.loss, self.strength, tolerance=1e-13)

    @property
    def strength(self) -> float:
        return float(dict(self.setting.options)["strength"])

    @cached_property
    def solves(self) -> dict[str, float]:
        """What is said of the minimum and of the linear system."""
        values = np.linalg.eigvalsh(self.solved.matrix)
        return {
            "residual": 1e-8,
            "residual_here": float(f"{self.solved.residual:.0e}"),
            "condition": float(f"{(values[:, -1] / values[:, 0]).max():.2g}"),
        }

    @cached_property
    def document(self) -> dict[str, Any]:
        return {**super().document, "solves": self.solves}

    def hessian(self, phi: Array, support: Batch) -> Array:
        """∇²L^S ``(T, P, P)``, column by column."""
        T, P = phi.shape
        h = tiny_step(np.float64)
        x, y = (np.repeat(part, P, axis=0) for part in support)
        moved = np.repeat(phi, P, axis=0) + np.tile(1j * h * np.eye(P), (T, 1))
        H: Array = self.at(moved, (x, y))[1].imag.reshape(T, P, P) / h
        return H

    def minimum(self, support: Batch, rho: float) -> _Solved:
        theta = self.stacked(self.params["theta"][None])
        phi, residual, first = theta, np.inf, np.inf
        for step in range(50):
            gradient = self.at(phi, support)[1] + rho * (phi - theta)
            size = np.linalg.norm(gradient, axis=-1)
            first = size if step == 0 else first
            H = self.hessian(phi, support) + rho * np.eye(phi.shape[-1])
            before, residual = residual, float((size / first).max())
            if residual < 1e-12 and residual >= before / 2:  # rounding
                break
            phi = phi - np.linalg.solve(H, gradient[..., None])[..., 0]
        assert residual < 1e-12, "Newton's method has not converged"
        return _Solved(phi, H, residual)

    @cached_property
    def solved(self) -> _Solved:
        return self.minimum(self.batches()[0], self.strength)

    def gradients(self, mistake: str = "", names: tuple[str, ...] = ()) -> dict[str, Array]:
        rho = self.strength * (2 if mistake == "penalty_not_halved" else 1)
        support, query = self.batches(mistake=mistake)
        changed = mistake in ("penalty_not_halved", "sets_swapped")
        phi, matrix, _ = self.minimum(support, rho) if changed else self.solved
        q, eye = self.at(phi, query)[1], np.eye(phi.shape[-1])
        if mistake == "first_order":
            return {"theta": q.mean(0)}
        if mistake == "strength_on_the_hessian":
            matrix = eye + rho * (matrix - rho * eye)
        x = np.linalg.solve(matrix, q[..., None])[..., 0]
        return {"theta": (x if mistake.startswith("strength") else rho * x).mean(0)}

    def losses(self, params: Parameters, mistake: str = "") -> Array:
        """At real points near θ only: the minimum there, by steps with the Hessian of that at θ."""
        D = len(params["theta"])
        support, query = self.batches(D)
        theta = self.stacked(params["theta"])
        inverse = np.tile(np.linalg.inv(self.solved.matrix), (D, 1, 1))
        phi, least = np.tile(self.solved.phi, (D, 1)), np.inf
        for _ in range(200):
            step = (inverse @ (self.at(phi, support)[1] + self.strength * (phi - theta))[..., None])[
                ..., 0
            ]
            phi = phi - step
            before, least = least, float(np.abs(step).max())
            if least < 1e-14 and least >= before / 2:
                break
        return self.by_point(self.at(phi, query)[0])

    @cached_property
    def tolerance(self) -> dict[str, float]:
        """What a residual of 1e-8 leaves open at worst, with a factor of ten; and float32."""
        loose = IMAML(self.setting.model, self.setting.loss, self.strength, tolerance=1e-6)
        short = loose.meta_gradient(self.params["theta"].astype(np.float32), self.setting.tasks)
        condition = self.solves["condition"]
        float32 = max(SAFETY * relative(short.grad, self.right["theta"]), FLOOR["float32"])
        return {
            "float64": float(f"{SAFETY * condition * 1e-8:.1e}"),
            "float32": float(f"{max(float32, SAFETY * condition * 1e-6):.1e}"),
        }

    def passes(self) -> Iterator[tuple[Array, Batch]]:
        for phi in (self.stacked(self.params["theta"][None]), self.solved.phi):
            for batch in self.batches():
                yield phi, batch

    def quantities(self) -> dict[str, tuple[str, Array | dict[str, Array]]]:
        return {
            "phi": (
                "task.TTT.phi.*: phi of every task, layer by layer",
                self.named("phi", self.solved.phi),
            )
        }

    def definition(self) -> list[str]:
        return [
            self.loss_line(),
            "phi = the minimum near theta of G(phi) = L(phi; support rows) + strength / 2 * "
            "sum((phi - theta)**2), over all parameters, biases too",
            "query_loss = L(phi; query rows)",
            "meta_grad = mean over tasks of strength * inv(H + strength * I) dL(phi; query rows)/dphi",
            "H = the second derivative of L(phi; support rows) at the minimum, of each task",
            "tolerance is for solves, of the minimum and of the linear system, up to a relative "
            "residual of solves.residual (float32: 1e-6), |dG/dphi| by that at theta and "
            "|A x - b| / |b|: ten times that residual times the condition number of "
            "H + strength * I, solves.condition; here the residual is solves.residual_here",
        ]


# --- joint training ---------------------------------------------------------------------------------


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
