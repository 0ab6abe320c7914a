"""Normalised networks: plain loops, complex steps, and the choices of the inner loop."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import npmeta as nm
from npmeta.cli.main import main
from npmeta.cli.runs import Run
from npmeta.network.activations import ACTIVATIONS
from npmeta.network.normalisation import EPS, NORMS
from npmeta.network.parts import PreActivation, pre_activation
from npmeta.tasks.registry import preset
from npmeta.training.config import Config
from npmeta.verification.doctor.files import load_answers, load_problem, save_problem
from npmeta.verification.oracles import references as oracle
from tests.helpers import SMOOTH, H, Problem, assert_close, complex_step_hvp, problem, step_sizes

# Some hundred operations, each rounded by 1e-16 of its largest term; dividing by a σ of a few rows may
# make such a term a hundred times as large as what is left of it.
TIGHT = 1e-11

#: The choices of the inner loop: scale and shift move; stay; one set, two or more for the passes.
CHOICES = [
    {},
    {"adapt_norm": False},
    {"adapt_norm": False, "norm_sets": 2},
    {"adapt_norm": False, "norm_sets": 4},
]
every_norm = pytest.mark.parametrize("norm", NORMS)
every_choice = pytest.mark.parametrize("choice", CHOICES, ids=["moves", "stays", "two", "four"])


def normalised(norm, loss="mse", activation="tanh", hidden=(4, 3), *, seed=0, K=5, **choice) -> Problem:
    """A random problem with scales about 1, and shifts and biases that are not zero."""
    p = problem(loss, activation, hidden, seed=seed, K=K)
    model = nm.MLP(p.model.widths, p.model.activations, norm=norm, **choice)
    rng = np.random.default_rng([seed, 1])
    return replace(p, model=model, theta=model.init(rng) + 0.2 * rng.normal(size=model.n_params))


# --- the network ----------------------------------------------------------------------------------


def by_hand(model, theta, x):
    """The network on one task's rows: each number by itself, but for the sums."""
    layers = model.unpack(theta)
    for (W, b, *scale_shift), f in itertools.zip_longest(layers, model.activations):
        z = [[sum(h * w for h, w in zip(row, unit, strict=True)) for unit in W.T] for row in x] + b
        if not scale_shift:
            return z
        groups = z.T if model.norm == "batch" else z
        hats = [
            [(u - np.mean(group)) / math.sqrt(np.var(group) + EPS) for u in group] for group in groups
        ]
        z_hat = np.array(hats).T if model.norm == "batch" else np.array(hats)
        scale, shift = (np.atleast_2d(values)[0] for values in scale_shift)
        x = f.f(scale * z_hat + shift)


@every_norm
@every_choice
def test_outputs_against_plain_loops(norm, choice):
    p = normalised(norm, **choice)
    x = p.tasks.support_x
    shared = p.model.apply(p.theta, x)
    own = p.model.apply(np.tile(p.theta, (len(x), 1)), x)
    for t in range(len(x)):
        expected = by_hand(p.model, p.theta, x[t])
        for outputs in (shared[t], own[t], p.model.apply(p.theta, x[t])):
            assert_close(outputs, expected, 1e-13)


@every_norm
@every_choice
def test_the_order_of_parameters(norm, choice):
    model = nm.MLP([2, 3, 1], norm=norm, **choice)
    sets = choice.get("norm_sets", 1)
    theta = np.arange(float(model.n_params))
    (W, b, scale, shift), (V, c) = model.unpack(theta)
    assert model.layer_sizes == (9 + 6 * sets, 4)
    np.testing.assert_array_equal(W.ravel(), theta[:6])
    np.testing.assert_array_equal(b, theta[6:9])
    assert scale.shape == shift.shape == ((3,) if sets == 1 else (sets, 3))
    np.testing.assert_array_equal(scale.ravel(), theta[9 : 9 + 3 * sets])
    np.testing.assert_array_equal(shift.ravel(), theta[9 + 3 * sets : 9 + 6 * sets])
    np.testing.assert_array_equal([*V.ravel(), *c], theta[-4:])
    np.testing.assert_array_equal(model.pack([(W, b, scale, shift), (V, c)]), theta)
    assert list(model.places) == ["0.weight", "0.bias", "0.scale", "0.shift", "1.weight", "1.bias"]
    np.testing.assert_array_equal(theta[model.places["0.shift"]], shift.ravel())


def test_initial_scales_and_shifts():
    model = nm.MLP([2, 3, 1], norm="batch")
    plain = nm.MLP([2, 3, 1])
    theta = model.init(np.random.default_rng(0))
    (W, b, scale, shift), last = model.unpack(theta)
    np.testing.assert_array_equal(scale, np.ones(3))
    np.testing.assert_array_equal(shift, np.zeros(3))
    # The draws are those of the network without normalisation.
    np.testing.assert_array_equal(plain.pack([(W, b), last]), plain.init(np.random.default_rng(0)))


def test_a_row_depends_on_the_others_in_batch_normalisation_only():
    x = np.random.default_rng(0).normal(size=(6, 2))
    for norm, depends in (("batch", True), ("layer", False)):
        p = normalised(norm)
        together, alone = p.model.apply(p.theta, x), p.model.apply(p.theta, x[:3])
        assert bool(np.abs(together[:3] - alone).max() > 0.1) is depends
        # but not on their order
        assert_close(p.model.apply(p.theta, x[::-1])[::-1], together, 1e-13)


def test_without_normalisation_nothing_stands_between():
    z = np.ones((1, 2, 3))
    (layer, *_) = nm.MLP([2, 3, 1]).layers(np.zeros(13))
    assert type(pre_activation(layer, z)) is PreActivation
    assert pre_activation(layer, z).u is z


# --- derivatives ----------------------------------------------------------------------------------


@every_norm
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("choice", [{}, CHOICES[2]], ids=["moves", "two"])
def test_hessian_products(norm, activation, choice):
    p = normalised(norm, "cross_entropy", activation, (4, 3, 4), **choice)
    rng = np.random.default_rng(2)
    phi = p.theta + 0.1 * rng.normal(size=(len(p.tasks), p.theta.size))
    u, v = rng.normal(size=(2, *phi.shape))
    lin = p.risk.linearize(phi, *p.support)
    along_v = p.risk.linearize(phi + 1j * H * v, *p.support).value.imag / H
    assert_close((lin.grad * v).sum(-1), along_v, TIGHT)
    if activation != "gelu":  # SciPy's distribution function is not complex-safe to the last digits
        assert_close(lin.hvp(v), complex_step_hvp(p.risk, phi, p.support, v), TIGHT)
    left, right = (u * lin.hvp(v)).sum(-1), (v * lin.hvp(u)).sum(-1)
    assert (np.abs(left - right) <= 1e-12 * np.abs(u * lin.hvp(v)).sum(-1)).all()


@every_norm
@pytest.mark.parametrize("activation", SMOOTH)
def test_jvp_and_vjp(norm, activation):
    p = normalised(norm, activation=activation)
    rng = np.random.default_rng(2)
    x, v = p.tasks.support_x, rng.normal(size=p.theta.size)
    u = rng.normal(size=(*x.shape[:2], 3))
    pushed, pulled = p.model.jvp(p.theta, x, v), p.model.vjp(p.theta, x, u)
    assert_close(pushed, p.model.apply(p.theta + 1j * H * v, x).imag / H, TIGHT)
    assert_close((pulled * v).sum(-1), (pushed * u).sum((-2, -1)), TIGHT)


def test_gauss_newton_is_jvp_and_vjp():
    p = normalised("batch", "cross_entropy")
    x, y = p.support
    v = np.random.default_rng(2).normal(size=p.theta.size)
    risk = p.risk
    o = p.model.apply(p.theta, x)
    _, _, product = risk.loss(o, risk.loss.prepare(y, 3, o.dtype))
    expected = p.model.vjp(p.theta, x, product(p.model.jvp(p.theta, x, v)))
    assert_close(risk.linearize(p.theta, x, y).gauss_newton(v), expected, 1e-13)


# --- the meta-gradient ----------------------------------------------------------------------------


def exact(p, alpha, S, decay=0.0):
    """d(meta-loss)/dθ and d(meta-loss)/dα, every entry by a complex step of its own."""
    maml = nm.MAML(p.model, p.loss, alpha, S, inner_weight_decay=decay)
    return oracle.complex_step(maml, {"theta": p.theta, "inner_lr": np.asarray(alpha)}, p.tasks)


def ours(p, alpha, S, decay=0.0, **options):
    maml = nm.MAML(p.model, p.loss, alpha, S, inner_weight_decay=decay, **options)
    return maml.meta_gradient({"theta": p.theta, "inner_lr": np.asarray(alpha)}, p.tasks).grads


@every_norm
@every_choice
@pytest.mark.parametrize("activation", ["tanh", "relu", "silu"])
@pytest.mark.parametrize("S", [0, 1, 3])
def test_meta_gradient(norm, choice, activation, S):
    p = normalised(norm, "cross_entropy", activation, **choice)
    expected = exact(p, 0.2, S)
    for weights in ("dense", "factored"):
        grads = ours(p, 0.2, S, weights=weights)
        for name, gradient in expected.items():
            assert_close(grads[name], gradient, TIGHT, f"{weights} {name}")


@every_norm
@every_choice
@pytest.mark.parametrize("kind", ["layer", "step_and_layer", "parameter", "step_and_parameter"])
def test_meta_gradient_with_step_sizes_of_every_kind_and_decay(norm, choice, kind):
    p, S = normalised(norm, **choice), 3
    alpha = step_sizes(kind, p.model, S, np.random.default_rng(3))
    expected = exact(p, alpha, S, 0.1)
    for name, gradient in ours(p, alpha, S, 0.1).items():
        assert_close(gradient, expected[name], TIGHT, name)


@settings(max_examples=25, deadline=None)
@given(
    norm=st.sampled_from(list(NORMS)),
    choice=st.sampled_from(CHOICES),
    activation=st.sampled_from([name for name in ACTIVATIONS if name != "gelu"]),
    hidden=st.lists(st.integers(2, 5), min_size=1, max_size=3),
    weights=st.sampled_from(["auto", "dense", "factored"]),
    K=st.integers(3, 6),
    seed=st.integers(0, 2**16),
)
def test_the_adjoint_of_any_network(norm, choice, activation, hidden, weights, K, seed):
    """Against the adjoint whose Hessian products are complex steps of the gradient."""
    p = normalised(norm, "mse", activation, tuple(hidden), seed=seed, K=K, **choice)
    for first_order in (False, True):
        maml = nm.MAML(p.model, p.loss, 0.05, 2, first_order=first_order, weights=weights)
        reference = oracle.meta_gradient(maml, p.theta, p.tasks)
        # What eight roundings of the inputs do, where two rows or units are nearly the same.
        off = np.abs(maml.meta_gradient(p.theta, p.tasks).grad - reference.grad)
        assert (off <= TIGHT * np.abs(reference.grad).max() + 4 * reference.error["theta"].max()).all()


@every_norm
def test_float32(norm):
    p = normalised(norm, "cross_entropy")
    maml = nm.MAML(p.model, p.loss, 0.1, 2)
    double = maml.meta_gradient(p.theta, p.tasks).grad
    single = maml.meta_gradient(p.theta.astype(np.float32), p.tasks).grad
    assert single.dtype == np.float32
    # A hundred roundings of 6e-8.
    assert_close(single, double, 1e-5)


@every_norm
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_that_are_all_the_same(norm, dtype):
    """No variance over rows, nor, with equal weights, over units: ẑ is 0, σ is √ε."""
    model = nm.MLP([2, 3, 3, 2], "tanh", norm=norm)
    x, y = np.ones((2, 4, 2)), np.zeros((2, 4), int)
    for theta in (model.init(np.random.default_rng(0), dtype), np.ones(model.n_params, dtype)):
        for rows in (4, 1):
            tasks = nm.TaskBatch(x[:, :rows], y[:, :rows], x, y)
            for weights in ("dense", "factored"):
                maml = nm.MAML(model, "cross_entropy", 0.1, 3, weights=weights)
                out = maml.meta_gradient(theta, tasks)
                assert np.isfinite(out.grad).all()
                assert np.isfinite(out.loss)
    if dtype == np.float64:
        maml = nm.MAML(model, "cross_entropy", 0.1, 1)
        reference = oracle.complex_step(maml, theta, tasks)["theta"]
        # Rounding of 1e-16 in z is multiplied by 1/σ = 300 in each of two layers, on the way forward,
        # back, and under the differential of either.
        assert_close(maml.meta_gradient(theta, tasks).grad, reference, 1e-6)


# --- the choices of the inner loop ----------------------------------------------------------------


def scales_of(model, phi):
    """All scales and shifts, ``(T, ...)``."""
    return np.concatenate([phi[:, place] for name, place in _norm_places(model)], axis=-1)


def _norm_places(model):
    return [(n, place) for n, place in model.places.items() if n.endswith(("scale", "shift"))]


@every_norm
def test_inner_steps_move_scale_and_shift_or_do_not(norm):
    for choice, moves in (({}, True), ({"adapt_norm": False}, False)):
        p = normalised(norm, **choice)
        maml = nm.MAML(p.model, p.loss, 0.1, 2, inner_weight_decay=0.1)
        phi = maml.adapt(p.theta, *p.support)
        before = scales_of(p.model, np.tile(p.theta, (len(phi), 1)))
        assert np.array_equal(scales_of(p.model, phi), before) is not moves
        weight = p.model.places["0.weight"]
        assert (phi[:, weight] != p.theta[weight]).any()


def test_sets_take_turns():
    """The first set on the support pass, the next after one step, and the last from then on."""
    p = normalised("layer", adapt_norm=False, norm_sets=3)
    for steps, expected in ((0, [0, 1, 2]), (1, [1, 2, 2]), (2, [2, 2, 2]), (5, [2, 2, 2])):
        phi = nm.MAML(p.model, p.loss, 0.1, steps).adapt(p.theta, *p.support)
        for name, place in _norm_places(p.model):
            sets = p.theta[place].reshape(3, -1)
            np.testing.assert_array_equal(phi[0, place].reshape(3, -1), sets[expected], name)


@every_norm
@every_choice
def test_adapted_parameters_predict_as_the_inner_loop_does(norm, choice):
    p = normalised(norm, **choice)
    maml = nm.MAML(p.model, p.loss, 0.1, 3)
    phi = maml.adapt(p.theta, *p.support)
    predicted = maml.predict(p.theta, *p.support, p.tasks.query_x)
    assert_close(p.model.apply(phi, p.tasks.query_x), predicted, 1e-14)
    loss = p.risk.linearize(phi, *p.query).value
    assert_close(maml.evaluate(p.theta, p.tasks).loss[:, -1], loss, 1e-13)


@every_norm
def test_step_sizes_of_what_does_not_move_have_no_derivative(norm):
    p = normalised(norm, adapt_norm=False)
    alpha = np.full((1, p.model.n_params), 0.1)
    by_alpha = ours(p, alpha, 2)["inner_lr"][0]
    for name, place in p.model.places.items():
        assert bool(by_alpha[place].any()) is not name.endswith(("scale", "shift")), name


def test_chunks_of_tasks_change_nothing():
    p = normalised("batch")
    maml = nm.MAML(p.model, p.loss, 0.1, 2)
    whole = maml.meta_gradient(p.theta, p.tasks)
    parts = [maml.meta_gradient(p.theta, p.tasks[t : t + 1]).grad for t in range(len(p.tasks))]
    assert_close(np.mean(parts, axis=0), whole.grad, 1e-13)


# --- the boundary ---------------------------------------------------------------------------------


def test_names_and_numbers_that_are_none():
    with pytest.raises(ValueError, match=r"unknown normalisation 'bach' \(did you mean 'batch'"):
        nm.MLP([2, 3, 1], norm="bach")
    with pytest.raises(ValueError, match="norm_sets must be a whole number of at least 1, got 0"):
        nm.MLP([2, 3, 1], norm="batch", adapt_norm=False, norm_sets=0)
    for choice in ({"norm": "batch"}, {"adapt_norm": False}):
        with pytest.raises(ValueError, match="norm_sets is for a norm with adapt_norm=False"):
            nm.MLP([2, 3, 1], norm_sets=2, **choice)
    model = nm.MLP([2, 3, 1], norm="batch")
    with pytest.raises(ValueError, match=r"layer 0 must have W \(2, 3\) and b \(3,\) and scale \(3,\)"):
        model.pack([(np.ones((2, 3)), np.ones(3)), (np.ones((3, 1)), np.ones(1))])


def test_repr():
    assert repr(nm.MLP([1, 4, 1], norm="batch")) == "MLP([1, 4, 1], activation='relu', norm='batch')"
    staying = nm.MLP([1, 4, 1], norm="layer", adapt_norm=False, norm_sets=3)
    assert repr(staying).endswith("norm='layer', adapt_norm=False, norm_sets=3)")
    other = eval(repr(staying), {"MLP": nm.MLP}).with_activation("tanh")
    assert (other.places, other.activations[0].name) == (staying.places, "tanh")


# --- who else takes it ----------------------------------------------------------------------------


@every_norm
@pytest.mark.parametrize("choice", CHOICES[:2], ids=["moves", "stays"])
def test_the_doctor(norm, choice, tmp_path):
    p = normalised(norm, "cross_entropy", **choice)
    maml = nm.MAML(p.model, p.loss, 0.5, 2)
    given = nm.Problem(maml, p.theta, p.tasks)
    save_problem(tmp_path / "case", given)
    case = load_problem(tmp_path / "case")
    assert (case.model.norm, case.model.adapt_norm) == (norm, p.model.adapt_norm)
    gradient = maml.meta_gradient(p.theta, p.tasks).grad
    named = {f"meta_grad.{name}": gradient[place] for name, place in p.model.places.items()}
    for name in named:
        layer, array = name.split(".")[1:]
        named[name] = named[name].reshape(p.model.shapes[int(layer)][array])
    np.savez(tmp_path / "right.npz", **named)
    answers = load_answers(tmp_path / "right.npz", case)
    assert nm.diagnose(case, answers.gradient).verdict == "pass"
    first_order = nm.MAML(p.model, p.loss, 0.5, 2, first_order=True)
    diagnosis = nm.diagnose(case, first_order.meta_gradient(p.theta, p.tasks).grad)
    assert (diagnosis.verdict, diagnosis.fault) == ("fail", "first_order")


def test_the_doctor_refuses_sets():
    p = normalised("batch", adapt_norm=False, norm_sets=2)
    with pytest.raises(ValueError, match="one scale and shift for all inner steps, not norm_sets"):
        nm.Problem(nm.MAML(p.model, p.loss), p.theta, p.tasks)


# --- runs -----------------------------------------------------------------------------------------


def test_a_run_trains_resumes_and_adapts(tmp_path, capsys):
    choice = ["--norm", "batch", "--no-adapt-norm", "--norm-sets", "2", "--hidden", "6"]
    folder = str(tmp_path / "run")
    train = ["train", "sinusoid", *choice, "--iterations", "4", "--eval-tasks", "5", "--out", folder]
    assert main(train) == 0
    assert main(["train", "--resume", folder, "--iterations", "6"]) == 0
    run = Run(tmp_path / "run")
    model = run.config.algorithm(1, 1).model
    assert (model.norm, model.adapt_norm, model.norm_sets) == ("batch", False, 2)
    (_, _, scale, _), _ = model.unpack(run.load().params["theta"])
    assert (scale != 1).all(), "both sets have been trained"
    for name, rows in (("support.csv", "x,y\n-1,1\n2,0\n"), ("query.csv", "x\n0\n1\n")):
        (tmp_path / name).write_text(rows, encoding="utf-8")
    files = ["--support", str(tmp_path / "support.csv"), "--query", str(tmp_path / "query.csv")]
    assert main(["adapt", folder, *files]) == 0
    assert "each prediction depends on all rows of" in capsys.readouterr().err


def test_a_configuration_of_before_is_one_without(tmp_path):
    path = tmp_path / "config.toml"
    lines = Config("sinusoid").to_toml().splitlines()
    path.write_text("\n".join(line for line in lines if "norm" not in line), encoding="utf-8")
    task, values = Config.read_toml(path)
    assert Config(task, values).algorithm(1, 1).model.norm is None
    assert Config("omniglot", preset("paper", "omniglot")).algorithm(784, 5).model.norm == "batch"


def test_sets_without_a_norm_are_refused(tmp_path, capsys):
    assert main(["train", "sinusoid", "--norm-sets", "2", "--out", str(tmp_path / "run")]) == 2
    assert "norm_sets is for a norm with adapt_norm=False" in capsys.readouterr().err
