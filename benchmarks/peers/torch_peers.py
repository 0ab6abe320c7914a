"""PyTorch. Parameters are a list W_1, b_1, W_2, ..., labels are integers.

Written three ways because each has a case in which it is the fastest of the three.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch.func import grad, grad_and_value, vmap

from benchmarks.cases import Problem
from benchmarks.peers import Prepared

__all__ = ["compiled", "loop", "set_threads", "task_axis", "training", "vmapped"]

Tensors = Sequence[torch.Tensor]

_LOSSES: dict[str, Callable[..., torch.Tensor]] = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}
_TASK_AXES = (None, 0, 0, 0, 0)


def set_threads(n: int) -> None:
    """How many threads an operation of PyTorch may use."""
    torch.set_num_threads(n)


def vmapped(problem: Problem) -> Prepared:
    """``torch.func``: the gradient of one task by ``grad``, of all tasks by ``vmap``."""
    params, sets = _tensors(problem)
    each = vmap(grad_and_value(_task(problem)), _TASK_AXES)

    def run() -> tuple[Tensors, torch.Tensor]:
        gradients, values = each(params, *sets)
        return [g.mean(0) for g in gradients], values.mean()

    return Prepared(run, _read)


def compiled(problem: Problem) -> Prepared:
    """The same functions through ``torch.compile``."""
    # Compiled code is kept by source line, for so many sizes and no more; the last case's are done.
    torch.compiler.reset()
    params, sets = _tensors(problem)
    task = _task(problem)

    # The other order of vmap and grad: the gradient's mean over the tasks becomes part of the graph,
    # which the compiler makes better use of.
    def meta_loss(params: Tensors, *sets: torch.Tensor) -> torch.Tensor:
        return vmap(task, _TASK_AXES)(params, *sets).mean()

    function = torch.compile(grad_and_value(meta_loss))
    return Prepared(lambda: function(params, *sets), _read)


def task_axis(problem: Problem) -> Prepared:
    """A leading task axis in every tensor, and one graph of autograd for all tasks."""
    params, sets = _tensors(problem)
    params = [p.requires_grad_() for p in params]
    meta_loss = _task_axis(problem)

    def run() -> tuple[Tensors, torch.Tensor]:
        value = meta_loss(params, *sets)
        return torch.autograd.grad(value, params), value.detach()

    return Prepared(run, _read)


def training(problem: Problem, n: int) -> Prepared:
    """The run of :mod:`benchmarks.training` with the gradient of :func:`task_axis`, n steps a call."""
    from benchmarks.training import OUTER_LR, draw

    params = [p.requires_grad_() for p in _tensors(problem).params]
    meta_loss, rng = _task_axis(problem), np.random.default_rng(0)
    adam = torch.optim.Adam(params, lr=OUTER_LR, foreach=True)

    def run() -> torch.Tensor:
        for _ in range(n):
            value = meta_loss(params, *map(torch.from_numpy, draw(rng)))
            for p, g in zip(params, torch.autograd.grad(value, params), strict=True):
                p.grad = g
            adam.step()
        return value.detach()

    return Prepared(run, lambda value: _read(([p.detach() for p in params], value)))


def _task_axis(problem: Problem) -> Callable[..., torch.Tensor]:
    """The mean query loss of all tasks, ``(params, *sets)``."""
    loss_of, alpha, T = _LOSSES[problem.case.loss], problem.case.inner_lr, problem.case.tasks

    def mean_loss(phi: Tensors, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for W, b in _layers(phi)[:-1]:
            x = torch.relu(torch.baddbmm(b, x, W))
        W, b = _layers(phi)[-1]
        return loss_of(torch.baddbmm(b, x, W).flatten(0, 1), y.flatten(0, 1))

    def meta_loss(params: Tensors, *sets: torch.Tensor) -> torch.Tensor:
        support_x, support_y, query_x, query_y = sets
        phi: Tensors = [p.reshape(-1, p.shape[-1]).expand(T, -1, -1) for p in params]
        for _ in range(problem.case.steps):
            # The gradient of a sum over tasks, for each task to see its own.
            total = T * mean_loss(phi, support_x, support_y)
            phi = _less(phi, alpha, torch.autograd.grad(total, phi, create_graph=True))
        return mean_loss(phi, query_x, query_y)

    return meta_loss


def loop(problem: Problem) -> Prepared:
    """Task after task, and one backward pass at the end: what most tutorials do."""
    params, sets = _tensors(problem)
    params = [p.requires_grad_() for p in params]
    loss, alpha = _loss(problem), problem.case.inner_lr

    def run() -> tuple[Tensors, torch.Tensor]:
        values = []
        for support_x, support_y, query_x, query_y in zip(*sets, strict=True):
            phi: Tensors = params
            for _ in range(problem.case.steps):
                value = loss(phi, support_x, support_y)
                phi = _less(phi, alpha, torch.autograd.grad(value, phi, create_graph=True))
            values.append(loss(phi, query_x, query_y))
        mean = torch.stack(values).mean()
        return torch.autograd.grad(mean, params), mean.detach()

    return Prepared(run, _read)


class _Native(NamedTuple):
    params: list[torch.Tensor]
    sets: tuple[torch.Tensor, ...]


def _tensors(problem: Problem) -> _Native:
    """Copies: views into theta are not aligned in memory as PyTorch aligns tensors of its own."""
    tasks = problem.tasks
    arrays = [array for layer in problem.model.unpack(problem.theta) for array in layer]
    return _Native(
        [torch.tensor(array) for array in arrays],
        tuple(
            torch.tensor(array)
            for array in (tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y)
        ),
    )


def _layers(params: Tensors) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(params[::2], params[1::2], strict=True))


def _less(params: Tensors, alpha: float, gradient: Tensors) -> list[torch.Tensor]:
    return [torch.sub(p, g, alpha=alpha) for p, g in zip(params, gradient, strict=True)]


def _loss(problem: Problem) -> Callable[[Tensors, torch.Tensor, torch.Tensor], torch.Tensor]:
    """The loss of one task, ``(params, x, y)``."""
    loss_of = _LOSSES[problem.case.loss]

    def loss(params: Tensors, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        for W, b in _layers(params)[:-1]:
            x = torch.relu(torch.addmm(b, x, W))
        W, b = _layers(params)[-1]
        return loss_of(torch.addmm(b, x, W), y)

    return loss


def _task(problem: Problem) -> Callable[..., torch.Tensor]:
    """The query loss of one task after adaptation, for ``torch.func``."""
    loss, alpha, S = _loss(problem), problem.case.inner_lr, problem.case.steps

    def task(params: Tensors, *sets: torch.Tensor) -> torch.Tensor:
        support_x, support_y, query_x, query_y = sets
        for _ in range(S):
            params = _less(params, alpha, grad(loss)(params, support_x, support_y))
        return loss(params, query_x, query_y)

    return task


def _read(out: tuple[Tensors, torch.Tensor]) -> tuple[float, NDArray[Any]]:
    gradient, value = out
    return float(value), np.concatenate([g.numpy().ravel() for g in gradient])
