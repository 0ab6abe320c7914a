"""MAML of normalised networks as PyTorch users write it, with PyTorch's own batch and layer norm."""

import numpy as np
import pytest

import npmeta as nm
from npmeta.network.activations import ACTIVATIONS
from npmeta.network.normalisation import EPS, NORMS
from tests.helpers import assert_close
from tests.test_normalisation import CHOICES, normalised

torch = pytest.importorskip("torch")
F = torch.nn.functional

from tests.peers.test_torch import TORCH_ACTIVATIONS, TORCH_LOSSES, one_thread, tensor  # noqa: E402

__all__ = ["one_thread"]

# As in test_torch; dividing by a σ of a few rows makes a rounding error ten times as large.
TIGHT = 1e-11


def pieces(model, theta):
    """theta as the arrays of each layer."""
    found, start = [], 0
    for shapes in model.shapes:
        arrays = []
        for shape in shapes.values():
            size = int(np.prod(shape))
            arrays.append(theta[start : start + size].reshape(shape))
            start += size
        found.append(arrays)
    return found


def network(model, layers, x, s):
    """The network after s inner steps, through ``F.batch_norm`` or ``F.layer_norm``."""
    for l, (W, b, *scale_shift) in enumerate(layers):
        x = F.linear(x, W.T, b)
        if not scale_shift:
            return x
        scale, shift = (v if v.ndim == 1 else v[min(s, len(v) - 1)] for v in scale_shift)
        if model.norm == "batch":
            x = F.batch_norm(x, None, None, scale, shift, training=True, eps=EPS)
        else:
            x = F.layer_norm(x, x.shape[-1:], scale, shift, eps=EPS)
        x = TORCH_ACTIVATIONS[model.activations[l].name](x)


def torch_meta_gradient(p, alpha, S, first_order):
    """Task losses and d/dθ by a double backward pass through the inner loop."""
    theta = tensor(p.theta).requires_grad_()
    loss_of = TORCH_LOSSES[p.loss]
    losses = []
    for t in range(len(p.tasks)):
        x, y, qx, qy = (tensor(part[t], theta.dtype) for part in (*p.support, *p.query))
        phi = pieces(p.model, theta)
        for s in range(S):
            moving = [v for arrays in phi for v in (arrays if p.model.adapt_norm else arrays[:2])]
            loss = loss_of(network(p.model, phi, x, s), y)
            grads = iter(torch.autograd.grad(loss, moving, create_graph=not first_order))
            phi = [
                [
                    v - alpha * next(grads) if i < 2 or p.model.adapt_norm else v
                    for i, v in enumerate(arrays)
                ]
                for arrays in phi
            ]
        losses.append(loss_of(network(p.model, phi, qx, S), qy))
    losses = torch.stack(losses)
    (by_theta,) = torch.autograd.grad(losses.mean(), theta)
    return losses.detach().numpy(), by_theta.numpy()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("choice", CHOICES, ids=["moves", "stays", "two", "four"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_maml(norm, choice, activation):
    for loss, S in (("cross_entropy", 1), ("mse", 3)):
        p = normalised(norm, loss, activation, **choice)
        for first_order in (False, True):
            losses, by_theta = torch_meta_gradient(p, 0.1, S, first_order)
            for weights in ("dense", "factored"):
                maml = nm.MAML(p.model, loss, 0.1, S, first_order=first_order, weights=weights)
                out = maml.meta_gradient(p.theta, p.tasks)
                assert_close(out.task_loss, losses, TIGHT)
                assert_close(out.grad, by_theta, TIGHT, f"{loss} {S} {first_order} {weights}")
