"""Reptile: its update is the paper's, in whatever form the weights are held."""

import numpy as np
import pytest

import npmeta as nm
from npmeta.algorithms import Reptile
from npmeta.bilevel.optimizers import Sgd
from tests.helpers import assert_close, problem

ALPHA = 0.1


def all_rows(tasks):
    return (
        np.concatenate([tasks.support_x, tasks.query_x], axis=1),
        np.concatenate([tasks.support_y, tasks.query_y], axis=1),
    )


def walk(p, batches, theta):
    """φ_S of every task, by steps of plain gradient descent on one minibatch after another."""
    phi = np.tile(theta, (len(p.tasks), 1))
    for x, y in batches:
        phi = phi - ALPHA * p.risk.linearize(phi, x, y).grad
    return phi


@pytest.mark.parametrize("weights", ["dense", "factored"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_the_gradient_is_the_way_gone(loss, weights):
    """g = (θ − mean φ_S)/α, on all rows or on minibatches in turn (11 rows: 4, 4, the last 3 left)."""
    p = problem(loss)
    x, y = all_rows(p.tasks)
    for rows, steps, batches in (
        (0, 3, [(x, y)] * 3),
        (4, 3, [(x[:, i : i + 4], y[:, i : i + 4]) for i in (0, 4, 0)]),
        (99, 1, [(x, y)]),
    ):
        reptile = Reptile(p.model, loss, ALPHA, steps, batch_rows=rows, weights=weights)
        expected = (p.theta - walk(p, batches, p.theta)).mean(0) / ALPHA
        out = reptile.meta_gradient(p.theta, p.tasks)
        # The difference of nearly equal numbers, θ and φ_S, loses a digit or two of sixteen.
        assert_close(out.grad, expected, 1e-13)
        assert out.hessian == "none"


def test_one_step_is_joint_training():
    p = problem("mse")
    out = Reptile(p.model, "mse", ALPHA, 1).meta_gradient(p.theta, p.tasks)
    assert_close(out.grad, p.risk.linearize(p.theta, *all_rows(p.tasks)).grad.mean(0), 1e-14)


def test_no_step_goes_nowhere():
    p = problem("mse")
    assert not Reptile(p.model, "mse", ALPHA, 0).meta_gradient(p.theta, p.tasks).grad.any()


@pytest.mark.parametrize("meta_batch", [1, 4], ids=["serial", "batched"])
def test_gradient_descent_with_rate_epsilon_alpha_is_the_papers_update(meta_batch):
    p = problem("mse", n_in=1, n_out=1)
    reptile, epsilon = Reptile(p.model, "mse", ALPHA, 3), 0.5
    waves = nm.tasks.Sinusoid(shots=5, queries=6, amplitude=(0.1, 1.0))
    theta = p.theta
    steps = nm.meta_train(
        reptile, theta, waves, iterations=3, meta_batch=meta_batch, outer_lr=epsilon * ALPHA,
        optimizer=Sgd(),
    )  # fmt: skip
    for iteration, step in enumerate(steps):
        phi = reptile.adapt(theta, *all_rows(waves.sample(0, iteration, meta_batch)))
        theta = theta + epsilon * (phi - theta).mean(0)
        assert_close(step.params["theta"], theta, 1e-13)


def test_the_loss_is_that_of_all_rows_afterwards():
    p = problem("mse")
    x, y = all_rows(p.tasks)
    reptile = Reptile(p.model, "mse", ALPHA, 2)
    expected = p.risk.linearize(reptile.adapt(p.theta, x, y), x, y).value
    np.testing.assert_allclose(reptile.meta_gradient(p.theta, p.tasks).task_loss, expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_lr": 0.0}, "must be one positive number, got 0.0"),
        ({"inner_lr": [0.1, 0.2, 0.3]}, "must be one positive number, got .0.1, 0.2, 0.3."),
        ({"batch_rows": -1}, "batch_rows must be a whole number of at least 0, got -1"),
    ],
)
def test_what_it_has_not_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Reptile(nm.MLP([1, 4, 1]), **options)


def test_step_sizes_beside_theta_are_refused():
    p = problem("mse")
    with pytest.raises(ValueError, match="no meta-parameter 'inner_lr'"):
        Reptile(p.model).meta_gradient({"theta": p.theta, "inner_lr": np.array(0.1)}, p.tasks)


def test_it_learns():
    """Four hundred short iterations beat a random initialisation after ten steps."""
    waves = nm.tasks.Sinusoid(shots=10, queries=10)
    reptile = Reptile(nm.MLP([1, 20, 20, 1]), inner_lr=0.01, inner_steps=5, batch_rows=10)
    before = params = reptile.init(np.random.default_rng(0))
    for step in nm.meta_train(reptile, params, waves, iterations=400, meta_batch=10, outer_lr=3e-3):
        params = step.params
    learned, random = (
        nm.evaluate(reptile, p, waves, n_tasks=50, steps=10).mean()[-1] for p in (params, before)
    )
    assert learned < 0.75 * random
