"""Three oracles of the meta-gradient certify one another, and each says how far it can be trusted."""

import itertools
import math

import numpy as np
import pytest

import npmeta as nm
from npmeta.bilevel import adaptation, objective
from npmeta.bilevel.objective import RiskLinearization
from npmeta.network import weights
from npmeta.network.activations import ACTIVATIONS
from npmeta.network.losses import LOSSES
from npmeta.verification import complex_step, meta_gradient, richardson
from npmeta.verification.oracles.kinks import at_kinks, nearest_kink
from npmeta.verification.oracles.references import extended
from tests.helpers import (
    DEPTHS,
    KINDS,
    Problem,
    assert_close,
    problem,
    relative_error,
    step_sizes,
)

# That npmeta's own gradients agree with the oracles, for every activation, loss, number of steps and
# kind of step size, is in test_maml.py. Here the oracles are held against each other.

# Some hundred roundings of 1e-16 on each side; the worst measured is 4e-15.
TIGHT = 1e-13

longer = pytest.mark.skipif(not extended(), reason="long double is no longer than float64 here")


def setting(activation, loss, S, kind="number", decay=0.2, **options):
    p = problem(loss, activation, **options)
    alpha = step_sizes(kind, p.model, S, np.random.default_rng(S))
    return p, nm.MAML(p.model, loss, alpha, S, inner_weight_decay=decay), alpha


# --- agreement --------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_adjoint_and_complex_step_agree(activation):
    for loss, S in itertools.product(LOSSES, range(4)):
        kind = KINDS[(S + len(loss)) % len(KINDS)]
        p, maml, alpha = setting(activation, loss, S, kind)
        params = {"theta": p.theta, "inner_lr": alpha}
        adjoint, entries = (
            meta_gradient(maml, params, p.tasks, trials=0),
            complex_step(maml, params, p.tasks),
        )
        for name in entries:
            assert_close(adjoint.grads[name], entries[name], TIGHT, f"{loss}, {S} steps, {kind}")
        assert adjoint.grads["inner_lr"].shape == np.shape(alpha)


@pytest.mark.parametrize(("activation", "loss"), [("tanh", "cross_entropy"), ("sin", "mse")])
def test_float64_richardson_is_within_its_own_error(activation, loss):
    p, maml, _ = setting(activation, loss, 2)
    found = richardson(maml, p.theta, p.tasks, dtype=np.float64)
    exact = complex_step(maml, p.theta, p.tasks)["theta"]
    scale = np.abs(exact).max()
    assert np.abs(found.value - exact).max() <= 1e-10 * scale
    assert (np.abs(found.value - exact) <= 10 * found.error).all()
    assert found.error.max() <= 1e-9 * scale, "an estimate that is useless is no estimate"


@longer
@pytest.mark.parametrize("loss", LOSSES)
def test_in_extended_precision_all_three_agree(loss):
    activation = "relu" if loss == "mse" else "silu"
    p, maml, _ = setting(activation, loss, 2, hidden=(3,), T=2)
    adjoint = meta_gradient(maml, p.theta, p.tasks).grad
    entries = complex_step(maml, p.theta, p.tasks, dtype=np.longdouble)["theta"]
    differences = richardson(maml, p.theta, p.tasks)
    assert entries.dtype == differences.value.dtype == np.longdouble
    # mse and squared_hinge have the constant 2/n of their gradient in float64.
    assert_close(differences.value, entries, 1e-14)
    assert (np.abs(differences.value - entries) <= 10 * differences.error + 1e-16).all()
    assert_close(adjoint, entries.astype(float), TIGHT)


@longer
def test_what_has_no_extended_precision_says_so():
    p, maml, _ = setting("gelu", "mse", 1)
    with pytest.raises(ValueError, match="cannot be computed in c"):
        complex_step(maml, p.theta, p.tasks, dtype=np.longdouble)


def test_first_order_is_the_gradient_at_the_adapted_parameters():
    p, maml, alpha = setting("tanh", "mse", 3)
    first = nm.MAML(p.model, "mse", alpha, 3, first_order=True, inner_weight_decay=0.2)
    out = first.meta_gradient(p.theta, p.tasks)
    assert_close(meta_gradient(first, p.theta, p.tasks).grad, out.grad, TIGHT)
    assert_close(meta_gradient(maml, p.theta, p.tasks).first_order, out.grad, TIGHT)
    for method in (complex_step, richardson):
        with pytest.raises(ValueError, match="derivative of nothing"):
            method(first, p.theta, p.tasks)


@pytest.mark.parametrize("hidden", DEPTHS)
def test_losses_and_depths(hidden):
    p, maml, alpha = setting("softplus", "cross_entropy", 2, "layer", hidden=hidden)
    params = {"theta": p.theta, "inner_lr": alpha}
    out, reference = maml.meta_gradient(params, p.tasks), meta_gradient(maml, params, p.tasks)
    assert reference.loss == pytest.approx(out.loss, rel=TIGHT)
    assert_close(reference.task_loss, out.task_loss, TIGHT)
    for name, gradient in out.grads.items():
        assert_close(reference.grads[name], gradient, TIGHT)


def test_quadratics_in_closed_form():
    """∇ = (I − αA)^S A^Q (φ_S − c^Q), with φ_S − c = (I − αA)^S (θ − c)."""
    rng = np.random.default_rng(0)
    T, P, S, alpha = 3, 4, 5, 0.1
    B, BQ = rng.normal(size=(2, T, P, P))
    A, AQ = B @ B.swapaxes(1, 2), BQ @ BQ.swapaxes(1, 2)
    c, cQ, theta = rng.normal(size=(T, P)), rng.normal(size=(T, P)), rng.normal(size=P)
    M = np.linalg.matrix_power(np.eye(P) - alpha * A, S)
    phi = c + np.einsum("tij,tj->ti", M, theta - c)
    expected = np.einsum("tij,tjk,tk->ti", M, AQ, phi - cQ).mean(0)
    maml, tasks = nm.MAML(nm.Quadratic(P), inner_lr=alpha, inner_steps=S), nm.TaskBatch(A, c, AQ, cQ)
    assert_close(meta_gradient(maml, theta, tasks).grad, expected, TIGHT)
    assert_close(complex_step(maml, theta, tasks)["theta"], expected, TIGHT)
    assert_close(richardson(maml, theta, tasks).value.astype(float), expected, 1e-11)


# --- independence -----------------------------------------------------------------------------------


def test_no_oracle_touches_the_r_operator_or_the_inner_loop(monkeypatch):
    p, maml, alpha = setting("tanh", "cross_entropy", 2, "layer")
    params = {"theta": p.theta, "inner_lr": alpha}

    def touched(*args, **options):
        raise AssertionError("an oracle has called what it judges")

    monkeypatch.setattr(RiskLinearization, "product", touched)
    monkeypatch.setattr(RiskLinearization, "hvp", touched)
    for module, name in [
        (objective, "forward_dot"),
        (objective, "backward_dot"),
        (adaptation, "inner_loop"),
        (adaptation, "pull_back"),
        (adaptation.StepSizes, "__getitem__"),
        (adaptation.StepSizes, "collect"),
        (weights.Dense, "descend"),
        (weights.Shared, "act"),
    ]:
        monkeypatch.setattr(module, name, touched)
    meta_gradient(maml, params, p.tasks)
    complex_step(maml, params, p.tasks)
    richardson(maml, params, p.tasks, p.theta)


# --- kinks ------------------------------------------------------------------------------------------


def on_kinks(activation, loss="cross_entropy"):
    """Zero biases and a row of zero inputs: z = 0 in every layer, of that row."""
    p = problem(loss, activation)
    theta = p.model.pack([(W, 0 * b) for W, b in p.model.unpack(p.theta)])
    x = p.tasks.support_x.copy()
    x[:, 0] = 0
    tasks = nm.TaskBatch(x, p.tasks.support_y, p.tasks.query_x, p.tasks.query_y)
    return Problem(p.model, p.loss, theta, tasks)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu"])
@pytest.mark.parametrize("S", [1, 3])
def test_exactly_at_kinks_the_adjoint_takes_npmetas_side(activation, S):
    p = on_kinks(activation)
    maml = nm.MAML(p.model, p.loss, 0.1, S)
    out = maml.meta_gradient(p.theta, p.tasks)
    assert_close(meta_gradient(maml, p.theta, p.tasks).grad, out.grad, TIGHT)


def test_distance_to_the_nearest_kink():
    model, theta = nm.MLP([1, 2, 1], "relu"), np.array([1.0, 1.0, -0.5, 0.25, 1.0, 1.0, 0.0])
    x = np.array([[[1.0]]])
    tasks, maml = nm.TaskBatch(x, x, x, x), nm.MAML(model, inner_steps=0)
    # z = (1 − 0.5, 1 + 0.25): the first unit's bias may go down by 0.5, the second's by 1.25.
    for direction, distance in (
        ([0, 0, -1], 0.5),
        ([0, 0, 2], 0.25),
        ([0, 0, 0, -1], 1.25),
        ([0], np.inf),
    ):
        v = np.pad(np.array(direction, dtype=float), (0, 7 - len(direction)))
        assert nearest_kink(maml, theta, tasks, v) == pytest.approx(distance, rel=1e-12)
    smooth = nm.MAML(nm.MLP([1, 2, 1], "tanh"), inner_steps=0)
    assert nearest_kink(smooth, theta, tasks, np.ones(7)) == np.inf


def test_differences_keep_clear_of_kinks():
    p, maml, _ = setting("relu", "mse", 2)
    found = richardson(maml, p.theta, p.tasks, dtype=np.float64)
    exact = complex_step(maml, p.theta, p.tasks)["theta"]
    assert (np.abs(found.value - exact) <= 10 * found.error).all()
    assert np.abs(found.value - exact).max() <= 1e-8 * np.abs(exact).max()


def test_pre_activations_at_kinks_are_counted():
    p = on_kinks("elu")
    maml = nm.MAML(p.model, p.loss, 0.1, 1)
    # At θ the first row has all 4 + 3 units at 0, in each of 3 tasks; no query row is zero.
    assert at_kinks(maml, p.theta, p.tasks, np.float64) == 3 * (4 + 3)
    q = problem("mse", "relu")
    assert at_kinks(nm.MAML(q.model, "mse", 0.1, 2), q.theta, q.tasks, np.float64) == 0


# --- objectives of one's own ------------------------------------------------------------------------


def logistic(phi, x, y):
    p = 1 / (1 + np.exp(-x @ phi))
    return -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)), x.T @ (p - y) / len(y)


def logistic_hvp(phi, x, y, v):
    p = 1 / (1 + np.exp(-x @ phi))
    return x.T @ (p * (1 - p) * (x @ v)) / len(y)


def logistic_tasks():
    x = np.random.default_rng(0).normal(size=(4, 12, 3))
    y = (x[..., 0] > 0).astype(float)
    return nm.TaskBatch(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:])


def test_a_function_of_ones_own():
    tasks, theta = logistic_tasks(), np.array([0.5, -1.0, 0.3])
    maml = nm.MAML(nm.FunctionObjective(3, logistic, logistic_hvp), inner_lr=0.5, inner_steps=3)
    exact = maml.meta_gradient(theta, tasks).grad
    assert_close(meta_gradient(maml, theta, tasks).grad, exact, TIGHT)
    assert_close(complex_step(maml, theta, tasks)["theta"], exact, TIGHT)
    by_difference = meta_gradient(maml, theta, tasks, products="difference")
    assert 0 < relative_error(by_difference.grad, exact) < 1e-9


def test_what_is_not_complex_safe_is_noticed():
    def real_only(phi, x, y):
        return logistic(np.asarray(phi).real, x, y)

    tasks, theta = logistic_tasks(), np.array([0.5, -1.0, 0.3])
    maml = nm.MAML(nm.FunctionObjective(3, real_only, logistic_hvp), inner_lr=0.5, inner_steps=3)
    with pytest.raises(ValueError, match="not complex-safe, or its gradient is not that of its value"):
        meta_gradient(maml, theta, tasks)
    exact = maml.meta_gradient(theta, tasks).grad
    assert_close(meta_gradient(maml, theta, tasks, products="difference").grad, exact, 1e-9)


def test_a_function_that_refuses_complex_numbers():
    def refuses(phi, x, y):
        if np.iscomplexobj(phi):
            raise TypeError("no complex numbers here")
        return phi.sum(), np.ones(3)

    def drops(phi, x, y):
        return math.fsum(phi), np.ones(3)  # with a warning, of which it makes a real number

    for function, message in (
        (refuses, "no complex numbers here; products="),
        (drops, "not complex-safe"),
    ):
        maml = nm.MAML(nm.FunctionObjective(3, function), inner_lr=0.5)
        with pytest.raises(ValueError, match=message):
            meta_gradient(maml, np.ones(3), logistic_tasks())


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_error_covers_what_rounding_does(activation, dtype):
    for loss in LOSSES:
        p = problem(loss, activation).astype(dtype)
        maml = nm.MAML(p.model, loss, 0.1, 3)
        out, reference = maml.meta_gradient(p.theta, p.tasks), meta_gradient(maml, p.theta, p.tasks)
        off, error = np.linalg.norm(out.grad - reference.grad), np.linalg.norm(reference.error["theta"])
        assert off <= error, f"{loss}: {off:.2g} is beyond {error:.2g}"
        # Not by width: a few roundings, amplified by a small network.
        assert error <= 1e4 * np.finfo(dtype).eps * np.linalg.norm(reference.grad)


def test_the_oracle_is_deterministic():
    p, maml, _ = setting("tanh", "mse", 2)
    once, again = (meta_gradient(maml, p.theta, p.tasks) for _ in range(2))
    np.testing.assert_array_equal(once.grad, again.grad)
    np.testing.assert_array_equal(once.error["theta"], again.error["theta"])


def test_bad_input():
    p, maml, _ = setting("tanh", "mse", 2)
    with pytest.raises(ValueError, match="theta must be real"):
        meta_gradient(maml, p.theta + 0j, p.tasks)
    with pytest.raises(ValueError, match="theta must have shape"):
        meta_gradient(maml, p.theta[1:], p.tasks)
    with pytest.raises(ValueError, match="unknown kind of products 'complex'"):
        meta_gradient(maml, p.theta, p.tasks, products="complex")
