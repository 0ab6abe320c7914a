"""Checks of any function: right ones pass, every planted mistake fails, kinks are said to be kinks."""

import numpy as np
import pytest

import npmeta as nm
from npmeta.verification import (
    Verdict,
    check_batched,
    check_deterministic,
    check_gradient,
    check_hvp,
    check_taylor,
)
from tests.helpers import problem

A = np.random.default_rng(0).normal(size=(12, 12))
A = A @ A.T
X = np.random.default_rng(1).normal(size=12)


def f(x):
    return x @ A @ x / 2 + np.sin(x).sum(), A @ x + np.cos(x)


def f_hvp(x, v):
    return A @ v - np.sin(x) * v


def f_named(x):
    """A network of one unit with its parameters by name."""
    u = np.linspace(-1, 1, 7)[:, None] * np.ones(3)
    h = np.tanh(u @ x["W"] + x["b"])
    value = (h @ x["w"]).sum()
    delta = (1 - h**2) * x["w"]
    return value, {"W": u.T @ delta, "b": delta.sum(0), "w": h.sum(0)}


NAMED = {
    "W": np.random.default_rng(2).normal(size=(3, 3)),
    "b": np.random.default_rng(3).normal(size=3),
    "w": np.random.default_rng(4).normal(size=3),
}


def changed(function, change):
    """The function with something done to its gradient."""

    def wrong(x):
        value, gradient = function(x)
        return value, change(gradient)

    return wrong


def nudged(gradient):
    return np.r_[gradient[:-1], gradient[-1] + 1e-6 * np.linalg.norm(gradient)]


# --- what is right passes ---------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-300, 1e-6, 1.0, 1e6, 1e150])
def test_a_right_gradient_passes_at_every_scale(scale):
    def scaled(x):
        value, gradient = f(x)
        return scale * value, scale * gradient

    report = check_gradient(scaled, X)
    assert report.passed, report
    assert report["x"].relative_bar < 1e-10
    assert check_hvp(scaled, lambda x, v: scale * f_hvp(x, v), X).passed
    assert check_taylor(scaled, X).passed
    for wrong in (lambda x, v: 0.999 * scale * f_hvp(x, v), lambda x, v: 0 * v):
        assert check_hvp(scaled, wrong, X)["x"].verdict is Verdict.FAIL
    assert check_gradient(changed(scaled, lambda g: 0.999 * g), X).verdict is Verdict.FAIL


def test_float32_passes_with_a_wider_bar():
    def single(x):
        assert x.dtype == np.float32
        return np.float32(np.sin(x).sum()), np.cos(x)

    x = X.astype(np.float32)
    report = check_gradient(single, x)
    assert report.passed, report
    assert 1e-6 < report["x"].relative_bar < 1e-2
    assert not check_gradient(changed(single, lambda g: 1.05 * g), x).passed


def test_a_function_that_is_float32_within_passes_too():
    def within(x):
        x = x.astype(np.float32)
        return float(np.sin(x).sum()), np.cos(x).astype(np.float64)

    assert check_gradient(within, X).passed
    assert check_gradient(within, X, precision=np.float32).passed


def test_blocks_by_name_or_in_a_list():
    report = check_gradient(f_named, NAMED)
    assert report.passed, report
    assert [finding.name for finding in report.findings] == ["W", "b", "w"]

    def listed(x):
        value, gradient = f_named(dict(zip("Wbw", x, strict=True)))
        return value, list(gradient.values())

    report = check_gradient(listed, list(NAMED.values()))
    assert report.passed, report
    assert [finding.name for finding in report.findings] == ["0", "1", "2"]


def test_a_block_that_nothing_depends_on():
    """A dead unit's gradient is zero, and no size of its own says how exactly."""

    def dead(x):
        value, gradient = f(x["a"])
        return value, {"a": gradient, "b": 0 * x["b"]}

    x = {"a": X, "b": np.ones(3)}
    report = check_gradient(dead, x)
    assert report.passed, report
    alive = changed(dead, lambda g: {"a": g["a"], "b": g["b"] + 1e-3})
    assert check_gradient(alive, x)["b"].verdict is Verdict.FAIL


def test_hessian_products_and_slopes():
    report = check_hvp(f, f_hvp, X)
    assert report.passed, report
    assert [finding.name for finding in report.findings] == ["x", "symmetry", "linearity"]
    report = check_taylor(f, X, f_hvp)
    assert report.passed, report
    assert report.numbers["slope of order 1"] == pytest.approx(2, abs=0.1)
    assert report.numbers["slope of order 2"] == pytest.approx(3, abs=0.1)
    assert set(report.curves) == {"h", "0", "1", "2"}


def test_a_linear_function_leaves_nothing():
    report = check_taylor(lambda x: (x.sum(), np.ones_like(x)), X)
    assert report.passed, report
    assert np.isnan(report.numbers["slope of order 1"])


# --- what is wrong fails ----------------------------------------------------------------------------

WRONG = {
    "sign": lambda g: -g,
    "twice": lambda g: 2 * g,
    "zeros": lambda g: 0 * g,
    "reversed": lambda g: g[::-1],
    "one entry missing": lambda g: np.r_[g[:-1], 0],
    "a millionth": lambda g: g * (1 + 1e-6),
    "a millionth, in one entry": nudged,
    "not a number": lambda g: np.r_[g[:-1], np.nan],
}


@pytest.mark.parametrize("mistake", WRONG)
@pytest.mark.parametrize("check", [check_gradient, check_taylor])
def test_a_wrong_gradient_fails(mistake, check):
    report = check(changed(f, WRONG[mistake]), X)
    assert report.verdict is Verdict.FAIL, report


def test_a_wrong_gradient_has_slope_one():
    report = check_taylor(changed(f, lambda g: 1.01 * g), X)
    assert report.numbers["slope of order 1"] == pytest.approx(1, abs=0.1)


def test_the_wrong_block_is_named():
    for name in NAMED:
        wrong = changed(f_named, lambda g, name=name: {**g, name: 1.001 * g[name]})
        failed = [f.name for f in check_gradient(wrong, NAMED).findings if f.verdict is Verdict.FAIL]
        assert failed == [name]


def test_a_transposed_block_fails():
    wrong = changed(f_named, lambda g: {**g, "W": g["W"].T})
    assert check_gradient(wrong, NAMED)["W"].verdict is Verdict.FAIL


WRONG_PRODUCTS = {
    "half": (lambda x, v: f_hvp(x, v) / 2, {"x"}),
    "sign": (lambda x, v: -f_hvp(x, v), {"x"}),
    "a millionth": (lambda x, v: f_hvp(x, v) * (1 + 1e-6), {"x"}),
    "without curvature": (lambda x, v: A @ v, {"x"}),
    "not symmetric": (lambda x, v: np.triu(A) @ v - np.sin(x) * v, {"x", "symmetry"}),
    "not linear": (lambda x, v: f_hvp(x, v) * np.linalg.norm(v), {"x", "symmetry", "linearity"}),
}


@pytest.mark.parametrize("mistake", WRONG_PRODUCTS)
def test_a_wrong_hessian_product_fails(mistake):
    wrong, expected = WRONG_PRODUCTS[mistake]
    report = check_hvp(f, wrong, X)
    failed = {finding.name for finding in report.findings if finding.verdict is Verdict.FAIL}
    assert failed == expected, report


def test_a_halved_hessian_has_slope_two():
    report = check_taylor(f, X, lambda x, v: f_hvp(x, v) / 2)
    assert report.verdict is Verdict.FAIL
    assert report["gradient"].verdict is Verdict.PASS
    assert report.numbers["slope of order 2"] == pytest.approx(2, abs=0.1)


# --- kinks ------------------------------------------------------------------------------------------


def relu_sum(x):
    return np.maximum(x, 0).sum(), (x > 0).astype(float)


@pytest.mark.parametrize("at_zero", [0.0, 0.5, 1.0])
def test_at_a_kink_every_slope_in_between_is_left_open(at_zero):
    def subgradient(x):
        return np.maximum(x, 0).sum(), np.where(x == 0, at_zero, x > 0)

    report = check_gradient(subgradient, np.zeros(3))
    assert report.verdict is Verdict.INCONCLUSIVE, report
    assert "a kink here" in report["x"].reason
    assert check_taylor(subgradient, np.zeros(3)).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("at_zero", [-1.0, 2.0])
def test_what_no_side_of_a_kink_has_fails(at_zero):
    def no_slope(x):
        return np.maximum(x, 0).sum(), np.where(x == 0, at_zero, x > 0)

    report = check_gradient(no_slope, np.zeros(3))
    assert report.verdict is Verdict.FAIL, report


@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-6, 1e-7, 1e-8, 1e-9, 1e-12])
def test_near_a_kink(distance):
    x = np.array([1.0, -2.0, distance, -distance, 0.5, 3.0])
    report = check_gradient(relu_sum, x)
    if distance > 5e-7:  # nearer than some of the shortest steps, its slopes cannot be told apart
        assert report.passed, report
        assert check_gradient(changed(relu_sum, lambda g: 1 - g), x).verdict is Verdict.FAIL
    assert report.verdict is not Verdict.FAIL, report


def test_a_hessian_product_at_a_kink_is_left_open():
    def half_square(x):
        return (np.maximum(x, 0) ** 2).sum() / 2, np.maximum(x, 0)

    def hvp(x, v):
        return (x > 0) * v

    report = check_hvp(half_square, hvp, np.zeros(3))
    assert report["x"].verdict is Verdict.INCONCLUSIVE, report
    assert check_hvp(half_square, hvp, X).passed


# --- batches and repetition -------------------------------------------------------------------------


def test_batched_is_looped():
    p = problem("cross_entropy", T=5)
    maml = nm.MAML(p.model, p.loss, 0.1, 2)

    def function(theta, tasks):
        out = maml.meta_gradient(theta, tasks)
        return out.loss, out.grad

    assert check_batched(function, p.theta, p.tasks).passed
    assert check_batched(function, p.theta.astype(np.float32), p.tasks).passed

    def summed(theta, tasks):
        value, gradient = function(theta, tasks)
        return value, gradient * len(tasks)

    def last_alone(theta, tasks):
        return function(theta, tasks[-1:])

    for wrong in (summed, last_alone):
        assert check_batched(wrong, p.theta, p.tasks).verdict is Verdict.FAIL


def test_repetition():
    assert check_deterministic(f, X).passed
    rng = np.random.default_rng(0)
    noisy = changed(f, lambda g: g * (1 + 1e-16 * rng.integers(-3, 3, size=g.shape)))
    report = check_deterministic(noisy, X)
    assert report.verdict is Verdict.FAIL
    assert report["value"].verdict is Verdict.PASS


# --- input ------------------------------------------------------------------------------------------


def test_a_gradient_of_another_shape_is_refused():
    """(12, 1) for (12,) would broadcast, and a checker that loops over it would visit nothing."""
    with pytest.raises(ValueError, match="the gradient must have the shapes of x"):
        check_gradient(changed(f, lambda g: g[:, None]), X)
    with pytest.raises(ValueError, match="the gradient must have the shapes of x"):
        check_gradient(changed(f_named, lambda g: {"W": g["W"]}), NAMED)
    with pytest.raises(ValueError, match=r"must return \(value, gradient\)"):
        check_gradient(lambda x: x.sum(), X)
    with pytest.raises(ValueError, match="x must be finite"):
        check_gradient(f, X * np.inf)
    with pytest.raises(ValueError, match="x must hold real numbers"):
        check_gradient(f, X + 0j)


def test_a_report_reads_like_a_table():
    wrong = changed(f_named, lambda g: {**g, "b": -g["b"]})
    text = str(check_gradient(wrong, NAMED))
    lines = text.splitlines()
    assert lines[0] == "FAIL: gradient against differences of the value, float64"
    assert lines[1].split() == ["block", "error", "bar", "size"]
    assert [line.split()[0] for line in lines[2:]] == ["W", "b", "w"]
    assert "FAIL" in lines[3]
    assert "times the bar" in lines[3]
    assert not any("FAIL" in line for line in (lines[2], lines[4]))
