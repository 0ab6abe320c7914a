"""Pytrees of JAX, Flax and Haiku to theta and back; and a diagnosis of MAML in JAX."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import npmeta as nm
from npmeta import interop
from tests.helpers import assert_close
from tests.peers.interop_cases import TIGHT, WIDTHS, exact, some_tasks

jax = pytest.importorskip("jax")
jnp = jax.numpy


@pytest.fixture(autouse=True, scope="module")
def x64():
    """float64 in JAX, which has to be asked for, and which other users of the process may not want."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


# --- the example ----------------------------------------------------------------------------------


def net(params, x):
    for W, b in params[:-1]:
        x = jnp.tanh(x @ W + b)
    W, b = params[-1]
    return x @ W + b


def meta_loss(params, x, y, query_x, query_y, stop=False):
    def loss(params, x, y):
        return jnp.mean((net(params, x) - y) ** 2)

    def loss_after_adapting(x, y, query_x, query_y):
        adapted = params
        for _ in range(3):
            grads = jax.grad(loss)(adapted, x, y)
            grads = jax.lax.stop_gradient(grads) if stop else grads
            adapted = jax.tree.map(lambda p, g: p - 0.1 * g, adapted, grads)
        return loss(adapted, query_x, query_y)

    return jax.vmap(loss_after_adapting)(x, y, query_x, query_y).mean()


def diagnosis(params, x, y, query_x, query_y, **options):
    maml = nm.MAML(interop.model_of(params, "tanh"), "mse", inner_lr=0.1, inner_steps=3)
    problem = nm.Problem(maml, interop.to_theta(params), nm.TaskBatch(x, y, query_x, query_y))
    gradient = jax.grad(meta_loss)(params, x, y, query_x, query_y, **options)
    return nm.diagnose(problem, interop.to_theta(gradient))


def pairs(widths=WIDTHS, dtype=np.float64):
    rng = np.random.default_rng(0)
    return [
        (jnp.asarray(rng.normal(size=shape) / 2, dtype), jnp.asarray(rng.normal(size=shape[1]), dtype))
        for shape in itertools.pairwise(widths)
    ]


def test_the_gradient_of_jax():
    params, tasks = pairs(), some_tasks()
    gradient = interop.to_theta(jax.grad(meta_loss)(params, *tasks))
    assert_close(gradient, exact(interop.to_theta(params), tasks), TIGHT)


@pytest.mark.parametrize("stop", [False, True])
def test_diagnosis(stop):
    found = diagnosis(pairs(), *some_tasks(), stop=stop)
    expected = ("fail", "first_order") if stop else ("pass", None)
    assert (found.verdict, found.fault) == expected


# --- pytrees --------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    widths=st.lists(st.integers(1, 3), min_size=2, max_size=13),
    dtype=st.sampled_from(["float32", "float64", "bfloat16", "float16"]),
)
def test_there_and_back(widths, dtype):
    layers = pairs(widths, dtype)
    theta = interop.to_theta(layers, nm.MLP(widths))
    assert theta.dtype == ("float64" if dtype == "float64" else "float32")
    named = {f"Dense_{l}": {"kernel": W, "bias": b} for l, (W, b) in enumerate(layers)}
    through_jax = jax.tree.map(lambda a: a + 0, named)  # which sorts the keys
    for params in (named, through_jax):
        np.testing.assert_array_equal(interop.to_theta(params), theta)
    for params in (layers, named, through_jax):
        back = interop.from_theta(theta, like=params)
        assert jax.tree.structure(back) == jax.tree.structure(params)
        for mine, yours in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
            assert isinstance(mine, jax.Array)
            assert (mine.dtype, mine.device) == (yours.dtype, yours.device)
            np.testing.assert_array_equal(mine, yours)


def test_what_jax_gets_is_its_own():
    """JAX may keep a NumPy array as it is; changing theta afterwards must change nothing there."""
    theta = np.arange(4096.0 * 2)
    params = interop.from_theta(theta, [(jnp.zeros((4095, 2)), jnp.zeros(2))])
    theta[:] = -1
    assert params[0][0][0, 1] == 1


def test_adapted_weights():
    params, (x, *_) = pairs(), some_tasks()
    model = interop.model_of(params, "tanh")
    phi = np.random.default_rng(0).normal(size=(3, model.n_params))
    adapted = interop.from_theta(phi, like=params)
    assert_close(jax.vmap(net)(adapted, x), model.apply(phi, x), TIGHT)
    np.testing.assert_array_equal(interop.to_theta(adapted), phi)


def test_shapes_alone_give_numpy_arrays():
    like = jax.eval_shape(pairs)
    theta = interop.to_theta(pairs())
    for mine, yours in zip(
        jax.tree.leaves(interop.from_theta(theta, like)), jax.tree.leaves(pairs()), strict=True
    ):
        assert type(mine) is np.ndarray
        np.testing.assert_array_equal(mine, yours)


# --- Flax and Haiku -------------------------------------------------------------------------------

#: Twelve layers, square but for the ends: an order by sorted names would go unnoticed.
DEEP = [2, *[3] * 11, 1]


def assert_the_same_network(params, apply):
    x = np.random.default_rng(1).normal(size=(5, 2))
    theta = interop.to_theta(params)
    assert_close(interop.model_of(params, "tanh").apply(theta, x), apply(params, x), TIGHT)
    np.testing.assert_array_equal(interop.to_theta(interop.from_theta(theta, like=params)), theta)
    gradient = jax.jit(jax.grad(lambda params: apply(params, x).sum()))(params)
    by_hand = interop.model_of(params, "tanh").vjp(theta, x, np.ones((5, 1)))
    assert_close(interop.to_theta(gradient), by_hand, TIGHT)


@pytest.mark.parametrize("norm", ["BatchNorm", "LayerNorm"])
def test_flax_normalised(norm):
    flax = pytest.importorskip("flax.linen")
    training = {"use_running_average": False} if norm == "BatchNorm" else {}

    class Net(flax.Module):
        @flax.compact
        def __call__(self, x):
            for n in DEEP[1:-1]:
                x = flax.Dense(n, param_dtype=float)(x)
                x = getattr(flax, norm)(epsilon=1e-5, param_dtype=float, **training)(x)
                x = jnp.tanh(x)
            return flax.Dense(DEEP[-1], param_dtype=float)(x)

    params = Net().init(jax.random.key(0), jnp.ones((1, 2)))

    def apply(params, x):
        return Net().apply(params, x, mutable=["batch_stats"])[0]

    assert_the_same_normalised_network(params, apply, norm)


def assert_the_same_normalised_network(params, apply, norm):
    """Also where parameters are not as they begin."""
    theta = interop.to_theta(params)
    theta = theta + 0.3 * np.random.default_rng(2).normal(size=theta.size)
    params = interop.from_theta(theta, like=params)
    np.testing.assert_array_equal(interop.to_theta(params), theta)
    x = np.random.default_rng(1).normal(size=(5, 2))
    model = interop.model_of(params, "tanh", norm=norm.removesuffix("Norm").lower())
    # Twelve layers, each divided by a σ of a few rows.
    assert_close(model.apply(theta, x), apply(params, x), 1e-9)
    gradient = jax.grad(lambda params: apply(params, x).sum())(params)
    assert_close(interop.to_theta(gradient), model.vjp(theta, x, np.ones((5, 1))), 1e-8)


def test_flax_nnx_normalised():
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            settings = {"epsilon": 1e-5, "param_dtype": float, "rngs": rngs}
            self.layers = nnx.List(
                [nnx.Linear(*pair, param_dtype=float, rngs=rngs) for pair in itertools.pairwise(DEEP)]
            )
            self.norms = nnx.List([nnx.LayerNorm(n, **settings) for n in DEEP[1:-1]])

        def __call__(self, x):
            for layer, own in zip(self.layers[:-1], self.norms, strict=True):
                x = jnp.tanh(own(layer(x)))
            return self.layers[-1](x)

    graph, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
    assert_the_same_normalised_network(
        params, lambda params, x: nnx.merge(graph, params, rest)(x), "LayerNorm"
    )


@pytest.mark.parametrize("norm", ["BatchNorm", "LayerNorm"])
def test_haiku_normalised(norm):
    haiku = pytest.importorskip("haiku")

    def forward(x):
        for n in DEEP[1:-1]:
            x = haiku.Linear(n)(x)
            if norm == "BatchNorm":
                x = haiku.BatchNorm(True, True, 0.9, eps=1e-5)(x, is_training=True)
            else:
                x = haiku.LayerNorm(-1, True, True, eps=1e-5)(x)
            x = jnp.tanh(x)
        return haiku.Linear(DEEP[-1])(x)

    net = haiku.without_apply_rng(haiku.transform_with_state(forward))
    params, state = net.init(jax.random.key(0), jnp.ones((1, 2)))
    assert_the_same_normalised_network(params, lambda p, x: net.apply(p, state, x)[0], norm)


def test_flax():
    flax = pytest.importorskip("flax.linen")

    class Net(flax.Module):
        @flax.compact
        def __call__(self, x):
            for n in DEEP[1:-1]:
                x = jnp.tanh(flax.Dense(n, param_dtype=float)(x))
            return flax.Dense(DEEP[-1], param_dtype=float)(x)

    params = Net().init(jax.random.key(0), jnp.ones((1, 2)))
    assert_the_same_network(params, Net().apply)
    frozen = pytest.importorskip("flax.core").freeze(params)
    assert_the_same_network(frozen, Net().apply)
    assert type(interop.from_theta(interop.to_theta(frozen), frozen)) is type(frozen)


def test_flax_nnx():
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List(
                [nnx.Linear(*pair, param_dtype=float, rngs=rngs) for pair in itertools.pairwise(DEEP)]
            )

        def __call__(self, x):
            for layer in self.layers[:-1]:
                x = jnp.tanh(layer(x))
            return self.layers[-1](x)

    graph, params = nnx.split(Net(nnx.Rngs(0)))
    assert_the_same_network(params, lambda params, x: nnx.merge(graph, params)(x))


@pytest.mark.parametrize("form", ["mlp", "linear"])
def test_haiku(form):
    haiku = pytest.importorskip("haiku")

    def forward(x):
        if form == "mlp":
            return haiku.nets.MLP(DEEP[1:], activation=jnp.tanh)(x)
        for n in DEEP[1:-1]:
            x = jnp.tanh(haiku.Linear(n)(x))
        return haiku.Linear(DEEP[-1])(x)

    net = haiku.without_apply_rng(haiku.transform(forward))
    assert_the_same_network(net.init(jax.random.key(0), jnp.ones((1, 2))), net.apply)
