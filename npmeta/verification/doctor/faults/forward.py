"""Mistakes of the inner loop, and of what is scored after it: everything behind them is recomputed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from npmeta.network.activations import ACTIVATIONS
from npmeta.verification.doctor.choices import Forward
from npmeta.verification.doctor.faults.base import Fault, Variant, Variants, always, where
from npmeta.verification.doctor.problem import Problem


def _lr(factor: Callable[[Problem], float]) -> Variants:
    def variants(problem: Problem) -> Iterator[Variant]:
        value = float(factor(problem))
        if value != 1 and problem.S > 0:
            yield Variant(Forward(lr_factor=value), factor=value)

    return variants


def _adapted(which: Literal["weights", "head", "body"]) -> Variants:
    def variants(problem: Problem) -> Iterator[Variant]:
        if problem.model is None or problem.S == 0:
            return
        if which == "weights" or problem.model.n_layers > 1:
            yield Variant(Forward(adapted=which))
        if which == "weights" and problem.model.norm is not None and problem.model.adapt_norm:
            yield Variant(Forward(adapted="weights and scales"), "nor shifts")

    return variants


def _frozen(problem: Problem) -> Iterator[Variant]:
    # What a norm leaves alone has faults of its own.
    sizes = problem.step_sizes(np.dtype(np.float64), norm_too=True)
    if problem.S > 0 and (sizes == 0).any() and (sizes > 0).any():
        yield Variant(Forward(adapted="frozen too"))


def _structure(problem: Problem) -> Iterator[Variant]:
    structure = None if problem.model is None else problem.model.structure
    if structure is not None and structure.adapt and problem.S:
        yield Variant(Forward(adapted="layers"))


def _other_task(problem: Problem) -> Iterator[Variant]:
    if problem.T > 1:
        yield Variant(Forward(score_on="query of the next task"), "the next task's")
        if problem.T > 2:
            yield Variant(Forward(score_on="query of the task before"), "that of the task before")


def _both(problem: Problem) -> Iterator[Variant]:
    if problem.S > 0 and problem.model is not None:
        yield Variant(Forward(adapt_on="both"))


def _weight_decay(problem: Problem) -> Iterator[Variant]:
    if problem.S == 0:
        return
    if problem.maml.inner_weight_decay:
        yield Variant(Forward(decay=0.0), "it is missing", 0.0)
    else:
        yield Variant(Forward(decay=0.01), factor=0.01)


def _other_activation(problem: Problem) -> Iterator[Variant]:
    if problem.model is None or not problem.model.activations or problem.model.structure is not None:
        return
    names = {f.name for f in problem.model.activations}
    # The nearest relative first: it is what one name means in another framework.
    near = ["leaky_relu"] if "relu" in names else ["relu"] if "leaky_relu" in names else []
    near += ["gelu by tanh"] if "gelu" in names else []
    for name in dict.fromkeys([*near, *ACTIVATIONS]):
        if names != {name}:
            yield Variant(Forward(activation=name), name)


def _broadcast(problem: Problem) -> Iterator[Variant]:
    risk = problem.risk
    if risk is not None and risk.loss.name == "mse" and problem.n_outputs == 1:
        yield Variant(Forward(loss="targets broadcast"))


def _softmax_twice(problem: Problem) -> Iterator[Variant]:
    if problem.risk is not None and problem.risk.loss.name == "cross_entropy":
        yield Variant(Forward(loss="softmax twice"))


_THROUGH = Forward(start="last task, through the graph")
_SURVIVES = Forward(momentum=1.0, momentum_survives=True)

#: In the order of how simple they are: of several that fit, the first is named.
FORWARD = [
    Fault("inner_lr_times_rows", "forward", _lr(lambda p: p.K)),
    Fault("inner_lr_times_outputs", "forward", _lr(lambda p: p.n_outputs)),
    Fault("inner_lr_times_rows_and_outputs", "forward", _lr(lambda p: p.K * p.n_outputs)),
    Fault("inner_lr_over_rows", "forward", _lr(lambda p: 1 / p.K)),
    Fault("inner_lr_over_outputs", "forward", _lr(lambda p: 1 / p.n_outputs)),
    Fault("inner_lr_doubled", "forward", _lr(lambda p: 2)),
    Fault("inner_lr_halved", "forward", _lr(lambda p: 0.5)),
    Fault("inner_ascent", "forward", _lr(lambda p: -1)),
    Fault("not_adapted", "forward", _lr(lambda p: 0)),
    Fault("inner_lr", "forward", _lr(lambda p: 3.0)),
    Fault("one_step_fewer", "forward", where(Forward(extra_steps=-1), steps=1)),
    Fault("one_step_more", "forward", always(Forward(extra_steps=1))),
    Fault("inner_gradient_at_theta", "forward", where(Forward(gradient_at="theta"), steps=2)),
    Fault("sets_swapped", "forward", always(Forward(adapt_on="query", score_on="support"))),
    Fault("query_is_support", "forward", always(Forward(score_on="support"))),
    Fault("adapted_on_query", "forward", where(Forward(adapt_on="query"), steps=1)),
    Fault("adapted_on_both", "forward", _both),
    Fault("query_of_another_task", "forward", _other_task),
    Fault("no_reset", "forward", where(Forward(start="last task"), steps=1, tasks=2)),
    Fault("no_reset_through_graph", "forward", where(_THROUGH, steps=1, tasks=2)),
    Fault("inner_gradients_accumulate", "forward", where(Forward(momentum=1.0), steps=2)),
    Fault("accumulator_survives_tasks", "forward", where(_SURVIVES, steps=1, tasks=2)),
    Fault("inner_momentum", "forward", where(Forward(momentum=0.9), steps=2)),
    Fault("biases_not_adapted", "forward", _adapted("weights")),
    Fault("only_head_adapted", "forward", _adapted("head")),
    Fault("head_not_adapted", "forward", _adapted("body")),
    Fault("frozen_adapted", "forward", _frozen),
    Fault("structure_not_adapted", "forward", _structure),
    Fault("inner_weight_decay", "forward", _weight_decay),
    Fault("other_activation", "forward", _other_activation),
    Fault("targets_broadcast", "forward", _broadcast),
    Fault("softmax_twice", "forward", _softmax_twice),
]
