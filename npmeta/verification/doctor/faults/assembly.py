"""Mistakes made with gradients that were right: which tasks, which arrays, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from npmeta.verification.doctor.assembly import (
    ORDERS,
    AddDecay,
    Assembly,
    AtUpdatedTheta,
    ClipValues,
    DropSecondOrder,
    Finish,
    OnlyTask,
    OuterStep,
    Reorder,
    ReptileUpdate,
    SetToZero,
    Standardise,
    StepPerTask,
    Times,
    Transpose,
    WithoutTask,
)
from npmeta.verification.doctor.choices import Forward
from npmeta.verification.doctor.faults.base import Fault, Variant, Variants, always
from npmeta.verification.doctor.problem import Problem


def _finish(what: Finish) -> Assembly:
    return Assembly(finish=(what,))


def _last_task(problem: Problem) -> Iterator[Variant]:
    if problem.T > 1:
        last = problem.T - 1
        yield Variant(Assembly(OnlyTask(last, 1)))
        yield Variant(Assembly(OnlyTask(last, problem.T)), "over T")


def _first_task(problem: Problem) -> Iterator[Variant]:
    if problem.T > 1:
        yield Variant(Assembly(OnlyTask(0, 1)))
        yield Variant(Assembly(OnlyTask(0, problem.T)), "over T")


def _skipped(problem: Problem) -> Iterator[Variant]:
    for t in reversed(range(problem.T if problem.T > 2 else 0)):
        yield Variant(Assembly(WithoutTask(t, problem.T)), f"task {t}")
        yield Variant(Assembly(WithoutTask(t, problem.T - 1)), f"task {t}, mean of the others")


def _transposed(problem: Problem) -> Iterator[Variant]:
    # A matrix with one row or column is its own transpose when flat.
    weights = [name for name in _weights(problem) if min(_shape(problem, name)) > 1]
    if weights:
        yield Variant(_finish(Transpose(tuple(weights))), "all weights")
    for name in weights if len(weights) > 1 else ():
        yield Variant(_finish(Transpose((name,))), name)


def _weights(problem: Problem) -> list[str]:
    return [name for name in problem.blocks if name.endswith("weight")]


def _shape(problem: Problem, name: str) -> Sequence[int]:
    assert problem.model is not None
    l = int(name.split(".")[0])
    return problem.model.widths[l : l + 2]


def _orders(problem: Problem) -> Iterator[Variant]:
    names = list(problem.blocks)
    seen = [names]
    plain = problem.model is not None and problem.model.is_plain  # orders of pairs
    for how, order in ORDERS.items() if plain else ():
        if order(names) not in seen:
            seen.append(order(names))
            yield Variant(_finish(Reorder(how)), how)


def _blocks(what: Callable[[tuple[str, ...]], Finish], needs_steps: bool) -> Variants:
    """One array of parameters, or one layer, of several."""

    def variants(problem: Problem) -> Iterator[Variant]:
        names = list(problem.blocks)
        if problem.model is None or (needs_steps and problem.S == 0):
            return
        for name in names:
            yield Variant(_finish(what((name,))), name)
        for l in range(problem.model.n_layers) if problem.model.n_layers > 1 else ():
            layer = tuple(name for name in names if name.startswith(f"{l}."))
            yield Variant(_finish(what(layer)), f"layer {l}")

    return variants


def _frozen(problem: Problem) -> Iterator[Variant]:
    """All arrays together that the inner loop leaves alone."""
    # What a norm leaves alone has faults of its own.
    sizes = problem.step_sizes(np.dtype(np.float64), norm_too=True)
    names = tuple(name for name, place in problem.blocks.items() if not sizes[:, place].any())
    if problem.S > 0 and 0 < len(names) < len(problem.blocks):
        yield Variant(_finish(SetToZero(names)))


def _reptile(problem: Problem) -> Iterator[Variant]:
    alpha = np.asarray(problem.maml.inner_lr)
    if problem.S == 0:
        return
    if alpha.ndim == 0 and alpha > 0:
        factor = 1 / float(alpha)
        yield Variant(Assembly(ReptileUpdate(), (Times(factor),)), "(θ − φ_S)/α")
    yield Variant(Assembly(ReptileUpdate()), "θ − φ_S")


def _step_per_task(problem: Problem) -> Iterator[Variant]:
    if problem.T > 1:
        yield Variant(Assembly(outer=StepPerTask(0.01)), factor=0.01)


def _values_clipped(problem: Problem) -> Iterator[Variant]:
    limit = float(np.abs(problem.gradient).max()) / 2
    if limit > 0:
        yield Variant(_finish(ClipValues(limit)), factor=limit)


def _standardised(problem: Problem) -> Iterator[Variant]:
    if problem.gradient.std() > 0:
        yield Variant(_finish(Standardise()))


#: In the order of how simple they are: of several that fit, the first is named.
ASSEMBLY = [
    Fault("zeros", "assembly", always(_finish(Times(0.0)))),
    Fault("last_task_only", "assembly", _last_task),
    Fault("first_task_only", "assembly", _first_task),
    Fault("task_skipped", "assembly", _skipped),
    Fault("weights_transposed", "assembly", _transposed),
    Fault("other_order", "assembly", _orders),
    Fault("frozen_zero", "assembly", _frozen),
    Fault("block_zero", "assembly", _blocks(SetToZero, needs_steps=False)),
    Fault("block_first_order", "assembly", _blocks(DropSecondOrder, needs_steps=True)),
    Fault("reptile", "assembly", _reptile),
    Fault("updated_theta", "assembly", always(_finish(OuterStep(0.01)), factor=0.01)),
    Fault("at_updated_theta", "assembly", always(Assembly(outer=AtUpdatedTheta(0.01)), factor=0.01)),
    Fault("outer_step_per_task", "assembly", _step_per_task),
    Fault("outer_weight_decay", "assembly", always(_finish(AddDecay(0.01)), factor=0.01)),
    Fault("values_clipped", "assembly", _values_clipped),
    Fault("standardised", "assembly", _standardised),
    Fault("float32", "assembly", always(Forward(dtype="float32"))),
    Fault("not_finite", "assembly", lambda problem: []),
]
