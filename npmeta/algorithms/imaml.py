"""Implicit MAML (Rajeswaran, Finn, Kakade & Levine 2019): differentiate where adaptation ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.validation import Array, as_number
from npmeta.algorithms.base import MetaGradient, MetaParameters, both_sets, check_steps
from npmeta.algorithms.own_steps import OwnSteps
from npmeta.bilevel.objective import Batch, Linearization, Objective, as_objective
from npmeta.network.losses import Loss
from npmeta.network.mlp import MLP

if TYPE_CHECKING:
    from npmeta.tasks.batch import TaskBatch


@dataclass(frozen=True, eq=False)
class ImplicitMetaGradient(MetaGradient):
    """A meta-gradient, and how far the two solves behind it have come.

    Attributes
    ----------
    inner_steps, solve_steps : ndarray of int, (T,)
        Newton steps of the inner problem, and conjugate-gradient steps of the linear system.
    inner_residual : ndarray, (T,)
        ‖∇G(φ)‖ / ‖∇G(θ)‖ where the inner solve ended.
    solve_residual : ndarray, (T,)
        ‖(H + ρI) x − ρ ∇L^Q‖ / ‖ρ ∇L^Q‖ where conjugate gradients ended.
    """

    inner_steps: Array
    inner_residual: Array
    solve_steps: Array
    solve_residual: Array


@dataclass(frozen=True, eq=False)
class IMAML(OwnSteps):
    r"""Adapt by solving a problem that keeps near θ, and differentiate its solution.

    .. math:: \min_\theta \; \frac1T \sum_t L^Q_t(\varphi_t), \qquad
              \varphi_t = \operatorname*{arg\,min}_\varphi \; G_t(\varphi) = L^S_t(\varphi)
                          + \frac\rho2 \lVert \varphi - \theta \rVert^2 .

    The solution has :math:`\nabla L^S(\varphi) + \rho (\varphi - \theta) = 0`, so (the paper's lemma 1)

    .. math:: \frac{d\varphi}{d\theta} = \rho (H + \rho I)^{-1}, \qquad
              \nabla_\theta L^Q(\varphi) = \rho (H + \rho I)^{-1} \nabla L^Q(\varphi),
              \qquad H = \nabla^2 L^S(\varphi),

    a linear system that conjugate gradients solve with products of the exact Hessian. Only where the
    inner solve ends counts, not how it came there: memory and error do not grow with its steps. Here it
    is Newton's method, its steps by conjugate gradients too and shortened until G falls enough; where
    the paper takes gradient steps, it stops short of the solution.

    Parameters
    ----------
    model : MLP or Objective
    loss : str or Loss, optional
        For a network. Default "mse".
    strength : float
        ρ > 0. H + ρI must be positive definite at the solution; a minimum has that.
    tolerance : float
        Of both solves: the residuals of :class:`ImplicitMetaGradient`. The error of the gradient is of
        that size, times the condition number of H + ρI at worst; the default leaves it four digits
        for that, to 1e-6. In float32 it is 1.2e-6 at least.
    inner_steps, solve_steps : int
        Most Newton steps, and most conjugate-gradient steps in one linear system.

    Raises
    ------
    ValueError
        If an argument is out of range.

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> imaml = nm.algorithms.IMAML(nm.MLP([1, 10, 1], "tanh"), strength=0.5)
    >>> params = imaml.init(np.random.default_rng(0))
    >>> tasks = nm.tasks.Sinusoid(shots=10).sample(seed=0, iteration=0, n_tasks=25)
    >>> out = imaml.meta_gradient(params, tasks)
    >>> bool(max(out.inner_residual.max(), out.solve_residual.max()) <= 1e-10)
    True
    """

    model: MLP | Objective
    loss: str | Loss | None = None
    strength: float = 1.0
    tolerance: float = 1e-10
    inner_steps: int = 50
    solve_steps: int = 200
    objective: Objective = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("strength", "tolerance"):
            number = as_number(getattr(self, name), name, "a positive number", lambda x: x > 0)
            object.__setattr__(self, name, number)
        check_steps(self.inner_steps, "inner_steps")
        check_steps(self.solve_steps, "solve_steps")
        if isinstance(self.model, MLP) and not self.model.adapts_all:
            raise ValueError(
                "iMAML moves all parameters; it takes no network with adapt_norm=False, nor one whose "
                "structure has adapt=False"
            )
        object.__setattr__(self, "objective", as_objective(self.model, self.loss))

    @np.errstate(all="ignore")  # what diverges shows in the result
    def meta_gradient(
        self, params: ArrayLike | MetaParameters, tasks: TaskBatch
    ) -> ImplicitMetaGradient:
        """The mean query loss after adaptation and its gradient, exact but for the tolerance."""
        given = self._given(params)
        theta = given["theta"]
        support, query = both_sets(self._batch, tasks, theta.dtype)
        for point in self._newton(theta, support, self.inner_steps):
            end = point
        outer = self._at(given, end.phi, query)
        lin = self._at(given, end.phi, support)
        x, steps, residual = self._solve(lin, self.strength * outer.grad, self._tolerance(theta))
        return ImplicitMetaGradient(
            float(outer.value.mean()),
            {"theta": x.mean(0)},
            outer.value,
            self.objective.hessian,
            end.steps,
            end.residual,
            steps,
            residual,
        )

    def states(self, given: Mapping[str, Array], support: Batch, n_steps: int) -> Iterator[Array]:
        """Every task's φ ``(T, P)`` after 0, 1, .. Newton steps; when all have arrived, the last."""
        n_points = 0
        for point in self._newton(given["theta"], support, n_steps):
            n_points += 1
            yield point.phi
        yield from repeat(point.phi, n_steps + 1 - n_points)

    # --- the inner problem ------------------------------------------------------------------------

    def _newton(self, theta: Array, support: Batch, n_steps: int) -> Iterator[_Point]:
        """θ and the points after each Newton step on G, until all tasks' gradients are small."""
        rho, T = self.strength, len(support[0])
        phi, steps, residual = np.tile(theta, (T, 1)), np.zeros(T, int), np.ones(T, theta.dtype)
        on = np.arange(T)  # the tasks that have not arrived
        for step in range(n_steps + 1):
            x, y = support
            here, rows = phi[on], (x[on], y[on])
            lin = self.objective.at(self.objective.hold(here), rows)
            gradient = lin.grad + rho * (here - theta)
            size = np.linalg.norm(gradient, axis=-1)
            if step == 0:
                first = np.where(size > 0, size, 1)
            residual[on] = size / first[on]
            yield _Point(phi.copy(), steps.copy(), residual.copy())
            moving = residual[on] > self._tolerance(theta)
            if step == n_steps or not moving.any():
                return
            # Far from the solution a rough step does, near it the last digits count.
            rough = np.where(moving, np.minimum(residual[on], 0.1), np.inf)
            direction, *_ = self._solve(lin, -gradient, rough)
            value = self._value(theta, here, rows)
            slope = np.einsum("tp,tp->t", direction, gradient)
            rounding = 10 * np.finfo(phi.dtype).eps * np.abs(value)
            t = moving.astype(phi.dtype)
            for _ in range(HALVINGS):
                ahead = here + t[:, None] * direction
                falls = self._value(theta, ahead, rows) <= value + 1e-4 * t * slope + rounding
                if (falls | (t == 0)).all():
                    break
                t = np.where(falls, t, t / 2)
            moving = moving & falls  # where G falls no more, rounding or a kink is met
            on = on[moving]
            if not on.size:
                return
            phi[on], steps[on] = ahead[moving], steps[on] + 1

    def _solve(
        self, lin: Linearization, b: Array, tolerance: Array | float
    ) -> tuple[Array, Array, Array]:
        """(H + ρI) x = b."""
        return conjugate_gradients(
            lambda v: lin.hvp(v) + self.strength * v, b, tolerance, self.solve_steps
        )

    def _value(self, theta: Array, phi: Array, support: Batch) -> Array:
        """G(φ), ``(T,)``."""
        loss, _ = self.objective.score(self.objective.hold(phi), support)
        return loss + self.strength / 2 * ((phi - theta) ** 2).sum(-1)

    def _tolerance(self, theta: Array) -> float:
        return max(self.tolerance, 10 * float(np.finfo(theta.dtype).eps))


#: Times that a Newton step is halved at most.
HALVINGS = 30


class _Point(NamedTuple):
    """Where the inner solve has come: φ, steps and residuals by task."""

    phi: Array
    steps: Array
    residual: Array


def conjugate_gradients(
    product: Callable[[Array], Array], b: Array, tolerance: Array | float, n_steps: int
) -> tuple[Array, Array, Array]:
    """Solve A x = b for each task (Hestenes & Stiefel 1952), all of them at once.

    Parameters
    ----------
    product : callable
        v ``(T, P)`` -> A v ``(T, P)``, A symmetric.
    b : ndarray, (T, P)
    tolerance : ndarray (T,), or float
        A task is done when ‖A x − b‖ ≤ tolerance ‖b‖.
    n_steps : int
        Most steps. A task ends earlier too at a direction of negative curvature, where A is not
        positive definite; if that is the first, x is b.

    Returns
    -------
    x : ndarray, (T, P)
    steps : ndarray of int, (T,)
    residual : ndarray, (T,)
        ‖A x − b‖ / ‖b‖ as the recursion has it.
    """
    # Linear in b, so b goes in as of size 1: a power of two costs no rounding, and squares neither
    # vanish nor overflow.
    _, exponent = np.frexp(np.abs(b).max(-1, keepdims=True, initial=0))
    b = np.ldexp(b, -exponent)
    x, r, p = np.zeros_like(b), b, b
    squared = np.einsum("tp,tp->t", b, b)
    scale = np.where(squared > 0, squared, 1)
    steps, active = np.zeros(len(b), dtype=int), np.ones(len(b), dtype=bool)
    for _ in range(n_steps):
        active = active & (squared > np.square(tolerance) * scale)
        if not active.any():
            break
        A_p = product(p)
        curvature = np.einsum("tp,tp->t", p, A_p)
        concave = active & (curvature <= 0)
        x = np.where((concave & (steps == 0))[:, None], b, x)
        active = active & ~concave
        alpha = np.where(active, squared / np.where(active, curvature, 1), 0)[:, None]
        x = x + alpha * p
        r = r - alpha * A_p
        before, squared = squared, np.where(active, np.einsum("tp,tp->t", r, r), squared)
        p = np.where(active[:, None], r + (squared / np.where(active, before, 1))[:, None] * p, p)
        steps = steps + active
    return np.ldexp(x, exponent), steps, np.sqrt(squared / scale)
