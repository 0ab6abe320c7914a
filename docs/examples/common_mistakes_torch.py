"""MAML in PyTorch with the mistakes that need an autodiff framework to be made.

``theta`` is a list of leaves, ``tasks`` a list of (x, y, query_x, query_y), ``loss(phi, x, y)`` one
number. What each function has computed is in the ``.grad`` of theta.
"""

import copy

import torch


def no_create_graph(theta, tasks, loss, alpha, steps):
    for x, y, query_x, query_y in tasks:
        phi = theta
        for _ in range(steps):
            grads = torch.autograd.grad(loss(phi, x, y), phi)  # without create_graph=True
            phi = [p - alpha * g for p, g in zip(phi, grads, strict=True)]
        (loss(phi, query_x, query_y) / len(tasks)).backward()


def written_into_data(theta, tasks, loss, alpha, steps):
    for x, y, query_x, query_y in tasks:
        for _ in range(steps):
            grads = torch.autograd.grad(loss(theta, x, y), theta, create_graph=True)
            for p, g in zip(theta, grads, strict=True):
                p.data -= alpha * g  # no graph, and the next task begins here
        (loss(theta, query_x, query_y) / len(tasks)).backward()


def adapted_copy(theta, tasks, loss, alpha, steps):
    for x, y, query_x, query_y in tasks:
        phi = copy.deepcopy(theta)
        optimizer = torch.optim.SGD(phi, lr=alpha)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(phi, x, y).backward()
            optimizer.step()
        loss(phi, query_x, query_y).backward()  # into phi[i].grad; theta[i].grad stays None


def backward_as_well(theta, tasks, loss, alpha, steps):
    for x, y, query_x, query_y in tasks:
        phi = theta
        for _ in range(steps):
            inner = loss(phi, x, y)
            inner.backward(retain_graph=True)  # adds to theta[i].grad
            grads = torch.autograd.grad(inner, phi, create_graph=True)
            phi = [p - alpha * g for p, g in zip(phi, grads, strict=True)]
        (loss(phi, query_x, query_y) / len(tasks)).backward()


def mutable_default(theta, tasks, loss, alpha, steps):
    def moved(phi, grads, total={}):  # noqa: B006
        for i, g in enumerate(grads):
            total[i] = total.get(i, 0.0) + g
        return [p - alpha * total[i] for i, p in enumerate(phi)]

    for x, y, query_x, query_y in tasks:
        phi = theta
        for _ in range(steps):
            grads = torch.autograd.grad(loss(phi, x, y), phi)
            phi = moved(phi, grads)
        (loss(phi, query_x, query_y) / len(tasks)).backward()
