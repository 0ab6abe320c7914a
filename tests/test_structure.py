"""Learned structure: complex steps, plain formulas, the inner loop's choice, pressures, hardening."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import npmeta as nm
from npmeta.algorithms import Joint, MAMLPlusPlus, Reptile, StructuredMAML
from npmeta.algorithms.found_structure import CLOSED
from npmeta.cli.main import main
from npmeta.cli.runs import Run
from npmeta.network.activations import ACTIVATIONS
from npmeta.training.parallel import Sharded
from npmeta.verification import check_meta_gradient, complex_step
from npmeta.verification.doctor.files import load_answers, load_problem, save_problem
from npmeta.verification.oracles import references as oracle
from npmeta.verification.oracles.kinks import at_kinks, nearest_kink
from tests.helpers import (
    H,
    Problem,
    assert_close,
    complex_step_hvp,
    problem,
    relative_error,
    step_sizes,
)

# Some hundred operations, each rounded by 1e-16 of its largest term.
TIGHT = 1e-11

#: Mixture and gates, the mixture alone, gates alone.
KINDS = {
    "both": nm.Structure(("relu", "tanh", "sin")),
    "mixture": nm.Structure(("silu", "elu"), gates=False),
    "gates": nm.Structure("tanh"),
    "smooth": nm.Structure(("tanh", "sin")),
    "all": nm.Structure([name for name in ACTIVATIONS if name != "gelu"]),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
adapted_or_not = pytest.mark.parametrize("adapt", [True, False], ids=["moves", "stays"])


def structured(kind, loss="mse", hidden=(4, 3), *, seed=0, adapt=True, K=5) -> Problem:
    """A random problem, mixtures undecided and gates half open, so that both weigh in the Hessian."""
    p = problem(loss, "tanh", hidden, seed=seed, K=K)
    structure = KINDS[kind] if isinstance(kind, str) else kind
    model = nm.MLP(p.model.widths, structure=replace(structure, adapt=adapt))
    rng = np.random.default_rng([seed, 1])
    theta = model.init(rng) + 0.3 * rng.normal(size=model.n_params)
    for name, place in model.places.items():
        if name.endswith("gate"):
            theta[place] -= 2.5
    return replace(p, model=model, theta=theta)


def parts(model, vector):
    """A vector by kinds of parameters, so that a small one does not hide behind a large one."""
    kinds = {name.split(".")[1] for name in model.places}
    return {
        kind: np.concatenate(
            [vector[..., place] for name, place in model.places.items() if name.endswith(kind)], -1
        )
        for kind in kinds
    }


def assert_parts_close(model, actual, expected, rtol):
    for kind, part in parts(model, expected).items():
        assert_close(parts(model, actual)[kind], part, rtol, kind)


# --- the network ----------------------------------------------------------------------------------


def by_hand(model, theta, x):
    """The network on rows, from the formulas."""
    layers = model.unpack(theta)
    for (W, b, *_), shapes, arrays in zip(layers, model.shapes, layers, strict=True):
        own = dict(zip(shapes, arrays, strict=True))
        x = x @ W + b
        if "mixture" in own or "gate" in own:
            e = np.exp(own.get("mixture", np.zeros(1)))
            p = e / e.sum()
            fs = (ACTIVATIONS[name] for name in model.structure.names)
            x = sum(share * f.f(x) for share, f in zip(p, fs, strict=True))
            x = x / (1 + np.exp(-own["gate"])) if "gate" in own else x
    return x


@every_kind
def test_outputs(kind):
    p = structured(kind)
    x = p.tasks.support_x
    expected = by_hand(p.model, p.theta, x)
    assert_close(p.model.apply(p.theta, x), expected, 1e-14)
    assert_close(p.model.apply(np.tile(p.theta, (len(x), 1)), x), expected, 1e-14)


def test_the_order_of_parameters():
    model = nm.MLP([2, 3, 1], structure=nm.Structure(("tanh", "sin")))
    theta = np.arange(float(model.n_params))
    (W, b, mixture, gate), (V, c) = model.unpack(theta)
    assert model.layer_sizes == (14, 4)
    np.testing.assert_array_equal([*W.ravel(), *b, *mixture, *gate, *V.ravel(), *c], theta)
    np.testing.assert_array_equal(model.pack([(W, b, mixture, gate), (V, c)]), theta)
    names = ["0.weight", "0.bias", "0.mixture", "0.gate", "1.weight", "1.bias"]
    assert list(model.places) == names
    alone = nm.MLP([2, 3, 1], structure=nm.Structure("tanh"))
    assert list(alone.places) == [name for name in names if name != "0.mixture"]


def test_it_begins_near_the_plain_network():
    """Weights are those of the plain network, shares are equal and gates nearly open."""
    model = nm.MLP([2, 3, 1], structure=nm.Structure("relu"))
    theta = model.init(np.random.default_rng(0))
    plain = nm.MLP([2, 3, 1]).init(np.random.default_rng(0))
    (W, b, gate), last = model.unpack(theta)
    np.testing.assert_array_equal(nm.MLP([2, 3, 1]).pack([(W, b), last]), plain)
    np.testing.assert_allclose(1 / (1 + np.exp(-gate)), 0.95, atol=0.003)
    mixed = nm.MLP([2, 3, 1], structure=nm.Structure(("relu", "tanh")))
    report = nm.structure_report(mixed, mixed.init(np.random.default_rng(0)))
    assert report.layers[0].shares == {"relu": 0.5, "tanh": 0.5}
    assert mixed.activations[0].variance_gain == 1.5


# --- derivatives ----------------------------------------------------------------------------------


@every_kind
@adapted_or_not
def test_hessian_products(kind, adapt):
    p = structured(kind, "cross_entropy", (4, 3, 4), adapt=adapt)
    rng = np.random.default_rng(2)
    phi = p.theta + 0.1 * rng.normal(size=(len(p.tasks), p.theta.size))
    u, v = rng.normal(size=(2, *phi.shape))
    for at in (phi, p.theta):
        lin = p.risk.linearize(at, *p.support)
        along_v = p.risk.linearize(phi * 0 + at + 1j * H * v, *p.support).value.imag / H
        assert_close((lin.grad * v).sum(-1), along_v, TIGHT)
        expected = complex_step_hvp(p.risk, phi * 0 + at, p.support, v)
        assert_parts_close(p.model, lin.hvp(v), expected, TIGHT)
        left, right = (u * lin.hvp(v)).sum(-1), (v * lin.hvp(u)).sum(-1)
        assert (np.abs(left - right) <= 1e-12 * np.abs(u * lin.hvp(v)).sum(-1)).all()


@every_kind
def test_the_whole_hessian_is_symmetric_and_has_its_cross_terms(kind):
    p = structured(kind)
    lin = p.risk.linearize(p.theta, *p.support)
    hessian = np.stack([lin.hvp(e)[0] for e in np.eye(p.theta.size)])
    assert_close(hessian, hessian.T, 1e-13)
    for name, rows in p.model.places.items():
        for other, columns in p.model.places.items():
            if "1.bias" not in (name, other):  # enough that one does not vanish anywhere
                assert hessian[rows, columns].any(), f"{name} and {other}"


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_hessian_products_against_differences(activation):
    """Of every candidate: central differences of the gradient leave h² and rounding over h, 1e-10 each
    for h = 1e-5; gelu is not complex-safe to the last digits, and is checked here alone."""
    other = "sin" if activation == "tanh" else "tanh"
    p = structured(nm.Structure((activation, other)))
    v = np.random.default_rng(2).normal(size=p.theta.size)
    above, below = (p.risk.linearize(p.theta + h * v, *p.support).grad for h in (1e-5, -1e-5))
    assert_close(p.risk.linearize(p.theta, *p.support).hvp(v), (above - below) / 2e-5, 1e-7)


@every_kind
def test_jvp_vjp_and_gauss_newton(kind):
    p = structured(kind, "cross_entropy")
    rng = np.random.default_rng(2)
    (x, y), v = p.support, rng.normal(size=p.theta.size)
    u = rng.normal(size=(*x.shape[:2], 3))
    pushed, pulled = p.model.jvp(p.theta, x, v), p.model.vjp(p.theta, x, u)
    assert_close(pushed, p.model.apply(p.theta + 1j * H * v, x).imag / H, TIGHT)
    assert_close((pulled * v).sum(-1), (pushed * u).sum((-2, -1)), TIGHT)
    o = p.model.apply(p.theta, x)
    _, _, product = p.risk.loss(o, p.risk.loss.prepare(y, 3, o.dtype))
    expected = p.model.vjp(p.theta, x, product(pushed))
    assert_close(p.risk.linearize(p.theta, x, y).gauss_newton(v), expected, 1e-13)


# --- the meta-gradient ----------------------------------------------------------------------------


def exact(p, alpha, S, decay=0.0):
    """d(meta-loss)/dθ and d(meta-loss)/dα, every entry by a complex step of its own."""
    maml = nm.MAML(p.model, p.loss, alpha, S, inner_weight_decay=decay)
    return complex_step(maml, {"theta": p.theta, "inner_lr": np.asarray(alpha)}, p.tasks)


@every_kind
@adapted_or_not
@pytest.mark.parametrize("S", [0, 1, 3])
def test_meta_gradient(kind, adapt, S):
    p = structured(kind, "cross_entropy", adapt=adapt)
    expected = exact(p, 0.2, S)
    for weights in ("dense", "factored"):
        maml = nm.MAML(p.model, p.loss, 0.2, S, weights=weights)
        grads = maml.meta_gradient({"theta": p.theta, "inner_lr": np.asarray(0.2)}, p.tasks).grads
        assert_parts_close(p.model, grads["theta"], expected["theta"], TIGHT)
        assert_close(grads["inner_lr"], expected["inner_lr"], TIGHT)


@adapted_or_not
@pytest.mark.parametrize("sizes", ["layer", "step_and_layer", "parameter", "step_and_parameter"])
def test_meta_gradient_with_step_sizes_of_every_kind_and_decay(adapt, sizes):
    p, S = structured("both", adapt=adapt), 3
    alpha = step_sizes(sizes, p.model, S, np.random.default_rng(3))
    expected = exact(p, alpha, S, 0.1)
    maml = nm.MAML(p.model, p.loss, alpha, S, inner_weight_decay=0.1)
    grads = maml.meta_gradient({"theta": p.theta, "inner_lr": alpha}, p.tasks).grads
    for name, gradient in grads.items():
        assert_close(gradient, expected[name], TIGHT, name)
    if not adapt and sizes == "parameter":  # what does not move has no derivative by its step size
        for name, place in p.model.places.items():
            moves = name.endswith(("weight", "bias"))
            assert bool(grads["inner_lr"][0, place].any()) is moves, name


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS)),
    adapt=st.booleans(),
    hidden=st.lists(st.integers(1, 5), max_size=3),
    weights=st.sampled_from(["auto", "dense", "factored"]),
    K=st.integers(1, 6),
    seed=st.integers(0, 2**16),
)
def test_the_adjoint_of_any_network(kind, adapt, hidden, weights, K, seed):
    """Against the adjoint whose Hessian products are complex steps of the gradient."""
    p = structured(kind, "mse", tuple(hidden), seed=seed, adapt=adapt, K=K)
    for first_order in (False, True):
        maml = nm.MAML(p.model, p.loss, 0.05, 2, first_order=first_order, weights=weights)
        reference = oracle.meta_gradient(maml, p.theta, p.tasks)
        off = np.abs(maml.meta_gradient(p.theta, p.tasks).grad - reference.grad)
        assert (off <= TIGHT * np.abs(reference.grad).max() + 4 * reference.error["theta"].max()).all()


def test_first_order_leaves_something_out():
    p = structured("both")
    first, second = (
        nm.MAML(p.model, p.loss, 0.2, 2, first_order=order).meta_gradient(p.theta, p.tasks).grad
        for order in (True, False)
    )
    for kind, part in parts(p.model, second).items():
        assert relative_error(parts(p.model, first)[kind], part) > 1e-3, kind


def test_float32():
    p = structured("both", "cross_entropy")
    maml = StructuredMAML(p.model, p.loss, 0.1, 2, gate_pressure=0.1, mixture_pressure=0.1)
    double = maml.meta_gradient(p.theta, p.tasks).grad
    single = maml.meta_gradient(p.theta.astype(np.float32), p.tasks).grad
    assert single.dtype == np.float32
    # A hundred roundings of 6e-8.
    assert_close(single, double, 1e-5)


def test_large_logits_overflow_nowhere():
    p = structured("both")
    theta = p.theta.copy()
    for name, place in p.model.places.items():
        if name.endswith(("mixture", "gate")):
            theta[place] = 1e4 * np.where(np.arange(place.stop - place.start) % 2, 1, -1)
    maml = StructuredMAML(p.model, p.loss, gate_pressure=0.1, mixture_pressure=0.1)
    out = maml.meta_gradient(theta, p.tasks)
    assert np.isfinite(out.loss)
    assert np.isfinite(out.grad).all()


# --- the inner loop ---------------------------------------------------------------------------------


@adapted_or_not
def test_inner_steps_move_the_structure_or_do_not(adapt):
    p = structured("both", adapt=adapt)
    maml = nm.MAML(p.model, p.loss, 0.1, 2, inner_weight_decay=0.1)
    phi = maml.adapt(p.theta, *p.support)
    for name, place in p.model.places.items():
        moves = adapt or name.endswith(("weight", "bias"))
        assert bool((phi[:, place] != p.theta[place]).any()) is moves, name
    predicted = maml.predict(p.theta, *p.support, p.tasks.query_x)
    assert_close(p.model.apply(phi, p.tasks.query_x), predicted, 1e-14)


@adapted_or_not
def test_other_algorithms_take_it(adapt):
    p = structured("smooth", adapt=adapt)
    S, weights = 2, (0.25, 0.75)
    maml = MAMLPlusPlus(p.model, p.loss, 0.1, S, step_weights=weights)
    out = maml.meta_gradient(p.theta, p.tasks)
    expected = sum(v * exact(p, 0.1, s)["theta"] for s, v in enumerate(weights, 1))
    assert_close(out.grad, expected, TIGHT)
    for learner in (Reptile(p.model, p.loss), Joint(p.model, p.loss)):
        assert np.isfinite(learner.meta_gradient({"theta": p.theta}, p.tasks).loss)


# --- pressures ------------------------------------------------------------------------------------


def penalty(model, theta, gate, mixture):
    """λ_g mean(g) + λ_p mean(H), from the formulas."""
    by_kind = parts(model, theta)
    e = np.exp(by_kind["mixture"].reshape(-1, len(model.structure.names)))
    p = e / e.sum(-1, keepdims=True)
    open_share = (1 / (1 + np.exp(-by_kind["gate"]))).mean()
    return gate * open_share - mixture * (p * np.log(p)).sum(-1).mean()


@adapted_or_not
def test_pressures_are_in_the_meta_loss_and_its_gradient(adapt):
    p = structured("both", hidden=(4, 3, 5), adapt=adapt)
    plain = nm.MAML(p.model, p.loss, 0.1, 2).meta_gradient(p.theta, p.tasks)
    pressed = StructuredMAML(p.model, p.loss, 0.1, 2, gate_pressure=0.7, mixture_pressure=0.3)
    out = pressed.meta_gradient(p.theta, p.tasks)
    assert out.loss == pytest.approx(plain.loss + penalty(p.model, p.theta, 0.7, 0.3), rel=1e-14)
    np.testing.assert_array_equal(out.task_loss, plain.task_loss)
    by_complex_step = np.array(
        [penalty(p.model, p.theta + 1j * H * e, 0.7, 0.3).imag / H for e in np.eye(p.theta.size)]
    )
    assert_close(out.grad - plain.grad, by_complex_step, 1e-13)
    parts_of = [pressed.meta_gradient(p.theta, p.tasks[t : t + 1]) for t in range(len(p.tasks))]
    assert np.mean([part.loss for part in parts_of]) == pytest.approx(out.loss, rel=1e-14)


def test_without_pressure_it_is_maml():
    p = structured("both")
    plain = nm.MAML(p.model, p.loss, 0.1, 2).meta_gradient(p.theta, p.tasks)
    out = StructuredMAML(p.model, p.loss, 0.1, 2).meta_gradient(p.theta, p.tasks)
    np.testing.assert_array_equal(out.grad, plain.grad)
    assert out.loss == plain.loss


def test_shards_are_the_whole():
    p = structured("both")
    maml = StructuredMAML(p.model, p.loss, 0.1, 2, gate_pressure=0.1)
    again = pickle.loads(pickle.dumps(maml))
    with Sharded(again, 2) as sharded:
        got = sharded.meta_gradient({"theta": p.theta}, p.tasks)
    out = maml.meta_gradient(p.theta, p.tasks)
    assert_close(got.grad, out.grad, 1e-14)
    assert got.loss == pytest.approx(out.loss, rel=1e-14)


# --- what was found ---------------------------------------------------------------------------------


def decided(p, shares=40.0, gate=40.0):
    """Parameters whose mixtures have decided and whose gates are open or closed, to the last digit."""
    theta, layers = p.theta.copy(), p.model.unpack(p.theta)
    for l, (_, _, mixture, gates) in enumerate(layers[:-1]):
        leading = np.arange(mixture.size) == l % mixture.size
        theta[p.model.places[f"{l}.mixture"]] = np.where(leading, shares, 0.0)
        theta[p.model.places[f"{l}.gate"]] = np.where(np.arange(gates.size) % 3 == 1, -gate, gate)
    return theta


def test_a_structure_that_has_decided_hardens_to_the_same_function():
    p = structured("both", hidden=(5, 4, 3))
    theta = decided(p)
    plain, hard = nm.harden(p.model, theta)
    assert plain.widths == (2, 3, 3, 2, 3)
    assert [f.name for f in plain.activations] == ["relu", "tanh", "sin"]
    x = p.tasks.query_x
    assert_close(plain.apply(hard, x), p.model.apply(theta, x), 1e-14)
    report = nm.structure_report(p.model, theta)
    assert [layer.counts for layer in report.layers] == [(3, 0, 2), (3, 0, 1), (2, 0, 1)]
    assert [layer.leading for layer in report.layers] == ["relu", "tanh", "sin"]


def test_gates_are_multiplied_into_what_is_behind_them():
    p = structured("gates")
    plain, hard = nm.harden(p.model, p.theta)
    x = p.tasks.query_x
    assert plain.widths == p.model.widths
    assert_close(plain.apply(hard, x), p.model.apply(p.theta, x), 1e-14)


def test_a_layer_whose_gates_are_all_closed_keeps_the_most_open_unit():
    p = structured("gates")
    theta = p.theta.copy()
    theta[p.model.places["0.gate"]] = [-9, -5, -7, -8]
    report = nm.structure_report(p.model, theta)
    np.testing.assert_array_equal(report.layers[0].kept, [1])
    assert report.layers[0].gates.max() < CLOSED
    assert report.hard.widths == (2, 1, 3, 3)


@pytest.mark.parametrize("sizes", ["number", "layer", "step_and_parameter"])
def test_hardened_maml_adapts_as_the_other_does(sizes):
    """Half-open gates and a structure that stays: the plain step sizes make up for the gates."""
    p = structured("gates", adapt=False)
    alpha = step_sizes(sizes, p.model, 3, np.random.default_rng(3))
    maml = nm.MAML(p.model, p.loss, alpha, 3)
    plain, params = nm.harden(maml, p.theta)
    assert plain.model.is_plain
    ours, theirs = maml.evaluate(p.theta, p.tasks, 4).loss, plain.evaluate(params, p.tasks, 4).loss
    assert_close(theirs, ours, TIGHT)


def test_without_gates_step_sizes_stay_as_they_are():
    p = structured("mixture")
    plain, _ = nm.harden(nm.MAML(p.model, p.loss, [0.1, 0.2, 0.3]), p.theta)
    np.testing.assert_array_equal(plain.inner_lr, [0.1, 0.2, 0.3])


@pytest.mark.parametrize("sizes", ["number", "step_and_parameter"])
def test_a_report_measures_what_hardening_costs(sizes):
    p = structured("both", hidden=(5, 4))
    theta, alpha = decided(p), step_sizes(sizes, p.model, 2, np.random.default_rng(3))
    maml = StructuredMAML(p.model, p.loss, 0.1, 2)
    params = {"theta": theta, "inner_lr": alpha}
    report = nm.structure_report(maml, params, p.tasks, steps=1)
    np.testing.assert_array_equal(report.scores.loss, maml.evaluate(params, p.tasks, 1).loss)
    # Gates of 1 and shares of 1: the same function, adapted in the same way.
    assert_close(report.hard_scores.loss, report.scores.loss, 1e-13)
    undecided = nm.structure_report(maml, p.theta, p.tasks)
    assert relative_error(undecided.hard_scores.loss, undecided.scores.loss) > 0.01
    shown = str(report)
    assert "gates: open from 0.5, closed below 0.1" in shown
    assert "hardened: MLP([2, 3, 3, 3], activation=['relu', 'tanh'])" in shown
    assert f"{report.scores.mean()[1]:.4g}" in shown


# --- the boundary ---------------------------------------------------------------------------------


def test_names_and_numbers_that_are_none():
    both = KINDS["both"]
    for make, message in (
        (lambda: nm.Structure(("relu", "tahn")), r"unknown activation 'tahn' \(did you mean 'tanh'"),
        (lambda: nm.Structure(("relu", "relu")), "one or more different activations, got"),
        (lambda: nm.Structure(()), "one or more different activations, got"),
        (lambda: nm.Structure("relu", gates=False), "relu alone without gates leaves no structure"),
        (lambda: nm.MLP([2, 3, 1], norm="layer", structure=both), "a norm or a structure, not both"),
        (lambda: nm.MLP([2, 3, 1], "tanh", structure=both), "leave out the activation"),
        (lambda: StructuredMAML(nm.MLP([2, 3, 1])), "must be an MLP with a structure"),
        (lambda: nm.structure_report(nm.MLP([2, 3, 1]), np.zeros(13)), "there is no structure in MLP"),
        (
            lambda: nm.harden(nm.MLP([2, 1], structure=both), np.zeros(3)),
            "there is no structure in MLP",
        ),
        (lambda: nm.MLP([2, 3, 1], structure=both).with_activation("tanh"), "structure's candidates"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    model = nm.MLP([2, 3, 1], structure=nm.Structure(("relu", "tanh"), gates=False))
    with pytest.raises(ValueError, match="gate_pressure must be a number of at least 0, got -1"):
        StructuredMAML(model, gate_pressure=-1)
    with pytest.raises(ValueError, match=r"gate_pressure has nothing to act on: .* has no gate"):
        StructuredMAML(model, gate_pressure=1)
    with pytest.raises(ValueError, match="the structure must be that of an algorithm"):
        nm.structure_report(model, np.zeros(model.n_params), problem("mse").tasks)
    with pytest.raises(ValueError, match=r"W \(2, 3\) and b \(3,\) and mixture \(2,\), all or none"):
        model.pack([(np.ones((2, 3)), np.ones(3)), (np.ones((3, 1)), np.ones(1))])


def test_repr():
    for structure in (KINDS["both"], replace(KINDS["gates"], adapt=False)):
        model = nm.MLP([1, 4, 1], structure=structure)
        again = eval(repr(model), {"MLP": nm.MLP, "Structure": nm.Structure})
        assert (again.structure, again.places) == (model.structure, model.places)


def test_what_takes_no_structure():
    from npmeta import interop
    from npmeta.algorithms import CAVIA, IMAML, MetaLSTM

    staying = nm.MLP([3, 4, 1], structure=replace(KINDS["both"], adapt=False))
    for make, message in (
        (lambda: CAVIA(staying, n_context=1), "CAVIA takes no normalised network and no structure"),
        (lambda: IMAML(staying), "iMAML moves all parameters"),
        (lambda: MetaLSTM(staying), "the LSTM moves all parameters"),
        (lambda: interop.to_theta([], staying), "no place for a learned structure"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


# --- who else takes it ----------------------------------------------------------------------------


def test_kinks_are_those_of_the_candidates_at_z():
    p = structured("both")
    maml = nm.MAML(p.model, p.loss, 0.1, 2)
    v = np.random.default_rng(3).normal(size=p.theta.size)
    assert 0 < nearest_kink(maml, p.theta, p.tasks, v) < np.inf
    assert at_kinks(maml, p.theta, p.tasks, np.float64) == 0
    at_zero = p.theta.copy()
    at_zero[p.model.places["0.bias"]] = at_zero[p.model.places["0.weight"]] = 0
    rows = p.tasks.support_x.shape[1] + p.tasks.query_x.shape[1]
    still = nm.MAML(p.model, p.loss, 0.0, 1)
    assert at_kinks(still, at_zero, p.tasks, np.float64) == len(p.tasks) * rows * 4
    smooth = structured("smooth")
    assert nearest_kink(nm.MAML(smooth.model), smooth.theta, smooth.tasks, v[: smooth.theta.size]) == (
        np.inf
    )


@adapted_or_not
@pytest.mark.parametrize("kind", ["both", "smooth", "gates"])
def test_the_doctor(kind, adapt, tmp_path):
    p = structured(kind, "cross_entropy", adapt=adapt)
    maml = nm.MAML(p.model, p.loss, 0.5, 2)
    save_problem(tmp_path / "case", nm.Problem(maml, p.theta, p.tasks))
    case = load_problem(tmp_path / "case")
    assert case.model.structure == p.model.structure
    gradient = maml.meta_gradient(p.theta, p.tasks).grad
    named = {
        f"meta_grad.{name}": gradient[place].reshape(p.model.shapes[int(name[0])][name[2:]])
        for name, place in p.model.places.items()
    }
    np.savez(tmp_path / "right.npz", **named)
    answers = load_answers(tmp_path / "right.npz", case)
    assert nm.diagnose(case, answers.gradient).verdict == "pass"
    first_order = nm.MAML(p.model, p.loss, 0.5, 2, first_order=True)
    diagnosis = nm.diagnose(case, first_order.meta_gradient(p.theta, p.tasks).grad)
    assert (diagnosis.verdict, diagnosis.fault) == ("fail", "first_order")


def test_pressures_are_not_judged():
    p = structured("both")
    pressed = StructuredMAML(p.model, gate_pressure=0.1)
    with pytest.raises(ValueError, match=r"its .maml is one, which says what the tasks' part"):
        nm.Problem(pressed, p.theta, p.tasks)
    assert p.theta.size == nm.Problem(pressed.maml, p.theta, p.tasks).P


@every_kind
def test_check_meta_gradient(kind):
    p = structured(kind)
    learners = [nm.MAML(p.model, p.loss, 0.1, 2, first_order=order) for order in (False, True)]
    right, wrong = (maml.meta_gradient(p.theta, p.tasks).grad for maml in learners)
    assert check_meta_gradient(learners[0], p.theta, p.tasks, right).passed
    assert not check_meta_gradient(learners[0], p.theta, p.tasks, wrong).passed


# --- runs -----------------------------------------------------------------------------------------


def test_a_run_trains_resumes_adapts_and_reports(tmp_path, capsys):
    choice = ["--candidates", "relu", "sin", "--no-adapt-structure", "--gate-pressure", "0.1"]
    folder = str(tmp_path / "run")
    sizes = ["--hidden", "6", "5", "--iterations", "4", "--eval-tasks", "5", "--out", folder]
    assert main(["train", "sinusoid", "--algorithm", "structured", *choice, *sizes]) == 0
    assert main(["train", "--resume", folder, "--iterations", "6"]) == 0
    run = Run(tmp_path / "run")
    learner = run.config.algorithm(1, 1)
    assert repr(learner.model.structure) == "Structure(('relu', 'sin'), gates=True, adapt=False)"
    assert learner.gate_pressure == 0.1
    (_, _, mixture, gate), *_ = learner.model.unpack(run.load().params["theta"])
    assert mixture.all(), "the mixture has been trained"
    assert (gate != 3).all(), "and so have the gates"
    for name, rows in (("support.csv", "x,y\n-1,1\n2,0\n"), ("query.csv", "x\n0\n1\n")):
        (tmp_path / name).write_text(rows, encoding="utf-8")
    files = ["--support", str(tmp_path / "support.csv"), "--query", str(tmp_path / "query.csv")]
    assert main(["adapt", folder, *files]) == 0
    assert main(["evaluate", folder, "--tasks", "5"]) == 0
    capsys.readouterr()
    assert main(["structure", folder, "--tasks", "5", "--steps", "1"]) == 0
    shown = capsys.readouterr().out
    assert "hardened: MLP([1, 6, 5, 1]" in shown
    assert "loss on 5 tasks" in shown


def test_the_command_says_what_it_does_not_take(tmp_path, capsys):
    folder = str(tmp_path / "run")
    train = ["train", "sinusoid", "--iterations", "1", "--eval-tasks", "5", "--hidden", "4"]
    assert main([*train, "--algorithm", "structured", "--norm", "layer", "--out", folder]) == 2
    assert "structured takes no norm" in capsys.readouterr().err
    assert main([*train, "--out", folder]) == 0
    assert main(["structure", folder]) == 2
    assert "is of maml, which learns no structure" in capsys.readouterr().err


def test_a_picture_has_what_the_report_says(tmp_path):
    pytest.importorskip("matplotlib")
    from npmeta.cli import plots

    p = structured("both")
    report = nm.structure_report(p.model, p.theta)
    figure = plots.structure(report)
    for layer, (shares, gates) in zip(report.layers, np.reshape(figure.axes, (-1, 2)), strict=True):
        assert [bar.get_width() for bar in shares.patches] == [100 * s for s in layer.shares.values()]
        assert sorted(gates.lines[0].get_ydata()) == sorted(layer.gates)
    assert plots.save(figure, tmp_path / "structure.png").stat().st_size > 1000
