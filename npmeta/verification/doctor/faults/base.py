"""What a mistake is: an id, the stage that it is made in, and the choices that it makes.

What is said of it (formula, cause, cure) stands in ``prose.txt``: blocks of five lines, id, formula,
cause, what to change in PyTorch and what in JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal, NamedTuple

import numpy as np

from npmeta._support.validation import Array
from npmeta.verification.doctor.choices import changed
from npmeta.verification.doctor.problem import Problem
from npmeta.verification.doctor.recipe import Choices, Recipe, gradient_by


@dataclass(frozen=True)
class Variant:
    """One form of a mistake on one problem.

    Attributes
    ----------
    choices : Forward, Backward or Assembly
        Those that it makes; what is at its default is left to others.
    detail : str
        Which of its forms it is: "before step 2".
    factor : float or None
        The number in it, where there is one.
    fitted : bool
        Whether that number was found from the answer.
    """

    choices: Choices
    detail: str = ""
    factor: float | None = None
    fitted: bool = False

    @property
    def changes(self) -> dict[str, Any]:
        """What is chosen otherwise than right, by name."""
        return changed(self.choices)


#: The forms of a mistake on a problem.
Variants = Callable[[Problem], Iterable[Variant]]


class _Prose(NamedTuple):
    formula: str
    cause: str
    pytorch: str
    jax: str


@cache
def _prose() -> dict[str, _Prose]:
    text = (resources.files(__package__) / "prose.txt").read_text("utf-8")
    said = {}
    for block in text.strip().split("\n\n"):
        id, *lines = (line.strip() for line in block.split("\n"))
        formula, cause, pytorch, jax = lines
        said[id] = _Prose(formula, cause, pytorch.removeprefix("PyTorch: "), jax.removeprefix("JAX: "))
    return said


@dataclass(frozen=True)
class Fault:
    """A known mistake.

    Attributes
    ----------
    id : str
    stage : {"forward", "backward", "assembly", "scale"}
    variants : callable
        ``problem -> iterable of Variant``: its forms on a problem, the first of them the one that
        :meth:`predict` shows. None where it makes no sense.
    formula : str
        What is computed in place of g = (I − αH_0) ⋯ (I − αH_{S−1}) q, q = ∇L^Q(φ_S).
    cause : str
        How it comes about.
    pytorch, jax : str
        What to change.
    """

    id: str
    stage: Literal["forward", "backward", "assembly", "scale"]
    variants: Variants = field(repr=False)

    @property
    def formula(self) -> str:
        return _prose()[self.id].formula

    @property
    def cause(self) -> str:
        return _prose()[self.id].cause

    @property
    def pytorch(self) -> str:
        return _prose()[self.id].pytorch

    @property
    def jax(self) -> str:
        return _prose()[self.id].jax

    def predict(self, problem: Problem) -> Array | None:
        """The gradient that the mistake makes, ``(P,)`` in float64.

        None where the mistake makes no sense, or its inner loop runs away.
        """
        for variant in self.variants(problem):
            with np.errstate(all="ignore"):
                gradient = gradient_by(problem, Recipe().having(variant.choices))
            return gradient if np.isfinite(gradient).all() else None
        return None


def always(choices: Choices, detail: str = "", factor: float | None = None) -> Variants:
    """In one form on every problem."""
    return where(choices, detail, factor)


def where(
    choices: Choices, detail: str = "", factor: float | None = None, *, steps: int = 0, tasks: int = 1
) -> Variants:
    """In one form on problems with so many inner steps and tasks at least."""

    def variants(problem: Problem) -> list[Variant]:
        enough = steps <= problem.S and tasks <= problem.T
        return [Variant(choices, detail, factor)] if enough else []

    return variants
