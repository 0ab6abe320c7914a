"""An algorithm takes what it uses, and is judged by its own definition or by none."""

import dataclasses
import importlib
import inspect
import pickle
import pkgutil

import numpy as np
import pytest

import npmeta
import npmeta as nm
from npmeta import algorithms, verification
from npmeta.algorithms import (
    MAML,
    Joint,
    MAMLPlusPlus,
    MetaSGD,
    Reptile,
    Scratch,
    StructuredMAML,
    Warp,
)
from npmeta.algorithms.adapts import Adapts
from npmeta.network import activations, losses
from npmeta.training.loop import NonFiniteError
from npmeta.training.parallel import Sharded
from npmeta.verification import Verdict
from npmeta.verification.doctor.files import load_problem, save_problem
from tests.helpers import assert_close, problem

MODEL = nm.MLP([1, 5, 5, 1], "tanh")
STRUCTURED = nm.MLP([1, 5, 5, 1], structure=nm.Structure(("tanh", "sin")))
TASKS = nm.tasks.Sinusoid(shots=4).sample(0, 0, 3)


class Renamed(MAML):
    """Somebody's algorithm, made from MAML."""


#: All that adapt by gradient steps or are made of what does, with options that make a difference.
OTHERS = {
    "maml++": MAMLPlusPlus(MODEL, "mse", 0.1, 2, step_weights=(0.4, 0.6)),
    "maml++, last step": MAMLPlusPlus(MODEL, "mse", 0.1, 2),
    "reptile": Reptile(MODEL, "mse", 0.1, 2),
    "joint": Joint(MODEL, "mse", 0.1, 2),
    "scratch": Scratch(MODEL, "mse", 0.1, 2),
    "meta-sgd": MetaSGD(MODEL, "mse", 2),
    "structured": StructuredMAML(STRUCTURED, "mse", 0.1, 2),
    "structured, pressed": StructuredMAML(STRUCTURED, "mse", 0.1, 2, gate_pressure=1.0),
    "warp": Warp(MODEL, "mse", 0.1, 2),
    "imaml": algorithms.IMAML(MODEL, "mse"),
    "cavia": algorithms.CAVIA(nm.MLP([2, 5, 1], "tanh"), "mse", 1),
    "lstm": algorithms.MetaLSTM(MODEL, "mse", inner_steps=2),
    "a class made from MAML": Renamed(MODEL, "mse", 0.1, 2),
}

#: The algorithms whose meta-gradient, but for pressures, is that of the MAML which they hold.
HOLDERS = ["meta-sgd", "structured", "structured, pressed", "warp"]


@pytest.mark.parametrize("name", OTHERS)
def test_nobody_is_judged_as_if_it_were_maml(name):
    other = OTHERS[name]
    params = other.init(0)
    theta = params["theta"]
    own = other.meta_gradient(params, TASKS).grad
    message = "its .maml is one" if name in HOLDERS else "must be a MAML, got"
    for judge in (
        lambda: nm.Problem(other, theta, TASKS),
        lambda: verification.check_meta_gradient(other, theta, TASKS, own),
        lambda: verification.check_meta_gradient(other, theta, TASKS, 0 * own),
        lambda: verification.meta_gradient(other, theta, TASKS),
        lambda: verification.complex_step(other, theta, TASKS),
    ):
        with pytest.raises(ValueError, match=message):
            judge()


@pytest.mark.parametrize("name", HOLDERS)
def test_the_maml_that_is_held_judges(name):
    other = OTHERS[name]
    params = other.init(0)
    right = other.maml.meta_gradient(params, TASKS).grad
    first_order = dataclasses.replace(other.maml, first_order=True).meta_gradient(params, TASKS).grad
    for gradient, verdict in (
        (right, Verdict.PASS),
        (first_order, Verdict.FAIL),
        (0 * right, Verdict.FAIL),
    ):
        report = verification.check_meta_gradient(other.maml, params, TASKS, gradient)
        assert report.verdict is verdict, report
    pressed = name == "structured, pressed"
    own = other.meta_gradient(params, TASKS).grad
    assert np.array_equal(own, right) is not pressed


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (Joint, "first_order"),
        (Joint, "learn_inner_lr"),
        (Scratch, "first_order"),
        (Scratch, "learn_inner_lr"),
        (Reptile, "first_order"),
        (Reptile, "learn_inner_lr"),
        (Reptile, "inner_weight_decay"),
        (MetaSGD, "inner_lr"),
        (MetaSGD, "learn_inner_lr"),
    ],
)
def test_no_argument_means_nothing(make, argument):
    assert argument not in inspect.signature(make).parameters
    with pytest.raises(TypeError, match=argument):
        make(MODEL, "mse", **{argument: 1})


def test_a_step_size_is_not_taken_for_something_else():
    with pytest.raises(ValueError, match=r"inner_steps must be .*, got 0.3"):
        MetaSGD(MODEL, "mse", 0.3)


@pytest.mark.parametrize("make", [Joint, Scratch, Reptile])
def test_step_sizes_that_are_not_learned_are_no_meta_parameters(make):
    params = {"theta": MODEL.init(0), "inner_lr": np.full((1, 3), 0.1)}
    message = f"{make.__name__} has no meta-parameter 'inner_lr'"
    with pytest.raises(ValueError, match=message):
        make(MODEL, "mse").meta_gradient(params, TASKS)
    with pytest.raises(ValueError, match=message):
        make(MODEL, "mse").evaluate(params, TASKS)


def test_algorithms_inherit_from_nothing_that_has_state():
    for kind in vars(algorithms).values():
        if isinstance(kind, type) and issubclass(kind, Adapts):
            assert not [base for base in kind.__mro__[1:] if dataclasses.is_dataclass(base)], kind


def test_maml_is_the_case_in_which_the_last_loss_alone_counts():
    p = problem("mse")
    maml = MAML(p.model, "mse", 0.1, 3)
    plus = MAMLPlusPlus(p.model, "mse", 0.1, 3, step_weights=(0, 0, 1))
    ours, theirs = (one.meta_gradient(p.theta, p.tasks) for one in (maml, plus))
    # Its step sizes are laid out by step and layer; products with them round as those with one number.
    assert_close(ours.grad, theirs.grad, 1e-14)


@pytest.mark.parametrize("make", [MAML, MAMLPlusPlus, MetaSGD, Joint, Scratch, algorithms.IMAML])
def test_a_loss_is_no_model(make):
    with pytest.raises(ValueError, match="model must be an MLP or an objective, got "):
        make(losses.get("mse"))


@pytest.mark.parametrize("activation", ["relu", "tanh", ["relu", "relu"]])
def test_a_structure_leaves_no_room_for_an_activation(activation):
    with pytest.raises(ValueError, match="leave out the activation"):
        nm.MLP([1, 5, 5, 1], activation, structure=nm.Structure(("relu", "sin")))


@pytest.mark.parametrize(
    "learner",
    [
        MAML(STRUCTURED, "mse", 0.1, 2, learn_inner_lr=True, inner_weight_decay=0.1),
        StructuredMAML(STRUCTURED, "mse", 0.1, 2, learn_inner_lr=True, gate_pressure=0.5),
        MAMLPlusPlus(STRUCTURED, "mse", 0.1, 2, step_weights=(0.4, 0.6), first_order=True),
        MetaSGD(STRUCTURED, "mse", 2),
        Joint(STRUCTURED, "mse", 0.1, 2),
    ],
    ids=lambda learner: type(learner).__name__,
)
def test_what_is_hardened_keeps_its_settings(learner):
    params = learner.init(0)
    hard, hard_params = nm.harden(learner, params)
    expected = learner.maml if isinstance(learner, StructuredMAML) else learner
    assert type(hard) is type(expected)
    for field in dataclasses.fields(hard):
        if field.init and field.name not in ("model", "inner_lr"):
            assert getattr(hard, field.name) == getattr(expected, field.name), field.name
    assert set(hard_params) == set(params)
    assert set(hard.init(0)) == set(learner.init(0))
    assert np.isfinite(hard.meta_gradient(hard_params, TASKS).grad).all()


def test_learned_step_sizes_are_hardened_with_what_they_belong_to():
    learner = MetaSGD(STRUCTURED, "mse", 2)
    with pytest.raises(ValueError, match="with its learned 'inner_lr' beside theta"):
        nm.harden(learner, learner.init(0)["theta"])


# --- functions with a parameter -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("get", "function", "name"),
    [
        (activations.get, activations.leaky_relu(0.3), "leaky_relu(0.3)"),
        (activations.get, activations.leaky_relu(np.float32(0.25)), "leaky_relu(0.25)"),
        (activations.get, activations.leaky_relu(1e-300), "leaky_relu(1e-300)"),
        (activations.get, activations.leaky_relu(1 / 3), "leaky_relu(0.3333333333333333)"),
        (activations.get, activations.leaky_relu(0.01), "leaky_relu"),
        (activations.get, activations.elu(0.5), "elu(0.5)"),
        (activations.get, activations.elu(1), "elu"),
        (losses.get, losses.huber(0.1), "huber(0.1)"),
        (losses.get, losses.huber(1), "huber"),
    ],
)
def test_a_parameter_is_part_of_the_name(get, function, name):
    assert function.name == name
    assert get(name) is function
    assert pickle.loads(pickle.dumps(function)) is function
    assert function.is_ours


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: activations.get("leaky_relu(x)"), "must have a number in its brackets"),
        (lambda: activations.get("leaky_relu(nan)"), "slope must be a finite number, got nan"),
        (lambda: activations.get("relu(2)"), r"unknown activation 'relu\(2\)'"),
        (lambda: losses.get("huber(0)"), "delta must be a positive number, got 0.0"),
        (lambda: losses.huber("1"), "delta must be a positive number, got '1'"),
        (lambda: activations.elu(None), "alpha must be a finite number, got None"),
    ],
)
def test_names_with_no_such_parameter_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def with_parameters(structure=False):
    candidates = ("leaky_relu(0.3)", "sin")
    model = (
        nm.MLP([1, 4, 4, 1], structure=nm.Structure(candidates))
        if structure
        else nm.MLP([1, 4, 4, 1], [activations.leaky_relu(0.3), activations.elu(0.5)])
    )
    return nm.Problem(MAML(model, losses.huber(0.1), 0.1, 2), model.init(0), TASKS)


@pytest.mark.parametrize("structure", [False, True])
def test_a_problem_comes_back_from_its_files_with_the_parameters(structure, tmp_path):
    ours = with_parameters(structure)
    save_problem(tmp_path, ours)
    theirs = load_problem(tmp_path)
    np.testing.assert_array_equal(theirs.gradient, ours.gradient)
    plain = MAML(ours.maml.model, "huber", 0.1, 2)  # or the test would see nothing
    assert not np.allclose(plain.meta_gradient(ours.theta, TASKS).grad, ours.gradient, rtol=1e-3)


@pytest.mark.parametrize("which", ["activation", "loss"])
def test_functions_that_no_name_brings_back_have_no_file(which, tmp_path):
    f, loss = activations.get("tanh"), losses.get("mse")
    if which == "activation":
        f = activations.Activation("tanh", np.sinh, lambda z, a: np.cosh(z), lambda z, a: a)
    else:
        loss = losses.Loss("mse", losses.get("huber").at, "values")
    model = nm.MLP([1, 4, 1], f)
    with pytest.raises(ValueError, match=f"the {which} '(tanh|mse)' is none of them"):
        save_problem(tmp_path / "case", nm.Problem(MAML(model, loss, 0.1), model.init(0), TASKS))
    assert not (tmp_path / "case").exists()


def test_parameters_reach_the_workers():
    p = with_parameters()
    with Sharded(p.maml, 1, workers=2) as sharded:
        far = sharded.meta_gradient({"theta": p.theta}, TASKS).grad
    np.testing.assert_array_equal(far, Sharded(p.maml, 1).meta_gradient({"theta": p.theta}, TASKS).grad)


def exceptions():
    for module in pkgutil.walk_packages(npmeta.__path__, "npmeta."):
        if not module.name.endswith("__main__"):
            for kind in vars(importlib.import_module(module.name)).values():
                if (
                    isinstance(kind, type)
                    and issubclass(kind, Exception)
                    and "npmeta" in kind.__module__
                ):
                    yield kind


@pytest.mark.parametrize("kind", sorted(set(exceptions()), key=lambda kind: kind.__name__))
def test_errors_come_back_from_workers(kind):
    arguments = (3, None, float("inf")) if kind is NonFiniteError else ("what happened",)
    error = kind(*arguments)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert str(back) == str(error)
    if kind is NonFiniteError:
        assert (back.iteration, back.task) == (3, None)
