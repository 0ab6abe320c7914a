"""Outer optimizers, learning-rate schedules and clipping: pure functions of named arrays.

An optimizer keeps nothing: ``init`` makes its state, ``update`` returns new parameters and a new
state, and a state is a flat mapping of arrays, so that a checkpoint can hold it as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from npmeta._support.validation import Array, as_array, as_number, as_whole, check_mapping, lookup
from npmeta.network.distances import norm

Named: TypeAlias = Mapping[str, Array]

#: Iterations already made -> the factor on the learning rate.
Schedule: TypeAlias = Callable[[int], float]


class Optimizer(Protocol):
    """An update rule."""

    def init(self, params: Named) -> dict[str, Array]:
        """The state before the first update."""

    def update(
        self, params: Named, grads: Named, state: Named, lr: float
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """New parameters and state, in the dtype of the parameters; the arguments stay as they are."""


@dataclass(frozen=True)
class Sgd:
    """θ ← θ − η g."""

    def init(self, params: Named) -> dict[str, Array]:
        check_mapping(params, "params")
        return {}

    def update(
        self, params: Named, grads: Named, state: Named, lr: float
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        lr = _check_update(params, grads, state, lr)
        steps = {name: lr * np.asarray(grads[name]) for name in params}
        return {name: np.asarray(theta - steps[name]) for name, theta in params.items()}, {}


@dataclass(frozen=True)
class Momentum:
    """m ← β m + g, θ ← θ − η m (Polyak 1964).

    Parameters
    ----------
    beta : float
        In [0, 1).
    """

    beta: float = 0.9

    def __post_init__(self) -> None:
        _set_share(self, "beta")

    def init(self, params: Named) -> dict[str, Array]:
        check_mapping(params, "params")
        return {f"m/{name}": np.zeros_like(theta) for name, theta in params.items()}

    def update(
        self, params: Named, grads: Named, state: Named, lr: float
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        lr = _check_update(params, grads, state, lr, "m")
        new, kept = {}, {}
        for name, theta in params.items():
            m = self.beta * state[f"m/{name}"] + grads[name]
            new[name], kept[f"m/{name}"] = np.asarray(theta - lr * m), np.asarray(m)
        return new, kept


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1).

    Parameters
    ----------
    beta1, beta2 : float
        Decay of the first and second moment, in [0, 1).
    eps : float
        Added to the root of the second moment; positive.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _set_share(self, "beta1")
        _set_share(self, "beta2")
        eps = as_number(self.eps, "eps", "positive", lambda eps: eps > 0)
        object.__setattr__(self, "eps", eps)

    def init(self, params: Named) -> dict[str, Array]:
        check_mapping(params, "params")
        moments = {
            f"{moment}/{name}": np.zeros_like(theta)
            for moment in ("m", "v")
            for name, theta in params.items()
        }
        return {**moments, "count": np.zeros((), dtype=np.int64)}

    def update(
        self, params: Named, grads: Named, state: Named, lr: float
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        lr = _check_update(params, grads, state, lr, "m", "v")
        _check_like(state, "count", np.zeros(()), "state")
        t = int(state["count"]) + 1
        new: dict[str, Array] = {}
        kept: dict[str, Array] = {"count": np.asarray(t)}
        # m̂ = m / (1 − β₁ᵗ) and v̂ = v / (1 − β₂ᵗ) folded into two numbers.
        rate = lr / (1 - self.beta1**t)
        root = math.sqrt(1 - self.beta2**t)
        for name, theta in params.items():
            g = np.asarray(grads[name])
            m = self.beta1 * state[f"m/{name}"] + (1 - self.beta1) * g
            v = self.beta2 * state[f"v/{name}"] + (1 - self.beta2) * (g * g)
            # asarray: arithmetic on an array without axes gives a scalar.
            new[name] = np.asarray(theta - rate * m / (np.sqrt(v) / root + self.eps))
            kept[f"m/{name}"], kept[f"v/{name}"] = np.asarray(m), np.asarray(v)
        return new, kept


def _set_share(settings: object, name: str) -> None:
    """A decay, as Python's number: NumPy's would turn float32 parameters into float64 ones."""
    share = as_number(getattr(settings, name), name, "a number in [0, 1)", lambda beta: 0 <= beta < 1)
    object.__setattr__(settings, name, share)


def _check_update(params: Named, grads: Named, state: Named, lr: float, *moments: str) -> float:
    """The step size; ValueError unless gradients and moments are of these parameters.

    Arrays of another shape would broadcast, and make parameters of another shape.
    """
    for name, arrays in (("params", params), ("grads", grads), ("state", state)):
        check_mapping(arrays, name)
    for name, theta in params.items():
        _check_like(grads, name, theta, "gradient")
        for moment in moments:
            _check_like(state, f"{moment}/{name}", theta, "state")
    return as_number(lr, "lr", "a finite number")


def _check_like(arrays: Named, name: str, theta: Array, what: str) -> None:
    if name not in arrays:
        raise ValueError(f"{what} {name!r} is missing; there are {', '.join(arrays) or 'none'}")
    came = as_array(arrays[name], f"{what} {name!r}")
    if came.shape != np.shape(theta):
        raise ValueError(f"{what} {name!r} must have shape {np.shape(theta)}, got {came.shape}")


#: Every optimizer, by the name configurations use.
OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {"sgd": Sgd, "momentum": Momentum, "adam": Adam}


def get(name: str) -> Optimizer:
    """The optimizer of that name with its defaults; ValueError names the nearest known one."""
    return lookup(name, OPTIMIZERS, "optimizer")()


# --- schedules ------------------------------------------------------------------------------------


def constant() -> Schedule:
    """1 throughout."""
    return lambda iteration: 1.0


def step(every: int, factor: float = 0.5) -> Schedule:
    """``factor`` to the power of ``iteration // every``.

    Raises
    ------
    ValueError
        If ``every`` is below 1 or ``factor`` is not positive.
    """
    every = as_whole(every, "every", 1)
    factor = as_number(factor, "factor", "positive", lambda f: f > 0)
    return lambda iteration: factor ** (iteration // every)


def cosine(iterations: int, floor: float = 0.0) -> Schedule:
    """From 1 down to ``floor`` along half a cosine (Loshchilov & Hutter 2017, equation 5).

    Raises
    ------
    ValueError
        If ``iterations`` is below 1 or ``floor`` is outside [0, 1].
    """
    iterations = as_whole(iterations, "iterations", 1)
    floor = as_number(floor, "floor", "a number in [0, 1]", lambda share: 0 <= share <= 1)

    def at(iteration: int) -> float:
        share = min(iteration / iterations, 1.0)
        return floor + (1 - floor) * (1 + math.cos(math.pi * share)) / 2

    return at


#: The schedules, by the name configurations use.
SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "step": step,
    "cosine": cosine,
}


def clip_by_global_norm(grads: Named, max_norm: float | None) -> tuple[Named, float]:
    """Gradients scaled so that their joint norm is at most ``max_norm``, and the norm they had.

    Parameters
    ----------
    grads : mapping of ndarray
    max_norm : float or None
        Positive; None leaves the gradients alone.

    Raises
    ------
    ValueError
        If ``max_norm`` is not positive.
    """
    check_mapping(grads, "grads")
    if max_norm is not None:  # a negative one would turn the gradient round
        positive = as_number(max_norm, "max_norm", "positive", lambda most: most > 0)
    # Squares overflow beyond 1e154, and those of float32 gradients from 1e19 on.
    grads = {name: as_array(g, f"gradient of {name}") for name, g in grads.items()}
    joint = norm([norm(g) for g in grads.values()])
    if max_norm is None or joint <= positive:
        return grads, joint
    factor = positive / joint
    return {name: np.asarray(g * factor) for name, g in grads.items()}, joint
