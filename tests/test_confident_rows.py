"""Losses of rows that are right and sure, or wrong and sure, beside exact arithmetic."""

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf

import npmeta as nm
from npmeta.network.losses import LOSSES, decisions
from npmeta.network.softmax import softmax, through_softmax

#: Enough for 1 beside exp(-2000).
DIGITS = 900

GAPS = [0.0, 1e-3, 1.0, 5.0, 15.0, 17.0, 18.0, 37.43, 80.0, 300.0, 700.0, 1000.0]
DTYPES = [np.float32, np.float64]


def exact_softmax(o):
    """The softmax of a row as mpmath numbers."""
    e = [mpmath.exp(mpf(float(value))) for value in o]
    return [value / mpmath.fsum(e) for value in e]


def exact_cross_entropy(o, y, u):
    """Value, gradient and Hessian product of one row, as mpmath numbers."""
    p = exact_softmax(o)
    y, u = [mpf(float(v)) for v in y], [mpf(float(v)) for v in u]
    value = -mpmath.fsum(t * mpmath.log(q) for t, q in zip(y, p, strict=True))
    pu = mpmath.fsum(q * v for q, v in zip(p, u, strict=True))
    gradient = [q - t for q, t in zip(p, y, strict=True)]
    return value, gradient, [q * (v - pu) for q, v in zip(p, u, strict=True)]


def assert_within(found, exact, units, scale=None):
    """Within so many units of rounding of exact numbers, each of its own size or of ``scale``.

    What is below the normal numbers of the dtype may be as far off as the smallest of these.
    """
    found = np.atleast_1d(found)
    info = np.finfo(found.dtype)
    for value, truth in zip(found.ravel(), np.atleast_1d(exact).ravel(), strict=True):
        size = abs(truth) if scale is None else scale
        away = abs(mpf(float(value)) - truth)
        assert away <= units * mpf(float(info.eps)) * size + mpf(float(info.tiny)), (value, truth)


def rounding_of(o, dtype):
    """Units that an exponential of a difference of logits has: that of the difference, times it."""
    spread = float(np.ptp(o))
    return 8 + len(o) + spread * (1 if dtype == np.float32 else 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("n", [2, 3, 100])
@pytest.mark.parametrize("label", ["sure", "another"])
def test_cross_entropy_keeps_its_tails(dtype, gap, n, label):
    o = np.zeros(n)
    o[0] = gap  # a difference of logits without rounding: what is measured is the loss
    o, y = o.astype(dtype), np.eye(n, dtype=dtype)[0 if label == "sure" else n - 1]
    u = np.linspace(-1, 2, n, dtype=dtype)
    with mpmath.workdps(DIGITS):
        value, gradient, product = exact_cross_entropy(o, y, u)
        loss = LOSSES["cross_entropy"](o[None, None], y[None, None])
        # exp of an argument that is exact, a sum of n terms, a quotient.
        assert_within(loss.value, value, 4 + n)
        assert_within(loss.gradient, gradient, 4 + n)
        # Of the smaller entries what counts is the size of the terms that make them up.
        largest = max(abs(v) for v in product)
        assert_within(loss.hessian_product(u[None, None]), product, 8 + 2 * n, largest)
    assert loss.value.dtype == loss.gradient.dtype == dtype


@given(st.integers(0, 2**32), st.sampled_from(DTYPES), st.floats(0, 3), st.booleans())
def test_cross_entropy_of_any_rows(seed, dtype, magnitude, soft):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 12))
    o = (10**magnitude * rng.uniform(-0.5, 0.5, n)).astype(dtype)
    y = np.eye(n)[rng.integers(n)]
    if soft:
        y = 0.75 * y + 0.25 * np.eye(n)[rng.integers(n)]
    y, u = y.astype(dtype), rng.normal(size=n).astype(dtype)
    with mpmath.workdps(DIGITS):
        value, gradient, product = exact_cross_entropy(o, y, u)
        loss = LOSSES["cross_entropy"](o[None, None], y[None, None])
        units = rounding_of(o, dtype)
        assert_within(loss.value, value, units)
        # p − y of a soft label is a difference of two numbers near each other: as the terms are.
        scales = [None] * n if not soft else [max(abs(g), mpf(1) / 4) for g in gradient]
        for i in range(n):
            assert_within(loss.gradient[..., i], [gradient[i]], units, scales[i])
        largest = max(abs(v) for v in product)
        assert_within(loss.hessian_product(u[None, None]), product, 2 * units, largest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [1.0, 15.0, 18.0, 37.43, 80.0, 300.0])
def test_hessians_of_confident_rows_are_symmetric(dtype, gap):
    o = np.array([[[gap, 0.0, -gap / 2, 0.5]]], dtype=dtype)
    loss = LOSSES["cross_entropy"](o, np.eye(4, dtype=dtype)[None, :1])
    H = np.stack([loss.hessian_product(e[None, None])[0, 0] for e in np.eye(4, dtype=dtype)])
    # Entry by entry, each with a few roundings of its own; none of them 0 where exp is not.
    np.testing.assert_allclose(H, H.T, rtol=32 * np.finfo(dtype).eps, atol=np.finfo(dtype).tiny)
    assert (H.diagonal() > 0).all() or np.exp(dtype(-1.5 * gap)) < np.finfo(dtype).tiny


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("y", [0.0, 1.0, 0.25])
def test_binary_cross_entropy_keeps_its_tails(dtype, sign, gap, y):
    o, y = dtype(sign * gap), dtype(y)
    with mpmath.workdps(DIGITS):
        p = 1 / (1 + mpmath.exp(-mpf(float(o))))
        t = mpf(float(y))
        value = -t * mpmath.log(p) - (1 - t) * mpmath.log(1 - p)
        loss = LOSSES["binary_cross_entropy"](np.full((1, 1, 1), o), np.full((1, 1, 1), y))
        assert_within(loss.value, [value], 8)
        assert_within(loss.gradient, [p - t], 8, None if y in (0, 1) else max(abs(p - t), mpf(1) / 4))
        assert_within(loss.hessian_product(np.ones((1, 1, 1), dtype)), [p * (1 - p)], 8)
        pair, slope, _ = decisions(np.full(1, o), np.full(1, y))
        assert_within(pair, [value], 8)
        assert_within(slope, [p - t], 8, None if y in (0, 1) else max(abs(p - t), mpf(1) / 4))
    assert loss.value.dtype == loss.gradient.dtype == pair.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [0.5, 15.0, 20.0, 40.0, 80.0])
def test_relation_scores_keep_their_tails(dtype, gap):
    relation = nm.algorithms.RelationNetwork(nm.MLP([2, 3]))
    o, y = np.array([[[gap, -gap]]], dtype=dtype), np.array([[[1, 0]]], dtype=dtype)
    value, gradient = relation.query_loss(o, y, y)
    with mpmath.workdps(DIGITS):
        q = 1 / (1 + mpmath.exp(mpf(float(dtype(gap)))))
        assert_within(value, [q * q], 16)
        slope = -q * q * (1 - q)
        assert_within(gradient, [slope, -slope], 16)


@pytest.mark.parametrize("gap", [1.0, 20.0, 40.0, 200.0])
def test_the_softmax_of_a_mixture_keeps_its_tails(gap):
    o, u = np.array([gap, 0.0, 1.0]), np.array([0.3, -1.0, 2.0])
    with mpmath.workdps(DIGITS):
        _, _, product = exact_cross_entropy(o, [1, 0, 0], u)
        assert_within(through_softmax(softmax(o), u), product, 32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gap", [1.0, 15.0, 18.0, 40.0, 80.0, 500.0])
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
@pytest.mark.parametrize("right", [True, False])
def test_checks_do_not_fail_on_networks_that_are_sure(dtype, gap, loss, right):
    rng = np.random.default_rng(0)
    model = nm.MLP([3, 5, 2], "tanh")
    (first, (W, b)) = model.unpack(model.init(rng))
    theta = model.pack([first, (0.1 * W, b + gap * np.array([0.5, -0.5]))]).astype(dtype)
    x = rng.normal(size=(6, 3)).astype(dtype)
    y = np.full(6, 0 if right else 1)
    if loss == "binary_cross_entropy":
        y = np.eye(2)[y]
    risk = nm.Risk(model, loss)

    def at(theta):
        return risk.linearize(theta, x[None], y[None])

    def value_and_gradient(theta):
        point = at(theta)
        return point.value[0], point.grad[0]

    def product(theta, v):
        return at(theta).hvp(v)[0]

    report = nm.verification.check_hvp(value_and_gradient, product, theta)
    assert report.verdict != "fail", str(report)
    if dtype == np.float32:  # beside the same function of the same numbers in float64
        wide = risk.linearize(theta.astype(float), x[None], y[None])
        v = np.linspace(-1, 1, theta.size, dtype=dtype)
        truth, found = wide.hvp(v.astype(float))[0], product(theta, v)
        # A few hundred roundings of numbers near gap, which the exponential multiplies by gap.
        bound = 32 * (8 + gap) * np.finfo(dtype).eps * np.linalg.norm(truth)
        assert np.linalg.norm(found - truth) <= bound + 64 * np.finfo(dtype).tiny


def test_decisions_agree_with_the_plain_formula_where_nothing_cancels():
    o, y = np.linspace(-3, 3, 13), np.linspace(0, 1, 13)
    value, residual, _ = decisions(o, y)
    p = 1 / (1 + np.exp(-o))
    np.testing.assert_allclose(value, -y * np.log(p) - (1 - y) * np.log(1 - p), rtol=1e-14)
    np.testing.assert_allclose(residual, p - y, atol=1e-15)
