"""MAML's meta-gradient against closed forms, complex steps and differences of the meta-loss."""

import dataclasses
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import npmeta as nm
from npmeta.network.activations import ACTIVATIONS
from npmeta.network.losses import LOSSES
from npmeta.network.passes import forward
from tests.helpers import (
    DEPTHS,
    KINDS,
    H,
    activations_and_losses,
    adjoint_meta_gradient,
    assert_close,
    central_difference,
    complex_step_meta_gradient,
    per_step_and_parameter,
    problem,
    problems,
    relative_error,
    size_of_terms,
    stays_small,
    step_sizes,
)

# Measured, the worst of thousands of cases is 4e-15: some hundred roundings of 1e-16. A wrong formula
# is wrong in the first digits.
TIGHT = 1e-13

every_activation_and_loss = pytest.mark.parametrize(
    ("activation", "loss"), list(activations_and_losses()), ids=lambda name: name
)


def meta_gradient(p, alpha=0.1, S=2, **options) -> nm.MetaGradient:
    """The meta-gradient with respect to theta and the step sizes."""
    maml = nm.MAML(p.model, p.loss, alpha, S, **options)
    return maml.meta_gradient({"theta": p.theta, "inner_lr": np.asarray(alpha)}, p.tasks)


def meta_loss(p, alpha=0.1, S=2, **options):
    """theta -> the meta-loss, without any gradient of the outer level."""
    maml = nm.MAML(p.model, p.loss, alpha, S, **options)
    return lambda theta: maml.evaluate(theta, p.tasks).loss[:, -1].mean()


# --- any network: two oracles -----------------------------------------------------------------------


@every_activation_and_loss
def test_every_number_of_steps_and_kind_of_step_size(activation, loss):
    """θ and α by complex step of the meta-loss; θ again by the adjoint with complex-step products.

    Every number of steps with every second kind, and with the others for the next loss.
    """
    p = problem(loss, activation)
    shift = list(ACTIVATIONS).index(activation) + list(LOSSES).index(loss)
    for S, kind in list(itertools.product(range(6), KINDS))[shift % 2 :: 2]:
        decay = 0.3 * (S % 2)
        alpha = step_sizes(kind, p.model, S, np.random.default_rng(S))
        out = meta_gradient(p, alpha, S, inner_weight_decay=decay)
        by_theta, by_alpha = complex_step_meta_gradient(p, alpha, S, decay)
        case = f"{S} steps, one step size a {kind}:"
        assert_close(out.grad, by_theta, TIGHT, case)
        assert_close(out.grads["inner_lr"], by_alpha, TIGHT, case)
        assert_close(out.grad, adjoint_meta_gradient(p, alpha, S, decay), TIGHT, case)
        assert out.grads["inner_lr"].shape == np.shape(alpha)
        assert out.hessian == "exact"


@settings(max_examples=100)
@given(
    p=problems(),
    S=st.integers(0, 5),
    kind=st.sampled_from(KINDS),
    decay=st.sampled_from([0.0, 0.4]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_network(p, S, kind, decay, seed):
    alpha = step_sizes(kind, p.model, S, np.random.default_rng(seed), size=0.05)
    assume(stays_small(p, alpha, S, decay))
    out = meta_gradient(p, alpha, S, inner_weight_decay=decay)
    by_theta, by_alpha = complex_step_meta_gradient(p, alpha, S, decay)
    terms = size_of_terms(p, alpha, S, decay)
    assert np.abs(out.grad - by_theta).max() <= TIGHT * max(np.abs(by_theta).max(), terms)
    # One number that is a sum over all parameters may cancel: measured by its terms.
    written = per_step_and_parameter(alpha, kind, p.model, max(S, 1))
    by_parameter = meta_gradient(p, written, S, inner_weight_decay=decay).grads["inner_lr"]
    scale = np.abs(by_parameter).sum() + terms
    assert np.abs(out.grads["inner_lr"] - by_alpha).max() <= TIGHT * scale


@pytest.mark.parametrize("hidden", DEPTHS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_depth(hidden, loss):
    p = problem(loss, "silu", hidden)
    out = meta_gradient(p, 0.1, 3)
    assert_close(out.grad, complex_step_meta_gradient(p, 0.1, 3)[0], TIGHT)


@pytest.mark.parametrize(
    "activation", [*ACTIVATIONS, ["tanh", "relu", "sin"]], ids=lambda name: str(name)
)
def test_complex_step_of_the_public_meta_loss(activation):
    """Along the direction that sees second order, through ``evaluate`` with complex parameters."""
    p = problem("cross_entropy", activation, (4, 3, 4))
    exact = meta_gradient(p, 0.2, 3, inner_weight_decay=0.1).grad
    first_order = meta_gradient(p, 0.2, 3, inner_weight_decay=0.1, first_order=True).grad
    second_order = exact - first_order
    u = second_order / np.linalg.norm(second_order)
    by_step = meta_loss(p, 0.2, 3, inner_weight_decay=0.1)(p.theta + 1j * H * u).imag / H
    # ρ is 1 for the exact gradient, 0 for the first-order one, 1/2 for half a Hessian.
    rho = (by_step - first_order @ u) / np.linalg.norm(second_order)
    assert rho == pytest.approx(1, abs=1e-12)


# --- differences, with no complex number ------------------------------------------------------------


def signs(p, theta, alpha, S) -> list[np.ndarray]:
    """Which side of its kink every hidden unit is on, in every pass of the inner and outer loop."""
    maml = nm.MAML(p.model, p.loss, alpha, S)
    seen = []
    for s in range(S + 1):
        x, y = p.support
        phi = maml.adapt(theta, x, y, steps=s)
        at = forward(p.model.layers(phi), p.model.activations, x if s < S else p.tasks.query_x)
        seen += [z > 0 for z in at.z[:-1]]
    return seen


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "binary_cross_entropy", "poisson_nll"])
@pytest.mark.parametrize("S", [1, 3])
def test_central_difference_of_the_meta_loss(activation, loss, S):
    p = problem(loss, activation)
    rng = np.random.default_rng(0)
    grad = meta_gradient(p, 0.1, S).grad
    loss_at = meta_loss(p, 0.1, S)
    sees_second_order = grad - meta_gradient(p, 0.1, S, first_order=True).grad
    for direction in (sees_second_order, rng.normal(size=grad.shape)):
        v = direction / np.linalg.norm(direction)
        h = 1e-5
        if ACTIVATIONS[activation].kinks:  # a difference is meaningless across one
            sides = signs(p, p.theta, 0.1, S)
            while not all(
                np.array_equal(a, b)
                for end in (-h, h)
                for a, b in zip(sides, signs(p, p.theta + end * v, 0.1, S), strict=True)
            ):
                h /= 2
                assert h > 1e-7, "these parameters are too near a kink"
        difference = central_difference(loss_at, p.theta, v, h)
        # Truncation h² times a third derivative of order 1 to 10; rounding 1e-16 / h.
        assert abs(grad @ v - difference) <= 1e-8 * np.linalg.norm(grad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["tanh", "gelu", "sin"])
def test_step_size_gradient_by_central_difference(kind, activation):
    S = 3
    p = problem("cross_entropy", activation)
    alpha = step_sizes(kind, p.model, S, np.random.default_rng(0))
    grad = meta_gradient(p, alpha, S, inner_weight_decay=0.2).grads["inner_lr"]

    def loss_at(values):
        maml = nm.MAML(p.model, p.loss, 0.1, S, inner_weight_decay=0.2)
        params = {"theta": p.theta, "inner_lr": values.reshape(grad.shape)}
        return maml.evaluate(params, p.tasks).loss[:, -1].mean()

    for seed in range(3):
        v = np.random.default_rng(seed).normal(size=grad.size)
        v /= np.linalg.norm(v)
        difference = central_difference(loss_at, alpha.ravel(), v, 1e-5)
        assert abs(grad.ravel() @ v - difference) <= 1e-8 * np.linalg.norm(grad)


# --- the quadratic, in closed form ------------------------------------------------------------------


def quadratic_tasks(T=4, P=3, seed=0):
    """Different matrices and centres for support and query, with eigenvalues of order 1."""
    rng = np.random.default_rng(seed)
    B = rng.normal(size=(2, T, P, P))
    A = B @ B.swapaxes(2, 3) / P + 0.1 * np.eye(P)
    c = rng.normal(size=(2, T, P))
    return nm.TaskBatch(A[0], c[0], A[1], c[1]), rng.normal(size=P)


def quadratic_by_matrices(tasks, theta, alpha, S, decay=0.0):
    """(loss, gradient) with φ_{s+1} = M_s φ_s + α_s ∘ A c, M_s = I − diag(α_s)(A + wI)."""
    losses, grads = [], []
    for A, c, A_q, c_q in zip(
        tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y, strict=True
    ):
        phi, jacobian = theta, np.eye(len(theta))
        for s in range(S):
            M = np.eye(len(theta)) - np.diag(alpha[s]) @ (A + decay * np.eye(len(theta)))
            phi, jacobian = M @ phi + alpha[s] * (A @ c), M @ jacobian
        losses.append((phi - c_q) @ A_q @ (phi - c_q) / 2)
        grads.append(jacobian.T @ A_q @ (phi - c_q))
    return np.array(losses), np.mean(grads, axis=0)


@pytest.mark.parametrize("S", range(6))
@pytest.mark.parametrize("shape", ["number", "step", "parameter", "step_and_parameter"])
@pytest.mark.parametrize("decay", [0.0, 0.25])
def test_quadratic_by_matrices(S, shape, decay):
    tasks, theta = quadratic_tasks()
    P, rows = 3, max(S, 1)
    size = {"number": (), "step": (rows, 1), "parameter": (1, P), "step_and_parameter": (rows, P)}
    alpha = np.random.default_rng(1).uniform(0.05, 0.4, size=size[shape])
    maml = nm.MAML(nm.Quadratic(P), inner_lr=alpha, inner_steps=S, inner_weight_decay=decay)
    out = maml.meta_gradient(theta, tasks)
    written = np.broadcast_to(alpha, (rows, P))
    losses, grad = quadratic_by_matrices(tasks, theta, written, S, decay)
    assert_close(out.task_loss, losses, 1e-14)
    assert out.loss == pytest.approx(losses.mean(), rel=1e-14)
    assert_close(out.grad, grad, 1e-14)


@pytest.mark.parametrize("S", range(6))
def test_quadratic_by_powers(S):
    """The closed form itself: φ_S − c = (I − αA)^S (θ − c), and its derivatives by θ and α."""
    tasks, theta = quadratic_tasks()
    alpha, identity = 0.3, np.eye(3)
    maml = nm.MAML(nm.Quadratic(3), inner_lr=alpha, inner_steps=S)
    out = maml.meta_gradient({"theta": theta, "inner_lr": np.array(alpha)}, tasks)
    grads, by_alpha = [], []
    for t, (A, c) in enumerate(zip(tasks.support_x, tasks.support_y, strict=True)):
        power = np.linalg.matrix_power(identity - alpha * A, S)
        phi = c + power @ (theta - c)
        outer = tasks.query_x[t] @ (phi - tasks.query_y[t])
        grads.append(power.T @ outer)
        less = np.linalg.matrix_power(identity - alpha * A, max(S - 1, 0))
        by_alpha.append(outer @ (-S * A @ less @ (theta - c)))
        adapted = maml.adapt(theta, tasks.support_x, tasks.support_y)
        assert_close(adapted[t], phi, 1e-14)
    assert_close(out.grad, np.mean(grads, axis=0), 1e-14)
    assert_close(out.grads["inner_lr"], np.mean(by_alpha), 1e-13)


def test_weight_decay_of_a_quadratic_is_another_quadratic():
    """½(φ−c)ᵀA(φ−c) + (w/2)‖φ‖² has matrix A + wI and centre (A + wI)⁻¹ A c, up to a constant."""
    tasks, theta = quadratic_tasks()
    w, options = 0.4, {"inner_lr": 0.2, "inner_steps": 4}
    A = tasks.support_x + w * np.eye(3)
    c = np.linalg.solve(A, tasks.support_x @ tasks.support_y[..., None])[..., 0]
    penalised = nm.TaskBatch(A, c, tasks.query_x, tasks.query_y)
    decayed = nm.MAML(nm.Quadratic(3), inner_weight_decay=w, **options).meta_gradient(theta, tasks)
    plain = nm.MAML(nm.Quadratic(3), **options).meta_gradient(theta, penalised)
    assert_close(decayed.grad, plain.grad, 1e-14)
    assert_close(decayed.task_loss, plain.task_loss, 1e-14)


def test_newton_in_one_step():
    """With A = I and α = 1 one step ends at the centre, from anywhere: no gradient is left."""
    identity, c = np.tile(np.eye(3), (2, 1, 1)), np.random.default_rng(0).normal(size=(2, 3))
    tasks = nm.TaskBatch(identity, c, identity, c + 1)
    out = nm.MAML(nm.Quadratic(3), inner_lr=1.0).meta_gradient(np.ones(3), tasks)
    np.testing.assert_array_equal(out.grad, np.zeros(3))
    assert out.loss == pytest.approx(1.5, rel=1e-15)
    first_order = nm.MAML(nm.Quadratic(3), inner_lr=1.0, first_order=True)
    np.testing.assert_allclose(first_order.meta_gradient(np.ones(3), tasks).grad, -np.ones(3))


# --- what the options mean --------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_first_order_is_the_query_gradient_at_the_adapted_parameters(loss):
    p = problem(loss)
    options = {"inner_weight_decay": 0.2, "first_order": True}
    out = meta_gradient(p, 0.1, 3, **options)
    phi = nm.MAML(p.model, loss, 0.1, 3, inner_weight_decay=0.2).adapt(p.theta, *p.support)
    assert_close(out.grad, p.risk.linearize(phi, *p.query).grad.mean(0), 1e-14)
    assert out.hessian == "none"
    exact = meta_gradient(p, 0.1, 3, inner_weight_decay=0.2)
    np.testing.assert_array_equal(out.task_loss, exact.task_loss)
    assert relative_error(out.grad, exact.grad) > 1e-3


@pytest.mark.parametrize("first_order", [False, True])
def test_no_steps_are_joint_training_on_the_query_sets(first_order):
    p = problem("mse")
    out = meta_gradient(p, 0.1, 0, inner_weight_decay=0.5, first_order=first_order)
    lin = p.risk.linearize(p.theta, *p.query)
    assert_close(out.grad, lin.grad.mean(0), 1e-15)
    np.testing.assert_array_equal(out.task_loss, lin.value)
    assert out.grads["inner_lr"] == 0


def test_a_linear_model_with_mse_is_a_quadratic():
    """L(φ) = ½ φᵀAφ − φᵀAc + const with A = ∇²L: MAML's answer must be the matrices'."""
    p = problem("mse", hidden=(), K=12)
    P = p.model.n_params
    parts = []
    for batch in (p.support, p.query):
        lin = p.risk.linearize(np.zeros(P), *batch)
        A = np.stack([lin.hvp(e) for e in np.eye(P)], axis=-1)
        parts += [A, np.linalg.lstsq(A[0], -lin.grad[0], rcond=None)[0][None]]
    # One task, so that the least-squares centre of each set can be solved for.
    A, c, A_q, c_q = (part[:1] for part in parts)
    quadratic = nm.MAML(nm.Quadratic(P), inner_lr=0.1, inner_steps=3)
    expected = quadratic.meta_gradient(p.theta, nm.TaskBatch(A, c, A_q, c_q)).grad
    ours = nm.MAML(p.model, "mse", 0.1, 3).meta_gradient(p.theta, p.tasks[:1]).grad
    assert_close(ours, expected, 1e-11)  # the solve loses the condition number of A


ANIL = np.array([[0.0, 0.0, 0.1]])
BOIL = np.array([[0.1, 0.1, 0.0]])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("per", ["layer", "parameter"])
@pytest.mark.parametrize("alpha", [ANIL, BOIL], ids=["ANIL", "BOIL"])
def test_zeros_freeze_in_the_inner_loop_only(alpha, per, activation):
    p = problem("cross_entropy", activation)
    frozen = np.repeat(alpha[0], p.model.layer_sizes) == 0
    values = alpha if per == "layer" else np.repeat(alpha, p.model.layer_sizes, axis=1)
    maml = nm.MAML(p.model, p.loss, values, 3, inner_weight_decay=0.1)
    phi = maml.adapt(p.theta, *p.support)
    np.testing.assert_array_equal(phi[:, frozen], np.tile(p.theta[frozen], (3, 1)))
    assert (phi[:, ~frozen] != p.theta[~frozen]).any()

    out = meta_gradient(p, values, 3, inner_weight_decay=0.1)
    by_theta, by_alpha = complex_step_meta_gradient(p, values, 3, 0.1)
    assert_close(out.grad, by_theta, TIGHT)
    assert_close(out.grads["inner_lr"], by_alpha, TIGHT)
    assert np.abs(out.grad[frozen]).max() > 0, "frozen parameters still learn outside"


def test_anil_is_maml_of_the_head_on_fixed_features():
    """The head's part of ANIL's gradient is MAML's of a linear model on the last hidden layer."""
    p = problem("mse", "tanh")
    (W, b) = p.model.unpack(p.theta)[-1]
    head = nm.MLP([3, 3])

    def features(x):
        return forward(p.model.layers(p.theta), p.model.activations, x).a[-1]

    tasks = nm.TaskBatch(
        features(p.tasks.support_x), p.tasks.support_y, features(p.tasks.query_x), p.tasks.query_y
    )
    expected = nm.MAML(head, "mse", 0.1, 4).meta_gradient(head.pack([(W, b)]), tasks)
    ours = meta_gradient(p, ANIL, 4)
    assert_close(ours.grad[-head.n_params :], expected.grad, TIGHT)
    assert_close(ours.task_loss, expected.task_loss, 1e-14)


def test_warped_layers_and_negative_step_sizes():
    """A frozen layer in the middle, and one that climbs: no step size is special."""
    p = problem("mse", "relu")
    alpha = np.array([[0.1, 0.0, -0.05]])
    out = meta_gradient(p, alpha, 3)
    by_theta, by_alpha = complex_step_meta_gradient(p, alpha, 3)
    assert_close(out.grad, by_theta, TIGHT)
    assert_close(out.grads["inner_lr"], by_alpha, TIGHT)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_step_sizes_are_one_number(kind):
    p = problem("cross_entropy")
    equal = np.full_like(step_sizes(kind, p.model, 3, np.random.default_rng(0)), 0.1)
    ours, number = meta_gradient(p, equal, 3), meta_gradient(p, 0.1, 3)
    assert_close(ours.grad, number.grad, TIGHT)
    total = ours.grads["inner_lr"].sum()
    terms = np.abs(ours.grads["inner_lr"]).sum()
    assert abs(total - number.grads["inner_lr"]) <= 1e-13 * terms


@pytest.mark.parametrize("kind", ["layer", "step", "parameter"])
def test_one_axis_is_as_good_as_two(kind):
    p = problem("cross_entropy", T=2)
    S = 4  # neither the number of layers nor of parameters
    alpha = step_sizes(kind, p.model, S, np.random.default_rng(0))
    two, one = meta_gradient(p, alpha, S), meta_gradient(p, alpha.ravel(), S)
    np.testing.assert_array_equal(one.grad, two.grad)
    np.testing.assert_array_equal(one.grads["inner_lr"], two.grads["inner_lr"].ravel())


def test_learned_step_sizes_stand_before_the_given_ones():
    p = problem("mse")
    learned = nm.MAML(p.model, "mse", 0.5, 2)
    params = {"theta": p.theta, "inner_lr": np.array(0.1)}
    given = nm.MAML(p.model, "mse", 0.1, 2)
    x, y, qx = p.tasks.support_x, p.tasks.support_y, p.tasks.query_x
    np.testing.assert_array_equal(
        learned.meta_gradient(params, p.tasks).grad, given.meta_gradient(p.theta, p.tasks).grad
    )
    np.testing.assert_array_equal(learned.adapt(params, x, y), given.adapt(p.theta, x, y))
    np.testing.assert_array_equal(learned.predict(params, x, y, qx), given.predict(p.theta, x, y, qx))
    np.testing.assert_array_equal(
        learned.evaluate(params, p.tasks).loss, given.evaluate(p.theta, p.tasks).loss
    )
    # They may have a shape of their own.
    per_layer = {"theta": p.theta, "inner_lr": np.full((1, 3), 0.1)}
    assert learned.meta_gradient(per_layer, p.tasks).grads["inner_lr"].shape == (1, 3)


def test_gradients_come_back_under_the_names_that_went_in():
    p = problem("mse")
    maml = nm.MAML(p.model, "mse", 0.1, 2, learn_inner_lr=True)
    assert set(maml.meta_gradient(p.theta, p.tasks).grads) == {"theta"}
    assert set(maml.meta_gradient({"theta": p.theta}, p.tasks).grads) == {"theta"}
    params = maml.init(np.random.default_rng(0))
    out = maml.meta_gradient(params, p.tasks)
    assert set(out.grads) == set(params) == {"theta", "inner_lr"}
    for name, value in params.items():
        assert out.grads[name].shape == value.shape
    assert out.grad is out.grads["theta"]
    assert out.loss == pytest.approx(out.task_loss.mean(), rel=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_init(dtype):
    model = nm.MLP([2, 3, 1])
    theta = model.init(np.random.default_rng(0), dtype)
    params = nm.MAML(model).init(np.random.default_rng(0), dtype)
    assert set(params) == {"theta"}
    np.testing.assert_array_equal(params["theta"], theta)
    values = np.full((2, 1), 0.1)
    params = nm.MAML(model, inner_lr=values, inner_steps=2, learn_inner_lr=True).init(
        np.random.default_rng(0), dtype
    )
    np.testing.assert_array_equal(params["inner_lr"], values.astype(dtype))
    assert params["theta"].dtype == params["inner_lr"].dtype == dtype
    params["inner_lr"][...] = 0
    assert values[0, 0] == 0.1, "init makes a copy"


# --- batches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_the_mean_of_its_tasks(loss, kind):
    p = problem(loss, T=4)
    alpha = step_sizes(kind, p.model, 3, np.random.default_rng(0))
    maml = nm.MAML(p.model, loss, alpha, 3, inner_weight_decay=0.1)
    params = {"theta": p.theta, "inner_lr": alpha}
    together = maml.meta_gradient(params, p.tasks)
    alone = [maml.meta_gradient(params, p.tasks[t : t + 1]) for t in range(4)]
    # The same sums over rows, in an order that depends on the batch.
    assert_close(together.task_loss, np.concatenate([one.task_loss for one in alone]), 1e-14)
    assert together.loss == pytest.approx(np.mean([one.loss for one in alone]), rel=1e-14)
    assert_close(together.grad, np.mean([one.grad for one in alone], axis=0), 1e-13)
    scale = max(np.abs(one.grads["inner_lr"]).max() for one in alone)
    mean = np.mean([one.grads["inner_lr"] for one in alone], axis=0)
    assert np.abs(together.grads["inner_lr"] - mean).max() <= 1e-13 * scale


@pytest.mark.parametrize("loss", LOSSES)
def test_the_order_of_tasks_and_rows_does_not_matter(loss):
    p = problem(loss, T=4)
    maml = nm.MAML(p.model, loss, 0.1, 3)
    before = maml.meta_gradient(p.theta, p.tasks)
    order = np.array([2, 0, 3, 1])
    shuffled = maml.meta_gradient(p.theta, p.tasks[order])
    assert_close(shuffled.grad, before.grad, 1e-14)
    assert_close(shuffled.task_loss, before.task_loss[order], 1e-14)
    rows = np.random.default_rng(0).permutation(5)
    other = dataclasses.replace(
        p, tasks=nm.TaskBatch(p.tasks.support_x[:, rows], p.tasks.support_y[:, rows], *p.query)
    )
    assert_close(maml.meta_gradient(p.theta, other.tasks).grad, before.grad, TIGHT)


def test_a_task_twice_weighs_twice():
    p = problem("mse", T=3)
    maml = nm.MAML(p.model, "mse", 0.1, 2)
    one, two = (maml.meta_gradient(p.theta, p.tasks[[t]]).grad for t in (0, 1))
    out = maml.meta_gradient(p.theta, p.tasks[[0, 0, 1]])
    assert_close(out.grad, (2 * one + two) / 3, 1e-13)


def test_arguments_are_left_alone():
    p = problem("cross_entropy")
    alpha = step_sizes("step_and_parameter", p.model, 3, np.random.default_rng(0))
    arrays = [p.theta, alpha, *p.support, *p.query]
    kept = [array.copy() for array in arrays]
    maml = nm.MAML(p.model, p.loss, alpha, 3, inner_weight_decay=0.1)
    first = maml.meta_gradient({"theta": p.theta, "inner_lr": alpha}, p.tasks)
    maml.adapt(p.theta, *p.support)[...] = 0
    maml.adapt(p.theta, *p.support, steps=0)[...] = 0
    maml.evaluate(p.theta, p.tasks)
    maml.predict(p.theta, *p.support, p.tasks.query_x)
    for array, copy in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(array, copy)
    again = maml.meta_gradient({"theta": p.theta, "inner_lr": alpha}, p.tasks)
    np.testing.assert_array_equal(again.grad, first.grad)
    first.grad[...] = 0
    first.grads["inner_lr"][...] = 0
    np.testing.assert_array_equal(alpha, kept[1])


# --- precision --------------------------------------------------------------------------------------


@every_activation_and_loss
def test_float32_agrees_with_float64(activation, loss):
    single = problem(loss, activation).astype(np.float32)
    double = single.astype(np.float64)  # the same numbers: only the arithmetic differs
    for S, kind in zip((1, 3, 5), ("number", "layer", "step_and_parameter"), strict=True):
        alpha = step_sizes(kind, single.model, S, np.random.default_rng(0)).astype(np.float32)
        low, high = meta_gradient(single, alpha, S), meta_gradient(double, alpha, S)
        # Some hundred roundings of 6e-8.
        assert_close(low.grad, high.grad, 2e-5)
        assert_close(low.task_loss, high.task_loss, 1e-5)
        scale = np.abs(high.grads["inner_lr"]).max() + np.abs(high.grad).max()
        assert np.abs(low.grads["inner_lr"] - high.grads["inner_lr"]).max() <= 2e-5 * scale


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("decay", [0, 0.1, np.float32(0.1), np.float64(0.1)], ids=repr)
def test_the_parameters_set_the_dtype(dtype, kind, first_order, decay):
    p = problem("cross_entropy", "gelu").astype(dtype)
    alpha = step_sizes(kind, p.model, 2, np.random.default_rng(0))  # float64, as is the data
    maml = nm.MAML(p.model, p.loss, alpha, 2, inner_weight_decay=decay, first_order=first_order)
    out = maml.meta_gradient({"theta": p.theta, "inner_lr": alpha}, p.tasks)
    results = {
        "theta": out.grad,
        "inner_lr": out.grads["inner_lr"],
        "task_loss": out.task_loss,
        "adapt": maml.adapt(p.theta, *p.support),
        "predict": maml.predict(p.theta, *p.support, p.tasks.query_x),
        "evaluate": maml.evaluate(p.theta, p.tasks).loss,
    }
    assert {name: values.dtype for name, values in results.items()} == dict.fromkeys(results, dtype)
    assert type(out.loss) is float


def test_integer_parameters_become_float64():
    maml = nm.MAML(nm.Quadratic(2), inner_lr=0.5)
    A, c = np.tile(np.eye(2), (3, 1, 1)), np.zeros((3, 2))
    out = maml.meta_gradient([4, 2], nm.TaskBatch(A, c, A, c))
    assert out.grad.dtype == np.float64
    np.testing.assert_array_equal(out.grad, [1.0, 0.5])


# --- adapt, predict, evaluate -----------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_is_adapt_and_apply(loss, kind):
    p = problem(loss)
    alpha = step_sizes(kind, p.model, 3, np.random.default_rng(0))
    maml = nm.MAML(p.model, loss, alpha, 3, inner_weight_decay=0.1)
    scores = maml.evaluate(p.theta, p.tasks, steps=5)
    assert scores.loss.shape == (3, 6)
    written = per_step_and_parameter(alpha, kind, p.model, 3)
    y = LOSSES[loss].prepare(p.tasks.query_y, 3, p.theta.dtype)
    phi = np.tile(p.theta, (3, 1))
    for s in range(6):
        outputs = p.model.apply(phi, p.tasks.query_x)
        assert_close(scores.loss[:, s], LOSSES[loss](outputs, y).value, 1e-13)
        if LOSSES[loss].targets == "classes":
            right = outputs.argmax(-1) == y.argmax(-1)
            np.testing.assert_array_equal(scores.accuracy[:, s], right.mean(1))
        assert_close(maml.adapt(p.theta, *p.support, steps=s), phi, 1e-13)
        assert_close(maml.predict(p.theta, *p.support, p.tasks.query_x, steps=s), outputs, 1e-13)
        # Steps beyond those trained for use the last one's step sizes.
        grad = p.risk.linearize(phi, *p.support).grad
        phi = phi - written[min(s, 2)] * (grad + 0.1 * phi)
    if LOSSES[loss].targets in ("values", "counts"):
        assert scores.accuracy is None
    else:
        assert scores.accuracy.shape == (3, 6)


def test_the_default_is_as_many_steps_as_trained_for():
    p = problem("mse")
    maml = nm.MAML(p.model, "mse", 0.1, 3)
    x, y, qx = p.tasks.support_x, p.tasks.support_y, p.tasks.query_x
    np.testing.assert_array_equal(maml.adapt(p.theta, x, y), maml.adapt(p.theta, x, y, 3))
    np.testing.assert_array_equal(maml.predict(p.theta, x, y, qx), maml.predict(p.theta, x, y, qx, 3))
    assert maml.evaluate(p.theta, p.tasks).loss.shape == (3, 4)
    last = maml.evaluate(p.theta, p.tasks).loss[:, -1]
    np.testing.assert_array_equal(last, maml.meta_gradient(p.theta, p.tasks).task_loss)
    np.testing.assert_array_equal(maml.adapt(p.theta, x, y, 0), np.tile(p.theta, (3, 1)))


def test_evaluate_adapts_where_nothing_was_trained_for():
    p = problem("mse")
    maml = nm.MAML(p.model, "mse", 0.1, 0)
    one = nm.MAML(p.model, "mse", 0.1, 4).evaluate(p.theta, p.tasks).loss
    np.testing.assert_array_equal(maml.evaluate(p.theta, p.tasks, steps=4).loss, one)


def test_a_meta_step_downhill_lowers_the_meta_loss():
    """First-order Taylor: L(θ − εg) ≈ L(θ) − ε‖g‖², with an error that falls as ε²."""
    p = problem("mse")
    out, loss_at = meta_gradient(p, 0.1, 3), meta_loss(p, 0.1, 3)
    errors = [
        abs(loss_at(p.theta - e * out.grad) - (out.loss - e * out.grad @ out.grad))
        for e in (1e-3, 1e-4)
    ]
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.05)


# --- objectives of your own -------------------------------------------------------------------------


def function_of(p, *, with_hvp=True) -> nm.FunctionObjective:
    """The same model as a user would write it: functions of one task."""

    def value_and_grad(phi, x, y):
        lin = p.risk.linearize(phi, x[None], y[None])
        return lin.value[0], lin.grad[0]

    def hvp(phi, x, y, v):
        return p.risk.linearize(phi, x[None], y[None]).hvp(v)[0]

    return nm.FunctionObjective(p.model.n_params, value_and_grad, hvp if with_hvp else None)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["number", "step", "parameter", "step_and_parameter"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_function_of_your_own_gets_the_same_answer(loss, kind, dtype):
    p = problem(loss).astype(dtype)
    alpha = step_sizes(kind, p.model, 3, np.random.default_rng(0))
    params = {"theta": p.theta, "inner_lr": alpha}
    ours = nm.MAML(p.model, loss, alpha, 3, inner_weight_decay=0.1).meta_gradient(params, p.tasks)
    maml = nm.MAML(function_of(p), None, alpha, 3, inner_weight_decay=0.1)
    theirs = maml.meta_gradient(params, p.tasks)
    assert theirs.hessian == "supplied"
    assert theirs.grad.dtype == theirs.grads["inner_lr"].dtype == dtype
    tolerance = 100 * np.finfo(dtype).eps
    assert_close(theirs.task_loss, ours.task_loss, tolerance)
    assert_close(theirs.grad, ours.grad, tolerance)
    scale = np.abs(ours.grads["inner_lr"]).max() + np.abs(ours.grad).max()
    assert np.abs(theirs.grads["inner_lr"] - ours.grads["inner_lr"]).max() <= tolerance * scale
    scores = maml.evaluate(params, p.tasks)
    assert scores.accuracy is None
    assert_close(scores.loss[:, -1], ours.task_loss, tolerance)
    adapted = maml.adapt(params, *p.support)
    expected = nm.MAML(p.model, loss, alpha, 3, inner_weight_decay=0.1).adapt(params, *p.support)
    assert_close(adapted, expected, tolerance)


@pytest.mark.parametrize("activation", ["tanh", "gelu"])
def test_a_central_difference_stands_in_for_a_hessian(activation):
    p = problem("cross_entropy", activation)
    ours = meta_gradient(p, 0.1, 3)
    maml = nm.MAML(function_of(p, with_hvp=False), None, 0.1, 3)
    theirs = maml.meta_gradient(p.theta, p.tasks)
    assert theirs.hessian == "central difference"
    assert_close(theirs.grad, ours.grad, 1e-8)
    assert relative_error(theirs.grad, ours.grad) > 1e-14, "no difference is exact"
    first_order = dataclasses.replace(maml, first_order=True).meta_gradient(p.theta, p.tasks)
    assert first_order.hessian == "none"


# --- errors -----------------------------------------------------------------------------------------

MODEL = nm.MLP([2, 4, 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_steps": -1}, "inner_steps must be a whole number of at least 0, got -1"),
        ({"inner_steps": 1.0}, "inner_steps must be a whole number of at least 0, got 1.0"),
        ({"inner_steps": True}, "inner_steps must be a whole number of at least 0, got True"),
        ({"inner_steps": None}, "inner_steps must be a whole number"),
        ({"inner_weight_decay": -0.1}, "inner_weight_decay must be a number of at least 0, got -0.1"),
        ({"inner_weight_decay": np.nan}, "inner_weight_decay must be a number of at least 0"),
        ({"inner_weight_decay": np.inf}, "inner_weight_decay must be a number of at least 0"),
        ({"inner_lr": np.nan}, "inner_lr must be finite, but inner_lr is nan"),
        ({"inner_lr": np.ones(5)}, r"inner_lr must be a number, .*; got shape \(5,\)"),
        ({"inner_lr": np.ones(2), "inner_steps": 2}, "could be one per step or one per layer"),
        ({"loss": "cros_entropy"}, "unknown loss 'cros_entropy'.*did you mean 'cross_entropy'"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        nm.MAML(MODEL, **options)


def test_models_that_are_none():
    with pytest.raises(
        ValueError, match="an objective brings its own loss; pass loss only with an MLP"
    ):
        nm.MAML(nm.Quadratic(2), "mse")
    with pytest.raises(ValueError, match="model must be an MLP or an objective, got ndarray"):
        nm.MAML(np.ones(3))


def test_numpy_integers_count_steps():
    p = problem("mse")
    out = nm.MAML(p.model, "mse", 0.1, np.int64(2)).meta_gradient(p.theta, p.tasks)
    np.testing.assert_array_equal(out.grad, meta_gradient(p, 0.1, 2).grad)


def tasks_for(model, y=None):
    x = np.ones((2, 3, model.widths[0]))
    y = np.ones((2, 3, model.widths[-1])) if y is None else y
    return nm.TaskBatch(x, y, x, y)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (np.ones(26), r"theta must have shape \(27,\) or \(T, 27\), got \(26,\)"),
        (np.ones((2, 27)), r"theta must have shape \(27,\), got \(2, 27\)"),
        (np.ones(27, np.float16), "theta must be float32 or float64, got dtype float16"),
        (np.full(27, np.nan), r"theta must be finite, but theta\[0\] is nan \(27 of 27"),
        ({"inner_lr": 0.1}, r"meta-parameters must have a 'theta', got \['inner_lr'\]"),
        ({"theta": np.ones(27), "beta": 1}, "MAML has no meta-parameter 'beta'"),
        ({"theta": np.ones(27), "inner_lr": np.ones(5)}, r"got shape \(5,\)"),
        ({"theta": np.ones(27), "inner_lr": np.inf}, "inner_lr must be finite"),
    ],
)
def test_bad_meta_parameters(params, message):
    maml, tasks = nm.MAML(MODEL), tasks_for(MODEL)
    x, y = tasks.support_x, tasks.support_y
    for call in (
        lambda: maml.meta_gradient(params, tasks),
        lambda: maml.evaluate(params, tasks),
        lambda: maml.adapt(params, x, y),
        lambda: maml.predict(params, x, y, x),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_bad_tasks_name_the_set():
    theta = np.ones(27)
    maml = nm.MAML(MODEL, "cross_entropy")
    good, bad = np.zeros((2, 3), int), np.full((2, 3), 3)
    x = np.ones((2, 3, 2))
    for tasks, name in (
        (nm.TaskBatch(x, bad, x, good), "support_y"),
        (nm.TaskBatch(x, good, x, bad), "query_y"),
    ):
        for call in (maml.meta_gradient, maml.evaluate):
            with pytest.raises(ValueError, match=rf"labels in {name} must lie in 0..2 .* got 3"):
                call(theta, tasks)
    wide = nm.TaskBatch(np.ones((2, 3, 5)), good, np.ones((2, 3, 5)), good)
    with pytest.raises(
        ValueError, match=r"support_x must have shape .* with 2 inputs, got \(2, 3, 5\)"
    ):
        maml.meta_gradient(theta, wide)
    with pytest.raises(ValueError, match=r"labels in support_y must lie in 0..2 .* got 3"):
        maml.adapt(theta, x, bad)


def test_bad_arguments_of_adapt_predict_and_evaluate():
    maml, theta = nm.MAML(MODEL), np.ones(27)
    tasks = tasks_for(MODEL)
    x, y = tasks.support_x, tasks.support_y
    for call in (
        lambda: maml.adapt(theta, x, y, -1),
        lambda: maml.predict(theta, x, y, x, 1.5),
        lambda: maml.evaluate(theta, tasks, steps=True),
    ):
        with pytest.raises(ValueError, match="steps must be a whole number of at least 0, got"):
            call()
    for query in (x[:1], x[0]):
        with pytest.raises(ValueError, match=r"query_x must have shape \(2, Q, n_in\), as many tasks"):
            maml.predict(theta, x, y, query)
    with pytest.raises(ValueError, match=r"query_x must have shape .* with 2 inputs"):
        maml.predict(theta, x, y, np.ones((2, 3, 4)))
    with pytest.raises(ValueError, match=r"support_x and support_y must agree in tasks and rows"):
        maml.adapt(theta, x, y[:, :2])
    with pytest.raises(
        ValueError, match=r"support_x must have shape .* with at least one task and one row"
    ):
        maml.adapt(theta, x[:, :0], y[:, :0])


def test_what_an_objective_cannot_do():
    maml = nm.MAML(nm.Quadratic(2))
    with pytest.raises(ValueError, match="an objective has no initial parameters; pass your own theta"):
        maml.init(np.random.default_rng(0))
    with pytest.raises(ValueError, match="an objective makes no predictions; adapt, and use its"):
        maml.predict(np.ones(2), np.ones((1, 2, 2)), np.ones((1, 2)), np.ones((1, 2, 2)))


# --- scores -----------------------------------------------------------------------------------------


def test_scores():
    loss = np.array([[4.0, 1.0], [2.0, 3.0], [3.0, 2.0]])
    scores = nm.Scores(loss, loss / 4)
    np.testing.assert_array_equal(scores.mean(), [3.0, 2.0])
    np.testing.assert_array_equal(scores.mean("accuracy"), [0.75, 0.5])
    # Standard deviation 1 of three tasks; t of two degrees of freedom is (2p − 1) / √(2p(1 − p)).
    t = 0.95 / np.sqrt(2 * 0.975 * 0.025)
    np.testing.assert_allclose(scores.interval(), [t / np.sqrt(3)] * 2, rtol=1e-12)
    np.testing.assert_allclose(scores.interval("accuracy"), [t / np.sqrt(3) / 4] * 2, rtol=1e-12)
    assert np.isnan(nm.Scores(loss[:1], None).interval()).all()
    # Of many tasks it is the normal distribution's.
    many = nm.Scores(np.random.default_rng(0).normal(size=(10_000, 1)), None)
    np.testing.assert_allclose(many.interval(), 1.96 * many.loss.std() / 100, rtol=1e-3)
    joined = nm.Scores.join([nm.Scores(loss[:1], loss[:1]), nm.Scores(loss[1:], loss[1:])])
    np.testing.assert_array_equal(joined.loss, loss)
    np.testing.assert_array_equal(joined.accuracy, loss)
    assert nm.Scores.join([nm.Scores(loss, None)] * 2).accuracy is None
    named = nm.Scores.join([nm.Scores(loss, None, ["a", "b", "a"]), nm.Scores(loss[:1], None, ["a"])])
    assert named.n_tasks == 2
    np.testing.assert_array_equal(named.mean(), [(11 / 3 + 2) / 2, (4 / 3 + 3) / 2])
    for of in ("accuracy", "speed"):
        with pytest.raises(ValueError, match=f"there is no '{of}' here"):
            nm.Scores(loss, None).mean(of)


def test_means_of_scores_are_taken_in_float64():
    loss = np.full((10_001, 1), 0.1, np.float32)
    assert nm.Scores(loss, None).mean()[0] == pytest.approx(np.float64(np.float32(0.1)), rel=1e-13)


def test_the_step_sizes_are_a_copy():
    sizes = np.array([[0.1, 0.2]])
    maml = nm.MAML(nm.MLP([1, 2, 1]), inner_lr=sizes)
    sizes *= 50
    assert maml.inner_lr.tolist() == [[0.1, 0.2]]
    with pytest.raises(ValueError, match="read-only"):
        maml.inner_lr[:] = 0


def test_a_risk_is_as_good_as_a_model_and_a_loss():
    model = nm.MLP([2, 3, 1], activation="tanh")
    risk, both = nm.MAML(nm.Risk(model, "huber")), nm.MAML(model, "huber")
    params = risk.init(np.random.default_rng(0))
    x, y = np.ones((2, 4, 2)), np.ones((2, 4, 1))
    np.testing.assert_array_equal(params["theta"], both.init(np.random.default_rng(0))["theta"])
    np.testing.assert_array_equal(risk.predict(params, x, y, x), both.predict(params, x, y, x))


@pytest.mark.parametrize("loss", nm.losses.LOSSES)
def test_it_can_be_sent_to_another_process(loss):
    model = nm.MLP([2, 3, 4, 3], activation=["gelu", "leaky_relu"])
    maml = pickle.loads(pickle.dumps(nm.MAML(model, loss, inner_lr=[[0.1, 0.2, 0.0]], inner_steps=2)))
    theta = model.init(np.random.default_rng(0))
    y = np.zeros((2, 4), int) if maml.objective.loss.targets == "classes" else np.ones((2, 4, 3))
    tasks = nm.TaskBatch(np.ones((2, 4, 2)), y, np.ones((2, 4, 2)), y)
    expected = nm.MAML(model, loss, inner_lr=[[0.1, 0.2, 0.0]], inner_steps=2).meta_gradient(
        theta, tasks
    )
    np.testing.assert_array_equal(maml.meta_gradient(theta, tasks).grad, expected.grad)
