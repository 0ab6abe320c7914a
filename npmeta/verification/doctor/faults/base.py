"""What a mistake is: an id, a formula, the choices it makes, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from npmeta._support.validation import Array
from npmeta.verification.doctor.computation import evaluate
from npmeta.verification.doctor.problem import Problem
from npmeta.verification.doctor.recipe import Recipe

__all__ = ["Fault", "Variant", "always"]


@dataclass(frozen=True)
class Variant:
    """One form of a mistake on one problem.

    Attributes
    ----------
    changes : mapping
        The choices of :class:`~npmeta.verification.doctor.recipe.Recipe` that it makes, by name.
    detail : str
        Which of its forms it is: "before step 2".
    factor : float or None
        The number in it, where there is one.
    fitted : bool
        Whether that number was found from the answer.
    """

    changes: Mapping[str, Any]
    detail: str = ""
    factor: float | None = None
    fitted: bool = False


@dataclass(frozen=True)
class Fault:
    """A known mistake.

    Attributes
    ----------
    id : str
    stage : {"forward", "backward", "assembly", "scale"}
    formula : str
        What is computed in place of g = (I − αH_0) ⋯ (I − αH_{S−1}) q, q = ∇L^Q(φ_S).
    cause : str
        How it comes about.
    pytorch, jax : str
        What to change.
    variants : callable
        ``problem -> iterable of Variant``: its forms on a problem, the first of them the one that
        :meth:`predict` shows. None where it makes no sense.
    """

    id: str
    stage: str
    formula: str
    cause: str
    pytorch: str
    jax: str
    variants: Callable[[Problem], Iterable[Variant]] = field(repr=False)

    def predict(self, problem: Problem) -> Array | None:
        """The gradient that the mistake makes, ``(P,)`` in float64.

        None where the mistake makes no sense, or its inner loop runs away.
        """
        for variant in self.variants(problem):
            with np.errstate(all="ignore"):
                gradient = evaluate(problem, Recipe().having(variant.changes))
            return gradient if np.isfinite(gradient).all() else None
        return None


def always(
    detail: str = "", factor: float | None = None, **changes: Any
) -> Callable[..., list[Variant]]:
    """The variants of a mistake that every problem has, in one form."""
    return lambda problem: [Variant(changes, detail, factor)]
