"""The doctor on the golden cases: every mistake on every case, and a sample of pairs. Minutes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from npmeta.verification import Doctor
from npmeta.verification.golden.maml import GoldenCase

from ..golden_suite import SECOND_ORDER, check_mistake, every_mistake
from ..test_verification_doctor import check_pair, likely_pairs


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_mistake_on_every_case(dtype):
    outcomes: Counter[str] = Counter()
    for setting in SECOND_ORDER:
        case = GoldenCase(setting)
        doctor = Doctor(case.problem)
        for explanation in every_mistake(case):
            outcomes[check_mistake(case, doctor, explanation, dtype)] += 1
    assert outcomes["named"] > 0.97 * outcomes.total(), outcomes


@pytest.mark.parametrize(("dtype", "start"), [(np.float64, 0), (np.float32, 50)])
def test_pairs(dtype, start):
    """Step-size factor × any, mask × any, scale × any: every three-hundredth, others for every case."""
    for number, setting in enumerate(SECOND_ORDER):
        doctor = Doctor(GoldenCase(setting).problem)
        for explanation in likely_pairs(doctor.problem)[(start + number) % 300 :: 300]:
            check_pair(doctor, explanation, dtype)
