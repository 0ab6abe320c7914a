"""SNAIL as PyTorch users write it, against ours.

Nothing below calls npmeta to compute: convolutions, attention and losses are PyTorch's own, every query
row is the end of a whole sequence of its own, and every derivative is autograd's.
"""

import numpy as np
import pytest

from tests.peers.test_metric_torch import through
from tests.peers.test_model_based_torch import LOSSES
from tests.test_snail import SNAILS, N, params_for, tasks_for

torch = pytest.importorskip("torch")
F = torch.nn.functional

# Both sides round some hundreds of operations, each by 1e-16 of the largest term, in different orders.
TIGHT = 1e-11


def network(model, theta, x):
    if model.norm is None:
        return through(model, theta, x)
    (W, b, scale, shift), (V, c) = (
        [torch.reshape(theta[model.places[f"{l}.{name}"]], shape) for name, shape in own.items()]
        for l, own in enumerate(model.shapes)
    )
    return F.layer_norm(x @ W + b, b.shape, scale, shift).tanh() @ V + c


def convolution(a, W, dilation):
    """``nn.Conv1d`` with a kernel of two and ``padding=dilation``, whose last outputs are cut off."""
    kernel = torch.stack(W[:-1].chunk(2)[::-1], dim=-1).transpose(0, 1)  # (out, in, [earlier, now])
    z = F.conv1d(a.mT, kernel, W[-1], padding=dilation, dilation=dilation)[..., :-dilation].mT
    f, g = z.chunk(2, dim=-1)
    return torch.cat([a, f.tanh() * g.sigmoid()], dim=-1)


def attention(a, W, key_width):
    q, k, v = F.linear(a, W[:-1].T, W[-1]).split([key_width, key_width, len(W[0]) - 2 * key_width], -1)
    return torch.cat([a, F.scaled_dot_product_attention(q, k, v, is_causal=True)], dim=-1)


def snail(learner, params, x, y, query_x):
    """Outputs for the query rows of one task: a batch of sequences."""
    numbers = y if y.is_floating_point() else F.one_hot(y, N).to(x.dtype)
    embedded, queries = (network(learner.model, params["theta"], rows) for rows in (x, query_x))
    support = torch.cat([embedded, numbers], dim=1).expand(len(query_x), -1, -1)
    ends = torch.cat([queries, torch.zeros(len(query_x), N, dtype=x.dtype)], dim=1)
    a = torch.cat([support, ends[:, None]], dim=1)
    for name, W in params.items():
        kind, *place = name.split("_")
        if kind == "attention":
            a = attention(a, W, learner.key_width)
        elif kind == "convolution":
            a = convolution(a, W, int(place[-1]))
    return F.linear(a[:, -1], params["output"][:-1].T, params["output"][-1])


@pytest.mark.parametrize("name", SNAILS)
def test_loss_and_gradients(name):
    learner = SNAILS[name]
    values, tasks = params_for(learner), tasks_for(learner)
    params = {key: torch.tensor(value).requires_grad_() for key, value in values.items()}
    losses = []
    for t in range(len(tasks)):
        x, y = learner.ordered(tasks.support_x[t : t + 1], tasks.support_y[t : t + 1])
        x, y, query_x, query_y = map(torch.tensor, (x[0], y[0], tasks.query_x[t], tasks.query_y[t]))
        losses.append(LOSSES[learner.loss](snail(learner, params, x, y, query_x), query_y))
    loss = torch.stack(losses)
    theirs = torch.autograd.grad(loss.mean(), tuple(params.values()))
    ours = learner.meta_gradient(values, tasks)
    assert np.abs(ours.task_loss - loss.detach().numpy()).max() <= TIGHT * loss.max().item()
    for key, their in zip(params, theirs, strict=True):
        # What convolutions see beyond the first row is zero, and so is the derivative.
        scale = max(np.abs(their.numpy()).max(), 1e-3)
        assert np.abs(ours.grads[key] - their.numpy()).max() <= TIGHT * scale, key
