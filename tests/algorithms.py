"""What the tests of algorithms share: meta-gradients by complex step of an algorithm's evaluation."""

import numpy as np
import pytest

import npmeta as nm
from tests.helpers import H, central_difference

# Measured, the worst of hundreds of cases is 2e-15, some roundings of 1e-16; a wrong formula is wrong
# in the first digits.
TIGHT = 1e-13


def with_noise(params, seed: int = 0, size: float = 0.1):
    """Parameters of no symmetry: biases that are not zero, step sizes that differ."""
    rng = np.random.default_rng(seed)
    return {
        name: array + size * np.abs(array).mean() * rng.normal(size=array.shape)
        for name, array in params.items()
    }


def by_complex_step(algorithm, params, tasks, step_weights=None) -> dict[str, np.ndarray]:
    """d/dp of the mean query loss after all steps, or of the sum of losses weighed by step.

    Im L(p + ih e_j)/h for every entry j: no adjoint and no Hessian product has a part in it.
    """
    grads = {}
    at = {name: array.astype(complex) for name, array in params.items()}
    for name, array in at.items():
        derivative = np.empty(array.size)
        for j in range(array.size):
            moved = array.flatten()
            moved[j] += 1j * H
            loss = algorithm.evaluate({**at, name: moved.reshape(array.shape)}, tasks).loss
            of_task = loss[:, -1] if step_weights is None else loss[:, 1:] @ step_weights
            derivative[j] = of_task.imag.mean() / H
        grads[name] = derivative.reshape(array.shape)
    return grads


def one_by_one(algorithm, params, tasks) -> nm.MetaGradient:
    """The meta-gradient of every task alone, joined."""
    return nm.MetaGradient.join(
        [algorithm.meta_gradient(params, tasks[t : t + 1]) for t in range(len(tasks))]
    )


def assert_loss_changes_as_gradient_says(algorithm, params, tasks) -> None:
    """Along a random direction, in real arithmetic: nothing is right for complex numbers alone."""
    rng = np.random.default_rng(1)
    v = {key: 0.1 * rng.normal(size=array.shape) for key, array in params.items()}

    def loss(t):
        moved = {key: array + t * v[key] for key, array in params.items()}
        return algorithm.evaluate(moved, tasks).loss[:, -1].mean()

    grads = algorithm.meta_gradient(params, tasks).grads
    slope = sum((grads[key] * v[key]).sum() for key in params)
    # Truncation of h² and rounding of 1e-16 / h: both near 1e-10, with some margin.
    assert central_difference(loss, 0.0, 1.0, 1e-5) == pytest.approx(slope, rel=1e-7, abs=1e-8)
