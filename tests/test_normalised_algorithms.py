"""Every algorithm on a normalised network, against complex steps of its own evaluation."""

from dataclasses import replace

import numpy as np
import pytest

import npmeta as nm
from npmeta import algorithms
from npmeta.network.normalisation import NORMS
from tests.algorithms import by_complex_step, one_by_one, with_noise
from tests.helpers import assert_close
from tests.test_normalisation import CHOICES, TIGHT, normalised

every_norm = pytest.mark.parametrize("norm", NORMS)


def compare(algorithm, p, step_weights=None):
    params = with_noise(algorithm.init(np.random.default_rng(0)))
    expected = by_complex_step(algorithm, params, p.tasks, step_weights)
    out = algorithm.meta_gradient(params, p.tasks)
    scale = max(np.abs(gradient).max() for gradient in expected.values())  # some of them are zero
    for name, gradient in expected.items():
        assert np.abs(out.grads[name] - gradient).max() <= TIGHT * scale, name
    alone = one_by_one(algorithm, params, p.tasks)
    assert_close(alone.grad, out.grad, TIGHT, "tasks do not meet")


@every_norm
@pytest.mark.parametrize("choice", CHOICES, ids=["moves", "stays", "two", "four"])
@pytest.mark.parametrize("make", [algorithms.anil, algorithms.boil, algorithms.lslr, nm.MAML])
def test_variants_of_maml(norm, choice, make):
    p = normalised(norm, "cross_entropy", **choice)
    compare(make(p.model, p.loss, inner_lr=0.1, inner_steps=2), p)


@every_norm
@pytest.mark.parametrize("choice", CHOICES[:2], ids=["moves", "stays"])
def test_meta_sgd(norm, choice):
    """Step sizes of what does not move have no derivative, and there are as many as ever."""
    p = normalised(norm, "cross_entropy", **choice)
    compare(algorithms.MetaSGD(p.model, p.loss, inner_steps=2), p)


@every_norm
@pytest.mark.parametrize("choice", CHOICES, ids=["moves", "stays", "two", "four"])
def test_maml_plus_plus(norm, choice):
    """Losses of all steps, each scored with the scales and shifts of its step."""
    p = normalised(norm, "cross_entropy", **choice)
    weights = (0.2, 0.3, 0.5)
    maml = algorithms.MAMLPlusPlus(p.model, p.loss, 0.1, 3, step_weights=weights)
    compare(maml, p, np.array(weights))


@every_norm
@pytest.mark.parametrize(
    "make",
    [
        algorithms.PrototypicalNetwork,
        algorithms.MatchingNetwork,
        lambda model: algorithms.RelationNetwork(model, nm.MLP([6, 4, 1], "tanh")),
        algorithms.RidgeHead,
    ],
    ids=["prototypical", "matching", "relation", "ridge"],
)
def test_learners_that_compare(norm, make):
    """With batch normalisation an episode is a batch: other tasks' rows do not matter."""
    p = normalised(norm)
    labels = np.tile([0, 1, 2], (3, 4))  # of three tasks
    tasks = nm.TaskBatch(p.tasks.support_x, labels[:, :5], p.tasks.query_x, labels[:, 5:11])
    compare(make(p.model), replace(p, tasks=tasks))


def test_what_takes_no_norm():
    model = nm.MLP([3, 4, 1], norm="layer", adapt_norm=False)
    with pytest.raises(ValueError, match="CAVIA takes no normalised network"):
        algorithms.CAVIA(model, n_context=2)
    with pytest.raises(ValueError, match="iMAML moves all parameters"):
        algorithms.IMAML(model)
