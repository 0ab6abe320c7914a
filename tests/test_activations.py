"""Every activation: values against an independent formula, both derivatives by complex step."""

import warnings

import numpy as np
import pytest
from scipy import special, stats

from npmeta.network import activations
from npmeta.network.activations import ACTIVATIONS, Activation, elu, leaky_relu

H = 1e-30

# Written with other functions than the code's, so that a common slip is unlikely: (f, f', f'').
REFERENCE = {
    "identity": (lambda z: z, np.ones_like, np.zeros_like),
    "relu": (lambda z: (z + np.abs(z)) / 2, lambda z: np.heaviside(z, 0), np.zeros_like),
    "leaky_relu": (
        lambda z: 0.505 * z + 0.495 * np.abs(z),
        lambda z: 0.01 + 0.99 * np.heaviside(z, 0),
        np.zeros_like,
    ),
    "elu": (
        lambda z: np.piecewise(z, [z > 0], [lambda t: t, lambda t: np.exp(t) - 1]),
        lambda z: np.piecewise(z, [z > 0], [1, np.exp]),
        lambda z: np.piecewise(z, [z > 0], [0, np.exp]),
    ),
    "tanh": (
        lambda z: 2 * special.expit(2 * z) - 1,
        lambda z: 1 / np.cosh(z) ** 2,
        lambda z: -2 * np.sinh(z) / np.cosh(z) ** 3,
    ),
    "sigmoid": (
        special.expit,
        lambda z: 1 / (4 * np.cosh(z / 2) ** 2),
        lambda z: -np.tanh(z / 2) / (4 * np.cosh(z / 2) ** 2),
    ),
    "softplus": (
        lambda z: np.logaddexp(0, z),
        special.expit,
        lambda z: 1 / (4 * np.cosh(z / 2) ** 2),
    ),
    "gelu": (
        lambda z: z * (1 + special.erf(z / np.sqrt(2))) / 2,
        lambda z: stats.norm.cdf(z) + z * stats.norm.pdf(z),
        lambda z: (2 - z**2) * stats.norm.pdf(z),
    ),
    "silu": (
        lambda z: z * special.expit(z),
        lambda z: (1 + np.tanh(z / 2)) / 2 + z / (4 * np.cosh(z / 2) ** 2),
        lambda z: (2 - z * np.tanh(z / 2)) / (4 * np.cosh(z / 2) ** 2),
    ),
    "sin": (np.sin, np.cos, lambda z: -np.sin(z)),
}

EVERY = [
    *(pytest.param(f, id=name) for name, f in ACTIVATIONS.items()),
    pytest.param(leaky_relu(0.2), id="leaky_relu(0.2)"),
    pytest.param(elu(0.7), id="elu(0.7)"),
]

# Both sides of every kink but not the kinks; saturation; and numbers that no formula rounds away.
Z = np.concatenate([np.linspace(-6, 6, 241) + 0.0123, [-30.0, -17.3, -1e-8, 1e-8, 17.3, 30.0]])


def derivatives(f: Activation, z: np.ndarray):
    a = f.f(z)
    return a, f.df(z, a), np.zeros_like(z) if f.d2f is None else f.d2f(z, a)


@pytest.mark.parametrize("f", EVERY)
def test_derivatives_by_complex_step(f):
    value, slope, curvature = derivatives(f, Z)
    moved = Z + 1j * H
    complex_value = f.f(moved)
    complex_slope = f.df(moved, complex_value)
    # Slopes are of order 1, and each of the two ways rounds a handful of operations (1e-16 each).
    np.testing.assert_allclose(complex_value.imag / H, slope, rtol=4e-15, atol=4e-15)
    np.testing.assert_allclose(complex_slope.imag / H, curvature, rtol=4e-15, atol=4e-15)
    np.testing.assert_allclose(complex_value.real, value, rtol=4e-15, atol=4e-15)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_against_reference_formulas(name):
    assert set(REFERENCE) == set(ACTIVATIONS), "every activation needs a reference here"
    for ours, reference in zip(derivatives(ACTIVATIONS[name], Z), REFERENCE[name], strict=True):
        # Where the function is tiny (a tail), the reference loses relative digits, not absolute ones.
        np.testing.assert_allclose(ours, reference(Z), rtol=4e-15, atol=4e-15)


@pytest.mark.parametrize("f", EVERY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_out(f, dtype):
    z = np.array([-1e30, -1e4, -1e2, 0, 1e2, 1e4, 1e30], dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for values in derivatives(f, z):
            assert values.dtype == dtype
            assert values.shape == z.shape
            assert np.isfinite(values).all()
    # None grows faster than its input (gelu and silu dip a little below 0), or is steeper than ~1.13.
    value, slope, _ = derivatives(f, z)
    assert (np.abs(value) <= np.abs(z) * 1.01 + 1).all()
    assert (np.abs(slope) <= 1.2).all()


@pytest.mark.parametrize("f", EVERY)
def test_float32_is_float64_rounded(f):
    z = Z[np.abs(Z) < 7].astype(np.float32)
    for single, double in zip(derivatives(f, z), derivatives(f, z.astype(float)), strict=True):
        assert single.dtype == np.float32
        # A few roundings of 6e-8 on numbers of order 1 (gelu and silu: of order |z| = 6).
        np.testing.assert_allclose(single, double, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("f", EVERY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_shape_and_dtype_are_kept(f, dtype):
    z = Z[:12].reshape(2, 3, 2).astype(dtype)
    for values in derivatives(f, z):
        assert values.dtype == dtype
        assert values.shape == z.shape


@pytest.mark.parametrize("f", EVERY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_does_not_vanish(f, dtype):
    z = np.array([np.nan, 1.0], dtype)
    value = f.f(z)
    assert np.isnan(value[0])
    assert np.isfinite(value[1])


@pytest.mark.parametrize(
    ("f", "slope", "curvature"),
    [
        (ACTIVATIONS["relu"], 0.0, 0.0),
        (ACTIVATIONS["leaky_relu"], 0.01, 0.0),
        (leaky_relu(0.3), 0.3, 0.0),
        (ACTIVATIONS["elu"], 1.0, 1.0),
        (elu(0.7), 0.7, 0.7),
    ],
    ids=lambda value: value.name if isinstance(value, Activation) else "",
)
def test_at_a_kink_the_left_limit(f, slope, curvature):
    assert f.kinks == (0.0,)
    for zero in (0.0, -0.0):
        _, at_kink, curved = derivatives(f, np.array([zero]))
        assert at_kink[0] == slope
        assert curved[0] == curvature
    left = np.array([-1e-12])
    assert derivatives(f, left)[1][0] == pytest.approx(slope, rel=1e-11)


@pytest.mark.parametrize("f", EVERY)
@pytest.mark.parametrize("h", [H, -H])
def test_a_complex_step_from_zero_sees_the_documented_derivative(f, h):
    # A network whose biases begin at 0 has pre-activations of exactly 0 behind a dead row; there,
    # too, complex steps must judge the derivative in use, whatever the sign of the step.
    zero = np.zeros(1)
    _, slope, curvature = derivatives(f, zero)
    moved = zero + 1j * h
    value = f.f(moved)
    np.testing.assert_allclose(value.imag / h, slope, rtol=1e-15)
    np.testing.assert_allclose(f.df(moved, value).imag / h, curvature, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("f", EVERY)
def test_curvature_is_left_out_only_where_it_is_zero(f):
    if f.d2f is None:
        slope = f.df(Z, f.f(Z))
        assert len(np.unique(slope)) <= 2
    else:
        assert np.abs(f.d2f(Z, f.f(Z))).max() > 0.05


@pytest.mark.parametrize("f", EVERY)
def test_inputs_are_not_written_to(f):
    z = Z.copy()
    value = f.f(z)
    kept = value.copy()
    f.df(z, value)
    if f.d2f:
        f.d2f(z, value)
    np.testing.assert_array_equal(z, Z)
    np.testing.assert_array_equal(value, kept)


def test_get():
    own = Activation("square", np.square, lambda z, a: 2 * z, lambda z, a: np.full_like(z, 2))
    assert activations.get(own) is own
    for name, f in ACTIVATIONS.items():
        assert f.name == name
        assert activations.get(name) is f


@pytest.mark.parametrize(
    ("name", "nearest"), [("relo", "relu"), ("tahn", "tanh"), ("Sigmoid", "sigmoid"), ("lrelu", "relu")]
)
def test_a_misspelt_name_hears_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=rf"unknown activation '{name}' \(did you mean '{nearest}'"):
        activations.get(name)


@pytest.mark.parametrize("name", ["", "zzzzzz", None, 3])
def test_an_unknown_name_hears_all_of_them(name):
    with pytest.raises(ValueError, match="known: identity, relu, leaky_relu, elu"):
        activations.get(name)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softplus", "silu"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_saturated_slopes_are_right_relative_to_themselves(name, dtype):
    """A layer far out has small gradients; they are no less exact."""
    f = ACTIVATIONS[name]
    z = np.array([3.0, 6.0, 8.0, 11.0], dtype)
    wide = z.astype(np.longdouble)
    e = np.exp(-wide)
    slopes = {
        "tanh": 4 * np.exp(-2 * wide) / (1 + np.exp(-2 * wide)) ** 2,
        "sigmoid": e / (1 + e) ** 2,
        "softplus": 1 / (1 + e),
        "silu": 1 / (1 + e) + wide * e / (1 + e) ** 2,
    }
    # The exponential of z has z times the relative error of z.
    np.testing.assert_allclose(f.df(z, f.f(z)), slopes[name], rtol=50 * np.finfo(dtype).eps)
