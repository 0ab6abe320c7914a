"""Right but for a factor."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from npmeta.verification.doctor.assembly import Assembly, ClipNorm, Times
from npmeta.verification.doctor.faults.base import Fault, Variant, Variants, always
from npmeta.verification.doctor.problem import Problem

#: What gradients are commonly clipped to.
CLIP_NORMS = (0.01, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 50.0, 100.0, 1000.0)


def _norm_clipped(problem: Problem) -> Iterator[Variant]:
    norm = np.linalg.norm(problem.gradient)
    below = [c for c in CLIP_NORMS if c < 0.99 * norm]
    if below:
        yield Variant(Assembly(finish=(ClipNorm(below[-1]),)), factor=below[-1])


def _times(factor: Callable[[Problem], float]) -> Variants:
    def variants(problem: Problem) -> Iterator[Variant]:
        value = float(factor(problem))
        if value != 1:
            yield Variant(Assembly(finish=(Times(value),)), factor=value)

    return variants


#: In the order of how simple they are: of several that fit, the first is named.
SCALE = [
    Fault("summed_over_tasks", "scale", _times(lambda p: p.T)),
    Fault("divided_by_tasks_twice", "scale", _times(lambda p: 1 / p.T)),
    Fault("times_query_rows", "scale", _times(lambda p: p.Q)),
    Fault("times_support_rows", "scale", _times(lambda p: p.K)),
    Fault("times_outputs", "scale", _times(lambda p: p.n_outputs)),
    Fault("times_query_rows_and_outputs", "scale", _times(lambda p: p.Q * p.n_outputs)),
    Fault("over_query_rows", "scale", _times(lambda p: 1 / p.Q)),
    Fault("over_support_rows", "scale", _times(lambda p: 1 / p.K)),
    Fault("over_outputs", "scale", _times(lambda p: 1 / p.n_outputs)),
    Fault("doubled", "scale", _times(lambda p: 2)),
    Fault("halved", "scale", _times(lambda p: 0.5)),
    Fault("negated", "scale", _times(lambda p: -1)),
    Fault("norm_clipped", "scale", _norm_clipped),
    Fault("update", "scale", always(Assembly(finish=(Times(-0.01),)), factor=-0.01)),
    Fault("scaled", "scale", always(Assembly(finish=(Times(1.7),)), factor=1.7)),
]
