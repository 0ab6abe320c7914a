"""What may have gone wrong: each known mistake, any two that go together, and the usual crowds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby, product

import numpy as np

from npmeta._support.validation import Array
from npmeta.verification.doctor.computation import (
    Path,
    follow,
    handed_over,
    over_tasks,
    pull_back,
)
from npmeta.verification.doctor.faults import FAULTS, Fault, Variant
from npmeta.verification.doctor.faults.normalised import NORMALISED
from npmeta.verification.doctor.problem import Problem
from npmeta.verification.doctor.recipe import Forward, Recipe

__all__ = [
    "RIGHT",
    "Hypothesis",
    "crowds",
    "is_large",
    "known_factors",
    "left_out",
    "pairs",
    "predictions",
    "singles",
    "work",
]

#: Mistakes with a number in them that only a fit can find, or that are seen in the answer itself.
#: They are not computed in advance.
FOUND_OTHERWISE = {
    "inner_lr",
    "updated_theta",
    "at_updated_theta",
    "outer_step_per_task",
    "outer_weight_decay",
    "values_clipped",
    "zeros",
    "float32",
    "not_finite",
}

#: Step-size factors that hardly ever come with two mistakes more.
RARE_STEP_SIZES = {"inner_lr_over_outputs", "inner_lr_halved", "inner_ascent", "not_adapted"}
#: Choices that also matter where nothing is adapted.
OF_NO_INNER_LOOP = {"lr_factor", "score_on", "adapt_on", "activation", "loss", "tasks", "finish"}

#: Work above which crowds are left out; pairs are limited to those with a likely choice; and nothing is
#: tried but single mistakes and the pairs that cost little beside them, one after another until one
#: fits. In numbers to be computed in an inner loop, and what a call of NumPy costs beside them.
MOST_FOR_CROWDS, MOST_FOR_ALL_PAIRS, MOST_FOR_LIKELY_PAIRS = 20_000, 120_000, 1_500_000
CALLS = 2_000


@dataclass(frozen=True)
class Hypothesis:
    """Mistakes made together, and the recipe that they make."""

    parts: tuple[tuple[Fault, Variant], ...]
    recipe: Recipe

    @staticmethod
    def of(*parts: tuple[Fault, Variant]) -> Hypothesis:
        recipe = Recipe()
        for _, variant in parts:
            recipe = recipe.having(variant.changes)
        return Hypothesis(parts, recipe)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(fault.id for fault, _ in self.parts)

    def __add__(self, part: tuple[Fault, Variant]) -> Hypothesis:
        return Hypothesis.of(*self.parts, part)


#: That nothing went wrong.
RIGHT = Hypothesis((), Recipe())


def singles(problem: Problem) -> list[Hypothesis]:
    """Every mistake but the factors, in every form that it has on the problem."""
    return [
        Hypothesis.of((fault, variant))
        for fault in FAULTS.values()
        if fault.stage != "scale" and fault.id not in FOUND_OTHERWISE
        for variant in fault.variants(problem)
    ]


def known_factors(problem: Problem) -> list[tuple[Fault, Variant]]:
    """The factors that have a name."""
    return [
        (fault, variant)
        for fault in FAULTS.values()
        if fault.stage == "scale" and fault.id not in ("update", "scaled", "norm_clipped")
        for variant in fault.variants(problem)
    ]


def pairs(problem: Problem) -> list[Hypothesis]:
    """Two mistakes at once, of those that leave each other room."""
    likely = {"lr_factor", "adapted"}
    every, large = work(problem) <= MOST_FOR_ALL_PAIRS, is_large(problem)
    found = []
    for one, other in combinations(singles(problem), 2):
        (a,), (b,) = one.parts, other.parts
        if not _go_together(a, b):
            continue
        if large:
            if _costs_little(a, b):
                found.append(Hypothesis.of(a, b))
            continue
        changed = {*a[1].changes, *b[1].changes}
        first_order = "first_order" in (a[0].id, b[0].id)
        all_of_them = every and (_of_norm(a) == _of_norm(b) or first_order)
        # What is done after the tasks' gradients are known costs nothing.
        if all_of_them or changed & likely or "assembly" in (a[0].stage, b[0].stage):
            found.append(Hypothesis.of(a, b))
    return found


def _of_norm(part: tuple[Fault, Variant]) -> bool:
    """Whether it is a mistake of normalised networks alone."""
    return part[0] in NORMALISED


def _costs_little(a: tuple[Fault, Variant], b: tuple[Fault, Variant]) -> bool:
    """A first-order gradient, or something done to it or to that of another step size or mask: the
    inner loops are those of single mistakes."""
    likely = ({"lr_factor"}, {"adapted"})
    ids, stages = {a[0].id, b[0].id}, {a[0].stage, b[0].stage}
    if "task_skipped" in ids or stages == {"assembly"}:
        return False
    if "first_order" in ids:
        return True
    return "assembly" in stages and any(set(variant.changes) in likely for _, variant in (a, b))


def is_large(problem: Problem) -> bool:
    """Whether work is saved wherever it can be."""
    return work(problem) > MOST_FOR_LIKELY_PAIRS


def left_out(problem: Problem) -> str:
    """What is not tried on a problem of this size, in words; empty if everything is."""
    size = work(problem)
    normalised = problem.model is not None and problem.model.norm is not None
    if size <= MOST_FOR_ALL_PAIRS:
        more = ["three and more mistakes at once"] if size > MOST_FOR_CROWDS else []
        if normalised:
            more.append(
                "a mistake of normalisation beside others, unless one is first_order, a wrong step "
                "size, a wrong choice of what is adapted or made with right gradients"
            )
        return "; ".join(more)
    if size <= MOST_FOR_LIKELY_PAIRS:
        return (
            "two mistakes at once, unless one is a wrong step size, a wrong choice of what is adapted "
            "or made with right gradients; three and more"
        )
    return (
        "two mistakes at once, unless one is first_order, or a wrong step size or choice of what is "
        "adapted beside one made with right gradients; three and more; numbers on no list are fitted "
        "from few beginnings"
    )


def _go_together(a: tuple[Fault, Variant], b: tuple[Fault, Variant]) -> bool:
    one, other = a[1].changes, b[1].changes
    if set(one) & set(other) or a[0].id == b[0].id:
        return False
    changes = {**one, **other}
    if changes.get("lr_factor") == 0:  # an inner loop that goes nowhere has no other mistake
        return set(changes) <= OF_NO_INNER_LOOP
    if str(changes.get("start", "")).endswith("graph"):  # then the tasks' gradients are one
        return not {"tasks", "first", "second"} & set(changes)
    if changes.get("statistics") == ("over", "all tasks") and {"start", "momentum_survives"} & {
        *changes
    }:
        return False  # one task after another
    # Reptile takes no derivative.
    return changes.get("tasks", ("",))[0] != "reptile" or "backward" not in (a[0].stage, b[0].stage)


def crowds(problem: Problem) -> list[Hypothesis]:
    """Three and more at once: step-size factor × steps × routing × what is adapted × way back."""
    if work(problem) > MOST_FOR_CROWDS:
        return []
    groups: list[list[Hypothesis]] = [[], [], [], [], []]
    for hypothesis in singles(problem):
        ((fault, variant),) = hypothesis.parts
        names = set(variant.changes)
        if fault.id in RARE_STEP_SIZES or _of_norm((fault, variant)):
            continue  # every step-size factor is a thousand hypotheses
        for group, keys in enumerate(
            ({"lr_factor"}, {"extra_steps"}, {"adapt_on", "score_on"}, {"adapted"})
        ):
            if names <= keys:
                groups[group].append(hypothesis)
        if fault.stage == "backward" and hypothesis.ids not in [h.ids for h in groups[4]]:
            groups[4].append(hypothesis)  # in its first form
    return [
        Hypothesis.of(*(part for one in chosen if one for part in one.parts))
        for chosen in product(*([None, *group] for group in groups))
        if sum(one is not None for one in chosen) > 2
    ]


def work(problem: Problem) -> int:
    """What one inner loop costs, in units of a number that is computed."""
    return (problem.T * problem.P + CALLS) * (problem.S + 1)


def predictions(
    problem: Problem,
    hypotheses: Sequence[Hypothesis],
    admit: Callable[[Path], bool] | None = None,
    chunk: int = 2_000_000,
) -> Iterator[tuple[list[Hypothesis], Array]]:
    """What each would make of the gradient: hypotheses and their rows ``(n, P)``, some at a time.

    ``admit`` says whether an inner loop may be the one. Hypotheses whose prediction is not finite, or
    zero, are left out.
    """
    kept: list[Hypothesis] = []
    rows: list[Array] = []
    for hypothesis, row in _one_by_one(problem, hypotheses, admit):
        kept.append(hypothesis)
        rows.append(row)
        if len(rows) * problem.P > chunk:
            yield kept, np.array(rows)
            kept, rows = [], []
    if rows:
        yield kept, np.array(rows)


def _one_by_one(
    problem: Problem, hypotheses: Sequence[Hypothesis], admit: Callable[[Path], bool] | None
) -> Iterator[tuple[Hypothesis, Array]]:
    """Each with its prediction; inner loops, ways back and sums over tasks are made once."""

    def order(hypothesis: Hypothesis) -> tuple[str, str, str]:
        recipe = hypothesis.recipe
        return repr(recipe.forward), repr(recipe.backward), repr(recipe.tasks)

    ordered = sorted(hypotheses, key=order)
    for forward, group in groupby(ordered, key=lambda h: h.recipe.forward):
        yield from _of_one_loop(problem, forward, group, admit)


def _of_one_loop(
    problem: Problem,
    forward: Forward,
    group: Iterator[Hypothesis],
    admit: Callable[[Path], bool] | None,
) -> Iterator[tuple[Hypothesis, Array]]:
    with np.errstate(all="ignore"):
        path = follow(problem, forward, whole=admit is not None)
        admitted = np.isfinite(path.points[-1]).all() and (admit is None or admit(path))
    if not admitted:
        return
    for backward, same_way_back in groupby(group, key=lambda h: h.recipe.backward):
        with np.errstate(all="ignore"):
            per_task = pull_back(path, backward)
            total = path.total(per_task)
        for tasks, same_tasks in groupby(same_way_back, key=lambda h: h.recipe.tasks):
            with np.errstate(all="ignore"):
                gradient = over_tasks(problem, path, tasks, per_task, total)
            for hypothesis in same_tasks:
                with np.errstate(all="ignore"):
                    row = handed_over(problem, path, gradient, hypothesis.recipe.finish)
                if np.isfinite(row).all() and row.any():
                    yield hypothesis, row
