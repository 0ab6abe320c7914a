"""The gradient that somebody hands over, checked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.validation import Array, check_mapping, unmasked
from npmeta.verification.doctor.problem import Problem

__all__ = ["as_answer"]


def as_answer(problem: Problem, gradient: ArrayLike | Mapping[str, ArrayLike]) -> Array:
    """A gradient as one vector ``(P,)``, in the dtype it came in.

    Raises
    ------
    ValueError
        If its shape, or that of an array in it, does not fit.
    """
    if isinstance(gradient, Mapping):
        check_mapping(gradient, "a gradient by name")
        arrays = {name: unmasked(array, name) for name, array in gradient.items()}
        missing = sorted(set(problem.blocks) ^ set(arrays))
        if missing:
            raise ValueError(
                f"a gradient by name needs exactly {', '.join(problem.blocks)}; got {', '.join(arrays)}"
            )
        for name in problem.blocks:
            shape = _shape(problem, name)
            if arrays[name].shape != shape:
                other = " (transposed?)" if arrays[name].shape == shape[::-1] else ""
                raise ValueError(f"{name} must have shape {shape}, got {arrays[name].shape}{other}")
        gradient = np.concatenate([arrays[name].reshape(-1) for name in problem.blocks])
    c = unmasked(gradient, "the gradient")
    if c.dtype.kind in "iu":
        c = c.astype(np.float64)
    if c.dtype not in (np.float32, np.float64):
        raise ValueError(f"the gradient must be float32 or float64, got {c.dtype}")
    if c.shape != (problem.P,):
        hint = ""
        weights = sum(p.stop - p.start for n, p in problem.blocks.items() if n.endswith("weight"))
        if c.shape == (problem.T, problem.P):
            hint = ": one row a task; take the mean over the tasks"
        elif c.size == weights:
            hint = ": as many as there are weights; the biases are missing"
        elif c.size == problem.P:
            hint = "; flatten it"
        raise ValueError(f"the gradient must have shape ({problem.P},), got {c.shape}{hint}")
    return c


def _shape(problem: Problem, name: str) -> tuple[int, ...]:
    if problem.model is None:
        return (problem.P,)
    layer, kind = name.split(".")
    return problem.model.shapes[int(layer)][kind]
