"""Warp layers: what stands where, what moves, and gradients that are exact through both."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import npmeta as nm
from npmeta.algorithms import Warp
from npmeta.network.activations import ACTIVATIONS
from npmeta.training.config import Config
from npmeta.verification import FAULTS, Doctor
from npmeta.verification.oracles import references as oracle
from tests.algorithms import TIGHT, by_complex_step, with_noise
from tests.helpers import (
    KINDS,
    SMOOTH,
    assert_close,
    central_difference,
    problem,
    problems,
    size_of_terms,
    stays_small,
    step_sizes,
)

every_form = pytest.mark.parametrize("g", ["identity", "tanh"])


def warped(p, alpha=0.1, S=2, seed=0, **options):
    """Warp on a problem's network, and meta-parameters at which no layer is the identity."""
    warp = Warp(p.model, p.loss, alpha, S, **options)
    return warp, with_noise(warp.init(np.random.default_rng(seed)), size=0.3)


# --- the network ------------------------------------------------------------------------------------


def test_warp_layers_stand_where_the_papers_have_them():
    p = problem("mse", ["tanh", "relu"])
    f, h, g = (ACTIVATIONS[name].f for name in ("tanh", "relu", "silu"))
    x = p.tasks.query_x[0]
    for name in ("identity", "silu"):
        warp, params = warped(p, warp_activation=name)
        W, T, V, U, R, Q = warp.network.unpack(params["theta"])

        def through(a, *layers):
            for W, b in layers:
                a = a @ W + b
            return a

        if name == "identity":
            o = through(h(through(f(through(x, W, T)), V, U)), R, Q)
        else:
            o = through(g(through(h(through(g(through(f(through(x, W)), T)), V)), U)), R, Q)
        assert_close(warp.network.apply(params["theta"], x), o, 1e-15)


def test_a_t_net_begins_as_the_network_it_is_made_of():
    p = problem("mse", "relu")
    rng = np.random.default_rng
    warp, theta = Warp(p.model), p.model.init(rng(3))
    params = warp.init(rng(3))
    assert params.keys() == {"theta"}
    np.testing.assert_array_equal(
        warp.network.apply(params["theta"], p.tasks.query_x), p.model.apply(theta, p.tasks.query_x)
    )
    # It does not stay that: in one inner step a linear T = I leaves W's step what it was, ...
    np.testing.assert_allclose(
        warp.predict(params, *p.support, p.tasks.query_x),
        nm.MAML(p.model).predict(theta, *p.support, p.tasks.query_x),
        rtol=1e-12,
    )
    # ... while the outer gradient moves T.
    by_layer = warp.network.unpack(warp.meta_gradient(params, p.tasks).grad)
    assert all(np.abs(T).max() > 1e-3 for T, _ in by_layer[1::2])


def test_other_warp_layers_begin_at_random_and_the_last_as_the_identity():
    warp = Warp(nm.MLP([2, 300, 3], "tanh"), warp_activation="relu")
    theta = warp.init(np.random.default_rng(0), np.float32)["theta"]
    assert theta.dtype == np.float32
    (W, _), (T, c), _, (U, _) = warp.network.unpack(theta)
    np.testing.assert_array_equal(
        W, warp.model.unpack(warp.model.init(np.random.default_rng(0)))[0][0].astype(np.float32)
    )
    # He's variance, of 90 000 draws.
    assert T.var() == pytest.approx(2 / 300, rel=0.05)
    assert not c.any()
    np.testing.assert_array_equal(U, np.eye(3))


# --- what moves -------------------------------------------------------------------------------------


@every_form
def test_warp_layers_stand_still_in_the_inner_loop_and_are_learned(g):
    p = problem("mse")
    warp, params = warped(p, warp_activation=g)
    before = warp.network.unpack(params["theta"])
    after = warp.network.unpack(warp.adapt(params, *p.support))
    for l, (now, then) in enumerate(zip(after, before, strict=True)):
        for array, old in zip(now, then, strict=True):
            assert ((array != old) == (l % 2 == 0)).all()
    assert (warp.meta_gradient(params, p.tasks).grad != 0).all()


def test_a_linear_warp_layer_preconditions_the_step():
    """x W T + .. is a linear model with M = W T, whose step is −α ∇_M TᵀT."""
    p = problem("mse", hidden=())
    warp, params = warped(p, S=1)
    (W, b), (T, c) = warp.network.unpack(params["theta"])
    moved = warp.network.unpack(warp.adapt(params, *p.support))[0]
    M = p.model.pack([(W @ T, b @ T + c)])
    ((G, d),) = p.model.unpack(p.risk.linearize(M, *p.support).grad)
    assert_close(moved[0] @ T - W @ T, -0.1 * G @ T.T @ T, 1e-13)
    assert_close(moved[1] @ T - b @ T, -0.1 * d @ T.T @ T, 1e-13)


def test_it_is_maml_with_zeros():
    p = problem("cross_entropy", "softplus")
    warp, params = warped(p, [[0.1, 0.2, 0.3]], inner_weight_decay=0.1, first_order=True)
    maml = nm.MAML(
        nm.MLP([2, 4, 4, 3, 3, 3, 3], ["identity", "softplus"] * 2 + ["identity"]),
        "cross_entropy",
        [[0.1, 0, 0.2, 0, 0.3, 0]],
        2,
        first_order=True,
        inner_weight_decay=0.1,
    )
    ours, theirs = warp.meta_gradient(params, p.tasks), maml.meta_gradient(params, p.tasks)
    np.testing.assert_array_equal(ours.grad, theirs.grad)
    assert ours.hessian == "none"


@pytest.mark.parametrize("kind", KINDS)
def test_learned_step_sizes_are_of_the_task_layers(kind):
    p = problem("mse")
    alpha = step_sizes(kind, p.model, 3, np.random.default_rng(0))
    warp, params = warped(p, alpha, 3, learn_inner_lr=True)
    assert params["inner_lr"].shape == alpha.shape
    out = warp.meta_gradient(params, p.tasks)
    assert out.grads["inner_lr"].shape == alpha.shape
    params["inner_lr"] = params["inner_lr"] + 0.1
    moved = warp.network.unpack(warp.adapt(params, *p.support))
    for (T, c), (T_0, c_0) in zip(moved[1::2], warp.network.unpack(params["theta"])[1::2], strict=True):
        assert (T == T_0).all()
        assert (c == c_0).all()


# --- gradients --------------------------------------------------------------------------------------


@every_form
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_complex_steps(g, kind):
    p = problem("cross_entropy", "sin")
    alpha = step_sizes(kind, p.model, 2, np.random.default_rng(1))
    warp, params = warped(p, alpha, learn_inner_lr=True, inner_weight_decay=0.1, warp_activation=g)
    out, expected = warp.meta_gradient(params, p.tasks), by_complex_step(warp, params, p.tasks)
    for name, gradient in expected.items():
        assert_close(out.grads[name], gradient, TIGHT, name)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(problems(), st.sampled_from([*ACTIVATIONS]), st.integers(0, 3))
def test_gradients_are_the_oracles_whatever_the_network(p, g, S):
    warp, params = warped(p, 0.05, S, warp_activation=g)
    p = type(p)(warp.network, p.loss, params["theta"], p.tasks)
    assume(stays_small(p, warp.maml.inner_lr, S))
    expected = oracle.meta_gradient(warp.maml, params, p.tasks, trials=0).grad
    found = warp.meta_gradient(params, p.tasks).grad
    # Where a network is dead, the terms that cancel are the measure, as for MAML.
    scale = max(np.abs(expected).max(), size_of_terms(p, warp.maml.inner_lr, S))
    assert np.abs(found - expected).max() <= 1e-12 * scale


@settings(max_examples=10, deadline=None, derandomize=True)
@given(problems(activations=SMOOTH), st.sampled_from(SMOOTH))
def test_gradients_are_central_differences(p, g):
    assume("hinge" not in p.loss and p.loss != "huber")  # these have kinks of their own
    warp, params = warped(p, 0.05, 2, warp_activation=g)
    theta = params["theta"]
    v = np.random.default_rng(0).normal(size=theta.shape)
    slope = central_difference(
        lambda at: float(warp.evaluate(at, p.tasks).loss[:, -1].mean()), theta, v, 1e-5
    )
    grad = warp.meta_gradient(theta, p.tasks).grad
    # h² times third derivatives, and roundings of 1e-16 over h.
    assert abs(grad @ v - slope) <= 1e-6 * max(np.abs(grad).sum(), 1)


@every_form
def test_both_forms_of_weights_make_one_gradient(g):
    p = problem("mse", hidden=(40, 30), K=3, Q=2)
    found = {}
    for weights in ("dense", "factored"):
        warp, params = warped(p, weights=weights, warp_activation=g)
        found[weights] = warp.meta_gradient(params, p.tasks).grad
        assert set(warp.maml.plan(p.tasks).forms) == {weights}
    assert_close(found["factored"], found["dense"], TIGHT)


# --- the doctor -------------------------------------------------------------------------------------


@pytest.mark.parametrize("g", ["identity", "silu"])
def test_the_doctor_names_what_goes_wrong_with_frozen_layers(g):
    p = problem("mse", n_out=7)
    warp, params = warped(p, S=3, warp_activation=g)
    doctor = Doctor(nm.Problem(warp.maml, params, p.tasks))
    out = warp.meta_gradient(params, p.tasks)
    assert doctor.diagnose(out.grad).verdict == "pass"
    for id in ("first_order", "frozen_adapted", "frozen_zero", "inner_ascent", "other_activation"):
        found = doctor.diagnose(FAULTS[id].predict(doctor.problem))
        assert (found.fault, found.ties) == (id, ()), str(found)
    # Said by somebody else: MAML in which all layers adapt.
    maml = nm.MAML(warp.network, "mse", 0.1, 3)
    assert doctor.diagnose(maml.meta_gradient(params, p.tasks).grad).fault == "frozen_adapted"
    left_out = out.grad.copy()
    for T, c in warp.network.unpack(left_out)[1::2]:
        T[...] = c[...] = 0
    assert doctor.diagnose(left_out).fault == "frozen_zero"


def test_the_doctor_knows_it_of_anil_too():
    p = problem("mse")
    maml = nm.algorithms.anil(p.model, "mse", 0.1, 2)
    everything = nm.MAML(p.model, "mse", 0.1, 2).meta_gradient(p.theta, p.tasks).grad
    found = nm.diagnose(nm.Problem(maml, p.theta, p.tasks), everything)
    assert found.fault == "frozen_adapted", str(found)


# --- options and errors -----------------------------------------------------------------------------


def test_options_make_it():
    def made(**values):
        return Config("sinusoid", {"algorithm": "warp", "hidden": [5], **values}).algorithm(1, 1)

    assert made().network.widths == (1, 5, 5, 1, 1)
    assert made().maml.inner_lr.tolist() == [[0.01, 0.0, 0.01, 0.0]]
    assert made(inner_lr=[0.1, 0.2], inner_lr_per="layer").inner_lr.tolist() == [[0.1, 0.2]]
    names = [f.name for f in made(warp_activation="tanh").network.activations]
    assert names == ["relu", "tanh", "identity"]
    assert made(learn_inner_lr=True).init(np.random.default_rng(0)).keys() == {"theta", "inner_lr"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": nm.MLP([2, 4, 1], norm="batch")}, "without normalisation or structure, got MLP"),
        ({"model": nm.MLP([2, 4, 1], structure=nm.Structure())}, "or structure, got MLP"),
        ({"model": nm.Quadratic(3)}, "without normalisation or structure, got"),
        ({"warp_activation": "tnah"}, "unknown activation 'tnah' .did you mean 'tanh'"),
        ({"inner_lr": [[0.1] * 4]}, r"inner_lr must be a number, \(2,\) per layer"),
        ({"inner_steps": -1}, "inner_steps must be a whole number of at least 0"),
        ({"weights": "thin"}, "unknown form of weights 'thin'"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Warp(**{"model": nm.MLP([2, 4, 1]), **options})


def test_learned_step_sizes_of_another_shape():
    p = problem("mse")
    warp, params = warped(p)
    with pytest.raises(ValueError, match=r"inner_lr must be a number, \(3,\) per layer"):
        warp.meta_gradient({**params, "inner_lr": np.full((1, 6), 0.1)}, p.tasks)


def test_whole_numbers_as_parameters_leave_step_sizes_as_they_are():
    p = problem("mse")
    warp, params = warped(p, learn_inner_lr=True)
    whole = {**params, "theta": np.ones(warp.network.n_params, dtype=int)}
    out = warp.meta_gradient(whole, p.tasks)
    expected = warp.meta_gradient({**whole, "theta": whole["theta"].astype(float)}, p.tasks)
    assert out.loss == expected.loss
    np.testing.assert_array_equal(out.grads["inner_lr"], expected.grads["inner_lr"])
