"""Metric learners and the ridge head written as PyTorch users write them, against npmeta's.

Nothing below calls npmeta to compute: embeddings, distances, solves and losses are PyTorch's own, and
every derivative is autograd's.
"""

import itertools

import numpy as np
import pytest

import npmeta as nm
from tests.helpers import assert_close
from tests.test_metric_learners import LEARNERS, K, N, Q, params_for, tasks_for

torch = pytest.importorskip("torch")
F = torch.nn.functional

# Both sides round some dozens of operations, each by 1e-16 of the largest term, in different orders.
TIGHT = 1e-12

ACTIVATIONS = {"tanh": torch.tanh, "gelu": F.gelu, "silu": F.silu, "relu": F.relu}


def through(model, theta, x):
    """The network at a flat theta, through ``F.linear`` and slices."""
    if model is None:
        return x
    sizes = [n for n_in, n_out in itertools.pairwise(model.widths) for n in (n_in * n_out, n_out)]
    pieces = theta.split(sizes)
    for l, (W, b) in enumerate(zip(pieces[::2], pieces[1::2], strict=True)):
        x = F.linear(x, W.reshape(-1, len(b)).T, b)
        if l < len(model.activations):
            x = ACTIVATIONS[model.activations[l].name](x)
    return x


def distances(kind, u, v):
    if kind == "cosine":
        return 1 - F.cosine_similarity(u[:, None], v[None], dim=-1)
    d = torch.cdist(u, v, compute_mode="donot_use_mm_for_euclid_dist")
    return d.square() if kind == "squared_euclidean" else d


def matching(learner, params, e, y, q, labels):
    attention = torch.softmax(-params["scale"] * distances(learner.distance, q, e), dim=1)
    return F.nll_loss(torch.log(attention @ F.one_hot(y, N).to(e.dtype)), labels)


def prototypical(learner, params, e, y, q, labels):
    prototypes = torch.stack([e[y == c].mean(0) for c in range(N)])
    return F.cross_entropy(-params["scale"] * distances(learner.distance, q, prototypes), labels)


def siamese(learner, params, e, y, q, labels):
    same = labels[:, None] == y[None]
    if learner.pair_loss == "contrastive":
        d = distances("euclidean", q, e)
        loss = torch.where(same, d.square(), F.relu(learner.margin - d).square()) / 2
    else:
        logits = params["bias"] - (q[:, None] - e[None]).abs() @ params["weights"]
        loss = F.binary_cross_entropy_with_logits(logits, same.to(e.dtype), reduction="none")
    return (loss[same].mean() + loss[~same].mean()) / 2


def relation(learner, params, e, y, q, labels):
    sums = torch.stack([e[y == c].sum(0) for c in range(N)])
    joined = torch.cat([sums[None].expand(Q, -1, -1), q[:, None].expand(-1, N, -1)], dim=-1)
    r = torch.sigmoid(through(learner.module, params["relation"], joined))[..., 0]
    return F.mse_loss(r, F.one_hot(labels, N).to(e.dtype))


def ridge(learner, params, e, y, q, labels):
    ones = torch.ones(len(e), 1, dtype=e.dtype), torch.ones(len(q), 1, dtype=e.dtype)
    A, A_Q = torch.cat([e, ones[0]], 1), torch.cat([q, ones[1]], 1)
    Y = y if y.is_floating_point() else F.one_hot(y, N).to(e.dtype)
    M = A.T @ A + params["log_ridge"].exp() * torch.eye(A.shape[1], dtype=e.dtype)
    o = params["scale"] * A_Q @ torch.linalg.solve(M, A.T @ Y) + params["bias"]
    if learner.loss == "squared_hinge":
        return N * F.multi_margin_loss(o, labels, p=2)
    losses = {"cross_entropy": F.cross_entropy, "mse": F.mse_loss, "poisson_nll": F.poisson_nll_loss}
    return losses[learner.loss](o, labels)


PEERS = {
    nm.algorithms.MatchingNetwork: matching,
    nm.algorithms.PrototypicalNetwork: prototypical,
    nm.algorithms.SiameseNetwork: siamese,
    nm.algorithms.RelationNetwork: relation,
    nm.algorithms.RidgeHead: ridge,
}


@pytest.mark.parametrize("shots", [1, K])
@pytest.mark.parametrize("name", LEARNERS)
def test_loss_and_gradients(name, shots):
    learner, values, tasks = LEARNERS[name], params_for(name), tasks_for(name, shots=shots)
    params = {key: torch.tensor(value).requires_grad_() for key, value in values.items()}
    losses = []
    for t in range(len(tasks)):
        x, y, qx, qy = (torch.tensor(part[t]) for part in vars(tasks).values())
        e, q = (through(learner.model, params["theta"], rows) for rows in (x, qx))
        losses.append(PEERS[type(learner)](learner, params, e, y, q, qy))
    loss = torch.stack(losses)
    # Pixels have no parameters; with these all losses have a gradient.
    anchored = loss.mean() + sum(0 * value.sum() for value in params.values())
    theirs = torch.autograd.grad(anchored, tuple(params.values()))
    ours = learner.meta_gradient(values, tasks)
    assert_close(ours.task_loss, loss.detach().numpy(), TIGHT)
    for key, their in zip(params, theirs, strict=True):
        # A bias that is the same for all classes changes nothing: measured by what cancels.
        scale = max(np.abs(their.numpy()).max(initial=0), 0.1)
        assert np.abs(ours.grads[key] - their.numpy()).max(initial=0) <= TIGHT * scale, key
