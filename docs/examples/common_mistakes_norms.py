"""MAML in PyTorch on networks with norms, right once and wrong in the ways that circulate.

``net`` is a module with BatchNorm1d in it, ``tasks`` a list of (x, y, query_x, query_y). What each
function has computed is in the ``.grad`` of the module's parameters.
"""

import torch
from torch.func import functional_call, grad, vmap
from torch.nn.functional import mse_loss


def loss(net, phi, x, y):
    return mse_loss(functional_call(net, phi, (x,)), y)


def adapted(net, x, y, alpha, steps):
    phi = dict(net.named_parameters())
    for _ in range(steps):
        grads = torch.autograd.grad(loss(net, phi, x, y), list(phi.values()), create_graph=True)
        phi = {name: p - alpha * g for (name, p), g in zip(phi.items(), grads, strict=True)}
    return phi


def right(net, tasks, alpha, steps):
    net.train()  # every pass by the mean and variance of its own rows
    for x, y, query_x, query_y in tasks:
        phi = adapted(net, x, y, alpha, steps)
        (loss(net, phi, query_x, query_y) / len(tasks)).backward()


def eval_mode(net, tasks, alpha, steps):
    net.eval()  # by running statistics, which in a new net are 0 and 1
    for x, y, query_x, query_y in tasks:
        phi = adapted(net, x, y, alpha, steps)
        (loss(net, phi, query_x, query_y) / len(tasks)).backward()


def running_statistics(net, tasks, alpha, steps):
    for x, y, query_x, query_y in tasks:
        net.train()
        phi = adapted(net, x, y, alpha, steps)  # moves the running statistics
        net.eval()  # "for validation": by those of this task and the ones before
        (loss(net, phi, query_x, query_y) / len(tasks)).backward()


def over_tasks_by_vmap(net, tasks, alpha, steps):
    def query_loss(x, y, query_x, query_y):
        phi = dict(net.named_parameters())
        for _ in range(steps):
            grads = grad(lambda phi: loss(net, phi, x, y))(phi)
            phi = {name: p - alpha * grads[name] for name, p in phi.items()}
        return loss(net, phi, query_x, query_y)

    sets = (torch.stack(part) for part in zip(*tasks, strict=True))
    vmap(query_loss)(*sets).mean().backward()  # vmap of F.batch_norm: the values are right
