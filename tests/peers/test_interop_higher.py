"""From MAML by ``higher`` to a diagnosis."""

import pytest

import npmeta as nm
from npmeta import interop
from tests.helpers import assert_close
from tests.peers.interop_cases import TIGHT, exact, some_tasks

torch = pytest.importorskip("torch")
higher = pytest.importorskip("higher")

from tests.peers.test_interop_torch import network, tensors  # noqa: E402

F = torch.nn.functional


def meta_losses(net, x, y, query_x, query_y, **options):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for t in range(len(x)):
        with higher.innerloop_ctx(net, optimizer, **options) as (adapted, inner):
            for _ in range(3):
                inner.step(F.mse_loss(adapted(x[t]), y[t]))
            losses.append(F.mse_loss(adapted(query_x[t]), query_y[t]))
    return torch.stack(losses)


def diagnosis(net, x, y, query_x, query_y):
    maml = nm.MAML(interop.model_of(net), "mse", inner_lr=0.1, inner_steps=3)
    problem = nm.Problem(maml, interop.to_theta(net), nm.TaskBatch(x, y, query_x, query_y))
    losses = meta_losses(net, x, y, query_x, query_y, copy_initial_weights=False)
    losses.mean().backward()
    return nm.diagnose(problem, interop.grad_of(net), losses={"query": losses.detach()})


def test_the_gradient_of_higher():
    net = network()
    meta_losses(net, *tensors(), copy_initial_weights=False).mean().backward()
    assert_close(interop.grad_of(net), exact(interop.to_theta(net), some_tasks()), TIGHT)


def test_higher_copies_the_initial_weights_unless_told_not_to():
    net = network()
    meta_losses(net, *tensors()).mean().backward()
    with pytest.raises(ValueError, match=r"'0\.weight' has no gradient"):
        interop.grad_of(net)


def test_weights_adapted_by_higher():
    net, (x, y, *_) = network(), tensors()
    with higher.innerloop_ctx(net, torch.optim.SGD(net.parameters(), lr=0.1)) as (adapted, inner):
        inner.step(F.mse_loss(adapted(x[0]), y[0]))
    maml = nm.MAML(interop.model_of(net), "mse", inner_lr=0.1, inner_steps=1)
    phi = maml.adapt(interop.to_theta(net), x[:1], y[:1])[0]
    assert_close(interop.to_theta(adapted), phi, TIGHT)


def test_diagnosis():
    assert diagnosis(network(), *tensors()).verdict == "pass"
