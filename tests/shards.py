"""Algorithms for the tests of npmeta.training.parallel, in a module that workers import in no time."""

import os
import signal
import time
from multiprocessing import parent_process
from pathlib import Path

import numpy as np

import npmeta as nm


def digest(out):
    """Everything in a MetaGradient, bit for bit."""
    grads = {name: (grad.dtype, grad.shape, grad.tobytes()) for name, grad in out.grads.items()}
    by_task = {name: values.tobytes() for name, values in out.by_task.items()}
    return out.loss.hex(), grads, out.task_loss.tobytes(), out.hessian, by_task


class Means:
    """No network, no theta alone, and meta-parameters of names and shapes that MAML does not have."""

    def meta_gradient(self, params, tasks):
        x = tasks.query_x.mean((1, 2))
        grads = {"scale": np.array(x.mean()), "theta": np.outer(x, x)[:2, :3].astype(np.float32)}
        return nm.MetaGradient(float(x.mean()), grads, x, "supplied")

    def evaluate(self, params, tasks, steps=None):
        return nm.Scores(tasks.query_x.mean((1, 2))[:, None] * params["scale"], None)


class Deadly(nm.MAML):
    """MAML whose worker is killed in the first calls that have task 9, as often as ``deaths`` says."""

    folder: Path
    deaths: int

    def meta_gradient(self, params, tasks):
        out = super().meta_gradient(params, tasks)
        if parent_process() is not None and tasks.query_x[0, 0, 0] == 9:
            n = len(list(self.folder.iterdir()))
            if n < self.deaths:
                (self.folder / str(n)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return out


class Picky(nm.MAML):
    """MAML with errors of its own."""

    def meta_gradient(self, params, tasks):
        first = tasks.query_x[0, 0, 0]
        if first >= 6:
            raise Odd("six or more", int(first))
        return super().meta_gradient(params, tasks)


class Odd(ArithmeticError):
    """Cannot be unpickled: it wants two arguments and keeps one."""

    def __init__(self, message, number):
        super().__init__(f"{message}: {number}")


class Slow(Means):
    """Takes a minute in a worker."""

    def meta_gradient(self, params, tasks):
        if parent_process() is not None:
            time.sleep(60)
        return super().meta_gradient(params, tasks)


def numbered(n_tasks, n_in=1):
    """Tasks whose first number is their index, so that an algorithm knows which it has."""
    rng = np.random.default_rng(n_tasks)
    x, y = rng.normal(size=(n_tasks, 8, n_in)), rng.normal(size=(n_tasks, 8, 1))
    x[:, 3, 0] = np.arange(n_tasks)
    return nm.TaskBatch(x[:, :3], y[:, :3], x[:, 3:], y[:, 3:])
