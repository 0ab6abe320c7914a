"""How to know that a gradient is right: oracles, and checks that return reports.

:func:`check_gradient`, :func:`check_hvp` and :func:`check_taylor` take any Python function that returns
a value and a gradient. :func:`check_meta_gradient` holds a meta-gradient, whoever computed it, against
:func:`meta_gradient`, an oracle made of first-order code alone, which :func:`complex_step` and
:func:`richardson` certify in their turn. :func:`npmeta.diagnose` names the mistake in one that is
wrong, and :mod:`npmeta.verification.golden` has cases with their right answers for any language.
"""

from npmeta.verification import golden
from npmeta.verification.checks.gradients import (
    check_batched,
    check_deterministic,
    check_gradient,
    check_hvp,
)
from npmeta.verification.checks.meta_gradients import (
    SecondOrder,
    blocks,
    check_meta_gradient,
    second_order,
)
from npmeta.verification.checks.reports import Finding, Report, Verdict
from npmeta.verification.checks.taylor import check_taylor
from npmeta.verification.doctor.diagnosis import BlockReport, Diagnosis
from npmeta.verification.doctor.doctor import Doctor, diagnose
from npmeta.verification.doctor.faults import FAULTS, Fault
from npmeta.verification.doctor.problem import Problem
from npmeta.verification.oracles.differences import Difference, differentiate
from npmeta.verification.oracles.references import Reference, complex_step, meta_gradient, richardson

__all__ = [
    "FAULTS",
    "BlockReport",
    "Diagnosis",
    "Difference",
    "Doctor",
    "Fault",
    "Finding",
    "Problem",
    "Reference",
    "Report",
    "SecondOrder",
    "Verdict",
    "blocks",
    "check_batched",
    "check_deterministic",
    "check_gradient",
    "check_hvp",
    "check_meta_gradient",
    "check_taylor",
    "complex_step",
    "diagnose",
    "differentiate",
    "golden",
    "meta_gradient",
    "richardson",
    "second_order",
]
