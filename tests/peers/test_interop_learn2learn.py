"""From MAML by ``learn2learn`` to a diagnosis."""

import importlib.util
import sys
from unittest import mock

import pytest

import npmeta as nm
from npmeta import interop
from tests.helpers import assert_close
from tests.peers.interop_cases import TIGHT, exact, some_tasks

torch = pytest.importorskip("torch")

from tests.peers.test_interop_torch import network, tensors  # noqa: E402

F = torch.nn.functional

#: What learn2learn imports for environments and images. Its MAML uses none of it, so a stand-in does
#: where it is not installed.
NOT_FOR_MAML = [
    "gym",
    *(f"gym.{part}" for part in ("spaces", "utils", "error", "core", "envs", "envs.registration")),
    "torchvision",
    *(f"torchvision.{part}" for part in ("transforms", "datasets")),
    *(f"torchvision.datasets.{part}" for part in ("folder", "omniglot")),
    "requests",
]


def imported():
    if importlib.util.find_spec("learn2learn") is None:
        pytest.skip("could not import 'learn2learn'", allow_module_level=True)
    absent = [name for name in NOT_FOR_MAML if importlib.util.find_spec(name.split(".")[0]) is None]
    sys.modules.update({name: mock.MagicMock(name=name) for name in absent})
    try:
        return importlib.import_module("learn2learn")
    finally:
        for name in absent:
            del sys.modules[name]


l2l = imported()


def meta_losses(net, x, y, query_x, query_y, **options):
    maml = l2l.algorithms.MAML(net, lr=0.1, **options)
    losses = []
    for t in range(len(x)):
        learner = maml.clone()
        for _ in range(3):
            learner.adapt(F.mse_loss(learner(x[t]), y[t]))
        losses.append(F.mse_loss(learner(query_x[t]), query_y[t]))
    return torch.stack(losses)


def diagnosis(net, x, y, query_x, query_y, **options):
    maml = nm.MAML(interop.model_of(net), "mse", inner_lr=0.1, inner_steps=3)
    problem = nm.Problem(maml, interop.to_theta(net), nm.TaskBatch(x, y, query_x, query_y))
    losses = meta_losses(net, x, y, query_x, query_y, **options)
    losses.mean().backward()
    return nm.diagnose(problem, interop.grad_of(net), losses={"query": losses.detach()})


def test_the_gradient_of_learn2learn():
    net = network()
    meta_losses(net, *tensors()).mean().backward()
    theta = interop.to_theta(net)
    assert_close(interop.grad_of(net), exact(theta, some_tasks()), TIGHT)
    assert_close(interop.to_theta(l2l.algorithms.MAML(net, lr=0.1)), theta, 0)


@pytest.mark.parametrize("first_order", [False, True])
def test_diagnosis(first_order):
    found = diagnosis(network(), *tensors(), first_order=first_order)
    expected = ("fail", "first_order") if first_order else ("pass", None)
    assert (found.verdict, found.fault) == expected
