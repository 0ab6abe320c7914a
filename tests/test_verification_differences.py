"""Differences that say how far they can be trusted."""

import numpy as np
import pytest

from npmeta.verification import differentiate

SMOOTH = {
    "exp": (np.exp, np.exp),
    "sin of 7x": (lambda x: np.sin(7 * x), lambda x: 7 * np.cos(7 * x)),
    "1/(1 + x²)": (lambda x: 1 / (1 + x * x), lambda x: -2 * x / (1 + x * x) ** 2),
    "x³": (lambda x: x**3, lambda x: 3 * x * x),
    "a constant": (lambda x: np.full_like(x, 3.7), lambda x: 0 * x),
    "cos, large beside its slope": (lambda x: 1e6 + np.cos(x), lambda x: -np.sin(x)),
}


def at(f, x, v=1.0, **options):
    return differentiate(lambda t: f(x + t * v), np.ones_like(x), **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_functions(name, dtype):
    f, df = SMOOTH[name]
    x = np.random.default_rng(0).uniform(-1, 1, size=200).astype(dtype)
    found = at(f, x)
    off = np.abs(found.value - df(x.astype(float)))
    assert (off <= 10 * found.error).all()
    assert (np.abs(found.right - found.left) <= 10 * (found.gap_error + found.error)).all()
    if dtype == np.float64 and "large" not in name:
        assert off.max() <= 1e-11 * max(np.abs(df(x)).max(), 1)


def test_the_error_scales_with_the_function():
    """No absolute size: f times a power of 2 has value and error times that."""
    x = np.linspace(-1, 1, 20)
    one, many = at(np.sin, x), at(lambda x: 2.0**40 * np.sin(x), x)
    np.testing.assert_array_equal(many.value, 2.0**40 * one.value)
    np.testing.assert_array_equal(many.error, 2.0**40 * one.error)


def test_a_kink_shows_as_two_slopes():
    found = at(np.abs, np.zeros(1))
    assert found.left == -1
    assert found.right == 1
    assert (np.abs(found.right - found.left) > 10 * (found.gap_error + found.error)).all()


@pytest.mark.parametrize("distance", [0.3, 1e-2, 1e-4, 2e-6])
def test_a_kink_nearby_is_stepped_around(distance):
    found = at(lambda x: np.sin(x) + np.maximum(x - distance, 0), np.zeros(1))
    assert abs(found.value[0] - 1) <= 10 * found.error[0]
    assert found.error[0] <= 1e-7


def test_a_known_kink_is_kept_clear_of():
    reached = []

    def f(t):
        reached.append(np.abs(t).max())
        return np.abs(t - 0.01)

    differentiate(f, np.ones(1), reach=0.01)
    assert max(reached) == 0.005


def test_a_function_that_rounds_to_float32_within():
    def f(x):
        return np.sin(x.astype(np.float32)).astype(np.float64)

    x = np.random.default_rng(0).uniform(-1, 1, size=50)
    found = at(f, x)
    assert (np.abs(found.value - np.cos(x)) <= 10 * found.error).all()
    assert found.error.max() > 1e-6
