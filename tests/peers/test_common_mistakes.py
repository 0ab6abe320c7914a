"""The PyTorch code on the page of common mistakes: each mistake gets its id from the doctor."""

import numpy as np
import pytest

import npmeta as nm
from npmeta import interop
from tests.peers.test_doctor import ALPHA, Case, S, flat
from tests.test_common_mistakes import example

torch = pytest.importorskip("torch")

#: Handed over is what is in theta[i].grad in the end.
IDS = {
    "no_create_graph": {"first_order"},
    "written_into_data": {"first_order", "no_reset"},
    "adapted_copy": {"zeros"},
    "backward_as_well": {"support_gradients_leaked"},
    "mutable_default": {"first_order", "accumulator_survives_tasks"},
}


@pytest.fixture(scope="module")
def case():
    return Case()


@pytest.mark.parametrize("name", IDS)
def test_the_mistake_is_named(case, name):
    theta = case.parameters()
    getattr(example("common_mistakes_torch"), name)(theta, case.tasks, case.loss_at, ALPHA, S)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in theta]
    found = case.doctor.diagnose(flat(grads))
    assert found.fault is not None, str(found)
    assert set(found.fault.split(" + ")) == IDS[name], str(found)
    assert np.array_equal(flat(theta), flat(case.parameters())) == (name != "written_into_data")


# --- normalised networks --------------------------------------------------------------------------

#: Whether BatchNorm1d keeps running statistics, which vmap refuses, and what is named.
NORM_IDS = {
    "right": (True, None),
    "eval_mode": (True, "norm_eval_mode"),
    "running_statistics": (True, "norm_statistics_leak"),
    "over_tasks_by_vmap": (False, "norm_saved_statistics"),
}


@pytest.mark.parametrize("name", NORM_IDS)
def test_the_mistake_of_a_normalised_network_is_named(name):
    tracks, id = NORM_IDS[name]
    torch.manual_seed(0)
    hidden = (
        part
        for n_in, n in ((4, 8), (8, 8))
        for part in (
            torch.nn.Linear(n_in, n),
            torch.nn.BatchNorm1d(n, track_running_stats=tracks),
            torch.nn.Tanh(),
        )
    )
    net = torch.nn.Sequential(*hidden, torch.nn.Linear(8, 11)).double()
    plain = Case().problem
    problem = nm.Problem(
        nm.MAML(interop.model_of(net), "mse", ALPHA, S), interop.to_theta(net), plain.tasks
    )
    getattr(example("common_mistakes_norms"), name)(net, Case().tasks, ALPHA, S)
    found = nm.diagnose(problem, interop.grad_of(net))
    assert (found.verdict == "pass", found.fault) == (id is None, id), str(found)
