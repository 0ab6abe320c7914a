"""What the examples of interop share: small tasks."""

import numpy as np

import npmeta as nm

# Both sides round some hundred operations, each by 1e-16 of the largest term, in different orders.
TIGHT = 1e-12

WIDTHS = [2, 8, 8, 1]


def some_tasks() -> tuple[np.ndarray, ...]:
    """Three tasks: ``x (3, 5, 2)``, ``y (3, 5, 1)``, ``query_x (3, 7, 2)``, ``query_y (3, 7, 1)``."""
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(3, rows, n)) for rows in (5, 7) for n in (2, 1))


def exact(theta, tasks) -> np.ndarray:
    """npmeta's meta-gradient of what the examples do: a tanh network, mse, steps of 0.1."""
    maml = nm.MAML(nm.MLP(WIDTHS, "tanh"), "mse", inner_lr=0.1, inner_steps=3)
    return maml.meta_gradient(theta, nm.TaskBatch(*tasks)).grad
