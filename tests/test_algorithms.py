"""Every algorithm of the registry, made from options: exact, batched as one by one, of any precision.

What is particular to one is in a file of its own.
"""

import dataclasses
import pickle

import numpy as np
import pytest

import npmeta as nm
from npmeta.algorithms.registry import ALGORITHMS
from npmeta.training.config import Config
from npmeta.training.parallel import Sharded
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
def test_results_are_in_the_byte_order_of_the_machine(name):
    algorithm, params, tasks = made(name)
    out = algorithm.meta_gradient(params, tasks)
    swapped = {key: array.astype(array.dtype.newbyteorder()) for key, array in params.items()}
    for key, grad in algorithm.meta_gradient(swapped, tasks).grads.items():
        assert grad.dtype == np.float64, key
        np.testing.assert_array_equal(grad, out.grads[key])


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
    with pytest.raises(ValueError, match=r"meta-parameters come before|tasks must be a TaskBatch"):
        algorithm.meta_gradient(tasks, params)


@every_algorithm
def test_algorithms_do_not_change(name):
    algorithm, *_ = made(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        algorithm.inner_lr = 3.0


PLAIN, A_STRUCTURE = nm.MLP([3, 4, 2]), nm.MLP([3, 4, 2], structure=nm.Structure())


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        ("MAML", {"first_order": 0.1}, "first_order must be True or False, got 0.1"),
        ("MAML", {"learn_inner_lr": "no"}, "learn_inner_lr must be True or False, got 'no'"),
        ("MAML", {"inner_weight_decay": [[1], [1, 2]]}, "inner_weight_decay must be a number of at l"),
        ("Warp", {"learn_inner_lr": 1}, "learn_inner_lr must be True or False, got 1"),
        ("anil", {"model": None}, "model must be an MLP, got NoneType"),
        ("boil", {"inner_lr": [0.1, 0.2]}, "inner_lr must be one finite number, got .0.1, 0.2."),
        ("lslr", {"inner_lr": "0.1"}, "inner_lr must be one finite number, got '0.1'"),
        ("lslr", {"inner_steps": 1.5}, "inner_steps must be a whole number of at least 0, got 1.5"),
        ("MetaSGD", {"inner_lr_range": None}, r"inner_lr_range must be a range .low, high., got None"),
        (
            "MetaSGD",
            {"inner_lr_range": (0, 1, 2)},
            r"inner_lr_range must be a range .low, high., got .0, 1, 2.",
        ),
        ("MAMLPlusPlus", {"inner_lr": 1j}, "inner_lr must be finite numbers, got 1j"),
        ("MAMLPlusPlus", {"inner_steps": "2"}, "inner_steps must be a whole number of at least 0"),
        ("MAMLPlusPlus", {"step_weights": ["1"]}, "step_weights must be 1 numbers"),
        ("MAMLPlusPlus", {"multi_step_iterations": None}, "multi_step_iterations must be a whole"),
        ("StructuredMAML", {"gate_pressure": "1"}, "gate_pressure must be a number of at least 0"),
        ("CAVIA", {"model": [3, 4, 2]}, "model must be an MLP, got list"),
        ("CAVIA", {"n_context": 2.0}, "n_context must be a whole number of at least 0, got 2.0"),
        ("CAVIA", {"inner_lr": None}, "inner_lr must be one finite number, got None"),
        ("CAVIA", {"first_order": 0.1}, "first_order must be True or False, got 0.1"),
        ("IMAML", {"model": None}, "model must be an MLP or an objective, got NoneType"),
        ("IMAML", {"strength": "1"}, "strength must be a positive number, got '1'"),
        ("Reptile", {"inner_lr": None}, "inner_lr of Reptile must be one positive number, got None"),
        ("Reptile", {"batch_rows": "4"}, "batch_rows must be a whole number of at least 0, got '4'"),
        ("RidgeHead", {"ways": "2"}, "ways must be a whole number of at least 1, got '2'"),
        ("RelationNetwork", {"relation": 3}, "relation must be an MLP, got int"),
        ("MetaLSTM", {"inner_lr": "0.1"}, "inner_lr must be a number between 0 and 1, got '0.1'"),
        ("MetaLSTM", {"first_order": 2}, "first_order must be True or False, got 2"),
        ("SineOracle", {"frequency": [1.0, 2.0]}, "frequency must be a finite number, got .1.0, 2.0."),
    ],
)
def test_arguments_of_another_type_are_refused(make, options, message):
    own = {
        "SineOracle": {},
        "StructuredMAML": {"model": A_STRUCTURE},
        "CAVIA": {"model": PLAIN, "n_context": 1},
    }
    with pytest.raises(ValueError, match=message):
        getattr(nm.algorithms, make)(**{**own.get(make, {"model": PLAIN}), **options})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nm.MLP([3, 4, 2], structure="relu"), "structure must be a Structure, got str"),
        (lambda: nm.Structure(None), "candidates must be a list of activations, got None"),
    ],
)
def test_structures_of_another_type_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("wrong", [None, "1", 1j])
@every_algorithm
def test_meta_parameters_that_are_no_real_numbers_are_refused(name, wrong):
    algorithm, params, tasks = made(name)
    for key in params.keys() - {"theta"}:
        given = {**params, key: np.full(params[key].shape, wrong)}
        with pytest.raises(ValueError, match=f"{key} must .*real numbers, got dtype"):
            algorithm.meta_gradient(given, tasks)
