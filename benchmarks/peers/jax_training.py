"""A training run in JAX, three times: tasks passed in, tasks sampled inside, and everything inside."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import Problem
from benchmarks.peers import Prepared
from benchmarks.peers.jax_peers import flat, meta_loss, native
from benchmarks.training import CASE, OUTER_LR, draw

__all__ = ["fed", "sampling", "scanned"]


class State(NamedTuple):
    """Parameters, Adam's moments, and the number of iterations made."""

    params: Any
    m: Any
    v: Any
    t: Any


def fed(problem: Problem, n: int) -> Prepared:
    """A jit-compiled step that is called with the tasks of every iteration."""
    step = jax.jit(_step(problem), donate_argnums=0)
    rng = np.random.default_rng(0)
    return _run(problem, lambda state: _repeat(n, lambda s: step(s, draw(rng)), state))


def sampling(problem: Problem, n: int) -> Prepared:
    """A jit-compiled step that samples its own tasks."""
    step = jax.jit(_with_sampling(_step(problem)), donate_argnums=0)
    return _run(problem, lambda state: _repeat(n, step, state))


def scanned(problem: Problem, n: int) -> Prepared:
    """One jit-compiled call for n steps."""
    step = _with_sampling(_step(problem))

    @partial(jax.jit, donate_argnums=0)
    def steps(state: State) -> tuple[State, Any]:
        state, losses = jax.lax.scan(lambda state, _: step(state), state, length=n)
        return state, losses[-1]

    return _run(problem, steps)


def _step(problem: Problem) -> Callable[[State, Any], tuple[State, Any]]:
    """One iteration: the meta-gradient, then Adam (Kingma & Ba 2015, algorithm 1)."""
    value_and_grad = jax.value_and_grad(meta_loss(problem))

    def step(state: State, sets: Any) -> tuple[State, Any]:
        loss, g = value_and_grad(state.params, *sets)
        t = state.t + 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state.m, g)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state.v, g)
        rate, root = OUTER_LR / (1 - 0.9**t), jnp.sqrt(1 - 0.999**t)
        params = jax.tree.map(
            lambda p, m, v: p - rate * m / (jnp.sqrt(v) / root + 1e-8), state.params, m, v
        )
        return State(params, m, v, t), loss

    return step


def _with_sampling(step: Callable[[State, Any], tuple[State, Any]]) -> Callable[[State], Any]:
    key, K = jax.random.key(0), CASE.support_rows
    shape = (CASE.tasks, 2 + K + CASE.query_rows)

    def sample(t: Any) -> Any:
        u = jax.random.uniform(jax.random.fold_in(key, t.astype(jnp.int32)), shape, jnp.float32)
        amplitude, phase = 0.1 + 4.9 * u[:, :1], math.pi * u[:, 1:2]
        x = 10 * u[:, 2:] - 5
        y = amplitude * jnp.sin(x + phase)
        x, y = x[..., None], y[..., None]
        return x[:, :K], y[:, :K], x[:, K:], y[:, K:]

    return lambda state: step(state, sample(state.t))


def _repeat(n: int, step: Callable[[State], Any], state: State) -> tuple[State, Any]:
    for _ in range(n):
        state, loss = step(state)
    return state, loss


def _run(problem: Problem, steps: Callable[[State], tuple[State, Any]]) -> Prepared:
    """Chunk after chunk, each from where the last one ended."""
    params, _ = native(problem)
    zeros = partial(jax.tree.map, jnp.zeros_like)
    state = State(params, zeros(params), zeros(params), jnp.zeros((), jnp.float32))

    def run() -> tuple[State, Any]:
        nonlocal state
        state, loss = jax.block_until_ready(steps(state))
        return state, loss

    return Prepared(run, lambda out: (float(out[1]), flat(out[0].params)))
