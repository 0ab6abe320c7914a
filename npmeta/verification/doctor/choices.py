"""How somebody computes a meta-gradient, right or wrong, as a list of choices.

For every place where implementations of MAML go wrong there is a field, and its default is what is
right. A mistake is another choice in one place, two mistakes at once are two choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from npmeta.network.normalisation import EPS


@dataclass(frozen=True)
class Statistics:
    """By which mean and variance a normalised network normalises.

    Attributes
    ----------
    everywhere : {"own", "fresh", "none"}
        Those of the rows at hand; 0 and 1; or 0 and 1 without ε, scale and shift.
    on_query : {"own", "fresh", "support", "both", "running"}
        On the query rows: 0 and 1; those of the support rows; those of both sets; running averages.
    over : str or None
        Another axis of the mean.
    constant : bool
        Whether they are constants on the way back; with those of the support rows on the query rows,
        whether these are. Otherwise of no account.
    momentum, unbiased, kept
        Of running averages: the share of what is new; whether the variance is unbiased; whether tasks
        go on with those of the task before.
    """

    everywhere: Literal["own", "fresh", "none"] = "own"
    on_query: Literal["own", "fresh", "support", "both", "running"] = "own"
    over: Literal["batch", "layer", "rows and units", "all tasks"] | None = None
    constant: bool = False
    momentum: float = 0.1
    unbiased: bool = False
    kept: bool = False


@dataclass(frozen=True)
class Forward:
    """The choices of the inner loop, and of what is scored after it."""

    lr_factor: float = 1.0
    extra_steps: int = 0
    #: "layers" is without norm or structure.
    adapted: Literal[
        "all", "weights", "head", "body", "frozen too", "layers", "weights and scales", "norm too"
    ] = "all"
    adapt_on: Literal["support", "query", "both"] = "support"
    score_on: Literal["query", "support", "query of the next task", "query of the task before"] = (
        "query"
    )
    start: Literal["theta", "last task", "last task, through the graph"] = "theta"
    gradient_at: Literal["phi", "theta"] = "phi"
    momentum: float = 0.0
    momentum_survives: bool = False  # from one task to the next
    decay: float | None = None  # None: the problem's
    activation: str | None = None
    loss: Literal["targets broadcast", "softmax twice"] | None = None
    dtype: Literal["float64", "float32"] = "float64"
    # Of a normalised network.
    statistics: Statistics = Statistics()
    unbiased: bool = False
    eps: float = EPS
    eps_on: Literal["variance", "deviation"] = "variance"
    after: bool = False  # the activation
    affine: bool = True  # a scale and a shift

    @property
    def task_by_task(self) -> bool:
        """Whether a task's inner loop depends on that of the task before."""
        return self.start != "theta" or self.momentum_survives

    @property
    def tasks_meet(self) -> bool:
        """Whether a task's losses depend on the rows of others."""
        return self.statistics.over == "all tasks"

    @property
    def other_norm(self) -> bool:
        """Whether the network is normalised otherwise."""
        return bool({"statistics", "unbiased", "eps", "eps_on", "after", "affine"} & {*changed(self)})


@dataclass(frozen=True)
class Backward:
    """The choices of the way back."""

    hessian_at: Literal[
        "own", "theta", "end", "next", "query", "own, constant statistics", "own, saved statistics"
    ] = "own"
    curvature: float = 1.0  # what multiplies H
    identity: bool = True
    reversed: bool = False
    linearised: bool = False
    coupled: bool = True  # H has its cross terms of weights with structure
    stop: int = 0  # steps before this one are detached
    scored: Literal["last", "every step"] = "last"
    leak: float = 0.0  # how often the support gradients are added
    first: float = 1.0  # what multiplies the first-order part
    second: float = 1.0  # and what the rest


#: What is right, by the kind of choices.
_RIGHT: dict[type, dict[str, Any]] = {}


def changed(choices: Any) -> dict[str, Any]:
    """Those of the choices that are not what is right, by name."""
    kind = type(choices)
    if kind not in _RIGHT:
        _RIGHT[kind] = vars(kind())
    right = _RIGHT[kind]
    return {name: value for name, value in vars(choices).items() if value != right[name]}
