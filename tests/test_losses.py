"""Every loss: its value against an independent formula, its derivatives by complex step."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

import npmeta as nm
from npmeta.network import losses
from npmeta.network.losses import LOSSES, Loss, accuracy, huber
from tests.helpers import CLASS_LOSSES, H, assert_close, targets

T, ROWS, N = 3, 5, 4


def wrong_margins(o, y):
    """max(0, 1 + o_c − o_y) of the wrong classes, row by row with plain loops."""
    labels = y.argmax(-1)
    out = np.zeros(o.shape)
    for t, i, c in np.ndindex(o.shape):
        if c != labels[t, i]:
            out[t, i, c] = max(0.0, 1 + o[t, i, c] - o[t, i, labels[t, i]])
    return out


def reference_huber(o, y, delta=1.0):
    return special.huber(delta, o - y).mean((1, 2))


REFERENCE = {
    "mse": lambda o, y: np.square(o - y).mean((1, 2)),
    "huber": reference_huber,
    "cross_entropy": lambda o, y: special.logsumexp(o, axis=-1).mean(1) - (o * y).sum(-1).mean(1),
    "binary_cross_entropy": lambda o, y: (
        -(special.xlogy(y, special.expit(o)) + special.xlogy(1 - y, special.expit(-o))).mean((1, 2))
    ),
    "hinge": lambda o, y: wrong_margins(o, y).sum(-1).mean(1),
    "squared_hinge": lambda o, y: np.square(wrong_margins(o, y)).sum(-1).mean(1),
    "poisson_nll": lambda o, y: (np.exp(o) - y * o).mean((1, 2)),
}

EVERY = [
    *(pytest.param(loss, id=name) for name, loss in LOSSES.items()),
    pytest.param(huber(0.3), id="huber(0.3)"),
]


def outputs_and_targets(loss: Loss, seed=0, scale=2.0):
    """Outputs of all sizes around the losses' corners, and prepared targets."""
    rng = np.random.default_rng(seed)
    o = scale * rng.normal(size=(T, ROWS, N))
    y = targets(loss.name, rng, (T, ROWS), N)
    return o, loss.prepare(y, N, o.dtype)


def hessians(loss, o, y):
    """∂²ℓ/∂o² of each task as a matrix ``(T, rows·n, rows·n)``, from products with unit vectors."""
    product = loss(o, y).hessian_product
    n = o.shape[1] * o.shape[2]
    columns = [
        product(np.broadcast_to(e.reshape(1, *o.shape[1:]), o.shape)).reshape(len(o), n)
        for e in np.eye(n)
    ]
    return np.stack(columns, axis=-1)


def test_every_loss_has_a_reference():
    assert set(REFERENCE) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(4))
def test_value(name, seed):
    loss = LOSSES[name]
    o, y = outputs_and_targets(loss, seed)
    # Sums of twenty terms of order 1 to 10, each rounded a few times.
    assert_close(loss(o, y).value, REFERENCE[name](o, y), 1e-14)


def test_huber_of_another_border():
    o, y = outputs_and_targets(huber(0.3))
    assert_close(huber(0.3)(o, y).value, reference_huber(o, y, 0.3), 1e-14)
    # Far inside it is half of mse, far outside delta times the absolute error.
    o = np.array([[[0.1], [100.0]]])
    inside, outside = (huber(0.3)(o[:, i : i + 1], np.zeros((1, 1, 1))).value[0] for i in range(2))
    assert inside == pytest.approx(0.1**2 / 2, rel=1e-15)
    assert outside == pytest.approx(0.3 * (100 - 0.15), rel=1e-15)


@pytest.mark.parametrize("loss", EVERY)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.1, 1.0, 4.0]))
def test_gradient_by_complex_step(loss, seed, scale):
    o, y = outputs_and_targets(loss, seed, scale)
    at = loss(o, y)
    by_step = np.empty_like(o)
    for i, c in np.ndindex(ROWS, N):  # tasks are independent: one step serves all of them
        moved = o.astype(complex)
        moved[:, i, c] += 1j * H
        by_step[:, i, c] = loss(moved, y).value.imag / H
    assert_close(at.gradient, by_step, 1e-13)  # elementwise: a few roundings of 1e-16


@pytest.mark.parametrize("loss", EVERY)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.1, 1.0, 4.0]))
def test_hessian_product_by_complex_step_of_the_gradient(loss, seed, scale):
    o, y = outputs_and_targets(loss, seed, scale)
    u = np.random.default_rng(seed).normal(size=o.shape)
    product = loss(o, y).hessian_product(u)
    by_step = loss(o + 1j * H * u, y).gradient.imag / H
    assert_close(product, by_step, 1e-13)  # p ∘ u − p (p·u) cancels digits where p is one-sided


@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("value", [0.0, -0.0])
@pytest.mark.parametrize("h", [H, -H])
def test_complex_step_from_outputs_of_zero(loss, value, h):
    # A network whose last layer begins at zero is exactly here.
    o = np.full((1, 2, N), value)
    y = loss.prepare(targets(loss.name, np.random.default_rng(1), (1, 2), N), N, o.dtype)
    u = np.random.default_rng(2).normal(size=o.shape)
    at, moved = loss(o, y), loss(o + 1j * h * u, y)
    assert moved.value.imag[0] / h == pytest.approx((at.gradient * u).sum(), rel=1e-14)
    assert_close(at.hessian_product(u), moved.gradient.imag / h, 1e-14)


@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("seed", range(3))
def test_hessian_is_symmetric_linear_and_positive_semidefinite(loss, seed):
    o, y = outputs_and_targets(loss, seed)
    hessian = hessians(loss, o, y)
    scale = np.abs(hessian).max()
    assert np.abs(hessian - hessian.swapaxes(1, 2)).max() <= 1e-15 * scale
    # Eigenvalues of an exactly semidefinite matrix come out as negative as rounding makes them.
    assert np.linalg.eigvalsh(hessian).min() >= -1e-15 * scale
    if loss.name == "hinge":
        assert scale == 0
    else:
        assert scale > 0
    u = np.random.default_rng(seed).normal(size=o.shape)
    by_matrix = (hessian @ u.reshape(T, -1, 1)).reshape(u.shape)
    np.testing.assert_allclose(loss(o, y).hessian_product(u), by_matrix, rtol=0, atol=1e-14 * scale)


@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e4, 3.0, 0.0])
def test_finite_and_in_its_dtype(loss, dtype, size):
    rng = np.random.default_rng(0)
    o = (size * rng.choice([-1, 1], size=(T, ROWS, N))).astype(dtype)
    y = loss.prepare(targets(loss.name, rng, (T, ROWS), N), N, o.dtype)
    assert y.dtype == dtype
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        at = loss(o, y)
        product = at.hessian_product(np.ones_like(o))
    for values, shape in ((at.value, (T,)), (at.gradient, o.shape), (product, o.shape)):
        assert values.dtype == dtype
        assert values.shape == shape
        assert np.isfinite(values).all()


@pytest.mark.parametrize(
    ("name", "when_wrong"),
    [
        ("cross_entropy", 2e4),
        ("binary_cross_entropy", 1e4),
        ("hinge", 1 + 2e4),
        ("squared_hinge", (1 + 2e4) ** 2),
    ],
)
def test_the_limits_far_out(name, when_wrong):
    o = np.array([[[1e4, -1e4]]])
    right, wrong = np.array([[[1.0, 0.0]]]), np.array([[[0.0, 1.0]]])
    assert LOSSES[name](o, right).value[0] == 0
    assert LOSSES[name](o, wrong).value[0] == pytest.approx(when_wrong, rel=1e-15)


def test_poisson_continues_smoothly_beyond_its_largest_log_rate():
    loss, y = LOSSES["poisson_nll"], np.full((1, 1, 1), 2.0)

    def at(o):
        value, gradient, product = loss(np.full((1, 1, 1), o), y)
        return np.array([value[0], gradient[0, 0, 0], product(np.ones((1, 1, 1)))[0, 0, 0]])

    border = losses.MAX_LOG_RATE
    below, above = at(border * (1 - 1e-15)), at(border * (1 + 1e-15))
    np.testing.assert_allclose(below, above, rtol=1e-12)  # 50·1e-15 of a step, and exp has slope 1
    np.testing.assert_allclose(at(border), np.exp(50.0) - np.array([100.0, 2.0, 0.0]), rtol=1e-15)
    # Beyond: the Taylor polynomial of second order, whose third derivative is 0.
    t = 3.0
    expected = np.exp(50.0) * np.array([1 + t + t**2 / 2, 1 + t, 1.0])
    np.testing.assert_allclose(at(border + t), expected, rtol=1e-14)


@pytest.mark.parametrize("loss", EVERY)
@given(seed=st.integers(0, 2**32 - 1))
def test_nothing_changes_when_rows_are_doubled(loss, seed):
    o, y = outputs_and_targets(loss, seed)
    once, twice = loss(o, y), loss(np.tile(o, (1, 2, 1)), np.tile(y, (1, 2, 1)))
    assert_close(twice.value, once.value, 1e-14)
    # The same row twice shares its weight in the mean.
    assert_close(twice.gradient[:, :ROWS] + twice.gradient[:, ROWS:], once.gradient, 1e-14)


@pytest.mark.parametrize("loss", EVERY)
def test_tasks_do_not_see_each_other(loss):
    o, y = outputs_and_targets(loss)
    u = np.random.default_rng(5).normal(size=o.shape)
    together = loss(o, y)
    for t in range(T):
        alone = loss(o[t : t + 1], y[t : t + 1])
        # The same sums, though not always in the same order.
        assert_close(alone.value[0], together.value[t], 1e-14)
        assert_close(alone.gradient[0], together.gradient[t], 1e-14)
        product = alone.hessian_product(u[t : t + 1])[0]
        assert_close(product, together.hessian_product(u)[t], 1e-14)


@pytest.mark.parametrize("loss", EVERY)
def test_nan_does_not_vanish(loss):
    o, y = outputs_and_targets(loss)
    o[1, 2, :] = np.nan
    value = loss(o, y).value
    assert np.isnan(value[1])
    assert np.isfinite(value[[0, 2]]).all()


def test_at_the_border_huber_counts_as_inside():
    o, y = np.array([[[1.0], [-1.0], [1.0 + 1e-12], [0.0]]]), np.zeros((1, 4, 1))
    product = huber(1.0)(o, y).hessian_product(np.ones_like(o))
    np.testing.assert_array_equal(product[0, :, 0] * 4, [1, 1, 0, 1])


@pytest.mark.parametrize("name", ["hinge", "squared_hinge"])
def test_at_a_margin_of_zero_nothing_pulls(name):
    o, y = np.array([[[1.0, 0.0]]]), np.array([[[1.0, 0.0]]])  # 1 + o_wrong − o_right = 0
    value, gradient, product = LOSSES[name](o, y)
    assert value[0] == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(o))
    np.testing.assert_array_equal(product(np.ones_like(o)), np.zeros_like(o))


# --- targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASS_LOSSES)
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64])
def test_labels_are_one_hot_rows(name, dtype):
    loss = LOSSES[name]
    labels = np.random.default_rng(0).integers(N, size=(T, ROWS)).astype(dtype)
    prepared = loss.prepare(labels, N, np.dtype(np.float32))
    np.testing.assert_array_equal(prepared, np.eye(N, dtype=np.float32)[labels.astype(int)])
    assert prepared.dtype == np.float32
    np.testing.assert_array_equal(loss.prepare(prepared, N, np.dtype(np.float32)), prepared)


def test_soft_labels_are_mixtures_of_labels():
    loss = LOSSES["cross_entropy"]
    o = np.random.default_rng(0).normal(size=(1, 1, N))
    share = np.array([[[0.5, 0.25, 0.25, 0.0]]])
    values = [loss(o, loss.prepare([[c]], N, o.dtype)).value[0] for c in range(N)]
    prepared = loss.prepare(share, N, o.dtype)
    assert loss(o, prepared).value[0] == pytest.approx((share * values).sum(), rel=1e-15)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in CLASS_LOSSES])
def test_one_output_needs_no_last_axis(name):
    loss, dtype = LOSSES[name], np.dtype(np.float64)
    y = np.array([[0.0, 1.0, 1.0]])
    np.testing.assert_array_equal(loss.prepare(y, 1, dtype), y[..., None])
    with pytest.raises(ValueError, match=r"y must have shape \(T, rows, 2\) .* got \(1, 3\)"):
        loss.prepare(y, 2, dtype)


BAD_TARGETS = [
    ("cross_entropy", [[0, 4]], r"labels in support_y must lie in 0..3 .* got 4"),
    ("cross_entropy", [[-1, 0]], r"labels in support_y must lie in 0..3 .* got -1"),
    ("hinge", [[0, 17]], r"labels in support_y must lie in 0..3 .* got 17"),
    ("squared_hinge", [[-3, 17]], r"labels in support_y must lie in 0..3 .* got -3"),
    (
        "cross_entropy",
        [[0.0, 1.0]],
        r"of shape \(1, 2\) must hold integer labels, got float64",
    ),
    ("cross_entropy", [[True, False]], "must hold integer labels, got bool"),
    ("cross_entropy", [["a", "b"]], "support_y must hold real numbers, got dtype <U1"),
    ("mse", [["a", "b"]], "support_y must hold real numbers, got dtype <U1"),
    ("mse", [[1j, 0j]], "support_y must hold real numbers, got dtype complex128"),
    ("mse", None, "support_y must hold real numbers, got dtype object"),
    ("cross_entropy", [0, 1], r"shape \(T, rows, 4\) or integer labels \(T, rows\) .* got \(2,\)"),
    ("mse", np.zeros((1, 2, 3)), r"shape \(T, rows, 4\) for mse with 4 outputs, got \(1, 2, 3\)"),
    ("cross_entropy", np.zeros((1, 2, 3)), r"shape \(T, rows, 4\) or .* got \(1, 2, 3\)"),
    ("mse", np.zeros((1, 1, 2, 4)), r"got \(1, 1, 2, 4\)"),
    ("mse", np.zeros((1, 0, 4)), r"support_y must hold at least one task and one row, got \(1, 0, 4\)"),
    ("hinge", np.zeros((2, 0), int), "support_y must hold at least one task and one row"),
    ("mse", [[[0, 0, np.nan, 0]]], r"support_y\[0, 0, 2\] is nan \(1 of 4 values are not finite\)"),
    ("huber", [[[0, np.inf, np.nan, 0]]], r"support_y\[0, 0, 1\] is inf \(2 of 4"),
    ("cross_entropy", [[[np.nan, 0, 1, 0]]], r"support_y\[0, 0, 0\] is nan"),
    ("cross_entropy", [[[0.5, 0.4, 0, 0]]], "must be one-hot or soft labels"),
    ("cross_entropy", [[[1.5, -0.5, 0, 0]]], "must be one-hot or soft labels"),
    ("cross_entropy", [[[0, 0, 0, 0]]], "must be one-hot or soft labels"),
    ("hinge", [[[0.5, 0.5, 0, 0]]], "must be one-hot for hinge, got soft labels"),
    ("squared_hinge", [[[0.9, 0.1, 0, 0]]], "must be one-hot for squared_hinge, got soft labels"),
    ("hinge", [[[1, 1, 0, 0]]], "must be one-hot"),
    ("poisson_nll", [[[0, 3, -1, 2]]], r"support_y must not be negative for poisson_nll, got -1"),
    ("binary_cross_entropy", [[[0, 1, 1.01, 0]]], r"must lie in \[0, 1\] .* got 0.0 to 1.01"),
    ("binary_cross_entropy", [[[0, 1, -0.5, 0]]], r"must lie in \[0, 1\] .* got -0.5 to 1.0"),
]


@pytest.mark.parametrize(("name", "y", "message"), BAD_TARGETS)
def test_bad_targets_are_refused(name, y, message):
    with pytest.raises(ValueError, match=message):
        LOSSES[name].prepare(y, N, np.dtype(np.float64), "support_y")


def test_soft_labels_of_float32_arithmetic_are_accepted():
    y = np.random.default_rng(0).dirichlet(np.ones(50), size=(4, 9)).astype(np.float32)
    assert LOSSES["cross_entropy"].prepare(y, 50, np.dtype(np.float64)).dtype == np.float64


# --- accuracy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_accuracy_of_classes(name):
    o = np.array([[[1, 2, 0], [0, 0, 5], [9, 1, 1], [0, 1, 0]]], float)
    y = LOSSES[name].prepare([[1, 2, 1, 1]], 3, o.dtype)
    np.testing.assert_array_equal(accuracy(LOSSES[name], o, y), [0.75])


def test_accuracy_of_binary_decisions():
    o = np.array([[[1, -2], [3, 0]]], float)  # 0 is not above 0: decided for "no"
    y = np.array([[[1, 0], [0, 0]]], float)
    np.testing.assert_array_equal(accuracy(LOSSES["binary_cross_entropy"], o, y), [0.75])


@pytest.mark.parametrize("name", ["mse", "huber", "poisson_nll"])
def test_numbers_have_no_accuracy(name):
    assert accuracy(LOSSES[name], np.zeros((1, 2, 3)), np.zeros((1, 2, 3))) is None


# --- a linear model with hinge is the support vector machine --------------------------------------


def test_hinge_of_a_linear_model_is_the_multiclass_svm():
    """Σ_{c≠y} max(0, 1 + (w_c − w_y)·x + b_c − b_y), and its subgradient, with plain loops."""
    rng = np.random.default_rng(3)
    n_in, n_classes, rows = 3, 4, 8
    W, b = rng.normal(size=(n_in, n_classes)), rng.normal(size=n_classes)
    x, labels = rng.normal(size=(rows, n_in)), rng.integers(n_classes, size=rows)
    value, grad_W, grad_b = 0.0, np.zeros_like(W), np.zeros_like(b)
    for x_i, label in zip(x, labels, strict=True):
        for c in set(range(n_classes)) - {label}:
            margin = 1 + (W[:, c] - W[:, label]) @ x_i + b[c] - b[label]
            if margin > 0:
                value += margin / rows
                for k, sign in ((c, 1), (label, -1)):
                    grad_W[:, k] += sign * x_i / rows
                    grad_b[k] += sign / rows

    model = nm.MLP([n_in, n_classes])
    lin = nm.Risk(model, "hinge").linearize(model.pack([(W, b)]), x[None], labels[None])
    assert_close(lin.value[0], value, 1e-14)
    assert_close(lin.grad[0], model.pack([(grad_W, grad_b)]), 1e-14)
    assert not lin.hvp(rng.normal(size=model.n_params)).any()


def test_hinge_of_two_classes_is_the_binary_svm():
    # With w = w_1 − w_0 and a label of ±1 the sum over wrong classes is max(0, 1 − y w·x).
    rng = np.random.default_rng(4)
    W, x, labels = rng.normal(size=(3, 2)), rng.normal(size=(1, 9, 3)), rng.integers(2, size=(1, 9))
    model = nm.MLP([3, 2])
    theta = model.pack([(W, np.zeros(2))])
    sign = 2 * labels[0] - 1
    for name, power in (("hinge", 1), ("squared_hinge", 2)):
        expected = np.maximum(0, 1 - sign * (x[0] @ (W[:, 1] - W[:, 0]))) ** power
        lin = nm.Risk(model, name).linearize(theta, x, labels)
        assert_close(lin.value[0], expected.mean(), 1e-14)


# --- by name --------------------------------------------------------------------------------------


def test_get():
    own = huber(2.0)
    assert losses.get(own) is own
    for name, loss in LOSSES.items():
        assert loss.name == name
        assert losses.get(name) is loss


@pytest.mark.parametrize(
    ("name", "nearest"), [("crossentropy", "cross_entropy"), ("hubert", "huber"), ("mes", "mse")]
)
def test_a_misspelt_name_hears_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=rf"unknown loss '{name}' \(did you mean '{nearest}'"):
        losses.get(name)


@pytest.mark.parametrize("delta", [0.0, -1.0, np.nan])
def test_huber_needs_a_positive_border(delta):
    with pytest.raises(ValueError, match="delta must be a positive number"):
        huber(delta)


@pytest.mark.parametrize("sum_", [1 - 1e-5, 1 + 1e-5])
def test_soft_labels_are_made_to_sum_to_one(sum_):
    """So that the gradient is that of the value: compared with a real central difference."""
    y = sum_ * np.array([[[0.5, 0.3, 0.2]]])
    loss = losses.get("cross_entropy")
    prepared = loss.prepare(y, 3, np.dtype(np.float64))
    np.testing.assert_allclose(prepared.sum(-1), 1, rtol=1e-15)
    o, h = np.array([[[0.3, -1.0, 2.0]]]), 1e-6
    for c in range(3):
        e = h * np.eye(3)[c]
        difference = (loss(o + e, prepared).value - loss(o - e, prepared).value) / (2 * h)
        # Central differences have errors of about h² and ε/h.
        np.testing.assert_allclose(difference[0], loss(o, prepared).gradient[0, 0, c], atol=1e-9)


@pytest.mark.parametrize("name", ["hinge", "squared_hinge"])
def test_margins_of_large_outputs_keep_their_one(name):
    o = np.full((1, 1, 3), 1.2e8, np.float32)
    y = np.array([[[0, 1, 0]]], np.float32)
    assert losses.get(name)(o, y).value == 2  # two wrong classes at the height of the right one
