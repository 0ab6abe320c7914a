"""What a check finds: numbers, a verdict for each block of parameters, and one for the whole.

There is one rule (:func:`judge`). A check brings, for each block, the *error* it found, the *bar* that
a correct computation may be off by (rounding in the precision that is judged, the reference's own
error, a kink where there are two slopes), and the *scale*, the size of the block itself.

============  ======================================================================================
FAIL          the error is beyond the bar: no correct computation gives this
INCONCLUSIVE  the error is within the bar, but the bar is more than a tenth of the scale: a wrong
              gradient could hide behind it. The reason says what makes it so wide
PASS          the error is within the bar, and the bar is narrow
============  ======================================================================================

No tolerance is absolute, and none is to be chosen: a loss times a million has the same verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from npmeta._support.validation import Array

#: A bar wider than this share of the scale decides nothing.
RESOLUTION = 0.1


class Verdict(str, Enum):
    """PASS, INCONCLUSIVE or FAIL."""

    PASS = "PASS"
    INCONCLUSIVE = "INCONCLUSIVE"
    FAIL = "FAIL"

    def __str__(self) -> str:
        return self.value


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """FAIL if there is one, else INCONCLUSIVE if there is one, else PASS."""
    order = list(Verdict)
    return max(verdicts, key=order.index, default=Verdict.PASS)


@dataclass(frozen=True)
class Finding:
    """What was found out about one block.

    Attributes
    ----------
    name : str
    verdict : Verdict
    error, bar, scale : float
        In the units of the block.
    reason : str
        Why it did not pass, or what is peculiar though it did.
    """

    name: str
    verdict: Verdict
    error: float
    bar: float
    scale: float
    reason: str = ""

    @property
    def relative_error(self) -> float:
        """``error / scale``; 0 where both are 0."""
        return _ratio(self.error, self.scale)

    @property
    def relative_bar(self) -> float:
        """``bar / scale``; 0 where both are 0."""
        return _ratio(self.bar, self.scale)


def judge(
    name: str, error: float, bar: float, scale: float, *, why_wide: str = "rounding", zero: float = 0.0
) -> Finding:
    """The rule at the top of this module.

    Parameters
    ----------
    name : str
    error, bar, scale : float
    why_wide : str
        What widens the bar, for the reason: "rounding in float32", "a kink".
    zero : float
        A block no larger than its bar passes as zero if the bar is no larger than this, a few
        roundings of the whole gradient: it is a zero that was made by subtraction.
    """
    error, bar, scale = float(error), float(bar), float(scale)
    if not math.isfinite(bar) or not math.isfinite(scale):
        why = f"the reference is not finite ({why_wide})"
        return Finding(name, Verdict.INCONCLUSIVE, error, bar, scale, why)
    if not error <= bar:  # so that a NaN fails
        times = f"{_number(error / bar)} times the bar" if bar > 0 and error < math.inf else ""
        why = times or ("not finite" if not error < math.inf else "must be exactly zero")
        return Finding(name, Verdict.FAIL, error, bar, scale, why)
    if bar <= RESOLUTION * scale or bar == 0:
        return Finding(name, Verdict.PASS, error, bar, scale)
    if bar <= zero:
        return Finding(name, Verdict.PASS, error, bar, scale, "zero within rounding")
    share = f"{bar / scale:.0%} of the block" if scale > 0 else "a block of zeros"
    share = share if scale == 0 or bar < 10 * scale else f"{_number(bar / scale)} times the block"
    why = f"{why_wide} leaves {share} open" if scale > 0 else f"{why_wide} moves {share}"
    return Finding(name, Verdict.INCONCLUSIVE, error, bar, scale, why)


@dataclass(frozen=True)
class Report:
    """The findings of one check. Printed, it is a table; ``assert report.passed, report`` tests.

    Attributes
    ----------
    title : str
        What was checked against what.
    findings : tuple of Finding
        Block by block.
    numbers : dict of float
        What else was measured, by name.
    curves : dict of ndarray
        What can be drawn, by name.
    """

    title: str
    findings: tuple[Finding, ...]
    numbers: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Array] = field(default_factory=dict, repr=False, compare=False)

    @property
    def verdict(self) -> Verdict:
        """The worst of the findings."""
        return worst([finding.verdict for finding in self.findings])

    @property
    def passed(self) -> bool:
        """Whether every block passed."""
        return self.verdict is Verdict.PASS

    def __getitem__(self, name: str) -> Finding:
        """The finding about a block."""
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(name)

    def __str__(self) -> str:
        width = max([5, *(len(finding.name) for finding in self.findings)])
        lines = [f"{self.verdict}: {self.title}"]
        lines.append(f"  {'block':<{width}}  {'error':>8}  {'bar':>8}  {'size':>9}")
        for finding in self.findings:
            numbers = (
                f"{finding.relative_error:8.1e}  {finding.relative_bar:8.1e}  {finding.scale:9.2e}"
            )
            note = "" if finding.verdict is Verdict.PASS else str(finding.verdict)
            note += f"{': ' if note and finding.reason else ''}{finding.reason}"
            lines.append(f"  {finding.name:<{width}}  {numbers}  {note}".rstrip())
        if self.numbers:
            shown = (f"{name} = {_number(value)}" for name, value in self.numbers.items())
            lines.append("  " + ", ".join(shown))
        return "\n".join(lines)


def _ratio(a: float, b: float) -> float:
    return a / b if b else (0.0 if a == 0 else math.inf)


def _number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if np.isfinite(value) else str(value)
