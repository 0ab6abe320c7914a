"""What the tests of golden vectors share."""

from __future__ import annotations

import numpy as np

from npmeta.verification import FAULTS, Doctor
from npmeta.verification.doctor.choices import Forward
from npmeta.verification.doctor.explanations import Explanation
from npmeta.verification.doctor.recipe import gradient_by
from npmeta.verification.golden.families import SETTINGS
from npmeta.verification.golden.maml import GoldenCase

#: The doctor judges exact meta-gradients of MAML.
SECOND_ORDER = [s for s in SETTINGS if s.algorithm == "maml" and not s.first_order]


def every_mistake(case: GoldenCase) -> list[Explanation]:
    """The first form of every mistake of the case."""
    document = case.document
    ids = [*document["wrong"], *document["not_distinguishable"]["float64"]]
    return [Explanation.of((FAULTS[id], next(iter(FAULTS[id].variants(case.problem))))) for id in ids]


def planted(case: GoldenCase, explanation: Explanation, dtype: str) -> np.ndarray:
    """The gradient that the mistake makes, computed in that dtype."""
    recipe = explanation.recipe
    recipe = recipe if dtype == "float64" else recipe.having(Forward(dtype=dtype))
    with np.errstate(all="ignore"):
        return gradient_by(case.problem, recipe).astype(dtype)


def check_mistake(case: GoldenCase, doctor: Doctor, explanation: Explanation, dtype: str) -> str:
    """Assert what the doctor has to say of a planted mistake; what it was: "named", "tie", ..."""
    (id,), document = explanation.ids, case.document
    if id in document["not_reproducible"][dtype]:
        return "not reproducible"
    found = doctor.diagnose(planted(case, explanation, dtype))
    said = f"{case.id} {dtype} {id}\n{found}"
    if id in document["not_distinguishable"][dtype]:
        assert found.fault is None, said
        assert found.verdict in ("pass", "inconclusive"), said
        assert id in found.ties or id == "float32", said
        return "not distinguishable"
    if found.verdict == "inconclusive":  # within ten tolerances it may be rounding
        assert document["wrong"][id]["misfit"] <= 10 * case.tolerance[dtype], said
        assert id in found.ties, said
        return "left open"
    assert found.verdict == "fail", said
    if found.fault == id:
        return "named"
    # What is named in its place makes the same gradient here, to the dtype's precision.
    assert id in found.ties, said
    assert found.fault is not None, said
    (named,) = (FAULTS[one] for one in [found.fault])
    wrong = gradient_by(case.problem, explanation.recipe)
    others = [
        gradient_by(case.problem, Explanation.of((named, variant)).recipe)
        for variant in named.variants(case.problem)
    ]
    nearest = min(np.linalg.norm(other - wrong) for other in others)
    assert nearest <= 10 * case.tolerance[dtype] * np.linalg.norm(wrong), said
    return "tie"
