"""What may explain an answer: hypotheses with their predictions, and an order among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from npmeta._support.validation import Array
from npmeta.verification.doctor.computation import Path
from npmeta.verification.doctor.explanations import Hypothesis, crowds, pairs, predictions, singles
from npmeta.verification.doctor.faults import FAULTS, Fault, Variant
from npmeta.verification.doctor.faults.scale import CLIP_NORMS
from npmeta.verification.doctor.fitted_numbers import Fits
from npmeta.verification.doctor.problem import Problem
from npmeta.verification.doctor.recipe import Forward
from npmeta.verification.doctor.rounding import Noise

__all__ = [
    "FEWEST_PARAMETERS",
    "LOOPS",
    "Candidate",
    "Known",
    "any_factor",
    "complexity",
    "factor_of",
    "named_freely",
]

#: Numbers in predictions that are kept for the next answer to the same problem.
MOST_KEPT = 8_000_000
#: With fewer parameters than this a free factor, or a mistake out of thousands, fits too easily.
FEWEST_PARAMETERS = 8


#: Single mistakes in the order of what their inner loops cost.
LOOPS: dict[str, Callable[[Forward], bool]] = {
    "own loop": lambda forward: forward == Forward(),
    "other loops": lambda forward: forward != Forward() and not forward.task_by_task,
    "loops task by task": lambda forward: forward.task_by_task,
}


class Known:
    """What is computed once of a problem, for every answer to it.

    Attributes
    ----------
    problem : Problem
    noise : Noise
    fits : Fits
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.noise = Noise(problem)
        self.fits = Fits(problem)
        self._kept: dict[str, list[tuple[list[Hypothesis], Array]]] = {}

    def level(
        self, name: str, admit: Callable[[Path], bool] | None
    ) -> Iterable[tuple[list[Hypothesis], Array]]:
        """Hypotheses of a level with their predictions; those for every inner loop are kept."""
        if name in self._kept and admit is None:
            return self._kept[name]
        if name in ("singles", *LOOPS):
            hypotheses = [
                one
                for one in singles(self.problem)
                if name == "singles" or LOOPS[name](one.recipe.forward)
            ]
        elif self.problem.P < FEWEST_PARAMETERS:
            hypotheses = []
        else:
            hypotheses = {"pairs": pairs, "crowds": crowds}[name](self.problem)
        if admit is not None:
            return predictions(self.problem, hypotheses, admit)
        if len(hypotheses) * self.problem.P > MOST_KEPT:
            return predictions(self.problem, hypotheses)
        self._kept[name] = list(predictions(self.problem, hypotheses))
        return self._kept[name]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A hypothesis whose prediction has been compared with the answer."""

    hypothesis: Hypothesis
    prediction: Array
    misfit: float

    @property
    def name(self) -> str:
        """Ids, joined."""
        return " + ".join(self.hypothesis.ids) or "right"


def factor_of(part: tuple[Fault, Variant]) -> float:
    """What a mistake of scale multiplies by."""
    assert part[1].factor is not None
    return part[1].factor


def complexity(hypothesis: Hypothesis) -> tuple[bool, int, bool, list[int]]:
    """An order from the simplest explanation on: fewest mistakes, and first on the list.

    A factor on what is right comes before other numbers that are fitted, one on a mistake is last.
    """
    ids, free, n = list(FAULTS), named_freely(hypothesis), len(hypothesis.parts)
    fitted = any(variant.fitted for _, variant in hypothesis.parts)
    return (
        free and n > 1,
        n,
        fitted and not free,
        [ids.index(id) for id in hypothesis.ids],
    )


def any_factor(c: Array, factor: float) -> tuple[Fault, Variant]:
    """The mistake that a factor without a name is."""
    norm = float(np.linalg.norm(c))
    # A norm that is round to more digits than chance gives, and smaller than it was.
    for limit in CLIP_NORMS:
        if abs(norm - limit) <= 1e-4 * limit and 0 < factor < 1:
            finish = (("norm", limit),)
            return FAULTS["norm_clipped"], Variant({"finish": finish}, f"to {limit:g}", limit)
    id = "scaled" if factor > 0 else "update"
    return FAULTS[id], Variant({"finish": (("times", factor),)}, "", factor)


def named_freely(hypothesis: Hypothesis) -> bool:
    """Whether it has a factor without a name."""
    return any(fault.id in ("scaled", "update") for fault, _ in hypothesis.parts)
