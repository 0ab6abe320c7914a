"""Meta-gradients against the oracle: right ones pass in any precision, each planted mistake fails."""

import numpy as np
import pytest

import npmeta as nm
from npmeta.network.activations import ACTIVATIONS
from npmeta.network.losses import LOSSES, Loss, LossAt
from npmeta.verification import Verdict, blocks, check_meta_gradient, meta_gradient, second_order
from npmeta.verification.checks.reports import judge
from tests.helpers import KINDS, Problem, problem, step_sizes


def scaled(loss: str, factor: float) -> Loss:
    """A loss times a number."""
    plain = LOSSES[loss]

    def at(o, y):
        value, gradient, product = plain(o, y)
        return LossAt(factor * value, factor * gradient, lambda u: factor * product(u))

    return Loss(loss, at, plain.targets, plain.soft)


def setting(activation="tanh", loss="cross_entropy", S=2, dtype=np.float64):
    p = problem(loss, activation).astype(dtype)
    return p, nm.MAML(p.model, loss, 0.1, S)


# --- what is right passes ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_npmetas_own(activation, dtype):
    for S, loss in enumerate(LOSSES):
        p = problem(loss, activation).astype(dtype)
        kind = KINDS[S % len(KINDS)]
        alpha = step_sizes(kind, p.model, S, np.random.default_rng(S)).astype(dtype)
        maml = nm.MAML(p.model, loss, alpha, S, inner_weight_decay=0.2)
        params = {"theta": p.theta, "inner_lr": alpha}
        out = maml.meta_gradient(params, p.tasks)
        report = check_meta_gradient(maml, params, p.tasks, out.grads, loss=out.loss)
        assert report.passed, report
        names = [finding.name for finding in report.findings]
        assert names == [*blocks(maml.objective), "inner_lr", "loss"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_verdict_does_not_depend_on_the_scale_of_the_loss(factor, dtype):
    p, _ = setting(dtype=dtype)
    maml = nm.MAML(p.model, scaled(p.loss, factor), 0.1 / factor, 2)
    right = maml.meta_gradient(p.theta, p.tasks).grad
    assert check_meta_gradient(maml, p.theta, p.tasks, right).passed
    share = 1e-6 if dtype == np.float64 else 1e-2
    assert not check_meta_gradient(maml, p.theta, p.tasks, right * dtype(1 + share)).passed


def test_first_order_maml_is_checked_as_such():
    p, maml = setting()
    first = nm.MAML(p.model, p.loss, 0.1, 2, first_order=True)
    out = first.meta_gradient(p.theta, p.tasks)
    assert check_meta_gradient(first, p.theta, p.tasks, out.grad).passed
    assert check_meta_gradient(maml, p.theta, p.tasks, out.grad).verdict is Verdict.FAIL


def test_an_objective_has_one_block():
    rng = np.random.default_rng(0)
    B = rng.normal(size=(3, 4, 4))
    A, c = B @ B.swapaxes(1, 2), rng.normal(size=(3, 4))
    maml, tasks = nm.MAML(nm.Quadratic(4), inner_lr=0.1, inner_steps=3), nm.TaskBatch(A, c, A, c)
    out = maml.meta_gradient(np.ones(4), tasks)
    report = check_meta_gradient(maml, np.ones(4), tasks, out.grad)
    assert report.passed
    assert [finding.name for finding in report.findings] == ["theta"]


# --- what is wrong fails ----------------------------------------------------------------------------


def transposed(p, g):
    W, at = p.model.unpack(g)[1][0], blocks(p.risk)["1.weight"]
    wrong = g.copy()
    wrong[at] = W.T.reshape(-1)
    return wrong


def nudged(p, g):
    wrong = g.copy()
    wrong[blocks(p.risk)["1.bias"]] *= 1 + 1e-6
    return wrong


def swapped(p, g):
    (W, b), *others = p.model.unpack(g)
    return np.concatenate([b, W.reshape(-1), *(part.reshape(-1) for layer in others for part in layer)])


#: From the gradient, the first-order one, and the problem; and ρ of the result where it has one.
MISTAKES = {
    "sign": (lambda p, g, first: -g, None),
    "first order": (lambda p, g, first: first, 0),
    "half of the Hessian": (lambda p, g, first: (g + first) / 2, 0.5),
    "sign of the Hessian": (lambda p, g, first: 2 * first - g, -1),
    "sum of tasks": (lambda p, g, first: len(p.tasks) * g, None),
    "transposed block": (lambda p, g, first: transposed(p, g), None),
    "biases first": (lambda p, g, first: swapped(p, g), None),
    "a millionth of a block": (lambda p, g, first: nudged(p, g), 1),
    "zeros": (lambda p, g, first: 0 * g, None),
    "not a number": (lambda p, g, first: g + np.nan, None),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("loss", LOSSES)
def test_mistakes(mistake, activation, loss):
    p, maml = setting(activation, loss)
    right = maml.meta_gradient(p.theta, p.tasks).grad
    first = nm.MAML(p.model, loss, 0.1, 2, first_order=True).meta_gradient(p.theta, p.tasks).grad
    make, rho = MISTAKES[mistake]
    report = check_meta_gradient(maml, p.theta, p.tasks, make(p, right, first))
    assert report.verdict is Verdict.FAIL, report
    if rho is not None:
        assert report.numbers["ρ"] == pytest.approx(rho, abs=1e-3)
        assert report.numbers["bar of ρ"] < 1e-8


def test_in_float32_too():
    p, maml = setting(dtype=np.float32)
    right = maml.meta_gradient(p.theta, p.tasks).grad
    first = nm.MAML(p.model, p.loss, 0.1, 2, first_order=True).meta_gradient(p.theta, p.tasks).grad
    for name, (make, _) in MISTAKES.items():
        wrong = make(p, right, first).astype(np.float32)
        if name != "a millionth of a block":  # which float32 cannot see
            assert check_meta_gradient(maml, p.theta, p.tasks, wrong).verdict is Verdict.FAIL, name


def test_the_block_and_the_step_size_at_fault_are_named():
    p, maml = setting()
    params = {"theta": p.theta, "inner_lr": np.asarray(0.1)}
    grads = maml.meta_gradient(params, p.tasks).grads
    for name, at in blocks(p.risk).items():
        wrong = grads["theta"].copy()
        wrong[at] *= 1.01
        report = check_meta_gradient(maml, params, p.tasks, {**grads, "theta": wrong})
        assert [f.name for f in report.findings if f.verdict is Verdict.FAIL] == [name]
    wrong_lr = {"inner_lr": -grads["inner_lr"]}
    assert check_meta_gradient(maml, params, p.tasks, wrong_lr)["inner_lr"].verdict is Verdict.FAIL


# --- second order -----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [-1.0, 0.0, 0.5, 1.0, 1.5])
def test_rho_is_the_share_of_the_second_order_part(share):
    p, maml = setting()
    reference = meta_gradient(maml, p.theta, p.tasks)
    part = reference.grad - reference.first_order
    found = second_order(reference.first_order + share * part, reference)
    assert found.share == pytest.approx(share, abs=1e-12)
    assert found.residual < 1e-12
    assert found.size == pytest.approx(np.linalg.norm(part) / np.linalg.norm(reference.grad))


def test_rho_does_not_exist_without_inner_steps():
    p, maml = setting(S=0)
    reference = meta_gradient(maml, p.theta, p.tasks)
    assert np.isnan(second_order(reference.grad, reference).share)
    assert check_meta_gradient(maml, p.theta, p.tasks, reference.grad).passed


# --- what cannot be told ----------------------------------------------------------------------------


def test_at_kinks():
    """Zero biases and one row alone, of zeros: all units of the first layer are at their kink."""
    p = problem("mse", "relu", K=1)
    theta = p.model.pack([(W, 0 * b) for W, b in p.model.unpack(p.theta)])
    tasks = nm.TaskBatch(0 * p.tasks.support_x, p.tasks.support_y, p.tasks.query_x, p.tasks.query_y)
    maml = nm.MAML(p.model, "mse", 0.5, 2)
    report = check_meta_gradient(maml, theta, tasks, maml.meta_gradient(theta, tasks).grad)
    assert report.verdict is Verdict.INCONCLUSIVE, report
    (reason,) = {
        f.reason for f in report.findings if f.verdict is Verdict.INCONCLUSIVE and f.name == "0.bias"
    }
    assert "pre-activations at a kink" in reason


def test_a_loop_that_runs_away():
    p = problem("mse", "relu")
    maml = nm.MAML(p.model, "mse", 1e3, 400)
    with np.errstate(all="ignore"):
        gradient = maml.meta_gradient(p.theta, p.tasks).grad
    report = check_meta_gradient(maml, p.theta, p.tasks, gradient)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "the inner loop runs away" in report["all"].reason


def test_a_dead_network():
    """All units off: the gradient of every weight but the last biases is exactly zero."""
    p = problem("mse", "relu", (4,))
    (W, b), head = p.model.unpack(p.theta)
    p = Problem(p.model, "mse", p.model.pack([(W, b - 100), head]), p.tasks)
    maml = nm.MAML(p.model, "mse", 0.1, 2)
    right = maml.meta_gradient(p.theta, p.tasks).grad
    assert check_meta_gradient(maml, p.theta, p.tasks, right).passed
    wrong = right.copy()
    wrong[0] = 1e-12
    report = check_meta_gradient(maml, p.theta, p.tasks, wrong)
    assert report["0.weight"].verdict is Verdict.FAIL
    assert report["0.weight"].reason == "must be exactly zero"


@pytest.mark.parametrize(
    ("error", "bar", "scale", "zero", "verdict"),
    [
        (0.5, 1.0, 100.0, 0.0, "PASS"),
        (1.5, 1.0, 100.0, 0.0, "FAIL"),
        (0.5, 1.0, 5.0, 0.0, "INCONCLUSIVE"),
        (1.5, 1.0, 5.0, 0.0, "FAIL"),
        (0.5, 1.0, 5.0, 2.0, "PASS"),
        (0.0, 0.0, 0.0, 0.0, "PASS"),
        (1e-300, 0.0, 0.0, 0.0, "FAIL"),
        (0.0, 1.0, 0.0, 0.0, "INCONCLUSIVE"),
        (np.nan, 1.0, 100.0, 0.0, "FAIL"),
        (np.inf, 1.0, 100.0, 0.0, "FAIL"),
        (0.0, np.inf, 100.0, 0.0, "INCONCLUSIVE"),
        (0.0, np.nan, np.nan, 0.0, "INCONCLUSIVE"),
    ],
)
def test_the_rule(error, bar, scale, zero, verdict):
    finding = judge("block", error, bar, scale, zero=zero)
    assert finding.verdict.value == verdict
    assert (finding.reason == "") == (verdict == "PASS" and zero == 0), (
        "whatever did not pass has a reason"
    )
    for power in (2.0**-400, 2.0**400):
        if 1e-280 < error < 1e280:
            assert (
                judge("block", error * power, bar * power, scale * power, zero=zero * power).verdict
                == verdict
            )


def test_bad_input():
    p, maml = setting()
    with pytest.raises(ValueError, match="the gradient by theta must be real with shape"):
        check_meta_gradient(maml, p.theta, p.tasks, p.theta[:, None])
    with pytest.raises(ValueError, match="gradient must be by 'theta' or 'inner_lr'"):
        check_meta_gradient(maml, p.theta, p.tasks, {"alpha": 1.0})
