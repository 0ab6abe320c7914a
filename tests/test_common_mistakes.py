"""The code on the page of common mistakes: each mistake gets its id from the doctor."""

import importlib.util
import inspect
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import npmeta as nm
from npmeta.verification import check_gradient
from tests.test_verification_doctor import pose

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


@cache
def example(name, folder=EXAMPLES):
    """A file of docs/examples as a module."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def functions(name):
    """The functions of such a file that make a meta-gradient."""
    return {
        name: function
        for name, function in inspect.getmembers(example(name), inspect.isfunction)
        if [*inspect.signature(function).parameters][:3] == ["theta", "support", "query"]
    }


# --- gradient descent inside ----------------------------------------------------------------------

IDS = {
    "right": None,
    "uphill": "inner_ascent",
    "at_the_adapted": "first_order",
    "ordinary_training": "not_adapted",
    "step_per_task": "outer_step_per_task",
    "summed_inner_loss": "inner_lr_times_rows",
    "summed_over_tasks": "summed_over_tasks",
    "query_is_support": "query_is_support",
    "query_of_another_task": "query_of_another_task",
    "in_place": "no_reset",
    "accumulator": "accumulator_survives_tasks",
    "leaking": "support_gradients_leaked",
}


@pytest.fixture(scope="module")
def doctor():
    return nm.verification.Doctor(pose())


def losses(problem):
    tasks, Losses = problem.tasks, example("common_mistakes").Losses
    objective = problem.maml.objective
    return (
        Losses(objective, tasks.support_x, tasks.support_y),
        Losses(objective, tasks.query_x, tasks.query_y),
    )


def test_every_mistake_has_an_id():
    assert set(functions("common_mistakes")) == {*IDS, "one_column"}


@pytest.mark.parametrize("name", IDS)
def test_the_mistake_is_named(doctor, name):
    problem = doctor.problem
    theta = problem.theta.copy()
    gradient = functions("common_mistakes")[name](theta, *losses(problem), 0.1, 3)
    found = doctor.diagnose(gradient)
    assert (found.fault, found.ties) == (IDS[name], ()), str(found)
    assert (found.verdict == "pass") == (name == "right")
    assert np.array_equal(theta, problem.theta) == (name != "in_place")


def test_one_column(doctor):
    """Which has no name: but for one array the gradient is right."""
    problem = doctor.problem
    c = example("common_mistakes").one_column(problem.theta, *losses(problem), 0.1, 3)
    wrong = [
        name for name, at in problem.blocks.items() if not np.allclose(c[at], problem.gradient[at])
    ]
    assert wrong == ["1.weight"]


# --- implicit gradients ---------------------------------------------------------------------------


def quadratics():
    """Losses of four tasks in three dimensions, their Hessians' eigenvalues between ½ and 2."""
    rng = np.random.default_rng(0)
    sides = []
    for _ in range(2):
        axes = np.linalg.qr(rng.normal(size=(4, 3, 3)))[0]
        A = axes * rng.uniform(0.5, 2, size=(4, 1, 3)) @ axes.swapaxes(1, 2)
        sides.append(example("common_mistakes").Losses(nm.Quadratic(3), A, rng.normal(size=(4, 3))))
    return sides


@pytest.mark.parametrize("name", functions("implicit_mistakes"))
def test_implicit_gradients(name):
    support, query = quadratics()
    module = example("implicit_mistakes")

    def loss(theta):
        # A step leaves at most 1 − 0.3 (½ + λ) = 0.55 of the distance, and 0.55^60 is a rounding.
        phi = module.adapted(theta, support, 1.0, 0.3, 60)
        gradient = functions("implicit_mistakes")[name](theta, support, query, 1.0, 0.3, 60, 3)
        return query(phi).value.mean(), gradient

    report = check_gradient(loss, np.random.default_rng(1).normal(size=3))
    assert report.verdict.value == ("PASS" if name == "right" else "FAIL"), str(report)


# --- the pictures ---------------------------------------------------------------------------------


def test_every_curve_begins_as_drawn(monkeypatch):
    """A few tasks and two outer steps for each; the numbers of the pictures begin with the same θ."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # which the script adds to
    script = example("mistakes", EXAMPLES.parent / "figures")
    drawn = json.loads((script.HERE / "mistakes.json").read_text(encoding="utf-8"))
    wanted = {
        name
        for panels in script.PICTURES.values()
        for _, good, wrong in panels
        for name in (good, *wrong)
    }
    assert wanted == set(drawn)
    for setting, value in (("ITERATIONS", 2), ("EVERY", 2), ("TASKS", 2)):
        monkeypatch.setattr(script, setting, value)
    for name in wanted:
        curves = script.train(name, 0)
        for curve, shown in zip(curves, drawn[name][0], strict=True):
            assert len(curve) == (2 if shown else 0), name
            assert curve[:1] == pytest.approx(shown[:1], rel=1e-3)  # drawn with four digits
            assert np.isfinite(curve).all()
