"""MAML++: the multi-step loss and its exact gradient, annealing, and who is asked for what when."""

import numpy as np
import pytest

import npmeta as nm
from npmeta.algorithms import MAMLPlusPlus
from npmeta.training.config import Config
from npmeta.training.parallel import Sharded
from tests.algorithms import TIGHT, by_complex_step, one_by_one, with_noise
from tests.helpers import assert_close, problem

V = (0.5, -0.2, 0.7)


@pytest.mark.parametrize("weights", ["dense", "factored"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_the_gradient_of_the_losses_of_all_steps_is_exact(loss, decay, weights):
    p = problem(loss)
    algorithm = MAMLPlusPlus(
        p.model, loss, 0.1, 3, inner_weight_decay=decay, weights=weights, step_weights=V
    )
    params = with_noise(algorithm.init(np.random.default_rng(0)))
    expected = by_complex_step(algorithm, params, p.tasks, V)
    out = algorithm.meta_gradient(params, p.tasks)
    for name in ("theta", "inner_lr"):
        assert out.grads[name].shape == params[name].shape
        assert_close(out.grads[name], expected[name], TIGHT, name)
        assert_close(out.grads[name], one_by_one(algorithm, params, p.tasks).grads[name], TIGHT, name)
    losses = algorithm.evaluate(params, p.tasks).loss
    np.testing.assert_allclose(out.task_loss, losses[:, 1:] @ V, rtol=1e-12)


def test_first_order_adds_up_the_query_gradients():
    p = problem("mse")
    algorithm = MAMLPlusPlus(p.model, "mse", 0.1, 3, first_order=True, step_weights=V)
    gradients = [
        p.risk.linearize(algorithm.adapt(p.theta, *p.support, steps=s), *p.query).grad.mean(0)
        for s in (1, 2, 3)
    ]
    out = algorithm.meta_gradient(p.theta, p.tasks)
    assert_close(out.grad, sum(v * g for v, g in zip(V, gradients, strict=True)), 1e-14)
    assert out.hessian == "none"


def test_the_last_loss_alone_is_maml():
    p = problem("mse")
    maml = nm.MAML(p.model, "mse", 0.1, 3).meta_gradient(p.theta, p.tasks)
    for v in (None, (0, 0, 1)):
        out = MAMLPlusPlus(p.model, "mse", 0.1, 3, step_weights=v).meta_gradient(p.theta, p.tasks)
        assert_close(out.grad, maml.grad, 1e-15)
    assert_close(out.task_loss, maml.task_loss, 1e-15)


def test_weights_go_from_equal_to_the_last():
    algorithm = MAMLPlusPlus(nm.MLP([1, 4, 1]), inner_steps=5, multi_step_iterations=100)

    def v(iteration):
        return algorithm.at_iteration(iteration).step_weights

    np.testing.assert_allclose(v(0), [0.2] * 5, rtol=1e-15)
    np.testing.assert_allclose(v(50), [0.1] * 4 + [0.6], rtol=1e-15)
    np.testing.assert_allclose(v(99), [0.006] * 4 + [0.976], rtol=1e-15)  # not below 0.03/S
    assert all(sum(v(i)) == pytest.approx(1, abs=1e-15) for i in range(100))
    assert v(100) is None
    given = MAMLPlusPlus(nm.MLP([1, 4, 1]), inner_steps=2, step_weights=(0.25, 0.75))
    assert given.at_iteration(7).step_weights == (0.25, 0.75)
    # One step has one loss.
    one = MAMLPlusPlus(nm.MLP([1, 4, 1]), inner_steps=1, multi_step_iterations=100)
    assert one.at_iteration(0).step_weights is None


def test_derivatives_go_from_first_to_second_order():
    algorithm = MAMLPlusPlus(nm.MLP([1, 4, 1]), inner_steps=2, first_order_iterations=3)
    assert [algorithm.at_iteration(i).first_order for i in range(5)] == [True] * 3 + [False] * 2


def test_training_asks_for_the_form_of_every_iteration():
    """Alone, in shards, and resumed midway: the steps of forms asked for by hand."""
    waves = nm.tasks.Sinusoid(shots=3, queries=4)
    algorithm = MAMLPlusPlus(
        nm.MLP([1, 4, 1], "tanh"), inner_steps=2, multi_step_iterations=3, first_order_iterations=2
    )
    params = algorithm.init(np.random.default_rng(0))
    options = {"iterations": 5, "meta_batch": 4, "outer_lr": 0.01}
    steps = list(nm.meta_train(algorithm, params, waves, **options))

    at = params
    for iteration, step in enumerate(steps):
        form, batch = algorithm.at_iteration(iteration), waves.sample(0, iteration, 4)
        out = form.meta_gradient(at, batch)
        assert step.loss == out.loss
        at = step.params
    sharded = list(nm.meta_train(Sharded(algorithm, 2), params, waves, **options))
    for alone, shared in zip(steps, sharded, strict=True):
        assert_close(shared.params["theta"], alone.params["theta"], 1e-12)
    half = steps[1]
    resumed = nm.meta_train(algorithm, half.params, waves, state=half.state, start=2, **options)
    for step, again in zip(steps[2:], resumed, strict=True):
        np.testing.assert_array_equal(again.params["theta"], step.params["theta"])
    # Evaluation has no iteration: batches called with by hand are as the algorithm is.
    batch = waves.sample(0, 0, 4)
    assert Sharded(algorithm, 4).meta_gradient(params, batch).loss == pytest.approx(
        algorithm.meta_gradient(params, batch).loss, rel=1e-15
    )


def test_options_make_it():
    values = {"multi_step_iterations": 7, "first_order_iterations": 8, "inner_steps": 3, "hidden": [5]}
    algorithm = Config("sinusoid", {"algorithm": "maml++", **values}).algorithm(1, 1)
    assert (algorithm.multi_step_iterations, algorithm.first_order_iterations) == (7, 8)
    assert algorithm.init(np.random.default_rng(0))["inner_lr"].shape == (3, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_weights": (0.5, 0.5)}, "step_weights must be 3 numbers, .* got .0.5, 0.5."),
        ({"step_weights": (0.5, 0.5, np.nan)}, "step_weights must be 3 numbers"),
        ({"multi_step_iterations": -1}, "multi_step_iterations must be a whole number"),
        ({"first_order_iterations": 1.5}, "first_order_iterations must be a whole number"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MAMLPlusPlus(nm.MLP([1, 4, 1]), inner_steps=3, **options)
