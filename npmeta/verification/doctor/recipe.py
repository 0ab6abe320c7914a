"""How somebody computes a meta-gradient, right or wrong, as a list of choices.

A :class:`Recipe` says, for every place where implementations of MAML go wrong, what is done there. Its
defaults are what is right. A mistake is another choice in one place, two mistakes at once are two
choices, and :mod:`npmeta.verification.doctor.computation` computes every combination by one piece of
code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from npmeta.network.normalisation import EPS

__all__ = ["Backward", "Forward", "Recipe"]


@dataclass(frozen=True)
class Forward:
    """The choices of the inner loop, and of what is scored after it.

    By which mean and variance a normalised network normalises, ``statistics``:

    =============================================  =================================================
    ``own``                                        those of the rows at hand
    ``over``, axis                                 those over another axis
    ``constants``                                  the right ones, constants on the way back
    ``fresh``                                      0 and 1
    ``none``                                       0 and 1, without ε, scale and shift
    ``fresh on query``                             0 and 1 on the query rows
    ``support``; ``support, a constant``           on the query rows those of the support rows
    ``both``                                       on the query rows those of both sets
    ``running``, momentum, unbiased, kept          on the query rows running averages; whether the
                                                   variance is unbiased, and tasks go on with those
                                                   of the task before
    =============================================  =================================================
    """

    lr_factor: float = 1.0
    extra_steps: int = 0
    #: Or "weights", "head", "body", "frozen too"; "layers" without norm or structure; "weights and
    #: scales", "norm too".
    adapted: str = "all"
    adapt_on: str = "support"  # or "query", "both"
    score_on: str = "query"  # or "support", "query of the next task", "query of the task before"
    start: str = "theta"  # or "last task", "last task, through the graph"
    gradient_at: str = "phi"  # or "theta"
    momentum: float = 0.0
    momentum_survives: bool = False  # from one task to the next
    decay: float | None = None  # None: the problem's
    activation: str | None = None
    loss: str | None = None  # or "targets broadcast", "softmax twice"
    # Of a normalised network.
    statistics: tuple[Any, ...] = ("own",)
    unbiased: bool = False
    eps: float = EPS
    eps_on: str = "variance"  # or "deviation"
    after: bool = False  # the activation
    affine: bool = True  # a scale and a shift

    @property
    def task_by_task(self) -> bool:
        """Whether a task's inner loop depends on that of the task before."""
        return self.start != "theta" or self.momentum_survives

    @property
    def tasks_meet(self) -> bool:
        """Whether a task's losses depend on the rows of others."""
        return self.statistics == ("over", "all tasks")

    @property
    def other_norm(self) -> bool:
        """Whether the network is normalised otherwise."""
        own = Forward()
        names = ("statistics", "unbiased", "eps", "eps_on", "after", "affine")
        return any(getattr(self, name) != getattr(own, name) for name in names)


@dataclass(frozen=True)
class Backward:
    """The choices of the way back."""

    # Or "theta", "end", "next", "query"; "own, constant statistics", "own, saved statistics".
    hessian_at: str = "own"
    curvature: float = 1.0  # what multiplies H
    identity: bool = True
    reversed: bool = False
    linearised: bool = False
    coupled: bool = True  # H has its cross terms of weights with structure
    stop: int = 0  # steps before this one are detached
    scored: str = "last"  # or "every step"
    leak: float = 0.0  # how often the support gradients are added
    first: float = 1.0  # what multiplies the first-order part
    second: float = 1.0  # and what the rest


@dataclass(frozen=True)
class Recipe:
    """All the choices.

    Attributes
    ----------
    forward : Forward
    backward : Backward
    tasks : tuple
        How the tasks' gradients become one: ``("mean",)``, ``("only", t, divisor)``,
        ``("without", t, divisor)``, or ``("reptile",)``.
    finish : tuple of tuples
        What is done to that one, in order; a name and its arguments, as in
        :func:`~npmeta.verification.doctor.computation.finished`.
    dtype : str
    """

    forward: Forward = Forward()
    backward: Backward = Backward()
    tasks: tuple[Any, ...] = ("mean",)
    finish: tuple[tuple[Any, ...], ...] = ()
    dtype: str = "float64"

    def having(self, changes: Mapping[str, Any]) -> Recipe:
        """The recipe with other choices, by name, wherever they belong; ``finish`` is added to."""
        own = {k: v for k, v in changes.items() if k in ("tasks", "dtype")}
        inner = {k: v for k, v in changes.items() if k in Forward.__dataclass_fields__}
        back = {k: v for k, v in changes.items() if k in Backward.__dataclass_fields__}
        return Recipe(
            replace(self.forward, **inner),
            replace(self.backward, **back),
            own.get("tasks", self.tasks),
            self.finish + tuple(changes.get("finish", ())),
            own.get("dtype", self.dtype),
        )
