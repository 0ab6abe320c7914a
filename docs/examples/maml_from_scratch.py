"""MAML (Finn, Abbeel and Levine 2017) with its exact, second-order meta-gradient, in plain NumPy."""

import numpy as np


def unpack(theta, n_0=1, n_1=40, n_2=1):  # (P,) -> W1 (n_0, n_1), b1 (n_1,), W2 (n_1, n_2), b2 (n_2,)
    W1, b1, W2, b2 = np.split(theta, np.cumsum([n_0 * n_1, n_1, n_1 * n_2]))
    return W1.reshape(n_0, n_1), b1, W2.reshape(n_1, n_2), b2


def forward(theta, x):  # x (rows, n_0) -> hidden units a (rows, n_1), outputs o (rows, n_2)
    W1, b1, W2, b2 = unpack(theta)
    a = np.tanh(x @ W1 + b1)
    return a, a @ W2 + b2


def gradient(theta, x, y):  # backpropagation: ∇L (P,) of the loss L = mean of (o - y)²
    W2, (a, o) = unpack(theta)[2], forward(theta, x)
    d2 = 2 * (o - y) / o.size  # dL/do (rows, n_2)
    d1 = (d2 @ W2.T) * (1 - a**2)  # dL/dz (rows, n_1): a = tanh(z) has the slope 1 - a²
    return np.concatenate([x.T @ d1, sum(d1), a.T @ d2, sum(d2)], axis=None)


def hvp(theta, x, y, v):  # R-operator (Pearlmutter 1994), gradient's lines differentiated: H v (P,)
    W2, (a, o), (V1, v1, V2, v2) = unpack(theta)[2], forward(theta, x), unpack(v)
    a_dot = (1 - a**2) * (x @ V1 + v1)  # a dot is a derivative along v: theta_dot = v, x_dot = 0
    d2, d2_dot = 2 * (o - y) / o.size, 2 * (a_dot @ W2 + a @ V2 + v2) / o.size
    d1_dot = (d2_dot @ W2.T + d2 @ V2.T) * (1 - a**2) + (d2 @ W2.T) * (-2 * a * a_dot)
    return np.concatenate([x.T @ d1_dot, sum(d1_dot), a_dot.T @ d2 + a.T @ d2_dot, sum(d2_dot)], None)


def adapt(theta, x, y, alpha, steps):  # the inner loop and its trajectory: phi_0 = theta .. phi_steps
    phi = [theta]
    for k in range(steps):
        phi.append(phi[k] - alpha * gradient(phi[k], x, y))
    return phi


def meta_gradient(theta, tasks, alpha, steps):  # of the mean over tasks of L_query(phi_steps), by theta
    total = np.zeros_like(theta)
    for support, query in tasks:  # each (x, y)
        phi = adapt(theta, *support, alpha, steps)
        cotangent = gradient(phi[steps], *query)  # lambda_k = dL_query/dphi_k, first of k = steps
        for k in reversed(range(steps)):  # dphi_{k+1} = (I - alpha H(phi_k)) dphi_k, and H = Hᵀ:
            cotangent = cotangent - alpha * hvp(phi[k], *support, cotangent)
        total += cotangent  # lambda_0, for phi_0 = theta
    return total / len(tasks)


if __name__ == "__main__":  # the outer loop: gradient descent, a meta-batch of 10 sine waves at a time
    rng, alpha, beta, steps = np.random.default_rng(0), 0.02, 0.05, 3
    x = rng.uniform(-5, 5, (6210, 2, 10, 1))  # tasks, support and query, rows, n_0
    y = rng.uniform(0.1, 5, (6210, 1, 1, 1)) * np.sin(x + rng.uniform(0, np.pi, (6210, 1, 1, 1)))
    train, test = np.split(np.stack([x, y], axis=2), [6010])
    theta = 0.5 * rng.normal(size=40 + 40 + 40 + 1)
    for i, meta_batch in enumerate(np.split(train, 601)):
        if i % 200 == 0:
            errors = [forward(adapt(theta, *s, alpha, steps)[-1], x)[1] - y for s, (x, y) in test]
            print(f"{i} meta-updates, {steps} inner steps: query loss {np.square(errors).mean():.2f}")
        theta = theta - beta * meta_gradient(theta, meta_batch, alpha, steps)
