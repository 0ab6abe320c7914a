"""T-nets and warp layers as PyTorch users write them, against npmeta's; and what they get wrong.

Nothing below calls npmeta to compute: task and warp layers are two lists of tensors, the inner loop
takes gradients by the first alone, and every derivative is autograd's.
"""

import itertools

import numpy as np
import pytest

import npmeta as nm
from npmeta.algorithms import Warp
from tests.algorithms import with_noise
from tests.helpers import assert_close, problem

# one_thread is a fixture that every test of a module takes which has its name.
from tests.peers.test_torch import TORCH_ACTIVATIONS, TORCH_LOSSES, one_thread  # noqa: F401

torch = pytest.importorskip("torch")

# Both sides round some hundred operations, each by 1e-16 of the largest term, in different orders.
TIGHT = 1e-12


def outputs(f, g, task, warp, x):
    """A T-net's where there is no g, else those with warp layers behind the activations."""
    *hidden, last = zip(task, warp, strict=True)
    for (W, b), (T, c) in hidden:
        x = f((x @ W + b) @ T + c) if g is None else g(f(x @ W + b) @ T + c)
    (W, b), (T, c) = last
    return (x @ W + b) @ T + c


def meta_gradient(
    p, alpha, S, f, g, theta, first_order=False, warp_learned=True, warp_adapted=False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(task losses, d/dθ, d/dα); the last two arguments are mistakes."""
    f = TORCH_ACTIVATIONS[f]
    g = None if g == "identity" else TORCH_ACTIVATIONS[g]
    widths = [n for n in p.model.widths[1:] for _ in range(2)]
    pairs = itertools.pairwise([p.model.widths[0], *widths])
    sizes = [size for n_in, n_out in pairs for size in ((n_in, n_out), (n_out,))]
    parts = torch.tensor(theta).split([int(np.prod(size)) for size in sizes])
    arrays = [part.reshape(size).requires_grad_() for part, size in zip(parts, sizes, strict=True)]
    alpha = torch.tensor(alpha).requires_grad_()

    def layers(flat):
        return [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)]

    def split(arrays):
        task = [array for i, array in enumerate(arrays) if i % 4 < 2]
        return task, [array for i, array in enumerate(arrays) if i % 4 >= 2]

    losses = []
    for t in range(len(p.tasks)):
        x, y, qx, qy = (torch.tensor(part[t]) for part in (*p.support, *p.query))
        task, warp = split(arrays)
        if not warp_learned:
            warp = [array.detach() for array in warp]
        for _ in range(S):
            moving = task + warp if warp_adapted else task
            loss = TORCH_LOSSES[p.loss](outputs(f, g, layers(task), layers(warp), x), y)
            grads = torch.autograd.grad(loss, moving, create_graph=not first_order)
            moving = [
                array - alpha[i // 2 % len(alpha)] * grad
                for i, (array, grad) in enumerate(zip(moving, grads, strict=True))
            ]
            task, warp = moving[: len(task)], moving[len(task) :] or warp
        losses.append(TORCH_LOSSES[p.loss](outputs(f, g, layers(task), layers(warp), qx), qy))
    losses = torch.stack(losses)
    grads = torch.autograd.grad(losses.mean(), (*arrays, alpha), materialize_grads=True)
    by_theta = torch.cat([grad.reshape(-1) for grad in grads[:-1]])
    return losses.detach().numpy(), by_theta.numpy(), grads[-1].numpy()


@pytest.mark.parametrize("g", ["identity", "tanh", "relu"])
@pytest.mark.parametrize("f", ["relu", "silu"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("hidden", [(), (4,), (4, 3)])
def test_loss_and_gradients(f, g, loss, hidden):
    p = problem(loss, f, hidden, seed=2)
    alpha = np.linspace(0.1, 0.3, len(hidden) + 1)
    for S, first_order in ((1, False), (3, False), (3, True)):
        warp = Warp(p.model, loss, alpha[None], S, first_order, warp_activation=g, learn_inner_lr=True)
        params = with_noise(warp.init(np.random.default_rng(0)), size=0.3)
        losses, by_theta, by_alpha = meta_gradient(
            p, params["inner_lr"][0], S, f, g, params["theta"], first_order
        )
        ours = warp.meta_gradient(params, p.tasks)
        assert_close(ours.task_loss, losses, TIGHT)
        assert_close(ours.grad, by_theta, TIGHT)
        if not first_order:  # there PyTorch takes inner gradients for constants, but α is none
            assert_close(ours.grads["inner_lr"][0], by_alpha, TIGHT)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("g", ["identity", "tanh"])
def test_the_doctor_names_mistakes(g, dtype):
    p = problem("mse", "silu", (5, 4), n_out=7)
    warp = Warp(p.model, "mse", 0.1, 3, warp_activation=g)
    theta = with_noise(warp.init(np.random.default_rng(0)), size=0.3)["theta"]
    mistakes = {
        None: {},
        "first_order": {"first_order": True},
        "frozen_adapted": {"warp_adapted": True},
        "frozen_zero": {"warp_learned": False},
    }
    doctor = nm.verification.Doctor(nm.Problem(warp.maml, theta.astype(dtype), p.tasks))
    for fault, mistake in mistakes.items():
        _, grad, _ = meta_gradient(p, np.full(3, 0.1), 3, "silu", g, theta, **mistake)
        found = doctor.diagnose(grad.astype(dtype))
        assert found.fault == fault, str(found)
