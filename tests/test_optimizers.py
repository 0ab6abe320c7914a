"""Outer optimizers against their textbook recursions; schedules; clipping."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npmeta.bilevel import optimizers
from npmeta.bilevel.optimizers import Adam, Momentum, Sgd, clip_by_global_norm


def run(optimizer, gradients, lr=0.1, dtype=np.float64):
    params = {"theta": np.array([1.0, -2.0], dtype=dtype), "inner_lr": np.array(0.5, dtype=dtype)}
    state = optimizer.init(params)
    for g in gradients:
        grads = {"theta": np.asarray(g, dtype=dtype), "inner_lr": np.asarray(g[0], dtype=dtype)}
        params, state = optimizer.update(params, grads, state, lr)
    return params, state


GRADIENTS = [[0.3, -1.0], [2.0, 0.1], [-0.7, 0.0]]


def test_sgd_subtracts_the_gradient():
    params, _ = run(Sgd(), GRADIENTS)
    np.testing.assert_allclose(params["theta"], [1 - 0.16, -2 + 0.09], rtol=1e-15)
    np.testing.assert_allclose(params["inner_lr"], 0.5 - 0.16, rtol=1e-15)


def test_momentum_sums_a_geometric_series():
    # θ_3 = θ_0 − η Σ_k m_k, and m_k = Σ_{j≤k} β^{k−j} g_j.
    g, beta = np.array(GRADIENTS), 0.9
    m = [sum(beta ** (k - j) * g[j] for j in range(k + 1)) for k in range(3)]
    params, _ = run(Momentum(beta), GRADIENTS)
    np.testing.assert_allclose(params["theta"], np.array([1.0, -2.0]) - 0.1 * sum(m), rtol=1e-14)


def test_adam_is_algorithm_1_of_its_paper():
    theta, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    for t, g in enumerate(np.array(GRADIENTS), start=1):
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
        theta = theta - 0.1 * m_hat / (np.sqrt(v_hat) + 1e-8)
    params, state = run(Adam(), GRADIENTS)
    # Two orders of the same dozen operations.
    np.testing.assert_allclose(params["theta"], theta, rtol=1e-14)
    assert int(state["count"]) == 3


def test_adams_first_step_is_the_sign_of_the_gradient():
    params, _ = run(Adam(), [[1e-3, -1e3]])
    # eps = 1e-8 against a gradient of 1e-3.
    np.testing.assert_allclose(params["theta"], [0.9, -1.9], rtol=2e-6)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arguments_stay_and_dtypes_stay(name, dtype):
    optimizer = optimizers.get(name)
    params = {"theta": np.ones(3, dtype=dtype)}
    grads = {"theta": np.full(3, 0.5, dtype=dtype)}
    state = optimizer.init(params)
    before = {key: value.copy() for key, value in state.items()}
    new, kept = optimizer.update(params, grads, state, 0.1)
    assert new["theta"].dtype == dtype
    assert (params["theta"] == 1).all()
    assert (grads["theta"] == 0.5).all()
    assert all((state[key] == before[key]).all() for key in state)
    assert set(kept) == set(state)
    assert all(kept[key].dtype == state[key].dtype for key in kept)


def test_unknown_optimizer_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'adam'"):
        optimizers.get("adma")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Momentum(1.0), r"beta must be a number in \[0, 1\)"),
        (lambda: Adam(beta2=-0.1), r"beta2 must be a number in \[0, 1\)"),
        (lambda: Adam(eps=0.0), "eps must be positive"),
        (lambda: optimizers.step(0), "every must be a whole number of at least 1"),
        (lambda: optimizers.step(10, 0.0), "factor must be positive"),
        (lambda: optimizers.cosine(0), "iterations must be a whole number of at least 1"),
        (lambda: optimizers.cosine(10, 1.5), "floor must be a number in"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_schedules():
    assert [optimizers.constant()(i) for i in (0, 10**6)] == [1.0, 1.0]
    halved = optimizers.step(10, 0.5)
    assert [halved(i) for i in (0, 9, 10, 25)] == [1.0, 1.0, 0.5, 0.25]
    falling = optimizers.cosine(100, 0.2)
    assert falling(0) == 1.0
    assert math.isclose(falling(50), 0.6)
    assert math.isclose(falling(100), 0.2)
    assert math.isclose(falling(1000), 0.2)  # beyond the end it stays there
    assert all(falling(i) > falling(i + 1) for i in range(100))


@given(
    st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=1, max_size=5),
    st.floats(1e-3, 1e3),
)
def test_clipping_keeps_the_direction_and_bounds_the_norm(values, max_norm):
    grads = {"a": np.array(values), "b": np.array(values[0])}
    flat = np.array([*values, values[0]])
    clipped, norm = clip_by_global_norm(grads, max_norm)
    together = np.append(clipped["a"], clipped["b"])
    assert math.isclose(norm, math.hypot(*flat), rel_tol=1e-12)  # which scales
    assert np.linalg.norm(together) <= max_norm * (1 + 1e-12)
    if norm <= max_norm:
        assert (together == flat).all()
    else:
        np.testing.assert_allclose(together * norm, flat * max_norm, rtol=1e-12, atol=1e-12 * max_norm)


def test_the_norm_of_large_float32_gradients_does_not_overflow():
    _, norm = clip_by_global_norm({"theta": np.full(4, 1e30, dtype=np.float32)}, None)
    assert math.isclose(norm, 2e30, rel_tol=1e-6)


@pytest.mark.parametrize("number", [float, np.float64, np.asarray])
def test_numbers_of_any_kind_leave_float32_alone(number):
    params = {"theta": np.ones(3, np.float32), "inner_lr": np.asarray(0.1, np.float32)}
    grads = {"theta": np.full(3, 0.5, np.float32), "inner_lr": np.asarray(2.0, np.float32)}
    clipped, _ = clip_by_global_norm(grads, number(0.1))
    for optimizer in (Sgd(), Momentum(number(0.9)), Adam(number(0.9), number(0.99), number(1e-8))):
        new, state = optimizer.update(params, clipped, optimizer.init(params), 0.1)
        for name, array in (*new.items(), *state.items()):
            assert isinstance(array, np.ndarray)
            assert name == "count" or array.dtype == np.float32
