"""The network: parameters as views, outputs against plain loops, jvp and vjp by complex step."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import npmeta as nm
from npmeta.network.activations import ACTIVATIONS, Activation
from tests.helpers import DEPTHS, SMOOTH, H, assert_close, relative_error

hidden_widths = st.lists(st.integers(1, 5), max_size=3)
widths = st.builds(lambda i, h, o: [i, *h, o], st.integers(1, 4), hidden_widths, st.integers(1, 4))
seeds = st.integers(0, 2**32 - 1)


def network(sizes, seed=0, tasks=None, activation="tanh"):
    """A network and random parameters, ``(P,)`` or ``(T, P)``, biases included."""
    model = nm.MLP(sizes, activation)
    shape = (model.n_params,) if tasks is None else (tasks, model.n_params)
    return model, np.random.default_rng(seed).normal(size=shape)


def apply_by_hand(model, theta, x):
    """One network on one row at a time: o_j = b_j + Σ_i a_i W_ij."""
    out = []
    for row in x:
        a, start = list(row), 0
        for l, (n_in, n_out) in enumerate(zip(model.widths[:-1], model.widths[1:], strict=True)):
            W = theta[start : start + n_in * n_out]
            b = theta[start + n_in * n_out :]
            z = [b[j] + sum(a[i] * W[i * n_out + j] for i in range(n_in)) for j in range(n_out)]
            start += n_in * n_out + n_out
            last = l == model.n_layers - 1
            a = z if last else [model.activations[l].f(np.array([u]))[0] for u in z]
        out.append(a)
    return np.array(out)


# --- parameters -----------------------------------------------------------------------------------


@given(sizes=widths, seed=seeds, tasks=st.none() | st.integers(1, 3))
def test_pack_is_the_inverse_of_unpack(sizes, seed, tasks):
    model, theta = network(sizes, seed, tasks)
    layers = model.unpack(theta)
    lead = () if tasks is None else (tasks,)
    assert len(layers) == model.n_layers == len(sizes) - 1
    for (W, b), n_in, n_out in zip(layers, sizes[:-1], sizes[1:], strict=True):
        assert W.shape == (*lead, n_in, n_out)
        assert b.shape == (*lead, n_out)
    np.testing.assert_array_equal(model.pack(layers), theta)
    assert model.n_params == sum(model.layer_sizes) == theta.shape[-1]


def test_the_order_of_parameters():
    model = nm.MLP([2, 3, 1])
    (W1, b1), (W2, b2) = model.unpack(np.arange(13.0))
    np.testing.assert_array_equal(W1, [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(b1, [6, 7, 8])
    np.testing.assert_array_equal(W2, [[9], [10], [11]])
    np.testing.assert_array_equal(b2, [12])
    assert model.layer_sizes == (9, 4)


@pytest.mark.parametrize("tasks", [None, 3])
@pytest.mark.parametrize("sizes", [[2, 3], [2, 4, 3], [1, 1, 1, 1]])
def test_unpacked_layers_write_through(sizes, tasks):
    model, theta = network(sizes, tasks=tasks)
    for l, (W, b) in enumerate(model.unpack(theta)):
        assert np.shares_memory(W, theta)
        assert np.shares_memory(b, theta)
        W[...], b[...] = 10 + l, 20 + l
    expected = np.concatenate(
        [
            part
            for l, (n_in, n_out) in enumerate(itertools.pairwise(sizes))
            for part in (np.full(n_in * n_out, 10 + l), np.full(n_out, 20 + l))
        ]
    )
    np.testing.assert_array_equal(theta, np.broadcast_to(expected, theta.shape))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_unpack_keeps_dtypes_and_makes_integers_float64(dtype):
    model = nm.MLP([2, 3])
    for W, b in model.unpack(np.ones(9, dtype)):
        assert W.dtype == b.dtype == dtype
    for W, b in model.unpack(np.ones(9, int)):
        assert W.dtype == b.dtype == np.float64


# --- initial parameters ---------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_init_has_the_documented_variances(activation):
    sizes = [300, 200, 250, 100]
    model = nm.MLP(sizes, activation)
    gain = ACTIVATIONS[activation].variance_gain
    assert gain == pytest.approx(
        2 if activation not in ("identity", "tanh", "sigmoid", "sin") else 1, rel=1e-3
    )
    layers = model.unpack(model.init(np.random.default_rng(0)))
    for (W, b), n_in, g in zip(layers, sizes[:-1], [gain, gain, 1.0], strict=True):
        assert not b.any()
        # With n numbers the mean is off by σ/√n and the variance by √(2/n): five of those.
        n = W.size
        assert abs(W.mean()) < 5 * math.sqrt(g / n_in / n)
        assert abs(W.var() / (g / n_in) - 1) < 5 * math.sqrt(2 / n)


def test_init_is_a_function_of_the_generator():
    model = nm.MLP([3, 7, 2])
    first, again = (model.init(np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first != model.init(np.random.default_rng(6))).any()
    rng = np.random.default_rng(5)
    np.testing.assert_array_equal(model.init(rng), first)
    assert (model.init(rng) != first).any(), "a generator moves on"


def test_float32_parameters_are_the_rounded_float64_ones():
    model = nm.MLP([3, 7, 2])
    double = model.init(np.random.default_rng(1))
    single = model.init(np.random.default_rng(1), np.float32)
    assert (double.dtype, single.dtype) == (np.float64, np.float32)
    np.testing.assert_array_equal(single, double.astype(np.float32))
    np.testing.assert_array_equal(single, model.init(np.random.default_rng(1), "float32"))


@pytest.mark.parametrize("dtype", [np.float16, np.int64, np.complex128, bool])
def test_init_refuses_other_dtypes(dtype):
    with pytest.raises(ValueError, match="dtype must be float32 or float64, got"):
        nm.MLP([1, 1]).init(np.random.default_rng(0), dtype)


# --- the network as a function --------------------------------------------------------------------


@given(sizes=widths, seed=seeds, activation=st.sampled_from(list(ACTIVATIONS)))
def test_apply_against_plain_loops(sizes, seed, activation):
    model, theta = network(sizes, seed, activation=activation)
    x = np.random.default_rng(seed).normal(size=(3, sizes[0]))
    # Sums of at most five products, at most four times over.
    assert_close(model.apply(theta, x), apply_by_hand(model, theta, x), 1e-13)


@pytest.mark.parametrize("hidden", DEPTHS)
def test_shapes_and_shared_parameters(hidden):
    T, rows, n_in, n_out = 3, 6, 2, 4
    model, theta = network([n_in, *hidden, n_out])
    x = np.random.default_rng(1).normal(size=(T, rows, n_in))
    shared = model.apply(theta, x)
    assert shared.shape == (T, rows, n_out)
    own = model.apply(np.tile(theta, (T, 1)), x)
    assert own.shape == (T, rows, n_out)
    # One product over all rows or one a task: the same sums in another order.
    assert_close(own, shared, 1e-14)
    for t in range(T):
        alone = model.apply(theta, x[t])
        assert alone.shape == (rows, n_out)
        assert_close(alone, shared[t], 1e-14)
        assert_close(model.apply(theta, x[t][2:3])[0], shared[t, 2], 1e-14)


@pytest.mark.parametrize("hidden", DEPTHS)
def test_each_task_has_its_own_parameters(hidden):
    T = 4
    model, theta = network([2, *hidden, 3], tasks=T)
    x = np.random.default_rng(1).normal(size=(T, 5, 2))
    u, v = (
        np.random.default_rng(2).normal(size=(T, 5, 3)),
        np.random.default_rng(3).normal(size=theta.shape),
    )
    together = model.apply(theta, x), model.jvp(theta, x, v), model.vjp(theta, x, u)
    for t in range(T):
        alone = (
            model.apply(theta[t], x[t]),
            model.jvp(theta[t], x[t], v[t]),
            model.vjp(theta[t], x[t], u[t]),
        )
        for batched, looped in zip(together, alone, strict=True):
            assert_close(batched[t], looped, 1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
@pytest.mark.parametrize("tasks", [None, 2])
def test_the_parameters_set_the_dtype(dtype, tasks):
    model, theta = network([2, 3, 1], tasks=tasks)
    theta = theta.astype(dtype)
    for x in (np.ones((2, 4, 2)), np.ones((2, 4, 2), np.float32), np.ones((2, 4, 2), int)):
        assert model.apply(theta, x).dtype == dtype
        assert model.jvp(theta, x, np.ones(theta.shape)).dtype == dtype
        assert model.vjp(theta, x, np.ones((2, 4, 1))).dtype == dtype


def test_lists_will_do():
    model = nm.MLP([1, 1])
    np.testing.assert_array_equal(model.apply([2.0, 1.0], [[3.0], [4.0]]), [[7.0], [9.0]])
    np.testing.assert_array_equal(model.apply([2, 1], [[3], [4]]), [[7], [9]])
    np.testing.assert_array_equal(model.jvp([2, 1], [[3]], [1, 0]), [[3]])
    np.testing.assert_array_equal(model.vjp([2, 1], [[3]], [[1]]), [3, 1])


def test_one_activation_for_each_hidden_layer():
    names = ["relu", "tanh", "sin"]
    model, theta = network([2, 3, 4, 2, 1], activation=names)
    assert [f.name for f in model.activations] == names
    x = np.random.default_rng(1).normal(size=(5, 2))
    layers = model.unpack(theta)
    a = x
    for (W, b), f in zip(layers[:-1], (lambda z: z * (z > 0), np.tanh, np.sin), strict=True):
        a = f(a @ W + b)
    assert_close(model.apply(theta, x), a @ layers[-1][0] + layers[-1][1], 1e-14)


def test_an_activation_of_your_own():
    square = Activation("square", np.square, lambda z, a: 2 * z, lambda z, a: np.full_like(z, 2))
    model, theta = network([2, 3, 1], activation=square)
    x, v = np.random.default_rng(1).normal(size=(5, 2)), np.random.default_rng(2).normal(size=13)
    (W1, b1), (W2, b2) = model.unpack(theta)
    assert_close(model.apply(theta, x), (x @ W1 + b1) ** 2 @ W2 + b2, 1e-14)
    assert_close(model.jvp(theta, x, v), model.apply(theta + 1j * H * v, x).imag / H, 1e-14)


# --- derivatives ----------------------------------------------------------------------------------


@given(
    sizes=widths,
    seed=seeds,
    activation=st.sampled_from(list(ACTIVATIONS)),
    form=st.sampled_from(["rows", "shared", "own"]),
)
def test_jvp_and_vjp(sizes, seed, activation, form):
    T = 3
    model, theta = network(sizes, seed, T if form == "own" else None, activation)
    rng = np.random.default_rng(seed)
    lead = () if form == "rows" else (T,)
    x, u = rng.normal(size=(*lead, 4, sizes[0])), rng.normal(size=(*lead, 4, sizes[-1]))
    v = rng.normal(size=theta.shape)
    pushed, pulled = model.jvp(theta, x, v), model.vjp(theta, x, u)
    assert pushed.shape == (*lead, 4, sizes[-1])
    assert pulled.shape == (*lead, model.n_params)

    # Products of up to four matrices of numbers around 1, and their sums.
    assert_close(pushed, model.apply(theta + 1j * H * v, x).imag / H, 1e-13)
    for i, t in enumerate(np.eye(model.n_params)):
        column = model.apply(theta + 1j * H * t, x).imag / H  # ∂o/∂θ_i
        expected = (column * u).sum((-2, -1))
        scale = np.abs(pulled).max()
        np.testing.assert_allclose(pulled[..., i], expected, rtol=1e-12, atol=1e-13 * scale)

    # <J v, u> = <v, Jᵀ u>, measured by the size of the terms that are added up.
    left, right = (pushed * u).sum((-2, -1)), (v * pulled).sum(-1)
    scale = np.abs(v * pulled).sum(-1) + np.abs(pushed * u).sum((-2, -1))
    assert (np.abs(left - right) <= 1e-14 * scale).all()


@pytest.mark.parametrize("activation", SMOOTH)
def test_jvp_is_what_a_difference_says(activation):
    model, theta = network([2, 4, 3, 2], activation=activation)
    rng = np.random.default_rng(1)
    x, v = rng.normal(size=(5, 2)), rng.normal(size=theta.shape)
    h = 1e-5
    difference = (model.apply(theta + h * v, x) - model.apply(theta - h * v, x)) / (2 * h)
    # Truncation h² times a third derivative, and rounding 1e-16 / h.
    assert_close(model.jvp(theta, x, v), difference, 1e-7)


def test_derivatives_leave_their_arguments_alone():
    model, theta = network([2, 3, 2], tasks=2)
    x, v, u = np.ones((2, 4, 2)), np.ones(theta.shape), np.ones((2, 4, 2))
    kept = [array.copy() for array in (theta, x, v, u)]
    model.apply(theta, x), model.jvp(theta, x, v), model.vjp(theta, x, u)
    for array, copy in zip((theta, x, v, u), kept, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float32_agrees_with_float64(dtype):
    model, theta = network([2, 4, 3, 2])
    x, v = (
        np.random.default_rng(1).normal(size=(5, 2)),
        np.random.default_rng(2).normal(size=theta.shape),
    )
    single, double = model.jvp(theta.astype(dtype), x, v), model.jvp(theta, x, v)
    # A few dozen roundings of the dtype's epsilon.
    assert relative_error(single, double) <= 30 * np.finfo(dtype).eps


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad", [[], [3], [2, 0], [2, -1, 3], [2, 1.5], "ab", None, 5, [[1], [2]], [2, None], [2, np.nan]]
)
def test_widths_must_be_positive_integers(bad):
    with pytest.raises(ValueError, match="widths must be two or more positive integers, got"):
        nm.MLP(bad)


def test_widths_may_be_numpy_integers():
    assert nm.MLP(np.array([2, 3, 1])).widths == (2, 3, 1)
    assert nm.MLP((2, 3, 1)).n_params == 13


@pytest.mark.parametrize(
    ("sizes", "names", "n_hidden", "given"),
    [([2, 3, 1], ["relu", "tanh"], 1, 2), ([2, 1], ["relu"], 0, 1), ([2, 3, 3, 1], ["relu"], 2, 1)],
)
def test_the_number_of_activations(sizes, names, n_hidden, given):
    message = f"one for each of the {n_hidden} hidden layers, got {given}"
    with pytest.raises(ValueError, match=message):
        nm.MLP(sizes, names)


@pytest.mark.parametrize("sizes", [[2, 3, 1], [2, 1]])
def test_a_misspelt_activation(sizes):
    with pytest.raises(ValueError, match=r"unknown activation 'tahn' \(did you mean 'tanh'"):
        nm.MLP(sizes, "tahn")


@pytest.mark.parametrize("name", ["TANHH", "Tanh", False, 3])
@pytest.mark.parametrize("sizes", [[1, 1], [1, 2, 1]])
def test_names_that_are_none(sizes, name):
    with pytest.raises(ValueError, match=f"unknown activation {name!r}"):
        nm.MLP(sizes, name)
    if isinstance(name, str):
        with pytest.raises(ValueError, match="did you mean 'tanh'"):
            nm.MLP(sizes, name)


@pytest.mark.parametrize("theta", [np.ones(12), np.ones((2, 12)), np.ones((1, 1, 13)), np.float64(3)])
def test_parameters_of_another_length(theta):
    model = nm.MLP([2, 3, 1])
    message = r"theta must have shape \(13,\) or \(T, 13\), got"
    with pytest.raises(ValueError, match=message):
        model.unpack(theta)
    with pytest.raises(ValueError, match=message):
        model.apply(theta, np.ones((4, 2)))


@pytest.mark.parametrize(
    "theta", [np.ones(13, np.float16), np.array(["a"] * 13), np.array([None] * 13)]
)
def test_parameters_of_another_dtype(theta):
    with pytest.raises(ValueError, match="theta must be float32 or float64, got dtype"):
        nm.MLP([2, 3, 1]).apply(theta, np.ones((4, 2)))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((4, 3)), r"x must have shape \(rows, 2\) or \(T, rows, 2\) .* got \(4, 3\)"),
        (np.ones(2), r"got \(2,\)"),
        (np.ones((1, 2, 4, 2)), r"got \(1, 2, 4, 2\)"),
        ([["a", "b"]], "x must hold real numbers, got dtype <U1"),
        ([[1j, 0.0]], "x must hold real numbers, got dtype complex128"),
        ([[1.0, np.nan]], r"x must be finite, but x\[0, 1\] is nan"),
        ([[-np.inf, 1.0]], r"x must be finite, but x\[0, 0\] is -inf"),
    ],
)
def test_bad_inputs(x, message):
    model = nm.MLP([2, 3, 1])
    theta = np.ones(13)
    for call in (
        lambda: model.apply(theta, x),
        lambda: model.jvp(theta, x, theta),
        lambda: model.vjp(theta, x, np.ones((4, 1))),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("x", [np.ones((4, 2)), np.ones((2, 4, 2))])
def test_tasks_of_parameters_and_inputs_must_agree(x):
    with pytest.raises(ValueError, match=r"theta of shape \(3, 13\) needs x of shape \(3, rows, 2\)"):
        nm.MLP([2, 3, 1]).apply(np.ones((3, 13)), x)


def test_directions_and_cotangents_must_fit():
    model, theta = nm.MLP([2, 3, 1]), np.ones(13)
    with pytest.raises(ValueError, match=r"v must have shape \(13,\), got \(12,\)"):
        model.jvp(theta, np.ones((4, 2)), np.ones(12))
    with pytest.raises(ValueError, match=r"v must have shape \(2, 13\), got \(13,\)"):
        model.jvp(np.ones((2, 13)), np.ones((2, 4, 2)), theta)
    with pytest.raises(ValueError, match=r"cotangent must have shape \(4, 1\), got \(4,\)"):
        model.vjp(theta, np.ones((4, 2)), np.ones(4))
    with pytest.raises(ValueError, match=r"cotangent must have shape \(2, 4, 1\), got \(4, 1\)"):
        model.vjp(theta, np.ones((2, 4, 2)), np.ones((4, 1)))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([(np.ones((2, 3)), np.ones(3))], "expected 2 layers, got 1"),
        (
            [(np.ones((2, 3)), np.ones(3)), (np.ones((1, 3)), np.ones(1))],
            r"layer 1 must have W \(3, 1\)",
        ),
        ([(np.ones((2, 3)), np.ones((3, 1))), (np.ones((3, 1)), np.ones(1))], "layer 0 must have W"),
        ([(np.ones((5, 2, 3)), np.ones(3)), (np.ones((3, 1)), np.ones(1))], "layer 0 must have W"),
        (
            [(np.ones((5, 2, 3)), np.ones((5, 3))), (np.ones((3, 1)), np.ones(1))],
            "either all layers have a task axis, of one length, or none has",
        ),
        (
            [(np.ones((5, 2, 3)), np.ones((5, 3))), (np.ones((4, 3, 1)), np.ones((4, 1)))],
            "either all layers have a task axis, of one length, or none has",
        ),
        ([(np.ones((1, 1, 2, 3)), np.ones((1, 1, 3)))] * 2, "layer 0 must have W"),
    ],
)
def test_pack_refuses_layers_that_are_not_this_networks(layers, message):
    with pytest.raises(ValueError, match=message):
        nm.MLP([2, 3, 1]).pack(layers)


def test_repr():
    assert repr(nm.MLP([1, 4, 4, 2], "tanh")) == "MLP([1, 4, 4, 2], activation='tanh')"
    mixed = nm.MLP([1, 4, 4, 2], ["tanh", "relu"])
    assert repr(mixed) == "MLP([1, 4, 4, 2], activation=['tanh', 'relu'])"
    linear = nm.MLP([3, 2])
    assert eval(repr(linear), {"MLP": nm.MLP}).widths == linear.widths
