"""One answer under examination: compared with everything that is known, from the simplest on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from npmeta._support.validation import Array
from npmeta.verification.doctor.assembly import Assembly, DropSecondOrder, SetToZero
from npmeta.verification.doctor.candidates import (
    Candidate,
    any_factor,
    complexity,
    factor_of,
    named_freely,
)
from npmeta.verification.doctor.choices import Backward, Forward
from npmeta.verification.doctor.diagnosis import BlockReport, Diagnosis
from npmeta.verification.doctor.evidence import Evidence
from npmeta.verification.doctor.explanations import (
    RIGHT,
    Explanation,
    is_large,
    known_factors,
    left_out,
)
from npmeta.verification.doctor.faults import FAULTS, Fault, Variant
from npmeta.verification.doctor.inner_loop import InnerLoop, run_loop
from npmeta.verification.doctor.predictions import FEWEST_PARAMETERS, LOOPS, Predictions
from npmeta.verification.doctor.recipe import Recipe, gradient_by
from npmeta.verification.doctor.telling_apart import what_would_tell
from npmeta.verification.rounding import CEILING, CEILING_OF_MISTAKES, FLOOR, relative

__all__ = ["Examination"]

#: How much farther than what is named everything else has to be.
CLEARLY = 10.0
#: Predictions that are looked at closely, and how near they have to be at first sight.
MOST_LOOKED_AT, AT_FIRST_SIGHT = 12, 0.5
#: Numbers in predictions that are held for a comparison among them, and predictions at least.
MOST_HELD, FEWEST_HELD = 4_000_000, 20
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
        self.known, self.problem, self.noise = known, known.problem, known.noise
        self.c, self.precision, self.evidence = answer, precision, evidence
        # The right gradient, summed up in the order in which it comes nearest: where rounding is all,
        # npmeta's own forms differ.
        forms = (self.problem.gradient, gradient_by(self.problem, Recipe()))
        self.g = min(forms, key=lambda g: relative(answer, g))
        self.factors: list[tuple[Fault, Variant] | None] = [None, *known_factors(self.problem)]
        self.seen: list[Candidate] = []
        # What has the answer's direction, or nearly, and its cosine.
        self.aligned: list[tuple[float, Explanation, Array]] = []
        self.n_tried = 0
        self.checks: dict[str, tuple[float, bool]] = {}
        self.admit: Callable[[InnerLoop], bool] | None = None  # which inner loops the evidence allows

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
            self.admit = None  # whatever came before the gradient
        found = self._search(right)
        if found is None and self.precision == "float64" and self._nearest() < CEILING:
            found = self._search_in_float32(right)
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
        if self.admit is not None:
            self.admit, seen = None, self.seen
            found = self._search(right)
            self.seen = seen
            if found is not None:
                notes.append(f"{found[0].name} would explain the gradient, but not what came before it")
        return self._report(
            "inconclusive" if undecided else "fail",
            misfit=right.misfit,
            tolerance=tolerance,
            runner_up=min(self.seen, key=lambda one: one.misfit, default=None),
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
        factors = [1.0 if part is None else factor_of(part) for part in self.factors]
        self.admit = lambda loop: all(
            misfit <= allowed for misfit in self.evidence.misfits(loop, factors).values()
        )
        where = self.evidence.first_difference(allowed)
        return [where] if where else []

    def _admitted(self, explanation: Explanation) -> bool:
        """Whether the evidence allows it."""
        return self.admit is None or self.admit(run_loop(self.problem, explanation.recipe.forward))

    def _search(self, right: Candidate) -> tuple[Candidate, list[Candidate]] | None:
        """The best explanation with its ties: from the simplest on, and no further than one fits."""
        self.seen, self.aligned, self.n_tried = [], [], 0
        simple: list[Callable[[], Iterator[Candidate]]] = [self._simple]
        if is_large(self.problem):  # not all of them together, which is how ties are seen
            simple = [self._right, *(partial(self._of_level, name) for name in LOOPS)]
        stages: list[Callable[[], Iterator[Candidate]]] = [
            *simple,
            self._fitted,
            self._times_any,
            lambda: self._of_level("pairs"),
            self._times_any,
            self._block_by_block,
            lambda: self._of_level("crowds"),
        ]
        # An answer as near as float32 is rounded, or has one mistake of little effect.
        if right.misfit < FLOOR["float32"] or self._undecided(right):
            del stages[len(simple) + 2 :]
        for stage in stages:
            for one in stage():
                self.seen.append(one)
                if len(self.seen) >= 2 * self._room:
                    self.seen = self._nearest_of(self.seen)
            found = self._best()
            if found is not None:
                return found
        return None

    def _search_in_float32(self, right: Candidate) -> tuple[Candidate, list[Candidate]] | None:
        """What has been seen, judged by what rounding to float32 does."""
        self.precision = "float32"
        found = self._best()
        if found is None:
            self.precision = "float64"
        return found

    def _simple(self) -> Iterator[Candidate]:
        """What is right, every single mistake, and a factor on each of these."""
        yield from self._right()
        yield from self._of_level("singles")

    def _right(self) -> Iterator[Candidate]:
        if self._admitted(RIGHT):
            yield from self._looked_at([RIGHT], self.g[None])

    def _fitted(self) -> Iterator[Candidate]:
        """Mistakes with a number in them, with the number that fits best."""
        if self.problem.P < FEWEST_PARAMETERS:
            return
        yield from self._times_any(RIGHT)
        for chosen in self.known.fits.near(self.c, self.admit):
            row = gradient_by(self.problem, chosen.recipe)
            yield from self._looked_at([chosen], row[None])

    def _block_by_block(self) -> Iterator[Candidate]:
        """Several arrays of parameters that are zero or first order, where all others are right."""
        looks: dict[str, list[str]] = {}
        for block in self._blocks(self.noise.tolerance(Recipe(), self.precision)):
            looks.setdefault(block.looks, []).append(block.name)
        if "right" not in looks or not set(looks) <= {"right", "zero", "first order"}:
            return
        parts = [
            (
                FAULTS[id],
                Variant(Assembly(finish=(change(tuple(looks[what])),)), ", ".join(looks[what])),
            )
            for what, id, change in (
                ("zero", "block_zero", SetToZero),
                ("first order", "block_first_order", DropSecondOrder),
            )
            if what in looks
        ]
        explanation = Explanation.of(*parts)
        if self._admitted(explanation):
            yield from self._looked_at(
                [explanation], gradient_by(self.problem, explanation.recipe)[None]
            )

    # --- comparing ------------------------------------------------------------------------------

    def _of_level(self, name: str) -> Iterator[Candidate]:
        for explanations, rows in self.known.level(name, self.admit):
            yield from self._looked_at(explanations, rows)

    def _looked_at(self, explanations: Sequence[Explanation], rows: Array) -> Iterator[Candidate]:
        """The nearest of many, each with the factors that have a name."""
        c = self.c
        self.n_tried += len(explanations) * len(self.factors)
        lengths = np.linalg.norm(rows, axis=1)
        cosine = rows @ (c / np.linalg.norm(c)) / lengths
        share = np.linalg.norm(c) / lengths
        for i in np.argsort(-np.abs(cosine))[:MOST_LOOKED_AT]:
            # Else the tangent of the angle, which is the misfit with the best factor, is too large.
            if np.abs(cosine[i]) * np.sqrt(1 + AT_FIRST_SIGHT**2) > 1 - 1e-6:
                self.aligned.append((np.abs(cosine[i]), explanations[i], rows[i].copy()))
        if len(self.aligned) >= 2 * self._room:
            self.aligned = sorted(self.aligned, key=lambda one: -one[0])[: self._room]
        for part in self.factors:
            factor = 1.0 if part is None else factor_of(part)
            # ‖c − f p‖² / ‖f p‖² by the law of cosines; good to 1e-8, and so for a first sight only.
            k = share / factor
            r = np.sqrt(np.maximum(0, 1 + k * k - 2 * k * cosine))
            r[~np.isfinite(r)] = np.inf
            near = np.flatnonzero(r < AT_FIRST_SIGHT)
            for i in near[np.argsort(r[near])[:MOST_LOOKED_AT]]:
                explanation = explanations[i] if part is None else explanations[i] + part
                prediction = factor * rows[i]
                yield Candidate(explanation, prediction, relative(c, prediction))

    def _times_any(self, only: Explanation | None = None) -> Iterator[Candidate]:
        """What has nearly the answer's direction, times the factor that suits best."""
        aligned = [one for one in self.aligned if only in (None, one[1])]
        for _, explanation, p in aligned if self.problem.P >= FEWEST_PARAMETERS else ():
            factor = float(self.c @ p / (p @ p))
            beside = relative(self.c, factor * p) if factor else np.inf
            if beside <= AT_FIRST_SIGHT:
                yield Candidate(explanation + any_factor(self.c, factor), factor * p, beside)
        if only is None:
            self.aligned = []

    @property
    def _room(self) -> int:
        """How many predictions are held: of a large network their memory is what counts."""
        return max(MOST_HELD // self.problem.P, FEWEST_HELD)

    def _nearest_of(self, candidates: list[Candidate]) -> list[Candidate]:
        return sorted(candidates, key=lambda one: one.misfit)[: self._room]

    def _nearest(self) -> float:
        return min((one.misfit for one in self.seen), default=np.inf)

    def _best(self) -> tuple[Candidate, list[Candidate]] | None:
        """What agrees, and the others that cannot be told from it here."""
        order = sorted(self.seen, key=lambda one: one.misfit)
        # What is right comes first: an answer that agrees with it is right, whatever else agrees.
        for best in sorted(order[:MOST_LOOKED_AT], key=lambda one: one.explanation is not RIGHT):
            if best.misfit > CEILING_OF_MISTAKES:  # no tolerance is larger
                continue
            tolerance = self.noise.tolerance(best.explanation.recipe, self.precision)
            if best.misfit > tolerance:
                continue
            same = [one for one in order if relative(one.prediction, best.prediction) <= tolerance]
            # Of what predicts the same, the simplest is named: fewest mistakes, first on the list.
            same.sort(key=lambda one: complexity(one.explanation))
            near = [one for one in order if one.misfit < CLEARLY * best.misfit and one not in same]
            return same[0], [*same[1:], *near]
        return None

    # --- reporting ------------------------------------------------------------------------------

    def _named(self, best: Candidate, same: list[Candidate], notes: list[str]) -> Diagnosis:
        tolerance = self.noise.tolerance(best.explanation.recipe, self.precision)
        near = {id(best), *(id(one) for one in same)}
        named = set(best.explanation.ids)
        # The same with something more is no other explanation.
        others = [
            one
            for one in self.seen
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
            n_tried=self.n_tried,
            not_tried=not_tried,
            checks=self.checks,
            blocks=tuple(self._blocks(tolerance)) if finite else (),
            notes=tuple(notes),
            difference=self.c - self.g,
            gradient=self.g,
            **more,
        )

    def _blocks(self, tolerance: float) -> Iterator[BlockReport]:
        first_order = gradient_by(self.problem, Recipe().having(Backward(curvature=0.0)))
        whole = float(np.linalg.norm(self.g))
        for name, place in self.problem.blocks.items():
            c, g, q = self.c[place], self.g[place], first_order[place]
            size = float(np.linalg.norm(g))
            looks = {"right": g, "first order": q, "zero": np.zeros_like(g), "negated": -g}
            # A block much smaller than the whole is no more exact than the whole.
            allowed = tolerance * max(size, 1e-3 * whole)
            fitting = [look for look, p in looks.items() if np.linalg.norm(c - p) <= allowed]
            norms = float(np.linalg.norm(c)) * size
            yield BlockReport(
                name,
                g.size,
                relative(c, g),
                float(c @ g / norms) if norms else 0.0,
                float(np.linalg.norm(c) / size) if size else np.inf,
                fitting[0] if fitting else "",
            )
