"""The doctor: every mistake named, nothing named that is none, right gradients passed.

Here mistakes are planted by their own predictions; tests/peers/test_doctor.py has the same mistakes
made in PyTorch, by code that knows nothing of the predictions.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

import npmeta as nm
from npmeta.cli.main import main
from npmeta.network.losses import LOSSES, Loss, LossAt
from npmeta.verification import FAULTS, Doctor
from npmeta.verification.doctor import explanations, inner_loop, search
from npmeta.verification.doctor.choices import Backward, Forward
from npmeta.verification.doctor.explanations import (
    Explanation,
    crowds,
    known_factors,
    left_out,
    pairs,
    singles,
)
from npmeta.verification.doctor.faults import base as faults_base
from npmeta.verification.doctor.faults.normalised import NORMALISED
from npmeta.verification.doctor.files import load_answers, load_problem, named_arrays, save_problem
from npmeta.verification.doctor.inner_loop import run_loop
from npmeta.verification.doctor.noise import Noise
from npmeta.verification.doctor.predictions import predictions
from npmeta.verification.doctor.recipe import Recipe, gradient_by
from npmeta.verification.doctor.way_back import pull_back, ways_back


def pose(
    activation="tanh", loss="mse", widths=(4, 8, 8, 11), T=3, K=5, Q=7, S=3, alpha=0.1, seed=0, **maml
) -> nm.Problem:
    """By default the design in which no two mistakes coincide."""
    rng = np.random.default_rng(seed)
    model = nm.MLP(widths, activation)
    theta = model.init(rng) + 0.1 * rng.normal(size=model.n_params)
    x = rng.normal(size=(T, K + Q, widths[0]))
    y = rng.normal(size=(T, K + Q, widths[-1]))
    if loss == "cross_entropy":
        y = rng.integers(widths[-1], size=(T, K + Q))
    tasks = nm.TaskBatch(x[:, :K], y[:, :K], x[:, K:], y[:, K:])
    return nm.Problem(nm.MAML(model, loss, alpha, S, **maml), theta, tasks)


@pytest.fixture(scope="module")
def base() -> Doctor:
    return Doctor(pose())


def planted(problem, explanation: Explanation, dtype):
    recipe = explanation.recipe
    if dtype == np.float32:
        recipe = recipe.having(Forward(dtype="float32"))
    with np.errstate(all="ignore"):
        return gradient_by(problem, recipe).astype(dtype)


def assert_named(found, ids):
    assert found.fault is not None, str(found)
    assert set(found.fault.split(" + ")) == set(ids), str(found)


# --- single mistakes --------------------------------------------------------------------------------


def every_form(problem):
    """Every form of every mistake, but those that are no gradient."""
    return [
        Explanation.of((fault, variant))
        for fault in FAULTS.values()
        for variant in fault.variants(problem)
    ]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_mistake_is_named(base, dtype):
    for explanation in every_form(base.problem):
        if explanation.ids == ("float32",) and dtype == np.float32:
            continue  # which is right
        found = base.diagnose(planted(base.problem, explanation, dtype))
        assert (found.verdict, found.fault, found.ties) == ("fail", *explanation.ids, ()), str(found)
        ((_, variant),) = explanation.parts
        if variant.factor is not None:
            # A fit in float32 finds a number as well as the gradient shows it.
            tolerance = 1e-6 if dtype == np.float64 else 0.1
            assert found.factor == pytest.approx(variant.factor, rel=tolerance), str(found)


#: Sizes that coincide, or too little of something.
DESIGNS = {
    "relu and classes": {"activation": "relu", "loss": "cross_entropy"},
    "gelu and one output": {"activation": "gelu", "widths": (3, 8, 8, 1)},
    "one task, one step": {"T": 1, "S": 1, "Q": 5},
    "linear": {"widths": (4, 11)},
    "no step": {"S": 0},
    "small steps": {"alpha": 1e-4},
    "a step size a layer": {"alpha": [[0.05, 0.1, 0.2]]},
    "weight decay": {"inner_weight_decay": 0.1},
}


@pytest.mark.parametrize("name", [*DESIGNS][:3])
def test_every_mistake_is_named_or_tied(name):
    """The other designs are in tests/peers."""
    check_design(name)


def check_design(name):
    """What this problem cannot tell from something simpler is listed beside it."""
    doctor = Doctor(pose(**DESIGNS[name]))
    forms = {explanation.ids: explanation for explanation in every_form(doctor.problem)}
    for explanation in forms.values():  # one form of each
        found = doctor.diagnose(planted(doctor.problem, explanation, np.float64))
        (id,) = explanation.ids
        assert id in (found.fault, *found.ties), f"{explanation.ids}\n{found}"
        if found.fault is None:  # its effect is nothing, or hardly more than rounding
            assert found.verdict in ("pass", "inconclusive")
            assert found.misfit < 1e-7 or id == "float32"


def test_every_mistake_has_a_prediction(base):
    for id, fault in FAULTS.items():
        p = fault.predict(base.problem)
        if id in ("targets_broadcast", "softmax_twice", "not_finite", "frozen_adapted", "frozen_zero"):
            assert p is None  # not with this loss, or where everything adapts
        elif id in ("cross_terms_lost", "structure_not_adapted") or fault in NORMALISED:
            assert p is None  # not with this network
        else:
            assert p.shape == (base.problem.P,)
            assert p.dtype == np.float64
            assert np.isfinite(p).all()


def test_entries_say_what_to_do():
    for id, fault in FAULTS.items():
        assert fault.id == id
        assert fault.stage in ("backward", "forward", "assembly", "scale")
        assert all((fault.formula, fault.cause, fault.pytorch, fault.jax))
    assert set(faults_base._prose()) == set(FAULTS), "what is said belongs to a mistake"


def test_ties_come_with_what_would_tell(base):
    found = nm.diagnose(pose(S=1, T=1), FAULTS["hessian_at_next"].predict(pose(S=1, T=1)))
    assert (found.fault, found.ties) == ("hessian_at_end", ("hessian_at_next",))
    assert "3 inner steps (here 1)" in str(found)


def test_a_factor_without_a_name(base):
    """Also where many other predictions are nearer than this one without its factor."""
    found = base.diagnose(0.37 * FAULTS["first_order"].predict(base.problem))
    assert_named(found, ["first_order", "scaled"])
    assert found.factor == pytest.approx(0.37)


@pytest.mark.parametrize(("names", "kind"), [(["0.bias", "1.weight", "2.bias"], "zero")])
def test_several_blocks(base, names, kind):
    g = base.problem.gradient.copy()
    for name in names:
        g[base.problem.blocks[name]] = 0
    found = base.diagnose(g)
    assert_named(found, ["block_zero"])
    assert found.detail == ", ".join(names)


# --- several at once --------------------------------------------------------------------------------


def likely_pairs(problem):
    """Step-size factor × any, mask × any, scale × any."""
    likely = {"lr_factor", "adapted"}
    found = [h for h in pairs(problem) if likely & {c for _, v in h.parts for c in v.changes}]
    return found + [one + part for one in singles(problem) for part in known_factors(problem)]


@pytest.mark.parametrize(("dtype", "start"), [(np.float64, 0), (np.float32, 3)])
def test_pairs_are_named(base, dtype, start):
    """Every sixtieth; all of them in tests/peers."""
    for explanation in likely_pairs(base.problem)[start::60]:
        check_pair(base, explanation, dtype)


@lru_cache(1)
def noise_of(problem):
    """Measured once of what a problem's mistakes have in common."""
    return Noise(problem)


def check_pair(doctor, explanation, dtype):
    c = planted(doctor.problem, explanation, dtype)
    if not np.isfinite(c).all() or not c.any():
        return
    limit = noise_of(doctor.problem).of(explanation.recipe, np.dtype(dtype).name)
    if limit > 1e-2:
        return  # an inner loop that runs away, in float32
    found = doctor.diagnose(c)
    assert found.fault is not None, f"{explanation.ids}\n{found}"
    named = [set(name.split(" + ")) for name in (found.fault, *found.ties)]
    # A single mistake that makes the same gradient is the simpler explanation.
    assert set(explanation.ids) in named or len(named[0]) == 1, f"{explanation.ids}\n{found}"


def test_three_at_once(base):
    for explanation in crowds(base.problem)[::6000]:
        c = planted(base.problem, explanation, np.float64)
        if np.isfinite(c).all() and noise_of(base.problem).of(explanation.recipe, "float64") < 1e-3:
            found = base.diagnose(c)
            names = [set(name.split(" + ")) for name in (found.fault, *found.ties)]
            assert set(explanation.ids) in names or len(names[0]) < 3, f"{explanation.ids}\n{found}"


# --- nothing named that is none ---------------------------------------------------------------------


def wrong_gradients(problem, n, seed=0):
    """Noise, a little noise, permuted entries and blocks, other networks' gradients."""
    rng = np.random.default_rng(seed)
    g, P = problem.gradient, problem.P
    blocks = [place for place in problem.blocks.values() if np.ptp(g[place]) > 0]
    for i in range(n):
        if i % 5 == 0:
            c = rng.normal(size=P)
        elif i % 5 == 1:
            c = g + 10.0 ** rng.uniform(-5, 0) * np.linalg.norm(g) / np.sqrt(P) * rng.normal(size=P)
        elif i % 5 == 2:
            c = rng.permutation(g)
        elif i % 5 == 3:
            c = g.copy()
            place = blocks[rng.integers(len(blocks))]
            c[place] = np.roll(c[place], 1)
        else:
            other = pose(seed=i + 1)
            c = nm.MAML(problem.maml.model, "mse", 0.1, 3).meta_gradient(other.theta, other.tasks).grad
        yield c


def test_no_cause_is_named_for_what_has_none(base):
    for c in wrong_gradients(base.problem, 40):
        found = base.diagnose(c)
        assert (found.verdict, found.fault) == ("fail", None), str(found)


def test_few_parameters_are_not_explained_by_chance():
    problem = pose(widths=(1, 1))
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert nm.diagnose(problem, rng.normal(size=2)).fault is None


# --- right gradients --------------------------------------------------------------------------------


def times(name: str, factor: float) -> Loss:
    """A loss times a factor."""

    def at(o, y):
        value, gradient, product = LOSSES[name](o, y)
        return LossAt(factor * value, factor * gradient, lambda u: factor * product(u))

    return Loss(f"{factor:g} {name}", at, LOSSES[name].targets, LOSSES[name].soft)


RIGHT = [
    {"activation": activation, "loss": loss, "alpha": alpha, "S": S, "widths": widths}
    for activation, loss, alpha, S, widths in (
        ("relu", "mse", 1e-4, 10, (4, 32, 11)),
        ("relu", "cross_entropy", 1.0, 3, (4, 16, 16, 5)),
        ("tanh", "mse", 1.0, 10, (4, 8, 8, 11)),
        ("tanh", times("mse", 1e-6), 0.1, 3, (4, 8, 8, 11)),
        ("sin", times("mse", 1e6), 1e-4, 1, (4, 8, 8, 11)),
        ("gelu", times("cross_entropy", 1e3), 1e-4, 5, (4, 16, 5)),
        ("leaky_relu", "mse", 0.1, 5, (4, 256, 11)),
        ("softplus", "cross_entropy", 0.3, 2, (20, 256, 256, 5)),
    )
]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("settings", RIGHT, ids=lambda s: f"{s['activation']}-{s['alpha']}")
def test_right_gradients_pass(settings, dtype):
    problem = pose(**{**settings, "loss": "mse"})
    loss = settings["loss"]
    if "cross_entropy" in getattr(loss, "name", loss):
        problem = pose(**{**settings, "loss": "cross_entropy"})
    maml = problem.maml
    # In the factored form and with the tasks in another order: the same sums in another order.
    other = nm.MAML(maml.model, loss, maml.inner_lr, maml.inner_steps, weights="factored")
    maml = nm.MAML(maml.model, loss, maml.inner_lr, maml.inner_steps)
    answer = other.meta_gradient(problem.theta.astype(dtype), problem.tasks[[2, 0, 1]]).grad
    assert answer.dtype == dtype
    found = nm.diagnose(nm.Problem(maml, problem.theta, problem.tasks), answer)
    assert (found.verdict, found.fault) == ("pass", None), str(found)


def test_an_objective_that_is_no_network():
    rng = np.random.default_rng(0)
    B = rng.normal(size=(2, 3, 9, 9))
    A, AQ = B @ B.swapaxes(-1, -2) / 9 + np.eye(9)
    tasks = nm.TaskBatch(A, rng.normal(size=(3, 9)), AQ, rng.normal(size=(3, 9)))
    maml = nm.MAML(nm.Quadratic(9), inner_lr=0.1, inner_steps=3)
    problem = nm.Problem(maml, rng.normal(size=9), tasks)
    doctor = Doctor(problem)
    assert doctor.diagnose(problem.gradient).verdict == "pass"
    for id in ("first_order", "one_step_more", "summed_over_tasks", "no_reset"):
        assert doctor.diagnose(FAULTS[id].predict(problem)).fault == id


# --- not decided ------------------------------------------------------------------------------------


def test_a_unit_at_its_kink_is_no_failure():
    """A pre-activation of 1e-9 is on either side, and float32 does not know on which."""
    problem = pose("relu")
    theta = problem.theta.copy()
    W, b = problem.maml.model.unpack(theta)[0]
    x = problem.tasks.support_x[0, 0]
    b[2] = 1e-9 - x @ W[:, 2]
    at_kink = nm.Problem(problem.maml, theta, problem.tasks)
    b[2] -= 2e-9
    beyond = nm.Problem(problem.maml, theta, problem.tasks)
    assert not np.allclose(at_kink.gradient, beyond.gradient, rtol=1e-3)
    found = nm.diagnose(at_kink, beyond.gradient.astype(np.float32))
    assert found.verdict == "inconclusive", str(found)
    assert "kink" in str(found)
    # A gradient that is farther away than that is wrong.
    found = nm.diagnose(at_kink, FAULTS["first_order"].predict(at_kink).astype(np.float32))
    assert found.fault == "first_order"


def test_a_loop_that_runs_away():
    problem = pose("sin", "mse", S=10, alpha=30.0)
    found = nm.diagnose(problem, np.random.default_rng(0).normal(size=problem.P))
    assert found.verdict == "inconclusive", str(found)
    shown = " ".join(str(found).split())
    assert "rounding alone may move the right gradient by more than its own length" in shown


def test_a_gradient_that_is_not_finite():
    problem = pose("elu", "mse", S=10, alpha=30.0)
    with np.errstate(all="ignore"):
        assert not np.isfinite(problem.gradient).all()
        found = nm.diagnose(problem, np.zeros(problem.P))
    assert found.verdict == "inconclusive", str(found)


def test_a_part_in_float32(base):
    """Not an answer in float32, whose every number float32 could hold."""
    rng = np.random.default_rng(0)
    found = base.diagnose(base.problem.gradient * (1 + 1e-7 * rng.normal(size=base.problem.P)))
    assert (found.verdict, found.fault) == ("inconclusive", None), str(found)
    assert "precision of float32" in str(found)


# --- evidence ---------------------------------------------------------------------------------------


def path_of(problem, **choices):
    path = run_loop(problem, Forward(**choices))
    support = np.stack([path.support(s).value for s in range(path.n_steps)], axis=1)
    return np.array(path.points), {"support": support, "query": path.query(path.n_steps).value}


def test_evidence_that_is_right(base):
    phi, losses = path_of(base.problem)
    found = base.diagnose(FAULTS["first_order"].predict(base.problem), phi, losses)
    assert found.fault == "first_order"
    assert [agrees for _, agrees in found.checks.values()] == [True] * 3
    assert list(found.checks) == ["support losses", "φ", "query losses"]


def test_evidence_has_to_fit_as_well():
    problem = pose(widths=(3, 8, 8, 1))
    answer = FAULTS["inner_lr_times_rows"].predict(problem)
    phi, losses = path_of(problem, lr_factor=5.0)
    assert nm.diagnose(problem, answer).fault == "inner_lr_times_rows"
    found = nm.diagnose(problem, answer, phi[-1], losses["support"])
    assert found.fault == "inner_lr_times_rows"
    # The right φ contradict this.
    phi, _ = path_of(problem)
    found = nm.diagnose(problem, answer, phi)
    assert (found.verdict, found.fault) == ("fail", None)
    assert "inner_lr_times_rows would explain the gradient" in str(found)


def test_where_phi_goes_wrong(base):
    phi, _ = path_of(base.problem)
    phi = phi.copy()
    phi[2:, 1, base.problem.blocks["1.weight"]] += 0.1
    found = base.diagnose(np.ones(base.problem.P), phi)
    assert found.fault is None
    assert "φ differs from step 2 on, most for task 1 in 1.weight" in str(found)


def test_a_right_gradient_is_right_whatever_the_evidence(base):
    found = base.diagnose(base.problem.gradient, np.zeros((3, base.problem.P)))
    assert found.verdict == "pass"
    assert not found.checks["φ"][1]


def test_summed_losses_go_with_a_summed_gradient(base):
    _, losses = path_of(base.problem)
    answer = 77 * base.problem.gradient
    found = base.diagnose(answer, losses={"query": 77 * losses["query"]})
    assert found.fault == "times_query_rows_and_outputs"


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.zeros((3, 211)), "take the mean over the tasks"),
        (np.zeros((211, 1)), "flatten it"),
        (np.zeros(184), "the biases are missing"),
        (np.zeros(210), r"shape \(211,\), got \(210,\)"),
        (np.zeros(211, complex), "float32 or float64, got complex128"),
        ({"0.weight": np.zeros((4, 8))}, "needs exactly 0.weight, 0.bias"),
    ],
)
def test_answers_of_another_shape(base, answer, message):
    with pytest.raises(ValueError, match=message):
        base.diagnose(answer)


def test_arrays_by_name(base):
    arrays = named_arrays("g", base.problem.model, base.problem.gradient)
    named = {name.removeprefix("g."): array for name, array in arrays.items()}
    assert base.diagnose(named).verdict == "pass"
    named["0.weight"] = named["0.weight"].T
    with pytest.raises(ValueError, match=r"0.weight must have shape \(4, 8\), got \(8, 4\) \(transp"):
        base.diagnose(named)


@pytest.mark.parametrize(
    ("evidence", "message"),
    [
        ({"phi": np.zeros((2, 211))}, r"phi must have shape \(3, 211\)"),
        ({"losses": np.zeros(3)}, r"support losses must have shape \(3, 3\) or \(3, 4\)"),
        ({"losses": {"quary": 1.0}}, "'support' and 'query', got 'quary'"),
        ({"losses": {"query": np.zeros(2)}}, r"query losses must have shape \(3,\) or \(\)"),
        ({"losses": np.zeros((3, 7))}, "must be 3 a task, or 4 .* one more or fewer; got 7"),
        ({"losses": np.zeros((3, 1))}, "must be 3 a task, .* got 1"),
        ({"losses": [["a", "b", "c"]] * 3}, "support losses must be real numbers, got dtype <U1"),
        ({"losses": {"query": [1.0, [2.0]]}}, "query losses must be one array of numbers"),
        ({"phi": np.zeros((8, 3, 211))}, "phi must have 4 points for 3 steps, .* got 8"),
        ({"phi": np.full((3, 211), np.nan)}, "phi must be finite; 633 of 633 entries are not"),
    ],
)
def test_evidence_of_another_shape(base, evidence, message):
    with pytest.raises(ValueError, match=message):
        base.diagnose(base.problem.gradient, **evidence)


def test_problems_that_are_refused():
    problem = pose()
    first_order = nm.MAML(problem.maml.model, inner_lr=0.1, first_order=True)
    with pytest.raises(ValueError, match="leave out first_order"):
        nm.Problem(first_order, problem.theta, problem.tasks)
    with pytest.raises(ValueError, match="theta must have shape"):
        nm.Problem(problem.maml, problem.theta[:-1], problem.tasks)
    with pytest.raises(ValueError, match="theta must be real"):
        nm.Problem(problem.maml, problem.theta + 0j, problem.tasks)
    with pytest.raises(ValueError, match="support_x must have shape"):
        nm.Problem(problem.maml, problem.theta, pose(widths=(3, 8, 8, 11)).tasks)
    with pytest.raises(ValueError, match="maml must be a MAML, got MLP"):
        nm.Problem(problem.model, problem.theta, problem.tasks)
    with pytest.raises(ValueError, match="tasks must be a TaskBatch, got a tuple"):
        nm.Problem(problem.maml, problem.theta, (problem.tasks.support_x, problem.tasks.support_y))
    with pytest.raises(ValueError, match="at theta alone, got 'theta', 'inner_lr'"):
        nm.Problem(problem.maml, {"theta": problem.theta, "inner_lr": 0.1}, problem.tasks)
    with pytest.raises(ValueError, match="folder of a case, got a MAML"):
        nm.diagnose(problem.maml, problem.gradient)


def test_a_problem_takes_theta_as_init_returns_it():
    problem = pose()
    same = nm.Problem(problem.maml, {"theta": problem.theta}, problem.tasks)
    np.testing.assert_array_equal(same.gradient, problem.gradient)


# --- files and the command line ---------------------------------------------------------------------


@pytest.fixture
def case(tmp_path):
    problem = pose(inner_weight_decay=0.01)
    save_problem(tmp_path / "case", problem)
    return tmp_path, problem


def test_a_problem_survives_its_files(case):
    folder, problem = case
    loaded = load_problem(folder / "case")
    np.testing.assert_array_equal(loaded.gradient, problem.gradient)
    assert nm.diagnose(folder / "case", problem.gradient).verdict == "pass"


def test_the_command(case, capsys):
    folder, problem = case
    arrays = named_arrays("meta_grad", problem.model, FAULTS["first_order"].predict(problem))
    phi, losses = path_of(problem)
    by_name = {}
    for t in range(3):
        for s in range(4):
            by_name |= named_arrays(f"task.{t:03}.phi.{s:03}", problem.model, phi[s, t])
    np.savez(
        folder / "answers.npz",
        **arrays,
        support_loss=losses["support"],
        meta_loss=losses["query"].mean(),
    )
    np.savez(folder / "phi.npz", **by_name)
    command = ["doctor", str(folder / "case"), str(folder / "answers.npz")]
    picture = folder / "picture.png"
    assert main([*command, "--phi", str(folder / "phi.npz"), "--picture", str(picture)]) == 1
    shown = capsys.readouterr().out
    assert shown.startswith("FAIL  first_order\n")
    assert "φ               right" in shown
    assert "create_graph=True" in shown
    assert shown.endswith(f"{picture}\n")
    assert picture.stat().st_size > 1000
    assert max(map(len, shown.splitlines()[:-1])) < 80
    assert len(shown.splitlines()) < 30  # one screen

    np.savez(folder / "answers.npz", meta_grad=problem.gradient)
    np.save(folder / "phi.npy", phi[-1])
    assert main([*command, "--phi", str(folder / "phi.npy")]) == 0
    assert capsys.readouterr().out.startswith("PASS  the gradient is right\n")


def test_the_list(capsys):
    assert main(["doctor", "--list"]) == 0
    shown = capsys.readouterr().out
    for fault in FAULTS.values():
        assert f"  {fault.id} " in shown
        assert fault.formula in shown
    assert max(map(len, shown.splitlines())) < 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["doctor"], "doctor needs a case and answers"),
        (["doctor", "case"], "doctor needs a case and answers"),
        (["doctor", "--list", "case"], "leave out everything else"),
        (["doctor", "nowhere", "answers.npz"], "no such file or folder: nowhere"),
        (["doctor", "case", "nothing.npz"], "no such file or folder: nothing.npz"),
        (["doctor", "case", "case/case.json"], "cannot read case/case.json: it is neither npz"),
        (["doctor", "case", "case/tensors.npz"], "has neither meta_grad nor meta_grad.0.weight"),
        (["doctor", "case", "answers.npz", "--phi", "answers.npz"], "has neither phi nor"),
        (["doctor", "case", "answers.npz", "--picture", "no/p.png"], "its folder does not exist"),
        (["doctor", "case", "short.npz"], r"needs exactly 0.weight"),
        (["doctor", "case", "text.npz"], "text.npz: it is neither npz nor npy nor .safetensors"),
        (["doctor", "case", "g.npy"], "is one array without a name"),
        (["doctor", "case", "answers.npz", "--picture", "p.txt"], "ends in .png"),
    ],
)
def test_what_the_command_refuses(case, monkeypatch, capsys, arguments, message):
    folder, problem = case
    monkeypatch.chdir(folder)
    np.savez("answers.npz", meta_grad=problem.gradient)
    np.save("g.npy", problem.gradient)
    (folder / "text.npz").write_text("0.1 0.2")
    np.savez("short.npz", **{"meta_grad.0.weight": problem.gradient[:32].reshape(4, 8)})
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda case: case.pop("inner_lr"), "has no 'inner_lr'"),
        (lambda case: case.update(activation="tanhh"), "did you mean 'tanh'"),
        (lambda case: case.update(widths=[4, 8, 7, 8, 11]), "has no theta.3.weight"),
    ],
)
def test_cases_that_do_not_fit(case, change, message):
    import json

    file = case[0] / "case" / "case.json"
    written = json.loads(file.read_text())
    written["activation"] = "tanh"
    change(written)
    file.write_text(json.dumps(written))
    with pytest.raises(ValueError, match=message):
        load_problem(case[0] / "case")
    file.write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        load_problem(case[0] / "case")


def test_answers_without_a_network_are_flat(tmp_path):
    problem = pose()
    np.savez(tmp_path / "a.npz", meta_grad=problem.gradient, query_loss=np.ones(3))
    answers = load_answers(tmp_path / "a.npz", problem)
    assert answers.phi is None
    assert set(answers.losses) == {"query"}


# --- printing ---------------------------------------------------------------------------------------


def test_what_is_unknown_is_shown_block_by_block(base):
    c = base.problem.gradient.copy()
    place = base.problem.blocks["1.weight"]
    c[place] = np.roll(c[place], 1)
    found = base.diagnose(c)
    shown = str(found)
    assert "unknown" in shown
    assert [b.name for b in found.blocks if b.looks != "right"] == ["1.weight"]
    assert sum("right" in line for line in shown.splitlines()[3:]) == 5
    figure = found.picture()
    assert len(figure.axes) == 2


def test_recipes_are_right_by_default(base):
    np.testing.assert_allclose(gradient_by(base.problem, Recipe()), base.problem.gradient, rtol=1e-12)


# --- memory -----------------------------------------------------------------------------------------


def test_predictions_come_a_few_at_a_time(base):
    problem, few = base.problem, 50
    explanations = pairs(problem)[::7]
    n = 0
    for some, rows in predictions(problem, explanations, chunk=few * problem.P):
        assert len(some) == len(rows) <= few + 1
        n += len(rows)
        np.testing.assert_array_equal(rows[0], gradient_by(problem, some[0].recipe))
    assert n > 0.9 * len(explanations)


def test_no_more_predictions_are_held_than_there_is_room_for(base, monkeypatch):
    monkeypatch.setattr(search, "MOST_HELD", 0)
    monkeypatch.setattr(search, "FEWEST_HELD", 30)
    held = []
    nearest_of = search.Search._nearest_of
    monkeypatch.setattr(
        search.Search,
        "_nearest_of",
        lambda self, seen: held.append((len(seen), len(self.aligned))) or nearest_of(self, seen),
    )
    g = base.problem.gradient
    near = g * np.random.default_rng(0).uniform(0.8, 1.2, g.size)
    assert base.diagnose(near).fault is None
    assert len(held) > 3
    assert np.max(held) <= 60
    two = FAULTS["first_order"].predict(base.problem)
    assert base.diagnose(3.7 * two).fault == "first_order + scaled"


def test_wide_inputs_in_coordinates_of_their_rows():
    """The same predictions, up to rounding, from a network with fewer inputs."""
    problem = pose("softplus", widths=(120, 8, 8, 11), alpha=[[0.05, 0.1, 0.2]])
    whole = pose("softplus", widths=(120, 8, 8, 11), alpha=[[0.05, 0.1, 0.2]])
    vars(whole)["row_space"] = None
    assert problem.row_space.theta.shape[1] < problem.P / 2
    rows = [
        {
            (*h.ids, h.parts[0][1].detail): p
            for hs, ps in predictions(one, singles(one))
            for h, p in zip(hs, ps, strict=True)
        }
        for one in (problem, whole)
    ]
    assert rows[0].keys() == rows[1].keys()
    for ids, p in rows[1].items():
        # A few hundred sums one after another.
        np.testing.assert_allclose(rows[0][ids], p, rtol=0, atol=1e-12 * np.linalg.norm(p))
    assert pose(widths=(120, 8, 11), alpha=np.linspace(0, 1, 120 * 8 + 8 + 99)).row_space is None


# --- large problems ---------------------------------------------------------------------------------


@pytest.fixture
def large(monkeypatch):
    """As if that were much to do."""
    for name in ("MOST_FOR_CROWDS", "MOST_FOR_ALL_PAIRS", "MOST_FOR_LIKELY_PAIRS"):
        monkeypatch.setattr(explanations, name, 10)
    return pose(widths=(120, 8, 8, 11))


def test_a_large_problem_is_searched_no_further_than_needed(large):
    doctor = Doctor(large)
    right = doctor.diagnose(large.gradient)
    assert (right.verdict, right.ties) == ("pass", ())
    assert right.n_tried < 50
    assert "not tried       more, once this had been found" in str(right)
    found = doctor.diagnose(FAULTS["first_order"].predict(large))
    assert (found.fault, found.not_tried[:4]) == ("first_order", "more")
    for explanation in [*singles(large)[::5], *pairs(large)[::50]]:
        check_pair(doctor, explanation, np.float64)


def test_what_was_not_tried_is_said(large):
    odd = large.gradient * np.random.default_rng(0).uniform(0.9, 1.1, large.P)
    found = nm.diagnose(large, odd)
    assert found.fault is None
    assert "two mistakes at once, unless one is first_order" in found.not_tried
    assert found.not_tried.endswith("with fewer tasks or a smaller network all of it is")
    assert max(map(len, str(found).splitlines())) < 80


def test_what_is_not_tried_depends_on_the_size(monkeypatch, base):
    assert left_out(base.problem) == ""
    monkeypatch.setattr(explanations, "MOST_FOR_CROWDS", 10)
    assert left_out(base.problem) == "three and more mistakes at once"
    monkeypatch.setattr(explanations, "MOST_FOR_ALL_PAIRS", 10)
    assert left_out(base.problem).startswith("two mistakes at once, unless one is a wrong step size")


def test_the_simplest_factor_is_named():
    """On one row of one task a linear network's gradient only ever changes its length."""
    rng = np.random.default_rng(0)
    model = nm.MLP([7, 1])
    x, y = rng.normal(size=(1, 1, 7)), rng.normal(size=(1, 1, 1))
    problem = nm.Problem(
        nm.MAML(model, "mse", 0.1, 1), rng.normal(size=model.n_params), nm.TaskBatch(x, y, x, y)
    )
    found = nm.diagnose(problem, 3.3 * problem.gradient)
    assert (found.fault, found.factor) == ("scaled", pytest.approx(3.3))
    assert "second_order_weight" in found.ties


@pytest.mark.parametrize("seed", range(8))
def test_ways_back_side_by_side_are_those_alone(seed):
    """Whatever is chosen, also together: to the last bit, the same operations in the same order."""
    rng = np.random.default_rng(seed)
    S, decay = int(rng.integers(1, 5)), float(rng.choice([0, 0.1]))
    problem = pose(S=S, inner_weight_decay=decay)
    forward = Forward(
        momentum=float(rng.choice([0, 0.5])), gradient_at=str(rng.choice(["phi", "theta"]))
    )
    loop = run_loop(problem, forward)
    several = [
        Backward(
            hessian_at=str(rng.choice(["own", "theta", "end", "next", "query"])),
            curvature=float(rng.choice([1, 0, -1, 0.5])),
            identity=bool(rng.random() < 0.8),
            reversed=bool(rng.random() < 0.3),
            linearised=bool(rng.random() < 0.3),
            stop=int(rng.integers(0, 3)),
            scored=str(rng.choice(["last", "every step"])),
            leak=float(rng.choice([0, 1, 3])),
            first=float(rng.choice([1, 0])),
            second=float(rng.choice([1, 2])),
        )
        for _ in range(12)
    ]
    found = dict(ways_back(loop, several))
    for choices, back in found.items():
        np.testing.assert_array_equal(back, pull_back(loop, choices))
    assert len({back.tobytes() for back in found.values()}) > 6


def test_tasks_go_back_one_after_another_where_there_is_much(base, monkeypatch):
    together = [p for _, rows in predictions(base.problem, singles(base.problem)) for p in rows]
    monkeypatch.setattr(inner_loop, "MOST_AT_ONCE", 10)
    alone = [p for _, rows in predictions(base.problem, singles(base.problem)) for p in rows]
    for one, other in zip(alone, together, strict=True):
        # A few hundred sums one after another.
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * np.linalg.norm(other))
