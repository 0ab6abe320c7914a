"""The PyTorch code on the page of common mistakes: each mistake gets its id from the doctor."""

import numpy as np
import pytest

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
