"""Implicit MAML by hand, right once and wrong in the ways that circulate.

The inner loop minimises L^S(φ) + (λ/2)‖φ − θ‖², and the meta-gradient solves (I + H/λ) v = ∇L^Q(φ) at
the minimum, H = ∇²L^S(φ) (Rajeswaran et al. 2019). Losses are as in ``common_mistakes``.
"""

import numpy as np


def solve(product, b, iterations, wrong_residual=False):
    """x with product(x) = b by conjugate gradients, for every row of b."""

    def dot(u, v):
        return (u * v).sum(axis=-1, keepdims=True)

    x, r, p = np.zeros_like(b), b, b
    for _ in range(iterations):
        Ap = product(p)
        step = dot(r, r) / dot(p, Ap)
        x = x + step * p
        new = r - (Ap if wrong_residual else step * Ap)
        p = new + dot(new, new) / dot(r, r) * p
        r = new
    return x


def adapted(theta, support, lam, alpha, steps, proximal_once=False):
    phi = theta
    for s in range(steps):
        pull = lam * (phi - theta) if s == 0 or not proximal_once else 0.0
        phi = phi - alpha * (support(phi).grad + pull)
    return phi


def right(theta, support, query, lam, alpha, steps, iterations):
    phi = adapted(theta, support, lam, alpha, steps)
    at = support(phi)
    v = solve(lambda v: v + at.hvp(v) / lam, query(phi).grad, iterations)
    return v.mean(axis=0)


def unscaled_residual(theta, support, query, lam, alpha, steps, iterations):
    """r − Ap in place of r − step · Ap."""
    phi = adapted(theta, support, lam, alpha, steps)
    at = support(phi)
    v = solve(lambda v: v + at.hvp(v) / lam, query(phi).grad, iterations, wrong_residual=True)
    return v.mean(axis=0)


def other_damping(theta, support, query, lam, alpha, steps, iterations, c=1.0):
    phi = adapted(theta, support, lam, alpha, steps)
    at = support(phi)
    v = solve(lambda v: (1 + c) * v + at.hvp(v) / (lam + 10), query(phi).grad, iterations)
    return v.mean(axis=0)


def proximal_once(theta, support, query, lam, alpha, steps, iterations):
    """In the first step, where φ = θ and the term is zero."""
    phi = adapted(theta, support, lam, alpha, steps, proximal_once=True)
    at = support(phi)
    v = solve(lambda v: v + at.hvp(v) / lam, query(phi).grad, iterations)
    return v.mean(axis=0)
