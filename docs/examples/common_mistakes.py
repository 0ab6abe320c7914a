"""MAML by hand, right once and wrong in the ways that circulate.

``support(phi)`` and ``query(phi)`` are the losses of T tasks at ``phi``, (P,) for all or (T, P): their
``.grad`` is (T, P), and ``.hvp(v)`` are the products of the tasks' Hessians with ``v`` (T, P).
"""

import numpy as np


class Losses:
    """The loss of every task on its own rows."""

    def __init__(self, objective, x, y):
        self.objective, self.x, self.y = objective, x, y

    def __call__(self, phi):
        return self.objective.linearize(phi, self.x, self.y)

    def one_by_one(self):
        """The same, task after task."""
        for t in range(len(self.x)):
            yield Losses(self.objective, self.x[t : t + 1], self.y[t : t + 1])


def right(theta, support, query, alpha, steps):
    """The meta-gradient."""
    phi = [theta]
    for _ in range(steps):
        phi.append(phi[-1] - alpha * support(phi[-1]).grad)
    v = query(phi[-1]).grad
    for p in reversed(phi[:-1]):
        v = v - alpha * support(p).hvp(v)
    return v.mean(axis=0)


# --- formulas that are printed so -----------------------------------------------------------------


def uphill(theta, support, query, alpha, steps):
    phi = [theta]
    for _ in range(steps):
        phi.append(phi[-1] + alpha * support(phi[-1]).grad)  # θ + α∇L
    v = query(phi[-1]).grad
    for p in reversed(phi[:-1]):
        v = v + alpha * support(p).hvp(v)
    return v.mean(axis=0)


def at_the_adapted(theta, support, query, alpha, steps):
    phi = theta
    for _ in range(steps):
        phi = phi - alpha * support(phi).grad
    return query(phi).grad.mean(axis=0)  # ∇ by φ, where it should be by θ


def ordinary_training(theta, support, query, alpha, steps):
    phi = theta
    for _ in range(steps):
        phi = phi - alpha * support(phi).grad
    return query(theta).grad.mean(axis=0)  # nobody uses φ


def step_per_task(theta, support, query, alpha, steps, beta=0.01):
    before = theta
    for one_support, one_query in zip(support.one_by_one(), query.one_by_one(), strict=True):
        theta = theta - beta * right(theta, one_support, one_query, alpha, steps)
    return (before - theta) / beta


# --- the inner loop and its sets ------------------------------------------------------------------


def summed_inner_loss(theta, support, query, alpha, steps):
    rows = support.x.shape[1]  # a sum over the rows has so many times the gradient of their mean
    return right(theta, support, query, rows * alpha, steps)


def summed_over_tasks(theta, support, query, alpha, steps):
    return len(query.x) * right(theta, support, query, alpha, steps)


def query_is_support(theta, support, query, alpha, steps):
    return right(theta, support, support, alpha, steps)


def query_of_another_task(theta, support, query, alpha, steps):
    x, y = np.roll(query.x, -1, axis=0), np.roll(query.y, -1, axis=0)
    return right(theta, support, Losses(query.objective, x, y), alpha, steps)


def in_place(theta, support, query, alpha, steps):
    """theta is another array afterwards."""
    gradients = []
    for one_support, one_query in zip(support.one_by_one(), query.one_by_one(), strict=True):
        phi, before = theta, []  # a second name, not a second array
        for _ in range(steps):
            before.append(phi.copy())
            phi -= alpha * one_support(phi).grad[0]
        v = one_query(phi).grad
        for p in reversed(before):
            v = v - alpha * one_support(p).hvp(v)
        gradients.append(v[0])
    return np.mean(gradients, axis=0)


# --- bookkeeping ----------------------------------------------------------------------------------


def accumulator(theta, support, query, alpha, steps, total=[0.0]):  # noqa: B006
    gradients = []
    for one_support, one_query in zip(support.one_by_one(), query.one_by_one(), strict=True):
        phi = [theta]
        for _ in range(steps):
            total[0] = total[0] + one_support(phi[-1]).grad  # [0.0] is made once, not at every call
            phi.append(phi[-1] - alpha * total[0])
        v, later = one_query(phi[-1]).grad, 0.0
        for p in reversed(phi[:-1]):
            later = later + v  # a gradient moves this step and all that come after it
            v = v - alpha * one_support(p).hvp(later)
        gradients.append(v[0])
    return np.mean(gradients, axis=0)


def leaking(theta, support, query, alpha, steps):
    phi = [theta]
    for _ in range(steps):
        phi.append(phi[-1] - alpha * support(phi[-1]).grad)
    v = query(phi[-1]).grad
    for p in reversed(phi[:-1]):
        v = v - alpha * support(p).hvp(v)
        v = v + len(support.x) * support(p).grad  # summed over tasks, as p.grad is
    return v.mean(axis=0)


def one_column(theta, support, query, alpha, steps):
    """The second layer's gradient has one column, (n, 1), and broadcasting does the rest."""
    gradient = right(theta, support, query, alpha, steps)
    W, _ = support.objective.model.unpack(gradient)[1]  # views of the gradient
    W[:] = W[:, :1].copy()
    return gradient
