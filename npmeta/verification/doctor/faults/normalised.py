"""Mistakes of normalised networks: which statistics, which ε, and what becomes of scale and shift."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from npmeta.verification.doctor.assembly import Assembly, SetToZero
from npmeta.verification.doctor.choices import Backward, Forward, Statistics
from npmeta.verification.doctor.faults.base import Fault, Variant, Variants
from npmeta.verification.doctor.problem import Problem


def _norm(problem: Problem) -> str | None:
    """What a problem's network is normalised by; None where no layer is."""
    model = problem.model
    return model.norm if model is not None and model.activations else None


def _of(
    *forms: Variant, norms: tuple[str, ...] = ("batch", "layer"), steps: int = 0, tasks: int = 1
) -> Variants:
    """On networks that are normalised in one of these ways, with so many inner steps and tasks."""

    def variants(problem: Problem) -> Iterator[Variant]:
        if _norm(problem) in norms and steps <= problem.S and tasks <= problem.T:
            yield from forms

    return variants


def _statistics(detail: str = "", **how: Any) -> Variant:
    return Variant(Forward(statistics=Statistics(**how)), detail)


def _running(kept: bool) -> list[Variant]:
    """Running averages as the frameworks make them."""
    return [
        _statistics(detail, on_query="running", momentum=momentum, unbiased=unbiased, kept=kept)
        for detail, momentum, unbiased in (
            ("momentum 0.1 and unbiased, PyTorch's", 0.1, True),
            ("decay 0.9, biased", 0.1, False),
            ("decay 0.99, biased, Flax's and Keras's", 0.01, False),
        )
    ]


def _axis(problem: Problem) -> Iterator[Variant]:
    for norm, what in (("batch", "over the rows"), ("layer", "over the units")):
        if _norm(problem) == {"batch": "layer", "layer": "batch"}[norm]:
            yield _statistics(what, over=norm)
    if _norm(problem):
        yield _statistics("over rows and units", over="rows and units")


def _eps() -> list[Variant]:
    inside = [Variant(Forward(eps=eps), f"{eps:g}", eps) for eps in (1e-3, 1e-6, 1e-8)]
    beside = [
        Variant(Forward(eps=eps, eps_on="deviation"), f"{eps:g} beside the root", eps)
        for eps in (1e-5, 1e-3, 1e-6, 1e-8)
    ]
    return inside + beside


def _not_adapted(problem: Problem) -> Iterator[Variant]:
    if _norm(problem) and problem.S and problem.model is not None and problem.model.adapt_norm:
        yield Variant(Forward(adapted="layers"))


def _adapted(problem: Problem) -> Iterator[Variant]:
    if _norm(problem) and problem.S and problem.model is not None and not problem.model.adapt_norm:
        yield Variant(Forward(adapted="norm too"))


def _saved(problem: Problem) -> Iterator[Variant]:
    for _ in _not_adapted(problem):  # where they are adapted, that is
        yield Variant(Backward(hessian_at="own, saved statistics"))


def _no_gradient(problem: Problem) -> Iterator[Variant]:
    names = tuple(name for name in problem.blocks if name.endswith(("scale", "shift")))
    if names:
        yield Variant(Assembly(finish=(SetToZero(names),)))


#: In the order of how simple they are: of several that fit, the first is named.
NORMALISED = [
    Fault(
        "norm_eval_mode",
        "forward",
        _of(
            _statistics("in every pass", everywhere="fresh"),
            _statistics("on the query rows", on_query="fresh"),
            norms=("batch",),
        ),
    ),
    Fault("norm_running_statistics", "forward", _of(*_running(kept=False), norms=("batch",), steps=1)),
    Fault(
        "norm_statistics_leak",
        "forward",
        _of(*_running(kept=True), norms=("batch",), steps=1, tasks=2),
    ),
    Fault(
        "norm_support_statistics",
        "forward",
        _of(
            _statistics(on_query="support"),
            _statistics("constants", on_query="support", constant=True),
            norms=("batch",),
        ),
    ),
    Fault("norm_joint_statistics", "forward", _of(_statistics(on_query="both"), norms=("batch",))),
    Fault("norm_over_tasks", "forward", _of(_statistics(over="all tasks"), norms=("batch",), tasks=2)),
    Fault("norm_detached", "forward", _of(_statistics(constant=True))),
    Fault(
        "norm_detached_in_hessian",
        "backward",
        _of(Variant(Backward(hessian_at="own, constant statistics")), steps=1),
    ),
    Fault("norm_saved_statistics", "backward", _saved),
    Fault(
        "norm_unbiased",
        "forward",
        _of(
            Variant(Forward(unbiased=True)),
            Variant(Forward(unbiased=True, eps_on="deviation"), "ε = 1e-05 beside the root"),
        ),
    ),
    Fault("norm_eps", "forward", _of(*_eps())),
    Fault("norm_axis", "forward", _axis),
    Fault("norm_after_activation", "forward", _of(Variant(Forward(after=True)))),
    Fault("norm_left_out", "forward", _of(_statistics(everywhere="none"))),
    Fault("norm_without_scale", "forward", _of(Variant(Forward(affine=False)))),
    Fault("norm_not_adapted", "forward", _not_adapted),
    Fault("norm_adapted", "forward", _adapted),
    Fault("norm_no_gradient", "assembly", _no_gradient),
]
