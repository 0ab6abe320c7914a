"""The inner loop and its adjoint: step sizes as they are read, and <λ_0, v> = <λ_S, dφ_S v>."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import npmeta as nm
from npmeta.bilevel.adaptation import StepSizes, adapt, inner_loop, pull_back
from npmeta.network.spaces import flatten
from tests.helpers import (
    KINDS,
    H,
    assert_close,
    per_step_and_parameter,
    problem,
    problems,
    step_sizes,
)

FLOAT64 = np.dtype(np.float64)
MODEL = nm.MLP([2, 3, 4, 1])  # L = 3 layers of 9, 16 and 5 parameters: P = 30
L, P, S = 3, 30, 5
RISK = nm.Risk(MODEL, "mse")


def written_out(alpha: StepSizes, objective, n_steps) -> np.ndarray:
    """Step sizes as what they multiply a point of ones to, ``(n_steps, P)``."""
    ones = objective.hold(np.ones(objective.n_params))
    return np.array(
        [
            flatten([block.scaled(scale) for block, scale in zip(ones, alpha[s], strict=True)])
            for s in range(n_steps)
        ]
    )


def flat(point, T) -> np.ndarray:
    values = flatten(point)
    return np.broadcast_to(values, (T, values.shape[-1]))


# --- step sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_steps", [0, 1, 2, 5])
def test_every_kind_is_read_as_documented(kind, n_steps):
    values = step_sizes(kind, MODEL, n_steps, np.random.default_rng(0))
    alpha = StepSizes(values, RISK, n_steps, FLOAT64)
    expected = per_step_and_parameter(values, kind, MODEL, n_steps)
    np.testing.assert_array_equal(written_out(alpha, RISK, n_steps).reshape(-1, P), expected)


def test_one_axis_is_read_where_there_is_one_reading():
    per_layer, per_step = np.array([0.1, 0.2, 0.3]), np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    np.testing.assert_array_equal(
        written_out(StepSizes(per_layer, RISK, S, FLOAT64), RISK, S),
        np.tile(np.repeat(per_layer, MODEL.layer_sizes), (S, 1)),
    )
    np.testing.assert_array_equal(
        written_out(StepSizes(per_step, RISK, S, FLOAT64), RISK, S),
        np.repeat(per_step[:, None], P, axis=1),
    )
    per_parameter = np.arange(30) / 100
    np.testing.assert_array_equal(
        written_out(StepSizes(per_parameter, RISK, S, FLOAT64), RISK, S), np.tile(per_parameter, (S, 1))
    )
    # One step: (1,) is one per step.
    np.testing.assert_array_equal(
        written_out(StepSizes([0.1], RISK, 1, FLOAT64), RISK, 1), np.full((1, P), 0.1)
    )


def test_a_shape_with_two_readings_is_refused_until_written_out():
    values = np.array([0.1, 0.2, 0.3])
    with pytest.raises(
        ValueError,
        match=r"shape \(3,\) could be one per step or one per layer; .* \(1, 3\) or \(3, 1\)",
    ):
        StepSizes(values, RISK, 3, FLOAT64)
    per_layer = StepSizes(values[None], RISK, 3, FLOAT64)
    per_step = StepSizes(values[:, None], RISK, 3, FLOAT64)
    np.testing.assert_array_equal(
        written_out(per_layer, RISK, 3)[0], written_out(per_layer, RISK, 3)[2]
    )
    np.testing.assert_array_equal(written_out(per_layer, RISK, 1)[0, [0, 9, 25]], values)
    np.testing.assert_array_equal(written_out(per_step, RISK, 3)[:, 7], values)
    # On a plain vector a layer is the whole vector, and P = S is the pair that can be confused.
    with pytest.raises(ValueError, match=r"one per parameter; .* \(1, 3\) or \(3, 1\)"):
        StepSizes(values, nm.Quadratic(3), 3, FLOAT64)
    np.testing.assert_array_equal(
        written_out(StepSizes(values, nm.Quadratic(3), 4, FLOAT64), nm.Quadratic(3), 1), [values]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_steps_beyond_the_last_use_its_sizes(kind):
    values = step_sizes(kind, MODEL, 2, np.random.default_rng(0))
    alpha = written_out(StepSizes(values, RISK, 2, FLOAT64), RISK, 6)
    np.testing.assert_array_equal(alpha[2:], np.tile(alpha[1], (4, 1)))
    if kind.startswith("step"):
        assert (alpha[0] != alpha[1]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("taken", [0, 1, 2, 5])
def test_collect_is_the_transpose_of_writing_out(kind, taken):
    rng = np.random.default_rng(0)
    values = step_sizes(kind, MODEL, 2, rng)
    alpha = StepSizes(values, RISK, 2, FLOAT64)
    derivatives = rng.normal(size=(taken, P))
    collected = alpha.collect(list(derivatives))
    assert collected.shape == values.shape
    expected = (derivatives * written_out(alpha, RISK, taken).reshape(taken, P)).sum()
    assert (collected * values).sum() == pytest.approx(expected, rel=1e-13, abs=1e-300)


def test_decay_times_step_sizes():
    for kind in KINDS:
        alpha = StepSizes(step_sizes(kind, MODEL, S, np.random.default_rng(0)), RISK, S, FLOAT64)
        assert alpha.times(0.0, 1) == [None] * L
        for s in range(S):
            ones = RISK.hold(np.ones(P))
            shrunk = flatten([W.scaled(by) for W, by in zip(ones, alpha.times(0.3, s), strict=True)])
            assert_close(shrunk, 0.3 * written_out(alpha, RISK, S)[s], 1e-15)


@pytest.mark.parametrize(
    "values", [np.ones(2), np.ones(4), np.ones((2, 1)), np.ones((5, 2)), np.ones((1, 1, 1)), np.ones(0)]
)
def test_shapes_that_are_none_of_the_readings(values):
    with pytest.raises(ValueError, match=r"inner_lr must be a number, \(3,\) per layer, \(5, 1\) per"):
        StepSizes(values, RISK, S, FLOAT64)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.nan, "inner_lr must be finite, but inner_lr is nan"),
        ([0.1, np.inf, 0.1], r"inner_lr must be finite, but inner_lr\[1\] is inf"),
        (0.1 + 1j, "inner_lr must be real numbers, got dtype complex128"),
        ("fast", "inner_lr must be real numbers, got dtype <U4"),
        (None, "inner_lr must be real numbers, got dtype object"),
    ],
)
def test_step_sizes_that_are_no_numbers(values, message):
    with pytest.raises(ValueError, match=message):
        StepSizes(values, RISK, S, FLOAT64)


# --- the inner loop -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_each_inner_step_is_its_formula(kind, decay):
    p = problem("cross_entropy")
    values = step_sizes(kind, p.model, 2, np.random.default_rng(0))
    written = per_step_and_parameter(values, kind, p.model, 2)
    alpha = StepSizes(values, p.risk, 2, FLOAT64)
    batch = p.risk.prepare(*p.support, FLOAT64)
    noise = 0.1 * np.random.default_rng(1).normal(size=(3, p.model.n_params))
    for phi in (p.theta, p.theta + noise):
        steps = inner_loop(p.risk, p.risk.hold(phi), batch, alpha, 2, decay)
        for s, (lin, point) in enumerate(steps):
            grad = p.risk.linearize(phi, *p.support).grad
            np.testing.assert_array_equal(lin.grad, grad)
            # Two or three roundings.
            assert_close(flatten(point), phi - written[s] * (grad + decay * phi), 1e-15)
            phi = flatten(point)


def test_adapt_keeps_every_point_and_linearization():
    p = problem("mse")
    alpha = StepSizes(0.1, p.risk, 3, FLOAT64)
    start = p.risk.hold(p.theta)
    path = adapt(p.risk, start, p.risk.prepare(*p.support, FLOAT64), alpha, 3)
    assert (len(path.weights), len(path.steps)) == (4, 3)
    assert path.weights[0] is start
    for s in range(3):
        phi = flat(path.weights[s], 3)
        assert_close(path.steps[s].grad, p.risk.linearize(phi, *p.support).grad, 1e-14)
        assert_close(flat(path.weights[s + 1], 3), phi - 0.1 * path.steps[s].grad, 1e-15)


def test_no_steps_leave_everything_as_it_is():
    p = problem("mse")
    alpha = StepSizes(0.1, p.risk, 0, FLOAT64)
    start = p.risk.hold(p.theta)
    path = adapt(p.risk, start, p.risk.prepare(*p.support, FLOAT64), alpha, 0)
    assert path.weights == [start]
    cotangent = p.risk.hold(np.ones((3, p.model.n_params)))
    pulled, by_step_size = pull_back(path, cotangent, alpha, with_step_sizes=True)
    assert pulled is cotangent
    assert by_step_size.shape == ()
    assert by_step_size == 0


# --- the adjoint ----------------------------------------------------------------------------------


def adapted(p, theta, values, n_steps, decay):
    """φ_S by the definition, ``(T, P)``, at complex theta ``(T, P)`` and step sizes ``(S, P)``."""
    phi = theta
    for s in range(n_steps):
        phi = phi - values[s] * (p.risk.linearize(phi, *p.support).grad + decay * phi)
    return phi


@settings(max_examples=60)
@given(
    p=problems(),
    kind=st.sampled_from(KINDS),
    n_steps=st.integers(0, 4),
    decay=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 2**32 - 1),
)
def test_pull_back_is_the_adjoint_of_the_differential(p, kind, n_steps, decay, seed):
    rng = np.random.default_rng(seed)
    T, n = len(p.tasks), p.model.n_params
    values = step_sizes(kind, p.model, n_steps, rng, size=0.05)
    alpha = StepSizes(values, p.risk, n_steps, FLOAT64)
    batch = p.risk.prepare(*p.support, FLOAT64)
    path = adapt(p.risk, p.risk.hold(p.theta), batch, alpha, n_steps, decay)

    # A cotangent that is no gradient, one for each task, and a direction for each.
    u, v = rng.normal(size=(2, T, n))
    pulled, by_step_size = pull_back(
        path, p.risk.hold(u), alpha, decay, first_order=False, with_step_sizes=True
    )
    written = per_step_and_parameter(values, kind, p.model, n_steps)
    moved = adapted(p, p.theta + 1j * H * v, written, n_steps, decay).imag / H
    left, right = (flat(pulled, T) * v).sum(-1), (u * moved).sum(-1)
    # Relative to the terms added up: a dozen roundings a step, a few dozen terms.
    scale = np.abs(flat(pulled, T) * v).sum(-1) + np.abs(u * moved).sum(-1)
    assert (np.abs(left - right) <= 1e-13 * scale).all()

    # The same for a direction in step sizes: their gradient is a mean over tasks.
    w = rng.normal(size=values.shape)
    along = per_step_and_parameter(w, kind, p.model, n_steps)
    theta = np.tile(p.theta, (T, 1))
    moved = adapted(p, theta, written + 1j * H * along, n_steps, decay).imag / H
    terms = u * moved
    # The terms −λ ∘ g of every step; those of one kind add up to (by_step_size * w).sum().
    scale = np.abs(terms).sum() + np.abs(by_step_size * w).sum()
    assert abs((by_step_size * w).sum() - terms.sum() / T) <= 1e-13 * scale


def test_first_order_leaves_the_cotangent_alone():
    p = problem("mse")
    values = step_sizes("layer", p.model, 3, np.random.default_rng(0))
    alpha = StepSizes(values, p.risk, 3, FLOAT64)
    batch = p.risk.prepare(*p.support, FLOAT64)
    path = adapt(p.risk, p.risk.hold(p.theta), batch, alpha, 3, 0.2)
    u = np.random.default_rng(1).normal(size=(3, p.model.n_params))
    pulled, none = pull_back(path, p.risk.hold(u), alpha, 0.2, first_order=True)
    np.testing.assert_array_equal(flatten(pulled), u)
    assert none is None
    # The derivative with respect to α with λ_{s+1} = λ_S in every step.
    _, by_layer = pull_back(path, p.risk.hold(u), alpha, 0.2, first_order=True, with_step_sizes=True)
    total = sum(-(u * (path.steps[s].grad + 0.2 * flat(path.weights[s], 3))).mean(0) for s in range(3))
    starts = np.cumsum([0, *p.model.layer_sizes[:-1]])
    assert_close(by_layer[0], np.add.reduceat(total, starts), 1e-14)


def test_shared_and_own_starting_points_agree():
    p = problem("cross_entropy")
    alpha = StepSizes(0.1, p.risk, 2, FLOAT64)
    batch = p.risk.prepare(*p.support, FLOAT64)
    u = p.risk.hold(np.random.default_rng(1).normal(size=(3, p.model.n_params)))
    results = []
    for theta in (p.theta, np.tile(p.theta, (3, 1))):
        path = adapt(p.risk, p.risk.hold(theta), batch, alpha, 2, 0.1)
        pulled, by_step_size = pull_back(path, u, alpha, 0.1, with_step_sizes=True)
        results.append((flat(path.weights[-1], 3), flat(pulled, 3), by_step_size))
    for shared, own in zip(*results, strict=True):
        assert_close(shared, own, 1e-13)


@pytest.mark.parametrize("first_order", [False, True])
def test_losses_at_earlier_points_join_the_cotangent_on_its_way(first_order):
    """λ_0 and the gradient of α are linear in them: as the adjoints of shorter loops, added up."""
    p = problem("cross_entropy")
    values = step_sizes("step_and_layer", p.model, 3, np.random.default_rng(0))
    alpha = StepSizes(values, p.risk, 3, FLOAT64)
    batch, query = p.risk.prepare(*p.support, FLOAT64), p.risk.prepare(*p.query, FLOAT64)
    path = adapt(p.risk, p.risk.hold(p.theta), batch, alpha, 3, 0.2)
    weights = {1: 0.5, 2: -2.0, 3: 1.0}
    outer = {s: p.risk.at(path.weights[s], query) for s in weights}

    def pulled(cotangent_of, **options):
        path_to, at = cotangent_of
        cotangent = [g.dense() for g in at.gradient]
        lam, by_alpha = pull_back(
            path_to, cotangent, alpha, 0.2, first_order=first_order, with_step_sizes=True, **options
        )
        return flat(lam, 3), by_alpha

    joined = pulled((path, outer[3]), joining={s: (weights[s], outer[s].gradient) for s in (1, 2)})
    apart = [pulled((type(path)(path.weights[: s + 1], path.steps[:s]), outer[s])) for s in weights]
    for together, *parts in zip(joined, *apart, strict=True):
        expected = sum(v * part for v, part in zip(weights.values(), parts, strict=True))
        assert_close(together, expected, 1e-14)
