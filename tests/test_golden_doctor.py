"""The doctor on the golden cases: a sample; tests/peers/test_golden_doctor.py has all of it."""

from __future__ import annotations

import pytest

from npmeta.verification import Doctor
from npmeta.verification.golden.maml import GoldenCase

from .golden_suite import SECOND_ORDER, check_mistake, every_mistake


@pytest.mark.parametrize("number", range(0, len(SECOND_ORDER), 7))
def test_planted_mistakes_are_named(number):
    """Of every seventh case some mistakes in each dtype, other ones for every case."""
    case = GoldenCase(SECOND_ORDER[number])
    doctor, mistakes = Doctor(case.problem), every_mistake(case)
    for dtype, i in (("float64", number), ("float32", number + 1)):
        for explanation in mistakes[i :: len(SECOND_ORDER)]:
            check_mistake(case, doctor, explanation, dtype)
