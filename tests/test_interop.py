"""What other frameworks hold, to theta and back. The frameworks themselves are in tests/peers; here are
structures like theirs, and stand-ins that have of a tensor or a module what interop may ask of it."""

import ast
import itertools
from collections import OrderedDict, defaultdict
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import npmeta as nm
from npmeta import interop
from npmeta.network.activations import ACTIVATIONS

# --- stand-ins ------------------------------------------------------------------------------------


class Tensor:
    """What interop asks of a PyTorch tensor: a matrix lies as (n_out, n_in)."""

    def __init__(self, values, dtype=None, grad=None):
        self._values = np.array(values, dtype)
        self.shape, self.dtype, self.grad = self._values.shape, f"torch.{self._values.dtype}", grad

    def detach(self):
        return self

    def cpu(self):
        return self

    def element_size(self):
        return self._values.itemsize

    def numpy(self):
        return self._values

    def new_tensor(self, values):
        return Tensor(values, self._values.dtype)


class Module:
    """A module with named tensors; some of them may be one tensor."""

    def __init__(self, named):
        self._named = named

    def named_parameters(self, remove_duplicate=True):
        seen = set()
        for name, tensor in self._named.items():
            if not (remove_duplicate and id(tensor) in seen):
                seen.add(id(tensor))
                yield name, tensor


class KerasModel:
    def __init__(self, weights):
        self._weights = weights

    def get_weights(self):
        return self._weights


class Dense(NamedTuple):
    W: np.ndarray
    b: np.ndarray


# --- the forms in which frameworks hold layers ----------------------------------------------------


def swapped(W):
    return W.swapaxes(-1, -2)


def by_name(layers, name, *, W="kernel", b="bias"):
    """A dictionary of layers whose keys JAX has sorted."""
    named = {name(l): {b: bias, W: matrix} for l, (matrix, bias) in enumerate(layers)}
    return dict(sorted(named.items()))


def state_dict(layers, number=lambda l: 2 * l):
    named = {}
    for l, (W, b) in enumerate(layers):
        named |= {f"{number(l)}.weight": swapped(W), f"{number(l)}.bias": b}
    return named


def tensors(named):
    return {name: Tensor(array) for name, array in named.items()}


FORMS = {
    "flax": lambda layers: {"params": by_name(layers, "Dense_{}".format)},
    "haiku": lambda layers: by_name(layers, lambda l: f"linear_{l}" if l else "linear", W="w", b="b"),
    "haiku_mlp": lambda layers: by_name(layers, "mlp/~/linear_{}".format, W="w", b="b"),
    "flattened": lambda layers: {
        f"Dense_{l}/{name}": array
        for l, (W, b) in enumerate(layers)
        for name, array in (("bias", b), ("kernel", W))
    },
    "numbered": lambda layers: dict(
        sorted(
            ((f"{x}{l + 1}", a) for l, (W, b) in enumerate(layers) for x, a in (("W", W), ("b", b))),
            key=lambda item: item[0],
        )
    ),
    "pairs": lambda layers: [tuple(pair) for pair in layers],
    "bias_first_pairs": lambda layers: tuple((b, W) for W, b in layers),
    "named_tuples": lambda layers: [Dense(W, b) for W, b in layers],
    "dictionaries": lambda layers: [{"b": b, "w": W} for W, b in layers],
    "stax": lambda layers: [item for W, b in layers for item in ((W, b), ())],
    "nested": lambda layers: {
        "hidden": layers[:-1],
        "hidden_out": MappingProxyType({"w": layers[-1][0], "b": layers[-1][1]}),
    },
    "list": lambda layers: [array for pair in layers for array in pair],
    "defaultdict": lambda layers: defaultdict(
        dict, {f"fc{l}": {"w": W, "b": b} for l, (W, b) in enumerate(layers)}
    ),
    "state_dict": lambda layers: OrderedDict(state_dict(layers)),
    "sorted_state_dict": lambda layers: dict(sorted(state_dict(layers).items())),
    "tensors": lambda layers: tensors(state_dict(layers)),
    "tensor_list": lambda layers: tuple(tensors(state_dict(layers)).values()),
}


def theta_of(layers):
    """npmeta's order, written out."""
    flat = [a.reshape(*b.shape[:-1], -1) for W, b in layers for a in (W, b)]
    return np.concatenate(flat, axis=-1)


def random_layers(widths, T=None, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    lead = () if T is None else (T,)
    return [
        (rng.normal(size=(*lead, m, n)).astype(dtype), rng.normal(size=(*lead, n)).astype(dtype))
        for m, n in itertools.pairwise(widths)
    ]


def assert_same(one, other):
    """The same containers, keys in the same order, and arrays of the same dtype and numbers."""
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert_same(one.numpy(), other.numpy())
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    elif hasattr(one, "items"):
        assert list(one) == list(other)
        assert_same(list(one.values()), list(other.values()))
    else:
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)


# --- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=30, deadline=None)
@given(
    # Few different widths, so that most networks have square layers; up to 13 layers, whose sorted
    # names are in another order.
    widths=st.lists(st.integers(1, 3), min_size=3, max_size=14),
    T=st.none() | st.integers(1, 3),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_there_and_back(form, widths, T, dtype):
    if form == "nested":  # two stems: found by fit alone, so widths that differ
        widths = list(range(2, len(widths) + 2))
    layers = random_layers(widths, T, dtype)
    theta = theta_of(layers)
    model = nm.MLP(widths)
    params = FORMS[form](layers)
    found = interop.to_theta(params, model)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, theta)
    # The numbers of ``like`` do not matter, nor whether it has a task axis.
    for like in (random_layers(widths, dtype=dtype, seed=1), random_layers(widths, 2, dtype, seed=1)):
        assert_same(interop.from_theta(theta, FORMS[form](like)), params)


@pytest.mark.parametrize("form", ["list", "tensor_list", "flax"])
def test_one_layer(form):
    layers = random_layers([3, 2])
    np.testing.assert_array_equal(interop.to_theta(FORMS[form](layers)), theta_of(layers))


@pytest.mark.parametrize("L", [1, 10, 11])
def test_biases_first(L):
    """As ``jax.tree.leaves`` gives them, from sorted names; up to ten layers keep their order there."""
    layers = random_layers([2] * (L + 1))
    leaves = [array for W, b in layers for array in (b, W)]
    if L <= 10:
        np.testing.assert_array_equal(interop.to_theta(leaves), theta_of(layers))
    else:
        with pytest.raises(ValueError, match="the eleventh follows the second"):
            interop.to_theta(leaves)


def test_nothing_is_shared_with_the_framework():
    layers = random_layers([2, 2, 1])
    theta = interop.to_theta(FORMS["pairs"](layers))
    back = interop.from_theta(theta, layers)
    before = theta.copy()
    for pair in (*layers, *back):
        for array in pair:
            array += 1
    np.testing.assert_array_equal(theta, before)


@pytest.mark.parametrize("dtype", [np.float16, "bfloat16"])
def test_half_precision_becomes_single(dtype):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    layers = random_layers([2, 3, 1], dtype=dtype)
    theta = interop.to_theta(layers)
    assert theta.dtype == np.float32
    np.testing.assert_array_equal(theta, theta_of(layers).astype(np.float32))
    # and goes back into half precision without loss
    assert_same(interop.from_theta(theta, layers), layers)


def test_arrays_that_cannot_be_made_are_numpy_arrays():
    layers = random_layers([2, 3, 1])
    like = [SimpleNamespace(shape=a.shape, dtype="float32") for pair in layers for a in pair]
    for array, expected in zip(
        interop.from_theta(theta_of(layers), like), FORMS["list"](layers), strict=True
    ):
        assert_same(array, expected)


def test_keras_model():
    layers = random_layers([2, 3, 1])
    model = KerasModel(FORMS["list"](layers))
    np.testing.assert_array_equal(interop.to_theta(model), theta_of(layers))
    assert_same(interop.from_theta(theta_of(layers), model), FORMS["list"](layers))


# --- modules and gradients ------------------------------------------------------------------------


def test_module_and_its_gradient():
    layers, gradients = random_layers([2, 3, 3, 1]), random_layers([2, 3, 3, 1], seed=1)
    named = tensors(state_dict(layers))
    for tensor, gradient in zip(named.values(), state_dict(gradients).values(), strict=True):
        tensor.grad = Tensor(gradient)
    for params in (Module(named), named, list(named.values())):
        np.testing.assert_array_equal(interop.to_theta(params), theta_of(layers))
        np.testing.assert_array_equal(interop.grad_of(params), theta_of(gradients))
    assert_same(interop.from_theta(theta_of(layers), Module(named)), named)


def test_missing_gradient():
    named = tensors(state_dict(random_layers([2, 3, 1])))
    with pytest.raises(ValueError, match=r"'0\.weight' has no gradient.*backward\(\)"):
        interop.grad_of(named)
    with pytest.raises(ValueError, match=r"to_theta$"):
        interop.grad_of(random_layers([2, 3, 1]))


def test_module_goes_by_the_order_of_registration():
    """Where that is possible; else by fit."""
    layers = random_layers([2, 2, 2])
    module = Module(tensors(state_dict(layers, ["head", "body"].__getitem__)))
    np.testing.assert_array_equal(interop.to_theta(module), theta_of(layers))
    layers = random_layers([3, 2, 1])
    module = Module(tensors(state_dict(layers[::-1], ["head", "body"].__getitem__)))
    np.testing.assert_array_equal(interop.to_theta(module), theta_of(layers))


def test_tied_tensors():
    tied = Tensor(np.eye(2))
    named = {"0.weight": tied, "0.bias": Tensor([0.0, 0]), "1.weight": tied, "1.bias": Tensor([0.0, 0])}
    with pytest.raises(ValueError, match=r"'0\.weight' and '1\.weight' are one tensor"):
        interop.to_theta(Module(named))


# --- layouts --------------------------------------------------------------------------------------


def test_square_layers_go_by_the_usual_layout():
    W, b = np.arange(4.0).reshape(2, 2), np.array([4.0, 5.0])
    for params, as_it_lies in [
        ({"kernel": W, "bias": b}, True),
        ({"w": W, "b": b}, True),
        ([W, b], True),
        ({"weight": W, "bias": b}, False),
        ({"weight": Tensor(W), "bias": Tensor(b)}, False),
        ({"w": Tensor(W), "b": Tensor(b)}, False),
        ([Tensor(W), Tensor(b)], False),
        ({"kernel": Tensor(W), "bias": Tensor(b)}, True),
    ]:
        expected = theta_of([(W if as_it_lies else W.T, b)])
        np.testing.assert_array_equal(interop.to_theta(params), expected)
        for layout in ("in_out", "out_in"):
            expected = theta_of([(W if layout == "in_out" else W.T, b)])
            np.testing.assert_array_equal(interop.to_theta(params, layout=layout), expected)


@pytest.mark.parametrize(
    ("params", "layout", "message"),
    [
        (
            {"0.weight": np.ones((2, 3)), "0.bias": np.ones(3)},
            None,
            r"'0\.weight' of shape \(2, 3\) with a bias of shape \(3,\) is not \(n_out, n_in\), which "
            r"is the usual layout here; pass layout='in_out' if it is \(n_in, n_out\)$",
        ),
        (
            {"kernel": np.ones((2, 3)), "bias": np.ones(3)},
            "out_in",
            r"is not \(n_out, n_in\), which is what layout says; pass layout='in_out'",
        ),
        ([np.ones((2, 3)), np.ones(2)], None, r"pass layout='out_in' if it is \(n_out, n_in\)$"),
        ([np.ones((2, 3)), np.ones(4)], None, r"\(4,\) is not \(n_in, n_out\).*usual layout here$"),
        ([np.ones((2, 3)), np.ones(3)], "C", "layout must be one of in_out, out_in; got 'C'"),
    ],
)
def test_layouts_that_do_not_fit(params, layout, message):
    with pytest.raises(ValueError, match=message):
        interop.to_theta(params, layout=layout)


# --- orders ---------------------------------------------------------------------------------------


def named_layers(names, widths):
    layers = random_layers(widths)
    return dict(zip(names, layers, strict=True)), theta_of(layers)


@pytest.mark.parametrize(
    ("names", "widths"),
    [
        (["stem", "body", "head"], [1, 2, 3, 4]),
        (["hidden_0", "hidden_1", "hidden_2", "a_head"], [5, 5, 5, 5, 1]),
        (["z_in", "hidden_0", "hidden_1"], [1, 5, 5, 5]),
        # Around a circle: the only way is the whole way.
        (["b", "a", "c"], [2, 3, 2, 4]),
    ],
)
def test_names_without_numbers_go_by_fit(names, widths):
    params, theta = named_layers(names, widths)
    for order in itertools.permutations(params):
        shuffled = {name: params[name] for name in order}
        np.testing.assert_array_equal(interop.to_theta(shuffled), theta)


def test_more_than_one_order():
    params, theta = named_layers(["body", "head"], [3, 3, 3])
    with pytest.raises(
        ValueError, match=r"'body' \(3 -> 3\), 'head' \(3 -> 3\) fit together in more than"
    ):
        interop.to_theta(params)
    shuffled = dict(sorted(params.items(), reverse=True))
    np.testing.assert_array_equal(interop.to_theta(shuffled, order=["body", "head"]), theta)
    assert_same(interop.from_theta(theta, shuffled, order=["body", "head"]), shuffled)
    with pytest.raises(
        ValueError, match=r"order must name the layers \['body', 'head'\], got \['body'\]"
    ):
        interop.to_theta(params, order=["body"])


def test_the_model_may_decide_the_order():
    params, theta = named_layers(["up", "down"], [2, 3, 2])
    with pytest.raises(ValueError, match="more than one order"):
        interop.to_theta(params)
    np.testing.assert_array_equal(interop.to_theta(params, nm.MLP([2, 3, 2])), theta)
    with pytest.raises(ValueError, match="more than one order"):
        interop.to_theta(params, nm.MLP([4, 3, 2]))


def test_layers_that_do_not_follow():
    params, _ = named_layers(["up", "down"], [2, 3, 4])
    params["down"] = random_layers([5, 4])[0]
    with pytest.raises(ValueError, match=r"no order in which .*: 'up' \(2 -> 3\), 'down' \(5 -> 4\)"):
        interop.to_theta(params)
    with pytest.raises(
        ValueError, match=r"layer '1' \(5 -> 4\) does not take what layer '0' \(2 -> 3\)"
    ):
        interop.to_theta(list(params.values()))


def test_another_model():
    with pytest.raises(ValueError, match=r"widths \[2, 3, 1\]; the model has \[2, 4, 1\]"):
        interop.to_theta(random_layers([2, 3, 1]), nm.MLP([2, 4, 1]))


# --- what is no network of fully connected layers ---------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"weight": np.ones((4, 2, 3, 3)), "bias": np.ones(4)},
            r"\(4, 2, 3, 3\).*not a fully connected",
        ),
        ({"weight": np.ones((4, 2, 3)), "bias": np.ones(4)}, r"\(4, 2, 3\).*not a fully connected"),
        ({"1.weight": np.ones(4), "1.bias": np.ones(4)}, r"'1\.weight' of shape \(4,\).*not a fully"),
        ({"slope": np.ones(4), "bias": np.ones(4)}, "cannot tell what 'slope' is"),
        ({"scale": np.ones(4), "bias": np.ones(4)}, "'scale' has no matrix beside it"),
        ({"a": {"kernel": np.ones((2, 3))}}, r"'a\.kernel' has no bias beside it"),
        ({"bias": np.ones(3)}, "'bias' has no matrix beside it"),
        ([np.ones((2, 3)), np.ones((3, 1))], r"at '0' is \(2, 3\) and \(3, 1\)"),
        ([np.ones((2, 3)), np.ones(3), np.ones((3, 1))], r"at '2' is \(3, 1\)$"),
        ([np.ones((2, 3)), None], "None where an array should be, at '1'"),
        (None, "None where an array should be$"),
        ({"kernel": np.ones((2, 3)), "bias": None}, "None where an array should be, at 'bias'"),
        ({"w": np.ones((2, 3)), "kernel": np.ones((2, 3))}, "'w' and 'kernel' cannot both"),
        ({"w": 1.0}, "got float at 'w'"),
        (np.ones(9), r"one array, of shape \(9,\), does not say"),
        (object(), "expected a PyTorch module, .* got object$"),
        ({}, "there are no arrays here"),
        (
            [np.ones((2, 3), int), np.ones(3, int)],
            "'0' must hold floating-point numbers, got dtype int",
        ),
        ([np.ones((2, 2, 3)), np.ones((1, 3))], r"both or neither with a task axis"),
        ([np.ones((2, 2, 3)), np.ones((2, 3)), np.ones((3, 1)), np.ones(1)], "a task axis"),
    ],
)
def test_not_a_network(params, message):
    with pytest.raises(ValueError, match=message):
        interop.to_theta(params)


@pytest.mark.parametrize("shape", [(8,), (10,), (2, 10), ()])
def test_theta_of_another_length(shape):
    with pytest.raises(ValueError, match=r"theta must have shape \(9,\) or \(T, 9\)"):
        interop.from_theta(np.ones(shape), random_layers([2, 3]))


def test_integers_take_no_theta():
    like = [np.ones((2, 3), int), np.ones(3, int)]
    with pytest.raises(ValueError, match="'0' must hold floating-point numbers"):
        interop.from_theta(np.ones(9), like)


# --- models ---------------------------------------------------------------------------------------


def module(class_name, **settings):
    """An instance of a class of that name, as far as interop looks."""
    shown = ", ".join(f"{key}={value!r}" for key, value in settings.items())
    methods = {"__repr__": lambda self: f"{class_name}({shown})"}
    made = type(class_name, (), methods)()
    vars(made).update(settings)
    return made


class Sequential(Module):
    def __init__(self, *modules):
        self.inside = modules
        named = {}
        for i, m in enumerate(modules):
            inner = dict(m.named_parameters()) if isinstance(m, Module) else {}
            if type(m).__name__ == "Linear":
                inner = {"weight": Tensor(np.ones((m.out_features, m.in_features)))}
                inner["bias"] = Tensor(np.ones(m.out_features))
            if type(m).__name__ in ("BatchNorm1d", "LayerNorm") and m.weight is not None:
                inner = {"weight": m.weight, "bias": m.bias}
            named |= {f"{i}.{name}": tensor for name, tensor in inner.items()}
        super().__init__(named)

    def __iter__(self):
        return iter(self.inside)

    def modules(self):
        for m in self.inside:
            yield from m.modules() if isinstance(m, Sequential) else [m]


def linear(n_in, n_out):
    return module("Linear", in_features=n_in, out_features=n_out)


DEFAULTS = {
    "relu": module("ReLU", inplace=True),
    "leaky_relu": module("LeakyReLU", negative_slope=0.01),
    "elu": module("ELU", alpha=1.0),
    "tanh": module("Tanh"),
    "sigmoid": module("Sigmoid"),
    "softplus": module("Softplus", beta=1, threshold=20),
    "gelu": module("GELU", approximate="none"),
    "silu": module("SiLU"),
    "identity": module("Identity"),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_model_of_every_activation(name):
    model = interop.model_of(Sequential(linear(2, 3), DEFAULTS[name], linear(3, 1)))
    assert repr(model) == repr(nm.MLP([2, 3, 1], name))
    z = np.linspace(-2, 2, 9)
    np.testing.assert_array_equal(model.activations[0].f(z), ACTIVATIONS[name].f(z))


def test_model_of_nested_and_mixed():
    one = DEFAULTS["tanh"]
    net = Sequential(
        module("Flatten", start_dim=1),
        Sequential(linear(4, 3), one, linear(3, 3)),
        one,
        linear(3, 2),
        linear(2, 2),
        module("ELU", alpha=0.5),
        linear(2, 1),
    )
    model = interop.model_of(net)
    assert model.widths == (4, 3, 3, 2, 2, 1)
    assert [f.name for f in model.activations] == ["tanh", "tanh", "identity", "elu(0.5)"]
    assert model.activations[-1].f(np.array(-1.0)) == 0.5 * np.expm1(-1.0)


def test_model_of_leaky_relu_with_a_slope():
    f = interop.model_of(
        Sequential(linear(1, 1), module("LeakyReLU", negative_slope=0.2), linear(1, 1))
    ).activations[0]
    assert f.f(np.array(-1.0)) == -0.2


def test_model_of_parameters():
    model = interop.model_of(FORMS["flax"](random_layers([2, 3, 1])), "tanh")
    assert repr(model) == repr(nm.MLP([2, 3, 1], "tanh"))
    pairs = [(swapped(W), b) for W, b in random_layers([2, 3, 1])]
    model = interop.model_of(pairs, "sin", layout="out_in")
    assert repr(model) == repr(nm.MLP([2, 3, 1], "sin"))


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([linear(2, 3), module("Dropout")], "npmeta has no Dropout; known: Linear, BatchNorm1d"),
        ([linear(2, 3), DEFAULTS["relu"]], "an activation follows the last Linear"),
        ([DEFAULTS["relu"], linear(2, 3)], "before the first Linear"),
        ([linear(2, 3), *[DEFAULTS["relu"]] * 2, linear(3, 1)], "two activations"),
        ([DEFAULTS["identity"]], "no Linear"),
        ([linear(2, 3), module("GELU", approximate="tanh"), linear(3, 1)], "has approximate='none'"),
        ([linear(2, 3), module("Softplus", beta=2, threshold=20), linear(3, 1)], "has beta=1.0"),
        ([linear(2, 3), linear(4, 1)], "does not take"),
    ],
)
def test_no_model(modules, message):
    with pytest.raises(ValueError, match=message):
        interop.model_of(Sequential(*modules))


def test_no_model_of_what_is_no_sequential():
    with pytest.raises(ValueError, match=r"not a Module; pass activation="):
        interop.model_of(Module({}))


# --- normalised networks --------------------------------------------------------------------------


def norm_module(class_name, n, **settings):
    """A norm as far as interop looks, with PyTorch's settings, and scale and shift."""
    own = {
        "BatchNorm1d": {"track_running_stats": False, "training": True},
        "LayerNorm": {"normalized_shape": (n,)},
    }[class_name]
    weights = {"weight": Tensor(np.ones(n)), "bias": Tensor(np.zeros(n))}
    return module(class_name, **{"eps": 1e-5, **own, **weights, **settings})


def random_normalised(widths, T=None, seed=0):
    """Layers with their scales and shifts; the last has none."""
    rng = np.random.default_rng([seed, 1])
    *hidden, last = random_layers(widths, T, seed=seed)
    return [*((W, b, *rng.normal(size=(2, *b.shape))) for W, b in hidden), last]


def haiku_shape(v):
    """Of Haiku's batch norm: one axis more."""
    return v[..., None, :]


def torch_names(layers):
    """Of Linear, norm, activation, Linear, ...: three numbers for a hidden layer."""
    named = {}
    for l, (W, b, *norm) in enumerate(layers):
        named |= {f"{3 * l}.weight": swapped(W), f"{3 * l}.bias": b}
        if norm:
            named |= {f"{3 * l + 1}.weight": norm[0], f"{3 * l + 1}.bias": norm[1]}
            for name in ("running_mean", "running_var"):
                named[f"{3 * l + 1}.{name}"] = np.full_like(norm[0], 7)
            named[f"{3 * l + 1}.num_batches_tracked"] = np.array(3)
    return named


def flax_tree(layers, norm="LayerNorm"):
    tree = {}
    for l, (W, b, *scale_shift) in enumerate(layers):
        tree[f"Dense_{l}"] = {"bias": b, "kernel": W}
        if scale_shift:
            tree[f"{norm}_{l}"] = {"bias": scale_shift[1], "scale": scale_shift[0]}
    return dict(sorted(tree.items()))


def haiku_tree(layers, shaped=lambda v: v):
    tree = {}
    for l, (W, b, *norm) in enumerate(layers):
        number = f"_{l}" if l else ""
        tree[f"linear{number}"] = {"w": W, "b": b}
        if norm:
            tree[f"norm{number}"] = {"scale": shaped(norm[0]), "offset": shaped(norm[1])}
    return dict(sorted(tree.items()))


def keras_list(layers, moving=True):
    found = []
    for W, b, *norm in layers:
        found += [W, b, *norm]
        if norm and moving:
            found += [np.full(norm[0].shape[-1], 7.0), np.full(norm[0].shape[-1], 8.0)]
    return found


NORMALISED = {
    "state_dict": torch_names,
    "sorted_state_dict": lambda layers: dict(sorted(torch_names(layers).items())),
    "flax": lambda layers: {"params": flax_tree(layers)},
    "flax_batch": lambda layers: {
        "batch_stats": {
            f"BatchNorm_{l}": {"mean": norm[0] + 1, "var": norm[0] + 2}
            for l, (_, _, *norm) in enumerate(layers)
            if norm
        },
        "params": flax_tree(layers, "BatchNorm"),
    },
    "haiku_layer": haiku_tree,
    "haiku_batch": lambda layers: haiku_tree(layers, haiku_shape),
    "keras": keras_list,
    "list": lambda layers: keras_list(layers, moving=False),
    "own": lambda layers: [
        dict(zip(("w", "b", "gamma", "beta"), arrays, strict=False)) for arrays in layers
    ],
    "tensors": lambda layers: tensors(torch_names(layers)),
}


@pytest.mark.parametrize("form", NORMALISED)
@pytest.mark.parametrize("T", [None, 1, 3])
@pytest.mark.parametrize("widths", [[2, 3, 1], [3, 3, 3, 3], [2] * 14])
def test_normalised_there_and_back(form, T, widths):
    make = NORMALISED[form]
    layers = random_normalised(widths, T)
    model = nm.MLP(widths, norm="batch")
    theta = model.pack(layers)
    np.testing.assert_array_equal(interop.to_theta(make(layers), model), theta)
    for other in (None, 2):  # the numbers of ``like`` do not matter, nor whether it has a task axis
        like = make(random_normalised(widths, other, seed=1))
        np.testing.assert_array_equal(interop.to_theta(interop.from_theta(theta, like)), theta)


def test_running_statistics_are_left_as_they_are():
    layers = random_normalised([2, 3, 1])
    theta = 2 * interop.to_theta(keras_list(layers))
    back = interop.from_theta(theta, KerasModel(keras_list(layers)))
    assert_same(back, keras_list([[2 * a for a in arrays] for arrays in layers]))
    named = torch_names(layers)
    back = interop.from_theta(theta, named)
    assert list(back) == list(named)
    assert back["1.running_mean"] is named["1.running_mean"]


def test_gradients_of_a_normalised_module():
    layers = random_normalised([2, 3, 1])
    named = torch_names(layers)
    held = tensors(named)
    for name, array in named.items():
        held[name].grad = Tensor(2 * array)
    np.testing.assert_array_equal(interop.grad_of(held), 2 * interop.to_theta(named))


NORM_CASES = [("BatchNorm1d", "batch"), ("LayerNorm", "layer")]


@pytest.mark.parametrize(("class_name", "norm"), NORM_CASES)
def test_model_of_a_normalised_sequential(class_name, norm):
    net = Sequential(
        linear(2, 3),
        norm_module(class_name, 3),
        DEFAULTS["tanh"],
        Sequential(linear(3, 4), norm_module(class_name, 4)),
        DEFAULTS["relu"],
        linear(4, 1),
    )
    model = interop.model_of(net)
    assert repr(model) == repr(nm.MLP([2, 3, 4, 1], ["tanh", "relu"], norm=norm))
    assert interop.to_theta(net, model).size == model.n_params
    frozen = interop.model_of(net, adapt_norm=False)
    assert (frozen.norm, frozen.adapt_norm) == (norm, False)


def test_model_of_normalised_parameters():
    params = flax_tree(random_normalised([2, 3, 1]))
    model = interop.model_of(params, "tanh", norm="layer")
    assert repr(model) == repr(nm.MLP([2, 3, 1], "tanh", norm="layer"))
    with pytest.raises(ValueError, match="scales and shifts here; pass norm='batch' or norm='layer'"):
        interop.model_of(params, "tanh")
    with pytest.raises(ValueError, match="no scales and shifts here, for norm='batch'"):
        interop.model_of(random_layers([2, 3, 1]), "tanh", norm="batch")


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        ([norm_module("BatchNorm1d", 3, eps=1e-3)], "has eps=0.001, and npmeta's norms have 1e-05"),
        ([norm_module("LayerNorm", 3, bias=None)], "lacks a scale or a shift.*elementwise_affine=True"),
        ([norm_module("BatchNorm1d", 3, weight=None)], "lacks a scale or a shift.*: affine=True"),
        ([norm_module("LayerNorm", 3, normalized_shape=(2, 3))], "more than the units of a row"),
        (
            [norm_module("BatchNorm1d", 3, track_running_stats=True, training=False)],
            r"running statistics; npmeta has none.*: net\.train\(\), or track_running_stats=False",
        ),
        ([DEFAULTS["tanh"], norm_module("LayerNorm", 3)], "follows an activation"),
        ([norm_module("LayerNorm", 4)], r"the norm '1' \(4\) is not as wide as the hidden layer '0'"),
        (
            [norm_module("LayerNorm", 3), norm_module("LayerNorm", 3)],
            "every hidden layer is normalised",
        ),
    ],
)
def test_norms_that_are_not_npmetas(hidden, message):
    with pytest.raises(ValueError, match=message):
        interop.model_of(Sequential(linear(2, 3), *hidden, linear(3, 1)))


def test_norms_in_other_places():
    with pytest.raises(ValueError, match=r"'0' \(3\) should each follow a hidden layer"):
        interop.model_of(Sequential(norm_module("LayerNorm", 3), linear(3, 3), linear(3, 1)))
    one, other = norm_module("LayerNorm", 3), norm_module("BatchNorm1d", 3)
    net = Sequential(linear(2, 3), one, linear(3, 3), other, linear(3, 1))
    with pytest.raises(ValueError, match="not both in a network"):
        interop.model_of(net)
    in_training = norm_module("BatchNorm1d", 3, track_running_stats=True)
    assert interop.model_of(Sequential(linear(2, 3), in_training, linear(3, 1))).norm == "batch"


def test_norms_whose_names_have_no_numbers():
    """By the names of their layers, in any order, or by their sizes; else nobody knows."""

    def tree(names, widths):
        (W, b, scale, shift), (V, c, other, beta), (U, d) = random_normalised(widths)
        one, two = ({"scale": scale, "bias": shift}, {"scale": other, "bias": beta})
        dense = {
            "l0": {"kernel": W, "bias": b},
            "l1": {"kernel": V, "bias": c},
            "l2": {"kernel": U, "bias": d},
        }
        theta = nm.MLP(widths, norm="layer").pack(random_normalised(widths))
        return {**dense, names[1]: two, names[0]: one}, theta

    params, theta = tree(("z", "a"), [2, 3, 4, 1])
    np.testing.assert_array_equal(interop.to_theta(params), theta)
    params, _ = tree(("z", "a"), [2, 3, 3, 1])
    with pytest.raises(ValueError, match=r"which hidden layer each of the norms 'a' \(3\), 'z' \(3\)"):
        interop.to_theta(params)
    own = [
        dict(zip(("w", "b", "gamma", "beta"), arrays, strict=False))
        for arrays in random_normalised([3, 3, 3, 3])
    ]
    shuffled = {"l2": own[1], "l10": own[2], "l1": own[0]}
    model = nm.MLP([3, 3, 3, 3], norm="batch")
    expected = model.pack(random_normalised([3, 3, 3, 3]))
    np.testing.assert_array_equal(interop.to_theta(shuffled, model), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda named: named.pop("1.bias"), r"'1\.weight' has no bias beside it"),
        (
            lambda named: [named.pop(f"1.{name}") for name in ("weight", "bias")],
            r"'1\.running_mean', of a norm, and no scale and shift of one.*affine=True",
        ),
        (lambda named: named.update({"1.bias": np.ones(4)}), r"'1\.bias' of shape \(4,\) are no scale"),
    ],
)
def test_incomplete_norms(change, message):
    named = torch_names(random_normalised([2, 3, 1]))
    change(named)
    with pytest.raises(ValueError, match=message):
        interop.to_theta(named)
    tree = {"Dense_0": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}, "norm": {"scale": np.ones(3)}}
    with pytest.raises(ValueError, match=r"'norm\.scale' has no shift beside it"):
        interop.to_theta(tree)


def test_models_and_parameters_that_disagree_on_norms():
    layers = random_normalised([2, 3, 1])
    with pytest.raises(ValueError, match="there are scales and shifts here, and the model is MLP"):
        interop.to_theta(keras_list(layers), nm.MLP([2, 3, 1]))
    with pytest.raises(ValueError, match="there are no scales and shifts here, and the model is MLP"):
        interop.to_theta(random_layers([2, 3, 1]), nm.MLP([2, 3, 1], norm="layer"))
    sets = nm.MLP([2, 3, 1], norm="layer", adapt_norm=False, norm_sets=2)
    with pytest.raises(ValueError, match="one scale and shift for each layer"):
        interop.to_theta(keras_list(layers), sets)


def test_norms_of_keras_without_scale():
    """In the list their statistics would stand where scale and shift are looked for."""
    layers = random_normalised([2, 3, 1])
    model = KerasModel(keras_list(layers))
    model.layers = [module("BatchNormalization", epsilon=1e-5, scale=True, center=True, name="bn")]
    assert interop.model_of(model, "tanh").norm == "batch"
    model.layers[0].epsilon = 1e-3
    with pytest.raises(ValueError, match=r"bn has epsilon=0\.001, and npmeta's norms have 1e-05"):
        interop.model_of(model, "tanh")
    model.layers[0].scale = False
    with pytest.raises(ValueError, match="'bn' lacks a scale or a shift"):
        interop.to_theta(model)


# --- the examples ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["torch", "higher", "learn2learn", "jax"])
def test_a_diagnosis_takes_less_than_ten_lines(name):
    """With both imports of npmeta. The examples run in tests/peers; docs/interop.rst shows them."""
    path = Path(__file__).parent / "peers" / f"test_interop_{name}.py"
    body = ast.parse(path.read_text(encoding="utf-8")).body
    (function,) = (node for node in body if getattr(node, "name", None) == "diagnosis")
    assert function.end_lineno - function.lineno + 1 + 2 < 10
