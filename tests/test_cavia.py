"""CAVIA against complex steps, and against MAML on a network in which the context is a bias."""

import numpy as np
import pytest

import npmeta as nm
from npmeta.algorithms import CAVIA
from npmeta.training.config import Config
from tests.algorithms import TIGHT, by_complex_step
from tests.helpers import CLASS_LOSSES, assert_close, problem

N_IN, N_C = 2, 3


def case(loss="mse", activation="tanh", hidden=(4, 3), **options):
    """CAVIA, parameters and tasks: a problem whose last inputs are left out for the context."""
    p = problem(loss, activation, hidden, n_in=N_IN + N_C)
    (x, y), (x_q, y_q) = p.support, p.query
    tasks = nm.TaskBatch(x[..., :N_IN], y, x_q[..., :N_IN], y_q)
    return CAVIA(p.model, loss, N_C, 0.7, **options), p, tasks


@pytest.mark.parametrize("hidden", [(), (4,), (4, 3, 4)])
@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu"])
@pytest.mark.parametrize("loss", ["mse", *CLASS_LOSSES, "poisson_nll"])
def test_the_gradient_through_the_inner_loop_is_exact(loss, activation, hidden):
    for steps in (1, 3):
        cavia, p, tasks = case(loss, activation, hidden, inner_steps=steps)
        out = cavia.meta_gradient(p.theta, tasks)
        expected = by_complex_step(cavia, {"theta": p.theta}, tasks)["theta"]
        assert_close(out.grad, expected, TIGHT, f"{steps} steps")
        assert out.hessian == "exact"


def as_maml(p, **options):
    """The same with a layer before the first that appends the context, its bias: [x, 0] + [0, c].

    Of this layer the last biases alone have a step size, and no other layer has any.
    """
    model = nm.MLP([N_IN, N_IN + N_C, *p.model.widths[1:]], ["identity", "tanh", "tanh"])
    alpha = np.zeros((1, model.n_params))
    first = model.layer_sizes[0]
    alpha[:, first - N_C : first] = 0.7
    theta = np.concatenate([np.eye(N_IN, N_IN + N_C).ravel(), np.zeros(N_IN + N_C), p.theta])
    return nm.MAML(model, "mse", alpha, weights="dense", **options), theta, first


@pytest.mark.parametrize("first_order", [False, True])
def test_it_is_maml_with_a_context_in_the_bias(first_order):
    cavia, p, tasks = case(inner_steps=3, first_order=first_order)
    maml, theta, first = as_maml(p, inner_steps=3, first_order=first_order)
    ours, theirs = cavia.meta_gradient(p.theta, tasks), maml.meta_gradient(theta, tasks)
    assert_close(ours.grad, theirs.grad[first:], TIGHT)
    assert_close(ours.task_loss, theirs.task_loss, TIGHT)
    assert ours.hessian == theirs.hessian
    support = tasks.support_x, tasks.support_y
    contexts = maml.adapt(theta, *support)[:, first - N_C : first]
    assert_close(cavia.adapt(p.theta, *support), contexts, TIGHT)
    predicted = maml.predict(theta, *support, tasks.query_x)
    assert_close(cavia.predict(p.theta, *support, tasks.query_x), predicted, TIGHT)


def test_nothing_but_the_context_adapts():
    cavia, p, tasks = case(inner_steps=2)
    support = tasks.support_x, tasks.support_y
    assert (cavia.adapt(p.theta, *support, steps=0) == 0).all()
    c = cavia.adapt(p.theta, *support)
    assert c.shape == (3, N_C)
    x = np.concatenate([tasks.query_x, np.repeat(c[:, None], 6, axis=1)], axis=-1)
    expected = p.model.apply(p.theta, x)
    assert_close(cavia.predict(p.theta, *support, tasks.query_x), expected, 1e-14)


def test_accuracy_is_scored():
    cavia, p, tasks = case("cross_entropy")
    assert cavia.evaluate(p.theta, tasks, 4).accuracy.shape == (3, 5)


def test_options_make_it():
    values = {"n_context": 2, "inner_lr": 0.5, "inner_steps": 3, "first_order": True, "hidden": [5]}
    cavia = Config("sinusoid", {"algorithm": "cavia", **values}).algorithm(1, 1)
    assert cavia.model.widths == (3, 5, 1)
    assert (cavia.n_context, cavia.inner_lr, cavia.inner_steps) == (2, 0.5, 3)
    assert cavia.first_order


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_context": 0}, "n_context must be from 1 to 2 for a network with 3 inputs, got 0"),
        ({"n_context": 3}, "n_context must be from 1 to 2 for a network with 3 inputs, got 3"),
        ({"inner_lr": [0.1, 0.2]}, "inner_lr must be one finite number, got .0.1, 0.2."),
        ({"inner_lr": np.nan}, "inner_lr must be one finite number"),
        ({"inner_steps": -1}, "inner_steps must be a whole number of at least 0, got -1"),
        ({"model": nm.MLP([3, 4, 1], norm="layer")}, "CAVIA takes no normalised network"),
        ({"loss": "mes"}, "unknown loss 'mes' .did you mean 'mse'"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        CAVIA(**{"model": nm.MLP([3, 4, 1]), "n_context": 2, **options})


def test_inputs_are_those_without_the_context():
    cavia, p, tasks = case()
    support = tasks.support_x, tasks.support_y
    with pytest.raises(ValueError, match=r"support_x must have shape .T, rows, 2., got .3, 5, 5."):
        cavia.adapt(p.theta, p.tasks.support_x, p.tasks.support_y)
    with pytest.raises(ValueError, match=r"query_x must have shape .3, Q, n_in., as many tasks"):
        cavia.predict(p.theta, *support, tasks.query_x[:2])
    with pytest.raises(ValueError, match="CAVIA has no meta-parameter 'inner_lr'"):
        cavia.adapt({"theta": p.theta, "inner_lr": np.array(0.1)}, *support)
