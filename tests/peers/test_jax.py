"""MAML written as JAX users write it, against npmeta: loss, gradients, Hessian products.

Nothing below calls npmeta to compute: networks, losses and inner loops are JAX's own functions of
explicit formulas, mapped over tasks by ``vmap``, and every derivative is ``jax.grad``'s.
"""

import itertools

import numpy as np
import pytest

from npmeta.network.activations import ACTIVATIONS
from npmeta.network.losses import LOSSES
from tests.helpers import (
    DEPTHS,
    KINDS,
    Problem,
    activations_and_losses,
    assert_close,
    problem,
    step_sizes,
)
from tests.peers.agreement import assert_agree

jax = pytest.importorskip("jax")
jnp = jax.numpy

# Both sides round some hundred operations, each by 1e-16 of the largest term, in different orders.
TIGHT = 1e-12


@pytest.fixture(autouse=True, scope="module")
def x64():
    """float64 in JAX, which has to be asked for, and which other users of the process may not want."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


JAX_ACTIVATIONS = {
    "identity": lambda z: z,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "gelu": lambda z: jax.nn.gelu(z, approximate=False),
    "silu": jax.nn.silu,
    "sin": jnp.sin,
}


def huber(o, y):
    r = jnp.abs(o - y)
    return jnp.where(r <= 1, r**2 / 2, r - 1 / 2).mean()


def margins(o, y):
    return (1 - y) * jax.nn.relu(1 + o - (o * y).sum(-1, keepdims=True))


JAX_LOSSES = {
    "mse": lambda o, y: ((o - y) ** 2).mean(),
    "huber": huber,
    "cross_entropy": lambda o, y: -(y * jax.nn.log_softmax(o)).sum(-1).mean(),
    "binary_cross_entropy": lambda o, y: (
        -(y * jax.nn.log_sigmoid(o) + (1 - y) * jax.nn.log_sigmoid(-o)).mean()
    ),
    "hinge": lambda o, y: margins(o, y).sum(-1).mean(),
    "squared_hinge": lambda o, y: (margins(o, y) ** 2).sum(-1).mean(),
    "poisson_nll": lambda o, y: (jnp.exp(o) - y * o).mean(),
}


def arrays(p: Problem) -> tuple:
    """The four arrays of the tasks in the dtype of theta, labels as one-hot rows."""
    dtype = p.theta.dtype

    def cast(part):
        if part.dtype.kind == "i":
            return jax.nn.one_hot(part, p.model.widths[-1], dtype=dtype)
        return jnp.asarray(part, dtype)

    return tuple(map(cast, (*p.support, *p.query)))


def risk(p: Problem):
    """``(theta, x, y) -> loss`` of one task."""
    widths, fs = p.model.widths, [JAX_ACTIVATIONS[f.name] for f in p.model.activations]

    def loss(theta, x, y):
        start = 0
        for l, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
            W = theta[start : start + n_in * n_out].reshape(n_in, n_out)
            b = theta[start + n_in * n_out : start + (n_in + 1) * n_out]
            start += (n_in + 1) * n_out
            x = jnp.dot(x, W) + b
            if l < len(fs):
                x = fs[l](x)
        return JAX_LOSSES[p.loss](x, y)

    return loss


def jax_maml(p: Problem, alpha, kind, S, decay=0.0, first_order=False):
    """(task losses, d/dθ, d/dα) by ``jax.grad`` through the inner loop."""
    loss, sizes = risk(p), np.array(p.model.layer_sizes)

    def task_loss(theta, alpha, x, y, qx, qy):
        phi = theta
        for s in range(S):
            a = alpha if kind == "number" else alpha[min(s, len(alpha) - 1)]
            if kind in ("layer", "step_and_layer"):
                a = jnp.repeat(a, sizes, total_repeat_length=sizes.sum())
            descent = jax.grad(loss)(phi, x, y) + decay * phi
            phi = phi - a * (jax.lax.stop_gradient(descent) if first_order else descent)
        return loss(phi, qx, qy)

    def meta_loss(theta, alpha):
        losses = jax.vmap(task_loss, (None, None, 0, 0, 0, 0))(theta, alpha, *arrays(p))
        return losses.mean(), losses

    theta, alpha = jnp.asarray(p.theta), jnp.asarray(alpha, p.theta.dtype)
    (by_theta, by_alpha), losses = jax.grad(meta_loss, (0, 1), has_aux=True)(theta, alpha)
    return np.asarray(losses), np.asarray(by_theta), np.asarray(by_alpha)


def compare(p: Problem, alpha, kind, S, decay=0.0, first_order=False, rtol=TIGHT) -> None:
    assert_agree(jax_maml, p, alpha, kind, S, decay, first_order, rtol=rtol)


@pytest.mark.parametrize(("activation", "loss"), list(activations_and_losses()), ids=lambda name: name)
def test_value_gradient_and_hessian_product(activation, loss):
    p = problem(loss, activation)
    theta, v = jnp.asarray(p.theta), np.random.default_rng(0).normal(size=p.theta.shape)
    x, y, *_ = arrays(p)

    def one(x, y):
        def at(phi):
            return risk(p)(phi, x, y)

        grad, Hv = jax.jvp(jax.grad(at), (theta,), (jnp.asarray(v),))
        return at(theta), grad, Hv

    value, grad, Hv = map(np.asarray, jax.vmap(one)(x, y))
    lin = p.risk.linearize(p.theta, *p.support)
    assert_close(lin.value, value, TIGHT)
    assert_close(lin.grad, grad, TIGHT)
    # A linear network with hinge has next to no curvature: measured beside the gradient.
    scale = max(np.abs(Hv).max(), np.abs(grad).max())
    assert np.abs(lin.hvp(v) - Hv).max() <= TIGHT * scale


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("S", range(6))
def test_maml_of_every_activation(activation, S):
    loss = list(LOSSES)[(S + len(activation)) % len(LOSSES)]
    p = problem(loss, activation)
    kind = KINDS[(S + len(activation)) % len(KINDS)]
    compare(p, step_sizes(kind, p.model, S, np.random.default_rng(S)), kind, S, 0.3 * (S % 2))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("first_order", [False, True])
def test_maml_of_every_loss(loss, first_order):
    p = problem(loss, "tanh")
    for S, kind in ((1, "layer"), (3, "step_and_parameter")):
        alpha = step_sizes(kind, p.model, S, np.random.default_rng(S))
        compare(p, alpha, kind, S, 0.2, first_order)


@pytest.mark.parametrize("kind", KINDS)
def test_maml_of_every_kind_of_step_size(kind):
    p = problem("cross_entropy", "silu")
    compare(p, step_sizes(kind, p.model, 3, np.random.default_rng(0)), kind, 3)


@pytest.mark.parametrize("hidden", DEPTHS)
def test_maml_of_every_depth(hidden):
    compare(problem("cross_entropy", "softplus", hidden), np.array(0.1), "number", 3, 0.1)


def test_maml_of_mixed_activations():
    p = problem("mse", ["tanh", "relu", "sin"], (4, 3, 4))
    compare(p, np.array(0.1), "number", 2)


@pytest.mark.parametrize("alpha", [[[0, 0, 0.1]], [[0.1, 0.1, 0]]], ids=["ANIL", "BOIL"])
def test_frozen_layers(alpha):
    compare(problem("cross_entropy", "tanh"), np.array(alpha, float), "layer", 3)


@pytest.mark.parametrize("loss", LOSSES)
def test_float32(loss):
    p = problem(loss).astype(np.float32)
    alpha = step_sizes("layer", p.model, 3, np.random.default_rng(0)).astype(np.float32)
    # Both sides round at 6e-8, some hundred times.
    compare(p, alpha, "layer", 3, 0.1, rtol=2e-5)
