"""Explanations that have been compared with an answer, and an order among them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from npmeta._support.validation import Array
from npmeta.verification.doctor.assembly import Assembly, ClipNorm, Times
from npmeta.verification.doctor.explanations import Explanation
from npmeta.verification.doctor.faults import FAULTS, Fault, Variant
from npmeta.verification.doctor.faults.scale import CLIP_NORMS


@dataclass(frozen=True, eq=False)
class Candidate:
    """An explanation whose prediction has been compared with the answer."""

    explanation: Explanation
    prediction: Array
    misfit: float

    @property
    def name(self) -> str:
        """Ids, joined."""
        return " + ".join(self.explanation.ids) or "right"


def factor_of(part: tuple[Fault, Variant]) -> float:
    """What a mistake of scale multiplies by."""
    assert part[1].factor is not None
    return part[1].factor


def complexity(explanation: Explanation) -> tuple[bool, int, bool, list[int]]:
    """An order from the simplest explanation on: fewest mistakes, and first on the list.

    A factor on what is right comes before other numbers that are fitted, one on a mistake is last.
    """
    ids, free, n = list(FAULTS), named_freely(explanation), len(explanation.parts)
    fitted = any(variant.fitted for _, variant in explanation.parts)
    return (
        free and n > 1,
        n,
        fitted and not free,
        [ids.index(id) for id in explanation.ids],
    )


def any_factor(c: Array, factor: float) -> tuple[Fault, Variant]:
    """The mistake that a factor without a name is."""
    norm = float(np.linalg.norm(c))
    # A norm that is round to more digits than chance gives, and smaller than it was.
    for limit in CLIP_NORMS:
        if abs(norm - limit) <= 1e-4 * limit and 0 < factor < 1:
            clipped = Assembly(finish=(ClipNorm(limit),))
            return FAULTS["norm_clipped"], Variant(clipped, f"to {limit:g}", limit)
    id = "scaled" if factor > 0 else "update"
    return FAULTS[id], Variant(Assembly(finish=(Times(factor),)), "", factor)


def named_freely(explanation: Explanation) -> bool:
    """Whether it has a factor without a name."""
    return any(fault.id in ("scaled", "update") for fault, _ in explanation.parts)
