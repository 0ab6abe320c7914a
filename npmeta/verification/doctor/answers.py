"""What somebody hands over, checked: a gradient, and the losses and parameters that came before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from npmeta._support.validation import Array, check_mapping, unmasked
from npmeta.verification.doctor.choices import Forward
from npmeta.verification.doctor.inner_loop import InnerLoop, run_loop
from npmeta.verification.doctor.problem import Problem
from npmeta.verification.rounding import (
    CEILING_OF_MISTAKES,
    FLOOR_OF_EVIDENCE,
    SAFETY_OF_MISFITS,
    relative,
    unit,
)


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


class Evidence:
    """Losses and adapted parameters, checked, and how well an inner loop explains them.

    Parameters
    ----------
    problem : Problem
    phi : array_like, (T, P) or (S + 1, T, P), optional
    losses : array_like (T, S) or (T, S + 1), or mapping, optional
        Support losses before every step; or "support" with these, "query" with the query losses after
        the last step, (T,) or their mean. The steps may be one more or one fewer than the problem's,
        which is a mistake that is known.

    Raises
    ------
    ValueError
        If a shape is none of these, or what comes is no finite numbers.
    """

    def __init__(
        self, problem: Problem, phi: ArrayLike | None, losses: ArrayLike | Mapping[str, Any] | None
    ) -> None:
        self.problem = problem
        T, P = problem.T, problem.P
        self.phi = None if phi is None else _numbers("phi", phi)
        # As many steps as the problem has, or as a loop with one too many or too few.
        steps = range(max(problem.S - 1, 0), problem.S + 2)
        if self.phi is not None and (self.phi.ndim not in (2, 3) or self.phi.shape[-2:] != (T, P)):
            raise ValueError(
                f"phi must have shape ({T}, {P}), or ({problem.S + 1}, {T}, {P}) for every step; got "
                f"{self.phi.shape}"
            )
        if self.phi is not None and self.phi.ndim == 3 and len(self.phi) - 1 not in steps:
            raise ValueError(
                f"phi must have {problem.S + 1} points for {problem.S} steps, or one more or fewer; "
                f"got {len(self.phi)}"
            )
        named = losses if isinstance(losses, Mapping) else {} if losses is None else {"support": losses}
        unknown = set(named) - {"support", "query"}
        if unknown:
            raise ValueError(f"losses may have 'support' and 'query', got {sorted(unknown)[0]!r}")
        self.support, self.query = (
            _numbers(f"{name} losses", named[name]) if name in named else None
            for name in ("support", "query")
        )
        if self.support is not None and (self.support.ndim != 2 or len(self.support) != T):
            raise ValueError(
                f"support losses must have shape ({T}, {problem.S}) or ({T}, {problem.S + 1}), got "
                f"{self.support.shape}"
            )
        if self.support is not None and not steps[0] <= self.support.shape[1] <= steps[-1] + 1:
            raise ValueError(
                f"support losses must be {problem.S} a task, or {problem.S + 1} with that after the "
                f"last step, or one more or fewer; got {self.support.shape[1]}"
            )
        if self.query is not None and self.query.shape not in ((), (T,)):
            raise ValueError(f"query losses must have shape ({T},) or (), got {self.query.shape}")

    def __bool__(self) -> bool:
        return any(part is not None for part in (self.phi, self.support, self.query))

    def misfits(self, loop: InnerLoop, factors: Sequence[float] = (1.0,)) -> dict[str, float]:
        """How far each piece is from what an inner loop gives, relative to that.

        The query losses may be that times any of the factors, as the gradient may.
        """
        found: dict[str, float] = {}
        S, theta = loop.n_steps, loop.points[0]
        with np.errstate(all="ignore"):
            if self.support is not None:
                found["support losses"] = np.inf
                if self.support.shape[1] in (S, S + 1):
                    steps = range(self.support.shape[1])
                    values = np.stack([loop.support(s).value for s in steps], axis=1)
                    # A sum in place of a mean is a larger step size, and a larger loss.
                    found["support losses"] = min(
                        relative(self.support / factor, values)
                        for factor in (1.0, loop.choices.lr_factor)
                    )
            if self.phi is not None:
                # The way gone, not θ, is what φ is compared by.
                points = np.array(loop.points) if self.phi.ndim == 3 else loop.points[-1]
                same = self.phi.shape == points.shape
                found["φ"] = relative(self.phi - theta, points - theta) if same else np.inf
            if self.query is not None:
                value = loop.query(S).value
                value = value if self.query.ndim else value.mean()
                found["query losses"] = min(relative(self.query / f, value) for f in factors)
        return {name: misfit if np.isfinite(misfit) else np.inf for name, misfit in found.items()}

    def tolerance(self, precision: str) -> float:
        """The misfit up to which a piece agrees, from what float32 does to the right inner loop."""
        right = run_loop(self.problem, Forward())
        rounded = run_loop(self.problem, Forward(dtype="float32"))
        way = right.points[-1] - right.points[0]
        moved = rounded.points[-1].astype(np.float64) - right.points[0]
        lost = relative(moved, way) if way.any() else 0.0
        share = unit(precision) / unit(np.float32)
        return min(
            max(SAFETY_OF_MISFITS * lost * share, FLOOR_OF_EVIDENCE[precision]), CEILING_OF_MISTAKES
        )

    def first_difference(self, tolerance: float) -> str:
        """Where φ leaves the right inner loop, in words; empty if it does not, or is not known."""
        if self.phi is None or self.phi.ndim != 3:
            return ""
        right = run_loop(self.problem, Forward())
        for s, (mine, theirs) in enumerate(zip(right.points, self.phi, strict=False)):
            way = np.linalg.norm(right.points[max(s, 1)] - right.points[0])
            away = np.linalg.norm(theirs - mine, axis=-1)
            if not (away <= tolerance * way).all():
                t = int(np.argmax(away))
                parts = {
                    name: float(np.linalg.norm((theirs - mine)[t, place]))
                    for name, place in self.problem.blocks.items()
                }
                most = max(parts, key=lambda name: parts[name])
                return f"φ differs from step {s} on, most for task {t} in {most}"
        return ""


def _numbers(name: str, values: ArrayLike) -> Array:
    """An array of finite numbers."""
    try:
        array = unmasked(values, name)
    except ValueError:  # rows of different lengths
        raise ValueError(f"{name} must be one array of numbers, got rows of different sizes") from None
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name} must be real numbers, got dtype {array.dtype}")
    finite = np.isfinite(array)
    if not finite.all():
        raise ValueError(f"{name} must be finite; {(~finite).sum()} of {array.size} entries are not")
    return array
