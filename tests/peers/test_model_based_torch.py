"""The meta-learner LSTM and the memory-augmented network as PyTorch users write them, against ours.

Nothing below calls npmeta to compute: networks, gates, memory and losses are PyTorch's own, and every
derivative is autograd's. Where the LSTM takes inner gradients for constants, they are detached.
"""

import math

import numpy as np
import pytest

from tests.helpers import assert_close
from tests.peers.test_metric_torch import through
from tests.test_model_based import LSTMS, MANNS, exact, params_for, tasks_for

torch = pytest.importorskip("torch")
F = torch.nn.functional

# Both sides round some hundreds of operations, each by 1e-16 of the largest term, in different orders;
# slopes of up to e^10 amplify that where gradients are no constants.
TIGHT = 1e-11

LOSSES = {
    "mse": F.mse_loss,
    "huber": F.huber_loss,
    "cross_entropy": F.cross_entropy,
    "squared_hinge": lambda o, y: o.shape[1] * F.multi_margin_loss(o, y, p=2),
}


def preprocessed(g):
    large = g.abs() >= math.exp(-10)
    size = torch.where(large, torch.where(large, g, 1.0).abs().log() / 10, -1.0)
    return size, torch.where(large, g.sign(), math.exp(10) * g)


def lstm(learner, params, x, y, query_x):
    theta = params["theta"]
    gates = {name: torch.zeros_like(theta) for name in ("input_gate", "forget_gate")}
    for _ in range(learner.inner_steps):
        at = theta.detach().requires_grad_() if learner.first_order else theta
        loss = LOSSES[learner.loss](through(learner.model, at, x), y)
        (grad,) = torch.autograd.grad(loss, at, create_graph=not learner.first_order)
        loss = loss.detach() if learner.first_order else loss
        seen = [*preprocessed(grad), *(part.expand_as(grad) for part in preprocessed(loss)), theta]
        for name, before in gates.items():
            columns = torch.stack([*seen, before, torch.ones_like(theta)], dim=-1)
            gates[name] = torch.sigmoid(columns @ params[name])
        theta = gates["forget_gate"] * theta - gates["input_gate"] * grad
    return through(learner.model, theta, query_x)


def mann(learner, params, x, y, query_x):
    n_out = learner.ways
    numbers = y if y.is_floating_point() else F.one_hot(y, n_out).to(x.dtype)
    embedded, query = (through(learner.model, params["theta"], rows) for rows in (x, query_x))
    cell = torch.nn.LSTMCell(embedded.shape[1] + n_out + learner.width, learner.units, dtype=x.dtype)
    # PyTorch's gates come in the order i, f, g, o.
    i, f, o, g = params["controller"].chunk(4, dim=1)
    W = torch.cat([i, f, g, o], dim=1).T
    weights = {
        "weight_ih": W[:, : -learner.units - 1],
        "weight_hh": W[:, -learner.units - 1 : -1],
        "bias_ih": W[:, -1],
        "bias_hh": torch.zeros_like(W[:, -1]),
    }

    def row(state, e, label):
        h, c, r, w, memory, usage = state
        joined = torch.cat([e, label, r])[None]
        h, c = torch.func.functional_call(cell, weights, (joined, (h[None], c[None])))
        h, c = h[0], c[0]
        key = F.linear(h, params["key"][:-1].T, params["key"][-1]).tanh()
        least = F.one_hot(usage.argmin(), learner.slots).to(x.dtype)
        write = params["write_gate"].sigmoid()
        w_write = write * w + (1 - write) * least
        memory = torch.where(least[:, None] > 0, 0.0, memory) + torch.outer(w_write, key)
        w = torch.softmax(params["scale"] * F.cosine_similarity(key[None], memory, dim=1, eps=1e-30), 0)
        r = w @ memory
        out = F.linear(torch.cat([h, r]), params["output"][:-1].T, params["output"][-1])
        return out, (h, c, r, w, memory, (0.95 * usage + w + w_write).detach())

    sizes = [(learner.units,)] * 2 + [(learner.width,), (learner.slots,)]
    sizes += [(learner.slots, learner.width), (learner.slots,)]
    state = tuple(torch.zeros(size, dtype=x.dtype) for size in sizes)
    label = torch.zeros(n_out, dtype=x.dtype)
    for t in torch.argsort(x @ torch.arange(x.shape[1]).to(x.dtype).cos()):
        _, state = row(state, embedded[t], label)
        label = numbers[t]
    return torch.stack([row(state, e, label)[0] for e in query])


CASES = {
    **{f"lstm, {name}": (lstm, learner) for name, learner in LSTMS.items() if name != "normalised"},
    **{f"lstm, exact, {name}": (lstm, exact(LSTMS[name])) for name in ("values", "classes", "relu")},
    **{f"mann, {name}": (mann, learner) for name, learner in MANNS.items()},
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients(case):
    peer, learner = CASES[case]
    values, tasks = params_for(learner), tasks_for(learner)
    params = {key: torch.tensor(value).requires_grad_() for key, value in values.items()}
    losses = []
    for t in range(len(tasks)):
        x, y, query_x, query_y = (torch.tensor(part[t]) for part in vars(tasks).values())
        losses.append(LOSSES[learner.loss](peer(learner, params, x, y, query_x), query_y))
    loss = torch.stack(losses)
    # Without steps, and with one slot, some parameters have no part in the loss.
    anchored = loss.mean() + sum(0 * value.sum() for value in params.values())
    theirs = torch.autograd.grad(anchored, tuple(params.values()))
    ours = learner.meta_gradient(values, tasks)
    assert_close(ours.task_loss, loss.detach().numpy(), TIGHT)
    for key, their in zip(params, theirs, strict=True):
        scale = max(np.abs(their.numpy()).max(), 1e-3)
        assert np.abs(ours.grads[key] - their.numpy()).max() <= TIGHT * scale, key
