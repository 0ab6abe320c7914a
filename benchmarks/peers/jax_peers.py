"""JAX. Parameters are a list of (W, b), data are arguments of the compiled function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import Problem
from benchmarks.peers import Prepared

__all__ = ["flat", "meta_loss", "mixed_mode", "native", "vmapped"]

# Without it JAX makes float32 of float64. Arrays that are float32 stay so.
jax.config.update("jax_enable_x64", True)

_TASK_AXES = (None, 0, 0, 0, 0)


def vmapped(problem: Problem) -> Prepared:
    """``jit(value_and_grad(vmap(task)))``: the textbook way."""
    return _prepared(problem, jax.value_and_grad(meta_loss(problem)))


def meta_loss(problem: Problem) -> Callable[..., Any]:
    """The mean query loss of all tasks, ``(params, *sets)``, by ``vmap``."""
    loss, alpha, S = _loss(problem), problem.case.inner_lr, problem.case.steps

    def task(params: Any, support_x: Any, support_y: Any, query_x: Any, query_y: Any) -> Any:
        for _ in range(S):
            params = _less(params, alpha, jax.grad(loss)(params, support_x, support_y))
        return loss(params, query_x, query_y)

    return lambda params, *sets: jax.vmap(task, _TASK_AXES)(params, *sets).mean()


def mixed_mode(problem: Problem) -> Prepared:
    """The adjoint by hand, its Hessian products forward over reverse (as MixFlow-MG, ICML 2025)."""
    loss, alpha, S = _loss(problem), problem.case.inner_lr, problem.case.steps

    def task(params: Any, support_x: Any, support_y: Any, query_x: Any, query_y: Any) -> Any:
        def gradient(params: Any) -> Any:
            return jax.grad(loss)(params, support_x, support_y)

        points = [params]
        for _ in range(S):
            points.append(_less(points[-1], alpha, gradient(points[-1])))
        value, cotangent = jax.value_and_grad(loss)(points.pop(), query_x, query_y)
        for point in reversed(points):
            product = jax.jvp(gradient, (point,), (cotangent,))[1]
            cotangent = _less(cotangent, alpha, product)
        return value, cotangent

    def meta_gradient(params: Any, *sets: Any) -> Any:
        each = jax.vmap(task, _TASK_AXES)(params, *sets)
        return jax.tree.map(lambda leaf: leaf.mean(0), each)

    return _prepared(problem, meta_gradient)


def _less(params: Any, alpha: float, gradient: Any) -> Any:
    return jax.tree.map(lambda p, g: p - alpha * g, params, gradient)


def _loss(problem: Problem) -> Callable[[Any, Any, Any], Any]:
    """The loss of one task, ``(params, x, y)``; labels come as one-hot rows."""

    def outputs(params: Any, x: Any) -> Any:
        *hidden, (W, b) = params
        for V, c in hidden:
            x = jax.nn.relu(x @ V + c)
        return x @ W + b

    def mse(params: Any, x: Any, y: Any) -> Any:
        return ((outputs(params, x) - y) ** 2).mean()

    def cross_entropy(params: Any, x: Any, y: Any) -> Any:
        return -(y * jax.nn.log_softmax(outputs(params, x))).sum(-1).mean()

    return {"mse": mse, "cross_entropy": cross_entropy}[problem.case.loss]


def native(problem: Problem) -> tuple[Any, list[Any]]:
    """Parameters and sets in JAX's own arrays, labels as one-hot rows."""
    tasks, n_out = problem.tasks, problem.case.widths[-1]

    def targets(y: NDArray[Any]) -> NDArray[Any]:
        return np.eye(n_out, dtype=problem.theta.dtype)[y] if y.dtype.kind == "i" else y

    params = [(jnp.array(W), jnp.array(b)) for W, b in problem.model.unpack(problem.theta)]
    sets = (tasks.support_x, targets(tasks.support_y), tasks.query_x, targets(tasks.query_y))
    return params, [jnp.array(array) for array in sets]


def flat(params: Any) -> NDArray[Any]:
    """Parameters, or a gradient, in npmeta's order."""
    return np.concatenate([np.ravel(leaf) for layer in params for leaf in layer])


def _prepared(problem: Problem, function: Callable[..., Any]) -> Prepared:
    """``function(params, *sets) -> (loss, gradient)``, compiled."""
    params, sets = native(problem)
    compiled = jax.jit(function)

    def planned() -> int:
        analysis = compiled.lower(params, *sets).compile().memory_analysis()
        return int(analysis.temp_size_in_bytes + analysis.output_size_in_bytes)

    return Prepared(
        lambda: jax.block_until_ready(compiled(params, *sets)),
        lambda out: (float(out[0]), flat(out[1])),
        planned,
    )
