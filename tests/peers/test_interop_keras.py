"""Weight lists of Keras to theta and back."""

import os

import numpy as np
import pytest

from npmeta import interop
from tests.helpers import assert_close

os.environ.setdefault("KERAS_BACKEND", "numpy")
keras = pytest.importorskip("keras")

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


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [keras.layers.Dense(3), keras.layers.BatchNormalization()],
        lambda: [keras.layers.Dense(3, use_bias=False), keras.layers.Dense(1, use_bias=False)],
    ],
)
def test_not_a_network(layers):
    with pytest.raises(ValueError, match="expected a matrix and a bias for each layer"):
        interop.to_theta(network(*layers()))
