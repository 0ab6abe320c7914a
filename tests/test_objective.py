"""Objectives at a point: gradient, Hessian products and Gauss-Newton products, each against the rung
of the ladder below it.

The value meets plain loops in test_mlp and test_losses; the gradient meets a complex step of the
value; the Hessian product a complex step of the gradient. No rung uses what it judges.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import npmeta as nm
from npmeta.network.activations import ACTIVATIONS
from npmeta.network.losses import LOSSES
from tests.helpers import (
    CLASS_LOSSES,
    DEPTHS,
    H,
    Problem,
    activations_and_losses,
    assert_close,
    complex_step_hvp,
    problem,
    problems,
    relative_error,
)

# A gradient of these networks adds up products of at most four factors over a few rows: a few dozen
# roundings of 1e-16, more where terms cancel.
TIGHT = 1e-13

every_activation_and_loss = pytest.mark.parametrize(
    ("activation", "loss"), list(activations_and_losses()), ids=lambda name: name
)


def own_parameters(p: Problem, seed=0) -> np.ndarray:
    """A different vector for each task, ``(T, P)``."""
    noise = np.random.default_rng(seed).normal(size=(len(p.tasks), p.model.n_params))
    return p.theta + 0.1 * noise


def directions(p: Problem, seed=1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(len(p.tasks), p.model.n_params))


def gradient_by_complex_step(p: Problem, phi) -> np.ndarray:
    steps = 1j * H * np.eye(p.model.n_params)
    columns = [p.risk.linearize(phi + step, *p.support).value.imag / H for step in steps]
    return np.stack(columns, axis=-1)


def hessians(lin, P) -> np.ndarray:
    """The Hessian of each task, column by column, ``(T, P, P)``."""
    return np.stack([lin.hvp(e) for e in np.eye(P)], axis=-1)


# --- the ladder -------------------------------------------------------------------------------------


@every_activation_and_loss
def test_gradient_by_complex_step_of_the_value(activation, loss):
    for hidden in DEPTHS:
        p = problem(loss, activation, hidden)
        for phi in (p.theta, own_parameters(p)):
            lin = p.risk.linearize(phi, *p.support)
            assert_close(lin.grad, gradient_by_complex_step(p, phi), TIGHT, f"hidden {hidden}:")


@every_activation_and_loss
def test_hessian_product_by_complex_step_of_the_gradient(activation, loss):
    for hidden in DEPTHS:
        p = problem(loss, activation, hidden)
        v = directions(p)
        for phi in (p.theta, own_parameters(p)):
            product = p.risk.linearize(phi, *p.support).hvp(v)
            expected = complex_step_hvp(p.risk, phi, p.support, v)
            assert_close(product, expected, TIGHT, f"hidden {hidden}:")


@settings(max_examples=150)
@given(p=problems(), seed=st.integers(0, 2**32 - 1))
def test_the_ladder_of_any_network(p, seed):
    phi, v = own_parameters(p, seed), directions(p, seed)
    lin = p.risk.linearize(phi, *p.support)
    np.testing.assert_allclose(lin.value, p.risk.linearize(phi + 0j, *p.support).value.real, rtol=1e-13)
    assert_close(lin.grad, gradient_by_complex_step(p, phi), TIGHT)
    by_step = complex_step_hvp(p.risk, phi, p.support, v)
    # Against the size of the terms: a network whose units are all dead has a Hessian of nearly 0.
    scale = max(np.abs(by_step).max(), np.abs(lin.gauss_newton(v)).max(), np.abs(lin.grad).max())
    assert np.abs(lin.hvp(v) - by_step).max() <= TIGHT * scale


@pytest.mark.parametrize("activation", [name for name, f in ACTIVATIONS.items() if not f.kinks])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "binary_cross_entropy", "poisson_nll"])
def test_hessian_product_is_what_a_difference_says(activation, loss):
    """No complex numbers at all, where everything is smooth: central differences of the gradient."""
    p = problem(loss, activation)
    v = directions(p)
    h = 1e-5

    def gradient(phi):
        return p.risk.linearize(phi, *p.support).grad

    difference = (gradient(p.theta + h * v) - gradient(p.theta - h * v)) / (2 * h)
    # Truncation h² = 1e-10 times third derivatives, rounding 1e-16 / h = 1e-11.
    assert_close(p.risk.linearize(p.theta, *p.support).hvp(v), difference, 1e-7)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu"])
def test_a_network_at_its_kinks(activation, loss):
    """Zero biases and a row of zero inputs: z = 0 exactly. Every rung takes the same side."""
    p = problem(loss, activation)
    layers = [(W, 0 * b) for W, b in p.model.unpack(p.theta)]
    x = p.tasks.support_x.copy()
    x[:, 0] = 0
    p = Problem(
        p.model,
        loss,
        p.model.pack(layers),
        nm.TaskBatch(x, p.tasks.support_y, p.tasks.query_x, p.tasks.query_y),
    )
    v = directions(p)
    lin = p.risk.linearize(p.theta, *p.support)
    assert_close(lin.grad, gradient_by_complex_step(p, p.theta), TIGHT)
    for sign in (1, -1):
        # h² must be 0, not 1e-60: two imaginary parts multiplied are real, and would leave the kink.
        by_step = complex_step_hvp(p.risk, p.theta, p.support, sign * v, h=1e-200)
        assert_close(lin.hvp(sign * v), by_step, TIGHT)


# --- properties of a Hessian ------------------------------------------------------------------------


@every_activation_and_loss
def test_hessian_is_symmetric_and_its_product_linear(activation, loss):
    p = problem(loss, activation)
    phi = own_parameters(p)
    lin = p.risk.linearize(phi, *p.support)
    hessian = hessians(lin, p.model.n_params)
    scale = np.abs(hessian).max()
    assert np.abs(hessian - hessian.swapaxes(1, 2)).max() <= TIGHT * scale
    v = directions(p)
    assert_close(lin.hvp(v), np.einsum("tij,tj->ti", hessian, v), TIGHT)
    assert not lin.hvp(np.zeros_like(v)).any()


@every_activation_and_loss
def test_gauss_newton_is_built_of_jacobian_and_loss(activation, loss):
    """G = Jᵀ (∂²ℓ/∂o²) J with J column by column, and G is positive semidefinite."""
    for hidden in DEPTHS:
        p = problem(loss, activation, hidden)
        P, (x, y) = p.model.n_params, p.support
        lin = p.risk.linearize(p.theta, x, y)
        # J (T, rows·n_out, P) from outputs at complex parameters.
        jacobian = np.stack(
            [p.model.apply(p.theta + 1j * H * e, x).imag.reshape(len(x), -1) / H for e in np.eye(P)],
            axis=-1,
        )
        o = p.model.apply(p.theta, x)
        at = LOSSES[loss](o, LOSSES[loss].prepare(y, o.shape[-1], o.dtype))
        curved = np.stack(
            [
                at.hessian_product(jacobian[:, :, i].reshape(o.shape)).reshape(len(x), -1)
                for i in range(P)
            ],
            axis=-1,
        )
        expected = jacobian.swapaxes(1, 2) @ curved
        built = np.stack([lin.gauss_newton(e) for e in np.eye(P)], axis=-1)
        assert_close(built, expected, TIGHT)
        scale = np.abs(built).max()
        # As negative as rounding makes the zero eigenvalues of a P × P matrix.
        assert np.linalg.eigvalsh((built + built.swapaxes(1, 2)) / 2).min() >= -1e-13 * scale
        if hidden == ():
            v = directions(p)
            assert_close(lin.gauss_newton(v), lin.hvp(v), TIGHT, "a linear model:")


def test_gauss_newton_is_not_the_hessian_of_a_network_with_hidden_layers():
    p = problem("mse", "tanh")
    lin, v = p.risk.linearize(p.theta, *p.support), directions(p)
    assert relative_error(lin.gauss_newton(v), lin.hvp(v)) > 1e-2


@pytest.mark.parametrize("loss", LOSSES)
def test_a_linear_model_is_convex(loss):
    p = problem(loss, hidden=())
    hessian = hessians(p.risk.linearize(p.theta, *p.support), p.model.n_params)
    scale = np.abs(hessian).max()
    assert (scale == 0) == (loss == "hinge")
    assert np.linalg.eigvalsh(hessian).min() >= -1e-13 * scale


# --- batches ----------------------------------------------------------------------------------------


@every_activation_and_loss
def test_a_batch_is_its_tasks_one_by_one(activation, loss):
    p = problem(loss, activation, T=4)
    x, y = p.support
    shared, own, v = p.theta, own_parameters(p), directions(p)
    for phi in (shared, own):
        together = p.risk.linearize(phi, x, y)
        for t in range(4):
            phi_t = phi if phi.ndim == 1 else phi[t : t + 1]
            alone = p.risk.linearize(phi_t, x[t : t + 1], y[t : t + 1])
            # The same sums, in the order a larger matrix product chooses.
            assert_close(alone.value[0], together.value[t], 1e-14)
            assert_close(alone.grad[0], together.grad[t], 1e-13)
            assert_close(alone.hvp(v[t])[0], together.hvp(v)[t], 1e-13)
            assert_close(alone.gauss_newton(v[t])[0], together.gauss_newton(v)[t], 1e-13)


@pytest.mark.parametrize("loss", LOSSES)
def test_shared_parameters_are_a_copy_for_each_task(loss):
    p = problem(loss)
    shared = p.risk.linearize(p.theta, *p.support)
    copies = p.risk.linearize(np.tile(p.theta, (len(p.tasks), 1)), *p.support)
    v = directions(p)
    for direction in (v, v[0]):
        full = np.broadcast_to(direction, v.shape)
        for lin in (shared, copies):
            assert_close(lin.hvp(direction), copies.hvp(full), TIGHT)
            assert_close(lin.gauss_newton(direction), copies.gauss_newton(full), TIGHT)
    assert_close(shared.value, copies.value, 1e-14)
    assert_close(shared.grad, copies.grad, TIGHT)


@pytest.mark.parametrize("loss", CLASS_LOSSES)
def test_labels_and_one_hot_rows_are_the_same_targets(loss):
    p = problem(loss)
    x = p.tasks.support_x
    labels = np.random.default_rng(0).integers(3, size=x.shape[:2])
    by_label = p.risk.linearize(p.theta, x, labels)
    by_row = p.risk.linearize(p.theta, x, np.eye(3)[labels])
    np.testing.assert_array_equal(by_label.value, by_row.value)
    np.testing.assert_array_equal(by_label.grad, by_row.grad)


@pytest.mark.parametrize("loss", LOSSES)
def test_value_alone_is_the_value_of_the_linearization(loss):
    p = problem(loss)
    batch = p.risk.prepare(*p.support, p.theta.dtype)
    value, accuracy = p.risk.score(p.risk.hold(p.theta), batch)
    np.testing.assert_array_equal(value, p.risk.linearize(p.theta, *p.support).value)
    assert (accuracy is None) == (LOSSES[loss].targets in ("values", "counts"))


# --- precision --------------------------------------------------------------------------------------


@every_activation_and_loss
def test_float32_stays_float32_and_agrees(activation, loss):
    for hidden in DEPTHS:
        p = problem(loss, activation, hidden)
        # The same parameters in both precisions, so that only the arithmetic differs.
        single = p.astype(np.float32)
        double = single.astype(np.float64)
        v = directions(p)
        for stack in (lambda phi: phi, lambda phi: np.stack([phi] * 3)):
            low = single.risk.linearize(stack(single.theta), *p.support)
            high = double.risk.linearize(stack(double.theta), *p.support)
            for name, ours, reference in (
                ("value", low.value, high.value),
                ("grad", low.grad, high.grad),
                ("hvp", low.hvp(v), high.hvp(v)),
                ("gauss_newton", low.gauss_newton(v), high.gauss_newton(v)),
            ):
                assert ours.dtype == np.float32, name
                # Dozens of roundings of 6e-8, and terms that cancel by a factor of ten.
                scale = max(np.abs(reference).max(), np.abs(high.grad).max() * (name == "hvp"))
                assert np.abs(ours - reference).max() <= 2e-5 * scale, (name, hidden)


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_inside_is_wider_than_the_parameters(loss):
    p = problem(loss, "gelu").astype(np.float32)
    risk = p.risk
    batch = risk.prepare(*p.support, np.dtype(np.float32))
    assert {part.dtype for part in batch} == {np.dtype(np.float32)}
    lin = risk.at(risk.hold(p.theta), batch)
    parts = list(lin.gradient) + list(lin.product(risk.hold(p.theta)))
    for part in parts:
        assert part.dense().flat().dtype == np.float32
    value, accuracy = risk.score(risk.hold(p.theta), batch)
    assert value.dtype == np.float32
    assert accuracy is None or accuracy.dtype == np.float64


def test_complex_parameters_pass_and_give_complex_gradients():
    p = problem("cross_entropy")
    for dtype in (np.complex64, np.complex128):
        lin = p.risk.linearize(p.theta.astype(dtype), *p.support)
        assert lin.value.dtype == lin.grad.dtype == dtype


# --- errors -----------------------------------------------------------------------------------------


def test_an_unknown_loss():
    with pytest.raises(ValueError, match=r"unknown loss 'msse' \(did you mean 'mse'"):
        nm.Risk(nm.MLP([1, 1]), "msse")


BAD_BATCHES = [
    (
        np.ones((3, 2)),
        np.ones((3, 4, 3)),
        r"x must have shape \(T, rows, n_in\) .* got \(3, 2\)",
    ),
    (np.ones((3, 4, 5)), np.ones((3, 4, 3)), r"x must have shape .* with 2 inputs, got \(3, 4, 5\)"),
    (np.ones((3, 4, 2)), np.ones((3, 5, 3)), r"agree in tasks and rows, got \(3, 4\) and \(3, 5\)"),
    (np.ones((3, 4, 2)), np.ones((2, 4, 3)), r"agree in tasks and rows, got \(3, 4\) and \(2, 4\)"),
    (np.ones((3, 4, 2)), np.ones((3, 4, 1)), r"y must have shape \(T, rows, 3\) for mse"),
    (np.ones((3, 0, 2)), np.ones((3, 0, 3)), "x must have shape .* with at least one task and one row"),
    (np.ones((0, 4, 2)), np.ones((0, 4, 3)), "x must have shape .* with at least one task and one row"),
    (np.full((3, 4, 2), np.nan), np.ones((3, 4, 3)), r"x\[0, 0, 0\] is nan \(24 of 24"),
    (np.ones((3, 4, 2)), np.full((3, 4, 3), np.inf), r"y\[0, 0, 0\] is inf"),
    (np.full((3, 4, 2), "a"), np.ones((3, 4, 3)), "x must hold real numbers, got dtype <U1"),
]


@pytest.mark.parametrize(("x", "y", "message"), BAD_BATCHES)
def test_bad_batches_are_refused(x, y, message):
    risk = nm.Risk(nm.MLP([2, 3]), "mse")
    with pytest.raises(ValueError, match=message):
        risk.linearize(np.ones(9), x, y)


def test_parameters_and_directions_must_fit():
    risk = nm.Risk(nm.MLP([2, 3]), "mse")
    x, y = np.ones((3, 4, 2)), np.ones((3, 4, 3))
    with pytest.raises(ValueError, match=r"phi must have shape \(9,\) or \(T, 9\), got \(8,\)"):
        risk.linearize(np.ones(8), x, y)
    with pytest.raises(ValueError, match="phi has 2 tasks and x has 3"):
        risk.linearize(np.ones((2, 9)), x, y)
    with pytest.raises(ValueError, match="phi must be float32 or float64, got dtype float16"):
        risk.linearize(np.ones(9, np.float16), x, y)
    lin = risk.linearize(np.ones(9), x, y)
    for product in (lin.hvp, lin.gauss_newton):
        with pytest.raises(ValueError, match=r"v must have shape \(9,\) or \(T, 9\), got \(8,\)"):
            product(np.ones(8))
        with pytest.raises(ValueError, match=r"v must have shape \(P,\) or \(3, P\), got \(2, 9\)"):
            product(np.ones((2, 9)))


def test_repr():
    risk = nm.Risk(nm.MLP([1, 2, 1], "tanh"), "mse")
    assert repr(risk) == "Risk(MLP([1, 2, 1], activation='tanh'), 'mse')"
    assert repr(nm.Quadratic(3)) == "Quadratic(3)"
    function = nm.FunctionObjective(2, lambda phi, x, y: (0.0, phi))
    assert repr(function) == "FunctionObjective(2, hessian='central difference')"


# --- the quadratic ----------------------------------------------------------------------------------


def quadratics(T=3, P=4, seed=0):
    rng = np.random.default_rng(seed)
    B = rng.normal(size=(T, P, P))
    return B @ B.swapaxes(1, 2), rng.normal(size=(T, P)), rng.normal(size=(T, P))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_quadratic(dtype):
    A, c, phi = quadratics()
    v = np.random.default_rng(1).normal(size=phi.shape)
    for point in (phi, phi[0]):
        lin = nm.Quadratic(4).linearize(point.astype(dtype), A, c)
        rows = np.broadcast_to(point, phi.shape)
        expected = [(A[t] @ (rows[t] - c[t]), A[t] @ v[t]) for t in range(3)]
        value = [(rows[t] - c[t]) @ A[t] @ (rows[t] - c[t]) / 2 for t in range(3)]
        eps = np.finfo(dtype).eps
        for ours, reference in (
            (lin.value, value),
            (lin.grad, [grad for grad, _ in expected]),
            (lin.hvp(v), [product for _, product in expected]),
            (lin.hvp(v[1]), [A[t] @ v[1] for t in range(3)]),
        ):
            assert ours.dtype == dtype
            assert_close(ours, np.array(reference), 20 * eps)


def test_quadratic_refuses_what_is_none():
    A, c, phi = quadratics()
    quadratic = nm.Quadratic(4)
    with pytest.raises(ValueError, match="x must hold symmetric matrices"):
        quadratic.linearize(phi, np.triu(A), c)
    with pytest.raises(ValueError, match=r"x must be matrices \(T, 4, 4\) and y centres \(T, 4\), got"):
        quadratic.linearize(phi, A[:, :3], c)
    with pytest.raises(ValueError, match=r"got \(3, 4, 4\) and \(3, 3\)"):
        quadratic.linearize(phi, A, c[:, :3])
    with pytest.raises(ValueError, match=r"got \(3, 4, 4\) and \(2, 4\)"):
        quadratic.linearize(phi, A, c[:2])
    with pytest.raises(ValueError, match=r"y\[0, 0\] is nan"):
        quadratic.linearize(phi, A, c * np.nan)
    with pytest.raises(ValueError, match="phi has 2 tasks and x has 3"):
        quadratic.linearize(phi[:2], A, c)
    with pytest.raises(ValueError, match="n_params must be a whole number of at least 1, got 0"):
        nm.Quadratic(0)


# --- a function of your own -------------------------------------------------------------------------


def logistic(phi, x, y):
    """Value and gradient of logistic regression on one task."""
    p = 1 / (1 + np.exp(-x @ phi))
    return -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)), x.T @ (p - y) / len(y)


def logistic_hvp(phi, x, y, v):
    p = 1 / (1 + np.exp(-x @ phi))
    return x.T @ (p * (1 - p) * (x @ v)) / len(y)


def logistic_data(T=3, rows=6):
    rng = np.random.default_rng(0)
    return rng.normal(size=(T, rows, 3)), rng.integers(2, size=(T, rows))


@pytest.mark.parametrize("tasks", [None, 3])
@pytest.mark.parametrize("supplied", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_function_objective_is_the_network_it_copies(tasks, supplied, dtype):
    """Logistic regression by hand is a linear network with cross-entropy (and a bias held at 0)."""
    x, y = logistic_data()
    rng = np.random.default_rng(1)
    lead = () if tasks is None else (tasks,)
    phi, v = rng.normal(size=(*lead, 3)).astype(dtype), rng.normal(size=(*lead, 3))
    objective = nm.FunctionObjective(3, logistic, logistic_hvp if supplied else None)
    assert objective.hessian == ("supplied" if supplied else "central difference")
    ours = objective.linearize(phi, x, y)

    def with_bias(w):
        return np.concatenate([w, np.zeros((*w.shape[:-1], 1))], axis=-1)

    risk = nm.Risk(nm.MLP([3, 1]), "binary_cross_entropy")
    reference = risk.linearize(with_bias(phi.astype(float)), x, y.astype(float))
    eps = np.finfo(dtype).eps
    assert ours.value.dtype == ours.grad.dtype == ours.hvp(v).dtype == dtype
    assert_close(ours.value, reference.value, 20 * eps)
    assert_close(ours.grad, reference.grad[:, :3], 50 * eps)
    # A central difference errs by about ε^⅔: truncation meets rounding there.
    tolerance = 50 * eps if supplied else 20 * eps ** (2 / 3)
    assert_close(ours.hvp(v), reference.hvp(with_bias(v))[:, :3], tolerance)


def test_central_difference_of_nothing_and_of_any_size():
    x, y = logistic_data()
    lin = nm.FunctionObjective(3, logistic).linearize(np.ones(3), x, y)
    v = np.random.default_rng(1).normal(size=3)
    np.testing.assert_array_equal(lin.hvp(np.zeros(3)), np.zeros((3, 3)))
    for size in (1e-12, 1.0, 1e12):
        assert_close(lin.hvp(size * v) / size, lin.hvp(v), 1e-10)


def test_function_objective_keeps_labels_integers_and_casts_numbers():
    seen = []

    def value_and_grad(phi, x, y):
        seen.append((phi.dtype, x.dtype, y.dtype, phi.shape, x.shape, y.shape))
        return 0.0, np.zeros(2)

    objective = nm.FunctionObjective(2, value_and_grad)
    objective.linearize(np.ones(2, np.float32), np.ones((3, 4, 5, 6)), np.ones((3, 4), int))
    single = np.dtype(np.float32)
    assert seen == [(single, single, np.dtype(int), (2,), (4, 5, 6), (4,))] * 3


@pytest.mark.parametrize(
    "result",
    [
        (1.0, np.ones(3)),
        (1.0, np.ones((2, 1))),
        (1.0, 1.0),
        (np.ones(1), np.ones(2)),
        (np.ones(2), np.ones(2)),
    ],
    ids=lambda result: str([np.shape(part) for part in result]),
)
def test_value_and_grad_must_return_a_number_and_a_vector(result):
    objective = nm.FunctionObjective(2, lambda phi, x, y: result)
    with pytest.raises(ValueError, match=r"must return a number and a gradient \(2,\), got shapes"):
        objective.linearize(np.ones(2), np.ones((3, 4, 1)), np.ones((3, 4)))


@pytest.mark.parametrize("product", [np.ones((2, 1)), np.ones((1, 2)), np.ones(3), 1.0])
def test_hvp_must_return_a_vector(product):
    """A column would otherwise broadcast against the cotangent without a word."""
    objective = nm.FunctionObjective(2, lambda phi, x, y: (1.0, phi), lambda phi, x, y, v: product)
    lin = objective.linearize(np.ones(2), np.ones((3, 4, 1)), np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"hvp must return a product \(2,\), got shape"):
        lin.hvp(np.ones(2))


def test_function_objective_refuses():
    with pytest.raises(ValueError, match="n_params must be a whole number of at least 1, got 0"):
        nm.FunctionObjective(0, logistic)
    objective = nm.FunctionObjective(3, logistic)
    x, y = logistic_data()
    with pytest.raises(ValueError, match=r"phi must have shape \(3,\) or \(T, 3\), got \(2,\)"):
        objective.linearize(np.ones(2), x, y)
    with pytest.raises(ValueError, match=r"y must have shape \(T, rows, ...\), got \(6,\)"):
        objective.linearize(np.ones(3), x, y[0])
    with pytest.raises(ValueError, match=r"x\[0, 0, 0\] is nan"):
        objective.linearize(np.ones(3), x * np.nan, y)
    with pytest.raises(ValueError, match="phi has 2 tasks and x has 3"):
        objective.linearize(np.ones((2, 3)), x, y)


def test_a_function_may_return_the_same_array_every_time():
    A = np.array([[2.0, 1.0], [1.0, 3.0]])
    buffer, product = np.empty(2), np.empty(2)

    def value_and_grad(phi, x, y):
        buffer[:] = A @ (phi - y[0])
        return float((phi - y[0]) @ buffer) / 2, buffer

    def hvp(phi, x, y, v):
        product[:] = A @ v
        return product

    y = np.arange(6.0).reshape(3, 1, 2)
    lin = nm.FunctionObjective(2, value_and_grad, hvp).linearize(np.zeros(2), np.zeros((3, 1)), y)
    np.testing.assert_allclose(lin.grad, -y[:, 0] @ A, rtol=1e-14)
    np.testing.assert_allclose(lin.hvp(y[:, 0]), y[:, 0] @ A, rtol=1e-14)


def test_quadratics_are_symmetric_each_by_its_own_size():
    big, skew = 1e7 * np.eye(2), np.array([[1.0, 5.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match="symmetric"):
        nm.Quadratic(2).linearize(np.ones(2), np.stack([big, skew]), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="symmetric"):
        nm.Quadratic(2).linearize(np.ones(2), [[[1.0, 1.0 + 1e-9], [1.0, 1.0]]], np.zeros((1, 2)))
    # float32 matrices are symmetric to float32's rounding.
    B = np.random.default_rng(0).normal(size=(4, 3, 3)).astype(np.float32)
    nm.Quadratic(3).linearize(np.ones(3, np.float32), B @ B.swapaxes(-1, -2), np.zeros((4, 3)))


def test_numbers_too_large_for_the_parameters_precision_are_refused():
    model = nm.MLP([1, 2, 1])
    theta = model.init(np.random.default_rng(0), np.float32)
    with pytest.raises(ValueError, match=r"x \(as float32\) must be finite, but .* is inf"):
        model.apply(theta, [[1e39]])
    with pytest.raises(ValueError, match=r"y \(as float32\) must be finite"):
        nm.Risk(model, "mse").linearize(theta, np.ones((1, 1, 1)), np.full((1, 1, 1), 1e39))


def test_an_objective_from_scratch_needs_only_what_the_protocol_says():
    """f(φ) = Σ cosh φ, written against the public protocol."""
    from npmeta.bilevel.objective import linearize
    from npmeta.network.weights import Vector

    class At(nm.Linearization):
        def __init__(self, objective, phi):
            self.phi = phi
            super().__init__(objective, np.cosh(phi).sum(-1), [Vector(np.sinh(phi))])

        def product(self, direction):
            return [Vector(np.cosh(self.phi) * direction[0].values)]

    class Cosh:
        n_params, block_sizes, hessian = 2, (2,), "exact"

        def prepare(self, x, y, dtype, name=""):
            return np.asarray(x, dtype), np.asarray(y, dtype)

        def hold(self, theta, forms=None):
            return [Vector(theta)]

        def scales(self, factors):
            return [(factors,)]

        def at(self, point, batch):
            return At(self, np.broadcast_to(point[0].values, (len(batch[0]), 2)))

        def score(self, point, batch):
            return self.at(point, batch).value, None

    phi, x = np.array([0.3, -1.0]), np.zeros((3, 1))
    lin = linearize(Cosh(), phi, x, x)
    np.testing.assert_allclose(lin.hvp([1.0, 2.0]), np.tile(np.cosh(phi) * [1, 2], (3, 1)))
    out = nm.MAML(Cosh(), inner_lr=0.1, inner_steps=2).meta_gradient(phi, nm.TaskBatch(x, x, x, x))
    step = lambda p: p - 0.1 * np.sinh(p)  # noqa: E731
    slope = (1 - 0.1 * np.cosh(phi)) * (1 - 0.1 * np.cosh(step(phi)))
    np.testing.assert_allclose(out.grad, slope * np.sinh(step(step(phi))), rtol=1e-14)
