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

from npmeta._validation import Array, lookup

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Adam",
    "Momentum",
    "Optimizer",
    "Schedule",
    "Sgd",
    "clip_by_global_norm",
    "constant",
    "cosine",
    "step",
]

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
        return {}

    def update(
        self, params: Named, grads: Named, state: Named, lr: float
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        return {name: np.asarray(theta - lr * grads[name]) for name, theta in params.items()}, {}


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
        _check_beta(self.beta, "beta")
        _as_python_numbers(self, "beta")

    def init(self, params: Named) -> dict[str, Array]:
        return {f"m/{name}": np.zeros_like(theta) for name, theta in params.items()}

    def update(
        self, params: Named, grads: Named, state: Named, lr: float
    ) -> tuple[dict[str, Array], dict[str, Array]]:
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
        _check_beta(self.beta1, "beta1")
        _check_beta(self.beta2, "beta2")
        if not self.eps > 0:
            raise ValueError(f"eps must be positive, got {self.eps}")
        _as_python_numbers(self, "beta1", "beta2", "eps")

    def init(self, params: Named) -> dict[str, Array]:
        moments = {
            f"{moment}/{name}": np.zeros_like(theta)
            for moment in ("m", "v")
            for name, theta in params.items()
        }
        return {**moments, "count": np.zeros((), dtype=np.int64)}

    def update(
        self, params: Named, grads: Named, state: Named, lr: float
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        t = int(state["count"]) + 1
        new: dict[str, Array] = {}
        kept: dict[str, Array] = {"count": np.asarray(t)}
        # m̂ = m / (1 − β₁ᵗ) and v̂ = v / (1 − β₂ᵗ) folded into two numbers.
        rate = lr / (1 - self.beta1**t)
        root = math.sqrt(1 - self.beta2**t)
        for name, theta in params.items():
            g = grads[name]
            m = self.beta1 * state[f"m/{name}"] + (1 - self.beta1) * g
            v = self.beta2 * state[f"v/{name}"] + (1 - self.beta2) * (g * g)
            # asarray: arithmetic on an array without axes gives a scalar.
            new[name] = np.asarray(theta - rate * m / (np.sqrt(v) / root + self.eps))
            kept[f"m/{name}"], kept[f"v/{name}"] = np.asarray(m), np.asarray(v)
        return new, kept


def _check_beta(beta: float, name: str) -> None:
    if not 0 <= beta < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {beta}")


def _as_python_numbers(settings: object, *names: str) -> None:
    """NumPy's float64 would turn float32 parameters into float64 ones; Python's float does not."""
    for name in names:
        object.__setattr__(settings, name, float(getattr(settings, name)))


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
    if every < 1 or not factor > 0:
        raise ValueError(f"every must be at least 1 and factor positive, got {every} and {factor}")
    return lambda iteration: factor ** (iteration // every)


def cosine(iterations: int, floor: float = 0.0) -> Schedule:
    """From 1 down to ``floor`` along half a cosine (Loshchilov & Hutter 2017, equation 5).

    Raises
    ------
    ValueError
        If ``iterations`` is below 1 or ``floor`` is outside [0, 1].
    """
    if iterations < 1 or not 0 <= floor <= 1:
        raise ValueError(
            f"iterations must be at least 1 and floor lie in [0, 1], got {iterations} and {floor}"
        )

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
    if max_norm is not None and not max_norm > 0:  # a negative one would turn the gradient round
        raise ValueError(f"max_norm must be positive, got {max_norm}")
    # Summed in float64: the squares of float32 gradients overflow at 1e19.
    norm = math.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in grads.values()))
    if max_norm is None or norm <= max_norm:
        return grads, norm
    factor = float(max_norm) / norm
    return {name: np.asarray(g * factor) for name, g in grads.items()}, norm
