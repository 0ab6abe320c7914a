"""Golden cases of implicit MAML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np

from npmeta._support.validation import Array
from npmeta.algorithms.base import MetaLearner
from npmeta.algorithms.imaml import IMAML
from npmeta.bilevel.objective import Batch
from npmeta.verification.golden.inner import SETS_SWAPPED, InnerCase
from npmeta.verification.golden.others import Parameters
from npmeta.verification.oracles.meta_loss import tiny_step
from npmeta.verification.rounding import FLOOR, SAFETY_OF_MISFITS, relative


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
        return self.at(moved, (x, y))[1].imag.reshape(T, P, P) / h

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
        float32 = max(SAFETY_OF_MISFITS * relative(short.grad, self.right["theta"]), FLOOR["float32"])
        return {
            "float64": float(f"{SAFETY_OF_MISFITS * condition * 1e-8:.1e}"),
            "float32": float(f"{max(float32, SAFETY_OF_MISFITS * condition * 1e-6):.1e}"),
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
