"""Regression on sine waves of random amplitude and phase (Finn et al. 2017, section 5.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from npmeta._support.validation import Array, as_number, as_range
from npmeta.tasks.batch import TaskBatch
from npmeta.tasks.checks import check_counts
from npmeta.tasks.draws import uniforms

Range = tuple[float, float]


@dataclass(frozen=True)
class Sinusoid:
    """Tasks y = A sin(f x + p) with amplitude, frequency and phase drawn for each task.

    Parameters
    ----------
    shots : int
        K, support points a task.
    queries : int
        Q, query points a task.
    amplitude, phase, frequency, x : (float, float)
        Ranges of the uniform distributions, low to high: A in [0.1, 5], p in [0, π] radians, f = 1,
        x in [−5, 5], as in the paper.
    noise : float
        Standard deviation of Gaussian noise on the support and query targets.

    Raises
    ------
    ValueError
        If a count is below 1, a range is not (low, high), or the noise is negative.

    Examples
    --------
    >>> from npmeta.tasks import Sinusoid
    >>> Sinusoid(shots=5).sample(seed=0, iteration=7, n_tasks=25)
    TaskBatch(25 tasks, support (5, 1) -> (1,), query (10, 1) -> (1,))
    """

    shots: int = 10
    queries: int = 10
    amplitude: Range = (0.1, 5.0)
    phase: Range = (0.0, math.pi)
    frequency: Range = (1.0, 1.0)
    x: Range = (-5.0, 5.0)
    noise: float = 0.0

    n_in = 1
    n_out = 1

    def __post_init__(self) -> None:
        check_counts(self, shots=1, queries=1)
        for name in ("amplitude", "phase", "frequency", "x"):
            object.__setattr__(self, name, as_range(getattr(self, name), name))
        noise = as_number(self.noise, "noise", "at least 0", lambda sd: sd >= 0)
        object.__setattr__(self, "noise", noise)

    def sample(
        self, seed: int, iteration: int, n_tasks: int, *, start: int = 0, split: str = "train"
    ) -> TaskBatch:
        """Tasks ``start .. start + n_tasks - 1`` of an iteration; the same call, the same tasks.

        Parameters
        ----------
        seed : int
            0 to 2**64 - 1.
        iteration, start, n_tasks : int
        split : {"train", "validation", "test"}
            Three independent streams from one distribution.

        Returns
        -------
        TaskBatch
            ``(n_tasks, K, 1)`` and ``(n_tasks, Q, 1)``, float64.
        """
        *_, x, y = self._draw(seed, iteration, n_tasks, start, split)
        K = self.shots
        return TaskBatch(x[:, :K], y[:, :K], x[:, K:], y[:, K:])

    def curves(
        self, x: Array, seed: int, iteration: int, n_tasks: int, *, start: int = 0, split: str = "train"
    ) -> Array:
        """The noiseless functions behind the same tasks at ``x (n,)``: ``(n_tasks, n, 1)``."""
        A, f, p, *_ = self._draw(seed, iteration, n_tasks, start, split)
        return A * np.sin(f * x[:, None] + p)

    def _draw(
        self, seed: int, iteration: int, n_tasks: int, start: int, split: str
    ) -> tuple[Array, Array, Array, Array, Array]:
        """A, f and p ``(n_tasks, 1, 1)``; x and y ``(n_tasks, K + Q, 1)``."""
        n = self.shots + self.queries
        u = uniforms(seed, iteration, start, n_tasks, 3 + n + (n if self.noise else 0), split)
        A, f, p = (
            (low + (high - low) * u[:, i])[:, None, None]
            for i, (low, high) in enumerate((self.amplitude, self.frequency, self.phase))
        )
        x = (self.x[0] + (self.x[1] - self.x[0]) * u[:, 3 : 3 + n])[..., None]
        y = A * np.sin(f * x + p)
        if self.noise:
            # Normal numbers by inversion, one from each uniform: a task uses a fixed number of draws.
            # A draw of exactly 0 must not become minus infinity.
            from scipy.special import ndtri

            y = y + self.noise * ndtri(np.maximum(u[:, 3 + n :], 2.0**-54))[..., None]
        return A, f, p, x, y
