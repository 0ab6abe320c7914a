"""One answer under examination: what the search for an explanation has found, as a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from npmeta._support.validation import Array
from npmeta.verification.doctor.answers import Evidence
from npmeta.verification.doctor.candidates import Candidate, factor_of, named_freely
from npmeta.verification.doctor.choices import Forward
from npmeta.verification.doctor.diagnosis import Diagnosis
from npmeta.verification.doctor.explanations import RIGHT, is_large, left_out
from npmeta.verification.doctor.inner_loop import run_loop
from npmeta.verification.doctor.predictions import Predictions
from npmeta.verification.doctor.recipe import Recipe, gradient_by
from npmeta.verification.doctor.search import CLEARLY, Search, blocks_of
from npmeta.verification.doctor.telling_apart import what_would_tell
from npmeta.verification.rounding import CEILING, FLOOR, relative

#: How many times the support loss may have grown in an inner loop that is to be judged. Saturated
#: units, say, have slopes that one implementation computes to the last digit, and another as 1 − 1.
RUN_AWAY = 1e4


class Examination:
    """One answer under examination.

    Parameters
    ----------
    known : Predictions
        What is known of the problem.
    answer : ndarray, (P,)
    precision : {"float64", "float32"}
    evidence : Evidence
    """

    def __init__(self, known: Predictions, answer: Array, precision: str, evidence: Evidence) -> None:
        self.problem, self.noise = known.problem, known.noise
        self.c, self.evidence = answer, evidence
        # The right gradient, summed up in the order in which it comes nearest: where rounding is all,
        # npmeta's own forms differ.
        forms = (self.problem.gradient, gradient_by(self.problem, Recipe()))
        self.g = min(forms, key=lambda g: relative(answer, g))
        self.search = Search(known, answer, self.g, precision)
        self.checks: dict[str, tuple[float, bool]] = {}

    @property
    def precision(self) -> str:
        """That by which the answer is judged."""
        return self.search.precision

    # --- the order of work ----------------------------------------------------------------------

    def diagnosis(self) -> Diagnosis:
        """What is not finite, zero or right first; then the known mistakes; then what is unknown."""
        c, g = self.c, self.g
        if not np.isfinite(g).all():
            return self._report("inconclusive", notes=["the exact gradient itself is not finite here"])
        if not np.isfinite(c).all():
            bad = np.flatnonzero(~np.isfinite(c))
            where = next(n for n, p in self.problem.blocks.items() if p.start <= bad[0] < p.stop)
            note = f"{len(bad)} of {c.size} entries are not finite, the first in {where}"
            if self.noise.of(Recipe(), self.precision) == np.inf or self._runs_away():
                note += f", but the inner loop runs away in {self.precision}"
                return self._report("inconclusive", notes=[note])
            return self._report("fail", "not_finite", notes=[note])
        notes = self._weigh_evidence()
        if not c.any() and g.any():
            return self._report("fail", "zeros", misfit=0.0, notes=notes)
        if not g.any():
            verdict = "fail" if c.any() else "pass"
            return self._report(verdict, notes=[*notes, "the exact gradient is zero here"])

        right = Candidate(RIGHT, g, relative(c, g))
        tolerance = self.noise.tolerance(Recipe(), self.precision)
        if right.misfit <= tolerance:
            self.search.admit = None  # whatever came before the gradient
        found = self.search.run(fully=self._far_from(right))
        nearest = self.search.nearest()
        if found is None and self.precision == "float64" and nearest and nearest.misfit < CEILING:
            found = self.search.again_in_float32()
            if found is not None and found[0].explanation is RIGHT:
                return self._precise_to_float32(right, notes)
            if found is not None:
                notes.append("the answer has the precision of float32 only")
        if found is not None:
            return self._named(*found, notes)
        return self._unknown(right, tolerance, notes)

    def _precise_to_float32(self, right: Candidate, notes: list[str]) -> Diagnosis:
        """Right but for rounding that is float32's, or may be."""
        tolerance = self.noise.tolerance(Recipe(), "float32")
        if (self.c.astype(np.float32) == self.c).all():  # which chance does not do
            return self._report(
                "fail", "float32", misfit=right.misfit, tolerance=tolerance, notes=notes
            )
        notes.append(
            "the answer agrees to the precision of float32 only: a part of it was computed in float32, "
            "or with functions that are no better (a softplus that is cut off, say)"
        )
        return self._report("inconclusive", misfit=right.misfit, tolerance=tolerance, notes=notes)

    def _unknown(self, right: Candidate, tolerance: float, notes: list[str]) -> Diagnosis:
        """Nothing fits. Whether the problem can decide that it should, and what comes nearest."""
        undecided = self._undecided(right)
        notes += [undecided] if undecided else []
        nearest = self.search.nearest()
        if self.search.admit is not None:
            self.search.admit = None
            found = self.search.run(fully=self._far_from(right))
            if found is not None:
                notes.append(f"{found[0].name} would explain the gradient, but not what came before it")
        return self._report(
            "inconclusive" if undecided else "fail",
            misfit=right.misfit,
            tolerance=tolerance,
            runner_up=nearest,
            notes=notes,
        )

    def _undecided(self, right: Candidate) -> str:
        """Why the misfit of the right gradient may be no mistake; empty if it is one."""
        rounding = self.noise.of(Recipe(), self.precision)
        if right.misfit <= 2 * self.noise.at_kinks(self.precision):
            return (
                "pre-activations lie so near a kink that rounding decides on their side, which may "
                "explain the misfit: move θ or the data a little, or use float64"
            )
        if rounding > CEILING and right.misfit <= rounding:
            size = f"by {rounding:.0e}" if rounding < 1 else "by more than its own length"
            return (
                f"rounding alone may move the right gradient {size} here: take fewer or smaller inner "
                f"steps"
            )
        if self._runs_away():
            return (
                "the inner loop runs away, to where digits that implementations differ in decide: take "
                "fewer or smaller inner steps"
            )
        return ""

    def _far_from(self, right: Candidate) -> bool:
        """Whether it may have several mistakes: not if it is as near as float32 is rounded, or has one
        of little effect."""
        return right.misfit >= FLOOR["float32"] and not self._undecided(right)

    def _runs_away(self) -> bool:
        """Whether the support loss has grown out of all proportion."""
        loop = run_loop(self.problem, Forward(), whole=False)
        first, last = (float(loop.support(s).value.mean()) for s in (0, loop.n_steps))
        return not last <= RUN_AWAY * abs(first)

    def _weigh_evidence(self) -> list[str]:
        """Compare the evidence with the right inner loop; from then on only what fits is admitted."""
        if not self.evidence:
            return []
        allowed = self.evidence.tolerance(self.precision)
        for name, misfit in self.evidence.misfits(run_loop(self.problem, Forward())).items():
            self.checks[name] = misfit, misfit <= allowed
        factors = [1.0 if part is None else factor_of(part) for part in self.search.factors]
        self.search.admit = lambda loop: all(
            misfit <= allowed for misfit in self.evidence.misfits(loop, factors).values()
        )
        where = self.evidence.first_difference(allowed)
        return [where] if where else []

    # --- reporting ------------------------------------------------------------------------------

    def _named(self, best: Candidate, same: list[Candidate], notes: list[str]) -> Diagnosis:
        tolerance = self.noise.tolerance(best.explanation.recipe, self.precision)
        near = {id(best), *(id(one) for one in same)}
        named = set(best.explanation.ids)
        # The same with something more is no other explanation.
        others = [
            one
            for one in self.search.seen
            if id(one) not in near and (not named or not named <= set(one.explanation.ids))
        ]
        runner_up = min(others, key=lambda one: one.misfit, default=None)
        # With more mistakes than needed, or a factor that is free, everything can be explained.
        fewest = max(len(best.explanation.parts), 1)
        ties = [
            one.name
            for one in same
            if len(one.explanation.parts) <= fewest and not named_freely(one.explanation)
        ]
        ties = [name for name in dict.fromkeys(ties) if name != best.name]
        if ties:
            notes = [*notes, what_would_tell(self.problem, best.explanation is RIGHT)]
        right = best.explanation is RIGHT
        # Nobody is to be told of a mistake for having rounded a little more than expected.
        nearly = CLEARLY * self.noise.tolerance(Recipe(), self.precision)
        if not right and relative(self.c, self.g) <= nearly:
            notes = [*notes, "a right answer with a little more rounding than expected fits as well"]
            return self._report(
                "inconclusive",
                misfit=best.misfit,
                tolerance=tolerance,
                ties=(best.name, *ties),
                notes=notes,
            )
        parts = best.explanation.parts
        numbers = [variant.factor for _, variant in parts if variant.factor is not None]
        return self._report(
            "pass" if right else "fail",
            None if right else best.name,
            misfit=best.misfit,
            tolerance=tolerance,
            ties=tuple(ties),
            factor=numbers[0] if len(numbers) == 1 else None,
            detail=", ".join(variant.detail for _, variant in parts if variant.detail),
            runner_up=runner_up,
            notes=notes,
        )

    def _report(
        self,
        verdict: str,
        fault: str | None = None,
        *,
        misfit: float = np.inf,
        tolerance: float = CEILING,
        runner_up: Candidate | None = None,
        notes: Sequence[str] = (),
        **more: Any,
    ) -> Diagnosis:
        finite = np.isfinite(self.c).all() and np.isfinite(self.g).all()
        large = is_large(self.problem) and fault not in ("not_finite", "zeros")
        not_tried = ""
        if finite and large and (fault is not None or verdict == "pass"):
            not_tried = "more, once this had been found: other mistakes may make the same gradient here"
        elif finite and fault is None and verdict != "pass":
            not_tried = left_out(self.problem)
        if not_tried:
            not_tried += "; with fewer tasks or a smaller network all of it is"
        return Diagnosis(
            verdict,
            fault,
            misfit,
            tolerance,
            runner_up=None if runner_up is None else runner_up.name,
            runner_up_misfit=np.inf if runner_up is None else runner_up.misfit,
            n_tried=self.search.n_tried,
            not_tried=not_tried,
            checks=self.checks,
            blocks=tuple(blocks_of(self.problem, self.c, self.g, tolerance)) if finite else (),
            notes=tuple(notes),
            difference=self.c - self.g,
            gradient=self.g,
            **more,
        )
