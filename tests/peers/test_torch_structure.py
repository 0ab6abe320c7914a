"""MAML that learns a structure as PyTorch users write it: softmax, sigmoid, and autograd throughout."""

from dataclasses import replace

import numpy as np
import pytest

import npmeta as nm
from npmeta.network.activations import ACTIVATIONS
from tests.helpers import assert_close
from tests.test_structure import assert_parts_close, structured

torch = pytest.importorskip("torch")
F = torch.nn.functional

from tests.peers.test_torch import TORCH_ACTIVATIONS, TORCH_LOSSES, one_thread, tensor  # noqa: E402
from tests.peers.test_torch_normalisation import pieces  # noqa: E402

__all__ = ["one_thread"]

# As in test_torch.
TIGHT = 1e-11

STRUCTURES = [
    nm.Structure(("relu", "tanh", "sin")),
    nm.Structure(("relu", "tanh", "sin"), adapt=False),
    nm.Structure("silu"),
    nm.Structure(("softplus", "gelu"), gates=False),
    nm.Structure(list(ACTIVATIONS)),
]


def network(model, layers, x):
    """The network, each hidden layer by its own arrays."""
    for shapes, (W, b, *others) in zip(model.shapes, layers, strict=True):
        x = F.linear(x, W.T, b)
        own = dict(zip(list(shapes)[2:], others, strict=True))
        if own:
            shares = F.softmax(own["mixture"], -1) if "mixture" in own else [1.0]
            candidates = [TORCH_ACTIVATIONS[name](x) for name in model.structure.names]
            x = sum(share * a for share, a in zip(shares, candidates, strict=True))
            x = x * torch.sigmoid(own["gate"]) if "gate" in own else x
    return x


def torch_meta_gradient(p, alpha, S, first_order, pressures=(0.0, 0.0)):
    """Task losses and d/dθ of their mean and the pressures, by a double backward pass."""
    theta = tensor(p.theta).requires_grad_()
    loss_of = TORCH_LOSSES[p.loss]
    losses = []
    for t in range(len(p.tasks)):
        x, y, qx, qy = (tensor(part[t], theta.dtype) for part in (*p.support, *p.query))
        phi = pieces(p.model, theta)
        for _ in range(S):
            moving = [arrays if p.model.structure.adapt else arrays[:2] for arrays in phi]
            loss = loss_of(network(p.model, phi, x), y)
            flat = [array for arrays in moving for array in arrays]
            grads = iter(torch.autograd.grad(loss, flat, create_graph=not first_order))
            phi = [
                [v - alpha * next(grads) for v in move] + arrays[len(move) :]
                for arrays, move in zip(phi, moving, strict=True)
            ]
        losses.append(loss_of(network(p.model, phi, qx), qy))
    losses = torch.stack(losses)
    loss = losses.mean()
    if any(pressures):
        gates, mixtures = (
            [theta[place] for name, place in p.model.places.items() if name.endswith(part)]
            for part in ("gate", "mixture")
        )
        entropies = torch.distributions.Categorical(logits=torch.stack(mixtures)).entropy()
        loss = loss + pressures[0] * torch.sigmoid(torch.cat(gates)).mean()
        loss = loss + pressures[1] * entropies.mean()
    (by_theta,) = torch.autograd.grad(loss, theta)
    return loss.item(), losses.detach().numpy(), by_theta.numpy()


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_maml(structure):
    for loss, S in (("cross_entropy", 1), ("mse", 3)):
        p = structured(structure, loss, adapt=structure.adapt)
        for first_order in (False, True):
            _, losses, by_theta = torch_meta_gradient(p, 0.1, S, first_order)
            for weights in ("dense", "factored"):
                maml = nm.MAML(p.model, loss, 0.1, S, first_order=first_order, weights=weights)
                out = maml.meta_gradient(p.theta, p.tasks)
                assert_close(out.task_loss, losses, TIGHT)
                assert_parts_close(p.model, out.grad, by_theta, TIGHT)


def test_pressures():
    p = structured("both")
    pressures = {"gate_pressure": 0.7, "mixture_pressure": 0.3}
    loss, _, by_theta = torch_meta_gradient(p, 0.1, 2, False, tuple(pressures.values()))
    out = nm.algorithms.StructuredMAML(p.model, p.loss, 0.1, 2, **pressures).meta_gradient(
        p.theta, p.tasks
    )
    assert np.isclose(out.loss, loss, rtol=1e-13, atol=0)
    assert_parts_close(p.model, out.grad, by_theta, TIGHT)


def test_it_can_fail():
    """A structure that is taken to stay where it moves, and the other way round."""
    p = structured("both")
    _, _, by_theta = torch_meta_gradient(p, 0.1, 2, False)
    other = replace(p, model=nm.MLP(p.model.widths, structure=replace(p.model.structure, adapt=False)))
    out = nm.MAML(other.model, p.loss, 0.1, 2).meta_gradient(p.theta, p.tasks)
    assert not np.allclose(out.grad, by_theta, rtol=1e-4)
