"""Factored weights are dense weights within rounding, and cost what the plan says."""

import os
import platform
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import npmeta as nm
from npmeta._support.blas import ONE_THREAD, one_thread
from npmeta.bilevel.plan import make_plan
from npmeta.network.factored import FactoredBase, Grams, InputBase
from npmeta.network.spaces import flatten
from npmeta.network.weights import OuterSum, Shared, Term

rng = np.random.default_rng

ROOT = Path(__file__).parents[1]


# --- one layer --------------------------------------------------------------------------------------


def gradient(seed):
    """Of a layer 5 × 4 in three tasks of four rows."""
    r = rng(seed)
    return OuterSum((Term(r.normal(size=(3, 4, 5)), r.normal(size=(3, 4, 4)), on_bias=True),))


@pytest.mark.parametrize("kind", [FactoredBase, InputBase])
def test_earlier_points_do_not_see_later_steps(kind):
    layer = kind(rng(0).normal(size=(5, 4)), rng(1).normal(size=4))
    h = rng(2).normal(size=(3, 2, 5))
    steps = [gradient(s) for s in range(4)]
    points = [layer]
    for g in steps:
        points.append(points[-1].descend(g, (0.1, 0.1)))
    before = [point.act(h).copy() for point in points]
    points[2].descend(steps[0], (9.0, 9.0))  # a second branch from the middle
    points[2].descend(steps[1], (9.0, 9.0)).descend(steps[2], (9.0, 9.0))
    for point, value in zip(points, before, strict=True):
        np.testing.assert_array_equal(point.act(h), value)


def test_a_set_of_inputs_is_multiplied_with_the_shared_weights_once(monkeypatch):
    """Five steps and their adjoint: x W for support and query, and no more."""
    shared: list = []
    act = Shared.act
    monkeypatch.setattr(Shared, "act", lambda self, h: shared.append(h.shape) or act(self, h))
    maml, theta, tasks = deep()
    maml.meta_gradient(theta, tasks)
    assert [shape for shape in shared if shape[-1] == 11] == [(3, 5, 11), (3, 7, 11)]


def deep(n_in=11, n_hidden=6, steps=5, T=3):
    """A network with layers of both classes, all factored."""
    model = nm.MLP([n_in, n_hidden, n_hidden, 2], activation="tanh")
    r = rng(1)
    sizes = ((5, n_in), (5, 2), (7, n_in), (7, 2))
    tasks = nm.TaskBatch(*(r.normal(size=(T, *size)) for size in sizes))
    maml = nm.MAML(model, inner_lr=0.1, inner_steps=steps, weights="factored")
    return maml, model.init(rng(0)), tasks


def test_no_inner_product_of_rows_is_made_twice(monkeypatch):
    """Neither in the inner loop, nor in the adjoint as the transpose of one that was."""
    made: list = []
    product = Grams.product

    def recorded(self, h, parts):
        known = all(self._turned(part, h) is not None for part in parts)
        if not known:
            made.extend((id(self), frozenset({id(h[0]), id(part[0])})) for part in parts)
        kept.append((self, h, parts))  # so that no id is given to another array
        return product(self, h, parts)

    kept: list = []
    monkeypatch.setattr(Grams, "product", recorded)
    maml, theta, tasks = deep()
    maml.meta_gradient(theta, tasks)
    assert len(made) == 100  # in two layers
    assert len(made) == len(set(made))


# --- MAML -------------------------------------------------------------------------------------------


@st.composite
def problems(draw):
    """Networks, step sizes and sets of every kind; steps too small to amplify rounding errors."""
    n_hidden = draw(st.integers(0, 3))
    widths = [draw(st.integers(1, 6)) for _ in range(n_hidden + 2)]
    names = list(nm.activations.ACTIVATIONS)
    activation = [draw(st.sampled_from(names)) for _ in range(n_hidden)]
    loss = draw(st.sampled_from(list(nm.losses.LOSSES)))
    classes = nm.losses.get(loss).targets == "classes"
    widths[-1] = max(widths[-1], 2) if classes else widths[-1]
    T, K, Q, S = (draw(st.integers(low, 5)) for low in (1, 1, 1, 0))
    r = rng(draw(st.integers(0, 2**32)))
    model = nm.MLP(widths, activation if n_hidden else "relu")

    def targets(rows):
        return r.integers(0, widths[-1], (T, rows)) if classes else r.random((T, rows, widths[-1]))

    tasks = nm.TaskBatch(
        r.normal(size=(T, K, widths[0])), targets(K), r.normal(size=(T, Q, widths[0])), targets(Q)
    )
    shape = draw(
        st.sampled_from([(), (1, model.n_layers), (max(S, 1), 1), (max(S, 1), model.n_layers)])
    )
    options = {
        "loss": loss,
        "inner_steps": S,
        "first_order": draw(st.booleans()),
        "inner_weight_decay": draw(st.sampled_from([0.0, 0.3])),
    }
    # A zero freezes a layer.
    inner_lr = 0.05 * r.random(shape) * (r.random(shape) > 0.2)
    return model, model.init(r), inner_lr, tasks, options


@settings(max_examples=300)
@given(problems(), st.sampled_from(["factored", "auto"]), st.sampled_from([np.float64, np.float32]))
def test_the_meta_gradient_is_the_dense_one_within_rounding(problem, weights, dtype):
    model, theta, inner_lr, tasks, options = problem
    params = {"theta": theta.astype(dtype), "inner_lr": inner_lr.astype(dtype)}
    dense = nm.MAML(model, inner_lr=inner_lr, weights="dense", **options)
    other = nm.MAML(model, inner_lr=inner_lr, weights=weights, **options)
    expected, actual = dense.meta_gradient(params, tasks), other.meta_gradient(params, tasks)
    # A few hundred products and sums; losses and gradients are of order 1 to 100 here.
    tolerance = 2000 * np.finfo(dtype).eps
    for name in ("theta", "inner_lr"):
        assert actual.grads[name].dtype == dtype
        scale = max(1.0, np.abs(expected.grads[name]).max(initial=0))
        error = np.abs(actual.grads[name] - expected.grads[name]).max(initial=0)
        assert error <= tolerance * scale
    np.testing.assert_allclose(actual.task_loss, expected.task_loss, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(
        other.evaluate(params, tasks, steps=4).loss,
        dense.evaluate(params, tasks, steps=4).loss,
        rtol=tolerance,
        atol=tolerance,
    )
    np.testing.assert_array_equal(
        other.adapt(params, tasks.support_x, tasks.support_y),
        dense.adapt(params, tasks.support_x, tasks.support_y),
    )


def test_results_are_not_overwritten_by_the_next_call():
    maml, theta, tasks = deep()
    out, scores = maml.meta_gradient(theta, tasks), maml.evaluate(theta, tasks)
    y = maml.predict(theta, tasks.support_x, tasks.support_y, tasks.query_x)
    held = [out.grad, out.task_loss, scores.loss, y]
    before = [array.copy() for array in held]
    maml.meta_gradient(2 * theta, tasks)
    maml.evaluate(2 * theta, tasks)
    maml.predict(2 * theta, tasks.support_x, tasks.support_y, tasks.query_x)
    for array, copy in zip(held, before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_threads_share_a_maml_and_get_the_same_bits():
    maml, theta, tasks = deep(n_in=40, n_hidden=30, T=20)
    with one_thread(), ThreadPoolExecutor(4) as pool:  # BLAS's own threads would change roundings
        alone = [maml.meta_gradient(k * theta, tasks).grad for k in range(1, 9)]
        found = list(pool.map(lambda k: maml.meta_gradient(k * theta, tasks).grad, range(1, 9)))
    np.testing.assert_array_equal(found, alone)


def test_adapted_parameters_are_multiplied_out_only_for_who_asks():
    """What is held at most while working, of arrays (NumPy reports them to tracemalloc)."""
    T, width = 64, 200
    maml, theta, tasks = deep(n_in=width, n_hidden=width, steps=1, T=T)
    phi = T * theta.nbytes

    def peak(call):
        call()
        tracemalloc.start()
        call()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    support = tasks.support_x, tasks.support_y
    assert peak(lambda: maml.adapt(theta, *support)) > phi
    assert peak(lambda: maml.predict(theta, *support, tasks.query_x)) < phi / 4
    assert peak(lambda: maml.evaluate(theta, tasks)) < phi / 4
    assert peak(lambda: maml.meta_gradient(theta, tasks)) < phi / 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other ways")
def test_a_call_is_given_the_memory_of_the_one_before():
    """A process of its own, whose heap nobody else has made large."""
    program = """
import resource
from tests.test_factored import deep

maml, theta, tasks = deep(n_in=1, n_hidden=40, T=100)

def faults(calls):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(calls):
        maml.meta_gradient(theta, tasks)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(5)
print(faults(50))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, **ONE_THREAD},  # threads of BLAS have memory of their own
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
    )
    # Some are left to Python's own objects. Without keep_freed_memory there are hundreds in a call.
    assert int(done.stdout) < 10 * 50


# --- the plan ---------------------------------------------------------------------------------------

OMNIGLOT = {"n_tasks": 32, "n_support": 5, "n_query": 5, "n_steps": 5, "itemsize": 4}
SECOND = {"second_order": True, "per_parameter": False}


def test_wide_layers_with_few_rows_are_factored_and_narrow_ones_with_many_are_not():
    wide = make_plan((784, 1024, 1024, 5), **OMNIGLOT, **SECOND)
    assert wide.forms[:2] == ("factored", "factored")
    narrow = make_plan((1, 40, 40, 1), **{**OMNIGLOT, "n_support": 50, "n_query": 50}, **SECOND)
    assert narrow.forms == ("dense", "dense", "dense")


def test_the_plan_prints_what_was_chosen_and_why():
    model = nm.MLP([784, 64, 5])
    theta = model.init(rng(0), np.float32)
    x = rng(1).random((32, 10, 784))
    y = rng(2).integers(0, 5, (32, 10))
    tasks = nm.TaskBatch(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:])
    maml = nm.MAML(model, "cross_entropy", inner_lr=0.1, inner_steps=5)
    lines = str(maml.plan(tasks, theta)).splitlines()
    assert lines[0] == "32 tasks at a time, 5 inner steps, second order"
    assert lines[1].split() == ["layer", "shape", "form", "dense", "factored", "why"]
    assert "784×64" in lines[2]
    assert "factored" in lines[2]
    forced = nm.MAML(model, "cross_entropy", inner_lr=0.1, weights="dense").plan(tasks)
    assert forced.forms == ("dense", "dense")
    assert "as asked for" in str(forced)
    each = nm.MAML(model, "cross_entropy", inner_lr=np.full(model.n_params, 0.1)).plan(tasks)
    assert each.forms == ("dense", "dense")
    assert "step sizes differ within the layer" in str(each)


def test_what_cannot_be_is_refused():
    model = nm.MLP([2, 3, 1])
    with pytest.raises(ValueError, match=r"unknown form of weights 'factord' .did you mean 'factored'"):
        nm.MAML(model, weights="factord")
    tasks = nm.TaskBatch(*(np.zeros((1, 2, n)) for n in (2, 1, 2, 1)))
    maml = nm.MAML(model, inner_lr=np.full(model.n_params, 0.1), weights="factored")
    with pytest.raises(ValueError, match="step sizes per parameter need dense weights"):
        maml.meta_gradient(model.init(rng(0)), tasks)
    with pytest.raises(ValueError, match="has no layers to plan for"):
        nm.MAML(nm.Quadratic(2)).plan(tasks)


def test_points_flatten_to_the_parameters_they_stand_for():
    model = nm.MLP([3, 4, 2])
    theta = model.init(rng(0))
    for weights in ("auto", "dense", "factored"):
        plan = make_plan(model.widths, **OMNIGLOT, **SECOND, weights=weights)
        np.testing.assert_array_equal(flatten(model.layers(theta, plan.forms)), theta)
