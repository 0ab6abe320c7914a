"""Weight lists of Keras to theta and back."""

import os

import numpy as np
import pytest

from npmeta import interop
from tests.helpers import assert_close

os.environ.setdefault("KERAS_BACKEND", "numpy")
keras = pytest.importorskip("keras")

Activation = keras.layers.Activation

# Keras's own, on its NumPy backend.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def network(*layers):
    return keras.Sequential([keras.Input((2,)), *layers])


def test_weights():
    Dense = keras.layers.Dense
    net = network(Dense(8, "tanh"), Dense(8, "tanh"), Dense(1))
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    model, theta = interop.model_of(net, "tanh"), interop.to_theta(net)
    # Both sides round at 6e-8, some hundred times.
    assert_close(model.apply(theta, x), keras.ops.convert_to_numpy(net(x)), 2e-6)
    for params in (net.get_weights(), net.trainable_variables):
        np.testing.assert_array_equal(interop.to_theta(params), theta)
    net.set_weights(interop.from_theta(2 * theta, like=net))
    np.testing.assert_array_equal(interop.to_theta(net), 2 * theta)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_normalised_weights(norm):
    kind = {"batch": "BatchNormalization", "layer": "LayerNormalization"}[norm]
    Dense, Norm = keras.layers.Dense, getattr(keras.layers, kind)
    hidden = [part for n in (8, 6) for part in (Dense(n), Norm(epsilon=1e-5), Activation("tanh"))]
    net = network(*hidden, Dense(1))
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    theta = interop.to_theta(net)
    theta = theta + np.random.default_rng(1).normal(size=theta.size).astype(np.float32)
    before = net.get_weights()
    net.set_weights(interop.from_theta(theta, like=net))
    np.testing.assert_array_equal(interop.to_theta(net), theta)
    if norm == "batch":  # mean and variance of what is left alone
        np.testing.assert_array_equal(net.get_weights()[4:6], before[4:6])
    model = interop.model_of(net, "tanh")
    assert model.norm == norm
    # Both sides round at 6e-8, some hundred times, and divide by a σ of a few rows.
    assert_close(model.apply(theta, x), keras.ops.convert_to_numpy(net(x, training=True)), 2e-5)
    for params in (net.get_weights(), net.trainable_variables):
        np.testing.assert_array_equal(interop.to_theta(params, model), theta)


def test_norms_that_are_not_npmetas():
    Dense, BatchNormalization = keras.layers.Dense, keras.layers.BatchNormalization
    net = network(Dense(3), BatchNormalization(), Dense(1))
    with pytest.raises(ValueError, match=r"has epsilon=0\.001, and npmeta's norms have 1e-05"):
        interop.model_of(net, "tanh")
    net = network(Dense(3), BatchNormalization(scale=False, center=False), Dense(1))
    with pytest.raises(ValueError, match="lacks a scale or a shift"):
        interop.to_theta(net)


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [keras.layers.Dense(3, use_bias=False), keras.layers.Dense(1, use_bias=False)],
    ],
)
def test_not_a_network(layers):
    with pytest.raises(ValueError, match="expected a matrix and a bias for each layer"):
        interop.to_theta(network(*layers()))
