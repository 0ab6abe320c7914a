"""What may have gone wrong: each known mistake, any two that go together, and the usual crowds."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product

from npmeta.verification.doctor.assembly import ReptileUpdate
from npmeta.verification.doctor.choices import Forward
from npmeta.verification.doctor.faults import FAULTS, Fault, Variant
from npmeta.verification.doctor.faults.normalised import NORMALISED
from npmeta.verification.doctor.problem import Problem
from npmeta.verification.doctor.recipe import Recipe

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
class Explanation:
    """Mistakes made together, and the recipe that they make."""

    parts: tuple[tuple[Fault, Variant], ...]
    recipe: Recipe

    @staticmethod
    def of(*parts: tuple[Fault, Variant]) -> Explanation:
        recipe = Recipe()
        for _, variant in parts:
            recipe = recipe.having(variant.choices)
        return Explanation(parts, recipe)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(fault.id for fault, _ in self.parts)

    def __add__(self, part: tuple[Fault, Variant]) -> Explanation:
        return Explanation.of(*self.parts, part)


#: That nothing went wrong.
RIGHT = Explanation((), Recipe())


def singles(problem: Problem) -> list[Explanation]:
    """Every mistake but the factors, in every form that it has on the problem."""
    return [
        Explanation.of((fault, variant))
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


def pairs(problem: Problem) -> list[Explanation]:
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
                found.append(Explanation.of(a, b))
            continue
        changed = {*a[1].changes, *b[1].changes}
        first_order = "first_order" in (a[0].id, b[0].id)
        all_of_them = every and (_of_norm(a) == _of_norm(b) or first_order)
        # What is done after the tasks' gradients are known costs nothing.
        if all_of_them or changed & likely or "assembly" in (a[0].stage, b[0].stage):
            found.append(Explanation.of(a, b))
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
    forwards = [part[1].choices for part in (a, b) if isinstance(part[1].choices, Forward)]
    if any(one.tasks_meet for one in forwards) and any(one.task_by_task for one in forwards):
        return False
    # Reptile takes no derivative.
    reptile = isinstance(changes.get("tasks"), ReptileUpdate)
    return not (reptile and "backward" in (a[0].stage, b[0].stage))


def crowds(problem: Problem) -> list[Explanation]:
    """Three and more at once: step-size factor × steps × routing × what is adapted × way back."""
    if work(problem) > MOST_FOR_CROWDS:
        return []
    groups: list[list[Explanation]] = [[], [], [], [], []]
    for explanation in singles(problem):
        ((fault, variant),) = explanation.parts
        names = set(variant.changes)
        if fault.id in RARE_STEP_SIZES or _of_norm((fault, variant)):
            continue  # every step-size factor is a thousand explanations
        for group, keys in enumerate(
            ({"lr_factor"}, {"extra_steps"}, {"adapt_on", "score_on"}, {"adapted"})
        ):
            if names <= keys:
                groups[group].append(explanation)
        if fault.stage == "backward" and explanation.ids not in [h.ids for h in groups[4]]:
            groups[4].append(explanation)  # in its first form
    return [
        Explanation.of(*(part for one in chosen if one for part in one.parts))
        for chosen in product(*([None, *group] for group in groups))
        if sum(one is not None for one in chosen) > 2
    ]


def work(problem: Problem) -> int:
    """What one inner loop costs, in units of a number that is computed."""
    return (problem.T * problem.P + CALLS) * (problem.S + 1)
