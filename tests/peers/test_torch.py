"""MAML written as PyTorch users write it, against npmeta: loss, gradients, Hessian products.

Nothing below calls npmeta to compute: networks, losses and inner loops are PyTorch's own, and every
derivative, first or second, is autograd's.
"""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from npmeta.network.activations import ACTIVATIONS
from npmeta.network.losses import LOSSES
from tests.helpers import (
    DEPTHS,
    KINDS,
    Problem,
    activations_and_losses,
    assert_close,
    problem,
    problems,
    stays_small,
    step_sizes,
)
from tests.peers.agreement import assert_agree

torch = pytest.importorskip("torch")
F = torch.nn.functional

# Both sides round some hundred operations, each by 1e-16 of the largest term, in different orders.
TIGHT = 1e-12


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads cost more than they do on matrices of a few numbers, a hundred times over."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


TORCH_ACTIVATIONS = {
    "identity": lambda z: z,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "gelu": F.gelu,
    "silu": F.silu,
    "sin": torch.sin,
}


def margins(o, labels):
    """max(0, 1 + o_c − o_y), wrong classes only: F.multi_margin_loss has no second derivative."""
    right = o.gather(-1, labels[..., None])
    wrong = 1 - F.one_hot(labels, o.shape[-1]).to(o.dtype)
    return wrong * F.relu(1 + o - right)


TORCH_LOSSES = {
    "mse": F.mse_loss,
    "huber": F.huber_loss,
    "cross_entropy": F.cross_entropy,
    "binary_cross_entropy": F.binary_cross_entropy_with_logits,
    "hinge": lambda o, y: margins(o, y).sum(-1).mean(),
    "squared_hinge": lambda o, y: margins(o, y).square().sum(-1).mean(),
    "poisson_nll": F.poisson_nll_loss,
}

every_activation_and_loss = pytest.mark.parametrize(
    ("activation", "loss"), list(activations_and_losses()), ids=lambda name: name
)


def tensor(values, dtype=None):
    """A tensor; labels stay integers."""
    t = torch.as_tensor(np.array(values))
    return t if dtype is None or not t.is_floating_point() else t.to(dtype)


def network(p: Problem, theta, x):
    """The network at a flat theta, through ``F.linear`` and slices."""
    n_params = [n_in * n_out for n_in, n_out in itertools.pairwise(p.model.widths)]
    biases = p.model.widths[1:]
    pieces = theta.split([n for pair in zip(n_params, biases, strict=True) for n in pair])
    fs = [TORCH_ACTIVATIONS[f.name] for f in p.model.activations]
    for l, (W, b) in enumerate(zip(pieces[::2], pieces[1::2], strict=True)):
        x = F.linear(x, W.reshape(-1, len(b)).T, b)
        if l < len(fs):
            x = fs[l](x)
    return x


def written_out(p: Problem, alpha, kind, S):
    """The step sizes of every step and parameter."""
    if kind in ("layer", "step_and_layer"):
        alpha = alpha.repeat_interleave(torch.tensor(p.model.layer_sizes), dim=-1)
    return [alpha if kind == "number" else alpha[min(s, len(alpha) - 1)] for s in range(S)]


def torch_maml(p: Problem, alpha, kind, S, decay=0.0, first_order=False):
    """(task losses, d/dθ, d/dα) by a double backward pass through the inner loop."""
    dtype = tensor(p.theta).dtype
    theta = tensor(p.theta).requires_grad_()
    alpha = tensor(alpha, dtype).requires_grad_()
    loss_of = TORCH_LOSSES[p.loss]
    losses = []
    for t in range(len(p.tasks)):
        x, y, qx, qy = (tensor(part[t], dtype) for part in (*p.support, *p.query))
        phi = theta
        for a in written_out(p, alpha, kind, S):
            loss = loss_of(network(p, phi, x), y)
            (descent,) = torch.autograd.grad(loss, phi, create_graph=not first_order)
            descent = descent + decay * phi
            phi = phi - a * (descent.detach() if first_order else descent)
        losses.append(loss_of(network(p, phi, qx), qy))
    losses = torch.stack(losses)
    by_theta, by_alpha = torch.autograd.grad(losses.mean(), (theta, alpha), materialize_grads=True)
    return losses.detach().numpy(), by_theta.numpy(), by_alpha.numpy()


def compare(p: Problem, alpha, kind, S, decay=0.0, first_order=False, rtol=TIGHT) -> None:
    assert_agree(torch_maml, p, alpha, kind, S, decay, first_order, rtol=rtol)


# --- one level down: values, gradients, Hessian products --------------------------------------------


@every_activation_and_loss
def test_value_gradient_and_hessian_product(activation, loss):
    for hidden in DEPTHS:
        p = problem(loss, activation, hidden)
        v = np.random.default_rng(0).normal(size=p.theta.shape)
        lin = p.risk.linearize(p.theta, *p.support)
        product = lin.hvp(v)
        for t in range(len(p.tasks)):
            x, y = (tensor(part[t]) for part in p.support)

            def loss_at(theta, p=p, x=x, y=y):
                return TORCH_LOSSES[p.loss](network(p, theta, x), y)

            theta = tensor(p.theta)
            value, Hv = torch.autograd.functional.hvp(loss_at, theta, tensor(v))
            grad = torch.autograd.functional.jacobian(loss_at, theta)
            assert_close(lin.value[t], value.numpy(), TIGHT)
            assert_close(lin.grad[t], grad.numpy(), TIGHT)
            # A linear network with hinge has no curvature, and autograd rounds its way to that.
            scale = max(np.abs(Hv.numpy()).max(), np.abs(grad.numpy()).max())
            assert np.abs(product[t] - Hv.numpy()).max() <= TIGHT * scale


@pytest.mark.parametrize(("name", "power"), [("hinge", 1), ("squared_hinge", 2)])
def test_hinges_are_multi_margin_loss_times_the_number_of_classes(name, power):
    p = problem(name)
    lin = p.risk.linearize(p.theta, *p.support)
    for t in range(len(p.tasks)):
        x, y = (tensor(part[t]) for part in p.support)
        theta = tensor(p.theta).requires_grad_()
        loss = 3 * F.multi_margin_loss(network(p, theta, x), y, p=power)
        (grad,) = torch.autograd.grad(loss, theta)
        assert_close(lin.value[t], loss.detach().numpy(), TIGHT)
        assert_close(lin.grad[t], grad.numpy(), TIGHT)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_jvp_and_vjp(activation):
    p = problem("mse", activation)
    rng = np.random.default_rng(0)
    x, v, u = p.tasks.support_x[0], rng.normal(size=p.theta.shape), rng.normal(size=(5, 3))

    def outputs(theta):
        return network(p, theta, tensor(x))

    theta = tensor(p.theta)
    o, pushed = torch.autograd.functional.jvp(outputs, theta, tensor(v))
    _, pulled = torch.autograd.functional.vjp(outputs, theta, tensor(u))
    assert_close(p.model.apply(p.theta, x), o.numpy(), TIGHT)
    assert_close(p.model.jvp(p.theta, x, v), pushed.numpy(), TIGHT)
    assert_close(p.model.vjp(p.theta, x, u), pulled.numpy(), TIGHT)


# --- MAML -------------------------------------------------------------------------------------------


@every_activation_and_loss
def test_maml(activation, loss):
    p = problem(loss, activation)
    for S, first_order in itertools.product(range(6), (False, True)):
        kind = KINDS[(S + len(activation) + len(loss)) % len(KINDS)]
        alpha = step_sizes(kind, p.model, S, np.random.default_rng(S))
        compare(p, alpha, kind, S, 0.3 * (S % 2), first_order)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hidden", DEPTHS)
def test_maml_of_every_depth_and_kind_of_step_size(kind, hidden):
    for loss, S in itertools.product(("cross_entropy", "mse"), (1, 3)):
        p = problem(loss, "silu", hidden)
        compare(p, step_sizes(kind, p.model, S, np.random.default_rng(S)), kind, S, 0.1)


@settings(max_examples=60)
@given(
    p=problems(),
    S=st.integers(0, 5),
    kind=st.sampled_from(KINDS),
    decay=st.sampled_from([0.0, 0.4]),
    first_order=st.booleans(),
)
def test_maml_of_any_network(p, S, kind, decay, first_order):
    alpha = step_sizes(kind, p.model, S, np.random.default_rng(S), size=0.05)
    assume(stays_small(p, alpha, S, decay))
    compare(p, alpha, kind, S, decay, first_order)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("alpha", [[[0, 0, 0.1]], [[0.1, 0.1, 0]]], ids=["ANIL", "BOIL"])
def test_frozen_layers(activation, alpha):
    compare(problem("cross_entropy", activation), np.array(alpha, float), "layer", 3)


@pytest.mark.parametrize("loss", LOSSES)
def test_float32(loss):
    p = problem(loss).astype(np.float32)
    alpha = step_sizes("layer", p.model, 3, np.random.default_rng(0)).astype(np.float32)
    # Both sides round at 6e-8, some hundred times.
    compare(p, alpha, "layer", 3, 0.1, rtol=2e-5)
