"""Every algorithm of the registry, made from options: exact, batched as one by one, of any precision.

What is particular to one is in a file of its own.
"""

import dataclasses
import pickle

import numpy as np
import pytest

import npmeta as nm
from npmeta.config import Config
from npmeta.parallel import Sharded
from npmeta.registry import ALGORITHMS
from tests.algorithms import TIGHT, by_complex_step, one_by_one, with_noise
from tests.helpers import assert_close

#: Those whose "gradient" is that of the mean query loss after the inner loop, as ``evaluate`` has it.
EXACT = ["maml", "anil", "boil", "warp", "meta-sgd", "lslr", "maml++", "cavia"]

SETTINGS = {"hidden": [4, 3], "activation": ["tanh", "silu"], "shots": 4, "queries": 3}


def made(name, **values):
    """An algorithm, meta-parameters and tasks."""
    config = Config("sinusoid", SETTINGS, {"algorithm": name}, values)
    algorithm = config.algorithm(1, 1)
    params = with_noise(algorithm.init(np.random.default_rng(0)))
    return algorithm, params, config.tasks().sample(0, 0, 5)


# The oracle has no parameters, and tests of its own.
every_algorithm = pytest.mark.parametrize(
    "name", [n for n, entry in ALGORITHMS.items() if "sinusoid" in entry.tasks and n != "oracle"]
)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_meta_gradient_is_exact(name, steps):
    algorithm, params, tasks = made(name, inner_steps=steps)
    expected = by_complex_step(algorithm, params, tasks)
    out = algorithm.meta_gradient(params, tasks)
    assert out.grads.keys() == params.keys()
    for key, grad in out.grads.items():
        assert_close(grad, expected[key], TIGHT, key)
    np.testing.assert_allclose(out.task_loss, algorithm.evaluate(params, tasks).loss[:, -1], rtol=TIGHT)
    assert out.hessian == "exact"


@every_algorithm
def test_a_batch_is_its_tasks_one_by_one(name):
    algorithm, params, tasks = made(name)
    out, alone = algorithm.meta_gradient(params, tasks), one_by_one(algorithm, params, tasks)
    for key, grad in out.grads.items():
        assert_close(grad, alone.grads[key], TIGHT, key)
    np.testing.assert_allclose(out.task_loss, alone.task_loss, rtol=TIGHT)
    reversed_ = algorithm.meta_gradient(params, tasks[::-1])
    np.testing.assert_allclose(out.task_loss, reversed_.task_loss[::-1], rtol=TIGHT)
    scores = algorithm.evaluate(params, tasks).loss
    np.testing.assert_allclose(scores[2:3], algorithm.evaluate(params, tasks[2:3]).loss, rtol=TIGHT)


@every_algorithm
def test_single_precision_stays_single_and_near(name):
    algorithm, params, tasks = made(name)
    single = {key: array.astype(np.float32) for key, array in params.items()}
    out, near = algorithm.meta_gradient(params, tasks), algorithm.meta_gradient(single, tasks)
    for key, grad in near.grads.items():
        assert grad.dtype == np.float32
        # Hundreds of roundings of 6e-8.
        assert_close(grad, out.grads[key], 1e-4, key)
    for key, array in algorithm.init(np.random.default_rng(0), np.float32).items():
        assert array.dtype == np.float32, key


@every_algorithm
def test_shards_and_pickles_change_nothing(name):
    algorithm, params, tasks = made(name)
    out = algorithm.meta_gradient(params, tasks)
    sharded = Sharded(pickle.loads(pickle.dumps(algorithm)), 2).meta_gradient(params, tasks)
    for key, grad in out.grads.items():
        assert_close(sharded.grads[key], grad, TIGHT, key)


@every_algorithm
def test_scores_are_those_of_predictions(name):
    algorithm, params, tasks = made(name)
    scores = algorithm.evaluate(params, tasks, 2)
    for s in range(scores.loss.shape[1]):
        o = algorithm.predict(params, tasks.support_x, tasks.support_y, tasks.query_x, steps=s)
        assert o.shape == tasks.query_y.shape
        np.testing.assert_allclose(
            scores.loss[:, s], ((o - tasks.query_y) ** 2).mean((1, 2)), rtol=1e-12
        )


@every_algorithm
def test_what_does_not_fit_is_refused(name):
    algorithm, params, tasks = made(name)
    with pytest.raises(ValueError, match="theta"):
        algorithm.meta_gradient({**params, "theta": np.zeros(3)}, tasks)
    with pytest.raises(ValueError, match="theta"):
        algorithm.meta_gradient({"phi": params["theta"]}, tasks)
    with pytest.raises(ValueError, match="steps"):
        algorithm.evaluate(params, tasks, -1)
    wide = nm.TaskBatch(*(np.zeros((2, 3, 2)) for _ in range(4)))
    with pytest.raises(ValueError, match="support_x must have shape"):
        algorithm.meta_gradient(params, wide)
    with pytest.raises(ValueError, match=r"tasks must be a TaskBatch.* got tuple"):
        algorithm.meta_gradient(params, (tasks.support_x, tasks.support_y))
    with pytest.raises(ValueError, match=r"meta-parameters come first|tasks must be a TaskBatch"):
        algorithm.meta_gradient(tasks, params)


@every_algorithm
def test_algorithms_do_not_change(name):
    algorithm, *_ = made(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        algorithm.inner_lr = 3.0
