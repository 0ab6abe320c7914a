"""Distances between rows: values, exact derivatives, and what happens where rows coincide."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from npmeta.network.distances import DISTANCES, weighted_l1
from tests.helpers import H, assert_close

# Two passes of a dozen roundings of 1e-16 each.
TIGHT = 1e-14

T, Q, C, d = 2, 3, 4, 5
W = np.array([0.5, 2.0, 0.0, 1.0, 0.1])

#: Every distance as a function of two sets of rows, the weighted one with weights of its own.
ALL = {**DISTANCES, "weighted_l1": lambda u, v: weighted_l1(u, v, W.astype(u.dtype))}
SCIPY = {"squared_euclidean": "sqeuclidean", "weighted_l1": "cityblock"}

every_distance = pytest.mark.parametrize("name", ALL)


def rows(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(T, Q, d)), rng.normal(size=(T, C, d))


def bars(seed=1):
    return np.random.default_rng(seed).normal(size=(T, Q, C))


def complex_steps(f, x):
    """d f(x) / dx for a real number f, entry by entry."""
    derivative = np.empty(x.size)
    for i in range(x.size):
        moved = x.astype(complex).ravel()
        moved[i] += 1j * H
        derivative[i] = f(moved.reshape(x.shape)).imag / H
    return derivative.reshape(x.shape)


@every_distance
def test_values_are_scipys(name):
    u, v = rows()
    for t, value in enumerate(ALL[name](u, v).value):
        options = {"w": W} if name == "weighted_l1" else {}
        assert_close(value, cdist(u[t], v[t], SCIPY.get(name, name), **options), TIGHT)


@every_distance
def test_derivatives_are_those_of_complex_steps(name):
    u, v = rows()
    bar = bars()
    u_bar, v_bar, *_ = ALL[name](u, v).pull_back(bar)
    assert_close(u_bar, complex_steps(lambda u: (bar * ALL[name](u, v).value).sum(), u), TIGHT)
    assert_close(v_bar, complex_steps(lambda v: (bar * ALL[name](u, v).value).sum(), v), TIGHT)


def test_the_weights_of_l1_have_derivatives():
    u, v = rows()
    bar = bars()
    _, _, w_bar = weighted_l1(u, v, W).pull_back(bar)
    assert_close(w_bar, complex_steps(lambda w: (bar * weighted_l1(u, v, w).value).sum(), W), TIGHT)


# --- at zero ----------------------------------------------------------------------------------------


@every_distance
def test_rows_that_coincide_are_at_distance_zero_and_stay(name):
    """Of all subgradients of a distance at 0 the one of least length is 0."""
    u, _ = rows()
    v = u[:, [1]]  # the second row of u, and no other
    at = ALL[name](u, v)
    assert np.abs(at.value[:, 1]).max() <= (1e-15 if name == "cosine" else 0)
    bar = np.zeros_like(at.value)
    bar[:, 1] = 3.0
    for pulled in at.pull_back(bar):
        assert np.abs(pulled).max() <= (1e-15 if name == "cosine" else 0)


@pytest.mark.parametrize("name", sorted(set(ALL) - {"cosine"}))
def test_a_subgradient_supports_the_distance(name):
    """Convex: d(u + h) ≥ d(u) + ⟨g, h⟩ for every h, where rows coincide as where they do not."""
    u, v = rows()
    v[:, 0] = u[:, 2]
    v[0, 1, :3] = u[0, 1, :3]  # coincide in some features
    at = ALL[name](u, v)
    rng = np.random.default_rng(2)
    for j in range(C):
        bar = np.zeros((T, Q, C))
        bar[:, :, j] = 1
        g = at.pull_back(bar)[0]
        for size in (1e-8, 1e-2, 1.0, 10.0):
            h = size * rng.normal(size=u.shape)
            ahead = ALL[name](u + h, v).value[:, :, j]
            assert (ahead >= at.value[:, :, j] + (g * h).sum(-1) - 1e-14).all()


@every_distance
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_is_ever_nan(name, dtype):
    u, v = (x.astype(dtype) for x in rows())
    v[:, 0] = u[:, 0]
    u[0, 1] = 0
    v[0, 1] = 0
    v[1, 2] = -u[1, 2]
    v[1, 3] = u[1, 1] + np.finfo(dtype).eps
    u[1, 0] = np.finfo(dtype).tiny  # whose squares are 0
    bar = bars().astype(dtype)
    value, pull_back = ALL[name](u, v)
    arrays = [value, *(pulled for pulled in pull_back(bar))]
    assert all(np.isfinite(array).all() for array in arrays)
    assert {array.dtype for array in arrays} == {np.dtype(dtype)}


def test_a_row_of_zeros_has_no_direction():
    u, v = np.zeros((1, 1, d)), np.ones((1, 2, d))
    at = DISTANCES["cosine"](u, v)
    np.testing.assert_array_equal(at.value, np.ones((1, 1, 2)))
    for pulled in at.pull_back(np.ones((1, 1, 2))):
        np.testing.assert_array_equal(pulled, np.zeros_like(pulled))


def test_rows_that_are_near_keep_their_digits():
    """|u|² + |v|² − 2 u·v would be rounding error here."""
    u = np.full((1, 1, d), 1000.0)
    v = u + 2.0**-20
    at = DISTANCES["euclidean"](u, v)
    assert_close(at.value, np.full((1, 1, 1), 2.0**-20 * np.sqrt(d)), TIGHT)
    assert_close(at.pull_back(np.ones((1, 1, 1)))[0], np.full((1, 1, d), -1 / np.sqrt(d)), TIGHT)


@pytest.mark.parametrize("name", ["cosine", "euclidean"])
@pytest.mark.parametrize(
    ("dtype", "exponent"), [(np.float64, 660), (np.float64, -660), (np.float32, 80), (np.float32, -80)]
)
def test_embeddings_of_any_size_have_distances(name, dtype, exponent):
    """In units of another power of 2 they are the same, bit for bit, where squares have no place."""
    rng = np.random.default_rng(0)
    u, v = (rng.normal(size=(2, n, 5)).astype(dtype) for n in (3, 4))
    scale = np.ldexp(dtype(1), exponent)
    at, far = DISTANCES[name](u, v), DISTANCES[name](u * scale, v * scale)
    of_unit = scale if name == "euclidean" else dtype(1)
    np.testing.assert_array_equal(far.value, at.value * of_unit)
    bar = rng.normal(size=at.value.shape).astype(dtype)
    for here, there in zip(at.pull_back(bar), far.pull_back(bar), strict=True):
        np.testing.assert_array_equal(there, here * (of_unit / scale))
