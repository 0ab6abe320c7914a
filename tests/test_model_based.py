"""The meta-learner LSTM and the memory-augmented network: exact gradients, and the papers' rules."""

import math

import numpy as np
import pytest

import npmeta as nm
from npmeta.algorithms import MANN, MetaLSTM
from npmeta.algorithms.meta_lstm import preprocess
from tests.algorithms import (
    TIGHT,
    assert_loss_changes_as_gradient_says,
    by_complex_step,
    one_by_one,
    with_noise,
)
from tests.helpers import H, assert_close

n_in, N, K, Q, T = 2, 3, 5, 4, 3


def network(activation="tanh", n_out=N, **options):
    return nm.MLP([n_in, 4, n_out], activation, **options)


LSTMS = {
    "values": MetaLSTM(network(), "mse", 0.1, 4),
    "classes": MetaLSTM(network("silu"), "cross_entropy", 0.3, 3),
    "relu": MetaLSTM(network("relu"), "huber", 0.1, 3),
    "normalised": MetaLSTM(network(norm="batch"), "cross_entropy", 0.1, 3),
    "no steps": MetaLSTM(network(), "mse", 0.1, 0),
}
MANNS = {
    "values": MANN(network(), "mse", N, units=3, slots=7, width=4, scale=2.0),
    "classes": MANN(network("silu"), "cross_entropy", N, units=3, slots=7, width=4),
    "few slots": MANN(nm.MLP([n_in, 3]), "squared_hinge", N, units=4, slots=2, width=3),
    "one slot": MANN(network(), "cross_entropy", N, units=2, slots=1, width=2),
}


def tasks_for(learner, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(T, K + Q, n_in))
    values = learner.loss in ("mse", "huber")
    y = rng.normal(size=(T, K + Q, N)) if values else rng.integers(N, size=(T, K + Q))
    return nm.TaskBatch(x[:, :K], y[:, :K], x[:, K:], y[:, K:])


def params_for(learner, seed=0):
    """Meta-parameters of no symmetry, with gates that look at all they are shown."""
    params = with_noise(learner.init(np.random.default_rng(seed)), seed, 0.3)
    if "write_gate" in params:  # it begins at zero, which noise that is relative leaves alone
        params["write_gate"] = params["write_gate"] + 0.4
    return params


def exact(learner):
    return MetaLSTM(
        learner.model, learner.loss, learner.inner_lr, learner.inner_steps, first_order=False
    )


def with_constants(learner, params, tasks, at) -> np.ndarray:
    """The query losses of the papers' rule, read from the paper, with L and ∇L of the parameters
    ``at`` in place of their own: what is differentiated where they are constants."""
    risk = nm.Risk(learner.model, learner.loss)
    theta, start = (np.tile(p["theta"], (T, 1)) for p in (params, at))
    gates = {name: np.zeros((T, learner.model.n_params)) for name in ("input", "forget")}
    own = dict(gates)
    for _ in range(learner.inner_steps):
        lin = risk.linearize(start, tasks.support_x, tasks.support_y)
        loss = np.broadcast_to(lin.value[:, None], lin.grad.shape)
        constant = [part for g in (lin.grad, loss) for part in by_the_paper(g)]

        def step(p, theta, before, g=lin.grad, constant=constant):
            z = {
                name: np.stack([*constant, theta, before[name], np.ones_like(g)], axis=-1)
                @ p[f"{name}_gate"]
                for name in before
            }
            now = {name: 1 / (1 + np.exp(-z[name])) for name in z}
            return now["forget"] * theta - now["input"] * g, now

        theta, gates = step(params, theta, gates)
        start, own = step(at, start, own)
    return risk.linearize(theta, tasks.query_x, tasks.query_y).value


def by_the_paper(g):
    size = np.abs(g)
    large = size >= math.exp(-10)
    with np.errstate(divide="ignore"):
        return np.where(large, np.log(size) / 10, -1), np.where(large, np.sign(g), math.exp(10) * g)


# --- the meta-learner LSTM --------------------------------------------------------------------------


@pytest.mark.parametrize("name", LSTMS)
def test_with_constants_every_derivative_is_that_of_a_complex_step(name):
    learner = LSTMS[name]
    params, tasks = params_for(learner), tasks_for(learner)
    out = learner.meta_gradient(params, tasks)
    assert out.hessian == "none"
    np.testing.assert_allclose(
        out.task_loss, with_constants(learner, params, tasks, params), rtol=1e-12
    )
    for key, array in params.items():
        expected = np.empty(array.size)
        for j, e in enumerate(np.eye(array.size)):
            ahead = {**params, key: array + 1j * H * e}
            expected[j] = with_constants(learner, ahead, tasks, params).imag.mean() / H
        assert_close(out.grads[key], expected, TIGHT, key)


@pytest.mark.parametrize("name", LSTMS)
def test_through_gradients_too_every_derivative_is_that_of_a_complex_step(name):
    learner = exact(LSTMS[name])
    params, tasks = params_for(learner), tasks_for(learner)
    out = learner.meta_gradient(params, tasks)
    assert out.hessian == "exact"
    for key, expected in by_complex_step(learner, params, tasks).items():
        # Products of Hessians with slopes of up to e^10, whose roundings grow as they do.
        assert_close(out.grads[key], expected, 1e-11, key)


def test_taking_gradients_for_constants_changes_the_gradient_and_not_the_loss():
    learner = LSTMS["values"]
    params, tasks = params_for(learner), tasks_for(learner)
    out, full = learner.meta_gradient(params, tasks), exact(learner).meta_gradient(params, tasks)
    np.testing.assert_array_equal(out.task_loss, full.task_loss)
    assert np.abs(out.grad - full.grad).max() > 0.01 * np.abs(full.grad).max()


def test_gates_that_see_nothing_are_gradient_descent_with_decay():
    learner = LSTMS["values"]
    params, tasks = params_for(learner), tasks_for(learner)
    logit = {"input_gate": math.log(0.1 / 0.9), "forget_gate": math.log(0.95 / 0.05)}
    for name, bias in logit.items():
        params[name] = np.array([0.0] * 6 + [bias])
    # θ − 0.1 (∇L + w θ) = 0.95 θ − 0.1 ∇L for w = 0.5
    maml = nm.MAML(learner.model, "mse", 0.1, 4, inner_weight_decay=0.5)
    scores, expected = learner.evaluate(params, tasks), maml.evaluate(params["theta"], tasks)
    assert_close(scores.loss, expected.loss, TIGHT)
    support = tasks.support_x, tasks.support_y
    assert_close(learner.adapt(params, *support), maml.adapt(params["theta"], *support), TIGHT)


def test_gates_begin_near_gradient_descent():
    learner = MetaLSTM(network(), "mse", inner_lr=0.03)
    params = learner.init(np.random.default_rng(0))
    assert 1 / (1 + np.exp(-params["input_gate"][-1])) == pytest.approx(0.03)
    assert 1 / (1 + np.exp(-params["forget_gate"][-1])) > 0.99
    assert np.abs(params["input_gate"][:-1]).max() <= 0.01


def test_preprocessing():
    small = math.exp(-10)
    g = np.array([0.0, 1.0, -1.0, math.e, -math.exp(-5), small / 2, -small / 2])
    (size, direction), slopes = preprocess(g)
    np.testing.assert_allclose(size, [-1, 0, 0, 0.1, -0.5, -1, -1], rtol=1e-14)
    np.testing.assert_allclose(direction, [0, 1, -1, 1, -1, 0.5, -0.5], rtol=1e-14)
    ahead = preprocess(g + 1j * H).values
    for slope, moved in zip(slopes, ahead, strict=True):
        np.testing.assert_allclose(slope, moved.imag / H, rtol=1e-14)


# --- the memory-augmented network -------------------------------------------------------------------


@pytest.mark.parametrize("name", MANNS)
def test_every_derivative_is_that_of_a_complex_step(name):
    learner = MANNS[name]
    params, tasks = params_for(learner), tasks_for(learner)
    out = learner.meta_gradient(params, tasks)
    assert out.grads.keys() == params.keys()
    for key, expected in by_complex_step(learner, params, tasks).items():
        # One slot has all of the reading, whatever the scale: a gradient of zero.
        scale = max(np.abs(expected).max(), 1e-3)
        assert np.abs(out.grads[key] - expected).max() <= TIGHT * scale, key


def test_every_label_is_read_and_by_the_controller_alone():
    learner = MANNS["values"]
    params, tasks = params_for(learner), tasks_for(learner)
    x, y, query = tasks.support_x, tasks.support_y, tasks.query_x
    before = learner.predict(params, x, y, query)
    for t in range(K):  # the last one too, which comes with the query
        other = y.copy()
        other[:, t] += 1
        assert np.abs(learner.predict(params, x, other, query) - before).max() > 1e-6
    blind = {**params, "controller": params["controller"].copy()}
    blind["controller"][N : 2 * N] = 0  # [e, y, r, h, 1], with as many outputs of e as of y
    np.testing.assert_array_equal(
        learner.predict(blind, x, y, query), learner.predict(blind, x, y + 1, query)
    )


@pytest.mark.parametrize("name", MANNS)
def test_the_order_of_rows_does_not_matter(name):
    learner = MANNS[name]
    params, tasks = params_for(learner), tasks_for(learner)
    x, y = tasks.support_x, tasks.support_y
    shuffled = nm.TaskBatch(x[:, ::-1], y[:, ::-1], tasks.query_x, tasks.query_y)
    out, other = learner.meta_gradient(params, tasks), learner.meta_gradient(params, shuffled)
    for key, grad in out.grads.items():
        np.testing.assert_array_equal(grad, other.grads[key])
    predicted = learner.predict(params, x[:, ::-1], y[:, ::-1], tasks.query_x)
    np.testing.assert_array_equal(predicted, learner.predict(params, x, y, tasks.query_x))
    # What decides is the inputs: labels may be anything.
    rows, labels = learner.ordered(x, np.tile(np.arange(K), (T, 1)))
    np.testing.assert_array_equal(rows, x[np.arange(T)[:, None], labels])
    assert (labels != np.arange(K)).any()


def test_query_rows_do_not_know_of_each_other():
    learner = MANNS["classes"]
    params, tasks = params_for(learner), tasks_for(learner)
    x, y, query = tasks.support_x, tasks.support_y, tasks.query_x
    together = learner.predict(params, x, y, query)
    for q in range(Q):
        assert_close(learner.predict(params, x, y, query[:, [q]]), together[:, [q]], TIGHT)


def test_rows_are_written_to_slots_of_their_own_while_there_are_some():
    learner = MANN(nm.MLP([n_in, 3]), "mse", N, units=3, slots=K + 1, width=4)
    params, tasks = params_for(learner), tasks_for(learner)
    params["write_gate"] = np.array(-1e3)  # never to the slot last read
    e = learner.model.apply(params["theta"], tasks.support_x)
    state, keys = learner._begin(T, e.dtype), []
    for t in range(K):
        state = learner._step(params, state, e[:, t], tasks.support_y[:, t]).state
        one = np.ones((T, 1))
        keys.append(np.tanh(np.concatenate([state.h, one], axis=1) @ params["key"]))
    for t in range(T):
        written = {tuple(np.round(row, 12)) for row in state.M[t] if row.any()}
        assert written == {tuple(np.round(key[t], 12)) for key in keys}
    # The next row finds the last slot free.
    assert (state.usage.argmin(1) == K).all()


def test_it_learns_what_only_the_support_rows_tell():
    """A class is a random label of a point: without reading labels late, no better than a guess."""

    class Names:
        def sample(self, seed, iteration, n_tasks, *, start=0, split="train"):
            rng = np.random.default_rng([seed, iteration, start, len(split)])
            y = rng.permuted(np.tile([0, 1], (n_tasks, 1)), axis=1)
            x = np.tile(np.eye(2), (n_tasks, 1, 1))
            return nm.TaskBatch(x, y, x, y)

    learner = MANN(nm.MLP([2, 2]), "cross_entropy", 2, units=8, slots=4, width=4)
    params = learner.init(np.random.default_rng(0))
    for step in nm.meta_train(learner, params, Names(), iterations=150, meta_batch=8, outer_lr=0.02):
        params = step.params
    assert nm.evaluate(learner, params, Names(), n_tasks=50).mean("accuracy")[0] == 1


# --- both -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "learner", [LSTMS["classes"], exact(LSTMS["relu"]), MANNS["values"], MANNS["few slots"]]
)
def test_batches_and_differences(learner):
    params, tasks = params_for(learner), tasks_for(learner)
    out = learner.meta_gradient(params, tasks)
    alone = one_by_one(learner, params, tasks)
    for key, grad in out.grads.items():
        assert_close(grad, alone.grads[key], TIGHT, key)
    np.testing.assert_allclose(out.task_loss, learner.evaluate(params, tasks).loss[:, -1], rtol=TIGHT)
    if out.hessian == "none":
        return
    assert_loss_changes_as_gradient_says(learner, params, tasks)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MetaLSTM(network(), inner_lr=1.0), "inner_lr must be a number between 0 and 1"),
        (lambda: MetaLSTM(network(), inner_steps=-1), "inner_steps must be a whole number"),
        (lambda: MetaLSTM(nm.Risk(network(), "mse")), "model must be an MLP, got Risk"),
        (lambda: MetaLSTM(network(norm="layer", adapt_norm=False)), "adapt_norm must be true"),
        (lambda: MANN(None), "needs a model"),
        (lambda: MANN(network(), slots=0), "slots must be a whole number of at least 1, got 0"),
        (lambda: MANN(network(), scale=0.0), "scale must be a positive number"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_meta_parameters_that_do_not_fit_are_refused():
    learner = LSTMS["values"]
    params, tasks = params_for(learner), tasks_for(learner)
    with pytest.raises(ValueError, match=r"input_gate must have shape \(7,\), got \(3,\)"):
        learner.meta_gradient({**params, "input_gate": np.zeros(3)}, tasks)
    with pytest.raises(ValueError, match=r"MetaLSTM must have 'input_gate', 'forget_gate' too, got"):
        learner.meta_gradient({"theta": params["theta"]}, tasks)
    learner = MANNS["values"]
    params = params_for(learner)
    with pytest.raises(ValueError, match=r"MANN must have 'controller', 'key', 'output' too"):
        learner.meta_gradient(params["theta"], tasks)
    with pytest.raises(ValueError, match="controller must have shape"):
        learner.meta_gradient({**params, "controller": np.zeros(3)}, tasks)
