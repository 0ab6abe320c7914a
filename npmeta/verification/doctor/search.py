"""Everything that is known compared with one answer, from the simplest explanation on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from npmeta._support.validation import Array
from npmeta.verification.doctor.assembly import Assembly, DropSecondOrder, SetToZero
from npmeta.verification.doctor.candidates import (
    Candidate,
    any_factor,
    complexity,
    factor_of,
)
from npmeta.verification.doctor.choices import Backward
from npmeta.verification.doctor.diagnosis import BlockReport
from npmeta.verification.doctor.explanations import RIGHT, Explanation, is_large, known_factors
from npmeta.verification.doctor.faults import FAULTS, Fault, Variant
from npmeta.verification.doctor.inner_loop import InnerLoop, run_loop
from npmeta.verification.doctor.predictions import FEWEST_PARAMETERS, LOOPS, Predictions
from npmeta.verification.doctor.problem import Problem
from npmeta.verification.doctor.recipe import Recipe, gradient_by
from npmeta.verification.rounding import CEILING_OF_MISTAKES, relative

#: How much farther than what is named everything else has to be.
CLEARLY = 10.0
#: Predictions that are looked at closely, and how near they have to be at first sight.
MOST_LOOKED_AT, AT_FIRST_SIGHT = 12, 0.5
#: Numbers in predictions that are held for a comparison among them, and predictions at least.
MOST_HELD, FEWEST_HELD = 4_000_000, 20


class Search:
    """The search for what explains one answer.

    Parameters
    ----------
    known : Predictions
        What is known of the problem.
    answer, gradient : ndarray, (P,)
        What is to be explained, and what would be right.
    precision : {"float64", "float32"}

    Attributes
    ----------
    admit : callable or None
        Which inner loops may be the one; by default all.
    seen : list of Candidate
        What came near.
    n_tried : int
    """

    def __init__(self, known: Predictions, answer: Array, gradient: Array, precision: str) -> None:
        self.known, self.problem, self.noise = known, known.problem, known.noise
        self.c, self.g, self.precision = answer, gradient, precision
        self.factors: list[tuple[Fault, Variant] | None] = [None, *known_factors(self.problem)]
        self.seen: list[Candidate] = []
        # What has the answer's direction, or nearly, and its cosine.
        self.aligned: list[tuple[float, Explanation, Array]] = []
        self.n_tried = 0
        self.admit: Callable[[InnerLoop], bool] | None = None

    def _admitted(self, explanation: Explanation) -> bool:
        """Whether the evidence allows it."""
        return self.admit is None or self.admit(run_loop(self.problem, explanation.recipe.forward))

    def run(self, *, fully: bool = True) -> tuple[Candidate, list[Candidate]] | None:
        """The best explanation with its ties: from the simplest on, and no further than one fits.

        Unless ``fully``, nothing is tried but single mistakes.
        """
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
        if not fully:
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

    def again_in_float32(self) -> tuple[Candidate, list[Candidate]] | None:
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
        tolerance = self.noise.tolerance(Recipe(), self.precision)
        for block in blocks_of(self.problem, self.c, self.g, tolerance):
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

    def nearest(self) -> Candidate | None:
        """What has come nearest."""
        return min(self.seen, key=lambda one: one.misfit, default=None)

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


def blocks_of(
    problem: Problem, answer: Array, gradient: Array, tolerance: float
) -> Iterator[BlockReport]:
    """The arrays of an answer beside the right ones."""
    first_order = gradient_by(problem, Recipe().having(Backward(curvature=0.0)))
    whole = float(np.linalg.norm(gradient))
    for name, place in problem.blocks.items():
        c, g, q = answer[place], gradient[place], first_order[place]
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
