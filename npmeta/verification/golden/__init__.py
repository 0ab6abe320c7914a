"""Golden vectors: cases with their right answers, in files that any language reads, and a judge.

``golden.write`` makes the suite, ``golden.check`` judges answers to it. :doc:`golden` says what is in
the files, and how to write a checker from these alone.
"""

from npmeta.verification.golden.families import SUITE_VERSION
from npmeta.verification.golden.judge import CaseResult, Results, check, iter_check
from npmeta.verification.golden.settings import Setting
from npmeta.verification.golden.suite import cases, read_index, write

__all__ = [
    "SUITE_VERSION",
    "CaseResult",
    "Results",
    "Setting",
    "cases",
    "check",
    "iter_check",
    "read_index",
    "write",
]
