"""Implicit MAML against closed forms, extrapolated differences, and dense linear algebra."""

import numpy as np
import pytest

import npmeta as nm
from npmeta.algorithms import IMAML
from npmeta.algorithms.imaml import conjugate_gradients
from npmeta.training.config import Config
from tests.algorithms import one_by_one
from tests.helpers import Problem, assert_close, complex_step_hvp, problem, relative_error

RHO = 1.5


def quadratic(T=4, P=6, seed=0):
    rng = np.random.default_rng(seed)
    B = rng.normal(size=(2, T, P, P))
    A = B @ B.swapaxes(2, 3) / P + 0.1 * np.eye(P)
    c = rng.normal(size=(2, T, P))
    return nm.TaskBatch(A[0], c[0], A[1], c[1]), rng.normal(size=P)


def test_the_quadratic_has_a_closed_form():
    """(A + ρI) φ = A c + ρθ, and the gradient is ρ (A + ρI)⁻¹ A^Q (φ − c^Q)."""
    tasks, theta = quadratic()
    out = IMAML(nm.Quadratic(6), strength=RHO, tolerance=1e-14).meta_gradient(theta, tasks)
    M = tasks.support_x + RHO * np.eye(6)
    right = np.einsum("tij,tj->ti", tasks.support_x, tasks.support_y) + RHO * theta
    phi = np.linalg.solve(M, right[..., None])[..., 0]
    r = phi - tasks.query_y
    outer = np.einsum("tij,tj->ti", tasks.query_x, r)
    expected = RHO * np.linalg.solve(M, outer[..., None])[..., 0]
    assert_close(out.grad, expected.mean(0), 1e-13)
    np.testing.assert_allclose(out.task_loss, (r * outer).sum(-1) / 2, rtol=1e-12)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("activation", ["tanh", "silu"])
def test_the_gradient_is_that_of_the_loss_after_solving(loss, activation):
    """Richardson's extrapolation of differences of the meta-loss, each with a solve of its own."""
    p = problem(loss, activation)
    imaml = IMAML(p.model, loss, strength=RHO, tolerance=1e-14)
    out = imaml.meta_gradient(p.theta, p.tasks)
    assert out.hessian == "exact"

    def slope(v, h):
        ends = [imaml.evaluate(p.theta + step * v, p.tasks).loss[:, -1].mean() for step in (h, -h)]
        return (ends[0] - ends[1]) / (2 * h)

    for seed in range(2):
        v = np.random.default_rng(seed).normal(size=p.theta.size)
        v /= np.linalg.norm(v)
        by_difference = (64 * slope(v, 0.0025) - 20 * slope(v, 0.005) + slope(v, 0.01)) / 45
        # Of order h⁶ times derivatives of order seven, and rounding 1e-16/h: measured 1e-12.
        assert abs(out.grad @ v - by_difference) <= 1e-11 * np.linalg.norm(out.grad)


def by_dense_algebra(imaml: IMAML, p: Problem) -> tuple[np.ndarray, np.ndarray]:
    """φ and the meta-gradient with the Hessian written out, column by column by complex step.

    Newton's method with dense solves begins where the adaptation has come to, so that it ends in the
    same minimum, and shares no solver with it.
    """
    phi, n, rho = imaml.adapt(p.theta, *p.support), p.theta.size, imaml.strength
    for _ in range(4):
        columns = [complex_step_hvp(p.risk, phi, p.support, e) for e in np.eye(n)]
        M = np.stack(columns, axis=-1) + rho * np.eye(n)
        r = p.risk.linearize(phi, *p.support).grad + rho * (phi - p.theta)
        phi = phi - np.linalg.solve(M, r[..., None])[..., 0]
    b = p.risk.linearize(phi, *p.query).grad
    return phi, rho * np.linalg.solve(M, b[..., None])[..., 0].mean(0)


def test_the_solution_is_stationary_and_the_system_is_solved():
    p = problem("cross_entropy")
    imaml = IMAML(p.model, "cross_entropy", strength=RHO, tolerance=1e-14)
    phi, gradient = by_dense_algebra(imaml, p)
    lin = p.risk.linearize(phi, *p.support)
    assert np.abs(lin.grad + RHO * (phi - p.theta)).max() < 1e-13
    # Independent of the solver at the solution, to the rounding of both.
    assert_close(imaml.adapt(p.theta, *p.support), phi, 1e-12)
    assert_close(imaml.meta_gradient(p.theta, p.tasks).grad, gradient, 1e-11)


def on_waves() -> Problem:
    """What the command line trains on, with fewer units: far from linear, and some minima are flat."""
    model = nm.MLP([1, 10, 10, 1], "tanh")
    tasks = nm.tasks.Sinusoid(shots=10).sample(seed=0, iteration=0, n_tasks=10)
    return Problem(model, "mse", model.init(np.random.default_rng(0)), tasks)


@pytest.mark.parametrize(
    "p", [problem("mse"), problem("cross_entropy"), problem("mse", "silu"), on_waves()], ids=repr
)
def test_the_error_follows_the_tolerance(p):
    """1e-6 at the default tolerance, against dense algebra; the report keeps what is asked for."""

    def at(tolerance):
        return IMAML(p.model, p.loss, strength=1.0, tolerance=tolerance)

    _, exact = by_dense_algebra(at(1e-10), p)
    errors = {}
    for tolerance in (1e-2, 1e-4, 1e-6, 1e-8, 1e-10):
        out = at(tolerance).meta_gradient(p.theta, p.tasks)
        assert out.inner_residual.max() <= tolerance
        assert out.solve_residual.max() <= tolerance
        errors[tolerance] = relative_error(out.grad, exact)
    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    assert errors[1e-10] < 1e-7  # ten times less than is asked for
    assert IMAML(p.model).tolerance == Config("sinusoid", {"algorithm": "imaml"})["tolerance"] == 1e-10


def test_a_strong_pull_is_no_adaptation_and_an_early_end_is_seen():
    p = problem("mse")
    strong = IMAML(p.model, "mse", strength=1e8).meta_gradient(p.theta, p.tasks)
    joint = p.risk.linearize(p.theta, *p.query).grad.mean(0)
    assert_close(strong.grad, joint, 1e-6)
    early = IMAML(p.model, "mse", strength=0.1, inner_steps=1, solve_steps=2)
    out = early.meta_gradient(p.theta, p.tasks)
    assert out.inner_steps.tolist() == [1, 1, 1]
    assert out.solve_steps.tolist() == [2, 2, 2]
    assert min(out.inner_residual.min(), out.solve_residual.min()) > 1e-8


def test_tasks_are_solved_each_to_its_own_end():
    p = problem("cross_entropy", T=4)
    imaml = IMAML(p.model, "cross_entropy", strength=0.5, tolerance=1e-10)
    out, alone = imaml.meta_gradient(p.theta, p.tasks), one_by_one(imaml, p.theta, p.tasks)
    assert_close(out.grad, alone.grad, 1e-9)
    for t in range(4):
        own = imaml.meta_gradient(p.theta, p.tasks[t : t + 1])
        assert out.inner_steps[t] == own.inner_steps[0]
        assert out.solve_steps[t] == own.solve_steps[0]


def test_scores_have_a_column_a_step_even_after_the_end():
    p = problem("cross_entropy")
    imaml = IMAML(p.model, "cross_entropy", strength=RHO)
    scores = imaml.evaluate(p.theta, p.tasks, 30)
    assert scores.loss.shape == scores.accuracy.shape == (3, 31)
    np.testing.assert_array_equal(scores.loss[:, -1], scores.loss[:, -2])
    np.testing.assert_allclose(
        scores.loss[:, -1], imaml.meta_gradient(p.theta, p.tasks).task_loss, rtol=1e-12
    )


# --- conjugate gradients ------------------------------------------------------------------------------


def test_conjugate_gradients_solve_and_count():
    rng = np.random.default_rng(0)
    B = rng.normal(size=(3, 5, 5))
    A, b = B @ B.swapaxes(1, 2) + np.eye(5), rng.normal(size=(3, 5))
    A[1] = np.eye(5)  # one step
    b[2] = 0  # none

    def product(v):
        return np.einsum("tij,tj->ti", A, v)

    x, steps, residual = conjugate_gradients(product, b, 1e-13, 50)
    assert_close(x, np.linalg.solve(A, b[..., None])[..., 0], 1e-12)
    assert 5 <= steps[0] <= 8
    assert steps[1:].tolist() == [1, 0]
    assert residual.max() <= 1e-13


def test_negative_curvature_ends_a_task():
    A = np.stack([-np.eye(2), np.diag([1.0, -0.1])])
    b = np.array([[1.0, 2.0], [1.0, 1.0]])
    x, steps, residual = conjugate_gradients(lambda v: np.einsum("tij,tj->ti", A, v), b, 1e-10, 20)
    np.testing.assert_array_equal(x[0], b[0])  # steepest descent is all there is
    assert np.isfinite(x).all()
    assert steps.tolist() == [0, 1]
    assert (residual > 1e-10).all()


# --- options ------------------------------------------------------------------------------------------


def test_options_make_it():
    values = {"strength": 2.0, "tolerance": 1e-5, "inner_steps": 7, "solve_steps": 9}
    imaml = Config("sinusoid", {"algorithm": "imaml", **values}).algorithm(1, 1)
    assert {name: getattr(imaml, name) for name in values} == values


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0}, "strength must be a positive number, got 0"),
        ({"tolerance": np.inf}, "tolerance must be a positive number, got inf"),
        ({"inner_steps": -1}, "inner_steps must be a whole number of at least 0, got -1"),
        ({"loss": "mes"}, "unknown loss 'mes'"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        IMAML(nm.MLP([1, 4, 1]), **options)
    with pytest.raises(ValueError, match="it takes no network with adapt_norm=False"):
        IMAML(nm.MLP([1, 4, 1], norm="batch", adapt_norm=False))
    with pytest.raises(ValueError, match="an objective brings its own loss"):
        IMAML(nm.Quadratic(3), "mse")


@pytest.mark.parametrize(
    ("dtype", "size"), [(float, 1e-200), (float, 1e200), (np.float32, 1e-30), (float, 0)]
)
def test_solves_of_any_size_of_right_hand_side(dtype, size):
    A = np.array([[2.0, 0.5], [0.5, 1.0]], dtype)
    b = np.array([[1.0, -3.0], [0.25, 4.0]]).astype(dtype) * dtype(size)
    x, steps, residual = conjugate_gradients(lambda v: v @ A, b, 1e-6, 5)
    # Two directions of two are all of them; what is left are some roundings.
    np.testing.assert_allclose(x, np.linalg.solve(A, b.T).T, rtol=32 * np.finfo(dtype).eps)
    assert (steps == (2 if size else 0)).all()
    assert np.isfinite(residual).all()
