"""The doctor on normalised networks. Mistakes are planted by their own predictions here;
tests/peers/test_doctor_normalisation.py has the same made with PyTorch's norms."""

from __future__ import annotations

import numpy as np
import pytest

import npmeta as nm
from npmeta.bilevel.objective import Risk
from npmeta.network.normalisation import EPS
from npmeta.verification import FAULTS, Doctor
from npmeta.verification.doctor import explanations, inner_loop
from npmeta.verification.doctor.choices import Forward, Statistics
from npmeta.verification.doctor.explanations import Explanation, left_out, pairs, singles
from npmeta.verification.doctor.faults.normalised import NORMALISED
from npmeta.verification.doctor.inner_loop import run_loop
from npmeta.verification.doctor.other_norms import NormRule, OtherNorm, fresh, running
from npmeta.verification.doctor.predictions import predictions
from npmeta.verification.doctor.recipe import gradient_by
from tests.helpers import assert_close

every_norm = pytest.mark.parametrize("norm", ["batch", "layer"])


def pose(norm="batch", activation="tanh", widths=(4, 8, 8, 11), seed=0, S=3, **model) -> nm.Problem:
    """The design in which no two mistakes coincide, normalised."""
    T, K, Q = 3, 5, 7
    rng = np.random.default_rng(seed)
    net = nm.MLP(widths, activation, norm=norm, **model)
    theta = net.init(rng) + 0.1 * rng.normal(size=net.n_params)
    x = rng.normal(size=(T, K + Q, widths[0]))
    y = rng.normal(size=(T, K + Q, widths[-1]))
    tasks = nm.TaskBatch(x[:, :K], y[:, :K], x[:, K:], y[:, K:])
    return nm.Problem(nm.MAML(net, "mse", 0.1, S), theta, tasks)


# --- what is computed -----------------------------------------------------------------------------

NORMS = {
    "batch": {"over": "batch"},
    "layer": {"over": "layer"},
    "rows and units": {"over": "rows and units"},
    "all tasks": {"over": "all tasks"},
    "unbiased": {"over": "batch", "unbiased": True},
    "beside the root": {"over": "layer", "eps": 0.1, "eps_on": "deviation", "unbiased": True},
    "of some rows": {"over": "batch", "of_rows": 3, "eps": 0.1, "eps_on": "deviation"},
    "without scale": {"over": "batch", "affine": False},
    "after": {"over": "batch", "after": True},
}


@pytest.mark.parametrize("how", NORMS.values(), ids=NORMS)
def test_gradients_and_products_meet_differences(how):
    """Of the sum over tasks, for a norm may be over all of them."""
    p = pose()
    rng = np.random.default_rng(0)
    theta = np.tile(p.theta, (p.T, 1)) + 0.1 * rng.normal(size=(p.T, p.P))
    v, w = rng.normal(size=(2, p.T, p.P))
    risk = Risk(OtherNorm(p.model, NormRule(**how)), "mse")
    batch = risk.prepare(p.tasks.support_x, p.tasks.support_y, theta.dtype)

    def at(phi):
        return risk.at(risk.hold(phi), batch)

    h = 1e-5
    lin, up, down = at(theta), at(theta + h * v), at(theta - h * v)
    # Central differences of numbers near 1: h² and 1e-16/h.
    slope = (up.value.sum() - down.value.sum()) / (2 * h)
    assert slope == pytest.approx((lin.grad * v).sum(), abs=1e-7)
    assert_close(lin.hvp(v), (up.grad - down.grad) / (2 * h), 1e-7)
    assert (lin.hvp(v) * w).sum() == pytest.approx((lin.hvp(w) * v).sum(), rel=1e-9)


@every_norm
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_right_norm_among_the_others(norm, activation):
    p = pose(norm, activation)
    other = nm.MAML(OtherNorm(p.model, NormRule(norm)), "mse", 0.1, 3)
    assert_close(other.meta_gradient(p.theta, p.tasks).grad, p.gradient, 1e-11)


def test_constant_statistics_give_the_same_losses():
    p = pose()
    constant = run_loop(p, Forward(statistics=Statistics(constant=True)))
    right = run_loop(p, Forward())
    np.testing.assert_allclose(constant.support(0).value, right.support(0).value, rtol=1e-13)
    assert np.abs(constant.support(0).grad - right.support(0).grad).max() > 1e-3


def test_a_fresh_module_leaves_z_as_it_is():
    p = pose(widths=(4, 8, 11))
    x = p.tasks.query_x
    W, b, scale, shift = p.model.unpack(p.theta)[0]
    V, c = p.model.unpack(p.theta)[1]
    o = np.tanh(scale * (x @ W + b) / np.sqrt(1 + EPS) + shift) @ V + c
    net = OtherNorm(p.model, NormRule("batch"), fresh(p.model))
    np.testing.assert_allclose(net.apply(np.tile(p.theta, (3, 1)), x), o, rtol=1e-12)


def test_running_averages():
    """Two passes of two tasks, by hand."""
    mean = np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 2, 1, 1)
    passes = [[(one, 2 * one)] for one in mean]
    ((kept, kept_variance),) = running(passes, 5, 0.5, True, True)
    np.testing.assert_allclose(kept.ravel(), [1.75, 0.25 * 1.75 + 0.25 * 2 + 0.5 * 4])
    ((alone, variance),) = running(passes, 5, 0.5, True, False)
    np.testing.assert_allclose(alone.ravel(), [1.75, 2.5])
    np.testing.assert_allclose(variance.ravel(), 0.25 + 2 * 5 / 4 * alone.ravel())
    assert kept_variance.ravel()[0] == variance.ravel()[0]


# --- what is named --------------------------------------------------------------------------------


@pytest.mark.parametrize("adapt_norm", [True, False], ids=["moves", "stays"])
@every_norm
def test_every_mistake_is_named(norm, adapt_norm):
    problem = pose(norm, adapt_norm=adapt_norm)
    doctor = Doctor(problem)
    assert doctor.diagnose(problem.gradient).verdict == "pass"
    for fault in NORMALISED:
        for variant in fault.variants(problem):
            for dtype in ("float64", "float32"):
                recipe = Explanation.of((fault, variant)).recipe
                with np.errstate(all="ignore"):
                    answer = gradient_by(problem, recipe.having(Forward(dtype=dtype))).astype(dtype)
                found = doctor.diagnose(answer)
                said = f"{fault.id} {variant.detail} {dtype}\n{found}"
                if fault.id == "norm_eps" and dtype == "float32" and variant.factor != 1e-3:
                    assert found.fault in (None, "norm_eps"), said  # 1e-5 is rounding, or hardly more
                    continue
                assert (found.verdict, found.fault, found.ties) == ("fail", fault.id, ()), said
                assert found.detail == variant.detail, said


def test_mistakes_of_batch_norm_are_of_batch_norm():
    of = {
        norm: {h.ids[0] for h in singles(pose(norm)) if h.ids[0] in IDS} for norm in ("batch", "layer")
    }
    assert of["layer"] < of["batch"]
    assert "norm_running_statistics" in of["batch"] - of["layer"]
    assert IDS - of["batch"] == {"norm_adapted"}
    assert not [h for h in singles(pose(None)) if set(h.ids) & IDS]
    assert left_out(pose(None)) == ""
    assert left_out(pose()).startswith("a mistake of normalisation beside others")


IDS = {fault.id for fault in NORMALISED}


def test_pairs_are_named(monkeypatch):
    monkeypatch.setattr(explanations, "MOST_FOR_CROWDS", 10)
    doctor = Doctor(pose(widths=(3, 6, 5)))
    two = [h for h in pairs(doctor.problem) if IDS & set(h.ids)]
    for explanation in two[::150]:
        found = doctor.diagnose(gradient_by(doctor.problem, explanation.recipe))
        names = [set(name.split(" + ")) for name in (found.fault or "", *found.ties)]
        assert set(explanation.ids) in names or len(names[0]) == 1, f"{explanation.ids}\n{found}"


def test_nothing_is_named_for_what_has_no_cause(monkeypatch):
    """One mistake or two; three are tried in tests/peers."""
    monkeypatch.setattr(explanations, "MOST_FOR_CROWDS", 10)
    problem = pose(widths=(3, 6, 5))
    doctor, rng = Doctor(problem), np.random.default_rng(0)
    g = problem.gradient
    for c in (rng.normal(size=g.size), rng.permutation(g), g * rng.uniform(0.9, 1.1, g.size)):
        found = doctor.diagnose(c)
        assert (found.verdict, found.fault) == ("fail", None), str(found)


def test_losses_tell_where_it_begins():
    """Statistics of the query pass leave the inner loop alone."""
    problem = pose()
    path = run_loop(
        problem, Forward(statistics=Statistics(on_query="running", unbiased=True, kept=True))
    )
    losses = np.stack([path.support(s).value for s in range(3)], axis=1)
    found = nm.diagnose(
        problem,
        FAULTS["norm_statistics_leak"].predict(problem),
        path.points[-1],
        {"support": losses, "query": path.query(3).value},
    )
    assert found.fault == "norm_statistics_leak"
    assert [agrees for _, agrees in found.checks.values()] == [True, True, False]


def test_tasks_go_back_one_after_another_where_there_is_much(monkeypatch):
    """But where the norm is over all of them."""
    problem = pose(widths=(3, 6, 5))
    mistakes = [h for h in singles(problem) if h.ids[0] in IDS]
    together = [p for _, rows in predictions(problem, mistakes) for p in rows]
    monkeypatch.setattr(inner_loop, "MOST_AT_ONCE", 10)
    alone = [p for _, rows in predictions(problem, mistakes) for p in rows]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-11 * np.linalg.norm(other))


def test_one_row_has_no_unbiased_variance():
    problem = pose(widths=(3, 6, 5))
    tasks = problem.tasks
    one = nm.TaskBatch(tasks.support_x[:, :1], tasks.support_y[:, :1], tasks.query_x, tasks.query_y)
    single = nm.Problem(problem.maml, problem.theta, one)
    assert FAULTS["norm_unbiased"].predict(single) is None
    assert nm.diagnose(single, single.gradient).verdict == "pass"
