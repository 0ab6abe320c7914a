"""The doctor on the golden cases: every mistake on every case, and a sample of pairs. Minutes."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from npmeta.verification import Doctor
from npmeta.verification.golden.maml import GoldenCase

from ..golden_suite import SECOND_ORDER, check_mistake, every_mistake
from ..test_verification_doctor import check_pair, likely_pairs
from ..workers import of_all_workers

PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
def test_every_mistake_on_every_case_and_pairs(part, tmp_path_factory):
    """In both dtypes, by one doctor for each case: what it computes in advance is most of the work.

    Pairs are step-size factor × any, mask × any, scale × any: every three-hundredth, others for every
    case and dtype.
    """
    outcomes: dict[str, Counter[str]] = {"float64": Counter(), "float32": Counter()}
    for number, setting in list(enumerate(SECOND_ORDER))[part::PARTS]:
        case = GoldenCase(setting)
        doctor = Doctor(case.problem)
        for explanation in every_mistake(case):
            for dtype, counted in outcomes.items():
                counted[check_mistake(case, doctor, explanation, dtype)] += 1
        likely = likely_pairs(doctor.problem)
        for dtype, start in ((np.float64, 0), (np.float32, 50)):
            for explanation in likely[(start + number) % 300 :: 300]:
                check_pair(doctor, explanation, dtype)
    # The cases together are judged by the part that comes last.
    folder = of_all_workers(tmp_path_factory) / "golden_doctor"
    folder.mkdir(exist_ok=True)
    (folder / f"{part}.new").write_text(json.dumps(outcomes))
    (folder / f"{part}.new").rename(folder / f"{part}.json")
    parts = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    for dtype in outcomes if len(parts) == PARTS else ():
        counted = sum((Counter(one[dtype]) for one in parts), Counter())
        assert counted["named"] > 0.97 * counted.total(), counted
