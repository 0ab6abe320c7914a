r"""The doctor: whether a meta-gradient is right, and which mistake made it if it is not.

For an answer c every known mistake has a prediction p. What is looked at is the misfit
:math:`r = \|c - p\| / \|p\|`, also times the factors that have a name, and what is left of c beside the
direction of p, :math:`r_\perp = \sqrt{1 - \cos^2}`. A cosine alone cannot rank: a gradient whose steps
were gone back through in the wrong order has 1.0000.

A mistake is named only if its prediction agrees within what rounding explains
(:mod:`npmeta.verification.noise`), and every prediction that is not the same one is ten times as far
away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from npmeta._validation import Array
from npmeta.tasks.checks import PathLike
from npmeta.verification.computation import Path, evaluate, follow
from npmeta.verification.diagnosis import BlockReport, Diagnosis
from npmeta.verification.evidence import Evidence
from npmeta.verification.faults import FAULTS, Fault, Variant
from npmeta.verification.faults.assembly import CLIP_NORMS
from npmeta.verification.fits import Fits
from npmeta.verification.golden_files import load_problem
from npmeta.verification.hypotheses import (
    RIGHT,
    Hypothesis,
    crowds,
    known_factors,
    pairs,
    predictions,
    singles,
)
from npmeta.verification.noise import CEILING, FLOOR, Noise, relative
from npmeta.verification.problem import Problem
from npmeta.verification.recipe import Forward, Recipe

__all__ = ["Doctor", "as_answer", "diagnose"]

#: How much farther than what is named everything else has to be.
CLEARLY = 10.0
#: Predictions that are looked at closely, and how near they have to be at first sight.
MOST_LOOKED_AT, AT_FIRST_SIGHT = 12, 0.5
#: Numbers in predictions that are kept for the next answer to the same problem.
MOST_KEPT = 20_000_000
#: With fewer parameters than this a free factor, or a mistake out of thousands, fits too easily.
FEWEST_PARAMETERS = 8


def diagnose(
    problem: Problem | PathLike,
    gradient: ArrayLike | Mapping[str, ArrayLike],
    phi: ArrayLike | None = None,
    losses: ArrayLike | Mapping[str, Any] | None = None,
) -> Diagnosis:
    """Judge a meta-gradient, and name the mistake that made it.

    Parameters
    ----------
    problem : Problem, or path
        MAML, θ and the tasks; or the folder of a case (:mod:`npmeta.verification.golden_files`).
    gradient : array_like (P,), or mapping
        The answer: flat, in the order W_1 (row by row), b_1, W_2, ...; or arrays by the names
        "0.weight" (n_in, n_out), "0.bias", "1.weight", ... A float32 array is judged as float32.
    phi : array_like, (T, P) or (S + 1, T, P), optional
        Every task's parameters after the last step, or before the first and after each.
    losses : array_like (T, S) or (T, S + 1), or mapping, optional
        Support losses before every step (and after the last); or "support" with these and "query"
        with the query losses after the last step, (T,) or their mean. Whatever is given, only
        mistakes that explain it too are named.

    Returns
    -------
    Diagnosis
        ``.verdict``, ``.fault``, ``.ties``, ``.factor``, ``.misfit``, ``.runner_up``; it prints as
        one screen.

    Raises
    ------
    ValueError
        If the answer or the evidence has a shape that is not the problem's.

    Examples
    --------
    >>> import numpy as np, npmeta as nm
    >>> maml = nm.MAML(nm.MLP([1, 8, 8, 1], "tanh"), inner_lr=0.1, inner_steps=3)
    >>> theta = maml.init(np.random.default_rng(0))["theta"]
    >>> tasks = nm.tasks.Sinusoid(shots=5).sample(seed=0, iteration=0, n_tasks=3)
    >>> first_order = nm.MAML(maml.model, inner_lr=0.1, inner_steps=3, first_order=True)
    >>> gradient = first_order.meta_gradient(theta, tasks).grad
    >>> found = nm.diagnose(nm.Problem(maml, theta, tasks), gradient)
    >>> found.verdict, found.fault
    ('fail', 'first_order')
    """
    if not isinstance(problem, Problem):
        problem = load_problem(problem)
    return Doctor(problem).diagnose(gradient, phi, losses)


def as_answer(problem: Problem, gradient: ArrayLike | Mapping[str, ArrayLike]) -> Array:
    """A gradient as one vector ``(P,)``, in the dtype it came in.

    Raises
    ------
    ValueError
        If its shape, or that of an array in it, does not fit.
    """
    if isinstance(gradient, Mapping):
        arrays = {name: np.asarray(array) for name, array in gradient.items()}
        missing = sorted(set(problem.blocks) ^ set(arrays))
        if missing:
            raise ValueError(
                f"a gradient by name needs exactly {', '.join(problem.blocks)}; got {', '.join(arrays)}"
            )
        for name in problem.blocks:
            shape = _shape(problem, name)
            if arrays[name].shape != shape:
                other = " (transposed?)" if arrays[name].shape == shape[::-1] else ""
                raise ValueError(f"{name} must have shape {shape}, got {arrays[name].shape}{other}")
        gradient = np.concatenate([arrays[name].reshape(-1) for name in problem.blocks])
    c = np.asarray(gradient)
    if c.dtype.kind in "iu":
        c = c.astype(np.float64)
    if c.dtype not in (np.float32, np.float64):
        raise ValueError(f"the gradient must be float32 or float64, got {c.dtype}")
    if c.shape != (problem.P,):
        hint = ""
        weights = sum(p.stop - p.start for n, p in problem.blocks.items() if n.endswith("weight"))
        if c.shape == (problem.T, problem.P):
            hint = ": one row a task; take the mean over the tasks"
        elif c.size == weights:
            hint = ": as many as there are weights; the biases are missing"
        elif c.size == problem.P:
            hint = "; flatten it"
        raise ValueError(f"the gradient must have shape ({problem.P},), got {c.shape}{hint}")
    return c


def _shape(problem: Problem, name: str) -> tuple[int, ...]:
    if problem.model is None:
        return (problem.P,)
    layer, kind = name.split(".")
    n_in, n_out = problem.model.widths[int(layer) : int(layer) + 2]
    return (n_in, n_out) if kind == "weight" else (n_out,)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A hypothesis whose prediction has been compared with the answer."""

    hypothesis: Hypothesis
    prediction: Array
    misfit: float

    @property
    def name(self) -> str:
        return " + ".join(self.hypothesis.ids) or "right"


class Doctor:
    """:func:`diagnose` for many answers to one problem: predictions are made once.

    Parameters
    ----------
    problem : Problem
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.noise = Noise(problem)
        self.fits = Fits(problem)
        self._kept: dict[str, list[tuple[list[Hypothesis], Array]]] = {}

    def diagnose(
        self,
        gradient: ArrayLike | Mapping[str, ArrayLike],
        phi: ArrayLike | None = None,
        losses: ArrayLike | Mapping[str, Any] | None = None,
    ) -> Diagnosis:
        """As :func:`diagnose`."""
        problem = self.problem
        answer = as_answer(problem, gradient)
        evidence = Evidence(problem, phi, losses)
        single = "float32" in (answer.dtype, problem.theta.dtype)
        case = _Case(self, answer.astype(np.float64), "float32" if single else "float64", evidence)
        return case.diagnosis()

    def level(
        self, name: str, admit: Callable[[Path], bool] | None
    ) -> Iterable[tuple[list[Hypothesis], Array]]:
        """Hypotheses of a level with their predictions; those for every inner loop are kept."""
        if name in self._kept and admit is None:
            return self._kept[name]
        if name == "singles":
            hypotheses = singles(self.problem)
        elif self.problem.P < FEWEST_PARAMETERS:
            hypotheses = []
        else:
            hypotheses = {"pairs": pairs, "crowds": crowds}[name](self.problem)
        if admit is not None:
            return predictions(self.problem, hypotheses, admit)
        if len(hypotheses) * self.problem.P > MOST_KEPT:
            return predictions(self.problem, hypotheses)
        self._kept[name] = list(predictions(self.problem, hypotheses))
        return self._kept[name]


class _Case:
    """One answer under examination."""

    def __init__(self, doctor: Doctor, answer: Array, precision: str, evidence: Evidence) -> None:
        self.doctor, self.problem, self.noise = doctor, doctor.problem, doctor.noise
        self.c, self.precision, self.evidence = answer, precision, evidence
        self.g = self.problem.gradient
        self.factors: list[tuple[Fault, Variant] | None] = [None, *known_factors(self.problem)]
        self.seen: list[Candidate] = []
        self.n_tried = 0
        self.admit: Callable[[Path], bool] | None = None

    # --- the order of work ----------------------------------------------------------------------

    def diagnosis(self) -> Diagnosis:
        c, g = self.c, self.g
        if not np.isfinite(g).all():
            return self._report("inconclusive", notes=["the exact gradient itself is not finite here"])
        if not np.isfinite(c).all():
            bad = np.flatnonzero(~np.isfinite(c))
            where = next(n for n, p in self.problem.blocks.items() if p.start <= bad[0] < p.stop)
            note = f"{len(bad)} of {c.size} entries are not finite, the first in {where}"
            if self.noise.of(Recipe(), self.precision) == np.inf:
                note += f", but neither is the right gradient in {self.precision}"
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
            if found is not None and found[0].hypothesis is RIGHT:
                tolerance = self.noise.tolerance(Recipe(), "float32")
                return self._report(
                    "fail", "float32", misfit=right.misfit, tolerance=tolerance, notes=notes
                )
            if found is not None:
                notes.append("the answer has the precision of float32 only")
        if found is not None:
            return self._named(*found, notes)
        return self._unknown(right, tolerance, notes)

    def _unknown(self, right: Candidate, tolerance: float, notes: list[str]) -> Diagnosis:
        """Nothing fits. Whether the problem can decide that it should, and what comes nearest."""
        verdict = "inconclusive"
        rounding = self.noise.of(Recipe(), self.precision)
        if rounding > CEILING and right.misfit <= rounding:
            notes.append(
                f"rounding alone may move the right gradient by {rounding:.0e} here: take fewer or "
                f"smaller inner steps"
            )
        elif right.misfit <= 2 * self.noise.at_kinks(self.precision):
            notes.append(
                "pre-activations lie so near a kink that rounding decides on their side, which may "
                "explain the misfit: move θ or the data a little, or use float64"
            )
        else:
            verdict = "fail"
        if self.admit is not None:
            self.admit, seen = None, self.seen
            found = self._search(right)
            self.seen = seen
            if found is not None:
                notes.append(f"{found[0].name} would explain the gradient, but not what came before it")
        nearest = min(self.seen, key=lambda one: one.misfit, default=None)
        return self._report(
            verdict, misfit=right.misfit, tolerance=tolerance, runner_up=nearest, notes=notes
        )

    def _weigh_evidence(self) -> list[str]:
        """Compare the evidence with the right inner loop; from then on only what fits is admitted."""
        self.checks: dict[str, tuple[float, bool]] = {}
        if not self.evidence:
            return []
        allowed = self.evidence.tolerance(self.precision)
        for name, misfit in self.evidence.misfits(follow(self.problem, Forward())).items():
            self.checks[name] = misfit, misfit <= allowed
        factors = [1.0 if part is None else _factor(part) for part in self.factors]
        self.admit = lambda path: all(
            misfit <= allowed for misfit in self.evidence.misfits(path, factors).values()
        )
        where = self.evidence.first_difference(allowed)
        return [where] if where else []

    def _search(self, right: Candidate) -> tuple[Candidate, list[Candidate]] | None:
        """The best explanation with its ties: from the simplest on, and no further than one fits."""
        self.seen, self.n_tried = [], 0
        stages: list[Callable[[], Iterator[Candidate]]] = [
            self._simple,
            lambda: self._of_level("pairs"),
            self._fitted,
            self._block_by_block,
            lambda: self._of_level("crowds"),
        ]
        if right.misfit < FLOOR["float32"]:
            stages.pop()  # so near, it is rounding, or one of the mistakes of little effect above
        for stage in stages:
            self.seen += stage()
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
        if self.admit is None or all(agrees for _, agrees in self.checks.values()):
            yield from self._looked_at([RIGHT], self.g[None])
            yield from self._times_any(RIGHT, self.g)
        yield from self._of_level("singles")

    def _fitted(self) -> Iterator[Candidate]:
        """Mistakes with a number in them, with the number that fits best; and any factor at all."""
        if self.problem.P < FEWEST_PARAMETERS:
            return
        for chosen in self.doctor.fits.near(self.c, self.admit):
            row = evaluate(self.problem, chosen.recipe)
            yield from self._looked_at([chosen], row[None])
        for one in list(self.seen):
            if len(one.hypothesis.parts) < 3 and one.hypothesis.parts:
                yield from self._times_any(one.hypothesis, one.prediction)

    def _block_by_block(self) -> Iterator[Candidate]:
        """Several arrays of parameters that are zero or first order, where all others are right."""
        looks: dict[str, list[str]] = {}
        for block in self._blocks(self.noise.tolerance(Recipe(), self.precision)):
            looks.setdefault(block.looks, []).append(block.name)
        if "right" not in looks or not set(looks) <= {"right", "zero", "first order"}:
            return
        parts = [
            (FAULTS[id], Variant({"finish": ((what, tuple(looks[what])),)}, ", ".join(looks[what])))
            for what, id in (("zero", "block_zero"), ("first order", "block_first_order"))
            if what in looks
        ]
        hypothesis = Hypothesis.of(*parts)
        if self.admit is None or self.admit(follow(self.problem, Forward())):
            yield from self._looked_at([hypothesis], evaluate(self.problem, hypothesis.recipe)[None])

    # --- comparing ------------------------------------------------------------------------------

    def _of_level(self, name: str) -> Iterator[Candidate]:
        for hypotheses, rows in self.doctor.level(name, self.admit):
            yield from self._looked_at(hypotheses, rows)

    def _looked_at(self, hypotheses: Sequence[Hypothesis], rows: Array) -> Iterator[Candidate]:
        """The nearest of many, each with the factors that have a name."""
        c = self.c
        self.n_tried += len(hypotheses) * len(self.factors)
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = np.linalg.norm(rows, axis=1)
            cosine = rows @ (c / np.linalg.norm(c)) / lengths
            share = np.linalg.norm(c) / lengths
        for part in self.factors:
            factor = 1.0 if part is None else _factor(part)
            # ‖c − f p‖² / ‖f p‖² by the law of cosines; good to 1e-8, and so for a first sight only.
            k = share / factor
            r = np.sqrt(np.maximum(0, 1 + k * k - 2 * k * cosine))
            r[~np.isfinite(r)] = np.inf
            near = np.flatnonzero(r < AT_FIRST_SIGHT)
            for i in near[np.argsort(r[near])[:MOST_LOOKED_AT]]:
                hypothesis = hypotheses[i] if part is None else hypotheses[i] + part
                prediction = factor * rows[i]
                yield Candidate(hypothesis, prediction, relative(c, prediction))

    def _times_any(self, hypothesis: Hypothesis, p: Array) -> Iterator[Candidate]:
        """A prediction times the factor that suits best, which may have no name."""
        if self.problem.P < FEWEST_PARAMETERS or any(f.stage == "scale" for f, _ in hypothesis.parts):
            return
        factor = float(self.c @ p / (p @ p))
        beside = relative(self.c, factor * p) if factor else np.inf
        if beside > AT_FIRST_SIGHT:
            return
        id = "scaled" if factor > 0 else "update"
        norm = float(np.linalg.norm(self.c))
        clipped = [c for c in CLIP_NORMS if abs(norm - c) <= 1e-4 * c]
        # A norm that is round to more digits than chance gives, and smaller than it was.
        if clipped and 0 < factor < 1:
            id, found = "norm_clipped", clipped[0]
            part = FAULTS[id], Variant({"finish": (("norm", found),)}, f"to {found:g}", found)
        else:
            part = FAULTS[id], Variant({"finish": (("times", factor),)}, "", factor)
        yield Candidate(hypothesis + part, factor * p, beside)

    def _nearest(self) -> float:
        return min((one.misfit for one in self.seen), default=np.inf)

    def _best(self) -> tuple[Candidate, list[Candidate]] | None:
        """What agrees, and the others that cannot be told from it here."""
        order = sorted(self.seen, key=lambda one: one.misfit)
        # What is right comes first: an answer that agrees with it is right, whatever else agrees.
        for best in sorted(order[:MOST_LOOKED_AT], key=lambda one: one.hypothesis is not RIGHT):
            tolerance = self.noise.tolerance(best.hypothesis.recipe, self.precision)
            if best.misfit > tolerance or (tolerance == 0 and best.hypothesis is not RIGHT):
                continue
            same = [one for one in order if relative(one.prediction, best.prediction) <= tolerance]
            # Of what predicts the same, the simplest is named: fewest mistakes, first on the list.
            same.sort(key=lambda one: _complexity(one.hypothesis))
            near = [one for one in order if one.misfit < CLEARLY * best.misfit and one not in same]
            return same[0], [*same[1:], *near]
        return None

    # --- reporting ------------------------------------------------------------------------------

    def _named(self, best: Candidate, same: list[Candidate], notes: list[str]) -> Diagnosis:
        tolerance = self.noise.tolerance(best.hypothesis.recipe, self.precision)
        near = {id(best), *(id(one) for one in same)}
        named = set(best.hypothesis.ids)
        # The same with something more is no other explanation.
        others = [
            one
            for one in self.seen
            if id(one) not in near and (not named or not named <= set(one.hypothesis.ids))
        ]
        runner_up = min(others, key=lambda one: one.misfit, default=None)
        # With more mistakes than needed, or a factor that is free, everything can be explained.
        fewest = max(len(best.hypothesis.parts), 1)
        ties = [
            one.name
            for one in same
            if len(one.hypothesis.parts) <= fewest and not _named_freely(one.hypothesis)
        ]
        ties = [name for name in dict.fromkeys(ties) if name != best.name]
        if ties:
            notes = [*notes, _what_would_tell(self.problem, best.hypothesis is RIGHT)]
        right = best.hypothesis is RIGHT
        if not right and any(one.hypothesis is RIGHT for one in same):
            notes = [*notes, "a right answer with a little more rounding than expected fits as well"]
            return self._report(
                "inconclusive", misfit=best.misfit, tolerance=tolerance, ties=(best.name,), notes=notes
            )
        parts = best.hypothesis.parts
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
        return Diagnosis(
            verdict,
            fault,
            misfit,
            tolerance,
            runner_up=None if runner_up is None else runner_up.name,
            runner_up_misfit=np.inf if runner_up is None else runner_up.misfit,
            n_tried=self.n_tried,
            checks=getattr(self, "checks", {}),
            blocks=tuple(self._blocks(tolerance)) if finite else (),
            notes=tuple(notes),
            difference=self.c - self.g,
            gradient=self.g,
            **more,
        )

    def _blocks(self, tolerance: float) -> Iterator[BlockReport]:
        first_order = evaluate(self.problem, Recipe().having({"curvature": 0.0}))
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


def _factor(part: tuple[Fault, Variant]) -> float:
    assert part[1].factor is not None
    return part[1].factor


def _complexity(hypothesis: Hypothesis) -> tuple[bool, int, list[int]]:
    ids = list(FAULTS)
    return (
        _named_freely(hypothesis),
        len(hypothesis.parts),
        [ids.index(id) for id in hypothesis.ids],
    )


def _named_freely(hypothesis: Hypothesis) -> bool:
    """Whether it has a factor without a name."""
    return any(fault.id in ("scaled", "update") for fault, _ in hypothesis.parts)


def _what_would_tell(problem: Problem, right: bool) -> str:
    """How a problem differs from the design in which no two mistakes coincide."""
    model, tasks = problem.model, problem.tasks
    lacks = []
    if problem.S < 3:
        lacks.append(f"3 inner steps (here {problem.S})")
    if problem.T < 3:
        lacks.append(f"3 tasks (here {problem.T})")
    if model is None or all(f.name == "identity" for f in model.activations):
        lacks.append("a network with a smooth nonlinear activation")
    elif any(f.kinks for f in model.activations):
        lacks.append("a smooth activation, tanh say")
    sizes = {"K": problem.K, "Q": problem.Q, "d_out": problem.n_outputs, "T": problem.T}
    if len({*sizes.values(), 1, 2}) < len(sizes) + 2:
        shown = ", ".join(f"{name} = {value}" for name, value in sizes.items())
        lacks.append(f"different sizes, none of them 1 or 2 (here {shown})")
    if np.max(np.abs(problem.maml.inner_lr)) < 0.03:
        lacks.append("larger inner steps, of 0.1 say")
    if tasks.support_x.shape == tasks.query_x.shape and np.array_equal(tasks.support_x, tasks.query_x):
        lacks.append("other rows in the query set than in the support set")
    purpose = "A problem that sees them has" if right else "A problem that tells them apart has"
    return f"{purpose} {'; '.join(lacks)}." if lacks else "No problem tells these apart."
